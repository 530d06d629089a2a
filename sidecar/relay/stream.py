"""A connected TCP socket as Twisted's protocols want it, on the poller instead of the reactor.

Twisted's own transport writes at the reactor's next turn and registers twice for that;
this one writes at once, and asks the kernel for nothing but data while all goes well.
"""

from __future__ import annotations

import select
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.linux.sockopt import unread
from sidecar.relay.poller import ERROR, HANGUP, READ, WRITE
from sidecar.relay.resets import reset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from twisted.internet.interfaces import IProducer, IProtocol

    from sidecar.relay.poller import Poller

__all__ = ["WRITE_BACKLOG", "ShutDown", "SocketTransport", "twisted_address"]

# Bytes that wait for a slow reader before its producer is paused; as Twisted's.
WRITE_BACKLOG = 1 << 16
# Bytes asked for in one read. Python allocates them beforehand, which is cheap up to
# this size and costs five times a small read at 256 KiB; so more is for a stream
# whose last read was full. A backlog that is just not full and such a piece are less
# than 256 KiB.
_PIECE = 1 << 16
_LARGE_PIECE = 1 << 17
# Pieces of the backlog written in one system call; IOV_MAX is 1024.
_PIECES = 256


class ShutDown(ConnectionAborted):
    """The process ends, and with it its connections."""


def twisted_address(address: SocketAddress) -> IPv4Address | IPv6Address:
    """The same address as Twisted's protocols expect it."""
    kind = IPv6Address if ":" in address.host else IPv4Address
    return kind("TCP", address.host, address.port)


@implementer(ITCPTransport, IPushProducer, IConsumer)
class SocketTransport:
    """The transport of one connected socket.

    Its differences from Twisted's, and what that leaves open:

    - `write` hands the bytes to the kernel before it returns, unless others wait.
    - The protocol is told of an end (`connectionLost`) exactly once and never from inside
      a method of the transport: an end that a method causes or notices is told when all
      who are being told of events have returned (`Poller.soon`). The socket itself is
      closed at once. From the noticing on, `connected` is False and writes go nowhere.
      `writeConnectionLost` comes likewise.
    - From inside `write` and `registerProducer` only the producer may be called back
      (`pauseProducing`).
    - A pause takes effect without a system call: `dataReceived` is not called, but what
      the kernel is asked changes only when something arrives. While paused, the other
      process' end isn't seen, its reset is.
    - After `loseConnection` nothing is read, and written only by the producer, whom the
      end waits for (as documented, and as in Twisted's TLS). Closing while bytes of the
      other process wait unread sends RST (tcp(7)), which may overtake what was written:
      whoever answers early should `loseWriteConnection` and read on for a while.
    - An end of file is `loseConnection` for protocols that aren't IHalfCloseableProtocol,
      with no regard to the producer. For the others, the connection is over
      (`connectionLost` with ConnectionDone) once both ways are closed.
    - Where the protocol raises, the connection is reset, and that is its reason.

    Args:
        poller: Watches the socket.
        sock: Connected, non-blocking; owned by the transport from here on.
        protocol: `makeConnection` is called before this returns, data comes later.
            What it raises there is logged and ends the connection.
        host: What `getHost` says; None for the socket's own address.
        peer: What `getPeer` says; None for what the socket is connected to.
        last_words: What the other process sent before it reset the connection is still
            delivered, at the protocol's pace, before `connectionLost`. Otherwise a reset
            that is noticed by writing, or while paused, is told at once.

    Attributes:
        protocol: May be replaced by another that is told itself of being connected;
            deleted after its `connectionLost`.
        connected: Neither closed nor detached.
        disconnecting: To be closed as soon as everything is written.
        last_words: As above; may be changed.
        unwritten: Bytes that wait for the other process to read.
    """

    __slots__ = (
        "_dead",
        "_eof",
        "_events",
        "_fd",
        "_host",
        "_peer",
        "_pending",
        "_piece",
        "_poller",
        "_producer",
        "_producer_paused",
        "_reading",
        "_reason",
        "_recv",
        "_send",
        "_sock",
        "_watched",
        "_writable",
        "_write_ended",
        "_write_ending",
        "_write_told",
        "connected",
        "disconnecting",
        "last_words",
        "protocol",
        "unwritten",
    )

    _log = Logger()

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        protocol: IProtocol,
        *,
        host: SocketAddress | None = None,
        peer: SocketAddress | None = None,
        last_words: bool = False,
    ) -> None:
        self._poller = poller
        self._sock = sock
        self._fd = sock.fileno()
        self._recv = sock.recv
        self._send = sock.send
        self._host = host
        self._peer = peer
        self.protocol = protocol
        self.last_words = last_words
        self.connected = True
        self.disconnecting = False
        self.unwritten = 0
        self._pending: list[bytes | memoryview] = []
        self._piece = _PIECE
        self._producer: IPushProducer | None = None
        self._producer_paused = False
        # May dataReceived be called; may write still write.
        self._reading = True
        self._writable = True
        # The other process has sent all; our end is asked for; it is out; it is told of.
        self._eof = False
        self._write_ending = False
        self._write_ended = False
        self._write_told = False
        # What a failed write said while `last_words` are still read.
        self._dead: OSError | None = None
        self._reason: Failure | None = None
        self._events = READ
        self._watched = True
        poller.register(self._fd, READ, self)
        try:
            protocol.makeConnection(self)
        except Exception:  # noqa: BLE001 - somebody else's code, as in `failed`
            self._bug()

    # The poller's side

    def ready(self, events: int) -> None:
        """Write what waits, then read once."""
        if events & WRITE and self._pending:
            self._flush()
        if events & ~WRITE:
            if self._reading:
                self._read()
            elif self._watched:
                self._stalled(events)

    def failed(self) -> None:
        """The protocol, or a producer, raised: reset the connection."""
        if self.connected:
            self._close(_current_failure(), reset)
            self._tell()

    def shut_down(self) -> None:
        """The process ends."""
        if self.connected:
            self._close(Failure(ShutDown()), reset)
            self._tell()

    # Reading

    def _read(self) -> None:
        try:
            data = self._recv(self._piece)
        except BlockingIOError:
            return
        except OSError as error:
            self._close(_lost(error))
            self._tell()
            return
        if not data:
            self._ended()
            return
        self._piece = _PIECE if len(data) < _PIECE else _LARGE_PIECE
        self.protocol.dataReceived(data)

    def _ended(self) -> None:
        """The other process has sent its last byte."""
        self._reading = False
        if self._dead is not None:
            # The failed write took the error, so the read could only say "end".
            self._close(_lost(self._dead))
            self._tell()
            return
        self._eof = True
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.readConnectionLost()
            if self.connected:
                self._watch()
                self._finish_if_both_ended()
            return
        self.disconnecting = True
        self._writable = False
        self._dismiss_producer()
        if not self.connected:
            return
        if self._pending:
            self._watch()
        else:
            self._close(connectionDone)
            self._tell()

    def _stalled(self, events: int) -> None:
        """Something came in, or the connection is over, while nothing may be read."""
        if self._events & READ:
            self._watch()
        # (With bytes to write it is the write that learns of the end.)
        if events & (ERROR | HANGUP) and not self._pending:
            self._hung_up()

    def _hung_up(self) -> None:
        """The connection is said to be over, which is said without end."""
        # It may have been said of the descriptor's previous owner.
        poll = select.poll()
        poll.register(self._fd, 0)
        events = sum(events for _, events in poll.poll(0))
        if events & select.POLLERR:
            number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._broken(OSError(number, "reset while paused"), self._tell)
        elif events & select.POLLHUP and self._dead is not None:
            self._broken(self._dead, self._tell)
        if events and self.connected:
            # FIN both ways, or last words: seen by reading on.
            self._watched = False
            self._events = 0
            self._poller.unregister(self._fd)
            self._poller.wards.add(self)

    # The writing, for ITransport and IConsumer

    def write(self, data: bytes) -> None:
        """Send, or keep what the kernel doesn't take.

        Args:
            data: Not changed afterwards.
        """
        if self._pending:
            if self._writable and data:
                self._keep(data)
            return
        if not self._writable:
            return
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._broken(error, self._tell_soon)
            return
        if sent != len(data):
            self._keep(memoryview(data)[sent:] if sent else data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send several pieces as one."""
        self.write(b"".join(data))

    def _keep(self, data: bytes | memoryview) -> None:
        self._pending.append(data)
        self.unwritten += len(data)
        if not self._events & WRITE:
            self._watch()
        if self.unwritten > WRITE_BACKLOG:
            self._pause_producer()

    def _pause_producer(self) -> None:
        if self._producer is not None and not self._producer_paused:
            self._producer_paused = True
            self._producer.pauseProducing()

    def _flush(self) -> None:
        pending = self._pending
        try:
            sent = self._sock.sendmsg(pending[:_PIECES])
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(error, self._tell)
            return
        self.unwritten -= sent
        if self.unwritten:
            whole = 0
            for piece in pending:
                if sent < len(piece):
                    break
                sent -= len(piece)
                whole += 1
            del pending[:whole]
            if sent:
                pending[0] = memoryview(pending[0])[sent:]
            return
        pending.clear()
        if self._producer is not None and self._producer_paused:
            self._producer_paused = False
            self._producer.resumeProducing()
        if self.connected:
            self._watch()
            self._written(self._tell)

    def _written(self, tell: Callable[[], None]) -> None:
        """Nothing waits (perhaps): end what was to end then."""
        if self._pending or self._producer is not None:
            return
        if self.disconnecting:
            self._close(connectionDone)
            tell()
        elif self._write_ending and not self._write_ended:
            self._write_ended = True
            # It may be gone already; then the poller is about to say so.
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
            self._poller.soon(self._tell_write_ended)

    def _tell_write_ended(self) -> None:
        if not self.connected:
            return
        self._write_told = True
        if IHalfCloseableProtocol.providedBy(self.protocol):
            try:
                self.protocol.writeConnectionLost()
            except Exception:  # noqa: BLE001 - somebody else's code
                self._bug()
        self._finish_if_both_ended()

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Pause and resume a push producer by what the other process can take.

        Raises:
            RuntimeError: There is one.
            ValueError: It is a pull producer, which this transport doesn't serve.
        """
        if not streaming:
            raise ValueError("SocketTransport takes push producers only")
        if self._producer is not None:
            raise RuntimeError("a producer is registered already")
        if not self.connected:
            producer.stopProducing()
            return
        self._producer = cast("IPushProducer", producer)
        self._producer_paused = False
        if self.unwritten > WRITE_BACKLOG:
            self._pause_producer()

    def unregisterProducer(self) -> None:
        """The producer has written its last; what waited for that may end."""
        self._producer = None
        self._producer_paused = False
        if self.connected and (self.disconnecting or self._write_ending):
            self._writable = False
            self._written(self._tell_soon)

    # The pausing, for IPushProducer

    def pauseProducing(self) -> None:
        """Deliver nothing until `resumeProducing`."""
        self._reading = False

    def resumeProducing(self) -> None:
        """Deliver again."""
        if self.connected and not self._eof and not self.disconnecting:
            self._reading = True
            if not self._events & READ:
                self._watch()

    def stopProducing(self) -> None:
        """As `loseConnection`."""
        self.loseConnection()

    # The ending, for ITransport and ITCPTransport

    def loseConnection(self) -> None:
        """Close once everything is written and the producer is unregistered."""
        if not self.connected or self.disconnecting:
            return
        self.disconnecting = True
        self._reading = False
        if self._producer is None:
            self._writable = False
            self._written(self._tell_soon)

    def loseWriteConnection(self) -> None:
        """Send FIN once everything is written and the producer is unregistered."""
        if not self.connected or self._write_ending or self.disconnecting:
            return
        self._write_ending = True
        if self._producer is None:
            self._writable = False
            self._written(self._tell_soon)

    def abortConnection(self) -> None:
        """Send RST; what is unwritten is lost."""
        if self.connected:
            self._close(Failure(ConnectionAborted()), reset)
            self._tell_soon()

    def take_unwritten(self) -> bytes:
        """Give up writing what still waits.

        Returns:
            It, for whoever goes on writing to the detached socket.
        """
        data = b"".join(self._pending)
        self._pending.clear()
        self.unwritten = 0
        return data

    def detach(self) -> socket.socket:
        """Let the socket go: nothing is read, written or told any more.

        Returns:
            The socket, which is the caller's; non-blocking, watched by nobody.

        Raises:
            RuntimeError: It is closed, or bytes are unwritten; see `take_unwritten`.
        """
        if not self.connected or self._pending:
            raise RuntimeError("a closed or unwritten connection can't be detached")
        if self._watched:
            self._poller.unregister(self._fd)
        self._release()
        self._producer = None
        del self.protocol
        return self._sock

    # Ends of all kinds

    def _broken(self, error: OSError, tell: Callable[[], None]) -> None:
        """The connection has been reset, or timed out; words may still wait to be read."""
        if (
            self.last_words
            and not self._eof
            and not self.disconnecting
            and (self._reading or unread(self._sock))
        ):
            self._dead = error
            self._writable = False
            self.unwritten = 0
            self._pending.clear()
            self._watch()
            return
        self._close(_lost(error))
        tell()

    def _finish_if_both_ended(self) -> None:
        if self.connected and self._eof and self._write_told:
            self._close(connectionDone)
            self._tell()

    def _bug(self) -> None:
        """The protocol has just raised, with no poller above to say so."""
        self._log.failure("bug in a protocol; the connection is closed")
        if self.connected:
            self._close(_current_failure(), reset)
            self._tell_soon()

    def _close(
        self, reason: Failure, how: Callable[[socket.socket], None] = socket.socket.close
    ) -> None:
        self._reason = reason
        if self._watched:
            self._poller.forget(self._fd)
        self._release()
        how(self._sock)

    def _release(self) -> None:
        if not self._watched:
            self._poller.wards.discard(self)
        self.connected = False
        self._watched = False
        self._reading = False
        self._writable = False
        self._events = 0
        self.unwritten = 0
        self._pending.clear()

    def _tell_soon(self) -> None:
        self._poller.soon(self._tell)

    def _tell(self) -> None:
        """Tell of the end; called once."""
        self._dismiss_producer()
        protocol = self.protocol
        del self.protocol
        reason, self._reason = self._reason, None
        assert reason is not None  # noqa: S101 - set by `_close`
        try:
            protocol.connectionLost(reason)
        except Exception:  # noqa: BLE001 - somebody else's code
            self._log.failure("bug in a protocol's connectionLost")

    def _dismiss_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                producer.stopProducing()
            except Exception:  # noqa: BLE001 - somebody else's code
                self._log.failure("bug in a producer's stopProducing")

    # Bookkeeping

    def _watch(self) -> None:
        """Have the poller watch for what may be done."""
        events = READ if self._reading else 0
        if self._pending:
            events |= WRITE
        if not self._watched:
            self._watched = True
            self._poller.wards.discard(self)
            self._poller.register(self._fd, events, self)
        elif events != self._events:
            self._poller.modify(self._fd, events)
        self._events = events

    # What it is

    def getHost(self) -> IPv4Address | IPv6Address:
        """Our address, or the one given; not to be asked first after the end."""
        if self._host is None:
            self._host = SocketAddress.from_kernel(self._sock.getsockname())
        return twisted_address(self._host)

    def getPeer(self) -> IPv4Address | IPv6Address:
        """The other process' address; likewise."""
        if self._peer is None:
            self._peer = SocketAddress.from_kernel(self._sock.getpeername())
        return twisted_address(self._peer)

    def getHandle(self) -> socket.socket:
        """The socket; still the transport's."""
        return self._sock

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._sock.fileno()

    def getTcpNoDelay(self) -> bool:
        """Whether small writes are sent while others are unacknowledged (TCP_NODELAY)."""
        return bool(self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Set it."""
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def getTcpKeepAlive(self) -> bool:
        """Whether a silent peer is asked if it is still there (SO_KEEPALIVE)."""
        return bool(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Set it."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)


def _lost(error: OSError) -> Failure:
    return Failure(ConnectionLost(error.strerror))


def _current_failure() -> Failure:
    """What is being handled as the reason of an end."""
    cause = sys.exc_info()[1]
    return Failure(ConnectionAborted()) if cause is None else Failure(cause)
