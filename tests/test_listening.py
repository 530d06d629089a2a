from __future__ import annotations

import os
import resource
import socket
from functools import partial
from typing import TYPE_CHECKING, cast

import pytest
from support import PATIENCE, queued, wait_for
from turning import Turning, turning
from twisted.internet.interfaces import IListeningPort, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.addresses import SocketAddress
from sidecar.admission import ConnectionCounter
from sidecar.config import Limits
from sidecar.destinations import DestinationFinder, NotIntercepted, OriginalDestination
from sidecar.errors import ProxyLoopDetected
from sidecar.flow import DestinationSource, Flow, FlowEnd, ListenerKind, Verdict
from sidecar.interfaces import IFlowObserver, IManyFlowsFactory, IOpeningObserver, ISocketFactory
from sidecar.listening import FlowPort, twisted_address
from sidecar.relay.stream import ShutDown, SocketTransport
from sidecar.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.internet.interfaces import IAddress, IProtocol
    from twisted.python.failure import Failure

    from sidecar.errors import DialError

ELSEWHERE = SocketAddress("198.51.100.1", 443)


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@implementer(IFlowObserver)
class Observer:
    """Remembers what it was told, and does what a test wants."""

    def __init__(self, react: Callable[[], None] | None = None) -> None:
        self.flows: list[Flow] = []
        self._react = react

    def flow_ended(self, flow: Flow) -> None:
        self.flows.append(flow)
        if self._react is not None:
            self._react()


@implementer(IOpeningObserver)
class EarlyObserver(Observer):
    """Is told of beginnings, too, and raises."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[Flow] = []

    def flow_opened(self, flow: Flow) -> None:
        self.opened.append(flow)
        raise ZeroDivisionError

    def connection_closed(self, flow: Flow) -> None:
        raise AssertionError(flow)


@implementer(ISocketFactory)
class Sockets(Factory):
    """Takes sockets and keeps them."""

    noisy = False
    kind = ListenerKind.INBOUND

    def __init__(self, runtime: Runtime, react: Callable[[], None] | None = None) -> None:
        self.runtime = runtime
        self.taken: list[tuple[socket.socket, Flow]] = []
        self._react = react

    def socket_accepted(self, connection: socket.socket, flow: Flow) -> None:
        self.taken.append((connection, flow))
        if self._react is not None:
            self._react()

    def close(self) -> None:
        while self.taken:
            connection, flow = self.taken.pop()
            connection.close()
            flow.finish(FlowEnd.CLOSED)


class Requests(Protocol):
    """Takes each byte for a request, and "x" for one that leads back to the listener."""

    def __init__(self, runtime: Runtime, flow: Flow) -> None:
        self._runtime = runtime
        self._connection = flow
        self.reasons: list[type[BaseException]] = []

    def dataReceived(self, data: bytes) -> None:
        for byte in data:
            flow = Flow(
                ListenerKind.INBOUND, self._connection.source, None, None, self._runtime.observer
            )
            if byte == ord("x"):
                host = cast("SocketTransport", self.transport).getHost()
                self._runtime.dialer.dial(
                    SocketAddress(host.host, host.port), partial(_ended, flow)
                )
            else:
                flow.finish(FlowEnd.CLOSED)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert reason.value is not None
        self.reasons.append(type(reason.value))
        self._connection.finish(FlowEnd.CLOSED)


def _ended(flow: Flow, outcome: socket.socket | DialError, address: SocketAddress) -> None:
    assert isinstance(outcome, ProxyLoopDetected)
    flow.finish(outcome.end)


@implementer(IManyFlowsFactory)
class ManyFlows(Factory):
    """Serves requests on our own transports."""

    noisy = False
    kind = ListenerKind.INBOUND

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.protocols: list[Requests] = []

    def socket_accepted(self, connection: socket.socket, flow: Flow) -> None:
        protocol = Requests(self.runtime, flow)
        self.protocols.append(protocol)
        SocketTransport(
            self.runtime.poller, connection, cast("IProtocol", protocol), peer=flow.source
        )


class Hosts(Protocol):
    """Says what its transport says of its two ends, and waits."""

    def connectionMade(self) -> None:
        transport = cast("ITCPTransport", self.transport)
        transport.write(f"{transport.getHost()} {transport.getPeer()}".encode())


class Protocols(Factory):
    """An ordinary factory."""

    noisy = False
    protocol = Hosts


class FakeFinder:
    """Knows what a test says."""

    def __init__(self, found: OriginalDestination | NotIntercepted) -> None:
        self._found = found

    def find(
        self, connection: socket.socket, source: SocketAddress
    ) -> OriginalDestination | NotIntercepted:
        return self._found


FOUND = FakeFinder(OriginalDestination(ELSEWHERE, DestinationSource.TPROXY))
DIRECT = FakeFinder(NotIntercepted(SocketAddress("127.0.0.1", 15001)))


def make_runtime(
    turning: Turning, observer: Observer | None = None, connections: int | None = None
) -> Runtime:
    """Make a runtime that admits so many connections."""
    return Runtime.make(
        turning.reactor, observer, mark=None, limits=Limits(max_connections=connections)
    )


def listen(
    runtime: Runtime, factory: Factory, finder: FakeFinder | None = None, host: str = "127.0.0.1"
) -> FlowPort:
    """Open a port."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setblocking(False)
    sock.bind((host, 0))
    sock.listen()
    port = FlowPort(runtime, sock, factory, cast("DestinationFinder | None", finder))
    port.startListening()
    return port


def connect(port: FlowPort) -> socket.socket:
    """Connect to it."""
    host = port.getHost()
    return socket.create_connection((host.host, host.port), PATIENCE)


class TestPort:
    def test_interfaces(self, turning: Turning) -> None:
        """It is a listening port, and the fakes here are what they pretend to be."""
        runtime = make_runtime(turning)
        sockets = Sockets(runtime)
        port = listen(runtime, sockets)
        assert verifyObject(IListeningPort, port)
        assert verifyObject(IFlowObserver, port)
        assert verifyObject(IFlowObserver, Observer())
        assert verifyObject(ISocketFactory, sockets)
        runtime.close()

    def test_stop(self, turning: Turning) -> None:
        """A stopped port accepts no more, tells its factory, and can be stopped again."""
        runtime = make_runtime(turning)
        sockets = Sockets(runtime)
        port = listen(runtime, sockets)
        assert 1 == sockets.numPorts
        host = port.getHost()
        turning.result(port.stopListening())
        assert 0 == sockets.numPorts
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host.host, host.port))
        turning.result(port.stopListening())
        assert not runtime.guard.leads_back(SocketAddress(host.host, host.port))
        runtime.close()

    def test_own_address(self, turning: Turning) -> None:
        """While it listens, dialling it is a loop."""
        runtime = make_runtime(turning)
        port = listen(runtime, Sockets(runtime))
        host = port.getHost()
        assert runtime.guard.leads_back(SocketAddress(host.host, host.port))
        runtime.close()


class TestSockets:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_handed_over(self, turning: Turning, host: str) -> None:
        """A socket factory gets the accepted socket and its flow."""
        observer = Observer()
        runtime = make_runtime(turning, observer)
        sockets = Sockets(runtime)
        with connect(listen(runtime, sockets, FOUND, host)) as client:
            turning.until(lambda: sockets.taken)
            ((connection, flow),) = sockets.taken
            assert client.getsockname() == connection.getpeername()
            assert not connection.getblocking()
            assert (ListenerKind.INBOUND, ELSEWHERE, DestinationSource.TPROXY) == (
                flow.listener,
                flow.destination,
                flow.destination_from,
            )
            assert SocketAddress.from_kernel(client.getsockname()) == flow.source
            assert 1 == runtime.admission.open
            sockets.close()
        assert ([flow], 0) == (observer.flows, runtime.admission.open)
        runtime.close()

    def test_without_interception(self, turning: Turning) -> None:
        """Where connections are meant for the listener there is no destination yet."""
        runtime = make_runtime(turning)
        sockets = Sockets(runtime)
        with connect(listen(runtime, sockets)):
            turning.until(lambda: sockets.taken)
            assert sockets.taken[0][1].destination is None
            sockets.close()
        runtime.close()

    def test_observer_that_raises(self, turning: Turning) -> None:
        """A bug in an observer is logged; the connection is counted out all the same."""

        def bug() -> None:
            raise ZeroDivisionError

        runtime = make_runtime(turning, Observer(bug))
        sockets = Sockets(runtime)
        with connect(listen(runtime, sockets)):
            turning.until(lambda: sockets.taken)
            sockets.close()
        assert 0 == runtime.admission.open
        assert "ZeroDivisionError" in turning.failures.pop()
        runtime.close()

    def test_opening(self, turning: Turning) -> None:
        """An observer of beginnings is told of a flow before anybody else; its bug is logged."""
        observer = EarlyObserver()
        runtime = make_runtime(turning, observer)
        sockets = Sockets(runtime, lambda: seen.extend(observer.opened))
        seen: list[Flow] = []
        with connect(listen(runtime, sockets, FOUND)):
            turning.until(lambda: sockets.taken)
            ((_, flow),) = sockets.taken
            assert ([flow], [], ELSEWHERE) == (seen, observer.flows, flow.destination)
            sockets.close()
        assert [flow] == observer.flows
        assert "ZeroDivisionError" in turning.failures.pop()
        runtime.close()

    def test_factory_that_raises(self, turning: Turning) -> None:
        """A bug in a factory costs one connection; it is closed and no longer counted."""

        def bug() -> None:
            raise ZeroDivisionError

        runtime = make_runtime(turning)
        sockets = Sockets(runtime, bug)
        port = listen(runtime, sockets)
        for _ in range(3):
            with connect(port) as client:
                turning.until(lambda: turning.failures)
                assert "ZeroDivisionError" in turning.failures.pop()
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            assert 0 == runtime.admission.open
            sockets.taken.clear()
        runtime.close()


class TestManyFlows:
    def test_interfaces(self, turning: Turning) -> None:
        """The counter is an observer, the fake a taker of sockets."""
        runtime = make_runtime(turning)
        factory = ManyFlows(runtime)
        assert verifyObject(IManyFlowsFactory, factory)
        assert ISocketFactory.providedBy(factory)
        assert verifyObject(IFlowObserver, ConnectionCounter(runtime.admission, None))
        runtime.close()

    def test_counted(self, turning: Turning) -> None:
        """Connections are counted, requests are told of."""
        observer = Observer()
        runtime = make_runtime(turning, observer)
        port = listen(runtime, ManyFlows(runtime))
        with connect(port) as client, connect(port):
            client.send(b"12345")
            turning.until(lambda: len(observer.flows) == 5)
            assert 2 == runtime.admission.open
        turning.until(lambda: runtime.admission.open == 0)
        assert [FlowEnd.CLOSED] * 5 == [flow.end for flow in observer.flows]
        runtime.close()

    def test_limit(self, turning: Turning) -> None:
        """The limit is one of connections, however many requests each carries."""
        observer = Observer()
        runtime = make_runtime(turning, observer, connections=1)
        factory = ManyFlows(runtime)
        port = listen(runtime, factory)
        with connect(port) as second:
            with connect(port):
                turning.until(lambda: factory.protocols)
                second.send(b"123")
                turning.settle()
                assert (1, 1) == (len(factory.protocols), runtime.admission.open)
            turning.until(lambda: len(observer.flows) == 3)
            assert 1 == runtime.admission.open
        turning.until(lambda: runtime.admission.open == 0)
        runtime.close()

    def test_loop(self, turning: Turning) -> None:
        """A request for the listener itself isn't dialled."""
        observer = Observer()
        runtime = make_runtime(turning, observer)
        with connect(listen(runtime, ManyFlows(runtime))) as client:
            client.send(b"x1")
            turning.until(lambda: len(observer.flows) == 2)
        ends = [flow.end for flow in observer.flows]
        assert [FlowEnd.PROXY_LOOP_DETECTED, FlowEnd.CLOSED] == ends
        turning.until(lambda: runtime.admission.open == 0)
        runtime.close()

    def test_own_upstream(self, turning: Turning) -> None:
        """A connection that we dialled ourselves is refused as with any factory."""

        class Owner:
            looped_times = 0

            def looped(self) -> None:
                self.looped_times += 1

        runtime = make_runtime(turning)
        factory = ManyFlows(runtime)
        port = listen(runtime, factory, FOUND)
        owner = Owner()
        with connect(port) as client:
            runtime.guard.track(client, ELSEWHERE, owner)
            turning.until(lambda: owner.looped_times)
        assert ([], 0) == (factory.protocols, runtime.admission.open)
        runtime.close()

    def test_shutdown(self, turning: Turning) -> None:
        """What is open when the process ends is reset, and its protocol told."""
        runtime = make_runtime(turning)
        factory = ManyFlows(runtime)
        port = listen(runtime, factory)
        with connect(port) as client:
            turning.until(lambda: factory.protocols)
            runtime.close()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert [[ShutDown]] == [protocol.reasons for protocol in factory.protocols]
        assert 0 == runtime.admission.open

    def test_factory_that_raises(self, turning: Turning) -> None:
        """A bug in the factory costs one connection, which is no longer counted."""

        class Buggy(ManyFlows):
            def socket_accepted(self, connection: socket.socket, flow: Flow) -> None:
                raise ZeroDivisionError

        observer = Observer()
        runtime = make_runtime(turning, observer)
        with connect(listen(runtime, Buggy(runtime))):
            turning.until(lambda: turning.failures)
            assert "ZeroDivisionError" in turning.failures.pop()
        assert ([], 0) == (observer.flows, runtime.admission.open)
        runtime.close()


class TestProtocols:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_original_destination(self, turning: Turning, host: str) -> None:
        """An ordinary factory's transports tell the original destination, and the peer."""
        runtime = make_runtime(turning)
        with connect(listen(runtime, Protocols(), FOUND, host)) as client:
            turning.until(lambda: runtime.admission.open)
            turning.settle()
            peer = SocketAddress.from_kernel(client.getsockname())
            expected = f"{twisted_address(ELSEWHERE)} {twisted_address(peer)}"
            assert expected.encode() == client.recv(1000)
        turning.until(lambda: runtime.admission.open == 0)
        runtime.close()

    def test_own_address(self, turning: Turning) -> None:
        """Without interception the host is where the client connected to."""
        runtime = make_runtime(turning)
        port = listen(runtime, Protocols())
        with connect(port) as client:
            turning.until(lambda: runtime.admission.open)
            turning.settle()
            assert client.recv(1000).startswith(str(port.getHost()).encode())
        turning.until(lambda: runtime.admission.open == 0)
        runtime.close()

    def test_no_protocol(self, turning: Turning) -> None:
        """A factory may want none."""

        class Unwilling(Protocols):
            def buildProtocol(self, addr: IAddress | None) -> None:
                return None

        runtime = make_runtime(turning)
        with connect(listen(runtime, Unwilling())) as client:
            client.setblocking(False)
            turning.until(lambda: ended(client), client)
        assert 0 == runtime.admission.open
        runtime.close()

    def test_factory_that_raises(self, turning: Turning) -> None:
        """A bug in a factory costs one connection; it is closed and no longer counted."""

        class Buggy(Protocols):
            def buildProtocol(self, addr: IAddress | None) -> Protocol:
                raise ZeroDivisionError

        runtime = make_runtime(turning)
        port = listen(runtime, Buggy())
        for _ in range(3):
            with connect(port) as client:
                turning.until(lambda: turning.failures)
                assert "ZeroDivisionError" in turning.failures.pop()
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            assert 0 == runtime.admission.open
        runtime.close()


def ended(client: socket.socket) -> bool:
    """Whether the other side has closed."""
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


class TestDirect:
    def test_observed(self, turning: Turning) -> None:
        """Who dials a transparent listener itself is reset, counted, and one line in the log."""
        observer = Observer()
        runtime = make_runtime(turning, observer)
        sockets = Sockets(runtime)
        port = listen(runtime, sockets, DIRECT)
        with connect(port) as client:
            turning.until(lambda: port.refused)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        (flow,) = observer.flows
        assert (Verdict.DENY, "not_intercepted", FlowEnd.DENIED) == (
            flow.verdict,
            flow.reason,
            flow.end,
        )
        assert ([], 0, 1) == (sockets.taken, runtime.admission.open, port.refused)
        runtime.close()

    def test_unobserved(self, turning: Turning) -> None:
        """Without an access log it is one line of the ordinary one."""
        runtime = make_runtime(turning)
        port = listen(runtime, Protocols(), DIRECT)
        with connect(port):
            turning.until(lambda: port.refused)
        assert 1 == len([line for line in turning.logged if "dialled" in line])
        runtime.close()

    def test_own_upstream(self, turning: Turning) -> None:
        """A connection that we dialled ourselves ends the flow that dialled it."""

        class Owner:
            looped_times = 0

            def looped(self) -> None:
                self.looped_times += 1

        runtime = make_runtime(turning)
        sockets = Sockets(runtime)
        port = listen(runtime, sockets, FOUND)
        owner = Owner()
        with connect(port) as client:
            runtime.guard.track(client, ELSEWHERE, owner)
            turning.until(lambda: owner.looped_times)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert ([], 1, 0) == (sockets.taken, owner.looped_times, runtime.admission.open)
        runtime.close()


class TestLimits:
    def test_pause_and_resume(self, turning: Turning) -> None:
        """At the limit accepting pauses; when some end it goes on."""
        runtime = make_runtime(turning, connections=2)
        sockets = Sockets(runtime)
        port = listen(runtime, sockets)
        clients = [connect(port) for _ in range(4)]
        turning.until(lambda: len(sockets.taken) == 2)
        turning.settle()
        assert (2, 2) == (len(sockets.taken), runtime.admission.open)
        sockets.close()
        turning.until(lambda: len(sockets.taken) == 2)
        sockets.close()
        for client in clients:
            client.close()
        runtime.close()

    def test_stopped_while_paused(self, turning: Turning) -> None:
        """A port that is stopped while it pauses doesn't come back."""
        runtime = make_runtime(turning, connections=1)
        sockets = Sockets(runtime)
        port = listen(runtime, sockets)
        with connect(port), connect(port):
            turning.until(lambda: sockets.taken)
            turning.settle()
            port.stopListening()
            sockets.close()
            turning.settle()
            assert [] == sockets.taken
        runtime.close()

    def test_no_descriptors(self, turning: Turning) -> None:
        """When descriptors run out accepting pauses, says so, and goes on later."""
        runtime = make_runtime(turning)
        sockets = Sockets(runtime)
        port = listen(runtime, sockets)
        with connect(port):
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                turning.until(lambda: any("open files" in line for line in turning.logged))
                turning.settle()
                assert [] == sockets.taken
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            turning.until(lambda: sockets.taken)
            sockets.close()
        runtime.close()

    def test_accepts_per_wakeup(self, turning: Turning) -> None:
        """Of many that wait only so many are taken before others get their turn."""
        runtime = Runtime.make(turning.reactor, mark=None, limits=Limits(accepts_per_wakeup=3))
        sockets = Sockets(runtime)
        port = listen(runtime, sockets)
        clients = [connect(port) for _ in range(7)]
        wait_for(lambda: queued(port._socket) == 7)
        taken = []
        for _ in range(3):
            turning.turn()
            taken.append(len(sockets.taken))
        assert [3, 6, 7] == taken
        for client in clients:
            client.close()
        sockets.close()
        runtime.close()
