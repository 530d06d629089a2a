"""When what the command left under way has arrived, or never will."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from twisted.internet.task import deferLater

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from twisted.internet.interfaces import IReactorTime

    from sidecar.flow import Flow
    from sidecar.runtime import Runtime

__all__ = ["STANDSTILL", "drained"]

STANDSTILL = 1.0
"""Seconds without a byte, after the last process inside has ended, until the connections
that are left are given up: what it sent may still be on its way to a slow server, but one
that waits for more would never get it."""

# Seconds between two looks.
_LOOK = 0.005


async def drained(
    reactor: IReactorTime,
    runtime: Runtime,
    flows: Callable[[], Iterable[Flow]],
    listeners: Iterable[int],
) -> None:
    """Wait until no connection is left, or those that are stand still.

    Args:
        reactor: Measures time.
        runtime: Counts connections.
        flows: Tells which are relayed.
        listeners: The descriptors on which the connections arrive. A command that ended
            before we were up has left all of them there.
    """
    waiting = select.poll()
    for listener in listeners:
        waiting.register(listener, select.POLLIN)
    moved = -1
    deadline = 0.0
    while runtime.admission.open or waiting.poll(0):
        now = _moved(flows())
        if now != moved:
            moved = now
            deadline = reactor.seconds() + STANDSTILL
        elif reactor.seconds() > deadline:
            return
        await deferLater(reactor, _LOOK)


def _moved(flows: Iterable[Flow]) -> int:
    """How many bytes the flows that are open have carried."""
    counts = [flow.counts() for flow in flows if flow.counts is not None]
    return sum(sent + received for sent, received in counts)
