"""Where heads and bodies are in a stream: what the two readers have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.wire.http1.chunks import ChunkedBody
from sidecar.wire.http1.errors import HttpMessageError, HttpMessageReason
from sidecar.wire.http1.messages import END, Framing
from sidecar.wire.http1.screening import LineScreen

if TYPE_CHECKING:
    from sidecar.wire.http1.messages import Event
    from sidecar.wire.http1.screening import FirstLine

__all__ = ["MAX_HEAD_BYTES", "MAX_HEAD_FIELDS", "MessageReader"]

MAX_HEAD_BYTES = 65_536
"""How long a head may be, its blank line included: servers take 8 to 64 KiB."""

MAX_HEAD_FIELDS = 100
"""How many field lines: Apache's default; browsers send twenty."""

_HEAD_END = b"\r\n\r\n"


class MessageReader:
    """What the readers of requests and of responses have in common.

    Attributes:
        error: What the next `feed` and `eof` raise: what is wrong with what follows the
            events returned last. None as long as nothing is.
    """

    __slots__ = (
        *("_chunks", "_first", "_framing", "_head", "_kept", "_left", "_max_fields"),
        *("_max_head_bytes", "_screen", "error"),
    )

    _in_response: bool

    def __init__(self, first: FirstLine, max_head_bytes: int, max_fields: int) -> None:
        self.error: HttpMessageError | None = None
        self._first = first
        self._max_head_bytes = max_head_bytes
        self._max_fields = max_fields
        self._kept = b""  # not looked at yet
        self._head = bytearray()  # the beginning of a head
        self._screen: LineScreen | None = None  # what has seen that beginning
        self._framing: Framing | None = None  # of the body being read; None outside of one
        self._left = 0  # bytes of a body with LENGTH
        self._chunks: ChunkedBody | None = None

    def feed(self, data: bytes) -> list[Event]:
        """Read on, not beyond the end of a message.

        Args:
            data: What follows in the stream. With b"" what was kept is read on.

        Returns:
            What there is; pieces of bodies may be `data` itself. Nothing follows END:
            what is behind it is kept.

        Raises:
            HttpMessageError: What follows the events returned before is no message; now
                and ever after.
        """
        if self.error is not None:
            raise self._again()
        events: list[Event] = []
        try:
            self._read(data, events)
        except HttpMessageError as error:
            self._fail(error.reason)
            if not events:
                raise self._again() from None
        return events

    def rest(self) -> bytes:
        """Give up what follows the last END, after CONNECT or Upgrade; it isn't kept here."""
        rest = bytes(self._head) + self._kept
        self._head = bytearray()
        self._screen = None
        self._kept = b""
        return rest

    @property
    def started(self) -> bool:
        """Whether bytes of a head are there that is not complete yet, or not read."""
        return bool(self._head or self._kept)

    def _read(self, data: bytes, events: list[Event]) -> None:
        raise NotImplementedError

    def _again(self) -> HttpMessageError:
        assert self.error is not None  # noqa: S101 - asked for only then
        return HttpMessageError(self.error.reason, in_response=self._in_response)

    def _fail(self, reason: HttpMessageReason) -> None:
        self.error = HttpMessageError(reason, in_response=self._in_response)
        self.rest()
        self._chunks = None

    def _take_head(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Find the end of a head.

        Returns:
            The head and what follows; None if more is needed.

        Raises:
            HttpMessageError: It is none, whatever follows.
        """
        head = self._head
        if not head:
            end = data.find(_HEAD_END, 0, self._max_head_bytes)
            if end >= 0:
                end += len(_HEAD_END)
                return data[:end], data[end:]
            if not data:
                return None
            self._screen = LineScreen(self._first, self._max_head_bytes, self._max_fields)
        searched = max(0, len(head) - len(_HEAD_END) + 1)
        head += data
        end = head.find(_HEAD_END, searched, self._max_head_bytes)
        if end < 0:
            assert self._screen is not None  # noqa: S101 - made with the first bytes
            self._screen.see(head)
            return None
        end += len(_HEAD_END)
        whole, rest = bytes(head[:end]), bytes(head[end:])
        self._head = bytearray()
        self._screen = None
        return whole, rest

    def _refuse_head(self, head: bytes) -> HttpMessageError:
        """Find out what is wrong with a whole head."""
        try:
            LineScreen(self._first, self._max_head_bytes, self._max_fields).see(head)
        except HttpMessageError as error:
            return error
        return HttpMessageError(HttpMessageReason.FIELDS)

    def _begin_body(self, framing: Framing, length: int) -> bool:
        """Take note of what follows a head.

        Returns:
            Whether a body does.
        """
        if framing is Framing.NONE or (framing is Framing.LENGTH and not length):
            return False
        self._framing = framing
        self._left = length
        if framing is Framing.CHUNKED:
            self._chunks = ChunkedBody(self._max_head_bytes, self._max_fields)
        return True

    def _read_body(self, data: bytes, events: list[Event]) -> None:
        """Read on in a body; keep what is behind it."""
        if self._chunks is not None:
            rest = self._chunks.feed(data, events)
            if not self._chunks.done:
                return
            self._chunks = None
        elif self._framing is Framing.CLOSE:
            if data:
                events.append(data)
            return
        else:
            left = self._left - len(data)
            if left > 0:
                self._left = left
                if data:
                    events.append(data)
                return
            events.append(data[: self._left])
            rest = data[self._left :]
        self._framing = None
        self._kept = rest
        events.append(END)
