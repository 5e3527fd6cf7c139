"""Options that several commands share."""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|)")
_ADDRESS = re.compile(
    r"(?:(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^\s:\[\]]*)):)?(?P<port>[0-9]{1,5})"
)
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


class Output(enum.StrEnum):
    """How objects are printed."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    XML = "xml"
    NAME = "name"


class Format(enum.StrEnum):
    """What ``convert`` makes of a file."""

    YAML = "yaml"
    XML = "xml"


class PlanOutput(enum.StrEnum):
    """How a plan is printed."""

    TEXT = "text"
    JSON = "json"


class EventOutput(enum.StrEnum):
    """How events are printed."""

    TABLE = "table"
    JSON = "json"


class CapabilityOutput(enum.StrEnum):
    """How capabilities are printed."""

    XML = "xml"
    TABLE = "table"
    JSON = "json"


class WipeAlgorithm(enum.StrEnum):
    """Patterns that a wipe writes (``backends.images.wiping.PASSES``)."""

    zero = "zero"
    nnsa = "nnsa"
    dod = "dod"
    bsi = "bsi"
    gutmann = "gutmann"
    schneier = "schneier"
    pfitzner7 = "pfitzner7"
    pfitzner33 = "pfitzner33"
    random = "random"
    trim = "trim"


class LogLevel(enum.StrEnum):
    """What the agent's log holds."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def seconds(text: str | float) -> float:
    """A span of time such as ``90``, ``30s``, ``5m`` or ``1h30m``, in seconds."""
    written = str(text).strip()
    parts = _DURATION.findall(written)
    if not parts or "".join(number + unit for number, unit in parts) != written:
        raise typer.BadParameter(f"{text!r} is not a span of time like 30s, 5m or 1h30m.")
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def size(text: str | int) -> int:
    """A Kubernetes quantity, such as ``512``, ``1Mi`` or ``20Gi``, in bytes."""
    from backends import errors, sizes  # noqa: PLC0415 - help does without

    try:
        return sizes.parse_quantity(str(text))
    except errors.StorageError as error:
        raise typer.BadParameter(str(error)) from None


def address(text: str) -> tuple[str, int] | None:
    """A host, in brackets where it is an IPv6 address, and a port; loopback where only a port is
    given, None for empty text."""
    if not text:
        return None
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise typer.BadParameter(f"{text!r} is not an address like 127.0.0.1:8080 or [::1]:8080.")
    return found["v6"] or found["host"] or "127.0.0.1", int(found["port"])


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSide:
    """Where contents of volumes are served.

    :param listen: host and port; None for nowhere.
    :param url: the same as clients reach it; empty where that is not known.
    """

    listen: tuple[str, int] | None = None
    cert: Path | None = None
    key: Path | None = None
    url: str = ""


def data_side(listen: str, cert: Path | None, key: Path | None, url: str = "") -> DataSide:
    """Refuse what would send tokens over a network for all to read."""
    where = address(listen)
    if where is not None and cert is None and not is_loopback(where[0]):
        raise typer.BadParameter("--data-listen elsewhere than at this host needs --tls-cert.")
    if where is None and (cert or key or url):
        raise typer.BadParameter("--tls-cert, --tls-key and --data-url belong to --data-listen.")
    return DataSide(listen=where, cert=cert, key=key, url=url)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        envvar="POOLKEEPER_STATE_DIR",
        metavar="DIR",
        show_default=False,
        help="Where the state is kept; default /var/lib/poolkeeper for root, else "
        "poolkeeper in the XDG state directory.",
    ),
]
NodeName = Annotated[
    str,
    typer.Option(
        "--node-name",
        envvar="POOLKEEPER_NODE_NAME",
        metavar="NAME",
        show_default=False,
        help="Keep the pools of this node; default: the host's name.",
    ),
]
SecretsDir = Annotated[
    Path | None,
    typer.Option(
        "--secrets-dir",
        envvar="POOLKEEPER_SECRETS_DIR",
        metavar="DIR",
        show_default=False,
        help="Where passphrases and keys are; default: secrets in the state directory.",
    ),
]
Listen = Annotated[
    str,
    typer.Option(
        "--listen",
        envvar="POOLKEEPER_LISTEN",
        metavar="[ADDRESS:]PORT",
        show_default=False,
        help="Serve /healthz, /readyz and /metrics there; without an address, for this host alone. "
        "Off if left out.",
    ),
]
DataListen = Annotated[
    str,
    typer.Option(
        "--data-listen",
        envvar="POOLKEEPER_DATA_LISTEN",
        metavar="[ADDRESS:]PORT",
        show_default=False,
        help="Serve the contents of volumes there, by token; without an address, for this host "
        "alone. Another address needs --tls-cert.",
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        envvar="POOLKEEPER_TLS_CERT",
        metavar="FILE",
        show_default=False,
        help="Certificate, with its chain, of --data-listen: PEM.",
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(
        "--tls-key",
        envvar="POOLKEEPER_TLS_KEY",
        metavar="FILE",
        show_default=False,
        help="Its key; default: in the same file.",
    ),
]
DataUrl = Annotated[
    str,
    typer.Option(
        "--data-url",
        envvar="POOLKEEPER_DATA_URL",
        metavar="URL",
        show_default=False,
        help="How clients reach --data-listen; the node's status shows it.",
    ),
]
Namespace = Annotated[
    str, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace of volumes.")
]
AllNamespaces = Annotated[
    bool, typer.Option("--all-namespaces", "-A", help="Volumes of all namespaces.")
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        parser=seconds,
        metavar="TIME",
        help="How long to wait, like 30s or 5m. A step that was begun is not cut off.",
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Return when all is Ready, failed or late.")]
Files = Annotated[
    list[str],
    typer.Option(
        "--filename",
        "-f",
        metavar="PATH",
        show_default=False,
        help="A file or folder of manifests, or - for standard input; may be repeated.",
    ),
]
PoolName = Annotated[
    str,
    typer.Option(
        "--pool",
        metavar="NAME",
        show_default=False,
        help="The pool of volumes in libvirt's XML that stand in no pool's folder.",
    ),
]
PoolFile = Annotated[
    Path | None,
    typer.Option(
        "--pool",
        metavar="FILE",
        show_default=False,
        help="The pool that a volume is in, which tells its formats: XML or a manifest.",
    ),
]
