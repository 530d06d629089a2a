"""How two plain TCP sockets are joined: by the kernel where it pays.

Small messages are copied through one shared buffer, received and sent in the same
wake-up. A read that fills the buffer switches its direction to splice(2): bytes
then go from socket to pipe to socket without entering user space, until reads get
small again. The rules kept here (half-close, reset after flush, back-pressure, one
ending) are those of docs/reference/relay.md.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from sidecar.flow import FlowEnd
from sidecar.relay.pipes import PIPE_SIZE, Pipe, PipePool
from sidecar.relay.poller import ERROR, HANGUP, READ, WRITE, Poller
from sidecar.relay.resets import ResetWhenSent, reset
from sidecar.relay.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

    from sidecar.interfaces import IRelayReactor

__all__ = ["SplicedEngine", "SplicedRelay"]

# Bytes. One read of this size says that more is waiting; below it, copying costs
# less than two splices.
_BUFFER_SIZE = 1 << 16
# Bytes. A splice that moves less than this sends its direction back to copying.
_SMALL_SPLICE = 1 << 14
# Bytes that one direction may move before the others get their turn.
_SPLICE_BUDGET = 1 << 22
_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


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
        self.view = memoryview(bytearray(_BUFFER_SIZE))
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
    ) -> SplicedRelay:
        """Join two connected, non-blocking TCP sockets.

        Args:
            downstream: The client's; owned by the relay from here on.
            upstream: The server's; owned by the relay from here on.
            done: Called once, after both are closed. Not before this returns.
            to_upstream: Bytes already read from the client, delivered first.
            to_downstream: Bytes already read from the server, delivered first.
        """
        return SplicedRelay(self, downstream, upstream, done, to_upstream, to_downstream)


class SplicedRelay:
    """Two sockets that pass everything on to each other.

    Args: as `SplicedEngine.relay`.
    """

    __slots__ = ("_done", "_grace", "_idle", "downstream", "end", "engine", "upstream")

    def __init__(
        self,
        engine: SplicedEngine,
        downstream: socket.socket,
        upstream: socket.socket,
        done: Callable[[Totals], None],
        to_upstream: bytes,
        to_downstream: bytes,
    ) -> None:
        self.engine = engine
        self._done = done
        self.end: FlowEnd | None = None
        self._idle: IDelayedCall | None = None
        self._grace: IDelayedCall | None = None
        self.downstream = _Half(self, downstream, to_downstream)
        self.upstream = _Half(self, upstream, to_upstream)
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
        return Totals(self.upstream.written, self.downstream.written, self.end)

    def abort(self, end: FlowEnd) -> None:
        """Reset both sides now; what is still on its way is lost."""
        self._close(end, reset)

    def half_closed(self) -> None:
        """One side has said that it is done: start the other's grace, if it has a limit."""
        grace = self.engine.half_close_timeout
        if grace is not None:
            self._grace = self.engine.reactor.callLater(grace, self.abort, FlowEnd.IDLE_TIMEOUT)

    def closed(self) -> None:
        """Both sides are done."""
        self._close(FlowEnd.CLOSED, socket.socket.close)

    def broken(self, half: _Half) -> None:
        """One side was reset, and what it sent before has been passed on."""
        peer = half.peer
        first = peer if peer.dead else half
        self.end = FlowEnd.CLIENT_RESET if first is self.downstream else FlowEnd.SERVER_RESET
        self._disarm()
        half.release(reset)
        if not peer.watched:
            # Reset itself, or done both ways: then what is unsent is still sent.
            peer.release(reset if peer.dead else socket.socket.close)
            self._done(self.totals)
            return
        peer.forget_output()
        engine = self.engine
        ResetWhenSent(engine.reactor, engine.poller, peer.sock, self._finished)

    def _finished(self) -> None:
        self._done(self.totals)

    def _close(self, end: FlowEnd, how: Callable[[socket.socket], None]) -> None:
        if self.end is not None:
            return
        self.end = end
        self._disarm()
        self.downstream.release(how)
        self.upstream.release(how)
        self._done(self.totals)

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


class _Half:
    """One of a relay's two sockets: reads from it, and writes to it.

    Attributes:
        events: What the poller watches it for.
        blocked: Bytes for this socket wait, in `_pending` or in `_pipe`; then its
            peer isn't read, which is all there is to back-pressure.
        dead: The peer process reset it; it may still hold bytes to be read.
        eof: It has sent all that it will.
        watched: The poller reports on it; not once the connection is over.
        written: Bytes handed to this socket's kernel buffer.
    """

    __slots__ = (
        "_pending",
        "_pipe",
        "_piped",
        "_splicing",
        "blocked",
        "dead",
        "eof",
        "events",
        "fd",
        "peer",
        "relay",
        "sock",
        "watched",
        "written",
    )

    peer: _Half

    def __init__(self, relay: SplicedRelay, sock: socket.socket, pending: bytes) -> None:
        self.relay = relay
        self.sock = sock
        self.fd = sock.fileno()
        self.events = 0
        self.written = 0
        self.eof = False
        self.dead = False
        self.watched = True
        self.blocked = bool(pending)
        self._pending = pending
        self._pipe: Pipe | None = None
        self._piped = 0
        self._splicing = False

    # The poller's side

    def ready(self, events: int) -> None:
        """Pass on what can be passed on."""
        if events & WRITE and self.blocked:
            self._flush()
        if events & READ:
            # An earlier event of the same batch may have stopped the reading.
            if self.events & READ:
                self._pump()
        elif events & (ERROR | HANGUP) and self.watched:
            self._hung_up(events)

    def failed(self) -> None:
        """A bug in `ready`: end the relay."""
        self.relay.abort(FlowEnd.PROTOCOL_ERROR)

    def shut_down(self) -> None:
        """The process ends."""
        self.relay.abort(FlowEnd.SHUTDOWN)

    # Reading

    def _pump(self) -> None:  # noqa: C901 - the hot path: a call saved is worth a branch
        """Read from this socket and write to the peer, until one of them would block."""
        if self._splicing:
            self._splice()
            return
        peer = self.peer
        view = self.relay.engine.view
        while True:
            try:
                count = self.sock.recv_into(view)
            except BlockingIOError:
                if not self.watched:
                    self.relay.broken(self)
                return
            except OSError:
                self.relay.broken(self)
                return
            if count == 0:
                self._ended()
                return
            try:
                sent = peer.sock.send(view[:count])
            except BlockingIOError:
                sent = 0
            except OSError:
                peer.unwritable()
                return
            peer.written += sent
            if sent != count:
                peer.keep(bytes(view[sent:count]))
                return
            if count == _BUFFER_SIZE:
                self._splicing = True
                self._splice()
                return
            if self.watched:
                return

    def _splice(self) -> None:  # noqa: C901 - likewise
        """As `_pump`, without the bytes entering this process."""
        pipes = self.relay.engine.pipes
        pipe = pipes.acquire()
        if pipe is None:
            # No descriptors for a pipe; the next wake-up copies.
            self._splicing = False
            return
        peer = self.peer
        splice = os.splice
        budget = _SPLICE_BUDGET
        while True:
            try:
                count = splice(self.fd, pipe.writer, PIPE_SIZE, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                if not self.watched:
                    pipes.release(pipe)
                    self.relay.broken(self)
                    return
                break
            except OSError:
                pipes.release(pipe)
                self.relay.broken(self)
                return
            if count == 0:
                pipes.release(pipe)
                self._ended()
                return
            left = count
            try:
                while left:
                    left -= splice(pipe.reader, peer.fd, left, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                peer.written += count - left
                peer.keep_pipe(pipe, left)
                return
            except OSError:
                peer.written += count - left
                pipes.discard(pipe)
                peer.unwritable()
                return
            peer.written += count
            if count < _SMALL_SPLICE:
                self._splicing = False
                break
            budget -= count
            if budget <= 0:
                break
        pipes.release(pipe)
        if not self.watched:
            # Nobody else would come back for the rest.
            self._pump()

    def _ended(self) -> None:
        """This socket has sent its last byte."""
        if self.dead:
            # A failed write took the error, so the read could only say "end".
            self.relay.broken(self)
            return
        self.eof = True
        peer = self.peer
        if peer.eof:
            self.relay.closed()
            return
        # It may be gone already; then the poller is about to say so.
        with suppress(OSError):
            peer.sock.shutdown(socket.SHUT_WR)
        self.update()
        self.relay.half_closed()

    def _hung_up(self, events: int) -> None:
        """The connection is over, while its peer can't take the bytes it still holds.

        That is reported without end, so stop listening; the peer's `_flush` comes
        back for the rest, which ends in EOF or in an error.
        """
        self.dead = bool(events & ERROR)
        if self.dead and self.eof:
            self.relay.broken(self)
        else:
            self._unwatch()

    # Writing

    def keep(self, data: bytes) -> None:
        """Hold what this socket can't take yet."""
        self._pending = data
        self._block()

    def keep_pipe(self, pipe: Pipe, count: int) -> None:
        """Hold a pipe with what this socket can't take yet."""
        self._pipe = pipe
        self._piped = count
        self._block()

    def _block(self) -> None:
        self.blocked = True
        self.update()
        self.peer.update()

    def _flush(self) -> None:
        """Write what waits for this socket; once all is gone, go on reading the peer."""
        try:
            if self._pipe is not None:
                while self._piped:
                    sent = os.splice(self._pipe.reader, self.fd, self._piped, flags=_SPLICE_FLAGS)
                    self._piped -= sent
                    self.written += sent
                self.relay.engine.pipes.release(self._pipe)
                self._pipe = None
            else:
                sent = self.sock.send(self._pending)
                self.written += sent
                self._pending = self._pending[sent:]
                if self._pending:
                    return
        except BlockingIOError:
            return
        except OSError:
            self.unwritable()
            return
        self.blocked = False
        peer = self.peer
        if peer.events == 0:
            # Straight on, since the peer most likely has more: in bulk transfers
            # this spares two epoll_ctl and a wake-up for every pipeful.
            peer.resume()
        if self.relay.end is None:
            self.update()
            peer.update()

    def resume(self) -> None:
        """Read on after the peer took what it was given."""
        if not self.eof:
            self._pump()

    def unwritable(self) -> None:
        """A write failed: the other process reset this connection, or it timed out.

        What it sent before may still wait in the kernel and belongs to the peer.
        """
        relay = self.relay
        self.forget_output()
        if self.eof or self.peer.dead:
            relay.broken(self)
            return
        self.dead = True
        if self.watched:
            self._unwatch()
        self.peer.mute()
        if not self.peer.blocked:
            # Otherwise `_flush` of the peer comes back.
            self._pump()

    def mute(self) -> None:
        """Read no more: nobody can take it."""
        self.eof = True
        self.update()

    def forget_output(self) -> None:
        """Drop what waits for this socket."""
        if self._pipe is not None:
            self.relay.engine.pipes.discard(self._pipe)
            self._pipe = None
        self._pending = b""
        self.blocked = False

    # Bookkeeping

    def _unwatch(self) -> None:
        self.watched = False
        self.events = 0
        self.relay.engine.poller.unregister(self.fd)

    def update(self) -> None:
        """Have the poller watch for what this socket's state asks for."""
        if not self.watched:
            return
        events = 0 if self.eof or self.peer.blocked else READ
        if self.blocked:
            events |= WRITE
        if events != self.events:
            self.events = events
            self.relay.engine.poller.modify(self.fd, events)

    def release(self, close: Callable[[socket.socket], None]) -> None:
        """Let the socket go."""
        self.forget_output()
        if self.watched:
            self.watched = False
            self.events = 0
            self.relay.engine.poller.forget(self.fd)
        close(self.sock)
