from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.http1.every_way import head_of, read_one, response_reader

from sidecar.wire.http1.messages import END, Fields, Framing, ResponseHead, Trailers
from sidecar.wire.http1.reading import RequestReader
from sidecar.wire.http1.writing import (
    LAST_CHUNK,
    chunk,
    forwardable,
    received_by,
    request_head,
    response_head,
    trailers,
)

NOTHING: frozenset[bytes] = frozenset()


class TestForwardable:
    """CASES M7."""

    @pytest.mark.parametrize(
        "name",
        [
            *(b"Connection", b"Keep-Alive", b"TE", b"Transfer-Encoding", b"Upgrade"),
            *(b"Proxy-Connection", b"Proxy-Authorization", b"Proxy-Authenticate"),
            *(b"Proxy-Authentication-Info", b"Proxy", b"Content-Length", b"Host", b"Expect"),
        ],
    )
    def test_hop_by_hop(self, name: bytes) -> None:
        """What is for us, or made anew, goes no further, in any spelling and number."""
        fields = [
            (b"A", b"1"),
            (name, b"x"),
            (b"B", b"2"),
            (name.lower(), b"y"),
            (name.upper(), b""),
        ]
        assert [(b"A", b"1"), (b"B", b"2")] == forwardable(fields, NOTHING)

    def test_end_to_end(self) -> None:
        """All else is kept as it is: order, case, duplicates."""
        fields = [
            (b"Cookie", b"a"),
            (b"cookie", b"b"),
            (b"Trailer", b"X"),
            (b"Via", b"1.1 x"),
            (b"Proxy-Status", b"x"),
            (b"Cookie", b"a"),
        ]
        assert fields == forwardable(fields, frozenset((b"close", b"keep-alive")))

    def test_nominated(self) -> None:
        """What Connection nominates is hop by hop; loops are known by Via all the same."""
        fields = [(b"X-Auth", b"1"), (b"Via", b"1.1 x"), (b"Y", b"2"), (b"x-auth", b"3")]
        options = frozenset((b"close", b"x-auth", b"via", b"host"))
        assert [(b"Via", b"1.1 x"), (b"Y", b"2")] == forwardable(fields, options)


class TestReceivedBy:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([], []),
            ([b"1.1 a"], [b"a"]),
            (
                [b"1.0 fred, 1.1 p.example.net:80 (x)", b"HTTP/2 b"],
                [b"fred", b"p.example.net:80", b"b"],
            ),
            ([b"", b"1.1", b",", b"1.1  a"], [b"a"]),
        ],
    )
    def test_names(self, values: list[bytes], expected: list[bytes]) -> None:
        """Who passed a message on (RFC 9110 §7.6.3)."""
        fields = [(b"X", b"1.1 y"), *[(b"vIA", value) for value in values]]
        assert expected == list(received_by(fields))


class TestRequestHead:
    def test_least(self) -> None:
        """Host comes first; without a body there is nothing about one."""
        head = request_head(b"GET", b"/x", b"a:80", [(b"A", b"b"), (b"c", b"")], Framing.NONE)
        assert b"GET /x HTTP/1.1\r\nHost: a:80\r\nA: b\r\nc: \r\n\r\n" == head

    def test_most(self) -> None:
        """All that is made anew."""
        head = request_head(
            b"POST",
            b"/",
            b"a",
            [],
            Framing.CHUNKED,
            via=b"1.1 x",
            connection=b"close",
            upgrade=b"websocket",
            expect_continue=True,
            trailers=True,
        )
        expected = (
            b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTE: trailers\r\nVia: 1.1 x\r\n"
            b"Transfer-Encoding: chunked\r\nUpgrade: websocket\r\n"
            b"Connection: close, TE, Upgrade\r\n\r\n"
        )
        assert expected == head

    @pytest.mark.parametrize("length", [0, 5])
    def test_length(self, length: int) -> None:
        """An empty body's length is told as well."""
        head = request_head(b"PUT", b"/", b"a", [], Framing.LENGTH, length)
        assert b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length == head


class TestResponseHead:
    @pytest.mark.parametrize(
        ("framing", "length", "line"),
        [
            (Framing.NONE, None, b""),
            (Framing.NONE, 5, b"Content-Length: 5\r\n"),
            (Framing.NONE, 0, b"Content-Length: 0\r\n"),
            (Framing.LENGTH, 5, b"Content-Length: 5\r\n"),
            (Framing.LENGTH, 0, b"Content-Length: 0\r\n"),
            (Framing.CHUNKED, None, b"Transfer-Encoding: chunked\r\n"),
            (Framing.CLOSE, None, b""),
        ],
    )
    def test_framing(self, framing: Framing, length: int | None, line: bytes) -> None:
        """How the body is going to be sent, or how long it would be."""
        head = response_head(200, b"OK", [(b"A", b"b")], framing, length)
        assert b"HTTP/1.1 200 OK\r\nA: b\r\n" + line + b"\r\n" == head

    def test_most(self) -> None:
        """All that is made anew."""
        head = response_head(
            101, b"", [], Framing.NONE, via=b"1.0 x", connection=b"a", upgrade=b"b"
        )
        expected = b"HTTP/1.1 101 \r\nVia: 1.0 x\r\nUpgrade: b\r\nConnection: a, Upgrade\r\n\r\n"
        assert expected == head


class TestChunks:
    def test_chunk(self) -> None:
        """Size, data, line end."""
        assert b"1a\r\n" + b"x" * 26 + b"\r\n" == chunk(b"x" * 26)

    def test_trailers(self) -> None:
        """What would mean something to a head isn't passed on behind it (RFC 9110 §6.5.1)."""
        fields = [(b"X", b"y"), (b"Authorization", b"x"), (b"content-type", b"x"), (b"Via", b"x")]
        assert b"0\r\nX: y\r\n\r\n" == trailers(fields)
        assert LAST_CHUNK == trailers([])


names = st.sampled_from([b"A", b"x-b", b"Cookie", b"!"])
values = st.sampled_from([b"", b"y", b"a: b", b"\xe9\t,", b"GET / HTTP/1.1"])
fields = st.lists(st.tuples(names, values), max_size=5)


class TestRoundTrip:
    @given(given_fields=fields, body=st.binary(max_size=20), framing=st.sampled_from(Framing))
    def test_request(self, given_fields: Fields, body: bytes, framing: Framing) -> None:
        """What is written is read as what was meant, and nothing follows."""
        if framing is Framing.CLOSE:
            return
        sent = {Framing.NONE: b"", Framing.LENGTH: body, Framing.CHUNKED: LAST_CHUNK}[framing]
        if framing is Framing.CHUNKED and body:
            sent = chunk(body) + sent
        head = request_head(b"GET", b"/", b"a", given_fields, framing, len(body), via=b"1.1 x")
        outcome, rest = read_one(RequestReader, [head + sent + b"GET"])
        assert b"GET" == rest
        read = head_of(outcome)
        assert (b"a", framing) == (read.host, read.framing)
        assert [*given_fields, (b"Via", b"1.1 x")] == forwardable(read.fields, read.options)
        assert (body if sent else b"") == b"".join(e for e in outcome if isinstance(e, bytes))

    @given(given_fields=fields, body=st.binary(min_size=1, max_size=20))
    def test_response(self, given_fields: Fields, body: bytes) -> None:
        """So are responses."""
        head = response_head(200, b"O K", given_fields, Framing.CHUNKED)
        data = head + chunk(body) + trailers([(b"X", b"y")])
        outcome, _ = read_one(response_reader(), [data])
        read, *rest = outcome
        assert isinstance(read, ResponseHead)
        assert (200, b"O K") == (read.status, read.reason)
        assert given_fields == forwardable(read.fields, read.options)
        assert [body, Trailers([(b"X", b"y")]), END] == rest
