"""Stopping what writes in a thread, on a clock that stands still while the thread is at work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.task import Clock

    from sidecar.observe.line_writer import LineWriter

__all__ = ["stop_writing"]

# Seconds, longer than a writer takes to look again, and far from its patience.
_MOMENT = 0.1


def stop_writing(writer: LineWriter, stop: Callable[[], Deferred[None]], clock: Clock) -> None:
    """Stop, and wait until all is written.

    Args:
        writer: Whose reader reads.
        stop: Of the writer, or of who has it.
        clock: The writer's. With time passing, a thread that is slow would be given up.
    """
    stopped = stop()
    if writer._thread is not None:
        writer._thread.join(PATIENCE)
        assert not writer._thread.is_alive()
        clock.advance(_MOMENT)
    assert stopped.called
