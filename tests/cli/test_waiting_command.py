"""``wait`` and ``--wait`` where an agent does the work, and ``run`` itself."""

import os
import signal
import subprocess
import threading
import time

import pytest

from controller.locking import AgentLock


def test_waiting_for_what_is_so_returns_at_once(poolkeeper, write, pool, volume):
    poolkeeper("apply", write("all.yaml", pool(), volume()))
    result = poolkeeper("wait", "spool/images", "svol/disk", "--timeout", "0")
    assert (result.code, len(result.out.splitlines())) == (0, 2)
    assert "No agent" in result.err
    assert poolkeeper("wait", "svol", "disk", "--for", "condition=Ready=False",
                      "--timeout", "0").code == 3  # fmt: skip


def test_what_stalled_fails_and_what_is_late_ends_with_3(poolkeeper, write, pool, volume, tmp_path):
    store = {"path": str(tmp_path / "no.raw"), "format": "raw"}
    late = volume("late", format="qcow2", backingStore=store)
    poolkeeper("apply", write("all.yaml", pool(), volume(capacity="2Mi"), late))
    poolkeeper("apply", write("all.yaml", volume(capacity="1Mi")))
    stalled = poolkeeper("wait", "svol", "disk", "--timeout", "4m")
    assert stalled.code == 1
    assert "shrink" in stalled.err
    assert poolkeeper("wait", "svol", "late", "--timeout", "100ms").code == 3
    assert poolkeeper("wait", "svol", "disk", "--for", "condition=Stalled").code == 0


def test_waiting_for_what_is_not_there(poolkeeper):
    assert poolkeeper("wait", "svol", "disk").code == 1
    assert poolkeeper("wait", "svol", "disk", "--for", "delete").code == 0


def test_an_agent_is_handed_the_work(poolkeeper, agent, write, pool, volume, images):
    policy = {"deletionPolicy": "Delete"}
    agent()
    manifest = write("all.yaml", pool(**policy), volume(**policy))
    result = poolkeeper("apply", manifest, "--wait", "--timeout", "4m")
    assert result.code == 0, result.err
    assert "An agent" in result.err
    assert "done" not in result.err
    assert (images / "disk").exists()
    gone = poolkeeper("delete", "-f", manifest, "--wait", "--timeout", "4m")
    assert gone.code == 0, gone.err
    assert not images.exists()


def test_waiting_sees_what_changed_since_the_agent_looked(
    poolkeeper, agent, write, pool, volume, images
):
    agent()
    manifest = write("all.yaml", pool(), volume())
    assert poolkeeper("apply", manifest, "--wait", "--timeout", "4m").code == 0
    (images / "disk").unlink()
    result = poolkeeper("apply", manifest, "--wait", "--timeout", "4m")
    assert result.code == 1
    assert "was there and has gone" in result.err


def test_without_waiting_the_agent_is_left_alone(poolkeeper, agent, write, pool, images):
    agent()
    assert poolkeeper("apply", write("pool.yaml", pool())).code == 0
    assert poolkeeper("wait", "spool", "images", "--timeout", "4m").code == 0
    assert images.is_dir()


def test_one_agent_keeps_a_state_directory(poolkeeper, agent):
    first = agent()
    second = poolkeeper("run")
    assert second.code == 1
    assert f"process {first.pid}" in second.err
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait() == 0
    agent()


def test_an_agent_follows_a_directory_and_prunes(
    poolkeeper, agent, write, pool, volume, images, tmp_path
):
    policy = {"deletionPolicy": "Delete"}
    write("pool.yaml", pool())
    kept = write("a.yaml", volume("a", **policy))
    removed = write("b.yaml", volume("b", **policy))
    agent("--directory", tmp_path / "manifests", "--prune")
    removed_made = images / "b"
    while not removed_made.exists() or not (images / "a").exists():
        time.sleep(0.01)
    assert poolkeeper("wait", "svol", "a", "b", "--timeout", "4m").code == 0
    removed.unlink()
    assert poolkeeper("wait", "svol", "b", "--for", "delete", "--timeout", "4m").code == 0
    assert not removed_made.exists()
    assert kept.exists()
    assert (images / "a").exists()


def test_a_killed_agent_leaves_the_work_to_a_command(poolkeeper, agent, write, pool, images):
    killed = agent()
    killed.kill()
    killed.wait()
    result = poolkeeper("apply", write("pool.yaml", pool()))
    assert result.code == 0
    assert images.is_dir()


def test_the_lock_goes_with_its_holder(tmp_path):
    first, second = AgentLock(tmp_path), AgentLock(tmp_path)
    with first:
        assert first.try_acquire("agent")
        assert first.try_acquire("agent")
        assert not second.try_acquire("command")
        holder = second.holder()
        assert holder is not None
        assert (holder.role, holder.pid) == ("agent", os.getpid())
    assert second.holder() is None
    assert second.try_acquire("command")
    second.release()
    assert not second.held


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"role": "king", "pid": 1}', "\x00"])
def test_what_is_not_a_holder_is_nobody(tmp_path, text):
    (tmp_path / "agent.lock").write_text(text)
    assert AgentLock(tmp_path).holder() is None
    assert AgentLock(tmp_path).try_acquire("agent")


def test_an_interrupt_ends_a_command_and_frees_the_lock(
    poolkeeper, write, pool, volume, images, tmp_path
):
    store = {"path": str(tmp_path / "never.raw"), "format": "raw"}
    manifest = write("all.yaml", pool(), volume(format="qcow2", backingStore=store))
    waiting = subprocess.Popen(
        poolkeeper.argv("apply", manifest, "--wait", "--timeout", "1h"),
        env=poolkeeper.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stderr is not None
    for line in waiting.stderr:
        if line.startswith("failed"):
            break
    waiting.send_signal(signal.SIGINT)
    rest = waiting.stderr.read()
    waiting.stderr.close()
    assert waiting.wait() == 130
    assert "Traceback" not in rest
    assert AgentLock(poolkeeper.state).try_acquire("agent")


def test_a_waiting_command_does_the_work_of_an_agent_that_ends(
    poolkeeper, agent, write, pool, volume, images, tmp_path
):
    base = tmp_path / "later.raw"
    store = {"path": str(base), "format": "raw"}
    manifest = write("all.yaml", pool(), volume(format="qcow2", backingStore=store))
    first = agent()

    def end_the_agent():
        while not images.exists():
            time.sleep(0.01)
        first.kill()
        base.write_bytes(bytes(2**20))

    thread = threading.Thread(target=end_the_agent)
    thread.start()
    result = poolkeeper("apply", manifest, "--wait", "--timeout", "4m")
    thread.join()
    assert result.code == 0, result.err
    assert (images / "disk").exists()
