"""Sources that a pool has no room for: nothing half-made is left, and it goes on once there is."""

import os

import pytest

from tests.filling.conftest import clone
from tests.keeper import dir_pool, volume, volume_key

DISK = volume_key("disk")
MIB = 2**20

pytestmark = pytest.mark.root


@pytest.fixture
def small(mounted):
    """A pool's directory on a file system of 128 MiB."""
    return mounted("ext4") / "images"


def large(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(os.urandom(MIB) * 200)
    return path


def attempts(keeper, *documents):
    keeper.apply(*documents)
    for _ in range(3):
        keeper.reconcile()
        assert keeper.engine.jobs.idle(120)
    keeper.reconcile()


def free(path):
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


@pytest.mark.parametrize("kind", ["clone", "converted clone", "file", "web"])
def test_nothing_is_left_of_what_does_not_fit(keeper, small, tmp_path, site, kind):
    path = large(tmp_path)
    other = tmp_path / "other"
    keeper.apply(dir_pool("images", small), dir_pool("other", other))
    keeper.settle()
    before = free(small)
    if kind.endswith("clone"):
        file = {"file": {"path": str(path), "format": "raw"}}
        keeper.apply(volume("base", "other", source=file))
        keeper.settle(12)
        wanted = clone("disk", "base", format="qcow2" if kind.startswith("conv") else "raw")
    elif kind == "file":
        file = {"file": {"path": str(path), "format": "raw"}}
        wanted = volume("disk", "images", source=file)
    else:
        site.files["/image"] = path.read_bytes()
        http = {"url": f"{site.url}/image", "format": "raw"}
        wanted = volume("disk", "images", source={"http": http})
    attempts(keeper, wanted)
    assert "NoSpace" in keeper.reasons(DISK)
    assert keeper.truth(DISK, "Stalled") is None
    keeper.engine.stop()
    assert keeper.engine.jobs.idle(120)
    assert os.listdir(small) == []
    assert before - free(small) < MIB
