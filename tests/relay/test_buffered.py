"""What only the buffered engine does: TLS, whose ends are others than TCP's."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from relay.transcripts import SMALL_BUFFER, Kind, Peer, TlsPeer, adopt_tls, make_engine, tcp_pair
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocolFactory,
    IPullProducer,
    IPushProducer,
)
from zope.interface.verify import verifyObject

from sidecar.flow import FlowEnd
from sidecar.relay import RelayProtocol, Totals
from sidecar.relay.buffered import BufferedRelay, _Source
from sidecar.relay.protocol import _One, adopt
from sidecar.relay.written import _WhenWritten

if TYPE_CHECKING:
    from certificates import Identity
    from relay.conftest import Begin
    from turning import Turning

MEBIBYTE = 1 << 20
# Which of the two OpenSSL sees first is chance; neither is an end.
_ABRUPT = r"EOF occurred in violation|reset by peer"


@pytest.fixture
def kind() -> Kind:
    """TLS downstream."""
    return Kind.TLS


def test_interfaces(turning: Turning) -> None:
    """What Twisted's transports are handed has every method that they may call."""
    side = RelayProtocol(lambda _: None)
    assert verifyObject(IHalfCloseableProtocol, side)
    assert verifyObject(IProtocolFactory, _One(side))
    engine = make_engine(turning)
    near, far = tcp_pair()
    other = RelayProtocol(lambda _: None)
    adopt(turning.reactor, near, side)
    adopt(turning.reactor, far, other)
    done: list[Totals] = []
    relay = BufferedRelay(turning.reactor, side, other, done.append)
    assert verifyObject(IPushProducer, _Source(relay, side, other))
    assert verifyObject(IPullProducer, _WhenWritten(side.transport, lambda: None))  # type: ignore[arg-type] # a FileDescriptor
    relay.abort(FlowEnd.SHUTDOWN)
    turning.until(lambda: done)
    engine.poller.close()


class TestTls:
    def test_server_ends(self, begin: Begin) -> None:
        """The server's end is close_notify for a TLS client, after all that came before."""
        scene = begin()
        scene.server.send(MEBIBYTE)
        scene.server.half_close()
        assert scene.server.written == scene.client.read_to_end()
        scene.client.close()
        assert (0, MEBIBYTE, FlowEnd.CLOSED) == scene.total

    def test_client_ends(self, begin: Begin) -> None:
        """A TLS client's close_notify ends the server's connection."""
        scene = begin()
        scene.client.send(100_000)
        scene.client.half_close()
        assert scene.client.written == scene.server.read_to_end()
        assert (100_000, 0, FlowEnd.CLOSED) == scene.total

    def test_truncated(self, begin: Begin) -> None:
        """A TLS client that ends without close_notify has not ended: the server is reset."""
        scene = begin()
        scene.client.send(100_000)
        scene.client.wait_until_acknowledged()
        scene.client.close()
        assert scene.client.written == scene.server.read_to_reset()
        assert FlowEnd.CLIENT_RESET is scene.end

    def test_client_resets(self, begin: Begin) -> None:
        """A TLS client's RST is the server's, after what came before."""
        scene = begin()
        scene.client.send(100_000)
        scene.client.wait_until_acknowledged()
        scene.turning.settle()
        scene.client.reset()
        assert scene.client.written == scene.server.read_to_reset()
        assert FlowEnd.CLIENT_RESET is scene.end

    def test_server_resets(self, begin: Begin) -> None:
        """A server's RST ends a TLS client without close_notify, after what came before."""
        scene = begin(buffers=SMALL_BUFFER)
        scene.server.send_until_stopped()
        had = scene.server.acknowledged
        scene.server.reset()
        with pytest.raises(OSError, match=_ABRUPT):
            scene.client.read_to_end()
        assert had <= len(scene.client.got)
        assert scene.server.written[: len(scene.client.got)] == scene.client.got
        assert FlowEnd.SERVER_RESET is scene.end

    def test_server_resets_in_silence(self, begin: Begin) -> None:
        """Likewise where nothing was said."""
        scene = begin()
        scene.server.reset()
        with pytest.raises(OSError, match=_ABRUPT):
            scene.client.read(1)
        assert FlowEnd.SERVER_RESET is scene.end

    def test_both_ends(self, turning: Turning, identity: Identity) -> None:
        """Likewise where both sides speak TLS: what is sent before the end arrives."""
        near, downstream = tcp_pair()
        far, upstream = tcp_pair()
        down, up = RelayProtocol(lambda _: None), RelayProtocol(lambda _: None)
        adopt_tls(turning, downstream, down, identity)
        adopt_tls(turning, upstream, up, identity)
        done: list[Totals] = []
        BufferedRelay(turning.reactor, down, up, done.append)
        client = TlsPeer(turning, near, 1, identity.cafile)
        server = TlsPeer(turning, far, 2, identity.cafile)
        client.shake_hands()
        server.shake_hands()
        client.send(MEBIBYTE // 4)
        client.half_close()
        assert client.written == server.read_to_end()
        client.close()
        server.close()
        turning.until(lambda: done)
        assert [(MEBIBYTE // 4, 0, FlowEnd.CLOSED)] == done


class TestUnix:
    def test_unix(self, turning: Turning) -> None:
        """Unix sockets have the same rules: data, half-close, ends."""
        near, downstream = socket.socketpair()
        near.setblocking(False)
        far, upstream = tcp_pair()
        down, up = RelayProtocol(lambda _: None), RelayProtocol(lambda _: None)
        transport = _unix_transport(turning, downstream, down)
        adopt(turning.reactor, upstream, up)
        done: list[Totals] = []
        BufferedRelay(turning.reactor, down, up, done.append)
        client, server = Peer(turning, near, 1), Peer(turning, far, 2)
        client.send(100_000)
        client.half_close()
        assert client.written == server.read_to_end()
        server.send(100_000)
        server.half_close()
        assert server.written == client.read_to_end()
        turning.until(lambda: done)
        assert [(100_000, 100_000, FlowEnd.CLOSED)] == done
        assert transport.disconnected
        near.close()
        far.close()


def _unix_transport(turning: Turning, sock: socket.socket, protocol: RelayProtocol):  # type: ignore[no-untyped-def] # Twisted's
    from twisted.internet.unix import Server

    transport = Server(sock, protocol, None, None, 1, turning.reactor)
    protocol.makeConnection(transport)  # type: ignore[no-untyped-call]
    return transport
