from __future__ import annotations

import socket
from typing import TYPE_CHECKING, cast

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
)
from twisted.internet.protocol import Protocol
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.names.reactor import ReactorNames, install
from sidecar.names.resolving import SystemResolver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turning import Turning

BOTH = ["192.0.2.1", "2001:db8::1"]


class Lookup:
    """Knows the same of every name.

    Attributes:
        asked: What was asked for.
        answer: What is known.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: list[str] = BOTH

    def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        if not self.answer:
            raise OSError("no such name")
        return self.answer


@implementer(IResolutionReceiver)
class Receiver:
    """Takes down what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        self.told.append("began")

    def addressResolved(self, address: object) -> None:
        self.told.append(address)

    def resolutionComplete(self) -> None:
        self.told.append("complete")


@pytest.fixture
def lookup() -> Lookup:
    return Lookup()


@pytest.fixture
def resolver(turning: Turning, lookup: Lookup) -> Iterator[SystemResolver]:
    made = SystemResolver(turning.reactor, turning.reactor, lookup=lookup)
    yield made
    made.close()
    turning.settle()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def names(resolver: SystemResolver) -> ReactorNames:
    return ReactorNames(resolver)


class TestResolve:
    def complete(self, turning: Turning, receiver: Receiver) -> list[object]:
        """All that was told, once it is."""
        turning.until(lambda: "complete" in receiver.told)
        turning.settle()
        return receiver.told

    def test_interfaces(self, names: ReactorNames, receiver: Receiver) -> None:
        """It is what reactors expect, and so is the fake."""
        assert verifyObject(IHostnameResolver, names)
        assert verifyObject(IResolutionReceiver, receiver)
        resolution = names.resolveHostName(receiver, "x.example")
        assert verifyObject(IHostResolution, resolution)
        assert "x.example" == resolution.name
        resolution.cancel()

    def test_addresses(self, turning: Turning, names: ReactorNames, receiver: Receiver) -> None:
        """All addresses in the resolver's order, with the port, and then the end."""
        names.resolveHostName(receiver, "x.example", portNumber=80)
        assert ["began"] == receiver.told
        assert [
            "began",
            IPv4Address("TCP", "192.0.2.1", 80),
            IPv6Address("TCP", "2001:db8::1", 80),
            "complete",
        ] == self.complete(turning, receiver)

    def test_kinds(self, turning: Turning, names: ReactorNames, receiver: Receiver) -> None:
        """Only those of the kinds that were asked for, for the transport that was."""
        names.resolveHostName(
            receiver, "x.example", addressTypes=[IPv6Address], transportSemantics="UDP"
        )
        expected = ["began", IPv6Address("UDP", "2001:db8::1", 0), "complete"]
        assert expected == self.complete(turning, receiver)

    @pytest.mark.parametrize(
        ("text", "asked"),
        [
            ("X.Example.", "x.example"),
            ("_x.example", "_x.example"),
            # HostnameEndpoint shows what it was given as xn--… in this form.
            ("b\u00fccher.example", "xn--bcher-kva.example"),
        ],
    )
    def test_canonical(
        self,
        turning: Turning,
        names: ReactorNames,
        lookup: Lookup,
        receiver: Receiver,
        text: str,
        asked: str,
    ) -> None:
        """The resolver is asked for names in their one form."""
        names.resolveHostName(receiver, text)
        self.complete(turning, receiver)
        assert [asked] == lookup.asked

    @pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
    def test_literal(
        self, names: ReactorNames, lookup: Lookup, receiver: Receiver, text: str
    ) -> None:
        """An address is its own answer, at once."""
        names.resolveHostName(receiver, text)
        assert ["began", "complete"] == receiver.told[::2]
        assert [] == lookup.asked

    @pytest.mark.parametrize("text", ["", "a..b", "127.1", "x\0.example", "\u00fc..x", "x" * 64])
    def test_no_name(
        self, names: ReactorNames, lookup: Lookup, receiver: Receiver, text: str
    ) -> None:
        """What is no name has no address, and nobody is asked."""
        names.resolveHostName(receiver, text)
        assert (["began", "complete"], []) == (receiver.told, lookup.asked)

    def test_failure(
        self, turning: Turning, names: ReactorNames, lookup: Lookup, receiver: Receiver
    ) -> None:
        """Nor has a name that isn't known."""
        lookup.answer = []
        names.resolveHostName(receiver, "x.example")
        assert ["began", "complete"] == self.complete(turning, receiver)

    def test_cancel(self, turning: Turning, names: ReactorNames, receiver: Receiver) -> None:
        """Who gives up hears no more; who asks again is answered."""
        names.resolveHostName(receiver, "x.example").cancel()
        other = Receiver()
        names.resolveHostName(other, "x.example")
        self.complete(turning, other)
        assert ["began"] == receiver.told


class TestInstall:
    def test_endpoint(self, turning: Turning, resolver: SystemResolver, lookup: Lookup) -> None:
        """Twisted's endpoints dial what the resolver answers, without a thread of the pool's."""
        uninstall = install(turning.reactor, resolver)
        lookup.answer = ["127.0.0.1"]
        with socket.create_server(("127.0.0.1", 0)) as origin:
            port = origin.getsockname()[1]
            endpoint = HostnameEndpoint(turning.reactor, "x.example", port)
            protocol = turning.result(connectProtocol(endpoint, Protocol()))
            assert protocol.transport is not None
            protocol.transport.loseConnection()
            turning.settle()
        assert ["x.example"] == lookup.asked
        uninstall()

    def test_uninstall(self, turning: Turning, resolver: SystemResolver) -> None:
        """The reactor gets its resolver back, unless somebody has given it another."""
        reactor = cast("IReactorPluggableNameResolver", turning.reactor)
        before = reactor.nameResolver
        install(reactor, resolver)()
        assert before is reactor.nameResolver
        uninstall = install(reactor, resolver)
        other = ReactorNames(resolver)
        reactor.installNameResolver(other)
        uninstall()
        assert other is reactor.nameResolver
