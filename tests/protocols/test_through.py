from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import pytest
from relay.transcripts import Peer
from support import queued, wait_for
from turning import ByHand, Turning, turning
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.addresses import SocketAddress, parse_authority
from sidecar.config import Limits
from sidecar.errors import (
    AddressError,
    ConnectionRefused,
    ConnectionReset,
    DestinationUnroutable,
    DialError,
    NameNotResolved,
    ProxyLoopDetected,
    TunnelRefused,
    TunnelReplyMalformed,
    TunnelTimeout,
    TunnelUnauthorized,
)
from sidecar.linux.sockopt import unread
from sidecar.names.resolving import INameResolver
from sidecar.protocols.through import reach_proxy, reach_through
from sidecar.runtime import Runtime
from sidecar.upstream_proxy import UpstreamProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.interfaces import IRelayReactor
    from sidecar.protocols.through import Reaching

AUTHORITY = parse_authority("h.example:443")
REQUEST = b"CONNECT h.example:443 HTTP/1.1\r\nHost: h.example:443\r\n\r\n"
OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@implementer(INameResolver)
class Names:
    """Answers what it is told to, when it is told to."""

    def __init__(self) -> None:
        self.answer: Deferred[tuple[str, ...]] = Deferred()
        self.asked: list[str] = []

    def recent(self, host: str) -> tuple[str, ...] | None:
        return None

    def resolve(self, host: str) -> Deferred[tuple[str, ...]]:
        self.asked.append(host)
        return self.answer


class Stage:
    """A proxy that does what the test says, and somebody who wants to go through it."""

    def __init__(self, turning: Turning, runtime: Runtime) -> None:
        self.turning = turning
        self.runtime = runtime
        self.names = Names()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = SocketAddress(*self.listener.getsockname())
        self.url = f"http://{self.address}"
        self.outcomes: list[socket.socket | DialError] = []
        self.addresses: list[SocketAddress | None] = []
        self._stack = ExitStack()

    def done(self, outcome: socket.socket | DialError, address: SocketAddress | None) -> None:
        self.outcomes.append(outcome)
        self.addresses.append(address)

    def through(self, url: str | None = None) -> Reaching | None:
        proxy = UpstreamProxy.parse(url or self.url)
        return reach_through(self.runtime, self.names, proxy, AUTHORITY, self.done)

    def to_proxy(self, url: str) -> Reaching | None:
        return reach_proxy(self.runtime, self.names, UpstreamProxy.parse(url), self.done)

    def accept(self) -> Peer:
        """The proxy's end of the connection."""
        self.turning.until(lambda: queued(self.listener), self.listener)
        sock = self._stack.enter_context(self.listener.accept()[0])
        sock.setblocking(False)
        return Peer(self.turning, sock, 1)

    def asked(self, request: bytes = REQUEST) -> Peer:
        """The same, once it has the request."""
        peer = self.accept()
        assert request == peer.read(len(request))
        return peer

    @property
    def sock(self) -> socket.socket:
        """Turn until there is an outcome: the one connection."""
        self.turning.until(lambda: self.outcomes)
        (outcome,) = self.outcomes
        assert isinstance(outcome, socket.socket), outcome
        return outcome

    @property
    def error(self) -> DialError:
        """Turn until there is an outcome: the one failure."""
        self.turning.until(lambda: self.outcomes)
        (outcome,) = self.outcomes
        assert isinstance(outcome, DialError), outcome
        return outcome

    def nothing_watched(self) -> bool:
        return self.runtime.poller.pollables() == []

    def close(self) -> None:
        self._stack.close()
        self.listener.close()
        for outcome in self.outcomes:
            if isinstance(outcome, socket.socket):
                outcome.close()


@pytest.fixture
def runtime(turning: Turning) -> Iterator[Runtime]:
    made = Runtime.make(turning.reactor, mark=None)
    yield made
    assert [] == made.poller.pollables()
    made.close()


@pytest.fixture
def stage(turning: Turning, runtime: Runtime) -> Iterator[Stage]:
    made = Stage(turning, runtime)
    yield made
    made.close()


def test_names() -> None:
    """The fake is what is expected of a resolver."""
    assert verifyObject(INameResolver, Names())


class TestOpened:
    def test_talk(self, stage: Stage) -> None:
        """The socket is one to the destination, as a relay wants it."""
        reaching = stage.through()
        assert reaching is not None
        proxy = stage.asked()
        assert reaching.pending
        proxy.say(OPENED)
        sock = stage.sock
        assert not reaching.pending
        assert [stage.address] == stage.addresses
        assert not sock.getblocking()
        assert stage.nothing_watched()
        sock.send(b"ping")
        assert b"ping" == proxy.read(4)
        # Nothing happens any more when it is given up.
        reaching.cancel()
        assert 4 == sock.send(b"pong")

    @pytest.mark.parametrize(
        "reply",
        [
            OPENED,
            b"HTTP/1.0 200 OK\r\nProxy-agent: x\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n" + OPENED,
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
        ],
    )
    @pytest.mark.parametrize("rest", [b"SSH-2.0\r\n\r\n", b"\r\n\r\n", b"\n"])
    def test_rest_stays(self, stage: Stage, reply: bytes, rest: bytes) -> None:
        """What follows the reply is left in the socket, wherever it is cut."""
        whole = reply + rest
        for at in range(len(whole)):
            stage.through()
            proxy = stage.asked()
            proxy.say(whole[:at])
            stage.turning.settle()
            proxy.say(whole[at:])
            sock = stage.sock
            wait_for(lambda sock=sock: unread(sock) >= len(rest))  # type: ignore[misc]
            assert rest == sock.recv(99)
            sock.close()
            proxy.close()
            stage.outcomes.clear()

    def test_much_follows(self, stage: Stage) -> None:
        """However much it is."""
        stage.through()
        proxy = stage.asked()
        proxy.say(OPENED + b"x" * 100_000)
        sock = stage.sock
        sock.setblocking(True)
        assert 100_000 == len(sock.recv(100_000, socket.MSG_WAITALL))

    def test_credentials(self, stage: Stage) -> None:
        """Credentials go to the proxy."""
        stage.through(stage.url.replace("//", "//me:secret@"))
        stage.asked(REQUEST[:-2] + b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n\r\n").say(OPENED)
        assert stage.sock

    def test_name(self, stage: Stage) -> None:
        """A proxy's name is resolved; its addresses are tried in turn."""
        stage.through(f"http://Proxy.example:{stage.address.port}")
        assert ["proxy.example"] == stage.names.asked
        stage.names.answer.callback(("127.0.0.77", "127.0.0.1"))
        stage.asked().say(OPENED)
        assert stage.sock
        assert [stage.address] == stage.addresses

    def test_known_name(self, stage: Stage) -> None:
        """One that is known already takes no turn more."""
        stage.names.answer = succeed(("127.0.0.1",))
        stage.through(f"http://proxy.example:{stage.address.port}")
        stage.asked().say(OPENED)
        assert stage.sock


@pytest.mark.usefixtures("at_once")
class TestProxyItself:
    def test_address(self, stage: Stage) -> None:
        """Whoever only wants the proxy gets it, unasked; over loopback at once."""
        assert stage.to_proxy(stage.url) is None
        stage.sock.send(b"GET http://h.example/ HTTP/1.1\r\n")
        assert stage.accept().read(32).startswith(b"GET http://h.example/")

    def test_name(self, stage: Stage) -> None:
        """Likewise by name."""
        stage.names.answer = succeed(("127.0.0.1",))
        assert stage.to_proxy(f"http://proxy.example:{stage.address.port}") is None
        assert stage.sock


class TestFailed:
    @pytest.mark.parametrize(
        ("reply", "kind", "status", "text"),
        [
            (b"HTTP/1.1 403 Forbidden\r\n\r\n", TunnelRefused, 403, "answered 403"),
            (b"HTTP/1.1 101 Switching\r\n\r\n", TunnelRefused, 101, "answered 101"),
            (b"HTTP/1.1 407 Who?\r\n\r\n", TunnelUnauthorized, 407, "wants credentials"),
            (b"HTTP/1.1 401 Who?\r\n\r\n", TunnelUnauthorized, 401, "wants credentials"),
            (b"SSH-2.0-OpenSSH\r\n\r\n", TunnelReplyMalformed, None, "no HTTP/1 response"),
            (b"HTTP/1.1 200 OK\n\nSSH-2.0-x\r\n\r\n", TunnelReplyMalformed, None, "no HTTP/1"),
            (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000, TunnelReplyMalformed, None, "no HTTP/1"),
        ],
    )
    def test_reply(
        self, stage: Stage, reply: bytes, kind: type[DialError], status: int | None, text: str
    ) -> None:
        """A proxy that refuses, or isn't one, is an error that says what it did."""
        stage.through()
        stage.asked().say(reply)
        assert (kind, status) == (type(stage.error), getattr(stage.error, "status", None))
        assert f"can't reach h.example:443: the proxy {stage.url} " in str(stage.error)
        assert text in str(stage.error)
        assert [stage.address] == stage.addresses

    @pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 C\r\n\r\n"])
    def test_ended(self, stage: Stage, reply: bytes) -> None:
        """A proxy that closes before its reply's end has opened nothing."""
        stage.through()
        proxy = stage.asked()
        proxy.say(reply)
        proxy.half_close()
        assert isinstance(stage.error, TunnelReplyMalformed)
        assert "closed the connection" in str(stage.error)

    def test_reset(self, stage: Stage) -> None:
        """Nor has one that resets."""
        stage.through()
        stage.asked().reset()
        assert isinstance(stage.error, ConnectionReset)

    @pytest.mark.usefixtures("at_once")
    def test_unreachable(self, stage: Stage) -> None:
        """A proxy that isn't reached is a dial that failed."""
        stage.listener.close()
        assert stage.through() is None
        assert isinstance(stage.error, ConnectionRefused)

    def test_no_name(self, stage: Stage) -> None:
        """A proxy whose name has no address is what the resolver says."""
        stage.names.answer = fail(NameNotResolved("proxy.example", "no such name"))
        assert stage.through("http://proxy.example:1") is None
        assert isinstance(stage.error, NameNotResolved)
        assert [None] == stage.addresses

    def test_resolver_fails_otherwise(self, stage: Stage) -> None:
        """Whatever else the resolver says is a failure, too."""
        stage.names.answer = fail(AddressError("proxy.example", "not canonical"))
        stage.through("http://proxy.example:1")
        assert isinstance(stage.error, DestinationUnroutable)

    def test_few_addresses(self, stage: Stage) -> None:
        """A name with hundreds of dead addresses is given up after a few."""
        many = tuple(f"127.0.1.{n}" for n in range(1, 100))
        stage.names.answer = succeed(many)
        stage.through(f"http://proxy.example:{stage.address.port}")
        assert isinstance(stage.error, ConnectionRefused)
        assert [SocketAddress("127.0.1.4", stage.address.port)] == stage.addresses

    def test_silent(self, turning: Turning) -> None:
        """A proxy that doesn't answer in time is given up."""
        clock = ByHand(turning.reactor)
        reactor = cast("IRelayReactor", clock)
        runtime = Runtime.make(reactor, mark=None, limits=Limits(connect_timeout=5.0))
        stage = Stage(turning, runtime)
        stage.through()
        proxy = stage.asked()
        clock.advance(5.0)
        assert isinstance(stage.error, TunnelTimeout)
        assert "within 5 s" in str(stage.error)
        assert b"" == proxy.read_to_end()[len(REQUEST) :]
        stage.close()
        runtime.close()


class TestCancelled:
    def test_resolving(self, stage: Stage) -> None:
        """Nobody waits for the name any more."""
        reaching = stage.through("http://proxy.example:1")
        assert reaching is not None
        reaching.cancel()
        assert stage.names.answer.called
        assert [] == stage.outcomes

    def test_asking(self, stage: Stage) -> None:
        """Nor for the reply: the connection is closed."""
        reaching = stage.through()
        assert reaching is not None
        proxy = stage.asked()
        reaching.cancel()
        reaching.cancel()
        assert REQUEST == proxy.read_to_end()
        assert [] == stage.outcomes

    def test_shut_down(self, stage: Stage) -> None:
        """When the process ends, whoever waits is told by others."""
        stage.through()
        proxy = stage.asked()
        for pollable in stage.runtime.poller.pollables():
            pollable.shut_down()
        assert REQUEST == proxy.read_to_end()
        assert [] == stage.outcomes


class TestLoops:
    def test_ourselves(self, stage: Stage) -> None:
        """A proxy that is one of our own listeners is refused before it is dialled."""
        stage.runtime.guard.add_listener(SocketAddress("0.0.0.0", stage.address.port))
        assert stage.through() is None
        assert isinstance(stage.error, ProxyLoopDetected)

    def test_ourselves_by_name(self, stage: Stage) -> None:
        """So is one whose name leads here, whichever other addresses it has."""
        stage.runtime.guard.add_listener(stage.address)
        stage.names.answer = succeed(("127.0.0.1", "127.0.0.2"))
        stage.through(f"http://proxy.example:{stage.address.port}")
        assert isinstance(stage.error, ProxyLoopDetected)

    def test_brought_back(self, stage: Stage) -> None:
        """A connection that rules bring back to us is known by its source."""
        stage.runtime.guard.tracks_upstreams = True
        stage.through()
        proxy = stage.asked()
        source = SocketAddress(*proxy.sock.getpeername())
        owner = stage.runtime.guard.owner(source, stage.address)
        assert owner is not None
        owner.looped()
        assert isinstance(stage.error, ProxyLoopDetected)
        assert stage.runtime.guard.owner(source, stage.address) is None


@pytest.mark.usefixtures("at_once")
class TestBugs:
    def test_callee(self, turning: Turning, stage: Stage) -> None:
        """A bug in who wanted the connection is logged, and nothing else is harmed."""

        def buggy(outcome: socket.socket | DialError, _: SocketAddress | None) -> None:
            stage.outcomes.append(outcome)
            raise ZeroDivisionError

        stage.names.answer = succeed(("127.0.0.1",))
        url = f"http://proxy.example:{stage.address.port}"
        reach_proxy(stage.runtime, stage.names, UpstreamProxy.parse(url), buggy)
        assert stage.sock
        (logged,) = turning.failures
        assert "bug in who wanted" in logged
        turning.failures.clear()
        proxy = UpstreamProxy.parse(stage.url)
        stage.accept().close()
        stage.sock.close()
        stage.outcomes.clear()
        reach_through(stage.runtime, stage.names, proxy, AUTHORITY, buggy)
        stage.asked().say(OPENED)
        assert stage.sock
        turning.settle()
        assert 1 == len(turning.failures)
        turning.failures.clear()
