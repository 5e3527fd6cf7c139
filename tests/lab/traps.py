"""Devices of strangers: whatever Poolkeeper is told to do, these may not change.

Each trap is a device with something on it that a probe finds, or that the kernel uses. A test
plants those it wants, points a pool at them, and asserts that the refusal names what was found
and that the trap is untouched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from tests.lab.spare import MIB, Spares, run


class Trap:
    """One device of a stranger.

    :ivar device: what a careless manifest would name.
    :ivar words: of which a refusal has to say at least one.
    """

    def __init__(self, device: Path, *words: str) -> None:
        self.device = device
        self.words = words
        run("udevadm", "settle")
        self._before = self._content()

    def _content(self) -> str:
        run("sync")
        with self.device.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def assert_untouched(self) -> None:
        assert self._content() == self._before, f"{self.device} was written to"

    def assert_named_in(self, message: str) -> None:
        assert any(word in message for word in self.words), f"{self.words} not in {message!r}"
        assert str(self.device) in message, f"{self.device} not in {message!r}"


def file_system(device: Spares, scratch: Path) -> Trap:
    made = device(64 * MIB)
    run("mkfs.ext4", "-q", made)
    return Trap(made, "ext4")


def gpt(device: Spares, scratch: Path) -> Trap:
    made = device(64 * MIB)
    run("parted", "-s", made, "mklabel", "gpt", "mkpart", "one", "1MiB", "16MiB")
    return Trap(made, "gpt", "partition")


def dos(device: Spares, scratch: Path) -> Trap:
    made = device(64 * MIB)
    run("parted", "-s", made, "mklabel", "msdos", "mkpart", "primary", "1MiB", "16MiB")
    return Trap(made, "dos", "partition")


def luks(device: Spares, scratch: Path) -> Trap:
    made = device(64 * MIB)
    cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
    run("cryptsetup", "-q", "luksFormat", *cheap, made, "-", input=b"secret")
    return Trap(made, "LUKS", "luks")


def swap(device: Spares, scratch: Path) -> Trap:
    made = device(64 * MIB)
    run("mkswap", made)
    return Trap(made, "swap")


def physical_volume(device: Spares, scratch: Path) -> Trap:
    made = device(64 * MIB)
    run("pvcreate", "-q", made)
    return Trap(made, "LVM2_member", "physical volume")


def volume_group(device: Spares, scratch: Path) -> Trap:
    made = device(64 * MIB)
    run("vgcreate", "-q", f"strange-{made.name}", made)
    return Trap(made, f"strange-{made.name}", "LVM2_member")


def mounted(device: Spares, scratch: Path) -> Trap:
    made = device(64 * MIB)
    run("mkfs.ext2", "-q", made)
    point = scratch / f"mounted-{made.name}"
    point.mkdir()
    run("mount", "-o", "ro", made, point)
    return Trap(made, "mounted", "ext2")


def under_device_mapper(device: Spares, scratch: Path) -> Trap:
    """Nothing is written on it; only the kernel knows that it is used."""
    made = device(64 * MIB)
    run("dmsetup", "create", f"strange-{made.name}", "--table", f"0 2048 linear {made} 0")
    return Trap(made, "in use", "holds", "held", "used by")


TRAPS: dict[str, Callable[[Spares, Path], Trap]] = {
    "ext4": file_system,
    "gpt": gpt,
    "dos": dos,
    "luks": luks,
    "swap": swap,
    "pv": physical_volume,
    "vg": volume_group,
    "mounted": mounted,
    "dm": under_device_mapper,
}
