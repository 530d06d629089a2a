"""Does an address belong to the name that a client claims for it, and what is dialled?

A client picks the name (SNI, Host) and the address independently, so a rule that
allows a name says nothing of the address until one of these has been asked. What they
answer is dialled as it is: no name is resolved again between the check and the
connection, so an answer that changes meanwhile (DNS rebinding) changes nothing.

What is judged of DNS is the question and the final addresses. The names that a chain
of CNAMEs passes through are not looked at: who owns the name chose them.

Answers that are known already are given without a Deferred: nearly all are, and each
Deferred costs as much as the rest of the check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, fail
from zope.interface import Interface, implementer

from sidecar.addresses import SocketAddress, pack
from sidecar.errors import AddressRefused, DialError, VerificationImpossible

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from twisted.python.failure import Failure

    from sidecar.names.identity import CertificateProber
    from sidecar.names.resolving import INameResolver

    Acceptable = Callable[[SocketAddress], bool]

__all__ = [
    "MOST_ADDRESSES",
    "Addresses",
    "Certificate",
    "IVerifier",
    "Off",
    "Redial",
    "Verifier",
    "acceptable_answers",
]

Addresses = tuple[SocketAddress, ...]
"""What may be dialled, at least one, the best first."""

MOST_ADDRESSES = 4
"""How many of a name's addresses are tried for one connection: two of each family, as
browsers do; with ten seconds for all, each has at least two and a half."""


class IVerifier(Interface):
    """Somebody who says which addresses may be dialled for a name."""

    def verify(
        host: str,  # noqa: N805 - zope's have no self
        address: SocketAddress,
        acceptable: Acceptable,
    ) -> Addresses | Deferred[Addresses]:
        """Find the addresses to dial.

        Args:
            host: The name that the client claims, canonical.
            address: Where the client dialled.
            acceptable: Whether the policy lets an address be dialled for this name
                (public or private, denied networks and ports). Asked for every
                address before it is dialled, probed or returned; its exceptions
                fail the Deferred.

        Returns:
            The addresses to dial, one after another until one answers, 1 to
            `MOST_ADDRESSES`; all have the same port. A Deferred of them where they
            have to be found out; it fails with a `VerificationError`, and cancelling
            it gives up. Nothing is raised.
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
    ) -> Addresses | Deferred[Addresses]:
        """As `IVerifier.verify`."""
        found = acceptable_answers(self._resolver, host, address, acceptable)
        if isinstance(found, tuple):
            return _ordered(found, address)
        return found.addCallback(_ordered, address)


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
    ) -> Addresses | Deferred[Addresses]:
        """As `IVerifier.verify`."""
        accepted = _accepted(host, address, acceptable)
        if isinstance(accepted, Deferred):
            return accepted
        return self._prober.probe(host, address).addCallbacks(
            lambda _: accepted, _wrap, errbackArgs=(host, address)
        )


@implementer(IVerifier)
class Off:
    """``verify = "off"``: the client is believed; only the policy's view of the address counts."""

    def verify(
        self, host: str, address: SocketAddress, acceptable: Acceptable
    ) -> Addresses | Deferred[Addresses]:
        """As `IVerifier.verify`."""
        return _accepted(host, address, acceptable)


Verifier = Redial | Certificate | Off


def acceptable_answers(
    resolver: INameResolver, host: str, address: SocketAddress, acceptable: Acceptable
) -> Addresses | Deferred[Addresses]:
    """Resolve a name, and drop the addresses that may not be dialled for it.

    Args:
        resolver: Asked once.
        host: The name, canonical.
        address: What the errors name; its port is the answers'. Where there is none
            yet (an SNI proxy), the unspecified address with the port.
        acceptable: As for `IVerifier.verify`.

    Returns:
        All of them, at least one, in the resolver's order, if it knows them already;
        else a Deferred of them, which fails with `AddressRefused` or
        `VerificationImpossible`. Nothing is raised.
    """
    known = resolver.recent(host)
    if known is None:
        return resolver.resolve(host).addCallbacks(
            _acceptable,
            _wrap,
            callbackArgs=(host, address, acceptable),
            errbackArgs=(host, address),
        )
    try:
        return _acceptable(known, host, address, acceptable)
    except Exception:  # noqa: BLE001 - the caller's `acceptable`; it learns of it as of ours
        return fail()


# Addresses in an error; a name may have hundreds.
_SHOWN = 4


def _acceptable(
    answers: tuple[str, ...], host: str, address: SocketAddress, acceptable: Acceptable
) -> Addresses:
    port = address.port
    found = [SocketAddress(answer, port) for answer in answers]
    good = tuple([each for each in found if acceptable(each)])
    if not good:
        shown = ", ".join(each.host for each in found[:_SHOWN])
        raise AddressRefused(host, str(address), f"it resolves to {shown}, which is refused")
    return good


def _accepted(
    host: str, address: SocketAddress, acceptable: Acceptable
) -> Addresses | Deferred[Addresses]:
    try:
        if acceptable(address):
            return (address,)
    except Exception:  # noqa: BLE001 - the caller's; it learns of it where it learns of ours
        return fail()
    return fail(AddressRefused(host, str(address), "the address is refused"))


def _ordered(answers: Addresses, address: SocketAddress) -> Addresses:
    """Some answers, the same each time, first those of the family that the client can use.

    With which one it begins hangs on the address that the client dialled, so that
    clients of a name with many addresses spread over them as they did.
    """
    if len(answers) == 1:
        return answers
    first: Addresses = ()
    if address in answers:
        # Where the client went comes first; the others only if nobody is there.
        first = (address,)
        answers = tuple([each for each in answers if each != address])
    is_ipv6 = ":" in address.host
    same = [each for each in answers if (":" in each.host) is is_ipv6]
    if len(same) > 1:
        same.sort(key=_packed)
        start = int.from_bytes(pack(address.host), "big") % len(same)
        same = same[start:] + same[:start]
    others = [each for each in answers if (":" in each.host) is not is_ipv6]
    return (*first, *same, *others)[:MOST_ADDRESSES]


def _packed(address: SocketAddress) -> bytes:
    return pack(address.host)


def _wrap(failure: Failure, host: str, address: SocketAddress) -> NoReturn:
    error = failure.value
    if isinstance(error, DialError):
        raise VerificationImpossible(host, str(address), error) from None
    failure.raiseException()
