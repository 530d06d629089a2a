"""How a rule set reads as iptables-restore and ip6tables-restore input.

For hosts that are run with iptables. Each of our chains is one of the user's chains
there, SIDECAR_…, with a jump from the built-in chain; load with --noflush, so that
nobody else's rules are touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidecar.linux import routing
from sidecar.linux.netfilter.chains import chains_of
from sidecar.linux.netfilter.vocabulary import (
    Accept,
    ConnectionInvalid,
    ConnectionMark,
    ConnectionReply,
    Destination,
    Drop,
    Family,
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
    from collections.abc import Iterator

    from sidecar.linux.netfilter.model import PortRange, RuleSet
    from sidecar.linux.netfilter.vocabulary import Chain, Match, Rule, Statement

__all__ = ["render"]

# xt_multiport.h: XT_MULTI_PORTS; a range takes two.
_MULTIPORT_SLOTS = 15


def render(rules: RuleSet, version: int) -> str:
    """The rules as a file for ``iptables-restore --noflush``.

    Args:
        rules: What to intercept.
        version: 4 for iptables-restore, 6 for ip6tables-restore.

    Returns:
        The text; policy routing, which it can't hold, as commands in comments.
    """
    command = "iptables-restore" if version == 4 else "ip6tables-restore"  # noqa: PLR2004
    lines = [f"# Load once: {command} --noflush < FILE"]
    if rules.needs_routing:
        lines.append("# and, before that:")
        lines += [f"#   {each}" for each in routing.commands() if each.startswith(f"ip -{version}")]
    for table, kinds in (("mangle", (Kind.ROUTE, Kind.FILTER)), ("nat", (Kind.NAT,))):
        chains = [chain for chain in chains_of(rules) if chain.kind in kinds]
        if chains:
            lines += _table(table, chains, version)
    return "\n".join(lines) + "\n"


@dataclass(slots=True)
class _Writer:
    """The chains and rules of one table as they are written.

    Attributes:
        version: 4 or 6.
        chains: Names declared so far.
        lines: Rules so far.
    """

    version: int
    chains: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def write(self, chain: Chain) -> str:
        """Write a chain; returns its name."""
        name = f"SIDECAR_{chain.name.upper()}"
        self.chains.append(name)
        current = name
        for rule in chain.rules:
            if self._concerns(rule):
                current = self._rule(name, current, rule)
        return name

    def _concerns(self, rule: Rule) -> bool:
        return all(
            match.version == self.version
            for match in rule.matches
            if isinstance(match, Destination | Family)
        )

    def _rule(self, name: str, current: str, rule: Rule) -> str:
        """Write a rule; returns the chain in which the next ones go."""
        for match in rule.matches:
            if isinstance(match, Destination | Ports) and match.negated:
                values = _alternatives(match)
                if len(values) > 1:
                    # "None of these" has no spelling for more than one: what is
                    # one of these goes on in a further chain, the rest falls off.
                    if rule.statements != (Return(),) or len(rule.matches) > 1:
                        raise AssertionError(rule)
                    further = f"{name}_{sum(each.startswith(name) for each in self.chains) + 1}"
                    self.chains.append(further)
                    self.lines += [
                        f"-A {current} {value} {_comment('included')} -g {further}"
                        for value in values
                    ]
                    return further
        for words in self._matches(rule):
            for target in _targets(rule):
                parts = [f"-A {current}", *words, _comment(rule.comment), f"-j {target}"]
                self.lines.append(" ".join(parts))
        return current

    def _matches(self, rule: Rule) -> Iterator[list[str]]:
        """The rule's matches as options, once for each alternative of a set."""
        alternatives: list[str] | None = None
        words: list[str] = []
        for match in rule.matches:
            if isinstance(match, Owner | Destination | Ports):
                alternatives = _alternatives(match)
                if isinstance(match, Destination | Ports) and match.negated:
                    alternatives = [_negate(each) for each in alternatives]
            elif not isinstance(match, Family):
                words.append(_match(match))
        # Protocol options come first, for others refer to them.
        words.sort(key=lambda word: not word.startswith(("-p ", "! -p ")))
        for each in alternatives or [""]:
            yield [each, *words] if each else words


def _table(name: str, chains: list[Chain], version: int) -> list[str]:
    writer = _Writer(version)
    jumps = []
    for chain in chains:
        written = writer.write(chain)
        jumps.append(f"-I {chain.hook.name} -j {written}")
    declared = [f":{each} - [0:0]" for each in writer.chains]
    # Inserted before other tools' rules, the last one first.
    return [f"*{name}", *declared, *writer.lines, *reversed(jumps), "COMMIT"]


def _alternatives(match: Owner | Destination | Ports) -> list[str]:
    """Options of which one has to hold, as if the match were not negated."""
    if isinstance(match, Owner):
        return [f"-m owner --{match.kind.value}-owner {number}" for number in match.numbers]
    if isinstance(match, Destination):
        return [f"-d {network}" for network in match.networks]
    side = "sport" if match.side is Side.SOURCE else "dport"
    return [
        f"-p tcp --{side} {ports[0]}" if len(ports) == 1 else _multiport(side, ports)
        for ports in _chunks(match.ranges)
    ]


def _multiport(side: str, ports: list[str]) -> str:
    return f"-p tcp -m multiport --{side}s {','.join(ports)}"


def _chunks(ranges: tuple[PortRange, ...]) -> Iterator[list[str]]:
    chunk: list[str] = []
    slots = 0
    for each in ranges:
        single = each.first == each.last
        needed = 1 if single else 2
        if slots + needed > _MULTIPORT_SLOTS:
            yield chunk
            chunk, slots = [], 0
        chunk.append(str(each.first) if single else f"{each.first}:{each.last}")
        slots += needed
    yield chunk


def _negate(option: str) -> str:
    for word in ("--dports", "--sports", "--dport", "--sport", "-d"):
        if f"{word} " in option:
            return option.replace(f"{word} ", f"! {word} ")
    raise AssertionError(option)


def _match(match: Match) -> str:  # noqa: C901 - one line per kind of match
    if isinstance(match, Tcp):
        return "! -p tcp" if match.negated else "-p tcp"
    if isinstance(match, LoopbackInterface):
        return f"{_not(match.negated)}{'-i' if match.side is Side.SOURCE else '-o'} lo"
    if isinstance(match, Mark):
        return f"-m mark --mark {match.value:#x}"
    if isinstance(match, ConnectionMark):
        return f"-m connmark --mark {match.value:#x}"
    if isinstance(match, ConnectionReply):
        return f"-m conntrack --ctdir {'ORIGINAL' if match.negated else 'REPLY'}"
    if isinstance(match, ConnectionInvalid):
        return "-m conntrack --ctstate INVALID"
    if isinstance(match, LocalAddress):
        side = "src" if match.side is Side.SOURCE else "dst"
        return f"-m addrtype {_not(match.negated)}--{side}-type LOCAL"
    if isinstance(match, NewConnection):
        return f"-p tcp {_not(match.negated)}--tcp-flags FIN,SYN,RST,ACK SYN"
    if isinstance(match, SocketTransparent):
        return "-m socket --transparent"
    if isinstance(match, SocketBound):
        return "-m socket"
    raise TypeError(match)


def _targets(rule: Rule) -> Iterator[str]:
    """One target per line: iptables knows no second statement in a rule."""
    for statement in rule.statements:
        yield _target(statement)


def _target(statement: Statement) -> str:
    if isinstance(statement, SetMark):
        return f"MARK --set-mark {statement.value:#x}"
    if isinstance(statement, SetConnectionMark):
        return f"CONNMARK --set-mark {statement.value:#x}"
    if isinstance(statement, Redirect):
        return f"REDIRECT --to-ports {statement.port}"
    if isinstance(statement, Tproxy):
        mark = "" if statement.mark is None else f" --tproxy-mark {statement.mark:#x}"
        return f"TPROXY --on-port {statement.port}{mark}"
    # ACCEPT would end the built-in chain, and with it other people's rules.
    return {Return: "RETURN", Accept: "RETURN", Drop: "DROP"}[type(statement)]


def _comment(comment: str) -> str:
    return f'-m comment --comment "{comment}"'


def _not(negated: bool) -> str:
    return "! " if negated else ""
