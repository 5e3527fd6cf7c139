"""Declarations to put into a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.resources import Declared, Metadata, kinds
from controller.store import Store

Declare = Callable[..., Declared]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "state")
    yield opened
    opened.close()


@pytest.fixture
def pool() -> Declare:
    """A declared directory pool; keywords are members of its spec."""

    def declare(
        name: str = "images",
        *,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        **spec: Any,
    ) -> Declared:
        kind = kinds()["StoragePool"]
        document = {"type": "dir", "target": {"path": f"/srv/{name}"}, **spec}
        return Declared(
            kind=kind,
            metadata=Metadata(name=name, labels=labels or {}, annotations=annotations or {}),
            spec=kind.spec.model_validate(document),
        )

    return declare


@pytest.fixture
def volume() -> Declare:
    """A declared volume; keywords are members of its spec."""

    def declare(name: str = "disk", *, namespace: str = "default", **spec: Any) -> Declared:
        kind = kinds()["StorageVolume"]
        document = {"poolRef": {"name": "images"}, "capacity": "1Gi", **spec}
        return Declared(
            kind=kind,
            metadata=Metadata(name=name, namespace=namespace),
            spec=kind.spec.model_validate(document),
        )

    return declare
