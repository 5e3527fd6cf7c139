"""Images are made as qemu-img understands them, and what can't be made is refused before."""

import os
import pathlib
import subprocess
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import errors, sizes
from backends.host import attributes, commands
from backends.images import allocating, creating
from backends.images.creating import ImageRequest
from backends.images.formats import FORMATS, Maker, max_capacity, same
from backends.spec import FileFormat

MIB = 2**20
QEMU_MADE = [name for name, item in FORMATS.items() if item.maker is Maker.QEMU_IMG]
FEATURES = [
    {},
    {"compat": "0.10"},
    {"compat": "1.1"},
    {"lazy_refcounts": True},
    {"extended_l2": True},
    {"extended_l2": True, "cluster_size": 16384, "lazy_refcounts": True},
    {"cluster_size": 512},
    {"cluster_size": 2 * MIB},
    {"nocow": True},
    {"preallocation": "Off"},
    {"preallocation": "Metadata"},
    {"preallocation": "Falloc"},
    {"preallocation": "Full", "compat": "0.10", "cluster_size": 4096},
]


def no_command(argv):
    raise AssertionError(f"{argv} was run")


def make(request, path, run):
    creating.create(request, str(path), run)
    return path


def test_every_format_of_libvirt_is_known():
    assert list(FORMATS) == list(get_args(FileFormat))
    for item in FORMATS.values():
        assert item.creatable != bool(item.why_not)


@pytest.mark.parametrize("format", QEMU_MADE)
@pytest.mark.parametrize("capacity", [1, 513, 65537, 1000000, 10 * MIB, 3000000001])
def test_an_image_has_the_capacity_asked_for(tmp_path, run, qemu_info, probe, *, format, capacity):
    path = make(ImageRequest(format, capacity), tmp_path / "image", run)
    facts = qemu_info(path, FORMATS[format].driver)
    assert facts["virtual-size"] == sizes.round_up(capacity, 512)
    assert facts["virtual-size"] <= sizes.round_up(capacity, FORMATS[format].granularity)
    header = probe(path)
    assert header.capacity == facts["virtual-size"]
    assert same(format, header.format)
    assert header.cluster_size == facts.get("cluster-size")


@pytest.mark.parametrize("format", QEMU_MADE)
def test_an_empty_image_is_refused_or_can_be_opened(tmp_path, run, qemu_info, format):
    request = ImageRequest(format, 0)
    if FORMATS[format].takes_empty:
        path = make(request, tmp_path / "image", run)
        assert qemu_info(path, FORMATS[format].driver)["virtual-size"] == 0
    else:
        with pytest.raises(errors.Unsupported):
            creating.check(request)


@pytest.mark.parametrize(
    "format", [name for name in QEMU_MADE if name not in ("vdi", "vmdk", "qcow")]
)
def test_the_largest_image_can_be_opened_and_a_larger_one_can_not_be_made(
    tmp_path, run, qemu_info, format
):
    limit = max_capacity(FORMATS[format], None, extended_l2=False)
    path = make(ImageRequest(format, limit), tmp_path / "largest", run)
    assert qemu_info(path, FORMATS[format].driver)["virtual-size"] == limit
    more = ImageRequest(format, limit + 2**30)
    with pytest.raises(errors.Unsupported):
        creating.check(more)
    (argv,) = creating.tool_commands(more, str(tmp_path / "larger"))
    assert subprocess.run(argv, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("format", ["vdi", "vmdk"])
def test_a_huge_image_can_be_opened(tmp_path, run, qemu_info, format):
    path = make(ImageRequest(format, 2**48), tmp_path / "huge", run)
    assert qemu_info(path)["virtual-size"] == 2**48


@pytest.mark.parametrize("options", FEATURES, ids=str)
def test_qcow2_options_are_in_the_image(tmp_path, run, qemu_info, probe, options):
    request = ImageRequest("qcow2", 10 * MIB, **options)
    path = make(request, tmp_path / "image.qcow2", run)
    subprocess.run(["qemu-img", "check", "-q", str(path)], check=True)
    facts = qemu_info(path)
    data, header = facts["format-specific"]["data"], probe(path)
    assert data["compat"] == header.compat == (request.compat or "1.1")
    assert facts["cluster-size"] == header.cluster_size == (request.cluster_size or 65536)
    assert data.get("lazy-refcounts", False) is header.lazy_refcounts is request.lazy_refcounts
    assert data.get("extended-l2", False) is header.extended_l2 is request.extended_l2
    assert data.get("corrupt", False) is header.corrupt is False
    allocated = os.stat(path).st_blocks * 512
    assert (allocated >= 10 * MIB) == (request.preallocation in ("Falloc", "Full"))
    assert creating.space_needed(request) <= allocated


@pytest.mark.parametrize(
    ("format", "backing_format"),
    [("qcow", "raw"), ("qcow2", "raw"), ("qcow2", "iso"), ("qcow2", "vhd"), ("qcow2", "qcow2"),
     ("qed", "raw"), ("vmdk", "vmdk")],
)  # fmt: skip
def test_an_overlay_names_its_backing_image(
    tmp_path, run, qemu_info, probe, *, format, backing_format
):
    base = make(ImageRequest(backing_format, 4 * MIB), tmp_path / "ba:se, a=b", run)
    request = ImageRequest(format, 8 * MIB, backing_path=str(base), backing_format=backing_format)
    path = make(request, tmp_path / "top", run)
    facts, header = qemu_info(path), probe(path)
    assert facts["backing-filename"] == header.backing_path == str(base)
    assert facts["virtual-size"] == header.capacity == 8 * MIB
    if format == "qcow2":
        driver = FORMATS[backing_format].driver
        assert facts["backing-filename-format"] == header.backing_format == driver


def test_the_backing_image_is_not_opened(tmp_path, run, probe):
    missing = str(tmp_path / "missing")
    for format in ("qcow", "qcow2", "qed"):
        request = ImageRequest(format, MIB, backing_path=missing, backing_format="raw")
        assert probe(make(request, tmp_path / format, run)).backing_path == missing


@pytest.mark.parametrize("format", [*QEMU_MADE, "raw"])
@pytest.mark.parametrize("name", ["a:b,c.qcow2", "nbd:x", "a,,b=c", "json:{}", "100%", "ä b"])
def test_a_name_means_only_a_name(tmp_path, run, probe, format, name):
    path = make(ImageRequest(format, MIB), tmp_path / name, run)
    assert same(format, probe(path).format)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("format", [*QEMU_MADE, "raw"])
def test_what_stands_there_is_left_alone(tmp_path, run, format):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    link = tmp_path / "link"
    link.symlink_to(victim)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    for path in (victim, link, dangling):
        with pytest.raises(errors.AlreadyExists):
            make(ImageRequest(format, MIB), path, run)
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_relative_path_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="absolute"):
        creating.tool_commands(ImageRequest("qcow2", MIB), "nbd:x")


REFUSED = {
    "clusters with which qemu overflows": ImageRequest("qed", MIB, cluster_size=4 * MIB),
    "metadata of raw": ImageRequest("raw", MIB, preallocation="Metadata"),
    "metadata of vdi": ImageRequest("vdi", MIB, preallocation="Metadata"),
    "falloc of vmdk, which qemu-img would ignore": ImageRequest("vmdk", MIB, preallocation="Full"),
    "metadata with backing": ImageRequest(
        "qcow2", MIB, preallocation="Metadata", backing_path="/b", backing_format="raw"
    ),
    "falloc with backing": ImageRequest(
        "qcow2", MIB, preallocation="Falloc", backing_path="/b", backing_format="raw"
    ),
    "unknown preallocation": ImageRequest("qcow2", MIB, preallocation="falloc"),
    "compat of raw": ImageRequest("raw", MIB, compat="1.1"),
    "compat of qed": ImageRequest("qed", MIB, compat="1.1"),
    "compat of the future": ImageRequest("qcow2", MIB, compat="1.2"),
    "lazy refcounts of vmdk": ImageRequest("vmdk", MIB, lazy_refcounts=True),
    "extended l2 of qcow": ImageRequest("qcow", MIB, extended_l2=True),
    "lazy refcounts of 0.10": ImageRequest("qcow2", MIB, compat="0.10", lazy_refcounts=True),
    "extended l2 of 0.10": ImageRequest("qcow2", MIB, compat="0.10", extended_l2=True),
    "backing of raw": ImageRequest("raw", MIB, backing_path="/b", backing_format="raw"),
    "backing of vdi": ImageRequest("vdi", MIB, backing_path="/b", backing_format="raw"),
    "vmdk over raw": ImageRequest("vmdk", MIB, backing_path="/b", backing_format="raw"),
    "backing without format": ImageRequest("qcow2", MIB, backing_path="/b"),
    "backing that is a directory": ImageRequest(
        "qcow2", MIB, backing_path="/b", backing_format="dir"
    ),
    "backing that is an address": ImageRequest(
        "qcow2", MIB, backing_path="nbd://x/y", backing_format="raw"
    ),
    "relative backing of vmdk": ImageRequest("vmdk", MIB, backing_path="b", backing_format="vmdk"),
    "endless backing": ImageRequest(
        "qcow2", MIB, backing_path="/" + "b" * 1023, backing_format="raw"
    ),
    "odd clusters": ImageRequest("qcow2", MIB, cluster_size=65535),
    "small clusters": ImageRequest("qcow2", MIB, cluster_size=256),
    "no clusters": ImageRequest("qcow2", MIB, cluster_size=0),
    "large clusters": ImageRequest("qcow2", MIB, cluster_size=4 * MIB),
    "small extended clusters": ImageRequest("qcow2", MIB, cluster_size=8192, extended_l2=True),
    "clusters of raw": ImageRequest("raw", MIB, cluster_size=65536),
    "large vpc": ImageRequest("vpc", 2**41),
    "negative": ImageRequest("raw", -1),
    "unheard of": ImageRequest("vhdx", MIB),
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED)
def test_what_contradicts_itself_is_refused_before_anything_is_done(tmp_path, request_):
    with pytest.raises((errors.InvalidSpec, errors.Unsupported)) as caught:
        creating.check(request_)
    assert caught.value.terminal
    with pytest.raises((errors.InvalidSpec, errors.Unsupported)):
        creating.create(request_, str(tmp_path / "image"), no_command)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("format", [name for name, item in FORMATS.items() if not item.creatable])
def test_a_format_that_no_one_can_make_is_refused_by_name(tmp_path, run, format):
    with pytest.raises(errors.Unsupported, match=repr(format)):
        creating.check(ImageRequest(format, MIB))
    done = subprocess.run(
        ["qemu-img", "create", "-f", format, str(tmp_path / "x"), "1M"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0, "qemu-img can make it: the table is wrong"


requests = st.builds(
    ImageRequest,
    format=st.sampled_from(QEMU_MADE),
    capacity=st.integers(0, 2**24),
    preallocation=st.none() | st.sampled_from(list(creating.PREALLOCATIONS)),
    nocow=st.booleans(),
    compat=st.none() | st.sampled_from(["0.10", "1.1", "2.0"]),
    cluster_size=st.none() | st.sampled_from([256, 512, 4096, 16384, 65536, 2**21, 2**22, 3000]),
    lazy_refcounts=st.booleans(),
    extended_l2=st.booleans(),
    backing_path=st.none() | st.just("/nowhere/base"),
    backing_format=st.sampled_from(["raw", "qcow2", "vpc"]),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(request=requests)
def test_what_passes_the_check_can_be_made(tmp_path, run, qemu_info, probe, request):
    path = tmp_path / "image"
    path.unlink(missing_ok=True)
    try:
        creating.check(request)
    except (errors.InvalidSpec, errors.Unsupported):
        return
    if request.capacity == 0 and not FORMATS[request.format].takes_empty:
        with pytest.raises(errors.Unsupported):
            make(request, path, run)
        return
    make(request, path, run)
    facts = qemu_info(path, FORMATS[request.format].driver)
    assert facts["virtual-size"] == probe(path).capacity == sizes.round_up(request.capacity, 512)


@pytest.mark.parametrize(
    ("options", "allocated"),
    [
        ({}, 10 * MIB),
        ({"allocation": 0}, 0),
        ({"allocation": 4 * MIB}, 4 * MIB),
        ({"allocation": 100 * MIB}, 10 * MIB),
        ({"preallocation": "Off"}, 0),
        ({"preallocation": "Falloc"}, 10 * MIB),
        ({"preallocation": "Full"}, 10 * MIB),
        ({"preallocation": "Falloc", "allocation": 0}, 10 * MIB),
    ],
    ids=str,
)
@pytest.mark.parametrize("format", ["raw", "iso"])
def test_a_raw_image_takes_the_space_asked_for(tmp_path, format, options, allocated):
    request = ImageRequest(format, 10 * MIB, **options)
    assert creating.commands(request, str(tmp_path / "raw")) == ()
    path = make(request, tmp_path / "raw", no_command)
    facts = os.stat(path)
    assert facts.st_size == 10 * MIB
    assert allocated <= facts.st_blocks * 512 < allocated + 64 * 1024
    assert creating.space_needed(request) == allocated
    assert not any(path.read_bytes())


def test_a_raw_image_of_any_size_is_exact(tmp_path):
    for size in (0, 1, 511, 12345):
        path = make(ImageRequest("raw", size), tmp_path / str(size), no_command)
        assert path.stat().st_size == size


def test_too_large_a_raw_image_has_no_space(tmp_path):
    with pytest.raises(errors.NoSpace):
        make(ImageRequest("raw", 2**62, allocation=0), tmp_path / "raw", no_command)


@pytest.mark.root
def test_zeros_are_written_where_space_can_not_be_set_aside(mounted):
    path = mounted("ramfs") / "raw"
    done = []
    creating.create(ImageRequest("raw", 9 * MIB), str(path), no_command, checkpoint=done.append)
    assert path.read_bytes() == bytes(9 * MIB)
    assert done == sorted(done)
    assert done[-1] == 9 * MIB


def test_writing_zeros_can_be_stopped(tmp_path):
    def stop(done):
        raise errors.Cancelled("stopped")

    request = ImageRequest("raw", 64 * MIB, preallocation="Full")
    with pytest.raises(errors.Cancelled):
        creating.create(request, str(tmp_path / "raw"), no_command, checkpoint=stop)
    assert (tmp_path / "raw").stat().st_blocks * 512 < 64 * MIB


def test_data_before_the_range_is_kept(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    fd = os.open(path, os.O_RDWR)
    allocating.allocate(fd, 5000, 9000, lambda done: None)
    os.close(fd)
    assert path.read_bytes() == b"x" * 5000 + bytes(4000)


@pytest.mark.root
@pytest.mark.parametrize("format", ["raw", "qcow2", "vdi"])
@pytest.mark.parametrize("nocow", [True, False])
def test_copy_on_write_is_turned_off_on_btrfs(mounted, run, format, nocow):
    request = ImageRequest(format, MIB, nocow=nocow)
    path = make(request, mounted("btrfs") / "image", run)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert attributes.get_nocow(fd) is nocow
    finally:
        os.close(fd)


@pytest.mark.root
def test_nocow_is_a_wish_where_nothing_is_copied(mounted):
    path = make(ImageRequest("raw", MIB, nocow=True), mounted("ramfs") / "raw", no_command)
    assert path.stat().st_size == MIB


def resize(format, path, capacity, run, *, shrink=False, allocate=False):
    creating.resize(format, str(path), capacity, shrink=shrink, allocate=allocate, run=run)


@pytest.mark.parametrize("format", [*QEMU_MADE, "raw", "iso"])
@pytest.mark.parametrize("capacity", [20 * MIB + 1, 5 * MIB + 1])
def test_a_format_is_resized_or_refused_as_the_table_says(tmp_path, run, probe, format, capacity):
    path = make(ImageRequest(format, 10 * MIB), tmp_path / "a:b", run)
    shrink, item = capacity < 10 * MIB, FORMATS[format]
    if item.shrinks if shrink else item.grows:
        resize(format, path, capacity, run, shrink=shrink)
        exact = item.maker is Maker.SELF
        assert probe(path).capacity == (capacity if exact else sizes.round_up(capacity, 512))
        return
    with pytest.raises(errors.Unsupported):
        resize(format, path, capacity, no_command, shrink=shrink)
    (argv,) = creating.resize_commands(format, str(path), capacity, shrink=shrink)
    done = subprocess.run(argv, capture_output=True, check=False)
    assert done.returncode != 0, "qemu-img can resize it: the table is wrong"


def test_nothing_shrinks_by_accident(tmp_path, run, probe):
    raw = make(ImageRequest("raw", MIB), tmp_path / "raw", run)
    with pytest.raises(errors.ShrinkNotAllowed):
        resize("raw", raw, 512, run)
    qcow2 = make(ImageRequest("qcow2", MIB), tmp_path / "qcow2", run)
    with pytest.raises(AssertionError, match="shrink"):
        resize("qcow2", qcow2, 512, run)
    assert probe(raw).capacity == probe(qcow2).capacity == MIB


@pytest.mark.parametrize("allocate", [True, False])
def test_a_raw_image_grows_with_space_or_without(tmp_path, allocate):
    path = make(ImageRequest("raw", MIB), tmp_path / "raw", no_command)
    path.write_bytes(b"x" * MIB)
    resize("raw", path, 5 * MIB, no_command, allocate=allocate)
    assert path.read_bytes() == b"x" * MIB + bytes(4 * MIB)
    assert (path.stat().st_blocks * 512 >= 5 * MIB) == allocate


def test_a_raw_image_is_not_resized_through_a_link(tmp_path):
    victim = make(ImageRequest("raw", MIB), tmp_path / "victim", no_command)
    link = tmp_path / "link"
    link.symlink_to(victim)
    with pytest.raises(errors.Inaccessible):
        resize("raw", link, 2 * MIB, no_command)
    assert victim.stat().st_size == MIB


def test_space_is_not_added_to_other_formats(tmp_path):
    with pytest.raises(errors.Unsupported, match="allocated"):
        resize("qed", tmp_path / "x", MIB, no_command, allocate=True)


def test_the_options_stand_in_the_order_of_libvirt():
    request = ImageRequest(
        "qcow2", MIB, preallocation="Falloc", nocow=True, cluster_size=65536,
        lazy_refcounts=True, extended_l2=True, backing_path="/b", backing_format="iso",
    )  # fmt: skip
    assert creating.tool_commands(request, "/x") == (
        ("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/b", "-o",
         "backing_fmt=raw,preallocation=falloc,nocow=on,compat=1.1,cluster_size=65536,"
         "lazy_refcounts=on,extended_l2=on", "/x", str(MIB)),
    )  # fmt: skip


def test_a_renamed_image_is_as_good(tmp_path, run, qemu_info):
    for format in QEMU_MADE:
        path = make(ImageRequest(format, MIB), tmp_path / "staged", run)
        final = pathlib.Path(os.path.join(tmp_path, f"final.{format}"))
        path.rename(final)
        assert qemu_info(final, FORMATS[format].driver)["virtual-size"] == MIB


def test_an_overlay_may_get_its_capacity_late():
    request = ImageRequest("qcow", 0, backing_path="/b", backing_format="raw")
    creating.check(request)
    with pytest.raises(errors.Unsupported):
        creating.create(request, "/nowhere/image", no_command)
    creating.check(replace(request, capacity=MIB))


@pytest.mark.root
def test_a_full_file_system_has_no_space(mounted, run):
    def running(argv):
        commands.run(argv)

    directory = mounted("ext4")
    for format in ("raw", "qcow2"):
        request = ImageRequest(format, 2**30, preallocation="Falloc")
        with pytest.raises(errors.NoSpace):
            make(request, directory / format, running)
