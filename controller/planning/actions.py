"""Actions, and the plan that is made of them."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from backends import errors
from backends.base import Backend, Pool, Verb, Volume
from backends.spec import Drift


class Impact(enum.StrEnum):
    """What an action means to those who use the storage."""

    IN_PLACE = "in place"
    DISRUPTIVE = "disruptive"
    DESTRUCTIVE = "destructive"


_IMPACTS = {
    Verb.STOP_POOL: Impact.DISRUPTIVE,
    Verb.DELETE_POOL: Impact.DESTRUCTIVE,
    Verb.SHRINK_VOLUME: Impact.DESTRUCTIVE,
    Verb.WIPE_VOLUME: Impact.DESTRUCTIVE,
    Verb.DELETE_VOLUME: Impact.DESTRUCTIVE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing to do.

    :param target: what it is done to, as a person names it: the resource and its place.
    :param place: the path or name on the host alone.
    :param reason: why, in one sentence.
    :param destroys: what will be lost, by name; empty where nothing is.
    :param commands: host commands it would run; empty where it needs none.
    :param long: whether it takes so long that nothing else should wait for it.
    """

    verb: Verb
    target: str
    place: str
    reason: str
    impact: Impact
    destroys: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    long: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What has to be done, what can't be, and where the host differs from what is declared.

    :param expired: why a transient resource has to go; empty where it stays.
    """

    actions: tuple[Action, ...] = ()
    refusals: tuple[errors.StorageError, ...] = ()
    drift: tuple[Drift, ...] = ()
    expired: str = ""

    @property
    def empty(self) -> bool:
        return not (self.actions or self.refusals or self.expired)


@dataclass(slots=True, kw_only=True)
class Draft:
    """A plan in the making: of a pool."""

    pool: Pool
    backend: Backend
    actions: list[Action] = field(default_factory=list)
    refusals: list[errors.StorageError] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)

    @property
    def resource(self) -> str:
        """What the plan is for, as a person names it."""
        return self.pool.resource

    @property
    def place(self) -> str:
        """Where that is on the host."""
        return self.backend.place(self.pool)

    def commands(self, verb: Verb) -> tuple[tuple[str, ...], ...]:
        """Host commands that a verb would run.

        :raises errors.StorageError: it can't be done, and that is known beforehand.
        """
        return self.backend.commands(verb, self.pool)

    def takes_long(self, verb: Verb) -> bool:
        return False

    def act(self, verb: Verb, reason: str, *, destroys: Sequence[str] = ()) -> None:
        """Plan an action, or refuse it where it can't be done."""
        try:
            commands = self.commands(verb)
        except errors.StorageError as error:
            self.refusals.append(error)
            return
        place = self.place
        self.actions.append(
            Action(
                verb=verb,
                target=f"{self.resource} ({place})",
                place=place,
                reason=reason,
                impact=Impact.DESTRUCTIVE if destroys else _IMPACTS.get(verb, Impact.IN_PLACE),
                destroys=tuple(destroys),
                commands=commands,
                long=self.takes_long(verb),
            )
        )

    def differ(self, name: str, desired: object, observed: object) -> None:
        """Note a field that is not as declared."""
        self.drift.append(Drift(field=name, desired=shown(desired), observed=shown(observed)))

    def finish(self, *, expired: str = "") -> Plan:
        return Plan(
            actions=tuple(self.actions),
            refusals=tuple(self.refusals),
            drift=tuple(self.drift),
            expired=expired,
        )


@dataclass(slots=True, kw_only=True)
class VolumeDraft(Draft):
    """A plan in the making: of a volume in its pool."""

    volume: Volume

    @property
    def resource(self) -> str:
        return self.volume.resource

    @property
    def place(self) -> str:
        return self.backend.volume_path(self.pool, self.volume.name)

    def commands(self, verb: Verb) -> tuple[tuple[str, ...], ...]:
        return self.backend.commands(verb, self.pool, self.volume)

    def takes_long(self, verb: Verb) -> bool:
        return self.backend.takes_long(verb, self.pool, self.volume)


def shown(value: object) -> str:
    """A value of a field as drift and refusals tell it."""
    return "none" if value is None else str(value)


def named(names: Sequence[str], limit: int = 5) -> str:
    """The first few of some names, and how many more there are."""
    told = ", ".join(names[:limit])
    return told if len(names) <= limit else f"{told} and {len(names) - limit} more"
