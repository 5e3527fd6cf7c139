"""Volumes opened by hand, as a backend opens them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator

from backends import blockvolumes
from backends.base import Link, OpenVolume
from backends.images import chains, creating, probing
from backends.images.creating import ImageRequest
from tests.images.samples import qemu_img


@contextlib.contextmanager
def opened(
    path: pathlib.Path | str, format: str = "raw", *, encrypted: bool = False
) -> Iterator[OpenVolume]:
    """A file or device; its header is believed, backing images included."""
    if pathlib.Path(path).is_block_device():
        with blockvolumes.opened(str(path), write=True) as device:
            yield device
        return
    fd = os.open(path, os.O_RDWR)
    try:
        size = os.fstat(fd).st_size
        header = probing.probe(fd) if format not in ("raw", "iso") or encrypted else None
        chain: tuple[Link, ...] = ()
        if header is not None and header.backing_path is not None:
            chain = tuple(
                Link(path=link.path, format=link.format, present=link.present)
                for link in chains.chain(header, os.path.dirname(path))
            )
        yield OpenVolume(
            fd=fd,
            path=f"/proc/self/fd/{fd}",
            pass_fds=(fd,),
            kind="file",
            format=format,
            size=size,
            capacity=header.capacity if header is not None else size,
            encryption=header.encryption if header is not None else None,
            backing_chain=chain,
        )
    finally:
        os.close(fd)


def made(path: pathlib.Path, format: str, capacity: int, **options: object) -> pathlib.Path:
    """A new image; a raw one is sparse unless ``allocation`` says otherwise."""
    fields = {"allocation": 0, **options}
    request = ImageRequest(format, capacity, **fields)  # type: ignore[arg-type]
    creating.create(request, str(path), lambda argv: subprocess.run(argv, check=True) and None)
    return path


def contents(path: pathlib.Path | str, format: str, target: pathlib.Path) -> bytes:
    """What a guest reads, by qemu-img."""
    qemu_img("convert", "-f", format, "-O", "raw", path, target)
    found = target.read_bytes()
    target.unlink()
    return found


@contextlib.contextmanager
def loop_device(image: pathlib.Path, *options: str) -> Iterator[str]:
    words = ["losetup", "-f", "--show", *options, str(image)]
    device = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
