"""How bridges are served: connections that go from one loopback to the other, unjudged.

The user has opened them explicitly, port by port.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.protocol import Factory
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.endpoints.ports import prepare
from sidecar.flow import DestinationSource, ListenerKind
from sidecar.interfaces import ISocketFactory
from sidecar.listening import FlowPort
from sidecar.protocols.relaying import Relaying
from sidecar.sandbox.addresses import LOOPBACK
from sidecar.sandbox.reaching import InsideUpstream
from sidecar.sandbox.serving import serve_inside

if TYPE_CHECKING:
    import socket

    from twisted.internet.interfaces import IAddress

    from sidecar.flow import Flow
    from sidecar.runtime import Runtime
    from sidecar.sandbox.bridges import Bridge, Bridges
    from sidecar.sandbox.handover import Listeners
    from sidecar.sandbox.sockets import SocketsInside
    from sidecar.upstreams import Upstream

__all__ = ["Bridging"]

_REASON = "rule"


class Bridging:
    """All bridges of a run, served.

    Args:
        runtime: Shared with the other listeners.
        bridges: Which; listened on where that is on the host.
        listeners: Of the sandbox; those for bridges are ours from here on.
        sockets: Makes others there.

    Attributes:
        flows: Those that are open, by their serial numbers.
        sockets: As given; to be told what comes of the channel.
    """

    def __init__(
        self, runtime: Runtime, bridges: Bridges, listeners: Listeners, sockets: SocketsInside
    ) -> None:
        self.flows: dict[int, Flow] = {}
        self.sockets = sockets
        self._published: list[FlowPort] = []
        by_port = {each.port: each for each in bridges.host_ports}
        for sock in listeners.host_ports:
            bridge = by_port[sock.getsockname()[1]]
            upstream = tuple(SocketAddress(host, bridge.target) for host in LOOPBACK)
            factory = _BridgeFactory(runtime, bridge, ListenerKind.HOST_PORT, upstream, self.flows)
            serve_inside(runtime, sock, factory, intercepted=False)
        for bridge, sock in bridges.listeners:
            inside = InsideUpstream(runtime, sockets, bridge.target)
            factory = _BridgeFactory(runtime, bridge, ListenerKind.PUBLISH, inside, self.flows)
            prepare(sock, runtime)
            # With no finder: who connects is no process inside.
            port = FlowPort(runtime, sock, factory, None)
            port.startListening()
            self._published.append(port)

    def unpublish(self) -> None:
        """There is nobody inside any more: listen no longer on the host."""
        for port in self._published:
            port.stopListening()


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
