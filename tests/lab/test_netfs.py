"""Pools on servers: NFS of several versions, CIFS with a password, GlusterFS, and servers that are
down."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends import errors, mountedvolumes
from backends.base import BackendContext
from backends.host import commands
from backends.host.marks import MarkStore
from backends.netfs import NetfsBackend
from backends.spec import Host, SourceQuery
from controller.agent import Agent
from controller.secrets import FileSecrets
from tests.contract.candidates.netfs import hanging
from tests.keeper import Keeper, dir_pool, image_info, marked, pool, pool_key, volume, volume_key
from tests.lab import servers
from tests.lab.servers import PASSWORD, USER
from tests.lab.spare import IN_GUEST, MIB, run
from tests.lab.targets import wait_until

pytestmark = pytest.mark.skipif(not IN_GUEST, reason="needs a kernel whose servers are its own")

POOL, DISK = pool_key("images"), volume_key("disk")
LOCAL = [{"name": "127.0.0.1"}]


@pytest.fixture
def nfs():
    server = servers.nfs()
    yield server
    if not server.running:
        server.start()
    wait_until(lambda: not hanging())


@pytest.fixture
def cifs(tmp_path):
    made = servers.CifsServer(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def gluster(tmp_path):
    made = servers.GlusterServer(tmp_path)
    yield made
    wait_until(lambda: not hanging())
    made.remove()


@pytest.fixture
def keeper(tmp_path):
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    for name, value in {"good": PASSWORD, "bad": "guessed"}.items():
        (secrets / name).write_text(f"{value}\n")
        (secrets / name).chmod(0o600)
    made = Keeper(tmp_path / "state", secrets=FileSecrets(secrets))
    yield made
    made.store.close()


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "mnt" / "images"
    yield path
    if os.path.ismount(path):
        run("umount", path)


def declaration(target, directory, *, hosts=None, target_spec=None, **spec):
    members = {"hosts": hosts or LOCAL, "directory": directory, **spec.pop("netfs", {})}
    where = {"path": str(target), **(target_spec or {})}
    return pool("images", type="netfs", netfs=members, target=where, **spec)


def on_gluster(target, server, **spec):
    members = {"format": "glusterfs", **spec.pop("netfs", {})}
    hosts = [{"name": server.address}]
    return declaration(target, f"/{server.volume}", hosts=hosts, netfs=members, **spec)


def apply(keeper, *documents):
    keeper.apply(*documents)
    keeper.settle()


def mounted(target):
    return run("findmnt", "--raw", "--noheadings", "--output", "FSTYPE,SOURCE,OPTIONS", target)


@pytest.mark.parametrize(
    ("version", "shown"), [("3", "vers=3"), ("4.1", "vers=4.1"), ("4.2", "vers=4.2")]
)
def test_the_declared_version_of_nfs_is_used(keeper, target, nfs, version, shown):
    made = nfs.directory(f"version-{version}")
    path = str(made) if version == "3" else f"/{made.name}"
    disk = volume("disk", "images", capacity="1Mi", deletion_policy="Delete")
    apply(keeper, declaration(target, path, netfs={"protocolVersion": version}), disk)
    keeper.assert_ready(POOL, DISK)
    assert shown in mounted(target)
    assert {"nodev", "nosuid", "noexec"} <= set(mounted(target).split()[2].split(","))
    assert (made / "disk").stat().st_size == MIB
    # NFS 4.2 keeps extended attributes; with others the mark is in the state directory
    assert bool(marked(made / "disk")) == (version == "4.2")
    keeper.settle()
    assert keeper.planned() == {}
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)
    assert os.listdir(made) == []


def test_nothing_is_made_where_nothing_can_be_marked(keeper, target, nfs):
    """The kernel gives no handles of files by NFS 4.0, and the server keeps no attributes."""
    made = nfs.directory("unmarkable")
    spec = declaration(target, f"/{made.name}", netfs={"protocolVersion": "4.0"})
    apply(keeper, spec, volume("disk", "images", capacity="1Mi"))
    keeper.assert_ready(POOL)
    assert "marked" in keeper.assert_stalled(DISK, "Unsupported")
    assert os.listdir(made) == []


def test_a_mark_in_the_state_directory_outlives_a_mount(keeper, target, nfs):
    made = nfs.directory("remounted")
    spec = declaration(target, str(made), netfs={"protocolVersion": "3"})
    disk = volume("disk", "images", capacity="1Mi", deletion_policy="Delete")
    apply(keeper, spec, disk)
    run("umount", target)
    run("sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
    keeper.settle()
    keeper.assert_ready(POOL, DISK)
    assert keeper.get(DISK).status.origin == "Created"
    keeper.delete(DISK)
    keeper.settle()
    assert os.listdir(made) == []


def test_an_ipv6_address_is_a_server_too(keeper, target, nfs):
    made = nfs.directory("ipv6")
    apply(keeper, declaration(target, f"/{made.name}", hosts=[{"name": "::1"}]))
    keeper.assert_ready(POOL)
    assert f"[::1]:/{made.name}" in mounted(target)


def test_a_directory_that_is_not_exported_is_refused_and_mounted_once_it_is(keeper, target, nfs):
    apply(keeper, declaration(target, "/later", netfs={"format": "nfs"}))
    keeper.assert_retrying(POOL, "CommandFailed")
    assert "mount.nfs" in keeper.message(POOL)
    nfs.directory("later")
    keeper.settle()
    keeper.assert_ready(POOL)


def test_root_may_be_nobody_to_the_server(keeper, target, nfs):
    made = nfs.root.parent / "squashed"
    made.mkdir()
    run("mount", "-t", "tmpfs", "squashed", made)
    made.chmod(0o755)
    nfs.export(made, "root_squash,fsid=7")
    spec = declaration(target, str(made), netfs={"protocolVersion": "3"})
    try:
        apply(keeper, spec, volume("disk", "images", capacity="1Mi"))
        keeper.assert_ready(POOL)
        keeper.assert_retrying(DISK, "PermissionRefused")
        made.chmod(0o777)
        keeper.settle()
        keeper.assert_ready(DISK)
        assert (made / "disk").stat().st_uid == 65534
        apply(keeper, spec | {"spec": {**spec["spec"], "state": "Inactive"}})
    finally:
        run("exportfs", "-u", f"*:{made}")
        run("umount", "--lazy", made)  # nfsd keeps files open for a while


def test_a_guest_uses_an_open_share(keeper, target, cifs):
    disk = volume("disk", "images", capacity="1Mi", format="qcow2", deletion_policy="Delete")
    apply(keeper, declaration(target, "open", netfs={"format": "cifs"}), disk)
    keeper.assert_ready(POOL, DISK)
    assert "//127.0.0.1/open" in mounted(target)
    assert (cifs.open / "disk").exists()
    assert keeper.planned() == {}
    keeper.delete(DISK)
    keeper.settle()
    assert os.listdir(cifs.open) == []


def closed(target, secret):
    auth = {"username": USER, "secretRef": {"name": secret}}
    return declaration(target, "/closed", netfs={"format": "cifs", "auth": auth})


def test_a_password_opens_a_closed_share_and_is_shown_nowhere(keeper, target, cifs, caplog):
    apply(keeper, closed(target, "bad"))
    told = keeper.assert_retrying(POOL, "CommandFailed")
    assert "guessed" not in told
    apply(keeper, closed(target, "good"), volume("disk", "images", capacity="1Mi"))
    keeper.assert_ready(POOL, DISK)
    assert (cifs.closed / "disk").exists()
    planned = [item.own.plan for item in keeper.plans()]
    shown = [mounted(target), caplog.text, repr(planned), repr(keeper.told())]
    shown += [repr(item) for item in keeper.events()] + [Path("/proc/mounts").read_text()]
    assert not [text for text in shown if PASSWORD in text]
    stored = b"".join(item.read_bytes() for item in keeper.state.rglob("*") if item.is_file())
    assert PASSWORD.encode() not in stored


def test_a_missing_password_is_told(keeper, target, cifs):
    apply(keeper, closed(target, "nowhere"))
    assert "nowhere" in keeper.assert_retrying(POOL, "SecretUnavailable")


def test_a_volume_of_glusterfs_is_mounted_and_keeps_marks(keeper, target, gluster):
    images = [
        volume("disk", "images", capacity="1Mi", deletion_policy="Delete"),
        volume("qcow", "images", capacity="8Mi", format="qcow2", deletion_policy="Delete"),
    ]
    apply(keeper, on_gluster(target, gluster, deletionPolicy="Undefine"), *images)
    keeper.assert_ready(POOL, DISK, volume_key("qcow"))
    assert mounted(target).startswith(f"fuse.glusterfs {gluster.address}:/{gluster.volume} ")
    assert {"nodev", "nosuid", "noexec"} <= set(mounted(target).split()[2].split(","))
    assert (gluster.brick / "disk").stat().st_size == MIB
    assert marked(gluster.brick / "disk")["resource"] == str(DISK)
    assert image_info(target / "qcow")["virtual-size"] == 8 * MIB
    assert keeper.planned() == {}
    apply(keeper, volume("disk", "images", capacity="2Mi", deletion_policy="Delete"))
    keeper.assert_ready(DISK)
    assert (gluster.brick / "disk").stat().st_size == 2 * MIB
    keeper.delete(DISK, volume_key("qcow"))
    keeper.settle()
    assert not {"disk", "qcow"} & set(os.listdir(gluster.brick))
    keeper.delete(POOL)
    keeper.settle()
    assert keeper.gone(POOL)
    assert not target.exists()


def test_a_brick_that_dies_is_no_loss_of_its_volumes(keeper, target, gluster):
    apply(keeper, on_gluster(target, gluster), volume("disk", "images", capacity="1Mi"))
    keeper.assert_ready(POOL, DISK)
    gluster.stop()
    wait_until(lambda: not answers(target))
    keeper.settle()
    keeper.assert_retrying(POOL, "Inaccessible")
    keeper.assert_retrying(DISK, "PoolNotReady")
    assert keeper.get(POOL).status.state == "Inaccessible"
    gluster.start()
    wait_until(lambda: answers(target))
    keeper.settle()
    keeper.assert_ready(POOL, DISK)
    assert keeper.get(POOL).status.state == "Running"
    assert marked(gluster.brick / "disk")["resource"] == str(DISK)


def answers(target):
    return servers.succeeds("stat", target)


def test_another_export_mounted_there_is_not_taken_for_the_pool(keeper, target, nfs):
    for name in ("mine", "other"):
        nfs.directory(name)
    target.mkdir(parents=True)
    run("mount", "-t", "nfs", "127.0.0.1:/other", target)
    apply(keeper, declaration(target, "/mine"), volume("disk", "images", capacity="1Mi"))
    assert "127.0.0.1:/other (nfs4)" in keeper.assert_retrying(POOL, "Inaccessible")
    assert os.listdir(nfs.root / "other") == []
    run("umount", target)
    keeper.settle()
    keeper.assert_ready(POOL, DISK)


def test_a_stopped_pool_is_unmounted_and_its_own_mount_point_goes(keeper, target, nfs):
    made = nfs.directory("stopped")
    spec = declaration(target, f"/{made.name}", deletionPolicy="Undefine")
    apply(keeper, spec, volume("disk", "images", capacity="1Mi"))
    keeper.delete(POOL, DISK)
    keeper.settle()
    assert keeper.gone(POOL)
    assert not target.exists()
    assert os.listdir(made) == ["disk"]


@pytest.mark.parametrize("kind", ["nfs", "gluster"])
def test_a_pool_whose_server_is_down_is_detached_where_it_is_asked_for(
    keeper, target, request, monkeypatch, kind
):
    monkeypatch.setattr(mountedvolumes, "LOOK_SECONDS", 5.0)
    server = request.getfixturevalue(kind)
    if kind == "nfs":
        server.directory("detached")
        declared = declaration(target, "/detached", netfs={"unmount": "Lazy"})
        stop, start = server.stop, server.start
    else:
        declared = on_gluster(target, server, netfs={"unmount": "Lazy"})
        stop, start = server.silence, server.speak
    apply(keeper, declared, volume("disk", "images", capacity="1Mi"))
    keeper.assert_ready(POOL, DISK)
    stop()
    try:
        apply(keeper, {**declared, "spec": {**declared["spec"], "state": "Inactive"}})
        assert keeper.get(POOL).status.state == "Inactive"
        keeper.assert_ready(POOL)
        assert not os.path.ismount(target)
    finally:
        start()
    keeper.apply(declared)
    wait_until(lambda: keeper.reconcile() and keeper.truth(DISK, "Ready") == "True", 120)


def exports(tmp_path, server):
    backend = NetfsBackend(BackendContext(marks=MarkStore(tmp_path / "state")))
    found = backend.find_sources(SourceQuery(type="netfs", host=Host(name=server)))
    return {(item.format, item.directory) for item in found}


def test_what_a_server_exports_is_found(nfs, cifs, tmp_path):
    places = exports(tmp_path, "127.0.0.1")
    assert ("nfs", str(nfs.root)) in places
    assert {("cifs", "/open"), ("cifs", "/closed")} <= places


def test_volumes_of_glusterfs_are_found(gluster, tmp_path):
    assert ("glusterfs", f"/{gluster.volume}") in exports(tmp_path, gluster.address)


def test_a_server_that_tells_nothing_is_named(tmp_path):
    backend = NetfsBackend(BackendContext(marks=MarkStore(tmp_path / "state")))
    with pytest.raises(errors.Inaccessible, match=r"no-such-server\.invalid"):
        backend.find_sources(SourceQuery(type="netfs", host=Host(name="no-such-server.invalid")))
    with pytest.raises(errors.InvalidSpec):
        backend.find_sources(SourceQuery(type="netfs"))


@contextmanager
def agent(keeper):
    """An agent in this process; gives the seconds that each pass took, by pool."""
    seconds = defaultdict(list)
    reconcile = keeper.engine.reconcile

    def timed(name):
        begun = time.monotonic()
        try:
            return reconcile(name)
        finally:
            seconds[name].append(time.monotonic() - begun)

    keeper.engine.reconcile = timed
    stop = threading.Event()
    thread = threading.Thread(target=Agent(keeper.store, keeper.engine).run, args=(stop,))
    thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        thread.join(120)


@pytest.mark.parametrize("kind", ["nfs", "gluster"])
def test_a_server_that_is_down_holds_up_no_other_pool_and_comes_back(
    keeper, target, request, tmp_path, monkeypatch, kind
):
    monkeypatch.setattr(mountedvolumes, "LOOK_SECONDS", 20.0)
    server = request.getfixturevalue(kind)
    often = {"refresh": {"interval": "1s"}}
    if kind == "nfs":
        server.directory("down")
        keeper.apply(declaration(target, "/down", **often))
        stop, start = server.stop, server.start
    else:
        keeper.apply(on_gluster(target, server, **often))
        stop, start = server.silence, server.speak
    keeper.apply(volume("disk", "images", capacity="1Mi"))
    keeper.apply(dir_pool("local", tmp_path / "local", **often))
    local = pool_key("local")
    with agent(keeper) as seconds:
        wait_until(lambda: keeper.truth(DISK, "Ready") == "True", 120)
        seconds["local"].clear()
        wait_until(lambda: len(seconds["local"]) >= 20, 120)
        up = sorted(seconds["local"])
        stop()
        wait_until(lambda: bool(hanging()), 120)
        seconds["local"].clear()
        wait_until(lambda: len(seconds["local"]) >= 20, 120)
        down = sorted(seconds["local"])
        wait_until(lambda: keeper.get(POOL).status.state == "Inaccessible", 120)
        assert keeper.truth(local, "Ready") == "True"
        assert keeper.get(POOL).status.capacity is not None
        start()
        wait_until(lambda: keeper.truth(DISK, "Ready") == "True", 180)
        assert keeper.get(POOL).status.state == "Running"
    middle = len(up) // 2
    print(f"median pass over the dir pool: server up {up[middle]:.4f} s, down {down[middle]:.4f} s")
    assert down[-1] < 10  # none waited for the server, of which every look takes 20 s


def test_a_command_that_hangs_on_a_server_is_ended(keeper, target, nfs, monkeypatch):
    monkeypatch.setattr(mountedvolumes, "LOOK_SECONDS", 3.0)
    monkeypatch.setattr(mountedvolumes, "MOUNT_SECONDS", 5.0)
    nfs.directory("mounting")
    nfs.stop()
    apply(keeper, declaration(target, "/mounting"))
    assert keeper.truth(POOL, "Ready") == "False"
    assert not os.path.ismount(target)
    nfs.start()
    keeper.settle()
    keeper.assert_ready(POOL)


def test_an_unchanged_pool_costs_no_process(keeper, target, nfs):
    nfs.directory("quiet")
    apply(keeper, declaration(target, "/quiet"), volume("disk", "images", capacity="1Mi"))
    before = commands.spawned()
    for _ in range(3):
        keeper.reconcile()
    assert commands.spawned() == before
