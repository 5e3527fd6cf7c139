"""The pool of multipath maps: device mapper over two virtual hosts that show one disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.mpath import parse_status
from tests.keeper import Keeper, pool, pool_key, volume, volume_key
from tests.lab.spare import IN_GUEST, MIB, run
from tests.lab.targets import Disk, MultipathMaps

pytestmark = pytest.mark.skipif(not IN_GUEST, reason="needs a kernel whose targets are its own")

MAPS, LUN = pool_key("maps"), volume_key("lun")


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
