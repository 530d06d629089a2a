"""A client endpoint that reaches its destination through an HTTP proxy's CONNECT."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    ILoggingContext,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer

from sidecar.errors import TunnelReplyMalformed, TunnelTimeout
from sidecar.protocols.through import refusal
from sidecar.wire.connect import ConnectReply, connect_request
from sidecar.wire.http1.errors import HttpMessageError

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IProtocol, IReactorTime, ITransport

    from sidecar.addresses import Authority
    from sidecar.relay.protocol import Stream

__all__ = ["TIMEOUT", "ConnectClientEndpoint"]

TIMEOUT = 30.0
"""Seconds; as long as Twisted's own client endpoints wait for a connection."""


@implementer(IStreamClientEndpoint)
class ConnectClientEndpoint:
    """Reaches a destination through an HTTP proxy (RFC 9110 §9.3.6).

    The protocol is connected when the tunnel is open, and sees nothing but the tunnel.
    Its transport is the connection to the proxy: ``getPeer()`` is the proxy's address,
    since nobody here knows the destination's, and so is the address that the factory
    builds a protocol for. Half-close goes through the tunnel.

    Args:
        clock: For the deadline; usually the reactor.
        proxy: How the proxy is reached: a `HostnameEndpoint`, one wrapped in TLS, or
            another proxy's tunnel.
        authority: Where to; a name is resolved by the proxy.
        authorization: The value of Proxy-Authorization, as
            `sidecar.wire.basic.basic_authorization` makes it; None for none.
        timeout: Seconds until the tunnel is open, more than 0.
    """

    def __init__(
        self,
        clock: IReactorTime,
        proxy: IStreamClientEndpoint,
        authority: Authority,
        authorization: bytes | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._clock = clock
        self._proxy = proxy
        self._authority = str(authority)
        self._authorization = authorization
        self._timeout = timeout

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect.

        Returns:
            Fires with the protocol. Fails with a `TunnelError` where the proxy opens
            no tunnel; with what `proxy` fails with where that isn't reached; with
            NoProtocol where the factory builds none. Cancelling it gives up.
        """
        attempt = _Attempt(protocolFactory, self._authority, self._authorization)
        attempt.start(self._proxy)

        def too_late(_: object, timeout: float) -> IProtocol:
            raise TunnelTimeout(self._authority, f"no tunnel within {timeout:g} s")

        return attempt.opened.addTimeout(self._timeout, self._clock, too_late)


@implementer(IProtocolFactory)
class _Attempt:
    """One attempt to open a tunnel; a factory to the endpoint that reaches the proxy.

    Args:
        wrapped: Builds the protocol that the tunnel is for.
        authority, authorization: As `connect_request`.

    Attributes:
        opened: Fires when the tunnel is open.
    """

    def __init__(
        self, wrapped: IProtocolFactory, authority: str, authorization: bytes | None
    ) -> None:
        self._wrapped = wrapped
        self._authority = authority
        self._authorization = authorization
        self._tunnel: _Tunnel | None = None
        self._over = False
        self.opened: Deferred[IProtocol] = Deferred(self._cancel)
        self.doStart = wrapped.doStart
        self.doStop = wrapped.doStop

    def start(self, proxy: IStreamClientEndpoint) -> None:
        """Connect to the proxy; the rest follows."""
        self._connecting: Deferred[IProtocol] = proxy.connect(self)
        self._connecting.addErrback(self.failed)

    def buildProtocol(self, addr: IAddress) -> _Tunnel | None:
        """The tunnel's protocol round the wrapped factory's."""
        wrapped = self._wrapped.buildProtocol(addr)
        if wrapped is None:
            return None
        request = connect_request(self._authority.encode(), self._authorization)
        self._tunnel = _Tunnel(wrapped, request, self)
        return self._tunnel

    def _cancel(self, _: Deferred[IProtocol]) -> None:
        self._over = True
        self._connecting.cancel()
        if self._tunnel is not None:
            self._tunnel.give_up()

    # Called by the tunnel

    def succeeded(self, protocol: IProtocol) -> None:
        """The tunnel is open."""
        if not self._over:
            self._over = True
            self.opened.callback(protocol)

    def failed(self, reason: Failure) -> None:
        """There will be no tunnel."""
        if not self._over:
            self._over = True
            self.opened.errback(reason)

    def refused(self, proxy: str, status: int) -> None:
        """The proxy says no."""
        with_credentials = self._authorization is not None
        error = refusal(self._authority, proxy, status, with_credentials=with_credentials)
        self.failed(Failure(error))

    def malformed(self, problem: str) -> None:
        """The proxy says nothing that could be understood."""
        self.failed(Failure(TunnelReplyMalformed(self._authority, problem)))


class _Tunnel(Protocol):
    """Asks the proxy, and is the wrapped protocol from then on.

    Built when the proxy is connected and not when the tunnel is open, since whoever
    wraps it may look then, once, whether it takes half-closes.
    """

    def __init__(self, wrapped: IProtocol, request: bytes, attempt: _Attempt) -> None:
        self._wrapped = wrapped
        self._request = request
        self._attempt = attempt
        self._reply = ConnectReply()
        self._open = False
        self._over = False
        if IHalfCloseableProtocol.providedBy(wrapped):
            directlyProvides(self, IHalfCloseableProtocol)

    def logPrefix(self) -> str:
        """The wrapped protocol's."""
        if ILoggingContext.providedBy(self._wrapped):
            return str(cast("ILoggingContext", self._wrapped).logPrefix())
        return type(self._wrapped).__name__

    @property
    def _stream(self) -> Stream:
        return cast("Stream", self.transport)

    # Protocol

    def connectionMade(self) -> None:
        """The proxy is there: ask it."""
        self._stream.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        """The reply, or what comes through the tunnel."""
        if self._open:
            self._wrapped.dataReceived(data)
        elif not self._over:
            self._answered(data)

    def readConnectionLost(self) -> None:
        """The other side has sent its last byte."""
        if self._open:
            cast("IHalfCloseableProtocol", self._wrapped).readConnectionLost()
        else:
            self._ended()

    def writeConnectionLost(self) -> None:
        """Our own last byte is out."""
        if self._open:
            cast("IHalfCloseableProtocol", self._wrapped).writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Gone."""
        if self._open:
            self._open = False
            self._wrapped.connectionLost(reason)
        elif reason.check(ConnectionDone, ConnectionLost) is not None:
            self._ended()
        else:
            # TLS with the proxy that came to nothing.
            self._over = True
            self._attempt.failed(reason)

    def give_up(self) -> None:
        """Whoever wanted the tunnel doesn't any more."""
        if not (self._open or self._over):
            self._over = True
            if self.transport is not None:
                self._stream.abortConnection()

    # The reply

    def _answered(self, data: bytes) -> None:
        try:
            self._reply.feed(data)
        except HttpMessageError as error:
            self.give_up()
            problem = f"the proxy {self._peer} sent no HTTP/1 response ({error.reason.value})"
            self._attempt.malformed(problem)
            return
        if self._reply.opened:
            self._connect(self._reply.rest())
        elif self._reply.status is not None:
            self.give_up()
            self._attempt.refused(self._peer, self._reply.status)

    def _connect(self, rest: bytes) -> None:
        self._open = True
        try:
            self._wrapped.makeConnection(cast("ITransport", self.transport))
        except Exception:  # noqa: BLE001 - whoever waits for the connection gets it
            self._attempt.failed(Failure())
            self._stream.abortConnection()
            return
        self._attempt.succeeded(self._wrapped)
        # Twisted's transports read no more once they have been told to close. An abort may
        # be a relay that takes the socket over (RelayProtocol.detach), and needs the rest.
        if rest and self._open and not getattr(self.transport, "disconnecting", False):
            self._wrapped.dataReceived(rest)

    def _ended(self) -> None:
        self.give_up()
        self._attempt.malformed(f"the proxy {self._peer} closed the connection unasked")

    @property
    def _peer(self) -> str:
        peer = self._stream.getPeer()
        host, port = getattr(peer, "host", None), getattr(peer, "port", None)
        return str(peer) if host is None or port is None else f"{host}:{port}"
