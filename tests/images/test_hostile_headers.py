"""Hostile images: nothing but a header or a refusal comes of them, and little is read."""

from __future__ import annotations

import json
import os
import pathlib
import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from backends import errors
from backends.images import chains, probing
from backends.images.probing import ImageHeader
from backends.sizes import MAX_SIZE
from tests.images import samples

MOST_READ = probing.HEAD + probing.MAX_LUKS_JSON + 4096
"""Bytes that any one image may make us read; LUKS2 has by far the longest header."""

fuzzing = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

HAND_MADE = {
    "bochs 1": samples.bochs(2**20, 0x10000),
    "bochs 2": samples.bochs(2**20),
    "cloop": samples.cloop(65536, 4),
    "cow": samples.cow(2**20, b"/srv/base"),
    "cowd": b"COWD" + struct.pack("<III", 1, 3, 2048).ljust(1020, b"\0"),
    "iso": samples.iso(40_000),
    "luks1": samples.luks1(4096, 20_000),
    "luks2": samples.luks2(samples.luks2_segments("16384"), size=20_000),
    "ploop": samples.ploop(2048),
    "qcow2 by hand": samples.qcow2(backing=b"/srv/base"),
}
BY_QEMU = {
    "qcow2": ("qcow2", "", ("-u", "-b", "/srv/base", "-F", "qcow2")),
    "qcow2 0.10": ("qcow2", "compat=0.10", ("-u", "-b", "/srv/base", "-F", "qcow2")),
    "qcow": ("qcow", "", ("-u", "-b", "/srv/base", "-F", "raw")),
    "qed": ("qed", "cluster_size=4096,table_size=1", ("-u", "-b", "/srv/base", "-F", "raw")),
    "vmdk": ("vmdk", "", ()),
    "vmdk stream": ("vmdk", "subformat=streamOptimized", ()),
    "vmdk flat": ("vmdk", "subformat=monolithicFlat", ()),
    "vdi": ("vdi", "", ()),
    "vpc": ("vpc", "", ()),
    "vpc fixed": ("vpc", "subformat=fixed", ()),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small image of each format."""
    directory = tmp_path_factory.mktemp("originals")
    made = dict(HAND_MADE)
    for name, (format, options, words) in BY_QEMU.items():
        samples.make(directory / name, format, 70_000, *words, options=options)
        data = (directory / name).read_bytes()
        made[name] = data if len(data) <= 2**19 else data[: 2**19]
    return made


class Reads:
    """Counts what is read of images."""

    def __init__(self) -> None:
        self.bytes = 0
        self._pread = os.pread

    def __call__(self, fd: int, length: int, offset: int) -> bytes:
        assert 0 <= length <= probing.MAX_LUKS_JSON
        data = self._pread(fd, length, offset)
        self.bytes += len(data)
        return data


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    counted = Reads()
    monkeypatch.setattr(os, "pread", counted)
    return counted


def outcome(path: pathlib.Path) -> tuple[ImageHeader | None, str]:
    """The header, or the words with which it was refused. Any other error is not caught."""
    try:
        return samples.probe(path), ""
    except errors.ProbeFailed as error:
        return None, error.message


def examined(path: pathlib.Path, data: bytes, reads: Reads) -> ImageHeader | None:
    """The header, checked for what always holds; None where it was refused."""
    path.write_bytes(data)
    reads.bytes = 0
    header, refusal = outcome(path)
    assert reads.bytes <= MOST_READ
    if header is None:
        assert refusal.endswith(".")
        assert len(refusal) < 200
        return None
    assert 0 <= header.capacity <= MAX_SIZE
    for text in (header.backing_path, header.backing_format, header.data_file):
        assert text is None or ("\0" not in text and len(os.fsencode(text)) <= probing.MAX_NAME)
    assert header.backing_path != ""
    chains.chain(header, str(path.parent))
    return header


@fuzzing
@given(st.binary(max_size=5000))
def test_arbitrary_bytes_are_read_or_refused(
    tmp_path: pathlib.Path, reads: Reads, data: bytes
) -> None:
    examined(tmp_path / "image", data, reads)


MAGICS = (
    b"QFI\xfb\0\0\0\1", b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\3", b"QFI\xfb", b"LUKS\xba\xbe\0\1",
    b"LUKS\xba\xbe\0\2\0\0\0\0\0\0\x40\0", b"QED\0", b"KDMV", b"COWD", b"# Disk DescriptorFile\n",
    b"conectix", bytes(64) + b"\x7f\x10\xda\xbe", b"OOOM\0\0\0\2", b"WithouFreSpacExt",
    b"Bochs Virtual HD Image", b"#!/bin/sh\n#V2.0 Format\n",
)  # fmt: skip


@fuzzing
@given(st.sampled_from(MAGICS), st.binary(max_size=2000))
def test_arbitrary_bytes_behind_a_magic_are_read_or_refused(
    tmp_path: pathlib.Path, reads: Reads, magic: bytes, data: bytes
) -> None:
    examined(tmp_path / "image", magic + data, reads)


LARGE_NUMBERS = (b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\xff" * 4, b"\x80" + b"\0" * 7, b"\0" * 8)


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """An image with a few numbers changed, and perhaps cut short."""
    data = bytearray(original)
    # A fixed VHD has its header in its last sector.
    start = draw(st.sampled_from((0, max(0, len(data) - 512))))
    values = st.sampled_from(LARGE_NUMBERS) | st.binary(max_size=8)
    for offset, value in draw(st.lists(st.tuples(st.integers(0, 1200), values), max_size=4)):
        data[start + offset : start + offset + len(value)] = value
    length = draw(st.none() | st.integers(0, 5000))
    return bytes(data[:length])


@fuzzing
@given(st.data())
def test_a_damaged_image_is_read_or_refused(
    originals: dict[str, bytes], tmp_path: pathlib.Path, reads: Reads, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(originals)))
    examined(tmp_path / "image", data.draw(damaged(originals[name])), reads)


@pytest.mark.parametrize("name", sorted(HAND_MADE | BY_QEMU))
def test_an_image_cut_anywhere_in_its_header_is_read_or_refused(
    originals: dict[str, bytes], tmp_path: pathlib.Path, reads: Reads, name: str
) -> None:
    for length in range(0, 600):
        examined(tmp_path / "image", originals[name][:length], reads)


@pytest.mark.parametrize("name", ["qcow2", "vmdk", "vdi", "qed", "vpc", "luks1"])
def test_an_intact_image_costs_few_bytes(
    originals: dict[str, bytes], tmp_path: pathlib.Path, reads: Reads, name: str
) -> None:
    assert examined(tmp_path / "image", originals[name], reads) is not None
    assert reads.bytes <= probing.HEAD + probing.MAX_EXTENSIONS + probing.MAX_NAME


def refused(path: pathlib.Path, data: bytes, words: str) -> None:
    path.write_bytes(data)
    with pytest.raises(errors.ProbeFailed, match=words):
        samples.probe(path)


@pytest.mark.parametrize("bits", [0, 8, 22, 63, 255, 2**32 - 1])
def test_absurd_clusters_are_refused(tmp_path: pathlib.Path, bits: int) -> None:
    refused(tmp_path / "image", samples.qcow2(cluster_bits=bits), r"clusters of 2\*\*\d+ bytes")


@pytest.mark.parametrize("size", [2**63, 2**64 - 1])
def test_absurd_sizes_are_refused(tmp_path: pathlib.Path, size: int) -> None:
    refused(tmp_path / "image", samples.qcow2(size), f"size of {size} bytes")
    refused(tmp_path / "image", samples.bochs(size), "size of")
    refused(tmp_path / "image", samples.cow(size), "size of")
    refused(tmp_path / "image", samples.ploop(size), "size of")
    descriptor = b'# Disk DescriptorFile\nversion=1\nRW %d SPARSE "x"\n' % (10**16 - 1)
    refused(tmp_path / "image", descriptor * 2, "size of")


@pytest.mark.parametrize("length", [1024, 65536, 2**31, 2**32 - 1])
def test_absurd_names_are_refused(tmp_path: pathlib.Path, length: int) -> None:
    data = bytearray(samples.qcow2(backing=b"name"))
    struct.pack_into(">I", data, 16, length)
    refused(tmp_path / "image", bytes(data), f"name of {length} bytes")
    descriptor = b'# Disk DescriptorFile\nparentFileNameHint="%s"\n' % (b"n" * min(length, 60_000))
    refused(tmp_path / "image", descriptor, "name of")


@pytest.mark.parametrize("offset", [65535, 65536, 2**40, 2**63, 2**64 - 1])
def test_a_name_outside_of_the_image_is_refused(tmp_path: pathlib.Path, offset: int) -> None:
    image = samples.qcow2(backing=b"name", backing_at=offset)
    refused(tmp_path / "image", image, "past the end")


def test_a_name_ends_at_its_first_nul(tmp_path: pathlib.Path) -> None:
    for data in (
        samples.qcow2(backing=b"base\0\0junk"),
        samples.cow(512, b"base\0junk"),
        b'# Disk DescriptorFile\nversion=1\nparentFileNameHint="base\0junk"\n',
    ):
        (tmp_path / "image").write_bytes(data)
        header = samples.probe(tmp_path / "image")
        assert header.backing_path == "base"
        (link,) = chains.chain(header, str(tmp_path))
        assert link.problem == "No such file or directory"


def test_an_empty_name_is_none(tmp_path: pathlib.Path) -> None:
    for data in (
        samples.qcow2(backing_at=200),
        samples.qcow2(backing=b"\0name"),
        b'# Disk DescriptorFile\nversion=1\nparentFileNameHint=""\n',
    ):
        (tmp_path / "image").write_bytes(data)
        header = samples.probe(tmp_path / "image")
        assert (header.backing_path, header.backing_format) == (None, None)


FORMAT = 0xE2792ACA


def test_a_declared_format_ends_at_its_first_nul(tmp_path: pathlib.Path) -> None:
    extension = samples.qcow2_extension(FORMAT, b"qcow2\0raw")
    (tmp_path / "image").write_bytes(samples.qcow2(backing=b"base", extensions=extension))
    assert samples.probe(tmp_path / "image").backing_format == "qcow2"


def test_what_follows_the_name_declares_no_format(tmp_path: pathlib.Path) -> None:
    hidden = samples.qcow2_extension(FORMAT, b"qcow2")
    (tmp_path / "image").write_bytes(samples.qcow2(backing=hidden))
    assert samples.probe(tmp_path / "image").backing_format is None


def test_what_follows_the_end_of_the_extensions_declares_no_format(tmp_path: pathlib.Path) -> None:
    extensions = samples.qcow2_extension(0, b"") + samples.qcow2_extension(FORMAT, b"qcow2")
    (tmp_path / "image").write_bytes(samples.qcow2(backing=b"base", extensions=extensions))
    assert samples.probe(tmp_path / "image").backing_format is None


@pytest.mark.parametrize("length", [0xFFFFFFF8, 0xFFFFFFFF, 65536, 1024])
def test_an_extension_of_absurd_length_is_refused(tmp_path: pathlib.Path, length: int) -> None:
    absurd = struct.pack(">II", FORMAT, length) + b"raw"
    data = samples.qcow2(backing=b"base", backing_at=65000, extensions=absurd)
    refused(tmp_path / "image", data, f"{length} bytes")


@pytest.mark.parametrize("length", [0, 71, 65537, 0xFFFFFFFF])
def test_a_header_of_absurd_length_is_refused(tmp_path: pathlib.Path, length: int) -> None:
    data = bytearray(samples.qcow2(extensions=samples.qcow2_extension(FORMAT, b"raw")))
    struct.pack_into(">I", data, 100, length)
    refused(tmp_path / "image", bytes(data), f"claims {length} bytes")


@pytest.mark.parametrize("version", [0, 4, 2**32 - 1])
def test_an_unknown_version_is_refused(tmp_path: pathlib.Path, version: int) -> None:
    refused(tmp_path / "image", samples.qcow2(version=version), f"version {version}")
    if version < 2**16:
        luks = b"LUKS\xba\xbe" + struct.pack(">H", version)
        refused(tmp_path / "image", luks.ljust(4096, b"\0"), f"version {version}")


@pytest.mark.parametrize("length", [0, 4096, 4 * 2**20 + 1, 2**64 - 1])
def test_a_luks2_header_of_absurd_length_is_refused(tmp_path: pathlib.Path, length: int) -> None:
    image = bytearray(samples.luks2(samples.luks2_segments("16384"), size=30_000))
    struct.pack_into(">Q", image, 8, length)
    refused(tmp_path / "image", bytes(image), f"{length} bytes")


nonsense = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@fuzzing
@given(nonsense, st.booleans())
@example({"segments": {"0": {"offset": float("inf")}}}, False)
@example({"segments": {"0": {"offset": float("nan")}}}, False)
@example({"segments": {"0": {"offset": "9" * 5000}}}, False)
@example({"segments": {"0": {"offset": "-16384"}}}, False)
@example({"segments": {}}, False)
def test_nonsense_in_a_luks2_header_is_read_or_refused(
    tmp_path: pathlib.Path, reads: Reads, value: object, as_segment: bool
) -> None:
    document = {"segments": {"0": {"offset": value}}} if as_segment else value
    image = samples.luks2(json.dumps(document).encode(), size=30_000)
    header = examined(tmp_path / "image", image, reads)
    assert header is None or header.capacity <= 30_000


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"[" * 12_000,
        b'{"a":' * 2_000,
        b'{"segments": {"0": {"offset": 1e999}}}',
    ],
)
def test_text_that_is_no_luks2_header_is_refused(tmp_path: pathlib.Path, text: bytes) -> None:
    refused(tmp_path / "image", samples.luks2(text, size=30_000), "no segment")


def test_a_luks_payload_behind_the_end_leaves_nothing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "image").write_bytes(samples.luks2(samples.luks2_segments("999999"), size=30_000))
    assert samples.probe(tmp_path / "image").capacity == 0


def test_an_image_that_shrinks_while_it_is_read_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, originals: dict[str, bytes]
) -> None:
    path, really_read = tmp_path / "image", os.pread

    def read_and_cut(fd: int, length: int, offset: int) -> bytes:
        data = really_read(fd, length, offset)
        os.truncate(path, 10)
        return data

    for name in ("qcow2", "qcow2 0.10", "qed", "vpc fixed"):
        path.write_bytes(originals[name])
        with monkeypatch.context() as patched:
            patched.setattr(os, "pread", read_and_cut)
            with pytest.raises(errors.ProbeFailed):
                samples.probe(path)


def test_a_disk_that_ends_like_a_vhd_by_chance_is_raw(tmp_path: pathlib.Path) -> None:
    data = bytes(2048) + b"conectix".ljust(512, b"\1")
    (tmp_path / "image").write_bytes(data)
    assert samples.probe(tmp_path / "image") == ImageHeader(format="raw", capacity=len(data))


def test_a_directory_is_refused_as_an_error_of_ours(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.StorageError, match="read the header"):
        samples.probe(tmp_path / "empty")
