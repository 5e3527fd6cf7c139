"""Versions of the host's programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from backends import errors
from backends.host import commands

DEADLINE = 10.0
"""Seconds that a program may take to say its version."""

UNKNOWN = "unknown"
"""The version of a program that is there and does not tell."""

_LONG, _SHORT, _WORD = ("--version",), ("-V",), ("version",)

ASKED_WITH: Mapping[str, tuple[str, ...]] = {
    "blkid": _LONG,
    "blockdev": _LONG,
    "findmnt": _LONG,
    "gluster": _LONG,
    "iscsiadm": _LONG,
    "losetup": _LONG,
    "lvchange": _LONG,
    "lvcreate": _LONG,
    "lvextend": _LONG,
    "lvreduce": _LONG,
    "lvremove": _LONG,
    "lvresize": _LONG,
    "lvs": _LONG,
    "mkfs.ext2": _SHORT,
    "mkfs.ext3": _SHORT,
    "mkfs.ext4": _SHORT,
    "mkfs.xfs": _SHORT,
    "mount": _LONG,
    "mount.cifs": _SHORT,
    "mount.nfs": _SHORT,
    "parted": _LONG,
    "pvcreate": _LONG,
    "pvremove": _LONG,
    "pvs": _LONG,
    "qemu-img": _LONG,
    "qemu-io": _LONG,
    "qemu-nbd": _LONG,
    "qemu-storage-daemon": _LONG,
    "rbd": _LONG,
    "sfdisk": _LONG,
    "showmount": _LONG,
    "udevadm": _LONG,
    "umount": _LONG,
    "vgchange": _LONG,
    "vgcreate": _LONG,
    "vgremove": _LONG,
    "vgs": _LONG,
    "wipefs": _LONG,
    "zfs": _WORD,
    "zpool": _WORD,
}
"""What each program is asked with. One that is not here is not run for its version."""

_VERSION = re.compile(r"(?<![\w.])[v(]?(\d+(?:\.\d+)+(?:[-~+]?\w+)*)|^(\d+)$", re.MULTILINE)
"""Numbers with points between; or, as of udevadm, a number that has a line to itself."""


def versions(programs: Iterable[str]) -> dict[str, str | None]:
    """The version of each program; None where it is not on this host."""
    return {name: _version(name) for name in programs}


def _version(program: str) -> str | None:
    if commands.which(program) is None:
        return None
    options = ASKED_WITH.get(program)
    if options is None:
        return UNKNOWN
    try:
        # Some tell on standard error, and some end with 1 when they do nothing more.
        said = commands.run((program, *options), timeout=DEADLINE, expected=range(256))
    except errors.MissingTool:
        return None
    except errors.StorageError:
        return UNKNOWN
    found = _VERSION.search(said.stdout) or _VERSION.search(said.stderr)
    return (found[1] or found[2]) if found else UNKNOWN
