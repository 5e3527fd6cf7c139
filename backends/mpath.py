"""The pool of all multipath devices of a host (libvirt's mpath)."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from backends import errors
from backends.base import Operation, Pool, PoolFacts, PoolType, Presence
from backends.foundvolumes import CONTENTS, FoundDevice, FoundVolumes
from backends.host import commands
from backends.host.needs import Needs
from backends.host.scsi import attribute
from backends.schema import Model

_BLOCK = pathlib.Path("/sys/block")
_UUID = "mpath-"
"""How the device-mapper UUIDs of multipath maps begin; the rest is the LUN's world-wide name."""

_PATH = re.compile(r"\b(\d+:\d+) ([AF]) \d+\b")
"""A path in the kernel's status of a map (dm-mpath.c): its number, Active or Failed, and how often
it failed."""

_STATUS_SECONDS = 30.0


class MpathSource(Model):
    """Multipath maps need no further word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The paths of a map, by kernel name."""

    working: tuple[str, ...]
    failed: tuple[str, ...]


class MpathBackend(FoundVolumes):
    """All multipath maps, which multipathd makes and keeps."""

    what = "multipath map"
    giver = "the storage behind it"

    def claims(self, pool: Pool) -> frozenset[str]:
        return frozenset({"the multipath maps of this host"})

    def place(self, pool: Pool) -> str:
        return "the multipath maps of this host"

    def observe(self, pool: Pool) -> PoolFacts:
        try:
            facts = self.observe_found(pool)
            health = _health() if facts.volumes else {}
        except errors.StorageError as error:
            return PoolFacts(presence=Presence.UNREACHABLE, detail=error.message.rstrip("."))
        warnings = tuple(
            f"map {name} has lost {_listed(item.failed)} of its "
            f"{len(item.failed) + len(item.working)} paths."
            for name, item in sorted(health.items())
            if item.failed
        )
        volumes = {
            name: replace(item, problem=item.problem or _problem(health.get(name)))
            for name, item in facts.volumes.items()
        }
        return replace(
            facts,
            degraded=bool(warnings),
            detail=" ".join(warnings),
            warnings=warnings,
            volumes=volumes,
        )

    def devices_of(self, pool: Pool) -> Sequence[FoundDevice]:
        return tuple(_maps())


def _maps() -> Iterator[FoundDevice]:
    for entry in sorted(os.listdir(_BLOCK)):
        uuid, name = (attribute(_BLOCK / entry / "dm" / which) for which in ("uuid", "name"))
        if not (uuid.startswith(_UUID) and name):
            continue
        try:
            paths = os.listdir(_BLOCK / entry / "slaves")
        except FileNotFoundError:
            continue  # it went while it was read
        yield FoundDevice(
            name=name,
            node=f"/dev/{entry}",
            serial=uuid.removeprefix(_UUID),
            size=int(attribute(_BLOCK / entry / "size") or 0) * 512,
            problem="" if paths else "none of its paths is left",
        )


def _health() -> dict[str, Health]:
    told = commands.run(("dmsetup", "status", "--target", "multipath"), timeout=_STATUS_SECONDS)
    return dict(parse_status(told.stdout))


def parse_status(text: str) -> Iterator[tuple[str, Health]]:
    """Read what ``dmsetup status --target multipath`` prints: a line for each map."""
    for line in text.splitlines():
        name, _, status = line.partition(": ")
        paths = _PATH.findall(status)
        if paths:
            yield (
                name,
                Health(
                    working=tuple(_node(number) for number, state in paths if state == "A"),
                    failed=tuple(_node(number) for number, state in paths if state == "F"),
                ),
            )


def _problem(health: Health | None) -> str:
    return "none of its paths works" if health and not health.working else ""


def _node(number: str) -> str:
    """The kernel's name of a device; its number where it has gone."""
    try:
        return os.path.basename(os.readlink(f"/sys/dev/block/{number}"))
    except OSError:
        return number


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})"


POOL_TYPE = PoolType(
    name="mpath",
    order=9,
    description="All multipath devices of the host.",
    source=MpathSource,
    operations=frozenset({Operation.START, Operation.STOP}) | CONTENTS,
    needs=Needs(programs=("dmsetup",), modules=("dm_multipath",)),
    backend=MpathBackend,
)
