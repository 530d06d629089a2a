"""What heads say, and which ones say two things."""

from __future__ import annotations

import pytest
from wire.http1.every_way import every_way, head_of, read_one, request, response, response_reader

from sidecar.wire.http1.messages import END, Framing, RequestHead, ResponseHead
from sidecar.wire.http1.reading import RequestReader

POST = b"POST / HTTP/1.1"
OLD_POST = b"POST / HTTP/1.0"
HOST = b"Host: a"
OK = b"HTTP/1.1 200 OK"
CHUNKED = b"Transfer-Encoding: chunked"
# What a reader that takes a body for chunked, or for none, would read behind the head.
SMUGGLED = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: b\r\n\r\n"


def read(*lines: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = HOST) -> RequestHead:
    return head_of(every_way(RequestReader, request(start, host, *lines)))


def refused(*lines: bytes, start: bytes = POST) -> str:
    """Return why a request is refused, all of it: not an event comes out of it."""
    (reason,) = every_way(RequestReader, request(start, *lines, body=SMUGGLED))
    assert isinstance(reason, str)
    return reason


class TestFraming:
    """CASES M1, M2."""

    @pytest.mark.parametrize("coding", [b"chunked", b"Chunked", b"CHUNKED", b"\tchunked \t"])
    def test_chunked(self, coding: bytes) -> None:
        """A coding's name has no case (tinyproxy 879bf84 took `Chunked` for no coding)."""
        data = request(POST, HOST, b"Transfer-Encoding: " + coding, body=SMUGGLED)
        outcome, rest = read_one(RequestReader, [data])
        assert Framing.CHUNKED is head_of(outcome).framing
        assert SMUGGLED[5:] == rest

    @pytest.mark.parametrize(
        ("value", "length"),
        [(b"0", 0), (b"5", 5), (b"\t5 ", 5), (b"05", 5), (b"9" * 18, 10**18 - 1)],
    )
    def test_length(self, value: bytes, length: int) -> None:
        """A length is digits."""
        (head, *_), _ = read_one(
            RequestReader, [request(POST, HOST, b"Content-Length:" + value, body=b"xxxxx")]
        )
        assert isinstance(head, RequestHead)
        assert (Framing.LENGTH, length) == (head.framing, head.length)

    @pytest.mark.parametrize(
        ("lines", "reason"),
        [
            # CVE-2020-10108, CVE-2020-10109 (Twisted): the last one won, or the first
            ([b"Content-Length: 5", b"Content-Length: 5"], "content_length_duplicate"),
            ([b"Content-Length: 0", b"Content-Length: 5"], "content_length_duplicate"),
            ([b"Content-Length: 5", b"X: y", b"content-length: 6"], "content_length_duplicate"),
            ([b"Content-Length: 5", CHUNKED], "two_lengths"),
            ([CHUNKED, b"Content-Length: 5"], "two_lengths"),
            ([b"CONTENT-LENGTH: 0", b"transfer-encoding: Chunked"], "two_lengths"),
            ([b"Content-Length: 5", b"Transfer-Encoding: identity"], "two_lengths"),
            # CVE-2022-24801 (Twisted), CVE-2022-24761 (waitress): what int() takes
            ([b"Content-Length: +5"], "content_length"),
            ([b"Content-Length: -1"], "content_length"),
            ([b"Content-Length: 0x5"], "content_length"),
            ([b"Content-Length: 1_0"], "content_length"),
            ([b"Content-Length: \xb2"], "content_length"),
            ([b"Content-Length: 5,5"], "content_length"),
            ([b"Content-Length: 5, 5"], "content_length"),
            ([b"Content-Length: 5 5"], "content_length"),
            ([b"Content-Length: 5;x"], "content_length"),
            ([b"Content-Length: 5.0"], "content_length"),
            ([b'Content-Length: "5"'], "content_length"),
            # HAProxy a32f99f (CVE-2023-40225): nothing
            ([b"Content-Length:"], "content_length"),
            ([b"Content-Length: \t "], "content_length"),
            # Squid's CVE-2020-15049: what isspace() takes
            ([b"Content-Length: \x0b5"], "field_value"),
            ([b"Content-Length: 5\x00"], "field_value"),
            ([b"Content-Length : 5"], "field_name"),
            ([b"\x0bContent-Length: 5"], "field_name"),
            # more than 64 bits, CVE-2021-40346 (HAProxy) for names
            ([b"Content-Length: 18446744073709551616"], "content_length"),
            ([b"Content-Length: 18446744073709551621"], "content_length"),
            ([b"Content-Length: 9223372036854775808"], "content_length"),
            ([b"Content-Length: " + b"0" * 19], "content_length"),
            # GHSA-w3h3-4rj7-4ph4 (gunicorn), CVE-2021-39214 and CVE-2022-24766 (mitmproxy)
            ([b"Transfer-Encoding: xchunked"], "transfer_encoding"),
            ([b"Transfer-Encoding: chunkedx"], "transfer_encoding"),
            ([b"Transfer-Encoding: chunked, identity"], "transfer_encoding"),
            ([b"Transfer-Encoding: chunked, chunked"], "transfer_encoding"),
            ([b"Transfer-Encoding: chunked,"], "transfer_encoding"),
            ([b"Transfer-Encoding: ,chunked"], "transfer_encoding"),
            ([b"Transfer-Encoding: chunked;q=1"], "transfer_encoding"),
            ([b"Transfer-Encoding: chunked identity"], "transfer_encoding"),
            ([b'Transfer-Encoding: "chunked"'], "transfer_encoding"),
            ([b"Transfer-Encoding: identity"], "transfer_encoding"),
            ([b"Transfer-Encoding: gzip"], "transfer_encoding"),
            ([b"Transfer-Encoding:"], "transfer_encoding"),
            ([b"Transfer-Encoding: gzip, chunked"], "transfer_coding"),
            ([b"Transfer-Encoding: identity,chunked"], "transfer_coding"),
            ([CHUNKED, CHUNKED], "transfer_encoding_duplicate"),
            ([CHUNKED, b"Transfer-Encoding: identity"], "transfer_encoding_duplicate"),
            ([b"Transfer-Encoding: identity", CHUNKED], "transfer_encoding_duplicate"),
            ([b"Transfer-Encoding:", CHUNKED], "transfer_encoding_duplicate"),
            ([b"Transfer-Encoding: \x0bchunked"], "field_value"),
            ([b"Transfer-Encoding: chunked\x00"], "field_value"),
            ([b"Transfer-Encoding\t: chunked"], "field_name"),
            ([b"Transfer-Encoding:", b" chunked"], "field_folded"),
            ([b"X: y\nTransfer-Encoding: chunked"], "line_end"),
            ([b"X: y\rTransfer-Encoding: chunked"], "line_end"),
        ],
        ids=repr,
    )
    def test_refused(self, lines: list[bytes], reason: str) -> None:
        """A body whose end two readers could see in two places is not read."""
        assert reason == refused(HOST, *lines)

    def test_old(self) -> None:
        """HTTP/1.0 has no codings (RFC 9112 §6.1)."""
        assert "transfer_encoding_old" == refused(HOST, CHUNKED, start=OLD_POST)
        data = request(OLD_POST, b"Content-Length: 1", body=b"x")
        assert [b"x", END] == every_way(RequestReader, data)[1:]

    @pytest.mark.parametrize("name", [b"Content_Length", b"X-Content-Length", b"Content-Lengt"])
    def test_other_names(self, name: bytes) -> None:
        """Other fields say nothing of the body."""
        assert Framing.NONE is read(name + b": 5").framing

    @pytest.mark.parametrize(
        ("lines", "reason"),
        [
            ([b"Content-Length: 5"], "connect_content"),
            ([CHUNKED], "connect_content"),
        ],
    )
    def test_connect(self, lines: list[bytes], reason: str) -> None:
        """CASES M10: CONNECT has no content."""
        assert reason == refused(HOST, *lines, start=b"CONNECT a:443 HTTP/1.1")
        head = read(b"Content-Length: 0", start=b"CONNECT a:443 HTTP/1.1")
        assert (Framing.NONE, 0) == (head.framing, head.length)


class TestHost:
    """CASES M8."""

    @pytest.mark.parametrize(
        "value", [b"a.example", b"a.example:80", b"[::1]:8080", b"A_b", b"%41"]
    )
    def test_host(self, value: bytes) -> None:
        """A Host is told as it is; sidecar.addresses judges it."""
        assert value == read(host=b"Host: " + value).host
        assert value == read(host=b"hOST:\t" + value + b" ").host

    def test_old(self) -> None:
        """HTTP/1.0 needs none."""
        assert head_of(every_way(RequestReader, request(b"GET / HTTP/1.0"))).host is None
        assert b"a" == read(start=b"GET / HTTP/1.0").host

    @pytest.mark.parametrize(
        ("lines", "reason"),
        [
            ([], "host_missing"),
            ([b"X-Host: a"], "host_missing"),
            ([b"Host: a", b"Host: b"], "host_duplicate"),
            ([b"Host: a", b"X: y", b"host: a"], "host_duplicate"),
            ([b"Host:", b"Host: a"], "host_duplicate"),
            ([b"Host:"], "host"),
            ([b"Host: \t"], "host"),
            ([b"Host: a b"], "host"),
            ([b"Host: a/b"], "host"),
            ([b"Host: u@a"], "host"),
            ([b"Host: a\\b"], "host"),
            ([b"Host: a?b"], "host"),
            ([b"Host: a#b"], "host"),
            ([b"Host: <a>"], "host"),
            ([b"Host: \xe9"], "host"),
            ([b"Host: a\x00"], "field_value"),
        ],
    )
    def test_refused(self, lines: list[bytes], reason: str) -> None:
        """There is one Host, and it could be one."""
        assert reason == refused(*lines)

    def test_cookies(self) -> None:
        """Other fields may come twice, and stay two, in their order."""
        head = read(b"Cookie: a=1", b"X: y", b"Cookie: b=2")
        expected = [(b"Host", b"a"), (b"Cookie", b"a=1"), (b"X", b"y"), (b"Cookie", b"b=2")]
        assert expected == head.fields


class TestConnection:
    """CASES M7."""

    @pytest.mark.parametrize(
        ("version", "lines", "expected"),
        [
            (b"1.1", [], True),
            (b"1.1", [b"Connection: keep-alive"], True),
            (b"1.1", [b"Connection: close"], False),
            (b"1.1", [b"Connection: Close"], False),
            (b"1.1", [b"Connection: x,\tCLOSE "], False),
            (b"1.1", [b"Connection: x", b"connection: close"], False),
            (b"1.1", [b"Connection: keep-alive, close"], False),
            (b"1.1", [b"Connection: closed"], True),
            (b"1.1", [b"Proxy-Connection: close"], False),
            (b"1.1", [b"Proxy-Connection: Keep-Alive"], True),
            (b"1.0", [], False),
            (b"1.0", [b"Connection: Keep-Alive"], True),
            (b"1.0", [b"Proxy-Connection: Keep-Alive"], True),
            (b"1.0", [b"Proxy-Connection: keep-alive", b"Connection: close"], False),
            (b"1.0", [b"Keep-Alive: timeout=5"], False),
        ],
    )
    def test_keep_alive(self, version: bytes, lines: list[bytes], expected: bool) -> None:
        """By version, and what Connection says; Proxy-Connection is what proxies' clients send."""
        assert expected is read(*lines, start=b"GET / HTTP/" + version).keep_alive

    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            ([], set()),
            ([b"Connection:"], set()),
            ([b"Connection: X-Auth"], {b"x-auth"}),
            ([b"Connection: close, Host"], {b"close", b"host"}),
            ([b"Connection: ,a,, b\t,"], {b"a", b"b"}),
            (
                [b"Connection: Upgrade", b"connection: HTTP2-Settings"],
                {b"upgrade", b"http2-settings"},
            ),
            ([b"Proxy-Connection: X"], set()),
        ],
    )
    def test_options(self, lines: list[bytes], expected: set[bytes]) -> None:
        """What Connection nominates, in lower case, of all its lines."""
        assert expected == read(*lines).options

    @pytest.mark.parametrize(
        ("version", "lines", "expected"),
        [
            (b"1.1", [b"Connection: Upgrade", b"Upgrade: websocket"], b"websocket"),
            (b"1.1", [b"Upgrade: a", b"Connection: x, upgrade", b"Upgrade: b/1"], b"a,b/1"),
            (b"1.1", [b"Upgrade: websocket"], None),
            (b"1.1", [b"Connection: Upgrade"], None),
            (b"1.0", [b"Connection: Upgrade", b"Upgrade: websocket"], None),
        ],
    )
    def test_upgrade(self, version: bytes, lines: list[bytes], expected: bytes | None) -> None:
        """Only where it is meant for us (RFC 9110 §7.8)."""
        assert expected == read(*lines, start=b"GET / HTTP/" + version).upgrade

    def test_upgrade_with_body(self) -> None:
        """A request that offers another protocol has a body nevertheless."""
        lines = (HOST, b"Connection: upgrade", b"Upgrade: x", b"Content-Length: 2")
        assert [b"hi", END] == every_way(RequestReader, request(POST, *lines, body=b"hi"))[1:]

    def test_expect(self) -> None:
        """100-continue is known, anything else is 417; HTTP/1.0 has none of it."""
        assert read(b"Expect: 100-Continue").expect_continue
        assert not read().expect_continue
        assert not read(b"Expect: 100-continue", start=b"GET / HTTP/1.0").expect_continue
        for value in (b"x", b"", b"100-continue, x"):
            assert "expectation" == refused(HOST, b"Expect: " + value)
        assert "expectation" == refused(HOST, *[b"Expect: 100-continue"] * 2)

    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            ([], False),
            ([b"TE: trailers"], True),
            ([b"TE: gzip;q=0.5, Trailers"], True),
            ([b"TE: gzip"], False),
            ([b"Trailer: x"], False),
        ],
    )
    def test_trailers(self, lines: list[bytes], expected: bool) -> None:
        """Whether the client wants them."""
        assert expected is read(*lines).trailers


class TestMethods:
    @pytest.mark.parametrize(
        "method",
        [
            b"GET",
            b"get",
            b"FOO",
            b"M-SEARCH",
            b"VERSION-CONTROL",
            b"PLAY",
            b"PRI",
            b"!#'",
            b"Q" * 32,
        ],
    )
    def test_any(self, method: bytes) -> None:
        """A method is a token, known to llhttp or not (RFC 9110 §9.1)."""
        data = request(method + b" / HTTP/1.1", HOST, b"Content-Length: 1", body=b"x")
        assert method == head_of(every_way(RequestReader, data)).method


class TestResponses:
    """CASES M12: the framing of responses is no less in doubt; all is 502."""

    @pytest.mark.parametrize(
        ("start", "lines", "reason"),
        [
            (OK, [CHUNKED, b"Content-Length: 5"], "two_lengths"),
            (OK, [b"Content-Length: 5", b"Content-Length: 5"], "content_length_duplicate"),
            (OK, [b"Content-Length: 5, 5"], "content_length"),
            (OK, [b"Content-Length: -5"], "content_length"),
            (OK, [CHUNKED, CHUNKED], "transfer_encoding_duplicate"),
            (OK, [b"Transfer-Encoding: gzip"], "transfer_encoding"),
            (OK, [b"Transfer-Encoding: chunked, identity"], "transfer_encoding"),
            (OK, [b"Transfer-Encoding: gzip, chunked"], "transfer_coding"),
            (b"HTTP/1.0 200 OK", [CHUNKED], "transfer_encoding_old"),
            (OK, [b"X : y"], "field_name"),
            (OK, [b"X: y", b" z"], "field_folded"),
            (OK, [b"X: y\x00"], "field_value"),
            (OK, [b"X: y\nZ: x"], "line_end"),
        ],
    )
    def test_refused(self, start: bytes, lines: list[bytes], reason: str) -> None:
        """What could be read in two ways is no response."""
        assert [reason] == every_way(response_reader(), response(start, *lines, body=SMUGGLED))
        assert [reason] == every_way(response_reader(b"HEAD"), response(start, *lines))

    def test_connect(self) -> None:
        """A 2xx to CONNECT has no body, whatever it says; another answer has one."""
        data = response(OK, b"Content-Length: 5", body=b"y")
        assert b"y" == read_one(response_reader(b"CONNECT"), [data])[1]
        data = response(OK, b"Content-Length: x", body=b"y")
        assert ["fields"] == read_one(response_reader(b"CONNECT"), [data])[0]
        data = response(b"HTTP/1.1 407 x", b"Content-Length: 1", body=b"y")
        assert [b"y", END] == every_way(response_reader(b"CONNECT"), data)[1:]

    @pytest.mark.parametrize(
        ("method", "start", "lines", "length", "keep_alive"),
        [
            (b"HEAD", OK, [b"Content-Length: 5"], 5, True),
            (b"HEAD", OK, [b"Content-Length: 0"], 0, True),
            (b"HEAD", OK, [], None, True),
            (b"HEAD", OK, [CHUNKED], None, True),
            (b"GET", b"HTTP/1.1 304 x", [b"Content-Length: 5"], 5, True),
            (b"GET", b"HTTP/1.1 204 x", [b"Content-Length: 0"], None, True),
            # Bytes of a body that can't be may follow: no next request is sent there.
            (b"GET", b"HTTP/1.1 204 x", [b"Content-Length: 5"], None, False),
            (b"GET", b"HTTP/1.1 204 x", [CHUNKED], None, False),
            (b"GET", b"HTTP/1.0 304 x", [], None, False),
            (b"GET", b"HTTP/1.0 304 x", [b"Connection: keep-alive"], None, True),
            (b"GET", b"HTTP/1.1 304 x", [b"Connection: close"], None, False),
        ],
    )
    def test_no_body(
        self,
        method: bytes,
        start: bytes,
        lines: list[bytes],
        length: int | None,
        keep_alive: bool,
    ) -> None:
        """The length of a body that is not there is told apart from those that are."""
        head, end = every_way(response_reader(method), response(start, *lines))
        assert isinstance(head, ResponseHead)
        assert (Framing.NONE, 0, length, keep_alive) == (
            head.framing,
            head.length,
            head.content_length,
            head.keep_alive,
        )
        assert END is end

    def test_upgrade(self) -> None:
        """As with requests."""
        lines = (b"Connection: Upgrade", b"Upgrade: websocket")
        head, _ = every_way(response_reader(), response(b"HTTP/1.1 101 x", *lines))
        assert isinstance(head, ResponseHead)
        assert b"websocket" == head.upgrade
        assert {b"upgrade"} == head.options
        assert not head.interim
