"""Pools on Virtuozzo Storage (libvirt's vstorage)."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from backends.base import PoolType
from backends.schema import Model, Name, Xml
from backends.spec import FileFormat


class VstorageSource(Model):
    """A Virtuozzo Storage cluster."""

    cluster: Annotated[Name | None, Xml("source/name")] = Field(
        None, description="Name of the cluster; default: the pool's name."
    )


POOL_TYPE = PoolType(
    name="vstorage",
    order=14,
    description="A Virtuozzo Storage cluster, mounted at the target.",
    source=VstorageSource,
    source_name="cluster",
    volume_formats=get_args(FileFormat),
    default_volume_format="raw",
)
