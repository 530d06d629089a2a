from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import pytest
from turning import Turning, turning
from twisted.internet import defer, error
from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IStreamClientEndpoint
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.addresses import SocketAddress
from sidecar.errors import (
    ConnectionRefused,
    ConnectionTimeout,
    DestinationUnroutable,
    DialError,
    NameNotResolved,
    TunnelRefused,
)
from sidecar.protocols.connecting import Connecting, reach
from sidecar.relay import RelayProtocol
from sidecar.runtime import Runtime
from sidecar.upstreams import HostPort

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from twisted.internet.interfaces import (
        IAddress,
        IProtocol,
        IProtocolFactory,
        IReactorPluggableNameResolver,
        IResolutionReceiver,
    )

    from sidecar.relay import Side


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning(threads=True) as made:
        yield made


@pytest.fixture
def runtime(turning: Turning) -> Iterator[Runtime]:
    made = Runtime.make(turning.reactor, mark=None)
    yield made
    made.close()


@pytest.fixture
def origin(runtime: Runtime) -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield made


class Outcome:
    """Takes what an attempt ends with."""

    def __init__(self) -> None:
        self.all: list[tuple[Side | DialError, SocketAddress | None]] = []

    def __call__(self, outcome: Side | DialError, address: SocketAddress | None) -> None:
        self.all.append((outcome, address))
        if isinstance(outcome, socket.socket):
            outcome.close()
        elif isinstance(outcome, RelayProtocol):
            outcome.abort()

    @property
    def kind(self) -> type:
        """What the one outcome is."""
        ((outcome, _),) = self.all
        return type(outcome)

    @property
    def address(self) -> SocketAddress | None:
        """The address that was dialled last."""
        ((_, address),) = self.all
        return address


@implementer(IHostResolution)
class Resolution:
    """A name's resolution under way."""

    name = "service.example"

    def cancel(self) -> None:
        pass


@implementer(IHostnameResolver)
class Names:
    """Knows one name, and answers when it is told to."""

    def __init__(self, addresses: Sequence[IAddress]) -> None:
        self._addresses = addresses
        self._receivers: list[IResolutionReceiver] = []

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: object = None,
        transportSemantics: str = "TCP",
    ) -> Resolution:
        self._receivers.append(resolutionReceiver)
        resolution = Resolution()
        resolutionReceiver.resolutionBegan(resolution)
        return resolution

    def answer(self) -> None:
        """Answer every question."""
        for receiver in self._receivers:
            for address in self._addresses:
                receiver.addressResolved(address)
            receiver.resolutionComplete()
        self._receivers.clear()


@implementer(IStreamClientEndpoint)
class Endpoint:
    """An endpoint that is connected, or fails, when a test says so."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.connecting: defer.Deferred[IProtocol] = defer.Deferred(self._cancel)

    def _cancel(self, connecting: defer.Deferred[IProtocol]) -> None:
        self.cancelled += 1
        connecting.errback(error.ConnectingCancelledError(None))

    def connect(self, protocolFactory: IProtocolFactory) -> defer.Deferred[IProtocol]:
        return self.connecting


def address_of(sock: socket.socket) -> SocketAddress:
    """Where it is."""
    return SocketAddress.from_kernel(sock.getsockname())


def install(turning: Turning, *hosts: str) -> Names:
    """Have every name resolve to these addresses."""
    from twisted.internet.address import IPv4Address, IPv6Address

    names = Names([(IPv6Address if ":" in host else IPv4Address)("TCP", host, 0) for host in hosts])
    cast("IReactorPluggableNameResolver", turning.reactor).installNameResolver(names)
    return names


def test_fakes() -> None:
    """The fakes are what they pretend to be."""
    assert verifyObject(IHostnameResolver, Names([]))
    assert verifyObject(IHostResolution, Resolution())
    assert verifyObject(IStreamClientEndpoint, Endpoint())


@pytest.mark.usefixtures("at_once")
class TestAddress:
    def test_connected(self, runtime: Runtime, origin: socket.socket) -> None:
        """An address is dialled."""
        outcome = Outcome()
        assert reach(runtime, address_of(origin), None, outcome) is None
        assert (socket.socket, address_of(origin)) == (outcome.kind, outcome.address)

    def test_refused(self, runtime: Runtime, origin: socket.socket) -> None:
        """A failure names the address as well."""
        outcome = Outcome()
        address = address_of(origin)
        origin.close()
        assert reach(runtime, address, None, outcome) is None
        assert (ConnectionRefused, address) == (outcome.kind, outcome.address)


class TestName:
    def test_localhost(self, turning: Turning, runtime: Runtime, origin: socket.socket) -> None:
        """A name is resolved; an address that refuses gives way to the next."""
        outcome = Outcome()
        name = HostPort("localhost", address_of(origin).port)
        assert isinstance(reach(runtime, name, None, outcome), Connecting)
        turning.until(lambda: outcome.all)
        assert (socket.socket, address_of(origin)) == (outcome.kind, outcome.address)

    @pytest.mark.usefixtures("at_once")
    def test_first_refuses(self, turning: Turning, runtime: Runtime, origin: socket.socket) -> None:
        """Of several addresses the first that answers is used."""
        names = install(turning, "127.0.0.9", "::1", "127.0.0.1", "127.0.0.8")
        outcome = Outcome()
        reach(runtime, HostPort("service.example", address_of(origin).port), None, outcome)
        assert [] == outcome.all
        names.answer()
        assert (socket.socket, address_of(origin)) == (outcome.kind, outcome.address)

    @pytest.mark.usefixtures("at_once")
    def test_all_refuse(self, turning: Turning, runtime: Runtime, origin: socket.socket) -> None:
        """If none does, the last one's reason is the reason."""
        names = install(turning, "127.0.0.1", "127.0.0.9")
        port = address_of(origin).port
        origin.close()
        outcome = Outcome()
        reach(runtime, HostPort("service.example", port), None, outcome)
        names.answer()
        assert (ConnectionRefused, SocketAddress("127.0.0.9", port)) == (
            outcome.kind,
            outcome.address,
        )

    def test_no_address(self, turning: Turning, runtime: Runtime) -> None:
        """A name without an address is a failure of its own."""
        names = install(turning)
        outcome = Outcome()
        reach(runtime, HostPort("service.example", 80), None, outcome)
        names.answer()
        assert (NameNotResolved, None) == (outcome.kind, outcome.address)

    def test_cancelled(self, turning: Turning, runtime: Runtime, origin: socket.socket) -> None:
        """After giving up, an answer is of no interest."""
        names = install(turning, "127.0.0.1")
        outcome = Outcome()
        name = HostPort("service.example", address_of(origin).port)
        attempt = reach(runtime, name, None, outcome)
        assert attempt is not None
        attempt.cancel()
        names.answer()
        assert [] == outcome.all

    def test_ourselves(self, turning: Turning, runtime: Runtime) -> None:
        """A name that leads back to us is a loop."""
        runtime.guard.add_listener(SocketAddress("::", 15001))
        names = install(turning, "127.0.0.1")
        outcome = Outcome()
        reach(runtime, HostPort("service.example", 15001), None, outcome)
        names.answer()
        assert "ProxyLoopDetected" == outcome.kind.__name__


class TestEndpoint:
    def test_unix(self, turning: Turning, runtime: Runtime, tmp_path: Path) -> None:
        """Any endpoint of Twisted's will do."""
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{tmp_path}/s")
            listener.listen()
            outcome = Outcome()
            endpoint = clientFromString(turning.reactor, f"unix:{tmp_path}/s")
            reach(runtime, endpoint, None, outcome)
            turning.until(lambda: outcome.all)
            assert (RelayProtocol, None) == (outcome.kind, outcome.address)
            turning.settle()

    @pytest.mark.parametrize(
        ("failure", "expected"),
        [
            (error.ConnectionRefusedError(), ConnectionRefused),
            (error.TimeoutError(), ConnectionTimeout),
            (error.TCPTimedOutError(), ConnectionTimeout),
            (error.DNSLookupError(), NameNotResolved),
            (error.NoRouteError(), DestinationUnroutable),
            (ZeroDivisionError(), DestinationUnroutable),
            (TunnelRefused("h.example:443", "the proxy answered 403", 403), TunnelRefused),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_failures(
        self, runtime: Runtime, failure: Exception, expected: type[DialError]
    ) -> None:
        """Every failure is one of ours."""
        outcome = Outcome()
        endpoint = Endpoint()
        reach(runtime, endpoint, None, outcome)
        endpoint.connecting.errback(failure)
        assert expected is outcome.kind

    def test_cancelled(self, runtime: Runtime) -> None:
        """Giving up cancels the endpoint's attempt, and nobody hears of it."""
        outcome = Outcome()
        endpoint = Endpoint()
        attempt = reach(runtime, endpoint, None, outcome)
        assert attempt is not None
        attempt.cancel()
        assert ([], 1) == (outcome.all, endpoint.cancelled)
