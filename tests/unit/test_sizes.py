"""Sizes: what a person writes, what is kept, what is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import errors, sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (17, 17),
        ("20Gi", 20 * 2**30),
        ("1.5Gi", 3 * 2**29),
        ("1k", 1000),
        ("1e3", 1000),
        ("2E", 2 * 10**18),
        ("7Ei", 7 * 2**60),
        ("0.5", 1),
        (".5Ki", 512),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(text, size):
    assert sizes.parse_quantity(text) == size


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1 Gi", "1gb", "1Kb", "0x10", "1e", "١"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(errors.InvalidManifest):
        sizes.parse_quantity(text)


@pytest.mark.parametrize("text", ["8Ei", "9223372036854775808", "1e30", "1e999999999"])
def test_sizes_past_the_largest_file_overflow(text):
    with pytest.raises(errors.Overflow):
        sizes.parse_quantity(text)


@given(st.integers(0, sizes.MAX_SIZE))
def test_a_size_survives_being_written_and_read(size):
    assert sizes.parse_quantity(sizes.format_quantity(size)) == size


@pytest.mark.parametrize(
    ("text", "unit", "size"),
    [
        ("10", None, 10),
        ("10", "bytes", 10),
        ("10", "GB", 10**10),
        ("5", "G", 5 * 2**30),
        ("5", "gib", 5 * 2**30),
        (" 1 ", "K", 1024),
    ],
)
def test_scaled_integers_are_read_as_libvirt_reads_them(text, unit, size):
    assert sizes.parse_scaled(text, unit) == size


@pytest.mark.parametrize(("text", "unit"), [("1.5", "G"), ("-1", "B"), ("1", "furlong"), ("", "B")])
def test_what_is_no_scaled_integer_is_refused(text, unit):
    with pytest.raises(errors.InvalidXml):
        sizes.parse_scaled(text, unit)


@pytest.mark.parametrize(("text", "unit"), [("9", "E"), ("9" * 5000, "B")])
def test_scaled_integers_past_the_largest_file_overflow(text, unit):
    with pytest.raises(errors.Overflow):
        sizes.parse_scaled(text, unit)


@given(st.integers(0, 2**50), st.integers(1, 2**22))
def test_rounding_up_gives_the_nearest_multiple_that_is_not_smaller(size, step):
    rounded = sizes.round_up(size, step)
    assert rounded % step == 0
    assert size <= rounded < size + step


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (20 * 2**30, "20 GiB"),
        (999 * 2**20 + 2**19, "0.98 GiB"),
        (2**63 - 1, "8 EiB"),
    ],
)
def test_sizes_for_people_have_three_figures(size, shown):
    assert sizes.format_human(size) == shown
