"""Where the messages are in a stream, and what they consist of.

Heads are screened (`sidecar.wire.http1.screening`) before anything is read from them; bodies
with a length are counted and handed on as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.wire.http1.chunks import ChunkedBody
from sidecar.wire.http1.errors import HttpMessageError, HttpMessageReason
from sidecar.wire.http1.heads import read_request, read_response
from sidecar.wire.http1.messages import END, Framing, RequestHead, ResponseHead
from sidecar.wire.http1.screening import (
    LineScreen,
    RequestLine,
    StatusLine,
    request_head,
    response_head,
)

if TYPE_CHECKING:
    from sidecar.wire.http1.messages import Event
    from sidecar.wire.http1.screening import FirstLine

__all__ = [
    "MAX_HEAD_BYTES",
    "MAX_HEAD_FIELDS",
    "MAX_INTERIM_RESPONSES",
    "MAX_TARGET_BYTES",
    "RequestReader",
    "ResponseReader",
]

MAX_HEAD_BYTES = 65_536
"""How long a head may be, its blank line included: servers take 8 to 64 KiB."""

MAX_HEAD_FIELDS = 100
"""How many field lines: Apache's default; browsers send twenty."""

MAX_TARGET_BYTES = 32_768
"""How long a request target may be: RFC 9112 §3 wants 8000 bytes to be possible."""

MAX_INTERIM_RESPONSES = 64
"""How many 1xx responses there may be to one request: 102 comes every 20 s (RFC 2518 §10.1)."""

_HEAD_END = b"\r\n\r\n"
_LINE_END = b"\r\n"


class _MessageReader:
    """What the two readers have in common.

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


class RequestReader(_MessageReader):
    """Reads the requests of a client, one by one.

    Args:
        max_head_bytes: How long a head may be, and a trailer section.
        max_fields: How many fields either may have.
        max_target_bytes: How long a request target may be; less than a head.
    """

    __slots__ = ("_any_before", "_max_target_bytes")

    _in_response = False

    def __init__(
        self,
        *,
        max_head_bytes: int = MAX_HEAD_BYTES,
        max_fields: int = MAX_HEAD_FIELDS,
        max_target_bytes: int = MAX_TARGET_BYTES,
    ) -> None:
        super().__init__(RequestLine(max_target_bytes), max_head_bytes, max_fields)
        self._max_target_bytes = max_target_bytes
        self._any_before = False  # whether a blank line may precede the next request

    def eof(self) -> list[Event]:
        """Take note that the client sends no more.

        Returns:
            Nothing.

        Raises:
            HttpMessageError: It stopped within a request.
        """
        if self.error is not None:
            raise self._again()
        if self._framing is not None or self.started:
            self._fail(HttpMessageReason.INCOMPLETE)
            raise self._again()
        return []

    def _read(self, data: bytes, events: list[Event]) -> None:
        if self._framing is not None:
            self._read_body(data, events)
            return
        if self._kept:
            data = self._kept + data
            self._kept = b""
        if self._any_before and data[:1] == b"\r":
            # RFC 9112 §2.2: after some clients' bodies. One only.
            if len(data) == 1:
                self._kept = data
                return
            if data.startswith(_LINE_END):
                data = data[len(_LINE_END) :]
                self._any_before = False
        taken = self._take_head(data)
        if taken is None:
            if data:
                self._any_before = False
            return
        head, rest = taken
        request = self._request(head)
        events.append(request)
        self._any_before = True
        if self._begin_body(request.framing, request.length):
            if rest:
                self._read_body(rest, events)
        else:
            self._kept = rest
            events.append(END)

    def _request(self, head: bytes) -> RequestHead:
        # A start line and a blank one beside the fields.
        if head.count(b"\n") > self._max_fields + 2:
            raise self._refuse_head(head)
        match = request_head(head)
        if match is None:
            raise self._refuse_head(head)
        method, target, minor_version, section = match.groups()
        if len(target) > self._max_target_bytes:
            raise self._refuse_head(head)
        return read_request(method, target, 1 if minor_version == b"1" else 0, section)


class ResponseReader(_MessageReader):
    """Reads the responses of a server, each after it is asked for.

    Args:
        max_head_bytes: How long a head may be, and a trailer section.
        max_fields: How many fields either may have.
    """

    __slots__ = ("_interim", "_request_method")

    _in_response = True

    def __init__(
        self, *, max_head_bytes: int = MAX_HEAD_BYTES, max_fields: int = MAX_HEAD_FIELDS
    ) -> None:
        super().__init__(StatusLine(), max_head_bytes, max_fields)
        self._request_method: bytes | None = None  # None if no response is expected
        self._interim = 0

    def expect(self, request_method: bytes) -> None:
        """Take note of a request: to be called before any byte of its response can be there.

        Args:
            request_method: Its method, which decides whether the response has a body.
        """
        self._request_method = request_method
        self._interim = 0
        if self.error is None and (self.started or self._framing is not None):
            self._fail(HttpMessageReason.UNSOLICITED)

    def eof(self) -> list[Event]:
        """Take note that the server sends no more.

        Returns:
            END, if that is what ends the body; nothing if no response is expected.

        Raises:
            HttpMessageError: The response isn't complete.
        """
        if self.error is not None:
            raise self._again()
        if self._framing is Framing.CLOSE:
            self._framing = None
            self._request_method = None
            return [END]
        if self._framing is not None or self._request_method is not None:
            self._fail(HttpMessageReason.INCOMPLETE)
            raise self._again()
        return []

    def _read(self, data: bytes, events: list[Event]) -> None:
        if self._framing is not None:
            self._read_body(data, events)
            if self._framing is None:
                self._request_method = None
            return
        if self._kept:
            data = self._kept + data
            self._kept = b""
        while self._request_method is not None:
            taken = self._take_head(data)
            if taken is None:
                return
            head, data = taken
            response = self._response(head, self._request_method)
            events.append(response)
            if self._begin_body(response.framing, response.length):
                if data:
                    self._read(data, events)
                return
            events.append(END)
            if not response.interim:
                self._request_method = None
        self._kept = data

    def _response(self, head: bytes, request_method: bytes) -> ResponseHead:
        # A start line and a blank one beside the fields.
        if head.count(b"\n") > self._max_fields + 2:
            raise self._refuse_head(head)
        match = response_head(head)
        if match is None:
            raise self._refuse_head(head)
        minor_version, status, reason, section = match.groups()
        response = read_response(
            1 if minor_version == b"1" else 0, int(status), reason or b"", section, request_method
        )
        if response.interim:
            self._interim += 1
            if self._interim > MAX_INTERIM_RESPONSES:
                raise HttpMessageError(HttpMessageReason.INTERIM_FLOOD)
        return response
