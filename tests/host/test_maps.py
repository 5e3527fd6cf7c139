"""Multipath maps as sysfs shows them, on a stand-in for it: what no lab can time."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from backends import mpath


@pytest.mark.parametrize(("read", "goes"), [("uuid", ""), ("uuid", "slaves"), ("name", "dm")])
def test_a_map_that_goes_while_it_is_read_is_none(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, read: str, goes: str
) -> None:
    place = tmp_path / "dm-0"
    (place / "slaves").mkdir(parents=True)
    (place / "dm").mkdir()
    for name, text in {"dm/uuid": "mpath-3600", "dm/name": "mpatha", "size": "8"}.items():
        (place / name).write_text(text)
    attribute = mpath.attribute
    monkeypatch.setattr(mpath, "_BLOCK", tmp_path)
    assert [item.name for item in mpath._maps()] == ["mpatha"]

    def going(path: pathlib.Path) -> str:
        if path.name == read and goes:
            shutil.rmtree(place / goes)
        found = attribute(path)
        if path.name == read and not goes:
            shutil.rmtree(place)
        return found

    monkeypatch.setattr(mpath, "attribute", going)
    assert list(mpath._maps()) == []
