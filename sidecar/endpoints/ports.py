"""Serving a listening port of Twisted's the way our own are served."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from twisted.internet import tcp

from sidecar.linux.sockopt import keep_alive, set_mark
from sidecar.listening import FlowPort

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort, IProtocolFactory

    from sidecar.runtime import Runtime

__all__ = ["adopt_port", "prepare"]


def adopt_port(runtime: Runtime, port: IListeningPort, factory: IProtocolFactory) -> IListeningPort:
    """Serve a listening port of Twisted's the way our own are served.

    A plain TCP port accepts through Twisted's transports, several times slower than
    sockets handed over, so it is left to sleep while we accept on its socket. Any
    other port (TLS, unix, a wrapped one) stays as it is.

    Args:
        runtime: Shared with the other listeners.
        port: What an endpoint's listen() fired with; stopped with its replacement.
        factory: What it was made to listen with.

    Returns:
        The port that serves, which may be the one given.
    """
    if type(port) is not tcp.Port or port.factory is not factory:
        return port
    sock = socket.socket(fileno=socket.dup(port.fileno()))
    sock.setblocking(False)
    prepare(sock, runtime)
    port.stopReading()
    replacement = FlowPort(runtime, sock, factory, None, port)
    replacement.startListening()
    return replacement


def prepare(sock: socket.socket, runtime: Runtime) -> None:
    """Set what the accepted sockets inherit: a system call once instead of each time."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(sock, runtime.limits.keepalive)
    if runtime.mark is not None:
        # Where it isn't permitted the rules know us by our uid alone; the dialer says so.
        with suppress(PermissionError):
            set_mark(sock, runtime.mark)
