"""Encrypted images: cryptsetup and qemu open them, nobody else sees the passphrase."""

from __future__ import annotations

import os
import pathlib
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from backends import blockvolumes, errors
from backends.base import Work
from backends.host import commands
from backends.images import copying, creating, encrypting
from backends.images.copying import Filling
from backends.images.creating import ImageRequest
from backends.spec import Encryption
from tests.images import samples
from tests.images.opened import loop_device, opened

MIB = 2**20
SECRET = b"correct horse, battery=staple"
QUICK = 10
"""Milliseconds for a key: enough for a test."""

Make = Callable[..., pathlib.Path]


def encryption(**more: Any) -> Encryption:
    return Encryption.model_validate({"secretRef": {"name": "s"}, **more})


def with_secret(act: Callable[..., None], *arguments: Any, **options: Any) -> None:
    """Call what needs the passphrase of an image and a way to run commands."""
    with encrypting.secrets_for_commands(encryption=SECRET) as secrets:

        def run(argv: Sequence[str]) -> None:
            commands.run(argv, pass_fds=secrets.pass_fds)

        act(*arguments, run=run, secrets=secrets, **options)


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Make:
    def call(format: str, size: int, name: str = "image", **more: Any) -> pathlib.Path:
        fields = {"allocation": 0, "derivation": QUICK, "encryption": encryption(), **more}
        request = ImageRequest(format, size, **fields)
        with_secret(creating.create, request, str(tmp_path / name))
        return tmp_path / name

    return call


def passphrase(directory: pathlib.Path, secret: bytes = SECRET) -> pathlib.Path:
    path = directory / "passphrase"
    path.write_bytes(secret)
    return path


def qemu_io(path: pathlib.Path, format: str, command: str, secret: bytes = SECRET) -> str:
    """qemu-io on the decrypted contents."""
    key = passphrase(path.parent, secret)
    driver, name = ("luks", "key-secret") if format == "raw" else (format, "encrypt.key-secret")
    node = f"driver={driver},{name}=k,file.driver=file,file.filename={path}"
    argv = ["qemu-io", "--object", f"secret,id=k,file={key}", "--image-opts", "-c", command, node]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def decrypted(path: pathlib.Path, format: str) -> bytes:
    """The contents as a guest sees them, by qemu-img."""
    key, target = passphrase(path.parent), path.parent / "decrypted"
    driver, name = ("luks", "key-secret") if format == "raw" else (format, "encrypt.key-secret")
    node = f"driver={driver},{name}=k,file.driver=file,file.filename={path}"
    samples.qemu_img(
        "convert", "--object", f"secret,id=k,file={key}", "--image-opts", "-O", "raw", node, target
    )
    found = target.read_bytes()
    target.unlink()
    return found


def cryptsetup(*words: object, expected: int = 0) -> str:
    done = subprocess.run(
        ["cryptsetup", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == expected, done.stderr
    return done.stdout


@pytest.mark.parametrize("size", [20 * MIB + 512, 1000])
def test_a_raw_volume_is_a_luks_device_of_the_size_asked_for(
    tmp_path: pathlib.Path, make: Make, size: int
) -> None:
    path = make("raw", size)
    header = samples.probe(path)
    assert (header.format, header.encryption, header.capacity) == ("raw", "luks", size)
    assert samples.info(path, "luks")["virtual-size"] == -(-size // 512) * 512
    cryptsetup("isLuks", path)
    cryptsetup("open", "--test-passphrase", "--key-file", passphrase(tmp_path), path)
    wrong = passphrase(tmp_path, b"wrong")
    cryptsetup("open", "--test-passphrase", "--key-file", wrong, path, expected=2)
    assert path.stat().st_size - size <= encrypting.HEADER


def test_a_qcow2_volume_is_encrypted_within(make: Make) -> None:
    size = 2**40
    path = make("qcow2", size)
    header = samples.probe(path)
    assert (header.format, header.encryption, header.capacity) == ("qcow2", "luks", size)
    assert samples.info(path, "qcow2")["encrypted"] is True
    assert qemu_io(path, "qcow2", "read -P 0 0 64k").startswith("read 65536")
    with pytest.raises(subprocess.CalledProcessError):
        qemu_io(path, "qcow2", "read 0 64k", b"wrong")


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_nothing_of_what_is_written_can_be_read_without_the_passphrase(
    make: Make, format: str
) -> None:
    path = make(format, MIB)
    qemu_io(path, format, "write -P 0x53 0 64k")
    assert b"S" * 64 not in path.read_bytes()
    assert decrypted(path, format)[:65536] == b"S" * 65536


CIPHERS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({}, ("aes", "xts-plain64", "sha256", "512")),
    ({"cipher": {"name": "aes", "size": 128}}, ("aes", "xts-plain64", "sha256", "256")),
    (
        {"cipher": {"name": "serpent", "size": 256, "mode": "cbc", "hash": "sha512"}},
        ("serpent", "cbc-plain64", "sha512", "256"),
    ),
    (
        {
            "cipher": {"name": "aes", "size": 256, "mode": "cbc", "hash": "sha1"},
            "ivgen": {"name": "essiv", "hash": "sha256"},
        },
        ("aes", "cbc-essiv:sha256", "sha1", "256"),
    ),
    (
        {
            "cipher": {"name": "twofish", "size": 256, "mode": "xts"},
            "ivgen": {"name": "plain"},
        },
        ("twofish", "xts-plain", "sha256", "512"),
    ),
]


@pytest.mark.parametrize(("declared", "shown"), CIPHERS, ids=str)
def test_the_declared_cipher_is_the_header_s(
    tmp_path: pathlib.Path, make: Make, declared: dict[str, Any], shown: tuple[str, ...]
) -> None:
    path = make("raw", MIB, encryption=encryption(**declared))
    lines = cryptsetup("luksDump", path).splitlines()
    facts = {
        line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line
    }
    found = tuple(facts[name] for name in ("Cipher name", "Cipher mode", "Hash spec", "MK bits"))
    assert found == shown
    within = make("qcow2", MIB, "other", encryption=encryption(**declared))
    details = samples.info(within, "qcow2")["format-specific"]["data"]["encrypt"]
    mode, _, generator = shown[1].partition("-")
    assert details["cipher-alg"].startswith(shown[0])
    assert (details["cipher-mode"], details["hash-alg"]) == (mode, shown[2])
    assert details["ivgen-alg"] == generator.partition(":")[0]


@pytest.mark.parametrize(
    ("format", "declared", "kind", "words"),
    [
        ("raw", {"format": "luks2"}, errors.Unsupported, "luks2"),
        ("raw", {"format": "qcow"}, errors.Unsupported, "qcow"),
        ("vmdk", {}, errors.Unsupported, "vmdk"),
        ("raw", {"cipher": {"name": "rot", "size": 13}}, errors.InvalidSpec, "rot-13"),
        (
            "raw",
            {"cipher": {"name": "aes", "size": 256, "mode": "gcm"}},
            errors.InvalidSpec,
            "gcm",
        ),
        ("raw", {"furtherSecretRefs": [{"name": "t"}]}, errors.InvalidSpec, "exactly one"),
        ("raw", {"secretRef": None}, errors.InvalidSpec, "exactly one"),
        ("raw", {"engine": "librbd"}, errors.Unsupported, "librbd"),
    ],
)
def test_what_could_never_be_made_is_refused_before(
    format: str, declared: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        creating.check(ImageRequest(format, MIB, encryption=encryption(**declared)))


@pytest.mark.parametrize("secret", [b"", b"\xff\xfe"])
def test_a_passphrase_that_qemu_would_not_take_is_refused_without_being_shown(
    secret: bytes,
) -> None:
    with (
        pytest.raises(errors.SecretUnavailable) as caught,
        encrypting.secrets_for_commands(encryption=secret),
    ):
        pass
    assert "xff" not in repr(caught.value) + str(caught.value.__cause__)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(("allocation", "least"), [(0, 0), (4 * MIB, 4 * MIB), (None, 8 * MIB)])
def test_space_is_set_aside_behind_the_header(
    make: Make, allocation: int | None, least: int
) -> None:
    path = make("raw", 8 * MIB, allocation=allocation)
    found = path.stat().st_blocks * 512
    assert least <= found <= least + encrypting.HEADER
    assert qemu_io(path, "raw", "write -P 1 0 1M").startswith("wrote 1048576")


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_an_encrypted_image_gets_another_size_with_its_contents(make: Make, format: str) -> None:
    path = make(format, 4 * MIB)
    qemu_io(path, format, "write -P 0x53 0 1M")
    header = samples.probe(path).payload_offset or 0
    for capacity, shrink in ((9 * MIB, False), (2 * MIB, True), (2 * MIB, False)):
        with_secret(
            creating.resize, format, str(path), capacity, shrink=shrink, allocate=False,
            header=header,
        )  # fmt: skip
        assert samples.probe(path).capacity == capacity
        assert decrypted(path, format)[:MIB] == b"S" * MIB
    if format == "raw":
        with pytest.raises(errors.ShrinkNotAllowed):
            with_secret(
                creating.resize, format, str(path), MIB, shrink=False, allocate=False,
                header=header,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "format", "into", "more"),
    [
        ("plain to encrypted", "raw", "raw", 3 * MIB),
        ("plain to encrypted", "raw", "qcow2", 3 * MIB),
        ("plain to encrypted", "qcow2", "raw", 0),
        ("encrypted to plain", "raw", "raw", 3 * MIB),
        ("encrypted to plain", "qcow2", "raw", 3 * MIB),
        ("encrypted to plain", "raw", "qcow2", 0),
        ("both encrypted", "raw", "qcow2", 0),
        ("both encrypted", "qcow2", "raw", 3 * MIB),
    ],
)
def test_contents_go_into_and_out_of_encryption(
    tmp_path: pathlib.Path, make: Make, ends: str, format: str, into: str, more: int
) -> None:
    size = 2 * MIB
    data = os.urandom(MIB) + bytes(MIB // 2) + os.urandom(MIB // 2)
    (tmp_path / "data").write_bytes(data)
    first, second = ends != "plain to encrypted", ends != "encrypted to plain"
    source = make(format, size, "source", encryption=encryption() if first else None)
    target = make(into, size + more, "target", encryption=encryption() if second else None)
    with ExitStack() as stack:
        plain = stack.enter_context(opened(tmp_path / "data"))
        one = stack.enter_context(opened(source, format, encrypted=first))
        other = stack.enter_context(opened(target, into, encrypted=second))
        keys = SECRET if first else None, SECRET if second else None
        copying.fill(Filling(plain, one, target_secret=keys[0]), Work())
        copying.fill(Filling(one, other, source_secret=keys[0], target_secret=keys[1]), Work())
    if second:
        assert decrypted(target, into) == data + bytes(more)
        assert data[:4096] not in target.read_bytes()
    else:
        samples.qemu_img("convert", "-f", into, "-O", "raw", target, tmp_path / "seen")
        assert (tmp_path / "seen").read_bytes() == data + bytes(more)


@pytest.mark.root
def test_an_encrypted_device_is_filled(tmp_path: pathlib.Path) -> None:
    """As an LV or a disk is: cryptsetup made it, or qemu-img on a file that was copied there."""
    data = os.urandom(2 * MIB)
    (tmp_path / "data").write_bytes(data)
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(20 * MIB)
    key = passphrase(tmp_path)
    with loop_device(image) as device:
        cryptsetup(
            "-q", "luksFormat", "--type", "luks1", "--iter-time", "10", "--key-file", key, device
        )
        with (
            blockvolumes.opened(device, write=True, encrypted=True) as target,
            opened(tmp_path / "data") as source,
        ):
            capacity = target.capacity
            copying.fill(Filling(source, target, target_secret=SECRET), Work())
    assert decrypted(image, "raw") == data + bytes(capacity - len(data))


def test_an_encrypted_volume_without_its_secret_is_not_read(
    tmp_path: pathlib.Path, make: Make
) -> None:
    source = make("raw", MIB, "source")
    (tmp_path / "target").write_bytes(bytes(4 * MIB))
    with (
        opened(source, encrypted=True) as one,
        opened(tmp_path / "target") as other,
        pytest.raises(errors.SecretUnavailable),
    ):
        copying.fill(Filling(one, other), Work())


class Watcher(threading.Thread):
    """Looks at the arguments and variables of all processes again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()
        self.seen = set[bytes]()

    def run(self) -> None:
        while not self.ended.is_set():
            for entry in pathlib.Path("/proc").iterdir():
                if entry.name.isdigit():
                    for name in ("cmdline", "environ"):
                        try:
                            self.seen.add((entry / name).read_bytes())
                        except OSError:
                            continue


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    thread = Watcher()
    thread.start()
    try:
        yield thread
    finally:
        thread.ended.set()
        thread.join()


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_the_passphrase_is_in_no_argument_and_no_file(
    tmp_path: pathlib.Path, make: Make, watcher: Watcher, format: str
) -> None:
    path = make(format, MIB, derivation=300)
    with opened(path, format, encrypted=True) as source:
        target = make("raw", 2 * MIB, "plain", encryption=None)
        with opened(target) as other:
            copying.fill(Filling(source, other, source_secret=SECRET), Work())
    watcher.ended.set()
    watcher.join()
    assert any(b"secret,id=encryption,file=/proc/self/fd/" in text for text in watcher.seen)
    assert not any(SECRET in text for text in watcher.seen)
    for file in tmp_path.iterdir():
        assert SECRET not in file.read_bytes(), file


def test_a_failure_does_not_show_the_passphrase(tmp_path: pathlib.Path) -> None:
    missing = tmp_path / "missing" / "image"
    request = ImageRequest("raw", MIB, encryption=encryption(), derivation=QUICK)
    with pytest.raises(errors.StorageError) as caught:
        with_secret(creating.create, request, str(missing))
    assert SECRET.decode() not in str(caught.value) + repr(caught.value.__cause__)
