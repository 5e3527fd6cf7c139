"""A StorageNode: a host as its agent reports it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backends.schema import Model, Text
from backends.spec.pools import Host
from backends.spec.statuses import StatusBase


class SourceQuery(Model):
    """Where to look for storage (libvirt's srcSpec)."""

    type: Annotated[str, Field(max_length=32)] = Field(description="Pool type to look for.")
    host: Host | None = Field(
        None, description="Server to ask; left out for types that are looked for on the node."
    )
    initiator: Text | None = Field(None, description="Initiator IQN to ask as, for iSCSI.")


class NodeSpec(Model):
    """What a node's agent is to look for."""

    discover: tuple[SourceQuery, ...] = Field(
        (), max_length=64, description="Servers and pool types to ask for storage."
    )


class PoolTypeSupport(Model):
    """Whether a host can serve a pool type."""

    type: Text = Field(description="The pool type.")
    supported: bool = Field(description="Whether it can be served.")
    reason: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="What is missing where it can't."
    )
    formats: tuple[Text, ...] = Field((), max_length=64, description="Volume formats it can make.")
    limits: tuple[Text, ...] = Field(
        (), max_length=64, description="What is missing for further formats."
    )


class ToolVersion(Model):
    """A program of the host."""

    name: Text = Field(description="Name of the program.")
    version: Text | None = Field(None, description="Version; unset where it is missing.")


class DiscoveredSource(Model):
    """Storage that a pool could stand on."""

    type: Text = Field(description="Pool type.")
    server: Annotated[str, Field(max_length=1040)] | None = Field(
        None, description="Server that told of it, as NAME or NAME:PORT; unset for the node itself."
    )
    source: Annotated[str, Field(max_length=4096)] = Field(
        description="What a pool's spec has under the type's name, as JSON."
    )


class NodeStatus(StatusBase):
    """What a host can do."""

    boot_id: Annotated[str | None, Field(max_length=64)] = Field(
        None, alias="bootID", description="Boot of the host."
    )
    agent_version: Text | None = Field(None, description="Release of the agent.")
    heartbeat_time: Annotated[str | None, Field(max_length=32)] = Field(
        None, description="When the agent last reported."
    )
    data_url: Annotated[str | None, Field(max_length=1024)] = Field(
        None,
        alias="dataURL",
        description="Where the agent serves the contents of its volumes, for --server.",
    )
    serves: Text | None = Field(None, description="Pool types that can be served, for people.")
    pool_types: tuple[PoolTypeSupport, ...] = Field(
        (), max_length=64, description="Pool types that the host can serve, and why not others."
    )
    tools: tuple[ToolVersion, ...] = Field((), max_length=256, description="Programs of the host.")
    sources: tuple[DiscoveredSource, ...] = Field(
        (),
        max_length=256,
        description="Sources that were found. Those of a server that does not answer stay.",
    )
