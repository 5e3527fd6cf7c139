"""One table says of every pool type whether this host can serve it, or why not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends import errors, support
from backends.base import BackendContext, Operation
from backends.host import commands
from backends.host.marks import MarkStore
from backends.host.needs import Needs
from backends.registry import pool_type, pool_types
from backends.spec import Host, SourceQuery

LACKING = Needs(programs=("no-such-program",))
DIR = pool_type("dir")


def test_every_type_is_supported_or_says_why_not() -> None:
    found = support.supported_types()
    assert [item.type.name for item in found] == list(pool_types())
    assert all(item.supported == (item.reason == "") for item in found)
    served = {item.type.name for item in found if item.supported}
    assert "dir" in served
    assert all(pool_type(name).backend is not None for name in served)


def test_what_a_type_needs_and_the_host_lacks_is_the_reason() -> None:
    found = support.support(replace(DIR, needs=LACKING))
    assert not found.supported
    assert "no-such-program is not on this host" in found.reason
    assert found.volume_formats == ()


def test_a_format_of_the_source_that_lacks_something_leaves_the_others() -> None:
    netfs = replace(pool_type("netfs"), backend=DIR.backend, needs=Needs())
    found = support.support(replace(netfs, format_needs={"cifs": LACKING}))
    assert found.supported
    assert found.source_formats == ("auto", "nfs", "glusterfs")
    assert any(limit.startswith("No source of format cifs: ") for limit in found.limits)


def test_a_type_of_which_every_format_lacks_something_is_not_supported() -> None:
    netfs = replace(pool_type("netfs"), backend=DIR.backend, needs=Needs())
    wanting = dict.fromkeys(netfs.source_formats, LACKING)
    found = support.support(replace(netfs, format_needs=wanting))
    assert "no-such-program" in found.reason
    assert found.source_formats == ()


def test_without_qemu_img_raw_volumes_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "SEARCH_PATH", "/nowhere")
    found = support.support(DIR)
    assert found.supported
    assert set(found.volume_formats) == {"raw", "iso", "dir"}
    (limit,) = found.limits
    assert "qcow2" in limit
    assert "qemu-img is not on this host" in limit


def test_a_host_that_has_everything_has_no_limits() -> None:
    assert support.support(DIR).limits == ()


def test_types_that_make_no_volumes_list_no_formats() -> None:
    without = replace(DIR, operations=frozenset(Operation) - {Operation.CREATE_VOLUME})
    assert support.support(without).volume_formats == ()


def test_a_type_without_sources_says_which_have_some(tmp_path) -> None:  # type: ignore[no-untyped-def]
    query = SourceQuery(type="dir", host=Host(name="192.0.2.1"))
    with pytest.raises(errors.Unsupported, match="sources of pools of type dir"):
        support.find_sources("dir", query, BackendContext(marks=MarkStore(tmp_path)))
