"""Setting space aside in a file, so that it can't run out later."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from backends.host import kernel
from backends.sizes import GIB, MIB

Checkpoint = Callable[[int], None]
"""Called between pieces of work with the offset that is reached; it may raise to stop the work."""

UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS})
"""What a file system answers that has no such thing."""

_ALLOCATED_AT_ONCE = 1 * GIB
_WRITTEN_AT_ONCE = 4 * MIB


def allocate(fd: int, start: int, end: int, checkpoint: Checkpoint) -> None:
    """Set aside the bytes from ``start`` to ``end``, and let the file reach to ``end``.

    Where the file system can't, zeros are written instead, so the range must hold no data.

    :raises OSError: ``ENOSPC`` and what else the file system answers.
    """
    for offset in range(start, end, _ALLOCATED_AT_ONCE):
        try:
            kernel.fallocate(fd, 0, offset, min(_ALLOCATED_AT_ONCE, end - offset))
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
