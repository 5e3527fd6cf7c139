"""Uploads and downloads: jobs between passes, whoever sends or takes the data.

A transfer is asked for by a client that is there now, over HTTP or on the command line, so nothing
of it waits: where it can't begin at once the client is told why and asks again. It may carry out a
``VolumeOperation``, which then has the record of it; without one an event on the volume tells of an
upload.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from backends import errors
from backends.base import Work
from backends.images import transferring
from controller import contents
from controller.admitting import Command, Target, Waits, admit
from controller.contents import Moved, Selection, is_image
from controller.engine import Engine
from controller.jobs import Job, Task
from controller.operations import FINISHED, KIND
from controller.resources import AnyResource, Key
from controller.worlds import pool_name, volume_of

T = TypeVar("T")

PASS_WITHIN = 20.0
"""Seconds that a pass over the pool may take before a transfer is told to come again."""

ENDING = 1.0
"""Seconds in which a transfer that a client has seen the end of comes to its own."""

_UNFINISHED = "upload"
"""Where the node's memory of a volume has how far an upload came that broke off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A transfer that is asked for.

    :param selection: None for what the operation says, else all.
    :param operation: name of the operation that it carries out; empty for none.
    """

    volume: Key
    command: Command
    selection: Selection | None = None
    operation: str = ""


@dataclass(frozen=True, slots=True)
class Begun:
    """A transfer under way.

    :param outcome: of it, or the error that it ended with.
    """

    job: Job
    outcome: Future[Moved]


@dataclass(frozen=True, slots=True)
class Looked:
    """What there is to move.

    :param size: bytes of the contents.
    :param tag: stays the same as long as they do.
    :param reached: up to which byte the last upload came, where that broke off.
    :param image: whether an upload is one of the whole, also where it goes on.
    """

    size: int
    tag: str
    reached: int | None
    image: bool


Run = Callable[[Target, Selection, Work], Moved]


class Transfers:
    """Begins the transfers of an agent. Safe for threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers = itertools.count(1)

    def begin(self, wanted: Wanted, run: Run) -> Begun:
        """Begin a transfer in a thread of its own.

        :param run: moves the data, in that thread.
        :raises Waits: it can't begin now, and may later.
        :raises errors.StorageError: it can't be.
        """

        def attempt() -> Begun:
            with self._admitted(wanted) as (pool, target):
                return self._begin(wanted, pool, target, run)

        return _after_the_end(attempt)

    def look(self, wanted: Wanted) -> Looked:
        """See what there is to move.

        :raises Waits: it can't be seen now, and may later.
        :raises errors.StorageError: it can't be.
        """

        def attempt() -> Looked:
            with (
                self._admitted(wanted) as (_, target),
                contents.source(target, Selection()) as (opened, _),
            ):
                return Looked(
                    size=opened.size,
                    tag=transferring.tag(opened),
                    reached=self._reached(target),
                    image=is_image(target.volume),
                )

        return _after_the_end(attempt)

    @contextlib.contextmanager
    def _admitted(self, wanted: Wanted) -> Iterator[tuple[str, Target]]:
        """The volume and its pool, over which no pass begins meanwhile."""
        engine = self._engine
        volume = engine.store.get(wanted.volume)
        if volume is None or not engine.examiner.mine(volume):
            raise errors.NotFound(f"There is no {wanted.volume} on this node.")
        pool = pool_name(volume)
        with engine.between_passes(pool, PASS_WITHIN) as free:
            if not free:
                raise Waits(f"Pool {pool!r} is being worked on.")
            world = engine.world()
            found = engine.examiner.examine_pool(world, pool)
            engine.examiner.examine_volumes(world, found)
            yield pool, admit(engine.examiner, engine.jobs, found, wanted.volume, wanted.command)

    def _begin(self, wanted: Wanted, pool: str, target: Target, run: Run) -> Begun:
        engine = self._engine
        operation = self._operation(wanted)
        selection = wanted.selection or _selected(operation)
        outcome: Future[Moved] = Future()

        if wanted.command is Command.UPLOAD:
            self._see_where_it_begins(target, selection)

        def carry_out(work: Work) -> None:
            if wanted.command.writes and not selection.offset:
                self._remember(target, {})  # what came before is written over
            try:
                moved = run(target, selection, work)
            except BaseException as error:
                outcome.set_exception(error)
                raise
            if wanted.command.writes:
                self._remember(target, {})
            outcome.set_result(moved)

        if operation is not None:
            job = engine.operations.start(
                operation,
                target,
                pool,
                carry_out,
                done=f"{wanted.command} of {target.place} is done.",
                exclusive=wanted.command.writes,
            )
        else:
            job = self._start(wanted, target, pool, carry_out)
        if job is None:
            raise Waits("As many transfers and other jobs run as may at once.")
        return Begun(job, outcome)

    def _start(
        self, wanted: Wanted, target: Target, pool: str, carry_out: Callable[[Work], None]
    ) -> Job | None:
        volume = target.resource
        owner = Key(
            "Transfer", volume.metadata.namespace, f"{wanted.command}-{next(self._numbers)}"
        )
        task = Task(
            owner=owner,
            uid=volume.metadata.uid,
            volume=volume.key,
            pool=pool,
            verb=wanted.command,
            target=target.place,
            exclusive=wanted.command.writes,
        )

        def told(work: Work) -> None:
            step = self._engine.store.begin_step(
                volume.key, volume.metadata.uid, wanted.command, target.place
            )
            problem = ""
            try:
                carry_out(work)
            except BaseException as error:
                problem = str(error)
                raise
            finally:
                self._engine.store.end_step(step, problem)
                if wanted.command.writes:
                    self._engine.operations.tell_volume(target, wanted.command, problem)

        return self._engine.jobs.start(task, told)

    def _operation(self, wanted: Wanted) -> AnyResource | None:
        if not wanted.operation:
            return None
        key = Key(KIND, wanted.volume.namespace, wanted.operation)
        found = self._engine.store.get(key)
        if found is None:
            raise errors.NotFound(f"There is no {key}.")
        if volume_of(found) != wanted.volume or found.spec.operation != wanted.command:
            raise errors.InvalidSpec(
                f"{key} is {found.spec.operation} of {volume_of(found)}.",
                hint="Name the operation that was declared for this transfer.",
            )
        if found.status.phase in FINISHED or found.spec.cancel:
            raise errors.Conflict(
                f"{key} has ended ({found.status.phase or 'Cancelled'}).",
                hint="Declare a new operation.",
            )
        return found

    def _see_where_it_begins(self, target: Target, selection: Selection) -> None:
        """Let an image go on only where an upload of it broke off.

        :raises errors.Unsupported: it begins elsewhere.
        """
        if not is_image(target.volume) or not selection.offset:
            return
        reached = self._reached(target) or 0
        if selection.offset > reached:
            raise errors.Unsupported(
                f"A volume of format {target.volume.format} can't be written in parts, and no "
                f"upload of it came to byte {selection.offset}.",
                hint=f"Go on at byte {reached}." if reached else "Send the whole image.",
            )

    def _reached(self, target: Target) -> int | None:
        """Up to which byte the last upload came, if it broke off."""
        noted = self._engine.store.runtime(target.resource.metadata.uid).get(_UNFINISHED)
        if noted is None or not is_image(target.volume):
            return noted
        kept = target.backend.unfinished(target.pool, target.volume)
        return noted if 0 < noted <= kept else None

    def note_reached(self, target: Target, reached: int) -> None:
        """Remember that all up to a byte of the volume arrived, in case that no more does."""
        self._remember(target, {_UNFINISHED: reached})

    def _remember(self, target: Target, fresh: dict[str, int]) -> None:
        store, uid = self._engine.store, target.resource.metadata.uid
        known = store.runtime(uid)
        kept = {key: item for key, item in known.items() if key != _UNFINISHED} | fresh
        if kept != known:
            store.set_runtime(uid, kept)


def _after_the_end(attempt: Callable[[], T]) -> T:
    """Try again for as long as a transfer of which a client has seen the end may take to end."""
    deadline = time.monotonic() + ENDING
    while True:
        try:
            return attempt()
        except Waits:
            if time.monotonic() > deadline:
                raise
        time.sleep(ENDING / 20)


def _selected(operation: AnyResource | None) -> Selection:
    transfer = operation.spec.transfer if operation is not None else None
    if transfer is None:
        return Selection()
    return Selection(offset=transfer.offset, length=transfer.length, sparse=transfer.sparse)
