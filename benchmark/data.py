"""Image sets as tensors: found, verified, and cached as one compressed file each, or the user's own."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark import own_data
from benchmark.files import replacing
from benchmark.keys import digest
from benchmark.sources import PARTS, SPECS, Arrays, DataError, Spec, covered, read_raw, sources, unpack, verify_arrays
from strategies.registry import did_you_mean

NAMES = (*SPECS, "digits")
OWN = "a path that ends in .npz, or package.module:function"
COMPLETE = "complete (its published checksums are of other files)"
OFFLINE = 'offline choice: scenario = "permuted-digits" (its images come with scikit-learn)'

Say = Callable[[str], None]


@dataclass(frozen=True)
class ImageSet:
    """Inputs, most often images, and labels.

    Attributes:
        name: of the set.
        train_x: uint8 or float32, shape (N, values): each input flattened, images channels first.
        train_y: int64, shape (N,), from 0 to `classes` - 1.
        test_x: as `train_x`.
        test_y: as `train_y`.
        shape: of one input: (channels, height, width), or (features,).
        classes: number of labels.
        scale: the value that becomes 1.0: inputs are divided by it when they are used.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    shape: tuple[int, ...]
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
        name: one of `NAMES`, or a set of the user's own: a path that ends in `.npz` (arrays train_x, train_y, test_x,
            test_y; a relative path starts at the current folder), or `package.module:function` (see `own_data.parts`).
        data_dir: a folder that holds the files of a published set (torchvision's layout or archive, or our cache file),
            and the only place looked at; None: `$FORGETBENCH_DATA` if set, else the cache, then each source in turn.
        say: takes one line for each place tried.

    Returns:
        The verified images.

    Raises:
        DataError: it could not be had; the message says what was tried, why each failed, and what works offline.
        ValueError: no set of that name, or one of the user's own that does not hold what it should.
    """
    if name == "digits":
        return _digits()
    if own_data.is_own(name):
        return _own(name, say)
    spec, given = _spec(name), data_dir or _environment_dir()
    return _image_set(spec, _from_folder(spec, given, say) if given else _from_cache_or_sources(spec, say))


def from_tensors(name: str, train_x: object, train_y: object, test_x: object, test_y: object) -> ImageSet:
    """An image set from tensors or arrays, validated and copied.

    Args:
        name: for people.
        train_x: uint8 from 0 to 255, or finite floats (kept as float32, not scaled), of shape (N, features),
            (N, height, width), (N, channels, height, width), or (N, height, width, channels): channels come last if the
            last axis is 1, 3 or 4 long and the second is not.
        train_y: integers from 0, shape (N,); there is one class more than the greatest label.
        test_x: as `train_x`.
        test_y: as `train_y`, without labels that `train_y` lacks.

    Raises:
        ValueError: an array is not that; the message names it, with what was expected and what came.
    """
    return ImageSet(name, **own_data.convert(name, dict(zip(PARTS, (train_x, train_y, test_x, test_y), strict=True))))


def _own(name: str, say: Say) -> ImageSet:
    if own_data.is_file(name):
        say(f"{name}: a file of your own, nothing to fetch")
        return _validated(name, own_data.read_file(name), say)
    say(f"{name}: a function of your own, nothing to fetch")
    images, said = _returned(name, own_data.function(name))
    for line in said:
        say(line)
    return images


@functools.lru_cache(maxsize=8)
def _returned(name: str, function: Callable[[], object]) -> tuple[ImageSet, tuple[str, ...]]:
    """What a function makes, and what there is to say of it: called once, so that all see the same images."""
    said: list[str] = []
    return _validated(name, own_data.called(name, function), said.append), tuple(said)


def _validated(name: str, found: object, say: Say) -> ImageSet:
    if isinstance(found, ImageSet):
        return ImageSet(name, **own_data.checked(name, found))
    return from_tensors(name, **own_data.parts(name, found, say))


def check_name(name: str) -> None:
    """Check that a name may be one of an image set, opening and importing nothing.

    Args:
        name: as for `load`.

    Raises:
        ValueError: neither one of `NAMES`, nor an `.npz` path, nor an import path.
    """
    if name != "digits" and not own_data.is_own(name):
        _spec(name)


def fingerprint(name: str) -> str:
    """What tells a set of the user's own from an earlier version of it, for run keys.

    A function is called for it: what it returns may come from a file, or from code that it imports.

    Args:
        name: as for `load`.

    Returns:
        A checksum of an `.npz` file, or of what a function returns; empty for published sets.

    Raises:
        ValueError: the file cannot be read, or the function not be imported, or what it returns is no image set.
    """
    if not own_data.is_own(name):
        return ""
    if own_data.is_file(name):
        return own_data.file_checksum(name)
    images = load(name)
    return digest([images.checksum, images.shape, images.classes, images.scale])


def _spec(name: str) -> Spec:
    if name not in SPECS:
        hint = f"; one of your own is {OWN}" if any(mark in str(name) for mark in "./:") else ""
        raise ValueError(f"unknown image set {name!r}{did_you_mean(name, NAMES)} (forgetbench list data){hint}")
    return SPECS[name]


def _environment_dir() -> Path | None:
    return Path(os.environ["FORGETBENCH_DATA"]) if os.environ.get("FORGETBENCH_DATA") else None


def held(data_dir: Path | None = None) -> list[str]:
    """Names of the image sets on disk, damaged or not.

    Args:
        data_dir: as for `load`.

    Raises:
        DataError: none in that folder.
    """
    folder = data_dir or _environment_dir()
    if not folder:
        return [*(name for name in SPECS if (cache_dir() / f"{name}.npz").is_file()), "digits"]
    found = [name for name, spec in SPECS.items() if any(path.exists() for path in _places(spec, folder))]
    if not found:
        raise DataError(
            f"data folder {folder}: expected files of {', '.join(SPECS)}, found none; give another --data-dir"
        )
    return found


def verify(name: str, data_dir: Path | None = None) -> str:
    """Check what is on disk, fetching nothing.

    Args:
        name: as for `load`.
        data_dir: as for `load`.

    Returns:
        One line that says what was found.

    Raises:
        DataError: nothing there, or not the published files.
    """
    if name == "digits":
        return "comes with scikit-learn"
    if own_data.is_own(name):
        own = load(name)
        sizes = f"{len(own.train_y)} training and {len(own.test_y)} test inputs"
        return f"valid, {sizes} of shape {own.shape}, {own.classes} classes, checksum {own.checksum}"
    spec, path = _spec(name), cache_dir() / f"{name}.npz"
    data_dir = data_dir or _environment_dir()
    if data_dir:
        _from_folder(spec, data_dir, lambda line: None)
        published = spec.md5 or (not (data_dir / path.name).is_file() and covered(spec, data_dir))
        return f"{'verified' if published else COMPLETE} in {data_dir}"
    if not path.is_file():
        raise DataError(f"not in the cache {path.parent} (forgetbench data fetch {name})")
    _read(spec, path)
    return f"{'verified' if spec.md5 else COMPLETE}, {path} ({path.stat().st_size / 1e6:.1f} MB)"


def _places(spec: Spec, folder: Path) -> tuple[Path, Path, Path]:
    """Where a set may lie in a folder: our cache file, torchvision's folder, and what torchvision downloads."""
    cached = folder / f"{spec.name}.npz"
    return cached, folder / spec.folder, folder / spec.archive if spec.archive else cached


def _from_folder(spec: Spec, folder: Path, say: Say) -> Arrays:
    cached, raw, packed = _places(spec, folder)
    if cached.is_file():
        say(f"{spec.name}: {cached}")
        return _read(spec, cached)
    if not raw.is_dir() and not packed.is_file():
        archive = f", no {spec.archive}" if spec.archive else ""
        raise DataError(
            f"{spec.name}: no {spec.folder}/ (torchvision's layout){archive} and no {spec.name}.npz in data folder "
            f"{folder}; without --data-dir and FORGETBENCH_DATA it is fetched; {OFFLINE}"
        )
    try:
        arrays = read_raw(spec, folder) if raw.is_dir() else _from_archive(spec, folder)
    except DataError as error:
        raise DataError(f"{spec.name}: {error}; delete it and put the published file there") from None
    say(f"{spec.name}: {raw if raw.is_dir() else packed}")
    return arrays


def _from_archive(spec: Spec, folder: Path) -> Arrays:
    with tempfile.TemporaryDirectory(prefix="forgetbench-") as root:
        unpack(spec, folder, Path(root))
        return read_raw(spec, Path(root))


def _from_cache_or_sources(spec: Spec, say: Say) -> Arrays:
    path, tried = cache_dir() / f"{spec.name}.npz", []
    if path.is_file():
        try:
            arrays = _read(spec, path)
            say(f"{spec.name}: cache {path}")
            return arrays
        except DataError as error:
            tried.append(f"cache: {error}")
    else:
        tried.append(f"cache: no {path}")
    say(f"{spec.name}: {tried[-1]}")
    for title, fetch in sources(spec):
        try:
            with tempfile.TemporaryDirectory(prefix="forgetbench-") as folder:
                fetch(spec, Path(folder))
                arrays = read_raw(spec, Path(folder))
        except Exception as error:  # a mirror, a proxy or a damaged file fails in many ways, and the next may do
            reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            tried.append(f"{title}: {' '.join(reason.split())[:200]}")
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


def _read(spec: Spec, path: Path) -> Arrays:
    """The cached arrays, verified.

    Args:
        spec: of the set.
        path: of our cache file.

    Raises:
        DataError: corrupt, truncated, not the published images, or whole perhaps but not ours to read.
    """
    try:
        content = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    try:
        with np.load(content, allow_pickle=False) as file:
            arrays = {part: file[part] for part in PARTS}
    except Exception as error:  # zlib.error, NotImplementedError, ...: a damaged archive fails in many ways
        raise DataError(f"{path} is corrupt or truncated ({error})") from error
    verify_arrays(spec, arrays, path)
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    """Atomic: another process sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _image_set(spec: Spec, arrays: Arrays) -> ImageSet:
    tensors = {part: _tensor(array) for part, array in arrays.items()}
    return ImageSet(spec.name, **tensors, shape=spec.shape, classes=spec.classes, scale=255.0)


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
