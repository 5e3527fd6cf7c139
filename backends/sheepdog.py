"""Pools on a Sheepdog cluster (libvirt's sheepdog, until 8.8)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backends.base import PoolType, TargetUse
from backends.schema import Model, Name, Xml
from backends.spec import Hosts


class SheepdogSource(Model):
    """A Sheepdog cluster."""

    name: Annotated[Name | None, Xml("source/name")] = Field(
        None, description="Name of the cluster; default: the pool's name."
    )
    hosts: Annotated[Hosts, Xml("source/host")] = Field(description="A node of the cluster.")


POOL_TYPE = PoolType(
    name="sheepdog",
    order=11,
    description="The virtual disks of a Sheepdog cluster.",
    source=SheepdogSource,
    source_name="name",
    target=TargetUse.NONE,
)
