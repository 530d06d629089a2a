"""One connection to an origin server: whose response is being read on it?"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import connectionDone
from zope.interface import implementer

from sidecar.relay.stream import ShutDown, SocketTransport
from sidecar.wire.http1.messages import HttpMessageError
from sidecar.wire.http1.reading import ResponseReader

if TYPE_CHECKING:
    import socket

    from twisted.python.failure import Failure

    from sidecar.addresses import SocketAddress
    from sidecar.protocols.http.downstream import Downstream
    from sidecar.protocols.http.exchange import Exchange
    from sidecar.protocols.http.shared import Shared
    from sidecar.upstream_proxy import UpstreamProxy

__all__ = ["Upstream"]


@implementer(IProtocol, IHalfCloseableProtocol)
class Upstream:
    """The protocol of one connection to an origin server, or to the next proxy.

    Args:
        shared: What all connections of the factory share.
        sock: Connected; ours from here on.
        address: What is connected.
        key: What the pool knows it by: its address, or the next proxy.

    Attributes:
        reused: Whether it has served a request before.
        heard: Whether any byte came since the request was sent.
        owner: The one client that it may serve; None for all. Some servers take a
            user's name for the connection's (NTLM, Negotiate: RFC 4559 §6).
        transport: Its transport.
    """

    __slots__ = (
        "_ends",
        "_exchange",
        "_reader",
        "_shared",
        "address",
        "heard",
        "key",
        "owner",
        "reused",
        "transport",
    )

    transport: SocketTransport

    def __init__(
        self,
        shared: Shared,
        sock: socket.socket,
        address: SocketAddress | None,
        key: SocketAddress | UpstreamProxy | None,
    ) -> None:
        self._shared = shared
        self._exchange: Exchange | None = None
        self._reader = ResponseReader(
            max_head_bytes=shared.limits.head_bytes, max_fields=shared.limits.head_fields
        )
        self.address = address
        self.key = key
        self.reused = False
        self.heard = False
        self.owner: Downstream | None = None
        self._ends = shared.runtime.guard.track(sock, address, self)
        # An origin that answers early and resets has said why.
        SocketTransport(shared.runtime.poller, sock, self, peer=address, last_words=True)

    def looped(self) -> None:
        """The connection came back to one of our own listeners."""
        exchange = self._exchange
        self._forget()
        self.abort()
        if exchange is not None:
            exchange.looped()

    # The exchange's side

    def send(self, exchange: Exchange, method: bytes, data: bytes) -> None:
        """Begin an exchange.

        Args:
            exchange: Gets the response's events, or learns of the connection's end.
            method: The request's.
            data: The request, as much as there is of it.
        """
        self._exchange = exchange
        self.heard = False
        self._reader.expect(method)
        self.transport.write(data)

    def release(self) -> None:
        """The exchange is over, and the connection as good as before."""
        self._exchange = None
        self.reused = True
        if not self.transport.connected or self._reader.started or self._reader.error is not None:
            self.close()
        elif self.owner is None:
            self._shared.pool.put(self)
        else:
            self.owner.pinned = self

    def close(self) -> None:
        """Nothing is under way, and nothing more shall be."""
        self._exchange = None
        self._forget()
        self.transport.loseConnection()

    def _forget(self) -> None:
        """Be nobody's idle connection."""
        if self.owner is None:
            self._shared.pool.discard(self)
        elif self.owner.pinned is self:
            self.owner.pinned = None

    def abort(self) -> None:
        """What is under way is over, and the connection with it."""
        self._exchange = None
        self.transport.abortConnection()

    def detach(self) -> tuple[bytes, bytes, socket.socket] | None:
        """Give up the connection: another protocol is spoken from here on.

        Returns:
            What was read behind the response, what is unwritten, and the socket; None
            if the connection is lost.
        """
        self._exchange = None
        transport = self.transport
        if not transport.connected:
            return None
        self._shared.runtime.guard.forget(self._ends)
        transport.unregisterProducer()
        unwritten = transport.take_unwritten()
        return self._reader.rest(), unwritten, transport.detach()

    # Protocol

    def makeConnection(self, transport: object) -> None:
        """Here is the transport."""
        self.transport = cast("SocketTransport", transport)
        self.connectionMade()

    def connectionMade(self) -> None:
        """Connected, which it was before."""

    def dataReceived(self, data: bytes) -> None:
        """A response, or a part of one; or what nobody asked for."""
        exchange = self._exchange
        if exchange is None:
            self.close()
            return
        self.heard = True
        reader = self._reader
        try:
            events = reader.feed(data)
        except HttpMessageError as error:
            exchange.response_failed(error)
            return
        if not events:
            return
        # Nobody is told 200 for what is known to be wrong already.
        if reader.error is None or exchange.answering:
            exchange.respond(events)
        if reader.error is not None and self._exchange is exchange:
            exchange.response_failed(reader.error)

    def readConnectionLost(self) -> None:
        """The server has sent its last byte."""
        exchange = self._exchange
        if exchange is None:
            self.close()
            return
        try:
            events = self._reader.eof()
        except HttpMessageError as error:
            exchange.upstream_lost(error)
            return
        exchange.respond(events)

    def writeConnectionLost(self) -> None:
        """We never end a request's connection by halves."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Gone."""
        self._forget()
        self._shared.runtime.guard.forget(self._ends)
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if reason.check(ShutDown) is not None:
            exchange.shut_down()
        else:
            exchange.upstream_lost(None)
