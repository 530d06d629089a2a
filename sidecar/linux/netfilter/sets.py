"""How a rule's set of addresses, ports or owners is made in the kernel."""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING

from sidecar.linux.attributes import attribute, be32, nested, text
from sidecar.linux.netfilter.intervals import Interval, KeyType, intervals_of, key_type_of
from sidecar.linux.netfilter.model import TABLE
from sidecar.linux.netfilter.nfnetlink import message, user_data
from sidecar.linux.netlink import NLM_F_CREATE, Message

if TYPE_CHECKING:
    from sidecar.linux.netfilter.expressions import Lookup

__all__ = ["elements_of", "set_messages"]

# linux/netfilter/nf_tables.h
_NEWSET, _NEWSETELEM = 9, 12
_SET_ANONYMOUS, _SET_CONSTANT, _SET_INTERVAL = 0x1, 0x2, 0x4
ELEMENT_INTERVAL_END = 0x1
# libnftnl/udata.h, and nft's own SET_ELEM_F_INTERVAL_OPEN: only nft reads these, to
# print the set as it was meant.
_UDATA_KEY_BYTE_ORDER = 0
_UDATA_ELEMENT_FLAGS = 1
_INTERVAL_OPEN = 1
_HOST_ENDIAN, _BIG_ENDIAN = 1, 2
_ELEMENTS_PER_MESSAGE = 800
_U32 = struct.Struct("=I")


def set_messages(lookup: Lookup, set_id: int) -> list[Message]:
    """Make the set that a lookup needs, under this number, with its elements."""
    key_type = key_type_of(lookup.match)
    flags = _SET_ANONYMOUS | _SET_CONSTANT
    if _is_interval_set(lookup):
        flags |= _SET_INTERVAL
    order = _HOST_ENDIAN if key_type.host_order else _BIG_ENDIAN
    elements = elements_of(lookup)
    body = (
        text(1, TABLE),
        text(2, "__set%d"),
        be32(3, flags),
        be32(4, key_type.number),
        be32(5, key_type.octets),
        nested(9, be32(1, len(elements))),
        be32(10, set_id),
        attribute(13, user_data(_UDATA_KEY_BYTE_ORDER, _U32.pack(order))),
    )
    messages = [message(_NEWSET, NLM_F_CREATE, body, "sets (nf_tables)")]
    for start in range(0, len(elements), _ELEMENTS_PER_MESSAGE):
        part = elements[start : start + _ELEMENTS_PER_MESSAGE]
        encoded = []
        for key, end in part:
            attributes = [nested(1, attribute(1, key))]
            if end:
                attributes.append(be32(3, ELEMENT_INTERVAL_END))
            elif flags & _SET_INTERVAL and (key, end) == elements[-1]:
                # The last interval has no end: it reaches the highest value.
                flagged = user_data(_UDATA_ELEMENT_FLAGS, _U32.pack(_INTERVAL_OPEN))
                attributes.append(attribute(6, flagged))
            encoded.append(nested(1, *attributes))
        these = (text(1, TABLE), text(2, "__set%d"), nested(3, *encoded), be32(4, set_id))
        messages.append(message(_NEWSETELEM, NLM_F_CREATE, these, "interval sets (nf_tables)"))
    return messages


def _is_interval_set(lookup: Lookup) -> bool:
    return not all(each.is_single for each in intervals_of(lookup.match))


def elements_of(lookup: Lookup) -> list[tuple[bytes, bool]]:
    """Keys of a set, and whether each ends an interval.

    An interval set is a list of points at which membership changes; the first is
    always zero.
    """
    key_type = key_type_of(lookup.match)
    intervals = intervals_of(lookup.match)
    if not _is_interval_set(lookup):
        return [(_key(each.first, key_type), False) for each in intervals]
    points = [] if intervals[0].first == 0 else [(_key(0, key_type), True)]
    for each in intervals:
        points += _points(each, key_type)
    return points


def _points(interval: Interval, key_type: KeyType) -> list[tuple[bytes, bool]]:
    start = (_key(interval.first, key_type), False)
    if interval.last == (1 << key_type.octets * 8) - 1:
        return [start]
    return [start, (_key(interval.last + 1, key_type), True)]


def _key(value: int, key_type: KeyType) -> bytes:
    big = not key_type.host_order or sys.byteorder == "big"
    return value.to_bytes(key_type.octets, "big" if big else "little")
