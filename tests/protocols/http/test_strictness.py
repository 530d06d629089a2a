"""CASES §5: each row's status, and that the origin sees at most the one request that was judged."""

from __future__ import annotations

import pytest
from protocols.http.proxying import proxying

from sidecar.flow import FlowEnd

TAIL = b"GET http://%b/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def request(authority: bytes, fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """A POST for the origin."""
    return b"POST http://%b/ HTTP/%b\r\nHost: %b\r\n%b\r\n%b" % (
        authority,
        version,
        authority,
        fields,
        body,
    )


# (test id, fields, body, version, status)
FRAMING = [
    ("M1-te-cl", CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n", b"1.1", 400),
    ("M1-cl-te", b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n", b"1.1", 400),
    ("M1-cl-equal", b"Content-Length: 1\r\nContent-Length: 1\r\n", b"x", b"1.1", 400),
    ("M1-cl-different", b"Content-Length: 1\r\nContent-Length: 2\r\n", b"xx", b"1.1", 400),
    *(
        (f"M1-cl-{number}", b"Content-Length: %b\r\n" % value, b"xxxxx", b"1.1", 400)
        for number, value in enumerate(
            (
                *(b"+5", b"0x5", b"5,5", b"5, 5", b"", b"-1", b"5 5", b"5;", b"\x0b5"),
                b"18446744073709551616",
                b"9999999999999999999",
            )
        )
    ),
    *(
        (f"M2-te-{number}", b"Transfer-Encoding:%b\r\n" % value, b"0\r\n\r\n", b"1.1", status)
        for number, (value, status) in enumerate(
            (
                (b" xchunked", 400),
                (b" chunked, identity", 400),
                (b" identity", 400),
                (b" gzip, chunked", 501),
                (b" chunked, chunked", 400),
                (b"\x0bchunked", 400),
                (b" ", 400),
                (b' "chunked"', 400),
                (b" chunked;q=1", 400),
            )
        )
    ),
    ("M2-two", CHUNKED + CHUNKED, b"0\r\n\r\n", b"1.1", 400),
    ("M2-old", CHUNKED, b"0\r\n\r\n", b"1.0", 400),
    *(
        (f"M3-{number}", CHUNKED, body, b"1.1", 400)
        for number, body in enumerate(
            (
                b"-1\r\n\r\n",
                b"0x5\r\nhello\r\n0\r\n\r\n",
                b"5 \r\nhello\r\n0\r\n\r\n",
                b"5;ext\nhello\r\n0\r\n\r\n",
                b"ffffffffffffffffff\r\n",
                b"5\r\nhello0\r\n\r\n",
                b"5\nhello\r\n0\r\n\r\n",
                b"5\r\nhello\n0\r\n\r\n",
                b"\r\n",
                b"g\r\n",
                b"0\r\nContent-Length: 5\r\n\r\n",
                b"0\r\nX : 1\r\n\r\n",
            )
        )
    ),
]
HEADS = [
    ("M4-space", b"X : 1\r\n", 400),
    ("M4-no-name", b": 1\r\n", 400),
    ("M4-no-colon", b"X\r\n", 400),
    ("M4-fold", b"X: 1\r\n 2\r\n", 400),
    ("M4-nul", b"X: \x00\r\n", 400),
    ("M4-cr", b"X: 1\rY: 2\r\n", 400),
    ("M4-lf", b"X: 1\nY: 2\r\n", 400),
    ("M4-te-space", b"Transfer-Encoding : chunked\r\n", 400),
    ("M8-two-hosts", b"Host: b\r\n", 400),
    ("M11-fields", b"X: 1\r\n" * 100, 431),
    ("M11-line", b"X: " + b"x" * 70_000 + b"\r\n", 431),
    ("expect", b"Expect: 200-ok\r\n", 417),
]
LINES = [
    ("M4-leading", b"\r\n\r\nGET http://%b/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("M4-two-spaces", b"GET  http://%b/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("M4-tab", b"GET\thttp://%b/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("M4-lf-only", b"GET http://%b/ HTTP/1.1\nHost: x\n\n", 400),
    ("M8-no-host", b"GET http://%b/ HTTP/1.1\r\n\r\n", 400),
    ("M8-empty-host", b"GET http://%b/ HTTP/1.1\r\nHost:\r\n\r\n", 400),
    ("M8-bad-host", b"GET http://%b/ HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    ("M10-version", b"GET http://%b/ HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    ("M10-http2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("M10-http09", b"GET http://%b/\r\n", 400),
    ("M10-fragment", b"GET http://%b/#f HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("M10-method", b"G" * 33 + b" http://%b/ HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    ("M11-target", b"GET http://%b/" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40, 400),
]


@pytest.mark.parametrize(
    ("fields", "body", "version", "status"),
    [case[1:] for case in FRAMING],
    ids=[case[0] for case in FRAMING],
)
def test_framing(fields: bytes, body: bytes, version: bytes, status: int) -> None:
    """A body with two possible ends is refused at once, and with it all that follows."""
    with proxying() as proxy:
        client = proxy.client()
        tail = TAIL % proxy.authority
        client.send(request(proxy.authority, fields, body, version) + tail)
        assert status == client.status()
        assert b"" == client.expect_end()
        proxy.origin.expect_nobody()
        assert (FlowEnd.HTTP_REQUEST_ERROR, status) == (proxy.flow.end, proxy.flow.status)


@pytest.mark.parametrize("body", [case[2] for case in FRAMING if case[0].startswith("M3")])
def test_chunks_later(body: bytes) -> None:
    """A chunk that is wrong after its request went on: the origin gets no whole request."""
    with proxying() as proxy:
        client = proxy.client()
        client.send(request(proxy.authority, CHUNKED, b"3\r\none\r\n"))
        server = proxy.origin.accept()
        server.expect_head()
        server.expect(b"3\r\none\r\n")
        client.send(body + TAIL % proxy.authority)
        assert 400 == client.status()
        assert b"" == client.expect_end()
        assert b"0\r\n" not in server.expect_reset()
        proxy.origin.expect_nobody()


@pytest.mark.parametrize(
    ("fields", "status"), [case[1:] for case in HEADS], ids=[case[0] for case in HEADS]
)
def test_heads(fields: bytes, status: int) -> None:
    """A head that two could read differently, or that is too large, goes nowhere."""
    with proxying() as proxy:
        client = proxy.client()
        head = b"GET http://%b/ HTTP/1.1\r\nHost: x\r\n%b\r\n" % (proxy.authority, fields)
        client.send(head + TAIL % proxy.authority)
        assert status == client.status()
        assert b"" == client.expect_end()
        proxy.origin.expect_nobody()
        assert 1 == len(proxy.flows)


@pytest.mark.parametrize(
    ("head", "status"), [case[1:] for case in LINES], ids=[case[0] for case in LINES]
)
def test_lines(head: bytes, status: int) -> None:
    """Likewise a request line."""
    with proxying() as proxy:
        client = proxy.client()
        client.send(head.replace(b"%b", proxy.authority))
        assert status == client.status()
        client.finish()
        assert b"" == client.expect_end()
        proxy.origin.expect_nobody()


def test_every_way() -> None:
    """The answer doesn't depend on how the bytes are cut."""
    with proxying() as proxy:
        sent = request(proxy.authority, b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n")
        for size in (1, 7):
            client = proxy.client()
            client.say(*(sent[at : at + size] for at in range(0, len(sent), size)))
            assert 400 == client.status()
        proxy.origin.expect_nobody()


def test_no_end() -> None:
    """M11: a head without end is cut off at 64 KiB, and little of it is kept."""
    with proxying() as proxy:
        client = proxy.client()
        client.send(b"GET http://%b/ HTTP/1.1\r\nHost: x\r\n" % proxy.authority)
        for _ in range(20):
            client.send(b"X-A: " + b"x" * 4000 + b"\r\n")
        assert 431 == client.status()


def test_not_reflected() -> None:
    """M9: nothing of a request is in the answer to it."""
    with proxying() as proxy:
        client = proxy.client()
        client.send(b"GET http://<script>alert(1)</script>/ HTTP/1.1\r\nHost: x\r\n\r\n")
        head = client.expect_head()
        assert b"Content-Type: text/plain" in head
        assert b"nosniff" in head
        proxy.turning.settle()
        client.read()
        assert b"script" not in head + client.got


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"CONNECT /", 400),
        (b"CONNECT origin.test", 400),
        (b"CONNECT http://origin.test:80/", 400),
        (b"CONNECT origin.test:", 400),
        (b"CONNECT origin.test:0", 400),
        (b"CONNECT origin.test:65536", 400),
        (b"CONNECT origin.test:4294967376", 400),
        (b"CONNECT origin.test:+80", 400),
        (b"CONNECT :80", 400),
        (b"CONNECT user@origin.test:80", 400),
        (b"CONNECT 127.1:80", 400),
        (b"CONNECT 0x7f000001:80", 400),
        (b"CONNECT [::1%25lo]:80", 400),
        (b"CONNECT ::1:80", 400),
        (b"CONNECT origin.test:80/path", 400),
        (b"CONNECT *", 400),
    ],
)
def test_connect(line: bytes, status: int) -> None:
    """M10: a tunnel is asked for with a name and a port, and with nothing else."""
    with proxying() as proxy:
        client = proxy.client()
        client.send(line + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status == client.status()
        proxy.origin.expect_nobody()


@pytest.mark.parametrize("fields", [b"Content-Length: 5\r\n", CHUNKED])
def test_connect_with_body(fields: bytes) -> None:
    """M10: nor with a body."""
    with proxying() as proxy:
        client = proxy.client()
        authority = proxy.authority
        client.send(
            b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\nhello" % (authority, authority, fields)
        )
        assert 400 == client.status()
        assert b"" == client.expect_end()
        proxy.origin.expect_nobody()
