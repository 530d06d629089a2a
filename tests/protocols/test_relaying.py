from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from relay.transcripts import SMALL_BUFFER, Peer, noise, tcp_pair
from turning import Turning, turning

from sidecar.addresses import SocketAddress
from sidecar.flow import Flow, FlowEnd, ListenerKind
from sidecar.protocols.relaying import Relaying
from sidecar.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture
def runtime(turning: Turning) -> Iterator[Runtime]:
    made = Runtime.make(turning.reactor, mark=None)
    yield made
    made.close()


@pytest.fixture
def stack(runtime: Runtime) -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


class TestReadBefore:
    """What has been read of the client already is delivered first, and once."""

    @pytest.mark.parametrize("size", [1, 517, 8 << 20], ids=["byte", "hello", "more"])
    def test_delivered(
        self, turning: Turning, runtime: Runtime, stack: ExitStack, size: int
    ) -> None:
        """Whether or not the server's buffer takes it at once; and it is counted."""
        near, connection = tcp_pair()
        far, upstream = tcp_pair(SMALL_BUFFER)
        client, server = Peer(turning, near, 1), Peer(turning, far, 2)
        stack.callback(client.close)
        stack.callback(server.close)
        flow = Flow(ListenerKind.OUTBOUND, None, None, None)
        address = SocketAddress("192.0.2.1", 443)
        read = noise(3)[:size]
        Relaying(runtime, connection, flow, (address,), None, read, connected=upstream)
        client.send(1000)
        client.half_close()
        assert read + client.written == server.read_to_end()
        server.say(b"answer")
        server.half_close()
        assert b"answer" == client.read_to_end()
        turning.until(lambda: flow.end)
        assert (FlowEnd.CLOSED, size + 1000, 6, address) == (
            flow.end,
            flow.sent,
            flow.received,
            flow.upstream,
        )

    def test_gone(self, turning: Turning, runtime: Runtime, stack: ExitStack) -> None:
        """A server that has reset meanwhile is found out by the relay, what it said first."""
        near, connection = tcp_pair()
        far, upstream = tcp_pair()
        client = Peer(turning, near, 1)
        stack.callback(client.close)
        far.send(b"no")
        turning.settle()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0)))
        far.close()
        flow = Flow(ListenerKind.OUTBOUND, None, None, None)
        address = SocketAddress("192.0.2.1", 443)
        Relaying(runtime, connection, flow, (address,), None, b"hello", connected=upstream)
        assert b"no" == client.read_to_reset()
        assert FlowEnd.SERVER_RESET is flow.end
