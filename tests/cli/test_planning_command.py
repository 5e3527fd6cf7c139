"""``plan`` tells all that ``apply`` would do, and does nothing."""

import os


def tree(folder):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if "state" not in path.parts
    }


def test_a_first_plan_ends_with_2_and_leaves_no_trace(
    poolkeeper, write, pool, volume, images, tmp_path
):
    manifest = write("all.yaml", pool(), volume("b", format="vmdk"), volume("a"))
    before = tree(tmp_path)
    result = poolkeeper("plan", "-f", manifest)
    assert result.code == 2
    assert tree(tmp_path) == before
    assert not poolkeeper.state.exists()
    lines = result.out.splitlines()
    verbs = [line.split()[1] for line in lines if line.startswith("    +")]
    assert verbs == ["BuildPool", "CreateVolume", "CreateVolume"]
    (command,) = [line for line in lines if "runs" in line]
    assert "qemu-img create" in command
    assert f"{images}/b" in command
    assert "Plan: 3 to create, 1 to change, 0 to destroy" in lines[-1]


def test_the_plan_after_an_apply_is_empty(poolkeeper, write, pool, volume):
    manifest = write("all.yaml", pool(), volume(), volume("q", format="qcow2"))
    poolkeeper("apply", manifest)
    for arguments in (["-f", manifest], []):
        result = poolkeeper("plan", *arguments)
        assert result.code == 0
        assert result.out.startswith("Plan: 0 to create, 0 to change, 0 to destroy; 3 unchanged")


def test_a_changed_field_is_shown_though_the_host_stays_as_it_is(poolkeeper, write, pool):
    poolkeeper("apply", write("pool.yaml", pool()))
    result = poolkeeper("plan", write("pool.yaml", pool(deletionPolicy="Delete")))
    assert result.code == 2
    assert "~ spec.deletionPolicy: Retain -> Delete" in result.out


def test_a_destructive_action_names_what_it_destroys(poolkeeper, write, pool, volume, images):
    poolkeeper("apply", write("all.yaml", pool(), volume(capacity="2Mi")))
    smaller = write("all.yaml", pool(), volume(capacity="1Mi", resize={"allowShrink": True}))
    result = poolkeeper("plan", smaller)
    assert result.code == 2
    assert "    - ShrinkVolume" in result.out
    assert "[destructive]" in result.out
    assert f"destroys {images}/disk past 1Mi" in result.out
    assert (images / "disk").stat().st_size == 2 * 2**20


def test_a_refusal_is_an_error_and_says_why(poolkeeper, write, pool, volume):
    poolkeeper("apply", write("all.yaml", pool(), volume(capacity="2Mi")))
    result = poolkeeper("plan", write("all.yaml", pool(), volume(capacity="1Mi")))
    assert result.code == 1
    assert "! ShrinkNotAllowed:" in result.out
    assert "resize.allowShrink" in result.out


def test_without_files_the_plan_shows_drift(poolkeeper, write, pool, volume, images):
    mode = {"mode": "0600"}
    poolkeeper("apply", write("all.yaml", pool(), volume(permissions=mode)))
    os.chmod(images / "disk", 0o644)
    result = poolkeeper("plan")
    assert result.code == 2
    assert "drift: permissions.mode is 0644, declared 0600" in result.out
    assert "SetVolumePermissions" in result.out
    assert (images / "disk").stat().st_mode & 0o777 == 0o644


def test_a_plan_for_an_empty_store_is_empty(poolkeeper):
    result = poolkeeper("plan")
    assert result.code == 0
    assert not poolkeeper.state.exists()


def test_a_broken_manifest_fails_the_plan_of_the_others(poolkeeper, write, pool, volume, tmp_path):
    write("good.yaml", pool())
    write("broken.yaml", volume(capactiy=1))
    result = poolkeeper("plan", tmp_path / "manifests")
    assert result.code == 1
    assert "broken.yaml:" in result.err
    assert "BuildPool" in result.out
    assert poolkeeper("plan", "--strict", tmp_path / "manifests").out == ""


def test_a_change_that_the_store_would_refuse_is_refused_in_its_words(
    poolkeeper, write, pool, volume
):
    poolkeeper("apply", write("all.yaml", pool(), volume(volumeName="one")))
    manifest = write("all.yaml", volume(volumeName="two"))
    planned, applied = poolkeeper("plan", manifest), poolkeeper("apply", manifest)
    assert planned.code == applied.code == 1
    assert planned.err == applied.err
    assert "volumeName can't be changed" in planned.err


def test_json_holds_the_whole_plan(poolkeeper, write, pool, volume, images):
    manifest = write("all.yaml", pool(), volume(format="vmdk"))
    result = poolkeeper("plan", manifest, "-o", "json")
    assert result.code == 2
    found = {item["kind"]: item for item in result.json["resources"]}
    (action,) = found["StorageVolume"]["actions"]
    assert action["verb"] == "CreateVolume"
    assert action["impact"] == "in place"
    assert action["commands"][0][0] == "qemu-img"
    assert found["StoragePool"]["outcome"] == "created"
    assert [item["verb"] for item in found["StoragePool"]["actions"]] == ["BuildPool", "StartPool"]
    assert result.json["summary"]["create"] == 2
    poolkeeper("apply", manifest)
    again = poolkeeper("plan", manifest, "-o", "json").json
    assert not any(item["changed"] for item in again["resources"])


def test_a_pool_type_that_cannot_be_served_says_so(poolkeeper, write):
    manifest = write(
        "vg.yaml",
        {
            "apiVersion": "poolkeeper.dev/v1alpha1",
            "kind": "StoragePool",
            "metadata": {"name": "sheep"},
            "spec": {"type": "sheepdog", "sheepdog": {"name": "x", "hosts": [{"name": "h"}]}},
        },
    )
    result = poolkeeper("plan", manifest)
    assert result.code == 1
    assert "Unsupported" in result.out
