"""``poolkeeper volume``: commands on one volume, and their options."""

# ruff: noqa: PLC0415 - what a command does is imported when it is called
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli import options

if TYPE_CHECKING:
    from controller.cli.moving import Server
    from controller.contents import Selection

app = typer.Typer(
    name="volume",
    help="""Resize, clone, wipe, upload or download a volume.

    \b
    Examples:
      poolkeeper volume resize web-1 +10Gi
      poolkeeper volume download web-1 disk.raw
    """,
    short_help="Resize, clone, wipe, upload or download a volume.",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _complete(incomplete: str) -> list[str]:
    from controller.cli.completing import words

    return words(["storagevolume"], incomplete)


Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A StorageVolume.", autocompletion=_complete)
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        parser=options.seconds,
        metavar="TIME",
        help="How long to wait, like 30s or 5m, for it to begin or to end.",
    ),
]
Offset = Annotated[
    int, typer.Option("--offset", parser=options.size, metavar="SIZE", help="First byte.")
]
Length = Annotated[
    int,
    typer.Option("--length", parser=options.size, metavar="SIZE", help="Bytes; 0 for all."),
]
Sparse = Annotated[
    bool,
    typer.Option("--sparse/--no-sparse", help="Neither send nor store holes."),
]
Checksum = Annotated[
    str,
    typer.Option(
        "--checksum",
        metavar="ALGORITHM",
        show_default=False,
        help="sha256 or sha512: print the checksum of what was moved.",
    ),
]
Operation = Annotated[
    str,
    typer.Option(
        "--operation",
        metavar="NAME",
        show_default=False,
        help="The VolumeOperation that this carries out.",
    ),
]
ServerUrl = Annotated[
    str,
    typer.Option(
        "--server",
        metavar="URL",
        show_default=False,
        help="Ask this agent, as in a cluster, in place of the one of the state directory.",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", show_default=False, help="The token for --server."
    ),
]
Authority = Annotated[
    Path | None,
    typer.Option(
        "--ca", metavar="FILE", show_default=False, help="Authority of --server's certificate."
    ),
]


@app.command(context_settings={"ignore_unknown_options": True})
def resize(
    name: Name,
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="The size, or +SIZE or -SIZE for a change of it.")
    ],
    *,
    allow_shrink: Annotated[
        bool, typer.Option("--allow-shrink", help="What stands behind the new end may be lost.")
    ] = False,
    allow_data_loss: Annotated[
        bool,
        typer.Option("--allow-data-loss", help="Even below what the volume holds data in."),
    ] = False,
    allocate: Annotated[
        bool, typer.Option("--allocate", help="Set the new space aside at once.")
    ] = False,
    namespace: options.Namespace = "default",
    timeout: options.Timeout = "60s",  # type: ignore[assignment] # goes through the parser
    state_dir: options.StateDir = None,
    node_name: options.NodeName = "",
) -> int:
    """Change the declared capacity of a volume.

    The capacity is changed where it is declared: in the store. Where a manifest declares it too,
    change that as well: as soon as it is applied again, its capacity counts.

    \b
    Examples:
      poolkeeper volume resize web-1 40Gi
      poolkeeper volume resize web-1 +10Gi --allocate
      poolkeeper volume resize web-1 -10Gi --allow-shrink
    """
    from controller.cli import changing
    from controller.cli.session import session

    return changing.resize(
        session(state_dir, node_name),
        name,
        size,
        namespace=namespace,
        allow_shrink=allow_shrink,
        allow_data_loss=allow_data_loss,
        allocate=allocate,
        timeout=timeout,
    )


@app.command()
def clone(
    source: Name,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Name of the new volume.")],
    *,
    pool: Annotated[
        str,
        typer.Option("--pool", metavar="NAME", show_default=False, help="Default: the source's."),
    ] = "",
    volume_name: Annotated[
        str,
        typer.Option(
            "--volume-name",
            metavar="NAME",
            show_default=False,
            help="Name in the pool; default: that of the source with NEW in place of its own name.",
        ),
    ] = "",
    reflink: Annotated[
        str, typer.Option("--reflink", metavar="HOW", help="Auto, Always or Never.")
    ] = "Auto",
    namespace: options.Namespace = "default",
    timeout: options.Timeout = "60s",  # type: ignore[assignment] # goes through the parser
    wait: options.Wait = False,
    state_dir: options.StateDir = None,
    node_name: options.NodeName = "",
) -> int:
    """Declare a new volume with the contents of another.

    \b
    Examples:
      poolkeeper volume clone golden web-2 --wait
      poolkeeper volume clone golden web-2 --pool fast --reflink Never
    """
    from controller.cli import changing
    from controller.cli.session import session

    return changing.clone(
        session(state_dir, node_name),
        source,
        new,
        pool=pool,
        volume_name=volume_name,
        reflink=reflink,
        namespace=namespace,
        wait=wait,
        timeout=timeout,
    )


@app.command()
def wipe(
    name: Name,
    *,
    algorithm: Annotated[
        options.WipeAlgorithm, typer.Option("--algorithm", help="Patterns to write.")
    ] = options.WipeAlgorithm.zero,
    namespace: options.Namespace = "default",
    timeout: options.Timeout = "24h",  # type: ignore[assignment] # goes through the parser
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it is done.")] = True,
    state_dir: options.StateDir = None,
    node_name: options.NodeName = "",
) -> int:
    """Overwrite the contents of a volume.

    A VolumeOperation is declared, which is kept as a record for an hour after its end. An
    interrupt (Ctrl-C) cancels it where this command carries it out; else
    "poolkeeper delete volop NAME" does. What a wipe can't reach: docs/wiping.md.

    \b
    Examples:
      poolkeeper volume wipe web-1
      poolkeeper volume wipe web-1 --algorithm nnsa
    """
    from controller.cli import changing
    from controller.cli.session import session

    return changing.wipe(
        session(state_dir, node_name),
        name,
        algorithm=algorithm.value,
        namespace=namespace,
        wait=wait,
        timeout=timeout,
    )


@app.command()
def upload(
    name: Name,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for standard input.")],
    *,
    offset: Offset = "0",  # type: ignore[assignment] # goes through the parser
    length: Length = "0",  # type: ignore[assignment]
    sparse: Sparse = True,
    checksum: Checksum = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the last upload broke off.")
    ] = False,
    operation: Operation = "",
    server: ServerUrl = "",
    token_file: TokenFile = None,
    authority: Authority = None,
    namespace: options.Namespace = "default",
    timeout: Timeout = "60s",  # type: ignore[assignment] # goes through the parser
    state_dir: options.StateDir = None,
    node_name: options.NodeName = "",
) -> int:
    """Write a file into a volume.

    A raw volume gets it in place, from --offset on; more than fits is refused. An image, such as
    qcow2, is replaced by the file as a whole, once that was found to be such an image.

    \b
    Examples:
      poolkeeper volume upload web-1 disk.raw --checksum sha256
      poolkeeper volume upload web-1 disk.raw --resume
      xz -dc disk.raw.xz | poolkeeper volume upload web-1 -
    """
    from controller.cli import moving
    from controller.cli.session import session

    return moving.upload(
        session(state_dir, node_name),
        name,
        file,
        _selection(offset, length, checksum, sparse=sparse),
        namespace=namespace,
        operation=operation,
        resume=resume,
        server=_server(server, token_file, authority),
        timeout=timeout,
    )


@app.command()
def download(
    name: Name,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for standard output.")],
    *,
    offset: Offset = "0",  # type: ignore[assignment] # goes through the parser
    length: Length = "0",  # type: ignore[assignment]
    sparse: Sparse = True,
    checksum: Checksum = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on at the end of what the file has.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    operation: Operation = "",
    server: ServerUrl = "",
    token_file: TokenFile = None,
    authority: Authority = None,
    namespace: options.Namespace = "default",
    timeout: Timeout = "60s",  # type: ignore[assignment] # goes through the parser
    state_dir: options.StateDir = None,
    node_name: options.NodeName = "",
) -> int:
    """Read a volume into a file.

    \b
    Examples:
      poolkeeper volume download web-1 disk.raw --checksum sha256
      poolkeeper volume download web-1 - | zstd > disk.raw.zst
      poolkeeper volume download web-1 mbr --length 512
    """
    from controller.cli import moving
    from controller.cli.session import session

    return moving.download(
        session(state_dir, node_name),
        name,
        file,
        _selection(offset, length, checksum, sparse=sparse),
        namespace=namespace,
        operation=operation,
        resume=resume,
        force=force,
        server=_server(server, token_file, authority),
        timeout=timeout,
    )


def _selection(offset: int, length: int, checksum: str, *, sparse: bool) -> Selection:
    from backends.images.transferring import ALGORITHMS
    from controller.contents import Selection

    if checksum and checksum not in ALGORITHMS:
        raise typer.BadParameter(f"--checksum is one of {', '.join(ALGORITHMS)}.")
    return Selection(offset=offset, length=length or None, sparse=sparse, checksum=checksum)


def _server(url: str, token_file: Path | None, authority: Path | None) -> Server | None:
    from controller.cli.moving import Server

    if not url:
        if token_file or authority:
            raise typer.BadParameter("--token-file and --ca belong to --server.")
        return None
    if token_file is None:
        raise typer.BadParameter("--server needs --token-file.")
    return Server(url=url, token_file=token_file, authority=authority)
