"""What is planned for a volume in a pool that runs."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import errors
from backends.base import PoolFacts, Presence, Verb
from backends.host.files import Permissions as PermissionFacts
from backends.registry import pool_type
from controller.planning import Impact, VolumeHistory, plan_volume, plan_volume_deletion


def planned(scene, volume, facts, *, seen=False, key=None, pool=None, **given):
    return plan_volume(
        pool or scene.pool(),
        volume,
        facts,
        VolumeHistory(seen=seen, key=key),
        backend=scene.backend,
        live_marks=given.pop("live_marks", {volume.resource}),
        **given,
    )


def verbs(plan):
    return [item.verb for item in plan.actions]


def test_a_declared_volume_that_is_not_there_is_made(scene):
    plan = planned(scene, scene.volume(), scene.facts())
    assert verbs(plan) == [Verb.CREATE_VOLUME]
    assert "/srv/images/disk" in plan.actions[0].target


def test_the_plan_of_a_volume_that_qemu_makes_shows_the_command(scene):
    plan = planned(scene, scene.volume(format="qcow2"), scene.facts())
    assert plan.actions[0].commands == ()
    plan = planned(scene, scene.volume(format="vmdk"), scene.facts())
    assert plan.actions[0].commands[0][:2] == ("qemu-img", "create")


@pytest.mark.parametrize("adoption", ["IfMatches", "Never"])
@pytest.mark.parametrize("mark", [None, "other"])
def test_another_device_under_the_name_of_a_found_volume_is_not_adopted(scene, adoption, mark):
    pool = replace(scene.pool(), type=pool_type("mpath"))
    volume = scene.volume(adoption=adoption)
    facts = scene.facts(scene.disk(mark=mark, format=None, key="second"))
    plan = planned(scene, volume, facts, pool=pool, seen=True, key="first")
    (refusal,) = plan.refusals
    assert isinstance(refusal, errors.DeviceChanged)
    assert "was first" in str(refusal)
    assert "is second" in str(refusal)
    assert plan.actions == ()


@pytest.mark.parametrize(("seen", "key"), [(False, "second"), (True, "first"), (True, None)])
def test_a_found_device_that_was_not_another_before_is_adopted(scene, seen, key):
    pool = replace(scene.pool(), type=pool_type("mpath"))
    facts = scene.facts(scene.disk(mark=None, format=None, key="first"))
    plan = planned(scene, scene.volume(format=None), facts, pool=pool, seen=seen, key=key)
    assert verbs(plan) == [Verb.ADOPT_VOLUME]


def test_a_volume_as_declared_needs_nothing(scene):
    assert planned(scene, scene.volume(), scene.facts(scene.disk()), seen=True).empty


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    declared=st.integers(1, 2**50),
    observed=st.integers(1, 2**50),
    format=st.sampled_from(["raw", "qcow2", "vdi", "vpc", "qed", "vmdk"]),
)
def test_the_capacity_of_a_volume_never_oscillates(scene, declared, observed, format):
    volume = scene.volume(format=format, capacity=declared, resize={"allowShrink": True})
    step = scene.backend.granularity(format)
    plan = planned(scene, volume, scene.facts(scene.disk(format=format, capacity=observed)))
    if plan.refusals:
        assert isinstance(plan.refusals[0], errors.Unsupported)
    elif verbs(plan):
        rounded = -(-declared // step) * step
        again = scene.facts(scene.disk(format=format, capacity=rounded))
        assert planned(scene, volume, again).empty
    else:
        assert declared <= observed < declared + step


def test_a_volume_grows_in_place(scene):
    plan = planned(scene, scene.volume(capacity="2Gi"), scene.facts(scene.disk()))
    assert verbs(plan) == [Verb.GROW_VOLUME]
    assert plan.actions[0].impact is Impact.IN_PLACE
    assert [(item.field, item.desired, item.observed) for item in plan.drift] == [
        ("capacity", "2Gi", "1Gi")
    ]


def test_a_volume_shrinks_only_where_allowed(scene):
    refused = planned(scene, scene.volume(capacity="512Mi"), scene.facts(scene.disk()))
    assert isinstance(refused.refusals[0], errors.ShrinkNotAllowed)
    assert not refused.actions
    allowed = planned(
        scene,
        scene.volume(capacity="512Mi", resize={"allowShrink": True}),
        scene.facts(scene.disk()),
    )
    assert verbs(allowed) == [Verb.SHRINK_VOLUME]
    assert allowed.actions[0].impact is Impact.DESTRUCTIVE
    assert "512Mi" in allowed.actions[0].destroys[0]


def test_a_volume_that_others_stand_on_does_not_shrink(scene):
    plan = planned(
        scene,
        scene.volume(capacity="512Mi", resize={"allowShrink": True}),
        scene.facts(scene.disk()),
        dependents=["/srv/images/overlay"],
    )
    assert isinstance(plan.refusals[0], errors.InUse)
    assert "/srv/images/overlay" in str(plan.refusals[0])


def test_a_volume_that_has_gone_is_made_anew_only_if_told_to(scene):
    plan = planned(scene, scene.volume(), scene.facts(), seen=True)
    assert isinstance(plan.refusals[0], errors.VolumeMissing)
    assert not plan.actions
    again = planned(scene, scene.volume(recreation="IfMissing"), scene.facts(), seen=True)
    assert verbs(again) == [Verb.CREATE_VOLUME]


@pytest.mark.parametrize(
    ("adoption", "given", "expected", "refusal"),
    [
        ("IfMatches", {}, [Verb.ADOPT_VOLUME], None),
        ("IfMatches", {"capacity": 5}, [], errors.AdoptionMismatch),
        ("IfMatches", {"format": "qcow2"}, [], errors.AdoptionMismatch),
        ("Never", {}, [], errors.AlreadyExists),
        ("Observe", {}, [], None),
        ("Observe", {"capacity": 5}, [], None),
    ],
)
def test_a_strange_file_is_taken_over_as_the_policy_says(scene, adoption, given, expected, refusal):
    plan = planned(
        scene, scene.volume(adoption=adoption), scene.facts(scene.disk(mark=None, **given))
    )
    assert verbs(plan) == expected
    assert [type(item) for item in plan.refusals] == ([refusal] if refusal else [])
    if adoption == "Observe" and given:
        assert plan.drift


def test_the_volume_of_another_resource_is_left_alone(scene):
    other = "StorageVolume/default/disk-other"
    plan = planned(scene, scene.volume(), scene.facts(scene.disk(mark="other")), live_marks={other})
    assert isinstance(plan.refusals[0], errors.OwnedByOther)
    assert other in str(plan.refusals[0])


def test_changed_permissions_are_set_back(scene):
    volume = scene.volume(permissions={"mode": "0640"})
    seen = scene.disk(permissions=PermissionFacts(0o666, 0, 0, None))
    plan = planned(scene, volume, scene.facts(seen))
    assert verbs(plan) == [Verb.SET_VOLUME_PERMISSIONS]
    assert "0666" in plan.actions[0].reason


def test_a_volume_too_large_for_its_pool_is_refused_before_it_is_begun(scene):
    plan = planned(scene, scene.volume(capacity="900Gi"), scene.facts())
    assert isinstance(plan.refusals[0], errors.NoSpace)
    assert not plan.actions
    sparse = planned(scene, scene.volume(capacity="900Gi", allocation=0), scene.facts())
    assert verbs(sparse) == [Verb.CREATE_VOLUME]


def test_what_is_no_volume_is_not_overwritten(scene):
    facts = scene.facts(skipped=(("disk", "it is a symbolic link, which is not followed"),))
    plan = planned(scene, scene.volume(), facts)
    assert isinstance(plan.refusals[0], errors.AlreadyExists)
    assert "symbolic link" in str(plan.refusals[0])


@pytest.mark.parametrize(
    ("policy", "mark", "dependents", "expected", "refused"),
    [
        ("Retain", "own", [], [], False),
        ("Delete", "own", [], [Verb.DELETE_VOLUME], False),
        ("Delete", "former", [], [Verb.DELETE_VOLUME], False),
        ("Delete", "adopted", [], [], False),
        ("Delete", None, [], [], False),
        ("Delete", "other", [], [], False),
        ("Delete", "own", ["/srv/images/overlay"], [], True),
    ],
)
def test_a_volume_is_deleted_only_if_made_here_and_nothing_stands_on_it(
    scene, policy, mark, dependents, expected, refused
):
    plan = plan_volume_deletion(
        scene.pool(),
        scene.volume(deletionPolicy=policy),
        scene.facts(scene.disk(mark=mark)),
        backend=scene.backend,
        dependents=dependents,
    )
    assert verbs(plan) == expected
    assert bool(plan.refusals) is refused
    for item in plan.actions:
        assert item.destroys == ("/srv/images/disk",)


def test_a_volume_in_an_unreachable_pool_is_not_taken_for_deleted(scene):
    facts = PoolFacts(presence=Presence.UNREACHABLE, detail="no answer")
    plan = plan_volume_deletion(
        scene.pool(), scene.volume(deletionPolicy="Delete"), facts, backend=scene.backend
    )
    assert isinstance(plan.refusals[0], errors.Inaccessible)


def test_an_overlay_without_a_capacity_is_shown_with_its_backing_images(scene):
    volume = scene.volume(
        format="qed", capacity=None, backingStore={"path": "/srv/base", "format": "raw"}
    )
    (command,) = planned(scene, volume, scene.facts()).actions[0].commands
    assert command[-1] == "SIZE-OF-BACKING-IMAGE"


@pytest.mark.parametrize(("declared", "same"), [("1Gi", True), ("1023Mi", True), ("1020Mi", False)])
def test_a_capacity_within_the_granularity_of_the_volume_is_the_declared_one(scene, declared, same):
    found = scene.disk(capacity=2**30, granularity=4 * 2**20)
    plan = planned(scene, scene.volume(capacity=declared), scene.facts(found))
    assert plan.empty == same
