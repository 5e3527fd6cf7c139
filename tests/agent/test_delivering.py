"""What a source declares, and what becomes of what it no longer declares."""

import json
import threading

import pytest

from backends import errors
from controller import retrying, summarising
from controller.codecs import manifests
from controller.resources import PRUNE
from controller.sources.base import Snapshot
from controller.sources.pruning import Threshold
from tests.agent.conftest import wait_until
from tests.keeper import NODE, dir_pool, pool_key, volume, volume_key

ORIGIN = "directory:/etc/poolkeeper"


class Once:
    """A source that says one thing, once, when it is told to."""

    origin = ORIGIN

    def __init__(self, said):
        self.say = threading.Event()
        self._said = [said]

    def start(self, changed):
        self._changed = changed

    def poll(self):
        return self._said.pop() if self.say.is_set() and self._said else None

    def delay(self):
        return 0.01

    def stop(self):
        self._changed()


def snapshot(*documents, **given):
    text = json.dumps({"kind": "List", "apiVersion": "v1", "items": documents})
    loaded = manifests.load(text)
    assert not loaded.problems
    return Snapshot(origin=ORIGIN, declared=loaded.declared, **given)


def pools(tmp_path, *names, **spec):
    return [dir_pool(name, tmp_path / name, **spec) for name in names]


def names(site):
    return [item.metadata.name for item in site.store.list("StoragePool")]


def ready(site, former):
    """Whether a pool of another life is ready."""
    found = site.store.get(pool_key("images"))
    if found is None or found.metadata.uid == former:
        return False
    return summarising.ready(found)


def reasons(site):
    return [(str(item.key), item.reason) for item in site.store.events()]


def test_without_pruning_everything_stays(site, tmp_path):
    agent = site.agent()
    agent.deliver(snapshot(*pools(tmp_path, "a", "b", "c")))
    agent.deliver(snapshot(*pools(tmp_path, "a")))
    assert names(site) == ["a", "b", "c"]


def test_with_pruning_what_is_no_longer_declared_goes(site, tmp_path):
    agent = site.agent(pruning=Threshold(count=10, percent=100))
    agent.deliver(snapshot(*pools(tmp_path, "a", "b", "c")))
    site.keeper.apply(*pools(tmp_path, "by-hand"))
    agent.deliver(snapshot(*pools(tmp_path, "a")))
    assert names(site) == ["a", "by-hand"]
    assert ("StoragePool/b", "Pruned") in reasons(site)


@pytest.mark.parametrize("threshold", [Threshold(count=1, percent=100), Threshold(percent=10)])
def test_more_than_the_threshold_is_not_pruned(site, tmp_path, threshold):
    agent = site.agent(pruning=threshold)
    agent.deliver(snapshot(*pools(tmp_path, *"abcd")))
    agent.deliver(snapshot(*pools(tmp_path, "a", "b")))
    assert names(site) == ["a", "b", "c", "d"]
    assert (f"ManifestSource/{ORIGIN}", "PruneRefused") in reasons(site)
    agent.deliver(snapshot(*pools(tmp_path, *"abc")))
    assert names(site) == ["a", "b", "c"]


def test_an_incomplete_or_empty_snapshot_prunes_nothing(site, tmp_path):
    agent = site.agent(pruning=Threshold(percent=100))
    agent.deliver(snapshot(*pools(tmp_path, *"abcd")))
    agent.deliver(snapshot(*pools(tmp_path, *"abc"), complete=False, reason="a file is broken"))
    agent.deliver(snapshot())
    assert names(site) == ["a", "b", "c", "d"]


def test_what_is_marked_to_be_kept_is_not_pruned(site, tmp_path):
    agent = site.agent(pruning=Threshold(percent=100))
    kept = dir_pool("kept", tmp_path / "kept", annotations={PRUNE: "disabled"})
    agent.deliver(snapshot(kept, *pools(tmp_path, "a", "b")))
    agent.deliver(snapshot(*pools(tmp_path, "a")))
    assert names(site) == ["a", "kept"]


def test_what_other_nodes_keep_is_left_to_them(site, tmp_path):
    site.agent().deliver(
        snapshot(
            *pools(tmp_path, "elsewhere", node_name="other"),
            *pools(tmp_path, "mine", node_name=NODE),
            *pools(tmp_path, "anywhere"),
            volume("theirs", "elsewhere", capacity="1Mi"),
            volume("also-theirs", "undeclared", capacity="1Mi", node_name="other"),
            volume("ours", "mine", capacity="1Mi"),
        )
    )
    assert names(site) == ["anywhere", "mine"]
    assert [item.metadata.name for item in site.store.list("StorageVolume")] == ["ours"]


def test_a_pool_that_moves_to_another_node_is_no_longer_kept_here(site, tmp_path):
    agent = site.agent(pruning=Threshold(percent=100))
    agent.deliver(snapshot(*pools(tmp_path, "images"), volume("disk", "images", capacity="1Mi")))
    site.keeper.reconcile()
    assert (tmp_path / "images" / "disk").exists()
    agent.deliver(
        snapshot(
            *pools(tmp_path, "images", node_name="other"),
            volume("disk", "images", capacity="2Mi"),
        )
    )
    assert site.keeper.names() == []
    site.keeper.engine.reconcile("images")
    assert (tmp_path / "images" / "disk").stat().st_size == 2**20
    assert not site.keeper.gone(pool_key("images"))


def test_a_broken_manifest_is_told_and_the_others_are_applied(site, tmp_path):
    problem = errors.InvalidManifest("It is no YAML.", file="pool.yaml", line=3)
    site.agent().deliver(snapshot(*pools(tmp_path, "a"), problems=(problem,), complete=False))
    assert names(site) == ["a"]
    assert (f"ManifestSource/{ORIGIN}", "InvalidManifest") in reasons(site)


def test_a_change_that_is_refused_is_told_and_the_others_are_applied(site, tmp_path):
    agent = site.agent()
    first = volume("disk", "a", capacity="1Mi", format="raw")
    agent.deliver(snapshot(*pools(tmp_path, "a"), first))
    changed = volume("disk", "a", capacity="1Mi", format="qcow2")
    agent.deliver(snapshot(changed, *pools(tmp_path, "a", "b")))
    assert names(site) == ["a", "b"]
    assert site.keeper.get(volume_key("disk")).spec.format == "raw"
    assert ("StorageVolume/default/disk", "InvalidSpec") in reasons(site)


def test_what_was_still_being_deleted_is_applied_once_it_has_gone(site, tmp_path):
    images = tmp_path / "images"
    declared = pools(tmp_path, "images", deletion_policy="Delete")
    site.keeper.apply(*declared)
    site.keeper.reconcile()
    (images / "strange").write_bytes(b"x")
    former = site.keeper.get(pool_key("images")).metadata.uid
    source = Once(snapshot(*declared))
    with site.running(source):
        site.keeper.delete(pool_key("images"))
        source.say.set()
        wait_until(lambda: ("StoragePool/images", "Conflict") in reasons(site))
        (images / "strange").unlink()
        wait_until(lambda: ready(site, former))


def test_a_snapshot_is_taken_over_once_the_store_can_be_written(site, tmp_path, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_RETRY", 0.01)
    apply = site.store.apply
    failures = [errors.SystemFailure("The disk is full.")] * 3

    def failing(*args, **kwargs):
        if failures:
            raise failures.pop()
        return apply(*args, **kwargs)

    monkeypatch.setattr(site.store, "apply", failing)
    source = Once(snapshot(*pools(tmp_path, "a", "b")))
    source.say.set()
    with site.running(source):
        wait_until(lambda: names(site) == ["a", "b"])
    assert failures == []


def test_the_same_snapshot_twice_writes_nothing(site, tmp_path):
    agent = site.agent(pruning=Threshold())
    delivered = snapshot(*pools(tmp_path, "a"), volume("disk", "a", capacity="1Mi"))
    agent.deliver(delivered)
    written = site.keeper.recorded()
    agent.deliver(delivered)
    assert site.keeper.recorded() == written
