"""Pools on a file system of a block device (libvirt's fs)."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from backends.base import PoolType
from backends.schema import Model, Text, Xml
from backends.spec import Device, FileFormat

MountOptions = Annotated[tuple[Text, ...], Xml("fs:mount_opts/fs:option/@name")]


class FsSource(Model):
    """A file system on a block device."""

    device: Annotated[Device, Xml("source/device")] = Field(description="The block device.")
    format: Annotated[
        Literal[
            "auto", "ext2", "ext3", "ext4", "ufs", "iso9660", "udf", "gfs", "gfs2", "vfat",
            "hfs+", "xfs", "ocfs2", "vmfs",
        ],
        Xml("source/format/@type"),
    ] = Field("auto", description="File system; auto leaves it to mount.")  # fmt: skip
    mount_options: MountOptions = Field(
        (), max_length=64, description="Mount options beside nodev, nosuid and noexec."
    )


POOL_TYPE = PoolType(
    name="fs",
    order=2,
    description="A file system on a block device, mounted at the target.",
    source=FsSource,
    volume_formats=get_args(FileFormat),
    default_volume_format="raw",
)
