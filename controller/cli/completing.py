"""What a shell offers when a word is completed."""

from __future__ import annotations

import os
from pathlib import Path

from backends import errors
from controller.cli.session import session
from controller.resources import kind_of, kinds


def words(before: list[str], incomplete: str) -> list[str]:
    """Kinds, and behind a kind the names of the resources in the store.

    Nothing is offered where the store can't be read: a shell has no place for messages.
    """
    if not before:
        return [item.plural for item in kinds().values() if item.plural.startswith(incomplete)]
    given = os.environ.get("POOLKEEPER_STATE_DIR")
    current = session(Path(given) if given else None)
    try:
        kind = kind_of(before[0])
        if not current.begun:
            return []
        with current.store() as store:
            names = {item.metadata.name for item in store.list(kind.name)}
    except errors.StorageError:
        return []
    return sorted(name for name in names if name.startswith(incomplete) and name not in before)
