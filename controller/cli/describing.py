"""``describe``: all that is known of a resource, for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from controller.cli import tables
from controller.cli.objects import missing, named_targets
from controller.cli.printing import as_word, clean, painted, put, report
from controller.cli.session import Session
from controller.cli.showing import event_rows
from controller.cli.tables import Cell, age, size
from controller.codecs import manifests
from controller.resources import AnyResource
from controller.store import Event, Step, Store

EVENTS = 20
"""The newest events that are shown."""

_FIGURES = frozenset({"capacity", "allocation", "available", "physical", "clusterSize"})
_TOLD_APART = frozenset({"conditions", "drift", "discovered", "backingChain"})
"""Fields of a status that get a section of their own."""

_TRUTH = {"True": "green", "False": "red"}


def describe(session: Session, words: Sequence[str], *, namespace: str) -> int:
    """Print all about resources; 1 where one is not there."""
    absent = 0
    shown = 0
    with session.reading() as store:
        for target in named_targets(words):
            resource = store.get(target.key(namespace))
            if resource is None:
                report(missing(target.key(namespace)))
                absent += 1
                continue
            if shown:
                put("")
            put("\n".join(_described(resource, store)))
            shown += 1
    return 1 if absent else 0


def _described(resource: AnyResource, store: Store) -> Iterator[str]:
    document = resource.dump()
    yield from _head(resource, store)
    yield from _section("Spec", _yaml(document["spec"]))
    yield from _section("Status", _status(document["status"]))
    status = document["status"]
    yield from _section("Conditions", _conditions(status.get("conditions", [])))
    yield from _section("Drift", _drift(status.get("drift", [])))
    yield from _section("Backing chain", _chain(status.get("backingChain", [])))
    yield from _section("Volumes that nobody declares", _discovered(status))
    steps = [step for step in store.unfinished_steps() if step.key == resource.key]
    yield from _section("Steps begun and not ended", _steps(steps))
    yield from _section("Events", _events(store.events(key=resource.key)), empty="  none")


def _head(resource: AnyResource, store: Store) -> Iterator[str]:
    metadata = resource.metadata
    created = metadata.creation_timestamp
    told = {
        "Name": metadata.name,
        "Namespace": metadata.namespace,
        "Kind": resource.kind.name,
        "UID": metadata.uid,
        "Generation": str(metadata.generation),
        "Created": f"{created} ({age(created)} ago)",
        "Deletion asked for": metadata.deletion_timestamp or "",
        "Declared by": store.source_of(resource.key),
        "Finalizers": ", ".join(metadata.finalizers),
        "Labels": _pairs(metadata.labels),
        "Annotations": _pairs(metadata.annotations),
    }
    yield from _aligned({name: value for name, value in told.items() if value}, indent="")


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(values.items()))


def _aligned(values: Mapping[str, str], *, indent: str = "  ") -> Iterator[str]:
    width = max(map(len, values), default=0) + 1
    for name, value in values.items():
        yield f"{indent}{f'{name}:'.ljust(width)}  {clean(value)}"


def _section(title: str, lines: Iterator[str], *, empty: str = "") -> Iterator[str]:
    """A title and what stands below it; nothing at all where nothing does."""
    held = list(lines) or ([empty] if empty else [])
    if held:
        yield painted(f"{title}:", "bold", sys.stdout)
        yield from held


def _yaml(value: dict[str, Any]) -> Iterator[str]:
    text = manifests.dump([{"spec": value}])
    yield from (clean(line) for line in text.splitlines()[1:])


def _status(status: dict[str, Any]) -> Iterator[str]:
    told: dict[str, str] = {}
    for name, value in status.items():
        if name in _TOLD_APART:
            continue
        if isinstance(value, dict):
            told[name] = ", ".join(f"{key} {as_word(item)}" for key, item in value.items())
        else:
            told[name] = _figure(value) if name in _FIGURES else as_word(value)
    yield from _aligned(told)


def _figure(value: str) -> str:
    """A quantity, and beside it the size for people where that says it another way."""
    human = size(value)
    return value if human.replace(" ", "") in (value, f"{value}B") else f"{value} ({human})"


def _conditions(conditions: Sequence[dict[str, Any]]) -> Iterator[str]:
    for item in conditions:
        colour = _TRUTH.get(item["status"], "yellow")
        truth = painted(item["status"].ljust(7), colour, sys.stdout)
        since = age(item.get("lastTransitionTime", ""))
        message = clean(item.get("message", ""))
        yield f"  {item['type']:<12} {truth}  {item['reason']:<20} {since:>4}  {message}".rstrip()


def _drift(drift: Sequence[dict[str, str]]) -> Iterator[str]:
    for item in drift:
        yield clean(f"  {item['field']} is {item['observed']}, declared {item['desired']}")


def _chain(chain: Sequence[dict[str, Any]]) -> Iterator[str]:
    for item in chain:
        capacity = f", {size(item['capacity'])}" if "capacity" in item else ""
        gone = " - can't be read" if item.get("present") is False else ""
        yield clean(f"  {item['path']} ({item.get('format', 'unknown')}{capacity}){gone}")


def _discovered(status: dict[str, Any]) -> Iterator[str]:
    listed = status.get("discovered", [])
    rows = [
        [
            Cell(f"  {clean(item['name'])}"),
            Cell(item.get("format", tables.NOTHING)),
            Cell(size(item["capacity"]) if "capacity" in item else tables.NOTHING, right=True),
        ]
        for item in listed
    ]
    if rows:
        yield from tables.plain([], rows).splitlines()
    more = status.get("volumes", {}).get("unmanaged", len(listed)) - len(listed)
    if more > 0:
        yield f"  and {more} more"


def _steps(steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        yield clean(f"  {step.verb} {step.target}, begun {age(step.begun)} ago")


def _events(events: Sequence[Event]) -> Iterator[str]:
    newest = events[-EVENTS:]
    if not newest:
        return
    for line in tables.plain([], event_rows(newest, objects=False)).splitlines():
        yield f"  {clean(line)}"
