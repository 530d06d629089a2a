"""How our table is made, drained and deleted, each in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.linux.attributes import attribute, be32, nested, parse, parse_list, text
from sidecar.linux.netfilter.chains import chains_of
from sidecar.linux.netfilter.expressions import Lookup, encode_rule
from sidecar.linux.netfilter.model import TABLE
from sidecar.linux.netfilter.nfnetlink import (
    UDATA_COMMENT,
    comment_in,
    commit,
    dump,
    message,
    name_in,
    user_data,
)
from sidecar.linux.netfilter.nft import table_comment
from sidecar.linux.netfilter.sets import set_messages
from sidecar.linux.netfilter.vocabulary import ADMITS, Chain, Kind
from sidecar.linux.netlink import NLM_F_APPEND, NLM_F_CREATE, Message

if TYPE_CHECKING:
    from sidecar.linux.netfilter.model import RuleSet

__all__ = ["delete", "drain", "install"]

# linux/netfilter/nf_tables.h
_NEWTABLE, _GETTABLE, _DELTABLE = 0, 1, 2
_NEWCHAIN = 3
_NEWRULE, _GETRULE, _DELRULE = 6, 7, 8
_PRIORITY_MANGLE, _PRIORITY_DSTNAT = -150, -100


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
                    messages += set_messages(step, set_id)
                    expressions.append(step.encode("__set%d", set_id))
                else:
                    expressions.append(step)
            body = (
                text(1, TABLE),
                text(2, chain.name),
                nested(4, *expressions),
                attribute(7, user_data(UDATA_COMMENT, rule.comment.encode() + b"\0")),
            )
            flags = NLM_F_CREATE | NLM_F_APPEND
            messages.append(message(_NEWRULE, flags, body, _needs(expressions)))
    commit(messages)


def drain() -> bool:
    """Take out the rules that take new connections, atomically.

    Returns:
        Whether there were any.

    Raises:
        RulesPrivilegeError: No CAP_NET_ADMIN over this network namespace.
        RulesError: The kernel refused.
    """
    messages = []
    for rule in dump(_GETRULE, text(1, TABLE)):
        if comment_in(rule.get(7)) == ADMITS:
            body = text(1, TABLE), attribute(2, rule[2]), attribute(3, rule[3])
            messages.append(message(_DELRULE, 0, body, "a rule"))
    if messages:
        commit(messages)
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
    commit([_table_message(_DELTABLE)])
    return True


def _table_message(kind: int, comment: str | None = None) -> Message:
    body = [text(1, TABLE)]
    if comment is not None:
        body.append(attribute(6, user_data(UDATA_COMMENT, comment.encode() + b"\0")))
    flags = NLM_F_CREATE if kind == _NEWTABLE else 0
    return message(kind, flags, tuple(body), "nf_tables and its inet family (nf_tables)")


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
    return message(_NEWCHAIN, NLM_F_CREATE, body, subject)


def _needs(expressions: list[bytes]) -> str:
    """Which kernel module a rule needs beyond the usual, for an error's text."""
    names = {name_in(parse(parse_list(each)[0][1])[1]) for each in expressions}
    for name in ("tproxy", "socket", "redir", "fib", "ct"):
        if name in names:
            module = "nft_fib_inet" if name == "fib" else f"nft_{name}"
            return f"{name} rules ({module})"
    return "rules (nf_tables)"


def _table_exists() -> bool:
    return any(name_in(each.get(1)) == TABLE for each in dump(_GETTABLE))
