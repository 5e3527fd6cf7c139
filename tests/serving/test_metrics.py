"""Metrics: what docs/metrics.md names is what an agent exports, and it says what is the case."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from backends import errors
from backends.base import BackendContext
from backends.host import commands
from backends.host.marks import MarkStore
from controller.engine import Engine
from controller.jobs import Task
from controller.serving.metrics import Metrics, Requests
from controller.workers import Workers
from tests.keeper import BOOT, NODE, Keeper, dir_pool, pool_key, volume, volume_key
from tests.processes import REPOSITORY


class Measured:
    """A keeper whose passes are measured as an agent's are."""

    def __init__(self, state: Path) -> None:
        self.metrics = Metrics()
        self.keeper = Keeper(state)
        context = BackendContext(marks=MarkStore(state))
        self.keeper.engine = Engine(
            self.keeper.store, context, node=NODE, boot=BOOT, observer=self.metrics.observer
        )
        self.metrics.watch_jobs(self.keeper.engine.jobs)
        self.workers = Workers(self.metrics.timed(self.keeper.engine.reconcile))
        self.metrics.watch(self.workers)
        self.metrics.watch_requests(
            lambda: Requests(answers={("get", "2xx"): 3}, events_posted=2, events_dropped=1)
        )

    def families(self) -> dict[str, Metric]:
        text, _ = self.metrics.exposition("")
        found = text_string_to_metric_families(text.decode())
        return {item.name: item for item in found if item.name.startswith("poolkeeper_")}

    def value(self, name: str, **labels: str) -> float | None:
        """Of one sample; None where there is none."""
        for family in self.families().values():
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return None

    def run_a_job(self) -> None:
        key = volume_key("a")
        task = Task(owner=key, uid="u", volume=key, pool="images", verb="CreateVolume", target="a")
        assert self.keeper.engine.jobs.start(task, lambda work: None)
        ended = {"step": "CreateVolume", "result": "succeeded"}
        self.until("poolkeeper_jobs_ended_total", 1, **ended)
        assert self.value("poolkeeper_jobs", step="CreateVolume") == 0

    def until(self, name: str, value: float, **labels: str) -> None:
        from tests.agent.conftest import wait_until

        wait_until(lambda: self.value(name, **labels) == value, f"{name} {labels}")


@pytest.fixture
def measured(tmp_path: Path) -> Iterator[Measured]:
    made = Measured(tmp_path / "state")
    yield made
    assert made.workers.stop(60) == []
    made.keeper.store.close()


def documented() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of each metric in the page's table, by its family's name."""
    found = {}
    for line in (REPOSITORY / "docs" / "metrics.md").read_text("utf-8").splitlines():
        if line.startswith("| `poolkeeper_"):
            name, kind, labels, _ = (cell.strip() for cell in line.strip("|").split("|", 3))
            family = name.strip("`").removesuffix("_total")
            found[family] = kind, {item.strip() for item in labels.split(",")} - {""}
    return found


def test_every_metric_is_documented_and_every_documented_one_exported(
    measured: Measured, tmp_path: Path
) -> None:
    measured.keeper.apply(
        dir_pool("images", tmp_path / "images"), volume("a", "images", capacity="1Mi")
    )
    measured.workers.wake(["images"])
    measured.until("poolkeeper_volumes", 1, pool="images", condition="Ready", status="True")
    commands.run(["true"])
    measured.run_a_job()
    with pytest.raises(errors.StorageError):
        measured.metrics.timed(_failing)("other")
    exported = {}
    for name, family in measured.families().items():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert family.samples, name
        exported[name] = family.type, labels
    assert exported == documented()


def _failing(name: str) -> Any:
    raise errors.Inaccessible("The disk is away.")


def test_pools_and_volumes_are_shown_as_they_were_found(measured: Measured, tmp_path: Path) -> None:
    keeper = measured.keeper
    keeper.apply(
        dir_pool("images", tmp_path / "images"),
        volume("a", "images", capacity="1Mi"),
        volume("b", "images", capacity="1Mi"),
        volume("again", "images", capacity="1Mi", volume_name="b"),
    )
    measured.workers.wake(["images"])
    measured.until("poolkeeper_volumes", 2, pool="images", condition="Ready", status="True")
    assert (
        measured.value("poolkeeper_volumes", pool="images", condition="Stalled", status="True") == 1
    )
    status = keeper.get(pool_key("images")).status
    assert measured.value("poolkeeper_pool_capacity_bytes", pool="images") == status.capacity
    running = {"pool": "images", "type": "dir"}
    assert measured.value("poolkeeper_pool_state", **running, state="Running") == 1
    assert measured.value("poolkeeper_pool_state", **running, state="Inaccessible") == 0
    assert measured.value("poolkeeper_pool_volumes", pool="images", managed="true") == 2


def test_what_is_no_longer_kept_is_no_longer_shown(measured: Measured, tmp_path: Path) -> None:
    for name in ("one", "two"):
        measured.keeper.apply(dir_pool(name, tmp_path / name))
    measured.workers.wake(["one", "two"])
    for name in ("one", "two"):
        measured.until("poolkeeper_pool_volumes", 0, pool=name, managed="true")
    measured.workers.keep(["one"])
    assert measured.value("poolkeeper_pool_volumes", pool="one", managed="true") == 0
    assert measured.value("poolkeeper_pool_volumes", pool="two", managed="true") is None


def test_commands_are_counted_by_their_program(measured: Measured) -> None:
    def counted() -> tuple[float, float, float]:
        return (
            measured.value("poolkeeper_commands_total", program="sleep", result="done") or 0,
            measured.value("poolkeeper_commands_total", program="sleep", result="failed") or 0,
            measured.value("poolkeeper_command_seconds_total", program="sleep") or 0,
        )

    done, failed, seconds = counted()
    commands.run(["sleep", "0.2"])
    with pytest.raises(errors.CommandFailed):
        commands.run(["sleep", "no"])
    with pytest.raises(errors.Timeout):
        commands.run(["sleep", "100"], timeout=0.1)
    assert counted()[:2] == (done + 1, failed + 2)
    assert counted()[2] >= seconds + 0.3
