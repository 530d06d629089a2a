"""Questions through real sockets, to a name server of the test's own and back."""

from __future__ import annotations

import os
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from askers import Stage, option, policy, query, read
from nameservers import Scripted, a, aaaa, cname, raw, record
from support import PATIENCE
from turning import Turning, turning
from twisted.names import dns

from sidecar.dns.messages import HTTPS
from sidecar.flow import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.dns.messages import Message


@pytest.fixture
def turn() -> Iterator[Turning]:
    with turning() as made:
        yield made


PUBLIC, PUBLIC6 = "93.184.216.34", "2606:2800:220:1::1"
_EDE = 15
_RRSIG = 46
# Covers A, then whatever.
_SIGNATURE = struct.pack("!H", dns.A) + bytes(30)

RECORDS = [
    *a("www.example.com", PUBLIC, ttl=300),
    raw("www.example.com", _RRSIG, _SIGNATURE),
    *aaaa("www.example.com", PUBLIC6),
    *a("mixed.example.com", PUBLIC, "10.0.0.1"),
    *a("private.example.com", "10.0.0.1", "169.254.169.254"),
    *aaaa("mapped.example.com", "::ffff:10.0.0.1"),
    cname("alias.example.com", "Chain.example.net"),
    cname("chain.example.net", "www.example.com"),
    cname("lost.example.com", "private.example.com"),
    record("example.com", dns.Record_MX(10, b"mail.example.com")),
    record("example.com", dns.Record_TXT(b"v=spf1", b"-all")),
    record("example.com", dns.Record_SOA(b"ns.example.com", b"host.example.com", 1, 2, 3, 4, 5)),
    record("example.com", dns.Record_NS(b"ns.example.com")),
    record("_sip._tcp.example.com", dns.Record_SRV(1, 2, 5060, b"sip.example.com")),
    record("4.3.2.8.in-addr.arpa", dns.Record_PTR(b"host.example.com")),
    record("n.example.com", dns.Record_NAPTR(1, 2, b"u", b"E2U", b"!^.*$!x!", b"r.example.com")),
    raw("example.com", 257, b"\x00\x05issueca.example"),
    raw("example.com", 65280, b"\x00\x01\x02"),
    *[record("many.example.com", dns.Record_TXT(b"x" * 200)) for _ in range(20)],
]


def addresses(message: Message) -> list[str]:
    """The addresses in an answer."""
    families = {dns.A: socket.AF_INET, dns.AAAA: socket.AF_INET6}
    return [
        socket.inet_ntop(families[each.type], each.payload.data)  # type: ignore[union-attr]
        for each in message.answers
        if each.type in families
    ]


class TestAnswers:
    def test_addresses(self, turn: Turning) -> None:
        """An address is passed on, recorded, and told of; upper and lower case stay."""
        with Scripted(RECORDS) as far, Stage(turn, policy(), [far.server]) as stage:
            answer = stage.ask("wWw.Example.com")
            (found,) = answer.answers
            assert (0x1234, 1, 1, 1, 0) == (
                *(answer.id, answer.answer, answer.recDes, answer.recAv),
                answer.auth,
            )
            assert (b"www.example.com", 300) == (found.name.name, found.ttl)
            assert [PUBLIC] == addresses(answer)
            assert b"wWw.Example.com" == answer.queries[0].name.name
            assert [("wWw.Example.com", dns.A, False)] == far.asked
            assert stage.served.owns("www.example.com", PUBLIC)
            (lookup,) = stage.seen.lookups
        assert ("wWw.Example.com", "A", "NOERROR") == (lookup.name, lookup.type, lookup.rcode)
        assert ((PUBLIC,), Verdict.ALLOW, False) == (
            *(lookup.addresses, lookup.verdict),
            lookup.stream,
        )
        assert "127.0.0.1" == lookup.server
        assert lookup.source is not None
        assert "127.0.0.1" == lookup.source.host
        assert lookup.seconds < 5

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("www.example.com", dns.AAAA),
            ("example.com", dns.MX),
            ("example.com", dns.TXT),
            ("example.com", dns.SOA),
            ("example.com", dns.NS),
            ("_sip._tcp.example.com", dns.SRV),
            ("4.3.2.8.in-addr.arpa", dns.PTR),
            ("n.example.com", dns.NAPTR),
            ("example.com", 257),
            ("example.com", 65280),
        ],
    )
    @pytest.mark.parametrize("by_stream", [False, True])
    def test_types(self, turn: Turning, name: str, kind: int, by_stream: bool) -> None:
        """Records of every type arrive as they are."""
        with Scripted(RECORDS) as far, Stage(turn, policy(), [far.server]) as stage:
            answer = (stage.ask_by_stream if by_stream else stage.ask)(name, kind)
            (row,) = [
                each for each in RECORDS if (each.name.name, each.type) == (name.encode(), kind)
            ]
            (found,) = answer.answers
            expected = dns.Message()
            expected.answers = [row]
            got = dns.Message()
            got.answers = [found]
            assert expected.toStr() == got.toStr()
            assert by_stream == stage.seen.lookups[0].stream

    def test_chain(self, turn: Turning) -> None:
        """A chain of CNAMEs is passed on; its end is recorded as the first name's."""
        with Scripted(RECORDS) as far, Stage(turn, policy(), [far.server]) as stage:
            answer = stage.ask("alias.example.com")
            assert [dns.CNAME, dns.CNAME, dns.A] == [each.type for each in answer.answers]
            assert stage.served.owns("alias.example.com", PUBLIC)
            assert not stage.served.owns("chain.example.net", PUBLIC)
            assert ("Chain.example.net", "www.example.com") == stage.seen.lookups[0].chain

    def test_no_such_name(self, turn: Turning) -> None:
        """A name that doesn't exist doesn't; one without such records has none."""
        with Scripted(RECORDS) as far, Stage(turn, policy(), [far.server]) as stage:
            assert dns.ENAME == stage.ask("missing.example.com").rCode
            empty = stage.ask("mixed.example.com", dns.AAAA)
            assert (dns.OK, []) == (empty.rCode, empty.answers)

    def test_ipv6_server(self, turn: Turning) -> None:
        """A name server may have an IPv6 address."""
        with (
            Scripted(RECORDS, family=socket.AF_INET6) as far,
            Stage(turn, policy(), [far.server]) as stage,
        ):
            assert [PUBLIC] == addresses(stage.ask("www.example.com"))
            assert 20 == len(stage.ask_by_stream("many.example.com", dns.TXT).answers)

    def test_same_question_at_once(self, turn: Turning) -> None:
        """Who asks the same at the same time shares an answer, each with an id of its own."""
        all_have_asked = threading.Event()

        def slow(_: Message, answer: Message, __: bool) -> list[bytes]:
            assert all_have_asked.wait(PATIENCE)
            return [answer.toStr()]

        with Scripted(RECORDS, slow) as far, Stage(turn, policy(), [far.server]) as stage:
            for ident in range(5):
                stage.client.send(query("www.example.com", ident=ident))
            waiting = stage.forwarder._waiters
            turn.until(lambda: [5] == [len(each) for each in waiting.values()])
            all_have_asked.set()
            got = {read(stage.receive()).id for _ in range(5)}
            assert set(range(5)) == got
            assert 1 == len(far.asked)


class TestSizes:
    def test_truncated(self, turn: Turning) -> None:
        """Without EDNS an answer of more than 512 bytes says TC, with whole records."""
        with Scripted(RECORDS) as far, Stage(turn, policy(), [far.server]) as stage:
            data = stage.send(query("many.example.com", dns.TXT))
            answer = read(data)
            assert answer.trunc
            assert len(data) <= 512
            assert [dns.Record_TXT.TYPE] * len(answer.answers) == [e.type for e in answer.answers]
            assert (2, []) == (len(answer.answers), answer.additional)
            # Asked over UDP first, then over TCP.
            assert [False, True] == [each[2] for each in far.asked]
            assert 20 == len(stage.ask_by_stream("many.example.com", dns.TXT).answers)

    @pytest.mark.parametrize(("size", "records"), [(100, 2), (1232, 5), (4096, 19), (65535, 19)])
    def test_edns(self, turn: Turning, size: int, records: int) -> None:
        """The client's size is respected, and 512 and 4096 are the limits of that."""
        with Scripted(RECORDS) as far, Stage(turn, policy(), [far.server]) as stage:
            data = stage.send(query("many.example.com", dns.TXT, edns=size))
            answer = read(data)
            assert len(data) <= min(max(size, 512), 4096)
            assert (1, records) == (answer.trunc, len(answer.answers))
            (opt,) = answer.additional
            assert (dns.OPT, 1232) == (opt.type, opt.cls)

    def test_many_names(self, turn: Turning) -> None:
        """An answer of more than 16 KiB is readable: no pointer leads beyond what it can."""
        rows = [
            record(
                "big.example.com", dns.Record_MX(each, f"mail-{each:04}.other{each}.example.net")
            )
            for each in range(1000)
        ]
        with Scripted(rows) as far, Stage(turn, policy(), [far.server]) as stage:
            answer = stage.ask_by_stream("big.example.com", dns.MX)
            assert {(each.payload.preference, each.payload.name.name) for each in rows} == {  # type: ignore[union-attr]
                (each.payload.preference, each.payload.name.name)  # type: ignore[union-attr]
                for each in answer.answers
            }


class TestEdns:
    def test_nothing_of_the_client(self, turn: Turning) -> None:
        """Cookies, client subnets and padding are not passed on; DO and CD are."""
        options = b"".join(struct.pack("!HH", code, 8) + bytes(8) for code in (10, 8, 12))
        with Scripted(RECORDS) as far, Stage(turn, policy(), [far.server]) as stage:
            answer = stage.ask(
                "www.example.com", edns=4096, options=options, dnssec=True, unchecked=True
            )
            (asked,) = far.queries
            (opt,) = asked.additional
            assert (1232, 0x8000, b"") == (opt.cls, opt.ttl, opt.payload.data)  # type: ignore[union-attr]
            assert (1, 1, 0) == (asked.recDes, asked.checkingDisabled, asked.authenticData)
            (back,) = answer.additional
            assert (0x8000, b"") == (back.ttl, back.payload.data)  # type: ignore[union-attr]
            assert answer.checkingDisabled

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            ({}, 0),
            ({"authentic": True}, 1),
            ({"edns": 1232, "dnssec": True}, 1),
            ({"edns": 1232}, 0),
        ],
    )
    def test_authentic(self, turn: Turning, flags: dict[str, object], expected: int) -> None:
        """AD is passed on to those who would understand it."""

        def signed(_: Message, answer: Message, __: bool) -> list[bytes]:
            answer.authenticData = 1
            return [answer.toStr()]

        with Scripted(RECORDS, signed) as far, Stage(turn, policy(), [far.server]) as stage:
            assert expected == stage.ask("www.example.com", dns.A, **flags).authenticData

    def test_authentic_but_changed(self, turn: Turning) -> None:
        """An answer that something is missing of is not authentic, and has no signature."""

        def signed(_: Message, answer: Message, __: bool) -> list[bytes]:
            answer.authenticData = 1
            answer.answers.append(raw("mixed.example.com", _RRSIG, _SIGNATURE))
            return [answer.toStr()]

        with Scripted(RECORDS, signed) as far, Stage(turn, policy(), [far.server]) as stage:
            answer = stage.ask("mixed.example.com", edns=1232, dnssec=True)
            assert ([dns.A], 0) == ([each.type for each in answer.answers], answer.authenticData)

    def test_version(self, turn: Turning) -> None:
        """A newer EDNS than there is gets BADVERS."""
        with Scripted(RECORDS) as far, Stage(turn, policy(), [far.server]) as stage:
            answer = stage.ask("www.example.com", edns=1232, version=1)
            assert (0, 1) == (answer.rCode, answer.additional[0].ttl >> 24)
            assert [] == far.asked


class TestPolicy:
    @pytest.mark.parametrize("kind", [dns.A, dns.AAAA, dns.TXT, HTTPS, dns.NULL, 65280, 255])
    @pytest.mark.parametrize("by_stream", [False, True])
    def test_refused(self, turn: Turning, kind: int, by_stream: bool) -> None:
        """A name that nothing allows is never sent out, whatever the type."""
        rules = policy("deny", ["www.example.com:443"])
        with Scripted(RECORDS) as far, Stage(turn, rules, [far.server]) as stage:
            ask = stage.ask_by_stream if by_stream else stage.ask
            answer = ask("c2VjcmV0.evil.example", kind, edns=1232)
            assert (dns.ENAME, [], []) == (answer.rCode, answer.answers, answer.authority)
            error = option(answer, _EDE)
            assert error is not None
            assert (
                struct.pack("!H", 17)
                + b"sidecar: denied: default; to allow it: c2vjcmv0.evil.example"
                == error
            )
            assert [PUBLIC] == addresses(ask("www.example.com"))
            assert ["www.example.com"] == [each[0] for each in far.asked]
            lookup = stage.seen.lookups[0]
        assert (Verdict.DENY, "default", None, "c2vjcmv0.evil.example") == (
            *(lookup.verdict, lookup.reason),
            *(lookup.rule, lookup.hint),
        )

    def test_search_list(self, turn: Turning) -> None:
        """What programs make of an allowed name by their search list is told from a denial."""
        rules = policy("deny", ["www.example.com"])
        with (
            Scripted(RECORDS) as far,
            Stage(turn, rules, [far.server], search=["cluster.local"]) as stage,
        ):
            made = stage.ask("www.example.com.cluster.local", edns=1232)
            other = stage.ask("evil.example.cluster.local")
            assert [dns.ENAME, dns.ENAME] == [made.rCode, other.rCode]
            error = option(made, _EDE)
            assert error is not None
            assert b"www.example.com may be" in error
            assert [] == far.asked
            assert [Verdict.ALLOW, Verdict.DENY] == [each.verdict for each in stage.seen.lookups]

    def test_without_edns(self, turn: Turning) -> None:
        """A client that doesn't speak EDNS is told the same without words."""
        with Scripted() as far, Stage(turn, policy("deny"), [far.server]) as stage:
            answer = stage.ask("evil.example")
            assert (dns.ENAME, []) == (answer.rCode, answer.additional)

    def test_deny_rule(self, turn: Turning) -> None:
        """A name denied on all ports isn't sent out; one denied on some is."""
        rules = policy("public", deny=["www.example.com", "mixed.example.com:25"])
        with Scripted(RECORDS) as far, Stage(turn, rules, [far.server]) as stage:
            assert dns.ENAME == stage.ask("www.example.com").rCode
            assert [PUBLIC] == addresses(stage.ask("mixed.example.com"))
            lookup = stage.seen.lookups[0]
        assert ("denied_by_rule", "www.example.com (test)", "") == (
            *(lookup.reason, lookup.rule),
            lookup.hint,
        )

    def test_private_addresses(self, turn: Turning) -> None:
        """Addresses that the name may not lead to are missing; the rest is there."""
        with Scripted(RECORDS) as far, Stage(turn, policy(), [far.server]) as stage:
            mixed = stage.ask("mixed.example.com", edns=1232)
            private = stage.ask("private.example.com", edns=1232)
            mapped = stage.ask("mapped.example.com", dns.AAAA)
            lost = stage.ask("lost.example.com")
            assert [PUBLIC] == addresses(mixed)
            assert (dns.OK, []) == (private.rCode, private.answers)
            assert [] == mapped.answers
            assert [dns.CNAME] == [each.type for each in lost.answers]
            error = option(private, _EDE) or b""
            assert b"sidecar: withheld 10.0.0.1, 169.254.169.254: private_address" == error[2:]
            assert () == stage.served.names_of("10.0.0.1")
            first, second, *_ = stage.seen.lookups
        assert (("10.0.0.1",), (PUBLIC,), Verdict.ALLOW) == (
            *(first.withheld, first.addresses),
            first.verdict,
        )
        assert (("10.0.0.1", "169.254.169.254"), (), Verdict.DENY, "private_address") == (
            *(second.withheld, second.addresses),
            *(second.verdict, second.reason),
        )

    def test_private_names(self, turn: Turning) -> None:
        """A name that may lead to private addresses does; not to a denied one."""
        rules = policy(
            "public", ["private.example.com:443"], ["metadata"], private_names=["*.example.com"]
        )
        with Scripted(RECORDS) as far, Stage(turn, rules, [far.server]) as stage:
            assert ["10.0.0.1"] == addresses(stage.ask("private.example.com"))
            # Private, but no rule allows it.
            assert [PUBLIC] == addresses(stage.ask("mixed.example.com"))

    def test_rebinding(self, turn: Turning) -> None:
        """A name that becomes private later is judged again."""
        rows = a("rebind.example", PUBLIC, ttl=0)
        far = Scripted(rows)
        with far, Stage(turn, policy(), [far.server]) as stage:
            assert [PUBLIC] == addresses(stage.ask("rebind.example"))
            far._records = a("rebind.example", "127.0.0.1", ttl=0)
            assert [] == addresses(stage.ask("rebind.example"))

    def test_replaced(self, turn: Turning) -> None:
        """Another policy is in force at once."""
        with Scripted(RECORDS) as far, Stage(turn, policy("deny"), [far.server]) as stage:
            assert dns.ENAME == stage.ask("www.example.com").rCode
            stage.rules = policy("allow")
            assert ["10.0.0.1", "169.254.169.254"] == addresses(stage.ask("private.example.com"))

    def test_foreign_records(self, turn: Turning) -> None:
        """What doesn't answer the question isn't passed on, nor recorded."""

        def more(_: Message, answer: Message, __: bool) -> list[bytes]:
            answer.answers += a("bank.example", "203.0.114.7")
            answer.additional += a("bank.example", "203.0.114.7")
            answer.authority += a("bank.example", "203.0.114.7")
            return [answer.toStr()]

        with Scripted(RECORDS, more) as far, Stage(turn, policy(), [far.server]) as stage:
            answer = stage.ask("www.example.com")
            assert ([PUBLIC], [], []) == (addresses(answer), answer.authority, answer.additional)
            assert 1 == len(stage.served)


class TestServers:
    def test_refused_by_one(self, turn: Turning) -> None:
        """Where one server fails the next is asked, at once."""

        def fails(_: Message, answer: Message, __: bool) -> list[bytes]:
            answer.rCode = dns.ESERVER
            return [answer.toStr()]

        with (
            Scripted(fault=fails) as bad,
            Scripted(RECORDS) as good,
            Stage(turn, policy(), [bad.server, good.server]) as stage,
        ):
            stage.be_patient()
            assert [PUBLIC] == addresses(stage.ask("www.example.com"))

    def test_nobody_there(self, turn: Turning) -> None:
        """If no server is there the answer is SERVFAIL, at once, and says why."""
        with Scripted() as gone:
            server = gone.server
        with Stage(turn, policy(), [server]) as stage:
            stage.be_patient()
            answer = stage.ask("www.example.com", edns=1232)
            assert dns.ESERVER == answer.rCode
            error = option(answer, _EDE) or b""
            assert struct.pack("!H", 22) + b"sidecar: no name server can be reached" == error
            assert "no name server can be reached" == stage.seen.lookups[0].problem

    def test_silent(self, turn: Turning) -> None:
        """A server that loses datagrams is asked again, or the next one is."""
        with (
            Scripted(fault=lambda *_: []) as silent,
            Scripted(RECORDS) as good,
            Stage(turn, policy(), [silent.server, good.server]) as stage,
        ):
            assert [PUBLIC] == addresses(stage.ask("www.example.com"))

    def test_all_fail(self, turn: Turning) -> None:
        """What the last server said is passed on."""

        def refuses(_: Message, answer: Message, __: bool) -> list[bytes]:
            answer.rCode = dns.EREFUSED
            return [answer.toStr()]

        with Scripted(fault=refuses) as far, Stage(turn, policy(), [far.server]) as stage:
            assert dns.EREFUSED == stage.ask("www.example.com").rCode
            assert "a name server answered REFUSED" == stage.seen.lookups[0].problem
            assert 1 == len(far.asked)

    def test_without_edns(self, turn: Turning) -> None:
        """A server that doesn't know EDNS is asked without."""

        def old(query: Message, answer: Message, _: bool) -> list[bytes]:
            if query.additional:
                answer.rCode = dns.EFORMAT
                answer.answers.clear()
            return [answer.toStr()]

        with Scripted(RECORDS, old) as far, Stage(turn, policy(), [far.server]) as stage:
            assert [PUBLIC] == addresses(stage.ask("www.example.com"))
            assert 2 == len(far.asked)

    def test_forged(self, turn: Turning) -> None:
        """Answers with another id or question, questions, and rubbish are not heard."""

        def forged(query: Message, answer: Message, _: bool) -> list[bytes]:
            good = answer.toStr()
            other = dns.Message(query.id, 1)
            other.addQuery(b"bank.example", dns.A)
            other.answers = a("bank.example", "203.0.114.7")
            wrong_type = dns.Message(query.id, 1)
            wrong_type.addQuery(b"www.example.com", dns.TXT)
            return [
                bytes([good[0] ^ 1]) + good[1:],
                other.toStr(),
                wrong_type.toStr(),
                good[:2] + b"\x00" + good[3:],
                good[:20],
                b"",
                os.urandom(40),
                good,
            ]

        with Scripted(RECORDS, forged) as far, Stage(turn, policy(), [far.server]) as stage:
            assert [PUBLIC] == addresses(stage.ask("www.example.com"))

    def test_random(self, turn: Turning) -> None:
        """Ids and ports differ from question to question."""
        with Scripted(RECORDS) as far, Stage(turn, policy(), [far.server]) as stage:
            for _ in range(20):
                stage.ask("www.example.com")
            assert len({each.id for each in far.queries}) > 15
            assert len(set(far.ports)) > 15

    def test_stream_fails(self, turn: Turning) -> None:
        """A server that closes the connection of a long answer is no use for it."""

        def cut(_: Message, answer: Message, is_stream: bool) -> list[bytes]:
            if is_stream:
                raise ConnectionError("closed")
            answer.trunc = 1
            return [answer.toStr()]

        with Scripted(RECORDS, cut) as far, Stage(turn, policy(), [far.server]) as stage:
            assert dns.ESERVER == stage.ask("many.example.com", dns.TXT).rCode

    def test_zone_of_a_name(self, turn: Turning) -> None:
        """Of the authority section the zone is passed on: how long a name is known not to exist."""
        zone = record(
            "example.com", dns.Record_SOA(b"ns.example.com", b"h.example.com", 1, 2, 3, 4, 5)
        )

        def with_zone(_: Message, answer: Message, __: bool) -> list[bytes]:
            answer.authority = [zone]
            return [answer.toStr()]

        with Scripted(RECORDS, with_zone) as far, Stage(turn, policy(), [far.server]) as stage:
            answer = stage.ask("missing.example.com")
            assert [dns.SOA] == [each.type for each in answer.authority]

    def test_stopped(self, turn: Turning) -> None:
        """Stopping leaves no socket and no timer, whatever waits."""
        with (
            Scripted(fault=lambda *_: []) as silent,
            Stage(turn, policy(), [silent.server]) as stage,
        ):
            stage.client.send(query("www.example.com"))
            turn.until(lambda: silent.asked)


class TestUnreadable:
    """What is no question."""

    @pytest.mark.parametrize(
        ("data", "rcode"),
        [
            (query("x.example")[:-1], dns.EFORMAT),
            (b"\x12\x34\x01\x00\x00\x02" + query("x.example")[6:], dns.EFORMAT),
            (b"\x12\x34\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00", dns.EFORMAT),
            # An update: it would carry records out.
            (b"\x12\x34\x28\x00" + query("x.example")[4:], dns.ENOTIMP),
            # A name that points to itself.
            (query("x.example")[:12] + b"\xc0\x0c\x00\x01\x00\x01", dns.EFORMAT),
            # A label of 64 bytes, a name of 256.
            (query("x.example")[:12] + b"\x40" + b"a" * 64 + b"\x00\x00\x01\x00\x01", dns.EFORMAT),
            (query("x.example")[:12] + (b"\x01a" * 128) + b"\x00\x00\x01\x00\x01", dns.EFORMAT),
            # A dot in a label.
            (query("x.example")[:12] + b"\x03a.b\x00\x00\x01\x00\x01", dns.EFORMAT),
            (query("x.example", cls=dns.CH), dns.EREFUSED),
            (query("x.example", 252), dns.EREFUSED),
            (query("x.example", dns.OPT), dns.EREFUSED),
            (query("x.example") + bytes(5000), dns.EFORMAT),
        ],
    )
    def test_error(self, turn: Turning, data: bytes, rcode: int) -> None:
        """Each gets an error, and is sent to nobody."""
        with Scripted() as far, Stage(turn, policy(), [far.server]) as stage:
            answer = read(stage.send(data))
            assert (0x1234, 1, rcode) == (answer.id, answer.answer, answer.rCode)
            assert [] == far.asked

    @pytest.mark.parametrize(
        "data", [b"", b"\x00", query("x.example")[:11], b"\x12\x34\x80" + query("x.example")[3:]]
    )
    def test_dropped(self, turn: Turning, data: bytes) -> None:
        """Less than a header, and answers, get none."""
        with Scripted(RECORDS) as far, Stage(turn, policy(), [far.server]) as stage:
            stage.client.send(data)
            # The next one is served all the same.
            assert [PUBLIC] == addresses(stage.ask("www.example.com"))
