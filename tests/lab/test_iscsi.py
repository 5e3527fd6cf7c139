"""Pools on iSCSI targets: the kernel's own target (LIO) and open-iscsi, over the loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends import errors
from backends.base import BackendContext
from backends.host import commands, initiator
from backends.host.marks import MarkStore
from backends.registry import pool_type
from backends.spec import Host, SourceQuery
from controller.secrets import FileSecrets
from tests.keeper import Keeper, pool, pool_key, run_in_child, volume, volume_key
from tests.lab import targets
from tests.lab.spare import IN_GUEST, MIB, run
from tests.lab.targets import Disk, Target, sessions, wait_until

pytestmark = pytest.mark.skipif(not IN_GUEST, reason="needs a kernel whose targets are its own")

IQN = "iqn.2024-01.org.example:store"
SAN, LUN0, LUN1 = pool_key("san"), volume_key("lun0"), volume_key("lun1")
SECRET = "a-password-nobody-sees"
MUTUAL = "the-password-of-the-target"


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(tmp_path / "state", secrets=FileSecrets(tmp_path / "secrets"))
    yield made
    made.store.close()


@pytest.fixture(scope="module", autouse=True)
def daemon() -> Iterator[None]:
    with targets.initiator():
        yield


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[list[Disk]]:
    made = [Disk(tmp_path, "disk0", 64 * MIB), Disk(tmp_path, "disk1", 32 * MIB)]
    yield made
    for disk in made:
        disk.remove()


@pytest.fixture
def target(disks: list[Disk]) -> Iterator[Target]:
    made = Target(IQN, "127.0.0.1:3260", "[::1]:3261")
    made.give(0, disks[0])
    made.give(1, disks[1])
    yield made
    made.up()
    targets.log_out()
    made.remove()


def san(*hosts: dict[str, Any], target: str = "/dev/disk/by-path", **source: Any) -> dict[str, Any]:
    portals = list(hosts) or [{"name": "127.0.0.1"}]
    spec = {"hosts": portals, "device": {"path": IQN}, **source.pop("iscsi", {})}
    return pool("san", type="iscsi", iscsi=spec, target={"path": target}, **source)


def keep_secret(keeper: Keeper, name: str, value: str) -> None:
    place = keeper.state.parent / "secrets"
    place.mkdir(mode=0o700, exist_ok=True)
    file = place / name
    file.write_text(value)
    file.chmod(0o600)


def start(keeper: Keeper, *documents: dict[str, Any]) -> None:
    keeper.apply(*documents)
    keeper.settle()


def records() -> list[Path]:
    return [
        path
        for base in ("/etc/iscsi", "/var/lib/iscsi")
        for path in Path(base).rglob("poolkeeper-*")
        if not path.is_symlink()
    ]


def test_a_pool_logs_in_shows_its_luns_and_logs_out(keeper: Keeper, target: Target) -> None:
    start(keeper, san())
    keeper.assert_ready(SAN)
    status = keeper.get(SAN).status
    assert (status.state, status.capacity, status.available) == ("Running", 96 * MIB, 0)
    found = {item.name: item.capacity for item in status.discovered}
    assert found == {"unit:0:0:0": 64 * MIB, "unit:0:0:1": 32 * MIB}
    written, spawned = keeper.recorded(), commands.spawned()
    keeper.reconcile()
    assert (keeper.recorded(), commands.spawned()) == (written, spawned)
    assert keeper.planned() == {}
    start(keeper, san(state="Inactive"))
    keeper.assert_ready(SAN)
    assert keeper.get(SAN).status.state == "Inactive"
    assert sessions() == []
    assert records() == []
    start(keeper, san())
    keeper.assert_ready(SAN)
    assert len(sessions()) == 1


def test_a_lun_is_adopted_by_its_serial_and_never_deleted(keeper: Keeper, target: Target) -> None:
    declared = volume("lun0", "san", volume_name="unit:0:0:0", capacity="64Mi",
                      deletion_policy="Delete")  # fmt: skip
    start(keeper, san(), declared)
    keeper.assert_ready(SAN, LUN0)
    status = keeper.get(LUN0).status
    assert status.path == f"/dev/disk/by-path/ip-127.0.0.1:3260-iscsi-{IQN}-lun-0"
    assert status.key == run("/lib/udev/scsi_id", "-g", "-u", "-d", status.path).strip()
    assert (status.type, status.origin, status.capacity) == ("block", "Adopted", 64 * MIB)
    keeper.delete(LUN0)
    keeper.settle()
    assert keeper.gone(LUN0)
    assert Path(status.path).is_block_device()


def test_what_the_target_does_not_give_is_not_made(keeper: Keeper, target: Target) -> None:
    start(keeper, san(), volume("lun1", "san", volume_name="unit:0:0:9", capacity="32Mi"))
    keeper.assert_ready(SAN)
    assert "found and not made" in keeper.assert_stalled(LUN1, "Unsupported")


def test_luns_that_come_grow_and_go_are_seen(
    keeper: Keeper, target: Target, disks: list[Disk]
) -> None:
    declared = volume("lun1", "san", volume_name="unit:0:0:1", capacity="32Mi")
    start(keeper, san(), declared)
    keeper.assert_ready(LUN1)
    target.give(2, disks[0])
    disks[1].grow(48 * MIB)
    keeper.settle()
    found = {item.name: item.capacity for item in keeper.get(SAN).status.discovered}
    assert found["unit:0:0:2"] == 64 * MIB
    assert keeper.get(LUN1).status.capacity == 48 * MIB
    assert "48Mi" in keeper.assert_stalled(LUN1, "ShrinkNotAllowed")
    declared["spec"]["capacity"] = "96Mi"
    start(keeper, declared)
    assert "iSCSI target sets" in keeper.assert_stalled(LUN1, "Unsupported")
    declared["spec"]["capacity"] = "48Mi"
    start(keeper, declared)
    keeper.assert_ready(LUN1)
    target.take(1)
    keeper.settle()
    assert "no longer gives it" in keeper.assert_retrying(LUN1, "ProbeFailed")
    keeper.assert_ready(SAN)
    target.give(1, disks[1])
    keeper.settle()
    keeper.assert_ready(LUN1)


def test_another_lun_under_the_same_number_is_not_the_volume(
    keeper: Keeper, target: Target, disks: list[Disk], tmp_path: Path
) -> None:
    declared = volume("lun1", "san", volume_name="unit:0:0:1", capacity="32Mi")
    start(keeper, san(), declared)
    known = keeper.get(LUN1).status.key
    other = Disk(tmp_path, "other", 32 * MIB)
    target.take(1)
    target.give(1, other)
    try:
        keeper.settle()
        assert known in keeper.assert_stalled(LUN1, "DeviceChanged")
        links = {item.name for item in Path("/dev/disk/by-id").iterdir()}
        assert f"scsi-{known}" not in links
        target.take(1)
        target.give(1, disks[1])
        keeper.settle()
        keeper.assert_ready(LUN1)
        assert Path(f"/dev/disk/by-id/scsi-{known}").is_block_device()
    finally:
        target.take(1)
        other.remove()


def test_an_unplugged_lun_is_found_again_under_its_name(keeper: Keeper, target: Target) -> None:
    declared = volume("lun0", "san", volume_name="unit:0:0:0", capacity="64Mi")
    start(keeper, san(), declared)
    before = keeper.get(LUN0).status
    node = Path(before.path).resolve()
    Path("/sys/block", node.name, "device/delete").write_text("1")
    assert not node.exists()
    keeper.settle()  # a look asks the target for what it has
    keeper.assert_ready(LUN0)
    assert (keeper.get(LUN0).status.path, keeper.get(LUN0).status.key) == (before.path, before.key)


def test_a_target_that_goes_down_is_inaccessible_and_comes_back(
    keeper: Keeper, target: Target
) -> None:
    declared = volume("lun0", "san", volume_name="unit:0:0:0", capacity="64Mi")
    start(keeper, san(), declared)
    known = keeper.get(SAN).status
    target.down()
    wait_until(lambda: all(item.state != initiator.LOGGED_IN for item in initiator.sessions()))
    keeper.settle()
    assert "failed" in keeper.assert_retrying(SAN, "Inaccessible")
    keeper.assert_retrying(LUN0, "PoolNotReady")
    status = keeper.get(SAN).status
    assert (status.state, status.capacity) == ("Inaccessible", known.capacity)
    target.up()
    wait_until(lambda: all(item.state == initiator.LOGGED_IN for item in initiator.sessions()))
    keeper.settle()
    keeper.assert_ready(SAN, LUN0)
    assert keeper.get(SAN).status.state == "Running"


def go_down(target: Target) -> None:
    target.down()
    wait_until(lambda: all(item.state != initiator.LOGGED_IN for item in initiator.sessions()))


def test_a_pool_whose_target_is_down_stops_and_starts_when_it_is_back(
    keeper: Keeper, target: Target
) -> None:
    start(keeper, san())
    keeper.assert_ready(SAN)
    go_down(target)
    start(keeper, san(state="Inactive"))
    keeper.assert_ready(SAN)
    assert keeper.get(SAN).status.state == "Inactive"
    assert (sessions(), records()) == ([], [])
    start(keeper, san())
    keeper.assert_retrying(SAN, "Inaccessible")
    target.up()
    keeper.settle()
    keeper.assert_ready(SAN)


@pytest.mark.parametrize("policy", ["Undefine", "Delete"])
def test_a_pool_whose_target_is_down_can_be_undefined(
    keeper: Keeper, target: Target, policy: str
) -> None:
    start(keeper, san(deletionPolicy=policy))
    keeper.assert_ready(SAN)
    go_down(target)
    keeper.delete(SAN)
    keeper.settle()
    assert keeper.gone(SAN)
    assert (sessions(), records()) == ([], [])


def test_what_stands_on_a_target_that_is_down_keeps_the_session(
    keeper: Keeper, target: Target
) -> None:
    start(keeper, san(deletionPolicy="Undefine"))
    lun = Path(f"/dev/disk/by-path/ip-127.0.0.1:3260-iscsi-{IQN}-lun-0")
    with lun.open("rb") as opened:
        holder = subprocess.Popen(["sleep", "600"], stdin=opened)
    try:
        go_down(target)
        keeper.delete(SAN)
        keeper.settle()
        assert str(holder.pid) in keeper.assert_retrying(SAN, "InUse")
        assert len(sessions()) == 1
    finally:
        holder.kill()
        holder.wait()
    keeper.settle()
    assert keeper.gone(SAN)
    assert sessions() == []


def test_a_session_of_others_is_left_also_while_the_target_is_down(
    keeper: Keeper, target: Target
) -> None:
    run("iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", "127.0.0.1")
    run("iscsiadm", "-m", "node", "-T", IQN, "-p", "127.0.0.1:3260", "--login")
    start(keeper, san(deletionPolicy="Undefine"))
    go_down(target)
    keeper.delete(SAN)
    keeper.settle()
    assert len(sessions()) == 1


def test_a_target_that_is_down_from_the_start_is_told_within_its_deadline(
    keeper: Keeper, target: Target
) -> None:
    target.down()
    start(keeper, san({"name": "127.0.0.1", "port": 3262}))
    assert "127.0.0.1:3262 can't be reached" in keeper.assert_retrying(SAN, "Inaccessible")
    start(keeper, san())
    keeper.assert_retrying(SAN, "Inaccessible")
    assert records() == []
    target.up()
    keeper.settle()
    keeper.assert_ready(SAN)


def test_a_target_that_the_portal_does_not_offer_is_named(keeper: Keeper, target: Target) -> None:
    start(keeper, san(iscsi={"device": {"path": f"{IQN}-other"}}))
    assert f"it offers {IQN}" in keeper.assert_retrying(SAN, "Inaccessible")


def test_the_next_portal_is_tried_and_ipv6_serves(keeper: Keeper, target: Target) -> None:
    start(keeper, san({"name": "127.0.0.1", "port": 3262}, {"name": "::1", "port": 3261}))
    keeper.assert_ready(SAN)
    assert Path(f"/dev/disk/by-path/ip-::1:3261-iscsi-{IQN}-lun-0").is_block_device()


def test_a_declared_initiator_name_is_used(keeper: Keeper, target: Target) -> None:
    start(keeper, san(iscsi={"initiator": "iqn.2024-01.org.example:pool"}))
    keeper.assert_ready(SAN)
    (session,) = initiator.sessions()
    assert session.initiator == "iqn.2024-01.org.example:pool"
    assert session.ours


def test_a_session_of_others_is_used_and_left(keeper: Keeper, target: Target) -> None:
    portal = ("-T", IQN, "-p", "127.0.0.1:3260")
    run("iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", "127.0.0.1")
    run("iscsiadm", "-m", "node", *portal, "--login")
    start(keeper, san())
    keeper.assert_ready(SAN)
    assert len(sessions()) == 1
    start(keeper, san(state="Inactive"))
    keeper.assert_ready(SAN)
    assert len(sessions()) == 1
    keeper.delete(SAN)
    keeper.settle()
    assert len(sessions()) == 1


def test_a_pool_does_not_stop_under_what_stands_on_it(
    keeper: Keeper, target: Target, tmp_path: Path
) -> None:
    start(keeper, san())
    lun = f"/dev/disk/by-path/ip-127.0.0.1:3260-iscsi-{IQN}-lun-0"
    run("mkfs.ext4", "-q", lun)
    point = tmp_path / "point"
    point.mkdir()
    run("mount", lun, point)
    start(keeper, san(state="Inactive"))
    assert str(point) in keeper.assert_retrying(SAN, "InUse")
    assert len(sessions()) == 1
    run("umount", point)
    keeper.settle()
    keeper.assert_ready(SAN)
    assert sessions() == []


@pytest.mark.parametrize("spelled_out", [{}, {"initiator": targets.INITIATOR}], ids=str)
def test_two_pools_on_one_target_conflict(
    keeper: Keeper, target: Target, spelled_out: dict[str, str]
) -> None:
    start(keeper, san())
    other = san(iscsi=spelled_out)
    other["metadata"]["name"] = "san2"
    start(keeper, other)
    keeper.assert_stalled(pool_key("san2"), "Conflict")
    assert len(sessions()) == 1


CHAP = {"auth": {"type": "chap", "username": "host", "secretRef": {"name": "chap"}}}
BOTH_WAYS = {
    **CHAP,
    "mutualAuth": {"username": "target", "secretRef": {"name": "mutual"}},
}


class Started:
    """What the processes that this one starts are given, as /proc shows it to every user."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self.watching = True
        sys.addaudithook(self._hook)  # it can't be removed

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and self.watching:
            _, argv, _, environment = arguments
            self.given.append(f"{argv} {environment}")


def assert_shown_nowhere(keeper: Keeper, secret: str) -> None:
    for file in keeper.state.rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file
    told = json.dumps([str(keeper.told()), str(keeper.events()), str(keeper.plans())])
    assert secret not in told


def test_chap_lets_in_and_its_password_never_shows(
    keeper: Keeper, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    target.ask("host", SECRET, mutual=("target", MUTUAL))
    keep_secret(keeper, "chap", SECRET)
    keep_secret(keeper, "mutual", MUTUAL)
    started = Started()
    start(keeper, san(iscsi=BOTH_WAYS))
    started.watching = False
    keeper.assert_ready(SAN)
    assert any("--login" in item for item in started.given)
    for secret in (SECRET, MUTUAL):
        assert not [item for item in started.given if secret in item]
        assert_shown_nowhere(keeper, secret)
        assert secret not in caplog.text
    kept = [path for path in records() if SECRET in path.read_text()]
    assert [path.stat().st_mode & 0o777 for path in kept] == [0o600]
    start(keeper, san(iscsi=BOTH_WAYS, state="Inactive"))
    assert records() == []


def test_chap_one_way(keeper: Keeper, target: Target) -> None:
    target.ask("host", SECRET)
    keep_secret(keeper, "chap", SECRET)
    start(keeper, san(iscsi=CHAP))
    keeper.assert_ready(SAN)


@pytest.mark.parametrize("given", [{}, CHAP], ids=["no CHAP", "wrong password"])
def test_a_refused_login_says_so_and_leaves_no_password(
    keeper: Keeper, target: Target, given: dict[str, Any]
) -> None:
    target.ask("host", SECRET)
    keep_secret(keeper, "chap", "wrong-password-here")
    start(keeper, san(iscsi=given))
    assert "does not let this initiator in" in keeper.assert_retrying(SAN, "PermissionRefused")
    assert records() == []
    assert sessions() == []
    keep_secret(keeper, "chap", SECRET)
    start(keeper, san(iscsi=CHAP))
    keeper.assert_ready(SAN)


def test_a_target_that_can_not_prove_itself_is_left(keeper: Keeper, target: Target) -> None:
    target.ask("host", SECRET, mutual=("target", "another-password-than-ours"))
    keep_secret(keeper, "chap", SECRET)
    keep_secret(keeper, "mutual", MUTUAL)
    start(keeper, san(iscsi=BOTH_WAYS))
    assert "did not prove itself" in keeper.assert_retrying(SAN, "PermissionRefused")
    assert sessions() == []


def test_a_password_that_would_break_the_record_is_refused(keeper: Keeper, target: Target) -> None:
    keep_secret(keeper, "chap", "first\nnode.startup = automatic")
    start(keeper, san(iscsi=CHAP))
    told = keeper.assert_stalled(SAN, "InvalidSpec")
    assert "automatic" not in told
    assert sessions() == []
    assert records() == []


@pytest.mark.parametrize("logged_in", [False, True])
def test_an_ordinary_user_is_told_that_only_root_may(
    keeper: Keeper, target: Target, tmp_path: Path, logged_in: bool
) -> None:
    if logged_in:
        start(keeper, san())
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 1000, 1000)

    def work() -> None:
        theirs = Keeper(home / "state")
        start(theirs, san())
        told = theirs.assert_retrying(SAN, "PermissionRefused")
        assert "initiatorname.iscsi" in told if logged_in else "Only root" in told

    Path("/etc/iscsi/initiatorname.iscsi").chmod(0o600)  # as Debian has it
    run_in_child(work, uid=1000)


def test_sources_are_found(keeper: Keeper, target: Target) -> None:
    made = pool_type("iscsi").backend
    assert made is not None
    backend = made(BackendContext(marks=MarkStore(keeper.state)))
    for asking in (None, "iqn.2024-01.org.example:asking"):
        query = SourceQuery(type="iscsi", host=Host(name="127.0.0.1"), initiator=asking)
        (found,) = backend.find_sources(query)
        shown = found.dump()
        assert shown["device"] == {"path": IQN}
        assert shown["hosts"] == [{"name": "127.0.0.1"}, {"name": "::1", "port": 3261}]
        assert shown.get("initiator") == asking
    assert records() == []
    with pytest.raises(errors.Inaccessible, match="can't be reached"):
        backend.find_sources(SourceQuery(type="iscsi", host=Host(name="127.0.0.1", port=9)))
    with pytest.raises(errors.InvalidSpec):
        backend.find_sources(None)


def test_contents_are_read_and_written_for_the_owner_alone(keeper: Keeper, target: Target) -> None:
    declared = volume("lun0", "san", volume_name="unit:0:0:0", capacity="64Mi")
    start(keeper, san(), declared)
    (examined,) = keeper.plans()
    pool_, backend, (item,) = examined.pool, examined.backend, examined.volumes
    assert pool_ is not None
    assert backend is not None
    assert item.volume is not None
    with backend.open_volume(pool_, item.volume, write=True) as opened:
        assert (opened.kind, opened.size, opened.fd is not None) == ("block", 64 * MIB, True)
        assert os.pwrite(opened.fd or -1, b"x" * 4096, 8192) == 4096
    with backend.open_volume(pool_, item.volume) as opened:
        assert os.pread(opened.fd or -1, 4096, 8192) == b"x" * 4096
    keeper.apply(volume("lun1", "san", volume_name="unit:0:0:1", capacity="32Mi"))
    other = keeper.plans()[0].volumes[-1].volume
    assert other is not None
    with pytest.raises(errors.OwnedByOther), backend.open_volume(pool_, other, write=True):
        pass

    path = keeper.get(LUN0).status.path
    run("mkswap", path)
    run("swapon", path)
    try:
        assert "it is swap space in use" in backend.users(pool_, item.volume)
        with (
            pytest.raises(errors.InUse, match="swap space in use"),
            backend.open_volume(pool_, item.volume, write=True),
        ):
            pass
    finally:
        run("swapoff", path)
