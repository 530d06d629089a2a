"""How connections are accepted: bounded, each with its destination, or refused."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, cast

from twisted.internet import defer, tcp
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.admission import ConnectionCounter
from sidecar.destinations import NotIntercepted, OriginalDestination
from sidecar.flow import Flow, FlowEnd, ListenerKind
from sidecar.interfaces import (
    IFlowObserver,
    IManyFlowsFactory,
    IOpeningObserver,
    ISocketFactory,
)
from sidecar.relay.poller import READ
from sidecar.relay.resets import reset
from sidecar.relay.stream import twisted_address

if TYPE_CHECKING:
    from twisted.internet.address import IPv4Address, IPv6Address
    from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
    from twisted.python.failure import Failure

    from sidecar.destinations import DestinationFinder
    from sidecar.interfaces import IRelayReactor
    from sidecar.runtime import Runtime

__all__ = ["FlowPort", "twisted_address"]

_STREAM = int(socket.SOCK_STREAM)
# accept(2): the connection is gone, or a firewall refused it; the next one is fine.
_NEXT = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR})


@implementer(IListeningPort, IFlowObserver)
class FlowPort:
    """A listening socket whose connections are flows.

    A factory that provides `ISocketFactory` gets the accepted sockets, where it
    provides `IManyFlowsFactory` with flows that nobody is told of; any other gets
    protocols on Twisted transports, whose ``getHost()`` is the original destination.

    Args:
        runtime: Shared with the other listeners.
        sock: Bound and listening, non-blocking; ours from here on.
        factory: Whom the connections are for.
        finder: Knows the original destinations; None where connections are meant for
            the listener itself.
        lender: The port whose socket this one shares; stopped with it.

    Attributes:
        refused: Connections refused because nothing had intercepted them.
    """

    _log = Logger()

    def __init__(
        self,
        runtime: Runtime,
        sock: socket.socket,
        factory: IProtocolFactory,
        finder: DestinationFinder | None,
        lender: IListeningPort | None = None,
    ) -> None:
        self._runtime = runtime
        self._socket = sock
        self._fd = sock.fileno()
        self._family = int(sock.family)
        self._factory = factory
        self._finder = finder
        self._lender = lender
        self._sockets: ISocketFactory | None = ISocketFactory(factory, None)
        # Whom an accepted socket's flow tells of its end.
        self._told: IFlowObserver = (
            ConnectionCounter(runtime.admission, runtime.observer)
            if IManyFlowsFactory.providedBy(factory)
            else self
        )
        self._kind = ListenerKind.OUTBOUND if self._sockets is None else self._sockets.kind
        self._address = SocketAddress.from_kernel(sock.getsockname())
        self._opening: IOpeningObserver | None = IOpeningObserver(runtime.observer, None)
        self._listening = False
        self._serial = 0
        self.refused = 0

    # IListeningPort

    def startListening(self) -> None:
        """Begin to accept."""
        self._factory.doStart()
        self._listening = True
        self._runtime.guard.add_listener(self._address)
        if self._finder is not None:
            self._runtime.guard.tracks_upstreams = True
        self._runtime.poller.register(self._fd, READ, self)
        self._log.info("{kind} listens on {address}", kind=self._kind.value, address=self._address)

    def stopListening(self) -> defer.Deferred[None]:
        """Accept no more; what is open goes on."""
        if not self._listening:
            return defer.succeed(None)
        self._listening = False
        self._runtime.guard.remove_listener(self._address)
        self._runtime.poller.unregister(self._fd)
        self._socket.close()
        self._factory.doStop()
        stopped = None if self._lender is None else self._lender.stopListening()
        return stopped if isinstance(stopped, defer.Deferred) else defer.succeed(None)

    def getHost(self) -> IPv4Address | IPv6Address:
        """The address that is listened on."""
        return twisted_address(self._address)

    # The poller's side

    def ready(self, events: int) -> None:  # noqa: ARG002 - errors show in accept()
        """Accept what waits, up to the limits."""
        admission = self._runtime.admission
        for _ in range(self._runtime.limits.accepts_per_wakeup):
            if admission.full:
                self._pause()
                return
            try:
                # What socket.accept() does, without asking for the listener's family
                # and type, whose enums take longer than the system call.
                fd, sockaddr = self._socket._accept()  # type: ignore[attr-defined]  # noqa: SLF001
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NEXT:
                    continue
                self._pause(error)
                return
            connection = socket.socket(self._family, _STREAM, 0, fd)
            connection.setblocking(False)
            self._accepted(connection, SocketAddress.from_kernel(sockaddr))

    def failed(self) -> None:
        """A bug while accepting cost one connection; the listener goes on."""

    def shut_down(self) -> None:
        """The process ends."""
        self.stopListening()

    def _pause(self, cause: OSError | None = None) -> None:
        self._runtime.poller.modify(self._fd, 0)
        self._runtime.admission.pause(self._resume, cause)

    def _resume(self) -> None:
        if self._listening:
            self._runtime.poller.modify(self._fd, READ)

    # A connection

    def _accepted(self, connection: socket.socket, source: SocketAddress) -> None:
        destination: OriginalDestination | None = None
        if self._finder is not None:
            found = self._finder.find(connection, source)
            looped = self._runtime.guard.owner(source, found.address)
            if looped is not None:
                reset(connection)
                looped.looped()
                return
            if isinstance(found, NotIntercepted):
                self._refuse(connection, source, found)
                return
            destination = found
        admission = self._runtime.admission
        admission.opened()
        if self._sockets is None:
            self._hand_to_protocol(connection, source, destination)
            return
        flow = Flow(
            self._kind,
            source,
            None if destination is None else destination.address,
            None if destination is None else destination.found_by,
            self._told,
        )
        if self._opening is not None:
            self._tell_of_opening(self._opening, flow)
        try:
            self._sockets.socket_accepted(connection, flow)
        except Exception:  # noqa: BLE001 - somebody else's code; see `failed`
            self._log.failure("bug in a factory; the connection is closed")
            reset(connection)
            flow.finish(FlowEnd.PROTOCOL_ERROR)

    def _refuse(
        self, connection: socket.socket, source: SocketAddress, found: NotIntercepted
    ) -> None:
        self.refused += 1
        reset(connection)
        if self._runtime.observer is None:
            self._log.info(
                "{source} dialled {listener} itself; only intercepted connections are served",
                source=source,
                listener=found.address,
            )
            return
        flow = Flow(self._kind, source, found.address, None, self._runtime.observer)
        flow.deny("not_intercepted")

    def _hand_to_protocol(
        self,
        connection: socket.socket,
        source: SocketAddress,
        destination: OriginalDestination | None,
    ) -> None:
        try:
            protocol = self._factory.buildProtocol(twisted_address(source))
        except Exception:  # noqa: BLE001 - somebody else's code; see `failed`
            self._log.failure("bug in a factory; the connection is closed")
            reset(connection)
            self._runtime.admission.closed()
            return
        if protocol is None:
            connection.close()
            self._runtime.admission.closed()
            return
        self._serial += 1
        transport = _InterceptedServer(
            connection, protocol, source, self, self._serial, self._runtime.reactor
        )
        if destination is not None:
            transport.original_destination = destination
        protocol.makeConnection(transport)

    def _tell_of_opening(self, observer: IOpeningObserver, flow: Flow) -> None:
        try:
            observer.flow_opened(flow)
        except Exception:  # noqa: BLE001 - an observer can't be allowed to stop traffic
            self._log.failure("bug in a flow observer")

    def flow_ended(self, flow: Flow) -> None:
        """One connection fewer is open; pass the word on."""
        self._runtime.admission.closed()
        if self._runtime.observer is not None:
            try:
                self._runtime.observer.flow_ended(flow)
            except Exception:  # noqa: BLE001 - an observer can't be allowed to stop traffic
                self._log.failure("bug in a flow observer")

    # What tcp.Server asks of its port, besides
    @property
    def _realPortNumber(self) -> int:
        return self._address.port

    def connection_lost(self) -> None:
        """A transport that we made has gone."""
        self._runtime.admission.closed()


class _InterceptedServer(tcp.Server):
    """Twisted's transport of an accepted connection, that tells the original destination."""

    original_destination: OriginalDestination | None = None

    def __init__(
        self,
        connection: socket.socket,
        protocol: IProtocol,
        source: SocketAddress,
        port: FlowPort,
        serial: int,
        reactor: IRelayReactor,
    ) -> None:
        # Four fields make an IPv6Address, two an IPv4Address (tcp.Server).
        client = (
            (source.host, source.port, 0, 0) if ":" in source.host else (source.host, source.port)
        )
        self._port = port
        # Of its port it wants the number, for its own name.
        super().__init__(connection, protocol, client, cast("tcp.Port", port), serial, reactor)

    def getHost(self) -> IAddress:
        """The original destination."""
        if self.original_destination is None:
            return twisted_address(SocketAddress.from_kernel(self.socket.getsockname()))
        return twisted_address(self.original_destination.address)

    def connectionLost(self, reason: Failure) -> None:
        """Gone."""
        super().connectionLost(reason)
        self._port.connection_lost()
