"""Pools of every type, each behind the same few words, so that one suite tries them all.

A type that gets a backend adds a class here and a line in ``POOLS``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from backends.base import PoolType
from backends.host import mounts
from backends.registry import pool_type
from tests.keeper import dir_pool, marked


class PoolUnderTest(Protocol):
    """One place on the host where a pool of the type may stand, and nothing stands yet.

    :ivar makeable: formats that the type can make, with what ``status.format`` then says.
    :ivar shrinkable: one of them that can be made smaller.
    """

    type: PoolType
    makeable: Mapping[str, str]
    shrinkable: str

    def declaration(self, name: str, **spec: Any) -> dict[str, Any]:
        """The manifest of a pool that stands here."""

    def target(self) -> Path:
        """The pool's directory."""

    def plant_backing(self) -> None:
        """Make by hand what a pool stands on, as a stranger would."""

    def plant_volume(self, name: str, size: int) -> Path:
        """Make a volume by hand in a pool that is there."""

    def plant_obstacle(self) -> None:
        """Put something else where the pool's backing would be made, which is no such backing."""

    def remove_obstacle(self) -> None: ...

    def hide(self) -> None:
        """Take the backing away, as a lost mount or a dead server would."""

    def bring_back(self) -> None: ...

    def exists(self) -> bool:
        """Whether the backing is there."""

    def owner(self) -> dict[str, str]:
        """The mark on the backing."""

    def figures(self) -> tuple[int, int, int]:
        """Capacity, allocation and available as the host itself tells them, in bytes."""

    def hold_figures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keep others who use the host from changing these figures meanwhile."""


class DirUnderTest:
    """A directory whose parents are not there yet."""

    type = pool_type("dir")
    makeable = {
        "raw": "raw", "iso": "iso", "dir": "dir", "qcow2": "qcow2", "qcow": "qcow", "qed": "qed",
        "vmdk": "vmdk", "vdi": "vdi", "vpc": "vpc", "vhd": "vhd",
    }  # fmt: skip
    shrinkable = "qcow2"

    def __init__(self, root: Path) -> None:
        self._path = root / "srv" / "libvirt" / "images"
        self._hidden = root / "hidden"

    def declaration(self, name: str, **spec: Any) -> dict[str, Any]:
        return dir_pool(name, self._path, **spec)

    def target(self) -> Path:
        return self._path

    def plant_backing(self) -> None:
        self._path.mkdir(parents=True, mode=0o755)

    def plant_volume(self, name: str, size: int) -> Path:
        path = self._path / name
        with path.open("xb") as file:
            file.truncate(size)
        return path

    def plant_obstacle(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_bytes(b"somebody's")

    def remove_obstacle(self) -> None:
        assert self._path.read_bytes() == b"somebody's"
        self._path.unlink()

    def hide(self) -> None:
        shutil.move(self._path, self._hidden)

    def bring_back(self) -> None:
        shutil.move(self._hidden, self._path)

    def exists(self) -> bool:
        return self._path.is_dir()

    def owner(self) -> dict[str, str]:
        return marked(self._path)

    def figures(self) -> tuple[int, int, int]:
        facts = os.statvfs(self._path)
        capacity, free = facts.f_frsize * facts.f_blocks, facts.f_frsize * facts.f_bfree
        return capacity, capacity - free, free

    def hold_figures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fixed = mounts.Space(capacity=2**40, available=2**39, allocation=2**39)
        monkeypatch.setattr(mounts, "space", lambda fd: fixed)


POOLS: Mapping[str, Callable[[Path], PoolUnderTest]] = {"dir": DirUnderTest}
"""How to make a place for a pool of each type, in an empty directory."""
