"""Pools on the LUNs of an iSCSI target, by the kernel's initiator (libvirt's iscsi)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backends.base import PoolType
from backends.schema import Model, Text, Xml
from backends.spec import Auth, Device, Hosts


class IscsiSource(Model):
    """An iSCSI target."""

    hosts: Annotated[Hosts, Xml("source/host")] = Field(
        description="The portal; exactly one to start the pool."
    )
    device: Annotated[Device, Xml("source/device")] = Field(
        description="The target; its path is the target's IQN."
    )
    initiator: Annotated[Text | None, Xml("source/initiator/iqn/@name")] = Field(
        None, description="Initiator IQN; the host's own if left out."
    )
    auth: Annotated[Auth | None, Xml("source/auth")] = Field(
        None, description="CHAP user and password."
    )


POOL_TYPE = PoolType(
    name="iscsi",
    order=6,
    description="The LUNs of an iSCSI target, as block devices.",
    source=IscsiSource,
)
