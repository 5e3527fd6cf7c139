"""Root without its powers, for tests of what an ordinary user meets."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

_LIBC = ctypes.CDLL(None, use_errno=True)
_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@contextlib.contextmanager
def without_powers() -> Iterator[None]:
    """No effective capability in this thread and those it starts meanwhile (capget(2)).

    Root owns its files still, but their modes hold for it.
    """
    if os.geteuid() != 0:
        yield
        return
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    _call("capget", header, sets)
    before = [item.effective for item in sets]
    for item in sets:
        item.effective = 0
    _call("capset", header, sets)
    try:
        yield
    finally:
        for item, effective in zip(sets, before, strict=True):
            item.effective = effective
        _call("capset", header, sets)


def _call(name: str, header: _Header, sets: ctypes.Array[_Sets]) -> None:
    if getattr(_LIBC, name)(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), name)
