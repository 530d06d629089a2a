"""How questions come over connections (RFC 7766): several at once, answered as they are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import ServerFactory, connectionDone
from twisted.protocols.basic import Int16StringReceiver
from twisted.protocols.policies import TimeoutMixin
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.dns.messages import MAX_QUERY
from sidecar.dns.server import Asked

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IConsumer, IReactorTime, ITCPTransport
    from twisted.python.failure import Failure

    from sidecar.dns.server import Answerer

__all__ = ["StreamServerFactory"]

# Connections at once. Programs make one for an answer that a datagram doesn't hold.
_CONNECTIONS = 128
# Questions of one connection that are being answered; further ones wait in its buffer. With
# answers of 64 KiB, all connections together hold 128 MiB at the very worst.
_AT_ONCE = 16
# Seconds without a whole question, or an answer, after which a connection is closed; some
# more than an answer may take (RFC 7766 §6.2.3).
_IDLE = 10.0


class StreamServerFactory(ServerFactory):
    """Serves connections.

    Args:
        clock: For idle ones.
        answerer: Answers.
    """

    noisy = False

    def __init__(
        self, clock: IReactorTime, answerer: Answerer, *, connections: int = _CONNECTIONS
    ) -> None:
        self.clock = clock
        self.answerer = answerer
        self._connections = connections
        self.open: set[_Stream] = set()

    def buildProtocol(self, addr: IAddress | None) -> _Stream | None:
        """One connection's; None, which closes it, if there are too many."""
        if len(self.open) >= self._connections:
            return None
        return _Stream(self, _address(addr))

    def close(self) -> None:
        """End all connections."""
        for stream in list(self.open):
            stream.abort()


@implementer(IPushProducer)
class _Stream(Int16StringReceiver, TimeoutMixin):
    """One connection."""

    MAX_LENGTH = MAX_QUERY

    def __init__(self, factory: StreamServerFactory, source: SocketAddress | None) -> None:
        self._factory = factory
        self._source = source
        self._server: str | None = None
        self._answering = 0
        # Whether the client doesn't take what we have for it.
        self._is_blocked = False
        self._is_receiving = False
        # TimeoutMixin asks the instance.
        self.callLater = factory.clock.callLater  # type: ignore[assignment, method-assign]

    def connectionMade(self) -> None:
        """Wait for questions."""
        self._factory.open.add(self)
        transport = self._transport
        server = _address(transport.getHost())
        self._server = None if server is None else server.host
        transport.setTcpNoDelay(True)
        cast("IConsumer", transport).registerProducer(self, True)
        self.setTimeout(_IDLE)  # type: ignore[no-untyped-call]

    @property
    def _transport(self) -> ITCPTransport:
        return cast("ITCPTransport", self.transport)

    def stringReceived(self, string: bytes) -> None:
        """A question."""
        self.resetTimeout()  # type: ignore[no-untyped-call]
        self._is_receiving = True
        self._answering += 1
        asked = Asked(self._answer, stream=True, server=self._server, source=self._source)
        answers = self._factory.answerer.ask(string, asked)
        self._is_receiving = False
        if not answers:
            # Not a question: nothing that follows would be better.
            self.abort()
            return
        self._pace()

    def lengthLimitExceeded(self, length: int) -> None:  # noqa: ARG002
        """No question is that long."""
        self.abort()

    def _answer(self, data: bytes) -> None:
        self._answering -= 1
        if self not in self._factory.open:
            return
        self.resetTimeout()  # type: ignore[no-untyped-call]
        self.sendString(data)  # type: ignore[no-untyped-call]
        if not self._is_receiving:
            self._pace()

    def _pace(self) -> None:
        """Read on, or stop reading."""
        wait = self._is_blocked or self._answering >= _AT_ONCE
        if wait and not self.paused:
            super().pauseProducing()  # type: ignore[no-untyped-call]
        elif not wait and self.paused:
            super().resumeProducing()  # type: ignore[no-untyped-call]

    def pauseProducing(self) -> None:
        """The client is slow: answer no more for now."""
        self._is_blocked = True
        if not self._is_receiving:
            self._pace()

    def resumeProducing(self) -> None:
        """It has caught up."""
        self._is_blocked = False
        self.resetTimeout()  # type: ignore[no-untyped-call]
        if not self._is_receiving:
            self._pace()

    def stopProducing(self) -> None:
        """The connection is gone."""

    def timeoutConnection(self) -> None:
        """Nothing has happened for too long."""
        self.abort()

    def abort(self) -> None:
        """End."""
        self._transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        """Gone."""
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        self._factory.open.discard(self)


def _address(address: IAddress | None) -> SocketAddress | None:
    if isinstance(address, (IPv4Address, IPv6Address)):
        return SocketAddress.from_kernel((address.host, address.port))
    return None
