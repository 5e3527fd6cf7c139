"""``volume upload`` and ``volume download``.

Where an agent keeps the state directory it is asked over its socket; where none does, this command
moves the data itself, by the same code, under the lock that keeps agents away meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import typer

from backends import errors
from backends.base import OpenVolume, Work
from backends.images import transferring
from backends.images.transferring import PIECE, Checksum, Hole, Piece, Span, Writer, piece_length
from backends.sizes import MAX_SIZE, format_quantity
from controller import contents
from controller.admitting import Command, Target, Waits
from controller.cli.bars import Bar
from controller.cli.changing import volume_key
from controller.cli.dataclient import DataClient, Described, NotNow, over_network, over_socket
from controller.cli.printing import put, say
from controller.cli.running import SOCKET
from controller.cli.session import Session
from controller.cli.working import Deadline, take_over
from controller.contents import Moved, Selection
from controller.locking import AgentLock
from controller.serving.access import LONGEST, TokenFile, bearer
from controller.transfers import Transfers, Wanted

T = TypeVar("T")

STOP_WITHIN = 0.5
"""Seconds in which a pipe that nothing comes from is left, once the upload is interrupted."""

AGAIN_EVERY = 1.0
"""Seconds until a busy agent is asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An agent that is named, as in a cluster."""

    url: str
    token_file: Path
    authority: Path | None


class _Mover(Protocol):
    """Who moves the data: an agent that is asked, or this process."""

    def describe(self) -> Described: ...

    def upload(
        self, source: _Source, pieces: Iterator[Piece], selection: Selection, expected: int
    ) -> str: ...

    def download(self, selection: Selection, take: Callable[[Piece], None]) -> None: ...


def upload(
    session: Session,
    name: str,
    file: str,
    selection: Selection,
    *,
    namespace: str,
    operation: str,
    resume: bool,
    server: Server | None,
    timeout: float,
) -> int:
    """Write a file into a volume."""
    deadline = Deadline(timeout)
    with (
        _source(file) as source,
        _mover(
            session,
            name,
            namespace=namespace,
            operation=operation,
            server=server,
            deadline=deadline,
        ) as mover,
    ):
        taken = Checksum(selection.checksum) if selection.checksum else None
        if resume:
            selection = _resumed(mover.describe(), selection, source, taken)
        length = source.length(selection.length)
        with Bar(f"Upload {name}") as bar:
            pieces = _told(source.pieces(length, sparse=selection.sparse), bar, length, taken)
            found = mover.upload(source, pieces, selection, length)
        _compare(taken, found)
    return 0


def _resumed(
    described: Described, selection: Selection, source: _Source, taken: Checksum | None
) -> Selection:
    """Go on behind what arrived, of the file as of the volume."""
    reached = described.reached
    if reached is None:
        say("No upload broke off; it begins anew.")
        return selection
    skipped = reached - selection.offset
    if skipped < 0:
        raise errors.InvalidSpec(
            f"The last upload broke off at byte {reached}, before --offset.",
            hint="Leave out --resume.",
        )
    source.skip(skipped, taken.add if taken is not None and described.whole else None)
    say(f"Going on at {format_quantity(reached)}.")
    left = max(0, selection.length - skipped) if selection.length else None
    return replace(selection, offset=reached, length=left)


def _compare(taken: Checksum | None, found: str) -> None:
    if taken is None:
        return
    if found and found != taken.hex:
        raise errors.ChecksumMismatch(
            f"The {taken.algorithm} of what was sent is {taken.hex}, of what arrived {found}.",
            hint="Send it again.",
        )
    put(f"{taken.algorithm}:{taken.hex}")


def download(
    session: Session,
    name: str,
    file: str,
    selection: Selection,
    *,
    namespace: str,
    operation: str,
    resume: bool,
    force: bool,
    server: Server | None,
    timeout: float,
) -> int:
    """Read a volume into a file."""
    if resume and (selection.checksum or file == "-"):
        raise typer.BadParameter("--resume goes neither with --checksum nor with standard output.")
    deadline = Deadline(timeout)
    with _mover(
        session, name, namespace=namespace, operation=operation, server=server, deadline=deadline
    ) as mover:
        total = max(0, mover.describe().size - selection.offset)
        total = min(total, selection.length) if selection.length else total
        with _sink(file, resume=resume, force=force) as sink, Bar(f"Download {name}") as bar:
            taken = Checksum(selection.checksum) if selection.checksum else None
            if sink.begun >= total > 0:
                say(f"{file} has all of it.")
                return 0
            rest = replace(
                selection,
                offset=selection.offset + sink.begun,
                length=total - sink.begun if selection.length else None,
                checksum="",
            )
            done = sink.begun

            def take(piece: Piece) -> None:
                nonlocal done
                if taken is not None:
                    taken.add(piece)
                sink.put(piece)
                done += piece_length(piece)
                bar.show(done, total)

            mover.download(rest, take)
            sink.finish()
    if taken is not None:
        line = f"{taken.algorithm}:{taken.hex}"
        say(line) if file == "-" else put(line)
    return 0


def _told(pieces: Iterator[Piece], bar: Bar, total: int, taken: Checksum | None) -> Iterator[Piece]:
    done = 0
    for piece in pieces:
        if taken is not None:
            taken.add(piece)
        yield piece
        done += piece_length(piece)
        bar.show(done, total)


class _Source:
    """A file, a device or a pipe that is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._fd = file.fileno()
        facts = os.fstat(self._fd)
        self._seekable = stat.S_ISREG(facts.st_mode) or stat.S_ISBLK(facts.st_mode)
        self._start = 0
        self.stopped: Callable[[], bool] = lambda: False
        """Asked while nothing comes, whether to wait no longer."""

    def skip(self, length: int, seen: Callable[[Piece], None] | None = None) -> None:
        """Leave out the beginning.

        :param seen: is given what that is; None where nobody has to see it.
        """
        if length > 0 and (seen is not None or not self._seekable):
            for piece in self.pieces(self.length(length), sparse=True):
                if seen is not None:
                    seen(piece)
        self._start = length

    def length(self, wanted: int | None) -> int:
        """Bytes that will come; 0 where that is not known."""
        if not self._seekable:
            return wanted or 0
        there = max(0, os.lseek(self._fd, 0, os.SEEK_END) - self._start)
        return min(there, wanted) if wanted else there

    def pieces(self, length: int, *, sparse: bool) -> Iterator[Piece]:
        if not self._seekable:
            return self._streamed(length or MAX_SIZE, sparse=sparse)
        size = os.lseek(self._fd, 0, os.SEEK_END)
        opened = OpenVolume(
            fd=self._fd, path="the file", kind="file", format="raw", size=size, capacity=size
        )
        span = Span(self._start, self._start + length)
        return transferring.read(opened, span, Work(), sparse=sparse)

    def _streamed(self, left: int, *, sparse: bool) -> Iterator[Piece]:
        while left > 0 and (part := self._part(min(PIECE, left))):
            left -= len(part)
            if sparse:
                yield from transferring.with_holes(part)
            else:
                yield part

    def _part(self, length: int) -> bytes:
        """So many bytes of a pipe; fewer only at its end."""
        part = bytearray()
        while len(part) < length:
            if not select.select([self._fd], [], [], STOP_WITHIN)[0]:
                if self.stopped():
                    raise errors.Cancelled("The upload was interrupted.")
                continue
            came = os.read(self._fd, length - len(part))
            if not came:
                break
            part += came
        return bytes(part)


@contextlib.contextmanager
def _source(file: str) -> Iterator[_Source]:
    if file == "-":
        yield _Source(sys.stdin.buffer)
        return
    try:
        opened = open(file, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise errors.from_os_error(error, doing=f"open {file}") from error
    with opened:
        yield _Source(opened)


class _Sink(Protocol):
    """What a download goes to.

    :ivar begun: bytes that it has already.
    """

    begun: int

    def put(self, piece: Piece) -> None: ...

    def finish(self) -> None: ...


class _FileSink:
    """A file or device: holes stay holes."""

    def __init__(self, fd: int, path: str, begun: int) -> None:
        self.begun = begun
        size = os.lseek(fd, 0, os.SEEK_END)
        opened = OpenVolume(
            fd=fd, path=path, kind="file", format="raw", size=size, capacity=MAX_SIZE
        )
        self._writer = Writer(opened, Span(begun, MAX_SIZE), Work())

    def put(self, piece: Piece) -> None:
        self._writer.put(piece)

    def finish(self) -> None:
        self._writer.finish()


class _StreamSink:
    """Standard output: holes are zeros."""

    begun = 0

    def put(self, piece: Piece) -> None:
        out = sys.stdout.buffer
        if not isinstance(piece, Hole):
            out.write(piece)
            return
        left = piece.length
        zeros = bytes(min(left, PIECE))
        while left > 0:
            out.write(zeros[:left])
            left -= len(zeros)

    def finish(self) -> None:
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def _sink(file: str, *, resume: bool, force: bool) -> Iterator[_Sink]:
    if file == "-":
        yield _StreamSink()
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    if os.path.exists(file) and not (resume or force) and not stat.S_ISBLK(os.stat(file).st_mode):
        raise errors.AlreadyExists(
            f"{file} is there.", hint="Give --force to replace it, --resume to go on at its end."
        )
    try:
        fd = os.open(file, flags | (os.O_TRUNC if force else 0), 0o600)
    except OSError as error:
        raise errors.from_os_error(error, doing=f"open {file}") from error
    try:
        yield _FileSink(fd, file, os.lseek(fd, 0, os.SEEK_END) if resume else 0)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _mover(
    session: Session,
    name: str,
    *,
    namespace: str,
    operation: str,
    server: Server | None,
    deadline: Deadline,
) -> Iterator[_Mover]:
    if server is not None:
        connect = over_network(server.url, server.authority)
        client = DataClient(connect, _token(server.token_file), namespace=namespace, volume=name)
        yield _Asking(client, operation, deadline)
        return
    with AgentLock(session.state) as lock:
        if take_over(lock, deadline) is not None:
            token = TokenFile(session.state).read()
            connect = over_socket(session.state / SOCKET)
            client = DataClient(connect, token, namespace=namespace, volume=name)
            yield _Asking(client, operation, deadline)
            return
        logging.getLogger("controller").addHandler(logging.NullHandler())
        with session.store() as store:
            engine = session.engine(store)
            engine.recover()
            wanted = functools.partial(
                Wanted, volume=volume_key(name, namespace), operation=operation
            )
            mover = _Moving(Transfers(engine), wanted, deadline)
            try:
                yield mover
            finally:
                engine.stop()
                engine.jobs.idle(deadline.seconds)


def _token(file: Path) -> str:
    """A token from a file, which is shown in no error."""
    try:
        with file.open("rb") as opened:
            found = opened.read(LONGEST + 1).decode(errors="replace").strip()
    except OSError as error:
        raise errors.from_os_error(error, doing=f"read {file}") from error
    return bearer(f"Bearer {found}")


class _Asking:
    """Has an agent move the data; asks again while that is busy."""

    def __init__(self, client: DataClient, operation: str, deadline: Deadline) -> None:
        self._client = client
        self._operation = operation
        self._deadline = deadline

    def describe(self) -> Described:
        return self._patiently(self._client.describe)

    def upload(
        self, source: _Source, pieces: Iterator[Piece], selection: Selection, expected: int
    ) -> str:
        with contextlib.suppress(errors.AccessDenied):  # who may write need not be let read
            self._patiently(self._client.describe)  # a stream can be sent but once
        try:
            # What can't fit is refused before its first byte.
            known = replace(selection, length=selection.length or expected or None)
            return self._client.upload(pieces, known, self._operation)
        except NotNow as error:
            raise errors.InUse(str(error), hint="Try again.") from None

    def download(self, selection: Selection, take: Callable[[Piece], None]) -> None:
        self._patiently(lambda: self._client.download(selection, take, self._operation))

    def _patiently(self, ask: Callable[[], T]) -> T:
        while True:
            try:
                return ask()
            except NotNow as error:
                if self._deadline.over:
                    raise errors.Timeout(str(error), hint="Give a longer --timeout.") from None
            time.sleep(min(AGAIN_EVERY, self._deadline.left))


class _Moving:
    """Moves the data in this process."""

    def __init__(
        self, transfers: Transfers, wanted: Callable[..., Wanted], deadline: Deadline
    ) -> None:
        self._transfers = transfers
        self._wanted = wanted
        self._deadline = deadline

    def describe(self) -> Described:
        with _told_where_it_waits():
            looked = self._transfers.look(self._wanted(command=Command.DOWNLOAD))
        return Described(looked.size, looked.reached, looked.image)

    def upload(
        self, source: _Source, pieces: Iterator[Piece], selection: Selection, expected: int
    ) -> str:
        def run(target: Target, chosen: Selection, work: Work) -> Moved:
            source.stopped = work.cancel.is_set
            return contents.write(
                target,
                chosen,
                pieces,
                work,
                expected=expected,
                synced=functools.partial(self._transfers.note_reached, target),
            )

        return self._carry_out(Command.UPLOAD, selection, run).checksum

    def download(self, selection: Selection, take: Callable[[Piece], None]) -> None:
        def run(target: Target, chosen: Selection, work: Work) -> Moved:
            with contents.source(target, chosen) as (opened, span):
                return contents.read(opened, span, chosen, work, take)

        self._carry_out(Command.DOWNLOAD, selection, run)

    def _carry_out(
        self,
        command: Command,
        selection: Selection,
        run: Callable[[Target, Selection, Work], Moved],
    ) -> Moved:
        with _told_where_it_waits():
            begun = self._transfers.begin(self._wanted(command=command, selection=selection), run)
        try:
            return begun.outcome.result()
        except BaseException:
            begun.job.cancel("the command was interrupted")
            raise
        finally:
            begun.job.ended.wait(self._deadline.seconds)


@contextlib.contextmanager
def _told_where_it_waits() -> Iterator[None]:
    """Where nobody else is at work, waiting would help nothing."""
    try:
        yield
    except Waits as wait:
        raise errors.PoolNotReady(str(wait), hint="poolkeeper apply brings it there.") from None
