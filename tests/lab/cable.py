"""A device that can be cut off from what stands on it, as by a pulled disk or a lost path."""

from __future__ import annotations

from pathlib import Path

from tests.lab.spare import Spares, run


class Cable:
    """A device-mapper device over a spare one.

    :ivar device: what to use in the spare device's place.
    """

    def __init__(self, spares: Spares, size: int) -> None:
        self._spare = spares(size)
        self._sectors = size // 512
        self._name = f"cable-{self._spare.name}"
        self.device = Path("/dev/mapper", self._name)
        run("dmsetup", "create", self._name, "--table", self._table())
        run("udevadm", "settle")

    def _table(self) -> str:
        return f"0 {self._sectors} linear {self._spare} 0"

    def cut(self) -> None:
        """Every read and write fails from now on."""
        self._load(f"0 {self._sectors} error")

    def mend(self) -> None:
        """Reads and writes reach the device again, with its former content."""
        self._load(self._table())

    def _load(self, table: str) -> None:
        run("dmsetup", "suspend", "--noflush", "--nolockfs", self._name)
        run("dmsetup", "reload", self._name, "--table", table)
        run("dmsetup", "resume", self._name)
        run("udevadm", "settle")
