"""``spec.allowedNamespaces``: a pool is for the namespaces it names, and for no other."""

from __future__ import annotations

import os
from typing import Any

import pytest

from controller.resources import Key
from tests.keeper import dir_pool, marked, pool_key, volume

IMAGES = pool_key("images")


def of(namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
    manifest["metadata"]["namespace"] = namespace
    return manifest


def key(namespace: str, name: str) -> Key:
    return Key("StorageVolume", namespace, name)


def test_a_volume_of_an_allowed_namespace_is_made(keeper, images):
    keeper.apply(
        dir_pool("images", images, allowed_namespaces=["blue", "green"]),
        of("green", volume("one", "images", capacity="1Mi")),
    )
    keeper.settle()
    keeper.assert_ready(key("green", "one"))


def test_a_pool_that_names_none_is_for_all(keeper, images):
    keeper.apply(
        dir_pool("images", images),
        of("red", volume("one", "images", capacity="1Mi")),
    )
    keeper.settle()
    keeper.assert_ready(key("red", "one"))


def test_a_volume_of_another_namespace_is_refused_by_name(keeper, images):
    keeper.apply(
        dir_pool("images", images, allowed_namespaces=["blue"]),
        of("red", volume("one", "images", capacity="1Mi")),
    )
    keeper.settle()
    message = keeper.assert_stalled(key("red", "one"), "NamespaceNotAllowed")
    assert "'images'" in message
    assert "'red'" in message
    assert os.listdir(images) == []
    keeper.assert_ready(IMAGES)


def test_the_refusal_does_not_say_who_else_may(keeper, images):
    keeper.apply(
        dir_pool("images", images, allowed_namespaces=["blue"]),
        of("red", volume("one", "images", capacity="1Mi")),
    )
    keeper.settle()
    assert "blue" not in keeper.message(key("red", "one"))


def test_the_plan_refuses_as_the_pass_does(keeper, images):
    keeper.apply(
        dir_pool("images", images, allowed_namespaces=["blue"]),
        of("red", volume("one", "images", capacity="1Mi")),
        of("blue", volume("two", "images", capacity="1Mi")),
    )
    (examined,) = keeper.plans()
    refusals = {
        str(item.resource.key): [error.reason for error in item.plan.refusals]
        for item in examined.volumes
    }
    assert refusals == {
        "StorageVolume/red/one": ["NamespaceNotAllowed"],
        "StorageVolume/blue/two": [],
    }
    assert not images.exists()


def test_a_namespace_that_is_let_in_later_gets_its_volume(keeper, images):
    keeper.apply(
        dir_pool("images", images, allowed_namespaces=["blue"]),
        of("red", volume("one", "images", capacity="1Mi")),
    )
    keeper.settle()
    keeper.apply(dir_pool("images", images, allowed_namespaces=["blue", "red"]))
    keeper.settle()
    keeper.assert_ready(key("red", "one"))


def test_a_namespace_that_is_left_out_later_keeps_its_data_and_gets_no_more(keeper, images):
    declared = of("red", volume("one", "images", capacity="1Mi", deletion_policy="Delete"))
    keeper.apply(dir_pool("images", images), declared)
    keeper.settle()
    keeper.apply(dir_pool("images", images, allowed_namespaces=["blue"]))
    declared["spec"]["capacity"] = "2Mi"
    keeper.apply(declared)
    keeper.settle()
    keeper.assert_stalled(key("red", "one"), "NamespaceNotAllowed")
    assert (images / "one").stat().st_size == 2**20
    keeper.apply(of("blue", volume("two", "images", capacity="1Mi", volume_name="one")))
    keeper.settle()
    assert "red/one" in keeper.assert_stalled(key("blue", "two"), "Conflict")
    keeper.delete(key("red", "one"))
    keeper.settle()
    assert keeper.gone(key("red", "one"))
    keeper.assert_ready(key("blue", "two"))
    assert marked(images / "one")["resource"] == "StorageVolume/blue/two"


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_a_refused_volume_takes_nothing_with_it(keeper, images, policy):
    images.mkdir()
    (images / "one").write_bytes(b"of somebody else")
    keeper.apply(
        dir_pool("images", images, allowed_namespaces=["blue"]),
        of("red", volume("one", "images", capacity="1Mi", deletion_policy=policy)),
    )
    keeper.settle()
    keeper.delete(key("red", "one"))
    keeper.settle()
    assert keeper.gone(key("red", "one"))
    assert (images / "one").read_bytes() == b"of somebody else"


def test_a_refused_volume_does_not_hold_a_name(keeper, images):
    keeper.apply(
        dir_pool("images", images, allowed_namespaces=["blue"]),
        of("red", volume("one", "images", capacity="1Mi")),
    )
    keeper.settle()
    keeper.apply(of("blue", volume("two", "images", capacity="1Mi", volume_name="one")))
    keeper.settle()
    keeper.assert_ready(key("blue", "two"))
    assert marked(images / "one")["resource"] == "StorageVolume/blue/two"


def test_a_refused_volume_does_not_say_what_a_file_is(keeper, images):
    """Declared raw is taken at its word, but only from who may have the volume."""
    keeper.apply(
        dir_pool("images", images, allowed_namespaces=["blue"]),
        of("blue", volume("one", "images", capacity="1Mi", format="qcow2")),
        of("red", volume("two", "images", capacity="1Mi", format="raw", volume_name="one")),
    )
    keeper.settle()
    keeper.assert_ready(key("blue", "one"))
    assert keeper.get(key("blue", "one")).status.format == "qcow2"


def test_the_later_volume_of_a_name_does_not_say_what_a_file_is(keeper, images):
    keeper.apply(
        dir_pool("images", images),
        of("blue", volume("one", "images", capacity="1Mi", format="qcow2")),
    )
    keeper.settle()
    keeper.apply(of("red", volume("two", "images", capacity="9Mi", volume_name="one")))
    keeper.settle()
    keeper.assert_stalled(key("red", "two"), "Conflict")
    keeper.assert_ready(key("blue", "one"))
    assert keeper.get(key("blue", "one")).status.format == "qcow2"


def test_a_refused_volume_does_not_hold_up_the_deletion_of_its_pool(keeper, images):
    keeper.apply(
        dir_pool("images", images, allowed_namespaces=["blue"], deletion_policy="Delete"),
        of("red", volume("one", "images", capacity="1Mi", deletion_policy="Delete")),
    )
    keeper.settle()
    keeper.delete(IMAGES)
    keeper.settle()
    assert keeper.gone(IMAGES)
    assert not images.exists()


def test_a_volume_may_not_stand_on_one_of_a_pool_that_is_not_for_it(keeper, images, tmp_path):
    base = {"volume_ref": {"name": "base", "namespace": "blue"}, "format": "qcow2"}
    backing = {"volumeRef": base["volume_ref"], "format": base["format"]}
    keeper.apply(
        dir_pool("images", images, allowed_namespaces=["blue"]),
        dir_pool("open", tmp_path / "open"),
        of("blue", volume("base", "images", capacity="1Mi", format="qcow2")),
        of("red", volume("disk", "open", format="qcow2", backing_store=backing)),
    )
    keeper.settle()
    keeper.assert_ready(key("blue", "base"))
    message = keeper.assert_stalled(key("red", "disk"), "NamespaceNotAllowed")
    assert "'images'" in message
    assert os.listdir(tmp_path / "open") == []


def test_what_is_found_is_declared_where_the_pool_allows_it(keeper, images):
    images.mkdir()
    (images / "found").write_bytes(bytes(2**20))
    keeper.apply(dir_pool("images", images, allowed_namespaces=["blue"], discovery="Adopt"))
    keeper.settle()
    keeper.assert_ready(key("blue", "found"))
    assert keeper.gone(key("default", "found"))
