"""How a rule becomes nf_tables expressions (linux/netfilter/nf_tables.h).

The same matches and statements as nft.py, as the virtual machine's instructions.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.linux.attributes import attribute, be32, nested, text
from sidecar.linux.netfilter.instructions import (
    ACCEPT,
    DROP,
    IIFNAME,
    L4PROTO,
    MARK,
    NETWORK_HEADER,
    NFPROTO,
    OIFNAME,
    REGISTER,
    RETURN,
    SKGID,
    SKUID,
    SOCKET_TRANSPARENT,
    SOCKET_WILDCARD,
    TRANSPORT_HEADER,
    bitwise_and,
    compare,
    data,
    expression,
    immediate,
    meta,
    payload,
    socket_key,
    tproxy,
    verdict,
)
from sidecar.linux.netfilter.intervals import Interval, intervals_of, key_type_of
from sidecar.linux.netfilter.vocabulary import (
    Accept,
    ConnectionInvalid,
    ConnectionMark,
    ConnectionReply,
    Destination,
    Drop,
    Family,
    LocalAddress,
    LoopbackInterface,
    Mark,
    NewConnection,
    Owner,
    OwnerKind,
    Ports,
    Redirect,
    Return,
    SetConnectionMark,
    SetMark,
    Side,
    SocketBound,
    SocketTransparent,
    Tcp,
    Tproxy,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.linux.netfilter.vocabulary import Match, Rule, Statement

__all__ = ["Lookup", "encode_rule"]

_LTE, _GTE, _NEQ = 3, 5, 1  # enum nft_cmp_ops
_CT_STATE, _CT_DIRECTION, _CT_MARK = 0, 1, 3  # enum nft_ct_keys
_CT_STATE_INVALID = 1  # NF_CT_STATE_INVALID_BIT
_FIB_RESULT_ADDRTYPE = 3
_FIB_SADDR, _FIB_DADDR = 1, 2  # enum nft_fib_flags
_RTN_LOCAL = 2  # linux/rtnetlink.h
_NFPROTO = {4: 2, 6: 10}  # linux/netfilter.h
_IPPROTO_TCP = 6
_INTERFACE_NAME_OCTETS = 16
# Offsets of the destination in struct iphdr and ipv6hdr; of ports and flags in tcphdr.
_DESTINATION_OFFSET = {4: 16, 6: 24}
_PORT_OFFSET = {Side.SOURCE: 0, Side.DESTINATION: 2}
_FLAGS_OFFSET = 13
_SYN, _FIN_SYN_RST_ACK = 0x02, 0x17
_VERDICTS = {Drop: DROP, Accept: ACCEPT, Return: RETURN}
_HOST = "little" if sys.byteorder == "little" else "big"
_U16 = struct.Struct(">H")
_U32 = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class Lookup:
    """A match that needs a set of its own.

    The set has to be made first; its name goes where the expression is finished.
    """

    match: Destination | Ports | Owner
    negated: bool

    def encode(self, set_name: str, set_id: int) -> bytes:
        """The expression, for a set of this name and transaction-wide number."""
        return expression(
            "lookup",
            text(1, set_name),
            be32(2, REGISTER),
            be32(4, set_id),
            be32(5, int(self.negated)),
        )


def encode_rule(rule: Rule) -> list[bytes | Lookup]:
    """A rule's expressions in order, those that need a set as Lookup."""
    steps: list[bytes | Lookup] = []
    for match in rule.matches:
        steps += _match(match)
    for statement in rule.statements:
        steps += _statement(statement)
    return steps


def _match(match: Match) -> Iterator[bytes | Lookup]:  # noqa: C901, PLR0912 - one case per kind
    if isinstance(match, Destination | Ports | Owner):
        yield from _set_match(match)
    elif isinstance(match, Tcp):
        yield meta(L4PROTO)
        yield compare(bytes([_IPPROTO_TCP]), negated=match.negated)
    elif isinstance(match, Family):
        yield from _family(match.version)
    elif isinstance(match, LoopbackInterface):
        yield meta(IIFNAME if match.side is Side.SOURCE else OIFNAME)
        yield compare(b"lo".ljust(_INTERFACE_NAME_OCTETS, b"\0"), negated=match.negated)
    elif isinstance(match, Mark):
        yield meta(MARK)
        yield compare(_U32.pack(match.value))
    elif isinstance(match, ConnectionMark):
        yield _connection(_CT_MARK)
        yield compare(_U32.pack(match.value))
    elif isinstance(match, ConnectionReply):
        yield _connection(_CT_DIRECTION)
        yield compare(bytes([0 if match.negated else 1]))
    elif isinstance(match, ConnectionInvalid):
        yield _connection(_CT_STATE)
        yield bitwise_and(_U32.pack(_CT_STATE_INVALID))
        yield compare(_U32.pack(0), negated=True)
    elif isinstance(match, LocalAddress):
        flags = _FIB_SADDR if match.side is Side.SOURCE else _FIB_DADDR
        result = be32(2, _FIB_RESULT_ADDRTYPE)
        yield expression("fib", be32(1, REGISTER), result, be32(3, flags))
        yield compare(_U32.pack(_RTN_LOCAL), negated=match.negated)
    elif isinstance(match, NewConnection):
        yield from _tcp_payload(_FLAGS_OFFSET, 1)
        yield bitwise_and(bytes([_FIN_SYN_RST_ACK]))
        yield compare(bytes([_SYN]), negated=match.negated)
    elif isinstance(match, SocketTransparent):
        yield socket_key(SOCKET_TRANSPARENT)
        yield compare(b"\1")
    elif isinstance(match, SocketBound):
        yield socket_key(SOCKET_WILDCARD)
        yield compare(b"\0")
    else:
        raise TypeError(match)


def _set_match(match: Destination | Ports | Owner) -> Iterator[bytes | Lookup]:
    negated = False if isinstance(match, Owner) else match.negated
    if isinstance(match, Owner):
        yield meta(SKUID if match.kind is OwnerKind.USER else SKGID)
    elif isinstance(match, Ports):
        yield from _tcp_payload(_PORT_OFFSET[match.side], 2)
    else:
        octets = key_type_of(match).octets
        yield from _family(match.version)
        yield payload(NETWORK_HEADER, _DESTINATION_OFFSET[match.version], octets)
    intervals = intervals_of(match)
    if len(intervals) > 1:
        yield Lookup(match, negated)
        return
    yield from _one_interval(match, intervals[0], negated)


def _one_interval(
    match: Destination | Ports | Owner, interval: Interval, negated: bool
) -> Iterator[bytes]:
    key_type = key_type_of(match)
    order = _HOST if key_type.host_order else "big"
    first = interval.first.to_bytes(key_type.octets, order)  # type: ignore[arg-type]
    last = interval.last.to_bytes(key_type.octets, order)  # type: ignore[arg-type]
    if interval.is_single:
        yield compare(first, negated=negated)
        return
    bits = key_type.octets * 8
    length = interval.prefix_length(bits) if key_type.is_address else None
    if length is not None:
        mask = ((1 << bits) - 1) ^ ((1 << (bits - length)) - 1)
        yield bitwise_and(mask.to_bytes(key_type.octets, "big"))
        yield compare(first, negated=negated)
    elif negated:
        sides = nested(3, attribute(1, first)), nested(4, attribute(1, last))
        yield expression("range", be32(1, REGISTER), be32(2, _NEQ), *sides)
    else:
        yield expression("cmp", be32(1, REGISTER), be32(2, _GTE), data(3, first))
        yield expression("cmp", be32(1, REGISTER), be32(2, _LTE), data(3, last))


def _statement(statement: Statement) -> Iterator[bytes]:
    if isinstance(statement, SetMark):
        yield immediate(_U32.pack(statement.value))
        yield expression("meta", be32(2, MARK), be32(3, REGISTER))
    elif isinstance(statement, SetConnectionMark):
        yield immediate(_U32.pack(statement.value))
        yield expression("ct", be32(2, _CT_MARK), be32(4, REGISTER))
    elif isinstance(statement, Redirect):
        yield immediate(_U16.pack(statement.port))
        yield expression("redir", be32(1, REGISTER))
    elif isinstance(statement, Tproxy):
        yield immediate(_U16.pack(statement.port))
        yield tproxy()
        if statement.mark is not None:
            yield from _statement(SetMark(statement.mark))
        yield from _statement(Accept())
    else:
        yield verdict(_VERDICTS[type(statement)])


def _connection(key: int) -> bytes:
    return expression("ct", be32(1, REGISTER), be32(2, key))


def _tcp_payload(offset: int, length: int) -> Iterator[bytes]:
    yield from (item for item in _match(Tcp()) if isinstance(item, bytes))
    yield payload(TRANSPORT_HEADER, offset, length)


def _family(version: int) -> Iterator[bytes]:
    yield meta(NFPROTO)
    yield compare(bytes([_NFPROTO[version]]))
