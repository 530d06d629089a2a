"""What the kernel says of our table, and of other tables that matter to it."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.linux.attributes import attribute, parse, parse_list, text
from sidecar.linux.netfilter.chains import chains_of
from sidecar.linux.netfilter.expressions import Lookup, encode_rule
from sidecar.linux.netfilter.model import TABLE, Mode
from sidecar.linux.netfilter.nfnetlink import (
    FAMILY_HEADER,
    NFPROTO_UNSPEC,
    ask,
    comment_in,
    dump,
    family_header,
    kind_of,
    name_in,
)
from sidecar.linux.netfilter.sets import ELEMENT_INTERVAL_END, elements_of
from sidecar.linux.netfilter.vocabulary import ADMITS, OWNER_COMMENTS, Hook
from sidecar.linux.netlink import NLM_F_ROOT_MATCH, Message

if TYPE_CHECKING:
    from sidecar.linux.netfilter.model import RuleSet

__all__ = ["AppliedTable", "NatChain", "fingerprint_of", "other_nat_chains", "read"]

# linux/netfilter/nf_tables.h
_GETTABLE, _GETCHAIN, _GETRULE, _GETSETELEM = 1, 4, 7, 13
_BE32 = struct.Struct(">I")
_U32 = struct.Struct("=I")
_COMMENT = re.compile(
    r"sidecar (redirect|tproxy) outbound (\d+|none) inbound (\d+|none)( forwarded)?( syn-only)?"
)

Expression = tuple[str, frozenset[tuple[int, bytes]]]


@dataclass(frozen=True, slots=True)
class AppliedTable:
    """What the kernel says of our table.

    Attributes:
        mode: None where the table's comment is not one of ours.
        outbound_port, inbound_port: None where not intercepted or not known.
        forwarded: Whether routed connections are intercepted.
        admits: Whether new connections are taken; False while it drains.
        fingerprint: Chains, rules and comments, comparable with fingerprint_of's.
    """

    mode: Mode | None
    outbound_port: int | None
    inbound_port: int | None
    forwarded: bool
    admits: bool
    fingerprint: tuple[tuple[str, str, tuple[Expression, ...]], ...]

    @property
    def ports(self) -> tuple[int, ...]:
        """The proxy's ports."""
        return tuple(p for p in (self.outbound_port, self.inbound_port) if p is not None)

    def excludes(self, uid: int, gid: int) -> bool:
        """Whether this user's or this group's outbound connections pass."""
        for _, comment, expressions in self.fingerprint:
            if comment in OWNER_COMMENTS:
                value = _U32.pack(uid if comment == OWNER_COMMENTS[0] else gid)
                sought = (3, attribute(1, value)), (0, value + b"\0")
                if any(each in given for _, given in expressions for each in sought):
                    return True
        return False


@dataclass(frozen=True, slots=True)
class NatChain:
    """A NAT chain of somebody else's on a hook that ours use."""

    family: str
    table: str
    name: str


def read() -> AppliedTable | None:
    """Read our table back, None where there is none.

    Raises:
        RulesPrivilegeError: Not allowed to look.
        RulesError: The kernel has no nf_tables.
    """
    tables = [each for each in dump(_GETTABLE) if name_in(each.get(1)) == TABLE]
    if not tables:
        return None
    known = _COMMENT.fullmatch(comment_in(tables[0].get(6)) or "")
    rules = []
    for rule in dump(_GETRULE, text(1, TABLE)):
        expressions = tuple(_canonical(each) for _, each in parse_list(rule.get(4, b"")))
        rules.append((name_in(rule[2]), comment_in(rule.get(7)) or "", expressions))
    return AppliedTable(
        mode=Mode(known[1]) if known else None,
        outbound_port=_port(known[2]) if known else None,
        inbound_port=_port(known[3]) if known else None,
        forwarded=bool(known and known[4]),
        admits=any(comment == ADMITS for _, comment, _ in rules),
        fingerprint=tuple(sorted(rules, key=lambda rule: rule[0])),
    )


def fingerprint_of(rules: RuleSet) -> tuple[tuple[str, str, tuple[Expression, ...]], ...]:
    """What AppliedTable.fingerprint is after this rule set was installed."""
    expected = []
    for chain in chains_of(rules):
        for rule in chain.rules:
            expressions = []
            for step in encode_rule(rule):
                if isinstance(step, Lookup):
                    elements = frozenset(elements_of(step))
                    negated = (5, _BE32.pack(int(step.negated)))
                    values = {negated, *((0, key + bytes([end])) for key, end in elements)}
                    expressions.append(("lookup", frozenset(values)))
                else:
                    expressions.append(_canonical(parse_list(step)[0][1]))
            expected.append((chain.name, rule.comment, tuple(expressions)))
    return tuple(sorted(expected, key=lambda rule: rule[0]))


def other_nat_chains() -> list[NatChain]:
    """NAT chains with rules in them, on output or prerouting, in tables not ours.

    Raises:
        RulesPrivilegeError: Not allowed to look.
        RulesError: The kernel has no nf_tables.
    """
    families = {1: "inet", 2: "ip", 10: "ip6"}
    found = []
    request = Message(
        kind_of(_GETCHAIN), NLM_F_ROOT_MATCH, family_header(NFPROTO_UNSPEC), "nf_tables"
    )
    for reply in ask(request):
        chain = parse(reply[FAMILY_HEADER.size :])
        family = families.get(reply[0])
        if family is None or name_in(chain.get(7)) != "nat" or name_in(chain.get(1)) == TABLE:
            continue
        hook = parse(chain.get(4, b""))
        number = _BE32.unpack(hook[1])[0]
        used = _BE32.unpack(chain.get(6, bytes(4)))[0]
        if used and number in {Hook.OUTPUT.value, Hook.PREROUTING.value}:
            found.append(NatChain(family, name_in(chain[1]), name_in(chain[3])))
    return found


def _port(word: str) -> int | None:
    return None if word == "none" else int(word)


def _canonical(expression: bytes) -> Expression:
    """An expression without what the kernel adds to, or renames in, what it was sent."""
    attributes = parse(expression)
    name = name_in(attributes.get(1))
    given = parse(attributes.get(2, b""))
    if name == "lookup":
        values = {(5, given.get(5, bytes(4)))}
        for element in _set_elements(name_in(given.get(1))):
            values.add((0, element))
        return name, frozenset(values)
    # bitwise's operation and redir's second port and flags are the kernel's defaults.
    added = {"bitwise": {6}, "redir": {2, 3}}.get(name, set())
    return name, frozenset(item for item in given.items() if item[0] not in added)


def _set_elements(set_name: str) -> set[bytes]:
    found = set()
    for reply in dump(_GETSETELEM, text(1, TABLE), text(2, set_name)):
        for _, element in parse_list(reply.get(3, b"")):
            attributes = parse(element)
            key = parse(attributes[1])[1]
            flags = _BE32.unpack(attributes.get(3, bytes(4)))[0]
            found.add(key + bytes([flags & ELEMENT_INTERVAL_END]))
    return found
