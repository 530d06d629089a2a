"""The instructions of nf_tables' virtual machine (linux/netfilter/nf_tables.h).

Bytes of one expression each: load into register 1, compare, set, decide. What they
are put together to is said elsewhere: expressions.py, and the sandbox's own rules.
"""

from __future__ import annotations

from sidecar.linux.attributes import attribute, be32, nested, text

__all__ = [
    "ACCEPT",
    "DROP",
    "IIFNAME",
    "L4PROTO",
    "MARK",
    "NETWORK_HEADER",
    "NFPROTO",
    "OIFNAME",
    "REGISTER",
    "RETURN",
    "SKGID",
    "SKUID",
    "SOCKET_TRANSPARENT",
    "SOCKET_WILDCARD",
    "TRANSPORT_HEADER",
    "bitwise_and",
    "compare",
    "data",
    "expression",
    "immediate",
    "meta",
    "payload",
    "reject_unreachable",
    "socket_key",
    "tproxy",
    "verdict",
]

REGISTER = 1
_VERDICT_REGISTER = 0
_EQ, _NEQ = 0, 1  # enum nft_cmp_ops
MARK, IIFNAME, OIFNAME = 3, 6, 7  # enum nft_meta_keys
SKUID, SKGID, NFPROTO, L4PROTO = 10, 11, 15, 16
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2  # enum nft_payload_bases
SOCKET_TRANSPARENT, SOCKET_WILDCARD = 0, 2  # enum nft_socket_keys
DROP, ACCEPT, RETURN = 0, 1, -5  # NF_DROP, NF_ACCEPT, NFT_RETURN
_REJECT_ICMPX_UNREACH = 2  # enum nft_reject_types
_REJECT_ICMPX_PORT_UNREACH = 1  # enum nft_reject_inet_code


def expression(name: str, *attributes: bytes) -> bytes:
    """An expression, as an element of a rule's list."""
    return nested(1, text(1, name), nested(2, *attributes))


def data(number: int, value: bytes) -> bytes:
    """An attribute that is a value to compare with or to load."""
    return nested(number, attribute(1, value))


def meta(key: int) -> bytes:
    """Load what the kernel knows of the packet beside its bytes."""
    return expression("meta", be32(1, REGISTER), be32(2, key))


def payload(base: int, offset: int, length: int) -> bytes:
    """Load octets of a header."""
    where = be32(2, base), be32(3, offset), be32(4, length)
    return expression("payload", be32(1, REGISTER), *where)


def socket_key(key: int) -> bytes:
    """Load a property of the socket that will get the packet; no match without one."""
    return expression("socket", be32(1, key), be32(2, REGISTER))


def compare(value: bytes, *, negated: bool = False) -> bytes:
    """Go on if the register has (or, negated, has not) this value."""
    operation = be32(2, _NEQ if negated else _EQ)
    return expression("cmp", be32(1, REGISTER), operation, data(3, value))


def bitwise_and(mask: bytes) -> bytes:
    """Keep some bits of the register."""
    registers = be32(1, REGISTER), be32(2, REGISTER), be32(3, len(mask))
    return expression("bitwise", *registers, data(4, mask), data(5, bytes(len(mask))))


def immediate(value: bytes) -> bytes:
    """Load a value."""
    return expression("immediate", be32(1, REGISTER), data(2, value))


def tproxy() -> bytes:
    """Give the packet to its transparent socket, else to the listener on the loaded port."""
    return expression("tproxy", be32(1, 0), be32(3, REGISTER))


def reject_unreachable() -> bytes:
    """Refuse the packet with ICMP or ICMPv6, port unreachable."""
    code = attribute(2, bytes([_REJECT_ICMPX_PORT_UNREACH]))
    return expression("reject", be32(1, _REJECT_ICMPX_UNREACH), code)


def verdict(code: int) -> bytes:
    """Decide."""
    return expression("immediate", be32(1, _VERDICT_REGISTER), nested(2, nested(2, be32(1, code))))
