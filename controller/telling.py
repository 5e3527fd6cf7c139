"""What is worth an event when a resource was looked at: news, and never what was told before."""

from __future__ import annotations

from typing import NamedTuple

from backends.spec import StatusBase
from controller import summarising
from controller.resources import AnyResource
from controller.store import EventType


class News(NamedTuple):
    """What an event says."""

    type: EventType
    reason: str
    message: str


def of_birth(resource: AnyResource) -> list[News]:
    """Before the first look at what is declared.

    A volume's declaration has no event: its contents have, and twice the events of an apply of many
    volumes would tell nobody more.
    """
    if (
        resource.kind.name != "StoragePool"
        or resource.deleting
        or resource.status.observed_generation > 0
    ):
        return []
    return [News("Normal", "Defined", f"Declared as {resource.spec.type}.")]


def of_look(resource: AnyResource, status: StatusBase) -> list[News]:
    """After a look: what is in its status now and was not before."""
    return [
        *_trouble(resource.status, status),
        *_drift(resource.status, status),
        *_shortage(resource.status, status),
        *_request(resource.status, status),
        *_publication(resource.status, status),
    ]


def _trouble(former: StatusBase, status: StatusBase) -> list[News]:
    """A problem that was not there at the last look, or one that went."""
    before = summarising.condition(former, "Ready")
    after = summarising.condition(status, "Ready")
    if after is None or (
        before and (before.reason, before.message) == (after.reason, after.message)
    ):
        return []
    if after.status == "False":  # work that goes on is no trouble
        progressing = after.reason == summarising.PROGRESSING
        return [] if progressing else [News("Warning", after.reason, after.message)]
    if before is not None and before.status == "False":
        return [News("Normal", "Ready", after.message)]
    return []


def _drift(former: StatusBase, status: StatusBase) -> list[News]:
    if not status.drift or status.drift == former.drift:
        return []
    found = summarising.condition(status, "InSync")
    return [News("Warning", "Drifted", found.message)] if found is not None else []


def _shortage(former: StatusBase, status: StatusBase) -> list[News]:
    """Something that runs full, each time that it is fuller than it was known to be."""
    before = summarising.condition(former, summarising.NEARLY_FULL)
    after = summarising.condition(status, summarising.NEARLY_FULL)
    if after is None or (before is not None and before.reason >= after.reason):
        return []  # Above80Percent and so on are in order
    return [News("Warning", summarising.NEARLY_FULL, after.message)]


def _request(former: StatusBase, status: StatusBase) -> list[News]:
    """A request to look now that was seen to."""
    request = status.last_handled_request
    if request is None or request == former.last_handled_request:
        return []
    return [News("Normal", "Refreshed", f"Looked at as requested: {request}.")]


def _publication(former: StatusBase, status: StatusBase) -> list[News]:
    before = getattr(former, "persistent_volume", None)
    after = getattr(status, "persistent_volume", None)
    if before == after:
        return []
    if after is None:
        return [News("Normal", "Withdrawn", f"PersistentVolume {before} has gone.")]
    return [News("Normal", "Published", f"PersistentVolume {after} stands for it.")]
