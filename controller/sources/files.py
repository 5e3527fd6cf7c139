"""Manifests in files and folders.

In a folder, every ``.yaml``, ``.yml``, ``.json`` and ``.xml`` file at any depth is a manifest.
Hidden files and folders are not (``.git``, editors' ``.#x`` and ``.x.swp``, the ``..data`` of a
mounted ConfigMap, of which the links beside it are read), nor is a kustomization.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from backends import errors
from backends.spec import ResourceRef
from controller.codecs import libvirtxml, manifests
from controller.resources import Declared, Key
from controller.sources.base import Snapshot

STANDARD_INPUT = "-"

MAX_MANIFEST = 16 * 2**20
"""The largest manifest, in bytes."""


class Loaded(Protocol):
    """What a reader makes of a file."""

    @property
    def declared(self) -> Sequence[Declared]: ...

    @property
    def problems(self) -> Sequence[errors.InvalidManifest]: ...


@dataclass(frozen=True, slots=True)
class _One:
    declared: Sequence[Declared]
    problems: Sequence[errors.InvalidManifest] = ()


def _read_yaml(data: bytes, file: str) -> Loaded:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise errors.InvalidManifest(
            f"The manifest is not UTF-8 (byte {data[error.start]:#04x}).",
            hint="Save it as UTF-8.",
            file=file,
            line=line,
        ) from None
    return manifests.load(text, file=file)


def _read_xml(data: bytes, file: str) -> Loaded:
    document = libvirtxml.parse(data, file=file)
    return _One((libvirtxml.declared(document, file=file, line=1),))


READERS: dict[str, Callable[[bytes, str], Loaded]] = {
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".json": _read_yaml,
    ".xml": _read_xml,
}
"""How a file is read, by the end of its name in lower case. Each takes bytes and the file's name,
and may raise ``errors.InvalidManifest``."""

_NOT_OURS = frozenset({"kustomization.yaml", "kustomization.yml"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What one file holds.

    :param folder: where it stands; None for standard input.
    :param xml: whether it is libvirt's XML, where a volume does not say which pool it is in.
    :param digest: of its bytes, in hexadecimal.
    """

    file: str
    folder: Path | None
    declared: tuple[Declared, ...] = ()
    problems: tuple[errors.InvalidManifest, ...] = ()
    xml: bool = False
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The manifests below a folder.

    :param problems: folders and links that could not be followed.
    """

    files: tuple[Path, ...]
    problems: tuple[errors.InvalidManifest, ...]


def read_paths(paths: Sequence[str], *, pool: str = "", origin: str = "command line") -> Snapshot:
    """Read files and folders as a command line names them; ``-`` is standard input.

    :param pool: the pool of XML volumes that nothing else places.
    """
    read: dict[str, Contents] = {}
    problems: list[errors.InvalidManifest] = []
    for path in paths:
        if path == STANDARD_INPUT:
            read[path] = read_standard_input()
            continue
        listing = _named(Path(path))
        problems += listing.problems
        for file in listing.files:
            read.setdefault(os.path.realpath(file), read_file(file))
    return assemble(origin, read.values(), pool=pool, problems=problems)


def _named(path: Path) -> Listing:
    if path.is_dir():
        listing = list_folder(path)
        if listing.files or listing.problems:
            return listing
        return Listing(files=(), problems=(_problem(path, "there is no manifest in the folder"),))
    if path.suffix.lower() in READERS:
        return Listing(files=(path,), problems=())
    return Listing(files=(), problems=(_unnamed(path),))


def _unnamed(path: Path) -> errors.InvalidManifest:
    if not path.exists():
        return _problem(path, "there is no such file or folder")
    return _problem(
        path, "its name does not tell what it is", hint=f"Name it like x{', x'.join(READERS)}."
    )


def list_folder(folder: Path, *, within: Path | None = None) -> Listing:
    """The manifests below a folder, by name.

    :param within: links that lead out of this folder are problems.
    """
    files: list[Path] = []
    problems: list[errors.InvalidManifest] = []
    seen: set[tuple[int, int]] = set()

    def walk(place: Path) -> None:
        try:
            status = place.stat()
            names = sorted(os.listdir(place))
        except OSError as error:
            problems.append(_problem(place, error.strerror or str(error)))
            return
        # A link to a folder above would lead round in circles.
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        for name in names:
            path = place / name
            if name.startswith(".") or name in _NOT_OURS:
                continue
            folder_here = path.is_dir()
            if not folder_here and path.suffix.lower() not in READERS:
                continue
            if within is not None and not path.resolve().is_relative_to(within.resolve()):
                problems.append(_problem(path, "the link leads out of the source"))
            elif folder_here:
                walk(path)
            else:
                files.append(path)

    walk(folder)
    return Listing(files=tuple(files), problems=tuple(problems))


def read_file(path: Path, *, shown: str = "") -> Contents:
    """Read one manifest; what is wrong with it stands in the result.

    :param shown: the name for messages and for ``Declared.file``; the path if left out.
    """
    file = shown or str(path)
    try:
        data = _read(path)
    except OSError as error:
        return Contents(
            file=file,
            folder=path.parent,
            problems=(_problem(file, error.strerror or str(error)),),
        )
    return _contents(data, path.suffix.lower(), file=file, folder=path.parent)


def read_standard_input() -> Contents:
    """Read a manifest from standard input: XML if it begins like XML, else YAML or JSON."""
    data = sys.stdin.buffer.read(MAX_MANIFEST + 1)
    suffix = ".xml" if data.lstrip()[:1] == b"<" else ".yaml"
    return _contents(data, suffix, file="", folder=None)


def _read(path: Path) -> bytes:
    # Not blocking, because a name may turn out to be a pipe that nobody writes to.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is not a regular file")
        return file.read(MAX_MANIFEST + 1)


def _contents(data: bytes, suffix: str, *, file: str, folder: Path | None) -> Contents:
    contents = Contents(
        file=file, folder=folder, xml=suffix == ".xml", digest=hashlib.sha256(data).hexdigest()
    )
    if len(data) > MAX_MANIFEST:
        return replace(
            contents, problems=(_problem(file, f"it is larger than {MAX_MANIFEST} bytes"),)
        )
    try:
        loaded = READERS[suffix](data, file)
    except errors.InvalidManifest as error:
        return replace(contents, problems=(error,))
    return replace(contents, declared=tuple(loaded.declared), problems=tuple(loaded.problems))


def assemble(
    origin: str,
    contents: Iterable[Contents],
    *,
    former: Iterable[Contents] = (),
    pool: str = "",
    problems: Iterable[errors.InvalidManifest] = (),
    reason: str = "",
    revision: str = "",
) -> Snapshot:
    """Put files together: XML volumes find their pools, and a resource may stand once only.

    :param former: former contents of files that can't be read now; what they declare counts
        unless it stands elsewhere.
    :param pool: the pool of XML volumes that nothing else places.
    :param reason: why the snapshot is not complete, if that is known already.
    :param revision: a digest of the contents if left out.
    """
    current, kept = tuple(contents), tuple(former)
    found = _Assembly(pools=_Pools((*current, *kept), pool))
    found.problems += problems
    for item in current:
        found.problems += item.problems
        found.add(item)
    for item in kept:
        found.add(item, weak=True)
    reason = reason or _incomplete(found)
    return Snapshot(
        origin=origin,
        declared=tuple(found.declared.values()),
        problems=tuple(found.problems),
        complete=not reason,
        reason=reason,
        revision=revision or _digest((*current, *kept)),
    )


def _incomplete(found: _Assembly) -> str:
    if found.problems:
        more = len(found.problems) - 1
        return f"{found.problems[0]}{f' (and {more} more)' if more else ''}"
    return "" if found.declared else "It holds no manifest."


@dataclass(slots=True)
class _Assembly:
    pools: _Pools
    declared: dict[Key, Declared] = field(default_factory=dict)
    problems: list[errors.InvalidManifest] = field(default_factory=list)

    def add(self, contents: Contents, *, weak: bool = False) -> None:
        """Take what a file declares; weakly: only what nothing else declares, without a word."""
        for item in contents.declared:
            try:
                placed = self.pools.place(item, contents)
            except errors.InvalidManifest as error:
                self.problems += [] if weak else [error]
                continue
            first = self.declared.setdefault(placed.key, placed)
            if first is not placed and not weak:
                self.problems.append(_duplicate(placed, first))


@dataclass(slots=True, init=False)
class _Pools:
    """The pools that files declare, to find the one that an XML volume belongs to."""

    by_folder: dict[Path | None, set[str]]
    by_name: dict[str, str]
    otherwise: str

    def __init__(self, contents: Iterable[Contents], otherwise: str) -> None:
        self.by_folder, self.by_name, self.otherwise = {}, {}, otherwise
        for item in contents:
            for declared in item.declared:
                if declared.kind.name == "StoragePool":
                    self._know(declared, item.folder)

    def _know(self, declared: Declared, folder: Path | None) -> None:
        spec: Any = declared.spec
        name = declared.metadata.name
        self.by_folder.setdefault(folder, set()).add(name)
        self.by_name[name] = name
        if spec.pool_name:
            self.by_name.setdefault(spec.pool_name, name)

    def place(self, declared: Declared, contents: Contents) -> Declared:
        """A volume from XML in its pool; anything else as it is.

        The pool is the one that the folder is named after, else the only one in the folder.
        """
        if not contents.xml or declared.kind.name != "StorageVolume":
            return declared
        name = self._pool_of(contents.folder)
        if name is None:
            raise errors.InvalidXml(
                f"Nothing tells which pool {declared.key} is in.",
                hint="Put the file into a folder named after its pool, or beside the file of one "
                "pool.",
                file=declared.file,
                line=declared.line,
            )
        spec = declared.spec.model_copy(update={"pool_ref": ResourceRef(name=name)})
        return replace(declared, spec=spec)

    def _pool_of(self, folder: Path | None) -> str | None:
        if folder is not None and folder.absolute().name in self.by_name:
            return self.by_name[folder.absolute().name]
        beside = self.by_folder.get(folder, set())
        return next(iter(beside)) if len(beside) == 1 else self.otherwise or None


def _digest(contents: Iterable[Contents]) -> str:
    total = hashlib.sha256()
    for item in sorted(contents, key=lambda item: item.file):
        total.update(f"{item.file}\0{item.digest}\0".encode(errors="surrogateescape"))
    return total.hexdigest()[:16]


def _duplicate(later: Declared, first: Declared) -> errors.InvalidManifest:
    where = f"{first.file}:{first.line}" if first.file else f"line {first.line} of standard input"
    return errors.InvalidManifest(
        f"{later.key} is declared already in {where}; this one is left out.",
        hint="Declare each resource once.",
        file=later.file,
        line=later.line,
    )


def _problem(path: Path | str, what: str, *, hint: str = "") -> errors.InvalidManifest:
    return errors.InvalidManifest(
        f"The manifest can't be read: {what[:1].lower()}{what[1:]}.", hint=hint, file=str(path)
    )
