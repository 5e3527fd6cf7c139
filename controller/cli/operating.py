"""``operator``: the agent of a cluster's node as a process."""

from __future__ import annotations

import logging
import os

import typer

from backends import errors
from controller.cli import running
from controller.cli.options import DataSide
from controller.cli.session import Session
from controller.nodes import NodeSettings


def operate(
    session: Session,
    *,
    listen: tuple[str, int] | None,
    data: DataSide,
    nodes: NodeSettings,
    level: str,
) -> int:
    """Keep the pools that the API server declares for this node, until a signal comes."""
    try:
        nodes.check()
    except errors.InvalidSpec as error:
        raise typer.BadParameter(str(error)) from None
    from controller.cluster import operator  # noqa: PLC0415 - kopf is wanted here alone

    running.start_logging(level)
    for name in ("asyncio", "httpx2", "httpcore2", "kopf"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if operator.run(session, listen=listen, data=data, nodes=nodes):
        return 0
    logging.shutdown()
    os._exit(1)  # a thread is stuck in the kernel; leaving in the ordinary way would wait for it
