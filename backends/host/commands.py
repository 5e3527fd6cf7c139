"""Running host commands: the only module that starts processes.

A command gets an argument list (never a shell), a clean environment, a deadline, and a session
of its own, so that it ends together with the processes that it starts in that session.

What a deadline can't cover is the death of the agent itself. After a ``kill -9`` of the agent its
children go on: the kernel's parent-death signal follows the thread that started the process,
which in a pool of threads ends at any time, so it is not used here. Under systemd the unit's
control group takes the children along; elsewhere a ``qemu-img`` may write on for hours.
Callers therefore

- let a command write only to a staged name that no other attempt uses, never to a volume's final
  name: a leftover may then be unlinked at once, and what still writes to it harms nobody and only
  holds its space until it ends;
- open a block device with ``O_EXCL``, or look for who holds it, before they write to it again;
- repeat a step by looking at what the host has, not by assuming that the former one stopped.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import selectors
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from backends import errors

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for, whatever the agent's own ``PATH`` is."""

MAX_OUTPUT = 64 * 2**20
"""The most that a command may write to standard output, in bytes."""

MAX_DIAGNOSTICS = 64 * 2**10
"""How much of the end of standard error is kept, in bytes."""

TERMINATION_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""

_LINGER = 1.0
"""Seconds to go on reading after a command ended while a daemon that it started holds its pipes."""

_TICK = 0.1
_CHUNK = 65536
_SHOWN_COMMAND = 400
_SHOWN_LINE = 300

_PACKAGES = {
    "blkid": "util-linux",
    "blockdev": "util-linux",
    "dmsetup": "dmsetup",
    "findmnt": "util-linux",
    "git": "git",
    "gluster": "glusterfs-cli",
    "iscsiadm": "open-iscsi",
    "losetup": "util-linux",
    "lsblk": "util-linux",
    "lvm": "lvm2",
    "lvs": "lvm2",
    "lvcreate": "lvm2",
    "lvchange": "lvm2",
    "lvextend": "lvm2",
    "lvreduce": "lvm2",
    "lvremove": "lvm2",
    "lvresize": "lvm2",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext2": "e2fsprogs",
    "mkfs.ext3": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.ocfs2": "ocfs2-tools",
    "mkfs.vfat": "dosfstools",
    "mkfs.xfs": "xfsprogs",
    "mount": "mount",
    "mount.cifs": "cifs-utils",
    "mount.glusterfs": "glusterfs-client",
    "mount.nfs": "nfs-common",
    "multipath": "multipath-tools",
    "multipathd": "multipath-tools",
    "parted": "parted",
    "partx": "util-linux",
    "pvcreate": "lvm2",
    "pvremove": "lvm2",
    "pvs": "lvm2",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "rbd": "ceph-common",
    "scrub": "scrub",
    "sfdisk": "fdisk",
    "showmount": "nfs-common",
    "smbclient": "smbclient",
    "udevadm": "udev",
    "umount": "mount",
    "vgchange": "lvm2",
    "vgcreate": "lvm2",
    "vgremove": "lvm2",
    "vgs": "lvm2",
    "vgscan": "lvm2",
    "wipefs": "util-linux",
    "zfs": "zfsutils-linux",
    "zpool": "zfsutils-linux",
}
"""The Debian package that each program comes in."""

_spawned = 0
_usage: dict[str, Usage] = {}
_counting = threading.Lock()


@dataclass(frozen=True, slots=True)
class Usage:
    """What runs of one program came to.

    :param failed: runs that ended otherwise than expected, or were ended.
    :param seconds: of all runs together, from start to end.
    """

    runs: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended as expected.

    :param status: the exit status, or minus the signal's number.
    :param stdout: all of standard output; bytes that are not UTF-8 as surrogates, as in names.
    :param stderr: the last ``MAX_DIAGNOSTICS`` bytes of standard error, for people.
    :param seconds: from start to end, by the monotonic clock.
    """

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    seconds: float


def spawned() -> int:
    """How many processes this module has started since it was imported."""
    return _spawned


def usage() -> dict[str, Usage]:
    """What each program has been run for since this module was imported, by its name."""
    with _counting:
        return dict(_usage)


def quote(argv: Sequence[str]) -> str:
    """A command as a person would type it."""
    return shlex.join(argv)


def which(program: str) -> str | None:
    """The path of a program in ``SEARCH_PATH``; an absolute path is only checked."""
    return shutil.which(program, path=SEARCH_PATH)


def run(
    argv: Sequence[str],
    *,
    timeout: float = 60,
    input: bytes | None = None,
    expected: Container[int] = (0,),
    pass_fds: Sequence[int] = (),
    cwd: str | os.PathLike[str] | None = None,
    cancel: threading.Event | None = None,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[str], None] | None = None,
) -> Completed:
    """Run a command to its end.

    :param timeout: seconds until the command and its process group are ended; with ``watch``,
        seconds that the command may be silent.
    :param input: what to write to standard input; ``/dev/null`` stands there if left out.
    :param expected: the exit statuses that are no failure.
    :param pass_fds: descriptors that the command gets under the same numbers.
    :param cancel: ends the command soon after it is set.
    :param environment: variables beside ``PATH`` and ``LC_ALL``; nothing else is inherited.
    :param watch: given what the command writes to standard output, as it comes. What it raises
        ends the command.
    :raises errors.MissingTool: the program is not on this host.
    :raises errors.CommandFailed: another exit status, or more output than ``MAX_OUTPUT``, which is
        not cut short because half of a list would pass for the whole.
    :raises errors.Timeout: the deadline passed.
    :raises errors.Cancelled: ``cancel`` was set.
    """
    command = tuple(argv)
    limits = _Limits(command, timeout, time.monotonic(), cancel)
    limits.check()
    process = _start(command, input is not None, pass_fds, cwd, environment)
    conversation = _Conversation(process, input or b"", watch)
    failed = True
    try:
        conversation.hold(limits)
        status = process.wait()
        failed = status not in expected
    except BaseException:
        _end_group(process)
        raise
    finally:
        conversation.close()
        _count(command[0], limits.elapsed(), failed=failed)
    completed = Completed(
        command, status, conversation.stdout, conversation.stderr, limits.elapsed()
    )
    if failed:
        raise _failure(completed)
    return completed


@dataclass(slots=True)
class _Limits:
    command: tuple[str, ...]
    timeout: float
    started: float
    cancel: threading.Event | None
    heard: float = 0.0
    """Seconds after the start at which the command was last heard of."""

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def check(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise errors.Cancelled(
                f"{_shown(self.command)} was cancelled after {self.elapsed():.1f} s of its "
                f"{self.timeout:g} s."
            )
        if self.elapsed() - self.heard >= self.timeout:
            did_not = "said nothing for" if self.heard else "did not end within"
            raise errors.Timeout(
                f"{_shown(self.command)} {did_not} {self.timeout:g} s.",
                hint="Check the device or the server that it works on.",
            )

    def pause(self) -> float:
        return max(0.0, min(_TICK, self.timeout + self.heard - self.elapsed()))


class _Conversation:
    """The pipes of one process, read and written without blocking on any of them."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        input: bytes,
        watch: Callable[[str], None] | None = None,
    ) -> None:
        self._process = process
        self._watch = watch
        self._watched = 0
        self._pending = memoryview(input)
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._selector = selectors.DefaultSelector()
        for pipe, take in ((process.stdout, self._take_output), (process.stderr, self._take_error)):
            if pipe is not None:
                self._selector.register(pipe, selectors.EVENT_READ, take)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            self._selector.register(process.stdin, selectors.EVENT_WRITE, self._give_input)

    @property
    def stdout(self) -> str:
        return self._stdout.decode(errors="surrogateescape")

    @property
    def stderr(self) -> str:
        return self._stderr.decode(errors="replace")

    def hold(self, limits: _Limits) -> None:
        """Read and write until the process has ended."""
        ended_at: float | None = None
        while self._selector.get_map():
            for key, _ in self._selector.select(limits.pause()):
                key.data(key.fileobj)
            if self._watch is not None and len(self._stdout) > self._watched:
                limits.heard = limits.elapsed()
                self._watch(self._stdout[self._watched :].decode(errors="replace"))
                self._watched = len(self._stdout)
            if ended_at is None and _has_ended(self._process):
                ended_at = time.monotonic()
            if ended_at is None:
                limits.check()
            elif time.monotonic() - ended_at > _LINGER:
                return
        delay = 0.0005
        while not _has_ended(self._process):
            limits.check()
            time.sleep(min(delay, limits.pause()))
            delay = min(2 * delay, _TICK / 2)

    def close(self) -> None:
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _take(self, pipe: IO[bytes], buffer: bytearray) -> None:
        chunk = os.read(pipe.fileno(), _CHUNK)
        buffer += chunk
        if not chunk:
            self._selector.unregister(pipe)

    def _take_output(self, pipe: IO[bytes]) -> None:
        self._take(pipe, self._stdout)
        if len(self._stdout) > MAX_OUTPUT:
            raise errors.CommandFailed(
                f"{_shown(_arguments(self._process))} wrote more than {MAX_OUTPUT} bytes."
            )

    def _take_error(self, pipe: IO[bytes]) -> None:
        self._take(pipe, self._stderr)
        del self._stderr[:-MAX_DIAGNOSTICS]

    def _give_input(self, pipe: IO[bytes]) -> None:
        # A command may end, or close its input, without having read it all.
        with contextlib.suppress(BlockingIOError):
            try:
                self._pending = self._pending[os.write(pipe.fileno(), self._pending[:_CHUNK]) :]
            except BrokenPipeError:
                self._pending = self._pending[:0]
        if not self._pending:
            self._selector.unregister(pipe)
            pipe.close()


def _start(
    command: tuple[str, ...],
    has_input: bool,
    pass_fds: Sequence[int],
    cwd: str | os.PathLike[str] | None,
    environment: Mapping[str, str] | None,
) -> subprocess.Popen[bytes]:
    global _spawned  # noqa: PLW0603 - the one counter of the module
    program = which(command[0])
    if program is None:
        raise missing(command[0])
    try:
        process = subprocess.Popen(
            command,
            executable=os.path.abspath(program),
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
            cwd=cwd,
            env={"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", **(environment or {})},
        )
    except OSError as error:
        raise errors.from_os_error(error, doing=f"run {_shown(command)}") from error
    with _counting:
        _spawned += 1
    return process


def _count(program: str, seconds: float, *, failed: bool) -> None:
    name = os.path.basename(program)
    with _counting:
        before = _usage.get(name, Usage())
        _usage[name] = Usage(before.runs + 1, before.failed + failed, before.seconds + seconds)


def missing(program: str) -> errors.MissingTool:
    """The error of a program that ``which`` does not find: what to install."""
    package = _PACKAGES.get(os.path.basename(program))
    if os.path.exists(program) and os.sep in program:
        return errors.MissingTool(f"{program} can't be run.", hint="Make it executable.")
    return errors.MissingTool(
        f"The program {program} is not on this host.",
        hint=f"Install the Debian package {package}." if package else f"Install {program}.",
    )


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process ended; it stays unreaped, so that its group's number stays taken."""
    try:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return ended is not None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and the group that it leads: SIGTERM, then SIGKILL, then reap."""
    _signal_group(process.pid, signal.SIGTERM)
    limit = time.monotonic() + TERMINATION_GRACE
    while _has_living_members(process.pid) and time.monotonic() < limit:
        time.sleep(0.02)
    _signal_group(process.pid, signal.SIGKILL)
    # One that hangs in the kernel on a dead server can't be waited for; it is reaped later.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=TERMINATION_GRACE)


def _signal_group(group: int, number: signal.Signals) -> None:
    # Nobody left to signal, or only a set-uid program that an ordinary user may not end.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _has_living_members(group: int) -> bool:
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        # proc_pid_stat(5): pid (comm) state ppid pgrp; a process may vanish at any moment.
        with contextlib.suppress(OSError):
            state, _, member_of = stat.read_bytes().rpartition(b")")[2].split()[:3]
            if int(member_of) == group and state not in (b"Z", b"X"):
                return True
    return False


def _failure(completed: Completed) -> errors.CommandFailed:
    how = (
        f"ended with status {completed.status}"
        if completed.status >= 0
        else f"was ended by {_signal_name(-completed.status)}"
    )
    said = _first_useful_line(completed.stderr) or _first_useful_line(completed.stdout)
    return errors.CommandFailed(f"{_shown(completed.argv)} {how}{': ' if said else '.'}{said}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _first_useful_line(text: str) -> str:
    """The first line that is not a mere warning, else the first one; printable, not too long."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    useful = [line for line in lines if not line.lower().startswith("warning")]
    line = next(iter(useful or lines), "")
    return "".join(character for character in line if character.isprintable())[:_SHOWN_LINE]


def _arguments(process: subprocess.Popen[bytes]) -> tuple[str, ...]:
    arguments = process.args
    return tuple(arguments) if isinstance(arguments, tuple) else (str(arguments),)


def _shown(command: Sequence[str]) -> str:
    shown = quote(command)
    return shown if len(shown) <= _SHOWN_COMMAND else f"{shown[:_SHOWN_COMMAND]}…"
