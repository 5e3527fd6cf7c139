"""Pools on file systems of devices: what else may stand there, be mounted there, or go wrong."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.fs import FsBackend
from backends.host import commands, detached, signatures
from backends.host.marks import MarkStore
from tests.blockdevices import FOREIGN, SIZE, command, plant
from tests.keeper import Keeper, marked, pool, pool_key, volume, volume_key

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices and mounts"),
]

POOL, DISK = pool_key("images"), volume_key("disk")
OVERWRITE = {"policy": "Overwrite", "confirm": "images"}


class Host:
    """A disk behind a link that stays, and a directory to mount it on."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.target = root / "images"
        self.link = root / "by-id"
        self._loops: dict[str, str] = {}

    def disk(self, name: str = "disk", *, size: int = SIZE) -> str:
        """Attach an image, which is made blank where it is missing; its node."""
        image = self.root / f"{name}.img"
        if not image.exists():
            with image.open("wb") as file:
                file.truncate(size)
        node = command("losetup", "--find", "--show", str(image)).strip()
        self._loops[node] = name
        return node

    def detach(self, node: str) -> None:
        command("losetup", "--detach", node)
        del self._loops[node]

    def insert(self, name: str = "disk") -> str:
        """Let the link lead to a disk."""
        node = self.disk(name)
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(node)
        return node

    def declaration(self, *, identity: str | None = None, **spec: object) -> dict[str, object]:
        device = {"path": str(self.link), **({"identity": identity} if identity else {})}
        source = {"device": device, "format": "ext4", **spec.pop("fs", {})}
        return pool("images", type="fs", fs=source, target={"path": str(self.target)}, **spec)

    def mounts(self) -> list[tuple[str, str]]:
        """What is mounted beneath the root, as source and options, the oldest first."""
        told = command("findmnt", "--raw", "--noheadings", "--output", "TARGET,SOURCE,OPTIONS")
        lines = [line.split(" ") for line in told.splitlines()]
        return [(line[1], line[2]) for line in lines if line[0].startswith(str(self.root))]

    def close(self) -> None:
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            point = line.split()[1]
            if point.startswith(f"{self.root}/"):
                command("umount", point)
        for node in list(self._loops):
            self.detach(node)


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path)
    yield made
    made.close()


def apply(keeper, host, *volumes, **spec):
    keeper.apply(host.declaration(**spec), *volumes)
    keeper.settle()


def content(node):
    command("sync")
    return Path(node).read_bytes()


@contextmanager
def mounted_aside(host, node):
    point = host.root / "aside"
    point.mkdir(exist_ok=True)
    command("mount", node, str(point))
    try:
        yield point
    finally:
        command("umount", str(point))


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_a_stranger_left_is_named_and_never_overwritten(keeper, host, kind):
    planting, words = FOREIGN[kind]
    node = host.insert()
    planting(node)
    before = content(node)
    # ext4 on its own is what is declared, and is taken over; every other format is not
    apply(keeper, host, fs={"format": "xfs" if kind == "ext4" else "ext4"})
    told = keeper.assert_stalled(POOL, "OverwriteRefused")
    assert words in told
    assert str(host.link) in told
    assert content(node) == before
    assert host.mounts() == []


@pytest.mark.parametrize("kind", ["btrfs", "luks", "lvm", "table"])
def test_it_is_overwritten_where_the_pool_is_named(keeper, host, kind):
    planting, words = FOREIGN[kind]
    planting(host.insert())
    keeper.apply(host.declaration(build=OVERWRITE))
    (examined,) = keeper.plans()
    (build, _) = examined.own.plan.actions
    assert any(words in item and str(host.link) in item for item in build.destroys)
    keeper.settle()
    keeper.assert_ready(POOL)
    found = signatures.probe(str(host.link))
    assert [item.type for item in found.signatures] == ["ext4"]
    (host.target / "kept").touch()
    apply(keeper, host, build=OVERWRITE, refresh={"interval": "7m"})  # another generation
    keeper.assert_ready(POOL)
    assert (host.target / "kept").exists()


def test_two_things_on_one_device_are_both_named(keeper, host):
    node = host.insert()
    FOREIGN["vfat"][0](node)
    boot_sector = content(node)[:512]
    command("wipefs", "-a", node)
    FOREIGN["ext4"][0](node)
    plant(node, 0, boot_sector)
    before = content(node)
    apply(keeper, host)
    told = keeper.assert_stalled(POOL, "OverwriteRefused")
    assert "a vfat file system and an ext4 file system" in told
    assert content(node) == before


@pytest.mark.parametrize("spec", [{"build": OVERWRITE}, {}])
def test_a_device_in_use_is_never_written_to(keeper, host, spec):
    node = host.insert()
    FOREIGN["btrfs"][0](node)
    with mounted_aside(host, node) as point:
        apply(keeper, host, **spec)
        told = keeper.message(POOL)
        assert keeper.truth(POOL, "Ready") == "False"
        assert "btrfs" in told or str(point) in told
        assert (point / ".").exists()
        if spec:
            assert keeper.assert_retrying(POOL, "InUse")
            assert str(point) in told
    assert signatures.probe(node).signatures[0].type == "btrfs"


def test_a_blank_device_that_somebody_holds_is_never_written_to(keeper, host):
    node = host.insert()
    fd = os.open(node, os.O_RDWR | os.O_EXCL)
    before = content(node)
    holder = subprocess.Popen(["sleep", "300"], pass_fds=[fd])
    os.close(fd)
    try:
        apply(keeper, host)
        assert "sleep" in keeper.assert_retrying(POOL, "InUse")
        assert content(node) == before
    finally:
        holder.kill()
        holder.wait()
    keeper.settle()
    keeper.assert_ready(POOL)


def test_a_format_that_can_not_be_made_is_refused(keeper, host):
    node = host.insert()
    apply(keeper, host, fs={"format": "auto"})
    assert "ext4, xfs" in keeper.assert_stalled(POOL, "Unsupported")
    assert signatures.probe(node).empty


def test_any_file_system_that_is_there_is_taken_over_where_the_format_is_auto(keeper, host):
    node = host.insert()
    FOREIGN["btrfs"][0](node)
    apply(keeper, host, volume("disk", "images", capacity="1Mi"), fs={"format": "auto"})
    keeper.assert_ready(POOL, DISK)
    assert marked(host.target)["origin"] == "Adopted"
    assert host.mounts()[0][0].startswith(node)
    apply(keeper, host, fs={"format": "auto"}, state="Inactive")
    assert host.mounts() == []


def test_the_policy_may_forbid_to_make_a_file_system(keeper, host):
    node = host.insert()
    apply(keeper, host, build={"policy": "Never"})
    assert keeper.reason(POOL) == "NotFound"
    assert signatures.probe(node).empty


def test_it_is_mounted_so_that_nothing_on_it_harms_the_host(keeper, host):
    host.insert()
    apply(keeper, host, fs={"mountOptions": ["noatime", "errors=remount-ro"]})
    ((_, options),) = host.mounts()
    assert {"nodev", "nosuid", "noexec", "noatime", "errors=remount-ro"} <= set(options.split(","))
    assert "Warning" not in keeper.message(POOL)


def test_several_mount_options_may_stand_in_one(keeper, host):
    host.insert()
    apply(keeper, host)
    command("umount", str(host.target))
    apply(keeper, host, fs={"mountOptions": ["noatime,ro"]})
    keeper.assert_ready(POOL)
    assert keeper.get(POOL).status.state == "Running"
    assert "Warning" not in keeper.message(POOL)


def test_a_kernel_name_is_warned_of(keeper, host):
    host.link = Path(host.insert())
    apply(keeper, host)
    keeper.assert_ready(POOL)
    assert "may be another device after the next boot" in keeper.message(POOL)


def test_what_is_mounted_there_already_is_used_as_it_is(keeper, host):
    host.insert()
    FOREIGN["ext4"][0](host.link)
    host.target.mkdir()
    command("mount", str(host.link), str(host.target))
    apply(keeper, host)
    keeper.assert_ready(POOL)
    assert "mounted without nodev, nosuid, noexec" in keeper.message(POOL)
    assert len(host.mounts()) == 1


def test_another_file_system_mounted_there_is_neither_used_nor_unmounted(keeper, host):
    host.insert()
    other = host.disk("other")
    FOREIGN["ext4"][0](other)
    host.target.mkdir()
    command("mount", other, str(host.target))
    apply(keeper, host, volume("disk", "images", capacity="1Mi"))
    assert f"{other} (ext4) is mounted there" in keeper.assert_retrying(POOL, "Inaccessible")
    apply(keeper, host, state="Inactive")
    assert len(host.mounts()) == 1
    assert os.listdir(host.target) == ["lost+found"]
    command("umount", str(host.target))
    apply(keeper, host)
    keeper.assert_ready(POOL, DISK)


def test_another_file_system_mounted_over_a_running_pool_is_not_taken_for_it(keeper, host):
    host.insert()
    disk = volume("disk", "images", capacity="1Mi", recreation="IfMissing")
    apply(keeper, host, disk)
    other = host.disk("other")
    FOREIGN["ext4"][0](other)
    command("mount", other, str(host.target))
    keeper.settle()
    keeper.assert_retrying(POOL, "Inaccessible")
    assert os.listdir(host.target) == ["lost+found"]
    command("umount", str(host.target))
    keeper.settle()
    keeper.assert_ready(POOL, DISK)


def test_a_file_system_that_is_mounted_elsewhere_is_not_mounted_twice(keeper, host):
    node = host.insert()
    FOREIGN["ext4"][0](node)
    with mounted_aside(host, node) as point:
        apply(keeper, host)
        assert str(point) in keeper.assert_retrying(POOL, "Inaccessible")
        assert len(host.mounts()) == 1
    keeper.settle()
    keeper.assert_ready(POOL)
    apply(keeper, host, state="Inactive")
    with mounted_aside(host, node) as point:
        apply(keeper, host)
        assert str(point) in keeper.assert_retrying(POOL, "InUse")
        assert len(host.mounts()) == 1


def test_an_unmounted_pool_is_mounted_again(keeper, host):
    host.insert()
    apply(keeper, host, volume("disk", "images", capacity="1Mi"))
    command("umount", str(host.target))
    keeper.settle()
    keeper.assert_ready(POOL, DISK)
    assert len(host.mounts()) == 1


def test_nothing_is_made_or_seen_in_the_directory_beneath(keeper, host):
    host.insert()
    disk = volume("disk", "images", capacity="1Mi")
    apply(keeper, host, disk)
    apply(keeper, host, state="Inactive")
    (host.target / "disk").write_bytes(b"stray")
    keeper.apply(volume("second", "images", capacity="1Mi"))
    keeper.settle()
    keeper.assert_retrying(volume_key("second"), "PoolNotReady")
    assert os.listdir(host.target) == ["disk"]
    assert keeper.get(POOL).status.volumes.total == 1  # as it was last seen
    apply(keeper, host)
    keeper.assert_ready(POOL, DISK, volume_key("second"))
    assert (host.target / "disk").stat().st_size == 2**20


def test_a_volume_of_a_stopped_pool_is_not_taken_for_deleted(keeper, host):
    host.insert()
    apply(keeper, host, volume("disk", "images", capacity="1Mi", deletion_policy="Delete"))
    apply(keeper, host, state="Inactive")
    keeper.delete(DISK)
    keeper.settle()
    assert "not started" in keeper.assert_retrying(DISK, "PoolNotReady")
    apply(keeper, host)
    assert keeper.gone(DISK)
    assert not (host.target / "disk").exists()


def test_a_pool_in_use_is_not_unmounted_and_says_who_uses_it(keeper, host):
    host.insert()
    apply(keeper, host, volume("disk", "images", capacity="1Mi"))
    user = subprocess.Popen(["sleep", "300"], cwd=host.target)
    try:
        apply(keeper, host, state="Inactive")
        told = keeper.assert_retrying(POOL, "InUse")
        assert f"sleep (pid {user.pid}) works in {host.target}" in told
        assert len(host.mounts()) == 1
    finally:
        user.kill()
        user.wait()
    keeper.settle()
    assert host.mounts() == []
    keeper.assert_ready(POOL)


def test_a_pool_in_use_is_detached_where_it_is_asked_for_by_name(keeper, host):
    host.insert()
    apply(keeper, host, volume("disk", "images", capacity="1Mi"))
    with (host.target / "disk").open("r+b") as held:
        apply(keeper, host, state="Inactive", fs={"unmount": "Lazy"})
        keeper.assert_ready(POOL)
        assert keeper.get(POOL).status.state == "Inactive"
        assert host.mounts() == []
        held.write(b"kept")
    apply(keeper, host, state="Active", fs={"unmount": "Lazy"})
    keeper.assert_ready(POOL, DISK)
    assert (host.target / "disk").read_bytes()[:4] == b"kept"


def test_another_disk_in_its_place_stalls_the_pool_until_it_is_declared(keeper, host):
    node = host.insert()
    disk = volume("disk", "images", capacity="1Mi", recreation="IfMissing")
    apply(keeper, host, disk)
    command("umount", str(host.target))
    host.detach(node)
    other = host.insert("other")
    uuid = "11111111-2222-3333-4444-555555555555"
    command("mkfs.ext4", "-q", "-U", uuid, other)
    before = content(other)
    keeper.settle()
    told = keeper.assert_stalled(POOL, "DeviceChanged")
    assert uuid in told
    assert str(host.link) in told
    assert content(other) == before
    assert host.mounts() == []
    known = keeper.get(POOL).status.devices[0].uuid
    assert known != uuid
    apply(keeper, host, disk, identity=uuid)
    keeper.assert_ready(POOL, DISK)
    assert marked(host.target)["origin"] == "Adopted"
    assert keeper.get(POOL).status.devices[0].uuid == uuid


def test_the_former_disk_is_welcome_back(keeper, host):
    node = host.insert()
    apply(keeper, host, volume("disk", "images", capacity="1Mi"))
    command("umount", str(host.target))
    host.detach(node)
    other = host.insert("other")
    FOREIGN["ext4"][0](other)
    keeper.settle()
    keeper.assert_stalled(POOL, "DeviceChanged")
    host.detach(other)
    host.insert()
    keeper.settle()
    keeper.assert_ready(POOL, DISK)


def test_a_blank_disk_in_its_place_is_not_formatted(keeper, host):
    node = host.insert()
    apply(keeper, host)
    command("umount", str(host.target))
    host.detach(node)
    other = host.insert("other")
    keeper.settle()
    keeper.assert_retrying(POOL, "Inaccessible")
    assert signatures.probe(other).empty


def test_a_device_of_another_identity_than_declared_is_never_formatted(keeper, host):
    node = host.insert()
    apply(keeper, host, identity="WD-1")
    assert "'WD-1'" in keeper.assert_stalled(POOL, "DeviceChanged")
    assert signatures.probe(node).empty


def test_a_clone_of_the_disk_with_a_strangers_mark_is_not_ours(keeper, host):
    node = host.insert()
    apply(keeper, host)
    for name, value in {"resource": b"StoragePool/other", "uid": b"another"}.items():
        os.setxattr(host.target, f"user.poolkeeper.{name}", value)
    lost = {"device": {"path": "/dev/disk/by-id/lost"}}
    keeper.apply(pool("other", type="fs", fs=lost, target={"path": str(host.root / "lost")}))
    keeper.settle()
    assert "StoragePool/other" in keeper.assert_stalled(POOL, "OwnedByOther")
    assert signatures.probe(node).signatures[0].type == "ext4"


def test_a_mark_is_found_on_a_disk_that_came_from_another_host(keeper, host, tmp_path):
    host.insert()
    disk = volume("disk", "images", capacity="1Mi", adoption="Never")
    apply(keeper, host, disk)
    command("umount", str(host.target))
    again = Keeper(tmp_path / "reinstalled")  # neither its store nor its marks
    again.apply(host.declaration(adoption="Never"), disk)
    again.settle()
    again.assert_ready(POOL, DISK)
    assert marked(host.target)["origin"] == "Created"
    again.store.close()


def test_looking_at_a_strangers_file_system_changes_nothing_on_it(keeper, host):
    node = host.insert()
    FOREIGN["ext4"][0](node)
    before = content(node)
    apply(keeper, host, adoption="Never")
    keeper.assert_stalled(POOL, "AlreadyExists")
    assert content(node) == before


def build_interrupted(keeper, host, monkeypatch):
    """Make a file system that is never marked, as a process that dies in between would."""

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FsBackend, "_mark_root", die)
        keeper.apply(host.declaration())
        with pytest.raises(KeyboardInterrupt):
            keeper.reconcile()


def test_a_build_that_was_interrupted_is_done_again(keeper, host, monkeypatch):
    node = host.insert()
    build_interrupted(keeper, host, monkeypatch)
    assert signatures.probe(node).signatures[0].type == "ext4"
    keeper.settle()
    keeper.assert_ready(POOL)
    assert marked(host.target)["origin"] == "Created"


def test_what_somebody_made_after_an_interrupted_build_is_his(keeper, host, monkeypatch):
    node = host.insert()
    build_interrupted(keeper, host, monkeypatch)
    command("wipefs", "-a", node)
    FOREIGN["btrfs"][0](node)
    before = content(node)
    keeper.settle()
    keeper.assert_stalled(POOL, "OverwriteRefused")
    assert content(node) == before


def test_a_pool_that_was_stopped_is_deleted_only_if_nothing_stands_in_it(keeper, host):
    node = host.insert()
    apply(keeper, host, deletionPolicy="Delete")
    (host.target / "strange").write_bytes(b"x")
    apply(keeper, host, deletionPolicy="Delete", state="Inactive")
    keeper.delete(POOL)
    keeper.settle()
    assert "strange" in keeper.assert_retrying(POOL, "DeletionRefused")
    assert signatures.probe(node).signatures[0].type == "ext4"
    with detached.mounted(node, "ext4", write=True) as root:
        os.unlink("strange", dir_fd=root)
    keeper.settle()
    assert keeper.gone(POOL)
    assert signatures.probe(node).empty
    assert not host.target.exists()


def test_a_target_that_was_there_stays(keeper, host):
    host.insert()
    host.target.mkdir()
    apply(keeper, host, deletionPolicy="Delete")
    keeper.delete(POOL)
    keeper.settle()
    assert keeper.gone(POOL)
    assert host.target.exists()


def test_two_pools_on_one_device_are_told(keeper, host):
    node = host.insert()
    apply(keeper, host)
    second = pool(
        "second", type="fs", fs={"device": {"path": node}}, target={"path": str(host.root / "b")}
    )
    keeper.apply(second)
    keeper.settle()
    assert "StoragePool/images" in keeper.assert_stalled(pool_key("second"), "Conflict")


@pytest.mark.parametrize("what", ["remount", "remount,bind"])
def test_a_file_system_that_errors_or_somebody_turned_read_only_is_degraded(keeper, host, what):
    host.insert()
    apply(keeper, host)
    command("mount", "-o", f"{what},ro", str(host.target))
    keeper.settle()
    assert keeper.get(POOL).status.state == "Degraded"
    assert "can only be read" in keeper.message(POOL)
    command("mount", "-o", f"{what},rw", str(host.target))
    keeper.settle()
    assert keeper.get(POOL).status.state == "Running"


def test_an_unchanged_pool_costs_no_process(keeper, host):
    host.insert()
    apply(keeper, host, volume("disk", "images", capacity="1Mi"))
    before = commands.spawned()
    for _ in range(3):
        keeper.reconcile()
    assert commands.spawned() == before


def test_a_lost_state_directory_does_not_lose_a_mounted_pool(keeper, host):
    host.insert()
    apply(keeper, host)
    marks = MarkStore(keeper.state)
    marks.clear_named(f"file system {keeper.get(POOL).status.devices[0].uuid}")
    keeper.settle()
    keeper.assert_ready(POOL)
