"""One SQLite file that several threads and processes read and write, with errors in our words.

Readers never wait (WAL); writers wait for each other. A commit is on the disk before it returns
(``synchronous=FULL``), so a process or a host may die at any moment.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backends import errors

BUSY_SECONDS = 30.0
"""How long a writer waits for the writer before it."""

_REBUILD = (
    "Stop what uses it and move the file away together with those of the same name and -wal and "
    "-shm: a new one is filled from the manifests and from the marks on the storage."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The tables of a database file.

    :param application_id: what ``PRAGMA application_id`` holds in files of this kind.
    :param migrations: statements that lead from version n to n+1, for each n from 0.
    """

    application_id: int
    migrations: tuple[tuple[str, ...], ...]

    @property
    def version(self) -> int:
        """What ``PRAGMA user_version`` holds in a file that is up to date."""
        return len(self.migrations)


class _Connection(sqlite3.Connection):
    """A connection that can be referred to weakly, so that it ends with its thread."""


class Database:
    """A file, and a connection to it for each thread.

    :raises errors.StorageError: where the file can't be made, is damaged, or is not ours; so do
        all methods.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self._schema = schema
        self._local = threading.local()
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._make_file()
        with self._translated():
            self._migrate(self._connection())

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection to read with; each statement sees one state of the file."""
        with self._translated():
            yield self._connection()

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is kept, or nothing. It can't be begun inside another one."""
        with self._translated():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # Some failures (a full disk) have ended the transaction already.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connections of all threads; none of them may be in use."""
        for connection in list(self._open):
            connection.close()
        self._local = threading.local()

    def _make_file(self) -> None:
        # Never opened here where it exists: closing a descriptor of the file would drop the locks
        # that other connections of this process hold on it (fcntl(2)).
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            found = self.path.stat()
            if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o177:
                self.path.chmod(0o600)
        except OSError as error:
            raise errors.from_os_error(error, doing=f"open the store {self.path}") from error
        if not all(os.access(path, os.R_OK | os.W_OK) for path in (self.path, self.path.parent)):
            raise _not_writable(self.path, "its directory has to be writable too")

    def _connection(self) -> _Connection:
        found: _Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._connect()
            self._local.connection = found
            self._open.add(found)
        return found

    def _connect(self) -> _Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        connection.row_factory = sqlite3.Row
        try:
            self._enter_wal(connection)
            connection.execute("PRAGMA synchronous=FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _enter_wal(self, connection: sqlite3.Connection) -> None:
        # SQLite does not wait by itself where two processes change the journal mode at once.
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise errors.Unsupported(
                f"The file system of {self.path} has no shared memory for SQLite's journal.",
                hint="Keep the state directory on a local file system.",
            )

    def _migrate(self, connection: sqlite3.Connection) -> None:
        # In one transaction, because another process may be making the tables just now.
        connection.execute("BEGIN")
        try:
            version = self._version(connection)
        finally:
            connection.execute("COMMIT")
        if version == self._schema.version:
            return
        with self.write():
            for number in range(self._version(connection), self._schema.version):
                for statement in self._schema.migrations[number]:
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id={self._schema.application_id}")
            connection.execute(f"PRAGMA user_version={self._schema.version}")

    def _version(self, connection: sqlite3.Connection) -> int:
        """The version of the tables that are there.

        :raises errors.StorageError: they are not ours, or of a later release.
        """
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        application = int(connection.execute("PRAGMA application_id").fetchone()[0])
        tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        if application != self._schema.application_id and (application or version or tables):
            raise errors.StorageError(
                f"{self.path} is a database of another program.",
                hint="Give another state directory, or move the file away.",
            )
        if version > self._schema.version:
            raise errors.Unsupported(
                f"{self.path} was written by a newer release (schema {version}; this one knows "
                f"{self._schema.version}).",
                hint="Use that release, or move the file away to begin with an empty one.",
            )
        return version

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._in_our_words(error) from error

    def _in_our_words(self, error: sqlite3.Error) -> errors.StorageError:
        why = f"{error}."
        match _code(error):
            case sqlite3.SQLITE_FULL:
                return errors.NoSpace(
                    f"There is no room left for the store {self.path}.",
                    hint="Free some space on its file system.",
                )
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                return _not_writable(self.path, str(error))
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return errors.StorageError(
                    f"The store {self.path} is damaged: {why}", hint=_REBUILD
                )
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return errors.InUse(
                    f"Another process held the store {self.path} for {BUSY_SECONDS:g} s.",
                    hint="Find it with fuser, and end it if it hangs.",
                )
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_IOERR:
                return errors.Inaccessible(
                    f"The store {self.path} can't be read or written: {why}",
                    hint="Check the directory, its owner and the device below it.",
                )
            case _:
                return errors.StorageError(f"The store {self.path} failed: {why}", hint=_REBUILD)


def _code(error: sqlite3.Error) -> int:
    """The primary result code; 0 for misuse of the Python module."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _not_writable(path: Path, why: str) -> errors.PermissionRefused:
    return errors.PermissionRefused(
        f"The store {path} can't be written: {why}.",
        hint="Run as the user that owns it, on a file system that can be written.",
    )
