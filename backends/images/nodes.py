"""How qemu's tools are told of a volume: as block nodes, with nothing left for them to guess.

A header may name a backing image, and a backing image may have a header of its own that names yet
another one. Told only the top, qemu follows all of that and probes what has no format. Told every
node, it opens these files alone (qemu's ``--image-opts``, docs/tools/qemu-img.rst).
"""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Iterator

from backends.base import OpenVolume
from backends.images.formats import FORMATS


def has_no_header(opened: OpenVolume) -> bool:
    """Whether the format puts nothing before the contents."""
    return not FORMATS[opened.format or "raw"].has_header


def is_luks(opened: OpenVolume) -> bool:
    """Whether a LUKS header stands before raw contents; in qcow2 it is within the image."""
    return opened.encryption is not None and has_no_header(opened)


def described(opened: OpenVolume, secret: str = "") -> str:
    """A volume for ``--image-opts``.

    :param secret: id of the secret object that decrypts it.
    """
    return ",".join(f"{name}={escaped(value)}" for name, value in _options(opened, secret))


def escaped(value: str) -> str:
    """qemu's option lists end a value at a comma, and take two for one."""
    return value.replace(",", ",,")


def _options(opened: OpenVolume, secret: str) -> Iterator[tuple[str, str]]:
    if is_luks(opened):
        yield "driver", "luks"
        yield "key-secret", secret
    else:
        yield "driver", FORMATS[opened.format or "raw"].driver
        if opened.encryption is not None:
            yield "encrypt.key-secret", secret
    yield from _file("file", opened.path, is_device=opened.kind == "block")
    prefix = ""
    for link in opened.backing_chain:
        prefix += "backing."
        yield f"{prefix}driver", FORMATS[link.format or "raw"].driver
        yield from _file(f"{prefix}file", link.path, is_device=_is_device(link.path))


def _file(prefix: str, path: str, *, is_device: bool) -> Iterator[tuple[str, str]]:
    yield f"{prefix}.driver", "host_device" if is_device else "file"
    yield f"{prefix}.filename", path


def _is_device(path: str) -> bool:
    try:
        return modes.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False
