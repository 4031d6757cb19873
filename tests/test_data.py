"""Image sets: every place they can come from, and every way a file can be wrong."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import http.client
import io
import os
import random
import re
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmark import data, sources
from benchmark.sources import IDX_FILES, SPECS, DataError, Spec

Sources = Callable[..., None]


def idx(array: NDArray[np.uint8]) -> bytes:
    """The IDX file that holds an array."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """The four files of a tiny MNIST, 6 training and 4 test images of 28x28, taken for the published ones; an empty cache."""
    rng = np.random.default_rng(0)
    shapes = ((6, 28, 28), (6,), (4, 28, 28), (4,))
    made = {
        # Few grey levels, so that they compress as images do.
        name: idx(rng.integers(0, 10, shape, dtype=np.uint8) * np.uint8(1 if len(shape) == 1 else 25))
        for name, shape in zip(IDX_FILES, shapes, strict=True)
    }
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in made.items()}
    monkeypatch.setitem(SPECS, "mnist", dataclasses.replace(SPECS["mnist"], sizes=(6, 4), md5=md5))
    monkeypatch.setenv("FORGETBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FORGETBENCH_DATA", raising=False)
    return made


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Sources:
    """Replace the sources: each argument is what one of them does."""

    def offered(*fetches: Callable[[Spec, Path], None]) -> None:
        monkeypatch.setattr(data, "sources", lambda spec: [(f"source {i}", f) for i, f in enumerate(fetches, start=1)])

    return offered


def put(files: dict[str, bytes], root: Path) -> None:
    """Lay files out as torchvision does."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def unreachable(spec: Spec, root: Path) -> None:
    raise DataError("no mirror answered")


def forbidden(spec: Spec, root: Path) -> None:
    pytest.fail("nothing may be fetched here")  # which nobody takes for a source's failure


def refusing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody open a file, root included."""
    opened = io.open

    def refused(file: Any, *args: Any, **kwargs: Any) -> Any:
        if file == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", refused)


def cache_file() -> Path:
    return data.cache_dir() / "mnist.npz"


# From a source to the cache


def test_a_fetched_set_is_exactly_what_the_files_hold(files: dict[str, bytes], offer: Sources) -> None:
    offer(lambda spec, root: put(files, root))
    images = data.load("mnist")
    assert images.train_x.shape == (6, 784) and images.test_x.shape == (4, 784)
    assert images.train_x.dtype == torch.uint8 and images.train_y.dtype == torch.int64
    assert images.train_x.numpy().tobytes() == files["train-images-idx3-ubyte"][16:]
    assert images.test_x.numpy().tobytes() == files["t10k-images-idx3-ubyte"][16:]
    assert images.train_y.tolist() == list(files["train-labels-idx1-ubyte"][8:])
    assert images.test_y.tolist() == list(files["t10k-labels-idx1-ubyte"][8:])
    assert (images.shape, images.classes, images.scale) == ((1, 28, 28), 10, 255.0)


def test_a_second_load_reads_the_cache_and_asks_no_source(files: dict[str, bytes], offer: Sources) -> None:
    offer(lambda spec, root: put(files, root))
    first = data.load("mnist")
    offer(forbidden)
    second = data.load("mnist")
    assert second.checksum == first.checksum
    assert torch.equal(second.train_x, first.train_x)


def test_sources_are_tried_in_order_until_one_delivers(files: dict[str, bytes], offer: Sources) -> None:
    said: list[str] = []
    offer(unreachable, lambda spec, root: put(files, root), forbidden)
    assert len(data.load("mnist", say=said.append).train_y) == 6
    assert "source 1: no mirror answered" in said[1]
    assert "source 2: fetched and verified" in said[2]


@pytest.mark.parametrize(
    "error",
    [EOFError("cut off"), tarfile.ReadError("cut off"), KeyError("cut off"), StopIteration("cut off")],
    ids=repr,
)
def test_however_a_source_fails_the_next_is_tried(files: dict[str, bytes], offer: Sources, error: Exception) -> None:
    def broken(spec: Spec, root: Path) -> None:
        raise error

    said: list[str] = []
    offer(broken, lambda spec, root: put(files, root))
    assert len(data.load("mnist", say=said.append).train_y) == 6
    assert re.fullmatch(rf"mnist: source 1: {type(error).__name__}: '?cut off'?", said[1])


def test_a_proxy_that_answers_nonsense_is_no_mirror(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, offer: Sources
) -> None:
    def nonsense(*args: object, **kwargs: object) -> None:
        raise http.client.BadStatusLine("SSH-2.0")

    monkeypatch.setattr("urllib.request.urlopen", nonsense)
    offer(sources.sources(SPECS["mnist"])[0][1])
    with pytest.raises(DataError, match=r"source 1: no mirror answered \(SSH-2.0\)"):
        data.load("mnist")


def test_files_that_are_not_the_published_ones_are_refused_and_the_next_source_is_tried(
    files: dict[str, bytes], offer: Sources
) -> None:
    name = "t10k-labels-idx1-ubyte"
    tampered = files | {name: files[name][:-1] + bytes([files[name][-1] ^ 1])}
    said: list[str] = []
    offer(lambda spec, root: put(tampered, root), lambda spec, root: put(files, root))
    images = data.load("mnist", say=said.append)
    assert images.test_y.tolist() == list(files[name][8:])
    assert any("source 1" in line and name in line and "expected MD5" in line for line in said)


def test_a_source_that_leaves_a_file_out_is_not_believed(files: dict[str, bytes], offer: Sources) -> None:
    files.pop("train-labels-idx1-ubyte")
    offer(lambda spec, root: put(files, root))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte is missing"):
        data.load("mnist")
    assert not cache_file().exists()


def test_when_every_source_fails_the_message_lists_them_all_and_what_works_offline(
    files: dict[str, bytes], offer: Sources
) -> None:
    def silent(spec: Spec, root: Path) -> None:
        raise OSError

    offer(unreachable, silent)
    with pytest.raises(DataError) as caught:
        data.load("mnist")
    message = str(caught.value)
    for part in ("cache: no ", "source 1: no mirror answered", "source 2: OSError", "--data-dir", "permuted-digits"):
        assert part in message


def test_no_half_written_file_is_left_when_writing_the_cache_fails(
    files: dict[str, bytes], offer: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    offer(lambda spec, root: put(files, root))
    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist")
    assert list(data.cache_dir().iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_said_in_one_message(
    files: dict[str, bytes], offer: Sources, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FORGETBENCH_CACHE", str(tmp_path / "file"))
    offer(lambda spec, root: put(files, root))
    try:
        images = data.load("mnist")
    except DataError as error:
        assert str(tmp_path / "file") in str(error)
    else:
        assert len(images.train_y) == 6  # images without a cache are as good


# A cache that is damaged


@pytest.mark.parametrize("kept", [0, 1, 100, -1, -200])
def test_a_truncated_cache_is_fetched_again(files: dict[str, bytes], offer: Sources, kept: int) -> None:
    offer(lambda spec, root: put(files, root))
    whole = data.load("mnist").checksum
    path = cache_file()
    path.write_bytes(path.read_bytes()[:kept])
    said: list[str] = []
    assert data.load("mnist", say=said.append).checksum == whole
    assert "corrupt or truncated" in said[0]
    offer(forbidden)
    assert data.load("mnist").checksum == whole


@pytest.mark.parametrize("seed", range(20))
def test_a_cache_with_flipped_bytes_is_fetched_again_wherever_they_are(
    files: dict[str, bytes], offer: Sources, seed: int
) -> None:
    offer(lambda spec, root: put(files, root))
    whole = data.load("mnist").checksum
    rng, path = random.Random(seed), cache_file()
    damaged = bytearray(path.read_bytes())
    start = rng.randrange(len(damaged) - 16)
    damaged[start : start + 16] = rng.randbytes(16)
    path.write_bytes(damaged)
    assert data.load("mnist").checksum == whole


def test_a_cache_of_other_images_is_fetched_again(files: dict[str, bytes], offer: Sources) -> None:
    offer(lambda spec, root: put(files, root))
    whole = data.load("mnist").checksum
    with np.load(cache_file()) as held:
        arrays = dict(held)
    arrays["test_y"] = arrays["test_y"][::-1]
    np.savez_compressed(cache_file(), **arrays)
    said: list[str] = []
    assert data.load("mnist", say=said.append).checksum == whole
    assert "does not hold the published t10k-labels-idx1-ubyte" in said[0]


def test_everybody_may_read_the_cache(files: dict[str, bytes], offer: Sources) -> None:
    offer(lambda spec, root: put(files, root))
    data.load("mnist")
    assert cache_file().stat().st_mode & 0o777 == 0o644


def test_a_cache_that_somebody_else_keeps_to_themselves_is_no_reason_to_delete_it(
    files: dict[str, bytes], offer: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(lambda spec, root: put(files, root))
    whole, path = data.load("mnist").checksum, cache_file()
    refusing(path, monkeypatch)
    with pytest.raises(DataError, match=r"mnist.npz cannot be read \(Permission denied\)"):
        data.verify("mnist")
    said: list[str] = []
    offer(unreachable)
    with pytest.raises(DataError, match=r"cache: .* cannot be read"):
        data.load("mnist")
    assert path.is_file()
    offer(lambda spec, root: put(files, root))
    assert data.load("mnist", say=said.append).checksum == whole
    assert "cannot be read (Permission denied)" in said[0]


# A folder the user names


def test_a_data_folder_in_torchvisions_layout_is_read_in_place(
    files: dict[str, bytes], offer: Sources, tmp_path: Path
) -> None:
    offer(forbidden)
    put(files, tmp_path)
    assert data.load("mnist", tmp_path).train_y.tolist() == list(files["train-labels-idx1-ubyte"][8:])
    assert not cache_file().exists()


def test_a_cache_file_of_another_machine_serves_as_data_folder(
    files: dict[str, bytes], offer: Sources, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offer(lambda spec, root: put(files, root))
    whole, other = data.load("mnist").checksum, data.cache_dir()
    offer(forbidden)
    monkeypatch.setenv("FORGETBENCH_CACHE", str(tmp_path / "empty"))
    assert data.load("mnist", other).checksum == whole


def test_the_environment_names_a_data_folder_and_an_argument_comes_before_it(
    files: dict[str, bytes], offer: Sources, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offer(forbidden)
    put(files, tmp_path / "held")
    (tmp_path / "bare").mkdir()
    monkeypatch.setenv("FORGETBENCH_DATA", str(tmp_path / "held"))
    assert len(data.load("mnist").train_y) == 6
    with pytest.raises(DataError, match=r"no MNIST/raw/"):
        data.load("mnist", tmp_path / "bare")


def test_a_data_folder_without_the_files_says_what_was_looked_for_and_asks_no_source(
    files: dict[str, bytes], offer: Sources, tmp_path: Path
) -> None:
    offer(forbidden)
    with pytest.raises(DataError) as caught:
        data.load("mnist", tmp_path / "nowhere")
    for part in ("MNIST/raw/", "mnist.npz", str(tmp_path / "nowhere"), "permuted-digits"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", IDX_FILES)
def test_a_truncated_file_in_a_data_folder_is_named_and_left_alone(
    files: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    put(files | {name: files[name][:-1]}, tmp_path)
    with pytest.raises(DataError, match=rf"{name} is corrupt or truncated: expected MD5 .*; delete it"):
        data.load("mnist", tmp_path)
    assert (tmp_path / "MNIST" / "raw" / name).is_file()


def test_a_truncated_cache_file_in_a_data_folder_is_refused_and_left_alone(
    files: dict[str, bytes], offer: Sources, tmp_path: Path
) -> None:
    offer(forbidden)
    (tmp_path / "mnist.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"mnist.npz is corrupt or truncated"):
        data.load("mnist", tmp_path)
    assert (tmp_path / "mnist.npz").is_file()


def test_a_set_without_published_checksums_is_refused_where_its_files_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "KMNIST" / "raw"
    folder.mkdir(parents=True)
    for name in IDX_FILES:
        (folder / name).write_bytes(struct.pack(">HBB3I", 0, 8, 3, 60_000, 28, 28) + b"too short")
    with pytest.raises(DataError, match="kmnist"):
        data.load("kmnist", tmp_path)


def test_what_an_old_torchvision_left_behind_is_not_taken_for_the_verified_files(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    put(files, tmp_path)
    whole = data.load("mnist", tmp_path)
    processed = tmp_path / "MNIST" / "processed"
    processed.mkdir()
    held = {
        name: (getattr(whole, f"{part}_x").view(-1, 28, 28), getattr(whole, f"{part}_y"))
        for part, name in (("train", "training.pt"), ("test", "test.pt"))
    }
    for name, tensors in held.items():
        torch.save(tensors, processed / name)
    assert data.load("mnist", tmp_path).checksum == whole.checksum
    torch.save((held["test.pt"][0].flip(0), held["test.pt"][1]), processed / "test.pt")
    with pytest.raises(DataError, match="does not hold the published t10k-images-idx3-ubyte"):
        data.load("mnist", tmp_path)
    torch.save(Path("a pickle that is no tensor"), processed / "test.pt")
    with pytest.raises(DataError, match="cannot be read"):
        data.load("mnist", tmp_path)


@pytest.fixture
def kmnist(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The tiny images as KMNIST, whose published checksums are of the compressed files, as torchvision leaves it."""
    folder = tmp_path / "held" / "KMNIST" / "raw"
    folder.mkdir(parents=True)
    resources = []
    for name, content in files.items():
        packed = gzip.compress(content)
        (folder / name).write_bytes(content)
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr("torchvision.datasets.KMNIST.resources", resources)
    monkeypatch.setitem(SPECS, "kmnist", dataclasses.replace(SPECS["kmnist"], sizes=(6, 4)))
    return folder


@pytest.mark.parametrize("name", IDX_FILES)
def test_raw_files_must_be_what_the_published_compressed_ones_beside_them_hold(
    files: dict[str, bytes], kmnist: Path, name: str
) -> None:
    root = kmnist.parent.parent
    assert len(data.load("kmnist", root).train_y) == 6
    (kmnist / name).write_bytes(files[name][:-1] + bytes([files[name][-1] ^ 1]))
    with pytest.raises(DataError, match=rf"{name} is corrupt or truncated: expected MD5"):
        data.load("kmnist", root)
    (kmnist / f"{name}.gz").write_bytes(gzip.compress((kmnist / name).read_bytes()))
    with pytest.raises(DataError, match=rf"{name}.gz is corrupt or truncated: expected MD5"):
        data.load("kmnist", root)


def test_what_no_published_checksum_covers_is_not_called_verified(kmnist: Path) -> None:
    assert data.verify("kmnist", kmnist.parent.parent).startswith("verified in")
    (kmnist / f"{IDX_FILES[3]}.gz").unlink()
    assert data.verify("kmnist", kmnist.parent.parent).startswith(
        "complete (its published checksums are of other files)"
    )


def test_torchvision_publishes_a_checksum_of_every_compressed_file_of_kmnist() -> None:
    from torchvision.datasets import KMNIST

    assert {name for name, _ in KMNIST.resources} == {f"{name}.gz" for name in IDX_FILES}
    assert all(len(md5) == 32 for _, md5 in KMNIST.resources)


# Checking without fetching


def test_verify_says_where_a_cached_set_lies(files: dict[str, bytes], offer: Sources) -> None:
    offer(lambda spec, root: put(files, root))
    data.load("mnist")
    assert data.verify("mnist").startswith(f"verified, {cache_file()}")


def test_verify_fetches_nothing_and_says_how_to(files: dict[str, bytes], offer: Sources) -> None:
    offer(forbidden)
    with pytest.raises(DataError, match="not in the cache .*forgetbench data fetch mnist"):
        data.verify("mnist")


def test_verify_refuses_a_damaged_cache_and_leaves_it(files: dict[str, bytes], offer: Sources) -> None:
    offer(lambda spec, root: put(files, root))
    data.load("mnist")
    cache_file().write_bytes(cache_file().read_bytes()[:-100])
    with pytest.raises(DataError, match="corrupt or truncated"):
        data.verify("mnist")
    assert cache_file().exists()


def test_verify_looks_where_load_would(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(files, tmp_path / "held")
    assert str(tmp_path / "held") in data.verify("mnist", tmp_path / "held")
    monkeypatch.setenv("FORGETBENCH_DATA", str(tmp_path / "held"))
    assert str(tmp_path / "held") in data.verify("mnist")


def test_what_is_held_is_looked_for_where_load_would(
    files: dict[str, bytes], offer: Sources, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offer(lambda spec, root: put(files, root))
    data.load("mnist")
    assert data.held() == ["mnist", "digits"]
    folder = tmp_path / "held"
    (folder / "KMNIST" / "raw").mkdir(parents=True)
    (folder / "fashion-mnist.npz").touch()
    (folder / "cifar-10-python.tar.gz").touch()
    assert data.held(folder) == ["fashion-mnist", "kmnist", "cifar10"]
    monkeypatch.setenv("FORGETBENCH_DATA", str(folder))
    assert data.held() == data.held(folder)
    with pytest.raises(DataError, match="expected files of mnist, .*, found none"):
        data.held(tmp_path / "nowhere")


@pytest.mark.parametrize("check", [data.load, data.verify])
def test_an_unknown_set_is_refused_with_the_nearest_name(check: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="unknown image set 'mnis'; did you mean 'mnist'"):
        check("mnis")


# Digits, and checksums


def test_digits_need_no_files_and_split_into_every_fifth_image_for_testing() -> None:
    images = data.load("digits", Path("/nowhere"))
    assert (len(images.train_y), len(images.test_y)) == (1437, 360)
    assert (images.shape, images.scale, images.classes) == ((1, 8, 8), 16.0, 10)
    assert images.train_x.max() == 16 and images.train_x.dtype == torch.uint8
    assert set(images.test_y.tolist()) == set(range(10))


@pytest.mark.parametrize("part", ["train_x", "train_y", "test_x", "test_y"])
def test_the_checksum_sees_every_pixel_and_label(part: str) -> None:
    images = data.load("digits")
    changed = getattr(images, part).clone()
    changed.view(-1)[-1] += 1
    assert images.checksum == data.load("digits").checksum
    assert dataclasses.replace(images, **{part: changed}).checksum != images.checksum


def test_the_cache_lies_in_the_users_cache_folder_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FORGETBENCH_CACHE", raising=False)
    assert data.cache_dir() == tmp_path / "forgetbench"
    monkeypatch.setenv("FORGETBENCH_CACHE", str(tmp_path / "own"))
    assert data.cache_dir() == tmp_path / "own"
