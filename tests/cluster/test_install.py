"""``manifests/install``: every overlay on a real API server, and the agent in the role it gives."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller import crds
from controller.cli.commands import app
from controller.cli.options import data_side
from controller.resources import API_VERSION, GROUP, kinds
from tests.installation import (
    AGENT,
    INSTALL,
    NAMESPACE,
    OVERLAYS,
    PATIENCE,
    REPOSITORY,
    install,
    remove,
    rendered,
    until,
)

pytestmark = pytest.mark.cluster

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@pytest.fixture
def emptied(cluster: Any) -> Iterator[Any]:
    """The cluster; what an overlay made is taken off afterwards."""
    yield cluster
    for overlay in OVERLAYS:
        remove(cluster, overlay)


def the(kind: str, objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The one object of that kind."""
    (found,) = [item for item in objects if item["kind"] == kind]
    return found


def pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = the("DaemonSet", objects)["spec"]["template"]["spec"]
    return found


def host_paths(objects: list[dict[str, Any]]) -> set[str]:
    return {item["hostPath"]["path"] for item in pod(objects)["volumes"] if "hostPath" in item}


@each_overlay
def test_an_overlay_applies_and_applies_again_without_a_change(emptied: Any, overlay: str) -> None:
    install(emptied, overlay)
    path = str(INSTALL / "overlays" / overlay)
    found = emptied.kubectl("diff", "--server-side", "-k", path)
    assert (found.returncode, found.stdout) == (0, ""), found.stdout + found.stderr


@each_overlay
def test_an_overlay_has_the_crds_of_this_checkout(cluster: Any, overlay: str) -> None:
    served = {
        item["spec"]["names"]["kind"]: item["spec"]
        for item in rendered(cluster, overlay)
        if item["kind"] == "CustomResourceDefinition"
    }
    assert served == {name: crds.definition(kind)["spec"] for name, kind in kinds().items()}


def test_one_command_on_an_empty_cluster_is_enough(server: Any) -> None:
    """CRDs, and the policies on what they define, in one go."""
    cluster = _Given(server.kubeconfig)
    until(cluster.has_no_crds, "the CRDs have gone")
    done = cluster.kubectl("apply", "-k", str(INSTALL / "overlays" / "files"))
    assert done.returncode == 0, done.stderr
    given = json.dumps(_pool("images", "/srv/images"))
    until(
        lambda: cluster.kubectl("apply", "--filename", "-", given=given).returncode == 0,
        "pools are served",
    )


@each_overlay
def test_the_agent_knows_its_node_and_runs_what_there_is(cluster: Any, overlay: str) -> None:
    objects = rendered(cluster, overlay)
    (container,) = pod(objects)["containers"]
    fields = {
        item["name"]: item["valueFrom"]["fieldRef"]["fieldPath"]
        for item in container["env"]
        if "valueFrom" in item
    }
    assert fields == {"NODE_NAME": "spec.nodeName"}
    commands = {item.name or item.callback.__name__ for item in app.registered_commands}
    assert container["args"][0] in commands
    account = the("ServiceAccount", objects)["metadata"]
    assert pod(objects)["serviceAccountName"] == account["name"]
    assert f"system:serviceaccount:{account['namespace']}:{account['name']}" == AGENT


def test_files_need_no_device_and_no_privilege(cluster: Any) -> None:
    objects = rendered(cluster, "files")
    (container,) = pod(objects)["containers"]
    security = container["securityContext"]
    assert "privileged" not in security
    assert security["capabilities"]["drop"] == ["ALL"]
    assert set(security["capabilities"]["add"]) == {"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"}
    assert host_paths(objects) == {"/srv", "/var/lib/poolkeeper"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod(objects).keys()


def test_block_adds_the_devices(cluster: Any) -> None:
    objects = rendered(cluster, "block")
    (container,) = pod(objects)["containers"]
    assert container["securityContext"]["privileged"] is True
    assert host_paths(objects) - host_paths(rendered(cluster, "files")) == {"/dev", "/run/udev"}


@each_overlay
def test_a_directory_has_the_same_path_in_the_agent_as_on_its_host(
    cluster: Any, overlay: str
) -> None:
    objects = rendered(cluster, overlay)
    (container,) = pod(objects)["containers"]
    mounted = {item["name"]: item["mountPath"] for item in container["volumeMounts"]}
    paths = {
        item["name"]: item["hostPath"]["path"]
        for item in pod(objects)["volumes"]
        if "hostPath" in item
    }
    assert {name: mounted[name] for name in paths} == paths


@each_overlay
def test_all_that_is_in_a_namespace_is_in_that_of_poolkeeper(cluster: Any, overlay: str) -> None:
    objects = rendered(cluster, overlay)
    assert the("Namespace", objects)["metadata"]["name"] == NAMESPACE
    assert {item["metadata"].get("namespace", NAMESPACE) for item in objects} == {NAMESPACE}


def _pool(name: str, path: str, **spec: Any) -> dict[str, Any]:
    spec = {"type": "dir", "target": {"path": path}, **spec}
    return {
        "apiVersion": API_VERSION, "kind": "StoragePool", "metadata": {"name": name}, "spec": spec,
    }  # fmt: skip


class _Given:
    """kubectl with that kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def has_no_crds(self) -> bool:
        """Whether ours have gone, for which it asks again each time."""
        path = str(REPOSITORY / "crds")
        self.kubectl("delete", "--wait=false", "--ignore-not-found", "--filename", path)
        found = self.kubectl("get", "crds", "--output=name")
        return found.returncode == 0 and GROUP not in found.stdout

    def kubectl(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", "--kubeconfig", str(self.kubeconfig), *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )


def as_agent(cluster: Any, directory: Path) -> Path:
    """A kubeconfig with the service account's token."""
    if os.environ.get("KUBECONFIG"):
        made = cluster.kubectl("create", "token", "poolkeeper-agent", f"--namespace={NAMESPACE}")
        assert made.returncode == 0, made.stderr
        token = made.stdout.strip()
    else:  # the server of the tests believes what such a token says
        token = f"sa:{NAMESPACE}:poolkeeper-agent"
    written = directory / "agent.kubeconfig"
    shutil.copy(cluster.kubeconfig, written)
    made = _Given(written).kubectl("config", "view", "--raw", "--minify", "-o", "json")
    shown = json.loads(made.stdout)
    shown["users"][0]["user"] = {"token": token}
    written.write_text(json.dumps(shown))
    return written


@contextlib.contextmanager
def agent(cluster: Any, directory: Path) -> Iterator[None]:
    """An operator that runs with the rights of the DaemonSet's service account."""
    kubeconfig = as_agent(cluster, directory)
    asked = ("auth", "can-i", "list", f"storagepools.{GROUP}", "--all-namespaces")
    until(
        lambda: _Given(kubeconfig).kubectl(*asked).stdout.strip() == "yes",
        "the agent has its role",
    )
    log = directory / "operator.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "controller.cli.main", "operator"],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "KUBECONFIG": str(kubeconfig),
                "NODE_NAME": "install-n1",
                "POOLKEEPER_STATE_DIR": str(directory / "state"),
                "POOLKEEPER_HEARTBEAT": "1s",
                "POOLKEEPER_SILENCE": "10s",
            },
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
        assert "forbidden" not in log.read_text().lower(), log.read_text()
    finally:
        process.terminate()
        process.wait(PATIENCE)
        cluster.kubectl("delete", f"storagenodes.{GROUP}", "install-n1", "--ignore-not-found")


def _disk(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "StorageVolume",
        "metadata": {"name": "install-disk", "namespace": "default"},
        "spec": {
            "poolRef": {"name": "install-images"},
            "capacity": "1Mi",
            "volumeName": "disk",
            **spec,
        },
    }


def _declare(cluster: Any, *declared: dict[str, Any]) -> None:
    """Apply, and wait until all is ready."""
    given = yaml.safe_dump_all(declared)
    made = cluster.kubectl("apply", "--filename", "-", given=given)
    assert made.returncode == 0, made.stderr
    done = cluster.kubectl(
        "wait", "--for=condition=Ready", f"--timeout={PATIENCE}s", "--filename", "-", given=given
    )
    assert done.returncode == 0, done.stderr


def _delete(cluster: Any, *arguments: str) -> None:
    done = cluster.kubectl("delete", f"--timeout={PATIENCE}s", *arguments)
    assert done.returncode == 0, done.stderr


def test_the_agents_role_is_enough_for_its_work(emptied: Any, tmp_path: Path) -> None:
    """Bind, build, make, report, adopt, delete: nothing that the server forbids."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "found").write_bytes(bytes(2**20))
    kept = _pool(
        "install-images",
        str(images),
        nodeName="install-n1",
        deletionPolicy="Undefine",
        discovery="Adopt",
    )
    install(emptied, "files")
    with agent(emptied, tmp_path):
        _declare(emptied, kept, _disk(deletionPolicy="Delete"))
        assert (images / "disk").stat().st_size == 2**20
        until(lambda: emptied.kubectl("get", "svol", "found").returncode == 0, "it is declared")
        until(lambda: "Created" in _reasons(emptied, "install-disk"), "the event of its making")
        _delete(emptied, "svol", "install-disk")
        _delete(emptied, "spool", "install-images")
        _delete(emptied, "svol", "found")
    assert [path.name for path in images.iterdir()] == ["found"]


def test_the_agents_role_is_enough_to_choose_pools_and_to_look_after_others(
    server: Any, tmp_path: Path
) -> None:
    cluster = _Given(server.kubeconfig)
    images = _pool("install-images", str(tmp_path / "images"), nodeName="install-n1")
    images["metadata"]["labels"] = {"app": "install"}
    orphan = _pool("install-orphan", str(tmp_path / "orphan"), nodeName="install-n2")
    disk = _disk(poolSelector={"matchLabels": {"app": "install"}})
    del disk["spec"]["poolRef"]
    install(cluster, "files")
    with agent(cluster, tmp_path):
        _declare(cluster, images, disk)
        assert (tmp_path / "images" / "disk").exists()
        done = cluster.kubectl("create", "--filename", "-", given=yaml.safe_dump(orphan))
        assert done.returncode == 0, done.stderr
        path = 'jsonpath={.status.conditions[?(@.type=="Ready")].reason}'
        until(
            lambda: (
                cluster.kubectl("get", "spool", "install-orphan", "-o", path).stdout == "NoAgent"
            ),
            "it is told that nobody keeps it",
        )
        ready = ("wait", "--for=condition=Ready", f"--timeout={PATIENCE}s", "snode/install-n1")
        assert cluster.kubectl(*ready).returncode == 0


def _reasons(cluster: Any, name: str) -> str:
    selector = f"--field-selector=involvedObject.name={name}"
    path = "jsonpath={.items[*].reason}"
    return str(cluster.kubectl("get", "events", "-A", selector, "-o", path).stdout)


def test_taken_off_in_the_order_of_the_page_nothing_hangs(server: Any, tmp_path: Path) -> None:
    cluster = _Given(server.kubeconfig)
    install(cluster, "files")
    images = tmp_path / "images"
    gone = tmp_path / "gone"
    with agent(cluster, tmp_path):
        _declare(
            cluster,
            _pool("install-images", str(images), nodeName="install-n1"),
            _pool("install-gone", str(gone), nodeName="install-n1", deletionPolicy="Delete"),
            _disk(),
        )
        _delete(cluster, "storagevolumes", "--all", "--all-namespaces")
        _delete(cluster, "storagepools", "--all")
    _delete(cluster, "-k", str(INSTALL / "overlays" / "files"))
    assert not gone.exists()
    assert (images / "disk").stat().st_size == 2**20
    found = cluster.kubectl("get", "crd,clusterroles,validatingadmissionpolicies", "-o", "name")
    assert "poolkeeper" not in found.stdout
    assert cluster.kubectl("get", "namespace", NAMESPACE).returncode == 1


POD_MONITORS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "podmonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": {"kind": "PodMonitor", "plural": "podmonitors"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}
"""Stands for that of the prometheus-operator, in which fields are checked as well."""


def _with_components(directory: Path, *names: str) -> str:
    """A kustomization of a user's own: an overlay with components."""
    made = directory / "own"
    made.mkdir()
    root = os.path.relpath(INSTALL, made.resolve())
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{root}/overlays/files"],
        "components": [f"{root}/components/{name}" for name in names],
    }
    (made / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return str(made)


def test_components_are_added_to_an_overlay(server: Any, tmp_path: Path) -> None:
    cluster = _Given(server.kubeconfig)
    names = [path.name for path in (INSTALL / "components").iterdir()]
    done = cluster.kubectl("apply", "--filename", "-", given=json.dumps(POD_MONITORS))
    assert done.returncode == 0, done.stderr
    own = _with_components(tmp_path, *names)
    until(lambda: cluster.kubectl("apply", "-k", own).returncode == 0, "pod monitors are served")
    shown = cluster.kubectl("kustomize", own)
    objects = list(yaml.safe_load_all(shown.stdout))
    monitor, labels = (the(kind, objects) for kind in ("PodMonitor", "DaemonSet"))
    assert monitor["metadata"]["namespace"] == NAMESPACE
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= labels["spec"]["template"]["metadata"]["labels"].items()
    (container,) = pod(objects)["containers"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in [item["name"] for item in container["ports"]]
    for verb, what in (("create", "persistentvolumes"), ("get", "nodes")):
        asked = ("auth", "can-i", verb, what, f"--as={AGENT}")
        until(lambda asked=asked: cluster.kubectl(*asked).stdout.strip() == "yes", what)
    asked = ("auth", "can-i", "list", "persistentvolumes", f"--as={AGENT}")
    assert cluster.kubectl(*asked).stdout.strip() == "no"


def test_the_data_component_serves_over_tls_from_a_secret(cluster: Any, tmp_path: Path) -> None:
    shown = cluster.kubectl("kustomize", _with_components(tmp_path, "data"))
    assert shown.returncode == 0, shown.stderr
    found = pod(list(yaml.safe_load_all(shown.stdout)))
    (container,) = found["containers"]
    given = {item["name"]: item.get("value") for item in container["env"]}
    side = data_side(
        given["POOLKEEPER_DATA_LISTEN"],
        Path(given["POOLKEEPER_TLS_CERT"]),
        Path(given["POOLKEEPER_TLS_KEY"]),
        given["POOLKEEPER_DATA_URL"],
    )
    assert side.listen is not None
    port = side.listen[1]
    assert side.url == f"https://$(NODE_NAME):{port}"
    names = list(given)  # a variable can name only those before it
    assert names.index("NODE_NAME") < names.index("POOLKEEPER_DATA_URL")
    assert {"name": "data", "containerPort": port, "hostPort": port} in container["ports"]
    mounts = {item["name"]: item for item in container["volumeMounts"]}
    (volume,) = [item for item in found["volumes"] if "secret" in item]
    assert volume["secret"]["defaultMode"] == 0o400
    mount = mounts[volume["name"]]
    assert (mount["readOnly"], "subPath" in mount) == (True, False)
    assert {str(side.cert), str(side.key)} == {
        f"{mount['mountPath']}/{name}" for name in ("tls.crt", "tls.key")
    }


def test_without_the_component_the_agent_may_make_no_persistent_volume(emptied: Any) -> None:
    install(emptied, "files")
    for verb in ("get", "create", "patch", "delete"):
        asked = ("auth", "can-i", verb, "persistentvolumes", f"--as={AGENT}")
        assert emptied.kubectl(*asked).stdout.strip() == "no"


@each_overlay
def test_kubelet_asks_the_agent_where_it_answers(cluster: Any, overlay: str) -> None:
    (container,) = pod(rendered(cluster, overlay))["containers"]
    port = container["args"][container["args"].index("--listen") + 1].rpartition(":")[2]
    assert {item["name"]: str(item["containerPort"]) for item in container["ports"]} == {
        "http": port
    }
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
