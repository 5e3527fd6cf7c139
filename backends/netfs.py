"""Pools on a network file system (libvirt's netfs): NFS, CIFS, GlusterFS by FUSE."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from backends.base import PoolType
from backends.schema import Form, Model, Rule, Text, Xml
from backends.spec import FileFormat, Hosts


class NetfsSource(Model):
    """A directory that a server exports."""

    rules = (
        Rule(
            cel="!has(self.protocolVersion) || !has(self.format) || self.format in ['auto', 'nfs']",
            message="protocolVersion is only for formats nfs and auto",
            holds=lambda self: self.protocol_version is None or self.format in ("auto", "nfs"),
        ),
    )

    hosts: Annotated[Hosts, Xml("source/host")] = Field(
        description="The server; exactly one to start the pool."
    )
    directory: Annotated[Text, Xml("source/dir/@path", Form.PATH)] = Field(
        min_length=1, description="Exported directory, share or volume."
    )
    format: Annotated[Literal["auto", "nfs", "glusterfs", "cifs"], Xml("source/format/@type")] = (
        Field("auto", description="File system; auto leaves it to mount.")
    )
    protocol_version: Annotated[
        Annotated[str, Field(max_length=32, pattern=r"^[^,]+$")] | None, Xml("source/protocol/@ver")
    ] = Field(None, description="NFS version, such as 4.2.")
    mount_options: Annotated[tuple[Text, ...], Xml("fs:mount_opts/fs:option/@name")] = Field(
        (), max_length=64, description="Mount options beside nodev, nosuid and noexec."
    )


POOL_TYPE = PoolType(
    name="netfs",
    order=3,
    description="A directory of a server, mounted at the target.",
    source=NetfsSource,
    volume_formats=get_args(FileFormat),
    default_volume_format="raw",
)
