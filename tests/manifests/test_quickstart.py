"""The first command of the README: run.sh, with all that it installs there already."""

import os
import shutil
import stat
import subprocess
import sys

import pytest

from tests.manifests.conftest import MANIFESTS
from tests.processes import CALL, Poolkeeper, truth


@pytest.fixture
def checkout(tmp_path):
    """The quickstart in a checkout whose preparation has nothing to install."""
    root = tmp_path / "a checkout"
    shutil.copytree(MANIFESTS / "quickstart", root / "manifests" / "quickstart")
    (root / ".ci").mkdir()
    (root / ".ci" / "prepare.sh").write_text("")
    program = root / ".venv" / "bin" / "poolkeeper"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{CALL}" "$@"\n')
    program.chmod(0o755)
    return root


def run(checkout, place):
    environment = Poolkeeper(place / "state", checkout).environment(
        POOLKEEPER_QUICKSTART=str(place)
    )
    del environment["POOLKEEPER_STATE_DIR"]
    return subprocess.run(
        ["sh", checkout / "manifests" / "quickstart" / "run.sh"],
        env=environment, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_quickstart_shows_a_pool_with_four_volumes(checkout, tmp_path):
    place = tmp_path / "place"
    ended = run(checkout, place)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    names = ["base.qcow2", "journal.raw", "scratch.raw", "web.qcow2"]
    assert sorted(os.listdir(place / "images")) == names
    assert stat.S_IMODE((place / "images").stat().st_mode) == 0o750
    assert stat.S_IMODE((place / "images" / "web.qcow2").stat().st_mode) == 0o640
    plans = [line for line in ended.stdout.splitlines() if line.startswith("Plan: ")]
    assert plans[0].startswith("Plan: 5 to create, 1 to change, 0 to destroy")
    assert plans[1].startswith("Plan: 0 to create, 0 to change, 0 to destroy; 5 unchanged")
    keeper = Poolkeeper(place / "state", tmp_path)
    for item in keeper.done("get", "all", "-o", "json").json["items"]:
        assert truth(item) == "True"
    assert {item.name for item in tmp_path.iterdir()} == {checkout.name, "place"}


def test_the_quickstart_can_be_run_again(checkout, tmp_path):
    place = tmp_path / "place"
    assert run(checkout, place).returncode == 0
    before = {item: item.stat().st_ctime_ns for item in (place / "images").iterdir()}
    ended = run(checkout, place)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {item: item.stat().st_ctime_ns for item in (place / "images").iterdir()} == before
