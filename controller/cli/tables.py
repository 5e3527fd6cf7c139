"""Resources as rows: columns of the kinds, sizes and ages for people, usage bars."""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends import errors
from backends.sizes import format_human, parse_quantity
from controller.cli.printing import colourful, one_line, put
from controller.resources import AnyResource, Column, Kind

_STEP = re.compile(r'\.(\w+)|\[\?\(@\.(\w+)=="([^"]*)"\)\]')

_SIZES = frozenset({"capacity", "available", "allocation", "physical"})
"""Last steps of the paths whose values are quantities."""

BAR_WIDTH = 10
MAX_WIDTH = 10_000
NOTHING = "-"

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))

_COLOUR_OF = {
    "True": "green",
    "False": "red",
    "Unknown": "yellow",
    "Running": "green",
    "Degraded": "yellow",
    "Inaccessible": "red",
    "Warning": "yellow",
    "Succeeded": "green",
    "Failed": "red",
}
"""Colours of words that tell a state."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A value as it is shown.

    :param right: whether it is a number, to stand at the right.
    """

    text: str
    colour: str = ""
    right: bool = False


def evaluate(document: Any, path: str) -> Any:
    """The value at a path, or None. Of JSONPath there is what columns use: ``.a.b`` and
    ``[?(@.type=="Ready")]``.

    :raises ValueError: for any other path.
    """
    if _STEP.sub("", path):
        raise ValueError(f"{path!r} is more than a column's path may be")
    value = document
    for match in _STEP.finditer(path):
        name, key, wanted = match.groups()
        if name is not None:
            value = value.get(name) if isinstance(value, dict) else None
        else:
            listed = value if isinstance(value, list) else []
            value = next((item for item in listed if item.get(key) == wanted), None)
    return value


def age(time: str, *, now: datetime.datetime | None = None) -> str:
    """How long ago an RFC 3339 time was, in its largest unit: ``3m``, ``2h``, ``5d``."""
    try:
        then = datetime.datetime.fromisoformat(time)
    except ValueError:
        return time
    seconds = int(((now or datetime.datetime.now(datetime.UTC)) - then).total_seconds())
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{max(seconds, 0)}s"


def size(value: Any) -> str:
    """A quantity for people; what is none stays as it is."""
    try:
        return format_human(parse_quantity(value))
    except errors.StorageError:
        return str(value)


def usage_bar(allocation: int, capacity: int, *, drawn: bool) -> Cell:
    """How full a pool is.

    :param drawn: whether to draw the bar, or give the figure alone.
    """
    part = min(max(allocation / capacity, 0.0), 1.0) if capacity else 0.0
    colour = "red" if part >= 0.9 else "yellow" if part >= 0.75 else "green"
    full = round(part * BAR_WIDTH)
    bar = f"{'█' * full}{'░' * (BAR_WIDTH - full)} " if drawn else ""
    return Cell(f"{bar}{part:.0%}", colour, right=not drawn)


def cell(document: Any, column: Column) -> Cell:
    """A column's value of a resource."""
    value = evaluate(document, column.path)
    if value is None or value == "":
        return Cell(NOTHING)
    if column.type == "date":
        return Cell(age(str(value)))
    if column.path.rpartition(".")[2] in _SIZES:
        return Cell(size(value), right=True)
    text = str(value)
    return Cell(text, _COLOUR_OF.get(text, ""), right=column.type == "integer")


def show_resources(
    kind: Kind,
    resources: Sequence[AnyResource],
    *,
    wide: bool = False,
    namespaces: bool = False,
    full_names: bool = False,
) -> None:
    """The table of ``get`` for resources of one kind.

    :param namespaces: whether to show the namespace.
    :param full_names: whether to put the kind before the name.
    """
    columns = [column for column in kind.columns if wide or not column.wide]
    with_usage = kind.name == "StoragePool"
    headings = [*(["Namespace"] if namespaces and kind.namespaced else []), "Name"]
    headings += [column.name for column in columns]
    rows = []
    for resource in resources:
        document = resource.dump()
        name = resource.metadata.name
        row = [Cell(resource.metadata.namespace)] if namespaces and kind.namespaced else []
        row.append(Cell(f"{kind.name.lower()}/{name}" if full_names else name))
        row += [cell(document, column) for column in columns]
        if with_usage:
            row.insert(_usage_place(headings), _usage(resource))
        rows.append(row)
    if with_usage:
        headings.insert(_usage_place(headings), "Used")
    show(headings, rows)


def _usage_place(headings: Sequence[str]) -> int:
    return headings.index("Available") + 1


def _usage(resource: AnyResource) -> Cell:
    status = resource.status
    if not status.capacity or status.allocation is None:
        return Cell(NOTHING)
    return usage_bar(status.allocation, status.capacity, drawn=sys.stdout.isatty())


def show(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a table, as wide as its text; in colours where they are to be had."""
    cells = [[Cell(one_line(item.text), item.colour, item.right) for item in row] for row in rows]
    titles = [heading.upper() for heading in headings]
    if sys.stdout.isatty():
        _show_on_terminal(titles, cells)
    else:
        put(plain(titles, cells))


def plain(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table in columns three spaces apart, with nothing cut off; no headings if they are
    empty."""
    table = [[Cell(heading) for heading in headings], *rows] if headings else list(rows)
    widths = [max(len(item.text) for item in column) for column in zip(*table, strict=True)]
    rights = [_numeric([row[place] for row in rows]) for place in range(len(widths))]
    lines = []
    for row in table:
        parts = [
            item.text.rjust(width) if right else item.text.ljust(width)
            for item, width, right in zip(row, widths, rights, strict=True)
        ]
        lines.append("   ".join(parts).rstrip())
    return "\n".join(lines) + "\n"


def _numeric(column: Sequence[Cell]) -> bool:
    """Whether a column stands at the right: it has numbers, or nothing."""
    return any(item.right for item in column) and all(
        item.right or item.text == NOTHING for item in column
    )


def _show_on_terminal(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(no_color=not colourful(sys.stdout), highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, heading in enumerate(headings):
        right = _numeric([row[place] for row in rows])
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(item.text, style=item.colour) for item in row))
    # Wider than the terminal is for the terminal to wrap: a path can then be copied whole.
    widest = console.measure(table, options=console.options.update(width=MAX_WIDTH)).maximum
    console.width = max(console.width, widest)
    console.print(table, crop=False)
