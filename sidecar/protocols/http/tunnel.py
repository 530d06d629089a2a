"""How a client's connection and a server's become one, and how that ends.

What is joined is no HTTP any more, so the relay's rules apply (docs/reference/relay.md).
Spliced where both are sockets of ours; where Twisted has the client's (TLS), buffered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sidecar.addresses import SocketAddress
from sidecar.flow import FlowEnd, Verdict
from sidecar.relay import Joined, RelayProtocol, start
from sidecar.relay.stream import SocketTransport

if TYPE_CHECKING:
    import socket

    from twisted.python.failure import Failure

    from sidecar.flow import Flow
    from sidecar.protocols.http.downstream import Downstream
    from sidecar.protocols.relaying import Relaying
    from sidecar.relay import Totals

__all__ = ["Tunnel"]


class _Side(RelayProtocol):
    """The client's side of a buffered relay."""

    @property
    def detachable(self) -> bool:
        """Never: its transport still writes what the client was answered."""
        return False


class Tunnel:
    """A client's connection and a server's, joined.

    Args:
        downstream: The client's; taken over here.
        flow: Ended here.
        upstream: The server's: connected, non-blocking; ours.
        to_upstream: What was read from the client, delivered first.
        to_downstream: What was read from the server, likewise.
        earlier: Bytes from client to server, and back, that have passed already.
    """

    __slots__ = ("_downstream", "_earlier", "_flow", "_joined", "_local", "_side", "_writing")

    def __init__(
        self,
        downstream: Downstream,
        flow: Flow,
        upstream: socket.socket,
        to_upstream: bytes,
        to_downstream: bytes,
        earlier: tuple[int, int] = (0, 0),
    ) -> None:
        self._downstream = downstream
        self._flow = flow
        self._joined = Joined()
        self._side: _Side | None = None
        self._earlier = earlier
        self._local: SocketAddress | None = None
        shared = downstream.shared
        guard = shared.runtime.guard
        if guard.tracks_upstreams:
            self._local = SocketAddress.from_kernel(upstream.getsockname())
            guard.add_upstream(self._local, self)
        if flow.destination is not None:
            shared.judge.relayed(flow, cast("Relaying", self))
        engine = shared.runtime.engine
        transport = downstream.transport
        # What the client is still to be sent is no part of the tunnel.
        self._writing = 0
        if isinstance(transport, SocketTransport):
            unwritten = transport.take_unwritten()
            self._writing = len(unwritten)
            downstream.leave()
            relay = engine.relay(
                transport.detach(),
                upstream,
                self._ended,
                to_upstream=to_upstream,
                to_downstream=unwritten + to_downstream,
            )
            self._joined.started(relay)
            return
        transport.unregisterProducer()
        if to_downstream:
            transport.write(to_downstream)
            self._earlier = (earlier[0], earlier[1] + len(to_downstream))
        shared.runtime.poller.wards.add(self)
        self._side = side = _Side(_ignore)
        downstream.give_to(self)
        side.makeConnection(transport)  # type: ignore[no-untyped-call]
        start(engine, side, upstream, self._ended, self._joined, to_upstream=to_upstream)

    # Ends

    def deny(self, reason: str, rule: str | None) -> None:
        """End what a new policy denies."""
        self._flow.verdict = Verdict.DENY
        self._flow.reason = reason
        self._flow.rule = rule
        self._joined.abort(FlowEnd.DENIED)

    def looped(self) -> None:
        """The connection upstream came back to one of our own listeners."""
        self._flow.verdict = Verdict.DENY
        self._flow.reason = FlowEnd.PROXY_LOOP_DETECTED.value
        self._flow.rule = None
        self._joined.abort(FlowEnd.PROXY_LOOP_DETECTED)

    def ready(self, events: int) -> None:
        """Nothing: only wards of the poller come here, to be shut down."""

    def failed(self) -> None:
        """Likewise."""

    def shut_down(self) -> None:
        """The process ends."""
        self._joined.abort(FlowEnd.SHUTDOWN)
        # Twisted's transports close in a later turn, which may not come.
        totals = self._joined.totals
        if totals is not None:
            self._ended(totals._replace(end=FlowEnd.SHUTDOWN))

    def _ended(self, totals: Totals) -> None:
        downstream, flow = self._downstream, self._flow
        shared = downstream.shared
        if flow.end is None:
            sent, received = self._earlier
            flow.sent = sent + totals.sent
            flow.received = received + max(0, totals.received - self._writing)
            flow.finish(totals.end or FlowEnd.CLOSED)
            shared.judge.ended(flow)
        if self._local is not None:
            shared.runtime.guard.remove_upstream(self._local)
            self._local = None
        shared.runtime.poller.wards.discard(self)
        if self._side is None:
            downstream.left()

    # The client's side, where Twisted has it: passed on to the relay's protocol

    def client_received(self, data: bytes) -> None:
        """Bytes for the server."""
        if self._side is not None:
            self._side.dataReceived(data)

    def client_ended(self) -> None:
        """The client has sent its last byte."""
        if self._side is not None:
            self._side.readConnectionLost()

    def client_write_ended(self) -> None:
        """Our own FIN is out."""
        if self._side is not None:
            self._side.writeConnectionLost()

    def client_lost(self, reason: Failure) -> None:
        """The client is gone."""
        if self._side is not None:
            self._side.connectionLost(reason)

    def pause(self) -> None:
        """The relay is the client's producer; it is paused itself."""

    def resume(self) -> None:
        """Likewise."""

    def look(self, now: float) -> None:
        """The relay has limits of its own."""


def _ignore(_: RelayProtocol) -> None:
    """Nobody waits for a side that is joined at once."""
