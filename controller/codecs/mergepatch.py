"""JSON merge patches (RFC 7386): the difference of two objects, and its application."""

from __future__ import annotations

from typing import Any


def difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The merge patch (RFC 7386) that makes ``new`` of ``old``; neither holds None."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        former = old.get(key)
        if isinstance(value, dict) and isinstance(former, dict):
            below = difference(former, value)
            if below:
                patch[key] = below
        elif former != value:
            patch[key] = value
    return patch


def merge(target: Any, patch: Any) -> Any:
    """``target`` with a merge patch applied (RFC 7386); the arguments are left as they are."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged
