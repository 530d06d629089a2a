"""Which addresses a name has: asked without blocking the reactor, or filling its threads.

The system's resolver is used, so /etc/hosts, nsswitch.conf and the search list of
resolv.conf mean what they mean to every other program here. It is a blocking C
function that can't be told to give up, so it runs in a few threads of our own: a name
whose servers are silent holds one of those, and nothing else.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from copy import copy
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import Interface, implementer

from sidecar.addresses import parse_host, parse_ip
from sidecar.errors import (
    AddressError,
    DialError,
    NameNotResolved,
    ResolverBusy,
    ResolveTimeout,
)
from sidecar.names.sharing import Recent, Waiters

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorFromThreads, IReactorTime

    Hosts = tuple[str, ...]
    Lookup = Callable[[str], list[str]]

__all__ = ["INameResolver", "SystemResolver", "is_canonical", "system_lookup"]

# Threads. glibc gives a silent server 5 s, and asks up to three servers twice, so a
# dead name holds a thread for half a minute; sixteen such names at once are an
# outage. At 20 ms a name, sixteen threads find 800 names a second.
_THREADS = 16
# Names that wait for a thread. At the rate above the last one waits 1.3 s; with many
# more, everybody would wait until the deadline and nobody be served.
_QUEUE = 1024
# Seconds. When glibc asks a second time: whoever waited that long has a client that
# gives up about now.
_DEADLINE = 5.0
# Seconds. getaddrinfo doesn't tell for how long an answer holds. A browser's dozen
# connections to one name come within a second or two; names that move (a failover)
# have TTLs of no less than this.
_KEPT_SECONDS = 5.0
# Names, some 500 bytes each and at most 30 KB. A client that asks for more drives out
# others' answers, which costs them a query.
_KEPT_NAMES = 1024
# Addresses of one name; as many as a DNS answer of 4096 bytes, the most over UDP, has.
# One over TCP has thousands, each of which would be compared for each connection.
_ANSWERS = 256

_STOPPED = "sidecar is being stopped"


class INameResolver(Interface):
    """Somebody who knows the addresses of names."""

    def recent(host: str) -> tuple[str, ...] | None:  # noqa: N805 - zope's have no self
        """Tell what `resolve` would answer at once.

        Args:
            host: As for `resolve`.

        Returns:
            The addresses; None if they aren't known, or there are none.
        """

    def resolve(host: str) -> Deferred[tuple[str, ...]]:  # noqa: N805 - zope's have no self
        """Find a name's addresses.

        Args:
            host: Canonical: lower-case LDH labels (and underscores), no dot at the end.

        Returns:
            Fires with the addresses, at least one, each once, in canonical text as
            `SocketAddress.host`, none with a zone; fails with `NameNotResolved`,
            `ResolveTimeout`, or `AddressError` for what is no canonical name.
            Cancelling it gives up waiting.
        """


def system_lookup(host: str) -> list[str]:
    """Ask the system's resolver; blocks, for half a minute if servers are silent.

    Args:
        host: A canonical name.

    Returns:
        Addresses as getaddrinfo(3) gives and sorts them, with duplicates.

    Raises:
        OSError: There are none, or nobody could say.
    """
    # As bytes: text would go through Python's IDNA codec first.
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for _, _, _, _, sockaddr in found]


@implementer(INameResolver)
class SystemResolver:
    """Asks a blocking function, in a few threads of its own.

    Questions for one name that is being looked up already wait for that answer; what
    was answered a moment ago is answered the same again. All methods belong to the
    reactor's thread.

    Args:
        reactor: Takes the threads' answers.
        clock: For deadlines and ages; usually the reactor.
        lookup: Called in a thread with a canonical name; returns IP literals, or
            raises OSError.
        threads: How many lookups at once, at least 1. A thread is started when it is
            needed and kept.
        queue: How many names may wait for a thread; beyond it `ResolverBusy`.
        deadline: Seconds that anybody waits for an answer.
        kept_seconds: Seconds for which an answer is given again.
        kept_names: How many answers are kept.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorFromThreads,
        clock: IReactorTime,
        *,
        lookup: Lookup = system_lookup,
        threads: int = _THREADS,
        queue: int = _QUEUE,
        deadline: float = _DEADLINE,
        kept_seconds: float = _KEPT_SECONDS,
        kept_names: int = _KEPT_NAMES,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._lookup = lookup
        self._threads = threads
        self._queue = queue
        self._deadline = deadline
        self._recent: Recent[str, Hosts | DialError] = Recent(
            clock, seconds=kept_seconds, size=kept_names
        )
        # Those that no thread has taken, and those that one has, each in order.
        self._queued: dict[str, Waiters[Hosts]] = {}
        self._running: dict[str, Waiters[Hosts]] = {}
        self._started = 0
        self._work: SimpleQueue[str | None] = SimpleQueue()
        self._closed = False

    def recent(self, host: str) -> Hosts | None:
        """As `INameResolver.recent`."""
        known = self._recent.get(host)
        return known if isinstance(known, tuple) else None

    def resolve(self, host: str) -> Deferred[Hosts]:
        """Find a name's addresses, as `INameResolver.resolve`.

        Fails with `ResolverBusy` where too many names wait for a thread.
        """
        known = self._recent.get(host)
        if known is not None:
            # Each failure gets an error of its own: tracebacks are added to it.
            return succeed(known) if isinstance(known, tuple) else fail(copy(known))
        if not is_canonical(host):
            return fail(AddressError(host, "not a canonical host name"))
        if self._closed:
            return fail(NameNotResolved(host, _STOPPED))
        waiters = self._running.get(host)
        if waiters is None:
            waiters = self._queued.get(host)
        if waiters is None:
            if len(self._queued) >= self._queue:
                return fail(ResolverBusy(host, "too many names are being resolved"))
            waiters = self._queued[host] = Waiters(partial(self._abandoned, host))
        timeout = self._deadline

        def too_late(_: object, __: float) -> Hosts:
            raise ResolveTimeout(host, f"no answer within {timeout:g} s")

        waiting = waiters.join().addTimeout(timeout, self._clock, too_late)
        self._start()
        return waiting

    def close(self) -> None:
        """Let the threads end, and fail what waits. A stuck thread ends with the process."""
        self._closed = True
        for _ in range(self._started):
            self._work.put(None)
        waiting = [*self._running.items(), *self._queued.items()]
        self._running.clear()
        self._queued.clear()
        for host, waiters in waiting:
            waiters.answer(NameNotResolved(host, _STOPPED))

    def _abandoned(self, host: str) -> None:
        # A lookup that runs can't be stopped; its answer is kept for who asks next.
        self._queued.pop(host, None)

    def _start(self) -> None:
        """Hand names to threads that are free."""
        while self._queued and len(self._running) < self._threads:
            host = next(iter(self._queued))
            waiters = self._queued.pop(host)
            try:
                self._need_thread()
            except RuntimeError as error:
                # The limit on processes (RLIMIT_NPROC, pids.max) is reached.
                waiters.answer(ResolverBusy(host, str(error)))
                continue
            self._running[host] = waiters
            self._work.put(host)

    def _need_thread(self) -> None:
        if self._started > len(self._running):
            return
        # A daemon: a lookup that is stuck must not hold up the process's end.
        Thread(target=self._run, name="sidecar-resolver", daemon=True).start()
        self._started += 1

    def _answered(self, host: str, answer: Hosts | DialError) -> None:
        waiters = self._running.pop(host, None)
        if waiters is None:
            # Closed meanwhile.
            return
        self._recent.keep(host, answer)
        self._start()
        waiters.answer(answer)

    # What follows runs in the threads

    def _run(self) -> None:
        while (host := self._work.get()) is not None:
            answer = self._look_up(host)
            if self._closed:
                # Nobody waits, and the reactor may be gone.
                return
            self._reactor.callFromThread(self._answered, host, answer)

    def _look_up(self, host: str) -> Hosts | DialError:
        try:
            addresses = _canonical(self._lookup(host))
        except OSError as error:
            return NameNotResolved(host, error.strerror or str(error))
        except Exception:  # noqa: BLE001 - the thread must live on, and the name be refused
            self._log.failure("bug in the lookup of a host name")
            return NameNotResolved(host, "the resolver failed")
        return addresses or NameNotResolved(host, "the name has no address")


def is_canonical(host: str) -> bool:
    """Whether addresses.py would have made this name of a peer's text.

    Nothing else is resolved: getaddrinfo stops at a NUL, and takes 127.1, 0x7f000001 and
    017700000001 for 127.0.0.1.
    """
    try:
        return parse_host(host) == host
    except AddressError:
        return False


def _canonical(answers: list[str]) -> Hosts:
    """The addresses that can be dialled as literals, each once, in the same order.

    As text: with it they are compared, dialled and logged for every connection.
    """
    found: dict[str, None] = {}
    for text in answers[:_ANSWERS]:
        # What has a zone (fe80::1%eth0) is no address without it.
        with suppress(AddressError):
            found[str(parse_ip(text))] = None
    return tuple(found)
