"""Image sets of the user's own: files, functions, tensors, and every way they can be wrong."""

from __future__ import annotations

import importlib
import itertools
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from benchmark import data
from benchmark.data import ImageSet
from benchmark.sources import DataError

NUMBERS = itertools.count()  # so that no module is taken for one imported before
PARTS = ("train_x", "train_y", "test_x", "test_y")


def arrays(*shape: int, dtype: Any = np.uint8) -> dict[str, Any]:
    """Six training and three test inputs of three classes."""
    rng = np.random.default_rng(0)
    return {
        "train_x": rng.integers(0, 256, (6, *shape)).astype(dtype),
        "train_y": np.array([0, 1, 2, 0, 1, 2]),
        "test_x": rng.integers(0, 256, (3, *shape)).astype(dtype),
        "test_y": np.array([2, 1, 0]),
    }


def convert(**held: Any) -> ImageSet:
    return data.from_tensors("mine", **held)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], str]:
    """Write a module of the user's own; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def written(source: str) -> str:
        name = f"own_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return name

    return written


@pytest.fixture
def returning(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], str]:
    """Put a function that returns a value where its import path finds it; returns the path."""

    def put(value: object) -> str:
        made = SimpleNamespace(load=value if callable(value) else lambda: value)
        monkeypatch.setitem(sys.modules, "own_returning", made)
        return "own_returning:load"

    return put


# What arrays become


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ((7,), (7,)),
        ((1,), (1,)),
        ((5, 4), (1, 5, 4)),
        ((1, 5, 4), (1, 5, 4)),
        ((3, 5, 4), (3, 5, 4)),
        ((3, 5, 3), (3, 5, 3)),
        ((2, 5, 4), (4, 2, 5)),
        ((2, 5, 6), (2, 5, 6)),
        ((5, 6, 1), (1, 5, 6)),
        ((5, 6, 3), (3, 5, 6)),
        ((5, 6, 4), (4, 5, 6)),
        ((5, 6, 2), (5, 6, 2)),
    ],
)
def test_inputs_are_flattened_channels_first(given: tuple[int, ...], shape: tuple[int, ...]) -> None:
    held = arrays(*given)
    images = convert(**held)
    assert images.shape == shape
    assert images.train_x.shape == (6, np.prod(given)) and images.test_x.shape == (3, np.prod(given))
    expected = held["train_x"].reshape(6, *given)
    if len(given) == 3 and shape != given:
        expected = np.stack([expected[..., c] for c in range(given[2])], axis=1)
    assert np.array_equal(images.train_x.numpy(), expected.reshape(6, -1))


def test_bytes_stay_bytes_and_are_divided_by_255_when_used() -> None:
    images = convert(**arrays(4, 4))
    assert images.train_x.dtype == images.test_x.dtype == torch.uint8 and images.scale == 255.0
    assert (images.name, images.classes) == ("mine", 3)
    assert images.train_y.dtype == images.test_y.dtype == torch.int64
    assert images.train_y.tolist() == [0, 1, 2, 0, 1, 2] and images.test_y.tolist() == [2, 1, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", torch.bfloat16, torch.float64])
def test_floats_become_float32_and_keep_their_scale(dtype: Any) -> None:
    held = arrays(4)
    for part in ("train_x", "test_x"):
        held[part] = (
            torch.from_numpy(held[part]).to(dtype) if isinstance(dtype, torch.dtype) else held[part].astype(dtype)
        )
    images = convert(**held)
    assert images.train_x.dtype == images.test_x.dtype == torch.float32 and images.scale == 1.0
    assert images.train_x.tolist() == np.asarray(held["train_x"].tolist()).tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, ">i8", np.uint64, torch.int16, list])
def test_labels_may_be_any_integers(dtype: Any) -> None:
    held = arrays(4)
    for part in ("train_y", "test_y"):
        if dtype is list:
            held[part] = held[part].tolist()
        else:
            held[part] = (
                torch.tensor(held[part]).to(dtype) if isinstance(dtype, torch.dtype) else held[part].astype(dtype)
            )
    images = convert(**held)
    assert images.train_y.dtype == torch.int64 and images.train_y.tolist() == [0, 1, 2, 0, 1, 2]


def test_tensors_and_arrays_give_the_same_set_as_copies() -> None:
    held = arrays(5, 6, 3)
    tensors = {part: torch.from_numpy(array.copy()) for part, array in held.items()}
    images, other = convert(**held), convert(**tensors)
    assert images.checksum == other.checksum and images.shape == other.shape
    before = images.checksum
    for array in held.values():
        array[...] = 0
    assert ImageSet(*(getattr(images, f) for f in ("name", *PARTS, "shape", "classes", "scale"))).checksum == before


def test_a_label_that_is_never_used_still_has_an_output() -> None:
    held = arrays(4) | {"train_y": [0, 1, 9, 9, 1, 0]} | {"test_y": [9, 9, 0]}
    assert convert(**held).classes == 10


# What is refused


def nan(x: Any) -> Any:
    x = x.astype(np.float32)
    x[4:, 1] = np.nan
    return x


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "fewer labels": ({"train_y": [0, 1]}, r"train_y: expected shape \(6,\), one label an input, got \(2,\)"),
    "one-hot labels": ({"test_y": np.eye(3, dtype=int)}, r"test_y: expected shape \(3,\), .* got \(3, 3\)"),
    "float labels": ({"train_y": np.ones(6)}, "train_y: expected integers, got float64"),
    "bool labels": ({"train_y": np.ones(6, bool)}, "train_y: expected integers, got bool"),
    "negative labels": ({"test_y": [-1, 0, 1]}, "test_y: expected labels 0, 1, ..., got -1 to 1"),
    "huge labels": ({"test_y": np.array([2**64 - 1, 0, 1], np.uint64)}, "test_y: expected labels 0, 1, ..., got 0 to 18446744073709551615"),
    "labels without training": ({"test_y": [0, 7, 8]}, "test_y: expected labels that train_y has too, got 7, 8"),
    "no training input": ({"train_x": np.zeros((0, 4), np.uint8), "train_y": []}, r"train_x: expected at least one input .* \(0, 4\)"),
    "no test input": ({"test_x": np.zeros((0, 4), np.uint8)}, r"test_x: expected at least one input .* \(0, 4\)"),
    "no value": ({"train_x": np.zeros((6, 0), np.uint8)}, r"train_x: expected at least one input and one value, got shape \(6, 0\)"),
    "one axis": ({"train_x": np.zeros(6, np.uint8)}, r"train_x: expected shape \(N, features\).* got \(6,\)"),
    "five axes": ({"train_x": np.zeros((6, 1, 1, 1, 4), np.uint8)}, r"train_x: expected shape .* got \(6, 1, 1, 1, 4\)"),
    "other test shape": ({"test_x": np.zeros((3, 5), np.uint8)}, r"test_x: expected inputs of shape \(4,\) as train_x, got \(5,\)"),
    "bytes and floats": ({"test_x": np.zeros((3, 4))}, "test_x: expected uint8 as train_x, got float32; uint8 is divided by 255"),
    "integers": ({"train_x": np.zeros((6, 4), int)}, r"train_x: expected uint8 \(0 to 255\) or floats, got int64"),
    "objects": ({"train_x": np.zeros((6, 4), object)}, r"train_x: expected uint8 \(0 to 255\) or floats, got object"),
    "NaN": ({"train_x": nan(np.zeros((6, 4)))}, "train_x: expected finite numbers, got NaN or infinity in 2 inputs, the first 4"),
    "too large for float32": ({"test_x": np.array([[0.0] * 4, [1e300] * 4, [0.0] * 4])}, "test_x: expected finite numbers, .* in 1 inputs, the first 1"),
    "ragged": ({"train_x": [[1, 2], [3]]}, "train_x: expected a tensor or an array, got list: "),
    "nothing": ({"test_x": None}, r"test_x: expected uint8 \(0 to 255\) or floats, got object"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_array_is_named_with_what_was_expected_and_what_came(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"image set 'mine': {reason}"):
        convert(**arrays(4) | change)


# Files


def test_a_file_is_loaded_from_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    np.savez(tmp_path / "sets" / "mine.npz", **arrays(8, 8), note=np.array("more arrays do no harm"))
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    images = data.load("sets/mine.npz", say=said.append)
    assert images.name == "sets/mine.npz" and images.shape == (1, 8, 8)
    assert images.train_x.numpy().tobytes() == arrays(8, 8)["train_x"].tobytes()
    assert said == ["sets/mine.npz: a file of your own, nothing to fetch"]
    assert data.load(str(tmp_path / "sets" / "mine.npz")).checksum == images.checksum


def test_verify_validates_a_file_and_says_what_it_holds(tmp_path: Path) -> None:
    path = str(tmp_path / "mine.npz")
    np.savez(path, **arrays(8, 8))
    assert data.verify(path, Path("/nowhere")).startswith(
        "valid, 6 training and 3 test inputs of shape (1, 8, 8), 3 classes"
    )
    np.savez(path, **arrays(8, 8) | {"test_y": [0, 1]})
    with pytest.raises(ValueError, match="test_y: expected shape"):
        data.verify(path)


def test_a_file_that_is_not_there_says_where_it_was_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"mine.npz: no such file \(relative paths start at {tmp_path}\)"):
        data.load("mine.npz")


def test_missing_arrays_are_named_with_those_that_are_there(tmp_path: Path) -> None:
    held = arrays(4)
    path = str(tmp_path / "mine.npz")
    np.savez(path, train_x=held["train_x"], test_x=held["test_x"], x_train=held["train_x"])
    with pytest.raises(ValueError, match=r"train_y, test_y missing, got train_x, test_x, x_train"):
        data.load(path)


@pytest.mark.parametrize("kept", [0, 1, 100, -1, -200])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(8, 8))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"mine.npz: .*truncated"):
        data.load(str(path))


def test_a_file_with_flipped_bytes_is_refused_and_the_array_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(8, 8))
    whole = path.read_bytes()
    place = whole.index(arrays(8, 8)["test_x"].tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(DataError, match=r"mine.npz: test_x corrupt or truncated"):
        data.load(str(path))


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    with (tmp_path / "mine.npz").open("wb") as file:
        np.save(file, arrays(4)["train_x"])
    with pytest.raises(DataError, match=r"mine.npz: no archive of numpy.savez"):
        data.load(str(tmp_path / "mine.npz"))


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


def test_pickles_are_refused_and_never_loaded(tmp_path: Path) -> None:
    mark, path = tmp_path / "exploded", tmp_path / "mine.npz"
    np.savez(path, **arrays(4) | {"test_y": np.array([Bomb(mark)] * 3, dtype=object)})
    with pytest.raises(DataError, match=r"mine.npz: test_y holds Python objects, which are never unpickled"):
        data.load(str(path))
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(DataError, match=r"mine.npz: no archive of numpy.savez"):
        data.load(str(path))
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()


# Functions


def test_a_function_of_an_importable_module_is_called_once(module: Callable[[str], str]) -> None:
    name = module(
        "import numpy as np\n"
        "calls = []\n"
        "def load():\n"
        "    calls.append(1)\n"
        "    x = np.arange(6, dtype=np.uint8).reshape(3, 2)\n"
        "    return x, [0, 1, 0], x[:2], [0, 1]\n"
    )
    said: list[str] = []
    images = data.load(f"{name}:load", say=said.append)
    assert images.name == f"{name}:load" and images.train_x.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert sys.modules[name].calls == [1]
    assert said == [f"{name}:load: a function of your own, nothing to fetch"]


@pytest.mark.parametrize("wrap", [dict, lambda a: tuple(a[p] for p in PARTS), lambda a: [a[p] for p in PARTS]])
def test_a_function_may_return_arrays_by_name_or_in_order(
    returning: Callable[[object], str], wrap: Callable[[Any], object]
) -> None:
    held = arrays(5, 6, 3)
    assert data.load(returning(wrap(held))).checksum == convert(**held).checksum


def test_an_image_set_keeps_its_shape_classes_and_scale(returning: Callable[[object], str]) -> None:
    flat = convert(**arrays(12))
    given = ImageSet("other", *(getattr(flat, part) for part in PARTS), shape=(3, 2, 2), classes=5, scale=16.0)
    images = data.load(returning(given))
    assert (images.name, images.shape, images.classes, images.scale) == ("own_returning:load", (3, 2, 2), 5, 16.0)
    assert images.checksum == given.checksum


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shape": (3, 2, 3)}, r"train_x: expected \(N, 18\), inputs of shape \(3, 2, 3\) flattened, got .*\(12,\)"),
        ({"classes": 2}, "expected classes >= 3, got 2"),
        ({"scale": 0.0}, "expected a finite scale above 0, got 0.0"),
        ({"train_y": torch.zeros(5, dtype=torch.int64)}, r"train_y: expected shape \(6,\)"),
    ],
)
def test_an_image_set_that_contradicts_itself_is_refused(
    returning: Callable[[object], str], change: dict[str, Any], reason: str
) -> None:
    flat = convert(**arrays(12))
    held = {part: getattr(flat, part) for part in PARTS} | {"shape": (3, 2, 2), "classes": 3, "scale": 1.0} | change
    with pytest.raises(ValueError, match=f"image set 'own_returning:load': {reason}"):
        data.load(returning(ImageSet("other", **held)))


@pytest.mark.parametrize(
    ("value", "came"),
    [(None, "NoneType"), ([1, 2, 3], "list of 3"), (np.zeros(4), "ndarray"), (iter([]), "list_iterator")],
)
def test_anything_else_is_refused_with_what_may_be_returned(
    returning: Callable[[object], str], value: object, came: str
) -> None:
    with pytest.raises(ValueError, match=rf"expected an ImageSet; a dict or a tuple .* pair .*; got {came}$"):
        data.load(returning(lambda: value))


@pytest.mark.parametrize(
    ("source", "path", "reason"),
    [
        ("", "no_such_package.data:load", "cannot be imported: ModuleNotFoundError: No module named"),
        ("", "{}:load", "cannot be imported: AttributeError: "),
        ("1 / 0", "{}:load", "cannot be imported: ZeroDivisionError: division by zero"),
        ("load = 3", "{}:load", "expected a function without arguments, got 3"),
        ("def load(): return {}['images']", "{}:load", "the function raised KeyError: 'images'"),
        ("def load(folder): pass", "{}:load", "the function raised TypeError: .*missing 1 required"),
    ],
)
def test_an_error_of_the_users_own_is_told_in_one_message(
    module: Callable[[str], str], source: str, path: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=f"image set '[a-z0-9_.]+:load'.*{reason}"):
        data.load(path.format(module(source)))


# Pairs of data sets


class Items:
    """A map-style data set that counts what is read."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels, self.reads = images, labels, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        self.reads += 1
        return self.images[i], self.labels[i]


class Failing:
    def __getitem__(self, i: int) -> Any:
        raise ValueError("no such picture")


def pair(held: dict[str, Any], make: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    return make(held["train_x"], held["train_y"]), make(held["test_x"], held["test_y"])


def torchvision_set(cls: Any, x: Any, y: Any, transform: Any = None) -> Any:
    """A data set of torchvision's without its files."""
    made = cls.__new__(cls)
    datasets.VisionDataset.__init__(made, "", transform=transform)
    made.data, made.targets = (torch.from_numpy(x), torch.from_numpy(y)) if cls is datasets.MNIST else (x, y.tolist())
    return made


@pytest.mark.parametrize(("cls", "shape"), [(datasets.MNIST, (28, 28)), (datasets.CIFAR10, (32, 32, 3))])
def test_a_pair_of_torchvisions_data_sets_is_taken_as_stored(
    returning: Callable[[object], str], cls: Any, shape: tuple[int, ...]
) -> None:
    held, said = arrays(*shape), list[str]()
    images = data.load(returning(pair(held, lambda x, y: torchvision_set(cls, x, y))), say=said.append)
    assert images.checksum == convert(**held).checksum and images.scale == 255.0
    assert not any("one by one" in line for line in said)


def test_transforms_are_applied_once_and_said_to_be(returning: Callable[[object], str]) -> None:
    held, said = arrays(32, 32, 3), list[str]()
    halved = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.0, 2.0)])
    both = pair(held, lambda x, y: torchvision_set(datasets.CIFAR10, x, y, halved))
    images = data.load(returning(both), say=said.append)
    assert images.shape == (3, 32, 32) and images.scale == 1.0
    expected = held["train_x"].transpose(0, 3, 1, 2).reshape(6, -1) / 255 / 2
    assert np.allclose(images.train_x.numpy(), expected, atol=1e-6)
    assert [line for line in said if "6 items read one by one, transforms applied once" in line]


def test_a_transform_inside_a_data_set_is_not_passed_over(returning: Callable[[object], str]) -> None:
    class Inverted(Items):
        @property
        def data(self) -> Any:
            return self.images

        @property
        def targets(self) -> Any:
            return self.labels

        def __getitem__(self, i: int) -> tuple[Any, Any]:
            image, label = super().__getitem__(i)
            return 255 - image, label

    held = arrays(4, 4)
    images = data.load(returning(pair(held, Inverted)))
    assert np.array_equal(images.train_x.numpy(), 255 - held["train_x"].reshape(6, -1))


def test_labels_that_a_data_set_changes_are_not_passed_over(returning: Callable[[object], str]) -> None:
    class Odd(Items):
        def __init__(self, images: Any, labels: Any) -> None:
            super().__init__(images, labels)
            self.data, self.targets = images, labels

        def __getitem__(self, i: int) -> tuple[Any, Any]:
            image, label = super().__getitem__(i)
            return image, label % 2

    images = data.load(returning(pair(arrays(4, 4), Odd)))
    assert images.train_y.tolist() == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("as_item", [torch.from_numpy, Image.fromarray, np.asarray])
def test_items_may_be_tensors_pictures_or_arrays_and_are_read_once(
    returning: Callable[[object], str], as_item: Callable[[Any], Any]
) -> None:
    held = arrays(5, 6, 3)
    both = pair(held, lambda x, y: Items([as_item(image) for image in x], y))
    assert data.load(returning(both)).checksum == convert(**held).checksum
    assert [part.reads for part in both] == [6, 3]


def test_a_picture_with_a_palette_is_read_in_its_colours(returning: Callable[[object], str]) -> None:
    held = arrays(5, 6, 3)
    held["train_x"][:] //= 128
    held["test_x"][:] //= 128
    both = pair(held, lambda x, y: Items([Image.fromarray(image).quantize(8) for image in x], y))
    assert data.load(returning(both)).shape == (3, 5, 6)


def test_torchs_own_data_sets_and_halves_of_one_are_items_too(returning: Callable[[object], str]) -> None:
    held = arrays(4, dtype=np.float32)
    x, y = torch.from_numpy(np.concatenate([held["train_x"], held["test_x"]])), torch.tensor([0, 1, 2] * 2 + [2, 1, 0])
    whole = torch.utils.data.TensorDataset(x, y)
    both = torch.utils.data.Subset(whole, range(6)), torch.utils.data.Subset(whole, range(6, 9))
    assert data.load(returning(both)).checksum == convert(**held).checksum


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (Items([np.zeros(4, np.uint8), np.zeros(5, np.uint8)], [0, 1]), r"train\[1\]: expected an image as the first, uint8 \(4,\), got uint8 \(5,\)"),
        (Items([np.zeros(4, np.uint8), np.zeros(4)], [0, 1]), r"train\[1\]: .*got float64 \(4,\)"),
        (Items(np.zeros((2, 4), np.uint8), [0.0, 1.0]), "train_y: expected integers, got float64"),
        (Items([np.zeros(4, np.uint8)], [0, 1]), r"train\[1\]: reading it raised IndexError"),
        (Items(Failing(), [0, 1]), r"train\[0\]: reading it raised ValueError: no such picture"),
        (Items([], []), "train_x: expected at least one input"),
        ([np.zeros(4, np.uint8)], r"train\[0\]: expected \(image, label\), got ndarray"),
        (3, "train: expected a data set with a length and items"),
        (SimpleNamespace(data=np.zeros((0, 4), np.uint8), targets=[]), "train_x: expected at least one input"),
    ],
)  # fmt: skip
def test_a_wrong_data_set_is_named_with_what_came(returning: Callable[[object], str], train: Any, reason: str) -> None:
    test = Items(np.zeros((2, 4), np.uint8), [0, 1])
    with pytest.raises(ValueError, match=f"image set 'own_returning:load': {reason}"):
        data.load(returning((train, test)))


# Names and fingerprints


@pytest.mark.parametrize("name", [*data.NAMES, "mine.npz", "/no/such/mine.npz", "package.module:load", "module:load"])
def test_a_name_is_checked_without_opening_or_importing_anything(name: str) -> None:
    data.check_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnis", r"unknown image set 'mnis'; did you mean 'mnist'\? \(forgetbench list data\)$"),
        ("sets/mine.npy", r"unknown image set 'sets/mine.npy' \(forgetbench list data\); one of your own is a path that ends in .npz, or package"),
        ("module:", r"unknown image set 'module:'.* or package.module:function"),
        ("my-module:load", "unknown image set 'my-module:load'"),
        ("a..b:load", "unknown image set"),
        (":load", "unknown image set"),
        ("", "unknown image set ''"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_what_a_name_may_be(name: str, message: str) -> None:
    for check in (data.check_name, data.load, data.verify):
        with pytest.raises(ValueError, match=message):
            check(name)


@pytest.mark.parametrize("name", data.NAMES)
def test_a_published_set_has_no_fingerprint(name: str) -> None:
    assert data.fingerprint(name) == ""


def test_the_fingerprint_of_a_file_follows_its_content_not_its_place(tmp_path: Path) -> None:
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    for path in (first, second):
        np.savez(path, **arrays(4))
    before = data.fingerprint(str(first))
    assert before and data.fingerprint(str(second)) == before
    held = arrays(4)
    held["test_x"][0, 0] ^= 1
    np.savez(first, **held)
    assert data.fingerprint(str(first)) != before


def test_a_file_is_read_once_for_its_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "mine.npz", **arrays(4))
    before = data.fingerprint(str(tmp_path / "mine.npz"))
    monkeypatch.setattr(Path, "open", None)
    assert data.fingerprint(str(tmp_path / "mine.npz")) == before


READING = "import numpy as np\n\ndef load():\n    return dict(np.load({path!r}))\n"


def test_the_fingerprint_of_a_function_follows_what_it_returns_not_how_it_is_written(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    path, held = str(tmp_path / "images.npz"), arrays(4)
    np.savez(path, **held)
    before, again = (
        data.fingerprint(f"{module(comment + READING.format(path=path))}:load") for comment in ("", "# \n")
    )
    assert before == again != ""
    held["test_x"][0, 0] ^= 1
    np.savez(path, **held)
    assert data.fingerprint(f"{module(READING.format(path=path))}:load") not in {before, ""}


def test_a_function_is_called_once_and_all_see_the_same_images(module: Callable[[str], str]) -> None:
    name = module(
        "import numpy as np\n\ndef load():\n"
        "    x, y = np.random.default_rng().random((4, 6)), [0, 1, 0, 1]\n    return x, y, x, y\n"
    )
    first, print_ = data.load(f"{name}:load"), data.fingerprint(f"{name}:load")
    assert torch.equal(first.train_x, data.load(f"{name}:load").train_x)
    assert print_ == data.fingerprint(f"{name}:load")


@pytest.mark.parametrize(("name", "reason"), [("no/such.npz", "cannot be read: No such file"), ("no_such:load", "cannot be imported")])  # fmt: skip
def test_a_fingerprint_that_cannot_be_had_says_why(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"image set '{name}' {reason}"):
        data.fingerprint(name)
