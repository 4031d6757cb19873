"""Image sets of the user's own: read from a file or a function, validated, and turned into tensors."""

from __future__ import annotations

import functools
import hashlib
import math
import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark.sources import PARTS, DataError
from strategies import imports

CHANNELS = (1, 3, 4)  # that an image has where its last axis is taken for the channels
EXPECTED = (
    f"an ImageSet; a dict or a tuple of {', '.join(PARTS)}; or a pair (train, test) of data sets whose items are "
    "(image, label)"
)

Say = Callable[[str], None]
Array = NDArray[Any]


class Fields(TypedDict):
    """What `data.ImageSet` holds beside its name."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    shape: tuple[int, ...]
    classes: int
    scale: float


def is_own(name: object) -> bool:
    """Whether a name is a path that ends in `.npz`, or reads `package.module:function`."""
    return isinstance(name, str) and (is_file(name) or _is_import_path(name))


def is_file(name: str) -> bool:
    """Whether a name is a path that ends in `.npz`."""
    return name.endswith(".npz")


def stem(name: str) -> str:
    """What a set is called within other names: a path, or an import path, has signs that MLflow and folders refuse.

    Args:
        name: of any set.
    """
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(name).stem if is_file(name) else name)


def _is_import_path(name: str) -> bool:
    module, _, function = name.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), function))


# Reading


def function(name: str) -> Callable[[], object]:
    """The function that an import path names.

    Args:
        name: for which `is_own` holds, and `is_file` does not.

    Raises:
        ValueError: it cannot be imported, or is none.
    """
    found: Callable[[], object] = imports.attribute(name, "image set")
    if not callable(found):
        raise ValueError(f"image set {name!r}: expected a function without arguments, got {found!r}")
    return found


def called(name: str, function: Callable[[], object]) -> object:
    """What a function of the user's own returns.

    Args:
        name: of the set, for messages.
        function: without arguments.

    Raises:
        ValueError: it raised.
    """
    try:
        return function()
    except Exception as error:  # whatever the user's own function raises
        raise ValueError(f"image set {name!r}: the function raised {type(error).__name__}: {error}") from error


def read_file(name: str) -> dict[str, Array]:
    """The arrays in a file.

    Args:
        name: its path.

    Raises:
        DataError: it cannot be read, or holds pickles, which are never loaded.
        ValueError: one of them is missing.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file (relative paths start at {Path.cwd()})")
    if not zipfile.is_zipfile(path):  # NumPy would take it for a pickle, and advise to allow that
        raise DataError(f"{path}: no archive of numpy.savez, or truncated")
    part = ""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {}
            held = file.files
            for part in [part for part in PARTS if part in file]:
                arrays[part] = file[part]
    except Exception as error:  # zlib.error, NotImplementedError, ...: a damaged archive fails in many ways
        if "pickle" in str(error):
            reason = "holds Python objects, which are never unpickled; save numbers with numpy.savez"
        else:
            reason = f"corrupt or truncated ({error})"
        raise DataError(f"{path}: {part} {reason}" if part else f"{path}: {reason}") from error
    _complete(name, held)
    return arrays


def file_checksum(name: str) -> str:
    """Of a file's bytes, which are read again only where it has changed.

    Args:
        name: its path.

    Raises:
        ValueError: it cannot be read.
    """
    path = Path(name).expanduser().absolute()
    try:
        status = path.stat()
        return _file_checksum(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ValueError(f"image set {name!r} cannot be read: {error.strerror or error}") from None


@functools.lru_cache(maxsize=256)
def _file_checksum(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


# What a function may return


def parts(name: str, found: object, say: Say) -> dict[str, object]:
    """The four arrays in what a file or a function of the user's own holds.

    A pair of data sets may be of torchvision's kind, whose `data` and `targets` are taken as they are, or anything with
    a length and items (image, label). Items are read once, in order: where a data set transforms its images, each
    image is transformed once, before training, and so a random augmentation is drawn once and then stays. Give it a
    fixed seed: another command that draws others sees other data, and trains its runs anew.

    Args:
        name: of the set, for messages.
        found: a dict or a tuple of the arrays in `PARTS`, or a pair (train, test) of data sets.
        say: takes a line where items are read one by one.

    Raises:
        ValueError: it is none of these, or an item is not (image, label).
    """
    if isinstance(found, Mapping):
        _complete(name, found)
        return {part: found[part] for part in PARTS}
    if isinstance(found, tuple | list) and len(found) == 4:
        return dict(zip(PARTS, found, strict=True))
    if isinstance(found, tuple | list) and len(found) == 2:
        pairs = [
            _pair(f"image set {name!r}: {part}", half, say) for part, half in zip(("train", "test"), found, strict=True)
        ]
        return dict(zip(PARTS, (*pairs[0], *pairs[1]), strict=True))
    count = f" of {len(found)}" if isinstance(found, tuple | list) else ""
    raise ValueError(f"image set {name!r}: expected {EXPECTED}; got {type(found).__name__}{count}")


def _complete(name: str, held: Collection[object]) -> None:
    if missing := [part for part in PARTS if part not in held]:
        got = ", ".join(map(str, held)) or "nothing"
        raise ValueError(f"image set {name!r}: expected {', '.join(PARTS)}; {', '.join(missing)} missing, got {got}")


def _pair(where: str, dataset: Any, say: Say) -> tuple[object, object]:
    images: Any = getattr(dataset, "data", None)
    labels: Any = getattr(dataset, "targets", None)
    held = isinstance(images, Tensor | np.ndarray) and isinstance(labels, Tensor | np.ndarray | list | tuple)
    if held and np.ndim(labels) == 1 and _as_stored(where, dataset, images, labels):
        return images, labels
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ValueError(f"{where}: expected a data set with a length and items (image, label), got {type(dataset)}")
    say(f"{where}: {len(dataset)} items read one by one, transforms applied once")
    return _items(where, dataset)


def _as_stored(where: str, dataset: Any, images: Any, labels: Any) -> bool:
    """Whether items are what is stored: no transform, neither torchvision's nor one of the data set's own."""
    if any(getattr(dataset, name, None) is not None for name in ("transform", "target_transform", "transforms")):
        return False
    if not hasattr(dataset, "__getitem__") or not len(images):
        return True
    stored = _array(where, images), _array(where, labels)
    # The first, the middle and the last: a transform of the data set's own may spare a single one.
    for i in sorted({0, len(images) // 2, len(images) - 1}):
        image, label = _item(where, dataset, i)
        if i >= len(stored[1]) or not (np.array_equal(image, stored[0][i]) and label == stored[1][i]):
            return False
    return True


def _item(where: str, dataset: Any, i: int) -> tuple[Array, object]:
    try:
        item = dataset[i]
    except Exception as error:  # whatever the user's own data set raises
        raise ValueError(f"{where}[{i}]: reading it raised {type(error).__name__}: {error}") from error
    if not (isinstance(item, tuple | list) and len(item) == 2):
        raise ValueError(f"{where}[{i}]: expected (image, label), got {type(item).__name__}")
    image, label = item
    if getattr(image, "mode", None) == "P":  # a palette's indices are no colours
        image = image.convert("RGB")
    return _array(f"{where}[{i}]", image), label.item() if isinstance(label, Tensor | np.generic) else label


def _items(where: str, dataset: Any) -> tuple[Array, Array]:
    images: list[Array] = []
    labels: list[object] = []
    for i in range(len(dataset)):
        image, label = _item(where, dataset, i)
        images.append(image)
        labels.append(label)
        if (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
            first, this = (f"{a.dtype} {a.shape}" for a in (images[0], image))
            raise ValueError(f"{where}[{i}]: expected an image as the first, {first}, got {this}")
    return np.stack(images) if images else np.empty((0, 0)), np.asarray(labels)


# Validation


def convert(name: str, arrays: Mapping[str, object]) -> Fields:
    """Validated copies of four arrays, as `data.from_tensors` describes them.

    Args:
        name: of the set, for messages.
        arrays: tensors or arrays by the names in `PARTS`.

    Raises:
        ValueError: an array is not what it should be; the message names it, with what was expected and what came.
    """
    where = {part: f"image set {name!r}: {part}" for part in PARTS}
    train_x, test_x = (_inputs(where[part], arrays[part]) for part in ("train_x", "test_x"))
    if train_x.dtype != test_x.dtype:
        raise ValueError(
            f"{where['test_x']}: expected {train_x.dtype} as train_x, got {test_x.dtype}; uint8 is divided by 255, "
            "floats are taken as they are"
        )
    shape = train_x.shape[1:]
    if shape != test_x.shape[1:]:
        raise ValueError(f"{where['test_x']}: expected inputs of shape {shape} as train_x, got {test_x.shape[1:]}")
    train_y = _labels(where["train_y"], arrays["train_y"], len(train_x))
    test_y = _labels(where["test_y"], arrays["test_y"], len(test_x))
    if len(unknown := np.setdiff1d(test_y, train_y)):
        listed = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(f"{where['test_y']}: expected labels that train_y has too, got {listed}")
    return {
        "train_x": torch.from_numpy(train_x).flatten(1),
        "train_y": torch.from_numpy(train_y),
        "test_x": torch.from_numpy(test_x).flatten(1),
        "test_y": torch.from_numpy(test_y),
        "shape": shape,
        "classes": int(train_y.max()) + 1,
        "scale": 255.0 if train_x.dtype == np.uint8 else 1.0,
    }


def checked(name: str, images: Any) -> Fields:
    """The same for an `ImageSet` made by the user, whose shape, classes and scale are believed where they may be true.

    Args:
        name: of the set, for messages.
        images: an `ImageSet`.

    Raises:
        ValueError: as for `convert`, or shape, classes or scale cannot be.
    """
    fields = convert(name, {part: getattr(images, part) for part in PARTS})
    values = math.prod(images.shape)
    if fields["shape"] != (values,):
        raise ValueError(
            f"image set {name!r}: train_x: expected (N, {values}), inputs of shape {tuple(images.shape)} flattened, "
            f"got inputs of shape {fields['shape']}"
        )
    if images.classes < fields["classes"]:
        raise ValueError(f"image set {name!r}: expected classes >= {fields['classes']}, got {images.classes}")
    if not 0 < images.scale < math.inf:
        raise ValueError(f"image set {name!r}: expected a finite scale above 0, got {images.scale}")
    return {**fields, "shape": tuple(images.shape), "classes": images.classes, "scale": float(images.scale)}


def _array(where: str, value: object) -> Array:
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            # NumPy has no bfloat16.
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        return np.asarray(value)
    except Exception as error:  # ragged lists, sparse tensors, ...
        raise ValueError(f"{where}: expected a tensor or an array, got {type(value).__name__}: {error}") from error


def _inputs(where: str, value: object) -> Array:
    x = _array(where, value)
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise ValueError(f"{where}: expected uint8 (0 to 255) or floats, got {x.dtype}")
    if not 2 <= x.ndim <= 4:
        raise ValueError(
            f"{where}: expected shape (N, features), (N, height, width) or (N, channels, height, width), got {x.shape}"
        )
    if not x.size:
        raise ValueError(f"{where}: expected at least one input and one value, got shape {x.shape}")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in CHANNELS and x.shape[1] not in CHANNELS:
        x = x.transpose(0, 3, 1, 2)
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        x = np.array(x, dtype=np.uint8 if x.dtype == np.uint8 else np.float32, order="C")
    if x.dtype == np.float32 and not (finite := np.isfinite(x).reshape(len(x), -1).all(1)).all():
        bad = np.flatnonzero(~finite)
        raise ValueError(
            f"{where}: expected finite numbers, got NaN or infinity in {len(bad)} inputs, the first {bad[0]}"
        )
    return x


def _labels(where: str, value: object, inputs: int) -> NDArray[np.int64]:
    y = _array(where, value)
    if y.shape != (inputs,):
        raise ValueError(f"{where}: expected shape ({inputs},), one label an input, got {y.shape}")
    if y.dtype.kind not in "iu":
        raise ValueError(f"{where}: expected integers, got {y.dtype}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high > np.iinfo(np.int64).max:
        raise ValueError(f"{where}: expected labels 0, 1, ..., got {low} to {high}")
    return np.array(y, dtype=np.int64)
