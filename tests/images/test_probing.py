"""What is read of a header is what qemu-img reads of it."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from backends.images.probing import ImageHeader
from tests.images import samples

TIB = 2**40

few = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
"""Each example runs qemu-img twice."""

sizes = st.one_of(
    st.integers(1, 10_000_000),
    st.integers(1, 2**32).map(lambda count: count * 512),
    st.integers(1, 16 * TIB),
)
odd_sizes = (1, 511, 513, 1_000_001, TIB + 1)

WAYS = {
    "qcow2 0.10": ("qcow2", "compat=0.10", 16 * TIB),
    "qcow2 1.1": ("qcow2", "compat=1.1", 16 * TIB),
    "qcow2 lazy": ("qcow2", "lazy_refcounts=on", 16 * TIB),
    "qcow2 extended": ("qcow2", "extended_l2=on,cluster_size=131072", 16 * TIB),
    "qcow": ("qcow", "", 4 * TIB),
    "qed": ("qed", "", 4 * TIB),
    "vmdk sparse": ("vmdk", "subformat=monolithicSparse", 2 * TIB),
    "vmdk stream": ("vmdk", "subformat=streamOptimized", 2 * TIB),
    "vdi": ("vdi", "", 8 * TIB),
    "vpc": ("vpc", "", 2040 * 2**30),
    "vpc exact": ("vpc", "force_size=on", 2040 * 2**30),
}
"""By name: qemu's driver, its options, and a size that it can make quickly."""


def agrees(header: ImageHeader, facts: dict[str, Any]) -> None:
    """Whether a header and ``qemu-img info`` say the same of all that both know."""
    details = facts.get("format-specific", {}).get("data", {})
    assert header.format == facts["format"]
    assert -(-header.capacity // 512) * 512 == facts["virtual-size"]
    assert header.backing_path == facts.get("backing-filename")
    assert header.backing_format == facts.get("backing-filename-format")
    assert (header.encryption is not None) == bool(facts.get("encrypted"))
    if header.cluster_size is not None:
        assert header.cluster_size == facts["cluster-size"]
    if header.format == "qcow2":
        assert header.compat == details["compat"]
        assert header.lazy_refcounts == details.get("lazy-refcounts", False)
        assert header.extended_l2 == details.get("extended-l2", False)
        assert header.corrupt == details.get("corrupt", False)
        assert header.data_file == details.get("data-file")
        assert header.snapshots == len(facts.get("snapshots", ()))


@few
@given(st.sampled_from(sorted(WAYS)), sizes)
@example("vpc", 1)
@example("vpc", 5_000_000_000)
@example("vpc", 2040 * 2**30)
@example("vdi", 8 * TIB)
def test_a_size_reads_as_qemu_reads_it(tmp_path: pathlib.Path, way: str, size: int) -> None:
    format, options, limit = WAYS[way]
    path = tmp_path / "image"
    path.unlink(missing_ok=True)
    samples.make(path, format, min(size, limit), options=options)
    agrees(samples.probe(path), samples.info(path))


@pytest.mark.parametrize("way", WAYS)
def test_each_format_reads_as_qemu_reads_it(tmp_path: pathlib.Path, way: str) -> None:
    format, options, _ = WAYS[way]
    for size in odd_sizes:
        path = tmp_path / f"image-{size}"
        samples.make(path, format, size, options=options)
        header = samples.probe(path)
        agrees(header, samples.info(path))
        assert header.capacity >= size


@pytest.mark.parametrize("bits", range(9, 22))
def test_each_cluster_size_of_qcow2_is_read(tmp_path: pathlib.Path, bits: int) -> None:
    samples.make(tmp_path / "image", "qcow2", 2**20, options=f"cluster_size={1 << bits}")
    header = samples.probe(tmp_path / "image")
    assert header.cluster_size == 1 << bits
    agrees(header, samples.info(tmp_path / "image"))


@pytest.mark.parametrize("size", [4096, 65536, 2**20])
def test_the_cluster_size_of_qed_is_read(tmp_path: pathlib.Path, size: int) -> None:
    samples.make(tmp_path / "image", "qed", 2**20, options=f"cluster_size={size}")
    assert samples.probe(tmp_path / "image").cluster_size == size
    agrees(samples.probe(tmp_path / "image"), samples.info(tmp_path / "image"))


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("vdi", "static=on"),
        ("vpc", "subformat=fixed"),
        ("vpc", "subformat=fixed,force_size=on"),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vmdk", "subformat=twoGbMaxExtentFlat"),
    ],
)
@pytest.mark.parametrize("size", [1_000_001, 10 * 2**20])
def test_an_image_of_fixed_size_is_read(
    tmp_path: pathlib.Path, format: str, options: str, size: int
) -> None:
    path = tmp_path / "image.vmdk"
    samples.make(path, format, size, options=options)
    # qemu-img takes a fixed VHD for raw unless told otherwise: its header stands at the end.
    agrees(samples.probe(path), samples.info(path, format))


def test_a_descriptor_of_several_extents_gives_their_sum(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "image.vmdk"
    samples.make(path, "vmdk", 5 * 2**30, options="subformat=twoGbMaxExtentSparse")
    assert path.read_bytes().count(b"\nRW ") == 3
    assert samples.probe(path).capacity == 5 * 2**30


BACKED = {
    "qcow2 with its format": ("qcow2", "", ("-F", "qcow2")),
    "qcow2 0.10 with its format": ("qcow2", "compat=0.10", ("-F", "raw")),
    "qcow": ("qcow", "", ("-F", "raw")),
    "qed": ("qed", "", ("-F", "qcow2")),
    "qed on raw": ("qed", "", ("-F", "raw")),
}


@pytest.mark.parametrize("name", ["base", "of a man, of a plan", "größe=1,2", "../b", "a" * 200])
@pytest.mark.parametrize("way", BACKED)
def test_the_image_below_is_read(tmp_path: pathlib.Path, way: str, name: str) -> None:
    format, options, words = BACKED[way]
    path = tmp_path / "image"
    samples.make(path, format, 2**20, "-u", "-b", name, *words, options=options)
    header = samples.probe(path)
    assert header.backing_path == name
    agrees(header, samples.info(path))


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_an_image_below_without_a_format_has_none(tmp_path: pathlib.Path, compat: str) -> None:
    path = tmp_path / "image"
    samples.make(path, "qcow2", 2**20, "-u", "-b", "b", "-F", "raw", options=f"compat={compat}")
    # qemu-img makes none such since 6.1; an extension of an unknown type is passed over.
    path.write_bytes(path.read_bytes().replace(b"\xe2\x79\x2a\xca", b"none"))
    header = samples.probe(path)
    assert (header.backing_path, header.backing_format) == ("b", None)
    agrees(header, samples.info(path))


@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
def test_the_parent_of_a_vmdk_is_read(tmp_path: pathlib.Path, subformat: str) -> None:
    base = tmp_path / "base of, all.vmdk"
    samples.make(base, "vmdk", 2**20)
    words = ("-b", base, "-F", "vmdk")
    samples.make(tmp_path / "o", "vmdk", 2**20, *words, options=f"subformat={subformat}")
    header = samples.probe(tmp_path / "o")
    assert (header.backing_path, header.backing_format) == (str(base), "vmdk")
    agrees(header, samples.info(tmp_path / "o"))


def test_an_external_data_file_is_named(tmp_path: pathlib.Path) -> None:
    for raw in ("on", "off"):
        path, data = tmp_path / f"image-{raw}", tmp_path / f"data {raw}"
        samples.make(path, "qcow2", 2**20, options=f"data_file={data},data_file_raw={raw}")
        assert samples.probe(path).data_file == str(data)
        agrees(samples.probe(path), samples.info(path))


def test_snapshots_are_counted(tmp_path: pathlib.Path) -> None:
    samples.make(tmp_path / "image", "qcow2", 2**20)
    for number in range(3):
        samples.qemu_img("snapshot", "-c", f"s{number}", tmp_path / "image")
    assert samples.probe(tmp_path / "image").snapshots == 3
    agrees(samples.probe(tmp_path / "image"), samples.info(tmp_path / "image"))


SECRET = ("--object", "secret,id=s,data=of-no-worth")


def test_an_encrypted_image_says_so(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "image"
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    samples.make(path, "qcow2", 2**20, *SECRET, options=options)
    assert samples.probe(path).encryption == "luks"
    agrees(samples.probe(path), samples.info(path))


def test_the_old_encryption_of_qcow_is_told_apart(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "image"
    samples.make(path, "qcow", 2**20, *SECRET, options="encrypt.format=aes,encrypt.key-secret=s")
    assert samples.probe(path).encryption == "qcow"
    agrees(samples.probe(path), samples.info(path))


@pytest.mark.parametrize("size", [2**20, 1_000_448])
def test_luks_is_raw_content_that_is_encrypted(tmp_path: pathlib.Path, size: int) -> None:
    path = tmp_path / "image"
    samples.make(path, "luks", size, *SECRET, options="key-secret=s,iter-time=10")
    header, facts = samples.probe(path), samples.info(path)
    assert facts["format"] == "luks"
    assert (header.format, header.encryption, header.capacity) == ("raw", "luks", size)
    assert facts["virtual-size"] == size


@pytest.mark.parametrize("offset", ["16777216", 16777216])
def test_the_second_luks_version_is_read(tmp_path: pathlib.Path, offset: object) -> None:
    document = samples.luks2_segments(offset)
    (tmp_path / "image").write_bytes(samples.luks2(document, size=20 * 2**20))
    header = samples.probe(tmp_path / "image")
    assert (header.format, header.encryption, header.capacity) == ("raw", "luks", 4 * 2**20)


def test_what_cryptsetup_makes_is_read(tmp_path: pathlib.Path) -> None:
    if shutil.which("cryptsetup") is None:
        pytest.skip("cryptsetup is not installed")
    path = tmp_path / "image"
    path.write_bytes(bytes(20 * 2**20))
    for version, options in (("luks1", ()), ("luks2", ("--pbkdf", "pbkdf2"))):
        argv = ["cryptsetup", "luksFormat", "-q", "--type", version, "--iter-time", "10"]
        subprocess.run([*argv, *options, str(path), "-"], input=b"of-no-worth", check=True)
        dump = ["cryptsetup", "luksDump", str(path)]
        shown = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
        header = samples.probe(path)
        assert header.encryption == "luks"
        payload = 20 * 2**20 - header.capacity
        assert str(payload if version == "luks2" else payload // 512) in shown


def test_formats_that_only_bochs_makes_are_read(tmp_path: pathlib.Path) -> None:
    for version in (0x10000, 0x20000):
        path = tmp_path / f"bochs-{version}"
        path.write_bytes(samples.bochs(512 * 77, version))
        assert samples.probe(path).capacity == 512 * 77
        agrees(samples.probe(path), samples.info(path))


def test_a_compressed_loop_image_is_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "image").write_bytes(samples.cloop(65536, 10))
    assert samples.probe(tmp_path / "image").capacity == 655360
    agrees(samples.probe(tmp_path / "image"), samples.info(tmp_path / "image"))


def test_formats_that_qemu_knows_no_more_are_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "cow").write_bytes(samples.cow(123 * 512, b"/srv/base"))
    (tmp_path / "alone").write_bytes(samples.cow(123 * 512))
    (tmp_path / "ploop").write_bytes(samples.ploop(123))
    assert samples.probe(tmp_path / "cow") == ImageHeader(
        format="cow", capacity=123 * 512, backing_path="/srv/base"
    )
    assert samples.probe(tmp_path / "alone").backing_path is None
    assert samples.probe(tmp_path / "ploop") == ImageHeader(format="ploop", capacity=123 * 512)


def test_a_file_system_of_a_compact_disc_is_an_iso(tmp_path: pathlib.Path) -> None:
    (tmp_path / "image").write_bytes(samples.iso(400_000))
    assert samples.probe(tmp_path / "image") == ImageHeader(format="iso", capacity=400_000)
    (tmp_path / "short").write_bytes(samples.iso(400_000)[:32773])
    assert samples.probe(tmp_path / "short") == ImageHeader(format="raw", capacity=32773)


@pytest.mark.parametrize("content", [b"", b"Q", b"text\n" * 3000, bytes(2**20), b"\xff" * 512])
def test_content_that_nothing_is_known_of_is_raw(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "image").write_bytes(content)
    expected = ImageHeader(format="raw", capacity=len(content))
    assert samples.probe(tmp_path / "image") == expected


def test_a_large_sparse_raw_file_is_read_without_reading_it(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "image").open("wb") as file:
        file.truncate(8 * TIB)
    assert samples.probe(tmp_path / "image").capacity == 8 * TIB


@pytest.mark.root
def test_a_block_device_is_read(tmp_path: pathlib.Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for a loop device")
    path = tmp_path / "image"
    samples.make(path, "qcow2", 3 * 2**30)
    with path.open("ab") as file:
        file.truncate(2**20)
    argv = ["losetup", "--find", "--show", str(path)]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    try:
        assert samples.probe(device) == samples.probe(path)
        path.write_bytes(bytes(2**20))
        assert samples.probe(device) == ImageHeader(format="raw", capacity=2**20)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
