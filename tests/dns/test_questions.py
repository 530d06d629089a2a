from __future__ import annotations

import pytest
from askers import policy
from twisted.names import dns

from sidecar.dns.messages import HTTPS, SVCB, Question
from sidecar.dns.questions import Forward, Local, Refused, decide
from sidecar.policy.reach import Reach


def decided(
    name: bytes,
    kind: int = dns.A,
    default: str = "public",
    allow: tuple[str, ...] = (),
    deny: tuple[str, ...] = (),
) -> Forward | Local | Refused:
    return decide(Question(1, name, kind), Reach(policy(default, allow, deny)))


def rows(found: Forward | Local | Refused) -> list[tuple[bytes, int, bytes]]:
    assert isinstance(found, Local)
    assert dns.OK == found.reply.rcode
    return [
        (each.name.name, each.type, getattr(each.payload, "data", b"") or each.payload.name.name)  # type: ignore[union-attr]
        for each in found.reply.answers
    ]


class TestLocal:
    @pytest.mark.parametrize("name", [b"localhost", b"LocalHost", b"db.localhost"])
    @pytest.mark.parametrize("default", ["deny", "public"])
    def test_localhost(self, name: bytes, default: str) -> None:
        """Localhost and what is below it are here, for nobody else to tell."""
        v4 = (name, dns.A, bytes([127, 0, 0, 1]))
        v6 = (name, dns.AAAA, bytes(15) + b"\x01")
        assert [v4] == rows(decided(name, dns.A, default))
        assert [v6] == rows(decided(name, dns.AAAA, default))
        assert [] == rows(decided(name, dns.TXT, default))

    @pytest.mark.parametrize("name", [b"1.0.0.127.in-addr.arpa", b"1" + b".0" * 31 + b".ip6.arpa"])
    def test_reverse(self, name: bytes) -> None:
        """Loopback addresses are localhost's."""
        assert [(name, dns.PTR, b"localhost")] == rows(decided(name, dns.PTR))
        assert [] == rows(decided(name, dns.A))

    @pytest.mark.parametrize(
        "name",
        [
            b"x.invalid",
            b"abcdefgh.onion",
            b"_dns.resolver.arpa",
            b"use-application-dns.net",
            b"10.0.0.1",
            b"foo.0x7f",
            b"1",
            b"\xff.1",
        ],
    )
    def test_no_names(self, name: bytes) -> None:
        """What is no name of the DNS, or leads past us, doesn't exist."""
        found = decided(name, HTTPS)
        assert isinstance(found, Local)
        assert dns.ENAME == found.reply.rcode


class TestForward:
    @pytest.mark.parametrize(
        ("name", "host"),
        [
            (b"WWW.Example.com", "www.example.com"),
            (b"_sip._tcp.example.com", "_sip._tcp.example.com"),
            (b"*.example.com", None),
            (b"my printer._ipp._tcp.example.com", None),
            (b"-a.example.com", None),
            (b"", None),
            (b"localhost.example.com", "localhost.example.com"),
            (b"com", "com"),
        ],
    )
    def test_public(self, name: bytes, host: str | None) -> None:
        """By default everything is asked; only hosts have addresses."""
        assert Forward(host) == decided(name)

    @pytest.mark.parametrize(
        ("name", "allow"),
        [
            (b"a.example", "a.example:443"),
            (b"x.a.example", "*.a.example:443"),
            (b"my printer.a.example", "*.a.example"),
            (b"anything.example", "10.0.0.0/8:22"),
            (b"1.0.0.10.in-addr.arpa", "10.0.0.0/8:22"),
            (b"1.0.0.10.in-addr.arpa", "*.in-addr.arpa"),
        ],
    )
    def test_allowed(self, name: bytes, allow: str) -> None:
        """What a rule could let be reached is asked."""
        assert isinstance(decided(name, default="deny", allow=(allow,)), Forward)


class TestRefused:
    @pytest.mark.parametrize(
        "name",
        [
            b"b.example",
            b"x.a.example",
            b"my printer.a.example",
            b"a.example.evil.example",
            b"",
            b"_.a.example",
        ],
    )
    def test_not_allowed(self, name: bytes) -> None:
        """What no rule could is not."""
        assert isinstance(decided(name, default="deny", allow=("a.example:443",)), Refused)

    @pytest.mark.parametrize("kind", [dns.A, dns.AAAA, dns.CNAME, HTTPS, SVCB, dns.SRV, dns.PTR])
    @pytest.mark.parametrize("rule", ["10.0.0.0/8:5432", "private", "[fd00::/8]:22"])
    def test_through_networks(self, kind: int, rule: str) -> None:
        """Any name might lead into a network; so what leads to addresses is asked for."""
        assert isinstance(decided(b"db.example", kind, "deny", (rule,)), Forward)

    @pytest.mark.parametrize(
        "kind", [dns.TXT, dns.MX, dns.NULL, dns.NS, dns.SOA, dns.NAPTR, dns.ALL_RECORDS, 65280]
    )
    def test_leading_nowhere(self, kind: int) -> None:
        """What leads nowhere isn't, until a rule for the name allows it; the name exists."""
        found = decided(b"c2VjcmV0.example", kind, "deny", ("private", "10.0.0.0/8"))
        assert isinstance(found, Refused)
        assert (dns.OK, (), "c2vjcmv0.example") == (
            *(found.reply.rcode, found.reply.answers),
            found.hint,
        )
        assert found.reply.error is not None
        assert found.reply.error.text.endswith("to allow it: c2vjcmv0.example")
        for name in (".example", "*"):
            assert isinstance(
                decided(b"c2VjcmV0.example", kind, "deny", ("private", name)), Forward
            )

    @pytest.mark.parametrize(
        ("name", "rule", "denied"),
        [
            (b"a.example.svc.cluster.local", "a.example", False),
            (b"A.example.Cluster.local", "a.example:443", False),
            (b"db.x.cluster.local", "*.x", False),
            # Meant as it is, or nothing that may be asked for.
            (b"b.example.cluster.local", "a.example", True),
            (b"a.example.cluster.local.", "a.example", True),
            (b"a.example.other", "a.example", True),
            (b"a.examplecluster.local", "a.example", True),
            (b"cluster.local", "a.example", True),
        ],
    )
    def test_search_list(self, name: bytes, rule: str, denied: bool) -> None:
        """What a search list makes of a name that may be asked for is no denial, nor asked."""
        rules = policy("deny", (rule,))
        search = ("svc.cluster.local", "cluster.local")
        found = decide(Question(1, name, dns.A), Reach(rules), lambda: search)
        assert denied == isinstance(found, Refused)
        assert not isinstance(found, Forward)
        assert dns.ENAME == found.reply.rcode

    @pytest.mark.parametrize(
        ("name", "kind", "rule", "denied"),
        [
            (b"_http._tcp.deb.example.org", dns.SRV, "deb.example.org:80", False),
            (b"_HTTPS._tcp.deb.example.org", dns.SRV, "deb.example.org:443", False),
            (b"_8443._https.a.example", HTTPS, "a.example:8443", False),
            (b"_http._tcp.a.example.cluster.local", dns.SRV, "a.example", False),
            # What has no other way, or isn't what HTTP clients make of a name.
            (b"_mongodb._tcp.a.example", dns.SRV, "a.example", True),
            (b"_http._udp.a.example", dns.SRV, "a.example", True),
            (b"c2VjcmV0._http._tcp.a.example", dns.SRV, "a.example", True),
            (b"_123456._https.a.example", HTTPS, "a.example", True),
            (b"_http._tcp.b.example", dns.SRV, "a.example", True),
            (b"_http._tcp", dns.SRV, "a.example", True),
        ],
    )
    def test_http_services(self, name: bytes, kind: int, rule: str, denied: bool) -> None:
        """So is what HTTP clients look for before they ask for a host's addresses."""
        rules = policy("deny", (rule,))
        found = decide(Question(1, name, kind), Reach(rules), lambda: ("cluster.local",))
        assert denied == isinstance(found, Refused)
        assert not isinstance(found, Forward)
        assert dns.ENAME == found.reply.rcode

    @pytest.mark.parametrize(
        ("name", "allow", "expected"),
        [
            (b"db.corp.example", "db:5432", Forward("db", ("db",))),
            (b"DB.corp.example", "db.corp.example", Forward("db.corp.example", ("db",), "db")),
            (b"db.corp.example", "other", None),
            (b"x.db.corp.example", "db", None),
            (b"db.other.example", "db", None),
        ],
    )
    def test_short(self, name: bytes, allow: str, expected: Forward | None) -> None:
        """A name of one label is one by the search list: what is made of it stands for it."""
        rules = policy("deny", (allow,))
        found = decide(Question(1, name, dns.A), Reach(rules), lambda: ("corp.example",))
        assert expected == (found if isinstance(found, Forward) else None)

    def test_made_of(self) -> None:
        """Of what is asked further it is told what it may have been made of."""
        question = Question(1, b"_http._tcp.a.example.cluster.local", dns.SRV)
        found = decide(question, Reach(policy("allow")), lambda: ("cluster.local", "other"))
        assert (
            Forward(
                "_http._tcp.a.example.cluster.local",
                ("_http._tcp.a.example", "a.example.cluster.local", "a.example"),
            )
            == found
        )

    def test_denied_in_the_search_list(self) -> None:
        """A rule that denies is one, whatever was meant."""
        rules = policy("public", (), (".cluster.local",))
        question = Question(1, b"a.example.cluster.local", dns.A)
        assert isinstance(decide(question, Reach(rules), lambda: ["cluster.local"]), Refused)

    @pytest.mark.parametrize("kind", [dns.A, dns.TXT])
    @pytest.mark.parametrize("rule", ["10.0.0.5:5432", "198.51.100.200", "[2001:db8::1]:443"])
    def test_single_address(self, kind: int, rule: str) -> None:
        """A rule for one address opens no names, but its own."""
        found = decided(b"c2VjcmV0.example", kind, "deny", (rule,))
        assert isinstance(found, Refused)
        assert (dns.ENAME, "c2vjcmv0.example") == (found.reply.rcode, found.hint)
        allowed = ("10.0.0.5:5432",)
        assert isinstance(decided(b"5.0.0.10.in-addr.arpa", dns.PTR, "deny", allowed), Forward)
        assert isinstance(decided(b"6.0.0.10.in-addr.arpa", dns.PTR, "deny", allowed), Refused)

    @pytest.mark.parametrize(
        "name",
        [
            b"1.0.0.10.in-addr.arpa",
            b"254.169.254.169.in-addr.arpa",
            b"1.0.0.10.IN-ADDR.ARPA",
            b"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
        ],
    )
    def test_reverse(self, name: bytes) -> None:
        """Whose a private address is, is no more to be known than what is there."""
        found = decided(name, dns.PTR)
        assert isinstance(found, Refused)
        assert found.reason in {"private_address", "metadata"}

    def test_reverse_public(self) -> None:
        """Whose a public one is may be known where it may be reached."""
        assert isinstance(decided(b"1.1.1.1.in-addr.arpa", dns.PTR), Forward)
        found = decided(b"1.1.1.1.in-addr.arpa", dns.PTR, "deny", ("a.example",))
        assert isinstance(found, Refused)
        assert "1.1.1.1" == found.hint

    def test_odd_labels(self) -> None:
        """A label that no host has doesn't get past a deny rule."""
        assert isinstance(decided(b"a b.evil.example", deny=("*.evil.example",)), Refused)

    def test_long(self) -> None:
        """The words of a refusal fit: the longest name there is."""
        name = b".".join([b"a" * 63] * 3 + [b"b" * 61])
        found = decided(name, default="deny")
        assert isinstance(found, Refused)
        assert name.decode() == found.hint
