"""Writing empty qcow2 images without a program.

An empty image is its header, a table of reference counts that says which clusters these take, and a
first-level table of zeros. All of that is in qemu's docs/interop/qcow2.txt, which the names here
follow. Everything else (preallocated, encrypted, other formats) is left to qemu-img.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from backends.images.formats import SECTOR
from backends.sizes import KIB, round_up

DEFAULT_CLUSTER = 64 * KIB
"""What qemu takes where nothing is said, in bytes."""

_MAGIC = b"QFI\xfb"
_LENGTH = {2: 72, 3: 112}
"""Bytes of the header by version; that of version 3 with the compression type and padding."""

_REFCOUNT_ORDER = 4
"""Reference counts of 16 bits, as qemu makes them."""

_REFCOUNT_BYTES = 2
_BACKING_FORMAT = 0xE2792ACA
_LAZY_REFCOUNTS, _EXTENDED_L2 = 1, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyImage:
    """A qcow2 image of nothing but tables; sizes in bytes.

    :param version: 2 or 3; ``compat`` 0.10 or 1.1.
    :param backing_path: as it is to stand in the header; not looked at.
    :param backing_format: qemu's name of a driver.
    """

    capacity: int
    version: int = 3
    cluster_size: int = DEFAULT_CLUSTER
    lazy_refcounts: bool = False
    extended_l2: bool = False
    backing_path: str | None = None
    backing_format: str | None = None

    @property
    def fits(self) -> bool:
        """Whether what stands in the header has room in the first cluster, where it has to be."""
        return len(self._header(_Layout.of(self))) <= self.cluster_size

    def write(self, fd: int) -> None:
        """Write the image to an empty file."""
        layout = _Layout.of(self)
        os.ftruncate(fd, layout.clusters * self.cluster_size)
        _write(fd, self._header(layout), 0)
        blocks = range(layout.first_block, layout.first_block + layout.refcount_blocks)
        table = struct.pack(f">{len(blocks)}Q", *(block * self.cluster_size for block in blocks))
        _write(fd, table, self.cluster_size)
        counts = b"\0\1" * layout.clusters
        _write(fd, counts, layout.first_block * self.cluster_size)

    def _header(self, layout: _Layout) -> bytes:
        extensions = self._extensions()
        name = os.fsencode(self.backing_path) if self.backing_path is not None else b""
        name_at = _LENGTH[self.version] + len(extensions) if name else 0
        head = _MAGIC + struct.pack(
            ">IQIIQIIQQIIQ",
            self.version,
            name_at,
            len(name),
            self.cluster_size.bit_length() - 1,
            round_up(self.capacity, SECTOR),
            0,  # no encryption
            layout.l1_entries,
            layout.first_l1 * self.cluster_size if layout.l1_entries else 0,
            self.cluster_size,
            layout.table_clusters,
            0,  # no snapshots
            0,
        )
        if self.version >= 3:
            incompatible = _EXTENDED_L2 if self.extended_l2 else 0
            compatible = _LAZY_REFCOUNTS if self.lazy_refcounts else 0
            head += struct.pack(
                ">QQQIIQ", incompatible, compatible, 0, _REFCOUNT_ORDER, _LENGTH[3], 0
            )
        return head + extensions + name

    def _extensions(self) -> bytes:
        found = b""
        if self.backing_path is not None and self.backing_format is not None:
            word = self.backing_format.encode()
            found = struct.pack(">II", _BACKING_FORMAT, len(word)) + word + bytes(-len(word) % 8)
        return found + bytes(8)  # the end of the extensions


@dataclass(frozen=True, slots=True)
class _Layout:
    """What stands where, in clusters: header, refcount table, refcount blocks, L1 table."""

    table_clusters: int
    refcount_blocks: int
    l1_entries: int
    l1_clusters: int

    @property
    def first_block(self) -> int:
        return 1 + self.table_clusters

    @property
    def first_l1(self) -> int:
        return self.first_block + self.refcount_blocks

    @property
    def clusters(self) -> int:
        return self.first_l1 + self.l1_clusters

    @classmethod
    def of(cls, image: EmptyImage) -> _Layout:
        cluster = image.cluster_size
        l2_entries = cluster // (16 if image.extended_l2 else 8)
        l1_entries = -(-image.capacity // (l2_entries * cluster))
        l1_clusters = -(-l1_entries * 8 // cluster)
        table, blocks = 1, 1
        while True:
            clusters = 1 + table + blocks + l1_clusters
            wanted = -(-clusters * _REFCOUNT_BYTES // cluster)
            wanted_table = -(-wanted * 8 // cluster)
            if wanted <= blocks and wanted_table <= table:
                return cls(table, blocks, l1_entries, l1_clusters)
            table, blocks = max(table, wanted_table), max(blocks, wanted)


def _write(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
