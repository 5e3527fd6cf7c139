"""What candidates share whose volumes are LUNs that this kernel's own target gives."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

from backends.sizes import MIB
from tests.contract.candidate import PoolUnderTest
from tests.lab.spare import Spares
from tests.lab.targets import Disk, Group


class LunsUnderTest(PoolUnderTest):
    """A group of LUNs, with one of 4 MiB from the start.

    :cvar prefix: of the volumes' names, before the LUN's number.
    """

    guest = True
    planted_format = None
    prefix: ClassVar[str]

    def __init__(self, root: Path, spares: Spares) -> None:
        super().__init__(root, spares)
        self._disks: dict[str, Disk] = {}
        self.group = self.make_group()
        assert self.plant_volume("first", 4 * MIB) == self.given

    def make_group(self) -> Group:
        """Set up the target, which gives no LUN yet."""
        raise NotImplementedError

    def close(self) -> None:
        self.group.remove()
        for disk in self._disks.values():
            disk.remove()

    def plant_volume(self, name: str, size: int) -> str:
        lun = len(self._disks)
        disk = Disk(self.root, f"{self.type.name}-lun{lun}", size)
        self.group.give(lun, disk)
        self._disks[f"{self.prefix}{lun}"] = disk
        return f"{self.prefix}{lun}"

    def remove_volume(self, name: str) -> None:
        self.group.take(int(name.removeprefix(self.prefix)))

    def owner(self) -> dict[str, str]:
        return {}

    def names(self) -> list[str]:
        return sorted(f"{self.prefix}{lun}" for lun in self.group.luns())

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
