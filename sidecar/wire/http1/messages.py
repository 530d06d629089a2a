"""What an HTTP/1 message consists of, as its readers tell it: in events.

head, any pieces of the body, perhaps Trailers, END
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from sidecar.wire.http1.errors import HttpMessageError, HttpMessageReason

__all__ = [
    "END",
    "End",
    "Event",
    "Fields",
    "Framing",
    "HttpMessageError",
    "HttpMessageReason",
    "RequestHead",
    "ResponseHead",
    "Trailers",
]

Fields = list[tuple[bytes, bytes]]
"""Field lines in their order: names as received, values without the blanks around them."""


class Framing(Enum):
    """How the end of a message's body is found (RFC 9112 §6.3)."""

    NONE = "none"
    """There is none."""
    LENGTH = "length"
    """By Content-Length, which may be 0."""
    CHUNKED = "chunked"
    CLOSE = "close"
    """By the end of the connection: responses only."""


class End(Enum):
    """The end of a message."""

    END = "end"


END = End.END


@dataclass(slots=True)
class RequestHead:
    """The head of a request.

    Attributes:
        method: A token, as sent.
        target: As sent: ASCII or above, no blanks, control characters or fragment.
            `targets.parse_target` says what it means.
        minor_version: Of HTTP/1: 0 or 1.
        fields: All of them.
        host: The one Host, never empty; None in HTTP/1.0 without one. Its bytes are an
            authority's, nothing more is known.
        framing: NONE, LENGTH or CHUNKED; NONE for CONNECT.
        length: The body's, in bytes, where framing is LENGTH; else 0.
        options: What Connection nominates, in lower case.
        keep_alive: Whether the client wants to send more requests here.
        expect_continue: Whether it waits for 100 (RFC 9110 §10.1.1); never in HTTP/1.0.
        upgrade: Upgrade's value where Connection nominates it; never in HTTP/1.0.
        trailers: Whether the client wants trailers (RFC 9110 §10.1.4).
        section: The lines that `fields` are, as they were received.
    """

    method: bytes
    target: bytes
    minor_version: int
    fields: Fields
    host: bytes | None
    framing: Framing
    length: int
    options: frozenset[bytes]
    keep_alive: bool
    expect_continue: bool
    upgrade: bytes | None
    trailers: bool
    section: bytes = field(default=b"", compare=False, repr=False)


@dataclass(slots=True)
class ResponseHead:
    """The head of a response.

    Attributes:
        status: 100 to 999.
        reason: The reason phrase, perhaps empty.
        minor_version: Of HTTP/1: 0 or 1.
        fields: All of them.
        framing: How this body ends: what was asked for is taken into account.
        length: The body's, in bytes, where framing is LENGTH; else 0.
        content_length: What Content-Length says, of a body that is not there as well
            (to HEAD, with 304); None without it, and where it means nothing.
        options: What Connection nominates, in lower case.
        keep_alive: Whether another request may be sent when this is at its end.
        upgrade: Upgrade's value where Connection nominates it; never in HTTP/1.0.
        section: The lines that `fields` are, as they were received.
    """

    status: int
    reason: bytes
    minor_version: int
    fields: Fields
    framing: Framing
    length: int
    content_length: int | None
    options: frozenset[bytes]
    keep_alive: bool
    upgrade: bytes | None
    section: bytes = field(default=b"", compare=False, repr=False)

    @property
    def interim(self) -> bool:
        """Whether another response to the same request follows (RFC 9110 §15.2); not after 101."""
        return self.status < 200 and self.status != 101  # noqa: PLR2004


@dataclass(slots=True)
class Trailers:
    """The fields behind a chunked body; at least one. None of them is of framing or routing."""

    fields: Fields


Event = RequestHead | ResponseHead | bytes | Trailers | End
"""A piece of body is bytes, never empty."""
