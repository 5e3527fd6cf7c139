"""Domains of a real libvirt are users of their disks, running or paused, by whatever chain."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import errors
from backends.host import commands, machines, users
from backends.host.machines import Disk
from tests.keeper import Keeper, dir_pool, make_image, volume, volume_key
from tests.libvirt.conftest import Libvirt

pytestmark = [pytest.mark.libvirt, pytest.mark.root]

WEB = volume_key("web")


def users_of(path: Path) -> tuple[str, ...]:
    fd = os.open(path, os.O_PATH)
    try:
        return users.users_of(fd)
    finally:
        os.close(fd)


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, Path]:
    base, top = tmp_path / "base.qcow2", tmp_path / "an odd, name=.qcow2"
    make_image(base, "8M")
    make_image(top, "8M", options=("-b", str(base), "-F", "qcow2"))
    return base, top


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the machines' processes are in another namespace, behind a server without locks."""
    monkeypatch.setattr(users, "_nobody_else", lambda thing: False)
    monkeypatch.setattr(users, "_known_to_kernel", lambda *asked: ())


def test_a_running_domain_has_its_disk_and_what_that_stands_on(
    asked: Libvirt, chain: tuple[Path, Path]
) -> None:
    base, top = chain
    asked.start("web-1", top, "qcow2")
    assert machines.disks_in_use(str(asked.sockets)) == (
        Disk("web-1", "running", "vda", str(top), backing=False),
        Disk("web-1", "running", "vda", str(base), backing=True),
    )
    process, domain = users_of(top)
    assert process.startswith("virtual machine 'web-1' (qemu-system-x86_64, pid ")
    assert domain == "domain 'web-1' (libvirt, running) has it as disk vda"
    assert users_of(base)[-1] == "domain 'web-1' (libvirt, running) stands on it by disk vda"
    asked.stop("web-1")
    assert "web-1" in asked.virsh("list", "--all", "--name")
    assert machines.disks_in_use(str(asked.sockets)) == ()
    assert users_of(top) == ()


def test_a_paused_one_that_the_kernel_does_not_show_is_in_the_way_of_a_deletion(
    asked: Libvirt, tmp_path: Path, unseen: None
) -> None:
    keeper = Keeper(tmp_path / "state")
    pool = tmp_path / "images"
    spec = {"capacity": "8Mi", "format": "qcow2", "deletionPolicy": "Delete"}
    keeper.apply(dir_pool("images", pool), volume("web", "images", **spec))
    keeper.settle()
    asked.start("web-2", pool / "web", "qcow2", paused=True)
    keeper.delete(WEB)
    keeper.reconcile()
    said = keeper.assert_retrying(WEB, "InUse")
    assert "domain 'web-2' (libvirt, paused) has it as disk vda" in said
    assert (pool / "web").exists()
    asked.stop("web-2")
    keeper.settle()
    assert keeper.gone(WEB)
    keeper.store.close()


def test_a_device_is_known_by_any_of_its_names(
    asked: Libvirt, tmp_path: Path, loop: Path, unseen: None
) -> None:
    other = Path(f"/dev/poolkeeper-test-{os.getpid()}")
    other.symlink_to(loop)
    try:
        asked.start("web-3", other, "raw")
        assert users_of(loop) == ("domain 'web-3' (libvirt, running) has it as disk vda",)
        asked.stop("web-3")
    finally:
        other.unlink()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "device"
    image.write_bytes(bytes(2**20))
    argv = ["losetup", "--find", "--show", str(image)]
    made = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(made)
    subprocess.run(["losetup", "-d", made], check=True)


def test_a_daemon_that_does_not_answer_is_no_reason_to_think_that_nobody_uses_it(
    asked: Libvirt, tmp_path: Path, unseen: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "DEADLINE", 1.0)
    path = tmp_path / "disk"
    path.write_bytes(b"x")
    asked.daemon.send_signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(errors.Inaccessible, match="libvirt does not say"):
            users_of(path)
        assert time.monotonic() - begun < 30
    finally:
        asked.daemon.send_signal(signal.SIGCONT)
    assert users_of(path) == ()


def test_where_no_libvirt_is_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "run", lambda *arguments, **more: pytest.fail("it was run"))
    assert machines.disks_in_use(str(tmp_path)) == ()
    (tmp_path / "libvirt-sock-ro").touch()  # as a daemon leaves it that was killed
    assert machines.disks_in_use(str(tmp_path)) == ()
