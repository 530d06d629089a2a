from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from turning import Turning, turning
from twisted.internet.address import IPv6Address
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IResolutionReceiver
from zope.interface.verify import verifyObject

from sidecar.addresses import SocketAddress
from sidecar.errors import AddressError
from sidecar.upstreams import HostPort, _Addresses, parse_upstream, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.interfaces import IReactorPluggableNameResolver


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning(threads=True) as made:
        yield made


class TestParse:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("tcp:192.0.2.1:80", SocketAddress("192.0.2.1", 80)),
            (r"tcp:\:\:1:80", SocketAddress("::1", 80)),
            ("tcp:[::1]:80", SocketAddress("::1", 80)),
            (r"tcp:[\:\:1]:80", SocketAddress("::1", 80)),
            (r"tcp:\:\:ffff\:192.0.2.1:80", SocketAddress("192.0.2.1", 80)),
            ("tcp:localhost:80", HostPort("localhost", 80)),
            ("tcp:db.corp.example:5432", HostPort("db.corp.example", 5432)),
            # Spelled out they are the same: guarded against loops, marked, spliced.
            ("tcp:host=192.0.2.1:port=80", SocketAddress("192.0.2.1", 80)),
            ("tcp:192.0.2.1:port=80", SocketAddress("192.0.2.1", 80)),
            (r"tcp:host=\:\:1:port=80", SocketAddress("::1", 80)),
            ("tcp:port=80:host=localhost", HostPort("localhost", 80)),
            ("tcp:DB.Corp.Example.:5432", HostPort("db.corp.example", 5432)),
        ],
    )
    def test_ours(self, turning: Turning, text: str, expected: SocketAddress | HostPort) -> None:
        """A TCP address or name is dialled by ourselves."""
        assert expected == parse_upstream(turning.reactor, text)

    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("unix:/run/x.sock", UNIXClientEndpoint),
            ("tcp:192.0.2.1:80:timeout=5", TCP4ClientEndpoint),
            ("tcp:host=192.0.2.1:port=80:timeout=5", TCP4ClientEndpoint),
        ],
    )
    def test_endpoint(self, turning: Turning, text: str, kind: type) -> None:
        """Everything else by the endpoint that it names."""
        assert isinstance(parse_upstream(turning.reactor, text), kind)

    @pytest.mark.parametrize(
        "text",
        [
            "tcp:192.0.2.1:0",
            "tcp:192.0.2.1:65536",
            "tcp:192.0.2.1:http",
            "tcp:::::80",
            # What would be an address to some programs and a name to others.
            "tcp:127.1:80",
            "tcp:0x7f000001:80",
            "tcp:a..b:80",
            "tcp:b\u00fccher.example:80",
            "tcp:",
            "tcp:localhost",
            "nothing:1",
            "",
        ],
    )
    def test_rejected(self, turning: Turning, text: str) -> None:
        """What can't be dialled is an error at once."""
        with pytest.raises((ValueError, TypeError)):
            parse_upstream(turning.reactor, text)

    def test_text(self) -> None:
        """A name with its port reads as one would write it."""
        assert "localhost:80" == str(HostPort("localhost", 80))

    def test_error(self, turning: Turning) -> None:
        """A bad port is named."""
        with pytest.raises(AddressError, match="65536"):
            parse_upstream(turning.reactor, "tcp:192.0.2.1:65536")


class TestResolve:
    def resolved(self, turning: Turning, host: str) -> list[SocketAddress]:
        answers: list[list[SocketAddress]] = []
        reactor = cast("IReactorPluggableNameResolver", turning.reactor)
        resolve(reactor, HostPort(host, 80), answers.append)
        turning.until(lambda: answers)
        (answer,) = answers
        return answer

    def test_receiver(self) -> None:
        """Who takes the answers is what Twisted expects."""
        assert verifyObject(IResolutionReceiver, _Addresses(80, lambda _: None))

    def test_zone(self) -> None:
        """What is no address without its zone is left out, and the rest stays."""
        answers: list[list[SocketAddress]] = []
        receiver = _Addresses(80, answers.append)
        for host in ("fe80::1%lo", "::1"):
            receiver.addressResolved(IPv6Address("TCP", host, 80))
        receiver.resolutionComplete()
        assert [[SocketAddress("::1", 80)]] == answers

    def test_localhost(self, turning: Turning) -> None:
        """A name has its addresses, each once."""
        answer = self.resolved(turning, "localhost")
        assert SocketAddress("127.0.0.1", 80) in answer
        assert len(set(answer)) == len(answer)

    @pytest.mark.parametrize("host", ["no-such-name.invalid", "", "a" * 300, "x..y", "_\x00.x"])
    def test_unknown(self, turning: Turning, host: str) -> None:
        """A name without an address has none; nothing is raised."""
        assert [] == self.resolved(turning, host)
