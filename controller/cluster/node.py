"""The StorageNode of an agent's own node on an API server.

It is not watched: each report is answered with the object as it is then, so what a user wrote into
its spec is known with the next one.
"""

from __future__ import annotations

from backends import errors
from backends.spec import NodeStatus
from controller.cluster.apiserver import ApiServer
from controller.cluster.store import parse, tested
from controller.nodes import KIND, node_key
from controller.resources import API_VERSION, AnyResource, kinds


class ServedNode:
    """Implements ``controller.nodes.NodeRecord``."""

    def __init__(self, server: ApiServer, *, node: str) -> None:
        self._server = server
        self._key = node_key(node)
        self._known: AnyResource | None = None

    def read(self) -> AnyResource:
        if self._known is None:
            found = self._server.get(self._key) or self._make()
            self._known = parse(kinds()[KIND], found)
        return self._known

    def _make(self) -> dict[str, object]:
        made = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": self._key.name},
            "spec": {},
        }
        return self._server.create(self._key, made)

    def write(self, resource: AnyResource, status: NodeStatus) -> None:
        patch = [
            tested("uid", resource.metadata.uid),
            {"op": "add", "path": "/status", "value": status.dump()},
        ]
        self._known = None  # an answer that is lost, or that it has gone, leaves nothing to rely on
        try:
            found = self._server.patch(self._key, patch, status=True)
        except (errors.Conflict, errors.NotFound):
            return  # it was deleted, or made anew; the next report is for the one that is there
        self._known = parse(kinds()[KIND], found)
