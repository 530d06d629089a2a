"""How netlink attributes are written and read (linux/netlink.h, struct nlattr).

Bytes in, bytes out; no socket. Small on purpose: nf_tables, rtnetlink and sock_diag
speak nothing but these, nested.
"""

from __future__ import annotations

import struct

__all__ = ["attribute", "be32", "nested", "parse", "parse_list", "text", "u32"]

_HEADER = struct.Struct("=HH")
_BE32 = struct.Struct(">I")
_U32 = struct.Struct("=I")
# linux/netlink.h: the upper two bits of a type are flags (NLA_F_NESTED,
# NLA_F_NET_BYTEORDER).
_TYPE_MASK = 0x3FFF


def attribute(number: int, payload: bytes) -> bytes:
    """One attribute, padded to four octets.

    Raises:
        struct.error: The payload is longer than 65531 octets.
    """
    length = _HEADER.size + len(payload)
    return _HEADER.pack(length, number) + payload + bytes(-length % 4)


def be32(number: int, value: int) -> bytes:
    """An attribute that is a number in network order, as netfilter has them."""
    return attribute(number, _BE32.pack(value & 0xFFFFFFFF))


def u32(number: int, value: int) -> bytes:
    """An attribute that is a number in host order, as rtnetlink has them."""
    return attribute(number, _U32.pack(value))


def text(number: int, value: str) -> bytes:
    """An attribute that is a string with its NUL."""
    return attribute(number, value.encode() + b"\0")


def nested(number: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(number, b"".join(attributes))


def parse_list(payload: bytes) -> list[tuple[int, bytes]]:
    """Read attributes in the order in which they stand.

    Returns:
        Number and payload of each, flags and padding taken off. What is cut short
        at the end is left out.
    """
    found = []
    offset = 0
    while offset + _HEADER.size <= len(payload):
        length, number = _HEADER.unpack_from(payload, offset)
        if length < _HEADER.size or offset + length > len(payload):
            break
        found.append((number & _TYPE_MASK, payload[offset + _HEADER.size : offset + length]))
        offset += length + (-length % 4)
    return found


def parse(payload: bytes) -> dict[int, bytes]:
    """Read attributes of which each number stands once."""
    return dict(parse_list(payload))
