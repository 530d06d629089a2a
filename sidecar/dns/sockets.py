"""The sockets of a name server that every address leads to, made inside of the namespace.

Loaded where Twisted is not. An answer must come from the address and port that were asked,
and who answers has no capability in the namespace and can't make another socket there; so
the UDP socket is bound to port 53 itself, and tells and takes addresses with each datagram.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

from sidecar.linux.pktinfo import receive_destinations
from sidecar.linux.sockopt import set_transparent

__all__ = ["PORT", "listen_tcp", "listen_udp"]

PORT = 53

# Connections that wait to be accepted; programs ask over TCP seldom.
_BACKLOG = 128
# Bytes. A thousand questions at once, each of which takes some 800 bytes of it.
_BUFFER = 1 << 20


def listen_udp(port: int = PORT) -> list[socket.socket]:
    """Make the sockets for datagrams, in the namespace of the calling thread.

    Args:
        port: 53; another one for tests.

    Returns:
        Non-blocking ones, together of every family that the kernel has.

    Raises:
        OSError: No capability there (EPERM, EACCES), or somebody else has the port.
    """
    return [_listen(socket.SOCK_DGRAM, port)]


def listen_tcp(port: int = PORT) -> list[socket.socket]:
    """Make the listening sockets for streams; otherwise as `listen_udp`."""
    return [_listen(socket.SOCK_STREAM, port)]


def _listen(kind: socket.SocketKind, port: int) -> socket.socket:
    try:
        made = socket.socket(socket.AF_INET6, kind)
    except OSError:
        # A kernel without IPv6.
        made = socket.socket(socket.AF_INET, kind)
    with ExitStack() as stack:
        stack.enter_context(made)
        made.setblocking(False)
        set_transparent(made)
        is_ipv6 = made.family == socket.AF_INET6
        if is_ipv6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if kind == socket.SOCK_DGRAM:
            receive_destinations(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("::" if is_ipv6 else "0.0.0.0", port))  # noqa: S104 - of a namespace
        if kind == socket.SOCK_STREAM:
            made.listen(_BACKLOG)
        stack.pop_all()
    return made
