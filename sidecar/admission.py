"""How many connections may be open at once, and who waits when there are too many."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.logger import Logger
from zope.interface import implementer

from sidecar.interfaces import IFlowObserver, IOpeningObserver

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from sidecar.flow import Flow

__all__ = ["Admission", "ConnectionCounter", "default_limit"]

# A relayed connection has two sockets. One descriptor in ten is left for pipes,
# logs and whatever else lives in the process.
_DESCRIPTORS_PER_CONNECTION = 2
_SHARE = 0.9
# Descriptors of listeners and logs that are yet to be opened when the limit is taken.
_LISTENERS = 8
# Descriptors, where the kernel sets no limit: its own default ceiling (fs.nr_open).
_NO_LIMIT = 1 << 20
# Accepting resumes once this share of the limit is in use: one connection below
# the limit would mean a pause and a log line for every connection.
_RESUME_SHARE = 0.95
# Seconds between two log lines about it: at the limit every end is a new pause.
_LOG_INTERVAL = 1.0
# Seconds. When the kernel itself refuses (EMFILE, ENFILE, ENOMEM), descriptors may be
# freed by others, whose closes nobody reports to us.
_ASK_AGAIN = 1.0


def default_limit() -> int:
    """Connections that fit 90 % of the descriptors that the process may still open."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = _NO_LIMIT
    left = soft - _open_descriptors() - _LISTENERS
    return max(1, int(left * _SHARE) // _DESCRIPTORS_PER_CONNECTION)


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Admission:
    """Counts open connections for all listeners of a process.

    Args:
        clock: For asking again after the kernel refused.
        limit: Connections that may be open at once; None for `default_limit`.

    Attributes:
        open: Connections open now.
        limit: Connections that may be open at once.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, limit: int | None = None) -> None:
        self._clock = clock
        self.limit = default_limit() if limit is None else limit
        self._resume_at = min(self.limit - 1, int(self.limit * _RESUME_SHARE))
        self.open = 0
        self._paused: list[Callable[[], None]] = []
        self._silent_until = 0.0
        self._retry: IDelayedCall | None = None

    @property
    def full(self) -> bool:
        """Whether no further connection may be opened."""
        return self.open >= self.limit

    def opened(self) -> None:
        """Count a connection."""
        self.open += 1

    def closed(self) -> None:
        """Count it no more, and resume those that paused if there is room again."""
        self.open -= 1
        if self._paused and self.open <= self._resume_at:
            self._resume()

    def pause(self, resume: Callable[[], None], cause: OSError | None = None) -> None:
        """Be called when there is room again.

        Args:
            resume: Called once.
            cause: What the kernel said; None where our own limit was reached.
        """
        if not self._paused and self._clock.seconds() >= self._silent_until:
            self._silent_until = self._clock.seconds() + _LOG_INTERVAL
            if cause is None:
                self._log.warn(
                    "{open} connections are open, the limit; accepting pauses until some end"
                    " (raise RLIMIT_NOFILE or limits.max_connections)",
                    open=self.open,
                )
            else:
                self._log.warn(
                    "accepting pauses with {open} connections open: {cause}",
                    open=self.open,
                    cause=cause.strerror,
                )
        self._paused.append(resume)
        if (cause is not None or self.open == 0) and self._retry is None:
            self._retry = self._clock.callLater(_ASK_AGAIN, self._ask_again)

    def _ask_again(self) -> None:
        self._retry = None
        self._resume()

    def _resume(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        paused, self._paused = self._paused, []
        for resume in paused:
            resume()

    def close(self) -> None:
        """Forget those that wait."""
        self._paused.clear()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None


@implementer(IFlowObserver)
class ConnectionCounter:
    """Counts connections that end, whose flows stand for nothing else: others have their requests.

    Args:
        admission: Where they are counted.
        observer: Told of their ends, if it wants to know.
    """

    _log = Logger()

    def __init__(self, admission: Admission, observer: IFlowObserver | None) -> None:
        self._admission = admission
        self._opening: IOpeningObserver | None = IOpeningObserver(observer, None)

    def flow_ended(self, flow: Flow) -> None:
        """One is open no more."""
        self._admission.closed()
        if self._opening is not None:
            try:
                self._opening.connection_closed(flow)
            except Exception:  # noqa: BLE001 - an observer can't be allowed to stop traffic
                self._log.failure("bug in a flow observer")
