"""What the header of an image says, read in this process and within bounds.

An image is hostile until shown otherwise: nothing that a header says decides how much is read,
and a name in it is only reported, never opened, unless a caller follows the chain. Layouts are
those of qemu's docs/interop (qcow2, qed, vmdk, vpc, vdi as its block drivers read them) and of the
LUKS on-disk format specifications, versions 1 and 2.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from backends import errors
from backends.sizes import MAX_SIZE

HEAD = 4096
"""Bytes that are read from the start of each image."""

MAX_NAME = 1023
"""Longest name of a backing file, in bytes (qcow2 specification)."""

MAX_EXTENSIONS = 64 * 1024
"""Bytes of qcow2 header extensions that are looked through; qemu stops at the first cluster."""

MAX_DESCRIPTOR = 64 * 1024
MAX_LUKS_JSON = 4 * 2**20
MAX_DEPTH = 200
"""Images of a chain that are followed."""

_SECTOR = 512
_ISO_MAGIC_AT = 32769


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What a header says; sizes in bytes.

    :param format: libvirt's name; ``raw`` for content that nothing is known of.
    :param capacity: the virtual size.
    :param backing_path: the name as it stands in the header.
    :param backing_format: the format that the header declares for it; None where it says nothing.
    :param data_file: name of a qcow2 image's external data file.
    :param encryption: ``luks`` or ``qcow`` (the old AES scheme).
    """

    format: str
    capacity: int
    backing_path: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    encryption: str | None = None
    compat: str | None = None
    cluster_size: int | None = None
    lazy_refcounts: bool | None = None
    extended_l2: bool | None = None
    corrupt: bool = False
    snapshots: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackingLink:
    """One image of a chain, below the one that names it.

    :param present: None for a name that is not a file (``nbd://``, ``json:``).
    :param problem: why it can't be read.
    """

    path: str
    format: str | None
    present: bool | None
    problem: str = ""
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class _Image:
    """An open image and its first bytes."""

    fd: int
    size: int
    head: bytes

    def read(self, offset: int, length: int) -> bytes:
        """Exactly so many bytes.

        :raises errors.ProbeFailed: the image ends before.
        """
        if offset < 0 or offset + length > self.size:
            raise errors.ProbeFailed("The header points past the end of the image.")
        return _read(self.fd, offset, length)

    def unpack(self, layout: str, offset: int = 0) -> tuple[int, ...]:
        """Numbers of the header.

        :raises errors.ProbeFailed: the header is cut short.
        """
        try:
            return struct.unpack_from(layout, self.head, offset)
        except struct.error:
            raise errors.ProbeFailed("The header is cut short.") from None

    def name(self, offset: int, length: int) -> str:
        """A file name in the header."""
        if length > MAX_NAME:
            raise errors.ProbeFailed(f"The header has a name of {length} bytes.")
        return os.fsdecode(self.read(offset, length).split(b"\0", 1)[0])


def probe(fd: int) -> ImageHeader:
    """Read the header of an open image: a regular file or a block device.

    :raises errors.ProbeFailed: it has the magic of a format, and what follows makes no sense.
    """
    size = _size(fd)
    image = _Image(fd, size, _read(fd, 0, min(HEAD, size)))
    for matches, reader in _READERS:
        if matches(image):
            header = reader(image)
            if not 0 <= header.capacity <= MAX_SIZE:
                raise errors.ProbeFailed(f"The header gives a size of {header.capacity} bytes.")
            return header
    return ImageHeader(format="raw", capacity=size)


def _size(fd: int) -> int:
    facts = os.fstat(fd)
    return os.lseek(fd, 0, os.SEEK_END) if stat.S_ISBLK(facts.st_mode) else facts.st_size


def _read(fd: int, offset: int, length: int) -> bytes:
    try:
        return os.pread(fd, length, offset)
    except OSError as error:
        raise errors.from_os_error(error, doing="read the header of an image") from error


def _magic(magic: bytes, offset: int = 0) -> Callable[[_Image], bool]:
    return lambda image: image.head[offset : offset + len(magic)] == magic


def _qcow(image: _Image) -> ImageHeader:
    (version,) = image.unpack(">I", 4)
    if version == 1:
        return _qcow1(image)
    if version in (2, 3):
        return _qcow2(image, version)
    raise errors.ProbeFailed(f"The qcow header has version {version}.")


def _qcow1(image: _Image) -> ImageHeader:
    backing_at, backing_length, _, capacity, bits, _, _, crypt = image.unpack(">QIIQBBHI", 8)
    return ImageHeader(
        format="qcow",
        capacity=capacity,
        backing_path=image.name(backing_at, backing_length) if backing_at else None,
        encryption="qcow" if crypt == 1 else None,
        cluster_size=1 << bits if 9 <= bits <= 16 else None,
    )


_QCOW2_EXTERNAL_DATA, _QCOW2_CORRUPT, _QCOW2_EXTENDED_L2 = 1 << 2, 1 << 1, 1 << 4
_EXTENSION_BACKING_FORMAT, _EXTENSION_DATA_FILE = 0xE2792ACA, 0x44415441


def _qcow2(image: _Image, version: int) -> ImageHeader:
    backing_at, backing_length, bits, capacity, crypt = image.unpack(">QIIQI", 8)
    (snapshots,) = image.unpack(">I", 60)
    if not 9 <= bits <= 21:
        raise errors.ProbeFailed(f"The qcow2 header gives clusters of 2**{bits} bytes.")
    incompatible = compatible = 0
    length = 72
    if version == 3:
        incompatible, compatible = image.unpack(">QQ", 72)
        (length,) = image.unpack(">I", 100)
    extensions = _extensions(image, length, min(1 << bits, MAX_EXTENSIONS))
    external = bool(incompatible & _QCOW2_EXTERNAL_DATA)
    return ImageHeader(
        format="qcow2",
        capacity=capacity,
        backing_path=image.name(backing_at, backing_length) if backing_at else None,
        backing_format=extensions.get(_EXTENSION_BACKING_FORMAT) if backing_at else None,
        data_file=extensions.get(_EXTENSION_DATA_FILE, "") if external else None,
        encryption={0: None, 1: "qcow", 2: "luks"}.get(crypt, "unknown"),
        compat="1.1" if version == 3 else "0.10",
        cluster_size=1 << bits,
        lazy_refcounts=bool(compatible & 1),
        extended_l2=bool(incompatible & _QCOW2_EXTENDED_L2),
        corrupt=bool(incompatible & _QCOW2_CORRUPT),
        snapshots=snapshots,
    )


def _extensions(image: _Image, offset: int, end: int) -> dict[int, str]:
    """Texts of the header extensions by type; the end marker, nonsense or ``end`` stops."""
    data = _read(image.fd, 0, min(end, image.size))
    found: dict[int, str] = {}
    while offset + 8 <= len(data):
        kind, length = struct.unpack_from(">II", data, offset)
        offset += 8
        if kind == 0 or offset + length > len(data):
            break
        if kind in (_EXTENSION_BACKING_FORMAT, _EXTENSION_DATA_FILE) and length <= MAX_NAME:
            found[kind] = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
        offset += -(-length // 8) * 8
    return found


_QED_BACKING, _QED_BACKING_IS_RAW = 1, 4


def _qed(image: _Image) -> ImageHeader:
    cluster_size, _, _, features = image.unpack("<IIIQ", 4)
    capacity, backing_at, backing_length = image.unpack("<QII", 48)
    backing = bool(features & _QED_BACKING)
    return ImageHeader(
        format="qed",
        capacity=capacity,
        backing_path=image.name(backing_at, backing_length) if backing else None,
        backing_format="raw" if backing and features & _QED_BACKING_IS_RAW else None,
        cluster_size=cluster_size,
    )


_EXTENT = re.compile(rb'^(?:RW|RDONLY|NOACCESS)\s+([0-9]{1,16})\s+[A-Z]+(?:\s+"[^"\n]*")?', re.M)
_PARENT = re.compile(rb'^parentFileNameHint\s*=\s*"([^"\n]*)"', re.M)


def _vmdk(image: _Image) -> ImageHeader:
    (sectors,) = image.unpack("<Q", 12)
    at, length = image.unpack("<QQ", 28)
    backing = None
    if at and length:
        wanted = min(length * _SECTOR, MAX_DESCRIPTOR, max(0, image.size - at * _SECTOR))
        descriptor = image.read(at * _SECTOR, wanted) if wanted else b""
        backing = _parent(descriptor)
    return ImageHeader(format="vmdk", capacity=sectors * _SECTOR, backing_path=backing)


def _vmdk_cowd(image: _Image) -> ImageHeader:
    (sectors,) = image.unpack("<I", 12)
    return ImageHeader(format="vmdk", capacity=sectors * _SECTOR)


def _vmdk_descriptor(image: _Image) -> ImageHeader:
    text = _read(image.fd, 0, min(MAX_DESCRIPTOR, image.size))
    sectors = sum(int(count) for count in _EXTENT.findall(text))
    return ImageHeader(format="vmdk", capacity=sectors * _SECTOR, backing_path=_parent(text))


def _parent(descriptor: bytes) -> str | None:
    found = _PARENT.search(descriptor)
    if found is None or not found[1]:
        return None
    if len(found[1]) > MAX_NAME:
        raise errors.ProbeFailed(f"The descriptor has a name of {len(found[1])} bytes.")
    return os.fsdecode(found[1])


def _vdi(image: _Image) -> ImageHeader:
    (capacity,) = image.unpack("<Q", 368)
    return ImageHeader(format="vdi", capacity=capacity)


_SIZED_BY_FIELD = (b"win ", b"qem2", b"d2v ", b"wa\0\0", b"tap\0", b"CTXS")
_LARGEST_GEOMETRY = 65535 * 16 * 255


def _is_fixed_vpc(image: _Image) -> bool:
    if image.size < 2 * _SECTOR or image.size % _SECTOR:
        return False
    footer = _read(image.fd, image.size - _SECTOR, _SECTOR)
    return footer[:8] == b"conectix" and _checksum_holds(footer)


def _checksum_holds(footer: bytes) -> bool:
    (stored,) = struct.unpack_from(">I", footer, 64)
    total = sum(footer) - sum(footer[64:68])
    return bool(stored == ~total & 0xFFFFFFFF)


def _vpc(image: _Image) -> ImageHeader:
    """A VHD: by its geometry, or by its size field where the creator is known to use that."""
    fixed = image.head[:8] != b"conectix"
    footer = _read(image.fd, image.size - _SECTOR, _SECTOR) if fixed else image.head[:_SECTOR]
    if len(footer) < _SECTOR:
        raise errors.ProbeFailed("The header is cut short.")
    (size,) = struct.unpack_from(">Q", footer, 48)
    cylinders, heads, sectors = struct.unpack_from(">HBB", footer, 56)
    geometry = cylinders * heads * sectors
    by_field = footer[28:32] in _SIZED_BY_FIELD or geometry in (0, _LARGEST_GEOMETRY)
    return ImageHeader(format="vpc", capacity=size if by_field else geometry * _SECTOR)


def _luks(image: _Image) -> ImageHeader:
    (version,) = image.unpack(">H", 6)
    if version == 1:
        (sectors,) = image.unpack(">I", 104)
        payload = sectors * _SECTOR
    elif version == 2:
        payload = _luks2_payload(image)
    else:
        raise errors.ProbeFailed(f"The LUKS header has version {version}.")
    capacity = max(0, image.size - payload)
    return ImageHeader(format="raw", capacity=capacity, encryption="luks")


def _luks2_payload(image: _Image) -> int:
    (length,) = image.unpack(">Q", 8)
    if not HEAD < length <= MAX_LUKS_JSON:
        raise errors.ProbeFailed(f"The LUKS2 header gives itself {length} bytes.")
    text = _read(image.fd, HEAD, length - HEAD).split(b"\0", 1)[0]
    try:
        segments = json.loads(text)["segments"]
        return min(int(item["offset"]) for item in segments.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise errors.ProbeFailed("The LUKS2 header has no segment.") from None


def _cow(image: _Image) -> ImageHeader:
    (capacity,) = image.unpack(">Q", 1036)
    name = image.head[8 : 8 + 1024].split(b"\0", 1)[0]
    return ImageHeader(
        format="cow", capacity=capacity, backing_path=os.fsdecode(name) if name else None
    )


def _ploop(image: _Image) -> ImageHeader:
    (sectors,) = image.unpack("<Q", 36)
    return ImageHeader(format="ploop", capacity=sectors * _SECTOR)


def _bochs(image: _Image) -> ImageHeader:
    (version,) = image.unpack("<I", 64)
    (capacity,) = image.unpack("<Q", 84 if version == 0x10000 else 88)
    return ImageHeader(format="bochs", capacity=capacity)


def _cloop(image: _Image) -> ImageHeader:
    block, count = image.unpack(">II", 128)
    return ImageHeader(format="cloop", capacity=block * count)


def _iso(image: _Image) -> ImageHeader:
    return ImageHeader(format="iso", capacity=image.size)


_READERS: tuple[tuple[Callable[[_Image], bool], Callable[[_Image], ImageHeader]], ...] = (
    (_magic(b"QFI\xfb"), _qcow),
    (_magic(b"LUKS\xba\xbe"), _luks),
    (_magic(b"QED\0"), _qed),
    (_magic(b"KDMV"), _vmdk),
    (_magic(b"COWD"), _vmdk_cowd),
    (_magic(b"# Disk DescriptorFile"), _vmdk_descriptor),
    (_magic(b"conectix"), _vpc),
    (_magic(b"\x7f\x10\xda\xbe", 64), _vdi),
    (_magic(b"OOOM\0\0\0\x02"), _cow),
    (_magic(b"WithouFreSpacExt"), _ploop),
    (_magic(b"Bochs Virtual HD Image"), _bochs),
    (_magic(b"#!/bin/sh\n#V2.0 Format\n"), _cloop),
    (lambda image: _tail_magic(image, b"CD001", _ISO_MAGIC_AT), _iso),
    (_is_fixed_vpc, _vpc),
)


def _tail_magic(image: _Image, magic: bytes, offset: int) -> bool:
    if image.size < offset + len(magic):
        return False
    return _read(image.fd, offset, len(magic)) == magic


_PROTOCOL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*:")


def resolve(name: str, directory: str) -> str | None:
    """The path of a backing file as qemu resolves it; None for what is not a file.

    A relative name starts at the directory of the image that names it. A word before the first
    ``:`` and before any ``/`` is a protocol; ``file:`` is the one that leads to a file.
    """
    if name.startswith("file:"):
        name = name.removeprefix("file:")
    elif _PROTOCOL.match(name):
        return None
    return os.path.normpath(os.path.join(directory, name))


def backing_link(path: str, format: str | None) -> BackingLink:
    """Look at an image that another one stands on."""
    return _look(path, format)[0]


def backing_chain(header: ImageHeader, directory: str) -> tuple[BackingLink, ...]:
    """The images below one, nearest first.

    The chain ends at the first link that is raw, declared so or by saying nothing (libvirt takes
    raw for it, and a guest may write any header into a raw disk), that can't be read, or that is
    no file. A loop ends it with a link whose problem says so.

    :param directory: of the image whose header it is.
    """
    links: list[BackingLink] = []
    seen: set[str] = set()
    while header.backing_path is not None and len(links) < MAX_DEPTH:
        path = resolve(header.backing_path, directory)
        if path is None:
            opaque = BackingLink(
                path=header.backing_path, format=header.backing_format, present=None
            )
            return (*links, opaque)
        if path in seen:
            problem = "the chain leads back to it"
            looped = BackingLink(
                path=path, format=header.backing_format, present=False, problem=problem
            )
            return (*links, looped)
        seen.add(path)
        link, below = _look(path, header.backing_format)
        links.append(link)
        if below is None:
            break
        header, directory = below, os.path.dirname(path)
    return tuple(links)


def _look(path: str, format: str | None) -> tuple[BackingLink, ImageHeader | None]:
    """A link, and the header of its image if the chain may go on there."""
    link = BackingLink(path=path, format=format, present=False)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return replace(link, problem=error.strerror or str(error)), None
    try:
        kind = os.fstat(fd).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
            return replace(link, problem="it is neither a file nor a block device"), None
        if format in (None, "raw"):
            return replace(link, present=True, capacity=_size(fd)), None
        header = probe(fd)
    except errors.StorageError as error:
        return replace(link, problem=error.message.rstrip(".")), None
    finally:
        os.close(fd)
    if header.format != format:
        problem = f"it is declared {format} and its header shows {header.format}"
        return replace(link, problem=problem, capacity=header.capacity), None
    return replace(link, present=True, capacity=header.capacity), header
