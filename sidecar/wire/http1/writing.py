"""Messages made anew: nothing of the framing that was read is copied.

Every byte of a head was screened when it was read (`sidecar.wire.http1.screening`), or is
the caller's own: nothing that a peer sent can end a line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.wire.http1.messages import Framing
from sidecar.wire.http1.repeated import Repeated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.wire.http1.messages import Fields, RequestHead, ResponseHead

__all__ = [
    "LAST_CHUNK",
    "chunk",
    "forwardable",
    "forwardable_lines",
    "received_by",
    "request_head",
    "response_head",
    "trailers",
]

LAST_CHUNK = b"0\r\n\r\n"
"""The end of a chunked body without trailers (RFC 9112 §7.1)."""

_line = b": ".join

# Hop by hop (RFC 9110 §7.6.1), or made anew by whoever writes the head. Proxy-Status
# (RFC 9209) is what each proxy adds to, and stays. No server wants a `Proxy` from outside:
# CGI makes HTTP_PROXY of it (CVE-2016-5385).
_DROPPED = frozenset(
    (
        *(b"connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"),
        *(b"content-length", b"host", b"expect"),
        *(b"proxy", b"proxy-connection", b"proxy-authorization", b"proxy-authenticate"),
        *(b"proxy-authentication-info", b"proxy-features", b"proxy-instruction"),
    )
)
# What Connection can't take away, as loops are known by it.
_KEPT = frozenset((b"via",))
# Options that are no field's name, and fields that are dropped anyway.
_PLAIN_OPTIONS = frozenset((b"close", *_DROPPED))
# RFC 9110 §6.5.1: framing, routing, authentication, request modifiers, response control,
# and what says how to read the content. Readers refuse some of them; those of others end here.
_NOT_IN_TRAILERS = _DROPPED | frozenset(
    (
        *(b"trailer", b"max-forwards", b"via", b"authorization", b"www-authenticate"),
        *(b"cookie", b"set-cookie", b"cache-control", b"pragma", b"range", b"if-match"),
        *(b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range"),
        *(b"age", b"date", b"expires", b"location", b"retry-after", b"vary", b"warning"),
        *(b"content-encoding", b"content-type", b"content-range"),
    )
)


def forwardable(fields: Fields, options: frozenset[bytes]) -> Fields:
    """Return the fields that are meant for whoever comes next (RFC 9110 §7.6.1).

    Args:
        fields: Of a head.
        options: What its Connection nominates, in lower case.

    Returns:
        Those that are neither nominated nor hop-by-hop by nature, nor made anew by
        `request_head` and `response_head`: Host, Content-Length, Expect. In their order.
    """
    dropped = _DROPPED if options <= _PLAIN_OPTIONS else _DROPPED | (options - _KEPT)
    return [field for field in fields if field[0].lower() not in dropped]


def forwardable_lines(head: RequestHead | ResponseHead) -> bytes:
    """Return a head's `forwardable` fields as lines, each with its end."""
    lines = _lines.get(head.section)
    if lines is None:
        fields = forwardable(head.fields, head.options)
        lines = b"".join([b"%b: %b\r\n" % field for field in fields])
        if head.section:
            _lines.keep(head.section, lines)
    return lines


_lines: Repeated[bytes] = Repeated()


def received_by(fields: Fields) -> Iterator[bytes]:
    """Yield the names of the proxies that Via lists (RFC 9110 §7.6.3), in its order."""
    for name, value in fields:
        if name.lower() == b"via":
            for member in value.split(b","):
                words = member.split()
                if len(words) > 1:
                    yield words[1]


def request_head(
    method: bytes,
    target: bytes,
    host: bytes,
    fields: Fields,
    framing: Framing,
    length: int = 0,
    *,
    via: bytes | None = None,
    connection: bytes | None = None,
    upgrade: bytes | None = None,
    expect_continue: bool = False,
    trailers: bool = False,
) -> bytes:
    """Return the head of a request (RFC 9112 §3), HTTP/1.1.

    Args:
        method, target: Of its first line; the target in the form that the next one needs.
        host: The value of Host.
        fields: Forwardable ones.
        framing: How the body is going to be sent: NONE, LENGTH or CHUNKED.
        length: The body's, in bytes, for LENGTH.
        via: A line of Via to add: `1.1 name`, with the version that was received.
        connection: Options for Connection, without those that the following imply.
        upgrade: The protocols to offer.
        expect_continue: Whether to wait for 100.
        trailers: Whether to ask for trailers.
    """
    options = [connection] if connection else []
    lines = [b"%b %b HTTP/1.1\r\nHost: %b" % (method, target, host)]
    lines += map(_line, fields)
    if expect_continue:
        lines.append(b"Expect: 100-continue")
    if trailers:
        options.append(b"TE")
        lines.append(b"TE: trailers")
    known = length if framing is Framing.LENGTH else None
    return _end(lines, framing, known, via, options, upgrade)


def response_head(
    status: int,
    reason: bytes,
    fields: Fields,
    framing: Framing,
    length: int | None = None,
    *,
    via: bytes | None = None,
    connection: bytes | None = None,
    upgrade: bytes | None = None,
) -> bytes:
    """Return the head of a response (RFC 9112 §4), HTTP/1.1.

    Args:
        status, reason: Of its first line.
        fields: Forwardable ones.
        framing: How the body is going to be sent. With NONE nothing is said of it but for
            `length`: right for 1xx, 204, 304, and what answers HEAD or CONNECT. Anything
            else without a body has a LENGTH of 0.
        length: The body's, in bytes, for LENGTH. With NONE that of a body that is not
            there, if it is known (ResponseHead.content_length).
        via: A line of Via to add: `1.1 name`, with the version that was received.
        connection: Options for Connection, without those that the following imply.
        upgrade: The protocol switched to.
    """
    lines = [b"HTTP/1.1 %d %b" % (status, reason)]
    lines += map(_line, fields)
    options = [connection] if connection else []
    return _end(lines, framing, length, via, options, upgrade)


def _end(
    lines: list[bytes],
    framing: Framing,
    length: int | None,
    via: bytes | None,
    options: list[bytes],
    upgrade: bytes | None,
) -> bytes:
    """Put a head together: the lines and what all heads end with."""
    if via is not None:
        lines.append(b"Via: " + via)
    if framing is Framing.CHUNKED:
        lines.append(b"Transfer-Encoding: chunked")
    elif length is not None and framing is not Framing.CLOSE:
        lines.append(b"Content-Length: %d" % length)
    if upgrade is not None:
        options.append(b"Upgrade")
        lines.append(b"Upgrade: " + upgrade)
    if options:
        lines.append(b"Connection: " + b", ".join(options))
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def chunk(data: bytes) -> bytes:
    """Return some of a chunked body (RFC 9112 §7.1), which is not empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def trailers(fields: Fields) -> bytes:
    """Return the end of a chunked body, LAST_CHUNK with those fields that may be trailers.

    Args:
        fields: A Trailers event's.
    """
    lines = [b"0\r\n"]
    lines += [
        b"%b: %b\r\n" % (name, value)
        for name, value in fields
        if name.lower() not in _NOT_IN_TRAILERS
    ]
    lines.append(b"\r\n")
    return b"".join(lines)
