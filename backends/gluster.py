"""Pools on a Gluster volume, reached by its library (libvirt's gluster)."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from backends.base import PoolType, TargetUse
from backends.schema import Form, Model, Name, Text, Xml
from backends.spec import FileFormat, Hosts


class GlusterSource(Model):
    """A Gluster volume, or a directory in it."""

    volume: Annotated[Name | None, Xml("source/name")] = Field(
        None, description="Name of the Gluster volume; default: the pool's name."
    )
    hosts: Annotated[Hosts, Xml("source/host")] = Field(description="A server of the volume.")
    directory: Annotated[Text, Xml("source/dir/@path", Form.PATH)] = Field(
        "/", description="Directory in the volume."
    )


POOL_TYPE = PoolType(
    name="gluster",
    order=12,
    description="The files of a Gluster volume, without a mount.",
    source=GlusterSource,
    source_name="volume",
    target=TargetUse.NONE,
    volume_formats=get_args(FileFormat),
    default_volume_format="raw",
)
