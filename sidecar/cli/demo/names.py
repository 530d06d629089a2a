"""What a small name server answers: the addresses that it has for a name, and nothing else."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["answer_to", "name_in"]

# RFC 1035 §4.1: number, flags, counts; a pointer to the question's name, type and class,
# TTL, length.
_HEADER, _RECORD = struct.Struct(">2s5H"), struct.Struct(">H4sIH")
_TYPE_AND_CLASS_OCTETS = 4
_ANSWERED, _NO_SUCH_NAME = 0x8180, 0x8183
_POINTER = 0xC00C
_TTL = 60
# RFC 1035 §3.2, RFC 3596 §2.1; class IN.
_TYPES = {b"\0\1\0\1": IPv4Address, b"\0\x1c\0\1": IPv6Address}


def name_in(question: bytes) -> str:
    """The name that is asked for, in lower case, without a dot at its end.

    Args:
        question: A message of one question.
    """
    labels, at = [], _HEADER.size
    while at < len(question) and (length := question[at]):
        labels.append(question[at + 1 : at + 1 + length])
        at += 1 + length
    return b".".join(labels).decode("ascii", "backslashreplace").lower()


def answer_to(
    question: bytes, hosts: Mapping[str, Sequence[IPv4Address | IPv6Address]]
) -> bytes | None:
    """The message that answers a question.

    Args:
        question: A message of one question.
        hosts: All names that there are.

    Returns:
        None if it is none that can be answered.
    """
    end = question.find(b"\0", _HEADER.size) + 1 + _TYPE_AND_CLASS_OCTETS
    if not _HEADER.size < end - _TYPE_AND_CLASS_OCTETS <= len(question) - _TYPE_AND_CLASS_OCTETS:
        return None
    name, asked = name_in(question), question[end - _TYPE_AND_CLASS_OCTETS : end]
    version = _TYPES.get(asked, ())
    records = [
        _RECORD.pack(_POINTER, asked, _TTL, len(each.packed)) + each.packed
        for each in hosts.get(name, ())
        if isinstance(each, version)
    ]
    flags = _ANSWERED if name in hosts else _NO_SUCH_NAME
    header = _HEADER.pack(question[:2], flags, 1, len(records), 0, 0)
    return b"".join([header, question[_HEADER.size : end], *records])
