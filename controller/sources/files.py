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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends import errors
from controller.codecs import libvirtxml, manifests
from controller.resources import AnyResource, Declared, Key
from controller.sources.base import Snapshot

STANDARD_INPUT = "-"

MAX_MANIFEST = 16 * 2**20
"""The largest manifest, in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a reader makes of the bytes of a file.

    :param volume: the file itself where it is libvirt's XML of a volume, which can't be read
        without its pool: the pool's type gives the formats.
    """

    declared: tuple[Declared, ...] = ()
    problems: tuple[errors.InvalidManifest, ...] = ()
    volume: bytes = b""


def _read_yaml(data: bytes, file: str) -> Reading:
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
    loaded = manifests.load(text, file=file)
    return Reading(declared=tuple(loaded.declared), problems=tuple(loaded.problems))


def _read_xml(data: bytes, file: str) -> Reading:
    try:
        document = libvirtxml.parse(data, file=file)
    except errors.UnsupportedConfiguration:
        # It may be a format that the volume's pool has and others have not.
        return Reading(volume=data)
    if document.kind == "StorageVolume":
        return Reading(volume=data)
    return Reading(declared=(libvirtxml.declared(document, file=file, line=1),))


READERS: dict[str, Callable[[bytes, str], Reading]] = {
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".json": _read_yaml,
    ".xml": _read_xml,
}
"""How a file is read, by the end of its name in lower case. Each takes bytes and the file's name,
and may raise ``errors.InvalidManifest``."""

_LEADS_OUT = "the link leads out of the source"
_NOT_OURS = frozenset({"kustomization.yaml", "kustomization.yml"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What one file holds.

    :param folder: where it stands; None for standard input.
    :param digest: of its bytes, in hexadecimal.
    """

    file: str
    folder: Path | None
    reading: Reading
    digest: str = ""

    @property
    def broken(self) -> bool:
        return bool(self.reading.problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The manifests below a folder.

    :param problems: folders and links that could not be followed.
    """

    files: tuple[Path, ...]
    problems: tuple[errors.InvalidManifest, ...]


def read_paths(
    paths: Sequence[str],
    *,
    pool: Declared | AnyResource | None = None,
    known: Iterable[AnyResource] = (),
    origin: str = "command line",
) -> Snapshot:
    """Read files and folders as a command line names them; ``-`` is standard input.

    :param pool: the pool of XML volumes that nothing else places.
    :param known: further pools that the folder of a volume may be named after.
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
            real = os.path.realpath(file)
            read[real] = read.get(real) or read_file(file)
    return assemble(origin, read.values(), pool=pool, known=known, problems=problems)


def _named(path: Path) -> Listing:
    if path.is_dir():
        listing = list_folder(path)
        if listing.files or listing.problems:
            return listing
        empty = _problem(path, "there is no manifest in it", subject="folder")
        return Listing(files=(), problems=(empty,))
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
    """The manifests below a folder, by name; each once, however many links lead to it.

    :param within: links that lead out of this folder are problems.
    """
    walk = _Walk(within=None if within is None else within.resolve())
    if walk.leads_out(folder):
        walk.problems.append(_problem(folder, _LEADS_OUT, subject="folder"))
    else:
        walk.enter(folder)
    return Listing(files=tuple(walk.files.values()), problems=tuple(walk.problems))


@dataclass(slots=True)
class _Walk:
    within: Path | None
    files: dict[str, Path] = field(default_factory=dict)
    problems: list[errors.InvalidManifest] = field(default_factory=list)
    entered: set[str] = field(default_factory=set)

    def enter(self, folder: Path) -> None:
        # A link to a folder above would lead round in circles.
        real = os.path.realpath(folder)
        if real in self.entered:
            return
        self.entered.add(real)
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            self.problems.append(_problem(folder, _why(error), subject="folder"))
            return
        for name in names:
            if not name.startswith(".") and name not in _NOT_OURS:
                self.take(folder / name)

    def leads_out(self, path: Path) -> bool:
        return self.within is not None and not path.resolve().is_relative_to(self.within)

    def take(self, path: Path) -> None:
        is_folder = path.is_dir()
        if not is_folder and path.suffix.lower() not in READERS:
            return
        if self.leads_out(path):
            self.problems.append(_problem(path, _LEADS_OUT))
        elif is_folder:
            self.enter(path)
        else:
            self.files.setdefault(os.path.realpath(path), path)


def read_file(path: Path, *, shown: str = "") -> Contents:
    """Read one manifest; what is wrong with it stands in the result.

    :param shown: the name for messages and for ``Declared.file``; the path if left out.
    """
    file = shown or str(path)
    try:
        data = _read(path)
    except OSError as error:
        unread = Reading(problems=(_problem(file, _why(error)),))
        return Contents(file=file, folder=path.parent, reading=unread)
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
    try:
        if len(data) > MAX_MANIFEST:
            raise _problem(file, f"it is larger than {MAX_MANIFEST} bytes")
        if not data.strip():
            # Half written, most likely: what it declared must not count as taken back.
            raise _problem(file, "it is empty", hint="Remove a file that declares nothing.")
        reading = READERS[suffix](data, file)
    except errors.InvalidManifest as error:
        reading = Reading(problems=(error,))
    digest = hashlib.sha256(data).hexdigest()
    return Contents(file=file, folder=folder, reading=reading, digest=digest)


def assemble(
    origin: str,
    contents: Iterable[Contents],
    *,
    former: Iterable[Contents] = (),
    pool: Declared | AnyResource | None = None,
    known: Iterable[AnyResource] = (),
    problems: Iterable[errors.InvalidManifest] = (),
    revision: str = "",
) -> Snapshot:
    """Put files together: XML volumes find their pools, and a resource may stand once only.

    :param former: former contents of files that can't be read now; what they declare counts
        unless it stands elsewhere.
    :param pool: the pool of XML volumes that nothing else places.
    :param known: further pools that the folder of a volume may be named after.
    :param revision: a digest of the contents if left out.
    """
    current, kept = tuple(contents), tuple(former)
    found = _Assembly(pools=_Pools((*current, *kept), known, pool), problems=list(problems))
    for item in current:
        found.add(item)
    for item in kept:
        found.add(item, weak=True)
    reason = _incomplete(found)
    digest = _digest((*current, *kept))
    return Snapshot(
        origin=origin,
        declared=tuple(found.declared.values()),
        problems=tuple(found.problems),
        complete=not reason,
        reason=reason,
        revision=revision or digest,
        digest=digest,
    )


def _incomplete(found: _Assembly) -> str:
    if found.problems:
        more = len(found.problems) - 1
        return f"{found.problems[0]}{f' (and {more} more)' if more else ''}"
    return "" if found.declared else "It holds no manifest."


@dataclass(slots=True)
class _Assembly:
    pools: _Pools
    problems: list[errors.InvalidManifest]
    declared: dict[Key, Declared] = field(default_factory=dict)

    def add(self, contents: Contents, *, weak: bool = False) -> None:
        """Take what a file declares; weakly: only what nothing else declares, without a word."""
        problems = list(contents.reading.problems)
        for item in (*contents.reading.declared, *self._volume(contents, problems)):
            first = self.declared.setdefault(item.key, item)
            if first is not item:
                problems.append(_duplicate(item, first))
        self.problems += [] if weak else problems

    def _volume(
        self, contents: Contents, problems: list[errors.InvalidManifest]
    ) -> tuple[Declared, ...]:
        if not contents.reading.volume:
            return ()
        try:
            return (self.pools.volume(contents),)
        except errors.InvalidManifest as error:
            problems.append(error)
            return ()


class _Pools:
    """The pools that are declared, to find the one that an XML volume belongs to."""

    def __init__(
        self,
        contents: Iterable[Contents],
        known: Iterable[AnyResource],
        otherwise: Declared | AnyResource | None,
    ) -> None:
        self._by_folder: dict[Path | None, list[Declared]] = {}
        self._by_name: dict[str, Declared | AnyResource] = {}
        self._otherwise = otherwise
        for item in contents:
            for declared in item.reading.declared:
                if declared.kind.name == "StoragePool":
                    self._by_folder.setdefault(item.folder, []).append(declared)
                    self._know(declared)
        for pool in known:
            self._know(pool)

    def _know(self, pool: Declared | AnyResource) -> None:
        spec: Any = pool.spec
        for name in (pool.metadata.name, spec.pool_name):
            if name:
                self._by_name.setdefault(name, pool)

    def volume(self, contents: Contents) -> Declared:
        """Read the XML of a volume, which says neither its pool nor the pool's type.

        :raises errors.InvalidManifest: it can't be read, or nothing tells its pool.
        """
        pool = self._of(contents.folder)
        document = libvirtxml.parse(
            contents.reading.volume,
            file=contents.file,
            pool=None if pool is None else libvirtxml.document(pool),
        )
        declared = libvirtxml.declared(document, file=contents.file, line=1)
        if pool is None:
            raise errors.InvalidXml(
                f"Nothing tells which pool {declared.key} is in.",
                hint="Put the file into a folder named after its pool, or beside the file of one "
                "pool.",
                file=contents.file,
                line=1,
            )
        return declared

    def _of(self, folder: Path | None) -> Declared | AnyResource | None:
        """The pool that the folder is named after, else the only one in the folder."""
        if folder is not None and folder.absolute().name in self._by_name:
            return self._by_name[folder.absolute().name]
        beside = {item.metadata.name: item for item in self._by_folder.get(folder, [])}
        return next(iter(beside.values())) if len(beside) == 1 else self._otherwise


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


def _problem(
    path: Path | str, why: str, *, hint: str = "", subject: str = "manifest"
) -> errors.InvalidManifest:
    return errors.InvalidManifest(f"The {subject} can't be read: {why}.", hint=hint, file=str(path))


def _why(error: OSError) -> str:
    said = error.strerror or str(error)
    return said[:1].lower() + said[1:]
