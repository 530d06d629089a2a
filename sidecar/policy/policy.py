"""Whether a connection may be made, as soon as what is known of it suffices.

Deny beats allow beats default. In this order, with an address and a port known:

1. A deny rule for the address: **deny**, at once.
2. A deny rule for the name: **deny**.
3. An allow rule for the address: **allow**; at once, unless a deny rule for names has
   this port.
4. The default allows the address: **allow**, likewise. Where a deny rule for names has
   the port, a name that is hidden (``ech = "deny"``), or that a TLS or HTTP client does
   not give (``no_name = "deny"``), is a denial.
5. No allow rule for names has the port: **deny**, at once. Likewise where the address
   is not public and no name may be private.
6. An allow rule for the name: **allow**, by name, if the name is not hidden, and the
   address is public or the name may be private. No name at all: ``no_name``.
7. **Deny**.

docs/reference/policy.md has the table for users.
"""

from __future__ import annotations

from copy import copy
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

from sidecar.addresses import pack
from sidecar.flow import Protocol
from sidecar.policy.decisions import Decision, Fact, Outcome, Reason
from sidecar.policy.index import NameIndex, RuleIndex
from sidecar.policy.ranges import AddressClass, classify, embedded

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from sidecar.addresses import SocketAddress
    from sidecar.flow import Flow
    from sidecar.policy.rules import Rule

__all__ = ["NOT_BY_NAME", "Choice", "Default", "Policy", "Through"]


class Default(Enum):
    """What happens to what no rule matches."""

    ALLOW = "allow"
    DENY = "deny"
    PUBLIC = "public"


class Choice(Enum):
    """What a key that is no rule chooses."""

    ALLOW = "allow"
    DENY = "deny"


class Through(Enum):
    """Which allow rules for addresses count for a name that could lead there."""

    ADDRESSES = "addresses"
    NETWORKS = "networks"  # classes as well; not those for a single address
    NOTHING = "nothing"


_ALLOW_DEFAULT = Decision(Outcome.ALLOW, Reason.DEFAULT)
_ALLOW_NAMELESS = Decision(Outcome.ALLOW, Reason.NO_NAME)
_NEED_NAME = Decision(Outcome.NEED_MORE, Reason.NO_NAME, missing=Fact.NAME)
_NO_DESTINATION = Decision(Outcome.DENY, Reason.UNKNOWN_DESTINATION)

NOT_BY_NAME = frozenset({AddressClass.METADATA})
"""Classes that no rule for a name leads to: that takes one for the address."""

# Answers, of half a kilobyte each. Whoever asks for more names than that drives out
# others' answers, which then cost what they cost without.
_REMEMBERED = 2048


class Policy:
    """All rules of one configuration. Never changed: a reload makes another.

    Args:
        default: For what no rule matches.
        allow, deny: The rules, in the order given.
        private_names: Names that allow rules may lead to addresses that are not public.
        ech: Whether a name may be a front for an encrypted one, where it matters.
        no_name: Whether a connection needs a name, where one would matter.
        own: Tells whether an address, in network byte order, is one of the host's own: if it is
            public, it is taken for private, since it leads behind whatever guards the host's door.
        not_by_name: Classes that no rule for a name leads to.

    Attributes:
        default, allow, deny, private_names, ech, no_name, own, not_by_name: The same.
    """

    def __init__(
        self,
        *,
        default: Default = Default.ALLOW,
        allow: Iterable[Rule] = (),
        deny: Iterable[Rule] = (),
        private_names: Iterable[Rule] = (),
        ech: Choice = Choice.ALLOW,
        no_name: Choice = Choice.DENY,
        own: Container[bytes] = frozenset(),
        not_by_name: frozenset[AddressClass] = NOT_BY_NAME,
    ) -> None:
        self.default = default
        self.allow = tuple(allow)
        self.deny = tuple(deny)
        self.private_names = tuple(private_names)
        self.ech = ech
        self.no_name = no_name
        self.not_by_name = not_by_name
        self._allow = RuleIndex(self.allow)
        self._deny = RuleIndex(self.deny)
        self._private = NameIndex(self.private_names)
        self._ech_denied = ech is Choice.DENY
        self._name_needed = no_name is Choice.DENY
        self._live_at(own)

    def with_own(self, own: Container[bytes]) -> Policy:
        """Make the same policy for a host that has other addresses; quickly."""
        other = copy(self)
        other._live_at(own)  # noqa: SLF001 - another of ours
        return other

    def at_home_of(self, other: Policy) -> Policy:
        """Make the same policy for where another one is in force."""
        made = self.with_own(other.own)
        made.not_by_name = other.not_by_name
        return made

    def _live_at(self, own: Container[bytes]) -> None:
        self.own = own
        # Clients come back, and each flow asks up to four times; nothing here changes.
        self._judged = lru_cache(_REMEMBERED)(self._judge)

    def decide(self, flow: Flow) -> Decision:
        """Judge a flow by what is known of it: destination, host, ech, protocol.

        An answer other than NEED_MORE is final: no fact that comes later changes it.
        Facts about the name count once `Flow.names_known` is set; from then on the
        answer never is NEED_MORE.

        Raises:
            AddressError: The destination is no IP address. Deny.
        """
        destination = flow.destination
        if destination is None:
            return _NO_DESTINATION
        return self._judged(
            destination.host,
            destination.port,
            flow.host,
            flow.names_known,
            flow.ech,
            flow.protocol is Protocol.TCP,
        )

    def accepts_address(self, flow: Flow, address: SocketAddress) -> bool:
        """Whether a flow, with all its names, might go to another address instead.

        For what a name resolves to: an answer that this refuses must not be dialled.
        """
        decision = self._judged(
            address.host, address.port, flow.host, True, flow.ech, flow.protocol is Protocol.TCP
        )
        return decision.outcome is Outcome.ALLOW

    def judge(
        self,
        address: str,
        port: int,
        *,
        host: str | None = None,
        names_known: bool = True,
        ech: bool = False,
        protocol: Protocol = Protocol.TLS,
    ) -> Decision:
        """Judge an address and port, with the name if it is known.

        Args:
            address: Canonical text of an IP address.
            port: 1 to 65535.
            host: The canonical name asked for; None if there is none.
            names_known: Whether `host`, `ech` and `protocol` are final; if not, they
                are ignored.
            ech: Whether the name may be a front for another.
            protocol: What the client speaks: only in TLS and HTTP it could have
                given a name.

        Raises:
            AddressError: `address` is none.
        """
        return self._judged(address, port, host, names_known, ech, protocol is Protocol.TCP)

    def _judge(
        self, address: str, port: int, host: str | None, names_known: bool, ech: bool, is_raw: bool
    ) -> Decision:
        packed = pack(address)
        deny, allow = self._deny, self._allow
        rule = deny.match_hidden_address(packed, port)
        if rule is not None:
            return Decision(Outcome.DENY, Reason.DENIED_BY_RULE, rule)
        name_matters = deny.names.covers(port)
        if name_matters and names_known and host is not None:
            rule = deny.names.match(host, port)
            if rule is not None:
                return Decision(Outcome.DENY, Reason.DENIED_BY_RULE, rule)
        undecided = name_matters and not names_known

        rule = allow.match_address(packed, port)
        is_public = self._is_public(packed)
        if rule is not None and rule.host is AddressClass.PUBLIC and not is_public:
            rule = allow.match_any(port)
        if rule is not None:
            return _NEED_NAME if undecided else Decision(Outcome.ALLOW, Reason.RULE, rule)

        if self.default is Default.ALLOW or (self.default is Default.PUBLIC and is_public):
            if not name_matters:
                return _ALLOW_DEFAULT
            if undecided:
                return _NEED_NAME
            hidden = self._hides_a_name(host, ech, is_raw)
            return _ALLOW_DEFAULT if hidden is None else _deny(hidden, address, port)
        return self._judge_name(packed, address, port, host, names_known, ech, is_public)

    def is_public(self, address: str) -> bool:
        """Whether an address is public, and not the host's own.

        Raises:
            AddressError: It is none.
        """
        return self._is_public(pack(address))

    def _is_public(self, packed: bytes) -> bool:
        if classify(packed) is not AddressClass.PUBLIC:
            return False
        own = self.own
        return not own or (packed not in own and not any(each in own for each in embedded(packed)))

    def _hides_a_name(self, host: str | None, ech: bool, is_raw: bool) -> Reason | None:
        """Say how a client that only a deny rule could stop evades it, if it does."""
        if ech and self._ech_denied:
            return Reason.ECH
        if host is None and self._name_needed and not is_raw:
            return Reason.NO_NAME
        return None

    def _judge_name(
        self,
        packed: bytes,
        address: str,
        port: int,
        host: str | None,
        names_known: bool,
        ech: bool,
        is_public: bool,
    ) -> Decision:
        """Judge what only an allow rule for names could allow."""
        if not self._allow.names.covers(port):
            reason = self._reason_of_default(packed, is_public)
            # A rule for the name would do only if it is one that may lead here.
            if host is None or not names_known or (ech and self._ech_denied):
                return _deny(reason, address, port)
            may_lead = self._may_lead(host, port, packed, is_public)
            return _deny(reason, host if may_lead else address, port)
        if not (is_public or self.private_names):
            return _deny(_reason_of_class(packed), address, port)
        if not names_known:
            return _NEED_NAME
        if host is None:
            if self._name_needed or not is_public:
                return _deny(Reason.NO_NAME, address, port)
            return _ALLOW_NAMELESS
        hidden = ech and self._ech_denied
        may_lead = self._may_lead(host, port, packed, is_public)
        rule = self._allow.names.match(host, port)
        if rule is None:
            hint = host if may_lead and not hidden else address
            return _deny(self._reason_of_default(packed, is_public), hint, port)
        if hidden:
            return _deny(Reason.ECH, address, port, rule)
        if not may_lead:
            return _deny(_reason_of_class(packed), address, port, rule)
        return Decision(Outcome.ALLOW, Reason.RULE, rule, by_name=True)

    def rule_to_pass_unread(self, address: str, port: int) -> str:
        """Write the allow rule by which an address is reached whatever its clients say.

        Returns:
            Its text; empty where none does, since a deny rule is for the address, or for
            names at that port.

        Raises:
            AddressError: `address` is none.
        """
        deny = self._deny
        if deny.match_hidden_address(pack(address), port) or deny.names.covers(port):
            return ""
        return _rule_text(address, port)

    def judge_name(
        self, host: str, port: int, *, ech: bool = False, through: Through = Through.ADDRESSES
    ) -> Decision:
        """Judge a name whose address is not known yet: before it is resolved.

        Args:
            host: The canonical name.
            port: 1 to 65535.
            ech: Whether the name may be a front for another.
            through: Where it counts that it could lead to.

        Returns:
            DENY if no address could make it allowed; ALLOW if every address would do;
            else NEED_MORE: resolve, then `judge` each address.
        """
        deny, allow = self._deny, self._allow
        rule = deny.match_any(port) or deny.names.match(host, port)
        if rule is not None:
            return Decision(Outcome.DENY, Reason.DENIED_BY_RULE, rule)
        hidden = ech and self._ech_denied
        every = allow.match_any(port)
        default_allows = not (hidden and deny.names.covers(port))
        if every is not None or (self.default is Default.ALLOW and default_allows):
            if deny.covers_some_address(port):
                return _need_address(every)
            if every is not None:
                return Decision(Outcome.ALLOW, Reason.RULE, every)
            return _ALLOW_DEFAULT
        rule = allow.names.match(host, port)
        named = None if hidden else rule
        by_default = self.default is not Default.DENY and default_allows
        if named is not None or by_default or self._may_lead_to_some(port, through):
            return _need_address(named)
        if hidden and (rule is not None or self.default is not Default.DENY):
            return Decision(Outcome.DENY, Reason.ECH, rule)
        return _deny(Reason.DEFAULT, host, port)

    def edges(self, host: str | None, address: str | None) -> set[int]:
        """Tell for which ports all answers of one kind are alike, without looking at every rule.

        Args:
            host: A canonical name; None for none.
            address: A canonical address: for `judge`; None for `judge_name`.

        Returns:
            The first ports of stretches in each of which the answer is the same, with
            others perhaps that are no ports; without the stretches of rules for addresses
            where none is given (`network_edges`).
        """
        allow, deny = self._allow, self._deny
        found = {1, *allow.any_edges, *deny.any_edges}
        if host is not None:
            found |= allow.names.edges(host) | deny.names.edges(host) | self._private.edges(host)
        if address is not None:
            packed = pack(address)
            found |= allow.edges(packed) | deny.edges(packed)
            if host is None and not self._name_needed:
                found.update(allow.names.gaps)
        return found

    def network_edges(self) -> list[int]:
        """Tell likewise where allow rules for networks and classes begin and end."""
        return self._allow.network_gaps

    def _may_lead_to_some(self, port: int, through: Through) -> bool:
        """Whether an allow rule for addresses, of those that count, has this port."""
        if through is Through.ADDRESSES:
            return self._allow.covers_some_address(port)
        return through is Through.NETWORKS and self._allow.covers_network(port)

    def _may_lead(self, host: str, port: int, packed: bytes, is_public: bool) -> bool:
        """Whether an allow rule for this name could lead to such an address."""
        if is_public:
            return True
        # Whoever has the name would have the machine's credentials.
        if classify(packed) in self.not_by_name:
            return False
        return self._private.match(host, port) is not None

    def _reason_of_default(self, packed: bytes, is_public: bool) -> Reason:
        """Why the default denies: because it always does, or because of the address."""
        if self.default is Default.DENY or is_public:
            return Reason.DEFAULT
        return _reason_of_class(packed)


def _reason_of_class(packed: bytes) -> Reason:
    metadata = classify(packed) is AddressClass.METADATA
    return Reason.METADATA if metadata else Reason.PRIVATE_ADDRESS


def _need_address(rule: Rule | None) -> Decision:
    """Ask for the address; with the rule that allows it if the address doesn't forbid it."""
    return Decision(Outcome.NEED_MORE, Reason.UNKNOWN_DESTINATION, rule, missing=Fact.ADDRESS)


def _deny(reason: Reason, host: str, port: int, rule: Rule | None = None) -> Decision:
    """Deny, and name the rule that would allow it."""
    return Decision(Outcome.DENY, reason, rule, hint=_rule_text(host, port))


def _rule_text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
