"""What an image stands on is followed as qemu would, and never further than headers say."""

import os
import stat
import subprocess

import pytest

from backends.images import chains
from backends.images.chains import BackingLink
from backends.images.creating import ImageRequest, create
from backends.images.probing import ImageHeader
from tests.powers import without_powers

MIB = 2**20


@pytest.fixture
def image(run):
    """Makes an image, and gives its path."""

    def make(path, format="qcow2", *, capacity=MIB, on=None, of=None):
        request = ImageRequest(
            format, capacity, allocation=0, backing_path=on and str(on), backing_format=of
        )
        create(request, str(path), run)
        return path

    return make


@pytest.fixture
def chain(probe):
    def look(path):
        return chains.chain(probe(path), str(path.parent))

    return look


def test_a_chain_is_followed_to_its_end(tmp_path, image, chain):
    raw = image(tmp_path / "raw", "raw", capacity=MIB)
    vdi = image(tmp_path / "vdi", "vdi", capacity=MIB)
    low = image(tmp_path / "low", capacity=2 * MIB, on=raw, of="raw")
    mid = image(tmp_path / "mid", "qcow2", capacity=3 * MIB, on=low, of="qcow2")
    top = image(tmp_path / "top", "qed", capacity=4 * MIB, on=vdi, of="raw")
    assert chain(raw) == ()
    assert chain(low) == (BackingLink(str(raw), "raw", True, "", MIB),)
    assert chain(mid) == (
        BackingLink(str(low), "qcow2", True, "", 2 * MIB),
        BackingLink(str(raw), "raw", True, "", MIB),
    )
    (link,) = chain(top)
    assert (link.present, link.format) == (True, "raw")


def test_a_relative_name_starts_where_the_image_is_that_holds_it(tmp_path, image, chain, qemu_info):
    for directory in ("a", "a/b", "c"):
        (tmp_path / directory).mkdir()
    image(tmp_path / "c/base", "raw", capacity=MIB)
    image(tmp_path / "a/mid", on="../c/base", of="raw")
    top = image(tmp_path / "a/b/top", on="../mid", of="qcow2")
    links = chain(top)
    assert [os.path.realpath(link.path) for link in links] == [
        str(tmp_path / "a/mid"),
        str(tmp_path / "c/base"),
    ]
    assert all(link.present for link in links)
    assert qemu_info(top)["full-backing-filename"] == links[0].path


def test_a_parent_is_not_the_one_behind_a_link(tmp_path, image, chain):
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real/deep")
    image(tmp_path / "real/base", "raw", capacity=MIB)
    image(tmp_path / "base", "raw", capacity=2 * MIB)
    image(tmp_path / "real/deep/top", on="../base", of="raw")
    (link,) = chain(tmp_path / "link/top")
    assert link.capacity == MIB


def test_a_missing_image_is_a_problem_and_no_failure(tmp_path, image, chain):
    low = image(tmp_path / "low", on=tmp_path / "gone", of="qcow2")
    top = image(tmp_path / "top", on=low, of="qcow2")
    first, second = chain(top)
    assert first.present
    assert not first.problem
    assert second.present is False
    assert second.problem == "No such file or directory"


def test_an_image_that_may_not_be_read_is_a_problem(tmp_path, image, chain):
    base = image(tmp_path / "base", "raw")
    base.chmod(0)
    top = image(tmp_path / "top", on=base, of="raw")
    with without_powers():
        (link,) = chain(top)
    assert (link.present, link.problem) == (False, "Permission denied")


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_loop_ends(tmp_path, image, chain, length):
    for number in range(length):
        image(tmp_path / str(number), on=str((number + 1) % length), of="qcow2")
    links = chain(tmp_path / "0")
    assert "loop" in links[-1].problem
    assert not any(link.problem for link in links[:-1])
    assert len(links) == length + 1


def test_a_loop_by_another_name_ends(tmp_path, image, chain):
    image(tmp_path / "a", on="hard", of="qcow2")
    os.link(tmp_path / "a", tmp_path / "hard")
    assert "loop" in chain(tmp_path / "a")[-1].problem


def qcow2(on):
    """The least that reads as a qcow2 overlay."""
    name = on.encode()
    header = b"QFI\xfb" + (3).to_bytes(4, "big") + (128).to_bytes(8, "big")
    header += len(name).to_bytes(4, "big") + (16).to_bytes(4, "big") + MIB.to_bytes(8, "big")
    header = header.ljust(100, b"\0") + (104).to_bytes(4, "big")
    header += (0xE2792ACA).to_bytes(4, "big") + (5).to_bytes(4, "big") + b"qcow2"
    return header.ljust(128, b"\0") + name


def test_an_endless_chain_is_cut(tmp_path, chain):
    for number in range(chains.MAX_CHAIN + 50):
        (tmp_path / str(number)).write_bytes(qcow2(on=str(number + 1)))
    links = chain(tmp_path / "0")
    assert len(links) == chains.MAX_CHAIN + 1
    assert str(chains.MAX_CHAIN) in links[-1].problem
    assert not any(link.problem for link in links[:-1])


def test_what_a_guest_wrote_into_a_raw_disk_is_not_followed(tmp_path, image, chain):
    secret = image(tmp_path / "secret", "raw")
    disk = tmp_path / "disk"
    disk.write_bytes(qcow2(on=str(secret)).ljust(8192, b"\0"))
    (link,) = chain(image(tmp_path / "top", on=disk, of="raw"))
    assert link == BackingLink(str(disk), "raw", True, "", 8192)


def test_a_format_that_is_not_given_is_not_guessed(tmp_path, image):
    low = image(tmp_path / "low", on=tmp_path / "gone", of="raw")
    header = ImageHeader(format="qcow2", capacity=MIB, backing_path=str(low))
    (link,) = chains.chain(header, str(tmp_path))
    assert (link.format, link.capacity) == ("raw", low.stat().st_size)
    assert chains.links(str(low), None)[0] == link


def test_a_header_of_another_format_is_a_problem(tmp_path, image, chain):
    vdi = image(tmp_path / "vdi", "vdi")
    (link,) = chain(image(tmp_path / "top", on=vdi, of="qcow2"))
    assert link.present
    assert "vdi" in link.problem
    assert "qcow2" in link.problem


def test_a_damaged_header_is_a_problem(tmp_path, image, chain):
    (tmp_path / "bad").write_bytes(b"QFI\xfb\0\0\0\3")
    (link,) = chain(image(tmp_path / "top", on=tmp_path / "bad", of="qcow2"))
    assert link.present
    assert "past the end" in link.problem


@pytest.mark.parametrize(
    "name",
    ["nbd://host/export", "rbd:pool/image", 'json:{"driver":"null-co"}', "iscsi://h/t/1", "x:y"],
)
def test_an_address_is_not_followed(tmp_path, name):
    header = ImageHeader(format="qcow2", capacity=MIB, backing_path=name, backing_format="qcow2")
    assert chains.chain(header, str(tmp_path)) == (BackingLink(name, "qcow2", None),)


def test_a_colon_after_a_slash_is_part_of_a_name(tmp_path, image, chain):
    base = image(tmp_path / "a:b,c", "raw")
    top = image(tmp_path / "top", on="./a:b,c", of="raw")
    assert chain(top)[0].present
    header = ImageHeader(format="qcow2", capacity=MIB, backing_path=f"file:{base}")
    assert chains.chain(header, "/")[0].path == str(base)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_what_is_no_file_is_not_opened(tmp_path, make):
    path = tmp_path / "thing"
    make(path)
    for format in ("raw", "qcow2"):
        link = chains.links(str(path), format)[0]
        assert link.present is False
        assert "neither a file nor a block device" in link.problem


def test_a_character_device_is_not_opened(monkeypatch):
    opened, really_open = [], os.open

    def noting(path, flags, *arguments, **words):
        fd = really_open(path, flags, *arguments, **words)
        opened.append((stat.S_ISCHR(os.fstat(fd).st_mode), bool(flags & os.O_PATH)))
        return fd

    monkeypatch.setattr(os, "open", noting)
    assert chains.links("/dev/null", "raw")[0].present is False
    assert opened == [(True, True)], "a device was opened for more than a look"


def test_a_name_can_not_speak_to_a_terminal(tmp_path):
    header = ImageHeader(
        format="qcow2", capacity=MIB, backing_path=os.fsdecode(b"\x1b[2J\xff\n"),
        backing_format="raw",
    )  # fmt: skip
    (link,) = chains.chain(header, str(tmp_path))
    assert link.path.isprintable()
    link.path.encode()


def test_a_file_name_of_any_bytes_is_found(tmp_path, chain):
    (tmp_path / "base").write_bytes(b"")
    os.rename(tmp_path / "base", os.fsencode(tmp_path) + b"/\xff")
    name = os.fsdecode(b"\xff")
    header = ImageHeader(format="qcow2", capacity=MIB, backing_path=name, backing_format="raw")
    (link,) = chains.chain(header, str(tmp_path))
    assert link.present


def test_a_parent_of_a_vmdk_is_a_vmdk(tmp_path, image, chain):
    low = image(tmp_path / "low", "vmdk")
    mid = image(tmp_path / "mid", "vmdk", on=low, of="vmdk")
    top = image(tmp_path / "top", "vmdk", on=mid, of="vmdk")
    assert [(link.path, link.format, link.capacity) for link in chain(top)] == [
        (str(mid), "vmdk", MIB),
        (str(low), "vmdk", MIB),
    ]


@pytest.mark.root
def test_a_block_device_can_be_stood_on(tmp_path, image, chain):
    if os.geteuid() != 0:
        pytest.skip("needs root for a loop device")
    low = image(tmp_path / "low", capacity=7 * MIB)
    argv = ["losetup", "--find", "--show", str(low)]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    try:
        assert chain(image(tmp_path / "top", on=device, of="qcow2")) == (
            BackingLink(device, "qcow2", True, "", 7 * MIB),
        )
        raw = chains.links(device, "raw")[0]
        assert (raw.present, raw.capacity) == (True, low.stat().st_size // 512 * 512)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
