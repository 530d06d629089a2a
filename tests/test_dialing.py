from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from privileges import without_capabilities
from support import fill_queue
from turning import Turning, turning
from twisted.internet.task import Clock

from sidecar.addresses import SocketAddress
from sidecar.dialing import Dial, Dialer, Source
from sidecar.errors import (
    ConnectionRefused,
    ConnectionTimeout,
    DestinationUnroutable,
    DialError,
    ProxyLoopDetected,
)
from sidecar.loops import LoopGuard
from sidecar.relay.poller import Poller

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture
def poller(turning: Turning) -> Iterator[Poller]:
    made = Poller(turning.reactor)
    yield made
    made.close()


@pytest.fixture
def guard() -> LoopGuard:
    return LoopGuard()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def dialer(clock: Clock, poller: Poller, guard: LoopGuard) -> Iterator[Dialer]:
    made = Dialer(clock, poller, guard, mark=None, timeout=10.0, keepalive=77)
    yield made
    made.close()
    assert [] == clock.getDelayedCalls()


class Outcomes:
    """Takes what dials end with, and closes it."""

    def __init__(self) -> None:
        self.all: list[socket.socket | DialError] = []
        self.addresses: list[SocketAddress] = []

    def __call__(self, outcome: socket.socket | DialError, address: SocketAddress) -> None:
        self.all.append(outcome)
        self.addresses.append(address)

    @property
    def sock(self) -> socket.socket:
        """The one connection."""
        (outcome,) = self.all
        assert isinstance(outcome, socket.socket), outcome
        return outcome

    @property
    def error(self) -> DialError:
        """The one failure."""
        (outcome,) = self.all
        assert isinstance(outcome, DialError), outcome
        return outcome


@pytest.fixture
def outcomes() -> Iterator[Outcomes]:
    made = Outcomes()
    yield made
    for outcome in made.all:
        if isinstance(outcome, socket.socket):
            outcome.close()


@pytest.fixture(params=["127.0.0.1", "::1"], ids=["ipv4", "ipv6"])
def listener(request: pytest.FixtureRequest, turning: Turning) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in request.param else socket.AF_INET) as made:
        made.bind((request.param, 0))
        made.listen()
        yield made


def address_of(sock: socket.socket) -> SocketAddress:
    """Where it is."""
    return SocketAddress.from_kernel(sock.getsockname())


@pytest.fixture
def silent(turning: Turning) -> Iterator[SocketAddress]:
    """An address that never answers: nobody accepts, and the backlog is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        fill_queue(stack, listener)
        yield address_of(listener)


@pytest.mark.usefixtures("at_once")
class TestConnecting:
    def test_connected(self, dialer: Dialer, listener: socket.socket, outcomes: Outcomes) -> None:
        """A listener on loopback is reached at once; the socket is as a relay wants it."""
        assert dialer.dial(address_of(listener), outcomes) is None
        sock = outcomes.sock
        assert [address_of(listener)] == outcomes.addresses
        assert listener.getsockname() == sock.getpeername()
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        assert 1 == sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert 77 == sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)

    def test_refused(self, dialer: Dialer, listener: socket.socket, outcomes: Outcomes) -> None:
        """Nobody listens: refused, with the address."""
        address = address_of(listener)
        listener.close()
        dialer.dial(address, outcomes)
        assert isinstance(outcomes.error, ConnectionRefused)
        assert str(address) == outcomes.error.upstream

    def test_unroutable(self, dialer: Dialer, outcomes: Outcomes) -> None:
        """What can't be connected to is unroutable, with the kernel's reason."""
        dialer.dial(SocketAddress("255.255.255.255", 80), outcomes)
        assert isinstance(outcomes.error, DestinationUnroutable)
        assert "unreachable" in str(outcomes.error)

    def test_no_descriptors(
        self, dialer: Dialer, listener: socket.socket, outcomes: Outcomes
    ) -> None:
        """At the descriptor limit a dial fails, and nothing else."""
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            dialer.dial(address_of(listener), outcomes)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert isinstance(outcomes.error, DestinationUnroutable)
        assert "open files" in str(outcomes.error)


class TestWaiting:
    def test_answered_later(
        self, turning: Turning, dialer: Dialer, silent: SocketAddress, outcomes: Outcomes
    ) -> None:
        """While the answer is awaited the address that is dialled from is known."""
        dial = dialer.dial(silent, outcomes)
        assert isinstance(dial, Dial)
        assert [] == outcomes.all
        assert "127.0.0.1" == dial.local.host
        dial.cancel()

    def test_timeout(
        self, clock: Clock, dialer: Dialer, silent: SocketAddress, outcomes: Outcomes
    ) -> None:
        """An answer that doesn't come within the deadline never does."""
        dialer.dial(silent, outcomes)
        clock.advance(9.9)
        assert [] == outcomes.all
        clock.advance(0.2)
        assert isinstance(outcomes.error, ConnectionTimeout)
        assert "within 10 s" in str(outcomes.error)

    def test_each_has_its_own(self, clock: Clock, dialer: Dialer, silent: SocketAddress) -> None:
        """One timer serves all dials, each at its time."""
        ended: list[str] = []
        for name in ("first", "second", "third"):
            dialer.dial(silent, lambda _, __, name=name: ended.append(name))  # type: ignore[misc]
            clock.advance(3)
        assert 1 == len(clock.getDelayedCalls())
        clock.advance(1.5)
        assert ["first"] == ended
        clock.advance(3)
        assert ["first", "second"] == ended
        clock.advance(3)
        assert ["first", "second", "third"] == ended

    def test_cancel(
        self, clock: Clock, poller: Poller, dialer: Dialer, silent: SocketAddress
    ) -> None:
        """Nobody hears of a dial that was given up."""
        outcomes = Outcomes()
        dial = dialer.dial(silent, outcomes)
        assert dial is not None
        dial.cancel()
        clock.advance(20)
        assert ([], []) == (outcomes.all, poller.pollables())

    def test_cancelled_by_another(
        self, clock: Clock, dialer: Dialer, silent: SocketAddress
    ) -> None:
        """Who hears of a timeout may give up another dial that is due in the same moment."""
        dials: list[Dial] = []
        ended: list[str] = []

        def done(_: object, __: object) -> None:
            ended.append("first")
            dials[1].cancel()

        for action in (done, lambda _, __: ended.append("second")):
            dial = dialer.dial(silent, action)
            assert dial is not None
            dials.append(dial)
        clock.advance(20)
        assert ["first"] == ended

    def test_redialled(self, clock: Clock, dialer: Dialer, silent: SocketAddress) -> None:
        """Who hears of a timeout may dial again at once."""
        outcomes = Outcomes()

        def redial(_: object, __: object) -> None:
            dialer.dial(silent, outcomes)

        dialer.dial(silent, redial)
        clock.advance(1)
        dialer.dial(silent, outcomes)
        clock.advance(9.5)
        assert [] == outcomes.all
        assert 1 == len(clock.getDelayedCalls())
        clock.advance(1)
        assert 1 == len(outcomes.all)
        clock.advance(9)
        assert 2 == len(outcomes.all)

    def test_one_raises(
        self, turning: Turning, clock: Clock, dialer: Dialer, silent: SocketAddress
    ) -> None:
        """A bug in who hears of a timeout doesn't keep others from hearing of theirs."""

        def bug(_: object, __: object) -> None:
            raise ZeroDivisionError

        outcomes = Outcomes()
        dialer.dial(silent, bug)
        dialer.dial(silent, outcomes)
        clock.advance(1)
        dialer.dial(silent, outcomes)
        clock.advance(9.5)
        assert 1 == len(outcomes.all)
        assert "ZeroDivisionError" in turning.failures.pop()
        clock.advance(1)
        assert 2 == len(outcomes.all)


class TestGuard:
    @pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1", "127.9.9.9"])
    def test_ourselves(
        self, dialer: Dialer, guard: LoopGuard, outcomes: Outcomes, host: str
    ) -> None:
        """Our own listener isn't dialled, however it is spelled."""
        guard.add_listener(SocketAddress("::", 15001))
        dialer.dial(SocketAddress(host, 15001), outcomes)
        assert isinstance(outcomes.error, ProxyLoopDetected)


class TestMark:
    @needs_root
    @pytest.mark.usefixtures("at_once")
    @pytest.mark.parametrize("mark", [1, 0x539, 0x8000_0000, 0xFFFF_FFFF])
    def test_set(
        self,
        clock: Clock,
        poller: Poller,
        guard: LoopGuard,
        listener: socket.socket,
        outcomes: Outcomes,
        mark: int,
    ) -> None:
        """Connections carry the mark, all 32 bits of it."""
        dialer = Dialer(clock, poller, guard, mark=mark, timeout=1, keepalive=60)
        dialer.dial(address_of(listener), outcomes)
        assert mark == outcomes.sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) % 2**32

    def test_not_permitted(self) -> None:
        """Without the capability it is done without, and said once."""
        done = without_capabilities(
            """
import socket, sys
from twisted.internet import reactor
from twisted.logger import textFileLogObserver, globalLogPublisher
from sidecar.addresses import SocketAddress
from sidecar.dialing import Dialer
from sidecar.loops import LoopGuard
from sidecar.relay.poller import Poller
globalLogPublisher.addObserver(textFileLogObserver(sys.stdout))
dialer = Dialer(reactor, Poller(reactor), LoopGuard(), mark=1, timeout=60, keepalive=60)
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
left = 3
def dialled(made, _):
    global left
    print(type(made))
    left -= 1
    if not left:
        reactor.callWhenRunning(reactor.stop)
for _ in range(left):
    dialer.dial(SocketAddress(*listener.getsockname()), dialled)
reactor.run()
"""
        )
        assert 3 == done.stdout.count("socket.socket"), done.stderr
        assert 1 == done.stdout.count("carry no mark")


@pytest.mark.usefixtures("at_once")
class TestSource:
    def test_wish(self, dialer: Dialer, listener: socket.socket, outcomes: Outcomes) -> None:
        """Connections come from the source of their family, where this host has it."""
        dialer.dial(address_of(listener), outcomes, Source("127.0.0.6", "::6"))
        expected = "127.0.0.6" if listener.family == socket.AF_INET else "::1"
        assert expected == outcomes.sock.getsockname()[0]

    def test_other_family(
        self, dialer: Dialer, listener: socket.socket, outcomes: Outcomes
    ) -> None:
        """A source of no family leaves it to the kernel."""
        dialer.dial(address_of(listener), outcomes, Source(None, None))
        assert listener.getsockname()[0] == outcomes.sock.getsockname()[0]

    def test_must_not_permitted(self) -> None:
        """Likewise one that this process may not have."""
        done = without_capabilities(
            """
from twisted.internet import reactor
from sidecar.addresses import SocketAddress
from sidecar.dialing import Dialer, Source
from sidecar.loops import LoopGuard
from sidecar.relay.poller import Poller
dialer = Dialer(reactor, Poller(reactor), LoopGuard(), mark=None, timeout=1, keepalive=60)
source = Source("192.0.2.7", None, transparent=True)
dialer.dial(SocketAddress("127.0.0.1", 80), lambda made, _: print(repr(made)), source)
"""
        )
        assert "DestinationUnroutable" in done.stdout, done.stderr
        assert "not permitted" in done.stdout
