"""Image sets as uint8 tensors: found, verified, and cached as one compressed file each."""

from __future__ import annotations

import functools
import hashlib
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark.sources import IDX_FILES, SPECS, DataError, Spec, dataset_class, sources, verify_raw
from strategies.registry import did_you_mean

NAMES = (*SPECS, "digits")
OFFLINE = 'offline choice: scenario = "permuted-digits" (its images come with scikit-learn)'

Say = Callable[[str], None]
Arrays = dict[str, NDArray[np.uint8]]
PARTS = ("train_x", "train_y", "test_x", "test_y")


@dataclass(frozen=True)
class ImageSet:
    """Images and labels.

    Attributes:
        name: of the set.
        train_x: uint8, shape (N, pixels): each image flattened, channels first.
        train_y: int64, shape (N,).
        test_x: as `train_x`.
        test_y: as `train_y`.
        shape: of one image, (channels, height, width).
        classes: number of labels.
        scale: the pixel value that becomes 1.0.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    shape: tuple[int, int, int]
    classes: int
    scale: float

    @functools.cached_property
    def checksum(self) -> str:
        """16 hex digits over all pixels and labels."""
        whole = hashlib.blake2b(digest_size=8)
        for part in (self.train_x, self.train_y, self.test_x, self.test_y):
            whole.update(part.cpu().numpy().tobytes())
        return whole.hexdigest()


def cache_dir() -> Path:
    """`$FORGETBENCH_CACHE`, else `forgetbench` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FORGETBENCH_CACHE") or Path(base) / "forgetbench")


def load(name: str, data_dir: Path | None = None, say: Say = lambda line: None) -> ImageSet:
    """An image set by name.

    Args:
        name: one of `NAMES`.
        data_dir: a folder that holds the files (torchvision's layout, or our cache file), and the only place looked at;
            None: `$FORGETBENCH_DATA` if set, else the cache, then each source in turn.
        say: takes one line for each place tried.

    Returns:
        The verified images.

    Raises:
        DataError: it could not be had; the message says what was tried, why each failed, and what works offline.
        ValueError: no set of that name.
    """
    if name == "digits":
        return _digits()
    spec, given = _spec(name), data_dir or _environment_dir()
    return _image_set(spec, _from_folder(spec, given, say) if given else _from_cache_or_sources(spec, say))


def _spec(name: str) -> Spec:
    if name not in SPECS:
        raise ValueError(f"unknown image set {name!r}{did_you_mean(name, NAMES)} (forgetbench list data)")
    return SPECS[name]


def _environment_dir() -> Path | None:
    return Path(os.environ["FORGETBENCH_DATA"]) if os.environ.get("FORGETBENCH_DATA") else None


def verify(name: str, data_dir: Path | None = None) -> str:
    """Check what is on disk, fetching nothing.

    Args:
        name: one of `NAMES`.
        data_dir: as for `load`.

    Returns:
        One line that says what was found.

    Raises:
        DataError: nothing there, or not the published files.
    """
    if name == "digits":
        return "comes with scikit-learn"
    spec, path = _spec(name), cache_dir() / f"{name}.npz"
    data_dir = data_dir or _environment_dir()
    if data_dir:
        _from_folder(spec, data_dir, lambda line: None)
        return f"verified in {data_dir}"
    if not path.is_file():
        raise DataError(f"not in the cache {path.parent} (forgetbench data fetch {name})")
    _read(spec, path)
    return f"verified, {path} ({path.stat().st_size / 1e6:.1f} MB)"


def _from_folder(spec: Spec, folder: Path, say: Say) -> Arrays:
    packed = folder / f"{spec.name}.npz"
    if packed.is_file():
        say(f"{spec.name}: {packed}")
        return _read(spec, packed)
    if not (folder / spec.folder).is_dir():
        raise DataError(
            f"{spec.name}: no {spec.folder}/ (torchvision's layout) and no {spec.name}.npz in data folder {folder}; "
            f"without --data-dir and FORGETBENCH_DATA it is fetched; {OFFLINE}"
        )
    try:
        arrays = _read_raw(spec, folder)
    except DataError as error:
        raise DataError(f"{spec.name}: {error}; delete it and put the published file there") from None
    say(f"{spec.name}: {folder / spec.folder}")
    return arrays


def _from_cache_or_sources(spec: Spec, say: Say) -> Arrays:
    path, tried = cache_dir() / f"{spec.name}.npz", []
    if path.is_file():
        try:
            arrays = _read(spec, path)
            say(f"{spec.name}: cache {path}")
            return arrays
        except DataError as error:
            path.unlink(missing_ok=True)
            tried.append(f"cache: {error}; deleted")
    else:
        tried.append(f"cache: no {path}")
    say(f"{spec.name}: {tried[-1]}")
    for title, fetch in sources(spec):
        try:
            with tempfile.TemporaryDirectory(prefix="forgetbench-") as folder:
                fetch(spec, Path(folder))
                arrays = _read_raw(spec, Path(folder))
        except (DataError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            tried.append(f"{title}: {reason[:200]}")
            say(f"{spec.name}: {tried[-1]}")
            continue
        say(f"{spec.name}: {title}: fetched and verified")
        try:
            _write(path, arrays)
        except OSError as error:
            say(f"{spec.name}: not kept in the cache {path} ({error.strerror or error})")
        return arrays
    lines = "\n".join(f"  - {line}" for line in tried)
    raise DataError(
        f"{spec.name} cannot be had; tried\n{lines}\n"
        f"give files you already have with --data-dir or FORGETBENCH_DATA (torchvision's layout), or take the {OFFLINE}"
    )


def _read_raw(spec: Spec, root: Path) -> Arrays:
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
        except (RuntimeError, ValueError, AssertionError, OSError) as error:
            raise DataError(f"{root / spec.folder} cannot be read: {error}") from error
        x = np.asarray(found.data)
        # CIFAR's images come channels last; ours are channels first.
        arrays[f"{part}_x"] = np.ascontiguousarray(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x)
        arrays[f"{part}_y"] = np.asarray(found.targets, dtype=np.uint8)
    return arrays


def _read(spec: Spec, path: Path) -> Arrays:
    """The cached arrays, verified.

    Args:
        spec: of the set.
        path: of our cache file.

    Raises:
        DataError: corrupt, truncated, or not the published images.
    """
    try:
        # NumPy leaves a file it opened itself open where it holds no archive.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {part: file[part] for part in PARTS}
    except Exception as error:  # zlib.error, NotImplementedError, ...: a damaged archive fails in many ways
        raise DataError(f"{path} is corrupt or truncated ({error})") from error
    for part, name in zip(PARTS, IDX_FILES, strict=True):
        expected = spec.md5.get(name)
        if expected and _idx_md5(arrays[part]) != expected:
            raise DataError(f"{path} does not hold the published {name}")
    return arrays


def _idx_md5(array: NDArray[np.uint8]) -> str:
    """MD5 of the raw IDX file that holds the array: the published checksums apply to the cache too."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return hashlib.md5(header + array.tobytes()).hexdigest()


def _write(path: Path, arrays: Arrays) -> None:
    """Atomic: another process sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", suffix=".npz", delete=False) as file:
        try:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _image_set(spec: Spec, arrays: Arrays) -> ImageSet:
    sizes = len(arrays["train_y"]), len(arrays["test_y"])
    if sizes != spec.sizes:
        raise DataError(f"{spec.name}: expected {spec.sizes} training and test images, got {sizes}")
    image = arrays["train_x"].shape[1:]
    shape = (1, *image) if len(image) == 2 else image
    return ImageSet(
        name=spec.name,
        train_x=_tensor(arrays["train_x"]),
        train_y=_tensor(arrays["train_y"]),
        test_x=_tensor(arrays["test_x"]),
        test_y=_tensor(arrays["test_y"]),
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        classes=spec.classes,
        scale=255.0,
    )


def _tensor(array: NDArray[np.uint8]) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.flatten(1) if tensor.ndim > 1 else tensor.long()


def _digits() -> ImageSet:
    """1 797 images of 8x8 with 17 grey levels; every fifth image is a test image."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.from_numpy(found.images.astype(np.uint8)).flatten(1)
    y = torch.from_numpy(found.target).long()
    test = torch.arange(len(y)) % 5 == 0
    return ImageSet("digits", x[~test], y[~test], x[test], y[test], shape=(1, 8, 8), classes=10, scale=16.0)
