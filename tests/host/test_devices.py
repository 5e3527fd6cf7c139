from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from backends import errors
from backends.host import devices
from backends.host.devices import Identity
from tests.blockdevices import SIZE, loop_device

KNOWN = Identity(path="/dev/disk/by-id/a", serial="S1", wwn="naa.1", size=2**30, uuid="u1")


@pytest.mark.root
def test_a_device_is_found_by_a_link_to_it(tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk.img") as node:
        link = tmp_path / "by-id"
        link.symlink_to(node)
        found = devices.find(str(link))
        assert (found.path, found.node) == (str(link), node)
        assert (found.size, found.read_only, found.partition) == (SIZE, False, None)
        facts = os.stat(node)
        assert found.number == (os.major(facts.st_rdev), os.minor(facts.st_rdev))


@pytest.mark.root
def test_two_disks_of_one_name_have_two_sequence_numbers(tmp_path: Path) -> None:
    with loop_device(tmp_path / "one.img") as node:
        first = devices.find(node)
    with loop_device(tmp_path / "two.img") as node:
        second = devices.find(node)
    assert first.sequence
    assert first.sequence != second.sequence


def test_what_is_no_block_device_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    file.touch()
    with pytest.raises(errors.InvalidSpec, match="losetup"):
        devices.find(str(file))
    with pytest.raises(errors.InvalidSpec, match="no block device"):
        devices.find("/dev/null")


def test_a_missing_device_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dangling"
    path.symlink_to("/dev/no-such-device")
    with pytest.raises(errors.NotFound, match=str(path)):
        devices.find(str(path))


@pytest.mark.root
def test_a_device_is_waited_for(tmp_path: Path) -> None:
    link = tmp_path / "link"
    with loop_device(tmp_path / "disk.img") as node:
        timer = threading.Timer(0.2, link.symlink_to, (node,))
        timer.start()
        assert devices.wait_for(str(link), 30).node == node
        timer.join()


def test_waiting_for_a_device_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        devices.wait_for(str(tmp_path / "never"), 0.1)


@pytest.mark.parametrize(
    "path", ["/dev/sda", "/dev/sdb1", "/dev/nvme0n1p2", "/dev/vdc", "/dev/dm-3", "/dev//sda"]
)
def test_a_name_that_may_change_is_warned_of(path: str) -> None:
    assert path in devices.unstable_name(path)
    assert "/dev/disk/by-id" in devices.unstable_name(path)


@pytest.mark.parametrize(
    "path", ["/dev/disk/by-id/wwn-0x5", "/dev/disk/by-path/x", "/dev/vg0/lv", "/dev/mapper/mpatha"]
)
def test_a_lasting_name_is_not(path: str) -> None:
    assert devices.unstable_name(path) == ""


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (KNOWN, ()),
        (Identity(path=KNOWN.path, serial="S2"), ("its serial number is S2 and was S1",)),
        (Identity(path=KNOWN.path, wwn="naa.2"), ("its world-wide name is naa.2 and was naa.1",)),
        (Identity(path=KNOWN.path, uuid="u2"), ("its UUID is u2 and was u1",)),
        (Identity(path=KNOWN.path, size=2**29), ("its size is 512Mi and was 1Gi",)),
        (Identity(path=KNOWN.path, size=2**31), ()),
        (Identity(path=KNOWN.path), ()),
        (Identity(path=KNOWN.path, id="wwn-other"), ()),
    ],
)
def test_another_device_is_told_by_what_is_known_of_both(
    seen: Identity, told: tuple[str, ...]
) -> None:
    assert seen.differences(KNOWN) == told


def test_what_an_earlier_look_told_is_kept() -> None:
    seen = Identity(path=KNOWN.path, serial="S1", size=2**31)
    assert seen.completed(KNOWN) == Identity(
        path=KNOWN.path, serial="S1", wwn="naa.1", size=2**31, uuid="u1"
    )
    assert seen.completed(None) == seen


@pytest.mark.root
def test_a_loop_device_is_told_by_what_stands_on_it(tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk.img") as node:
        seen = devices.identify(devices.find(node), uuid="u1")
    assert (seen.path, seen.size, seen.uuid) == (node, SIZE, "u1")


def test_settling_without_udev_is_no_wait() -> None:
    devices.settle(5)
