from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from sidecar.flow import Flow, HostSource, ListenerKind, Protocol
from sidecar.peeking import Peek

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Facts = tuple[
    bool, Protocol, str | None, HostSource | None, tuple[str, ...], bool, bool, str | None
]


def real_hello(name: str | None = "example.org") -> bytes:
    """The ClientHello of this Python."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.set_alpn_protocols(["h2", "http/1.1"])
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def peek_at(chunks: Iterable[bytes]) -> Facts:
    """Feed until the facts are final; what a relay would do."""
    flow = Flow(ListenerKind.OUTBOUND, None, None, None)
    peek = Peek(flow)
    final = False
    for chunk in chunks:
        final = peek.feed(chunk)
        if final:
            break
    found = (flow.protocol, flow.host, flow.host_from, flow.alpn, flow.ja4 is not None, flow.ech)
    return (final, *found, flow.problem)


def ways(data: bytes) -> Iterator[list[bytes]]:
    """Byte by byte, and in two at every offset."""
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


HELLO = real_hello()
ALPN = ("h2", "http/1.1")
TLS, HTTP, TCP = Protocol.TLS, Protocol.HTTP, Protocol.TCP
SNI, HOST = HostSource.SNI, HostSource.HOST
NOTHING = (None, None, (), False, False)
CASES: dict[str, tuple[bytes, Facts]] = {
    "hello": (HELLO, (True, TLS, "example.org", SNI, ALPN, True, False, None)),
    "nameless": (real_hello(None), (True, TLS, None, None, ALPN, True, False, None)),
    "half a hello": (HELLO[:-1], (False, TLS, *NOTHING, None)),
    "upper case": (
        real_hello("Example.ORG."),
        (True, TLS, "example.org", SNI, ALPN, True, False, None),
    ),
    "http": (
        b"GET / HTTP/1.1\r\nHost: Example.org:8080\r\n\r\n",
        (True, HTTP, "example.org", HOST, (), False, False, None),
    ),
    "http, address": (
        b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
        (True, HTTP, *NOTHING, None),
    ),
    "http, IPv6": (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", (True, HTTP, *NOTHING, None)),
    "http, no Host": (b"GET / HTTP/1.0\r\n\r\n", (True, HTTP, *NOTHING, None)),
    "http, bad Host": (
        b"GET / HTTP/1.1\r\nHost: a..b\r\n\r\n",
        (True, HTTP, *NOTHING, "invalid_host"),
    ),
    "http, legacy address": (
        b"GET / HTTP/1.1\r\nHost: 0x7f.1\r\n\r\n",
        (True, HTTP, *NOTHING, "invalid_host"),
    ),
    "ssh": (b"SSH-2.0-OpenSSH_9.6\r\n", (True, TCP, *NOTHING, None)),
    "binary": (b"\x00\x01\x02", (True, TCP, *NOTHING, None)),
    "like TLS at first": (b"\x16\x01\x01", (True, TCP, *NOTHING, None)),
    "like SSLv2 at first": (b"\x80\x00\x02", (True, TCP, *NOTHING, None)),
    "empty record": (b"\x16\x03\x01\x00\x00", (True, TLS, *NOTHING, "hello_record_empty")),
    "alert": (b"\x15\x03\x01\x00\x02\x02\x28", (True, TLS, *NOTHING, "hello_not_handshake")),
    "SSLv2": (b"\x80\x2e\x01\x00\x02", (True, TLS, *NOTHING, "hello_ssl2")),
}


class TestPeek:
    @pytest.mark.parametrize(("data", "facts"), CASES.values(), ids=CASES)
    def test_chunks(self, data: bytes, facts: Facts) -> None:
        """However bytes are cut, the facts are the same."""
        assert facts == peek_at([data])
        for chunks in ways(data):
            assert facts == peek_at(chunks)

    @pytest.mark.parametrize(
        ("expected", "head"),
        [
            (None, b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"),
            ("a.example", b"GET http://A.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"),
            ("a.example", b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n"),
            ("192.0.2.1", b"CONNECT 192.0.2.1:443 HTTP/1.0\r\n\r\n"),
            ("2001:db8::1", b"GET http://[2001:DB8::1]/ HTTP/1.0\r\n\r\n"),
            (None, b"CONNECT a..b:443 HTTP/1.0\r\n\r\n"),
        ],
    )
    def test_to_proxy(self, expected: str | None, head: bytes) -> None:
        """Whom a proxy is asked for is told apart from whom a server is."""
        flow = Flow(ListenerKind.OUTBOUND, None, None, None)
        assert Peek(flow).feed(head)
        assert expected == flow.to_proxy

    @pytest.mark.parametrize(("data", "facts"), CASES.values(), ids=CASES)
    def test_what_follows(self, data: bytes, facts: Facts) -> None:
        """What follows in the same segment changes nothing, once the facts are final."""
        if facts[0]:
            assert facts == peek_at([data + b"what follows"])

    def test_end(self) -> None:
        """At the end of the stream the facts are final, whatever they are."""
        assert (True, TCP, *NOTHING, None) == peek_at([b""])
        assert (True, TLS, *NOTHING, None) == peek_at([HELLO[:50], b""])

    def test_bounded(self) -> None:
        """A hello that drips in is not copied anew with every byte of it."""
        peek = Peek(Flow(ListenerKind.OUTBOUND, None, None, None))
        for at in range(len(HELLO) - 1):
            assert not peek.feed(HELLO[at : at + 1])
        assert 5 == len(peek._seen)
