from __future__ import annotations

from typing import TYPE_CHECKING

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import errors
from sidecar.errors import (
    AddressError,
    AddressRefused,
    CertificateMismatch,
    CertificateUnavailable,
    ConnectionRefused,
    ConnectionReset,
    ConnectionTimeout,
    DestinationUnroutable,
    DialError,
    NameNotResolved,
    ProxyLoopDetected,
    ResolverBusy,
    ResolveTimeout,
    TunnelRefused,
    TunnelReplyMalformed,
    TunnelTimeout,
    TunnelUnauthorized,
    VerificationError,
    VerificationImpossible,
)
from sidecar.flow import FlowEnd
from sidecar.protocols.http import replies
from sidecar.protocols.http.replies import (
    INTERNAL_ERROR,
    ProxyError,
    Reply,
    denied,
    malformed_request,
    malformed_response,
    render,
    reply_to,
    reply_to_end,
)
from sidecar.wire.http1.errors import HttpMessageError, HttpMessageReason

if TYPE_CHECKING:
    from collections.abc import Iterator

UPSTREAM = "192.0.2.1:80"
CONSTANTS = [each for each in vars(replies).values() if isinstance(each, Reply)]
FOREIGN = "<script>\r\nX: y"


class Parsed:
    """What llhttp, strict, makes of a response."""

    def __init__(self, data: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.body = b""
        self.whole = self.keep_alive = False
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(data)
        self.status = self._parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        assert name.decode() not in self.fields
        self.fields[name.decode()] = value.decode()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.whole = True
        self.keep_alive = self._parser.should_keep_alive()


def subclasses(kind: type[Exception]) -> Iterator[type[Exception]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


class TestRender:
    def test_whole(self) -> None:
        """An answer is a response with its length, type, date and cause, and nothing else."""
        found = render(replies.NOT_FOR_A_PROXY, keep_alive=True, now=784_111_777.9)
        expected = (
            b"HTTP/1.1 400 Bad Request\r\n"
            b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
            b'Proxy-Status: sidecar; error=http_request_error; details="not_for_a_proxy"\r\n'
            b"Content-Type: text/plain; charset=us-ascii\r\n"
            b"X-Content-Type-Options: nosniff\r\n"
            b"Cache-Control: no-store\r\n"
            b"Content-Length: 90\r\n"
            b"\r\n"
            b"sidecar: this is a proxy: it is asked for http://HOST/PATH, "
            b"or with CONNECT for HOST:PORT\n"
        )
        assert expected == found

    @pytest.mark.parametrize("reply", CONSTANTS, ids=lambda each: each.reason)
    @pytest.mark.parametrize("head", [False, True])
    @pytest.mark.parametrize("keep_alive", [False, True])
    @pytest.mark.parametrize("minor_version", [0, 1])
    def test_every_one(
        self, reply: Reply, head: bool, keep_alive: bool, minor_version: int
    ) -> None:
        """Each is well-formed; the connection stays open if all agree, and HTTP/1.0 is told."""
        data = render(reply, keep_alive=keep_alive, minor_version=minor_version, now=0)
        found = Parsed(data)
        stays = keep_alive and not reply.closes
        assert (reply.status, stays) == (found.status, found.keep_alive)
        assert found.whole
        if head:
            cut = len(data) - len(found.body)
            assert data[:cut] == render(
                reply, head=True, keep_alive=keep_alive, minor_version=minor_version, now=0
            )
        expected = "close" if not stays else "keep-alive" if minor_version == 0 else None
        assert expected == found.fields.get("Connection")
        assert "text/plain; charset=us-ascii" == found.fields["Content-Type"]
        assert ("Retry-After" in found.fields) == (reply.status == 503)

    @given(
        reason=st.text(),
        hint=st.text(),
        keep_alive=st.booleans(),
        now=st.floats(min_value=0, max_value=2**33),
    )
    def test_nothing_comes_back(self, reason: str, hint: str, keep_alive: bool, now: float) -> None:
        """Whatever text a bug elsewhere lets in, it ends no line and leaves ASCII nowhere."""
        data = render(denied(reason, hint), keep_alive=keep_alive, now=now)
        found = Parsed(data)
        assert found.whole
        assert found.body.isascii()
        assert 1 == found.body.count(b"\n")
        assert found.body.decode().rstrip("\n").isprintable()
        assert found.fields.keys() <= {
            *("Date", "Proxy-Status", "Content-Type", "X-Content-Type-Options"),
            *("Cache-Control", "Content-Length", "Connection"),
        }

    def test_challenge(self) -> None:
        """A 407 says how to authenticate, and leaves the connection open for it."""
        data = render(
            replies.AUTHENTICATION_REQUIRED, keep_alive=True, challenge=b'Basic realm="x"'
        )
        found = Parsed(data)
        assert 407 == found.status
        assert found.keep_alive
        assert 'Basic realm="x"' == found.fields["Proxy-Authenticate"]

    def test_unknown_status(self) -> None:
        """A status that has no phrase gets none."""
        assert render(Reply(599, ProxyError.DNS_ERROR, "x", "x")).startswith(b"HTTP/1.1 599 \r\n")


class TestDenied:
    def test_hint(self) -> None:
        """A denial says why, and which rule would allow it."""
        reply = denied("default", "example.org:443")
        data = Parsed(render(reply))
        assert 403 == data.status
        assert b"sidecar: denied: default; to allow it: example.org:443\n" == data.body
        assert (
            'sidecar; error=http_request_denied; details="default"' == data.fields["Proxy-Status"]
        )
        assert (FlowEnd.DENIED, True) == (reply.end, reply.denies)

    @pytest.mark.parametrize("reason", ["private_address", "metadata"])
    def test_address(self, reason: str) -> None:
        """That it is the address is said."""
        assert ProxyError.DESTINATION_IP_PROHIBITED is denied(reason).error


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status", "token"),
        [
            (ConnectionRefused(UPSTREAM, "x"), 502, "connection_refused"),
            (ConnectionReset(UPSTREAM, "x"), 502, "connection_terminated"),
            (ConnectionTimeout(UPSTREAM, "x"), 504, "connection_timeout"),
            (DestinationUnroutable(UPSTREAM, "x"), 502, "destination_ip_unroutable"),
            (NameNotResolved("a.example", "x"), 502, "dns_error"),
            (ResolverBusy("a.example", "x"), 503, "connection_limit_reached"),
            (ResolveTimeout("a.example", "x"), 504, "dns_timeout"),
            (ProxyLoopDetected(UPSTREAM, "x"), 508, "proxy_loop_detected"),
            (AddressRefused("a.example", UPSTREAM, "x"), 403, "destination_ip_prohibited"),
            (CertificateMismatch("a.example", UPSTREAM, "x"), 403, "tls_certificate_error"),
            (CertificateUnavailable("a.example", UPSTREAM, "x"), 403, "tls_protocol_error"),
            (
                VerificationImpossible("a.example", UPSTREAM, ResolveTimeout("a.example", "x")),
                504,
                "dns_timeout",
            ),
            (TunnelTimeout(UPSTREAM, "x"), 504, "connection_timeout"),
            (TunnelReplyMalformed(UPSTREAM, "x"), 502, "http_protocol_error"),
            (TunnelRefused(UPSTREAM, "x", 403), 502, "destination_unavailable"),
            (TunnelUnauthorized(UPSTREAM, "x", 407), 502, "proxy_configuration_error"),
            (AddressError(FOREIGN, "x"), 400, "http_request_error"),
            (ZeroDivisionError(), 500, "proxy_internal_error"),
        ],
        ids=lambda each: type(each).__name__ if isinstance(each, Exception) else str(each),
    )
    def test_table(self, error: Exception, status: int, token: str) -> None:
        """Each error has its status and its token of RFC 9209."""
        reply = reply_to(error)
        assert (status, token) == (reply.status, reply.error.value)

    @pytest.mark.parametrize("kind", [*subclasses(DialError)], ids=lambda each: each.__name__)
    def test_every_dial_error(self, kind: type[DialError]) -> None:
        """Every error of dialling, whoever adds it, is an answer of 5xx with its own ending."""
        reply = reply_to(kind(FOREIGN, FOREIGN))
        assert 500 <= reply.status <= 599
        assert INTERNAL_ERROR != reply
        assert kind.end is reply.end
        assert b"script" not in render(reply)

    @pytest.mark.parametrize(
        "kind",
        [each for each in subclasses(VerificationError) if each is not VerificationImpossible],
        ids=lambda each: each.__name__,
    )
    def test_every_verification_error(self, kind: type[VerificationError]) -> None:
        """Every name that an address does not belong to is a denial with its reason."""
        reply = reply_to(kind(FOREIGN, FOREIGN, FOREIGN))
        assert (403, kind.reason, FlowEnd.DENIED) == (reply.status, reply.reason, reply.end)
        assert f"sidecar: denied: {kind.reason}\n".encode() == Parsed(render(reply)).body

    def test_nothing_is_left_out(self) -> None:
        """The tables above are about all errors that a request can meet."""
        there = {
            *subclasses(DialError),
            *subclasses(VerificationError),
        }
        assert there == {
            kind
            for kind in vars(errors).values()
            if isinstance(kind, type)
            and issubclass(kind, DialError | VerificationError)
            and kind not in {DialError, VerificationError}
        }


class TestEnds:
    @pytest.mark.parametrize("end", FlowEnd)
    def test_every_end(self, end: FlowEnd) -> None:
        """Every ending has an answer, which ends the flow so, unless nobody is left to hear it."""
        reply = reply_to_end(end)
        if reply is None:
            assert end in {FlowEnd.CLOSED, FlowEnd.CLIENT_RESET}
        else:
            assert end is reply.end


class TestMessages:
    @pytest.mark.parametrize("reason", HttpMessageReason)
    def test_request(self, reason: HttpMessageReason) -> None:
        """A malformed request is answered with its status, and the connection closed."""
        reply = reply_to(HttpMessageError(reason))
        assert malformed_request(HttpMessageError(reason)) == reply
        assert (reason.status, f"http_{reason.value}") == (reply.status, reply.reason)
        assert reply.closes
        assert reply.denies
        assert f"(http_{reason.value})\n".encode() in render(reply)

    @pytest.mark.parametrize("reason", HttpMessageReason)
    def test_response(self, reason: HttpMessageReason) -> None:
        """A malformed response is a 502, whatever status a request like it deserved."""
        error = HttpMessageError(reason, in_response=True)
        reply = reply_to(error)
        assert malformed_response(error) == reply
        assert (502, FlowEnd.PROTOCOL_ERROR, False) == (reply.status, reply.end, reply.denies)

    @pytest.mark.parametrize(
        ("reason", "token"),
        [
            (HttpMessageReason.INCOMPLETE, "http_response_incomplete"),
            (HttpMessageReason.STATUS_LINE, "http_protocol_error"),
            (HttpMessageReason.HEAD_TOO_LARGE, "http_response_header_section_size"),
            (HttpMessageReason.CHUNK_SIZE, "http_response_transfer_coding"),
        ],
    )
    def test_response_token(self, reason: HttpMessageReason, token: str) -> None:
        """What was wrong with the response is said."""
        assert token == reply_to(HttpMessageError(reason, in_response=True)).error.value


class TestUpstreamProxy:
    def test_received_status(self) -> None:
        """What the proxy on the way answered is said."""
        found = Parsed(render(reply_to(TunnelRefused(UPSTREAM, "x", 403))))
        assert 502 == found.status
        assert (
            "sidecar; error=destination_unavailable; received-status=403;"
            ' details="destination_unroutable"'
        ) == found.fields["Proxy-Status"]
