"""Listening, so that every connection's ``getHost()`` is its original destination."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from twisted.internet import defer
from twisted.internet.interfaces import IProtocolFactory, IStreamServerEndpoint
from twisted.logger import Logger
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.destinations import DestinationFinder, InterceptMode
from sidecar.endpoints.ports import prepare
from sidecar.errors import ListenError, ListenPrivilegeError
from sidecar.interfaces import ISocketFactory
from sidecar.linux.sockopt import set_transparent
from sidecar.listening import FlowPort
from sidecar.runtime import Runtime

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort

    from sidecar.interfaces import IRelayReactor

__all__ = ["BACKLOG", "TransparentServerEndpoint"]

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
            prepare(sock, runtime)
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


def _runtime_of(factory: IProtocolFactory) -> Runtime | None:
    sockets = ISocketFactory(factory, None)
    runtime: Runtime | None = None if sockets is None else sockets.runtime
    return runtime


def _stream_socket(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock


def _why_not(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port is taken (choose another, or stop what listens there: ss -ltnp)"
    if error.errno == errno.EACCES:
        return "ports below 1024 need CAP_NET_BIND_SERVICE (run as root, or choose another)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this host has no such address"
    return error.strerror or str(error)
