"""Asking the host's name servers: so many questions at once, the same one only once."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from sidecar.dns.asking import Asking, Trouble
from sidecar.names.sharing import Waiters

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from sidecar.dns.asking import IAskingReactor, Outcome
    from sidecar.dns.messages import Question
    from sidecar.dns.resolvconf import NameServer
    from sidecar.relay.poller import Poller

    _Key = tuple[bytes, int, bool, bool, bool]

__all__ = ["Forwarder"]

# Questions at once; each has a descriptor, rarely two or three.
_AT_ONCE = 128
# Questions that wait for a place. At 20 ms each the last one waits 0.2 s.
_QUEUE = 1024
# For each of these, those who ask the same and wait along: more than programs have threads.
_ALONG = 4
# Seconds for one question. glibc asks again after five and gives up after ten; whoever
# answers before learns at once that there is no answer.
_DEADLINE = 4.5


class Forwarder:
    """Asks the host's name servers.

    Args:
        reactor: For the waits.
        poller: Watches the sockets.
        servers: Tells whom to ask now; at least one.
        at_once: How many questions at once.
        queue: How many may wait for a place.
        deadline: Seconds for one question, waiting included.
    """

    def __init__(
        self,
        reactor: IAskingReactor,
        poller: Poller,
        servers: Callable[[], Sequence[NameServer]],
        *,
        at_once: int = _AT_ONCE,
        queue: int = _QUEUE,
        deadline: float = _DEADLINE,
    ) -> None:
        self._reactor = reactor
        self._poller = poller
        self._servers = servers
        self._at_once = at_once
        self._queue = queue
        self._deadline = deadline
        self._waiters: dict[_Key, Waiters[Outcome]] = {}
        self._asking: dict[_Key, Asking] = {}
        self._queued: deque[tuple[_Key, Question, float]] = deque()
        self._waiting = 0
        self._closed = False

    def ask(self, question: Question) -> Deferred[Outcome]:
        """Ask a question; those who ask the same meanwhile get the same answer.

        Returns:
            Fires with the answer, whatever its rcode, or the trouble. Never fails.
        """
        key = (
            question.name,
            question.type,
            question.dnssec,
            question.unchecked,
            question.authentic,
        )
        busy = self._waiting >= _ALONG * (self._at_once + self._queue)
        waiters = self._waiters.get(key)
        if waiters is not None and not busy:
            return self._count(waiters.join())
        waiters = Waiters(partial(self._abandoned, key))
        waiting = self._count(waiters.join())
        if busy:
            waiters.answer(Trouble.BUSY)
        elif self._closed:
            waiters.answer(Trouble.STOPPED)
        elif len(self._asking) < self._at_once:
            self._waiters[key] = waiters
            self._start(key, question, self._deadline)
        elif len(self._queued) < self._queue:
            self._waiters[key] = waiters
            self._queued.append((key, question, self._reactor.seconds()))
        else:
            waiters.answer(Trouble.BUSY)
        return waiting

    def _count(self, waiting: Deferred[Outcome]) -> Deferred[Outcome]:
        """Know how many wait, whatever for."""

        def ended(outcome: Outcome | Failure) -> Outcome | Failure:
            self._waiting -= 1
            return outcome

        self._waiting += 1
        return waiting.addBoth(ended)

    def close(self) -> None:
        """Ask nobody any more; who waits is told."""
        self._closed = True
        self._queued.clear()
        for asking in self._asking.values():
            asking.stop()
        self._asking.clear()
        waiting = list(self._waiters.values())
        self._waiters.clear()
        for waiters in waiting:
            waiters.answer(Trouble.STOPPED)

    def _start(self, key: _Key, question: Question, deadline: float) -> None:
        asking = Asking(
            self._reactor,
            self._poller,
            question,
            self._servers(),
            deadline,
            partial(self._ended, key),
        )
        self._asking[key] = asking
        asking.start()

    def _ended(self, key: _Key, outcome: Outcome) -> None:
        self._asking.pop(key, None)
        waiters = self._waiters.pop(key, None)
        self._go_on()
        if waiters is not None:
            waiters.answer(outcome)

    def _go_on(self) -> None:
        while self._queued and len(self._asking) < self._at_once:
            key, question, since = self._queued.popleft()
            if key not in self._waiters:
                continue
            left = self._deadline - (self._reactor.seconds() - since)
            if left > 0:
                self._start(key, question, left)
            else:
                self._waiters.pop(key).answer(Trouble.TIMEOUT)

    def _abandoned(self, key: _Key) -> None:
        self._waiters.pop(key, None)
        asking = self._asking.pop(key, None)
        if asking is not None:
            asking.stop()
            self._go_on()
