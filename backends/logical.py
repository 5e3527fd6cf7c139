"""Pools on an LVM volume group (libvirt's logical)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backends.base import PoolType, TargetUse
from backends.schema import Model, Name, Xml
from backends.spec import Devices


class LogicalSource(Model):
    """A volume group."""

    volume_group: Annotated[Name | None, Xml("source/name")] = Field(
        None, description="Name of the volume group; default: the pool's name."
    )
    devices: Annotated[Devices, Xml("source/device")] = Field(
        (), description="Physical volumes; needed to build the group."
    )
    format: Annotated[Literal["unknown", "lvm2"], Xml("source/format/@type")] = Field(
        "lvm2", description="Format of the metadata."
    )
    provisioning: Literal["Thick", "Thin"] = Field(
        "Thick", description="How new volumes take their space."
    )


POOL_TYPE = PoolType(
    name="logical",
    order=4,
    description="An LVM volume group.",
    source=LogicalSource,
    source_name="volume_group",
    target=TargetUse.DERIVED,
    target_template="/dev/{source}",
)
