"""Multipath maps over two virtual SCSI hosts of this kernel's own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from backends.registry import pool_type
from backends.sizes import MIB
from tests.contract.candidate import PoolUnderTest
from tests.keeper import pool
from tests.lab.spare import Spares, device_size, run
from tests.lab.targets import Disk, MultipathMaps

_CONTROL = "/dev/mapper/control"


class Candidate(PoolUnderTest):
    type = pool_type("mpath")
    guest = True
    given = "mpatha"
    planted_format = None
    commands_per_look = 1

    def __init__(self, root: Path, spares: Spares) -> None:
        super().__init__(root, spares)
        self._disk = Disk(root, "mpath-lun0", 4 * MIB)
        self._maps = MultipathMaps(self._disk)
        self._maps.__enter__()

    def close(self) -> None:
        self.bring_back()
        self._maps.__exit__(None, None, None)
        self._disk.remove()

    def declaration(self, name: str, **spec: Any) -> dict[str, Any]:
        return pool(name, type="mpath", mpath={}, target={"path": "/dev/mapper"}, **spec)

    def plant_volume(self, name: str, size: int) -> str:
        pytest.skip("maps are made by multipathd, of LUNs that all carry one")

    def remove_volume(self, name: str) -> None:
        run("multipath", "-f", name)

    def hide(self) -> None:
        run("mount", "--bind", "/dev/null", _CONTROL)

    def bring_back(self) -> None:
        if not self.exists():
            run("umount", _CONTROL)

    def exists(self) -> bool:
        """Whether device mapper can be asked."""
        return os.stat(_CONTROL).st_rdev != os.stat("/dev/null").st_rdev

    def owner(self) -> dict[str, str]:
        return {}

    def names(self) -> list[str]:
        lines = run("dmsetup", "ls", "--target", "multipath").splitlines()
        return [line.split()[0] for line in lines if "(" in line]

    def size_of(self, name: str) -> int:
        return device_size(f"/dev/mapper/{name}")

    def evidence(self, name: str | None = None) -> object:
        return hashlib.sha256(self._disk.file.read_bytes()).hexdigest(), self.names()

    def figures(self) -> tuple[int, int, int]:
        return 4 * MIB, 4 * MIB, 0
