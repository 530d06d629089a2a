"""Plain HTTP on intercepted connections: each request is judged by its own Host."""

from __future__ import annotations

import re
import socket
from contextlib import contextmanager, suppress
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
from sidecar.relay.half import Half
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
            b"GET /x\r\n",
            b"get  /x\r\n",
            b"GET http://evil.test/\r\n",
            b"GET https://evil.test/ x\r\n",
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

    @pytest.mark.parametrize(
        "said",
        [
            *(b"\0\0", b"NICK somebody\r\n", b"SSH-2.0-x\r\n", b"EHLO x\r\n", b"USER x\r\n"),
            *(b"get key\r\n", b"GET x\r\n", b"/path\r\n", b"a1 LOGIN http\r\n"),
        ],
    )
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

    def test_no_proxy(self) -> None:
        """A URL of another scheme is for nobody here."""
        with stage(names_allowed()) as staged:
            staged.served.record("good.test", "127.0.0.1", 60.0)
            client = staged.client()
            client.send(b"GET https://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n")
            assert 501 == client.status()
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


GREETING = b"220 ready\r\n"
DENIED = bytes((21, 3, 3, 0, 2, 2, 49))
SAID_GOOD, SAID_FINE, SAID_EVIL, SAID_ANY = (
    hello(server_name(name)) for name in (b"good.test", b"fine.test", b"evil.test", b"any.test")
)


@contextmanager
def late(chosen: Policy | None = None) -> Iterator[tuple[Stage, Peer, Peer]]:
    """Have a client that was silent for long enough, and be its server."""
    with stage(chosen or names_allowed()) as staged:
        staged.judge.silence = 0.01
        staged.served.record("good.test", "127.0.0.1", 60.0)
        client = staged.client()
        server = staged.origin.accept()
        staged.turning.until(lambda: staged.judge.open)
        yield staged, client, server


@contextmanager
def late_and_curious(patience: float = 5.0) -> Iterator[tuple[Stage, Peer, Peer]]:
    """Likewise where no name matters, and somebody wants to know it."""
    with stage(policy(), curious=True) as staged:
        staged.judge.silence, staged.judge.patience = 0.01, patience
        staged.served.record("good.test", "127.0.0.1", 60.0)
        client = staged.client()
        server = staged.origin.accept()
        staged.turning.until(lambda: staged.judge.open)
        yield staged, client, server


def in_pieces(said: bytes, pieces: int) -> list[bytes]:
    """Cut it."""
    size = -(-len(said) // pieces)
    return [said[at : at + size] for at in range(0, len(said), size)]


class TestLate:
    """A client that is silent at first is heard all the same, and judged by what it says."""

    @pytest.mark.parametrize("pieces", [1, 2, 999])
    def test_http(self, pieces: int) -> None:
        """Each of its requests is judged by its own name; the server's connection is used."""
        with late() as (staged, client, server):
            client.say(*in_pieces(get(b"evil.test"), pieces))
            assert 403 == client.status()
            server.expect_nothing()
            client.say(*in_pieces(get(b"good.test"), pieces))
            server.expect(b"GET / HTTP/1.1\r\nHost: good.test\r\nVia: 1.1 sidecar\r\n\r\n")
            server.send(OK)
            client.expect(SERVED)
            # The connection itself is no flow that anybody is told of.
            assert [
                ("evil.test", Verdict.DENY, "default"),
                ("good.test", Verdict.ALLOW, "rule"),
            ] == [(flow.host, flow.verdict, flow.reason) for flow in staged.flows]
            assert {} == staged.judge.open

    @pytest.mark.parametrize("pieces", [1, 2, 999])
    def test_tls(self, pieces: int) -> None:
        """What it says is allowed: the server gets it, once, and all that follows."""
        with late() as (staged, client, server):
            client.say(*in_pieces(SAID_GOOD, pieces))
            server.expect(SAID_GOOD)
            server.send(b"hello")
            client.expect(b"hello")
            client.send(b"more")
            server.expect(b"more")
            client.finish()
            server.expect_end()
            server.finish()
            client.expect_end()
            (flow,) = staged.flows
            assert ("good.test", HostSource.SNI, "rule", FlowEnd.CLOSED, len(SAID_GOOD) + 4, 5) == (
                *(flow.host, flow.host_from, flow.reason, flow.end, flow.sent, flow.received),
            )
            assert {} == staged.judge.open
            assert staged.origin.port == getattr(flow.upstream, "port", None)

    @pytest.mark.parametrize("pieces", [1, 2, 999])
    def test_tls_denied(self, pieces: int) -> None:
        """It is denied: the client is told so, and the server has heard nothing."""
        with late() as (staged, client, server):
            client.say(*in_pieces(SAID_EVIL, pieces))
            assert DENIED == client.expect_end()
            assert b"" == server.expect_end()
            (flow,) = staged.flows
            assert ("evil.test", Verdict.DENY, "default", None, FlowEnd.DENIED, 0, 0) == (
                *(flow.host, flow.verdict, flow.reason, flow.rule, flow.end),
                *(flow.sent, flow.received),
            )
            assert {} == staged.judge.open

    @pytest.mark.parametrize("pieces", [1, 2, 999])
    @pytest.mark.parametrize("said", [b"\0\0", b"NICK somebody\r\n", b"SSH-2.0-x\r\n"])
    def test_others(self, said: bytes, pieces: int) -> None:
        """What says no name is passed on, and what follows it isn't looked at."""
        with late() as (staged, client, server):
            client.say(*in_pieces(said, pieces))
            server.expect(said)
            client.send(SAID_EVIL)
            server.expect(SAID_EVIL)
            client.close()
            server.close()
            staged.turning.until(lambda: staged.flows)
            (flow,) = staged.flows
            assert ("good.test", HostSource.DNS, Verdict.ALLOW, len(said + SAID_EVIL)) == (
                *(flow.host, flow.host_from, flow.verdict, flow.sent),
            )

    def test_silent_to_the_end(self) -> None:
        """One that has nothing to say is relayed to its end."""
        with late() as (staged, client, server):
            server.send(GREETING)
            client.expect(GREETING)
            client.finish()
            assert b"" == server.expect_end()
            server.finish()
            client.expect_end()
            (flow,) = staged.flows
            assert (FlowEnd.CLOSED, 0, len(GREETING)) == (flow.end, flow.sent, flow.received)

    @pytest.mark.parametrize("said", [b"GET /x\r\n", b" GET / HTTP/1.1\r\n"])
    def test_nearly(self, said: bytes) -> None:
        """Nor is it let go for its address's name with what some servers take for HTTP."""
        with late() as (staged, client, server):
            client.send(said + b"Host: evil.test\r\n\r\n")
            assert 403 == client.status()
            assert b"" == server.expect_end()
            assert ["http_request_line"] == [flow.reason for flow in staged.flows]

    @pytest.mark.parametrize("spoke", [True, False])
    def test_dripping(self, spoke: bool) -> None:
        """From its first byte on it has the time that others have."""
        with late() as (staged, client, server):
            staged.judge.patience = 0.01
            if spoke:
                server.send(GREETING)
                client.expect(GREETING)
            # The patience of the flow is that of when it was allowed.
            ((_, relaying),) = staged.judge.open.values()
            assert relaying._words is not None
            relaying._words._patience = 0.01
            client.send(SAID_GOOD[:9])
            assert DENIED == client.expect_end()
            assert b"" == server.expect_end()
            (flow,) = staged.flows
            assert (Verdict.DENY, "peek_timeout", len(GREETING) if spoke else 0) == (
                *(flow.verdict, flow.reason, flow.received),
            )

    def test_server_first(self) -> None:
        """What a server says first is passed on at once, and its client is heard after it."""
        with stage(policy(deny=["evil.test"])) as staged:
            staged.judge.silence = 3600.0
            for said in (SAID_ANY, SAID_EVIL):
                client = staged.client()
                server = staged.origin.accept()
                server.send(GREETING)
                client.expect(GREETING)
                client.send(said)
                if said == SAID_ANY:
                    server.expect(said)
                    server.send(b"hello")
                    client.expect(b"hello")
                    client.close()
                    server.close()
                else:
                    assert DENIED == client.expect_end()
                    assert b"" == server.expect_end()
                staged.turning.until(lambda: staged.flows)
                flow = staged.flows.pop()
                allowed = said == SAID_ANY
                assert (
                    ("any.test", "default", len(said), len(GREETING) + 5)
                    if allowed
                    else ("evil.test", "denied_by_rule", 0, len(GREETING))
                ) == (flow.host, flow.reason, flow.sent, flow.received)

    def test_http_after_the_server(self) -> None:
        """Requests can't be told apart where the server spoke first: denied, whatever the name."""
        with late() as (staged, client, server):
            server.send(GREETING)
            client.expect(GREETING)
            client.send(get(b"good.test"))
            assert 403 == client.status()
            assert b"" == server.expect_end()
            (flow,) = staged.flows
            assert (Verdict.DENY, "server_spoke_first", 0, len(GREETING)) == (
                *(flow.verdict, flow.reason, flow.sent, flow.received),
            )

    @pytest.mark.parametrize("spoke", [True, False])
    def test_elsewhere(self, spoke: bool) -> None:
        """A name that is elsewhere is dialled there, unless the client has heard this server."""
        with late() as (staged, client, server):
            staged.names.table["fine.test"] = ("127.0.0.2",)
            if spoke:
                server.send(GREETING)
                client.expect(GREETING)
            with socket.create_server(("127.0.0.2", staged.origin.port)) as elsewhere:
                elsewhere.settimeout(5)
                client.send(SAID_FINE)
                assert b"" == server.expect_end()
                if spoke:
                    assert DENIED == client.expect_end()
                    assert ["server_spoke_first"] == [flow.reason for flow in staged.flows]
                    return
                other = Peer(staged.turning, elsewhere.accept()[0])
                other.expect(SAID_FINE)
                client.close()
                other.close()
            staged.turning.until(lambda: staged.flows)
            (flow,) = staged.flows
            assert ("fine.test", "127.0.0.2") == (flow.host, getattr(flow.upstream, "host", None))

    @pytest.mark.parametrize("end", ["client", "process"])
    def test_gone_while_verified(self, end: str) -> None:
        """Nobody is left where a client goes, or the process ends, while its name is verified."""
        with late() as (staged, client, server):
            staged.names.slow = True
            client.send(SAID_FINE)
            staged.turning.until(lambda: staged.names.waiting)
            if end == "client":
                client.reset()
                assert b"" == server.expect_end()
            else:
                staged.runtime.close()
            staged.turning.until(lambda: staged.flows)
            reset = FlowEnd.CLIENT_RESET if end == "client" else FlowEnd.SHUTDOWN
            assert [(Verdict.DENY, "not_judged", reset)] == [
                (flow.verdict, flow.reason, flow.end) for flow in staged.flows
            ]

    @pytest.mark.parametrize("end", ["reload", "process", "client", "server"])
    def test_ends_while_silent(self, end: str) -> None:
        """A flow whose client is still silent, or stammers, ends as every other."""
        with late() as (staged, client, server):
            client.send(SAID_GOOD[:9])
            staged.turning.settle()
            if end == "reload":
                staged.judge.policy = policy(default="deny")
                staged.judge.close_denied()
            elif end == "process":
                staged.runtime.close()
            else:
                (client if end == "client" else server).reset()
            staged.turning.until(lambda: staged.flows)
            if end != "client":
                assert b"" == client.expect_reset()
            expected = {
                "reload": FlowEnd.DENIED,
                "process": FlowEnd.SHUTDOWN,
                "client": FlowEnd.CLIENT_RESET,
                "server": FlowEnd.SERVER_RESET,
            }
            assert [(expected[end], 0)] == [(flow.end, flow.sent) for flow in staged.flows]

    def test_bug(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bug while it is judged again denies."""
        with late() as (staged, client, server):

            def decide(_: Flow) -> None:
                raise RuntimeError("bug")

            monkeypatch.setattr(staged.judge.policy, "decide", decide)
            client.send(SAID_GOOD)
            assert DENIED == client.expect_end()
            assert b"" == server.expect_end()
            assert ["internal_error"] == [flow.reason for flow in staged.flows]
            staged.turning.failures.clear()

    def test_curious(self) -> None:
        """Where a name is only wanted, it is known as well, and nothing is denied for it."""
        with late_and_curious() as (staged, client, server):
            client.send(get(b"any.test"))
            server.expect(b"GET / HTTP/1.1\r\nHost: any.test\r\nVia: 1.1 sidecar\r\n\r\n")
            server.send(OK)
            client.expect(SERVED)
            assert [("any.test", HostSource.HOST)] == [
                (flow.host, flow.host_from) for flow in staged.flows
            ]

    @pytest.mark.parametrize("pieces", [1, 999])
    @pytest.mark.parametrize(
        ("said", "host", "problem"),
        [
            (SAID_ANY, "any.test", None),
            (get(b"any.test"), "any.test", None),
            (hello(server_name(b"a..b")), "good.test", "invalid_host"),
            (b" GET / HTTP/1.1\r\n\r\n", "good.test", "http_request_line"),
            (b"EHLO x\r\n", "good.test", None),
        ],
    )
    def test_curious_after_the_server(
        self, said: bytes, host: str, problem: str | None, pieces: int
    ) -> None:
        """Nor if the server spoke first: then all is relayed as it is."""
        with late_and_curious() as (staged, client, server):
            server.send(GREETING)
            client.expect(GREETING)
            client.say(*in_pieces(said, pieces))
            server.expect(said)
            client.close()
            server.close()
            staged.turning.until(lambda: staged.flows)
            (flow,) = staged.flows
            assert (host, problem, Verdict.ALLOW, len(said), len(GREETING)) == (
                *(flow.host, flow.problem, flow.verdict, flow.sent, flow.received),
            )

    def test_curious_dripping(self) -> None:
        """Nor one that takes too long."""
        with late_and_curious(patience=0.01) as (staged, client, server):
            client.send(SAID_ANY[:9])
            server.expect(SAID_ANY[:9])
            client.close()
            server.close()
            staged.turning.until(lambda: staged.flows)
            assert ["peek_timeout"] == [flow.problem for flow in staged.flows]

    def test_no_name_matters(self) -> None:
        """Where none does, nothing is heard, at no cost."""
        with stage(policy(default="deny", allow=["127.0.0.1"])) as staged:
            staged.client()
            staged.origin.accept()
            staged.turning.until(lambda: staged.judge.open)
            ((_, relaying),) = staged.judge.open.values()
            assert relaying._words is None
            relay = relaying._joined._relay  # type: ignore[union-attr]
            assert Half is type(relay.downstream)  # type: ignore[union-attr]


ASKING = [
    b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n",
    b"CONNECT fine.test:443 HTTP/1.1\r\nHost: fine.test:443\r\n\r\n",
    b"CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n\r\n",
    b"CONNECT 10.0.0.1:443 HTTP/1.0\r\n\r\n",
    b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    b"GET http://fine.test/ HTTP/1.1\r\nHost: fine.test\r\n\r\n",
    b"GET http://10.0.0.1/ HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n",
]


FIRST_WORDS = [
    *(SAID_GOOD, SAID_FINE, SAID_EVIL, hello(), hello(server_name(b"a..b")), SAID_GOOD[:90]),
    *(get(b"good.test"), get(b"evil.test"), get(b"10.0.0.1"), get(b"a..b"), get(b"x")[:-2]),
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\n\n",
    b"PRI * HTTP/2.0\r\n\r\n",
    b"SSH-2.0-x\r\n",
    b"\x16\x03\x01\x00\x00",
    b"\x15\x03\x01\x00\x02\x01\x5a",
    b"\x00" * 70_000,
    b"X" * 70_000,
    *ASKING,
]


class TestAsAtOnce:
    """Whenever a client says something, the same comes of it."""

    @staticmethod
    def outcome(said: bytes, *, silent: bool, pieces: int = 1) -> list[object]:
        with stage(names_allowed()) as staged:
            staged.served.record("good.test", "127.0.0.1", 60.0)
            if silent:
                staged.judge.silence = 0.01
            client = staged.client()
            if silent:
                staged.origin.accept()
            client.say(*in_pieces(said, pieces))
            client.finish()
            peers = staged.origin.peers
            while not (staged.flows and client.ended):
                staged.turning.turn(0.005)
                client.read()
                with suppress(BlockingIOError):
                    peers.append(Peer(staged.turning, staged.origin.sock.accept()[0]))
                for peer in peers:
                    peer.read()
                    if peer.got or peer.ended:
                        peer.finish()
            heard = b"".join(peer.got for peer in peers)
            return [
                re.sub(rb"Date: .*|127.0.0.1:[0-9]+|sidecar-[0-9a-f]+", b"", client.got),
                re.sub(rb"127.0.0.1:[0-9]+|sidecar-[0-9a-f]+", b"", heard),
                *(
                    (each.host, each.host_from, each.protocol, each.verdict, each.reason, each.end)
                    for each in staged.flows
                ),
            ]

    @pytest.mark.parametrize("said", FIRST_WORDS)
    def test_same(self, said: bytes) -> None:
        """The same answer, the same bytes to the server, the same line in the log."""
        at_once = self.outcome(said, silent=False)
        assert at_once == self.outcome(said, silent=True)
        assert at_once == self.outcome(said, silent=True, pieces=7)


class TestProxies:
    """A server that is asked for others is a proxy, and reaches whatever it likes to."""

    @pytest.mark.parametrize("said", ASKING)
    def test_denied(self, said: bytes) -> None:
        """No name allows that, not its own either, nor that of whom it is asked for."""
        with stage(names_allowed()) as staged:
            staged.served.record("good.test", "127.0.0.1", 60.0)
            client = staged.client()
            client.send(said)
            hint = f"127.0.0.1:{staged.origin.port}"
            assert client.expect_head().startswith(b"HTTP/1.1 403 ")
            client.expect(f"sidecar: denied: proxy_request; to allow it: {hint}\n".encode())
            staged.origin.expect_nobody()
            (flow,) = staged.flows
            assert ("good.test", HostSource.DNS, hint, "proxy_request", hint) == (
                *(flow.host, flow.host_from, str(flow.destination), flow.reason, flow.hint),
            )

    @pytest.mark.parametrize("said", ASKING)
    def test_by_address(self, said: bytes) -> None:
        """A rule for its address does, as the hint says: nothing is read."""
        with stage(names_allowed()) as staged:
            staged.judge.policy = policy(
                default="deny", allow=[*NAMES, f"127.0.0.1:{staged.origin.port}"]
            )
            client = staged.client()
            client.send(said)
            staged.origin.accept().expect(said)

    def test_no_way_round(self) -> None:
        """Where a deny rule for names has the port, no rule helps, and none is named."""
        with stage(policy(deny=["evil.test"])) as staged:
            client = staged.client()
            client.send(ASKING[1])
            assert 403 == client.status()
            assert [("proxy_request", "")] == [(flow.reason, flow.hint) for flow in staged.flows]

    def test_certain(self) -> None:
        """Where it is denied anyway, what helps a proxy's client is told, too."""
        with stage(policy(default="deny")) as staged:
            staged.served.record("good.test", "127.0.0.1", 60.0)
            client = staged.client()
            client.send(ASKING[0])
            assert 403 == client.status()
            hint = f"127.0.0.1:{staged.origin.port}"
            assert [("default", hint)] == [(flow.reason, flow.hint) for flow in staged.flows]

    @pytest.mark.parametrize("host", ["good.test", "127.0.0.1"])
    def test_itself(self, host: str) -> None:
        """A URL that names the server itself is a request like others."""
        with stage(names_allowed()) as staged:
            staged.served.record("good.test", "127.0.0.1", 60.0)
            client = staged.client()
            client.send(f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert staged.origin.accept().expect_head().startswith(b"GET / HTTP/1.1\r\n")

    @pytest.mark.parametrize("said", ASKING)
    def test_later(self, said: bytes) -> None:
        """Nor may a later request of a connection ask for that."""
        with stage(names_allowed()) as staged:
            staged.served.record("good.test", "127.0.0.1", 60.0)
            client = staged.client()
            client.send(get(b"good.test"))
            server = staged.origin.accept()
            server.expect_head()
            server.send(OK)
            client.expect(SERVED)
            client.send(said)
            assert 403 == client.status()
            server.expect_nothing()
            flow = staged.flows[1]
            hint = f"127.0.0.1:{staged.origin.port}"
            assert ("proxy_request", hint, hint) == (flow.reason, flow.hint, str(flow.destination))

    @pytest.mark.parametrize("said", ASKING)
    def test_curious(self, said: bytes) -> None:
        """Where names are only wanted, it is relayed as it is; its name is the proxy's."""
        with stage(policy(), curious=True) as staged:
            staged.served.record("good.test", "127.0.0.1", 60.0)
            client = staged.client()
            client.send(said)
            server = staged.origin.accept()
            server.expect(said)
            server.send(b"HTTP/1.1 200 go on\r\n\r\n")
            client.expect(b"HTTP/1.1 200 go on\r\n\r\n")
            client.close()
            server.close()
            staged.turning.until(lambda: staged.flows)
            (flow,) = staged.flows
            assert ("good.test", HostSource.DNS, "proxy_request", Verdict.ALLOW) == (
                *(flow.host, flow.host_from, flow.problem, flow.verdict),
            )

    def test_unknown(self) -> None:
        """Where no names are served, nobody knows whose an address is: it is verified."""
        with stage(names_allowed()) as staged:
            staged.judge.served = None
            client = staged.client()
            client.send(ASKING[5])
            assert staged.origin.accept().expect_head().startswith(b"GET / HTTP/1.1\r\n")

    def test_http2(self) -> None:
        """Nor can anything be read in HTTP/2 without TLS; its address may be allowed."""
        with stage(names_allowed()) as staged:
            staged.served.record("good.test", "127.0.0.1", 60.0)
            client = staged.client()
            client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert 403 == client.status()
            hint = f"127.0.0.1:{staged.origin.port}"
            assert [("http_version", hint)] == [(flow.reason, flow.hint) for flow in staged.flows]


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
