"""Operators as processes on a real API server, and what a test declares there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.resources import GROUP

PATIENCE = 60
"""Seconds for what takes a fraction of one; a machine may be busy."""

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = (sys.executable, "-m", "controller.cli.main", "operator")


@dataclass
class Operator:
    """``poolkeeper operator`` for one node, with a state directory of its own."""

    node: str
    kubeconfig: Path
    state: Path
    command: tuple[str, ...] = MODULE
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.state.parent / f"{self.state.name}.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it knows all that is declared."""
        begun = 0
        with (self.state.parent / f"{self.state.name}.log").open("ab") as log:
            begun = log.tell()
            self.process = subprocess.Popen(
                self.command,
                cwd=REPOSITORY,
                env={
                    **os.environ,
                    "KUBECONFIG": str(self.kubeconfig),
                    "NODE_NAME": self.node,
                    "POOLKEEPER_STATE_DIR": str(self.state),
                    **self.environment,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until(lambda: "keeping the pools of node" in self.log[begun:], told=lambda: self.log)

    def stop(self) -> int:
        """Stop it in the ordinary way; its exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass
class Site:
    """A cluster, operators on it, and what a test declares there."""

    cluster: Any
    root: Path
    name: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")
    operators: list[Operator] = field(default_factory=list)

    def operator(
        self, node: str = "n1", *, command: tuple[str, ...] = MODULE, **environment: str
    ) -> Operator:
        """An operator that runs."""
        made = Operator(
            self.node(node),
            self.cluster.kubeconfig,
            self.root / f"state-{node}-{len(self.operators)}",
            command,
            environment,
        )
        self.operators.append(made)
        made.start()
        return made

    def node(self, name: str) -> str:
        """A node's name that no other test uses."""
        return f"{self.name}-{name}"

    def directory(self, pool: str) -> Path:
        return self.root / pool

    def pool(self, name: str = "images", node: str = "n1", **spec: Any) -> dict[str, Any]:
        """A pool of files, as a manifest."""
        target = {"path": str(self.directory(name))}
        spec = {"type": "dir", "nodeName": self.node(node), "target": target, **spec}
        return manifest("StoragePool", f"{self.name}-{name}", spec)

    def volume(self, name: str, pool: str = "images", **spec: Any) -> dict[str, Any]:
        """A volume, as a manifest."""
        spec = {"poolRef": {"name": f"{self.name}-{pool}"}, "volumeName": name, **spec}
        spec.setdefault("capacity", "1Mi")
        return manifest("StorageVolume", f"{self.name}-{name}", spec)

    def operation(
        self, name: str, volume: str, command: str = "Wipe", **spec: Any
    ) -> dict[str, Any]:
        """An operation on a volume, as a manifest."""
        spec = {"volumeRef": {"name": f"{self.name}-{volume}"}, "operation": command, **spec}
        return manifest("VolumeOperation", f"{self.name}-{name}", spec)

    def apply(self, *manifests: dict[str, Any]) -> None:
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        done = self.cluster.kubectl("apply", "--filename", "-", given=given)
        assert done.returncode == 0, done.stderr

    def delete(self, *manifests: dict[str, Any]) -> None:
        """Delete and wait until they have gone."""
        for item in manifests:
            done = self.cluster.kubectl("delete", *address(item), f"--timeout={PATIENCE}s")
            assert done.returncode == 0, done.stderr + self.said()

    def ready(self, *manifests: dict[str, Any]) -> None:
        """Wait as a user would."""
        for item in manifests:
            self.wait(item, "--for=condition=Ready")

    def wait(self, manifest: dict[str, Any], condition: str) -> None:
        timeout = f"--timeout={PATIENCE}s"
        done = self.cluster.kubectl("wait", condition, *address(manifest), timeout)
        assert done.returncode == 0, done.stderr + self.said()

    def read(self, manifest: dict[str, Any]) -> Any:
        return self.cluster.read("get", *address(manifest))

    def version(self, *manifests: dict[str, Any]) -> list[str]:
        return [self.read(item)["metadata"]["resourceVersion"] for item in manifests]

    def events(self, manifest: dict[str, Any]) -> list[dict[str, Any]]:
        name = manifest["metadata"]["name"]
        found = self.cluster.read("get", "events", f"--field-selector=involvedObject.name={name}")
        return list(found["items"])

    def said(self) -> str:
        """The logs of all operators."""
        return "".join(f"\n--- {item.node}\n{item.log}" for item in self.operators)

    def clear(self) -> None:
        """Take everything of this test off the cluster, operator or not."""
        for kind in ("volumeoperations", "storagevolumes", "storagepools", "storagenodes"):
            found = self.cluster.read("get", f"{kind}.{GROUP}", "--all-namespaces")["items"]
            for item in found:
                if item["metadata"]["name"].startswith(f"{self.name}-"):
                    patch = '{"metadata":{"finalizers":null}}'
                    self.cluster.kubectl(
                        "patch", *address(item), "--type=merge", f"--patch={patch}"
                    )
                    self.cluster.kubectl("delete", *address(item), "--wait=false")


NAMESPACED = ("StorageVolume", "VolumeOperation")


def manifest(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """An object as a user writes it."""
    return {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": kind,
        "metadata": {"name": name} | ({"namespace": "default"} if kind in NAMESPACED else {}),
        "spec": spec,
    }


def address(manifest: dict[str, Any]) -> list[str]:
    """What kubectl is told to name the object."""
    metadata = manifest["metadata"]
    named = f"{manifest['kind'].lower()}s.{GROUP}/{metadata['name']}"
    return [named, *(["--namespace", metadata["namespace"]] if "namespace" in metadata else [])]


def until(holds: Callable[[], bool], *, told: Callable[[], str] = str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)


@contextlib.contextmanager
def open_site(cluster: Any, root: Path) -> Iterator[Site]:
    """A site that is taken off the cluster afterwards."""
    made = Site(cluster, root)
    try:
        yield made
    finally:
        for operator in made.operators:
            operator.kill()
        made.clear()
