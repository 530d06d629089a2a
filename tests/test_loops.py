from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from sidecar.addresses import SocketAddress
from sidecar.loops import LoopGuard

if TYPE_CHECKING:
    from collections.abc import Iterator


class Owner:
    """The owner of an upstream connection."""

    def looped(self) -> None:
        pass


@pytest.fixture
def guard() -> LoopGuard:
    return LoopGuard()


class TestLeadsBack:
    @pytest.mark.parametrize(
        ("listener", "destination", "expected"),
        [
            # The very address.
            ("127.0.0.1", "127.0.0.1", True),
            ("::1", "::1", True),
            # Everywhere: every address of this host, spelled as it may be.
            ("0.0.0.0", "127.0.0.1", True),
            ("0.0.0.0", "127.255.1.2", True),
            ("0.0.0.0", "0.0.0.0", True),
            ("::", "::1", True),
            ("::", "::", True),
            ("::", "127.0.0.1", True),
            ("::", "0.0.0.0", True),
            # Connecting to the unspecified address reaches loopback.
            ("127.0.0.1", "0.0.0.0", True),
            ("::1", "::", True),
            # Others.
            ("0.0.0.0", "192.0.2.1", False),
            ("::", "2001:db8::1", False),
            ("127.0.0.1", "127.0.0.2", False),
        ],
    )
    def test_by_address(
        self, guard: LoopGuard, listener: str, destination: str, expected: bool
    ) -> None:
        """A destination on one of our own ports leads back if the address does."""
        guard.add_listener(SocketAddress(listener, 15001))
        assert expected == guard.leads_back(SocketAddress(destination, 15001))
        assert not guard.leads_back(SocketAddress(destination, 15002))

    def test_mapped(self, guard: LoopGuard) -> None:
        """An IPv4-mapped spelling is the IPv4 address, from wherever it comes."""
        guard.add_listener(SocketAddress("127.0.0.1", 15001))
        assert guard.leads_back(SocketAddress.parse("[::ffff:127.0.0.1]:15001"))
        assert guard.leads_back(SocketAddress.from_kernel(("::ffff:127.0.0.1", 15001)))

    def test_nobody_listens(self, guard: LoopGuard) -> None:
        """Without a listener nothing leads back."""
        assert not guard.leads_back(SocketAddress("127.0.0.1", 15001))

    def test_removed(self, guard: LoopGuard) -> None:
        """A listener that is gone is forgotten; one of two stays."""
        address = SocketAddress("127.0.0.1", 15001)
        guard.add_listener(address)
        guard.add_listener(address)
        guard.remove_listener(address)
        assert guard.leads_back(address)
        guard.remove_listener(address)
        assert not guard.leads_back(address)


@pytest.fixture
def ours() -> Iterator[socket.socket]:
    """A socket with an address of its own."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


class TestUpstreams:
    DIALLED = SocketAddress("192.0.2.80", 443)
    OTHER = SocketAddress("192.0.2.81", 443)

    @pytest.fixture(autouse=True)
    def _transparent(self, guard: LoopGuard) -> None:
        guard.tracks_upstreams = True

    def test_owner(self, guard: LoopGuard, ours: socket.socket) -> None:
        """A connection between the addresses of one that we dialled is our own."""
        owner = Owner()
        local = SocketAddress.from_kernel(ours.getsockname())
        ends = guard.track(ours, self.DIALLED, owner)
        assert owner is guard.owner(local, self.DIALLED)
        assert guard.owner(SocketAddress(local.host, 1), self.DIALLED) is None
        guard.forget(ends)
        assert guard.owner(local, self.DIALLED) is None
        guard.forget(ends)

    def test_one_port_several_destinations(self, guard: LoopGuard, ours: socket.socket) -> None:
        """The kernel gives a port to several connections; each is known by both ends."""
        one, other = Owner(), Owner()
        local = SocketAddress.from_kernel(ours.getsockname())
        ends = guard.track(ours, self.DIALLED, one)
        guard.track(ours, self.OTHER, other)
        assert one is guard.owner(local, self.DIALLED)
        assert other is guard.owner(local, self.OTHER)
        assert guard.owner(local, SocketAddress("192.0.2.82", 443)) is None
        guard.forget(ends)
        assert other is guard.owner(local, self.OTHER)

    @pytest.mark.parametrize(("dialled", "reached"), [("0.0.0.0", "127.0.0.1"), ("::", "::1")])
    def test_unspecified(
        self, guard: LoopGuard, ours: socket.socket, dialled: str, reached: str
    ) -> None:
        """What is dialled at no address is a connection to loopback."""
        owner = Owner()
        local = SocketAddress.from_kernel(ours.getsockname())
        guard.track(ours, SocketAddress(dialled, 80), owner)
        assert owner is guard.owner(local, SocketAddress(reached, 80))

    def test_of_no_interest(self, guard: LoopGuard, ours: socket.socket) -> None:
        """Where nothing could come back, or nobody knows where to, nothing is kept."""
        assert guard.track(ours, None, Owner()) is None
        guard.tracks_upstreams = False
        assert guard.track(ours, self.DIALLED, Owner()) is None
        guard.forget(None)
