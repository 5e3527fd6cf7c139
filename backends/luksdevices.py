"""Encrypted volumes that are block devices: LUKS by qemu, as in files.

The header stands on the device before the contents. So the device is made larger than the volume's
capacity by as much as a header takes at most, and what is seen is the device without its header.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from backends import errors, filling
from backends.base import BackendContext, OpenVolume, Volume, VolumeFacts, Work
from backends.host import commands
from backends.images import creating, encrypting, probing
from backends.images.creating import ImageRequest

NO_HEADER = "it is declared to be encrypted and has no LUKS header"


def is_encrypted(volume: Volume) -> bool:
    return volume.spec.encryption is not None


def sized(volume: Volume) -> Volume:
    """The volume with the capacity that its device has to have."""
    room = encrypting.HEADER if is_encrypted(volume) else 0
    return replace(volume, capacity=(volume.capacity or 0) + room) if room else volume


def check(volume: Volume) -> None:
    """Refuse encryption that could never be made.

    :raises errors.Unsupported: see ``encrypting.check``; also for a snapshot.
    """
    if volume.spec.encryption is None:
        return
    encrypting.check(volume.spec.encryption, "raw")
    if volume.backing_path is not None:
        raise errors.Unsupported(
            f"Snapshot {volume.name!r} has the contents of its origin, encrypted as they are.",
            hint="Leave encryption out.",
        )


def command(volume: Volume, path: str) -> tuple[tuple[str, ...], ...]:
    """What ``make`` runs, for a plan."""
    return creating.tool_commands(_request(volume), path) if is_encrypted(volume) else ()


def _request(volume: Volume) -> ImageRequest:
    return ImageRequest(
        format="raw", capacity=volume.capacity or 0, encryption=volume.spec.encryption
    )


def make(device: OpenVolume, volume: Volume, context: BackendContext, work: Work) -> None:
    """Write a new header onto a device; what it had as contents reads as noise after that.

    :param device: opened for writing, as mere bytes.
    :param volume: whose capacity is that of the contents.
    :raises errors.SecretUnavailable: there is no passphrase to be had.
    """
    secret = filling.passphrase(volume, context)
    with encrypting.secrets_for_commands(**{encrypting.SECRET_ID: secret}) as secrets:

        def run(argv: Sequence[str]) -> None:
            commands.run(
                argv,
                timeout=context.command_timeout,
                pass_fds=(*device.pass_fds, *secrets.pass_fds),
                cancel=work.cancel,
            )

        creating.encrypt_device(_request(volume), device.path, run, secrets)
    with errors.translated(f"write the encryption of {volume.name!r}"):
        os.fsync(_descriptor(device))


def payload_offset(device: OpenVolume) -> int | None:
    """Where the contents begin behind a LUKS header; None where there is no such header.

    :param device: opened as mere bytes.
    """
    return probing.probe(_descriptor(device)).payload_offset


def _descriptor(device: OpenVolume) -> int:
    if device.fd is None:
        raise AssertionError("a device has a descriptor")
    return device.fd


def seen(facts: VolumeFacts, offset: int | None) -> VolumeFacts:
    """The facts of a device that is declared to be encrypted.

    :param offset: where its contents begin; None for no header.
    """
    if offset is None:
        return replace(facts, problem=facts.problem or NO_HEADER)
    return replace(
        facts,
        encryption="luks",
        capacity=max(0, (facts.capacity or 0) - offset),
        # A header is as long as it needs to be, and the device has room for the longest.
        granularity=(facts.granularity or 1) + encrypting.HEADER,
    )
