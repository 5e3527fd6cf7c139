"""Pools on the partitions of a disk (libvirt's disk)."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from backends.base import PoolType
from backends.schema import Model, Xml
from backends.spec import Device, PartitionFormat


class DiskSource(Model):
    """A disk with a partition table."""

    device: Annotated[Device, Xml("source/device")] = Field(description="The disk.")
    format: Annotated[
        Literal["unknown", "dos", "dvh", "gpt", "mac", "bsd", "pc98", "sun", "lvm2"],
        Xml("source/format/@type"),
    ] = Field("unknown", description="Partition table; unknown is written as dos.")


POOL_TYPE = PoolType(
    name="disk",
    order=5,
    description="The partitions of a disk.",
    source=DiskSource,
    volume_formats=get_args(PartitionFormat),
    default_volume_format="none",
)
