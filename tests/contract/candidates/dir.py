"""A directory whose parents are not there yet."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from backends.host import mounts
from backends.registry import pool_type
from tests.contract.candidate import PoolUnderTest
from tests.keeper import dir_pool, image_info, marked, tree
from tests.lab.spare import Spares


class Candidate(PoolUnderTest):
    type = pool_type("dir")
    lab = False
    directory = True
    makeable = {
        "raw": "raw", "iso": "iso", "dir": "dir", "qcow2": "qcow2", "qcow": "qcow", "qed": "qed",
        "vmdk": "vmdk", "vdi": "vdi", "vpc": "vpc", "vhd": "vhd",
    }  # fmt: skip
    resizable = "qcow2"
    allocated = "raw"
    sparse = {"allocation": 0}
    obstacle_reason = "Inaccessible"

    def __init__(self, root: Path, spares: Spares) -> None:
        super().__init__(root, spares)
        self._path = root / "srv" / "libvirt" / "images"
        self._hidden = root / "hidden"

    def declaration(self, name: str, **spec: Any) -> dict[str, Any]:
        return dir_pool(name, self._path, **spec)

    def target(self) -> Path:
        return self._path

    def plant_backing(self) -> None:
        self._path.mkdir(parents=True, mode=0o755)

    def remove_backing(self) -> None:
        shutil.rmtree(self._path)

    def plant_volume(self, name: str, size: int) -> str:
        with (self._path / name).open("xb") as file:
            file.truncate(size)
        return name

    def remove_volume(self, name: str) -> None:
        (self._path / name).unlink()

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

    def names(self) -> list[str]:
        return sorted(os.listdir(self._path))

    def size_of(self, name: str) -> int:
        return int(image_info(self._path / name)["virtual-size"])

    def evidence(self, name: str | None = None) -> object:
        return tree(self._path / name if name else self._path)

    def lasting(self, evidence: object) -> object:
        return [(path, facts[0], facts[4:6], facts[7]) for path, facts in evidence.items()]

    def figures(self) -> tuple[int, int, int]:
        facts = os.statvfs(self._path)
        capacity, free = facts.f_frsize * facts.f_blocks, facts.f_frsize * facts.f_bfree
        return capacity, capacity - free, free

    def hold_figures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fixed = mounts.Space(capacity=2**40, available=2**39, allocation=2**39)
        monkeypatch.setattr(mounts, "space", lambda fd: fixed)
