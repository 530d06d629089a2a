"""Questions over connections: several at once, slow ones, broken ones, too many."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, cast

import pytest
from askers import Stage, policy, query, read
from nameservers import Scripted, a, record
from turning import Turning, turning
from twisted.internet.address import IPv6Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.names import dns

from sidecar.dns.tcp import StreamServerFactory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.dns.server import Answerer, Asked
    from sidecar.dns.tcp import _Stream


@pytest.fixture
def turn() -> Iterator[Turning]:
    with turning() as made:
        yield made


RECORDS = [
    *a("www.example.com", "93.184.216.34"),
    *[record("many.example.com", dns.Record_TXT(b"x" * 250)) for _ in range(200)],
]


def framed(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


class TestSockets:
    def test_several(self, turn: Turning) -> None:
        """More questions than are answered at once are answered, each."""
        names = [f"n{each}.example.com" for each in range(50)]
        rows = [row for name in names for row in a(name, "93.184.216.34")]
        with (
            Scripted(rows) as far,
            Stage(turn, policy(), [far.server]) as stage,
            stage.connected() as connection,
        ):
            for ident, name in enumerate(names):
                connection.sendall(framed(query(name, ident=ident)))
            got = [read(each) for each in stage.read_stream(connection, 50)]
            assert set(range(50)) == {each.id for each in got}
            assert all(1 == len(each.answers) for each in got)

    def test_in_pieces(self, turn: Turning) -> None:
        """It doesn't matter how a question is cut."""
        with (
            Scripted(RECORDS) as far,
            Stage(turn, policy(), [far.server]) as stage,
            stage.connected() as connection,
        ):
            for octet in framed(query("www.example.com")):
                connection.sendall(bytes([octet]))
                turn.settle()
            (answer,) = stage.read_stream(connection)
            assert 1 == len(read(answer).answers)

    def test_unread(self, turn: Turning) -> None:
        """Who asks and doesn't read is not read from any more, and gets everything later."""
        with (
            Scripted(RECORDS) as far,
            # By its own measure (tcp_wmem) the kernel may take all of the answers.
            Stage(turn, policy(), [far.server], send_buffer=1 << 16) as stage,
            socket.socket() as connection,
        ):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            connection.connect(stage.tcp_at)
            connection.setblocking(False)
            for ident in range(100):
                connection.sendall(framed(query("many.example.com", dns.TXT, ident=ident)))
            turn.until(lambda: len(far.asked) > 1)
            for _ in range(200):
                turn.turn(0.002)
            # A pair of UDP and TCP each; all the rest waits.
            assert len(stage.seen.lookups) < 100
            assert 100 == len(stage.read_stream(connection, 100))

    @pytest.mark.parametrize(
        "data",
        [struct.pack("!H", 5000) + bytes(5000), framed(b""), framed(b"\x00\x01\x80" + bytes(9))],
    )
    def test_rubbish(self, turn: Turning, data: bytes) -> None:
        """What is no question ends the connection."""
        with Stage(turn, policy(), []) as stage, stage.connected() as connection:
            connection.sendall(data)
            assert [] == stage.read_stream(connection)

    def test_malformed(self, turn: Turning) -> None:
        """A malformed question gets an error."""
        with Stage(turn, policy(), []) as stage, stage.connected() as connection:
            connection.sendall(framed(query("www.example.com")[:-1]))
            (answer,) = stage.read_stream(connection)
            assert dns.EFORMAT == read(answer).rCode

    def test_gone(self, turn: Turning) -> None:
        """Who goes before the answer is missed by nobody."""
        with Scripted(RECORDS) as far, Stage(turn, policy(), [far.server]) as stage:
            with stage.connected() as connection:
                connection.sendall(framed(query("www.example.com")))
            turn.until(lambda: stage.seen.lookups)


class Slow:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    def ask(self, data: bytes, asked: Asked) -> bool:
        self.asked.append(asked)
        return True


class TestTimes:
    def connect(self, clock: Clock, connections: int = 2) -> tuple[Slow, StreamServerFactory]:
        slow = Slow()
        return slow, StreamServerFactory(clock, cast("Answerer", slow), connections=connections)

    def stream(self, factory: StreamServerFactory) -> tuple[_Stream | None, Transport]:
        protocol = factory.buildProtocol(IPv6Address("TCP", "::ffff:192.0.2.1", 4711))
        transport = Transport()
        if protocol is not None:
            transport.served = protocol
            protocol.makeConnection(transport)  # type: ignore[no-untyped-call]
        return protocol, transport

    def test_addresses(self) -> None:
        """IPv4 clients of a dual-stack listener have IPv4 addresses."""
        slow, factory = self.connect(Clock())
        protocol, _ = self.stream(factory)
        assert protocol is not None
        protocol.dataReceived(framed(query("x.example")))  # type: ignore[no-untyped-call]
        (asked,) = slow.asked
        assert ("192.0.2.53", "192.0.2.1:4711", True) == (
            *(asked.server, str(asked.source)),
            asked.stream,
        )

    @pytest.mark.parametrize("data", [b"", framed(query("x.example"))[:-1]])
    def test_idle(self, data: bytes) -> None:
        """Ten seconds without a whole question are enough."""
        clock = Clock()
        _, factory = self.connect(clock)
        protocol, transport = self.stream(factory)
        assert protocol is not None
        for octet in data:
            protocol.dataReceived(bytes([octet]))  # type: ignore[no-untyped-call]
            clock.advance(0.1)
        clock.advance(10 - 0.1 * len(data) - 0.01)
        assert not transport.aborted
        clock.advance(0.02)
        assert transport.aborted
        assert (set(), []) == (factory.open, clock.getDelayedCalls())

    def test_busy(self) -> None:
        """Whole questions and answers count."""
        clock = Clock()
        slow, factory = self.connect(clock)
        protocol, transport = self.stream(factory)
        assert protocol is not None
        for _ in range(5):
            clock.advance(9)
            protocol.dataReceived(framed(query("x.example")))  # type: ignore[no-untyped-call]
        clock.advance(9)
        slow.asked[0].send(b"answer")
        clock.advance(9)
        assert not transport.aborted

    def test_too_many(self) -> None:
        """So many connections, and no more until one has gone."""
        _, factory = self.connect(Clock())
        first, _ = self.stream(factory)
        assert first is not None
        assert None is not self.stream(factory)[0]
        assert None is self.stream(factory)[0]
        first.abort()
        assert None is not self.stream(factory)[0]

    def test_too_many_questions(self) -> None:
        """A connection's further questions wait until others are answered."""
        slow, factory = self.connect(Clock())
        protocol, transport = self.stream(factory)
        assert protocol is not None
        protocol.dataReceived(framed(query("x.example")) * 40)  # type: ignore[no-untyped-call]
        assert (16, "paused") == (len(slow.asked), transport.producerState)
        slow.asked[0].send(b"answer")
        assert (17, "paused") == (len(slow.asked), transport.producerState)
        for asked in slow.asked[1:17]:
            asked.send(b"answer")
        assert 33 == len(slow.asked)
        for asked in slow.asked[17:33]:
            asked.send(b"answer")
        assert (40, "producing") == (len(slow.asked), transport.producerState)

    def test_late(self) -> None:
        """An answer that comes after the end goes nowhere."""
        slow, factory = self.connect(Clock())
        protocol, transport = self.stream(factory)
        assert protocol is not None
        protocol.dataReceived(framed(query("x.example")))  # type: ignore[no-untyped-call]
        protocol.abort()
        slow.asked[0].send(b"answer")
        assert b"" == transport.value()  # type: ignore[no-untyped-call]

    def test_close(self) -> None:
        """All are ended at the end."""
        _, factory = self.connect(Clock())
        _, one = self.stream(factory)
        _, two = self.stream(factory)
        factory.close()
        assert (True, True) == (one.aborted, two.aborted)


class Transport(StringTransport):
    """As an intercepted connection's."""

    def __init__(self) -> None:
        super().__init__(hostAddress=IPv6Address("TCP", "::ffff:192.0.2.53", 53))  # type: ignore[no-untyped-call]
        self.aborted = False
        self.served: _Stream | None = None

    def setTcpNoDelay(self, enabled: bool) -> None:
        assert enabled

    def abortConnection(self) -> None:
        self.aborted = True
        if self.served is not None:
            self.served.connectionLost()
