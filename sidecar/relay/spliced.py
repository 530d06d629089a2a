"""How two plain TCP sockets are joined, and how that ends.

The rules kept here and in half.py (half-close, reset after flush, back-pressure, one
ending) are those of docs/reference/relay.md.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from sidecar.flow import FlowEnd
from sidecar.relay.half import BUFFER_SIZE, Half
from sidecar.relay.poller import READ, WRITE
from sidecar.relay.resets import ResetWhenSent, reset
from sidecar.relay.screened import Screened
from sidecar.relay.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

    from sidecar.interfaces import IRelayReactor
    from sidecar.relay.pipes import PipePool
    from sidecar.relay.poller import Poller
    from sidecar.relay.screened import Screen

    _Close = Callable[[socket.socket], None]

__all__ = ["SplicedEngine", "SplicedRelay"]


class SplicedEngine:
    """What all spliced relays of one reactor share: readiness, pipes, a buffer.

    Args:
        reactor: Its timers and descriptors are used.
        poller: Watches the sockets.
        pipes: Where spliced bytes rest.
        idle_timeout: Seconds without a byte either way after which a relay is
            ended with `FlowEnd.IDLE_TIMEOUT`; None for never.
        half_close_timeout: Seconds that one side may go on after the other has
            said that it is done; None for ever.
    """

    def __init__(
        self,
        reactor: IRelayReactor,
        poller: Poller,
        pipes: PipePool,
        *,
        idle_timeout: float | None = None,
        half_close_timeout: float | None = None,
    ) -> None:
        self.reactor = reactor
        self.poller = poller
        self.pipes = pipes
        self.view = memoryview(bytearray(BUFFER_SIZE))
        self.idle_timeout = idle_timeout
        self.half_close_timeout = half_close_timeout

    def relay(
        self,
        downstream: socket.socket,
        upstream: socket.socket,
        done: Callable[[Totals], None],
        *,
        to_upstream: bytes = b"",
        to_downstream: bytes = b"",
        screen: Screen | None = None,
    ) -> SplicedRelay:
        """Join two connected, non-blocking TCP sockets.

        Args:
            downstream: The client's; owned by the relay from here on.
            upstream: The server's; owned by the relay from here on.
            done: Called once, after both are closed. Not before this returns.
            to_upstream: Bytes already read from the client, delivered first.
            to_downstream: Bytes already read from the server, delivered first.
            screen: Reads what the client says first, before the server gets it; None for
                nobody.
        """
        return SplicedRelay(self, downstream, upstream, done, to_upstream, to_downstream, screen)


class SplicedRelay:
    """Two sockets that pass everything on to each other.

    Args: as `SplicedEngine.relay`.
    """

    __slots__ = ("_done", "_grace", "_idle", "_totals", "downstream", "end", "engine", "upstream")

    def __init__(
        self,
        engine: SplicedEngine,
        downstream: socket.socket,
        upstream: socket.socket,
        done: Callable[[Totals], None],
        to_upstream: bytes,
        to_downstream: bytes,
        screen: Screen | None = None,
    ) -> None:
        self.engine = engine
        self._done = done
        self._totals: Totals | None = None
        self.end: FlowEnd | None = None
        self._idle: IDelayedCall | None = None
        self._grace: IDelayedCall | None = None
        self.downstream = (
            Half(self, downstream, to_downstream)
            if screen is None
            else Screened(self, downstream, to_downstream, screen)
        )
        self.upstream = Half(self, upstream, to_upstream)
        self.downstream.peer = self.upstream
        self.upstream.peer = self.downstream
        for half in (self.downstream, self.upstream):
            half.events = (WRITE if half.blocked else 0) | (0 if half.peer.blocked else READ)
            engine.poller.register(half.fd, half.events, half)
        if engine.idle_timeout is not None:
            self._watch_idleness(engine.idle_timeout, -1)

    @property
    def totals(self) -> Totals:
        """Bytes delivered so far, and the end if there was one."""
        if self._totals is not None:
            return self._totals
        return Totals(self.upstream.written, self.downstream.written, self.end)

    def abort(self, end: FlowEnd) -> None:
        """Reset both sides now; what is still on its way is lost.

        But when the process ends, what one side has said to its end and the kernel is about
        to send is left to the kernel, as it would have been without us.
        """
        if self.end is not None:
            return
        keep = end is FlowEnd.SHUTDOWN
        self._close(
            end,
            socket.socket.close if keep and self.downstream.sends_last else reset,
            socket.socket.close if keep and self.upstream.sends_last else reset,
        )

    def half_closed(self) -> None:
        """One side has said that it is done: start the other's grace, if it has a limit."""
        grace = self.engine.half_close_timeout
        if grace is not None:
            self._grace = self.engine.reactor.callLater(grace, self.abort, FlowEnd.IDLE_TIMEOUT)

    def closed(self) -> None:
        """Both sides are done."""
        if self.end is None:
            self._close(FlowEnd.CLOSED, socket.socket.close, socket.socket.close)

    def broken(self, half: Half) -> None:
        """One side was reset, and what it sent before has been passed on."""
        peer = half.peer
        first = peer if peer.dead else half
        self.end = FlowEnd.CLIENT_RESET if first is self.downstream else FlowEnd.SERVER_RESET
        self._disarm()
        half.release(reset)
        if not peer.watched:
            # Reset itself, or done both ways: then what is unsent is still sent.
            peer.release(reset if peer.dead else socket.socket.close)
            self._finished()
            return
        peer.forget_output()
        # The event that led here may say that it can be read, too.
        peer.events = 0
        engine = self.engine
        ResetWhenSent(engine.reactor, engine.poller, peer.sock, self._finished)

    def let_go(self) -> None:
        """Be no relay any more: both sockets stay open, and nobody is told."""
        self._disarm()
        self._totals = self.totals
        self._done = _nobody
        self.downstream.let_go()
        self.upstream.let_go()
        self._part()

    def _finished(self) -> None:
        self._totals = totals = self.totals
        done, self._done = self._done, _nobody
        self._part()
        done(totals)

    def _part(self) -> None:
        # The halves know each other and us, and whoever is done knows us: left like
        # that, every relay would wait for the garbage collector.
        for half in (self.downstream, self.upstream):
            del half.peer
        del self.downstream, self.upstream

    def _close(self, end: FlowEnd, close_downstream: _Close, close_upstream: _Close) -> None:
        self.end = end
        self._disarm()
        self.downstream.release(close_downstream)
        self.upstream.release(close_upstream)
        self._finished()

    def _watch_idleness(self, timeout: float, moved_before: int) -> None:
        # Looking once a period costs nothing per read; a relay ends between one and
        # two periods after its last byte.
        moved = self.downstream.written + self.upstream.written
        if moved == moved_before:
            self._idle = None
            self.abort(FlowEnd.IDLE_TIMEOUT)
            return
        self._idle = self.engine.reactor.callLater(timeout, self._watch_idleness, timeout, moved)

    def _disarm(self) -> None:
        for timer in (self._idle, self._grace):
            if timer is not None and timer.active():
                timer.cancel()


def _nobody(_: Totals) -> None:
    """Whom a relay that is over calls."""
