"""Which pool a volume gets that asks for one by labels (``spec.poolSelector``).

The choice follows from the resources alone, so that all who see the same ones choose the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from backends import errors
from backends.base import Backend, Operation, Pool, Volume
from backends.registry import pool_type
from backends.sizes import format_human
from backends.spec import LabelRequirement, LabelSelector, Permissions
from controller.resources import AnyResource
from controller.summarising import condition
from controller.worlds import precedence, volume_name

Pools = Sequence[AnyResource]

_WORDS = {"In": "{key} in ({values})", "NotIn": "{key} notin ({values})",
          "Exists": "{key}", "DoesNotExist": "!{key}"}  # fmt: skip
"""Requirements as kubectl's ``--selector`` has them."""


def words(selector: LabelSelector) -> str:
    """A selector for people, as kubectl's ``--selector`` takes it."""
    labels = (selector.match_labels or {}).items()
    return ",".join(
        [f"{key}={value}" for key, value in labels] + list(map(_words, selector.match_expressions))
    )


def _words(item: LabelRequirement) -> str:
    return _WORDS[item.operator].format(key=item.key, values=",".join(item.values))


@dataclass(frozen=True, slots=True)
class _Stage:
    """One thing that a pool has to be, and what is wrong where no pool is."""

    holds: Callable[[Chooser, AnyResource, AnyResource], bool]
    error: Callable[[Chooser, AnyResource, Pools], errors.StorageError]


class Chooser:
    """Chooses among pools for one volume after another; each choice takes its room.

    :param backend: the backend of a pool type, by its name.
    :param unmade: volumes that have a pool and are not made yet, so that no pool's figures know
        of them.
    """

    def __init__(
        self,
        pools: Iterable[AnyResource],
        *,
        backend: Callable[[str], Backend],
        unmade: Iterable[AnyResource] = (),
    ) -> None:
        self._pools = {item.metadata.name: item for item in pools}
        self._backend = backend
        self._taken: defaultdict[str, int] = defaultdict(int)
        for volume in unmade:
            pool = self._pools.get(volume.spec.pool_ref.name)
            if pool is not None and not volume.deleting and volume.status.path is None:
                self._taken[pool.metadata.name] += self.needed(volume, pool)

    def choose(self, volume: AnyResource) -> AnyResource:
        """The pool with most space available of those that match; of equal ones the first by name.

        :raises errors.NoPoolMatches: none has the labels, or can hold volumes of the format.
        :raises errors.NoPoolForNamespace: none is for the volume's namespace.
        :raises errors.PoolNotReady: none that could hold it is Ready.
        :raises errors.NoSpace: none has the room.
        """
        left: Pools = list(self._pools.values())
        for stage in _STAGES:
            kept = [pool for pool in left if stage.holds(self, volume, pool)]
            if not kept:
                raise stage.error(self, volume, left)
            left = kept
        best = min(left, key=lambda pool: (-self.available(pool), pool.metadata.name))
        self._taken[best.metadata.name] += self.needed(volume, best)
        return best

    def available(self, pool: AnyResource) -> int:
        """Bytes left in a pool, as it was seen last, less what was given away since."""
        return int(pool.status.available or 0) - self._taken[pool.metadata.name]

    def needed(self, volume: AnyResource, pool: AnyResource) -> int:
        """Bytes that making the volume takes from the pool at once."""
        kind = pool_type(pool.spec.type)
        declared = Volume(
            uid=volume.metadata.uid,
            resource=str(volume.key),
            namespace=volume.metadata.namespace,
            name=volume_name(volume),
            spec=volume.spec,
            format=volume.spec.format or kind.default_volume_format,
            capacity=volume.spec.capacity,
            permissions=volume.spec.permissions or Permissions(),
        )
        try:
            return self._backend(kind.name).space_needed(_as_declared(pool), declared)
        except errors.StorageError:
            return 0  # what can't be made is refused by its pool, by name


def _as_declared(pool: AnyResource) -> Pool:
    return Pool(
        uid=pool.metadata.uid,
        resource=str(pool.key),
        name=pool.spec.pool_name or pool.metadata.name,
        spec=pool.spec,
        type=pool_type(pool.spec.type),
    )


def in_turn(volumes: Iterable[AnyResource]) -> list[AnyResource]:
    """Volumes in the order in which they get their pools: the first that came is the first."""
    return sorted(volumes, key=precedence)


def _matches(chooser: Chooser, volume: AnyResource, pool: AnyResource) -> bool:
    node = volume.spec.node_name
    if pool.deleting or (node is not None and pool.spec.node_name not in (None, node)):
        return False
    return bool(volume.spec.pool_selector.holds(pool.metadata.labels))


def _admits(chooser: Chooser, volume: AnyResource, pool: AnyResource) -> bool:
    allowed = pool.spec.allowed_namespaces
    return allowed is None or volume.metadata.namespace in allowed


def _makes(chooser: Chooser, volume: AnyResource, pool: AnyResource) -> bool:
    kind = pool_type(pool.spec.type)
    if kind.backend is None or Operation.CREATE_VOLUME not in kind.operations:
        return False
    return volume.spec.format is None or volume.spec.format in kind.volume_formats


def _runs(chooser: Chooser, volume: AnyResource, pool: AnyResource) -> bool:
    ready = condition(pool.status, "Ready")
    running = pool.status.state in ("Running", "Degraded")
    return running and not pool.spec.suspend and ready is not None and ready.status == "True"


def _fits(chooser: Chooser, volume: AnyResource, pool: AnyResource) -> bool:
    return chooser.needed(volume, pool) <= chooser.available(pool)


def _no_match(chooser: Chooser, volume: AnyResource, pools: Pools) -> errors.StorageError:
    where = f" of node {volume.spec.node_name}" if volume.spec.node_name else ""
    return errors.NoPoolMatches(
        f"No pool{where} has the labels that {volume.key} asks for: "
        f"{words(volume.spec.pool_selector)}.",
        hint="Label a pool so, or change poolSelector.",
    )


def _not_admitted(chooser: Chooser, volume: AnyResource, pools: Pools) -> errors.StorageError:
    return errors.NoPoolForNamespace(
        f"{_counted(pools)} the labels that {volume.key} asks for, and none of them is for "
        f"namespace {volume.metadata.namespace!r}.",
        hint="Have the namespace added to a pool's spec.allowedNamespaces, or change poolSelector.",
    )


def _not_made(chooser: Chooser, volume: AnyResource, pools: Pools) -> errors.StorageError:
    kind = f"volumes of format {volume.spec.format}" if volume.spec.format else "volumes"
    return errors.NoPoolMatches(
        f"{_counted(pools)} the labels that {volume.key} asks for, and in none of them {kind} can "
        "be made.",
        hint="Change poolSelector or format.",
    )


def _not_running(chooser: Chooser, volume: AnyResource, pools: Pools) -> errors.StorageError:
    reasons = sorted({_why_not(pool) for pool in pools})
    return errors.PoolNotReady(
        f"{_counted(pools)} the labels that {volume.key} asks for, and none of them is Ready "
        f"({', '.join(reasons)})."
    )


def _why_not(pool: AnyResource) -> str:
    ready = condition(pool.status, "Ready")
    if pool.spec.suspend:
        return "Suspended"
    return ready.reason if ready is not None else "not looked at yet"


def _no_room(chooser: Chooser, volume: AnyResource, pools: Pools) -> errors.StorageError:
    best = max(pools, key=chooser.available)
    return errors.NoSpace(
        f"{_counted(pools)} the labels that {volume.key} asks for, and none of them has the "
        f"{format_human(chooser.needed(volume, best))} that it takes; at most "
        f"{format_human(max(chooser.available(best), 0))} are left in one.",
        hint="Free some space, or give it more pools to choose from.",
    )


def _counted(pools: Pools) -> str:
    return "1 pool has" if len(pools) == 1 else f"{len(pools)} pools have"


_STAGES = (
    _Stage(_matches, _no_match),
    _Stage(_admits, _not_admitted),
    _Stage(_makes, _not_made),
    _Stage(_runs, _not_running),
    _Stage(_fits, _no_room),
)
