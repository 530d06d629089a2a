"""Plain HTTP that was going elsewhere: who judges each request of such a connection?

Where a name matters to the policy, a connection's first bytes are read for it. If they are
HTTP, the connection is served by the proxy's engine from there on, so that the Host of
every request counts and not only that of the first. Where no name matters nothing is read,
and the connection is relayed as any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zope.interface import implementer

from sidecar.config import HttpLimits
from sidecar.flow import FlowEnd, Protocol
from sidecar.interfaces import IFlowObserver
from sidecar.protocols.http.by_host import Intercepted, Named
from sidecar.protocols.http.downstream import Downstream
from sidecar.protocols.http.shared import Shared
from sidecar.protocols.http.upstream import Upstream
from sidecar.protocols.judging import Judging
from sidecar.protocols.routing import Routing as RoutingByName
from sidecar.relay.stream import SocketTransport

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from sidecar.admission import Admission
    from sidecar.flow import Flow
    from sidecar.names.resolving import INameResolver
    from sidecar.protocols.http.routing import Routing
    from sidecar.protocols.judge import Allowed, Judge
    from sidecar.runtime import Runtime

__all__ = ["InterceptedHTTP"]

_LIMITS = HttpLimits()


class InterceptedHTTP:
    """Serves HTTP on connections that listeners for other things accept.

    Args:
        runtime: Shared with every listener of the process.
        judge: Who says whether a request may.
        resolver: Asked for the names.
        limits: What keeps it bounded.
    """

    def __init__(
        self,
        runtime: Runtime,
        judge: Judge,
        resolver: INameResolver,
        limits: HttpLimits = _LIMITS,
    ) -> None:
        self.shared = Shared(runtime, judge, resolver, limits=limits)
        self._counter = _Counter(runtime.admission)
        # By the port, since that is where the names' requests go.
        self._named: dict[int, Named] = {}

    def close(self) -> None:
        """Let go of idle connections; to be called when nobody is served any more."""
        self.shared.close()

    def judge(
        self, connection: socket.socket, flow: Flow, allowed: Callable[[Allowed], None]
    ) -> None:
        """Judge an intercepted connection; serve it, if it speaks HTTP where names matter.

        Args: as `Judging`.
        """
        _Judging(self, connection, flow, allowed)

    def route(
        self, connection: socket.socket, flow: Flow, allowed: Callable[[Allowed], None]
    ) -> None:
        """Likewise one that goes by the name that it asks for.

        Args: as `sidecar.protocols.routing.Routing`.
        """
        _Routing(self, connection, flow, allowed)

    def serve_intercepted(
        self, connection: socket.socket, flow: Flow, data: bytes, upstream: socket.socket | None
    ) -> None:
        """Serve a connection from its first byte on.

        Args:
            connection: The client's; ours.
            flow: The connection's, which is no request's.
            data: What has been read.
            upstream: A connection to the destination, where there is one already.
        """
        shared, destination = self.shared, flow.destination
        assert destination is not None  # noqa: S101 - no others are judged
        if upstream is not None:
            shared.pool.put(Upstream(shared, upstream, destination, destination))
        routing = Intercepted(shared.judge, flow.listener, destination, flow.destination_from)
        self._serve(connection, flow, data, routing)

    def serve_named(self, connection: socket.socket, flow: Flow, data: bytes) -> None:
        """Likewise one that goes by names."""
        port = connection.getsockname()[1]
        routing = self._named.get(port)
        if routing is None:
            shared = self.shared
            routing = self._named[port] = Named(shared.judge, shared.resolver, port)
        self._serve(connection, flow, data, routing)

    def _serve(self, connection: socket.socket, flow: Flow, data: bytes, routing: Routing) -> None:
        # From here on requests are logged, and the connection only counted.
        flow.observer = self._counter
        downstream = Downstream(
            self.shared, routing, flow.source, lambda _: flow.finish(FlowEnd.CLOSED)
        )
        SocketTransport(self.shared.runtime.poller, connection, downstream, peer=flow.source)
        downstream.dataReceived(data)


@implementer(IFlowObserver)
class _Counter:
    """Counts connections that end."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def flow_ended(self, flow: Flow) -> None:  # noqa: ARG002 - it stands for the connection
        """One is open no more."""
        self._admission.closed()


class _Judging(Judging):
    """As `Judging`; what speaks HTTP is judged request by request instead."""

    __slots__ = ("_http",)

    def __init__(
        self,
        http: InterceptedHTTP,
        connection: socket.socket,
        flow: Flow,
        allowed: Callable[[Allowed], None],
    ) -> None:
        # First, since what is there already is heard at once.
        self._http = http
        shared = http.shared
        super().__init__(shared.runtime, shared.judge, connection, flow, allowed)

    def _names_known(self) -> None:
        flow = self._flow
        if flow.protocol is not Protocol.HTTP or flow.destination is None:
            self._decide()
            return
        upstream = self._upstream(flow.destination)
        self._http.serve_intercepted(self._connection, flow, self._data, upstream)


class _Routing(RoutingByName):
    """As `RoutingByName`; what speaks HTTP is routed request by request instead."""

    __slots__ = ("_http",)

    def __init__(
        self,
        http: InterceptedHTTP,
        connection: socket.socket,
        flow: Flow,
        allowed: Callable[[Allowed], None],
    ) -> None:
        self._http = http
        shared = http.shared
        super().__init__(shared.runtime, shared.judge, connection, flow, allowed, shared.resolver)

    def _names_known(self) -> None:
        if self._flow.protocol is Protocol.HTTP:
            self._http.serve_named(self._connection, self._flow, self._data)
        else:
            super()._names_known()
