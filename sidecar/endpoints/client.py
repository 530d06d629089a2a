"""Dialling from an address that isn't this host's."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from twisted.internet import defer
from twisted.internet.error import NoProtocol
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from sidecar.dialing import Source
from sidecar.errors import ConnectionRefused, DialError
from sidecar.runtime import Runtime

if TYPE_CHECKING:
    import socket

    from twisted.internet.interfaces import IAddress, IProtocol
    from twisted.internet.protocol import ServerFactory

    from sidecar.addresses import SocketAddress
    from sidecar.interfaces import IRelayReactor

__all__ = ["TransparentClientEndpoint"]


@implementer(IStreamClientEndpoint)
class TransparentClientEndpoint:
    """Dials from an address that need not be this host's.

    The answers come back only if the network routes that address here.

    Args:
        reactor: Where the connection belongs.
        address: Where to.
        source: An IP literal of the same family, to dial from.
        mark: SO_MARK of the connection, 1 to 2**32 - 1; None for none.
        runtime: Shared with others; None for a new one.
    """

    def __init__(
        self,
        reactor: IRelayReactor,
        address: SocketAddress,
        source: str,
        mark: int | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._reactor = reactor
        self._address = address
        self._source = Source(source, source, transparent=True)
        self._mark = mark
        self._runtime = runtime

    def connect(self, protocolFactory: IProtocolFactory) -> defer.Deferred[IProtocol]:
        """Connect.

        Returns:
            Fires with the protocol; fails with a `DialError`, or with NoProtocol where
            the factory built none.
        """
        if self._runtime is None:
            self._runtime = Runtime.make(self._reactor, mark=self._mark)
        runtime = self._runtime

        def cancel(_: defer.Deferred[IProtocol]) -> None:
            if dial is not None:
                dial.cancel()

        connected: defer.Deferred[IProtocol] = defer.Deferred(cancel)

        def done(outcome: socket.socket | DialError, _: SocketAddress) -> None:
            if isinstance(outcome, DialError):
                connected.errback(outcome)
                return
            keeper = _Keeper(protocolFactory)
            try:
                outcome.getpeername()
            except OSError as error:
                # Reset already; without a peer Twisted makes no transport.
                outcome.close()
                connected.errback(ConnectionRefused(str(self._address), str(error.strerror)))
                return
            runtime.reactor.adoptStreamConnection(
                outcome.fileno(), outcome.family, cast("ServerFactory", keeper)
            )
            outcome.close()
            if keeper.protocol is None:
                connected.errback(keeper.failure or NoProtocol())
            else:
                connected.callback(keeper.protocol)

        dial = runtime.dialer.dial(self._address, done, self._source)
        return connected


@implementer(IProtocolFactory)
class _Keeper:
    """Builds the wrapped factory's protocol and keeps it."""

    def __init__(self, wrapped: IProtocolFactory) -> None:
        self._wrapped = wrapped
        self.protocol: IProtocol | None = None
        self.failure: Failure | None = None
        self.doStart = wrapped.doStart
        self.doStop = wrapped.doStop

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:
        """The wrapped factory's protocol."""
        try:
            self.protocol = self._wrapped.buildProtocol(addr)
        except Exception:  # noqa: BLE001 - whoever waits for the connection gets it
            self.failure = Failure()
        return self.protocol
