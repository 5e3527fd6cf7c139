"""Telling the service manager how far the agent is (sd_notify(3)), where there is one."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> bool:
    """Send ``READY=1``, ``STOPPING=1`` or ``STATUS=...``; false where nobody listens.

    The protocol is one datagram to the socket that ``NOTIFY_SOCKET`` names; a leading ``@`` stands
    for the abstract namespace.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(state.encode())
    return True
