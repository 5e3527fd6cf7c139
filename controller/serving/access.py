"""Who may move a volume's contents: whoever shows the right token.

On a single host the token is in a file of the state directory, and gives all: who can read that
file may do everything there anyway. In a cluster it is the caller's own, and the API server says
what its bearer may do. A token is neither kept nor shown, in no error and no log.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from backends import errors
from controller.admitting import Command
from controller.resources import Key

if TYPE_CHECKING:
    from controller.cluster.apiserver import ApiServer

FILE_NAME = "data-token"

LONGEST = 16 * 1024
"""Bytes of a token; those of service accounts have about one thousand."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Access(Protocol):
    """Decides on callers. Called from any thread; it may block."""

    def check(self, token: str, command: Command, volume: Key) -> None:
        """Let a caller pass, or not.

        :raises errors.Unauthenticated: the token is nobody's.
        :raises errors.AccessDenied: its bearer may not do this.
        """


class TokenFile:
    """The token of a host, made at its first use. To replace it, remove the file.

    :param directory: the state directory.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME

    def check(self, token: str, command: Command, volume: Key) -> None:
        """Compare with the file as it is now, in a time that does not depend on what differs."""
        if not hmac.compare_digest(token.encode(errors="replace"), self.read().encode()):
            raise errors.Unauthenticated(
                "The token is not this host's.", hint=f"It is in {self._path}, for who may read it."
            )

    def read(self) -> str:
        """The token.

        :raises errors.SecretUnavailable: others may read the file, or own it.
        """
        with contextlib.suppress(FileExistsError):
            self._make()
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise errors.from_os_error(error, doing=f"read {self._path}") from error
        try:
            facts = os.fstat(fd)
            found = os.read(fd, LONGEST).decode(errors="replace").strip()
        finally:
            os.close(fd)
        if facts.st_mode & _OTHERS or facts.st_uid not in (0, os.geteuid()):
            raise errors.SecretUnavailable(
                f"{self._path} may be read or changed by others.",
                hint="Remove it; a new one is made, with mode 0600.",
            )
        if not found:
            raise errors.SecretUnavailable(f"{self._path} is empty.", hint="Remove it.")
        return found

    def _make(self) -> None:
        if self._path.exists():
            return
        staged = self._path.with_name(f"{FILE_NAME}.{secrets.token_hex(8)}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, f"{secrets.token_urlsafe(32)}\n".encode())
                os.fsync(fd)
            finally:
                os.close(fd)
            os.link(staged, self._path)  # whole, and never in the place of another's
        except FileExistsError:
            raise
        except OSError as error:
            raise errors.from_os_error(error, doing=f"make {self._path}") from error
        finally:
            with contextlib.suppress(OSError):
                staged.unlink()


class ReviewedAccess:
    """What the API server says that the bearer of a token may do."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def check(self, token: str, command: Command, volume: Key) -> None:
        verb = "data-write" if command.writes else "data-read"
        if not self._server.may(token, verb, volume):
            raise errors.AccessDenied(
                f"{command} of {volume} needs the verb {verb} on it.",
                hint="Have it given by a role; see docs/rbac.md.",
            )


def bearer(header: str) -> str:
    """The token of an ``Authorization`` header (RFC 6750, 2.1).

    :raises errors.Unauthenticated: there is none.
    """
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > LONGEST or not token.isascii():
        raise errors.Unauthenticated(
            "This needs a token.", hint="Send it as Authorization: Bearer TOKEN."
        )
    if any(letter.isspace() or not letter.isprintable() for letter in token):
        raise errors.Unauthenticated("The token has letters that no token has.")
    return token
