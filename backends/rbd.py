"""Pools on a Ceph RBD pool (libvirt's rbd)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backends.base import PoolType, TargetUse
from backends.schema import Model, Name, Text, Xml
from backends.spec import Auth, Hosts


class ConfigOption(Model):
    """A setting of the Ceph client."""

    name: Annotated[Text, Xml("@name")] = Field(min_length=1, description="Name of the setting.")
    value: Annotated[Text, Xml("@value")] = Field(min_length=1, description="Its value.")


class RbdSource(Model):
    """A pool of a Ceph cluster."""

    pool: Annotated[Name | None, Xml("source/name")] = Field(
        None, description="Name of the Ceph pool; default: the pool's name."
    )
    hosts: Annotated[Hosts, Xml("source/host")] = Field(description="Monitors.")
    auth: Annotated[Auth | None, Xml("source/auth")] = Field(None, description="Ceph user and key.")
    config_options: Annotated[tuple[ConfigOption, ...], Xml("rbd:config_opts/rbd:option")] = Field(
        (), max_length=64, description="Settings of the Ceph client."
    )


POOL_TYPE = PoolType(
    name="rbd",
    order=10,
    description="A pool of RBD images in a Ceph cluster.",
    source=RbdSource,
    source_name="pool",
    target=TargetUse.NONE,
    volume_formats=("raw",),
    default_volume_format="raw",
)
