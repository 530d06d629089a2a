from __future__ import annotations

import socket

import pytest
from askers import policy
from nameservers import a, aaaa, cname, raw, record
from twisted.names import dns

from sidecar.dns.filtering import Filtered, filter_answer
from sidecar.dns.messages import HTTPS, SVCB, Message, Question
from sidecar.policy.reach import Reach

PUBLIC, PUBLIC6, PRIVATE = "93.184.216.34", "2606:2800:220:1::1", "10.0.0.1"
NAME = "www.example.com"


def parameter(key: int, value: bytes) -> bytes:
    return key.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


def v4(*addresses: str) -> bytes:
    return parameter(4, b"".join(map(socket.inet_aton, addresses)))


def v6(*addresses: str) -> bytes:
    return parameter(6, b"".join(socket.inet_pton(socket.AF_INET6, each) for each in addresses))


HEAD = b"\x00\x01\x00"
ECH = parameter(5, b"config")


def filtered(
    rows: list[dns.RRHeader], kind: int = dns.A, name: str = NAME, **rules: object
) -> Filtered:
    """Filter an answer as it comes over the wire."""
    sent = dns.Message(1, 1, maxSize=0)
    sent.addQuery(name.encode(), kind)
    sent.answers = rows
    message = Message()
    message.fromStr(sent.toStr())
    reach = Reach(policy(**rules))  # type: ignore[arg-type]
    return filter_answer(message, Question(1, name.encode(), kind), name, reach)


def data(left: Filtered) -> list[bytes]:
    return [each.payload.data for each in left.answers]  # type: ignore[union-attr]


class TestServiceRecords:
    @pytest.mark.parametrize("kind", [HTTPS, SVCB])
    def test_ech(self, kind: int) -> None:
        """An ECH configuration is missing where the policy wants names."""
        rows = [raw(NAME, kind, HEAD + parameter(1, b"\x02h2") + ECH)]
        assert [HEAD + parameter(1, b"\x02h2")] == data(filtered(rows, kind, ech="deny"))
        kept = filtered(rows, kind)
        assert ([rows[0].payload.data], True) == (data(kept), kept.is_whole)  # type: ignore[union-attr]

    def test_ech_needed(self) -> None:
        """A record that can't be used without is missing whole."""
        rows = [raw(NAME, HTTPS, HEAD + parameter(0, b"\x00\x05") + ECH)]
        left = filtered(rows, HTTPS, ech="deny")
        assert ([], False) == (left.answers, left.is_whole)

    def test_hints(self) -> None:
        """Hints are filtered as addresses are, and recorded."""
        rows = [raw(NAME, HTTPS, HEAD + v4(PRIVATE, PUBLIC) + ECH + v6("fd00::1"))]
        left = filtered(rows, HTTPS)
        assert [HEAD + v4(PUBLIC) + ECH] == data(left)
        assert ({PUBLIC: 60}, [PRIVATE, "fd00::1"]) == (left.addresses, list(left.withheld))

    def test_malformed(self) -> None:
        """What can't be read isn't passed on."""
        left = filtered([raw(NAME, HTTPS, HEAD + b"\x00"), raw(NAME, HTTPS, HEAD)], HTTPS)
        assert [HEAD] == data(left)

    def test_in_any_answer(self) -> None:
        """Whatever was asked for, addresses and service records are looked at."""
        rows = [*a(NAME, PRIVATE), raw(NAME, HTTPS, HEAD + ECH), record(NAME, dns.Record_TXT(b"x"))]
        left = filtered(rows, 255, ech="deny")
        assert [HTTPS, dns.TXT] == [each.type for each in left.answers]


class TestAddresses:
    @pytest.mark.parametrize(
        "address",
        ["64:ff9b::a00:1", "2002:a00:1::", "::ffff:10.0.0.1", "::1", "fe80::1", "fec0::1", "::"],
    )
    def test_ipv6_forms(self, address: str) -> None:
        """Private addresses inside of IPv6 ones are seen."""
        assert [] == filtered(aaaa(NAME, address), dns.AAAA).answers

    @pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1"])
    def test_ipv4(self, address: str) -> None:
        """Everything that isn't public is missing."""
        left = filtered(a(NAME, address, PUBLIC))
        assert [socket.inet_aton(PUBLIC)] == data(left)
        assert {PUBLIC: 60} == left.addresses

    def test_mapped(self) -> None:
        """A mapped address counts, and is recorded, as the IPv4 address that it is."""
        left = filtered(aaaa(NAME, f"::ffff:{PUBLIC}"), dns.AAAA)
        assert {PUBLIC: 60} == left.addresses

    @pytest.mark.parametrize(("kind", "size"), [(dns.A, 3), (dns.A, 16), (dns.AAAA, 4), (dns.A, 0)])
    def test_wrong_size(self, kind: int, size: int) -> None:
        """A record that is no address isn't passed on."""
        assert [] == filtered([raw(NAME, kind, b"\x08" * size)], kind).answers

    def test_longest_ttl(self) -> None:
        """An address that is there twice is recorded for the longer time."""
        left = filtered([*a(NAME, PUBLIC, ttl=5), *a(NAME, PUBLIC, ttl=500)])
        assert {PUBLIC: 500} == left.addresses


class TestChain:
    def test_order(self) -> None:
        """A chain is followed in whatever order its records come."""
        rows = [*a("c.example", PUBLIC), cname("b.example", "C.example"), cname(NAME, "b.example")]
        left = filtered(rows)
        assert (3, [b"b.example", b"C.example"]) == (len(left.answers), left.chain)

    def test_loop(self) -> None:
        """A chain that comes back ends there."""
        left = filtered([cname(NAME, "b.example"), cname("b.example", NAME.upper())])
        assert [b"b.example"] == left.chain

    def test_endless(self) -> None:
        """A chain is followed for so long."""
        rows = [cname(NAME, "0.example")]
        rows += [cname(f"{each}.example", f"{each + 1}.example") for each in range(99)]
        rows += a("99.example", PUBLIC)
        left = filtered(rows)
        assert ({}, 31) == (left.addresses, len(left.chain))

    def test_beside(self) -> None:
        """Names that the chain doesn't pass are nobody's."""
        rows = [*a(NAME, PUBLIC), *a("bank.example", "9.9.9.9")]
        left = filtered(rows)
        assert ({PUBLIC: 60}, False) == (left.addresses, left.is_whole)

    def test_dname(self) -> None:
        """A DNAME above the name is part of the answer; one elsewhere isn't."""
        rows = [
            record("example.com", dns.Record_DNAME(b"example.net")),
            record("bank.example", dns.Record_DNAME(b"example.net")),
            cname(NAME, "www.example.net"),
            *a("www.example.net", PUBLIC),
        ]
        assert [dns.DNAME, dns.CNAME, dns.A] == [each.type for each in filtered(rows).answers]

    def test_other_class(self) -> None:
        """Records of another class are none."""
        row = dns.RRHeader(NAME.encode(), dns.A, dns.CH, 60, dns.Record_A(PUBLIC))
        assert [] == filtered([row]).answers
