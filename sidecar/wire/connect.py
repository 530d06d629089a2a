"""How a client asks an HTTP proxy for a tunnel, and what the proxy answers.

CONNECT, RFC 9110 §9.3.6, in HTTP/1.1 (RFC 9112 §3.2.3).

    HttpMessageError    the reply is no HTTP/1 response (sidecar.wire.http1)
"""

from __future__ import annotations

import re

from sidecar.wire.http1.errors import HttpMessageError, HttpMessageReason
from sidecar.wire.http1.messages import ResponseHead
from sidecar.wire.http1.reading import ResponseReader

__all__ = ["MAX_REPLY_BYTES", "ConnectReply", "connect_request"]

MAX_REPLY_BYTES = 65_536
"""Of the reply's head and of the interim ones before it, together."""

_SUCCESS = range(200, 300)
_not_visible = re.compile(rb"[^\x21-\x7e]").search
_not_value = re.compile(rb"[^\x20-\x7e]").search


def connect_request(
    authority: bytes, authorization: bytes | None = None, via: bytes | None = None
) -> bytes:
    """Write the request.

    Args:
        authority: ``host:port``, IPv6 in brackets; visible ASCII.
        authorization: The value of Proxy-Authorization; None for none.
        via: The value of Via (RFC 9110 §7.6.3), of who passes a request on; None for none.

    Raises:
        ValueError: A byte that would end the line or the field.
    """
    if not authority or _not_visible(authority):
        raise ValueError("an authority is visible ASCII")
    head = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (authority, authority)
    if authorization is not None:
        if _not_value(authorization):
            raise ValueError("a credential is printable ASCII")
        head += b"Proxy-Authorization: %b\r\n" % authorization
    if via is not None:
        if _not_value(via):
            raise ValueError("Via is printable ASCII")
        head += b"Via: %b\r\n" % via
    return head + b"\r\n"


class ConnectReply:
    """Reads what a proxy answers to CONNECT.

    Attributes:
        status: Of the final response, as soon as its head is there; None until then.
            Interim ones (1xx) are passed over.
    """

    __slots__ = ("_left", "_reader", "status")

    def __init__(self) -> None:
        self._reader = ResponseReader()
        self._reader.expect(b"CONNECT")
        self._left = MAX_REPLY_BYTES
        self.status: int | None = None

    @property
    def opened(self) -> bool:
        """Whether the tunnel is open: any 2xx (RFC 9110 §9.3.6)."""
        return self.status in _SUCCESS

    def feed(self, data: bytes) -> int | None:
        """Take the next bytes; not called any more once there is a status.

        Returns:
            The status; None for more.

        Raises:
            HttpMessageError: They are no HTTP/1 response, or the bytes before the final
                one's end are more than MAX_REPLY_BYTES.
        """
        events = self._reader.feed(data)
        while events:
            for event in events:
                if isinstance(event, ResponseHead) and not event.interim:
                    self.status = event.status
                    return self.status
            # What is wrong with what follows an interim response is said now.
            events = self._reader.feed(b"")
        self._left -= len(data)
        if self._left < 0:
            raise HttpMessageError(HttpMessageReason.HEAD_TOO_LARGE, in_response=True)
        return None

    def rest(self) -> bytes:
        """What follows the reply, given up: the tunnel's first bytes, if it is open."""
        return self._reader.rest()
