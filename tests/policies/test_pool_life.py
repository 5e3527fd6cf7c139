"""Building, starting, stopping, suspending: what a pool's spec says of its life."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from backends.host import mounts
from tests.keeper import (
    Keeper,
    dir_pool,
    marked,
    pool_key,
    run_in_child,
    tree,
    volume,
    volume_key,
)

POOL = pool_key("images")
DISK = volume_key("disk")


def start(keeper, images, *volumes, **spec):
    keeper.apply(dir_pool("images", images, **spec), *volumes)
    keeper.settle()


def disk(**spec):
    return volume("disk", "images", **{"capacity": "1Mi", **spec})


def lose(images):
    images.rename(images.with_name("lost"))


def test_a_pool_that_may_not_be_built_waits_until_it_is_there(keeper, images):
    start(keeper, images, build={"policy": "Never"})
    assert "build.policy Never" in keeper.assert_retrying(POOL, "NotFound")
    assert not images.exists()
    images.mkdir()
    keeper.settle()
    keeper.assert_ready(POOL)


def test_an_overwrite_confirmed_with_another_name_is_refused(keeper, images):
    start(keeper, images, build={"policy": "Overwrite", "confirm": "imagse"})
    keeper.assert_stalled(POOL, "OverwriteRefused")
    assert not images.exists()


def test_a_confirmed_overwrite_begins_anew_once(keeper, images):
    start(keeper, images, disk(recreation="IfMissing"))
    lose(images)
    keeper.settle()
    keeper.assert_retrying(POOL, "Inaccessible")
    overwrite = {"policy": "Overwrite", "confirm": "images"}
    start(keeper, images, disk(recreation="IfMissing"), build=overwrite)
    keeper.assert_ready(POOL, DISK)
    assert marked(images)["origin"] == "Created"
    images.rename(images.with_name("lost again"))
    keeper.settle()
    keeper.assert_retrying(POOL, "Inaccessible")
    assert not images.exists()


def test_a_confirmed_overwrite_uses_the_directory_that_stands_there_now(keeper, images):
    start(keeper, images)
    lose(images)
    images.mkdir()
    (images / "kept").write_bytes(b"data")
    keeper.settle()
    keeper.assert_retrying(POOL, "Inaccessible")
    start(keeper, images, build={"policy": "Overwrite", "confirm": "images"})
    keeper.assert_ready(POOL)
    assert marked(images)["origin"] == "Adopted"
    assert (images / "kept").read_bytes() == b"data"


def test_a_pool_declared_inactive_is_not_built(keeper, images):
    start(keeper, images, disk(), state="Inactive")
    keeper.assert_ready(POOL)
    keeper.assert_retrying(DISK, "PoolNotReady")
    assert not images.exists()
    assert keeper.planned() == {}
    start(keeper, images, state="Active")
    keeper.assert_ready(POOL, DISK)


def test_a_pool_with_autostart_runs_after_a_reboot(keeper, images):
    start(keeper, images, disk())
    keeper.reboot("boot-2")
    assert keeper.planned() == {str(POOL): ["StartPool"]}
    keeper.settle()
    keeper.assert_ready(POOL, DISK)
    assert keeper.get(POOL).status.boot_id == "boot-2"
    assert keeper.reasons(POOL) == ["Defined", "Built", "Started"]  # one event, counted twice


def test_a_pool_without_autostart_stays_down_after_a_reboot_until_its_spec_changes(keeper, images):
    start(keeper, images, disk(), autostart=False)
    keeper.reboot("boot-2")
    keeper.settle()
    assert keeper.get(POOL).status.state == "Inactive"
    assert keeper.reason(POOL) == "NotAutostarted"
    keeper.assert_retrying(DISK, "PoolNotReady")
    keeper.settle()
    assert keeper.get(POOL).status.state == "Inactive"
    start(keeper, images, autostart=False, refresh={"interval": "1m"})
    keeper.assert_ready(POOL, DISK)
    assert keeper.get(POOL).status.boot_id == "boot-2"


def test_a_start_that_the_spec_asked_for_is_tried_until_it_succeeds(keeper, images):
    start(keeper, images, autostart=False)
    keeper.reboot("boot-2")
    keeper.settle()
    lose(images)
    start(keeper, images, autostart=False, refresh={"interval": "1m"})
    keeper.assert_retrying(POOL, "Inaccessible")
    images.with_name("lost").rename(images)
    keeper.settle()
    keeper.assert_ready(POOL)
    assert keeper.get(POOL).status.state == "Running"


def test_a_transient_pool_goes_with_a_reboot_and_leaves_its_data(keeper, images):
    start(keeper, images, disk(), transient=True)
    assert keeper.get(POOL).status.persistent is False
    before = tree(images)
    keeper.reboot("boot-2")
    keeper.settle()
    assert keeper.gone(POOL)
    assert tree(images) == before
    keeper.assert_retrying(DISK, "PoolNotFound")


@pytest.mark.parametrize("policy", ["Retain", "Undefine", "Delete"])
def test_a_transient_pool_goes_when_it_is_stopped(keeper, images, policy):
    start(keeper, images, transient=True, deletion_policy=policy)
    keeper.settle()
    start(keeper, images, transient=True, deletion_policy=policy, state="Inactive")
    assert keeper.gone(POOL)
    assert images.exists() == (policy != "Delete")


def test_a_suspended_pool_and_its_volumes_are_reported_and_not_changed(keeper, images):
    start(keeper, images, disk(permissions={"mode": "0640"}))
    os.chmod(images / "disk", 0o604)
    before = tree(images)
    mode = {"permissions": {"mode": "0750"}}
    start(
        keeper, images, disk(permissions={"mode": "0640"}, capacity="2Mi"),
        volume("new", "images", capacity="1Mi"), suspend=True, target=mode,
    )  # fmt: skip
    assert tree(images) == before
    assert keeper.reason(POOL, "InSync") == "Drifted"
    drifted = [(item.field, item.desired, item.observed) for item in keeper.get(POOL).status.drift]
    assert drifted == [("target.permissions.mode", "0750", "0711")]
    assert {item.field for item in keeper.get(DISK).status.drift} == {
        "capacity",
        "permissions.mode",
    }
    assert keeper.truth(volume_key("new"), "Ready") == "False"
    (images / "strange").write_bytes(b"x")
    keeper.reconcile()
    assert keeper.get(POOL).status.volumes.unmanaged == 1
    start(keeper, images, target=mode)
    keeper.assert_ready(POOL, DISK, volume_key("new"))
    assert images.stat().st_mode & 0o777 == 0o750


def test_a_suspended_volume_is_left_alone_in_a_pool_that_is_kept(keeper, images):
    start(keeper, images, disk(suspend=True), volume("other", "images", capacity="1Mi"))
    assert os.listdir(images) == ["other"]
    assert keeper.truth(DISK, "Ready") == "False"
    start(keeper, images, disk())
    keeper.assert_ready(DISK)


def test_a_pool_suspended_before_it_was_built_is_not_ready(keeper, images):
    start(keeper, images, suspend=True)
    assert not images.exists()
    assert (keeper.truth(POOL, "Ready"), keeper.reason(POOL)) == ("False", "Suspended")


def test_a_request_to_look_now_is_echoed(keeper, images):
    start(keeper, images, disk())
    for key in (POOL, DISK):
        keeper.annotate(key, requested_at="2026-01-02T03:04:05Z")
    keeper.reconcile()
    for key in (POOL, DISK):
        assert keeper.get(key).status.last_handled_request == "2026-01-02T03:04:05Z"


def test_volume_defaults_stand_for_what_a_volume_leaves_out(keeper, images):
    start(
        keeper, images,
        volume("plain", "images", capacity="1Mi"),
        volume("own", "images", capacity="1Mi", permissions={"mode": "0600"}),
        volume("tree", "images", format="dir"),
        volume_defaults={"permissions": {"mode": "0664", "group": os.getegid()}},
    )  # fmt: skip
    assert (images / "plain").stat().st_mode & 0o777 == 0o664
    assert (images / "own").stat().st_mode & 0o777 == 0o600
    assert (images / "tree").stat().st_mode & 0o777 == 0o664
    assert keeper.planned() == {}


def test_a_pool_of_another_node_is_left_to_it(keeper, images):
    keeper.apply(
        dir_pool("images", images, node_name="elsewhere", deletion_policy="Delete"),
        disk(deletion_policy="Delete"),
    )
    assert keeper.names() == []
    keeper.engine.reconcile("images")
    assert not images.exists()
    for key in (POOL, DISK):
        found = keeper.get(key)
        assert found.status.observed_generation == -1
        assert found.metadata.finalizers == ()


def test_a_directory_that_may_not_be_read_is_inaccessible_and_left_as_it_is(monkeypatch):
    root = Path(tempfile.mkdtemp(prefix="unreadable-"))
    nobody = 65534 if os.geteuid() == 0 else None  # root may read everything
    if nobody is not None:
        os.chown(root, nobody, nobody)
    fixed = mounts.Space(capacity=2**40, available=2**39, allocation=2**39)
    monkeypatch.setattr(mounts, "space", lambda fd: fixed)
    images = root / "images"

    def as_an_ordinary_user():
        keeper = Keeper(root / "state")
        start(keeper, images, disk())
        keeper.assert_ready(POOL, DISK)
        os.chmod(images, 0)
        keeper.settle()
        keeper.assert_retrying(POOL, "Inaccessible")
        keeper.assert_retrying(DISK, "PoolNotReady")
        assert images.stat().st_mode & 0o777 == 0
        assert keeper.get(POOL).status.volumes.total == 1
        os.chmod(images, 0o711)
        keeper.settle()
        keeper.assert_ready(POOL, DISK)

    try:
        run_in_child(as_an_ordinary_user, uid=nobody)
    finally:
        shutil.rmtree(root)
