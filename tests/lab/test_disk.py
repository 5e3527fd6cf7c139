"""Disks and their partitions: loop devices and the kernel's simulated SCSI disks."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backends import errors, filling
from controller.codecs import libvirtxml
from controller.secrets import FileSecrets
from tests import killing
from tests.keeper import (
    Keeper,
    make_image,
    operation,
    operation_key,
    pool,
    pool_key,
    volume,
    volume_key,
)
from tests.lab.luks import LUKS, MOST_OF_A_HEADER, decrypted, make_key
from tests.lab.spare import IN_GUEST, MIB, Spares, device_size, found_on, partition, run
from tests.lab.targets import Disk, LoopHost, wait_until
from tests.lab.traps import Trap

DISK = pool_key("disk")
GIB = 2**30


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(tmp_path / "state")
    yield made
    made.store.close()


def disk_pool(device: Path | str, format: str = "gpt", **spec: Any) -> dict[str, Any]:
    source = {"device": {"path": str(device)}, "format": format}
    return pool("disk", type="disk", disk=source, target={"path": "/dev"}, **spec)


def part(name: str, capacity: str = "4Mi", **spec: Any) -> dict[str, Any]:
    return volume(name, "disk", **{"capacity": capacity, "deletionPolicy": "Delete", **spec})


def start(keeper: Keeper, *documents: dict[str, Any]) -> None:
    keeper.apply(*documents)
    keeper.settle()


def entries(device: Path | str) -> dict[str, dict[str, Any]]:
    """The table's entries by name, where they have one, else by node."""
    table = json.loads(run("sfdisk", "--json", device))["partitiontable"]
    return {item.get("name") or item["node"]: item for item in table.get("partitions", ())}


def paths(keeper: Keeper, *names: str) -> dict[str, str]:
    return {name: keeper.get(volume_key(name)).status.path for name in names}


def test_a_trap_is_never_built_over(keeper: Keeper, trap: Trap) -> None:
    label = "dos" if "gpt" in trap.words else "gpt"
    start(keeper, disk_pool(trap.device, label), part("a"))
    told = keeper.assert_stalled(DISK, "OverwriteRefused")
    assert any(word in told for word in (*trap.words, "stands on it"))
    assert str(trap.device) in told
    trap.assert_untouched()


def test_what_is_there_is_overwritten_only_by_name_and_once(keeper: Keeper, device: Spares) -> None:
    made = device(128 * MIB)
    run("mkfs.ext4", "-q", made)
    start(keeper, disk_pool(made, build={"policy": "Overwrite", "confirm": "disk"}))
    keeper.assert_ready(DISK)
    assert found_on(made).split()[0] == "gpt"
    start(keeper, part("a"))
    keeper.assert_ready(volume_key("a"))
    assert list(entries(made)) == ["a"]


def test_what_is_mounted_is_not_overwritten_even_by_name(
    keeper: Keeper, device: Spares, tmp_path: Path
) -> None:
    made = device(128 * MIB)
    run("mkfs.ext4", "-q", made)
    point = tmp_path / "point"
    point.mkdir()
    run("mount", made, point)
    start(keeper, disk_pool(made, build={"policy": "Overwrite", "confirm": "disk"}))
    assert str(point) in keeper.assert_retrying(DISK, "InUse")
    assert "ext4" in found_on(made)


def test_partitions_are_aligned_named_and_shown(keeper: Keeper, device: Spares) -> None:
    made = device(128 * MIB)
    start(
        keeper,
        disk_pool(made),
        part("one", "5000Ki"),
        part("two", "8Mi", volume_name="two words", format="linux"),
    )
    keeper.assert_ready(DISK, volume_key("one"), volume_key("two"))
    found = entries(made)
    assert all(item["start"] * 512 % MIB == 0 for item in found.values())
    assert found["one"]["size"] * 512 == 5000 * 1024
    assert found["two words"]["size"] * 512 == 8 * MIB
    node = paths(keeper, "one")["one"]
    assert device_size(node) == 5000 * 1024
    status = keeper.get(DISK).status
    assert status.capacity == status.allocation + status.available == device_size(made)
    assert keeper.planned() == {}


def test_old_contents_do_not_show_through(keeper: Keeper, device: Spares) -> None:
    made = device(512 * MIB)
    start(keeper, disk_pool(made))
    makers = {
        "ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"],
        "btrfs": ["mkfs.btrfs", "-q", "-f"], "swap": ["mkswap", "-q"],
        "pv": ["pvcreate", "-q", "-ff", "-y"],
    }  # fmt: skip
    for name, argv in makers.items():
        size = "310Mi" if name == "xfs" else "120Mi"
        start(keeper, part(name, size))
        node = paths(keeper, name)[name]
        run(*argv, node)
        assert found_on(Path(node)) != ""
        keeper.delete(volume_key(name))
        keeper.settle()
        start(keeper, part("fresh", size))
        assert found_on(Path(paths(keeper, "fresh")["fresh"])) == "", name
        keeper.delete(volume_key("fresh"))
        keeper.settle()
        assert entries(made) == {}


def test_a_partition_grows_into_what_is_free_behind_it_and_no_further(
    keeper: Keeper, device: Spares
) -> None:
    made = device(64 * MIB)
    start(keeper, disk_pool(made), part("one"))
    start(keeper, part("two"))
    start(keeper, part("two", "20Mi"))
    keeper.assert_ready(volume_key("two"))
    node = paths(keeper, "two")["two"]
    assert device_size(node) == 20 * MIB
    start(keeper, part("one", "8Mi"))
    assert "behind it" in keeper.assert_retrying(volume_key("one"), "NoSpace")
    keeper.delete(volume_key("two"))
    keeper.settle()
    keeper.assert_ready(volume_key("one"))
    assert entries(made)["one"]["size"] * 512 == 8 * MIB


def test_a_partition_in_use_holds_up_no_other(
    keeper: Keeper, device: Spares, tmp_path: Path
) -> None:
    made = device(128 * MIB)
    start(keeper, disk_pool(made), part("used", "16Mi"))
    node = paths(keeper, "used")["used"]
    run("mkfs.ext4", "-q", node)
    point = tmp_path / "point"
    point.mkdir()
    run("mount", node, point)
    start(keeper, part("other", "8Mi"))
    keeper.assert_ready(volume_key("other"))
    assert Path(paths(keeper, "other")["other"]).is_block_device()
    start(keeper, part("other", "12Mi"))
    keeper.assert_ready(volume_key("other"))
    keeper.delete(volume_key("used"))
    keeper.settle()
    assert str(point) in keeper.assert_retrying(volume_key("used"), "InUse")
    assert (point / "lost+found").is_dir()
    assert set(entries(made)) == {"used", "other"}
    run("umount", point)
    keeper.settle()
    assert keeper.gone(volume_key("used"))
    keeper.assert_ready(volume_key("other"))


def test_dos_uses_primaries_then_the_extended_one(keeper: Keeper, device: Spares) -> None:
    made = device(256 * MIB)
    start(keeper, disk_pool(made, "dos"))
    for name in ("p1", "p2", "p3"):
        start(keeper, part(name))
    start(keeper, part("ext", "100Mi", format="extended"))
    for name in ("l1", "l2", "l3"):
        start(keeper, part(name))
    names = ("p1", "p2", "p3", "ext", "l1", "l2", "l3")
    keeper.assert_ready(DISK, *(volume_key(name) for name in names))
    numbered = {name: str(partition(made, number)) for number, name in enumerate(names, start=1)}
    assert paths(keeper, *names) == numbered
    start(keeper, part("l3", "10Mi"))
    keeper.assert_ready(volume_key("l3"))
    start(keeper, part("l1", "10Mi"))
    assert "only the last" in keeper.assert_retrying(volume_key("l1"), "NoSpace")
    start(keeper, part("l1"), part("big", str(device_size(made) - 100 * MIB)))
    assert "largest stretch" in keeper.assert_retrying(volume_key("big"), "NoSpace")
    keeper.delete(volume_key("big"))
    # A logical partition goes, and the names of the others stay with their contents.
    run("mkfs.ext2", "-q", "-L", "third", paths(keeper, "l3")["l3"])
    keeper.delete(volume_key("l1"))
    keeper.settle()
    keeper.assert_ready(volume_key("l2"), volume_key("l3"))
    moved = paths(keeper, "l2", "l3")
    assert moved == {"l2": str(partition(made, 5)), "l3": str(partition(made, 6))}
    assert "third" in run("blkid", "-p", moved["l3"])
    assert keeper.planned() == {}


def test_a_fifth_primary_is_refused_with_a_way_out(keeper: Keeper, device: Spares) -> None:
    made = device(64 * MIB)
    start(keeper, disk_pool(made, "dos"), *(part(f"p{n}") for n in range(4)))
    start(keeper, part("fifth"))
    assert "extended" in keeper.assert_retrying(volume_key("fifth"), "NoSpace")
    assert len(entries(made)) == 4


def test_a_logical_partition_before_one_in_use_stays(
    keeper: Keeper, device: Spares, tmp_path: Path
) -> None:
    made = device(128 * MIB)
    start(keeper, disk_pool(made, "dos"), part("ext", "100Mi", format="extended"))
    for name in ("p1", "p2", "p3"):
        start(keeper, part(name))
    start(keeper, part("l1"))
    start(keeper, part("l2"))
    node = paths(keeper, "l2")["l2"]
    run("mkfs.ext2", "-q", node)
    point = tmp_path / "point"
    point.mkdir()
    run("mount", node, point)
    keeper.delete(volume_key("l1"))
    keeper.settle()
    assert "another number" in keeper.assert_retrying(volume_key("l1"), "InUse")
    assert Path(node).is_block_device()
    run("umount", point)
    keeper.settle()
    assert keeper.gone(volume_key("l1"))


def test_an_extended_partition_is_deleted_only_when_it_is_empty(
    keeper: Keeper, device: Spares
) -> None:
    made = device(128 * MIB)
    start(keeper, disk_pool(made, "dos"), part("ext", "60Mi", format="extended"))
    for name in ("p1", "p2", "p3"):
        start(keeper, part(name))
    start(keeper, part("inside"))
    keeper.delete(volume_key("ext"))
    keeper.settle()
    assert "inside" in keeper.assert_retrying(volume_key("ext"), "DeletionRefused")
    assert len(entries(made)) == 5
    keeper.delete(volume_key("inside"))
    keeper.settle()
    assert keeper.gone(volume_key("ext"))


@pytest.mark.parametrize("label", ["sun", "dvh", "mac", "bsd"])
def test_labels_that_parted_writes(keeper: Keeper, device: Spares, label: str) -> None:
    made = device(256 * MIB)
    start(keeper, disk_pool(made, label), part("one", "16Mi"))
    keeper.assert_ready(DISK, volume_key("one"))
    start(keeper, part("two", "16Mi"))
    keeper.assert_ready(DISK, volume_key("two"))
    assert label in run("parted", "-s", "-m", made, "print")
    node = paths(keeper, "two")["two"]
    assert device_size(node) == keeper.get(volume_key("two")).status.capacity
    run("udevadm", "settle")  # parted had the label read anew, which makes the nodes anew
    written = keeper.recorded()
    keeper.reconcile()
    assert keeper.recorded() == written
    keeper.delete(volume_key("one"))
    keeper.settle()
    assert keeper.gone(volume_key("one"))
    keeper.assert_ready(volume_key("two"))
    assert paths(keeper, "two")["two"] == node


def test_a_label_of_strangers_is_adopted_with_its_partitions(
    keeper: Keeper, device: Spares
) -> None:
    made = device(64 * MIB)
    script = 'label: gpt\nsize=8192, name="theirs"\nsize=8192\n'
    run("sfdisk", "-q", made, input=script.encode())
    run("udevadm", "settle")
    start(keeper, disk_pool(made), part("theirs"))
    keeper.assert_ready(DISK, volume_key("theirs"))
    assert keeper.get(volume_key("theirs")).status.origin == "Adopted"
    assert [item.name for item in keeper.get(DISK).status.discovered] == ["part2"]
    unnamed = partition(made, 2).name
    start(keeper, part(unnamed))
    keeper.assert_ready(volume_key(unnamed))
    keeper.delete(volume_key("theirs"))
    keeper.settle()
    assert keeper.gone(volume_key("theirs"))
    assert len(entries(made)) == 2


def test_partitions_of_strangers_under_one_name_are_told_apart(
    keeper: Keeper, device: Spares
) -> None:
    made = device(64 * MIB)
    script = 'label: gpt\nsize=8192, name="part2"\nsize=8192, name="part2"\n'
    run("sfdisk", "-q", made, input=script.encode())
    run("udevadm", "settle")
    start(keeper, disk_pool(made))
    keeper.assert_ready(DISK)
    assert [item.name for item in keeper.get(DISK).status.discovered] == ["part2", "part2-2"]


def test_a_table_without_an_entry_left_is_told_of(keeper: Keeper, device: Spares) -> None:
    made = device(64 * MIB)
    run("sfdisk", "-q", made, input=b"label: gpt\ntable-length: 4\n" + 4 * b"size=8192\n")
    run("udevadm", "settle")
    start(keeper, disk_pool(made), part("fifth"))
    assert "all 4 entries" in keeper.assert_retrying(volume_key("fifth"), "NoSpace")


def test_a_partition_that_a_stranger_put_in_the_place_of_ours_is_not_ours(
    keeper: Keeper, device: Spares
) -> None:
    for label in ("gpt", "dos"):
        made = device(64 * MIB)
        document = disk_pool(made, label)
        document["metadata"]["name"] = name = f"disk-{label}"
        declared = part(f"mine-{label}")
        declared["spec"]["poolRef"]["name"] = name
        start(keeper, document, declared)
        keeper.assert_ready(volume_key(f"mine-{label}"))
        (ours,) = entries(made).values()
        run("partx", "--delete", "--nr", "1", made)
        quiet = ("sfdisk", "-q", "--no-reread", "--no-tell-kernel")
        run(*quiet, "--delete", made, "1")
        run(*quiet, "--append", made, input=f"start={ours['start']}, size=16384\n".encode())
        keeper.delete(volume_key(f"mine-{label}"))
        keeper.settle()
        assert keeper.gone(volume_key(f"mine-{label}"))
        assert len(entries(made)) == 1


def test_free_extents_are_told(keeper: Keeper, device: Spares) -> None:
    made = device(64 * MIB)
    start(keeper, disk_pool(made), part("one"), part("two"))
    (free,) = keeper.get(DISK).status.free_extents
    found = entries(made)
    last = max(found.values(), key=lambda item: int(item["start"]))
    assert free.start == (last["start"] + last["size"]) * 512
    assert free.end == device_size(made) // MIB * MIB - MIB  # gpt has a copy at the end
    shown = libvirtxml.format(libvirtxml.document(keeper.get(DISK)))
    assert f"<freeExtent start='{free.start}' end='{free.end}'/>" in shown
    volume_shown = libvirtxml.format(
        libvirtxml.document(keeper.get(volume_key("one")), pool_type="disk")
    )
    assert f"<device path='{made}'>" in volume_shown
    begin = found["one"]["start"] * 512
    assert f"<extent start='{begin}' end='{begin + 4 * MIB}'/>" in volume_shown
    keeper.delete(volume_key("one"))
    keeper.settle()
    ends = sorted(item["start"] * 512 for item in entries(made).values())
    assert {item.end for item in keeper.get(DISK).status.free_extents} >= set(ends) - {MIB}


def test_disks_of_4096_byte_sectors(keeper: Keeper, device: Spares) -> None:
    if not IN_GUEST:
        pytest.skip("sectors are what the disk has")
    made = device(64 * MIB, sector=4096)
    start(keeper, disk_pool(made), part("one", "5Mi"))
    keeper.assert_ready(DISK, volume_key("one"))
    start(keeper, part("one", "9Mi"))
    keeper.assert_ready(volume_key("one"))
    assert device_size(paths(keeper, "one")["one"]) == 9 * MIB


@pytest.fixture
def scsi_disk(tmp_path: Path) -> Iterator[Path]:
    disk = Disk(tmp_path, "disk0", 96 * MIB)
    host = LoopHost()
    host.give(0, disk)
    run("udevadm", "settle")
    yield next(Path("/dev/disk/by-id").glob("wwn-0x*"))
    host.remove()
    disk.remove()


@pytest.mark.skipif(not IN_GUEST, reason="needs a virtual SCSI host")
def test_a_scsi_disk_that_is_unplugged_and_comes_back(keeper: Keeper, scsi_disk: Path) -> None:
    start(keeper, disk_pool(scsi_disk), part("one"))
    keeper.assert_ready(DISK, volume_key("one"))
    node = scsi_disk.resolve()
    assert paths(keeper, "one")["one"] == f"{node}1"
    device = Path("/sys/block", node.name, "device").resolve()
    host = next(item for item in device.parts if item.startswith("host"))
    with open(f"{node}1", "rb"):  # by somebody who uses it, and keeps its name from others
        (device / "delete").write_text("1")
        run("udevadm", "settle")
        keeper.settle()
        keeper.assert_retrying(DISK, "Inaccessible")
        assert keeper.get(DISK).status.state == "Inaccessible"
        keeper.assert_retrying(volume_key("one"), "PoolNotReady")
        Path("/sys/class/scsi_host", host, "scan").write_text("- - -")
        wait_until(scsi_disk.exists)
        run("udevadm", "settle")
        keeper.settle()
        keeper.assert_ready(DISK, volume_key("one"))
        assert paths(keeper, "one")["one"] == f"{scsi_disk.resolve()}1"


def test_two_pools_on_one_disk_by_other_names_conflict(
    keeper: Keeper, device: Spares, tmp_path: Path
) -> None:
    made = device(64 * MIB)
    link = tmp_path / "link"
    link.symlink_to(made)
    start(keeper, disk_pool(made))
    other = disk_pool(link)
    other["metadata"]["name"] = "disk2"
    start(keeper, other)
    keeper.assert_stalled(pool_key("disk2"), "Conflict")


def test_a_name_that_gpt_can_not_hold_is_refused(keeper: Keeper, device: Spares) -> None:
    start(keeper, disk_pool(device(64 * MIB)), part("long", volume_name="x" * 37),
          part("quoted", volume_name='a"b'), part("wide", volume_name="é" * 36))  # fmt: skip
    for name in ("long", "quoted"):
        assert "36 characters" in keeper.assert_stalled(volume_key(name), "InvalidSpec")
    keeper.assert_ready(volume_key("wide"))


CLONE = {"clone": {"volumeRef": {"name": "base"}}}
COPY = volume_key("copy")


def fill_base(keeper: Keeper, *documents: dict[str, Any]) -> None:
    start(keeper, *documents)
    with open(paths(keeper, "base")["base"], "r+b", buffering=0) as file:
        file.write(b"begin")
        file.seek(3 * MIB)
        file.write(b"end")
        os.fsync(file.fileno())


def contents(keeper: Keeper, name: str = "copy") -> bytes:
    return Path(paths(keeper, name)[name]).read_bytes()


def filled(capacity: int) -> bytes:
    return (b"begin".ljust(3 * MIB, b"\0") + b"end").ljust(capacity, b"\0")


@pytest.mark.parametrize("label", ["gpt", "dos", "mac"])
def test_a_clone_is_a_whole_copy_under_its_own_name(
    keeper: Keeper, device: Spares, label: str
) -> None:
    made = device(128 * MIB)
    Path(made).write_bytes(b"former" * (64 * MIB // 6))
    build = {"policy": "Overwrite", "confirm": "disk"}
    fill_base(keeper, disk_pool(made, label, build=build), part("base"))
    start(keeper, part("copy", "9Mi", source=CLONE))
    keeper.assert_ready(DISK, COPY)
    assert contents(keeper) == filled(9 * MIB)
    assert keeper.get(COPY).status.origin == "Created"
    if label != "mac":  # sfdisk does not know it
        assert len(entries(made)) == 2
    if label == "gpt":
        assert set(entries(made)) == {"base", "copy"}
        node = paths(keeper, "copy")["copy"]
        assert "by-partlabel/copy" in run("udevadm", "info", "--query=symlink", node)
    assert keeper.planned() == {}


def test_a_logical_partition_is_filled_like_any_other(keeper: Keeper, device: Spares) -> None:
    made = device(128 * MIB)
    start(keeper, disk_pool(made, "dos"))
    fill_base(keeper, part("ext", "60Mi", format="extended"), part("base"))
    start(keeper, part("p2"), part("p3"))
    start(keeper, part("copy", source=CLONE))
    keeper.assert_ready(COPY)
    assert paths(keeper, "copy")["copy"] == str(partition(made, 5))
    assert contents(keeper) == filled(4 * MIB)


def test_an_image_becomes_a_partition_of_its_capacity(
    keeper: Keeper, device: Spares, tmp_path: Path
) -> None:
    image = tmp_path / "image.qcow2"
    make_image(image, "12M")
    run("qemu-io", "-c", "write -P 7 5M 1M", image)
    source = {"file": {"path": str(image), "format": "qcow2"}}
    start(keeper, disk_pool(device(64 * MIB)), part("copy", capacity=None, source=source))
    keeper.assert_ready(COPY)
    assert contents(keeper) == bytes(5 * MIB) + b"\7" * MIB + bytes(6 * MIB)


def test_what_is_being_filled_is_no_volume_and_nobody_else_gets_its_place(
    keeper: Keeper, device: Spares, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = device(64 * MIB)
    fill_base(keeper, disk_pool(made), part("base"))
    go_on = threading.Event()
    real = filling.fill

    def slowly(*arguments: Any) -> None:
        assert go_on.wait(60)
        real(*arguments)

    monkeypatch.setattr(filling, "fill", slowly)
    keeper.apply(part("copy", "16Mi", source=CLONE))
    keeper.reconcile()
    wait_until(lambda: len(entries(made)) == 2)
    keeper.apply(part("other", "16Mi"))
    for _ in range(3):
        keeper.reconcile()
    keeper.assert_ready(DISK, volume_key("other"))
    assert keeper.get(DISK).status.volumes.total == 2
    assert keeper.get(DISK).status.discovered == ()
    assert keeper.get(COPY).status.path is None
    go_on.set()
    keeper.settle()
    keeper.assert_ready(COPY)
    assert contents(keeper) == filled(16 * MIB)
    bounds = sorted(
        (item["start"], item["start"] + item["size"]) for item in entries(made).values()
    )
    assert all(one[1] <= next[0] for one, next in pairwise(bounds))


def test_a_source_that_fails_leaves_no_partition(
    keeper: Keeper, device: Spares, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = device(64 * MIB)
    fill_base(keeper, disk_pool(made), part("base"))

    def fails(*arguments: Any) -> None:
        raise errors.Interrupted("The source is gone.")

    monkeypatch.setattr(filling, "fill", fails)
    start(keeper, part("copy", source=CLONE))
    keeper.assert_retrying(COPY, "Interrupted")
    assert set(entries(made)) == {"base"}
    keeper.assert_ready(DISK)


@pytest.mark.parametrize(("label", "keeps_state"), [("gpt", True), ("gpt", False), ("dos", True)])
def test_a_kill_while_filling_leaves_no_partition_of_the_name(
    device: Spares, tmp_path: Path, label: str, keeps_state: bool
) -> None:
    made = device(64 * MIB)
    declared = part("copy", "8Mi", source=CLONE)

    def killed() -> None:
        found = entries(made)
        if label == "gpt" and "copy" in found:
            start = found["copy"]["start"] * 512
            assert Path(made).read_bytes()[start : start + 8 * MIB] == filled(8 * MIB)
        if not keeps_state:
            shutil.rmtree(tmp_path / "state" / "marks")

    def finished(keeper: Keeper) -> None:
        keeper.assert_ready(DISK, COPY)
        assert contents(keeper) == filled(8 * MIB)
        assert len(entries(made)) == 2
        assert keeper.get(DISK).status.volumes.total == 2

    def undone(keeper: Keeper) -> None:
        keeper.delete(COPY, volume_key("base"))
        keeper.settle()
        assert entries(made) == {}

    kills = killing.at_every_step(
        tmp_path / "state",
        lambda keeper: start(keeper, declared),
        prepared=lambda keeper: fill_base(keeper, disk_pool(made, label), part("base")),
        finished=finished,
        undone=undone,
        killed=killed,
        commands_only=True,
        beside=killing.MARKS_KEPT,
    )
    assert kills == (4 if label == "gpt" else 3)


@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_growing_survives_a_kill_between_any_two_steps(
    device: Spares, tmp_path: Path, label: str
) -> None:
    made = device(64 * MIB)

    def finished(keeper: Keeper) -> None:
        keeper.assert_ready(DISK, volume_key("base"))
        assert contents(keeper, "base") == filled(12 * MIB)
        assert keeper.get(volume_key("base")).status.origin == "Created"
        assert keeper.planned() == {}

    def undone(keeper: Keeper) -> None:
        keeper.delete(volume_key("base"))
        keeper.settle()
        assert entries(made) == {}

    kills = killing.at_every_step(
        tmp_path / "state",
        lambda keeper: start(keeper, part("base", "12Mi")),
        prepared=lambda keeper: fill_base(keeper, disk_pool(made, label), part("base")),
        finished=finished,
        undone=undone,
        commands_only=True,
        beside=killing.MARKS_KEPT,
    )
    assert kills == (2 if label == "gpt" else 3)


def test_an_encrypted_partition_is_made_grown_wiped_and_cloned(
    device: Spares, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "secrets")
    keeper = Keeper(tmp_path / "state", secrets=FileSecrets(key.parent))
    made = device(128 * MIB)
    start(keeper, disk_pool(made), part("base", encryption=LUKS))
    keeper.assert_ready(DISK, volume_key("base"))
    status = keeper.get(volume_key("base")).status
    assert (status.encryption, status.capacity >> 20) in {("luks", 4), ("luks", 5)}
    assert status.capacity < 4 * MIB + MOST_OF_A_HEADER
    node = Path(status.path)
    assert decrypted(key, node, "write -P 7 1M 64k")
    assert keeper.planned() == {}

    start(keeper, part("base", "16Mi", encryption=LUKS))
    keeper.assert_ready(volume_key("base"))
    end = keeper.get(volume_key("base")).status.capacity
    assert 16 * MIB <= end < 16 * MIB + MOST_OF_A_HEADER
    assert decrypted(
        key, node, "read -P 7 1M 64k", "write -P 0 0 1M", f"write -P 0 2M {end - 2 * MIB}"
    )

    start(
        keeper,
        part("copy", "24Mi", source=CLONE),
        part("again", "20Mi", encryption=LUKS, source=CLONE),
    )
    keeper.assert_ready(DISK, COPY, volume_key("again"))
    assert keeper.get(COPY).status.encryption is None
    assert contents(keeper)[MIB : MIB + 65536] == b"\7" * 65536
    also = Path(paths(keeper, "again")["again"])
    assert decrypted(key, also, "read -P 0 0 1M", "read -P 7 1M 64k", "read -P 0 17M 1M")
    assert keeper.planned() == {}

    keeper.apply(operation("wiping", "base", "Wipe"))
    keeper.settle()
    assert keeper.get(operation_key("wiping")).status.phase == "Succeeded"
    keeper.assert_ready(volume_key("base"))
    assert not decrypted(key, node, "read -P 7 1M 64k")
    keeper.delete(volume_key("base"), COPY, volume_key("again"))
    keeper.settle()
    assert entries(made) == {}
    keeper.store.close()
