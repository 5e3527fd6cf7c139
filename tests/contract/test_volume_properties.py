"""Any volume that can be declared: made once, found as it is, and left alone after that."""

import itertools
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from backends.host import mounts
from backends.sizes import KIB, MIB
from tests.contract.candidates.dir import Candidate
from tests.keeper import Keeper, image_info, marked, volume, volume_key
from tests.lab.spare import Spares

FORMATS_OF_QEMU = {"raw": "raw", "iso": "raw", "vhd": "vpc"}
"""What qemu-img calls a format that has another name here."""

SIZES = st.one_of(
    st.integers(1, 6 * MIB), st.integers(1, 96).map(lambda n: n * 64 * KIB), st.just(512)
)
OWNER = {"owner": os.geteuid(), "group": os.getegid()}


@st.composite
def permissions(draw):
    mode = draw(st.integers(0, 0o777)) | 0o600  # an ordinary user has to be able to look at it
    kept = {"mode": f"{mode:04o}", **OWNER}
    return {name: kept[name] for name in draw(st.sets(st.sampled_from(sorted(kept))))}


@st.composite
def qcow2_members(draw):
    members = {}
    compat = draw(st.sampled_from([None, "0.10", "1.1"]))
    if compat:
        members["compat"] = compat
    features = draw(st.fixed_dictionaries({}, optional={"lazyRefcounts": st.booleans()}))
    extended = compat != "0.10" and draw(st.booleans())
    if compat == "0.10":
        features.pop("lazyRefcounts", None)
    if extended:
        features["extendedL2"] = True
    if features:
        members["features"] = features
    smallest = 14 if extended else 9
    if draw(st.booleans()):
        members["cluster_size"] = 1 << draw(st.integers(smallest, 21))
    if draw(st.booleans()):
        members["preallocation"] = draw(st.sampled_from(["Off", "Metadata", "Falloc"]))
    return members


@st.composite
def volumes(draw):
    """Members of a volume's spec that the dir pool can make."""
    kind = draw(st.sampled_from(["raw", "qcow2", "dir", "iso", "vdi", "qed", None]))
    members = {"format": kind}
    if draw(st.booleans()):
        members["permissions"] = draw(permissions())
    if kind == "dir":
        if members.get("permissions", {}).get("mode"):
            members["permissions"]["mode"] = "0750"
        return members
    members["capacity"] = draw(SIZES)
    if draw(st.booleans()):
        members["allocation"] = draw(st.one_of(st.just(0), SIZES))
    if kind == "qcow2":
        members |= draw(qcow2_members())
    return members


def assert_agrees_with_the_host(status, path, spec, facts):
    assert status.path == status.key == str(path)
    assert status.physical == (0 if path.is_dir() else facts.st_size)
    assert status.allocation == (0 if path.is_dir() else facts.st_blocks * 512)
    seen = status.permissions
    assert (seen.mode, seen.owner, seen.group) == (
        facts.st_mode & 0o7777,
        facts.st_uid,
        facts.st_gid,
    )
    wanted = spec.get("permissions", {})
    default = "0700" if path.is_dir() else "0600"
    assert facts.st_mode & 0o7777 == int(wanted.get("mode", default), 8)
    assert status.type == ("dir" if path.is_dir() else "file")


def assert_agrees_with_qemu(status, path, spec):
    kind = spec["format"] or "raw"
    told = image_info(path)
    assert told["format"] == FORMATS_OF_QEMU.get(kind, kind)
    assert status.format == kind
    if kind not in ("raw", "iso"):
        assert status.capacity == told["virtual-size"]
        assert 0 <= status.capacity - spec["capacity"] < 512
    else:
        assert status.capacity == spec["capacity"] == path.stat().st_size
    if kind == "qcow2":
        details = told["format-specific"]["data"]
        assert status.compat == details["compat"] == spec.get("compat", "1.1")
        assert status.cluster_size == told["cluster-size"]
        assert status.cluster_size == spec.get("cluster_size", 64 * KIB)
        asked = spec.get("features", {})
        assert details.get("lazy-refcounts", False) == asked.get("lazyRefcounts", False)
        assert details.get("extended-l2", False) == asked.get("extendedL2", False)
    assert (status.encryption, status.backing_chain) == (None, ())


def assert_allocated_as_declared(path, spec, facts):
    kind, taken = spec["format"] or "raw", facts.st_blocks * 512
    if kind in ("raw", "iso"):
        asked = min(spec.get("allocation", spec["capacity"]), spec["capacity"])
        assert taken >= asked  # set aside in whole blocks
        assert taken <= asked + 64 * KIB
    elif spec.get("preallocation") == "Falloc":
        assert taken >= spec["capacity"]


class Ground:
    """One pool for many examples; each leaves it empty."""

    def __init__(self):
        self.root = Path(tempfile.mkdtemp(prefix="volumes-"))
        self.keeper = Keeper(self.root / "state")
        self.place = Candidate(self.root, Spares(self.root))
        self.numbers = itertools.count()
        self.keeper.apply(self.place.declaration("images"))
        self.keeper.reconcile()

    def close(self):
        self.keeper.store.close()
        shutil.rmtree(self.root)


def test_any_volume_is_made_as_declared_and_then_left_alone(monkeypatch):
    fixed = mounts.Space(capacity=2**40, available=2**39, allocation=2**39)
    monkeypatch.setattr(mounts, "space", lambda fd: fixed)
    ground = Ground()
    keeper = ground.keeper

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(volumes(), min_size=1, max_size=4))
    def every_example(specs):
        names = [f"v{next(ground.numbers)}" for _ in specs]
        keys = [volume_key(name) for name in names]
        declared = [
            volume(name, "images", deletion_policy="Delete", **spec)
            for name, spec in zip(names, specs, strict=True)
        ]
        keeper.apply(*declared)
        keeper.reconcile()
        for name, key, spec in zip(names, keys, specs, strict=True):
            event(str(spec["format"]))
            keeper.assert_ready(key)
            path = ground.place.target() / name
            facts, status = path.stat(), keeper.get(key).status
            assert marked(path)["resource"] == str(key)
            assert_agrees_with_the_host(status, path, spec, facts)
            if spec["format"] != "dir":
                assert_agrees_with_qemu(status, path, spec)
                assert_allocated_as_declared(path, spec, facts)
        assert keeper.planned() == {}
        written = keeper.recorded()
        keeper.apply(*declared)
        keeper.reconcile()
        assert keeper.recorded() == written
        keeper.delete(*keys)
        keeper.reconcile()
        assert os.listdir(ground.place.target()) == []
        assert all(keeper.gone(key) for key in keys)

    try:
        every_example()
    finally:
        ground.close()
