"""Only documented outcomes, and the same one however a stream is cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from wire.http1.every_way import read_all, read_one, request, response_reader

from sidecar.wire.http1.errors import HttpMessageReason
from sidecar.wire.http1.messages import END, Event, Framing, RequestHead
from sidecar.wire.http1.reading import RequestReader
from sidecar.wire.http1.writing import forwardable, request_head

REASONS = {reason.value for reason in HttpMessageReason}
GET = request(b"GET http://a/ HTTP/1.1", b"Host: a", b"Connection: close, X")
POST = request(
    b"POST /x HTTP/1.1",
    b"Host: a",
    b"Transfer-Encoding: chunked",
    body=b"5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n",
)
COUNTED = request(b"PUT * HTTP/1.0", b"Content-Length: 3", body=b"abc")
OK = request(b"HTTP/1.1 200 OK", b"Content-Length: 3", body=b"abc")
CONTINUE = request(b"HTTP/1.1 100 x")

pieces = st.lists(
    st.sampled_from(
        [
            *(b"GET", b" ", b"/", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\r", b"\n", b"Host: a\r\n"),
            *(b"\0", b"\t", b"http://b", b"X", b":", b"\r\n\r\n", b"Content-Length: 3\r\n", b"5"),
            *(b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"0\r\n\r\n", b"\xff"),
            *(b"Content-Length: ", b"Transfer-Encoding: ", b"chunked", b", ", b"\x0b", b"-1", b"+"),
            *(GET, POST, COUNTED, OK, CONTINUE, b"HTTP/1.1 204 x\r\n"),
        ]
    ),
    max_size=10,
).map(b"".join)
cuts = st.lists(st.integers(0, 60), max_size=12)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return [data[start:end] for start, end in pairwise([*ends, len(data) + ends[-1]])]


def check(data: bytes, sizes: list[int]) -> list[Event | str]:
    outcome = read_all(RequestReader, [data])
    assert outcome == read_all(RequestReader, cut(data, sizes))
    for method in (b"GET", b"HEAD", b"CONNECT"):
        response = read_one(response_reader(method), [data])
        assert response == read_one(response_reader(method), cut(data, sizes))
        outcome += response[0]
    for event in outcome:
        assert not isinstance(event, str) or event in REASONS
    return outcome


class TestOutcomes:
    @given(data=st.binary(max_size=200), sizes=cuts)
    def test_bytes(self, data: bytes, sizes: list[int]) -> None:
        """Of arbitrary bytes."""
        check(data, sizes)

    @given(data=pieces, sizes=cuts)
    # Twisted's CVE-2023-46137 and CVE-2024-41671: pipelined requests
    @example(data=GET + GET + POST + GET, sizes=[1, 60, 3])
    # Twisted's CVE-2022-24801, then CVE-2020-10108 and CVE-2020-10109
    @example(data=POST.replace(b"5;x", b"0x5;x"), sizes=[])
    @example(data=COUNTED.replace(b" 3", b" +3"), sizes=[])
    @example(data=COUNTED.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"), sizes=[])
    @example(data=POST.replace(b"\r\nT", b"\r\nContent-Length: 3\r\nT"), sizes=[])
    # HAProxy's CVE-2023-40225, Squid's CVE-2020-15810, HAProxy's CVE-2023-25725
    @example(data=COUNTED.replace(b": 3", b":"), sizes=[])
    @example(data=POST.replace(b"Encoding:", b"Encoding :"), sizes=[])
    @example(data=POST.replace(b"Host: a", b"Host: a\r\n: x"), sizes=[])
    # h11's CVE-2025-43859, mitmproxy's CVE-2021-39214, gunicorn's GHSA-w3h3-4rj7-4ph4
    @example(data=POST.replace(b"hello\r\n", b"helloXX"), sizes=[])
    @example(data=POST.replace(b" chunked", b" \x0bchunked"), sizes=[])
    @example(data=POST.replace(b" chunked", b" xchunked"), sizes=[])
    def test_pieces(self, data: bytes, sizes: list[int]) -> None:
        """Of the parts of messages in any order."""
        check(data, sizes)

    @given(
        message=st.sampled_from([GET, POST, COUNTED, OK, CONTINUE + OK]),
        where=st.integers(0, 120),
        removed=st.integers(0, 3),
        put=pieces,
        sizes=cuts,
    )
    def test_mutated(
        self, message: bytes, where: int, removed: int, put: bytes, sizes: list[int]
    ) -> None:
        """Of messages with something changed."""
        check(message[:where] + put + message[where + removed :] + GET, sizes)


class TestNothingSmuggled:
    @given(data=pieces)
    @example(data=request(b"GET / HTTP/1.1", b"Host: a", b"X: Content-Length: 3"))
    def test_forwarded(self, data: bytes) -> None:
        """A request that is read, and written anew, is read as the same one, and as one."""
        for event in read_all(RequestReader, [data]):
            if isinstance(event, RequestHead) and event.framing is Framing.NONE:
                fields = forwardable(event.fields, event.options)
                written = request_head(
                    event.method, event.target, event.host or b"a", fields, Framing.NONE
                )
                (again, end), rest = read_one(RequestReader, [written])
                assert isinstance(again, RequestHead)
                assert fields == forwardable(again.fields, again.options)
                assert event.target == again.target
                assert END is end
                assert b"" == rest
