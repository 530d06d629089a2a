"""Which questions are answered here, which are refused, and which are asked further.

A question is itself a message to whoever owns the name: what the policy can't allow on any
port is therefore not sent to anybody, whatever its type. Where nothing but an address that
the name might lead to could be allowed, only what leads to addresses is.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from twisted.names import dns

from sidecar.addresses import parse_host
from sidecar.dns.messages import EDE_FILTERED, ExtendedError, Reply, type_text
from sidecar.errors import AddressError
from sidecar.lookups import LEADING
from sidecar.policy import Outcome, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.dns.messages import Question
    from sidecar.policy.reach import Reach

__all__ = ["Forward", "Local", "Refused", "decide"]

# Seconds; what never changes.
_TTL = 86400
_LOCALHOST = b"localhost"
# Names that lead out of sight: a client that finds these answered asks somebody else by TLS
# from then on, past us. RFC 9462 §6.4; Firefox' canary for networks with filters.
_OUT_OF_SIGHT = ("resolver.arpa", "use-application-dns.net")
# Names that are no DNS names: RFC 6761 §6.4, RFC 7686.
_NO_NAMES = ("invalid", "onion")

# What addresses.py takes for a label, within a name.
_LABEL = re.compile(rb"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# What an HTTP client puts before a host's name.
_BETTER = re.compile(r"\A(?:_https?\._tcp|_[0-9]{1,5}\._https)\.")
_NIBBLE = re.compile(r"[0-9a-f]")
_V4_LABELS, _V6_LABELS = 4, 32
_V4_REVERSE, _V6_REVERSE = ".in-addr.arpa", ".ip6.arpa"


class Forward(NamedTuple):
    """To be asked of the host's name servers.

    Attributes:
        host: The name that its addresses are judged for; None if it can't have any.
        made_of: The names that a program may have made this one of (`_made_of`).
        short: Of these, the one of a single label, which is a name by the search list alone:
            what the program calls the host, and says in SNI or Host; None if there is none.
    """

    host: str | None
    made_of: tuple[str, ...] = ()
    short: str | None = None


class Local(NamedTuple):
    """Answered here; no denial.

    Attributes:
        reply: The answer.
    """

    reply: Reply


class Refused(NamedTuple):
    """Not to be asked.

    Attributes:
        reply: The answer.
        reason: A reason code.
        rule: The rule that decided, with its place; None if none did.
        hint: The text of a rule that would allow it; empty if none would.
    """

    reply: Reply
    reason: str
    rule: str | None
    hint: str


def decide(
    question: Question, reach: Reach, search: Callable[[], Sequence[str]] = tuple
) -> Forward | Local | Refused:
    """Say what becomes of a question.

    Args:
        question: The client's.
        reach: What the policy could allow.
        search: Tells the domains that resolvers append to names.

    What programs make of a name that may be asked for, and is itself none that may, is nobody's
    wish: it is not asked further, and no denial. But a name of one label that a rule allows is
    one by the search list only: then what is made of it is asked, and judged in its stead.
    """
    host, name = _hosts_of(question.name)
    if name is None:
        # In a resolver's root zone there is no such name; C libraries take it for an address.
        return Local(Reply(dns.ENAME))
    local = _local(question, name)
    if local is not None:
        return Local(local)
    leads = type_text(question.type) in LEADING
    decision = reach.name(name, leads)
    address = _reversed_address(name)
    allowed = decision.outcome is not Outcome.DENY
    if address is not None and not (allowed and decision.rule is not None):
        # Whose name is asked for is whoever has the address.
        decision = reach.address(address, None)
        allowed = decision.outcome is Outcome.ALLOW
    domains = search()
    made_of = _made_of(name, domains)
    first, _, rest = name.partition(".")
    short = first if host is not None and rest in domains else None
    if allowed:
        return Forward(host, made_of, short)
    if decision.reason is not Reason.DENIED_BY_RULE:
        if short is not None and reach.name(short, leads).outcome is not Outcome.DENY:
            return Forward(short, made_of)
        for meant in made_of:
            if reach.name(meant, leads).outcome is not Outcome.DENY:
                error = ExtendedError(EDE_FILTERED, f"sidecar: not asked for; {meant} may be")
                return Local(Reply(dns.ENAME, error=error))
    hint = "" if decision.reason is Reason.DENIED_BY_RULE else address or host or ""
    advice = f"; to allow it: {hint}" if hint else ""
    error = ExtendedError(EDE_FILTERED, f"sidecar: denied: {decision.reason}{advice}")
    # Where the name itself may be asked for, there is one: only this type of it isn't told.
    askable = not leads and reach.name(name, True).outcome is not Outcome.DENY
    reply = Reply(dns.OK if askable else dns.ENAME, error=error)
    return Refused(reply, decision.reason.value, decision.rule_with_place, hint)


def _hosts_of(name: bytes) -> tuple[str | None, str | None]:
    """The name as the policy knows it: itself, and what to judge in its place.

    Not every DNS name is a host's (``*.example``, ``My Printer._ipp._tcp.local``, the root).
    What rules say of the names round it is found with another label in place of each that no
    host has.

    Returns:
        The canonical name, None if it is none; and the one to judge, None if there is none.
    """
    lower = name.lower()
    labels = [label if _LABEL.fullmatch(label) else b"_" for label in lower.split(b".")]
    substitute = b".".join(labels)
    try:
        judged = parse_host(substitute)
    except AddressError:
        return None, None
    if not isinstance(judged, str):
        return None, None
    return (judged if substitute == lower else None), judged


def _made_of(name: str, search: Sequence[str]) -> tuple[str, ...]:
    """The names that a program may have made another of before it asks for them themselves.

    By appending a domain of the search list; or by looking for better than addresses first:
    for an HTTP server's other places (SRV, as apt does) or ways (HTTPS on a port of its own,
    RFC 9460 §9.1). Whoever is told that there are none goes on with the name itself.
    """
    meant = [name, *(name.removesuffix(f".{each}") for each in search)]
    meant += [_BETTER.sub("", each) for each in meant]
    return tuple(each for each in dict.fromkeys(meant) if each not in {"", name})


def _is_below(name: str, suffixes: tuple[str, ...]) -> bool:
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)


def _local(question: Question, name: str) -> Reply | None:
    """What needs nobody else to be answered."""
    if _is_below(name, ("localhost",)):
        return _localhost(question)
    if _is_below(name, _OUT_OF_SIGHT) or _is_below(name, _NO_NAMES):
        return Reply(dns.ENAME)
    address = _reversed_address(name)
    if address is not None and (address.startswith("127.") or address == "::1"):
        pointer = dns.Record_PTR(_LOCALHOST)
        return _records(question, pointer if question.type == dns.PTR else None)
    return None


def _localhost(question: Question) -> Reply:
    """RFC 6761 §6.3: loopback addresses, and nothing else."""
    if question.type == dns.A:
        return _records(question, dns.UnknownRecord(IPv4Address("127.0.0.1").packed))
    if question.type == dns.AAAA:
        return _records(question, dns.UnknownRecord(IPv6Address("::1").packed))
    return _records(question, None)


def _records(question: Question, payload: dns.IEncodableRecord | None) -> Reply:
    if payload is None:
        return Reply(dns.OK)
    header = dns.RRHeader(question.name, question.type, ttl=_TTL, payload=payload)
    return Reply(dns.OK, (header,))


def _reversed_address(name: str) -> str | None:
    """The address whose name is asked for (RFC 1035 §3.5, RFC 3596 §2.5); None if none is."""
    if name.endswith(_V4_REVERSE):
        octets = name.removesuffix(_V4_REVERSE).split(".")
        if len(octets) != _V4_LABELS:
            return None
        try:
            return str(IPv4Address(".".join(reversed(octets))))
        except ValueError:
            return None
    if name.endswith(_V6_REVERSE):
        nibbles = name.removesuffix(_V6_REVERSE).split(".")
        if len(nibbles) != _V6_LABELS or not all(map(_NIBBLE.fullmatch, nibbles)):
            return None
        address = IPv6Address(int("".join(reversed(nibbles)), 16))
        return str(address.ipv4_mapped or address)
    return None
