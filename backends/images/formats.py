"""The formats of volumes that are files, and what can be done with each.

The names are libvirt's (``virStorageFileFormat``); what can be created and resized is what
qemu-img 7.2 does, which the tests of this package compare with the table.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from backends.sizes import GIB, KIB, MAX_SIZE, MIB

SECTOR = 512
"""What most formats count their size in, in bytes."""

VHD_CYLINDER = 16 * 255 * SECTOR
"""The most by which a VHD grows where its maker rounds it to whole cylinders (VHD specification,
"CHS calculation"), in bytes. Images made here are exact to a sector."""


class Maker(enum.Enum):
    """Who makes an image of a format."""

    SELF = "self"
    QEMU_IMG = "qemu-img"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """What is known of one format.

    :param driver: qemu's name of the format; empty where qemu has none.
    :param why_not: why an image of the format can't be made; empty where it can.
    :param granularity: what a capacity may be rounded up by, in bytes.
    :param max_capacity: the largest image that qemu can open again, in bytes.
    :param takes_empty: whether an image of no bytes can be opened again.
    :param backing: formats that an image of this one can stand on; empty for none.
    :param preallocations: what ``preallocation`` can be.
    :param options: which of ``compat``, ``lazy_refcounts`` and ``extended_l2`` it has.
    :param cluster_sizes: least and greatest cluster size in bytes; None for no choice.
    """

    name: str
    driver: str = ""
    maker: Maker = Maker.NOBODY
    why_not: str = ""
    granularity: int = SECTOR
    max_capacity: int = MAX_SIZE
    takes_empty: bool = True
    backing: frozenset[str] = frozenset()
    preallocations: frozenset[str] = frozenset({"Off"})
    options: frozenset[str] = frozenset()
    cluster_sizes: tuple[int, int] | None = None
    grows: bool = False
    shrinks: bool = False
    has_header: bool = True

    @property
    def creatable(self) -> bool:
        return self.maker is not Maker.NOBODY


_READ_ONLY = "qemu-img can read it and not make it"
_ANY_IMAGE = frozenset(
    {"raw", "iso", "bochs", "cloop", "dmg", "vpc", "vhd", "vdi", "qcow", "qcow2", "qed", "vmdk"}
)
_HEADERLESS = frozenset({"raw", "iso"})
"""What qcow and qed images can stand on: neither keeps the format of another one in its header."""


def _raw(name: str) -> ImageFormat:
    return ImageFormat(
        name=name,
        driver="raw",
        maker=Maker.SELF,
        granularity=1,
        preallocations=frozenset({"Off", "Falloc", "Full"}),
        grows=True,
        shrinks=True,
        has_header=False,
    )


def _vpc(name: str) -> ImageFormat:
    return ImageFormat(
        name=name,
        driver="vpc",
        maker=Maker.QEMU_IMG,
        granularity=VHD_CYLINDER,
        max_capacity=2040 * GIB,
    )


_ALL = (
    ImageFormat(
        name="none", granularity=1, has_header=False, why_not="it stands for no format at all"
    ),
    _raw("raw"),
    ImageFormat(
        name="dir",
        granularity=1,
        has_header=False,
        why_not="it is a directory, which the pool makes and no image tool",
    ),
    ImageFormat(name="bochs", driver="bochs", why_not=_READ_ONLY),
    ImageFormat(name="cloop", driver="cloop", why_not=_READ_ONLY),
    ImageFormat(name="dmg", driver="dmg", why_not=_READ_ONLY),
    _raw("iso"),
    _vpc("vpc"),
    ImageFormat(
        name="vdi",
        driver="vdi",
        maker=Maker.QEMU_IMG,
        max_capacity=0x1FFFFF8000000,
    ),
    ImageFormat(
        name="fat", granularity=1, has_header=False, why_not="it is qemu's view of a directory"
    ),
    _vpc("vhd"),
    ImageFormat(name="ploop", why_not="it needs Virtuozzo's ploop tool"),
    ImageFormat(name="cow", why_not="qemu dropped it in release 2.2"),
    ImageFormat(
        name="qcow",
        driver="qcow",
        maker=Maker.QEMU_IMG,
        max_capacity=2**46,
        takes_empty=False,
        backing=_HEADERLESS,
    ),
    ImageFormat(
        name="qcow2",
        driver="qcow2",
        maker=Maker.QEMU_IMG,
        backing=_ANY_IMAGE,
        preallocations=frozenset({"Off", "Metadata", "Falloc", "Full"}),
        options=frozenset({"compat", "lazy_refcounts", "extended_l2"}),
        cluster_sizes=(512, 2 * MIB),
        grows=True,
        shrinks=True,
    ),
    ImageFormat(
        name="qed",
        driver="qed",
        maker=Maker.QEMU_IMG,
        backing=_HEADERLESS,
        cluster_sizes=(4 * KIB, 2 * MIB),  # with larger ones qemu's limit of the size overflows
        grows=True,
    ),
    ImageFormat(
        name="vmdk",
        driver="vmdk",
        maker=Maker.QEMU_IMG,
        max_capacity=2**50,
        takes_empty=False,
        backing=frozenset({"vmdk"}),
    ),
)

FORMATS: Mapping[str, ImageFormat] = MappingProxyType({item.name: item for item in _ALL})
"""All of libvirt's file formats by name."""


def same(declared: str, found: str) -> bool:
    """Whether a header that shows ``found`` may be that of an image declared ``declared``.

    ``vhd`` is libvirt's second name of ``vpc``, and an ``iso`` may be any raw file.
    """
    if declared == found:
        return True
    one, other = FORMATS.get(declared), FORMATS.get(found)
    return one is not None and other is not None and one.driver == other.driver != ""


def max_capacity(format: ImageFormat, cluster_size: int | None, *, extended_l2: bool) -> int:
    """The largest image of a format, in bytes, where that may depend on its clusters.

    :param cluster_size: bytes; None for the format's own, 64 KiB.
    """
    cluster = cluster_size or 64 * KIB
    match format.name:
        case "qcow2":  # The L1 table has at most 32 MiB (docs/interop/qcow2.txt of qemu).
            entries = cluster // (16 if extended_l2 else 8)
            return min(MAX_SIZE, 32 * MIB // 8 * entries * cluster)
        case "qed":  # L1 and L2 tables are four clusters each (qemu's default).
            return min(MAX_SIZE, (4 * cluster // 8) ** 2 * cluster)
        case _:
            return format.max_capacity
