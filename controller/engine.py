"""Observe, plan, apply, summarise: one pass over a pool and its volumes.

The pass is level-triggered: it is told which pool to look at and never what happened. Whatever it
finds done already it leaves; whatever it can't do stands in the status.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from backends import errors
from backends.base import Backend, BackendContext, Pool, Presence, Verb, VolumeFacts, Work
from backends.registry import pool_type
from backends.schema import duration_seconds
from backends.spec import (
    Adoption,
    Discovery,
    PoolDeletion,
    PoolStatus,
    ResourceRef,
    StatusBase,
    VolumeDeletion,
    VolumeSpec,
)
from controller import operations, summarising, telling
from controller.assigning import assign
from controller.examining import Examination, Examiner, PoolExamination, foreseen
from controller.jobs import Job, Jobs, Task, busy
from controller.operations import Operations
from controller.planning import Plan
from controller.publishing import Publisher, published
from controller.resources import (
    DEFAULT_NAMESPACE,
    AnyResource,
    Declared,
    Key,
    Metadata,
    kinds,
    now,
    object_name,
)
from controller.steps import Look, Observer, Steps
from controller.store import ResourceStore
from controller.worlds import UNBOUND, World, volume_name

log = logging.getLogger(__name__)

VOLUMES_AT_ONCE = 4
"""Volumes of one pool that are worked on side by side; the disk is the limit, not the count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a pass came to.

    :param acted: whether anything was brought to where it is to be, so that others that waited
        for it may go on.
    :param retry: whether an error may go away by itself.
    :param interval: seconds until the pool wants to be looked at again.
    :param given: pools that were given volumes by this, and want to be looked at.
    """

    acted: bool
    retry: bool
    interval: float
    given: frozenset[str] = frozenset()


IDLE = 3600.0
"""Seconds between two looks where nothing waits and every change wakes."""

_DELETING = frozenset({Verb.WIPE_VOLUME, Verb.DELETE_VOLUME})
"""What a job may go on with once its resource is being deleted."""


class Engine:
    """Passes over pools. Safe to use from several threads for different pools."""

    def __init__(
        self,
        store: ResourceStore,
        context: BackendContext,
        *,
        node: str,
        boot: str,
        observer: Observer | None = None,
        jobs: Jobs | None = None,
        publisher: Publisher | None = None,
    ) -> None:
        self.store = store
        self.node = node
        self.boot = boot
        self.cancel = threading.Event()
        self.jobs = jobs or Jobs()
        self.jobs.moved = self._note_progress
        self.examiner = Examiner(context, node=node, boot=boot, jobs=self.jobs)
        self.observer = observer or Observer()
        self._steps = Steps(store, self.observer)
        self._publisher = publisher or Publisher()
        self._status_lock = threading.Lock()
        self._passes: dict[str, threading.Lock] = {}
        self.operations = Operations(store, self.examiner, self.jobs)

    def world(self) -> World:
        """All declared resources as the store has them now."""
        return World(self.store.list(), node=self.node)

    def plan(self, world: World, names: Iterable[str]) -> list[PoolExamination]:
        """Look at pools and plan, changing nothing. Volumes of a pool that is still to be built
        are planned as if it had been."""
        examined = []
        for name in names:
            found = self.examiner.examine_pool(world, name)
            if found.pool is not None and found.own is not None:
                found.facts = foreseen(found)
            self.examiner.examine_volumes(world, found, foreseen=True)
            examined.append(found)
        return examined

    @contextlib.contextmanager
    def between_passes(self, name: str, seconds: float) -> Iterator[bool]:
        """Keep passes over a pool from beginning; false where one did not end in time."""
        with self._status_lock:
            lock = self._passes.setdefault(name, threading.Lock())
        free = lock.acquire(timeout=seconds)
        try:
            yield free
        finally:
            if free:
                lock.release()

    def reconcile(self, name: str) -> Outcome:
        """One pass over the pool of that name and all volumes that name it; for ``UNBOUND``, over
        the volumes that wait for a pool."""
        with self.between_passes(name, threading.TIMEOUT_MAX):
            return self._assign() if name == UNBOUND else self._pass(name)

    def _pass(self, name: str) -> Outcome:
        succeeded = self.jobs.begin_pass(name)
        world = self.world()
        self._keep_finalizers(world, name)
        world = self.world()
        self.keep_jobs(world)
        failures: dict[Key, list[errors.StorageError]] = {}
        found = self.examiner.examine_pool(world, name)
        attempted = _pending(found)
        if found.own is not None:
            self._tell(found.own.resource, telling.of_birth(found.own.resource))
        deleting = found.own is not None and found.own.resource.deleting
        if found.own is not None and not deleting and self._apply_pool(found, failures):
            world = world.replacing(found.own.resource)
            found = self.examiner.examine_pool(world, name)
        self._examine_volumes(world, found)
        attempted |= _pending(found)
        self._cancel_needless(found)
        if self._apply_volumes(found, failures):
            found = self.examiner.examine_pool(world, name)
            self._examine_volumes(world, found)
        if deleting:
            _wait_for_volumes(found)
            attempted |= _pending(found)
            self._let_volumes_go(found, failures)
            self._apply_pool(found, failures)
        due = self.operations.carry_on(world, found)
        self._summarise(found, failures)
        self._adopt_discovered(found)
        left = _pending(found) | _refused(found) | _under_way(found) | failures.keys()
        acted = bool(attempted - left)
        return self._outcome(found, failures, acted=acted or succeeded, due=due)

    def _assign(self) -> Outcome:
        given, waiting = assign(self.store, self.examiner, self.world())
        self.operations.carry_on(self.world(), PoolExamination(name=UNBOUND))
        return Outcome(acted=bool(given), retry=waiting, interval=IDLE, given=frozenset(given))

    def _examine_volumes(self, world: World, found: PoolExamination) -> None:
        self.examiner.examine_volumes(world, found)
        self._publisher.withdraw_going(found)

    def keep_jobs(self, world: World) -> None:
        """Cancel the jobs of resources that are not declared on this node any more."""
        self.jobs.keep(
            {item.metadata.uid for item in world.resources.values() if self.examiner.mine(item)}
        )

    def _keep_finalizers(self, world: World, name: str) -> None:
        """Hold those resources whose deletion needs an effect on the host, and only those; and
        their pool, without which it can't be had."""
        pool = world.pool(name)
        if pool is not None and not self.examiner.mine(pool):
            return
        needs = [
            (item, _needs_finalizer(item) or self._publisher.holds(item))
            for item in world.volumes(name)
        ]
        if pool is not None:
            # Nothing can be done to what is not served, so nothing has to be undone.
            served = pool_type(pool.spec.type).backend is not None
            held = _needs_finalizer(pool) or any(needed for _, needed in needs)
            needs.append((pool, served and held))
        for resource, needed in needs:
            if not self.examiner.mine(resource):
                continue
            if needed and not resource.metadata.finalizers and not resource.deleting:
                self.store.add_finalizer(resource.key, uid=resource.metadata.uid)
            elif not needed and resource.metadata.finalizers:
                self.store.remove_finalizer(resource.key, uid=resource.metadata.uid)

    def _apply_pool(
        self, found: PoolExamination, failures: dict[Key, list[errors.StorageError]]
    ) -> bool:
        own, pool, backend = found.own, found.pool, found.backend
        if own is None or pool is None or backend is None or own.resource.spec.suspend:
            return False
        for action in own.plan.actions:
            work = Work(cancel=self.cancel)
            error = self._steps.perform(
                action, resource=own.resource, pool=pool, backend=backend, work=work
            )
            if error is not None:
                failures.setdefault(own.resource.key, []).append(error)
                return True
        acted = bool(own.plan.actions)
        if own.resource.deleting:
            own.plan = replace(own.plan, actions=())
            return acted
        if own.plan.expired:
            self._steps.tell(own.resource, "Normal", "Expired", f"It goes: {own.plan.expired}.")
            self.store.request_deletion(own.resource.key)
        if acted:
            self._note_state(own)
        return acted

    def _note_state(self, own: Examination) -> None:
        """Record at once what was built and started, so that the next look knows."""
        verbs = {item.verb for item in own.plan.actions}
        status: PoolStatus = own.resource.status
        changes: dict[str, object] = {}
        if Verb.BUILD_POOL in verbs:
            changes |= {"devices": ()}  # what stands on them is new
        if verbs & {Verb.BUILD_POOL, Verb.ADOPT_POOL}:
            changes |= {"built": True, "built_generation": own.resource.metadata.generation}
        if Verb.START_POOL in verbs:
            changes |= {"state": "Running", "boot_id": self.boot}
        if Verb.STOP_POOL in verbs:
            changes |= {"state": "Inactive"}
        own.resource = replace(own.resource, status=status.model_copy(update=changes))

    def _cancel_needless(self, found: PoolExamination) -> None:
        """Cancel jobs for what is no longer wanted, or wanted in another way."""
        for examined in found.volumes:
            job, key = examined.job, examined.resource.key
            if job is None or job.task.owner != key:
                continue
            if examined.suspended:
                job.cancel(f"{key} is suspended")
            elif examined.resource.deleting and job.task.verb not in _DELETING:
                job.cancel(f"{key} is being deleted")
            elif examined.plan.actions and job.task.purpose != examined.purpose:
                job.cancel(f"{key} has changed")

    def _apply_volumes(
        self, found: PoolExamination, failures: dict[Key, list[errors.StorageError]]
    ) -> bool:
        pool, backend = found.pool, found.backend
        waiting = [item for item in found.volumes if item.actionable]
        if not waiting or pool is None or backend is None:
            return False

        def work(examined: Examination) -> None:
            error = self._attempt(found, examined, pool, backend)
            if error is not None:
                failures.setdefault(examined.resource.key, []).append(error)

        with ThreadPoolExecutor(
            VOLUMES_AT_ONCE, thread_name_prefix=f"{found.name}-volume"
        ) as threads:
            for batch in _independent(waiting):
                for future in [threads.submit(work, item) for item in batch]:
                    future.result()
        return True

    def _attempt(
        self, found: PoolExamination, examined: Examination, pool: Pool, backend: Backend
    ) -> errors.StorageError | None:
        """Do what a volume's plan says, or begin a job that does."""
        for key in examined.stands_on:
            job = self.jobs.on(key)
            if job is not None:
                return busy(job)
        actions = examined.plan.actions
        if any(action.long for action in actions):
            return self._begin_job(found.name, examined, pool, backend)
        return self._do(examined, pool, backend, Work(cancel=self.cancel))

    def _begin_job(
        self, pool_name: str, examined: Examination, pool: Pool, backend: Backend
    ) -> errors.StorageError | None:
        resource, actions = examined.resource, examined.plan.actions
        longest = next(action for action in actions if action.long)
        task = Task(
            owner=resource.key,
            uid=resource.metadata.uid,
            volume=resource.key,
            pool=pool_name,
            verb=str(longest.verb),
            target=longest.target,
            reads=examined.reads,
            purpose=examined.purpose,
            attempt=resource.signature,
        )

        def run(work: Work) -> None:
            problem = self._do(examined, pool, backend, work)
            if problem is not None:
                raise problem

        try:
            self.jobs.start(task, run)
        except errors.StorageError as error:
            return error
        return None

    def _do(
        self, examined: Examination, pool: Pool, backend: Backend, work: Work
    ) -> errors.StorageError | None:
        for action in examined.plan.actions:
            problem = self._steps.perform(
                action,
                resource=examined.resource,
                pool=pool,
                volume=examined.volume,
                backend=backend,
                work=work,
            )
            if problem is not None:
                return problem
        return None

    def _note_progress(self, job: Job) -> None:
        """Show a job's progress in the status of the volume that it works on."""
        if job.task.owner.kind == operations.KIND:
            self.operations.note_progress(job)
        if not job.task.exclusive:
            return
        with self._status_lock:
            resource = self.store.get(job.task.volume)
            if resource is not None:
                progress = summarising.progress_of(job)
                status = resource.status.model_copy(update={"progress": progress})
                self.store.write_status(resource.key, status, uid=resource.metadata.uid)

    def recover(self) -> None:
        """Close the journal of an agent that was killed; the next pass looks at everything anew."""
        self._steps.recover()

    def stop(self) -> None:
        """Begin nothing more, and cancel what is under way."""
        self.cancel.set()
        self.jobs.stop()

    def _summarise(
        self, found: PoolExamination, failures: dict[Key, list[errors.StorageError]]
    ) -> None:
        moment = now()
        facts = found.facts
        for item in found.volumes:
            if item.failed is not None:
                failures.setdefault(item.resource.key, [item.failed])
        publications = self._publisher.publish(found)
        for key, publication in publications.items():
            if publication.problem is not None and self._publisher.serves:
                failures.setdefault(key, []).append(publication.problem)
        readable = facts is not None and facts.presence is Presence.PRESENT
        told: list[StatusBase] = []
        refused: list[errors.StorageError] = []
        for examined in found.volumes:
            observed = None
            if examined.volume is not None and facts is not None and not examined.passing:
                observed = facts.volumes.get(examined.volume.name)
            status = summarising.volume_status(
                examined.resource,
                examined.volume,
                observed,
                examined.plan,
                failures=failures.get(examined.resource.key, ()),
                readable=readable and not examined.passing,
                suspended=examined.suspended,
                job=examined.job,
                now=moment,
            )
            status = published(
                examined.resource, status, publications.get(examined.resource.key), now=moment
            )
            told.append(status)
            refused += self._settled(examined, status, failures)
        own_status = None
        if found.own is not None:  # last: a volume that is going needs its pool
            own_status = self._pool_status(found, failures, moment)
            refused += self._settled(found.own, own_status, failures)
        type = found.own.resource.spec.type if found.own is not None else ""
        self.observer.looked(
            Look(name=found.name, type=type, status=own_status, volumes=tuple(told))
        )
        if any(item.withdrawn for item in publications.values()):
            self._keep_finalizers(self.world(), found.name)
        if refused:
            raise refused[0]

    def _adopt_discovered(self, found: PoolExamination) -> None:
        """Declare what nobody declared, where the pool's ``discovery`` is Adopt."""
        own, facts = found.own, found.facts
        if own is None or facts is None or own.resource.spec.discovery is not Discovery.ADOPT:
            return
        if not self.examiner.serves(found) or own.resource.spec.suspend:
            return
        known = {volume_name(item.resource) for item in found.volumes}
        strangers = facts.volumes.keys() - known
        if strangers:  # asked anew: somebody may have declared one since the look
            strangers -= {volume_name(item) for item in self.world().volumes(found.name)}
        for name in sorted(strangers):
            if not facts.volumes[name].problem:
                self._declare_discovered(own.resource, facts.volumes[name])

    def _declare_discovered(self, resource: AnyResource, facts: VolumeFacts) -> None:
        pool = resource.metadata.name
        allowed = resource.spec.allowed_namespaces or (DEFAULT_NAMESPACE,)
        namespace = DEFAULT_NAMESPACE if DEFAULT_NAMESPACE in allowed else allowed[0]
        names = object_name(facts.name), object_name(f"{pool}/{facts.name}")
        keys = [Key("StorageVolume", namespace, name) for name in names]
        key = next((item for item in keys if self.store.get(item) is None), None)
        if key is None:
            return
        spec = VolumeSpec(
            pool_ref=ResourceRef(name=pool),
            volume_name=facts.name,
            format=facts.format,
            capacity=facts.capacity,
        )
        declared = Declared(
            kind=kinds()["StorageVolume"],
            metadata=Metadata(name=key.name, namespace=key.namespace),
            spec=spec,
        )
        applied = self.store.apply(declared, source=f"discovery:{pool}")
        message = f"Found in pool {pool!r} and nobody declared it."
        self._steps.tell(applied.resource, "Normal", "Discovered", message)

    def _pool_status(
        self,
        found: PoolExamination,
        failures: dict[Key, list[errors.StorageError]],
        moment: str,
    ) -> StatusBase:
        own = found.own
        if own is None:
            raise AssertionError("a pool's status needs the pool")
        return summarising.pool_status(
            own.resource,
            found.pool,
            found.facts,
            own.plan,
            failures=failures.get(own.resource.key, ()),
            running=self.examiner.running(found),
            boot=self.boot,
            managed=frozenset(item.volume.name for item in found.volumes if item.volume),
            place=found.backend.place(found.pool) if found.backend and found.pool else "",
            now=moment,
        )

    def _settled(
        self,
        examined: Examination,
        status: StatusBase,
        failures: dict[Key, list[errors.StorageError]],
    ) -> list[errors.StorageError]:
        """Settle; what the store refused of this resource, which holds up no other.

        :raises errors.Inaccessible: the store can't be written at all.
        """
        try:
            self._settle(examined, status, failures)
        except errors.Inaccessible:
            raise
        except errors.StorageError as error:
            log.error("%s: %s", examined.resource.key, error)
            return [error]
        return []

    def _let_volumes_go(
        self, found: PoolExamination, failures: dict[Key, list[errors.StorageError]]
    ) -> None:
        """Release volumes that are gone before their pool goes: after a kill in between, they could
        not be told from lost ones without it, and it would wait for them."""
        for item in found.volumes:
            resource, plan = item.resource, item.plan
            undone = plan.refusals or plan.actions or resource.key in failures
            # One that is published has to be withdrawn first, which the summary does.
            if resource.deleting and not undone and resource.spec.publish is None:
                self.store.remove_finalizer(resource.key, uid=resource.metadata.uid)

    def _settle(
        self,
        examined: Examination,
        status: StatusBase,
        failures: dict[Key, list[errors.StorageError]],
    ) -> None:
        """Write the status where it changed, tell of new trouble, and let go what may go."""
        resource, plan = examined.resource, examined.plan
        undone = plan.refusals or plan.actions or resource.key in failures
        if resource.deleting and not undone:
            self.store.remove_finalizer(resource.key, uid=resource.metadata.uid)
            return
        self._tell(resource, telling.of_look(resource, status))
        with self._status_lock:
            if examined.job is not None:  # it may have moved since the status was made
                progress = summarising.progress_of(examined.job)
                status = status.model_copy(update={"progress": progress})
            status = summarising.steady(resource.status, status)
            self.store.write_status(resource.key, status, uid=resource.metadata.uid)

    def _tell(self, resource: AnyResource, news: Iterable[telling.News]) -> None:
        for item in news:
            self._steps.tell(resource, *item)

    def _outcome(
        self,
        found: PoolExamination,
        failures: dict[Key, list[errors.StorageError]],
        *,
        acted: bool,
        due: float | None,
    ) -> Outcome:
        everything = [*found.volumes, *([found.own] if found.own else [])]
        problems = [error for item in everything for error in item.plan.refusals]
        problems += [error for listed in failures.values() for error in listed]
        unfinished = bool(_pending(found))  # jobs wake the pool when they end
        interval = found.own.resource.spec.refresh.interval if found.own else "5m"
        return Outcome(
            acted=acted,
            retry=unfinished or any(not error.terminal for error in problems),
            interval=min(duration_seconds(interval), math.inf if due is None else max(due, 0.0)),
        )


def _pending(found: PoolExamination) -> set[Key]:
    """Resources for which there is something to do now."""
    everything = [*found.volumes, *([found.own] if found.own else [])]
    return {item.resource.key for item in everything if item.actionable and not item.queued}


def _under_way(found: PoolExamination) -> set[Key]:
    return {item.resource.key for item in found.volumes if item.job is not None or item.queued}


def _refused(found: PoolExamination) -> set[Key]:
    everything = [*found.volumes, *([found.own] if found.own else [])]
    return {item.resource.key for item in everything if item.plan.refusals}


def _wait_for_volumes(found: PoolExamination) -> None:
    """Let a pool that is going stay as long as volumes in it need it to go as they declare.

    Also for those that stay: who deletes a pool with all its volumes deletes one after the other,
    and the pool may be the first.
    """
    if found.own is None or found.own.plan.refusals:
        return
    going = [
        str(item.resource.key)
        for item in found.volumes
        if item.resource.deleting and (item.plan.actions or item.plan.refusals)
    ]
    staying = [
        str(item.resource.key)
        for item in found.volumes
        if _made(item.resource) and item.resource.metadata.finalizers and not item.resource.deleting
    ]
    if going:
        message = f"Pool {found.name!r} waits for volumes that are being deleted: "
        hint = "It goes when they have gone."
    else:
        message = f"Pool {found.name!r} waits for volumes that could not be deleted without it: "
        hint = "Delete them, or set their deletionPolicy to Retain."
    if going or staying:
        refusal = errors.DeletionRefused(f"{message}{', '.join(going or staying)}.", hint=hint)
        found.own.plan = Plan(refusals=(refusal,))


def _made(resource: AnyResource) -> bool:
    """Whether there has been something on the host that is the volume's."""
    return resource.status.origin is not None


def _needs_finalizer(resource: AnyResource) -> bool:
    spec = resource.spec
    if spec.adoption is Adoption.OBSERVE:
        return False
    return spec.deletion_policy not in (PoolDeletion.RETAIN, VolumeDeletion.RETAIN)


def _independent(waiting: Sequence[Examination]) -> list[list[Examination]]:
    """Batches whose members do not stand on each other: deletions from the top, the rest from
    the base."""
    paths = {item.volume.name: item for item in waiting if item.volume}
    levels: dict[str, int] = {}
    for item in waiting:  # bases come first, so a base's level is known before its overlays'
        if item.volume is None:
            continue
        base = (item.volume.backing_path or "").rsplit("/", 1)[-1]
        levels[item.volume.name] = levels[base] + 1 if base in levels and base in paths else 0
    batches: dict[tuple[bool, int], list[Examination]] = {}
    for item in waiting:
        level = levels.get(item.volume.name, 0) if item.volume else 0
        gone = item.resource.deleting
        batches.setdefault((gone, -level if gone else level), []).append(item)
    return [batches[key] for key in sorted(batches)]
