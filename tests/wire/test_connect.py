from __future__ import annotations

import pytest

from sidecar.wire.connect import MAX_REPLY_BYTES, ConnectReply, connect_request
from sidecar.wire.http1.errors import HttpMessageError


def feed(reply: ConnectReply, *chunks: bytes) -> None:
    """Feed chunks, of which none is the last."""
    for chunk in chunks:
        assert reply.feed(chunk) is None


class TestRequest:
    def test_plain(self) -> None:
        """The target is the authority, and so is Host (RFC 9112 §3.2.3)."""
        expected = b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n"
        assert expected == connect_request(b"example.org:443")

    def test_credentials(self) -> None:
        """Credentials are the proxy's."""
        expected = (
            b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n"
            b"Proxy-Authorization: Basic Og==\r\n\r\n"
        )
        assert expected == connect_request(b"[2001:db8::1]:443", b"Basic Og==")

    def test_via(self) -> None:
        """Who passes a request on says so."""
        expected = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nVia: 1.1 x, 1.1 y\r\n\r\n"
        assert expected == connect_request(b"a:443", via=b"1.1 x, 1.1 y")
        with pytest.raises(ValueError, match="ASCII"):
            connect_request(b"a:443", via=b"1.1 x\r\nX: y")

    @pytest.mark.parametrize(
        ("authority", "authorization"),
        [
            (b"", None),
            (b"a b:443", None),
            (b"a:443\r\nX: y", None),
            (b"a\x00:443", None),
            (b"a\xff:443", None),
            (b"a:443", b"Basic x\r\nX: y"),
            (b"a:443", b"Basic \x00"),
        ],
    )
    def test_rejected(self, authority: bytes, authorization: bytes | None) -> None:
        """Nothing can end a line but its end."""
        with pytest.raises(ValueError, match="ASCII"):
            connect_request(authority, authorization)


class TestReply:
    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (b"HTTP/1.1 200 Connection established\r\n\r\n", 200),
            (b"HTTP/1.0 200 OK\r\nProxy-agent: tinyproxy/1.11.1\r\n\r\n", 200),
            (b"HTTP/1.1 299 \r\n\r\n", 299),
            # RFC 9110 §9.3.6: of a 2xx these mean nothing.
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 200),
            (b"HTTP/1.1 103 Hints\r\nA: b\r\n\r\n" * 3 + b"HTTP/1.1 200 OK\r\n\r\n", 200),
            (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", 403),
            (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", 407),
            (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 101),
            (b"HTTP/1.1 200 OK\r\n", None),
            (b"HTTP/1.1 100 Continue\r\n\r\n", None),
            (b"", None),
        ],
    )
    def test_status(self, data: bytes, expected: int | None) -> None:
        """The status is that of the final response, however it is cut."""
        for at in range(len(data) + 1):
            reply = ConnectReply()
            found = reply.feed(data[:at])
            if found is None:
                found = reply.feed(data[at:])
            assert expected == found == reply.status
            assert reply.opened == (found in {200, 299})

    @pytest.mark.parametrize(
        "data",
        [
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\x15\x03\x01\x00\x02\x02\x16",
            b"HTTP/2 200\r\n\r\n",
            b"HTTP/1.1 200 OK\nA: b\n\n",
            b"HTTP/1.1 200 OK\r\nA b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nSSH-2.0\r\n\r\n",
        ],
    )
    def test_malformed(self, data: bytes) -> None:
        """What is no response is an error, however it is cut."""
        for at in range(len(data) + 1):
            with pytest.raises(HttpMessageError):
                feed(ConnectReply(), data[:at], data[at:], b"\r\n\r\n")

    def test_endless(self) -> None:
        """Neither a head nor interim responses may go on for ever."""
        for start, more in (
            (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
            (b"HTTP/1.1 200 OK\r\nA: ", b"b" * 100),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ):
            with pytest.raises(HttpMessageError):
                feed(ConnectReply(), start, *[more] * MAX_REPLY_BYTES)

    @pytest.mark.parametrize("rest", [b"", b"\r\n", b"\x16\x03\x01", b"HTTP/1.1 403 No\r\n\r\n"])
    def test_rest(self, rest: bytes) -> None:
        """What follows the reply belongs to the tunnel, whatever it looks like."""
        head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
        for at in range(len(head)):
            reply = ConnectReply()
            assert reply.feed(head[:at]) is None
            assert 200 == reply.feed(head[at:] + rest)
            assert rest == reply.rest()
