"""Operations are carried out once, tell what became of them, and are kept as a record."""

from __future__ import annotations

import datetime
import os
import subprocess
import threading
from pathlib import Path

import pytest

from backends import errors
from backends.base import OpenVolume, Pool, PoolFacts, Work
from backends.dir import DirBackend
from backends.images import wiping
from controller.resources import API_VERSION, now
from controller.store import Store
from controller.summarising import condition, ready, stalled
from tests import keeper as keeping
from tests.keeper import operation_key, volume, volume_key
from tests.operations.conftest import PATIENCE, Operated, Slow, failing, no_space
from tests.transferring.streams import MIB

WEB = volume_key("web")


def filled(site: Operated, name: str = "web", **spec: object) -> Path:
    path = site.declare(name, **spec)
    path.write_bytes(os.urandom(4 * MIB))
    return path


class TestWipe:
    def test_it_is_carried_out_once_and_kept(self, site: Operated) -> None:
        path = filled(site)
        site.operate("gone", wipe={"algorithm": "zero"})
        assert site.ended("gone") == "Succeeded"
        assert path.read_bytes() == bytes(4 * MIB)
        found = site.get(operation_key("gone"))
        assert found.status.message == f"Wiped {WEB} ({path}) (zero)."
        assert found.status.start_time <= found.status.completion_time <= now()
        assert ready(found)
        assert condition(found.status, "Complete").status == "True"
        assert condition(found.status, "Reconciling") is None
        assert "Succeeded" in site.reasons(operation_key("gone"))
        assert "WipeDone" in site.reasons(WEB)
        path.write_bytes(b"x" * 4 * MIB)
        site.settle()
        assert path.read_bytes() == b"x" * 4 * MIB
        site.assert_ready(WEB)

    def test_a_wiped_image_is_an_empty_image(self, site: Operated) -> None:
        path = site.declare("web", format="qcow2", permissions={"mode": "0640"})
        subprocess.run(["qemu-io", "-c", "write -P 7 0 1M", str(path)], check=True)
        mark = keeping.marked(path)
        site.operate("gone")
        assert site.ended("gone") == "Succeeded"
        site.settle()
        site.assert_ready(WEB)
        assert keeping.marked(path) == mark
        assert path.stat().st_mode & 0o777 == 0o640
        read = ["qemu-io", "-r", "-c", "read -P 0 0 4M", str(path)]
        subprocess.run(read, check=True, capture_output=True)

    def test_while_it_runs_it_tells_so(self, site: Operated, slow: Slow) -> None:
        filled(site)
        site.engine.jobs._report_every = 0.0
        site.operate("gone")
        site.reconcile()
        assert slow.begun.wait(PATIENCE)
        found = site.get(operation_key("gone"))
        assert found.status.phase == "Running"
        assert found.status.progress.percent == 50
        assert condition(found.status, "Reconciling").status == "True"
        site.reconcile()
        assert site.get(WEB).status.progress.operation == "Wipe"
        assert site.ended_after(slow, "gone") == "Succeeded"
        assert slow.count == 1
        assert site.get(operation_key("gone")).status.progress.percent == 100
        site.settle()
        assert site.get(WEB).status.progress is None

    def test_what_others_have_goes_first_is_waited_for(self, site: Operated) -> None:
        site.operate("gone")
        site.reconcile()
        assert (site.phase("gone"), site.said("gone")) == (
            "Pending", f"{WEB} is not declared on this node.",
        )  # fmt: skip
        site.apply(volume("web", "images", capacity="4Mi", allocation=0))
        assert site.ended("gone") == "Succeeded"
        site.assert_ready(WEB)

    def test_two_on_one_volume_come_one_after_the_other(self, site: Operated, slow: Slow) -> None:
        filled(site)
        site.operate("first")
        site.operate("second")
        site.reconcile()
        assert slow.begun.wait(PATIENCE)
        site.reconcile()
        assert (site.phase("first"), site.phase("second")) == ("Running", "Pending")
        assert "Wipe on StorageVolume/default/web" in site.said("second")
        slow.go_on.set()
        assert site.ended("first") == "Succeeded"
        assert site.ended("second") == "Succeeded"
        assert slow.count == 2

    def test_what_is_declared_waits_for_it(self, site: Operated, slow: Slow) -> None:
        path = filled(site)
        site.operate("gone")
        site.reconcile()
        assert slow.begun.wait(PATIENCE)
        site.apply(volume("web", "images", capacity="8Mi", allocation=0))
        site.reconcile()
        assert path.stat().st_size == 4 * MIB
        assert "Wipe on" in site.assert_retrying(WEB, "InUse")
        assert site.ended_after(slow, "gone") == "Succeeded"
        site.settle()
        site.assert_ready(WEB)
        assert path.stat().st_size == 8 * MIB

    @pytest.mark.parametrize("ends", ["later", "during a look"])
    def test_an_image_that_is_being_wiped_is_not_taken_for_a_broken_one(
        self, site: Operated, monkeypatch: pytest.MonkeyPatch, ends: str
    ) -> None:
        site.declare("web", format="qcow2")
        real, begun, go_on = wiping.wipe, threading.Event(), threading.Event()

        def wipe(opened: OpenVolume, algorithm: wiping.Algorithm, work: Work) -> None:
            real(opened, algorithm, work)
            begun.set()
            assert go_on.wait(PATIENCE)

        monkeypatch.setattr(wiping, "wipe", wipe)
        site.operate("gone")
        site.reconcile()
        assert begun.wait(PATIENCE)
        if ends == "during a look":
            observe = DirBackend.observe

            def observed(backend: DirBackend, pool: Pool) -> PoolFacts:
                facts = observe(backend, pool)
                go_on.set()
                assert site.engine.jobs.idle(PATIENCE)
                return facts

            monkeypatch.setattr(DirBackend, "observe", observed)
        site.reconcile()
        site.assert_ready(WEB)
        assert site.get(WEB).status.format == "qcow2"
        assert "FormatChanged" not in site.reasons(WEB)
        go_on.set()
        assert site.ended("gone") == "Succeeded"
        site.settle()
        site.assert_ready(WEB)

    def test_a_volume_in_use_is_refused_for_good(self, site: Operated) -> None:
        path = filled(site)
        before = path.read_bytes()
        with path.open("rb") as held:
            holder = subprocess.Popen(["sleep", "100"], stdin=held)
        try:
            site.operate("gone")
            assert site.ended("gone") == "Failed"
        finally:
            holder.kill()
            holder.wait()
        assert f"sleep (pid {holder.pid})" in site.said("gone")
        site.settle()
        found = site.get(operation_key("gone"))
        assert found.status.phase == "Failed"
        assert condition(found.status, "Failed").reason == "InUse"
        assert stalled(found)
        assert path.read_bytes() == before
        assert ("Warning", "InUse") in [
            (item.type, item.reason) for item in site.events(operation_key("gone"))
        ]

    @pytest.mark.parametrize(
        ("error", "reason"),
        [(no_space(), "NoSpace"), (OSError(5, "Input/output error"), "Inaccessible"),
         (ZeroDivisionError("a mistake"), "SystemFailure")],
        ids=["no space", "input/output", "a mistake"],
    )  # fmt: skip
    def test_a_failure_is_its_end(
        self,
        site: Operated,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
        reason: str,
    ) -> None:
        filled(site)
        failing(monkeypatch, error)
        site.operate("gone")
        assert site.ended("gone") == "Failed"
        assert site.reason(operation_key("gone"), "Failed") == reason
        assert "WipeBroken" in site.reasons(WEB)
        count = len(site.store.finished_steps())
        site.settle()
        assert len(site.store.finished_steps()) == count


class TestCancelling:
    def test_one_that_runs_stops_and_is_kept(self, site: Operated, slow: Slow) -> None:
        path = filled(site)
        before = path.read_bytes()
        site.operate("gone")
        site.reconcile()
        assert slow.begun.wait(PATIENCE)
        site.operate("gone", cancel=True)
        assert site.ended("gone") == "Cancelled"
        assert "What was written until then stays written." in site.said("gone")
        assert path.read_bytes() == before
        slow.go_on.set()
        site.settle()
        assert site.phase("gone") == "Cancelled"
        assert slow.count == 1

    def test_one_that_waits_never_begins(self, site: Operated) -> None:
        site.operate("gone")
        site.reconcile()
        site.operate("gone", cancel=True)
        assert site.ended("gone") == "Cancelled"
        path = filled(site)
        site.settle()
        assert path.read_bytes() != bytes(4 * MIB)

    def test_deleting_it_stops_it(self, site: Operated, slow: Slow) -> None:
        filled(site)
        site.operate("gone")
        site.reconcile()
        assert slow.begun.wait(PATIENCE)
        site.delete(operation_key("gone"))
        assert site.gone(operation_key("gone"))
        site.reconcile()
        assert site.engine.jobs.idle(PATIENCE)
        assert "WipeBroken" in site.reasons(WEB)
        assert slow.count == 1

    def test_suspending_its_volume_puts_it_off(self, site: Operated, slow: Slow) -> None:
        filled(site)
        site.operate("gone")
        site.reconcile()
        assert slow.begun.wait(PATIENCE)
        given = {"capacity": "4Mi", "allocation": 0}
        site.apply(volume("web", "images", suspend=True, **given))
        site.settle()
        assert (site.phase("gone"), slow.count) == ("Pending", 1)
        assert "suspended" in site.said("gone")
        site.apply(volume("web", "images", **given))
        slow.go_on.set()
        assert site.ended("gone") == "Succeeded"


class TestAgentThatEnds:
    def test_a_stop_leaves_it_to_be_begun_anew(self, site: Operated, slow: Slow) -> None:
        path = filled(site)
        site.operate("gone")
        site.reconcile()
        assert slow.begun.wait(PATIENCE)
        site.engine.stop()
        assert site.engine.jobs.idle(PATIENCE)
        assert site.phase("gone") == "Running"
        site.reboot(keeping.BOOT)
        slow.go_on.set()
        assert site.ended("gone") == "Succeeded"
        assert path.read_bytes() == bytes(4 * MIB)
        assert slow.count == 2

    def test_an_end_that_could_not_be_told_is_told_later_and_nothing_is_done_twice(
        self, site: Operated, slow: Slow, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        filled(site)
        site.operate("gone")
        site.reconcile()
        assert slow.begun.wait(PATIENCE)
        with monkeypatch.context() as away:

            def refuse(*arguments: object, **more: object) -> bool:
                raise errors.Inaccessible("The store is away.")

            away.setattr(Store, "write_status", refuse)
            slow.go_on.set()
            assert site.engine.jobs.idle(PATIENCE)
        assert site.phase("gone") == "Running"
        site.reboot(keeping.BOOT)
        assert site.ended("gone") == "Succeeded"
        assert slow.count == 1


class TestTimeToLive:
    def test_a_finished_one_goes_when_its_time_is_over(
        self, site: Operated, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        filled(site)
        site.operate("kept")
        site.operate("passing", ttlSecondsAfterFinished=3600)
        assert site.ended("passing") == "Succeeded"
        past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=2)
        found = site.get(operation_key("passing"))
        late = found.status.model_copy(
            update={"completion_time": past.strftime("%Y-%m-%dT%H:%M:%SZ")}
        )
        site.store.write_status(found.key, late, uid=found.metadata.uid)
        site.reconcile()
        assert site.gone(operation_key("passing"))
        assert site.phase("kept") == "Succeeded"

    def test_the_pool_is_looked_at_when_it_is_over(self, site: Operated) -> None:
        filled(site)
        site.operate("passing", ttlSecondsAfterFinished=40)
        assert site.ended("passing") == "Succeeded"
        (outcome,) = site.reconcile("images")
        assert outcome.interval <= 40


def test_a_transfer_waits_for_its_data(site: Operated) -> None:
    site.declare("web")
    site.operate("new", "Upload")
    site.operate("out", "Download")
    site.reconcile()
    url = "/v1/namespaces/default/volumes/web/data?operation="
    assert (site.phase("new"), site.said("new")) == ("Pending", f"It waits for PUT {url}new.")
    assert (site.phase("out"), site.said("out")) == ("Pending", f"It waits for GET {url}out.")


def test_nothing_is_written_where_nothing_changes(site: Operated) -> None:
    site.declare("web")
    site.operate("new", "Upload")
    site.operate("gone")
    assert site.ended("gone") == "Succeeded"
    site.settle()
    versions = [site.get(operation_key(name)).metadata.resource_version for name in ("new", "gone")]
    site.settle()
    assert versions == [
        site.get(operation_key(name)).metadata.resource_version for name in ("new", "gone")
    ]


def test_a_node_that_is_stored_holds_up_nothing(site: Operated) -> None:
    site.apply({"apiVersion": API_VERSION, "kind": "StorageNode",
                "metadata": {"name": "here"}, "spec": {}})  # fmt: skip
    filled(site)
    site.operate("gone")
    assert site.ended("gone") == "Succeeded"
