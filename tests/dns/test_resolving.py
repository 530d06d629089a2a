from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import pytest
from askers import policy
from nameservers import Scripted, a, aaaa, cname
from support import wait_for
from turning import Turning, turning
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.names import dns
from typing_extensions import Self
from zope.interface.verify import verifyObject

from sidecar.dns.forwarding import Forwarder
from sidecar.dns.resolvconf import NameServers
from sidecar.dns.resolving import DNSResolver
from sidecar.errors import AddressError, NameNotResolved, ResolverBusy, ResolveTimeout, SidecarError
from sidecar.flow import FlowEnd
from sidecar.names.resolving import INameResolver
from sidecar.relay.poller import Poller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from twisted.internet.defer import Deferred

    from sidecar.dns.asking import IAskingReactor
    from sidecar.dns.messages import Message
    from sidecar.policy import Policy

NAME = "www.example.com"
V4, V6 = "93.184.216.34", "2606:2800:220:1::1"
RECORDS = [
    *a(NAME, V4),
    *aaaa(NAME, V6),
    *a("twice.example.com", V4, V4, "93.184.216.35"),
    cname("alias.example.com", "Other.example.com"),
    cname("other.example.com", NAME),
    *aaaa("mapped.example.com", "::ffff:10.0.0.1"),
    *a("many.example.com", *(f"93.184.{n // 256}.{n % 256}" for n in range(700))),
    *a("db.corp.example", "10.0.0.5"),
    *a("a.b.corp.example", "10.0.0.6"),
    *a("localhost", "10.0.0.7"),
]
A, AAAA = dns.A, dns.AAAA


class Stage:
    """A resolver, and the name server that it asks.

    Attributes:
        rules: The policy; may be replaced.
        far: The name server.
        clock: The resolver's.
    """

    def __init__(self, turn: Turning, directory: Path) -> None:
        self._turn = turn
        self._path = directory / "resolv.conf"
        self.rules: Policy = policy("allow")
        self.clock = Clock()

    def __enter__(self) -> Self:
        return self

    def start(
        self,
        far: Scripted,
        *,
        resolv_conf: str = "search .\n",
        hosts: tuple[tuple[str, str], ...] = (),
        **options: float,
    ) -> None:
        """Make it."""
        self._path.write_text(resolv_conf, encoding="ascii")
        self.far = far
        self.poller = Poller(self._turn.reactor)
        self.forwarder = Forwarder(
            cast("IAskingReactor", self._turn.reactor),
            self.poller,
            lambda: [far.server],
            **options,  # type: ignore[arg-type]
        )
        self.resolver = DNSResolver(
            self.clock, self.forwarder, NameServers(self._path), lambda: self.rules, hosts
        )

    def __exit__(self, *_: object) -> None:
        self.forwarder.close()
        self.poller.close()

    def find(self, name: str) -> tuple[str, ...]:
        return self._turn.result(self.resolver.resolve(name))

    def asked(self) -> set[tuple[str, int]]:
        return {(name, kind) for name, kind, _ in self.far.asked}


@pytest.fixture
def turn() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture
def staged(turn: Turning, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Makes a stage with a name server that has the records, or the given fault."""
    with ExitStack() as stack:

        def make(fault: object = None, **options: object) -> Stage:
            far = stack.enter_context(Scripted(RECORDS, fault))  # type: ignore[arg-type]
            made = stack.enter_context(Stage(turn, tmp_path))
            made.start(far, **options)  # type: ignore[arg-type]
            return made

        yield make


@pytest.fixture
def stage(staged: Callable[..., Stage]) -> Stage:
    return staged()


def error_of(waiting: Deferred[tuple[str, ...]], turn: Turning) -> SidecarError:
    with pytest.raises(SidecarError) as caught:
        turn.result(waiting)
    return caught.value


class TestAnswers:
    def test_interface(self, stage: Stage) -> None:
        """It is what others may implement."""
        assert verifyObject(INameResolver, stage.resolver)

    def test_families(self, stage: Stage) -> None:
        """Both are asked for, once each, and given."""
        assert (V4, V6) == stage.find(NAME)
        assert {(NAME, A), (NAME, AAAA)} == stage.asked()
        assert 2 == len(stage.far.asked)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("twice.example.com", (V4, "93.184.216.35")),
            ("alias.example.com", (V4, V6)),
            ("mapped.example.com", ("10.0.0.1",)),
        ],
    )
    def test_addresses(self, stage: Stage, name: str, expected: tuple[str, ...]) -> None:
        """Each once, those at the end of a chain, mapped ones unwrapped."""
        assert expected == stage.find(name)

    def test_hundreds(self, stage: Stage) -> None:
        """Only the first count, of an answer that no datagram holds."""
        assert 256 == len(stage.find("many.example.com"))
        assert ("many.example.com", A, True) in stage.far.asked

    def test_foreign_records(self, staged: Callable[..., Stage]) -> None:
        """What an answer says of other names, types and classes is nobody's address."""

        def fault(query: Message, answer: Message, _: bool) -> list[bytes]:
            kind = query.queries[0].type
            short = dns.UnknownRecord(b"\x01\x02\x03")
            answer.answers = [
                *(*a("evil.example.com", "6.6.6.6"), *aaaa("evil.example.com", "6::6")),
                dns.RRHeader(NAME.encode(), kind, dns.CH, 60, dns.UnknownRecord(b"\x06" * 4)),
                dns.RRHeader(NAME.encode(), kind, dns.IN, 60, short),
                *(aaaa(NAME, "6::6") if kind == A else a(NAME, "6.6.6.6")),
                *(a(NAME, V4) if kind == A else []),
            ]
            return [answer.toStr()]

        assert (V4,) == staged(fault).find(NAME)

    def test_loop(self, staged: Callable[..., Stage], turn: Turning) -> None:
        """A chain that leads in a circle has no end."""

        def fault(_: Message, answer: Message, __: bool) -> list[bytes]:
            answer.answers = [cname(NAME, "x.example"), cname("x.example", NAME)]
            return [answer.toStr()]

        error = error_of(staged(fault).resolver.resolve(NAME), turn)
        assert "can't reach www.example.com: the name has no address" == str(error)


class TestErrors:
    def test_unknown(self, stage: Stage, turn: Turning) -> None:
        """A name that isn't there."""
        error = error_of(stage.resolver.resolve("no.example.com"), turn)
        assert isinstance(error, NameNotResolved)
        assert (FlowEnd.DNS_ERROR, "the name has no address") == (error.end, error.problem)

    def test_failing_server(self, staged: Callable[..., Stage], turn: Turning) -> None:
        """What the server says of itself is told."""

        def fault(_: Message, answer: Message, __: bool) -> list[bytes]:
            answer.rCode = dns.ESERVER
            return [answer.toStr()]

        error = error_of(staged(fault).resolver.resolve(NAME), turn)
        assert isinstance(error, NameNotResolved)
        assert "a name server answered SERVFAIL" == error.problem

    def test_half(self, staged: Callable[..., Stage]) -> None:
        """One family's addresses are enough, if the other's server fails or is silent."""

        def fault(query: Message, answer: Message, _: bool) -> list[bytes]:
            return [] if query.queries[0].type == AAAA else [answer.toStr()]

        assert (V4,) == staged(fault, deadline=0.1).find(NAME)

    def test_silence(self, staged: Callable[..., Stage], turn: Turning) -> None:
        """Nobody answers: it may be another time, so that isn't kept."""
        stage = staged(lambda *_: [], deadline=0.1)
        for _ in range(2):
            error = error_of(stage.resolver.resolve(NAME), turn)
            assert isinstance(error, ResolveTimeout)
            assert FlowEnd.DNS_TIMEOUT == error.end
        assert {(NAME, A), (NAME, AAAA)} == stage.asked()
        assert 8 == len(stage.far.asked)

    def test_deadline(self, staged: Callable[..., Stage], turn: Turning) -> None:
        """However many names a search list makes of one, there is one deadline."""
        stage = staged(lambda *_: [])
        waiting = stage.resolver.resolve(NAME)
        stage.clock.advance(4.9)
        assert not waiting.called
        stage.clock.advance(0.1)
        error = error_of(waiting, turn)
        assert isinstance(error, ResolveTimeout)
        assert "no answer within 5 s" == error.problem

    def test_busy(self, staged: Callable[..., Stage], turn: Turning) -> None:
        """Too many questions wait: that isn't kept, either."""
        stage = staged(lambda *_: [], at_once=1, queue=1)
        first = stage.resolver.resolve(NAME)
        error = error_of(stage.resolver.resolve("x.example"), turn)
        assert isinstance(error, ResolverBusy)
        first.addErrback(lambda _: None).cancel()
        assert stage.resolver._known("x.example") is None

    def test_nobody(self, staged: Callable[..., Stage], turn: Turning) -> None:
        """Nobody is there to be asked."""
        stage = staged()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unheard:
            unheard.bind(("127.0.0.1", 0))
            stage.far.port = unheard.getsockname()[1]
        error = error_of(stage.resolver.resolve(NAME), turn)
        assert "no name server can be reached" == cast("NameNotResolved", error).problem

    @pytest.mark.parametrize(
        "host", ["", "Example", "a..b", "127.1", "1\0.x", "é.x", "-a.b", "::1"]
    )
    def test_no_name(self, stage: Stage, turn: Turning, host: str) -> None:
        """Nothing but canonical names is asked for."""
        assert isinstance(error_of(stage.resolver.resolve(host), turn), AddressError)
        assert set() == stage.asked()

    def test_cancelled(self, staged: Callable[..., Stage], turn: Turning) -> None:
        """Who gives up is not waited for, and nobody is asked any more."""
        stage = staged(lambda *_: [])
        waiting = stage.resolver.resolve(NAME)
        wait_for(lambda: len(stage.far.asked) == 2)
        waiting.cancel()
        with pytest.raises(CancelledError):
            turn.result(waiting)
        assert [] == stage.poller.descriptors()

    def test_closed(self, staged: Callable[..., Stage], turn: Turning) -> None:
        """With the forwarder, it ends; who waits is told."""
        stage = staged(lambda *_: [])
        waiting = stage.resolver.resolve(NAME)
        stage.forwarder.close()
        for each in (waiting, stage.resolver.resolve("x.example")):
            error = error_of(each, turn)
            assert isinstance(error, NameNotResolved)
            assert "sidecar is being stopped" == error.problem


class TestKept:
    def test_answer(self, stage: Stage) -> None:
        """An answer is given again for five seconds, and known at once meanwhile."""
        assert stage.resolver.recent(NAME) is None
        stage.find(NAME)
        stage.clock.advance(4.9)
        assert (V4, V6) == stage.resolver.recent(NAME) == stage.find(NAME)
        assert 2 == len(stage.far.asked)
        stage.clock.advance(0.1)
        assert stage.resolver.recent(NAME) is None
        stage.find(NAME)
        assert 4 == len(stage.far.asked)

    def test_none(self, stage: Stage, turn: Turning) -> None:
        """That there is none as well; each who asks gets an error of their own."""
        errors = [error_of(stage.resolver.resolve("no.example.com"), turn) for _ in range(3)]
        assert 2 == len(stage.far.asked)
        assert 3 == len({id(each) for each in errors})
        assert stage.resolver.recent("no.example.com") is None


class TestWithoutAsking:
    def test_hosts(self, staged: Callable[..., Stage]) -> None:
        """Lines of /etc/hosts go before, for both families."""
        stage = staged(hosts=((NAME, "10.0.0.1"), (NAME, "fd00::1"), (NAME, "10.0.0.1")))
        assert ("10.0.0.1", "fd00::1") == stage.resolver.recent(NAME) == stage.find(NAME)
        assert set() == stage.asked()

    def test_localhost(self, stage: Stage) -> None:
        """Nobody else is asked what localhost is."""
        assert ("127.0.0.1", "::1") == stage.find("localhost") == stage.find("x.localhost")
        assert set() == stage.asked()

    @pytest.mark.parametrize("name", ["x.onion", "x.invalid", "resolver.arpa"])
    def test_no_names(self, stage: Stage, turn: Turning, name: str) -> None:
        """Nor for what is no DNS name."""
        assert isinstance(error_of(stage.resolver.resolve(name), turn), NameNotResolved)
        assert set() == stage.asked()

    def test_refused(self, stage: Stage, turn: Turning) -> None:
        """What the policy can't allow is not asked for, whoever wants to know."""
        stage.rules = policy("deny", allow=["*.example.com:80"])
        assert (V4, V6) == stage.find(NAME)
        error = error_of(stage.resolver.resolve("c2VjcmV0.evil.example".lower()), turn)
        assert "the policy doesn't let it be asked for" == cast("NameNotResolved", error).problem
        assert {(NAME, A), (NAME, AAAA)} == stage.asked()

    def test_other_policy(self, stage: Stage) -> None:
        """It is the one that is in force which counts."""
        stage.rules = policy("deny")
        stage.rules = policy("deny", allow=[NAME])
        assert (V4, V6) == stage.find(NAME)


class TestSearchList:
    SEARCH = "search lan.example corp.example\n"

    def test_short(self, staged: Callable[..., Stage]) -> None:
        """A name without a dot is meant to have one of the domains."""
        stage = staged(resolv_conf=self.SEARCH)
        assert ("10.0.0.5",) == stage.find("db") == stage.resolver.recent("db")
        names = [name for name, kind, _ in stage.far.asked if kind == A]
        assert ["db.lan.example", "db.corp.example"] == names

    def test_as_it_is(self, staged: Callable[..., Stage], turn: Turning) -> None:
        """Last of all it is asked for without; of the longer ones, those that are names."""
        stage = staged(resolv_conf=f"search {'a' * 63}.example {('b' * 60 + '.') * 4}\n")
        error_of(stage.resolver.resolve("unknown" + "x" * 50), turn)
        names = [name for name, kind, _ in stage.far.asked if kind == A]
        assert [f"unknown{'x' * 50}.{'a' * 63}.example", f"unknown{'x' * 50}"] == names

    def test_dots(self, staged: Callable[..., Stage]) -> None:
        """A name with as many dots as `ndots` says is taken as it is."""
        stage = staged(resolv_conf=f"{self.SEARCH}options ndots:2\n")
        assert ("10.0.0.6",) == stage.find("a.b")
        stage.far.asked.clear()
        assert (V4, V6) == stage.find(NAME)
        assert {(NAME, A), (NAME, AAAA)} == stage.asked()

    def test_policy(self, staged: Callable[..., Stage], turn: Turning) -> None:
        """A rule for the short name is one for what is made of it; others are not asked for."""
        stage = staged(resolv_conf=self.SEARCH)
        stage.rules = policy("deny", allow=["db"])
        assert ("10.0.0.5",) == stage.find("db")
        assert {"db.lan.example", "db.corp.example"} == {name for name, _ in stage.asked()}
        stage.far.asked.clear()
        error_of(stage.resolver.resolve("other"), turn)
        assert set() == stage.asked()

    def test_one_fails(self, staged: Callable[..., Stage]) -> None:
        """A domain whose servers fail doesn't hide the others."""

        def fault(query: Message, answer: Message, _: bool) -> list[bytes]:
            if query.queries[0].name.name.endswith(b"lan.example"):
                answer.rCode = dns.EREFUSED
            return [answer.toStr()]

        assert ("10.0.0.5",) == staged(fault, resolv_conf=self.SEARCH).find("db")
