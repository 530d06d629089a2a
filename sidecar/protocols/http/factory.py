"""The HTTP proxy as a factory: for Twisted's endpoints, and for listeners of our own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import Factory
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.config import HttpLimits
from sidecar.flow import FlowEnd, ListenerKind
from sidecar.interfaces import IManyFlowsFactory
from sidecar.protocols.http.downstream import Downstream
from sidecar.protocols.http.routing import Forward
from sidecar.protocols.http.shared import Shared
from sidecar.relay.stream import SocketTransport

if TYPE_CHECKING:
    import socket

    from twisted.internet.interfaces import IAddress

    from sidecar.flow import Flow
    from sidecar.names.resolving import INameResolver
    from sidecar.protocols.http.auth import Authenticator
    from sidecar.protocols.http.connection import Connection
    from sidecar.protocols.judge import Judge
    from sidecar.runtime import Runtime
    from sidecar.upstream_proxy import UpstreamProxy

__all__ = ["HTTPProxyFactory"]

_LIMITS = HttpLimits()


@implementer(IManyFlowsFactory, IProtocolNegotiationFactory)
class HTTPProxyFactory(Factory):
    """An HTTP proxy: requests in absolute form, and CONNECT.

    Behind a ``tcp:`` endpoint of ours it takes sockets; behind any other of Twisted's it
    builds protocols.

    Args:
        runtime: Shared with every other listener of the process.
        judge: Who says whether a request may.
        resolver: Asked for the names.
        authenticator: Who says which users may; None for all.
        upstream_proxy: The proxy that destinations are reached through; None for none.
        limits: What keeps it bounded.
    """

    noisy = False
    kind = ListenerKind.HTTP_PROXY

    def __init__(
        self,
        runtime: Runtime,
        judge: Judge,
        resolver: INameResolver,
        *,
        authenticator: Authenticator | None = None,
        upstream_proxy: UpstreamProxy | None = None,
        limits: HttpLimits = _LIMITS,
    ) -> None:
        self.runtime = runtime
        self.shared = Shared(
            runtime,
            judge,
            resolver,
            authenticator=authenticator,
            upstream_proxy=upstream_proxy,
            limits=limits,
        )
        self._routing = Forward(judge, resolver)
        self._open_by_client: dict[str, int] = {}

    def buildProtocol(self, addr: IAddress | None) -> Downstream:  # type: ignore[override]
        """Serve any endpoint of Twisted's: TLS, unix, wrapped and adopted ones."""
        source = None
        if isinstance(addr, (IPv4Address, IPv6Address)):
            source = SocketAddress.from_kernel((addr.host, addr.port))
        return self._serve(source, None)

    def acceptableProtocols(self) -> list[bytes]:
        """What is spoken in TLS: clients that offer no overlap would be turned away (ALPN)."""
        return [b"http/1.1", b"http/1.0"]

    def socket_accepted(self, connection: socket.socket, flow: Flow) -> None:
        """Serve a socket of our own listeners' (IManyFlowsFactory)."""
        downstream = self._serve(flow.source, flow)
        SocketTransport(self.runtime.poller, connection, downstream, peer=flow.source)

    def close(self) -> None:
        """Let go of idle connections; to be called when nobody is served any more."""
        self.shared.close()

    def _serve(self, source: SocketAddress | None, connection: Flow | None) -> Downstream:
        limits = self.shared.limits
        host = "" if source is None else source.host
        mine = self._open_by_client.get(host, 0)
        refused = limits.client_connections is not None and mine >= limits.client_connections
        self._open_by_client[host] = mine + 1
        closed = partial(self._closed, host, connection)
        return Downstream(
            self.shared, self._routing, source, closed, refused=refused, connection=connection
        )

    def _closed(self, host: str, connection: Flow | None, _: Connection) -> None:
        left = self._open_by_client[host] - 1
        if left:
            self._open_by_client[host] = left
        else:
            del self._open_by_client[host]
        if connection is not None:
            connection.finish(FlowEnd.CLOSED)
