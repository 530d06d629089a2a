"""What is said of errors and warnings, on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    globalLogBeginner,
)

from sidecar.cli.streams import complain

if TYPE_CHECKING:
    from twisted.logger import ILogObserver, LogEvent

__all__ = ["report_errors"]


def report_errors() -> None:
    """Have Twisted's log on standard error: a line for each error and warning, nothing else."""
    predicate = LogLevelFilterPredicate(defaultLogLevel=LogLevel.warn)
    observer = FilteringLogObserver(cast("ILogObserver", _print), [predicate])
    globalLogBeginner.beginLoggingTo([observer], discardBuffer=True, redirectStandardIO=False)


def _print(event: LogEvent) -> None:
    text = formatEvent(event).replace("\n", "\n  ")
    failure = event.get("log_failure")
    if failure is not None:
        text = f"{text}: {failure.getTraceback()}"
    complain(f"sidecar exec: {text}")
