from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import errors
from backends.host import signatures
from tests.blockdevices import FOREIGN, SIZE, command, loop_device, plant, plant_physical_volume


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A file that is as large and empty as a new device."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture
def device(disk: Path) -> Iterator[str]:
    with loop_device(disk) as node:
        yield node


def test_a_new_device_holds_nothing(disk: Path) -> None:
    found = signatures.probe(str(disk))
    assert found.empty
    assert str(found) == "nothing"
    assert found.sole(str(disk)) is None


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_a_stranger_left_is_found_and_named(disk: Path, kind: str) -> None:
    planting, words = FOREIGN[kind]
    planting(disk)
    found = signatures.probe(str(disk))
    assert not found.empty
    assert str(found) == words


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "btrfs", "luks", "lvm", "table"])
def test_a_device_is_probed_as_a_file_is(device: str, kind: str) -> None:
    planting, words = FOREIGN[kind]
    planting(device)
    assert str(signatures.probe(device)) == words


def test_a_probe_writes_nothing(disk: Path) -> None:
    FOREIGN["ext4"][0](disk)
    before = disk.read_bytes()
    signatures.probe(str(disk))
    assert disk.read_bytes() == before


def test_a_label_and_a_uuid_are_read(disk: Path) -> None:
    uuid = "11111111-2222-3333-4444-555555555555"
    command("mkfs.ext4", "-q", "-F", "-L", "images", "-U", uuid, str(disk))
    found = signatures.probe(str(disk))
    assert str(found) == "an ext4 file system with the label 'images'"
    assert found.uuid == uuid
    sole = found.sole(str(disk))
    assert sole is not None
    assert (sole.type, sole.usage) == ("ext4", "filesystem")


def test_what_hides_behind_another_is_found_too_and_taken_for_neither(
    disk: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(bytes(SIZE))
    FOREIGN["vfat"][0](other)
    FOREIGN["ext4"][0](disk)
    plant(disk, 0, other.read_bytes()[:512])
    found = signatures.probe(str(disk))
    assert str(found) == "a vfat file system and an ext4 file system"
    assert found.uuid is None
    with pytest.raises(errors.ProbeFailed, match="vfat file system and an ext4 file system"):
        found.sole(str(disk))


def test_a_file_system_beside_a_partition_table_is_the_sole_one(disk: Path) -> None:
    FOREIGN["table"][0](disk)
    plant_physical_volume(disk, "vg0")
    found = signatures.probe(str(disk))
    assert {item.type for item in found.signatures} == {"dos", "LVM2_member"}
    sole = found.sole(str(disk))
    assert sole is not None
    assert sole.type == "LVM2_member"


def test_the_names_of_partitions_and_the_table_are_known(disk: Path) -> None:
    FOREIGN["table"][0](disk)
    found = signatures.probe(str(disk))
    assert found.table is not None
    assert found.table.type == "dos"
    assert [(item.number, item.start, item.size) for item in found.partitions] == [
        (1, 2048 * 512, 8192 * 512),
        (2, 20480 * 512, 2048 * 512),
    ]


def test_a_missing_device_is_not_empty(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        signatures.probe(str(tmp_path / "none"))


def test_what_can_not_be_read_is_not_empty(tmp_path: Path) -> None:
    with pytest.raises(errors.ProbeFailed, match="nothing is written"):
        signatures.probe(str(tmp_path))


@pytest.mark.root
def test_a_device_that_is_cut_short_beneath_is_not_empty(disk: Path, device: str) -> None:
    os.truncate(disk, 8192)  # reads behind that fail, as those of a broken disk do
    with pytest.raises(errors.ProbeFailed, match="nothing is written"):
        signatures.probe(device)


def test_a_device_of_a_few_bytes_is_probed(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(bytes(1000))
    assert signatures.probe(str(small)).empty


def first_bytes(group: str | None) -> bytes:
    """Of a physical volume."""
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(2**20)
        plant_physical_volume(file.name, group)
        return Path(file.name).read_bytes()


@given(st.from_regex(r"[A-Za-z0-9+_.-]{1,127}", fullmatch=True))
def test_any_name_of_a_volume_group_is_read(name: str) -> None:
    assert signatures.volume_group_name(first_bytes(name)) == name


@given(st.binary(max_size=4608), st.integers(0, 4608))
def test_a_damaged_header_of_a_physical_volume_does_no_harm(junk: bytes, at: int) -> None:
    head = bytearray(first_bytes("vg0"))
    end = min(at + len(junk), 4096 + 512)  # the name stands behind it
    head[at:end] = junk[: end - at]
    assert signatures.volume_group_name(bytes(head)) in (None, "vg0")


@given(st.binary(max_size=4096))
def test_a_device_of_any_contents_has_no_volume_group(head: bytes) -> None:
    assert signatures.volume_group_name(head) is None
