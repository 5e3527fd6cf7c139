"""What this host can serve, and why not the rest: one table over all pool types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from backends import errors
from backends.base import BackendContext, Operation, PoolType
from backends.host import commands
from backends.host.needs import NOTHING, missing
from backends.images.formats import FORMATS, Maker
from backends.registry import pool_type, pool_types
from backends.schema import Model
from backends.spec import FileFormat, SourceQuery

QEMU_IMG = "qemu-img"
DIRECTORY = "dir"
"""The format of volumes that no image tool makes and every file system has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Whether a host can serve a pool type.

    :param reason: what is missing and what to do; empty where the type is served.
    :param source_formats: formats of the source that can be served, of those that have needs.
    :param volume_formats: formats of volumes that can be made.
    :param limits: what is missing for further formats, each in a sentence.
    """

    type: PoolType
    reason: str = ""
    source_formats: tuple[str, ...] = ()
    volume_formats: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    @property
    def supported(self) -> bool:
        return not self.reason


def support(kind: PoolType) -> Support:
    """What this host can do for a pool type. Programs and modules are looked for, none is run."""
    if kind.backend is None:
        return Support(type=kind, reason="This release reads its manifests and does not serve it.")
    lacking = missing(kind.needs)
    formats = {name: missing(kind.format_needs.get(name, NOTHING)) for name in kind.source_formats}
    served = tuple(name for name, lacks in formats.items() if not lacks)
    if formats and not served and not lacking:
        lacking = next(iter(formats.values()))
    if lacking:
        return Support(type=kind, reason=" ".join(lacking))
    makeable, images = _makeable(kind)
    limits = [
        f"No source of format {name}: {' '.join(lacks)}" for name, lacks in formats.items() if lacks
    ]
    if images:
        limits.append(f"No volumes of format {', '.join(images)}: {commands.missing(QEMU_IMG)}")
    return Support(type=kind, source_formats=served, volume_formats=makeable, limits=tuple(limits))


def supported_types() -> tuple[Support, ...]:
    """The same for all pool types, in libvirt's order."""
    return tuple(support(kind) for kind in pool_types().values())


def _makeable(kind: PoolType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Formats of volumes that can be made, and those that could be if qemu-img were here."""
    if Operation.CREATE_VOLUME not in kind.operations:
        return (), ()
    if kind.volume_formats != get_args(FileFormat):
        return kind.volume_formats, ()
    makers = {name: FORMATS[name].maker for name in kind.volume_formats}
    with_images = commands.which(QEMU_IMG) is not None
    images = tuple(name for name, maker in makers.items() if maker is Maker.QEMU_IMG)
    makeable = tuple(
        name
        for name, maker in makers.items()
        if maker is Maker.SELF or name == DIRECTORY or (maker is Maker.QEMU_IMG and with_images)
    )
    return makeable, () if with_images else images


def programs() -> tuple[str, ...]:
    """All programs that some pool type, format or image needs, by name."""
    found = {QEMU_IMG}
    for kind in pool_types().values():
        for needs in (kind.needs, *kind.format_needs.values()):
            found.update(needs.programs)
    return tuple(sorted(found))


def find_sources(
    name: str, query: SourceQuery | None, context: BackendContext
) -> tuple[Model, ...]:
    """What pools of a type could stand on, as this host or the server of the query knows.

    :raises errors.Unsupported: the type has no way to look, or this host lacks what it takes.
    :raises errors.StorageError: the server can't be asked.
    """
    kind = pool_type(name)
    if Operation.FIND_SOURCES not in kind.operations or kind.backend is None:
        able = [
            item.name
            for item in pool_types().values()
            if item.backend is not None and Operation.FIND_SOURCES in item.operations
        ]
        raise errors.Unsupported(
            f"There is no way to look for sources of pools of type {name}.",
            hint=f"Types that have one: {', '.join(able)}." if able else "",
        )
    lacking = missing(kind.needs)
    if lacking:
        raise errors.MissingTool(" ".join(lacking))
    return kind.backend(context).find_sources(query)
