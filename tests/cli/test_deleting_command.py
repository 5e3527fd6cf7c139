"""``delete`` lets resources go, and with them only what their policy says."""


def test_retain_leaves_the_data_and_says_so(poolkeeper, write, pool, volume, images):
    poolkeeper("apply", write("all.yaml", pool(), volume()))
    result = poolkeeper("delete", "svol", "disk")
    assert (result.code, result.out) == (0, "storagevolume/disk deleted\n")
    assert "deletionPolicy is Retain" in result.err
    assert (images / "disk").exists()
    assert poolkeeper("get", "svol", "disk").code == 1


def test_delete_removes_what_was_made(poolkeeper, write, pool, volume, images):
    policy = {"deletionPolicy": "Delete"}
    poolkeeper("apply", write("all.yaml", pool(**policy), volume(**policy)))
    assert poolkeeper("delete", "svol/disk", "spool/images", "--wait").code == 0
    assert not images.exists()
    assert poolkeeper("get", "all").out == ""


def test_files_name_what_goes(poolkeeper, write, pool, volume, images):
    policy = {"deletionPolicy": "Delete"}
    manifest = write("all.yaml", pool(**policy), volume(**policy))
    poolkeeper("apply", manifest)
    result = poolkeeper("delete", "-f", manifest)
    assert result.code == 0, result.err
    assert not images.exists()


def test_a_refused_deletion_fails_and_names_what_stands_in_the_way(
    poolkeeper, write, pool, volume, images
):
    poolkeeper("apply", write("all.yaml", pool(deletionPolicy="Delete")))
    (images / "stranger").write_text("mine")
    result = poolkeeper("delete", "spool", "images")
    assert result.code == 1
    assert "stranger" in result.err
    assert "deletion requested" in result.out
    assert (images / "stranger").read_text() == "mine"
    late = poolkeeper("delete", "spool", "images", "--wait", "--timeout", "100ms")
    assert late.code == 3


def test_what_is_not_there_is_an_error_unless_that_is_fine(poolkeeper):
    assert poolkeeper("delete", "svol", "nobody").code == 1
    assert poolkeeper("delete", "svol", "nobody", "--ignore-not-found").code == 0
    assert not poolkeeper.state.exists()


def test_either_names_or_files_are_given(poolkeeper, write, pool):
    manifest = write("pool.yaml", pool())
    assert poolkeeper("delete").code == 64
    assert poolkeeper("delete", "spool", "images", "-f", manifest).code == 64
    assert poolkeeper("delete", "spool").code == 64
