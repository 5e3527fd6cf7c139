"""Filling a new volume from what its spec declares as its source.

The same for every pool type: open the source as contents, make the volume of the right size, and
let ``fill`` copy the one into the other.

    with (
        filling.Scratch() as scratch,
        filling.opened_source(volume, context, work, scratch) as source,
    ):
        capacity = filling.capacity(volume, source)
        ...  # make the volume, not yet under its name
        filling.fill(volume, source, target, context, work)
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator

from backends import errors
from backends.base import BackendContext, CloneFrom, OpenVolume, Volume, Work
from backends.host import fetching, users
from backends.images import copying, importing
from backends.images.copying import Filling
from backends.images.formats import FORMATS
from backends.images.importing import Intake
from backends.spec import FileSource, HttpSource, SecretRef

ELSEWHERE = "/var/tmp"  # noqa: S108 - files there have no name
"""Where images are fetched to for pools that have no place for files."""

_CERTIFICATES_AT_MOST = 256 * 1024


class Scratch:
    """A file without a name for an image to be fetched into, made when it is asked for.

    It is gone when it is closed, also by a kill.

    :param directory: path of the directory in whose file system it is.
    """

    def __init__(self, directory: str = ELSEWHERE) -> None:
        self._directory = directory
        self._fd = -1

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *problem: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def open(self) -> int:
        """The file, open for reading and writing; empty at first.

        :raises errors.StorageError: there is no room for it.
        """
        if self._fd < 0:
            try:
                self._fd = self._made()
            except OSError as error:
                raise errors.from_os_error(error, doing="make a temporary file") from error
        return self._fd

    def _made(self) -> int:
        try:
            return os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
        with tempfile.TemporaryFile(dir=self._directory, buffering=0) as made:  # such as NFS
            return os.dup(made.fileno())

    def holds(self, opened: OpenVolume) -> bool:
        """Whether contents are those of this file."""
        return opened.fd is not None and opened.fd == self._fd

    def give_name(self, directory_fd: int, name: str) -> bool:
        """Let the file stay under a name; false where the file system can't do that."""
        try:
            os.link(f"/proc/self/fd/{self._fd}", name, dst_dir_fd=directory_fd)
        except OSError:
            return False
        return True


def has_source(volume: Volume) -> bool:
    """Whether a new volume gets contents when it is made; an upload comes later."""
    source = volume.spec.source
    return source is not None and source.upload is None


def check(volume: Volume) -> None:
    """Refuse, before anything is done, a source that could never fill the volume.

    :raises errors.Unsupported: the volume's format or the source's can't be converted.
    """
    source = volume.spec.source
    if source is None or not has_source(volume):
        return
    if volume.format is not None and not FORMATS[volume.format].creatable:
        raise errors.Unsupported(
            f"A volume of format {volume.format} can't be filled from a source.",
            hint="Use raw or qcow2.",
        )
    image = source.http or source.file
    given = image.format if image is not None else None
    if given is not None and (given not in FORMATS or given == "dir"):
        raise errors.Unsupported(f"An image of format {given} can't be read.")
    if volume.source is not None and volume.source.volume.format == "dir":
        raise errors.Unsupported(
            f"{volume.source.resource} is a directory, which can't be cloned.",
            hint="Clone a volume with contents.",
        )


def capacity(volume: Volume, source: OpenVolume) -> int:
    """Bytes of a volume that is filled from ``source``.

    :raises errors.InvalidSpec: less is declared than the source has.
    """
    return copying.capacity_of_clone(volume.spec.capacity, source, name=volume.name)


@contextlib.contextmanager
def opened_source(
    volume: Volume, context: BackendContext, work: Work, scratch: Scratch
) -> Iterator[OpenVolume]:
    """Open what a volume is to be filled from, fetching it first where it is an image elsewhere.

    :raises errors.InUse: somebody writes to the source.
    :raises errors.StorageError: the source can't be had, or is not what was declared.
    """
    source = volume.spec.source
    if volume.source is not None:
        with _opened_clone(volume.source) as opened:
            yield opened
    elif source is not None and source.http is not None:
        _fetch(volume, source.http, scratch.open(), context, work)
        yield importing.described(scratch.open(), source.http.format, name=source.http.shown_url)
    elif source is not None and source.file is not None:
        with _opened_file(volume, source.file, work, scratch) as opened:
            yield opened
    else:
        raise errors.InvalidSpec(f"Volume {volume.name!r} has no source to be filled from.")


@contextlib.contextmanager
def _opened_clone(clone: CloneFrom) -> Iterator[OpenVolume]:
    with clone.backend.open_volume(clone.pool, clone.volume) as opened:
        writers = users.writers_of(opened.fd) if opened.fd is not None else ()
        if writers:
            raise errors.InUse(
                f"{clone.resource} is being written to: {'; '.join(writers)}.",
                hint="Stop what uses it; a copy would be of many moments at once.",
            )
        yield opened


@contextlib.contextmanager
def _opened_file(
    volume: Volume, source: FileSource, work: Work, scratch: Scratch
) -> Iterator[OpenVolume]:
    """A plain image is copied from where it is; what has to be looked through goes by way of a file
    of ours, so that what was checked is what is used."""
    with importing.opened_file(source) as original:
        if source.checksum is None and not importing.is_compressed(original):
            yield importing.described(original, source.format, name=source.path)
            return
        fd = scratch.open()
        importing.from_file(original, _intake(volume, source, source.path, fd, work))
        yield importing.described(fd, source.format, name=source.path)


def _fetch(
    volume: Volume, source: HttpSource, fd: int, context: BackendContext, work: Work
) -> None:
    address = _address(volume, source, context)
    importing.from_web(address, _intake(volume, source, address.shown, fd, work))


def _intake(
    volume: Volume, source: HttpSource | FileSource, name: str, fd: int, work: Work
) -> Intake:
    return Intake(
        name=name,
        fd=fd,
        room=importing.room(fd, format=source.format, capacity=volume.spec.capacity),
        checksum=source.checksum,
        work=work,
    )


def _address(volume: Volume, source: HttpSource, context: BackendContext) -> fetching.Address:
    def secret(reference: SecretRef, key: str) -> bytes:
        return context.secrets.read(reference, namespace=volume.namespace, key=key)

    authorization, certificates = "", ""
    if source.auth is not None and source.auth.type == "Basic":
        reference = source.auth.secret_ref
        authorization = fetching.basic(secret(reference, "username"), secret(reference, "password"))
    elif source.auth is not None:
        authorization = fetching.bearer(secret(source.auth.secret_ref, "token"))
    if source.ca_ref is not None:
        certificates = secret(source.ca_ref, "ca.crt")[:_CERTIFICATES_AT_MOST].decode(
            "ascii", errors="replace"
        )
    return fetching.Address(source.url, authorization, certificates)


def fill(
    volume: Volume, source: OpenVolume, target: OpenVolume, context: BackendContext, work: Work
) -> None:
    """Copy the contents of the source into a new volume.

    :raises errors.StorageError: as ``copying.fill``; the target then holds anything.
    """
    clone = volume.source
    copying.fill(
        Filling(
            source=source,
            target=target,
            reflink=clone.reflink if clone is not None else "Auto",
            source_secret=passphrase(clone.volume, context) if clone is not None else None,
            target_secret=passphrase(volume, context),
            timeout=context.command_timeout,
        ),
        work,
    )


def passphrase(volume: Volume, context: BackendContext) -> bytes | None:
    """The passphrase of a volume; None where it is not encrypted.

    :raises errors.SecretUnavailable: it can't be had.
    """
    encryption = volume.spec.encryption
    if encryption is None or encryption.secret_ref is None:
        return None
    return context.secrets.read(encryption.secret_ref, namespace=volume.namespace)
