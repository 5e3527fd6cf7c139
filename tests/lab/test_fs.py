"""Pools on file systems of real devices: formats, traps, pulled disks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.keeper import Keeper, pool, pool_key, volume, volume_key
from tests.lab import isoimage
from tests.lab.cable import Cable
from tests.lab.spare import IN_GUEST, MIB, partition, run
from tests.lab.targets import wait_until

POOL, DISK = pool_key("images"), volume_key("disk")
OVERWRITE = {"policy": "Overwrite", "confirm": "images"}


@pytest.fixture
def keeper(tmp_path):
    made = Keeper(tmp_path / "state")
    yield made
    made.store.close()


@pytest.fixture
def target(tmp_path, device):
    path = tmp_path / "mnt" / "images"
    yield path
    while os.path.ismount(path):
        run("umount", path)


def declaration(target, device, format="ext4", **spec):
    members = {"device": {"path": str(device)}, "format": format}
    return pool("images", type="fs", fs=members, target={"path": str(target)}, **spec)


def apply(keeper, *documents):
    keeper.apply(*documents)
    keeper.settle()


@pytest.mark.parametrize("format", ["ext2", "ext3", "ext4", "xfs", "vfat"])
def test_a_file_system_of_each_format_is_made_and_goes_again(keeper, target, device, format):
    made = device(512 * MIB)
    disk = volume("disk", "images", capacity="4Mi", format="qcow2", deletion_policy="Delete")
    spec = declaration(target, made, format, deletionPolicy="Delete")
    apply(keeper, spec, disk)
    keeper.assert_ready(POOL, DISK)
    assert keeper.get(POOL).status.devices[0].uuid
    assert run("findmnt", "--noheadings", "--output", "FSTYPE", target).strip() == format
    assert keeper.planned() == {}
    apply(keeper, declaration(target, made, format, deletionPolicy="Delete", state="Inactive"))
    apply(keeper, spec)
    keeper.assert_ready(POOL)
    keeper.assert_ready(DISK)
    assert keeper.get(DISK).status.origin == "Created"
    keeper.delete(DISK, POOL)
    keeper.settle()
    assert keeper.gone(POOL), keeper.told()
    assert run("wipefs", "--noheadings", made) == ""


def test_on_vfat_a_mark_outlives_mounts_and_goes_with_its_file(keeper, target, device):
    """vfat keeps no attributes, and numbers its files anew at each mount."""
    made = device(64 * MIB)
    names = ("raw", "image", "replaced", "late")
    disks = [
        volume(name, "images", capacity="4Mi", deletion_policy="Delete",
               format="qcow2" if name == "image" else "raw")
        for name in names
    ]  # fmt: skip
    apply(keeper, declaration(target, made, "vfat"), *disks)
    keeper.assert_ready(*map(volume_key, names))
    os.rename(target / "late", target / "elsewhere")  # and back: renaming takes no mark off
    os.rename(target / "elsewhere", target / "late")
    numbers = [(target / name).stat().st_ino for name in names]
    (target / "replaced").unlink()
    (target / "replaced").write_bytes(bytes(4 * MIB))  # likely in the same blocks
    for state in ("Inactive", "Active"):
        apply(keeper, declaration(target, made, "vfat", state=state))
    assert numbers != [(target / name).stat().st_ino for name in names]
    keeper.apply(volume("raw", "images", capacity="8Mi", format="raw", deletion_policy="Delete"))
    keeper.settle()
    keeper.assert_ready(POOL, volume_key("raw"), volume_key("image"), volume_key("late"))
    keeper.delete(*map(volume_key, names))
    keeper.settle()
    assert os.listdir(target) == ["replaced"]


def test_a_strangers_device_is_refused_by_name_and_left_as_it_is(keeper, target, trap):
    format = "xfs" if "ext4" in trap.words or "ext2" in trap.words else "ext4"
    apply(
        keeper, declaration(target, trap.device, format), volume("disk", "images", capacity="4Mi")
    )
    assert keeper.truth(POOL, "Ready") == "False"
    trap.assert_named_in(keeper.message(POOL))
    trap.assert_untouched()
    assert not os.path.ismount(target)


def test_a_device_in_use_is_refused_even_where_it_may_be_overwritten(keeper, target, trap):
    if not {"in use", "mounted"} & set(trap.words):
        pytest.skip("nobody uses this trap")
    apply(keeper, declaration(target, trap.device, "xfs", build=OVERWRITE))
    keeper.assert_retrying(POOL, "InUse")
    trap.assert_untouched()


def test_a_partition_is_made_into_a_pool_and_its_disk_is_not(keeper, target, device):
    disk = device(128 * MIB)
    run("parted", "-s", disk, "mklabel", "gpt", "mkpart", "one", "1MiB", "100%")
    run("udevadm", "settle")
    apply(keeper, declaration(target, disk))
    assert "gpt partition table with partition 1" in keeper.assert_stalled(POOL, "OverwriteRefused")
    apply(keeper, declaration(target, partition(disk, 1)))
    keeper.assert_ready(POOL)


def test_a_file_system_that_can_only_be_read_is_taken_over_as_it_is(keeper, target, device):
    made = device(16 * MIB)
    isoimage.write(made, "DISK.RAW", b"x" * 4096)
    before = Path(made).read_bytes()
    disk = volume("disk", "images", volume_name="disk.raw", capacity="4Ki", adoption="Observe")
    apply(keeper, declaration(target, made, "iso9660"), disk)
    keeper.assert_ready(POOL)
    assert keeper.get(POOL).status.state == "Running"
    assert keeper.get(DISK).status.capacity == 4096
    assert run("findmnt", "--noheadings", "--output", "FSTYPE", target).strip() == "iso9660"
    apply(keeper, volume("second", "images", capacity="4Ki", allocation="0"))
    assert "Read-only" in keeper.message(volume_key("second"))
    assert keeper.planned()[str(volume_key("second"))] == ["CreateVolume"]
    apply(keeper, declaration(target, made, "iso9660", state="Inactive"))
    assert not os.path.ismount(target)
    assert Path(made).read_bytes() == before


def test_a_pool_that_is_declared_to_be_read_only_is_mounted_so(keeper, target, device):
    made = device(64 * MIB)
    apply(keeper, declaration(target, made), volume("disk", "images", capacity="4Mi"))
    apply(keeper, declaration(target, made, state="Inactive"))
    document = declaration(target, made)
    document["spec"]["fs"]["mountOptions"] = ["ro", "noatime"]
    apply(keeper, document)
    keeper.assert_ready(POOL, DISK)
    assert keeper.get(POOL).status.state == "Running"
    shown = run("findmnt", "--noheadings", "--output", "OPTIONS", target).strip().split(",")
    assert {"ro", "noatime", "nodev", "nosuid", "noexec"} <= set(shown)
    apply(keeper, volume("second", "images", capacity="4Mi"))
    assert "Read-only" in keeper.message(volume_key("second"))


@pytest.mark.parametrize("declared", [0, 1])
def test_a_btrfs_on_two_devices_is_a_pool_by_either(keeper, target, device, declared):
    made = [device(160 * MIB), device(160 * MIB)]
    run("mkfs.btrfs", "-q", *made)
    run("udevadm", "settle")
    disk = volume("disk", "images", capacity="4Mi")
    apply(keeper, declaration(target, made[declared], "auto"), disk)
    keeper.assert_ready(POOL, DISK)
    assert keeper.planned() == {}
    other = pool("other", type="fs", target={"path": f"{target}-other"},
                 fs={"device": {"path": str(made[1 - declared])}, "format": "ext4"},
                 build={"policy": "Overwrite", "confirm": "other"})  # fmt: skip
    apply(keeper, other)
    assert keeper.truth(pool_key("other"), "Ready") == "False"
    assert (target / "disk").is_file()
    apply(keeper, declaration(target, made[declared], "auto", state="Inactive"))
    keeper.assert_ready(POOL)
    assert not os.path.ismount(target)


def test_a_device_that_luks_opened_is_a_pool_and_is_missing_while_it_is_closed(
    keeper, target, device, tmp_path
):
    made, key = device(64 * MIB), tmp_path / "key"
    key.write_bytes(b"a key of the host's")
    cheap = ("--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    run("cryptsetup", "-q", "luksFormat", *cheap, "--key-file", key, made)
    opened = Path("/dev/mapper/images-opened")
    run("cryptsetup", "open", "--key-file", key, made, opened.name)
    try:
        apply(keeper, declaration(target, made))
        assert "LUKS" in keeper.assert_stalled(POOL, "OverwriteRefused")
        apply(keeper, declaration(target, opened), volume("disk", "images", capacity="4Mi"))
        keeper.assert_ready(POOL, DISK)
        apply(keeper, declaration(target, opened, state="Inactive"))
        run("cryptsetup", "close", opened.name)
        apply(keeper, declaration(target, opened))
        assert str(opened) in keeper.assert_retrying(POOL, "Inaccessible")
        run("cryptsetup", "open", "--key-file", key, made, opened.name)
        keeper.settle()
        keeper.assert_ready(POOL, DISK)
        apply(keeper, declaration(target, opened, state="Inactive"))
    finally:
        if os.path.ismount(target):
            run("umount", target)
        run("cryptsetup", "close", opened.name)


def test_a_pulled_disk_is_inaccessible_and_comes_back(keeper, target, device):
    cable = Cable(device, 128 * MIB)
    apply(keeper, declaration(target, cable.device), volume("disk", "images", capacity="4Mi"))
    keeper.assert_ready(POOL, DISK)
    known = keeper.get(POOL).status
    cable.cut()
    run("sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
    keeper.apply(volume("second", "images", capacity="16Mi"))  # to be written, so that it shows
    wait_until(lambda: keeper.reconcile() and keeper.get(POOL).status.state != "Running", 120)
    status = keeper.get(POOL).status
    assert status.state in ("Inaccessible", "Degraded")
    assert status.capacity == known.capacity
    assert keeper.truth(volume_key("second"), "Ready") == "False"
    cable.mend()
    # The kernel gave this mount up for good; another one has all data.
    apply(keeper, declaration(target, cable.device, state="Inactive"))
    assert not os.path.ismount(target)
    apply(keeper, declaration(target, cable.device))
    keeper.assert_ready(POOL, DISK, volume_key("second"))
    apply(keeper, declaration(target, cable.device, state="Inactive"))


@pytest.mark.skipif(not IN_GUEST, reason="needs a SCSI disk of the kernel's own")
def test_a_disk_that_left_for_good_makes_way_for_itself(keeper, target, tmp_path):
    """A SCSI disk that is taken off leaves its mount behind, and comes back with another number."""
    run("modprobe", "scsi_debug", "dev_size_mb=64", "num_tgts=1", "max_luns=1")
    try:
        wait_until(lambda: bool(list(Path("/dev/disk/by-id").glob("wwn-*"))))
        run("udevadm", "settle")
        (link,) = Path("/dev/disk/by-id").glob("wwn-*")
        apply(keeper, declaration(target, link), volume("disk", "images", capacity="4Mi"))
        keeper.assert_ready(POOL, DISK)
        assert keeper.get(POOL).status.devices[0].wwn
        former = link.resolve().name
        run("sync")
        with open(target / "disk", "rb"):  # its number is not given out again meanwhile
            scsi = Path("/sys/block", former, "device").resolve()
            host = next(part for part in scsi.parts if part.startswith("host"))
            (scsi / "delete").write_text("1")
            wait_until(lambda: not Path("/sys/block", former).exists())
            keeper.settle()
            assert str(link) in keeper.assert_retrying(POOL, "Inaccessible")
            Path("/sys/class/scsi_host", host, "scan").write_text("- - -")
            run("udevadm", "settle")
            wait_until(link.exists)
            keeper.settle()
            told = keeper.assert_retrying(POOL, "InUse")
            assert "disk" in told
        keeper.settle()
        keeper.assert_ready(POOL, DISK)
        assert len(run("findmnt", "--noheadings", "--raw", target).splitlines()) == 1
        apply(keeper, declaration(target, link, state="Inactive"))
    finally:
        while os.path.ismount(target):
            run("umount", target)
        wait_until(lambda: unload("scsi_debug"))


def unload(module):
    run("sh", "-c", f"rmmod {module} || true")
    return not Path("/sys/module", module).exists()
