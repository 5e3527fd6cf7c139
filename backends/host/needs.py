"""What a host has to have for a pool type, and what of it is missing here.

Programs are looked for where commands are run from. File systems and modules are looked for in
what the running kernel has, and in what it can load; the latter is under ``/lib/modules``, which a
container has to have from its host.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from backends.host import commands

_FILESYSTEMS = pathlib.Path("/proc/filesystems")
_MODULES = pathlib.Path("/sys/module")
_LOADABLE = pathlib.Path("/lib/modules")
_LISTS = ("modules.builtin", "modules.dep")
"""Files of a kernel's modules, by path: what is built in, and what can be loaded (depmod(8))."""

_NAME = re.compile(r"(?:^|/)([^/:\s]+)\.ko\b", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What has to be on a host, all of it.

    :param programs: to be found in ``commands.SEARCH_PATH``.
    :param filesystems: that the kernel can mount, as ``/proc/filesystems`` names them.
    :param modules: of the kernel.
    """

    programs: tuple[str, ...] = ()
    filesystems: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def __add__(self, other: Needs) -> Needs:
        return Needs(
            programs=tuple(dict.fromkeys(self.programs + other.programs)),
            filesystems=tuple(dict.fromkeys(self.filesystems + other.filesystems)),
            modules=tuple(dict.fromkeys(self.modules + other.modules)),
        )


NOTHING = Needs()


def missing(needs: Needs) -> tuple[str, ...]:
    """What is not here, each in a sentence that says what to do; empty where nothing is missing."""
    return tuple(_missing(needs))


def _missing(needs: Needs) -> Iterator[str]:
    for program in needs.programs:
        if commands.which(program) is None:
            yield str(commands.missing(program))
    for filesystem in needs.filesystems:
        if not has_filesystem(filesystem):
            yield f"The kernel can't mount {filesystem}. Load or install the module of that name."
    for module in needs.modules:
        if not has_module(module):
            yield f"The kernel has no module {module}. Load or install it."


def signature() -> tuple[object, ...]:
    """Changes when a program, file system or module may have come or gone; nothing is run."""
    return (
        tuple(_changed_at(directory) for directory in commands.SEARCH_PATH.split(":")),
        _text(_FILESYSTEMS),
        _entries(_MODULES),
        _entries(_LOADABLE / os.uname().release),
    )


def _changed_at(directory: str) -> int:
    try:
        return os.stat(directory).st_mtime_ns
    except OSError:
        return 0


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _entries(directory: pathlib.Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(directory))
    except OSError:
        return frozenset()


def has_filesystem(name: str) -> bool:
    """Whether the kernel can mount file systems of that type, or load the module to do so."""
    known = {line.split("\t")[-1] for line in _text(_FILESYSTEMS).splitlines()}
    return name in known or has_module(name)


def has_module(name: str) -> bool:
    """Whether the running kernel has the module: loaded, built in, or there to be loaded."""
    wanted = name.replace("-", "_")
    if (_MODULES / wanted).is_dir():
        return True
    directory = _LOADABLE / os.uname().release
    return any(
        found.replace("-", "_") == wanted
        for listed in _LISTS
        for found in _NAME.findall(_first_words(_text(directory / listed)))
    )


def _first_words(text: str) -> str:
    """The modules that lines begin with, without those that each depends on."""
    return "\n".join(line.partition(":")[0] for line in text.splitlines())
