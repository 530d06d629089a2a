"""The proxy behind Twisted's own transports, with users, and through another proxy."""

from __future__ import annotations

import socket
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
from certificates import Identity, make_identity
from protocols.http.proxying import Origin, Peer, Proxying, proxying
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from wire.hello_maker import hello, server_name
from zope.interface.verify import verifyObject

from sidecar.flow import FlowEnd, Verdict
from sidecar.interfaces import IManyFlowsFactory
from sidecar.protocols.http.auth import Authenticator
from sidecar.upstream_proxy import UpstreamProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turning import Turning

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
SERVED = b"HTTP/1.1 200 OK\r\nVia: 1.1 sidecar\r\nContent-Length: 2\r\n\r\nhi"
HELLO = hello(server_name(b"origin.test"))
ALERT = bytes((21, 3, 3, 0, 2, 2, 49))


class TLSPeer(Peer):
    """One end of a TLS connection, held by the test."""

    def __init__(self, turning: Turning, sock: socket.socket, cafile: str) -> None:
        super().__init__(turning, sock)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=cafile)
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        while not self._shaken():
            self._pass()
        self._flush()

    def _shaken(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def _flush(self) -> None:
        super().send(self._out.read())

    def _pass(self) -> None:
        self._flush()
        before = self._in.pending
        self._turning.until(lambda: self._received() or self._in.pending != before, self.sock)

    def _received(self) -> bool:
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            self.ended = self.was_reset = True
            return True
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()
            self.ended = True
        return True

    def send(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def read(self) -> None:
        while not self.ended and self._received():
            pass
        while True:
            try:
                data = self._tls.read(1 << 16)
            except ssl.SSLWantReadError:
                return
            except ssl.SSLError:
                self.ended = True
                return
            if not data:
                self.ended = True
                return
            self.got += data


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("identity"))


@pytest.fixture(params=["tcp", "tls"])
def kind(request: pytest.FixtureRequest) -> str:
    """A listener of Twisted's."""
    return str(request.param)


class Twisteds:
    """The proxy behind a listener of Twisted's."""

    def __init__(self, proxy: Proxying, kind: str, identity: Identity) -> None:
        reactor = cast("Any", proxy.turning.reactor)
        factory: Any = proxy.factory
        if kind == "tls":
            # As reactor.listenSSL, which takes the global reactor for a clock.
            factory = TLSMemoryBIOFactory(identity.options, False, factory, clock=reactor)
        self._port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self._proxy = proxy
        self._kind = kind
        self._cafile = identity.cafile
        self.clients: list[Peer] = []

    def client(self) -> Peer:
        sock = socket.create_connection(("127.0.0.1", self._port.getHost().port))
        if self._kind == "tls":
            made: Peer = TLSPeer(self._proxy.turning, sock, self._cafile)
        else:
            made = Peer(self._proxy.turning, sock)
        self.clients.append(made)
        return made

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self._proxy.turning.until_disconnected()
        self._proxy.turning.result(self._port.stopListening())


class TestTwisted:
    def test_interfaces(self) -> None:
        """It is a factory to Twisted and to our own listeners."""
        with proxying() as proxy:
            assert verifyObject(IProtocolFactory, proxy.factory)
            assert verifyObject(IManyFlowsFactory, proxy.factory)

    def test_requests(self, kind: str, identity: Identity) -> None:
        """Requests are served, and the connection kept, in good order to its end."""
        with proxying() as proxy:
            twisteds = Twisteds(proxy, kind, identity)
            client = twisteds.client()
            for path in (b"/1", b"/2"):
                proxy.request(client, b"POST", path, b"Content-Length: 4\r\n", b"body")
                server = proxy.origin.peers[0] if proxy.origin.peers else proxy.origin.accept()
                assert server.expect_head().startswith(b"POST " + path)
                server.expect(b"body")
                server.send(OK)
                client.expect(SERVED)
            client.send(b"GET / HTTP/9\r\n\r\n")
            assert 400 == client.status()
            assert b"" == client.expect_end()
            assert "127.0.0.1" == getattr(proxy.flows[0].source, "host", None)
            twisteds.close()

    def test_large(self, kind: str, identity: Identity) -> None:
        """A large response is whole."""
        with proxying() as proxy:
            twisteds = Twisteds(proxy, kind, identity)
            client = twisteds.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            body = bytes(range(256)) * 8000
            server.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            client.expect_head()
            assert body == client.expect_bytes(len(body))
            twisteds.close()

    def test_tunnel(self, kind: str, identity: Identity) -> None:
        """A tunnel is opened, looked into, and relayed to its end."""
        with proxying() as proxy:
            twisteds = Twisteds(proxy, kind, identity)
            client = twisteds.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            server.send(b"greeting")
            client.expect(b"greeting")
            client.send(HELLO)
            server.expect(HELLO)
            server.send(b"x" * 300_000)
            assert b"x" * 300_000 == client.expect_bytes(300_000)
            client.send(b"more")
            server.expect(b"more")
            server.close()
            assert b"" == client.expect_end()
            client.close()
            flow = proxy.flow
            assert (len(HELLO) + 4, 300_008, FlowEnd.CLOSED) == (
                flow.sent,
                flow.received,
                flow.end,
            )
            twisteds.close()

    def test_mismatch(self, kind: str, identity: Identity) -> None:
        """And refused inside."""
        with proxying() as proxy:
            twisteds = Twisteds(proxy, kind, identity)
            client = twisteds.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            client.send(hello(server_name(b"evil.test")))
            client.expect(ALERT)
            server.expect_reset()
            assert "name_mismatch" == proxy.flow.reason
            twisteds.close()

    def test_client_gone(self, kind: str, identity: Identity) -> None:
        """A client that goes takes its request along."""
        with proxying() as proxy:
            twisteds = Twisteds(proxy, kind, identity)
            client = twisteds.client()
            proxy.request(client)
            server = proxy.origin.accept()
            server.expect_head()
            client.reset()
            server.expect_reset()
            assert FlowEnd.CLIENT_RESET == proxy.flow.end
            twisteds.close()


class TestUsers:
    @pytest.fixture
    def proxy(self) -> Any:
        checker = InMemoryUsernamePasswordDatabaseDontUse()
        checker.addUser(b"eve", b"secret")
        authenticator = Authenticator([checker], cast("Any", Clock()), realm="here")
        with proxying(authenticator=authenticator) as made:
            yield made

    def test_required(self, proxy: Proxying) -> None:
        """Before anything is resolved a user is asked for, CONNECT or not."""
        for line in (b"GET http://nowhere.test/", b"CONNECT nowhere.test:443"):
            client = proxy.client()
            client.send(line + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            head = client.expect_head()
            assert head.startswith(b"HTTP/1.1 407 ")
            assert b'Proxy-Authenticate: Basic realm="here"' in head
        assert [] == proxy.names.asked
        assert {(407, Verdict.DENY)} == {(flow.status, flow.verdict) for flow in proxy.flows}

    def test_granted(self, proxy: Proxying) -> None:
        """Who has the right password is served, and it goes no further."""
        client = proxy.client()
        for word in (b"ZXZlOnNlY3JldA==", b"ZXZlOndyb25n", b"ZXZlOnNlY3JldA=="):
            proxy.request(client, fields=b"Proxy-Authorization: Basic %b\r\n" % word)
            if word.startswith(b"ZXZlOndy"):
                assert 407 == client.status()
                continue
            server = proxy.origin.peers[0] if proxy.origin.peers else proxy.origin.accept()
            server.expect(proxy.served())
            server.send(OK)
            client.expect(SERVED)


@contextmanager
def next_proxy(*, no_proxy: str = "", **policy: Any) -> Iterator[tuple[Proxying, Origin]]:
    """Have a proxy behind another one, which the test plays."""
    with proxying(**policy) as proxy:
        upstream = Origin(proxy.turning)
        url = f"http://u:p@127.0.0.1:{upstream.port}"
        proxy.factory.shared.upstream_proxy = UpstreamProxy.parse(url, no_proxy)
        try:
            yield proxy, upstream
        finally:
            upstream.close()


class TestUpstreamProxy:
    def test_request(self) -> None:
        """The next proxy gets absolute forms and our own password; names are its to resolve."""
        with next_proxy() as (proxy, upstream):
            client = proxy.client()
            for _ in range(2):
                client.send(b"GET http://far.test/a HTTP/1.1\r\nHost: x\r\n\r\n")
                server = upstream.peers[0] if upstream.peers else upstream.accept()
                server.expect(
                    b"GET http://far.test/a HTTP/1.1\r\nHost: far.test\r\n"
                    b"Proxy-Authorization: Basic dTpw\r\nVia: 1.1 sidecar\r\n\r\n"
                )
                server.send(OK)
                client.expect(SERVED)
            assert [] == proxy.names.asked
            flow = proxy.flows[0]
            assert ("far.test", None, str(flow.upstream)) == (
                flow.host,
                flow.destination,
                f"127.0.0.1:{upstream.port}",
            )

    def test_wrong_password(self) -> None:
        """Its 407 is our business."""
        with next_proxy() as (proxy, upstream):
            client = proxy.client()
            client.send(b"GET http://far.test/ HTTP/1.1\r\nHost: x\r\n\r\n")
            server = upstream.accept()
            server.expect_head()
            server.send(
                b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
            )
            assert 502 == client.status()

    def test_tunnel(self) -> None:
        """A tunnel goes through a tunnel; what is inside is looked at all the same."""
        with next_proxy() as (proxy, upstream):
            client = proxy.client()
            client.send(b"CONNECT origin.test:443 HTTP/1.1\r\nHost: x\r\nVia: 1.0 a\r\n\r\n")
            server = upstream.accept()
            server.expect(
                b"CONNECT origin.test:443 HTTP/1.1\r\nHost: origin.test:443\r\n"
                b"Proxy-Authorization: Basic dTpw\r\nVia: 1.0 a, 1.1 sidecar\r\n\r\n"
            )
            server.send(b"HTTP/1.1 200 OK\r\n\r\ngreeting")
            client.expect(b"HTTP/1.1 200 Connection established\r\n\r\ngreeting")
            client.send(HELLO)
            server.expect(HELLO)
            server.close()
            client.close()
            assert FlowEnd.CLOSED == proxy.flow.end

    def test_tunnel_loop(self) -> None:
        """A tunnel that comes back to us is known by that."""
        with next_proxy() as (proxy, upstream):
            client = proxy.client()
            via = proxy.factory.shared.pseudonym.via[1]
            client.send(
                b"CONNECT origin.test:443 HTTP/1.1\r\nHost: x\r\nVia: 1.1 a, %b\r\n\r\n" % via
            )
            assert 508 == client.status()
            assert "origin.test" == proxy.flow.host
            upstream.expect_nobody()

    def test_tunnel_refused(self) -> None:
        """Where it opens none, 502."""
        with next_proxy() as (proxy, upstream):
            client = proxy.client()
            client.send(b"CONNECT origin.test:443 HTTP/1.1\r\nHost: x\r\n\r\n")
            server = upstream.accept()
            server.expect_head()
            server.send(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
            assert 502 == client.status()

    def test_policy(self) -> None:
        """What the policy denies by its name, or can't allow by it, isn't passed on."""
        with next_proxy(default="deny", allow=["far.test", "10.0.0.0/8"]) as (proxy, upstream):
            client = proxy.client()
            for target, status in ((b"evil.test", 403), (b"127.0.0.1", 403)):
                client.send(b"GET http://%b/ HTTP/1.1\r\nHost: x\r\n\r\n" % target)
                assert status == client.status()
            client.send(b"GET http://far.test/ HTTP/1.1\r\nHost: x\r\n\r\n")
            server = upstream.accept()
            server.expect_head()
            server.send(OK)
            client.expect(SERVED)
            assert ["default", "private_address", "rule"] == [flow.reason for flow in proxy.flows]

    def test_no_proxy(self) -> None:
        """What is excepted is dialled directly."""
        with next_proxy(no_proxy="origin.test") as (proxy, upstream):
            client = proxy.client()
            proxy.request(client)
            proxy.origin.accept().expect(proxy.served())
            upstream.expect_nobody()
