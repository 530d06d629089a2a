"""What a request target means: the four forms of RFC 9112 §3.2.

An authority stays bytes: whether it is one, `sidecar.addresses` says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from sidecar.wire.http1.errors import HttpMessageError, HttpMessageReason

__all__ = ["Target", "TargetForm", "parse_target"]

# RFC 3986 §3. A backslash ends an authority for some and not for others, and what is
# before an @ is what others take for the host (RFC 9110 §4.2.4).
_absolute = re.compile(
    rb"([A-Za-z][A-Za-z0-9+.-]{0,31})://([A-Za-z0-9._~!$&'()*+,;=%:\[\]-]+)(/[^#]*|\?[^#]*|)"
).fullmatch
_authority = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]+:[0-9]+").fullmatch
_ASTERISK = b"*"
_OPTIONS = b"OPTIONS"
_CONNECT = b"CONNECT"


class TargetForm(Enum):
    """Which form a request target has."""

    ORIGIN = "origin"
    """A path, to the server itself."""
    ABSOLUTE = "absolute"
    """A URI, to a proxy."""
    AUTHORITY = "authority"
    """Host and port: CONNECT's."""
    ASTERISK = "asterisk"
    """The server as a whole: OPTIONS's."""


@dataclass(slots=True)  # not frozen: one is made for each request
class Target:
    """What a request target means.

    Attributes:
        form: Its form.
        scheme: Of an absolute one, in lower case; else empty.
        authority: Of an absolute one or CONNECT's, as sent: with a port if it has one, as
            CONNECT's has; else empty. Never with user information.
        origin: What to ask the origin for: path and query, or an asterisk. Empty for CONNECT.
    """

    form: TargetForm
    scheme: bytes
    authority: bytes
    origin: bytes


_ALL = Target(TargetForm.ASTERISK, b"", b"", _ASTERISK)


def parse_target(method: bytes, target: bytes) -> Target:
    """Read a request target.

    Args:
        method: The request's, which decides what is allowed.
        target: As a RequestReader gives it.

    Raises:
        HttpMessageError: It has none of the forms, or one that the method doesn't go with.
            In an absolute one a fragment, user information, a backslash or nothing in
            the authority.
    """
    if method == _CONNECT:
        if not _authority(target):
            raise HttpMessageError(HttpMessageReason.TARGET)
        return Target(TargetForm.AUTHORITY, b"", target, b"")
    if target.startswith(b"/"):
        if target.find(b"#") >= 0:
            raise HttpMessageError(HttpMessageReason.TARGET)
        return Target(TargetForm.ORIGIN, b"", b"", target)
    absolute = _absolute(target)
    if absolute is not None:
        scheme, authority, origin = absolute.groups()
        if not origin.startswith(b"/"):
            # RFC 9112 §3.2.1 and §3.2.4.
            origin = _ASTERISK if method == _OPTIONS and not origin else b"/" + origin
        return Target(TargetForm.ABSOLUTE, scheme.lower(), authority, origin)
    if target == _ASTERISK and method == _OPTIONS:
        return _ALL
    raise HttpMessageError(HttpMessageReason.TARGET)
