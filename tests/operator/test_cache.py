"""The cache of the cluster's store: what it makes of answers and events in any order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.cluster.apiserver import ApiServer
from controller.cluster.posting import Poster
from controller.cluster.store import ClusterStore
from controller.resources import FINALIZER, Key, kinds
from controller.store import Store

KIND = kinds()["StorageVolume"]
KEY = Key("StorageVolume", "default", "a")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterStore]:
    """A store whose server nobody asks."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "none",
        "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "none", "user": {}}],
        "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    server = ApiServer()
    local = Store(tmp_path / "state")
    yield ClusterStore(server, local, Poster(server, node="n1"), node="n1")
    local.close()


def volume(version: int, *, uid: str = "u1", generation: int = 1, **metadata: Any) -> Any:
    return {
        "apiVersion": "poolkeeper.dev/v1alpha1",
        "kind": "StorageVolume",
        "metadata": {
            "name": "a",
            "namespace": "default",
            "uid": uid,
            "generation": generation,
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **metadata,
        },
        "spec": {"poolRef": {"name": "images"}, "capacity": "1Gi", "nodeName": "n1"},
        "status": {"observedGeneration": -1},
    }


HISTORY = [
    (volume(1), False),
    (volume(2, generation=2), False),
    (volume(3, generation=2, finalizers=[FINALIZER]), False),
    (volume(4, generation=2), True),
    (volume(5, uid="u2"), False),
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(5))), ids=str)
def test_events_lead_to_the_newest_state_in_any_order(
    store: ClusterStore, order: tuple[int, ...]
) -> None:
    for place in order:
        found, deleted = HISTORY[place]
        store.observe(KIND, found, deleted=deleted)
    (kept,) = store.list()
    assert (kept.metadata.uid, kept.metadata.resource_version) == ("u2", "5")


def test_what_went_is_not_brought_back_by_a_late_answer(store: ClusterStore) -> None:
    store.observe(KIND, volume(1))
    store.observe(KIND, volume(4), deleted=True)
    store.observe(KIND, volume(3))
    assert store.list() == []


def test_an_answer_without_the_last_finalizer_is_the_end(store: ClusterStore) -> None:
    store.observe(KIND, volume(1, finalizers=[FINALIZER]))
    store.observe(KIND, volume(2, deletionTimestamp="2026-01-01T00:00:01Z"))
    assert store.list() == []


def test_finalizers_of_others_are_not_shown(store: ClusterStore) -> None:
    store.observe(KIND, volume(1, finalizers=["example.org/other"]))
    (found,) = store.list()
    assert found.metadata.finalizers == ()


def test_only_what_has_to_be_acted_on_wakes(store: ClusterStore) -> None:
    store.observe(KIND, volume(1))
    assert store.concerned() == {"images"}
    written = volume(2, finalizers=[FINALIZER])
    written["status"] = {"observedGeneration": 1, "path": "/a"}
    store.observe(KIND, written)
    assert not store.changed.is_set()
    assert store.concerned() == set()
    store.observe(KIND, volume(3, generation=2))
    assert store.changed.is_set()
    assert store.concerned() == {"images"}
    store.observe(KIND, volume(4), deleted=True)
    assert store.concerned() == {"images"}


def test_what_this_release_cannot_read_is_left_out(
    store: ClusterStore, caplog: pytest.LogCaptureFixture
) -> None:
    strange = volume(1)
    strange["spec"]["format"] = "tomorrow"
    store.observe(KIND, strange)
    assert store.list() == []
    assert "can't be read by this release" in caplog.text
