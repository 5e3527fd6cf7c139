"""Mode, owner, group and label of a pool or a volume."""

from __future__ import annotations

from backends.base import PoolFacts, Verb, VolumeFacts
from backends.spec import Permissions
from controller.planning.actions import Draft


def plan_permissions(
    draft: Draft,
    verb: Verb,
    wanted: Permissions | None,
    facts: PoolFacts | VolumeFacts | None,
    *,
    prefix: str,
) -> None:
    if wanted is None or facts is None or facts.permissions is None:
        return
    seen = facts.permissions
    pairs = (
        ("mode", _octal(wanted.mode), _octal(seen.mode)),
        ("owner", wanted.owner, seen.owner),
        ("group", wanted.group, seen.group),
        ("label", wanted.label, seen.label),
    )
    different = [item for item in pairs if item[1] is not None and item[1] != item[2]]
    for name, desired, observed in different:
        draft.differ(f"{prefix}.{name}", desired, observed)
    if different:
        told = ", ".join(f"{name} {old} to {new}" for name, new, old in different)
        draft.act(verb, f"Its permissions are to change: {told}.")


def _octal(bits: int | None) -> str | None:
    return None if bits is None else f"{bits:04o}"
