"""A kill -9 between any two effects of filling, growing with space set aside, and wiping."""

import os
import subprocess

import pytest

from tests.crash.place import Place
from tests.filling.conftest import clone, same_contents, write_contents
from tests.importing.servers import Site, serving
from tests.keeper import make_image, marked, volume, volume_key

COPY = volume_key("copy")


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.mark.parametrize(("source", "target"), [("raw", "raw"), ("qcow2", "raw"), ("raw", "qcow2")])
def test_a_clone_is_there_whole_or_not_at_all(place, source, target):
    images = place.images
    place.prepare(volume("base", "images", capacity="8Mi", allocation="0", format=source))
    write_contents(images / "base", source)

    def work(keeper):
        keeper.apply(
            clone("copy", "base", format=target, capacity="12Mi", permissions={"mode": "0640"})
        )

    def whole():
        copy = images / "copy"
        if copy.exists():
            assert same_contents(images / "base", copy, source, target)
            assert marked(copy)["origin"] == "Created"
            assert copy.stat().st_mode & 0o777 == 0o640

    def finished(keeper):
        keeper.assert_ready(COPY)
        whole()
        assert sorted(os.listdir(images)) == ["base", "copy"]

    assert place.every_kill(work, killed=whole, finished=finished) > 10


@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_an_import_is_there_whole_or_not_at_all(place, tmp_path, target):
    images, image = place.images, tmp_path / "image.qcow2"
    make_image(image, "8M")
    write_contents(image, "qcow2")
    place.prepare()

    def whole():
        if (images / "copy").exists():
            assert same_contents(image, images / "copy", "qcow2", target)

    def finished(keeper):
        keeper.assert_ready(COPY)
        whole()
        assert os.listdir(images) == ["copy"]

    with serving(Site(files={"/image": image.read_bytes()})) as site:

        def work(keeper):
            source = {"http": {"url": f"{site.url}/image", "format": "qcow2"}}
            keeper.apply(volume("copy", "images", format=target, source=source))

        assert place.every_kill(work, killed=whole, finished=finished) > 10


def test_a_wipe_before_deletion_is_gone_through_to_the_end(place, tmp_path):
    images, kept = place.images, tmp_path / "blocks"
    place.prepare(
        volume(
            "copy", "images", capacity="8Mi", format="qcow2", deletion_policy="Delete",
            wipe_on_delete={"algorithm": "zero"},
        )
    )  # fmt: skip

    def work(keeper):
        if (images / "copy").exists():
            kept.unlink(missing_ok=True)
            os.link(images / "copy", kept)
        if keeper.store.get(COPY) is not None:
            keeper.store.request_deletion(COPY)

    def finished(keeper):
        assert keeper.gone(COPY)
        assert os.listdir(images) == []
        assert not any(kept.read_bytes())

    assert place.every_kill(work, killed=lambda: None, finished=finished) > 10


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_growing_with_space_set_aside_is_gone_through_to_the_end(place, format):
    disk = place.images / "copy"
    declared = {"format": format, "allocation": "0"}
    place.prepare(volume("copy", "images", capacity="8Mi", **declared))
    io(disk, format, "write -P 5 1M 64k")

    def work(keeper):
        keeper.apply(
            volume("copy", "images", capacity="24Mi", resize={"allocate": True}, **declared)
        )

    def intact():
        io(disk, format, "read -P 5 1M 64k")

    def finished(keeper):
        keeper.assert_ready(COPY)
        intact()
        io(disk, format, "read -P 0 8M 16M")
        assert os.listdir(place.images) == ["copy"]

    assert place.every_kill(work, killed=intact, finished=finished) > 3


def io(path, format, command):
    done = subprocess.run(
        ["qemu-io", "-f", format, "-c", command, str(path)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "failed" not in done.stdout
