"""What becomes of storage that was there before it was declared."""

import os

import pytest

from backends.sizes import MIB
from tests.keeper import (
    dir_pool,
    image_info,
    make_image,
    marked,
    pool_key,
    tree,
    volume,
    volume_key,
)

POOL = pool_key("images")
DISK = volume_key("disk")


@pytest.fixture
def there(images):
    """A directory with a raw and a qcow2 image that a stranger made."""
    images.mkdir(mode=0o755)
    (images / "disk").write_bytes(b"x" * MIB)
    make_image(images / "disk.qcow2", "8M")
    return images


@pytest.mark.parametrize("adoption", ["IfMatches", None])
def test_a_directory_that_is_there_is_taken_over(keeper, there, adoption):
    keeper.apply(dir_pool("images", there, adoption=adoption))
    keeper.settle()
    keeper.assert_ready(POOL)
    assert marked(there)["origin"] == "Adopted"
    assert keeper.reasons(POOL) == ["Defined", "Adopted", "Started"]
    assert there.stat().st_mode & 0o777 == 0o755


def test_a_directory_that_is_there_is_refused_where_the_policy_says_never(keeper, there):
    before = tree(there)
    keeper.apply(dir_pool("images", there, adoption="Never"))
    keeper.settle()
    assert "IfMatches" in keeper.assert_stalled(POOL, "AlreadyExists")
    assert tree(there) == before
    assert keeper.get(POOL).status.built is False


def test_an_observed_pool_is_reported_and_never_changed(keeper, there):
    before = tree(there)
    keeper.apply(
        dir_pool("images", there, adoption="Observe", target={"permissions": {"mode": "0700"}}),
        volume("disk", "images", adoption="Observe"),
    )
    keeper.settle()
    keeper.assert_ready(POOL, DISK)
    status = keeper.get(POOL).status
    assert (status.state, status.built) == ("Running", None)
    assert (status.volumes.total, status.volumes.managed) == (2, 1)
    assert tree(there) == before
    keeper.delete(POOL, DISK)
    assert keeper.gone(POOL)
    assert tree(there) == before


def test_an_observed_pool_that_is_not_there_is_not_made(keeper, images):
    keeper.apply(dir_pool("images", images, adoption="Observe"))
    keeper.settle()
    keeper.assert_retrying(POOL, "NotFound")
    assert not images.exists()
    images.mkdir()
    keeper.settle()
    keeper.assert_ready(POOL)
    assert marked(images) == {}


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "disk", "capacity": MIB},
        {"name": "disk", "capacity": MIB, "format": "raw"},
        {"name": "disk.qcow2", "capacity": "8Mi", "format": "qcow2"},
    ],
)
def test_a_file_that_matches_is_taken_over_as_it_is(keeper, there, spec):
    path = there / spec["name"]
    content, facts = path.read_bytes(), path.stat()
    keeper.apply(
        dir_pool("images", there),
        volume(spec.pop("name"), "images", permissions={"mode": "0640"}, **spec),
    )
    keeper.settle()
    key = volume_key(path.name)
    keeper.assert_ready(key)
    assert keeper.get(key).status.origin == marked(path)["origin"] == "Adopted"
    assert path.read_bytes() == content
    assert path.stat().st_ino == facts.st_ino
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"name": "disk", "capacity": 2 * MIB}, "capacity"),
        ({"name": "disk", "capacity": MIB, "format": "qcow2"}, "format"),
        ({"name": "disk.qcow2", "capacity": "8Mi"}, "capacity"),  # raw, so the file's own size
        (
            {
                "name": "disk.qcow2", "capacity": "8Mi", "format": "qcow2",
                "backingStore": {"path": "base", "format": "raw"},
            },
            "backingStore",
        ),
    ],
)  # fmt: skip
def test_a_file_that_differs_is_refused_and_left_as_it_is(keeper, there, spec, told):
    key = volume_key(spec["name"])
    before = tree(there / spec["name"])
    keeper.apply(dir_pool("images", there), volume(spec.pop("name"), "images", **spec))
    keeper.settle()
    assert told in keeper.assert_stalled(key, "AdoptionMismatch")
    assert tree(there / key.name) == before


def test_a_file_is_refused_where_the_policy_says_never(keeper, there):
    before = tree(there / "disk")
    keeper.apply(
        dir_pool("images", there), volume("disk", "images", capacity=MIB, adoption="Never")
    )
    keeper.settle()
    keeper.assert_stalled(DISK, "AlreadyExists")
    assert tree(there / "disk") == before


def test_an_observed_file_shows_how_it_differs_and_is_never_changed(keeper, there):
    before = tree(there / "disk")
    keeper.apply(
        dir_pool("images", there),
        volume(
            "disk", "images", capacity=2 * MIB, adoption="Observe", permissions={"mode": "0640"}
        ),
    )
    keeper.settle()
    assert keeper.truth(DISK, "Ready") == "True"
    assert keeper.truth(DISK, "InSync") == "False"
    assert [
        (item.field, item.desired, item.observed) for item in keeper.get(DISK).status.drift
    ] == [("capacity", "2Mi", "1Mi")]
    assert tree(there / "disk") == before


def test_an_observed_file_that_is_not_there_is_not_made(keeper, there):
    keeper.apply(dir_pool("images", there), volume("absent", "images", adoption="Observe"))
    keeper.settle()
    keeper.assert_retrying(volume_key("absent"), "NotFound")
    assert sorted(os.listdir(there)) == ["disk", "disk.qcow2"]


def test_what_was_adopted_is_never_deleted(keeper, there):
    keeper.apply(
        dir_pool("images", there, deletion_policy="Delete"),
        volume("disk", "images", capacity=MIB, deletion_policy="Delete"),
    )
    keeper.settle()
    keeper.assert_ready(POOL, DISK)
    keeper.delete(DISK, POOL)
    keeper.settle()
    assert keeper.gone(POOL)
    assert keeper.gone(DISK)
    assert (there / "disk").read_bytes() == b"x" * MIB


def test_what_is_declared_again_under_its_name_keeps_its_origin(keeper, images):
    disk = volume("disk", "images", capacity="1Mi", adoption="Never")
    declared = [dir_pool("images", images, adoption="Never"), disk]
    keeper.apply(*declared)
    keeper.settle()
    keeper.delete(POOL, DISK)
    keeper.settle()
    keeper.apply(*declared)
    keeper.settle()
    keeper.assert_ready(POOL, DISK)
    assert keeper.get(DISK).status.origin == "Created"
    assert marked(images / "disk")["uid"] == keeper.get(DISK).metadata.uid


def test_a_directory_that_was_taken_over_while_the_pool_was_suspended_is_not(keeper, there):
    keeper.apply(dir_pool("images", there, suspend=True))
    keeper.settle()
    assert marked(there) == {}
    assert not keeper.get(POOL).status.built
    keeper.apply(dir_pool("images", there))
    keeper.settle()
    keeper.assert_ready(POOL)


def test_a_guests_header_in_a_raw_volume_is_not_believed(keeper, images, tmp_path):
    keeper.apply(dir_pool("images", images), volume("disk", "images", capacity=MIB))
    keeper.settle()
    make_image(tmp_path / "image", "1G", options=["-u", "-b", "/etc/passwd", "-F", "raw"])
    with open(images / "disk", "r+b") as disk:  # as a guest may write into its disk
        disk.write((tmp_path / "image").read_bytes())
    keeper.settle()
    keeper.assert_ready(DISK)
    status = keeper.get(DISK).status
    assert (status.format, status.capacity, status.backing_chain) == ("raw", MIB, ())
    keeper.apply(volume("disk", "images", capacity=2 * MIB))
    keeper.settle()
    keeper.assert_ready(DISK)
    assert (images / "disk").stat().st_size == 2 * MIB
    assert image_info(images / "disk")["backing-filename"] == "/etc/passwd"  # still as written
    assert "passwd" not in str(keeper.get(POOL).status.dump())


def test_an_image_is_not_taken_over_as_a_raw_volume(keeper, images):
    images.mkdir()
    make_image(images / "disk", "1G")
    size = (images / "disk").stat().st_size
    keeper.apply(dir_pool("images", images), volume("disk", "images", capacity=size))
    keeper.settle()
    assert "format is qcow2, declared raw" in keeper.assert_stalled(DISK, "AdoptionMismatch")
    assert not marked(images / "disk")


def test_an_image_that_was_retained_does_not_come_back_as_a_raw_volume(keeper, images):
    keeper.apply(dir_pool("images", images))
    keeper.apply(volume("disk", "images", capacity="1Mi", format="qcow2"))
    keeper.settle()
    keeper.delete(DISK)
    before = (images / "disk").read_bytes()
    keeper.apply(volume("disk", "images", capacity="1Mi", resize={"allowShrink": True}))
    keeper.settle()
    keeper.assert_stalled(DISK, "AdoptionMismatch")
    assert (images / "disk").read_bytes() == before
