"""What tools of a cluster expect of a kind: explained fields, a category, and an honest status."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from backends import errors
from controller.cluster.apiserver import ApiServer
from controller.resources import GROUP, VERSION, Kind, kinds
from tests.cluster.sites import Site, address, until
from tests.kstatus import Status, kstatus

pytestmark = pytest.mark.cluster

each_kind = pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: str(kind.name))


@pytest.fixture(scope="session")
def explained(cluster: Any) -> dict[str, Any]:
    """The schemas that kubectl explain reads, by kind."""
    path = f"/openapi/v3/apis/{GROUP}/{VERSION}"

    def schemas() -> dict[str, Any]:
        done = cluster.kubectl("get", "--raw", path)
        listed = json.loads(done.stdout)["components"]["schemas"] if not done.returncode else {}
        return {
            item["x-kubernetes-group-version-kind"][0]["kind"]: item
            for item in listed.values()
            if "x-kubernetes-group-version-kind" in item
        }

    until(lambda: kinds().keys() <= schemas().keys())
    return schemas()


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")
        for inner in ("items", "additionalProperties"):
            if isinstance(field.get(inner), dict):
                yield from fields(field[inner], f"{path}.{name}")


@each_kind
def test_every_field_is_explained(explained: dict[str, Any], kind: Kind) -> None:
    found = [
        (path, field)
        for part in ("spec", "status")
        for path, field in fields(explained[kind.name]["properties"][part], part)
    ]
    assert len(found) > 10
    unexplained = [path for path, field in found if not field.get("description", "").strip()]
    assert unexplained == []


@each_kind
def test_kubectl_explains_it(cluster: Any, explained: dict[str, Any], kind: Kind) -> None:
    done = cluster.kubectl("explain", f"{kind.plural}.{GROUP}.status.conditions.observedGeneration")
    assert "Generation of the spec that this is about." in done.stdout, done.stderr
    recursive = cluster.kubectl("explain", f"{kind.plural}.{GROUP}.spec", "--recursive").stdout
    for name in explained[kind.name]["properties"]["spec"]["properties"]:
        assert f"  {name}\t" in recursive


def test_one_word_shows_everything_of_poolkeeper(site: Site) -> None:
    site.operator()
    pool, volume = site.pool(), site.volume("a")
    site.apply(pool, volume)
    site.ready(pool, volume)
    shown = site.cluster.kubectl("get", "poolkeeper", "--output", "name").stdout.split()
    for item in (pool, volume):
        assert f"{item['kind'].lower()}.{GROUP}/{item['metadata']['name']}" in shown
    assert f"storagenode.{GROUP}/{site.node('n1')}" in shown
    for word in ("spool", "svol"):
        assert site.cluster.kubectl("get", word).returncode == 0


class Witness:
    """Sees every version of volumes that the server sends."""

    def __init__(self, server: ApiServer) -> None:
        self.seen: list[dict[str, Any]] = []
        self._server = server
        kind = kinds()["StorageVolume"]
        version = server.list(kind, {}).version

        def follow() -> None:
            try:
                for gone, found in server.watch(kind, {}, version):
                    if not gone:
                        self.seen.append(found)
            except errors.StorageError:
                pass  # closed at the end

        self.thread = threading.Thread(target=follow, daemon=True)
        self.thread.start()


def test_nothing_looks_current_before_it_is(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(site.cluster.kubeconfig))
    witness = Witness(ApiServer())
    time.sleep(1)
    site.operator()
    site.apply(site.pool())
    for capacity in ("1Mi", "2Mi", "3Mi"):
        volumes = [
            site.volume(f"v{number}", capacity=capacity, deletionPolicy="Delete", format="qcow2")
            for number in range(5)
        ]
        site.apply(*volumes)
        for item in volumes:
            site.wait(item, f"--for=jsonpath={{.status.capacity}}={capacity}")
        site.ready(*volumes)
    names = {item["metadata"]["name"] for item in volumes}
    seen = [item for item in witness.seen if item["metadata"]["name"] in names]
    current = [item for item in seen if kstatus(item) is Status.CURRENT]
    assert {item["spec"]["capacity"] for item in current} == {"1Mi", "2Mi", "3Mi"}
    assert any(kstatus(item) is Status.IN_PROGRESS for item in seen)
    for item in current:
        assert item["status"]["capacity"] == item["spec"]["capacity"], item


def test_the_agent_tells_kubelet_and_prometheus_how_it_is(site: Site) -> None:
    import urllib.error
    import urllib.request

    def get(path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://{where}{path}", timeout=60) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return f"{error.code}: {error.read().decode()}"

    operator = site.operator(POOLKEEPER_LISTEN="0")
    where = operator.log.split("listening at http://", 1)[1].split()[0]
    pool, volume = site.pool(), site.volume("a")
    site.apply(pool, volume)
    site.ready(pool, volume)
    assert get("/readyz").startswith("api-server: ok\nsynced: ok\n")
    healthy = get("/healthz")
    assert {line.partition(":")[0] for line in healthy.splitlines()} >= {
        "agent", "events", "watching",
    }  # fmt: skip
    assert not healthy.startswith("503")
    name = pool["metadata"]["name"]
    until(
        lambda: (
            f'poolkeeper_volumes{{condition="Ready",pool="{name}",status="True"}} 1.0'
            in get("/metrics")
        ),
        told=lambda: get("/metrics"),
    )
    assert 'poolkeeper_api_requests_total{code="2xx",verb="list"}' in get("/metrics")
    site.delete(volume, pool)
    until(lambda: f'pool="{name}",managed' not in get("/metrics"), told=lambda: get("/metrics"))


def test_it_stays_alive_and_says_that_the_server_is_away(own_site: Site, server: Any) -> None:
    import urllib.error
    import urllib.request

    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://{where}{path}", timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    site = own_site
    operator = site.operator(POOLKEEPER_LISTEN="0")
    where = operator.log.split("listening at http://", 1)[1].split()[0]
    pool = site.pool(refresh={"interval": "1s"})
    site.apply(pool)
    site.ready(pool)
    until(lambda: status("/readyz") == 200)
    server.kill()
    (site.directory("images") / "stranger").write_bytes(bytes(4096))
    until(lambda: status("/readyz") == 503, told=site.said)
    assert status("/healthz") == 200
    server.start()
    until(lambda: status("/readyz") == 200, told=site.said)
    site.wait(pool, "--for=jsonpath={.status.volumes.unmanaged}=1")
    assert address(pool)
