"""Setting space aside in a file, so that it can't run out later."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

from backends.sizes import GIB, MIB

Checkpoint = Callable[[int], None]
"""Called between pieces of work with the offset that is reached; it may raise to stop the work."""

UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS})
"""What a file system answers that has no such thing."""

_ALLOCATED_AT_ONCE = 1 * GIB
_WRITTEN_AT_ONCE = 4 * MIB

_libc = ctypes.CDLL(None, use_errno=True)


def allocate(fd: int, start: int, end: int, checkpoint: Checkpoint) -> None:
    """Set aside the bytes from ``start`` to ``end``, and let the file reach to ``end``.

    Where the file system can't, zeros are written instead, so the range must hold no data.

    :raises OSError: ``ENOSPC`` and what else the file system answers.
    """
    for offset in range(start, end, _ALLOCATED_AT_ONCE):
        try:
            _fallocate(fd, offset, min(_ALLOCATED_AT_ONCE, end - offset))
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            write_zeros(fd, offset, end, checkpoint)
            return
        checkpoint(min(offset + _ALLOCATED_AT_ONCE, end))


def write_zeros(fd: int, start: int, end: int, checkpoint: Checkpoint) -> None:
    """Overwrite the bytes from ``start`` to ``end``."""
    zeros = memoryview(bytes(_WRITTEN_AT_ONCE))
    offset = start
    while offset < end:
        offset += os.pwrite(fd, zeros[: min(len(zeros), end - offset)], offset)
        checkpoint(offset)


def _fallocate(fd: int, offset: int, length: int) -> None:
    """fallocate(2) itself: the C library's posix_fallocate writes a byte into each block where
    the file system can't, which takes hours on NFS and can't be stopped."""
    function = getattr(_libc, "fallocate64", None) or getattr(_libc, "fallocate", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    while function(fd, 0, ctypes.c_int64(offset), ctypes.c_int64(length)) == -1:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
