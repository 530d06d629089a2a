"""How two Twisted transports are joined, where the kernel can't do it (TLS, unix).

The same rules as the spliced relay's, by producers and consumers. Twisted's TLS has
no half-close: a TLS side that ends, or is told to end, ends both ways once what was
written is flushed.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet import error
from twisted.internet.interfaces import IPushProducer, ISSLTransport
from zope.interface import implementer

from sidecar.flow import FlowEnd
from sidecar.relay.resets import SendQueueWatch
from sidecar.relay.totals import Totals
from sidecar.relay.written import when_written

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

    from sidecar.interfaces import IRelayReactor
    from sidecar.relay.protocol import RelayProtocol

__all__ = ["BufferedRelay"]

# Bytes; what a reset connection still holds is no more than its receive buffer.
_LAST_READ = 1 << 16


class BufferedRelay:
    """Two protocols that pass everything on to each other.

    Args:
        reactor: For timers.
        downstream, upstream: Connected, not yet joined.
        done: Called once, after both connections are lost.
        idle_timeout, half_close_timeout: As `sidecar.relay.spliced.SplicedEngine`.
    """

    def __init__(
        self,
        reactor: IRelayReactor,
        downstream: RelayProtocol,
        upstream: RelayProtocol,
        done: Callable[[Totals], None],
        *,
        idle_timeout: float | None = None,
        half_close_timeout: float | None = None,
    ) -> None:
        self._reactor = reactor
        self._done = done
        self._downstream = downstream
        self._upstream = upstream
        self._end: FlowEnd | None = None
        self._half_close_timeout = half_close_timeout
        self._timers: list[IDelayedCall] = []
        self._sending: SendQueueWatch | None = None
        self._dismissed: list[RelayProtocol] = []
        self._finished = False
        for side in (downstream, upstream):
            side.join(self)
        for side in (downstream, upstream):
            peer = self._peer(side)
            if peer.lost_for is None and side.lost_for is None:
                peer.stream.registerProducer(_Source(self, side, peer), True)
        for side in (downstream, upstream):
            early, side.early = side.early, []
            for data in early:
                self.received(side, data)
        for side in (downstream, upstream):
            if side.lost_for is not None:
                self.lost(side)
            elif side.eof:
                self.ended(side)
            else:
                side.stream.resumeProducing()
        if idle_timeout is not None:
            self._watch_idleness(idle_timeout, -1)

    @property
    def totals(self) -> Totals:
        """Bytes handed on so far, and the end if there was one."""
        return Totals(self._upstream.written, self._downstream.written, self._end)

    def abort(self, end: FlowEnd) -> None:
        """Reset both sides now; what is still on its way is lost."""
        if self._end is None:
            self._end = end
        for side in (self._downstream, self._upstream):
            if side.lost_for is None:
                side.stream.abortConnection()

    # Called by the protocols

    def received(self, side: RelayProtocol, data: bytes) -> None:
        """Bytes from one side are for the other."""
        peer = self._peer(side)
        if peer.lost_for is None:
            peer.stream.write(data)
            peer.written += len(data)

    def ended(self, side: RelayProtocol) -> None:
        """One side has sent its last byte."""
        peer = self._peer(side)
        if peer.lost_for is not None:
            return
        if peer.eof:
            self._end = self._end or FlowEnd.CLOSED
            self._let_go(side)
            self._let_go(peer)
            return
        if ISSLTransport.providedBy(peer.transport):
            self._end = self._end or FlowEnd.CLOSED
            self._let_go(peer)
        else:
            peer.stream.loseWriteConnection()
        if self._half_close_timeout is not None:
            self._timers.append(
                self._reactor.callLater(self._half_close_timeout, self.abort, FlowEnd.IDLE_TIMEOUT)
            )

    def lost(self, side: RelayProtocol) -> None:
        """One side is gone both ways."""
        peer = self._peer(side)
        if peer.lost_for is not None:
            self._finish()
            return
        orderly = side.lost_for is not None and side.lost_for.check(error.ConnectionDone)
        # Few TLS clients answer our close_notify before they close.
        if orderly or side in self._dismissed:
            self._end = self._end or FlowEnd.CLOSED
            self._let_go(peer)
            return
        if self._end is None:
            client = side is self._downstream
            self._end = FlowEnd.CLIENT_RESET if client else FlowEnd.SERVER_RESET
        peer.stream.unregisterProducer()
        if not peer.eof:
            # What it sends is for nobody any more, but its own reset shows only so.
            peer.stream.resumeProducing()
        # TLS collects small writes until the reactor's next turn.
        self._timers.append(self._reactor.callLater(0, self._flush, peer))

    def _flush(self, side: RelayProtocol) -> None:
        """Reset a side once everything is written and acknowledged."""
        if side.write_ended:
            self._written(side)
            return
        when_written(side.transport, partial(self._written, side))

    def _written(self, side: RelayProtocol) -> None:
        self._sending = SendQueueWatch(
            self._reactor, side.stream.fileno(), side.stream.abortConnection
        )

    def _let_go(self, side: RelayProtocol) -> None:
        """Close once everything is written."""
        self._dismissed.append(side)
        side.stream.unregisterProducer()
        side.stream.loseConnection()

    def _peer(self, side: RelayProtocol) -> RelayProtocol:
        return self._upstream if side is self._downstream else self._downstream

    def _watch_idleness(self, timeout: float, moved_before: int) -> None:
        moved = self._downstream.written + self._upstream.written
        if moved == moved_before:
            self.abort(FlowEnd.IDLE_TIMEOUT)
            return
        self._timers = [timer for timer in self._timers if timer.active()]
        self._timers.append(self._reactor.callLater(timeout, self._watch_idleness, timeout, moved))

    def _finish(self) -> None:
        if self._finished:
            return
        self._finished = True
        if self._sending is not None:
            self._sending.cancel()
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        self._done(self.totals)


@implementer(IPushProducer)
class _Source:
    """A side as the producer of its peer.

    The transport itself in that place would read on after its end, and would close
    when its peer's closes (`stopProducing`).
    """

    def __init__(self, relay: BufferedRelay, side: RelayProtocol, peer: RelayProtocol) -> None:
        self._relay = relay
        self._side = side
        self._peer = peer

    def pauseProducing(self) -> None:
        """The peer can't take more."""
        if self._side.lost_for is None:
            self._side.stream.pauseProducing()

    def resumeProducing(self) -> None:
        """The peer has written everything."""
        if self._side.eof:
            # A transport that resumes its producer forgets that it was to end.
            if not self._peer.write_ended:
                self._peer.stream.loseWriteConnection()
        elif self._side.lost_for is None:
            self._side.stream.resumeProducing()

    def stopProducing(self) -> None:
        """The peer is about to be closed: last chance for what it still holds."""
        connection = self._peer.stream.getHandle()
        if self._relay.totals.end is None and isinstance(connection, socket.socket):
            with suppress(OSError):
                while data := connection.recv(_LAST_READ):
                    self._relay.received(self._peer, data)
