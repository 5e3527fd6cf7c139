"""A kill -9 between any two effects of what sets space aside, shrinks, encrypts and uploads.

Beside it stand making, growing and deleting (``test_kill_between_steps``), clones, imports and
wipes before a deletion (``test_kill_while_filling``), and wipes on command.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from controller import contents
from controller.admitting import Command
from controller.contents import Selection
from controller.secrets import FileSecrets
from controller.transfers import Transfers, Wanted
from tests.crash.place import Place
from tests.filling.conftest import same_contents, write_contents
from tests.keeper import image_info, make_image, marked, volume, volume_key

DISK = volume_key("disk")
KIB, MIB = 2**10, 2**20
PIECE = 64 * KIB


@dataclass(frozen=True)
class Change:
    """What is declared first and then, and what may be seen of it.

    :param sizes: capacities in MiB that the volume may have in between.
    :param least: MiB that are allocated in the end.
    """

    declared: dict[str, object]
    sizes: tuple[int, ...]
    before: dict[str, object] | None = None
    least: int = 0
    commands_only: bool = False
    format: str = field(default="raw", kw_only=True)


def _encrypted(format):
    encryption = {"format": "luks", "secretRef": {"name": "key"}}
    return {"format": format, "capacity": "4Mi", "allocation": "0", "encryption": encryption}


def _shrunk(format):
    before = {"format": format, "capacity": "24Mi", "allocation": "0"}
    return {**before, "capacity": "8Mi", "resize": {"allowShrink": True}}, (8, 24), before


CHANGES = {
    "raw with its space": Change({"capacity": "8Mi"}, (8,), least=8),
    "raw written with zeros": Change({"capacity": "8Mi", "preallocation": "Full"}, (8,), least=8),
    "qcow2 with its tables": Change(
        {"capacity": "8Mi", "preallocation": "Metadata"}, (8,), format="qcow2"
    ),
    "qcow2 with its space": Change(
        {"capacity": "8Mi", "preallocation": "Falloc"}, (8,), least=8, format="qcow2"
    ),
    "raw that shrinks": Change(*_shrunk("raw")),
    "qcow2 that shrinks": Change(*_shrunk("qcow2"), format="qcow2"),
    "encrypted raw": Change(_encrypted("raw"), (), commands_only=True),
    "encrypted qcow2": Change(_encrypted("qcow2"), (4,), commands_only=True, format="qcow2"),
}


@pytest.fixture
def place(tmp_path):
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "key").touch(mode=0o600)
    (secrets / "key").write_bytes(b"a passphrase")
    return Place(tmp_path, FileSecrets(secrets))


@pytest.mark.parametrize("name", CHANGES)
def test_a_volume_is_as_before_or_as_declared(place, name):
    change = CHANGES[name]
    path, format = place.images / "disk", change.format
    before, declared = (
        [volume("disk", "images", **{"format": format, **spec})] if spec else []
        for spec in (change.before, change.declared)
    )
    place.prepare(*before)
    if before:
        write_contents(path, format)

    def whole():
        if before or path.exists():
            assert marked(path)["resource"] == "StorageVolume/default/disk"
            assert not change.sizes or capacity(path, format) // MIB in change.sizes
            if before:
                data(path, format)

    def finished(keeper):
        keeper.assert_ready(DISK)
        whole()
        assert keeper.get(DISK).status.capacity == int(change.declared["capacity"][:-2]) * MIB
        assert path.stat().st_blocks * 512 >= change.least * MIB
        assert os.listdir(place.images) == ["disk"]

    kills = place.every_kill(
        lambda keeper: keeper.apply(*declared),
        killed=whole, finished=finished, commands_only=change.commands_only,
    )  # fmt: skip
    assert kills >= (1 if change.commands_only else 4)


def capacity(path, format):
    return path.stat().st_size if format == "raw" else image_info(path)["virtual-size"]


def data(path, format):
    """What ``write_contents`` wrote into the first MiB is there."""
    done = subprocess.run(
        ["qemu-io", "-r", "-f", format, "-c", "read -v 64k 16", str(path)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "00 00 00 00" not in done.stdout.splitlines()[0]


@pytest.fixture
def often(monkeypatch):
    """What came is written out, and noted, after each piece."""
    monkeypatch.setattr(contents, "SYNC_EVERY", PIECE)


def upload(keeper, data):
    """Send what did not arrive yet; each piece that comes is an effect of somebody else's."""
    transfers = Transfers(keeper.engine)
    reached = transfers.look(Wanted(volume=DISK, command=Command.DOWNLOAD)).reached or 0

    def pieces():
        for start in range(reached, len(data), PIECE):
            sys.audit("os.rename", "", "", -1, -1)
            yield data[start : start + PIECE]

    def run(target, selection, work):
        noted = lambda upto: transfers.note_reached(target, upto)  # noqa: E731
        return contents.write(target, selection, pieces(), work, synced=noted)

    wanted = Wanted(volume=DISK, command=Command.UPLOAD, selection=Selection(offset=reached))
    transfers.begin(wanted, run).outcome.result(120)
    assert keeper.engine.jobs.idle(120)
    return reached


def test_an_upload_into_a_raw_volume_goes_on_where_it_was_killed(place, often):
    path, old, new = place.images / "disk", b"\xaa" * MIB, os.urandom(MIB // 2)
    place.prepare(volume("disk", "images", capacity="1Mi", permissions={"mode": "0640"}))
    path.write_bytes(old)
    resumed = []

    def killed():
        found = path.read_bytes()
        arrived = range(0, len(new) + 1, PIECE)
        assert any(found == new[:came] + old[came:] for came in arrived)
        assert path.stat().st_mode & 0o777 == 0o640
        assert marked(path)["origin"] == "Created"

    def finished(keeper):
        keeper.assert_ready(DISK)
        assert path.read_bytes() == new + old[len(new) :]
        assert os.listdir(place.images) == ["disk"]

    kills = place.every_kill(
        lambda keeper: resumed.append(upload(keeper, new)), killed=killed, finished=finished
    )
    assert kills > len(new) // PIECE
    assert max(resumed) >= len(new) - PIECE


def test_an_upload_of_an_image_that_was_killed_leaves_the_old_one(place, often, tmp_path):
    path, image = place.images / "disk", tmp_path / "image"
    place.prepare(volume("disk", "images", capacity="8Mi", allocation="0", format="qcow2"))
    write_contents(path, "qcow2")
    old = path.read_bytes()
    make_image(image, "8M")
    write_contents(image, "qcow2", seed=2)
    new = image.read_bytes()
    assert not same_contents(image, path, "qcow2", "qcow2")

    def killed():
        assert path.read_bytes() in (old, new)
        assert marked(path)["origin"] == "Created"

    def finished(keeper):
        keeper.assert_ready(DISK)
        assert path.read_bytes() == new
        assert os.listdir(place.images) == ["disk"]

    kills = place.every_kill(lambda keeper: upload(keeper, new), killed=killed, finished=finished)
    assert kills > len(new) // PIECE
