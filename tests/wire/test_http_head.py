from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.feeding import Counting, feed_all, feed_every_way, lines_run

from sidecar.wire.http_head import (
    MAX_HEAD_BYTES,
    MAX_HEAD_FIELDS,
    HttpHead,
    HttpHeadError,
    HttpHeadReader,
    HttpHeadReason,
)

REASONS = {reason.value for reason in HttpHeadReason}
CURL = b"GET /x?y HTTP/1.1\r\nHost: a.example:8080\r\nUser-Agent: curl/7\r\nAccept: */*\r\n\r\n"


def outcome(data: bytes) -> HttpHead | str | None:
    return feed_all(HttpHeadReader(), [data])


def host(data: bytes) -> bytes | None:
    value = feed_every_way(HttpHeadReader, data)
    assert isinstance(value, HttpHead), value
    return value.host


def get(target: bytes, *lines: bytes, version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"GET " + target + b" HTTP/" + version, *lines, b"", b""])


class TestHost:
    def test_facts(self) -> None:
        """Method, version and Host are as sent, and the size is the head's."""
        reader = HttpHeadReader()
        assert HttpHead(b"GET", 1, b"a.example:8080") == reader.feed(CURL + b"body")
        assert len(CURL) == reader.size

    @pytest.mark.parametrize(
        "line",
        [b"Host: a.example", b"host:a.example", b"HOST:\t a.example \t", b"hOsT:a.example\t"],
    )
    def test_spelling(self, line: bytes) -> None:
        """The field's name has no case, and its value no white space around it."""
        assert b"a.example" == host(get(b"/", line))

    @pytest.mark.parametrize(
        "value", [b"a.example:80", b"[::1]:8080", b"192.0.2.1", b"a b", b"a,b", b"\xff", b"A."]
    )
    def test_verbatim(self, value: bytes) -> None:
        """Whether it is an authority is for others to say: they get it as it is."""
        assert value == host(get(b"/", b"Host: " + value))

    def test_old(self) -> None:
        """HTTP/1.0 needs no Host."""
        assert host(get(b"/", version=b"1.0")) is None
        assert b"a.example" == host(get(b"/", b"Host: a.example", version=b"1.0"))

    @pytest.mark.parametrize(
        ("lines", "reason"),
        [
            ([], "host_missing"),
            ([b"X-Host: a.example"], "host_missing"),
            ([b"Host:"], "host_empty"),
            ([b"Host: \t "], "host_empty"),
            ([b"Host: a.example", b"Host: b.example"], "host_duplicate"),
            ([b"Host: a.example", b"host: a.example"], "host_duplicate"),
            ([b"Host: a.example", b"X: y", b"HOST:"], "host_duplicate"),
            ([b"Host:", b"Host: a.example"], "host_duplicate"),
        ],
    )
    def test_refused(self, lines: list[bytes], reason: str) -> None:
        """CASES M8: there is one Host, and it says something."""
        assert reason == feed_every_way(HttpHeadReader, get(b"/", *lines))


class TestTarget:
    @pytest.mark.parametrize(
        ("target", "line", "expected"),
        [
            (b"http://a.example/x", b"a.example", b"a.example"),
            (b"http://A.Example", b"a.example:80", b"A.Example"),
            (b"HTTP://a.example:80?q", b"a.example", b"a.example:80"),
            (b"http://a.example:/", b"a.example", b"a.example:"),
            (b"https://a.example", b"a.example:443", b"a.example"),
            (b"ftp://a.example:21/", b"a.example:21", b"a.example:21"),
            (b"http://[::1]:8080/", b"[::1]:8080", b"[::1]:8080"),
            (b"http://[::1]/", b"[::1]", b"[::1]"),
            (b"/http://b.example/", b"a.example", b"a.example"),
            (b"//b.example/", b"a.example", b"a.example"),
            ("/é".encode(), b"a.example", b"a.example"),
        ],
    )
    def test_agreeing(self, target: bytes, line: bytes, expected: bytes) -> None:
        """A target's authority is given as sent, where Host means the same."""
        assert expected == host(get(target, b"Host: " + line))

    @pytest.mark.parametrize(
        ("target", "line"),
        [
            (b"http://a.example/", b"b.example"),
            (b"http://a.example/", b"a.example:8080"),
            (b"http://a.example:8080/", b"a.example"),
            (b"https://a.example/", b"a.example:80"),
            (b"http://a.example./", b"a.example"),
            (b"http://[::1]/", b"[::2]"),
        ],
    )
    def test_disagreeing(self, target: bytes, line: bytes) -> None:
        """CASES S5, M8: two authorities in one request are an error of its own."""
        request = get(target, b"Host: " + line)
        assert "host_mismatch" == feed_every_way(HttpHeadReader, request)

    def test_old(self) -> None:
        """Without a Host the target's authority stands alone."""
        assert b"a.example" == host(get(b"http://a.example/", version=b"1.0"))

    @pytest.mark.parametrize("line", [b"a.example:443", b"a.example", b"A.EXAMPLE:443"])
    def test_connect(self, line: bytes) -> None:
        """CONNECT names an authority, whose port Host may leave out."""
        head = b"CONNECT a.example:443 HTTP/1.1\r\nHost: " + line + b"\r\n\r\n"
        assert HttpHead(b"CONNECT", 1, b"a.example:443", to_proxy=True) == feed_every_way(
            HttpHeadReader, head
        )

    @pytest.mark.parametrize("line", [b"a.example:80", b"b.example", b"b.example:443"])
    def test_connect_disagreeing(self, line: bytes) -> None:
        """CONNECT to one authority with the Host of another is an error."""
        head = b"CONNECT a.example:443 HTTP/1.1\r\nHost: " + line + b"\r\n\r\n"
        assert "host_mismatch" == outcome(head)

    def test_asterisk(self) -> None:
        """OPTIONS has a form of its own."""
        head = b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n"
        assert HttpHead(b"OPTIONS", 1, b"a.example") == feed_every_way(HttpHeadReader, head)

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"GET *", "target"),
            (b"GET a.example", "target"),
            (b"GET a.example:80", "target"),
            (b"GET mailto:a@b.example", "target"),
            (b"GET http:a.example", "target"),
            (b"GET 1http://a.example/", "target"),
            (b"GET http://b.example@a.example/", "target"),
            (b"GET http://a.example\\@b.example/", "target"),
            (b"GET http://a.example\\.b.example", "target"),
            (b"GET http:///x", "host_empty"),
            (b"GET http://", "host_empty"),
            (b"GET http://:80/", "host_mismatch"),
            (b"CONNECT /", "target"),
            (b"CONNECT http://a.example/", "target"),
            (b"CONNECT u@a.example:443", "target"),
            (b"GET  /", "target"),
            (b"GET / /", "target"),
            (b"GET /\tx", "target"),
            (b"GET /\0", "target"),
            (b"GET /\x7f", "target"),
            (b"GET ", "target"),
        ],
    )
    def test_refused(self, line: bytes, reason: str) -> None:
        """A target that can be read in two ways is not read."""
        head = line + b" HTTP/1.1\r\nHost: a.example\r\n\r\n"
        assert reason == feed_every_way(HttpHeadReader, head)


class TestLines:
    """CASES M4."""

    @pytest.mark.parametrize(
        ("head", "reason"),
        [
            (b"GET / HTTP/1.1\nHost: a\r\n\r\n", "line_end"),
            (b"GET / HTTP/1.1\r\nHost: a\n\r\n", "line_end"),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\n", "line_end"),
            (b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", "line_end"),
            (b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", "line_end"),
            (b"GET / HTTP/1.1\r\nX: y\rHost: a\r\n\r\n", "line_end"),
            (b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", "line_end"),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n", "line_end"),
            (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", "field_name"),
            (b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", "field_name"),
            (b"GET / HTTP/1.1\r\n: a\r\n\r\n", "field_name"),
            (b"GET / HTTP/1.1\r\nHost\r\n\r\n", "field_name"),
            (b"GET / HTTP/1.1\r\nHo\0st: a\r\n\r\n", "field_name"),
            (b"GET / HTTP/1.1\r\nH\xf6st: a\r\n\r\n", "field_name"),
            (b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", "field_value"),
            (b"GET / HTTP/1.1\r\nX: \x0b\r\nHost: a\r\n\r\n", "field_value"),
            (b"GET / HTTP/1.1\r\nX: \x7f\r\nHost: a\r\n\r\n", "field_value"),
            (b"GET / HTTP/1.1\r\nX: y\r\n Host: a\r\n\r\n", "field_folded"),
            (b"GET / HTTP/1.1\r\n\tX: y\r\nHost: a\r\n\r\n", "field_folded"),
            (b"GET / HTTP/1.1\r\nHost: a\r\n \r\n\r\n", "field_folded"),
        ],
    )
    def test_refused(self, head: bytes, reason: str) -> None:
        """What two readers split into different lines, or fields, is an error."""
        assert reason == feed_every_way(HttpHeadReader, head)

    @pytest.mark.parametrize(
        "line", [b"X:", b"X: \t", b"X: a\tb", b"X: \xe9", b"X: a: b", b"!#: y"]
    )
    def test_allowed(self, line: bytes) -> None:
        """Values may be empty, and hold tabs, colons and bytes above ASCII."""
        assert b"a" == host(get(b"/", line, b"Host: a"))


class TestNotHttp:
    @pytest.mark.parametrize(
        ("data", "bytes_needed"),
        [
            (b"\x16\x03\x01\x02\x00", 1),
            (b"\r\nGET / HTTP/1.1\r\n", 1),
            (b" GET / HTTP/1.1\r\n", 1),
            (b"\0", 1),
            (b"{}", None),
            (b"SSH-2.0-OpenSSH_9.2\r\n", 20),
            (b"SSH-2.0-OpenSSH_9.2 Debian\r\n", 28),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", 36),
            (b"EHLO a.example\r\n", 16),
            (b"QUIT\r\n", 5),
            (b"QUIT\n", 5),
            (b"a001 LOGIN x y\r\n", 16),
            (b"GET /\r\n", 7),
            (b"GET / HTTP/1.1 \r\n", 17),
            (b"GET / http/1.1\r\n", 16),
            (b"GET / HTTP/1.10\r\n", 17),
            (b"GET\t/ HTTP/1.1\r\n", 4),
            (b"x" * 33, 33),
        ],
    )
    def test_first_bytes(self, data: bytes, bytes_needed: int | None) -> None:
        """Told by the first byte that no method has, or at the first line's end."""
        if bytes_needed is None:
            bytes_needed = 1
            data = b"{" + data
        assert "not_http" == feed_every_way(HttpHeadReader, data)
        assert outcome(data[: bytes_needed - 1]) is None
        assert "not_http" == outcome(data[:bytes_needed])

    @pytest.mark.parametrize(
        "line", [b"PRI * HTTP/2.0", b"GET / HTTP/2.0", b"GET / HTTP/1.2", b"GET / HTTP/0.9"]
    )
    def test_version(self, line: bytes) -> None:
        """Other versions of HTTP are known as such."""
        assert "version" == feed_every_way(HttpHeadReader, line + b"\r\n\r\nSM\r\n\r\n")

    def test_nothing(self) -> None:
        """No bytes need more."""
        assert outcome(b"") is None


class TestLimits:
    def test_fields(self) -> None:
        """100 fields are read, the 101st is refused."""
        lines = [b"X: y"] * (MAX_HEAD_FIELDS - 1)
        assert b"a" == host(get(b"/", *lines, b"Host: a"))
        assert "too_many_fields" == outcome(get(b"/", *lines, b"Host: a", b"X: y")[:-2])

    def test_size(self) -> None:
        """64 KiB are read; with more, the 64 KiB'th byte is refused."""
        room = MAX_HEAD_BYTES - len(get(b"/", b"Host: a", b"X: "))
        data = get(b"/", b"Host: a", b"X: " + b"x" * room)
        assert MAX_HEAD_BYTES == len(data)
        assert isinstance(outcome(data), HttpHead)
        assert isinstance(feed_all(HttpHeadReader(), [data[:-1], data[-1:]]), HttpHead)
        over = get(b"/", b"Host: a", b"X: x" + b"x" * room)
        assert outcome(over[: MAX_HEAD_BYTES - 1]) is None
        assert "too_large" == outcome(over[:MAX_HEAD_BYTES])
        assert "too_large" == outcome(over)
        assert "too_large" == outcome(get(b"/" + b"x" * MAX_HEAD_BYTES, b"Host: a"))

    def test_linear(self) -> None:
        """Work grows as the bytes do, byte by byte in one line and in many."""

        def work(data: bytes) -> tuple[int, int]:
            reader = HttpHeadReader()
            counted = reader._buffer = Counting()
            lines = lines_run(
                lambda: feed_all(reader, (data[at : at + 1] for at in range(len(data))))
            )
            return lines, counted.looked_at

        for field in (b"X: " + b"x" * 5_000, b"\r\n".join([b"X: " + b"x" * 50] * 90)):
            data = get(b"/", field, b"Host: a")
            lines, looked_at = work(data)
            half_lines, _ = work(data[: len(data) // 2])
            assert lines < 2.2 * half_lines
            assert looked_at < 3 * len(data)  # searched once, copied once

    def test_nothing_kept(self) -> None:
        """Neither an error nor a head keeps the bytes."""
        for data in (CURL, b"\x16"):
            reader = HttpHeadReader()
            feed_all(reader, [data])
            assert not reader._buffer


class TestErrors:
    def test_lasting(self) -> None:
        """An error is the answer for ever."""
        reader = HttpHeadReader()
        for data in (b"\0", b"", CURL):
            with pytest.raises(HttpHeadError, match="not_http"):
                reader.feed(data)

    @pytest.mark.parametrize("reason", list(HttpHeadReason))
    def test_status(self, reason: HttpHeadReason) -> None:
        """Each error knows the status it deserves, unless nobody there would understand it."""
        status = HttpHeadError(reason).status
        assert (reason is HttpHeadReason.NOT_HTTP) == (status is None)
        assert reason.value in str(HttpHeadError(reason))


pieces = st.lists(
    st.sampled_from(
        [
            *(b"GET", b" ", b"/", b"HTTP/1.1", b"\r\n", b"\r", b"\n", b"Host", b":", b"a.example"),
            *(b"\0", b"\t", b"http://b.example", b"X", b"\r\n\r\n", b"Host: a.example\r\n"),
            b"\xff",
        ]
    ),
    max_size=12,
).map(b"".join)


class TestFuzz:
    @staticmethod
    def check(data: bytes, cuts: list[int]) -> None:
        """Only documented outcomes, and the same one in pieces."""
        whole = outcome(data)
        assert whole is None or isinstance(whole, HttpHead) or whole in REASONS
        chunks, at = [], 0
        for cut in cuts:
            chunks.append(data[at : at + cut])
            at += cut
        assert whole == feed_all(HttpHeadReader(), [*chunks, data[at:]])

    @given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 20)))
    def test_bytes(self, data: bytes, cuts: list[int]) -> None:
        """Of arbitrary bytes."""
        self.check(data, cuts)

    @given(data=pieces, cuts=st.lists(st.integers(0, 20)))
    def test_pieces(self, data: bytes, cuts: list[int]) -> None:
        """Of the parts of a request in any order."""
        self.check(data, cuts)
        self.check(b"GET / HTTP/1.1\r\n" + data, cuts)

    @given(where=st.integers(0, len(CURL)), removed=st.integers(0, 3), put=pieces)
    def test_mutated(self, where: int, removed: int, put: bytes) -> None:
        """Of a request with something changed."""
        self.check(CURL[:where] + put + CURL[where + removed :], [3, 5, 7])
