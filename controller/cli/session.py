"""What a command works with: a state directory, its store, and an engine over it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backends import errors
from backends.base import BackendContext
from backends.host import mounts
from backends.host.marks import MarkStore
from controller.cli.printing import say
from controller.engine import Engine, Observer
from controller.store import FILE_NAME, ResourceStore, Store

SYSTEM_STATE = Path("/var/lib/poolkeeper")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A state directory and the node whose pools are kept."""

    state: Path
    node: str

    @property
    def begun(self) -> bool:
        """Whether there is a store in the state directory.

        :raises errors.StorageError: where one may not look.
        """
        try:
            os.stat(self.state / FILE_NAME)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise errors.from_os_error(error, doing=f"look into {self.state}") from error
        return True

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        """The store, made where it is not there."""
        opened = Store(self.state)
        try:
            yield opened
        finally:
            opened.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Store]:
        """The store to look at. Where there is none, an empty one that leaves no trace."""
        if self.begun:
            with self.store() as opened:
                for unreadable in opened.problems():
                    say(unreadable.message, "yellow")
                yield opened
            return
        with tempfile.TemporaryDirectory(prefix="poolkeeper-") as passing:
            opened = Store(Path(passing))
            try:
                yield opened
            finally:
                opened.close()

    def engine(self, store: ResourceStore, observer: Observer | None = None) -> Engine:
        """An engine for this node; making it changes nothing."""
        context = BackendContext(marks=MarkStore(self.state))
        return Engine(store, context, node=self.node, boot=mounts.boot_id(), observer=observer)


def session(state: Path | None = None, node: str = "") -> Session:
    """The session that options and environment ask for."""
    chosen = state or default_state_directory()
    return Session(state=chosen.absolute(), node=node or mounts.host_name())


def default_state_directory() -> Path:
    """The system's for root, else the user's (XDG Base Directory Specification)."""
    if os.geteuid() == 0:
        return SYSTEM_STATE
    given = os.environ.get("XDG_STATE_HOME", "")
    base = Path(given) if given.startswith("/") else Path.home() / ".local" / "state"
    return base / "poolkeeper"
