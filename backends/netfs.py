"""Pools on a network file system (libvirt's netfs): NFS, CIFS, GlusterFS by FUSE.

What stands on a server is found and not made, and may be mounted by many hosts, so the pool itself
carries no mark of ours; its volumes do. A look at a server that is down ends at its deadline, and
holds up no other pool.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal, get_args

from pydantic import Field

from backends import errors
from backends.base import Operation, Pool, PoolFacts, PoolType, Presence
from backends.host import commands
from backends.host.mounts import Mount
from backends.host.needs import Needs
from backends.mountedvolumes import (
    MountedVolumes,
    MountRequest,
    Unmount,
    Unmounting,
    mount_facts,
)
from backends.schema import Form, Model, Rule, Text, Xml
from backends.spec import FileFormat, Host, Hosts, SecretRef, SourceQuery

ASK_SECONDS = 20.0
"""How long a server may take to tell what it exports, for each way to ask."""

_SECRET_OPTIONS = ("pass", "cred")
"""How options begin that hold a secret or say where one is: pass, password, password2, cred…"""


class NetfsAuth(Model):
    """How the host proves itself to a CIFS server."""

    username: Text = Field(min_length=1, pattern=r"^[^,]+$", description="User name.")
    domain: Annotated[Text | None, Field(pattern=r"^[^,]+$")] = Field(
        None, description="Domain or workgroup of the user."
    )
    secret_ref: SecretRef = Field(description="The password.")


class NetfsSource(Model):
    """A directory that a server exports."""

    rules = (
        Rule(
            cel="!has(self.protocolVersion) || !has(self.format) || self.format in ['auto', 'nfs']",
            message="protocolVersion is only for formats nfs and auto",
            holds=lambda self: self.protocol_version is None or self.format in ("auto", "nfs"),
        ),
        Rule(
            cel="!has(self.auth) || (has(self.format) && self.format == 'cifs')",
            message="auth is only for format cifs",
            holds=lambda self: self.auth is None or self.format == "cifs",
        ),
        Rule(
            cel="!has(self.mountOptions) || self.mountOptions.all(option, "
            "!option.startsWith('pass') && !option.contains(',pass') && "
            "!option.startsWith('cred') && !option.contains(',cred'))",
            message="a secret never stands in mountOptions; use auth.secretRef",
            holds=lambda self: (
                not any(
                    part.startswith(_SECRET_OPTIONS)
                    for option in self.mount_options
                    for part in option.split(",")
                )
            ),
        ),
    )

    hosts: Annotated[Hosts, Xml("source/host")] = Field(
        description="The server; exactly one to start the pool."
    )
    directory: Annotated[Text, Xml("source/dir/@path", Form.PATH)] = Field(
        min_length=1, description="Exported directory, share or volume."
    )
    format: Annotated[Literal["auto", "nfs", "glusterfs", "cifs"], Xml("source/format/@type")] = (
        Field("auto", description="File system; auto leaves it to mount.")
    )
    protocol_version: Annotated[
        Annotated[str, Field(max_length=32, pattern=r"^[^,]+$")] | None, Xml("source/protocol/@ver")
    ] = Field(None, description="NFS version, such as 4.2.")
    auth: NetfsAuth | None = Field(
        None, description="User of a CIFS server; a guest if left out, as in libvirt."
    )
    mount_options: Annotated[tuple[Text, ...], Xml("fs:mount_opts/fs:option/@name")] = Field(
        (), max_length=64, description="Mount options beside nodev, nosuid and noexec."
    )
    unmount: Unmounting = None


_FILESYSTEMS = {
    "auto": ("nfs", "nfs4"),
    "nfs": ("nfs", "nfs4"),
    "cifs": ("cifs", "smb3"),
    "glusterfs": ("fuse.glusterfs",),
}
"""What the kernel calls a mounted file system of each format."""


class NetfsBackend(MountedVolumes):
    """A server's directory that is mounted and used as a pool."""

    def claims(self, pool: Pool) -> frozenset[str]:
        return super().claims(pool) | {f"export {_place(_source(pool))}"}

    def place(self, pool: Pool) -> str:
        return f"{pool.target_path} ({_place(_source(pool))})"

    def request(self, pool: Pool) -> MountRequest:
        source = _source(pool)
        host = _host(pool)
        if host.name.startswith("-"):
            raise errors.InvalidSpec(f"{host.name!r} is no name of a server.")
        if source.format == "nfs" and not source.directory.startswith("/"):
            raise errors.InvalidSpec(
                f"The NFS directory {source.directory!r} is not absolute.", hint="Begin it with /."
            )
        return MountRequest(
            source=_place(source),
            filesystem="" if source.format == "auto" else source.format,
            options=(*_own_options(source, host), *source.mount_options),
        )

    def unmounting(self, pool: Pool) -> Unmount | None:
        return _source(pool).unmount

    def mismatch(self, pool: Pool, mount: Mount) -> str:
        source = _source(pool)
        known = mount.filesystem in _FILESYSTEMS[source.format]
        if known and _same_place(mount.source, _place(source)):
            return ""
        return f"{mount_facts(mount)} is mounted there, and not {_place(source)}"

    def observe_unmounted(self, pool: Pool) -> PoolFacts:
        self.request(pool)  # which refuses what can never be mounted
        return PoolFacts(presence=Presence.PRESENT, active=False, listed=False)

    def observe_mounted(self, pool: Pool, mount: Mount) -> PoolFacts:
        return replace(super().observe_mounted(pool, mount), mark=None)

    def run_mount(self, pool: Pool, request: MountRequest) -> None:
        auth = _source(pool).auth
        if auth is None:
            super().run_mount(pool, request)
            return
        with _password(self.context.secrets.read(auth.secret_ref, namespace="")) as fd:
            given = replace(request, environment={"PASSWD_FD": str(fd)}, pass_fds=(fd,))
            super().run_mount(pool, given)

    def stop(self, pool: Pool) -> None:
        super().stop(pool)
        self.remove_target(pool)

    def find_sources(self, query: SourceQuery | None) -> tuple[Model, ...]:
        """What a server exports by NFS, GlusterFS and CIFS, as far as it tells."""
        if query is None or query.host is None:
            raise errors.InvalidSpec(
                "To find sources of type netfs a server has to be asked.", hint="Give its name."
            )
        host = query.host
        found: list[Model] = []
        problems: list[errors.StorageError] = []
        ways = (_ask_nfs, _ask_gluster, _ask_cifs)
        for ask in ways:
            try:
                found += ask(host)
            except (errors.MissingTool, errors.CommandFailed, errors.Timeout) as error:
                problems.append(error)
        if len(problems) == len(ways):
            raise errors.Inaccessible(
                f"{host.name} tells of no exports: {' '.join(str(item) for item in problems)}",
                hint="Check its name, and that it answers showmount, gluster or smbclient.",
            )
        return tuple(found)


def _source(pool: Pool) -> NetfsSource:
    source = pool.source
    if not isinstance(source, NetfsSource):
        raise errors.InvalidSpec(f"Pool {pool.name!r} has no netfs.", hint="Give netfs.hosts.")
    return source


def _host(pool: Pool) -> Host:
    hosts = _source(pool).hosts
    if len(hosts) != 1:
        raise errors.InvalidSpec(
            f"Pool {pool.name!r} names {len(hosts)} servers, and is mounted from one.",
            hint="Name exactly one; others can stand in mountOptions, such as "
            "backup-volfile-servers of GlusterFS.",
        )
    return hosts[0]


def _place(source: NetfsSource) -> str:
    """What is mounted, as mount(8) has it. An IPv6 address stands in brackets."""
    name = source.hosts[0].name
    host = f"[{name}]" if ":" in name else name
    if source.format == "cifs":
        return f"//{name}/{source.directory.strip('/')}"
    return f"{host}:{source.directory.rstrip('/') or '/'}"


def _same_place(mounted: str, declared: str) -> bool:
    """Whether two names of a place are one: a slash more or less, and the host's case, tell
    nothing."""
    return _split(mounted) == _split(declared)


def _split(place: str) -> tuple[str, str]:
    if place.startswith("//"):
        host, _, directory = place[2:].partition("/")
    else:
        host, _, directory = place.rpartition(":")
    return host.lower(), directory.strip("/")


def _own_options(source: NetfsSource, host: Host) -> Iterator[str]:
    if source.format in ("auto", "nfs"):
        if source.protocol_version:
            yield f"nfsvers={source.protocol_version}"
        if not any(option.startswith("retry=") for option in source.mount_options):
            yield "retry=0"  # a server that is down is tried again by us, not by mount
    if source.format == "glusterfs":
        yield "direct-io-mode=1"
    if source.format == "cifs":
        yield from _user_options(source.auth)
    if host.port is not None:
        yield f"{'server-port' if source.format == 'glusterfs' else 'port'}={host.port}"


def _user_options(auth: NetfsAuth | None) -> Iterator[str]:
    if auth is None:
        yield "guest"
        return
    yield f"username={auth.username}"
    if auth.domain is not None:
        yield f"domain={auth.domain}"


@contextlib.contextmanager
def _password(password: bytes) -> Iterator[int]:
    """A descriptor to read a password from, as ``PASSWD_FD`` of mount.cifs(8) wants it."""
    fd = os.memfd_create("password")
    try:
        os.write(fd, password)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def _ask(argv: Sequence[str]) -> list[str]:
    return commands.run(argv, timeout=ASK_SECONDS).stdout.splitlines()


def _ask_nfs(host: Host) -> list[Model]:
    lines = _ask(("showmount", "--no-headers", "--exports", "--", host.name))
    # An export's path may hold spaces; the list of clients behind it does not.
    paths = [line.rsplit(maxsplit=1)[0] for line in lines if line.strip()]
    return [_exported(host, path, "nfs") for path in paths]


def _ask_gluster(host: Host) -> list[Model]:
    asked = ("--mode=script", "--log-file=/dev/null", f"--remote-host={host.name}")
    lines = _ask(("gluster", *asked, "volume", "list"))
    names = [line.strip() for line in lines if line.strip() and " " not in line.strip()]
    return [_exported(host, f"/{name}", "glusterfs") for name in names]


def _ask_cifs(host: Host) -> list[Model]:
    port = ("--port", str(host.port)) if host.port is not None else ()
    lines = _ask(("smbclient", "--no-pass", "--grepable", *port, "--list", f"//{host.name}"))
    fields = [line.split("|") for line in lines]
    names = [field[1] for field in fields if len(field) > 2 and field[0] == "Disk"]
    return [_exported(host, f"/{name}", "cifs") for name in names]


def _exported(host: Host, directory: str, format: Literal["nfs", "glusterfs", "cifs"]) -> Model:
    return NetfsSource(hosts=(host,), directory=directory, format=format)


POOL_TYPE = PoolType(
    name="netfs",
    order=3,
    description="A directory of a server, mounted at the target.",
    source=NetfsSource,
    volume_formats=get_args(FileFormat),
    default_volume_format="raw",
    operations=frozenset(Operation) - {Operation.BUILD, Operation.DELETE},
    needs=Needs(programs=("mount", "umount")),
    format_needs={
        "nfs": Needs(programs=("mount.nfs",), filesystems=("nfs",)),
        "cifs": Needs(programs=("mount.cifs",), filesystems=("cifs",)),
        "glusterfs": Needs(programs=("mount.glusterfs",), filesystems=("fuse",)),
    },
    backend=NetfsBackend,
)
