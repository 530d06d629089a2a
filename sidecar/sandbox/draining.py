"""When what the command left under way has arrived, or never will."""

from __future__ import annotations

import select
from contextlib import suppress
from typing import TYPE_CHECKING

from twisted.internet.task import deferLater

from sidecar.linux.sockopt import unacknowledged
from sidecar.relay.half import Half

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from twisted.internet.interfaces import IReactorTime

    from sidecar.flow import Flow
    from sidecar.runtime import Runtime

__all__ = ["STALLED", "STANDSTILL", "drained"]

STANDSTILL = 1.0
"""Seconds without a byte, after the last process inside has ended, until the connections
that are left are given up: what it sent may still be on its way to a slow server, but one
that waits for more would never get it."""
STALLED = 10.0
"""Likewise while we ourselves hold bytes that a server doesn't take: they would be lost,
though the command could believe that they were sent. What the kernel holds, it goes on
sending without us."""

# Seconds between two looks; and at what the kernel still has to send, of which a slow
# server may take some for seconds before the kernel wants more of us.
_LOOK = 0.005
_LOOK_CLOSELY = 0.1


async def drained(
    reactor: IReactorTime,
    runtime: Runtime,
    flows: Callable[[], Iterable[Flow]],
    listeners: Iterable[int],
    interrupted: Callable[[], bool],
) -> None:
    """Wait until no connection is left, or those that are stand still.

    Args:
        reactor: Measures time.
        runtime: Counts connections.
        flows: Tells which are relayed.
        listeners: The descriptors on which the connections arrive. A command that ended
            before we were up has left all of them there.
        interrupted: Tells whether to wait no longer.
    """
    waiting = select.poll()
    for listener in listeners:
        waiting.register(listener, select.POLLIN)
    moved = unsent = -1
    changed = look_closely = 0.0
    while (runtime.admission.open or waiting.poll(0)) and not interrupted():
        now, before = reactor.seconds(), (moved, unsent)
        moved = _moved(flows())
        if now >= look_closely:
            unsent = _unsent(runtime.poller.descriptors())
            look_closely = now + _LOOK_CLOSELY
        if (moved, unsent) != before:
            changed = now
        elif now - changed > (STALLED if _holding(runtime) else STANDSTILL):
            return
        await deferLater(reactor, _LOOK)


def _moved(flows: Iterable[Flow]) -> int:
    """How many bytes the flows that are open have carried."""
    counts = [flow.counts() for flow in flows if flow.counts is not None]
    return sum(sent + received for sent, received in counts)


def _holding(runtime: Runtime) -> bool:
    """Whether some relay has bytes that its other side doesn't take."""
    return any(isinstance(each, Half) and each.blocked for each in runtime.poller.pollables())


def _unsent(descriptors: Iterable[int]) -> int:
    """How many bytes are the kernel's to send, or to be acknowledged to it."""
    count = 0
    for fd in descriptors:
        # A listener has no such number.
        with suppress(OSError):
            count += unacknowledged(fd)
    return count
