"""A relay between two processes' connections, and what they say and hear, in order.

The relay under test lies between real TCP connections over loopback. `Scene.client`
and `Scene.server` are their far ends; a test is what these two do.
"""

from __future__ import annotations

import fcntl
import socket
import ssl
import sys
import termios
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from random import Random
from typing import TYPE_CHECKING, cast

from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory

from sidecar.flow import FlowEnd
from sidecar.linux.sockopt import unacknowledged
from sidecar.relay.buffered import BufferedRelay
from sidecar.relay.pipes import PipePool
from sidecar.relay.poller import Poller
from sidecar.relay.protocol import RelayProtocol, adopt
from sidecar.relay.resets import reset
from sidecar.relay.spliced import SplicedEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from certificates import Identity
    from turning import Turning
    from twisted.internet.interfaces import IAddress, IReactorTime
    from twisted.internet.protocol import ServerFactory

    from sidecar.relay.pipes import Pipe
    from sidecar.relay.spliced import SplicedRelay
    from sidecar.relay.totals import Totals

__all__ = [
    "NOISE_SIZE",
    "SMALL_BUFFER",
    "Kind",
    "Peer",
    "Scene",
    "TlsPeer",
    "adopt_tls",
    "bytes_in",
    "close_engine",
    "close_scene",
    "make_engine",
    "noise",
    "open_scene",
    "tcp_pair",
]

# Bytes: more than the kernel's buffers, a pipe and the relay's own hold together.
NOISE_SIZE = 24 << 20
# Bytes of SO_SNDBUF and SO_RCVBUF where a test wants them filled soon (tcp(7) doubles it).
SMALL_BUFFER = 1 << 14
# Seconds without any movement after which a writer counts as stopped.
_STILL = 0.03
# Seconds between two looks at what is no event.
_ASK_AGAIN = 0.001
_CHUNK = 1 << 18


class Kind(Enum):
    """What carries the bytes."""

    SPLICED = "spliced"
    BUFFERED = "buffered"
    TLS = "buffered, TLS downstream"


@cache
def noise(seed: int = 0) -> bytes:
    """Bytes in which no part is like another, the same in each call with this seed."""
    return Random(seed).randbytes(NOISE_SIZE)  # noqa: S311 - only has to be irregular


def tcp_pair(buffers: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Connect two non-blocking TCP sockets over loopback.

    Args:
        buffers: Bytes of each of the four kernel buffers; None for what the kernel thinks.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        near = socket.socket()
        if buffers is not None:
            # Before connect(): the window's scale is agreed on then.
            for sock in (listener, near):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
        return near, far


class Peer:
    """The process at the far end of one of the relay's two connections.

    Args:
        turning: Turned while anything is waited for.
        sock: Its end of the connection.
        seed: Which noise it sends.

    Attributes:
        sent: Bytes of its noise that it has written.
        got: All that it has read.
    """

    def __init__(self, turning: Turning, sock: socket.socket, seed: int) -> None:
        self._turning = turning
        self.sock = sock
        self._noise = noise(seed)
        self.sent = 0
        self.got = bytearray()

    # Sending

    def write_some(self, count: int) -> int:
        """Write the next bytes of the noise, as many as the kernel takes now."""
        view = memoryview(self._noise)[self.sent : self.sent + count]
        try:
            written = self._send(view)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            written = 0
        self.sent += written
        return written

    def send(self, count: int) -> None:
        """Write the next bytes of the noise, turning until all are written."""
        end = self.sent + count
        assert end <= NOISE_SIZE
        while self.sent < end:
            if not self.write_some(min(_CHUNK, end - self.sent)):
                self._turning.turn(_STILL)

    def say(self, text: bytes) -> None:
        """Write a few bytes of the test's own."""
        assert len(text) == self._send(memoryview(text))

    def send_until_stopped(self) -> int:
        """Write noise for as long as anybody takes it; return how much it was.

        All of it, at most: sockets of no set size may hold more (tcp_rmem). That the
        writer is stopped is for tests with small buffers to show.
        """
        still = 0
        while still < 3 and self.sent < NOISE_SIZE:
            if self.write_some(_CHUNK):
                still = 0
            else:
                still += 1
            self._turning.turn(_STILL if still else 0)
        return self.sent

    def wait_until_acknowledged(self) -> None:
        """Turn until the relay's kernel has everything that was written."""
        # Of acknowledgements nobody tells.
        while unacknowledged(self.sock.fileno()):
            self._turning.turn(_ASK_AGAIN)

    @property
    def acknowledged(self) -> int:
        """Bytes of what was written that the relay's kernel has."""
        return self.sent - unacknowledged(self.sock.fileno())

    @property
    def written(self) -> bytes:
        """The noise that was written."""
        return self._noise[: self.sent]

    def half_close(self) -> None:
        """Say that nothing more comes."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send RST."""
        reset(self.sock)

    def close(self) -> None:
        """Close, if still open."""
        self.sock.close()

    def _send(self, view: memoryview) -> int:
        return self.sock.send(view)

    # Reading

    def read_some(self, count: int = _CHUNK) -> bytes | None:
        """Read what is there: b"" at the end, None where nothing is there yet."""
        try:
            data = self.sock.recv(count)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        self.got += data
        return data

    def read(self, count: int) -> bytes:
        """Read exactly so many bytes more, turning until they are there."""
        start = len(self.got)
        while len(self.got) < start + count:
            data = self._read_next(start + count - len(self.got))
            assert data, f"ended after {len(self.got) - start} of {count} bytes"
        return bytes(self.got[start:])

    def read_to_end(self) -> bytes:
        """Read up to the end; return all that was ever read."""
        while self._read_next():
            pass
        return bytes(self.got)

    def read_to_reset(self) -> bytes:
        """Read up to ECONNRESET; return all that was ever read.

        Raises:
            AssertionError: An orderly end instead.
        """
        with suppress(ConnectionResetError):
            while self._read_next():
                pass
            raise AssertionError("an orderly end instead of a reset")
        return bytes(self.got)

    def _read_next(self, count: int = _CHUNK) -> bytes:
        got: list[bytes] = []

        def something() -> bool:
            data = self.read_some(count)
            if data is not None:
                got.append(data)
            return bool(got)

        self._turning.until(something, self.sock)
        return got[0]


class TlsPeer(Peer):
    """A process that speaks TLS."""

    def __init__(self, turning: Turning, sock: socket.socket, seed: int, cafile: str) -> None:
        context = ssl.create_default_context(cafile=cafile)
        wrapped = context.wrap_socket(
            sock,
            server_hostname="localhost",
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
        super().__init__(turning, wrapped, seed)
        self._tls = wrapped

    def shake_hands(self) -> None:
        """Turn until the two sides can talk."""

        def shaken() -> bool:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                return False
            return True

        self._turning.until(shaken, self._tls)

    def half_close(self) -> None:
        """Send close_notify."""
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()


@dataclass
class Scene:
    """Two processes and the relay between them.

    Attributes:
        turning: What drives the relay.
        engine: Of the relay, also where it is a buffered one.
        client, server: The far ends.
        totals: What `done` was called with; one after the end.
        relay: What is between them; None before it is joined.
    """

    turning: Turning
    engine: SplicedEngine
    client: Peer
    server: Peer
    totals: list[Totals]
    relay: SplicedRelay | BufferedRelay | None = None

    @property
    def total(self) -> Totals:
        """Turn until the relay has ended; what it amounted to."""
        self.turning.until(lambda: self.totals)
        (total,) = self.totals
        return total

    @property
    def end(self) -> FlowEnd | None:
        """Turn until the relay has ended; how it did."""
        return self.total.end

    @property
    def running(self) -> SplicedRelay | BufferedRelay:
        """The relay."""
        assert self.relay is not None
        return self.relay


def make_engine(
    turning: Turning,
    *,
    idle_timeout: float | None = None,
    half_close_timeout: float | None = None,
) -> SplicedEngine:
    """An engine with everything that it needs."""
    return SplicedEngine(
        turning.reactor,
        Poller(turning.reactor),
        PipePool(),
        idle_timeout=idle_timeout,
        half_close_timeout=half_close_timeout,
    )


def close_engine(engine: SplicedEngine) -> None:
    """Let go of everything; no pipe that waits for its next use may hold bytes."""
    for pollable in engine.poller.pollables():
        pollable.shut_down()
    held = [bytes_in(pipe) for pipe in engine.pipes._idle]
    engine.pipes.close()
    engine.poller.close()
    assert [0] * len(held) == held


def bytes_in(pipe: Pipe) -> int:
    """How many bytes a pipe holds (FIONREAD, pipe(7))."""
    answer = fcntl.ioctl(pipe.reader, termios.FIONREAD, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def open_scene(
    turning: Turning,
    engine: SplicedEngine,
    kind: Kind,
    *,
    buffers: int | None = None,
    identity: Identity | None = None,
    before: Callable[[Scene], None] | None = None,
    done: Callable[[Totals], None] | None = None,
) -> Scene:
    """Connect two processes and put a relay between them.

    Args:
        turning: Drives it.
        engine: Made for the same reactor.
        kind: Which engine, and whether the client speaks TLS.
        buffers: Bytes of every kernel buffer; None for what the kernel thinks.
        identity: Whom the client trusts, for TLS.
        before: What happens while both are connected and not yet joined.
        done: Called besides.
    """
    near_client, downstream = tcp_pair(buffers)
    near_server, upstream = tcp_pair(buffers)
    client = (
        Peer(turning, near_client, 1)
        if identity is None
        else TlsPeer(turning, near_client, 1, identity.cafile)
    )
    scene = Scene(turning, engine, client, Peer(turning, near_server, 2), [])

    def ended(totals: Totals) -> None:
        scene.totals.append(totals)
        if done is not None:
            done(totals)

    if kind is Kind.SPLICED:
        if before is not None:
            before(scene)
        scene.relay = engine.relay(downstream, upstream, ended)
        return scene
    down, up = RelayProtocol(_ignore), RelayProtocol(_ignore)
    if identity is None:
        adopt(turning.reactor, downstream, down)
    else:
        adopt_tls(turning, downstream, down, identity)
    adopt(turning.reactor, upstream, up)
    if before is not None:
        before(scene)
    scene.relay = BufferedRelay(
        turning.reactor,
        down,
        up,
        ended,
        idle_timeout=engine.idle_timeout,
        half_close_timeout=engine.half_close_timeout,
    )
    if isinstance(client, TlsPeer):
        client.shake_hands()
    return scene


def close_scene(scene: Scene) -> None:
    """End the relay, if it goes on, and both processes."""
    if not scene.totals and scene.relay is not None:
        scene.relay.abort(FlowEnd.SHUTDOWN)
    scene.client.close()
    scene.server.close()
    scene.turning.until(lambda: scene.totals)
    scene.turning.settle()
    assert 1 == len(scene.totals)


def adopt_tls(
    turning: Turning, sock: socket.socket, protocol: RelayProtocol, identity: Identity
) -> None:
    """Give a connected socket a transport that is a TLS server's."""
    factory = TLSMemoryBIOFactory(
        identity.options, False, _One(protocol), cast("IReactorTime", turning.reactor)
    )
    server = cast("ServerFactory", factory)
    turning.reactor.adoptStreamConnection(sock.fileno(), sock.family, server)
    sock.close()


class _One(Factory):
    """Builds the one protocol that it was made with."""

    noisy = False

    def __init__(self, protocol: RelayProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> RelayProtocol:
        return self._protocol


def _ignore(_: RelayProtocol) -> None:
    pass
