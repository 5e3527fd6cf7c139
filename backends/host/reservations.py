"""Space that steps under way still have to write: what a further step must not count on.

Nothing is set aside on the file system: a clone or an import may turn out to need less, and is to
stay sparse. What is noted here is how large a file will be when it is done; less what it has by
now, that much of what the file system shows as free is spoken for.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from backends import errors
from backends.sizes import format_human

_BLOCK = 512
"""Bytes that ``st_blocks`` counts in (stat(3type))."""


@dataclass(frozen=True, slots=True, eq=False)
class _Reservation:
    device: int
    fd: int
    needed: int
    purpose: str

    @property
    def left(self) -> int:
        """Bytes that are still to come."""
        return max(0, self.needed - os.fstat(self.fd).st_blocks * _BLOCK)


_reservations: list[_Reservation] = []
_lock = threading.Lock()


@contextlib.contextmanager
def reserved(fd: int, needed: int, purpose: str) -> Iterator[None]:
    """Let a file grow to a size, if its file system has the space beside what others still need.

    :param fd: open for as long as the context is.
    :param needed: bytes that it will take on the disk.
    :param purpose: what grows, for people.
    :raises errors.NoSpace: there is not enough.
    """
    with _lock:
        made = _Reservation(os.fstat(fd).st_dev, fd, needed, purpose)
        _require(made, _beside(made.device))
        _reservations.append(made)
    try:
        yield
    finally:
        with _lock:
            _reservations.remove(made)


def outstanding(fd: int) -> int:
    """Bytes that files on the file system of ``fd`` are still to grow by."""
    with _lock:
        return sum(item.left for item in _beside(os.fstat(fd).st_dev))


def _beside(device: int) -> list[_Reservation]:
    return [item for item in _reservations if item.device == device]


def _require(wanted: _Reservation, others: list[_Reservation]) -> None:
    facts = os.fstatvfs(wanted.fd)
    free, taken = facts.f_bavail * facts.f_frsize, sum(item.left for item in others)
    if wanted.left <= free - taken:
        return
    beside = ""
    if taken:
        named = ", ".join(sorted({item.purpose for item in others if item.left}))
        beside = f", of which {format_human(taken)} are for {named}"
    raise errors.NoSpace(
        f"There is no room for {wanted.purpose}: it needs {format_human(wanted.left)}, and its "
        f"file system has {format_human(free)} left{beside}.",
        hint="Free some space, or use a larger pool; it is tried again.",
    )
