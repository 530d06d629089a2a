"""A running HTTP proxy between clients and origins of the test's own, all raw sockets."""

from __future__ import annotations

import re
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, cast

from turning import ByHand, Turning, turning
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IListeningPort
from zope.interface import implementer

from sidecar.config import HttpLimits, Limits
from sidecar.errors import NameNotResolved
from sidecar.interfaces import IFlowObserver
from sidecar.linux.sockopt import reset_on_close
from sidecar.listening import FlowPort
from sidecar.names.resolving import INameResolver
from sidecar.names.verifying import Redial
from sidecar.policy import Default, Policy, parse_rule
from sidecar.protocols.http.factory import HTTPProxyFactory
from sidecar.protocols.judge import Judge
from sidecar.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sidecar.flow import Flow
    from sidecar.interfaces import IDecisionStep, IRelayReactor
    from sidecar.names.verifying import IVerifier
    from sidecar.protocols.http.auth import Authenticator
    from sidecar.upstream_proxy import UpstreamProxy

__all__ = ["Names", "Observer", "Origin", "Peer", "Proxying", "listener", "proxying"]

_pseudonym = re.compile(rb"sidecar-[0-9a-f]{8}")
_date = re.compile(rb"\r\nDate: [^\r]*")


class Peer:
    """One end of a connection, held by the test.

    Attributes:
        sock: The socket.
        got: What was received and not yet taken.
        ended: Whether the other end has sent its last byte.
        was_reset: Whether it was a reset that ended it.
    """

    def __init__(self, turning: Turning, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._turning = turning
        self.sock = sock
        self.got = b""
        self.ended = False
        self.was_reset = False

    def send(self, data: bytes) -> None:
        """Send all of it, turning the reactor meanwhile."""
        view = memoryview(data)
        while view:
            with suppress(BlockingIOError):
                view = view[self.sock.send(view) :]
            self._turning.turn()

    def say(self, *pieces: bytes) -> None:
        """Send pieces, each in a turn of its own."""
        for piece in pieces:
            self.send(piece)
            self._turning.settle()

    def read(self) -> None:
        """Take what is there."""
        while not self.ended:
            try:
                data = self.sock.recv(1 << 18)
            except BlockingIOError:
                return
            except OSError:
                self.ended = self.was_reset = True
                return
            self.got += data
            self.ended = not data

    def _until(self, condition: Callable[[], object]) -> None:
        def holds() -> object:
            self.read()
            return condition() or self.ended

        self._turning.until(holds, self.sock)

    def expect(self, data: bytes) -> None:
        """Receive exactly this next. Pseudonyms in Via have lost what is random in them."""

        def text() -> bytes:
            return _date.sub(b"", _pseudonym.sub(b"sidecar", self.got))

        self._until(lambda: len(text()) >= len(data))
        assert data == text()[: len(data)], text()
        # What is left is taken from what was there.
        self.got = text()[len(data) :]

    def expect_head(self) -> bytes:
        """Receive up to a head's end, and return that."""
        self._until(lambda: b"\r\n\r\n" in self.got)
        head, end, self.got = self.got.partition(b"\r\n\r\n")
        assert end, head
        return _date.sub(b"", _pseudonym.sub(b"sidecar", head)) + end

    def expect_bytes(self, count: int) -> bytes:
        """Receive so many bytes, and return them."""
        self._until(lambda: len(self.got) >= count)
        data, self.got = self.got[:count], self.got[count:]
        return data

    def expect_end(self) -> bytes:
        """Receive to the end, which is an orderly one."""
        data = self._to_end()
        assert not self.was_reset, data
        return data

    def expect_reset(self) -> bytes:
        """Receive to a reset."""
        data = self._to_end()
        assert self.was_reset, data
        return data

    def _to_end(self) -> bytes:
        self._until(lambda: self.ended)
        data, self.got = self.got, b""
        return _date.sub(b"", _pseudonym.sub(b"sidecar", data))

    def expect_nothing(self) -> None:
        """See that nothing arrives."""
        self._turning.settle()
        self.read()
        assert (b"", False) == (self.got, self.ended)

    def status(self) -> int:
        """Receive a response of ours to its end, and return its status."""
        head = self.expect_head()
        length = re.search(rb"Content-Length: ([0-9]+)", head)
        if length is not None:
            self.expect_bytes(int(length[1]))
        return int(head.split(b" ")[1])

    def finish(self) -> None:
        """Send no more; the other end may have closed by now."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a reset."""
        reset_on_close(self.sock)
        self.sock.close()

    def close(self) -> None:
        """Close."""
        self.sock.close()


class Origin:
    """A server whose connections the test accepts."""

    def __init__(self, turning: Turning) -> None:
        self._turning = turning
        self.sock = listener()
        self.sock.setblocking(False)
        self.port: int = self.sock.getsockname()[1]
        self.peers: list[Peer] = []

    def accept(self) -> Peer:
        """Take the next connection, once it is there."""
        found: list[socket.socket] = []

        def accepted() -> bool:
            with suppress(BlockingIOError):
                found.append(self.sock.accept()[0])
            return bool(found)

        self._turning.until(accepted, self.sock)
        self.peers.append(Peer(self._turning, found[0]))
        return self.peers[-1]

    def expect_nobody(self) -> None:
        """See that nobody connects."""
        self._turning.settle()
        with suppress(BlockingIOError):
            self.sock.accept()
            raise AssertionError("somebody connected")

    def close(self) -> None:
        """Close all."""
        self.sock.close()
        for peer in self.peers:
            peer.close()


@implementer(IFlowObserver)
class Observer:
    """Keeps the flows that ended."""

    def __init__(self) -> None:
        self.flows: list[Flow] = []

    def flow_ended(self, flow: Flow) -> None:
        self.flows.append(flow)


@implementer(INameResolver)
class Names:
    """A resolver of the test's own: answers from a table, or later."""

    def __init__(self, table: dict[str, tuple[str, ...]]) -> None:
        self.table = table
        self.asked: list[str] = []
        self.waiting: list[Deferred[tuple[str, ...]]] = []
        self.slow = False

    def recent(self, host: str) -> tuple[str, ...] | None:
        return None if self.slow else self.table.get(host)

    def resolve(self, host: str) -> Deferred[tuple[str, ...]]:
        self.asked.append(host)
        if self.slow:
            self.waiting.append(Deferred())
            return self.waiting[-1]
        found = self.table.get(host)
        return succeed(found) if found else fail(NameNotResolved(host, "the name has no address"))


def listener() -> socket.socket:
    """A socket that listens."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=64)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def policy(
    *, default: str = "allow", allow: Sequence[str] = (), deny: Sequence[str] = (), **more: object
) -> Policy:
    """A policy of rules' texts."""
    return Policy(
        default=Default(default),
        allow=[parse_rule(each) for each in allow],
        deny=[parse_rule(each) for each in deny],
        **more,  # type: ignore[arg-type]
    )


class Proxying:
    """A proxy, an origin called ``origin.test``, and clients."""

    def __init__(
        self,
        turning: Turning,
        *,
        policy: Policy,
        limits: HttpLimits | None = None,
        relay_limits: Limits | None = None,
        verifier: IVerifier | None = None,
        authenticator: Authenticator | None = None,
        upstream_proxy: UpstreamProxy | None = None,
        steps: Sequence[IDecisionStep] = (),
        silence: float = 3600.0,
        patience: float = 5.0,
        by_hand: bool = False,
    ) -> None:
        self.turning = turning
        self.clock = ByHand(turning.reactor)
        self.observer = Observer()
        self.names = Names({"origin.test": ("127.0.0.1",), "other.test": ("127.0.0.1",)})
        reactor = cast("IRelayReactor", self.clock) if by_hand else turning.reactor
        self.runtime = Runtime.make(reactor, self.observer, limits=relay_limits or Limits())
        self.judge = Judge(
            policy,
            Redial(self.names) if verifier is None else verifier,
            silence=silence,
            patience=patience,
            steps=steps,
        )
        self.factory = HTTPProxyFactory(
            self.runtime,
            self.judge,
            self.names,
            authenticator=authenticator,
            upstream_proxy=upstream_proxy,
            limits=limits or HttpLimits(),
        )
        self.origin = Origin(turning)
        self._listener = listener()
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._port = FlowPort(self.runtime, self._listener, self.factory, None)
        assert IListeningPort.providedBy(self._port)
        self._port.startListening()
        self._clients: list[Peer] = []

    @property
    def flows(self) -> list[Flow]:
        """The requests that are over."""
        return self.observer.flows

    @property
    def flow(self) -> Flow:
        """The one request that is over; waits for it."""
        self.turning.until(lambda: self.flows)
        assert 1 == len(self.flows), [str(each) for each in self.flows]
        return self.flows[0]

    @property
    def authority(self) -> bytes:
        """The origin's, by name."""
        return b"origin.test:%d" % self.origin.port

    def client(self) -> Peer:
        """A connection to the proxy."""
        sock = socket.create_connection(("127.0.0.1", self.port))
        self._clients.append(Peer(self.turning, sock))
        return self._clients[-1]

    def request(
        self,
        client: Peer,
        method: bytes = b"GET",
        path: bytes = b"/",
        fields: bytes = b"",
        body: bytes = b"",
        version: bytes = b"1.1",
    ) -> None:
        """Send a request for the origin."""
        client.send(
            b"%b http://%b%b HTTP/%b\r\nHost: %b\r\n%b\r\n%b"
            % (method, self.authority, path, version, self.authority, fields, body)
        )

    def served(self, fields: bytes = b"", path: bytes = b"/", method: bytes = b"GET") -> bytes:
        """A request for the origin, as that should get it."""
        return b"%b %b HTTP/1.1\r\nHost: %b\r\n%bVia: 1.1 sidecar\r\n\r\n" % (
            method,
            path,
            self.authority,
            fields,
        )

    def tunnel(self, client: Peer, authority: bytes | None = None) -> None:
        """Ask for a tunnel to the origin, and have it."""
        name = authority or self.authority
        client.send(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (name, name))
        client.expect(b"HTTP/1.1 200 Connection established\r\n\r\n")

    def close(self) -> None:
        """End all."""
        for client in self._clients:
            client.close()
        self.origin.close()
        self.turning.settle()
        self._port.stopListening()
        self.runtime.close()
        self.factory.close()
        open_now = self.runtime.admission.open
        assert 0 == open_now, "connections are still counted"
        assert all(flow.end is not None for flow in self.flows)


@contextmanager
def proxying(
    *,
    default: str = "allow",
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
    limits: HttpLimits | None = None,
    relay_limits: Limits | None = None,
    verifier: IVerifier | None = None,
    authenticator: Authenticator | None = None,
    upstream_proxy: UpstreamProxy | None = None,
    steps: Sequence[object] = (),
    silence: float = 3600.0,
    patience: float = 5.0,
    by_hand: bool = False,
) -> Iterator[Proxying]:
    """Have a proxy for one test, whose clock may be the test's; nothing may be left of it."""
    with turning() as turned:
        proxy = Proxying(
            turned,
            policy=policy(default=default, allow=allow, deny=deny),
            limits=limits,
            relay_limits=relay_limits,
            verifier=verifier,
            authenticator=authenticator,
            upstream_proxy=upstream_proxy,
            steps=cast("Sequence[IDecisionStep]", steps),
            silence=silence,
            patience=patience,
            by_hand=by_hand,
        )
        try:
            yield proxy
        finally:
            proxy.close()
