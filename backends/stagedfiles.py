"""What stands in a pool's staging directory: what is being made, and uploads that broke off.

A name there begins with the uid of the volume that it is for.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from backends.host import staging
from backends.host.files import Directory

UPLOAD = ".upload"
"""How names end under which an upload that broke off waits for its rest."""

UNFINISHED_FOR = 24 * 3600.0
"""Seconds for which it is kept."""


class StagedFiles:
    """Names in staging directories that threads of this process work on. Safe for threads."""

    def __init__(self) -> None:
        self._working: set[tuple[int, int, str]] = set()
        """With the identity of the pool's directory."""

    @contextmanager
    def name(self, directory: Directory, uid: str, ending: str = "") -> Iterator[str]:
        """A name that no leftover is taken for while the context lasts.

        :param ending: left out for one that no other attempt uses, nor a command that outlived it.
        """
        name = f"{uid}{ending or '.' + secrets.token_hex(4)}"
        entry = (*_identity(directory), name)
        self._working.add(entry)
        try:
            yield name
        finally:
            self._working.discard(entry)

    def leftovers(self, directory: Directory) -> tuple[str, ...]:
        """What nobody works on and nobody comes back to; an empty staging directory counts too."""
        place = _identity(directory)
        if not directory.exists(staging.NAME):
            return ()
        staged = staging.listed(directory)
        working = self._working.copy()  # other threads add to it, for other pools
        if not staged and not any(entry[:2] == place for entry in working):
            return (staging.NAME,)
        idle = [name for name in staged if (*place, name) not in working]
        kept = _kept_uploads(directory, idle)
        return tuple(name for name in idle if name not in kept)


def upload_name(uid: str) -> str:
    """Where what came of an upload to a volume stands."""
    return f"{uid}{UPLOAD}"


def size_of_upload(directory: Directory, uid: str) -> int:
    """Bytes that are kept of an upload to a volume that broke off."""
    name = upload_name(uid)
    if not directory.exists(staging.NAME):
        return 0
    with staging.opened(directory) as stage:
        return stage.stat(name).st_size if stage.exists(name) else 0


def discard_uploads(directory: Directory, uid: str = "") -> None:
    """Remove what is kept of uploads that broke off: all of it, or that of one volume."""
    if not directory.exists(staging.NAME):
        return
    with staging.opened(directory) as stage:
        for name in stage.names():
            if name.endswith(UPLOAD) and uid in ("", name.removesuffix(UPLOAD)):
                staging.discard(stage, name)


def _kept_uploads(directory: Directory, names: Sequence[str]) -> set[str]:
    with directory.open_directory(staging.NAME) as stage:
        return {
            name
            for name in names
            if name.endswith(UPLOAD)
            and stage.exists(name)
            and time.time() - stage.stat(name).st_mtime < UNFINISHED_FOR
        }


def _identity(directory: Directory) -> tuple[int, int]:
    facts = os.fstat(directory.fd)
    return facts.st_dev, facts.st_ino
