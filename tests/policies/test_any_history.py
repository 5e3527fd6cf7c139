"""Whatever happens, in whatever order: what is not ours stays, and rest is rest.

A state machine does at random what users, other programs and hosts do: declare, change, delete,
tamper, lose the store, reboot. After each pass the invariants hold.
"""

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from backends import errors
from tests.keeper import Keeper, dir_pool, image_info, marked, volume, volume_key

MIB = 2**20
NAMES = st.sampled_from(["a", "b", "c"])
SIZES = st.integers(1, 6).map(lambda count: count * MIB)
POLICIES = st.sampled_from(["Retain", "Delete"])


class History(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.pool = self.root / "pool"
        self.strangers = {}
        self.declared = {}
        self.boots = 1
        self.keeper = Keeper(self.root / "state")

    def teardown(self):
        self.keeper.store.close()
        shutil.rmtree(self.root)

    @initialize()
    def a_pool_is_declared(self):
        self.keeper.apply(dir_pool("p", self.pool))
        self.pass_until_rest()

    def pass_until_rest(self):
        for _ in range(6):
            if not any(outcome.acted for outcome in self.keeper.reconcile()):
                return
        raise AssertionError(f"no rest: {self.keeper.told()}")

    @rule(
        name=NAMES,
        size=SIZES,
        format=st.sampled_from(["raw", "qcow2"]),
        policy=POLICIES,
        shrink=st.booleans(),
        recreation=st.sampled_from(["Never", "IfMissing"]),
    )
    def a_volume_is_declared(self, name, size, format, policy, shrink, recreation):
        former = self.declared.get(name)
        document = volume(
            name,
            "p",
            capacity=str(size),
            allocation="0",
            format=former["format"] if former else format,
            deletion_policy=policy,
            recreation=recreation,
            resize={"allowShrink": shrink},
            permissions={"mode": "0640"},
        )
        try:
            self.keeper.apply(document)
        except errors.Conflict:
            return  # it is still being deleted
        self.declared[name] = document["spec"]

    @rule(name=NAMES)
    def a_volume_is_given_up(self, name):
        if self.declared.pop(name, None) is not None:
            self.keeper.delete(volume_key(name))

    @rule(name=NAMES, content=st.binary(min_size=1, max_size=64))
    def somebody_leaves_a_file(self, name, content):
        path = self.pool / name
        if not path.exists():
            path.write_bytes(content)
            self.strangers[name] = path.stat().st_ino, content

    @rule(name=NAMES)
    def somebody_changes_a_mode(self, name):
        if name not in self.strangers and (self.pool / name).exists():
            (self.pool / name).chmod(0o666)

    @rule(name=NAMES)
    def somebody_removes_a_volume(self, name):
        (self.pool / name).unlink(missing_ok=True)
        self.strangers.pop(name, None)

    @rule()
    def a_killed_agent_left_something(self):
        staging = self.pool / ".poolkeeper"
        staging.mkdir(mode=0o700, exist_ok=True)
        (staging / "uid.1234").write_bytes(b"half")

    @rule()
    def the_host_reboots(self):
        self.boots += 1
        self.keeper.reboot(f"boot-{self.boots}")

    @rule()
    def the_store_is_lost(self):
        self.keeper.store.close()
        shutil.rmtree(self.root / "state")
        self.keeper = Keeper(self.root / "state", boot=f"boot-{self.boots}")
        documents = [volume(name, "p") | {"spec": spec} for name, spec in self.declared.items()]
        self.keeper.apply(dir_pool("p", self.pool), *documents)

    @rule()
    def the_agent_passes(self):
        self.pass_until_rest()
        for name in self.declared:
            self.check_declared(name)
        assert self.keeper.planned() == {}
        assert not (self.pool / ".poolkeeper").exists()
        assert not self.keeper.store.unfinished_steps()

    def check_declared(self, name):
        resource, path = self.keeper.get(volume_key(name)), self.pool / name
        if self.keeper.truth(resource.key, "Ready") != "True":
            waits = self.keeper.reason(resource.key) == "ProbeFailed"  # it may be mended by itself
            stalled = self.keeper.truth(resource.key, "Stalled") == "True"
            assert stalled or waits, self.keeper.told()
            return
        spec, status = self.declared[name], resource.status
        assert marked(path)["uid"] == resource.metadata.uid
        assert status.capacity == int(spec["capacity"])
        assert path.stat().st_mode & 0o777 == 0o640
        if spec["format"] == "raw":
            assert path.stat().st_size == status.capacity
        else:
            assert image_info(path)["virtual-size"] == status.capacity

    @invariant()
    def what_is_not_ours_stays(self):
        for name, (inode, content) in self.strangers.items():
            path = self.pool / name
            assert path.stat().st_ino == inode
            if not marked(path):
                assert path.read_bytes() == content

    @invariant()
    def nothing_half_made_has_a_name(self):
        if self.pool.exists():
            for entry in os.scandir(self.pool):
                if entry.name not in self.strangers and entry.name != ".poolkeeper":
                    assert marked(Path(entry.path)).keys() == {"uid", "resource", "origin"}


History.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestHistory = History.TestCase
