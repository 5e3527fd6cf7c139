"""A host that bad input must leave as it is, and one good manifest beside each bad one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.host import mounts
from tests.keeper import Keeper, dir_pool, volume
from tests.processes import Ended, Poolkeeper

SECRET = b"root:x:0:0:root:/root:/bin/sh\n"

GOOD = """apiVersion: poolkeeper.dev/v1alpha1
kind: StorageVolume
metadata: {name: made}
spec: {poolRef: {name: good}, capacity: 4Ki, allocation: 0}
"""


def facts(path: Path) -> tuple[object, ...]:
    """All that tells one state of a file from another, its times and attributes among it."""
    found = path.lstat()
    content: object = None
    if path.is_symlink():
        content = os.readlink(path)
    elif stat.S_ISREG(found.st_mode):
        content = path.read_bytes()
    there = os.listxattr(path, follow_symlinks=False)
    attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in there}
    return (
        found.st_ino, found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_size,
        found.st_blocks, found.st_mtime_ns, found.st_ctime_ns, content, tuple(attributes.items()),
    )  # fmt: skip


def snapshot(*places: Path) -> dict[Path, tuple[object, ...]]:
    """Everything at and beneath these places; of links the links."""
    paths = [path for place in places for path in (place, *place.rglob("*"))]
    return {path: facts(path) for path in paths}


class Site:
    """A host with sentinels, a pool that good things are made in, and a pool for bad ones.

    :ivar images: the pool of the bad manifests, with a volume of ours, ``kept``, and ``strange``.
    :ivar good: the pool of the good manifest.
    :ivar outside: what no pool has a right to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifests = root / "manifests"
        self.images = root / "images"
        self.good = root / "good"
        self.outside = root / "outside"
        self.state = root / "state"
        self.poolkeeper = Poolkeeper(self.state, root)
        self.manifests.mkdir()
        (self.outside / "deep").mkdir(parents=True)
        (self.outside / "passwd").write_bytes(SECRET)
        (self.outside / "deep" / "key").write_bytes(b"key")
        self._keep()

    def _keep(self) -> None:
        """What is declared and done before: the two pools, and the volume ``kept``."""
        keeper = Keeper(self.state, boot=mounts.boot_id(), node=mounts.host_name())
        keeper.apply(
            dir_pool("images", self.images),
            dir_pool("good", self.good),
            volume("kept", "images", capacity="1Mi"),
        )
        keeper.reconcile()
        keeper.store.close()
        (self.images / "strange").write_bytes(b"nobody's")

    def write(self, files: dict[str, Any]) -> None:
        """Manifests by name, with ``@`` for the root of the host; the good one is there too."""
        for name, text in {"zz-good.yaml": GOOD, **files}.items():
            data = text if isinstance(text, bytes) else text.replace("@", str(self.root)).encode()
            (self.manifests / name).write_bytes(data)

    def apply(self, *options: object) -> Ended:
        return self.poolkeeper("apply", "-f", self.manifests, *options)

    @property
    def guarded(self) -> tuple[Path, ...]:
        """Where nothing at all may change."""
        return (self.outside, self.images, self.manifests)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    for path in tmp_path.rglob("*"):  # what a test made read-only can be removed again
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
