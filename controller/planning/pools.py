"""A pool that is to stay: built or taken over, started or stopped, and its device no other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from backends import errors
from backends.base import Backend, Pool, PoolFacts, Presence, Verb
from backends.host.devices import Identity
from backends.spec import Adoption, BuildPolicy, PoolState
from controller.planning.actions import Draft, Plan, named
from controller.planning.ownership import Owner, owned_by_other, ownership
from controller.planning.permissions import plan_permissions


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolHistory:
    """What an earlier look left in status.

    :param generation: of the spec now.
    :param observed_generation: of the spec at that look.
    :param built: whether the backing has been there and ours.
    :param built_generation: generation at which it was last built or taken over.
    :param started_boot: boot of the host in which the pool was last started; empty for never.
    :param running: whether it was running.
    :param boot: boot of the host now.
    :param devices: those that the pool stood on.
    """

    generation: int
    observed_generation: int
    built: bool
    built_generation: int | None
    started_boot: str
    running: bool
    boot: str
    devices: tuple[Identity, ...] = ()

    @property
    def rebooted(self) -> bool:
        return bool(self.started_boot) and self.started_boot != self.boot

    @property
    def up(self) -> bool:
        """Whether it was started in this boot, and not stopped since."""
        return self.running and self.started_boot == self.boot


def plan_pool(
    pool: Pool,
    facts: PoolFacts,
    history: PoolHistory,
    *,
    backend: Backend,
    live_marks: Iterable[str],
    conflicts: Sequence[errors.StorageError] = (),
) -> Plan:
    """What has to be done to a pool that is to stay.

    :param live_marks: resources that are declared now; a mark of another one binds nobody.
    :param conflicts: claims of other resources that came first.
    """
    draft = Draft(pool=pool, backend=backend)
    if conflicts:
        draft.refusals.extend(conflicts)
        return draft.finish()
    if pool.spec.transient and history.rebooted:
        return draft.finish(expired="the host was rebooted and the pool is transient")
    draft.refusals.extend(other_devices(pool, facts, history))
    if draft.refusals:
        return draft.finish()
    if _replaced(pool, facts, history):
        history = replace(history, built=False)
    if facts.presence is Presence.UNREACHABLE:
        _plan_unreachable(draft, facts)
        return draft.finish()
    if pool.type.found_only:
        present = _find_backing(draft, facts)
    else:
        present = _plan_backing(draft, facts, history, set(live_marks))
    if draft.refusals or pool.spec.adoption is Adoption.OBSERVE:
        return draft.finish()
    plan_permissions(
        draft,
        Verb.SET_POOL_PERMISSIONS,
        pool.spec.target.permissions if pool.spec.target else None,
        facts if present else None,
        prefix="target.permissions",
    )
    if facts.leftovers and present:
        draft.act(
            Verb.CLEAN_POOL, f"Half-made files of ours are left over: {named(facts.leftovers)}."
        )
    if facts.growth and present:
        draft.act(Verb.GROW_POOL, facts.growth)
    return _plan_state(draft, facts, history)


def _plan_unreachable(draft: Draft, facts: PoolFacts) -> None:
    """What gives nothing but errors can be stopped, and nothing else be done to it."""
    pool, spec = draft.pool, draft.pool.spec
    to_stop = spec.state is PoolState.INACTIVE and spec.adoption is not Adoption.OBSERVE
    if facts.active and to_stop:
        draft.act(Verb.STOP_POOL, f"It is to be inactive, and can't be read: {facts.detail}.")
        return
    draft.refusals.append(
        errors.Inaccessible(
            f"Pool {pool.name!r} can't be reached: {facts.detail}.",
            hint="Nothing is taken for absent; the pool is tried again.",
        )
    )


def _overwrites(pool: Pool, history: PoolHistory) -> bool:
    """Whether a build may destroy what it finds, which it does once in a generation."""
    policy = pool.spec.build.policy
    return policy is BuildPolicy.OVERWRITE and history.built_generation != history.generation


def _find_backing(draft: Draft, facts: PoolFacts) -> bool:
    """Whether a backing is there that is found and not made, and so is nobody's to own."""
    if facts.presence is Presence.PRESENT:
        return True
    draft.refusals.append(
        errors.NotFound(
            f"{draft.backend.place(draft.pool)} is not there: {facts.detail}.",
            hint="It is tried again.",
        )
    )
    return False


_STAND_IN_HINTS = {
    False: "A mount may be missing or covered. To use what is there now, set build.policy "
    "Overwrite and build.confirm to the pool's name.",
    True: "Bring back what stood there. To use what is there now, declare the identity of its "
    "device; to destroy it, set build.policy Overwrite and build.confirm to the pool's name.",
}
"""What to do about a stand-in for the pool's backing, by whether it would be destroyed."""


def _replaced(pool: Pool, facts: PoolFacts, history: PoolHistory) -> bool:
    """Whether another device than before is there, which the spec names by its identity."""
    known = {item.path: item for item in history.devices}
    wanted = {item.path: item.identity for item in pool.devices}
    return any(
        wanted.get(seen.path) and seen.path in known and seen.differences(known[seen.path])
        for seen in facts.devices
    )


def _plan_backing(
    draft: Draft, facts: PoolFacts, history: PoolHistory, live_marks: set[str]
) -> bool:
    """Plan building or taking over; true where the backing is there already."""
    pool, spec = draft.pool, draft.pool.spec
    confirmed = _overwrites(pool, history)
    if confirmed and spec.build.confirm != pool.name:
        draft.refusals.append(
            errors.OverwriteRefused(
                f"build.confirm says {spec.build.confirm!r} and the pool's name is {pool.name!r}.",
                hint="Give the pool's name to allow Overwrite.",
            )
        )
        return False
    if facts.presence is Presence.ABSENT:
        _plan_build(draft, facts, history, confirmed=confirmed)
        return False
    ours = ownership(facts.mark, pool.uid, pool.resource, live_marks)
    if ours is not Owner.NOBODY:
        if ours is Owner.OTHER:
            draft.refusals.append(owned_by_other(draft.backend.place(pool), facts.mark))
        elif ours is Owner.FORMER_SELF and spec.adoption is not Adoption.OBSERVE:
            draft.act(Verb.ADOPT_POOL, "It carries this resource's mark of an earlier life.")
        return True
    if history.built and not confirmed and spec.adoption is not Adoption.OBSERVE:
        draft.refusals.append(
            errors.Inaccessible(
                f"What stands at {draft.backend.place(pool)} does not carry the mark of pool "
                f"{pool.name!r}, which stood there.",
                hint=_STAND_IN_HINTS[bool(facts.data_found)],
            )
        )
        return True
    if confirmed and facts.data_found and spec.adoption is not Adoption.OBSERVE:
        destroyed = f"{facts.data_found} at {draft.backend.place(pool)}"
        draft.act(Verb.BUILD_POOL, "build.policy is Overwrite.", destroys=[destroyed])
        return False
    _plan_adoption(draft, facts)
    return True


def _plan_build(draft: Draft, facts: PoolFacts, history: PoolHistory, *, confirmed: bool) -> None:
    pool, spec = draft.pool, draft.pool.spec
    place = draft.backend.place(pool)
    if spec.adoption is Adoption.OBSERVE or spec.build.policy is BuildPolicy.NEVER:
        why = "adoption Observe" if spec.adoption is Adoption.OBSERVE else "build.policy Never"
        draft.refusals.append(
            errors.NotFound(
                f"{place} is not there, and {why} forbids to make it.",
                hint="Make it by hand, or change the policy.",
            )
        )
    elif history.built and not confirmed:
        draft.refusals.append(
            errors.Inaccessible(
                f"{place} was there and has gone; it is not made anew: its data may come back.",
                hint="Bring it back (is a mount missing?), or set build.policy Overwrite and "
                "build.confirm to the pool's name to begin again.",
            )
        )
    elif facts.data_found and not confirmed:
        draft.refusals.append(
            errors.OverwriteRefused(
                f"{place} can't be made: {facts.data_found}.",
                hint="Nothing was changed. Use blank devices, or set build.policy Overwrite and "
                "build.confirm to the pool's name to destroy what is there.",
            )
        )
    elif spec.state is PoolState.ACTIVE:
        destroys = [facts.data_found] if facts.data_found else []
        draft.act(Verb.BUILD_POOL, "It is not there.", destroys=destroys)


def _plan_adoption(draft: Draft, facts: PoolFacts) -> None:
    place = draft.backend.place(draft.pool)
    adoption = draft.pool.spec.adoption
    if not facts.adoptable:
        draft.refusals.append(
            errors.OverwriteRefused(
                f"{place} holds {facts.data_found}, which is not what is declared.",
                hint="Nothing was changed. Name another device; or, to destroy what is there, set "
                "build.policy Overwrite and build.confirm to the pool's name.",
            )
        )
    elif adoption is Adoption.NEVER:
        draft.refusals.append(
            errors.AlreadyExists(
                f"{place} is there and was not made by Poolkeeper.",
                hint="Set adoption IfMatches to take it over, or use another place.",
            )
        )
    elif adoption is Adoption.IF_MATCHES:
        draft.act(Verb.ADOPT_POOL, f"{place} is there and nobody's.")


def _plan_state(draft: Draft, facts: PoolFacts, history: PoolHistory) -> Plan:
    spec = draft.pool.spec
    running = facts.active
    if running is None:
        running = history.up
    down_since_boot = (
        not spec.autostart
        and history.rebooted
        and history.generation == history.observed_generation
    )
    wanted = spec.state is PoolState.ACTIVE and not down_since_boot
    if wanted and not running:
        draft.act(Verb.START_POOL, "It is to be active.")
    elif running and not wanted:
        draft.act(Verb.STOP_POOL, "It is to be inactive.")
    if spec.transient and not wanted and history.started_boot:
        return draft.finish(expired="it was stopped and is transient")
    return draft.finish()


def other_devices(pool: Pool, facts: PoolFacts, history: PoolHistory) -> list[errors.StorageError]:
    """A refusal for each device that is not the one it was, or is declared to be."""
    known = {item.path: item for item in history.devices}
    wanted = {item.path: item.identity for item in pool.devices}
    refusals: list[errors.StorageError] = []
    for seen in facts.devices:
        told: tuple[str, ...] = ()
        identity, before = wanted.get(seen.path), known.get(seen.path)
        if identity is not None and not seen.answers_to(identity):
            told = (f"its identity is declared as {identity!r}, and {seen}",)
        elif identity is None and before is not None:
            told = seen.differences(before, contents=not _overwrites(pool, history))
        if told:
            refusals.append(
                errors.DeviceChanged(
                    f"{seen.path} is not the device of pool {pool.name!r}: {'; '.join(told)}.",
                    hint="Nothing was changed. Bring the right device back, or declare the "
                    "identity of the one that is to be used.",
                )
            )
    return refusals
