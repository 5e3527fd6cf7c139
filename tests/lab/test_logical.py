"""Pools on volume groups: what is theirs alone, beside what the contract asks of every type."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from backends.host import commands
from controller.codecs import libvirtxml
from tests import killing
from tests.keeper import Keeper, pool, pool_key, volume, volume_key
from tests.lab.cable import Cable
from tests.lab.spare import IN_GUEST, MIB, Spares, device_size, found_on, run
from tests.lab.traps import Trap

GROUP = "vg-logical"
POOL = pool_key("fast")
DISK = volume_key("disk")


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(tmp_path / "state")
    yield made
    made.store.close()
    if GROUP in groups():
        run("vgchange", "-q", "-an", GROUP)
        run("vgremove", "-q", "-ff", "--yes", GROUP)


def groups() -> list[str]:
    return run("vgs", "-q", "--noheadings", "-o", "vg_name").split()


def fast(*devices: Path, source: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    named = [{"path": str(item)} for item in devices]
    logical = {"volumeGroup": GROUP, "devices": named, **(source or {})}
    return pool("fast", type="logical", logical=logical, **spec)


def disk(name: str = "disk", **spec: Any) -> dict[str, Any]:
    return volume(name, "fast", **{"capacity": "8Mi", **spec})


def start(keeper: Keeper, *documents: dict[str, Any]) -> None:
    keeper.apply(*documents)
    keeper.settle()


def path(name: str = "disk") -> Path:
    return Path("/dev", GROUP, name)


def size_of(name: str = "disk") -> int:
    return device_size(path(name))


def reported(fields: str, name: str) -> list[str]:
    options = ["--noheadings", "--units", "b", "--nosuffix", "--separator", "|", "-o", fields]
    return [item.strip() for item in run("lvs", *options, f"{GROUP}/{name}").strip().split("|")]


def write(name: str, offset: int, data: bytes) -> None:
    with path(name).open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(data)
        os.fsync(file.fileno())


def read(name: str, offset: int, length: int) -> bytes:
    with path(name).open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(length)


def test_no_trap_is_overwritten_and_each_is_named(keeper: Keeper, trap: Trap) -> None:
    start(keeper, fast(trap.device))
    trap.assert_named_in(keeper.assert_stalled(POOL, "OverwriteRefused"))
    assert GROUP not in groups()
    trap.assert_untouched()


def test_a_trap_beside_a_blank_device_keeps_both_as_they_are(
    keeper: Keeper, device: Spares, trapped: dict[str, Trap]
) -> None:
    blank = device(64 * MIB)
    start(keeper, fast(blank, *(trap.device for trap in trapped.values())))
    message = keeper.assert_stalled(POOL, "OverwriteRefused")
    for trap in trapped.values():
        trap.assert_named_in(message)
    assert run("wipefs", "--noheadings", blank) == ""


def test_what_is_there_is_overwritten_only_by_name_and_never_while_in_use(
    keeper: Keeper, device: Spares, tmp_path: Path
) -> None:
    used, idle = device(64 * MIB), device(64 * MIB)
    point = tmp_path / "point"
    point.mkdir()
    for item in (used, idle):
        run("mkfs.ext4", "-q", item)
    run("mount", used, point)
    overwrite = {"policy": "Overwrite", "confirm": "fast"}
    start(keeper, fast(used, idle, build=overwrite))
    assert str(used) in keeper.assert_stalled(POOL, "OverwriteRefused")
    assert "ext4" in run("blkid", used)
    run("umount", point)
    start(keeper, fast(used, idle, build=overwrite, suspend=False))
    keeper.annotate(POOL, requested_at="again")
    keeper.settle()
    keeper.assert_ready(POOL)


@pytest.mark.timeout(900)  # on a busy machine each of 200 volumes takes a second to make
def test_a_refresh_of_many_volumes_runs_at_most_two_commands(
    keeper: Keeper, device: Spares
) -> None:
    spare = device(1100 * MIB)
    run("vgcreate", "-q", GROUP, spare)
    create = [f"lvcreate -an -Zn -Wn -n lv{item} -l 1 {GROUP}" for item in range(200)]
    run("lvm", input="\n".join([*create, "quit"]).encode())  # one process for all of them
    start(keeper, fast(spare, state="Inactive"))
    keeper.reconcile()
    before = commands.spawned()
    keeper.reconcile()
    assert keeper.get(POOL).status.volumes.total == 200
    assert commands.spawned() - before <= 2


def test_a_size_between_extents_does_not_oscillate(keeper: Keeper, device: Spares) -> None:
    start(keeper, fast(device(64 * MIB)), disk(capacity=5 * MIB + 512))
    keeper.assert_ready(POOL, DISK)
    assert size_of() == 8 * MIB
    assert keeper.planned() == {}
    start(keeper, disk(capacity=8 * MIB - 512))
    assert keeper.planned() == {}
    assert size_of() == 8 * MIB


def test_former_contents_of_the_extents_are_never_seen(keeper: Keeper, device: Spares) -> None:
    start(keeper, fast(device(32 * MIB)))
    run("lvcreate", "-q", "--yes", "-n", "old", "-l", "100%FREE", GROUP)
    write("old", 0, b"secret" * 4 * MIB)
    run("lvremove", "-q", "--yes", f"{GROUP}/old")
    start(keeper, disk())
    keeper.assert_ready(DISK)
    assert read("disk", 0, 8 * MIB).count(0) == 8 * MIB
    write("disk", 0, b"mine")
    start(keeper, disk(capacity="16Mi"))
    keeper.assert_ready(DISK)
    assert read("disk", 0, 16 * MIB).strip(b"\0") == b"mine"


def test_growing_survives_a_kill_between_any_two_steps(
    keeper: Keeper, device: Spares, tmp_path: Path
) -> None:
    spare = device(64 * MIB)

    def prepared(keeper: Keeper) -> None:
        start(keeper, fast(spare), disk(deletion_policy="Delete"))
        run("lvcreate", "-q", "--yes", "-n", "old", "-l", "100%FREE", GROUP)
        write("old", 0, b"secret" * 4 * MIB)
        run("lvremove", "-q", "--yes", f"{GROUP}/old")

    def finished(keeper: Keeper) -> None:
        keeper.assert_ready(DISK)
        assert size_of() == 16 * MIB
        assert read("disk", 8 * MIB, 8 * MIB).count(0) == 8 * MIB
        assert "growing" not in reported("lv_tags", "disk")[0]

    kills = killing.at_every_step(
        tmp_path / "killed",
        lambda keeper: start(keeper, disk(capacity="16Mi", deletion_policy="Delete")),
        prepared=prepared,
        finished=finished,
        undone=lambda keeper: (keeper.delete(DISK), keeper.settle()),
        commands_only=True,
    )
    assert kills == 3


def test_data_past_the_end_is_lost_only_by_name(keeper: Keeper, device: Spares) -> None:
    start(keeper, fast(device(64 * MIB)), disk(capacity="16Mi"))
    write("disk", 12 * MIB, b"data")
    start(keeper, disk(capacity="8Mi", resize={"allowShrink": True}))
    assert "allowDataLoss" in keeper.assert_stalled(DISK, "ShrinkNotAllowed")
    assert size_of() == 16 * MIB
    start(keeper, disk(capacity="8Mi", resize={"allowShrink": True, "allowDataLoss": True}))
    keeper.assert_ready(DISK)
    assert size_of() == 8 * MIB


def test_thin_volumes_take_space_as_they_are_written(keeper: Keeper, device: Spares) -> None:
    thin = {"provisioning": "Thin", "thinPool": {"name": "tp", "size": "32Mi"}}
    start(keeper, fast(device(256 * MIB), source=thin), disk(capacity="128Mi"))
    keeper.assert_ready(POOL, DISK)
    assert reported("pool_lv,lv_size", "disk") == ["tp", str(128 * MIB)]
    status = keeper.get(POOL).status
    assert (status.thin_pool.size, status.thin_pool.data_percent) == (32 * MIB, 0)
    assert keeper.get(DISK).status.allocation == 0
    write("disk", 0, b"x" * 28 * MIB)
    keeper.reconcile()
    assert keeper.get(POOL).status.thin_pool.data_percent >= 80
    assert "has used more than 80% of its space" in keeper.message(POOL)
    thin["thinPool"] = {"name": "tp", "size": "96Mi"}
    start(keeper, fast(keeper_device(keeper), source=thin))
    keeper.assert_ready(POOL)
    assert reported("lv_size", "tp") == [str(96 * MIB)]
    assert "used more than" not in keeper.message(POOL)
    assert keeper.planned() == {}


def keeper_device(keeper: Keeper) -> Path:
    return Path(keeper.get(POOL).spec.logical.devices[0].path)


NEARLY_FULL = "NearlyFull"


def test_a_thin_pool_that_fills_is_told_of_once_at_each_threshold(
    keeper: Keeper, device: Spares
) -> None:
    thin = {"provisioning": "Thin", "thinPool": {"name": "tp", "size": "64Mi"}}
    spare = device(256 * MIB)
    start(keeper, fast(spare, source=thin), disk(capacity="128Mi"))
    assert keeper.truth(POOL, NEARLY_FULL) is None
    for megabytes, reason, told in ((53, "Above80Percent", 1), (62, "Above95Percent", 2)):
        write("disk", 0, b"x" * megabytes * MIB)
        keeper.reconcile()
        assert (keeper.truth(POOL, NEARLY_FULL), keeper.reason(POOL, NEARLY_FULL)) == (
            "True",
            reason,
        )
        assert "Thin pool 'tp'" in keeper.message(POOL, NEARLY_FULL)
        keeper.assert_ready(POOL)
        written = keeper.recorded()
        keeper.reconcile()
        assert keeper.recorded() == written
        assert [item.type for item in keeper.events(POOL) if item.reason == NEARLY_FULL] == [
            "Warning"
        ] * told
    thin["thinPool"] = {"name": "tp", "size": "192Mi"}
    start(keeper, fast(spare, source=thin))
    assert keeper.truth(POOL, NEARLY_FULL) is None
    assert keeper.reasons(POOL).count(NEARLY_FULL) == 2


def test_a_thin_pool_without_space_is_degraded_until_it_grows(
    keeper: Keeper, device: Spares
) -> None:
    thin = {"provisioning": "Thin", "thinPool": {"name": "tp", "size": "32Mi"}}
    spare = device(256 * MIB)
    start(keeper, fast(spare, source=thin), disk(capacity="128Mi"))
    run("lvchange", "-q", "--errorwhenfull", "y", f"{GROUP}/tp")
    with pytest.raises(OSError, match=r"No space|Input/output"):
        write("disk", 0, b"x" * 64 * MIB)
    keeper.settle()
    assert keeper.get(POOL).status.state == "Degraded"
    assert "thin pool 'tp' out_of_data" in keeper.message(POOL)
    thin["thinPool"] = {"name": "tp", "size": "128Mi"}
    start(keeper, fast(spare, source=thin))
    keeper.settle()
    assert keeper.get(POOL).status.state == "Running"
    write("disk", 0, b"x" * 64 * MIB)


def xml_of(keeper: Keeper, name: str) -> ElementTree.Element:
    resource = keeper.get(volume_key(name))
    document = libvirtxml.document(resource, pool_type="logical")
    return ElementTree.fromstring(libvirtxml.format(document))


def test_where_a_volume_stands_is_told_as_libvirt_tells_it(keeper: Keeper, device: Spares) -> None:
    first, second = device(32 * MIB), device(64 * MIB)
    start(keeper, fast(first, second), disk(capacity="8Mi"), disk("large", capacity="40Mi"))
    keeper.assert_ready(volume_key("large"))
    for name in ("disk", "large"):
        kept = {
            (item.path, extent.start, extent.end)
            for item in keeper.get(volume_key(name)).status.source_devices
            for extent in item.extents
        }
        shown = {
            (item.get("path"), int(extent.get("start", "")), int(extent.get("end", "")))
            for item in xml_of(keeper, name).iterfind("source/device")
            for extent in item.iterfind("extent")
        }
        segments = ["--segments", "--noheadings", "--units", "b", "--nosuffix"]
        lines = run("lvs", *segments, "-o", "devices,seg_size", f"{GROUP}/{name}").splitlines()
        pieces = [(line.split()[0], int(line.split()[1])) for line in lines]
        expected = set()
        for place, size in pieces:
            path, _, extent = place.rstrip(")").partition("(")
            expected.add((path, int(extent) * 4 * MIB, int(extent) * 4 * MIB + size))
        assert kept == shown == expected


def test_a_device_that_is_added_and_blank_joins_the_group(keeper: Keeper, device: Spares) -> None:
    first, second = device(32 * MIB), device(32 * MIB)
    start(keeper, fast(first))
    start(keeper, fast(first, second), disk(capacity="40Mi"))
    keeper.settle()
    keeper.assert_ready(POOL, DISK)
    assert run("vgs", "--noheadings", "-o", "pv_count", GROUP).strip() == "2"
    assert keeper.planned() == {}
    written = keeper.recorded()
    keeper.reconcile()
    assert keeper.recorded() == written


def test_a_device_that_is_added_and_carries_anything_stays_as_it_is(
    keeper: Keeper, device: Spares, trap: Trap
) -> None:
    first = device(32 * MIB)
    start(keeper, fast(first))
    overwrite = {"policy": "Overwrite", "confirm": "fast"}
    start(keeper, fast(first, trap.device, build=overwrite))
    trap.assert_named_in(keeper.assert_stalled(POOL, "OverwriteRefused"))
    trap.assert_untouched()
    start(keeper, fast(first), disk())
    keeper.assert_ready(POOL, DISK)


def test_a_device_joins_in_spite_of_a_kill_between_any_two_steps(
    device: Spares, tmp_path: Path
) -> None:
    first, second = device(32 * MIB), device(32 * MIB)

    def finished(keeper: Keeper) -> None:
        keeper.assert_ready(POOL)
        assert run("vgs", "--noheadings", "-o", "pv_count", GROUP).strip() == "2"

    def undone(keeper: Keeper) -> None:
        keeper.delete(POOL)
        keeper.settle()
        assert GROUP not in groups()

    kills = killing.at_every_step(
        tmp_path / "killed",
        lambda keeper: start(keeper, fast(first, second, deletion_policy="Delete")),
        prepared=lambda keeper: start(keeper, fast(first, deletion_policy="Delete")),
        finished=finished,
        undone=undone,
        commands_only=True,
    )
    assert kills == 2


def test_a_device_that_is_taken_off_the_list_stays_and_is_told_of(
    keeper: Keeper, device: Spares
) -> None:
    first, second, third = (device(32 * MIB) for _ in range(3))
    start(keeper, fast(first, second))
    start(keeper, fast(first, third))  # as if a name led to another device now
    keeper.assert_ready(POOL)
    assert f"also stands on {second}" in keeper.message(POOL)
    assert found_on(third) == ""
    assert keeper.planned() == {}


def test_an_exported_group_is_refused_and_left(keeper: Keeper, device: Spares) -> None:
    spare = device(32 * MIB)
    run("vgcreate", "-q", GROUP, spare)
    run("vgexport", "-q", GROUP)
    start(keeper, fast(spare), disk())
    assert "exported (see vgimport)" in keeper.assert_retrying(POOL, "Inaccessible")
    assert "x" in run("vgs", "--noheadings", "-o", "vg_attr", GROUP)
    run("vgimport", "-q", GROUP)
    keeper.settle()
    keeper.assert_ready(POOL, DISK)


@pytest.fixture
def devices_file() -> Iterator[Path]:
    """LVM looks only at devices that this file lists; none at first (lvmdevices(8))."""
    settings, file = Path("/etc/lvm/lvmlocal.conf"), Path("/etc/lvm/devices/system.devices")
    former = settings.read_text() if settings.exists() else None
    settings.write_text("devices {\n use_devicesfile = 1\n}\n")
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    yield file
    for item in file.parent.iterdir():
        if item.is_file():
            item.unlink()
    if former is None:
        settings.unlink()
    else:
        settings.write_text(former)


@pytest.mark.skipif(not IN_GUEST, reason="sets up LVM of the whole host")
def test_devices_that_a_group_is_made_of_join_the_devices_file(
    keeper: Keeper, device: Spares, devices_file: Path
) -> None:
    first, second = device(32 * MIB), device(32 * MIB)
    start(keeper, fast(first), disk())
    keeper.assert_ready(POOL, DISK)
    assert str(first) in run("lvm", "lvmdevices")
    start(keeper, fast(first, second))
    keeper.assert_ready(POOL)
    assert str(second) in run("lvm", "lvmdevices")
    assert keeper.planned() == {}


@pytest.mark.skipif(not IN_GUEST, reason="sets up LVM of the whole host")
def test_a_group_on_devices_that_the_devices_file_leaves_out_is_neither_absent_nor_built_over(
    keeper: Keeper, device: Spares, devices_file: Path
) -> None:
    spare = device(32 * MIB)
    run("vgcreate", "-q", GROUP, spare)
    run("lvm", "lvmdevices", "--yes", "--deldev", spare)
    assert GROUP not in groups()
    start(keeper, fast(spare))
    assert "LVM does not see it" in keeper.assert_retrying(POOL, "Inaccessible")
    run("lvm", "lvmdevices", "--yes", "--adddev", spare)
    keeper.settle()
    keeper.assert_ready(POOL)


def test_a_thin_clone_shares_extents_and_outlives_its_source(
    keeper: Keeper, device: Spares
) -> None:
    thin = {"provisioning": "Thin"}
    start(
        keeper,
        fast(device(128 * MIB), source=thin),
        disk(capacity="64Mi", deletion_policy="Delete"),
    )
    write("disk", 0, b"original")
    start(keeper, disk("copy", capacity="96Mi", source={"clone": {"volumeRef": {"name": "disk"}}}))
    wait_for(keeper, "copy")
    assert reported("origin,lv_size", "copy") == ["disk", str(96 * MIB)]
    write("disk", 0, b"modified")
    assert read("copy", 0, 8) == b"original"
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)
    keeper.assert_ready(volume_key("copy"))
    assert read("copy", 0, 8) == b"original"


def test_a_thick_clone_is_a_whole_copy(keeper: Keeper, device: Spares) -> None:
    start(keeper, fast(device(64 * MIB)), disk())
    write("disk", MIB, b"original")
    start(keeper, disk("copy", capacity="12Mi", source={"clone": {"volumeRef": {"name": "disk"}}}))
    wait_for(keeper, "copy")
    assert reported("origin,lv_size", "copy") == ["", str(12 * MIB)]
    assert read("copy", 0, 12 * MIB).strip(b"\0") == b"original"


def wait_for(keeper: Keeper, name: str) -> None:
    """Let the job that fills a volume come to its end."""
    assert keeper.engine.jobs.idle(120)
    keeper.settle()
    keeper.assert_ready(volume_key(name))


def test_a_snapshot_stands_on_its_origin(keeper: Keeper, device: Spares) -> None:
    origin = {"volumeRef": {"name": "disk"}, "format": "raw"}
    start(keeper, fast(device(64 * MIB)), disk(deletion_policy="Delete"))
    write("disk", 0, b"before")
    start(keeper, disk("snap", capacity=None, allocation="4Mi", backing_store=origin))
    snap = volume_key("snap")
    keeper.assert_ready(snap)
    write("disk", 0, b"after!")
    assert read("snap", 0, 6) == b"before"
    status = keeper.get(snap).status
    assert (status.capacity, status.allocation) == (8 * MIB, 4 * MIB)
    assert [link.path for link in status.backing_chain] == [str(path())]
    keeper.delete(DISK)
    keeper.settle()
    assert "snap" in keeper.assert_retrying(DISK, "DeletionRefused")
    assert read("snap", 0, 6) == b"before"
    write("disk", 0, b"x" * 8 * MIB)
    keeper.settle()
    assert "ran full" in keeper.message(snap)


def test_less_allocation_than_capacity_is_a_snapshot_of_nothing(
    keeper: Keeper, device: Spares
) -> None:
    start(keeper, fast(device(64 * MIB)), disk(capacity="256Mi", allocation="8Mi"))
    keeper.assert_ready(DISK)
    assert size_of() == 256 * MIB
    status = keeper.get(DISK).status
    assert (status.capacity, status.allocation) == (256 * MIB, 8 * MIB)
    assert keeper.planned() == {}
    start(keeper, disk(capacity="300Mi", allocation="8Mi"))
    keeper.assert_stalled(DISK, "Unsupported")


def test_who_holds_a_volume_is_named_and_nothing_is_done(
    keeper: Keeper, device: Spares, tmp_path: Path
) -> None:
    point = tmp_path / "point"
    point.mkdir()
    start(keeper, fast(device(64 * MIB)), disk(deletion_policy="Delete"))
    run("mkfs.ext2", "-q", path())
    run("mount", path(), point)
    start(keeper, fast(keeper_device(keeper), state="Inactive"))
    assert str(point) in keeper.assert_retrying(POOL, "InUse")
    assert keeper.get(POOL).status.state == "Running"
    start(keeper, fast(keeper_device(keeper)))
    keeper.delete(DISK)
    keeper.settle()
    assert str(point) in keeper.assert_retrying(DISK, "InUse")
    run("umount", point)
    keeper.settle()
    assert keeper.gone(DISK)


def test_two_groups_of_one_name_are_told_by_uuid(keeper: Keeper, device: Spares) -> None:
    first = Cable(device, 32 * MIB)
    run("vgcreate", "-q", GROUP, first.device)
    first.cut()
    run("vgcreate", "-q", GROUP, device(32 * MIB))
    uuids = run("vgs", "-q", "--noheadings", "-o", "vg_uuid").split()
    first.mend()
    start(keeper, fast())
    message = keeper.assert_retrying(POOL, "Inaccessible")
    assert uuids[0] in message
    assert "Several volume groups" in message
    run("vgremove", "-q", "--select", f"vg_uuid={uuids[0]}")
    keeper.settle()
    keeper.assert_ready(POOL)


def test_a_group_of_the_name_on_other_devices_is_not_taken_over(
    keeper: Keeper, device: Spares
) -> None:
    run("vgcreate", "-q", GROUP, device(32 * MIB))
    start(keeper, fast(device(32 * MIB)))
    assert "none is declared" in keeper.assert_stalled(POOL, "OverwriteRefused")
    assert "poolkeeper" not in run("vgs", "--noheadings", "-o", "vg_tags", GROUP)


def test_a_group_that_lost_a_device_is_degraded_and_comes_back(
    keeper: Keeper, device: Spares
) -> None:
    cables = [Cable(device, 32 * MIB), Cable(device, 32 * MIB)]
    start(keeper, fast(*(item.device for item in cables)), disk())
    keeper.assert_ready(POOL, DISK)
    cables[1].cut()
    keeper.settle()
    status = keeper.get(POOL).status
    assert status.state == "Degraded"
    assert "missing" in keeper.message(POOL)
    assert status.volumes.total == 1
    keeper.assert_ready(DISK)
    cables[1].mend()
    keeper.settle()
    assert keeper.get(POOL).status.state == "Running"
    keeper.assert_ready(POOL, DISK)


def test_what_is_to_be_skipped_is_not_activated(keeper: Keeper, device: Spares) -> None:
    spare = device(64 * MIB)
    run("vgcreate", "-q", GROUP, spare)
    run("lvcreate", "-q", "--yes", "-n", "skipped", "-L", "4M", GROUP)
    run("lvchange", "-q", "-an", "--setactivationskip", "y", f"{GROUP}/skipped")
    start(keeper, fast(spare), disk())
    keeper.assert_ready(POOL, DISK)
    assert reported("lv_active", "skipped") == [""]
    assert keeper.planned() == {}


@pytest.mark.parametrize("name", ["snapshot1", "a_tdata", "with space", "ümlaut", "x" * 120])
def test_names_that_lvm_can_not_have_are_refused(keeper: Keeper, device: Spares, name: str) -> None:
    start(keeper, fast(device(32 * MIB)), disk(volume_name=name))
    keeper.assert_stalled(DISK, "InvalidSpec")


@pytest.mark.parametrize(
    ("length", "spec"),
    [
        (110, {"capacity": None, "allocation": "4Mi", "backing_store": {"path": str(path())}}),
        (101, {"capacity": "64Mi", "allocation": "4Mi"}),
    ],
)
def test_a_name_has_room_for_the_devices_beneath_a_snapshot(
    keeper: Keeper, device: Spares, length: int, spec: dict[str, Any]
) -> None:
    if "backing_store" in spec:
        spec["backing_store"]["format"] = "raw"
    start(keeper, fast(device(64 * MIB)), disk())
    start(keeper, disk("fits", volume_name="x" * length, **spec))
    keeper.assert_ready(volume_key("fits"))
    assert path("x" * length).exists()
    start(keeper, disk("long", volume_name="y" * (length + 1), **spec))
    assert "too long" in keeper.assert_stalled(volume_key("long"), "InvalidSpec")


def test_what_lvm_says_of_a_failure_is_told(keeper: Keeper, device: Spares) -> None:
    start(keeper, fast(device(64 * MIB)), disk(volume_name="o" * 114))
    origin = {"volumeRef": {"name": "disk"}, "format": "raw"}
    start(keeper, disk("snap", capacity=None, allocation="4Mi", backing_store=origin))
    told = keeper.message(volume_key("snap"))
    assert "Command Log" not in told
    assert "ended with status 5: " in told


def test_a_volume_that_could_not_grow_keeps_what_somebody_else_adds_to_it(
    keeper: Keeper, device: Spares
) -> None:
    start(keeper, fast(device(64 * MIB)), disk())
    start(keeper, disk(capacity="200Mi"))
    keeper.assert_retrying(DISK, "NoSpace")
    start(keeper, disk())
    run("lvextend", "-q", "-L", "24M", f"{GROUP}/disk")
    write("disk", 20 * MIB, b"theirs")
    start(keeper, disk(capacity="24Mi"))
    keeper.assert_ready(DISK)
    assert read("disk", 20 * MIB, 6) == b"theirs"


def test_a_device_on_a_volume_that_is_named_like_the_groups_own_is_a_user(
    keeper: Keeper, device: Spares
) -> None:
    start(keeper, fast(device(64 * MIB)), disk(capacity="16Mi"))
    crypt = f"{GROUP.replace('-', '--')}-crypt"
    run("dmsetup", "create", crypt, "--table", f"0 32768 linear {path()} 0")
    smaller = disk(capacity="8Mi", resize={"allowShrink": True, "allowDataLoss": True})
    start(keeper, smaller)
    assert crypt in keeper.assert_retrying(DISK, "InUse")
    assert size_of() == 16 * MIB
    run("dmsetup", "remove", crypt)
    start(keeper, smaller)
    keeper.settle()
    assert size_of() == 8 * MIB


def test_groups_are_found_as_sources(device: Spares, keeper: Keeper) -> None:
    spare = device(32 * MIB)
    run("vgcreate", "-q", GROUP, spare)
    found = keeper.engine.examiner.backend("logical").find_sources(None)
    ours = [item for item in found if item.volume_group == GROUP]
    assert [[item.path for item in source.devices] for source in ours] == [[str(spare)]]
