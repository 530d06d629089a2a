"""CASES M3: chunked bodies."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wire.http1.every_way import every_way, read_one, request

from sidecar.wire.http1.chunks import MAX_CHUNK_LINE_BYTES
from sidecar.wire.http1.messages import END, Event, Trailers
from sidecar.wire.http1.reading import RequestReader
from sidecar.wire.http1.writing import LAST_CHUNK, chunk, trailers

HEAD = request(b"POST / HTTP/1.1", b"Host: a", b"Transfer-Encoding: chunked")
SMUGGLED = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: b\r\n\r\n"


def body(data: bytes) -> list[Event | str]:
    return every_way(RequestReader, HEAD + data)[1:]


class TestChunks:
    @pytest.mark.parametrize(
        "data",
        [
            b"5\r\nhello\r\n0\r\n\r\n",
            b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
            b"1\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1\r\nl\r\n1\r\no\r\n000\r\n\r\n",
            b"000000000000005\r\nhello\r\n000000000000000\r\n\r\n",
            b"5;a\r\nhello\r\n0;b\r\n\r\n",
            b'2\r\nhe\r\n3;a=b;c="d \\" e";f\r\nllo\r\n0\r\n\r\n',
        ],
    )
    def test_read(self, data: bytes) -> None:
        """Sizes are hexadecimal; extensions are read over."""
        assert [b"hello", END] == body(data)

    def test_hexadecimal(self) -> None:
        """In either case."""
        for size in (b"1a", b"1A", b"0001a"):
            assert [b"x" * 26, END] == body(size + b"\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n")

    def test_nothing(self) -> None:
        """A chunked body may be empty."""
        assert [END] == body(b"0\r\n\r\n")

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            # CVE-2022-24801 (Twisted), tinyproxy bb7edc4 and 969852c: what strtol and int take
            (b"-1\r\n", "chunk_size"),
            (b"+5\r\nhello\r\n", "chunk_size"),
            (b"0x5\r\nhello\r\n", "chunk_size"),
            (b"5 \r\nhello\r\n", "chunk_size"),
            (b" 5\r\nhello\r\n", "chunk_size"),
            (b"5\t\r\nhello\r\n", "chunk_size"),
            (b"5 ;a\r\nhello\r\n", "chunk_size"),
            (b"5; a\r\nhello\r\n", "chunk_size"),
            (b"5;a =b\r\nhello\r\n", "chunk_size"),
            (b"1_0\r\n", "chunk_size"),
            (b"\xb2\r\n", "chunk_size"),
            (b"5h\r\nhello\r\n", "chunk_size"),
            (b"\r\n5\r\nhello\r\n", "chunk_size"),
            (b";a\r\n", "chunk_size"),
            (b"g\r\n", "chunk_size"),
            (b"5\x00\r\nhello\r\n", "chunk_size"),
            # overflow: 2**64 + 5, 2**63, and more digits than anybody sends
            (b"10000000000000005\r\nhello\r\n", "chunk_size"),
            (b"8000000000000000\r\n", "chunk_size"),
            (b"f" * 17 + b"\r\n", "chunk_size"),
            (b"0000000000000005\r\nhello\r\n", "chunk_size"),
            # line ends that others see within extensions
            (b"5\nhello\r\n", "chunk_size"),
            (b"5\rhello\r\n", "chunk_size"),
            (b"5\r\r\nhello\r\n", "chunk_size"),
            (b"5;ext\nhello\r\n", "chunk_size"),
            (b"5;ext\rx\r\nhello\r\n", "chunk_size"),
            (b'5;a="\n"\r\nhello\r\n', "chunk_size"),
            (b'5;a="\r\n"\r\nhello\r\n', "chunk_size"),
            (b"5;a=\x01\r\nhello\r\n", "chunk_size"),
            (b"5;a=\x00\r\nhello\r\n", "chunk_size"),
            (b"5;a=\xff\r\nhello\r\n", "chunk_size"),
            (b"5;\r\nhello\r\n", "chunk_size"),
            (b"5;a=\r\nhello\r\n", "chunk_size"),
            (b"5;a=b;;c\r\nhello\r\n", "chunk_size"),
            (b'5;a="b\r\nhello\r\n', "chunk_size"),
            (b'5;a="b"c\r\nhello\r\n', "chunk_size"),
            (b'5;a="\\\x00"\r\nhello\r\n', "chunk_size"),
        ],
        ids=repr,
    )
    def test_size_refused(self, data: bytes, reason: str) -> None:
        """What is no size isn't guessed at."""
        assert [reason] == body(data + SMUGGLED)
        assert [b"hey", reason] == body(b"3\r\nhey\r\n" + data + SMUGGLED)

    @pytest.mark.parametrize(
        "end",
        [
            # h11 CVE-2025-43859: two bytes, whatever they are; llhttp before 9 likewise
            *(b"XX", b"", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\x00", b"\x00\x00", b" \r\n"),
            b"x\r\n",
        ],
    )
    def test_end_refused(self, end: bytes) -> None:
        """A chunk's data is as long as it says, and a line end follows."""
        assert [b"hello", "chunk_end"] == body(b"5\r\nhello" + end + SMUGGLED)

    def test_line_too_long(self) -> None:
        """Extensions don't go on for ever (CVE-2023-39326, CVE-2024-22019)."""
        line = b"5;" + b"x" * (MAX_CHUNK_LINE_BYTES - 4) + b"\r\n"
        assert MAX_CHUNK_LINE_BYTES == len(line)
        whole = HEAD + line + b"hello\r\n0\r\n\r\n"
        assert END is read_one(RequestReader, [whole])[0][-1]
        over = HEAD + b"5;x" + line[2:]
        assert 1 == len(read_one(RequestReader, [over[:-2]])[0])
        for chunks in ([over], [over[:-1], over[-1:]], [over[:-1]], [HEAD, over[len(HEAD) :]]):
            assert "chunk_size" == read_one(RequestReader, chunks)[0][-1]

    def test_large(self) -> None:
        """A chunk's data is not waited for, and not kept."""
        reader = RequestReader()
        reader.feed(HEAD + b"fffffffffffffff\r\n")
        piece = b"x" * 100_000
        assert reader.feed(piece)[0] is piece
        assert not reader.started

    def test_one_piece(self) -> None:
        """Many small chunks that come at once are one piece of body."""
        events = RequestReader().feed(HEAD + b"1\r\nx\r\n" * 1_000)
        assert b"x" * 1_000 == events[1]
        assert 2 == len(events)


class TestTrailers:
    def test_read(self) -> None:
        """They come before the end, as they are."""
        fields = [(b"X", b"y"), (b"z", b""), (b"X", b"y z")]
        data = b"1\r\nh\r\n0\r\nX: y\r\nz:\r\nX:\ty z \r\n\r\n"
        assert [b"h", Trailers(fields), END] == body(data)

    @pytest.mark.parametrize(
        "name",
        [b"Host", b"Content-Length", b"Transfer-Encoding", b"transfer-encoding", b"CONNECTION"],
    )
    @pytest.mark.parametrize("value", [b"", b"5", b"chunked", b"identity"])
    def test_refused(self, name: bytes, value: bytes) -> None:
        """Framing and routing have been decided on by then (RFC 9110 §6.5.1)."""
        assert ["trailer_field"] == body(b"0\r\nX: y\r\n" + name + b": " + value + b"\r\n\r\n")


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, bytes]:
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=8))
    return b"".join(pieces), b"".join(map(chunk, pieces))


class TestFuzz:
    @given(data=chunked(), cuts=st.lists(st.integers(0, 30), max_size=10), more=st.binary())
    def test_written(self, data: tuple[bytes, bytes], cuts: list[int], more: bytes) -> None:
        """What was written is read, however it is cut."""
        content, encoded = data
        stream = HEAD + encoded + trailers([(b"X", b"y")]) + more
        chunks, at = [], 0
        for cut in cuts:
            chunks.append(stream[at : at + cut])
            at += cut
        outcome, rest = read_one(RequestReader, [*chunks, stream[at:]])
        expected = [content] if content else []
        assert [*expected, Trailers([(b"X", b"y")]), END] == outcome[1:]
        assert more == rest

    @given(
        data=st.lists(
            st.sampled_from(
                [
                    *(
                        b"0",
                        b"5",
                        b"a",
                        b"\r\n",
                        b"\r",
                        b"\n",
                        b";",
                        b"=",
                        b'"',
                        b"\\",
                        b" ",
                        b"\0",
                    ),
                    *(b"hello", b"0\r\n\r\n", b"5\r\nhello\r\n", b"X: y", b"\xff", b"-", b"\t"),
                ]
            ),
            max_size=12,
        ).map(b"".join)
    )
    @example(data=b"5;a\nhello\r\n0\r\n\r\n")
    @example(data=b"5\r\nhelloXX0\r\n\r\n")
    @example(data=LAST_CHUNK[:-2] + b"\n")
    def test_pieces(self, data: bytes) -> None:
        """One answer, whatever comes."""
        every_way(RequestReader, HEAD + data)
