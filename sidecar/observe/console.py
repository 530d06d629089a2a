"""How lines reach a terminal that a command writes to at the same time.

Whole lines, each in one write, and nothing that would have to be erased again: the
command's output goes on wherever it was. While the command reads key by key (an editor,
a pager, a prompt, a password), its screen is its own, and lines wait. More lines a second
than anybody reads are counted instead.
"""

from __future__ import annotations

import os
import termios
from typing import TYPE_CHECKING

from sidecar.observe.line_writer import LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["BURST_LINES", "FLUSH_DELAY", "HELD_MAX", "LINES_PER_SECOND", "Console"]

FLUSH_DELAY = 0.02
"""Seconds that a line may wait for company: nobody sees them."""
LINES_PER_SECOND = 50
"""In the long run; what is more can't be read, and scrolls the command's output away."""
BURST_LINES = 200
"""At once."""
HELD_MAX = 200
"""Lines kept while the command has the screen to itself; a page or a few."""
_HELD_POLL = 0.25
# Lines kept while the terminal is stopped (Ctrl-S), or a pipe isn't read.
_BACKLOG = 4096
# tcgetattr(3): where the local modes are.
_LFLAG = 3


class Console:
    """Writes lines for people, at once but never more than can be read.

    Args:
        descriptor: A terminal or anything else; stays the caller's.
        clock: Times the writing.
        count: Told how many lines were left out, as text for a line of its own.
    """

    def __init__(
        self, descriptor: int, clock: IReactorTime, left_out: Callable[[int], str]
    ) -> None:
        # Its own copy: the writer closes it.
        self._descriptor = os.dup(descriptor)
        self._is_terminal = os.isatty(self._descriptor)
        self._clock = clock
        self._left_out = left_out
        self._writer = LineWriter(self._descriptor, clock, name="terminal view", backlog=_BACKLOG)
        self._lines: list[str] = []
        self._dropped = 0
        self._call: IDelayedCall | None = None
        self._allowance = float(BURST_LINES)
        self._allowed_at = clock.seconds()
        self._stopped = False

    def write(self, line: str) -> None:
        """Show a line, or a few that belong together; without the last line feed."""
        if self._stopped:
            return
        if not self._may():
            self._dropped += 1
        else:
            self._lines.append(line)
        if self._call is None:
            self._call = self._clock.callLater(FLUSH_DELAY, self._flush)

    def stop(self) -> Deferred[None]:
        """Show what there is, for a bounded time, and no more.

        Returns:
            Fires with None, at the latest after `sidecar.observe.line_writer.STOP_TIMEOUT`
            seconds; never fails.
        """
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if not self._stopped:
            self._stopped = True
            self._hand_over()
        return self._writer.stop()

    def _may(self) -> bool:
        now = self._clock.seconds()
        earned = (now - self._allowed_at) * LINES_PER_SECOND
        self._allowance = min(self._allowance + earned, BURST_LINES)
        self._allowed_at = now
        if self._allowance < 1 or len(self._lines) >= HELD_MAX:
            return False
        self._allowance -= 1
        return True

    def _flush(self) -> None:
        self._call = None
        if self._is_terminal and _reads_keys(self._descriptor):
            self._call = self._clock.callLater(_HELD_POLL, self._flush)
            return
        self._hand_over()

    def _hand_over(self) -> None:
        lines, self._lines = self._lines, []
        if self._dropped:
            lines.append(self._left_out(self._dropped))
            self._dropped = 0
        if lines:
            # A command that has turned off the terminal's own line ends is at work.
            end = "\r\n" if self._is_terminal else "\n"
            text = "".join(line.replace("\n", end) + end for line in lines)
            self._writer.write(text.encode("utf-8", "replace"), len(lines))


def _reads_keys(descriptor: int) -> bool:
    """Whether somebody reads key by key, or unseen, from a terminal (termios(3))."""
    try:
        modes: int = termios.tcgetattr(descriptor)[_LFLAG]
    except (OSError, termios.error):
        return False
    return not modes & termios.ICANON or not modes & termios.ECHO
