from __future__ import annotations

from collections import Counter
from copy import copy
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from names.authority import Authority, serving_tls
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.addresses import SocketAddress
from sidecar.dialing import Dialer
from sidecar.errors import (
    AddressRefused,
    CertificateMismatch,
    NameNotResolved,
    ResolverBusy,
    ResolveTimeout,
    VerificationError,
    VerificationImpossible,
)
from sidecar.flow import FlowEnd
from sidecar.loops import LoopGuard
from sidecar.names.certificates import trust
from sidecar.names.identity import CertificateProber
from sidecar.names.resolving import INameResolver
from sidecar.names.verifying import Certificate, IVerifier, Off, Redial, acceptable_answers
from sidecar.relay.poller import Poller

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turning import Turning
    from twisted.internet.task import Clock

    from sidecar.names.verifying import Addresses, Verifier

NAME = "allowed.example"
PUBLIC, OTHER, PRIVATE = "198.51.100.1", "198.51.100.2", "10.0.0.1"


@implementer(INameResolver)
class Answers:
    """A resolver that gives one answer after another, the last one for ever."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def recent(self, host: str) -> tuple[str, ...] | None:
        return None

    def resolve(self, host: str) -> Deferred[tuple[str, ...]]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return fail(answer) if isinstance(answer, Exception) else succeed(tuple(answer))


class Known(Answers):
    """One that has been asked a moment ago."""

    def recent(self, host: str) -> tuple[str, ...] | None:
        self.asked.append(host)
        answer = self.answers[0]
        return None if isinstance(answer, Exception) else tuple(answer)


@pytest.fixture
def prober(turning: Turning, clock: Clock, authority: Authority) -> Iterator[CertificateProber]:
    poller = Poller(turning.reactor)
    dialer = Dialer(clock, poller, LoopGuard(), mark=None, timeout=10.0, keepalive=60)
    made = CertificateProber(clock, poller, dialer, trust(authority.cafile))
    yield made
    made.close()
    dialer.close()
    poller.close()


def anything(_: SocketAddress) -> bool:
    return True


def public(address: SocketAddress) -> bool:
    return address.ip not in ip_network("10.0.0.0/8")


def at(host: str, port: int = 443) -> SocketAddress:
    return SocketAddress(host, port)


def ordered(answer: Addresses | Deferred[Addresses]) -> Addresses | Exception:
    """What an answer is that is there already."""
    if isinstance(answer, tuple):
        return answer
    found: list[Addresses | Exception] = []
    answer.addCallbacks(found.append, lambda failure: found.append(failure.value))
    (one,) = found
    return one


def outcome(answer: Addresses | Deferred[Addresses]) -> SocketAddress | Exception:
    """What would be dialled first."""
    found = ordered(answer)
    return found[0] if isinstance(found, tuple) else found


def waited(turning: Turning, answer: Addresses | Deferred[Addresses]) -> SocketAddress:
    """What is dialled first, once that is known."""
    if isinstance(answer, Deferred):
        answer = turning.result(answer)
    return answer[0]


def refused(answer: Addresses | Deferred[Addresses]) -> VerificationError:
    """What a Deferred failed with, which must be a documented error."""
    error = outcome(answer)
    assert isinstance(error, VerificationError), error
    return error


class TestInterfaces:
    def test_verifiers(self, prober: CertificateProber) -> None:
        """Every way to verify is a verifier."""
        verifiers: list[Verifier] = [Redial(Answers([])), Certificate(prober), Off()]
        assert [True] * 3 == [verifyObject(IVerifier, each) for each in verifiers]

    def test_resolver(self) -> None:
        """The fake above is a proper resolver."""
        assert verifyObject(INameResolver, Answers([]))


class TestRedial:
    def test_kept(self) -> None:
        """An address that is among the answers is dialled."""
        redial = Redial(Answers([OTHER, PUBLIC]))
        assert at(PUBLIC) == outcome(redial.verify(NAME, at(PUBLIC), public))

    @pytest.mark.parametrize("claimed", ["203.0.113.9", PRIVATE, "169.254.169.254", "2001:db8::9"])
    def test_spoofed(self, claimed: str) -> None:
        """A name claimed for somebody else's address leads to the name's own, same port."""
        redial = Redial(Answers([PUBLIC]))
        assert at(PUBLIC, 8443) == outcome(redial.verify(NAME, at(claimed, 8443), public))

    def test_family(self) -> None:
        """An answer of the family that the client used comes first."""
        redial = Redial(Answers(["2001:db8::1", PUBLIC]))
        assert at(PUBLIC) == outcome(redial.verify(NAME, at("203.0.113.9"), public))
        assert at("2001:db8::1") == outcome(redial.verify(NAME, at("2001:db8::9"), public))

    def test_deterministic(self) -> None:
        """The same destination leads to the same answer, in whatever order they come."""
        answers = [f"198.51.100.{number}" for number in range(1, 9)]
        chosen = {
            outcome(Redial(Answers(order)).verify(NAME, at("203.0.113.9"), public))
            for order in (answers, answers[::-1], answers[3:] + answers[:3])
        }
        assert 1 == len(chosen)

    def test_spread(self) -> None:
        """Different destinations spread over the answers."""
        redial = Redial(Answers([f"198.51.100.{number}" for number in range(1, 5)]))
        chosen = Counter(
            outcome(redial.verify(NAME, at(f"203.0.113.{number}"), public)) for number in range(64)
        )
        assert [16] * 4 == list(chosen.values())

    def test_mixed(self) -> None:
        """Answers that may not be dialled are dropped from the set (CASES H12)."""
        redial = Redial(Answers([PRIVATE, PUBLIC]))
        for claimed in (PRIVATE, PUBLIC, "203.0.113.9"):
            assert at(PUBLIC) == outcome(redial.verify(NAME, at(claimed), public))

    def test_only_private(self) -> None:
        """A public name with nothing but private addresses is refused (CASES H11)."""
        redial = Redial(Answers([PRIVATE, "10.0.0.2"]))
        error = refused(redial.verify(NAME, at(PRIVATE), public))
        assert (AddressRefused, "address_refused", FlowEnd.DENIED) == (
            type(error),
            error.reason,
            error.end,
        )
        assert (
            "10.0.0.1:443 is not dialled for allowed.example:"
            " it resolves to 10.0.0.1, 10.0.0.2, which is refused" == str(error)
        )

    def test_rebinding(self) -> None:
        """An answer that turns private gets nobody there: it is judged anew, and asked once."""
        answers = Answers([PUBLIC], [PRIVATE])
        redial = Redial(answers)
        assert at(PUBLIC) == outcome(redial.verify(NAME, at(PUBLIC), public))
        assert [NAME] == answers.asked
        assert isinstance(refused(redial.verify(NAME, at(PUBLIC), public)), AddressRefused)

    @pytest.mark.parametrize(
        ("cause", "end"),
        [
            (NameNotResolved(NAME, "no such name"), FlowEnd.DNS_ERROR),
            (ResolverBusy(NAME, "too many"), FlowEnd.DNS_ERROR),
            (ResolveTimeout(NAME, "no answer"), FlowEnd.DNS_TIMEOUT),
        ],
    )
    def test_unknown(self, cause: NameNotResolved | ResolveTimeout, end: FlowEnd) -> None:
        """A name that can't be resolved is refused, and the error knows why."""
        error = refused(Redial(Answers(cause)).verify(NAME, at(PUBLIC), public))
        assert isinstance(error, VerificationImpossible)
        assert (cause, end, end.value) == (error.cause, error.end, error.reason)

    @pytest.mark.parametrize("kind", [Answers, Known])
    def test_others(self, kind: type[Answers]) -> None:
        """The other answers follow: first those of the client's family, four in all."""
        answers = [f"198.51.100.{number}" for number in range(4, 0, -1)]
        redial = Redial(kind(["2001:db8::1", PRIVATE, *answers[:2]]))
        few = (at(answers[0]), at(answers[1]), at("2001:db8::1"))
        assert few == ordered(redial.verify(NAME, at(answers[0]), public))
        many = Redial(kind(["2001:db8::1", *answers]))
        expected = tuple(at(f"198.51.100.{number}") for number in (3, 4, 1, 2))
        assert expected == ordered(many.verify(NAME, at("203.0.113.2"), public))
        mixed = (at("2001:db8::1"), *map(at, answers[:3]))
        assert mixed == ordered(many.verify(NAME, at("2001:db8::4"), public))

    def test_known(self) -> None:
        """What the resolver knows is answered without a Deferred; refusals are one."""
        redial = Redial(Known([PRIVATE, PUBLIC]))
        assert (at(PUBLIC),) == redial.verify(NAME, at(PUBLIC), public)
        error = refused(Redial(Known([PRIVATE])).verify(NAME, at(PUBLIC), public))
        assert isinstance(error, AddressRefused)

    def test_predicate_sees_ports(self) -> None:
        """The predicate is asked for what would be dialled, port included."""
        asked: list[SocketAddress] = []

        def note(address: SocketAddress) -> bool:
            asked.append(address)
            return True

        outcome(Redial(Answers([PUBLIC, OTHER])).verify(NAME, at(PUBLIC, 8443), note))
        assert [at(PUBLIC, 8443), at(OTHER, 8443)] == asked

    def test_cancel(self) -> None:
        """Who gives up waits no more."""
        waiting: Deferred[tuple[str, ...]] = Deferred()

        @implementer(INameResolver)
        class Slow:
            def recent(self, host: str) -> None:
                return None

            def resolve(self, host: str) -> Deferred[tuple[str, ...]]:
                return waiting

        verifying = Redial(Slow()).verify(NAME, at(PUBLIC), public)
        assert isinstance(verifying, Deferred)
        verifying.cancel()
        assert isinstance(outcome(verifying), CancelledError)
        assert waiting.called


class TestBugs:
    @pytest.mark.parametrize("kind", ["redial", "known", "certificate", "off"])
    def test_predicate_raises(self, prober: CertificateProber, kind: str) -> None:
        """A predicate that raises lets nobody through, and its error is not lost."""
        verifiers: dict[str, Verifier] = {
            "redial": Redial(Answers([PUBLIC])),
            "known": Redial(Known([PUBLIC])),
            "certificate": Certificate(prober),
            "off": Off(),
        }

        def broken(_: SocketAddress) -> bool:
            raise ZeroDivisionError

        found = outcome(verifiers[kind].verify(NAME, at(PUBLIC), broken))
        assert isinstance(found, ZeroDivisionError)


class TestAnswers:
    @pytest.mark.parametrize("kind", [Answers, Known])
    def test_all(self, kind: type[Answers]) -> None:
        """What may be dialled for a name, in the resolver's order."""
        resolver = kind([OTHER, PRIVATE, PUBLIC])
        found = ordered(acceptable_answers(resolver, NAME, at("0.0.0.0"), public))
        assert (at(OTHER), at(PUBLIC)) == found


class TestOff:
    def test_believed(self) -> None:
        """The client is believed."""
        assert at(PUBLIC) == outcome(Off().verify(NAME, at(PUBLIC), public))

    def test_refused(self) -> None:
        """What the policy refuses for the name stays refused."""
        error = refused(Off().verify(NAME, at(PRIVATE), public))
        assert "10.0.0.1:443 is not dialled for allowed.example: the address is refused" == str(
            error
        )


class TestCertificate:
    def test_proven(
        self, turning: Turning, prober: CertificateProber, authority: Authority
    ) -> None:
        """An address that shows a certificate for the name is dialled."""
        with serving_tls(authority.issue(x509.DNSName(NAME))) as server:
            verifying = Certificate(prober).verify(NAME, server.address, anything)
            assert server.address == waited(turning, verifying)

    def test_spoofed(
        self, turning: Turning, prober: CertificateProber, authority: Authority
    ) -> None:
        """One that shows another's is not, and the error says why."""
        with serving_tls(authority.issue(x509.DNSName("other.example"))) as server:
            verifying = Certificate(prober).verify(NAME, server.address, anything)
            with pytest.raises(CertificateMismatch) as caught:
                waited(turning, verifying)
        assert ("certificate_mismatch", FlowEnd.DENIED) == (caught.value.reason, caught.value.end)

    def test_refused(self, prober: CertificateProber, authority: Authority) -> None:
        """An address that may not be dialled is not even probed."""
        with serving_tls(authority.issue(x509.DNSName(NAME))) as server:
            verifying = Certificate(prober).verify(NAME, server.address, lambda _: False)
            assert isinstance(refused(verifying), AddressRefused)
        assert [] == server.peers

    def test_not_reached(self, turning: Turning, prober: CertificateProber) -> None:
        """An address that nobody answers at fails as dialling it would."""
        verifying = Certificate(prober).verify(NAME, at("127.0.0.1", 1), anything)
        with pytest.raises(VerificationImpossible) as caught:
            waited(turning, verifying)
        assert ("connection_refused", FlowEnd.CONNECTION_REFUSED) == (
            caught.value.reason,
            caught.value.end,
        )


class TestSpoof:
    """One lie, told to each: SNI of one server, address of another."""

    @pytest.mark.parametrize("kind", ["redial", "certificate", "off"])
    def test_spoof(
        self, turning: Turning, prober: CertificateProber, authority: Authority, kind: str
    ) -> None:
        """Led to the name's own server, denied, or believed."""
        with (
            serving_tls(authority.issue(x509.DNSName(NAME)), "127.0.0.2") as right,
            serving_tls(authority.issue(x509.DNSName("evil.example")), "127.0.0.3") as wrong,
        ):
            verifiers: dict[str, Verifier] = {
                "redial": Redial(Answers([right.address.host])),
                "certificate": Certificate(prober),
                "off": Off(),
            }
            verifying = verifiers[kind].verify(NAME, wrong.address, anything)
            expected = {
                "redial": SocketAddress(right.address.host, wrong.address.port),
                "off": wrong.address,
            }
            if kind in expected:
                assert expected[kind] == waited(turning, verifying)
            else:
                with pytest.raises(CertificateMismatch):
                    waited(turning, verifying)


class TestErrors:
    @pytest.mark.parametrize(
        "error",
        [
            AddressRefused(NAME, "192.0.2.1:443", "x"),
            VerificationImpossible(NAME, "192.0.2.1:443", ResolveTimeout(NAME, "no answer")),
        ],
        ids=lambda error: error.reason,
    )
    def test_copies(self, error: VerificationError) -> None:
        """An error that is kept and given again is the same in all that it says."""
        twin = copy(error)
        facts = [(str(each), each.reason, each.end, each.host) for each in (error, twin)]
        assert (facts[0], type(error)) == (facts[1], type(twin))

    def test_text(self) -> None:
        """One that has a cause says what that was."""
        error = VerificationImpossible(NAME, "192.0.2.1:443", ResolveTimeout(NAME, "no answer"))
        assert "192.0.2.1:443 is not dialled for allowed.example: no answer" == str(error)
