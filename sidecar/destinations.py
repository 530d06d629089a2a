"""Where an intercepted connection wanted to go, and which mechanism says so."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from sidecar.addresses import SocketAddress
from sidecar.flow import DestinationSource
from sidecar.linux.sockopt import is_local_address, original_destination

if TYPE_CHECKING:
    import socket

__all__ = ["DestinationFinder", "InterceptMode", "NotIntercepted", "OriginalDestination"]


class InterceptMode(Enum):
    """Which mechanisms a transparent listener expects."""

    AUTO = "auto"
    REDIRECT = "redirect"
    TPROXY = "tproxy"


class OriginalDestination(msgspec.Struct, frozen=True, gc=False):
    """Where the client wanted to go.

    Attributes:
        address: The address it dialled.
        found_by: The mechanism that told.
    """

    address: SocketAddress
    found_by: DestinationSource


class NotIntercepted(msgspec.Struct, frozen=True, gc=False):
    """A connection that no rule brought here: somebody dialled the listener itself.

    A redirected connection whose conntrack entry was flushed before it was accepted
    looks the same, and there is no telling where it wanted to go.

    Attributes:
        address: The listener's address that was dialled.
    """

    address: SocketAddress


class DestinationFinder:
    """Knows the original destination of the connections of one listener.

    TPROXY leaves the destination in the socket itself, REDIRECT in conntrack. What
    conntrack says of a TPROXY connection can be stale or from before a DNAT, so the
    socket is asked first: where it names another port than the listener's, only
    TPROXY can have brought the connection.

    Args:
        mode: Which mechanisms to expect.
        port: The listener's.
        transparent: Whether the listener has IP_TRANSPARENT.

    Attributes:
        port: The listener's.
    """

    def __init__(self, mode: InterceptMode, port: int, *, transparent: bool) -> None:
        self.port = port
        self._tproxy = transparent and mode is not InterceptMode.REDIRECT
        self._redirect = mode is not InterceptMode.TPROXY

    def find(
        self, connection: socket.socket, source: SocketAddress
    ) -> OriginalDestination | NotIntercepted:
        """Ask the kernel; to be done before anything else with the connection.

        Args:
            connection: Just accepted; its peer may have reset it already.
            source: The peer's address, unwrapped.
        """
        local = SocketAddress.from_kernel(connection.getsockname())
        if self._tproxy and local.port != self.port:
            return OriginalDestination(local, DestinationSource.TPROXY)
        if self._redirect:
            try:
                # The peer's family, never the socket's: see sockopt.
                original = original_destination(connection, ":" not in source.host)
            except OSError:
                # ENOENT, EOPNOTSUPP, ENOPROTOOPT: conntrack has no such connection,
                # so nothing has redirected it.
                original = local
            if original != local:
                return OriginalDestination(original, DestinationSource.REDIRECT)
        if self._tproxy and not is_local_address(local.host):
            # Somebody else's host, at a port that happens to be our listener's.
            return OriginalDestination(local, DestinationSource.TPROXY)
        return NotIntercepted(local)
