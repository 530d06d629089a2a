"""Which of many sockets are ready: one epoll of our own inside the reactor's.

The reactor spends several microseconds on every event of every descriptor it
watches (log context, method look-ups, bookkeeping at each addReader). A relay
has two sockets and changes its mind often, so all of them sit in one epoll
instance, and the reactor watches only that one: epoll descriptors are pollable
(epoll(7)), and any reactor with addReader will do.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Protocol

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from sidecar.interfaces import IRelayReactor

__all__ = ["ERROR", "HANGUP", "READ", "WRITE", "Pollable", "Poller"]

READ: int = select.EPOLLIN
WRITE: int = select.EPOLLOUT
# Both are reported whether asked for or not, and without end (epoll_ctl(2)).
# HANGUP means FIN both ways or a reset; only ERROR tells which.
ERROR: int = select.EPOLLERR
HANGUP: int = select.EPOLLHUP

# Events taken at a time: enough that a busy proxy rarely comes back for more,
# few enough that the reactor's timers and other descriptors get their turn.
_EVENTS_PER_WAKEUP = 256


class Pollable(Protocol):
    """Something with a descriptor in a `Poller`."""

    def ready(self, events: int) -> None:
        """React to readiness.

        Must tolerate being called with nothing ready: descriptor numbers are
        reused, and an event may have been meant for their previous owner.

        Args:
            events: READ, WRITE, ERROR and HANGUP bits.
        """

    def failed(self) -> None:
        """End at once: `ready` raised, which is a bug that has been logged."""

    def shut_down(self) -> None:
        """End at once: the process ends. May be called after the end, too."""


@implementer(IReadDescriptor)
class Poller:
    """Level-triggered readiness of many descriptors, as one reader of the reactor.

    Args:
        reactor: Watches the epoll descriptor from now until `close`; for `soon`.

    Attributes:
        wards: To be shut down with the others, though Twisted watches for them.
        modify: ``modify(fd, events)`` changes what a watched descriptor is
            watched for; epoll's own method, since it is called so often.
    """

    _log = Logger()
    modify: Callable[[int, int], None]

    def __init__(self, reactor: IRelayReactor) -> None:
        self._reactor = reactor
        self._due: list[Callable[[], None]] = []
        # Whether somebody comes by to call what is due: the batch at hand, the reactor.
        self._attended = False
        self._turn: IDelayedCall | None = None
        self._epoll = select.epoll()
        self._pollables: dict[int, Pollable] = {}
        self.wards: set[Pollable] = set()
        self.modify = self._epoll.modify
        reactor.addReader(self)

    def register(self, fd: int, events: int, pollable: Pollable) -> None:
        """Watch a descriptor.

        Args:
            fd: Open; registered once at most, and unregistered before its close.
            events: READ, WRITE, both or 0; errors are reported in any case.
            pollable: Whom to tell.
        """
        self._epoll.register(fd, events)
        self._pollables[fd] = pollable

    def transfer(self, fd: int, events: int, pollable: Pollable) -> None:
        """Give a watched descriptor another mask and another owner."""
        self._epoll.modify(fd, events)
        self._pollables[fd] = pollable

    def unregister(self, fd: int) -> None:
        """Stop watching a descriptor that stays open."""
        del self._pollables[fd]
        self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor that is about to be closed.

        The kernel takes a closed descriptor out of the epoll set by itself where, as
        here, nothing else refers to the socket (epoll(7)): a system call spared.
        """
        del self._pollables[fd]

    def pollables(self) -> list[Pollable]:
        """Everything that is watched now, and the wards."""
        return [*self._pollables.values(), *self.wards]

    def descriptors(self) -> list[int]:
        """Those that are watched now."""
        return list(self._pollables)

    def soon(self, call: Callable[[], None]) -> None:
        """Call when everybody who is being told of events has returned.

        That is after the batch of events at hand, or in the reactor's next turn where
        there is none; at `close` at the latest. In the order of the requests.

        Args:
            call: What it raises is logged.
        """
        if not self._attended:
            self._attended = True
            self._turn = self._reactor.callLater(0, self._turned)
        self._due.append(call)

    def _turned(self) -> None:
        self._turn = None
        self._call_due()

    def _call_due(self) -> None:
        self._attended = True
        while self._due:
            due, self._due = self._due, []
            for call in due:
                try:
                    call()
                except Exception:  # noqa: BLE001, PERF203 - likewise
                    self._log.failure("bug in a connection's handler")
        self._attended = self._turn is not None

    def close(self) -> None:
        """Stop watching anything; the descriptors themselves stay open."""
        if self._epoll.closed:
            return
        self._call_due()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._reactor.removeReader(self)
        self._pollables.clear()
        self.wards.clear()
        self._epoll.close()

    def doRead(self) -> None:
        """Take what is ready and tell the owners."""
        pollables = self._pollables
        self._attended = True
        for fd, events in self._epoll.poll(0, _EVENTS_PER_WAKEUP):
            pollable = pollables.get(fd)
            if pollable is None:
                continue
            try:
                pollable.ready(events)
            except Exception:  # noqa: BLE001 - one connection's bug must not end the others
                self._log.failure("bug in a connection's handler; the connection is closed")
                pollable.failed()
        if self._due:
            self._call_due()
        else:
            self._attended = self._turn is not None

    def fileno(self) -> int:
        """The epoll descriptor, -1 once closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def logPrefix(self) -> str:
        """What the reactor's log context calls us."""
        return "sidecar"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor lets go of us; it is stopping."""
