"""libvirt's domains and their disks, where a libvirt runs on this host.

Asked is virsh, read-only and with a deadline: a call of libvirt's own library can neither be given
one nor be ended, and its Python binding has to be compiled against the host's. One command tells
of all domains, with the backing images of their disks (virsh(1), ``domstats``). Nothing is run
where no daemon listens, or there is no virsh.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from backends import errors
from backends.host import commands

DIRECTORY = "/run/libvirt"
_SOCKETS = ("virtqemud-sock-ro", "libvirt-sock-ro")
"""Of the daemon that keeps qemu's domains, and of the one that keeps all (libvirtd(8))."""

DEADLINE = 10.0

_STATES = {"1": "running", "3": "paused", "7": "suspended"}
"""Of virDomainState; the others are told as ``active``."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A file or device that an active domain has.

    :param target: the disk's name in the domain, such as ``vda``.
    :param backing: whether the disk stands on it.
    :param state: ``running``, ``paused`` and so on.
    """

    domain: str
    state: str
    target: str
    path: str
    backing: bool


def disks_in_use(directory: str = "") -> tuple[Disk, ...]:
    """The disks of all active domains with what they stand on; none where there is no libvirt.

    :param directory: where its sockets are; ``DIRECTORY`` if left out.
    :raises errors.StorageError: a daemon listens and can't be asked.
    """
    path = _listening(directory or DIRECTORY)
    if path is None or shutil.which("virsh") is None:
        return ()
    uri = f"qemu+unix:///system?socket={path}"
    asked = ["domstats", "--list-active", "--state", "--block", "--backing", "--nowait"]
    said = commands.run(["virsh", "--readonly", "--connect", uri, *asked], timeout=DEADLINE)
    return tuple(parse(said.stdout))


def _listening(directory: str) -> str | None:
    """The socket at which a daemon answers; what a dead one left is none."""
    for name in _SOCKETS:
        path = os.path.join(directory, name)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as tried:
            tried.settimeout(DEADLINE)
            tried.connect(path)
            return path
    return None


def parse(said: str) -> Iterator[Disk]:
    """Read what ``virsh domstats`` says.

    :raises errors.ProbeFailed: it is none of that.
    """
    for part in f"\n{said}".split("\nDomain: ")[1:]:
        name, *lines = part.splitlines()
        facts = dict(line.strip().split("=", 1) for line in lines if "=" in line)
        try:
            yield from _disks(name.strip("'"), facts)
        except (KeyError, ValueError) as error:
            raise errors.ProbeFailed("virsh domstats said nothing of use.") from error


def _disks(domain: str, facts: dict[str, str]) -> Iterator[Disk]:
    state = _STATES.get(facts["state.state"], "active")
    seen: set[str] = set()
    for number in range(int(facts.get("block.count", "0"))):
        target, path = facts[f"block.{number}.name"], facts.get(f"block.{number}.path")
        if path is not None:  # an empty drive, or a disk that a network client reaches
            yield Disk(domain, state, target, path, backing=target in seen)
        seen.add(target)
