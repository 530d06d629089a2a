"""What of a request is sent on, and when is it not sent on at all (RFC 9110 §7.6)?"""

from __future__ import annotations

import re
from os import urandom
from typing import TYPE_CHECKING

from sidecar.protocols.http import replies
from sidecar.protocols.http.routing import Refusal
from sidecar.wire.http1.messages import Framing
from sidecar.wire.http1.writing import (
    forwardable,
    forwardable_lines,
    received_by,
    request_head,
    response_head,
)

if TYPE_CHECKING:
    from sidecar.protocols.http.places import Place
    from sidecar.upstream_proxy import UpstreamProxy
    from sidecar.wire.http1.messages import Fields, RequestHead, ResponseHead

__all__ = [
    "COUNTED",
    "Pseudonym",
    "hops_left",
    "names_connection",
    "own_answer",
    "passed_through",
    "request",
    "upgradable",
]

_TRACE = b"TRACE"
_OPTIONS = b"OPTIONS"
_MAX_FORWARDS = b"max-forwards"
COUNTED = frozenset({_TRACE, _OPTIONS})
"""The methods that may say how far they go."""

_is_printable = re.compile(rb"[ -~]+").fullmatch
_is_count = re.compile(rb"[0-9]{1,9}").fullmatch
# What would carry requests that nobody judges, or hide whom they are for.
_opaque = re.compile(rb"(?:\A|,)[ \t]*(?:h2|http|tls)", re.IGNORECASE).search
_UNAUTHORIZED = 401
_of_connection = re.compile(rb"(?:ntlm|negotiate|kerberos|nego2)\b", re.IGNORECASE).match
# What a request's own client need not read again, and others must not (RFC 9110 §9.3.8).
_SECRET = frozenset({b"authorization", b"cookie", b"proxy-authorization"})
# As `request_head` would write it.
_PLAIN = b"%b %b HTTP/1.1\r\nHost: %b\r\n%bVia: %b\r\n\r\n"


class Pseudonym:
    """What a proxy calls itself in Via: itself alone, so that others of its kind are none of it.

    Attributes:
        via: The line for messages received in HTTP/1.0, and in 1.1.
    """

    def __init__(self) -> None:
        name = f"sidecar-{urandom(4).hex()}"
        self._name = name.encode("ascii")
        self.via = (f"1.0 {name}".encode("ascii"), f"1.1 {name}".encode("ascii"))

    def is_in(self, head: RequestHead) -> bool:
        """Whether a request has been here before."""
        # Nearly always it is nowhere in the head.
        return self._name in head.section and self._name in received_by(head.fields)


def hops_left(head: RequestHead) -> int | None:
    """How far a request of COUNTED may still go (RFC 9110 §7.6.2); None: as far as it likes.

    Raises:
        Refusal: It says so in no way that could be read.
    """
    values = [value for name, value in head.fields if name.lower() == _MAX_FORWARDS]
    if not values:
        return None
    if len(values) > 1 or not _is_count(values[0]):
        raise Refusal(replies.MAX_FORWARDS)
    return int(values[0])


def own_answer(head: RequestHead, *, keep_alive: bool) -> bytes:
    """Answer a request that may go no further: TRACE with itself, OPTIONS with nothing."""
    body = b""
    fields: Fields = []
    if head.method == _TRACE:
        lines = [b"%b %b HTTP/1.%d" % (head.method, head.target, head.minor_version)]
        lines += [b": ".join(field) for field in head.fields if field[0].lower() not in _SECRET]
        body = b"\r\n".join([*lines, b"\r\n"])
        fields = [
            (b"Content-Type", b"message/http"),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"Cache-Control", b"no-store"),
        ]
    connection = b"close"
    if keep_alive:
        connection = b"" if head.minor_version else b"keep-alive"
    written = response_head(200, b"OK", fields, Framing.LENGTH, len(body), connection=connection)
    return written + body


def upgradable(head: RequestHead) -> bytes | None:
    """The protocols that a request offers and that may be spoken through us; None for none."""
    offered = head.upgrade
    if offered is None or head.framing is not Framing.NONE or _opaque(offered):
        return None
    return offered


def passed_through(head: RequestHead, via: tuple[bytes, bytes]) -> bytes:
    """The value of Via for a request that is made anew: who it came through, and we.

    What others wrote is left out where it isn't printable ASCII.
    """
    lines = [value for name, value in head.fields if name.lower() == b"via"]
    return b", ".join([*(line for line in lines if _is_printable(line)), via[head.minor_version]])


def names_connection(head: RequestHead, response: ResponseHead) -> bool:
    """Whether a server may take a user's name for that of the connection.

    Some do where the user is known by NTLM or Negotiate (RFC 4559 §6), so that whoever
    uses the connection next would be that user.
    """
    if response.status == _UNAUTHORIZED:
        return any(
            name.lower() == b"www-authenticate" and _of_connection(value)
            for name, value in response.fields
        )
    if b"uthorization" not in head.section:
        return False
    return any(
        name.lower() == b"authorization" and _of_connection(value) for name, value in head.fields
    )


def request(
    head: RequestHead,
    target: bytes,
    place: Place,
    via: tuple[bytes, bytes],
    proxy: UpstreamProxy | None,
) -> bytes:
    """The head of a request as it is sent on.

    Args:
        head: As it was received.
        target: In origin form.
        place: Whom it was judged for.
        via: As `Pseudonym.via`.
        proxy: Who gets it; None for the origin.
    """
    plain = head.framing is Framing.NONE and head.upgrade is None and proxy is None
    if plain and head.method not in COUNTED and not (head.expect_continue or head.trailers):
        # Nearly all are like this.
        return _PLAIN % (
            head.method,
            target,
            place.field,
            forwardable_lines(head),
            via[head.minor_version],
        )
    fields = forwardable(head.fields, head.options)
    if head.method in COUNTED:
        fields = [_one_hop_less(field) for field in fields]
    if proxy is not None:
        target = b"http://" + place.field + (b"" if target == b"*" else target)
        if proxy.authorization is not None:
            fields.append((b"Proxy-Authorization", proxy.authorization))
    return request_head(
        head.method,
        target,
        place.field,
        fields,
        head.framing,
        head.length,
        via=via[head.minor_version],
        upgrade=None if head.upgrade is None else upgradable(head),
        expect_continue=head.expect_continue,
        trailers=head.trailers,
    )


def _one_hop_less(field: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    name, value = field
    if name.lower() != _MAX_FORWARDS:
        return field
    return name, b"%d" % (int(value) - 1)
