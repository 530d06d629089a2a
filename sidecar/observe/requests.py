"""The HTTP requests of one connection to one host as one flow, for people and for counts.

A client that keeps its connection may ask ten thousand times; whoever looks on wants to
know of the connection. What was denied or failed is told at once, all else when the
connection ends, or goes on for long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zope.interface import implementer

from sidecar.flow import Flow, FlowEnd, Verdict
from sidecar.interfaces import IOpeningObserver

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.addresses import SocketAddress
    from sidecar.interfaces import IFlowObserver

__all__ = ["FAILURES", "KEPT_MAX", "ByConnection", "Requests"]

KEPT_MAX = 16
"""Hosts that are told apart on one connection, and likewise kinds of denials and failures."""

FAILURES = frozenset(
    {
        FlowEnd.CONNECTION_REFUSED,
        FlowEnd.CONNECTION_TIMEOUT,
        FlowEnd.DESTINATION_UNROUTABLE,
        FlowEnd.DNS_ERROR,
        FlowEnd.DNS_TIMEOUT,
        FlowEnd.PROTOCOL_ERROR,
    }
)
"""How a connection that was allowed ends without having come about."""


class Requests(Flow):
    """Requests of one connection to one host, with the facts of the last.

    What was sent includes the requests' heads.

    Attributes:
        requests: How many have ended.
        again: Whether others, on this connection and with the same outcome, were told of
            before.
        current: The one that is under way; None between two.
    """

    requests: int = 0
    again: bool = False
    current: Flow | None = None

    @classmethod
    def beginning_with(cls, flow: Flow) -> Requests:
        """Stand for a request, which isn't counted yet."""
        return cls(
            flow.listener,
            flow.source,
            flow.destination,
            flow.destination_from,
            protocol=flow.protocol,
            host=flow.host,
            host_from=flow.host_from,
            started=flow.started,
            started_monotonic=flow.started_monotonic,
            process=flow.process,
            connection=flow.connection,
        )

    def add(self, flow: Flow) -> None:
        """Count a request that has ended."""
        self.requests += 1
        self.current = None
        self.sent += flow.head_sent + flow.sent
        self.received += flow.received
        self.seconds = flow.started_monotonic + flow.seconds - self.started_monotonic
        self.names_known = flow.names_known
        self.verdict = flow.verdict
        self.reason = flow.reason
        self.rule = flow.rule
        self.hint = flow.hint
        self.upstream = flow.upstream or self.upstream
        self.end = flow.end

    def amounts(self) -> tuple[int, int]:
        """As `Flow.amounts`."""
        current = self.current
        if current is None:
            return self.sent, self.received
        sent, received = current.amounts()
        return self.sent + current.head_sent + sent, self.received + received

    @property
    def connected(self) -> bool:
        """As `Flow.connected`."""
        return self.requests > 0 or (self.current is not None and self.current.connected)


class _Connection:
    """What is known of one connection's requests."""

    __slots__ = ("going_on", "told")

    def __init__(self) -> None:
        self.going_on: dict[tuple[str | None, SocketAddress | None], Requests] = {}
        # What was denied or has failed; and the rest of it, where it came again.
        self.told: dict[_Kind, Requests | None] = {}


_Kind = tuple["str | None", "SocketAddress | None", str, "str | None", "FlowEnd | None"]


@implementer(IOpeningObserver)
class ByConnection:
    """Tells an observer of `Requests` in the place of each request; of all else as it is.

    Args:
        observer: Whom.
        forget: Told of flows that were told of when they began, and won't be again.
    """

    def __init__(
        self,
        observer: IFlowObserver,
        forget: Callable[[Flow], None] | None = None,
    ) -> None:
        self._observer = observer
        self._opening: IOpeningObserver | None = IOpeningObserver(observer, None)
        self._forget = forget or (lambda _: None)
        self._connections: dict[int, _Connection] = {}

    def flow_opened(self, flow: Flow) -> None:
        """A connection, or a request that others may have gone before."""
        if flow.connection is None:
            if self._opening is not None:
                self._opening.flow_opened(flow)
            return
        known = self._known(flow.connection)
        requests = known.going_on.get((flow.host, flow.destination))
        if requests is None:
            requests = self._begin(known, flow)
            if self._opening is not None:
                self._opening.flow_opened(requests)
        requests.current = flow

    def flow_ended(self, flow: Flow) -> None:
        """Count it to the others, or tell of it at once."""
        if flow.connection is None:
            self._observer.flow_ended(flow)
            return
        known = self._known(flow.connection)
        goal = flow.host, flow.destination
        requests = known.going_on.get(goal)
        if flow.verdict is Verdict.ALLOW and flow.end not in FAILURES:
            (requests or self._begin(known, flow)).add(flow)
            return
        if requests is not None:
            requests.current = None
            if not requests.requests:
                del known.going_on[goal]
                self._forget(requests)
        self._went_wrong(known, flow)

    def connection_closed(self, flow: Flow) -> None:
        """Tell of all that has not been told of."""
        known = self._connections.pop(flow.serial, None)
        if known is None:
            self._forget(flow)
            return
        for requests in known.going_on.values():
            self._observer.flow_ended(requests)
        for rest in known.told.values():
            if rest is not None:
                self._observer.flow_ended(rest)

    def _known(self, connection: Flow) -> _Connection:
        known = self._connections.get(connection.serial)
        if known is None:
            known = self._connections[connection.serial] = _Connection()
            # Its requests stand for it from here on.
            self._forget(connection)
        return known

    def _begin(self, known: _Connection, flow: Flow) -> Requests:
        if len(known.going_on) >= KEPT_MAX:
            self._observer.flow_ended(known.going_on.pop(next(iter(known.going_on))))
        requests = Requests.beginning_with(flow)
        known.going_on[flow.host, flow.destination] = requests
        return requests

    def _went_wrong(self, known: _Connection, flow: Flow) -> None:
        kind = flow.host, flow.destination, flow.reason, flow.rule, flow.end
        if kind in known.told:
            rest = known.told[kind]
            if rest is None:
                rest = known.told[kind] = Requests.beginning_with(flow)
                rest.again = True
            rest.add(flow)
            return
        if len(known.told) < KEPT_MAX:
            known.told[kind] = None
        requests = Requests.beginning_with(flow)
        requests.add(flow)
        self._observer.flow_ended(requests)
