"""Uploads and downloads: jobs between passes, whoever sends or takes the data.

A transfer is asked for by a client that is there now, over HTTP or on the command line, so nothing
of it waits: where it can't begin at once the client is told why and asks again. It may carry out a
``VolumeOperation``, which then has the record of it; without one an event on the volume tells of an
upload.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from backends import errors
from backends.base import Work
from controller.admitting import Command, Target, Waits, admit
from controller.contents import Moved, Selection, is_image
from controller.engine import Engine
from controller.jobs import Job, Task
from controller.operations import FINISHED, KIND, volume_of
from controller.resources import AnyResource, Key

PASS_WITHIN = 20.0
"""Seconds that a pass over the pool may take before a transfer is told to come again."""

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
        volume = self._engine.store.get(wanted.volume)
        if volume is None or not self._engine.examiner.mine(volume):
            raise errors.NotFound(f"There is no {wanted.volume} on this node.")
        pool = str(volume.spec.pool_ref.name)
        with self._engine.between_passes(pool, PASS_WITHIN) as free:
            if not free:
                raise Waits(f"Pool {pool!r} is being worked on.")
            return self._begin(wanted, pool, run)

    def _begin(self, wanted: Wanted, pool: str, run: Run) -> Begun:
        engine = self._engine
        world = engine.world()
        found = engine.examiner.examine_pool(world, pool)
        engine.examiner.examine_volumes(world, found)
        operation = self._operation(wanted)
        selection = wanted.selection or _selected(operation)
        target = admit(engine.examiner, engine.jobs, found, wanted.volume, wanted.command)
        outcome: Future[Moved] = Future()

        def carry_out(work: Work) -> None:
            try:
                moved = run(target, selection, work)
            except BaseException as error:
                outcome.set_exception(error)
                raise
            self._note_done(target, wanted.command)
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

    def note_broken(self, target: Target, reached: int) -> None:
        """Remember that all up to a byte of the volume arrived, and no more."""
        self._remember(target, {_UNFINISHED: reached})

    def _note_done(self, target: Target, command: Command) -> None:
        if command.writes:
            self._remember(target, {})

    def _remember(self, target: Target, fresh: dict[str, int]) -> None:
        store, uid = self._engine.store, target.resource.metadata.uid
        kept = {key: item for key, item in store.runtime(uid).items() if key != _UNFINISHED}
        store.set_runtime(uid, {**kept, **fresh})

    def reached(self, volume: AnyResource) -> int | None:
        """Up to which byte the last upload came, where that broke off and can be gone on with."""
        found = self._engine.store.runtime(volume.metadata.uid).get(_UNFINISHED)
        return None if found is None else int(found)


def _selected(operation: AnyResource | None) -> Selection:
    transfer = operation.spec.transfer if operation is not None else None
    if transfer is None:
        return Selection()
    return Selection(offset=transfer.offset, length=transfer.length, sparse=transfer.sparse)


def resumable(target: Target) -> bool:
    """Whether an upload that broke off can be gone on with: an image begins anew."""
    return not is_image(target.volume)
