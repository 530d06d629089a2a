from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import pytest
from certificates import Identity, make_identity
from relay.transcripts import SMALL_BUFFER, Peer, TlsPeer, noise, tcp_pair
from support import PATIENCE, fill_queue
from turning import Turning, turning
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.addresses import SocketAddress
from sidecar.endpoints import adopt_port
from sidecar.flow import DestinationSource, Flow, FlowEnd, ListenerKind, Verdict
from sidecar.interfaces import IFlowObserver, ISocketFactory
from sidecar.listening import FlowPort
from sidecar.protocols.tcp import StaticRelayFactory, TransparentRelayFactory
from sidecar.relay.resets import reset
from sidecar.runtime import Runtime
from sidecar.upstreams import HostPort

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from twisted.internet.address import IPv4Address

    from sidecar.upstreams import Upstream

MEBIBYTE = 1 << 20


@implementer(IFlowObserver)
class Observer:
    """Remembers ended flows."""

    def __init__(self) -> None:
        self.flows: list[Flow] = []

    def flow_ended(self, flow: Flow) -> None:
        self.flows.append(flow)


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning(threads=True) as made:
        yield made


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
def runtime(turning: Turning, observer: Observer) -> Iterator[Runtime]:
    made = Runtime.make(turning.reactor, observer, mark=None)
    yield made
    made.close()
    turning.settle()


@pytest.fixture
def stack(runtime: Runtime) -> Iterator[ExitStack]:
    """Closes what a test leaves open."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def origin(stack: ExitStack) -> socket.socket:
    made = stack.enter_context(socket.socket())
    made.bind(("127.0.0.1", 0))
    made.listen()
    made.settimeout(PATIENCE)
    return made


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return make_identity(tmp_path)


def address_of(sock: socket.socket) -> SocketAddress:
    """Where it is."""
    return SocketAddress.from_kernel(sock.getsockname())


def listen(turning: Turning, stack: ExitStack, text: str, factory: object) -> IListeningPort:
    """Listen as an endpoint string says."""
    endpoint = serverFromString(turning.reactor, text)
    port: IListeningPort = turning.result(endpoint.listen(cast("IProtocolFactory", factory)))

    stack.callback(lambda: turning.result(maybeDeferred(port.stopListening)))
    return port


def address_tuple(port: IListeningPort) -> tuple[str, int]:
    """Where it listens, which isn't a unix socket's path."""
    host = cast("IPv4Address", port.getHost())
    return host.host, host.port


def connect(turning: Turning, stack: ExitStack, port: IListeningPort) -> Peer:
    """Be a client of it."""
    number = SocketAddress.from_kernel(address_tuple(port)).port
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", number)))
    sock.setblocking(False)
    return Peer(turning, sock, 1)


def accept(turning: Turning, stack: ExitStack, origin: socket.socket) -> Peer:
    """Be the server."""
    arrived: list[socket.socket] = []
    origin.setblocking(False)

    def arrives() -> bool:
        try:
            arrived.append(stack.enter_context(origin.accept()[0]))
        except BlockingIOError:
            return False
        return True

    turning.until(arrives, origin)
    arrived[0].setblocking(False)
    return Peer(turning, arrived[0], 2)


def converse(client: Peer, server: Peer) -> None:
    """Talk, in bulk and with ends, and see that all arrives."""
    client.say(b"question")
    assert b"question" == server.read(8)
    server.send(MEBIBYTE // 2)
    server.half_close()
    assert noise(2)[: MEBIBYTE // 2] == client.read_to_end()
    client.half_close()
    assert b"question" == server.read_to_end()


def over_socket(
    factory: StaticRelayFactory | TransparentRelayFactory,
    turning: Turning,
    stack: ExitStack,
    destination: SocketAddress | None = None,
) -> tuple[Peer, Flow]:
    """Hand a factory a socket as a listener of ours does."""
    near, connection = tcp_pair()
    stack.enter_context(near)
    source = SocketAddress.from_kernel(connection.getpeername())
    found_by = None if destination is None else DestinationSource.TPROXY
    flow = Flow(factory.kind, source, destination, found_by, factory.runtime.observer)
    factory.socket_accepted(connection, flow)
    return Peer(turning, near, 1), flow


def test_interfaces(runtime: Runtime) -> None:
    """They are what listeners of ours and of Twisted's expect."""
    for factory in (
        StaticRelayFactory(runtime, SocketAddress("127.0.0.1", 1)),
        TransparentRelayFactory(runtime),
    ):
        assert verifyObject(ISocketFactory, factory)
        assert verifyObject(IProtocolFactory, factory)


class TestStatic:
    def test_socket(
        self,
        turning: Turning,
        runtime: Runtime,
        stack: ExitStack,
        origin: socket.socket,
        observer: Observer,
    ) -> None:
        """A socket is relayed to the one place; the flow says so."""
        factory = StaticRelayFactory(runtime, address_of(origin))
        client, flow = over_socket(factory, turning, stack)
        converse(client, accept(turning, stack, origin))
        turning.until(lambda: observer.flows)
        assert [flow] == observer.flows
        assert (FlowEnd.CLOSED, 8, MEBIBYTE // 2, ListenerKind.FORWARD) == (
            flow.end,
            flow.sent,
            flow.received,
            flow.listener,
        )
        assert (address_of(origin), DestinationSource.STATIC, address_of(origin)) == (
            flow.destination,
            flow.destination_from,
            flow.upstream,
        )

    def test_plain_endpoint(
        self,
        turning: Turning,
        runtime: Runtime,
        stack: ExitStack,
        origin: socket.socket,
        observer: Observer,
    ) -> None:
        """Under Twisted's own tcp: the socket is taken from its transport and spliced."""
        factory = StaticRelayFactory(runtime, address_of(origin))
        port = listen(turning, stack, "tcp:0:interface=127.0.0.1", factory)
        client = connect(turning, stack, port)
        server = accept(turning, stack, origin)
        turning.settle()
        assert 2 == len(runtime.poller._pollables)
        converse(client, server)
        turning.until(lambda: observer.flows)
        (flow,) = observer.flows
        assert (FlowEnd.CLOSED, 8, MEBIBYTE // 2) == (flow.end, flow.sent, flow.received)
        assert address_of(client.sock) == flow.source

    def test_shut_down_while_relaying(
        self,
        turning: Turning,
        runtime: Runtime,
        stack: ExitStack,
        origin: socket.socket,
        observer: Observer,
    ) -> None:
        """A process that ends resets what was taken from Twisted's transports, once each."""
        factory = StaticRelayFactory(runtime, address_of(origin))
        port = listen(turning, stack, "tcp:0:interface=127.0.0.1", factory)
        client = connect(turning, stack, port)
        accept(turning, stack, origin)
        turning.settle()
        runtime.close()
        assert [FlowEnd.SHUTDOWN] == [flow.end for flow in observer.flows]
        assert b"" == client.read_to_reset()

    @pytest.mark.parametrize(
        "text", ["tcp:0:interface=127.0.0.1", r"tcp6:0:interface=\:\:ffff\:127.0.0.1"]
    )
    def test_adopted(
        self,
        turning: Turning,
        runtime: Runtime,
        stack: ExitStack,
        origin: socket.socket,
        text: str,
    ) -> None:
        """A plain port of Twisted's can be served our way; it is stopped with ours."""
        factory = StaticRelayFactory(runtime, address_of(origin))
        endpoint = serverFromString(turning.reactor, text)
        lender = turning.result(endpoint.listen(factory))
        port = adopt_port(runtime, lender, factory)
        assert isinstance(port, FlowPort)
        client = connect(turning, stack, port)
        converse(client, accept(turning, stack, origin))
        number = port.getHost().port
        turning.result(port.stopListening())
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", number))

    def test_tls(
        self,
        turning: Turning,
        runtime: Runtime,
        stack: ExitStack,
        origin: socket.socket,
        observer: Observer,
        identity: Identity,
    ) -> None:
        """Under tls: it is relayed decrypted; the port stays Twisted's."""
        factory = StaticRelayFactory(runtime, address_of(origin))
        text = f"ssl:0:interface=127.0.0.1:privateKey={identity.keyfile}"
        port = listen(turning, stack, text, factory)
        assert port is adopt_port(runtime, port, factory)
        sock = connect(turning, stack, port).sock
        client = TlsPeer(turning, sock, 1, identity.cafile)
        stack.callback(client.close)
        client.shake_hands()
        server = accept(turning, stack, origin)
        client.say(b"question")
        assert b"question" == server.read(8)
        server.send(MEBIBYTE // 2)
        server.half_close()
        assert server.written == client.read_to_end()
        client.close()
        turning.until(lambda: observer.flows)
        (flow,) = observer.flows
        assert (FlowEnd.CLOSED, 8, MEBIBYTE // 2) == (flow.end, flow.sent, flow.received)

    def test_unix(
        self,
        turning: Turning,
        runtime: Runtime,
        stack: ExitStack,
        origin: socket.socket,
        observer: Observer,
        tmp_path: Path,
    ) -> None:
        """Under unix: as well; the port stays Twisted's."""
        factory = StaticRelayFactory(runtime, address_of(origin))
        port = listen(turning, stack, f"unix:{tmp_path}/s", factory)
        assert port is adopt_port(runtime, port, factory)
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.connect(f"{tmp_path}/s")
        sock.setblocking(False)
        converse(Peer(turning, sock, 1), accept(turning, stack, origin))
        turning.until(lambda: observer.flows)
        assert FlowEnd.CLOSED is observer.flows[0].end

    @pytest.mark.parametrize("via", ["socket", "endpoint"])
    @pytest.mark.parametrize("named", [False, True])
    def test_refused(
        self,
        turning: Turning,
        runtime: Runtime,
        stack: ExitStack,
        origin: socket.socket,
        observer: Observer,
        via: str,
        named: bool,
    ) -> None:
        """A refused upstream is a reset for the client."""
        address = address_of(origin)
        upstream: Upstream = HostPort("localhost", address.port) if named else address
        origin.close()
        factory = StaticRelayFactory(runtime, upstream)
        if via == "socket":
            client, _ = over_socket(factory, turning, stack)
        else:
            client = connect(
                turning, stack, listen(turning, stack, "tcp:0:interface=127.0.0.1", factory)
            )
        assert b"" == client.read_to_reset()
        turning.until(lambda: observer.flows)
        assert [FlowEnd.CONNECTION_REFUSED] == [flow.end for flow in observer.flows]

    def test_itself(
        self, turning: Turning, runtime: Runtime, stack: ExitStack, observer: Observer
    ) -> None:
        """A relay to itself is refused, as one flow."""
        own = SocketAddress("127.0.0.1", 15001)
        runtime.guard.add_listener(own)
        client, flow = over_socket(StaticRelayFactory(runtime, own), turning, stack)
        assert b"" == client.read_to_reset()
        assert [flow] == observer.flows
        assert (FlowEnd.PROXY_LOOP_DETECTED, Verdict.DENY, "proxy_loop_detected", None) == (
            flow.end,
            flow.verdict,
            flow.reason,
            flow.upstream,
        )

    @pytest.mark.parametrize("how", ["reset", "shut down"])
    def test_while_dialling(
        self,
        turning: Turning,
        runtime: Runtime,
        stack: ExitStack,
        origin: socket.socket,
        observer: Observer,
        how: str,
    ) -> None:
        """A client that goes, or a process that ends, gives up the dial."""
        fill_queue(stack, origin)
        factory = StaticRelayFactory(runtime, address_of(origin))
        client, flow = over_socket(factory, turning, stack)
        turning.settle()
        assert flow.end is None
        if how == "reset":
            reset(client.sock)
            turning.until(lambda: observer.flows)
            assert FlowEnd.CLIENT_RESET is flow.end
        else:
            runtime.close()
            assert FlowEnd.SHUTDOWN is flow.end
        assert [flow] == observer.flows
        assert {} == runtime.dialer._waiting

    def test_early_data(
        self,
        turning: Turning,
        runtime: Runtime,
        stack: ExitStack,
        origin: socket.socket,
    ) -> None:
        """What a client says before the upstream is connected arrives first, once."""
        factory = StaticRelayFactory(runtime, HostPort("localhost", address_of(origin).port))
        client, _ = over_socket(factory, turning, stack)
        client.say(b"early ")
        server = accept(turning, stack, origin)
        client.say(b"late")
        client.half_close()
        assert b"early late" == server.read_to_end()


class TestTransparent:
    def test_destination(
        self,
        turning: Turning,
        runtime: Runtime,
        stack: ExitStack,
        origin: socket.socket,
        observer: Observer,
    ) -> None:
        """A flow is relayed to its own destination."""
        factory = TransparentRelayFactory(runtime, kind=ListenerKind.INBOUND)
        client, flow = over_socket(factory, turning, stack, address_of(origin))
        converse(client, accept(turning, stack, origin))
        turning.until(lambda: observer.flows)
        assert (FlowEnd.CLOSED, address_of(origin), ListenerKind.INBOUND) == (
            flow.end,
            flow.upstream,
            flow.listener,
        )

    def test_looped(
        self,
        turning: Turning,
        runtime: Runtime,
        stack: ExitStack,
        origin: socket.socket,
        observer: Observer,
    ) -> None:
        """A connection of ours that comes back to us ends the flow that made it."""
        runtime.guard.tracks_upstreams = True
        factory = TransparentRelayFactory(runtime)
        client, flow = over_socket(factory, turning, stack, address_of(origin))
        server = accept(turning, stack, origin)
        ends = server.sock.getpeername(), server.sock.getsockname()
        owner = runtime.guard.owner(*map(SocketAddress.from_kernel, ends))
        assert owner is not None
        owner.looped()
        assert b"" == client.read_to_reset()
        assert (FlowEnd.PROXY_LOOP_DETECTED, Verdict.DENY) == (flow.end, flow.verdict)
        assert [flow] == observer.flows
        assert {} == runtime.guard._upstreams

    def test_bounded(
        self, turning: Turning, runtime: Runtime, stack: ExitStack, origin: socket.socket
    ) -> None:
        """A client that talks to a server that doesn't listen is stopped."""
        origin.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        factory = TransparentRelayFactory(runtime)
        client, _ = over_socket(factory, turning, stack, address_of(origin))
        server = accept(turning, stack, origin)
        client.send_until_stopped()
        client.half_close()
        assert client.written == server.read_to_end()
