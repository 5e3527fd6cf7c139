"""Where an image has data: what a shrink has to know before it cuts."""

from __future__ import annotations

import json

from backends import errors
from backends.base import OpenVolume, Work
from backends.host import commands
from backends.images import encrypting, holes, nodes
from backends.images.formats import SECTOR


def data_past(
    opened: OpenVolume, capacity: int, *, secret: bytes | None, timeout: float, work: Work
) -> int | None:
    """The first byte at or past ``capacity`` that an image holds data for; None for none.

    A hole and a cluster of zeros are no data, and neither is what only a backing image holds. Of a
    device, which keeps no account of it, all is data.

    :param secret: the passphrase of an encrypted image.
    :param timeout: seconds that qemu-img may take.
    """
    if capacity >= opened.capacity:
        return None
    if opened.fd is not None and nodes.has_no_header(opened):
        before = opened.size - opened.capacity if opened.encryption is not None else 0
        return _in_extents(opened.fd, before + capacity, opened.size, before)
    return _in_map(opened, capacity, secret=secret, timeout=timeout, work=work)


def _in_extents(fd: int, start: int, end: int, before: int) -> int | None:
    for first, _, data in holes.extents(fd, start, end):
        if data:
            return first - before
    return None


def _in_map(
    opened: OpenVolume, capacity: int, *, secret: bytes | None, timeout: float, work: Work
) -> int | None:
    start = capacity // SECTOR * SECTOR
    with encrypting.secrets_for_commands(map=secret) as secrets:
        done = commands.run(
            [
                "qemu-img",
                "map",
                "--output=json",
                f"--start-offset={start}",
                *secrets.arguments,
                "--image-opts",
                nodes.described(opened, secrets.id("map")),
            ],
            timeout=timeout,
            pass_fds=tuple({*opened.pass_fds, *secrets.pass_fds}),
            cancel=work.cancel,
        )
    try:
        parts = json.loads(done.stdout)
        found = [part["start"] for part in parts if part["data"] and part["depth"] == 0]
    except (ValueError, KeyError, TypeError) as error:
        raise errors.ProbeFailed("qemu-img map said nothing of use.") from error
    return max(capacity, found[0]) if found else None
