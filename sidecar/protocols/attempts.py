"""Which of several addresses answers: they are dialled one after another, by one deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.errors import ConnectionTimeout, DialError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

    from sidecar.addresses import SocketAddress
    from sidecar.dialing import Dial, Source
    from sidecar.runtime import Runtime

    DialDone = Callable[[socket.socket | DialError, SocketAddress], None]

__all__ = ["Attempts"]


class Attempts:
    """The dials of several addresses.

    All of them together have as long as one dial has alone. Each may take an equal part
    of what is left of that, so that a silent address leaves time for the others.

    Args:
        runtime: Whose dialer and clock are used.
        addresses: At least one; in this order.
        source: Where from; None leaves it to the kernel.
        done: Called once, with the first connection made, or with the last error, and
            with its address; perhaps before this returns.

    Attributes:
        pending: Whether `done` is yet to be called.
    """

    __slots__ = ("_dial", "_done", "_left", "_runtime", "_source", "_timer", "_until", "pending")

    def __init__(
        self,
        runtime: Runtime,
        addresses: tuple[SocketAddress, ...],
        source: Source | None,
        done: DialDone,
    ) -> None:
        self._runtime = runtime
        self._left = addresses
        self._source = source
        self._done = done
        self._dial: Dial | None = None
        self._timer: IDelayedCall | None = None
        self._until = runtime.reactor.seconds() + runtime.limits.connect_timeout
        self.pending = True
        self._next()

    def cancel(self) -> None:
        """Give up; `done` is not called."""
        self.pending = False
        self._stop()

    def _next(self) -> None:
        address, *left = self._left
        self._left = tuple(left)
        runtime = self._runtime
        dial = runtime.dialer.dial(address, self._dialled, self._source)
        if dial is None:
            # `_dialled` has been called, and may have begun another.
            return
        self._dial = dial
        part = max(0.0, self._until - runtime.reactor.seconds()) / (len(left) + 1)
        self._timer = runtime.reactor.callLater(part, self._too_late, address, part)

    def _too_late(self, address: SocketAddress, part: float) -> None:
        self._timer = None
        self._stop()
        self._dialled(ConnectionTimeout(str(address), f"no answer within {part:g} s"), address)

    def _dialled(self, outcome: socket.socket | DialError, address: SocketAddress) -> None:
        self._dial = None
        self._stop()
        if isinstance(outcome, DialError) and self._left:
            self._next()
        else:
            self.pending = False
            self._done(outcome, address)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
