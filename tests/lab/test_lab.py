"""The lab itself: what a test gets is blank, real, and gone afterwards."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import spare
from tests.lab.cable import Cable
from tests.lab.spare import MIB, Spares, device_size, found_on, run
from tests.lab.targets import Disk, LoopHost
from tests.lab.traps import Trap

in_guest = pytest.mark.skipif(not spare.IN_GUEST, reason="a real machine's own devices are used")


def test_a_spare_device_is_blank_and_as_large_as_asked_for(device: Spares) -> None:
    made = device(64 * MIB)
    assert found_on(made) == ""
    assert device_size(made) >= 64 * MIB


def test_partitions_and_logical_volumes_get_nodes(device: Spares) -> None:
    disk, physical = device(64 * MIB), device(64 * MIB)
    run("parted", "-s", disk, "mklabel", "gpt", "mkpart", "one", "1MiB", "16MiB")
    run("vgcreate", "-q", "vg-lab", physical)
    run("lvcreate", "-q", "-y", "-n", "lv", "-L", "8M", "vg-lab")
    run("udevadm", "settle")
    assert "part" in run("lsblk", "--noheadings", "--output", "TYPE", disk)
    assert Path("/dev/vg-lab/lv").is_block_device()
    assert "lvm" in run("lsblk", "--noheadings", "--output", "TYPE", physical)


def test_what_a_test_leaves_on_a_device_is_undone(tmp_path: Path) -> None:
    spares = Spares(tmp_path)
    made = spares(64 * MIB)
    run("vgcreate", "-q", "vg-left", made)
    run("lvcreate", "-q", "-y", "-n", "lv", "-L", "32M", "vg-left")
    run("mkfs.ext4", "-q", "/dev/vg-left/lv")
    point = tmp_path / "point"
    point.mkdir()
    run("mount", "/dev/vg-left/lv", point)
    spares.close()
    assert str(point) not in Path("/proc/mounts").read_text()
    assert "vg--left" not in run("dmsetup", "ls")
    assert "vg-left" not in run("vgs", "--noheadings", "-o", "vg_name")


@in_guest
@pytest.mark.parametrize(
    "module",
    ["dm-thin-pool", "dm-snapshot", "dm-crypt", "dm-multipath", "scsi_debug", "tcm_loop",
     "iscsi_target_mod", "iscsi_tcp", "nfsd", "nfsv4", "cifs", "xfs", "btrfs", "udf"],
)  # fmt: skip
def test_the_kernel_has_what_pools_stand_on(module: str) -> None:
    assert run("modinfo", "--field", "description", module).strip()


def test_a_trap_is_seen_and_watched(trap: Trap) -> None:
    assert found_on(trap.device) != ""
    trap.assert_untouched()
    with trap.device.open("r+b", buffering=0) as file:
        file.seek(20 * MIB)
        file.write(b"overwritten")
    with pytest.raises(AssertionError, match="written to"):
        trap.assert_untouched()


def test_a_cut_cable_fails_and_a_mended_one_has_all_data(device: Spares) -> None:
    cable = Cable(device, 16 * MIB)
    cable.device.write_bytes(b"kept" * 1024)
    cable.cut()
    fd = os.open(cable.device, os.O_RDONLY | os.O_DIRECT)
    with pytest.raises(OSError, match="Input/output"), mmap.mmap(-1, 4096) as page:
        os.readv(fd, [page])
    os.close(fd)
    cable.mend()
    assert cable.device.open("rb").read(4) == b"kept"


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[list[Path]]:
    """Whole SCSI disks, as a machine has that is no guest."""
    stores = [Disk(tmp_path, f"named-lun{lun}", 160 * MIB) for lun in range(2)]
    host = LoopHost()
    for lun, store in enumerate(stores):
        host.give(lun, store)
    yield host.nodes()
    host.remove()
    for store in stores:
        store.remove()


TRIED = (
    "tests/lab/test_lab.py::test_a_spare_device_is_blank_and_as_large_as_asked_for",
    "tests/lab/test_lab.py::test_a_cut_cable_fails_and_a_mended_one_has_all_data",
    "tests/lab/test_disk.py::test_partitions_are_aligned_named_and_shown",
)


def tried_on(disks: list[Path], **environment: str) -> subprocess.CompletedProcess[str]:
    """Some tests of the lab, as somebody runs them on spare disks of a machine."""
    given = {**os.environ, "POOLKEEPER_LAB_DEVICES": " ".join(map(str, disks)), **environment}
    del given["POOLKEEPER_LAB_GUEST"]
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "lab", *TRIED]
    return subprocess.run(argv, env=given, capture_output=True, text=True, check=False)


@in_guest
def test_disks_that_are_named_are_used_and_left_blank(disks: list[Path]) -> None:
    done = tried_on(disks)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    assert [found_on(disk) for disk in disks] == ["", ""]


@in_guest
def test_a_named_disk_with_data_is_refused_until_it_may_be_erased(disks: list[Path]) -> None:
    run("mkfs.ext4", "-q", disks[0])
    refused = tried_on(disks)
    assert refused.returncode != 0
    assert f"{disks[0]} carries ext4" in refused.stdout
    assert "ext4" in found_on(disks[0])
    allowed = tried_on(disks, POOLKEEPER_LAB_ERASE="yes")
    assert allowed.returncode == 0, allowed.stdout
    assert found_on(disks[0]) == ""


@in_guest
def test_a_named_disk_that_is_mounted_is_never_erased(disks: list[Path], tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", disks[0])
    point = tmp_path / "point"
    point.mkdir()
    run("mount", disks[0], point)
    try:
        refused = tried_on(disks, POOLKEEPER_LAB_ERASE="yes")
        assert f"{disks[0]} is in use: {point}" in refused.stdout
        assert (point / "lost+found").is_dir()
    finally:
        run("umount", point)
