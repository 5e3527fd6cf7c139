"""Images that get another size: the data stays, what is added is zeros, and the rest is refused."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence

import pytest

from backends import errors
from backends.host import commands
from backends.images import creating
from backends.images.creating import ImageRequest
from tests.images import samples

Mounter = Callable[[str], pathlib.Path]

MIB = 2**20


def run(argv: Sequence[str]) -> None:
    commands.run(argv)


def filled(path: pathlib.Path, format: str, data: bytes) -> None:
    """An image that holds the data."""
    creating.create(ImageRequest(format=format, capacity=len(data)), str(path), run)
    source = path.with_name("source")
    source.write_bytes(data)
    samples.qemu_img("convert", "-n", "-f", "raw", "-O", format, source, path)
    source.unlink()


def content(path: pathlib.Path, format: str) -> bytes:
    target = path.with_name("seen")
    samples.qemu_img("convert", "-f", format, "-O", "raw", path, target)
    return target.read_bytes()


def resize(
    path: pathlib.Path, format: str, capacity: int, *, shrink: bool = False, allocate: bool = False
) -> None:
    creating.resize(format, str(path), capacity, shrink=shrink, allocate=allocate, run=run)


def allocated(path: pathlib.Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("format", ["raw", "iso", "qcow2", "qed"])
def test_growing_keeps_the_data_and_adds_zeros(tmp_path: pathlib.Path, format: str) -> None:
    data, path = os.urandom(MIB), tmp_path / "image"
    driver = "raw" if format == "iso" else format
    filled(path, driver, data)
    for _ in range(2):
        resize(path, format, 3 * MIB)
        assert samples.probe(path).capacity == 3 * MIB
        assert content(path, driver) == data + bytes(2 * MIB)


@pytest.mark.parametrize("format", ["raw", "iso", "qcow2"])
def test_shrinking_keeps_the_data_before_the_new_end(tmp_path: pathlib.Path, format: str) -> None:
    data, path = os.urandom(3 * MIB), tmp_path / "image"
    driver = "raw" if format == "iso" else format
    filled(path, driver, data)
    for _ in range(2):
        resize(path, format, MIB, shrink=True)
        assert samples.probe(path).capacity == MIB
        assert content(path, driver) == data[:MIB]


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_what_is_cut_off_does_not_come_back(tmp_path: pathlib.Path, format: str) -> None:
    data, path = os.urandom(2 * MIB), tmp_path / "image"
    filled(path, format, data)
    resize(path, format, MIB, shrink=True)
    resize(path, format, 2 * MIB)
    assert content(path, format) == data[:MIB] + bytes(MIB)


@pytest.mark.parametrize("allocate", [True, False])
@pytest.mark.parametrize("format", ["raw", "iso"])
def test_what_is_added_is_allocated_on_demand(
    tmp_path: pathlib.Path, format: str, allocate: bool
) -> None:
    data, path = os.urandom(MIB), tmp_path / "image"
    path.write_bytes(data)
    before = allocated(path)
    for _ in range(2):
        resize(path, format, 9 * MIB, allocate=allocate)
        assert (allocated(path) - before >= 8 * MIB) is allocate
        assert path.read_bytes() == data + bytes(8 * MIB)


@pytest.mark.parametrize("name", ["a:b", "a,b=c", ".hidden", "-f", "json:{}"])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_name_is_taken_as_it_is(tmp_path: pathlib.Path, format: str, name: str) -> None:
    path = tmp_path / name
    samples.make(path, format, MIB)
    resize(path, format, 2 * MIB)
    assert samples.probe(path).capacity == 2 * MIB
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_missing_image_is_not_made(tmp_path: pathlib.Path, format: str) -> None:
    with pytest.raises(errors.StorageError, match="No such file or directory"):
        resize(tmp_path / "image", format, MIB)
    assert list(tmp_path.iterdir()) == []


def test_a_raw_disk_with_a_guests_header_is_resized_as_raw(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "disk"
    samples.make(path, "qcow2", 8 * MIB)
    size = path.stat().st_size
    before = path.read_bytes()
    resize(path, "raw", size + MIB)
    assert path.read_bytes() == before + bytes(MIB)


@pytest.mark.root
def test_a_full_file_system_leaves_the_data(mounted: Mounter) -> None:
    path = mounted("ext4") / "image"
    data = os.urandom(MIB)
    filled(path, "raw", data)
    with pytest.raises(errors.NoSpace, match="No space left on device"):
        resize(path, "raw", 2**30, allocate=True)
    resize(path, "raw", MIB, shrink=True)
    assert path.read_bytes() == data
    resize(path, "raw", 2 * MIB, allocate=True)
    assert path.read_bytes() == data + bytes(MIB)
