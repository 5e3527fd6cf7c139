"""``get``, ``events`` and ``lookup``: what the store holds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from backends.base import VolumeFacts
from controller.cli import tables
from controller.cli.objects import (
    Target,
    as_json,
    as_list,
    missing,
    named_targets,
    put_objects,
    reference,
    targets,
)
from controller.cli.options import EventOutput, Output
from controller.cli.printing import put, report, say
from controller.cli.session import Session
from controller.cli.tables import Cell, age
from controller.codecs.xmlfields import clean_path
from controller.resources import AnyResource, Key
from controller.store import Event, Store

WATCH_EVERY = 0.5
"""Seconds between two looks for new events."""


def get(
    session: Session, words: Sequence[str], *, output: Output, namespace: str, everywhere: bool
) -> int:
    """Print resources; 1 where one that was named is not there."""
    chosen = targets(words)
    absent = 0
    with session.reading() as store:
        found: dict[str, list[AnyResource]] = {target.kind.name: [] for target in chosen}
        for target in chosen:
            resources = _matching(store, target, "" if everywhere else namespace)
            if target.name and not resources:
                report(missing(target.key(namespace)))
                absent += 1
            found[target.kind.name] += resources
        everything = [item for resources in found.values() for item in resources]
        single = len(chosen) == 1 and bool(chosen[0].name) and len(everything) == 1
        if output in (Output.TABLE, Output.WIDE):
            _show_tables(found, chosen, wide=output is Output.WIDE, everywhere=everywhere)
        elif everything or not absent:
            put_objects(everything, output, store, single=single)
    return 1 if absent else 0


def _matching(store: Store, target: Target, namespace: str) -> list[AnyResource]:
    scope = namespace if target.kind.namespaced and namespace else None
    listed = store.list(kind=target.kind.name, namespace=scope)
    return [item for item in listed if target.name in ("", item.metadata.name)]


def _show_tables(
    found: dict[str, list[AnyResource]], chosen: Sequence[Target], *, wide: bool, everywhere: bool
) -> None:
    shown = 0
    by_name = {target.kind.name: target.kind for target in chosen}
    for name, resources in found.items():
        if not resources:
            continue
        if shown:
            put("")
        shown += 1
        tables.show_resources(
            by_name[name], resources, wide=wide, namespaces=everywhere, full_names=len(found) > 1
        )
    if not shown and not any(target.name for target in chosen):
        say("There are none.")


def events(
    session: Session,
    words: Sequence[str],
    *,
    namespace: str,
    watch: bool,
    output: EventOutput,
) -> int:
    """Print events, oldest first; with ``watch`` until interrupted."""
    keys = [target.key(namespace) for target in named_targets(words)] if words else []
    with session.reading() as store:
        last = _put_events(_events_of(store, keys, 0), output, watch=watch, first=True)
    if not watch:
        return 0
    while not session.begun:
        time.sleep(WATCH_EVERY)
    with session.store() as store:
        while True:
            time.sleep(WATCH_EVERY)
            fresh = _events_of(store, keys, last)
            if fresh:
                last = _put_events(fresh, output, watch=True, first=False)


def _events_of(store: Store, keys: Sequence[Key], since: int) -> list[Event]:
    if not keys:
        return store.events(since_id=since)
    found = [event for key in keys for event in store.events(since_id=since, key=key)]
    return sorted(found, key=lambda event: event.id)


def _put_events(listed: Sequence[Event], output: EventOutput, *, watch: bool, first: bool) -> int:
    """Print events; the id of the last one."""
    if output is EventOutput.JSON:
        dumped = [dump_event(event) for event in listed]
        if watch:
            for item in dumped:
                typer.echo(json.dumps(item, ensure_ascii=False))
        else:
            put(as_json(as_list(dumped)))
    elif listed and first:
        tables.show(["Last seen", "Type", "Reason", "Object", "Message"], event_rows(listed))
    elif listed:
        put(tables.plain([], event_rows(listed)))
    elif first and not watch:
        say("There are no events.")
    return listed[-1].id if listed else 0


def event_rows(listed: Iterable[Event], *, objects: bool = True) -> list[list[Cell]]:
    """Rows of a table of events.

    :param objects: whether to say what they befell.
    """
    rows = []
    for event in listed:
        seen = age(event.last_time)
        if event.count > 1:
            seen += f" (x{event.count} over {age(event.first_time)})"
        colour = "yellow" if event.type == "Warning" else ""
        row = [Cell(seen), Cell(event.type, colour), Cell(event.reason)]
        row += [Cell(reference(event.key))] if objects else []
        rows.append([*row, Cell(event.message)])
    return rows


def dump_event(event: Event) -> dict[str, Any]:
    """An event with the fields of the Kubernetes API's (core/v1)."""
    involved = {
        "kind": event.key.kind,
        "namespace": event.key.namespace,
        "name": event.key.name,
        "uid": event.uid,
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{event.key.name}.{event.id:x}"},
        "involvedObject": {key: value for key, value in involved.items() if value},
        "type": event.type,
        "reason": event.reason,
        "message": event.message,
        "count": event.count,
        "firstTimestamp": event.first_time,
        "lastTimestamp": event.last_time,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What ``lookup`` looks for; one of them is given."""

    path: str = ""
    key: str = ""
    uuid: str = ""
    target_path: str = ""


@dataclass(frozen=True, slots=True)
class Undeclared:
    """A volume that is in a pool and that nobody declares."""

    pool: Key
    facts: VolumeFacts

    def dump(self) -> dict[str, Any]:
        return {
            "pool": self.pool.name,
            "volume": self.facts.name,
            "path": self.facts.path,
            "key": self.facts.key,
            "format": self.facts.format,
            "declared": False,
        }


def lookup(session: Session, query: Query, *, output: Output) -> int:
    """Print what has that path, key or uuid; 1 where nothing has."""
    with session.reading() as store:
        resources = store.list()
        found = [item for item in resources if _answers(item, query)]
        strangers = [] if found else _undeclared(session, store, resources, query)
        if not found and not strangers:
            say("Nothing that is declared or in a pool matches.", "red")
            return 1
        if output is Output.TABLE:
            for item in found:
                put(reference(item.key))
            for stranger in strangers:
                put(f"{reference(stranger.pool)} {stranger.facts.name}")
        elif found:
            put_objects(found, output, store, single=len(found) == 1)
        else:
            put(as_json(strangers[0].dump()))
    if strangers:
        say("Nobody declares this volume.")
    return 0


def _answers(resource: AnyResource, query: Query) -> bool:
    status, kind = resource.status, resource.kind.name
    if kind == "StorageVolume":
        if query.path:
            return bool(status.path == clean_path(query.path))
        return bool(query.key) and status.key == query.key
    if kind != "StoragePool":
        return False
    if query.uuid:
        return query.uuid.lower() in (resource.spec.uuid, status.uuid)
    path = resource.spec.target.path if resource.spec.target else None
    if not query.target_path or path is None:
        return False
    return clean_path(path) == clean_path(query.target_path)


def _undeclared(
    session: Session, store: Store, resources: Sequence[AnyResource], query: Query
) -> list[Undeclared]:
    """Volumes that nobody declares, looked for in the pools as they are now."""
    wanted = clean_path(query.path) if query.path else query.key
    if not wanted:
        return []
    engine = session.engine(store)
    world = engine.world()
    pools = [item for item in world.pools() if _may_hold(item, wanted)]
    found = []
    for examined in engine.plan(world, [item.metadata.name for item in pools]):
        if examined.facts is None or examined.own is None:
            continue
        for volume in examined.facts.volumes.values():
            if wanted in (volume.path, volume.key):
                found.append(Undeclared(examined.own.resource.key, volume))
    return found


def _may_hold(pool: AnyResource, path: str) -> bool:
    target = pool.spec.target.path if pool.spec.target else None
    return target is None or Path(path).parent == Path(clean_path(target))
