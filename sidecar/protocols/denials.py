"""How a client is told that its connection was refused, in the language it speaks."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from sidecar.flow import Protocol
from sidecar.relay.resets import reset

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ACCESS_DENIED", "refuse"]

ACCESS_DENIED = bytes((21, 3, 3, 0, 2, 2, 49))
"""A fatal access_denied alert (RFC 8446 §6.2) in a TLS 1.2 record, which every version
understands before a server has chosen one."""

# Bytes. Read and dropped before closing: bytes left unread would turn the close into
# a reset, which can overtake the answer.
_DRAIN = 1 << 16


def refuse(
    connection: socket.socket,
    protocol: Protocol,
    explanation: str,
    linger: Callable[[socket.socket], None] | None = None,
) -> None:
    """Tell the client, and close.

    Args:
        connection: Non-blocking; closed here.
        protocol: What the client speaks: TLS gets an alert, HTTP a 403, anything else
            a reset.
        explanation: One line of ASCII: why, and what would allow it.
        linger: Gets the connection of a client that may have more to say than it can
            be told over; closes it. None closes at once.
    """
    if protocol is Protocol.TCP:
        reset(connection)
        return
    answer = ACCESS_DENIED if protocol is Protocol.TLS else _forbidden(explanation)
    ended = False
    with suppress(OSError):
        ended = not connection.recv(_DRAIN)
    try:
        # A few hundred bytes into an empty send buffer: they fit.
        connection.send(answer)
        if linger is not None and not ended:
            connection.shutdown(socket.SHUT_WR)
            linger(connection)
            return
    except OSError:
        # It has gone; so nobody listens.
        pass
    connection.close()


def _forbidden(explanation: str) -> bytes:
    body = explanation.encode("ascii", "replace") + b"\n"
    head = (
        "HTTP/1.1 403 Forbidden\r\n"
        "Content-Type: text/plain; charset=us-ascii\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
