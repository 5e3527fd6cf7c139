"""Formats of volumes, by what volumes are."""

from __future__ import annotations

from typing import Literal

FileFormat = Literal[
    "none", "raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd", "ploop",
    "cow", "qcow", "qcow2", "qed", "vmdk",
]  # fmt: skip
"""Formats of volumes that are files (libvirt's virStorageFileFormat)."""


PartitionFormat = Literal[
    "none", "linux", "fat16", "fat32", "linux-swap", "linux-lvm", "linux-raid", "extended"
]
"""Formats of volumes that are partitions (libvirt's virStorageVolFormatDisk)."""


VolumeFormat = Literal[
    "raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd", "ploop", "cow",
    "qcow", "qcow2", "qed", "vmdk", "none", "linux", "fat16", "fat32", "linux-swap", "linux-lvm",
    "linux-raid", "extended",
]  # fmt: skip
"""Formats of volumes, over all pool types."""
