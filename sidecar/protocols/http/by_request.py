"""Connections that were accepted for something else and speak HTTP: served request by request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.admission import ConnectionCounter
from sidecar.flow import FlowEnd
from sidecar.protocols.http.by_host import Intercepted, Named
from sidecar.protocols.http.downstream import Downstream
from sidecar.protocols.http.shared import Shared
from sidecar.protocols.http.upstream import Upstream
from sidecar.relay.stream import SocketTransport

if TYPE_CHECKING:
    import socket

    from sidecar.config import HttpLimits
    from sidecar.flow import Flow
    from sidecar.names.resolving import INameResolver
    from sidecar.protocols.http.connection import Connection
    from sidecar.protocols.http.routing import Routing
    from sidecar.protocols.judge import Judge
    from sidecar.runtime import Runtime

__all__ = ["ByRequest"]


class ByRequest:
    """Serves HTTP on sockets.

    Args: as `sidecar.protocols.http.intercepted.InterceptedHTTP`.
    """

    def __init__(
        self, runtime: Runtime, judge: Judge, resolver: INameResolver, limits: HttpLimits
    ) -> None:
        self._shared = Shared(runtime, judge, resolver, limits=limits)
        self._counter = ConnectionCounter(runtime.admission, runtime.observer)
        # By the port, since that is where the names' requests go.
        self._named: dict[int, Named] = {}
        self._open: set[Connection] = set()

    @property
    def requests(self) -> list[Flow]:
        """The flows of the requests that are under way."""
        return [each.request for each in self._open if each.request is not None]

    def close(self) -> None:
        """Let go of idle connections; to be called when nobody is served any more."""
        self._shared.close()

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
        shared, destination = self._shared, flow.destination
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
            shared = self._shared
            routing = self._named[port] = Named(shared.judge, shared.resolver, port)
        self._serve(connection, flow, data, routing)

    def _serve(self, connection: socket.socket, flow: Flow, data: bytes, routing: Routing) -> None:
        # From here on requests are logged, and the connection only counted.
        flow.observer = self._counter

        def closed(downstream: Connection) -> None:
            self._open.discard(downstream)
            flow.finish(FlowEnd.CLOSED)

        downstream = Downstream(self._shared, routing, flow.source, closed, connection=flow)
        self._open.add(downstream)
        SocketTransport(self._shared.runtime.poller, connection, downstream, peer=flow.source)
        downstream.dataReceived(data)
