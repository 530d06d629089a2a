"""How a rule becomes nf_tables expressions (linux/netfilter/nf_tables.h).

The same matches and statements as nft.py, as the virtual machine's instructions:
load into register 1, compare, set, decide.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.linux.netfilter.attributes import attribute, be32, nested, text
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

_REGISTER = 1
_VERDICT_REGISTER = 0
_EQ, _NEQ, _LTE, _GTE = 0, 1, 3, 5  # enum nft_cmp_ops
_META_MARK, _META_IIFNAME, _META_OIFNAME = 3, 6, 7  # enum nft_meta_keys
_META_SKUID, _META_SKGID, _META_NFPROTO, _META_L4PROTO = 10, 11, 15, 16
_CT_STATE, _CT_DIRECTION, _CT_MARK = 0, 1, 3  # enum nft_ct_keys
_CT_STATE_INVALID = 1  # NF_CT_STATE_INVALID_BIT
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2  # enum nft_payload_bases
_FIB_RESULT_ADDRTYPE = 3
_FIB_SADDR, _FIB_DADDR = 1, 2  # enum nft_fib_flags
_RTN_LOCAL = 2  # linux/rtnetlink.h
_SOCKET_TRANSPARENT, _SOCKET_WILDCARD = 0, 2  # enum nft_socket_keys
_NFPROTO = {4: 2, 6: 10}  # linux/netfilter.h
_IPPROTO_TCP = 6
_INTERFACE_NAME_OCTETS = 16
# Offsets of the destination in struct iphdr and ipv6hdr; of ports and flags in tcphdr.
_DESTINATION_OFFSET = {4: 16, 6: 24}
_PORT_OFFSET = {Side.SOURCE: 0, Side.DESTINATION: 2}
_FLAGS_OFFSET = 13
_SYN, _FIN_SYN_RST_ACK = 0x02, 0x17
_VERDICTS = {Drop: 0, Accept: 1, Return: -5}  # NF_DROP, NF_ACCEPT, NFT_RETURN
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
        return _expression(
            "lookup",
            text(1, set_name),
            be32(2, _REGISTER),
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
        yield _meta(_META_L4PROTO)
        yield _compare(bytes([_IPPROTO_TCP]), match.negated)
    elif isinstance(match, Family):
        yield from _family(match.version)
    elif isinstance(match, LoopbackInterface):
        yield _meta(_META_IIFNAME if match.side is Side.SOURCE else _META_OIFNAME)
        yield _compare(b"lo".ljust(_INTERFACE_NAME_OCTETS, b"\0"), match.negated)
    elif isinstance(match, Mark):
        yield _meta(_META_MARK)
        yield _compare(_U32.pack(match.value))
    elif isinstance(match, ConnectionMark):
        yield _connection(_CT_MARK)
        yield _compare(_U32.pack(match.value))
    elif isinstance(match, ConnectionReply):
        yield _connection(_CT_DIRECTION)
        yield _compare(bytes([0 if match.negated else 1]))
    elif isinstance(match, ConnectionInvalid):
        yield _connection(_CT_STATE)
        yield _and(_U32.pack(_CT_STATE_INVALID))
        yield _compare(_U32.pack(0), negated=True)
    elif isinstance(match, LocalAddress):
        flags = _FIB_SADDR if match.side is Side.SOURCE else _FIB_DADDR
        result = be32(2, _FIB_RESULT_ADDRTYPE)
        yield _expression("fib", be32(1, _REGISTER), result, be32(3, flags))
        yield _compare(_U32.pack(_RTN_LOCAL), match.negated)
    elif isinstance(match, NewConnection):
        yield from _tcp_payload(_FLAGS_OFFSET, 1)
        yield _and(bytes([_FIN_SYN_RST_ACK]))
        yield _compare(bytes([_SYN]), match.negated)
    elif isinstance(match, SocketTransparent):
        yield _expression("socket", be32(1, _SOCKET_TRANSPARENT), be32(2, _REGISTER))
        yield _compare(b"\1")
    elif isinstance(match, SocketBound):
        yield _expression("socket", be32(1, _SOCKET_WILDCARD), be32(2, _REGISTER))
        yield _compare(b"\0")
    else:
        raise TypeError(match)


def _set_match(match: Destination | Ports | Owner) -> Iterator[bytes | Lookup]:
    negated = False if isinstance(match, Owner) else match.negated
    if isinstance(match, Owner):
        yield _meta(_META_SKUID if match.kind is OwnerKind.USER else _META_SKGID)
    elif isinstance(match, Ports):
        yield from _tcp_payload(_PORT_OFFSET[match.side], 2)
    else:
        octets = key_type_of(match).octets
        yield from _family(match.version)
        yield _payload(_NETWORK_HEADER, _DESTINATION_OFFSET[match.version], octets)
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
        yield _compare(first, negated)
        return
    bits = key_type.octets * 8
    length = interval.prefix_length(bits) if key_type.is_address else None
    if length is not None:
        mask = ((1 << bits) - 1) ^ ((1 << (bits - length)) - 1)
        yield _and(mask.to_bytes(key_type.octets, "big"))
        yield _compare(first, negated)
    elif negated:
        sides = nested(3, attribute(1, first)), nested(4, attribute(1, last))
        yield _expression("range", be32(1, _REGISTER), be32(2, _NEQ), *sides)
    else:
        yield _expression("cmp", be32(1, _REGISTER), be32(2, _GTE), _data(3, first))
        yield _expression("cmp", be32(1, _REGISTER), be32(2, _LTE), _data(3, last))


def _statement(statement: Statement) -> Iterator[bytes]:
    if isinstance(statement, SetMark):
        yield _immediate(_U32.pack(statement.value))
        yield _expression("meta", be32(2, _META_MARK), be32(3, _REGISTER))
    elif isinstance(statement, SetConnectionMark):
        yield _immediate(_U32.pack(statement.value))
        yield _expression("ct", be32(2, _CT_MARK), be32(4, _REGISTER))
    elif isinstance(statement, Redirect):
        yield _immediate(_U16.pack(statement.port))
        yield _expression("redir", be32(1, _REGISTER))
    elif isinstance(statement, Tproxy):
        yield _immediate(_U16.pack(statement.port))
        yield _expression("tproxy", be32(1, 0), be32(3, _REGISTER))
        if statement.mark is not None:
            yield from _statement(SetMark(statement.mark))
        yield from _statement(Accept())
    else:
        code = nested(2, be32(1, _VERDICTS[type(statement)]))
        yield _expression("immediate", be32(1, _VERDICT_REGISTER), nested(2, code))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *attributes))


def _data(number: int, value: bytes) -> bytes:
    return nested(number, attribute(1, value))


def _meta(key: int) -> bytes:
    return _expression("meta", be32(1, _REGISTER), be32(2, key))


def _connection(key: int) -> bytes:
    return _expression("ct", be32(1, _REGISTER), be32(2, key))


def _payload(base: int, offset: int, length: int) -> bytes:
    where = be32(2, base), be32(3, offset), be32(4, length)
    return _expression("payload", be32(1, _REGISTER), *where)


def _tcp_payload(offset: int, length: int) -> Iterator[bytes]:
    yield from (item for item in _match(Tcp()) if isinstance(item, bytes))
    yield _payload(_TRANSPORT_HEADER, offset, length)


def _family(version: int) -> Iterator[bytes]:
    yield _meta(_META_NFPROTO)
    yield _compare(bytes([_NFPROTO[version]]))


def _compare(value: bytes, negated: bool = False) -> bytes:  # noqa: FBT002 - reads as it is
    operation = be32(2, _NEQ if negated else _EQ)
    return _expression("cmp", be32(1, _REGISTER), operation, _data(3, value))


def _and(mask: bytes) -> bytes:
    registers = be32(1, _REGISTER), be32(2, _REGISTER), be32(3, len(mask))
    return _expression("bitwise", *registers, _data(4, mask), _data(5, bytes(len(mask))))


def _immediate(value: bytes) -> bytes:
    return _expression("immediate", be32(1, _REGISTER), _data(2, value))
