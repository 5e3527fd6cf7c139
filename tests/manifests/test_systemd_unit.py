"""The unit runs a command that exists, and the agent does what the unit says of it."""

import configparser
import re
import shlex
import shutil
import socket
import stat
import subprocess

import pytest

from controller.cli.session import SYSTEM_STATE
from tests.manifests.conftest import MANIFESTS
from tests.processes import PATIENCE, Poolkeeper

UNIT = MANIFESTS / "systemd" / "poolkeeper.service"


@pytest.fixture
def unit():
    found = configparser.ConfigParser(interpolation=None, strict=True)
    found.optionxform = str
    found.read(UNIT)
    return found


@pytest.fixture
def command(unit):
    return shlex.split(unit["Service"]["ExecStart"])


def test_the_command_and_its_options_exist(command, tmp_path):
    program, word, *options = command
    assert program.rpartition("/")[2] == "poolkeeper"
    assert word == "run"
    shown = Poolkeeper(tmp_path / "state", tmp_path).done("run", "--help").out
    known = set(re.findall(r"--[a-z][-a-z]+", shown))
    assert {item for item in options if item.startswith("-")} <= known


def test_the_state_directory_is_the_one_that_commands_of_root_use(unit):
    assert f"/var/lib/{unit['Service']['StateDirectory']}" == str(SYSTEM_STATE)
    assert unit["Service"]["StateDirectoryMode"] == "0700"


def test_it_shares_the_mounts_and_devices_of_the_host(unit):
    """These give a service a mount namespace or a list of devices of its own (systemd.exec(5))."""
    private = re.compile(
        "Protect.*|Private(Tmp|Devices|Mounts|Users)|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec)"
        "Paths|Root(Directory|Image)|Bind.*Paths|Temporary.*|MountAPIVFS|MountFlags|Dynamic.*|"
        "Device(Allow|Policy)|ProcSubset"
    )
    assert [name for name in unit["Service"] if private.fullmatch(name)] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_it(command, tmp_path):
    program = tmp_path / "poolkeeper"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(command[0], str(program)))
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False
    )
    assert [line for line in ended.stderr.splitlines() if UNIT.name in line] == []
    assert ended.returncode == 0, ended.stderr


def test_the_agent_tells_its_manager_when_it_is_ready_and_ends_on_sigterm(unit, command, tmp_path):
    assert unit["Service"]["Type"] == "notify"
    followed, state = tmp_path / "followed", tmp_path / "state"
    followed.mkdir()
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(PATIENCE)
        options = [str(followed) if item == "/etc/poolkeeper" else item for item in command[2:]]
        keeper = Poolkeeper(state, tmp_path)
        with keeper.agent(*options, NOTIFY_SOCKET=str(address)):
            assert manager.recv(100) == b"READY=1"
        assert manager.recv(100) == b"STOPPING=1"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
