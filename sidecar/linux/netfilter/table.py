"""How our table is made, read back, drained and deleted, each in one transaction."""

from __future__ import annotations

import errno
import re
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.errors import RulesError, RulesPrivilegeError
from sidecar.linux.netfilter import netlink
from sidecar.linux.netfilter.attributes import (
    attribute,
    be32,
    nested,
    parse,
    parse_list,
    text,
)
from sidecar.linux.netfilter.chains import ADMITS, OWNER_COMMENTS, Chain, Hook, Kind, chains_of
from sidecar.linux.netfilter.expressions import Lookup, encode_rule
from sidecar.linux.netfilter.intervals import Interval, KeyType, intervals_of, key_type_of
from sidecar.linux.netfilter.model import TABLE, Mode
from sidecar.linux.netfilter.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_ROOT_MATCH,
    Message,
    RequestError,
)
from sidecar.linux.netfilter.nft import table_comment

if TYPE_CHECKING:
    from sidecar.linux.netfilter.model import RuleSet

__all__ = ["AppliedTable", "NatChain", "delete", "drain", "install", "other_nat_chains", "read"]

# linux/netfilter/nfnetlink.h and nf_tables.h
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _GETTABLE, _DELTABLE = 0, 1, 2
_NEWCHAIN, _GETCHAIN = 3, 4
_NEWRULE, _GETRULE, _DELRULE = 6, 7, 8
_NEWSET, _NEWSETELEM, _GETSETELEM = 9, 12, 13
_NFPROTO_UNSPEC, _NFPROTO_INET = 0, 1
_SET_ANONYMOUS, _SET_CONSTANT, _SET_INTERVAL = 0x1, 0x2, 0x4
_ELEMENT_INTERVAL_END = 0x1
# libnftnl/udata.h, and nft's own SET_ELEM_F_INTERVAL_OPEN.
_UDATA_COMMENT = 0
_UDATA_KEY_BYTE_ORDER = 0
_UDATA_ELEMENT_FLAGS = 1
_INTERVAL_OPEN = 1
_HOST_ENDIAN, _BIG_ENDIAN = 1, 2
_PRIORITY_MANGLE, _PRIORITY_DSTNAT = -150, -100
_ELEMENTS_PER_MESSAGE = 800
_FAMILY_HEADER = struct.Struct(">BBH")
_BE64 = struct.Struct(">Q")
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


def install(rules: RuleSet) -> None:
    """Make the table what the rule set says, whatever it was before, atomically.

    Raises:
        RulesPrivilegeError: No CAP_NET_ADMIN over this network namespace.
        RulesError: The kernel lacks something; the message names it.
    """
    messages = [
        _table_message(_NEWTABLE, table_comment(rules)),
        _table_message(_DELTABLE),
        _table_message(_NEWTABLE, table_comment(rules)),
    ]
    set_id = 0
    for chain in chains_of(rules):
        messages.append(_chain_message(chain))
        for rule in chain.rules:
            expressions = []
            for step in encode_rule(rule):
                if isinstance(step, Lookup):
                    set_id += 1
                    messages += _set_messages(step, set_id)
                    expressions.append(step.encode("__set%d", set_id))
                else:
                    expressions.append(step)
            body = (
                text(1, TABLE),
                text(2, chain.name),
                nested(4, *expressions),
                attribute(7, _user_data(_UDATA_COMMENT, rule.comment.encode() + b"\0")),
            )
            flags = NLM_F_CREATE | NLM_F_APPEND
            messages.append(_message(_NEWRULE, flags, body, _needs(expressions)))
    _commit(messages)


def drain() -> bool:
    """Take out the rules that take new connections, atomically.

    Returns:
        Whether there were any.

    Raises:
        RulesPrivilegeError: No CAP_NET_ADMIN over this network namespace.
        RulesError: The kernel refused.
    """
    messages = []
    for rule in _dump(_GETRULE, text(1, TABLE)):
        if _comment(rule.get(7)) == ADMITS:
            body = text(1, TABLE), attribute(2, rule[2]), attribute(3, rule[3])
            messages.append(_message(_DELRULE, 0, body, "a rule"))
    if messages:
        _commit(messages)
    return bool(messages)


def delete() -> bool:
    """Delete the table with everything in it.

    Returns:
        Whether there was one.

    Raises:
        RulesPrivilegeError: No CAP_NET_ADMIN over this network namespace.
        RulesError: The kernel refused.
    """
    if not _table_exists():
        return False
    _commit([_table_message(_DELTABLE)])
    return True


def read() -> AppliedTable | None:
    """Read our table back, None where there is none.

    Raises:
        RulesPrivilegeError: Not allowed to look.
        RulesError: The kernel has no nf_tables.
    """
    tables = [each for each in _dump(_GETTABLE) if _name(each.get(1)) == TABLE]
    if not tables:
        return None
    known = _COMMENT.fullmatch(_comment(tables[0].get(6)) or "")
    rules = []
    for rule in _dump(_GETRULE, text(1, TABLE)):
        expressions = tuple(_canonical(each) for _, each in parse_list(rule.get(4, b"")))
        rules.append((_name(rule[2]), _comment(rule.get(7)) or "", expressions))
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
                    elements = frozenset(_elements(step))
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
    message = Message(_kind(_GETCHAIN), NLM_F_ROOT_MATCH, _header(_NFPROTO_UNSPEC), "nf_tables")
    for reply in _ask(message):
        chain = parse(reply[_FAMILY_HEADER.size :])
        family = families.get(reply[0])
        if family is None or _name(chain.get(7)) != "nat" or _name(chain.get(1)) == TABLE:
            continue
        hook = parse(chain.get(4, b""))
        number = _BE32.unpack(hook[1])[0]
        used = _BE32.unpack(chain.get(6, bytes(4)))[0]
        if used and number in {Hook.OUTPUT.value, Hook.PREROUTING.value}:
            found.append(NatChain(family, _name(chain[1]), _name(chain[3])))
    return found


def _port(word: str) -> int | None:
    return None if word == "none" else int(word)


def _kind(message: int) -> int:
    return _SUBSYSTEM << 8 | message


def _header(family: int = _NFPROTO_INET, resource: int = 0) -> bytes:
    return _FAMILY_HEADER.pack(family, 0, resource)


def _message(kind: int, flags: int, body: tuple[bytes, ...], subject: str) -> Message:
    return Message(_kind(kind), flags, _header() + b"".join(body), subject)


def _table_message(kind: int, comment: str | None = None) -> Message:
    body = [text(1, TABLE)]
    if comment is not None:
        body.append(attribute(6, _user_data(_UDATA_COMMENT, comment.encode() + b"\0")))
    flags = NLM_F_CREATE if kind == _NEWTABLE else 0
    return _message(kind, flags, tuple(body), "nf_tables and its inet family (nf_tables)")


def _chain_message(chain: Chain) -> Message:
    priority = _PRIORITY_DSTNAT if chain.kind is Kind.NAT else _PRIORITY_MANGLE
    body = (
        text(1, TABLE),
        text(3, chain.name),
        nested(4, be32(1, chain.hook.value), be32(2, priority)),
        be32(5, 1),
        text(7, chain.kind.value),
    )
    subject = "NAT (nft_chain_nat)" if chain.kind is Kind.NAT else "base chains (nf_tables)"
    return _message(_NEWCHAIN, NLM_F_CREATE, body, subject)


def _set_messages(lookup: Lookup, set_id: int) -> list[Message]:
    key_type = key_type_of(lookup.match)
    flags = _SET_ANONYMOUS | _SET_CONSTANT
    if _is_interval_set(lookup):
        flags |= _SET_INTERVAL
    order = _HOST_ENDIAN if key_type.host_order else _BIG_ENDIAN
    elements = _elements(lookup)
    body = (
        text(1, TABLE),
        text(2, "__set%d"),
        be32(3, flags),
        be32(4, key_type.number),
        be32(5, key_type.octets),
        nested(9, be32(1, len(elements))),
        be32(10, set_id),
        attribute(13, _user_data(_UDATA_KEY_BYTE_ORDER, _U32.pack(order))),
    )
    messages = [_message(_NEWSET, NLM_F_CREATE, body, "sets (nf_tables)")]
    for start in range(0, len(elements), _ELEMENTS_PER_MESSAGE):
        part = elements[start : start + _ELEMENTS_PER_MESSAGE]
        encoded = []
        for key, end in part:
            attributes = [nested(1, attribute(1, key))]
            if end:
                attributes.append(be32(3, _ELEMENT_INTERVAL_END))
            elif flags & _SET_INTERVAL and (key, end) == elements[-1]:
                # The last interval has no end: it reaches the highest value.
                user_data = _user_data(_UDATA_ELEMENT_FLAGS, _U32.pack(_INTERVAL_OPEN))
                attributes.append(attribute(6, user_data))
            encoded.append(nested(1, *attributes))
        these = (text(1, TABLE), text(2, "__set%d"), nested(3, *encoded), be32(4, set_id))
        messages.append(_message(_NEWSETELEM, NLM_F_CREATE, these, "interval sets (nf_tables)"))
    return messages


def _is_interval_set(lookup: Lookup) -> bool:
    return not all(each.is_single for each in intervals_of(lookup.match))


def _elements(lookup: Lookup) -> list[tuple[bytes, bool]]:
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


def _needs(expressions: list[bytes]) -> str:
    """Which kernel module a rule needs beyond the usual, for an error's text."""
    names = {_name(parse(parse_list(each)[0][1])[1]) for each in expressions}
    for name in ("tproxy", "socket", "redir", "fib", "ct"):
        if name in names:
            module = "nft_fib_inet" if name == "fib" else f"nft_{name}"
            return f"{name} rules ({module})"
    return "rules (nf_tables)"


def _user_data(number: int, value: bytes) -> bytes:
    return bytes([number, len(value)]) + value


def _comment(user_data: bytes | None) -> str | None:
    """The comment in user data: type, length, value, repeated (libnftnl/udata.h)."""
    rest = user_data or b""
    while len(rest) > 2:  # noqa: PLR2004 - type and length
        number, length = rest[0], rest[1]
        value, rest = rest[2 : 2 + length], rest[2 + length :]
        if number == _UDATA_COMMENT:
            return value.rstrip(b"\0").decode(errors="replace")
    return None


def _name(payload: bytes | None) -> str:
    return (payload or b"").rstrip(b"\0").decode(errors="replace")


def _canonical(expression: bytes) -> Expression:
    """An expression without what the kernel adds to, or renames in, what it was sent."""
    attributes = parse(expression)
    name = _name(attributes.get(1))
    given = parse(attributes.get(2, b""))
    if name == "lookup":
        values = {(5, given.get(5, bytes(4)))}
        for element in _set_elements(_name(given.get(1))):
            values.add((0, element))
        return name, frozenset(values)
    # bitwise's operation and redir's second port and flags are the kernel's defaults.
    added = {"bitwise": {6}, "redir": {2, 3}}.get(name, set())
    return name, frozenset(item for item in given.items() if item[0] not in added)


def _set_elements(set_name: str) -> set[bytes]:
    found = set()
    for reply in _dump(_GETSETELEM, text(1, TABLE), text(2, set_name)):
        for _, element in parse_list(reply.get(3, b"")):
            attributes = parse(element)
            key = parse(attributes[1])[1]
            flags = _BE32.unpack(attributes.get(3, bytes(4)))[0]
            found.add(key + bytes([flags & _ELEMENT_INTERVAL_END]))
    return found


def _table_exists() -> bool:
    return any(_name(each.get(1)) == TABLE for each in _dump(_GETTABLE))


def _dump(kind: int, *attributes: bytes) -> list[dict[int, bytes]]:
    body = _header() + b"".join(attributes)
    replies = _ask(Message(_kind(kind), NLM_F_ROOT_MATCH, body, "nf_tables"))
    return [parse(reply[_FAMILY_HEADER.size :]) for reply in replies]


def _ask(message: Message) -> list[bytes]:
    try:
        return [reply.body for reply in netlink.dump(NETLINK_NETFILTER, message)]
    except RequestError as error:
        if error.errno == errno.ENOENT:
            return []
        raise _explain(error) from None


def _commit(messages: list[Message]) -> None:
    last = messages[-1]
    acknowledged = Message(last.kind, last.flags | NLM_F_ACK, last.body, last.subject)
    batch = [
        Message(_BATCH_BEGIN, 0, _header(_NFPROTO_UNSPEC, _SUBSYSTEM), "nf_tables"),
        *messages[:-1],
        acknowledged,
        Message(_BATCH_END, 0, _header(_NFPROTO_UNSPEC, _SUBSYSTEM), "nf_tables"),
    ]
    try:
        netlink.transact(NETLINK_NETFILTER, batch)
    except RequestError as error:
        raise _explain(error) from None
    except OSError as error:
        if error.errno in {errno.EMSGSIZE, errno.ENOBUFS}:
            raise RulesError(
                "too many networks or ports for one transaction: raise net.core.wmem_max, "
                "or give fewer --include-cidr and --exclude-cidr"
            ) from None
        raise


def _explain(error: RequestError) -> RulesError:
    if error.errno in {errno.EPERM, errno.EACCES}:
        return RulesPrivilegeError(
            "interception rules need CAP_NET_ADMIN over this network namespace: run as root, "
            "or in a namespace of your own (unshare --user --map-root-user --net)"
        )
    missing = {errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}
    if error.errno in missing:
        return RulesError(
            f"this kernel lacks {error.subject}: load the module named, or use a kernel that has it"
        )
    return RulesError(f"the kernel refused {error.subject}: {error.strerror}")
