"""How one socket of a spliced relay is read and written: by the kernel where it pays.

Small messages are copied through one shared buffer, received and sent in the same
wake-up. A read that fills the buffer switches its direction to splice(2): bytes
then go from socket to pipe to socket without entering user space, until reads get
small again.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from sidecar.flow import FlowEnd
from sidecar.linux.sockopt import unacknowledged
from sidecar.relay.pipes import PIPE_SIZE, Pipe
from sidecar.relay.poller import ERROR, HANGUP, READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.relay.spliced import SplicedRelay

__all__ = ["BUFFER_SIZE", "Half"]

# Bytes. One read of this size says that more is waiting; below it, copying costs
# less than two splices.
BUFFER_SIZE = 1 << 16
# Bytes. A splice that moves less than this sends its direction back to copying.
_SMALL_SPLICE = 1 << 14
# Bytes that one direction may move before the others get their turn.
_SPLICE_BUDGET = 1 << 22
_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Half:
    """One of a relay's two sockets: reads from it, and writes to it.

    Attributes:
        events: What the poller watches it for.
        blocked: Bytes for this socket wait, in `_pending` or in `_pipe`; then its
            peer isn't read, which is all there is to back-pressure.
        dead: The peer process reset it; it may still hold bytes to be read.
        eof: It has sent all that it will.
        held: It isn't read for now.
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
        "held",
        "peer",
        "relay",
        "sock",
        "watched",
        "written",
    )

    peer: Half

    def __init__(self, relay: SplicedRelay, sock: socket.socket, pending: bytes) -> None:
        self.relay = relay
        self.sock = sock
        self.fd = sock.fileno()
        self.events = 0
        self.written = 0
        self.eof = False
        self.dead = False
        self.held = False
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
        elif events & (ERROR | HANGUP) and self.watched and not self.events & READ:
            # (An earlier event of the batch may as well have begun the reading again;
            # then the poller says the same once more, and that it can be read.)
            self._hung_up(events)

    def failed(self) -> None:
        """A bug in `ready`: end the relay."""
        self.relay.abort(FlowEnd.PROTOCOL_ERROR)

    def shut_down(self) -> None:
        """The process ends."""
        self.relay.abort(FlowEnd.SHUTDOWN)

    # Reading

    def _pump(self, *, copying: bool = False) -> None:  # noqa: C901 - the hot path: a call saved is worth a branch
        """Read from this socket and write to the peer, until one of them would block.

        Args:
            copying: However much a read brings, there is no pipe for a splice.
        """
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
            if count == BUFFER_SIZE and not copying:
                self._splicing = True
                self._splice()
                return
            if self.watched:
                return

    def _splice(self) -> None:  # noqa: C901, PLR0912 - likewise
        """As `_pump`, without the bytes entering this process."""
        pipes = self.relay.engine.pipes
        pipe = pipes.acquire()
        if pipe is None:
            # No descriptors for a pipe; the next wake-up copies, where there is one.
            self._splicing = False
            if not self.watched:
                self._pump(copying=True)
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

    @property
    def sends_last(self) -> bool:
        """Whether the peer has said all that it will, and the kernel has it and yet to send it."""
        peer = self.peer
        if not peer.eof or self.blocked or self.dead or peer.dead:
            return False
        with suppress(OSError):
            # The end itself counts as one.
            return unacknowledged(self.fd) > 1
        return False

    def resume(self) -> None:
        """Read on after the peer took what it was given."""
        if not (self.eof or self.held):
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
        events = 0 if self.eof or self.held or self.peer.blocked else READ
        if self.blocked:
            events |= WRITE
        if events != self.events:
            self.events = events
            self.relay.engine.poller.modify(self.fd, events)

    def let_go(self) -> None:
        """Leave the socket to somebody else."""
        self.forget_output()
        if self.watched:
            self._unwatch()

    def release(self, close: Callable[[socket.socket], None]) -> None:
        """Let the socket go."""
        self.forget_output()
        if self.watched:
            self.watched = False
            self.events = 0
            self.relay.engine.poller.forget(self.fd)
        close(self.sock)
