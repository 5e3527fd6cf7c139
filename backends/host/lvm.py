"""LVM by its own commands: one report of a volume group, and the ways to change it.

The report is ``lvm fullreport`` (lvmreport(7)): one command and one scan for the group, its
physical volumes and its logical volumes. Sizes are asked for in bytes, truth as 0 and 1. What LVM
says of a group that it does not find, or finds twice, stands in the report's own log.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from backends import errors
from backends.host import commands
from backends.host.devices import DeviceExtent
from backends.host.marks import Mark, Origin

REPORT_SECONDS = 60.0
"""How long one look at a volume group may take."""

CONFIG = "backup/archive=0 devices/ignore_suspended_devices=1"
"""Settings for every command: no copy of the metadata per change, and no waiting for device
mapper's devices that are suspended."""

_REPORT_CONFIG = f"log/report_command_log=1 {CONFIG}"
"""The same for the report, which then holds the messages, too."""

TAG = "poolkeeper."
"""How the tags begin that say whose a group or volume is."""

GROWING = f"{TAG}growing="
"""Tag of a volume that is being made larger: its size before, in bytes."""

_FIELDS = {
    "vg": (
        "vg_name", "vg_uuid", "vg_size", "vg_free", "vg_extent_size", "vg_seqno", "vg_tags",
        "vg_missing_pv_count", "vg_exported", "vg_lock_type",
    ),
    "pv": ("pv_name", "pv_uuid", "pv_missing"),
    "lv": (
        "lv_name", "lv_uuid", "lv_size", "lv_attr", "lv_tags", "origin", "origin_size", "pool_lv",
        "data_percent", "metadata_percent", "lv_active", "lv_skip_activation", "lv_layout",
        "lv_role", "lv_health_status",
    ),
    "seg": ("lv_uuid", "seg_pe_ranges"),
}  # fmt: skip
_NONE = "segtype=none"  # no segment has this type: the report stays empty

_GROUP_NAME = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]*")
_RESERVED_PARTS = (
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog",
    "_pmspare", "_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_wcorig",
)  # fmt: skip
"""Parts of names that LVM gives to volumes within volumes (lvm(8), VALID NAMES)."""

_LONGEST_NAMES = 126
"""Bytes of a group's and a volume's name together, with hyphens doubled (device mapper's limit)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhysicalVolume:
    """A device of a group; ``name`` is empty for one that is missing."""

    name: str
    uuid: str
    missing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LogicalVolume:
    """A logical volume; sizes in bytes.

    :param size: of its extents; for a snapshot the space for what differs from the origin.
    :param origin: volume that it is a snapshot of, in brackets where that is not to be seen.
    :param origin_size: what a snapshot, or an origin of some, shows to its users.
    :param pool: thin pool that it takes its space from.
    :param data_percent: part of a snapshot's or thin volume's space that is in use.
    :param skipped: not activated unless told to (``lvchange --setactivationskip``).
    :param health: what is wrong with it in LVM's word; empty where nothing is.
    :param extents: where it stands; of a thin volume nothing, as its pool has the extents.
    """

    name: str
    uuid: str
    size: int
    attributes: str
    tags: tuple[str, ...]
    origin: str
    origin_size: int | None
    pool: str
    data_percent: float | None
    metadata_percent: float | None
    active: bool
    skipped: bool
    layout: tuple[str, ...]
    role: tuple[str, ...]
    health: str
    extents: tuple[DeviceExtent, ...] = ()

    @property
    def thin(self) -> bool:
        return "thin" in self.layout and "pool" not in self.layout

    @property
    def thin_pool(self) -> bool:
        return "thin" in self.layout and "pool" in self.layout

    @property
    def thick_snapshot(self) -> bool:
        return "thicksnapshot" in self.role

    @property
    def invalid(self) -> bool:
        """Whether it is a snapshot that ran full, so that its contents are lost (lvs(8))."""
        return self.attributes[4:5] in ("I", "S")

    @property
    def capacity(self) -> int:
        """Bytes that a user of the volume sees."""
        if self.thick_snapshot and self.origin_size is not None:
            return self.origin_size
        growing = [tag for tag in self.tags if tag.startswith(GROWING)]
        # What was added and is not cleared yet does not count: the volume is still to grow.
        return min([self.size, *(int(tag.removeprefix(GROWING)) for tag in growing)])

    @property
    def mark(self) -> Mark | None:
        return mark_of(self.tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeGroup:
    """A volume group as LVM reports it; sizes in bytes."""

    name: str
    uuid: str
    size: int
    free: int
    extent: int
    tags: tuple[str, ...]
    missing: int
    exported: bool
    lock_type: str
    devices: tuple[PhysicalVolume, ...]
    volumes: Mapping[str, LogicalVolume]

    @property
    def mark(self) -> Mark | None:
        return mark_of(self.tags)


def report(name: str, *, devices: Sequence[str] = ()) -> VolumeGroup | None:
    """Look at a volume group; None where LVM sees no such group on any device that it looks at.

    :param devices: the only ones to look at, so that none that hangs holds it up; all if empty.
    :raises errors.Inaccessible: several groups have the name, or LVM can't read it.
    """
    done = commands.run(
        report_command(name, devices=devices), timeout=REPORT_SECONDS, expected=(0, 5)
    )
    try:
        told = json.loads(done.stdout)
    except ValueError as error:
        raise errors.Inaccessible(
            f"LVM's report of volume group {name!r} can't be read: {error}.",
            hint="See what the command says: lvm fullreport --reportformat json.",
        ) from error
    groups = [_group(item) for item in told["report"] if item.get("vg")]
    if done.status == 0 and len(groups) == 1:
        return groups[0]
    _require_absence(name, [str(entry["log_message"]) for entry in told.get("log", ())])
    return None


def _require_absence(name: str, messages: Sequence[str]) -> None:
    """:raises errors.Inaccessible: LVM's messages say anything but that there is no such group."""
    if any(message == f'Volume group "{name}" not found' for message in messages):
        return
    several = next((item for item in messages if "is used by VGs" in item), "")
    if several:
        uuids = several.rpartition("VGs ")[2].rstrip(".")
        raise errors.Inaccessible(
            f"Several volume groups have the name {name!r}: {uuids}.",
            hint="Rename one of them by its UUID: vgrename UUID NEWNAME.",
        )
    told = next(iter(messages), "it says nothing").rstrip(".")
    raise errors.Inaccessible(
        f"LVM can't read volume group {name!r}: {told}.",
        hint="Check its devices, and what vgs and pvs say.",
    )


def report_command(name: str, *, devices: Sequence[str] = ()) -> tuple[str, ...]:
    argv = ["lvm", "fullreport", "--config", _REPORT_CONFIG, "--reportformat", "json"]
    if devices:
        argv += ["--devices", ",".join(devices)]
    argv += ["--units", "b", "--nosuffix", "--binary"]
    for kind, fields in _FIELDS.items():
        argv += ["--configreport", kind, "--options", ",".join(fields)]
    argv += ["--configreport", "pvseg", "--options", "pvseg_start", "--select", _NONE]
    return (*argv, name)


def _group(told: Mapping[str, Any]) -> VolumeGroup:
    facts = told["vg"][0]
    size = int(facts["vg_extent_size"])
    extents: dict[str, tuple[DeviceExtent, ...]] = {}
    for item in told.get("seg", ()):
        found = tuple(_extents(item["seg_pe_ranges"], size))
        extents[item["lv_uuid"]] = extents.get(item["lv_uuid"], ()) + found
    return VolumeGroup(
        name=facts["vg_name"],
        uuid=facts["vg_uuid"],
        size=int(facts["vg_size"]),
        free=int(facts["vg_free"]),
        extent=size,
        tags=_listed(facts["vg_tags"]),
        missing=int(facts["vg_missing_pv_count"]),
        exported=facts["vg_exported"] == "1",
        lock_type=facts["vg_lock_type"],
        devices=tuple(_device(item) for item in told.get("pv", ())),
        volumes={
            item["lv_name"]: _volume(item, extents.get(item["lv_uuid"], ()))
            for item in told.get("lv", ())
        },
    )


def _device(facts: Mapping[str, str]) -> PhysicalVolume:
    missing = facts["pv_missing"] == "1"
    name = "" if missing else facts["pv_name"]
    return PhysicalVolume(name=name, uuid=facts["pv_uuid"], missing=missing)


def _extents(ranges: str, size: int) -> Iterator[DeviceExtent]:
    """Read ``/dev/sda:0-9 /dev/sdb:4-7``, passing over what stands on volumes within the volume.

    :param size: bytes of one extent.
    """
    for item in ranges.split():
        device, _, span = item.rpartition(":")
        first, _, last = span.partition("-")
        if device.startswith("/") and first.isdigit() and last.isdigit():
            yield DeviceExtent(device=device, start=int(first) * size, end=(int(last) + 1) * size)


def _volume(facts: Mapping[str, str], extents: tuple[DeviceExtent, ...]) -> LogicalVolume:
    return LogicalVolume(
        name=facts["lv_name"],
        uuid=facts["lv_uuid"],
        size=int(facts["lv_size"]),
        attributes=facts["lv_attr"],
        tags=_listed(facts["lv_tags"]),
        origin=facts["origin"],
        origin_size=int(facts["origin_size"]) if facts["origin_size"] else None,
        pool=facts["pool_lv"].strip("[]"),
        data_percent=_percent(facts["data_percent"]),
        metadata_percent=_percent(facts["metadata_percent"]),
        active=facts["lv_active"] == "1",
        skipped=facts["lv_skip_activation"] == "1",
        layout=_listed(facts["lv_layout"]),
        role=_listed(facts["lv_role"]),
        health=facts["lv_health_status"],
        extents=extents,
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _percent(text: str) -> float | None:
    return float(text) if text and not text.startswith("-") else None


def groups() -> dict[str, list[str]]:
    """All volume groups that LVM sees, each with the names of its devices."""
    argv = ("lvm", "pvs", "--config", CONFIG, "--reportformat", "json", "-o", "vg_name,pv_name")
    told = json.loads(commands.run(argv, timeout=REPORT_SECONDS).stdout)
    found: dict[str, list[str]] = {}
    for item in told["report"][0]["pv"]:
        if item["vg_name"]:
            found.setdefault(item["vg_name"], []).append(item["pv_name"])
    return found


def run(
    *argv: str,
    timeout: float,
    expected: Sequence[int] = (0,),
    cancel: threading.Event | None = None,
) -> str:
    """Run one of LVM's commands that change something.

    :raises errors.NoSpace: the group or thin pool has too little room.
    :raises errors.InUse: a volume is open, mapped or mounted.
    :raises errors.AlreadyExists: a volume or group of that name is there.
    :raises errors.CommandFailed: anything else.
    """
    try:
        done = commands.run(
            (argv[0], "--config", CONFIG, *argv[1:]),
            timeout=timeout,
            expected=expected,
            cancel=cancel,
        )
    except errors.CommandFailed as error:
        raise _meaning(error) from error
    return done.stdout


def _meaning(error: errors.CommandFailed) -> errors.StorageError:
    told = error.message
    if re.search(r"(?i)insufficient (free|suitable)|no free extents|reached threshold", told):
        return errors.NoSpace(told, hint="Free some space, or add a device to the group.")
    if re.search(r"in use|contains a filesystem|is used by|remains? open|is open", told):
        return errors.InUse(told, hint="Stop what uses it.")
    if re.search(r"already exists", told):
        return errors.AlreadyExists(told, hint="Choose another name.")
    return error


def tags_of(mark: Mark) -> tuple[str, ...]:
    """The tags that say whose something is."""
    values = {"uid": mark.uid, "resource": mark.resource, "origin": mark.origin}
    return tuple(f"{TAG}{name}={value}" for name, value in values.items())


def mark_of(tags: Sequence[str]) -> Mark | None:
    """Whose something is by its tags; None where they don't say it in full."""
    values = dict(tag.removeprefix(TAG).split("=", 1) for tag in tags if _says_something(tag))
    origin: Origin | Literal[""] = ""
    if values.get("origin") in ("Created", "Adopted"):
        origin = "Created" if values["origin"] == "Created" else "Adopted"
    if not origin or not values.get("uid") or not values.get("resource"):
        return None
    return Mark(uid=values["uid"], resource=values["resource"], origin=origin)


def _says_something(tag: str) -> bool:
    return tag.startswith(TAG) and "=" in tag


def marking(mark: Mark, *, former: Sequence[str] = ()) -> list[str]:
    """Arguments that put a mark on something, in place of the one that its tags make."""
    wanted = tags_of(mark)
    ours = {f"{TAG}uid=", f"{TAG}resource=", f"{TAG}origin="}
    old = [tag for tag in former if tag not in wanted and any(map(tag.startswith, ours))]
    return [f"--addtag={tag}" for tag in wanted] + [f"--deltag={tag}" for tag in old]


def name_problem(group: str, volume: str, *, beneath: str = "") -> str:
    """Why LVM can't have a volume of that name; empty where it can (lvm(8), VALID NAMES).

    :param beneath: what it adds to the name for the longest-named device beneath the volume.
    """
    if not _GROUP_NAME.fullmatch(volume):
        return "has letters that LVM does not allow: only A-Z a-z 0-9 + _ . - are"
    if volume.startswith(("snapshot", "pvmove")):
        return "begins with a word that LVM keeps for itself"
    part = next((item for item in _RESERVED_PARTS if item in volume), "")
    if part:
        return f"contains {part!r}, which LVM keeps for itself"
    if len(f"{group}-{volume}{beneath}") + f"{group}{volume}".count("-") > _LONGEST_NAMES:
        return "is too long for device mapper, together with the group's"
    return ""


def group_name_problem(group: str) -> str:
    """Why LVM can't have a group of that name; empty where it can."""
    if not _GROUP_NAME.fullmatch(group) or group in (".", ".."):
        return "has letters that LVM does not allow: only A-Z a-z 0-9 + _ . - are"
    return "is too long" if len(group) > _LONGEST_NAMES else ""


_UUID_LETTERS = string.digits + string.ascii_letters
_UUID_PARTS = (6, 4, 4, 4, 4, 4, 6)


def derived_uuid(*parts: str) -> str:
    """A UUID in LVM's form, the same for the same parts.

    A physical volume that was made for a group and never got into it is known by this.
    """
    digest = int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest(), "big")
    letters = ""
    for _ in range(sum(_UUID_PARTS)):
        digest, index = divmod(digest, len(_UUID_LETTERS))
        letters += _UUID_LETTERS[index]
    pieces = []
    for length in _UUID_PARTS:
        pieces.append(letters[:length])
        letters = letters[length:]
    return "-".join(pieces)
