"""The operator: kopf watches this node's objects and runs the agent of the cluster.

The one module that imports kopf. Handlers are for raw events alone and only bring the cache up to
date; the agent's workers do the rest. So kopf sets no finalizer and no annotation, and nothing
depends on an event having been seen.

Run by ``poolkeeper operator``, or by ``kopf run --standalone -A -m controller.cluster.operator``.
Settings of the latter are in the environment: ``NODE_NAMES``, ``NODE_SETTINGS``,
``POOLKEEPER_STATE_DIR`` and ``POOLKEEPER_LISTEN``. kopf's own endpoint for liveness is not used: it
would answer for kopf alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kopf

from backends import errors
from backends.schema import duration_seconds
from controller.cli import options
from controller.cli.running import data_serving, serving
from controller.cli.session import Session, session
from controller.cluster.agent import ClusterAgent
from controller.cluster.apiserver import ApiServer
from controller.cluster.node import ServedNode
from controller.cluster.nodelifecycle import NodeLifecycle
from controller.cluster.posting import Poster
from controller.cluster.store import WATCHED, ClusterStore
from controller.locking import AgentLock
from controller.nodes import DEFAULT, NodeReporter, NodeSettings
from controller.publishing import Publisher
from controller.resources import GROUP, VERSION, kinds
from controller.retrying import backoff
from controller.secrets import ClusterSecrets
from controller.serving.access import ReviewedAccess
from controller.serving.health import Health, Pulse
from controller.serving.metrics import Metrics
from controller.store import Store

log = logging.getLogger(__name__)

NODE_NAMES = ("POOLKEEPER_NODE_NAME", "NODE_NAME")
"""Variables of which the first that is set names the node; a DaemonSet fills in the latter."""

NODE_SETTINGS = {"heartbeat": "POOLKEEPER_HEARTBEAT", "silence": "POOLKEEPER_SILENCE"}
"""Variables of ``NodeSettings``, with units: ``30s``."""

SERVER_TIMEOUT = 300
"""Seconds after which the server ends a watch, so that one that was cut in silence ends too."""

LONGEST_BACKOFF = 30.0
BEAT = 5.0
"""Seconds between two signs of life of kopf's loop."""

LOCK_WITHIN = 60.0
"""Seconds that another process may take to end its work on the state directory."""

KOPF_FINALIZER = f"{GROUP}/kopf"
"""Never set, for there are no handlers that need one. Not the engine's own: kopf takes its own off
wherever it finds it without such a handler."""

_POOLS, _VOLUMES, _OPERATIONS = (kinds()[name] for name in WATCHED)


class Operator:
    """What the handlers share: the state directory's lock, the store, and the agent."""

    def __init__(
        self,
        chosen: Session,
        nodes: NodeSettings,
        *,
        listen: tuple[str, int] | None = None,
        data: options.DataSide = options.DataSide(),  # noqa: B008 - it can't be changed
    ) -> None:
        self.node = chosen.node
        self.health = Health()
        self.watching = self.health.pulse("watching")
        self._nodes = nodes
        self._data = data
        self._metrics = Metrics(ready=self.health.is_ready)
        self._serving = serving(listen, self.health, self._metrics)
        self.store: ClusterStore | None = None
        self.agent: ClusterAgent | None = None
        self._session = chosen
        self._lock = AgentLock(chosen.state)
        self._local: Store | None = None
        self._running = contextlib.ExitStack()

    def start(self) -> None:
        """Open the state directory and begin to work.

        :raises errors.StorageError: where the directory or the server's address is no good, or
            another agent works there.
        """
        self._acquire()
        stop = threading.Event()
        server = ApiServer(stop)
        poster = Poster(server, node=self.node)
        self._local = Store(self._session.state)
        self.store = ClusterStore(server, self._local, poster, node=self.node)
        secrets = ClusterSecrets(server)
        engine = self._session.engine(
            self.store,
            self._metrics.observer,
            secrets=secrets,
            publisher=Publisher(server, node=self.node),
        )
        reporter = NodeReporter(
            ServedNode(server, node=self.node),
            self._session.context(secrets),
            boot=engine.boot,
            heartbeat=self._nodes.heartbeat,
            data_url=self._data.url,
        )
        lifecycle = NodeLifecycle(
            server,
            poster,
            node=self.node,
            settings=self._nodes,
            backend=engine.examiner.backend,
        )
        self.agent = ClusterAgent(
            server,
            self.store,
            engine,
            poster,
            reporter=reporter,
            lifecycle=lifecycle,
            stop=stop,
            health=self.health,
            metrics=self._metrics,
        )
        self._running.enter_context(self._serving)
        self._running.enter_context(data_serving(engine, ReviewedAccess(server), self._data))
        self.agent.start()

    def _acquire(self) -> None:
        deadline = time.monotonic() + LOCK_WITHIN
        while not self._lock.try_acquire("agent"):
            if time.monotonic() > deadline:
                holder = self._lock.holder()
                who = f"Process {holder.pid}" if holder else "Another process"
                raise errors.InUse(
                    f"{who} works on {self._session.state} already.",
                    hint="Stop it, or give --state-dir.",
                )
            time.sleep(0.2)

    def stop(self) -> bool:
        """End the work and let the state directory go; false where a step did not end in time."""
        ended = self.agent is None or self.agent.stop()
        self._running.close()
        if self._local is not None and ended:
            self._local.close()
        self._lock.release()
        return ended


class _Backoffs:
    """Seconds between tries at an API server that is away: longer and longer, without end."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1, 2, 5, 10), itertools.repeat(LONGEST_BACKOFF))


def run(
    chosen: Session,
    *,
    listen: tuple[str, int] | None = None,
    data: options.DataSide = options.DataSide(),  # noqa: B008 - it can't be changed
    nodes: NodeSettings = DEFAULT,
) -> bool:
    """Run until SIGTERM or SIGINT; false where a step did not end in time.

    kopf ends where a watch is answered by an error, as by a server that has started and does not
    serve the kinds yet. It is begun anew; the agent goes on all the while.

    :param listen: host and port of the HTTP side; None for none.
    :param data: where contents of volumes are served.
    :raises errors.StorageError: where the work can't begin.
    """
    operator = Operator(chosen, nodes, listen=listen, data=data)
    operator.start()
    failures = 0
    try:
        while True:
            begun = time.monotonic()
            try:
                kopf.run(
                    clusterwide=True,
                    standalone=True,
                    memo=kopf.Memo(operator=operator),
                )
                break
            except Exception as error:  # noqa: BLE001 - kopf's own errors have no public names
                failures = failures + 1 if time.monotonic() - begun < LONGEST_BACKOFF else 1
                log.warning("watching broke off and is begun anew: %s", error)
                operator.watching.beat()
                if _signalled_within(backoff(failures)):
                    break
    finally:
        ended = operator.stop()
    return ended


def _signalled_within(seconds: float) -> bool:
    """Wait; true as soon as a signal asks to stop. kopf has signals of its own while it runs."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop.set())
    return stop.wait(seconds)


@kopf.on.startup()
async def begin(settings: kopf.OperatorSettings, memo: Any, **_: Any) -> None:
    """Tell kopf what to watch and what to leave alone; start the agent where kopf runs it."""
    if "operator" not in memo:
        state = os.environ.get("POOLKEEPER_STATE_DIR")
        named = next((os.environ[name] for name in NODE_NAMES if os.environ.get(name)), "")
        listen = options.address(os.environ.get("POOLKEEPER_LISTEN", ""))
        chosen = session(Path(state) if state else None, named)
        operator = Operator(chosen, _node_settings(), listen=listen, data=_data_side())
        await asyncio.to_thread(operator.start)
        memo.operator = memo.started = operator
    _configure(settings, memo.operator.node)
    memo.beating = asyncio.create_task(_beat(memo.operator.watching))


async def _beat(pulse: Pulse) -> None:
    """Show that the loop moves in which kopf watches."""
    while True:
        pulse.beat()
        await asyncio.sleep(BEAT)


def _data_side() -> options.DataSide:
    cert, key = (os.environ.get(f"POOLKEEPER_TLS_{name}") for name in ("CERT", "KEY"))
    return options.data_side(
        os.environ.get("POOLKEEPER_DATA_LISTEN", ""),
        Path(cert) if cert else None,
        Path(key) if key else None,
        os.environ.get("POOLKEEPER_DATA_URL", ""),
    )


def _node_settings() -> NodeSettings:
    """Those of the environment, for who runs this by kopf.

    :raises errors.InvalidSpec: they contradict each other.
    """
    given = {
        name: duration_seconds(os.environ[variable])
        for name, variable in NODE_SETTINGS.items()
        if os.environ.get(variable)
    }
    settings = NodeSettings(**given)
    settings.check()
    return settings


def _configure(settings: kopf.OperatorSettings, node: str) -> None:
    for kind in (_POOLS, _VOLUMES, _OPERATIONS):
        settings.watching.field_selectors[GROUP, VERSION, kind.plural] = f"spec.nodeName={node}"
    settings.watching.server_timeout = SERVER_TIMEOUT
    settings.watching.chunk_size = 500
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.persistence.finalizer = KOPF_FINALIZER
    settings.networking.error_backoffs = _Backoffs()
    settings.networking.enforce_retry_after = True
    for name in ("kopf.activities", "kopf.objects", "kopf._core", "kopf._cogs"):
        logging.getLogger(name).setLevel(logging.WARNING)


@kopf.on.cleanup()
async def end(memo: Any, **_: Any) -> None:
    """Stop the agent that was started with kopf; the steps under way get their time."""
    memo.beating.cancel()
    if "started" in memo:
        await asyncio.to_thread(memo.started.stop)


@kopf.on.event(GROUP, VERSION, _POOLS.plural)
async def on_pool(memo: Any, event: kopf.RawEvent, **_: Any) -> None:
    """Take over what was sent of a pool."""
    _observe(memo.operator, _POOLS.name, event)


@kopf.on.event(GROUP, VERSION, _VOLUMES.plural)
async def on_volume(memo: Any, event: kopf.RawEvent, **_: Any) -> None:
    """Take over what was sent of a volume."""
    _observe(memo.operator, _VOLUMES.name, event)


@kopf.on.event(GROUP, VERSION, _OPERATIONS.plural)
async def on_operation(memo: Any, event: kopf.RawEvent, **_: Any) -> None:
    """Take over what was sent of an operation on a volume."""
    _observe(memo.operator, _OPERATIONS.name, event)


def _observe(operator: Operator, kind: str, event: kopf.RawEvent) -> None:
    if operator.store is None or operator.agent is None:
        return
    found: dict[str, Any] = {**event["object"]}
    operator.store.observe(kinds()[kind], found, deleted=event["type"] == "DELETED")
    if event["type"] is None:  # of a list: the watch began, or began anew after a gap
        operator.agent.resync_soon()
