"""What is planned for a pool, from what is declared, what is there, and what was before."""

import pytest

from backends import errors
from backends.base import PoolFacts, Presence, Verb
from controller.planning import Impact, plan_pool, plan_pool_deletion


def planned(scene, pool, facts, history, **given):
    return plan_pool(
        pool,
        facts,
        history,
        backend=scene.backend,
        live_marks=given.pop("live_marks", {"StoragePool/images"}),
        **given,
    )


def verbs(plan):
    return [item.verb for item in plan.actions]


ABSENT = PoolFacts(presence=Presence.ABSENT, detail="not there")


def test_a_new_pool_is_built_and_started(scene):
    plan = planned(scene, scene.pool(), ABSENT, scene.fresh())
    assert verbs(plan) == [Verb.BUILD_POOL, Verb.START_POOL]
    assert all(item.impact is Impact.IN_PLACE for item in plan.actions)
    assert "/srv/images" in plan.actions[0].target


def test_a_pool_that_runs_as_declared_needs_nothing(scene):
    assert planned(scene, scene.pool(), scene.facts(), scene.history()).empty


def test_an_inactive_pool_is_not_built(scene):
    assert planned(scene, scene.pool(state="Inactive"), ABSENT, scene.fresh()).empty


def test_a_pool_that_was_there_is_not_made_anew(scene):
    plan = planned(scene, scene.pool(), ABSENT, scene.history())
    assert not plan.actions
    assert isinstance(plan.refusals[0], errors.Inaccessible)
    assert "mount" in str(plan.refusals[0])


def test_a_confirmed_overwrite_makes_it_anew_once_per_generation(scene):
    pool = scene.pool(build={"policy": "Overwrite", "confirm": "images"})
    assert verbs(planned(scene, pool, ABSENT, scene.history(generation=2)))[0] is Verb.BUILD_POOL
    assert planned(scene, pool, ABSENT, scene.history()).refusals


def test_a_pool_is_not_built_over_what_a_probe_finds(scene):
    facts = PoolFacts(presence=Presence.ABSENT, data_found="/dev/sdx holds an ext4 file system")
    plan = planned(scene, scene.pool(), facts, scene.fresh())
    assert isinstance(plan.refusals[0], errors.OverwriteRefused)
    assert "/dev/sdx holds an ext4 file system" in str(plan.refusals[0])
    assert not plan.actions
    pool = scene.pool(build={"policy": "Overwrite", "confirm": "images"})
    build = planned(scene, pool, facts, scene.history(generation=2)).actions[0]
    assert (build.verb, build.impact) == (Verb.BUILD_POOL, Impact.DESTRUCTIVE)
    assert build.destroys == ("/dev/sdx holds an ext4 file system",)


def test_an_overwrite_confirmed_with_another_name_is_refused(scene):
    pool = scene.pool(build={"policy": "Overwrite", "confirm": "imagse"})
    plan = planned(scene, pool, ABSENT, scene.fresh())
    assert isinstance(plan.refusals[0], errors.OverwriteRefused)
    assert "imagse" in str(plan.refusals[0])


def test_a_directory_without_our_mark_where_ours_stood_is_taken_for_a_missing_mount(scene):
    plan = planned(scene, scene.pool(), scene.facts(mark=None), scene.history())
    assert isinstance(plan.refusals[0], errors.Inaccessible)
    assert not plan.actions


def test_unreachable_is_not_absent(scene):
    facts = PoolFacts(presence=Presence.UNREACHABLE, detail="no answer")
    plan = planned(scene, scene.pool(), facts, scene.fresh())
    assert isinstance(plan.refusals[0], errors.Inaccessible)
    assert not plan.refusals[0].terminal
    assert not plan.actions


@pytest.mark.parametrize(
    ("adoption", "expected", "refusal"),
    [
        ("IfMatches", [Verb.ADOPT_POOL, Verb.START_POOL], None),
        ("Never", [], errors.AlreadyExists),
        ("Observe", [], None),
    ],
)
def test_a_strange_directory_is_taken_over_as_the_policy_says(scene, adoption, expected, refusal):
    plan = planned(scene, scene.pool(adoption=adoption), scene.facts(mark=None), scene.fresh())
    assert verbs(plan) == expected
    assert [type(item) for item in plan.refusals] == ([refusal] if refusal else [])


def test_the_mark_of_a_declared_resource_refuses_all_others(scene):
    plan = planned(
        scene,
        scene.pool(),
        scene.facts(mark="other"),
        scene.fresh(),
        live_marks={"StoragePool/images", "StoragePool/images-other"},
    )
    assert isinstance(plan.refusals[0], errors.OwnedByOther)
    assert "StoragePool/images-other" in str(plan.refusals[0])


def test_the_mark_of_a_resource_that_has_gone_binds_nobody(scene):
    plan = planned(scene, scene.pool(), scene.facts(mark="other"), scene.fresh())
    assert verbs(plan) == [Verb.ADOPT_POOL, Verb.START_POOL]


def test_a_lost_store_finds_its_own_again(scene):
    plan = planned(scene, scene.pool(adoption="Never"), scene.facts(mark="former"), scene.fresh())
    assert verbs(plan) == [Verb.ADOPT_POOL, Verb.START_POOL]
    assert not plan.refusals


def test_only_permissions_that_were_declared_are_compared(scene):
    pool = scene.pool(target={"path": "/srv/images", "permissions": {"mode": "0750"}})
    plan = planned(scene, pool, scene.facts(), scene.history())
    assert verbs(plan) == [Verb.SET_POOL_PERMISSIONS]
    assert [(item.field, item.desired, item.observed) for item in plan.drift] == [
        ("target.permissions.mode", "0750", "0711")
    ]


def test_leftovers_are_cleaned(scene):
    plan = planned(scene, scene.pool(), scene.facts(leftovers=("v-9.abc",)), scene.history())
    assert verbs(plan) == [Verb.CLEAN_POOL]
    assert "v-9.abc" in plan.actions[0].reason


def test_a_pool_that_is_to_be_inactive_is_stopped(scene):
    plan = planned(scene, scene.pool(state="Inactive"), scene.facts(), scene.history())
    assert verbs(plan) == [Verb.STOP_POOL]
    assert plan.actions[0].impact is Impact.DISRUPTIVE


@pytest.mark.parametrize(
    ("autostart", "generation", "expected"),
    [(True, 1, [Verb.START_POOL]), (False, 1, []), (False, 2, [Verb.START_POOL])],
)
def test_after_a_reboot_a_pool_starts_if_autostart_or_its_spec_says_so(
    scene, autostart, generation, expected
):
    history = scene.history(boot="2", generation=generation)
    plan = planned(scene, scene.pool(autostart=autostart), scene.facts(), history)
    assert verbs(plan) == expected


def test_a_transient_pool_goes_with_a_reboot_and_with_its_stop(scene):
    pool = scene.pool(transient=True)
    assert planned(scene, pool, scene.facts(), scene.history(boot="2")).expired
    assert not planned(scene, pool, scene.facts(), scene.history()).expired
    stopped = planned(
        scene, scene.pool(transient=True, state="Inactive"), scene.facts(), scene.history()
    )
    assert verbs(stopped) == [Verb.STOP_POOL]
    assert stopped.expired


def test_observe_reports_and_never_acts(scene):
    pool = scene.pool(
        adoption="Observe", target={"path": "/srv/images", "permissions": {"mode": "0700"}}
    )
    plan = planned(
        scene, pool, scene.facts(mark=None, leftovers=("x",)), scene.fresh(), live_marks=set()
    )
    assert not plan.actions


@pytest.mark.parametrize(
    ("policy", "mark", "expected"),
    [
        ("Retain", "own", []),
        ("Undefine", "own", [Verb.STOP_POOL]),
        ("Delete", "own", [Verb.STOP_POOL, Verb.DELETE_POOL]),
        ("Delete", "adopted", [Verb.STOP_POOL]),
        ("Delete", None, [Verb.STOP_POOL]),
        ("Delete", "other", [Verb.STOP_POOL]),
    ],
)
def test_a_deletion_destroys_only_what_was_made_here_and_only_if_told_to(
    scene, policy, mark, expected
):
    plan = plan_pool_deletion(
        scene.pool(deletionPolicy=policy),
        scene.facts(mark=mark),
        scene.history(),
        backend=scene.backend,
        declared=[],
    )
    assert verbs(plan) == expected
    for item in plan.actions:
        if item.verb is Verb.DELETE_POOL:
            assert item.impact is Impact.DESTRUCTIVE
            assert item.destroys == ("/srv/images",)


def test_a_pool_that_holds_anything_is_not_deleted(scene):
    plan = plan_pool_deletion(
        scene.pool(deletionPolicy="Delete"),
        scene.facts(scene.disk(mark=None)),
        scene.history(),
        backend=scene.backend,
        declared=[],
    )
    assert not plan.actions
    assert isinstance(plan.refusals[0], errors.DeletionRefused)
    assert "disk" in str(plan.refusals[0])


def test_an_unreachable_pool_can_be_let_go_but_not_deleted(scene):
    facts = PoolFacts(presence=Presence.UNREACHABLE, detail="no answer")
    for policy, refused in (("Retain", False), ("Delete", True)):
        plan = plan_pool_deletion(
            scene.pool(deletionPolicy=policy),
            facts,
            scene.history(),
            backend=scene.backend,
            declared=[],
        )
        assert bool(plan.refusals) is refused
        assert not plan.actions
