"""Pools on devices: what stands there already, and whether it is still the same device."""

import pytest

from backends import errors
from backends.base import Pool, PoolFacts, Presence, Verb
from backends.host.devices import Identity
from backends.registry import pool_spec, pool_type
from controller.planning import Impact, plan_pool, plan_pool_deletion, plan_volume_deletion

DEVICE = "/dev/disk/by-id/wwn-1"
KNOWN = Identity(path=DEVICE, serial="S1", wwn="naa.1", uuid="u1", size=2**30)
OVERWRITE = {"policy": "Overwrite", "confirm": "images"}
FOREIGN = {"mark": None, "data_found": "swap space", "adoptable": False}
ABSENT = PoolFacts(presence=Presence.ABSENT, detail="it is empty", devices=(KNOWN,))


def on_device(identity=None, **spec):
    device = {"path": DEVICE, **({"identity": identity} if identity else {})}
    document = {"type": "fs", "fs": {"device": device}, "target": {"path": "/srv/images"}, **spec}
    return Pool(
        uid="p-1",
        resource="StoragePool/images",
        name="images",
        spec=pool_spec().model_validate(document),
        type=pool_type("fs"),
    )


def planned(scene, pool, facts, history):
    live = {"StoragePool/images"}
    return plan_pool(pool, facts, history, backend=scene.backend, live_marks=live)


def verbs(plan):
    return [item.verb for item in plan.actions]


def test_what_a_stranger_left_is_never_built_over(scene):
    plan = planned(scene, on_device(), scene.facts(**FOREIGN), scene.fresh())
    assert not plan.actions
    (refusal,) = plan.refusals
    assert isinstance(refusal, errors.OverwriteRefused)
    assert "/srv/images holds swap space" in str(refusal)
    assert "Overwrite" in refusal.hint


def test_what_a_stranger_left_is_destroyed_where_the_pool_is_named(scene):
    plan = planned(scene, on_device(build=OVERWRITE), scene.facts(**FOREIGN), scene.fresh())
    assert verbs(plan)[0] is Verb.BUILD_POOL
    assert plan.actions[0].impact is Impact.DESTRUCTIVE
    assert plan.actions[0].destroys == ("swap space at /srv/images",)


def test_overwriting_with_another_name_is_refused(scene):
    pool = on_device(build={**OVERWRITE, "confirm": "imagse"})
    plan = planned(scene, pool, scene.facts(**FOREIGN), scene.fresh())
    assert not plan.actions
    assert isinstance(plan.refusals[0], errors.OverwriteRefused)


def test_overwriting_has_had_its_turn_once_the_pool_was_built_in_this_generation(scene):
    history = scene.history(built_generation=1)
    plan = planned(scene, on_device(build=OVERWRITE), scene.facts(**FOREIGN), history)
    assert not plan.actions
    assert plan.refusals


def test_what_is_ours_is_not_overwritten_whatever_the_generation(scene):
    facts = scene.facts(data_found="an ext4 file system")
    history = scene.history(generation=2)
    plan = planned(scene, on_device(build=OVERWRITE), facts, history)
    assert Verb.BUILD_POOL not in verbs(plan)
    assert not plan.refusals


def test_what_is_as_declared_is_taken_over(scene):
    facts = scene.facts(mark=None, data_found="an ext4 file system")
    assert verbs(planned(scene, on_device(), facts, scene.fresh()))[0] is Verb.ADOPT_POOL


def test_an_observed_pool_is_never_overwritten(scene):
    pool = on_device(build=OVERWRITE, adoption="Observe")
    assert not planned(scene, pool, scene.facts(**FOREIGN), scene.fresh()).actions


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"serial": "S2"}, "its serial number is S2 and was S1"),
        ({"wwn": "naa.2"}, "its world-wide name is naa.2 and was naa.1"),
        ({"uuid": "u2"}, "its UUID is u2 and was u1"),
        ({"size": 2**20}, "its size is 1Mi and was 1Gi"),
    ],
)
@pytest.mark.parametrize("presence", Presence)
def test_another_device_stalls_the_pool(scene, changed, told, presence):
    seen = Identity(path=DEVICE, **changed)
    facts = scene.facts(presence=presence, devices=(seen,))
    plan = planned(scene, on_device(), facts, scene.history(devices=(KNOWN,)))
    assert not plan.actions
    (refusal,) = plan.refusals
    assert isinstance(refusal, errors.DeviceChanged)
    assert refusal.terminal
    assert DEVICE in str(refusal)
    assert told in str(refusal)


def test_another_device_is_used_once_its_identity_is_declared(scene):
    facts = scene.facts(devices=(Identity(path=DEVICE, serial="S2", uuid="u2"),))
    history = scene.history(devices=(KNOWN,))
    assert planned(scene, on_device("S2"), facts, history).empty
    assert planned(scene, on_device("u2"), facts, history).empty
    (refusal,) = planned(scene, on_device("S3"), facts, history).refusals
    assert "declared as 'S3'" in str(refusal)
    assert "its serial number is S2" in str(refusal)


def test_a_declared_identity_holds_from_the_first_look(scene):
    facts = PoolFacts(presence=Presence.ABSENT, devices=(Identity(path=DEVICE, serial="S2"),))
    plan = planned(scene, on_device("S1"), facts, scene.fresh())
    assert isinstance(plan.refusals[0], errors.DeviceChanged)
    assert not plan.actions
    assert planned(scene, on_device("S2"), facts, scene.fresh()).actions


def test_what_stands_on_a_device_may_be_another_where_it_is_to_be_overwritten(scene):
    facts = scene.facts(**FOREIGN, devices=(Identity(path=DEVICE, serial="S1", uuid="u2"),))
    history = scene.history(generation=2, devices=(KNOWN,))
    plan = planned(scene, on_device(build=OVERWRITE), facts, history)
    assert verbs(plan)[0] is Verb.BUILD_POOL
    other = scene.facts(**FOREIGN, devices=(Identity(path=DEVICE, serial="S2"),))
    assert not planned(scene, on_device(build=OVERWRITE), other, history).actions


def test_a_device_that_was_emptied_is_not_formatted_anew(scene):
    plan = planned(scene, on_device(), ABSENT, scene.history(devices=(KNOWN,)))
    assert not plan.actions
    assert isinstance(plan.refusals[0], errors.Inaccessible)


@pytest.mark.parametrize("policy", ["Delete", "Undefine"])
def test_another_device_is_neither_stopped_nor_destroyed_with_the_pool(scene, policy):
    plan = plan_pool_deletion(
        on_device(deletionPolicy=policy),
        scene.facts(devices=(Identity(path=DEVICE, serial="S2"),)),
        scene.history(devices=(KNOWN,)),
        backend=scene.backend,
        declared=[],
    )
    assert not plan.actions
    assert isinstance(plan.refusals[0], errors.DeviceChanged)


def test_a_volume_that_can_not_be_seen_does_not_count_as_deleted(scene):
    plan = plan_volume_deletion(
        on_device(),
        scene.volume(deletionPolicy="Delete"),
        scene.facts(listed=False, active=False),
        backend=scene.backend,
    )
    assert isinstance(plan.refusals[0], errors.PoolNotReady)


def test_another_device_that_is_declared_is_taken_as_a_new_one(scene):
    seen = Identity(path=DEVICE, serial="S2")
    history = scene.history(devices=(KNOWN,))
    blank = PoolFacts(presence=Presence.ABSENT, devices=(seen,))
    assert verbs(planned(scene, on_device("S2"), blank, history))[0] is Verb.BUILD_POOL
    filled = scene.facts(mark=None, data_found="an ext4 file system", devices=(seen,))
    assert verbs(planned(scene, on_device("S2"), filled, history))[0] is Verb.ADOPT_POOL
    same = scene.facts(mark=None, data_found="an ext4 file system", devices=(KNOWN,))
    (refusal,) = planned(scene, on_device("S1"), same, history).refusals
    assert "destroy it" in refusal.hint


def test_a_pool_that_can_not_be_read_can_still_be_stopped(scene):
    facts = PoolFacts(presence=Presence.UNREACHABLE, detail="it gives errors", active=True)
    stopped = on_device(state="Inactive")
    assert verbs(planned(scene, stopped, facts, scene.history())) == [Verb.STOP_POOL]
    assert not planned(scene, on_device(), facts, scene.history()).actions
    idle = PoolFacts(presence=Presence.UNREACHABLE, detail="it gives errors", active=False)
    assert planned(scene, stopped, idle, scene.history()).refusals
