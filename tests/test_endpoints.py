from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from integration.netns import Namespace, why_impossible
from privileges import without_capabilities
from relay.transcripts import Peer
from support import PATIENCE, arrived, fill_queue
from turning import Turning, turning
from twisted.internet.defer import CancelledError
from twisted.internet.error import NoProtocol
from twisted.internet.interfaces import (
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from zope.interface.verify import verifyObject

from sidecar.addresses import SocketAddress
from sidecar.config import Limits
from sidecar.destinations import InterceptMode
from sidecar.endpoints import TransparentClientEndpoint, TransparentServerEndpoint
from sidecar.endpoints.client import _Keeper
from sidecar.errors import ConnectionRefused, ListenError
from sidecar.linux.sockopt import IP_TRANSPARENT, IPV6_TRANSPARENT
from sidecar.listening import FlowPort
from sidecar.protocols.tcp import TransparentRelayFactory
from sidecar.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.interfaces import IAddress

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture
def runtime(turning: Turning) -> Iterator[Runtime]:
    made = Runtime.make(turning.reactor, mark=None)
    yield made
    made.close()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if reason := why_impossible():
        pytest.skip(reason)
    made = Namespace("ep")
    yield made
    made.remove()


def factory() -> Factory:
    """An ordinary factory."""
    return Factory.forProtocol(Protocol)


class Server:
    """Listens in a test's place."""

    def __init__(self, turning: Turning, runtime: Runtime) -> None:
        self._turning = turning
        self._runtime = runtime

    def endpoint(
        self,
        port: int = 0,
        interface: str = "",
        mode: InterceptMode = InterceptMode.AUTO,
        backlog: int = 10,
    ) -> TransparentServerEndpoint:
        return TransparentServerEndpoint(
            self._turning.reactor, port, interface, mode, backlog, self._runtime
        )

    def listen(
        self,
        port: int = 0,
        interface: str = "",
        mode: InterceptMode = InterceptMode.AUTO,
    ) -> FlowPort:
        listening = self.endpoint(port, interface, mode).listen(factory())
        made = self._turning.result(listening)
        assert isinstance(made, FlowPort)
        return made


@pytest.fixture
def server(turning: Turning, runtime: Runtime) -> Server:
    return Server(turning, runtime)


class TestServer:
    def test_interface(self, server: Server) -> None:
        """It is a stream server endpoint."""
        assert verifyObject(IStreamServerEndpoint, server.endpoint())

    @pytest.mark.parametrize(
        ("interface", "reached", "not_reached"),
        [
            ("", ["127.0.0.1", "::1"], []),
            ("127.0.0.1", ["127.0.0.1"], ["::1", "127.0.0.2"]),
            ("0.0.0.0", ["127.0.0.1", "127.0.0.2"], ["::1"]),
            ("::1", ["::1"], ["127.0.0.1"]),
        ],
    )
    def test_families(
        self,
        turning: Turning,
        server: Server,
        interface: str,
        reached: list[str],
        not_reached: list[str],
    ) -> None:
        """Without an interface both families are served by one socket; else that address.

        Nothing intercepts these connections, so they are refused, by reset.
        """
        port = server.listen(interface=interface)
        number = port.getHost().port
        for count, host in enumerate(reached, 1):
            with socket.create_connection((host, number), PATIENCE) as client:
                turning.until(lambda count=count: port.refused == count)  # type: ignore[misc]
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
        for host in not_reached:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, number), PATIENCE)

    @needs_root
    @pytest.mark.parametrize(
        ("mode", "expected"),
        [(InterceptMode.AUTO, 1), (InterceptMode.TPROXY, 1), (InterceptMode.REDIRECT, 0)],
    )
    @pytest.mark.parametrize("interface", ["127.0.0.1", "::1", ""])
    def test_transparent(
        self, server: Server, mode: InterceptMode, expected: int, interface: str
    ) -> None:
        """The socket is transparent in every mode that needs it."""
        sock = server.listen(interface=interface, mode=mode)._socket
        option = (
            (socket.SOL_IP, IP_TRANSPARENT)
            if sock.family == socket.AF_INET
            else (socket.IPPROTO_IPV6, IPV6_TRANSPARENT)
        )
        assert expected == sock.getsockopt(*option)

    def test_inherited(self, turning: Turning, server: Server) -> None:
        """What accepted sockets inherit is set on the listener once."""
        sock = server.listen()._socket
        assert 1 == sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert Limits().keepalive == sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)

    @pytest.mark.parametrize("interface", ["", "127.0.0.1", "::1"])
    def test_taken(self, turning: Turning, server: Server, interface: str) -> None:
        """A port that is taken is an error that says where and what to do."""
        number = server.listen(interface=interface).getHost().port
        failing = server.endpoint(number, interface).listen(factory())
        with pytest.raises(ListenError) as caught:
            turning.result(failing)
        assert f":{number}: the port is taken" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("interface", ["192.0.2.7", "2001:db8::7"])
    def test_not_ours(self, turning: Turning, server: Server, interface: str) -> None:
        """Nor can an address be listened on that isn't this host's."""
        failing = server.endpoint(0, interface, InterceptMode.REDIRECT).listen(factory())
        with pytest.raises(ListenError, match="no such address"):
            turning.result(failing)

    def test_no_privilege(self) -> None:
        """Without the capability TPROXY is an error that names it; auto does without it."""
        done = without_capabilities(
            """
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from sidecar.destinations import InterceptMode
from sidecar.endpoints import TransparentServerEndpoint
for mode in (InterceptMode.TPROXY, InterceptMode.AUTO, InterceptMode.REDIRECT):
    endpoint = TransparentServerEndpoint(reactor, 0, "127.0.0.1", mode)
    listening = endpoint.listen(Factory.forProtocol(Protocol))
    listening.addCallbacks(
        lambda port: print(mode.value, "listens"),
        lambda failure: print(mode.value, failure.type.__name__, failure.getErrorMessage()),
    )
"""
        )
        lines = done.stdout.splitlines()
        assert lines[0].startswith("tproxy ListenPrivilegeError can't listen on 127.0.0.1:0: ")
        assert "CAP_NET_ADMIN or CAP_NET_RAW" in lines[0], done.stderr
        assert ["auto listens", "redirect listens"] == lines[1:]

    def test_low_port(self) -> None:
        """Nor may everybody listen on a low port; the error says what it takes."""
        done = without_capabilities(
            """
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from sidecar.destinations import InterceptMode
from sidecar.endpoints import TransparentServerEndpoint
start = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
print(start)
endpoint = TransparentServerEndpoint(reactor, 7, "127.0.0.1", InterceptMode.REDIRECT)
endpoint.listen(Factory.forProtocol(Protocol)).addErrback(lambda f: print(f.getErrorMessage()))
"""
        )
        start, *message = done.stdout.splitlines()
        if int(start) > 7:
            assert "CAP_NET_BIND_SERVICE" in message[0]

    def test_runtime_of_the_factory(self, turning: Turning, runtime: Runtime) -> None:
        """A relay factory's runtime is its listener's."""
        endpoint = TransparentServerEndpoint(turning.reactor, 0, "127.0.0.1")
        listening = endpoint.listen(TransparentRelayFactory(runtime))
        port = turning.result(listening)
        assert isinstance(port, FlowPort)
        assert port in runtime.poller.pollables()


class TestServerWithoutIpv6:
    def test_no_family(
        self, turning: Turning, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a host whose kernel has no IPv6 the listener is IPv4's alone."""
        from sidecar.endpoints import server as endpoints

        made = endpoints._stream_socket

        def ipv4_only(family: socket.AddressFamily) -> socket.socket:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            return made(family)

        monkeypatch.setattr(endpoints, "_stream_socket", ipv4_only)
        port = server.listen()
        assert socket.AF_INET == port._socket.family
        with socket.create_connection(("127.0.0.1", port.getHost().port), PATIENCE):
            turning.until(lambda: port.refused)

    @needs_root
    def test_switched_off(self, turning: Turning, server: Server, namespace: Namespace) -> None:
        """Where IPv6 is switched off, IPv4 is served by the same socket."""
        namespace.sysctl("ipv6/conf/all/disable_ipv6", "1")
        with namespace.entered():
            port = server.listen()
        address = SocketAddress("127.0.0.1", port.getHost().port)
        with namespace.connect(address):
            turning.until(lambda: port.refused)


class TestClient:
    def test_interface(self, turning: Turning) -> None:
        """It is a stream client endpoint; what it wraps a factory in is a factory."""
        endpoint = TransparentClientEndpoint(
            turning.reactor, SocketAddress("127.0.0.1", 1), "127.0.0.1"
        )
        assert verifyObject(IStreamClientEndpoint, endpoint)
        assert verifyObject(IProtocolFactory, _Keeper(factory()))

    @needs_root
    @pytest.mark.parametrize(
        ("host", "source"), [("127.0.0.1", "192.0.2.7"), ("::1", "2001:db8::7")]
    )
    def test_source(self, turning: Turning, namespace: Namespace, host: str, source: str) -> None:
        """The server sees an address that isn't this host's, where answers come back."""
        family = "-6" if ":" in host else "-4"
        namespace.ip(family, "route", "add", "local", source, "dev", "lo")
        with namespace.entered():
            runtime = Runtime.make(turning.reactor, mark=None)
            with namespace.listen(SocketAddress(host, 8080)) as listener:
                endpoint = TransparentClientEndpoint(
                    turning.reactor, SocketAddress(host, 8080), source, runtime=runtime
                )
                protocol = turning.result(endpoint.connect(factory()))
                connection, peer = listener.accept()
                assert source == peer[0]
                assert isinstance(protocol, Protocol)
                assert protocol.transport is not None
                protocol.transport.write(b"hello")
                turning.settle()
                connection.settimeout(PATIENCE)
                assert b"hello" == connection.recv(5)
                protocol.transport.loseConnection()
                turning.settle()
                connection.close()
        runtime.close()

    @needs_root
    def test_refused(self, turning: Turning, runtime: Runtime) -> None:
        """A failure is one of ours."""
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            address = SocketAddress(*closed.getsockname())
        endpoint = TransparentClientEndpoint(turning.reactor, address, "127.0.0.1", runtime=runtime)
        with pytest.raises(ConnectionRefused):
            turning.result(endpoint.connect(factory()))


@pytest.fixture
def origin(runtime: Runtime) -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield made


@needs_root
class TestClientFactories:
    def endpoint(
        self, turning: Turning, runtime: Runtime, origin: socket.socket
    ) -> TransparentClientEndpoint:
        address = SocketAddress(*origin.getsockname())
        return TransparentClientEndpoint(turning.reactor, address, "127.0.0.1", runtime=runtime)

    def test_no_protocol(self, turning: Turning, runtime: Runtime, origin: socket.socket) -> None:
        """A factory may want none."""

        class Unwilling(Factory):
            def buildProtocol(self, addr: IAddress | None) -> None:
                return None

        connecting = self.endpoint(turning, runtime, origin).connect(Unwilling())
        with pytest.raises(NoProtocol):
            turning.result(connecting)

    def test_bug(self, turning: Turning, runtime: Runtime, origin: socket.socket) -> None:
        """A factory that raises fails the Deferred, and the connection is closed."""

        class Buggy(Factory):
            def buildProtocol(self, addr: IAddress | None) -> Protocol:
                raise ZeroDivisionError

        connecting = self.endpoint(turning, runtime, origin).connect(Buggy())
        with pytest.raises(ZeroDivisionError):
            turning.result(connecting)

    def test_reset_at_once(
        self,
        turning: Turning,
        runtime: Runtime,
        origin: socket.socket,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A server that resets before there is a transport fails the Deferred."""
        made = runtime.dialer.dial

        def dial(address, done, source=None):  # type: ignore[no-untyped-def] # as the real one
            def reset_first(outcome, address):  # type: ignore[no-untyped-def] # likewise
                Peer(turning, origin.accept()[0], 1).reset()
                arrived(outcome)
                done(outcome, address)

            return made(address, reset_first, source)

        monkeypatch.setattr(type(runtime.dialer), "dial", lambda _, *args: dial(*args))  # type: ignore[no-untyped-call] # likewise
        connecting = self.endpoint(turning, runtime, origin).connect(factory())
        with pytest.raises(ConnectionRefused, match="not connected"):
            turning.result(connecting)

    def test_cancel(self, turning: Turning, runtime: Runtime, origin: socket.socket) -> None:
        """A connection that is being made can be given up."""
        with ExitStack() as stack:
            fill_queue(stack, origin)
            connecting = self.endpoint(turning, runtime, origin).connect(factory())
            connecting.cancel()
            with pytest.raises(CancelledError):
                turning.result(connecting)
            assert [] == runtime.poller.pollables()
