"""Volumes offered to pods: a PersistentVolume for each that asks for one.

It is of the type ``local``, of which kubelet mounts a directory or maps a block device and nothing
else (``local.path`` in the Kubernetes API). So volumes of the types dir and block can be published,
and images in files can't. Kubernetes never deletes what it stands for (Retain): the volume's own
policy does. It goes before the volume does, and never while it is claimed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from backends import errors
from backends.base import VolumeFacts
from backends.spec import PersistentVolume, VolumeStatus
from controller import summarising
from controller.examining import Examination, PoolExamination
from controller.resources import GROUP, REQUESTED_AT, AnyResource, Key
from controller.summarising import Aspect

HOSTNAME = "kubernetes.io/hostname"
"""Label of nodes that the affinity of a local PersistentVolume goes by."""

UID = f"{GROUP}/volume-uid"
"""Label of the PersistentVolume: the uid of the volume that it stands for."""

VOLUME = f"{GROUP}/volume"
"""Annotation of the PersistentVolume: namespace and name of the volume, for people."""

VERIFY = 600.0
"""Seconds after which it is looked at again, for somebody may have changed or deleted it."""

MODES = {"block": ("Block", "Filesystem"), "dir": ("Filesystem",)}
"""Volume modes by the type of a volume, the default first."""

Object = dict[str, Any]


class Server(Protocol):
    """What is asked of the API server. All methods raise ``errors.StorageError``."""

    def persistent_volume(self, name: str) -> Object | None: ...

    def apply_persistent_volume(self, wanted: Object) -> Object: ...

    def delete_persistent_volume(self, name: str) -> None: ...

    def node_label(self, node: str, label: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Publication:
    """What became of the wish to be published.

    :param name: of the PersistentVolume that there is.
    :param problem: why there is none, or not as it is wanted.
    """

    name: str | None
    problem: errors.StorageError | None = None

    @property
    def withdrawn(self) -> bool:
        """Whether there is none any more, as wanted: nothing holds the volume for it."""
        return self.name is None and self.problem is None


class Publisher:
    """Keeps the PersistentVolumes of one node.

    :param server: None where there is no cluster; nothing is published there.
    """

    def __init__(self, server: Server | None = None, *, node: str = "") -> None:
        self._server = server
        self._node = node
        self._kept: dict[str, tuple[Object, float]] = {}
        self._host_label, self._host_since = node, float("-inf")

    @property
    def serves(self) -> bool:
        """Whether there is a cluster to publish in."""
        return self._server is not None

    def holds(self, resource: AnyResource) -> bool:
        """Whether the resource may only go after its PersistentVolume has."""
        return self._server is not None and bool(
            _wish(resource) or resource.status.persistent_volume
        )

    def withdraw_going(self, found: PoolExamination) -> None:
        """Take off the PersistentVolumes of volumes that are going; one that can't be holds its
        volume back."""
        for examined in found.volumes:
            if not (examined.resource.deleting and self.holds(examined.resource)):
                continue
            try:
                self._withdraw(examined.resource)
            except errors.StorageError as error:
                refusals = (*examined.plan.refusals, error)
                examined.plan = replace(examined.plan, actions=(), refusals=refusals)

    def publish(self, found: PoolExamination) -> dict[Key, Publication]:
        """Bring the PersistentVolumes of a pool's volumes up to date."""
        made = {}
        for examined in found.volumes:
            former: VolumeStatus = examined.resource.status
            if _wish(examined.resource) is not None or former.persistent_volume:
                try:
                    name, problem = self._publish(examined, _facts(found, examined)), None
                except errors.StorageError as error:
                    name, problem = former.persistent_volume, error
                made[examined.resource.key] = Publication(name, problem)
        return made

    def _publish(self, examined: Examination, facts: VolumeFacts | None) -> str | None:
        resource = examined.resource
        former: str | None = resource.status.persistent_volume
        if self._server is None:
            raise errors.Unsupported(
                "There is no API server here to publish a PersistentVolume on.",
                hint="It is published where poolkeeper operator keeps the volume.",
            )
        if resource.deleting or examined.suspended or examined.job is not None:
            return former
        wish = _wish(resource)
        if wish is None:
            self._withdraw(resource)
            return None
        if facts is None:
            return former
        wanted = desired(resource, wish, facts, host=self._host())
        kept, since = self._kept.get(resource.metadata.uid, (None, 0.0))
        if kept != wanted or time.monotonic() - since > VERIFY or _requested(resource):
            self._bring(resource, wanted)
            self._kept[resource.metadata.uid] = wanted, time.monotonic()
        return _name(resource)

    def _bring(self, resource: AnyResource, wanted: Object) -> None:
        found = self._found(resource)
        if found is None or not _covers(found, wanted):
            self._api.apply_persistent_volume(wanted)

    def _withdraw(self, resource: AnyResource) -> None:
        """Delete the PersistentVolume, if nobody has a claim on it.

        :raises errors.DeletionRefused: somebody has, or it has not gone yet.
        """
        self._kept.pop(resource.metadata.uid, None)
        found = self._found(resource)
        if found is None:
            return
        holder = _holder(found)
        if holder:
            raise errors.DeletionRefused(
                f"PersistentVolume {_name(resource)} is claimed by {holder}.",
                hint="Delete the claim first; the volume goes on its own then.",
            )
        self._api.delete_persistent_volume(_name(resource))
        if self._found(resource) is not None:  # it may have been claimed in between
            raise errors.DeletionRefused(
                f"PersistentVolume {_name(resource)} is being deleted and still there."
            )

    def _found(self, resource: AnyResource) -> Object | None:
        """The PersistentVolume that is there.

        :raises errors.Conflict: it is not ours.
        """
        found = self._api.persistent_volume(_name(resource))
        if found is None:
            return None
        if found["metadata"].get("labels", {}).get(UID) != resource.metadata.uid:
            raise errors.Conflict(
                f"PersistentVolume {_name(resource)} is there and was not made for {resource.key}.",
                hint=f"Delete it, or give it the label {UID}={resource.metadata.uid}.",
            )
        return found

    @property
    def _api(self) -> Server:
        if self._server is None:
            raise AssertionError("only asked where there is a cluster")
        return self._server

    def _host(self) -> str:
        """What the label ``HOSTNAME`` of this node says; not always the node's name."""
        if time.monotonic() - self._host_since > VERIFY:
            self._host_label = self._api.node_label(self._node, HOSTNAME) or self._node
            self._host_since = time.monotonic()
        return self._host_label


def desired(
    resource: AnyResource, wish: PersistentVolume, facts: VolumeFacts, *, host: str
) -> Object:
    """The PersistentVolume of a volume.

    :param host: value of the label ``HOSTNAME`` of its node.
    :raises errors.Unsupported: kubelet has no way to mount or map such a volume.
    :raises errors.InvalidSpec: nothing says how large it is.
    """
    modes = MODES.get(facts.type, ())
    mode: str | None = wish.volume_mode or (modes[0] if modes else None)
    if mode not in modes:
        raise errors.Unsupported(
            f"A volume of type {facts.type} can't be a PersistentVolume"
            f"{f' of mode {mode}' if modes else ''}: kubelet mounts directories and block devices.",
            hint="Use a pool of block devices, or a volume of format dir.",
        )
    capacity = facts.capacity or resource.spec.capacity
    if not capacity:
        raise errors.InvalidSpec(
            "A PersistentVolume has a capacity, and this volume has none.",
            hint="Give spec.capacity.",
        )
    affinity = {"key": HOSTNAME, "operator": "In", "values": [host]}
    spec: Object = {
        "capacity": {"storage": str(capacity)},
        "accessModes": list(wish.access_modes),
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": wish.storage_class_name or "",
        "volumeMode": mode,
        "local": {"path": facts.path},
        "nodeAffinity": {
            "required": {"nodeSelectorTerms": [{"matchExpressions": [affinity]}]},
        },
    }
    if wish.claim_name is not None:
        spec["claimRef"] = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": resource.metadata.namespace,
            "name": wish.claim_name,
        }
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": _name(resource),
            "labels": {UID: resource.metadata.uid},
            "annotations": {VOLUME: f"{resource.metadata.namespace}/{resource.metadata.name}"},
        },
        "spec": spec,
    }


def published(
    resource: AnyResource, status: VolumeStatus, publication: Publication | None, *, now: str
) -> VolumeStatus:
    """The status with what became of the wish."""
    if publication is None:
        return status
    name, problem = publication.name, publication.problem
    if problem is not None:
        aspect = Aspect(
            type="Published", status="False", reason=problem.reason, message=str(problem)
        )
    elif name is None:
        return status.model_copy(update={"persistent_volume": None})
    else:
        message = f"Published as PersistentVolume {name}."
        aspect = Aspect(type="Published", status="True", reason="Published", message=message)
    (condition,) = summarising.conditions(
        resource.status.conditions, (aspect,), generation=resource.metadata.generation, now=now
    )
    return status.model_copy(
        update={"persistent_volume": name, "conditions": (*status.conditions, condition)}
    )


def _wish(resource: AnyResource) -> PersistentVolume | None:
    publish = getattr(resource.spec, "publish", None)
    wish: PersistentVolume | None = publish.persistent_volume if publish is not None else None
    return wish


def _requested(resource: AnyResource) -> bool:
    """Whether somebody asks to look now."""
    request = resource.metadata.annotations.get(REQUESTED_AT)
    return request not in (None, resource.status.last_handled_request)


def _facts(found: PoolExamination, examined: Examination) -> VolumeFacts | None:
    """What is there of a volume that is as it is to be."""
    if found.facts is None or examined.volume is None:
        return None
    if examined.plan.refusals or examined.plan.actions:
        return None
    return found.facts.volumes.get(examined.volume.name)


def _name(resource: AnyResource) -> str:
    return f"poolkeeper-{resource.metadata.uid}"


def _holder(found: Object) -> str:
    """Who has a claim on it; empty for nobody. A claim that went leaves the phase Released."""
    claim = found["spec"].get("claimRef") or {}
    phase = found.get("status", {}).get("phase", "")
    if phase == "Released" or not (claim.get("uid") or phase == "Bound"):
        return ""
    return f"{claim.get('namespace', '')}/{claim.get('name', '')} (phase {phase or 'unknown'})"


def _covers(found: object, wanted: object) -> bool:
    """Whether all that is wanted is there."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        return all(_covers(found.get(name), value) for name, value in wanted.items())
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_covers, found, wanted))
    return found == wanted or (not wanted and not found)
