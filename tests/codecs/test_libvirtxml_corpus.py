"""libvirt's own test documents, byte for byte.

They are read from ``../shared/libvirt-corpus`` beside the checkout, and skipped where it is absent.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from controller.codecs import libvirtxml

CORPUS = Path(__file__).parents[3] / "shared" / "libvirt-corpus"
ABSENT = f"libvirt's test documents are not in {CORPUS.parent.name}/{CORPUS.name}"
CASES = json.loads((CORPUS / "index.json").read_text()) if CORPUS.is_dir() else []

pytestmark = pytest.mark.skipif(not CASES, reason=ABSENT)


def parsed(case: dict[str, Any]) -> libvirtxml.Document:
    pool = None
    if "pool" in case:
        pool = libvirtxml.parse((CORPUS / case["pool"]).read_bytes(), file=case["pool"])
    return libvirtxml.parse(
        (CORPUS / case["input"]).read_bytes(),
        file=case["input"],
        pool=pool,
        require_capacity="VIR_VOL_XML_PARSE_NO_CAPACITY" not in case.get("flags", ()),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_libvirts_documents_are_normalised_as_libvirt_does(case: dict[str, Any]) -> None:
    assert libvirtxml.format(parsed(case)) == (CORPUS / case["expect"]).read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_libvirts_documents_survive_as_manifests(case: dict[str, Any]) -> None:
    found = parsed(case)
    manifest = libvirtxml.declared(found)
    again = libvirtxml.document(manifest, pool_type=found.pool_type)
    observed = libvirtxml.Document(
        **{
            name: getattr(found if name == "status" else again, name)
            for name in libvirtxml.Document.__dataclass_fields__
        }
    )
    assert libvirtxml.format(observed) == (CORPUS / case["expect"]).read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_normalised_documents_normalise_to_themselves(case: dict[str, Any]) -> None:
    text = (CORPUS / case["expect"]).read_bytes()
    pool = libvirtxml.parse((CORPUS / case["pool"]).read_bytes()) if "pool" in case else None
    assert libvirtxml.format(libvirtxml.parse(text, pool=pool)).encode() == text


def test_capabilities_are_written_as_libvirt_does() -> None:
    expected = (CORPUS / "storagepoolcapsschemadata" / "poolcaps-fs.xml").read_text()
    assert libvirtxml.capabilities({"fs"}) == expected
