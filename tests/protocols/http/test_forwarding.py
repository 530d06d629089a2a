"""Requests to the proxy and their responses (RFC 9110 §7, RFC 9112), as transcripts."""

from __future__ import annotations

import pytest
from protocols.http.proxying import Proxying, proxying

from sidecar.flow import DestinationSource, FlowEnd, HostSource, ListenerKind, Verdict

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
SERVED = b"HTTP/1.1 200 OK\r\nVia: 1.1 sidecar\r\nContent-Length: 2\r\n\r\nhi"
CLOSED = b"HTTP/1.1 200 OK\r\nVia: 1.1 sidecar\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"


class TestRequest:
    def test_origin_form(self) -> None:
        """An absolute form becomes an origin form with its authority as Host; a line is logged."""
        with proxying() as proxy:
            client = proxy.client()
            client.send(
                b"GET http://Origin.Test.:%d/a?b HTTP/1.1\r\nHost: else.where\r\nX-A: 1\r\n\r\n"
                % proxy.origin.port
            )
            server = proxy.origin.accept()
            server.expect(proxy.served(b"X-A: 1\r\n", b"/a?b"))
            server.send(OK)
            client.expect(SERVED)
            flow = proxy.flow
            facts = (flow.listener, flow.host, flow.host_from, flow.destination_from, flow.verdict)
            assert facts == (
                ListenerKind.HTTP_PROXY,
                "origin.test",
                HostSource.HOST,
                DestinationSource.REQUEST,
                Verdict.ALLOW,
            )
            assert (b"GET", b"/a?b", 200) == (flow.method, flow.target, flow.status)
            assert (0, 2, FlowEnd.CLOSED) == (flow.sent, flow.received, flow.end)
            assert f"127.0.0.1:{proxy.origin.port}" == str(flow.upstream) == str(flow.destination)

    def test_default_port(self) -> None:
        """Port 80 isn't in Host, and is what is dialled."""
        with proxying(deny=["*:80"]) as proxy:
            client = proxy.client()
            client.send(b"GET http://origin.test HTTP/1.1\r\nHost: x\r\n\r\n")
            assert 403 == client.status()
            assert ("origin.test", "denied_by_rule") == (proxy.flow.host, proxy.flow.reason)

    @pytest.mark.parametrize(
        ("sent", "passed"),
        [
            (b"Connection: X-A\r\nX-A: 1\r\nX-B: 2\r\n", b"X-B: 2\r\n"),
            (b"Connection: close, Host\r\n", b""),
            (b"Proxy-Authorization: Basic eDp5\r\nProxy-Connection: keep-alive\r\n", b""),
            (b"Keep-Alive: 5\r\nUpgrade: h2c\r\n", b""),
            (b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n", b""),
            (b"Cookie: a=1\r\nCookie: b=2\r\n", b"Cookie: a=1\r\nCookie: b=2\r\n"),
            (b"Proxy: http://evil\r\n", b""),
        ],
    )
    def test_hop_by_hop(self, sent: bytes, passed: bytes) -> None:
        """What is between two neighbours goes no further; everything else does."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, fields=sent)
            proxy.origin.accept().expect(proxy.served(passed))

    def test_te(self) -> None:
        """Only trailers are asked for, in our own name."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, fields=b"TE: trailers, gzip;q=0.5\r\nConnection: TE\r\n")
            proxy.origin.accept().expect(
                b"GET / HTTP/1.1\r\nHost: %b\r\nTE: trailers\r\nVia: 1.1 sidecar\r\n"
                b"Connection: TE\r\n\r\n" % proxy.authority
            )

    def test_via(self) -> None:
        """We are the last of those that it came through, with the version we got it in."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, fields=b"Via: 1.1 a, 1.0 sidecar-00000000\r\n", version=b"1.0")
            server = proxy.origin.accept()
            head = server.expect_head()
            assert b"Via: 1.1 a, 1.0 sidecar\r\nVia: 1.0 sidecar\r\n" in head

    def test_loop(self) -> None:
        """What we have sent on ourselves isn't sent on again."""
        with proxying() as proxy:
            client = proxy.client()
            via = proxy.factory.shared.pseudonym.via[1]
            proxy.request(client, fields=b"Via: 1.1 a, %b (us)\r\n" % via)
            assert 508 == client.status()
            proxy.origin.expect_nobody()
            flow = proxy.flow
            assert (FlowEnd.PROXY_LOOP_DETECTED, Verdict.DENY) == (flow.end, flow.verdict)

    def test_loop_by_address(self) -> None:
        """Nor is the listener itself dialled."""
        with proxying() as proxy:
            client = proxy.client()
            client.send(b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % proxy.port)
            assert 508 == client.status()
            assert FlowEnd.PROXY_LOOP_DETECTED == proxy.flow.end

    @pytest.mark.parametrize(
        ("target", "status", "reason"),
        [
            (b"/", 400, "not_for_a_proxy"),
            (b"*", 400, "not_for_a_proxy"),
            (b"https://origin.test/", 501, "scheme_unsupported"),
            (b"ftp://origin.test/", 501, "scheme_unsupported"),
            (b"gopher://origin.test/", 501, "scheme_unsupported"),
            (b"http://user@origin.test/", 400, "http_target"),
            (b"http:///", 400, "http_target"),
            (b"http://0x7f.1/", 400, "invalid_host"),
            (b"http://127.1/", 400, "invalid_host"),
            (b"http://origin.test:0/", 400, "invalid_host"),
            (b"http://origin.test:65536/", 400, "invalid_host"),
            (b"http://a..b/", 400, "invalid_host"),
            (b"http://[::1%25lo]/", 400, "invalid_host"),
            (b"http://nowhere.test/", 502, "dns_error"),
        ],
    )
    def test_targets(self, target: bytes, status: int, reason: str) -> None:
        """What can't be forwarded is answered with why; the connection stays usable."""
        with proxying() as proxy:
            client = proxy.client()
            client.send(b"OPTIONS %b HTTP/1.1\r\nHost: origin.test\r\n\r\n" % target)
            head = client.expect_head()
            assert (b"HTTP/1.1 %d " % status) in head
            assert reason.encode() in head
            assert status == proxy.flow.status
            proxy.origin.expect_nobody()

    def test_asterisk(self) -> None:
        """OPTIONS for a whole server becomes an asterisk (RFC 9112 §3.2.4)."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, b"OPTIONS", b"")
            proxy.origin.accept().expect(proxy.served(path=b"*", method=b"OPTIONS"))

    @pytest.mark.parametrize("method", [b"TRACE", b"OPTIONS"])
    def test_max_forwards(self, method: bytes) -> None:
        """It counts down, and at nothing the answer is ours (RFC 9110 §7.6.2)."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, method, fields=b"Max-Forwards: 1\r\nCookie: c\r\n")
            server = proxy.origin.accept()
            server.expect(proxy.served(b"Max-Forwards: 0\r\nCookie: c\r\n", method=method))
            server.send(OK)
            client.expect(SERVED)
            proxy.request(client, method, fields=b"Max-Forwards: 0\r\nCookie: c\r\n")
            head = client.expect_head()
            assert b"200 OK" in head
            if method == b"TRACE":
                assert b"Content-Type: message/http\r\n" in head
                client.expect(
                    b"TRACE http://%b/ HTTP/1.1\r\nHost: %b\r\nMax-Forwards: 0\r\n\r\n"
                    % (proxy.authority, proxy.authority)
                )
            proxy.request(client, method, fields=b"Max-Forwards: -1\r\n")
            assert 400 == client.status()
            server.expect_nothing()

    def test_body_by_length(self) -> None:
        """A body goes on as it comes, byte for byte."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, b"POST", fields=b"Content-Length: 9\r\n", body=b"one")
            server = proxy.origin.accept()
            server.expect(
                b"POST / HTTP/1.1\r\nHost: %b\r\nVia: 1.1 sidecar\r\nContent-Length: 9\r\n\r\none"
                % proxy.authority
            )
            client.send(b"two")
            server.expect(b"two")
            client.send(b"six")
            server.expect(b"six")
            server.send(OK)
            client.expect(SERVED)
            assert (9, 2) == (proxy.flow.sent, proxy.flow.received)

    def test_body_in_chunks(self) -> None:
        """Chunks are cut anew, extensions are gone, trailers stay."""
        with proxying() as proxy:
            client = proxy.client()
            fields = b"Transfer-Encoding: Chunked\r\nTrailer: X-T\r\n"
            proxy.request(client, b"PUT", fields=fields, body=b"03;a=b\r\none\r\n2\r\ntw")
            server = proxy.origin.accept()
            server.expect(
                b"PUT / HTTP/1.1\r\nHost: %b\r\nTrailer: X-T\r\nVia: 1.1 sidecar\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n5\r\nonetw\r\n" % proxy.authority
            )
            client.send(b"\r\n0\r\nX-T: 1\r\n\r\n")
            server.expect(b"0\r\nX-T: 1\r\n\r\n")
            server.send(OK)
            client.expect(SERVED)
            assert 5 == proxy.flow.sent

    def test_expect(self) -> None:
        """100-continue is the origin's to say; nothing is waited for."""
        with proxying() as proxy:
            client = proxy.client()
            fields = b"Content-Length: 2\r\nExpect: 100-continue\r\n"
            proxy.request(client, b"POST", fields=fields)
            server = proxy.origin.accept()
            assert b"Expect: 100-continue\r\n" in server.expect_head()
            server.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            client.expect(b"HTTP/1.1 100 Continue\r\nVia: 1.1 sidecar\r\n\r\n")
            client.send(b"ab")
            server.expect(b"ab")
            server.send(OK)
            client.expect(SERVED)


class TestResponse:
    def answered(self, proxy: Proxying, answer: bytes, expected: bytes, **request: bytes) -> None:
        client = proxy.client()
        proxy.request(client, **request)
        server = proxy.origin.accept()
        server.expect_head()
        server.send(answer)
        server.finish()
        client.expect(expected)

    def test_chunked(self) -> None:
        """A chunked response is chunked anew; its trailers only for who asked."""
        answer = (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nhi\r\n0\r\nX-T: 1\r\n\r\n"
        )
        head = (
            b"HTTP/1.1 200 OK\r\nVia: 1.1 sidecar\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n"
        )
        with proxying() as proxy:
            self.answered(proxy, answer, head + b"0\r\n\r\n")
            self.answered(
                proxy,
                answer,
                head + b"0\r\nX-T: 1\r\n\r\n",
                fields=b"TE: trailers\r\nConnection: TE\r\n",
            )

    def test_to_the_end(self) -> None:
        """A response to the end of the connection is chunked, and the client's goes on."""
        with proxying() as proxy:
            self.answered(
                proxy,
                b"HTTP/1.0 200 OK\r\n\r\nhi",
                b"HTTP/1.1 200 OK\r\nVia: 1.0 sidecar\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"2\r\nhi\r\n0\r\n\r\n",
            )
            assert FlowEnd.CLOSED == proxy.flow.end

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.0 200 OK\r\n\r\nhi",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        ],
    )
    def test_to_the_end_of_old_clients(self, answer: bytes) -> None:
        """A client of HTTP/1.0 reads to the end instead."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, fields=b"Connection: keep-alive\r\n", version=b"1.0")
            server = proxy.origin.accept()
            server.expect_head()
            server.send(answer)
            server.finish()
            head, _, body = client.expect_end().partition(b"\r\n\r\n")
            assert b"Connection: close" in head
            assert b"chunked" not in head
            assert b"hi" == body

    def test_interim(self) -> None:
        """1xx go on to clients that know them, and to no others."""
        with proxying() as proxy:
            hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n"
            self.answered(
                proxy,
                hints + b"\r\n" + OK,
                hints + b"Via: 1.1 sidecar\r\n\r\n" + SERVED,
            )
            self.answered(
                proxy,
                hints + b"\r\n" + OK,
                CLOSED,
                version=b"1.0",
            )

    @pytest.mark.parametrize(
        ("method", "status"), [(b"HEAD", b"200 OK"), (b"GET", b"304 Not Modified")]
    )
    def test_no_body(self, method: bytes, status: bytes) -> None:
        """The length of a body that isn't there is told, and nothing waited for."""
        with proxying() as proxy:
            client = proxy.client()
            for _ in range(2):
                proxy.request(client, method)
                server = proxy.origin.peers[0] if proxy.origin.peers else proxy.origin.accept()
                server.expect_head()
                server.send(b"HTTP/1.1 %b\r\nContent-Length: 7\r\n\r\n" % status)
                client.expect(
                    b"HTTP/1.1 %b\r\nVia: 1.1 sidecar\r\nContent-Length: 7\r\n\r\n" % status
                )

    def test_no_content(self) -> None:
        """204 has no length."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            client.expect(b"HTTP/1.1 204 No Content\r\nVia: 1.1 sidecar\r\n\r\n")

    def test_hop_by_hop(self) -> None:
        """The origin's fields for us alone stay with us."""
        with proxying() as proxy:
            self.answered(
                proxy,
                b"HTTP/1.1 200 OK\r\nConnection: close, X-A\r\nX-A: 1\r\nX-B: 2\r\n"
                b"Proxy-Authenticate: Basic\r\nKeep-Alive: 5\r\nContent-Length: 2\r\n\r\nhi",
                b"HTTP/1.1 200 OK\r\nX-B: 2\r\nVia: 1.1 sidecar\r\nContent-Length: 2\r\n\r\nhi",
            )

    def test_first_byte_at_once(self) -> None:
        """Events arrive as they are sent (SSE)."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            client.expect(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nVia: 1.1 sidecar\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            for event in (b"data: 1\n\n", b"data: 2\n\n"):
                server.send(event)
                client.expect(b"9\r\n" + event + b"\r\n")
            server.close()
            client.expect(b"0\r\n\r\n")

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (b"", "response_incomplete"),
            (b"HTTP/1.1 200", "response_incomplete"),
            (b"HTTP/1.1 100 Continue\r\n\r\n", "response_incomplete"),
            (b"garbage\r\n\r\n", "response_malformed"),
            (b"HTTP/2 200 OK\r\n\r\n", "response_malformed"),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
                "response_malformed",
            ),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi", "response_malformed"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "response_malformed"),
            (b"HTTP/1.1 200 OK\r\nX : 1\r\n\r\n", "response_malformed"),
            (b"HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\n\r\n", "response_malformed"),
            (b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 101 + b"\r\n", "response_malformed"),
            (b"HTTP/1.1 100 Continue\r\n\r\n" * 65, "response_malformed"),
            (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "response_malformed"),
        ],
    )
    def test_malformed(self, answer: bytes, reason: str) -> None:
        """CASES M12: what is no response becomes 502, and the connection isn't used again."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            with_interim = answer.startswith(b"HTTP/1.1 100")
            server.send(answer)
            if not with_interim or reason == "response_incomplete":
                server.finish()
            if with_interim:
                while b"100 Continue" in (head := client.expect_head()):
                    pass
            else:
                head = client.expect_head()
            assert head.startswith(b"HTTP/1.1 502 ")
            assert reason.encode() in head
            assert 502 == proxy.flow.status
            server.expect_reset()

    @pytest.mark.parametrize(
        ("answer", "rest"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", b"hi"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", b"2\r\nhi\r\n"),
        ],
        ids=["length", "chunked"],
    )
    def test_cut(self, answer: bytes, rest: bytes) -> None:
        """A response that is cut off is cut off for the client, too."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(answer)
            server.finish()
            client.expect_head()
            assert rest == client.expect_end()
            assert FlowEnd.PROTOCOL_ERROR == proxy.flow.end

    def test_bomb(self) -> None:
        """A chunk that is none ends the response there."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
            client.expect_head()
            client.expect(b"2\r\nhi\r\n")
            server.send(b"-1\r\n")
            assert b"" == client.expect_end()
            assert FlowEnd.PROTOCOL_ERROR == proxy.flow.end

    def test_bomb_at_once(self) -> None:
        """Where it is known before anything was passed on, nothing is."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n-1\r\n")
            assert client.expect_head().startswith(b"HTTP/1.1 502 ")
            assert 502 == proxy.flow.status

    def test_cut_for_old_clients(self) -> None:
        """One that reads to the end is reset, as nothing else tells it."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, version=b"1.0")
            server = proxy.origin.accept()
            server.expect_head()
            server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
            client.expect_head()
            client.expect(b"hi")
            server.finish()
            client.expect_reset()

    def test_reset_to_the_end(self) -> None:
        """A reset is no end of a response, even of one that ends with its connection."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(b"HTTP/1.1 200 OK\r\n\r\nhi")
            client.expect_head()
            client.expect(b"2\r\nhi\r\n")
            server.reset()
            assert b"" == client.expect_end()
            assert FlowEnd.SERVER_RESET == proxy.flow.end

    def test_early(self) -> None:
        """A refusal while the client still sends reaches it; then it is heard out, in bounds."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, b"POST", fields=b"Content-Length: 1000000\r\n", body=b"x" * 9)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
            client.expect(
                b"HTTP/1.1 413 Content Too Large\r\nVia: 1.1 sidecar\r\nContent-Length: 2\r\n"
                b"Connection: close\r\n\r\nno"
            )
            client.send(b"x" * 100_000)
            assert b"" == client.expect_end()
            client.send(b"x" * 100_000)
            server.expect_bytes(9)
            server.expect_reset()

    def test_early_with_reset(self) -> None:
        """An origin's last words are heard, though it has reset us."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, b"POST", fields=b"Content-Length: 10000000\r\n")
            server = proxy.origin.accept()
            client.send(b"x" * 50_000)
            proxy.turning.settle()
            # With that unread, its close is a reset.
            server.send(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
            server.close()
            assert client.expect_head().startswith(b"HTTP/1.1 413 No")
            client.expect(b"no")


class TestConnections:
    def test_kept(self) -> None:
        """Both connections serve many requests."""
        with proxying() as proxy:
            client = proxy.client()
            for number in range(3):
                proxy.request(client, path=b"/%d" % number)
                server = proxy.origin.peers[0] if proxy.origin.peers else proxy.origin.accept()
                server.expect(proxy.served(path=b"/%d" % number))
                server.send(OK)
                client.expect(SERVED)
            assert 3 == len(proxy.flows)
            proxy.origin.expect_nobody()

    @pytest.mark.parametrize(
        ("version", "fields", "closed"),
        [
            (b"1.1", b"Connection: close\r\n", True),
            (b"1.1", b"Proxy-Connection: close\r\n", True),
            (b"1.0", b"", True),
            (b"1.0", b"Connection: keep-alive\r\n", False),
            (b"1.0", b"Proxy-Connection: keep-alive\r\n", False),
            (b"1.1", b"", False),
        ],
    )
    def test_client_decides(self, version: bytes, fields: bytes, closed: bool) -> None:
        """The client's connection stays as long as it likes; the origin's is another matter."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, fields=fields, version=version)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(OK)
            head = client.expect_head()
            assert closed == (b"Connection: close\r\n" in head)
            assert (b"Connection: keep-alive\r\n" in head) == (version == b"1.0" and not closed)
            client.expect(b"hi")
            if closed:
                assert b"" == client.expect_end()
            else:
                client.expect_nothing()
            server.expect_nothing()

    def test_pool(self) -> None:
        """Another client's request takes the connection that one left."""
        with proxying() as proxy:
            first = proxy.client()
            proxy.request(first)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(OK)
            first.expect(SERVED)
            first.close()
            second = proxy.client()
            proxy.request(second)
            server.expect_head()
            server.send(OK)
            second.expect(SERVED)
            proxy.origin.expect_nobody()

    @pytest.mark.parametrize("said", [b"HTTP/1.1 408 Timeout\r\n\r\n", b""])
    def test_idle_end(self, said: bytes) -> None:
        """An idle connection that says something, or ends, is let go."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(OK)
            client.expect(SERVED)
            assert 1 == len(proxy.factory.shared.pool)
            if said:
                server.send(said)
            else:
                server.finish()
            proxy.turning.until(lambda: not len(proxy.factory.shared.pool))
            proxy.request(client)
            other = proxy.origin.accept()
            other.expect_head()
            other.send(OK)
            client.expect(SERVED)

    def test_more_than_asked_for(self) -> None:
        """Bytes behind a response end its connection: they are nobody's response."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
            client.expect(SERVED)
            assert 0 == len(proxy.factory.shared.pool)
            client.expect_nothing()

    @pytest.mark.parametrize("challenged", [True, False])
    def test_pinned(self, challenged: bool) -> None:
        """A connection that a server may take for a user's serves that client alone."""
        with proxying() as proxy:
            first = proxy.client()
            negotiating = b"Authorization: Negotiate abc\r\n"
            proxy.request(first, fields=b"" if challenged else negotiating)
            server = proxy.origin.accept()
            server.expect_head()
            if challenged:
                server.send(
                    b"HTTP/1.1 401 No\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n"
                )
                assert b"401 No" in first.expect_head()
            else:
                server.send(OK)
                first.expect(SERVED)
            second = proxy.client()
            proxy.request(second)
            other = proxy.origin.accept()
            other.expect_head()
            other.send(OK)
            second.expect(SERVED)
            proxy.request(first, fields=negotiating)
            server.expect_head()
            server.send(OK)
            first.expect(SERVED)
            first.close()
            assert b"" == server.expect_end()
            assert 1 == len(proxy.factory.shared.pool)

    def repeated(self, proxy: Proxying, method: bytes, fields: bytes = b"") -> int:
        """Send a request on a connection that dies of it; how often it was sent besides."""
        client = proxy.client()
        proxy.request(client)
        server = proxy.origin.accept()
        server.expect_head()
        server.send(OK)
        client.expect(SERVED)
        # The origin closes as the request is on its way.
        pool = proxy.factory.shared.pool
        assert 1 == len(pool)
        proxy.request(client, method, fields=fields)
        server.expect_head()
        server.close()
        if method == b"POST":
            assert 502 == client.status()
            proxy.origin.expect_nobody()
            return 0
        other = proxy.origin.accept()
        other.expect_head()
        other.send(OK)
        client.expect(SERVED)
        return 1

    def test_repeated(self) -> None:
        """A request without a body that may be sent twice is, where the connection was old."""
        with proxying() as proxy:
            assert 1 == self.repeated(proxy, b"GET")
            assert [FlowEnd.CLOSED] * 2 == [flow.end for flow in proxy.flows]

    def test_not_repeated(self) -> None:
        """Others aren't: they may have been served."""
        with proxying() as proxy:
            assert 0 == self.repeated(proxy, b"POST")

    def test_not_repeated_on_new(self) -> None:
        """Nor is anything where the connection was new."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            proxy.origin.accept().close()
            assert 502 == client.status()
            proxy.origin.expect_nobody()

    def test_not_repeated_after_an_answer(self) -> None:
        """Nor where a byte of an answer was there."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(OK)
            client.expect(SERVED)
            proxy.request(client)
            server.expect_head()
            server.send(b"H")
            proxy.turning.settle()
            server.close()
            assert 502 == client.status()
            proxy.origin.expect_nobody()

    def test_pipelined(self) -> None:
        """Requests sent ahead are answered in order, one at a time."""
        with proxying() as proxy:
            client = proxy.client()
            one = b"GET http://%b/%%d HTTP/1.1\r\nHost: x\r\n\r\n" % proxy.authority
            client.send(b"".join(one % number for number in range(4)) + one[:7])
            server = proxy.origin.accept()
            for number in range(4):
                server.expect(proxy.served(path=b"/%d" % number))
                server.expect_nothing()
                server.send(OK)
                client.expect(SERVED)
            client.send((one % 4)[7:])
            server.expect(proxy.served(path=b"/4"))

    def test_pipelined_refusals(self) -> None:
        """A thousand that need no origin are answered, without recursion."""
        with proxying() as proxy:
            client = proxy.client()
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3000)
            for _ in range(3000):
                assert 400 == client.status()
            assert 3000 == len(proxy.flows)

    def test_pipelined_then_closed(self) -> None:
        """A client that has sent all and ended gets all its answers."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            proxy.request(client)
            client.finish()
            server = proxy.origin.accept()
            for _ in range(2):
                server.expect_head()
                server.send(OK)
                client.expect(SERVED)
            assert b"" == client.expect_end()

    def test_client_gone(self) -> None:
        """The origin's connection ends with the client's; the line says whose end it was."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            client.reset()
            server.expect_reset()
            assert (FlowEnd.CLIENT_RESET, None) == (proxy.flow.end, proxy.flow.status)

    def test_client_gone_uploading(self) -> None:
        """A request that is cut off never looks whole to its origin."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, b"POST", fields=b"Content-Length: 9\r\n", body=b"x")
            server = proxy.origin.accept()
            server.expect_head()
            server.expect(b"x")
            client.finish()
            server.expect_reset()
            assert FlowEnd.CLIENT_RESET == proxy.flow.end

    def test_client_gone_in_its_head(self) -> None:
        """A head that is broken off is logged, with nobody to answer."""
        with proxying() as proxy:
            client = proxy.client()
            client.send(b"GET http://")
            client.finish()
            assert b"" == client.expect_end()
            assert ("http_incomplete", Verdict.DENY) == (proxy.flow.reason, proxy.flow.verdict)

    def test_shut_down(self) -> None:
        """A process that ends says so in the line."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            proxy.origin.accept()
            proxy.runtime.close()
            assert FlowEnd.SHUTDOWN == proxy.flow.end

    def test_refused(self) -> None:
        """An origin that isn't there is 502."""
        with proxying() as proxy:
            proxy.origin.close()
            client = proxy.client()
            proxy.request(client)
            assert 502 == client.status()
            flow = proxy.flow
            assert (FlowEnd.CONNECTION_REFUSED, Verdict.ALLOW) == (flow.end, flow.verdict)
            proxy.request(client)
            assert 502 == client.status()

    def test_next_address(self) -> None:
        """Where one address of a name doesn't answer, the next is tried."""
        with proxying() as proxy:
            proxy.names.table["origin.test"] = ("127.0.0.9", "127.0.0.1")
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(OK)
            client.expect(SERVED)
            assert "127.0.0.1" == getattr(proxy.flow.upstream, "host", None)

    def test_slow_name(self) -> None:
        """A name that is still being resolved holds up its client alone."""
        with proxying() as proxy:
            proxy.names.slow = True
            client = proxy.client()
            proxy.request(client, b"POST", fields=b"Content-Length: 4\r\n", body=b"ab")
            proxy.turning.until(lambda: proxy.names.waiting)
            client.send(b"cd")
            proxy.turning.settle()
            proxy.names.waiting[0].callback(("127.0.0.1",))
            server = proxy.origin.accept()
            server.expect_head()
            server.expect(b"abcd")
            server.send(OK)
            client.expect(SERVED)

    def test_slow_name_given_up(self) -> None:
        """A client that goes meanwhile was not judged."""
        with proxying() as proxy:
            proxy.names.slow = True
            client = proxy.client()
            proxy.request(client)
            proxy.turning.until(lambda: proxy.names.waiting)
            client.reset()
            flow = proxy.flow
            assert ("not_judged", Verdict.DENY) == (flow.reason, flow.verdict)
            assert FlowEnd.CLIENT_RESET == flow.end
