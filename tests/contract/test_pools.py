"""What every pool type has to do, tried on the host's real storage."""

import os
import shutil

import pytest

from backends.base import Operation
from backends.host import commands
from backends.registry import pool_types
from backends.sizes import MIB
from tests.contract.pools import POOLS
from tests.keeper import image_info, pool_key, tree, volume, volume_key

POOL = pool_key("images")
DISK = volume_key("disk")


def needs(place, *operations):
    """The operations that a case is about; a type without them passes by not promising them."""
    missing = [item.value for item in operations if item not in place.type.operations]
    if missing:
        pytest.skip(f"pools of type {place.type.name} have no way to {', '.join(missing)}")


def start(keeper, place, *volumes, **spec):
    keeper.apply(place.declaration("images", **spec), *volumes)
    keeper.settle()


def test_every_type_that_has_a_backend_is_tried():
    assert {name for name, item in pool_types().items() if item.backend} == set(POOLS)


def test_a_declared_pool_is_built_marked_and_started(keeper, place):
    needs(place, Operation.BUILD)
    assert not place.exists()
    start(keeper, place)
    status = keeper.get(POOL).status
    assert place.exists()
    assert place.owner() == {
        "uid": keeper.get(POOL).metadata.uid,
        "resource": "StoragePool/images",
        "origin": "Created",
    }
    keeper.assert_ready(POOL)
    assert (status.state, status.built, status.persistent) == ("Running", True, True)
    assert status.boot_id == keeper.engine.boot
    assert status.uuid
    assert [keeper.truth(POOL, type) for type in ("Active", "Built", "InSync")] == ["True"] * 3
    assert keeper.reasons(POOL) == ["Built", "Started"]


def test_a_new_target_gets_the_declared_permissions(keeper, place):
    needs(place, Operation.BUILD)
    owner = {"owner": os.geteuid(), "group": os.getegid()}
    start(keeper, place, target={"permissions": {"mode": "0750", **owner}})
    facts = place.target().stat()
    assert facts.st_mode & 0o7777 == 0o750
    assert (facts.st_uid, facts.st_gid) == (os.geteuid(), os.getegid())
    assert keeper.planned() == {}


def test_a_target_without_declared_permissions_is_as_libvirt_makes_it(keeper, place):
    needs(place, Operation.BUILD)
    start(keeper, place)
    assert place.target().stat().st_mode & 0o7777 == 0o711


def test_the_figures_are_those_of_the_host(keeper, place, monkeypatch):
    monkeypatch.undo()
    keeper.apply(place.declaration("images"))
    keeper.reconcile()
    status = keeper.get(POOL).status
    capacity, allocation, available = place.figures()
    slack = capacity // 50  # others use the host at the same time
    assert status.capacity == capacity
    assert abs(status.allocation - allocation) <= slack
    assert abs(status.available - available) <= slack
    assert status.capacity == status.allocation + status.available


def test_a_second_pass_over_what_is_as_declared_writes_nothing(keeper, place):
    disks = [
        volume(f"disk-{name}", "images", capacity="4Mi", allocation=0, format=name)
        for name in place.makeable
    ]
    start(keeper, place, *disks)
    written, spawned = keeper.recorded(), commands.spawned()
    outcomes = keeper.reconcile()
    assert keeper.recorded() == written
    assert commands.spawned() == spawned
    assert [(item.acted, item.retry) for item in outcomes] == [(False, False)]
    assert keeper.planned() == {}


def test_planning_changes_nothing(keeper, place):
    keeper.apply(
        place.declaration("images"), volume("disk", "images", capacity="1Mi", allocation=0)
    )
    written, spawned = keeper.recorded(), commands.spawned()
    planned = keeper.planned()
    assert planned[str(POOL)] == ["BuildPool", "StartPool"]
    assert planned[str(DISK)] == ["CreateVolume"]
    assert keeper.recorded() == written
    assert commands.spawned() == spawned
    assert not place.exists()


def test_every_format_that_can_be_made_is_made(keeper, place):
    needs(place, Operation.CREATE_VOLUME)
    start(keeper, place)
    for name in place.makeable:
        keeper.apply(volume(name, "images", capacity="4Mi", allocation=0, format=name))
    keeper.settle()
    for name, shown in place.makeable.items():
        key = volume_key(name)
        keeper.assert_ready(key)
        status = keeper.get(key).status
        assert status.format == shown
        assert status.capacity == (0 if name == "dir" else 4 * MIB)
        assert status.origin == "Created"
        assert (place.target() / name).exists()
    counts = keeper.get(POOL).status.volumes
    assert (counts.total, counts.managed, counts.unmanaged) == (
        len(place.makeable),
        len(place.makeable),
        0,
    )


def test_a_format_that_cannot_be_made_stalls_and_leaves_nothing(keeper, place):
    others = set(place.type.volume_formats) - set(place.makeable)
    start(keeper, place)
    for name in others:
        keeper.apply(volume(name, "images", capacity="4Mi", format=name))
    keeper.settle()
    for name in others:
        keeper.assert_stalled(volume_key(name), "Unsupported")
    assert os.listdir(place.target()) == []


def test_a_volume_grows(keeper, place):
    needs(place, Operation.GROW_VOLUME)
    start(keeper, place, volume("disk", "images", capacity="4Mi", format=place.shrinkable))
    keeper.apply(volume("disk", "images", capacity="9Mi", format=place.shrinkable))
    keeper.settle()
    keeper.assert_ready(DISK)
    assert keeper.get(DISK).status.capacity == 9 * MIB
    assert image_info(place.target() / "disk")["virtual-size"] == 9 * MIB
    assert keeper.planned() == {}


def test_a_volume_shrinks_only_where_that_is_allowed(keeper, place):
    needs(place, Operation.SHRINK_VOLUME)
    start(keeper, place, volume("disk", "images", capacity="8Mi", format=place.shrinkable))
    smaller = volume("disk", "images", capacity="4Mi", format=place.shrinkable)
    keeper.apply(smaller)
    keeper.settle()
    assert "allowShrink" in keeper.assert_stalled(DISK, "ShrinkNotAllowed")
    assert image_info(place.target() / "disk")["virtual-size"] == 8 * MIB
    smaller["spec"]["resize"] = {"allowShrink": True}
    keeper.apply(smaller)
    keeper.settle()
    keeper.assert_ready(DISK)
    assert image_info(place.target() / "disk")["virtual-size"] == 4 * MIB


def test_changed_permissions_are_set_back(keeper, place):
    disk = volume("disk", "images", capacity="1Mi", permissions={"mode": "0640"})
    start(keeper, place, disk, target={"permissions": {"mode": "0711"}})
    os.chmod(place.target(), 0o777)
    os.chmod(place.target() / "disk", 0o666)
    keeper.reconcile()
    assert place.target().stat().st_mode & 0o7777 == 0o711
    assert (place.target() / "disk").stat().st_mode & 0o7777 == 0o640
    keeper.assert_ready(POOL, DISK)
    assert keeper.planned() == {}


def test_volumes_that_nobody_declared_are_reported_and_left_alone(keeper, place):
    start(keeper, place, volume("disk", "images", capacity="1Mi"))
    strange = place.plant_volume("strange", 3 * MIB)
    before = tree(strange)
    keeper.settle()
    status = keeper.get(POOL).status
    assert (status.volumes.total, status.volumes.managed, status.volumes.unmanaged) == (2, 1, 1)
    assert [(item.name, item.format, item.capacity) for item in status.discovered] == [
        ("strange", "raw", 3 * MIB)
    ]
    assert tree(strange) == before


def test_a_deleted_volume_is_deleted_and_its_neighbours_stay(keeper, place):
    needs(place, Operation.DELETE_VOLUME)
    disks = [
        volume(name, "images", capacity="1Mi", format=place.shrinkable, deletion_policy="Delete")
        for name in ("disk", "other")
    ]
    start(keeper, place, *disks)
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)
    assert os.listdir(place.target()) == ["other"]
    keeper.assert_ready(POOL, volume_key("other"))


def test_a_pool_stops_and_starts_and_keeps_its_volumes(keeper, place):
    start(keeper, place, volume("disk", "images", capacity="1Mi"))
    keeper.apply(place.declaration("images", state="Inactive"))
    keeper.settle()
    assert keeper.get(POOL).status.state == "Inactive"
    assert keeper.truth(POOL, "Active") == "False"
    keeper.assert_ready(POOL)
    keeper.assert_retrying(DISK, "PoolNotReady")
    assert keeper.planned() == {}
    keeper.apply(place.declaration("images", state="Active"))
    keeper.settle()
    assert keeper.get(POOL).status.state == "Running"
    keeper.assert_ready(POOL, DISK)


@pytest.mark.parametrize("policy", ["Retain", "Undefine"])
def test_an_undefined_pool_leaves_all_data(keeper, place, policy):
    start(keeper, place, volume("disk", "images", capacity="1Mi"), deletionPolicy=policy)
    before = tree(place.target())
    keeper.delete(POOL)
    keeper.settle()
    assert keeper.gone(POOL)
    assert tree(place.target()) == before


def test_a_pool_is_deleted_only_once_it_is_empty(keeper, place):
    needs(place, Operation.DELETE)
    start(keeper, place, volume("disk", "images", capacity="1Mi"), deletionPolicy="Delete")
    place.plant_volume("strange", MIB)
    keeper.delete(POOL, DISK)  # the volume's policy is Retain, so its file stays
    keeper.settle()
    told = keeper.assert_retrying(POOL, "DeletionRefused")
    assert "disk" in told
    assert "strange" in told
    assert sorted(os.listdir(place.target())) == ["disk", "strange"]
    (place.target() / "disk").unlink()
    (place.target() / "strange").unlink()
    keeper.settle()
    assert keeper.gone(POOL)
    assert not place.exists()


def test_a_pool_and_its_volumes_deleted_together_go_in_one_pass(keeper, place):
    needs(place, Operation.DELETE, Operation.DELETE_VOLUME)
    disk = volume("disk", "images", capacity="1Mi", deletion_policy="Delete")
    start(keeper, place, disk, deletionPolicy="Delete")
    keeper.delete(POOL, DISK)
    (outcome,) = keeper.reconcile()
    assert (outcome.acted, outcome.retry) == (True, False)
    assert keeper.gone(POOL)
    assert keeper.gone(DISK)
    assert not place.exists()
    assert "DeletionRefused" not in keeper.reasons(POOL)


def test_what_a_stranger_made_is_never_deleted(keeper, place):
    place.plant_backing()
    start(keeper, place, deletionPolicy="Delete")
    keeper.assert_ready(POOL)
    assert place.owner()["origin"] == "Adopted"
    keeper.delete(POOL)
    keeper.settle()
    assert keeper.gone(POOL)
    assert place.exists()


def test_what_a_stranger_made_is_refused_where_the_policy_says_never(keeper, place):
    place.plant_backing()
    place.plant_volume("strange", MIB)
    before = tree(place.target())
    start(keeper, place, volume("strange", "images", capacity="1Mi"), adoption="Never")
    keeper.assert_stalled(POOL, "AlreadyExists")
    keeper.assert_retrying(volume_key("strange"), "PoolNotReady")
    assert place.owner() == {}
    assert tree(place.target()) == before


def test_what_stands_in_the_way_is_inaccessible_and_left_as_it_is(keeper, place):
    place.plant_obstacle()
    start(keeper, place, volume("disk", "images", capacity="1Mi"))
    keeper.assert_retrying(POOL, "Inaccessible")
    assert keeper.get(POOL).status.state == "Inaccessible"
    assert not keeper.get(POOL).status.built
    place.remove_obstacle()  # fails if it was touched
    keeper.settle()
    keeper.assert_ready(POOL, DISK)


def test_a_backing_that_has_gone_is_neither_made_anew_nor_taken_for_deleted(keeper, place):
    disk = volume("disk", "images", capacity="1Mi", deletion_policy="Delete")
    start(keeper, place, disk)
    known = keeper.get(POOL).status
    place.hide()
    keeper.settle()
    keeper.assert_retrying(POOL, "Inaccessible")
    keeper.assert_retrying(DISK, "PoolNotReady")
    status = keeper.get(POOL).status
    assert (status.state, status.built) == ("Inaccessible", True)
    assert (status.capacity, status.volumes) == (known.capacity, known.volumes)
    keeper.delete(DISK)
    keeper.settle()
    keeper.assert_retrying(DISK, "Inaccessible")
    assert not place.exists()
    place.bring_back()
    keeper.settle()
    keeper.assert_ready(POOL)
    assert keeper.get(POOL).status.state == "Running"
    assert keeper.gone(DISK)
    assert os.listdir(place.target()) == []


def test_an_empty_stand_in_for_a_lost_backing_is_not_taken_for_it(keeper, place):
    start(keeper, place, volume("disk", "images", capacity="1Mi", recreation="IfMissing"))
    place.hide()
    place.plant_backing()  # as the mount point beneath a lost mount
    keeper.settle()
    keeper.assert_retrying(POOL, "Inaccessible")
    assert os.listdir(place.target()) == []
    assert place.owner() == {}
    shutil.rmtree(place.target())
    place.bring_back()
    keeper.settle()
    keeper.assert_ready(POOL, DISK)


def test_an_obstacle_after_the_pool_was_there_is_inaccessible(keeper, place):
    start(keeper, place)
    place.hide()
    place.plant_obstacle()
    keeper.settle()
    keeper.assert_retrying(POOL, "Inaccessible")
    place.remove_obstacle()
    place.bring_back()
    keeper.settle()
    keeper.assert_ready(POOL)


def test_a_lost_pool_can_be_let_go_while_it_is_lost(keeper, place):
    start(keeper, place, volume("disk", "images", capacity="1Mi"))
    place.hide()
    keeper.settle()
    keeper.delete(POOL, DISK)
    keeper.settle()
    assert keeper.gone(POOL)
    assert keeper.gone(DISK)


def test_a_lost_store_finds_everything_again(keeper, place, tmp_path):
    start(keeper, place, volume("disk", "images", capacity="1Mi", format=place.shrinkable))
    before = (place.target() / "disk").stat()
    again = type(keeper)(tmp_path / "another-state")
    again.apply(
        place.declaration("images", adoption="Never"),
        volume("disk", "images", capacity="1Mi", format=place.shrinkable, adoption="Never"),
    )
    again.settle()
    again.assert_ready(POOL, DISK)
    assert (place.target() / "disk").stat().st_ino == before.st_ino
    assert again.get(DISK).status.origin == "Created"
    assert place.owner()["uid"] == again.get(POOL).metadata.uid
    again.store.close()
