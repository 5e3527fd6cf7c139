"""The pool of all multipath devices of a host (libvirt's mpath)."""

from __future__ import annotations

from backends.base import PoolType
from backends.schema import Model


class MpathSource(Model):
    """Multipath maps need no further word."""


POOL_TYPE = PoolType(
    name="mpath",
    order=9,
    description="All multipath devices of the host.",
    source=MpathSource,
)
