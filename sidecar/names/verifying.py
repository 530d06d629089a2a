"""Does an address belong to the name that a client claims for it, and what is dialled?

A client picks the name (SNI, Host) and the address independently, so a rule that
allows a name says nothing of the address until one of these has been asked. What they
answer is dialled as it is: no name is resolved again between the check and the
connection, so an answer that changes meanwhile (DNS rebinding) changes nothing.

What is judged of DNS is the question and the final addresses. The names that a chain
of CNAMEs passes through are not looked at: who owns the name chose them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import Interface, implementer

from sidecar.addresses import SocketAddress
from sidecar.errors import AddressRefused, DialError, VerificationImpossible

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from twisted.python.failure import Failure

    from sidecar.addresses import IPAddress
    from sidecar.names.identity import CertificateProber
    from sidecar.names.resolving import INameResolver

    Acceptable = Callable[[SocketAddress], bool]

__all__ = ["Certificate", "IVerifier", "Off", "Redial", "Verifier", "acceptable_answers"]


class IVerifier(Interface):
    """Somebody who says which address may be dialled for a name."""

    def verify(
        host: str,  # noqa: N805 - zope's have no self
        address: SocketAddress,
        acceptable: Acceptable,
    ) -> Deferred[SocketAddress]:
        """Find the address to dial.

        Args:
            host: The name that the client claims, canonical.
            address: Where the client dialled.
            acceptable: Whether the policy lets an address be dialled for this name
                (public or private, denied networks and ports). Asked for every
                address before it is dialled, probed or returned; its exceptions
                fail the Deferred.

        Returns:
            Fires with the address to dial, which has the same port; fails with a
            `VerificationError`. Cancelling it gives up.
        """


@implementer(IVerifier)
class Redial:
    """``verify = "redial"``: what the name resolves to is dialled, whatever the client did.

    Where the client's address is among the answers it is kept. Otherwise the client
    dialled something else under that name, or its resolver sees other answers than
    ours (a CDN); either way an address of ours is right.

    Args:
        resolver: Asked for the name.
    """

    def __init__(self, resolver: INameResolver) -> None:
        self._resolver = resolver

    def verify(
        self, host: str, address: SocketAddress, acceptable: Acceptable
    ) -> Deferred[SocketAddress]:
        """As `IVerifier.verify`."""

        def chosen(answers: list[SocketAddress]) -> SocketAddress:
            return address if address in answers else _choose(answers, address)

        found = acceptable_answers(self._resolver, host, address, acceptable)
        return found.addCallback(chosen)


@implementer(IVerifier)
class Certificate:
    """``verify = "certificate"``: the address must show a certificate for the name.

    Args:
        prober: Makes the handshakes.
    """

    def __init__(self, prober: CertificateProber) -> None:
        self._prober = prober

    def verify(
        self, host: str, address: SocketAddress, acceptable: Acceptable
    ) -> Deferred[SocketAddress]:
        """As `IVerifier.verify`."""

        def failed(failure: Failure) -> NoReturn:
            _wrap(failure, host, address)

        return (
            _accepted(host, address, acceptable)
            .addCallback(lambda _: self._prober.probe(host, address))
            .addCallbacks(lambda _: address, failed)
        )


@implementer(IVerifier)
class Off:
    """``verify = "off"``: the client is believed; only the policy's view of the address counts."""

    def verify(
        self, host: str, address: SocketAddress, acceptable: Acceptable
    ) -> Deferred[SocketAddress]:
        """As `IVerifier.verify`."""
        return _accepted(host, address, acceptable)


Verifier = Redial | Certificate | Off


def acceptable_answers(
    resolver: INameResolver, host: str, address: SocketAddress, acceptable: Acceptable
) -> Deferred[list[SocketAddress]]:
    """Resolve a name, and drop the addresses that may not be dialled for it.

    Args:
        resolver: Asked once.
        host: The name, canonical.
        address: What the errors name; its port is the answers'. Where there is none
            yet (an SNI proxy), the unspecified address with the port.
        acceptable: As for `IVerifier.verify`.

    Returns:
        Fires with at least one address, in the resolver's order; fails with
        `AddressRefused` or `VerificationImpossible`.
    """

    def filtered(answers: tuple[IPAddress, ...]) -> list[SocketAddress]:
        found = [SocketAddress(str(answer), address.port) for answer in answers]
        good = [each for each in found if acceptable(each)]
        if not good:
            shown = ", ".join(each.host for each in found[:_SHOWN])
            raise AddressRefused(host, str(address), f"it resolves to {shown}, which is refused")
        return good

    def failed(failure: Failure) -> NoReturn:
        _wrap(failure, host, address)

    return resolver.resolve(host).addCallbacks(filtered, failed)


# Addresses in an error; a name may have hundreds.
_SHOWN = 4


def _accepted(host: str, address: SocketAddress, acceptable: Acceptable) -> Deferred[SocketAddress]:
    try:
        if acceptable(address):
            return succeed(address)
    except Exception:  # noqa: BLE001 - the caller's; it learns of it where it learns of ours
        return fail()
    return fail(AddressRefused(host, str(address), "the address is refused"))


def _choose(answers: list[SocketAddress], address: SocketAddress) -> SocketAddress:
    """One answer, the same each time, of the family that the client can use.

    Which one hangs on the address that the client dialled, so that clients of a name
    with many addresses spread over them as they did.
    """
    if len(answers) == 1:
        return answers[0]
    same = [each for each in answers if each.family == address.family]
    ordered = sorted(same or answers, key=lambda each: each.ip.packed)
    return ordered[int(address.ip) % len(ordered)]


def _wrap(failure: Failure, host: str, address: SocketAddress) -> NoReturn:
    error = failure.value
    if isinstance(error, DialError):
        raise VerificationImpossible(host, str(address), error) from None
    failure.raiseException()
