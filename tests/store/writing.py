"""A process that writes into a store until it is ended; run by the tests of the store.

Arguments: state directory, number of this process, turns (0: without end).
Each turn begins a step, applies a spec and a status that say the same number, and ends the step.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from backends.spec import PoolStatus
from controller.resources import Declared, Metadata, kinds
from controller.store import Store


def main() -> None:
    directory, process, turns = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    kind = kinds()["StoragePool"]
    store = Store(directory)
    for turn in itertools.count() if not turns else range(turns):
        spec = kind.spec.model_validate(
            {
                "type": "dir",
                "target": {"path": "/srv/a", "permissions": {"owner": turn, "group": turn}},
            }
        )
        for name in ("shared", f"own-{process}"):
            declared = Declared(kind=kind, metadata=Metadata(name=name), spec=spec)
            resource = store.apply(declared, source=process).resource
            step = store.begin_step(
                resource.key, resource.metadata.uid, "BuildPool", name, {"turn": turn}
            )
            status = PoolStatus(
                observed_generation=resource.metadata.generation, capacity=turn, available=turn
            )
            store.write_status(resource.key, status, uid=resource.metadata.uid)
            store.end_step(step)
        print(turn, flush=True)


if __name__ == "__main__":
    main()
