"""A disk with a gpt label: a loop device in the lab, named by a link as udev's are."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from backends.registry import pool_type
from backends.sizes import MIB
from tests.contract.candidate import PoolUnderTest
from tests.keeper import pool
from tests.lab.spare import Spares, found_on, run

_CHANGED = ("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel")


class Candidate(PoolUnderTest):
    type = pool_type("disk")
    makeable = {
        name: name
        for name in ("none", "linux", "fat16", "fat32", "linux-swap", "linux-lvm", "linux-raid")
    }
    resizable = "none"
    allocated = "none"
    planted_format = "linux"
    stand_in_reason = "DeviceChanged"
    commands_per_look = 1
    commands_to_plan = 3  # what else is on the disk, once udev is done with it

    def __init__(self, root: Path, spares: Spares) -> None:
        super().__init__(root, spares)
        self._disk = spares(128 * MIB)
        self._link = root / "disk"
        self._link.symlink_to(self._disk)

    def declaration(self, name: str, **spec: Any) -> dict[str, Any]:
        source = {"device": {"path": str(self._link)}, "format": "gpt"}
        return pool(name, type="disk", disk=source, target={"path": "/dev"}, **spec)

    def plant_backing(self) -> None:
        if not self._link.is_symlink():
            self._link.symlink_to(self.spares(128 * MIB))
        run(*_CHANGED, self._link, input=b"label: gpt\n")

    def remove_backing(self) -> None:
        run("wipefs", "--all", "--quiet", self._link)
        self._link.unlink()

    def plant_volume(self, name: str, size: int) -> str:
        entry = f'size={size // 512}, type=linux, name="{name}"\n'.encode()
        run(*_CHANGED, "--append", self._link, input=entry)
        run("partx", "--update", self._link)
        return name

    def remove_volume(self, name: str) -> None:
        node = next(item["node"] for item in self._entries() if item["name"] == name)
        run(*_CHANGED, "--delete", self._link, node.removeprefix(f"{self._disk}p"))
        run("udevadm", "settle")  # udev has the kernel read the table anew

    def plant_obstacle(self) -> None:
        if not self._link.is_symlink():
            self._link.symlink_to(self.spares(128 * MIB))
        run("mkfs.ext4", "-q", self._link)

    def remove_obstacle(self) -> None:
        assert "ext4" in found_on(self._link)
        run("wipefs", "--all", "--quiet", self._link)
        if self._link.resolve() != self._disk:
            self._link.unlink()

    def hide(self) -> None:
        self._link.unlink()

    def bring_back(self) -> None:
        self._link.symlink_to(self._disk)

    def exists(self) -> bool:
        return self._link.is_symlink() and self._table() is not None

    def _table(self) -> dict[str, Any] | None:
        done = subprocess.run(
            ["sfdisk", "--json", str(self._link.resolve())], check=False, capture_output=True
        )
        if done.returncode:
            return None
        found: dict[str, Any] = json.loads(done.stdout)["partitiontable"]
        return found

    def _entries(self) -> list[dict[str, Any]]:
        return list((self._table() or {}).get("partitions", ()))

    def owner(self) -> dict[str, str]:
        """By what the agent keeps of the table that is there now."""
        table = self._table() or {"id": "none"}
        thing = f"name partition table gpt {table['id'].lower()}"
        kept = sorted(self.root.rglob("marks/*.json"), key=lambda item: item.stat().st_mtime_ns)
        entries = [json.loads(item.read_text()) for item in kept]
        found = [item for item in entries if item["identity"] == thing]
        return {name: found[-1][name] for name in ("uid", "resource", "origin")} if found else {}

    def names(self) -> list[str]:
        return sorted(item["name"] for item in self._entries())

    def size_of(self, name: str) -> int:
        return next(item["size"] * 512 for item in self._entries() if item["name"] == name)

    def evidence(self, name: str | None = None) -> object:
        return [
            (item, hashlib.sha256(Path(item["node"]).read_bytes()).hexdigest())
            for item in self._entries()
            if name in (None, item["name"])
        ]

    def figures(self) -> tuple[int, int, int]:
        size = int(run("blockdev", "--getsize64", self._disk))
        head = run("sfdisk", "--list-free", "--bytes", self._link).splitlines()[0]
        free = int(head.split(", ")[1].split()[0])
        return size, size - free, free
