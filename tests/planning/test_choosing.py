"""The choice among pools follows from the resources alone, in whatever order they are seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import errors
from backends.base import BackendContext
from backends.dir import DirBackend
from backends.host.marks import MarkStore
from backends.registry import pool_spec
from backends.spec import Condition, PoolStatus, VolumeSpec, VolumeStatus
from controller.choosing import Chooser, in_turn, words
from controller.resources import AnyResource, Metadata, Resource, kinds

BACKEND = DirBackend(BackendContext(marks=MarkStore(Path("/nonexistent"))))
READY = Condition(type="Ready", status="True", reason="Running", last_transition_time="")


def pool(name: str, available: int) -> AnyResource:
    return Resource(
        kind=kinds()["StoragePool"],
        metadata=Metadata(name=name, uid=name, labels={"app": "db"}),
        spec=pool_spec().model_validate({"type": "dir", "target": {"path": f"/srv/{name}"}}),
        status=PoolStatus(state="Running", available=available, conditions=(READY,)),
    )


def volume(number: int, size: int) -> AnyResource:
    return Resource(
        kind=kinds()["StorageVolume"],
        metadata=Metadata(name=f"v{number}", namespace="default", uid=f"v{number}"),
        spec=VolumeSpec.model_validate(
            {"poolSelector": {"matchLabels": {"app": "db"}}, "capacity": size}
        ),
        status=VolumeStatus(),
    )


def choices(pools: list[AnyResource], volumes: list[AnyResource]) -> dict[str, str]:
    chooser = Chooser(pools, backend=lambda name: BACKEND)
    found = {}
    for item in in_turn(volumes):
        try:
            found[item.metadata.name] = chooser.choose(item).metadata.name
        except errors.NoSpace:
            found[item.metadata.name] = ""
    return found


@given(data=st.data())
def test_everyone_chooses_the_same_and_nothing_is_given_away_twice(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=6))
    wanted = data.draw(st.lists(st.integers(0, 12), max_size=8))
    pools = [pool(f"p{number}", size) for number, size in enumerate(sizes)]
    volumes = [volume(number, size) for number, size in enumerate(wanted)]
    found = choices(pools, volumes)
    again = choices(data.draw(st.permutations(pools)), data.draw(st.permutations(volumes)))
    assert again == found
    for number, size in enumerate(sizes):
        given_away = [wanted[int(name[1:])] for name, at in found.items() if at == f"p{number}"]
        assert sum(given_away) <= size
    for name, at in found.items():
        if not at:
            assert wanted[int(name[1:])] > max(sizes) - sum(wanted)


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ({"matchLabels": {"app": "db", "tier": ""}}, "app=db,tier="),
        (
            {
                "matchExpressions": [
                    {"key": "a", "operator": "In", "values": ["x", "y"]},
                    {"key": "b", "operator": "NotIn", "values": ["z"]},
                    {"key": "c", "operator": "Exists"},
                    {"key": "d", "operator": "DoesNotExist"},
                ]
            },
            "a in (x,y),b notin (z),c,!d",
        ),
    ],
)
def test_a_selector_is_told_as_kubectl_takes_it(selector: dict[str, object], said: str) -> None:
    spec = VolumeSpec.model_validate({"poolSelector": selector, "capacity": 1})
    assert spec.pool_selector is not None
    assert words(spec.pool_selector) == said
