"""``spec.poolSelector``: a volume asks for a pool by labels and gets the one with most space."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from backends import errors
from backends.host import mounts
from tests.keeper import Keeper, dir_pool, pool_key, volume, volume_key

GIB = 2**30


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes available in directories by name; each has 1 TiB in all."""
    left: dict[str, int] = {}

    def of(fd: int) -> mounts.Space:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        available = left.get(name, 512 * GIB)
        return mounts.Space(capacity=2**40, available=available, allocation=2**40 - available)

    monkeypatch.setattr(mounts, "space", of)
    return left


@pytest.fixture
def pools(keeper: Keeper, space: dict[str, int], tmp_path: Path) -> Any:
    """Make pools with labels ``app=db``, or others, and with so much space."""

    def make(**available: int) -> None:
        for name, left in available.items():
            space[name] = left
            keeper.apply(labelled(dir_pool(name, tmp_path / name), app="db"))
        keeper.settle()

    return make


def labelled(manifest: dict[str, Any], **labels: str) -> dict[str, Any]:
    manifest["metadata"]["labels"] = labels
    return manifest


def asking(name: str, *, selector: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    wanted = selector or {"matchLabels": {"app": "db"}}
    usual = {"capacity": "1Mi", "allocation": 0, "pool_selector": wanted}
    manifest = volume(name, "nowhere", **{**usual, **spec})
    del manifest["spec"]["poolRef"]
    return manifest


def chosen(keeper: Keeper, name: str) -> str:
    reference = keeper.get(volume_key(name)).spec.pool_ref
    return reference.name if reference else ""


def test_the_pool_with_most_space_is_taken(keeper, pools, tmp_path):
    pools(a=10 * GIB, b=30 * GIB, c=20 * GIB)
    keeper.apply(asking("disk"))
    keeper.settle()
    keeper.assert_ready(volume_key("disk"))
    assert chosen(keeper, "disk") == "b"
    assert (tmp_path / "b" / "disk").exists()
    assert keeper.get(volume_key("disk")).spec.node_name == keeper.engine.node


def test_of_equal_pools_the_first_by_name_is_taken(keeper, pools):
    pools(b=GIB, a=GIB, c=GIB)
    keeper.apply(asking("disk"))
    keeper.settle()
    assert chosen(keeper, "disk") == "a"


def test_only_pools_with_the_labels_are_looked_at(keeper, pools, tmp_path):
    pools(a=GIB)
    keeper.apply(labelled(dir_pool("big", tmp_path / "big"), app="web"))
    keeper.settle()
    keeper.apply(asking("disk"))
    keeper.settle()
    assert chosen(keeper, "disk") == "a"


@pytest.mark.parametrize(
    ("operator", "values", "taken"),
    [
        ("In", ["ssd", "nvme"], "fast"),
        ("NotIn", ["ssd", "hdd"], "plain"),
        ("Exists", [], "fast"),
        ("DoesNotExist", [], "plain"),
    ],
)
def test_expressions_are_understood_as_elsewhere_in_kubernetes(
    keeper, space, tmp_path, operator, values, taken
):
    keeper.apply(
        labelled(dir_pool("fast", tmp_path / "fast"), disk="ssd"),
        labelled(dir_pool("plain", tmp_path / "plain")),
    )
    keeper.settle()
    wanted = {"key": "disk", "operator": operator, "values": values}
    keeper.apply(asking("disk", selector={"matchExpressions": [wanted]}))
    keeper.settle()
    assert chosen(keeper, "disk") == taken


def test_what_was_given_away_and_is_not_made_yet_counts(keeper, pools):
    pools(a=10 * GIB, b=9 * GIB)
    keeper.apply(*(asking(f"v{number}", capacity="4Gi", allocation="4Gi") for number in range(4)))
    keeper.reconcile("")
    assert [chosen(keeper, f"v{number}") for number in range(4)] == ["a", "b", "a", "b"]
    keeper.apply(asking("late", capacity="4Gi", allocation="4Gi"))
    keeper.reconcile("")
    assert chosen(keeper, "late") == ""
    assert keeper.reason(volume_key("late")) == "NoSpace"


def test_a_choice_is_final(keeper, pools, tmp_path):
    pools(a=10 * GIB)
    keeper.apply(asking("disk"))
    keeper.settle()
    pools(b=20 * GIB)
    keeper.apply(asking("disk"), labelled(dir_pool("a", tmp_path / "a"), app="web"))
    keeper.settle()
    assert chosen(keeper, "disk") == "a"
    keeper.assert_ready(volume_key("disk"))
    assert (tmp_path / "a" / "disk").exists()


def test_applying_the_same_again_changes_nothing(keeper, pools):
    pools(a=GIB)
    keeper.apply(asking("disk"))
    keeper.settle()
    before = keeper.recorded()
    keeper.apply(asking("disk"))
    assert keeper.recorded() == before


def test_other_labels_are_refused_once_a_pool_was_chosen(keeper, pools):
    pools(a=GIB)
    keeper.apply(asking("disk"))
    keeper.settle()
    with pytest.raises(errors.InvalidSpec, match="poolSelector can't be changed"):
        keeper.apply(asking("disk", selector={"matchLabels": {"app": "web"}}))


def test_without_a_pool_it_waits_and_says_for_what(keeper, pools):
    keeper.apply(asking("disk"))
    keeper.settle()
    found = keeper.get(volume_key("disk"))
    assert keeper.reason(volume_key("disk")) == "NoPoolMatches"
    assert keeper.truth(volume_key("disk"), "Stalled") is None
    assert "app=db" in found.status.conditions[0].message
    assert [event for event in keeper.reasons(volume_key("disk"))] == ["NoPoolMatches"]
    pools(a=GIB)
    keeper.settle()
    keeper.assert_ready(volume_key("disk"))


def test_a_label_that_is_given_later_counts(keeper, space, tmp_path):
    keeper.apply(dir_pool("a", tmp_path / "a"), asking("disk"))
    keeper.settle()
    assert chosen(keeper, "disk") == ""
    keeper.apply(labelled(dir_pool("a", tmp_path / "a"), app="db"))
    keeper.settle()
    keeper.assert_ready(volume_key("disk"))


def test_a_pool_that_is_not_for_its_namespace_is_passed_over(keeper, space, tmp_path):
    keeper.apply(
        labelled(dir_pool("a", tmp_path / "a", allowed_namespaces=["blue"]), app="db"),
        asking("disk"),
    )
    keeper.settle()
    assert keeper.reason(volume_key("disk")) == "NamespaceNotAllowed"
    assert keeper.truth(volume_key("disk"), "Stalled") is None
    keeper.apply(labelled(dir_pool("b", tmp_path / "b"), app="db"))
    keeper.settle()
    assert chosen(keeper, "disk") == "b"


def test_a_pool_without_the_room_is_passed_over(keeper, pools):
    pools(a=GIB)
    keeper.apply(asking("disk", capacity="2Gi", allocation="2Gi"))
    keeper.settle()
    assert keeper.reason(volume_key("disk")) == "NoSpace"
    assert "2 GiB" in keeper.get(volume_key("disk")).status.conditions[0].message


def test_pools_that_do_not_run_are_passed_over(keeper, space, tmp_path):
    keeper.apply(
        labelled(dir_pool("a", tmp_path / "a", state="Inactive"), app="db"), asking("disk")
    )
    keeper.settle()
    assert keeper.reason(volume_key("disk")) == "PoolNotReady"
    keeper.apply(labelled(dir_pool("a", tmp_path / "a"), app="db"))
    keeper.settle()
    keeper.assert_ready(volume_key("disk"))


def test_a_format_that_no_pool_has_is_told(keeper, pools):
    pools(a=GIB)
    keeper.apply(asking("disk", format="linux-swap", allocation=None))
    keeper.settle()
    assert keeper.reason(volume_key("disk")) == "NoPoolMatches"
    assert "linux-swap" in keeper.get(volume_key("disk")).status.conditions[0].message


def test_suspended_means_that_no_pool_is_chosen(keeper, pools):
    pools(a=GIB)
    keeper.apply(asking("disk", suspend=True))
    keeper.settle()
    assert chosen(keeper, "disk") == ""
    keeper.apply(asking("disk"))
    keeper.settle()
    assert chosen(keeper, "disk") == "a"


def test_one_that_waits_can_be_deleted(keeper):
    keeper.apply(asking("disk", deletion_policy="Delete"))
    keeper.settle()
    keeper.delete(volume_key("disk"))
    assert keeper.gone(volume_key("disk"))


def test_one_that_waits_is_written_about_once(keeper):
    keeper.apply(asking("disk"))
    keeper.settle()
    before = keeper.recorded()
    keeper.reconcile("")
    assert keeper.recorded() == before


def test_nobody_stands_on_one_that_waits(keeper, pools):
    pools(a=GIB)
    keeper.apply(
        asking("base", selector={"matchLabels": {"app": "web"}}),
        volume("top", "a", format="qcow2",
               backing_store={"volumeRef": {"name": "base"}, "format": "raw"}),
    )  # fmt: skip
    keeper.settle()
    assert keeper.reason(volume_key("top")) == "BackingMissing"
    keeper.assert_ready(pool_key("a"))


def test_a_volume_for_another_node_is_left_alone(keeper, pools):
    pools(a=GIB)
    keeper.apply(asking("disk", node_name="elsewhere"))
    keeper.settle()
    assert chosen(keeper, "disk") == ""
    assert keeper.get(volume_key("disk")).status.conditions == ()


def test_a_deletion_leaves_no_room_taken(keeper, pools, tmp_path):
    pools(a=5 * GIB)
    keeper.apply(asking("one", capacity="4Gi", allocation="4Gi"))
    keeper.reconcile("")
    assert chosen(keeper, "one") == "a"
    keeper.delete(volume_key("one"))
    keeper.settle()
    keeper.apply(asking("two", capacity="4Gi", allocation="4Gi"))
    keeper.reconcile("")
    assert chosen(keeper, "two") == "a"
