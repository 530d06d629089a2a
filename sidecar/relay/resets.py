"""When may a connection be reset: once its peer has what was sent before.

close() with SO_LINGER zero sends RST and throws away whatever the kernel still
holds for the peer, so a relay that resets at once loses the bytes that came
before the other side's reset.
"""

from __future__ import annotations

import select
from contextlib import suppress
from typing import TYPE_CHECKING

from sidecar.linux.sockopt import reset_on_close, unacknowledged
from sidecar.relay.poller import ERROR, HANGUP

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from sidecar.relay.poller import Poller

__all__ = ["ResetWhenSent", "SendQueueWatch", "reset"]

# Seconds. Linux tells nobody when a send queue runs empty (EPOLLOUT means "a third
# is free"), so this is one of the few places that must ask again: soon at first,
# since a healthy peer acknowledges within a round trip, then twice as long each time.
_FIRST_WAIT = 0.001
_LONGEST_WAIT = 0.25
# Seconds. A peer that has not taken the bytes by then loses them: it isn't reading,
# and its connection must not be held for ever.
_GIVE_UP = 5.0


def reset(connection: socket.socket) -> None:
    """Close a connection with RST at once; unsent bytes are lost."""
    # The kernel refuses options on a connection that is already gone.
    with suppress(OSError):
        reset_on_close(connection)
    connection.close()


def _was_reset(fd: int) -> bool:
    """Whether a connection is in error, which leaves its send queue as it is."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


class SendQueueWatch:
    """Calls back when a TCP connection's peer has acknowledged everything, or never will.

    Args:
        clock: For the waits.
        fd: The socket; must stay open until the call or `cancel`.
        sent: Called once; before the constructor returns if there is nothing to wait for.
    """

    __slots__ = ("_call", "_clock", "_fd", "_sent", "_wait", "_waited")

    def __init__(self, clock: IReactorTime, fd: int, sent: Callable[[], None]) -> None:
        self._clock = clock
        self._fd = fd
        self._sent = sent
        self._wait = _FIRST_WAIT
        self._waited = 0.0
        self._call: IDelayedCall | None = None
        self._look()

    def _look(self) -> None:
        self._call = None
        if unacknowledged(self._fd) == 0 or self._waited >= _GIVE_UP or _was_reset(self._fd):
            self._sent()
            return
        self._call = self._clock.callLater(self._wait, self._look)
        self._waited += self._wait
        self._wait = min(self._wait * 2, _LONGEST_WAIT)

    def cancel(self) -> None:
        """Call nobody."""
        if self._call is not None:
            self._call.cancel()
            self._call = None


class ResetWhenSent:
    """A connection on its way to be reset.

    Args:
        clock: For the waits.
        poller: Watches the connection already; unregistered when all is over.
        connection: Ours from here on.
        done: Called once, when the connection is closed.
    """

    __slots__ = ("_connection", "_done", "_poller", "_watch", "_watched")

    def __init__(
        self,
        clock: IReactorTime,
        poller: Poller,
        connection: socket.socket,
        done: Callable[[], None],
    ) -> None:
        self._poller = poller
        self._connection = connection
        self._done = done
        self._watch: SendQueueWatch | None = None
        self._watched = True
        fd = connection.fileno()
        poller.transfer(fd, 0, self)
        watch = SendQueueWatch(clock, fd, self.failed)
        if connection.fileno() != -1:
            self._watch = watch

    def ready(self, events: int) -> None:
        """The connection is over; after a reset nothing is left to wait for."""
        if events & ERROR:
            self.failed()
        elif events & HANGUP and self._watched:
            # FIN both ways is reported without end, and says nothing of our bytes.
            self._watched = False
            self._poller.unregister(self._connection.fileno())

    def failed(self) -> None:
        """Reset now."""
        if self._watch is not None:
            self._watch.cancel()
        if self._watched:
            self._poller.forget(self._connection.fileno())
        reset(self._connection)
        self._done()

    def shut_down(self) -> None:
        """The process ends: reset now."""
        if self._connection.fileno() != -1:
            self.failed()
