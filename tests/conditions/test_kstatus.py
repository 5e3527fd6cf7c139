"""What a tool that waits sees: never too early, and in the end the truth."""

import os

import pytest

from backends import errors
from backends.sizes import MIB
from controller.planning import Plan
from controller.summarising import Aspect, progress_aspects
from tests.keeper import dir_pool, marked, pool_key, volume, volume_key
from tests.kstatus import Status, kstatus

POOL = pool_key("images")
DISK = volume_key("disk")
GOOD = Aspect(type="Ready", status="True", reason="Good", message="")


def all_errors(base=errors.StorageError):
    for kind in base.__subclasses__():
        yield kind
        yield from all_errors(kind)


def disk(**spec):
    return volume("disk", "images", **{"capacity": "1Mi", **spec})


def as_declared(keeper, images):
    """Whether pool and volume are on the host what their present specs say."""

    def true():
        pool, declared = keeper.store.get(POOL), keeper.store.get(DISK)
        path = images / "disk"
        stands = images.is_dir() and bool(marked(images))
        wanted = pool.spec.target.permissions if pool else None
        if stands and wanted is not None and wanted.mode is not None:
            stands = images.stat().st_mode & 0o777 == wanted.mode
        fits = declared is not None and path.is_file() and bool(marked(path))
        if fits:
            fits = path.stat().st_size == declared.spec.capacity
        return {POOL: stands, DISK: fits}

    return true


def assert_times_tell_of_changes_only(watching):
    for documents in watching.documents.values():
        known = {}
        for document in documents:
            present = {
                item["type"]: (item["status"], item["lastTransitionTime"])
                for item in document["status"].get("conditions", [])
            }
            for type, (status, time) in present.items():
                if type in known:
                    assert (status != known[type][0]) == (time != known[type][1]), document
            known = present


def test_the_rules_are_those_of_kstatus():
    def document(generation=2, observed=2, deleting=False, **truths):
        conditions = [{"type": type, "status": status} for type, status in truths.items()]
        metadata = {"generation": generation}
        if deleting:
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        status = {"observedGeneration": observed, "conditions": conditions}
        return {"metadata": metadata, "status": status}

    assert kstatus(None) is Status.NOT_FOUND
    assert kstatus(document(deleting=True, Ready="True")) is Status.TERMINATING
    assert kstatus(document(observed=1, Ready="True")) is Status.IN_PROGRESS
    assert kstatus(document(observed=-1)) is Status.IN_PROGRESS
    assert kstatus(document(Ready="True", Reconciling="True")) is Status.IN_PROGRESS
    assert kstatus(document(Ready="False", Stalled="True")) is Status.FAILED
    assert kstatus(document(Ready="Unknown")) is Status.IN_PROGRESS
    assert kstatus(document(Ready="True")) is Status.CURRENT


def test_a_new_resource_looks_unfinished_before_anybody_has_looked_at_it(keeper, tmp_path):
    keeper.apply(dir_pool("images", tmp_path / "images"), disk())
    for key in (POOL, DISK):
        assert kstatus(keeper.get(key).dump()) is Status.IN_PROGRESS


def test_creation_change_and_deletion_never_look_finished_too_early(keeper, watch, tmp_path):
    images = tmp_path / "images"
    watching = watch(as_declared(keeper, images))
    target = {"permissions": {"mode": "0750"}}
    keeper.apply(dir_pool("images", images, deletion_policy="Delete"), disk())
    keeper.settle()
    keeper.apply(
        dir_pool("images", images, deletion_policy="Delete", target=target),
        disk(capacity="2Mi", deletion_policy="Delete"),
    )
    keeper.settle()
    keeper.delete(DISK, POOL)
    keeper.settle()
    assert watching.early == []
    for key in (POOL, DISK):
        assert watching.seen[key] == [
            Status.NOT_FOUND,
            Status.IN_PROGRESS,
            Status.CURRENT,
            Status.IN_PROGRESS,
            Status.CURRENT,
            Status.TERMINATING,
            Status.NOT_FOUND,
        ]
    assert_times_tell_of_changes_only(watching)


def test_a_terminal_failure_looks_failed_and_ends_with_a_change_of_the_spec(
    keeper, watch, tmp_path
):
    images = tmp_path / "images"
    watching = watch(as_declared(keeper, images))
    keeper.apply(dir_pool("images", images), disk(capacity="4Mi"))
    keeper.settle()
    keeper.apply(disk(capacity="1Mi"))  # smaller, which is not allowed
    keeper.settle()
    keeper.apply(disk(capacity="1Mi", resize={"allowShrink": True, "allowDataLoss": True}))
    keeper.settle()
    assert watching.early == []
    assert watching.seen[DISK] == [
        Status.NOT_FOUND,
        Status.IN_PROGRESS,
        Status.CURRENT,
        Status.IN_PROGRESS,
        Status.FAILED,
        Status.IN_PROGRESS,
        Status.CURRENT,
    ]
    assert (images / "disk").stat().st_size == MIB
    assert_times_tell_of_changes_only(watching)


def test_a_failure_that_may_pass_looks_unfinished_until_it_has_passed(keeper, watch, tmp_path):
    images = tmp_path / "images"
    watching = watch(as_declared(keeper, images))
    images.write_bytes(b"in the way")
    keeper.apply(dir_pool("images", images), disk())
    keeper.settle()
    assert watching.seen == {key: [Status.NOT_FOUND, Status.IN_PROGRESS] for key in (POOL, DISK)}
    images.unlink()
    keeper.settle()
    assert watching.early == []
    assert watching.seen[POOL][-1] is watching.seen[DISK][-1] is Status.CURRENT
    images.rename(tmp_path / "away")
    watching.true = lambda: {POOL: True, DISK: True}  # the loss is seen with the next look only
    keeper.settle()
    assert watching.seen[POOL][-1] is watching.seen[DISK][-1] is Status.IN_PROGRESS
    (tmp_path / "away").rename(images)
    keeper.settle()
    assert watching.seen[POOL][-1] is watching.seen[DISK][-1] is Status.CURRENT
    assert_times_tell_of_changes_only(watching)


def test_a_step_that_fails_looks_unfinished(keeper, watch, tmp_path):
    images = tmp_path / "images"
    watching = watch(as_declared(keeper, images))
    keeper.apply(dir_pool("images", images))
    keeper.settle()
    (images / ".poolkeeper").write_bytes(b"in the way of making volumes")
    keeper.apply(disk())
    keeper.settle()
    assert watching.seen[DISK][-1] is Status.IN_PROGRESS
    assert keeper.truth(DISK, "Reconciling") == "True"
    (images / ".poolkeeper").unlink()
    keeper.settle()
    assert watching.early == []
    assert watching.seen[DISK][-1] is Status.CURRENT


@pytest.mark.parametrize("error", sorted(set(all_errors()), key=lambda item: item.__name__))
def test_a_terminal_error_stalls_and_any_other_is_tried_again(error):
    for plan, failures in ((Plan(refusals=(error("It failed."),)), ()), (Plan(), [error("It.")])):
        made = {
            item.type: item for item in progress_aspects(plan, failures, good=GOOD, suspended=False)
        }
        assert made["Ready"].status == "False"
        assert made["Ready"].reason == error.reason
        assert ("Stalled" in made) is error.terminal
        assert ("Reconciling" in made) is not error.terminal


def test_a_terminal_error_outweighs_one_that_may_pass():
    plan = Plan(refusals=(errors.Inaccessible("Away."), errors.Conflict("Taken.")))
    made = {item.type for item in progress_aspects(plan, (), good=GOOD, suspended=False)}
    assert "Stalled" in made
    assert "Reconciling" not in made


def test_every_condition_is_of_the_generation_that_was_looked_at(keeper, tmp_path):
    keeper.apply(dir_pool("images", tmp_path / "images"), disk())
    keeper.settle()
    keeper.apply(disk(capacity="2Mi"))
    keeper.settle()
    for key in (POOL, DISK):
        resource = keeper.get(key)
        generations = {item.observed_generation for item in resource.status.conditions}
        assert generations == {resource.metadata.generation}
    assert os.listdir(tmp_path / "images") == ["disk"]
