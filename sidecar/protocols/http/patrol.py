"""When is a connection looked at, to see whether it takes too long? All by one timer.

Nothing is set or cancelled as requests come and go: a connection says how things stand
when it is looked at. Each is looked at once a round, so that a limit of ten seconds is
kept to within a quarter of it, and ten thousand idle connections cost a few milliseconds
a second.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from twisted.logger import Logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["Patrol", "Watched"]

# Of the shortest limit.
_SHARE = 0.25
# Seconds: often enough to be punctual, seldom enough to be cheap.
_SHORTEST_ROUND = 0.02
_LONGEST_ROUND = 2.5
# Of a round: how long the timer waits at least, so that it doesn't run for each one.
_TICK = 0.1


class Watched(Protocol):
    """Something that may take too long."""

    def look(self, now: float) -> None:
        """See whether something is overdue.

        Args:
            now: Seconds, as `time.monotonic`.
        """


class Patrol:
    """Looks at everything in turn.

    Args:
        clock: For the one timer.
        limits: The limits, in seconds, that are to be kept.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, limits: tuple[float, ...]) -> None:
        self._clock = clock
        self.round = min(max(min(limits) * _SHARE, _SHORTEST_ROUND), _LONGEST_ROUND)
        # All wait equally long for their turn, so the first is always the next one.
        self._turns: dict[Watched, float] = {}
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._turns)

    def add(self, watched: Watched) -> None:
        """Look at it from now on."""
        self._turns[watched] = time.monotonic() + self.round
        if self._timer is None:
            self._timer = self._clock.callLater(self.round, self._look)

    def discard(self, watched: Watched) -> None:
        """Look at it no more; unknown ones are ignored."""
        self._turns.pop(watched, None)

    def close(self) -> None:
        """Stop the timer, if nobody is left."""
        if self._timer is not None and not self._turns:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        # Set until the end, so that what is added meanwhile starts no second timer.
        now = time.monotonic()
        turns = self._turns
        while turns:
            watched, turn = next(iter(turns.items()))
            if turn > now:
                wait = max(turn - now, self.round * _TICK)
                self._timer = self._clock.callLater(wait, self._look)
                return
            del turns[watched]
            turns[watched] = now + self.round
            try:
                watched.look(now)
            except Exception:  # noqa: BLE001 - one connection's bug must not keep the others
                self._log.failure("bug in a connection's deadline")
        self._timer = None
