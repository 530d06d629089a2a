"""Relaying TCP connections to where they wanted to go, or to one fixed place."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.errors import DialError, ProxyLoopDetected
from sidecar.flow import DestinationSource, Flow, FlowEnd, ListenerKind, Verdict
from sidecar.interfaces import ISocketFactory
from sidecar.protocols.connecting import Connecting, reach
from sidecar.relay import Joined, RelayProtocol, Side, start
from sidecar.relay.poller import ERROR
from sidecar.relay.resets import reset

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress
    from twisted.python.failure import Failure

    from sidecar.dialing import Dial, Source
    from sidecar.relay import Totals
    from sidecar.runtime import Runtime
    from sidecar.upstreams import Upstream

__all__ = ["StaticRelayFactory", "TransparentRelayFactory"]


@implementer(ISocketFactory)
class _RelayFactory(Factory):
    """What both factories have in common.

    Attributes:
        runtime: Shared with every other listener of the process.
        kind: What the flows are logged as.
        source: Where upstream connections are made from; None leaves it to the kernel.
    """

    noisy = False

    def __init__(self, runtime: Runtime, kind: ListenerKind, source: Source | None) -> None:
        self.runtime = runtime
        self.kind = kind
        self.source = source

    def upstream_of(self, flow: Flow) -> Upstream | None:
        """Where a flow is to be relayed to; None if nobody can tell."""
        raise NotImplementedError

    def socket_accepted(self, connection: socket.socket, flow: Flow) -> None:
        """Dial and relay (ISocketFactory)."""
        _Relaying(self, connection, flow)


class StaticRelayFactory(_RelayFactory):
    """Relays every connection to the same place.

    Args:
        runtime: Shared with every other listener of the process.
        upstream: Where to; a host name is resolved for every connection.
        kind: What the flows are logged as.
        source: Where from; None leaves it to the kernel.
    """

    def __init__(
        self,
        runtime: Runtime,
        upstream: Upstream,
        *,
        kind: ListenerKind = ListenerKind.FORWARD,
        source: Source | None = None,
    ) -> None:
        super().__init__(runtime, kind, source)
        self._upstream = upstream

    def upstream_of(self, flow: Flow) -> Upstream:
        """The one place."""
        flow.destination = self._upstream if isinstance(self._upstream, SocketAddress) else None
        flow.destination_from = DestinationSource.STATIC
        return self._upstream

    def buildProtocol(self, addr: IAddress | None) -> RelayProtocol:  # noqa: ARG002
        """Serve any other endpoint of Twisted's: TLS, unix, wrapped and adopted ones."""
        return RelayProtocol(self._made)

    def _made(self, protocol: RelayProtocol) -> None:
        flow = Flow(
            self.kind,
            _address(protocol.stream.getPeer()),
            _address(protocol.stream.getHost()),
            None,
            self.runtime.observer,
        )
        _Relaying(self, protocol, flow)


class TransparentRelayFactory(_RelayFactory):
    """Relays every connection to its original destination.

    For `TransparentServerEndpoint` alone.

    Args:
        runtime: Shared with every other listener of the process.
        kind: Whether the connections leave this host or arrive for it.
        source: Where from; None leaves it to the kernel.
    """

    _log = Logger()

    def __init__(
        self,
        runtime: Runtime,
        *,
        kind: ListenerKind = ListenerKind.OUTBOUND,
        source: Source | None = None,
    ) -> None:
        super().__init__(runtime, kind, source)

    def buildProtocol(self, addr: IAddress | None) -> None:  # noqa: ARG002
        """Refuse: no other endpoint of Twisted's knows where a connection wanted to go."""
        self._log.error("transparent relaying needs a transparent: endpoint; connection refused")

    def upstream_of(self, flow: Flow) -> Upstream | None:
        """The original destination."""
        return flow.destination


class _Relaying:
    """One flow from its arrival to its end.

    Args:
        factory: Whose flow it is.
        side: The client's connection.
        flow: Ended here, exactly once.
    """

    __slots__ = ("_connecting", "_factory", "_flow", "_joined", "_local", "_side", "_watched")

    def __init__(self, factory: _RelayFactory, side: Side, flow: Flow) -> None:
        self._factory = factory
        self._side = side
        self._flow = flow
        self._joined: Joined | None = None
        self._local: SocketAddress | None = None
        self._watched = False
        if isinstance(side, RelayProtocol):
            factory.runtime.poller.wards.add(self)
        self._connecting: Dial | Connecting | None = None
        upstream = factory.upstream_of(flow)
        if upstream is None:
            flow.verdict = Verdict.DENY
            flow.reason = "unknown_destination"
            self._refuse(FlowEnd.DENIED)
            return
        self._connecting = reach(factory.runtime, upstream, factory.source, self._connected)
        if self._connecting is not None:
            self._watch()

    # The upstream is being dialled

    def _watch(self) -> None:
        """Learn of the client's end while its upstream is being dialled."""
        side = self._side
        if isinstance(side, RelayProtocol):
            side.on_loss(self._client_lost)
        else:
            self._factory.runtime.poller.register(side.fileno(), 0, self)
            self._watched = True

    def ready(self, events: int) -> None:
        """The client has gone."""
        if events & ERROR:
            self._give_up(FlowEnd.CLIENT_RESET)

    def failed(self) -> None:
        """A bug in `ready`."""
        self._give_up(FlowEnd.PROTOCOL_ERROR)

    def shut_down(self) -> None:
        """The process ends."""
        if self._watched or self._joined is None:
            self._give_up(FlowEnd.SHUTDOWN)
            return
        self._joined.abort(FlowEnd.SHUTDOWN)
        # Twisted's transports close in a later turn, which may not come.
        totals = self._joined.totals
        if totals is None:
            self._ended(FlowEnd.SHUTDOWN)
        else:
            self._relayed(totals._replace(end=FlowEnd.SHUTDOWN))

    def looped(self) -> None:
        """The upstream connection came back to one of our own listeners."""
        self._flow.verdict = Verdict.DENY
        self._flow.reason = FlowEnd.PROXY_LOOP_DETECTED.value
        if self._joined is None:
            self._give_up(FlowEnd.PROXY_LOOP_DETECTED)
        else:
            self._joined.abort(FlowEnd.PROXY_LOOP_DETECTED)

    def _client_lost(self, _: Failure) -> None:
        self._give_up(FlowEnd.CLIENT_RESET)

    def _give_up(self, end: FlowEnd) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._refuse(end)

    def _refuse(self, end: FlowEnd) -> None:
        self._unwatch()
        side = self._side
        if isinstance(side, RelayProtocol):
            side.abort()
        else:
            reset(side)
        self._ended(end)

    def _unwatch(self) -> None:
        side = self._side
        if isinstance(side, RelayProtocol):
            side.on_loss(None)
        elif self._watched:
            self._watched = False
            self._factory.runtime.poller.unregister(side.fileno())

    def _connected(self, outcome: Side | DialError, upstream: SocketAddress | None) -> None:
        self._connecting = None
        flow = self._flow
        if isinstance(outcome, ProxyLoopDetected):
            # Refused before anything was dialled.
            flow.verdict = Verdict.DENY
            flow.reason = outcome.end.value
            self._refuse(outcome.end)
            return
        flow.upstream = upstream
        if isinstance(outcome, DialError):
            self._refuse(outcome.end)
            return
        self._unwatch()
        runtime = self._factory.runtime
        if runtime.guard.tracks_upstreams and isinstance(outcome, socket.socket):
            self._local = SocketAddress.from_kernel(outcome.getsockname())
            runtime.guard.add_upstream(self._local, self)
        self._joined = Joined()
        start(runtime.engine, self._side, outcome, self._relayed, self._joined)

    # The two are joined

    def _relayed(self, totals: Totals) -> None:
        flow = self._flow
        flow.sent = totals.sent
        flow.received = totals.received
        if self._local is not None:
            self._factory.runtime.guard.remove_upstream(self._local)
        self._ended(totals.end or FlowEnd.CLOSED)

    def _ended(self, end: FlowEnd) -> None:
        self._factory.runtime.poller.wards.discard(self)
        self._flow.finish(end)


def _address(address: IAddress) -> SocketAddress | None:
    """A Twisted address as ours; None for those that are no IP addresses (unix)."""
    if isinstance(address, (IPv4Address, IPv6Address)):
        return SocketAddress.from_kernel((address.host, address.port))
    return None
