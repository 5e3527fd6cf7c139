"""What the store makes of declarations, statuses and deletions."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import errors
from backends.spec import Condition, PoolStatus
from controller.resources import FINALIZER, Declared, Key, Metadata, kinds
from controller.store import Store

Declare = Callable[..., Declared]


def committed(path: Path) -> int:
    """A number that another connection sees change with every commit."""
    with closing(sqlite3.connect(path)) as connection:
        return sum(
            int(connection.execute(f"SELECT total({column}) FROM {table}").fetchone()[0])
            for table, column in (("counters", "value"), ("resources", "version"), ("steps", "id"))
        )


def test_a_new_resource_gets_what_an_api_server_would_give_it(store: Store, pool: Declare) -> None:
    applied = store.apply(pool(labels={"tier": "fast"}))

    metadata = applied.resource.metadata
    assert applied.outcome == "created"
    assert uuid.UUID(metadata.uid).version == 4
    assert metadata.generation == 1
    assert int(metadata.resource_version) > 0
    assert metadata.creation_timestamp.endswith("Z")
    assert metadata.deletion_timestamp is None
    assert metadata.labels == {"tier": "fast"}
    assert applied.resource.status.observed_generation == -1
    assert store.get(applied.resource.key) == applied.resource


def test_specs_come_back_as_they_were_declared(store: Store, pool: Declare) -> None:
    declared = pool(
        target={"path": "/srv/images", "permissions": {"mode": "0711", "owner": 0}},
        features={"copyOnWrite": False},
        volumeDefaults={"permissions": {"mode": "0640"}},
    )
    assert store.apply(declared).resource.spec == declared.spec


def test_applying_the_same_again_writes_nothing(
    store: Store, pool: Declare, tmp_path: Path
) -> None:
    store.apply(pool(), source="directory:/etc/p")
    before = committed(tmp_path / "state/store.db")
    revision = store.revision()

    again = store.apply(pool(), source="directory:/etc/p")

    assert again.outcome == "unchanged"
    assert committed(tmp_path / "state/store.db") == before
    assert store.revision() == revision


def test_a_changed_spec_raises_the_generation_and_labels_do_not(
    store: Store, pool: Declare
) -> None:
    first = store.apply(pool()).resource.metadata
    changed = store.apply(pool(state="Inactive"))
    labelled = store.apply(pool(state="Inactive", labels={"a": "b"}))

    assert (changed.outcome, labelled.outcome) == ("configured", "configured")
    assert changed.resource.metadata.generation == 2
    assert labelled.resource.metadata.generation == 2
    assert labelled.resource.metadata.labels == {"a": "b"}
    versions = [
        int(item.resource_version)
        for item in (first, changed.resource.metadata, labelled.resource.metadata)
    ]
    assert versions == sorted(set(versions))
    assert changed.resource.metadata.uid == first.uid
    assert changed.resource.metadata.creation_timestamp == first.creation_timestamp


def test_an_immutable_field_is_refused_by_name_and_nothing_changes(
    store: Store, pool: Declare
) -> None:
    before = store.apply(pool(poolName="one")).resource
    with pytest.raises(errors.InvalidSpec, match=r"StoragePool/images: spec: poolName can't be"):
        store.apply(pool(poolName="two"))
    assert store.get(before.key) == before


def test_a_broken_rule_is_refused_for_a_new_resource(store: Store, pool: Declare) -> None:
    with pytest.raises(errors.InvalidSpec, match=r"build\.policy Overwrite needs build\.confirm"):
        store.apply(pool(build={"policy": "Overwrite"}))
    assert store.list() == []


def test_annotations_of_others_survive_an_apply_and_dropped_ones_go(
    store: Store, pool: Declare
) -> None:
    key = store.apply(pool(annotations={"team": "a", "note": "x"})).resource.key
    assert store.annotate(key, "poolkeeper.dev/requested-at", "now")

    applied = store.apply(pool(annotations={"team": "b"}))

    assert applied.outcome == "configured"
    assert applied.resource.metadata.annotations == {
        "team": "b",
        "poolkeeper.dev/requested-at": "now",
    }
    assert applied.resource.metadata.generation == 1


def test_an_annotation_is_set_changed_and_taken_off(store: Store, pool: Declare) -> None:
    key = store.apply(pool()).resource.key
    assert store.annotate(key, "a", "1")
    assert not store.annotate(key, "a", "1")
    assert store.annotate(key, "a", None)
    assert not store.annotate(key, "a", None)
    assert not store.annotate(Key("StoragePool", "", "other"), "a", "1")
    resource = store.get(key)
    assert resource is not None
    assert resource.metadata.annotations == {}


def test_a_status_is_written_only_where_it_differs(
    store: Store, pool: Declare, tmp_path: Path
) -> None:
    resource = store.apply(pool()).resource
    uid = resource.metadata.uid
    ready = Condition(type="Ready", status="True", reason="Ok", last_transition_time="t")
    status = PoolStatus(observed_generation=1, capacity=2**30, conditions=(ready,))
    revision = store.revision()

    assert store.write_status(resource.key, status, uid=uid)
    written = store.get(resource.key)
    assert written is not None
    assert written.status == status
    assert written.spec == resource.spec
    assert written.metadata.generation == 1
    assert written.metadata.resource_version != resource.metadata.resource_version

    before = committed(tmp_path / "state/store.db")
    assert not store.write_status(resource.key, status, uid=uid)
    assert committed(tmp_path / "state/store.db") == before
    assert store.revision() == revision


def test_a_status_of_what_has_been_made_anew_is_dropped(store: Store, pool: Declare) -> None:
    former = store.apply(pool()).resource
    store.request_deletion(former.key)
    current = store.apply(pool()).resource
    status = PoolStatus(observed_generation=1)

    assert not store.write_status(former.key, status, uid=former.metadata.uid)
    assert store.get(current.key) == current
    assert not store.write_status(current.key, status, uid=current.metadata.uid, generation=7)
    assert store.write_status(current.key, status, uid=current.metadata.uid, generation=1)


def test_deletion_waits_for_the_last_finalizer(store: Store, pool: Declare) -> None:
    resource = store.apply(pool()).resource
    assert store.add_finalizer(resource.key, uid=resource.metadata.uid)
    assert store.add_finalizer(resource.key, finalizer="example.org/second")
    store.set_runtime(resource.metadata.uid, {"boot": "1"})

    assert store.request_deletion(resource.key)
    deleting = store.get(resource.key)
    assert deleting is not None
    assert deleting.deleting
    assert deleting.metadata.generation == 2
    with pytest.raises(errors.Conflict, match="being deleted"):
        store.apply(pool())
    assert not store.add_finalizer(resource.key, finalizer="example.org/third")

    assert store.remove_finalizer(resource.key)
    assert store.get(resource.key) is not None
    assert not store.remove_finalizer(resource.key)
    assert store.remove_finalizer(resource.key, finalizer="example.org/second")
    assert store.get(resource.key) is None
    assert store.runtime(resource.metadata.uid) == {}


def test_a_resource_that_stays_loses_its_finalizer_and_nothing_else(
    store: Store, pool: Declare
) -> None:
    resource = store.apply(pool()).resource
    store.add_finalizer(resource.key)
    held = store.get(resource.key)
    assert held is not None
    assert held.metadata.finalizers == (FINALIZER,)
    assert store.remove_finalizer(resource.key)
    left = store.get(resource.key)
    assert left is not None
    assert left.metadata.finalizers == ()
    assert left.spec == resource.spec


def test_a_second_request_for_deletion_changes_nothing(store: Store, pool: Declare) -> None:
    resource = store.apply(pool()).resource
    store.add_finalizer(resource.key)
    store.request_deletion(resource.key)
    deleting = store.get(resource.key)
    assert store.request_deletion(resource.key)
    assert store.get(resource.key) == deleting
    assert not store.request_deletion(Key("StoragePool", "", "other"))


def test_a_resource_without_finalizers_goes_at_once(store: Store, pool: Declare) -> None:
    key = store.apply(pool()).resource.key
    assert store.request_deletion(key)
    assert store.get(key) is None


def test_a_finalizer_is_not_put_on_a_successor_of_the_same_name(
    store: Store, pool: Declare
) -> None:
    former = store.apply(pool()).resource
    store.request_deletion(former.key)
    current = store.apply(pool()).resource
    assert not store.add_finalizer(current.key, uid=former.metadata.uid)
    assert not store.remove_finalizer(current.key, uid=former.metadata.uid)
    assert store.get(current.key) == current


def test_resources_are_listed_by_kind_namespace_and_source(
    store: Store, pool: Declare, volume: Declare
) -> None:
    store.apply(volume("b", namespace="two"), source="cli")
    store.apply(volume("a"), source="git:x")
    store.apply(pool("zeta"), source="git:x")

    def names(resources: list[Any]) -> list[str]:
        return [str(item.key) for item in resources]

    everything = ["StoragePool/zeta", "StorageVolume/default/a", "StorageVolume/two/b"]
    assert names(store.list()) == everything
    assert names(store.list("StorageVolume")) == everything[1:]
    assert names(store.list("StorageVolume", "two")) == everything[2:]
    assert names(store.from_source("git:x")) == everything[:2]
    assert store.source_of(Key("StorageVolume", "two", "b")) == "cli"


def test_another_source_takes_a_resource_over_without_waking_anyone(
    store: Store, pool: Declare
) -> None:
    resource = store.apply(pool(), source="directory:/a").resource
    revision = store.revision()
    assert store.apply(pool(), source="directory:/b").outcome == "unchanged"
    assert store.source_of(resource.key) == "directory:/b"
    assert store.apply(pool()).outcome == "unchanged"
    assert store.source_of(resource.key) == "directory:/b"
    assert store.revision() == revision
    assert store.get(resource.key) == resource


def test_the_revision_shows_what_a_controller_has_to_act_on(store: Store, pool: Declare) -> None:
    def moved(act: Callable[[], object]) -> bool:
        before = store.revision()
        act()
        return store.revision() > before

    assert moved(lambda: store.apply(pool()))
    resource = store.list()[0]
    key, uid = resource.key, resource.metadata.uid
    assert moved(lambda: store.apply(pool(state="Inactive")))
    assert moved(lambda: store.apply(pool(state="Inactive", labels={"a": "b"})))
    assert moved(lambda: store.annotate(key, "a", "b"))
    assert not moved(lambda: store.add_finalizer(key))
    assert not moved(lambda: store.write_status(key, PoolStatus(observed_generation=1), uid=uid))
    assert not moved(lambda: store.record_event(key, uid, "Normal", "R", "m"))
    assert not moved(lambda: store.end_step(store.begin_step(key, uid, "v", "t")))
    assert not moved(lambda: store.set_runtime(uid, {"a": 1}))
    assert moved(lambda: store.request_deletion(key))
    assert moved(lambda: store.remove_finalizer(key))


def test_the_revision_shows_the_commits_of_others(
    store: Store, pool: Declare, tmp_path: Path
) -> None:
    before = store.revision()
    with closing(Store(tmp_path / "state")) as other:
        other.apply(pool())
    assert store.revision() > before


def test_what_another_process_changed_is_read_anew(
    store: Store, pool: Declare, tmp_path: Path
) -> None:
    key = store.apply(pool()).resource.key
    with closing(Store(tmp_path / "state")) as other:
        other.apply(pool(state="Inactive"))
    resource = store.get(key)
    assert resource is not None
    assert resource.spec.state == "Inactive"
    assert resource.metadata.generation == 2


def test_a_resource_of_a_newer_release_is_reported_and_the_others_go_on(
    store: Store, pool: Declare, tmp_path: Path
) -> None:
    store.apply(pool("good"))
    odd = store.apply(pool("odd")).resource
    store.apply(pool("unknown"))
    with closing(sqlite3.connect(tmp_path / "state/store.db")) as other, other:
        other.execute(
            "UPDATE resources SET version = 1000, spec = ? WHERE name = 'odd'",
            ('{"type":"dir","invented":1}',),
        )
        other.execute(
            "UPDATE resources SET version = 1001, kind = 'Invention' WHERE name = 'unknown'"
        )

    assert [item.metadata.name for item in store.list()] == ["good"]
    problems = {str(item.key): item.message for item in store.problems()}
    assert set(problems) == {"StoragePool/odd", "Invention/unknown"}
    assert "invented" in problems["StoragePool/odd"]
    with pytest.raises(errors.InvalidSpec, match="can't be read"):
        store.get(odd.key)
    with pytest.raises(errors.InvalidSpec, match="can't be read"):
        store.apply(pool("odd"))
    assert store.request_deletion(odd.key)
    assert store.apply(pool("odd")).outcome == "created"


def test_threads_share_a_store(store: Store, pool: Declare) -> None:
    def work(number: int) -> None:
        for turn in range(10):
            store.apply(pool(f"pool-{number}", labels={"turn": str(turn)}))
            store.list()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))

    listed = store.list()
    assert [item.metadata.labels["turn"] for item in listed] == ["9"] * 6
    versions = [item.metadata.resource_version for item in listed]
    assert len(set(versions)) == 6


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["Active", "Inactive"]),
        st.sampled_from(["5m", "1h"]),
        st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy"), max_size=2),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=40)
@given(changes=CHANGES)
def test_generation_counts_the_changes_of_the_spec_and_nothing_else(
    changes: list[tuple[str, str, dict[str, str]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind = kinds()["StoragePool"]
    with closing(Store(tmp_path_factory.mktemp("state"))) as store:
        generation, former, version = 0, None, 0
        for state, interval, labels in changes:
            spec = kind.spec.model_validate(
                {
                    "type": "dir",
                    "target": {"path": "/srv/a"},
                    "state": state,
                    "refresh": {"interval": interval},
                }
            )
            declared = Declared(kind=kind, metadata=Metadata(name="a", labels=labels), spec=spec)
            applied = store.apply(declared)
            generation += (state, interval) != (former and former[:2])
            unchanged = (state, interval, labels) == former
            former = (state, interval, labels)
            metadata = applied.resource.metadata
            assert metadata.generation == generation
            assert (applied.outcome == "unchanged") == unchanged
            assert (int(metadata.resource_version) > version) != unchanged
            version = int(metadata.resource_version)
            assert metadata.labels == labels
            assert FINALIZER not in metadata.finalizers
