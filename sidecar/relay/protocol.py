"""One side of a relay as a Twisted protocol: what it is until it is joined."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, cast
from typing import Protocol as Typed

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocolFactory,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from sidecar.linux.sockopt import reset_on_close
from sidecar.relay.stream import SocketTransport
from sidecar.relay.written import when_written

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress, ITransport
    from twisted.internet.protocol import ServerFactory

    from sidecar.interfaces import IRelayReactor

__all__ = ["RelayProtocol", "adopt"]

# Bytes; what a reset connection still holds is no more than its receive buffer.
_LAST_READ = 1 << 16


class Stream(Typed):
    """What a relay asks of a transport: Twisted's stream transports have all of it."""

    def getHandle(self) -> object: ...
    def getHost(self) -> IAddress: ...
    def getPeer(self) -> IAddress: ...
    def fileno(self) -> int: ...
    def write(self, data: bytes, /) -> None: ...
    def loseConnection(self) -> None: ...
    def loseWriteConnection(self) -> None: ...
    def abortConnection(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def registerProducer(self, producer: object, streaming: bool, /) -> None: ...
    def unregisterProducer(self) -> None: ...


class Owner(Typed):
    """The relay that a protocol is a side of."""

    def received(self, side: RelayProtocol, data: bytes) -> None:
        """Bytes from one side are for the other."""

    def ended(self, side: RelayProtocol) -> None:
        """One side has sent its last byte."""

    def lost(self, side: RelayProtocol) -> None:
        """One side is gone both ways."""


@implementer(IHalfCloseableProtocol)
class RelayProtocol(Protocol):
    """One side of a buffered relay; paused from its first moment until it is joined.

    Args:
        made: Called with this protocol once it is connected.

    Attributes:
        early: What arrived before it was joined, most often nothing.
        unwritten: What a detached transport had yet to write, most often nothing.
        eof: The other process has sent all that it will.
        write_ended: Our own FIN is out.
        lost_for: Why the connection is lost; None while it isn't.
        written: Bytes handed to the transport.
    """

    def __init__(self, made: Callable[[RelayProtocol], None]) -> None:
        self._made = made
        self._lost: Callable[[Failure], None] | None = None
        self._relay: Owner | None = None
        self._detached: Callable[[socket.socket], None] | None = None
        self._taken_over = False
        self.early: list[bytes] = []
        self.unwritten = b""
        self.eof = False
        self.write_ended = False
        self.lost_for: Failure | None = None
        self.written = 0

    @property
    def stream(self) -> Stream:
        """The transport, as what it is once connected."""
        return cast("Stream", self.transport)

    # Before it is joined

    @classmethod
    def take_over(
        cls, transport: ITransport, *, early: bytes = b"", eof: bool = False
    ) -> RelayProtocol:
        """Make one in place of the protocol that a transport has had so far.

        That protocol hears no more of the connection, not even its end. What it wrote
        is still written first. May be called while it is being told of something.

        Args:
            transport: Connected: a `SocketTransport`, Twisted's of a socket, or one
                wrapped around another (TLS). Its producer is unregistered.
            early: What that protocol has received and left for the relay.
            eof: Whether it was told of the other process' end (`readConnectionLost`).

        Returns:
            The new protocol, paused.

        Raises:
            TypeError: The transport knows no protocol of its own.
        """
        protocol = cls(_ignore)
        if isinstance(transport, ProtocolWrapper):
            transport.wrappedProtocol = protocol
        elif hasattr(transport, "protocol"):
            transport.protocol = protocol
        else:
            raise TypeError(f"{transport!r} can't be given another protocol")
        protocol._taken_over = True
        protocol.eof = eof
        if early:
            protocol.early.append(early)
        protocol.makeConnection(transport)  # type: ignore[no-untyped-call]
        protocol.stream.unregisterProducer()
        return protocol

    def on_loss(self, lost: Callable[[Failure], None] | None) -> None:
        """Be told if the connection is lost before it is joined; None for no longer."""
        self._lost = lost

    def abort(self) -> None:
        """Reset the connection, joined or not."""
        if self.lost_for is None:
            self.stream.abortConnection()

    @property
    def detachable(self) -> bool:
        """Whether this is a plain TCP connection, as far as is known still there."""
        if isinstance(self.transport, SocketTransport):
            return self.transport.connected
        return (
            ITCPTransport.providedBy(self.transport)
            and not ISSLTransport.providedBy(self.transport)
            and isinstance(self.stream.getHandle(), socket.socket)
        )

    def detach(self, detached: Callable[[socket.socket], None]) -> None:
        """Take the socket from its transport, for the spliced engine.

        Args:
            detached: Called with the socket, which is the callee's, non-blocking;
                what had arrived is in `early`, what has to be written first in
                `unwritten`.
        """
        if isinstance(self.transport, SocketTransport):
            self.unwritten = self.transport.take_unwritten()
            detached(self.transport.detach())
            return
        self._detached = detached
        self._handle = socket.socket(fileno=os.dup(self.stream.fileno()))
        if self._taken_over:
            # Twisted's transports write at the reactor's next turn.
            when_written(self.transport, self._let_go)
        else:
            self._let_go()

    def _let_go(self) -> None:
        # The one way in Twisted's interface to make a transport let go without a
        # shutdown(): our duplicate keeps the connection open, so no RST is sent.
        self.stream.abortConnection()

    def reset_before_adopted(self, connection: socket.socket) -> None:
        """Take the last bytes of a connection that the other process has reset."""
        self.lost_for = Failure(ConnectionLost())
        with connection, suppress(OSError):
            while data := connection.recv(_LAST_READ):
                self.early.append(data)

    def join(self, relay: Owner) -> None:
        """Belong to a relay from here on."""
        self._relay = relay

    # Protocol

    def connectionMade(self) -> None:
        """Connected: read nothing until somebody can take it."""
        self.stream.pauseProducing()
        self._made(self)

    def dataReceived(self, data: bytes) -> None:
        """Pass on, or keep while there is nobody yet."""
        if self._relay is None:
            self.early.append(data)
        else:
            self._relay.received(self, data)

    def readConnectionLost(self) -> None:
        """The other process has sent its last byte."""
        self.eof = True
        if self._relay is not None:
            self._relay.ended(self)

    def writeConnectionLost(self) -> None:
        """Our own FIN is out."""
        self.write_ended = True

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Gone, by our wish or theirs."""
        self.lost_for = reason
        if self._detached is not None:
            # Twisted has set SO_LINGER on the socket that we share.
            self._handle.setblocking(False)
            reset_on_close(self._handle, on=False)
            self._detached(self._handle)
        elif self._relay is not None:
            self._relay.lost(self)
        elif self._lost is not None:
            self._lost(reason)


def _ignore(_: RelayProtocol) -> None:
    """Nobody waits for a connection that is taken over."""


@implementer(IProtocolFactory)
class _One:
    """Builds the one protocol that it was made with."""

    def __init__(self, protocol: RelayProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress) -> RelayProtocol:  # noqa: ARG002
        """The protocol."""
        return self._protocol

    def doStart(self) -> None:
        """Nothing to prepare."""

    def doStop(self) -> None:
        """Nothing to clean up."""


def adopt(reactor: IRelayReactor, connection: socket.socket, protocol: RelayProtocol) -> None:
    """Give a connected socket a Twisted transport.

    Args:
        reactor: Where it belongs.
        connection: Connected, non-blocking; closed here, the transport has its own
            descriptor.
        protocol: Its protocol; `connectionMade` is called before this returns, unless
            the other process has reset the connection already: then `lost_for` is set.
    """
    factory = cast("ServerFactory", _One(protocol))
    try:
        connection.getpeername()
    except OSError:
        # Without a peer Twisted makes no transport.
        protocol.reset_before_adopted(connection)
        return
    reactor.adoptStreamConnection(connection.fileno(), connection.family, factory)
    connection.close()
