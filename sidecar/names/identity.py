"""Does an address show a certificate for a name? Found out by a TLS handshake of our own.

The handshake is made with the name as SNI and nothing else: no ALPN, no client
certificate, no session, and once it is over the connection is closed without a byte
of ours. OpenSSL checks the chain against the trusted authorities, that the server has
the key, and the dates; service-identity checks the name (RFC 6125, RFC 9525: DNS names
of the subjectAltName only, a wildcard only as the whole leftmost label). Revocation is
not checked.
"""

from __future__ import annotations

from copy import copy
from functools import partial
from typing import TYPE_CHECKING

from OpenSSL import SSL
from service_identity.cryptography import verify_certificate_hostname
from service_identity.exceptions import CertificateError
from service_identity.exceptions import VerificationError as NameDiffers
from twisted.internet.defer import fail, succeed
from twisted.logger import Logger

from sidecar.errors import (
    CertificateMismatch,
    CertificateUnavailable,
    ConnectionReset,
    ConnectionTimeout,
    DialError,
    TrustError,
    VerificationError,
)
from sidecar.names.sharing import Recent, Waiters
from sidecar.relay.poller import READ, WRITE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from OpenSSL.crypto import X509
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from sidecar.addresses import SocketAddress
    from sidecar.dialing import Dial, Dialer
    from sidecar.relay.poller import Poller

    Key = tuple[str, SocketAddress]
    Outcome = DialError | VerificationError | None

__all__ = ["CertificateProber", "trust"]

# Handshakes at once, half a millisecond of CPU and one descriptor each. Addresses that
# don't answer, which a client can ask for as it likes, hold their place until the
# deadline.
_AT_ONCE = 64
# Probes that wait for a place; with many more, all would wait until the deadline.
_QUEUE = 1024
# Seconds from the question to the end of the handshake, waiting and connecting
# included: as long as a client's connection may take to be made (DESIGN §4).
_DEADLINE = 10.0
# Seconds. How long an address that has shown a certificate counts as the name's. Clouds
# give addresses away again within minutes; and a server is asked twelve times an hour.
_PROVEN_SECONDS = 300.0
# Seconds. A client that tries again and again doesn't make us handshake each time;
# a server that has been mended is soon seen.
_FAILED_SECONDS = 10.0
# Results, some 500 bytes each, good and bad ones apart: the bad ones, that a client
# can cause at will, must not drive out the good.
_KEPT = 4096

_STOPPED = "sidecar is being stopped"

# openssl/x509_vfy.h
_WORDS = {
    SSL.X509VerificationCodes.ERR_CERT_NOT_YET_VALID: "it is not valid yet",
    SSL.X509VerificationCodes.ERR_CERT_HAS_EXPIRED: "it has expired",
    SSL.X509VerificationCodes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "it is self-signed",
    SSL.X509VerificationCodes.ERR_SELF_SIGNED_CERT_IN_CHAIN: "its authority is not trusted",
    SSL.X509VerificationCodes.ERR_UNABLE_TO_GET_ISSUER_CERT: "its authority is not known",
    SSL.X509VerificationCodes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "its authority is not known",
    SSL.X509VerificationCodes.ERR_INVALID_CA: "it is signed by what is no authority",
    SSL.X509VerificationCodes.ERR_INVALID_PURPOSE: "it is not for servers",
}


def trust(path: str | None = None) -> SSL.Context:
    """Load certificate authorities, once for all handshakes.

    Args:
        path: A file of them (PEM), the only ones that count; None for the platform's.

    Raises:
        TrustError: The file can't be read, or has no certificate.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_verify(SSL.VERIFY_PEER, _verified)
    if path is None:
        context.set_default_verify_paths()
        return context
    try:
        # OpenSSL's own errors for files are riddles.
        with open(path, "rb"):  # noqa: PTH123 - as the message quotes it
            pass
        context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise TrustError(path, f"can't be read: {problem}") from None
    except SSL.Error:
        raise TrustError(path, "has no certificate in PEM format, or a broken one") from None
    return context


def _verified(connection: SSL.Connection, _: X509, code: int, depth: int, good: int) -> bool:
    """Take note of what OpenSSL found wrong with a chain; it is the judge of that."""
    if not good and connection.get_app_data() is None:
        words = _WORDS.get(code, f"OpenSSL's verification error {code}")
        connection.set_app_data(words if depth == 0 else f"above it: {words}")
    return bool(good)


class CertificateProber:
    """Asks addresses for their certificates.

    Questions for one name at one address that is being asked already wait for that
    answer; what was found a while ago holds. That an address was not reached is not
    kept.

    Args:
        clock: For deadlines and ages.
        poller: Watches the handshakes.
        dialer: Makes the connections: marked, guarded against loops.
        context: Whom to trust; see `trust`.
        at_once: How many probes at once, at least 1.
        queue: How many may wait for a place; beyond it `CertificateUnavailable`.
        deadline: Seconds that a probe may take, waiting included.
        proven_seconds, failed_seconds: For how long results hold.
        kept: How many good results are kept, and how many bad ones.
    """

    def __init__(
        self,
        clock: IReactorTime,
        poller: Poller,
        dialer: Dialer,
        context: SSL.Context,
        *,
        at_once: int = _AT_ONCE,
        queue: int = _QUEUE,
        deadline: float = _DEADLINE,
        proven_seconds: float = _PROVEN_SECONDS,
        failed_seconds: float = _FAILED_SECONDS,
        kept: int = _KEPT,
    ) -> None:
        self._clock = clock
        self._poller = poller
        self._dialer = dialer
        self._context = context
        self._at_once = at_once
        self._queue = queue
        self._deadline = deadline
        self._proven: Recent[Key, bool] = Recent(clock, seconds=proven_seconds, size=kept)
        self._failed: Recent[Key, VerificationError] = Recent(
            clock, seconds=failed_seconds, size=kept
        )
        # All of them, by what they ask; those that have no place yet, in order.
        self._probes: dict[Key, _Probe] = {}
        self._queued: dict[Key, _Probe] = {}
        self._closed = False

    def probe(self, host: str, address: SocketAddress) -> Deferred[None]:
        """Find out whether an address shows a certificate that is valid for a name.

        Args:
            host: The name, canonical.
            address: Whom to ask.

        Returns:
            Fires if it does; fails with `CertificateMismatch` if it shows another,
            `CertificateUnavailable` if it shows none, or the `DialError` if it was
            not reached. Cancelling it gives up waiting.
        """
        key = (host, address)
        if self._proven.get(key):
            return succeed(None)
        failed = self._failed.get(key)
        if failed is not None:
            return fail(copy(failed))
        probe = self._probes.get(key)
        if probe is None:
            if self._closed:
                return fail(CertificateUnavailable(host, str(address), _STOPPED))
            if self._places() <= 0 and len(self._queued) >= self._queue:
                problem = "too many certificates are being asked for"
                return fail(CertificateUnavailable(host, str(address), problem))
            probe = _Probe(self._poller, self._context, key, partial(self._ended, key))
            self._probes[key] = self._queued[key] = probe
            probe.expire_after(self._clock, self._deadline)
        waiting = probe.waiters.join()
        self._start()
        return waiting

    @property
    def busy(self) -> bool:
        """Whether anybody waits for an answer."""
        return bool(self._probes)

    def close(self) -> None:
        """Give up every probe, and fail who waits. Flows that are to end otherwise have ended.

        The poller must be open where anybody still waits.
        """
        self._closed = True
        self._queued.clear()
        for probe in list(self._probes.values()):
            probe.stop()

    def _places(self) -> int:
        return self._at_once - (len(self._probes) - len(self._queued))

    def _start(self) -> None:
        while self._queued and self._places() > 0:
            probe = self._queued.pop(next(iter(self._queued)))
            probe.start(self._dialer)

    def _ended(self, key: Key, outcome: Outcome) -> None:
        probe = self._probes.pop(key)
        self._queued.pop(key, None)
        if outcome is None:
            self._proven.keep(key, value=True)
        elif isinstance(outcome, VerificationError):
            self._failed.keep(key, outcome)
        self._start()
        probe.waiters.answer(outcome)


class _Probe:
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

    _log = Logger()

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
        self._unavailable(_STOPPED)

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
            wrong = tls.get_app_data()
            if wrong is None:
                self._unavailable(f"no TLS handshake: {_words(error)}")
            else:
                self._mismatch(wrong)
        else:
            self._check_name(tls)

    def _check_name(self, tls: SSL.Connection) -> None:
        try:
            certificate = tls.get_peer_certificate()
            if certificate is None:
                self._unavailable("no certificate")
                return
            verify_certificate_hostname(certificate.to_cryptography(), self._host)
        except NameDiffers:
            self._mismatch("it is for other names")
        except CertificateError:
            self._mismatch("it has no usable name")
        except Exception as error:  # noqa: BLE001 - what no parser can read proves nothing
            self._mismatch(f"its names can't be read: {type(error).__name__}")
        else:
            self._finish(None)

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
