"""Pools behind a SCSI host: the kernel's own virtual host (tcm_loop), with LIO's disks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends import errors
from backends.host import scsi
from tests.keeper import Keeper, dir_pool, pool, pool_key, volume, volume_key
from tests.lab.spare import IN_GUEST, MIB, run
from tests.lab.targets import Disk, LoopHost

pytestmark = pytest.mark.skipif(not IN_GUEST, reason="needs a kernel whose targets are its own")

SAN, LUN = pool_key("san"), volume_key("lun")


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(tmp_path / "state")
    yield made
    made.store.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path, "disk0", 64 * MIB)
    yield made
    made.remove()


@pytest.fixture
def host(disk: Disk) -> Iterator[LoopHost]:
    made = LoopHost()
    made.give(0, disk)
    yield made
    made.remove()


def san(host: str, name: str = "san", **spec: Any) -> dict[str, Any]:
    target = {"path": "/dev/disk/by-id"}
    return pool(name, type="scsi", scsi={"adapter": {"name": host}}, target=target, **spec)


def start(keeper: Keeper, *documents: dict[str, Any]) -> None:
    keeper.apply(*documents)
    keeper.settle()


def test_luns_of_a_host_are_volumes_with_their_serial(keeper: Keeper, host: LoopHost) -> None:
    start(keeper, san(host.name), volume("lun", "san", volume_name="unit:0:1:0", capacity="64Mi"))
    keeper.assert_ready(SAN, LUN)
    status = keeper.get(LUN).status
    assert status.path.startswith("/dev/disk/by-id/")
    assert status.key == run("/lib/udev/scsi_id", "-g", "-u", "-d", status.path).strip()
    figures = keeper.get(SAN).status
    assert (figures.capacity, figures.allocation, figures.available) == (64 * MIB, 64 * MIB, 0)


def test_an_unplugged_lun_is_found_again_by_the_next_look(keeper: Keeper, host: LoopHost) -> None:
    start(keeper, san(host.name), volume("lun", "san", volume_name="unit:0:1:0", capacity="64Mi"))
    known = keeper.get(LUN).status
    node = Path(known.path).resolve()
    Path("/sys/block", node.name, "device/delete").write_text("1")
    keeper.settle()
    keeper.assert_ready(LUN)
    assert (keeper.get(LUN).status.path, keeper.get(LUN).status.key) == (known.path, known.key)


def test_another_disk_in_its_place_is_not_the_volume(
    keeper: Keeper, host: LoopHost, disk: Disk, tmp_path: Path
) -> None:
    declared = volume("lun", "san", volume_name="unit:0:1:0", capacity="64Mi")
    start(keeper, san(host.name), declared)
    keeper.assert_ready(LUN)
    known = keeper.get(LUN).status
    host.take(0)
    other = Disk(tmp_path, "other", 64 * MIB)
    try:
        host.give(0, other)
        for _ in range(2):
            keeper.settle()
            told = keeper.assert_stalled(LUN, "DeviceChanged")
            assert known.key in told
            assert (keeper.get(LUN).status.key, keeper.get(LUN).status.origin) == (
                known.key,
                "Adopted",
            )
        host.take(0)
        host.give(0, disk)
        keeper.settle()
        keeper.assert_ready(LUN)
        assert keeper.get(LUN).status.path == known.path
        host.take(0)
        host.give(0, other)
        keeper.settle()
        keeper.delete(LUN)
        keeper.settle()
        assert keeper.gone(LUN)
        start(keeper, declared)
        keeper.assert_ready(LUN)
        status = keeper.get(LUN).status
        assert status.key != known.key
        assert status.key in status.path  # by-id, of this disk and not the former one
    finally:
        host.take(0)
        other.remove()


def test_another_disk_in_its_place_is_not_read_for_a_clone(
    keeper: Keeper, host: LoopHost, tmp_path: Path
) -> None:
    images, copy = dir_pool("images", tmp_path / "images"), volume_key("copy")
    source = volume("lun", "san", volume_name="unit:0:1:0", capacity="64Mi")
    start(keeper, san(host.name), source, images)
    host.take(0)
    other = Disk(tmp_path, "other", 64 * MIB)
    other.file.write_bytes(b"of somebody else".ljust(64 * MIB, b"\0"))
    try:
        host.give(0, other)
        clone = {"clone": {"volumeRef": {"name": "lun"}}}
        start(keeper, volume("copy", "images", capacity="64Mi", source=clone))
        keeper.assert_stalled(LUN, "DeviceChanged")
        assert keeper.truth(copy, "Ready") == "False"
        assert list((tmp_path / "images").iterdir()) == []
    finally:
        host.take(0)
        other.remove()


def test_a_disk_that_is_observed_alone_can_be_cloned(
    keeper: Keeper, host: LoopHost, tmp_path: Path
) -> None:
    source = volume("lun", "san", volume_name="unit:0:1:0", capacity="64Mi", adoption="Observe")
    start(keeper, san(host.name), source, dir_pool("images", tmp_path / "images"))
    clone = {"clone": {"volumeRef": {"name": "lun"}}}
    start(keeper, volume("copy", "images", capacity="64Mi", source=clone))
    keeper.assert_ready(LUN, volume_key("copy"))
    assert keeper.get(LUN).status.origin is None


def test_a_host_is_found_by_its_place_and_unique_id(host: LoopHost) -> None:
    adapter = host.sysfs.resolve().parts[-4]  # where a host of an adapter has its PCI address
    unique_id = int((host.sysfs / "unique_id").read_text())
    assert f"host{scsi.host_behind(adapter, unique_id)}" == host.name
    with pytest.raises(errors.NotFound):
        scsi.host_behind(adapter, unique_id + 77)


def test_a_host_that_is_not_there_is_inaccessible(keeper: Keeper) -> None:
    start(keeper, san("host99"))
    assert "host99" in keeper.assert_retrying(SAN, "Inaccessible")


def test_two_pools_on_one_host_conflict(keeper: Keeper, host: LoopHost) -> None:
    start(keeper, san(host.name))
    start(keeper, san(f"scsi_{host.name}", name="san2"))
    keeper.assert_stalled(pool_key("san2"), "Conflict")


def test_a_lun_without_a_lasting_name_is_told_and_no_volume(
    keeper: Keeper, host: LoopHost, tmp_path: Path
) -> None:
    declared = san(host.name)
    declared["spec"]["target"]["path"] = str(tmp_path)
    start(keeper, declared)
    keeper.assert_ready(SAN)
    assert keeper.get(SAN).status.volumes.total == 0
