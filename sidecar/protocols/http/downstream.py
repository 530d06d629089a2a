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
from enum import Enum
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
from sidecar.protocols.http.exchange import Exchange
from sidecar.relay.stream import ShutDown
from sidecar.wire.http1.messages import HttpMessageError
from sidecar.wire.http1.reading import RequestReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol as Typed

    from twisted.python.failure import Failure

    from sidecar.addresses import SocketAddress
    from sidecar.protocols.http.replies import Reply
    from sidecar.protocols.http.routing import Routing
    from sidecar.protocols.http.shared import Shared
    from sidecar.protocols.http.upstream import Upstream
    from sidecar.relay.protocol import Stream
    from sidecar.wire.http1.messages import RequestHead

    class Taker(Typed):
        """Who has taken a connection over; it is told what a protocol is told."""

        def client_received(self, data: bytes) -> None: ...
        def client_ended(self) -> None: ...
        def client_write_ended(self) -> None: ...
        def client_lost(self, reason: Failure) -> None: ...
        def pause(self) -> None: ...
        def resume(self) -> None: ...
        def look(self, now: float) -> None: ...


__all__ = ["AHEAD", "Downstream"]

AHEAD = 1
"""Why a client isn't read: it sends ahead of its answers."""
# Seconds, and bytes, for which a client that was answered early may go on sending: it would
# lose the answer to a reset otherwise (RFC 9112 §9.6).
_LINGER_SECONDS = 5.0
_LINGER_BYTES = 1 << 24


class State(Enum):
    """Where a connection stands; see the module."""

    WAITING = "waiting"
    EXCHANGING = "exchanging"
    LINGERING = "lingering"
    TAKEN = "taken"
    CLOSED = "closed"


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
class Downstream:
    """The protocol of one client's connection.

    Args:
        shared: What all connections of the factory share.
        routing: Whom requests are for, and whether they may.
        source: The client; None where it has no IP address.
        closed: Called once, when all is over.
        refused: There are too many; the first request is told so.

    Attributes:
        transport: Twisted's, or one of ours.
        congested: The client doesn't take what it is sent.
        ended: It has sent its last byte.
        pinned: A connection to a server that knows this client by it, and serves
            nobody else; None if there is none.
        since: When the present state began, as `time.monotonic`.
    """

    __slots__ = (
        "_closed",
        "_exchange",
        "_half_closes",
        "_head_begun",
        "_kept",
        "_lingered",
        "_looping",
        "_patience",
        "_paused",
        "_reader",
        "_refused",
        "_state",
        "_taker",
        "congested",
        "ended",
        "pinned",
        "routing",
        "shared",
        "since",
        "source",
        "transport",
    )

    transport: Stream

    def __init__(
        self,
        shared: Shared,
        routing: Routing,
        source: SocketAddress | None,
        closed: Callable[[Downstream], None],
        *,
        refused: bool = False,
    ) -> None:
        self.shared = shared
        self.routing = routing
        self.source = source
        self._closed = closed
        limits = shared.limits
        self._reader = RequestReader(
            max_head_bytes=limits.head_bytes, max_fields=limits.head_fields
        )
        self._state = _WAITING
        self._exchange: Exchange | None = None
        self._taker: Taker | None = None
        self._kept = b""
        self._paused = 0
        self._refused = refused
        self._looping = False
        self._half_closes = True
        self._head_begun = False
        self._lingered = 0
        self._patience = 0.0
        self.congested = False
        self.ended = False
        self.pinned: Upstream | None = None
        self.since = time.monotonic()

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

    def writeConnectionLost(self) -> None:
        """Our FIN is out."""
        if self._taker is not None:
            self._taker.client_write_ended()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Gone, by our wish or theirs."""
        state, self._state = self._state, _CLOSED
        self.shared.patrol.discard(self)
        if self.pinned is not None:
            self.pinned.close()
        if state is _TAKEN and self._taker is not None:
            self._taker.client_lost(reason)
        elif self._exchange is not None:
            self._exchange.client_lost(end_of(reason))
        self._exchange = None
        self._closed(self)

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
        return Flow(self.routing.kind, self.source, None, None, self.shared, Protocol.HTTP)

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

    def close(self) -> None:
        """Close once everything is written; the client isn't sending."""
        self._exchange = None
        if self._state is not _CLOSED:
            self._end(self.shared.limits.progress_timeout)
            self.transport.loseConnection()

    def linger(self) -> None:
        """Close, after a while in which the client may notice (RFC 9112 §9.6)."""
        if self.ended or not self._half_closes:
            self.close()
            return
        self._exchange = None
        if self._state is _CLOSED:
            return
        limits = self.shared.limits
        self._end(limits.progress_timeout if self.congested else _LINGER_SECONDS)
        self.transport.loseWriteConnection()
        self._paused = 0
        self.transport.resumeProducing()

    def _end(self, patience: float) -> None:
        self._state = _LINGERING
        self._kept = b""
        self._patience = patience
        self.since = time.monotonic()
        self.transport.unregisterProducer()

    def abort(self) -> None:
        """Reset: what the client was sent is not whole."""
        self._exchange = None
        if self._state is not _CLOSED:
            self._state = _LINGERING
            self.transport.abortConnection()

    @property
    def sends_ahead(self) -> bool:
        """Whether bytes behind the present request are there."""
        return bool(self._kept) or self._reader.started

    def give_to(self, taker: Taker) -> bytes:
        """Be no HTTP connection any more.

        Args:
            taker: Told of everything from here on.

        Returns:
            What was read behind the request.
        """
        self._taker = taker
        return self.give_up()

    def give_up(self) -> bytes:
        """As `give_to`, for somebody who takes the transport as well."""
        self._exchange = None
        self._state = _TAKEN
        ahead = self._reader.rest() + self._kept
        self._kept = b""
        self.resume(~0)
        return ahead

    def leave(self) -> None:
        """The transport is about to lose its socket to somebody else."""
        self.shared.patrol.discard(self)
        self.transport.unregisterProducer()

    def left(self) -> None:
        """Whoever had the socket has closed it."""
        if self.pinned is not None:
            self.pinned.close()
        if self._state is not _CLOSED:
            self._state = _CLOSED
            self._taker = None
            self._closed(self)

    def cut(self, *, orderly: bool) -> None:
        """End a response before its end, so that the client can't take it for whole.

        Args:
            orderly: The client knows how long it was to be.
        """
        if orderly and self._half_closes and not self.sends_ahead:
            self.close()
        else:
            self.abort()

    def pause(self, why: int) -> None:
        """Read nothing from the client, for one more reason."""
        if not self._paused:
            self.transport.pauseProducing()
        self._paused |= why

    def resume(self, why: int) -> None:
        """Read on, if nothing else speaks against it."""
        if self._paused:
            self._paused &= ~why
            if not self._paused:
                self.transport.resumeProducing()

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
