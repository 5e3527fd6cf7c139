"""What goes from the store when a source does not declare it any more."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.resources import PRUNE, AnyResource, Declared, Metadata, Resource, kinds
from controller.sources.base import Snapshot
from controller.sources.pruning import Pruning, Threshold, prunable

ORIGIN = "directory:/etc/poolkeeper"


def stored(name: str, kind: str = "StoragePool", **metadata: object) -> AnyResource:
    item = kinds()[kind]
    spec = {
        "StoragePool": {"type": "dir", "target": {"path": "/srv/a"}},
        "StorageVolume": {"poolRef": {"name": "a"}, "capacity": "1Gi"},
    }[kind]
    named = Metadata(name=name, namespace="default" if item.namespaced else "", uid=name)
    return Resource(
        kind=item,
        metadata=dataclasses.replace(named, **metadata),  # type: ignore[arg-type]
        spec=item.spec.model_validate(spec),
        status=item.status(),
    )


def snapshot(*resources: AnyResource, complete: bool = True, reason: str = "") -> Snapshot:
    declared = tuple(
        Declared(kind=item.kind, metadata=item.metadata, spec=item.spec) for item in resources
    )
    return Snapshot(origin=ORIGIN, declared=declared, complete=complete, reason=reason)


def test_what_is_no_longer_declared_goes_volumes_first() -> None:
    kept = [stored(f"kept-{number}") for number in range(10)]
    gone = [stored("old"), stored("disk", "StorageVolume")]
    pruning = prunable([*gone, *kept], snapshot(*kept))
    assert [str(key) for key in pruning.delete] == ["StorageVolume/default/disk", "StoragePool/old"]
    assert pruning.refused == ""


def test_nothing_goes_where_all_is_declared() -> None:
    present = [stored("a"), stored("b")]
    assert prunable(present, snapshot(*present)) == Pruning()
    assert prunable([], snapshot(*present)) == Pruning()


def test_an_incomplete_snapshot_prunes_nothing_and_tells_why() -> None:
    present = [stored("a"), stored("b"), stored("c"), stored("d")]
    pruning = prunable(present, snapshot(*present[1:], complete=False, reason="b.yaml is broken."))
    assert pruning.delete == ()
    assert pruning.refused == f"{ORIGIN} can't be read in full: b.yaml is broken."


def test_an_empty_snapshot_prunes_nothing() -> None:
    pruning = prunable([stored("a")], snapshot(), Threshold(count=100, percent=100))
    assert pruning.delete == ()
    assert "declares nothing" in pruning.refused


@pytest.mark.parametrize(
    ("total", "gone", "allowed"),
    [(2, 1, True), (3, 2, False), (10, 3, True), (10, 4, False), (100, 10, True), (100, 11, False)],
)
def test_the_threshold_holds_back_all_or_nothing(total: int, gone: int, allowed: bool) -> None:
    present = [stored(f"pool-{number}") for number in range(total)]
    pruning = prunable(present, snapshot(*present[gone:]))
    assert len(pruning.delete) == (gone if allowed else 0)
    assert bool(pruning.refused) != allowed
    if not allowed:
        assert f"{gone} of the {total} resources" in pruning.refused


def test_a_threshold_can_be_raised_and_lowered() -> None:
    present = [stored(f"pool-{number}") for number in range(4)]
    left = snapshot(present[0])
    assert len(prunable(present, left, Threshold(count=3, percent=100)).delete) == 3
    assert prunable(present, left, Threshold(count=2, percent=100)).refused
    assert prunable(present, snapshot(*present[1:]), Threshold(count=0)).refused


def test_protected_resources_and_those_that_go_already_are_passed_over() -> None:
    kept = stored("kept")
    protected = stored("protected", annotations={PRUNE: "disabled"})
    other = stored("other", annotations={PRUNE: "enabled"})
    going = stored("going", deletion_timestamp="2024-01-01T00:00:00Z")
    pruning = prunable([kept, protected, other, going], snapshot(kept))
    assert [key.name for key in pruning.delete] == ["other"]


@settings(deadline=None)
@given(
    present=st.sets(st.integers(0, 40)),
    declared=st.sets(st.integers(0, 40)),
    complete=st.booleans(),
    count=st.integers(0, 50),
    percent=st.integers(0, 100),
)
def test_only_the_undeclared_go_and_never_more_than_allowed(
    present: set[int], declared: set[int], complete: bool, count: int, percent: int
) -> None:
    resources = [stored(f"p{number}") for number in sorted(present)]
    seen = snapshot(*(stored(f"p{number}") for number in sorted(declared)), complete=complete)
    pruning = prunable(resources, seen, Threshold(count=count, percent=percent))
    gone = {f"p{number}" for number in present - declared}
    deleted = {key.name for key in pruning.delete}
    assert deleted in (gone, set())
    assert len(deleted) <= count
    assert bool(gone) == bool(deleted or pruning.refused)
    assert not (deleted and (not complete or not declared))
