"""Why bytes are no HTTP/1 message.

HttpMessageError    its `reason` is one of HttpMessageReason, which knows its status
"""

from __future__ import annotations

from enum import Enum

__all__ = ["HttpMessageError", "HttpMessageReason"]

# RFC 9110 §15.5 and §15.6.
_BAD_REQUEST = 400
_URI_TOO_LONG = 414
_EXPECTATION_FAILED = 417
_FIELDS_TOO_LARGE = 431  # RFC 6585 §5
_NOT_IMPLEMENTED = 501
_BAD_GATEWAY = 502
_VERSION_NOT_SUPPORTED = 505


class HttpMessageReason(Enum):
    """Why bytes are no HTTP/1 message. The values are stable: logs and documentation use them."""

    REQUEST_LINE = "request_line"
    """Not `method SP target SP version`: another protocol, HTTP/0.9, a blank line, two spaces."""
    STATUS_LINE = "status_line"
    """Not `version SP status SP reason`."""
    VERSION = "version"
    """HTTP, but neither 1.0 nor 1.1; HTTP/2's preface above all (RFC 9113 §3.4)."""
    METHOD_TOO_LONG = "method_too_long"
    """A method of more than MAX_METHOD_BYTES (RFC 9112 §3). Any shorter token is a method."""
    TARGET_TOO_LONG = "target_too_long"
    """A request target longer than allowed (RFC 9112 §3)."""
    TARGET = "target"
    """A request target of none of the four forms, or not its method's (RFC 9112 §3.2)."""
    HEAD_TOO_LARGE = "head_too_large"
    """A head, or a trailer section, longer than allowed."""
    TOO_MANY_FIELDS = "too_many_fields"
    """More field lines than allowed."""
    LINE_END = "line_end"
    """A line that ends in LF alone, or a CR that ends none (RFC 9112 §2.2)."""
    FIELD_NAME = "field_name"
    """No colon, no name, or something else than a token: a space before the colon."""
    FIELD_VALUE = "field_value"
    """A control character: NUL above all."""
    FIELD_FOLDED = "field_folded"
    """A line that continues the one before (RFC 9112 §5.2)."""
    FIELDS = "fields"
    """llhttp reads the fields in another way than we do, or not at all."""
    HOST_MISSING = "host_missing"
    """No Host in HTTP/1.1 (RFC 9112 §3.2)."""
    HOST_DUPLICATE = "host_duplicate"
    """More than one Host, be they the same (RFC 9112 §3.2)."""
    HOST = "host"
    """A Host of no bytes, or with some that no authority has (RFC 3986 §3.2)."""
    CONTENT_LENGTH = "content_length"
    """Not one to 18 digits: a sign, a list, nothing (RFC 9112 §6.3)."""
    CONTENT_LENGTH_DUPLICATE = "content_length_duplicate"
    """More than one Content-Length, be they the same."""
    TRANSFER_ENCODING = "transfer_encoding"
    """Anything but `chunked` once, in whatever case."""
    TRANSFER_CODING = "transfer_coding"
    """A request whose last coding is chunked, but not its only one (RFC 9112 §6.1)."""
    TRANSFER_ENCODING_DUPLICATE = "transfer_encoding_duplicate"
    """More than one Transfer-Encoding."""
    TRANSFER_ENCODING_OLD = "transfer_encoding_old"
    """Transfer-Encoding in HTTP/1.0 (RFC 9112 §6.1)."""
    TWO_LENGTHS = "two_lengths"
    """Both Transfer-Encoding and Content-Length (RFC 9112 §6.1)."""
    CONNECT_CONTENT = "connect_content"
    """CONNECT with content (RFC 9110 §9.3.6)."""
    EXPECTATION = "expectation"
    """An Expect other than 100-continue (RFC 9110 §10.1.1)."""
    CHUNK_SIZE = "chunk_size"
    """A chunk's first line isn't one to 16 hexadecimal digits and extensions (RFC 9112 §7.1)."""
    CHUNK_END = "chunk_end"
    """A chunk's data isn't followed by CR LF."""
    TRAILER_FIELD = "trailer_field"
    """A field of framing or routing in the trailer section (RFC 9110 §6.5.1)."""
    INTERIM_FLOOD = "interim_flood"
    """More than MAX_INTERIM_RESPONSES before the final one."""
    UNSOLICITED = "unsolicited"
    """Bytes of a response were there before its request."""
    INCOMPLETE = "incomplete"
    """The stream ended within a message, or before a response."""

    @property
    def status(self) -> int:
        """What a request deserves for it; a response is always worth 502."""
        return _STATUS.get(self, _BAD_REQUEST)


_STATUS = {
    HttpMessageReason.VERSION: _VERSION_NOT_SUPPORTED,
    HttpMessageReason.METHOD_TOO_LONG: _NOT_IMPLEMENTED,
    HttpMessageReason.TARGET_TOO_LONG: _URI_TOO_LONG,
    HttpMessageReason.HEAD_TOO_LARGE: _FIELDS_TOO_LARGE,
    HttpMessageReason.TOO_MANY_FIELDS: _FIELDS_TOO_LARGE,
    HttpMessageReason.TRANSFER_CODING: _NOT_IMPLEMENTED,
    HttpMessageReason.EXPECTATION: _EXPECTATION_FAILED,
    HttpMessageReason.STATUS_LINE: _BAD_GATEWAY,
    HttpMessageReason.INTERIM_FLOOD: _BAD_GATEWAY,
    HttpMessageReason.UNSOLICITED: _BAD_GATEWAY,
}


class HttpMessageError(Exception):
    """Bytes that are no HTTP/1 message, whatever follows them; nothing more is read of them.

    Args:
        reason: Why.
        in_response: Whether a server sent them.
    """

    def __init__(self, reason: HttpMessageReason, *, in_response: bool = False) -> None:
        super().__init__(reason, in_response)
        self.reason = reason
        self.in_response = in_response

    @property
    def status(self) -> int:
        """The status code for the client (RFC 9110 §15.5, §15.6.3)."""
        return _BAD_GATEWAY if self.in_response else self.reason.status

    def __str__(self) -> str:
        return f"no HTTP {'response' if self.in_response else 'request'}: {self.reason.value}"
