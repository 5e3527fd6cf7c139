"""A state directory and a pool in which work is killed at each of its steps."""

import shutil
import signal
import subprocess

from tests import killing
from tests.keeper import Keeper, dir_pool


class Place:
    """A state directory and a pool that are brought back to one moment before each kill."""

    def __init__(self, root, secrets=None):
        self.now, self.kept = root / "now", root / "kept"
        self.secrets = secrets
        self.state, self.images = self.now / "state", self.now / "images"
        self.now.mkdir()

    def prepare(self, *documents):
        keeper = Keeper(self.state, secrets=self.secrets)
        keeper.apply(dir_pool("images", self.images), *documents)
        keeper.settle(12)
        keeper.store.close()

    def every_kill(self, work, *, killed, finished, commands_only=False):
        """Kill before each effect of the work in turn; how many kills there were.

        :param commands_only: whether only host commands count as effects, where each takes long.
        """
        _copy(self.now, self.kept)
        for number in range(1, 500):
            shutil.rmtree(self.now)
            _copy(self.kept, self.now)
            signalled = killing.ended_by(lambda: self._killed(work, number, commands_only))  # noqa: B023
            assert signalled in (0, signal.SIGKILL)
            killed()
            again = Keeper(self.state, secrets=self.secrets)
            try:
                again.engine.recover()
                work(again)
                again.settle(12)
                finished(again)
                assert again.planned() == {}
            finally:
                again.store.close()
            if not signalled:
                return number - 1
        raise AssertionError("the work never came through")

    def _killed(self, work, number, commands_only):
        keeper = Keeper(self.state, secrets=self.secrets)
        killing.kill_before(number, commands_only=commands_only)
        work(keeper)
        keeper.settle(12)


def _copy(source, target):
    """With marks and holes."""
    subprocess.run(["cp", "-a", "--sparse=always", str(source), str(target)], check=True)
