"""How an incremental reader is shown to give one answer, however its input is cut."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from enum import Enum
    from types import FrameType

    from _typeshed import TraceFunction

__all__ = ["Counting", "feed_all", "feed_every_way", "lines_run"]

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
TRAILING = (b"\x00", b"\x16\x03\x01\x00\x05", b"\r\n", b"Host: other.example\r\n\r\n", b"x" * 4096)


class WireError(Protocol):
    reason: Enum


class Reader(Protocol[T_co]):
    def feed(self, data: bytes, /) -> T_co | None: ...


def feed_all(reader: Reader[T], chunks: Iterable[bytes]) -> T | str | None:
    """Feed chunks; return the value, the error's reason, or None if more is needed.

    Once there is an outcome, all that follows must leave it as it is.
    """
    outcome: T | str | None = None
    for chunk in chunks:
        try:
            now: T | str | None = reader.feed(chunk)
        except Exception as error:  # noqa: BLE001 - what has no reason fails below
            now = _reason(error)
        assert outcome is None or now == outcome
        outcome = now
    return outcome


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if reason is None:
        raise error
    assert reason.value in str(error)
    return str(reason.value)


def feed_every_way(make: Callable[[], Reader[T]], data: bytes) -> T | str | None:
    """Feed data whole, byte by byte, cut in two anywhere, and with more behind it.

    Returns:
        The outcome, which is the same each time.
    """
    outcome = feed_all(make(), [data])
    assert outcome == feed_all(make(), _bytes(data)), "byte by byte"
    for at in range(1, len(data)):
        assert outcome == feed_all(make(), [data[:at], data[at:]]), f"cut at {at}"
    if outcome is not None:
        for more in TRAILING:
            assert outcome == feed_all(make(), [data + more]), "with more at once"
            assert outcome == feed_all(make(), [data, more, b""]), "with more later"
    return outcome


def _bytes(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


class Counting(bytearray):
    """A buffer that counts the bytes of itself that are looked through or copied."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_at = 0

    def find(self, sub: object, start: int = 0) -> int:  # type: ignore[override]
        """Count what is searched."""
        found = super().find(sub, start)  # type: ignore[arg-type]
        self.looked_at += (len(self) if found < 0 else found + 1) - start
        return found

    def __getitem__(self, index: object) -> object:  # type: ignore[override]
        got = super().__getitem__(index)  # type: ignore[call-overload]
        self.looked_at += 1 if isinstance(got, int) else len(got)
        return got


def lines_run(work: Callable[[], object]) -> int:
    """Return how many lines of Python are run by some work: its cost, without a clock."""
    count = 0

    def trace(_: FrameType, event: str, __: object) -> TraceFunction:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count
