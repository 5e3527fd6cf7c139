"""What is there, beside what is declared: the part of a pass that changes nothing."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field, replace

from backends import errors
from backends.base import (
    Backend,
    BackendContext,
    Pool,
    PoolFacts,
    Presence,
    Verb,
    Volume,
)
from backends.host.devices import Identity
from backends.registry import pool_type
from backends.spec import Adoption, PoolState, PoolStatus
from controller import planning
from controller.choosing import Chooser
from controller.jobs import Job, Jobs, busy
from controller.planning import Plan, PoolHistory, VolumeHistory
from controller.resources import AnyResource, Key
from controller.worlds import UNBOUND, World, pool_name, volume_name


@dataclass(slots=True)
class Examination:
    """A resource, how its backend sees it, and what has to be done."""

    resource: AnyResource
    plan: Plan = field(default_factory=Plan)
    volume: Volume | None = None
    suspended: bool = False
    stands_on: tuple[Key, ...] = ()
    """Volumes that have to be there before it can be made."""
    dependents: tuple[str, ...] = ()
    """What stands on it."""
    reads: frozenset[Key] = frozenset()
    """Volumes whose contents are read to make it."""
    job: Job | None = None
    """What works on it now."""
    failed: errors.StorageError | None = None
    """What the last job on it failed with, as long as it is not to be tried again."""
    queued: bool = False
    """Whether its job waits for room."""
    passing: bool = False
    """Whether what was observed of it is the half of a wipe or an upload."""

    @property
    def actionable(self) -> bool:
        """Whether its plan is to be carried out now."""
        idle = self.job is None and self.failed is None
        return bool(self.plan.actions) and idle and not self.suspended

    @property
    def purpose(self) -> object:
        """What its making works towards. A change of anything else is made afterwards."""
        if self.volume is None:
            return None
        spec = self.volume.spec.model_dump(exclude=_LATER)
        return spec, self.volume.capacity, self.volume.backing_path, self.resource.deleting


_LATER = {
    "node_name", "permissions", "resize", "adoption", "recreation", "deletion_policy", "suspend",
    "publish",
}  # fmt: skip
"""Fields of a volume's spec that don't matter while it is being made."""

_DISTURBING = frozenset(
    {Verb.GROW_VOLUME, Verb.SHRINK_VOLUME, Verb.WIPE_VOLUME, Verb.DELETE_VOLUME}
)
"""What can't be done to a volume while it is read."""

_OF_CONTENTS = (errors.ProbeFailed, errors.FormatChanged)
"""What a look may find wrong with contents that are being overwritten."""


@dataclass(slots=True)
class PoolExamination:
    """A pool, what was observed of it, and the examinations of its volumes."""

    name: str
    pool: Pool | None = None
    backend: Backend | None = None
    facts: PoolFacts | None = None
    own: Examination | None = None
    volumes: list[Examination] = field(default_factory=list)
    overwritten: frozenset[Key] = frozenset()
    """Volumes whose contents were being replaced when the look at the pool began."""


class Examiner:
    """Looks at pools through their backends, and plans. Safe to use from several threads."""

    def __init__(
        self, context: BackendContext, *, node: str, boot: str, jobs: Jobs | None = None
    ) -> None:
        self._jobs = jobs or Jobs()
        self.node = node
        self.boot = boot
        self._context = context
        self._backends: dict[str, Backend] = {}
        self._lock = threading.Lock()

    def backend(self, type_name: str) -> Backend:
        """The backend of a pool type; one for all pools of the type.

        :raises errors.Unsupported: where this release can't serve the type.
        """
        kind = pool_type(type_name)
        if kind.backend is None:
            raise errors.Unsupported(
                f"This release can't serve pools of type {type_name}.",
                hint="Their manifests and XML are read and converted; nothing was changed.",
            )
        with self._lock:
            if type_name not in self._backends:
                self._backends[type_name] = kind.backend(self._context)
            return self._backends[type_name]

    def chooser(self, world: World) -> Chooser:
        """Who chooses among the pools of this node."""
        pools = list(world.pools())
        unmade = (item for pool in pools for item in world.volumes(pool.metadata.name))
        return Chooser(pools, backend=self.backend, unmade=unmade)

    def mine(self, resource: AnyResource) -> bool:
        """Whether this node keeps it; so it does what names no node, or can't name one."""
        return getattr(resource.spec, "node_name", None) in (None, self.node)

    def examine_pool(self, world: World, name: str) -> PoolExamination:
        found = PoolExamination(name=name)
        resource = world.pool(name)
        if resource is None or not self.mine(resource):
            return found
        found.own = Examination(resource=resource, suspended=resource.spec.suspend)
        try:
            found.backend = self.backend(resource.spec.type)
            found.pool = world.declare_pool(resource)
            found.overwritten = self._jobs.overwritten(name)
            found.facts = found.backend.observe(found.pool)
        except errors.StorageError as error:
            found.own.plan = Plan(refusals=(error,))
            return found
        history = self.history(resource)
        conflicts = self._conflicts(world, resource)
        if resource.deleting and conflicts:
            return found  # what stands there is the other's
        if resource.deleting:
            declared = [
                volume_name(item)
                for item in world.volumes(name)
                if not item.deleting and world.entitled(item)
            ]
            found.own.plan = planning.plan_pool_deletion(
                found.pool, found.facts, history, backend=found.backend, declared=declared
            )
        else:
            found.own.plan = planning.plan_pool(
                found.pool,
                found.facts,
                history,
                backend=found.backend,
                live_marks=world.marks,
                conflicts=conflicts,
            )
        self._hold_pool(found.own, name)
        return found

    def _hold_pool(self, own: Examination, name: str) -> None:
        """Keep a pool in which jobs run from being stopped, deleted or let go."""
        plan = own.plan
        stops = any(item.verb in (Verb.STOP_POOL, Verb.DELETE_POOL) for item in plan.actions)
        if not (stops or plan.expired or own.resource.deleting):
            return
        running = [f"{job.task.verb} on {job.task.target}" for job in self._jobs.in_pool(name)]
        if running:
            refusal = errors.InUse(
                f"Pool {name!r} waits for what is under way in it: {', '.join(running)}.",
                hint="Delete or suspend these volumes to end it sooner.",
            )
            own.plan = replace(plan, actions=(), refusals=(*plan.refusals, refusal), expired="")

    def _conflicts(self, world: World, resource: AnyResource) -> list[errors.StorageError]:
        claims: dict[Key, frozenset[str]] = {}
        for item in world.pools():
            try:
                backend = self.backend(item.spec.type)
                pool = world.declare_pool(item)
                claims[item.key] = backend.claims(pool) | _own_claims(pool)
            except errors.StorageError:
                claims[item.key] = frozenset()  # it is refused on its own pass, by name
        return world.conflicts(resource, claims)

    def history(self, resource: AnyResource) -> PoolHistory:
        status: PoolStatus = resource.status
        return PoolHistory(
            generation=resource.metadata.generation,
            observed_generation=status.observed_generation,
            built=bool(status.built),
            built_generation=status.built_generation,
            started_boot=status.boot_id or "",
            running=status.state in ("Running", "Degraded", "Inaccessible"),
            boot=self.boot,
            devices=tuple(Identity(**item.model_dump()) for item in status.devices),
        )

    def examine_volumes(
        self, world: World, found: PoolExamination, *, foreseen: bool = False
    ) -> None:
        dependents = _dependents(world, found)
        found.volumes = []
        pool = world.pool(found.name)
        if pool is not None and not self.mine(pool):
            return
        for resource in world.volumes(found.name):
            if not self.mine(resource):
                continue
            suspended = resource.spec.suspend or (pool is not None and pool.spec.suspend)
            examined = Examination(resource=resource, suspended=suspended)
            found.volumes.append(examined)
            try:
                self._examine_volume(world, found, examined, dependents, foreseen=foreseen)
            except errors.StorageError as error:
                examined.plan = Plan(refusals=(error,))
            self._mind_jobs(examined, overwritten=resource.key in found.overwritten)

    def _mind_jobs(self, examined: Examination, *, overwritten: bool) -> None:
        """See what is under way, and let nothing be done that would get in its way."""
        key, plan = examined.resource.key, examined.plan
        examined.job = job = self._jobs.on(key)
        examined.queued = self._jobs.waits(key)
        examined.failed = self._jobs.failure(key, examined.resource.signature)
        overwritten = overwritten or (job is not None and job.task.overwrites)
        if overwritten and any(isinstance(item, _OF_CONTENTS) for item in plan.refusals):
            examined.plan, examined.passing = Plan(), True
            return
        reader = self._jobs.reading(key)
        released = examined.resource.deleting and not plan.actions
        if job is not None and (released or (plan.actions and job.task.owner != key)):
            examined.plan = replace(plan, actions=(), refusals=(*plan.refusals, busy(job)))
        elif job is not None:
            return
        elif reader is not None and any(item.verb in _DISTURBING for item in plan.actions):
            examined.plan = replace(plan, actions=(), refusals=(*plan.refusals, busy(reader)))

    def _examine_volume(
        self,
        world: World,
        found: PoolExamination,
        examined: Examination,
        dependents: dict[str, list[str]],
        *,
        foreseen: bool,
    ) -> None:
        resource, pool, backend = examined.resource, found.pool, found.backend
        if resource.deleting and found.facts is None and resource.status.origin is None:
            return  # nothing was ever made
        if found.name == UNBOUND:
            chosen = self.chooser(world).choose(resource)
            raise errors.PoolNotReady(f"Pool {chosen.metadata.name!r} is about to be chosen.")
        if found.own is None:
            raise errors.PoolNotFound(
                f"Pool {found.name!r}, which {resource.key} names, is not declared on this node.",
                hint="Declare the pool, or correct poolRef.",
            )
        if pool is None or backend is None or found.facts is None:
            raise _pool_not_ready(found)
        examined.volume = volume = world.declare_volume(resource, pool, backend)
        base = world.backing_key(resource)
        examined.stands_on = (base,) if base is not None else ()
        if volume.name not in found.facts.volumes and not resource.deleting:
            self._add_source(world, examined, foreseen=foreseen)
            volume = examined.volume
        path = backend.volume_path(pool, volume.name)
        readable = found.facts.presence is Presence.PRESENT
        paths = {path, _true_path(path)} if dependents and readable else {path}
        standing = sorted({name for item in paths for name in dependents.get(item, ())})
        examined.dependents = tuple(standing)
        if resource.deleting:
            examined.plan = planning.plan_volume_deletion(
                pool, volume, found.facts, backend=backend, dependents=standing
            )
            return
        if not self.serves(found, foreseen=foreseen):
            raise _pool_not_ready(found)
        if not found.facts.listed:
            return  # what it holds is seen once it has been started
        examined.plan = planning.plan_volume(
            pool,
            volume,
            found.facts,
            VolumeHistory(seen=resource.status.origin is not None, key=resource.status.key),
            backend=backend,
            live_marks=world.marks,
            dependents=standing,
            conflicts=world.volume_conflicts(resource),
        )

    def _add_source(self, world: World, examined: Examination, *, foreseen: bool) -> None:
        """Resolve what a volume that is not there is a clone of."""
        resource, volume = examined.resource, examined.volume
        key = world.source_key(resource)
        clone = world.clone_from(resource, self.backend, foreseen=foreseen)
        if volume is None or key is None or clone is None:
            return
        examined.stands_on, examined.reads = (key,), frozenset({key})
        capacity = volume.capacity if volume.capacity is not None else clone.capacity
        examined.volume = replace(volume, source=clone, capacity=capacity)

    def serves(self, found: PoolExamination, *, foreseen: bool = False) -> bool:
        """Whether volumes can be worked on: the backing is there, ours or nobody's, and started.

        :param foreseen: as it will be when the pool's own plan is done.
        """
        if found.own is None or found.facts is None or found.own.resource.deleting:
            return False
        plan = found.own.plan
        if found.facts.presence is not Presence.PRESENT or plan.refusals or plan.expired:
            return False
        if foreseen and not found.own.resource.spec.suspend:
            verbs = {item.verb for item in plan.actions}
            if verbs & {Verb.START_POOL, Verb.STOP_POOL}:
                return Verb.START_POOL in verbs
        return self.running(found)

    def running(self, found: PoolExamination) -> bool:
        if found.own is None or found.facts is None:
            return False
        if found.facts.presence is not Presence.PRESENT:
            return False
        if found.facts.active is not None:
            return found.facts.active
        if found.own.resource.spec.adoption is Adoption.OBSERVE:
            return found.own.resource.spec.state is PoolState.ACTIVE
        return self.history(found.own.resource).up


def _own_claims(pool: Pool) -> frozenset[str]:
    claims = {f"pool name {pool.name!r}"}
    if pool.spec.uuid:
        claims.add(f"uuid {pool.spec.uuid}")
    return frozenset(claims)


def _pool_not_ready(found: PoolExamination) -> errors.PoolNotReady:
    why = "it is being worked on"
    if found.own is not None:
        if found.own.plan.refusals:
            why = str(found.own.plan.refusals[0])
        elif found.own.resource.deleting:
            why = "it is being deleted"
        elif found.own.resource.spec.state is PoolState.INACTIVE:
            why = "its state is Inactive"
    return errors.PoolNotReady(f"Pool {found.name!r} is not running: {why.rstrip('.')}.")


def foreseen(found: PoolExamination) -> PoolFacts | None:
    """The facts as they will be when the pool's own plan is done."""
    if found.own is None or found.facts is None or found.facts.presence is Presence.PRESENT:
        return found.facts
    if any(item.verb is Verb.BUILD_POOL for item in found.own.plan.actions):
        return PoolFacts(presence=Presence.PRESENT)
    return found.facts


def _dependents(world: World, found: PoolExamination) -> dict[str, list[str]]:
    """What stands on a path, by path: all images of the pool, and volumes declared in others.

    For images of the pool it is the true path, as a header may name its base by way of a link.
    Paths of other pools are not looked at: one on a dead server must not hold up this pool.
    """
    standing: dict[str, list[str]] = {}
    if found.facts is None:
        return standing
    for item in found.facts.volumes.values():
        for link in item.backing_chain:
            standing.setdefault(_true_path(link.path), []).append(item.path)
    for resource in world.resources.values():
        if resource.kind.name != "StorageVolume" or pool_name(resource) == found.name:
            continue
        for link in resource.status.backing_chain:
            standing.setdefault(link.path, []).append(str(resource.key))
    return standing


def _true_path(path: str) -> str:
    return os.path.realpath(path) if path.startswith("/") else path
