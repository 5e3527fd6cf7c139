"""Nothing is lost between a manifest and its document, in either direction."""

import dataclasses
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from backends.base import PoolType
from backends.registry import pool_types
from backends.schema import Model, violations
from backends.spec import VolumeSpec
from controller.codecs import libvirtxml
from controller.codecs.mergepatch import difference, merge
from controller.resources import Declared, Metadata, kinds, object_name
from tests import strategies

UUID = "0d6b4a7e-9f0c-4a53-8a4e-1f2f3c4d5e6f"
TYPES = list(pool_types().values())
FEW = settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)

strings = st.dictionaries(strategies.texts(1, 10), strategies.texts(0, 10), max_size=2)


def manifests(
    kind: str, written: st.SearchStrategy[dict[str, Any]], namespaces: st.SearchStrategy[str]
) -> st.SearchStrategy[Declared]:
    model = kinds()[kind].spec

    def read(spec: dict[str, Any]) -> Model:
        return model.model_validate(spec, by_alias=True, by_name=False)

    def keeps_all_rules(spec: dict[str, Any]) -> bool:
        try:
            return not list(violations(read(spec)))
        except ValidationError:
            return False

    metadata = st.builds(
        Metadata,
        name=strategies.object_names(),
        namespace=namespaces,
        labels=strings,
        annotations=strings,
    )
    specs = written.filter(keeps_all_rules).map(read)
    return st.builds(
        Declared, kind=st.just(kinds()[kind]), metadata=metadata, spec=specs, line=st.just(1)
    )


@cache
def pool_manifests(kind: PoolType | None = None) -> st.SearchStrategy[Declared]:
    return manifests("StoragePool", strategies.pool_objects(kind), st.just(""))


@cache
def volume_manifests() -> st.SearchStrategy[Declared]:
    return manifests("StorageVolume", strategies.objects_of(VolumeSpec), strategies.object_names())


def through_xml(manifest: Declared, pool_type: str = "dir") -> Declared:
    pool = None
    if manifest.kind.name == "StorageVolume":
        pool = of_type(pool_type)
    text = libvirtxml.format(libvirtxml.document(manifest, pool_type=pool_type), extension=True)
    return libvirtxml.declared(libvirtxml.parse(text.encode(), pool=pool), line=manifest.line)


def of_type(name: str) -> libvirtxml.Document:
    """The least of a pool that a volume's document is read with: its type and its name."""
    kind = kinds()["StoragePool"]
    spec = kind.spec.model_construct(type=name)
    return libvirtxml.Document(
        kind=kind.name, name="p", spec=spec, status=kind.status(), resource_name="p"
    )


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@given(data=st.data())
@FEW
def test_a_pools_manifest_comes_back_from_xml_as_it_was(
    kind: PoolType, data: st.DataObject
) -> None:
    manifest = data.draw(pool_manifests(kind))
    assert through_xml(manifest) == manifest


@pytest.mark.parametrize("pool_type", TYPES, ids=lambda kind: kind.name)
@given(data=st.data())
@FEW
def test_a_volumes_manifest_comes_back_from_xml_as_it_was(
    pool_type: PoolType, data: st.DataObject
) -> None:
    manifest = data.draw(volume_manifests())
    assert through_xml(manifest, pool_type.name) == manifest


@given(data=st.data())
@FEW
def test_xml_made_of_a_manifest_is_stable(data: st.DataObject) -> None:
    made = libvirtxml.document(data.draw(pool_manifests() | volume_manifests()))
    text = libvirtxml.format(made, extension=True, uuid=UUID)
    read = libvirtxml.parse(text.encode())
    assert libvirtxml.format(read, extension=True, uuid=UUID) == text
    assert libvirtxml.format(read, uuid=UUID) == libvirtxml.format(made, uuid=UUID)


ANYTHING = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@given(label=ANYTHING, option=ANYTHING, vendor=ANYTHING, path=ANYTHING)
@settings(deadline=None)
def test_no_character_is_lost_or_breaks_the_document(
    label: str, option: str, vendor: str, path: str
) -> None:
    spec = kinds()["StoragePool"].spec.model_validate(
        {
            "type": "fs",
            "fs": {"device": {"path": "/dev/x" + path}, "mountOptions": [option]},
            "inventory": {"vendor": vendor},
            "target": {"path": "/" + path.replace("\0", ""), "permissions": {"label": label}},
        }
    )
    manifest = Declared(kind=kinds()["StoragePool"], metadata=Metadata(name="p"), spec=spec, line=1)
    assert through_xml(manifest) == manifest


json_objects = st.recursive(
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2) | st.text("xy", max_size=2)),
    lambda below: st.dictionaries(st.sampled_from("abcd"), below | st.lists(below, max_size=2)),
    max_leaves=12,
)


@given(json_objects, json_objects)
def test_a_difference_turns_the_old_object_into_the_new(
    old: dict[str, object], new: dict[str, object]
) -> None:
    assert merge(old, difference(old, new)) == new


@given(json_objects)
def test_no_difference_is_an_empty_patch(value: dict[str, object]) -> None:
    assert difference(value, value) == {}


@given(st.text())
def test_a_resource_name_is_valid_and_tells_names_apart(name: str) -> None:
    given_name = object_name(name)
    assert object_name(given_name) == given_name
    assert len(given_name) <= 253
    assert given_name == name or object_name(name + "A") != given_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("images", "images"),
        ("disk.qcow2", "disk.qcow2"),
        ("HostVG", "hostvg-"),
        ("My Disk (1).img", "my-disk-1.img-"),
        ("-", "x-"),
        ("a..b", "a.b-"),
        ("é", "x-"),
        ("x" * 255, "x" * 200 + "-"),
    ],
)
def test_a_resource_name_stays_readable(name: str, expected: str) -> None:
    made = object_name(name)
    assert made == expected if expected == name else made.startswith(expected)


def test_a_name_that_is_no_resource_name_is_kept_in_the_spec() -> None:
    text = b"<pool type='dir'><name>My Images</name><target><path>/a</path></target></pool>"
    manifest = libvirtxml.declared(libvirtxml.parse(text))
    assert manifest.metadata.name.startswith("my-images-")
    assert manifest.spec.dump()["poolName"] == "My Images"


def test_an_edited_name_wins_over_the_one_that_travelled() -> None:
    spec = kinds()["StoragePool"].spec.model_validate(
        {"type": "dir", "poolName": "Old", "target": {"path": "/a"}}
    )
    manifest = Declared(kind=kinds()["StoragePool"], metadata=Metadata(name="kept"), spec=spec)
    text = libvirtxml.format(libvirtxml.document(manifest), extension=True)
    edited = libvirtxml.parse(text.replace("<name>Old</name>", "<name>new</name>").encode())
    assert (edited.name, edited.resource_name) == ("new", "kept")
    assert libvirtxml.declared(edited).spec.dump()["poolName"] == "new"


def test_what_was_observed_is_printed_and_the_spec_still_comes_back() -> None:
    kind = kinds()["StorageVolume"]
    spec = kind.spec.model_validate({"poolRef": {"name": "p"}, "capacity": "1000"})
    status = kind.status.model_validate(
        {"capacity": 1024, "allocation": 4096, "physical": 1024, "path": "/a/v", "key": "/a/v"}
    )
    made = libvirtxml.Document(kind=kind.name, name="v", spec=spec, status=status, namespace="n")
    text = libvirtxml.format(made, extension=True)
    assert "<capacity unit='bytes'>1024</capacity>\n  <allocation unit='bytes'>4096<" in text
    assert "<physical unit='bytes'>1024</physical>" in text
    assert libvirtxml.parse(text.encode()).spec == spec


def test_a_manifest_that_xml_can_hold_in_full_needs_no_extension() -> None:
    text = (
        f"<pool type='dir'><name>a</name><uuid>{UUID}</uuid><target><path>/a</path></target></pool>"
    )
    read = libvirtxml.parse(text.encode())
    assert libvirtxml.format(read, extension=True) == libvirtxml.format(read)


def test_the_uuid_of_a_pool_is_its_own_the_observed_the_given_or_a_new_one() -> None:
    text = b"<pool type='dir'><name>a</name><target><path>/a</path></target></pool>"
    read = libvirtxml.parse(text)
    assert f"<uuid>{UUID}</uuid>" in libvirtxml.format(read, uuid=UUID)
    status = read.status.model_copy(update={"uuid": UUID})
    assert f"<uuid>{UUID}</uuid>" in libvirtxml.format(dataclasses.replace(read, status=status))
    assert libvirtxml.format(read) != libvirtxml.format(read)
