from __future__ import annotations

import socket
from typing import TYPE_CHECKING, cast

import pytest
from relay.transcripts import Peer
from turning import Turning, turning
from twisted.internet import defer, error
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.addresses import Authority, parse_authority
from sidecar.errors import (
    TunnelError,
    TunnelRefused,
    TunnelReplyMalformed,
    TunnelTimeout,
    TunnelUnauthorized,
)
from sidecar.protocols.connect import ConnectClientEndpoint, _Attempt, _Tunnel
from sidecar.relay.protocol import RelayProtocol
from sidecar.wire.basic import basic_authorization

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IProtocol
    from twisted.python.failure import Failure

    from sidecar.relay.protocol import Stream

AUTHORITY = parse_authority("h.example:443")
REQUEST = b"CONNECT h.example:443 HTTP/1.1\r\nHost: h.example:443\r\n\r\n"
OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


class Client(Protocol):
    """Keeps what happens to it, in order."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.first_act = "none"

    @property
    def stream(self) -> Stream:
        return cast("Stream", self.transport)

    def connectionMade(self) -> None:
        self.events.append("made")
        if self.first_act == "close":
            self.stream.loseConnection()
        elif self.first_act == "bug":
            raise ZeroDivisionError

    def dataReceived(self, data: bytes) -> None:
        if isinstance(self.events[-1], bytes):
            data = self.events.pop() + data  # type: ignore[operator] # just looked
        self.events.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.events.append(reason.type.__name__ if reason.type else "")


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Client):
    """Takes half-closes, too."""

    def readConnectionLost(self) -> None:
        self.events.append("read lost")

    def writeConnectionLost(self) -> None:
        self.events.append("write lost")


class Stage:
    """A proxy that does what the test says, and an endpoint that goes through it."""

    def __init__(self, turning: Turning) -> None:
        self.turning = turning
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self._peers: list[Peer] = []
        self.client: Client = Client()
        self.outcome: list[object] = []

    def endpoint(
        self,
        authority: Authority = AUTHORITY,
        authorization: bytes | None = None,
        clock: Clock | None = None,
    ) -> ConnectClientEndpoint:
        host, port = self.listener.getsockname()
        proxy = TCP4ClientEndpoint(self.turning.reactor, host, port)
        time = clock or self.turning.reactor
        return ConnectClientEndpoint(time, proxy, authority, authorization, 30.0)

    def connect(
        self, endpoint: IStreamClientEndpoint | None = None, factory: IProtocolFactory | None = None
    ) -> Deferred[IProtocol]:
        endpoint = endpoint or self.endpoint()
        connecting: Deferred[IProtocol] = endpoint.connect(factory or self.factory())
        return connecting

    def factory(self) -> Factory:
        return Factory.forProtocol(lambda: self.client)

    def accept(self) -> Peer:
        """The proxy's end of the connection, once there is one."""
        taken: list[socket.socket] = []

        def accepted() -> bool:
            try:
                taken.append(self.listener.accept()[0])
            except BlockingIOError:
                return False
            return True

        self.turning.until(accepted, self.listener)
        taken[0].setblocking(False)
        peer = Peer(self.turning, taken[0], 1)
        self._peers.append(peer)
        return peer

    def asked(self) -> Peer:
        """The same, once it has the request."""
        peer = self.accept()
        assert REQUEST == peer.read(len(REQUEST))
        return peer

    def opened(self, *, rest: bytes = b"") -> Peer:
        """The same, with the tunnel open."""
        connecting = self.connect()
        peer = self.asked()
        peer.say(OPENED + rest)
        assert self.client is self.turning.result(connecting)
        return peer

    def failure(self, connecting: Deferred[IProtocol]) -> BaseException:
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - looked at by who asked
            self.turning.result(connecting)
        return caught.value

    def until_lost(self) -> None:
        self.turning.until(lambda: str(self.client.events[-1:]).count("Connection"))

    def close(self) -> None:
        self.listener.close()
        for peer in self._peers:
            peer.close()
        self.turning.settle()
        if self.client.transport is not None:
            self.client.stream.abortConnection()
        self.turning.until_disconnected()


@pytest.fixture
def stage(turning: Turning) -> Iterator[Stage]:
    made = Stage(turning)
    yield made
    made.close()


def test_interfaces(stage: Stage) -> None:
    """It is a stream client endpoint; what it hands to the proxy's endpoint is a factory."""
    assert verifyObject(IStreamClientEndpoint, stage.endpoint())
    assert verifyObject(IProtocolFactory, _Attempt(stage.factory(), "h:1", None))


class TestOpened:
    def test_talk(self, stage: Stage) -> None:
        """The protocol sees the tunnel, and nothing before it."""
        connecting = stage.connect()
        proxy = stage.asked()
        stage.turning.settle()
        assert [] == stage.client.events
        assert not connecting.called
        proxy.say(OPENED)
        assert stage.client is stage.turning.result(connecting)
        assert ["made"] == stage.client.events
        stage.client.stream.write(b"ping")
        assert b"ping" == proxy.read(4)
        proxy.say(b"pong")
        stage.turning.until(lambda: stage.client.events[1:] == [b"pong"])
        proxy.close()
        stage.until_lost()
        assert ["made", b"pong", "ConnectionDone"] == stage.client.events

    def test_credentials(self, stage: Stage) -> None:
        """Credentials go to the proxy, in the first request."""
        authorization = basic_authorization("me", "secret")
        stage.connect(stage.endpoint(authorization=authorization)).addErrback(lambda _: None)
        expected = REQUEST[:-2] + b"Proxy-Authorization: " + authorization + b"\r\n\r\n"
        assert expected == stage.accept().read(len(expected))

    def test_ipv6(self, stage: Stage) -> None:
        """An IPv6 destination is in brackets."""
        stage.connect(stage.endpoint(parse_authority("[2001:db8::1]:22"))).addErrback(lambda _: 0)
        assert stage.accept().read(33).startswith(b"CONNECT [2001:db8::1]:22 HTTP")

    @pytest.mark.parametrize(
        "reply",
        [
            OPENED,
            b"HTTP/1.0 200 OK\r\nProxy-agent: x\r\n\r\n",
            b"HTTP/1.1 204 None\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n" + OPENED,
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
        ],
    )
    def test_rest_follows(self, stage: Stage, reply: bytes) -> None:
        """What follows the reply is delivered after connectionMade, wherever it is cut."""
        told: list[list[object]] = []

        def note(client: IProtocol) -> IProtocol:
            assert client is stage.client
            told.append(list(stage.client.events))
            return client

        for at in range(len(reply) + 4):
            stage.client = Client()
            connecting = stage.connect()
            connecting.addCallback(note)
            proxy = stage.asked()
            proxy.say((reply + b"SSH-")[:at])
            stage.turning.settle()
            proxy.say((reply + b"SSH-")[at:])
            stage.turning.until(lambda: stage.client.events[1:] == [b"SSH-"])
            # Whoever waits for the connection is told in between.
            assert ["made"] == told.pop()
            proxy.close()
            stage.until_lost()

    def test_closed_at_once(self, stage: Stage) -> None:
        """A protocol that closes at once hears nothing more."""
        stage.client.first_act = "close"
        stage.opened(rest=b"SSH-2.0")
        stage.until_lost()
        assert ["made", "ConnectionDone"] == stage.client.events

    def test_relayed(self, stage: Stage) -> None:
        """A relay can take the socket out of the transport, and has what followed the reply."""
        taken: list[socket.socket] = []
        side = RelayProtocol(lambda side: side.detach(taken.append))
        factory = Factory.forProtocol(lambda: side)
        connecting = stage.connect(factory=factory)
        proxy = stage.asked()
        proxy.say(OPENED + b"SSH-2.0")
        assert side is stage.turning.result(connecting)
        stage.turning.until(lambda: taken)
        assert [b"SSH-2.0"] == side.early
        with taken[0] as sock:
            sock.send(b"ping")
            assert b"ping" == proxy.read(4)

    def test_bug(self, stage: Stage) -> None:
        """A protocol that can't be connected fails the Deferred, and is let go."""
        stage.client.first_act = "bug"
        connecting = stage.connect()
        proxy = stage.asked()
        proxy.say(OPENED + b"SSH-2.0")
        assert isinstance(stage.failure(connecting), ZeroDivisionError)
        proxy.read_to_reset()
        stage.until_lost()
        assert ["made", "ConnectionAborted"] == stage.client.events

    def test_addresses(self, stage: Stage) -> None:
        """The transport's addresses are those of the connection to the proxy."""
        proxy = stage.opened()
        peer, host = stage.client.stream.getPeer(), stage.client.stream.getHost()
        assert stage.listener.getsockname() == (peer.host, peer.port)  # type: ignore[attr-defined]
        assert proxy.sock.getpeername() == (host.host, host.port)  # type: ignore[attr-defined]

    def test_log_prefix(self) -> None:
        """In logs it is the wrapped protocol."""

        class Named(Client):
            def logPrefix(self) -> str:
                return "me"

        attempt = _Attempt(Factory(), "h:1", None)
        assert "me" == _Tunnel(Named(), b"", attempt).logPrefix()


class TestHalfClose:
    def test_declared(self) -> None:
        """Half-close is declared exactly when the wrapped protocol declares it."""
        attempt = _Attempt(Factory(), "h:1", None)
        assert IHalfCloseableProtocol.providedBy(_Tunnel(HalfCloseable(), b"", attempt))
        assert not IHalfCloseableProtocol.providedBy(_Tunnel(Client(), b"", attempt))

    def test_theirs(self, stage: Stage) -> None:
        """The server's last byte is told, and we may still write."""
        stage.client = HalfCloseable()
        proxy = stage.opened()
        proxy.half_close()
        stage.turning.until(lambda: "read lost" in stage.client.events)
        stage.client.stream.write(b"still here")
        assert b"still here" == proxy.read(10)

    def test_ours(self, stage: Stage) -> None:
        """Our last byte goes through the tunnel, and we may still read."""
        stage.client = HalfCloseable()
        proxy = stage.opened()
        stage.client.stream.loseWriteConnection()
        assert b"" == proxy.read_some() or proxy.read_to_end()[len(REQUEST) :] == b""
        stage.turning.until(lambda: "write lost" in stage.client.events)
        proxy.say(b"all")
        stage.turning.until(lambda: stage.client.events[-1] == b"all")

    def test_not_declared(self, stage: Stage) -> None:
        """To a protocol that doesn't know half-closes, one is the end."""
        stage.opened().half_close()
        stage.until_lost()
        assert ["made", "ConnectionDone"] == stage.client.events


class TestFailed:
    @pytest.mark.parametrize(
        ("reply", "kind", "status", "text"),
        [
            (b"HTTP/1.1 403 Forbidden\r\n\r\n", TunnelRefused, 403, "answered 403"),
            (b"HTTP/1.1 502 \r\nContent-Length: 9\r\n\r\n", TunnelRefused, 502, "answered 502"),
            (b"HTTP/1.1 101 Switching\r\n\r\n", TunnelRefused, 101, "answered 101"),
            (b"HTTP/1.1 407 Who?\r\n\r\n", TunnelUnauthorized, 407, "wants credentials"),
            (b"HTTP/1.1 401 Who?\r\n\r\n", TunnelUnauthorized, 401, "wants credentials"),
            (b"SSH-2.0-OpenSSH\r\n", TunnelReplyMalformed, None, "no HTTP/1 response"),
            (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000, TunnelReplyMalformed, None, "no HTTP/1"),
        ],
    )
    def test_reply(
        self, stage: Stage, reply: bytes, kind: type[TunnelError], status: int | None, text: str
    ) -> None:
        """A proxy that refuses, or isn't one, is an error; the protocol hears of nothing."""
        connecting = stage.connect()
        proxy = stage.asked()
        proxy.say(reply)
        failure = stage.failure(connecting)
        assert isinstance(failure, kind)
        assert (kind, status) == (type(failure), failure.status)
        port = stage.listener.getsockname()[1]
        assert f"can't reach h.example:443: the proxy 127.0.0.1:{port} " in str(failure)
        assert text in str(failure)
        proxy.read_to_reset()
        assert [] == stage.client.events

    def test_credentials_refused(self, stage: Stage) -> None:
        """A proxy that doesn't like our credentials is another thing than one that has none."""
        connecting = stage.connect(stage.endpoint(authorization=b"Basic Og=="))
        stage.accept().say(b"HTTP/1.1 407 No\r\n\r\n")
        assert "does not accept the credentials" in str(stage.failure(connecting))

    @pytest.mark.parametrize("kind", [Client, HalfCloseable])
    @pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\n"])
    @pytest.mark.parametrize("end", ["close", "half_close", "reset"])
    def test_ended(self, stage: Stage, kind: type[Client], reply: bytes, end: str) -> None:
        """A proxy that ends the connection before its reply's end has opened nothing."""
        stage.client = kind()
        connecting = stage.connect()
        proxy = stage.asked()
        proxy.say(reply)
        getattr(proxy, end)()
        failure = stage.failure(connecting)
        assert isinstance(failure, TunnelReplyMalformed)
        assert "closed the connection" in str(failure)
        assert [] == stage.client.events

    def test_unreachable(self, stage: Stage) -> None:
        """A proxy that isn't reached is what its endpoint says."""
        endpoint = stage.endpoint()
        stage.listener.close()
        assert isinstance(stage.failure(stage.connect(endpoint)), error.ConnectionRefusedError)

    def test_silent(self, stage: Stage) -> None:
        """A proxy that doesn't answer in time is given up."""
        clock = Clock()
        connecting = stage.connect(stage.endpoint(clock=clock))
        proxy = stage.asked()
        clock.advance(30.0)
        failure = stage.failure(connecting)
        assert isinstance(failure, TunnelTimeout)
        assert "no tunnel within 30 s" in str(failure)
        proxy.read_to_reset()

    def test_cancelled_while_dialling(self, stage: Stage) -> None:
        """A connection that is being made can be given up."""
        connecting = stage.connect()
        connecting.cancel()
        assert isinstance(stage.failure(connecting), defer.CancelledError)
        assert [] == stage.client.events

    def test_cancelled_while_asking(self, stage: Stage) -> None:
        """So can one whose proxy is yet to answer."""
        connecting = stage.connect()
        proxy = stage.asked()
        connecting.cancel()
        assert isinstance(stage.failure(connecting), defer.CancelledError)
        proxy.read_to_reset()
        assert [] == stage.client.events

    def test_no_protocol(self, stage: Stage) -> None:
        """A factory may want none."""

        class Unwilling(Factory):
            noisy = False

            def buildProtocol(self, addr: IAddress | None) -> None:
                return None

        assert isinstance(stage.failure(stage.connect(factory=Unwilling())), error.NoProtocol)

    def test_buggy_factory(self, stage: Stage) -> None:
        """A factory that raises fails the Deferred."""

        class Buggy(Factory):
            noisy = False

            def buildProtocol(self, addr: IAddress | None) -> Protocol:
                raise ZeroDivisionError

        assert isinstance(stage.failure(stage.connect(factory=Buggy())), ZeroDivisionError)


class TestComposed:
    def test_chain(self, stage: Stage) -> None:
        """A proxy may be reached through another."""
        first = stage.endpoint(parse_authority("second.example:3128"))
        both = ConnectClientEndpoint(stage.turning.reactor, first, AUTHORITY)
        connecting = stage.connect(both)
        proxy = stage.accept()
        asked = REQUEST.replace(b"h.example:443", b"second.example:3128")
        assert asked == proxy.read(len(asked))
        proxy.say(OPENED)
        assert REQUEST == proxy.read(len(REQUEST))
        proxy.say(OPENED + b"SSH-")
        assert stage.client is stage.turning.result(connecting)
        assert ["made", b"SSH-"] == stage.client.events
