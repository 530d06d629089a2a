"""Which connections would come back to this very process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sidecar.addresses import SocketAddress
from sidecar.linux.sockopt import is_local_address

if TYPE_CHECKING:
    import socket

__all__ = ["Ends", "LoopGuard", "Looped"]

# A connection's local address, and where it is connected to.
Ends = tuple[SocketAddress, SocketAddress]

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


class Looped(Protocol):
    """The owner of an upstream connection."""

    def looped(self) -> None:
        """Its connection came back to one of our own listeners: end it."""


class LoopGuard:
    """Knows our own listeners and our own upstream connections.

    The listeners tell of loops that can be seen before dialling: a destination on a
    local address and one of our ports. The upstream connections tell of the others:
    interception rules that catch the proxy's own connections bring them back with
    their source and their destination unchanged. (The source alone won't do: the kernel
    gives one local port to several connections where their destinations differ, so a
    client on our own address may have the port of one of our upstreams.)

    Attributes:
        tracks_upstreams: Whether upstream connections are of interest: only a
            transparent listener can get one of them back.
    """

    def __init__(self) -> None:
        self.tracks_upstreams = False
        self._listeners: list[SocketAddress] = []
        self._upstreams: dict[Ends, Looped] = {}

    def add_listener(self, address: SocketAddress) -> None:
        """Take note of an address that we accept connections on."""
        self._listeners.append(address)

    def remove_listener(self, address: SocketAddress) -> None:
        """Forget such an address."""
        self._listeners.remove(address)

    def leads_back(self, destination: SocketAddress) -> bool:
        """Whether dialling this address would reach one of our own listeners."""
        for listener in self._listeners:
            if listener.port != destination.port:
                continue
            if destination.host in _WILDCARDS or destination.host == listener.host:
                return True
            if listener.host in _WILDCARDS and is_local_address(destination.host):
                return True
        return False

    def track(
        self, sock: socket.socket, dialled: SocketAddress | None, owner: Looped
    ) -> Ends | None:
        """Take note of a connection of ours, where it is of interest.

        Args:
            sock: It; connected.
            dialled: Where to; None where that is no address.
            owner: Told if it comes back.

        Returns:
            What `forget` takes once it is over.
        """
        if not self.tracks_upstreams or dialled is None:
            return None
        ends = SocketAddress.from_kernel(sock.getsockname()), _connected_to(dialled)
        self._upstreams[ends] = owner
        return ends

    def forget(self, ends: Ends | None) -> None:
        """A connection that was tracked is over; any other is ignored."""
        if ends is not None:
            self._upstreams.pop(ends, None)

    def owner(self, source: SocketAddress, destination: SocketAddress) -> Looped | None:
        """Who dialled the connection between these two; None if it wasn't us."""
        return self._upstreams.get((source, destination))


def _connected_to(dialled: SocketAddress) -> SocketAddress:
    """Where a connection goes that was to go to an unspecified address: to loopback (ip(7))."""
    loopback = _WILDCARDS.get(dialled.host)
    return dialled if loopback is None else SocketAddress(loopback, dialled.port)
