"""Whose a thing on the host is, by the mark that it carries."""

from __future__ import annotations

import enum

from backends import errors
from backends.host.marks import Mark


class Owner(enum.Enum):
    NOBODY = "nobody"
    SELF = "self"
    FORMER_SELF = "former self"
    OTHER = "other"


def ownership(mark: Mark | None, uid: str, resource: str, live_marks: set[str]) -> Owner:
    """Whose a marked thing is. The mark of a resource that is no longer declared binds nobody."""
    if mark is None:
        return Owner.NOBODY
    if mark.uid == uid:
        return Owner.SELF
    if mark.resource == resource:
        return Owner.FORMER_SELF
    return Owner.OTHER if mark.resource in live_marks else Owner.NOBODY


def owned_by_other(place: str, mark: Mark | None) -> errors.OwnedByOther:
    return errors.OwnedByOther(
        f"{place} belongs to {mark.resource if mark else 'another resource'}.",
        hint="Delete that resource first, or choose another name.",
    )
