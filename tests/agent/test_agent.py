"""The agent: who wakes it, what holds it up, and how it ends."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from backends.host import commands
from controller import agent as agents
from controller import retrying
from controller.sources.directory import DirectorySource
from tests.agent.conftest import wait_until
from tests.keeper import dir_pool, pool_key, volume, volume_key

REPOSITORY = Path(__file__).parents[2]

APPLY_ELSEWHERE = """
import json, pathlib, sys
from controller.codecs import manifests
from controller.store import Store
loaded = manifests.load(sys.stdin.read())
assert not loaded.problems, loaded.problems
store = Store(pathlib.Path(sys.argv[1]))
for item in loaded.declared:
    store.apply(item)
"""


def apply_in_another_process(site, *documents):

    items = json.dumps({"kind": "List", "apiVersion": "v1", "items": documents})
    subprocess.run(
        [sys.executable, "-c", APPLY_ELSEWHERE, str(site.keeper.state)],
        input=items, text=True, check=True, cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])},
    )  # fmt: skip


def test_a_pool_that_comes_later_is_given_the_volumes_that_wait(site, tmp_path):
    waiting = volume("disk", "x", pool_selector={"matchLabels": {"app": "db"}}, capacity="1Mi")
    del waiting["spec"]["poolRef"]
    with site.running():
        site.keeper.apply(waiting, dir_pool("images", tmp_path / "images"))
        wait_until(lambda: site.keeper.reason(volume_key("disk")) == "NoPoolMatches")
        labelled = dir_pool("images", tmp_path / "images")
        labelled["metadata"]["labels"] = {"app": "db"}
        site.keeper.apply(labelled)
        wait_until(ready(site, "disk"))


def ready(site, name):
    return lambda: site.keeper.truth(volume_key(name), "Ready") == "True"


def test_what_another_process_applies_is_carried_out(site, tmp_path):
    images = tmp_path / "images"
    with site.running():
        apply_in_another_process(
            site, dir_pool("images", images), volume("disk", "images", capacity="1Mi")
        )
        wait_until(ready(site, "disk"))
        apply_in_another_process(site, volume("disk", "images", capacity="2Mi"))
        wait_until(lambda: (images / "disk").stat().st_size == 2 * 2**20)
        site.store.request_deletion(volume_key("disk"))
        wait_until(lambda: site.keeper.get(pool_key("images")).status.volumes.managed == 0)


def test_a_request_to_look_now_is_answered(site, tmp_path):
    site.keeper.apply(dir_pool("images", tmp_path / "images", refresh={"interval": "24h"}))
    with site.running():
        wait_until(lambda: site.keeper.truth(pool_key("images"), "Ready") == "True")
        (tmp_path / "images" / "strange").write_bytes(b"x")
        site.keeper.annotate(pool_key("images"), requested_at="now")
        status = lambda: site.keeper.get(pool_key("images")).status  # noqa: E731
        wait_until(lambda: status().last_handled_request == "now")
        assert status().volumes.unmanaged == 1


def test_a_pool_that_hangs_holds_up_no_other(site, tmp_path, monkeypatch):
    monkeypatch.setattr(agents, "STOP_WITHIN", 0.2)
    site.backend.hanging = {"hung"}
    site.keeper.apply(
        dir_pool("hung", tmp_path / "hung"),
        dir_pool("images", tmp_path / "images"),
        volume("disk", "images", capacity="1Mi"),
        volume("waits", "hung", capacity="1Mi"),
    )
    with site.running(cleanly=False):
        wait_until(ready(site, "disk"))
        assert site.backend.attempts["hung"] == 1
        assert site.keeper.get(volume_key("waits")).status.observed_generation == -1
    site.backend.release.set()


def test_a_failed_step_is_tried_again_and_leaves_its_neighbours_alone(site, tmp_path, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_RETRY", 0.01)
    site.backend.failing = {"bad"}
    site.keeper.apply(
        dir_pool("images", tmp_path / "images"),
        volume("good", "images", capacity="1Mi"),
        volume("bad", "images", capacity="1Mi"),
    )
    with site.running():
        wait_until(lambda: site.backend.attempts["bad"] > 3)
        wait_until(ready(site, "good"))
        assert site.keeper.assert_retrying(volume_key("bad"), "SystemFailure")
        site.backend.failing = set()
        wait_until(ready(site, "bad"))


def test_pools_that_fail_do_not_spur_each_other_on(site, tmp_path, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_RETRY", 600.0)
    site.backend.failing = {"one", "two"}
    for name in ("one", "two"):
        site.keeper.apply(
            dir_pool(f"pool-{name}", tmp_path / name),
            volume(name, f"pool-{name}", capacity="1Mi"),
            volume(f"good-{name}", f"pool-{name}", capacity="1Mi"),
        )
    with site.running():
        wait_until(lambda: site.backend.attempts["one"] and site.backend.attempts["two"])
        wait_until(ready(site, "good-one"))
        wait_until(ready(site, "good-two"))
        time.sleep(1.0)
        # Each may be woken by what was really done in the other, not by its failures.
        assert site.backend.attempts["one"] <= 4
        assert site.backend.attempts["two"] <= 4


def test_what_waits_for_another_pool_is_woken_by_it(site, tmp_path, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_RETRY", 600.0)
    top = volume(
        "top", "tops", format="qcow2",
        backing_store={"volumeRef": {"name": "base"}, "format": "qcow2"},
    )  # fmt: skip
    site.keeper.apply(
        dir_pool("images", tmp_path / "images"), dir_pool("tops", tmp_path / "tops"), top
    )
    with site.running():
        wait_until(lambda: site.keeper.reason(volume_key("top")) == "BackingMissing")
        site.keeper.apply(volume("base", "images", capacity="1Mi", format="qcow2"))
        wait_until(ready(site, "top"))


def test_the_later_of_two_pools_gets_its_turn_when_the_first_goes(site, tmp_path, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_RETRY", 600.0)
    site.keeper.apply(dir_pool("first", tmp_path / "images"))
    with site.running():
        wait_until(lambda: site.keeper.truth(pool_key("first"), "Ready") == "True")
        site.keeper.apply(dir_pool("second", tmp_path / "images"))
        wait_until(lambda: site.keeper.reason(pool_key("second"), "Stalled") == "Conflict")
        site.store.request_deletion(pool_key("first"))
        wait_until(lambda: site.keeper.truth(pool_key("second"), "Ready") == "True")


def test_a_stop_ends_a_running_command_and_leaves_nothing_half_made(site, tmp_path):
    images = tmp_path / "images"
    site.backend.endless = {"disk"}
    site.keeper.apply(dir_pool("images", images), volume("disk", "images", capacity="1Mi"))
    before = commands.spawned()
    with site.running():
        wait_until(lambda: commands.spawned() > before)
    assert os.listdir(images) == []
    assert site.store.unfinished_steps() == []
    assert site.keeper.assert_retrying(volume_key("disk"), "Cancelled")


def test_an_idle_agent_stops_at_once_and_writes_nothing_more(site, tmp_path):
    site.keeper.apply(dir_pool("images", tmp_path / "images"))
    with site.running():
        wait_until(lambda: site.keeper.truth(pool_key("images"), "Ready") == "True")
    written = site.keeper.recorded()
    time.sleep(0.5)
    assert site.keeper.recorded() == written


def test_an_interrupted_step_is_told_and_looked_at_anew(site, tmp_path):
    site.keeper.apply(
        dir_pool("images", tmp_path / "images"), volume("disk", "images", capacity="1Mi")
    )
    resource = site.keeper.get(volume_key("disk"))
    site.store.begin_step(resource.key, resource.metadata.uid, "CreateVolume", "disk")
    with site.running():
        wait_until(ready(site, "disk"))
    assert site.store.unfinished_steps() == []
    assert "Interrupted" in site.keeper.reasons(resource.key)


def test_a_directory_of_manifests_is_followed(site, tmp_path):

    manifests = tmp_path / "manifests"
    manifests.mkdir()
    images = tmp_path / "images"
    (manifests / "pool.yaml").write_text(yaml.safe_dump(dir_pool("images", images)))
    with site.running(DirectorySource(manifests)):
        wait_until(lambda: site.store.get(pool_key("images")) is not None)
        declared = volume("disk", "images", capacity="1Mi")
        (manifests / "disk.yaml").write_text(yaml.safe_dump(declared))
        wait_until(lambda: site.store.get(volume_key("disk")) is not None)
        wait_until(ready(site, "disk"))


@pytest.mark.parametrize("failures", range(1, 12))
def test_the_delay_between_tries_doubles_up_to_a_minute(failures):
    assert retrying.backoff(failures) == min(60.0, 2.0 ** (failures - 1))
