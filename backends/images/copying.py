"""Filling a new volume with the contents of another one: clone and import.

Raw contents go from descriptor to descriptor by the fastest way that both ends have: shared
extents (reflink), copy_file_range(2), sendfile(2), or reading and writing. Holes stay holes; on a
device, where something else may have stood, they are cleared. All other formats go through
``qemu-img convert``, which is told the whole backing chain and every format, so that it guesses
nothing and follows no name out of a header.

What is filled is new: a file that was just made and holds nothing, or a device of which nothing is
worth keeping. After a failure it holds anything, and is to be thrown away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat as modes
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from backends import errors
from backends.base import OpenVolume, Progress, Work
from backends.host import commands, reservations
from backends.images import creating, encrypting, holes, nodes
from backends.images.formats import FORMATS
from backends.images.holes import extents
from backends.sizes import GIB, KIB, MIB, format_quantity

Reflink = Literal["Auto", "Always", "Never"]

_COPIED_AT_ONCE = 64 * MIB
_READ_AT_ONCE = 256 * KIB
_ZERO_BLOCK = 64 * KIB
_FALLBACK = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EBADF}
)
"""What the kernel answers where two files can't be copied in that way."""

_ZEROED_AT_ONCE = 1 * GIB
_SLOWEST = 4 * MIB
"""Bytes a second below which a conversion is given up: it speaks of each hundredth part."""


@dataclass(frozen=True, slots=True)
class Filling:
    """What a volume is filled from and how.

    :param reflink: ``Always`` fails where extents can't be shared; ``Never`` copies every byte.
    :param source_secret: the passphrase of an encrypted source, and ``target_secret`` of the
        target.
    :param timeout: seconds that a command may be silent, at least.
    """

    source: OpenVolume
    target: OpenVolume
    reflink: Reflink = "Auto"
    source_secret: bytes | None = None
    target_secret: bytes | None = None
    timeout: float = 300.0

    @property
    def descriptors(self) -> tuple[int, int] | None:
        """Source and target, where the bytes of one are those of the other."""
        source, target = self.source, self.target
        if source.fd is None or target.fd is None or not (is_raw(source) and is_raw(target)):
            return None
        return source.fd, target.fd


def is_raw(opened: OpenVolume) -> bool:
    """Whether the contents are the bytes of the file or device themselves."""
    return nodes.has_no_header(opened) and opened.encryption is None


def capacity_of_clone(wanted: int | None, source: OpenVolume, *, name: str) -> int:
    """The capacity of a volume that is made from a source, in bytes.

    :param wanted: as declared; None for the source's own.
    :raises errors.InvalidSpec: it is smaller than the source.
    """
    if wanted is None:
        return source.capacity
    if wanted < source.capacity:
        raise errors.InvalidSpec(
            f"Volume {name!r} is to have {format_quantity(wanted)}, and its source has "
            f"{format_quantity(source.capacity)}.",
            hint="Give a capacity that is not smaller, or leave it out.",
        )
    return wanted


def check(filling: Filling) -> None:
    """Refuse what could never be done, before anything is done.

    :raises errors.InvalidSpec: the target is smaller.
    :raises errors.Unsupported: extents are to be shared where that is impossible.
    :raises errors.FormatChanged: the source's header names what is not declared.
    :raises errors.BackingMissing: an image that the source stands on can't be used.
    :raises errors.SecretUnavailable: an end is encrypted and no passphrase is given.
    """
    source, target = filling.source, filling.target
    if target.capacity < source.capacity:
        raise errors.InvalidSpec(
            f"The source has {format_quantity(source.capacity)}, and what it is to fill "
            f"{format_quantity(target.capacity)}.",
            hint="Give a capacity that is not smaller.",
        )
    if filling.reflink == "Always" and not (filling.descriptors and _are_files(filling)):
        raise errors.Unsupported(
            "Extents can be shared between raw files alone, and reflink Always is declared.",
            hint="Use Auto, or raw volumes without encryption in pools of files.",
        )
    if source.distrusted and not is_raw(source):
        raise errors.FormatChanged(source.distrusted, hint="Declare it, or make the volume anew.")
    for link in source.backing_chain:
        if link.problem:
            raise errors.BackingMissing(
                f"{link.path}, on which the source stands, can't be used: {link.problem}.",
                hint="Bring the backing image there first.",
            )
    for end, secret in ((source, filling.source_secret), (target, filling.target_secret)):
        if end.encryption is not None and secret is None:
            raise errors.SecretUnavailable("An encrypted volume can't be read without its secret.")


def _are_files(filling: Filling) -> bool:
    return filling.source.kind == filling.target.kind == "file"


def fill(filling: Filling, work: Work) -> None:
    """Copy all of the source into the target, and see that it is on the disk.

    What the target has beyond the source's capacity reads as zeros after that.

    :raises errors.StorageError: as ``check``, and where reading or writing fails.
    :raises errors.Cancelled: ``work`` was cancelled.
    """
    check(filling)
    with errors.translated(f"copy {filling.source.path} to {filling.target.path}"):
        if filling.descriptors is not None:
            _copy(filling, *filling.descriptors, work)
        else:
            with _reserved(filling, lambda: _converted_size(filling, work)):
                _convert(filling, work)
        if filling.target.fd is not None:
            _settle_size(filling.target)
            os.fsync(filling.target.fd)
    work.report(Progress(done=filling.source.capacity, total=filling.source.capacity))


def _settle_size(target: OpenVolume) -> None:
    """qemu counts in sectors, and lets a raw file end with a whole one."""
    fd = target.fd
    if fd is None or target.kind != "file" or not is_raw(target):
        return
    if os.fstat(fd).st_size != target.capacity:
        os.ftruncate(fd, target.capacity)


def _copy(filling: Filling, source: int, target: int, work: Work) -> None:
    end, capacity = filling.source.capacity, filling.target.capacity
    checkpoint = work.checkpoint(end)
    checkpoint(0)
    may_share = filling.reflink == "Auto" and _may_share(filling, target)
    if (may_share or filling.reflink == "Always") and _shared(filling, source, target):
        return
    is_device = filling.target.kind == "block"
    ways = _ways(source, target, may_share=may_share)
    mover = _Mover(source, target, is_device, ways, checkpoint)
    with _reserved(filling, lambda: _data_in(source, end)):
        for start, stop, data in extents(source, 0, end):
            if data:
                mover.move(start, stop)
            elif is_device:
                holes.clear(target, start, stop, checkpoint)
            checkpoint(stop)
    if is_device:
        holes.clear(target, end, capacity, lambda done: work.check())


def _data_in(fd: int, end: int) -> int:
    """Bytes that are no holes."""
    return sum(stop - start for start, stop, data in extents(fd, 0, end) if data)


def _reserved(filling: Filling, needed: Callable[[], int]) -> AbstractContextManager[None]:
    """The space of a target that is a file; a device has its own already."""
    target = filling.target
    if target.fd is None or target.kind != "file":
        return contextlib.nullcontext()
    return reservations.reserved(target.fd, needed(), f"the copy of {filling.source.path}")


def _shared(filling: Filling, source: int, target: int) -> bool:
    """Share all extents; false where that can't be had and need not be."""
    try:
        # An end within a block can be shared only where it becomes the target's end, too.
        os.ftruncate(target, 0)
        holes.reflink(target, source)
    except OSError as error:
        if error.errno not in _FALLBACK:
            raise
        if filling.reflink == "Always":
            raise errors.Unsupported(
                f"The extents of {filling.source.path} can't be shared with "
                f"{filling.target.path}: {error.strerror}.",
                hint="Both have to be on one btrfs or xfs file system; use reflink Auto.",
            ) from error
        return False
    finally:
        os.ftruncate(target, filling.target.capacity)
    return True


def _may_share(filling: Filling, target: int) -> bool:
    """Space that was set aside in the target stays its own, which shared extents are not."""
    return _are_files(filling) and os.fstat(target).st_blocks == 0


Way = Callable[[int, int, int, int], int]
"""Copies at most so many bytes at an offset from one descriptor to another, and says how many."""


def _copy_file_range(source: int, target: int, offset: int, count: int) -> int:
    return os.copy_file_range(source, target, count, offset, offset)


def _sendfile(source: int, target: int, offset: int, count: int) -> int:
    os.lseek(target, offset, os.SEEK_SET)
    return os.sendfile(target, source, offset, count)


def _ways(source: int, target: int, *, may_share: bool) -> list[Way]:
    """The ways to try in turn; copy_file_range(2) shares extents where it can."""
    if not all(modes.S_ISREG(os.fstat(fd).st_mode) for fd in (source, target)):
        return []
    return [_copy_file_range, _sendfile] if may_share else [_sendfile]


@dataclass(slots=True)
class _Mover:
    """Moves ranges of data between two descriptors."""

    source: int
    target: int
    is_device: bool
    ways: list[Way]
    checkpoint: Callable[[int], None]

    def move(self, start: int, end: int) -> None:
        while self.ways and start < end:
            try:
                moved = self.ways[0](
                    self.source, self.target, start, min(_COPIED_AT_ONCE, end - start)
                )
            except OSError as error:
                if error.errno not in _FALLBACK:
                    raise
                moved = 0
            if moved == 0:
                self.ways.pop(0)
            start += moved
            self.checkpoint(start)
        self._read_and_write(start, end)

    def _read_and_write(self, start: int, end: int) -> None:
        buffer = bytearray(_READ_AT_ONCE)
        view = memoryview(buffer)
        while start < end:
            got = os.preadv(self.source, [view[: min(len(view), end - start)]], start)
            if got == 0:
                raise errors.Interrupted(f"The source was cut to {start} bytes while it was read.")
            for first, last, data in _runs(buffer, got):
                if data:
                    self._write(view[first:last], start + first)
                elif self.is_device:
                    holes.clear(self.target, start + first, start + last, lambda done: None)
            start += got
            self.checkpoint(start)

    def _write(self, piece: memoryview, offset: int) -> None:
        while piece:
            written = os.pwrite(self.target, piece, offset)
            piece, offset = piece[written:], offset + written


def _runs(buffer: bytearray, length: int) -> Iterator[tuple[int, int, bool]]:
    """The parts of a buffer with data and those of whole zero blocks, in turn."""
    start = 0
    while start < length:
        zero = _block_is_zero(buffer, start, length)
        end = start
        while end < length and _block_is_zero(buffer, end, length) == zero:
            end = min(end + _ZERO_BLOCK, length)
        yield start, end, not zero
        start = end


def _block_is_zero(buffer: bytearray, start: int, length: int) -> bool:
    return holes.is_zero(buffer, start, min(start + _ZERO_BLOCK, length))


def _convert(filling: Filling, work: Work) -> None:
    source, target = filling.source, filling.target
    with encrypting.secrets_for_commands(
        source=filling.source_secret, target=filling.target_secret
    ) as secrets:
        argv = [
            "qemu-img",
            "convert",
            "-p",
            "-n",
            *(("--target-is-zero",) if _reads_as_zeros(target) else ()),
            *secrets.arguments,
            *_end("--image-opts", "-f", source, secrets.id("source")),
            *_end("--target-image-opts", "-O", target, secrets.id("target")),
            _name(source, secrets.id("source")),
            _name(target, secrets.id("target")),
        ]
        fds = {*source.pass_fds, *target.pass_fds, *secrets.pass_fds}
        creating.run_tool(argv, _runner(filling, work, tuple(fds)))
        _clear_rest(filling, work)


def _converted_size(filling: Filling, work: Work) -> int:
    """Bytes that a conversion will write. qemu-img measures qcow2 by the data that there is; for
    raw it counts holes, too."""
    source = filling.source
    if not _reads_as_zeros(filling.target):
        return filling.target.capacity  # zeros are ciphertext as well
    if source.kind == "network":
        return 0
    said = "{}"
    with encrypting.secrets_for_commands(source=filling.source_secret) as secrets:

        def run(argv: Sequence[str]) -> None:
            nonlocal said
            fds = tuple({*source.pass_fds, *secrets.pass_fds})
            said = commands.run(
                argv, timeout=filling.timeout, pass_fds=fds, cancel=work.cancel
            ).stdout

        image = nodes.described(source, secrets.id("source"))
        argv = ["qemu-img", "measure", "--output=json", "-O", "qcow2", *secrets.arguments]
        creating.run_tool([*argv, "--image-opts", image], run)
    try:
        return int(json.loads(said)["required"])
    except (ValueError, KeyError, TypeError) as error:
        raise errors.ProbeFailed("qemu-img measure said nothing of use.") from error


def _reads_as_zeros(target: OpenVolume) -> bool:
    """Whether a new one reads so: ciphertext of zeros is none, and a device held something else."""
    return target.kind == "file" and not nodes.is_luks(target)


def _end(flag: str, plain: str, opened: OpenVolume, secret: str) -> Sequence[str]:
    if opened.kind == "network":
        if secret or opened.encryption is not None:
            raise errors.Unsupported(
                f"The encrypted volume {opened.path} can't be converted over the network."
            )
        return (plain, FORMATS[opened.format or "raw"].driver)
    return (flag,)


def _name(opened: OpenVolume, secret: str) -> str:
    return opened.path if opened.kind == "network" else nodes.described(opened, secret)


def _runner(filling: Filling, work: Work, fds: tuple[int, ...]) -> creating.Run:
    total = filling.source.capacity
    silence = max(filling.timeout, total / 100 / _SLOWEST)

    def watch(said: str) -> None:
        share = said.rpartition("(")[2].partition("/")[0]
        if share.replace(".", "", 1).isdigit():
            work.report(Progress(done=int(total * float(share) / 100), total=total))

    def run(argv: Sequence[str]) -> None:
        commands.run(argv, timeout=silence, pass_fds=fds, cancel=work.cancel, watch=watch)

    return run


def _clear_rest(filling: Filling, work: Work) -> None:
    """Let what lies beyond the source read as zeros where it does not from the start."""
    source, target = filling.source, filling.target
    if _reads_as_zeros(target) or target.capacity <= source.capacity:
        return
    if is_raw(target) and target.fd is not None:
        holes.clear(target.fd, source.capacity, target.capacity, lambda done: work.check())
    elif target.encryption is not None and filling.target_secret is not None:
        _write_encrypted_zeros(
            target, filling.target_secret, source.capacity, target.capacity, work=work
        )


def _write_encrypted_zeros(
    target: OpenVolume, secret: bytes, start: int, end: int, *, work: Work
) -> None:
    """Let a part of encrypted contents read as zeros: ciphertext is written for all of it.

    :param start: bytes of the contents, not of the file.
    """
    for first in range(start, end, _ZEROED_AT_ONCE):
        work.check()
        length = min(_ZEROED_AT_ONCE, end - first)
        with encrypting.secrets_for_commands(target=secret) as secrets:
            fds = tuple({*target.pass_fds, *secrets.pass_fds})

            def run(argv: Sequence[str], fds: tuple[int, ...] = fds) -> None:
                commands.run(argv, timeout=600, pass_fds=fds, cancel=work.cancel)

            argv = [
                "qemu-io",
                *secrets.arguments,
                "-c",
                f"write -q -z {first} {length}",
                "--image-opts",
                nodes.described(target, "target"),
            ]
            creating.run_tool(argv, run)
