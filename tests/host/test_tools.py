"""Versions of programs: what they say on this host, and what is made of the words of others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from backends.host import commands, tools

SAID = {
    "qemu-img version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c)": "7.2.22",
    "mount from util-linux 2.38.1 (libmount 2.38.1: selinux, smack)": "2.38.1",
    "  LVM version:     2.03.31(2) (2025-02-27)\n  Library version: 1.02.205": "2.03.31",
    "zfs-2.3.2-2\nzfs-kmod-2.3.2-2": "2.3.2-2",
    "ceph version 18.2.7 (6b0e988052ec84cf2d4a54ff9bbbc5e720b621ad) reef (stable)": "18.2.7",
    "mount.nfs: (linux nfs-utils 2.8.3)": "2.8.3",
    "iscsiadm version 2.1.11": "2.1.11",
    "257 (257.8-1~deb13u2)": "257.8-1~deb13u2",
    "257": "257",
    "sfdisk (no version)": "unknown",
}


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that says what stands in a file, under the name of one that is asked."""
    program = tmp_path / "qemu-img"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/words >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(commands, "SEARCH_PATH", f"{tmp_path}:{commands.SEARCH_PATH}")
    return tmp_path / "words"


@pytest.mark.parametrize("words", SAID)
def test_the_version_is_found_in_what_a_program_says(said: Path, words: str) -> None:
    said.write_text(words)
    assert tools.versions(["qemu-img"]) == {"qemu-img": SAID[words]}


def test_a_program_that_is_not_there_has_no_version() -> None:
    assert tools.versions(["no-such-program"]) == {"no-such-program": None}


def test_a_program_that_nobody_knows_how_to_ask_is_not_run(tmp_path: Path) -> None:
    before = commands.spawned()
    assert tools.versions(["sh"]) == {"sh": tools.UNKNOWN}
    assert commands.spawned() == before


def test_one_that_hangs_costs_its_deadline_and_no_more(
    said: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (said.parent / "qemu-img").write_text("#!/bin/sh\nsleep 1000\n")
    monkeypatch.setattr(tools, "DEADLINE", 0.2)
    assert tools.versions(["qemu-img"]) == {"qemu-img": tools.UNKNOWN}


def test_all_that_can_be_asked_answer_with_a_version_here() -> None:
    here = [name for name in tools.ASKED_WITH if shutil.which(name, path=commands.SEARCH_PATH)]
    assert here
    assert tools.UNKNOWN not in tools.versions(here).values()
