"""The StorageNode of a host: made, kept, and quiet."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backends import errors
from backends.base import BackendContext
from backends.host import commands
from backends.host.marks import MarkStore
from backends.spec import PoolTypeSupport, ToolVersion
from controller.codecs import manifests
from controller.nodes import HostFacts, NodeReporter, NodeSettings, StoredNode, node_key
from controller.resources import API_VERSION, AnyResource
from tests.agent.conftest import Site, wait_until
from tests.keeper import NODE

KEY = node_key(NODE)


class Host:
    """A host whose programs a test changes, and how often it was looked at."""

    def __init__(self) -> None:
        self.looks = 0
        self.version = "1.0"

    def facts(self) -> HostFacts:
        self.looks += 1
        return HostFacts(
            pool_types=(
                PoolTypeSupport(type="dir", supported=True, formats=("raw",)),
                PoolTypeSupport(type="zfs", supported=False, reason="Install zfsutils-linux."),
            ),
            tools=(ToolVersion(name="qemu-img", version=self.version), ToolVersion(name="zfs")),
        )


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def reporter(site: Site, host: Host, tmp_path: Path) -> Iterator[Callable[..., NodeReporter]]:
    made: list[NodeReporter] = []

    def make(**more: Any) -> NodeReporter:
        settings = {"boot": "boot-1", "heartbeat": 3600.0, "facts": host.facts, **more}
        context = BackendContext(marks=MarkStore(tmp_path / "state"))
        made.append(NodeReporter(StoredNode(site.store, node=NODE), context, **settings))
        return made[-1]

    yield make
    for item in made:
        item.stop(0) if item._thread.ident else None


def declared(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "StorageNode",
        "metadata": {"name": KEY.name},
        "spec": spec,
    }


def found(site: Site) -> AnyResource:
    return site.keeper.get(KEY)


def test_it_is_made_and_says_what_the_host_can_serve_and_why_not(
    site: Site, reporter: Callable[..., NodeReporter]
) -> None:
    reporter().report()
    status = found(site).status.dump()
    assert status["serves"] == "dir"
    assert status["bootID"] == "boot-1"
    assert status["poolTypes"][1] == {
        "type": "zfs", "supported": False, "reason": "Install zfsutils-linux.",
    }  # fmt: skip
    assert status["tools"] == [{"name": "qemu-img", "version": "1.0"}, {"name": "zfs"}]
    assert site.keeper.truth(KEY, "Ready") == "True"
    assert status["observedGeneration"] == found(site).metadata.generation


def test_a_spec_that_a_user_wrote_is_left_and_looked_at(
    site: Site, reporter: Callable[..., NodeReporter]
) -> None:
    spec = {"discover": [{"type": "dir", "host": {"name": "192.0.2.1"}}]}
    site.keeper.apply(declared(**spec))
    made = reporter()
    made.report()

    def discovered() -> str | None:
        made.report()
        return site.keeper.truth(KEY, "Discovered")

    wait_until(lambda: discovered() == "False")
    assert found(site).spec.dump() == spec
    assert site.keeper.truth(KEY, "Ready") == "True"


def test_only_the_heartbeat_changes_while_nothing_else_does(
    site: Site, reporter: Callable[..., NodeReporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = reporter()
    made.report()
    before, spawned, revision = found(site), commands.spawned(), site.store.revision()
    monkeypatch.setattr("controller.nodes.now", lambda: "2030-01-01T00:00:00Z")
    made.report()
    after = found(site)
    assert after.status.heartbeat_time == "2030-01-01T00:00:00Z"
    beat = {"heartbeat_time": before.status.heartbeat_time}
    assert after.status.model_copy(update=beat) == before.status
    assert commands.spawned() == spawned
    assert site.store.revision() == revision


def test_the_host_is_looked_at_again_when_a_program_may_have_come(
    site: Site,
    host: Host,
    reporter: Callable[..., NodeReporter],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(commands, "SEARCH_PATH", f"{tmp_path / 'bin'}:{commands.SEARCH_PATH}")
    made = reporter()
    for _ in range(3):
        made.report()
    assert host.looks == 1
    host.version = "2.0"
    time.sleep(0.02)  # a directory's time moves with the kernel's clock tick
    (tmp_path / "bin" / "zfs").touch()
    made.report()
    assert host.looks == 2
    assert found(site).status.tools[0].version == "2.0"


def test_one_that_was_deleted_is_made_anew(
    site: Site, reporter: Callable[..., NodeReporter]
) -> None:
    made = reporter()
    made.report()
    site.store.request_deletion(KEY)
    assert site.keeper.gone(KEY)
    made.report()
    assert site.keeper.truth(KEY, "Ready") == "True"


def test_the_running_agent_reports_again_and_again(
    site: Site, reporter: Callable[..., NodeReporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = (f"2030-01-01T00:00:{second % 60:02}Z" for second in range(10_000))
    monkeypatch.setattr("controller.nodes.now", lambda: next(times))
    made = reporter(heartbeat=0.05)
    made.start()
    seen: set[str] = set()

    def beats() -> int:
        if site.store.get(KEY) is not None:
            seen.add(str(found(site).status.heartbeat_time))
        return len(seen)

    wait_until(lambda: beats() >= 4)
    made.stop(10)


def test_what_belongs_to_another_node_is_not_taken_over(site: Site) -> None:
    names = {"own": KEY.name, "other": "hv-99"}
    documents = [{**declared(), "metadata": {"name": name}} for name in names.values()]
    listed = manifests.load("\n---\n".join(map(json.dumps, documents))).declared
    assert [item.metadata.name for item in site.agent()._own(listed)] == [names["own"]]


@pytest.mark.parametrize(("heartbeat", "silence"), [(30, 59), (0, 10), (-1, 10)])
def test_a_limit_that_one_late_report_would_pass_is_refused(heartbeat: int, silence: int) -> None:
    with pytest.raises(errors.InvalidSpec, match="can't count as silent"):
        NodeSettings(heartbeat=heartbeat, silence=silence).check()
    NodeSettings().check()


def test_a_host_may_have_a_name_that_no_resource_may_have() -> None:
    assert node_key("HV_01.example.org").name.startswith("hv-01.example.org-")
    assert node_key("hv-01").name == "hv-01"
