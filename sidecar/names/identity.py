"""Which addresses have shown a certificate for a name? Asked at most so often, remembered.

`probe` is how one address is asked, `certificates` what counts as an answer.
"""

from __future__ import annotations

from copy import copy
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import fail, succeed

from sidecar.errors import CertificateUnavailable, VerificationError
from sidecar.names.probe import STOPPED, Probe
from sidecar.names.sharing import Recent

if TYPE_CHECKING:
    from OpenSSL import SSL
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime

    from sidecar.addresses import SocketAddress
    from sidecar.dialing import Dialer
    from sidecar.names.probe import Key, Outcome
    from sidecar.relay.poller import Poller

__all__ = ["CertificateProber"]

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


class CertificateProber:
    """Asks addresses for their certificates.

    Questions for one name at one address that is being asked already wait for that
    answer; what was found a while ago holds. That an address was not reached is not
    kept.

    Args:
        clock: For deadlines and ages.
        poller: Watches the handshakes.
        dialer: Makes the connections: marked, guarded against loops.
        context: Whom to trust; see `certificates.trust`.
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
        self._probes: dict[Key, Probe] = {}
        self._queued: dict[Key, Probe] = {}
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
                return fail(CertificateUnavailable(host, str(address), STOPPED))
            if self._places() <= 0 and len(self._queued) >= self._queue:
                problem = "too many certificates are being asked for"
                return fail(CertificateUnavailable(host, str(address), problem))
            probe = Probe(self._poller, self._context, key, partial(self._ended, key))
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
