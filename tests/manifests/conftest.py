"""The manifests of the repository, with their paths led beneath a directory of the test's own."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import REPOSITORY, Poolkeeper

MANIFESTS = REPOSITORY / "manifests"
OLD_DATA = bytes(range(256)) * 2**14
"""What stood in old-data.img before anybody declared it: 4 MiB."""


@dataclass(frozen=True)
class Host:
    """A copy of examples/host, and the two directories that its pools stand in."""

    root: Path

    @property
    def tree(self) -> Path:
        return self.root / "manifests"

    @property
    def images(self) -> Path:
        return self.root / "srv" / "images"

    @property
    def scratch(self) -> Path:
        return self.root / "srv" / "scratch"

    @property
    def poolkeeper(self) -> Poolkeeper:
        return Poolkeeper(self.root / "state", self.root)

    def mend(self) -> None:
        """Set the manifest aside that is wrong on purpose."""
        (self.tree / "broken.yaml").rename(self.root / "broken.yaml")

    def edit(self, name: str, *changes: tuple[str, str]) -> None:
        """Replace text in a manifest, in place."""
        file = self.tree / name
        text = file.read_text()
        for old, new in changes:
            assert text.count(old) == 1, f"{old!r} in {name}"
            text = text.replace(old, new)
        file.write_text(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("host")


def copied(source: Path, target: Path, old: str, new: Path) -> None:
    """Copy a folder of manifests, with one path for another."""
    shutil.copytree(source, target)
    for file in target.rglob("*"):
        if file.is_file():
            file.write_text(file.read_text().replace(old, str(new)))


def made_host(root: Path) -> Host:
    """What an administrator has before the first apply: manifests, a base image, and old data."""
    host = Host(root)
    copied(MANIFESTS / "examples" / "host", host.tree, "/srv/poolkeeper", root / "srv")
    host.images.mkdir(parents=True)
    host.scratch.mkdir()
    base = host.images / "debian-base.qcow2"
    subprocess.run(["sh", host.tree / "make-base.sh", base], check=True)
    (host.scratch / "old-data.img").write_bytes(OLD_DATA)
    return host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return made_host(tmp_path)
