"""What a check is, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Check", "Finding", "Form", "Result", "State", "works"]


class Form(Enum):
    """A way to use sidecar that a check may decide on."""

    EXEC = "exec"
    """``sidecar exec``, by whoever runs the doctor."""
    TRANSPARENT = "transparent"
    """``twistd sidecar`` with transparent listeners, under rules that root applies."""


class State(Enum):
    """How a check went."""

    OK = "ok"
    NOT = "not"
    """It was tried, and doesn't work."""
    UNTRIED = "untried"
    """It could not be tried, for want of something that was checked before."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a check.

    Attributes:
        state: How it went.
        found: What was seen, in a few words.
        mend: The one command that mends it, or what to do; None where nothing is to be
            done.
    """

    state: State
    found: str
    mend: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """Something that is tried.

    Attributes:
        name: Short, of its own.
        purpose: What it is needed for.
        decides: The forms that don't work without it.
        look: Tries it.
        in_namespace: Whether it needs one of the caller's making.
    """

    name: str
    purpose: str
    decides: tuple[Form, ...]
    look: Callable[[], Finding]
    in_namespace: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """A check, and what it found."""

    check: Check
    finding: Finding


def works(results: list[Result], form: Form) -> bool:
    """Whether a form works: everything that decides on it was tried and is there."""
    return all(each.finding.state is State.OK for each in results if form in each.check.decides)
