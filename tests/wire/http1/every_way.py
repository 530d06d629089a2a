"""How the readers of HTTP messages are shown to give one answer, however their input is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sidecar.wire.http1.errors import HttpMessageError
from sidecar.wire.http1.messages import END, RequestHead, ResponseHead
from sidecar.wire.http1.reading import RequestReader, ResponseReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sidecar.wire.http1.messages import Event

__all__ = [
    "every_way",
    "head_of",
    "read_all",
    "read_one",
    "request",
    "requests_every_way",
    "response",
    "response_reader",
]

Reader = RequestReader | ResponseReader
TRAILING = (b"\x00", b"\r\n", b"\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\n", b"x" * 4096)


def request(start: bytes, *lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([start, *lines, b"", body])


response = request


def response_reader(method: bytes = b"GET") -> Callable[[], ResponseReader]:
    def make() -> ResponseReader:
        reader = ResponseReader()
        reader.expect(method)
        return reader

    return make


def _merge(outcome: list[Event | str], events: list[Event]) -> None:
    """Append events; pieces of a body become one."""
    for event in events:
        assert event != b""
        if isinstance(event, bytes) and outcome and isinstance(outcome[-1], bytes):
            outcome[-1] += event
        else:
            outcome.append(event)


def _feed(reader: Reader, data: bytes, outcome: list[Event | str]) -> bool:
    """Feed; return whether a message is at its end."""
    try:
        events = reader.feed(data)
    except HttpMessageError:
        assert reader.error is not None
        return False
    _merge(outcome, events)
    return bool(events) and events[-1] is END and not _interim(outcome)


def _interim(outcome: list[Event | str]) -> bool:
    head = outcome[-2]
    return isinstance(head, ResponseHead) and head.interim


def _error(reader: Reader, outcome: list[Event | str]) -> None:
    """Append the reason of an error, which is there for ever."""
    if reader.error is not None:
        outcome.append(reader.error.reason.value)
        for data in (b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"):
            with pytest.raises(HttpMessageError, match=f": {reader.error.reason.value}$"):
                reader.feed(data)


def read_one(
    make: Callable[[], Reader], chunks: Iterable[bytes]
) -> tuple[list[Event | str], bytes]:
    """Read one message, or up to an error; return its events and what is behind it."""
    reader = make()
    outcome: list[Event | str] = []
    chunks = iter(chunks)
    for chunk in chunks:
        if _feed(reader, chunk, outcome):
            return outcome, reader.rest() + b"".join(chunks)
    _error(reader, outcome)
    return outcome, b""


def read_all(make: Callable[[], Reader], chunks: Iterable[bytes]) -> list[Event | str]:
    """Read messages as long as there are any, or up to an error."""
    reader = make()
    outcome: list[Event | str] = []
    for chunk in chunks:
        more = chunk
        while _feed(reader, more, outcome):
            more = b""
    _error(reader, outcome)
    return outcome


def _bytes(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


def every_way(make: Callable[[], Reader], data: bytes) -> list[Event | str]:
    """Read a message whole, byte by byte, cut in two anywhere, and with more behind it.

    Returns:
        Its events, with the body in one piece, or those before an error and its reason;
        the same each time.
    """
    outcome, rest = read_one(make, [data])
    assert (outcome, rest) == read_one(make, _bytes(data)), "byte by byte"
    for at in range(1, len(data)):
        assert (outcome, rest) == read_one(make, [data[:at], data[at:]]), f"cut at {at}"
    if outcome and (outcome[-1] is END or isinstance(outcome[-1], str)):
        for more in TRAILING:
            behind = rest + more if outcome[-1] is END else b""
            assert (outcome, behind) == read_one(make, [data + more]), "with more at once"
            assert (outcome, behind) == read_one(make, [data, more]), "with more later"
    return outcome


def requests_every_way(data: bytes) -> list[Event | str]:
    """Read pipelined requests whole, byte by byte and cut in two anywhere."""
    outcome = read_all(RequestReader, [data])
    assert outcome == read_all(RequestReader, _bytes(data)), "byte by byte"
    for at in range(1, len(data)):
        assert outcome == read_all(RequestReader, [data[:at], data[at:]]), f"cut at {at}"
    return outcome


def head_of(outcome: list[Event | str]) -> RequestHead:
    """Return the head of a request that was read to its end."""
    head = outcome[0]
    assert isinstance(head, RequestHead), outcome
    assert outcome[-1] is END, outcome
    return head
