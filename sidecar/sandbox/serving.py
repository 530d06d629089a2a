"""How the listeners of another network namespace are served like our own."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

from sidecar.addresses import SocketAddress
from sidecar.destinations import (
    DestinationFinder,
    InterceptMode,
    NotIntercepted,
    OriginalDestination,
)
from sidecar.endpoints.ports import prepare
from sidecar.flow import DestinationSource
from sidecar.listening import FlowPort
from sidecar.loops import LoopGuard
from sidecar.sandbox.addresses import OWN

if TYPE_CHECKING:
    import socket

    from twisted.internet.interfaces import IProtocolFactory

    from sidecar.runtime import Runtime

__all__ = ["serve_inside"]


def serve_inside(
    runtime: Runtime,
    sock: socket.socket,
    factory: IProtocolFactory,
    *,
    intercepted: bool = True,
) -> FlowPort:
    """Serve a listener that is in the sandbox's network namespace.

    Args:
        runtime: Shared with the other listeners.
        sock: Listening, non-blocking; the port's from here on.
        factory: Whom the connections are for.
        intercepted: Whether rules bring the connections; otherwise programs inside dial
            the listener itself.

    Returns:
        The port, which accepts already.
    """
    prepare(sock, runtime)
    # Nothing that we dial can come back to it, and an address inside that equals one of
    # our own is another's: what the guard knows is of our namespace.
    apart = replace(runtime, guard=LoopGuard())
    finder = _Finder(sock.getsockname()[1]) if intercepted else _Dialled()
    port = FlowPort(apart, sock, factory, finder)
    port.startListening()
    return port


class _Finder(DestinationFinder):
    """Knows the original destinations inside, where every address is local.

    Args:
        port: The listener's.
    """

    def __init__(self, port: int) -> None:
        super().__init__(InterceptMode.TPROXY, port, transparent=True)

    def find(
        self,
        connection: socket.socket,
        source: SocketAddress,  # noqa: ARG002 - of no interest here
    ) -> OriginalDestination | NotIntercepted:
        """Ask the kernel."""
        local = SocketAddress.from_kernel(connection.getsockname())
        # Only at the listener's own port does what is the sandbox's own come here.
        if local.port == self.port and any(ip_address(local.host) in each for each in OWN):
            return NotIntercepted(local)
        return OriginalDestination(local, DestinationSource.TPROXY)


class _Dialled(DestinationFinder):
    """Knows where connections were to go that were meant for the listener."""

    def __init__(self) -> None:
        super().__init__(InterceptMode.TPROXY, 0, transparent=False)

    def find(
        self,
        connection: socket.socket,
        source: SocketAddress,  # noqa: ARG002 - of no interest here
    ) -> OriginalDestination:
        """Ask the kernel."""
        local = SocketAddress.from_kernel(connection.getsockname())
        return OriginalDestination(local, DestinationSource.STATIC)
