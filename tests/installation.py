"""What ``manifests/install`` makes, as a cluster gets it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
INSTALL = REPOSITORY / "manifests" / "install"
OVERLAYS = tuple(sorted(path.name for path in (INSTALL / "overlays").iterdir()))
NAMESPACE = "poolkeeper-system"
AGENT = f"system:serviceaccount:{NAMESPACE}:poolkeeper-agent"

PATIENCE = 60
"""Seconds for what takes a fraction of one; a machine may be busy."""


def rendered(cluster: Any, overlay: str) -> list[dict[str, Any]]:
    """The objects of an overlay, as ``kubectl kustomize`` prints them."""
    done = cluster.kubectl("kustomize", str(INSTALL / "overlays" / overlay))
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def install(cluster: Any, overlay: str) -> None:
    """Apply an overlay and wait until its CRDs are served."""
    done = cluster.kubectl("apply", "--server-side", "-k", str(INSTALL / "overlays" / overlay))
    assert done.returncode == 0, done.stderr
    done = cluster.kubectl(
        "wait", "--for=condition=Established", f"--timeout={PATIENCE}s",
        "--filename", str(REPOSITORY / "crds"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def remove(cluster: Any, overlay: str) -> None:
    """Take off what an overlay made, but for the CRDs, which other tests have objects of."""
    kept = [
        item for item in rendered(cluster, overlay) if item["kind"] != "CustomResourceDefinition"
    ]
    done = cluster.kubectl(
        "delete", "--ignore-not-found", "--filename", "-", given=yaml.safe_dump_all(kept)
    )
    assert done.returncode == 0, done.stderr


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for what an API server's caches are about to know."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"not in {PATIENCE} s: {what}"
        time.sleep(0.05)
