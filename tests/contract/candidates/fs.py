"""A blank loop device behind a link that stays, as one under /dev/disk/by-id."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.registry import pool_type
from tests.blockdevices import command
from tests.contract.candidates.dir import Candidate as Dir
from tests.keeper import marked, pool, tree
from tests.lab.spare import MIB, Spares

SIZE = 64 * MIB


class Candidate(Dir):
    commands_to_plan = 1  # what else is on the device
    type = pool_type("fs")
    obstacle_reason = "OverwriteRefused"
    stand_in_reason = "DeviceChanged"
    commands_per_look = 1

    def __init__(self, root: Path, spares: Spares) -> None:
        super().__init__(root, spares)
        if os.geteuid() != 0:
            pytest.skip("needs root for loop devices and mounts")
        self._path = root / "srv" / "images"
        self._link = root / "by-id"
        self._image, self._hidden = root / "disk.img", root / "hidden.img"
        self._loop = ""
        self._attach()

    def close(self) -> None:
        self._detach()

    def _attach(self) -> None:
        if not self._image.exists():
            with self._image.open("xb") as file:
                file.truncate(SIZE)
        self._loop = command("losetup", "--find", "--show", str(self._image)).strip()
        self._link.symlink_to(self._loop)

    def _detach(self) -> None:
        if self._path.is_mount():
            command("umount", str(self._path))
        if self._loop:
            command("losetup", "--detach", self._loop)
            self._link.unlink()
            self._loop = ""

    def declaration(self, name: str, **spec: Any) -> dict[str, Any]:
        target = {"path": str(self._path), **spec.pop("target", {})}
        source = {"device": {"path": str(self._link)}, "format": "ext4"}
        return pool(name, type="fs", fs=source, target=target, **spec)

    def plant_backing(self) -> None:
        if not self._loop:
            self._attach()
        command("mkfs.ext4", "-q", str(self._link))

    def remove_backing(self) -> None:
        self._detach()
        self._image.unlink()
        if not self._hidden.exists():
            self._attach()

    def plant_volume(self, name: str, size: int) -> str:
        with self._root() as root, (root / name).open("xb") as file:
            file.truncate(size)
        return name

    def plant_obstacle(self) -> None:
        if not self._loop:
            self._attach()
        command("mkswap", str(self._link))
        self._obstacle = self._content()

    def remove_obstacle(self) -> None:
        assert self._content() == self._obstacle
        self.remove_backing()

    def _content(self) -> str:
        command("sync")
        with self._image.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def hide(self) -> None:
        self._detach()
        self._image.rename(self._hidden)

    def bring_back(self) -> None:
        self._hidden.rename(self._image)
        self._attach()

    def vanish(self) -> None:
        self._link.unlink()

    def return_(self) -> None:
        self._link.symlink_to(self._loop)

    def exists(self) -> bool:
        return bool(self._loop) and bool(command("wipefs", "--noheadings", self._loop))

    def owner(self) -> dict[str, str]:
        with self._root() as root:
            return marked(root)

    def names(self) -> list[str]:
        with self._root() as root:
            return sorted(set(os.listdir(root)) - {"lost+found"})

    def evidence(self, name: str | None = None) -> object:
        with self._root() as root:
            found = tree(root / name if name else root)
            return {os.path.relpath(path, root): facts for path, facts in found.items()}

    def hold_figures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody else uses the file system."""

    @contextmanager
    def _root(self) -> Iterator[Path]:
        """The root of the file system, mounted elsewhere for a moment where it is not at its
        target."""
        if self._path.is_mount():
            yield self._path
            return
        point = self.root / "aside"
        point.mkdir(exist_ok=True)
        command("mount", "-o", "noatime", self._loop, str(point))
        try:
            yield point
        finally:
            command("umount", str(point))
