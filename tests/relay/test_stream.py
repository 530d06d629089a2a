"""A socket as a Twisted transport: what its protocol sees, and what the other process."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from relay.transcripts import SMALL_BUFFER, Peer, noise, tcp_pair
from support import arrived, wait_for
from turning import Turning, turning
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.addresses import SocketAddress
from sidecar.linux.sockopt import unread
from sidecar.relay.poller import ERROR, HANGUP, READ, WRITE, Poller
from sidecar.relay.stream import _LARGE_PIECE, _PIECE, WRITE_BACKLOG, ShutDown, SocketTransport

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from twisted.python.failure import Failure

MEBIBYTE = 1 << 20


class Simple(Protocol):
    """Takes note of what it is told, and does what a test wants.

    Attributes:
        told: What happened, in order: "made", "read", "write", "lost".
        inside: Whether a method of the transport is being called.
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.got = bytearray()
        self.pieces: list[int] = []
        self.reasons: list[BaseException] = []
        self.inside = False
        self.react: dict[str, Callable[[], None]] = {}

    def call(self, name: str, *args: object) -> None:
        """Call a method of the transport, from which nobody may call back."""
        self.inside = True
        getattr(self.transport, name)(*args)
        self.inside = False

    def _note(self, what: str) -> None:
        assert not self.inside
        if what != "data":
            self.told.append(what)
        if what in self.react:
            self.react[what]()

    def connectionMade(self) -> None:
        self._note("made")

    def dataReceived(self, data: bytes) -> None:
        assert data
        self.got += data
        self.pieces.append(len(data))
        self._note("data")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert reason.value is not None
        self.reasons.append(reason.value)
        self._note("lost")


@implementer(IHalfCloseableProtocol)
class Halves(Simple):
    """One that knows both ways of a connection."""

    def readConnectionLost(self) -> None:
        self._note("read")

    def writeConnectionLost(self) -> None:
        self._note("write")


@implementer(IPushProducer)
class Source:
    """A producer that writes noise for as long as it isn't paused."""

    def __init__(self, transport: SocketTransport, piece: int = 1000) -> None:
        self._transport = transport
        self._piece = piece
        self.written = 0
        self.paused = False
        self.stopped = 0
        self.pauses = 0

    def produce(self, pieces: int) -> None:
        for _ in range(pieces):
            if self.paused or self.stopped:
                return
            self._transport.write(noise()[self.written : self.written + self._piece])
            self.written += self._piece

    def pauseProducing(self) -> None:
        assert not self.paused
        self.paused = True
        self.pauses += 1

    def resumeProducing(self) -> None:
        assert self.paused
        self.paused = False

    def stopProducing(self) -> None:
        self.stopped += 1


class Stage:
    """A transport and its protocol here, a process there."""

    def __init__(
        self,
        turning: Turning,
        poller: Poller,
        protocol: Simple,
        *,
        buffers: int | None = None,
        last_words: bool = False,
    ) -> None:
        far, near = tcp_pair(buffers)
        self.turning = turning
        self.poller = poller
        self.peer = Peer(turning, far, 1)
        self.protocol = protocol
        self.transport = SocketTransport(
            poller, near, cast("IProtocol", protocol), last_words=last_words
        )

    @property
    def reason(self) -> type[BaseException]:
        """Turn until the connection is lost; why it was."""
        self.turning.until(lambda: self.protocol.reasons)
        self.turning.settle()
        (reason,) = self.protocol.reasons
        assert 1 == self.protocol.told.count("lost")
        assert not self.transport.connected
        assert -1 == self.transport.fileno()
        assert self.transport not in self.poller.pollables()
        return type(reason)

    def wait_for(self, what: str) -> None:
        """Turn until the protocol was told something."""
        self.turning.until(lambda: what in self.protocol.told)

    def fill(self) -> Source:
        """Write until the producer is paused."""
        source = Source(self.transport)
        self.transport.registerProducer(source, True)
        while not source.paused:
            source.produce(1)
        return source

    def close(self) -> None:
        self.peer.close()
        if self.transport.connected:
            self.transport.abortConnection()
        self.turning.settle()


class Modifications:
    """Counts what a poller asks the kernel."""

    def __init__(self, poller: Poller) -> None:
        self.count = 0
        self._modify = poller.modify
        poller.modify = self

    def __call__(self, fd: int, events: int) -> None:
        self.count += 1
        self._modify(fd, events)


@pytest.fixture
def poller(turning: Turning) -> Iterator[Poller]:
    made = Poller(turning.reactor)
    yield made
    for pollable in made.pollables():
        pollable.shut_down()
    made.close()


@pytest.fixture
def stage(turning: Turning, poller: Poller) -> Iterator[Stage]:
    """One whose protocol knows both ways."""
    made = Stage(turning, poller, Halves())
    yield made
    made.close()


@pytest.fixture
def simple(turning: Turning, poller: Poller) -> Iterator[Stage]:
    """One whose protocol knows only the whole."""
    made = Stage(turning, poller, Simple())
    yield made
    made.close()


@pytest.fixture
def narrow(turning: Turning, poller: Poller) -> Iterator[Stage]:
    """One whose kernel buffers are small."""
    made = Stage(turning, poller, Halves(), buffers=SMALL_BUFFER)
    yield made
    made.close()


@pytest.fixture
def last_words(turning: Turning, poller: Poller) -> Iterator[Stage]:
    """One that reads what came before a reset."""
    made = Stage(turning, poller, Halves(), last_words=True)
    yield made
    made.close()


class TestInterface:
    def test_interfaces(self, stage: Stage) -> None:
        """It is what Twisted's protocols expect; so are the fakes here."""
        for interface in (ITransport, ITCPTransport, IPushProducer, IConsumer):
            assert verifyObject(interface, stage.transport)
        assert verifyObject(IHalfCloseableProtocol, stage.protocol)
        assert verifyObject(IPushProducer, Source(stage.transport))

    def test_addresses(self, stage: Stage) -> None:
        """It knows both ends, also after the connection is lost if it was asked before."""
        here, there = stage.peer.sock.getpeername(), stage.peer.sock.getsockname()
        for _ in range(2):
            assert IPv4Address("TCP", *here) == stage.transport.getHost()
            assert IPv4Address("TCP", *there) == stage.transport.getPeer()
            stage.transport.loseConnection()

    def test_addresses_given(self, turning: Turning, poller: Poller) -> None:
        """It says what it was told, without asking the kernel."""
        far, near = tcp_pair()
        with far:
            transport = SocketTransport(
                poller,
                near,
                cast("IProtocol", Simple()),
                host=SocketAddress("2001:db8::1", 443),
                peer=SocketAddress("192.0.2.1", 9),
            )
            transport.abortConnection()
            assert IPv6Address("TCP", "2001:db8::1", 443) == transport.getHost()
            assert IPv4Address("TCP", "192.0.2.1", 9) == transport.getPeer()
            turning.settle()

    def test_options(self, stage: Stage) -> None:
        """Its socket's options can be set, and its socket be had."""
        transport = stage.transport
        for on in (False, True):
            transport.setTcpNoDelay(on)
            transport.setTcpKeepAlive(on)
            assert (on, on) == (transport.getTcpNoDelay(), transport.getTcpKeepAlive())
        assert transport.fileno() == transport.getHandle().fileno()


class TestData:
    def test_made(self, stage: Stage) -> None:
        """The protocol is connected before the constructor returns."""
        assert ["made"] == stage.protocol.told
        assert stage.protocol.transport is cast("ITransport", stage.transport)

    def test_questions_and_answers(self, stage: Stage) -> None:
        """Data comes as it is sent, and is sent as it is written."""
        protocol, peer = stage.protocol, stage.peer
        protocol.react["data"] = lambda: protocol.call("write", bytes(protocol.got[-4:]))
        for number in range(20):
            peer.say(b"%04d" % number)
            assert b"%04d" % number == peer.read(4)

    def test_at_once(self, stage: Stage) -> None:
        """A write is with the kernel before it returns."""
        stage.transport.write(b"now")
        stage.transport.writeSequence([b"and", b"", b"then"])
        # Without the reactor.
        wait_for(lambda: unread(stage.peer.sock) == 10)
        assert b"nowandthen" == stage.peer.read_some()

    def test_nothing(self, stage: Stage) -> None:
        """Writing nothing changes nothing."""
        stage.transport.write(b"")
        stage.transport.writeSequence([])
        stage.transport.write(b"x")
        assert b"x" == stage.peer.read(1)

    def test_much(self, narrow: Stage) -> None:
        """What the kernel doesn't take is kept and follows in order, in pieces of any size."""
        sizes = [0, 1, 100_000, 7, MEBIBYTE, 0, 2, *([3] * 1000), 500_000]
        start = 0
        for size in sizes:
            narrow.transport.write(noise()[start : start + size])
            start += size
        assert narrow.transport.unwritten > MEBIBYTE
        assert noise()[:start] == narrow.peer.read(start)
        assert 0 == narrow.transport.unwritten
        narrow.transport.write(b"on")
        assert b"on" == narrow.peer.read(2)

    def test_large_reads(self, stage: Stage) -> None:
        """Reads grow while they are filled, and then shrink."""
        stage.peer.send(MEBIBYTE)
        stage.turning.until(lambda: len(stage.protocol.got) == MEBIBYTE)
        assert stage.protocol.got == stage.peer.written
        pieces = stage.protocol.pieces
        assert max(pieces[:1]) <= _PIECE
        assert max(pieces) <= _LARGE_PIECE
        for before, piece in pairwise(pieces):
            assert before >= _PIECE or piece <= _PIECE

    def test_one_read_each(self, stage: Stage) -> None:
        """One event is one read: others get their turn between two."""
        stage.peer.send(3 * _PIECE)
        stage.peer.wait_until_acknowledged()
        stage.protocol.pieces.clear()
        before = len(stage.protocol.got)
        stage.turning.turn()
        assert len(stage.protocol.pieces) <= 1
        stage.turning.until(lambda: len(stage.protocol.got) == 3 * _PIECE)
        assert before <= len(stage.protocol.got)

    def test_without_epoll_ctl(self, stage: Stage) -> None:
        """Messages both ways, with a pause for each, ask the kernel to watch for nothing new."""
        counted = Modifications(stage.poller)
        protocol, peer = stage.protocol, stage.peer

        def answer() -> None:
            protocol.call("pauseProducing")
            protocol.call("write", b"answer")
            protocol.call("resumeProducing")

        protocol.react["data"] = answer
        for _ in range(10):
            peer.say(b"question")
            peer.read(6)
        assert 0 == counted.count


class TestPausing:
    def test_pause(self, stage: Stage) -> None:
        """Nothing is delivered while paused, and all of it later."""
        stage.transport.pauseProducing()
        stage.transport.pauseProducing()
        stage.peer.say(b"early")
        stage.turning.until(lambda: not stage.transport._events)
        stage.turning.settle()
        assert b"" == stage.protocol.got
        stage.transport.resumeProducing()
        stage.transport.resumeProducing()
        stage.turning.until(lambda: stage.protocol.got == b"early")

    def test_slow_reader_here(self, narrow: Stage) -> None:
        """Who writes to a paused protocol is stopped."""
        narrow.transport.pauseProducing()
        sent = narrow.peer.send_until_stopped()
        assert sent < MEBIBYTE
        narrow.transport.resumeProducing()
        narrow.turning.until(lambda: len(narrow.protocol.got) == sent)

    def test_slow_reader_there(self, narrow: Stage) -> None:
        """The producer is paused beyond the bound and resumed once nothing waits."""
        source = narrow.fill()
        assert WRITE_BACKLOG < narrow.transport.unwritten <= WRITE_BACKLOG + 1000
        narrow.peer.read(1000)
        narrow.turning.settle()
        assert source.paused
        while source.paused:
            narrow.peer.read_some()
            narrow.turning.turn()
        assert 0 == narrow.transport.unwritten
        while source.pauses < 5:
            source.produce(100)
            narrow.peer.read_some()
            narrow.turning.turn()
        narrow.peer.read(source.written - len(narrow.peer.got))
        assert noise()[: source.written] == narrow.peer.got

    def test_paused_at_once(self, narrow: Stage) -> None:
        """A producer that comes to a full transport is paused at once."""
        first = narrow.fill()
        narrow.transport.unregisterProducer()
        second = Source(narrow.transport)
        narrow.transport.registerProducer(second, True)
        assert second.paused
        narrow.peer.read(first.written)
        narrow.turning.until(lambda: not second.paused)

    def test_producers(self, stage: Stage) -> None:
        """One push producer at a time."""
        source = Source(stage.transport)
        with pytest.raises(ValueError, match="push"):
            stage.transport.registerProducer(source, False)
        stage.transport.registerProducer(source, True)
        with pytest.raises(RuntimeError, match="already"):
            stage.transport.registerProducer(source, True)
        stage.transport.unregisterProducer()
        stage.transport.registerProducer(source, True)
        stage.transport.abortConnection()
        stage.turning.settle()
        assert 1 == source.stopped
        stage.transport.registerProducer(source, True)
        assert 2 == source.stopped


class TestLoseConnection:
    def test_done(self, stage: Stage) -> None:
        """The other process sees an orderly end; the protocol is told later, once."""
        stage.transport.write(b"last")
        stage.protocol.call("loseConnection")
        assert ["made"] == stage.protocol.told
        assert not stage.transport.connected
        assert b"last" == stage.peer.read_to_end()
        assert ConnectionDone is stage.reason
        stage.protocol.transport = None
        stage.transport.loseConnection()
        stage.transport.abortConnection()
        stage.transport.write(b"nothing")
        stage.turning.settle()
        assert ["made", "lost"] == stage.protocol.told

    def test_after_everything(self, narrow: Stage) -> None:
        """All is written before; what is written afterwards is dropped."""
        narrow.transport.write(noise()[:MEBIBYTE])
        narrow.protocol.call("loseConnection")
        assert narrow.transport.disconnecting
        narrow.transport.write(b"too late")
        narrow.transport.resumeProducing()
        assert noise()[:MEBIBYTE] == narrow.peer.read(MEBIBYTE)
        assert ConnectionDone is narrow.reason

    def test_producer(self, stage: Stage) -> None:
        """The end waits for the producer, who may write until it is unregistered."""
        source = Source(stage.transport)
        stage.transport.registerProducer(source, True)
        stage.protocol.call("loseConnection")
        source.produce(1)
        stage.turning.settle()
        assert stage.transport.connected
        stage.protocol.call("unregisterProducer")
        assert noise()[:1000] == stage.peer.read_to_end()
        assert ConnectionDone is stage.reason
        assert 0 == source.stopped

    def test_slow_producer(self, narrow: Stage) -> None:
        """Likewise while it is paused."""
        source = narrow.fill()
        narrow.transport.stopProducing()
        while source.paused:
            narrow.peer.read_some()
            narrow.turning.turn()
        source.produce(3)
        narrow.transport.unregisterProducer()
        assert noise()[: source.written] == narrow.peer.read_to_end()
        assert ConnectionDone is narrow.reason

    @pytest.mark.parametrize("when", ["made", "data", "read", "write"])
    def test_when_told(self, turning: Turning, poller: Poller, when: str) -> None:
        """It may be called whatever the protocol is being told."""
        protocol = Halves()
        protocol.react[when] = lambda: protocol.call("loseConnection")
        stage = Stage(turning, poller, protocol)
        if when != "made":
            stage.peer.say(b"x")
            stage.peer.half_close()
        if when == "write":
            stage.transport.loseWriteConnection()
        assert ConnectionDone is stage.reason
        stage.close()

    def test_reset_meanwhile(self, narrow: Stage) -> None:
        """A reset while the rest is being written is a loss."""
        narrow.transport.write(noise()[:MEBIBYTE])
        narrow.transport.loseConnection()
        narrow.peer.reset()
        assert ConnectionLost is narrow.reason

    def test_reset_while_the_producer_is_waited_for(self, stage: Stage) -> None:
        """Likewise where only the producer is missing, who is told."""
        source = Source(stage.transport)
        stage.transport.registerProducer(source, True)
        stage.transport.loseConnection()
        stage.peer.reset()
        assert ConnectionLost is stage.reason
        assert 1 == source.stopped


class TestHalfClose:
    def test_ours(self, stage: Stage) -> None:
        """Our end is said after all that was written, and we go on reading."""
        stage.transport.write(b"request")
        stage.protocol.call("loseWriteConnection")
        stage.transport.write(b"too late")
        assert b"request" == stage.peer.read_to_end()
        stage.wait_for("write")
        stage.peer.send(100_000)
        stage.peer.half_close()
        assert ConnectionDone is stage.reason
        assert stage.peer.written == stage.protocol.got
        assert ["made", "write", "read", "lost"] == stage.protocol.told

    def test_ours_later(self, narrow: Stage) -> None:
        """Likewise where much waits to be written, and for a producer."""
        source = narrow.fill()
        narrow.transport.loseWriteConnection()
        narrow.transport.loseWriteConnection()
        narrow.peer.read(source.written)
        narrow.turning.settle()
        source.produce(1)
        assert ["made"] == narrow.protocol.told
        narrow.transport.unregisterProducer()
        assert noise()[: source.written] == narrow.peer.read_to_end()
        narrow.wait_for("write")
        assert narrow.transport.connected

    def test_theirs(self, stage: Stage) -> None:
        """Their end is told, and we go on writing, without being woken again."""
        stage.peer.say(b"request")
        stage.peer.half_close()
        stage.wait_for("read")
        assert 0 == stage.transport._events
        stage.transport.resumeProducing()
        stage.turning.settle()
        assert (b"request", 1) == (bytes(stage.protocol.got), stage.protocol.told.count("read"))
        stage.transport.write(noise()[:MEBIBYTE])
        stage.protocol.call("loseWriteConnection")
        assert noise()[:MEBIBYTE] == stage.peer.read_to_end()
        assert ConnectionDone is stage.reason
        assert ["made", "read", "write", "lost"] == stage.protocol.told

    def test_theirs_and_close(self, narrow: Stage) -> None:
        """After their end, ours may be a close, too."""
        narrow.peer.half_close()
        narrow.wait_for("read")
        narrow.transport.write(noise()[:MEBIBYTE])
        narrow.transport.loseConnection()
        assert noise()[:MEBIBYTE] == narrow.peer.read_to_end()
        assert ConnectionDone is narrow.reason

    def test_then_close(self, stage: Stage) -> None:
        """A close right after our half-close is one orderly end."""
        stage.transport.loseWriteConnection()
        stage.transport.loseConnection()
        assert ConnectionDone is stage.reason
        assert ["made", "lost"] == stage.protocol.told

    def test_while_paused(self, stage: Stage) -> None:
        """Both ways closed and paused: nothing spins, and the rest is there on resuming."""
        stage.transport.pauseProducing()
        stage.transport.loseWriteConnection()
        stage.peer.say(b"rest")
        stage.peer.half_close()
        stage.turning.until(lambda: not stage.transport._watched)
        assert stage.transport in stage.poller.pollables()
        stage.transport.resumeProducing()
        assert [stage.transport] == stage.poller.pollables()
        assert ConnectionDone is stage.reason
        assert b"rest" == stage.protocol.got

    def test_whole(self, simple: Stage) -> None:
        """Their end is the end of a protocol that doesn't know halves."""
        simple.peer.say(b"all")
        simple.peer.half_close()
        assert ConnectionDone is simple.reason
        assert (b"all", b"") == (bytes(simple.protocol.got), simple.peer.read_to_end())

    def test_whole_later(self, turning: Turning, poller: Poller) -> None:
        """Likewise, after all is written; a producer isn't waited for, but told."""
        stage = Stage(turning, poller, Simple(), buffers=SMALL_BUFFER)
        source = stage.fill()
        stage.peer.half_close()
        turning.until(lambda: source.stopped)
        stage.transport.write(b"too late")
        assert noise()[: source.written] == stage.peer.read_to_end()
        assert ConnectionDone is stage.reason
        stage.close()

    def test_whole_ours(self, simple: Stage) -> None:
        """It can end its own way, and then is told of nothing but the end."""
        simple.transport.loseWriteConnection()
        assert b"" == simple.peer.read_to_end()
        simple.peer.close()
        assert ConnectionDone is simple.reason

    def test_producer_that_aborts(self, simple: Stage) -> None:
        """A producer may abort the connection when it is told to stop."""

        class Aborting(Source):
            def stopProducing(self) -> None:
                super().stopProducing()
                self._transport.abortConnection()

        simple.transport.registerProducer(Aborting(simple.transport), True)
        simple.peer.half_close()
        assert ConnectionAborted is simple.reason


class TestReset:
    def test_theirs(self, stage: Stage) -> None:
        """A reset is no orderly end."""
        stage.peer.reset()
        assert ConnectionLost is stage.reason
        assert ["made", "lost"] == stage.protocol.told

    def test_after_data(self, stage: Stage) -> None:
        """What was received before it is delivered."""
        stage.peer.send(MEBIBYTE // 4)
        stage.peer.wait_until_acknowledged()
        stage.peer.reset()
        assert ConnectionLost is stage.reason
        assert stage.peer.written == stage.protocol.got

    def test_ours(self, narrow: Stage) -> None:
        """Aborting is a reset; what waited is lost; the protocol is told later."""
        source = narrow.fill()
        narrow.protocol.call("abortConnection")
        assert ["made"] == narrow.protocol.told
        assert narrow.peer.read_to_reset() in noise()[: source.written]
        assert ConnectionAborted is narrow.reason
        assert 1 == source.stopped

    @pytest.mark.parametrize("when", ["made", "data", "read", "write", "lost"])
    def test_when_told(self, turning: Turning, poller: Poller, when: str) -> None:
        """It may be called whatever the protocol is being told."""
        protocol = Halves()
        protocol.react[when] = lambda: protocol.call("abortConnection")
        stage = Stage(turning, poller, protocol)
        if when != "made":
            stage.transport.loseWriteConnection()
            stage.peer.say(b"x")
            stage.peer.half_close()
        assert (ConnectionDone if when == "lost" else ConnectionAborted) is stage.reason
        stage.close()

    def test_while_paused(self, stage: Stage) -> None:
        """A reset is told of though paused."""
        stage.transport.pauseProducing()
        stage.peer.say(b"unheard")
        stage.turning.until(lambda: not stage.transport._events)
        stage.peer.reset()
        assert ConnectionLost is stage.reason
        assert b"" == stage.protocol.got

    def test_by_writing(self, stage: Stage) -> None:
        """A write that fails is noticed at once, told of later, and only once."""
        stage.peer.reset()
        arrived(stage.transport.getHandle())
        stage.protocol.call("write", b"x")
        assert not stage.transport.connected
        stage.protocol.call("write", b"y")
        assert ["made"] == stage.protocol.told
        assert ConnectionLost is stage.reason

    def test_by_flushing(self, narrow: Stage) -> None:
        """Likewise for what waited; its producer is told to stop."""
        source = narrow.fill()
        narrow.transport.pauseProducing()
        narrow.peer.reset()
        assert ConnectionLost is narrow.reason
        assert 1 == source.stopped

    def test_after_their_end(self, stage: Stage) -> None:
        """A reset after the other process' end is seen, too."""
        stage.peer.half_close()
        stage.wait_for("read")
        stage.peer.reset()
        assert ConnectionLost is stage.reason

    def test_after_our_end(self, stage: Stage) -> None:
        """Likewise after ours."""
        stage.transport.loseWriteConnection()
        stage.wait_for("write")
        stage.peer.reset()
        assert ConnectionLost is stage.reason

    def test_before_half_closing(self, stage: Stage) -> None:
        """Likewise where it came before our end could be said."""
        stage.peer.reset()
        arrived(stage.transport.getHandle())
        stage.transport.loseWriteConnection()
        assert ConnectionLost is stage.reason


class TestLastWords:
    def test_by_writing(self, last_words: Stage) -> None:
        """An answer that came before the reset is read, though a write failed first."""
        last_words.peer.say(b"413")
        last_words.peer.reset()
        arrived(last_words.transport.getHandle())
        last_words.protocol.call("write", b"x")
        last_words.protocol.call("write", b"y")
        assert last_words.transport.connected
        assert ConnectionLost is last_words.reason
        assert b"413" == last_words.protocol.got
        assert ["made", "lost"] == last_words.protocol.told

    @pytest.mark.parametrize("write", [False, True])
    def test_while_paused(self, last_words: Stage, write: bool) -> None:
        """Likewise when it is resumed; until then nothing spins."""
        last_words.transport.pauseProducing()
        last_words.peer.say(b"413")
        last_words.peer.reset()
        arrived(last_words.transport.getHandle())
        if write:
            last_words.transport.write(b"x")
        last_words.turning.until(lambda: not last_words.transport._watched)
        last_words.turning.settle()
        assert [] == last_words.protocol.reasons
        last_words.transport.resumeProducing()
        assert ConnectionLost is last_words.reason
        assert b"413" == last_words.protocol.got

    def test_nothing_to_say(self, last_words: Stage) -> None:
        """Where nothing is unread it is told at once, though paused."""
        last_words.transport.pauseProducing()
        last_words.peer.reset()
        assert ConnectionLost is last_words.reason

    def test_by_flushing(self, turning: Turning, poller: Poller) -> None:
        """Likewise where the write that failed was a later one."""
        stage = Stage(turning, poller, Halves(), buffers=SMALL_BUFFER, last_words=True)
        stage.fill()
        stage.transport.pauseProducing()
        stage.peer.say(b"413")
        stage.peer.reset()
        turning.until(lambda: not stage.transport.unwritten)
        stage.transport.resumeProducing()
        assert ConnectionLost is stage.reason
        assert b"413" == stage.protocol.got
        stage.close()

    @pytest.mark.parametrize("how", ["loseConnection", "abortConnection"])
    def test_unwanted(self, last_words: Stage, how: str) -> None:
        """The protocol may end it all before."""
        last_words.transport.pauseProducing()
        last_words.peer.say(b"413")
        last_words.peer.reset()
        last_words.turning.until(lambda: not last_words.transport._watched)
        last_words.protocol.call(how)
        assert last_words.reason in {ConnectionDone, ConnectionAborted}

    def test_shut_down(self, last_words: Stage) -> None:
        """The process may end before."""
        last_words.transport.pauseProducing()
        last_words.peer.say(b"413")
        last_words.peer.reset()
        last_words.turning.until(lambda: not last_words.transport._watched)
        for pollable in last_words.poller.pollables():
            pollable.shut_down()
        assert ShutDown is last_words.reason


class TestBugs:
    @pytest.mark.parametrize("where", ["made", "data", "read", "write"])
    def test_protocol(self, turning: Turning, poller: Poller, where: str) -> None:
        """A protocol that raises is logged, and its connection is reset."""

        def bug() -> None:
            raise ZeroDivisionError

        protocol = Halves()
        protocol.react[where] = bug
        stage = Stage(turning, poller, protocol)
        if where == "write":
            stage.transport.loseWriteConnection()
        if where in {"data", "read"}:
            stage.peer.say(b"x")
        if where == "read":
            stage.peer.half_close()
        assert ZeroDivisionError is stage.reason
        assert "ZeroDivisionError" in turning.failures.pop()
        if where == "write":
            # Our end is out already.
            assert b"" == stage.peer.read_to_end()
        else:
            stage.peer.read_to_reset()
        stage.close()

    def test_lost(self, stage: Stage) -> None:
        """One that raises at the end is logged."""

        def bug() -> None:
            raise ZeroDivisionError

        stage.protocol.react["lost"] = bug
        stage.peer.reset()
        assert ConnectionLost is stage.reason
        assert "ZeroDivisionError" in stage.turning.failures.pop()

    def test_after_closing(self, stage: Stage) -> None:
        """One that raises after it has closed ends as it said."""

        def bug() -> None:
            stage.transport.loseConnection()
            raise ZeroDivisionError

        stage.protocol.react["data"] = bug
        stage.peer.say(b"x")
        assert ConnectionDone is stage.reason
        assert "ZeroDivisionError" in stage.turning.failures.pop()

    def test_producer(self, stage: Stage) -> None:
        """A producer that won't stop is logged; the protocol is told all the same."""

        class Buggy(Source):
            def stopProducing(self) -> None:
                raise ZeroDivisionError

        stage.transport.registerProducer(Buggy(stage.transport), True)
        stage.transport.abortConnection()
        assert ConnectionAborted is stage.reason
        assert "ZeroDivisionError" in stage.turning.failures.pop()


class TestPolling:
    def test_shut_down(self, stage: Stage) -> None:
        """At the end of the process the protocol is told, the other process reset."""
        for _ in range(2):
            stage.transport.shut_down()
        assert [ShutDown] == [type(reason) for reason in stage.protocol.reasons]
        stage.peer.read_to_reset()

    def test_close_while_due(self, turning: Turning) -> None:
        """An end that is yet to be told is told when the poller closes."""
        poller = Poller(turning.reactor)
        stage = Stage(turning, poller, Halves())
        stage.transport.loseConnection()
        poller.close()
        assert ["made", "lost"] == stage.protocol.told
        stage.peer.close()

    @pytest.mark.parametrize("events", [READ, WRITE, HANGUP, ERROR, READ | HANGUP | ERROR])
    @pytest.mark.parametrize("paused", [False, True])
    def test_for_somebody_else(self, stage: Stage, events: int, paused: bool) -> None:
        """What is said of a descriptor's previous owner is looked into, and does no harm."""
        if paused:
            stage.transport.pauseProducing()
        stage.transport.ready(events)
        assert stage.transport.connected
        stage.transport.resumeProducing()
        stage.peer.say(b"x")
        stage.turning.until(lambda: stage.protocol.got)
        stage.transport.loseConnection()
        stage.transport.ready(events)
        assert ConnectionDone is stage.reason

    def test_for_somebody_else_while_writing(self, narrow: Stage) -> None:
        """Likewise while bytes wait."""
        narrow.transport.pauseProducing()
        source = narrow.fill()
        narrow.transport.ready(WRITE | HANGUP | ERROR)
        assert narrow.transport.connected
        narrow.peer.read(source.written)


class TestDetaching:
    def test_detach(self, stage: Stage) -> None:
        """The socket is its new owner's; the protocol hears no more."""
        stage.peer.say(b"early")
        stage.turning.until(lambda: stage.protocol.got)
        with stage.transport.detach() as sock:
            assert [] == stage.poller.pollables()
            stage.peer.say(b"more")
            stage.turning.settle()
            wait_for(lambda: unread(sock) == 4)
            assert b"more" == sock.recv(9)
            stage.transport.abortConnection()
            stage.transport.loseConnection()
            stage.transport.loseWriteConnection()
            stage.transport.resumeProducing()
            stage.transport.write(b"x")
            stage.transport.shut_down()
            stage.turning.settle()
            sock.send(b"on")
            assert b"on" == stage.peer.read(2)
        assert (["made"], b"early") == (stage.protocol.told, bytes(stage.protocol.got))

    def test_in_the_midst(self, stage: Stage) -> None:
        """It may be detached whatever the protocol is being told."""
        taken: list[socket.socket] = []
        stage.protocol.react["read"] = lambda: taken.append(stage.transport.detach())
        stage.peer.half_close()
        stage.turning.until(lambda: taken)
        stage.turning.settle()
        assert b"" == taken[0].recv(1)
        taken[0].close()

    def test_unwatched(self, stage: Stage) -> None:
        """Likewise where nobody watches it any more."""
        stage.transport.pauseProducing()
        stage.transport.loseWriteConnection()
        stage.peer.half_close()
        stage.turning.until(lambda: not stage.transport._watched)
        stage.transport.detach().close()
        assert [] == stage.poller.pollables()

    def test_unwritten(self, narrow: Stage) -> None:
        """What is unwritten has to be taken first."""
        narrow.transport.write(noise()[:MEBIBYTE])
        with pytest.raises(RuntimeError, match="unwritten"):
            narrow.transport.detach()
        unwritten = narrow.transport.unwritten
        rest = narrow.transport.take_unwritten()
        assert (unwritten, 0) == (len(rest), narrow.transport.unwritten)
        with narrow.transport.detach():
            assert noise()[: MEBIBYTE - unwritten] == narrow.peer.read(MEBIBYTE - unwritten)
        assert noise()[MEBIBYTE - unwritten : MEBIBYTE] == rest

    def test_closed(self, stage: Stage) -> None:
        """A closed connection can't be detached."""
        stage.transport.loseConnection()
        with pytest.raises(RuntimeError, match="closed"):
            stage.transport.detach()


class Transcript:
    """What the two sides of a connection do, and that it agrees in the end."""

    def __init__(self, turning: Turning, poller: Poller, buffers: int | None) -> None:
        self._protocol = Halves()
        self._stage = Stage(turning, poller, self._protocol, buffers=buffers)
        self.close = self._stage.close
        self.written = 0
        self._ended = False
        self._their_end = False

    def say(self, count: int) -> None:
        if not self._their_end:
            self._stage.peer.write_some(count)

    def hear(self, count: int) -> None:
        self._stage.peer.read_some(count + 1)

    def write(self, count: int) -> None:
        self._protocol.call("write", noise()[self.written : self.written + count])
        if not self._ended:
            self.written += count

    def pause(self, _: int = 0) -> None:
        self._protocol.call("pauseProducing")

    def resume(self, _: int = 0) -> None:
        self._protocol.call("resumeProducing")

    def turn(self, _: int = 0) -> None:
        self._stage.turning.turn()

    def end(self, _: int = 0) -> None:
        self._protocol.call("loseWriteConnection")
        self._ended = True

    def their_end(self, _: int = 0) -> None:
        if not self._their_end:
            self._stage.peer.half_close()
        self._their_end = True

    def finish(self) -> None:
        """See everything through."""
        self.resume()
        self.end()
        peer, protocol = self._stage.peer, self._protocol
        assert noise()[: self.written] == peer.read_to_end()
        self.their_end()
        assert ConnectionDone is self._stage.reason
        assert peer.written == protocol.got
        assert {"made", "read", "write", "lost"} == set(protocol.told)
        assert 4 == len(protocol.told)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["say", "hear", "write"]), st.integers(0, 300_000)),
        st.tuples(st.sampled_from(["pause", "resume", "turn", "end", "their_end"]), st.just(0)),
    ),
    max_size=30,
)


@given(STEPS, st.sampled_from([None, SMALL_BUFFER]))
# Their end came before ours could be told of.
@example([("end", 0), ("their_end", 0)], None)
def test_transcripts(steps: list[tuple[str, int]], buffers: int | None) -> None:
    """Whatever the two do, every byte arrives in order, and the end comes once."""
    with turning() as turns, ExitStack() as stack:
        poller = Poller(turns.reactor)
        stack.callback(poller.close)
        transcript = Transcript(turns, poller, buffers)
        stack.callback(transcript.close)
        for step, count in steps:
            getattr(transcript, step)(count)
        transcript.finish()
