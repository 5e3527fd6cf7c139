"""Pools on the LUNs of an iSCSI target, by the kernel's initiator (libvirt's iscsi)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from backends import errors
from backends.base import Operation, Pool, PoolFacts, PoolType, Presence, Verb, Volume
from backends.foundvolumes import CONTENTS, FoundDevice, FoundVolumes, found_luns
from backends.host import devices, initiator, scsi
from backends.host.initiator import Credentials, Login, Session
from backends.host.needs import Needs
from backends.schema import Model, Rule, Text, Xml
from backends.spec import Auth, Device, Host, Hosts, SecretRef, SourceQuery


class MutualAuth(Model):
    """How the target proves itself to this host."""

    username: Text = Field(min_length=1, description="User name that the target proves.")
    secret_ref: SecretRef = Field(description="Its password; another one than the host's own.")


class IscsiSource(Model):
    """An iSCSI target."""

    rules = (
        Rule(
            cel="!has(self.mutualAuth) || has(self.auth)",
            message="mutualAuth needs auth",
            holds=lambda self: self.mutual_auth is None or self.auth is not None,
        ),
    )

    hosts: Annotated[Hosts, Xml("source/host")] = Field(
        description="Portals of the target; the first that lets this host in is used."
    )
    device: Annotated[Device, Xml("source/device")] = Field(
        description="The target; its path is the target's IQN."
    )
    initiator: Annotated[Text | None, Xml("source/initiator/iqn/@name")] = Field(
        None, description="Initiator IQN; the host's own if left out."
    )
    auth: Annotated[Auth | None, Xml("source/auth")] = Field(
        None, description="CHAP user and password."
    )
    mutual_auth: MutualAuth | None = Field(
        None, description="CHAP user and password of the target, for mutual CHAP."
    )


class IscsiBackend(FoundVolumes):
    """A session to a target: logged in at start, logged out at stop if it is ours."""

    what = "LUN"
    giver = "the iSCSI target"

    def claims(self, pool: Pool) -> frozenset[str]:
        source = _source(pool)
        try:  # whether it is spelled out or not, it is the same session
            name = source.initiator or initiator.own_name()
        except errors.StorageError:
            name = "the host's own initiator"
        return frozenset({f"iSCSI target {source.device.path} as {name}"})

    def place(self, pool: Pool) -> str:
        return f"iSCSI target {_source(pool).device.path}"

    def observe(self, pool: Pool) -> PoolFacts:
        session = _session(pool)
        if session is None:
            return PoolFacts(presence=Presence.PRESENT, active=False, listed=False)
        # Nobody but us may stop what we started; of others' sessions our history tells.
        active = True if session.ours else None
        if session.state != initiator.LOGGED_IN:
            detail = f"the session to {session.target} is {session.state.lower() or 'gone'}"
            return PoolFacts(presence=Presence.UNREACHABLE, detail=detail, active=active)
        try:
            scsi.rescan(session.sysfs, session.host)
            return replace(self.observe_found(pool), active=active)
        except errors.StorageError as error:
            detail = error.message.rstrip(".")
            return PoolFacts(presence=Presence.UNREACHABLE, detail=detail, active=active)

    def devices_of(self, pool: Pool) -> Sequence[FoundDevice]:
        session = _session(pool)
        if session is None:
            raise errors.Inaccessible(
                f"There is no session to {_source(pool).device.path}.", hint="Start the pool."
            )
        return found_luns(scsi.luns(session.sysfs), giver=self.giver)

    def commands(
        self, verb: Verb, pool: Pool, volume: Volume | None = None
    ) -> tuple[tuple[str, ...], ...]:
        target = _source(pool).device.path
        if verb is Verb.START_POOL and _session(pool) is None:
            interface = initiator.interface_name(target, _source(pool).initiator)
            where = initiator.portal(*_portals(_source(pool))[0])
            login = ("-T", target, "-p", where, "-I", interface, "--login")
            return (("iscsiadm", "-m", "node", *login),)
        if verb is Verb.STOP_POOL:
            session = _session(pool)
            if session is None or not session.ours:
                return ()
            return (("iscsiadm", "-m", "session", "-r", str(session.id), "--logout"),)
        return super().commands(verb, pool, volume)

    def start(self, pool: Pool) -> None:
        """Log in, unless there is a session already, whoever made it."""
        if _session(pool) is not None:
            return
        initiator.log_in(self._login(pool))
        devices.settle()

    def _login(self, pool: Pool) -> Login:
        source = _source(pool)
        auth, mutual = source.auth, source.mutual_auth
        if auth is not None and auth.type != "chap":
            raise errors.InvalidSpec(
                f"Pool {pool.name!r} has auth of type {auth.type}; iSCSI knows chap alone.",
                hint="Set source.auth.type to chap.",
            )
        return Login(
            target=source.device.path,
            portals=_portals(source),
            initiator=source.initiator,
            own=self._credentials(auth.username, auth.secret_ref) if auth else None,
            mutual=self._credentials(mutual.username, mutual.secret_ref) if mutual else None,
        )

    def _credentials(self, username: str, reference: SecretRef) -> Credentials:
        password = self.context.secrets.read(reference, namespace="")
        return Credentials(username=username, password=password)

    def stop(self, pool: Pool) -> None:
        """Log out of the session that we logged in, and leave one of others.

        :raises errors.InUse: somebody stands on a LUN.
        """
        session = _session(pool)
        if session is None or not session.ours:
            return
        self.require_unused(pool)
        initiator.log_out(session)

    def find_sources(self, query: SourceQuery | None) -> tuple[Model, ...]:
        """The targets that a portal offers, each with the portals that lead to it."""
        if query is None or query.host is None:
            raise errors.InvalidSpec(
                "To find iSCSI targets a portal has to be asked.", hint="Give the host."
            )
        found = initiator.discover(
            query.host.name, query.host.port or initiator.PORT, initiator=query.initiator
        )
        hosts: dict[str, list[Host]] = {}
        for item in found:
            port = item.port if item.port != initiator.PORT else None
            hosts.setdefault(item.target, []).append(Host(name=item.address, port=port))
        return tuple(
            IscsiSource(hosts=tuple(portals), device=Device(path=target), initiator=query.initiator)
            for target, portals in sorted(hosts.items())
        )


def _source(pool: Pool) -> IscsiSource:
    if not isinstance(pool.source, IscsiSource):
        raise errors.InvalidSpec(f"Pool {pool.name!r} names no iSCSI target.")
    return pool.source


def _portals(source: IscsiSource) -> list[tuple[str, int]]:
    return [(host.name, host.port or initiator.PORT) for host in source.hosts]


def _session(pool: Pool) -> Session | None:
    """The session that serves a pool: to its target by its initiator, best one of ours."""
    source = _source(pool)
    found = [item for item in initiator.sessions() if item.target == source.device.path]
    if found:
        name = source.initiator or initiator.own_name()
        found = [item for item in found if item.initiator == name]
    return min(found, key=lambda item: not item.ours, default=None)


POOL_TYPE = PoolType(
    name="iscsi",
    order=6,
    description="The LUNs of an iSCSI target, as block devices.",
    source=IscsiSource,
    operations=frozenset({Operation.START, Operation.STOP, Operation.FIND_SOURCES}) | CONTENTS,
    needs=Needs(programs=("iscsiadm",), modules=("iscsi_tcp",)),
    backend=IscsiBackend,
)
