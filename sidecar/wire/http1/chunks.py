"""Where a chunked body is in a stream, and what is behind it (RFC 9112 §7.1).

Read here rather than by llhttp: httptools doesn't say where in the bytes a message ends,
and what follows the end belongs to somebody else.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

from sidecar.wire.http1.errors import HttpMessageError, HttpMessageReason
from sidecar.wire.http1.heads import read_trailers
from sidecar.wire.http1.screening import LineScreen, trailer_section

if TYPE_CHECKING:
    from sidecar.wire.http1.messages import Event

__all__ = ["MAX_CHUNK_LINE_BYTES", "ChunkedBody"]

MAX_CHUNK_LINE_BYTES = 4_096
"""How long a chunk's size and its extensions may be: signed uploads have 90 bytes of them."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
# RFC 9112 §7.1.1, without the blanks that recipients are to remove: senders must not
# send them, and lenient readers disagree on what they mean. A size of more digits would
# not fit into the signed 64 bits that other programs have.
_SIZE = rb"[0-9A-Fa-f]{1,15}"
_chunk_line = re.compile(rb"(%b)(?:;%b(?:=(?:%b|%b))?)*\r\n" % (_SIZE, _TOKEN, _TOKEN, _QUOTED))
# What is between two chunks as nearly all senders have it. Not between any and the last.
_between_chunks = re.compile(rb"\r\n([1-9A-Fa-f][0-9A-Fa-f]{0,14})\r\n").match
# Whatever could become one.
_chunk_line_start = re.compile(rb"%b(?:\r|;[\t -~\x80-\xff]*\r?)?" % _SIZE)
_END = b"\r\n"
_SECTION_END = b"\r\n\r\n"


class _Part(Enum):
    """What is next in a chunked body."""

    LINE = "line"
    DATA = "data"
    DATA_END = "data_end"
    TRAILERS = "trailers"


class ChunkedBody:
    """Reads a chunked body.

    Args:
        max_section_bytes: How long its trailer section may be.
        max_fields: How many fields that may have.

    Attributes:
        done: Whether its end is reached.
    """

    __slots__ = (
        "_kept",
        "_left",
        "_max_fields",
        "_max_section",
        "_part",
        "_screen",
        "_section",
        "done",
    )

    def __init__(self, max_section_bytes: int, max_fields: int) -> None:
        self.done = False
        self._max_section = max_section_bytes
        self._max_fields = max_fields
        self._part = _Part.LINE
        self._left = 0  # of the current chunk's data
        self._kept = b""  # the beginning of a chunk's line, or of the CR LF behind its data
        self._section = bytearray()  # the trailer section, as far as it is there
        self._screen: LineScreen | None = None

    def feed(self, data: bytes, events: list[Event]) -> bytes:
        """Read on.

        Args:
            data: What follows in the stream; not copied where it is all one chunk's.
            events: Gets the data's part of the body, in one piece, and the trailers if
                that is where the body ends: also of what is there before an error.

        Returns:
            What is behind the body's end; nothing before that is reached.

        Raises:
            HttpMessageError: The stream doesn't go on as a chunked body does.
        """
        pieces: list[bytes] = []
        try:
            rest = self._read(data, pieces)
        finally:
            if pieces:
                events.append(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._part is _Part.TRAILERS:
            return self._read_trailers(rest, events)
        return b""

    def _read(self, data: bytes, pieces: list[bytes]) -> bytes:
        """Read up to the trailer section.

        Returns:
            What there is of that section and of what follows.
        """
        if self._kept:
            data = self._kept + data
            self._kept = b""
        at = 0
        while self._part is not _Part.TRAILERS:
            if self._part is _Part.DATA:
                at = self._read_data(data, at, pieces)
                if self._left:
                    return b""
                self._part = _Part.DATA_END
            elif self._part is _Part.DATA_END:
                end = data[at : at + len(_END)]
                if end != _END:
                    if not _END.startswith(end):
                        raise HttpMessageError(HttpMessageReason.CHUNK_END)
                    self._kept = end
                    return b""
                at += len(_END)
                self._part = _Part.LINE
            else:
                start = at
                at = self._read_line(data, start)
                if at == start:
                    return b""
        return data[at:]

    def _read_data(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Read a chunk's data; others' too, as long as nothing unusual is between.

        Returns:
            Where it ends.
        """
        left = self._left
        size = len(data)
        while True:
            end = at + left
            if end >= size:
                if at < size:
                    pieces.append(data[at:end])
                self._left = end - size
                return size
            pieces.append(data[at:end])
            between = _between_chunks(data, end)
            if between is None:
                self._left = 0
                return end
            at = between.end()
            left = int(between[1], 16)

    def _read_line(self, data: bytes, at: int) -> int:
        """Read a chunk's first line.

        Returns:
            Where it ends; where it begins if it isn't all there, and is kept.
        """
        end = data.find(b"\n", at, at + MAX_CHUNK_LINE_BYTES) + 1
        if not end:
            self._kept = data[at : at + MAX_CHUNK_LINE_BYTES]
            self._check_start()
            return at
        line = _chunk_line.fullmatch(data, at, end)
        if line is None:
            raise HttpMessageError(HttpMessageReason.CHUNK_SIZE)
        self._left = int(line[1], 16)
        self._part = _Part.DATA if self._left else _Part.TRAILERS
        return end

    def _check_start(self) -> None:
        """Judge what is there of a chunk's line."""
        start = self._kept
        if start and (len(start) == MAX_CHUNK_LINE_BYTES or not _chunk_line_start.fullmatch(start)):
            raise HttpMessageError(HttpMessageReason.CHUNK_SIZE)

    def _read_trailers(self, data: bytes, events: list[Event]) -> bytes:
        """Read the trailer section (RFC 9112 §7.1.2), mostly an empty one.

        Returns:
            What is behind it.
        """
        section = self._section
        if not section and data.startswith(_END):
            self.done = True
            return data[len(_END) :]
        searched = max(0, len(section) - len(_SECTION_END) + 1)
        section += data
        if section.startswith(_END):
            self.done = True
            return bytes(section[len(_END) :])
        end = section.find(_SECTION_END, searched, self._max_section)
        if end < 0:
            if self._screen is None:
                self._screen = LineScreen(None, self._max_section, self._max_fields)
            self._screen.see(section)
            return b""
        end += len(_SECTION_END)
        whole = bytes(section[:end])
        too_many = whole.count(b"\n") > self._max_fields + 1
        match = None if too_many else trailer_section(whole)
        if match is None:
            LineScreen(None, self._max_section, self._max_fields).see(whole)
            raise HttpMessageError(HttpMessageReason.FIELDS)
        events.append(read_trailers(match[1]))
        self.done = True
        return bytes(section[end:])
