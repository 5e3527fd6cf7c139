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


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where to find an API server."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on this machine")
    if given := os.environ.get("KUBECONFIG"):
        yield Path(given)
        return
    binary = os.environ.get("POOLKEEPER_TESTAPI")
    if not binary:
        pytest.skip("neither KUBECONFIG nor POOLKEEPER_TESTAPI names an API server")
    directory = tmp_path_factory.mktemp("testapi")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(
            [binary, "-dir", str(directory), "-port", str(port), "-test-tokens"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(server, directory)
        yield directory / "kubeconfig"
    finally:
        server.terminate()
        server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], directory: Path) -> None:
    found = Cluster(directory / "kubeconfig")
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, (directory / "log").read_text(errors="replace")[-2000:]
        if found.kubeconfig.exists() and found.kubectl("get", "--raw", "/readyz").returncode == 0:
            return
        time.sleep(0.1)
    pytest.fail(f"the API server was not ready in {STARTUP_SECONDS} s")


@pytest.fixture(scope="session")
def cluster(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """An API server that serves the CRDs of this checkout."""
    found = Cluster(kubeconfig)
    directory = tmp_path_factory.mktemp("crds")
    crds.write(directory)
    applied = found.kubectl(
        "apply", "--server-side", "--force-conflicts", "--filename", str(directory)
    )
    assert applied.returncode == 0, applied.stderr
    established = found.kubectl(
        "wait", "--for=condition=Established", "--timeout=60s", "--filename", str(directory)
    )
    assert established.returncode == 0, established.stderr
    return found
