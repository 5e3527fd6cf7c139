"""Partition tables: read, and changed one entry at a time.

``sfdisk`` reads and writes gpt and dos: it speaks JSON, takes an entry with its name, type and UUID
in one go, and changes one entry without touching others. ``parted`` does the labels that sfdisk
does not write (mac, bsd, dvh, sun); it knows no UUIDs there, and few names.

The kernel is told of each partition by itself, never to read the table anew: that fails as long as
any other partition is in use. Partitions of a device-mapper device, as of a multipath map, are
maps of their own, which ``kpartx`` makes.

All offsets and sizes are bytes.
"""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from backends import errors
from backends.host import commands, devices, kernel
from backends.host.scsi import attribute
from backends.sizes import MIB

ALIGNMENT = MIB
"""Where partitions start, as all current tools have it."""

EDGE_HEAD, EDGE_TAIL = 5 * MIB, MIB
"""How much of the beginning and the end of a partition holds all signatures that libblkid knows.
The farthest in is LUKS2's second header, at 4 MiB."""

DOS_PRIMARIES = 4
DOS_LOGICALS = 56
"""How many logical partitions sfdisk gives a dos label: it counts up to 60 in all."""

_GPT_ENTRIES = 128
"""How many entries a gpt label has where sfdisk says nothing else."""

DOS_LIMIT = 2**32 * 512
"""A dos label counts sectors in 32 bits; with 512 bytes each that is 2 TiB."""

_SECONDS = 60.0
_CLASS = pathlib.Path("/sys/class/block")
_EXTENDED = frozenset({"5", "f", "85"})
_SFDISK = ("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--wipe-partitions", "never")
_PARTED_LABELS = {"dos": "msdos"}
_TYPELESS = frozenset({"bsd", "sun"})
"""Labels whose partitions parted gives no kind (primary) and no name."""

TYPES = {
    "gpt": {
        "none": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
        "linux": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
        "fat16": "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
        "fat32": "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
        "linux-swap": "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",
        "linux-lvm": "E6D6D379-F507-44C2-A23C-238F2A3DF928",
        "linux-raid": "A19D880F-05FC-4D3B-A006-743F0F84911E",
    },
    "dos": {
        "none": "83", "linux": "83", "fat16": "6", "fat32": "c", "linux-swap": "82",
        "linux-lvm": "8e", "linux-raid": "fd", "extended": "5",
    },
}  # fmt: skip
"""Types of partitions by libvirt's word for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A stretch of a disk; ``end`` is the first byte past it."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """An entry of a table.

    :param type: the label's own word for it, such as a GUID; empty where parted reads the label.
    :param uuid: in lower case; empty on labels without.
    """

    number: int
    start: int
    size: int
    type: str = ""
    uuid: str = ""
    name: str = ""

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A partition table.

    :param label: libvirt's word: ``gpt``, ``dos``, ``sun``.
    :param id: of the disk; in lower case; empty on labels without.
    :param alignment: bytes to which starts and ends of new partitions are rounded.
    :param free: stretches where a partition may be, aligned. On a dos label those of ``logical``
        are inside the extended partition.
    :param entries: how many partitions it has room for, logical ones aside; None for not known.
    """

    label: str
    id: str
    sector: int
    alignment: int
    partitions: tuple[Partition, ...]
    free: tuple[Extent, ...]
    logical: tuple[Extent, ...] = ()
    entries: int | None = None

    @property
    def extended(self) -> Partition | None:
        return next((item for item in self.partitions if self.is_extended(item)), None)

    def is_extended(self, partition: Partition) -> bool:
        return self.label == "dos" and partition.type in _EXTENDED

    def is_logical(self, partition: Partition) -> bool:
        return self.label == "dos" and partition.number > DOS_PRIMARIES

    @property
    def full(self) -> bool:
        """Whether no entry is left for a further partition, or a further primary one."""
        primaries = [item for item in self.partitions if not self.is_logical(item)]
        return self.entries is not None and len(primaries) >= self.entries

    @property
    def full_of_logical(self) -> bool:
        return sum(map(self.is_logical, self.partitions)) >= DOS_LOGICALS

    def at(self, start: int) -> Partition | None:
        return next((item for item in self.partitions if item.start == start), None)

    def format_of(self, partition: Partition) -> str:
        """libvirt's word for the partition's type; ``none`` where it has no word."""
        if self.is_extended(partition):
            return "extended"
        known = TYPES.get(self.label, {})
        return next(
            (word for word, code in known.items() if code == partition.type and word != "none"),
            "none",
        )


def read(path: str, size: int, *, label: str | None = None) -> Table | None:
    """The partition table of a disk; None where there is none.

    :param size: of the disk.
    :param label: that is expected; labels that sfdisk does not write are looked for only then.
    :raises errors.CommandFailed: the disk can't be read.
    """
    if label is not None and label not in TYPES:
        return _read_by_parted(path)
    told = commands.run(("sfdisk", "--json", path), timeout=_SECONDS, expected=(0, 1))
    if told.status == 1:
        if "does not contain a recognized partition table" in told.stderr:
            return None
        raise errors.ProbeFailed(f"The partition table of {path} can't be read: {told.stderr}")
    return parse(json.loads(told.stdout)["partitiontable"], mapped_path(path) or path, size)


def parse(told: dict[str, Any], path: str, size: int) -> Table | None:
    """Read the JSON of sfdisk; None for a label that is not ours to write with it.

    :param path: the disk's name as those of its partitions begin.
    """
    label, sector = told["label"], int(told.get("sectorsize", 512))
    if label not in TYPES:
        return None
    partitions = tuple(
        Partition(
            number=_number(item["node"], path),
            start=item["start"] * sector,
            size=item["size"] * sector,
            type=item["type"],
            uuid=item.get("uuid", "").lower(),
            name=item.get("name", ""),
        )
        for item in told.get("partitions", ())
    )
    first = told.get("firstlba", 0) * sector
    end = (told["lastlba"] + 1) * sector if "lastlba" in told else min(size, DOS_LIMIT)
    table = Table(
        label=label,
        id=told.get("id", "").lower(),
        sector=sector,
        alignment=ALIGNMENT,
        partitions=partitions,
        free=_gaps(max(first, ALIGNMENT), end, [p for p in partitions if _outer(label, p)]),
        entries=int(told.get("table-length", _GPT_ENTRIES)) if label == "gpt" else DOS_PRIMARIES,
    )
    return _with_logical(table)


def _outer(label: str, partition: Partition) -> bool:
    return label != "dos" or partition.number <= DOS_PRIMARIES


def _with_logical(table: Table) -> Table:
    extended = table.extended
    if extended is None:
        return table
    inside = [item for item in table.partitions if table.is_logical(item)]
    # Each logical partition is preceded by a record of its own, for which a step is kept free.
    return replace(
        table,
        logical=_gaps(extended.start, extended.end, inside, reserve=ALIGNMENT),
    )


def _gaps(
    start: int, end: int, partitions: Sequence[Partition], *, reserve: int = 0
) -> tuple[Extent, ...]:
    found = []
    for item in sorted(partitions, key=lambda partition: partition.start):
        # The record of the partition that follows stands somewhere before it.
        found.append(Extent(start=_up(start + reserve), end=_down(item.start - reserve)))
        start = max(start, item.end)
    found.append(Extent(start=_up(start + reserve), end=_down(end)))
    return tuple(item for item in found if item.size > 0)


def _up(offset: int, step: int = ALIGNMENT) -> int:
    return -(-offset // step) * step


def _down(offset: int, step: int = ALIGNMENT) -> int:
    return offset // step * step


def _number(node: str, device: str) -> int:
    match = re.search(r"(\d+)$", node.removeprefix(device))
    if match is None:
        raise errors.ProbeFailed(f"sfdisk names a partition of {device} {node!r}, without number.")
    return int(match[1])


_LABEL_BYTES = 64 * 1024
"""The beginning of a disk, which holds all of the labels that parted reads here."""

_parted: dict[str, tuple[bytes, Table | None]] = {}
"""What parted said of a disk, with the label that it read."""


def _read_by_parted(path: str) -> Table | None:
    """The table by parted; asked only for a label that has changed, because parted opens a disk
    for writing, upon which udev has the kernel read the table anew."""
    label = _beginning(path)
    known = _parted.get(path)
    if known is None or known[0] != label:
        known = (label, _ask_parted(path))
        _parted[path] = known
        devices.settle()
    return known[1]


def _beginning(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_LABEL_BYTES)
    except OSError as error:
        raise errors.from_os_error(error, doing=f"read {path}") from error


def _ask_parted(path: str) -> Table | None:
    told = commands.run(
        ("parted", "--script", "--machine", path, "unit", "B", "print", "free"),
        timeout=_SECONDS,
        expected=(0, 1),
    )
    if told.status == 1 and "unrecognised disk label" not in told.stdout + told.stderr:
        raise errors.ProbeFailed(f"parted can't read {path}: {told.stdout}{told.stderr}")
    shape = commands.run(
        ("parted", "--script", "--machine", path, "unit", "cyl", "print"),
        timeout=_SECONDS,
        expected=(0, 1),
    )
    return None if told.status == 1 else parse_parted(told.stdout, shape.stdout)


_CYLINDERS = frozenset({"sun", "dvh"})
"""Labels whose partitions begin and end with cylinders."""


def parse_parted(text: str, geometry: str) -> Table | None:
    """Read parted's machine-readable list in bytes, with free space, and its geometry."""
    lines = [line.rstrip(";").split(":") for line in text.splitlines() if line.endswith(";")]
    head = lines[1]
    label, sector = head[5], int(head[3])
    if label == "loop":  # parted's word for a file system without a table
        return None
    alignment = ALIGNMENT
    shape = re.search(r"^\d+:(\d+):(\d+):", geometry, re.MULTILINE)
    if label in _CYLINDERS and shape:
        alignment = int(shape[1]) * int(shape[2]) * sector
    partitions, free = [], []
    for line in lines[2:]:
        start, end = int(line[1].rstrip("B")), int(line[2].rstrip("B")) + 1
        if line[4] == "free":
            # The label itself is at the beginning, and not listed on all labels.
            first = _up(max(start, ALIGNMENT), alignment)
            free.append(Extent(start=first, end=_down(end, alignment)))
        else:
            name = line[5] if label == "mac" else ""
            partitions.append(
                Partition(number=int(line[0]), start=start, size=end - start, name=name)
            )
    return Table(
        label=next((ours for ours, theirs in _PARTED_LABELS.items() if theirs == label), label),
        id="",
        sector=sector,
        alignment=alignment,
        partitions=tuple(partitions),
        free=tuple(item for item in free if item.size > 0 and not _taken(item, partitions)),
    )


def _taken(extent: Extent, partitions: Sequence[Partition]) -> bool:
    """Whether a partition lies over it: parted lists the header of a dvh label as free, too."""
    return any(item.start < extent.end and extent.start < item.end for item in partitions)


def make_table(path: str, label: str, *, id: str = "") -> None:
    """Write an empty partition table over whatever is there.

    :param id: of the disk, for gpt.
    """
    if label in TYPES:
        script = f"label: {label}\n" + (f"label-id: {id}\n" if id else "")
        argv = ("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "always", path)
        commands.run(argv, timeout=_SECONDS, input=script.encode())
    else:
        commands.run(("wipefs", "--all", "--quiet", path), timeout=_SECONDS)
        commands.run(("parted", "--script", path, "mklabel", label), timeout=_SECONDS)


def table_commands(path: str, label: str) -> tuple[tuple[str, ...], ...]:
    """What ``make_table`` runs, for a plan."""
    if label in TYPES:
        return (("sfdisk", "--wipe", "always", path),)
    return (("wipefs", "--all", path), ("parted", "--script", path, "mklabel", label))


def add(path: str, table: Table, partition: Partition, format: str) -> None:
    """Write an entry into a table, complete with its name.

    udev has the kernel read a changed table anew where no partition is in use; all partitions are
    gone for that moment, so the end of it is waited for. Else the kernel is still to be told.

    :param partition: its number is not taken; the first free one is.
    :param format: libvirt's word for what it is to hold.
    """
    if table.label not in TYPES:
        kind = () if table.label in _TYPELESS else (_parted_kind(table, partition),)
        place = (f"{partition.start}B", f"{partition.end - 1}B")
        argv = ("parted", "--script", path, "mkpart", *kind, "ext2", *place)
        _change(argv)
        return
    fields = [
        f"start={partition.start // table.sector}",
        f"size={partition.size // table.sector}",
        f"type={TYPES[table.label][format]}",
    ]
    if table.label == "gpt":
        fields += [f"uuid={partition.uuid}", f'name="{partition.name}"']
    _change((*_SFDISK, "--append", path), f"{', '.join(fields)}\n")


def _parted_kind(table: Table, partition: Partition) -> str:
    return partition.name if table.label == "mac" else "primary"


def resize(path: str, table: Table, partition: Partition, size: int) -> None:
    """Change the size of an entry; for the kernel see ``add``."""
    if table.label not in TYPES:
        raise errors.Unsupported(
            f"Partitions on a {table.label} label can't be resized.", hint="Use gpt or dos."
        )
    script = f"start={partition.start // table.sector}, size={size // table.sector}\n"
    _change((*_SFDISK, "-N", str(partition.number), path), script)


def remove(path: str, table: Table, partition: Partition) -> None:
    """Take an entry out of a table; for the kernel see ``add``."""
    _change(remove_command(path, table.label, partition.number))


def _change(argv: tuple[str, ...], script: str | None = None) -> None:
    commands.run(argv, timeout=_SECONDS, input=None if script is None else script.encode())
    devices.settle()


def rename(path: str, table: Table, number: int, name: str) -> None:
    """Give an entry another name, on a label that has names; for the kernel see ``add``."""
    if table.label == "gpt":
        _change((*_SFDISK, "--part-label", path, str(number), name))
    elif table.label == "mac":
        _change(("parted", "--script", path, "name", str(number), name))


def remove_command(path: str, label: str, number: int) -> tuple[str, ...]:
    """What ``remove`` runs."""
    if label in TYPES:
        return (*_SFDISK, "--delete", path, str(number))
    return ("parted", "--script", path, "rm", str(number))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A partition that the kernel has."""

    number: int
    node: str
    start: int
    size: int


_MAPPED = re.compile(r"part(\d+)-")
"""How the device-mapper UUIDs of partitions begin that kpartx and udev make."""


def mapped_path(node: str) -> str:
    """The name of a disk that is a device-mapper device, so that its partitions are maps of their
    own: ``/dev/mapper/mpatha``. Empty for any other disk."""
    name = attribute(_CLASS / os.path.basename(node) / "dm" / "name")
    return f"/dev/mapper/{name}" if name else ""


def shown(node: str) -> dict[int, Shown]:
    """The partitions of a disk that the kernel has, by number."""
    base = _CLASS / os.path.basename(node)
    found = _shown_maps(base) if mapped_path(node) else _shown_partitions(base)
    return {item.number: item for item in found}


def _shown_partitions(base: pathlib.Path) -> Iterator[Shown]:
    for entry in os.scandir(base):
        place = pathlib.Path(entry.path)
        number, start, size = (attribute(place / name) for name in ("partition", "start", "size"))
        if number and start and size:  # else it is none, or is just going
            yield Shown(
                number=int(number),
                node=f"/dev/{entry.name}",
                start=int(start) * 512,
                size=int(size) * 512,
            )


def _shown_maps(base: pathlib.Path) -> Iterator[Shown]:
    for name in os.listdir(base / "holders"):
        match = _MAPPED.match(attribute(_CLASS / name / "dm" / "uuid"))
        size = attribute(_CLASS / name / "size")
        if match and size:
            yield Shown(
                number=int(match[1]),
                node=f"/dev/{name}",
                start=_mapped_start(name),
                size=int(size) * 512,
            )


def _mapped_start(name: str) -> int:
    """Where a partition that is a map begins; -1, which is nowhere, for one that is going."""
    major, _, minor = attribute(_CLASS / name / "dev").partition(":")
    try:
        start = kernel.mapped_start(os.makedev(int(major), int(minor)))
    except (ValueError, FileNotFoundError):
        return -1
    except OSError as error:
        if error.errno == errno.ENXIO:
            return -1
        raise errors.from_os_error(error, doing=f"ask device mapper for {name}") from error
    return -1 if start is None else start


def is_node_of(node: str, partition: Partition) -> Callable[[os.stat_result], bool]:
    """Whether a device node is that of a partition, by the disk and where the kernel has it begin.

    Numbers of logical partitions change; so a name may lead to another one by now.

    :param node: of the disk.
    """

    def is_it(facts: os.stat_result) -> bool:
        number = f"{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}"
        name = os.path.basename(os.path.realpath(f"/sys/dev/block/{number}"))
        known = ((seen.node, seen.start) for seen in shown(node).values())
        return (f"/dev/{name}", partition.start) in known

    return is_it


def missing(node: str, table: Table, *, separator: bool | None = None) -> tuple[str, ...]:
    """How the kernel's partitions differ from the table, in words; empty for not at all.

    :param separator: whether names of a map's partitions have a ``p`` before the number; None for
        any name.
    """
    known, told = shown(node), []
    disk = mapped_path(node)
    if disk and separator is not None:
        told += [
            f"partition {number} is called {mapped_path(seen.node)}"
            for number, seen in sorted(known.items())
            if mapped_path(seen.node) != f"{disk}{'p' if separator else ''}{number}"
        ]
    for item in table.partitions:
        seen = known.pop(item.number, None)
        if seen is None:
            told.append(f"partition {item.number} is not shown")
        elif not _agrees(table, item, seen):
            told.append(f"partition {item.number} is shown with other bounds")
    if table.label in TYPES:  # of other labels the kernel shows parts that are no partitions
        told += [f"partition {number} is shown and is none" for number in sorted(known)]
    return tuple(told)


def _agrees(table: Table, partition: Partition, seen: Shown) -> bool:
    if seen.start != partition.start:
        return False
    # The kernel shows of an extended partition its first sectors alone.
    return table.is_extended(partition) or seen.size == partition.size


def tell_kernel(node: str, table: Table, *, separator: bool | None = None) -> None:
    """Have the kernel show what the table says, touching only what differs.

    :param separator: as ``missing`` has it.
    :raises errors.InUse: a partition that is to go or to move is in use.
    """
    known = shown(node)
    for number, seen in sorted(known.items()):
        wanted = next((item for item in table.partitions if item.number == number), None)
        if wanted is None and table.label not in TYPES:
            continue
        if wanted is None or wanted.start != seen.start:
            hide(node, number)
            del known[number]
    disk = mapped_path(node)
    if disk:
        # Maps that have another name are renamed, which is no matter to those who use them.
        delimiter = _delimiter(disk, known) if separator is None else "p" if separator else ""
        commands.run(("kpartx", "-u", "-s", "-p", delimiter, disk), timeout=_SECONDS)
        return
    by_number = sorted(table.partitions, key=lambda partition: partition.number)
    for item in by_number:
        if item.number in known and not _agrees(table, item, known[item.number]):
            _tell(node, "resize", item)
    for item in by_number:
        if item.number not in known:
            _tell(node, "add", item)


def _delimiter(disk: str, known: Mapping[int, Shown]) -> str:
    """What stands before the number in names that udev's rules gave partitions of a map; what
    kpartx(8) takes by itself where there are none."""
    for number, seen in known.items():
        name = mapped_path(seen.node)
        if name.startswith(disk) and name.endswith(str(number)):
            return name[len(disk) : -len(str(number))]
    return "p" if disk[-1].isdigit() else ""


def hide(node: str, number: int) -> None:
    """Have the kernel show a partition no more; it refuses for one that is in use.

    :raises errors.InUse: it is.
    """
    seen = shown(node).get(number)
    if seen is None:
        return
    if not mapped_path(node):
        gone = Partition(number=number, start=0, size=0)
        try:
            _tell(node, "remove", gone)
        except errors.InUse:
            devices.settle()  # udev looks at what was written to
            _tell(node, "remove", gone)
        return
    told = commands.run(
        ("dmsetup", "remove", "--retry", seen.node), timeout=_SECONDS, expected=(0, 1)
    )
    if told.status != 0:
        raise errors.InUse(
            f"{seen.node}, which is partition {number} of {node}, can't be taken away: "
            f"{told.stderr.strip()}",
            hint="Stop what uses it.",
        )


def _tell(node: str, verb: Literal["add", "remove", "resize"], item: Partition) -> None:
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.change_partition(fd, verb, item.number, start=item.start, size=item.size)
        finally:
            os.close(fd)
    except OSError as error:
        doing = f"{verb} partition {item.number} of {node} in the kernel"
        raise errors.from_os_error(error, doing=doing) from error


def clear_edges(node: str, extent: Extent, *, kept: int = 0) -> None:
    """Overwrite what old signatures may stand in where a partition is to be, with zeros.

    :param kept: bytes at the beginning that are a partition already and stay.
    """
    head = Extent(start=extent.start + kept, end=min(extent.end, extent.start + EDGE_HEAD))
    tail = Extent(start=max(extent.start + kept, extent.end - EDGE_TAIL), end=extent.end)
    try:
        fd = os.open(node, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise errors.from_os_error(error, doing=f"open {node}") from error
    try:
        for part in (head, tail):
            offset = part.start
            while offset < part.end:
                offset += os.pwrite(fd, bytes(min(MIB, part.end - offset)), offset)
        os.fsync(fd)
    except OSError as error:
        raise errors.from_os_error(error, doing=f"clear a part of {node}") from error
    finally:
        os.close(fd)
