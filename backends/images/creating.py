"""Making images and changing their size.

Raw images are made in this process, all others by qemu-img. The path is one that nobody else knows
or can plant a link at (a staging directory); giving the image its name is the caller's part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends import errors
from backends.host import attributes
from backends.images.formats import FORMATS, ImageFormat
from backends.sizes import KIB, MIB, format_quantity, round_up

Run = Callable[[Sequence[str]], object]
"""Runs a command to its end and raises a ``errors.StorageError`` where it fails."""

MIN_CLUSTER, MAX_CLUSTER = 512, 2 * MIB
MIN_EXTENDED_CLUSTER = 16 * KIB
"""Bounds of qcow2's cluster size in bytes; the last with extended L2 entries."""

_ZEROS = bytes(MIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """An image to make; sizes in bytes.

    :param allocation: space to set aside; None for libvirt's default: all of a raw image, and
        nothing of the others.
    :param preallocation: ``Off``, ``Metadata``, ``Falloc`` or ``Full``; None leaves it to
        ``allocation``.
    """

    format: str
    capacity: int
    allocation: int | None = None
    preallocation: str | None = None
    nocow: bool = False
    compat: str | None = None
    cluster_size: int | None = None
    lazy_refcounts: bool = False
    extended_l2: bool = False
    backing_path: str | None = None
    backing_format: str | None = None


def format_of(name: str) -> ImageFormat:
    """The format of that name.

    :raises errors.Unsupported: there is none.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise errors.Unsupported(
            f"There is no image format {name!r}.", hint=f"Use one of {', '.join(FORMATS)}."
        ) from None


def space_needed(request: ImageRequest) -> int:
    """Bytes that making the image takes at once, metadata aside."""
    if request.preallocation in ("Falloc", "Full"):
        return request.capacity
    if not format_of(request.format).headerless or request.preallocation == "Off":
        return 0
    if request.allocation is None:
        return request.capacity
    return min(request.allocation, request.capacity)


def check(request: ImageRequest) -> None:
    """Refuse what could never be made, before anything is begun.

    :raises errors.Unsupported: the format can't be made, or can't do what is asked of it.
    :raises errors.InvalidSpec: values that contradict each other or are out of range.
    """
    kind = format_of(request.format)
    if kind.unmade:
        makeable = [item.name for item in FORMATS.values() if not item.unmade]
        raise errors.Unsupported(
            f"An image of format {kind.name} can't be made: {kind.unmade}.",
            hint=f"Use one of {', '.join(makeable)}; one that is there can be adopted.",
        )
    if request.backing_path is not None and not kind.backing:
        raise errors.Unsupported(
            f"An image of format {kind.name} can't stand on another one.", hint="Use qcow2."
        )
    _check_preallocation(request, kind)
    if kind.qcow2:
        _check_qcow2(request)
    elif request.compat or request.cluster_size or request.lazy_refcounts or request.extended_l2:
        raise errors.Unsupported(
            f"compat, clusterSize and features are qcow2's, and the format is {kind.name}.",
            hint="Leave them out, or use qcow2.",
        )


def _check_preallocation(request: ImageRequest, kind: ImageFormat) -> None:
    wanted = (request.preallocation or "Off").lower()
    if wanted != "off" and wanted not in kind.preallocation:
        possible = ", ".join(item.capitalize() for item in kind.preallocation)
        raise errors.Unsupported(
            f"An image of format {kind.name} can't be preallocated with {request.preallocation}.",
            hint=f"Use {possible} or Off." if possible else "Leave preallocation out.",
        )
    if wanted != "off" and request.backing_path is not None:
        raise errors.Unsupported(
            "An image that stands on another one can't be preallocated.",
            hint="Leave preallocation or backingStore out.",
        )


def _check_qcow2(request: ImageRequest) -> None:
    if request.compat not in (None, "0.10", "1.1"):
        raise errors.InvalidSpec(
            f"compat is {request.compat!r}.", hint="qcow2 has 0.10 and 1.1; leave it out for 1.1."
        )
    if request.compat == "0.10" and (request.lazy_refcounts or request.extended_l2):
        raise errors.InvalidSpec(
            "lazyRefcounts and extendedL2 need compat 1.1, and compat is 0.10.",
            hint="Leave compat out.",
        )
    size = request.cluster_size
    if size is None:
        return
    smallest = MIN_EXTENDED_CLUSTER if request.extended_l2 else MIN_CLUSTER
    if size & (size - 1) or not smallest <= size <= MAX_CLUSTER:
        raise errors.InvalidSpec(
            f"clusterSize is {format_quantity(size)}.",
            hint=f"It has to be a power of two from {format_quantity(smallest)} to "
            f"{format_quantity(MAX_CLUSTER)}.",
        )


def commands(request: ImageRequest, path: str) -> tuple[tuple[str, ...], ...]:
    """The commands that make the image; none for a raw one.

    The backing image is named and not opened (``-u``), and the size is always given: the caller
    has looked at it, and a relative name would not be found from a staging directory.
    """
    kind = format_of(request.format)
    if kind.headerless:
        return ()
    backing: list[str] = []
    if request.backing_path is not None:
        backing = ["-u", "-b", request.backing_path, "-F", request.backing_format or "raw"]
    options = _options(request, kind)
    shown = ["-o", ",".join(options)] if options else []
    size = str(round_up(request.capacity, kind.granularity))
    return (("qemu-img", "create", "-q", "-f", kind.driver, *backing, *shown, path, size),)


def _options(request: ImageRequest, kind: ImageFormat) -> list[str]:
    options = list(kind.options)
    if request.preallocation is not None and kind.preallocation:
        options.append(f"preallocation={request.preallocation.lower()}")
    if not kind.qcow2:
        return options
    if request.nocow:
        options.append("nocow=on")
    options.append(f"compat={request.compat or '1.1'}")
    if request.cluster_size is not None:
        options.append(f"cluster_size={request.cluster_size}")
    if request.lazy_refcounts:
        options.append("lazy_refcounts=on")
    if request.extended_l2:
        options.append("extended_l2=on")
    return options


def create(request: ImageRequest, path: str, run: Run) -> None:
    """Make the image at a path where nothing is. It is not synced; publishing it does that.

    :raises errors.NoSpace: the file system is full.
    """
    check(request)
    for command in commands(request, path):
        run(command)
    if format_of(request.format).headerless:
        try:
            _create_raw(request, path)
        except OSError as error:
            raise errors.from_os_error(error, doing="make a raw image") from error


def _create_raw(request: ImageRequest, path: str) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if request.nocow:
            _set_nocow(fd)
        os.ftruncate(fd, request.capacity)
        needed = space_needed(request)
        if request.preallocation == "Full":
            _write_zeros(fd, needed)
        elif needed:
            os.posix_fallocate(fd, 0, needed)
    finally:
        os.close(fd)


def _set_nocow(fd: int) -> None:
    """Turn copy-on-write off where the file system has it; elsewhere there is none to turn off."""
    try:
        attributes.set_nocow(fd, nocow=True)
    except OSError as error:
        if error.errno not in attributes.NO_SUCH_FLAG:
            raise


def _write_zeros(fd: int, length: int) -> None:
    view = memoryview(_ZEROS)
    offset = 0
    while offset < length:
        offset += os.pwrite(fd, view[: length - offset], offset)


def resize_commands(
    format: str, path: str, capacity: int, *, shrink: bool, allocate: bool = False
) -> tuple[tuple[str, ...], ...]:
    """The commands that change an image's size; none for a raw one.

    :raises errors.Unsupported: qemu-img can't do this with images of the format.
    """
    kind = format_of(format)
    if not (kind.shrinks if shrink else kind.grows):
        raise errors.Unsupported(
            f"An image of format {kind.name} can't {'shrink' if shrink else 'grow'}.",
            hint="Declare the size that it has, or make a new volume.",
        )
    if kind.headerless:
        return ()
    if allocate and not shrink and not kind.preallocation:
        raise errors.Unsupported(
            f"The space that is added to an image of format {kind.name} can't be allocated.",
            hint="Leave resize.allocate out.",
        )
    how = ["--shrink"] if shrink else ["--preallocation=falloc"] if allocate else []
    size = str(round_up(capacity, kind.granularity))
    return (("qemu-img", "resize", "-q", *how, "-f", kind.driver, path, size),)


def resize(
    format: str, path: str, capacity: int, *, shrink: bool, allocate: bool, run: Run
) -> None:
    """Give an image another size. What is added reads as zeros; doing it twice changes nothing."""
    for command in resize_commands(format, path, capacity, shrink=shrink, allocate=allocate):
        run(command)
    if format_of(format).headerless:
        try:
            _resize_raw(path, capacity, allocate=allocate)
        except OSError as error:
            raise errors.from_os_error(error, doing="resize a raw image") from error


def _resize_raw(path: str, capacity: int, *, allocate: bool) -> None:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        before = os.fstat(fd).st_size
        if allocate and capacity > before:
            os.posix_fallocate(fd, before, capacity - before)
        os.ftruncate(fd, capacity)
        os.fsync(fd)
    finally:
        os.close(fd)
