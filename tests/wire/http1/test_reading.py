"""The readers: where messages begin and end. What heads say is test_heads's business."""

from __future__ import annotations

import pytest
from wire.feeding import lines_run
from wire.http1.every_way import (
    every_way,
    head_of,
    read_all,
    read_one,
    request,
    requests_every_way,
    response,
    response_reader,
)

from sidecar.wire.http1.errors import HttpMessageError, HttpMessageReason
from sidecar.wire.http1.messages import END, Event, Framing, RequestHead, ResponseHead, Trailers
from sidecar.wire.http1.reading import (
    MAX_HEAD_BYTES,
    MAX_HEAD_FIELDS,
    MAX_INTERIM_RESPONSES,
    MAX_TARGET_BYTES,
    RequestReader,
    ResponseReader,
)

GET = request(b"GET http://a.example/x HTTP/1.1", b"Host: a.example", b"Accept: */*")
POST = b"POST / HTTP/1.1"
HOST = b"Host: a"
OK = b"HTTP/1.1 200 OK"


def targets(events: list[Event | str]) -> list[bytes | str]:
    return [
        event.target if isinstance(event, RequestHead) else str(event)
        for event in events
        if isinstance(event, RequestHead | str)
    ]


class TestRequests:
    def test_get(self) -> None:
        """A request without a body is its head and its end; what follows isn't its own."""
        head = RequestHead(
            method=b"GET",
            target=b"http://a.example/x",
            minor_version=1,
            fields=[(b"Host", b"a.example"), (b"Accept", b"*/*")],
            host=b"a.example",
            framing=Framing.NONE,
            length=0,
            options=frozenset(),
            keep_alive=True,
            expect_continue=False,
            upgrade=None,
            trailers=False,
        )
        assert [head, END] == every_way(RequestReader, GET)

    def test_length(self) -> None:
        """A body with a length is counted."""
        data = request(POST, HOST, b"Content-Length: 5", body=b"hello")
        head, *body = every_way(RequestReader, data)
        assert isinstance(head, RequestHead)
        assert (Framing.LENGTH, 5) == (head.framing, head.length)
        assert [b"hello", END] == body

    def test_length_zero(self) -> None:
        """An empty body with a length is told from no body."""
        outcome = every_way(RequestReader, request(POST, HOST, b"Content-Length: 0"))
        assert (Framing.LENGTH, 0) == (head_of(outcome).framing, head_of(outcome).length)
        assert 2 == len(outcome)

    def test_not_copied(self) -> None:
        """A piece of a body with a length is the very bytes that were fed."""
        reader = RequestReader()
        reader.feed(request(POST, HOST, b"Content-Length: 10"))
        piece = b"xxxxx"
        assert reader.feed(piece)[0] is piece
        assert [piece, END] == reader.feed(piece)

    def test_chunked(self) -> None:
        """A chunked body is told without its chunks."""
        data = request(
            POST, HOST, b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"
        )
        head, *body = every_way(RequestReader, data)
        assert isinstance(head, RequestHead)
        assert Framing.CHUNKED is head.framing
        assert [b"hello!", END] == body

    def test_pipelined(self) -> None:
        """CASES M5: requests are read one by one, in order, whatever their bodies."""
        chunked = request(
            b"PUT /2 HTTP/1.1", HOST, b"Transfer-Encoding: chunked", body=b"1\r\nx\r\n0\r\n\r\n"
        )
        counted = request(b"PUT /3 HTTP/1.1", HOST, b"Content-Length: 4", body=b"GET ")
        data = request(b"GET /1 HTTP/1.1", HOST) + chunked + counted
        outcome = requests_every_way(data + request(b"GET /4 HTTP/1.1", HOST))
        assert [b"/1", b"/2", b"/3", b"/4"] == targets(outcome)
        assert [b"x", b"GET "] == [event for event in outcome if isinstance(event, bytes)]

    def test_one_at_a_time(self) -> None:
        """Nothing of the next request is looked at before it is asked for."""
        reader = RequestReader()
        events = reader.feed(GET + b"\x00" + GET)
        assert END is events[-1]
        assert 2 == len(events)
        assert reader.started
        with pytest.raises(HttpMessageError, match="request_line"):
            reader.feed(b"")

    def test_started(self) -> None:
        """Bytes of a head that isn't complete mean that one is on its way."""
        reader = RequestReader()
        assert not reader.started
        reader.feed(GET[:1])
        assert reader.started
        reader.feed(GET[1:])
        assert not reader.started
        reader.feed(request(POST, HOST, b"Content-Length: 5", body=b"x"))
        assert not reader.started

    @pytest.mark.parametrize(
        "start", [b"CONNECT a:1 HTTP/1.1", b"GET /chat HTTP/1.1"], ids=["connect", "upgrade"]
    )
    def test_rest(self, start: bytes) -> None:
        """CASES M5: what follows CONNECT or Upgrade isn't read as HTTP, and is given up."""
        reader = RequestReader()
        lines = (b"Host: a:1", b"Connection: upgrade", b"Upgrade: websocket")
        events = reader.feed(request(start, *lines) + b"\x16\x03" + GET)
        assert 2 == len(events)
        assert b"\x16\x03" + GET == reader.rest()
        assert b"" == reader.rest()
        assert not reader.started

    def test_rest_of_head(self) -> None:
        """What follows is given up also where it looks like a head."""
        reader = RequestReader()
        reader.feed(GET)
        reader.feed(GET[:10])
        assert GET[:10] == reader.rest()
        assert [] == reader.eof()

    def test_blank_line(self) -> None:
        """RFC 9112 §2.2: one blank line is skipped behind a request, none before the first."""
        outcome = requests_every_way(GET + b"\r\n" + GET + b"\r\n" + GET)
        assert [b"http://a.example/x"] * 3 == targets(outcome)
        assert ["request_line"] == every_way(RequestReader, b"\r\n" + GET)
        for blanks in (b"\r\n\r\n", b"\n", b"\r", b"\r\r\n", b"\r\n\n", b" \r\n"):
            outcome = requests_every_way(GET + blanks + GET)
            assert [b"http://a.example/x", "request_line"] == targets(outcome)

    def test_blank_line_starts_nothing(self) -> None:
        """A blank line alone is no beginning of a request."""
        reader = RequestReader()
        reader.feed(GET + b"\r\n")
        assert [] == reader.feed(b"")
        assert not reader.started
        assert [] == reader.eof()

    def test_eof(self) -> None:
        """A client may stop between requests, and nowhere else."""
        reader = RequestReader()
        assert [] == reader.eof()
        reader.feed(GET)
        assert [] == reader.eof()
        for data in (GET[:9], request(POST, HOST, b"Content-Length: 5", body=b"hell")):
            reader = RequestReader()
            reader.feed(data)
            for _ in range(2):
                with pytest.raises(HttpMessageError, match="incomplete"):
                    reader.eof()
            with pytest.raises(HttpMessageError, match="incomplete"):
                reader.feed(GET)

    def test_error_after_events(self) -> None:
        """What is there before an error is told before it, and the error is known at once."""
        reader = RequestReader()
        body = b"5\r\nhello\r\nx"
        events = reader.feed(request(POST, HOST, b"Transfer-Encoding: chunked", body=body))
        assert b"hello" == events[1]
        assert reader.error is not None
        assert HttpMessageReason.CHUNK_SIZE is reader.error.reason
        with pytest.raises(HttpMessageError, match="chunk_size"):
            reader.feed(b"")
        with pytest.raises(HttpMessageError, match="chunk_size"):
            reader.eof()

    def test_nothing_kept(self) -> None:
        """An error keeps no bytes."""
        reader = RequestReader()
        with pytest.raises(HttpMessageError):
            reader.feed(b"\x00" * 100_000)
        assert b"" == reader.rest()


class TestLimits:
    """CASES M11."""

    def test_fields(self) -> None:
        """100 fields are read, the 101st is refused, before it is complete or after."""
        lines = [b"X: y"] * (MAX_HEAD_FIELDS - 1)
        data = request(b"GET / HTTP/1.1", HOST, *lines)
        assert MAX_HEAD_FIELDS == len(head_of(read_all(RequestReader, [data])).fields)
        data = request(b"GET / HTTP/1.1", HOST, *lines, b"X: y")
        assert ["too_many_fields"] == read_all(RequestReader, [data])
        assert ["too_many_fields"] == read_all(RequestReader, [data[:-2]])
        assert ["too_many_fields"] == read_all(RequestReader, [data[:-2], data[-2:]])

    def test_head(self) -> None:
        """64 KiB are read; with more, the 64 KiB'th byte is refused."""
        room = MAX_HEAD_BYTES - len(request(b"GET / HTTP/1.1", HOST, b"X: "))
        data = request(b"GET / HTTP/1.1", HOST, b"X: " + b"x" * room)
        assert MAX_HEAD_BYTES == len(data)
        for chunks in ([data], [data[:-1], data[-1:]], [data[:9], data[9:]]):
            assert END is read_all(RequestReader, chunks)[-1]
        over = request(b"GET / HTTP/1.1", HOST, b"X: x" + b"x" * room)
        assert [] == read_all(RequestReader, [over[: MAX_HEAD_BYTES - 1]])
        for chunks in ([over], [over[:MAX_HEAD_BYTES]], [over[:-1], over[-1:]]):
            assert ["head_too_large"] == read_all(RequestReader, chunks)

    @pytest.mark.parametrize("target", [b"/", b"http://a/", b"a:1"])
    def test_target(self, target: bytes) -> None:
        """32 KiB are read; one byte more is refused at once, whatever it is."""
        method = b"CONNECT " if target == b"a:1" else b"GET "
        target = target.ljust(MAX_TARGET_BYTES, b"1")
        data = method + target + b" HTTP/1.1\r\nHost: a\r\n\r\n"
        assert [target] == targets(read_one(RequestReader, [data])[0])[:1]
        assert [] == read_all(RequestReader, [method + target])
        over = method + target + b"1"
        for chunks in ([over], [over[:-1], over[-1:]], [over[:40], over[40:] + b"1"]):
            assert ["target_too_long"] == read_all(RequestReader, chunks)
        assert ["target_too_long"] == read_all(RequestReader, [over + b" HTTP/1.1\r\n\r\n"])
        assert ["target_too_long"] == read_all(RequestReader, [over + b"\x00" * 1_000_000])

    def test_line_behind_target(self) -> None:
        """A line that doesn't end behind its target has no version, whatever follows."""
        data = b"GET / " + b"x" * 40_000
        for chunks in ([data], [data[:100], data[100:]]):
            assert [] == read_all(RequestReader, chunks)
            assert ["request_line"] == read_all(RequestReader, [*chunks, b"\r\n"])

    def test_own(self) -> None:
        """The limits are the caller's."""

        def make() -> RequestReader:
            return RequestReader(max_head_bytes=60, max_fields=2, max_target_bytes=10)

        start = b"GET /12345678 HTTP/1.1"
        assert b"/12345678" == head_of(every_way(make, request(start, HOST))).target
        data = request(b"GET /1234567890 HTTP/1.1", HOST)
        assert ["target_too_long"] == every_way(make, data)
        assert ["too_many_fields"] == every_way(make, request(start, HOST, b"X: y", b"X: y"))
        assert ["head_too_large"] == every_way(make, request(start, HOST, b"X: " + b"y" * 40))

    def test_trailers(self) -> None:
        """A trailer section has a head's limits."""
        data = request(POST, HOST, b"Transfer-Encoding: chunked", body=b"0\r\n")
        many = [b"X: y"] * (MAX_HEAD_FIELDS + 1)
        outcome = read_all(RequestReader, [data + b"\r\n".join(many)])
        assert 1 == len(outcome)
        for end in (b"\r\n", b"\r\n\r\n"):
            outcome = read_all(RequestReader, [data + b"\r\n".join(many) + end])
            assert "too_many_fields" == outcome[-1]
        outcome = read_all(RequestReader, [data + b"X: " + b"x" * MAX_HEAD_BYTES])
        assert "head_too_large" == outcome[-1]

    @pytest.mark.parametrize(
        "part",
        [
            b"GET /" + b"x" * 8_000,
            request(b"GET / HTTP/1.1", b"X: " + b"x" * 8_000)[:-2],
            request(b"GET / HTTP/1.1", *[b"X: " + b"x" * 80] * 90)[:-2],
            request(POST, HOST, b"Transfer-Encoding: chunked", body=b"1\r\nx\r\n" * 1_000),
            request(POST, HOST, b"Content-Length: 8000", body=b"x" * 7_000),
            request(POST, HOST, b"Transfer-Encoding: chunked", body=b"0\r\n" + b"X: y\r\n" * 90),
        ],
        ids=["target", "field", "fields", "chunks", "length", "trailers"],
    )
    def test_linear(self, part: bytes) -> None:
        """Work grows as the bytes do, byte by byte."""

        def work(data: bytes) -> int:
            return lines_run(
                lambda: read_all(RequestReader, (data[at : at + 1] for at in range(len(data))))
            )

        assert work(part) < 2.3 * work(part[: len(part) // 2])


class TestResponses:
    def test_length(self) -> None:
        """A response's head, its body, its end."""
        data = response(OK, b"Server: x", b"Content-Length: 5", body=b"hello")
        head = ResponseHead(
            status=200,
            reason=b"OK",
            minor_version=1,
            fields=[(b"Server", b"x"), (b"Content-Length", b"5")],
            framing=Framing.LENGTH,
            length=5,
            content_length=5,
            options=frozenset(),
            keep_alive=True,
            upgrade=None,
        )
        assert [head, b"hello", END] == every_way(response_reader(), data)

    def test_chunked(self) -> None:
        """With trailers, if there are some."""
        body = b"5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n"
        data = response(OK, b"Transfer-Encoding: chunked", body=body)
        assert [b"hello", Trailers([(b"X", b"y")]), END] == every_way(response_reader(), data)[1:]

    def test_close(self) -> None:
        """Without a length the end of the stream is the body's."""
        for body in (b"", b"hello"):
            data = response(OK, body=body)
            for cut in range(1, len(data)):
                reader = response_reader()()
                head, *pieces = reader.feed(data[:cut]) + reader.feed(data[cut:])
                assert isinstance(head, ResponseHead)
                assert (Framing.CLOSE, False) == (head.framing, head.keep_alive)
                assert body == b"".join(piece for piece in pieces if isinstance(piece, bytes))
                assert END not in pieces
                assert [END] == reader.eof()
                assert [] == reader.eof()

    @pytest.mark.parametrize(
        ("method", "start"),
        [
            (b"HEAD", OK),
            (b"GET", b"HTTP/1.1 204 No Content"),
            (b"GET", b"HTTP/1.1 304 Not Modified"),
            (b"CONNECT", OK),
            (b"CONNECT", b"HTTP/1.1 299 x"),
            (b"GET", b"HTTP/1.1 101 Switching Protocols"),
        ],
    )
    @pytest.mark.parametrize("line", [b"X: y", b"Content-Length: 5", b"Transfer-Encoding: chunked"])
    def test_no_body(self, method: bytes, start: bytes, line: bytes) -> None:
        """Some responses have none, whatever they say: what follows isn't theirs."""
        head, *rest = every_way(response_reader(method), response(start, line))
        assert isinstance(head, ResponseHead)
        assert Framing.NONE is head.framing
        assert [END] == rest

    def test_interim(self) -> None:
        """1xx responses come before the final one, each with its end."""
        interim = response(b"HTTP/1.1 100 Continue") + response(b"HTTP/1.1 103 x", b"Link: y")
        final = response(OK, b"Content-Length: 1", body=b"x")
        outcome = every_way(response_reader(), interim + final)
        heads = [event for event in outcome if isinstance(event, ResponseHead)]
        assert [(100, True), (103, True), (200, False)] == [(h.status, h.interim) for h in heads]
        assert 3 == outcome.count(END)

    def test_interim_flood(self) -> None:
        """CASES M12: there is an end to them."""
        one = response(b"HTTP/1.1 100 Continue")
        final = response(OK, b"Content-Length: 0")
        assert END is read_one(response_reader(), [one * MAX_INTERIM_RESPONSES + final])[0][-1]
        outcome = read_one(response_reader(), [one * (MAX_INTERIM_RESPONSES + 1) + final])[0]
        assert "interim_flood" == outcome[-1]
        assert 2 * MAX_INTERIM_RESPONSES + 1 == len(outcome)

    def test_next(self) -> None:
        """One reader reads the responses of a connection, each when its request is sent."""
        reader = ResponseReader()
        for number in range(3):
            reader.expect(b"GET")
            body = b"%d" % number
            events = reader.feed(response(OK, b"Content-Length: 1", body=body))
            assert [body, END] == events[1:]
            assert not reader.started
            assert [] == reader.eof()

    def test_unsolicited(self) -> None:
        """What was there before its request is no response to it."""
        whole = response(OK, b"Content-Length: 1", body=b"x")
        for ahead in (whole, b"H", b"\r\n"):
            reader = response_reader()()
            assert END is reader.feed(whole + ahead)[-1]
            assert reader.started
            reader.expect(b"GET")
            assert reader.error is not None
            with pytest.raises(HttpMessageError, match="unsolicited"):
                reader.feed(whole)
            reader = ResponseReader()
            assert [] == reader.feed(ahead)
            assert [] == reader.feed(b"")
            assert ahead == reader.rest()

    def test_asked_within(self) -> None:
        """A second request before the first is answered has no answer here."""
        reader = response_reader()()
        reader.feed(response(OK, b"Content-Length: 2", body=b"x"))
        reader.expect(b"GET")
        with pytest.raises(HttpMessageError, match="unsolicited"):
            reader.feed(b"x")

    def test_rest(self) -> None:
        """What follows 101, or 200 to CONNECT, is the other protocol's."""
        lines = (b"Connection: upgrade", b"Upgrade: x")
        reader = response_reader()()
        assert 2 == len(reader.feed(response(b"HTTP/1.1 101 x", *lines) + b"\x00\x01"))
        assert b"\x00\x01" == reader.rest()
        reader = response_reader(b"CONNECT")()
        assert 2 == len(reader.feed(response(OK, b"Content-Length: 1") + b"\x00\x01"))
        assert b"\x00\x01" == reader.rest()

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"HTTP/1.1 2",
            response(b"HTTP/1.1 100 Continue"),
            response(OK, b"Content-Length: 5", body=b"hell"),
            response(OK, b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n"),
            response(OK, b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n"),
        ],
    )
    def test_eof(self, data: bytes) -> None:
        """CASES M12: an end before its own is an error, and 502."""
        reader = response_reader()()
        reader.feed(data)
        for _ in range(2):
            with pytest.raises(HttpMessageError, match="no HTTP response: incomplete") as caught:
                reader.eof()
            assert 502 == caught.value.status

    def test_limits(self) -> None:
        """Heads are bounded as requests' are."""
        many = [b"X: y"] * (MAX_HEAD_FIELDS + 1)
        assert ["too_many_fields"] == read_all(response_reader(), [response(OK, *many)])
        large = response(OK, b"X: " + b"x" * MAX_HEAD_BYTES)
        assert ["head_too_large"] == read_all(response_reader(), [large])
        assert ["head_too_large"] == read_all(response_reader(), [b"HTTP/1.1 200 " + large])


@pytest.mark.parametrize("reason", list(HttpMessageReason))
class TestErrors:
    def test_status(self, reason: HttpMessageReason) -> None:
        """Each reason is worth an error status; what a server sends is worth 502."""
        assert 400 <= HttpMessageError(reason).status <= 505
        assert 502 == HttpMessageError(reason, in_response=True).status

    def test_text(self, reason: HttpMessageReason) -> None:
        """An error says whose it is, and its reason."""
        assert f"no HTTP request: {reason.value}" == str(HttpMessageError(reason))
        error = HttpMessageError(reason, in_response=True)
        assert f"no HTTP response: {reason.value}" == str(error)
