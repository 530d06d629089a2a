"""Which chains and rules a rule set means.

Whatever is decided about interception is decided here, once; how it is spelt is the
renderers' business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.linux.netfilter.model import (
    TPROXY_MARK,
    TPROXY_REVERSED_MARK,
    Mode,
)
from sidecar.linux.netfilter.passing import (
    RETURN,
    destination_filter,
    forwarded_entry,
    inbound_filter,
    local_filter,
    singles,
)
from sidecar.linux.netfilter.vocabulary import (
    ADMITS,
    Accept,
    Chain,
    ConnectionInvalid,
    ConnectionMark,
    ConnectionReply,
    Drop,
    Hook,
    Kind,
    LocalAddress,
    LoopbackInterface,
    Mark,
    NewConnection,
    Ports,
    Redirect,
    Return,
    Rule,
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
    from sidecar.linux.netfilter.vocabulary import Match

__all__ = ["chains_of"]


def chains_of(rules: RuleSet) -> tuple[Chain, ...]:
    """Say a rule set in chains, in the order in which they are made."""
    build = _redirect if rules.mode is Mode.REDIRECT else _tproxy
    return build(rules)


def _redirect(rules: RuleSet) -> tuple[Chain, ...]:
    """NAT chains, and beside each a chain that drops what NAT would miss.

    An INVALID packet is not translated: from the application it would go to the
    real server, from a client to the real application, and either would answer
    with a reset that kills the connection.
    """
    taken = NewConnection() if rules.syn_only else Tcp()
    invalid = Rule((ConnectionInvalid(),), (Drop(),), "NAT would miss it")
    chains = []
    ways: list[tuple[str, Hook, tuple[Rule, ...], int]] = []
    if rules.outbound_port is not None:
        ways.append(("outbound", Hook.OUTPUT, local_filter(rules), rules.outbound_port))
    if rules.inbound_port is not None:
        ways.append(("inbound", Hook.PREROUTING, inbound_filter(rules), rules.inbound_port))
    if rules.forwarded and rules.outbound_port is not None:
        forwarded = (*forwarded_entry(), *destination_filter(rules))
        ways.append(("forwarded", Hook.PREROUTING, forwarded, rules.outbound_port))
    for name, hook, passing, port in ways:
        admit = Rule((taken,), (Redirect(port),), ADMITS)
        chains.append(Chain(name, Kind.NAT, hook, (*passing, admit)))
        chains.append(Chain(f"{name}_invalid", Kind.FILTER, hook, (*passing, invalid)))
    own_ports = Ports(Side.SOURCE, singles(rules.ports))
    answers = [Rule((own_ports, ConnectionInvalid()), (Drop(),), "NAT would miss it")]
    if not rules.syn_only:
        # Conntrack forgot the connection. The client's next packet makes NAT know it
        # again; an answer that it can't recognize would have it reset.
        forgotten = (own_ports, ConnectionReply(negated=True))
        answers.append(Rule(forgotten, (Drop(),), "NAT would miss it"))
    chains.append(Chain("answers_invalid", Kind.FILTER, Hook.OUTPUT, tuple(answers)))
    return tuple(chains)


def _tproxy(rules: RuleSet) -> tuple[Chain, ...]:
    chains: list[Chain] = []
    if rules.outbound_port is not None:
        chains += _tproxy_outbound(rules, rules.outbound_port)
    if rules.inbound_port is not None:
        chains.append(_tproxy_inbound(rules, rules.inbound_port))
    if rules.forwarded and rules.outbound_port is not None:
        chains.append(_tproxy_forwarded(rules, rules.outbound_port))
    return tuple(chains)


def _tproxy_outbound(rules: RuleSet, port: int) -> list[Chain]:
    """Mark on output; the mark routes the packet to lo, where TPROXY takes it."""
    new: tuple[Match, ...] = (NewConnection(),) if rules.syn_only else ()
    first, *passing = local_filter(rules)
    returned = (LoopbackInterface(Side.SOURCE), Mark(TPROXY_MARK), Tcp())
    outbound = (
        first,
        Rule(
            # The direction is essential: the proxy's answers belong to the same
            # connection, and marked they would come back to the proxy.
            (ConnectionMark(TPROXY_MARK), ConnectionReply(negated=True)),
            (SetMark(TPROXY_MARK), Accept()),
            "already intercepted",
        ),
        Rule(
            (ConnectionMark(TPROXY_REVERSED_MARK), ConnectionReply()),
            (SetMark(TPROXY_MARK), Accept()),
            "already intercepted",
        ),
        _answers(),
        Rule(
            # True of the proxy's answers even if it has no mark and runs as no
            # excluded user. One that comes as far as here was not known as an
            # answer: conntrack forgot the connection and has it reversed now.
            (LocalAddress(Side.SOURCE, negated=True),),
            (SetConnectionMark(TPROXY_REVERSED_MARK), Return()),
            "from a transparent socket",
        ),
        *passing,
        Rule((ConnectionInvalid(),), (Drop(),), "whose it is can't be told"),
        Rule(new, (SetConnectionMark(TPROXY_MARK), SetMark(TPROXY_MARK), Accept()), ADMITS),
    )
    return [
        Chain("outbound", Kind.ROUTE, Hook.OUTPUT, outbound),
        Chain(
            "returned",
            Kind.FILTER,
            Hook.PREROUTING,
            (
                Rule(returned, (Tproxy(port),), "marked on output"),
                # tproxy without a listener is no match, and the packet would
                # go on; a proxy that is down must not be a way round it.
                Rule(returned, (Drop(),), "no proxy listens"),
            ),
        ),
        Chain(
            "guard",
            Kind.FILTER,
            Hook.POSTROUTING,
            (
                Rule(
                    (
                        LoopbackInterface(Side.DESTINATION, negated=True),
                        Mark(TPROXY_MARK),
                        Tcp(),
                    ),
                    (Drop(),),
                    "the policy route is missing",
                ),
            ),
        ),
    ]


def _tproxy_inbound(rules: RuleSet, port: int) -> Chain:
    not_new = NewConnection(negated=True)
    if rules.syn_only:
        alive = [Rule((not_new,), RETURN, "already alive")]
    else:
        # What has no socket of its own goes to the listener all the same: the
        # last packet of a handshake made with SYN cookies looks like that.
        alive = [_answers(), Rule((not_new, SocketBound()), RETURN, "already alive")]
    return Chain(
        "inbound",
        Kind.FILTER,
        Hook.PREROUTING,
        (
            *inbound_filter(rules),
            *alive,
            Rule((Tcp(),), (Tproxy(port),), ADMITS),
            Rule((Tcp(),), (Drop(),), ADMITS),
        ),
    )


def _tproxy_forwarded(rules: RuleSet, port: int) -> Chain:
    not_new = NewConnection(negated=True)
    return Chain(
        "forwarded",
        Kind.FILTER,
        Hook.PREROUTING,
        (
            *forwarded_entry(),
            Rule(
                (not_new, SocketTransparent()),
                (SetMark(TPROXY_MARK), Accept()),
                "already intercepted",
            ),
            Rule((not_new,), RETURN, "already alive") if rules.syn_only else _answers(),
            *destination_filter(rules),
            Rule((Tcp(),), (Tproxy(port, TPROXY_MARK),), ADMITS),
            Rule((Tcp(),), (Drop(),), ADMITS),
        ),
    )


def _answers() -> Rule:
    matches = (NewConnection(negated=True), ConnectionReply())
    return Rule(matches, RETURN, "answers")
