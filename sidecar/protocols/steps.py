"""What others have to say of a flow that the policy allows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import TimeoutError as DeadlinePassed
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.interfaces import IReactorTime

    from sidecar.flow import Flow
    from sidecar.interfaces import IDecisionStep

__all__ = ["objection"]

_log = Logger()
# What the access log's schema takes for a code; as long as it is readable.
_CODE = re.compile(r"[a-z0-9_]{1,64}")


async def objection(
    clock: IReactorTime, steps: Sequence[IDecisionStep], flow: Flow, deadline: float
) -> str | None:
    """Ask every step in turn, until one objects.

    Args:
        clock: For the deadline.
        steps: Asked in this order.
        flow: What they are asked about.
        deadline: Seconds that each may take.

    Returns:
        The reason code of the first objection; None if nobody objects. A step that
        raises objects with ``step_failed``, one that takes too long with
        ``step_timeout``: refusing is the safe side.
    """
    for step in steps:
        try:
            answer = step.judge(flow)
            if isinstance(answer, Deferred):
                answer = await answer.addTimeout(deadline, clock, _timed_out)
        except DeadlinePassed:
            _log.warn("decision step {step} took too long; denied", step=step.name)
            return "step_timeout"
        except CancelledError:
            raise
        except Exception:  # noqa: BLE001 - somebody else's code, of any kind
            _log.failure("bug in decision step {step}; denied", step=step.name)
            return "step_failed"
        if answer is not None:
            if _CODE.fullmatch(str(answer)):
                return str(answer)
            _log.error("{step} objects with {answer!r}, no code", step=step.name, answer=answer)
            return "step_failed"
    return None


def _timed_out(_: object, __: float) -> None:
    raise DeadlinePassed
