"""Which addresses has this sidecar's own DNS given out, and for which names?

Where every question passes through us, we know what a program was told. Two things
follow: an address that was answered for a name is that name's, without asking again
(`ServedFirst`); and a connection that says no name (SSH, a database) still has one
(`name_of`).

What was answered counts for its TTL and a grace: programs keep addresses for longer than
they should. It is bounded: whoever asks for more drives out the oldest, and is then judged as
one whose name is not known, or verified by other means.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zope.interface import implementer

from sidecar.addresses import SocketAddress, pack, parse_host, parse_ip
from sidecar.errors import AddressError
from sidecar.flow import Protocol
from sidecar.names.verifying import Addresses, IVerifier
from sidecar.policy import Outcome, Reason
from sidecar.policy.ranges import AddressClass, classify

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime

    from sidecar.names.verifying import Acceptable
    from sidecar.policy import Policy

__all__ = ["Served", "ServedFirst", "hosts_file", "name_of"]

# Seconds for which an answer counts after its TTL. Connection pools and JVMs dial again
# an address that they asked for minutes ago; clouds give addresses to others within the
# hour.
_GRACE = 600.0
# Seconds. No TTL counts for more: who answers with a year would be remembered for one.
_LONGEST = 86400.0
# Pairs of a name and an address, some 300 bytes each.
_KEPT = 1 << 14
# /etc/hosts, bytes. Files that block advertisers have 100,000 lines; this is ten times that.
_HOSTS_MAX = 32 << 20
_HOSTS = Path("/etc/hosts")

_FOR_EVER = float("inf")


class Served:
    """The answers that were given out.

    Names and addresses are canonical, as `addresses` makes them. All methods belong to the
    reactor's thread.

    Args:
        clock: Says how old an answer is. No timer is set.
        grace: Seconds for which an answer counts after its TTL.
        size: How many pairs of name and address are kept, at least 1.
    """

    def __init__(self, clock: IReactorTime, *, grace: float = _GRACE, size: int = _KEPT) -> None:
        self._clock = clock
        self._grace = grace
        self._size = size
        # Until when; in the order in which they were last answered.
        self._until: dict[tuple[str, str], float] = {}
        # The same pairs by address and by name; the inner ones in that order, too.
        self._names: dict[str, dict[str, None]] = {}
        self._addresses: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._until)

    def record(self, name: str, address: str, ttl: float) -> None:
        """Take note of an answer.

        Args:
            name: The name that was asked for.
            address: An address that it was answered with.
            ttl: Seconds for which the answer says that it holds.
        """
        ttl = min(max(ttl, 0.0), _LONGEST)
        self._keep(name, address, self._clock.seconds() + ttl + self._grace)

    def add_permanent(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Take note of what programs know without asking: the lines of /etc/hosts.

        Args:
            pairs: Names and addresses; of more than there is room for, the first.
        """
        for name, address in pairs:
            if len(self._until) >= self._size:
                return
            self._keep(name, address, _FOR_EVER)

    def _keep(self, name: str, address: str, until: float) -> None:
        pair = (name, address)
        known = self._until.pop(pair, 0.0)
        if known == 0.0 and len(self._until) >= self._size:
            self._forget(next(iter(self._until)))
        self._until[pair] = max(until, known)
        names = self._names.setdefault(address, {})
        names.pop(name, None)
        names[name] = None
        self._addresses.setdefault(name, {})[address] = None

    def _forget(self, pair: tuple[str, str]) -> None:
        name, address = pair
        del self._until[pair]
        for outer, inner, table in (
            (address, name, self._names),
            (name, address, self._addresses),
        ):
            del table[outer][inner]
            if not table[outer]:
                del table[outer]

    def owns(self, name: str, address: str) -> bool:
        """Whether the address was answered for the name, not too long ago."""
        return self._is_fresh((name, address))

    def names_of(self, address: str) -> tuple[str, ...]:
        """For which names the address was answered; the latest first."""
        names = self._names.get(address, ())
        return tuple([name for name in reversed(list(names)) if self._is_fresh((name, address))])

    def addresses_of(self, name: str) -> tuple[str, ...]:
        """Which addresses were answered for the name."""
        addresses = self._addresses.get(name, ())
        return tuple([each for each in list(addresses) if self._is_fresh((name, each))])

    def _is_fresh(self, pair: tuple[str, str]) -> bool:
        until = self._until.get(pair)
        if until is None:
            return False
        if until > self._clock.seconds():
            return True
        self._forget(pair)
        return False


@implementer(IVerifier)
class ServedFirst:
    """What was answered for a name is dialled; of the rest, somebody else decides.

    Args:
        served: The answers given out.
        otherwise: Asked about addresses that are not among them: the configured verifier.
    """

    def __init__(self, served: Served, otherwise: IVerifier) -> None:
        self._served = served
        self._otherwise = otherwise

    def verify(
        self, host: str, address: SocketAddress, acceptable: Acceptable
    ) -> Addresses | Deferred[Addresses]:
        """As `IVerifier.verify`."""
        if self._served.owns(host, address.host) and acceptable(address):
            return (address,)
        return self._otherwise.verify(host, address, acceptable)


def name_of(served: Served, policy: Policy, address: SocketAddress) -> str | None:
    """Which name a connection is for that says none itself.

    Where the address was answered for several names, nobody can tell which of them is meant.
    All of them are the address's, so one that may go there is enough; but one that is denied by
    a rule is enough, too, and comes first.

    Args:
        served: The answers given out.
        policy: What the names are judged by.
        address: Where to.

    Returns:
        The name that decides: of several, one that a rule denies, else the latest that is
        allowed, else the latest; None if the address was not answered for any.
    """
    names = served.names_of(address.host)
    if len(names) < 2:  # noqa: PLR2004 - nothing to choose
        return names[0] if names else None
    allowed: str | None = None
    for name in names:
        decision = policy.judge(address.host, address.port, host=name, protocol=Protocol.TCP)
        if decision.reason is Reason.DENIED_BY_RULE:
            return name
        if allowed is None and decision.outcome is Outcome.ALLOW:
            allowed = name
    return allowed or names[0]


def hosts_file(path: Path = _HOSTS) -> list[tuple[str, str]]:
    """Read names and addresses from a file in the format of hosts(5).

    Lines that can't be read are left out, as the C library does. So are loopback addresses: those
    are each namespace's own, and files that block advertisers have thousands of them.

    Returns:
        Canonical names and addresses, in the file's order; nothing if there is no file.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_HOSTS_MAX).decode("ascii", "replace")
    except OSError:
        return []
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        try:
            address = str(parse_ip(words[0])) if words else None
        except AddressError:
            continue
        if address is None or classify(pack(address)) is AddressClass.LOOPBACK:
            continue
        for word in words[1:]:
            try:
                name = parse_host(word)
            except AddressError:
                continue
            if isinstance(name, str):
                found.append((name, address))
    return found
