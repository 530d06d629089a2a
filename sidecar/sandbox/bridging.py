"""How bridges are served: connections that go from one loopback to the other, unjudged.

The user has opened them explicitly, port by port.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.protocol import Factory
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.flow import DestinationSource, ListenerKind
from sidecar.interfaces import ISocketFactory
from sidecar.protocols.relaying import Relaying
from sidecar.sandbox.addresses import LOOPBACK
from sidecar.sandbox.serving import serve_inside

if TYPE_CHECKING:
    import socket

    from twisted.internet.interfaces import IAddress

    from sidecar.flow import Flow
    from sidecar.runtime import Runtime
    from sidecar.sandbox.bridges import Bridge, Bridges
    from sidecar.sandbox.handover import Listeners
    from sidecar.upstreams import Upstream

__all__ = ["serve_bridges"]

_REASON = "rule"


def serve_bridges(runtime: Runtime, bridges: Bridges, listeners: Listeners) -> dict[int, Flow]:
    """Serve all bridges of a run.

    Args:
        runtime: Shared with the other listeners.
        bridges: Which.
        listeners: Of the sandbox; those for bridges are ours from here on.

    Returns:
        The flows that are open, by their serial numbers; changes as they come and go.
    """
    flows: dict[int, Flow] = {}
    by_port = {each.port: each for each in bridges.host_ports}
    for sock in listeners.host_ports:
        bridge = by_port[sock.getsockname()[1]]
        upstream = tuple(SocketAddress(host, bridge.target) for host in LOOPBACK)
        factory = _BridgeFactory(runtime, bridge, ListenerKind.HOST_PORT, upstream, flows)
        serve_inside(runtime, sock, factory, intercepted=False)
    return flows


@implementer(ISocketFactory)
class _BridgeFactory(Factory):
    """Relays every connection to one place.

    Args:
        runtime: Shared with the other listeners.
        bridge: Which port it is for.
        kind: What the flows are logged as.
        upstream: Where to.
        flows: Has those that are open.
    """

    noisy = False

    def __init__(
        self,
        runtime: Runtime,
        bridge: Bridge,
        kind: ListenerKind,
        upstream: Upstream | tuple[SocketAddress, ...],
        flows: dict[int, Flow],
    ) -> None:
        self.runtime = runtime
        self.kind = kind
        self._rule = bridge.rule
        self._upstream = upstream
        self._flows = flows

    def buildProtocol(self, addr: IAddress | None) -> None:
        """No: sockets only."""

    def socket_accepted(self, connection: socket.socket, flow: Flow) -> None:
        """Dial and relay (ISocketFactory)."""
        if flow.destination is None:
            flow.destination = SocketAddress.from_kernel(connection.getsockname())
            flow.destination_from = DestinationSource.STATIC
        flow.reason = _REASON
        flow.rule = self._rule
        self._flows[flow.serial] = flow
        ended = partial(self._ended, flow)
        Relaying(self.runtime, connection, flow, self._upstream, None, ended=ended)

    def _ended(self, flow: Flow) -> None:
        del self._flows[flow.serial]
