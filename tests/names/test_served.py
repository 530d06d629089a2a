from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from askers import policy
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.addresses import SocketAddress
from sidecar.names.served import Served, ServedFirst, hosts_file, name_of
from sidecar.names.verifying import Addresses, IVerifier

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.names.verifying import Acceptable

ONE, TWO = "93.184.216.34", "2606:2800:220:1::1"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def served(clock: Clock) -> Served:
    return Served(clock, grace=100.0, size=4)


class TestServed:
    def test_both_ways(self, served: Served) -> None:
        """What was answered is found by name and by address."""
        served.record("a.example", ONE, 60)
        served.record("a.example", TWO, 60)
        served.record("b.example", ONE, 60)
        assert served.owns("a.example", ONE)
        assert not served.owns("b.example", TWO)
        assert ("b.example", "a.example") == served.names_of(ONE)
        assert (ONE, TWO) == served.addresses_of("a.example")
        assert ((), ()) == (served.names_of("192.0.2.1"), served.addresses_of("c.example"))

    def test_again(self, served: Served) -> None:
        """What is answered again is the latest, and holds for longer; never for less."""
        served.record("a.example", ONE, 60)
        served.record("b.example", ONE, 60)
        served.record("a.example", ONE, 0)
        assert ("a.example", "b.example") == served.names_of(ONE)
        assert 2 == len(served)

    @pytest.mark.parametrize(("ttl", "lasts"), [(60, 160), (0, 100), (-5, 100), (2**31, 86500)])
    def test_expiry(self, served: Served, clock: Clock, ttl: int, lasts: int) -> None:
        """An answer counts for its TTL, a day at most, and the grace."""
        served.record("a.example", ONE, ttl)
        served.record("a.example", TWO, 2**31)
        clock.advance(lasts - 1)
        assert served.owns("a.example", ONE)
        assert (ONE, TWO) == served.addresses_of("a.example")
        clock.advance(1)
        assert not served.owns("a.example", ONE)
        assert () == served.names_of(ONE)
        assert len(served.addresses_of("a.example")) < 2

    def test_all_expired(self, served: Served, clock: Clock) -> None:
        """Nothing is left of what is too old, once it is asked for."""
        for number in range(3):
            served.record("a.example", f"9.9.9.{number}", 0)
        clock.advance(200)
        assert () == served.addresses_of("a.example")
        assert 0 == len(served)
        assert ({}, {}) == (served._names, served._addresses)

    def test_bound(self, served: Served) -> None:
        """Beyond the limit the oldest goes."""
        for number in range(6):
            served.record(f"{number}.example", ONE, 60)
        assert 4 == len(served)
        assert ("5.example", "4.example", "3.example", "2.example") == served.names_of(ONE)
        assert {"2.example", "3.example", "4.example", "5.example"} == set(served._addresses)

    def test_permanent(self, served: Served, clock: Clock) -> None:
        """What /etc/hosts says has no end; it doesn't take more room than there is."""
        served.add_permanent((f"{number}.example", ONE) for number in range(9))
        clock.advance(1e9)
        assert served.owns("0.example", ONE)
        assert 4 == len(served)


@implementer(IVerifier)
class Other:
    """Says where it was asked."""

    def verify(
        self, host: str, address: SocketAddress, acceptable: Acceptable
    ) -> Addresses | Deferred[Addresses]:
        return succeed((SocketAddress("192.0.2.99", address.port),))


class TestServedFirst:
    def test_owned(self, served: Served) -> None:
        """An address that was answered for the name is dialled, and nobody else asked."""
        served.record("a.example", ONE, 60)
        verifier = ServedFirst(served, Other())
        verifyObject(IVerifier, verifier)
        address = SocketAddress(ONE, 443)
        assert (address,) == verifier.verify("a.example", address, lambda _: True)

    @pytest.mark.parametrize(
        ("host", "address", "accepts"),
        [("b.example", ONE, True), ("a.example", TWO, True), ("a.example", ONE, False)],
    )
    def test_not_owned(self, served: Served, host: str, address: str, accepts: bool) -> None:
        """Another name, another address, or one that the policy refuses: the other decides."""
        served.record("a.example", ONE, 60)
        found = ServedFirst(served, Other()).verify(
            host, SocketAddress(address, 443), lambda _: accepts
        )
        assert isinstance(found, Deferred)


class TestNameOf:
    @pytest.mark.parametrize(
        ("allow", "deny", "expected"),
        [
            ([], [], "c.example"),
            (["a.example:22"], [], "a.example"),
            (["a.example:22", "b.example:22"], [], "b.example"),
            (["a.example:443"], [], "c.example"),
            (["a.example:22", "c.example:22"], ["b.example:22"], "b.example"),
            (["a.example:22"], ["b.example:25"], "a.example"),
        ],
    )
    def test_several(
        self, served: Served, allow: list[str], deny: list[str], expected: str
    ) -> None:
        """Of several names, one that a rule denies, else one that is allowed, else the latest."""
        for name in ("a.example", "b.example", "c.example"):
            served.record(name, ONE, 60)
        rules = policy("deny", allow, deny)
        assert expected == name_of(served, rules, SocketAddress(ONE, 22))

    def test_one_or_none(self, served: Served) -> None:
        """A single name needs no choice."""
        served.record("a.example", ONE, 60)
        assert "a.example" == name_of(served, policy(), SocketAddress(ONE, 22))
        assert None is name_of(served, policy(), SocketAddress(TWO, 22))


class TestHostsFile:
    def test_read(self, tmp_path: Path) -> None:
        """Names and addresses in order; comments, loopback and what is neither left out."""
        path = tmp_path / "hosts"
        path.write_bytes(
            b"127.0.0.1 localhost ads.example\n::1 localhost\n0.0.0.0 bad.example\n"
            b"# 10.0.0.9 comment.example\n10.0.0.1\tDB.example db # the database\n"
            b"fe80::1%eth0 zone.example\n127.1 short.example\n10.0.0.2\n\n\xff\xfe 10.0.0.3 x\n"
            b"10.0.0.4 ba\xffd 10.0.0.5 ok.example\n::ffff:10.0.0.6 mapped.example"
        )
        assert [
            ("db.example", "10.0.0.1"),
            ("db", "10.0.0.1"),
            ("ok.example", "10.0.0.4"),
            ("mapped.example", "10.0.0.6"),
        ] == hosts_file(path)

    def test_none(self, tmp_path: Path) -> None:
        """No file has no names."""
        assert [] == hosts_file(tmp_path / "missing")
