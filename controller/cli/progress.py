"""What a pass does, as it does it: drawn on a terminal, told in lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from backends import errors
from backends.base import Progress as Bytes
from controller.cli.printing import one_line, painted, say
from controller.planning import Action, Impact
from controller.steps import Observer


@contextlib.contextmanager
def shown() -> Iterator[Observer]:
    """An observer that shows actions on standard error while the context is open."""
    if not sys.stderr.isatty():
        yield Observer(ended=_tell)
        return
    with _Live() as live:
        yield Observer(began=live.began, moved=live.moved, ended=live.ended)


def _tell(action: Action, problem: errors.StorageError | None) -> None:
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

        self._lock = threading.Lock()
        self._tasks: dict[int, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
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
        task = self._progress.add_task(one_line(f"{action.verb} {action.target}"), total=None)
        with self._lock:
            self._tasks[id(action)] = task

    def moved(self, action: Action, done: Bytes) -> None:
        with self._lock:
            task = self._tasks.get(id(action))
        if task is not None:
            self._progress.update(task, completed=done.done, total=done.total or None)

    def ended(self, action: Action, problem: errors.StorageError | None) -> None:
        with self._lock:
            task = self._tasks.pop(id(action), None)
        if task is not None:
            self._progress.remove_task(task)
        colour = "red" if problem else "yellow" if action.impact is Impact.DESTRUCTIVE else "green"
        line = painted(ended_line(action, problem), colour, sys.stderr)
        self._progress.console.out(line, highlight=False)
