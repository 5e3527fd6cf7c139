"""Images that come compressed: what they bring, and what keeps them within bounds."""

import gzip
import hashlib
import lzma
import random
import resource
import subprocess

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import errors
from backends.images import importing
from backends.images.importing import Room
from tests.importing.conftest import MIB
from tests.importing.servers import Site, serving

IMAGE = random.Random(8).randbytes(MIB + 777) + bytes(2 * MIB) + b"end"
PACK = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}
each = pytest.mark.parametrize("kind", PACK)


@each
def test_it_is_decompressed_and_its_zeros_are_holes(site, taken, kind):
    packed = PACK[kind](IMAGE)
    site.files["/a"] = packed
    taken.fetch(f"{site.url}/a", checksum=f"sha256:{hashlib.sha256(packed).hexdigest()}")
    assert taken.contents == IMAGE
    assert taken.path.stat().st_blocks * 512 < 2 * MIB


@each
def test_several_in_a_row_are_one(site, taken, kind):
    site.files["/a"] = PACK[kind](IMAGE) + PACK[kind](b"more") + PACK[kind](b"")
    taken.fetch(f"{site.url}/a")
    assert taken.contents == IMAGE + b"more"


def test_padding_between_streams_of_xz_is_skipped(site, taken):
    site.files["/a"] = lzma.compress(b"one") + bytes(8) + lzma.compress(b"two") + bytes(4)
    taken.fetch(f"{site.url}/a")
    assert taken.contents == b"onetwo"


@each
@pytest.mark.parametrize("program", [True, False])
def test_what_was_cut_off_is_refused(site, taken, kind, program):
    whole = PACK[kind](IMAGE)
    if program:
        argv = {"gzip": ["gzip", "-c"], "xz": ["xz", "-c"], "zstd": ["zstd", "-c", "-q"]}[kind]
        whole = subprocess.run(argv, input=IMAGE, check=True, capture_output=True).stdout
    site.files["/a"] = whole[: len(whole) // 2]
    with pytest.raises(errors.ImageRefused, match="decompressed"):
        taken.fetch(f"{site.url}/a")
    site.files["/a"] = whole[:-1]
    with pytest.raises(errors.ImageRefused, match="decompressed"):
        taken.fetch(f"{site.url}/a")


@each
def test_a_wrong_checksum_is_told_before_damage_is(site, taken, kind):
    packed = PACK[kind](IMAGE)
    site.files["/a"] = packed[: len(packed) // 2]
    with pytest.raises(errors.ChecksumMismatch):
        taken.fetch(f"{site.url}/a", checksum=f"sha256:{hashlib.sha256(packed).hexdigest()}")


@each
def test_a_damaged_byte_is_noticed(site, taken, kind):
    packed = bytearray(PACK[kind](IMAGE))
    if kind == "zstd":  # has no check of its own unless asked for
        packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(IMAGE))
    packed[len(packed) // 2] ^= 0x10
    site.files["/a"] = bytes(packed)
    with pytest.raises(errors.ImageRefused):
        taken.fetch(f"{site.url}/a")


@each
def test_a_bomb_ends_at_the_capacity(site, taken, kind):
    site.files["/a"] = PACK[kind](bytes(96 * MIB))
    assert len(site.files["/a"]) < MIB
    taken.room = Room(contents=8 * MIB, stored=64 * MIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(errors.ImageRefused, match="8Mi"):
        taken.fetch(f"{site.url}/a")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024  # KiB
    assert taken.path.stat().st_size <= 8 * MIB


@each
def test_a_bomb_of_data_ends_at_the_room_of_the_pool(site, taken, kind):
    site.files["/a"] = PACK[kind](b"\xaa" * (48 * MIB))
    taken.room = Room(contents=64 * MIB, stored=8 * MIB)
    with pytest.raises(errors.NoSpace):
        taken.fetch(f"{site.url}/a")
    assert taken.path.stat().st_blocks * 512 <= 9 * MIB


def test_a_decompressor_that_wants_too_much_memory_is_refused(site, taken):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 * MIB}]
    site.files["/a"] = lzma.compress(b"small", filters=filters)
    with pytest.raises(errors.ImageRefused):
        taken.fetch(f"{site.url}/a")
    large = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=large).compressobj()
    site.files["/a"] = packer.compress(b"x" * MIB) + packer.flush()
    with pytest.raises(errors.ImageRefused):
        taken.fetch(f"{site.url}/a")


def test_a_cut_within_what_is_compressed_is_made_up_for(site, taken):
    packed = gzip.compress(IMAGE)
    site.files["/a"] = packed
    site.cuts = [len(packed) // 3, 10]
    taken.fetch(f"{site.url}/a", checksum=f"sha256:{hashlib.sha256(packed).hexdigest()}")
    assert taken.contents == IMAGE


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.one_of(st.binary(max_size=200), st.integers(0, 300_000).map(bytes)), max_size=6),
    st.sampled_from(["plain", *PACK]),
)
def test_any_contents_arrive_as_they_are(taken, parts, kind):
    contents = b"".join(parts)
    if kind == "plain" and contents.startswith((importing._GZIP, importing._XZ, importing._ZSTD)):
        return
    taken.path.unlink(missing_ok=True)
    with serving(Site()) as site:
        site.files["/a"] = PACK.get(kind, bytes)(contents)
        taken.fetch(f"{site.url}/a")
    assert taken.contents == contents
