"""``capabilities`` and ``find-sources``: what a host can serve, and what pools could stand on."""

import time
from xml.etree import ElementTree

from backends.base import Operation
from backends.registry import pool_type, pool_types
from controller.codecs import libvirtxml
from tests.cli.conftest import resource


def test_capabilities_list_all_types_and_tell_which_are_served(poolkeeper):
    root = ElementTree.fromstring(poolkeeper("capabilities").out)
    served = {item.get("type"): item.get("supported") for item in root.findall("pool")}
    assert len(served) == 14
    assert served["dir"] == "yes"
    as_json = poolkeeper("capabilities", "-o", "json").json
    assert {item["type"]: item["supported"] for item in as_json} == {
        name: answer == "yes" for name, answer in served.items()
    }


def test_capabilities_say_why_a_type_can_not_be_served(poolkeeper):
    shown = {
        line.split()[0]: line for line in poolkeeper("capabilities", "-o", "table").out.splitlines()
    }
    for item in poolkeeper("capabilities", "-o", "json").json:
        assert bool(item["reason"]) != item["supported"]
        assert item["reason"] in shown[item["type"]]


def test_a_type_without_sources_is_refused_by_name(poolkeeper):
    result = poolkeeper("find-sources", "dir")
    assert result.code == 1
    assert "sources of pools of type dir" in result.err
    assert result.out == ""
    assert not poolkeeper.state.exists()


def test_an_unknown_type_is_refused_with_the_known_ones(poolkeeper):
    result = poolkeeper("find-sources", "tape", "--host", "192.0.2.1")
    assert result.code == 1
    assert "'tape'" in result.err
    assert "netfs" in result.err


def test_what_only_a_declared_type_could_find_is_not_claimed(poolkeeper):
    for name, item in pool_types().items():
        if item.backend is None:
            assert Operation.FIND_SOURCES not in item.operations, name


def test_sources_are_written_as_in_a_pool():
    source = pool_type("netfs").source.model_validate(
        {"hosts": [{"name": "192.0.2.1"}], "directory": "/srv/a&b", "format": "nfs"}
    )
    assert libvirtxml.sources([source, source]).splitlines() == [
        "<sources>",
        *(
            "  <source>",
            "    <host name='192.0.2.1'/>",
            "    <dir path='/srv/a&amp;b'/>",
            "    <format type='nfs'/>",
            "  </source>",
        )
        * 2,
        "</sources>",
    ]
    assert libvirtxml.sources([]).splitlines() == ["<sources>", "</sources>"]


def _reported(poolkeeper, node):
    """A node with what its agent tells of it, once that is there."""
    shown = poolkeeper("get", "snode", node, "-o", "json")
    return shown.json if shown.code == 0 and shown.json["status"].get("conditions") else None


def test_an_agent_reports_what_its_host_can_serve(poolkeeper, agent):
    agent("--node-name", "hv-01")
    while not (found := _reported(poolkeeper, "hv-01")):
        time.sleep(0.1)
    (ready,) = found["status"]["conditions"]
    assert (ready["type"], ready["status"]) == ("Ready", "True")
    assert "dir" in found["status"]["serves"].split()
    heads, row = poolkeeper("get", "snode").out.splitlines()
    assert heads.split() == ["NAME", "SERVES", "HEARTBEAT", "READY", "AGE"]
    assert row.startswith("hv-01")
    assert "Serves" in poolkeeper("describe", "snode", "hv-01").out


def test_what_is_to_be_discovered_is_stored_and_left_to_the_agent(poolkeeper, write):
    spec = {"discover": [{"type": "iscsi", "host": {"name": "192.0.2.1"}}]}
    result = poolkeeper("apply", "-f", write("node.yaml", resource("StorageNode", "hv-01", spec)))
    assert result.code == 0
    assert "the agent of that node" in result.err
    assert poolkeeper("get", "snode", "hv-01", "-o", "json").json["spec"]["discover"] == [
        {"type": "iscsi", "host": {"name": "192.0.2.1"}}
    ]
