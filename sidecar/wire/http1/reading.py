"""Where the messages are in a stream, and what they consist of.

Heads are screened (`sidecar.wire.http1.screening`) before anything is read from them; bodies
with a length are counted and handed on as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.wire.http1.errors import HttpMessageError, HttpMessageReason
from sidecar.wire.http1.heads import read_request, read_response
from sidecar.wire.http1.messages import END, Framing, RequestHead, ResponseHead
from sidecar.wire.http1.screening import RequestLine, StatusLine, request_head, response_head
from sidecar.wire.http1.stream import MAX_HEAD_BYTES, MAX_HEAD_FIELDS, MessageReader

if TYPE_CHECKING:
    from sidecar.wire.http1.messages import Event

__all__ = [
    "MAX_HEAD_BYTES",
    "MAX_HEAD_FIELDS",
    "MAX_INTERIM_RESPONSES",
    "MAX_TARGET_BYTES",
    "RequestReader",
    "ResponseReader",
]

MAX_TARGET_BYTES = 32_768
"""How long a request target may be: RFC 9112 §3 wants 8000 bytes to be possible."""

MAX_INTERIM_RESPONSES = 64
"""How many 1xx responses there may be to one request: 102 comes every 20 s (RFC 2518 §10.1)."""

_LINE_END = b"\r\n"


class RequestReader(MessageReader):
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


class ResponseReader(MessageReader):
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
