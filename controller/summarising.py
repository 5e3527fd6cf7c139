"""From facts and plans to status: the one place where conditions are made.

Polarity: ``Ready``, ``Active``, ``Built`` and ``InSync`` are good when True and always present once
a resource was looked at. ``Reconciling`` and ``Stalled`` are there only while they are True, as
kstatus expects: Reconciling reads as in progress, Stalled as failed until the spec changes. So is
``NearlyFull``, which kstatus passes over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal, TypeVar

from backends import errors
from backends.base import Pool, PoolFacts, Presence, Volume, VolumeFacts
from backends.host.devices import DeviceExtent, Identity
from backends.host.files import Permissions as PermissionFacts
from backends.schema import mode
from backends.spec import (
    Adoption,
    BackingLink,
    Condition,
    DiscoveredVolume,
    FreeExtent,
    Permissions,
    PoolDevice,
    PoolState,
    PoolStatus,
    Progress,
    SourceDevice,
    SourceExtent,
    StatusBase,
    VolumeCounts,
    VolumeStatus,
)
from controller.jobs import Job, percent
from controller.planning import Plan
from controller.resources import REQUESTED_AT, AnyResource

MAX_EXTENTS = 64
"""Extents of a volume that its status tells."""

SAMPLE = 20
"""Volumes nobody declared that a pool's status names; the count tells how many there are."""

TOLERANCE = 0.01
"""Part of a capacity by which reported sizes may be off."""

FLUCTUATING = ("allocation", "available", "physical")
"""Sizes that move while storage is used, and nobody has to act on it."""

T = TypeVar("T", bound=StatusBase)

NEARLY_FULL = "NearlyFull"
"""The condition of a pool in which something runs full, while it does."""

PROGRESSING = "Progressing"
"""The reason of Ready, while it is False for no other cause than work that goes on."""

Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aspect:
    """A condition before it has a time."""

    type: str
    status: Truth
    reason: str
    message: str


def conditions(
    former: Sequence[Condition], aspects: Sequence[Aspect], *, generation: int, now: str
) -> tuple[Condition, ...]:
    """Put times to aspects: a condition keeps its time as long as its status stays the same."""
    known = {item.type: item for item in former}
    made = []
    for aspect in aspects:
        before = known.get(aspect.type)
        same = before is not None and before.status == aspect.status
        made.append(
            Condition(
                type=aspect.type,
                status=aspect.status,
                reason=aspect.reason,
                message=aspect.message,
                observed_generation=generation,
                last_transition_time=before.last_transition_time if before and same else now,
            )
        )
    return tuple(made)


def condition(status: StatusBase, type: str) -> Condition | None:
    """The condition of that type, where there is one."""
    return next((item for item in status.conditions if item.type == type), None)


def settled(resource: AnyResource) -> bool:
    """Whether nothing more will come without a change: Ready, or stalled, for this generation."""
    return ready(resource) or stalled(resource)


def ready(resource: AnyResource) -> bool:
    return _holds(resource, "Ready")


def stalled(resource: AnyResource) -> bool:
    return _holds(resource, "Stalled")


def _holds(resource: AnyResource, type: str) -> bool:
    found = condition(resource.status, type)
    return (
        found is not None
        and found.status == "True"
        and resource.status.observed_generation == resource.metadata.generation
    )


def progress_aspects(
    plan: Plan, failures: Sequence[errors.StorageError], *, good: Aspect, suspended: bool
) -> list[Aspect]:
    """Ready, InSync, and Reconciling or Stalled where they hold.

    :param good: Ready as it is where nothing is wrong.
    """
    problems = [*failures, *plan.refusals]
    worst = next((item for item in problems if item.terminal), problems[0] if problems else None)
    if worst is not None:
        aspects = [Aspect(type="Ready", status="False", reason=worst.reason, message=str(worst))]
    elif plan.actions and not suspended:
        waiting = f"{plan.actions[0].verb}: {plan.actions[0].reason}"
        aspects = [Aspect(type="Ready", status="False", reason=PROGRESSING, message=waiting)]
    else:
        aspects = [good]
    aspects.append(_sync(plan, worst, suspended=suspended))
    if worst is not None and worst.terminal:
        aspects.append(
            Aspect(type="Stalled", status="True", reason=worst.reason, message=str(worst))
        )
    elif worst is not None or (plan.actions and not suspended):
        reason = "Retrying" if worst is not None else PROGRESSING
        message = str(worst) if worst is not None else aspects[0].message
        aspects.append(Aspect(type="Reconciling", status="True", reason=reason, message=message))
    return aspects


def _sync(plan: Plan, worst: errors.StorageError | None, *, suspended: bool) -> Aspect:
    if plan.drift:
        told = "; ".join(
            f"{item.field} is {item.observed}, declared {item.desired}" for item in plan.drift[:5]
        )
        return Aspect(type="InSync", status="False", reason="Drifted", message=f"{told}.")
    if plan.actions:
        told = "; ".join(f"{item.verb}: {item.reason}" for item in plan.actions[:5])
        reason = "Suspended" if suspended else "Pending"
        return Aspect(type="InSync", status="False", reason=reason, message=told)
    if worst is not None:
        return Aspect(type="InSync", status="Unknown", reason=worst.reason, message=str(worst))
    return Aspect(
        type="InSync", status="True", reason="AsDeclared", message="The host is as declared."
    )


def pool_status(
    resource: AnyResource,
    pool: Pool | None,
    facts: PoolFacts | None,
    plan: Plan,
    *,
    failures: Sequence[errors.StorageError],
    running: bool,
    boot: str,
    managed: frozenset[str],
    place: str,
    now: str,
) -> PoolStatus:
    """The status of a pool after a look at it.

    :param running: whether the pool is started.
    :param managed: names of volumes in it that resources declare.
    """
    former: PoolStatus = resource.status
    spec = resource.spec
    present = facts is not None and facts.presence is Presence.PRESENT
    found_only = pool is not None and pool.type.found_only
    held = present and (found_only or spec.adoption is Adoption.OBSERVE or _ours(resource, facts))
    aspects = progress_aspects(
        plan,
        failures,
        good=_pool_good(
            running=running,
            place=place,
            spec=spec,
            warnings=facts.warnings if facts is not None else (),
        ),
        suspended=spec.suspend,
    )
    aspects += [
        _aspect("Active", running, "Running", "Inactive"),
        _aspect("Built", held, "Present", "NotPresent"),
        *_shortage(facts, former),
    ]
    generation = resource.metadata.generation
    built_now = held and former.built_generation != generation
    fields: dict[str, Any] = {
        "observed_generation": generation,
        "conditions": conditions(former.conditions, aspects, generation=generation, now=now),
        "last_handled_request": resource.metadata.annotations.get(REQUESTED_AT),
        "drift": plan.drift,
        "uuid": spec.uuid or former.uuid or resource.metadata.uid or None,
        "state": _pool_state(facts, plan, running=running),
        "built": bool(former.built or held) if spec.adoption is not Adoption.OBSERVE else None,
        "built_generation": generation if built_now else former.built_generation,
        "persistent": not spec.transient,
        "boot_id": boot if running else _former_boot(resource),
        "devices": _pool_devices(pool, facts, former, plan),
        "last_refresh_time": former.last_refresh_time,
    }
    fields |= _pool_figures(facts, former, managed) if pool is not None else {}
    status = PoolStatus(**fields)
    if status != former:
        status = status.model_copy(update={"last_refresh_time": now})
    return status


def _shortage(facts: PoolFacts | None, former: PoolStatus) -> list[Aspect]:
    """That something runs full, with how full in the reason; as it was while nobody can look."""
    if facts is None or facts.presence is not Presence.PRESENT:
        known = condition(former, NEARLY_FULL)
        return [_same(known)] if known is not None else []
    if not facts.shortages:
        return []
    percent = max(item.percent for item in facts.shortages)
    told = " ".join(item.told for item in facts.shortages)
    reason = f"Above{percent}Percent"
    return [Aspect(type=NEARLY_FULL, status="True", reason=reason, message=told)]


def _same(known: Condition) -> Aspect:
    return Aspect(type=known.type, status=known.status, reason=known.reason, message=known.message)


def _ours(resource: AnyResource, facts: PoolFacts | None) -> bool:
    mark = facts.mark if facts is not None else None
    return mark is not None and mark.uid == resource.metadata.uid


def _former_boot(resource: AnyResource) -> str | None:
    """The boot of the last start, until the spec changes: then it no longer holds a start back."""
    former: PoolStatus = resource.status
    unchanged = former.observed_generation == resource.metadata.generation
    return former.boot_id if unchanged else None


def _pool_good(*, running: bool, place: str, spec: Any, warnings: Sequence[str]) -> Aspect:
    if running:
        told = " ".join([f"Running at {place}.", *(f"Warning: {item}" for item in warnings)])
        return Aspect(type="Ready", status="True", reason="Running", message=told)
    if spec.suspend and spec.state is PoolState.ACTIVE:
        message = "It does not run, and suspend forbids to start it."
        return Aspect(type="Ready", status="False", reason="Suspended", message=message)
    if spec.state is PoolState.ACTIVE:
        message = "Stays down since the host was rebooted: autostart is false."
        return Aspect(type="Ready", status="True", reason="NotAutostarted", message=message)
    return Aspect(type="Ready", status="True", reason="Inactive", message="Inactive, as declared.")


def _aspect(type: str, holds: bool, good: str, bad: str) -> Aspect:
    return Aspect(
        type=type, status="True" if holds else "False", reason=good if holds else bad, message=""
    )


def _pool_state(facts: PoolFacts | None, plan: Plan, *, running: bool) -> str:
    if any(isinstance(item, errors.Inaccessible) for item in plan.refusals):
        return "Inaccessible"
    if facts is not None and facts.degraded:
        return "Degraded"
    return "Running" if running else "Inactive"


def _pool_figures(
    facts: PoolFacts | None, former: PoolStatus, managed: frozenset[str]
) -> dict[str, Any]:
    """Sizes and counts; the last known ones where the pool can't be read now."""
    if facts is None or facts.presence is not Presence.PRESENT or not facts.listed:
        names = (
            "capacity", "allocation", "available", "free_extents", "thin_pool", "volumes",
            "discovered",
        )  # fmt: skip
        return {name: getattr(former, name) for name in names}
    strangers = [item for name, item in sorted(facts.volumes.items()) if name not in managed]
    return {
        "capacity": facts.capacity,
        "allocation": facts.allocation,
        "available": facts.available,
        "thin_pool": facts.thin_pool,
        "free_extents": tuple(
            FreeExtent(start=item.start, end=item.end) for item in facts.free_extents[:256]
        ),
        "volumes": VolumeCounts(
            total=len(facts.volumes),
            managed=len(facts.volumes) - len(strangers),
            unmanaged=len(strangers),
        ),
        "discovered": tuple(_discovered(item) for item in strangers[:SAMPLE]),
    }


def _pool_devices(
    pool: Pool | None, facts: PoolFacts | None, former: PoolStatus, plan: Plan
) -> tuple[PoolDevice, ...]:
    """What the pool stands on; kept as it was while a device is missing, or is another one."""
    changed = any(isinstance(item, errors.DeviceChanged) for item in plan.refusals)
    if pool is None or facts is None or changed:
        return former.devices
    known = {item.path: Identity(**item.model_dump()) for item in former.devices}
    seen = {item.path: item.completed(known.get(item.path)) for item in facts.devices}
    declared = {item.path for item in pool.devices}
    kept = {path: item for path, item in known.items() if path in declared}
    return tuple(PoolDevice(**asdict(item)) for item in (kept | seen).values())


def steady(former: T, status: T) -> T:
    """The former status where nothing but sizes moved, and those by little.

    A file system in use never rests, and each movement would be a write for the store and an event
    for all who watch. What is reported may be off by ``TOLERANCE`` until something else changes.
    """
    room = (getattr(status, "capacity", None) or 0) * TOLERANCE
    changes: dict[str, object] = {}
    for name in (item for item in FLUCTUATING if item in type(status).model_fields):
        before, after = getattr(former, name), getattr(status, name)
        if before != after and (None in (before, after) or abs(after - before) > room):
            return status
        changes[name] = before
    if isinstance(former, PoolStatus) and isinstance(status, PoolStatus):
        changes["last_refresh_time"] = former.last_refresh_time
        if _strangers(former) == _strangers(status):
            changes["discovered"] = former.discovered
    return former if status.model_copy(update=changes) == former else status


def _strangers(status: PoolStatus) -> list[DiscoveredVolume]:
    """The sample without what moves while a volume is used."""
    return [item.model_copy(update={"allocation": None}) for item in status.discovered]


def _discovered(facts: VolumeFacts) -> DiscoveredVolume:
    return DiscoveredVolume(
        name=facts.name,
        format=facts.format,
        capacity=facts.capacity,
        allocation=facts.allocation,
        encryption=facts.encryption,
        backing_path=facts.backing_path,
    )


def volume_status(
    resource: AnyResource,
    volume: Volume | None,
    facts: VolumeFacts | None,
    plan: Plan,
    *,
    failures: Sequence[errors.StorageError],
    readable: bool,
    suspended: bool,
    job: Job | None = None,
    now: str,
) -> VolumeStatus:
    """The status of a volume after a look at its pool.

    :param readable: whether the pool could be read; if not, the last known figures stay.
    :param suspended: whether the volume or its pool is.
    :param job: what works on it now.
    """
    former: VolumeStatus = resource.status
    path = facts.path if facts else former.path
    good = Aspect(type="Ready", status="True", reason="Available", message=f"Available at {path}.")
    if facts is None and readable and not plan.refusals and not failures:
        good = Aspect(type="Ready", status="False", reason="Pending", message="Not there yet.")
    aspects = progress_aspects(plan, failures, good=good, suspended=suspended)
    generation = resource.metadata.generation
    figures: dict[str, Any]
    if facts is not None:
        figures = _volume_figures(facts, resource)
    else:
        names = VolumeStatus.model_fields.keys() - StatusBase.model_fields.keys() - {"progress"}
        figures = {name: getattr(former, name) for name in names}
    return VolumeStatus(
        observed_generation=generation,
        conditions=conditions(former.conditions, aspects, generation=generation, now=now),
        last_handled_request=resource.metadata.annotations.get(REQUESTED_AT),
        drift=plan.drift,
        progress=progress_of(job) if job is not None else None,
        **figures,
    )


def progress_of(job: Job) -> Progress:
    """The progress of a job as it was last reported."""
    done = job.published
    return Progress(
        operation=job.task.verb,
        percent=percent(done),
        bytes_done=done.done,
        bytes_total=done.total or None,
    )


def _volume_figures(facts: VolumeFacts, resource: AnyResource) -> dict[str, Any]:
    former = resource.status
    ours = facts.mark is not None and facts.mark.resource == str(resource.key)
    lost = former.origin is not None and not ours
    return {
        "type": facts.type,
        "key": former.key if lost else facts.key,
        "path": facts.path,
        "capacity": facts.capacity,
        "allocation": facts.allocation,
        "physical": facts.physical,
        "format": facts.format,
        "compat": facts.compat,
        "cluster_size": facts.cluster_size,
        "encryption": facts.encryption,
        "permissions": _permissions(facts.permissions),
        "source_devices": tuple(_source_devices(facts.extents[:MAX_EXTENTS])),
        # As the key, kept where something else stands there now: what was ours and goes is neither
        # made anew nor taken for what came in its place.
        "origin": facts.mark.origin if facts.mark and ours else former.origin,
        "backing_chain": tuple(
            BackingLink(
                path=link.path, format=link.format, present=link.present, capacity=link.capacity
            )
            for link in facts.backing_chain
        ),
    }


def _source_devices(extents: Sequence[DeviceExtent]) -> Iterator[SourceDevice]:
    """Extents in their order, with those that follow each other on one device together."""
    for path, run in groupby(extents, key=lambda item: item.device):
        told = tuple(SourceExtent(start=item.start, end=item.end) for item in run)
        yield SourceDevice(path=path, extents=told)


def _permissions(facts: PermissionFacts | None) -> Permissions | None:
    if facts is None:
        return None
    return Permissions(
        mode=mode(facts.mode), owner=facts.owner, group=facts.group, label=facts.label
    )


PASSING = frozenset({"Reconciling", "Stalled"})
"""Conditions that are there only while they are True."""


def unknown_status(resource: AnyResource, error: errors.StorageError, *, now: str) -> StatusBase:
    """The status of a resource that nobody reports on: the last known figures, and of none of its
    conditions it is known whether it still holds."""
    former: StatusBase = resource.status
    known = [item.type for item in former.conditions if item.type not in PASSING]
    aspects = [
        Aspect(type=type, status="Unknown", reason=error.reason, message=str(error))
        for type in known or ["Ready"]
    ]
    looked_at = former.observed_generation >= 0
    generation = former.observed_generation if looked_at else resource.metadata.generation
    made = conditions(former.conditions, aspects, generation=generation, now=now)
    status: StatusBase = former.model_copy(update={"conditions": made})
    return status


def waiting_status(resource: AnyResource, error: errors.StorageError, *, now: str) -> StatusBase:
    """The status of a resource that could not be looked at, with all last known figures."""
    aspects = progress_aspects(
        Plan(refusals=(error,)),
        (),
        good=Aspect(type="Ready", status="Unknown", reason="Unknown", message=""),
        suspended=False,
    )
    generation = resource.metadata.generation
    made = conditions(resource.status.conditions, aspects, generation=generation, now=now)
    status: StatusBase = resource.status.model_copy(
        update={
            "observed_generation": generation,
            "conditions": made,
            "last_handled_request": resource.metadata.annotations.get(REQUESTED_AT),
        }
    )
    return status
