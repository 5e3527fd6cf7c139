"""Long steps, carried out apart from their pool's pass.

A pass starts a job and goes on, so that the pool's other volumes are worked on meanwhile. What a
job came to is only news: when it ends its pool is passed over again, and the host looked at anew.
What failed is tried again after a growing while; where trying again is no use, once what is
declared has changed or somebody asks for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from backends import errors
from backends.base import Progress, Work
from controller.resources import Key, now
from controller.retrying import backoff

log = logging.getLogger(__name__)

PER_POOL = 2
"""Jobs of one pool that run side by side; they share its disks."""

PER_NODE = 8

REPORT_EVERY = 5.0
"""Seconds between two reports of a job's progress, which each are a write to the store."""

FIRST_REPORT = 1.0
"""Seconds until the first one, so that who waits for a job of seconds sees that it moves."""

Attempt = tuple[object, ...]
"""What is declared, in the form in which a job tried it: another one is worth another try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a job is to do.

    :param owner: the resource on whose behalf it is done, and ``uid`` its uid.
    :param volume: the volume that it works on.
    :param exclusive: whether no other job works on it meanwhile; false for what only reads it.
    :param reads: volumes that it reads, which have to stay as they are.
    :param target: what it is done to, as a person names it.
    :param purpose: what it works towards; where the next look wants something else, the job is
        cancelled.
    :param attempt: what a failure is remembered for.
    """

    owner: Key
    uid: str
    volume: Key
    pool: str
    verb: str
    target: str
    reads: frozenset[Key] = frozenset()
    purpose: object = None
    attempt: Attempt = ()
    exclusive: bool = True

    @property
    def overwrites(self) -> bool:
        """Whether it replaces its volume's contents on command, by a wipe or an upload."""
        return self.exclusive and self.owner != self.volume

    def reading(self, volume: Key) -> bool:
        """Whether it reads a volume that it does not work on."""
        return volume in self.reads or (volume == self.volume and not self.exclusive)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A running job as it stood at one moment.

    :param done: bytes, of ``total``; ``total`` is 0 where it is not known.
    :param started: RFC 3339 in UTC.
    """

    task: Task
    done: int
    total: int
    started: str

    @property
    def percent(self) -> int:
        return min(100, self.done * 100 // self.total) if self.total > 0 else 0


class Job:
    """One task under way."""

    def __init__(self, task: Task, moved: Callable[[Job], None], every: float) -> None:
        self.task = task
        self.started = now()
        self.published = Progress(done=0, total=0)
        """The progress that was last reported."""
        self.ended = threading.Event()
        self.work = Work(report=self._report)
        self._moved = moved
        self._every = every
        self._report_at = time.monotonic() + min(FIRST_REPORT, every)
        self._progress = self.published

    def cancel(self, why: str) -> None:
        """Ask the job to stop; it ends soon after."""
        if not self.work.cancel.is_set():
            log.info("%s on %s is cancelled: %s", self.task.verb, self.task.target, why)
            self.work.cancel.set()

    def snapshot(self) -> Snapshot:
        progress = self._progress
        return Snapshot(
            task=self.task,
            done=progress.done,
            total=progress.total,
            started=self.started,
        )

    def _report(self, progress: Progress) -> None:
        self._progress = progress
        moment = time.monotonic()
        if moment < self._report_at or _same(progress, self.published):
            return
        self.published, self._report_at = progress, moment + self._every
        try:
            self._moved(self)
        except errors.StorageError as error:  # the work is what counts
            log.warning("the progress of %s can't be told: %s", self.task.target, error)


def percent(progress: Progress) -> int:
    """The part done, from 0 to 100; 0 where the whole is not known."""
    return min(100, progress.done * 100 // progress.total) if progress.total > 0 else 0


def _same(progress: Progress, other: Progress) -> bool:
    if progress.total <= 0:
        return progress.done == other.done
    return progress.total == other.total and percent(progress) == percent(other)


@dataclass(slots=True)
class _Failure:
    uid: str
    attempt: Attempt
    problem: errors.StorageError
    count: int
    until: float


@dataclass(slots=True)
class _Pool:
    """What is known of the jobs of a pool."""

    ended: int = 0
    succeeded: bool = False
    waiting: set[Key] = field(default_factory=set)


class Jobs:
    """All jobs of an agent. Safe to use from several threads.

    :param moved: told of a job's progress, in the job's thread, after ``FIRST_REPORT`` seconds and
        then at most every ``report_every``.
    """

    def __init__(
        self,
        *,
        per_pool: int = PER_POOL,
        per_node: int = PER_NODE,
        report_every: float = REPORT_EVERY,
        moved: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self.moved = moved
        self.wake: Callable[[Iterable[str]], None] = lambda pools: None
        """Told which pools have something to look at."""
        self._per_pool = per_pool
        self._per_node = per_node
        self._report_every = report_every
        self._running: dict[Key, Job] = {}
        self._failures: dict[Key, _Failure] = {}
        self._pools: dict[str, _Pool] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._stopping = False
        self._changed = threading.Condition()

    def start(self, task: Task, run: Callable[[Work], None]) -> Job | None:
        """Begin a task in a thread of its own.

        :param run: does it; raises ``errors.StorageError`` where it fails.
        :return: None where there is no room; its pool is woken once there is.
        :raises errors.InUse: another job works on the volume, or reads it.
        :raises errors.Cancelled: no more jobs are begun.
        """
        with self._changed:
            if self._stopping:
                raise errors.Cancelled("The agent is stopping.", hint="It goes on after its start.")
            other = self._on(task.volume)
            if other is None and task.exclusive:
                other = self._reading(task.volume)
            if other is not None:
                raise busy(other)
            if not self._room(task.pool):
                self._pool(task.pool).waiting.add(task.owner)
                return None
            job = Job(task, self.moved, self._report_every)
            self._running[task.owner] = job
        threading.Thread(
            target=self._run, args=(job, run), name=f"{task.verb} {task.owner.name}", daemon=True
        ).start()
        return job

    def room(self, pool: str) -> bool:
        """Whether a job of a pool could begin now."""
        with self._changed:
            return self._room(pool)

    def on(self, volume: Key) -> Job | None:
        """The job that works on a volume."""
        with self._changed:
            return self._on(volume)

    def reading(self, volume: Key) -> Job | None:
        """A job that reads a volume."""
        with self._changed:
            return self._reading(volume)

    def of(self, owner: Key) -> Job | None:
        """The job that is done on a resource's behalf."""
        with self._changed:
            return self._running.get(owner)

    def in_pool(self, pool: str) -> list[Job]:
        with self._changed:
            return [job for job in self._running.values() if job.task.pool == pool]

    def overwritten(self, pool: str) -> frozenset[Key]:
        """The volumes of a pool whose contents are being replaced."""
        tasks = (job.task for job in self.in_pool(pool))
        return frozenset(task.volume for task in tasks if task.overwrites)

    def waits(self, owner: Key) -> bool:
        """Whether a job was not begun for want of room, and its pool is going to be woken."""
        with self._changed:
            return any(owner in pool.waiting for pool in self._pools.values())

    def begin_pass(self, pool: str) -> bool:
        """Forget what waits in a pool, whose pass asks again; whether a job of it succeeded since
        the pass before."""
        with self._changed:
            known = self._pool(pool)
            succeeded, known.succeeded = known.succeeded, False
            known.waiting.clear()
            return succeeded

    def failure(self, owner: Key, attempt: Attempt) -> errors.StorageError | None:
        """What the last job of a resource failed with, until it is time to try again; while it is
        tried again, too, so that the status does not go to and fro."""
        with self._changed:
            known = self._failures.get(owner)
            if known is None or known.attempt != attempt:
                return None
            again = owner in self._running
            waits = again or known.problem.terminal or time.monotonic() < known.until
            return known.problem if waits else None

    def keep(self, uids: Collection[str]) -> None:
        """Cancel the jobs of all other resources, and forget their failures."""
        with self._changed:
            gone = [job for job in self._running.values() if job.task.uid not in uids]
            self._failures = {key: item for key, item in self._failures.items() if item.uid in uids}
        for job in gone:
            job.cancel(f"{job.task.owner} has gone")

    def snapshot(self) -> tuple[Snapshot, ...]:
        """All running jobs, those of a pool together."""
        with self._changed:
            running = list(self._running.values())
        return tuple(sorted((job.snapshot() for job in running), key=_order))

    def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs ended, by verb and by ``Succeeded``, ``Failed`` or ``Cancelled``."""
        with self._changed:
            return dict(self._counts)

    def ended(self, pools: Collection[str]) -> int:
        """How many jobs of these pools have ended."""
        with self._changed:
            return self._ended(pools)

    def wait(self, pools: Collection[str], since: int) -> bool:
        """Wait until more than ``since`` jobs of these pools have ended; false where none has, and
        none runs."""

        def more() -> bool:
            return self._ended(pools) > since

        def running() -> bool:
            return any(job.task.pool in pools for job in self._running.values())

        with self._changed:
            self._changed.wait_for(lambda: more() or not running())
            return more()

    def idle(self, seconds: float) -> bool:
        """Wait until no job runs; false where one still does after that time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, max(0.0, seconds))

    def stop(self) -> None:
        """Begin no more, and cancel all that run."""
        with self._changed:
            self._stopping = True
            running = list(self._running.values())
        for job in running:
            job.cancel("the agent is stopping")

    def _run(self, job: Job, run: Callable[[Work], None]) -> None:
        problem: errors.StorageError | None = None
        try:
            run(job.work)
        except errors.StorageError as error:
            problem = error
        except OSError as error:
            problem = errors.from_os_error(error, doing=f"{job.task.verb} {job.task.target}")
        except Exception as error:
            # A mistake in one job must not leave it listed as running for ever.
            log.exception("%s on %s broke off", job.task.verb, job.task.target)
            problem = errors.SystemFailure(f"{job.task.verb} broke off: {error}.")
        self._end(job, problem)

    def _end(self, job: Job, problem: errors.StorageError | None) -> None:
        task = job.task
        with self._changed:
            del self._running[task.owner]
            pool = self._pool(task.pool)
            pool.ended += 1
            if problem is None:
                pool.succeeded = True
                self._failures.pop(task.owner, None)
                outcome = "Succeeded"
            elif isinstance(problem, errors.Cancelled):
                outcome = "Cancelled"
            else:
                self._remember(task, problem)
                outcome = "Failed"
            self._counts[task.verb, outcome] += 1
            wanting = [name for name, item in self._pools.items() if item.waiting]
            self._changed.notify_all()
        job.ended.set()
        self.wake([*wanting, task.pool])  # those that wait for room first

    def _remember(self, task: Task, problem: errors.StorageError) -> None:
        known = self._failures.get(task.owner)
        count = known.count + 1 if known is not None and known.attempt == task.attempt else 1
        self._failures[task.owner] = _Failure(
            task.uid, task.attempt, problem, count, time.monotonic() + backoff(count)
        )

    def _pool(self, name: str) -> _Pool:
        return self._pools.setdefault(name, _Pool())

    def _room(self, pool: str) -> bool:
        in_pool = sum(job.task.pool == pool for job in self._running.values())
        return in_pool < self._per_pool and len(self._running) < self._per_node

    def _on(self, volume: Key) -> Job | None:
        return next(
            (
                job
                for job in self._running.values()
                if job.task.volume == volume and job.task.exclusive
            ),
            None,
        )

    def _reading(self, volume: Key) -> Job | None:
        return next((job for job in self._running.values() if job.task.reading(volume)), None)

    def _ended(self, names: Collection[str]) -> int:
        return sum(self._pools[name].ended for name in names if name in self._pools)


def busy(job: Job) -> errors.InUse:
    """Why something has to wait for a job."""
    return errors.InUse(
        f"{job.task.verb} on {job.task.target} is under way.", hint="It goes on when that is done."
    )


def _order(item: Snapshot) -> tuple[Any, ...]:
    return item.task.pool, item.started, str(item.task.owner)
