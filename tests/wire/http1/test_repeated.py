from __future__ import annotations

from sidecar.wire.http1.reading import RequestReader
from sidecar.wire.http1.repeated import Repeated
from sidecar.wire.http1.writing import forwardable_lines


def test_keep() -> None:
    """Short sections without secrets are kept; no more than some of them."""
    repeated: Repeated[int] = Repeated()
    repeated.keep(b"A: 1\r\n", 1)
    repeated.keep(b"A: %b\r\n" % (b"x" * 1024), 2)
    repeated.keep(b"Authorization: Basic eDp5\r\n", 3)
    repeated.keep(b"proxy-authorization: Basic eDp5\r\n", 4)
    repeated.keep(b"Cookie: a=b\r\n", 5)
    repeated.keep(b"Set-Cookie: a=b\r\n", 6)
    assert {b"A: 1\r\n": 1} == repeated._kept
    for number in range(2000):
        repeated.keep(b"A: %d\r\n" % number, number)
    assert len(repeated._kept) <= 256
    assert 1999 == repeated.get(b"A: 1999\r\n")


def test_same_again() -> None:
    """A section that comes again says the same, whatever the request line is."""
    reader = RequestReader()
    section = b"Host: a\r\nConnection: close, X-A\r\nX-A: 1\r\nX-B: 2\r\nUpgrade: x\r\n\r\n"
    first = reader.feed(b"GET /1 HTTP/1.1\r\n" + section)[0]
    second = reader.feed(b"PUT /2 HTTP/1.1\r\n" + section)[0]
    third = reader.feed(b"GET /1 HTTP/1.1\r\n" + section)[0]
    assert first == third
    assert (b"PUT", b"/2") == (second.method, second.target)  # type: ignore[union-attr]
    for head in (first, second, third):
        assert b"X-B: 2\r\n" == forwardable_lines(head)  # type: ignore[arg-type]


def test_not_of_another_version() -> None:
    """HTTP/1.0 and CONNECT read the same section in their own way."""
    reader = RequestReader()
    section = b"Host: a\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
    new = reader.feed(b"GET / HTTP/1.1\r\n" + section)[0]
    old = reader.feed(b"GET / HTTP/1.0\r\n" + section)[0]
    assert (b"x", True) == (new.upgrade, new.keep_alive)  # type: ignore[union-attr]
    assert (None, False) == (old.upgrade, old.keep_alive)  # type: ignore[union-attr]
