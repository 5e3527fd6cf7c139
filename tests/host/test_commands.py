from __future__ import annotations

import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable

import pytest

from backends import errors
from backends.host import commands


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def is_alive(pid: int) -> bool:
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def eventually(holds: Callable[[], bool]) -> bool:
    limit = time.monotonic() + 60
    while not holds():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".part", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""


def test_what_a_command_says_and_its_status_come_back() -> None:
    completed = commands.run(
        python("import sys; print('é'); print('note', file=sys.stderr); sys.exit(5)"),
        expected=(0, 5),
    )
    assert completed.stdout == "é\n"
    assert completed.stderr == "note\n"
    assert completed.status == 5
    assert completed.argv[0] == sys.executable
    assert completed.seconds > 0


def test_input_larger_than_a_pipe_passes_through_while_output_is_read() -> None:
    data = os.urandom(2**20).hex().encode()
    assert commands.run(["cat"], input=data).stdout.encode() == data


def test_a_command_that_ignores_its_input_is_no_failure() -> None:
    assert commands.run(["true"], input=b"x" * 2**20).status == 0


def test_standard_input_is_empty_unless_given() -> None:
    assert commands.run(["cat"]).stdout == ""
    assert commands.run(["cat"], input=b"").stdout == ""


def test_bytes_that_are_not_utf8_survive_as_in_names() -> None:
    completed = commands.run(["cat"], input=b"a\xffb")
    assert os.fsencode(completed.stdout) == b"a\xffb"


def test_nothing_of_the_environment_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLKEEPER_TEST_SECRET", "hunter2")
    monkeypatch.setenv("PATH", "/nowhere")
    lines = commands.run(["env"]).stdout.splitlines()
    assert sorted(line.split("=")[0] for line in lines) == ["LC_ALL", "PATH"]
    assert "LC_ALL=C.UTF-8" in lines
    assert any(line.startswith("PATH=") and "/usr/sbin" in line for line in lines)


def test_variables_that_are_asked_for_are_given() -> None:
    assert "A=b c" in commands.run(["env"], environment={"A": "b c"}).stdout.splitlines()


def test_arguments_reach_the_program_unchanged() -> None:
    arguments = ["$(id)", "a b", "", "*", "; true"]
    completed = commands.run(python("import sys; print(sys.argv[1:])", *arguments))
    assert completed.stdout == f"{arguments}\n"


def test_descriptors_pass_only_where_asked(tmp_path: pathlib.Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        path = f"/proc/self/fd/{fd}"
        assert commands.run(["ls", path], expected=(0, 2)).status == 2
        assert commands.run(["ls", path], pass_fds=(fd,)).status == 0
    finally:
        os.close(fd)


def test_a_command_runs_where_it_is_told(tmp_path: pathlib.Path) -> None:
    assert commands.run(["pwd", "-P"], cwd=tmp_path).stdout.strip() == str(tmp_path.resolve())


def test_a_failure_names_the_command_the_status_and_the_first_useful_line() -> None:
    code = (
        "import sys; sys.stderr.write('\\nWARNING: old\\nno such \\x1b[31mgroup\\n'); sys.exit(5)"
    )
    with pytest.raises(errors.CommandFailed) as caught:
        commands.run(python(code, "a b"))
    assert "'a b' ended with status 5: no such [31mgroup" in caught.value.message


def test_a_lone_warning_is_better_than_nothing() -> None:
    with pytest.raises(errors.CommandFailed, match="WARNING: only this"):
        commands.run(python("import sys; sys.exit('WARNING: only this')"))


def test_a_failure_by_a_signal_names_it() -> None:
    with pytest.raises(errors.CommandFailed, match="SIGKILL"):
        commands.run(python("import os; os.kill(os.getpid(), 9)"))


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "SEARCH_PATH", "/nowhere")
    before = commands.spawned()
    with pytest.raises(errors.MissingTool) as caught:
        commands.run(["lvs"])
    assert "lvs" in caught.value.message
    assert "lvm2" in caught.value.hint
    assert commands.spawned() == before
    with pytest.raises(errors.MissingTool, match="/nowhere/tool"):
        commands.run(["/nowhere/tool"])


def test_a_file_that_is_no_program_is_refused(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(errors.MissingTool, match="can't be run"):
        commands.run([str(program)])


def test_programs_in_sbin_are_found_whatever_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert commands.which("mount") is not None
    assert commands.which("poolkeeper-no-such-program") is None


def test_at_the_deadline_grandchildren_die_too(tmp_path: pathlib.Path) -> None:
    note = tmp_path / "pids"
    # A slow machine may need longer to have a grandchild at all.
    for seconds in (2, 8, 32, 128):
        with pytest.raises(errors.Timeout) as caught:
            commands.run(python(FAMILY, str(note)), timeout=seconds)
        assert f"within {seconds} s" in caught.value.message
        assert sys.executable in caught.value.message
        if note.exists():
            break
    pids = [int(word) for word in note.read_text().split()]
    assert len(pids) == 2
    assert eventually(lambda: not any(is_alive(pid) for pid in pids))


def cancelled_when(ready: pathlib.Path, argv: list[str]) -> errors.Cancelled:
    """Run a command, and cancel it once it has made a file."""
    cancel = threading.Event()

    def cancel_when_ready() -> None:
        eventually(ready.exists)
        cancel.set()

    thread = threading.Thread(target=cancel_when_ready)
    thread.start()
    with pytest.raises(errors.Cancelled) as caught:
        commands.run(argv, timeout=500, cancel=cancel)
    thread.join()
    return caught.value


def test_a_cancelled_command_dies_with_its_grandchildren(tmp_path: pathlib.Path) -> None:
    note = tmp_path / "pids"
    error = cancelled_when(note, python(FAMILY, str(note)))
    assert "500 s" in error.message
    assert sys.executable in error.message
    pids = [int(word) for word in note.read_text().split()]
    assert len(pids) == 2
    assert eventually(lambda: not any(is_alive(pid) for pid in pids))


def test_what_ignores_sigterm_is_killed(tmp_path: pathlib.Path) -> None:
    note = tmp_path / "pids"
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAMILY
    cancelled_when(note, python(stubborn, str(note)))
    pids = [int(word) for word in note.read_text().split()]
    assert eventually(lambda: not any(is_alive(pid) for pid in pids))


def test_what_minds_sigterm_can_clean_up(tmp_path: pathlib.Path) -> None:
    ready, cleaned = tmp_path / "ready", tmp_path / "cleaned"
    code = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path(sys.argv[2]).touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""
    cancelled_when(ready, python(code, str(ready), str(cleaned)))
    assert cleaned.exists()


def test_a_command_cancelled_beforehand_is_never_started() -> None:
    cancel = threading.Event()
    cancel.set()
    before = commands.spawned()
    with pytest.raises(errors.Cancelled):
        commands.run(["true"], cancel=cancel)
    assert commands.spawned() == before


def test_a_daemon_left_behind_lives_on_and_holds_up_nobody() -> None:
    code = """
import subprocess, sys
daemon = subprocess.Popen(["sleep", "300"], start_new_session=True)
print(daemon.pid)
"""
    completed = commands.run(python(code), timeout=100)
    daemon = int(completed.stdout)
    try:
        assert completed.seconds < 100
        assert is_alive(daemon)
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_a_command_that_closes_its_output_is_waited_for() -> None:
    code = "import os, sys, time; os.close(1); os.close(2); time.sleep(0.5); os._exit(3)"
    assert commands.run(python(code), expected=(3,)).seconds >= 0.5


def test_more_output_than_the_bound_fails_and_is_not_cut_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commands, "MAX_OUTPUT", 2**20)
    assert len(commands.run(["head", "-c", str(2**20), "/dev/zero"]).stdout) == 2**20
    with pytest.raises(errors.CommandFailed, match="more than 1048576 bytes"):
        commands.run(["cat", "/dev/zero"])


def test_only_the_end_of_a_long_standard_error_is_kept() -> None:
    code = "import sys; sys.stderr.write('x' * 200_000 + 'the end')"
    said = commands.run(python(code)).stderr
    assert len(said) == commands.MAX_DIAGNOSTICS
    assert said.endswith("xthe end")


def test_started_processes_are_counted() -> None:
    before = commands.spawned()
    commands.run(["true"])
    commands.run(["false"], expected=(1,))
    assert commands.spawned() == before + 2


def test_a_command_is_shown_as_a_person_would_type_it() -> None:
    assert commands.quote(["lvs", "a b", "$x"]) == "lvs 'a b' '$x'"


def test_no_process_and_no_descriptor_is_left_over() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    commands.run(["true"])
    before, children_before = descriptors(), children()
    for _ in range(5):
        commands.run(["true"])
        with pytest.raises(errors.Timeout):
            commands.run(["sleep", "600"], timeout=0.2)
    assert descriptors() == before
    assert not children() - children_before


def children() -> set[int]:
    """The pids of this process's children, zombies included."""
    found = set()
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_bytes().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found
