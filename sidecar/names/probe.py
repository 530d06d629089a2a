"""Does an address show a certificate for a name? One TLS handshake of our own.

The handshake is made with the name as SNI and nothing else: no ALPN, no client
certificate, no session, and once it is over the connection is closed without a byte
of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from OpenSSL import SSL

from sidecar.errors import (
    CertificateMismatch,
    CertificateUnavailable,
    ConnectionReset,
    ConnectionTimeout,
    DialError,
    VerificationError,
)
from sidecar.names.certificates import fault_of_chain, fault_of_names
from sidecar.names.sharing import Waiters
from sidecar.relay.poller import READ, WRITE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from sidecar.addresses import SocketAddress
    from sidecar.dialing import Dial, Dialer
    from sidecar.relay.poller import Poller

    Key = tuple[str, SocketAddress]
    Outcome = DialError | VerificationError | None

__all__ = ["STOPPED", "Probe"]

STOPPED = "sidecar is being stopped"


class Probe:
    """One question to one address.

    Args:
        poller: Watches the handshake.
        context: Whom to trust.
        key: The name and the address.
        ended: Called once, with the outcome; None is a proof.
    """

    __slots__ = (
        "_address",
        "_context",
        "_dial",
        "_ended",
        "_host",
        "_over",
        "_poller",
        "_sock",
        "_timer",
        "_tls",
        "waiters",
    )

    def __init__(
        self,
        poller: Poller,
        context: SSL.Context,
        key: Key,
        ended: Callable[[Outcome], None],
    ) -> None:
        self._poller = poller
        self._context = context
        self._host, self._address = key
        self._ended = ended
        self._over = False
        self._dial: Dial | None = None
        self._sock: socket.socket | None = None
        self._tls: SSL.Connection | None = None
        self._timer: IDelayedCall | None = None
        self.waiters: Waiters[None] = Waiters(self._abandoned)

    def expire_after(self, clock: IReactorTime, seconds: float) -> None:
        """Set the deadline."""
        self._timer = clock.callLater(seconds, self._expire, seconds)

    def start(self, dialer: Dialer) -> None:
        """Connect."""
        self._dial = dialer.dial(self._address, self._connected)

    def _connected(self, outcome: socket.socket | DialError, _: SocketAddress) -> None:
        self._dial = None
        if isinstance(outcome, DialError):
            self._finish(outcome)
            return
        self._sock = outcome
        self._tls = SSL.Connection(self._context, outcome)
        self._tls.set_tlsext_host_name(self._host.encode("ascii"))
        self._tls.set_connect_state()
        self._poller.register(outcome.fileno(), READ, self)
        self._shake_hands(outcome, self._tls)

    # The poller's side

    def ready(self, events: int) -> None:  # noqa: ARG002 - OpenSSL looks for itself
        """The server has said something, or is gone."""
        if self._sock is not None and self._tls is not None:
            self._shake_hands(self._sock, self._tls)

    def failed(self) -> None:
        """A bug in `ready`: nothing is proven."""
        self._unavailable("the handshake failed")

    def shut_down(self) -> None:
        """The process ends: who waits is told the same way, and cancels."""

    def stop(self) -> None:
        """Give up, and fail who waits."""
        self._unavailable(STOPPED)

    def _shake_hands(self, sock: socket.socket, tls: SSL.Connection) -> None:
        try:
            tls.do_handshake()
        except SSL.WantReadError:
            self._poller.modify(sock.fileno(), READ)
        except SSL.WantWriteError:
            self._poller.modify(sock.fileno(), WRITE)
        except SSL.SysCallError as error:
            words = error.args[1] if len(error.args) > 1 else "the connection was lost"
            self._unavailable(f"no TLS handshake: {words}")
        except SSL.Error as error:
            wrong = fault_of_chain(tls)
            if wrong is None:
                self._unavailable(f"no TLS handshake: {_words(error)}")
            else:
                self._mismatch(wrong)
        else:
            self._check_name(tls)

    def _check_name(self, tls: SSL.Connection) -> None:
        certificate = tls.get_peer_certificate()
        if certificate is None:
            self._unavailable("no certificate")
            return
        wrong = fault_of_names(certificate, self._host)
        if wrong is None:
            self._finish(None)
        else:
            self._mismatch(wrong)

    # Ends

    def _mismatch(self, wrong: str) -> None:
        self._finish(
            CertificateMismatch(self._host, str(self._address), f"its certificate: {wrong}")
        )

    def _unavailable(self, problem: str) -> None:
        self._finish(CertificateUnavailable(self._host, str(self._address), problem))

    def _expire(self, seconds: float) -> None:
        self._timer = None
        problem = f"no certificate within {seconds:g} s"
        if self._sock is None:
            self._finish(ConnectionTimeout(str(self._address), problem))
        else:
            self._unavailable(problem)

    def _abandoned(self) -> None:
        # To be able to start the next one; nobody hears of it, and it says nothing
        # of the address.
        self._finish(ConnectionReset(str(self._address), "nobody waits any more"))

    def _finish(self, outcome: Outcome) -> None:
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        if self._sock is not None:
            # Without a close_notify: nothing is said after the handshake.
            self._poller.forget(self._sock.fileno())
            self._sock.close()
            self._sock = self._tls = None
        self._ended(outcome)


def _words(error: SSL.Error) -> str:
    """What OpenSSL says of an error, e.g. "wrong version number"."""
    queue = error.args[0] if error.args else ()
    return "; ".join(entry[-1] for entry in queue if entry[-1]) or "ended by the server"
