"""How a server inside is reached from outside: by sockets that were made there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.errors import ConnectionRefused, DestinationUnroutable, DialError
from sidecar.interfaces import ICancellable, IUpstream
from sidecar.sandbox.addresses import LOOPBACK

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from sidecar.dialing import Dial
    from sidecar.runtime import Runtime
    from sidecar.sandbox.sockets import SocketsInside

    Done = Callable[[socket.socket | DialError, SocketAddress | None], None]

__all__ = ["InsideUpstream"]


@implementer(IUpstream)
class InsideUpstream:
    """A port of the sandbox's loopback: over IPv4, or if nobody listens there, over IPv6.

    Args:
        runtime: Whose dialer is used.
        sockets: Asked for those that are connected.
        port: The port.
    """

    def __init__(self, runtime: Runtime, sockets: SocketsInside, port: int) -> None:
        self._runtime = runtime
        self._sockets = sockets
        self._addresses = tuple(SocketAddress(host, port) for host in LOOPBACK)

    def reach(self, done: Done) -> ICancellable | None:
        """Connect (IUpstream)."""
        attempt = _Attempt(self._runtime, self._sockets, self._addresses, done)
        return attempt if attempt.pending else None


@implementer(ICancellable)
class _Attempt:
    """One connection.

    Args:
        runtime: Whose dialer is used.
        sockets: Asked for a socket for each address.
        addresses: Tried in turn.
        done: As for `IUpstream.reach`.

    Attributes:
        pending: Whether `done` is yet to be called.
    """

    __slots__ = ("_done", "_left", "_runtime", "_sockets", "_step", "pending")

    def __init__(
        self,
        runtime: Runtime,
        sockets: SocketsInside,
        addresses: tuple[SocketAddress, ...],
        done: Done,
    ) -> None:
        self._runtime = runtime
        self._sockets = sockets
        self._left = addresses
        self._done = done
        self._step: ICancellable | Dial | None = None
        self.pending = True
        self._next()

    def cancel(self) -> None:
        """Give up."""
        self.pending = False
        if self._step is not None:
            self._step.cancel()
            self._step = None

    def _next(self) -> None:
        address, *left = self._left
        self._left = tuple(left)

        def made(outcome: socket.socket | OSError) -> None:
            self._step = None
            if isinstance(outcome, OSError):
                problem = f"no socket inside: {outcome.strerror}"
                self._dialled(DestinationUnroutable(str(address), problem), address)
                return
            dial = self._runtime.dialer.dial_with(outcome, address, self._dialled)
            if dial is not None:
                self._step = dial

        question = self._sockets.ask(address.family, made)
        # Which may have been answered at once, and led on.
        if self._step is None and self.pending:
            self._step = question

    def _dialled(self, outcome: socket.socket | DialError, address: SocketAddress) -> None:
        self._step = None
        if isinstance(outcome, ConnectionRefused) and self._left:
            self._next()
            return
        self.pending = False
        self._done(outcome, address)
