"""Volumes that are block devices: what logical, disk, iscsi, scsi, mpath and zfs pools share."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat as modes
import struct
from collections.abc import Callable, Collection, Iterator

from backends import errors
from backends.base import OpenVolume
from backends.host import kernel, users
from backends.images import probing

_BLKGETSIZE64 = kernel.ioctl_number("read", 0x12, 114, struct.calcsize("N"))
"""ioctl(2) of ``linux/fs.h``: the size of a block device in bytes."""


@contextlib.contextmanager
def opened(
    path: str,
    *,
    write: bool = False,
    encrypted: bool = False,
    expected: Callable[[os.stat_result], bool] = lambda facts: True,
) -> Iterator[OpenVolume]:
    """Open a device to copy, wipe, upload or download its contents, and hold it.

    For writing it is opened with ``O_EXCL``: what is mounted, mapped or part of an array can't be.

    :param path: of the device, or a link of udev's that leads to it.
    :param encrypted: a LUKS header is declared to stand before the contents.
    :param expected: given the device's facts, says whether it is the very one that is meant; a path
        may lead to another device by now.
    :raises errors.NotFound: nothing stands there.
    :raises errors.Inaccessible: something else than a block device stands there, or another one.
    :raises errors.InUse: it is opened for writing, and somebody has it for themselves.
    """
    with _held(path, expected) as place:
        flags = os.O_RDWR | os.O_EXCL if write else os.O_RDONLY
        try:
            fd = os.open(f"/proc/self/fd/{place}", flags)
        except OSError as error:
            found = users.users_of(place) if error.errno == errno.EBUSY else ()
            if found:
                raise errors.InUse(
                    f"{path} is in use: {'; '.join(found)}.", hint="Stop what uses it."
                ) from error
            raise errors.from_os_error(error, doing=f"open {path}") from error
        try:
            yield _described(fd, encrypted)
        finally:
            os.close(fd)


def users_of(
    path: str,
    *,
    expected: Callable[[os.stat_result], bool] = lambda facts: True,
    besides: Collection[str] = (),
) -> tuple[str, ...]:
    """Who uses a device, each in words; nobody where it is not there.

    :param besides: devices such as ``/dev/dm-3`` that may stand on it.
    """
    try:
        with _held(path, expected) as place:
            return users.users_of(place, besides=besides)
    except errors.NotFound:
        return ()


def size(fd: int) -> int:
    """Bytes of an open block device."""
    try:
        answer = fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8))
    except OSError as error:
        raise errors.from_os_error(error, doing="ask a device for its size") from error
    return int(struct.unpack("=Q", answer)[0])


@contextlib.contextmanager
def _held(path: str, expected: Callable[[os.stat_result], bool]) -> Iterator[int]:
    """The device held by ``O_PATH``, which neither wakes it nor changes what uses it."""
    try:
        place = os.open(path, os.O_PATH)
    except FileNotFoundError as error:
        raise errors.NotFound(f"{path} is not there.") from error
    except OSError as error:
        raise errors.from_os_error(error, doing=f"look up {path}") from error
    try:
        facts = os.fstat(place)
        if not modes.S_ISBLK(facts.st_mode):
            raise errors.Inaccessible(
                f"{path} is not a block device.", hint="See what put it there, and remove it."
            )
        if not expected(facts):
            raise errors.Inaccessible(
                f"{path} is another device than it was.", hint="Nothing was changed on it."
            )
        yield place
    finally:
        os.close(place)


def _described(fd: int, encrypted: bool) -> OpenVolume:
    found = size(fd)
    header = probing.probe(fd) if encrypted else None
    if header is not None and header.encryption is None:
        raise errors.FormatChanged(
            "A device that is declared to be encrypted has no LUKS header.",
            hint="Something else wrote to it.",
        )
    return OpenVolume(
        fd=fd,
        path=f"/proc/self/fd/{fd}",
        pass_fds=(fd,),
        kind="block",
        format="raw",
        size=found,
        capacity=header.capacity if header is not None else found,
        encryption=header.encryption if header is not None else None,
    )
