"""What is declared of a volume while a long command works on it waits for that, and says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.keeper import operation_key, volume, volume_key
from tests.operations.conftest import PATIENCE, Operated
from tests.serving.test_data import Served, eventually
from tests.transferring.streams import MIB

WEB = volume_key("web")
SIZE = 256 * MIB
SPEC = {"capacity": "256Mi", "allocation": 0, "deletionPolicy": "Delete"}


@pytest.fixture
def wiped(site: Operated) -> Path:
    """A volume that is overwritten 35 times now."""
    path = site.declare("web", **SPEC)
    path.write_bytes(os.urandom(SIZE))
    begin_wipe(site)
    return path


def begin_wipe(site: Operated) -> None:
    site.operate("gone", wipe={"algorithm": "gutmann"})
    site.reconcile()
    assert site.phase("gone") == "Running"


def cancel(site: Operated) -> None:
    site.edit_as_an_api_server_would(operation_key("gone"), cancel=True)
    site.reconcile()
    assert site.engine.jobs.idle(PATIENCE)
    site.settle()


def test_a_deletion_waits_for_a_wipe_and_names_it(site: Operated, wiped: Path) -> None:
    site.delete(WEB)
    site.reconcile()
    said = site.assert_retrying(WEB, "InUse")
    assert said.startswith(f"Wipe on {WEB} ({wiped}) is under way.")
    assert wiped.exists()
    assert site.phase("gone") == "Running"
    cancel(site)
    assert site.gone(WEB)
    assert not wiped.exists()


def test_a_shrink_waits_for_a_wipe_and_names_it(site: Operated, wiped: Path) -> None:
    resize = {"allowShrink": True, "allowDataLoss": True}
    site.apply(volume("web", "images", **{**SPEC, "capacity": "64Mi", "resize": resize}))
    site.reconcile()
    assert "Wipe on" in site.assert_retrying(WEB, "InUse")
    assert wiped.stat().st_size == SIZE
    cancel(site)
    site.assert_ready(WEB)
    assert wiped.stat().st_size == SIZE // 4


def test_what_is_let_go_without_being_deleted_waits_too(site: Operated) -> None:
    path = site.pool / "web"
    path.write_bytes(os.urandom(SIZE))
    site.apply(volume("web", "images", **SPEC))
    site.settle()
    assert site.get(WEB).status.origin == "Adopted"
    begin_wipe(site)
    site.delete(WEB)
    site.reconcile()
    assert "Wipe on" in site.assert_retrying(WEB, "InUse")
    cancel(site)
    assert site.gone(WEB)
    assert path.stat().st_size == SIZE


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    made.declare("web", deletionPolicy="Delete")
    yield made
    made.engine.stop()
    made.server.stop()
    made.rest()
    made.store.close()


def test_a_deletion_waits_for_an_upload_and_names_it(served: Served) -> None:
    path = served.pool / "web"
    sending = served.half_upload(bytes(4 * MIB))
    eventually(lambda: served.engine.jobs.on(WEB))
    served.delete(WEB)
    served.reconcile()
    assert f"Upload on {WEB} ({path}) is under way." in served.assert_retrying(WEB, "InUse")
    assert path.exists()
    sending.close()
    served.rest()
    served.settle()
    assert served.gone(WEB)
    assert list(served.pool.iterdir()) == []
