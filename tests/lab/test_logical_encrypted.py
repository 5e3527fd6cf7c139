"""Encrypted logical volumes: LUKS by qemu on thick and thin ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.base import Work
from controller import contents, retrying
from controller.admitting import Target
from controller.secrets import FileSecrets
from tests.keeper import Keeper, pool, pool_key, volume, volume_key
from tests.lab.luks import LUKS, MOST_OF_A_HEADER, decrypted, make_key
from tests.lab.spare import MIB, Spares, run

GROUP = "vg-encrypted"
POOL, DISK, COPY = pool_key("fast"), volume_key("disk"), volume_key("copy")
CLONE = {"clone": {"volumeRef": {"name": "disk"}}}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "secrets")


@pytest.fixture
def keeper(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    monkeypatch.setattr(retrying, "FIRST_RETRY", 0.0)
    made = Keeper(tmp_path / "state", secrets=FileSecrets(key.parent))
    yield made
    made.store.close()
    if GROUP in run("vgs", "-q", "--noheadings", "-o", "vg_name").split():
        run("vgchange", "-q", "-an", GROUP)
        run("vgremove", "-q", "-ff", "--yes", GROUP)


@pytest.fixture(params=["Thick", "Thin"])
def fast(request: pytest.FixtureRequest, device: Spares) -> dict[str, Any]:
    devices = [{"path": str(device(160 * MIB))}]
    source = {"volumeGroup": GROUP, "devices": devices, "provisioning": request.param}
    return pool("fast", type="logical", logical=source)


def disk(name: str = "disk", **spec: Any) -> dict[str, Any]:
    fields = {"capacity": "8Mi", "deletionPolicy": "Delete", **spec}
    return volume(name, "fast", **fields)


def start(keeper: Keeper, *documents: dict[str, Any]) -> None:
    keeper.apply(*documents)
    keeper.settle()


def path(name: str = "disk") -> Path:
    return Path("/dev", GROUP, name)


def target(keeper: Keeper) -> Target:
    (examined,) = keeper.plans()
    (found,) = examined.volumes
    assert examined.pool is not None
    assert examined.backend is not None
    assert found.volume is not None
    return Target(
        resource=found.resource,
        pool=examined.pool,
        volume=found.volume,
        facts=examined.facts.volumes[found.volume.name],
        backend=examined.backend,
    )


def test_an_encrypted_volume_is_made_grown_and_wiped(
    keeper: Keeper, fast: dict[str, Any], key: Path
) -> None:
    start(keeper, fast, disk(encryption=LUKS))
    keeper.assert_ready(POOL, DISK)
    status = keeper.get(DISK).status
    assert status.encryption == "luks"
    assert 8 * MIB <= status.capacity < 8 * MIB + 4 * MIB + MOST_OF_A_HEADER
    assert decrypted(key, path(), "write -P 7 0 64k", f"write -P 8 {8 * MIB - 65536} 64k")
    assert path().read_bytes().count(b"\7" * 512) == 0
    keeper.settle()
    written = keeper.recorded()
    keeper.reconcile()
    assert keeper.recorded() == written

    start(keeper, disk(encryption=LUKS, capacity="24Mi"))
    keeper.assert_ready(DISK)
    assert 24 * MIB <= keeper.get(DISK).status.capacity < 30 * MIB
    assert keeper.planned() == {}
    assert decrypted(
        key,
        path(),
        "read -P 7 0 64k",
        f"read -P 8 {8 * MIB - 65536} 64k",
        f"read {24 * MIB - 512} 512",
    )

    before = path().read_bytes()[: 64 * 1024]
    contents.wipe(target(keeper), "zero", Work())
    assert path().read_bytes()[: 64 * 1024] != before
    assert not decrypted(key, path(), "read -P 7 0 64k")
    assert decrypted(key, path(), "write -P 7 0 64k", "read -P 7 0 64k")
    keeper.settle()
    keeper.assert_ready(DISK)
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)
    assert not path().exists()


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (True, True)])
def test_a_clone_goes_into_out_of_and_through_encryption(
    keeper: Keeper, fast: dict[str, Any], key: Path, before: bool, after: bool
) -> None:
    start(keeper, fast, disk(encryption=LUKS if before else None))
    keeper.assert_ready(DISK)
    end = keeper.get(DISK).status.capacity
    if before:
        assert decrypted(key, path(), f"write -P 0 0 {end}", f"write -P 9 {MIB} 64k")
    else:
        with path().open("r+b", buffering=0) as file:
            file.seek(MIB)
            file.write(b"\x09" * 65536)
            os.fsync(file.fileno())
    start(keeper, disk("copy", capacity="16Mi", encryption=LUKS if after else None, source=CLONE))
    keeper.assert_ready(COPY)
    status = keeper.get(COPY).status
    assert status.encryption == ("luks" if after else None)
    if after:
        rest = status.capacity - MIB - 65536
        assert decrypted(
            key, path("copy"),
            f"read -P 0 0 {MIB}", f"read -P 9 {MIB} 64k", f"read -P 0 {MIB + 65536} {rest}",
        )  # fmt: skip
    else:
        read = path("copy").read_bytes()
        assert read == bytes(MIB) + b"\x09" * 65536 + bytes(len(read) - MIB - 65536)
    assert keeper.planned() == {}


def test_a_header_that_is_gone_is_told_and_the_volume_left(
    keeper: Keeper, fast: dict[str, Any]
) -> None:
    start(keeper, fast, disk(encryption=LUKS))
    with path().open("r+b", buffering=0) as file:
        file.write(bytes(MIB))
        os.fsync(file.fileno())
    start(keeper, disk(encryption=LUKS, capacity="24Mi"))
    assert "no LUKS header" in keeper.assert_retrying(DISK, "ProbeFailed")
    assert int(run("blockdev", "--getsize64", path())) < 16 * MIB


def test_a_plain_volume_is_not_adopted_as_an_encrypted_one(
    keeper: Keeper, fast: dict[str, Any]
) -> None:
    start(keeper, fast)
    place = ["--thinpool", "thin-pool", "--virtualsize"] if _thin(fast) else ["--size"]
    run("lvcreate", "-q", "--yes", "-n", "disk", *place, "8M", GROUP)
    start(keeper, disk(encryption=LUKS))
    assert "no LUKS header" in keeper.assert_retrying(DISK, "ProbeFailed")


def _thin(fast: dict[str, Any]) -> bool:
    return bool(fast["spec"]["logical"]["provisioning"] == "Thin")


def test_without_its_secret_an_encrypted_volume_waits_and_leaves_nothing(
    keeper: Keeper, fast: dict[str, Any], key: Path
) -> None:
    other = {**LUKS, "secretRef": {"name": "later"}}
    start(keeper, fast, disk(encryption=other))
    assert keeper.truth(DISK, "Ready") == "False"
    names = run("lvs", "--noheadings", "-o", "lv_name", GROUP).split()
    assert [name for name in names if name != "thin-pool"] == []
    key.rename(key.parent / "later")
    keeper.settle()
    keeper.assert_ready(DISK)


def test_a_snapshot_is_encrypted_as_its_origin_is(keeper: Keeper, fast: dict[str, Any]) -> None:
    origin = {"volumeRef": {"name": "disk"}, "format": "raw"}
    start(keeper, fast, disk(encryption=LUKS))
    snap = {"capacity": None, "allocation": "8Mi", "backing_store": origin}
    start(keeper, disk("copy", encryption=LUKS, **snap))
    assert "Leave encryption out" in keeper.assert_stalled(COPY, "Unsupported")
