"""``apply``, ``delete`` and ``wait``: what changes the store, and what waits for the result."""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import typer

from backends import errors
from backends.spec import PoolDeletion, VolumeDeletion
from controller import summarising
from controller.cli import progress, tables
from controller.cli.objects import missing, named_targets, reference
from controller.cli.printing import put, report, say
from controller.cli.reading import in_order, nothing_applied, place_of, read, why_refused
from controller.cli.session import Session
from controller.cli.tables import Cell
from controller.cli.working import (
    POLL,
    WORKED_ON,
    Deadline,
    Foreground,
    Verdict,
    exit_code,
    foreign_pools,
    pool_of,
    pool_to_pass,
    take_over,
    verdicts,
    wait_until,
)
from controller.locking import AgentLock
from controller.resources import REQUESTED_AT, AnyResource, Key, kinds
from controller.sources.base import Snapshot
from controller.store import Store

_COLOURS = {
    Verdict.READY: "",
    Verdict.FAILED: "red",
    Verdict.PENDING: "yellow",
    Verdict.RESTING: "",
}

_SEEN_BY = {"StorageNode": "the agent of that node looks at it with its next report"}
"""Who acts on kinds that no pass over a pool concerns."""


@dataclass(slots=True)
class Written:
    """What was written to the store, and what has to be seen to.

    :param keys: the resources whose state is to be told.
    :param pools: the pools to pass over.
    :param unchanged: those of ``keys`` whose state may be one that was true before.
    :param failed: what could not be written.
    """

    keys: list[Key] = field(default_factory=list)
    pools: set[str] = field(default_factory=set)
    unchanged: list[Key] = field(default_factory=list)
    failed: int = 0


def apply(
    session: Session,
    paths: Sequence[str],
    *,
    pool: str,
    wait: bool,
    strict: bool,
    timeout: float,
) -> int:
    """Write manifests to the store and carry them out."""
    with session.reading() as store:
        snapshot = read(paths, store, pool=pool)
        refused = _report_refused(snapshot, store) if strict else 0
    if strict and (snapshot.problems or refused):
        nothing_applied()
        return 1
    if not snapshot.declared:
        return 1
    with session.store() as store:
        job = _write(session, store, snapshot)
        code = see_to(session, store, job, wait=wait, deadline=Deadline(timeout))
    return code or (1 if job.failed or snapshot.problems else 0)


def _report_refused(snapshot: Snapshot, store: Store) -> int:
    """Report what the store would not take; how many there are."""
    refused = 0
    for declared in snapshot.declared:
        problem = why_refused(declared, store.get(declared.key))
        if problem is not None:
            report(problem, about=place_of(declared))
            refused += 1
    return refused


def _write(session: Session, store: Store, snapshot: Snapshot) -> Written:
    job = Written()
    foreign = foreign_pools([*store.list("StoragePool"), *snapshot.declared], session.node)
    for declared in in_order(snapshot.declared):
        try:
            applied = store.apply(declared)
        except errors.StorageError as error:
            report(error, about=place_of(declared))
            job.failed += 1
            continue
        put(f"{reference(declared.key)} {applied.outcome}")
        if declared.kind.name not in WORKED_ON:
            who = _SEEN_BY.get(declared.kind.name, "this release does not act on it")
            say(f"{reference(declared.key)} is stored; {who}.")
        elif pool_to_pass(store, applied.resource) in foreign:
            say(f"{reference(declared.key)} is stored; another node keeps its pool.")
        else:
            job.keys.append(declared.key)
            job.pools.add(pool_to_pass(store, applied.resource))
            job.unchanged += [declared.key] if applied.outcome == "unchanged" else []
    return job


def see_to(session: Session, store: Store, job: Written, *, wait: bool, deadline: Deadline) -> int:
    """Carry out what was written, and tell what became of it."""
    if not job.keys:
        return 0

    request = datetime.datetime.now(datetime.UTC).isoformat()
    asked: list[Key] = []

    def ask() -> None:
        asked.extend(job.unchanged)
        for key in asked:
            store.annotate(key, REQUESTED_AT, request)

    def settled() -> bool:
        if any(_last_handled(store, key) not in (None, request) for key in asked):
            return False
        return Verdict.PENDING not in verdicts(store, job.keys).values()

    early = _work(
        session,
        store,
        job.pools,
        job.keys,
        wait=wait,
        deadline=deadline,
        settled=settled,
        ask=ask,
    )
    if early is not None:
        return early
    found = verdicts(store, job.keys)
    _show_result(store, found)
    return exit_code(found.values(), waited=wait)


def _last_handled(store: Store, key: Key) -> str | None:
    """The request that was handled last, empty for none; None where the resource is gone."""
    resource = store.get(key)
    return None if resource is None else str(resource.status.last_handled_request or "")


def _work(
    session: Session,
    store: Store,
    pools: set[str],
    concerned: Sequence[Key],
    *,
    wait: bool,
    deadline: Deadline,
    settled: Callable[[], bool],
    ask: Callable[[], None] = lambda: None,
) -> int | None:
    """Pass over pools here, or leave it to the agent and wait for it if asked to.

    :param concerned: the resources on whose behalf that is.
    :param ask: makes the agent look now, before it is waited for.
    :returns: the exit code where nobody waits for the result or nobody could begin, else None.
    """
    with AgentLock(session.state) as lock:
        try:
            agent = take_over(lock, deadline)
        except errors.InUse as error:
            report(error)
            return 3
        if agent is not None:
            say(f"An agent (process {agent.pid}) keeps this state and carries it out.")
            if not wait:
                return 0
            ask()
            with progress.shown(store, concerned):
                # Where the agent ends meanwhile, the work is ours.
                wait_until(lambda: settled() or lock.try_acquire("command"), deadline)
        if lock.held:
            with foreground(session, store, concerned) as worker:
                worker.carry_out(pools, retry=wait, deadline=deadline, settled=settled)
    return None


@contextlib.contextmanager
def foreground(
    session: Session, store: Store, concerned: Sequence[Key] = ()
) -> Iterator[Foreground]:
    # What the engine logs for an agent is shown here as it happens.
    logging.getLogger("controller").addHandler(logging.NullHandler())
    # Operations are no actions of a plan; their status alone tells how far they are.
    operations = [key for key in concerned if key.kind == "VolumeOperation"]
    with progress.shown(store, operations) as observer:
        worker = Foreground(session, store, observer)
        worker.recover()
        yield worker


def _show_result(store: Store, found: dict[Key, Verdict]) -> None:
    """Say on standard error what became of each resource."""
    rows = []
    for key, verdict in found.items():
        resource = store.get(key)
        ready = summarising.condition(resource.status, "Ready") if resource else None
        message = ready.message if ready else "It is gone." if resource is None else "Not seen yet."
        rows.append([Cell(reference(key)), Cell(verdict.value), Cell(message)])
    for line, verdict in zip(tables.plain([], rows).splitlines(), found.values(), strict=True):
        say(line, _COLOURS[verdict])


def delete(
    session: Session,
    words: Sequence[str],
    paths: Sequence[str],
    *,
    namespace: str,
    pool: str,
    wait: bool,
    ignore_missing: bool,
    timeout: float,
) -> int:
    """Ask for resources to go, and do what their deletion policies say."""
    if bool(words) == bool(paths):
        raise typer.BadParameter("Give either KIND NAME, or manifests with -f.")
    broken = 0
    with session.reading() as store:
        if paths:
            snapshot = read(paths, store, pool=pool)
            keys, broken = [item.key for item in snapshot.declared], len(snapshot.problems)
        else:
            keys = [target.key(namespace) for target in named_targets(words)]
        present = {key: resource for key in keys if (resource := store.get(key)) is not None}
    absent = [key for key in keys if key not in present and not ignore_missing]
    for key in absent:
        report(missing(key))
    code = 1 if absent or broken else 0
    if not present:
        return code
    with session.store() as store:
        deadline = Deadline(timeout)
        return _delete(session, store, present, wait=wait, deadline=deadline) or code


def _delete(
    session: Session,
    store: Store,
    present: dict[Key, AnyResource],
    *,
    wait: bool,
    deadline: Deadline,
) -> int:
    order = {name: place for place, name in enumerate(reversed(kinds()))}
    for key in sorted(present, key=lambda key: (order[key.kind], key)):
        store.request_deletion(key)
    held = [key for key in present if store.get(key) is not None]
    code = _let_go(session, store, present, held, wait=wait, deadline=deadline)
    for key, resource in present.items():
        if store.get(key) is None:
            put(f"{reference(key)} deleted")
            if _kept(resource):
                say(f"{reference(key)}: what it stood for was left as it is ({_kept(resource)}).")
        else:
            put(f"{reference(key)} deletion requested")
    return code


def _kept(resource: AnyResource) -> str:
    """Why the deletion of a resource leaves its storage; empty where it does not."""
    if resource.kind.name not in WORKED_ON:
        return ""
    if getattr(resource.status, "origin", None) == "Adopted":
        return "it was adopted"
    policy = getattr(resource.spec, "deletion_policy", None)
    if policy in (PoolDeletion.RETAIN, VolumeDeletion.RETAIN):
        return "deletionPolicy is Retain"
    return ""


def _let_go(
    session: Session,
    store: Store,
    present: dict[Key, AnyResource],
    held: Sequence[Key],
    *,
    wait: bool,
    deadline: Deadline,
) -> int:
    """See to those that something has to be done for before they go."""
    if not held:
        return 0

    def gone() -> bool:
        return all(store.get(key) is None for key in held)

    pools = {pool_of(present[key]) for key in held} - {""}
    early = _work(session, store, pools, held, wait=wait, deadline=deadline, settled=gone)
    if early is not None:
        return early
    return _report_held(store, held, waited=wait)


def _report_held(store: Store, held: Sequence[Key], *, waited: bool) -> int:
    """Say why resources are still there; the exit code."""
    left = [resource for key in held if (resource := store.get(key)) is not None]
    for resource in left:
        ready = summarising.condition(resource.status, "Ready")
        why = f": {ready.message}" if ready is not None and ready.status == "False" else "."
        say(f"{reference(resource.key)} is not gone yet{why}", "red")
    if not left:
        return 0
    return 3 if waited and not any(summarising.stalled(item) for item in left) else 1


def wait(
    session: Session,
    words: Sequence[str],
    *,
    condition: str,
    namespace: str,
    timeout: float,
) -> int:
    """Wait until conditions hold, or resources are gone."""
    keys = [target.key(namespace) for target in named_targets(words)]
    wanted = _Wanted.parse(condition)
    deadline = Deadline(timeout)
    with session.reading() as store:
        absent = [] if wanted.gone else [key for key in keys if store.get(key) is None]
        for key in absent:
            report(missing(key))
        if absent:
            return 1
        if AgentLock(session.state).holder() is None:
            say("No agent keeps this state now; nothing changes until something does.", "yellow")
        with progress.shown(store, keys):
            left = _wait(store, keys, wanted, condition, deadline)
        return _report_left(left, wanted, condition, deadline)


def _wait(
    store: Store, keys: Sequence[Key], wanted: _Wanted, condition: str, deadline: Deadline
) -> dict[Key, AnyResource | None]:
    """Wait, and name each that came to hold; those that are left."""
    left = dict.fromkeys(keys)
    while left:
        over = deadline.over
        now = {key: store.get(key) for key in left}
        for key in (key for key, item in now.items() if wanted.holds(item)):
            put(f"{reference(key)} {condition}")
        left = {key: item for key, item in now.items() if not wanted.holds(item)}
        if over or all(wanted.hopeless(item) for item in left.values()):
            break
        time.sleep(min(POLL, deadline.left))
    return left


def _report_left(
    left: dict[Key, AnyResource | None], wanted: _Wanted, condition: str, deadline: Deadline
) -> int:
    """Say what did not come to hold, and why; the exit code."""
    for key, item in left.items():
        ready = summarising.condition(item.status, "Ready") if item else None
        why = "it is gone" if item is None else ready.message if ready else "not looked at yet"
        met = "can't be met" if wanted.hopeless(item) else f"not met in {deadline.seconds:g} s"
        say(f"{reference(key)}: {condition} {met}: {why}", "red")
    if not left:
        return 0
    return 1 if any(wanted.hopeless(item) for item in left.values()) else 3


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What ``--for`` asks for."""

    gone: bool = False
    type: str = ""
    status: str = "True"

    @classmethod
    def parse(cls, text: str) -> _Wanted:
        """Read ``delete``, ``condition=TYPE`` or ``condition=TYPE=STATUS``."""
        word, _, rest = text.partition("=")
        if text == "delete":
            return cls(gone=True)
        name, _, status = rest.partition("=")
        if word != "condition" or not name:
            raise typer.BadParameter(
                f"{text!r} is none of condition=TYPE, condition=TYPE=STATUS and delete."
            )
        return cls(type=name, status=status or "True")

    def holds(self, resource: AnyResource | None) -> bool:
        if self.gone or resource is None:
            return self.gone and resource is None
        found = summarising.condition(resource.status, self.type)
        current = resource.status.observed_generation == resource.metadata.generation
        return found is not None and found.status == self.status and current

    def hopeless(self, resource: AnyResource | None) -> bool:
        """Whether it won't come to hold without a change by somebody."""
        if self.gone:
            return False
        if resource is None:
            return True
        awaited = self.type in ("Stalled", "Reconciling") or self.status != "True"
        return summarising.stalled(resource) and not awaited
