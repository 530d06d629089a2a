"""Plain HTTP on intercepted connections: each request is judged by its own Host."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from protocols.http.proxying import Names, Observer, Origin, Peer, listener, policy
from support import queued
from turning import turning
from wire.hello_maker import hello, server_name
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.destinations import DestinationFinder, OriginalDestination
from sidecar.flow import DestinationSource, FlowEnd, HostSource, ListenerKind, Process, Verdict
from sidecar.interfaces import IOpeningObserver
from sidecar.listening import FlowPort
from sidecar.names.served import Served, ServedFirst
from sidecar.names.verifying import Redial
from sidecar.policy import parse_name_rule
from sidecar.protocols.http.intercepted import InterceptedHTTP
from sidecar.protocols.judge import Judge
from sidecar.protocols.sni import SNIProxyFactory
from sidecar.protocols.tcp import TransparentRelayFactory
from sidecar.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turning import Turning

    from sidecar.flow import Flow
    from sidecar.policy import Policy

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
SERVED = b"HTTP/1.1 200 OK\r\nVia: 1.1 sidecar\r\nContent-Length: 2\r\n\r\nhi"
NAMES = ("good.test", "fine.test")
CURL = Process(4242, "curl")


class Found(DestinationFinder):
    """Knows where every connection wanted to go."""

    def __init__(self, destination: SocketAddress) -> None:
        self.destination = destination

    def find(self, connection: socket.socket, source: SocketAddress) -> OriginalDestination:
        return OriginalDestination(self.destination, DestinationSource.REDIRECT)


@implementer(IOpeningObserver)
class OpeningObserver(Observer):
    """Wants to know of beginnings, and says who connected; raises, as others' may."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[Flow] = []
        self.closed: list[Flow] = []
        self.broken = False

    def flow_opened(self, flow: Flow) -> None:
        self.opened.append(flow)
        if flow.connection is None:
            flow.process = CURL
        if self.broken:
            raise ZeroDivisionError

    def connection_closed(self, flow: Flow) -> None:
        self.closed.append(flow)
        if self.broken:
            raise ZeroDivisionError


class Stage:
    """A listener that intercepts what was going to an origin of the test's."""

    def __init__(
        self, turning: Turning, policy: Policy, *, by_name: bool, curious: bool = False
    ) -> None:
        self.turning = turning
        self.observer = OpeningObserver()
        self.names = Names(dict.fromkeys(NAMES, ("127.0.0.1",)))
        self.runtime = Runtime.make(turning.reactor, self.observer)
        self.served = Served(turning.reactor)
        self.judge = Judge(
            policy,
            ServedFirst(self.served, Redial(self.names)),
            silence=3600.0,
            patience=5.0,
            served=self.served,
            curious=curious,
        )
        self.http = InterceptedHTTP(self.runtime, self.judge, self.names)
        self.origin = Origin(turning)
        sock = listener()
        sock.setblocking(False)
        self.address = sock.getsockname()
        destination = SocketAddress("127.0.0.1", self.origin.port)
        factory: SNIProxyFactory | TransparentRelayFactory
        finder: Found | None = None
        if by_name:
            factory = SNIProxyFactory(self.runtime, self.judge, self.names, http=self.http)
        else:
            factory = TransparentRelayFactory(self.runtime, judge=self.judge, http=self.http)
            finder = Found(destination)
        self.port = FlowPort(self.runtime, sock, factory, finder)
        self.port.startListening()
        self._clients: list[Peer] = []

    @property
    def flows(self) -> list[Flow]:
        return self.observer.flows

    def client(self) -> Peer:
        self._clients.append(Peer(self.turning, socket.create_connection(self.address)))
        return self._clients[-1]

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.origin.close()
        self.turning.settle()
        self.port.stopListening()
        self.runtime.close()
        self.http.close()
        assert 0 == self.runtime.admission.open


@contextmanager
def stage(policy: Policy, *, by_name: bool = False, curious: bool = False) -> Iterator[Stage]:
    with turning() as turned:
        made = Stage(turned, policy, by_name=by_name, curious=curious)
        try:
            yield made
        finally:
            made.close()


def names_allowed() -> Policy:
    """Two names, which may lead to this host."""
    return policy(
        default="deny", allow=NAMES, private_names=[parse_name_rule(name) for name in NAMES]
    )


def get(host: bytes, path: bytes = b"/") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (path, host)


class TestTransparent:
    def test_each_request(self) -> None:
        """Requests of one connection go where their own names may, or nowhere."""
        with stage(names_allowed()) as staged:
            client = staged.client()
            client.send(get(b"Good.Test:80", b"/1"))
            server = staged.origin.accept()
            server.expect(b"GET /1 HTTP/1.1\r\nHost: good.test\r\nVia: 1.1 sidecar\r\n\r\n")
            server.send(OK)
            client.expect(SERVED)
            client.send(get(b"evil.test", b"/2"))
            assert 403 == client.status()
            server.expect_nothing()
            client.send(get(b"fine.test", b"/3"))
            server.expect(b"GET /3 HTTP/1.1\r\nHost: fine.test\r\nVia: 1.1 sidecar\r\n\r\n")
            server.send(OK)
            client.expect(SERVED)
            told = [
                (flow.host, flow.verdict, flow.reason, flow.status, flow.end)
                for flow in staged.flows
            ]
            assert told == [
                ("good.test", Verdict.ALLOW, "rule", 200, FlowEnd.CLOSED),
                ("evil.test", Verdict.DENY, "default", 403, FlowEnd.DENIED),
                ("fine.test", Verdict.ALLOW, "rule", 200, FlowEnd.CLOSED),
            ]
            first = staged.flows[0]
            assert (ListenerKind.OUTBOUND, HostSource.HOST, DestinationSource.REDIRECT) == (
                first.listener,
                first.host_from,
                first.destination_from,
            )

    def test_first_denied(self) -> None:
        """The first is told as the others are."""
        with stage(names_allowed()) as staged:
            client = staged.client()
            client.send(get(b"evil.test"))
            assert 403 == client.status()
            client.send(get(b"good.test"))
            staged.origin.accept().expect_head()

    def test_not_the_names(self) -> None:
        """S4: a name whose addresses are others is dialled at one of those."""
        with stage(names_allowed()) as staged:
            staged.names.table["good.test"] = ("127.0.0.2",)
            client = staged.client()
            client.send(get(b"good.test"))
            assert 502 == client.status()
            staged.origin.expect_nobody()
            flow = staged.flows[0]
            assert "127.0.0.2" == getattr(flow.upstream, "host", None)

    def test_deny_rule(self) -> None:
        """A rule that denies a name counts for each request; the early connection is used."""
        with stage(policy(deny=["evil.test"])) as staged:
            client = staged.client()
            server = staged.origin.accept()
            client.send(get(b"any.test"))
            server.expect_head()
            server.send(OK)
            client.expect(SERVED)
            client.send(get(b"evil.test"))
            assert 403 == client.status()
            client.send(get(b"127.0.0.1"))
            assert 403 == client.status()
            assert ["default", "denied_by_rule", "no_name"] == [
                flow.reason for flow in staged.flows
            ]
            staged.origin.expect_nobody()

    def test_no_host(self) -> None:
        """HTTP/1.0 without Host has no name."""
        with stage(names_allowed()) as staged:
            client = staged.client()
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            assert 403 == client.status()
            assert "no_name" == staged.flows[0].reason

    def test_hint(self) -> None:
        """What would allow a denied request is known of its flow."""
        with stage(names_allowed()) as staged:
            client = staged.client()
            client.send(get(b"evil.test"))
            hint = f"127.0.0.1:{staged.origin.port}"
            client.expect_head()
            client.expect(f"sidecar: denied: default; to allow it: {hint}\n".encode())
            assert hint == staged.flows[0].hint

    def test_told(self) -> None:
        """Requests are told of when they begin, with their connection's process."""
        with stage(names_allowed()) as staged:
            client = staged.client()
            client.send(get(b"good.test"))
            server = staged.origin.accept()
            said = server.expect_head()
            connection, request = staged.observer.opened
            assert ("good.test", connection, CURL) == (
                request.host,
                request.connection,
                request.process,
            )
            assert [request] == staged.http.requests
            # The pseudonym is longer than what the test makes of it.
            assert len(said) < request.head_sent < len(said) + 20
            server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhi")
            client.expect_head()
            assert b"hi" == client.expect_bytes(2)
            assert ((0, 2), True) == (request.amounts(), request.connected)
            server.send(b"hi")
            client.expect_bytes(2)
            client.send(get(b"evil.test"))
            assert 403 == client.status()
            client.close()
            staged.turning.until(lambda: staged.observer.closed)
            assert [connection] == staged.observer.closed
            assert staged.observer.opened[1:] == staged.flows
            assert [] == staged.http.requests

    def test_broken_observer(self) -> None:
        """An observer's bug costs nobody anything."""
        with stage(names_allowed()) as staged:
            staged.observer.broken = True
            client = staged.client()
            client.send(get(b"evil.test"))
            assert 403 == client.status()
            client.close()
            staged.turning.until(lambda: staged.observer.closed)
            failures = [staged.turning.failures.pop() for _ in range(3)]
            assert all("ZeroDivisionError" in failure for failure in failures)

    def test_refused(self) -> None:
        """A server that can't be reached where the client dialled is a reset."""
        with stage(names_allowed()) as staged:
            staged.origin.close()
            client = staged.client()
            client.send(get(b"good.test"))
            assert b"" == client.expect_reset()
            staged.turning.until(lambda: staged.flows)
            assert [(FlowEnd.CONNECTION_REFUSED, None)] == [
                (flow.end, flow.status) for flow in staged.flows
            ]

    def test_switched(self) -> None:
        """How much passes is known after an upgrade, too."""
        with stage(names_allowed()) as staged:
            client = staged.client()
            upgrade = b"Connection: Upgrade\r\nUpgrade: parrot\r\n"
            client.send(get(b"good.test").replace(b"\r\n\r\n", b"\r\n" + upgrade + b"\r\n"))
            server = staged.origin.accept()
            server.expect_head()
            server.send(b"HTTP/1.1 101 Switching Protocols\r\n" + upgrade + b"\r\n")
            client.expect_head()
            client.send(b"hello")
            server.expect(b"hello")
            server.send(b"hello, hello")
            client.expect(b"hello, hello")
            _, request = staged.observer.opened
            assert (5, 12) == request.amounts()

    @pytest.mark.parametrize("host", [b"", b"Host: 127.0.0.1\r\n"])
    def test_named_by_dns(self, host: bytes) -> None:
        """Without a name, a request has the one that its address was answered for."""
        with stage(names_allowed()) as staged:
            staged.served.record("good.test", "127.0.0.1", 60.0)
            client = staged.client()
            client.send(b"GET / HTTP/1.0\r\n" + host + b"\r\n")
            server = staged.origin.accept()
            assert b"\r\nHost: 127.0.0.1" in server.expect_head()
            server.send(OK)
            assert 200 == client.status()
            assert [("good.test", HostSource.DNS)] == [
                (flow.host, flow.host_from) for flow in staged.flows
            ]

    def test_another_address(self) -> None:
        """But not if it is for another address."""
        with stage(names_allowed()) as staged:
            staged.served.record("good.test", "127.0.0.1", 60.0)
            client = staged.client()
            client.send(get(b"10.0.0.1"))
            assert 403 == client.status()
            assert ["no_name"] == [flow.reason for flow in staged.flows]
            staged.origin.expect_nobody()

    @pytest.mark.parametrize(
        "said",
        [
            b"\r\n",
            b" GET / HTTP/1.1\r\n",
            b"\x85",
            b"GET\t/",
            b"GET\xa0/",
            b"GET / HTTP/1.1 \r\n",
            b"hello http/1.1\r\n",
        ],
    )
    def test_nearly(self, said: bytes) -> None:
        """What some servers take for HTTP, and we don't, isn't let go for its address's name."""
        with stage(names_allowed()) as staged:
            staged.served.record("good.test", "127.0.0.1", 60.0)
            client = staged.client()
            client.send(said + get(b"evil.test"))
            assert 403 == client.status()
            assert ["http_request_line"] == [flow.reason for flow in staged.flows]
            staged.origin.expect_nobody()

    @pytest.mark.parametrize("said", [b"\0\0", b"NICK somebody\r\n", b"SSH-2.0-x\r\n"])
    def test_others(self, said: bytes) -> None:
        """What nobody takes for HTTP is."""
        with stage(names_allowed()) as staged:
            staged.served.record("good.test", "127.0.0.1", 60.0)
            client = staged.client()
            client.send(said)
            staged.origin.accept().expect(said)

    def test_curious(self) -> None:
        """Where a name is only wanted, what can't be read is relayed as it is."""
        with stage(policy(), curious=True) as staged:
            for said in (b"GET / HTTP/1.1\n\n", get(b"good.test")):
                client = staged.client()
                client.send(said)
                server = staged.origin.accept()
                if b"good" in said:
                    server.expect_head()
                    server.send(OK)
                    client.expect(SERVED)
                else:
                    server.expect(said)

    def test_spliced(self) -> None:
        """Where no name matters nothing is parsed: bytes pass as they are."""
        with stage(policy(allow=["127.0.0.1"], default="deny")) as staged:
            client = staged.client()
            client.send(b"GET / HTTP/1.1\r\nhost:x\r\n\r\n")
            staged.origin.accept().expect(b"GET / HTTP/1.1\r\nhost:x\r\n\r\n")

    def test_tls(self) -> None:
        """TLS is relayed as before."""
        with stage(names_allowed()) as staged:
            client = staged.client()
            said = hello(server_name(b"good.test"))
            client.send(said)
            server = staged.origin.accept()
            server.expect(said)
            client.close()
            server.close()
            staged.turning.until(lambda: staged.flows)
            assert ("good.test", None) == (staged.flows[0].host, staged.flows[0].method)

    @pytest.mark.parametrize("line", [b"CONNECT good.test:443", b"GET https://good.test/"])
    def test_no_proxy(self, line: bytes) -> None:
        """It is no proxy that the client has asked."""
        with stage(names_allowed()) as staged:
            client = staged.client()
            client.send(line + b" HTTP/1.1\r\nHost: good.test\r\n\r\n")
            assert client.status() in {400, 501}
            staged.origin.expect_nobody()

    def test_smuggled(self) -> None:
        """What follows a tunnel's or a chunked request's end is judged as a request, or none."""
        with stage(names_allowed()) as staged:
            client = staged.client()
            client.send(
                b"POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"0\r\n\r\n" + get(b"evil.test")
            )
            server = staged.origin.accept()
            server.expect_head()
            server.expect(b"0\r\n\r\n")
            server.send(OK)
            client.expect(SERVED)
            assert 403 == client.status()
            server.expect_nothing()


class TestByName:
    def test_each_request(self) -> None:
        """An SNI proxy's requests go each to the address of its own name, at the same port."""
        with stage(names_allowed(), by_name=True) as staged:
            client = staged.client()
            # The names lead to the listener itself, which is seen before it is dialled.
            client.send(get(b"good.test"))
            assert 508 == client.status()
            client.send(get(b"evil.test"))
            assert 403 == client.status()
            client.send(get(b"127.0.0.1"))
            assert 403 == client.status()
            assert ["proxy_loop_detected", "default", "no_name"] == [
                flow.reason for flow in staged.flows
            ]
            assert {ListenerKind.SNI_PROXY} == {flow.listener for flow in staged.flows}

    def test_served(self) -> None:
        """As it is meant: the origin has another address and the listener's port."""
        with stage(names_allowed(), by_name=True) as staged:
            port = staged.address[1]
            with socket.create_server(("127.0.0.2", port)) as origin:
                staged.names.table["good.test"] = ("127.0.0.2",)
                client = staged.client()
                client.send(get(b"good.test"))
                staged.turning.until(lambda: queued(origin), origin)
                server = Peer(staged.turning, origin.accept()[0])
                server.expect(b"GET / HTTP/1.1\r\nHost: good.test\r\nVia: 1.1 sidecar\r\n\r\n")
                server.send(OK)
                client.expect(SERVED)
                server.close()
