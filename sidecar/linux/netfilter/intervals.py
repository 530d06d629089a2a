"""How nft understands a set of addresses or ports: as intervals that don't touch.

The text (nft.py) and the messages (expressions.py) must agree on this to the letter,
since nft prints a set's intervals and not what they were written as.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.linux.netfilter.vocabulary import Destination, Owner, OwnerKind, Ports

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Interval", "KeyType", "intervals_of", "key_type_of"]


@dataclass(frozen=True, slots=True)
class Interval:
    """First and last value, both included."""

    first: int
    last: int

    @property
    def is_single(self) -> bool:
        """Whether it is one value."""
        return self.first == self.last

    def prefix_length(self, bits: int) -> int | None:
        """The length of the prefix that is this interval, None where none is."""
        size = self.last - self.first + 1
        if size & (size - 1) or self.first % size:
            return None
        return bits - (size.bit_length() - 1)


@dataclass(frozen=True, slots=True)
class KeyType:
    """A type of set keys: nft's number for it (nft's datatype.h), and its shape."""

    number: int
    octets: int
    host_order: bool = False
    is_address: bool = False


_IPV4_ADDR = KeyType(7, 4, is_address=True)
_IPV6_ADDR = KeyType(8, 16, is_address=True)
_INET_SERVICE = KeyType(13, 2)
_UID = KeyType(24, 4, host_order=True)
_GID = KeyType(25, 4, host_order=True)


def key_type_of(match: Destination | Ports | Owner) -> KeyType:
    """The type of what a match compares."""
    if isinstance(match, Destination):
        return _IPV4_ADDR if match.version == 4 else _IPV6_ADDR  # noqa: PLR2004 - the version
    if isinstance(match, Ports):
        return _INET_SERVICE
    return _UID if match.kind is OwnerKind.USER else _GID


def intervals_of(match: Destination | Ports | Owner) -> tuple[Interval, ...]:
    """The match's values as ascending intervals.

    Touching addresses and ports are joined, as nft does; users and groups are
    plain numbers to it and stay apart.
    """
    if isinstance(match, Owner):
        return tuple(Interval(number, number) for number in match.numbers)
    if isinstance(match, Ports):
        return _merge((each.first, each.last) for each in match.ranges)
    return _merge(
        (int(each.network_address), int(each.broadcast_address)) for each in match.networks
    )


def _merge(pairs: Iterable[tuple[int, int]]) -> tuple[Interval, ...]:
    merged: list[Interval] = []
    for first, last in sorted(pairs):
        if merged and first == merged[-1].last + 1:
            merged[-1] = Interval(merged[-1].first, last)
        else:
            merged.append(Interval(first, last))
    return tuple(merged)
