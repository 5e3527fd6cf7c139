"""Pools on the LUNs of an iSCSI target, without block devices (libvirt's iscsi-direct)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backends.base import PoolType, TargetUse
from backends.schema import Model, Text, Xml
from backends.spec import Auth, Device, Hosts


class IscsiDirectSource(Model):
    """An iSCSI target that is reached by a library."""

    hosts: Annotated[Hosts, Xml("source/host")] = Field(description="The portal.")
    device: Annotated[Device, Xml("source/device")] = Field(
        description="The target; its path is the target's IQN."
    )
    initiator: Annotated[Text, Xml("source/initiator/iqn/@name")] = Field(
        min_length=1, description="Initiator IQN."
    )
    auth: Annotated[Auth | None, Xml("source/auth")] = Field(
        None, description="CHAP user and password."
    )


POOL_TYPE = PoolType(
    name="iscsi-direct",
    order=7,
    description="The LUNs of an iSCSI target, reached by a library.",
    source=IscsiDirectSource,
    target=TargetUse.NONE,
)
