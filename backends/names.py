"""Names of pools and volumes, checked where they enter."""

from __future__ import annotations

import unicodedata

from backends import errors

MAX_NAME_BYTES = 255
"""NAME_MAX of Linux file systems."""

RESERVED_PREFIX = ".poolkeeper"
"""Names that start so are ours: the staging directory of a pool, and what stands in it."""


def check_name(name: str, *, what: str) -> str:
    """Return ``name`` if it may stand as one path component and as an argument of a command.

    :param what: what it names, for the message: ``pool name``, ``volume name``.
    :raises errors.InvalidSpec: with the first reason that forbids it.
    """
    problem = _problem(name)
    if problem:
        shown = repr(name if len(name) <= 60 else f"{name[:60]}...")
        raise errors.InvalidSpec(
            f"The {what} {shown} {problem}.",
            hint=f"A {what} is 1 to {MAX_NAME_BYTES} bytes, without '/' or control characters, "
            "and does not start with '-'.",
        )
    return name


def _problem(name: str) -> str:
    if not name:
        return "is empty"
    if name in (".", ".."):
        return "is a directory entry of its own meaning"
    if "/" in name:
        return "has a '/'"
    if name.startswith("-"):
        return "starts with '-' and could be taken for an option"
    if name.startswith(RESERVED_PREFIX):
        return f"starts with {RESERVED_PREFIX!r}, which is reserved"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "has a control character"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"is {len(name.encode())} bytes long"
    return ""


def staged_name(uid: str) -> str:
    """The reserved name under which the volume of a resource is made where names have to be short,
    as in device mapper (127 bytes) and gpt (36 letters)."""
    return f"{RESERVED_PREFIX}.{uid.replace('-', '')[:16]}"
