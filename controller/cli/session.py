"""What a command works with: a state directory, its store, and an engine over it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backends import errors
from backends.base import BackendContext, Secrets
from backends.host import mounts
from backends.host.marks import MarkStore
from controller.cli.printing import say
from controller.engine import Engine
from controller.publishing import Publisher
from controller.secrets import FileSecrets
from controller.steps import Observer
from controller.store import FILE_NAME, ResourceStore, Store

SYSTEM_STATE = Path("/var/lib/poolkeeper")
SECRETS = "secrets"
"""Directory of secrets in the state directory, where no other is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A state directory and the node whose pools are kept.

    :param secrets: directory of passphrases and keys.
    """

    state: Path
    node: str
    secrets: Path

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

    def engine(
        self,
        store: ResourceStore,
        observer: Observer | None = None,
        *,
        secrets: Secrets | None = None,
        publisher: Publisher | None = None,
    ) -> Engine:
        """An engine for this node; making it changes nothing.

        :param secrets: where they are read instead of the session's directory.
        :param publisher: of a cluster, where there is one.
        """
        return Engine(
            store,
            self.context(secrets),
            node=self.node,
            boot=mounts.boot_id(),
            observer=observer,
            publisher=publisher,
        )

    def context(self, secrets: Secrets | None = None) -> BackendContext:
        """What backends are made with here; making it changes nothing."""
        return BackendContext(
            marks=MarkStore(self.state), secrets=secrets or FileSecrets(self.secrets)
        )


def session(state: Path | None = None, node: str = "", secrets: Path | None = None) -> Session:
    """The session that options and environment ask for."""
    chosen = (state or default_state_directory()).absolute()
    return Session(
        state=chosen,
        node=node or mounts.host_name(),
        secrets=(secrets or chosen / SECRETS).absolute(),
    )


def default_state_directory() -> Path:
    """The system's for root, else the user's (XDG Base Directory Specification)."""
    if os.geteuid() == 0:
        return SYSTEM_STATE
    given = os.environ.get("XDG_STATE_HOME", "")
    base = Path(given) if given.startswith("/") else Path.home() / ".local" / "state"
    return base / "poolkeeper"
