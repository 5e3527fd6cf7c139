"""Reading image headers in process.

A header is written by whoever made the image, which may be a guest or an attacker. So nothing in
it is believed: every read is bounded, whatever sizes the header gives, and what does not add up
is refused. Sources: qemu's docs/interop (qcow2, qed, parallels), the VMDK, VHD and LUKS on-disk
format specifications, and qemu's and libvirt's behaviour where those leave a choice.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from backends import errors
from backends.images.formats import SECTOR
from backends.sizes import MAX_SIZE

HEAD = 4096
"""What is read of every image, in bytes."""

MAX_EXTENSIONS = 64 * 1024
"""How far into a qcow2 image its header extensions are looked at, in bytes."""

MAX_READ = HEAD + MAX_EXTENSIONS
"""The most that is read of any image without LUKS2, in bytes."""

MAX_LUKS_JSON = 4 * 2**20
"""The largest header of LUKS2 (its specification, section 2.1), in bytes."""

MAX_NAME = 1023
"""The longest name of another file (qcow2 specification), in bytes."""

_EXTENSION_COUNT = 256
_MAX_DESCRIPTOR = 64 * 1024
_MAX_EXTENTS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What the header of an image says; sizes and offsets in bytes.

    :param format: libvirt's name of the format; ``raw`` for contents of no known form.
    :param capacity: the size that a user of the image sees, without a LUKS header before it.
    :param backing_path: as the header has it, with surrogates for bytes that are not UTF-8.
    :param backing_format: libvirt's name; None where the header gives none.
    :param data_file: the external data file of a qcow2; empty where the header does not name it.
    :param extents: further files that a vmdk descriptor says hold its data.
    :param encryption: ``luks`` or ``qcow``.
    :param payload_offset: where the data begins behind a LUKS header before a raw volume.
    :param compat: of qcow2: ``0.10`` or ``1.1``.
    :param cluster_size: the unit of allocation.
    :param corrupt: qcow2: marked as inconsistent, so that qemu does not write to it.
    :param snapshots: count of internal snapshots of a qcow2.
    """

    format: str
    capacity: int
    backing_path: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    extents: tuple[str, ...] = ()
    encryption: str | None = None
    payload_offset: int | None = None
    compat: str | None = None
    cluster_size: int | None = None
    lazy_refcounts: bool | None = None
    extended_l2: bool | None = None
    corrupt: bool | None = None
    snapshots: int | None = None


MARKED_AS_CORRUPT = "qemu has marked it as corrupt; 'qemu-img check -r all' may mend it"


@dataclass(slots=True)
class _Image:
    """An open image that gives out at most ``budget`` bytes."""

    fd: int
    size: int
    budget: int = MAX_READ
    head: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.head = self.some(0, HEAD)

    def some(self, offset: int, length: int) -> bytes:
        """The bytes of a range, fewer at the end of the file.

        :raises errors.ProbeFailed: the file was cut meanwhile.
        """
        length = min(length, self.size - offset)
        if length <= 0 or offset < 0:
            return b""
        self.budget -= length
        if self.budget < 0:
            raise _malformed("its header needs too much reading")
        try:
            found = os.pread(self.fd, length, offset)
        except OSError as error:
            raise errors.from_os_error(error, doing="read the header of an image") from error
        if len(found) != length:
            raise _malformed("it was cut while it was read")
        return found

    def at(self, offset: int, length: int) -> bytes:
        """Exactly the bytes of a range.

        :raises errors.ProbeFailed: it reaches past the end of the file.
        """
        if offset >= 0 and offset + length <= len(self.head):
            return self.head[offset : offset + length]
        found = self.some(offset, length)
        if len(found) != length:
            raise _malformed(f"its header points past the end, to byte {offset + length}")
        return found

    def unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        return struct.unpack(layout, self.at(offset, struct.calcsize(layout)))

    def number(self, layout: str, offset: int) -> int:
        return self.unpack(layout, offset)[0]


def probe(fd: int) -> ImageHeader:
    """Say what an image is by its header. No process is started, and ``fd``'s position is kept.

    :param fd: a regular file or block device, open for reading.
    :raises errors.ProbeFailed: a header of a known form that is cut off or does not add up.
    :raises errors.StorageError: the file could not be read.
    """
    image = _Image(fd, size(fd))
    header = _bounded(_read(image))
    if size(fd) < image.size:
        raise _malformed("it was cut while it was read")
    return header


def _read(image: _Image) -> ImageHeader:
    for offset, magic, read in _MAGICS:
        if image.head.startswith(magic, offset):
            return read(image)
    if image.some(_ISO_OFFSET, len(_ISO_MAGIC)) == _ISO_MAGIC:
        return ImageHeader(format="iso", capacity=image.size)
    footer = image.some(image.size - SECTOR, SECTOR)
    if _is_fixed_vhd(footer, image.size):
        return _read_vhd_footer(footer)
    return ImageHeader(format="raw", capacity=image.size)


def size(fd: int) -> int:
    """Bytes of a file or a block device.

    :raises errors.ProbeFailed: it is neither.
    """
    facts = os.fstat(fd)
    if stat.S_ISREG(facts.st_mode):
        return facts.st_size
    if not stat.S_ISBLK(facts.st_mode):
        raise errors.ProbeFailed(
            "Could not read the header of an image: it is neither a file nor a block device."
        )
    position = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.lseek(fd, position, os.SEEK_SET)


def _bounded(header: ImageHeader) -> ImageHeader:
    if not 0 <= header.capacity <= MAX_SIZE:
        raise _malformed(f"its header gives a size of {header.capacity} bytes")
    return header


def _malformed(why: str) -> errors.ProbeFailed:
    return errors.ProbeFailed(
        f"The image can't be understood: {why}.",
        hint="It is damaged, or it is no image: declare it raw if it is not.",
    )


def _name(image: _Image, offset: int, length: int, *, area: int) -> str | None:
    """A file name in the header; None for an empty one.

    :param area: how many bytes at the start of the file may hold it.
    """
    if length > MAX_NAME:
        raise _malformed(f"it has a name of {length} bytes")
    if offset + length > area:
        raise _malformed(f"the name at byte {offset} is past the end of its header")
    return os.fsdecode(image.at(offset, length).partition(b"\0")[0]) or None


def _cluster_size(bits: int, least: int, greatest: int) -> int:
    if not least <= bits <= greatest:
        raise _malformed(f"it has clusters of 2**{bits} bytes")
    return 1 << bits


_ENCRYPTIONS = {0: None, 1: "qcow", 2: "luks"}


def _read_qcow(image: _Image) -> ImageHeader:
    version = image.number(">I", 4)
    if version == 1:
        return _read_qcow1(image)
    if version in (2, 3):
        return _read_qcow2(image, version)
    raise _malformed(f"it is a qcow image of version {version}, which is not known")


def _read_qcow1(image: _Image) -> ImageHeader:
    name_offset, name_length, _, size, bits, _, method = image.unpack(">QIIQBB2xI", 8)
    return ImageHeader(
        format="qcow",
        capacity=size,
        backing_path=_name(image, name_offset, name_length, area=MAX_READ) if name_offset else None,
        encryption=_encryption(method),
        cluster_size=_cluster_size(bits, 9, 16),
    )


def _encryption(method: int) -> str | None:
    if method not in _ENCRYPTIONS:
        raise _malformed(f"its encryption has number {method}, which is not known")
    return _ENCRYPTIONS[method]


_QCOW2_V2_LENGTH = 72
_QCOW2_V3_LENGTH = 104
_CORRUPT, _DATA_FILE, _EXTENDED_L2 = 2, 4, 16
_LAZY_REFCOUNTS = 1


def _read_qcow2(image: _Image, version: int) -> ImageHeader:
    name_offset, name_length, bits, size, method = image.unpack(">QIIQI", 8)
    (snapshots,) = image.unpack(">I", 60)
    cluster_size = _cluster_size(bits, 9, 21)
    incompatible, compatible, length, least = 0, 0, _QCOW2_V2_LENGTH, _QCOW2_V2_LENGTH
    if version == 3:
        incompatible, compatible = image.unpack(">QQ", 72)
        length, least = image.number(">I", 100), _QCOW2_V3_LENGTH
    if not least <= length <= cluster_size:
        raise _malformed(f"its header claims {length} bytes")
    end = name_offset if name_offset else cluster_size
    if end > cluster_size:
        raise _malformed(f"the name at byte {name_offset} is past the end of its header")
    extensions = _qcow2_extensions(image, length, end)
    path = _name(image, name_offset, name_length, area=cluster_size) if name_offset else None
    return ImageHeader(
        format="qcow2",
        capacity=size,
        backing_path=path,
        backing_format=_backing_format(extensions.get(_BACKING_FORMAT)) if path else None,
        data_file=_data_file(extensions.get(_DATA_FILE_NAME))
        if incompatible & _DATA_FILE
        else None,
        encryption=_encryption(method),
        compat="1.1" if version == 3 else "0.10",
        cluster_size=cluster_size,
        lazy_refcounts=bool(compatible & _LAZY_REFCOUNTS),
        extended_l2=bool(incompatible & _EXTENDED_L2),
        corrupt=bool(incompatible & _CORRUPT),
        snapshots=snapshots,
    )


_BACKING_FORMAT = 0xE2792ACA
_DATA_FILE_NAME = 0x44415441
_KEPT = {_BACKING_FORMAT: 15, _DATA_FILE_NAME: MAX_NAME}
"""Header extensions that are of use, with the length that qemu takes at most."""


def _qcow2_extensions(image: _Image, start: int, end: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = start
    for _ in range(_EXTENSION_COUNT):
        if offset + 8 > min(end, image.size):
            return found
        kind, length = image.unpack(">II", offset)
        if kind == 0:
            return found
        if offset + 8 + length > end:
            raise _malformed(f"the extension at byte {offset} claims {length} bytes")
        if kind in _KEPT:
            if length > _KEPT[kind]:
                raise _malformed(f"the name at byte {offset} has {length} bytes")
            found[kind] = image.at(offset + 8, length)
        offset += 8 + (length + 7) // 8 * 8
    raise _malformed(f"it has more than {_EXTENSION_COUNT} header extensions")


_FORMATS_OF_DRIVERS = {"host_device": "raw", "file": "raw"}
"""Words that old versions of qemu wrote for a raw backing image."""


def _backing_format(written: bytes | None) -> str | None:
    if not written:
        return None
    try:
        text = written.partition(b"\0")[0].decode("ascii")
    except UnicodeDecodeError:
        text = ""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise _malformed("the format of its backing image is not a word")
    return _FORMATS_OF_DRIVERS.get(text, text)


def _data_file(written: bytes | None) -> str:
    return os.fsdecode((written or b"").partition(b"\0")[0])


_QED_BACKING, _QED_RAW_BACKING = 1, 4


def _read_qed(image: _Image) -> ImageHeader:
    cluster_size, _, header_clusters, features = image.unpack("<IIIQ", 4)
    size, name_offset, name_length = image.unpack("<QII", 48)
    if cluster_size & (cluster_size - 1) or not 2**12 <= cluster_size <= 2**26:
        raise _malformed(f"its clusters have {cluster_size} bytes")
    path = None
    if features & _QED_BACKING:
        area = cluster_size * header_clusters
        path = _name(image, name_offset, name_length, area=area)
    return ImageHeader(
        format="qed",
        capacity=size,
        backing_path=path,
        backing_format="raw" if path and features & _QED_RAW_BACKING else None,
        cluster_size=cluster_size,
    )


_DESCRIPTOR_MAGIC = b"# Disk DescriptorFile"
_PARENT = re.compile(rb'^[ \t]*parentFileNameHint[ \t]*=[ \t]*"([^"\r\n]*)', re.MULTILINE)
_EXTENT = re.compile(
    rb"^[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+([0-9]{1,19})[ \t]+[A-Z0-9]{1,16}"
    rb'(?:[ \t]+"([^"\r\n]*)")?',
    re.MULTILINE,
)


def _read_vmdk_sparse(image: _Image) -> ImageHeader:
    version, _, sectors, grain, descriptor, descriptor_sectors = image.unpack("<IIQQQQ", 4)
    if version not in (1, 2, 3):
        raise _malformed(f"it is a vmdk image of version {version}, which is not known")
    text = b""
    if descriptor:
        length = min(descriptor_sectors * SECTOR, _MAX_DESCRIPTOR)
        text = image.some(descriptor * SECTOR, length).partition(b"\0")[0]
    path = _parent(text)
    return ImageHeader(
        format="vmdk",
        capacity=sectors * SECTOR,
        backing_path=path,
        backing_format="vmdk" if path else None,
        cluster_size=grain * SECTOR if 0 < grain <= 2**32 else None,
    )


def _parent(descriptor: bytes) -> str | None:
    found = _PARENT.search(descriptor)
    if found is None or not found[1]:
        return None
    if len(found[1]) > MAX_NAME:
        raise _malformed(f"it has a name of {len(found[1])} bytes")
    return os.fsdecode(found[1])


def _read_vmdk_descriptor(image: _Image) -> ImageHeader:
    text = image.some(0, _MAX_DESCRIPTOR).partition(b"\0")[0]
    extents = _EXTENT.findall(text)
    if len(extents) > _MAX_EXTENTS:
        raise _malformed(f"it is made of {len(extents)} files")
    path = _parent(text)
    return ImageHeader(
        format="vmdk",
        capacity=sum(int(sectors) for sectors, _ in extents) * SECTOR,
        backing_path=path,
        backing_format="vmdk" if path else None,
        extents=tuple(os.fsdecode(name) for _, name in extents if name),
    )


def _read_vmdk_cowd(image: _Image) -> ImageHeader:
    sectors, grain = image.unpack("<II", 12)
    return ImageHeader(
        format="vmdk", capacity=sectors * SECTOR, cluster_size=grain * SECTOR or None
    )


_VDI_VERSION = 0x00010001


def _read_vdi(image: _Image) -> ImageHeader:
    version = image.number("<I", 68)
    if version != _VDI_VERSION:
        raise _malformed(f"it is a vdi image of version {version:#x}, which is not known")
    size, block = image.unpack("<QI", 368)
    return ImageHeader(
        format="vdi",
        capacity=-(-size // SECTOR) * SECTOR,
        cluster_size=block or None,
    )


_VHD_MAGIC = b"conectix"
_VHD_FIXED = 2
_VHD_MOST_SECTORS = 65535 * 16 * 255
_VHD_EXACT = (b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS", b"wa\0\0")
"""Makers whose disks have the size that is given; others go by the geometry (qemu's vpc)."""


def _vhd_checksum_holds(footer: bytes) -> bool:
    """The ones' complement of the sum of all other bytes (VHD specification)."""
    (written,) = struct.unpack_from(">I", footer, 64)
    total = sum(footer) - sum(footer[64:68])
    return bool(~total & 0xFFFFFFFF == written)


def _is_fixed_vhd(footer: bytes, size: int) -> bool:
    """A fixed VHD has nothing before its data, so its footer has to be right in all."""
    if len(footer) != SECTOR or not footer.startswith(_VHD_MAGIC):
        return False
    (kind,) = struct.unpack_from(">I", footer, 60)
    (claimed,) = struct.unpack_from(">Q", footer, 48)
    return kind == _VHD_FIXED and claimed <= size - SECTOR and _vhd_checksum_holds(footer)


def _read_vhd_footer(footer: bytes) -> ImageHeader:
    if not _vhd_checksum_holds(footer):
        raise _malformed("the checksum of its header is wrong")
    size, cylinders, heads, sectors = struct.unpack_from(">QHBB", footer, 48)
    by_geometry = cylinders * heads * sectors
    exact = footer[28:32] in _VHD_EXACT or by_geometry == _VHD_MOST_SECTORS
    return ImageHeader(
        format="vpc", capacity=size // SECTOR * SECTOR if exact else by_geometry * SECTOR
    )


def _read_vhd(image: _Image) -> ImageHeader:
    header = _read_vhd_footer(image.at(0, SECTOR))
    start = image.number(">Q", 16)
    if image.some(start, 8) != b"cxsparse":
        raise _malformed("the second header of the vhd image is not where the first says")
    return replace(header, cluster_size=image.number(">I", start + 32) or None)


def _read_cow(image: _Image) -> ImageHeader:
    version = image.number(">I", 4)
    if version != 2:
        raise _malformed(f"it is a cow image of version {version}, which is not known")
    name = image.at(8, 1024).partition(b"\0")[0]
    if len(name) > MAX_NAME:
        raise _malformed("its backing name does not end")
    return ImageHeader(
        format="cow", capacity=image.number(">Q", 1036), backing_path=os.fsdecode(name) or None
    )


def _read_ploop(image: _Image) -> ImageHeader:
    return ImageHeader(format="ploop", capacity=image.number("<Q", 36) * SECTOR)


_BOCHS_SIZE_AT = {0x10000: 84, 0x20000: 88}


def _read_bochs(image: _Image) -> ImageHeader:
    version = image.number("<I", 64)
    if version not in _BOCHS_SIZE_AT:
        raise _malformed(f"it is a bochs image of version {version:#x}, which is not known")
    size = image.number("<Q", _BOCHS_SIZE_AT[version])
    return ImageHeader(format="bochs", capacity=size // SECTOR * SECTOR)


def _read_cloop(image: _Image) -> ImageHeader:
    block, count = image.unpack(">II", 128)
    return ImageHeader(format="cloop", capacity=block * count)


def _read_luks(image: _Image) -> ImageHeader:
    version = image.number(">H", 6)
    readers = {1: _luks1_payload, 2: _luks2_payload}
    if version not in readers:
        raise _malformed(f"it has a LUKS header of version {version}, which is not known")
    offset = readers[version](image)
    return ImageHeader(
        format="raw",
        capacity=max(0, image.size - offset),  # a backup of the header alone holds no data
        encryption="luks",
        payload_offset=offset,
    )


def _luks1_payload(image: _Image) -> int:
    return image.number(">I", 104) * SECTOR


_LUKS2_BINARY = 4096


def _luks2_payload(image: _Image) -> int:
    length = image.number(">Q", 8)
    if not _LUKS2_BINARY < length <= MAX_LUKS_JSON:
        raise _malformed(f"its LUKS2 header claims {length} bytes")
    image.budget = length
    area = image.at(_LUKS2_BINARY, length - _LUKS2_BINARY).partition(b"\0")[0]
    try:
        segments = json.loads(area)["segments"]
        offset = min(int(segment["offset"]) for segment in segments.values())
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        offset = -1
    if offset < 0:
        raise _malformed("its LUKS2 header describes no segment")
    return offset


_ISO_OFFSET, _ISO_MAGIC = 32769, b"CD001"

_MAGICS: tuple[tuple[int, bytes, Callable[[_Image], ImageHeader]], ...] = (
    (0, b"QFI\xfb", _read_qcow),
    (0, b"QED\0", _read_qed),
    (0, b"KDMV", _read_vmdk_sparse),
    (0, b"COWD", _read_vmdk_cowd),
    (0, _DESCRIPTOR_MAGIC, _read_vmdk_descriptor),
    (0, _VHD_MAGIC, _read_vhd),
    (0, b"OOOM", _read_cow),
    (0, b"WithouFreSpacExt", _read_ploop),
    (0, b"Bochs Virtual HD Image\0", _read_bochs),
    (0, b"#!/bin/sh\n#V2.0 Format\n", _read_cloop),
    (0, b"LUKS\xba\xbe", _read_luks),
    (64, b"\x7f\x10\xda\xbe", _read_vdi),
)
