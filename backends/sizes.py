"""Sizes in bytes: Kubernetes quantities, libvirt's scaled integers, and their rounding.

A size is an ``int`` of bytes everywhere inside; text exists only at the edges.
"""

from __future__ import annotations

import re
from decimal import Decimal

from backends import errors

MAX_SIZE = 2**63 - 1
"""The largest size that libvirt and off_t can hold, in bytes."""

KIB, MIB, GIB = 2**10, 2**20, 2**30

QUANTITY_PATTERN = r"^([0-9]+|[0-9]*\.[0-9]+|[0-9]+\.)(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E|[eE][0-9]+)?$"
"""What a manifest may hold for a size; the non-negative part of Kubernetes' Quantity."""

_BINARY = {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", start=1)}
_DECIMAL = {letter: 1000**power for power, letter in enumerate("kMGTPE", start=1)}
_QUANTITY_SUFFIXES = {"": 1, **_BINARY, **_DECIMAL}
_QUANTITY = re.compile(QUANTITY_PATTERN)

_LIBVIRT_UNITS = {
    "": 1,
    "b": 1,
    "byte": 1,
    "bytes": 1,
    **{letter: 1024**power for power, letter in enumerate("kmgtpe", start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtpe", start=1)},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtpe", start=1)},
}


def parse_quantity(value: str | int) -> int:
    """Read a Kubernetes quantity as bytes; a fraction of a byte is rounded up, as Kubernetes does.

    :raises errors.InvalidManifest: for anything else than a non-negative quantity.
    :raises errors.Overflow: past ``MAX_SIZE``.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise errors.InvalidManifest(f"{value!r} is not a size.", hint="Write it like 20Gi.")
    text = str(value).strip()
    match = _QUANTITY.match(text)
    if match is None:
        raise errors.InvalidManifest(
            f"{text!r} is not a size.",
            hint="Write a number with Ki, Mi, Gi, Ti (1024) or k, M, G, T (1000), like 20Gi.",
        )
    number, suffix = Decimal(match[1]), match[2] or ""
    if suffix in _QUANTITY_SUFFIXES:
        scale = Decimal(_QUANTITY_SUFFIXES[suffix])
    elif int(suffix[1:]) > 30:
        raise errors.Overflow(f"{text!r} is larger than {MAX_SIZE} bytes.")
    else:
        scale = Decimal(10) ** int(suffix[1:])
    return _bounded(number * scale, text)


def _bounded(size: Decimal, text: str) -> int:
    if size > MAX_SIZE:
        raise errors.Overflow(f"{text!r} is larger than {MAX_SIZE} bytes.")
    return int(size.to_integral_value(rounding="ROUND_CEILING"))


def format_quantity(size: int) -> str:
    """Write bytes as the shortest exact quantity: ``20Gi``, ``1500Mi``, ``1000``."""
    for suffix, scale in reversed(_BINARY.items()):
        if size and size % scale == 0:
            return f"{size // scale}{suffix}"
    return str(size)


def format_human(size: int) -> str:
    """Write bytes for a person, to three figures: ``19.5 GiB``. Not for machines."""
    if size < KIB:
        return f"{size} B"
    power = 1
    while size / 1024**power >= 999.5 and power < 6:
        power += 1
    value, unit = size / 1024**power, ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")[power - 1]
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"


def parse_scaled(text: str, unit: str | None = None) -> int:
    """Read libvirt's scaled integer as bytes (libvirt: formatstorage, ``unit`` of capacity).

    :param unit: ``bytes``, ``KiB`` or ``K`` (1024), ``KB`` (1000) and so on, in any case.
    :raises errors.InvalidXml: for text that is not a whole number, or an unknown unit.
    :raises errors.Overflow: past ``MAX_SIZE``.
    """
    number = text.strip()
    if not re.fullmatch(r"\+?[0-9]+", number):
        raise errors.InvalidXml(f"{text!r} is not a whole number.", hint="Give a count of units.")
    scale = _LIBVIRT_UNITS.get((unit or "").strip().lower())
    if scale is None:
        raise errors.InvalidXml(
            f"{unit!r} is not a unit of size.", hint="Use bytes, KiB, MiB, GiB, TiB, PiB or EiB."
        )
    if len(number) > 40:
        raise errors.Overflow(f"A number of {len(number)} digits is larger than {MAX_SIZE} bytes.")
    return _bounded(Decimal(int(number) * scale), f"{text} {unit or 'bytes'}")


def round_up(size: int, granularity: int) -> int:
    """The smallest multiple of ``granularity`` that is not below ``size``."""
    return -(-size // granularity) * granularity
