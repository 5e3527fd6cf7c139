"""Columns, sizes and ages."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.cli.printing import clean
from controller.cli.tables import Cell, age, evaluate, plain, size, usage_bar
from controller.resources import kinds

NOW = datetime.datetime(2026, 1, 2, 12, 0, 0, tzinfo=datetime.UTC)
DOCUMENT = {
    "spec": {"type": "dir", "nested": {"n": 0}},
    "status": {
        "conditions": [
            {"type": "InSync", "status": "Unknown"},
            {"type": "Ready", "status": "True", "message": "all's well"},
        ]
    },
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (".spec.type", "dir"),
        (".spec.nested.n", 0),
        (".spec.nothing.at.all", None),
        (".spec.type.deeper", None),
        ('.status.conditions[?(@.type=="Ready")].status', "True"),
        ('.status.conditions[?(@.type=="Ready")].message', "all's well"),
        ('.status.conditions[?(@.type=="Stalled")].status', None),
        ('.spec[?(@.type=="Ready")].status', None),
    ],
)
def test_paths_of_columns(path, value):
    assert evaluate(DOCUMENT, path) == value


def test_every_column_has_a_path_that_can_be_evaluated():
    for kind in kinds().values():
        for column in kind.columns:
            assert evaluate({}, column.path) is None


def test_a_path_that_is_more_is_refused():
    with pytest.raises(ValueError, match="more than"):
        evaluate(DOCUMENT, ".spec[0]")


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        ({"seconds": -5}, "0s"),
        ({"seconds": 59}, "59s"),
        ({"seconds": 60}, "1m"),
        ({"minutes": 59, "seconds": 59}, "59m"),
        ({"hours": 2, "minutes": 40}, "2h"),
        ({"days": 5}, "5d"),
        ({"days": 400}, "400d"),
    ],
)
def test_ages(ago, text):
    then = NOW - datetime.timedelta(**ago)
    assert age(then.strftime("%Y-%m-%dT%H:%M:%SZ"), now=NOW) == text


def test_sizes_are_for_people_and_what_is_none_stays():
    assert size("20Gi") == "20 GiB"
    assert size("1500M") == "1.4 GiB"
    assert size("much") == "much"


@given(st.integers(0, 2**62), st.integers(0, 2**62))
def test_a_bar_is_never_longer_than_it_is(allocation, capacity):
    text = usage_bar(allocation, capacity, drawn=True).text
    bar, _, figure = text.partition(" ")
    assert len(bar) == 10
    assert 0 <= int(figure.removesuffix("%")) <= 100


@given(st.lists(st.tuples(st.text("ab -", max_size=9), st.text("cd", max_size=9)), max_size=5))
def test_columns_begin_at_the_same_place_in_every_row(pairs):
    lines = plain(["FIRST", "SECOND"], [[Cell(a), Cell(b)] for a, b in pairs]).splitlines()
    place = lines[0].index("SECOND")
    for (_, second), line in zip(pairs, lines[1:], strict=True):
        assert line[place:] == second


@given(st.text())
def test_clean_text_has_no_controls_and_keeps_the_rest(text):
    cleaned = clean(text)
    assert not any(ord(character) < 32 and character not in "\t\n" for character in cleaned)
    if text.isascii() and text.isprintable():
        assert cleaned == text
