from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from certificates import make_identity
from relay.transcripts import Peer, TlsPeer, adopt_tls, tcp_pair
from support import fill_queue
from turning import Turning, turning
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.admission import default_limit
from sidecar.config import Limits
from sidecar.flow import Flow, FlowEnd, ListenerKind
from sidecar.interfaces import IFlowObserver
from sidecar.linux import OWN_MARK
from sidecar.protocols.tcp import StaticRelayFactory
from sidecar.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@implementer(IFlowObserver)
class Observer:
    """Remembers ended flows."""

    def __init__(self) -> None:
        self.ends: list[FlowEnd | None] = []

    def flow_ended(self, flow: Flow) -> None:
        self.ends.append(flow.end)


@pytest.fixture
def origin() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield made


class TestMake:
    def test_defaults(self, turning: Turning) -> None:
        """Without a word everything has the defaults of the configuration."""
        runtime = Runtime.make(turning.reactor)
        assert (OWN_MARK, Limits(), None) == (runtime.mark, runtime.limits, runtime.observer)
        assert (None, None) == (runtime.engine.idle_timeout, runtime.engine.half_close_timeout)
        assert abs(default_limit() - runtime.admission.limit) <= 2
        runtime.close()

    def test_limits(self, turning: Turning) -> None:
        """Limits reach those whom they limit."""
        limits = Limits(
            max_connections=7, idle_timeout=3.0, half_close_timeout=4.0, connect_timeout=5.0
        )
        runtime = Runtime.make(turning.reactor, mark=None, limits=limits)
        assert (7, 3.0, 4.0, 5.0) == (
            runtime.admission.limit,
            runtime.engine.idle_timeout,
            runtime.engine.half_close_timeout,
            runtime.dialer._timeout,
        )
        runtime.close()


class TestClose:
    def test_idle(self, turning: Turning) -> None:
        """Nothing is left of one that never did anything."""
        Runtime.make(turning.reactor).close()

    def test_relays(self, turning: Turning, origin: socket.socket) -> None:
        """What is relayed is reset, and every flow ends with `shutdown`."""
        observer = Observer()
        runtime = Runtime.make(turning.reactor, observer, mark=None)
        factory = StaticRelayFactory(runtime, SocketAddress(*origin.getsockname()))
        near, connection = tcp_pair()
        address = SocketAddress.from_kernel(connection.getpeername())
        factory.socket_accepted(
            connection, Flow(ListenerKind.FORWARD, address, None, None, observer)
        )
        far, _ = origin.accept()
        runtime.close()
        assert [FlowEnd.SHUTDOWN] == observer.ends
        assert b"" == Peer(turning, near, 1).read_to_reset()
        far.close()
        near.close()

    @pytest.mark.parametrize("joined", [True, False])
    def test_transports(
        self, turning: Turning, origin: socket.socket, tmp_path: Path, joined: bool
    ) -> None:
        """So do those that Twisted's transports carry, joined yet or not."""
        identity = make_identity(tmp_path)
        observer = Observer()
        runtime = Runtime.make(turning.reactor, observer, mark=None)
        near, connection = tcp_pair()
        stack = ExitStack()
        if not joined:
            # No answer.
            fill_queue(stack, origin)
        factory = StaticRelayFactory(runtime, SocketAddress(*origin.getsockname()))
        protocol = factory.buildProtocol(None)
        adopt_tls(turning, connection, protocol, identity)
        client = TlsPeer(turning, near, 1, identity.cafile)
        if joined:
            far, _ = origin.accept()
            client.shake_hands()
        else:
            turning.settle()
        assert [] == observer.ends
        runtime.close()
        turning.settle()
        assert [FlowEnd.SHUTDOWN] == observer.ends
        client.close()
        if joined:
            far.close()
        stack.close()
