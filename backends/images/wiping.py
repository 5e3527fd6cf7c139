"""Overwriting the contents of a volume, so that they can't be read back from where they stood.

libvirt writes zeros itself and hands the other algorithms to scrub(1); the passes here are those of
scrub's manual page ("SCRUB METHODS"), where its authors give what was published:

- ``nnsa``: NNSA Policy Letter NAP-14.1-C (XVI-8): random twice, zeros, verified;
- ``dod``: DoD 5220.22-M section 8-306 procedure (d): a character, its complement, random, verified;
  like scrub the random pass comes first, so that what is verified is known;
- ``bsi``: the German BSI's nine passes, each with one bit more to the left clear;
- ``gutmann``: the 35 passes of P. Gutmann, "Secure Deletion of Data from Magnetic and Solid-State
  Memory", 6th USENIX Security Symposium, 1996, in the paper's order;
- ``schneier``: B. Schneier, "Applied Cryptography", 1996: zeros, ones, random five times;
- ``pfitzner7``, ``pfitzner33``: R. Pfitzner's 7 and 33 random passes.

Each pass goes past the page cache (``O_DIRECT``) where the file system has that, and is flushed to
the medium before the next one begins. What that can't reach stands in docs/wiping.md.

Random passes are AES-256 in counter mode under a key of its own for each pass: as unpredictable as
the kernel's random numbers to anybody without the key, which is kept nowhere, and several times
as fast, so that the device is the limit.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat as modes
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from backends import errors
from backends.base import OpenVolume, Progress, Work
from backends.images import holes
from backends.images.allocating import UNSUPPORTED
from backends.sizes import GIB, KIB, MIB

PIECE = 3 * MIB
"""Bytes that are written at once: a multiple of every pattern's length and of ``BLOCK``."""

BLOCK = 4 * KIB
"""What direct writes are aligned to, in bytes; a multiple of every sector."""

_DISCARDED_AT_ONCE = 1 * GIB


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over all of the contents.

    :param pattern: repeated from the first byte on; None for random bytes.
    :param verify: read back and compare, instead of writing.
    """

    pattern: bytes | None = None
    verify: bool = False


def _fixed(*patterns: str) -> tuple[Pass, ...]:
    return tuple(Pass(bytes.fromhex(pattern)) for pattern in patterns)


_RANDOM = Pass()

_GUTMANN = (
    *(_RANDOM,) * 4,
    *_fixed("55", "aa", "924924", "492492", "249249"),
    *_fixed("00", "11", "22", "33", "44", "55", "66", "77"),
    *_fixed("88", "99", "aa", "bb", "cc", "dd", "ee", "ff"),
    *_fixed("924924", "492492", "249249", "6db6db", "b6db6d", "db6db6"),
    *(_RANDOM,) * 4,
)

PASSES: Mapping[str, tuple[Pass, ...]] = MappingProxyType(
    {
        "zero": _fixed("00"),
        "nnsa": (_RANDOM, _RANDOM, *_fixed("00"), Pass(b"\0", verify=True)),
        "dod": (_RANDOM, *_fixed("00", "ff"), Pass(b"\xff", verify=True)),
        "bsi": _fixed("ff", "fe", "fd", "fb", "f7", "ef", "df", "bf", "7f"),
        "gutmann": _GUTMANN,
        "schneier": (*_fixed("00", "ff"), *(_RANDOM,) * 5),
        "random": (_RANDOM,),
        "pfitzner7": (_RANDOM,) * 7,
        "pfitzner33": (_RANDOM,) * 33,
    }
)
"""By libvirt's name (virStorageVolWipeAlgorithm); ``trim`` writes nothing and is none of these."""

Algorithm = Literal[
    "zero", "nnsa", "dod", "bsi", "gutmann", "schneier", "pfitzner7", "pfitzner33", "random",
    "trim",
]  # fmt: skip

Range = tuple[int, int]


def wipe(opened: OpenVolume, algorithm: Algorithm, work: Work) -> None:
    """Overwrite all that a volume's file or device holds, an image's tables and LUKS header too.

    Of a file only what is allocated is overwritten: its holes hold nothing. A sparse file that is
    wiped with zeros ends as one hole, as in libvirt, but is overwritten before. The caller looks
    for users first (``Backend.users``).

    :raises errors.Unsupported: the volume is not of this host, or its device can't discard.
    :raises errors.Cancelled: it was stopped; a part is overwritten.
    :raises errors.SystemFailure: what was read back is not what was written.
    """
    fd = opened.fd
    if fd is None:
        raise errors.Unsupported(
            f"{opened.path} can't be wiped: it is reached by a network client alone."
        )
    with errors.translated(f"wipe {opened.path}"):
        if algorithm == "trim":
            _trim(fd, opened.size, work)
        else:
            _overwrite(fd, opened.size, algorithm, work)


def give_back(opened: OpenVolume) -> None:
    """Give a wiped file's space back to its file system, so that what takes its place has room.

    A first block stays: by that a mark knows the file where the file system has no attributes.
    """
    fd = opened.fd
    if fd is not None and modes.S_ISREG(os.fstat(fd).st_mode) and opened.size > BLOCK:
        with errors.translated(f"empty {opened.path}"):
            os.ftruncate(fd, BLOCK)


def _overwrite(fd: int, size: int, algorithm: Algorithm, work: Work) -> None:
    is_file = modes.S_ISREG(os.fstat(fd).st_mode)
    sparse = is_file and os.fstat(fd).st_blocks * 512 < size
    ranges = [(start, end) for start, end, data in holes.extents(fd, 0, size) if data]
    passes = PASSES[algorithm]
    progress = _Counted(work, len(passes) * sum(end - start for start, end in ranges))
    progress.add(0)
    with _medium(fd) as medium:
        for one in passes:
            medium.carry_out(one, ranges, progress.add)
            os.fdatasync(fd)
            progress.add(0)
    if sparse and algorithm == "zero":
        holes.clear(fd, 0, size, lambda done: work.check())
        os.fsync(fd)


def _trim(fd: int, size: int, work: Work) -> None:
    """Give the space back without writing: to the file system, or to the device by a discard."""
    progress = _Counted(work, size)
    progress.add(0)
    if modes.S_ISREG(os.fstat(fd).st_mode):
        holes.clear(fd, 0, size, lambda done: work.check())
        progress.add(size)
    else:
        for start in range(0, size, _DISCARDED_AT_ONCE):
            end = min(start + _DISCARDED_AT_ONCE, size)
            _discard(fd, start, end)
            progress.add(end - start)
    os.fsync(fd)


def _discard(fd: int, start: int, end: int) -> None:
    try:
        holes.discard(fd, start, end)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        raise errors.Unsupported(
            "The device can't discard, so it can't be wiped by trim.", hint="Use zero or random."
        ) from error


@dataclass(slots=True)
class _Counted:
    """Progress over all passes."""

    work: Work
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        self.work.check()
        self.work.report(Progress(done=self.done, total=self.total))


@contextlib.contextmanager
def _medium(fd: int) -> Iterator[_Medium]:
    direct = _opened_directly(fd)
    try:
        # More than a piece: older ciphers want room for a block beside what they write.
        yield _Medium(fd, direct, memoryview(mmap.mmap(-1, PIECE + BLOCK)))
    finally:
        if direct is not None:
            os.close(direct)


def _opened_directly(fd: int) -> int | None:
    """The same file or device past the page cache; None where the file system has no such way."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, *UNSUPPORTED):
            raise
        return None


@dataclass(slots=True)
class _Medium:
    """What is overwritten.

    :ivar buffer: in pages of its own, as direct writes need.
    """

    fd: int
    direct: int | None
    buffer: memoryview

    def carry_out(self, one: Pass, ranges: list[Range], advance: Callable[[int], None]) -> None:
        if self.direct is None:
            # What a former pass left in the page cache must not answer for the medium.
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        filling = _Random() if one.pattern is None else _Repeated(one.pattern)
        for start, end in ranges:
            for offset, length in _pieces(start, end):
                if one.verify:
                    self._verify(filling, offset, length)
                else:
                    filling.fill(self.buffer, offset)
                    self._write(offset, length)
                advance(length)

    def _descriptor(self, offset: int, length: int) -> int:
        aligned = offset % BLOCK == 0 and length % BLOCK == 0
        return self.direct if self.direct is not None and aligned else self.fd

    def _write(self, offset: int, length: int) -> None:
        fd, written = self._descriptor(offset, length), 0
        while written < length:
            written += os.pwrite(fd, self.buffer[written:length], offset + written)

    def _verify(self, filling: _Filling, offset: int, length: int) -> None:
        fd = self._descriptor(offset, length)
        filling.fill(self.buffer, offset)
        expected = bytes(self.buffer[:length])
        got = os.preadv(fd, [self.buffer[:length]], offset)
        if got != length or bytes(self.buffer[:length]) != expected:
            raise errors.SystemFailure(
                f"What was read back at byte {offset} is not what was written.",
                hint="The device does not keep what is written to it: destroy it.",
            )


def _pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Parts of a range, of which only a last one may have a length that is no whole block."""
    while start < end:
        length = min(PIECE, end - start)
        if length > BLOCK:
            length -= length % BLOCK
        yield start, length
        start += length


class _Filling:
    """Fills the buffer with what a pass writes."""

    def fill(self, buffer: memoryview, offset: int) -> None:
        raise NotImplementedError


class _Repeated(_Filling):
    def __init__(self, pattern: bytes) -> None:
        self._pattern = pattern
        self._phase = -1

    def fill(self, buffer: memoryview, offset: int) -> None:
        phase = offset % len(self._pattern)
        if phase != self._phase:
            turned = self._pattern[phase:] + self._pattern[:phase]
            buffer[:PIECE] = turned * (PIECE // len(turned))
            self._phase = phase


class _Random(_Filling):
    def __init__(self) -> None:
        self._stream: CipherContext = Cipher(AES(os.urandom(32)), CTR(bytes(16))).encryptor()
        self._zeros = bytes(PIECE)

    def fill(self, buffer: memoryview, offset: int) -> None:
        self._stream.update_into(self._zeros, buffer)
