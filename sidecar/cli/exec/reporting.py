"""What is said of a run besides its access log: errors, and whether anything was denied."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    globalLogBeginner,
)
from zope.interface import implementer

from sidecar.flow import Verdict
from sidecar.interfaces import IFlowObserver

if TYPE_CHECKING:
    from twisted.logger import ILogObserver, LogEvent

    from sidecar.flow import Flow

__all__ = ["Denials", "report_errors"]


@implementer(IFlowObserver)
class Denials:
    """Counts what was denied.

    Attributes:
        count: How many connections and queries.
    """

    def __init__(self) -> None:
        self.count = 0

    def flow_ended(self, flow: Flow) -> None:
        """Count it, if it was."""
        if flow.verdict is Verdict.DENY:
            self.count += 1


def report_errors(verbosity: int) -> None:
    """Have Twisted's log on standard error: a line for each error and warning, nothing else.

    Args:
        verbosity: -1 for errors alone.
    """
    level = LogLevel.error if verbosity < 0 else LogLevel.warn
    predicate = LogLevelFilterPredicate(defaultLogLevel=level)
    observer = FilteringLogObserver(cast("ILogObserver", _print), [predicate])
    globalLogBeginner.beginLoggingTo([observer], discardBuffer=True, redirectStandardIO=False)


def _print(event: LogEvent) -> None:
    text = formatEvent(event).replace("\n", "\n  ")
    failure = event.get("log_failure")
    if failure is not None:
        text = f"{text}: {failure.getTraceback()}"
    print(f"sidecar exec: {text}", file=sys.stderr)
