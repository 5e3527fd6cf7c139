"""Kernel calls that Python has no name for, made through the C library.

Each raises ``OSError`` as Python's own calls do; ``ENOSYS`` where the C library lacks the call.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import struct
from typing import Literal

FAT_MAGIC = 0x4D44
FUSE_MAGIC = 0x65735546
RAMFS_MAGIC = 0x858458F6
"""File system types as statfs(2) reports them, from ``linux/magic.h``."""

_libc = ctypes.CDLL(None, use_errno=True)

_RENAME_NOREPLACE = 1
_SYNC_FILE_RANGE_WRITE = 2
_AT_EMPTY_PATH = 0x1000
_STATX_BTIME = 0x800
_STATX_SIZE = 256
_STATX_BTIME_OFFSET = 80
_MAX_HANDLE_BYTES = 128
_STATFS_BYTES = 256


def _call(name: str, *arguments: object) -> None:
    function = getattr(_libc, name, None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), name)
    if function(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def ioctl_number(
    access: Literal["none", "read", "write", "both"], kind: int, number: int, size: int
) -> int:
    """``_IO``, ``_IOR``, ``_IOW`` or ``_IOWR`` of ``asm/ioctl.h``: machines lay the bits out in two
    ways."""
    other_layout = platform.machine().startswith(("ppc", "mips", "sparc", "alpha"))
    read, write, none = (2, 4, 1) if other_layout else (2, 1, 0)
    directions = {"read": read, "write": write, "both": read | write, "none": none}
    direction = directions[access] << (29 if other_layout else 30)
    return direction | size << 16 | kind << 8 | number


def change_partition(
    fd: int, verb: Literal["add", "remove", "resize"], number: int, *, start: int, size: int
) -> None:
    """Have the kernel show a partition, or no more, or with another size: ``BLKPG`` of
    ``linux/blkpg.h``. The table on the disk stays as it is.

    :param fd: of the whole disk.
    :param start: bytes, as ``size``; neither matters to ``remove``.
    :raises OSError: ``EBUSY`` where it is in use, or lies over another one.
    """
    partition = ctypes.create_string_buffer(struct.pack("@qqi128s4x", start, size, number, b""))
    length = len(partition) - 1
    code = {"add": 1, "remove": 2, "resize": 3}[verb]
    argument = struct.pack("@iiiP", code, 0, length, ctypes.addressof(partition))
    fcntl.ioctl(fd, ioctl_number("none", 0x12, 105, 0), argument)


_DM_HEADER = struct.Struct("=3I3Ii3IQ128s129s7x")
_DM_TARGET = struct.Struct("=QQiI16s")
"""``struct dm_ioctl`` and ``struct dm_target_spec`` of ``linux/dm-ioctl.h``."""

_DM_TABLE_STATUS, _DM_TABLE_FLAG = 12, 1 << 4
_DM_BYTES = 16 * 1024


def mapped_start(device: int) -> int | None:
    """Where a linear device-mapper device begins on the one beneath it, in bytes.

    :param device: its number.
    :return: None for a device of any other kind.
    :raises OSError: ``ENXIO`` where there is no such device.
    """
    buffer = bytearray(_DM_BYTES)
    _DM_HEADER.pack_into(
        buffer, 0, 4, 0, 0, _DM_BYTES, _DM_HEADER.size, 0, 0, _DM_TABLE_FLAG, 0, 0, device, b"", b""
    )
    request = ioctl_number("both", 0xFD, _DM_TABLE_STATUS, _DM_HEADER.size)
    fd = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, request, buffer)
    finally:
        os.close(fd)
    header = _DM_HEADER.unpack_from(buffer)
    offset, targets = header[4], header[5]
    kind = _DM_TARGET.unpack_from(buffer, offset)[-1].rstrip(b"\0")
    if targets != 1 or kind != b"linear":
        return None
    parameters = buffer[offset + _DM_TARGET.size :].partition(b"\0")[0]
    return int(parameters.split()[1]) * 512


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) itself: the C library's posix_fallocate writes a byte into each block where
    the file system can't, which takes hours on NFS and can't be stopped.

    :raises OSError: ``EOPNOTSUPP`` where the file system or device has no such thing.
    """
    name = "fallocate64" if hasattr(_libc, "fallocate64") else "fallocate"
    while True:
        with contextlib.suppress(InterruptedError):
            _call(name, fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
            return


def begin_writing_out(fd: int, offset: int, length: int) -> None:
    """Have the kernel begin to write a range to the disk, without waiting for it
    (sync_file_range(2) with ``SYNC_FILE_RANGE_WRITE``). It makes nothing outlast a power cut.
    """
    start, count = ctypes.c_int64(offset), ctypes.c_int64(length)
    _call("sync_file_range", fd, start, count, ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def rename_without_replacing(from_fd: int, old: str, to_fd: int, new: str) -> None:
    """renameat2(2) with ``RENAME_NOREPLACE``.

    :raises FileExistsError: where ``new`` stands already.
    :raises OSError: ``EINVAL`` where the file system can't do it, such as NFS.
    """
    _call("renameat2", from_fd, os.fsencode(old), to_fd, os.fsencode(new), _RENAME_NOREPLACE)


def sync_filesystem(fd: int) -> None:
    """syncfs(2): write out the whole file system that ``fd`` stands on."""
    _call("syncfs", fd)


def birth_time(fd: int) -> int | None:
    """The time of creation in nanoseconds since 1970; None where the file system keeps none.

    ``fd`` may be opened with ``O_PATH``. See statx(2).
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    _call("statx", fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer)
    (mask,) = struct.unpack_from("=I", buffer)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, _STATX_BTIME_OFFSET)
    return seconds * 10**9 + nanoseconds if mask & _STATX_BTIME else None


def fat_volume_id(fd: int) -> int:
    """The serial number of a FAT file system: ``FAT_IOCTL_GET_VOLUME_ID`` of ``linux/msdos_fs.h``.

    :param fd: of any file on it, not opened with ``O_PATH``.
    """
    answer = fcntl.ioctl(fd, ioctl_number("read", ord("r"), 0x13, 4), bytes(4))
    return int(struct.unpack("=I", answer)[0])


def first_block(fd: int) -> int:
    """The block of the device that a file begins in, 0 for none: ``FIBMAP`` of ``linux/fs.h``.

    :param fd: of a regular file, not opened with ``O_PATH``.
    :raises OSError: ``EPERM`` without privilege, ``ERANGE`` for a number past 31 bits.
    """
    answer = fcntl.ioctl(fd, ioctl_number("none", 0x00, 1, 0), bytes(4))
    return int(struct.unpack("=i", answer)[0])


def file_handle(fd: int) -> str:
    """The file's handle, the same for as long as the file exists and never given to another.

    It holds the inode's number and generation, or what the NFS server calls the file.
    ``fd`` may be opened with ``O_PATH``; no privilege is needed. See name_to_handle_at(2).

    :raises OSError: ``EOPNOTSUPP`` where the file system has no handles.
    """
    header = struct.calcsize("Ii")
    buffer = ctypes.create_string_buffer(header + _MAX_HANDLE_BYTES)
    struct.pack_into("I", buffer, 0, _MAX_HANDLE_BYTES)
    mount_id = ctypes.c_int()
    _call("name_to_handle_at", fd, b"", buffer, ctypes.byref(mount_id), _AT_EMPTY_PATH)
    length, kind = struct.unpack_from("Ii", buffer)
    return f"{kind:x}-{buffer.raw[header : header + length].hex()}"


def filesystem_magic(fd: int) -> int:
    """The type of the file system as a number of ``linux/magic.h``; see statfs(2)."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    _call("fstatfs", fd, buffer)
    # f_type is a machine word everywhere but on s390x.
    (magic,) = struct.unpack_from("I" if platform.machine() == "s390x" else "l", buffer)
    return int(magic) & 0xFFFFFFFF
