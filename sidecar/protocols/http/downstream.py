"""One client's connection: which request is its next, and what if the client is slow or gone?

    WAITING ──head──► EXCHANGING ──answered──► WAITING …
       │                  │  └──told to close──► LINGERING ──► CLOSED
       │                  └──tunnel───► TAKEN
       └──malformed, too slow──► LINGERING

One request at a time: what a client sends ahead is kept, one piece of it, and then waits in
the kernel. Nothing more of a connection is read as a request after anything doubtful.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    ISSLTransport,
)
from twisted.internet.protocol import connectionDone
from zope.interface import implementer

from sidecar.flow import Flow, FlowEnd, Protocol
from sidecar.protocols.http import replies
from sidecar.protocols.http.connection import Connection, State
from sidecar.protocols.http.exchange import Exchange
from sidecar.relay.stream import ShutDown
from sidecar.wire.http1.messages import HttpMessageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from sidecar.addresses import SocketAddress
    from sidecar.protocols.http.replies import Reply
    from sidecar.protocols.http.routing import Routing
    from sidecar.protocols.http.shared import Shared
    from sidecar.relay.protocol import Stream
    from sidecar.wire.http1.messages import RequestHead

__all__ = ["AHEAD", "Downstream"]

AHEAD = 1
"""Why a client isn't read: it sends ahead of its answers."""

# Bytes that a client may go on sending which was answered early.
_LINGER_BYTES = 1 << 24

_WAITING = State.WAITING
_EXCHANGING = State.EXCHANGING
_LINGERING = State.LINGERING
_TAKEN = State.TAKEN
_CLOSED = State.CLOSED


def end_of(reason: Failure) -> FlowEnd:
    """How the flow of a client ends whose connection was lost like that."""
    if reason.check(ShutDown) is not None:
        return FlowEnd.SHUTDOWN
    if reason.check(ConnectionDone, ConnectionLost, ConnectionAborted) is not None:
        return FlowEnd.CLIENT_RESET
    # A bug of ours, or TLS that went wrong.
    return FlowEnd.PROTOCOL_ERROR


@implementer(IProtocol, IHalfCloseableProtocol, IPushProducer)
class Downstream(Connection):
    """The protocol of one client's connection.

    Args:
        shared: What all connections of the factory share.
        routing: Whom requests are for, and whether they may.
        source: The client; None where it has no IP address.
        closed: Called once, when all is over.
        refused: There are too many; the first request is told so.
        connection: What is known of the connection; None for nothing.
    """

    __slots__ = ("_connection_flow", "_head_begun", "_lingered", "_looping", "_refused", "routing")

    def __init__(
        self,
        shared: Shared,
        routing: Routing,
        source: SocketAddress | None,
        closed: Callable[[Connection], None],
        *,
        refused: bool = False,
        connection: Flow | None = None,
    ) -> None:
        super().__init__(shared, source, closed)
        self.routing = routing
        # Costs every request a moment.
        self._connection_flow = None if shared.opening is None else connection
        self._refused = refused
        self._looping = False
        self._head_begun = False
        self._lingered = 0

    # Protocol

    def makeConnection(self, transport: object) -> None:
        """Here is the transport."""
        self.transport = cast("Stream", transport)
        self.connectionMade()

    def connectionMade(self) -> None:
        """Connected: wait for a request."""
        transport = self.transport
        self._half_closes = not ISSLTransport.providedBy(transport)
        self.shared.patrol.add(self)
        transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """A request, or a part of one."""
        state = self._state
        if state is _WAITING:
            if self.congested:
                self._keep(data)
            else:
                self._read(data)
        elif state is _EXCHANGING:
            exchange = self._exchange
            assert exchange is not None  # noqa: S101 - the state says so
            if exchange.request_done:
                self._keep(data)
            else:
                self._read_body(exchange, data)
        elif state is _TAKEN:
            assert self._taker is not None  # noqa: S101 - likewise
            self._taker.client_received(data)
        elif state is _LINGERING:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:
                self.transport.abortConnection()

    def readConnectionLost(self) -> None:
        """The client has sent its last byte; it may still want its answer."""
        self.ended = True
        state = self._state
        if state is _TAKEN and self._taker is not None:
            self._taker.client_ended()
        elif state is _EXCHANGING and self._exchange is not None:
            if not self._exchange.request_done:
                self._exchange.client_lost(FlowEnd.CLIENT_RESET)
                self.abort()
        else:
            if state is _WAITING and self._reader.started:
                # Nobody is left to hear an answer, but it is logged.
                self.flow().deny("http_incomplete", FlowEnd.HTTP_REQUEST_ERROR)
            self.close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Gone, by our wish or theirs."""
        state, self._state = self._state, _CLOSED
        # They know us: left like that, each would wait for the garbage collector.
        taker, self._taker = self._taker, None
        exchange, self._exchange = self._exchange, None
        self.shared.patrol.discard(self)
        if self.pinned is not None:
            self.pinned.close()
        if taker is not None and state is _TAKEN:
            taker.client_lost(reason)
        elif exchange is not None:
            exchange.client_lost(end_of(reason))
        self._closed(self)

    def writeConnectionLost(self) -> None:
        """Our FIN is out."""
        if self._taker is not None:
            self._taker.client_write_ended()

    # Requests

    def _read(self, data: bytes) -> bool:
        """Read on to the end of a head, and begin its exchange.

        Returns:
            Whether there was one.
        """
        reader = self._reader
        try:
            events = reader.feed(data)
        except HttpMessageError as error:
            self.refuse_unread(replies.malformed_request(error))
            return False
        if not events:
            if not self._head_begun and reader.started:
                # The head's time counts from its first byte.
                self._head_begun = True
                self.since = time.monotonic()
            return False
        self._state = _EXCHANGING
        self._head_begun = False
        self._exchange = exchange = Exchange(self, cast("RequestHead", events[0]))
        if self._refused:
            exchange.fail(replies.TOO_MANY_CONNECTIONS)
            return True
        # What is wrong with the rest shows before anything is forwarded.
        exchange.start(events, reader.error)
        return True

    def _read_body(self, exchange: Exchange, data: bytes) -> None:
        try:
            exchange.read(self._reader.feed(data))
        except HttpMessageError as error:
            exchange.malformed(error)
            return
        if self._reader.error is not None and self._exchange is exchange:
            exchange.malformed(self._reader.error)

    def _keep(self, data: bytes) -> None:
        """Hold what was sent ahead."""
        self._kept += data
        self.pause(AHEAD)

    def refuse_unread(self, reply: Reply) -> None:
        """Answer what is no request yet, and close; it is logged as one."""
        flow = self.flow()
        flow.status = reply.status
        self.transport.write(replies.render(reply))
        flow.deny(reply.reason, reply.end)
        self.linger()

    def flow(self) -> Flow:
        """The flow of a request that begins now."""
        routing = self.routing
        flow = Flow(
            *(routing.kind, self.source, routing.destination, routing.found_by),
            *(self.shared, Protocol.HTTP),
        )
        connection = self._connection_flow
        if connection is not None:
            flow.connection = connection
            flow.process = connection.process
        return flow

    # Called by the exchange

    def exchanged(self, now: float) -> None:
        """A request is answered, and its client may send another."""
        self._exchange = None
        if self._state is not _EXCHANGING:
            return
        self._state = _WAITING
        self.since = now
        if self._kept or self._paused or self._reader.started:
            self._go_on()
        elif self.ended:
            self.close()

    def _go_on(self) -> None:
        """Take the requests that were sent ahead, in turn."""
        if self._looping:
            return
        self._looping = True
        try:
            while self._state is _WAITING and not self.congested:
                kept, self._kept = self._kept, b""
                if not self._read(kept):
                    break
        finally:
            self._looping = False
        if self._state is _WAITING:
            if self.ended:
                self.close()
            elif not self.congested:
                self.resume(AHEAD)
        elif self._state is _EXCHANGING and not self._kept:
            self.resume(AHEAD)

    # The client as a reader (IPushProducer)

    def pauseProducing(self) -> None:
        """The client doesn't take what it is sent."""
        self.congested = True
        if self._exchange is not None:
            self._exchange.pause()
        elif self._taker is not None:
            self._taker.pause()

    def resumeProducing(self) -> None:
        """It has taken everything."""
        self.congested = False
        if self._exchange is not None:
            self._exchange.resume()
        elif self._taker is not None:
            self._taker.resume()
        elif self._state is _WAITING:
            self._go_on()

    def stopProducing(self) -> None:
        """It is gone; `connectionLost` says so, too."""

    # The patrol's side

    def look(self, now: float) -> None:
        """See whether the client takes too long."""
        state = self._state
        if state is _EXCHANGING and self._exchange is not None:
            self._exchange.look(now)
        elif state is _WAITING:
            self._look_waiting(now)
        elif state is _TAKEN and self._taker is not None:
            self._taker.look(now)
        elif state is _LINGERING and now - self.since > self._patience:
            self.transport.abortConnection()

    def _look_waiting(self, now: float) -> None:
        limits = self.shared.limits
        if self.congested:
            # Its last answer is on its way; no exchange is there to count the bytes.
            if now - self.since > limits.progress_timeout:
                self.abort()
        elif self._head_begun:
            if now - self.since > limits.head_timeout:
                self.refuse_unread(replies.REQUEST_TIMEOUT)
        elif now - self.since > limits.keepalive_timeout:
            self.close()
