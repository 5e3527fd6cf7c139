"""How tools that wait for resources read them: the rules of kstatus, in small.

kstatus is the library of sigs.k8s.io/cli-utils that `kubectl wait`-like tools (Flux, kpt, Argo's
health checks in the same spirit) share. Its rules for a kind that it does not know: a deletion
timestamp is Terminating; an observed generation other than the generation is in progress; then
Reconciling, Stalled, and Ready decide in this order, and what says nothing of all this is Current.
"""

from __future__ import annotations

import enum
from typing import Any


class Status(enum.Enum):
    IN_PROGRESS = "InProgress"
    FAILED = "Failed"
    CURRENT = "Current"
    TERMINATING = "Terminating"
    NOT_FOUND = "NotFound"


def kstatus(document: dict[str, Any] | None) -> Status:
    """The status of an object as the API server gives it; None for one that is not there."""
    if document is None:
        return Status.NOT_FOUND
    metadata, status = document["metadata"], document.get("status", {})
    if "deletionTimestamp" in metadata:
        return Status.TERMINATING
    observed = status.get("observedGeneration")
    if observed is not None and observed != metadata.get("generation"):
        return Status.IN_PROGRESS
    truths = {item["type"]: item["status"] for item in status.get("conditions", [])}
    if truths.get("Reconciling") == "True":
        return Status.IN_PROGRESS
    if truths.get("Stalled") == "True":
        return Status.FAILED
    if truths.get("Ready", "True") != "True":
        return Status.IN_PROGRESS
    return Status.CURRENT
