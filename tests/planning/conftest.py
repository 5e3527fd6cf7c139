"""Pools and volumes as facts alone: what a plan is made from."""

import pytest

from backends.base import BackendContext, Pool, PoolFacts, Presence, Volume, VolumeFacts
from backends.dir import DirBackend
from backends.host.files import Permissions as PermissionFacts
from backends.host.marks import Mark, MarkStore
from backends.registry import pool_spec, pool_type
from backends.spec import Permissions, VolumeSpec
from controller.planning import PoolHistory

BOOT = "11111111-1111-1111-1111-111111111111"
POOL_UID = "p-1"
VOLUME_UID = "v-1"


class Scene:
    """Makes declarations and facts with sensible defaults."""

    def __init__(self, directory):
        self.backend = DirBackend(BackendContext(marks=MarkStore(directory)))

    def pool(self, **spec):
        document = {"type": "dir", "target": {"path": "/srv/images"}, **spec}
        return Pool(
            uid=POOL_UID,
            resource="StoragePool/images",
            name="images",
            spec=pool_spec().model_validate(document),
            type=pool_type("dir"),
        )

    def volume(self, **spec):
        made = VolumeSpec.model_validate({"poolRef": {"name": "images"}, "capacity": "1Gi", **spec})
        return Volume(
            uid=VOLUME_UID,
            resource="StorageVolume/default/disk",
            name="disk",
            spec=made,
            format=made.format or "raw",
            capacity=made.capacity,
            permissions=made.permissions or Permissions(),
            backing_path=made.backing_store.path if made.backing_store else None,
            backing_format=made.backing_store.format if made.backing_store else None,
        )

    def facts(self, *volumes, mark="own", **given):
        return PoolFacts(
            **{
                "presence": Presence.PRESENT,
                "mark": self.mark(POOL_UID, "StoragePool/images", mark),
                "capacity": 2**40,
                "available": 2**39,
                "permissions": PermissionFacts(0o711, 0, 0, None),
                "volumes": {item.name: item for item in volumes},
                **given,
            }
        )

    def disk(self, mark="own", **given):
        return VolumeFacts(
            **{
                "name": "disk",
                "path": "/srv/images/disk",
                "key": "/srv/images/disk",
                "type": "file",
                "format": "raw",
                "capacity": 2**30,
                "allocation": 0,
                "permissions": PermissionFacts(0o600, 0, 0, None),
                "mark": self.mark(VOLUME_UID, "StorageVolume/default/disk", mark),
                **given,
            }
        )

    def mark(self, uid, resource, whose):
        return {
            None: None,
            "own": Mark(uid, resource, "Created"),
            "adopted": Mark(uid, resource, "Adopted"),
            "former": Mark("before", resource, "Created"),
            "other": Mark("x", resource + "-other", "Created"),
        }[whose]

    def history(self, **given):
        return PoolHistory(
            **{
                "generation": 1,
                "observed_generation": 1,
                "built": True,
                "built_generation": 1,
                "started_boot": BOOT,
                "running": True,
                "boot": BOOT,
                **given,
            }
        )

    def fresh(self, **given):
        return self.history(
            **{
                "observed_generation": -1,
                "built": False,
                "built_generation": None,
                "started_boot": "",
                "running": False,
                **given,
            }
        )


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)
