"""A virtual SCSI host of this kernel's own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from backends.registry import pool_type
from backends.sizes import MIB
from tests.contract.candidate import PoolUnderTest
from tests.keeper import pool
from tests.lab.spare import Spares
from tests.lab.targets import Disk, LoopHost


class Candidate(PoolUnderTest):
    type = pool_type("scsi")
    given = "unit:0:1:0"
    planted_format = None
    runs_commands = False

    def __init__(self, root: Path, spares: Spares) -> None:
        super().__init__(root, spares)
        self._host = LoopHost()
        self._disks: dict[str, Disk] = {}
        self.plant_volume(self.given, 4 * MIB)

    def close(self) -> None:
        self.bring_back()
        self._host.remove()
        for disk in self._disks.values():
            disk.remove()

    def declaration(self, name: str, **spec: Any) -> dict[str, Any]:
        source = {"adapter": {"name": self._host.name}}
        return pool(name, type="scsi", scsi=source, target={"path": "/dev/disk/by-id"}, **spec)

    def plant_volume(self, name: str, size: int) -> str:
        lun = len(self._disks)
        disk = Disk(self.root, f"lun{lun}", size)
        self._host.give(lun, disk)
        name = f"unit:0:1:{lun}"
        self._disks[name] = disk
        return name

    def remove_volume(self, name: str) -> None:
        self._host.take(int(name.rpartition(":")[2]))

    def hide(self) -> None:
        (self._host.sysfs / "state").write_text("recovery\n")

    def bring_back(self) -> None:
        if not self.exists():
            (self._host.sysfs / "state").write_text("running\n")

    def exists(self) -> bool:
        return (self._host.sysfs / "state").read_text().strip() == "running"

    def owner(self) -> dict[str, str]:
        return {}

    def names(self) -> list[str]:
        return sorted(
            f"unit:0:1:{place.name.removeprefix('lun_')}"
            for place in (self._host.group / "lun").iterdir()
        )

    def size_of(self, name: str) -> int:
        return self._disks[name].file.stat().st_size

    def evidence(self, name: str | None = None) -> object:
        return {
            known: hashlib.sha256(disk.file.read_bytes()).hexdigest()
            for known, disk in self._disks.items()
            if name in (None, known)
        }

    def figures(self) -> tuple[int, int, int]:
        total = sum(disk.file.stat().st_size for disk in self._disks.values())
        return total, total, 0
