"""An upstream that is dialled while its client is still being listened to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.errors import DialError
from sidecar.relay.poller import READ

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from sidecar.addresses import SocketAddress
    from sidecar.dialing import Dial
    from sidecar.loops import Ends
    from sidecar.runtime import Runtime

__all__ = ["EarlyUpstream"]


class EarlyUpstream:
    """A connection that waits to be taken, and tells if the server speaks meanwhile.

    Only what would be allowed as it stands is dialled like this. If the dial fails,
    nobody is told: whoever needs the upstream dials again, and reports that.

    Args:
        runtime: Whose dialer is used.
        address: Where to.
        spoke: Called once, when the server has said something, or has gone.
        looped: Called if the connection came back to one of our own listeners.
    """

    __slots__ = ("_dial", "_ends", "_runtime", "_sock", "_spoke", "looped")

    def __init__(
        self,
        runtime: Runtime,
        address: SocketAddress,
        spoke: Callable[[], None],
        looped: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._spoke = spoke
        self.looped = looped
        self._sock: socket.socket | None = None
        self._ends: Ends | None = None
        self._dial: Dial | None = None
        self._dial = runtime.dialer.dial(address, self._connected)

    def _connected(self, outcome: socket.socket | DialError, address: SocketAddress) -> None:
        self._dial = None
        if isinstance(outcome, DialError):
            return
        self._sock = outcome
        self._ends = self._runtime.guard.track(outcome, address, self)
        self._runtime.poller.register(outcome.fileno(), READ, self)

    def ready(self, events: int) -> None:  # noqa: ARG002 - data, end and error all count
        """The server speaks first."""
        if self._sock is not None:
            # Once is enough; what it said is the relay's to read.
            self._runtime.poller.modify(self._sock.fileno(), 0)
            self._spoke()

    def failed(self) -> None:
        """A bug in whoever was called; it drops us."""

    def shut_down(self) -> None:
        """The process ends: whoever owns us is told, and drops us."""

    def take(self) -> socket.socket | None:
        """Give the connection away; None if there is none yet, and then there never is."""
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        sock, self._sock = self._sock, None
        if sock is not None:
            self._runtime.poller.unregister(sock.fileno())
            self._runtime.guard.forget(self._ends)
        return sock

    def drop(self) -> None:
        """Close the connection, if there is one."""
        sock = self.take()
        if sock is not None:
            sock.close()
