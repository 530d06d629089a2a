"""Which connections would come back to this very process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sidecar.linux.sockopt import is_local_address

if TYPE_CHECKING:
    from sidecar.addresses import SocketAddress

__all__ = ["LoopGuard", "Looped"]

_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


class Looped(Protocol):
    """The owner of an upstream connection."""

    def looped(self) -> None:
        """Its connection came back to one of our own listeners: end it."""


class LoopGuard:
    """Knows our own listeners and our own upstream connections.

    The listeners tell of loops that can be seen before dialling: a destination on a
    local address and one of our ports. The upstream connections tell of the others:
    interception rules that catch the proxy's own connections bring them back with
    their source unchanged.

    Attributes:
        tracks_upstreams: Whether upstream connections are of interest: only a
            transparent listener can get one of them back.
    """

    def __init__(self) -> None:
        self.tracks_upstreams = False
        self._listeners: list[SocketAddress] = []
        self._upstreams: dict[SocketAddress, Looped] = {}

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

    def add_upstream(self, local: SocketAddress, owner: Looped) -> None:
        """Take note of the local address of a connection that we dialled."""
        self._upstreams[local] = owner

    def remove_upstream(self, local: SocketAddress) -> None:
        """Forget such an address; unknown ones are ignored."""
        self._upstreams.pop(local, None)

    def owner(self, source: SocketAddress) -> Looped | None:
        """Who dialled the connection whose source this is; None if it wasn't us."""
        return self._upstreams.get(source)
