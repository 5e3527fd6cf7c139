"""Manifests: what is read, what is refused and in which words, and what is written."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.registry import pool_spec, pool_types
from backends.schema import Model
from backends.spec import NodeSpec, OperationSpec
from controller.codecs import documents, manifests
from controller.resources import API_VERSION, Metadata, Resource, kinds
from tests import strategies

HEAD = f"apiVersion: {API_VERSION}\nkind: StoragePool\nmetadata:\n  name: images\n"
SPEC = "spec:\n  type: dir\n  target: {path: /srv}\n"
GOOD = HEAD + SPEC


def problems(text: str) -> list[str]:
    """Problems as people see them: ``9: spec.x is ...``."""
    return [f"{item.line}: {item}".replace(f"f.yaml:{item.line}: ", "") for item in _load(text)]


def _load(text: str) -> tuple[Any, ...]:
    return manifests.load(text, file="f.yaml").problems


def spec(text: str, kind: str = "StoragePool") -> str:
    """A manifest whose spec begins in line 6."""
    head = f"apiVersion: {API_VERSION}\nkind: {kind}\nmetadata:\n  name: images\nspec:\n"
    return head + textwrap.indent(textwrap.dedent(text), "  ")


class TestReading:
    def test_a_manifest_gives_its_resource_and_where_it_stood(self) -> None:
        loaded = manifests.load("# the images\n\n" + GOOD, file="pools.yaml")
        (declared,) = loaded.declared
        assert not loaded.problems
        assert str(declared.key) == "StoragePool/images"
        assert (declared.file, declared.line) == ("pools.yaml", 3)

    def test_a_namespaced_kind_is_in_the_default_namespace(self) -> None:
        text = spec("poolRef: {name: a}\ncapacity: 1Gi", "StorageVolume")
        (declared,) = manifests.load(text).declared
        assert declared.metadata.namespace == "default"

    def test_a_broken_document_does_not_hide_the_others(self) -> None:
        loaded = manifests.load("---\n".join([GOOD, "a: [\n", "b: 'c\n", GOOD]), file="f.yaml")
        assert len(loaded.declared) == 2
        lines = GOOD.count("\n")
        assert [item.line for item in loaded.problems] == [lines + 2, lines + 4]

    @pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n---\n", "%YAML 1.2\n---\n"])
    def test_a_file_of_nothing_declares_nothing(self, text: str) -> None:
        assert manifests.load(text) == manifests.Loaded((), ())

    def test_json_is_read(self) -> None:
        text = json.dumps(yaml.safe_load(GOOD) | {"status": {"x": "\N{GRINNING FACE} \\ud83d"}})
        assert len(manifests.load(text).declared) == 1

    def test_a_list_as_kubectl_prints_it_is_read(self) -> None:
        item = yaml.safe_load(GOOD)
        item["metadata"] |= {
            "uid": "x", "resourceVersion": "1", "generation": 2, "creationTimestamp": None,
            "managedFields": [{"manager": "m"}], "ownerReferences": [], "finalizers": ["a/b"],
        }  # fmt: skip
        item["status"] = {"anything": 1}
        text = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": [item]})
        (declared,) = manifests.load(text).declared
        assert declared.metadata == Metadata(name="images")

    def test_a_problem_in_a_list_leaves_the_other_items(self) -> None:
        good = yaml.safe_load(GOOD)
        listed = {"apiVersion": "v1", "kind": "List", "items": [good, {**good, "spec": {}}, good]}
        loaded = manifests.load(json.dumps(listed))
        assert (len(loaded.declared), len(loaded.problems)) == (2, 1)

    def test_fields_without_a_value_count_as_left_out(self) -> None:
        text = GOOD + "  build:\n  refresh: null\n  suspend: ~\n"
        (declared,) = manifests.load(text).declared
        assert declared.spec == manifests.load(GOOD).declared[0].spec

    def test_labels_and_annotations_are_kept(self) -> None:
        metadata = (
            "  labels: {app: x}\n  annotations:\n    a.example/b: |\n      two\n      lines\n"
        )
        (declared,) = manifests.load(HEAD + metadata + SPEC).declared
        assert declared.metadata.labels == {"app": "x"}
        assert declared.metadata.annotations == {"a.example/b": "two\nlines\n"}

    @pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
    def test_both_of_pyyamls_parsers_give_the_same(
        self, loader: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(documents, "_Loader", getattr(yaml, loader))
        loaded = manifests.load(f"{GOOD}---\n{GOOD}  x: {{\n---\na:\n\tb: 1\n", file="f.yaml")
        assert len(loaded.declared) == 1
        assert [item.line for item in loaded.problems] == [16, 19]
        assert "a tab stands where only spaces may" in str(loaded.problems[1])


class TestScalars:
    """What a reader of YAML 1.1 changes in silence."""

    @pytest.mark.parametrize("written", ["0711", "0o711", "0b11", "-010", "08"])
    def test_a_number_to_another_base_is_refused(self, written: str) -> None:
        text = spec(f"type: dir\ntarget:\n  path: /srv\n  permissions: {{mode: {written}}}\n")
        (problem,) = problems(text)
        assert problem.startswith(f"9: {written} is not taken for a number")
        assert "in quotes" in problem

    @pytest.mark.parametrize(
        ("written", "said"),
        [
            ("compat: 0.10", 'Write it in quotes: "0.10".'),
            ("compat: 1e3", 'Write it in quotes: "1e3".'),
            ("volumeName: 2024", 'Write it in quotes: "2024".'),
            ("volumeName: on", 'this is on, a boolean. Write it in quotes: "on".'),
            ("volumeName: y", 'this is y, a boolean. Write it in quotes: "y".'),
            ("permissions: {mode: 640}", 'write the mode in quotes, like "0640"'),
            ("permissions: {owner: 1.0}", "has to be a whole number"),
            ("capacity: 1.5", "is not a size"),
            ("nocow: 'yes'", "has to be true or false, and this is 'yes', text"),
        ],
    )
    def test_a_value_of_another_type_is_refused_as_it_was_written(
        self, written: str, said: str
    ) -> None:
        (problem,) = problems(spec(f"poolRef: {{name: a}}\n{written}\n", "StorageVolume"))
        assert problem.startswith("7: spec.")
        assert said in problem

    @pytest.mark.parametrize("written", ["1:30", "2024-01-01", "2001-12-14t21:59:43.10-05:00"])
    def test_times_and_numbers_to_the_base_60_are_text(self, written: str) -> None:
        text = spec(
            f"poolRef: {{name: a}}\ncapacity: 1Gi\nvolumeName: {written}\n", "StorageVolume"
        )
        (declared,) = manifests.load(text).declared
        assert declared.spec.dump()["volumeName"] == written

    @pytest.mark.parametrize("written", ["yes", "on", "True"])
    def test_a_boolean_may_be_written_as_in_yaml_1_1(self, written: str) -> None:
        (declared,) = manifests.load(f"{GOOD}  suspend: {written}\n").declared
        assert declared.spec.dump()["suspend"] is True


class TestBounds:
    def test_a_file_too_large_is_refused(self) -> None:
        (problem,) = _load("#" * (documents.MAX_BYTES + 1))
        assert "larger than 4 MiB" in str(problem)

    @pytest.mark.parametrize("text", ["[" * 100_000, "a:\n" + "- " * 5000, '{"a":' * 100_000])
    def test_deep_nesting_is_refused(self, text: str) -> None:
        (problem,) = _load(text)
        assert "nested more than" in str(problem)

    def test_aliases_are_refused_where_they_stand(self) -> None:
        laughs = ["a: &a [x, x]"]
        laughs += [
            f"{new}: &{new} [*{old}, *{old}]" for old, new in zip("abcdef", "bcdefg", strict=True)
        ]
        found = _load("\n".join(laughs))
        assert {item.line for item in found if "alias" in item.message} == {2, 3, 4, 5, 6, 7}

    def test_a_file_of_very_many_values_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(documents, "MAX_NODES", 1000)
        found = _load("[" + "1," * (documents.MAX_NODES + 1) + "]")
        assert "values" in str(found[0])

    def test_a_file_of_very_many_broken_documents_is_given_up(self) -> None:
        found = _load("a: [\n---\n" * 10_000)
        assert len(found) == documents.MAX_PROBLEMS + 1
        assert "not read" in str(found[-1])

    @pytest.mark.parametrize(
        ("text", "line", "said"),
        [
            ("a: 1\na: 2\n", 2, "a is given twice, first in line 1"),
            ("a:\n\tb: 1\n", 2, "a tab stands where only spaces may"),
            ("a: b: c\n", 1, "a ':' stands where no key can be"),
            ("a: 'b\nc: d\n", 1, "a quote or bracket is not closed"),
            ("a: [1\nb: 2\n", 2, "bracket"),
            ("a:\n  - b\n c: d\n", 3, "this fits nothing above it"),
            ("a: @b\n", 1, "text can't begin so"),
            ('a: "\\q"\n', 1, "an escape in double quotes is unknown"),
            ("a: !!python/object:os.system x\n", 1, "The tag"),
            ("? [a]\n: b\n", 1, "A key is not text"),
            ("a: 1\nb: \x01\n", 2, "The character U+0001 can't stand in YAML"),
            ("a: 1\nb: \ud800\n", 2, "The character U+D800 can't stand in YAML"),
        ],
    )
    def test_what_is_not_yaml_is_refused_with_its_line(
        self, text: str, line: int, said: str
    ) -> None:
        found = [item for item in _load(text) if said in item.message]
        assert [item.line for item in found] == [line], [str(item) for item in _load(text)]

    @settings(deadline=None)
    @given(st.text(max_size=200) | st.text("{}[]:-&*!|>'\"%@#\n\t ab", max_size=200))
    def test_any_text_is_read_without_an_exception(self, text: str) -> None:
        assert not manifests.load(text).declared


class TestMessages:
    def test_all_problems_of_a_document_are_told_in_order_of_line(self) -> None:
        text = spec(
            """\
            type: logical
            path: /dev/vg0
            logical:
              devics: [{path: /dev/vdb}]
              provisioning: thin
            uuid: 1
            autostart: maybe
            """
        )
        assert problems(text) == [
            "7: spec.path is not a known field. It belongs at spec.target.path.",
            "9: spec.logical.devics is not a known field. Did you mean devices?",
            "10: spec.logical.provisioning can't be 'thin'. Did you mean Thin? "
            "It is Thick or Thin.",
            '11: spec.uuid has to be text, and this is 1, a number. Write it in quotes: "1".',
            "12: spec.autostart has to be true or false, and this is 'maybe', text. "
            "False: after a reboot of the host the pool stays down until its spec changes or an "
            "operation starts it.",
        ]

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("volumeGroup", "It belongs at spec.logical.volumeGroup."),
            ("name", "It belongs at metadata.name."),
            ("node_name", "Did you mean nodeName?"),
            ("nodename", "Did you mean nodeName?"),
            ("policy", "It belongs at spec.build.policy."),
            ("deletePolicy", "Did you mean deletionPolicy?"),
        ],
    )
    def test_an_unknown_field_is_told_its_name_or_place(self, name: str, said: str) -> None:
        (problem,) = problems(spec(f"type: logical\n{name}: x\n"))
        assert problem == f"7: spec.{name} is not a known field. {said}"

    def test_a_member_of_another_type_is_not_proposed(self) -> None:
        (problem,) = problems(spec("type: zfs\nvolumeGroup: x\n"))
        assert "logical" not in problem

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (GOOD.replace("v1alpha1", "v2"), "1: The apiVersion is 'poolkeeper.dev/v2'. Write"),
            (GOOD.replace("poolkeeper.dev/v1alpha1", "v1"), "1: The apiVersion is 'v1', which is"),
            (GOOD.replace("StoragePool", "StoragePol"), "2: There is no kind 'StoragePol'. Did"),
            (GOOD.replace("kind: StoragePool\n", ""), "1: kind is missing."),
            (GOOD.partition("\n")[2], "1: apiVersion is missing."),
            (GOOD.replace("name: images", "nam: images"), "3: metadata.name is missing."),
            (GOOD.replace("images", "Images"), "4: metadata.name can't be 'Images'. A name of"),
            (GOOD.replace("images", "a" * 254), "4: metadata.name is longer than 253 characters"),
            (GOOD.replace("images", "images\n  namespace: a"), "5: metadata.namespace is a, and"),
            (GOOD.replace("images", "images\n  generateName: a"), "5: metadata.generateName is"),
            (GOOD.replace("images", "images\n  labels: {a: 1}"), "5: metadata.labels.a has to be"),
            (GOOD.replace("images", "images\n  labels: {a b: c}"), "5: metadata.labels can't have"),
            (HEAD, "1: spec is missing."),
            (GOOD + "size: 1\n", "8: size is not a field of a manifest."),
            ("- a\n", "1: A manifest is a mapping, and this is a list."),
            (HEAD + "spec: []\n", "5: spec has to be a mapping of fields, and this is a list."),
        ],
    )
    def test_the_envelope_is_checked(self, text: str, said: str) -> None:
        assert any(item.startswith(said) for item in problems(text)), problems(text)

    def test_a_rule_is_told_at_the_line_of_what_it_is_about(self) -> None:
        text = spec("type: rbd\nrbd:\n  hosts: [{name: a}]\n  auth:\n    type: ceph\n"
                    "    username: u\n    secretRef: {}\n")  # fmt: skip
        assert problems(text) == [
            "12: spec.rbd.auth.secretRef: give exactly one of name, uuid and usage."
        ]

    @settings(deadline=None, max_examples=100)
    @given(st.data())
    def test_no_message_is_pydantics_own(self, data: st.DataObject) -> None:
        """Any value is put in any place of a good spec."""
        good = data.draw(strategies.pool_objects())
        _spoil(data, good)
        text = json.dumps(yaml.safe_load(HEAD) | {"spec": good})
        for problem in _load(text):
            said = str(problem)
            assert "Input should" not in said
            assert "is not what it has to be" not in said
            assert "String should" not in said
            assert "Field required" not in said
            assert "__" not in said


def _spoil(data: st.DataObject, good: dict[str, Any]) -> None:
    place: Any = good
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.just(0))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        place = inner
    place[key] = data.draw(
        st.sampled_from(["", "x", "/", -1, 10**12, 1.5, True, None, [], {}, [None], {"x": 1}, "\n"])
    )


class TestWriting:
    def test_text_that_yaml_would_change_is_quoted_and_nothing_else(self) -> None:
        written = manifests.dump(
            [{"mode": "0640", "size": "20Gi", "compat": "1.1", "no": "no", "path": "/srv/a b"}]
        )
        assert written == ('mode: "0640"\nsize: 20Gi\ncompat: "1.1"\n"no": "no"\npath: /srv/a b\n')

    def test_lines_stay_lines_and_order_stays_order(self) -> None:
        assert manifests.dump([{"b": "one\ntwo\n", "a": [1, True]}]) == (
            "b: |\n  one\n  two\na:\n- 1\n- true\n"
        )

    def test_equal_values_are_written_out_without_aliases(self) -> None:
        shared = {"x": [1]}
        assert "&" not in manifests.dump([{"a": shared, "b": shared}])

    def test_several_objects_are_several_documents(self) -> None:
        assert manifests.dump([{"a": 1}, {"b": 2}]) == "a: 1\n---\nb: 2\n"

    def test_the_type_of_a_pool_stands_first(self) -> None:
        (declared,) = manifests.load(GOOD).declared
        lines = manifests.dump([{"spec": declared.spec.dump()}]).splitlines()
        assert lines[:2] == ["spec:", "  type: dir"]

    @settings(deadline=None)
    @given(strategies.texts(0, 60) | st.sampled_from(strategies.TRICKY))
    def test_any_text_comes_back(self, text: str) -> None:
        (document,) = documents.read(manifests.dump([{"a": text, "b": [text], "c": {"k": text}}]))
        assert document.root is not None
        assert documents.plain(document.root) == {"a": text, "b": [text], "c": {"k": text}}

    @settings(deadline=None)
    @given(strategies.texts(0, 60))
    def test_other_readers_of_yaml_see_the_same_text(self, text: str) -> None:
        assert yaml.safe_load(manifests.dump([{"a": text}])) == {"a": text}


def comes_back(kind: str, spec: Model) -> None:
    """Writes a spec as a manifest, reads it, and compares."""
    made = kinds()[kind]
    namespace = "tenant" if made.namespaced else ""
    resource = Resource(
        kind=made,
        metadata=Metadata(name="images", namespace=namespace, labels={"a": "1"}),
        spec=spec,
        status=made.status(),
    )
    loaded = manifests.load(manifests.dump([resource.manifest()]))
    assert not loaded.problems, [str(problem) for problem in loaded.problems]
    (declared,) = loaded.declared
    assert declared.spec == spec
    assert declared.metadata == resource.metadata


class TestRoundTrip:
    @pytest.mark.parametrize("pool_type", pool_types().values(), ids=lambda item: str(item.name))
    @settings(deadline=None, max_examples=20)
    @given(data=st.data())
    def test_a_pool_comes_back(self, pool_type: Any, data: st.DataObject) -> None:
        comes_back("StoragePool", data.draw(strategies.pools(pool_type)))

    @settings(deadline=None, max_examples=60)
    @given(strategies.volumes())
    def test_a_volume_comes_back(self, drawn: Model) -> None:
        comes_back("StorageVolume", drawn)

    @settings(deadline=None, max_examples=30)
    @given(strategies.models_of(OperationSpec))
    def test_an_operation_comes_back(self, drawn: Model) -> None:
        comes_back("VolumeOperation", drawn)

    @settings(deadline=None, max_examples=30)
    @given(strategies.models_of(NodeSpec))
    def test_a_node_comes_back(self, drawn: Model) -> None:
        comes_back("StorageNode", drawn)

    @settings(deadline=None, max_examples=60)
    @given(strategies.pool_objects())
    def test_what_a_user_may_write_is_read_as_the_model_reads_it(self, written: Any) -> None:
        text = json.dumps(yaml.safe_load(HEAD) | {"spec": written})
        loaded = manifests.load(text)
        assert not loaded.problems, [str(problem) for problem in loaded.problems]
        expected = pool_spec().model_validate(written, by_alias=True, by_name=False)
        assert replace(loaded.declared[0], line=0).spec == expected
