"""The agent of one node of a cluster: the API server on one side, a worker for each pool on the
other."""

from __future__ import annotations

import logging
import threading
import time

from backends import errors
from controller.cluster.apiserver import ApiServer
from controller.cluster.binding import Binder, VolumeBinder
from controller.cluster.nodelifecycle import NodeLifecycle
from controller.cluster.posting import Poster
from controller.cluster.store import ClusterStore
from controller.engine import Engine
from controller.nodes import NodeReporter
from controller.retrying import backoff
from controller.serving.health import Health
from controller.serving.metrics import Metrics, Requests
from controller.workers import Workers
from controller.worlds import volume_of

log = logging.getLogger(__name__)

GATHER = 0.1
"""Seconds in which further changes join the first, so that one pass serves an apply of many."""

RESYNC = 600.0
"""Seconds between two lists for the sake of what no watch told of."""

RESYNC_SOON = 2.0
"""Seconds from a watch that began anew to the list that makes up for what it missed."""

STOP_WITHIN = 20.0
"""Seconds that workers have to end the step they are at; running commands are ended at once."""

TURN = 10.0
"""Seconds after which the loop turns even where nothing is to be done, to show that it moves."""

POST_WITHIN = 2.0
"""Seconds that events have to be posted in at the end."""


class ClusterAgent:
    """Keeps this node's pools as the API server declares them.

    :param stop: the event that the server client was given as well; set by ``stop``.
    :param health: is told what keeps it alive and ready.
    """

    def __init__(
        self,
        server: ApiServer,
        store: ClusterStore,
        engine: Engine,
        poster: Poster,
        *,
        reporter: NodeReporter,
        lifecycle: NodeLifecycle,
        stop: threading.Event,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self.synced = threading.Event()
        self._server = server
        self._store = store
        self._engine = engine
        self._poster = poster
        self._reporter = reporter
        self._lifecycle = lifecycle
        self._stop = stop
        self._workers = Workers(metrics.timed(engine.reconcile))
        engine.jobs.wake = self._workers.nudge
        self._volumes = VolumeBinder(server, store, backend=engine.examiner.backend, stop=stop)
        self._operations = Binder(server, store, stop=stop, kind="VolumeOperation", owner=volume_of)
        self._resync_at = 0.0
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self._health = health
        self._pulse = health.pulse("agent")
        health.ready_while("synced", self._unsynced)
        health.ready_while("api-server", lambda: server.problem)
        metrics.watch(self._workers)
        metrics.watch_jobs(engine.jobs)
        metrics.watch_requests(self._requests)

    def start(self) -> None:
        """Begin; pools are worked on once everything declared is known."""
        self._engine.recover()
        self._poster.start()
        self._reporter.start()
        self._lifecycle.start()
        self._thread.start()
        self._health.threads(self._thread, self._poster.thread)

    def stop(self) -> bool:
        """End after the steps that are under way; false where one did not end in time."""
        self._engine.stop()
        self._stop.set()
        self._store.changed.set()
        self._volumes.look()
        self._operations.look()
        self._thread.join(STOP_WITHIN)
        deadline = time.monotonic() + STOP_WITHIN
        busy = self._workers.stop(STOP_WITHIN)
        if not self._engine.jobs.idle(deadline - time.monotonic()):
            busy += [item.task.pool for item in self._engine.jobs.snapshot()]
        for name in busy:
            log.error("pool %s did not end its step in time", name)
        self._reporter.stop(POST_WITHIN)
        self._lifecycle.stop(POST_WITHIN)
        self._poster.stop(POST_WITHIN)
        self._server.close()
        return not busy

    def resync_soon(self) -> None:
        """A watch began anew, and may have missed what went."""
        self._resync_at = min(self._resync_at, time.monotonic() + RESYNC_SOON)
        self._store.changed.set()

    def _unsynced(self) -> str:
        return "" if self.synced.is_set() else "what is declared was not listed yet"

    def _requests(self) -> Requests:
        return Requests(
            answers=dict(self._server.answers),
            events_posted=self._poster.posted,
            events_dropped=self._poster.dropped,
            events_waiting=self._poster.waiting,
        )

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            self._pulse.beat()
            try:
                self._look()
                failures = 0
            except errors.StorageError as error:
                failures += 1
                log.warning("%s", error)
                self._stop.wait(backoff(failures))
                self._store.changed.set()

    def _look(self) -> None:
        """Wake whom changes concern; list anew where it is time."""
        if time.monotonic() >= self._resync_at:
            self._store.resync()
            self._resync_at = time.monotonic() + RESYNC
            if self.synced.is_set():
                self._volumes.resync()  # its watch may have been cut in silence
                self._operations.resync()
            else:
                log.info("keeping the pools of node %s", self._store.node)
                self.synced.set()
                self._volumes.start()
                self._operations.start()
        until_resync = max(0.0, self._resync_at - time.monotonic())
        if self._store.changed.wait(min(TURN, until_resync)):
            self._stop.wait(GATHER)
            self._wake()

    def _wake(self) -> None:
        concerned = self._store.concerned()
        world = self._engine.world()
        names = world.pool_names()
        self._workers.keep(names)
        self._engine.keep_jobs(world)
        self._workers.wake(sorted(names if concerned is None else names & concerned))
        if concerned is None:
            self._volumes.look()
        self._operations.look()
