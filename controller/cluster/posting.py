"""Kubernetes Events: posted apart from the work, counted where they repeat, bounded in rate.

An Event's name is made of what it says and of whom, so that a repeated one, also after a restart
or an answer that was lost, is counted and not posted again.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from backends import errors
from controller.cluster.apiserver import ApiServer
from controller.resources import API_VERSION, DEFAULT_NAMESPACE, Key, now
from controller.store import EventType

log = logging.getLogger(__name__)

PER_SECOND = 5.0
BURST = 50
"""Events that may go at once; afterwards ``PER_SECOND``. The first pass of a pool fits."""

MAX_WAITING = 1000
"""Events that wait for their turn; of more, the oldest are dropped and their number is logged."""

COUNT_EVERY = 60.0
"""Seconds between two writes for one event that goes on repeating."""

MAX_MESSAGE = 1024
"""Characters (the limit of ``note`` in events.k8s.io/v1)."""

COMPONENT = "poolkeeper"
RETRY = 5.0
"""Seconds before events are tried again that the server did not take."""

_KNOWN = 2000
"""Events of which it is remembered when they were posted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    key: Key
    uid: str
    type: EventType
    reason: str
    message: str
    first: str
    last: str
    count: int = 1


class Poster:
    """Posts events in a thread of its own; what it can't post in time it drops.

    :param node: the host that events name as their source.
    :ivar posted: events that the server took, each repetition that was counted included.
    :ivar dropped: events that were too many.
    :ivar thread: posts them, once started.
    """

    def __init__(self, server: ApiServer, *, node: str) -> None:
        self._server = server
        self._node = node
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._posted: OrderedDict[str, float] = OrderedDict()
        self._told_dropped = 0
        self.posted = 0
        self.dropped = 0
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self, seconds: float) -> None:
        """Post what still can be posted within that time."""
        self._stop.set()
        self._news.set()
        self.thread.join(seconds)

    @property
    def waiting(self) -> int:
        """Events whose turn has not come."""
        return len(self._waiting)

    def post(self, key: Key, uid: str, type: EventType, reason: str, message: str) -> None:
        """Post an event when its turn comes; returns at once."""
        said = message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 1]}…"
        present = now()
        name = _name(key, uid, type, reason, said)
        with self._lock:
            known = self._waiting.get(name)
            if known is not None:
                self._waiting[name] = replace(known, count=known.count + 1, last=present)
            else:
                self._waiting[name] = _Waiting(
                    key=key, uid=uid, type=type, reason=reason, message=said, first=present,
                    last=present,
                )  # fmt: skip
            while len(self._waiting) > MAX_WAITING:
                self._waiting.popitem(last=False)
                self.dropped += 1
        self._news.set()

    def _run(self) -> None:
        tokens, refilled = float(BURST), time.monotonic()
        while True:
            present = time.monotonic()
            tokens = min(float(BURST), tokens + (present - refilled) * PER_SECOND)
            refilled = present
            taken = self._take() if tokens >= 1.0 else None
            if taken is not None:
                tokens -= 1.0
                if not self._send(*taken):
                    self._put_back(*taken)
                    if self._stop.wait(RETRY):
                        return
            elif self._stop.is_set():
                return
            else:
                self._news.wait(1.0 / PER_SECOND if self._waiting else None)
                self._news.clear()

    def _take(self) -> tuple[str, _Waiting] | None:
        """The next event whose turn it is."""
        present = time.monotonic()
        with self._lock:
            if self.dropped > self._told_dropped:
                since = self.dropped - self._told_dropped
                log.warning("%d events were dropped: too many at once", since)
                self._told_dropped = self.dropped
            for name, item in self._waiting.items():
                if present - self._posted.get(name, -COUNT_EVERY) >= COUNT_EVERY:
                    del self._waiting[name]
                    return name, item
        return None

    def _put_back(self, name: str, item: _Waiting) -> None:
        with self._lock:
            since = self._waiting.get(name)
            if since is not None:
                item = replace(item, count=item.count + since.count, last=since.last)
            self._waiting[name] = item
            self._waiting.move_to_end(name, last=False)

    def _send(self, name: str, item: _Waiting) -> bool:
        """Post an event, or count it; false where that has to be tried again."""
        namespace = item.key.namespace or DEFAULT_NAMESPACE
        try:
            try:
                self._server.create_event(self._event(name, namespace, item))
            except errors.Conflict:
                change = {"count": item.count + self._count(namespace, name)}
                self._server.merge_event(namespace, name, {**change, "lastTimestamp": item.last})
        except errors.Inaccessible as error:
            log.debug("%s", error)
            return False
        except errors.StorageError as error:
            log.warning("an event of %s is lost: %s", item.key, error)
        else:
            self.posted += 1
        self._posted[name] = time.monotonic()
        while len(self._posted) > _KNOWN:
            self._posted.popitem(last=False)
        return True

    def _count(self, namespace: str, name: str) -> int:
        found = self._server.get_event(namespace, name)
        return int((found or {}).get("count") or 0)

    def _event(self, name: str, namespace: str, item: _Waiting) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": item.key.kind,
                "name": item.key.name,
                "uid": item.uid,
                **({"namespace": item.key.namespace} if item.key.namespace else {}),
            },
            "type": item.type,
            "reason": item.reason,
            "message": item.message,
            "count": item.count,
            "firstTimestamp": item.first,
            "lastTimestamp": item.last,
            "source": {"component": COMPONENT, "host": self._node},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._node,
        }


def _name(key: Key, uid: str, *said: str) -> str:
    digest = hashlib.sha256("\0".join((str(key), uid, *said)).encode()).hexdigest()[:16]
    return f"{key.name[:230].rstrip('.-')}.{digest}"
