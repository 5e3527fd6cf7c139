"""Manifests to put into files."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest


@pytest.fixture
def pool_yaml() -> Callable[..., str]:
    def text(name: str = "images", *, path: str = "", state: str = "Active") -> str:
        return (
            "apiVersion: poolkeeper.dev/v1alpha1\n"
            "kind: StoragePool\n"
            f"metadata:\n  name: {name}\n"
            "spec:\n"
            "  type: dir\n"
            f"  target:\n    path: {path or f'/srv/{name}'}\n"
            f"  state: {state}\n"
        )

    return text


@pytest.fixture
def volume_xml() -> Callable[..., str]:
    def text(name: str = "disk", *, format: str = "raw") -> str:
        return (
            f"<volume><name>{name}</name><capacity unit='GiB'>1</capacity>"
            f"<target><format type='{format}'/></target></volume>\n"
        )

    return text


@pytest.fixture
def pool_xml() -> Callable[..., str]:
    def text(name: str = "images") -> str:
        return (
            f"<pool type='dir'><name>{name}</name>"
            f"<target><path>/srv/{name}</path></target></pool>\n"
        )

    return text


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until something holds; the limit is for what never will."""

    def wait(holds: Callable[[], object], *, limit: float = 60.0) -> None:
        deadline = time.monotonic() + limit
        while not holds():
            assert time.monotonic() < deadline, "it never came to hold"
            time.sleep(0.01)

    return wait
