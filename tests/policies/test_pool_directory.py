"""What a pool's directory is made with: copy-on-write and labels."""

import os

import pytest

from backends.host.attributes import get_nocow
from tests.keeper import dir_pool, pool_key, volume, volume_key

POOL = pool_key("images")


def nocow(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return get_nocow(fd)
    finally:
        os.close(fd)


@pytest.mark.root
@pytest.mark.parametrize(("wish", "off"), [(None, True), (False, True), (True, False)])
def test_copying_on_write_is_off_on_btrfs_unless_asked_for(keeper, mounted, wish, off):
    images = mounted("btrfs") / "images"
    features = None if wish is None else {"copyOnWrite": wish}
    keeper.apply(dir_pool("images", images, features=features))
    keeper.apply(volume("disk", "images", capacity="1Mi"))
    keeper.settle()
    keeper.assert_ready(POOL, volume_key("disk"))
    assert nocow(images) is off
    assert nocow(images / "disk") is off


@pytest.mark.root
@pytest.mark.parametrize("wish", [True, False])
def test_a_wish_for_copying_on_write_is_refused_where_there_is_none(keeper, mounted, wish):
    images = mounted("tmpfs") / "images"
    keeper.apply(dir_pool("images", images, features={"copyOnWrite": wish}))
    keeper.settle()
    assert "btrfs" in keeper.assert_stalled(POOL, "Unsupported")
    assert os.listdir(images.parent) == []


@pytest.mark.root
def test_labels_are_given_and_set_back(keeper, images):
    if os.geteuid() != 0:
        pytest.skip("needs root to write security attributes")
    label, other = "system_u:object_r:virt_image_t:s0", "system_u:object_r:tmp_t:s0"
    permissions = {"label": label}
    keeper.apply(dir_pool("images", images, target={"permissions": permissions}))
    keeper.apply(volume("disk", "images", capacity="1Mi", permissions=permissions))
    keeper.settle()
    keeper.assert_ready(POOL, volume_key("disk"))
    for path in (images, images / "disk"):
        assert os.getxattr(path, "security.selinux").rstrip(b"\0").decode() == label
        os.setxattr(path, "security.selinux", other.encode() + b"\0")
    keeper.settle()
    for path in (images, images / "disk"):
        assert os.getxattr(path, "security.selinux").rstrip(b"\0").decode() == label
