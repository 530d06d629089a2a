from __future__ import annotations

import pytest

from sidecar.addresses import SocketAddress
from sidecar.loops import LoopGuard


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


class TestUpstreams:
    def test_owner(self, guard: LoopGuard) -> None:
        """A connection between the addresses of one that we dialled is our own."""
        owner = Owner()
        local = SocketAddress("192.0.2.7", 40000)
        dialled = SocketAddress("192.0.2.80", 443)
        guard.add_upstream(local, dialled, owner)
        assert owner is guard.owner(SocketAddress("192.0.2.7", 40000), dialled)
        assert guard.owner(SocketAddress("192.0.2.7", 40001), dialled) is None
        guard.remove_upstream(local, dialled)
        assert guard.owner(local, dialled) is None
        guard.remove_upstream(local, dialled)

    def test_one_port_several_destinations(self, guard: LoopGuard) -> None:
        """The kernel gives a port to several connections; each is known by both ends."""
        one, other = Owner(), Owner()
        local = SocketAddress("192.0.2.7", 40000)
        first, second = SocketAddress("192.0.2.80", 443), SocketAddress("192.0.2.81", 443)
        guard.add_upstream(local, first, one)
        guard.add_upstream(local, second, other)
        assert one is guard.owner(local, first)
        assert other is guard.owner(local, second)
        assert guard.owner(local, SocketAddress("192.0.2.82", 443)) is None
        guard.remove_upstream(local, first)
        assert other is guard.owner(local, second)

    @pytest.mark.parametrize(("dialled", "reached"), [("0.0.0.0", "127.0.0.1"), ("::", "::1")])
    def test_unspecified(self, guard: LoopGuard, dialled: str, reached: str) -> None:
        """What is dialled at no address is a connection to loopback."""
        owner = Owner()
        local = SocketAddress(reached, 40000)
        guard.add_upstream(local, SocketAddress(dialled, 80), owner)
        assert owner is guard.owner(local, SocketAddress(reached, 80))
