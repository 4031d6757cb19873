"""CIFAR in its own on-disk format, read by torchvision: small files that stand in for the published ones."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision import datasets

from benchmark import data, sources
from benchmark.sources import SPECS, DataError

TRAIN, TEST = 10, 3  # images


def python2(value: Any) -> bytes:
    """A pickle as Python 2 and the NumPy of 2009 wrote CIFAR's: byte strings, and names that NumPy has since moved."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(part) for item in value.items() for part in item) + b"u"
    shape = b"".join(map(_python2, value.shape)) + b"\x86"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    held = b"T" + struct.pack("<I", value.size) + value.tobytes()
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return made + b"(K\x01" + shape + dtype + b"\x89" + held + b"tb"


@dataclass
class Made:
    """A tiny CIFAR: what its files hold, and where they lie."""

    name: str
    files: dict[str, bytes]
    x: dict[str, NDArray[np.uint8]]
    y: dict[str, list[int]]
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / SPECS[self.name].folder

    @property
    def batch(self) -> Path:
        """A file of training images."""
        return self.folder / ("data_batch_1" if self.name == "cifar10" else "train")


def cifar10(x: dict[str, NDArray[np.uint8]], y: dict[str, list[int]]) -> dict[str, bytes]:
    batches = {
        f"data_batch_{i + 1}": {
            "batch_label": "training",
            "labels": y["train"][2 * i :][:2],
            "data": x["train"][2 * i :][:2],
        }
        for i in range(5)
    }
    batches["test_batch"] = {"batch_label": "testing", "labels": y["test"], "data": x["test"]}
    return {name: python2(held) for name, held in batches.items()} | {
        "batches.meta": python2({"num_cases_per_batch": 2, "label_names": ["airplane", "automobile"], "num_vis": 3072})
    }


def cifar100(x: dict[str, NDArray[np.uint8]], y: dict[str, list[int]]) -> dict[str, bytes]:
    made = {part: python2({"coarse_labels": [0] * len(y[part]), "fine_labels": y[part], "data": x[part]}) for part in x}
    return made | {"meta": python2({"fine_label_names": ["apple"], "coarse_label_names": ["fruit"]})}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Made:
    """10 training and 3 test images in CIFAR's files, taken for the published ones; an empty cache, no source."""
    rng = np.random.default_rng(0)
    spec = SPECS[request.param]
    x = {part: rng.integers(0, 256, (n, 3072), dtype=np.uint8) for part, n in (("train", TRAIN), ("test", TEST))}
    y = {part: rng.integers(0, spec.classes, len(x[part])).tolist() for part in x}
    x["train"][0] = np.repeat([200, 0, 0], 1024)  # all red
    files = (cifar10 if spec.name == "cifar10" else cifar100)(x, y)
    made = Made(spec.name, files, x, y, tmp_path / "held")
    made.folder.mkdir(parents=True)
    for name, content in files.items():
        (made.folder / name).write_bytes(content)
    cls = getattr(datasets, spec.dataset)
    for names in ("train_list", "test_list"):
        monkeypatch.setattr(cls, names, [[name, md5(files[name])] for name, _ in getattr(cls, names)])
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": md5(files[cls.meta["filename"]])})
    monkeypatch.setitem(SPECS, spec.name, dataclasses.replace(spec, sizes=(TRAIN, TEST)))
    monkeypatch.setenv("FORGETBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "sources", lambda spec: [])
    return made


@pytest.fixture
def archive(cifar: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The same files in the archive that is published, in a folder of its own."""
    spec, packed = SPECS[cifar.name], io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        file.add(cifar.folder, spec.folder)
    monkeypatch.setattr(getattr(datasets, spec.dataset), "tgz_md5", md5(packed.getvalue()))
    (tmp_path / "packed").mkdir()
    path = tmp_path / "packed" / spec.archive
    path.write_bytes(packed.getvalue())
    return path


def holds(images: data.ImageSet, cifar: Made) -> bool:
    """Whether images are exactly those of the files."""
    return (
        np.array_equal(images.train_x.numpy(), cifar.x["train"])
        and np.array_equal(images.test_x.numpy(), cifar.x["test"])
        and images.train_y.tolist() == cifar.y["train"]
        and images.test_y.tolist() == cifar.y["test"]
    )


# Reading


def test_images_and_fine_labels_are_exactly_what_the_files_hold(cifar: Made) -> None:
    images = data.load(cifar.name, cifar.root)
    assert holds(images, cifar)
    assert images.train_x.dtype == torch.uint8 and images.train_y.dtype == torch.int64
    assert (images.shape, images.scale) == ((3, 32, 32), 255.0)
    assert images.classes == {"cifar10": 10, "cifar100": 100}[cifar.name]


def test_a_red_image_lies_in_the_first_channel_alone(cifar: Made) -> None:
    images = data.load(cifar.name, cifar.root)
    channels = images.train_x[0].view(images.shape)
    assert (channels[0] == 200).all() and (channels[1:] == 0).all()


def test_a_fetched_set_is_read_back_from_the_cache_as_it_was(cifar: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(spec: sources.Spec, root: Path) -> None:
        (root / spec.folder).symlink_to(cifar.folder)

    monkeypatch.setattr(data, "sources", lambda spec: [("a mirror", fetch)])
    first = data.load(cifar.name)
    monkeypatch.setattr(data, "sources", lambda spec: [])
    second = data.load(cifar.name)
    assert (data.cache_dir() / f"{cifar.name}.npz").is_file()
    assert holds(first, cifar) and holds(second, cifar)
    assert dataclasses.replace(first, name="").shape == second.shape and first.classes == second.classes
    assert str(data.cache_dir()) in data.verify(cifar.name)


def test_an_archive_in_the_data_folder_is_unpacked_elsewhere(cifar: Made, archive: Path) -> None:
    said: list[str] = []
    assert holds(data.load(cifar.name, archive.parent, said.append), cifar)
    assert str(archive) in said[-1]
    assert list(archive.parent.iterdir()) == [archive]
    assert data.verify(cifar.name, archive.parent).startswith("verified")


def test_the_archive_is_fetched_and_unpacked_by_torchvision(
    cifar: Made, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "sources", sources.sources)
    with served(archive.parent) as address:
        monkeypatch.setattr(getattr(datasets, SPECS[cifar.name].dataset), "url", f"{address}/{archive.name}")
        said: list[str] = []
        assert holds(data.load(cifar.name, say=said.append), cifar)
    assert "torchvision mirrors: fetched and verified" in said[-1]


def test_a_fetched_archive_that_is_not_the_published_one_is_refused(
    cifar: Made, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "sources", sources.sources)
    archive.write_bytes(archive.read_bytes()[:-10])
    with served(archive.parent) as address:
        monkeypatch.setattr(getattr(datasets, SPECS[cifar.name].dataset), "url", f"{address}/{archive.name}")
        with pytest.raises(DataError, match=r"torchvision mirrors: .*corrupted"):
            data.load(cifar.name)


class served:
    """A folder over HTTP, on this machine alone."""

    def __init__(self, folder: Path) -> None:
        handler = functools.partial(Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("no_proxy", "*")
    yield


# Files that are not the published ones


def test_every_file_is_refused_by_name_where_it_is_damaged_or_missing(cifar: Made) -> None:
    for name, content in cifar.files.items():
        (cifar.folder / name).write_bytes(content[:-2] + b"0.")
        with pytest.raises(
            DataError, match=rf"{cifar.name}: .*{name} is corrupt or truncated: expected MD5 .*; delete it"
        ):
            data.load(cifar.name, cifar.root)
        (cifar.folder / name).unlink()
        with pytest.raises(DataError, match=rf"{name} is missing"):
            data.load(cifar.name, cifar.root)
        (cifar.folder / name).write_bytes(content)
    assert holds(data.load(cifar.name, cifar.root), cifar)


def test_a_folder_with_neither_files_nor_archive_says_what_was_looked_for(cifar: Made, tmp_path: Path) -> None:
    spec = SPECS[cifar.name]
    with pytest.raises(DataError) as caught:
        data.load(cifar.name, tmp_path)
    for part in (f"{spec.folder}/", spec.archive, f"{cifar.name}.npz", str(tmp_path)):
        assert part in str(caught.value)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


@pytest.fixture
def bomb(tmp_path: Path) -> bytes:
    """A pickle that leaves a mark, shown to do so."""
    made = pickle.dumps(Bomb(tmp_path / "exploded"))
    pickle.loads(made)
    (tmp_path / "exploded").rmdir()
    return made


def test_no_file_is_unpickled_before_its_checksum_was_right(cifar: Made, bomb: bytes, tmp_path: Path) -> None:
    for name, content in cifar.files.items():
        (cifar.folder / name).write_bytes(bomb)
        with pytest.raises(DataError, match=f"{name} is corrupt"):
            data.load(cifar.name, cifar.root)
        (cifar.folder / name).write_bytes(content)
    assert not (tmp_path / "exploded").exists()


def test_torchvision_itself_checks_before_it_unpickles(
    cifar: Made, bomb: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "verify_raw", lambda spec, root: None)
    for name, content in cifar.files.items():
        (cifar.folder / name).write_bytes(bomb)
        with pytest.raises(DataError, match="cannot be read: Dataset .*not found or corrupted"):
            data.load(cifar.name, cifar.root)
        (cifar.folder / name).write_bytes(content)
    assert not (tmp_path / "exploded").exists()


def test_an_archive_that_is_not_the_published_one_is_not_unpacked(
    cifar: Made, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object) -> None:
        raise AssertionError("must not be unpacked")

    monkeypatch.setattr("torchvision.datasets.utils.extract_archive", forbidden)
    archive.write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(DataError, match=rf"{archive.name} is corrupt or truncated: expected MD5"):
        data.load(cifar.name, archive.parent)


@pytest.mark.parametrize("spec", [SPECS["cifar10"], SPECS["cifar100"]], ids=lambda spec: spec.name)
def test_torchvision_publishes_a_checksum_of_every_file_it_unpickles(spec: sources.Spec) -> None:
    cls = getattr(datasets, spec.dataset)
    known = sources._torchvision_md5(spec)
    assert known.keys() == {name for name, _ in cls.train_list + cls.test_list} | {cls.meta["filename"]}
    assert len(known) == {"cifar10": 7, "cifar100": 3}[spec.name]
    assert all(len(found) == 32 for found in (*known.values(), cls.tgz_md5))
    assert (spec.folder, spec.archive) == (cls.base_folder, cls.filename)


# Our cache file, which no published checksum covers


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a | {"train_x": a["train_x"].transpose(0, 2, 3, 1)}, r"train_x: expected uint8 \(10, 3, 32, 32\)"),
        (lambda a: a | {"test_x": a["test_x"] / np.float32(255)}, r"test_x: expected uint8 .*, got float32"),
        (lambda a: a | {"train_y": a["train_y"] + np.uint8(100)}, r"train_y: expected labels below 100?, got"),
        (lambda a: a | {"test_y": a["test_y"][:-1]}, r"expected \(10, 3\) training and test images, got \(10, 2\)"),
        (lambda a: a | {"train_x": a["train_x"].astype(object)}, "corrupt or truncated"),
    ],
    ids=["channels last", "floats", "labels", "sizes", "objects"],
)
def test_a_cache_file_of_another_make_is_refused(cifar: Made, tmp_path: Path, change: Any, reason: str) -> None:
    arrays = {f"{part}_x": cifar.x[part].reshape(-1, 3, 32, 32) for part in cifar.x}
    arrays |= {f"{part}_y": np.array(cifar.y[part], dtype=np.uint8) for part in cifar.y}
    path = tmp_path / f"{cifar.name}.npz"
    np.savez(path, **arrays)
    assert holds(data.load(cifar.name, tmp_path), cifar)
    np.savez(path, **change(arrays))
    with pytest.raises(DataError, match=reason):
        data.load(cifar.name, tmp_path)
