"""Giving a pool to the volumes that ask for one by labels, or saying why there is none."""

from __future__ import annotations

from backends import errors
from controller import summarising, telling
from controller.choosing import in_turn
from controller.examining import Examiner
from controller.resources import AnyResource, now
from controller.store import ResourceStore
from controller.worlds import UNBOUND, World


def assign(store: ResourceStore, examiner: Examiner, world: World) -> tuple[set[str], bool]:
    """Choose among the pools of this node and record each choice, which is final.

    :returns: the pools that were given a volume, and whether some volume has to wait for one.
    """
    chooser = examiner.chooser(world)
    given: set[str] = set()
    waiting = False
    for volume in in_turn(world.volumes(UNBOUND)):
        if volume.deleting or not examiner.mine(volume):
            continue
        try:
            if volume.spec.suspend:
                raise errors.PoolNotReady("No pool is chosen while suspend is set.")
            pool = chooser.choose(volume)
        except errors.StorageError as error:
            waiting = True
            tell_why(store, volume, error)
            continue
        metadata, name = volume.metadata, pool.metadata.name
        if store.bind(
            volume.key,
            uid=metadata.uid,
            version=metadata.resource_version,
            node=world.node,
            pool=name,
        ):
            given.add(name)
            store.record_event(
                volume.key, metadata.uid, "Normal", "PoolChosen", f"Pool {name!r} was chosen."
            )
        else:
            waiting = True  # somebody wrote since; it is looked at anew
    return given, waiting


def tell_why(store: ResourceStore, volume: AnyResource, error: errors.StorageError) -> None:
    """Have the status say why no pool holds the volume, and an event where that is new."""
    status = summarising.waiting_status(volume, error, now=now())
    for news in telling.of_look(volume, status):
        store.record_event(volume.key, volume.metadata.uid, *news)
    store.write_status(volume.key, status, uid=volume.metadata.uid)
