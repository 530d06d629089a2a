"""How one answer serves many: those who wait for it, and those who ask soon after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime

__all__ = ["Recent", "Waiters"]

K = TypeVar("K")
V = TypeVar("V")


class Waiters(Generic[V]):
    """Those who wait for one answer.

    Args:
        abandoned: Called when the last one has given up waiting.
    """

    __slots__ = ("_abandoned", "_waiting")

    def __init__(self, abandoned: Callable[[], None]) -> None:
        self._abandoned = abandoned
        # In the order in which they came; there is no ordered set.
        self._waiting: dict[Deferred[V], None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self) -> Deferred[V]:
        """Wait, too. Cancelling the Deferred gives up, and is felt by nobody else."""
        waiting: Deferred[V] = Deferred(self._leave)
        self._waiting[waiting] = None
        return waiting

    def _leave(self, waiting: Deferred[V]) -> None:
        # One that is cancelled while the others are being answered is no longer here.
        if self._waiting.pop(waiting, self) is None and not self._waiting:
            self._abandoned()

    def answer(self, answer: V | Exception) -> None:
        """Answer them all; those who join meanwhile wait for the next answer."""
        waiting, self._waiting = self._waiting, {}
        for each in waiting:
            if each.called:
                continue
            if isinstance(answer, Exception):
                each.errback(answer)
            else:
                each.callback(answer)


class Recent(Generic[K, V]):
    """What was found a moment ago, bounded in age and number.

    Args:
        clock: Says how old something is. No timer is set: what is too old is
            dropped when it is asked for, or when room is needed.
        seconds: For how long something is kept, more than 0.
        size: How many things are kept, at least 1; beyond it the oldest goes.
    """

    __slots__ = ("_clock", "_kept", "_seconds", "_size")

    def __init__(self, clock: IReactorTime, *, seconds: float, size: int) -> None:
        self._clock = clock
        self._seconds = seconds
        self._size = size
        self._kept: dict[K, tuple[float, V]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K) -> V | None:
        """What was kept and is not too old."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        until, value = kept
        if until > self._clock.seconds():
            return value
        del self._kept[key]
        return None

    def keep(self, key: K, value: V) -> None:
        """Keep something from now on."""
        # Put at the end anew, so that the first is always the oldest.
        self._kept.pop(key, None)
        if len(self._kept) >= self._size:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = (self._clock.seconds() + self._seconds, value)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
