"""``run``: the agent as a process."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import ssl
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import typer

from controller.agent import Agent
from controller.cli.options import DataSide
from controller.cli.printing import clean, say
from controller.cli.session import Session
from controller.cli.working import Deadline, take_over
from controller.engine import Engine
from controller.locking import AgentLock
from controller.nodes import DEFAULT, NodeReporter, StoredNode
from controller.serving.access import Access, TokenFile
from controller.serving.health import Health
from controller.serving.metrics import Metrics
from controller.sources.base import Source
from controller.sources.directory import DirectorySource
from controller.sources.git import git_source
from controller.sources.pruning import Threshold

SOCKET = "agent.sock"
"""Name in the state directory of the socket at which an agent is asked for transfers."""

LOCK_WITHIN = 60.0
"""Seconds that the agent waits at its start for a command that is at work."""

_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
_FORMAT_OF_JOURNAL = "%(message)s"

_PRIORITIES = {
    logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2,
}  # fmt: skip
"""Levels as sd-daemon(3) writes them before a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository of manifests, as options give it."""

    url: str = ""
    branch: str = ""
    path: str = ""
    interval: float = 60.0


def run(
    session: Session,
    directories: Sequence[Path],
    repository: Repository,
    *,
    pruning: Threshold | None,
    level: str,
    listen: tuple[str, int] | None = None,
    data: DataSide = DataSide(),  # noqa: B008 - it can't be changed
) -> int:
    """Keep the pools of this node until a signal comes; 1 where a step did not end in time."""
    start_logging(level)
    health = Health()
    metrics = Metrics(ready=health.is_ready)
    sources = _sources(session, directories, repository)
    if pruning is not None and not sources:
        raise typer.BadParameter("--prune needs --directory or --git.")
    stop = _stop_on_signals()
    with AgentLock(session.state) as lock:
        if not _acquire(lock):
            return 1
        with session.store() as store, serving(listen, health, metrics):
            engine = session.engine(store, metrics.observer)
            reporter = NodeReporter(
                StoredNode(store, node=session.node),
                session.context(),
                boot=engine.boot,
                heartbeat=DEFAULT.heartbeat,
                data_url=data.url,
            )
            agent = Agent(
                store,
                engine,
                sources,
                reporter=reporter,
                pruning=pruning,
                health=health,
                metrics=metrics,
            )
            access = TokenFile(session.state)
            if data.listen is not None:
                access.read()  # so that it is there for who wants to ask
            with data_serving(engine, access, data, socket=session.state / SOCKET):
                ended = agent.run(stop)
            if not ended:
                # A thread is stuck in the kernel; leaving in the ordinary way would wait for it.
                logging.shutdown()
                os._exit(1)
    return 0


def serving(
    listen: tuple[str, int] | None, health: Health, metrics: Metrics
) -> contextlib.AbstractContextManager[object]:
    """The agent's HTTP side, where it is wanted."""
    if listen is None:
        return contextlib.nullcontext()
    from controller.serving import server  # noqa: PLC0415 - aiohttp is wanted here alone

    routes = [*server.health_routes(health), *server.metrics_routes(metrics.exposition)]
    return server.Server(server.Address(*listen), routes)


@contextlib.contextmanager
def data_serving(
    engine: Engine, access: Access, side: DataSide, *, socket: Path | None = None
) -> Iterator[None]:
    """Serve the contents of volumes meanwhile.

    :param socket: of this host's command line; None for none.
    """
    if socket is None and side.listen is None:
        yield
        return
    from controller.serving import data, server  # noqa: PLC0415 - aiohttp is wanted here alone
    from controller.transfers import Transfers  # noqa: PLC0415

    routes = data.data_routes(Transfers(engine), access)
    with contextlib.ExitStack() as servers:
        if socket is not None:
            servers.enter_context(server.Server(socket, routes))
        if side.listen is not None:
            address = server.Address(*side.listen)
            servers.enter_context(server.Server(address, routes, tls=_tls(side)))
        yield


def _tls(side: DataSide) -> ssl.SSLContext | None:
    from controller.serving.certificates import Certificate  # noqa: PLC0415 - needed with a port alone

    return Certificate(side.cert, side.key).context if side.cert is not None else None


def _acquire(lock: AgentLock) -> bool:
    holder = take_over(lock, Deadline(LOCK_WITHIN), role="agent")
    if holder is not None:
        say(f"Another agent (process {holder.pid}) keeps this state directory already.", "red")
    return holder is None


def _sources(session: Session, directories: Sequence[Path], repository: Repository) -> list[Source]:
    sources: list[Source] = [DirectorySource(path.absolute()) for path in directories]
    if repository.url:
        sources.append(
            git_source(
                repository.url,
                checkouts=session.state / "checkouts",
                branch=repository.branch,
                path=repository.path,
                interval=repository.interval,
            )
        )
    elif repository.branch or repository.path:
        raise typer.BadParameter("--branch and --path belong to --git.")
    return sources


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop


class _Formatter(logging.Formatter):
    """Lines that can't command a terminal, whatever a file is called."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))


class _JournalFormatter(_Formatter):
    """Lines with their priority in front, as the journal reads them."""

    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITIES.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def start_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if os.environ.get("JOURNAL_STREAM"):
        handler.setFormatter(_JournalFormatter(_FORMAT_OF_JOURNAL))
    else:
        handler.setFormatter(_Formatter(_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("watchdog").setLevel(logging.WARNING)
