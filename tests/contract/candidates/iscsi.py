"""A target of this kernel's own, over the loopback."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from backends.host import initiator
from backends.registry import pool_type
from backends.sizes import MIB
from tests.contract.candidate import PoolUnderTest
from tests.keeper import pool
from tests.lab import targets
from tests.lab.spare import Spares
from tests.lab.targets import Disk, Target, wait_until

IQN = "iqn.2024-01.org.example:contract"


class Candidate(PoolUnderTest):
    type = pool_type("iscsi")
    given = "unit:0:0:0"
    planted_format = None

    def __init__(self, root: Path, spares: Spares) -> None:
        super().__init__(root, spares)
        self._daemon = targets.initiator()
        self._daemon.__enter__()
        self._target = Target(IQN, "127.0.0.1:3260")
        self._disks: dict[str, Disk] = {}
        self.plant_volume(self.given, 4 * MIB)

    def close(self) -> None:
        self._target.up()
        self._daemon.__exit__(None, None, None)
        self._target.remove()
        for disk in self._disks.values():
            disk.remove()

    def declaration(self, name: str, **spec: Any) -> dict[str, Any]:
        source = {"hosts": [{"name": "127.0.0.1"}], "device": {"path": IQN}}
        return pool(name, type="iscsi", iscsi=source, target={"path": "/dev/disk/by-path"}, **spec)

    def plant_volume(self, name: str, size: int) -> str:
        lun = len(self._disks)
        disk = Disk(self.root, f"lun{lun}", size)
        self._target.give(lun, disk)
        name = f"unit:0:0:{lun}"
        self._disks[name] = disk
        return name

    def remove_volume(self, name: str) -> None:
        self._target.take(int(name.rpartition(":")[2]))

    def hide(self) -> None:
        self._target.down()
        wait_until(lambda: not _logged_in())

    def bring_back(self) -> None:
        self._target.up()
        wait_until(_logged_in)

    def exists(self) -> bool:
        return (self._target.group / "enable").read_text().strip() == "1"

    def owner(self) -> dict[str, str]:
        return {}

    def names(self) -> list[str]:
        return sorted(
            f"unit:0:0:{place.name.removeprefix('lun_')}"
            for place in (self._target.group / "lun").iterdir()
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


def _logged_in() -> bool:
    return any(item.state == initiator.LOGGED_IN for item in initiator.sessions())
