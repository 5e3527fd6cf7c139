"""The commands and their options. What a command does is imported when it is called, so that help
and completion come at once."""

# ruff: noqa: PLC0415 - see above
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli import options, volumecommands
from controller.cli.options import (
    CapabilityOutput,
    EventOutput,
    Format,
    LogLevel,
    Output,
    PlanOutput,
)

if TYPE_CHECKING:
    from controller.cli.session import Session

app = typer.Typer(
    name="poolkeeper",
    help="Keeps a host's storage pools and volumes the way their manifests say.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(volumecommands.app)


def _session(state: Path | None, node: str = "", secrets: Path | None = None) -> Session:
    from controller.cli.session import session

    return session(state, node, secrets)


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    from controller.cli.completing import words

    before = ctx.params.get("words") or ()
    return words(list(before), incomplete)


def _version(wanted: bool) -> None:
    if wanted:
        from controller.release import release

        typer.echo(f"poolkeeper {release() or 'unknown (not installed)'}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Keeps a host's storage pools and volumes the way their manifests say."""


Words = Annotated[
    list[str],
    typer.Argument(
        metavar="KIND NAME",
        help="A kind (storagepool, spool, storagevolume, svol, ...), its plural or short name, "
        "and names; or KIND/NAME.",
        autocompletion=_complete,
    ),
]
OptionalWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KIND NAME", help="A kind and names, or KIND/NAME.", autocompletion=_complete
    ),
]
Paths = Annotated[
    list[str] | None,
    typer.Argument(metavar="PATH", help="Files or folders, as with -f.", show_default=False),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Do nothing at all where one manifest is broken.")
]


@app.command()
def apply(
    *,
    paths: Paths = None,
    files: options.Files = [],  # noqa: B006 - Typer makes a new list for each call
    pool: options.PoolName = "",
    wait: options.Wait = False,
    timeout: options.Timeout = "60s",  # type: ignore[assignment] # goes through the parser
    strict: Strict = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and do nothing, as plan does.")
    ] = False,
    state_dir: options.StateDir = None,
    node_name: options.NodeName = "",
    secrets_dir: options.SecretsDir = None,
) -> int:
    """Write manifests to the store and carry them out.

    Where an agent keeps the state directory, it does the work; else this command does.
    Ends with 0 when all is Ready, 1 when something is not or failed, 3 when time ran out
    (--wait). A broken manifest is named, and the others are applied unless --strict.

    \b
    Examples:
      poolkeeper apply -f pools.yaml -f volumes/
      poolkeeper apply -f /etc/poolkeeper --wait --timeout 5m
      virsh pool-dumpxml images | poolkeeper apply -
    """
    where = _session(state_dir, node_name, secrets_dir)
    given = [*files, *(paths or ())]
    if dry_run and given:
        from controller.cli import previewing

        return previewing.plan(where, given, pool=pool, strict=strict, output=PlanOutput.TEXT)
    from controller.cli import applying

    return applying.apply(where, given, pool=pool, wait=wait, strict=strict, timeout=timeout)


@app.command()
def plan(
    *,
    paths: Paths = None,
    files: options.Files = [],  # noqa: B006 - Typer makes a new list for each call
    pool: options.PoolName = "",
    strict: Strict = False,
    output: Annotated[PlanOutput, typer.Option("--output", "-o", help="Form.")] = PlanOutput.TEXT,
    state_dir: options.StateDir = None,
    node_name: options.NodeName = "",
    secrets_dir: options.SecretsDir = None,
) -> int:
    """Print what apply would do, and do nothing.

    Nothing is changed on the host nor in the store.
    Without files the plan is for what the store holds: how the host differs from it.
    Ends with 0 when nothing is to be done, 2 when something is, 1 for an error or a refusal.

    \b
    Examples:
      poolkeeper plan -f pools.yaml
      poolkeeper plan -f pools.yaml -o json
      poolkeeper plan
    """
    from controller.cli import previewing

    given = [*files, *(paths or ())]
    where = _session(state_dir, node_name, secrets_dir)
    return previewing.plan(where, given, pool=pool, strict=strict, output=output)


@app.command()
def get(
    *,
    words: Words,
    output: Annotated[Output, typer.Option("--output", "-o", help="Form.")] = Output.TABLE,
    namespace: options.Namespace = "default",
    all_namespaces: options.AllNamespaces = False,
    state_dir: options.StateDir = None,
) -> int:
    """Print resources and their state.

    With "all" for the kind, those of all kinds. -o json and -o yaml print objects as a Kubernetes
    API server would, -o xml as libvirt would.

    \b
    Examples:
      poolkeeper get storagepools
      poolkeeper get spool,svol -A -o wide
      poolkeeper get svol web-1 -o json
      poolkeeper get spool images -o xml
    """
    from controller.cli import showing

    return showing.get(
        _session(state_dir), words, output=output, namespace=namespace, everywhere=all_namespaces
    )


@app.command()
def describe(
    *, words: Words, namespace: options.Namespace = "default", state_dir: options.StateDir = None
) -> int:
    """Print all about a resource.

    Its spec, status, conditions, drift and events, and steps that were not ended.

    \b
    Examples:
      poolkeeper describe spool images
      poolkeeper describe svol/web-1 -n production
    """
    from controller.cli import describing

    return describing.describe(_session(state_dir), words, namespace=namespace)


@app.command()
def delete(
    *,
    words: OptionalWords = None,
    files: options.Files = [],  # noqa: B006 - Typer makes a new list for each call
    namespace: options.Namespace = "default",
    pool: options.PoolName = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return when they are gone.")] = False,
    timeout: options.Timeout = "60s",  # type: ignore[assignment] # goes through the parser
    ignore_not_found: Annotated[
        bool, typer.Option("--ignore-not-found", help="What is not there is deleted already.")
    ] = False,
    state_dir: options.StateDir = None,
    node_name: options.NodeName = "",
    secrets_dir: options.SecretsDir = None,
) -> int:
    """Delete resources, and storage where so declared.

    Their deletionPolicy says what becomes of the storage. The default, Retain, leaves all data
    where it is.

    \b
    Examples:
      poolkeeper delete svol web-1
      poolkeeper delete svol/web-1 spool/images --wait
      poolkeeper delete -f volumes/
    """
    from controller.cli import applying

    return applying.delete(
        _session(state_dir, node_name, secrets_dir),
        words or [],
        files,
        namespace=namespace,
        pool=pool,
        wait=wait,
        ignore_missing=ignore_not_found,
        timeout=timeout,
    )


@app.command()
def wait(
    *,
    words: Words,
    condition: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="WHAT",
            help="condition=TYPE, condition=TYPE=STATUS, or delete.",
        ),
    ] = "condition=Ready",
    timeout: options.Timeout = "60s",  # type: ignore[assignment] # goes through the parser
    namespace: options.Namespace = "default",
    state_dir: options.StateDir = None,
) -> int:
    """Wait until resources are Ready, or gone.

    Any other condition can be waited for too. Ends with 0 when they all are, 1 when one failed or
    stalled, 3 when time ran out.

    \b
    Examples:
      poolkeeper wait spool images
      poolkeeper wait svol/web-1 svol/web-2 --for condition=InSync --timeout 5m
      poolkeeper wait svol web-1 --for delete
    """
    from controller.cli import applying

    return applying.wait(
        _session(state_dir), words, condition=condition, namespace=namespace, timeout=timeout
    )


@app.command()
def events(
    *,
    words: OptionalWords = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until interrupted.")] = False,
    output: Annotated[EventOutput, typer.Option("--output", "-o", help="Form.")] = (
        EventOutput.TABLE
    ),
    namespace: options.Namespace = "default",
    state_dir: options.StateDir = None,
) -> int:
    """Print what happened, oldest first.

    \b
    Examples:
      poolkeeper events
      poolkeeper events svol web-1
      poolkeeper events --watch
    """
    from controller.cli import showing

    return showing.events(
        _session(state_dir), words or [], namespace=namespace, watch=watch, output=output
    )


@app.command()
def lookup(
    *,
    path: Annotated[str, typer.Option("--path", help="Path of a volume.")] = "",
    key: Annotated[str, typer.Option("--key", help="Key of a volume.")] = "",
    uuid: Annotated[str, typer.Option("--uuid", help="UUID of a pool.")] = "",
    target_path: Annotated[str, typer.Option("--target-path", help="Target of a pool.")] = "",
    output: Annotated[Output, typer.Option("--output", "-o", help="Form.")] = Output.TABLE,
    state_dir: options.StateDir = None,
) -> int:
    """Print what a path, a key or a UUID belongs to.

    A volume that nobody declares is found too, as its pool and its name. Ends with 1 when nothing
    matches.

    \b
    Examples:
      poolkeeper lookup --path /srv/images/web-1.qcow2
      poolkeeper lookup --target-path /srv/images -o json
    """
    from controller.cli import showing

    given = [value for value in (path, key, uuid, target_path) if value]
    if len(given) != 1:
        raise typer.BadParameter("Give one of --path, --key, --uuid and --target-path.")
    query = showing.Query(path=path, key=key, uuid=uuid, target_path=target_path)
    return showing.lookup(_session(state_dir), query, output=output)


File = Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for standard input.")]


@app.command()
def xml(file: File, pool: options.PoolFile = None) -> int:
    """Print a file as libvirt's normalised XML.

    \b
    Examples:
      poolkeeper xml pool.xml
      poolkeeper xml volume.xml --pool pool.xml
      poolkeeper xml volumes.yaml
    """
    from controller.cli import converting

    return converting.xml(file, pool=pool)


@app.command()
def convert(
    file: File,
    to: Annotated[Format, typer.Option("--to", help="Form to convert to.")],
    pool: options.PoolFile = None,
) -> int:
    """Convert between libvirt's XML and manifests.

    What libvirt's XML has no place for stands in an element of its own, which libvirt ignores, so
    that it comes back unchanged.

    \b
    Examples:
      poolkeeper convert pool.xml --to yaml
      poolkeeper convert volumes.yaml --to xml --pool pool.yaml
      virsh pool-dumpxml images | poolkeeper convert - --to yaml
    """
    from controller.cli import converting

    return converting.convert(file, to=to, pool=pool)


@app.command()
def capabilities(
    output: Annotated[CapabilityOutput, typer.Option("--output", "-o", help="Form.")] = (
        CapabilityOutput.XML
    ),
) -> int:
    """Print pool types, formats, and what this host serves.

    The table says of each type that can't be served what is missing.

    \b
    Examples:
      poolkeeper capabilities
      poolkeeper capabilities -o table
    """
    from controller.cli import finding

    return finding.capabilities(output)


@app.command(name="find-sources")
def find_sources(
    *,
    type: Annotated[str, typer.Argument(metavar="TYPE", help="A pool type, such as netfs.")],
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="NAME", show_default=False, help="Server to ask; default: this host."
        ),
    ] = "",
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=1, max=65535, metavar="N", show_default=False, help="TCP port of --host."
        ),
    ] = None,
    initiator: Annotated[
        str,
        typer.Option(
            "--initiator", metavar="IQN", show_default=False, help="For iSCSI: who asks the server."
        ),
    ] = "",
    output: Annotated[CapabilityOutput, typer.Option("--output", "-o", help="Form.")] = (
        CapabilityOutput.TABLE
    ),
    state_dir: options.StateDir = None,
) -> int:
    """Print what pools of a type could stand on.

    A server is asked, or this host is looked at; nothing is changed. -o json prints what a
    manifest has under the type's name, -o xml libvirt's list of sources.

    \b
    Examples:
      poolkeeper find-sources logical
      poolkeeper find-sources netfs --host nfs.example.org
      poolkeeper find-sources iscsi --host 192.0.2.7 -o xml
    """
    from controller.cli import finding

    if (port or initiator) and not host:
        raise typer.BadParameter("--port and --initiator belong to --host.")
    query = finding.query(type, host=host, port=port, initiator=initiator)
    return finding.find_sources(_session(state_dir), type, query, output=output)


@app.command(name="import-libvirt")
def import_libvirt(
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            show_default=False,
            help="Where the definitions are; default: /etc/libvirt/storage for root, else those "
            "of your own session.",
        ),
    ] = None,
) -> int:
    """Print the pools of libvirt as manifests.

    The files of its definitions are read; libvirt itself is not asked.

    \b
    Examples:
      poolkeeper import-libvirt > pools.yaml
      poolkeeper plan -f pools.yaml
    """
    from controller.cli import converting

    return converting.import_libvirt(directory)


@app.command()
def crds(
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", show_default=False, help="Write files here."),
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option(
            "--docs", metavar="DIR", show_default=False, help="Write the reference of fields here."
        ),
    ] = None,
) -> int:
    """Print or write the CustomResourceDefinitions.

    \b
    Examples:
      poolkeeper crds | kubectl apply -f -
      poolkeeper crds --output crds --docs docs
    """
    from controller.cli import converting

    return converting.crds(output, docs)


@app.command()
def run(
    *,
    directories: Annotated[
        list[Path],
        typer.Option(
            "--directory",
            metavar="DIR",
            show_default=False,
            help="Follow this folder of manifests; may be repeated.",
        ),
    ] = [],  # noqa: B006 - Typer makes a new list for each call
    git: Annotated[
        str,
        typer.Option("--git", metavar="URL", show_default=False, help="Follow this repository."),
    ] = "",
    branch: Annotated[
        str, typer.Option("--branch", metavar="B", show_default=False, help="Branch of --git.")
    ] = "",
    path: Annotated[
        str,
        typer.Option(
            "--path", metavar="SUBDIR", show_default=False, help="Folder in --git to follow."
        ),
    ] = "",
    interval: Annotated[
        float,
        typer.Option(
            "--git-interval", parser=options.seconds, metavar="TIME", help="Between fetches."
        ),
    ] = "60s",  # type: ignore[assignment] # goes through the parser
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete what a source no longer declares.")
    ] = False,
    prune_limit: Annotated[
        int, typer.Option("--prune-limit", min=0, metavar="N", help="At most so many at once.")
    ] = 10,
    prune_percent: Annotated[
        float,
        typer.Option(
            "--prune-percent",
            min=0,
            max=100,
            metavar="P",
            help="And at most this part of what the source declared.",
        ),
    ] = 30,
    listen: options.Listen = "",
    data_listen: options.DataListen = "",
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    data_url: options.DataUrl = "",
    log_level: Annotated[LogLevel, typer.Option("--log-level", help="What is logged.")] = (
        LogLevel.INFO
    ),
    state_dir: options.StateDir = None,
    node_name: options.NodeName = "",
    secrets_dir: options.SecretsDir = None,
) -> int:
    """Keep the pools of this node, as the agent.

    It follows manifests, corrects drift and reports state, until SIGTERM or SIGINT. Under systemd
    (Type=notify) it says when it is ready.

    \b
    Examples:
      poolkeeper run --directory /etc/poolkeeper
      poolkeeper run --git https://git.example.org/storage.git --branch main --path hosts/hv-01
    """
    from controller.cli import running
    from controller.sources.pruning import Threshold

    threshold = Threshold(count=prune_limit, percent=prune_percent) if prune else None
    repository = running.Repository(url=git, branch=branch, path=path, interval=interval)
    return running.run(
        _session(state_dir, node_name, secrets_dir),
        directories,
        repository,
        pruning=threshold,
        level=log_level.value,
        listen=options.address(listen),
        data=options.data_side(data_listen, tls_cert, tls_key, data_url),
    )


@app.command()
def operator(
    *,
    listen: options.Listen = "",
    data_listen: options.DataListen = "",
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    data_url: options.DataUrl = "",
    heartbeat: Annotated[
        float,
        typer.Option(
            "--heartbeat",
            envvar="POOLKEEPER_HEARTBEAT",
            parser=options.seconds,
            metavar="TIME",
            help="Between two reports that the node is there.",
        ),
    ] = "30s",  # type: ignore[assignment] # goes through the parser
    silence: Annotated[
        float,
        typer.Option(
            "--silence",
            envvar="POOLKEEPER_SILENCE",
            parser=options.seconds,
            metavar="TIME",
            help="Without a report, after which a node counts as silent. The same on all nodes.",
        ),
    ] = "120s",  # type: ignore[assignment] # goes through the parser
    log_level: Annotated[LogLevel, typer.Option("--log-level", help="What is logged.")] = (
        LogLevel.INFO
    ),
    state_dir: options.StateDir = None,
    node_name: Annotated[
        str,
        typer.Option(
            "--node-name",
            envvar=["POOLKEEPER_NODE_NAME", "NODE_NAME"],
            metavar="NAME",
            show_default=False,
            help="Keep the pools of this node; default: the host's name.",
        ),
    ] = "",
) -> int:
    """Keep the pools of this node, as the operator of a cluster.

    The API server is the one that KUBECONFIG or the pod's service account names.

    \b
    Examples:
      poolkeeper operator
      poolkeeper operator --node-name hv-01 --listen 8080
    """
    from controller.cli import operating
    from controller.nodes import NodeSettings

    return operating.operate(
        _session(state_dir, node_name),
        listen=options.address(listen),
        data=options.data_side(data_listen, tls_cert, tls_key, data_url),
        nodes=NodeSettings(heartbeat=heartbeat, silence=silence),
        level=log_level.value,
    )
