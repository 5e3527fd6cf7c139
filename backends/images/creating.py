"""Making image contents at a path that is ours alone, and changing their size.

The caller gives a path in a private directory and renames the result. Raw images and plain qcow2
ones are made in process; the others by qemu-img, which is told everything and opens nothing but
what it makes (a vmdk overlay excepted, for which it reads its parent's identifier).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from backends import errors
from backends.host import attributes
from backends.images import allocating, encrypting, probing
from backends.images.allocating import Checkpoint
from backends.images.encrypting import CommandSecrets
from backends.images.formats import FORMATS, SECTOR, ImageFormat, Maker, max_capacity
from backends.images.qcow2 import DEFAULT_CLUSTER, EmptyImage
from backends.sizes import MAX_SIZE, format_quantity, round_up
from backends.spec import Encryption

Run = Callable[[Sequence[str]], None]
"""Runs a command to its end, or raises ``errors.StorageError``."""

PREALLOCATIONS = {"Off": "off", "Metadata": "metadata", "Falloc": "falloc", "Full": "full"}
"""qemu-img's words for ``preallocation``."""

COMPATS = ("0.10", "1.1")
"""Versions of qcow2: 2 and 3."""

_DEFAULT_COMPAT = "1.1"
_EXTENDED_L2_CLUSTER = 16384
_UNMEASURED = "accurate CPU usage"
_MEASURINGS = 50
_FULL = os.strerror(errno.ENOSPC)
_LOCKED = re.compile(r'Failed to get (shared )?".*" lock')


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """An image to be made; sizes in bytes.

    :param format: a name of ``formats.FORMATS``.
    :param allocation: space to set aside in a raw image; None for all of it, as in libvirt.
    :param preallocation: ``Off``, ``Metadata``, ``Falloc`` or ``Full``. It goes before
        ``allocation``; None is libvirt's default.
    :param nocow: exempt the file from copy on write where the file system has that.
    :param compat: ``0.10`` or ``1.1``; None for ``1.1``.
    :param backing_path: name of the backing image as it is to stand in the header. It is not
        looked at here.
    :param encryption: LUKS, with a passphrase that ``create`` is given.
    :param derivation: milliseconds that turning the passphrase into a key is to take; None for
        qemu's own, two seconds.
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
    encryption: Encryption | None = None
    derivation: int | None = None


def check(request: ImageRequest) -> None:
    """Refuse what could never be made, before anything is done.

    A capacity of 0 passes for an overlay: the caller may not know it yet.

    :raises errors.InvalidSpec: the request contradicts itself.
    :raises errors.Unsupported: the format or qemu-img has no such thing.
    """
    item = _format(request.format)
    if not item.creatable:
        raise errors.Unsupported(
            f"A volume of format {request.format!r} can't be made: {item.why_not}.",
            hint="Use raw or qcow2.",
        )
    if request.encryption is not None:
        encrypting.check(request.encryption, request.format)
    _check_options(request, item)
    _check_clusters(request, item)
    _check_preallocation(request, item)
    _check_backing(request, item)
    _check_capacity(request, item, known=request.backing_path is None)


def _format(name: str) -> ImageFormat:
    try:
        return FORMATS[name]
    except KeyError:
        raise errors.InvalidSpec(
            f"{name!r} is not a format of files.", hint=f"Use one of {', '.join(FORMATS)}."
        ) from None


def _check_options(request: ImageRequest, item: ImageFormat) -> None:
    asked = {
        "compat": request.compat is not None,
        "lazy_refcounts": request.lazy_refcounts,
        "extended_l2": request.extended_l2,
    }
    for name, wanted in asked.items():
        if wanted and name not in item.options:
            raise errors.Unsupported(
                f"Format {item.name!r} has no {name}.", hint="Leave it out or use qcow2."
            )
    if request.compat is not None and request.compat not in COMPATS:
        raise errors.InvalidSpec(
            f"compat {request.compat!r} is not a version of qcow2.",
            hint=f"Use {' or '.join(COMPATS)}.",
        )
    if request.compat == COMPATS[0] and (request.lazy_refcounts or request.extended_l2):
        name = "lazy_refcounts" if request.lazy_refcounts else "extended_l2"
        raise errors.Unsupported(
            f"{name} needs compat 1.1, and {request.compat} is declared.",
            hint="Use compat 1.1 or leave the feature out.",
        )


def _check_clusters(request: ImageRequest, item: ImageFormat) -> None:
    size = request.cluster_size
    if size is None:
        return
    if item.cluster_sizes is None:
        raise errors.Unsupported(
            f"The cluster size of format {item.name!r} can't be chosen.", hint="Leave it out."
        )
    least, greatest = item.cluster_sizes
    if request.extended_l2:
        least = max(least, _EXTENDED_L2_CLUSTER)
    if not least <= size <= greatest or size & (size - 1):
        why = " with extended_l2" if request.extended_l2 else ""
        raise errors.InvalidSpec(
            f"A cluster size of {size} bytes can't be had.",
            hint=f"Format {item.name!r} takes powers of two from {least} to {greatest}{why}.",
        )


def _check_preallocation(request: ImageRequest, item: ImageFormat) -> None:
    kind = request.preallocation
    if kind is None:
        return
    if kind not in PREALLOCATIONS:
        raise errors.InvalidSpec(
            f"{kind!r} is not a preallocation.", hint=f"Use {', '.join(PREALLOCATIONS)}."
        )
    if kind not in item.preallocations:
        raise errors.Unsupported(
            f"Format {item.name!r} can't be made with preallocation {kind}.",
            hint=f"It takes {', '.join(sorted(item.preallocations))}.",
        )
    if kind != "Off" and request.backing_path is not None:
        if kind == "Metadata":
            raise errors.Unsupported(
                "preallocation Metadata and a backing image exclude each other.",
                hint="Leave one of them out.",
            )
        if not request.extended_l2:
            raise errors.Unsupported(
                f"preallocation {kind} of an overlay needs extended_l2.",
                hint="Leave the preallocation out or turn extended_l2 on.",
            )


def _check_backing(request: ImageRequest, item: ImageFormat) -> None:
    path = request.backing_path
    if path is None:
        return
    if not item.backing:
        raise errors.Unsupported(
            f"A {item.name} image can't stand on another one.", hint="Use qcow2."
        )
    if request.backing_format is None:
        raise errors.InvalidSpec(
            f"The format of the backing image {path!r} is not given.",
            hint="Declare it: it is never guessed.",
        )
    _format(request.backing_format)
    if request.backing_format not in item.backing:
        raise errors.Unsupported(
            f"A {item.name} image can't stand on one of format {request.backing_format!r}.",
            hint=f"It can on {', '.join(sorted(item.backing))}.",
        )
    _check_backing_name(path, item)


def _check_backing_name(path: str, item: ImageFormat) -> None:
    if not path or "\0" in path or len(os.fsencode(path)) > 1023:
        raise errors.InvalidSpec(
            "The path of the backing image is empty or too long for a header.",
            hint="It has 1 to 1023 bytes.",
        )
    if ":" in path.partition("/")[0]:
        raise errors.InvalidSpec(
            f"qemu would take the backing path {path!r} for an address.",
            hint="Give an absolute path.",
        )
    if item.name == "vmdk" and not os.path.isabs(path):
        raise errors.Unsupported(
            f"qemu-img reads the backing image of a vmdk, and {path!r} is relative.",
            hint="Give an absolute path.",
        )


def _check_capacity(request: ImageRequest, item: ImageFormat, *, known: bool) -> None:
    for what, size in (("capacity", request.capacity), ("allocation", request.allocation or 0)):
        if not 0 <= size <= MAX_SIZE:
            raise errors.InvalidSpec(f"The {what} {size} is not a size in bytes.")
    if known and request.capacity == 0 and not item.takes_empty:
        raise errors.Unsupported(
            f"A {item.name} image can't be empty.", hint="Give a capacity above 0."
        )
    limit = max_capacity(item, request.cluster_size, extended_l2=request.extended_l2)
    if request.capacity > limit:
        raise errors.Unsupported(
            f"A capacity of {format_quantity(request.capacity)} is too much for format "
            f"{item.name!r}.",
            hint=f"It holds at most {format_quantity(limit)}"
            + (" with these clusters." if item.cluster_sizes else "."),
        )


def space_needed(request: ImageRequest) -> int:
    """Bytes that making the image takes at once, its tables left out."""
    header = encrypting.HEADER if request.encryption is not None else 0
    if _format(request.format).maker is Maker.SELF:
        return header + _raw_allocation(request)
    return header + (request.capacity if request.preallocation in ("Falloc", "Full") else 0)


def _raw_allocation(request: ImageRequest) -> int:
    if request.preallocation is not None:
        return 0 if request.preallocation == "Off" else request.capacity
    if request.allocation is None:
        return request.capacity
    return min(request.allocation, request.capacity)


def commands(
    request: ImageRequest, path: str, secret: Sequence[str] = encrypting.PASSPHRASE
) -> tuple[tuple[str, ...], ...]:
    """The commands that ``create`` runs; none for what is made in process.

    :param secret: arguments that give the passphrase of an encrypted image.
    """
    return () if _empty_qcow2(request) is not None else tool_commands(request, path, secret)


def _empty_qcow2(request: ImageRequest) -> EmptyImage | None:
    """The image as it is written in process; None where qemu-img has to make it."""
    if request.format != "qcow2" or request.encryption is not None:
        return None
    if request.preallocation not in (None, "Off"):
        return None
    named = request.backing_format
    image = EmptyImage(
        capacity=request.capacity,
        version=2 if request.compat == COMPATS[0] else 3,
        cluster_size=request.cluster_size or DEFAULT_CLUSTER,
        lazy_refcounts=request.lazy_refcounts,
        extended_l2=request.extended_l2,
        backing_path=request.backing_path,
        backing_format=FORMATS[named].driver if named is not None else None,
    )
    return image if image.fits else None


def tool_commands(
    request: ImageRequest, path: str, secret: Sequence[str] = encrypting.PASSPHRASE
) -> tuple[tuple[str, ...], ...]:
    """How qemu-img makes the image; nothing for raw ones.

    The order of the options is libvirt's, so that the two can be compared.
    """
    item = _format(request.format)
    encrypted = request.encryption is not None
    if item.maker is not Maker.QEMU_IMG and not encrypted:
        return ()
    backing = ("-b", request.backing_path) if request.backing_path is not None else ()
    options = ",".join(f"{name}={_escaped(value)}" for name, value in _options(request, item))
    return (
        (
            "qemu-img",
            "create",
            "-q",
            "-u",
            "-f",
            "luks" if encrypted and item.maker is Maker.SELF else item.driver,
            *backing,
            *(secret if encrypted else ()),
            *(("-o", options) if options else ()),
            _absolute(path),
            str(request.capacity),
        ),
    )


def _options(request: ImageRequest, item: ImageFormat) -> Iterator[tuple[str, str]]:
    if request.backing_path is not None and request.backing_format is not None:
        yield "backing_fmt", FORMATS[request.backing_format].driver
    if request.encryption is not None:
        yield from _encryption_options(request, request.encryption, item)
    if request.preallocation is not None and len(item.preallocations) > 1:
        yield "preallocation", PREALLOCATIONS[request.preallocation]
    if request.nocow:
        yield "nocow", "on"
    if "compat" in item.options:
        yield "compat", request.compat or _DEFAULT_COMPAT
    if request.cluster_size is not None:
        yield "cluster_size", str(request.cluster_size)
    if request.lazy_refcounts:
        yield "lazy_refcounts", "on"
    if request.extended_l2:
        yield "extended_l2", "on"
    if item.driver == "vpc":
        yield "force_size", "on"


def _encryption_options(
    request: ImageRequest, encryption: Encryption, item: ImageFormat
) -> Iterator[tuple[str, str]]:
    prefix = "" if item.maker is Maker.SELF else "encrypt."
    if prefix:
        yield "encrypt.format", "luks"
    yield from encrypting.options(
        encryption.cipher, encryption.ivgen, prefix=prefix, secret=encrypting.SECRET_ID
    )
    if request.derivation is not None:
        yield f"{prefix}iter-time", str(request.derivation)


def _escaped(value: str) -> str:
    """qemu's option lists end a value at a comma, and take two for one."""
    return value.replace(",", ",,")


def _absolute(path: str) -> str:
    """A relative path could read as an option or, with a colon, as an address."""
    if not os.path.isabs(path):
        raise ValueError(f"{path!r} is not an absolute path")
    return path


def create(
    request: ImageRequest,
    path: str,
    run: Run,
    *,
    checkpoint: Checkpoint = lambda done: None,
    secrets: CommandSecrets | None = None,
) -> None:
    """Make the image, and see that it is on the disk.

    A failure may leave a part of it at ``path``, for the caller to remove.

    :param path: absolute, in a directory of the caller's own; nothing stands there.
    :param secrets: holds the passphrase of an encrypted image as ``encrypting.SECRET_ID``; ``run``
        passes its descriptors on.
    :raises errors.AlreadyExists: something stands there.
    :raises errors.NoSpace: the space to set aside is not there.
    """
    check(request)
    _check_capacity(request, _format(request.format), known=True)
    is_raw = _format(request.format).maker is Maker.SELF
    if is_raw and request.encryption is None:
        _create_raw(request, path, checkpoint)
        return
    empty = _empty_qcow2(request)
    if empty is not None:
        _write_qcow2(request, empty, path)
        return
    if os.path.lexists(path):
        raise _standing(path)

    def again() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    for argv in commands(request, path, secrets.arguments if secrets is not None else ()):
        _run_patiently(argv, run, again)
    with _translated(f"write {path} to the disk"), _opened(path, os.O_RDWR) as fd:
        if is_raw and request.preallocation is None:
            start = probing.probe(fd).payload_offset or 0
            allocating.allocate(fd, start, start + _raw_allocation(request), checkpoint)
        os.fsync(fd)


def encrypt_device(request: ImageRequest, path: str, run: Run, secrets: CommandSecrets) -> None:
    """Write a LUKS header onto a block device, over what stands there.

    :param request: a raw image with encryption; its capacity is that of the contents.
    :param path: absolute, of the device, which has room for header and contents.
    """
    check(request)
    for argv in tool_commands(request, path, secrets.arguments):
        _run_patiently(argv, run, lambda: None)


def _run_patiently(argv: Sequence[str], run: Run, again: Callable[[], None]) -> None:
    """qemu measures its own speed for LUKS, and gives up where a busy host does not let it.

    :param again: called before each further try.
    """
    for _ in range(_MEASURINGS - 1):
        try:
            run_tool(argv, run)
        except errors.CommandFailed as error:
            if _UNMEASURED not in error.message:
                raise
            again()
        else:
            return
    run_tool(argv, run)


def run_tool(argv: Sequence[str], run: Run) -> None:
    """Run qemu-img or qemu-io, which tell some failures from others by words alone.

    :raises errors.NoSpace: the file system is full.
    :raises errors.InUse: another process holds the image's lock.
    """
    try:
        run(argv)
    except errors.CommandFailed as error:
        if _FULL in error.message:
            hint = "Free some space or use a larger pool."
            raise errors.NoSpace(error.message, hint=hint) from error
        if _LOCKED.search(error.message):
            hint = "Stop what uses the image, such as a virtual machine."
            raise errors.InUse(error.message, hint=hint) from error
        raise


def _write_qcow2(request: ImageRequest, image: EmptyImage, path: str) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    try:
        with _translated(f"create {path}"), _opened(_absolute(path), flags) as fd:
            if request.nocow:
                _exempt_from_copying(fd)
            image.write(fd)
            os.fsync(fd)
    except FileExistsError:
        raise _standing(path) from None


def _create_raw(request: ImageRequest, path: str, checkpoint: Checkpoint) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    try:
        with _translated(f"create {path}"), _opened(_absolute(path), flags) as fd:
            if request.nocow:
                _exempt_from_copying(fd)
            os.ftruncate(fd, request.capacity)
            if request.preallocation == "Full":
                allocating.write_zeros(fd, 0, request.capacity, checkpoint)
            else:
                allocating.allocate(fd, 0, _raw_allocation(request), checkpoint)
            os.fsync(fd)
    except FileExistsError:
        raise _standing(path) from None


def _standing(path: str) -> errors.AlreadyExists:
    return errors.AlreadyExists(
        f"Could not create {path}: something stands there.", hint="Choose another name."
    )


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise errors.from_os_error(error, doing=doing) from error


def _exempt_from_copying(fd: int) -> None:
    """libvirt takes ``nocow`` for a wish: a file system without copy on write has nothing to do."""
    try:
        attributes.set_nocow(fd, nocow=True)
    except OSError as error:
        if error.errno not in allocating.UNSUPPORTED:
            raise


def check_resize(format: str, *, shrink: bool, allocate: bool) -> None:
    """Refuse a change of size that the format does not have.

    :raises errors.Unsupported: qemu-img can't do it.
    """
    item = _format(format)
    if not (item.shrinks if shrink else item.grows):
        raise errors.Unsupported(
            f"A {item.name} image can't {'shrink' if shrink else 'grow'}.",
            hint="Convert it to qcow2 or raw, or declare the capacity that it has.",
        )
    if allocate and "Falloc" not in item.preallocations:
        raise errors.Unsupported(
            f"The space that is added to a {item.name} image can't be allocated at once.",
            hint="Leave resize.allocate out.",
        )


def resize_commands(
    format: str,
    path: str,
    capacity: int,
    *,
    shrink: bool,
    allocate: bool = False,
    secret: Sequence[str] = (),
) -> tuple[tuple[str, ...], ...]:
    """The commands that ``resize`` runs; none for what is done in process.

    :param secret: arguments that give the passphrase of an encrypted image.
    """
    item = _format(format)
    if item.maker is not Maker.QEMU_IMG:
        return ()
    size = str(round_up(capacity, SECTOR))
    shrinking = ("--shrink",) if shrink else ()
    setting_aside = ("--preallocation=falloc",) if allocate else ()
    image: tuple[str, ...] = ("-f", item.driver, _absolute(path))
    if secret:
        opened = (
            f"driver={item.driver},encrypt.key-secret={encrypting.SECRET_ID},"
            f"file.driver=file,file.filename={_escaped(_absolute(path))}"
        )
        image = (*secret, "--image-opts", opened)
    return (("qemu-img", "resize", "-q", *shrinking, *setting_aside, *image, size),)


def resize(
    format: str,
    path: str,
    capacity: int,
    *,
    shrink: bool,
    allocate: bool,
    run: Run,
    checkpoint: Checkpoint = lambda done: None,
    header: int = 0,
    secrets: CommandSecrets | None = None,
) -> None:
    """Give an image another size.

    :param path: absolute. qemu-img follows a link there; a raw image is never opened by one.
    :param capacity: bytes; formats other than raw round it up to ``SECTOR``.
    :param shrink: what lies past ``capacity`` may be lost.
    :param allocate: set aside the space that is added; raw and qcow2 images only.
    :param header: bytes before the contents of a raw image: those of a LUKS header.
    :param secrets: as for ``create``; needed for formats other than raw alone.
    :raises errors.ShrinkNotAllowed: a raw image is larger and ``shrink`` is not set.
    :raises errors.Unsupported: the format can't.
    :raises errors.NoSpace: the file system is full.
    """
    check_resize(format, shrink=shrink, allocate=allocate)
    if _format(format).maker is Maker.SELF:
        _resize_raw(path, header + capacity, shrink, allocate, checkpoint)
        return
    if allocate:
        _require_room(_absolute(path), capacity)
    secret = secrets.arguments if secrets is not None else ()
    for argv in resize_commands(
        format, path, capacity, shrink=shrink, allocate=allocate, secret=secret
    ):
        run_tool(argv, run)


def _require_room(path: str, capacity: int) -> None:
    """See that what a qcow2 image grows by can be set aside, before it is tried.

    qemu-img that runs out of space on its way leaves a cluster behind that counts as used and that
    a check does not find; it fails an assertion at each further try (seen with 7.2).
    """
    with _translated(f"resize {path}"), open(path, "rb") as file:  # by the link that is followed
        facts = os.fstatvfs(file.fileno())
        added = capacity - probing.probe(file.fileno()).capacity
    left = facts.f_bavail * facts.f_frsize
    if added + added // 64 > left:  # with the tables for it
        raise errors.NoSpace(
            f"{format_quantity(added)} more are to be set aside for {path}, and its file system "
            f"has {format_quantity(left)} left.",
            hint="Free some space or use a larger pool.",
        )


def _resize_raw(
    path: str, capacity: int, shrink: bool, allocate: bool, checkpoint: Checkpoint
) -> None:
    with _translated(f"resize {path}"), _opened(_absolute(path), os.O_RDWR) as fd:
        former = os.fstat(fd).st_size
        if capacity < former and not shrink:
            raise errors.ShrinkNotAllowed(
                f"{path} has {format_quantity(former)}, and would lose what lies past "
                f"{format_quantity(capacity)}.",
                hint="Set resize.allowShrink to allow it.",
            )
        if allocate:
            try:
                allocating.allocate(fd, former, capacity, checkpoint)
            except BaseException:
                os.ftruncate(fd, former)
                raise
        os.ftruncate(fd, capacity)
        os.fsync(fd)
