"""Secrets that are files of a standalone host."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from backends import errors
from backends.base import Secrets
from backends.spec import SecretRef
from controller.cli.session import session
from controller.secrets import MAX_BYTES, FileSecrets

VALUE = b"correct horse"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "secrets"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def secrets(directory: Path) -> Secrets:
    return FileSecrets(directory)


@pytest.fixture
def put(directory: Path) -> Callable[..., Path]:
    """Writes a secret's file."""

    def write(name: str, value: bytes = VALUE, mode: int = 0o600) -> Path:
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(value)
        file.chmod(mode)
        return file

    return write


def refused(secrets: Secrets, reference: SecretRef, namespace: str = "default") -> str:
    with pytest.raises(errors.SecretUnavailable) as caught:
        secrets.read(reference, namespace=namespace)
    told = str(caught.value)
    assert VALUE.decode() not in told
    return told


def test_a_secret_with_one_value_is_a_file(secrets: Secrets, put: Callable[..., Path]) -> None:
    put("disk")
    assert secrets.read(SecretRef(name="disk"), namespace="default") == VALUE


def test_a_secret_with_several_values_is_a_directory(
    secrets: Secrets, put: Callable[..., Path]
) -> None:
    put("disk/passphrase", b"one")
    put("disk/old", b"two")
    assert secrets.read(SecretRef(name="disk"), namespace="default") == b"one"
    assert secrets.read(SecretRef(name="disk", key="old"), namespace="default") == b"two"
    assert secrets.read(SecretRef(name="disk"), namespace="default", key="old") == b"two"


def test_what_a_namespace_has_of_its_own_counts_first_and_for_it_alone(
    secrets: Secrets, put: Callable[..., Path]
) -> None:
    put("disk/passphrase", b"shared")
    put("team-a/disk/passphrase", b"own")
    put("team-a/only/passphrase", b"own")
    reference = SecretRef(name="disk")
    assert secrets.read(reference, namespace="team-a") == b"own"
    assert secrets.read(reference, namespace="team-b") == b"shared"
    assert "not in" in refused(secrets, SecretRef(name="only"), "team-b")
    for key in ("only", "only/passphrase", "disk"):
        refused(secrets, SecretRef(name="team-a", key=key), "team-b")


def test_a_missing_value_in_a_namespace_is_not_taken_from_the_shared_ones(
    secrets: Secrets, put: Callable[..., Path]
) -> None:
    put("disk/passphrase", b"shared")
    put("team-a/disk/other", b"own")
    assert "team-a/disk/passphrase" in refused(secrets, SecretRef(name="disk"), "team-a")


@pytest.mark.parametrize(
    ("written", "read"),
    [(b"a", b"a"), (b"a\n", b"a"), (b"a\n\n", b"a\n"), (b"a\r\n", b"a\r"), (b"a\0b", b"a\0b")],
)
def test_one_line_break_at_the_end_is_no_part_of_the_value(
    secrets: Secrets, put: Callable[..., Path], written: bytes, read: bytes
) -> None:
    put("disk", written)
    assert secrets.read(SecretRef(name="disk"), namespace="") == read


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_file_that_others_have_a_right_on_is_refused(
    secrets: Secrets, put: Callable[..., Path], mode: int
) -> None:
    file = put("disk", mode=mode)
    told = refused(secrets, SecretRef(name="disk"))
    assert str(file) in told
    assert f"{mode:04o}" in told


def test_a_directory_that_others_may_write_to_is_refused(
    secrets: Secrets, directory: Path, put: Callable[..., Path]
) -> None:
    put("disk/passphrase")
    (directory / "disk").chmod(0o770)
    assert "0770" in refused(secrets, SecretRef(name="disk"))
    (directory / "disk").chmod(0o755)
    assert secrets.read(SecretRef(name="disk"), namespace="") == VALUE
    directory.chmod(0o777)
    assert "0777" in refused(secrets, SecretRef(name="disk"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_refused(secrets: Secrets, put: Callable[..., Path]) -> None:
    os.chown(put("disk"), 1234, 0)
    assert "user 1234" in refused(secrets, SecretRef(name="disk"))


def test_links_are_not_followed(
    secrets: Secrets, directory: Path, put: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    elsewhere = tmp_path / "outside" / "passphrase"
    elsewhere.write_bytes(VALUE)
    elsewhere.chmod(0o600)
    (directory / "file").symlink_to(elsewhere)
    (directory / "folder").symlink_to(elsewhere.parent)
    put("inside/old", b"x")
    (directory / "inside" / "passphrase").symlink_to(elsewhere)
    for name in ("file", "folder", "inside"):
        refused(secrets, SecretRef(name=name))


def test_what_is_no_regular_file_is_refused_at_once(secrets: Secrets, directory: Path) -> None:
    os.mkfifo(directory / "pipe", 0o600)
    assert "pipe" in refused(secrets, SecretRef(name="pipe"))


@pytest.mark.parametrize("key", ["..", ".", "../disk", "a/b", "", "a b", "ä"])
def test_a_key_that_leads_elsewhere_is_refused(
    secrets: Secrets, put: Callable[..., Path], key: str
) -> None:
    put("disk/passphrase")
    with pytest.raises(errors.SecretUnavailable):
        secrets.read(SecretRef(name="disk"), namespace="", key=key)


@pytest.mark.parametrize(("size", "taken"), [(1, True), (MAX_BYTES, True), (MAX_BYTES + 1, False)])
def test_the_size_of_a_value_is_bounded(
    secrets: Secrets, put: Callable[..., Path], size: int, taken: bool
) -> None:
    put("disk", b"x" * size + b"\n")
    if taken:
        assert secrets.read(SecretRef(name="disk"), namespace="") == b"x" * size
    else:
        assert "64 KiB" in refused(secrets, SecretRef(name="disk"))


@pytest.mark.parametrize("value", [b"", b"\n"])
def test_an_empty_value_is_refused(
    secrets: Secrets, put: Callable[..., Path], value: bytes
) -> None:
    put("disk", value)
    assert "empty" in refused(secrets, SecretRef(name="disk"))


def test_a_key_of_a_secret_that_has_one_value_is_refused(
    secrets: Secrets, put: Callable[..., Path]
) -> None:
    put("disk")
    assert "no keys" in refused(secrets, SecretRef(name="disk", key="old"))


def test_a_new_value_counts_at_the_next_reading(secrets: Secrets, put: Callable[..., Path]) -> None:
    put("disk", b"one")
    assert secrets.read(SecretRef(name="disk"), namespace="") == b"one"
    put("disk", b"two")
    assert secrets.read(SecretRef(name="disk"), namespace="") == b"two"


def test_what_is_in_a_namespace_does_not_reach_into_another(
    secrets: Secrets, put: Callable[..., Path]
) -> None:
    put("team-a/disk/passphrase")
    reference = SecretRef(name="disk", namespace="team-a")
    assert "team-a" in refused(secrets, reference, "team-b")
    assert secrets.read(reference, namespace="") == VALUE  # of a pool, which is in none


@pytest.mark.parametrize(
    "reference",
    [SecretRef(usage="iqn.2026-01:disk"), SecretRef(uuid="0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f")],
    ids=["usage", "uuid"],
)
def test_a_secret_of_libvirts_own_store_is_refused_with_a_way_out(
    secrets: Secrets, reference: SecretRef
) -> None:
    assert "secretRef.name" in refused(secrets, reference)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    missing = FileSecrets(tmp_path / "none")
    assert str(tmp_path / "none") in refused(missing, SecretRef(name="disk"))


def test_they_are_in_the_state_directory_unless_told_otherwise(tmp_path: Path) -> None:
    assert session(tmp_path).secrets == tmp_path / "secrets"
    assert session(tmp_path, secrets=tmp_path / "other").secrets == tmp_path / "other"
