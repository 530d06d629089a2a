"""How the test is shown: a line an attempt, or JSON at the end."""

from __future__ import annotations

import json
import os
import platform
from typing import TYPE_CHECKING

import sidecar
from sidecar.cli.leak_test.attempts import Attempt, Expected
from sidecar.cli.leak_test.outcomes import Came, Judgement, Verdict

if TYPE_CHECKING:
    from sidecar.cli.leak_test.listening import Listeners

__all__ = ["Shown"]

_VERSION = 1
_WIDTH = 49
_ARRIVED_MAX = 3


class Shown:
    """What was found, shown as it comes.

    Args:
        as_json: Show nothing until the end, and then one JSON document.
        versions: The IP versions that there are.
        listeners: What is placed outside.
    """

    def __init__(self, *, as_json: bool, versions: frozenset[int], listeners: Listeners) -> None:
        self._as_json = as_json
        self._versions = versions
        self._sees_packets = listeners.sees_packets
        self._found: list[tuple[Attempt, Judgement]] = []

    def introduce(self, policy: str) -> None:
        """Say what is about to happen.

        Args:
            policy: As TOML.
        """
        rules = " ".join(policy.split("\n")[1:3])
        self._say(
            f"As user {os.geteuid()}, in sidecar exec with {rules}.\n"
            "Everything outside is in a namespace of the test's own. Each attempt is made there"
            " first,\nwithout exec; (*) is what gets out then."
        )
        if not self._sees_packets:
            self._say("There are no packet sockets here: only listeners are looked at.")
        self._say("")

    def show(self, attempt: Attempt, judgement: Judgement) -> None:
        """Show one more."""
        self._found.append((attempt, judgement))
        star = "*" if judgement.without else " "
        words = _in_words(attempt, judgement)
        self._say(f"{judgement.verdict.value:4} {star} {attempt.title:{_WIDTH}} {words}")

    def sum_up(self) -> int:
        """Show what to think of it all.

        Returns:
            The exit status: 0 if nothing got out, and all could be tried.
        """
        if self._as_json:
            print(json.dumps(self._document(), indent=2))
        counts = {
            verdict: sum(each.verdict is verdict for _, each in self._found) for verdict in Verdict
        }
        shown = sum(each.without is True for _, each in self._found)
        self._say(
            f"\n{len(self._found)} attempts, {shown} of which get out without exec."
            f" In exec, {counts[Verdict.LEAKED] or 'none'} did."
        )
        if counts[Verdict.FAULTY]:
            self._say(f"{counts[Verdict.FAULTY]} (?) could not be shown: the test proves nothing.")
        self._say(
            "Not protected, and not claimed to be: unix sockets by their path (open, above), files,"
            " devices,\nSystem V IPC, and processes of the same user that read these."
        )
        return 1 if counts[Verdict.LEAKED] or counts[Verdict.FAULTY] else 0

    def _document(self) -> dict[str, object]:
        return {
            "v": _VERSION,
            "sidecar": sidecar.__version__,
            "kernel": platform.release(),
            "machine": platform.machine(),
            "uid": os.geteuid(),
            "ip_versions": sorted(self._versions),
            "sees_packets": self._sees_packets,
            "attempts": [
                {
                    "name": attempt.name,
                    "title": attempt.title,
                    "expected": attempt.expected.value,
                    "verdict": _NAMES[judgement.verdict],
                    "came": judgement.outcome.came.value,
                    "detail": judgement.outcome.detail,
                    "arrived": list(judgement.outcome.arrived),
                    "gets_out_without_exec": judgement.without,
                }
                for attempt, judgement in self._found
            ],
        }

    def _say(self, text: str) -> None:
        if not self._as_json:
            print(text, flush=True)


_NAMES = {
    Verdict.HELD: "held",
    Verdict.LEAKED: "leaked",
    Verdict.FAULTY: "faulty",
    Verdict.ABSENT: "absent",
    Verdict.UNPROTECTED: "unprotected",
}


def _in_words(attempt: Attempt, judgement: Judgement) -> str:
    outcome = judgement.outcome
    came = f"refused: {outcome.detail}" if outcome.came is Came.REFUSED else outcome.detail
    if outcome.came is Came.NOT_HERE:
        return f"not here: {outcome.detail}"
    if not outcome.arrived:
        return came if attempt.expected is Expected.REFUSED else f"{came}; nothing arrived"
    some = "; ".join(outcome.arrived[:_ARRIVED_MAX])
    return f"{came}; ARRIVED: {some}" if judgement.verdict is Verdict.LEAKED else f"arrived: {some}"
