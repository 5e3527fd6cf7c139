"""How the command line is used: help, exit codes, colours, completion."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from controller.cli.options import seconds
from controller.cli.session import default_state_directory

COMMANDS = (
    "apply", "plan", "get", "describe", "delete", "wait", "events", "lookup", "xml", "convert",
    "capabilities", "find-sources", "import-libvirt", "crds", "run", "operator", "volume",
)  # fmt: skip


def test_help_names_every_command(poolkeeper):
    result = poolkeeper("--help")
    assert result.code == 0
    listed = result.out.partition("Commands:")[2].splitlines()
    assert [line.split()[0] for line in listed if line.strip()] == list(COMMANDS)
    assert not [line for line in listed if "..." in line]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(poolkeeper, command):
    result = poolkeeper(command, "--help")
    assert result.code == 0
    described, _, examples = result.out.partition("Examples:")
    assert described.splitlines()[2].strip()[0].isupper()
    assert f"poolkeeper {command}" in examples


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["get"],
        ["get", "nothing"],
        ["get", "spool", "--no-such"],
        ["get", "spool", "-o", "pdf"],
        ["get", "spool,svol", "images"],
        ["get", "spool/a/b"],
        ["get", "spool/"],
        ["describe", "spool"],
        ["wait", "spool", "a", "--for", "luck"],
        ["wait", "spool", "a", "--timeout", "soon"],
        ["convert", "x.yaml"],
        ["xml"],
        ["find-sources"],
        ["find-sources", "netfs", "--port", "2049"],
        ["find-sources", "netfs", "--host", "a", "--port", "0"],
        ["run", "--prune"],
        ["run", "--branch", "main"],
    ],
)
def test_a_mistake_in_usage_ends_with_64(poolkeeper, arguments):
    result = poolkeeper(*arguments)
    assert result.code == 64
    assert result.out == ""
    assert result.err
    assert not poolkeeper.state.exists()


def test_the_process_ends_with_the_same_code(poolkeeper):
    assert poolkeeper.process("get", "nothing").code == 64
    assert poolkeeper.process("get", "spool", "nobody").code == 1
    assert poolkeeper.process("--version").out.startswith("poolkeeper ")


def test_the_state_directory_is_an_option_before_the_environment(poolkeeper, write, pool, tmp_path):
    manifest = write("pool.yaml", pool())
    assert poolkeeper("apply", manifest, "--state-dir", tmp_path / "other").code == 0
    assert not poolkeeper.state.exists()
    assert poolkeeper("get", "spool", "images").code == 1
    assert poolkeeper("get", "spool", "images", "--state-dir", tmp_path / "other").code == 0


def test_the_state_directory_follows_the_user(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_state_directory() == Path("/var/lib/poolkeeper")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    assert default_state_directory() == tmp_path / ".local" / "state" / "poolkeeper"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert default_state_directory() == tmp_path / "xdg" / "poolkeeper"


def test_a_state_directory_that_cannot_be_made_is_an_error(poolkeeper, write, pool, tmp_path):
    (tmp_path / "file").write_text("")
    result = poolkeeper("apply", write("pool.yaml", pool()), "--state-dir", tmp_path / "file")
    assert result.code == 1
    assert "file" in result.err
    assert "Traceback" not in result.err


def on_terminal(poolkeeper, *arguments, **environment):
    """What a command writes to a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        poolkeeper.argv(*arguments),
        env=poolkeeper.environment(TERM="xterm", **environment),
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    written = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # Linux says so at the end of a terminal
            break
        if not part:
            break
        written += part
    os.close(leader)
    process.wait()
    return written.decode()


def test_colours_and_bars_are_for_terminals(poolkeeper, write, pool, volume, images):
    manifest = write("all.yaml", pool(), volume())
    drawn = on_terminal(poolkeeper, "apply", manifest, NO_COLOR="")
    assert "\x1b[32m" in drawn
    assert f"done    CreateVolume          StorageVolume/default/disk ({images}/disk)" in drawn
    shown = on_terminal(poolkeeper, "get", "spool", NO_COLOR="")
    assert "\x1b[32m" in shown
    assert "░" in shown or "█" in shown
    plain = on_terminal(poolkeeper, "get", "spool", NO_COLOR="1")
    assert "\x1b[3" not in plain
    for arguments in (
        ("get", "spool"),
        ("plan",),
        ("apply", manifest),
        ("describe", "spool/images"),
    ):
        piped = poolkeeper.process(*arguments)
        assert "\x1b" not in piped.out + piped.err
        assert "░" not in piped.out


def test_a_reader_that_has_enough_is_no_error(poolkeeper):
    process = subprocess.Popen(
        poolkeeper.argv("crds"),
        env=poolkeeper.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()


def test_shells_are_offered_commands_kinds_and_names(poolkeeper, write, pool, volume):
    poolkeeper("apply", write("all.yaml", pool(), volume("web-1"), volume("web-2")))

    def offered(line):
        result = poolkeeper.process(
            _POOLKEEPER_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=f"poolkeeper {line}"
        )
        return result.out

    assert "describe" in offered("desc")
    assert "storagevolumes" in offered("get storagev")
    assert "web-2" in offered("get svol web-1 web-")
    assert "images" not in offered("get svol ")


def test_help_loads_nothing_heavy(poolkeeper):
    script = (
        "import sys; from controller.cli.main import main; main(['--help']); "
        "print(*{'pydantic', 'lxml', 'yaml', 'sqlite3', 'watchdog'} & {*sys.modules})"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=poolkeeper.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("100ms", 0.1), ("1.5s", 1.5)],
)
def test_spans_of_time(text, expected):
    assert seconds(text) == pytest.approx(expected)
