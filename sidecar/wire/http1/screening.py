"""What a head has to look like, to the byte, before anything is read from it.

The grammar of RFC 9112 §2 to §5 without what it lets a recipient be lenient about. A
whole head is matched by one expression; where it doesn't match, or isn't whole yet, it
is judged line by line, to say what is wrong as soon as that is there. The first line
that is wrong decides, so the answer is the same in either way.
"""

from __future__ import annotations

import re
from typing import Protocol

from sidecar.wire.http1.errors import HttpMessageError, HttpMessageReason

__all__ = [
    "MAX_METHOD_BYTES",
    "FirstLine",
    "LineScreen",
    "RequestLine",
    "StatusLine",
    "request_head",
    "response_head",
    "trailer_section",
]

MAX_METHOD_BYTES = 32
"""The longest registered method has 17 (RFC 9110 §18.2)."""

# RFC 9110 §5.6.2 and §5.5 (obs-text is allowed: it can't end anything).
_TOKEN_CHARS = rb"!#$%&'*+.^_`|~0-9A-Za-z-"
_TEXT = rb"[^\x00-\x08\x0a-\x1f\x7f]*"
# Not only what RFC 3986 allows, as clients send some others raw; a fragment isn't theirs to send.
_TARGET = rb"[^\x00-\x20#\x7f]+"
_LINES = rb"((?:[%b]+:%b\r\n)*)\r\n" % (_TOKEN_CHARS, _TEXT)
# A reason phrase may be missing, its space with it, as many servers have it.
_STATUS = rb"([1-9][0-9][0-9])(?: (%b))?" % _TEXT

request_head = re.compile(
    rb"([%b]{1,%d}) (%b) HTTP/1\.([01])\r\n%b" % (_TOKEN_CHARS, MAX_METHOD_BYTES, _TARGET, _LINES)
).fullmatch
"""Match a whole head: method, target, minor version, the field lines."""

response_head = re.compile(rb"HTTP/1\.([01]) %b\r\n%b" % (_STATUS, _LINES)).fullmatch
"""Match a whole head: minor version, status, reason or None, the field lines."""

trailer_section = re.compile(_LINES).fullmatch
"""Match a whole trailer section: the field lines."""

_not_token = re.compile(rb"[^%b]" % _TOKEN_CHARS).search
_not_text = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_target_end = re.compile(rb"[ \r\n]").search
_versioned = re.compile(rb"([^ ]+) HTTP/([0-9]\.[0-9])").fullmatch
_target = re.compile(_TARGET).fullmatch
_status_version = re.compile(rb"HTTP/([0-9]\.[0-9]) ").match
_status_line = re.compile(rb"HTTP/1\.[01] %b" % _STATUS).fullmatch
_VERSIONS = (b"1.0", b"1.1")
_SCHEME = b"HTTP/"


class FirstLine(Protocol):
    """Judges the first line of a head, or what is there of it."""

    def judge(self, line: bytes) -> None:
        """Judge a line with its end.

        Raises:
            HttpMessageError: It is none.
        """

    def judge_start(self, start: bytes | bytearray, seen: int) -> None:
        """Judge the beginning of a line whose end is not there yet.

        Args:
            start: The line as far as it is there.
            seen: How much of it was there the last time.

        Raises:
            HttpMessageError: It is none, whatever follows.
        """


class LineScreen:
    """Judges a head or a trailer section line by line, as it arrives.

    Args:
        first: Judges the first line; None where all lines are fields.
        max_bytes: How long the section may be, its blank line included.
        max_fields: How many field lines it may have.
    """

    __slots__ = ("_fields", "_first", "_line", "_max_bytes", "_max_fields", "_searched")

    def __init__(self, first: FirstLine | None, max_bytes: int, max_fields: int) -> None:
        self._first = first
        self._max_bytes = max_bytes
        self._max_fields = max_fields
        self._fields = 0
        self._line = 0  # where the current line begins
        self._searched = 0

    def see(self, section: bytes | bytearray) -> None:
        """Judge what is new.

        Args:
            section: The section from its beginning, as far as it is there; not kept.

        Raises:
            HttpMessageError: It is none, whatever follows.
        """
        limit = min(len(section), self._max_bytes)
        while (end := section.find(b"\n", self._searched, limit)) >= 0:
            line = bytes(section[self._line : end + 1])
            self._line = self._searched = end + 1
            if self._first is not None:
                self._first.judge(line)
                self._first = None
            elif line == b"\r\n":
                return
            else:
                self._field(line)
        if self._first is not None:
            self._first.judge_start(section, self._searched)
        self._searched = limit
        if limit == self._max_bytes:
            raise HttpMessageError(HttpMessageReason.HEAD_TOO_LARGE)

    def _field(self, line: bytes) -> None:
        """Judge a field line (RFC 9112 §5)."""
        self._fields += 1
        if self._fields > self._max_fields:
            raise HttpMessageError(HttpMessageReason.TOO_MANY_FIELDS)
        line = _without_end(line)
        if line[:1] in (b" ", b"\t"):
            raise HttpMessageError(HttpMessageReason.FIELD_FOLDED)
        name, colon, value = line.partition(b":")
        if not colon or not name or _not_token(name):
            raise HttpMessageError(HttpMessageReason.FIELD_NAME)
        if _not_text(value):
            raise HttpMessageError(HttpMessageReason.FIELD_VALUE)


class RequestLine:
    """Judges request lines (RFC 9112 §3).

    Args:
        max_target_bytes: How long the target may be.
    """

    __slots__ = ("_max_target",)

    def __init__(self, max_target_bytes: int) -> None:
        self._max_target = max_target_bytes

    def judge(self, line: bytes) -> None:
        """See FirstLine."""
        start = _target_start(line)
        self._check_target_end(line, start)
        versioned = _versioned(_without_end(line), start)
        if versioned is None:
            raise HttpMessageError(HttpMessageReason.REQUEST_LINE)
        if versioned[2] not in _VERSIONS:
            raise HttpMessageError(HttpMessageReason.VERSION)
        if not _target(versioned[1]):
            raise HttpMessageError(HttpMessageReason.TARGET)

    def judge_start(self, start: bytes | bytearray, seen: int) -> None:
        """See FirstLine. Only where another byte could make a difference it looks again."""
        if seen <= MAX_METHOD_BYTES:
            _target_start(start)
        if self._max_target < len(start) and seen <= self._max_target + MAX_METHOD_BYTES + 1:
            self._check_target_end(start, _target_start(start))

    def _check_target_end(self, line: bytes | bytearray, start: int) -> None:
        """Judge a target's length, if there is enough of it."""
        end = start + self._max_target + 1
        if len(line) >= end and not _target_end(line, start, end):
            raise HttpMessageError(HttpMessageReason.TARGET_TOO_LONG)


def _target_start(line: bytes | bytearray) -> int:
    """Judge the method (RFC 9110 §9.1), or what is there of it.

    Returns:
        Where the target begins; the line's length if the method isn't at its end.
    """
    end = _not_token(line, 0, MAX_METHOD_BYTES + 1)
    if end is None:
        if len(line) > MAX_METHOD_BYTES:
            raise HttpMessageError(HttpMessageReason.METHOD_TOO_LONG)
        return len(line)
    if not end.start() or end[0] != b" ":
        raise HttpMessageError(HttpMessageReason.REQUEST_LINE)
    return end.end()


class StatusLine:
    """Judges status lines (RFC 9112 §4)."""

    __slots__ = ()

    def judge(self, line: bytes) -> None:
        """See FirstLine."""
        self.judge_start(line, 0)
        line = _without_end(line)
        version = _status_version(line)
        if version is not None and version[1] not in _VERSIONS:
            raise HttpMessageError(HttpMessageReason.VERSION)
        if not _status_line(line):
            raise HttpMessageError(HttpMessageReason.STATUS_LINE)

    def judge_start(self, start: bytes | bytearray, seen: int) -> None:
        """See FirstLine."""
        if seen < len(_SCHEME) and start[: len(_SCHEME)] != _SCHEME[: len(start)]:
            raise HttpMessageError(HttpMessageReason.STATUS_LINE)


def _without_end(line: bytes) -> bytes:
    """Return a line without its CR LF."""
    if not line.endswith(b"\r\n") or line.find(b"\r") != len(line) - 2:
        raise HttpMessageError(HttpMessageReason.LINE_END)
    return line[:-2]
