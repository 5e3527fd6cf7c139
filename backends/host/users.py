"""Who uses a file, a directory or a block device: what a destructive step has to know first.

Looked at are open files, working directories and mappings of all processes whose ``/proc`` entries
may be read (all of them for root), locks, loop devices, device-mapper and md devices, mounts in
every mount namespace, swap, and at last whether the kernel lets a device be opened with ``O_EXCL``.
This process's own handles and locks do not count. A file that a kernel server (nfsd) has open for a
client has no process and is found only by a lock that the client holds; a network file system
tells of other hosts by their locks alone. A process is asked for no file whose inode has another
number (or, for a directory, whose name is another), so that a dead server elsewhere holds nothing
up; a device node is looked for under the name of a ``/dev`` only. Where a libvirt runs, it tells
which of its domains have it as a disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import stat as modes
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from backends import errors
from backends.host import machines, mounts

_PROC, _SYS = "/proc", "/sys"
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO64_BYTES = 232
_LOCK_LAYOUT = "hhqqi4x"
"""``struct flock`` of the 64-bit machines."""

_QEMU_LOCK_BYTES = range(100, 300)
"""Where qemu locks images: permissions from byte 100 and 200 (block/file-posix.c of qemu)."""

_LOCK_LINE = re.compile(
    r"(?P<kind>POSIX|OFDLCK|FLOCK)\s+\S+\s+(?P<mode>READ|WRITE|RW)\s+(?P<pid>-?\d+)\s+"
    r"(?P<device>[0-9a-f]+:[0-9a-f]+):(?P<inode>\d+)\s+(?P<start>\d+)\s+(?P<end>\d+|EOF)"
)
"""A line of proc_locks(5), and of ``lock:`` in proc_pid_fdinfo(5)."""

_STAT_WITHIN = 5.0
"""Seconds in which disks of domains have to answer."""

_WRITING = os.O_WRONLY | os.O_RDWR
_READING = "has it open for reading"


@dataclass(frozen=True, slots=True)
class _Lock:
    kind: str
    pid: int
    device: tuple[int, int]
    inode: int
    text: str
    of_qemu: bool


@dataclass(slots=True)
class _Thing:
    """What is asked about.

    :param device: of the file system, as ``st_dev`` has it.
    :param super_device: the same as the kernel's tables have it: btrfs gives ``st_dev`` another.
    :param disks: for a block device, its number and those of its partitions, with their names.
    """

    fd: int
    device: int
    inode: int
    kind: int
    super_device: tuple[int, int]
    disks: dict[int, str] = field(default_factory=dict)

    @property
    def is_block(self) -> bool:
        return modes.S_ISBLK(self.kind)

    def is_it(self, facts: os.stat_result) -> bool:
        if self.is_block:
            return modes.S_ISBLK(facts.st_mode) and facts.st_rdev in self.disks
        return (facts.st_dev, facts.st_ino) == (self.device, self.inode)


@dataclass(slots=True)
class _Process:
    """How one process uses the thing."""

    pid: int
    reads: bool = False
    writes: bool = False
    mapped: bool = False
    stands_in: bool = False
    locks: list[_Lock] = field(default_factory=list)


def users_of(fd: int, *, besides: Collection[str] = ()) -> tuple[str, ...]:
    """Who uses what ``fd`` (``O_PATH`` is enough) is open on, each in words with the process.

    For a whole disk the users of its partitions count too.

    :param besides: devices such as ``/dev/dm-3`` that may stand on it.
    :return: sentences without an end, such as ``fio (pid 7) has it open for writing``.
    :raises errors.StorageError: the kernel's tables can't be read.
    """
    thing = _thing(fd)
    if _nobody_else(thing):
        return ()
    found = _known_to_kernel(thing, besides)
    return (*found, *_domains(thing, named=bool(found)))


def writers_of(fd: int) -> tuple[str, ...]:
    """Those whom the kernel knows, without those that have it open for reading alone."""
    thing = _thing(fd)
    if _nobody_else(thing):
        return ()
    return tuple(item for item in _known_to_kernel(thing) if _READING not in item)


def _known_to_kernel(thing: _Thing, besides: Collection[str] = ()) -> tuple[str, ...]:
    own = _handles(thing, str(os.getpid()))
    found = list(_processes_in_words(thing, own))
    found += _loop_devices(thing)
    found += _swaps(thing)
    if thing.is_block:
        found += _stacked(thing, besides)
        found += _mounted(thing)
        if not found and own is None and not besides:
            found += _held_by_kernel(thing)
    return tuple(dict.fromkeys(found))


def _domains(thing: _Thing, *, named: bool) -> Iterator[str]:
    """Domains of libvirt, whose processes may be where ``/proc`` does not show them.

    :param named: whether somebody is known to use it already.
    :raises errors.Inaccessible: libvirt can't be asked, and nobody is known.
    """
    try:
        disks = machines.disks_in_use()
        there = {item.path for item in disks if _may_be(thing, item.path)}
        at = mounts.bounded(
            lambda: {path for path in there if _is_at(thing, path)},
            _STAT_WITHIN,
            key="disks of libvirt's domains",
        )
    except errors.StorageError as error:
        if named:
            return
        raise errors.Inaccessible(
            f"libvirt does not say which of its domains use it: {error.message}",
            hint="See to libvirt, or stop its daemon and remove its sockets.",
        ) from error
    for item in disks:
        if item.path in at:
            how = "stands on it by" if item.backing else "has it as"
            domain = f"domain {_printable(item.domain)!r} (libvirt, {item.state})"
            yield f"{domain} {how} disk {item.target}"


def _may_be(thing: _Thing, path: str) -> bool:
    """Whether to look what stands at a path, which may be on a server that is down."""
    if thing.is_block:
        return path.startswith("/dev/")
    return os.path.basename(path) == os.path.basename(_link(f"{_PROC}/self/fd/{thing.fd}"))


def users_beneath(mount_point: str) -> tuple[str, ...]:
    """Who keeps a mounted file system from being unmounted, each in words.

    Only links of ``/proc`` are read, so a dead server behind it does not hold this up.

    :return: sentences without an end, such as ``fio (pid 7) has /srv/a.raw open``.
    """
    found = []
    for name in _listed(_PROC):
        if name.isdigit():
            found += list(_uses_beneath(name, mount_point))
    for mount in mounts.mounts():
        if _is_beneath(mount.mount_point, mount_point) and mount.mount_point != mount_point:
            point = _printable(mount.mount_point)
            found.append(f"{_printable(mount.source)} is mounted on {point}")
    for name in _listed(f"{_SYS}/block"):
        path = _text(f"{_SYS}/block/{name}/loop/backing_file").removesuffix("\n")
        if _is_beneath(path, mount_point):
            found.append(f"loop device /dev/{name} stands on {_printable(path)}")
    for line in _text(f"{_PROC}/swaps").splitlines()[1:]:
        path = line.split(maxsplit=1)[0].encode().decode("unicode_escape")
        if _is_beneath(path, mount_point):
            found.append(f"{_printable(path)} is swap space in use")
    return tuple(dict.fromkeys(found))


def _uses_beneath(pid: str, mount_point: str) -> Iterator[str]:
    base = f"{_PROC}/{pid}"
    for link, how in (("cwd", "works in"), ("root", "has its root at"), ("exe", "runs")):
        path = _link(f"{base}/{link}")
        if _is_beneath(path, mount_point):
            yield f"{_program(int(pid))} {how} {_printable(path)}"
    opened = {_link(f"{base}/fd/{number}") for number in _listed(f"{base}/fd")}
    mapped = {line.split(maxsplit=5)[-1] for line in _text(f"{base}/maps").splitlines()}
    for path in sorted(opened | mapped):
        if _is_beneath(path, mount_point):
            yield f"{_program(int(pid))} has {_printable(path)} open"


def _is_beneath(path: str, mount_point: str) -> bool:
    return path == mount_point or path.startswith(f"{mount_point.rstrip('/')}/")


def _link(path: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return ""


def _nobody_else(thing: _Thing) -> bool:
    """Whether the kernel itself says that a file is open nowhere, which spares a look at every
    process: only then does it grant a lease for writing (fcntl(2), F_SETLEASE).

    False where there may be somebody, and where there are no such leases, as on NFS.
    """
    if not modes.S_ISREG(thing.kind):
        return False
    with contextlib.suppress(OSError):
        fd = os.open(f"{_PROC}/self/fd/{thing.fd}", os.O_RDONLY | os.O_NONBLOCK)
        try:
            # Who opens it meanwhile waits, and we are told by a signal, which else would end us.
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            return True
        finally:
            os.close(fd)
    return False


def _thing(fd: int) -> _Thing:
    facts = os.fstat(fd)
    try:
        super_device = mounts.mount_of_descriptor(fd).device
    except errors.Inaccessible:
        super_device = (os.major(facts.st_dev), os.minor(facts.st_dev))
    thing = _Thing(fd, facts.st_dev, facts.st_ino, facts.st_mode, super_device)
    if thing.is_block:
        thing.disks = _disks(facts.st_rdev)
    return thing


def _disks(device: int) -> dict[int, str]:
    base = f"{_SYS}/dev/block/{os.major(device)}:{os.minor(device)}"
    try:
        found = {device: os.path.basename(os.readlink(base))}
    except OSError:
        return {device: f"{os.major(device)}:{os.minor(device)}"}
    for name in _listed(base):
        if os.path.exists(f"{base}/{name}/partition"):
            major, _, minor = _text(f"{base}/{name}/dev").partition(":")
            if minor:
                found[os.makedev(int(major), int(minor))] = name
    return found


def _processes_in_words(thing: _Thing, own: _Process | None) -> Iterator[str]:
    own_pid = os.getpid()
    seen: set[str] = {lock.text for lock in own.locks} if own else set()
    found: dict[int, _Process] = {}
    for name in _listed(_PROC):
        if name.isdigit() and int(name) != own_pid:
            process = _handles(thing, name)
            if process is not None:
                found[process.pid] = process
                seen.update(lock.text for lock in process.locks)
    for process in found.values():
        if _command(process.pid):  # else it has ended since
            yield _in_words(process)
    unnamed = False
    for lock in _locks(thing):
        if lock.text in seen or lock.pid == own_pid or lock.pid in found:
            continue
        unnamed = unnamed or lock.pid <= 0
        if lock.pid > 0:
            yield f"{_program(lock.pid)} holds a lock on it"
    if unnamed or (not found and not seen and _locked_elsewhere(thing)):
        yield "a process or host that can't be named holds a lock on it"


def _handles(thing: _Thing, pid: str) -> _Process | None:
    """How a process uses the thing; None where it doesn't, or it can't be seen."""
    found = _Process(int(pid))
    for number in _listed(f"{_PROC}/{pid}/fd"):
        _look_at_handle(thing, found, number)
    if modes.S_ISDIR(thing.kind):
        found.stands_in = _stands_in(thing, pid)
    if modes.S_ISREG(thing.kind):
        found.mapped = _maps(thing, pid)
    used = found.reads or found.writes or found.mapped or found.stands_in
    return found if used else None


def _look_at_handle(thing: _Thing, found: _Process, number: str) -> None:
    path = f"{_PROC}/{found.pid}/fd/{number}"
    with contextlib.suppress(OSError, ValueError, KeyError):  # it was closed meanwhile
        link = os.readlink(path)
        if not link.startswith("/") or (thing.is_block and "/dev/" not in link):
            return
        facts = _text(f"{_PROC}/{found.pid}/fdinfo/{number}")
        fields = dict(line.split(":", 1) for line in facts.splitlines() if ":" in line)
        if not thing.is_block and int(fields.get("ino", thing.inode)) != thing.inode:
            return
        flags = int(fields["flags"], 8)
        if flags & os.O_PATH or not thing.is_it(os.stat(path)):
            return
        found.writes = found.writes or bool(flags & _WRITING)
        found.reads = True
        lines = [line for line in facts.splitlines() if line.startswith("lock:")]
        found.locks += [lock for line in lines if (lock := _parse_lock(line)) is not None]


def _stands_in(thing: _Thing, pid: str) -> bool:
    with contextlib.suppress(OSError):
        name = os.path.basename(os.readlink(f"{_PROC}/self/fd/{thing.fd}"))
        path = f"{_PROC}/{pid}/cwd"
        return os.path.basename(os.readlink(path)) == name and thing.is_it(os.stat(path))
    return False


def _maps(thing: _Thing, pid: str) -> bool:
    """Whether a line of proc_pid_maps(5) has the file's device and inode."""
    major, minor = thing.super_device
    wanted = f" {major:02x}:{minor:02x} {thing.inode} "
    return wanted in _text(f"{_PROC}/{pid}/maps")


def _parse_lock(line: str) -> _Lock | None:
    match = _LOCK_LINE.search(line)
    if match is None or "->" in line:
        return None
    major, minor = (int(part, 16) for part in match["device"].split(":"))
    in_range = match["end"] != "EOF" and int(match["end"]) in _QEMU_LOCK_BYTES
    return _Lock(
        kind=match["kind"],
        pid=int(match["pid"]),
        device=(major, minor),
        inode=int(match["inode"]),
        text=" ".join(match[0].split()),
        of_qemu=match["kind"] != "FLOCK" and in_range and int(match["start"]) in _QEMU_LOCK_BYTES,
    )


def _locks(thing: _Thing) -> list[_Lock]:
    lines = _text(f"{_PROC}/locks").splitlines()
    wanted = thing.super_device, thing.inode
    parsed = (_parse_lock(line) for line in lines)
    return [lock for lock in parsed if lock is not None and (lock.device, lock.inode) == wanted]


def _locked_elsewhere(thing: _Thing) -> bool:
    """Whether the file system, which may be another host's, knows of a lock (fcntl_locking(2))."""
    if not modes.S_ISREG(thing.kind):
        return False
    try:
        fd = os.open(f"{_PROC}/self/fd/{thing.fd}", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        request = struct.pack(_LOCK_LAYOUT, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request)
    except OSError:
        return False
    finally:
        os.close(fd)
    return bool(struct.unpack(_LOCK_LAYOUT, answer)[0] != fcntl.F_UNLCK)


def _in_words(process: _Process) -> str:
    if process.reads:
        how = "has it open for writing" if process.writes else _READING
        if any(lock.of_qemu for lock in process.locks):
            how += ", under qemu's image lock"
        elif process.locks:
            how += ", with a lock"
    else:
        how = "has it mapped into memory" if process.mapped else "works in it"
    return f"{_program(process.pid)} {how}"


def _program(pid: int) -> str:
    """A process for people: its program, and which virtual machine it runs if it is qemu."""
    command = _command(pid) or "a process"
    arguments = _text(f"{_PROC}/{pid}/cmdline").split("\0")
    first = os.path.basename(arguments[0])
    program = _printable(first if first.startswith(command) else command)
    machine = _machine(arguments) if program.startswith("qemu-") or program == "kvm" else ""
    return (
        f"virtual machine {machine!r} ({program}, pid {pid})"
        if machine
        else (f"{program} (pid {pid})")
    )


def _command(pid: int) -> str:
    """The name of a process's program (proc_pid_comm(5)); empty for one that ended."""
    return _text(f"{_PROC}/{pid}/comm").strip()


def _machine(arguments: list[str]) -> str:
    """The guest's name, as libvirt gives it to qemu: ``-name guest=web1,debug-threads=on``."""
    if "-name" not in arguments[:-1]:
        return ""
    value = arguments[arguments.index("-name") + 1]
    return _printable(value.removeprefix("guest=").partition(",")[0])


def _loop_devices(thing: _Thing) -> Iterator[str]:
    for name in _listed(f"{_SYS}/block"):
        backing = f"{_SYS}/block/{name}/loop/backing_file"
        if name.startswith("loop") and os.path.exists(backing):
            path = _text(backing).removesuffix("\n")
            if _loop_stands_on(thing, f"/dev/{name}", path):
                yield f"loop device /dev/{name} stands on it"


def _loop_stands_on(thing: _Thing, device: str, path: str) -> bool:
    """By what the kernel has of the file; by its path where the device can't be opened."""
    with contextlib.suppress(OSError):
        fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
        try:
            answer = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_BYTES))
        finally:
            os.close(fd)
        number, inode, special = struct.unpack_from("=QQQ", answer)
        if thing.is_block:
            return special in thing.disks or _is_at(thing, path)
        return (number, inode) == (thing.device, thing.inode)
    return _is_at(thing, path)


def _is_at(thing: _Thing, path: str) -> bool:
    with contextlib.suppress(OSError):
        return thing.is_it(os.stat(path))
    return False


def _swaps(thing: _Thing) -> Iterator[str]:
    for line in _text(f"{_PROC}/swaps").splitlines()[1:]:
        path = line.split(maxsplit=1)[0].encode().decode("unicode_escape")
        if _is_at(thing, path):
            yield "it is swap space in use"


def _stacked(thing: _Thing, besides: Collection[str]) -> Iterator[str]:
    for device, name in thing.disks.items():
        base = f"{_SYS}/dev/block/{os.major(device)}:{os.minor(device)}/holders"
        for holder in sorted(_listed(base)):
            if f"/dev/{holder}" in besides:
                continue
            mapped = _text(f"{_SYS}/block/{holder}/dm/name").strip()
            shown = f"{mapped} (/dev/{holder})" if mapped else f"/dev/{holder}"
            kind = "device-mapper device" if mapped else "device"
            yield f"{kind} {shown} stands on {_it(thing, device, name)}"


def _it(thing: _Thing, device: int, name: str) -> str:
    return "it" if device == os.fstat(thing.fd).st_rdev else f"its partition {name}"


def _mounted(thing: _Thing) -> Iterator[str]:
    for pid, table in _mount_tables():
        where = "" if pid == os.getpid() else f" for {_program(pid)}"
        for mount in table:
            device = os.makedev(*mount.device)
            if device not in thing.disks:
                device = _device_of(mount.source)
            if device in thing.disks:
                it = _it(thing, device, thing.disks[device])
                yield f"{it} is mounted on {_printable(mount.mount_point)}{where}"


def _device_of(source: str) -> int:
    """The device that a file system of no single device, such as btrfs, names."""
    if source.startswith("/dev/"):
        with contextlib.suppress(OSError):
            return os.stat(source).st_rdev
    return -1


def _mount_tables() -> Iterator[tuple[int, list[mounts.Mount]]]:
    """The mounts of each mount namespace, with a process in it, this one's first."""
    seen: set[str] = set()
    own = str(os.getpid())
    for name in (own, *(name for name in _listed(_PROC) if name.isdigit())):
        with contextlib.suppress(OSError):
            namespace = os.readlink(f"{_PROC}/{name}/ns/mnt")
            if namespace in seen:
                continue
            with open(f"{_PROC}/{name}/mountinfo", "rb") as file:
                table = mounts.parse_mountinfo(file.read())
            seen.add(namespace)
            yield int(name), table


def _held_by_kernel(thing: _Thing) -> Iterator[str]:
    """What nothing above names, such as bcache or drbd: they open with ``O_EXCL`` (open(2))."""
    try:
        os.close(os.open(f"{_PROC}/self/fd/{thing.fd}", os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK))
    except OSError as error:
        if error.errno == errno.EBUSY:
            yield "the kernel or a process holds it for itself alone"


def _listed(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(path)
    return []


def _text(path: str) -> str:
    """A file of the kernel; empty where it is not to be had, as that of a process that ended."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read().decode(errors="replace")
    return ""


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
