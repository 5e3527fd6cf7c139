"""A place where a pool of some type may stand, behind words that all types share.

A type that gets a backend adds a module with a ``Candidate`` to ``tests/contract/candidates``; the
suite then tries it like all others.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backends.base import PoolType
from tests.contract import candidates
from tests.lab.spare import Spares


class PoolUnderTest(ABC):
    """One place on the host where a pool of the type may stand, and nothing stands yet.

    Sizes in tests are multiples of 4 MiB, so that no type has to round them, unless a test is
    about rounding.

    :cvar lab: whether the type needs the lab: devices, mounts or servers of its own.
    :cvar guest: whether it needs the lab's guest: the place takes servers, targets or settings of
        the whole machine.
    :cvar makeable: formats that the type can make, with what ``status.format`` then says; None
        stands for a volume that declares no format.
    :cvar resizable: one of them that can be made larger and smaller.
    :cvar allocated: one of them whose volumes take all their space, and hold bytes as written.
    :cvar sparse: members of a volume that takes as little space as the type can give it.
    :cvar shrinking: members of ``resize`` that let an empty volume of ``resizable`` shrink.
    :cvar directory: whether the pool's target is a directory with permissions of its own.
    :cvar given: name of a volume of 4 MiB that is there from the start, where none can be made.
    :cvar planted_format: what ``plant_volume`` makes, as a look at the pool shows it.
    :cvar obstacle_reason: why a pool isn't Ready whose place ``plant_obstacle`` took.
    :cvar stand_in_reason: why a pool isn't Ready in whose place something else stands, once it was
        there.
    :cvar commands_per_look: the most host commands that one look at an unchanged pool runs.
    :cvar runs_commands: whether a pool or volume is made or deleted by host commands.
    :cvar commands_to_plan: the most that a plan for a pool runs that is not there.
    :cvar has_stand_in: whether another backing can take the place of one that is hidden.
    :cvar held_while_lost: whether the kernel does not let go of a backing that does not answer.
    """

    type: ClassVar[PoolType]
    lab: ClassVar[bool] = True
    guest: ClassVar[bool] = False
    makeable: ClassVar[Mapping[str | None, str | None]] = {}
    resizable: ClassVar[str | None] = None
    allocated: ClassVar[str | None] = None
    sparse: ClassVar[Mapping[str, Any]] = {}
    shrinking: ClassVar[Mapping[str, bool]] = {"allowShrink": True}
    directory: ClassVar[bool] = False
    given: ClassVar[str] = ""
    planted_format: ClassVar[str | None] = "raw"
    obstacle_reason: ClassVar[str] = "OverwriteRefused"
    stand_in_reason: ClassVar[str] = "Inaccessible"
    commands_per_look: ClassVar[int] = 0
    runs_commands: ClassVar[bool] = True
    commands_to_plan: ClassVar[int] = 0
    has_stand_in: ClassVar[bool] = True
    held_while_lost: ClassVar[bool] = False

    def __init__(self, root: Path, spares: Spares) -> None:
        """Prepare the place.

        :param root: an empty directory.
        :param spares: makes blank block devices; only in the lab.
        """
        self.root = root
        self.spares = spares
        self.refusal_seen = False

    def refused(self) -> None:
        """Say that what a test is about was refused as documented."""
        self.refusal_seen = True

    def close(self) -> None:
        """Take back what was prepared; devices of ``spares`` go by themselves."""

    @abstractmethod
    def declaration(self, name: str, **spec: Any) -> dict[str, Any]:
        """The manifest of a pool that stands here."""

    def plant_backing(self) -> None:
        """Make by hand what a pool stands on, as a stranger would; for types that can build."""
        raise NotImplementedError

    def remove_backing(self) -> None:
        """Remove by hand what ``plant_backing`` made."""
        raise NotImplementedError

    @abstractmethod
    def plant_volume(self, name: str, size: int) -> str:
        """Make a volume by hand in a pool that is there; the name that it then has, which is
        another where the type's volumes have no names of anybody's choice."""

    @abstractmethod
    def remove_volume(self, name: str) -> None:
        """Remove a volume by hand."""

    def plant_obstacle(self) -> None:
        """Put something else where the pool's backing would be made, which is no such backing."""
        raise NotImplementedError

    def remove_obstacle(self) -> None:
        """Take it away, having seen that it is as it was."""
        raise NotImplementedError

    @abstractmethod
    def hide(self) -> None:
        """Take the backing away, as a lost mount, device or dead server would."""

    @abstractmethod
    def bring_back(self) -> None: ...

    def vanish(self) -> None:
        """Take the backing away while volumes on it are in use; ``return_`` brings it back."""
        self.hide()

    def return_(self) -> None:
        self.bring_back()

    @abstractmethod
    def exists(self) -> bool:
        """Whether the backing is there."""

    @abstractmethod
    def owner(self) -> dict[str, str]:
        """The mark on the backing: uid, resource and origin; empty for none."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of everything in the pool, as the host's own tools tell them, in order."""

    @abstractmethod
    def size_of(self, name: str) -> int:
        """Capacity of a volume as the host's own tools tell it, in bytes."""

    @abstractmethod
    def evidence(self, name: str | None = None) -> object:
        """All that may not change of a volume that is left alone; of the whole pool for None."""

    def lasting(self, evidence: object) -> object:
        """Of the evidence of a volume that which a new mark of ownership does not change."""
        return evidence

    @abstractmethod
    def figures(self) -> tuple[int, int, int]:
        """Capacity, allocation and available as the host itself tells them, in bytes."""

    def hold_figures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keep others who use the host from changing these figures meanwhile."""

    def target(self) -> Path:
        """The pool's directory; for types that have one."""
        raise NotImplementedError


def all_candidates() -> dict[str, type[PoolUnderTest]]:
    """The candidates of all types, by the type's name."""
    found = {}
    for module in pkgutil.iter_modules(candidates.__path__):
        loaded = importlib.import_module(f"tests.contract.candidates.{module.name}")
        found[loaded.Candidate.type.name] = loaded.Candidate
    return found
