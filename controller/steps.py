"""One step at a time: journalled before and after, told of while it goes on, and its event."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from backends import errors, filling
from backends.base import Backend, Pool, Progress, Verb, Volume, Work
from backends.images import mapping, wiping
from backends.sizes import format_quantity
from backends.spec import StatusBase
from controller.planning import Action
from controller.resources import AnyResource
from controller.store import EventType, ResourceStore

log = logging.getLogger(__name__)

_DONE = {
    Verb.BUILD_POOL: ("Built", "Made {place}."),
    Verb.ADOPT_POOL: ("Adopted", "Took {place} over. {reason}"),
    Verb.START_POOL: ("Started", "Started {place}."),
    Verb.STOP_POOL: ("Stopped", "Stopped {place}."),
    Verb.SET_POOL_PERMISSIONS: ("PermissionsChanged", "Changed {place}. {reason}"),
    Verb.CLEAN_POOL: ("LeftoversRemoved", "Cleaned {place}. {reason}"),
    Verb.GROW_POOL: ("Grown", "Grew {place}. {reason}"),
    Verb.DELETE_POOL: ("Deleted", "Deleted {place}."),
    Verb.CREATE_VOLUME: ("Created", "Made {place}. {reason}"),
    Verb.ADOPT_VOLUME: ("Adopted", "Took {place} over. {reason}"),
    Verb.GROW_VOLUME: ("Resized", "Resized {place}. {reason}"),
    Verb.SHRINK_VOLUME: ("Resized", "Resized {place}. {reason}"),
    Verb.WIPE_VOLUME: ("Wiped", "Wiped {place}. {reason}"),
    Verb.SET_VOLUME_PERMISSIONS: ("PermissionsChanged", "Changed {place}. {reason}"),
    Verb.DELETE_VOLUME: ("Deleted", "Deleted {place}."),
}
"""What the event of a finished step says: its reason, and how its message begins."""

_FILLED = {"clone": "Cloned", "http": "Imported", "file": "Imported"}
"""The reason for a volume that was made from such a source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a pass found in the end.

    :param type: the pool's; empty where the pool is not declared, and ``status`` None.
    """

    name: str
    type: str
    status: StatusBase | None
    volumes: tuple[StatusBase, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observer:
    """Whom to tell while steps go on; the command line draws its progress from this."""

    began: Callable[[Action], None] = lambda action: None
    moved: Callable[[Action, Progress], None] = lambda action, progress: None
    ended: Callable[[Action, errors.StorageError | None], None] = lambda action, error: None
    looked: Callable[[Look], None] = lambda look: None


class Steps:
    """Carries out actions. Safe to use from several threads."""

    def __init__(self, store: ResourceStore, observer: Observer) -> None:
        self._store = store
        self._observer = observer

    def perform(
        self,
        action: Action,
        *,
        resource: AnyResource,
        pool: Pool,
        volume: Volume | None = None,
        backend: Backend,
        work: Work,
    ) -> errors.StorageError | None:
        """Carry one action out, journalled before and after; the error is returned."""
        if work.cancel.is_set():
            return errors.Cancelled(
                f"{action.verb} on {action.target} was cancelled.", hint="It is looked at anew."
            )
        step = self._store.begin_step(
            resource.key,
            resource.metadata.uid,
            str(action.verb),
            action.target,
            {"reason": action.reason},
        )
        self._observer.began(action)

        def report(progress: Progress) -> None:
            self._observer.moved(action, progress)
            work.report(progress)

        problem: errors.StorageError | None = None
        try:
            _perform(action.verb, backend, pool, volume, replace(work, report=report))
        except errors.StorageError as error:
            problem = error
        except OSError as error:
            problem = errors.from_os_error(error, doing=f"{action.verb} on {action.target}")
        self._store.end_step(step, str(problem) if problem else "")
        self._observer.ended(action, problem)
        if problem is None:
            reason, told = _DONE[action.verb]
            if action.verb is Verb.CREATE_VOLUME and volume is not None:
                reason = _FILLED.get(_source(volume), reason)
            message = told.format(place=action.place, reason=action.reason)
            self.tell(resource, "Normal", reason, message)
        else:
            level = logging.INFO if isinstance(problem, errors.Cancelled) else logging.WARNING
            log.log(level, "%s on %s: %s", action.verb, action.target, problem)
        return problem

    def recover(self) -> None:
        """Close the journal of an agent that was killed; the next pass looks at everything anew."""
        for step in self._store.unfinished_steps():
            log.warning("%s on %s was interrupted and is looked at anew", step.verb, step.target)
            self._store.end_step(step.id, "interrupted")
            self._store.record_event(
                step.key, step.uid, "Warning", "Interrupted", f"{step.verb} was interrupted."
            )

    def tell(self, resource: AnyResource, type: EventType, reason: str, message: str) -> None:
        """Record an event of a resource."""
        self._store.record_event(resource.key, resource.metadata.uid, type, reason, message)


def _perform(verb: Verb, backend: Backend, pool: Pool, volume: Volume | None, work: Work) -> None:
    if volume is None:
        _POOL_STEPS[verb](backend, pool)
    else:
        _VOLUME_STEPS[verb](backend, pool, volume, work)


def _build(backend: Backend, pool: Pool) -> None:
    backend.build(pool, overwrite=pool.spec.build.policy == "Overwrite")


def _set_permissions(backend: Backend, pool: Pool) -> None:
    if pool.spec.target is not None and pool.spec.target.permissions is not None:
        backend.set_permissions(pool, pool.spec.target.permissions)


def _require_unused(backend: Backend, pool: Pool, volume: Volume) -> None:
    """Look, right before what can't be undone, who would lose what they work on."""
    users = backend.users(pool, volume)
    if users:
        raise errors.InUse(
            f"{backend.volume_path(pool, volume.name)} is in use: {'; '.join(users)}.",
            hint="Stop what uses it.",
        )


def _require_no_data_past(backend: Backend, pool: Pool, volume: Volume, work: Work) -> None:
    """Look, right before it is cut, whether data would be lost; a plan has sizes alone."""
    if volume.capacity is None or volume.spec.resize.allow_data_loss:
        return
    with backend.open_volume(pool, volume) as opened:
        found = mapping.data_past(
            opened,
            volume.capacity,
            secret=filling.passphrase(volume, backend.context),
            timeout=backend.context.command_timeout,
            work=work,
        )
    if found is not None:
        raise errors.ShrinkNotAllowed(
            f"{backend.volume_path(pool, volume.name)} has data past "
            f"{format_quantity(volume.capacity)}, at byte {found}.",
            hint="Set resize.allowDataLoss to lose it, or declare a larger capacity.",
        )


def _shrink(backend: Backend, pool: Pool, volume: Volume, work: Work) -> None:
    _require_unused(backend, pool, volume)
    _require_no_data_past(backend, pool, volume, work)
    backend.resize_volume(pool, volume, work)


def _wipe(backend: Backend, pool: Pool, volume: Volume, work: Work) -> None:
    _require_unused(backend, pool, volume)
    asked = volume.spec.wipe_on_delete
    if asked is None:
        raise errors.InvalidSpec(f"It is not said how to wipe volume {volume.name!r}.")
    # One that was wiped in part has no header any more.
    with backend.open_volume(pool, volume.bare, write=True) as opened:
        wiping.wipe(opened, asked.algorithm, work)


def _delete(backend: Backend, pool: Pool, volume: Volume, work: Work) -> None:
    _require_unused(backend, pool, volume)
    backend.delete_volume(pool, volume)


_POOL_STEPS: dict[Verb, Callable[[Backend, Pool], None]] = {
    Verb.BUILD_POOL: _build,
    Verb.ADOPT_POOL: lambda backend, pool: backend.adopt(pool),
    Verb.START_POOL: lambda backend, pool: backend.start(pool),
    Verb.STOP_POOL: lambda backend, pool: backend.stop(pool),
    Verb.SET_POOL_PERMISSIONS: _set_permissions,
    Verb.CLEAN_POOL: lambda backend, pool: backend.clean(pool),
    Verb.GROW_POOL: lambda backend, pool: backend.grow(pool),
    Verb.DELETE_POOL: lambda backend, pool: backend.delete(pool),
}

_VOLUME_STEPS: dict[Verb, Callable[[Backend, Pool, Volume, Work], None]] = {
    Verb.CREATE_VOLUME: lambda backend, pool, volume, work: backend.create_volume(
        pool, volume, work
    ),
    Verb.ADOPT_VOLUME: lambda backend, pool, volume, work: backend.adopt_volume(pool, volume),
    Verb.GROW_VOLUME: lambda backend, pool, volume, work: backend.resize_volume(pool, volume, work),
    Verb.SHRINK_VOLUME: _shrink,
    Verb.WIPE_VOLUME: _wipe,
    Verb.SET_VOLUME_PERMISSIONS: lambda backend, pool, volume, work: backend.set_volume_permissions(
        pool, volume
    ),
    Verb.DELETE_VOLUME: _delete,
}


def _source(volume: Volume) -> str:
    """Which source a volume is made from; empty for a blank one."""
    source = volume.spec.source
    given = [name for name in _FILLED if source is not None and getattr(source, name) is not None]
    return given[0] if given else ""
