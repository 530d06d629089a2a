"""A real reactor that a test turns by hand: between two looks nothing happens."""

from __future__ import annotations

import gc
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, TypeVar, cast

from support import PATIENCE, open_descriptors
from twisted.internet import reactor
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from twisted.logger import LogLevel, globalLogPublisher
from zope.interface import implementer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from threading import Thread

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall
    from twisted.logger import ILogObserver, LogEvent
    from twisted.python.failure import Failure

    from sidecar.interfaces import IRelayReactor

__all__ = ["ByHand", "Turning", "nothing_left", "turning"]

_T = TypeVar("_T")


class Turning:
    """A reactor of the test's own, never run.

    Attributes:
        reactor: A real one, with real descriptors and timers.
        logged: What was logged while it was turned, as text.
        failures: Of these, what counts as a bug; a test that expects some clears it.
    """

    def __init__(self, *, threads: bool = False) -> None:
        self._reactor = EPollReactor()
        self.reactor = cast("IRelayReactor", self._reactor)
        self.logged: list[str] = []
        self.failures: list[str] = []
        self._threads = threads
        if threads:
            # Starts the pool that names are resolved in.
            self._reactor.startRunning(installSignalHandlers=False)
        globalLogPublisher.addObserver(cast("ILogObserver", self._observe))

    def _observe(self, event: LogEvent) -> None:
        text = str(event.get("log_format", "")).format_map(_Shown(event))
        self.logged.append(text)
        if event.get("log_level") in {LogLevel.critical, LogLevel.error}:
            self.failures.append(f"{text} {event.get('log_failure')}")

    def turn(self, timeout: float = 0.0) -> None:
        """Wait for one thing to happen, and let it.

        Args:
            timeout: Seconds to wait at most; 0 to see only what is there.
        """
        reactor = self._reactor
        due = reactor.timeout()
        reactor.doIteration(timeout if due is None else min(due, timeout))
        reactor.runUntilCurrent()

    def until(
        self,
        condition: Callable[[], object],
        *sockets: socket.socket,
        patience: float = PATIENCE,
    ) -> None:
        """Turn until a condition holds.

        Args:
            condition: Looked at after every turn.
            sockets: Of the test's; data or an end there is a turn, too.
            patience: Seconds after which it counts as never coming.
        """
        deadline = time.monotonic() + patience
        with ExitStack() as stack:
            for sock in sockets:
                wake = _Wake(sock)
                self._reactor.addReader(wake)
                stack.callback(self._reactor.removeReader, wake)
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, "did not happen"
                self.turn(left)

    def result(self, deferred: Deferred[_T]) -> _T:
        """Turn until a Deferred has fired; raise what it failed with."""
        outcome: list[_T] = []
        failed: list[Failure] = []
        deferred.addCallbacks(outcome.append, failed.append)
        self.until(lambda: outcome or failed)
        if failed:
            failed[0].raiseException()
        return outcome[0]

    def settle(self) -> None:
        """Turn until nothing more is to be done at once."""
        for _ in range(20):
            self.turn()

    def until_disconnected(self) -> None:
        """Turn until Twisted's own connections are gone; the news of an end may take a moment."""
        reactor = self._reactor
        self.until(
            lambda: (
                not any(
                    isinstance(each, Connection)
                    for each in (*reactor.getReaders(), *reactor.getWriters())
                )
            )
        )
        self.settle()

    def close(self) -> None:
        """Let go of the reactor, and see that nobody else holds on to it."""
        globalLogPublisher.removeObserver(cast("ILogObserver", self._observe))
        reactor = self._reactor
        if self._threads:
            reactor.fireSystemEvent("shutdown")
            self.turn()
        readers = reactor.removeAll()
        calls = [call for call in reactor.getDelayedCalls() if call.active()]
        for internal in list(reactor._internalReaders):
            internal.connectionLost(None)
        reactor._poller.close()
        assert ([], [], []) == (readers, calls, self.failures)


class ByHand(Clock):
    """A reactor but for the time, which passes when a test says so."""

    def __init__(self, reactor: IRelayReactor) -> None:
        super().__init__()
        # As a reactor's: never nothing.
        self.rightNow = 1000.0
        self._reactor = reactor

    def __getattr__(self, name: str) -> object:
        return getattr(self._reactor, name)

    def callLater(
        self,
        delay: float,
        callable: Callable[..., object],  # noqa: A002 - Twisted's
        *args: object,
        **kw: object,
    ) -> IDelayedCall:
        # What is due at once is so in the reactor's next turn.
        if delay:
            return super().callLater(delay, callable, *args, **kw)
        return self._reactor.callLater(0, callable, *args, **kw)


class _Shown(dict[str, object]):
    def __missing__(self, key: str) -> str:
        return f"{{{key}}}"


@implementer(IReadDescriptor)
class _Wake:
    """Ends a turn when a socket of the test's has something."""

    def __init__(self, sock: socket.socket) -> None:
        self.fileno = sock.fileno

    def doRead(self) -> None:
        pass

    def connectionLost(self, reason: Failure) -> None:
        pass

    def logPrefix(self) -> str:
        return "test"


def _descriptors() -> dict[int, str]:
    # Twisted keeps one of /dev/null in reserve from the first port that listens.
    return {fd: to for fd, to in open_descriptors().items() if to != "/dev/null"}


@cache
def _forget_what_was_before() -> None:
    # pytest's start leaves garbage with descriptors, which some test's turn would free.
    gc.collect()


@contextmanager
def nothing_left() -> Iterator[None]:
    """See that no descriptor is left over."""
    _forget_what_was_before()
    # pytest-twisted starts the global reactor, which takes two, in the midst of some test.
    running = vars(reactor).get("running")
    before = _descriptors()
    yield
    if running == vars(reactor).get("running"):
        assert before == _descriptors()


@contextmanager
def turning(*, threads: bool = False) -> Iterator[Turning]:
    """Make a reactor for one test; no descriptor, timer, thread or bug may be left over."""
    with nothing_left():
        before = set(threading.enumerate())
        made = Turning(threads=threads)
        try:
            yield made
            # One that goes on would call a reactor that is gone.
            _join(set(threading.enumerate()) - before)
            # What they said last.
            made.settle()
        finally:
            made.close()


def _join(threads: set[Thread]) -> None:
    for thread in threads:
        # Others are the test's, or of the pool that the reactor ends itself.
        if thread.name.startswith("sidecar-"):
            thread.join(PATIENCE)
            assert not thread.is_alive(), thread.name
