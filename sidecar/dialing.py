"""How an upstream is reached: a literal address, one deadline, marked, no loops."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from twisted.logger import Logger

from sidecar.addresses import SocketAddress
from sidecar.errors import (
    ConnectionRefused,
    ConnectionReset,
    ConnectionTimeout,
    DestinationUnroutable,
    DialError,
    ProxyLoopDetected,
)
from sidecar.linux.sockopt import (
    TCP_CLOSE,
    TCP_SYN_SENT,
    bind_late,
    bind_non_local,
    keep_alive,
    set_mark,
    tcp_state,
    unread,
)
from sidecar.relay.poller import WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from sidecar.loops import LoopGuard
    from sidecar.relay.poller import Poller

    DialDone = Callable[[socket.socket | DialError, SocketAddress], None]

__all__ = ["Dial", "Dialer", "Source"]

# Plain numbers: combining and converting enums costs a microsecond for each socket.
_IPV4 = int(socket.AF_INET)
_IPV6 = int(socket.AF_INET6)
_STREAM = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


class Source:
    """The address that upstream connections are made from, by family.

    Args:
        ipv4, ipv6: An IP literal each; None leaves the choice to the kernel.
        transparent: The addresses need not be this host's (IP_TRANSPARENT), and a
            dial that can't have its source fails. Otherwise the source is a wish,
            given up where this host doesn't have it.
    """

    __slots__ = ("ipv4", "ipv6", "transparent")

    def __init__(self, ipv4: str | None, ipv6: str | None, *, transparent: bool = False) -> None:
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.transparent = transparent

    def of(self, family: socket.AddressFamily) -> str | None:
        """The source for destinations of a family."""
        return self.ipv6 if family == socket.AF_INET6 else self.ipv4


class Dialer:
    """Makes upstream connections.

    Args:
        clock: For the deadline.
        poller: Watches the connections while they are being made.
        guard: Knows which destinations lead back to us.
        mark: SO_MARK of the connections where permitted; None for no mark.
        timeout: Seconds from connect() to an answer, more than 0.
        keepalive: Seconds of silence before the kernel asks whether the peer is
            still there.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        poller: Poller,
        guard: LoopGuard,
        *,
        mark: int | None,
        timeout: float,
        keepalive: int,
    ) -> None:
        self._clock = clock
        self._poller = poller
        self._guard = guard
        self._mark = mark
        self._timeout = timeout
        self._keepalive = keepalive
        # All deadlines are equally long, so the oldest dial is always the next one
        # due, and one timer serves them all.
        self._waiting: dict[Dial, float] = {}
        self._timer: IDelayedCall | None = None

    def dial(
        self,
        address: SocketAddress,
        done: DialDone,
        source: Source | None = None,
    ) -> Dial | None:
        """Connect.

        Args:
            address: Where to; the port is 1 to 65535.
            done: Called once, with the connected non-blocking socket, which is the
                callee's, or with what went wrong, and with the address; before this
                returns where the answer is known at once (loopback, refusals).
            source: Where from.

        Returns:
            The dial that is under way; None if `done` was called.
        """
        if self._guard.leads_back(address):
            done(ProxyLoopDetected(str(address), "that is this proxy itself"), address)
            return None
        try:
            sock = self._open(address, source)
        except OSError as error:
            done(_dial_error(address, error), address)
            return None
        return self._connect(sock, address, done)

    def dial_with(self, sock: socket.socket, address: SocketAddress, done: DialDone) -> Dial | None:
        """Connect a socket of another network namespace, where no way leads back to us.

        Args:
            sock: TCP, non-blocking, neither bound nor connected; ours from here on.
            address: Where to, there; of the socket's family.
            done: As for `dial`.

        Returns:
            The dial that is under way; None if `done` was called.
        """
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(sock, self._keepalive)
        except OSError as error:
            sock.close()
            done(_dial_error(address, error), address)
            return None
        return self._connect(sock, address, done)

    def _connect(self, sock: socket.socket, address: SocketAddress, done: DialDone) -> Dial | None:
        error_number = sock.connect_ex((address.host, address.port))
        if error_number == errno.EINPROGRESS:
            # Over loopback the handshake is over by now; asking is a system call,
            # waiting for the poller is a wake-up.
            error_number = _progress(sock)
            if error_number == errno.EINPROGRESS:
                return Dial(self, sock, address, done)
        _answer(sock, address, error_number, done)
        return None

    def _open(self, address: SocketAddress, source: Source | None) -> socket.socket:
        sock = socket.socket(_IPV6 if ":" in address.host else _IPV4, _STREAM)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(sock, self._keepalive)
            if self._mark is not None:
                self._set_mark(sock, self._mark)
            host = None if source is None else source.of(address.family)
            if source is not None and host is not None:
                _bind(sock, host, transparent=source.transparent)
        except OSError:
            sock.close()
            raise
        return sock

    def _set_mark(self, sock: socket.socket, mark: int) -> None:
        try:
            set_mark(sock, mark)
        except PermissionError:
            self._mark = None
            self._log.info(
                "outgoing connections carry no mark: SO_MARK needs CAP_NET_ADMIN or"
                " CAP_NET_RAW; interception rules must exclude this process by its uid"
            )

    # Deadlines; called by Dial

    def watch(self, dial: Dial, sock: socket.socket) -> None:
        """Wait for a dial's answer."""
        self._poller.register(sock.fileno(), WRITE, dial)
        self._waiting[dial] = self._clock.seconds() + self._timeout
        if self._timer is None:
            self._timer = self._clock.callLater(self._timeout, self._expire)

    def forget(self, dial: Dial, sock: socket.socket) -> None:
        """Wait no longer."""
        del self._waiting[dial]
        self._poller.unregister(sock.fileno())

    def _expire(self) -> None:
        # Set until the end, so that a dial made meanwhile starts no second timer.
        now = self._clock.seconds()
        while self._waiting:
            dial, deadline = next(iter(self._waiting.items()))
            if deadline > now:
                self._timer = self._clock.callLater(deadline - now, self._expire)
                return
            try:
                dial.expire(self._timeout)
            except Exception:  # noqa: BLE001 - one connection's bug must not keep the others
                self._log.failure("bug in who dialled")
        self._timer = None

    def close(self) -> None:
        """Stop the timer; nobody may be dialling any more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


class Dial:
    """A connection that is being made."""

    __slots__ = ("_address", "_dialer", "_done", "_sock")

    def __init__(
        self,
        dialer: Dialer,
        sock: socket.socket,
        address: SocketAddress,
        done: DialDone,
    ) -> None:
        self._dialer = dialer
        self._sock = sock
        self._address = address
        self._done = done
        dialer.watch(self, sock)

    @property
    def local(self) -> SocketAddress:
        """The address that the kernel dials from."""
        return SocketAddress.from_kernel(self._sock.getsockname())

    def ready(self, events: int) -> None:  # noqa: ARG002 - the socket itself is asked
        """The kernel has an answer."""
        error_number = _progress(self._sock)
        if error_number != errno.EINPROGRESS:
            self._dialer.forget(self, self._sock)
            _answer(self._sock, self._address, error_number, self._done)

    def failed(self) -> None:
        """A bug in whoever was called: it owns the connection, or nobody does."""

    def shut_down(self) -> None:
        """The process ends: whoever waits for us is told the same way and cancels us."""

    def expire(self, timeout: float) -> None:
        """The deadline has passed."""
        self.cancel()
        problem = f"no answer within {timeout:g} s"
        self._done(ConnectionTimeout(str(self._address), problem), self._address)

    def cancel(self) -> None:
        """Give up; `done` is not called."""
        self._dialer.forget(self, self._sock)
        self._sock.close()


def _bind(sock: socket.socket, host: str, *, transparent: bool) -> None:
    if transparent:
        bind_non_local(sock, host)
        return
    try:
        bind_late(sock, host)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise


def _progress(sock: socket.socket) -> int:
    """How far a connect() is: EINPROGRESS, 0 for connected, or what went wrong.

    connect() and SO_ERROR would do, were it not for a server that sends and resets at
    once: they take the reset away, and with it the news that the connection existed,
    while its bytes still wait.
    """
    state = tcp_state(sock)
    if state == TCP_SYN_SENT:
        return errno.EINPROGRESS
    if state == TCP_CLOSE and unread(sock) == 0:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return 0


def _answer(sock: socket.socket, address: SocketAddress, error_number: int, done: DialDone) -> None:
    if error_number == 0:
        done(sock, address)
        return
    sock.close()
    done(_dial_error(address, OSError(error_number, os.strerror(error_number))), address)


def _dial_error(address: SocketAddress, error: OSError) -> DialError:
    """Which of our errors an errno of socket(), bind() or connect() is (connect(2))."""
    problem = error.strerror or str(error)
    if error.errno == errno.ECONNREFUSED:
        return ConnectionRefused(str(address), problem)
    if error.errno in {errno.ECONNRESET, errno.EPIPE}:
        return ConnectionReset(str(address), problem)
    if error.errno == errno.ETIMEDOUT:
        return ConnectionTimeout(str(address), problem)
    return DestinationUnroutable(str(address), problem)
