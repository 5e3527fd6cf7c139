"""The StorageNode of this host: what it can serve, written by its agent and never by hand.

Programs and modules are looked at once, and anew when some may have come or gone. While nothing
changes, the heartbeat is all that is written.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from backends import errors, support
from backends.base import BackendContext
from backends.host import needs, tools
from backends.spec import NodeSpec, NodeStatus, PoolTypeSupport, ToolVersion
from controller import summarising
from controller.discovering import Discoverer
from controller.release import release
from controller.resources import (
    REQUESTED_AT,
    AnyResource,
    Declared,
    Key,
    Metadata,
    kinds,
    now,
    object_name,
)
from controller.store import Store
from controller.summarising import Aspect

log = logging.getLogger(__name__)

KIND = "StorageNode"
MAX_REASON = 4096
MAX_LIMIT = 1024
"""Characters of a reason, and of a limit, as the model has them."""

GATHER = 1.0
"""Seconds in which further answers of servers join the first in one write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """How the agents of a cluster know of each other.

    :param heartbeat: seconds between two reports of a node.
    :param silence: seconds without one after which a node counts as silent.
    """

    heartbeat: float = 30.0
    silence: float = 120.0

    def check(self) -> None:
        """Refuse a limit that a single late report would pass.

        :raises errors.InvalidSpec: it is less than twice the time between two reports.
        """
        if self.heartbeat <= 0 or self.silence < 2 * self.heartbeat:
            raise errors.InvalidSpec(
                f"A node that reports every {self.heartbeat:g} s can't count as silent after "
                f"{self.silence:g} s.",
                hint="Give a limit of at least twice the heartbeat.",
            )


DEFAULT = NodeSettings()


class NodeRecord(Protocol):
    """Where the node's resource is kept. Both methods raise ``errors.StorageError``."""

    def read(self) -> AnyResource:
        """The resource as it was seen last; it is made where there is none."""

    def write(self, resource: AnyResource, status: NodeStatus) -> None:
        """Record the status of that very resource."""


def node_key(node: str) -> Key:
    """The key of a node's resource. A host's name need not be one that a resource may have."""
    return Key(KIND, "", object_name(node))


class StoredNode:
    """The node's resource in the store of a standalone host."""

    def __init__(self, store: Store, *, node: str) -> None:
        self._store = store
        self._key = node_key(node)

    def read(self) -> AnyResource:
        found = self._store.get(self._key)
        if found is None:
            metadata = Metadata(name=self._key.name)
            declared = Declared(kind=kinds()[KIND], metadata=metadata, spec=NodeSpec())
            found = self._store.apply(declared).resource
        return found

    def write(self, resource: AnyResource, status: NodeStatus) -> None:
        self._store.write_status(self._key, status, uid=resource.metadata.uid)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host has for its pools."""

    pool_types: tuple[PoolTypeSupport, ...]
    tools: tuple[ToolVersion, ...]

    @property
    def serves(self) -> str:
        return " ".join(item.type for item in self.pool_types if item.supported)


def host_facts() -> HostFacts:
    """Look at this host; each known program that is there is run once for its version."""
    return HostFacts(
        pool_types=tuple(
            PoolTypeSupport(
                type=item.type.name,
                supported=item.supported,
                reason=item.reason[:MAX_REASON] or None,
                formats=item.volume_formats,
                limits=tuple(limit[:MAX_LIMIT] for limit in item.limits),
            )
            for item in support.supported_types()
        ),
        tools=tuple(
            ToolVersion(name=name, version=found)
            for name, found in tools.versions(support.programs()).items()
        ),
    )


class NodeReporter:
    """Keeps the node's resource in a thread of its own.

    :param boot: the boot of the host.
    :param data_url: where clients reach the contents of volumes; empty for nowhere.
    """

    def __init__(
        self,
        record: NodeRecord,
        context: BackendContext,
        *,
        boot: str,
        heartbeat: float,
        data_url: str = "",
        facts: Callable[[], HostFacts] = host_facts,
    ) -> None:
        self._record = record
        self._data_url = data_url
        self._boot = boot
        self._heartbeat = heartbeat
        self._look = facts
        self._facts: HostFacts | None = None
        self._signature: tuple[object, ...] = ()
        self._stop = threading.Event()
        self._news = threading.Event()
        self._discoverer = Discoverer(context, self._news.set)
        self._thread = threading.Thread(target=self._run, name="node", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End, waiting at most so long for a report that is under way."""
        self._stop.set()
        self._news.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._news.clear()
            try:
                self.report()
            except errors.StorageError as error:
                log.warning("the node can't be reported: %s", error)
            except Exception:
                log.exception("the report of the node broke off")
            if self._news.wait(self._heartbeat):
                self._stop.wait(GATHER)

    def report(self) -> None:
        """Look at what may have changed, ask what is due, and write the status.

        :raises errors.StorageError: it can't be written now.
        """
        facts = self._current_facts()
        resource = self._record.read()
        former: NodeStatus = resource.status
        request = resource.metadata.annotations.get(REQUESTED_AT)
        self._discoverer.ask(resource.spec.discover, former.sources, request=request)
        self._record.write(resource, self._status(resource, facts))

    def _current_facts(self) -> HostFacts:
        signature = needs.signature()
        if self._facts is None or signature != self._signature:
            self._facts, self._signature = self._look(), signature
        return self._facts

    def _status(self, resource: AnyResource, facts: HostFacts) -> NodeStatus:
        moment = now()
        generation = resource.metadata.generation
        message = f"Serves {facts.serves}." if facts.serves else "It can serve no pool type."
        ready = Aspect(type="Ready", status="True", reason="Reporting", message=message)
        fields: dict[str, Any] = {
            "observed_generation": generation,
            "conditions": summarising.conditions(
                resource.status.conditions,
                [ready, *self._discoverer.aspects()],
                generation=generation,
                now=moment,
            ),
            "last_handled_request": resource.metadata.annotations.get(REQUESTED_AT),
            "boot_id": self._boot,
            "agent_version": release(),
            "heartbeat_time": moment,
            "data_url": self._data_url or None,
            "serves": facts.serves or None,
            "pool_types": facts.pool_types,
            "tools": facts.tools,
            "sources": self._discoverer.sources,
        }
        return NodeStatus(**fields)
