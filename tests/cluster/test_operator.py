"""The operator as a process, on a real API server, used by real kubectl."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from controller.resources import FINALIZER, GROUP
from tests.cluster.sites import Site, address, until

pytestmark = pytest.mark.cluster


def test_applied_pools_and_volumes_become_ready_and_are_on_disk(site: Site) -> None:
    site.operator()
    pool, raw, image = site.pool(), site.volume("a"), site.volume("b", format="qcow2")
    site.apply(pool, raw, image)
    site.ready(pool, raw, image)
    assert (site.directory("images") / "a").stat().st_size == 2**20
    assert (site.directory("images") / "b").read_bytes()[:4] == b"QFI\xfb"
    for item in (pool, raw, image):
        read = site.read(item)
        assert read["status"]["observedGeneration"] == read["metadata"]["generation"]


def test_columns_say_what_a_user_looks_for(site: Site) -> None:
    site.operator()
    pool, volume = site.pool(), site.volume("a")
    site.apply(pool, volume)
    site.ready(pool, volume)
    heads, row = site.cluster.kubectl("get", *address(pool)).stdout.splitlines()
    assert heads.split() == [
        "NAME", "TYPE", "NODE", "STATE", "CAPACITY", "AVAILABLE", "VOLUMES", "READY", "AGE",
    ]  # fmt: skip
    assert row.split()[1:4] == ["dir", site.node("n1"), "Running"]
    assert row.split()[6:8] == ["1", "True"]
    heads, row = site.cluster.kubectl("get", *address(volume)).stdout.splitlines()
    assert heads.split() == ["NAME", "POOL", "FORMAT", "CAPACITY", "ALLOCATION", "READY", "AGE"]
    assert row.split()[1:4] == [f"{site.name}-images", "raw", "1Mi"]


def test_a_volume_that_names_no_node_is_bound_to_that_of_its_pool(site: Site) -> None:
    site.operator("n1")
    site.operator("n2")
    early = site.volume("early", "second")
    site.apply(early)
    site.apply(site.pool("first", "n1"), site.pool("second", "n2"))
    late = site.volume("late", "first")
    site.apply(late)
    site.ready(early, late)
    assert site.read(early)["spec"]["nodeName"] == site.node("n2")
    assert site.read(late)["spec"]["nodeName"] == site.node("n1")
    site.apply(early)  # client-side apply of the same manifest leaves the binding
    assert site.read(early)["spec"]["nodeName"] == site.node("n2")


def test_a_larger_capacity_grows_the_volume(site: Site) -> None:
    site.operator()
    pool, volume = site.pool(), site.volume("a")
    site.apply(pool, volume)
    site.ready(pool, volume)
    larger = site.volume("a", capacity="3Mi")
    site.apply(larger)
    site.wait(larger, "--for=jsonpath={.status.capacity}=3Mi")
    assert (site.directory("images") / "a").stat().st_size == 3 * 2**20


def test_a_refused_change_stalls_and_the_way_out_is_taken(site: Site) -> None:
    site.operator()
    pool, volume = site.pool(), site.volume("a", capacity="3Mi")
    site.apply(pool, volume)
    site.ready(volume)
    site.apply(site.volume("a", capacity="1Mi"))
    site.wait(volume, "--for=condition=Stalled")
    assert (site.directory("images") / "a").stat().st_size == 3 * 2**20
    allowed = {"allowShrink": True, "allowDataLoss": True}
    site.apply(site.volume("a", capacity="1Mi", resize=allowed))
    site.ready(volume)
    assert (site.directory("images") / "a").stat().st_size == 2**20


def test_drift_on_the_host_is_corrected(site: Site) -> None:
    site.operator()
    permissions = {"mode": "0640"}
    pool = site.pool(refresh={"interval": "1s"})
    volume = site.volume("a", permissions=permissions)
    site.apply(pool, volume)
    site.ready(volume)
    file = site.directory("images") / "a"
    file.chmod(0o600)
    until(lambda: file.stat().st_mode & 0o777 == 0o640, told=site.said)


def test_deletion_keeps_data_unless_the_policy_says_delete(site: Site) -> None:
    site.operator()
    pool = site.pool()
    kept, gone = site.volume("kept"), site.volume("gone", deletionPolicy="Delete")
    site.apply(pool, kept, gone)
    site.ready(pool, kept, gone)
    assert site.read(gone)["metadata"]["finalizers"] == [FINALIZER]
    assert "finalizers" not in site.read(kept)["metadata"]
    site.delete(kept, gone, pool)
    assert [item.name for item in site.directory("images").iterdir()] == ["kept"]


def test_a_pool_with_policy_delete_takes_its_directory_along(site: Site) -> None:
    site.operator()
    pool = site.pool(deletionPolicy="Delete")
    volume = site.volume("a", deletionPolicy="Delete")
    site.apply(pool, volume)
    site.ready(pool, volume)
    site.delete(volume, pool)
    assert not site.directory("images").exists()


def test_finalizers_of_others_are_left_alone(site: Site) -> None:
    site.operator()
    pool, volume = site.pool(), site.volume("a", deletionPolicy="Delete")
    volume["metadata"]["finalizers"] = ["example.org/other"]
    site.apply(pool, volume)
    site.ready(volume)
    assert sorted(site.read(volume)["metadata"]["finalizers"]) == ["example.org/other", FINALIZER]
    site.cluster.kubectl("delete", *address(volume), "--wait=false")
    until(
        lambda: site.read(volume)["metadata"]["finalizers"] == ["example.org/other"],
        told=site.said,
    )
    assert not (site.directory("images") / "a").exists()


def test_nothing_is_written_while_nothing_changes(site: Site) -> None:
    site.operator()
    pool = site.pool(refresh={"interval": "1s"})
    volumes = [site.volume(f"v{number}", deletionPolicy="Delete") for number in range(5)]
    site.apply(pool, *volumes)
    site.ready(pool, *volumes)
    before = site.version(*volumes)
    annotations = [site.read(item)["metadata"].get("annotations", {}) for item in (pool, *volumes)]
    assert all(name.startswith("kubectl.") for found in annotations for name in found)
    time.sleep(5)  # several passes at an interval of a second
    assert site.version(*volumes) == before


def test_a_request_to_look_now_is_answered(site: Site) -> None:
    site.operator()
    pool = site.pool(refresh={"interval": "1h"})
    site.apply(pool)
    site.ready(pool)
    site.cluster.kubectl("annotate", *address(pool), f"{GROUP}/requested-at=today")
    site.wait(pool, "--for=jsonpath={.status.lastHandledRequest}=today")


def test_each_operator_is_sent_its_own_objects_alone(site: Site) -> None:
    first, second = site.operator("n1"), site.operator("n2")
    pools = [site.pool("one", "n1"), site.pool("two", "n2"), site.pool("none", "n3")]
    volumes = [site.volume(name, name) for name in ("one", "two", "none")]
    site.apply(*pools, *volumes)
    site.ready(*pools[:2], *volumes[:2])
    assert site.read(pools[2])["status"]["observedGeneration"] == -1
    assert "nodeName" not in site.read(volumes[2])["spec"]
    for operator, other in ((first, "two"), (second, "one")):
        with contextlib.closing(sqlite3.connect(operator.state / "store.db")) as local:
            told = {name for (name,) in local.execute("SELECT name FROM events")}
        assert told
        assert not [name for name in told if name.endswith(f"-{other}")]


def test_a_killed_operator_converges_after_its_restart(site: Site) -> None:
    operator = site.operator()
    pool = site.pool()
    volumes = [
        site.volume(f"v{number}", format="qcow2", deletionPolicy="Delete") for number in range(20)
    ]
    site.apply(pool, *volumes)
    until(lambda: any(site.directory("images").glob("v*")), told=site.said)
    operator.kill()
    site.cluster.kubectl("delete", *address(volumes[0]), "--wait=false")
    operator.start()
    site.ready(pool, *volumes[1:])
    site.wait(volumes[0], "--for=delete")
    names = sorted(item.name for item in site.directory("images").iterdir())
    assert names == sorted(f"v{number}" for number in range(1, 20))
    created = [item for item in site.events(volumes[5]) if item["reason"] == "Created"]
    assert len(created) <= 1, created


def test_what_went_while_the_operator_was_down_is_not_made_anew(site: Site) -> None:
    operator = site.operator()
    pool, volume = site.pool(refresh={"interval": "1s"}), site.volume("a")
    site.apply(pool, volume)
    site.ready(volume)
    assert operator.stop() == 0
    site.delete(volume)
    (site.directory("images") / "a").unlink()
    operator.start()
    site.cluster.kubectl("annotate", *address(pool), f"{GROUP}/requested-at=now")
    site.wait(pool, "--for=jsonpath={.status.lastHandledRequest}=now")
    assert list(site.directory("images").iterdir()) == []


def test_events_appear_once(site: Site) -> None:
    operator = site.operator()
    pool, volume = site.pool(refresh={"interval": "1s"}), site.volume("a")
    site.apply(pool, volume)
    site.ready(pool, volume)
    until(lambda: len(site.events(pool)) >= 2 and bool(site.events(volume)), told=site.said)
    assert operator.stop() == 0
    operator.start()
    time.sleep(3)
    told = [(item["reason"], item["count"]) for item in site.events(volume)]
    assert told == [("Created", 1)]
    assert sorted((item["reason"], item["count"]) for item in site.events(pool)) == [
        ("Built", 1), ("Defined", 1), ("Started", 1),
    ]  # fmt: skip
    described = site.cluster.kubectl("describe", *address(volume)).stdout
    assert re.search(r"Normal\s+Created\s+.*poolkeeper", described)


def test_it_stops_on_sigterm_and_another_may_take_over(site: Site) -> None:
    operator = site.operator()
    site.apply(site.pool())
    site.ready(site.pool())
    assert operator.stop() == 0, operator.log
    assert "Traceback" not in operator.log
    operator.start()


def test_it_runs_under_kopf_as_well(site: Site) -> None:
    command = ("-m", "kopf", "run", "--standalone", "-A", "-m", "controller.cluster.operator")
    operator = site.operator(command=(sys.executable, *command))
    pool, volume = site.pool(), site.volume("a")
    site.apply(pool, volume)
    site.ready(pool, volume)
    assert operator.stop() == 0, operator.log


def test_a_new_volume_costs_at_most_three_writes(
    site: Site, record_property: Callable[[str, object], None]
) -> None:
    site.operator()
    pool, first = site.pool(), site.volume("first", deletionPolicy="Delete")
    site.apply(pool, first)
    site.ready(pool, first)
    time.sleep(2)
    before = _requests(site.cluster)
    volume = site.volume("second", deletionPolicy="Delete")
    done = site.cluster.kubectl("create", "--filename", "-", given=json.dumps(volume))
    assert done.returncode == 0, done.stderr
    until((site.directory("images") / "second").exists, told=site.said)
    time.sleep(2)
    counted = {
        key: number - before.get(key, 0)
        for key, number in _requests(site.cluster).items()
        if number > before.get(key, 0)
    }
    record_property("requests", counted)
    print("requests for one new volume:", counted)
    patches = [
        number
        for (verb, resource, _), number in counted.items()
        if resource == "storagevolumes" and verb in ("PATCH", "PUT", "APPLY")
    ]
    assert 1 <= sum(patches) <= 3, counted


def _requests(cluster: Any) -> dict[tuple[str, str, str], int]:
    """Requests so far by verb, resource and subresource, as the server counts them."""
    metrics = cluster.kubectl("get", "--raw", "/metrics").stdout
    found: dict[tuple[str, str, str], int] = {}
    for line in metrics.splitlines():
        if not line.startswith("apiserver_request_total{"):
            continue
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
        if labels["group"] == GROUP or labels["resource"] == "events":
            key = labels["verb"], labels["resource"], labels["subresource"]
            found[key] = found.get(key, 0) + int(float(line.rsplit(" ", 1)[1]))
    if not found:
        pytest.skip("the API server shows no metrics to this user")
    return found


def test_it_goes_on_when_the_api_server_was_away(own_site: Site, server: Any) -> None:
    site = own_site
    operator = site.operator()
    pool = site.pool(refresh={"interval": "1s"})
    first = site.volume("first", permissions={"mode": "0640"})
    site.apply(pool, first)
    site.ready(first)
    file = site.directory("images") / "first"
    server.kill()
    file.chmod(0o600)
    until(lambda: file.stat().st_mode & 0o777 == 0o640, told=site.said)
    server.start()
    second = site.volume("second")
    site.apply(second)
    site.ready(pool, first, second)
    assert operator.process is not None
    assert operator.process.poll() is None


def test_a_status_that_could_not_be_written_is_written_later(own_site: Site, server: Any) -> None:
    site = own_site
    site.operator()
    pool = site.pool(refresh={"interval": "1s"})
    site.apply(pool)
    site.ready(pool)
    server.kill()
    (site.directory("images") / "stranger").write_bytes(bytes(4096))
    time.sleep(3)
    server.start()
    site.wait(pool, "--for=jsonpath={.status.volumes.unmanaged}=1")


def test_what_went_while_the_watch_was_cut_is_forgotten(own_site: Site, server: Any) -> None:
    site = own_site
    operator = site.operator()
    pool, volume, other = site.pool(), site.volume("a"), site.volume("b")
    site.apply(pool, volume, other)
    site.ready(pool, volume, other)
    assert operator.process is not None
    operator.process.send_signal(signal.SIGSTOP)
    server.kill()
    server.start()  # its history of changes begins anew, so a list has to tell
    site.delete(volume)
    operator.process.send_signal(signal.SIGCONT)
    time.sleep(5)
    site.cluster.kubectl("annotate", *address(pool), f"{GROUP}/requested-at=now")
    site.wait(pool, "--for=jsonpath={.status.volumes.unmanaged}=1")
    site.wait(pool, "--for=jsonpath={.status.volumes.managed}=1")
