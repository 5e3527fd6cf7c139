"""``plan``: what would be done, with nothing done, neither on the host nor in the store."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from backends import errors
from backends.base import Verb
from backends.host.commands import quote
from backends.spec import ResourceRef
from controller.choosing import in_turn
from controller.cli.objects import as_json, reference
from controller.cli.options import PlanOutput
from controller.cli.printing import as_word, clean, one_line, painted, put, report, say
from controller.cli.reading import in_order, place_of, read, why_refused
from controller.cli.session import Session
from controller.cli.working import WORKED_ON, foreign_pools, pool_of, rests
from controller.engine import Engine
from controller.examining import Examination
from controller.planning import Action, Impact, Plan
from controller.resources import AnyResource, Declared, Key, Resource, now
from controller.store import Store, as_bound
from controller.worlds import UNBOUND, World, pool_name, volume_name

NO_UID = "00000000-0000-0000-0000-000000000000"
"""Stands for the uid that a resource gets when it is stored."""

CHANGES = 2
"""The exit code where something would be done."""

_CREATING = frozenset({Verb.BUILD_POOL, Verb.CREATE_VOLUME})
_COLOURS = {"+": "green", "~": "yellow", "-": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """A field of a manifest that gets another value; None for not set."""

    field: str
    before: Any
    after: Any


@dataclass(slots=True, kw_only=True)
class Preview:
    """What would become of a resource.

    :param outcome: what ``apply`` would say; empty for what is not declared by the files.
    """

    key: Key
    outcome: str = ""
    changes: list[FieldChange] = field(default_factory=list)
    plan: Plan = field(default_factory=Plan)
    deleting: bool = False
    resting: bool = False
    """Whether it only waits for a pool that is declared Inactive."""

    @property
    def refused(self) -> bool:
        waits = self.resting and all(
            isinstance(item, errors.PoolNotReady) for item in self.plan.refusals
        )
        return bool(self.plan.refusals) and not waits

    @property
    def changed(self) -> bool:
        stored = self.outcome not in ("", "unchanged")
        return stored or bool(self.plan.actions or self.plan.expired) or self.deleting


@dataclass(slots=True)
class _Overlay:
    """The store's resources with declared ones laid over them."""

    resources: dict[Key, AnyResource]
    previews: dict[Key, Preview] = field(default_factory=dict)
    failed: int = 0

    def lay(self, declared: Declared) -> None:
        """Lay one over; one that the store would refuse is reported and left out."""
        former = self.resources.get(declared.key)
        declared = as_bound(declared, former) if former is not None else declared
        problem = why_refused(declared, former)
        if problem is not None:
            report(problem, about=place_of(declared))
            self.failed += 1
            return
        made = _laid_over(declared, former)
        self.resources[made.key] = made
        changes = _changes(former, made)
        outcome = "created" if former is None else "configured" if changes else "unchanged"
        shown = [] if former is None else changes
        self.previews[made.key] = Preview(key=made.key, outcome=outcome, changes=shown)


def _laid_over(declared: Declared, former: AnyResource | None) -> AnyResource:
    if former is None:
        fresh = replace(declared.metadata, uid=NO_UID, generation=1, creation_timestamp=now())
        return Resource(
            kind=declared.kind,
            metadata=fresh,
            spec=declared.spec,
            status=declared.kind.status(),
        )
    given, kept = declared.metadata, former.metadata
    changed = declared.spec.dump() != former.spec.dump()
    metadata = replace(
        kept,
        labels=given.labels,
        annotations=kept.annotations | given.annotations,
        generation=kept.generation + changed,
    )
    return replace(former, metadata=metadata, spec=declared.spec)


def _changes(former: AnyResource | None, made: AnyResource) -> list[FieldChange]:
    before = _flat(former.manifest()) if former is not None else {}
    after = _flat(made.manifest())
    return [
        FieldChange(field=name, before=before.get(name), after=after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by their paths; a list is a leaf."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= _flat(item, f"{path}.{name}" if path else name)
    return found


def plan(
    session: Session,
    paths: Sequence[str],
    *,
    pool: str,
    strict: bool,
    output: PlanOutput,
) -> int:
    """Print the plan for manifests, or for what is in the store where none are given."""
    with session.reading() as store:
        snapshot = read(paths, store, pool=pool) if paths else None
        problems = snapshot.problems if snapshot else ()
        overlay = _Overlay({item.key: item for item in store.list()})
        for declared in in_order(snapshot.declared) if snapshot else ():
            overlay.lay(declared)
        if strict and (problems or overlay.failed):
            say("Nothing was planned: with --strict all manifests have to be sound.", "red")
            return 1
        previews = _previews(session, store, overlay, everything=snapshot is None)
    if output is PlanOutput.JSON:
        put(as_json(_dump(previews, problems)))
    else:
        _show(previews)
    if problems or overlay.failed or any(item.refused for item in previews):
        return 1
    return CHANGES if any(item.changed for item in previews) else 0


def _previews(
    session: Session, store: Store, overlay: _Overlay, *, everything: bool
) -> list[Preview]:
    engine = session.engine(store)
    world = World(overlay.resources.values(), node=session.node)
    world = _with_pools_chosen(engine, world)
    world = _with_backing_paths(engine, world)
    if everything:
        pools = world.pool_names()
    else:
        laid = [world.resources[key] for key in overlay.previews]
        pools = {pool_of(item) for item in laid if item.kind.name in WORKED_ON}
    pools -= foreign_pools(overlay.resources.values(), session.node)
    found = dict(overlay.previews)
    for examined in engine.plan(world, sorted(pools)):
        for item in [*([examined.own] if examined.own else []), *examined.volumes]:
            _note(found, item)
            pool = examined.own.resource if examined.own else None
            waits = examined.name == UNBOUND  # the pools to choose from may be made by this plan
            found[item.resource.key].resting = waits or rests(item.resource, pool)
    return list(found.values())


def _note(found: dict[Key, Preview], item: Examination) -> None:
    preview = found.setdefault(item.resource.key, Preview(key=item.resource.key))
    preview.deleting = item.resource.deleting
    preview.plan = item.plan
    if item.resource.spec.suspend:
        preview.plan = replace(item.plan, actions=(), expired="")


def _with_pools_chosen(engine: Engine, world: World) -> World:
    """The world as if volumes that ask for a pool by labels had been given one."""
    resources = dict(world.resources)
    chooser = engine.examiner.chooser(world)
    for volume in in_turn(world.volumes(UNBOUND)):
        try:
            pool = chooser.choose(volume)
        except errors.StorageError:
            continue  # the plan says why
        chosen = {"pool_ref": ResourceRef(name=pool.metadata.name), "node_name": world.node}
        resources[volume.key] = replace(volume, spec=volume.spec.model_copy(update=chosen))
    return World(resources.values(), node=world.node)


def _with_backing_paths(engine: Engine, world: World) -> World:
    """The world as if volumes that others stand on across pools were there already."""
    volumes = [item for item in world.resources.values() if item.kind.name == "StorageVolume"]
    resources = dict(world.resources)
    for key in {world.backing_key(item) for item in volumes}:
        base = world.resources.get(key) if key else None
        pool = world.pool(pool_name(base)) if base is not None else None
        if base is None or pool is None or base.status.path is not None:
            continue
        try:
            backend = engine.examiner.backend(pool.spec.type)
            path = backend.volume_path(world.declare_pool(pool), volume_name(base))
        except errors.StorageError:
            continue  # the pool's own plan says what is wrong with it
        status = base.status.model_copy(update={"path": path})
        resources[base.key] = replace(base, status=status)
    return World(resources.values(), node=world.node)


def _sign(action: Action) -> str:
    if action.impact is Impact.DESTRUCTIVE:
        return "-"
    return "+" if action.verb in _CREATING else "~"


def _show(previews: Sequence[Preview]) -> None:
    for preview in previews:
        plan = preview.plan
        if not (preview.changed or plan.refusals or plan.drift):
            continue
        put("\n".join(_lines(preview)))
    put(_summary(previews))


def _lines(preview: Preview) -> Iterator[str]:
    yield painted(f"{reference(preview.key)}{_heading(preview)}", "bold", sys.stdout)
    for change in preview.changes:
        before, after = _value(change.before), _value(change.after)
        yield _painted("~", f"    ~ {change.field}: {before} -> {after}")
    for action in preview.plan.actions:
        yield from _action(action)
    for refusal in preview.plan.refusals:
        colour = "red" if preview.refused else "yellow"
        yield painted(one_line(f"    ! {refusal.reason}: {refusal}"), colour, sys.stdout)
    for item in preview.plan.drift:
        yield one_line(f"    drift: {item.field} is {item.observed}, declared {item.desired}")
    if preview.plan.expired:
        yield _painted("-", f"    - it goes: {preview.plan.expired}")


def _heading(preview: Preview) -> str:
    if preview.deleting:
        return " is being deleted"
    return f" would be {preview.outcome}" if preview.outcome else ""


def _action(action: Action) -> Iterator[str]:
    sign = _sign(action)
    head = f"    {sign} {action.verb} {action.place}: {action.reason} [{action.impact}]"
    yield _painted(sign, head)
    for lost in action.destroys:
        yield _painted("-", f"        destroys {lost}")
    for command in action.commands:
        yield clean(f"        runs {quote(command)}")


def _painted(sign: str, text: str) -> str:
    return painted(one_line(text), _COLOURS[sign], sys.stdout)


def _value(value: Any) -> str:
    return "not set" if value is None else as_word(value)


def summary(previews: Sequence[Preview]) -> Mapping[str, int]:
    """How many actions of which sign, and how many resources of which fate."""
    signs = [_sign(action) for item in previews for action in item.plan.actions]
    return {
        "create": signs.count("+"),
        "change": signs.count("~"),
        "destroy": signs.count("-"),
        "declare": sum(item.outcome in ("created", "configured") for item in previews),
        "refused": sum(item.refused for item in previews),
        "unchanged": sum(not (item.changed or item.refused) for item in previews),
    }


def _summary(previews: Sequence[Preview]) -> str:
    counts = summary(previews)
    told = (
        f"Plan: {counts['create']} to create, {counts['change']} to change, "
        f"{counts['destroy']} to destroy; {counts['unchanged']} unchanged"
    )
    if counts["declare"]:
        told += f", {counts['declare']} new or changed in the store"
    return f"{told}, {counts['refused']} refused." if counts["refused"] else f"{told}."


def _dump(
    previews: Sequence[Preview], problems: Sequence[errors.InvalidManifest]
) -> dict[str, Any]:
    return {
        "resources": [_dump_preview(item) for item in previews],
        "problems": [
            {"file": item.file, "line": item.line, "message": item.message, "hint": item.hint}
            for item in problems
        ],
        "summary": dict(summary(previews)),
    }


def _dump_preview(preview: Preview) -> dict[str, Any]:
    return {
        "kind": preview.key.kind,
        "namespace": preview.key.namespace,
        "name": preview.key.name,
        "outcome": preview.outcome,
        "changed": preview.changed,
        "deleting": preview.deleting,
        "changes": [
            {"field": item.field, "before": item.before, "after": item.after}
            for item in preview.changes
        ],
        "actions": [_dump_action(action) for action in preview.plan.actions],
        "refusals": [
            {
                "reason": item.reason,
                "message": item.message,
                "hint": item.hint,
                "terminal": item.terminal,
            }
            for item in preview.plan.refusals
        ],
        "drift": [item.dump() for item in preview.plan.drift],
        "expired": preview.plan.expired,
    }


def _dump_action(action: Action) -> dict[str, Any]:
    return {
        "sign": _sign(action),
        "verb": str(action.verb),
        "target": action.target,
        "reason": action.reason,
        "impact": str(action.impact),
        "destroys": list(action.destroys),
        "commands": [list(command) for command in action.commands],
    }
