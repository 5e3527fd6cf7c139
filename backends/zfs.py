"""Pools on a ZFS pool or dataset (libvirt's zfs)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backends.base import PoolType, TargetUse
from backends.schema import Model, Text, Xml
from backends.spec import Devices

Dataset = Annotated[Text, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.:/ ]*$")]


class ZfsSource(Model):
    """A ZFS pool, or a dataset in one."""

    dataset: Annotated[Dataset | None, Xml("source/name")] = Field(
        None, description="ZFS pool or dataset; default: the pool's name."
    )
    devices: Annotated[Devices, Xml("source/device")] = Field(
        (), description="Devices; needed to build a ZFS pool."
    )


POOL_TYPE = PoolType(
    name="zfs",
    order=13,
    description="The volumes of a ZFS pool.",
    source=ZfsSource,
    source_name="dataset",
    target=TargetUse.DERIVED,
    target_template="/dev/zvol/{source}",
)
