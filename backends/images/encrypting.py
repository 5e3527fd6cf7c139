"""LUKS: passphrases for qemu's tools, options of new images, and zeros within encrypted contents.

A passphrase reaches a command through a file in memory (memfd_create(2)) that it inherits; only
the descriptor's number stands in its arguments, and nothing is left behind when it ends.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from backends import errors
from backends.sizes import MIB
from backends.spec import Cipher, Encryption, IvGenerator

FORMATS = frozenset({"raw", "qcow2"})
"""Formats whose contents can be encrypted (libvirt's storage driver has the same two)."""

CIPHERS = frozenset(
    {
        *(f"{name}-{size}" for name in ("aes", "serpent", "twofish") for size in (128, 192, 256)),
        "cast5-128",
    }
)
MODES = frozenset({"ecb", "cbc", "xts", "ctr"})
HASHES = frozenset({"md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"})
IV_GENERATORS = frozenset({"plain", "plain64", "essiv"})
"""What qemu can encrypt with (qapi/crypto.json): algorithms that LUKS knows."""

HEADER = 2 * MIB
"""What qemu's LUKS header takes at most beside the contents, in bytes (libvirt reckons with so
much, too)."""

SECRET_ID = "encryption"  # noqa: S105 - a name
"""Id of the passphrase of an image that is made or resized."""

PASSPHRASE = ("--object", f"secret,id={SECRET_ID},file=PASSPHRASE")
"""How a command that gets a passphrase is shown in a plan."""


@dataclass(slots=True)
class CommandSecrets:
    """Passphrases as a command gets them.

    :ivar arguments: for the command, in front of what refers to the passphrases.
    :ivar pass_fds: what the command has to inherit.
    """

    arguments: list[str] = field(default_factory=list)
    pass_fds: list[int] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    def add(self, name: str, secret: bytes) -> None:
        fd = _in_memory(secret)
        self.pass_fds.append(fd)
        self.arguments += ["--object", f"secret,id={name},file=/proc/self/fd/{fd}"]
        self._names.add(name)

    def id(self, name: str) -> str:
        """The id of a passphrase; empty where there is none of that name."""
        return name if name in self._names else ""


@contextlib.contextmanager
def secrets_for_commands(**secrets: bytes | None) -> Iterator[CommandSecrets]:
    """Give passphrases to the commands that are run meanwhile.

    :param secrets: by the id that a command refers to each with; None for none.
    :raises errors.SecretUnavailable: one is empty or no text, which LUKS in qemu wants.
    """
    made = CommandSecrets()
    try:
        for name, secret in secrets.items():
            if secret is not None:
                _check(secret)
                made.add(name, secret)
        yield made
    finally:
        for fd in made.pass_fds:
            os.close(fd)


def _check(secret: bytes) -> None:
    if not secret:
        raise errors.SecretUnavailable("The passphrase is empty.", hint="Give one in the secret.")
    try:
        secret.decode()
    except UnicodeDecodeError:
        # Without the cause: it holds the passphrase.
        raise errors.SecretUnavailable(
            "The passphrase is not UTF-8 text, which qemu needs.", hint="Use text, such as base64."
        ) from None


def _in_memory(secret: bytes) -> int:
    fd = os.memfd_create("passphrase")
    try:
        os.write(fd, secret)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check(encryption: Encryption, format: str | None) -> None:
    """Refuse encryption that could never be made, before anything is done.

    :raises errors.Unsupported: another form than LUKS, or a format that can't be encrypted.
    :raises errors.InvalidSpec: an algorithm that qemu does not have, or not one secret.
    """
    if encryption.format != "luks":
        raise errors.Unsupported(
            f"Encryption {encryption.format!r} can't be made.", hint="Use luks."
        )
    if (format or "raw") not in FORMATS:
        raise errors.Unsupported(
            f"A volume of format {format} can't be encrypted.", hint="Use raw or qcow2."
        )
    if encryption.engine == "librbd":
        raise errors.Unsupported("Encryption by librbd is not for volumes of this pool.")
    if encryption.secret_ref is None or encryption.further_secret_refs:
        raise errors.InvalidSpec(
            "An encrypted volume has exactly one secret.", hint="Give encryption.secretRef alone."
        )
    for what, value, known in _asked(encryption):
        if value not in known:
            raise errors.InvalidSpec(
                f"There is no {what} {value!r}.", hint=f"Use one of {', '.join(sorted(known))}."
            )


def _asked(encryption: Encryption) -> Iterator[tuple[str, str, frozenset[str]]]:
    cipher, ivgen = encryption.cipher, encryption.ivgen
    if cipher is not None:
        yield "cipher", f"{cipher.name}-{cipher.size}", CIPHERS
        if cipher.mode is not None:
            yield "cipher mode", cipher.mode, MODES
        if cipher.hash is not None:
            yield "hash", cipher.hash, HASHES
    if ivgen is not None:
        yield "generator of initialisation vectors", ivgen.name, IV_GENERATORS
        if ivgen.hash is not None:
            yield "hash", ivgen.hash, HASHES


def options(
    cipher: Cipher | None, ivgen: IvGenerator | None, *, prefix: str, secret: str
) -> Iterator[tuple[str, str]]:
    """Options of ``qemu-img create``, in libvirt's order.

    :param prefix: ``encrypt.`` within qcow2.
    :param secret: id of the secret object.
    """
    yield f"{prefix}key-secret", secret
    if cipher is not None:
        yield f"{prefix}cipher-alg", f"{cipher.name}-{cipher.size}"
        if cipher.mode is not None:
            yield f"{prefix}cipher-mode", cipher.mode
        if cipher.hash is not None:
            yield f"{prefix}hash-alg", cipher.hash
    if ivgen is not None:
        yield f"{prefix}ivgen-alg", ivgen.name
        if ivgen.hash is not None:
            yield f"{prefix}ivgen-hash-alg", ivgen.hash
