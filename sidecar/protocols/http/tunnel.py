"""How a client's connection and a server's become one, and how that ends.

What is joined is no HTTP any more, so the relay's rules apply (docs/reference/relay.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sidecar.flow import FlowEnd, Verdict
from sidecar.relay import Joined, RelayProtocol, start
from sidecar.relay.stream import SocketTransport

if TYPE_CHECKING:
    import socket

    from twisted.internet.interfaces import ITransport

    from sidecar.flow import Flow
    from sidecar.protocols.http.downstream import Downstream
    from sidecar.protocols.relaying import Relaying
    from sidecar.relay import Totals

__all__ = ["Tunnel"]


class Tunnel:
    """A client's connection and a server's, joined.

    Spliced where the client's is a plain TCP connection; buffered where Twisted has it,
    for TLS.

    Args:
        downstream: The client's; taken over here.
        flow: Ended here.
        upstream: The server's: connected, non-blocking; ours.
        to_upstream: What was read from the client, delivered first.
        to_downstream: What was read from the server, likewise.
        skipped: How many of the bytes to the server are none of the tunnel's.
        received: How many the client has been sent of the tunnel already.
    """

    __slots__ = (
        "_downstream",
        "_ends",
        "_flow",
        "_joined",
        "_received",
        "_sent",
        "_ward",
    )

    def __init__(
        self,
        downstream: Downstream,
        flow: Flow,
        upstream: socket.socket,
        to_upstream: bytes,
        to_downstream: bytes,
        *,
        skipped: int = 0,
        received: int = 0,
    ) -> None:
        self._downstream = downstream
        self._flow = flow
        self._joined = Joined()
        # Whether the process' end has to be told by the poller: Twisted's own aren't.
        self._ward = not isinstance(downstream.transport, SocketTransport)
        # To be added to the relay's totals.
        self._sent = -skipped
        self._received = received
        shared = downstream.shared
        runtime = shared.runtime
        self._ends = runtime.guard.track(upstream, flow.upstream, self)
        if flow.destination is not None:
            # What goes through another proxy has none that could be judged again.
            shared.judge.relayed(flow, cast("Relaying", self))
        downstream.leave()
        flow.counts = self._counts
        transport = downstream.transport
        if isinstance(transport, SocketTransport):
            # What HTTP has still to say comes first, and is none of the tunnel's.
            unwritten = transport.take_unwritten()
            self._received -= len(unwritten)
            relay = runtime.engine.relay(
                transport.detach(),
                upstream,
                self._ended,
                to_upstream=to_upstream,
                to_downstream=unwritten + to_downstream,
            )
            self._joined.started(relay)
            return
        runtime.poller.wards.add(self)
        side = RelayProtocol.take_over(cast("ITransport", transport), eof=downstream.ended)
        start(
            runtime.engine,
            side,
            upstream,
            self._ended,
            self._joined,
            to_upstream=to_upstream,
            to_downstream=to_downstream,
        )

    def deny(self, reason: str, rule: str | None) -> None:
        """End what a new policy denies."""
        self._refuse(reason, rule, FlowEnd.DENIED)

    def looped(self) -> None:
        """The connection upstream came back to one of our own listeners."""
        self._refuse(FlowEnd.PROXY_LOOP_DETECTED.value, None, FlowEnd.PROXY_LOOP_DETECTED)

    def _refuse(self, reason: str, rule: str | None, end: FlowEnd) -> None:
        flow = self._flow
        flow.verdict = Verdict.DENY
        flow.reason = reason
        flow.rule = rule
        self._joined.abort(end)

    def _counts(self) -> tuple[int, int]:
        totals = self._joined.totals
        sent, received = (0, 0) if totals is None else (totals.sent, totals.received)
        return max(0, self._sent + sent), max(0, self._received + received)

    def _ended(self, totals: Totals) -> None:
        flow, downstream = self._flow, self._downstream
        runtime = downstream.shared.runtime
        runtime.guard.forget(self._ends)
        if self._ward:
            runtime.poller.wards.discard(self)
        flow.sent = max(0, self._sent + totals.sent)
        flow.received = max(0, self._received + totals.received)
        flow.finish(totals.end or FlowEnd.CLOSED)
        downstream.shared.judge.ended(flow)
        downstream.left()

    # The poller's side, as its ward: sockets are shut down by themselves

    def ready(self, events: int) -> None:
        """Nothing is asked for."""

    def failed(self) -> None:
        """Nor is there anything to fail."""

    def shut_down(self) -> None:
        """The process ends."""
        self._joined.abort(FlowEnd.SHUTDOWN)
        # Twisted's transports close in a later turn, which may not come.
        totals = self._joined.totals
        if totals is not None and self._flow.end is None:
            self._ended(totals._replace(end=FlowEnd.SHUTDOWN))
