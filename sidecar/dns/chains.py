"""Where does an answer lead? The names on the way from a question, and the addresses at its end."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from twisted.names import dns

from sidecar.addresses import parse_ip
from sidecar.dns.messages import is_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sidecar.dns.messages import Question

__all__ = ["ADDRESS_OCTETS", "address_of", "addresses_in", "chain_of"]

ADDRESS_OCTETS = {dns.A: 4, dns.AAAA: 16}
"""The types of records that hold an address, and how long it is."""

_FAMILIES = {dns.A: socket.AF_INET, dns.AAAA: socket.AF_INET6}
# Names that an answer may lead through; resolvers give up at 8 to 16.
_CHAIN_MAX = 32


def chain_of(records: Iterable[dns.RRHeader], name: bytes) -> list[bytes]:
    """Follow the CNAMEs from a name.

    Args:
        records: The answer section.
        name: The question's.

    Returns:
        The names that it leads to, in that order, as they came; at most 31.
    """
    targets: dict[bytes, bytes] = {}
    for record in records:
        if isinstance(record.payload, dns.Record_CNAME) and record.payload.name is not None:
            targets.setdefault(record.name.name.lower(), record.payload.name.name)
    chain: list[bytes] = []
    passed = {name.lower()}
    target = targets.get(name.lower())
    while target is not None and is_name(target) and target.lower() not in passed:
        chain.append(target)
        passed.add(target.lower())
        target = targets.get(target.lower()) if len(passed) < _CHAIN_MAX else None
    return chain


def address_of(kind: int, data: bytes) -> str | None:
    """Read an address.

    Args:
        kind: One of `ADDRESS_OCTETS`.
        data: What the record says.

    Returns:
        Canonical; None if it is too short or too long.
    """
    if len(data) != ADDRESS_OCTETS[kind]:
        return None
    return str(parse_ip(socket.inet_ntop(_FAMILIES[kind], data)))


def addresses_in(records: Sequence[dns.RRHeader], question: Question) -> tuple[str, ...]:
    """List the addresses that the name asked for has: its own, and those of its chain.

    Args:
        records: The answer section.
        question: For one of `ADDRESS_OCTETS`.

    Returns:
        Canonical, in the answer's order.
    """
    chain = chain_of(records, question.name)
    names = {question.name.lower(), *map(bytes.lower, chain)}
    found = [
        address_of(record.type, getattr(record.payload, "data", b""))
        for record in records
        if (record.type, record.cls) == (question.type, dns.IN)
        and record.name.name.lower() in names
    ]
    return tuple([address for address in found if address is not None])
