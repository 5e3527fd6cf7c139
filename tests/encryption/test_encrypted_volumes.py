"""Encrypted volumes that are declared are made, grown and cloned, and no secret is told."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.host import commands, mounts
from controller import retrying
from controller.secrets import FileSecrets
from tests.keeper import Keeper, dir_pool, image_info, pool_key, volume, volume_key

MIB = 2**20
SECRET = b"the passphrase of a volume"
DISK = volume_key("disk")


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    directory = tmp_path / "secrets"
    directory.mkdir(mode=0o700)
    path = directory / "key"
    path.touch(mode=0o600)
    path.write_bytes(SECRET)
    return directory


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: Path) -> Iterator[Keeper]:
    fixed = mounts.Space(capacity=2**40, available=2**39, allocation=2**39)
    monkeypatch.setattr(mounts, "space", lambda fd: fixed)
    monkeypatch.setattr(retrying, "FIRST_RETRY", 0.0)
    made = Keeper(tmp_path / "state", secrets=FileSecrets(secrets))
    made.apply(dir_pool("images", tmp_path / "images"))
    yield made
    made.engine.stop()
    assert made.engine.jobs.idle(60)
    made.store.close()


def encrypted(name: str, format: str = "raw", secret: str = "key", **spec: object) -> object:
    encryption = {"format": "luks", "secretRef": {"name": secret}}
    fields = {"capacity": "4Mi", "allocation": "0", "format": format, **spec}
    return volume(name, "images", encryption=encryption, **fields)


def opens(path: Path, key: Path, capacity: int, format: str) -> None:
    """The passphrase decrypts contents of that size."""
    driver, name = ("luks", "key-secret") if format == "raw" else (format, "encrypt.key-secret")
    node = f"driver={driver},{name}=k,file.driver=file,file.filename={path}"
    argv = ["qemu-io", "--object", f"secret,id=k,file={key}", "--image-opts",
            "-c", f"write -P 5 {capacity - 65536} 64k", node]  # fmt: skip
    subprocess.run(argv, check=True, capture_output=True)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_an_encrypted_volume_is_made_and_grown(
    keeper: Keeper, secrets: Path, tmp_path: Path, format: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    keeper.apply(encrypted("disk", format))
    shown = [line for item in keeper.plans() for examined in item.volumes
             for action in examined.plan.actions for line in action.commands]  # fmt: skip
    assert any("PASSPHRASE" in word for words in shown for word in words)
    keeper.settle()
    keeper.assert_ready(DISK, pool_key("images"))
    path = tmp_path / "images" / "disk"
    status = keeper.get(DISK).status
    assert (status.encryption, status.capacity) == ("luks", 4 * MIB)
    opens(path, secrets / "key", 4 * MIB, format)
    assert keeper.planned() == {}

    keeper.apply(encrypted("disk", format, capacity="9Mi"))
    keeper.settle()
    keeper.assert_ready(DISK)
    assert keeper.get(DISK).status.capacity == 9 * MIB
    opens(path, secrets / "key", 9 * MIB, format)
    assert keeper.planned() == {}
    count = commands.spawned()
    keeper.reconcile()
    assert commands.spawned() == count

    told = caplog.text + str(keeper.told()) + str(keeper.events())
    assert SECRET.decode() not in told
    for file in (tmp_path / "state").rglob("*"):
        assert not file.is_file() or SECRET not in file.read_bytes(), file


def test_a_volume_whose_secret_is_missing_waits_for_it(
    keeper: Keeper, secrets: Path, tmp_path: Path
) -> None:
    keeper.apply(encrypted("disk", secret="later"))
    keeper.settle()
    assert keeper.truth(DISK, "Ready") == "False"
    assert any("Secret 'later' is not in" in event.message for event in keeper.events(DISK))
    assert not (tmp_path / "images" / "disk").exists()
    (secrets / "later").touch(mode=0o600)
    (secrets / "later").write_bytes(SECRET)
    keeper.settle()
    keeper.assert_ready(DISK)


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_a_clone_goes_into_or_out_of_encryption(
    keeper: Keeper, secrets: Path, tmp_path: Path, before: bool, after: bool
) -> None:
    fields = {"capacity": "4Mi", "allocation": "0", "format": "raw"}
    keeper.apply(encrypted("disk") if before else volume("disk", "images", **fields))
    keeper.settle()
    path = tmp_path / "images" / "disk"
    if before:
        opens(path, secrets / "key", 4 * MIB, "raw")
    else:
        with path.open("r+b") as file:
            file.seek(4 * MIB - 65536)
            file.write(b"\5" * 65536)
    source = {"clone": {"volumeRef": {"name": "disk"}}}
    made = {"capacity": "6Mi", "format": "qcow2", "source": source}
    keeper.apply(encrypted("copy", **made) if after else volume("copy", "images", **made))
    keeper.settle()
    keeper.assert_ready(volume_key("copy"))
    assert keeper.get(volume_key("copy")).status.encryption == ("luks" if after else None)
    copy, target = tmp_path / "images" / "copy", tmp_path / "seen"
    assert bool(image_info(copy).get("encrypted")) is after
    node = f"driver=qcow2,{'encrypt.key-secret=k,' if after else ''}file.filename={copy}"
    argv = ["qemu-img", "convert", "--object", f"secret,id=k,file={secrets / 'key'}",
            "--image-opts", "-O", "raw", node, str(target)]  # fmt: skip
    subprocess.run(argv, check=True)
    # What was never written to the encrypted source is noise, as on any LUKS device.
    start = 4 * MIB - 65536 if before else 0
    expected = bytes(4 * MIB - 65536) + b"\5" * 65536 + bytes(2 * MIB)
    assert target.read_bytes()[start:] == expected[start:]


def test_a_guest_s_own_luks_in_a_plain_volume_is_contents(keeper: Keeper, tmp_path: Path) -> None:
    keeper.apply(volume("disk", "images", capacity="20Mi", allocation="0", format="raw"))
    keeper.settle()
    path = tmp_path / "images" / "disk"
    key = tmp_path / "guest"
    key.write_bytes(b"the guest's own")
    argv = ["cryptsetup", "-q", "luksFormat", "--type", "luks1", "--iter-time", "10",
            "--key-file", str(key), str(path)]  # fmt: skip
    subprocess.run(argv, check=True)
    keeper.settle()
    keeper.assert_ready(DISK)
    status = keeper.get(DISK).status
    assert (status.encryption, status.capacity) == (None, 20 * MIB)
