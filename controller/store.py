"""The local store: resources, their status, events, and the journal of steps begun.

One SQLite file in the state directory serves the agent and the command line at the same time. It
behaves like an API server where that matters: uids, generations, resource versions, finalizers,
a status apart from the spec. What it holds can be rebuilt from the manifests and from the marks
on the storage.
"""

from __future__ import annotations

import builtins
import datetime
import json
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import ValidationError

from backends import errors
from backends.schema import Model, violations
from backends.spec import StatusBase, VolumeSpec
from controller.database import Database, Schema
from controller.resources import (
    FINALIZER,
    AnyResource,
    Declared,
    Key,
    Metadata,
    Resource,
    kinds,
)

FILE_NAME = "store.db"

EVENT_WINDOW = datetime.timedelta(minutes=10)
"""An event that repeats within this time is counted and not recorded anew."""

MAX_EVENTS = 10_000
MAX_EVENT_AGE = datetime.timedelta(days=30)
MAX_EVENT_MESSAGE = 1024
"""Characters, as in the Kubernetes API."""

MAX_FINISHED_STEPS = 1000

_PRUNE_EVERY = 64
"""Old rows are looked for once in so many records."""

EventType = Literal["Normal", "Warning"]
UNDEFINED = ("Undefined", "It is not declared here any more.")
"""Reason and message of the event of a pool that went, whatever became of its data."""

Outcome = Literal["created", "configured", "unchanged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What an apply led to."""

    resource: AnyResource
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a resource. Times are RFC 3339 in UTC.

    :param id: rises with every record; an event that is counted once more gets a new one.
    """

    id: int
    key: Key
    uid: str
    type: EventType
    reason: str
    message: str
    count: int
    first_time: str
    last_time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step on the host that was begun; ``ended`` is None until it is known to be over."""

    id: int
    key: Key
    uid: str
    verb: str
    target: str
    detail: Mapping[str, Any]
    begun: str
    ended: str | None
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A stored resource that this release can't read; it is left as it is."""

    key: Key
    message: str


class Journal(Protocol):
    """What a host has to remember by itself, wherever the resources live."""

    def begin_step(
        self,
        key: Key,
        uid: str,
        verb: str,
        target: str,
        detail: Mapping[str, Any] | None = None,
    ) -> int: ...

    def end_step(self, id: int, error: str = "") -> None: ...

    def unfinished_steps(self) -> list[Step]: ...

    def runtime(self, uid: str) -> dict[str, Any]: ...

    def set_runtime(self, uid: str, data: Mapping[str, Any]) -> None: ...


class ResourceStore(Journal, Protocol):
    """What the engine needs: where resources live (this store, or an API server), and a journal."""

    def get(self, key: Key) -> AnyResource | None: ...

    def list(
        self, kind: str | None = None, namespace: str | None = None
    ) -> builtins.list[AnyResource]: ...

    def apply(self, declared: Declared, *, source: str = "") -> Applied: ...

    def write_status(
        self, key: Key, status: StatusBase, *, uid: str, generation: int | None = None
    ) -> bool: ...

    def annotate(self, key: Key, name: str, value: str | None) -> bool: ...

    def bind(self, key: Key, *, uid: str, version: str, node: str, pool: str = "") -> bool: ...

    def request_deletion(self, key: Key) -> bool: ...

    def add_finalizer(
        self, key: Key, *, uid: str | None = None, finalizer: str = FINALIZER
    ) -> bool: ...

    def remove_finalizer(
        self, key: Key, *, uid: str | None = None, finalizer: str = FINALIZER
    ) -> bool: ...

    def record_event(
        self, key: Key, uid: str, type: EventType, reason: str, message: str
    ) -> None: ...

    def revision(self) -> int: ...


_SCHEMA = Schema(
    application_id=0x504B5052,
    migrations=(
        (
            """CREATE TABLE resources(
                uid TEXT PRIMARY KEY, kind TEXT NOT NULL, namespace TEXT NOT NULL,
                name TEXT NOT NULL, labels TEXT NOT NULL, annotations TEXT NOT NULL,
                declared_annotations TEXT NOT NULL, finalizers TEXT NOT NULL,
                generation INTEGER NOT NULL, version INTEGER NOT NULL, created TEXT NOT NULL,
                deleted TEXT, source TEXT NOT NULL, spec TEXT NOT NULL, status TEXT NOT NULL,
                UNIQUE(kind, namespace, name)) WITHOUT ROWID""",
            "CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
            "INSERT INTO counters VALUES ('version', 0), ('revision', 0), ('event', 0)",
            """CREATE TABLE events(
                id INTEGER PRIMARY KEY, kind TEXT NOT NULL, namespace TEXT NOT NULL,
                name TEXT NOT NULL, uid TEXT NOT NULL, type TEXT NOT NULL, reason TEXT NOT NULL,
                message TEXT NOT NULL, count INTEGER NOT NULL, first_time TEXT NOT NULL,
                last_time TEXT NOT NULL)""",
            "CREATE INDEX events_of_resource ON events(kind, namespace, name, reason)",
            """CREATE TABLE steps(
                id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, namespace TEXT NOT NULL,
                name TEXT NOT NULL, uid TEXT NOT NULL, verb TEXT NOT NULL, target TEXT NOT NULL,
                detail TEXT NOT NULL, begun TEXT NOT NULL, ended TEXT, error TEXT NOT NULL)""",
            "CREATE INDEX steps_unfinished ON steps(id) WHERE ended IS NULL",
            "CREATE TABLE runtime(uid TEXT PRIMARY KEY, data TEXT NOT NULL) WITHOUT ROWID",
        ),
    ),
)

_OF_KEY = "kind = ? AND namespace = ? AND name = ?"
_SAME_EVENT = f"{_OF_KEY} AND uid = ? AND type = ? AND reason = ? AND message = ?"

_UNSEEN = {"source", "declared_annotations"}
"""Columns that a Resource does not show."""


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Store:
    """Resources of this host in ``store.db`` of the state directory.

    Safe for threads and processes at once. Every method raises ``errors.StorageError`` where the
    file can't be read or written; what is not written then, is not written at all.

    :param clock: the present, in UTC.
    """

    def __init__(
        self, state_directory: Path, *, clock: Callable[[], datetime.datetime] = _utc_now
    ) -> None:
        self._database = Database(state_directory / FILE_NAME, _SCHEMA)
        self._clock = clock
        self._parsed: dict[str, tuple[int, AnyResource]] = {}
        self._parsed_lock = threading.Lock()

    def close(self) -> None:
        """Close the connections of all threads; none may be in use."""
        self._database.close()

    def _now(self, before: datetime.timedelta = datetime.timedelta()) -> str:
        return (self._clock() - before).strftime("%Y-%m-%dT%H:%M:%SZ")

    def get(self, key: Key) -> AnyResource | None:
        """The resource of that key.

        :raises errors.InvalidSpec: it is stored and this release can't read it.
        """
        with self._database.read() as connection:
            row = _row(connection, key)
        return self._resource(row) if row else None

    def list(
        self, kind: str | None = None, namespace: str | None = None
    ) -> builtins.list[AnyResource]:
        """Resources in order of kind, namespace and name; unreadable ones are left out."""
        readable, _ = self._sorted_out(kind=kind, namespace=namespace)
        return readable

    def from_source(self, source: str) -> builtins.list[AnyResource]:
        """The resources that this source applied last; unreadable ones are left out."""
        readable, _ = self._sorted_out(source=source)
        return readable

    def source_of(self, key: Key) -> str:
        """What applied the resource last, such as ``directory:/etc/poolkeeper``; else empty."""
        with self._database.read() as connection:
            row = _row(connection, key)
        return str(row["source"]) if row else ""

    def problems(self) -> builtins.list[Unreadable]:
        """What is stored and can't be read, such as after a return to an older release."""
        _, unreadable = self._sorted_out()
        return unreadable

    def revision(self) -> int:
        """A counter to poll, some microseconds a time, for whether there is something to do.

        It rises with every change of a spec, of labels or of annotations, with a request for
        deletion, and when a resource goes, by whichever process. It stays for statuses,
        finalizers, events, steps and runtime facts.
        """
        with self._database.read() as connection:
            return _counter(connection, "revision")

    def _sorted_out(
        self, **equal: str | None
    ) -> tuple[builtins.list[AnyResource], builtins.list[Unreadable]]:
        given = {column: value for column, value in equal.items() if value is not None}
        where = " AND ".join(f"{column} = ?" for column in given) or "1"
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT * FROM resources WHERE {where} ORDER BY namespace, name",  # noqa: S608
                tuple(given.values()),
            ).fetchall()
        readable, unreadable = [], []
        for row in sorted(rows, key=_kind_order):
            try:
                readable.append(self._resource(row))
            except errors.InvalidSpec as error:
                unreadable.append(Unreadable(key=_key(row), message=str(error)))
        if not given:
            self._forget_all_but({row["uid"] for row in rows})
        return readable, unreadable

    def _resource(self, row: sqlite3.Row) -> AnyResource:
        # A row's version changes with everything in it that a Resource shows.
        with self._parsed_lock:
            version, known = self._parsed.get(row["uid"], (0, None))
        if known is not None and version == row["version"]:
            return known
        parsed = _parse(row)
        with self._parsed_lock:
            self._parsed[row["uid"]] = (row["version"], parsed)
        return parsed

    def _forget_all_but(self, uids: set[str]) -> None:
        with self._parsed_lock:
            self._parsed = {uid: item for uid, item in self._parsed.items() if uid in uids}

    def apply(self, declared: Declared, *, source: str = "") -> Applied:
        """Make what is declared what is wanted.

        A changed spec raises the generation; labels and annotations do not. Annotations that
        others set (``annotate``) stay; those that the former declaration had and this one has
        not, go. Nothing is written where nothing changes.

        :param source: what declares it; kept for pruning. Empty leaves the recorded one.
        :raises errors.InvalidSpec: a rule of the spec, or of its change, is broken.
        :raises errors.Conflict: the resource is being deleted, and its deletion policy would stay.
        """
        with self._database.read() as connection:
            row = _row(connection, declared.key)
        if row and not (change := self._change(row, declared, source)):
            return Applied(resource=self._resource(row), outcome="unchanged")
        with self._database.write() as connection:
            row = _row(connection, declared.key)
            if row is None:
                self._create(connection, declared, source)
                outcome: Outcome = "created"
            else:
                change = self._change(row, declared, source)
                outcome = "configured" if change.keys() - _UNSEEN else "unchanged"
                _update(connection, row["uid"], change, shown=outcome == "configured")
            row = _row(connection, declared.key)
        assert row is not None  # noqa: S101 - written in the same transaction
        return Applied(resource=self._resource(row), outcome=outcome)

    def _create(self, connection: sqlite3.Connection, declared: Declared, source: str) -> None:
        _check(declared, None)
        metadata = declared.metadata
        connection.execute(
            "INSERT INTO resources VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                str(uuid.uuid4()),
                *_parts(declared.key),
                _text(metadata.labels),
                _text(metadata.annotations),
                _text(sorted(metadata.annotations)),
                _text(sorted(metadata.finalizers)),
                1,
                _next(connection, "version"),
                self._now(),
                None,
                source,
                _text(declared.spec.dump()),
                _text(declared.kind.status().dump()),
            ),
        )
        _next(connection, "revision")

    def _change(self, row: sqlite3.Row, declared: Declared, source: str) -> dict[str, Any]:
        """The columns that a declaration gives another value."""
        former = self._resource(row)
        declared = as_bound(declared, former)
        check_deleting(declared, former)
        _check(declared, former.spec)
        metadata = declared.metadata
        formerly_declared = json.loads(row["declared_annotations"])
        kept = {
            name: value
            for name, value in former.metadata.annotations.items()
            if name not in formerly_declared
        }
        wanted = {
            "labels": _text(metadata.labels),
            "annotations": _text(kept | metadata.annotations),
            "declared_annotations": _text(sorted(metadata.annotations)),
            "source": source or row["source"],
        }
        # Compared as models: a document of an older release lacks the defaults of this one.
        if declared.spec.dump() != former.spec.dump():
            wanted |= {"spec": _text(declared.spec.dump()), "generation": row["generation"] + 1}
        return {column: value for column, value in wanted.items() if row[column] != value}

    def annotate(self, key: Key, name: str, value: str | None) -> bool:
        """Set an annotation, or take it off; whether that changed anything."""
        with self._database.write() as connection:
            row = _row(connection, key)
            if row is None:
                return False
            former = json.loads(row["annotations"])
            wanted = {**former, name: value}
            if value is None:
                del wanted[name]
            if wanted == former:
                return False
            _update(connection, row["uid"], {"annotations": _text(wanted)}, shown=True)
            return True

    def write_status(
        self, key: Key, status: StatusBase, *, uid: str, generation: int | None = None
    ) -> bool:
        """Record what was observed, where that differs from what is recorded.

        :param uid: the resource that was observed; one of the same name made since is left alone.
        :param generation: if given, the spec must still be of this generation.
        :returns: whether something was written.
        """
        wanted = _text(status.dump())

        def differs(row: sqlite3.Row | None) -> bool:
            if row is None or row["uid"] != uid or generation not in (None, row["generation"]):
                return False
            return str(row["status"]) != wanted

        with self._database.read() as connection:
            if not differs(_row(connection, key)):
                return False
        with self._database.write() as connection:
            if not differs(_row(connection, key)):
                return False
            _update(connection, uid, {"status": wanted}, shown=False)
            return True

    def bind(self, key: Key, *, uid: str, version: str, node: str, pool: str = "") -> bool:
        """Record the node that keeps a volume, and the pool that was chosen for it.

        :param version: the resource version that was read; the binding holds for no other.
        :param pool: empty where the volume names its pool itself.
        :returns: whether it was recorded.
        """
        with self._database.write() as connection:
            row = _row(connection, key)
            if row is None or (row["uid"], str(row["version"])) != (uid, version):
                return False
            spec = {**json.loads(row["spec"]), "nodeName": node}
            if pool:
                spec["poolRef"] = {"name": pool}
            change = {"spec": _text(spec), "generation": row["generation"] + 1}
            _update(connection, uid, change, shown=True)
            return True

    def request_deletion(self, key: Key) -> bool:
        """Delete the resource once it has no finalizer; at once where it has none.

        :returns: whether there is such a resource.
        """
        with self._database.write() as connection:
            row = _row(connection, key)
            if row is None:
                return False
            gone = not json.loads(row["finalizers"])
            if gone:
                self._remove(connection, row["uid"])
            elif not row["deleted"]:
                change = {"deleted": self._now(), "generation": row["generation"] + 1}
                _update(connection, row["uid"], change, shown=True)
        self._tell_undefined(key, row["uid"], gone)
        return True

    def add_finalizer(
        self, key: Key, *, uid: str | None = None, finalizer: str = FINALIZER
    ) -> bool:
        """Keep the resource from going before ``remove_finalizer``.

        :param uid: if given, the resource must still be this one.
        :returns: whether the resource has the finalizer now; false where it is gone, or being
            deleted without it.
        """
        with self._database.write() as connection:
            row = _row(connection, key)
            if row is None or uid not in (None, row["uid"]):
                return False
            present = json.loads(row["finalizers"])
            if finalizer in present or row["deleted"]:
                return finalizer in present
            wanted = _text(sorted([*present, finalizer]))
            _update(connection, row["uid"], {"finalizers": wanted}, shown=False)
            return True

    def remove_finalizer(
        self, key: Key, *, uid: str | None = None, finalizer: str = FINALIZER
    ) -> bool:
        """Let the resource go; it does where it is being deleted and this was the last one.

        :returns: whether the resource had the finalizer.
        """
        with self._database.write() as connection:
            row = _row(connection, key)
            if row is None or uid not in (None, row["uid"]):
                return False
            present = json.loads(row["finalizers"])
            left = [name for name in present if name != finalizer]
            gone = bool(row["deleted"] and not left)
            if gone:
                self._remove(connection, row["uid"])
            elif left != present:
                _update(connection, row["uid"], {"finalizers": _text(left)}, shown=False)
        self._tell_undefined(key, row["uid"], gone)
        return finalizer in present

    def _tell_undefined(self, key: Key, uid: str, gone: bool) -> None:
        if gone and key.kind == "StoragePool":
            self.record_event(key, uid, "Normal", *UNDEFINED)

    def _remove(self, connection: sqlite3.Connection, uid: str) -> None:
        connection.execute("DELETE FROM resources WHERE uid = ?", (uid,))
        connection.execute("DELETE FROM runtime WHERE uid = ?", (uid,))
        _next(connection, "version")
        _next(connection, "revision")

    def record_event(self, key: Key, uid: str, type: EventType, reason: str, message: str) -> None:
        """Record an event; one that repeats within ``EVENT_WINDOW`` is counted."""
        said = message if len(message) <= MAX_EVENT_MESSAGE else message[: MAX_EVENT_MESSAGE - 1]
        said += "…" if said != message else ""
        present = self._now()
        with self._database.write() as connection:
            id = _next(connection, "event")
            same = (*_parts(key), uid, type, reason, said)
            recent = connection.execute(
                f"SELECT max(id) FROM events WHERE {_SAME_EVENT} AND last_time >= ?",  # noqa: S608
                (*same, self._now(EVENT_WINDOW)),
            ).fetchone()[0]
            if recent:
                connection.execute(
                    "UPDATE events SET id = ?, count = count + 1, last_time = ? WHERE id = ?",
                    (id, present, recent),
                )
            else:
                connection.execute(
                    "INSERT INTO events VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                    (id, *same, 1, present, present),
                )
            if id % _PRUNE_EVERY == 0:
                self._prune_events(connection)

    def _prune_events(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "DELETE FROM events WHERE last_time < ? OR id <= "
            "(SELECT id FROM events ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (self._now(MAX_EVENT_AGE), MAX_EVENTS),
        )

    def events(self, since_id: int = 0, key: Key | None = None) -> builtins.list[Event]:
        """Events after that id, oldest first; of one resource where a key is given."""
        where, values = (f"AND {_OF_KEY}", _parts(key)) if key else ("", ())
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT * FROM events WHERE id > ? {where} ORDER BY id",  # noqa: S608
                (since_id, *values),
            ).fetchall()
        return [_event(row) for row in rows]

    def begin_step(
        self,
        key: Key,
        uid: str,
        verb: str,
        target: str,
        detail: Mapping[str, Any] | None = None,
    ) -> int:
        """Record, before its first effect on the host, that a step begins; its number."""
        with self._database.write() as connection:
            cursor = connection.execute(
                "INSERT INTO steps(kind, namespace, name, uid, verb, target, detail, begun, error)"
                " VALUES (?,?,?,?,?,?,?,?,'')",
                (*_parts(key), uid, verb, target, _text(dict(detail or {})), self._now()),
            )
            id = int(cursor.lastrowid or 0)
            if id % _PRUNE_EVERY == 0:
                connection.execute(
                    "DELETE FROM steps WHERE ended IS NOT NULL AND id <= (SELECT id FROM steps "
                    "WHERE ended IS NOT NULL ORDER BY id DESC LIMIT 1 OFFSET ?)",
                    (MAX_FINISHED_STEPS,),
                )
            return id

    def end_step(self, id: int, error: str = "") -> None:
        """Record that a step is over, and with which error."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE steps SET ended = ?, error = ? WHERE id = ?", (self._now(), error, id)
            )

    def unfinished_steps(self) -> builtins.list[Step]:
        """Steps that were begun and are not known to be over, oldest first."""
        return self._steps("ended IS NULL")

    def finished_steps(self) -> builtins.list[Step]:
        """The newest of the steps that are over, oldest first."""
        return self._steps("ended IS NOT NULL")

    def _steps(self, where: str) -> builtins.list[Step]:
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT * FROM steps WHERE {where} ORDER BY id"  # noqa: S608
            ).fetchall()
        return [_step(row) for row in rows]

    def runtime(self, uid: str) -> dict[str, Any]:
        """What this host remembers of a resource; empty where it remembers nothing."""
        with self._database.read() as connection:
            row = connection.execute("SELECT data FROM runtime WHERE uid = ?", (uid,)).fetchone()
        return dict(json.loads(row["data"])) if row else {}

    def set_runtime(self, uid: str, data: Mapping[str, Any]) -> None:
        """Remember facts of a resource in place of the former ones; they go with the resource."""
        if self.runtime(uid) == data:
            return
        with self._database.write() as connection:
            connection.execute("INSERT OR REPLACE INTO runtime VALUES (?, ?)", (uid, _text(data)))


def as_bound(declared: Declared, former: AnyResource) -> Declared:
    """What is declared, with the pool that was chosen for it before."""
    if not isinstance(declared.spec, VolumeSpec):
        return declared
    return replace(declared, spec=declared.spec.bound_as(former.spec))


def check_deleting(declared: Declared, former: AnyResource) -> None:
    """Refuse to change what is being deleted, but for how: that is the way out of a stuck deletion.

    :raises errors.Conflict: the resource is being deleted, and its deletion policy would stay.
    """
    policies = [getattr(item.spec, "deletion_policy", None) for item in (declared, former)]
    if former.deleting and policies[0] == policies[1]:
        raise errors.Conflict(
            f"{declared.key} is being deleted.",
            hint="Wait until it is gone and apply anew, or change its deletionPolicy.",
        )


def _text(value: object) -> str:
    """JSON of which equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _parts(key: Key) -> tuple[str, str, str]:
    return key.kind, key.namespace, key.name


def _key(row: sqlite3.Row) -> Key:
    return Key(row["kind"], row["namespace"], row["name"])


def _row(connection: sqlite3.Connection, key: Key) -> sqlite3.Row | None:
    found: sqlite3.Row | None = connection.execute(
        f"SELECT * FROM resources WHERE {_OF_KEY}",  # noqa: S608
        _parts(key),
    ).fetchone()
    return found


def _kind_order(row: sqlite3.Row) -> int:
    names = builtins.list(kinds())
    return names.index(row["kind"]) if row["kind"] in names else len(names)


def _counter(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return int(row[0])


def _next(connection: sqlite3.Connection, name: str) -> int:
    connection.execute("UPDATE counters SET value = value + 1 WHERE name = ?", (name,))
    return _counter(connection, name)


def _update(
    connection: sqlite3.Connection, uid: str, change: Mapping[str, Any], *, shown: bool
) -> None:
    """Write columns of a resource.

    :param shown: whether the change is one that ``revision`` shows.
    """
    values: dict[str, Any] = dict(change)
    if values.keys() - _UNSEEN:
        values["version"] = _next(connection, "version")
    if values:
        columns = ", ".join(f"{column} = ?" for column in values)
        connection.execute(
            f"UPDATE resources SET {columns} WHERE uid = ?",  # noqa: S608
            (*values.values(), uid),
        )
    if shown:
        _next(connection, "revision")


def _check(declared: Declared, former: Model | None) -> None:
    broken = builtins.list(violations(declared.spec, former))
    if broken:
        what = "; ".join(f"{item.path}: {item.message}" for item in broken)
        raise errors.InvalidSpec(f"{declared.key}: {what}.")


def _parse(row: sqlite3.Row) -> AnyResource:
    try:
        kind = kinds()[row["kind"]]
        return Resource(
            kind=kind,
            metadata=_metadata(row),
            spec=kind.spec.model_validate(json.loads(row["spec"])),
            status=kind.status.model_validate(json.loads(row["status"])),
        )
    except KeyError:
        raise _unreadable(row, f"there is no kind {row['kind']!r}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _unreadable(row, f"{where}: {first['msg']}") from error
    except json.JSONDecodeError as error:
        raise _unreadable(row, f"it is not JSON ({error})") from error


def _unreadable(row: sqlite3.Row, why: str) -> errors.InvalidSpec:
    return errors.InvalidSpec(
        f"The stored {_key(row)} can't be read by this release: {why}.",
        hint="Use the release that wrote it, or delete the resource and apply its manifest anew.",
    )


def _metadata(row: sqlite3.Row) -> Metadata:
    return Metadata(
        name=row["name"],
        namespace=row["namespace"],
        labels=json.loads(row["labels"]),
        annotations=json.loads(row["annotations"]),
        uid=row["uid"],
        generation=row["generation"],
        resource_version=str(row["version"]),
        creation_timestamp=row["created"],
        deletion_timestamp=row["deleted"],
        finalizers=tuple(json.loads(row["finalizers"])),
    )


def _event(row: sqlite3.Row) -> Event:
    return Event(key=_key(row), **{name: row[name] for name in _columns(Event)})


def _step(row: sqlite3.Row) -> Step:
    values = {name: row[name] for name in _columns(Step)}
    return Step(key=_key(row), **{**values, "detail": json.loads(row["detail"])})


def _columns(model: type[Event] | type[Step]) -> Iterable[str]:
    return (name for name in model.__dataclass_fields__ if name != "key")
