"""``capabilities`` and ``find-sources``: what a host can serve, and what pools could stand on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from backends import errors
from backends.registry import pool_type
from backends.schema import Model
from backends.spec import Host, SourceQuery
from backends.support import Support, supported_types
from backends.support import find_sources as found_sources
from controller.cli import tables
from controller.cli.objects import as_json
from controller.cli.options import CapabilityOutput
from controller.cli.printing import put, say
from controller.cli.session import Session
from controller.cli.tables import Cell
from controller.codecs import libvirtxml


def capabilities(output: CapabilityOutput) -> int:
    """Print the pool types and formats, and whether this host can serve them."""
    listed = supported_types()
    if output is CapabilityOutput.XML:
        put(libvirtxml.capabilities({item.type.name for item in listed if item.supported}))
    elif output is CapabilityOutput.JSON:
        put(as_json([_capability(item) for item in listed]))
    else:
        headings = ["Type", "Supported", "Default format", "Volume formats", "What is missing"]
        tables.show(headings, [_row(item) for item in listed])
    return 0


def _row(item: Support) -> list[Cell]:
    return [
        Cell(item.type.name),
        Cell("yes", "green") if item.supported else Cell("no"),
        Cell(item.type.default_volume_format or tables.NOTHING),
        Cell(" ".join(item.volume_formats) or tables.NOTHING),
        Cell(item.reason or " ".join(item.limits) or tables.NOTHING),
    ]


def _capability(item: Support) -> dict[str, Any]:
    return {
        "type": item.type.name,
        "supported": item.supported,
        "reason": item.reason,
        "limits": list(item.limits),
        "sourceFormats": list(item.type.source_formats),
        "supportedSourceFormats": list(item.source_formats),
        "defaultSourceFormat": item.type.default_source_format,
        "volumeFormats": list(item.type.volume_formats),
        "supportedVolumeFormats": list(item.volume_formats),
        "defaultVolumeFormat": item.type.default_volume_format,
    }


def query(name: str, *, host: str, port: int | None, initiator: str) -> SourceQuery | None:
    """The query that options ask for; None to look at this host.

    :raises errors.InvalidSpec: a value is too long.
    """
    if not host:
        return None
    try:
        server = Host(name=host, port=port)
        return SourceQuery(type=name, host=server, initiator=initiator or None)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise errors.InvalidSpec(f"The server can't be asked: {first['msg']}.") from None


def find_sources(
    session: Session, name: str, asked: SourceQuery | None, *, output: CapabilityOutput
) -> int:
    """Print what pools of a type could stand on."""
    found = found_sources(pool_type(name).name, asked, session.context())
    if output is CapabilityOutput.XML:
        put(libvirtxml.sources(found))
    elif output is CapabilityOutput.JSON:
        put(as_json([item.dump() for item in found]))
    elif found:
        _show(found)
    else:
        say("Nothing was found.")
    return 0


def _show(found: Sequence[Model]) -> None:
    """A column for each field that some source has."""
    dumped = [item.dump() for item in found]
    fields = list(dict.fromkeys(name for item in dumped for name in item))
    rows = [[Cell(_words(item.get(name))) for name in fields] for item in dumped]
    tables.show(fields, rows)


def _words(value: Any) -> str:
    """A value of a source for people: a server with its port, the paths of devices."""
    if isinstance(value, list):
        return " ".join(map(_words, value)) or tables.NOTHING
    if isinstance(value, dict):
        return ":".join(_words(item) for item in value.values())
    return tables.NOTHING if value is None else str(value)
