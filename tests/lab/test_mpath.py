"""The pool of multipath maps, and pools of their partitions: device mapper over two virtual hosts
that show one disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.mpath import parse_status
from tests.keeper import Keeper, pool, pool_key, volume, volume_key
from tests.lab.spare import IN_GUEST, MIB, found_on, run
from tests.lab.targets import Disk, MultipathMaps

pytestmark = pytest.mark.skipif(not IN_GUEST, reason="needs a kernel whose targets are its own")

MAPS, LUN = pool_key("maps"), volume_key("lun")
DISK, ONE, TWO = pool_key("disk"), volume_key("one"), volume_key("two")


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(tmp_path / "state")
    yield made
    made.store.close()


@pytest.fixture(autouse=True)
def maps(tmp_path: Path) -> Iterator[None]:
    disks = [Disk(tmp_path, "disk0", 64 * MIB), Disk(tmp_path, "disk1", 32 * MIB)]
    with MultipathMaps(*disks):
        yield
    for disk in disks:
        disk.remove()


def maps_pool(name: str = "maps") -> dict[str, Any]:
    return pool(name, type="mpath", mpath={}, target={"path": "/dev/mapper"})


def paths_of(name: str) -> list[str]:
    node = Path("/dev/mapper", name).resolve()
    slaves = Path("/sys/block", node.name, "slaves").iterdir()
    return sorted(Path("/sys/block", item.name, "dev").read_text().strip() for item in slaves)


def start(keeper: Keeper, *documents: dict[str, Any]) -> None:
    keeper.apply(*documents)
    keeper.settle()


def test_maps_are_volumes_under_their_names(keeper: Keeper) -> None:
    start(keeper, maps_pool(), volume("lun", "maps", volume_name="mpatha", capacity="64Mi"))
    keeper.assert_ready(MAPS, LUN)
    status = keeper.get(LUN).status
    assert (status.path, status.origin) == ("/dev/mapper/mpatha", "Adopted")
    uuid = run("dmsetup", "info", "-c", "--noheadings", "-o", "uuid", "mpatha").strip()
    assert status.key == uuid.removeprefix("mpath-")
    figures = keeper.get(MAPS).status
    assert (figures.capacity, figures.available, figures.volumes.total) == (96 * MIB, 0, 2)


def test_a_failed_path_degrades_the_pool_until_it_is_back(keeper: Keeper) -> None:
    start(keeper, maps_pool())
    assert keeper.get(MAPS).status.state == "Running"
    path = paths_of("mpatha")[0]
    run("dmsetup", "message", "mpatha", "0", f"fail_path {path}")
    keeper.settle()
    status = keeper.get(MAPS).status
    assert status.state == "Degraded"
    assert "mpatha has lost 1 (sd" in keeper.message(MAPS)
    run("dmsetup", "message", "mpatha", "0", f"reinstate_path {path}")
    keeper.settle()
    assert keeper.get(MAPS).status.state == "Running"
    assert "lost" not in keeper.message(MAPS)


def test_a_volume_with_no_path_that_works_can_not_be_used_until_one_is_back(
    keeper: Keeper,
) -> None:
    start(keeper, maps_pool(), volume("lun", "maps", volume_name="mpatha", capacity="64Mi"))
    paths = paths_of("mpatha")
    for path in paths:
        run("dmsetup", "message", "mpatha", "0", f"fail_path {path}")
    keeper.settle()
    assert keeper.get(MAPS).status.state == "Degraded"
    assert "none of its paths works" in keeper.assert_retrying(LUN, "ProbeFailed")
    run("dmsetup", "message", "mpatha", "0", f"reinstate_path {paths[0]}")
    keeper.settle()
    keeper.assert_ready(LUN)
    assert keeper.get(MAPS).status.state == "Degraded"


def test_maps_that_change_names_are_not_taken_for_each_other(keeper: Keeper) -> None:
    """As where multipathd has lost the file of the names that it gave."""
    start(keeper, maps_pool(), volume("lun", "maps", volume_name="mpatha", capacity="64Mi"))
    known = keeper.get(LUN).status.key

    def swap() -> None:
        for former, name in (("mpatha", "aside"), ("mpathb", "mpatha"), ("aside", "mpathb")):
            run("dmsetup", "rename", former, name)
        run("udevadm", "settle")

    swap()
    keeper.settle()
    assert known in keeper.assert_stalled(LUN, "DeviceChanged")
    swap()
    keeper.settle()
    keeper.assert_ready(LUN)
    assert keeper.get(LUN).status.key == known


def test_a_map_that_goes_is_missed_and_found_again(keeper: Keeper) -> None:
    start(keeper, maps_pool(), volume("lun", "maps", volume_name="mpatha", capacity="64Mi"))
    run("multipath", "-f", "mpatha")
    keeper.settle()
    keeper.assert_retrying(LUN, "Inaccessible")
    keeper.assert_ready(MAPS)
    run("multipath")
    keeper.settle()
    keeper.assert_ready(LUN)


def test_a_lun_is_one_thing_by_whatever_way(keeper: Keeper) -> None:
    """A path of a map is the map's volume already, so it can't be another volume."""
    start(keeper, maps_pool(), volume("lun", "maps", volume_name="mpatha", capacity="64Mi"))
    keeper.assert_ready(LUN)
    node = Path("/dev/mapper/mpatha").resolve()
    path = sorted(Path("/sys/block", node.name, "slaves").iterdir())[0].resolve()
    host = next(part for part in path.parts if part.startswith("host"))
    adapter = {"adapter": {"name": host}}
    start(
        keeper,
        pool("host", type="scsi", scsi=adapter, target={"path": "/dev"}),
        volume("path", "host", volume_name="unit:0:1:0", capacity="64Mi"),
    )
    keeper.assert_stalled(volume_key("path"), "OwnedByOther")


def test_one_pool_of_maps_a_host(keeper: Keeper) -> None:
    start(keeper, maps_pool())
    start(keeper, maps_pool("maps2"))
    keeper.assert_stalled(pool_key("maps2"), "Conflict")


def test_the_kernel_status_of_a_map_is_read() -> None:
    text = run("dmsetup", "status", "--target", "multipath")
    found = dict(parse_status(text))
    assert set(found) == {"mpatha", "mpathb"}
    assert all(len(item.working) == 2 and not item.failed for item in found.values())


def on_map(
    name: str = "mpatha", *, separator: bool | None = None, label: str = "gpt", **spec: Any
) -> dict[str, Any]:
    """A pool of the partitions of a map."""
    device: dict[str, Any] = {"path": f"/dev/mapper/{name}"}
    if separator is not None:
        device["partSeparator"] = separator
    source = {"device": device, "format": label}
    return pool("disk", type="disk", disk=source, target={"path": "/dev/mapper"}, **spec)


def part(name: str, capacity: str) -> dict[str, Any]:
    return volume(name, "disk", capacity=capacity, deletion_policy="Delete")


def path(keeper: Keeper, name: str) -> Path:
    return Path(keeper.get(volume_key(name)).status.path)


def placed(partition: Path) -> tuple[int, int]:
    """Where on the map a partition begins, and its size, in bytes, as device mapper has it."""
    _, size, kind, _, start = run("dmsetup", "table", partition).split()
    assert kind == "linear"
    return int(start) * 512, int(size) * 512


@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_partitions_of_a_map_are_maps_in_step_with_its_table(keeper: Keeper, label: str) -> None:
    start(keeper, on_map(label=label), part("one", "16Mi"))
    start(keeper, part("two", "8Mi"))
    keeper.assert_ready(DISK, ONE, TWO)
    assert keeper.planned() == {}
    one, two = path(keeper, "one"), path(keeper, "two")
    assert (one.parent, two.parent) == (Path("/dev/mapper"), Path("/dev/mapper"))
    (begin, size), (_, other) = placed(one), placed(two)
    assert (size, other) == (16 * MIB, 8 * MIB)
    one.write_bytes(b"what one holds")
    for device in (one, "/dev/mapper/mpatha"):  # each of which has a cache of its own
        run("blockdev", "--flushbufs", device)
    with Path("/dev/mapper/mpatha").open("rb") as whole:
        whole.seek(begin)
        assert whole.read(14) == b"what one holds"
    start(keeper, part("two", "12Mi"))
    keeper.assert_ready(TWO)
    assert placed(two)[1] == 12 * MIB
    keeper.delete(ONE)
    keeper.settle()
    assert keeper.gone(ONE)
    assert not one.exists()
    keeper.assert_ready(DISK, TWO)
    assert placed(path(keeper, "two"))[1] == 12 * MIB
    assert keeper.planned() == {}


def test_a_logical_partition_of_a_map_moves_up_by_its_name(keeper: Keeper) -> None:
    extended = volume("ext", "disk", capacity="40Mi", format="extended")
    start(keeper, on_map(label="dos"), extended)
    for name in ("p1", "p2", "p3", "one", "two"):
        start(keeper, part(name, "4Mi"))
    keeper.assert_ready(ONE, TWO)
    assert path(keeper, "two").name.endswith("6")
    path(keeper, "two").write_bytes(b"of two")
    keeper.delete(ONE)
    keeper.settle()
    assert keeper.gone(ONE)
    keeper.assert_ready(DISK, TWO)
    moved = path(keeper, "two")
    assert moved.name.endswith("5")
    with moved.open("rb") as contents:
        assert contents.read(6) == b"of two"


@pytest.mark.parametrize(("separator", "name"), [(True, "mpathap1"), (False, "mpatha1")])
def test_partitions_are_called_as_the_separator_has_it(
    keeper: Keeper, tmp_path: Path, separator: bool, name: str
) -> None:
    start(keeper, on_map(separator=separator), part("one", "16Mi"))
    keeper.assert_ready(DISK, ONE)
    assert path(keeper, "one") == Path("/dev/mapper", name)
    run("mkfs.ext4", "-q", path(keeper, "one"))
    point = tmp_path / "point"
    point.mkdir()
    run("mount", path(keeper, "one"), point)
    start(keeper, part("two", "8Mi"))
    keeper.assert_ready(ONE, TWO)
    assert path(keeper, "one") == Path("/dev/mapper", name)
    (point / "written").write_text("still there")
    run("umount", point)
    assert keeper.planned() == {}


def test_a_map_whose_name_ends_with_a_number(keeper: Keeper) -> None:
    """Whose first partition is called like another map."""
    run("dmsetup", "rename", "mpatha", "disk1")
    run("dmsetup", "rename", "mpathb", "disk11")
    start(keeper, on_map("disk1"), part("one", "16Mi"), part("two", "8Mi"))
    keeper.assert_ready(DISK, ONE, TWO)
    assert placed(path(keeper, "one"))[1] == 16 * MIB
    assert placed(path(keeper, "two"))[1] == 8 * MIB
    assert found_on(Path("/dev/mapper/disk11")) == ""


def test_a_partition_in_use_stays_and_holds_up_no_other(keeper: Keeper, tmp_path: Path) -> None:
    start(keeper, on_map(), part("one", "16Mi"))
    run("mkfs.ext4", "-q", path(keeper, "one"))
    point = tmp_path / "point"
    point.mkdir()
    run("mount", path(keeper, "one"), point)
    start(keeper, part("two", "8Mi"))
    keeper.assert_ready(TWO)
    keeper.delete(ONE)
    keeper.settle()
    assert str(point) in keeper.assert_retrying(ONE, "InUse")
    failing = paths_of("mpatha")[0]
    run("dmsetup", "message", "mpatha", "0", f"fail_path {failing}")
    keeper.settle()
    keeper.assert_ready(DISK, TWO)
    (point / "written").write_text("by the other path")
    run("sync", "-f", point / "written")
    run("umount", point)
    keeper.settle()
    assert keeper.gone(ONE)


def test_partitions_come_back_with_their_map(keeper: Keeper) -> None:
    start(keeper, on_map(), part("one", "16Mi"))
    path(keeper, "one").write_bytes(b"what one holds")
    run("kpartx", "-d", "/dev/mapper/mpatha")
    run("multipath", "-f", "mpatha")
    keeper.settle()
    keeper.assert_retrying(DISK, "Inaccessible")
    run("multipath")
    run("udevadm", "settle")
    keeper.settle()
    keeper.assert_ready(DISK, ONE)
    with path(keeper, "one").open("rb") as contents:
        assert contents.read(14) == b"what one holds"


def test_a_partition_that_is_mapped_elsewhere_is_mapped_anew(keeper: Keeper) -> None:
    """As after a change of the table that the kernel was not told of."""
    start(keeper, on_map(), part("one", "16Mi"))
    one = path(keeper, "one")
    right, uuid = placed(one), run("dmsetup", "info", "-c", "--noheadings", "-o", "uuid", one)
    run("dmsetup", "remove", one)
    table = f"0 {16 * MIB // 512} linear /dev/mapper/mpatha 0"
    run("dmsetup", "create", one.name, "--uuid", uuid.strip(), "--table", table)
    keeper.settle()
    keeper.assert_ready(DISK, ONE)
    assert placed(path(keeper, "one")) == right


def test_a_former_table_is_overwritten_by_name_unless_a_partition_is_in_use(
    keeper: Keeper, tmp_path: Path
) -> None:
    table = b"label: dos\nsize=32768, type=83\n"
    run("sfdisk", "--quiet", "/dev/mapper/mpatha", input=table)
    run("udevadm", "settle")
    (former,) = Path("/dev/mapper").glob("mpatha?*1")
    run("mkfs.ext4", "-q", former)
    point = tmp_path / "point"
    point.mkdir()
    run("mount", former, point)
    start(keeper, on_map())
    assert "dos" in keeper.assert_stalled(DISK, "OverwriteRefused")
    start(keeper, on_map(build={"policy": "Overwrite", "confirm": "disk"}))
    assert str(point) in keeper.assert_retrying(DISK, "InUse")
    assert (point / "lost+found").is_dir()
    run("umount", point)
    keeper.settle()
    keeper.assert_ready(DISK)
    assert "gpt" in found_on(Path("/dev/mapper/mpatha"))
    assert not former.exists()
