"""Plain HTTP that was going elsewhere: who judges each request of such a connection?

Where a name matters to the policy, a connection's first bytes are read for it. If they are
HTTP, the connection is served by the proxy's engine from there on, so that the Host of
every request counts and not only that of the first. Where no name matters nothing is read,
and the connection is relayed as any other.

The engine is imported when the first such connection comes: it is a good part of all that
there is to import, and most commands that `sidecar exec` runs never need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.config import HttpLimits
from sidecar.flow import Protocol
from sidecar.protocols.judging import Judging
from sidecar.protocols.routing import Routing as RoutingByName

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from sidecar.flow import Flow
    from sidecar.names.resolving import INameResolver
    from sidecar.protocols.http.by_request import ByRequest
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
        self.runtime = runtime
        self.by = judge
        self.resolver = resolver
        self._limits = limits
        self._engine: ByRequest | None = None

    @property
    def engine(self) -> ByRequest:
        """Who serves such connections."""
        if self._engine is None:
            from sidecar.protocols.http.by_request import ByRequest

            self._engine = ByRequest(self.runtime, self.by, self.resolver, self._limits)
        return self._engine

    @property
    def requests(self) -> list[Flow]:
        """The flows of the requests that are under way."""
        return [] if self._engine is None else self._engine.requests

    def close(self) -> None:
        """Let go of idle connections; to be called when nobody is served any more."""
        if self._engine is not None:
            self._engine.close()

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
        super().__init__(http.runtime, http.by, connection, flow, allowed)

    def _names_known(self) -> None:
        flow = self._flow
        # Whoever is only listened to may say what nobody could judge.
        if flow.protocol is not Protocol.HTTP or flow.destination is None or flow.problem:
            self._decide()
            return
        if self._server_spoke and self._allowed_anyway:
            self._decide()
            return
        if self._server_spoke:
            # No response to a request begins before it, and what was said was none of ours.
            self.deny("server_spoke_first", hint=self._way_round())
            return
        upstream = self._upstream(flow.destination)
        self._http.engine.serve_intercepted(self._connection, flow, self._data, upstream)


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
        super().__init__(http.runtime, http.by, connection, flow, allowed, http.resolver)

    def _names_known(self) -> None:
        if self._flow.protocol is Protocol.HTTP:
            self._http.engine.serve_named(self._connection, self._flow, self._data)
        else:
            super()._names_known()
