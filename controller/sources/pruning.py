"""Which resources go because their source does not declare them any more.

Pruning is asked for by the user of a source, and holds back where it might be a mistake: an
incomplete or empty snapshot, or more deletions at once than the threshold allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from controller.resources import PRUNE, AnyResource, Key, kinds
from controller.sources.base import Snapshot

DISABLED = "disabled"
"""The value of the annotation ``poolkeeper.dev/prune`` that keeps a resource."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The most that may be pruned at once: the smaller of the two.

    :param count: resources.
    :param percent: of the resources of the source, rounded up, so that one of two may go.
    """

    count: int = 10
    percent: float = 30

    def allowed(self, total: int) -> int:
        return min(self.count, math.ceil(total * self.percent / 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What to delete.

    :param refused: why nothing is deleted although something is missing; empty otherwise.
    """

    delete: tuple[Key, ...] = ()
    refused: str = ""


def prunable(
    resources: Iterable[AnyResource], snapshot: Snapshot, threshold: Threshold | None = None
) -> Pruning:
    """The resources to delete, those that stand on others first.

    :param resources: all resources that the store has from the snapshot's source. Those being
        deleted already count for the total only.
    """
    limit = threshold or Threshold()
    present = list(resources)
    declared = {item.key for item in snapshot.declared}
    gone = [item for item in present if item.key not in declared and _may_go(item)]
    if not gone:
        return Pruning()
    refused = _refusal(snapshot, len(gone), len(present), limit)
    if refused:
        return Pruning(refused=refused)
    order = {name: place for place, name in enumerate(reversed(kinds()))}
    keys = sorted((item.key for item in gone), key=lambda key: (order[key.kind], key))
    return Pruning(delete=tuple(keys))


def _may_go(resource: AnyResource) -> bool:
    return not resource.deleting and resource.metadata.annotations.get(PRUNE) != DISABLED


def _refusal(snapshot: Snapshot, gone: int, total: int, threshold: Threshold) -> str:
    if not snapshot.complete:
        return f"{snapshot.origin} can't be read in full: {snapshot.reason}"
    if not snapshot.declared:
        return f"{snapshot.origin} declares nothing at all."
    allowed = threshold.allowed(total)
    if gone > allowed:
        return (
            f"{gone} of the {total} resources of {snapshot.origin} are no longer declared, and at "
            f"most {allowed} may go at once ({threshold.count}, or {threshold.percent:g} %). "
            "Delete some by hand, or raise the threshold."
        )
    return ""
