"""The lab itself: what a test gets is blank, real, and gone afterwards."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tests.lab import spare
from tests.lab.cable import Cable
from tests.lab.spare import MIB, Spares, found_on, run
from tests.lab.traps import Trap


def test_a_spare_device_is_blank_and_as_large_as_asked_for(device: Spares) -> None:
    made = device(64 * MIB)
    assert found_on(made) == ""
    assert int(run("blockdev", "--getsize64", made)) >= 64 * MIB


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


@pytest.mark.skipif(not spare.IN_GUEST, reason="on a real machine its own modules are used")
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
