"""Volumes that are made from images on a web server or in a file of the host."""

import gzip
import hashlib
import lzma
import os
import subprocess
from pathlib import Path

import pytest

from backends.base import BackendContext
from backends.host.marks import MarkStore
from backends.images import copying
from controller.engine import Engine
from controller.secrets import FileSecrets
from tests.filling.conftest import MIB, same_contents, write_contents
from tests.importing.servers import Site, make_certificate, serving
from tests.keeper import (
    dir_pool,
    image_info,
    make_image,
    mark_as_corrupt,
    marked,
    volume,
    volume_key,
)

DISK = volume_key("disk")


@pytest.fixture
def image(tmp_path):
    """Makes an image with contents elsewhere on the host."""

    def made(format="qcow2", size="8M", *options) -> Path:
        path = tmp_path / f"image.{format}"
        make_image(path, size, format=format, options=options)
        if format in ("raw", "qcow2"):
            write_contents(path, format)
        return path

    return made


def from_web(site, name="disk", *, path="/image", source=None, **spec):
    http = {"url": f"{site.url}{path}", **(source or {})}
    return volume(name, "images", source={"http": http}, **spec)


def from_file(path, name="disk", *, source=None, **spec):
    return volume(name, "images", source={"file": {"path": str(path), **(source or {})}}, **spec)


def start(keeper, images, *documents):
    keeper.apply(dir_pool("images", images), *documents)
    keeper.settle(12)


@pytest.mark.parametrize("target", ["raw", "qcow2"])
@pytest.mark.parametrize("source", ["raw", "qcow2", "vmdk", "vdi", "vpc"])
def test_an_image_of_any_format_fills_a_volume_of_any_other(
    keeper, images, site, image, source, target
):
    path = image(source, "8M", *(("-o", "force_size=on") if source == "vpc" else ()))
    site.files["/image"] = path.read_bytes()
    start(
        keeper, images,
        from_web(site, format=target, source={"format": source}, capacity="16Mi"),
        from_file(path, "other", format=target, source={"format": source}),
    )  # fmt: skip
    keeper.assert_ready(DISK, volume_key("other"))
    assert same_contents(path, images / "disk", source, target)
    assert same_contents(path, images / "other", source, target)
    assert keeper.get(DISK).status.capacity == 16 * MIB
    assert sorted(os.listdir(images)) == ["disk", "other"]
    assert marked(images / "disk")["origin"] == "Created"
    assert keeper.planned() == {}


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_compressed_image_is_decompressed_and_its_size_is_its_own(
    keeper, images, site, image, pack
):
    path = image("qcow2", "32M")
    packed = pack(path.read_bytes())
    digest = hashlib.sha512(packed).hexdigest()
    site.files["/image"] = packed
    start(
        keeper, images,
        from_web(site, format="qcow2", source={"checksum": f"sha512:{digest}"}),
    )  # fmt: skip
    keeper.assert_ready(DISK)
    assert keeper.get(DISK).status.capacity == 32 * MIB
    assert same_contents(path, images / "disk", "qcow2", "qcow2")
    subprocess.run(["qemu-img", "check", "-q", images / "disk"], check=True)


def test_what_was_fetched_as_declared_is_not_copied_again(keeper, images, site, image, monkeypatch):
    def refuse(filling, work):
        raise AssertionError("it is copied")

    monkeypatch.setattr(copying, "fill", refuse)
    path = image("qcow2")
    site.files["/image"] = path.read_bytes()
    start(keeper, images, from_web(site, format="qcow2", capacity="24Mi"))
    keeper.assert_ready(DISK)
    assert keeper.get(DISK).status.capacity == 24 * MIB
    assert (images / "disk").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("options", [{"compat": "0.10"}, {"clusterSize": "128Ki"}])
def test_options_that_are_declared_are_those_of_the_volume(keeper, images, site, image, options):
    site.files["/image"] = image("qcow2").read_bytes()
    start(keeper, images, from_web(site, format="qcow2", **options))
    keeper.assert_ready(DISK)
    found = image_info(images / "disk")
    if "compat" in options:
        assert found["format-specific"]["data"]["compat"] == "0.10"
    else:
        assert found["cluster-size"] == 128 * 1024


def test_a_wrong_checksum_leaves_nothing_and_is_not_fetched_again(keeper, images, site, image):
    site.files["/image"] = image("qcow2").read_bytes()
    start(keeper, images, from_web(site, format="qcow2", source={"checksum": f"sha256:{'0' * 64}"}))
    keeper.assert_stalled(DISK, "ChecksumMismatch")
    assert os.listdir(images) == []
    asked = len(site.asked)
    keeper.settle()
    assert len(site.asked) == asked


def hostile(tmp_path, *options):
    secret = tmp_path / "secret"
    secret.write_bytes(b"root:x:0:0" + bytes(MIB))
    path = tmp_path / "hostile"
    make_image(path, "8M", options=[item.format(secret=secret) for item in options])
    return path


@pytest.mark.parametrize("target", ["raw", "qcow2"])
@pytest.mark.parametrize(
    "options",
    [("-b", "{secret}", "-F", "raw"), ("-o", "data_file={secret},data_file_raw=on")],
    ids=["backing", "data file"],
)
def test_an_image_that_refers_to_another_file_is_refused(
    keeper, images, site, tmp_path, options, target
):
    path = hostile(tmp_path, *options)
    (tmp_path / "secret").write_bytes(b"root:x:0:0" + bytes(MIB))
    site.files["/image"] = path.read_bytes()
    start(
        keeper, images,
        from_web(site, format=target, capacity="8Mi"),
        from_file(path, "other", format=target, capacity="8Mi"),
    )  # fmt: skip
    assert "refused" in keeper.assert_stalled(DISK, "ImageRefused")
    keeper.assert_stalled(volume_key("other"), "ImageRefused")
    assert os.listdir(images) == []


def test_a_vmdk_that_names_its_extents_is_refused(keeper, images, site, tmp_path):
    descriptor = (
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n'
        'createType="monolithicFlat"\n\n# Extent description\nRW 16384 FLAT "/etc/passwd" 0\n'
    )  # fmt: skip
    site.files["/image"] = descriptor.encode()
    start(keeper, images, from_web(site, format="raw", source={"format": "vmdk"}))
    keeper.assert_stalled(DISK, "ImageRefused")


@pytest.mark.parametrize(
    ("declared", "real"), [("raw", "qcow2"), ("qcow2", "raw"), ("vdi", "qcow2")]
)
def test_an_image_of_another_format_than_declared_is_refused(
    keeper, images, site, image, declared, real
):
    site.files["/image"] = image(real).read_bytes()
    start(keeper, images, from_web(site, format="qcow2", source={"format": declared}))
    assert declared in keeper.assert_stalled(DISK, "ImageRefused")
    assert os.listdir(images) == []


def test_an_image_that_is_larger_than_the_volume_is_refused(keeper, images, site, image):
    site.files["/image"] = image("qcow2", "32M").read_bytes()
    start(keeper, images, from_web(site, format="qcow2", capacity="16Mi"))
    assert "32Mi" in keeper.assert_stalled(DISK, "InvalidSpec")
    site.files["/raw"] = bytes(8 * MIB + 1)
    start(
        keeper, images,
        from_web(site, "more", path="/raw", source={"format": "raw"}, capacity="8Mi"),
    )  # fmt: skip
    keeper.assert_stalled(volume_key("more"), "ImageRefused")
    assert os.listdir(images) == []


def test_an_image_that_is_encrypted_is_refused(keeper, images, site, tmp_path):
    path = tmp_path / "luks"
    make_image(
        path, "8M",
        options=["--object", "secret,id=s,data=geheim", "-o",
                 "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"],
    )  # fmt: skip
    site.files["/image"] = path.read_bytes()
    start(keeper, images, from_web(site, format="qcow2"))
    assert "encrypted" in keeper.assert_stalled(DISK, "ImageRefused")


def test_an_image_that_qemu_marked_as_corrupt_is_refused(keeper, images, site, tmp_path):
    path = tmp_path / "image"
    make_image(path, "8M")
    mark_as_corrupt(path)
    site.files["/image"] = path.read_bytes()
    start(keeper, images, from_web(site, format="qcow2"))
    assert "corrupt" in keeper.assert_stalled(DISK, "ImageRefused")
    assert os.listdir(images) == []


@pytest.mark.parametrize("format", ["vhdx", "parallels"])
def test_an_image_of_a_format_that_is_not_known_does_not_pass_for_raw(
    keeper, images, site, tmp_path, format
):
    path = tmp_path / "image"
    make_image(path, "8M", format=format)
    site.files["/image"] = path.read_bytes()
    start(keeper, images, from_web(site, format="raw"))
    assert format in keeper.assert_stalled(DISK, "ImageRefused")


def test_an_encrypted_disk_is_taken_as_bytes_only_where_it_is_declared_so(
    keeper, images, site, tmp_path
):
    path = tmp_path / "luks"
    options = ["--object", "secret,id=s,data=geheim", "-o", "key-secret=s,iter-time=10"]
    make_image(path, "8M", format="luks", options=options)
    site.files["/image"] = path.read_bytes()
    start(keeper, images, from_web(site, format="raw"))
    assert "encrypted" in keeper.assert_stalled(DISK, "ImageRefused")
    start(keeper, images, from_web(site, "bytes", format="raw", source={"format": "raw"}))
    keeper.assert_ready(volume_key("bytes"))
    assert (images / "bytes").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("what", ["directory", "fifo", "missing"])
def test_what_is_no_file_can_not_be_imported(keeper, images, tmp_path, what):
    path = tmp_path / "thing"
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    keeper.apply(dir_pool("images", images), from_file(path))
    keeper.reconcile()
    assert keeper.engine.jobs.idle(60)
    assert os.listdir(images) == []
    counts = keeper.engine.jobs.counts()
    assert counts == {("CreateVolume", "Failed"): 1}


def test_a_file_that_is_imported_stays_as_it_is(keeper, images, image):
    path = image("raw")
    before = path.read_bytes(), path.stat().st_mtime_ns
    start(keeper, images, from_file(path, format="raw"))
    keeper.assert_ready(DISK)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert (images / "disk").read_bytes() == before[0]


def test_credentials_and_certificates_come_from_secrets_and_are_shown_nowhere(
    keeper, images, image, tmp_path
):
    secrets = tmp_path / "secrets"
    certificate, pem = make_certificate(tmp_path)
    for name, value in {"username": "keeper", "password": "geheim-7", "ca.crt": pem}.items():
        path = secrets / "default" / "mirror" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
        path.chmod(0o600)
    secrets.chmod(0o700)
    context = BackendContext(marks=MarkStore(keeper.state), secrets=FileSecrets(secrets))
    keeper.engine = Engine(keeper.store, context, node="here", boot="boot-1")
    with serving(Site(), certificate=certificate) as site:
        site.files["/image"] = image("qcow2").read_bytes()
        auth = {"type": "Basic", "secretRef": {"name": "mirror"}}
        start(
            keeper, images,
            from_web(site, format="qcow2", source={"auth": auth, "caRef": {"name": "mirror"}}),
        )  # fmt: skip
        keeper.assert_ready(DISK)
        assert site.asked[-1][1]["Authorization"].startswith("Basic ")
    for file in keeper.state.rglob("*"):
        if file.is_file():
            assert b"geheim-7" not in file.read_bytes()


def test_a_secret_that_is_missing_is_told_by_name(keeper, images):
    auth = {"type": "Bearer", "secretRef": {"name": "mirror"}}
    keeper.apply(
        dir_pool("images", images),
        volume("disk", "images", source={"http": {"url": "https://localhost:1/a", "auth": auth}}),
    )
    keeper.reconcile()
    assert keeper.engine.jobs.idle(60)
    (step,) = [step for step in keeper.store.finished_steps() if step.verb == "CreateVolume"]
    assert "mirror" in step.error
