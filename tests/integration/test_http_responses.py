"""What origins may send to fool a proxy, or its next client (CASES §5, M12).

A client either gets 502, or can tell that what it got isn't whole. Nothing more is asked on
that connection: the next request gets another, and its own answer.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from integration.netns import DEADLINE
from integration.origins import Origin
from integration.smuggling_stage import Answer, SmugglingStage, answers, smuggling_stage

from sidecar.addresses import SocketAddress
from sidecar.linux.sockopt import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.thorough

_OK = b"HTTP/1.1 200 OK\r\n"
_PAGE = b"a page of its own"
_GOOD = _OK + b"Content-Length: %d\r\n\r\n%b" % (len(_PAGE), _PAGE)
_FORGED = _OK + b"Content-Length: 6\r\n\r\nforged"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module", name="stage")
def _stage(_namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmugglingStage]:
    with smuggling_stage(tmp_path_factory.mktemp("responses")) as made:
        yield made


def _head(connection: socket.socket) -> bytes:
    """Read a request without content."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = connection.recv(65536)
        if not part:
            break
        head += part
    return head


class Scripted:
    """An origin that says one thing to its first connection's first request, and serves others.

    Args:
        says: To the first request; None to reset instead.
        holds: Whether it leaves the connection open afterwards.
        pieces: Whether it says it byte by byte, nearly.
        late: What it says on the same connection a moment later.

    Attributes:
        requests: What came on each connection.
        over: Set when the first connection has ended.
    """

    def __init__(
        self, says: bytes | None, *, holds: bool = True, pieces: bool = False, late: bytes = b""
    ) -> None:
        self._says = says
        self._holds = holds
        self._pieces = pieces
        self._late = late
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self.requests: list[list[bytes]] = []
        self.over = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        """Serve a connection."""
        with self._lock:
            mine: list[bytes] = []
            first = not self.requests
            self.requests.append(mine)
            self._connections.append(connection)
        try:
            self._serve(connection, mine, first=first)
        finally:
            if first:
                self.over.set()

    def _serve(self, connection: socket.socket, mine: list[bytes], *, first: bool) -> None:
        with suppress(ConnectionError):
            while head := _head(connection):
                mine.append(head)
                if not first or len(mine) > 1:
                    connection.sendall(_GOOD)
                    continue
                if self._says is None:
                    reset_on_close(connection)
                    return
                self._say(connection)
                if not self._holds:
                    return

    @contextmanager
    def at(self, stage: SmugglingStage, port: int) -> Iterator[None]:
        """Run it; in the end it closes what the proxy keeps."""
        with Origin(stage.namespace, SocketAddress("127.0.0.1", port), self):
            try:
                yield
            finally:
                for connection in self._connections:
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)

    def _say(self, connection: socket.socket) -> None:
        says = self._says
        assert says is not None
        if self._pieces:
            cut = max(1, len(says) // 23)
            for start in range(0, len(says), cut):
                connection.sendall(says[start : start + cut])
                time.sleep(0.001)
        else:
            connection.sendall(says)
        if self._late:
            time.sleep(0.03)
            connection.sendall(self._late)


def _ask(stage: SmugglingStage, port: int, method: str = "GET", fields: str = "") -> list[Answer]:
    host = f"scripted.test:{port}"
    head = f"{method} http://{host}/{method} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n"
    return answers(stage.tell(head.encode(), finish=True), head=method == "HEAD")


def _faulty(
    stage: SmugglingStage,
    port: int,
    script: Scripted,
    *,
    cut: bool = False,
    method: str = "GET",
    fields: str = "",
) -> None:
    """See that a response is refused, or cut off, and its connection not used again.

    Args:
        stage: Where.
        port: The origin's.
        script: What it says.
        cut: Whether the head is beyond reproach, so that it may have been passed on.
        method: Of the request.
        fields: Of the request.
    """
    with script.at(stage, port):
        *interim, told = _ask(stage, port, method, fields)
        assert all(each.status < 200 for each in interim)
        if cut and told.status == 200:
            assert not told.whole, told
        else:
            assert (502, True) == (told.status, told.whole), told
        assert b"forged" not in told.body
        # Whoever comes next gets what it asked for, from another connection.
        (served,) = _ask(stage, port)
        assert (200, _PAGE, True) == (served.status, served.body, served.whole)
        assert [1, 1] == [len(requests) for requests in script.requests]


# Where not even a head is one.
_HEADS: dict[str, bytes] = {
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "http09": b"<html>hello</html>\r\n\r\n",
    "icy": b"ICY 200 OK\r\n\r\n",
    "tls": b"\x15\x03\x03\x00\x02\x02\x46",
    "blank-line-first": b"\r\n" + _FORGED,
    "lf-first": b"\n" + _FORGED,
    "lf-lines": _FORGED.replace(b"\r\n", b"\n"),
    "lf-behind-the-line": b"HTTP/1.1 200 OK\nContent-Length: 6\r\n\r\nforged",
    "cr-in-the-line": b"HTTP/1.1 200 OK\rX: 1\r\nContent-Length: 6\r\n\r\nforged",
    "nul-in-the-line": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 6\r\n\r\nforged",
    "version-2": b"HTTP/2.0 200 OK\r\nContent-Length: 6\r\n\r\nforged",
    "version-long": b"HTTP/1.10 200 OK\r\nContent-Length: 6\r\n\r\nforged",
    "version-small": b"http/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
    "status-short": b"HTTP/1.1 20 OK\r\nContent-Length: 6\r\n\r\nforged",
    "status-long": b"HTTP/1.1 2000 OK\r\nContent-Length: 6\r\n\r\nforged",
    "status-zeros": b"HTTP/1.1 000 OK\r\nContent-Length: 6\r\n\r\nforged",
    "status-sign": b"HTTP/1.1 +20 OK\r\nContent-Length: 6\r\n\r\nforged",
    "status-none": b"HTTP/1.1 OK\r\nContent-Length: 6\r\n\r\nforged",
    "two-blanks": b"HTTP/1.1  200 OK\r\nContent-Length: 6\r\n\r\nforged",
    "folded": _OK + b"X: 1\r\n 2\r\nContent-Length: 6\r\n\r\nforged",
    "blank-before-colon": _OK + b"Content-Length : 6\r\n\r\nforged",
    "empty-name": _OK + b": 1\r\nContent-Length: 6\r\n\r\nforged",
    "no-colon": _OK + b"X\r\nContent-Length: 6\r\n\r\nforged",
    "nul": _OK + b"X: \x00\r\nContent-Length: 6\r\n\r\nforged",
    "cr": _OK + b"X: 1\rSet-Cookie: a=b\r\nContent-Length: 6\r\n\r\nforged",
    "lf": _OK + b"X: 1\nSet-Cookie: a=b\r\nContent-Length: 6\r\n\r\nforged",
    "cl-twice": _OK + b"Content-Length: 6\r\n" * 2 + b"\r\nforged",
    "cl-two": _OK + b"Content-Length: 6\r\nContent-Length: 3\r\n\r\nforged",
    "cl-list": _OK + b"Content-Length: 6, 6\r\n\r\nforged",
    "cl-list-of-two": _OK + b"Content-Length: 6,3\r\n\r\nforged",
    "cl-plus": _OK + b"Content-Length: +6\r\n\r\nforged",
    "cl-minus": _OK + b"Content-Length: -6\r\n\r\nforged",
    "cl-hex": _OK + b"Content-Length: 0x6\r\n\r\nforged",
    "cl-empty": _OK + b"Content-Length:\r\n\r\nforged",
    "cl-overflow": _OK + b"Content-Length: 18446744073709551622\r\n\r\nforged",
    "te-cl": _OK
    + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n6\r\nforged\r\n0\r\n\r\n",
    "cl-te": _OK
    + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nforged\r\n0\r\n\r\n",
    "te-twice": _OK + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n6\r\nforged\r\n0\r\n\r\n",
    "te-x": _OK + b"Transfer-Encoding: xchunked\r\n\r\n6\r\nforged\r\n0\r\n\r\n",
    "te-vt": _OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n6\r\nforged\r\n0\r\n\r\n",
    "te-list": _OK + b"Transfer-Encoding: chunked, identity\r\n\r\n6\r\nforged\r\n0\r\n\r\n",
    "te-gzip": _OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n6\r\nforged\r\n0\r\n\r\n",
    "te-empty": _OK + b"Transfer-Encoding:\r\n\r\nforged",
    "te-old": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nforged\r\n0\r\n\r\n",
    "many-fields": _OK + b"X: 1\r\n" * 500 + b"Content-Length: 6\r\n\r\nforged",
    "large": _OK + b"X: " + b"x" * 100_000 + b"\r\nContent-Length: 6\r\n\r\nforged",
    "long-reason": b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\nContent-Length: 6\r\n\r\nforged",
    "switching": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\n\r\n" + _FORGED,
    "continue-flood": b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000 + _FORGED,
    "hints-flood": (b"HTTP/1.1 103 Early Hints\r\nX: " + b"x" * 60_000 + b"\r\n\r\n") * 100
    + _FORGED,
    "interim-unknown-flood": b"HTTP/1.1 199 X\r\n\r\n" * 1000 + _FORGED,
}


@pytest.mark.parametrize("says", _HEADS.values(), ids=_HEADS)
def test_heads(stage: SmugglingStage, port: int, says: bytes) -> None:
    """A head that is none, or in doubt about where its content ends, is 502."""
    _faulty(stage, port, Scripted(says))


@pytest.mark.parametrize("name", ["cl-two", "te-cl", "folded", "status-long", "hints-flood"])
def test_heads_in_pieces(stage: SmugglingStage, port: int, name: str) -> None:
    """However it arrives."""
    _faulty(stage, port, Scripted(_HEADS[name], pieces=True))


@pytest.mark.parametrize(
    "says",
    [None, b"", b"H", b"HTTP/1.1 20", _OK, _OK + b"X: 1\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"],
)
def test_no_head(stage: SmugglingStage, port: int, says: bytes | None) -> None:
    """An origin that closes before it has answered is 502."""
    _faulty(stage, port, Scripted(says, holds=False))


# Where the head is good, and what follows isn't: (what, whether the origin leaves it open).
_BODIES: dict[str, tuple[bytes, bool]] = {
    "cl-short": (_OK + b"Content-Length: 60\r\n\r\nhello", False),
    "cl-nothing": (_OK + b"Content-Length: 60\r\n\r\n", False),
    "chunk-short": (_CHUNKED + b"60\r\nhello", False),
    "chunk-none": (_CHUNKED, False),
    "chunk-no-last": (_CHUNKED + b"5\r\nhello\r\n", False),
    "chunk-last-cut": (_CHUNKED + b"5\r\nhello\r\n0\r\n", False),
    "chunk-minus": (_CHUNKED + b"-1\r\n" + _FORGED, True),
    "chunk-hex": (_CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n" + _FORGED, True),
    "chunk-blank": (_CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n" + _FORGED, True),
    "chunk-lf": (_CHUNKED + b"5\nhello\n0\n\n" + _FORGED, True),
    "chunk-no-end": (_CHUNKED + b"5\r\nhello0\r\n\r\n" + _FORGED, True),
    "chunk-overflow": (_CHUNKED + b"10000000000000005\r\nhello\r\n0\r\n\r\n" + _FORGED, True),
    "chunk-later": (_CHUNKED + b"5\r\nhello\r\ng\r\n" + _FORGED, True),
    "chunk-extension": (_CHUNKED + b"5;" + b"x" * 100_000 + b"\r\nhello\r\n0\r\n\r\n", True),
    "chunk-extension-lf": (_CHUNKED + b"5;a\nhello\r\n0\r\n\r\n" + _FORGED, True),
    "trailers-endless": (_CHUNKED + b"0\r\n" + b"X: 1\r\n" * 100_000, True),
    "trailer-length": (_CHUNKED + b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n" + _FORGED, True),
    "trailer-bad": (_CHUNKED + b"5\r\nhello\r\n0\r\nX : 1\r\n\r\n" + _FORGED, True),
}


# Bytes that come at once over loopback.
_ONE_PIECE = 1 << 13


@pytest.mark.parametrize(("says", "holds"), _BODIES.values(), ids=_BODIES)
@pytest.mark.parametrize("pieces", [False, True])
def test_bodies(stage: SmugglingStage, port: int, says: bytes, holds: bool, pieces: bool) -> None:
    """A response that is wrong after its head never looks whole.

    What is wrong in the first piece that is read is not passed on at all.
    """
    late = pieces or not holds or len(says) > _ONE_PIECE
    _faulty(stage, port, Scripted(says, holds=holds, pieces=pieces), cut=late)


@pytest.mark.parametrize("name", ["cl-short", "chunk-short", "chunk-minus"])
def test_bodies_for_old_clients(stage: SmugglingStage, port: int, name: str) -> None:
    """Nor to a client of HTTP/1.0, to whom only a reset can tell."""
    says, holds = _BODIES[name]
    script = Scripted(says, holds=holds, pieces=True)
    host = f"scripted.test:{port}"
    with (
        script.at(stage, port),
        stage.connect() as client,
    ):
        client.sendall(f"GET http://{host}/ HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        got, was_reset = b"", False
        try:
            while part := client.recv(65536):
                got += part
        except ConnectionResetError:
            was_reset = True
        (told,) = answers(got) or [Answer(0, b"", b"", whole=False)]
        assert was_reset or not told.whole or told.status == 502, got


# Where a whole response is followed by another one: (first, method, request's fields).
_TWO: dict[str, tuple[bytes, str, str]] = {
    "length": (_GOOD, "GET", ""),
    "chunked": (_CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(_PAGE), _PAGE), "GET", ""),
    "no-content": (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", ""),
    "no-content-but-length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 44\r\n\r\n", "GET", ""),
    "not-modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 44\r\n\r\n", "GET", ""),
    "head": (_OK + b"Content-Length: 44\r\n\r\n", "HEAD", ""),
    "head-chunked": (_CHUNKED, "HEAD", ""),
    "empty": (_OK + b"Content-Length: 0\r\n\r\n", "GET", ""),
}


@pytest.mark.parametrize(("first", "method", "fields"), _TWO.values(), ids=_TWO)
@pytest.mark.parametrize("when", ["at once", "in pieces", "late"])
def test_two_responses(
    stage: SmugglingStage, port: int, first: bytes, method: str, fields: str, when: str
) -> None:
    """A second response to one request is nobody's, whenever it comes."""
    late = when == "late"
    script = Scripted(
        first if late else first + _FORGED,
        pieces=when == "in pieces",
        late=_FORGED if late else b"",
    )
    with script.at(stage, port):
        (told,) = _ask(stage, port, method, fields)
        assert told.whole
        assert int(first[9:12]) == told.status
        assert b"forged" not in told.body + told.head
        if when != "at once":
            # Not before the second has come, and the proxy has had enough of who sent it: an
            # answer to the next request could not be told from it.
            assert script.over.wait(DEADLINE)
        (served,) = _ask(stage, port)
        assert (200, _PAGE, True) == (served.status, served.body, served.whole)


@pytest.mark.parametrize("number", range(3))
def test_race_for_a_pooled_connection(stage: SmugglingStage, port: int, number: int) -> None:
    """A second response that comes just as the next request goes out answers nobody, or 502."""
    script = Scripted(_GOOD, late=_FORGED)
    with script.at(stage, port):
        (told,) = _ask(stage, port)
        assert _PAGE == told.body
        time.sleep(0.028 + number / 1000)
        (served,) = _ask(stage, port)
        # What was on its way already can't be told from an answer to it. That it is only
        # ever one, and that the connection ends with it, is what can be had.
        assert served.whole
        last = [_ask(stage, port)[0].body for _ in range(3)]
        assert [_PAGE] * 3 == last


def test_splitting(stage: SmugglingStage, port: int) -> None:
    """What an origin reflects stays one field, and one response."""
    reflected = _OK + b"Location: /%0d%0aSet-Cookie:%20a=b\r\nContent-Length: 0\r\n\r\n"
    with Scripted(reflected).at(stage, port):
        (told,) = _ask(stage, port)
        assert b"/%0d%0aSet-Cookie:%20a=b" == told.field(b"Location")
        assert told.field(b"Set-Cookie") is None


def test_hop_by_hop(stage: SmugglingStage, port: int) -> None:
    """What an origin tells its neighbour is not told to ours, however it is nominated."""
    says = (
        _OK + b"Connection: X-Secret, Content-Length, Via\r\nX-Secret: secret\r\n"
        b"Keep-Alive: timeout=1\r\nProxy-Authenticate: Basic realm=secret\r\n"
        b"Proxy-Authentication-Info: secret\r\nContent-Length: 2\r\n\r\nhi"
    )
    with Scripted(says).at(stage, port):
        (told,) = _ask(stage, port)
        assert (200, b"hi") == (told.status, told.body)
        assert b"secret" not in told.head


def test_to_the_end_of_the_connection(stage: SmugglingStage, port: int) -> None:
    """A response without a length is all there is; what looks like a second is a part of it."""
    says = b"HTTP/1.0 200 OK\r\n\r\nhello" + _FORGED
    script = Scripted(says, holds=False)
    with script.at(stage, port):
        (told,) = _ask(stage, port)
        assert (200, b"hello" + _FORGED, True) == (told.status, told.body, told.whole)
        (served,) = _ask(stage, port)
        assert _PAGE == served.body
        assert [1, 1] == [len(requests) for requests in script.requests]


def test_early_answer(stage: SmugglingStage, port: int) -> None:
    """An answer before the request's end is passed on, and nothing is left to be misread."""
    host = f"scripted.test:{port}"
    script = Scripted(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n" + _FORGED)
    with (
        script.at(stage, port),
        stage.connect() as client,
    ):
        client.settimeout(DEADLINE)
        head = f"POST http://{host}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\n"
        client.sendall(head.encode())
        got = b""
        with suppress(ConnectionResetError):
            while part := client.recv(65536):
                got += part
        (told,) = answers(got)
        assert 413 == told.status
        (served,) = _ask(stage, port)
        assert _PAGE == served.body
