"""A few threads for what is too slow for the reactor's, with a bound on what waits."""

from __future__ import annotations

from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorFromThreads

__all__ = ["Busy", "Workers"]

# Threads. Who guesses passwords must not have all the processors.
_THREADS = 2
# Calls that wait or run. At 60 ms each (bcrypt as htpasswd -B makes it) and two at a
# time the last one waits 2 s.
_QUEUE = 64

T = TypeVar("T")


class Busy(Exception):
    """So many calls wait that this one was not even taken."""


class Workers:
    """Runs functions in threads of its own. All methods belong to the reactor's thread.

    Args:
        reactor: Takes the threads' results.
        threads: How many at once, at least 1; started when they are needed, and kept.
        queue: How many calls may wait or run; beyond it `Busy`.
    """

    def __init__(
        self, reactor: IReactorFromThreads, *, threads: int = _THREADS, queue: int = _QUEUE
    ) -> None:
        self._reactor = reactor
        self._threads = threads
        self._limit = queue
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._started = 0
        self._pending = 0
        self._closed = False

    def run(self, function: Callable[[], T]) -> Deferred[T]:
        """Call a function in a thread.

        Returns:
            Fires with what it returns, or fails with what it raises, or with `Busy`.
            Cancelling gives up waiting; a call that runs can't be stopped.
        """
        if self._closed or self._pending >= self._limit:
            return fail(Busy())
        if self._started < min(self._threads, self._pending + 1):
            try:
                # A daemon: nobody waits for it at the process's end.
                Thread(target=self._serve, name="sidecar-worker", daemon=True).start()
            except RuntimeError:
                # The limit on processes (RLIMIT_NPROC, pids.max) is reached.
                if not self._started:
                    return fail(Busy())
            else:
                self._started += 1
        self._pending += 1
        done: Deferred[T] = Deferred()
        self._work.put(lambda: self._call(function, done))
        return done

    def close(self) -> None:
        """Let the threads end after what they have begun; later calls are `Busy`."""
        self._closed = True
        for _ in range(self._started):
            self._work.put(None)

    def _finished(self, done: Deferred[T], result: T | Failure) -> None:
        self._pending -= 1
        if self._closed:
            # Whoever waited has ended.
            return
        # One that was cancelled takes this once, and keeps silent.
        if isinstance(result, Failure):
            done.errback(result)
        else:
            done.callback(result)

    # What follows runs in the threads

    def _serve(self) -> None:
        while (call := self._work.get()) is not None:
            call()

    def _call(self, function: Callable[[], T], done: Deferred[T]) -> None:
        raised: Exception | None = None
        result: T | Failure
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - who waits learns of it
            raised = error
        if raised is not None:
            # Without the traceback, whose frames hold what was checked; and not while it is
            # being handled, when Twisted up to 24.10 finds the traceback all the same.
            result = Failure(raised.with_traceback(None))
        self._reactor.callFromThread(self._finished, done, result)
