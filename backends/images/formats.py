"""Formats of images that are files, and what qemu-img can do with each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SECTOR = 512
"""Bytes to which qemu-img rounds the virtual size of every format but raw up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """One format, by libvirt's name.

    :param driver: qemu's name; empty where an image is not made by qemu-img.
    :param headerless: without a header, so that the file's size is the image's.
    :param granularity: bytes to which the virtual size is rounded up when an image is made.
    :param backing: whether an image can stand on another one.
    :param preallocation: values of the ``preallocation`` option that are not ``off``.
    :param options: options that are always given.
    :param unmade: why such an image can't be made here; empty where it can.
    """

    name: str
    driver: str = ""
    headerless: bool = False
    granularity: int = SECTOR
    backing: bool = False
    preallocation: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    grows: bool = False
    shrinks: bool = False
    unmade: str = ""

    @property
    def qcow2(self) -> bool:
        """Whether compat, cluster size and features apply."""
        return self.driver == "qcow2"


_READ_ONLY = "qemu-img can only read this format"
_LISTED = (
    ImageFormat(
        name="raw",
        headerless=True,
        granularity=1,
        preallocation=("falloc", "full"),
        grows=True,
        shrinks=True,
    ),
    ImageFormat(
        name="iso",
        headerless=True,
        granularity=1,
        preallocation=("falloc", "full"),
        grows=True,
        shrinks=True,
    ),
    ImageFormat(
        name="qcow2",
        driver="qcow2",
        backing=True,
        preallocation=("metadata", "falloc", "full"),
        grows=True,
        shrinks=True,
    ),
    ImageFormat(name="qcow", driver="qcow", backing=True),
    ImageFormat(name="qed", driver="qed", backing=True, grows=True),
    ImageFormat(name="vmdk", driver="vmdk", backing=True),
    ImageFormat(name="vdi", driver="vdi"),
    # Without force_size the size is rounded to what a geometry of cylinders can express.
    ImageFormat(name="vpc", driver="vpc", options=("force_size=on",)),
    ImageFormat(name="vhd", unmade="qemu-img knows this format as vpc"),
    ImageFormat(name="bochs", unmade=_READ_ONLY),
    ImageFormat(name="cloop", unmade=_READ_ONLY),
    ImageFormat(name="dmg", unmade=_READ_ONLY),
    ImageFormat(name="cow", unmade="qemu dropped this format in version 2.2"),
    ImageFormat(name="fat", unmade="it is a view of a directory and not an image"),
    ImageFormat(name="ploop", unmade="it needs Virtuozzo's ploop tool, which is not supported"),
    ImageFormat(name="none", unmade="it is no format of a file"),
)

FORMATS: Mapping[str, ImageFormat] = {item.name: item for item in _LISTED}
"""All formats of files but ``dir``, which is a directory and no image."""
