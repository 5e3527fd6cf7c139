"""What runs side by side in a pool does not count on the same free space."""

import os
import threading
import time

import pytest

from backends import errors
from backends.host import reservations
from tests.filling.conftest import clone
from tests.importing.servers import Site, serving
from tests.keeper import Keeper, dir_pool, volume, volume_key

pytestmark = pytest.mark.root

MIB = 2**20
LENGTH = 64 * MIB
FIRST, SECOND = volume_key("first"), volume_key("second")


@pytest.fixture
def keeper(tmp_path, small):  # it ends before its file system does
    made = Keeper(tmp_path / "state")
    yield made
    made.engine.stop()
    assert made.engine.jobs.idle(60)
    made.store.close()


@pytest.fixture
def small(mounted):
    """A pool's directory on a file system of 128 MiB: it has room for one image of 64 MiB."""
    return mounted("ext4") / "images"


@pytest.fixture
def held():
    """A server that sends the first MiB of an image, and the rest once the event is set."""
    go_on = threading.Event()
    data = os.urandom(MIB)

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(LENGTH))
        handler.end_headers()
        handler.wfile.write(data)
        handler.wfile.flush()
        go_on.wait(120)
        for _ in range(LENGTH // MIB - 1):
            handler.wfile.write(data)

    with serving(Site(answers={"/image": answer})) as site:
        yield f"{site.url}/image", go_on
        go_on.set()


def imported(name, url, **spec):
    return volume(name, "small", source={"http": {"url": url, "format": "raw"}}, **spec)


def begun(keeper, small, url):
    """Have an import under way of which most is still to come."""
    keeper.apply(dir_pool("small", small), imported("first", url))
    keeper.reconcile("small")
    eventually(lambda: spoken_for(small) > LENGTH // 2)


def eventually(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def spoken_for(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return reservations.outstanding(fd)
    finally:
        os.close(fd)


def end_of_second(keeper):
    """Let the second one be tried; what its status says of it."""
    keeper.reconcile("small")
    eventually(lambda: keeper.engine.jobs.of(SECOND) is None)
    keeper.reconcile("small")
    return keeper.message(SECOND)


def test_two_imports_are_not_both_begun_where_one_fits(keeper, small, held):
    url, go_on = held
    begun(keeper, small, url)
    keeper.apply(imported("second", url))
    said = end_of_second(keeper)
    assert keeper.assert_retrying(SECOND, "NoSpace") == said
    assert f"for {url}" in said
    assert "63 MiB are for" in said
    assert keeper.engine.jobs.of(FIRST) is not None
    go_on.set()
    assert keeper.engine.jobs.idle(120)
    keeper.reconcile("small")
    keeper.assert_ready(FIRST)
    assert (small / "first").stat().st_size == LENGTH
    assert spoken_for(small) == 0


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_clone_does_not_count_on_what_an_import_still_needs(
    keeper, small, held, tmp_path, format
):
    url, go_on = held
    keeper.apply(dir_pool("large", tmp_path / "large"))
    keeper.apply(volume("base", "large", capacity="64Mi", allocation=0))
    keeper.settle()
    (tmp_path / "large" / "base").write_bytes(os.urandom(LENGTH))
    begun(keeper, small, url)
    keeper.apply(clone("second", "base", "small", format=format))
    said = end_of_second(keeper)
    assert keeper.assert_retrying(SECOND, "NoSpace") == said
    assert "the copy of" in said
    assert f"63 MiB are for {url}" in said
    go_on.set()


def test_a_sparse_clone_needs_no_more_than_its_data(keeper, small, held, tmp_path):
    url, go_on = held
    keeper.apply(dir_pool("large", tmp_path / "large"))
    keeper.apply(volume("base", "large", capacity="10Gi", allocation=0))
    keeper.settle()
    with (tmp_path / "large" / "base").open("r+b") as file:
        file.write(os.urandom(MIB))
    begun(keeper, small, url)
    keeper.apply(clone("second", "base", "small"))
    end_of_second(keeper)
    keeper.assert_ready(SECOND)
    go_on.set()
    assert keeper.engine.jobs.idle(120)
    keeper.reconcile("small")
    keeper.assert_ready(FIRST)


def test_what_is_to_be_set_aside_is_not_planned_either(keeper, small, held):
    url, go_on = held
    begun(keeper, small, url)
    keeper.apply(volume("second", "small", capacity="64Mi", preallocation="Falloc"))
    keeper.reconcile("small")
    said = keeper.message(SECOND)
    assert keeper.reason(SECOND) == "NoSpace"
    assert "of which what is under way needs" in said
    go_on.set()


def test_what_a_file_has_got_is_not_counted_twice(small):
    small.mkdir()
    with (small / "a").open("wb") as one, (small / "b").open("wb") as other:
        with reservations.reserved(one.fileno(), LENGTH, "a"):
            assert reservations.outstanding(other.fileno()) == LENGTH
            os.posix_fallocate(one.fileno(), 0, LENGTH // 2)
            assert reservations.outstanding(other.fileno()) == LENGTH - LENGTH // 2
            with (
                pytest.raises(errors.NoSpace, match="32 MiB are for a"),
                reservations.reserved(other.fileno(), LENGTH, "b"),
            ):
                pass
        with reservations.reserved(other.fileno(), 8 * MIB, "b"):
            pass
        assert reservations.outstanding(other.fileno()) == 0
