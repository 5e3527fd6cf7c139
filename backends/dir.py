"""Pools on a directory (libvirt's dir)."""

from __future__ import annotations

import os
from typing import get_args

from backends import errors, names, stagedfiles
from backends.base import Operation, Pool, PoolType
from backends.filevolumes import FileVolumes, set_copy_on_write
from backends.host import files, mounts
from backends.host.files import Directory
from backends.schema import Model
from backends.spec import FileFormat, Permissions

DEFAULT_MODE = 0o711
"""Mode of a pool's directory where none is declared, as libvirt has it."""


CLAIM_SECONDS = 10.0
"""How long to wait for a pool's path to be resolved."""


class DirSource(Model):
    """A directory needs no word beside target.path."""


class DirBackend(FileVolumes):
    """A directory that is made, used and removed as a pool."""

    def claims(self, pool: Pool) -> frozenset[str]:
        path = pool.target_path
        # Asked for every pool of the node: one on a dead server must not hold up the others.
        true_path = mounts.bounded(
            lambda: os.path.realpath(path), CLAIM_SECONDS, key=f"the path {path}"
        )
        return frozenset({f"directory {true_path}"})

    def build(self, pool: Pool, *, overwrite: bool) -> None:
        """Make the directory and its parents; the mark is on it before it has its name."""
        path = pool.target_path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.from_os_error(error, doing=f"make {path.parent}") from error
        temporary = _staged(pool)
        with Directory.open(str(path.parent)) as parent:
            if not parent.exists(temporary):
                parent.mkdir(temporary, 0o700)
            try:
                with parent.open_directory(temporary) as made:
                    self._furnish(pool, made)
                parent.publish(parent, temporary, path.name)
            except errors.StorageError:
                parent.remove_directory(temporary)
                raise

    def _furnish(self, pool: Pool, made: Directory) -> None:
        features = pool.spec.features
        set_copy_on_write(made, features.copy_on_write if features else None)
        wanted = pool.spec.target.permissions if pool.spec.target else None
        wanted = wanted or Permissions()
        files.set_permissions(
            made.fd,
            mode=wanted.mode if wanted.mode is not None else DEFAULT_MODE,
            owner=wanted.owner,
            group=wanted.group,
            label=wanted.label,
        )
        self.context.marks.write(made.fd, pool.mark("Created"))

    def delete(self, pool: Pool) -> None:
        """Remove the directory, which has to be empty, if it carries our mark."""
        path = pool.target_path
        with Directory.open(str(path.parent)) as parent:
            if not parent.exists(path.name):
                return
            mark = self.context.marks.read_entry(parent.fd, path.name)
            if mark is None or mark.resource != pool.resource:
                raise errors.OwnedByOther(
                    f"{path} does not carry the mark of {pool.resource}.",
                    hint="It was replaced; nothing was changed.",
                )
            with parent.open_directory(path.name) as directory:
                stagedfiles.discard_uploads(directory)
            parent.remove_directory(path.name)
            parent.fsync()


def _staged(pool: Pool) -> str:
    return f"{names.RESERVED_PREFIX}-{pool.uid}"


POOL_TYPE = PoolType(
    name="dir",
    order=1,
    description="A directory of the host.",
    source=DirSource,
    volume_formats=get_args(FileFormat),
    default_volume_format="raw",
    operations=frozenset(Operation) - {Operation.FIND_SOURCES},
    backend=DirBackend,
)
