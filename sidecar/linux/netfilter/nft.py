"""How a rule set reads in nft's language, letter for letter as `nft list` prints it.

The spelling is that of nft 1.0.6 (Debian 12). Later versions read it too; where they
print a rule differently, the meaning is the same.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from sidecar.linux.netfilter.chains import chains_of
from sidecar.linux.netfilter.intervals import Interval, KeyType, intervals_of, key_type_of
from sidecar.linux.netfilter.model import TABLE
from sidecar.linux.netfilter.vocabulary import (
    Accept,
    Chain,
    ConnectionInvalid,
    ConnectionMark,
    ConnectionReply,
    Destination,
    Drop,
    Family,
    Hook,
    Kind,
    LocalAddress,
    LoopbackInterface,
    Mark,
    NewConnection,
    Owner,
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
    from sidecar.linux.netfilter.model import RuleSet
    from sidecar.linux.netfilter.vocabulary import Match, Rule, Statement

__all__ = ["render", "table_comment"]

_IPV4_OCTETS = 4


def render(rules: RuleSet) -> str:
    """The table as text that `nft -f` reads, and `nft list table inet sidecar` prints."""
    chains = "\n".join(_chain(chain) for chain in chains_of(rules))
    return f'table inet {TABLE} {{\n\tcomment "{table_comment(rules)}"\n{chains}}}\n'


def table_comment(rules: RuleSet) -> str:
    """The table's comment: what it is, and which ports a check must ask after.

    Under nft's limit of 128 octets whatever the rule set.
    """
    words = [
        "sidecar",
        rules.mode.value,
        f"outbound {rules.outbound_port or 'none'}",
        f"inbound {rules.inbound_port or 'none'}",
    ]
    if rules.forwarded:
        words.append("forwarded")
    if rules.syn_only:
        words.append("syn-only")
    return " ".join(words)


def _chain(chain: Chain) -> str:
    priority = "mangle"
    if chain.kind is Kind.NAT:
        # nft has the name dstnat for -100 on prerouting alone.
        priority = "dstnat" if chain.hook is Hook.PREROUTING else "-100"
    hook = chain.hook.name.lower()
    head = f"\t\ttype {chain.kind.value} hook {hook} priority {priority}; policy accept;\n"
    rules = "".join(f"\t\t{_rule(rule)}\n" for rule in chain.rules)
    return f"\tchain {chain.name} {{\n{head}{rules}\t}}\n"


def _rule(rule: Rule) -> str:
    words = [*map(_match, rule.matches), *map(_statement, rule.statements)]
    return " ".join([*words, f'comment "{rule.comment}"'])


def _match(match: Match) -> str:  # noqa: C901 - one line per kind of match
    if isinstance(match, Destination | Ports | Owner):
        return _set_match(match)
    if isinstance(match, Tcp):
        return "meta l4proto != tcp" if match.negated else "meta l4proto tcp"
    if isinstance(match, Family):
        return f"meta nfproto ipv{match.version}"
    if isinstance(match, LoopbackInterface):
        name = "iifname" if match.side is Side.SOURCE else "oifname"
        return f'{name} {_not(match.negated)}"lo"'
    if isinstance(match, Mark):
        return f"meta mark {_mark(match.value)}"
    if isinstance(match, ConnectionMark):
        return f"ct mark {_mark(match.value)}"
    if isinstance(match, ConnectionReply):
        return "ct direction original" if match.negated else "ct direction reply"
    if isinstance(match, ConnectionInvalid):
        return "ct state invalid"
    if isinstance(match, LocalAddress):
        side = "saddr" if match.side is Side.SOURCE else "daddr"
        return f"fib {side} type {_not(match.negated)}local"
    if isinstance(match, NewConnection):
        return f"tcp flags {_not(match.negated)}syn / fin,syn,rst,ack"
    if isinstance(match, SocketTransparent):
        return "socket transparent 1"
    if isinstance(match, SocketBound):
        return "socket wildcard 0"
    raise TypeError(match)


def _set_match(match: Destination | Ports | Owner) -> str:
    key_type = key_type_of(match)
    if isinstance(match, Owner):
        subject, negated = f"meta sk{match.kind.value}", False
    elif isinstance(match, Ports):
        subject = "tcp sport" if match.side is Side.SOURCE else "tcp dport"
        negated = match.negated
    else:
        subject = "ip daddr" if key_type.octets == _IPV4_OCTETS else "ip6 daddr"
        negated = match.negated
    values = [_interval(each, key_type) for each in intervals_of(match)]
    shown = values[0] if len(values) == 1 else "{ " + ", ".join(values) + " }"
    return f"{subject} {_not(negated)}{shown}"


def _value(value: int, key_type: KeyType) -> str:
    if not key_type.is_address:
        return str(value)
    # As nft has it from libc, which differs from str(IPv6Address) in ::ffff:192.0.2.1.
    family = socket.AF_INET if key_type.octets == _IPV4_OCTETS else socket.AF_INET6
    return socket.inet_ntop(family, value.to_bytes(key_type.octets, "big"))


def _interval(interval: Interval, key_type: KeyType) -> str:
    first, last = _value(interval.first, key_type), _value(interval.last, key_type)
    if interval.is_single:
        return first
    if key_type.is_address:
        length = interval.prefix_length(key_type.octets * 8)
        if length is not None:
            return f"{first}/{length}"
    return f"{first}-{last}"


def _statement(statement: Statement) -> str:
    if isinstance(statement, SetMark):
        return f"meta mark set {_mark(statement.value)}"
    if isinstance(statement, SetConnectionMark):
        return f"ct mark set {_mark(statement.value)}"
    if isinstance(statement, Redirect):
        return f"redirect to :{statement.port}"
    if isinstance(statement, Tproxy):
        mark = "" if statement.mark is None else f" meta mark set {_mark(statement.mark)}"
        return f"tproxy to :{statement.port}{mark} accept"
    return {Return: "return", Accept: "accept", Drop: "drop"}[type(statement)]


def _mark(value: int) -> str:
    return f"0x{value:08x}"


def _not(negated: bool) -> str:
    return "!= " if negated else ""
