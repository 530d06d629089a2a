"""A connection that another protocol has had until it became a tunnel (CONNECT, Upgrade)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, cast

import pytest
from relay.transcripts import SMALL_BUFFER, Peer, TlsPeer, adopt_tls, noise, tcp_pair
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from sidecar.flow import FlowEnd
from sidecar.relay import Joined, RelayProtocol, Totals, start
from sidecar.relay.buffered import BufferedRelay
from sidecar.relay.protocol import adopt
from sidecar.relay.spliced import SplicedRelay
from sidecar.relay.stream import SocketTransport

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from certificates import Identity
    from turning import Turning
    from twisted.internet.interfaces import IProtocol, ITransport

    from sidecar.relay import Side, SplicedEngine

MEBIBYTE = 1 << 20


class On(Enum):
    """What carries the connection that is taken over."""

    OURS = "SocketTransport"
    TWISTED = "Twisted's"
    TLS = "Twisted's TLS"


@implementer(IHalfCloseableProtocol, IPushProducer)
class Proxy(Protocol):
    """Reads a line; what follows is for a tunnel.

    Args:
        begin: Called with the line's rest, when it should become one.
        at_end: Only after the other process' end.
    """

    def __init__(
        self, begin: Callable[[ITransport, bytes, bool], None], *, at_end: bool = False
    ) -> None:
        self._begin = begin
        self._at_end = at_end
        self._got = b""
        self.taken = False

    def dataReceived(self, data: bytes) -> None:
        assert not self.taken
        self._got += data
        if not self._at_end and b"\n" in self._got:
            self._take(eof=False)

    def readConnectionLost(self) -> None:
        assert not self.taken
        self._take(eof=True)

    def writeConnectionLost(self) -> None:
        raise AssertionError

    def connectionLost(self, reason: object = None) -> None:
        raise AssertionError

    def _take(self, *, eof: bool) -> None:
        self.taken = True
        assert self.transport is not None
        self._begin(self.transport, self._got.partition(b"\n")[2], eof)

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        raise AssertionError


class Tunnel:
    """A client, a server, and a proxy that joins the two when the client asks for it.

    Args:
        on: What carries the client's connection.
        reply: What the proxy says before.
        upstream: What carries the server's connection; by default it is a socket.
    """

    def __init__(
        self,
        turning: Turning,
        engine: SplicedEngine,
        on: On,
        identity: Identity,
        *,
        reply: bytes = b"200\n",
        buffers: int | None = None,
        at_end: bool = False,
        upstream: Callable[[socket.socket], Side] = lambda sock: sock,
        to_downstream: bytes = b"",
    ) -> None:
        near, downstream = tcp_pair(buffers)
        far, self._upstream = tcp_pair(buffers)
        self._make_upstream = upstream
        self._turning = turning
        self._engine = engine
        self._reply = reply
        self._to_downstream = to_downstream
        self.server = Peer(turning, far, 2)
        self.joined = Joined()
        self.totals: list[Totals] = []
        self.proxy = Proxy(self._begin, at_end=at_end)
        protocol = cast("RelayProtocol", self.proxy)
        if on is On.TLS:
            adopt_tls(turning, downstream, protocol, identity)
            client = TlsPeer(turning, near, 1, identity.cafile)
            client.shake_hands()
            self.client: Peer = client
            return
        self.client = Peer(turning, near, 1)
        if on is On.TWISTED:
            adopt(turning.reactor, downstream, protocol)
        else:
            SocketTransport(engine.poller, downstream, cast("IProtocol", protocol))

    def _begin(self, transport: ITransport, rest: bytes, eof: bool) -> None:
        transport.write(self._reply)
        down = RelayProtocol.take_over(transport, early=rest, eof=eof)
        start(
            self._engine,
            down,
            self._make_upstream(self._upstream),
            self.totals.append,
            self.joined,
            to_downstream=self._to_downstream,
        )

    @property
    def total(self) -> Totals:
        """Turn until all is over; what it amounted to."""
        self._turning.until(lambda: self.totals)
        (total,) = self.totals
        return total

    def close(self) -> None:
        self.client.close()
        self.server.close()
        self._turning.until(lambda: self.totals)
        self._turning.settle()


@pytest.mark.parametrize("on", list(On))
class TestDownstream:
    def test_tunnel(
        self, turning: Turning, engine: SplicedEngine, identity: Identity, on: On
    ) -> None:
        """The reply comes first, early data once; where it is plain, the kernel joins."""
        tunnel = Tunnel(turning, engine, on, identity)
        tunnel.client.say(b"CONNECT\nearly ")
        assert b"200\n" == tunnel.client.read(4)
        tunnel.client.say(b"late")
        assert b"early late" == tunnel.server.read(10)
        tunnel.server.say(b"answer")
        assert b"answer" == tunnel.client.read(6)
        expected = BufferedRelay if on is On.TLS else SplicedRelay
        assert isinstance(tunnel.joined._relay, expected)
        tunnel.close()

    def test_server_speaks_first(
        self, turning: Turning, engine: SplicedEngine, identity: Identity, on: On
    ) -> None:
        """What the server said before is delivered after the reply."""
        tunnel = Tunnel(turning, engine, on, identity, to_downstream=b"220 ")
        tunnel.server.say(b"ready")
        tunnel.client.say(b"CONNECT\n")
        assert b"200\n220 ready" == tunnel.client.read(13)
        tunnel.close()

    def test_in_pieces(
        self, turning: Turning, engine: SplicedEngine, identity: Identity, on: On
    ) -> None:
        """What arrives while the connection changes hands keeps its place."""
        tunnel = Tunnel(turning, engine, on, identity)
        for letter in b"CONNECT\n":
            tunnel.client.say(bytes([letter]))
            turning.turn()
        tunnel.client.send(MEBIBYTE // 4)
        assert noise(1)[: MEBIBYTE // 4] == tunnel.server.read(MEBIBYTE // 4)
        tunnel.close()

    def test_unwritten(
        self, turning: Turning, engine: SplicedEngine, identity: Identity, on: On
    ) -> None:
        """What a slow client has yet to read of the former protocol comes first."""
        before = noise(3)[:MEBIBYTE]
        tunnel = Tunnel(turning, engine, on, identity, reply=before, buffers=SMALL_BUFFER)
        tunnel.client.say(b"CONNECT\nearly")
        tunnel.server.say(b"answer")
        assert before == tunnel.client.read(MEBIBYTE)
        assert b"answer" == tunnel.client.read(6)
        assert b"early" == tunnel.server.read(5)
        tunnel.client.say(b"late")
        assert b"late" == tunnel.server.read(4)
        tunnel.close()

    def test_client_ends(
        self, turning: Turning, engine: SplicedEngine, identity: Identity, on: On
    ) -> None:
        """A half-close is one where there is such a thing; TLS ends both ways."""
        tunnel = Tunnel(turning, engine, on, identity)
        tunnel.client.say(b"CONNECT\nearly")
        tunnel.client.read(4)
        tunnel.client.half_close()
        assert b"early" == tunnel.server.read_to_end()
        if on is not On.TLS:
            tunnel.server.say(b"answer")
            tunnel.server.half_close()
            assert b"200\nanswer" == tunnel.client.read_to_end()
        assert FlowEnd.CLOSED is tunnel.total.end
        tunnel.close()

    def test_server_ends(
        self, turning: Turning, engine: SplicedEngine, identity: Identity, on: On
    ) -> None:
        """Likewise the other way round."""
        tunnel = Tunnel(turning, engine, on, identity)
        tunnel.server.say(b"answer")
        tunnel.server.half_close()
        tunnel.client.say(b"CONNECT\nearly")
        assert b"200\nanswer" == tunnel.client.read_to_end()
        assert b"early" == tunnel.server.read(5)
        if on is not On.TLS:
            tunnel.client.say(b"late")
            assert b"late" == tunnel.server.read(4)
        tunnel.client.close()
        assert FlowEnd.CLOSED is tunnel.total.end
        tunnel.close()

    def test_client_resets(
        self, turning: Turning, engine: SplicedEngine, identity: Identity, on: On
    ) -> None:
        """A reset is one."""
        tunnel = Tunnel(turning, engine, on, identity)
        tunnel.client.say(b"CONNECT\n")
        tunnel.client.read(4)
        tunnel.client.reset()
        tunnel.server.read_to_reset()
        assert FlowEnd.CLIENT_RESET is tunnel.total.end
        tunnel.close()

    def test_client_resets_before_all_is_written(
        self, turning: Turning, engine: SplicedEngine, identity: Identity, on: On
    ) -> None:
        """Likewise while the former protocol's output is being written."""
        before = noise(3)[:MEBIBYTE]
        tunnel = Tunnel(turning, engine, on, identity, reply=before, buffers=SMALL_BUFFER)
        tunnel.client.say(b"CONNECT\n")
        turning.until(lambda: tunnel.proxy.taken)
        tunnel.client.reset()
        tunnel.server.read_to_reset()
        assert FlowEnd.CLIENT_RESET is tunnel.total.end
        tunnel.close()

    def test_producer(
        self, turning: Turning, engine: SplicedEngine, identity: Identity, on: On
    ) -> None:
        """The former protocol's producer is forgotten."""
        tunnel = Tunnel(turning, engine, on, identity)
        transport = cast("SocketTransport", tunnel.proxy.transport)
        transport.registerProducer(tunnel.proxy, True)
        tunnel.client.say(b"CONNECT\nearly")
        assert b"early" == tunnel.server.read(5)
        tunnel.close()

    def test_abort(
        self, turning: Turning, engine: SplicedEngine, identity: Identity, on: On
    ) -> None:
        """The relay can be aborted at once."""
        tunnel = Tunnel(turning, engine, on, identity)
        tunnel.client.say(b"CONNECT\n")
        turning.until(lambda: tunnel.proxy.taken)
        tunnel.joined.abort(FlowEnd.SHUTDOWN)
        tunnel.server.read_to_reset()
        assert FlowEnd.SHUTDOWN is tunnel.total.end
        tunnel.close()


@pytest.mark.parametrize("on", [On.OURS, On.TWISTED])
@pytest.mark.parametrize("tls_upstream", [False, True])
def test_after_the_end(
    turning: Turning, engine: SplicedEngine, identity: Identity, on: On, tls_upstream: bool
) -> None:
    """An end that the former protocol was told of is the tunnel's."""
    ended: list[Side] = []

    def upstream(sock: socket.socket) -> Side:
        side: Side = sock
        if tls_upstream:
            side = RelayProtocol(lambda _: None)
            adopt_tls(turning, sock, side, identity)
        ended.append(side)
        return side

    tunnel = Tunnel(turning, engine, on, identity, at_end=True, upstream=upstream)
    tunnel.client.say(b"CONNECT\nall")
    tunnel.client.half_close()
    turning.until(lambda: ended)
    server = tunnel.server
    if tls_upstream:
        server = TlsPeer(turning, server.sock, 2, identity.cafile)
        server.shake_hands()
    assert b"all" == server.read_to_end()
    server.close()
    tunnel.client.read(4)
    assert (3, 0) == tunnel.total[:2]
    tunnel.close()


class Quiet(Protocol):
    """An upstream's, which another takes the place of."""


@pytest.mark.parametrize("on", list(On))
@pytest.mark.parametrize("buffers", [None, SMALL_BUFFER])
def test_upstream(
    turning: Turning, engine: SplicedEngine, identity: Identity, on: On, buffers: int | None
) -> None:
    """The server's side may be taken over as well, with what it has yet to write."""
    before = noise(3)[:MEBIBYTE]

    def upstream(sock: socket.socket) -> RelayProtocol:
        transport = SocketTransport(engine.poller, sock, cast("IProtocol", Quiet()))
        transport.write(before)
        return RelayProtocol.take_over(transport, early=b"101 ")

    tunnel = Tunnel(turning, engine, on, identity, upstream=upstream, buffers=buffers)
    tunnel.client.say(b"CONNECT\nearly ")
    tunnel.server.say(b"answer")
    assert b"200\n101 answer" == tunnel.client.read(14)
    tunnel.client.say(b"late")
    assert before + b"early late" == tunnel.server.read(MEBIBYTE + 10)
    tunnel.close()


@pytest.mark.parametrize("on", [On.OURS, On.TLS])
def test_lost_upstream(turning: Turning, engine: SplicedEngine, identity: Identity, on: On) -> None:
    """A side that is lost, of which nobody has been told yet, ends the tunnel."""

    def upstream(sock: socket.socket) -> RelayProtocol:
        transport = SocketTransport(engine.poller, sock, cast("IProtocol", Quiet()))
        transport.abortConnection()
        return RelayProtocol.take_over(transport)

    tunnel = Tunnel(turning, engine, on, identity, upstream=upstream)
    tunnel.client.say(b"CONNECT\nearly")
    assert FlowEnd.SERVER_RESET is tunnel.total.end
    tunnel.close()


def test_reset_upstream(turning: Turning, engine: SplicedEngine, identity: Identity) -> None:
    """Likewise where it was reset, of which nobody knows yet."""

    def upstream(sock: socket.socket) -> RelayProtocol:
        transport = SocketTransport(engine.poller, sock, cast("IProtocol", Quiet()))
        tunnel.server.say(b"last words")
        tunnel.server.reset()
        return RelayProtocol.take_over(transport)

    tunnel = Tunnel(turning, engine, On.TLS, identity, upstream=upstream)
    tunnel.client.say(b"CONNECT\nearly")
    assert b"200\nlast words" == tunnel.client.read(14)
    assert FlowEnd.SERVER_RESET is tunnel.total.end
    tunnel.close()


def test_no_transport() -> None:
    """What has no protocol of its own can't be taken over."""
    with pytest.raises(TypeError, match="another protocol"):
        RelayProtocol.take_over(cast("ITransport", object()))
