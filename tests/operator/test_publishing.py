"""What a PersistentVolume for a volume looks like, and where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends import errors
from backends.base import VolumeFacts
from backends.spec import PersistentVolume
from controller.publishing import desired
from tests.keeper import Keeper, dir_pool, volume, volume_key

DATA = volume_key("data")


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(tmp_path / "state")
    made.apply(
        dir_pool("images", tmp_path / "images"),
        volume(
            "data", "images", format="dir", capacity="1Mi",
            publish={"persistentVolume": {}},
        ),
    )  # fmt: skip
    yield made
    made.store.close()


def facts(type: Any, capacity: int | None = 2**30) -> VolumeFacts:
    return VolumeFacts(
        name="data",
        path="/dev/vg0/data",
        key="k",
        type=type,
        format=None,
        capacity=capacity,
        allocation=None,
    )


def wanted(keeper: Keeper, found: VolumeFacts, **wish: Any) -> dict[str, Any]:
    spec = desired(keeper.get(DATA), PersistentVolume.model_validate(wish), found, host="hv-01")[
        "spec"
    ]
    assert isinstance(spec, dict)
    return spec


def test_a_block_device_is_one_for_pods_unless_they_are_to_have_a_file_system(
    keeper: Keeper,
) -> None:
    spec = wanted(keeper, facts("block"))
    assert (spec["volumeMode"], spec["local"]) == ("Block", {"path": "/dev/vg0/data"})
    assert spec["capacity"] == {"storage": str(2**30)}
    assert wanted(keeper, facts("block"), volumeMode="Filesystem")["volumeMode"] == "Filesystem"


@pytest.mark.parametrize("type", ["file", "network", "netdir", "ploop"])
@pytest.mark.parametrize("wish", [{}, {"volumeMode": "Block"}, {"volumeMode": "Filesystem"}])
def test_kubelet_mounts_no_files_and_no_networks(
    keeper: Keeper, type: str, wish: dict[str, str]
) -> None:
    with pytest.raises(errors.Unsupported, match=type):
        wanted(keeper, facts(type), **wish)


def test_a_directory_of_no_known_size_takes_the_declared_one(keeper: Keeper) -> None:
    assert wanted(keeper, facts("dir", None))["capacity"] == {"storage": str(2**20)}


def test_without_a_cluster_the_volume_is_ready_and_says_that_it_is_not_published(
    keeper: Keeper,
) -> None:
    keeper.settle()
    keeper.assert_ready(DATA)
    assert keeper.truth(DATA, "Published") == "False"
    assert "no API server" in keeper.message(DATA, "Published")
    keeper.delete(DATA)
    assert keeper.gone(DATA)
