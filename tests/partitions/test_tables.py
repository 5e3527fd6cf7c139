"""Partition tables as the tools tell them, and where on a disk there is room."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import diskspace, errors, madefor
from backends.host import partitions
from backends.host.partitions import ALIGNMENT, Partition, Table
from backends.sizes import MIB

SIZE = 64 * MIB


def made(path: Path, script: str, *entries: str, size: int = SIZE) -> Path:
    """A file with a table, written by sfdisk as on a disk."""
    with path.open("xb") as file:
        file.truncate(size)
    for argv, text in [([], script), *((["--append"], item) for item in entries)]:
        done = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", *argv, str(path)]
        subprocess.run(done, input=text.encode(), check=True, capture_output=True)
    return path


def read(path: Path) -> Table:
    table = partitions.read(str(path), path.stat().st_size)
    assert table is not None
    return table


def test_a_disk_without_a_table_has_none(tmp_path: Path) -> None:
    blank = tmp_path / "blank"
    blank.write_bytes(bytes(SIZE))
    assert partitions.read(str(blank), SIZE) is None


def test_a_gpt_table_is_read_with_names_and_uuids(tmp_path: Path) -> None:
    tag = madefor.new("StorageVolume/default/one")
    path = made(
        tmp_path / "d1", "label: gpt\n", f'start=2048, size=8192, uuid={tag}, name="a, b é"\n'
    )
    table = read(path)
    assert (table.label, table.sector) == ("gpt", 512)
    (item,) = table.partitions
    assert (item.number, item.start, item.size) == (1, MIB, 4 * MIB)
    assert (item.name, item.uuid) == ("a, b é", tag)
    assert table.format_of(item) == "linux"
    assert [(part.start, part.end) for part in table.free] == [(5 * MIB, SIZE - MIB)]


def test_a_dos_table_tells_primary_from_logical(tmp_path: Path) -> None:
    entries = ("size=2048\n", "start=4096, size=40960, type=5\n", "start=6144, size=4096\n")
    table = read(made(tmp_path / "d1", "label: dos\n", *entries))
    one, extended, logical = table.partitions
    assert [item.number for item in table.partitions] == [1, 2, 5]
    assert table.extended == extended
    assert [table.format_of(item) for item in table.partitions] == ["linux", "extended", "linux"]
    assert [table.is_logical(item) for item in (one, extended, logical)] == [False, False, True]
    assert [(part.start, part.end) for part in table.free] == [(22 * MIB, SIZE)]
    # A step is kept for the record that stands before a logical partition.
    assert [(part.start, part.end) for part in table.logical] == [(6 * MIB, 22 * MIB)]


def test_what_is_added_is_read_back_and_taken_out(tmp_path: Path) -> None:
    path = str(made(tmp_path / "d1", "label: gpt\n"))
    tag = madefor.new("StorageVolume/default/one")
    new = Partition(number=0, start=8 * MIB, size=5000 * 1024, uuid=tag, name="one, two")
    partitions.add(path, read(Path(path)), new, "linux-swap")
    table = read(Path(path))
    (item,) = table.partitions
    assert (item.start, item.size, item.uuid, item.name) == (new.start, new.size, tag, new.name)
    assert table.format_of(item) == "linux-swap"
    partitions.resize(path, table, item, 16 * MIB)
    grown = read(Path(path)).partitions[0]
    assert (grown.size, grown.uuid, grown.name, grown.type) == (
        16 * MIB, tag, item.name, item.type,
    )  # fmt: skip
    partitions.remove(path, table, grown)
    assert read(Path(path)).partitions == ()


def test_a_table_is_made_with_the_id_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    tag = madefor.new("StoragePool/disk")
    partitions.make_table(str(path), "gpt", id=tag)
    assert read(path).id == tag


def test_sectors_of_4096_bytes_are_counted_as_such() -> None:
    told = {
        "label": "gpt", "id": "A", "device": "/dev/x", "firstlba": 256, "lastlba": 16378,
        "sectorsize": 4096,
        "partitions": [{"node": "/dev/x1", "start": 256, "size": 256, "type": "X"}],
    }  # fmt: skip
    table = partitions.parse(told, "/dev/x", SIZE)
    assert table is not None
    assert (table.partitions[0].start, table.partitions[0].size) == (MIB, MIB)
    assert [(part.start, part.end) for part in table.free] == [(2 * MIB, 63 * MIB)]


@pytest.mark.parametrize(
    ("node", "device", "number"),
    [
        ("/dev/sda12", "/dev/sda", 12),
        ("/dev/nvme0n1p3", "/dev/nvme0n1", 3),
        ("/dev/mapper/mpatha-part2", "/dev/mapper/mpatha", 2),
    ],
)
def test_numbers_are_read_from_all_kinds_of_names(node: str, device: str, number: int) -> None:
    told = {
        "label": "dos", "id": "0x1", "device": device,
        "partitions": [{"node": node, "start": 2048, "size": 2048, "type": "83"}],
    }  # fmt: skip
    table = partitions.parse(told, device, SIZE)
    assert table is not None
    assert table.partitions[0].number == number


PARTED = """BYT;
/dev/loop0:268435456B:loopback:512:512:dvh:Loopback device:;
9:0B:2097151B:2097152B:::;
1:512B:2097151B:2096640B:free;
1:2097152B:268435455B:266338304B:free;
"""
GEOMETRY = "CYL;\n/dev/loop0:1028cyl:loopback:512:512:dvh:Loopback device:;\n1028:255:2:261kB;\n"


def test_partitions_of_old_labels_stand_on_cylinders_and_not_on_the_label() -> None:
    table = partitions.parse_parted(PARTED, GEOMETRY)
    assert table is not None
    assert (table.label, table.alignment) == ("dvh", 255 * 2 * 512)
    (free,) = table.free
    assert free.start >= 2 * MIB
    assert free.start % table.alignment == free.end % table.alignment == 0


def test_a_file_system_is_no_table_of_parteds() -> None:
    text = "BYT;\n/dev/loop0:9B:loopback:512:512:loop:x:;\n1:0B:8B:9B:ext4::;\n"
    assert partitions.parse_parted(text, "") is None


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """A gpt table of any partitions that do not overlap."""
    bounds = sorted(draw(st.lists(st.integers(2, 60), max_size=8, unique=True)))
    entries = [
        {"node": f"/dev/x{number}", "start": start * 2048 + draw(st.integers(0, 2047)),
         "size": 0, "type": "X", "uuid": str(number), "name": str(number)}
        for number, start in enumerate(bounds, 1)
    ]  # fmt: skip
    for entry, following in zip(entries, [*bounds, 63][1:], strict=True):
        room = following * 2048 - entry["start"]
        entry["size"] = draw(st.integers(1, max(1, room)))
    told = {
        "label": "gpt", "id": "a", "device": "/dev/x", "firstlba": 34, "lastlba": 64 * 2048 - 34,
        "partitions": entries,
    }  # fmt: skip
    table = partitions.parse(told, "/dev/x", SIZE)
    assert table is not None
    return table


@given(tables())
def test_free_stretches_are_aligned_and_overlap_nothing(table: Table) -> None:
    taken = [(item.start, item.end) for item in table.partitions]
    for free in table.free:
        assert free.start % ALIGNMENT == free.end % ALIGNMENT == 0
        assert free.size > 0
        assert all(free.end <= start or end <= free.start for start, end in taken)


@given(tables(), st.integers(1, 80 * MIB))
def test_a_place_holds_what_is_to_be_there_or_none_is_given(table: Table, asked: int) -> None:
    size = diskspace.rounded(asked, diskspace.step(table))
    assert asked <= size < asked + diskspace.ROUNDING
    try:
        start = diskspace.place("/dev/x", table, "new", size, extended=False)
    except errors.NoSpace:
        assert all(item.size < size for item in table.free)
        return
    assert any(item.start == start and item.end >= start + size for item in table.free)


def test_a_table_whose_entries_are_all_taken_has_no_place(tmp_path: Path) -> None:
    script = "label: gpt\n" + 128 * "size=2048\n"
    full = read(made(tmp_path / "full", script, size=256 * MIB))
    with pytest.raises(errors.NoSpace, match="all 128 entries"):
        diskspace.place("/dev/x", full, "new", MIB, extended=False)
    script = "label: dos\nstart=2048, size=500000, type=5\n"
    logical = "".join(f"start={2048 + 4096 * item}, size=2048\n" for item in range(1, 57))
    full = read(made(tmp_path / "logical", script + logical, size=256 * MIB))
    assert diskspace.place("/dev/x", full, "new", MIB, extended=False) >= 502048 * 512
    with pytest.raises(errors.NoSpace):
        diskspace.place("/dev/x", full, "new", 100 * MIB, extended=False)


@given(tables(), st.integers(1, 64 * MIB))
def test_what_may_grow_does_not_run_into_others(table: Table, more: int) -> None:
    for item in table.partitions:
        try:
            diskspace.require("/dev/x", table, item, item.size + more)
        except errors.NoSpace:
            continue
        end = item.end + more
        assert end <= SIZE
        assert not any(item.end <= other.start < end for other in table.partitions)


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_uuid_tells_for_whom_it_was_made(one: str, other: str) -> None:
    tag = madefor.new(one)
    assert madefor.is_for(tag, one)
    assert madefor.is_for(tag, other) == (one == other)
    assert madefor.new(one) != tag


@given(st.text())
def test_what_is_no_uuid_was_made_for_nobody(text: str) -> None:
    assert not madefor.is_for(text, "StorageVolume/default/one")
