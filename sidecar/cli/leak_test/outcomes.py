"""What came of an attempt, and whether that is a leak."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sidecar.cli.leak_test.attempts import Attempt, Expected

__all__ = ["Came", "Judgement", "Outcome", "Verdict", "judge"]


class Came(Enum):
    """What an attempt itself said."""

    DONE = "done"
    REFUSED = "refused"
    NOT_HERE = "not here"
    BROKE = "broke"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt.

    Attributes:
        came: What it said itself.
        detail: In words.
        arrived: What reached the outside meanwhile.
    """

    came: Came
    detail: str
    arrived: tuple[str, ...]


class Verdict(Enum):
    """What to think of it."""

    HELD = "ok"
    LEAKED = "LEAK"
    FAULTY = "?"
    """It shows nothing, and should: not an answer to rely on."""
    ABSENT = "-"
    """There is nothing to try on this machine."""
    UNPROTECTED = "open"
    """It gets out, and exec doesn't claim that it wouldn't."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """An outcome with what to think of it.

    Attributes:
        verdict: That.
        outcome: What came of it in exec.
        without: Whether it got out without exec; None where that was not tried.
    """

    verdict: Verdict
    outcome: Outcome
    without: bool | None


def judge(attempt: Attempt, outcome: Outcome, control: Outcome | None) -> Judgement:
    """Say what to think of an attempt.

    Args:
        attempt: What was tried.
        outcome: What came of it in exec.
        control: What came of it without; None where that was not tried.
    """
    without = None if control is None else _got_out(attempt, control)
    return Judgement(_verdict(attempt, outcome), outcome, without)


def _got_out(attempt: Attempt, outcome: Outcome) -> bool:
    return bool(outcome.arrived) or (
        attempt.expected is Expected.REFUSED and outcome.came is Came.DONE
    )


def _verdict(attempt: Attempt, outcome: Outcome) -> Verdict:
    out = _got_out(attempt, outcome)
    if attempt.expected is Expected.ARRIVES:
        return Verdict.HELD if out and outcome.came is Came.DONE else Verdict.FAULTY
    if attempt.expected is Expected.UNPROTECTED:
        return Verdict.UNPROTECTED if out else Verdict.HELD
    if out:
        return Verdict.LEAKED
    if outcome.came is Came.BROKE:
        return Verdict.FAULTY
    return Verdict.ABSENT if outcome.came is Came.NOT_HERE else Verdict.HELD
