"""Whether a client speaks HTTP/1, and for which host: the head of its first request.

A small reader of its own rather than httptools: only the host is wanted, and nothing is
forwarded from what is read here. llhttp takes leading blank lines and doubled spaces,
knows a fixed list of methods, and tells its reasons as text. Each laxity is a way to
show a proxy another Host than the server sees, so here all are errors: a request whose
host two readers could see differently has no host.

    HttpHeadError       its `reason` is one of HttpHeadReason
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

__all__ = [
    "MAX_HEAD_BYTES",
    "MAX_HEAD_FIELDS",
    "HttpHead",
    "HttpHeadError",
    "HttpHeadReader",
    "HttpHeadReason",
]

MAX_HEAD_BYTES = 65_536
"""How long a head may be, its blank line included: servers take 8 to 64 KiB."""

MAX_HEAD_FIELDS = 100
"""How many field lines: Apache's default; browsers send twenty."""

_MAX_METHOD = 32  # the longest registered one has 17 (RFC 9110 §18.2)
_BAD_REQUEST = 400
_FIELDS_TOO_LARGE = 431
_VERSION_NOT_SUPPORTED = 505

# RFC 9110 §5.6.2 and §5.5 (obs-text is allowed: it can't end anything).
_not_token = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]").search
_not_text = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_not_target = re.compile(rb"[\x00-\x20\x7f]").search
# RFC 3986 §3.1 and §3.2. A backslash ends an authority for some and not for others, and
# before an @ is what others take for the host (RFC 9110 §4.2.4).
_absolute = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)").match
_not_authority = re.compile(rb"[/?#\\@]").search
_port = re.compile(rb":([0-9]*)\Z").search
_version = re.compile(rb"HTTP/[0-9]\.[0-9]\Z").match
_VERSIONS = {b"HTTP/1.0": 0, b"HTTP/1.1": 1}
_DEFAULT_PORTS = {b"http": b"80", b"https": b"443"}


class HttpHeadReason(Enum):
    """Why bytes are no head of an HTTP/1 request. The values are stable."""

    NOT_HTTP = "not_http"
    """The client speaks something else: no method, or no version at its line's end."""
    VERSION = "version"
    """HTTP, but neither 1.0 nor 1.1; HTTP/2's preface above all (RFC 9113 §3.4)."""
    TOO_LARGE = "too_large"
    """Longer than MAX_HEAD_BYTES."""
    TOO_MANY_FIELDS = "too_many_fields"
    """More than MAX_HEAD_FIELDS."""
    LINE_END = "line_end"
    """A line that ends in LF alone, or a CR that ends none (RFC 9112 §2.2)."""
    TARGET = "target"
    """A request target of none of the four forms (RFC 9112 §3.2)."""
    FIELD_NAME = "field_name"
    """No colon, no name, or something else than a token: a space before the colon."""
    FIELD_VALUE = "field_value"
    """A control character: NUL above all."""
    FIELD_FOLDED = "field_folded"
    """A line that continues the one before (RFC 9112 §5.2)."""
    HOST_MISSING = "host_missing"
    """No Host in HTTP/1.1 (RFC 9112 §3.2)."""
    HOST_DUPLICATE = "host_duplicate"
    """More than one Host, be they the same (RFC 9112 §3.2)."""
    HOST_EMPTY = "host_empty"
    """A Host or a target's authority of no bytes."""
    HOST_MISMATCH = "host_mismatch"
    """The target names one authority, Host another."""


_STATUS = {
    HttpHeadReason.NOT_HTTP: None,
    HttpHeadReason.VERSION: _VERSION_NOT_SUPPORTED,
    HttpHeadReason.TOO_LARGE: _FIELDS_TOO_LARGE,
    HttpHeadReason.TOO_MANY_FIELDS: _FIELDS_TOO_LARGE,
}


class HttpHeadError(Exception):
    """Bytes that are no head of an HTTP/1 request, whatever follows them.

    Args:
        reason: Why.
    """

    def __init__(self, reason: HttpHeadReason) -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def status(self) -> int | None:
        """The status code that it deserves (RFC 9110 §15.5); None if the client isn't HTTP."""
        return _STATUS.get(self.reason, _BAD_REQUEST)

    def __str__(self) -> str:
        return f"no HTTP request: {self.reason.value}"


@dataclass(frozen=True, slots=True)
class HttpHead:
    """What the head of a request says of where it is to go.

    Attributes:
        method: A token, as sent.
        minor_version: Of HTTP/1: 0 or 1.
        host: The authority, as sent: host and perhaps port, never empty. The target's
            where it has one, which Host then agrees with, else Host's. None in HTTP/1.0
            without either. sidecar.addresses says whether it is an authority.
        to_proxy: Whether it is the target's: CONNECT's, or an absolute one, which only
            clients of proxies send, and servers take as well.
    """

    method: bytes
    minor_version: int
    host: bytes | None
    to_proxy: bool = False


class HttpHeadReader:
    """Reads a request's head from the beginning of a stream, which the caller keeps.

    An outcome does not depend on how the stream is cut, and does not change. What
    isn't HTTP is known by its first bytes or at its first line's end; all else is
    judged line by line.

    Attributes:
        size: With the outcome HttpHead, how many bytes of the stream it took, the blank
            line included. What follows belongs to whoever comes next.
    """

    __slots__ = ("_buffer", "_fields", "_head", "_hosts", "_line", "_reason", "_request", "size")

    def __init__(self) -> None:
        self.size = 0
        self._buffer = bytearray()
        self._line = 0  # where the current line begins
        self._request: tuple[bytes, bytes, int] | None = None  # method, target, version
        self._fields = 0
        self._hosts: list[bytes] = []
        self._head: HttpHead | None = None
        self._reason: HttpHeadReason | None = None

    def feed(self, data: bytes) -> HttpHead | None:
        """Read on.

        Args:
            data: What follows in the stream; copied.

        Returns:
            The head, now and ever after; None if more is needed.

        Raises:
            HttpHeadError: The stream doesn't begin with one; now and ever after.
        """
        if self._reason is not None:
            raise HttpHeadError(self._reason)
        if self._head is None:
            try:
                self._read(data)
            except HttpHeadError as error:
                self._reason = error.reason
                self._buffer = bytearray()
                raise
        return self._head

    def _read(self, data: bytes) -> None:
        buffer = self._buffer
        unsearched = len(buffer)
        buffer += data[: MAX_HEAD_BYTES - unsearched]
        while (end := buffer.find(b"\n", unsearched)) >= 0:
            line = bytes(buffer[self._line : end + 1])
            self._line = unsearched = end + 1
            if self._request is None:
                self._request = _request_line(line)
            elif line == b"\r\n":
                self._head = _head(*self._request, self._hosts)
                self.size = self._line
                self._buffer = bytearray()
                return
            else:
                self._field(line)
        if self._request is None:
            _check_method(buffer[: _MAX_METHOD + 1])
        if len(buffer) == MAX_HEAD_BYTES:
            raise HttpHeadError(HttpHeadReason.TOO_LARGE)

    def _field(self, line: bytes) -> None:
        """Take note of a field line (RFC 9112 §5)."""
        self._fields += 1
        if self._fields > MAX_HEAD_FIELDS:
            raise HttpHeadError(HttpHeadReason.TOO_MANY_FIELDS)
        line = _without_end(line)
        if line[:1] in (b" ", b"\t"):
            raise HttpHeadError(HttpHeadReason.FIELD_FOLDED)
        name, colon, value = line.partition(b":")
        if not colon or not name or _not_token(name):
            raise HttpHeadError(HttpHeadReason.FIELD_NAME)
        if _not_text(value):
            raise HttpHeadError(HttpHeadReason.FIELD_VALUE)
        if name.lower() == b"host":
            if self._hosts:
                raise HttpHeadError(HttpHeadReason.HOST_DUPLICATE)
            self._hosts.append(value.strip(b" \t"))


def _check_method(start: bytes | bytearray) -> bytes:
    """Judge the beginning of a stream: a method, or of one.

    Returns:
        The method, or what is there of it (RFC 9110 §9.1).

    Raises:
        HttpHeadError: It is none.
    """
    method, _, _ = bytes(start).partition(b" ")
    if (not method and start) or len(method) > _MAX_METHOD or _not_token(method):
        raise HttpHeadError(HttpHeadReason.NOT_HTTP)
    return method


def _without_end(line: bytes) -> bytes:
    """Return a line without its CR LF."""
    if not line.endswith(b"\r\n") or line.find(b"\r") != len(line) - 2:
        raise HttpHeadError(HttpHeadReason.LINE_END)
    return line[:-2]


def _request_line(line: bytes) -> tuple[bytes, bytes, int]:
    """Read a request line (RFC 9112 §3): method, target, minor version."""
    method = _check_method(line[: _MAX_METHOD + 1])
    version = line.rstrip(b"\r\n").rpartition(b" ")[2]
    if not _version(version):
        raise HttpHeadError(HttpHeadReason.NOT_HTTP)
    line = _without_end(line)
    if version not in _VERSIONS:
        raise HttpHeadError(HttpHeadReason.VERSION)
    target = line[len(method) + 1 : -len(version) - 1]
    if not target or _not_target(target):
        raise HttpHeadError(HttpHeadReason.TARGET)
    return method, target, _VERSIONS[version]


def _head(method: bytes, target: bytes, minor_version: int, hosts: list[bytes]) -> HttpHead:
    """Put together what a whole head says (RFC 9112 §3.2 and §3.3)."""
    host = hosts[0] if hosts else None
    if host is None and minor_version:
        raise HttpHeadError(HttpHeadReason.HOST_MISSING)
    if host == b"":
        raise HttpHeadError(HttpHeadReason.HOST_EMPTY)
    authority, default = _authority(method, target)
    if authority is not None:
        if not authority:
            raise HttpHeadError(HttpHeadReason.HOST_EMPTY)
        if host is not None and _split(authority, default) != _split(host, default):
            raise HttpHeadError(HttpHeadReason.HOST_MISMATCH)
        host = authority
    return HttpHead(method, minor_version, host, authority is not None)


def _authority(method: bytes, target: bytes) -> tuple[bytes | None, bytes]:
    """Read a target (RFC 9112 §3.2): the authority that it names, if any, and its default port."""
    if method == b"CONNECT":
        if _not_authority(target):
            raise HttpHeadError(HttpHeadReason.TARGET)
        # Clients differ in whether Host repeats the port.
        return target, _split(target, b"")[1]
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return None, b""
    absolute = _absolute(target)
    if absolute is None or _not_authority(absolute[2]):
        raise HttpHeadError(HttpHeadReason.TARGET)
    return absolute[2], _DEFAULT_PORTS.get(absolute[1].lower(), b"")


def _split(authority: bytes, default: bytes) -> tuple[bytes, bytes]:
    """Return host and port in a form in which equal ones are equal (RFC 3986 §6.2)."""
    port = _port(authority)
    if port is None:
        return authority.lower(), default
    return authority[: port.start()].lower(), port[1].lstrip(b"0") or default
