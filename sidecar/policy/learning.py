"""Which rules would have allowed what a run did?

As few and as narrow as will do: a name rather than its addresses, the ports that were
used, an address where no name was known to be its own. A name gets ``private_names`` where
it led to an address that is not public; but where names never lead, to loopback or a
metadata service, the address gets a rule. What the policy allows already gets no rule,
and what a deny rule of its forbids stays forbidden.

A name that was only looked up gets port 53: in a sandbox, where port 53 of every address is
sidecar's own DNS server, such a rule allows the lookup and nothing else.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING

from sidecar.addresses import pack
from sidecar.flow import Protocol
from sidecar.policy.decisions import Decision, Outcome, Reason
from sidecar.policy.index import NameIndex
from sidecar.policy.policy import Default, Policy
from sidecar.policy.ranges import classify
from sidecar.policy.reach import Reach
from sidecar.policy.rules import parse_name_rule, parse_rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sidecar.policy.gathering import Seen

__all__ = ["SIBLINGS_MIN", "LearnedRule", "Lesson", "Refusal", "learn"]

SIBLINGS_MIN = 3
"""Names with one parent that make a wildcard, where wildcards are asked for."""
_DNS_PORT = 53
# Names listed in a comment before the rest is counted.
_LISTED = 4
# Characters of a process's name; the kernel's own have 15.
_PROCESS_MAX = 32
# What a client may say honestly, and names nobody: only its address can be allowed.
_UNREADABLE = {
    "proxy_request": "a proxy, so this allows whatever the proxy allows",
    "http_version": "HTTP/2 without TLS, whose names can't be read",
}
_REVERSE = (".in-addr.arpa", ".ip6.arpa")
# A country's second level (co.uk, com.au) has names of many owners below it.
_COUNTRY = 2
_SECOND_LEVEL = 3


@dataclass(frozen=True, slots=True)
class LearnedRule:
    """A rule, and why.

    Attributes:
        text: As it belongs into a file.
        comment: One line of printable text.
    """

    text: str
    comment: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the run did, and no rule is learned for, because the policy's own words forbid it.

    Attributes:
        target: The host and port, or the name that was looked up.
        reason: A reason code.
        rule: The rule that decided, with its place; None if none did.
    """

    target: str
    reason: str
    rule: str | None

    def __str__(self) -> str:
        because = f"by {self.rule}" if self.rule else f"({self.reason})"
        return f"{self.target} stays denied {because}"


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is missing in a policy.

    Attributes:
        allow, private_names: The rules to add, in the order in which to write them: names
            by their domains, then addresses by number.
        refused: What they will not allow.
    """

    allow: tuple[LearnedRule, ...] = ()
    private_names: tuple[LearnedRule, ...] = ()
    refused: tuple[Refusal, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to add."""
        return bool(self.allow or self.private_names)


def learn(seen: Iterable[Seen], policy: Policy, *, siblings: int | None = None) -> Lesson:
    """Find the rules that a policy lacks for what a run did.

    Args:
        seen: What it did.
        policy: What is there already; ``Policy(default=Default.DENY)`` for nothing.
        siblings: How many names with one parent and port make ``*.parent:port``; None for
            no wildcards.
    """
    given = sorted(seen, key=_order_of_seen)
    connections = [each for each in given if each.port is not None]
    missing = _Missing(policy)
    # By names first: on a port that a name rule has, more may be allowed than before.
    missing.connections([each for each in connections if each.owned])
    missing.connections([each for each in connections if not each.owned])
    missing.lookups([each for each in given if each.port is None])
    return missing.lesson(siblings)


@dataclass
class _Missing:
    """What is missing so far; grows stage by stage.

    Attributes:
        base: The policy that is there.
        names, addresses: Hosts with their ports, and who needs each.
        private: Names that led to addresses that are not public, with who needs it.
        refused: By target, so that each is said once.
    """

    base: Policy
    names: dict[str, dict[int, list[Seen]]] = field(default_factory=dict)
    addresses: dict[str, dict[int, list[Seen]]] = field(default_factory=dict)
    private: dict[str, tuple[list[str], list[Seen]]] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)

    def policy(self) -> Policy:
        """The policy as it would be by now."""
        base = self.base
        hosts = [*self.names.items(), *self.addresses.items()]
        added = [parse_rule(_text(host, ports)) for host, ports in hosts]
        return Policy(
            default=base.default,
            allow=(*base.allow, *added),
            deny=base.deny,
            private_names=(*base.private_names, *map(parse_name_rule, self.private)),
            ech=base.ech,
            no_name=base.no_name,
            own=base.own,
            not_by_name=base.not_by_name,
        )

    # Connections

    def connections(self, given: Sequence[Seen]) -> None:
        """Add what they lack."""
        policy = self.policy()
        named = NameIndex(rule for rule in policy.allow if rule.is_for_names)
        private = NameIndex(policy.private_names)
        denied_names = NameIndex(rule for rule in policy.deny if rule.is_for_names)
        for seen in given:
            port = seen.port or _DNS_PORT
            for address in seen.addresses:
                decision = _judge(policy, seen, address, port)
                if _suffices(decision, seen):
                    continue
                target = _target(seen, address, port)
                if seen.muddled and denied_names.covers(port):
                    # A deny rule could depend on the name, and none can be read.
                    self._refuse(target, Reason.DENIED_BY_RULE, None)
                elif decision.reason in {Reason.DENIED_BY_RULE, Reason.ECH}:
                    self._refuse(target, decision.reason, decision)
                elif not (seen.owned and seen.host) or self._takes_address(address):
                    _note(self.addresses, address, port, seen)
                else:
                    if named.match(seen.host, port) is None:
                        _note(self.names, seen.host, port, seen)
                    if private.match(seen.host, port) is None:
                        self._need_private(seen.host, address, seen)

    # Lookups

    def lookups(self, given: Sequence[Seen]) -> None:
        """Add what they lack, whichever port it has."""
        self._lookups([seen for seen in given if seen.found])
        nothing = [seen for seen in given if not seen.found]
        self._lookups([seen for seen in nothing if not seen.made_of])
        # With those allowed, what was made of them needs nothing.
        self._lookups([seen for seen in nothing if seen.made_of])

    def _lookups(self, given: Sequence[Seen]) -> None:
        policy = self.policy()
        reach = Reach(policy)
        private = NameIndex(policy.private_names)
        for seen in given:
            if seen.host is None:
                continue
            decision = reach.name(seen.host, seen.leads)
            if decision.outcome is Outcome.DENY and decision.reason is not Reason.DENIED_BY_RULE:
                # What would be learned might be denied.
                decision = self._if_denied(policy.judge_name(seen.host, _DNS_PORT), decision)
            if decision.reason is Reason.DENIED_BY_RULE:
                self._refuse(f"the lookup of {seen.host}", decision.reason, decision)
                continue
            if _is_covered(seen, reach):
                continue
            lacking = self._answers_lack(seen, reach, private)
            lacking |= decision.outcome is Outcome.DENY
            named = decision.rule is not None and decision.rule.is_for_names
            # An address rule lets names be asked for that may lead there; not so here.
            is_reverse = seen.host.endswith(_REVERSE) and policy.default is Default.DENY
            if (lacking or is_reverse) and not named:
                _note(self.names, seen.host, _DNS_PORT, seen)

    def _answers_lack(self, seen: Seen, reach: Reach, private: NameIndex) -> bool:
        """Whether a name needs a rule for its addresses to be passed on."""
        host = seen.host or ""
        lacking = False
        for address in seen.addresses:
            decision = reach.address(address, host)
            if decision.outcome is Outcome.ALLOW:
                continue
            there = reach.policy.judge(address, _DNS_PORT, host=host, protocol=Protocol.TCP)
            decision = self._if_denied(there, decision)
            if decision.reason is Reason.DENIED_BY_RULE:
                self._refuse(f"the lookup of {host}", decision.reason, decision)
            elif self._takes_address(address):
                _note(self.addresses, address, _DNS_PORT, seen)
            else:
                lacking = True
                if private.match(host, _DNS_PORT) is None:
                    self._need_private(host, address, seen)
        return lacking

    @staticmethod
    def _if_denied(decision: Decision, otherwise: Decision) -> Decision:
        return decision if decision.reason is Reason.DENIED_BY_RULE else otherwise

    def _takes_address(self, address: str) -> bool:
        return classify(pack(address)) in self.base.not_by_name

    def _need_private(self, host: str, address: str, seen: Seen) -> None:
        if self.base.is_public(address):
            return
        addresses, needed_by = self.private.setdefault(host, ([], []))
        if address not in addresses:
            addresses.append(address)
        needed_by.append(seen)

    def _refuse(self, target: str, reason: Reason, decision: Decision | None) -> None:
        rule = None if decision is None else decision.rule_with_place
        self.refused.setdefault(target, Refusal(target, reason.value, rule))

    # What comes of it

    def lesson(self, siblings: int | None) -> Lesson:
        """Write down what is missing."""
        names = dict(self.names)
        if siblings is not None:
            names = _fold(names, siblings)
        allow = [
            LearnedRule(_text(host, names[host]), _why(host, names[host]))
            for host in sorted(names, key=_by_domain)
        ]
        allow += [
            LearnedRule(_text(host, self.addresses[host]), _why(host, self.addresses[host]))
            for host in sorted(self.addresses, key=_by_number)
        ]
        private = [
            LearnedRule(host, f"led to {_listed(sorted(self.private[host][0], key=_by_number))}")
            for host in sorted(self.private, key=_by_domain)
        ]
        refused = sorted(self.refused.values(), key=lambda each: each.target)
        return Lesson(tuple(allow), tuple(private), tuple(refused))


def _is_covered(seen: Seen, reach: Reach) -> bool:
    """Whether a name that a lookup's was made of is enough, as `sidecar.dns.questions` has it."""
    for meant in seen.made_of:
        if reach.name(meant, seen.leads).outcome is Outcome.DENY:
            continue
        # Then it is not asked for, and no denial; or, of a short name, asked in its stead.
        addresses = [reach.address(address, meant).outcome for address in seen.addresses]
        if not seen.found or ("." not in meant and {*addresses} <= {Outcome.ALLOW}):
            return True
    return False


def _judge(policy: Policy, seen: Seen, address: str, port: int) -> Decision:
    return policy.judge(
        address,
        port,
        host=seen.host,
        # What can't be trusted to name a host is denied wherever the name matters.
        names_known=not seen.muddled,
        ech=seen.ech,
        protocol=Protocol.TCP if seen.raw else Protocol.TLS,
    )


def _suffices(decision: Decision, seen: Seen) -> bool:
    return decision.outcome is Outcome.ALLOW and (seen.owned or not decision.by_name)


def _note(hosts: dict[str, dict[int, list[Seen]]], host: str, port: int, seen: Seen) -> None:
    needed_by = hosts.setdefault(host, {}).setdefault(port, [])
    if seen not in needed_by:
        needed_by.append(seen)


# Wildcards


def _fold(names: dict[str, dict[int, list[Seen]]], least: int) -> dict[str, dict[int, list[Seen]]]:
    """Put ``*.parent`` in the place of names that have a parent and a port in common."""
    families: dict[tuple[str, int], list[str]] = defaultdict(list)
    for host, ports in names.items():
        parent = host.partition(".")[2]
        if _may_be_one_owners(parent):
            for port in ports:
                families[parent, port].append(host)
    left = {host: dict(ports) for host, ports in names.items()}
    for (parent, port), hosts in families.items():
        if len(hosts) < least:
            continue
        folded = left.setdefault(f"*.{parent}", {})
        folded[port] = [seen for host in hosts for seen in left[host].pop(port)]
    return {host: ports for host, ports in left.items() if ports}


def _may_be_one_owners(parent: str) -> bool:
    """Whether names below this may well have one owner; the commonest that don't are known."""
    labels = parent.split(".")
    if len(labels) == _COUNTRY:
        return not (len(labels[1]) == _COUNTRY and len(labels[0]) <= _SECOND_LEVEL)
    return len(labels) > _COUNTRY


# Text


def _text(host: str, ports: Iterable[int]) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{','.join(map(str, sorted(ports)))}"


def _target(seen: Seen, address: str, port: int) -> str:
    return _text(seen.host if seen.owned and seen.host else address, [port])


def _why(host: str, ports: dict[int, list[Seen]]) -> str:
    """Say who needs a rule, how often, and since when."""
    seen = [each for needed_by in ports.values() for each in needed_by]
    connections = [each for each in seen if each.port is not None]
    parts = []
    if host.startswith("*."):
        parts.append(_listed(sorted({each.host for each in seen if each.host}, key=_by_domain)))
    if connections:
        parts.append(_connections(connections))
        problems = {problem for each in connections for problem in each.problems}
        parts += [text for problem, text in _UNREADABLE.items() if problem in problems]
        unreadable = [each for each in connections if each.problems & _UNREADABLE.keys()]
        meant = sorted({each.host for each in unreadable if each.host})
        if meant:
            parts.append(f"looked up as {_listed(meant)}")
        others = [each for each in connections if each not in unreadable]
        said = sorted({each.host for each in others if each.host and not each.owned})
        if said:
            parts.append(f"said {_listed(said)}, which is not known to be there")
    elif any(each.found for each in seen):
        parts.append("only looked up, not connected to")
    else:
        parts.append("only looked up, found nothing")
    return "; ".join(parts)


def _connections(seen: list[Seen]) -> str:
    times = sum(each.times for each in seen)
    failed = sum(each.failed for each in seen)
    text = "1 connection" if times == 1 else f"{times} connections"
    processes = sorted({_printable(name) for each in seen for name in each.processes})
    if processes:
        text += f" by {_listed(processes)}"
    first = time.gmtime(min(each.first for each in seen))
    text += f", {time.strftime('%Y-%m-%d %H:%M', first)} UTC"
    if failed == times:
        text += ", none came about"
    return text


def _printable(name: str) -> str:
    """Take everything out that is not for a line of text; a process names itself as it likes."""
    shown = "".join(each if each.isprintable() else "?" for each in name[:_PROCESS_MAX])
    return shown.strip() or "?"


def _listed(words: Sequence[str]) -> str:
    if len(words) > _LISTED + 1:
        return f"{', '.join(words[:_LISTED])} and {len(words) - _LISTED} more"
    return ", ".join(words)


# Order


def _by_domain(host: str) -> list[str]:
    return host.split(".")[::-1]


def _by_number(address: str) -> tuple[int, int]:
    parsed = ip_address(address)
    return parsed.version, int(parsed)


def _order_of_seen(seen: Seen) -> tuple[str, int, list[str]]:
    return seen.host or "", seen.port or 0, sorted(seen.addresses)
