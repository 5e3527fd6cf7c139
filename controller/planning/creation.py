"""A volume that is not there: made, empty or from a source, where that is allowed."""

from __future__ import annotations

from backends import errors
from backends.base import Operation, Pool, PoolFacts, Verb, Volume
from backends.sizes import format_quantity
from backends.spec import Adoption, Recreation
from controller.planning.actions import VolumeDraft


def plan_creation(draft: VolumeDraft, facts: PoolFacts, *, seen: bool) -> None:
    """Plan making a volume; ``seen`` says that it was there and ours before."""
    volume = draft.volume
    path = draft.backend.volume_path(draft.pool, volume.name)
    if draft.pool.type.finds_volumes:
        draft.refusals.append(
            errors.Inaccessible(
                f"{path} was there and can't be seen now.",
                hint="Bring it back, or delete the resource. Nothing is taken for absent.",
            )
            if seen
            else errors.Unsupported(
                f"There is no volume {volume.name!r} in pool {draft.pool.name!r}: volumes of type "
                f"{draft.pool.type.name} are found and not made.",
                hint="Correct volumeName, or have the volume made where the pool finds it.",
            )
        )
        return
    if volume.spec.adoption is Adoption.OBSERVE:
        draft.refusals.append(
            errors.NotFound(
                f"{path} is not there, and adoption Observe forbids to make it.",
                hint="Make it by hand, or change the policy.",
            )
        )
        return
    if seen and volume.spec.recreation is Recreation.NEVER:
        draft.differ("volumeName", volume.name, None)
        draft.refusals.append(
            errors.VolumeMissing(
                f"{path} was there and has gone, with its data.",
                hint="Bring it back, delete the resource, or set recreation IfMissing to make an "
                "empty one.",
            )
        )
        return
    lacking = _source_lacking(draft.pool, volume) or wipe_lacking(draft.pool, volume)
    if lacking is not None:
        draft.refusals.append(lacking)
        return
    try:
        draft.backend.check_volume(draft.pool, volume)
    except errors.StorageError as error:
        draft.refusals.append(error)
        return
    if volume.source is not None and below(volume.capacity, volume.source.capacity):
        draft.refusals.append(
            errors.InvalidSpec(
                f"{path} is to have {format_quantity(volume.capacity or 0)}, and "
                f"{volume.source.resource}, of which it is a clone, has "
                f"{format_quantity(volume.source.capacity or 0)}.",
                hint="Give a capacity that is not smaller, or leave it out.",
            )
        )
        return
    needed = draft.backend.space_needed(draft.pool, volume)
    if below(space_left(facts), needed):
        draft.refusals.append(
            errors.NoSpace(
                f"{path} needs {format_quantity(needed)} and pool {draft.pool.name!r} has "
                f"{space_in_words(facts)}.",
                hint="Free some space, use a larger pool, or set allocation 0 for a sparse volume.",
            )
        )
        return
    filled = _filled_from(volume)
    if seen:
        draft.differ("volumeName", volume.name, None)
        draft.act(Verb.CREATE_VOLUME, f"It has gone, and recreation is IfMissing.{filled}")
    else:
        draft.act(Verb.CREATE_VOLUME, f"It is declared and not there.{filled}")


def _source_lacking(pool: Pool, volume: Volume) -> errors.Unsupported | None:
    """Why a pool type can't make a volume from its source: blank it would be another one."""
    source = volume.spec.source
    if source is None or source.upload is not None:
        return None
    needed = Operation.CLONE_VOLUME if source.clone is not None else Operation.IMPORT_VOLUME
    if needed in pool.type.operations:
        return None
    return errors.Unsupported(
        f"Pools of type {pool.type.name} can't make volumes from a source.",
        hint="Make it in a pool of another type.",
    )


def wipe_lacking(pool: Pool, volume: Volume) -> errors.Unsupported | None:
    """Why a pool type can't do what ``wipeOnDelete`` asks for."""
    if volume.spec.wipe_on_delete is None or Operation.WIPE_VOLUME in pool.type.operations:
        return None
    return errors.Unsupported(
        f"Volumes in pools of type {pool.type.name} can't be wiped.",
        hint="Leave wipeOnDelete out; to let a deleted resource go, set deletionPolicy Retain.",
    )


def _filled_from(volume: Volume) -> str:
    """Where the contents of a new volume come from, in a sentence; empty for nowhere."""
    source = volume.spec.source
    if volume.source is not None:
        return f" It is filled from {volume.source.resource}."
    if source is not None and source.file is not None:
        return f" It is filled from {source.file.path}."
    if source is not None and source.http is not None:
        return f" It is filled from {source.http.shown_url}."
    return ""


def space_left(facts: PoolFacts) -> int | None:
    """Bytes that nothing under way needs; None where that is not known."""
    return None if facts.available is None else max(0, facts.available - facts.spoken_for)


def space_in_words(facts: PoolFacts) -> str:
    """``20Gi left``, and how much of that is for what is under way."""
    told = f"{format_quantity(facts.available or 0)} left"
    if facts.spoken_for:
        told += f", of which what is under way needs {format_quantity(facts.spoken_for)}"
    return told


def below(capacity: int | None, least: int | None) -> bool:
    """Whether a size is known to be smaller than another."""
    return capacity is not None and least is not None and capacity < least
