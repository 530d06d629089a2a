"""What a whole head says: RFC 9112 §6.3 for its body, RFC 9110 §7.6, §7.8 for its connection."""

from __future__ import annotations

import re

from sidecar.wire.http1.errors import HttpMessageError, HttpMessageReason
from sidecar.wire.http1.fields import split_fields, split_fields_alone
from sidecar.wire.http1.messages import Fields, Framing, RequestHead, ResponseHead, Trailers
from sidecar.wire.http1.repeated import Repeated

__all__ = ["read_request", "read_response", "read_trailers"]

_CONNECT = b"CONNECT"
_OK = 200
_NO_CONTENT = 204
_MULTIPLE_CHOICES = 300
_NOT_MODIFIED = 304

# What means something to a proxy.
_KNOWN = frozenset(
    (
        *(b"host", b"content-length", b"transfer-encoding", b"connection", b"proxy-connection"),
        *(b"expect", b"upgrade", b"te"),
    )
)
_ONCE = {
    b"host": HttpMessageReason.HOST_DUPLICATE,
    b"content-length": HttpMessageReason.CONTENT_LENGTH_DUPLICATE,
    b"transfer-encoding": HttpMessageReason.TRANSFER_ENCODING_DUPLICATE,
}
_NOT_IN_TRAILERS = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection"))

_NO_OPTIONS: frozenset[bytes] = frozenset()
_USUAL_OPTIONS = {
    value: frozenset((value.lower(),))
    for value in (b"keep-alive", b"Keep-Alive", b"close", b"Upgrade", b"upgrade")
}
# With more digits it would not fit into the signed 64 bits that other programs have.
_is_length = re.compile(rb"[0-9]{1,18}").fullmatch
# RFC 3986 §3.2.2 and §3.2.3; user information is none of Host's (RFC 9110 §4.2.4).
_is_host = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]+").fullmatch

# Requests of HTTP/1.1 other than CONNECT: what their sections say doesn't depend on
# anything else.
_requests: Repeated[RequestHead] = Repeated()
_responses: Repeated[tuple[Fields, dict[bytes, bytes]]] = Repeated()


def read_request(method: bytes, target: bytes, minor_version: int, section: bytes) -> RequestHead:
    """Read the head of a request.

    Args:
        method, target, minor_version: Of its first line.
        section: Its field lines, screened.

    Raises:
        HttpMessageError: It can be read in two ways, or is for nobody.
    """
    usual = minor_version and method != _CONNECT
    if usual and (said := _requests.get(section)) is not None:
        return RequestHead(
            method,
            target,
            1,
            said.fields,
            said.host,
            said.framing,
            said.length,
            said.options,
            said.keep_alive,
            said.expect_continue,
            said.upgrade,
            said.trailers,
            section,
        )
    fields = split_fields(section)
    if fields is None:
        _request(method, target, minor_version, split_fields_alone(section), section)
        raise HttpMessageError(HttpMessageReason.FIELDS)
    request = _request(method, target, minor_version, fields, section)
    if usual:
        _requests.keep(section, request)
    return request


def _request(
    method: bytes, target: bytes, minor_version: int, fields: Fields, section: bytes
) -> RequestHead:
    known = _known_fields(fields)
    host = known.get(b"host")
    if host is None:
        if minor_version:
            raise HttpMessageError(HttpMessageReason.HOST_MISSING)
    elif not _is_host(host):
        raise HttpMessageError(HttpMessageReason.HOST)
    framing, length = _framing(known, minor_version)
    if method == _CONNECT:
        if length or framing is Framing.CHUNKED:
            raise HttpMessageError(HttpMessageReason.CONNECT_CONTENT)
        framing = Framing.NONE
    options = either = _options(known.get(b"connection"))
    if b"proxy-connection" in known:
        either = options | _options(known[b"proxy-connection"])
    keep_alive = b"close" not in either and (minor_version > 0 or b"keep-alive" in either)
    expect = known.get(b"expect") if minor_version else None
    if expect is not None and expect.lower() != b"100-continue":
        raise HttpMessageError(HttpMessageReason.EXPECTATION)
    coding = known.get(b"te")
    return RequestHead(
        method,
        target,
        minor_version,
        fields,
        host,
        framing,
        length,
        options,
        keep_alive,
        expect is not None,
        known.get(b"upgrade") if minor_version and b"upgrade" in options else None,
        coding is not None and b"trailers" in _members(coding),
        section,
    )


def read_response(
    minor_version: int, status: int, reason: bytes, section: bytes, request_method: bytes
) -> ResponseHead:
    """Read the head of a response.

    Args:
        minor_version, status, reason: Of its first line.
        section: Its field lines, screened.
        request_method: Of the request that it answers.

    Raises:
        HttpMessageError: It can be read in two ways.
    """
    said = _responses.get(section)
    if said is None:
        fields = split_fields(section)
        if fields is None:
            alone = split_fields_alone(section)
            said = alone, _known_fields(alone)
            _response(minor_version, status, reason, said, request_method, section)
            raise HttpMessageError(HttpMessageReason.FIELDS)
        said = fields, _known_fields(fields)
        _responses.keep(section, said)
    return _response(minor_version, status, reason, said, request_method, section)


def _response(
    minor_version: int,
    status: int,
    reason: bytes,
    said: tuple[Fields, dict[bytes, bytes]],
    request_method: bytes,
    section: bytes,
) -> ResponseHead:
    fields, known = said
    options = _options(known.get(b"connection"))
    keep_alive = b"close" not in options and (bool(minor_version) or b"keep-alive" in options)
    content_length: int | None
    if request_method == _CONNECT and _OK <= status < _MULTIPLE_CHOICES:
        # RFC 9110 §9.3.6: it has neither, whatever it says.
        framing, length, content_length = Framing.NONE, 0, None
    else:
        framing, length = _framing(known, minor_version)
        content_length = length if framing is Framing.LENGTH else None
        if status < _OK or status == _NO_CONTENT:
            # Who announces a body that can't be may send it as well.
            keep_alive = keep_alive and not length and framing is not Framing.CHUNKED
            framing, length, content_length = Framing.NONE, 0, None
        elif request_method == b"HEAD" or status == _NOT_MODIFIED:
            framing, length = Framing.NONE, 0
        elif framing is Framing.NONE:
            framing, keep_alive = Framing.CLOSE, False
    return ResponseHead(
        status,
        reason,
        minor_version,
        fields,
        framing,
        length,
        content_length,
        options,
        keep_alive,
        known.get(b"upgrade") if minor_version and b"upgrade" in options else None,
        section,
    )


def read_trailers(section: bytes) -> Trailers:
    """Read the trailer section of a message.

    Args:
        section: Its field lines, screened; at least one.

    Raises:
        HttpMessageError: A field in it is of framing or routing (RFC 9110 §6.5.1).
    """
    fields = split_fields(section)
    for name, _ in split_fields_alone(section) if fields is None else fields:
        if name.lower() in _NOT_IN_TRAILERS:
            raise HttpMessageError(HttpMessageReason.TRAILER_FIELD)
    if fields is None:
        raise HttpMessageError(HttpMessageReason.FIELDS)
    return Trailers(fields)


def _known_fields(fields: Fields) -> dict[bytes, bytes]:
    """Return the values of the fields in _KNOWN by their names in lower case."""
    known: dict[bytes, bytes] = {}
    for name, value in fields:
        lower = name.lower()
        if lower in _KNOWN:
            if lower not in known:
                known[lower] = value
            elif lower in _ONCE:
                raise HttpMessageError(_ONCE[lower])
            else:
                known[lower] += b"," + value  # RFC 9110 §5.3
    return known


def _framing(known: dict[bytes, bytes], minor_version: int) -> tuple[Framing, int]:
    """Return what the fields say of the body, be it there or not (RFC 9112 §6)."""
    length = known.get(b"content-length")
    encoding = known.get(b"transfer-encoding")
    if encoding is not None:
        if length is not None:
            raise HttpMessageError(HttpMessageReason.TWO_LENGTHS)
        if not minor_version:
            raise HttpMessageError(HttpMessageReason.TRANSFER_ENCODING_OLD)
        if encoding.lower() != b"chunked":
            raise HttpMessageError(_why_not_chunked(encoding))
        return Framing.CHUNKED, 0
    if length is None:
        return Framing.NONE, 0
    if not _is_length(length):
        raise HttpMessageError(HttpMessageReason.CONTENT_LENGTH)
    return Framing.LENGTH, int(length)


def _why_not_chunked(encoding: bytes) -> HttpMessageReason:
    """Tell a body that somebody could read from one that has no end (RFC 9112 §6.3)."""
    *others, last = [coding.strip(b" \t").lower() for coding in encoding.split(b",")]
    if last == b"chunked" and all(others) and b"chunked" not in others:
        return HttpMessageReason.TRANSFER_CODING
    return HttpMessageReason.TRANSFER_ENCODING


def _members(value: bytes) -> frozenset[bytes]:
    """Return the members of a list in lower case (RFC 9110 §5.6.1)."""
    return frozenset([member.strip(b" \t").lower() for member in value.split(b",")]) - {b""}


def _options(value: bytes | None) -> frozenset[bytes]:
    """Return what Connection nominates (RFC 9110 §7.6.1)."""
    if value is None:
        return _NO_OPTIONS
    return _USUAL_OPTIONS.get(value) or _members(value)
