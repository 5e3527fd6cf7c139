"""File systems mounted nowhere: looked at and marked before anybody can find them by a path.

fsopen(2) and fsmount(2) give a descriptor of a mounted root that has no mount point. It goes when
the descriptor is closed, also when this process is killed. Linux has them since 5.2.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator, Sequence

from backends import errors
from backends.host import mounts

DETACHED_SECONDS = 60.0
"""How long a device may take to be mounted so; the replay of a journal included."""

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
"""Numbers of the calls, which are the same on all machines but alpha."""

_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8

_UNTOUCHED = {
    "btrfs": ("ro", "rescue=nologreplay"),
    "ext3": ("ro", "noload"),
    "ext4": ("ro", "noload"),
    "xfs": ("ro", "norecovery"),
}
"""Options with which a file system is read and its journal left alone."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@contextlib.contextmanager
def mounted(
    device: str, filesystem: str, *, write: bool, seconds: float = DETACHED_SECONDS
) -> Iterator[int]:
    """The root directory of a file system on a device, as an open descriptor.

    :param filesystem: the kernel's name of it, such as ``ext4``.
    :param write: False to read it and change nothing, not even its journal.
    :raises errors.Inaccessible: it can't be mounted, with the kernel's reason; or not in time.
    :raises errors.InUse: the device is held by something else.
    :raises errors.MissingTool: the kernel does not know the file system.
    """
    options = () if write else _UNTOUCHED.get(filesystem, ("ro",))
    fd = mounts.bounded(
        lambda: _mount(device, filesystem, options, write=write),
        seconds,
        key=f"the device {device}",
        discard=os.close,
    )
    try:
        # What fsmount gives is no directory of its own yet; its root can be opened beneath.
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        try:
            yield root
        finally:
            os.close(root)
    finally:
        os.close(fd)


def _mount(device: str, filesystem: str, options: Sequence[str], *, write: bool) -> int:
    try:
        context = _call(_FSOPEN, filesystem.encode(), _CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise errors.MissingTool(
                f"The kernel can't mount {filesystem}.",
                hint="Load or install the module of that name.",
            ) from error
        raise errors.from_os_error(error, doing=f"mount {device}") from error
    try:
        _configure(context, _SET_STRING, "source", device)
        for option in options:
            name, _, value = option.partition("=")
            _configure(context, _SET_STRING if value else _SET_FLAG, name, value or None)
        _configure(context, _CREATE, None, None)
        access = _NOSUID | _NODEV | _NOEXEC | (0 if write else _RDONLY)
        return _call(_FSMOUNT, context, _CLOEXEC, access)
    except OSError as error:
        raise _refused(context, device, filesystem, error) from error
    finally:
        os.close(context)


def _configure(context: int, command: int, key: str | None, value: str | None) -> None:
    _call(
        _FSCONFIG,
        context,
        command,
        key.encode() if key else None,
        os.fsencode(value) if value is not None else None,
        0,
    )


def _refused(context: int, device: str, filesystem: str, error: OSError) -> errors.StorageError:
    if error.errno == errno.EBUSY:
        return errors.InUse(f"{device} is in use and can't be mounted.", hint="Stop what uses it.")
    told = _messages(context) or error.strerror or str(error)
    return errors.Inaccessible(
        f"The {filesystem} file system on {device} can't be mounted: {told}.",
        hint="See the kernel's log, and check the file system.",
    )


def _messages(context: int) -> str:
    """What the file system said; each read gives one message, with its kind in front."""
    told = []
    with contextlib.suppress(OSError):
        while line := os.read(context, 4096):
            told.append(line.decode(errors="replace").strip().removeprefix("e ").rstrip("."))
    return "; ".join(told)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *map(_argument, arguments))
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def _argument(value: object) -> object:
    """As wide as a register, as syscall(2) takes them."""
    return ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value)  # type: ignore[arg-type]
