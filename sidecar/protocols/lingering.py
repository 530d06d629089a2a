"""How long a client that was told of its denial is heard out before its connection closes.

Closing with bytes unread, or before more of them arrive, is a reset, and a reset takes
the answer away from a client that hasn't read it yet: one that uploads, say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.relay.poller import READ

if TYPE_CHECKING:
    import socket

    from twisted.internet.interfaces import IDelayedCall

    from sidecar.runtime import Runtime

__all__ = ["LINGER_BYTES", "LINGER_CONNECTIONS", "LINGER_SECONDS", "Lingerers"]

LINGER_SECONDS = 5.0
"""For how long a client is heard out: many round trips, and one lost packet or two."""

LINGER_BYTES = 16 << 20
"""How much of an upload is read: more than a fast client sends before the answer comes back."""

LINGER_CONNECTIONS = 256
"""How many clients are heard out at once. They are no open flows any more, so what limits
those doesn't count them; these few descriptors are within the tenth that it leaves free."""

# What all of them say, one over the other; nobody looks at it.
_SIZE = 1 << 16


class Lingerers:
    """The connections that are being heard out.

    Args:
        most: How many at once; beyond it, a connection is closed at once.
    """

    __slots__ = ("_most", "_view", "count")

    def __init__(self, most: int = LINGER_CONNECTIONS) -> None:
        self._most = most
        self._view: memoryview | None = None
        self.count = 0

    def linger(self, runtime: Runtime, connection: socket.socket) -> None:
        """Read until the client has said its last byte, then close.

        Args:
            runtime: Whose poller and clock are used.
            connection: Non-blocking, its own FIN sent; closed here.
        """
        if self.count >= self._most:
            connection.close()
            return
        if self._view is None:
            self._view = memoryview(bytearray(_SIZE))
        _Lingerer(self, runtime, connection, self._view)


class _Lingerer:
    """One of them."""

    __slots__ = ("_all", "_connection", "_fd", "_left", "_runtime", "_timer", "_view")

    def __init__(
        self, others: Lingerers, runtime: Runtime, connection: socket.socket, view: memoryview
    ) -> None:
        self._all = others
        self._runtime = runtime
        self._connection = connection
        self._fd = connection.fileno()
        self._view = view
        self._left = LINGER_BYTES
        others.count += 1
        runtime.poller.register(self._fd, READ, self)
        self._timer: IDelayedCall | None = runtime.reactor.callLater(LINGER_SECONDS, self._late)

    def ready(self, events: int) -> None:
        """The client says more, or is done."""
        if events & READ:
            try:
                count = self._connection.recv_into(self._view)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            self._left -= count
            if count and self._left > 0:
                return
        self._close()

    def failed(self) -> None:
        """A bug in `ready`."""
        self._close()

    def shut_down(self) -> None:
        """The process ends."""
        self._close()

    def _late(self) -> None:
        self._timer = None
        self._end()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._end()

    def _end(self) -> None:
        self._all.count -= 1
        self._runtime.poller.forget(self._fd)
        self._connection.close()
