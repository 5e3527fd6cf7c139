"""The taxonomy of errors.

Every error says what happened, to what, why, and what to do. A terminal error waits for a
change of the spec (condition Stalled); a retried one is tried again with capped backoff.
``libvirt_code`` is the number of libvirt's virErrorNumber that stands for the same case.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import ClassVar


class StorageError(Exception):
    """The base of all errors that a user may read.

    :param message: what happened, to what, and why, in one sentence.
    :param hint: what to do about it, in one sentence; empty where nothing can be done.
    """

    reason: ClassVar[str] = "Failed"
    terminal: ClassVar[bool] = False
    libvirt_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InvalidSpec(StorageError):
    """What was declared can never be carried out as it stands."""

    reason, terminal, libvirt_code = "InvalidSpec", True, 8


class InvalidManifest(StorageError):
    """A manifest can't be read: syntax, an unknown field, a value of the wrong form.

    :param file: the manifest's path as the user gave it; empty for standard input.
    :param line: 1 for the first line; 0 where no line is known.
    """

    reason, terminal, libvirt_code = "InvalidManifest", True, 27

    def __init__(self, message: str, *, hint: str = "", file: str = "", line: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.file = file
        self.line = line

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return where + super().__str__()


class InvalidXml(InvalidManifest):
    """libvirt's XML_ERROR: a document that is not well formed, or a value of the wrong form."""

    reason, libvirt_code = "InvalidXML", 27


class InvalidXmlDetail(InvalidXml):
    """libvirt's XML_DETAIL: well formed, and a detail contradicts another."""

    libvirt_code = 35


class UnsupportedConfiguration(InvalidXml):
    """libvirt's CONFIG_UNSUPPORTED: an unknown type, format or feature."""

    reason, libvirt_code = "UnsupportedConfiguration", 67


class Overflow(InvalidManifest):
    """A size past 2**63 - 1 bytes."""

    reason, libvirt_code = "Overflow", 82


class Unsupported(StorageError):
    """This pool type, format or host can't do what was asked."""

    reason, terminal, libvirt_code = "Unsupported", True, 3


class MissingTool(StorageError):
    """A program or kernel module that the operation needs is not on this host."""

    reason, libvirt_code = "MissingTool", 3


class AlreadyExists(StorageError):
    """Something stands where we would create, and the policy forbids to take it over."""

    reason, terminal, libvirt_code = "AlreadyExists", True, 90


class AdoptionMismatch(StorageError):
    """What stands there differs from what is declared, so it is not taken over."""

    reason, terminal, libvirt_code = "AdoptionMismatch", True, 9


class OwnedByOther(StorageError):
    """The thing carries the mark of another resource."""

    reason, terminal, libvirt_code = "OwnedByOther", True, 9


class Conflict(StorageError):
    """Two resources claim one source, target, name or uuid; the later one waits."""

    reason, terminal, libvirt_code = "Conflict", True, 9


class NamespaceNotAllowed(StorageError):
    """A volume is declared in a namespace that its pool is not for (libvirt's ACCESS_DENIED)."""

    reason, terminal, libvirt_code = "NamespaceNotAllowed", True, 88


class Unauthenticated(StorageError):
    """Nobody can be told by what was shown, or nothing was shown (libvirt's AUTH_FAILED)."""

    reason, terminal, libvirt_code = "Unauthenticated", True, 45


class AccessDenied(StorageError):
    """Whoever asks may not do this (libvirt's ACCESS_DENIED)."""

    reason, terminal, libvirt_code = "AccessDenied", True, 88


class OverwriteRefused(StorageError):
    """A probe found data where a build would write."""

    reason, terminal, libvirt_code = "OverwriteRefused", True, 76


class DeviceChanged(StorageError):
    """A device's name leads to another device than the one that the pool stood on."""

    reason, terminal, libvirt_code = "DeviceChanged", True, 55


class ShrinkNotAllowed(StorageError):
    """The declared capacity is below the observed one and ``resize.allowShrink`` is not set."""

    reason, terminal, libvirt_code = "ShrinkNotAllowed", True, 8


class DeletionRefused(StorageError):
    """A deletion would take what is not ours, or what others stand on."""

    reason, libvirt_code = "DeletionRefused", 55


class InUse(StorageError):
    """Somebody holds the thing open, mapped, mounted or locked; the message names who."""

    reason, libvirt_code = "InUse", 55


class NotFound(StorageError):
    """A thing that is referred to is not there."""

    reason, libvirt_code = "NotFound", 50


class NotYet(NotFound):
    """What is referred to is being made: to wait for it is no trouble."""

    reason = "Progressing"


class PoolNotFound(NotFound):
    """The pool that a volume names is not declared."""

    reason, libvirt_code = "PoolNotFound", 49


class NoPoolMatches(NotFound):
    """No pool is what a volume asks for by labels."""

    reason, libvirt_code = "NoPoolMatches", 49


class NoPoolForNamespace(NamespaceNotAllowed):
    """No pool that a volume asks for by labels is for its namespace; another may come."""

    terminal = False


class NoAgent(StorageError):
    """No agent keeps the thing: there is none for its node, or it names no node."""

    reason, libvirt_code = "NoAgent", 38


class NodeSilent(NoAgent):
    """The agent of the thing's node does not report any more."""

    reason = "NodeSilent"


class PoolNotReady(StorageError):
    """The pool that a volume stands in is not running."""

    reason, libvirt_code = "PoolNotReady", 55


class VolumeMissing(StorageError):
    """A volume that was there has gone, and the policy does not say to make it anew."""

    reason, terminal, libvirt_code = "VolumeMissing", True, 50


class BackingMissing(StorageError):
    """The image that a volume stands on is not there or can't be read."""

    reason, libvirt_code = "BackingMissing", 38


class Inaccessible(StorageError):
    """The storage can't be reached or read just now. It is not taken for absent."""

    reason, libvirt_code = "Inaccessible", 38


class NoSpace(StorageError):
    """The pool has not the room that the operation needs."""

    reason, libvirt_code = "NoSpace", 9


class PermissionRefused(StorageError):
    """The operating system refused: not the owner, read-only, or a missing capability."""

    reason, libvirt_code = "PermissionRefused", 38


class ProbeFailed(StorageError):
    """A device or an image could not be examined, so nothing may be written to it."""

    reason, libvirt_code = "ProbeFailed", 75


class FormatChanged(StorageError):
    """A volume of ours has another format than declared: something else wrote to it."""

    reason, terminal, libvirt_code = "FormatChanged", True, 55


class SecretUnavailable(StorageError):
    """A secret is not there, can't be read, or is open to others (libvirt's NO_SECRET)."""

    reason, libvirt_code = "SecretUnavailable", 66


class OutOfRange(StorageError):
    """Bytes were asked for, or sent, that are not within the volume (libvirt's INVALID_ARG)."""

    reason, terminal, libvirt_code = "OutOfRange", True, 8


class ImageRefused(StorageError):
    """An image that was sent is not what was declared, or refers to other files."""

    reason, terminal, libvirt_code = "ImageRefused", True, 55


class ChecksumMismatch(StorageError):
    """What arrived is not what was announced."""

    reason, terminal, libvirt_code = "ChecksumMismatch", True, 55


class InvalidStream(StorageError):
    """What was sent as a sparse stream is none."""

    reason, terminal, libvirt_code = "InvalidStream", True, 8


class Interrupted(StorageError):
    """A stream of data ended before its end."""

    reason, libvirt_code = "Interrupted", 38


class CommandFailed(StorageError):
    """A host command ended with an exit status other than the expected one."""

    reason, libvirt_code = "CommandFailed", 1


class Timeout(StorageError):
    """A host command or a server did not answer within its deadline."""

    reason, libvirt_code = "Timeout", 38


class Cancelled(StorageError):
    """A job was asked to stop, and did."""

    reason, libvirt_code = "Cancelled", 38


class SystemFailure(StorageError):
    """The operating system answered with an error that has no name of its own here."""

    reason, libvirt_code = "SystemFailure", 38


def from_os_error(error: OSError, *, doing: str) -> StorageError:
    """Give an ``OSError`` its place in the taxonomy.

    :param doing: what was being done and to what, such as ``create /srv/images/a.raw``.
    """
    message = f"Could not {doing}: {error.strerror or error}."
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return NoSpace(message, hint="Free some space or use a larger pool.")
        case errno.EACCES | errno.EPERM:
            return PermissionRefused(
                message, hint="Run as a user that may, or change the ownership or mode."
            )
        case errno.EROFS:
            return PermissionRefused(message, hint="The file system is mounted read-only.")
        case errno.EBUSY | errno.ETXTBSY:
            return InUse(message, hint="Stop what uses it.")
        case errno.EFBIG:
            return NoSpace(message, hint="The file system can't hold a file of this size.")
        case errno.ELOOP | errno.ENOTDIR:
            return Inaccessible(message, hint="A part of the path is a link or not a directory.")
        case errno.EIO | errno.ESTALE | errno.ETIMEDOUT | errno.ENOTCONN | errno.EHOSTDOWN:
            return Inaccessible(message, hint="Check the device or the server behind it.")
        case _:
            return SystemFailure(message)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Give each ``OSError`` from within its place in the taxonomy; see ``from_os_error``."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing=doing) from error
