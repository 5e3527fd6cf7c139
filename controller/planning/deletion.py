"""What has to be done before a resource may go, and what keeps its data."""

from __future__ import annotations

from collections.abc import Sequence

from backends import errors
from backends.base import Backend, Pool, PoolFacts, Presence, Verb, Volume
from backends.spec import Adoption, PoolDeletion, VolumeDeletion
from controller.planning.actions import Draft, Plan, VolumeDraft, named
from controller.planning.creation import wipe_lacking
from controller.planning.ownership import Owner, ownership
from controller.planning.pools import PoolHistory, other_devices


def plan_pool_deletion(
    pool: Pool,
    facts: PoolFacts,
    history: PoolHistory,
    *,
    backend: Backend,
    declared: Sequence[str],
) -> Plan:
    """What has to be done before a pool's resource may go.

    :param declared: names of volumes in the pool that resources still declare.
    """
    draft = Draft(pool=pool, backend=backend)
    policy = pool.spec.deletion_policy
    if policy is PoolDeletion.RETAIN or pool.spec.adoption is Adoption.OBSERVE:
        return draft.finish()
    if facts.presence is Presence.UNREACHABLE:
        _plan_unreachable(draft, facts, history)
        return draft.finish()
    draft.refusals.extend(other_devices(pool, facts, history))
    if facts.presence is Presence.ABSENT and facts.leftovers and policy is PoolDeletion.DELETE:
        told = f"Of what backed it {named(facts.leftovers)} is left."
        draft.act(Verb.DELETE_POOL, told, destroys=facts.leftovers)
    if facts.presence is Presence.ABSENT or draft.refusals:
        return draft.finish()
    made = facts.mark is not None and facts.mark.origin == "Created"
    ours = ownership(facts.mark, pool.uid, pool.resource, set()) in (
        Owner.SELF,
        Owner.FORMER_SELF,
    )
    if policy is PoolDeletion.DELETE and ours and made:
        others = {name if name.isprintable() else ascii(name) for name, _ in facts.skipped}
        held = sorted({*facts.volumes, *declared, *others})
        if held:
            draft.refusals.append(
                errors.DeletionRefused(
                    f"Pool {pool.name!r} still holds {named(held)}.",
                    hint="Delete or move these volumes, or set deletionPolicy Retain.",
                )
            )
            return draft.finish()
    if facts.active or (facts.active is None and history.up):
        draft.act(Verb.STOP_POOL, f"deletionPolicy is {policy}.")
    if policy is PoolDeletion.DELETE and ours and made:
        if facts.leftovers:
            draft.act(
                Verb.CLEAN_POOL,
                f"Half-made files of ours are left over: {named(facts.leftovers)}.",
            )
        place = backend.place(pool)
        draft.act(Verb.DELETE_POOL, "deletionPolicy is Delete.", destroys=[place])
    return draft.finish()


def _plan_unreachable(draft: Draft, facts: PoolFacts, history: PoolHistory) -> None:
    """What was found and not made is only stopped, for which nothing of it has to be read."""
    pool, policy = draft.pool, draft.pool.spec.deletion_policy
    if pool.type.found_only:
        if facts.active or (facts.active is None and history.up):
            told = f"deletionPolicy is {policy}, and it can't be read: {facts.detail}."
            draft.act(Verb.STOP_POOL, told)
        return
    draft.refusals.append(
        errors.Inaccessible(
            f"Pool {pool.name!r} can't be reached to {policy.lower()} it: {facts.detail}.",
            hint="Set deletionPolicy Retain to let the resource go.",
        )
    )


def plan_volume_deletion(
    pool: Pool,
    volume: Volume,
    facts: PoolFacts,
    *,
    backend: Backend,
    dependents: Sequence[str] = (),
) -> Plan:
    """What has to be done before a volume's resource may go."""
    draft = VolumeDraft(pool=pool, backend=backend, volume=volume)
    if (
        volume.spec.deletion_policy is VolumeDeletion.RETAIN
        or volume.spec.adoption is Adoption.OBSERVE
    ):
        return draft.finish()
    if facts.presence is not Presence.PRESENT:
        draft.refusals.append(
            errors.Inaccessible(
                f"Volume {volume.name!r} can't be deleted: pool {pool.name!r} can't be read"
                f"{': ' + facts.detail if facts.detail else ''}.",
                hint="Set deletionPolicy Retain to let the resource go.",
            )
        )
        return draft.finish()
    if not facts.listed:
        draft.refusals.append(
            errors.PoolNotReady(
                f"Volume {volume.name!r} can't be deleted: pool {pool.name!r} is not started.",
                hint="Start the pool, or set deletionPolicy Retain to let the resource go.",
            )
        )
        return draft.finish()
    observed = facts.volumes.get(volume.name)
    owner = ownership(observed.mark if observed else None, volume.uid, volume.resource, set())
    if observed is None or owner not in (Owner.SELF, Owner.FORMER_SELF):
        return draft.finish()
    if observed.mark is not None and observed.mark.origin == "Adopted":
        return draft.finish()
    if dependents:
        draft.refusals.append(
            errors.DeletionRefused(
                f"{observed.path} can't be deleted: {named(dependents)} stand on it.",
                hint="Delete or rebase these first, or set deletionPolicy Retain.",
            )
        )
        return draft.finish()
    wipe = volume.spec.wipe_on_delete
    if wipe is not None and observed.type != "dir":
        lacking = wipe_lacking(pool, volume)
        if lacking is not None:
            draft.refusals.append(lacking)
            return draft.finish()
        draft.act(Verb.WIPE_VOLUME, f"wipeOnDelete is {wipe.algorithm}.", destroys=[observed.path])
    draft.act(Verb.DELETE_VOLUME, "deletionPolicy is Delete.", destroys=[observed.path])
    return draft.finish()
