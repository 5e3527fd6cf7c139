"""A device that can be cut off from what stands on it, as by a pulled disk or a lost path."""

from __future__ import annotations

from pathlib import Path

from tests.lab.spare import Spares, run

_OFFSET = 2048
"""Sectors of the spare device that are left out."""


class Cable:
    """A device-mapper device over a spare one.

    :ivar device: what to use in the spare device's place.
    :ivar is_cut: whether nothing reaches it now.
    """

    def __init__(self, spares: Spares, size: int) -> None:
        # Not at its beginning: what stands on the cable is not to be found on the device, too.
        self._spare = spares(size + _OFFSET * 512)
        self._sectors = size // 512
        self._name = f"cable-{self._spare.name}"
        self.is_cut = False
        self.device = Path("/dev/mapper", self._name)
        run("dmsetup", "create", self._name, "--table", self._table())
        run("wipefs", "--all", self.device)  # of what stood there before
        run("udevadm", "settle")

    def _table(self) -> str:
        return f"0 {self._sectors} linear {self._spare} {_OFFSET}"

    def cut(self) -> None:
        """Every read and write fails from now on."""
        self._load(f"0 {self._sectors} error")
        self.is_cut = True

    def mend(self) -> None:
        """Reads and writes reach the device again, with its former content."""
        self._load(self._table())
        self.is_cut = False

    def freeze(self) -> None:
        """Reads and writes wait, as on a server that is silent, until ``thaw``."""
        run("dmsetup", "suspend", "--noflush", "--nolockfs", self._name)

    def thaw(self) -> None:
        run("dmsetup", "resume", self._name)

    def _load(self, table: str) -> None:
        run("dmsetup", "suspend", "--noflush", "--nolockfs", self._name)
        run("dmsetup", "reload", self._name, "--table", table)
        run("dmsetup", "resume", self._name)
        run("udevadm", "settle")
