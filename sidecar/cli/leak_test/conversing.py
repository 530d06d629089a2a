"""How attempts are asked for, one after the other, and what arrives meanwhile is noted."""

from __future__ import annotations

import json
import os
import select
import time
from dataclasses import asdict
from typing import IO, TYPE_CHECKING

from sidecar.cli.leak_test.outcomes import Came, Outcome
from sidecar.errors import SidecarError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.cli.leak_test.attempts import Attempt, Outside
    from sidecar.cli.leak_test.listening import Listeners

__all__ = ["PATIENCE", "LeakTestError", "converse", "hear", "tell"]

PATIENCE = 20.0
"""Seconds for an answer from inside; attempts give up before."""
# Seconds in which what is under way arrives: all is on loopback.
_SETTLING = 0.03


class LeakTestError(SidecarError):
    """The test can't be made.

    Args:
        problem: Why.
    """


def converse(
    attempts: tuple[Attempt, ...] | list[Attempt],
    outside: Outside,
    asking: IO[str] | IO[bytes],
    hearing: IO[bytes],
    listeners: Listeners,
) -> Iterator[tuple[Attempt, Outcome]]:
    """Have attempts made, one after the other, and look at what arrives meanwhile."""
    tell(asking, json.dumps(asdict(outside)))
    for attempt in attempts:
        tell(asking, attempt.name)
        arrived: list[str] = []
        line = hear(hearing, listeners, arrived)
        answer = json.loads(line)
        time.sleep(_SETTLING)
        arrived += listeners.arrived()
        yield attempt, Outcome(Came(answer["came"]), answer["detail"], tuple(arrived))


def tell(asking: IO[str] | IO[bytes], text: str) -> None:
    """Write a line."""
    os.write(asking.fileno(), text.encode() + b"\n")


def hear(hearing: IO[bytes], listeners: Listeners, arrived: list[str]) -> bytes:
    """Read a line.

    Args:
        hearing: Where it comes from.
        listeners: Looked at meanwhile.
        arrived: What they hear is added here.

    Raises:
        LeakTestError: There is none in time, or ever.
    """
    deadline = time.monotonic() + PATIENCE
    received = b""
    while not received.endswith(b"\n"):
        left = deadline - time.monotonic()
        ready, _, _ = select.select([hearing.fileno(), *listeners.filenos()], [], [], max(left, 0))
        if not ready:
            raise LeakTestError("there is no answer from inside")
        arrived += listeners.arrived()
        if hearing.fileno() in ready:
            chunk = os.read(hearing.fileno(), 65536)
            if not chunk:
                raise LeakTestError("the attempts could not be made: their process has ended")
            received += chunk
    return received
