"""What is done here or by an agent, as it is done: drawn on a terminal, told in lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Collection, Hashable, Iterator

from backends import errors
from backends.base import Progress as Bytes
from backends.sizes import format_human
from controller.cli.printing import one_line, painted, say
from controller.planning import Action, Impact
from controller.resources import Key
from controller.steps import Observer
from controller.store import Store

LOOK_EVERY = 0.5
"""Seconds between two looks at the progress that a status has."""


@contextlib.contextmanager
def shown(store: Store, followed: Collection[Key] = ()) -> Iterator[Observer]:
    """An observer that shows actions on standard error while the context is open.

    :param followed: resources of which the progress in their status is shown too, whoever makes it.
    """
    if not sys.stderr.isatty():
        yield Observer(ended=_Lines().ended)
        return
    with _Live() as live, _following(live, store, followed):
        yield Observer(began=live.began, moved=live.moved, ended=live.ended)


@contextlib.contextmanager
def _following(live: _Live, store: Store, keys: Collection[Key]) -> Iterator[None]:
    """Draw what statuses say of progress, in a thread of its own."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_EVERY):
            for key in keys:
                with contextlib.suppress(errors.StorageError):  # who waits for it tells
                    live.look(key, store)

    thread = threading.Thread(target=look, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Failures:
    """The last failure of each action; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[tuple[str, str], str] = {}

    def again(self, action: Action, problem: errors.StorageError | None) -> bool:
        """Whether an action that is tried again failed as it did before."""
        key = (action.verb, action.target)
        with self._lock:
            before = self._last.pop(key, None)
            if problem is not None:
                self._last[key] = str(problem)
        return problem is not None and before == str(problem)


class _Lines:
    """A line for each action that ended; none for a failure that was told before."""

    def __init__(self) -> None:
        self._failures = _Failures()

    def ended(self, action: Action, problem: errors.StorageError | None) -> None:
        if not self._failures.again(action, problem):
            say(ended_line(action, problem))


def ended_line(action: Action, problem: errors.StorageError | None) -> str:
    """``done  CreateVolume  StorageVolume/default/a (/srv/a)``"""
    head = f"{'failed' if problem else 'done':<6}  {action.verb:<20}  {action.target}"
    return one_line(f"{head}: {problem}" if problem else head)


class _Live:
    """Running actions below, ended ones above; from any thread."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            Progress,
            SpinnerColumn,
            TaskID,
            TextColumn,
            TimeElapsedColumn,
        )

        self._failures = _Failures()
        self._lock = threading.Lock()
        self._tasks: dict[Hashable, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )

    def __enter__(self) -> _Live:
        self._progress.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._progress.stop()

    def began(self, action: Action) -> None:
        self._draw(id(action), f"{action.verb} {action.target}", Bytes(done=0, total=0))

    def moved(self, action: Action, done: Bytes) -> None:
        self._draw(id(action), f"{action.verb} {action.target}", done)

    def ended(self, action: Action, problem: errors.StorageError | None) -> None:
        self._remove(id(action))
        if self._failures.again(action, problem):
            return
        colour = "red" if problem else "yellow" if action.impact is Impact.DESTRUCTIVE else "green"
        line = painted(ended_line(action, problem), colour, sys.stderr)
        self._progress.console.out(line, highlight=False)

    def look(self, key: Key, store: Store) -> None:
        """Draw the progress that the status of a resource has now."""
        found = store.get(key)
        progress = getattr(found.status, "progress", None) if found is not None else None
        if progress is None:
            self._remove(key)
            return
        done = Bytes(done=progress.bytes_done or 0, total=progress.bytes_total or 0)
        self._draw(key, f"{progress.operation} {key}", done)

    def _draw(self, what: Hashable, label: str, done: Bytes) -> None:
        with self._lock:
            if what not in self._tasks:
                task = self._progress.add_task(one_line(label), total=None, amount="")
                self._tasks[what] = task
            total = done.total or None
            amount = f"{format_human(done.done)} of {format_human(total)}" if total else ""
            self._progress.update(
                self._tasks[what], completed=done.done, total=total, amount=amount
            )

    def _remove(self, what: Hashable) -> None:
        with self._lock:
            task = self._tasks.pop(what, None)
            if task is not None:
                self._progress.remove_task(task)
