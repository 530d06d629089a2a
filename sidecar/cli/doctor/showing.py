"""How the doctor's findings are printed: a line each, or JSON."""

from __future__ import annotations

import json
import os
import platform
from typing import TYPE_CHECKING

import sidecar
from sidecar.cli.doctor.findings import Form, State, works

if TYPE_CHECKING:
    from sidecar.cli.doctor.findings import Result

__all__ = ["as_json", "line", "verdict"]

_VERSION = 1
_WIDTH = 19


def line(result: Result) -> str:
    """One line for a person."""
    check, finding = result.check, result.finding
    state = "-" if finding.state is State.UNTRIED else finding.state.value
    text = f"{state:4} {check.name:{_WIDTH}} {finding.found} (for {check.purpose})"
    return text if finding.mend is None else f"{text}; mend: {finding.mend}"


def verdict(results: list[Result]) -> str:
    """Two lines: what works here."""
    mine = "works" if works(results, Form.EXEC) else "does NOT work"
    rules = "work" if works(results, Form.TRANSPARENT) else "do NOT work, or can't be tried"
    return (
        f"sidecar exec {mine} here, for user {os.geteuid()}.\n"
        f"twistd sidecar's transparent listeners {rules} on this kernel."
    )


def as_json(results: list[Result]) -> str:
    """One JSON document; docs/reference/doctor.schema.json describes it."""
    document = {
        "v": _VERSION,
        "sidecar": sidecar.__version__,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "uid": os.geteuid(),
        "works": {form.value: works(results, form) for form in Form},
        "checks": [
            {
                "name": each.check.name,
                "state": each.finding.state.value,
                "found": each.finding.found,
                "for": each.check.purpose,
                "decides": [form.value for form in each.check.decides],
                "mend": each.finding.mend,
            }
            for each in results
        ],
    }
    return json.dumps(document, indent=2)
