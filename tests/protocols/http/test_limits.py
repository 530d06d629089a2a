"""How long, how much, how many: what a slow, large or greedy peer comes to (CASES §6)."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import pytest
from protocols.http.proxying import Peer, Proxying, proxying

from sidecar.config import HttpLimits
from sidecar.flow import FlowEnd
from sidecar.relay.stream import SocketTransport

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
SERVED = b"HTTP/1.1 200 OK\r\nVia: 1.1 sidecar\r\nContent-Length: 2\r\n\r\nhi"
QUICK = 0.2


def small_buffers(peer: Peer) -> None:
    """Have the kernel keep little of what a peer doesn't read."""
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


def pass_time(proxy: Proxying) -> None:
    """Let three times the limits' time pass, and have it looked what is overdue.

    Nobody looks before: a test that is slow finds everything as one that is quick.
    """
    time.sleep(3 * QUICK)
    proxy.clock.pump([QUICK / 4] * 12)


class TestTimes:
    def test_head(self) -> None:
        """A head's time is absolute: a byte now and then doesn't prolong it."""
        with proxying(limits=HttpLimits(head_timeout=QUICK)) as proxy:
            client = proxy.client()
            head = b"GET http://%b/ HTTP/1.1\r\n" % proxy.authority
            with suppress(OSError):
                for byte in range(len(head)):
                    client.send(head[byte : byte + 1])
                    proxy.turning.until(lambda: True)
                    proxy.turning.turn(0.03)
            assert 408 == client.status()
            assert b"" == client.expect_end()
            assert (408, FlowEnd.HTTP_REQUEST_ERROR) == (proxy.flow.status, proxy.flow.end)

    def test_second_head(self) -> None:
        """Likewise that of a later request."""
        with proxying(limits=HttpLimits(head_timeout=QUICK)) as proxy:
            client = proxy.client()
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET")
            assert 400 == client.status()
            assert 408 == client.status()

    def test_idle(self) -> None:
        """A client that asks for nothing is let go, without a line."""
        with proxying(limits=HttpLimits(keepalive_timeout=QUICK), by_hand=True) as proxy:
            client = proxy.client()
            proxy.turning.until(lambda: proxy.runtime.admission.open)
            pass_time(proxy)
            assert b"" == client.expect_end()
            other = proxy.client()
            other.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert 400 == other.status()
            pass_time(proxy)
            assert b"" == other.expect_end()
            assert 1 == len(proxy.flows)

    def test_response(self) -> None:
        """A server that takes a request and says nothing is 504."""
        with proxying(limits=HttpLimits(response_timeout=QUICK)) as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            assert 504 == client.status()
            server.expect_reset()
            assert (504, FlowEnd.IDLE_TIMEOUT) == (proxy.flow.status, proxy.flow.end)

    def test_response_begun(self) -> None:
        """One that has begun may take its time: events come when they come."""
        limits = HttpLimits(response_timeout=QUICK, progress_timeout=QUICK)
        with proxying(limits=limits, by_hand=True) as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh")
            client.expect_head()
            client.expect(b"h")
            pass_time(proxy)
            proxy.turning.settle()
            server.send(b"i")
            client.expect(b"i")

    def test_slow_upload(self) -> None:
        """D1: a body that drips is 408."""
        with proxying(limits=HttpLimits(progress_timeout=QUICK)) as proxy:
            client = proxy.client()
            proxy.request(client, b"POST", fields=b"Content-Length: 99999\r\n", body=b"x" * 2000)
            server = proxy.origin.accept()
            server.expect_head()
            with suppress(OSError):
                for _ in range(50):
                    client.send(b"x")
                    proxy.turning.turn(0.02)
            assert 408 == client.status()
            server.expect_bytes(2000)
            server.expect_reset()
            assert FlowEnd.HTTP_REQUEST_ERROR == proxy.flow.end

    def test_slow_reader(self) -> None:
        """D1: a client that doesn't read what it asked for is let go."""
        with proxying(limits=HttpLimits(progress_timeout=QUICK)) as proxy:
            client = proxy.client()
            small_buffers(client)
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            with suppress(BlockingIOError, OSError):
                while not proxy.flows:
                    with suppress(BlockingIOError):
                        server.sock.send(b"x" * 100_000)
                    proxy.turning.turn(0.01)
            assert FlowEnd.IDLE_TIMEOUT == proxy.flow.end

    def test_slow_server(self) -> None:
        """And a server that doesn't read what it is sent is 504."""
        with proxying(limits=HttpLimits(progress_timeout=QUICK)) as proxy:
            client = proxy.client()
            proxy.request(client, b"POST", fields=b"Content-Length: 100000000\r\n")
            server = proxy.origin.accept()
            server.expect_head()
            small_buffers(server)
            with suppress(OSError):
                while not proxy.flows:
                    with suppress(BlockingIOError):
                        client.sock.send(b"x" * 100_000)
                    proxy.turning.turn(0.01)
            assert (504, FlowEnd.IDLE_TIMEOUT) == (proxy.flow.status, proxy.flow.end)

    def test_lingering(self) -> None:
        """Who was told to go and doesn't is reset in the end."""
        with proxying(limits=HttpLimits(head_timeout=QUICK), by_hand=True) as proxy:
            client = proxy.client()
            client.send(b"GET / HTTP/9\r\n\r\n")
            assert 400 == client.status()
            proxy.turning.settle()
            assert 1 == proxy.runtime.admission.open
            client.finish()
            proxy.turning.until(lambda: not proxy.runtime.admission.open)


class TestSizes:
    @pytest.mark.parametrize(
        ("fields", "body"),
        [
            (b"Content-Length: 11\r\n", b""),
            (b"Transfer-Encoding: chunked\r\n", b"b\r\nhello world\r\n0\r\n\r\n"),
        ],
    )
    def test_body(self, fields: bytes, body: bytes) -> None:
        """A body beyond the limit is 413; what is within passes."""
        with proxying(limits=HttpLimits(body_bytes=10)) as proxy:
            client = proxy.client()
            proxy.request(client, b"POST", fields=fields, body=body)
            assert 413 == client.status()
            proxy.origin.expect_nobody()
            other = proxy.client()
            proxy.request(other, b"POST", fields=b"Content-Length: 10\r\n", body=b"helloworld")
            server = proxy.origin.accept()
            server.expect_head()
            server.expect(b"helloworld")

    def test_body_later(self) -> None:
        """Chunks that come to too much in the end: the origin gets no whole request."""
        with proxying(limits=HttpLimits(body_bytes=10)) as proxy:
            client = proxy.client()
            fields = b"Transfer-Encoding: chunked\r\n"
            proxy.request(client, b"POST", fields=fields, body=b"6\r\nhello \r\n")
            server = proxy.origin.accept()
            server.expect_head()
            client.send(b"5\r\nworld\r\n0\r\n\r\n")
            assert 413 == client.status()
            server.expect(b"6\r\nhello \r\n")
            assert b"" == server.expect_reset()

    def test_head(self) -> None:
        """The head's limits are configured."""
        with proxying(limits=HttpLimits(head_bytes=1024, head_fields=10)) as proxy:
            client = proxy.client()
            proxy.request(client, fields=b"X: 1\r\n" * 10)
            assert 431 == client.status()
            other = proxy.client()
            proxy.request(other, fields=b"X: " + b"x" * 1024 + b"\r\n")
            assert 431 == other.status()


class TestNumbers:
    def test_by_client(self) -> None:
        """One connection more than a client may have is told so by its first request."""
        with proxying(limits=HttpLimits(client_connections=2)) as proxy:
            kept = [proxy.client(), proxy.client()]
            proxy.turning.settle()
            third = proxy.client()
            proxy.request(third)
            head = third.expect_head()
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 1\r\n" in head
            third.close()
            proxy.request(kept[0])
            server = proxy.origin.accept()
            server.expect_head()
            server.send(OK)
            kept[0].expect(SERVED)
            kept[1].close()
            proxy.turning.until(lambda: proxy.runtime.admission.open == 1)
            again = proxy.client()
            proxy.request(again)
            server.expect_head()

    def test_pool(self) -> None:
        """No more idle connections are kept than may be; the oldest goes."""
        with proxying(limits=HttpLimits(pool_connections=2)) as proxy:
            clients = [proxy.client() for _ in range(3)]
            servers = []
            for client in clients:
                proxy.request(client)
                servers.append(proxy.origin.accept())
                servers[-1].expect_head()
            for client, server in zip(clients, servers, strict=True):
                server.send(OK)
                client.expect(SERVED)
            assert b"" == servers[0].expect_end()
            assert 2 == len(proxy.factory.shared.pool)

    @pytest.mark.parametrize("limits", [{"pool_timeout": QUICK}, {"pool_connections": 0}])
    def test_pool_in_time(self, limits: dict[str, float]) -> None:
        """Nor are they kept for longer, or at all where none may be."""
        with proxying(limits=HttpLimits(**limits)) as proxy:  # type: ignore[arg-type]
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(OK)
            client.expect(SERVED)
            assert b"" == server.expect_end()
            proxy.request(client)
            proxy.origin.accept().expect_head()


class TestBackPressure:
    """Nobody is read faster than the other side takes it; nothing is lost or cut."""

    # More than the kernel keeps of two connections.
    SIZE = 60_000_000
    # Bytes of one side that the proxy keeps.
    MOST = 1 << 18

    def kept(self, proxy: Proxying) -> int:
        """Bytes that the proxy holds for somebody."""
        pollables = proxy.runtime.poller.pollables()
        return max(each.unwritten for each in pollables if isinstance(each, SocketTransport))

    def flow_through(self, proxy: Proxying, sender: Peer, reader: Peer) -> None:
        """Send far more than all buffers hold, to somebody who doesn't read; then read."""
        pattern = memoryview(bytes(range(251)) * 8000)
        most = len(pattern) // 2

        def send(sent: int) -> int:
            start = sent % 251
            with suppress(BlockingIOError):
                return sender.sock.send(pattern[start : start + min(most, self.SIZE - sent)])
            return 0

        sent = stuck = 0
        while stuck < 30:
            count = send(sent)
            sent += count
            stuck = 0 if count else stuck + 1
            proxy.turning.turn()
            assert self.kept(proxy) <= self.MOST
            assert sent < self.SIZE, "somebody keeps it all"
        got = 0
        while got < self.SIZE:
            sent += send(sent)
            proxy.turning.turn()
            reader.read()
            data, reader.got = reader.got, b""
            for at in range(0, len(data), most):
                part = data[at : at + most]
                start = (got + at) % 251
                assert pattern[start : start + len(part)] == part
            got += len(data)
            assert got == self.SIZE or not reader.ended

    def test_download(self) -> None:
        """A client that doesn't read stops its server."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            server.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.SIZE)
            client.expect_head()
            self.flow_through(proxy, server, client)
            assert (self.SIZE, FlowEnd.CLOSED) == (proxy.flow.received, proxy.flow.end)
            proxy.request(client)
            server.expect_head()

    def test_upload(self) -> None:
        """A server that doesn't read stops its client."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, b"POST", fields=b"Content-Length: %d\r\n" % self.SIZE)
            server = proxy.origin.accept()
            server.expect_head()
            self.flow_through(proxy, client, server)
            server.send(OK)
            client.expect(SERVED)
            assert self.SIZE == proxy.flow.sent

    def test_pipeline(self) -> None:
        """A client that sends ahead without reading is not read, either."""
        with proxying() as proxy:
            client = proxy.client()
            small_buffers(client)
            request = b"GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (b"x" * 2000)
            sent = stuck = 0
            while stuck < 50:
                start = sent % len(request)
                try:
                    sent += client.sock.send((request * 100)[start:])
                    stuck = 0
                except BlockingIOError:
                    stuck += 1
                proxy.turning.turn()
                assert sent < 50_000_000, "somebody keeps it all"
            before = len(proxy.flows)
            proxy.turning.settle()
            assert before == len(proxy.flows)
            while len(proxy.flows) == before:
                client.read()
                client.got = b""
                proxy.turning.turn()
