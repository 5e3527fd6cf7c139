"""Attributes of inodes, set by ioctl (ioctl_iflags(2))."""

from __future__ import annotations

import errno
import fcntl
import platform
import struct

FS_NOCOW_FL = 0x00800000
"""The file is not copied on write (btrfs); for a directory, new files in it."""

NO_SUCH_FLAG = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system answers that has no such flags, or not this one."""

_WORD = struct.calcsize("l")


def _ioctl_number(*, reads: bool, number: int) -> int:
    """``_IOR('f', number, long)`` or ``_IOW``: these machines lay the bits out in another way."""
    other_layout = platform.machine().startswith(("ppc", "mips", "sparc", "alpha"))
    direction = ((2 if reads else 4) << 29) if other_layout else ((2 if reads else 1) << 30)
    return direction | _WORD << 16 | ord("f") << 8 | number


_GET_FLAGS = _ioctl_number(reads=True, number=1)
_SET_FLAGS = _ioctl_number(reads=False, number=2)


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
