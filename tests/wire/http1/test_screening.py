"""CASES M4, M9, M11: what heads look like, to the byte."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wire.http1.every_way import every_way, head_of, read_one, request, response, response_reader

from sidecar.wire.http1 import screening
from sidecar.wire.http1.errors import HttpMessageError
from sidecar.wire.http1.messages import ResponseHead
from sidecar.wire.http1.reading import RequestReader


class TestRequestLine:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"", "request_line"),
            (b"\r\nGET / HTTP/1.1", "request_line"),
            (b" GET / HTTP/1.1", "request_line"),
            (b"GET  / HTTP/1.1", "request_line"),
            (b"GET /  HTTP/1.1", "request_line"),
            (b"GET / HTTP/1.1 ", "request_line"),
            (b"GET\t/ HTTP/1.1", "request_line"),
            (b"GET /\tHTTP/1.1", "request_line"),
            (b"GET / x HTTP/1.1", "request_line"),
            (b"GET /", "request_line"),
            (b"GET", "request_line"),
            (b"GET / ", "request_line"),
            (b"GET / http/1.1", "request_line"),
            (b"GET / HTTP/1.10", "request_line"),
            (b"GET / HTTP/1", "request_line"),
            (b"GET / HTTP/01.1", "request_line"),
            (b"GET / XHTTP/1.1", "request_line"),
            (b"GET / RTSP/1.0", "request_line"),
            (b"SOURCE / ICE/1.0", "request_line"),
            (b"G\xc9T / HTTP/1.1", "request_line"),
            (b"G(T / HTTP/1.1", "request_line"),
            (b"\x16\x03\x01", "request_line"),
            (b"GET / HTTP/0.9", "version"),
            (b"GET / HTTP/1.2", "version"),
            (b"GET / HTTP/2.0", "version"),
            (b"PRI * HTTP/2.0", "version"),
            (b"X" * 33, "method_too_long"),
            (b"X" * 33 + b" / HTTP/1.1", "method_too_long"),
            (b"GET /\x00 HTTP/1.1", "target"),
            (b"GET /\x0c HTTP/1.1", "target"),
            (b"GET /\x7f HTTP/1.1", "target"),
            (b"GET /#x HTTP/1.1", "target"),
            (b"CONNECT a:443\x0b HTTP/1.1", "target"),
            (b"GET / HTTP/1.1\r", "line_end"),
            (b"GET /\r HTTP/1.1", "line_end"),
            (b"GET /\rx HTTP/1.1", "line_end"),
            (b"GET / HTTP/1.1\nHost: a", "line_end"),
            (b"GET /\nHost: a", "line_end"),
            # CASES M9: a line end in a target is the line's end
            (b"CONNECT a:1\r\nX: y HTTP/1.1", "request_line"),
            (b"GET /\r\nX: y HTTP/1.1", "request_line"),
        ],
    )
    def test_refused(self, line: bytes, reason: str) -> None:
        """What isn't just three words is no request line."""
        assert [reason] == every_way(RequestReader, request(line, b"Host: a"))

    @pytest.mark.parametrize(
        "target",
        ["/é".encode(), b'/<">\\^`{|}', b"/%00", b"/%0d%0a", b"/a?b=c&d=http://e", b"*", b"x"],
    )
    def test_target(self, target: bytes) -> None:
        """Targets are told as they are; what they mean parse_target says."""
        data = request(b"GET " + target + b" HTTP/1.1", b"Host: a")
        assert target == head_of(every_way(RequestReader, data)).target

    @pytest.mark.parametrize(
        ("data", "bytes_needed"),
        [
            (b"\x16\x03\x01", 1),
            (b"\r\nGET", 1),
            (b" ", 1),
            (b"SSH-2.0-OpenSSH_9.2\r\n", 20),
            (b"QUIT\r\n", 5),
            (b"X" * 33, 33),
        ],
    )
    def test_first_bytes(self, data: bytes, bytes_needed: int) -> None:
        """What is no method is known by the first byte that no method has."""
        assert [] == every_way(RequestReader, data[: bytes_needed - 1])
        assert 1 == len(every_way(RequestReader, data[:bytes_needed]))


class TestStatusLine:
    @pytest.mark.parametrize(
        ("line", "status", "reason"),
        [
            (b"HTTP/1.1 200 OK", 200, b"OK"),
            (b"HTTP/1.0 404 Not  Found\t!", 404, b"Not  Found\t!"),
            (b"HTTP/1.1 200 ", 200, b""),
            (b"HTTP/1.1 200", 200, b""),
            (b"HTTP/1.1 999 \xe9", 999, b"\xe9"),
        ],
    )
    def test_allowed(self, line: bytes, status: int, reason: bytes) -> None:
        """The phrase is free text, and may be missing."""
        (head, *_), _ = read_one(response_reader(), [response(line)])
        assert isinstance(head, ResponseHead)
        assert (status, reason) == (head.status, head.reason)

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"", "status_line"),
            (b"\r\nHTTP/1.1 200 OK", "status_line"),
            (b"ICY 200 OK", "status_line"),
            (b"http/1.1 200 OK", "status_line"),
            (b"HTTP/1.1  200 OK", "status_line"),
            (b"HTTP/1.1\t200 OK", "status_line"),
            (b"HTTP/1.1 099 OK", "status_line"),
            (b"HTTP/1.1 20 OK", "status_line"),
            (b"HTTP/1.1 2000 OK", "status_line"),
            (b"HTTP/1.1 +20 OK", "status_line"),
            (b"HTTP/1.1 200\tOK", "status_line"),
            (b"HTTP/1.1 200 O\x00K", "status_line"),
            (b"HTTP/1.1 200 O\x01K", "status_line"),
            (b"HTTP/1.1 ", "status_line"),
            (b"HTTP/1.10 200 OK", "status_line"),
            (b"HTTP/1.2 200 OK", "version"),
            (b"HTTP/2.0 200 OK", "version"),
            (b"HTTP/1.1 200 OK\r", "line_end"),
            (b"HTTP/1.1 200 O\rK", "line_end"),
            (b"HTTP/1.1 200 OK\nX: y", "line_end"),
        ],
    )
    def test_refused(self, line: bytes, reason: str) -> None:
        """Nothing else begins a response."""
        assert [reason] == every_way(response_reader(), response(line, b"Content-Length: 0"))


class TestFields:
    @pytest.mark.parametrize(
        ("lines", "reason"),
        [
            # CVE-2020-15810, CVE-2020-15811 (Squid): a space before the colon
            (b"X : y\r\n", "field_name"),
            (b"X\t: y\r\n", "field_name"),
            # CVE-2023-25725 (HAProxy a8598a2): an empty name
            (b": y\r\n", "field_name"),
            (b":\r\n", "field_name"),
            (b"X\r\n", "field_name"),
            (b"X y: z\r\n", "field_name"),
            (b"X\x00: y\r\n", "field_name"),
            (b"X\xe9: y\r\n", "field_name"),
            (b"(X): y\r\n", "field_name"),
            (b"X: y\r\n z\r\n", "field_folded"),
            (b"X: y\r\n\tz: a\r\n", "field_folded"),
            (b"X: y\r\n \r\n", "field_folded"),
            (b" X: y\r\n", "field_folded"),
            (b"X: \x00\r\n", "field_value"),
            (b"X: y\x0bz\r\n", "field_value"),
            (b"X: \x7f\r\n", "field_value"),
            (b"X: \x1b[2J\r\n", "field_value"),
            (b"X: y\n", "line_end"),
            (b"X: y\rZ: a\r\n", "line_end"),
            (b"X: y\r\r\n", "line_end"),
            (b"\n", "line_end"),
            (b"\r\r\n", "line_end"),
            (b"X: y\r\n\n", "line_end"),
            (b"X: y\r\n\r\r\n", "line_end"),
            (b"X: y\n\nGET /smuggled HTTP/1.1\r\n", "line_end"),
        ],
        ids=repr,
    )
    def test_refused(self, lines: bytes, reason: str) -> None:
        """What two readers split into different lines, or fields, is an error."""
        data = b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n"
        assert [reason] == every_way(RequestReader, data)
        assert [reason] == every_way(response_reader(), b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n")
        data = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n"
        _, outcome = every_way(RequestReader, data + lines + b"\r\n")
        assert reason == outcome

    @pytest.mark.parametrize(
        ("line", "field"),
        [
            (b"X:", (b"X", b"")),
            (b"X: \t ", (b"X", b"")),
            (b"X:y", (b"X", b"y")),
            (b"x: \ty z\t ", (b"x", b"y z")),
            (b"X: a\tb", (b"X", b"a\tb")),
            (b"X: \xe9", (b"X", b"\xe9")),
            (b"X: a: b", (b"X", b"a: b")),
            (b"!#$%&'*+-.^_`|~: y", (b"!#$%&'*+-.^_`|~", b"y")),
        ],
    )
    def test_allowed(self, line: bytes, field: tuple[bytes, bytes]) -> None:
        """Names are tokens, as received; values are text, without the blanks around."""
        data = request(b"GET / HTTP/1.1", line, b"Host: a")
        assert [field, (b"Host", b"a")] == head_of(every_way(RequestReader, data)).fields


heads = st.lists(
    st.sampled_from(
        [
            *(b"GET", b"HTTP/1.1", b" ", b"/", b"200", b"\r\n", b"\r", b"\n", b":", b"\t", b"\0"),
            *(b"GET / HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", b"Host: a\r\n", b"#"),
            *(b"\xff", b"\x7f", b"x" * 33),
        ]
    ),
    max_size=10,
).map(lambda parts: (b"".join(parts) + b"\r\n\r\n").partition(b"\r\n\r\n")[0] + b"\r\n\r\n")


class TestTwoWays:
    @given(head=heads)
    @example(head=b"GET / HTTP/1.1\r\n\r\n")
    @example(head=b"HTTP/1.1 200\r\n\r\n")
    @example(head=b"X" * 33 + b" / HTTP/1.1\r\n\r\n")
    def test_same(self, head: bytes) -> None:
        """A whole head is allowed by the expression if and only if it is line by line."""
        for expression, first in (
            (screening.request_head, screening.RequestLine(1_000)),
            (screening.response_head, screening.StatusLine()),
        ):
            screen = screening.LineScreen(first, 10_000, 1_000)
            try:
                screen.see(head)
            except HttpMessageError:
                assert expression(head) is None
            else:
                assert expression(head) is not None

    @given(section=heads.filter(lambda section: not section.startswith(b"\r\n")))
    def test_same_in_trailers(self, section: bytes) -> None:
        """So is a trailer section."""
        try:
            screening.LineScreen(None, 10_000, 1_000).see(section)
        except HttpMessageError:
            assert screening.trailer_section(section) is None
        else:
            assert screening.trailer_section(section) is not None
