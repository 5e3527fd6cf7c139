"""Holes: parts of a file or device that read as zeros and take no space."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator

from backends.host import kernel
from backends.images.allocating import UNSUPPORTED, Checkpoint, write_zeros
from backends.sizes import KIB, MIB

CLEARED_AT_ONCE = 256 * MIB
"""Bytes between two checkpoints; a device may have to write all of them."""

BLOCK = 4096
"""What a device is cleared in; a multiple of every logical block size, in bytes."""

SMALL = 64 * KIB
"""Bytes that a device gets written as zeros rather than by a request of their own."""

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10
"""Modes of fallocate(2), from ``linux/falloc.h``."""

_FICLONE = kernel.ioctl_number("write", 0x94, 9, struct.calcsize("i"))
_BLKDISCARD = kernel.ioctl_number("none", 0x12, 119, 0)
_ZEROS = bytes(64 * KIB)


def extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """The parts of a range in order, each with whether it may hold data.

    A part without data reads as zeros. Where the file system keeps no account of its holes, and
    for a device, all is one part with data. The position of ``fd`` is changed.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        if start < end:
            yield start, end, True
        return
    while start < end:
        data = _seek(fd, start, os.SEEK_DATA, end)
        if data > start:
            yield start, data, False
        hole = _seek(fd, data, os.SEEK_HOLE, end) if data < end else end
        if hole > data:
            yield data, hole, True
        start = hole


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    try:
        return min(os.lseek(fd, offset, whence), end)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole, or the end of the file
            return end
        if error.errno == errno.EINVAL:  # the file system can't tell
            return offset if whence == os.SEEK_DATA else end
        raise


def clear(fd: int, start: int, end: int, checkpoint: Checkpoint) -> None:
    """Let a range read as zeros, without taking space where that can be had.

    The size of a file stays. On a device the range is unmapped where it has such a command that
    promises zeros, else zeros are written (fallocate(2), blkdev_fallocate of Linux).
    """
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        first, last = -(-start // BLOCK) * BLOCK, end // BLOCK * BLOCK
        if last - first < SMALL:
            write_zeros(fd, start, end, checkpoint)
            return
        write_zeros(fd, start, first, checkpoint)
        _clear_whole(fd, first, last, checkpoint)
        write_zeros(fd, last, end, checkpoint)
    else:
        _clear_whole(fd, start, min(end, max(start, os.fstat(fd).st_size)), checkpoint)


def _clear_whole(fd: int, start: int, end: int, checkpoint: Checkpoint) -> None:
    for offset in range(start, end, CLEARED_AT_ONCE):
        reached = min(offset + CLEARED_AT_ONCE, end)
        if not _fallocate(fd, _PUNCH_HOLE, offset, reached) and not _fallocate(
            fd, _ZERO_RANGE, offset, reached
        ):
            _write_over_data(fd, offset, reached, checkpoint)
        checkpoint(reached)


def _write_over_data(fd: int, start: int, end: int, checkpoint: Checkpoint) -> None:
    """Write zeros over what is not a hole already."""
    for first, last, data in extents(fd, start, end):
        if data:
            write_zeros(fd, first, last, checkpoint)


def _fallocate(fd: int, mode: int, start: int, end: int) -> bool:
    """fallocate(2); false where that mode is not to be had."""
    try:
        kernel.fallocate(fd, mode | _KEEP_SIZE, start, end - start)
    except OSError as error:
        if error.errno in UNSUPPORTED or error.errno == errno.EINVAL:
            return False
        raise
    return True


def is_zero(block: memoryview | bytearray, start: int = 0, end: int | None = None) -> bool:
    """Whether a part of a buffer holds zeros alone."""
    part = bytes(block[start:end])
    return part == bytes(len(part)) if len(part) > len(_ZEROS) else _ZEROS.startswith(part)


def reflink(target: int, source: int) -> None:
    """Let a file share all extents of another one, whose size it gets (ioctl_ficlone(2)).

    :raises OSError: ``EXDEV`` for another file system, ``EOPNOTSUPP``, ``ENOTTY`` or ``EINVAL``
        where the file system can't do it.
    """
    fcntl.ioctl(target, _FICLONE, source)


def discard(fd: int, start: int, end: int) -> None:
    """Tell a block device that a range is not needed; what it reads then is open (``BLKDISCARD``).

    :param start: like ``end`` at the border of a sector.
    :raises OSError: ``EOPNOTSUPP`` where the device can't.
    """
    fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", start, end - start))
