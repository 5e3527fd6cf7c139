"""A real API server for the tests in this directory.

``$KUBECONFIG`` where it is set (kind, k3s, any cluster that CRDs may be installed in), else the
binary that ``$POOLKEEPER_TESTAPI`` names, started here for the run.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controller import crds
from tests.cluster.sites import Site, open_site

STARTUP_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that has the generated CRDs."""

    kubeconfig: Path

    def kubectl(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl; its exit status is the caller's to look at."""
        return subprocess.run(
            ["kubectl", "--kubeconfig", str(self.kubeconfig), *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )

    def read(self, *arguments: str, given: str = "") -> Any:
        """What kubectl prints as JSON."""
        done = self.kubectl(*arguments, "-o", "json", given=given)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


class Server:
    """An API server of our own: etcd and the CRD server in one process, with its data in a
    directory."""

    def __init__(self, binary: str, directory: Path) -> None:
        self.kubeconfig = directory / "kubeconfig"
        self._binary = binary
        self._directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.kubeconfig)

    def start(self) -> None:
        """Start it, on the same port and data each time, and wait until it answers."""
        command = [self._binary, "-dir", str(self._directory), "-port", str(self._port)]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-test-tokens"], stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._said()
            ready = self.kubeconfig.exists() and self.cluster.kubectl("get", "--raw", "/readyz")
            if ready and ready.returncode == 0:
                return
            time.sleep(0.1)
        pytest.fail(f"the API server was not ready in {STARTUP_SECONDS} s")

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _said(self) -> str:
        return (self._directory / "log").read_text(errors="replace")[-2000:]


def _needs_kubectl() -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on this machine")


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where to find an API server."""
    _needs_kubectl()
    if given := os.environ.get("KUBECONFIG"):
        yield Path(given)
        return
    binary = os.environ.get("POOLKEEPER_TESTAPI")
    if not binary:
        pytest.skip("neither KUBECONFIG nor POOLKEEPER_TESTAPI names an API server")
    server = Server(binary, tmp_path_factory.mktemp("testapi"))
    try:
        server.start()
        yield server.kubeconfig
    finally:
        server.kill()


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An API server that a test may kill, with the CRDs."""
    _needs_kubectl()
    binary = os.environ.get("POOLKEEPER_TESTAPI")
    if not binary:
        pytest.skip("POOLKEEPER_TESTAPI names no API server of our own that may be killed")
    started = Server(binary, tmp_path_factory.mktemp("testapi"))
    try:
        started.start()
        install(started.cluster, tmp_path_factory.mktemp("crds"))
        yield started
    finally:
        started.kill()


@pytest.fixture(scope="session")
def cluster(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """An API server that serves the CRDs of this checkout."""
    found = Cluster(kubeconfig)
    install(found, tmp_path_factory.mktemp("crds"))
    return found


def install(found: Cluster, directory: Path) -> None:
    """Apply the CRDs of this checkout and wait until they are served."""
    crds.write(directory)
    applied = found.kubectl(
        "apply", "--server-side", "--force-conflicts", "--filename", str(directory)
    )
    assert applied.returncode == 0, applied.stderr
    established = found.kubectl(
        "wait", "--for=condition=Established", "--timeout=60s", "--filename", str(directory)
    )
    assert established.returncode == 0, established.stderr


@pytest.fixture
def site(cluster: Any, tmp_path: Path) -> Iterator[Site]:
    """A cluster that is shared with other tests."""
    with open_site(cluster, tmp_path) as made:
        yield made


@pytest.fixture
def own_site(server: Any, tmp_path: Path) -> Iterator[Site]:
    """A cluster whose API server the test may kill."""
    with open_site(server.cluster, tmp_path) as made:
        yield made
