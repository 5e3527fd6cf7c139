"""Attributes of inodes, set by ioctl (ioctl_iflags(2))."""

from __future__ import annotations

import fcntl
import struct

from backends.host import kernel

FS_NOCOW_FL = 0x00800000
"""The file is not copied on write (btrfs); for a directory, new files in it."""

_WORD = struct.calcsize("l")


_GET_FLAGS = kernel.ioctl_number("read", ord("f"), 1, _WORD)
_SET_FLAGS = kernel.ioctl_number("write", ord("f"), 2, _WORD)


def _flags(fd: int) -> int:
    # The number says long, and the kernel reads and writes an int.
    buffer = bytearray(_WORD)
    fcntl.ioctl(fd, _GET_FLAGS, buffer)
    return int(struct.unpack_from("i", buffer)[0]) & 0xFFFFFFFF


def get_nocow(fd: int) -> bool:
    """Whether the file or directory is exempt from copy on write.

    :raises OSError: ``ENOTTY`` or ``EOPNOTSUPP`` where the file system has no such flags.
    """
    return bool(_flags(fd) & FS_NOCOW_FL)


def set_nocow(fd: int, nocow: bool) -> None:
    """Exempt the file from copy on write, or end that. On btrfs the file has to be empty.

    :raises OSError: ``EOPNOTSUPP`` or ``ENOTTY`` where the file system can't; ``EINVAL`` for a
        btrfs file that holds data.
    """
    flags = _flags(fd)
    wanted = flags | FS_NOCOW_FL if nocow else flags & ~FS_NOCOW_FL
    if wanted == flags:
        return
    buffer = bytearray(_WORD)
    struct.pack_into("I", buffer, 0, wanted)
    fcntl.ioctl(fd, _SET_FLAGS, buffer)
