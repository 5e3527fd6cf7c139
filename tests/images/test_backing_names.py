"""Names of backing images, as qemu takes them, and files that may not be read."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from backends.images import chains
from backends.images.chains import BackingLink
from tests.images import samples

MIB = 2**20
CHECKOUT = pathlib.Path(__file__).parents[2]


def overlay(path: pathlib.Path, below: str | pathlib.Path, format: str | None = "qcow2") -> None:
    """A qcow2 header that names what is below; None leaves its format undeclared."""
    declared = samples.qcow2_extension(0xE2792ACA, format.encode()) if format else b""
    declared += samples.qcow2_extension(0, b"")
    path.write_bytes(samples.qcow2(MIB, backing=os.fsencode(below), extensions=declared))


def chain(path: pathlib.Path) -> tuple[BackingLink, ...]:
    return chains.chain(samples.probe(path), str(path.parent))


ADDRESSES = (
    'json:{"driver":"file","filename":"/etc/passwd"}',
    "nbd:unix:/run/nbd:exportname=x",
    "fat:rw:/etc",
    "a b:c",
    "1:c",
    ":c",
    "file:base",
    "file:nbd://localhost/x",
)


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_name_that_qemu_takes_for_an_address_is_reported_as_it_stands(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "base").touch()
    monkeypatch.chdir(tmp_path)
    overlay(tmp_path / "top", name)
    (link,) = chain(tmp_path / "top")
    assert (link.path, link.present, link.capacity) == (name, None, None)


@pytest.mark.parametrize("prefix", ["", "file:", "file://"])
@pytest.mark.parametrize("name", ["base", "a:b", "of a, b", "größe"])
def test_an_absolute_name_is_a_file(tmp_path: pathlib.Path, prefix: str, name: str) -> None:
    samples.make(tmp_path / name, "qcow2", MIB)
    # Without -u qemu-img opens the name itself, and so says that it is one.
    words = ("-b", f"{prefix}{tmp_path / name}", "-F", "qcow2")
    samples.make(tmp_path / "top", "qcow2", MIB, *words)
    (link,) = chain(tmp_path / "top")
    assert (link.path, link.present, link.problem) == (str(tmp_path / name), True, "")


def test_an_image_without_a_declared_format_is_not_followed(tmp_path: pathlib.Path) -> None:
    overlay(tmp_path / "guest", "/etc/shadow", "raw")
    overlay(tmp_path / "top", "guest", None)
    (link,) = chain(tmp_path / "top")
    assert (link.format, link.capacity) == ("raw", (tmp_path / "guest").stat().st_size)


@pytest.mark.parametrize("declared", ["qcow2", "vmdk", "nonsense", "QCOW2", "luks"])
def test_a_header_other_than_declared_is_not_followed(
    tmp_path: pathlib.Path, declared: str
) -> None:
    samples.make(tmp_path / "base", "qed", MIB, "-u", "-b", "/etc/shadow", "-F", "raw")
    overlay(tmp_path / "top", "base", declared)
    (link,) = chain(tmp_path / "top")
    assert declared in link.problem
    assert "qed" in link.problem


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket", "device"])
@pytest.mark.parametrize("declared", ["qcow2", "raw", None])
def test_what_holds_no_image_is_a_problem(
    tmp_path: pathlib.Path, kind: str, declared: str | None
) -> None:
    path = tmp_path / "base"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "socket":
            os.mknod(path, 0o140600)
        case "device":
            path.symlink_to("/dev/null")
    overlay(tmp_path / "top", path, declared)
    (link,) = chain(tmp_path / "top")
    assert (link.present, link.problem) == (False, "it is neither a file nor a block device")


LOOK_AS_NOBODY = """
import os, sys
from backends.images import chains
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(chains.links("base", "qcow2")[0])
"""


@pytest.mark.parametrize("mode", [0o644, 0])
def test_what_may_not_be_read_is_a_problem(tmp_path: pathlib.Path, mode: int) -> None:
    overlay(tmp_path / "base", "below")
    (tmp_path / "base").chmod(mode)
    tmp_path.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *sys.path])}
    argv = [sys.executable, "-c", LOOK_AS_NOBODY]
    done = subprocess.run(
        argv, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    expected = "present=True, problem=''" if mode else "present=False, problem='Permission denied'"
    assert expected in done.stdout


def test_no_descriptor_is_left_open(tmp_path: pathlib.Path) -> None:
    (tmp_path / "cut").write_bytes(b"QFI\xfb\0\0\0\3")
    os.mkfifo(tmp_path / "fifo")
    overlay(tmp_path / "fine", "cut")
    before = os.listdir("/proc/self/fd")
    for name in ("cut", "fifo", "fine", "nowhere"):
        overlay(tmp_path / "top", name)
        assert chain(tmp_path / "top")
    assert os.listdir("/proc/self/fd") == before
