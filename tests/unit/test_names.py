"""Names are checked where they enter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import errors, names


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/",
        "-rf",
        "a\nb",
        "a\0b",
        "a\x7fb",
        "x" * 256,
        "ä" * 128,
        ".poolkeeper",
    ],
)
def test_names_that_could_lead_elsewhere_are_refused(name):
    with pytest.raises(errors.InvalidSpec) as caught:
        names.check_name(name, what="volume name")
    assert "volume name" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["a", "disk.qcow2", "ä" * 127, "a b", "a:b,c=d", ".hidden", "x" * 255]
)
def test_plain_names_are_taken(name):
    assert names.check_name(name, what="volume name") == name


@given(st.text(max_size=300))
def test_a_name_that_is_taken_is_one_path_component(name):
    try:
        names.check_name(name, what="name")
    except errors.InvalidSpec:
        return
    assert "/" not in name
    assert name not in ("", ".", "..")
    assert len(name.encode()) <= 255
    assert not name.startswith("-")
