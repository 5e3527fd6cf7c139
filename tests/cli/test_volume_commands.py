"""``poolkeeper volume``: with an agent and without, the same comes of it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time

import pytest

from controller.store import Store
from tests.cli.conftest import resource
from tests.keeper import image_info, volume_key

MIB = 2**20
COMMANDS = ("resize", "clone", "wipe", "upload", "download")


@pytest.fixture(params=["alone", "agent"])
def disk(request, poolkeeper, write, pool, volume, images):
    """A volume of 4 MiB, of a pool that an agent keeps or that nobody does."""
    manifest = write("a.yaml", pool(), volume("disk", capacity="4Mi"))
    if request.param == "agent":
        request.getfixturevalue("agent")()
        _until((poolkeeper.state / "agent.sock").exists)
    result = poolkeeper("apply", "-f", manifest, "--wait")
    assert result.code == 0, result.err
    return images / "disk"


def _until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_explains_itself_with_examples(poolkeeper, command):
    result = poolkeeper("volume", command, "--help")
    assert result.code == 0
    assert f"poolkeeper volume {command}" in result.out.partition("Examples:")[2]
    assert command in poolkeeper("volume", "--help").out


class TestMoving:
    def test_what_goes_in_comes_out(self, poolkeeper, disk, tmp_path):
        sent, came = tmp_path / "sent", tmp_path / "came"
        with sent.open("wb") as file:
            file.seek(MIB)
            file.write(os.urandom(MIB))
            file.truncate(4 * MIB)
        digest = f"sha256:{hashlib.sha256(sent.read_bytes()).hexdigest()}\n"
        disk.write_bytes(b"\xff" * 4 * MIB)
        up = poolkeeper("volume", "upload", "disk", sent, "--checksum", "sha256")
        assert (up.code, up.out) == (0, digest), up.err
        assert disk.read_bytes() == sent.read_bytes()
        assert disk.stat().st_blocks * 512 <= MIB + 128 * 1024
        down = poolkeeper("volume", "download", "disk", came, "--checksum", "sha256")
        assert (down.code, down.out) == (0, digest), down.err
        assert came.read_bytes() == sent.read_bytes()
        assert came.stat().st_blocks * 512 <= MIB + 128 * 1024

    def test_parts(self, poolkeeper, disk, tmp_path):
        disk.write_bytes(os.urandom(4 * MIB))
        before, part = disk.read_bytes(), tmp_path / "part"
        done = poolkeeper("volume", "download", "disk", part, "--offset", "1Mi", "--length", "512")
        assert done.code == 0, done.err
        assert part.read_bytes() == before[MIB : MIB + 512]
        done = poolkeeper("volume", "upload", "disk", part, "--offset", "3")
        assert done.code == 0, done.err
        assert disk.read_bytes() == before[:3] + part.read_bytes() + before[515:]

    def test_pipes(self, poolkeeper, disk, tmp_path):
        data = bytes(MIB) + os.urandom(MIB)
        sent = tmp_path / "sent"
        sent.write_bytes(data)
        given = {"env": poolkeeper.environment(), "capture_output": True}
        with sent.open("rb") as file:
            up = subprocess.run(
                f"cat | {' '.join(poolkeeper.argv('volume', 'upload', 'disk', '-'))}",
                shell=True, stdin=file, check=False, **given,
            )  # fmt: skip
        assert up.returncode == 0, up.stderr
        argv = poolkeeper.argv("volume", "download", "disk", "-")
        down = subprocess.run(argv, check=False, **given)
        assert down.returncode == 0, down.stderr
        assert down.stdout == data + bytes(2 * MIB)

    def test_a_file_that_is_there_is_kept(self, poolkeeper, disk, tmp_path):
        file = tmp_path / "file"
        file.write_bytes(b"mine")
        refused = poolkeeper("volume", "download", "disk", file)
        assert refused.code == 1
        assert "--force" in refused.err
        assert file.read_bytes() == b"mine"
        assert poolkeeper("volume", "download", "disk", file, "--force").code == 0
        assert file.read_bytes() == disk.read_bytes()

    def test_a_download_goes_on(self, poolkeeper, disk, tmp_path):
        disk.write_bytes(os.urandom(4 * MIB))
        file = tmp_path / "file"
        file.write_bytes(disk.read_bytes()[: 3 * MIB])
        done = poolkeeper("volume", "download", "disk", file, "--resume")
        assert done.code == 0, done.err
        assert file.read_bytes() == disk.read_bytes()
        again = poolkeeper("volume", "download", "disk", file, "--resume")
        assert (again.code, file.read_bytes()) == (0, disk.read_bytes())

    def test_an_upload_goes_on(self, poolkeeper, disk, tmp_path):
        sent = tmp_path / "sent"
        sent.write_bytes(os.urandom(4 * MIB))
        process = subprocess.Popen(
            poolkeeper.argv("volume", "upload", "disk", "-"),
            env=poolkeeper.environment(), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        process.stdin.write(sent.read_bytes()[: 2 * MIB])
        process.stdin.flush()
        _until(lambda: disk.read_bytes()[:MIB] == sent.read_bytes()[:MIB])
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdin.close()
        _until(lambda: _reached(poolkeeper))
        done = poolkeeper("volume", "upload", "disk", sent, "--resume")
        assert done.code == 0, done.err
        assert "Going on at" in done.err
        assert disk.read_bytes() == sent.read_bytes()

    def test_what_can_not_be_is_said(self, poolkeeper, disk, tmp_path):
        large = tmp_path / "large"
        large.write_bytes(bytes(4 * MIB + 1))
        before = disk.read_bytes()
        for arguments, said in [
            (("upload", "disk", large), "would not fit"),
            (("upload", "none", large), "no StorageVolume/default/none"),
            (("upload", "disk", tmp_path / "none"), "Could not open"),
            (("download", "disk", "-", "--offset", "5Mi"), "nothing at byte"),
            (("download", "disk", tmp_path / "no" / "file"), "Could not open"),
        ]:
            result = poolkeeper("volume", *arguments)
            assert result.code == 1, arguments
            assert said in result.err, result.err
        assert disk.read_bytes() == before

    def test_an_image_takes_the_place_of_the_old_one(
        self, poolkeeper, disk, write, volume, images, tmp_path
    ):
        manifest = write("b.yaml", volume("image", capacity="8Mi", format="qcow2"))
        assert poolkeeper("apply", "-f", manifest, "--wait").code == 0
        source = tmp_path / "source.qcow2"
        make = ["qemu-img", "create", "-q", "-f", "qcow2", str(source), "8M"]
        subprocess.run(make, check=True)
        subprocess.run(["qemu-io", "-c", "write -P 9 1M 1M", str(source)], check=True)
        done = poolkeeper("volume", "upload", "image", source)
        assert done.code == 0, done.err
        compare = ["qemu-img", "compare", str(source), str(images / "image")]
        subprocess.run(compare, check=True, capture_output=True)

    @pytest.fixture(params=["agent", "command"])
    def image(self, request, poolkeeper, write, pool, volume, images, tmp_path):
        """Begin to upload an image: the file that is sent, who does it and the command."""
        manifest = write("a.yaml", pool(), volume("image", capacity="8Mi", format="qcow2"))
        assert poolkeeper("apply", "-f", manifest, "--wait").code == 0
        agent = request.getfixturevalue("agent")() if request.param == "agent" else None
        noise, sent = tmp_path / "noise", tmp_path / "sent"
        noise.write_bytes(os.urandom(6 * MIB))
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(noise), str(sent)], check=True)
        process = subprocess.Popen(
            poolkeeper.argv("volume", "upload", "image", "-"),
            env=poolkeeper.environment(), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        process.stdin.write(sent.read_bytes()[: 3 * MIB])
        process.stdin.flush()
        _until(lambda: any(path.stat().st_size >= MIB for path in images.glob(".poolkeeper/*")))
        return sent, agent or process, process

    def test_a_kill_in_an_upload_of_an_image_leaves_the_old_one(
        self, poolkeeper, image, images, agent
    ):
        sent, worker, process = image
        before = (images / "image").read_bytes()
        worker.kill()
        worker.wait()
        process.stdin.close()
        process.wait(60)
        assert (images / "image").read_bytes() == before
        agent()
        shown = poolkeeper("get", "spool", "images", "-o", "json").json["status"]
        assert shown["volumes"] == {"total": 1, "managed": 1, "unmanaged": 0}
        # How far it came on the disk is not known, so that nothing of it is believed.
        done = poolkeeper("volume", "upload", "image", sent, "--resume")
        assert (done.code, "it begins anew" in done.err) == (0, True), done.err
        assert (images / "image").read_bytes() == sent.read_bytes()
        assert [path.name for path in images.iterdir()] == ["image"]

    def test_an_upload_of_an_image_goes_on(self, poolkeeper, image, images):
        sent, _, process = image
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdin.close()
        _until(lambda: _reached(poolkeeper, "image"))
        done = poolkeeper("volume", "upload", "image", sent, "--resume", "--checksum", "sha256")
        assert done.code == 0, done.err
        assert "Going on at" in done.err
        assert done.out.strip() == f"sha256:{hashlib.sha256(sent.read_bytes()).hexdigest()}"
        assert (images / "image").read_bytes() == sent.read_bytes()


def _reached(poolkeeper, name="disk"):
    store = Store(poolkeeper.state)
    try:
        uid = store.get(volume_key(name)).metadata.uid
        return store.runtime(uid).get("upload")
    finally:
        store.close()


class TestChanging:
    def test_wiping(self, poolkeeper, disk):
        disk.write_bytes(os.urandom(4 * MIB))
        done = poolkeeper("volume", "wipe", "disk", "--algorithm", "random")
        assert done.code == 0, done.err
        assert "Wiped StorageVolume/default/disk" in done.err
        first = disk.read_bytes()
        assert poolkeeper("volume", "wipe", "disk").code == 0
        assert first not in (bytes(4 * MIB), disk.read_bytes())
        assert disk.read_bytes() == bytes(4 * MIB)
        listed = poolkeeper("get", "volop").out
        assert listed.count("Succeeded") == 2

    def test_a_wipe_that_is_refused(self, poolkeeper, disk):
        before = disk.read_bytes()
        with disk.open("rb") as held:
            holder = subprocess.Popen(["sleep", "100"], stdin=held)
        try:
            done = poolkeeper("volume", "wipe", "disk")
        finally:
            holder.kill()
            holder.wait()
        assert done.code == 1
        assert f"sleep (pid {holder.pid})" in done.err
        assert disk.read_bytes() == before
        assert poolkeeper("volume", "wipe", "none").code == 1

    def test_resizing(self, poolkeeper, disk):
        for size, bytes_ in [("8Mi", 8), ("+2Mi", 10)]:
            done = poolkeeper("volume", "resize", "disk", size)
            assert done.code == 0, done.err
            assert disk.stat().st_size == bytes_ * MIB
        refused = poolkeeper("volume", "resize", "disk", "-1Mi")
        assert refused.code == 1
        assert "--allow-shrink" in refused.err
        assert disk.stat().st_size == 10 * MIB
        done = poolkeeper("volume", "resize", "disk", "-1Mi", "--allow-shrink")
        assert done.code == 0, done.err
        assert disk.stat().st_size == 9 * MIB
        spec = poolkeeper("get", "svol", "disk", "-o", "json").json["spec"]
        assert spec["capacity"] == "9Mi"
        assert not spec["resize"]["allowShrink"]
        assert poolkeeper("volume", "resize", "disk", "soon").code == 64

    def test_a_manifest_that_declares_it_too_is_named(
        self, poolkeeper, write, pool, volume, images
    ):
        manifest = write("a.yaml", pool(), volume("disk", capacity="4Mi"))
        assert poolkeeper("apply", "-f", manifest, "--wait").code == 0
        store = Store(poolkeeper.state)
        found = store.get(volume_key("disk"))
        from controller.cli.changing import _redeclared

        store.apply(_redeclared(found, found.spec), source="directory:/etc/poolkeeper")
        store.close()
        done = poolkeeper("volume", "resize", "disk", "+1Mi")
        assert done.code == 0, done.err
        assert "directory:/etc/poolkeeper" in done.err

    def test_cloning(self, poolkeeper, disk, images):
        disk.write_bytes(os.urandom(4 * MIB))
        done = poolkeeper("volume", "clone", "disk", "copy", "--wait")
        assert done.code == 0, done.err
        assert (images / "copy").read_bytes() == disk.read_bytes()
        again = poolkeeper("volume", "clone", "disk", "copy")
        assert (again.code, "There is a StorageVolume" in again.err) == (1, True)

    def test_a_clone_keeps_the_suffix(self, poolkeeper, write, pool, volume, images):
        manifest = write(
            "a.yaml", pool(), volume("golden", capacity="4Mi", format="qcow2",
                                     volumeName="golden.qcow2"),
        )  # fmt: skip
        assert poolkeeper("apply", "-f", manifest, "--wait").code == 0
        assert poolkeeper("volume", "clone", "golden", "web", "--wait").code == 0
        assert image_info(images / "web.qcow2")["format"] == "qcow2"


def test_a_wipe_that_is_interrupted_is_cancelled(poolkeeper, write, pool, volume, images):
    manifest = write("a.yaml", pool(), volume("disk", capacity="512Mi", allocation="512Mi"))
    assert poolkeeper("apply", "-f", manifest, "--wait").code == 0
    with (images / "disk").open("r+b") as file:  # what was never written need not be wiped
        file.write(os.urandom(512 * 2**20))
    process = subprocess.Popen(
        poolkeeper.argv("volume", "wipe", "disk", "--algorithm", "gutmann"),
        env=poolkeeper.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    _until(lambda: "Running" in poolkeeper("get", "volop").out)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Cancelled" in poolkeeper("get", "volop").out


@pytest.mark.parametrize(
    "arguments",
    [
        ["upload", "disk", "x", "--checksum", "md5"],
        ["upload", "disk", "x", "--offset", "far"],
        ["upload", "disk", "x", "--server", "https://a"],
        ["upload", "disk", "x", "--ca", "x"],
        ["download", "disk", "-", "--resume"],
        ["wipe", "disk", "--algorithm", "hope"],
        ["clone", "disk", "copy", "--reflink", "Perhaps"],
        ["resize", "disk"],
    ],
)
def test_a_mistake_in_usage_ends_with_64(poolkeeper, write, pool, volume, arguments):
    poolkeeper("apply", "-f", write("a.yaml", pool(), volume("disk")), "--wait")
    assert poolkeeper("volume", *arguments).code == 64


def test_an_operation_that_is_applied_is_carried_out(poolkeeper, write, pool, volume, images):
    operation = resource(
        "VolumeOperation", "gone", {"volumeRef": {"name": "disk"}, "operation": "Wipe"}
    )
    operation["metadata"]["namespace"] = "default"
    result = poolkeeper("apply", "-f", write("a.yaml", pool(), volume("disk"), operation), "--wait")
    assert result.code == 0, result.err
    assert poolkeeper("get", "volop", "gone", "-o", "json").json["status"]["phase"] == "Succeeded"
    assert poolkeeper("describe", "volop", "gone").code == 0
    assert poolkeeper("delete", "volop", "gone").code == 0


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_a_volume_that_is_not_made_yet_is_not_moved_and_says_so(
    poolkeeper, write, pool, volume, tmp_path, direction
):
    poolkeeper(
        "apply",
        "-f",
        write(
            "a.yaml",
            pool(),
            volume("disk", source={"file": {"path": str(tmp_path / "none"), "format": "raw"}}),
        ),
    )
    (tmp_path / "x").write_bytes(b"x")
    result = poolkeeper(
        "volume", direction, "disk", tmp_path / "x", *["--force"] * (direction == "download")
    )
    assert result.code == 1
    assert "CreateVolume goes first" in result.err
    assert (tmp_path / "x").read_bytes() == b"x"
