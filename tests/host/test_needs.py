"""What a host lacks for a pool type, told from the host itself and from a kernel's own lists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends.host import commands, needs
from backends.host.needs import Needs, has_filesystem, has_module, missing
from backends.registry import pool_types


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel that has ext4, has loaded dm_mod, has loop built in, and can load nfs."""
    listed = tmp_path / "filesystems"
    listed.write_text("nodev\tsysfs\nnodev\tproc\n\text4\n")
    (tmp_path / "sys" / "dm_mod").mkdir(parents=True)
    modules = tmp_path / "modules" / os.uname().release
    modules.mkdir(parents=True)
    (modules / "modules.builtin").write_text("kernel/drivers/block/loop.ko\n")
    (modules / "modules.dep").write_text(
        "kernel/fs/nfs/nfs.ko.xz: kernel/fs/lockd/lockd.ko.xz\n"
        "kernel/drivers/md/dm-multipath.ko: kernel/x/gone.ko\n"
    )
    monkeypatch.setattr(needs, "_FILESYSTEMS", listed)
    monkeypatch.setattr(needs, "_MODULES", tmp_path / "sys")
    monkeypatch.setattr(needs, "_LOADABLE", tmp_path / "modules")
    return tmp_path


def test_a_program_that_is_there_is_not_missing() -> None:
    assert missing(Needs(programs=("sh",))) == ()


def test_a_missing_program_says_what_to_install() -> None:
    (told,) = missing(Needs(programs=("sh", "no-such-program")))
    assert "no-such-program is not on this host" in told
    assert "Install" in told


def test_the_file_systems_of_the_running_kernel_are_known() -> None:
    assert missing(Needs(filesystems=("proc", "tmpfs"))) == ()
    (told,) = missing(Needs(filesystems=("no-such-filesystem",)))
    assert "can't mount no-such-filesystem" in told


def test_a_file_system_may_be_known_or_loadable(kernel: Path) -> None:
    assert has_filesystem("ext4")
    assert has_filesystem("nfs")
    assert not has_filesystem("xfs")
    assert not has_filesystem("nodev")


@pytest.mark.parametrize("name", ["dm_mod", "dm-mod", "loop", "nfs", "dm_multipath"])
def test_a_module_may_be_loaded_built_in_or_loadable(kernel: Path, name: str) -> None:
    assert has_module(name)


@pytest.mark.parametrize("name", ["zfs", "lockd", "gone", "dm", "oop"])
def test_a_module_that_only_another_names_is_missing(kernel: Path, name: str) -> None:
    (told,) = missing(Needs(modules=(name,)))
    assert name in told


def test_a_kernel_without_lists_has_what_is_loaded(kernel: Path) -> None:
    (kernel / "filesystems").unlink()
    for path in (kernel / "modules" / os.uname().release).iterdir():
        path.unlink()
    assert has_module("dm_mod")
    assert not has_module("nfs")
    assert not has_filesystem("ext4")


def test_needs_add_up_without_repeating() -> None:
    both = Needs(programs=("mount",), modules=("nfs",)) + Needs(programs=("mount", "umount"))
    assert both == Needs(programs=("mount", "umount"), modules=("nfs",))


@pytest.mark.parametrize("name", sorted(pool_types()))
def test_each_program_that_a_pool_type_needs_is_in_a_named_package(name: str) -> None:
    declared = pool_types()[name]
    for lacking in [declared.needs, *declared.format_needs.values()]:
        for program in lacking.programs:
            assert "Install the Debian package " in str(commands.missing(program))
