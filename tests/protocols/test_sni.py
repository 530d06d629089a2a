from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from wire.hello_maker import alpn, hello, host_name, name_list, server_name
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.interfaces import IPeekedProtocol
from sidecar.protocols.sni import PeekFactory

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

    from sidecar.flow import Flow

HELLO = hello(server_name(b"example.org"), alpn(b"h2"))


class Plain(Protocol):
    """Takes down what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def connectionMade(self) -> None:
        self.told.append("made")

    def dataReceived(self, data: bytes) -> None:
        if isinstance(self.told[-1], bytes):
            self.told[-1] += data
        else:
            self.told.append(data)

    def connectionLost(self, reason: object = None) -> None:
        self.told.append("lost")


@implementer(IPeekedProtocol)
class Peeked(Plain):
    def peeked(self, flow: Flow) -> None:
        self.told.append((flow.host, flow.alpn, flow.names_known))
        self.problem = flow.problem


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Peeked):
    def readConnectionLost(self) -> None:
        self.told.append("read lost")

    def writeConnectionLost(self) -> None:
        self.told.append("write lost")


class Wrapped(Factory):
    """Builds one protocol; None to refuse."""

    noisy = False

    def __init__(self, made: Plain | None) -> None:
        self.made = made
        self.calls: list[str] = []

    def doStart(self) -> None:
        self.calls.append("start")

    def doStop(self) -> None:
        self.calls.append("stop")

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        return self.made


@pytest.fixture
def clock() -> Clock:
    return Clock()


def connected(clock: Clock, wrapped: Plain) -> Protocol:
    """A connection to a factory that peeks."""
    factory = PeekFactory(cast("IProtocolFactory", Wrapped(wrapped)), clock, silence=1, patience=5)
    made = factory.buildProtocol(None)
    assert made is not None
    made.makeConnection(StringTransport())
    return made


FACTS = ("example.org", ("h2",), True)
NO_FACTS = (None, (), True)


class TestPeekFactory:
    def test_interfaces(self, clock: Clock) -> None:
        """It is a factory; starts, stops and refuses as the wrapped one does."""
        wrapped = Wrapped(None)
        factory = PeekFactory(cast("IProtocolFactory", wrapped), clock)
        assert verifyObject(IProtocolFactory, factory)
        factory.doStart()
        factory.doStop()
        assert ["start", "stop"] == wrapped.calls
        assert factory.buildProtocol(None) is None
        assert (0.25, 5.0) == (factory.silence, factory.patience)

    @pytest.mark.parametrize("size", [1, 2, 7, 50, len(HELLO), 4096])
    def test_every_byte_once(self, clock: Clock, size: int) -> None:
        """However they are cut: the facts, the connection, then every byte once, in order."""
        wrapped = Peeked()
        made = connected(clock, wrapped)
        sent = HELLO + b"what follows"
        for at in range(0, len(sent), size):
            made.dataReceived(sent[at : at + size])
        assert [FACTS, "made", sent] == wrapped.told
        assert wrapped.transport is made.transport
        made.connectionLost()
        assert [FACTS, "made", sent, "lost"] == wrapped.told
        assert [] == clock.getDelayedCalls()

    @pytest.mark.parametrize(
        ("said", "problem"),
        [
            (HELLO, None),
            (hello(name_list(host_name(b"a"), host_name(b"b"))), "hello_sni_two_names"),
            (hello(server_name(b"0x7f.1")), "invalid_host"),
            (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "http_host_duplicate"),
            (HELLO[:9], "peek_timeout"),
            (b"SSH-2.0-x\r\n", None),
        ],
        ids=["good", "hello", "host", "http", "dripping", "other"],
    )
    def test_problem(self, clock: Clock, said: bytes, problem: str | None) -> None:
        """A client that can't be read has no host; the protocol learns that, and why."""
        wrapped = Peeked()
        connected(clock, wrapped).dataReceived(said)
        clock.advance(5)
        assert problem == wrapped.problem
        if problem is not None:
            assert [NO_FACTS, "made", said] == wrapped.told

    def test_plain_protocol(self, clock: Clock) -> None:
        """A protocol that doesn't care for facts works as well."""
        wrapped = Plain()
        connected(clock, wrapped).dataReceived(HELLO)
        assert ["made", HELLO] == wrapped.told

    def test_silent(self, clock: Clock) -> None:
        """With a client that says nothing, the server may speak first after a moment."""
        wrapped = Peeked()
        made = connected(clock, wrapped)
        clock.advance(0.9)
        assert [] == wrapped.told
        clock.advance(0.1)
        assert [NO_FACTS, "made"] == wrapped.told
        made.dataReceived(HELLO)
        assert [NO_FACTS, "made", HELLO] == wrapped.told

    def test_dripping(self, clock: Clock) -> None:
        """A client that began to speak is given more time, from its first byte and once."""
        wrapped = Peeked()
        made = connected(clock, wrapped)
        clock.advance(0.5)
        for at in range(4):
            made.dataReceived(HELLO[at : at + 1])
            clock.advance(1)
        assert [] == wrapped.told
        clock.advance(1)
        assert [NO_FACTS, "made", HELLO[:4]] == wrapped.told
        assert [] == clock.getDelayedCalls()

    @pytest.mark.parametrize("said", [b"", HELLO[:9]])
    def test_lost(self, clock: Clock, said: bytes) -> None:
        """A client that goes early: the protocol is told of all, in order."""
        wrapped = Peeked()
        made = connected(clock, wrapped)
        if said:
            made.dataReceived(said)
        made.connectionLost()
        assert [NO_FACTS, "made", *([said] if said else []), "lost"] == wrapped.told
        assert [] == clock.getDelayedCalls()

    def test_half_close(self, clock: Clock) -> None:
        """Half-closes are declared exactly where the wrapped protocol declares them."""
        assert not IHalfCloseableProtocol.providedBy(connected(clock, Plain()))
        wrapped = HalfCloseable()
        made = connected(clock, wrapped)
        assert IHalfCloseableProtocol.providedBy(made)
        made.dataReceived(HELLO[:9])
        half = cast("IHalfCloseableProtocol", made)
        half.readConnectionLost()
        half.writeConnectionLost()
        assert [NO_FACTS, "made", HELLO[:9], "read lost", "write lost"] == wrapped.told
