"""What does a client say first inside of its tunnel, while its server may speak already?

The tunnel is open; the client's first bytes are looked at before any of them is passed on.
What the server says is passed on meanwhile, so that one that speaks first isn't delayed,
and a client that stays silent is never waited for. Where the client may not go without a
name, the server is not connected. Where the name only might matter, a server that speaks
first is heard once its client may go without one; what the client says then still counts.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import connectionDone
from zope.interface import implementer

from sidecar.flow import Flow, FlowEnd
from sidecar.peeking import Peek
from sidecar.relay.stream import ShutDown, SocketTransport

if TYPE_CHECKING:
    import socket

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from sidecar.loops import Ends
    from sidecar.protocols.http.downstream import Downstream

__all__ = ["INSIDE", "Overhearing"]

INSIDE = 4
"""Why a client isn't read: what it says inside of its tunnel is being judged."""


@implementer(IProtocol, IHalfCloseableProtocol)
class Overhearing:
    """A tunnel until its client has said whom it is for.

    Args:
        downstream: The client's connection, taken over here.
        flow: With what was asked for: `host`, or only `destination`.
        upstream: A connection to the destination; None where the name decides whether
            there may be one.
    """

    __slots__ = (
        "_begun",
        "_client_ended",
        "_data",
        "_downstream",
        "_ends",
        "_flow",
        "_greeting",
        "_heard",
        "_judged_again",
        "_moved",
        "_over",
        "_peek",
        "_received",
        "_said",
        "_server_spoke",
        "_shared",
        "_timer",
        "_upstream",
    )

    def __init__(self, downstream: Downstream, flow: Flow, upstream: socket.socket | None) -> None:
        self._downstream = downstream
        self._shared = downstream.shared
        self._flow = flow
        self._judged_again = flow.host is None
        # What the client says; its flow stays what was asked for until that is known.
        self._said: Flow | None = None
        self._peek: Peek | None = None
        self._data = b""
        # When the client began to speak, when it has ended, and when anything was last
        # sent to it; as `time.monotonic`.
        self._begun = self._client_ended = 0.0
        self._moved = time.monotonic()
        self._greeting = b""
        self._received = 0
        # Whether the client hears its server, though it has yet to be judged by its name.
        self._server_spoke = False
        self._over = False
        # Whether the client has said all that matters.
        self._heard = False
        self._timer: IDelayedCall | None = None
        self._upstream: SocketTransport | None = None
        self._ends: Ends | None = None
        runtime = self._shared.runtime
        if upstream is None:
            self._timer = runtime.reactor.callLater(self._shared.judge.silence, self._silent)
        else:
            self._ends = runtime.guard.track(upstream, flow.upstream, self)
            SocketTransport(runtime.poller, upstream, self)

    def _peeked(self) -> None:
        """Go on: the client has said what it will say."""
        raise NotImplementedError

    def _server_speaks(self) -> None:
        """Go on: the server has something to say, and the client had not."""
        raise NotImplementedError

    def _end(self, end: FlowEnd) -> None:
        """End the flow, and the upstream with it."""
        raise NotImplementedError

    def deny(
        self, reason: str, rule: str | None = None, hint: str = "", end: FlowEnd = FlowEnd.DENIED
    ) -> None:
        """Refuse, and tell the client in its own language."""
        raise NotImplementedError

    def looped(self) -> None:
        """The connection came back to one of our own listeners."""
        self.deny(FlowEnd.PROXY_LOOP_DETECTED.value, end=FlowEnd.PROXY_LOOP_DETECTED)

    # The client's side

    def client_received(self, data: bytes) -> None:
        """The client's first bytes, or what follows them before there is a verdict."""
        self._data += data
        if self._heard:
            self._downstream.pause(INSIDE)
            return
        if not self._begun:
            self._begun = time.monotonic()
            self._stop_waiting()
            self._said = Flow(self._flow.listener, None, None, None)
            self._peek = Peek(self._said)
        if cast("Peek", self._peek).feed(data):
            self._peeked()

    def client_ended(self) -> None:
        """It has sent its last byte: it will say no more."""
        if self._heard:
            return
        upstream = self._upstream
        if self._begun or self._judged_again or upstream is None:
            self._peeked()
            return
        # There is nothing to be held against it; what the server says is still passed on.
        self._client_ended = time.monotonic()
        upstream.loseWriteConnection()

    def client_write_ended(self) -> None:
        """We end nothing by halves before the two are joined."""

    def client_lost(self, reason: Failure) -> None:
        """It is gone."""
        shut_down = reason.check(ShutDown) is not None
        self._end(FlowEnd.SHUTDOWN if shut_down else FlowEnd.CLIENT_RESET)

    def pause(self) -> None:
        """The client doesn't take what the server says."""
        if self._upstream is not None:
            self._upstream.pauseProducing()

    def resume(self) -> None:
        """It has taken everything."""
        if self._upstream is not None:
            self._upstream.resumeProducing()

    def look(self, now: float) -> None:
        """See whether a client that has begun to speak gets to its name; and others' limits."""
        if self._heard:
            return
        limits = self._shared.runtime.limits
        idle, half_closed = limits.idle_timeout, limits.half_close_timeout
        if self._begun:
            if now - self._begun > self._shared.judge.patience:
                self.deny("peek_timeout")
        elif (idle is not None and now - self._moved > idle) or (
            half_closed is not None
            and self._client_ended
            and now - self._client_ended > half_closed
        ):
            self._end(FlowEnd.IDLE_TIMEOUT)
            self._downstream.abort()

    def _silent(self) -> None:
        self._timer = None
        if not self._heard:
            self._peeked()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The server's side

    def makeConnection(self, transport: object) -> None:
        """Here is the transport."""
        self._upstream = cast("SocketTransport", transport)
        self.connectionMade()

    def connectionMade(self) -> None:
        """The destination is connected, which it was before."""

    def dataReceived(self, data: bytes) -> None:
        """The server speaks."""
        if not self._judged_again or self._server_spoke:
            self._pass_on(data)
            return
        self._greeting += data
        if self._upstream is not None:
            self._upstream.pauseProducing()
        if not self._heard and not self._data:
            self._server_speaks()

    def _pass_on(self, data: bytes) -> None:
        """Let the client hear it; what the client says is still held against it."""
        self._received += len(data)
        self._moved = time.monotonic()
        self._downstream.transport.write(data)

    def readConnectionLost(self) -> None:
        """The server has sent its last byte."""
        if self._client_ended:
            self._upstream = None
            self._end(FlowEnd.CLOSED)
            self._downstream.close()
        elif not self._heard:
            self._peeked()

    def writeConnectionLost(self) -> None:
        """See `client_write_ended`."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The server is gone."""
        if self._upstream is not None and not self._over:
            self._upstream = None
            shut_down = reason.check(ShutDown) is not None
            self._end(FlowEnd.SHUTDOWN if shut_down else FlowEnd.SERVER_RESET)
            self._downstream.abort()

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        self._forget_ends()
        if upstream is not None:
            upstream.abortConnection()

    def _forget_ends(self) -> None:
        self._shared.runtime.guard.forget(self._ends)
        self._ends = None
