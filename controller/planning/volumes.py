"""A volume that is to stay: made, taken over, or changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from backends import errors
from backends.base import Backend, Pool, PoolFacts, Verb, Volume, VolumeFacts
from backends.sizes import format_quantity
from backends.spec import Adoption
from controller.planning.actions import Plan, VolumeDraft, named, shown
from controller.planning.creation import below, plan_creation, space_in_words, space_left
from controller.planning.ownership import Owner, owned_by_other, ownership
from controller.planning.permissions import plan_permissions


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeHistory:
    """What an earlier look left in status.

    :param seen: whether the volume has been there and ours.
    :param key: of it as it was then.
    """

    seen: bool
    key: str | None = None


def plan_volume(
    pool: Pool,
    volume: Volume,
    facts: PoolFacts,
    history: VolumeHistory,
    *,
    backend: Backend,
    live_marks: Iterable[str],
    dependents: Sequence[str] = (),
    conflicts: Sequence[errors.StorageError] = (),
) -> Plan:
    """What has to be done to a volume that is to stay, in a pool that runs.

    :param dependents: images that stand on this volume, by path or resource.
    """
    draft = VolumeDraft(pool=pool, backend=backend, volume=volume)
    draft.refusals.extend(conflicts)
    observed = facts.volumes.get(volume.name)
    if conflicts:
        return draft.finish()
    if observed is None:
        skipped = dict(facts.skipped).get(volume.name)
        if skipped:
            draft.refusals.append(
                errors.AlreadyExists(
                    f"{backend.volume_path(pool, volume.name)} is no volume: {skipped}.",
                    hint="Move it away, or choose another volumeName.",
                )
            )
        else:
            plan_creation(draft, facts, seen=history.seen)
        return draft.finish()
    if _plan_volume_ownership(draft, observed, history, set(live_marks)):
        _plan_volume_changes(draft, observed, facts, dependents)
    return draft.finish()


def _plan_volume_ownership(
    draft: VolumeDraft, observed: VolumeFacts, history: VolumeHistory, live_marks: set[str]
) -> bool:
    """Plan taking over; true where the volume is ours and may be changed."""
    volume = draft.volume
    if observed.problem:
        draft.refusals.append(
            errors.ProbeFailed(f"{observed.path}: {observed.problem}.", hint="Nothing was changed.")
        )
        return False
    if volume.spec.adoption is Adoption.OBSERVE:
        for name, desired, seen in _mismatches(draft, observed):
            draft.differ(name, desired, seen)
        return False
    owner = ownership(observed.mark, volume.uid, volume.resource, live_marks)
    if owner is Owner.SELF:
        return True
    if owner is Owner.FORMER_SELF:
        return _plan_return(draft, observed)
    if owner is Owner.OTHER:
        draft.refusals.append(owned_by_other(observed.path, observed.mark))
        return False
    if draft.pool.type.finds_volumes and history.seen and history.key not in (None, observed.key):
        draft.refusals.append(_another_device(volume, observed, history))
        return False
    if volume.spec.adoption is Adoption.NEVER:
        draft.refusals.append(
            errors.AlreadyExists(
                f"{observed.path} is there and was not made by Poolkeeper.",
                hint="Set adoption IfMatches to take it over, or choose another volumeName.",
            )
        )
        return False
    mismatches = _mismatches(draft, observed)
    if mismatches:
        told = "; ".join(
            f"{name} is {seen}, declared {wanted}" for name, wanted, seen in mismatches
        )
        draft.refusals.append(
            errors.AdoptionMismatch(
                f"{observed.path} is there and differs: {told}.",
                hint="Declare what is there, or move it away.",
            )
        )
        return False
    draft.act(Verb.ADOPT_VOLUME, "It is there, matches what is declared, and is nobody's.")
    plan_permissions(
        draft, Verb.SET_VOLUME_PERMISSIONS, volume.permissions, observed, prefix="permissions"
    )
    return False


def _another_device(
    volume: Volume, observed: VolumeFacts, history: VolumeHistory
) -> errors.DeviceChanged:
    return errors.DeviceChanged(
        f"Volume {volume.name!r} was {history.key}, and what is there now is {observed.key}.",
        hint="Nothing was changed. Bring the right one back, or delete the resource and declare it "
        "anew for what is there.",
    )


def _plan_return(draft: VolumeDraft, observed: VolumeFacts) -> bool:
    """Plan taking back what an earlier resource of this name left; true where it may be changed."""
    volume, by_header = draft.volume, _shown_format(observed)
    same_size = volume.capacity is not None and volume.capacity == observed.capacity
    if not _same_format(draft, observed) or not (_same_format(draft, by_header) or same_size):
        draft.refusals.append(
            errors.AdoptionMismatch(
                f"{observed.path} is left from an earlier resource of this name and its format is "
                f"{by_header.format}, declared {volume.format}.",
                hint="Declare what is there, or move it away.",
            )
        )
        return False
    draft.act(Verb.ADOPT_VOLUME, "It carries this resource's mark of an earlier life.")
    return True


def _mismatches(draft: VolumeDraft, observed: VolumeFacts) -> list[tuple[str, str, str]]:
    """What a volume that is there would have to be to match: field, declared, observed."""
    volume = draft.volume
    found = []
    by_header = _shown_format(observed)
    if not _same_format(draft, by_header):
        found.append(("format", shown(volume.format), shown(by_header.format)))
    declared, seen = volume.capacity, observed.capacity
    sized = declared is not None and seen is not None and volume.format != "dir"
    if sized and not _same_capacity(draft, observed):
        found.append(("capacity", format_quantity(declared or 0), format_quantity(seen or 0)))
    if volume.backing_path is not None and observed.backing_path != volume.backing_path:
        found.append(("backingStore", volume.backing_path, shown(observed.backing_path)))
    return found


def _plan_volume_changes(
    draft: VolumeDraft, observed: VolumeFacts, facts: PoolFacts, dependents: Sequence[str]
) -> None:
    volume = draft.volume
    if not _same_format(draft, observed):
        draft.differ("format", volume.format, observed.format)
        draft.refusals.append(
            errors.FormatChanged(
                f"{observed.path} is declared {volume.format} and its header shows "
                f"{observed.format}.",
                hint="Something else wrote to it; bring it back or delete the resource.",
            )
        )
        return
    _plan_capacity(draft, observed, facts, dependents)
    if volume.backing_path is not None and observed.backing_path != volume.backing_path:
        draft.differ("backingStore", volume.backing_path, observed.backing_path)
    for link in observed.backing_chain:
        if link.problem:
            draft.refusals.append(
                errors.BackingMissing(
                    f"{observed.path} stands on {link.path}, which can't be used: {link.problem}.",
                    hint="Bring the backing image back.",
                )
            )
    plan_permissions(
        draft, Verb.SET_VOLUME_PERMISSIONS, volume.permissions, observed, prefix="permissions"
    )


def _plan_capacity(
    draft: VolumeDraft, observed: VolumeFacts, facts: PoolFacts, dependents: Sequence[str]
) -> None:
    volume = draft.volume
    if volume.capacity is None or observed.capacity is None or volume.format == "dir":
        return
    if _same_capacity(draft, observed):
        return
    draft.differ("capacity", format_quantity(volume.capacity), format_quantity(observed.capacity))
    told = f"{format_quantity(observed.capacity)} to {format_quantity(volume.capacity)}"
    if observed.capacity < volume.capacity:
        _plan_growth(draft, volume.capacity - observed.capacity, facts, told)
    elif not volume.spec.resize.allow_shrink:
        draft.refusals.append(
            errors.ShrinkNotAllowed(
                f"{observed.path} would shrink from {told} and lose what lies past that.",
                hint="Set resize.allowShrink to allow it, or declare the larger capacity.",
            )
        )
    elif below(volume.capacity, observed.allocation) and not volume.spec.resize.allow_data_loss:
        draft.refusals.append(
            errors.ShrinkNotAllowed(
                f"{observed.path} would shrink from {told}, and has "
                f"{format_quantity(observed.allocation or 0)} allocated.",
                hint="Set resize.allowDataLoss to lose what lies past the capacity, or declare a "
                "larger one.",
            )
        )
    elif dependents:
        draft.refusals.append(
            errors.InUse(
                f"{observed.path} can't shrink: {named(dependents)} stand on it.",
                hint="Rebase or delete these first.",
            )
        )
    else:
        lost = f"{observed.path} past {format_quantity(volume.capacity)}"
        draft.act(Verb.SHRINK_VOLUME, f"Its capacity is to go from {told}.", destroys=[lost])


def _plan_growth(draft: VolumeDraft, added: int, facts: PoolFacts, told: str) -> None:
    volume = draft.volume
    if volume.spec.resize.allocate and below(space_left(facts), added):
        draft.refusals.append(
            errors.NoSpace(
                f"Volume {volume.name!r} is to have {format_quantity(added)} more set aside, and "
                f"pool {draft.pool.name!r} has {space_in_words(facts)}.",
                hint="Free some space, or leave resize.allocate out.",
            )
        )
        return
    draft.act(Verb.GROW_VOLUME, f"Its capacity is to go from {told}.")


def _same_format(draft: VolumeDraft, observed: VolumeFacts) -> bool:
    declared = draft.volume.format
    if declared is None or observed.format is None:
        return True
    return draft.backend.same_format(declared, observed.format)


def _shown_format(observed: VolumeFacts) -> VolumeFacts:
    """The volume by its header alone. A declared raw volume is taken at its word once it is ours;
    before that, an image in it more likely means that the declaration is wrong."""
    return replace(observed, format=observed.header_format or observed.format)


def _same_capacity(draft: VolumeDraft, observed: VolumeFacts) -> bool:
    """Whether the host may have made the declared capacity into this one by rounding up."""
    volume = draft.volume
    declared, seen = volume.capacity or 0, observed.capacity or 0
    step = observed.granularity or draft.backend.granularity(volume.format)
    return declared <= seen < declared + step
