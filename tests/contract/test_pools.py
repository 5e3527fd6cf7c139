"""What every pool type has to do, tried on the host's real storage."""

import os

import pytest

from backends import errors
from backends.base import Operation, Work
from backends.host import commands
from backends.images.transferring import Hole
from backends.registry import pool_types
from backends.sizes import MIB
from controller import contents
from controller.admitting import Target
from controller.contents import Selection
from tests import killing
from tests.contract import table
from tests.contract.candidate import all_candidates
from tests.keeper import pool_key, volume, volume_key

POOL = pool_key("images")
DISK = volume_key("disk")


def needs(place, *operations):
    """The operations that a case is about; a type without them passes by not promising them."""
    missing = [item.value for item in operations if item not in place.type.operations]
    if missing:
        pytest.skip(f"pools of type {place.type.name} have no way to {', '.join(missing)}")


def needs_directory(place):
    if not place.directory:
        pytest.skip(f"the target of a pool of type {place.type.name} has no permissions of its own")


def disk(place, name="disk", **spec):
    """The manifest of a volume; for a type that can't make any, of the one that is there."""
    if Operation.CREATE_VOLUME not in place.type.operations:
        spec["volume_name"] = place.given
    return volume(name, "images", **{"capacity": "4Mi", **spec})


def start(keeper, place, *volumes, **spec):
    keeper.apply(place.declaration("images", **spec), *volumes)
    keeper.settle()


def test_every_type_that_has_a_backend_is_tried():
    assert {name for name, item in pool_types().items() if item.backend} == set(all_candidates())


def test_the_page_tells_what_the_types_promise():
    assert table.block() in table.PAGE.read_text()


@pytest.mark.operation("build")
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
    assert keeper.reasons(POOL) == ["Defined", "Built", "Started"]


def test_a_new_target_gets_the_declared_permissions(keeper, place):
    needs(place, Operation.BUILD)
    needs_directory(place)
    owner = {"owner": os.geteuid(), "group": os.getegid()}
    start(keeper, place, target={"permissions": {"mode": "0750", **owner}})
    facts = place.target().stat()
    assert facts.st_mode & 0o7777 == 0o750
    assert (facts.st_uid, facts.st_gid) == (os.geteuid(), os.getegid())
    assert keeper.planned() == {}


def test_a_target_without_declared_permissions_is_as_libvirt_makes_it(keeper, place):
    needs(place, Operation.BUILD)
    needs_directory(place)
    start(keeper, place)
    assert place.target().stat().st_mode & 0o7777 == 0o711


@pytest.mark.operation("refresh")
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


@pytest.mark.operation("apply twice")
def test_a_second_pass_over_what_is_as_declared_writes_nothing(keeper, place):
    disks = [
        volume(f"disk-{name or 'plain'}", "images", capacity="4Mi", format=name, **place.sparse)
        for name in place.makeable
    ]
    start(keeper, place, *disks)
    written, spawned = keeper.recorded(), commands.spawned()
    outcomes = keeper.reconcile()
    assert keeper.recorded() == written
    assert commands.spawned() - spawned <= place.commands_per_look
    assert [(item.acted, item.retry) for item in outcomes] == [(False, False)]
    assert keeper.planned() == {}


def test_planning_changes_nothing(keeper, place):
    needs(place, Operation.BUILD, Operation.CREATE_VOLUME)
    keeper.apply(place.declaration("images"), disk(place, **place.sparse))
    written, spawned = keeper.recorded(), commands.spawned()
    planned = keeper.planned()
    assert planned[str(POOL)] == ["BuildPool", "StartPool"]
    assert planned[str(DISK)] == ["CreateVolume"]
    assert keeper.recorded() == written
    assert commands.spawned() - spawned <= place.commands_to_plan
    assert not place.exists()


@pytest.mark.operation("create")
def test_every_format_that_can_be_made_is_made(keeper, place):
    needs(place, Operation.CREATE_VOLUME)
    start(keeper, place)
    for name in place.makeable:
        keeper.apply(volume(name or "plain", "images", capacity="4Mi", format=name, **place.sparse))
    keeper.settle()
    for format, shown in place.makeable.items():
        name = format or "plain"
        key = volume_key(name)
        keeper.assert_ready(key)
        status = keeper.get(key).status
        assert status.format == shown
        assert status.capacity == (0 if name == "dir" else 4 * MIB)
        assert status.origin == "Created"
        assert name in place.names()
    counts = keeper.get(POOL).status.volumes
    assert (counts.total, counts.managed, counts.unmanaged) == (
        len(place.makeable),
        len(place.makeable),
        0,
    )


def test_a_format_that_cannot_be_made_stalls_and_leaves_nothing(keeper, place):
    needs(place, Operation.CREATE_VOLUME)
    others = set(place.type.volume_formats) - set(place.makeable)
    start(keeper, place)
    for name in others:
        keeper.apply(volume(name, "images", capacity="4Mi", format=name))
    keeper.settle()
    for name in others:
        keeper.assert_stalled(volume_key(name), "Unsupported")
    assert place.names() == []


@pytest.mark.operation("grow")
def test_a_volume_grows(keeper, place):
    needs(place, Operation.GROW_VOLUME)
    start(keeper, place, disk(place, format=place.resizable))
    keeper.apply(disk(place, capacity="12Mi", format=place.resizable))
    keeper.settle()
    keeper.assert_ready(DISK)
    assert keeper.get(DISK).status.capacity == 12 * MIB
    assert place.size_of("disk") == 12 * MIB
    assert keeper.planned() == {}


@pytest.mark.operation("shrink")
def test_a_volume_shrinks_only_where_that_is_allowed(keeper, place):
    needs(place, Operation.SHRINK_VOLUME)
    start(keeper, place, disk(place, capacity="8Mi", format=place.resizable))
    smaller = disk(place, format=place.resizable)
    keeper.apply(smaller)
    keeper.settle()
    assert "allowShrink" in keeper.assert_stalled(DISK, "ShrinkNotAllowed")
    assert place.size_of("disk") == 8 * MIB
    smaller["spec"]["resize"] = place.shrinking
    keeper.apply(smaller)
    keeper.settle()
    keeper.assert_ready(DISK)
    assert place.size_of("disk") == 4 * MIB


def test_changed_permissions_are_set_back(keeper, place):
    needs_directory(place)
    declared = disk(place, permissions={"mode": "0640"})
    start(keeper, place, declared, target={"permissions": {"mode": "0711"}})
    os.chmod(place.target(), 0o777)
    os.chmod(place.target() / "disk", 0o666)
    keeper.reconcile()
    assert place.target().stat().st_mode & 0o7777 == 0o711
    assert (place.target() / "disk").stat().st_mode & 0o7777 == 0o640
    keeper.assert_ready(POOL, DISK)
    assert keeper.planned() == {}


def test_volumes_that_nobody_declared_are_reported_and_left_alone(keeper, place):
    start(keeper, place, disk(place))
    strange = place.plant_volume("strange", 12 * MIB)
    before = place.evidence(strange)
    keeper.settle()
    status = keeper.get(POOL).status
    assert (status.volumes.total, status.volumes.managed, status.volumes.unmanaged) == (2, 1, 1)
    assert [(item.name, item.format, item.capacity) for item in status.discovered] == [
        (strange, place.planted_format, 12 * MIB)
    ]
    assert place.evidence(strange) == before


@pytest.mark.operation("delete volume")
def test_a_deleted_volume_is_deleted_and_its_neighbours_stay(keeper, place):
    needs(place, Operation.DELETE_VOLUME)
    disks = [
        volume(name, "images", capacity="4Mi", format=place.resizable, deletion_policy="Delete")
        for name in ("disk", "other")
    ]
    start(keeper, place, *disks)
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)
    assert place.names() == ["other"]
    keeper.assert_ready(POOL, volume_key("other"))


@pytest.mark.operation("stop")
def test_a_pool_stops_and_starts_and_keeps_its_volumes(keeper, place):
    start(keeper, place, disk(place))
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
@pytest.mark.operation("undefine")
def test_an_undefined_pool_leaves_all_data(keeper, place, policy):
    start(keeper, place, disk(place), deletionPolicy=policy)
    before = place.evidence()
    keeper.delete(POOL)
    keeper.settle()
    assert keeper.gone(POOL), keeper.told()
    assert place.evidence() == before


@pytest.mark.operation("delete")
def test_a_pool_is_deleted_only_once_it_is_empty(keeper, place):
    needs(place, Operation.DELETE)
    start(keeper, place, disk(place), deletionPolicy="Delete")
    place.plant_volume("strange", 4 * MIB)
    keeper.delete(POOL, DISK)  # the volume's policy is Retain, so its file stays
    keeper.settle()
    told = keeper.assert_retrying(POOL, "DeletionRefused")
    assert "disk" in told
    assert "strange" in told
    assert place.names() == ["disk", "strange"]
    place.remove_volume("disk")
    place.remove_volume("strange")
    keeper.settle()
    assert keeper.gone(POOL), keeper.told()
    assert not place.exists()


def test_a_pool_and_its_volumes_deleted_together_go_in_one_pass(keeper, place):
    needs(place, Operation.DELETE, Operation.DELETE_VOLUME)
    declared = disk(place, deletion_policy="Delete")
    start(keeper, place, declared, deletionPolicy="Delete")
    keeper.delete(POOL, DISK)
    (outcome,) = keeper.reconcile()
    assert (outcome.acted, outcome.retry) == (True, False)
    assert keeper.gone(POOL), keeper.told()
    assert keeper.gone(DISK)
    assert not place.exists()
    assert "DeletionRefused" not in keeper.reasons(POOL)


@pytest.mark.operation("adopt")
def test_what_a_stranger_made_is_never_deleted(keeper, place):
    needs(place, Operation.BUILD)
    place.plant_backing()
    start(keeper, place, deletionPolicy="Delete")
    keeper.assert_ready(POOL)
    assert place.owner()["origin"] == "Adopted"
    keeper.delete(POOL)
    keeper.settle()
    assert keeper.gone(POOL), keeper.told()
    assert place.exists()


def test_what_a_stranger_made_is_refused_where_the_policy_says_never(keeper, place):
    needs(place, Operation.BUILD)
    place.plant_backing()
    place.plant_volume("strange", 4 * MIB)
    before = place.evidence()
    start(keeper, place, volume("strange", "images", capacity="4Mi"), adoption="Never")
    keeper.assert_stalled(POOL, "AlreadyExists")
    keeper.assert_retrying(volume_key("strange"), "PoolNotReady")
    assert place.owner() == {}
    assert place.evidence() == before


@pytest.mark.operation("foreign data")
def test_what_stands_in_the_way_is_refused_and_left_as_it_is(keeper, place):
    needs(place, Operation.BUILD)
    place.plant_obstacle()
    start(keeper, place, disk(place))
    assert keeper.reason(POOL) == place.obstacle_reason
    assert keeper.get(POOL).status.state in ("Inaccessible", "Inactive")
    assert not keeper.get(POOL).status.built
    place.remove_obstacle()  # fails if it was touched
    keeper.settle()
    keeper.assert_ready(POOL, DISK)


@pytest.mark.operation("unreachable")
def test_a_backing_that_has_gone_is_neither_made_anew_nor_taken_for_deleted(keeper, place):
    declared = disk(place, deletion_policy="Delete")
    start(keeper, place, declared)
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
    deletes = Operation.DELETE_VOLUME in place.type.operations
    assert place.names() == ([] if deletes else [place.given])


@pytest.mark.operation("unreachable")
def test_what_vanishes_in_use_is_told_and_comes_back(keeper, place):
    start(keeper, place, disk(place))
    keeper.assert_ready(POOL, DISK)
    (name,) = place.names()
    before = place.evidence(name)
    with open(keeper.get(DISK).status.path, "rb") as used:
        place.vanish()
        keeper.settle()
        assert keeper.get(POOL).status.state in ("Degraded", "Inaccessible")
        assert keeper.truth(POOL, "Ready") == "False"
        keeper.assert_retrying(DISK, "PoolNotReady")
        place.return_()
        keeper.settle()
        assert keeper.get(POOL).status.state == "Running", keeper.told()
        keeper.assert_ready(POOL, DISK)
        used.read(1)
    assert place.evidence(name) == before


def test_an_empty_stand_in_for_a_lost_backing_is_not_taken_for_it(keeper, place):
    needs(place, Operation.BUILD)
    if not place.has_stand_in:
        pytest.skip(f"nothing takes the place of a hidden pool of type {place.type.name}")
    start(keeper, place, disk(place, recreation="IfMissing"))
    place.hide()
    place.plant_backing()  # as the mount point beneath a lost mount
    keeper.settle()
    assert keeper.reason(POOL) == place.stand_in_reason
    assert place.names() == []
    assert place.owner() == {}
    place.remove_backing()
    place.bring_back()
    keeper.settle()
    keeper.assert_ready(POOL, DISK)


def test_an_obstacle_after_the_pool_was_there_is_not_taken_for_it(keeper, place):
    needs(place, Operation.BUILD)
    start(keeper, place)
    place.hide()
    place.plant_obstacle()
    keeper.settle()
    assert keeper.reason(POOL) == place.stand_in_reason
    place.remove_obstacle()
    place.bring_back()
    keeper.settle()
    keeper.assert_ready(POOL)


def test_a_lost_pool_can_be_let_go_while_it_is_lost(keeper, place):
    start(keeper, place, disk(place))
    place.hide()
    keeper.settle()
    keeper.delete(POOL, DISK)
    keeper.settle()
    assert keeper.gone(POOL), keeper.told()
    assert keeper.gone(DISK)


@pytest.mark.operation("undefine")
def test_a_lost_pool_that_was_found_can_be_undefined(keeper, place):
    if Operation.BUILD in place.type.operations:
        pytest.skip(f"what a pool of type {place.type.name} stands on is made")
    start(keeper, place, disk(place), deletionPolicy="Undefine")
    place.hide()
    keeper.settle()
    keeper.delete(POOL)
    keeper.settle()
    if place.held_while_lost:
        assert not keeper.gone(POOL)
        place.bring_back()
        keeper.settle()
    assert keeper.gone(POOL), keeper.told()


@pytest.mark.operation("lost store")
def test_a_lost_store_finds_everything_again(keeper, place, tmp_path):
    needs(place, Operation.CREATE_VOLUME)  # what is found and not made carries no mark
    start(keeper, place, disk(place, format=place.resizable))
    before = place.evidence("disk")
    again = type(keeper)(tmp_path / "another-state")
    again.apply(
        place.declaration("images", adoption="Never"),
        disk(place, format=place.resizable, adoption="Never"),
    )
    again.settle()
    again.assert_ready(POOL, DISK)
    assert place.lasting(place.evidence("disk")) == place.lasting(before)
    assert again.get(DISK).status.origin == "Created"
    if Operation.BUILD in place.type.operations:
        assert place.owner()["uid"] == again.get(POOL).metadata.uid
    again.store.close()


@pytest.mark.operation("create")
def test_a_type_that_makes_no_volumes_says_so(keeper, place):
    if Operation.CREATE_VOLUME in place.type.operations:
        pytest.skip(f"pools of type {place.type.name} make volumes")
    before = place.names()
    start(keeper, place, volume("unheard-of", "images", capacity="4Mi"))
    keeper.assert_stalled(volume_key("unheard-of"), "Unsupported")
    assert place.names() == before
    place.refused()


@pytest.mark.operation("grow")
def test_a_type_that_resizes_no_volumes_says_so(keeper, place):
    if Operation.GROW_VOLUME in place.type.operations:
        pytest.skip(f"volumes in pools of type {place.type.name} can grow")
    start(keeper, place, disk(place))
    keeper.assert_ready(DISK)
    keeper.apply(disk(place, capacity="8Mi"))
    keeper.settle()
    keeper.assert_stalled(DISK, "Unsupported")
    place.refused()


@pytest.mark.operation("full pool")
def test_a_volume_that_the_pool_has_no_room_for_is_refused_and_leaves_nothing(keeper, place):
    needs(place, Operation.CREATE_VOLUME)
    start(keeper, place)
    room = keeper.get(POOL).status.available
    keeper.apply(volume("disk", "images", capacity=room + 8 * MIB, format=place.allocated))
    keeper.settle()
    assert "left" in keeper.assert_retrying(DISK, "NoSpace")
    assert place.names() == []
    keeper.assert_ready(POOL)


def target(keeper):
    """The one declared volume, to be worked on."""
    (examined,) = keeper.plans()
    (found,) = examined.volumes
    return Target(
        resource=found.resource,
        pool=examined.pool,
        volume=found.volume,
        facts=examined.facts.volumes[found.volume.name],
        backend=examined.backend,
    )


def opened(keeper, *, write=False):
    """The contents of the one declared volume, by way of its backend."""
    found = target(keeper)
    return found.backend.open_volume(found.pool, found.volume, write=write)


def put(keeper, data, offset):
    with opened(keeper, write=True) as opening:
        os.pwrite(opening.fd, data, offset)
        os.fsync(opening.fd)


@pytest.mark.operation("wipe")
def test_a_wiped_volume_reads_as_zeros(keeper, place):
    needs(place, Operation.WIPE_VOLUME)
    start(keeper, place, disk(place, format=place.allocated))
    put(keeper, b"secret", 3 * MIB)
    contents.wipe(target(keeper), "zero", Work())
    with opened(keeper) as opening:
        assert os.pread(opening.fd, 4 * MIB, 0).count(0) == 4 * MIB
    keeper.reconcile()
    keeper.assert_ready(DISK)


@pytest.mark.operation("upload")
def test_what_is_uploaded_is_what_is_there(keeper, place):
    needs(place, Operation.UPLOAD)
    start(keeper, place, disk(place, format=place.allocated))
    put(keeper, b"former" * 1000, 0)
    contents.write(target(keeper), Selection(), [b"begin", Hole(MIB), b"end"], Work())
    with opened(keeper) as opening:
        assert os.pread(opening.fd, MIB + 8, 0) == b"begin" + bytes(MIB) + b"end"
    with pytest.raises(errors.OutOfRange):
        contents.write(target(keeper), Selection(offset=4 * MIB - 1), [b"two"], Work(), expected=3)


@pytest.mark.operation("download")
def test_what_is_downloaded_is_what_is_there(keeper, place):
    needs(place, Operation.DOWNLOAD)
    start(keeper, place, disk(place, format=place.allocated))
    put(keeper, b"written", MIB)
    got = bytearray()

    def take(piece):
        got.extend(bytes(piece.length) if isinstance(piece, Hole) else piece)

    selection = Selection(offset=MIB - 1, length=9)
    with contents.source(target(keeper), selection) as (opening, span):
        contents.read(opening, span, selection, Work(), take)
    assert bytes(got) == b"\0written\0"


@pytest.mark.operation("clone")
def test_a_clone_has_the_contents_of_its_source(keeper, place):
    needs(place, Operation.CLONE_VOLUME)
    start(keeper, place, disk(place, format=place.allocated))
    put(keeper, b"original", 2 * MIB)
    clone = {"clone": {"volumeRef": {"name": "disk"}}}
    keeper.apply(volume("copy", "images", capacity="8Mi", format=place.allocated, source=clone))
    keeper.settle()
    assert keeper.engine.jobs.idle(120)
    keeper.settle()
    keeper.assert_ready(volume_key("copy"))
    keeper.delete(DISK)
    keeper.settle()
    with opened(keeper) as opening:
        found = os.pread(opening.fd, 8 * MIB, 0)
    assert found == bytes(2 * MIB) + b"original" + bytes(6 * MIB - 8)


def mortal(place):
    """A pool and a volume that go with all that they stand on, where the type allows it."""
    declared = disk(place, format=place.resizable, **place.sparse)
    if Operation.DELETE_VOLUME in place.type.operations:
        declared["spec"]["deletionPolicy"] = "Delete"
    policy = "Delete" if Operation.DELETE in place.type.operations else "Undefine"
    return place.declaration("images", deletionPolicy=policy), declared


def make(keeper, *documents):
    keeper.apply(*documents)
    keeper.settle()


def delete(keeper):
    keeper.delete(*(key for key in (POOL, DISK) if not keeper.gone(key)))
    keeper.settle()


def assert_gone(keeper, place):
    assert keeper.gone(POOL), keeper.told()
    assert keeper.gone(DISK)
    assert Operation.DELETE not in place.type.operations or not place.exists()


@pytest.mark.operation("kill -9")
def test_making_survives_a_kill_between_any_two_steps(place, tmp_path):
    documents = mortal(place)
    kills = killing.at_every_step(
        tmp_path / "state",
        lambda keeper: make(keeper, *documents),
        finished=lambda keeper: keeper.assert_ready(POOL, DISK),
        undone=delete,
        commands_only=place.lab and place.runs_commands,
    )
    assert kills > 0


@pytest.mark.operation("kill -9")
def test_deleting_survives_a_kill_between_any_two_steps(place, tmp_path):
    documents = mortal(place)
    kills = killing.at_every_step(
        tmp_path / "state",
        delete,
        prepared=lambda keeper: make(keeper, *documents),
        finished=lambda keeper: assert_gone(keeper, place),
        commands_only=place.lab and place.runs_commands,
    )
    assert kills > 0
