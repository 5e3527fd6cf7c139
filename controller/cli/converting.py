"""``xml``, ``convert``, ``import-libvirt`` and ``crds``: documents, no state."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends import errors
from controller import crds as definitions
from controller import reference
from controller.cli.options import Format
from controller.cli.printing import put, report, report_all, say
from controller.cli.working import pool_of
from controller.codecs import libvirtxml, manifests
from controller.codecs.libvirtxml import Document
from controller.resources import API_VERSION, Declared
from controller.sources.files import MAX_MANIFEST, STANDARD_INPUT

SYSTEM_DEFINITIONS = Path("/etc/libvirt/storage")
"""Where libvirt keeps the definitions of pools (libvirt: storage_driver.c, configDir)."""


def xml(file: str, *, pool: Path | None) -> int:
    """Print libvirt's normal form of each pool and volume of a file."""
    return _convert(file, pool, extension=False)


def convert(file: str, *, to: Format, pool: Path | None) -> int:
    """Print a file in the other form, with nothing lost on the way."""
    if to is Format.XML:
        return _convert(file, pool, extension=True)
    declared, broken = _declared(file, pool)
    if declared:
        put(manifests.dump(_manifest(item) for item in declared))
    return 1 if broken or not declared else 0


def _convert(file: str, pool: Path | None, *, extension: bool) -> int:
    declared, broken = _declared(file, pool)
    for item in declared:
        try:
            document = _document(item, declared, pool)
            put(libvirtxml.format(document, extension=extension))
        except errors.StorageError as error:
            report(error, about=f"{item.file or 'standard input'}:{item.line}")
            broken += 1
    return 1 if broken or not declared else 0


def _declared(file: str, pool: Path | None) -> tuple[list[Declared], int]:
    """What a file declares, and the number of problems that were reported."""
    try:
        data = _read(file)
        shown = "" if file == STANDARD_INPUT else file
        if _is_xml(file, data):
            of = _pool_document(pool) if pool is not None else None
            document = libvirtxml.parse(data, file=shown, pool=of, require_capacity=False)
            return [libvirtxml.declared(document, file=shown)], 0
        loaded = manifests.load(data.decode("utf-8-sig"), file=shown)
    except UnicodeDecodeError:
        report(errors.InvalidManifest("The manifest is not UTF-8.", file=file))
        return [], 1
    except errors.StorageError as error:
        report(error)
        return [], 1
    return list(loaded.declared), report_all(loaded.problems)


def _read(file: str) -> bytes:
    if file == STANDARD_INPUT:
        return sys.stdin.buffer.read(MAX_MANIFEST + 1)
    try:
        with open(file, "rb") as opened:
            return opened.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise errors.from_os_error(error, doing=f"read {file}") from error


def _is_xml(file: str, data: bytes) -> bool:
    return file.lower().endswith(".xml") or data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"


def _pool_document(file: Path) -> Document:
    """The one pool of a file.

    :raises errors.InvalidManifest: there is none, or more than one.
    """
    declared, _ = _declared(str(file), None)
    pools = [item for item in declared if item.kind.name == "StoragePool"]
    if len(pools) != 1:
        raise errors.InvalidManifest(
            f"It holds {len(pools)} pools.", hint="Give a file with one pool.", file=str(file)
        )
    return libvirtxml.document(pools[0])


def _document(item: Declared, beside: Sequence[Declared], pool: Path | None) -> Document:
    """A declaration as a document; a volume's pool is sought beside it, then in ``--pool``."""
    if item.kind.name not in ("StoragePool", "StorageVolume"):
        raise errors.Unsupported(f"libvirt has no XML for a {item.kind.name}.")
    if item.kind.name == "StoragePool":
        return libvirtxml.document(item)
    types = [
        _type_of(other)
        for other in beside
        if other.kind.name == "StoragePool" and other.metadata.name == pool_of(item)
    ]
    if not types and pool is not None:
        types = [str(getattr(_pool_document(pool).spec, "type", "dir"))]
    return libvirtxml.document(item, pool_type=types[0] if types else "dir")


def _type_of(pool: Declared) -> str:
    spec: Any = pool.spec
    return str(spec.type)


def _manifest(item: Declared) -> dict[str, Any]:
    """A declaration as a person would write it: without defaults."""
    spec = item.spec.model_dump(
        by_alias=True, exclude_none=True, exclude_defaults=True, mode="json"
    )
    return {
        "apiVersion": API_VERSION,
        "kind": item.kind.name,
        "metadata": item.metadata.dump(),
        "spec": spec,
    }


def import_libvirt(directory: Path | None) -> int:
    """Print the pools that libvirt has defined as manifests."""
    folder = directory or default_definitions()
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".xml")
    except OSError as error:
        report(errors.from_os_error(error, doing=f"read {folder}"))
        return 1
    problems: list[errors.StorageError] = []
    found = list(_imported(files, folder / "autostart", problems))
    if found:
        put(manifests.dump(_manifest(item) for item in found))
    elif not problems:
        say(f"{folder} defines no pool.")
    return 1 if report_all(problems) else 0


def default_definitions() -> Path:
    """The system's for root, else those of the user's own session of libvirt."""
    if os.geteuid() == 0:
        return SYSTEM_DEFINITIONS
    given = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(given) if given.startswith("/") else Path.home() / ".config"
    return base / "libvirt" / "storage"


def _imported(
    files: Sequence[Path], autostart: Path, problems: list[errors.StorageError]
) -> Iterator[Declared]:
    """Pools with libvirt's own autostart: a link of the file's name beside it."""
    for path in files:
        try:
            declared = libvirtxml.declared(
                libvirtxml.parse(_read(str(path)), file=str(path)), file=str(path)
            )
        except errors.StorageError as error:
            problems.append(error)
            continue
        if declared.kind.name != "StoragePool":
            problems.append(errors.InvalidXml("It is no pool.", file=str(path), line=1))
            continue
        if not os.path.lexists(autostart / path.name):
            changed = declared.spec.model_copy(update={"autostart": False})
            declared = replace(declared, spec=changed)
        yield declared


def crds(output: Path | None, docs: Path | None) -> int:
    """Write the CustomResourceDefinitions, and the reference of all fields."""
    try:
        written = list(definitions.write(output)) if output is not None else []
        if docs is not None:
            written.append(reference.write(docs))
    except OSError as error:
        report(errors.from_os_error(error, doing=f"write {error.filename or output or docs}"))
        return 1
    for path in written:
        put(str(path))
    if not written:
        put("---\n".join(definitions.generate().values()))
    return 0
