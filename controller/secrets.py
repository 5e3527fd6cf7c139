"""Where passphrases and keys are: files of the host, or Secrets of the cluster.

A value is read each time that it is needed and kept nowhere. No error shows any of it.

On the host a directory holds them, whose layout is that of Secrets mounted into a pod:

- ``NAMESPACE/NAME/KEY``: for resources of that namespace alone;
- ``NAME/KEY``: for all namespaces;
- ``NAME``: the same, for a secret that has one value.

The first of them that is there counts. Files end in a line break where an editor made them, so one
at the end of a file is no part of the value; a Secret's value counts to the last byte.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from backends import errors
from backends.host.files import Directory, Kind, kind_of
from backends.spec import SecretRef

if TYPE_CHECKING:
    from controller.cluster.apiserver import ApiServer

MAX_BYTES = 64 * 1024
"""Longest value. Passphrases and keys are far shorter; what is larger is another file."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
"""Keys that a Secret may have (Kubernetes: IsConfigMapKey); ``.`` and ``..`` are left out, too."""


class FileSecrets:
    """Implements ``backends.base.Secrets`` over a directory of the host.

    A file that its group or others may read, or that somebody else than root and this user owns, is
    refused. Links are not followed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, reference: SecretRef, *, namespace: str, key: str = "passphrase") -> bytes:
        """The value of that key.

        :raises errors.SecretUnavailable: it is not there, or not kept as a secret has to be.
        """
        name, where = _name(reference), _namespace(reference, namespace)
        wanted = _valid_key(reference.key or key, name)
        with contextlib.ExitStack() as opened, _refused(name):
            top = opened.enter_context(self._open())
            folder = where and _below(top, where)
            own = folder and _below(opened.enter_context(folder), name)
            if own:
                return _value(opened.enter_context(own), wanted, name)
            shared = _below(top, name)
            if shared:
                return _value(opened.enter_context(shared), wanted, name)
            return self._single(top, reference, name)

    def _single(self, top: Directory, reference: SecretRef, name: str) -> bytes:
        if not top.exists(name):
            raise errors.SecretUnavailable(
                f"Secret {name!r} is not in {self._directory}.",
                hint=f"Put it into the file {self._directory / name}, with mode 0600.",
            )
        if reference.key:
            raise errors.SecretUnavailable(
                f"Secret {name!r} has one value and no keys, so none named {reference.key!r}.",
                hint=f"Leave out secretRef.key, or make {self._directory / name} a directory.",
            )
        return _value(top, name, name)

    def _open(self) -> Directory:
        try:
            opened = Directory.open(self._directory)
        except errors.NotFound as error:
            raise errors.SecretUnavailable(
                f"There is no secrets directory {self._directory}.",
                hint="Make it with mode 0700, or give --secrets-dir.",
            ) from error
        _check(opened.fd, opened.path, _WRITABLE_BY_OTHERS)
        return opened


class ClusterSecrets:
    """Implements ``backends.base.Secrets`` over the API server's Secrets.

    The agent's role reads none. A RoleBinding gives it those of one namespace (docs/rbac.md).
    """

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def read(self, reference: SecretRef, *, namespace: str, key: str = "passphrase") -> bytes:
        """The value of that key.

        :raises errors.SecretUnavailable: there is no such Secret or key, or the agent may not
            read it.
        :raises errors.Inaccessible: the API server does not answer.
        """
        name, where = _name(reference), _namespace(reference, namespace)
        if not where:
            raise errors.SecretUnavailable(
                f"Secret {name!r} is in no namespace.", hint="Give secretRef.namespace."
            )
        wanted = _valid_key(reference.key or key, name)
        try:
            data = self._server.secret(where, name)
        except errors.PermissionRefused as error:
            raise errors.SecretUnavailable(
                f"The agent may not read Secret {where}/{name}.",
                hint="Bind the ClusterRole poolkeeper-secret-reader to it in that namespace.",
            ) from error
        if data is None:
            raise errors.SecretUnavailable(f"There is no Secret {where}/{name}.")
        if wanted not in data:
            raise errors.SecretUnavailable(f"Secret {where}/{name} has no key {wanted!r}.")
        return _bounded(_decoded(data[wanted], f"{where}/{name}"), f"{where}/{name}")


def _name(reference: SecretRef) -> str:
    """The name that the reference gives; libvirt's own references lead to libvirt's store."""
    if reference.name is None:
        by = f"usage {reference.usage!r}" if reference.usage else f"uuid {reference.uuid}"
        raise errors.SecretUnavailable(
            f"The secret of {by} is one of libvirt's, which can't be read here.",
            hint="Store its value under a name and give that as secretRef.name.",
        )
    return reference.name


def _namespace(reference: SecretRef, namespace: str) -> str:
    """The namespace to look in. What is in one itself may not reach into another."""
    if namespace and reference.namespace not in (None, namespace):
        raise errors.SecretUnavailable(
            f"Secret {reference.name!r} is in namespace {reference.namespace!r}, and what refers "
            f"to it in {namespace!r}.",
            hint="Leave out secretRef.namespace.",
        )
    return namespace or reference.namespace or ""


def _valid_key(key: str, name: str) -> str:
    if not _KEY.fullmatch(key) or key in (".", ".."):
        raise errors.SecretUnavailable(
            f"{key!r} is no key that secret {name!r} could have.",
            hint="Keys have letters, digits, '-', '_' and '.'.",
        )
    return key


def _below(directory: Directory, name: str) -> Directory | None:
    """The directory of that name, where there is one that is not a link."""
    try:
        if kind_of(directory.stat(name)) is not Kind.DIRECTORY:
            return None
    except errors.NotFound:
        return None
    opened = directory.open_directory(name)
    _check(opened.fd, opened.path, _WRITABLE_BY_OTHERS)
    return opened


def _value(directory: Directory, name: str, secret: str) -> bytes:
    fd = directory.open_file(name)
    try:
        _check(fd, directory.shown(name), _OTHERS)
        with open(fd, "rb", closefd=False) as file:
            value = file.read(MAX_BYTES + 2)
    finally:
        os.close(fd)
    return _bounded(value.removesuffix(b"\n"), secret)


def _check(fd: int, path: str, forbidden: int) -> None:
    facts = os.fstat(fd)
    if facts.st_uid not in (0, os.geteuid()):
        raise errors.SecretUnavailable(
            f"{path} is owned by user {facts.st_uid}, neither root nor the agent's user.",
            hint="Have root or the agent's user own it.",
        )
    if facts.st_mode & forbidden:
        doing = "read" if forbidden == _OTHERS else "changed"
        raise errors.SecretUnavailable(
            f"{path} may be {doing} by others than its owner: mode "
            f"{stat.S_IMODE(facts.st_mode):04o}.",
            hint=f"Run chmod go-{'rwx' if forbidden == _OTHERS else 'w'} on it.",
        )


def _bounded(value: bytes, name: str) -> bytes:
    if not value:
        raise errors.SecretUnavailable(f"Secret {name!r} is empty.")
    if len(value) > MAX_BYTES:
        raise errors.SecretUnavailable(
            f"Secret {name!r} is larger than {MAX_BYTES // 1024} KiB: no passphrase or key."
        )
    return value


def _decoded(data: str, name: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise errors.SecretUnavailable(f"Secret {name} is not in base64.") from None


@contextlib.contextmanager
def _refused(name: str) -> Iterator[None]:
    """Whatever keeps a file from being read keeps the secret from being there."""
    try:
        yield
    except errors.SecretUnavailable:
        raise
    except errors.StorageError as error:
        message = f"Secret {name!r} can't be read: {error.message}"
        raise errors.SecretUnavailable(message, hint=error.hint) from error
