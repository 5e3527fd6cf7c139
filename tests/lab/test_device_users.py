"""Who is seen to use a block device by means that the lab's kernel alone is sure to have.

Other ways are in the tests of ``backends/host/users.py``, which need no such kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from backends import blockvolumes
from tests.lab.spare import IN_GUEST, MIB, Spares, run
from tests.lab.targets import CONFIG

SIZE = 128 * MIB


@contextmanager
def mapped(device: Path, spares: Spares, root: Path) -> Iterator[str]:
    run("dmsetup", "create", "user-dm", "--table", f"0 2048 linear {device} 0")
    yield f"device-mapper device user-dm ({node_of('user-dm')}) stands on it"
    run("dmsetup", "remove", "--retry", "user-dm")


@contextmanager
def logical_volume(device: Path, spares: Spares, root: Path) -> Iterator[str]:
    run("vgcreate", "-q", "user-vg", device)
    run("lvcreate", "-q", "--yes", "--name", "lv", "--size", "8m", "user-vg")
    shown = "user--vg-lv"
    yield f"device-mapper device {shown} ({node_of(shown)}) stands on it"
    run("vgremove", "-q", "-ff", "--yes", "user-vg")


@contextmanager
def opened_luks(device: Path, spares: Spares, root: Path) -> Iterator[str]:
    cheap = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    run("cryptsetup", "-q", "luksFormat", *cheap, device, "-", input=b"secret")
    run("cryptsetup", "open", "--key-file", "-", device, "user-luks", input=b"secret")
    yield f"device-mapper device user-luks ({node_of('user-luks')}) stands on it"
    run("cryptsetup", "close", "user-luks")


@contextmanager
def member_of_an_array(device: Path, spares: Spares, root: Path) -> Iterator[str]:
    array = Path("/dev/md/user-md")
    run("mdadm", "--create", array, "--run", "--level=1", "--raid-devices=2", device, "missing")
    run("udevadm", "settle")
    yield f"device {array.resolve()} stands on it"
    run("mdadm", "--stop", array)


@contextmanager
def second_of_btrfs(device: Path, spares: Spares, root: Path) -> Iterator[str]:
    """No table of mounts names it."""
    first = spares(SIZE)
    run("mkfs.btrfs", "-q", "-f", "-d", "single", "-m", "raid1", first, device)
    run("mount", first, root)
    yield "the kernel or a process holds it for itself alone"
    run("umount", root)


@contextmanager
def served_by_a_target(device: Path, spares: Spares, root: Path) -> Iterator[str]:
    if not IN_GUEST:
        pytest.skip("needs a kernel whose targets are its own")
    run("modprobe", "target_core_iblock")
    store = CONFIG / "core" / "iblock_0" / "user-lio"
    store.mkdir(parents=True)
    (store / "control").write_text(f"udev_path={device}")
    (store / "enable").write_text("1")
    yield "the kernel or a process holds it for itself alone"
    store.rmdir()


USES: tuple[Callable[[Path, Spares, Path], AbstractContextManager[str]], ...] = (
    mapped,
    logical_volume,
    opened_luks,
    member_of_an_array,
    second_of_btrfs,
    served_by_a_target,
)
"""Ways to use a device; each gives the words that say so."""


def node_of(name: str) -> Path:
    return Path("/dev/mapper", name).resolve()


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_who_uses_a_device_is_named_until_it_is_let_go(
    device: Spares,
    tmp_path: Path,
    use: Callable[[Path, Spares, Path], AbstractContextManager[str]],
) -> None:
    used = device(SIZE)
    root = tmp_path / "point"
    root.mkdir()
    run("udevadm", "settle")
    assert blockvolumes.users_of(str(used)) == ()
    with use(used, device, root) as words:
        run("udevadm", "settle")
        assert words in blockvolumes.users_of(str(used))
    run("udevadm", "settle")
    assert blockvolumes.users_of(str(used)) == ()
