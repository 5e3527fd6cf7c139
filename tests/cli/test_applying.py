"""``apply`` makes what is declared, and says in its exit code whether all is well."""

import fcntl
import json
import os
import threading
import time

import pytest


def test_one_command_builds_a_pool_and_its_volumes(poolkeeper, write, pool, volume, images):
    manifest = write("all.yaml", volume("a"), volume("b", format="qcow2"), pool())
    result = poolkeeper("apply", "-f", manifest)
    assert result.code == 0
    assert result.out.splitlines() == [
        "storagepool/images created",
        "storagevolume/a created",
        "storagevolume/b created",
    ]
    assert sorted(os.listdir(images)) == ["a", "b"]
    assert (images / "a").stat().st_size == 2**20


def test_one_command_makes_a_volume_that_asks_for_a_pool_by_labels(
    poolkeeper, write, pool, volume, images
):
    asking = volume("a", poolRef=None, poolSelector={"matchLabels": {"app": "db"}})
    labelled = pool()
    labelled["metadata"]["labels"] = {"app": "db"}
    manifest = write("all.yaml", asking, labelled)
    planned = poolkeeper("plan", "-f", manifest)
    assert planned.code == 2
    assert "PoolNotReady" in planned.out
    assert poolkeeper("apply", "-f", manifest).code == 0
    assert os.listdir(images) == ["a"]
    assert poolkeeper("plan", "-f", manifest).code == 0
    again = poolkeeper("apply", "-f", manifest)
    assert again.code == 0
    assert again.out == "storagepool/images unchanged\nstoragevolume/a unchanged\n"
    second = write("second.yaml", {**asking, "metadata": {"name": "b"}})
    planned = poolkeeper("plan", "-f", second)
    assert f"CreateVolume {images}/b" in planned.out
    assert poolkeeper("apply", "-f", second).code == 0
    shown = poolkeeper("get", "svol", "b", "-o", "json").json
    assert shown["spec"]["poolRef"] == {"name": "images"}
    assert "<name>b</name>" in poolkeeper("get", "svol", "b", "-o", "xml").out


def test_a_volume_that_no_pool_matches_is_not_ready_and_says_why(poolkeeper, write, pool, volume):
    asking = volume("a", poolRef=None, poolSelector={"matchLabels": {"app": "db"}})
    result = poolkeeper("apply", "-f", write("all.yaml", asking, pool()))
    assert result.code == 1
    assert "No pool has the labels" in result.err
    assert poolkeeper("plan").code == 1
    assert "No pool has the labels" in poolkeeper("describe", "svol", "a").out
    assert poolkeeper("delete", "svol", "a").code == 0


def test_applying_twice_changes_nothing(poolkeeper, write, pool, volume):
    manifest = write("all.yaml", pool(), volume())
    poolkeeper("apply", "-f", manifest)
    before = poolkeeper("get", "svol", "-o", "json").json
    again = poolkeeper("apply", manifest)
    assert again.code == 0
    assert again.out == "storagepool/images unchanged\nstoragevolume/disk unchanged\n"
    assert "done" not in again.err
    assert poolkeeper("get", "svol", "-o", "json").json == before


def test_a_changed_capacity_grows_the_volume(poolkeeper, write, pool, volume, images):
    poolkeeper("apply", write("all.yaml", pool(), volume()))
    result = poolkeeper("apply", write("all.yaml", pool(), volume(capacity="3Mi")))
    assert result.code == 0
    assert "storagevolume/disk configured" in result.out
    assert (images / "disk").stat().st_size == 3 * 2**20


def test_folders_json_xml_and_standard_input_are_manifests(
    poolkeeper, write, pool, volume, images, tmp_path
):
    write("pool.json", pool())
    folder = tmp_path / "manifests" / "images"
    folder.mkdir()
    (folder / "x.xml").write_text(
        "<volume><name>x.raw</name><capacity>4096</capacity><allocation>0</allocation></volume>"
    )
    result = poolkeeper("apply", "-f", tmp_path / "manifests", "-", stdin=json.dumps(volume("in")))
    assert result.code == 0, result.err
    assert sorted(os.listdir(images)) == ["in", "x.raw"]


def test_pool_places_an_xml_volume_that_nothing_else_does(
    poolkeeper, write, pool, images, tmp_path
):
    poolkeeper("apply", write("pool.yaml", pool()))
    lone = tmp_path / "lone.xml"
    lone.write_text(
        "<volume><name>lone</name><capacity>1</capacity><allocation>0</allocation></volume>"
    )
    refused = poolkeeper("apply", "-f", lone)
    assert refused.code == 1
    assert f"{lone}:1:" in refused.err
    assert poolkeeper("apply", "-f", lone, "--pool", "images").code == 0
    assert (images / "lone").exists()


def test_a_broken_manifest_fails_by_name_and_the_others_are_applied(
    poolkeeper, write, pool, volume, images, tmp_path
):
    write("good.yaml", pool(), volume())
    broken = write("broken.yaml", volume("broken", capactiy="1Gi"))
    result = poolkeeper("apply", "-f", tmp_path / "manifests")
    assert result.code == 1
    (line,) = [line for line in result.err.splitlines() if "capactiy" in line]
    assert line.startswith(f"{broken}:")
    assert line.removeprefix(f"{broken}:").partition(":")[0].isdecimal()
    assert "capacity" in line
    assert (images / "disk").exists()


def test_strict_does_nothing_where_one_manifest_is_broken(
    poolkeeper, write, pool, volume, images, tmp_path
):
    write("good.yaml", pool())
    write("broken.yaml", volume("broken", capactiy="1Gi"))
    result = poolkeeper("apply", "--strict", "-f", tmp_path / "manifests")
    assert (result.code, result.out) == (1, "")
    assert not images.exists()
    assert not poolkeeper.state.exists()


def test_a_change_that_the_store_refuses_is_named_with_its_place(poolkeeper, write, pool, volume):
    poolkeeper("apply", write("all.yaml", pool(), volume(volumeName="one")))
    manifest = write("changed.yaml", volume(volumeName="two"), volume("other"))
    result = poolkeeper("apply", manifest)
    assert result.code == 1
    assert f"{manifest}:2: StorageVolume/default/disk" in result.err
    assert "storagevolume/other created" in result.out


def test_what_is_refused_fails_with_and_without_waiting(poolkeeper, write, pool, volume, images):
    images.mkdir()
    (images / "disk").write_bytes(b"somebody's")
    manifest = write("all.yaml", pool(), volume())
    for options in ((), ("--wait",)):
        result = poolkeeper("apply", manifest, *options)
        assert result.code == 1
        assert "differs: capacity" in result.err
    assert (images / "disk").read_bytes() == b"somebody's"


def test_time_runs_out_on_what_may_still_come(poolkeeper, write, pool, volume, tmp_path):
    store = {"path": str(tmp_path / "later.raw"), "format": "raw"}
    overlay = volume(format="qcow2", backingStore=store)
    manifest = write("all.yaml", pool(), overlay)
    assert poolkeeper("apply", manifest).code == 1
    result = poolkeeper("apply", manifest, "--wait", "--timeout", "100ms")
    assert result.code == 3
    assert "later.raw" in result.err


def test_waiting_tries_again_until_it_goes(poolkeeper, write, pool, volume, images, tmp_path):
    base = tmp_path / "later.raw"
    store = {"path": str(base), "format": "raw"}
    manifest = write("all.yaml", pool(), volume(format="qcow2", backingStore=store))

    def come_later():
        while not images.exists():
            time.sleep(0.01)
        base.write_bytes(bytes(2**20))

    thread = threading.Thread(target=come_later)
    thread.start()
    result = poolkeeper("apply", manifest, "--wait", "--timeout", "4m")
    thread.join()
    assert result.code == 0, result.err
    assert (images / "disk").exists()


def test_a_volume_on_a_base_in_another_pool_needs_one_command(
    poolkeeper, write, pool, volume, tmp_path
):
    other = pool("a-later", path=tmp_path / "later")
    overlay = volume(
        "overlay",
        poolRef={"name": "a-later"},
        format="qcow2",
        backingStore={"volumeRef": {"name": "disk"}, "format": "raw"},
    )
    manifest = write("all.yaml", other, overlay, pool(), volume())
    assert poolkeeper("plan", manifest).code == 2
    result = poolkeeper("apply", manifest)
    assert result.code == 0, result.err
    assert (tmp_path / "later" / "overlay").exists()


def test_discovered_volumes_are_adopted_within_one_command(poolkeeper, write, pool, images):
    images.mkdir()
    (images / "found.raw").write_bytes(bytes(4096))
    poolkeeper("apply", write("pool.yaml", pool(discovery="Adopt")))
    found = poolkeeper("get", "svol", "found.raw", "-o", "json").json
    ready = next(item for item in found["status"]["conditions"] if item["type"] == "Ready")
    assert ready["status"] == "True"


def test_an_operation_on_a_volume_that_is_not_there_waits(poolkeeper, write):
    operation = {
        "apiVersion": "poolkeeper.dev/v1alpha1",
        "kind": "VolumeOperation",
        "metadata": {"name": "wipe"},
        "spec": {"volumeRef": {"name": "disk"}, "operation": "Wipe"},
    }
    manifest = write("wipe.yaml", operation)
    result = poolkeeper("apply", manifest, "--wait", "--timeout", "1s")
    assert result.code == 3
    assert "is not declared on this node" in result.err


def test_another_nodes_pool_is_stored_and_left_alone(poolkeeper, write, pool, volume, images):
    manifest = write("all.yaml", pool(nodeName="elsewhere"), volume())
    assert poolkeeper("plan", manifest, "--node-name", "here").code == 2
    result = poolkeeper("apply", manifest, "--wait", "--node-name", "here")
    assert result.code == 0
    assert "another node" in result.err
    assert not images.exists()


def test_a_command_waits_for_the_one_before_it(poolkeeper, write, pool, images):
    poolkeeper.state.mkdir()
    fd = os.open(poolkeeper.state / "agent.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, json.dumps({"role": "command", "pid": os.getpid()}).encode())
    manifest = write("pool.yaml", pool())
    late = poolkeeper("apply", manifest, "--timeout", "100ms")
    assert late.code == 3
    assert f"process {os.getpid()}" in late.err
    assert not images.exists()
    threading.Timer(0.3, os.close, (fd,)).start()
    assert poolkeeper("apply", manifest, "--timeout", "4m").code == 0
    assert images.exists()


def test_a_dry_run_is_a_plan(poolkeeper, write, pool, images):
    manifest = write("pool.yaml", pool())
    result = poolkeeper("apply", "--dry-run", "-f", manifest)
    assert result.code == 2
    assert "BuildPool" in result.out
    assert not images.exists()
    assert not poolkeeper.state.exists()


def test_an_interrupted_step_is_told_and_gone_over(poolkeeper, write, pool, volume):
    from controller.resources import Key
    from controller.store import Store

    manifest = write("all.yaml", pool(), volume())
    poolkeeper("apply", manifest)
    store = Store(poolkeeper.state)
    store.begin_step(Key("StorageVolume", "default", "disk"), "x", "GrowVolume", "the disk")
    store.close()
    assert "GrowVolume the disk" in poolkeeper("describe", "svol", "disk").out
    result = poolkeeper("apply", manifest)
    assert result.code == 0
    assert "GrowVolume on the disk was interrupted" in result.err
    assert "begun" not in poolkeeper("describe", "svol", "disk").out


@pytest.mark.parametrize("arguments", [[], ["-f", "/nowhere/at-all.yaml"], ["/dev/null"]])
def test_nothing_to_apply_is_no_success(poolkeeper, arguments):
    assert poolkeeper("apply", *arguments).code in (1, 64)
    assert not poolkeeper.state.exists()


def test_volumes_of_a_pool_that_is_declared_inactive_rest(poolkeeper, write, pool, volume, images):
    manifest = write("all.yaml", pool(state="Inactive"), volume())
    assert poolkeeper("plan", manifest).code == 2
    result = poolkeeper("apply", manifest)
    assert result.code == 0
    assert "its state is Inactive" in result.err
    assert poolkeeper("plan", manifest).code == 0
    assert poolkeeper("apply", manifest, "--wait", "--timeout", "4m").code == 1
    assert poolkeeper("apply", write("all.yaml", pool(), volume()), "--wait").code == 0
    assert (images / "disk").exists()


def test_a_long_step_is_waited_for(poolkeeper, write, pool, volume, images):
    large = volume("large", capacity="300Mi", preallocation="Full")
    result = poolkeeper("apply", write("all.yaml", pool(), large, volume("small")))
    assert result.code == 0, result.err
    assert (images / "large").stat().st_blocks * 512 >= 300 * 2**20
    assert result.err.count("CreateVolume") == 2
    assert poolkeeper("get", "svol", "large", "-o", "json").json["status"].get("progress") is None


def test_what_is_tried_again_in_vain_is_told_once(poolkeeper, write, pool, volume):
    locked = volume("a", encryption={"secretRef": {"name": "none"}})
    result = poolkeeper(
        "apply", "-f", write("all.yaml", pool(), locked), "--wait", "--timeout", "6s"
    )
    assert result.code == 3
    failures = [line for line in result.err.splitlines() if line.startswith("failed")]
    assert len(failures) == 1
    assert "storagevolume/default/a" in failures[0].lower()
