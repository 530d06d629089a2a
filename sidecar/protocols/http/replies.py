"""Our own answers: what an HTTP client is told when there is no server's answer for it.

Each says in its status, in a stable reason code and in ``Proxy-Status`` (RFC 9209) what
went wrong and who says so. The texts are fixed: nothing that a peer sent comes back in
them, so there is nothing to escape. What varies is the text of a rule, which only names
canonical hosts.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from email.utils import formatdate
from enum import Enum
from functools import lru_cache
from http import HTTPStatus

from sidecar.errors import (
    AddressError,
    AddressRefused,
    CertificateMismatch,
    CertificateUnavailable,
    DialError,
    ResolverBusy,
    TunnelError,
    TunnelReplyMalformed,
    TunnelTimeout,
    TunnelUnauthorized,
    VerificationError,
    VerificationImpossible,
)
from sidecar.flow import FlowEnd
from sidecar.wire.http1.errors import HttpMessageError, HttpMessageReason

__all__ = [
    "AUTHENTICATION_BUSY",
    "AUTHENTICATION_REQUIRED",
    "AUTHENTICATION_UNAVAILABLE",
    "CONTENT_TOO_LARGE",
    "FTP_UNSUPPORTED",
    "HTTPS_UNSUPPORTED",
    "INTERNAL_ERROR",
    "INVALID_HOST",
    "LOOP",
    "MAX_FORWARDS",
    "NOT_FOR_A_PROXY",
    "REQUEST_TIMEOUT",
    "RESPONSE_INCOMPLETE",
    "RESPONSE_TIMEOUT",
    "SCHEME_UNSUPPORTED",
    "TOO_MANY_CONNECTIONS",
    "UPSTREAM_PROXY_REFUSED",
    "ProxyError",
    "Reply",
    "denied",
    "malformed_request",
    "malformed_response",
    "render",
    "reply_to",
    "reply_to_end",
]

# Seconds after which a client may come again to what is busy.
_RETRY_AFTER = 1
# What may stand in a text: a bug elsewhere must not make a header or a page of it.
_foreign = re.compile(r"[^ -~]").sub
_is_code = re.compile(r"[a-z0-9_]{1,64}").fullmatch


class ProxyError(Enum):
    """What `Proxy-Status` says of a failure: the types of RFC 9209 §2.3 that we have."""

    DNS_TIMEOUT = "dns_timeout"
    DNS_ERROR = "dns_error"
    DESTINATION_UNAVAILABLE = "destination_unavailable"
    DESTINATION_IP_PROHIBITED = "destination_ip_prohibited"
    DESTINATION_IP_UNROUTABLE = "destination_ip_unroutable"
    CONNECTION_REFUSED = "connection_refused"
    CONNECTION_TERMINATED = "connection_terminated"
    CONNECTION_TIMEOUT = "connection_timeout"
    CONNECTION_READ_TIMEOUT = "connection_read_timeout"
    CONNECTION_LIMIT_REACHED = "connection_limit_reached"
    TLS_PROTOCOL_ERROR = "tls_protocol_error"
    TLS_CERTIFICATE_ERROR = "tls_certificate_error"
    HTTP_REQUEST_ERROR = "http_request_error"
    HTTP_REQUEST_DENIED = "http_request_denied"
    HTTP_RESPONSE_HEADER_SECTION_SIZE = "http_response_header_section_size"
    HTTP_RESPONSE_TRANSFER_CODING = "http_response_transfer_coding"
    HTTP_RESPONSE_INCOMPLETE = "http_response_incomplete"
    HTTP_RESPONSE_TIMEOUT = "http_response_timeout"
    HTTP_PROTOCOL_ERROR = "http_protocol_error"
    PROXY_INTERNAL_RESPONSE = "proxy_internal_response"
    PROXY_INTERNAL_ERROR = "proxy_internal_error"
    PROXY_CONFIGURATION_ERROR = "proxy_configuration_error"
    PROXY_LOOP_DETECTED = "proxy_loop_detected"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of ours.

    Attributes:
        status: The status code.
        error: What `Proxy-Status` says.
        reason: Why, as a stable code (docs/reference/reasons.md).
        text: The same for people: one line of printable ASCII.
        end: How the flow ends.
        closes: Whether the connection can't be used after it, whatever client and
            limits say: nobody knows where the next request would begin.
        retry_after: Seconds after which it may go better; None if nobody knows.
        received_status: What a proxy on the way answered; None if that isn't the cause.
        hint: The text of a rule that would allow the request; empty if none would.
    """

    status: int
    error: ProxyError
    reason: str
    text: str
    end: FlowEnd = FlowEnd.HTTP_REQUEST_ERROR
    closes: bool = False
    retry_after: int | None = None
    received_status: int | None = None
    hint: str = ""

    @property
    def denies(self) -> bool:
        """Whether the flow was refused, rather than tried in vain."""
        return self.end in _REFUSALS


_REFUSALS = frozenset({FlowEnd.DENIED, FlowEnd.HTTP_REQUEST_ERROR, FlowEnd.PROXY_LOOP_DETECTED})

NOT_FOR_A_PROXY = Reply(
    400,
    ProxyError.HTTP_REQUEST_ERROR,
    "not_for_a_proxy",
    "this is a proxy: it is asked for http://HOST/PATH, or with CONNECT for HOST:PORT",
)
INVALID_HOST = Reply(
    400,
    ProxyError.HTTP_REQUEST_ERROR,
    "invalid_host",
    "the request's host or port is none (international names are written as xn--...)",
)
HTTPS_UNSUPPORTED = Reply(
    501,
    ProxyError.PROXY_INTERNAL_RESPONSE,
    "scheme_unsupported",
    "https:// is not forwarded: use CONNECT, so that only the server reads the request",
)
FTP_UNSUPPORTED = Reply(
    501,
    ProxyError.PROXY_INTERNAL_RESPONSE,
    "scheme_unsupported",
    "ftp:// is not forwarded: this proxy speaks no FTP; use CONNECT, or http://",
)
SCHEME_UNSUPPORTED = Reply(
    501,
    ProxyError.PROXY_INTERNAL_RESPONSE,
    "scheme_unsupported",
    "only http:// is forwarded; for everything else use CONNECT",
)
AUTHENTICATION_REQUIRED = Reply(
    407,
    ProxyError.HTTP_REQUEST_DENIED,
    "authentication_required",
    "a user name and password are needed (Proxy-Authorization: Basic)",
)
AUTHENTICATION_UNAVAILABLE = Reply(
    500,
    ProxyError.PROXY_INTERNAL_ERROR,
    "authentication_unavailable",
    "whether the password is right can't be found out",
)
AUTHENTICATION_BUSY = Reply(
    503,
    ProxyError.CONNECTION_LIMIT_REACHED,
    "authentication_busy",
    "too many passwords are being checked",
    retry_after=_RETRY_AFTER,
)
MAX_FORWARDS = Reply(
    400,
    ProxyError.HTTP_REQUEST_ERROR,
    "http_max_forwards",
    "the request's Max-Forwards is no number",
)
REQUEST_TIMEOUT = Reply(
    408,
    ProxyError.HTTP_REQUEST_ERROR,
    "request_timeout",
    "the request took too long to arrive",
    closes=True,
)
CONTENT_TOO_LARGE = Reply(
    413,
    ProxyError.HTTP_REQUEST_ERROR,
    "content_too_large",
    "the request's content is longer than this proxy lets through",
    closes=True,
)
TOO_MANY_CONNECTIONS = Reply(
    503,
    ProxyError.CONNECTION_LIMIT_REACHED,
    "too_many_connections",
    "too many connections from this client",
    closes=True,
    retry_after=_RETRY_AFTER,
)
LOOP = Reply(
    508,
    ProxyError.PROXY_LOOP_DETECTED,
    "proxy_loop_detected",
    "the request would come back to this proxy",
    FlowEnd.PROXY_LOOP_DETECTED,
)
RESPONSE_TIMEOUT = Reply(
    504,
    ProxyError.HTTP_RESPONSE_TIMEOUT,
    "response_timeout",
    "the server took too long to answer",
    FlowEnd.IDLE_TIMEOUT,
)
RESPONSE_INCOMPLETE = Reply(
    502,
    ProxyError.HTTP_RESPONSE_INCOMPLETE,
    "response_incomplete",
    "the server closed the connection before it had answered",
    FlowEnd.PROTOCOL_ERROR,
)
INTERNAL_ERROR = Reply(
    500,
    ProxyError.PROXY_INTERNAL_ERROR,
    "internal_error",
    "a bug of the proxy's; its log says more",
    FlowEnd.PROTOCOL_ERROR,
    closes=True,
)

UPSTREAM_PROXY_REFUSED = Reply(
    502,
    ProxyError.PROXY_CONFIGURATION_ERROR,
    "upstream_proxy_unauthorized",
    "the proxy on the way wants other credentials than this one has",
    FlowEnd.DESTINATION_UNROUTABLE,
    received_status=407,
)
_UPSTREAM_PROXY_TIMEOUT = Reply(
    504,
    ProxyError.CONNECTION_TIMEOUT,
    FlowEnd.CONNECTION_TIMEOUT.value,
    "the proxy on the way took too long to answer",
    FlowEnd.CONNECTION_TIMEOUT,
)
_UPSTREAM_PROXY_MALFORMED = Reply(
    502,
    ProxyError.HTTP_PROTOCOL_ERROR,
    FlowEnd.DESTINATION_UNROUTABLE.value,
    "the proxy on the way gave no answer that can be understood",
    FlowEnd.DESTINATION_UNROUTABLE,
)
_UPSTREAM_PROXY_DENIED = Reply(
    502,
    ProxyError.DESTINATION_UNAVAILABLE,
    FlowEnd.DESTINATION_UNROUTABLE.value,
    "the proxy on the way refused",
    FlowEnd.DESTINATION_UNROUTABLE,
)
_BUSY_RESOLVING = Reply(
    503,
    ProxyError.CONNECTION_LIMIT_REACHED,
    "dns_error",
    "too many names are being resolved",
    FlowEnd.DNS_ERROR,
    retry_after=_RETRY_AFTER,
)


def _upstream(status: int, error: ProxyError, end: FlowEnd, text: str) -> Reply:
    return Reply(status, error, end.value, text, end)


# Every ending that leaves somebody to answer. Those of a `DialError` are here by its
# `end`.
_BY_END: dict[FlowEnd, Reply | None] = {
    FlowEnd.CLOSED: None,
    FlowEnd.CLIENT_RESET: None,
    FlowEnd.DENIED: Reply(
        403,
        ProxyError.HTTP_REQUEST_DENIED,
        "denied_by_rule",
        "denied: denied_by_rule",
        FlowEnd.DENIED,
    ),
    FlowEnd.SERVER_RESET: _upstream(
        502,
        ProxyError.CONNECTION_TERMINATED,
        FlowEnd.SERVER_RESET,
        "the server broke the connection off",
    ),
    FlowEnd.CONNECTION_REFUSED: _upstream(
        502,
        ProxyError.CONNECTION_REFUSED,
        FlowEnd.CONNECTION_REFUSED,
        "the server refused the connection",
    ),
    FlowEnd.CONNECTION_TIMEOUT: _upstream(
        504,
        ProxyError.CONNECTION_TIMEOUT,
        FlowEnd.CONNECTION_TIMEOUT,
        "the server could not be reached in time",
    ),
    FlowEnd.DESTINATION_UNROUTABLE: _upstream(
        502,
        ProxyError.DESTINATION_IP_UNROUTABLE,
        FlowEnd.DESTINATION_UNROUTABLE,
        "no way leads to the server's address",
    ),
    FlowEnd.DNS_ERROR: _upstream(
        502,
        ProxyError.DNS_ERROR,
        FlowEnd.DNS_ERROR,
        "the host name has no address",
    ),
    FlowEnd.DNS_TIMEOUT: _upstream(
        504,
        ProxyError.DNS_TIMEOUT,
        FlowEnd.DNS_TIMEOUT,
        "nobody said in time which addresses the host name has",
    ),
    FlowEnd.PROXY_LOOP_DETECTED: LOOP,
    FlowEnd.IDLE_TIMEOUT: Reply(
        504,
        ProxyError.CONNECTION_READ_TIMEOUT,
        "response_timeout",
        "the server fell silent",
        FlowEnd.IDLE_TIMEOUT,
    ),
    FlowEnd.HTTP_REQUEST_ERROR: Reply(
        400,
        ProxyError.HTTP_REQUEST_ERROR,
        "http_request_error",
        "the request can't be understood",
        closes=True,
    ),
    FlowEnd.PROTOCOL_ERROR: Reply(
        502,
        ProxyError.HTTP_PROTOCOL_ERROR,
        "response_malformed",
        "the server's answer can't be understood",
        FlowEnd.PROTOCOL_ERROR,
    ),
    FlowEnd.SHUTDOWN: Reply(
        503,
        ProxyError.PROXY_INTERNAL_RESPONSE,
        "shutdown",
        "the proxy is being stopped",
        FlowEnd.SHUTDOWN,
        closes=True,
    ),
}
# Which errors are another thing to a client than their ending says.
_DENIALS: dict[type[VerificationError], ProxyError] = {
    AddressRefused: ProxyError.DESTINATION_IP_PROHIBITED,
    CertificateMismatch: ProxyError.TLS_CERTIFICATE_ERROR,
    CertificateUnavailable: ProxyError.TLS_PROTOCOL_ERROR,
}
# The policy's reasons that speak of an address.
_ADDRESS_REASONS = frozenset({"private_address", "metadata", "address_refused"})
_RESPONSE_ERRORS = {
    HttpMessageReason.HEAD_TOO_LARGE: ProxyError.HTTP_RESPONSE_HEADER_SECTION_SIZE,
    HttpMessageReason.TOO_MANY_FIELDS: ProxyError.HTTP_RESPONSE_HEADER_SECTION_SIZE,
    HttpMessageReason.TRANSFER_ENCODING: ProxyError.HTTP_RESPONSE_TRANSFER_CODING,
    HttpMessageReason.TRANSFER_ENCODING_DUPLICATE: ProxyError.HTTP_RESPONSE_TRANSFER_CODING,
    HttpMessageReason.TRANSFER_ENCODING_OLD: ProxyError.HTTP_RESPONSE_TRANSFER_CODING,
    HttpMessageReason.CHUNK_SIZE: ProxyError.HTTP_RESPONSE_TRANSFER_CODING,
    HttpMessageReason.CHUNK_END: ProxyError.HTTP_RESPONSE_TRANSFER_CODING,
}
_REQUEST_TEXTS = {
    413: "the request's content is longer than this proxy lets through",
    414: "the request's target is too long",
    417: "nothing but 100-continue can be expected",
    431: "the request's head is too large, or has too many fields",
    501: "the request has a transfer coding or method that this proxy doesn't know",
    505: "the request's version of HTTP is neither 1.0 nor 1.1",
}


def denied(reason: str, hint: str = "", error: ProxyError | None = None) -> Reply:
    """A request that is not allowed.

    Args:
        reason: The stable code of the denial.
        hint: The text of a rule that would allow it; empty for none.
        error: What `Proxy-Status` says; None for what the reason implies.
    """
    reason = reason if _is_code(reason) else "denied"
    if error is None:
        error = (
            ProxyError.DESTINATION_IP_PROHIBITED
            if reason in _ADDRESS_REASONS
            else ProxyError.HTTP_REQUEST_DENIED
        )
    # The wording is protocols/denials.py's, which intercepted clients read.
    text = f"denied: {reason}; to allow it: {hint}" if hint else f"denied: {reason}"
    return Reply(403, error, reason, text, FlowEnd.DENIED, hint=hint)


def reply_to_end(end: FlowEnd) -> Reply | None:
    """What a client is told whose flow ends like that; None if nobody is left to hear it."""
    return _BY_END[end]


def reply_to(error: BaseException) -> Reply:
    """What a client is told whose request failed with an error of ours.

    Args:
        error: A `DialError`, `VerificationError`, `AddressError` or `HttpMessageError`;
            anything else is a bug.
    """
    if isinstance(error, VerificationImpossible):
        # What failed is the look-up or the probe, and that is what the client can mend.
        error = error.cause
    if isinstance(error, ResolverBusy):
        return _BUSY_RESOLVING
    if isinstance(error, TunnelError):
        return _no_tunnel(error)
    if isinstance(error, DialError):
        return _BY_END[error.end] or INTERNAL_ERROR
    if isinstance(error, VerificationError):
        return denied(error.reason, error=_DENIALS.get(type(error)))
    if isinstance(error, AddressError):
        return INVALID_HOST
    if isinstance(error, HttpMessageError):
        return malformed_response(error) if error.in_response else malformed_request(error)
    return INTERNAL_ERROR


def _no_tunnel(error: TunnelError) -> Reply:
    """What a client is told if the proxy on the way is the trouble; never its 407."""
    if isinstance(error, TunnelTimeout):
        return _UPSTREAM_PROXY_TIMEOUT
    if isinstance(error, TunnelReplyMalformed):
        return _UPSTREAM_PROXY_MALFORMED
    known = (
        UPSTREAM_PROXY_REFUSED if isinstance(error, TunnelUnauthorized) else _UPSTREAM_PROXY_DENIED
    )
    return replace(known, received_status=error.status)


def malformed_request(error: HttpMessageError) -> Reply:
    """What a client is told whose request has no meaning that all would agree on.

    The connection is closed after it: where the next request begins, nobody can say.
    """
    status = error.status
    text = _REQUEST_TEXTS.get(status, "the request is not well-formed")
    token = (
        ProxyError.HTTP_REQUEST_ERROR
        if status < HTTPStatus.INTERNAL_SERVER_ERROR
        else ProxyError.PROXY_INTERNAL_RESPONSE
    )
    reason = f"http_{error.reason.value}"
    return Reply(status, token, reason, f"{text} ({reason})", closes=True)


def malformed_response(error: HttpMessageError) -> Reply:
    """What a client is told whose server answered something that can't be passed on."""
    if error.reason is HttpMessageReason.INCOMPLETE:
        return RESPONSE_INCOMPLETE
    return Reply(
        502,
        _RESPONSE_ERRORS.get(error.reason, ProxyError.HTTP_PROTOCOL_ERROR),
        "response_malformed",
        f"the server's answer is not well-formed (http_{error.reason.value})",
        FlowEnd.PROTOCOL_ERROR,
    )


def render(
    reply: Reply,
    *,
    head: bool = False,
    minor_version: int = 1,
    keep_alive: bool = False,
    challenge: bytes | None = None,
    now: float | None = None,
) -> bytes:
    """Write an answer (RFC 9112 §4).

    Args:
        reply: What to say.
        head: Whether the request's method was HEAD: the length is said, the content
            is not sent.
        minor_version: Of the request's HTTP/1; 0 must be told that the connection stays.
        keep_alive: Whether the connection stays open, unless the reply closes it.
        challenge: The value of Proxy-Authenticate; with 407.
        now: Seconds since the epoch; None for now.

    Returns:
        The whole response; if `reply.closes` or not `keep_alive`, the connection is
        to be closed after it.
    """
    body = f"sidecar: {_foreign('?', reply.text)}\n".encode("ascii")
    status = reply.received_status
    received = "" if status is None else f"; received-status={status:d}"
    date = _http_date(int(time.time() if now is None else now))
    head_text = (
        f"HTTP/1.1 {reply.status} {_phrase(reply.status)}\r\n"
        f"Date: {date}\r\n"
        f"Proxy-Status: sidecar; error={reply.error.value}{received};"
        f" details={_quoted(reply.reason)}\r\n"
        "Content-Type: text/plain; charset=us-ascii\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        # 414 and 501 could be kept (RFC 9110 §15.1), as if the server had said it.
        "Cache-Control: no-store\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    if reply.retry_after is not None:
        head_text += f"Retry-After: {reply.retry_after}\r\n"
    if challenge is not None:
        head_text += f"Proxy-Authenticate: {challenge.decode('ascii')}\r\n"
    if reply.closes or not keep_alive:
        head_text += "Connection: close\r\n"
    elif minor_version == 0:
        head_text += "Connection: keep-alive\r\n"
    written = f"{head_text}\r\n".encode("ascii")
    return written if head else written + body


def _quoted(code: str) -> str:
    """Write a string of RFC 8941 §3.3.3; ours are codes, which need no escapes."""
    return f'"{code}"' if _is_code(code) else '"error"'


@lru_cache(maxsize=64)
def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        # The phrase may be empty (RFC 9112 §4).
        return ""


# One second's is asked for many times in a row.
@lru_cache(maxsize=2)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)
