"""Relaying TCP connections to where they wanted to go, or to one fixed place."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.flow import DestinationSource, Flow, FlowEnd, ListenerKind
from sidecar.interfaces import ISocketFactory
from sidecar.protocols.judging import Allowed, Judge, Judging
from sidecar.protocols.relaying import Relaying
from sidecar.relay import RelayProtocol
from sidecar.relay.resets import reset

if TYPE_CHECKING:
    import socket

    from twisted.internet.interfaces import IAddress

    from sidecar.dialing import Source
    from sidecar.protocols.http.intercepted import InterceptedHTTP
    from sidecar.relay import Side
    from sidecar.runtime import Runtime
    from sidecar.upstreams import Upstream

__all__ = ["StaticRelayFactory", "TransparentRelayFactory"]


@implementer(ISocketFactory)
class StaticRelayFactory(Factory):
    """Relays every connection to the same place.

    The place is the operator's choice: no policy is asked.

    Args:
        runtime: Shared with every other listener of the process.
        upstream: Where to; a host name is resolved for every connection.
        kind: What the flows are logged as.
        source: Where from; None leaves it to the kernel.
    """

    noisy = False

    def __init__(
        self,
        runtime: Runtime,
        upstream: Upstream,
        *,
        kind: ListenerKind = ListenerKind.FORWARD,
        source: Source | None = None,
    ) -> None:
        self.runtime = runtime
        self.kind = kind
        self._source = source
        self._upstream = upstream
        self._address = upstream if isinstance(upstream, SocketAddress) else None

    def socket_accepted(self, connection: socket.socket, flow: Flow) -> None:
        """Dial and relay (ISocketFactory)."""
        self._relay(connection, flow)

    def buildProtocol(self, addr: IAddress | None) -> RelayProtocol:  # noqa: ARG002
        """Serve any other endpoint of Twisted's: TLS, unix, wrapped and adopted ones."""
        return RelayProtocol(self._made)

    def _made(self, protocol: RelayProtocol) -> None:
        source = _address(protocol.stream.getPeer())
        self._relay(protocol, Flow(self.kind, source, None, None, self.runtime.observer))

    def _relay(self, side: Side, flow: Flow) -> None:
        flow.destination = self._address
        flow.destination_from = DestinationSource.STATIC
        Relaying(self.runtime, side, flow, self._upstream, self._source)


@implementer(ISocketFactory)
class TransparentRelayFactory(Factory):
    """Relays every connection to its original destination, if it may.

    For `TransparentServerEndpoint` alone.

    Args:
        runtime: Shared with every other listener of the process.
        kind: Whether the connections leave this host or arrive for it.
        source: Where from; None leaves it to the kernel.
        judge: Who says whether it may; None allows everything.
        http: Serves what speaks HTTP, where names matter to the judge; None relays it
            once its first request is allowed.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        runtime: Runtime,
        *,
        kind: ListenerKind = ListenerKind.OUTBOUND,
        source: Source | None = None,
        judge: Judge | None = None,
        http: InterceptedHTTP | None = None,
    ) -> None:
        self.runtime = runtime
        self.kind = kind
        self._source = source
        self._judge = judge
        self._http = http

    def buildProtocol(self, addr: IAddress | None) -> None:  # noqa: ARG002
        """Refuse: no other endpoint of Twisted's knows where a connection wanted to go."""
        self._log.error("transparent relaying needs a transparent: endpoint; connection refused")

    def socket_accepted(self, connection: socket.socket, flow: Flow) -> None:
        """Judge, dial and relay (ISocketFactory)."""
        if flow.destination is None:
            reset(connection)
            flow.deny("unknown_destination", FlowEnd.DENIED)
        elif self._judge is None:
            Relaying(self.runtime, connection, flow, flow.destination, self._source)
        elif self._http is not None:
            self._http.judge(connection, flow, partial(self._allowed, self._judge))
        else:
            judge = self._judge
            Judging(self.runtime, judge, connection, flow, partial(self._allowed, judge))

    def _allowed(self, judge: Judge, allowed: Allowed) -> None:
        relaying = Relaying(
            self.runtime,
            allowed.connection,
            allowed.flow,
            allowed.addresses,
            self._source,
            allowed.data,
            connected=allowed.upstream,
            ended=partial(judge.ended, allowed.flow),
            words=allowed.words,
        )
        judge.relayed(allowed.flow, relaying)


def _address(address: IAddress) -> SocketAddress | None:
    """A Twisted address as ours; None for those that are no IP addresses (unix)."""
    if isinstance(address, (IPv4Address, IPv6Address)):
        return SocketAddress.from_kernel((address.host, address.port))
    return None
