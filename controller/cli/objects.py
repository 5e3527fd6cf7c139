"""What a user names on the command line, and objects as they are printed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from backends import errors
from controller.cli.options import Output
from controller.cli.printing import put
from controller.resources import DEFAULT_NAMESPACE, AnyResource, Key, Kind, kind_of, kinds
from controller.store import Store
from controller.worlds import pool_name

CATEGORY = ("all", "poolkeeper")
"""What stands for all kinds; the second is their category on an API server."""


@dataclass(frozen=True, slots=True)
class Target:
    """A resource that a user names, or all of a kind."""

    kind: Kind
    name: str = ""

    def key(self, namespace: str) -> Key:
        return Key(self.kind.name, namespace if self.kind.namespaced else "", self.name)


def kind(word: str) -> Kind:
    """A kind by any of its names; what is none is a mistake in usage."""
    try:
        return kind_of(word)
    except errors.InvalidManifest as error:
        raise typer.BadParameter(str(error)) from None


def targets(words: Sequence[str]) -> list[Target]:
    """Read ``KIND[,KIND...] [NAME...]`` or ``KIND/NAME...``."""
    if not words:
        raise typer.BadParameter("Give a KIND, or a KIND and a NAME.")
    if any("/" in word for word in words):
        return [_slashed(word) for word in words]
    chosen: list[Kind] = []
    for word in words[0].split(","):
        found = list(kinds().values()) if word.lower() in CATEGORY else [kind(word)]
        chosen += [item for item in found if item not in chosen]
    if len(words) == 1:
        return [Target(item) for item in chosen]
    if len(chosen) > 1:
        raise typer.BadParameter("A name belongs to one kind; write KIND/NAME for several.")
    return [Target(chosen[0], name) for name in words[1:]]


def named_targets(words: Sequence[str]) -> list[Target]:
    """The same where each has to have a name."""
    found = targets(words)
    if not all(item.name for item in found):
        raise typer.BadParameter("Give a NAME too.")
    return found


def _slashed(word: str) -> Target:
    kind_name, slash, name = word.partition("/")
    if not slash or not name or "/" in name:
        raise typer.BadParameter(f"{word!r} is not KIND/NAME.")
    return Target(kind(kind_name), name)


def missing(key: Key) -> errors.NotFound:
    """The error for a resource that is not in the store."""
    where = f" in namespace {key.namespace}" if key.namespace else ""
    return errors.NotFound(
        f"There is no {key.kind} {key.name!r}{where}.",
        hint=f"See poolkeeper get {key.kind.lower()}{' -A' if key.namespace else ''}.",
    )


def reference(key: Key) -> str:
    """``storagepool/images``, with the namespace in words where it is not the default."""
    elsewhere = key.namespace not in ("", DEFAULT_NAMESPACE)
    return f"{key.kind.lower()}/{key.name}{f' -n {key.namespace}' if elsewhere else ''}"


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def as_list(objects: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A List as the API server gives one."""
    return {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": list(objects)}


def put_objects(
    resources: Sequence[AnyResource], output: Output, store: Store, *, single: bool
) -> None:
    """Print resources in a format for machines.

    :param single: whether one was asked for by name, and not a list that has one item.
    """
    match output:
        case Output.NAME:
            for resource in resources:
                put(f"{resource.key.kind.lower()}/{resource.metadata.name}")
        case Output.XML:
            for resource in resources:
                put(as_xml(resource, store))
        case _:
            dumped = [resource.dump() for resource in resources]
            shown = dumped[0] if single else as_list(dumped)
            put(as_json(shown) if output is Output.JSON else _as_yaml(shown))


def _as_yaml(value: dict[str, Any]) -> str:
    from controller.codecs import manifests  # noqa: PLC0415 - tables do without

    return manifests.dump([value])


def as_xml(resource: AnyResource, store: Store) -> str:
    """A stored pool or volume as libvirt's XML.

    :raises errors.Unsupported: for a kind that libvirt has no XML for.
    """
    from controller.codecs import libvirtxml  # noqa: PLC0415 - tables do without

    name = resource.kind.name
    if name == "StoragePool":
        return libvirtxml.format(libvirtxml.document(resource, uuid=resource.metadata.uid))
    if name != "StorageVolume":
        raise errors.Unsupported(f"libvirt has no XML for a {name}.", hint="Use -o yaml.")
    pool = store.get(Key("StoragePool", "", pool_name(resource)))
    pool_type = pool.spec.type if pool is not None else "dir"
    return libvirtxml.format(libvirtxml.document(resource, pool_type=pool_type))
