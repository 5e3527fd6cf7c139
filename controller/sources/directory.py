"""A watched folder of manifests.

A change that the kernel reports only says "look again": what is there is read anew, so that a
missed event costs time and nothing else. Whatever looks like an accident (a broken file, a file
or the folder gone for a moment) leaves in place what was declared before.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from backends import errors
from controller import resources
from controller.sources.base import Snapshot
from controller.sources.files import (
    Contents,
    Listing,
    Reading,
    assemble,
    list_folder,
    read_file,
)

log = logging.getLogger(__name__)

_READING = frozenset({"opened", "closed_no_write"})
"""Events of watchdog that our own reading causes."""

_RACY = 2.0
"""Seconds within which two writes may leave the same time on a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a folder is looked at, in seconds.

    :param quiet: a burst of changes is over when nothing happened for so long.
    :param longest: the most that a burst may put a look off.
    :param rescan: between looks for changes that nobody reports, as on network file systems.
    :param grace: a file counts as removed when it has been gone for so long; some editors remove
        a file before they write it anew.
    :param check: between looks whether the folder itself was replaced.
    """

    quiet: float = 0.1
    longest: float = 1.0
    rescan: float = 30.0
    grace: float = 1.0
    check: float = 1.0


@dataclass(slots=True)
class _File:
    """What is known of a file.

    :param signature: what changes with the file; None where it has to be read again.
    :param good: what it held when it last could be read without a problem.
    :param gone_since: by the monotonic clock; None while it is there.
    """

    contents: Contents
    signature: tuple[int, ...] | None
    good: Contents | None
    good_time: str
    gone_since: float | None = None


class DirectorySource:
    """A source that reads a folder when it changes.

    :param within: links that lead out of this folder are problems; any may be followed if left
        out.
    :param origin: ``directory:`` and the path if left out.
    :param revision: gives the revision of what is there; a digest of the files if left out.
    """

    def __init__(
        self,
        folder: Path,
        *,
        within: Path | None = None,
        origin: str = "",
        revision: Callable[[], str] | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.folder = folder
        self.origin = origin or f"directory:{folder}"
        self._within = within
        self._revision = revision or (lambda: "")
        self._timing = timing or Timing()
        self._files: dict[Path, _File] = {}
        self._last: Snapshot | None = None
        self._scanned = float("-inf")
        self._watch = _Watch(folder)

    def start(self, changed: Callable[[], None]) -> None:
        """Begin to watch; see ``Source.start``."""
        self._watch.start(changed)

    def stop(self) -> None:
        """End watching; see ``Source.stop``."""
        self._watch.stop()

    def poll(self) -> Snapshot | None:
        """Read what changed; None where it is not time to, or nothing is new."""
        if not self._due():
            return None
        self._watch.seen()
        self._scanned = time.monotonic()
        snapshot = self._scan()
        if snapshot.says_the_same(self._last):
            return None
        self._last = snapshot
        return snapshot

    def delay(self) -> float:
        """Seconds until the next poll is due."""
        now = time.monotonic()
        waits = [self._timing.check, self._scanned + self._timing.rescan - now]
        waits += [since + self._timing.grace - now for since in self._gone()]
        settled = self._watch.settles(self._timing)
        if settled is not None:
            waits.append(settled - now)
        return max(0.0, min(waits))

    def _due(self) -> bool:
        now = time.monotonic()
        if not self._watch.started or self._watch.follow_folder():
            return True
        settled = self._watch.settles(self._timing)
        return (
            (settled is not None and now >= settled)
            or now >= self._scanned + self._timing.rescan
            or any(now >= since + self._timing.grace for since in self._gone())
        )

    def _gone(self) -> Iterable[float]:
        return [item.gone_since for item in self._files.values() if item.gone_since is not None]

    def _scan(self) -> Snapshot:
        listing = list_folder(self.folder, within=self._within)
        for path in listing.files:
            self._look_at(path)
        self._note_gone(listing)
        files = [self._files[path] for path in sorted(self._files)]
        return assemble(
            self.origin,
            [_shown(item) for item in files if item.gone_since is None],
            former=[item.good for item in files if item.good and _is_former(item)],
            problems=listing.problems,
            revision=self._revision(),
        )

    def _look_at(self, path: Path) -> None:
        known = self._files.get(path)
        signature = _signature(path)
        if known and signature is not None and signature == known.signature:
            known.gone_since = None
            return
        contents = read_file(path)
        good, good_time = (known.good, known.good_time) if known else (None, "")
        if not contents.broken:
            good, good_time = contents, resources.now()
        self._files[path] = _File(contents, signature, good, good_time)

    def _note_gone(self, listing: Listing) -> None:
        """Forget files that have been gone for long enough, in folders that can be read."""
        unread = [Path(problem.file) for problem in listing.problems]
        now = time.monotonic()
        for path in self._files.keys() - set(listing.files):
            item = self._files[path]
            if any(path.is_relative_to(folder) for folder in unread):
                # Held, for as long as nobody can tell whether it is there.
                item.gone_since = now
            elif item.gone_since is None:
                item.gone_since = now
            elif now >= item.gone_since + self._timing.grace:
                del self._files[path]


def _is_former(item: _File) -> bool:
    return item.gone_since is not None or item.contents.broken


def _shown(item: _File) -> Contents:
    """A file as it counts: a broken one that was whole before gives its problems only."""
    if not item.contents.broken or item.good is None:
        return item.contents
    kept = f"Until then the version of {item.good_time} stays in force."
    problems = tuple(_with_hint(problem, kept) for problem in item.contents.reading.problems)
    return replace(item.contents, reading=Reading(problems=problems))


def _with_hint(problem: errors.InvalidManifest, more: str) -> errors.InvalidManifest:
    hint = f"{problem.hint} {more}".strip()
    return type(problem)(problem.message, hint=hint, file=problem.file, line=problem.line)


def _signature(path: Path) -> tuple[int, ...] | None:
    """What changes with a file; None where it was changed too lately to tell."""
    try:
        found = path.stat()
    except OSError:
        # Reading it will say why.
        return None
    if abs(time.time() - found.st_ctime) < _RACY:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class _Watch(FileSystemEventHandler):
    """Events of a folder, and of the one that takes its place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._observer: BaseObserver | None = None
        self._watched: tuple[str, int, int] | None = None
        self._changed: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._first: float | None = None
        self._latest = 0.0

    @property
    def started(self) -> bool:
        return self._changed is not None

    def start(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.follow_folder()

    def stop(self) -> None:
        self._end()
        changed, self._changed = self._changed, None
        if changed is not None:
            changed()

    def follow_folder(self) -> bool:
        """Watch what stands at the path now; whether that is another folder than before."""
        found = _identity(self._folder)
        if found == self._watched:
            return False
        self._end()
        self._watched = found
        if found is not None:
            self._begin(found[0])
        return True

    def _begin(self, path: str) -> None:
        observer = Observer()
        try:
            observer.schedule(self, path, recursive=True)
            observer.start()
        except OSError as error:
            log.warning(
                "%s can't be watched, only looked at from time to time: %s. "
                "Raise fs.inotify.max_user_watches or max_user_instances.",
                self._folder,
                error.strerror or error,
            )
            return
        self._observer = observer

    def _end(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Note that something happened; called from a thread of watchdog."""
        if event.event_type in _READING:
            return
        now = time.monotonic()
        with self._lock:
            begins = self._first is None
            self._first = now if self._first is None else self._first
            self._latest = now
        if begins and self._changed is not None:
            self._changed()

    def settles(self, timing: Timing) -> float | None:
        """When what happened is to be looked at, by the monotonic clock; None for nothing."""
        with self._lock:
            if self._first is None:
                return None
            return min(self._latest + timing.quiet, self._first + timing.longest)

    def seen(self) -> None:
        """Begin anew: what happened so far is being looked at."""
        with self._lock:
            self._first = None


def _identity(folder: Path) -> tuple[str, int, int] | None:
    real = os.path.realpath(folder)
    try:
        found = os.stat(real)
    except OSError:
        return None
    return real, found.st_dev, found.st_ino
