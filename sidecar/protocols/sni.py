"""Peeking at what clients ask for, in front of any factory; routing by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from zope.interface import alsoProvides, implementer

from sidecar.config import Limits
from sidecar.flow import Flow, ListenerKind
from sidecar.interfaces import IPeekedProtocol, ISocketFactory
from sidecar.peeking import Peek
from sidecar.protocols.relaying import Relaying
from sidecar.protocols.routing import Routing

if TYPE_CHECKING:
    import socket

    from twisted.internet.interfaces import (
        IAddress,
        IDelayedCall,
        IProtocol,
        IProtocolFactory,
        IReactorTime,
        ITransport,
    )
    from twisted.python.failure import Failure

    from sidecar.names.resolving import INameResolver
    from sidecar.protocols.http.intercepted import InterceptedHTTP
    from sidecar.protocols.judge import Allowed, Judge
    from sidecar.runtime import Runtime

__all__ = ["PeekFactory", "SNIProxyFactory"]

_LIMITS = Limits()


@implementer(ISocketFactory)
class SNIProxyFactory(Factory):
    """Relays every connection to the host that its TLS or HTTP names.

    The name is resolved here, so no client can send it anywhere else; the port is the
    listener's own. For endpoints that hand over sockets: ``tcp:``, ``tcp6:``.

    Args:
        runtime: Shared with every other listener of the process.
        judge: Who says whether a flow may.
        resolver: Asked for the names.
        http: Serves what speaks HTTP; None relays it once its first request is allowed.
    """

    noisy = False
    kind = ListenerKind.SNI_PROXY
    _log = Logger()

    def __init__(
        self,
        runtime: Runtime,
        judge: Judge,
        resolver: INameResolver,
        *,
        http: InterceptedHTTP | None = None,
    ) -> None:
        self.runtime = runtime
        self._judge = judge
        self._resolver = resolver
        self._http = http

    def buildProtocol(self, addr: IAddress | None) -> None:  # noqa: ARG002
        """Refuse: behind another wrapper there is no ClientHello to read."""
        self._log.error("routing by SNI needs a plain tcp: endpoint; connection refused")

    def socket_accepted(self, connection: socket.socket, flow: Flow) -> None:
        """Peek, resolve, dial and relay (ISocketFactory)."""
        if self._http is not None:
            self._http.route(connection, flow, self._allowed)
            return
        Routing(self.runtime, self._judge, connection, flow, self._allowed, self._resolver)

    def _allowed(self, allowed: Allowed) -> None:
        Relaying(
            self.runtime, allowed.connection, allowed.flow, allowed.addresses, None, allowed.data
        )


class PeekFactory(Factory):
    """Tells the wrapped factory's protocols what the client asks for.

    A protocol that provides `IPeekedProtocol` learns it before it is connected; every
    protocol sees every byte. Where the client says nothing, the protocol is connected
    after a moment, so that servers can speak first.

    Args:
        wrapped: Builds the protocols.
        clock: For the waits.
        silence: Seconds that a client may stay silent.
        patience: Seconds from its first byte to its name; after that the connection is
            given to the protocol as one without a name, whose problem that is.
    """

    noisy = False

    def __init__(
        self,
        wrapped: IProtocolFactory,
        clock: IReactorTime,
        *,
        silence: float = _LIMITS.silence,
        patience: float = _LIMITS.patience,
    ) -> None:
        self._wrapped = wrapped
        self.clock = clock
        self.silence = silence
        self.patience = patience

    def doStart(self) -> None:
        """Start the wrapped factory, too."""
        self._wrapped.doStart()
        super().doStart()  # type: ignore[no-untyped-call]

    def doStop(self) -> None:
        """Stop the wrapped factory, too."""
        super().doStop()  # type: ignore[no-untyped-call]
        self._wrapped.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """A protocol that peeks, round one of the wrapped factory's."""
        wrapped = self._wrapped.buildProtocol(cast("IAddress", addr))
        return None if wrapped is None else _PeekingProtocol(self, wrapped)


class _PeekingProtocol(Protocol):
    """Reads until the names are known, then is as good as absent."""

    def __init__(self, factory: PeekFactory, wrapped: IProtocol) -> None:
        self._factory = factory
        self._wrapped = wrapped
        self._data: list[bytes] = []
        self._peek: Peek | None = None
        self._timer: IDelayedCall | None = None

        if IHalfCloseableProtocol.providedBy(wrapped):
            alsoProvides(self, IHalfCloseableProtocol)

    def connectionMade(self) -> None:
        """Begin to listen."""
        self._flow = Flow(ListenerKind.FORWARD, None, None, None)
        self._peek = Peek(self._flow)
        self._timer = self._factory.clock.callLater(self._factory.silence, self._waited)

    def dataReceived(self, data: bytes) -> None:
        """Read on, or pass on."""
        peek = self._peek
        if peek is None:
            self._wrapped.dataReceived(data)
            return
        if not self._data and self._timer is not None:
            self._timer.reset(self._factory.patience)
        self._data.append(data)
        if peek.feed(data):
            self._hand_over()

    def _waited(self) -> None:
        self._timer = None
        if self._data:
            self._flow.problem = "peek_timeout"
        self._hand_over()

    def _hand_over(self) -> None:
        self._peek = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flow.names_known = True
        if IPeekedProtocol.providedBy(self._wrapped):
            self._wrapped.peeked(self._flow)
        self._wrapped.makeConnection(cast("ITransport", self.transport))
        for data in self._data:
            self._wrapped.dataReceived(data)
        self._data.clear()

    def readConnectionLost(self) -> None:
        """The client has sent its last byte."""
        if self._peek is not None:
            self._hand_over()
        cast("IHalfCloseableProtocol", self._wrapped).readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Our own FIN is out."""
        cast("IHalfCloseableProtocol", self._wrapped).writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Gone; a protocol that was never connected is, so that it can say good-bye."""
        if self._peek is not None:
            self._hand_over()
        self._wrapped.connectionLost(reason)
