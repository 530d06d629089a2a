"""Endpoints that Twisted does not have: transparent listening and dialling.

`TransparentServerEndpoint` makes every accepted connection's ``getHost()`` its
original destination, whichever way it was intercepted. `TransparentClientEndpoint`
dials from an address that isn't this host's.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from twisted.internet import defer, tcp
from twisted.internet.error import NoProtocol
from twisted.internet.interfaces import (
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.destinations import DestinationFinder, InterceptMode
from sidecar.dialing import Source
from sidecar.errors import ConnectionRefused, DialError, ListenError, ListenPrivilegeError
from sidecar.interfaces import ISocketFactory
from sidecar.linux.sockopt import keep_alive, set_mark, set_transparent
from sidecar.listening import FlowPort
from sidecar.runtime import Runtime

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IListeningPort, IProtocol
    from twisted.internet.protocol import ServerFactory

    from sidecar.interfaces import IRelayReactor

__all__ = [
    "BACKLOG",
    "TransparentClientEndpoint",
    "TransparentServerEndpoint",
    "adopt_port",
]

# Connections that the kernel completes and keeps for us; capped by
# net.core.somaxconn. A burst beyond it is delayed by a second (SYN retransmission).
BACKLOG = 1024

_WILDCARD_IPV4 = "0.0.0.0"  # noqa: S104 - REDIRECT in PREROUTING needs the wildcard
_WILDCARD_IPV6 = "::"


@implementer(IStreamServerEndpoint)
class TransparentServerEndpoint:
    """Accepts connections that netfilter rules brought here (DESIGN §4).

    Connections that were not intercepted never reach the factory: they are reset,
    counted and logged.

    Args:
        reactor: Where the listener belongs.
        port: 1 to 65535, or 0 for any free one.
        interface: An IP literal to bind to. Empty: every address of both families on
            one dual-stack socket, or IPv4 alone on a host without IPv6. Rules that
            redirect what arrives from elsewhere need that.
        mode: Which mechanisms to expect. `InterceptMode.TPROXY` needs CAP_NET_ADMIN
            or CAP_NET_RAW; `InterceptMode.AUTO` does without where it must.
        backlog: Completed connections that the kernel keeps for us, 1 or more.
        runtime: Shared with other listeners; None for the factory's own, or a new one.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IRelayReactor,
        port: int,
        interface: str = "",
        mode: InterceptMode = InterceptMode.AUTO,
        backlog: int = BACKLOG,
        runtime: Runtime | None = None,
    ) -> None:
        self._reactor = reactor
        self._port = port
        self._interface = interface
        self._mode = mode
        self._backlog = backlog
        self._runtime = runtime

    def listen(self, protocolFactory: IProtocolFactory) -> defer.Deferred[IListeningPort]:
        """Open the listener.

        Returns:
            Fires at once with the port; fails with `ListenPrivilegeError` or
            `ListenError`.
        """
        return defer.execute(self._listen, protocolFactory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        runtime = self._runtime or _runtime_of(factory) or Runtime.make(self._reactor)
        sock, host = self._open()
        try:
            transparent = self._make_transparent(sock)
            _prepare(sock, runtime)
            sock.bind((host, self._port))
            sock.listen(self._backlog)
        except OSError as error:
            sock.close()
            raise ListenError(self._where(host), _why_not(error)) from error
        except ListenError:
            sock.close()
            raise
        finder = DestinationFinder(self._mode, sock.getsockname()[1], transparent=transparent)
        port = FlowPort(runtime, sock, factory, finder)
        port.startListening()
        return port

    def _where(self, host: str) -> str:
        return str(SocketAddress(host, self._port))

    def _open(self) -> tuple[socket.socket, str]:
        if self._interface:
            family = socket.AF_INET6 if ":" in self._interface else socket.AF_INET
            try:
                return _stream_socket(family), self._interface
            except OSError as error:
                raise ListenError(self._where(self._interface), _why_not(error)) from error
        try:
            sock = _stream_socket(socket.AF_INET6)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                raise ListenError(self._where(_WILDCARD_IPV6), _why_not(error)) from error
            return _stream_socket(socket.AF_INET), _WILDCARD_IPV4
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        return sock, _WILDCARD_IPV6

    def _make_transparent(self, sock: socket.socket) -> bool:
        if self._mode is InterceptMode.REDIRECT:
            return False
        try:
            set_transparent(sock)
        except PermissionError:
            if self._mode is InterceptMode.TPROXY:
                raise ListenPrivilegeError(
                    self._where(self._interface or _WILDCARD_IPV6),
                    "IP_TRANSPARENT needs CAP_NET_ADMIN or CAP_NET_RAW (run as root, or"
                    " setpriv --ambient-caps +net_raw --inh-caps +net_raw, or use mode=redirect)",
                ) from None
            self._log.info(
                "port {port} serves REDIRECT only: TPROXY needs CAP_NET_ADMIN or CAP_NET_RAW",
                port=self._port,
            )
            return False
        return True


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


def adopt_port(runtime: Runtime, port: IListeningPort, factory: IProtocolFactory) -> IListeningPort:
    """Serve a listening port of Twisted's the way our own are served.

    A plain TCP port accepts through Twisted's transports, several times slower than
    sockets handed over, so it is left to sleep while we accept on its socket. Any
    other port (TLS, unix, a wrapped one) stays as it is.

    Args:
        runtime: Shared with the other listeners.
        port: What an endpoint's listen() fired with; stopped with its replacement.
        factory: What it was made to listen with.

    Returns:
        The port that serves, which may be the one given.
    """
    if type(port) is not tcp.Port or port.factory is not factory:
        return port
    sock = socket.socket(fileno=socket.dup(port.fileno()))
    sock.setblocking(False)
    _prepare(sock, runtime)
    port.stopReading()
    replacement = FlowPort(runtime, sock, factory, None, port)
    replacement.startListening()
    return replacement


def _runtime_of(factory: IProtocolFactory) -> Runtime | None:
    sockets = ISocketFactory(factory, None)
    runtime: Runtime | None = None if sockets is None else sockets.runtime
    return runtime


def _stream_socket(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock


def _prepare(sock: socket.socket, runtime: Runtime) -> None:
    """Set what the accepted sockets inherit: a system call once instead of each time."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(sock, runtime.limits.keepalive)
    if runtime.mark is not None:
        # Where it isn't permitted the rules know us by our uid alone; the dialer says so.
        with suppress(PermissionError):
            set_mark(sock, runtime.mark)


def _why_not(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port is taken (choose another, or stop what listens there: ss -ltnp)"
    if error.errno == errno.EACCES:
        return "ports below 1024 need CAP_NET_BIND_SERVICE (run as root, or choose another)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this host has no such address"
    return error.strerror or str(error)
