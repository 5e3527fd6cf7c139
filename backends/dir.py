"""Pools on a directory (libvirt's dir)."""

from __future__ import annotations

from typing import get_args

from backends.base import PoolType
from backends.schema import Model
from backends.spec import FileFormat


class DirSource(Model):
    """A directory needs no word beside target.path."""


POOL_TYPE = PoolType(
    name="dir",
    order=1,
    description="A directory of the host.",
    source=DirSource,
    volume_formats=get_args(FileFormat),
    default_volume_format="raw",
)
