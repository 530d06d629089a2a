"""What a person sees of connections while a command runs: a line for each, live."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from zope.interface import implementer

from sidecar.flow import Verdict
from sidecar.interfaces import IDNSObserver, IOpeningObserver
from sidecar.observe.console import Console
from sidecar.observe.lines import Lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from sidecar.flow import Flow
    from sidecar.lookups import Lookup
    from sidecar.observe.styles import Look

__all__ = ["FIRST_PROGRESS", "PROGRESS_LINES", "PROGRESS_MAX", "TerminalView"]

FIRST_PROGRESS = 2.0
"""Seconds after which a connection that goes on gets a line. Twice as long after that the
next, and so on: a line that is rewritten in place would be torn by the command's output."""
PROGRESS_MAX = 64.0
"""Seconds between two such lines, at most."""
PROGRESS_LINES = 5
"""At once; more connections are summed up in one line."""
_TICK = 1.0
# Denied names; a program asks for each twice (A, AAAA), and often again.
_TOLD_MAX = 1024


class _Watched:
    """An open connection, and when its next line is due."""

    __slots__ = ("due", "flow", "interval", "shown")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.interval = FIRST_PROGRESS
        self.due = flow.started_monotonic + FIRST_PROGRESS
        self.shown: tuple[int, int] | None = None


@implementer(IOpeningObserver, IDNSObserver)
class TerminalView:
    """Shows connections and denied names as lines.

    Args:
        descriptor: Where to, as a rule standard error; stays the caller's.
        clock: Of the reactor.
        look: How lines are to look.
        now: Tells the time that flows are timed by.
    """

    def __init__(
        self,
        descriptor: int,
        clock: IReactorTime,
        look: Look,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._now = now
        self._verbose = look.verbose
        self._lines = Lines(look)
        self._console = Console(descriptor, clock, self._left_out)
        self._open: dict[int, _Watched] = {}
        self._tick: IDelayedCall | None = None
        self._told: dict[tuple[str, str], None] = {}

    def flow_opened(self, flow: Flow) -> None:
        """Watch a connection, to tell of it if it takes long."""
        self._open[flow.serial] = _Watched(flow)
        if self._tick is None:
            self._tick = self._clock.callLater(_TICK, self._look)

    def forget(self, flow: Flow) -> None:
        """Watch it no more: others stand for it."""
        self._open.pop(flow.serial, None)

    connection_closed = forget

    def flow_ended(self, flow: Flow) -> None:
        """Show a connection."""
        self._open.pop(flow.serial, None)
        self._console.write(self._lines.flow(flow))

    def lookup_ended(self, lookup: Lookup) -> None:
        """Show a question that was denied or came to nothing, once; else if all is to be shown."""
        if lookup.verdict is Verdict.DENY or lookup.problem:
            key = lookup.name.lower(), lookup.problem or lookup.reason
            if key in self._told and not self._verbose:
                return
            self._told[key] = None
            if len(self._told) > _TOLD_MAX:
                del self._told[next(iter(self._told))]
        elif not self._verbose:
            return
        self._console.write(self._lines.lookup(lookup))

    def stop(self) -> Deferred[None]:
        """Show what there is, for a bounded time, and no more.

        Returns:
            Fires with None; never fails.
        """
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        return self._console.stop()

    def _look(self) -> None:
        self._tick = self._clock.callLater(_TICK, self._look) if self._open else None
        now = self._now()
        moved = [each for each in self._open.values() if each.due <= now and self._moved(each, now)]
        # What moves most first.
        moved.sort(key=lambda each: sum(each.shown or (0, 0)), reverse=True)
        for each in moved[:PROGRESS_LINES]:
            self._console.write(self._lines.progress(each.flow, now))
        if len(moved) > PROGRESS_LINES:
            rest = len(moved) - PROGRESS_LINES
            self._console.write(self._lines.remark(f"and {rest} more that are open"))

    def _moved(self, watched: _Watched, now: float) -> bool:
        """Whether there is news of a connection that is due, which then is not due any more."""
        watched.due = now + watched.interval
        watched.interval = min(watched.interval * 2, PROGRESS_MAX)
        amounts = watched.flow.amounts()
        if amounts == watched.shown:
            return False
        watched.shown = amounts
        return True

    def _left_out(self, number: int) -> str:
        return self._lines.remark(f"{number} more lines than can be shown; the summary has them")
