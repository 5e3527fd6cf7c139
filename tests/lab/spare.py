"""Spare block devices for tests: loop devices in the lab's guest, named disks elsewhere.

``POOLKEEPER_LAB_DEVICES`` names whole disks, separated by spaces, that a test may destroy. One
that carries anything is refused unless ``POOLKEEPER_LAB_ERASE=yes`` says that it may go, and one
that is mounted in any case.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

IN_GUEST = bool(os.environ.get("POOLKEEPER_LAB_GUEST"))
NAMED = tuple(os.environ.get("POOLKEEPER_LAB_DEVICES", "").split())
WHERE = "needs the lab: sh tests/lab/run.sh, or POOLKEEPER_LAB_DEVICES (tests/lab/README.md)"

MIB = 2**20


def run(*argv: str | Path, input: bytes | None = None) -> str:
    """Run a command that has to succeed; what it printed."""
    words = [str(word) for word in argv]
    done = subprocess.run(words, input=input, capture_output=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr.decode()}{done.stdout.decode()}"
    return done.stdout.decode()


def found_on(device: Path) -> str:
    """What a low-level probe and the kernel see on a device; empty for nothing."""
    seen = subprocess.run(
        ["wipefs", "--noheadings", "--output", "TYPE,OFFSET", str(device)],
        check=True, capture_output=True,
    )  # fmt: skip
    stacked = run("lsblk", "--noheadings", "--output", "NAME,MOUNTPOINTS", device).split()[1:]
    return " ".join([*seen.stdout.decode().split(), *stacked])


@functools.cache
def named_devices() -> tuple[Path, ...]:
    """The disks that the environment names, each seen to be blank or allowed to be erased."""
    for name in NAMED:
        used = run("lsblk", "--noheadings", "--output", "MOUNTPOINTS", name).split()
        if used:
            raise pytest.UsageError(f"{name} is in use: {', '.join(used)}; unmount it first")
        found = found_on(Path(name))
        if found and os.environ.get("POOLKEEPER_LAB_ERASE") != "yes":
            raise pytest.UsageError(
                f"{name} carries {found}; blank it, or set POOLKEEPER_LAB_ERASE=yes"
            )
    return tuple(Path(name) for name in NAMED)


class Spares:
    """Hands out blank devices, and takes back what was made on them."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._stack = contextlib.ExitStack()
        self._named = list(named_devices())
        self._count = 0

    def __call__(self, size: int = 256 * MIB, *, sector: int = 512) -> Path:
        """A blank device of at least so many bytes; on a loop device of exactly as many."""
        device = self._loop(size, sector) if IN_GUEST else self._take_named(size)
        self._stack.callback(clear, device)
        return device

    def _loop(self, size: int, sector: int) -> Path:
        self._count += 1
        image = self._scratch / f"spare{self._count}.img"
        with image.open("wb") as file:
            file.truncate(size)
        argv = ["losetup", "--find", "--show", "--partscan", f"--sector-size={sector}", str(image)]
        device = Path(run(*argv).strip())
        self._stack.callback(image.unlink)
        self._stack.callback(run, "losetup", "--detach", device)
        return device

    def _take_named(self, size: int) -> Path:
        if not self._named:
            pytest.skip(f"needs more spare devices than {' '.join(NAMED)}")
        device = self._named.pop(0)
        if device_size(device) < size:
            pytest.skip(f"{device} has less than the {size} bytes that this test needs")
        clear(device)
        return device

    def close(self) -> None:
        self._stack.close()


def device_size(device: Path | str) -> int:
    """Bytes of a block device."""
    return int(run("blockdev", "--getsize64", device))


def partition(disk: Path, number: int) -> Path:
    """The node of a partition, as the kernel names it."""
    separator = "p" if disk.name[-1].isdigit() else ""
    return disk.with_name(f"{disk.name}{separator}{number}")


def clear(device: Path) -> None:
    """Undo what stands on a device, from the top down, and leave it blank."""
    for holder in sorted(holders(device)):
        clear(holder)
        if holder.name.startswith("dm-"):
            run("dmsetup", "remove", "--retry", holder)
    for part in partitions(device):
        clear(part)
    for use in mounted_at(device):
        run(*(["swapoff", device] if use == "[SWAP]" else ["umount", use]))
    run("wipefs", "--all", "--force", device)
    run("udevadm", "settle")
    if partitions(device):  # wipefs could not have the kernel read the table anew
        run("partx", "--delete", device)


def partitions(device: Path) -> list[Path]:
    """The partitions of a disk that the kernel shows."""
    found = Path("/sys/class/block", device.resolve().name).glob("*/partition")
    return sorted(Path("/dev", item.parent.name) for item in found)


def holders(device: Path) -> Iterator[Path]:
    """Devices that stand on this one, or on a partition of it."""
    name = device.resolve().name
    for place in Path("/sys/class/block", name).glob("**/holders"):
        for holder in place.iterdir():
            yield Path("/dev", holder.name)


def mounted_at(device: Path) -> list[str]:
    """Where a device itself is mounted, ``[SWAP]`` for swap; the last mounted first."""
    columns = ["--noheadings", "--nodeps", "--output", "MOUNTPOINTS"]
    return [line for line in run("lsblk", *columns, device).splitlines() if line][::-1]
