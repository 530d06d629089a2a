"""The sandbox's own rules: every connection to the proxy, DNS to the DNS server, else nothing.

As nft lists them (tests/integration/test_exec_rules.py has it whole)::

    table inet sidecar {
        chain intercept {
            type filter hook prerouting priority mangle; policy accept;
            meta l4proto != tcp accept comment "not TCP"
            tcp dport 53 accept comment "DNS"
            ip daddr 127.0.0.0/8 accept comment "the sandbox's own"
            …
            tcp flags != syn / fin,syn,rst,ack socket wildcard 0 accept comment "already alive"
            tproxy to :61453 accept comment "intercept"
            drop comment "no proxy listens"
        }
        chain admit {
            type filter hook input priority filter; policy accept;
            meta l4proto tcp accept comment "see intercept"
            ip daddr 127.0.0.0/8 accept comment "the sandbox's own"
            …
            udp dport 53 accept comment "DNS"
            udp sport 53 accept comment "DNS answers"
            reject comment "neither TCP nor DNS"
        }
    }

DNS needs no TPROXY: every address is the namespace's own, so its server, at port 53 of all
of them, gets what is sent to any.

Written with nf_tables' instructions themselves and not in the vocabulary that the
rules of ``sidecar rules`` are written in: that takes longer to import than all of this
takes to do, and there is one rule set here, which no other tool ever renders.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from sidecar.linux.attributes import attribute, be32, nested, text
from sidecar.linux.netfilter import instructions as nft
from sidecar.linux.netfilter.nfnetlink import UDATA_COMMENT, commit, message, user_data
from sidecar.linux.netlink import NLM_F_APPEND, NLM_F_CREATE
from sidecar.sandbox.addresses import DNS_PORT, OWN, TPROXY_PORT

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from sidecar.linux.netlink import Message

__all__ = ["TABLE", "install_rules"]

TABLE = "sidecar"

# linux/netfilter/nf_tables.h
_NEWTABLE, _NEWCHAIN, _NEWRULE = 0, 3, 6
# linux/netfilter.h, linux/netfilter_ipv4.h
_HOOK_PREROUTING, _HOOK_INPUT = 0, 1
_PRIORITY_MANGLE, _PRIORITY_FILTER = -150, 0
_NFPROTO = {4: b"\2", 6: b"\x0a"}
# Offsets of the destination in struct iphdr and ipv6hdr; the same ports and flags in
# struct tcphdr and udphdr.
_DESTINATION = {4: 16, 6: 24}
_SOURCE_PORT, _DESTINATION_PORT, _TCP_FLAGS = 0, 2, 13
_TCP, _UDP = b"\x06", b"\x11"
_SYN, _FIN_SYN_RST_ACK = b"\x02", b"\x17"
_U16 = struct.Struct(">H")

_Match = tuple[bytes, ...]


def install_rules() -> None:
    """Put the rules into force in the calling process's network namespace, a new one.

    Raises:
        RulesPrivilegeError: No CAP_NET_ADMIN over it.
        RulesError: The kernel lacks something; the message names it.
    """
    accept, drop = (nft.verdict(nft.ACCEPT),), (nft.verdict(nft.DROP),)
    own = [((*_to(network), *accept), "the sandbox's own") for network in OWN]
    commit(
        [
            message(_NEWTABLE, NLM_F_CREATE, (text(1, TABLE),), "nf_tables (nf_tables)"),
            *_chain(
                "intercept",
                _HOOK_PREROUTING,
                _PRIORITY_MANGLE,
                ((nft.meta(nft.L4PROTO), nft.compare(_TCP, negated=True), *accept), "not TCP"),
                ((*_port(_TCP, _DESTINATION_PORT, DNS_PORT), *accept), "DNS"),
                *own,
                ((*_alive(), *accept), "already alive"),
                ((nft.immediate(_U16.pack(TPROXY_PORT)), nft.tproxy(), *accept), "intercept"),
                # tproxy without a listener is no match, and the packet would go on.
                (drop, "no proxy listens"),
            ),
            *_chain(
                "admit",
                _HOOK_INPUT,
                _PRIORITY_FILTER,
                ((nft.meta(nft.L4PROTO), nft.compare(_TCP), *accept), "see intercept"),
                *own,
                ((*_port(_UDP, _DESTINATION_PORT, DNS_PORT), *accept), "DNS"),
                # To a client that is bound to an address that only AnyIP makes ours.
                ((*_port(_UDP, _SOURCE_PORT, DNS_PORT), *accept), "DNS answers"),
                ((nft.reject_unreachable(),), "neither TCP nor DNS"),
            ),
        ]
    )


def _chain(name: str, hook: int, priority: int, *rules: tuple[_Match, str]) -> list[Message]:
    chain = (
        text(1, TABLE),
        text(3, name),
        nested(4, be32(1, hook), be32(2, priority)),
        be32(5, 1),
        text(7, "filter"),
    )
    messages = [message(_NEWCHAIN, NLM_F_CREATE, chain, "base chains (nf_tables)")]
    for expressions, comment in rules:
        body = (
            text(1, TABLE),
            text(2, name),
            nested(4, *expressions),
            attribute(7, user_data(UDATA_COMMENT, comment.encode() + b"\0")),
        )
        flags = NLM_F_CREATE | NLM_F_APPEND
        messages.append(message(_NEWRULE, flags, body, _needs(expressions)))
    return messages


def _needs(expressions: _Match) -> str:
    """Which kernel module a rule needs beyond the usual, for an error's text."""
    for name, module in (
        (b"tproxy\0", "nft_tproxy"),
        (b"socket\0", "nft_socket"),
        (b"reject\0", "nft_reject_inet"),
    ):
        if any(name in each for each in expressions):
            return f"{name[:-1].decode()} rules ({module})"
    return "rules (nf_tables)"


def _to(network: IPv4Network | IPv6Network) -> _Match:
    length = network.max_prefixlen // 8
    address = nft.payload(nft.NETWORK_HEADER, _DESTINATION[network.version], length)
    family = (nft.meta(nft.NFPROTO), nft.compare(_NFPROTO[network.version]))
    masked = () if network.num_addresses == 1 else (nft.bitwise_and(network.netmask.packed),)
    return (*family, address, *masked, nft.compare(network.network_address.packed))


def _port(protocol: bytes, offset: int, port: int) -> _Match:
    return (
        nft.meta(nft.L4PROTO),
        nft.compare(protocol),
        nft.payload(nft.TRANSPORT_HEADER, offset, _U16.size),
        nft.compare(_U16.pack(port)),
    )


def _alive() -> _Match:
    """TCP that begins no connection and has a socket of its own; others have SYN cookies."""
    return (
        nft.meta(nft.L4PROTO),
        nft.compare(_TCP),
        nft.payload(nft.TRANSPORT_HEADER, _TCP_FLAGS, 1),
        nft.bitwise_and(_FIN_SYN_RST_ACK),
        nft.compare(_SYN, negated=True),
        nft.socket_key(nft.SOCKET_WILDCARD),
        nft.compare(b"\0"),
    )
