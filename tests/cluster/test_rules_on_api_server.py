"""What a real API server, with the generated CRDs, says to the manifests of the rule table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from backends.schema import Model
from controller.codecs import manifests
from controller.resources import GROUP, kinds
from tests import rule_table

pytestmark = pytest.mark.cluster

TRY = ("create", "--dry-run=server", "--filename", "-")
"""Not a server-side apply, which refuses empty fields and reads U+0085 as a line break."""

APPLY = ("apply", "--server-side", "--force-conflicts", "--filename", "-")
GOOD = [case for case in rule_table.CASES if not case.refused]


@pytest.fixture
def emptied(cluster: Any) -> Iterator[Any]:
    """The cluster, without resources of ours afterwards."""
    yield cluster
    for kind in kinds().values():
        done = cluster.kubectl("delete", f"{kind.plural}.{GROUP}", "--all", "--all-namespaces")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: str(kind.name))
def test_every_crd_is_served_and_structural(cluster: Any, kind: Any) -> None:
    definition = cluster.read("get", "crd", f"{kind.plural}.{GROUP}")
    conditions = {item["type"]: item["status"] for item in definition["status"]["conditions"]}
    assert conditions.get("Established") == "True"
    assert conditions.get("NamesAccepted") == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"
    assert cluster.read("get", f"{kind.short}.{GROUP}", "--all-namespaces")["items"] == []


@pytest.mark.parametrize("case", rule_table.CASES, ids=lambda case: str(case.name))
def test_the_server_accepts_and_refuses_as_the_table_says(
    cluster: Any, case: rule_table.Case
) -> None:
    done = cluster.kubectl(*TRY, given=case.manifest)
    assert (done.returncode == 0) is not bool(case.refused), done.stderr
    assert all(word in done.stderr for word in case.refused), done.stderr


@pytest.mark.parametrize("change", rule_table.CHANGES, ids=lambda change: str(change.name))
def test_the_server_accepts_and_refuses_changes_as_the_table_says(
    emptied: Any, change: rule_table.Change
) -> None:
    made = emptied.kubectl(*APPLY, given=change.before)
    assert made.returncode == 0, made.stderr
    done = emptied.kubectl(*APPLY, "--dry-run=server", given=change.after)
    assert (done.returncode == 0) is not bool(change.refused), done.stderr
    assert all(word in done.stderr for word in change.refused), done.stderr


@pytest.mark.parametrize("case", GOOD, ids=lambda case: str(case.name))
def test_the_server_fills_in_the_defaults_that_the_models_have(
    cluster: Any, case: rule_table.Case
) -> None:
    served = cluster.read(*TRY, given=case.manifest)
    (declared,) = manifests.load(case.manifest).declared
    assert served["spec"] == _as_written(declared.spec, case.manifest)


def _as_written(spec: Model, text: str) -> dict[str, Any]:
    """The model's dump, with sizes as the manifest has them: the server keeps a size as it came."""
    (given,) = manifests.documents.read(text)
    return _overlaid(spec.dump(), manifests.documents.plain(given.root)["spec"])


def _overlaid(dumped: Any, written: Any) -> Any:
    if isinstance(dumped, dict) and isinstance(written, dict):
        return {key: _overlaid(item, written.get(key)) for key, item in dumped.items()}
    if isinstance(dumped, list) and isinstance(written, list):
        return [_overlaid(*pair) for pair in zip(dumped, written, strict=True)]
    return dumped if written is None else written


def test_a_new_object_is_never_taken_for_one_that_was_looked_at(emptied: Any) -> None:
    made = emptied.kubectl(*APPLY, given=rule_table.pool(rule_table.DIR))
    assert made.returncode == 0, made.stderr
    served = emptied.read("get", "spool", "images")
    assert served["status"] == {"observedGeneration": -1}


def test_what_the_server_prints_is_a_manifest_again(emptied: Any) -> None:
    written = "---\n".join((rule_table.pool(rule_table.DIR), rule_table.volume("capacity: 20Gi")))
    assert emptied.kubectl(*APPLY, given=written).returncode == 0
    printed = emptied.kubectl("get", "storagepools,storagevolumes", "-o", "yaml").stdout
    again = manifests.load(printed)
    assert not again.problems
    assert [item.spec for item in again.declared] == [
        item.spec for item in manifests.load(written).declared
    ]


def test_pools_are_selected_on_the_server_by_node_and_type(emptied: Any) -> None:
    for name, node in (("a", "hv-01"), ("b", "hv-02")):
        written = rule_table.pool(f"type: logical, nodeName: {node}", name=name)
        assert emptied.kubectl(*APPLY, given=written).returncode == 0
    selector = "--field-selector=spec.nodeName=hv-02,spec.type=logical"
    found = emptied.read("get", "storagepools", selector)
    assert [item["metadata"]["name"] for item in found["items"]] == ["b"]
