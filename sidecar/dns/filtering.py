"""What of a name server's answer is passed on.

Only records that answer the question: of its name, or of names that it leads to. Only
addresses that the policy could let the name have, whether they stand in an address record
or as a hint in a service's. No encrypted ClientHello, if the policy wants to see names. No
additional records: what a program needs of them it asks for, and we see it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from twisted.names import dns

from sidecar.dns.chains import ADDRESS_OCTETS, address_of, chain_of
from sidecar.dns.messages import HTTPS, SVCB, is_name
from sidecar.policy import Choice, Outcome
from sidecar.wire.svcb import ECH, IPV4HINT, IPV6HINT, SvcbError, read_svcb

if TYPE_CHECKING:
    from sidecar.dns.messages import Message, Question
    from sidecar.policy import Decision
    from sidecar.policy.reach import Reach
    from sidecar.wire.svcb import ServiceBinding

__all__ = ["Filtered", "filter_answer"]

_RRSIG = 46
# What may stand in the authority section: of a denial its zone and the proof, of a referral
# the servers' names (without their addresses). DS, RRSIG, NSEC, NSEC3.
_AUTHORITY = frozenset({dns.SOA, dns.NS, 43, _RRSIG, 47, 50})


@dataclass
class Filtered:
    """What is left of an answer.

    Attributes:
        answers, authority: The records, in their order.
        addresses: Those in them, canonical, each with its TTL.
        withheld: The addresses that are missing, canonical.
        denial: Why the first of them is.
        chain: The names that the answer leads through, as they came.
        is_whole: Whether nothing is missing of what the server signed.
    """

    answers: list[dns.RRHeader] = field(default_factory=list)
    authority: list[dns.RRHeader] = field(default_factory=list)
    addresses: dict[str, int] = field(default_factory=dict)
    withheld: dict[str, None] = field(default_factory=dict)
    denial: Decision | None = None
    chain: list[bytes] = field(default_factory=list)
    is_whole: bool = True


def filter_answer(message: Message, question: Question, host: str | None, reach: Reach) -> Filtered:
    """Take from an answer what may be passed on.

    Args:
        message: A name server's answer to the question.
        question: The client's.
        host: The name that the addresses are judged for: the one that was asked for,
            whatever names the answer leads through; None judges them alone.
        reach: What the policy could allow.
    """
    left = Filtered(chain=chain_of(message.answers, question.name))
    names = {question.name.lower(), *map(bytes.lower, left.chain)}
    # What of each name and type is not as it was signed.
    changed: set[tuple[bytes, int]] = set()
    for record in message.answers:
        owner = record.name.name.lower()
        if record.cls != dns.IN or not (owner in names or _is_dname(record, names)):
            left.is_whole = False
            continue
        kept = _kept(record, host, reach, left)
        if kept is not record:
            changed.add((owner, record.type))
        if kept is not None:
            left.answers.append(kept)
    if changed:
        left.is_whole = False
        left.answers = [each for each in left.answers if not _signs(each, changed)]
    left.authority = [
        record
        for record in message.authority
        if record.type in _AUTHORITY and record.cls == dns.IN and is_name(record.name.name)
    ]
    return left


def _is_dname(record: dns.RRHeader, names: set[bytes]) -> bool:
    """Whether a record is why one of the names leads elsewhere (RFC 6672)."""
    covers = record.type == dns.DNAME or (record.type == _RRSIG and _covered(record) == dns.DNAME)
    return covers and any(name.endswith(b"." + record.name.name.lower()) for name in names)


def _covered(record: dns.RRHeader) -> int:
    """The type that an RRSIG signs (RFC 4034 §3.1)."""
    return int.from_bytes(getattr(record.payload, "data", b"")[:2], "big")


def _signs(record: dns.RRHeader, changed: set[tuple[bytes, int]]) -> bool:
    return record.type == _RRSIG and (record.name.name.lower(), _covered(record)) in changed


def _kept(
    record: dns.RRHeader, host: str | None, reach: Reach, left: Filtered
) -> dns.RRHeader | None:
    """The record as it may be passed on: itself, another, or None."""
    data: bytes = getattr(record.payload, "data", b"")
    if record.type in ADDRESS_OCTETS:
        return record if _may(record.type, data, record.ttl, host, reach, left) else None
    if record.type in {SVCB, HTTPS}:
        try:
            binding = _filter_binding(read_svcb(data), record.ttl, host, reach, left)
        except SvcbError:
            return None
        if binding is None:
            return None
        written = binding.encode()
        if written == data:
            return record
        payload = dns.UnknownRecord(written)
        return dns.RRHeader(record.name.name, record.type, record.cls, record.ttl, payload)
    return record


def _may(
    kind: int, packed: bytes, ttl: int, host: str | None, reach: Reach, left: Filtered
) -> bool:
    address = address_of(kind, packed)
    if address is None:
        return False
    decision = reach.address(address, host)
    if decision.outcome is Outcome.ALLOW:
        left.addresses[address] = max(ttl, left.addresses.get(address, 0))
        return True
    left.withheld[address] = None
    left.denial = left.denial or decision
    return False


def _filter_binding(
    binding: ServiceBinding, ttl: int, host: str | None, reach: Reach, left: Filtered
) -> ServiceBinding | None:
    without: set[int] = set()
    if reach.policy.ech is not Choice.ALLOW:
        without.add(ECH)
    for key, kind in ((IPV4HINT, dns.A), (IPV6HINT, dns.AAAA)):
        value = binding.parameters.get(key)
        if value is None:
            continue
        octets = ADDRESS_OCTETS[kind]
        hints = [value[start : start + octets] for start in range(0, len(value), octets)]
        good = b"".join(hint for hint in hints if _may(kind, hint, ttl, host, reach, left))
        if good:
            binding = binding.having(key, good)
        else:
            without.add(key)
    return binding.without(without)
