"""Manifests that a command is given."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from backends import errors
from backends.schema import violations
from controller.cli.printing import report_all, say
from controller.resources import AnyResource, Declared, Key, kinds
from controller.sources.base import Snapshot
from controller.sources.files import read_paths
from controller.store import Store, as_bound, check_deleting


def read(paths: Sequence[str], store: Store, *, pool: str = "") -> Snapshot:
    """Read files and folders, and report what is wrong with them.

    :param pool: the pool, by name, of XML volumes that stand in no pool's folder.
    :raises errors.InvalidManifest: nothing is wrong with them, and nothing is in them.
    """
    if not paths:
        raise typer.BadParameter("Give a file or folder of manifests with -f, or - for input.")
    known = store.list(kind="StoragePool")
    chosen = store.get(Key("StoragePool", "", pool)) if pool else None
    if pool and chosen is None:
        raise errors.PoolNotFound(
            f"There is no pool {pool!r} in the store.", hint="Apply its manifest first."
        )
    snapshot = read_paths(paths, pool=chosen, known=known)
    report_all(snapshot.problems)
    if not snapshot.declared and not snapshot.problems:
        raise errors.InvalidManifest(
            f"No resource is declared in {', '.join(paths)}.", hint="Declare at least one."
        )
    return snapshot


def why_refused(declared: Declared, former: AnyResource | None) -> errors.StorageError | None:
    """Why the store would not take it, as the store itself says it."""
    if former is not None:
        declared = as_bound(declared, former)
        try:
            check_deleting(declared, former)
        except errors.Conflict as error:
            return error
    broken = list(violations(declared.spec, former.spec if former else None))
    if not broken:
        return None
    what = "; ".join(f"{item.path}: {item.message}" for item in broken)
    return errors.InvalidSpec(f"{declared.key}: {what}.")


def in_order(declared: Sequence[Declared]) -> list[Declared]:
    """Pools before the volumes in them; else as they stand in the files."""
    order = {name: place for place, name in enumerate(kinds())}
    return sorted(declared, key=lambda item: order[item.kind.name])


def place_of(declared: Declared) -> str:
    """``file:line`` of a declaration, for messages."""
    return f"{declared.file or 'standard input'}:{declared.line}"


def nothing_applied() -> None:
    say("Nothing was applied: with --strict all manifests have to be sound.", "red")
