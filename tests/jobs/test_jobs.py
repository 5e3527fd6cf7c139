"""Long steps run as jobs: what goes on meanwhile, what ends them, and what is told of them."""

import os
import threading
import types
from unittest import mock

import pytest

from backends import errors
from backends.base import Progress
from controller import jobs as jobs_module
from controller import retrying
from controller.agent import Agent
from controller.engine import Engine
from controller.jobs import FIRST_REPORT, REPORT_EVERY, Job, Jobs
from tests.jobs.conftest import PATIENCE, SlowBackend, wait_until
from tests.keeper import dir_pool, pool_key, volume, volume_key

POOL = pool_key("images")
SLOW = volume_key("slow")


def slow(name="slow", **spec):
    return volume(name, "images", **{"capacity": "1Mi", **spec})


def test_other_volumes_are_made_while_a_job_runs_and_its_leftovers_are_left_alone(keeper, images):
    keeper.begin(dir_pool("images", images), slow())
    assert keeper.running() == ["slow"]
    keeper.apply(volume("quick", "images", capacity="1Mi"))
    for _ in range(3):
        keeper.reconcile()
    keeper.assert_ready(POOL, volume_key("quick"))
    assert keeper.truth(SLOW, "Ready") == "False"
    assert (keeper.reason(SLOW), keeper.truth(SLOW, "Reconciling")) == ("Progressing", "True")
    assert keeper.reasons(SLOW) == []
    assert keeper.backend.begun["slow"] == 1
    assert sorted(os.listdir(images)) == ["quick"]
    keeper.let_go()
    keeper.settle()
    keeper.assert_ready(SLOW)
    assert sorted(os.listdir(images)) == ["quick", "slow"]
    assert keeper.backend.begun["slow"] == 1
    assert keeper.reasons(SLOW).count("Created") == 1
    assert keeper.planned() == {}


def test_a_pass_that_only_waits_for_jobs_is_not_to_be_repeated_soon(keeper, images):
    keeper.begin(dir_pool("images", images), slow())
    (outcome,) = keeper.reconcile()
    assert not outcome.retry
    assert not outcome.acted
    keeper.let_go()
    (outcome,) = keeper.reconcile()
    assert outcome.acted  # others may have waited for it


def test_what_runs_and_what_ended_can_be_read(keeper, images):
    keeper.backend.progress = Progress(done=512, total=2048)
    keeper.begin(dir_pool("images", images), slow())
    wait_until(lambda: keeper.engine.jobs.snapshot()[0].total == 2048)
    (running,) = keeper.engine.jobs.snapshot()
    assert (running.task.verb, running.task.pool, running.percent) == ("CreateVolume", "images", 25)
    keeper.let_go()
    assert keeper.engine.jobs.snapshot() == ()
    assert keeper.engine.jobs.counts() == {("CreateVolume", "Succeeded"): 1}


def engine_with(keeper, jobs):
    former = keeper.engine
    keeper.engine = Engine(
        keeper.store, keeper.backend.context, node=former.node, boot=former.boot, jobs=jobs
    )
    keeper.engine.examiner.backend = lambda type_name: keeper.backend


def test_progress_stands_in_the_status_and_goes_when_the_job_ends(keeper, images):
    engine_with(keeper, Jobs(report_every=0.0))
    keeper.backend.progress = Progress(done=300, total=1000)
    keeper.begin(dir_pool("images", images), slow())
    wait_until(lambda: keeper.get(SLOW).status.progress.percent == 30)
    progress = keeper.get(SLOW).status.progress
    assert (progress.operation, progress.bytes_done, progress.bytes_total) == (
        "CreateVolume", 300, 1000,
    )  # fmt: skip
    keeper.reconcile()
    assert keeper.get(SLOW).status.progress == progress
    keeper.let_go()
    keeper.settle()
    assert keeper.get(SLOW).status.progress is None


def test_progress_is_written_only_now_and_then_and_only_where_the_percentage_moved(keeper, images):
    moved = []
    jobs = Jobs(report_every=0.0)
    engine_with(keeper, jobs)
    jobs.moved = lambda job: moved.append(job.published)
    keeper.begin(dir_pool("images", images), slow())
    report = jobs.on(SLOW).work.report
    for done in range(1000):
        report(Progress(done=done, total=100_000))
    assert [item.done for item in moved] == [0]
    report(Progress(done=1000, total=100_000))
    assert [item.done for item in moved] == [0, 1000]


def test_progress_is_written_soon_at_first_and_then_every_few_seconds(keeper, images, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(jobs_module, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    moved = []
    job = Job(mock.sentinel.task, lambda job: moved.append(clock[0] - 100), REPORT_EVERY)
    for step in range(200):
        clock[0] = 100 + step / 10
        job.work.report(Progress(done=step, total=200))
    assert moved == pytest.approx([FIRST_REPORT + REPORT_EVERY * turn for turn in range(4)])


def test_no_more_jobs_run_at_once_than_there_is_room_for_and_all_have_their_turn(keeper, images):
    engine_with(keeper, Jobs(per_pool=2, per_node=3))
    other = images.with_name("other")
    names = [f"slow{number}" for number in range(4)]
    keeper.begin(
        dir_pool("images", images),
        dir_pool("other", other),
        *[slow(name) for name in names],
        *[volume(f"{name}-o", "other", capacity="1Mi") for name in names],
    )
    assert len(keeper.running()) == 3
    assert all(not item.retry for item in keeper.reconcile())
    woken = []
    keeper.engine.jobs.wake = woken.extend
    keeper.let_go()
    assert {"images", "other"} <= set(woken)
    keeper.settle(12)
    keeper.assert_ready(*[volume_key(name) for name in names])
    assert sorted(os.listdir(images)) == names
    assert set(keeper.backend.begun.values()) == {1}


def test_a_job_of_a_deleted_volume_is_cancelled_and_leaves_nothing(keeper, images):
    keeper.begin(dir_pool("images", images), slow(deletion_policy="Delete"))
    keeper.delete(SLOW)
    keeper.reconcile()
    assert not keeper.gone(SLOW)  # not before the job ended
    assert keeper.engine.jobs.idle(PATIENCE)
    keeper.settle()
    assert keeper.gone(SLOW)
    assert os.listdir(images) == []
    assert keeper.engine.jobs.counts() == {("CreateVolume", "Cancelled"): 1}


def test_a_job_of_a_volume_that_went_at_once_is_cancelled(keeper, images):
    keeper.begin(dir_pool("images", images), slow(deletion_policy="Retain"))
    keeper.delete(SLOW)
    assert keeper.gone(SLOW)
    keeper.reconcile()
    assert keeper.engine.jobs.idle(PATIENCE)
    assert os.listdir(images) == []


def test_a_suspended_volume_is_not_made_on(keeper, images):
    keeper.begin(dir_pool("images", images), slow())
    keeper.begin(slow(suspend=True))
    assert keeper.engine.jobs.idle(PATIENCE)
    keeper.settle()
    assert os.listdir(images) == []
    keeper.backend.gate.set()
    keeper.apply(slow(suspend=False))
    keeper.settle()
    keeper.assert_ready(SLOW)


def test_a_changed_capacity_begins_anew_and_changed_permissions_do_not(keeper, images):
    keeper.begin(dir_pool("images", images), slow())
    keeper.begin(slow(permissions={"mode": "0640"}, deletion_policy="Delete"))
    assert keeper.running() == ["slow"]
    keeper.begin(slow(capacity="2Mi"))
    assert keeper.engine.jobs.idle(PATIENCE)
    assert keeper.backend.begun["slow"] == 1
    keeper.reconcile()
    assert keeper.running() == ["slow"]
    keeper.let_go()
    keeper.settle()
    keeper.assert_ready(SLOW)
    assert keeper.get(SLOW).status.capacity == 2 * 2**20


def test_permissions_that_changed_meanwhile_are_set_afterwards(keeper, images):
    keeper.begin(dir_pool("images", images), slow(permissions={"mode": "0600"}))
    keeper.begin(slow(permissions={"mode": "0640"}))
    keeper.let_go()
    keeper.settle()
    keeper.assert_ready(SLOW)
    assert (images / "slow").stat().st_mode & 0o777 == 0o640
    assert keeper.backend.begun["slow"] == 1


@pytest.mark.parametrize("policy", ["Undefine", "Delete"])
def test_a_pool_is_not_deleted_while_a_job_runs_in_it(keeper, images, policy):
    keeper.begin(dir_pool("images", images, deletion_policy=policy), slow())
    keeper.delete(POOL)
    keeper.reconcile()
    told = keeper.message(POOL)
    assert "slow" in told
    if policy == "Undefine":
        assert keeper.reason(POOL) == "InUse"
    keeper.let_go()
    keeper.settle()
    assert (images / "slow").stat().st_size == 2**20
    assert keeper.gone(POOL) is (policy == "Undefine")


def test_a_pool_is_not_stopped_while_a_job_runs_in_it(keeper, images):
    keeper.begin(dir_pool("images", images), slow())
    keeper.begin(dir_pool("images", images, state="Inactive"))
    assert "CreateVolume" in keeper.assert_retrying(POOL, "InUse")
    assert keeper.get(POOL).status.state == "Running"
    keeper.let_go()
    keeper.settle()
    assert keeper.get(POOL).status.state == "Inactive"
    assert (images / "slow").exists()


def test_what_failed_is_tried_again_after_a_while_and_says_so(keeper, images, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_RETRY", 600.0)
    keeper.backend.failing["slow"] = errors.NoSpace("There is no room.")
    keeper.backend.gate.set()
    keeper.apply(dir_pool("images", images), slow())
    keeper.settle()
    assert keeper.backend.begun["slow"] == 1
    assert "no room" in keeper.assert_retrying(SLOW, "NoSpace")
    del keeper.backend.failing["slow"]
    keeper.settle()
    assert keeper.backend.begun["slow"] == 1
    keeper.annotate(SLOW, requested_at="now")
    keeper.settle()
    keeper.assert_ready(SLOW)
    assert keeper.backend.begun["slow"] == 2


def test_what_failed_for_good_waits_for_another_spec(keeper, images, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_RETRY", 0.0)
    keeper.backend.failing["slow"] = errors.InvalidSpec("That can't be.")
    keeper.backend.gate.set()
    keeper.apply(dir_pool("images", images), slow())
    keeper.settle()
    keeper.settle()
    assert keeper.backend.begun["slow"] == 1
    keeper.assert_stalled(SLOW, "InvalidSpec")
    del keeper.backend.failing["slow"]
    keeper.apply(slow(capacity="2Mi"))
    keeper.settle()
    keeper.assert_ready(SLOW)


def test_a_mistake_in_a_job_is_a_failure_and_not_the_end(keeper, images, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_RETRY", 0.0)
    keeper.backend.gate.set()

    def broken(self, pool, volume, work):
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(SlowBackend, "create_volume", broken)
        keeper.apply(dir_pool("images", images), slow())
        keeper.reconcile()
        assert keeper.engine.jobs.idle(PATIENCE)
    keeper.settle()
    keeper.assert_ready(SLOW)


def test_an_overlay_waits_for_the_job_that_makes_its_base(keeper, images):
    top = volume(
        "top", "images", format="qcow2",
        backing_store={"format": "raw", "volumeRef": {"name": "slow"}},
    )  # fmt: skip
    keeper.begin(dir_pool("images", images), top, slow())
    keeper.reconcile()
    assert "slow" in keeper.assert_retrying(volume_key("top"), "InUse")
    keeper.let_go()
    keeper.settle()
    keeper.assert_ready(SLOW, volume_key("top"))


def test_a_stopping_agent_cancels_its_jobs_and_the_next_begins_them_anew(keeper, images):
    keeper.apply(dir_pool("images", images), slow())
    stop, ended = threading.Event(), []
    agent = Agent(keeper.store, keeper.engine)
    thread = threading.Thread(target=lambda: ended.append(agent.run(stop)))
    thread.start()
    wait_until(lambda: keeper.backend.begun["slow"])
    stop.set()
    thread.join(PATIENCE)
    assert ended == [True]
    assert keeper.engine.jobs.snapshot() == ()
    assert os.listdir(images) == []
    engine_with(keeper, Jobs())
    keeper.backend.gate.set()
    keeper.settle()
    keeper.assert_ready(SLOW)


def test_an_agent_goes_on_when_a_job_ends(keeper, images):
    keeper.apply(dir_pool("images", images), slow())
    stop = threading.Event()
    agent = Agent(keeper.store, keeper.engine)
    thread = threading.Thread(target=agent.run, args=(stop,))
    thread.start()
    wait_until(lambda: keeper.backend.begun["slow"])
    keeper.backend.gate.set()
    wait_until(lambda: keeper.truth(SLOW, "Ready") == "True")
    stop.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
