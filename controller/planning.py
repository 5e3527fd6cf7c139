"""From what is declared and what was observed to an ordered list of actions.

Nothing here touches the host or a store: the same input gives the same plan, so that ``plan`` on
the command line, a dry run, drift and the agent agree.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from backends import errors
from backends.base import Backend, Operation, Pool, PoolFacts, Presence, Verb, Volume, VolumeFacts
from backends.host.devices import Identity
from backends.host.marks import Mark
from backends.sizes import format_quantity
from backends.spec import (
    Adoption,
    BuildPolicy,
    Drift,
    Permissions,
    PoolDeletion,
    PoolState,
    Recreation,
    VolumeDeletion,
)


class Impact(enum.StrEnum):
    """What an action means to those who use the storage."""

    IN_PLACE = "in place"
    DISRUPTIVE = "disruptive"
    DESTRUCTIVE = "destructive"


_IMPACTS = {
    Verb.STOP_POOL: Impact.DISRUPTIVE,
    Verb.DELETE_POOL: Impact.DESTRUCTIVE,
    Verb.SHRINK_VOLUME: Impact.DESTRUCTIVE,
    Verb.WIPE_VOLUME: Impact.DESTRUCTIVE,
    Verb.DELETE_VOLUME: Impact.DESTRUCTIVE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing to do.

    :param target: what it is done to, as a person names it: the resource and its place.
    :param place: the path or name on the host alone.
    :param reason: why, in one sentence.
    :param destroys: what will be lost, by name; empty where nothing is.
    :param commands: host commands it would run; empty where it needs none.
    :param long: whether it takes so long that nothing else should wait for it.
    """

    verb: Verb
    target: str
    place: str
    reason: str
    impact: Impact
    destroys: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    long: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What has to be done, what can't be, and where the host differs from what is declared.

    :param expired: why a transient resource has to go; empty where it stays.
    """

    actions: tuple[Action, ...] = ()
    refusals: tuple[errors.StorageError, ...] = ()
    drift: tuple[Drift, ...] = ()
    expired: str = ""

    @property
    def empty(self) -> bool:
        return not (self.actions or self.refusals or self.expired)


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


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    pool: Pool
    backend: Backend
    volume: Volume | None = None
    actions: list[Action] = field(default_factory=list)
    refusals: list[errors.StorageError] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)

    def act(self, verb: Verb, reason: str, *, destroys: Sequence[str] = ()) -> None:
        resource = self.volume.resource if self.volume else self.pool.resource
        try:
            commands = self.backend.commands(verb, self.pool, self.volume)
        except errors.StorageError as error:  # it can't be done, and that is known beforehand
            self.refusals.append(error)
            return
        place = self._place()
        impact = Impact.DESTRUCTIVE if destroys else _IMPACTS.get(verb, Impact.IN_PLACE)
        self.actions.append(
            Action(
                verb=verb,
                target=f"{resource} ({place})",
                place=place,
                reason=reason,
                impact=impact,
                destroys=tuple(destroys),
                commands=commands,
                long=self.volume is not None
                and self.backend.takes_long(verb, self.pool, self.volume),
            )
        )

    def _place(self) -> str:
        if self.volume:
            return self.backend.volume_path(self.pool, self.volume.name)
        return self.backend.place(self.pool)

    def differ(self, name: str, desired: object, observed: object) -> None:
        self.drift.append(Drift(field=name, desired=_shown(desired), observed=_shown(observed)))

    def finish(self, *, expired: str = "") -> Plan:
        return Plan(
            actions=tuple(self.actions),
            refusals=tuple(self.refusals),
            drift=tuple(self.drift),
            expired=expired,
        )


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


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
    draft = _Draft(pool=pool, backend=backend)
    if conflicts:
        draft.refusals.extend(conflicts)
        return draft.finish()
    if pool.spec.transient and history.rebooted:
        return draft.finish(expired="the host was rebooted and the pool is transient")
    draft.refusals.extend(_other_devices(pool, facts, history))
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
    _plan_permissions(
        draft,
        Verb.SET_POOL_PERMISSIONS,
        pool.spec.target.permissions if pool.spec.target else None,
        facts if present else None,
        prefix="target.permissions",
    )
    if facts.leftovers and present:
        draft.act(
            Verb.CLEAN_POOL, f"Half-made files of ours are left over: {_named(facts.leftovers)}."
        )
    if facts.growth and present:
        draft.act(Verb.GROW_POOL, facts.growth)
    return _plan_state(draft, facts, history)


def _plan_unreachable(draft: _Draft, facts: PoolFacts) -> None:
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


def _other_devices(pool: Pool, facts: PoolFacts, history: PoolHistory) -> list[errors.StorageError]:
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


def _overwrites(pool: Pool, history: PoolHistory) -> bool:
    """Whether a build may destroy what it finds, which it does once in a generation."""
    policy = pool.spec.build.policy
    return policy is BuildPolicy.OVERWRITE and history.built_generation != history.generation


def _find_backing(draft: _Draft, facts: PoolFacts) -> bool:
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
    draft: _Draft, facts: PoolFacts, history: PoolHistory, live_marks: set[str]
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
    ours = _ownership(facts.mark, pool.uid, pool.resource, live_marks)
    if ours is not _Owner.NOBODY:
        if ours is _Owner.OTHER:
            draft.refusals.append(_owned_by_other(draft.backend.place(pool), facts.mark))
        elif ours is _Owner.FORMER_SELF and spec.adoption is not Adoption.OBSERVE:
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


def _plan_build(draft: _Draft, facts: PoolFacts, history: PoolHistory, *, confirmed: bool) -> None:
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


def _plan_adoption(draft: _Draft, facts: PoolFacts) -> None:
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


def _plan_state(draft: _Draft, facts: PoolFacts, history: PoolHistory) -> Plan:
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
    draft = _Draft(pool=pool, backend=backend)
    policy = pool.spec.deletion_policy
    if policy is PoolDeletion.RETAIN or pool.spec.adoption is Adoption.OBSERVE:
        return draft.finish()
    if facts.presence is Presence.UNREACHABLE:
        draft.refusals.append(
            errors.Inaccessible(
                f"Pool {pool.name!r} can't be reached to {policy.lower()} it: {facts.detail}.",
                hint="Set deletionPolicy Retain to let the resource go.",
            )
        )
        return draft.finish()
    draft.refusals.extend(_other_devices(pool, facts, history))
    if facts.presence is Presence.ABSENT and facts.leftovers and policy is PoolDeletion.DELETE:
        told = f"Of what backed it {_named(facts.leftovers)} is left."
        draft.act(Verb.DELETE_POOL, told, destroys=facts.leftovers)
    if facts.presence is Presence.ABSENT or draft.refusals:
        return draft.finish()
    made = facts.mark is not None and facts.mark.origin == "Created"
    ours = _ownership(facts.mark, pool.uid, pool.resource, set()) in (
        _Owner.SELF,
        _Owner.FORMER_SELF,
    )
    if policy is PoolDeletion.DELETE and ours and made:
        others = {name if name.isprintable() else ascii(name) for name, _ in facts.skipped}
        held = sorted({*facts.volumes, *declared, *others})
        if held:
            draft.refusals.append(
                errors.DeletionRefused(
                    f"Pool {pool.name!r} still holds {_named(held)}.",
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
                f"Half-made files of ours are left over: {_named(facts.leftovers)}.",
            )
        place = backend.place(pool)
        draft.act(Verb.DELETE_POOL, "deletionPolicy is Delete.", destroys=[place])
    return draft.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeHistory:
    """What an earlier look left in status: whether the volume has been there and ours."""

    seen: bool


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
    draft = _Draft(pool=pool, backend=backend, volume=volume)
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
            _plan_creation(draft, facts, history)
        return draft.finish()
    if _plan_volume_ownership(draft, observed, set(live_marks)):
        _plan_volume_changes(draft, observed, facts, dependents)
    return draft.finish()


def _plan_creation(draft: _Draft, facts: PoolFacts, history: VolumeHistory) -> None:
    volume = _volume(draft)
    path = draft.backend.volume_path(draft.pool, volume.name)
    if draft.pool.type.finds_volumes:
        draft.refusals.append(
            errors.Inaccessible(
                f"{path} was there and can't be seen now.",
                hint="Bring it back, or delete the resource. Nothing is taken for absent.",
            )
            if history.seen
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
    if history.seen and volume.spec.recreation is Recreation.NEVER:
        draft.differ("volumeName", volume.name, None)
        draft.refusals.append(
            errors.VolumeMissing(
                f"{path} was there and has gone, with its data.",
                hint="Bring it back, delete the resource, or set recreation IfMissing to make an "
                "empty one.",
            )
        )
        return
    lacking = _source_lacking(draft.pool, volume) or _wipe_lacking(draft.pool, volume)
    if lacking is not None:
        draft.refusals.append(lacking)
        return
    try:
        draft.backend.check_volume(draft.pool, volume)
    except errors.StorageError as error:
        draft.refusals.append(error)
        return
    if volume.source is not None and _below(volume.capacity, volume.source.capacity):
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
    if facts.available is not None and needed > facts.available:
        draft.refusals.append(
            errors.NoSpace(
                f"{path} needs {format_quantity(needed)} and pool {draft.pool.name!r} has "
                f"{format_quantity(facts.available)} left.",
                hint="Free some space, use a larger pool, or set allocation 0 for a sparse volume.",
            )
        )
        return
    filled = _filled_from(volume)
    if history.seen:
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


def _below(capacity: int | None, least: int | None) -> bool:
    return capacity is not None and least is not None and capacity < least


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


def _plan_volume_ownership(draft: _Draft, observed: VolumeFacts, live_marks: set[str]) -> bool:
    """Plan taking over; true where the volume is ours and may be changed."""
    volume = _volume(draft)
    if observed.problem:
        draft.refusals.append(
            errors.ProbeFailed(f"{observed.path}: {observed.problem}.", hint="Nothing was changed.")
        )
        return False
    if volume.spec.adoption is Adoption.OBSERVE:
        for name, desired, seen in _mismatches(draft, observed):
            draft.differ(name, desired, seen)
        return False
    owner = _ownership(observed.mark, volume.uid, volume.resource, live_marks)
    if owner is _Owner.SELF:
        return True
    if owner is _Owner.FORMER_SELF:
        return _plan_return(draft, observed)
    if owner is _Owner.OTHER:
        draft.refusals.append(_owned_by_other(observed.path, observed.mark))
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
    _plan_permissions(
        draft, Verb.SET_VOLUME_PERMISSIONS, volume.permissions, observed, prefix="permissions"
    )
    return False


def _plan_return(draft: _Draft, observed: VolumeFacts) -> bool:
    """Plan taking back what an earlier resource of this name left; true where it may be changed."""
    volume, shown = _volume(draft), _shown_format(observed)
    same_size = volume.capacity is not None and volume.capacity == observed.capacity
    if not _same_format(draft, observed) or not (_same_format(draft, shown) or same_size):
        draft.refusals.append(
            errors.AdoptionMismatch(
                f"{observed.path} is left from an earlier resource of this name and its format is "
                f"{shown.format}, declared {volume.format}.",
                hint="Declare what is there, or move it away.",
            )
        )
        return False
    draft.act(Verb.ADOPT_VOLUME, "It carries this resource's mark of an earlier life.")
    return True


def _mismatches(draft: _Draft, observed: VolumeFacts) -> list[tuple[str, str, str]]:
    """What a volume that is there would have to be to match: field, declared, observed."""
    volume = _volume(draft)
    found = []
    shown = _shown_format(observed)
    if not _same_format(draft, shown):
        found.append(("format", _shown(volume.format), _shown(shown.format)))
    declared, seen = volume.capacity, observed.capacity
    sized = declared is not None and seen is not None and volume.format != "dir"
    if sized and not _same_capacity(draft, observed):
        found.append(("capacity", format_quantity(declared or 0), format_quantity(seen or 0)))
    if volume.backing_path is not None and observed.backing_path != volume.backing_path:
        found.append(("backingStore", volume.backing_path, _shown(observed.backing_path)))
    return found


def _plan_volume_changes(
    draft: _Draft, observed: VolumeFacts, facts: PoolFacts, dependents: Sequence[str]
) -> None:
    volume = _volume(draft)
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
    _plan_permissions(
        draft, Verb.SET_VOLUME_PERMISSIONS, volume.permissions, observed, prefix="permissions"
    )


def _plan_capacity(
    draft: _Draft, observed: VolumeFacts, facts: PoolFacts, dependents: Sequence[str]
) -> None:
    volume = _volume(draft)
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
    elif _below(volume.capacity, observed.allocation) and not volume.spec.resize.allow_data_loss:
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
                f"{observed.path} can't shrink: {_named(dependents)} stand on it.",
                hint="Rebase or delete these first.",
            )
        )
    else:
        lost = f"{observed.path} past {format_quantity(volume.capacity)}"
        draft.act(Verb.SHRINK_VOLUME, f"Its capacity is to go from {told}.", destroys=[lost])


def _plan_growth(draft: _Draft, added: int, facts: PoolFacts, told: str) -> None:
    volume = _volume(draft)
    if volume.spec.resize.allocate and _below(facts.available, added):
        draft.refusals.append(
            errors.NoSpace(
                f"Volume {volume.name!r} is to have {format_quantity(added)} more set aside, and "
                f"pool {draft.pool.name!r} has {format_quantity(facts.available or 0)} left.",
                hint="Free some space, or leave resize.allocate out.",
            )
        )
        return
    draft.act(Verb.GROW_VOLUME, f"Its capacity is to go from {told}.")


def plan_volume_deletion(
    pool: Pool,
    volume: Volume,
    facts: PoolFacts,
    *,
    backend: Backend,
    dependents: Sequence[str] = (),
) -> Plan:
    """What has to be done before a volume's resource may go."""
    draft = _Draft(pool=pool, backend=backend, volume=volume)
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
    owner = _ownership(observed.mark if observed else None, volume.uid, volume.resource, set())
    if observed is None or owner not in (_Owner.SELF, _Owner.FORMER_SELF):
        return draft.finish()
    if observed.mark is not None and observed.mark.origin == "Adopted":
        return draft.finish()
    if dependents:
        draft.refusals.append(
            errors.DeletionRefused(
                f"{observed.path} can't be deleted: {_named(dependents)} stand on it.",
                hint="Delete or rebase these first, or set deletionPolicy Retain.",
            )
        )
        return draft.finish()
    wipe = volume.spec.wipe_on_delete
    if wipe is not None and observed.type != "dir":
        lacking = _wipe_lacking(pool, volume)
        if lacking is not None:
            draft.refusals.append(lacking)
            return draft.finish()
        draft.act(Verb.WIPE_VOLUME, f"wipeOnDelete is {wipe.algorithm}.", destroys=[observed.path])
    draft.act(Verb.DELETE_VOLUME, "deletionPolicy is Delete.", destroys=[observed.path])
    return draft.finish()


def _wipe_lacking(pool: Pool, volume: Volume) -> errors.Unsupported | None:
    """Why a pool type can't do what ``wipeOnDelete`` asks for."""
    if volume.spec.wipe_on_delete is None or Operation.WIPE_VOLUME in pool.type.operations:
        return None
    return errors.Unsupported(
        f"Volumes in pools of type {pool.type.name} can't be wiped.",
        hint="Leave wipeOnDelete out; to let a deleted resource go, set deletionPolicy Retain.",
    )


def _same_format(draft: _Draft, observed: VolumeFacts) -> bool:
    declared = _volume(draft).format
    if declared is None or observed.format is None:
        return True
    return draft.backend.same_format(declared, observed.format)


def _shown_format(observed: VolumeFacts) -> VolumeFacts:
    """The volume by its header alone. A declared raw volume is taken at its word once it is ours;
    before that, an image in it more likely means that the declaration is wrong."""
    return replace(observed, format=observed.header_format or observed.format)


def _same_capacity(draft: _Draft, observed: VolumeFacts) -> bool:
    """Whether the host may have made the declared capacity into this one by rounding up."""
    volume = _volume(draft)
    declared, seen = volume.capacity or 0, observed.capacity or 0
    step = observed.granularity or draft.backend.granularity(volume.format)
    return declared <= seen < declared + step


def _plan_permissions(
    draft: _Draft,
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


class _Owner(enum.Enum):
    NOBODY = "nobody"
    SELF = "self"
    FORMER_SELF = "former self"
    OTHER = "other"


def _ownership(mark: Mark | None, uid: str, resource: str, live_marks: set[str]) -> _Owner:
    """Whose a marked thing is. The mark of a resource that is no longer declared binds nobody."""
    if mark is None:
        return _Owner.NOBODY
    if mark.uid == uid:
        return _Owner.SELF
    if mark.resource == resource:
        return _Owner.FORMER_SELF
    return _Owner.OTHER if mark.resource in live_marks else _Owner.NOBODY


def _owned_by_other(place: str, mark: Mark | None) -> errors.OwnedByOther:
    return errors.OwnedByOther(
        f"{place} belongs to {mark.resource if mark else 'another resource'}.",
        hint="Delete that resource first, or choose another name.",
    )


def _named(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _volume(draft: _Draft) -> Volume:
    if draft.volume is None:
        raise AssertionError("a plan for a volume needs one")
    return draft.volume
