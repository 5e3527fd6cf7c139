"""What stands on a block device, as libblkid knows it: file systems, volume groups, partitions.

``blkid -p`` exits with 2 both for an empty device and for one that can't be read, and ``wipefs``
passes over what can't be read, so neither alone tells empty from broken. Here the ends of the
device, where all signatures are, are read first; what can't be read raises ``ProbeFailed``. Then
``wipefs`` lists every signature, also those that hide behind others, where ``blkid`` names one.

A device without any signature counts as empty. Data of an unknown form is not seen by a probe.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends import errors
from backends.host import commands, mounts
from backends.sizes import MIB, format_quantity

EDGE = 4 * MIB
"""Bytes at each end of a device in which libblkid looks; VMFS, at 2 MiB, is the farthest in."""

PROBE_SECONDS = 30.0
"""How long a device may take to be read at its ends, and each command to look at it."""

_SHOWN_PARTITIONS = 4
_PARTITION_TABLE = "partition-table"
_BRIDGES = frozenset({"iso9660", "udf"})
"""Both on one disc are one file system in two forms."""

_WORDS = {
    "LVM1_member": "an LVM1 physical volume",
    "LVM2_member": "an LVM physical volume",
    "VMFS": "a VMFS file system",
    "VMFS_volume_member": "a member of a VMFS volume",
    "bcache": "a bcache device",
    "BitLocker": "a BitLocker volume",
    "ceph_bluestore": "a Ceph OSD",
    "crypto_LUKS": "a LUKS encrypted volume",
    "drbd": "a DRBD device",
    "linux_raid_member": "a member of a Linux RAID array",
    "mpath_member": "a path of a multipath map",
    "swap": "swap space",
    "swsuspend": "a hibernated system",
    "swap_suspend": "a hibernated system",
    "zfs_member": "a member of a ZFS pool",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One thing that a probe recognised.

    :param type: libblkid's word: ``ext4``, ``LVM2_member``, ``crypto_LUKS``, ``gpt``.
    :param usage: ``filesystem``, ``raid``, ``crypto``, ``other`` or ``partition-table``.
    :param offset: of its magic, in bytes.
    """

    type: str
    usage: str
    offset: int
    uuid: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition as its table says; sizes in bytes."""

    number: int
    start: int
    size: int
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a probe of a device found.

    :param signatures: one of each type, those of the lowest offset first.
    :param partitions: those of the partition table, where there is one.
    :param volume_group: the group that an LVM physical volume belongs to, where it can be read.
    """

    signatures: tuple[Signature, ...] = ()
    partitions: tuple[Partition, ...] = ()
    volume_group: str | None = None

    @property
    def empty(self) -> bool:
        return not self.signatures

    @property
    def table(self) -> Signature | None:
        """The partition table."""
        return next((item for item in self.signatures if item.usage == _PARTITION_TABLE), None)

    @property
    def uuid(self) -> str | None:
        """UUID of what stands there; None where nothing has one, or several things stand there."""
        found = {item.uuid for item in self.signatures if item.uuid}
        return found.pop() if len(found) == 1 else None

    @property
    def ambiguous(self) -> bool:
        """Whether several things stand there, none of which may be taken for the one."""
        types = {item.type for item in self.signatures if item.usage != _PARTITION_TABLE}
        return len(types) > 1 and types != _BRIDGES

    def sole(self, path: str) -> Signature | None:
        """The one thing that is not a partition table; None where there is none.

        :param path: of the device, for the message.
        :raises errors.ProbeFailed: where there are several, none of which may be taken for it.
        """
        found = [item for item in self.signatures if item.usage != _PARTITION_TABLE]
        if self.ambiguous:
            raise errors.ProbeFailed(
                f"It can't be told what {path} holds: it has the signatures of {_listed(self)}.",
                hint="Remove those that are left over from former uses, with wipefs --offset.",
            )
        return found[0] if found else None

    def __str__(self) -> str:
        """In words for a message: ``an ext4 file system``."""
        return _listed(self) if self.signatures else "nothing"


def probe(path: str, *, seconds: float = PROBE_SECONDS) -> Contents:
    """Look at a block device, or at a file as if it were one. Nothing is written.

    :param seconds: how long each of the steps may take.
    :raises errors.NotFound: nothing of that name is there.
    :raises errors.ProbeFailed: it can't be read at its ends, or a tool failed.
    :raises errors.Inaccessible: it did not answer in time.
    :raises errors.MissingTool: wipefs is not on this host.
    """
    head = mounts.bounded(lambda: _read_edges(path), seconds, key=f"the device {path}")
    try:
        signatures = _signatures(path, seconds)
        partitions = _partitions(path, seconds) if _has_table(signatures) else ()
    except (errors.CommandFailed, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, str(error).rstrip(".")) from error
    is_lvm = any(item.type == "LVM2_member" for item in signatures)
    return Contents(
        signatures=signatures,
        partitions=partitions,
        volume_group=volume_group_name(head) if is_lvm else None,
    )


def _read_edges(path: str) -> bytes:
    """Read both ends, and give the first one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise errors.NotFound(f"{path} is not there.", hint="Check the device's name.") from error
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        head = _read_exactly(fd, 0, min(EDGE, size))
        _read_exactly(fd, max(0, size - EDGE), min(EDGE, size))
        return head
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    finally:
        os.close(fd)


def _read_exactly(fd: int, offset: int, length: int) -> bytes:
    read = bytearray()
    while len(read) < length:
        chunk = os.pread(fd, length - len(read), offset + len(read))
        if not chunk:
            raise OSError(0, "it ends before the size that it reports")
        read += chunk
    return bytes(read)


def _unreadable(path: str, why: str) -> errors.ProbeFailed:
    return errors.ProbeFailed(
        f"{path} can't be examined: {why}.",
        hint="It may hold anything, so nothing is written to it. Check the device.",
    )


def _signatures(path: str, seconds: float) -> tuple[Signature, ...]:
    told = commands.run(
        ("wipefs", "--no-act", "--json", "--output", "TYPE,USAGE,OFFSET,UUID,LABEL", path),
        timeout=seconds,
    )
    # Releases differ in what they print for an empty device: nothing, or an empty list.
    listed: list[dict[str, Any]] = json.loads(told.stdout or "{}").get("signatures") or []
    found: dict[str, Signature] = {}
    for item in sorted(listed, key=lambda entry: int(entry["offset"], 16)):
        signature = Signature(
            type=item["type"],
            usage=item["usage"],
            offset=int(item["offset"], 16),
            uuid=item["uuid"] or None,
            label=item["label"] or None,
        )
        found.setdefault(signature.type, signature)
    return tuple(found.values())


def _has_table(signatures: Sequence[Signature]) -> bool:
    return any(item.usage == _PARTITION_TABLE for item in signatures)


def _partitions(path: str, seconds: float) -> tuple[Partition, ...]:
    told = commands.run(
        ("partx", "--raw", "--bytes", "--noheadings", "-o", "NR,START,SIZE,NAME", path),
        timeout=seconds,
        expected=(0, 1),  # a table without partitions is a failure to it
    )
    found = []
    for line in told.stdout.splitlines():
        number, start, size, *name = line.split(" ")
        found.append(
            Partition(
                number=int(number),
                start=int(start) * 512,
                size=int(size),
                name=_unescaped(name[0]) if name else "",
            )
        )
    return tuple(found)


def _unescaped(text: str) -> str:
    return re.sub(r"\\x([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), text)


def _listed(contents: Contents) -> str:
    told = [_in_words(item, contents) for item in contents.signatures]
    return " and ".join(filter(None, [", ".join(told[:-1]), told[-1]]))


def _in_words(signature: Signature, contents: Contents) -> str:
    if signature.usage == _PARTITION_TABLE:
        return f"a {signature.type} partition table{_partitions_in_words(contents.partitions)}"
    words = _WORDS.get(signature.type, "")
    if not words and signature.usage == "filesystem":
        article = "an" if signature.type[0].lower() in "aeioux" else "a"
        words = f"{article} {signature.type} file system"
    elif not words:
        words = f"{signature.type} ({signature.usage})"
    if signature.type == "LVM2_member" and contents.volume_group:
        words += f" of volume group {contents.volume_group!r}"
    if signature.label:
        words += f" with the label {signature.label!r}"
    return words


def _partitions_in_words(partitions: Sequence[Partition]) -> str:
    if not partitions:
        return " without partitions"
    shown = [
        f"{item.number}{f' {item.name!r}' if item.name else ''} of {format_quantity(item.size)}"
        for item in partitions[:_SHOWN_PARTITIONS]
    ]
    more = len(partitions) - len(shown)
    noun = "partition" if len(partitions) == 1 else "partitions"
    return f" with {noun} {', '.join(shown)}{f' and {more} more' if more else ''}"


_SECTOR = 512
_MDA_MAGIC = b" LVM2 x[5A%r0N*>"


def volume_group_name(head: bytes) -> str | None:
    """The group of an LVM physical volume, from its first bytes; None if it has none, or can't
    be read there.

    The layout is that of lvm2's ``lib/format_text/layout.h``: a label in one of the first four
    sectors, the header with the places of data and metadata, and the metadata's ring buffer.
    """
    for sector in range(4):
        label = head[sector * _SECTOR : (sector + 1) * _SECTOR]
        if label.startswith(b"LABELONE") and label[24:32] == b"LVM2 001":
            (header_offset,) = struct.unpack_from("<I", label, 20)
            return _first_group(head, label[header_offset:])
    return None


def _first_group(head: bytes, header: bytes) -> str | None:
    places = [struct.unpack_from("<QQ", header, at) for at in range(40, len(header) - 15, 16)]
    ends = [index for index, place in enumerate(places) if place == (0, 0)]
    if len(ends) < 2:
        return None
    for offset, size in places[ends[0] + 1 : ends[1]]:
        area = head[offset : offset + size]
        if len(area) < 2 * _SECTOR or area[4:20] != _MDA_MAGIC:
            continue
        at, length = struct.unpack_from("<QQ", area, 40)
        text = area[at : at + length]
        # The buffer is a ring behind its first sector.
        text += area[_SECTOR : _SECTOR + max(0, at + length - size)]
        name = re.match(rb"([A-Za-z0-9+_.-]+) \{", text)
        if name and length:
            return name[1].decode()
    return None
