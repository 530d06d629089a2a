from __future__ import annotations

import socket
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from policy.naive import ADDRESSES, HOSTS, PORTS, RULES, matching

from sidecar.addresses import SocketAddress, pack
from sidecar.flow import Flow, ListenerKind, Protocol, Verdict
from sidecar.policy import (
    NOT_BY_NAME,
    AddressClass,
    Choice,
    Decision,
    Default,
    Fact,
    Outcome,
    Policy,
    Reason,
    Rule,
    parse_name_rule,
    parse_rule,
)
from sidecar.policy.ranges import classify

ALLOW, DENY, NEED_MORE = Outcome.ALLOW, Outcome.DENY, Outcome.NEED_MORE
PUBLIC, PRIVATE, METADATA = "8.8.8.8", "10.0.0.1", "169.254.169.254"


def make(
    default: str = "deny",
    allow: tuple[str, ...] = (),
    deny: tuple[str, ...] = (),
    private_names: tuple[str, ...] = (),
    own: frozenset[bytes] = frozenset(),
    **keys: Any,
) -> Policy:
    return Policy(
        default=Default(default),
        allow=[parse_rule(text, "--allow") for text in allow],
        deny=[parse_rule(text, "--deny") for text in deny],
        private_names=[parse_name_rule(text) for text in private_names],
        own=own,
        **keys,
    )


@dataclass
class Case:
    """A policy, a connection, and the answers without and with its name."""

    policy: Policy
    early: tuple[Outcome, Reason]
    late: tuple[Outcome, Reason]
    address: str = PUBLIC
    port: int = 443
    host: str | None = "a.example"
    facts: dict[str, Any] = field(default_factory=dict)


NEED = (NEED_MORE, Reason.NO_NAME)
BY_RULE = (ALLOW, Reason.RULE)
BY_DEFAULT = (ALLOW, Reason.DEFAULT)
DENIED = (DENY, Reason.DENIED_BY_RULE)
NOT_ALLOWED = (DENY, Reason.DEFAULT)
NAMED = ("a.example",)
SECRETIVE = {"ech": True}
RAW = {"protocol": Protocol.TCP}

# The truth table of docs/reference/policy.md.
TABLE = {
    "no rules, allow": Case(make("allow"), BY_DEFAULT, BY_DEFAULT),
    "no rules, allow, metadata": Case(make("allow"), BY_DEFAULT, BY_DEFAULT, METADATA),
    "no rules, deny": Case(make(), NOT_ALLOWED, NOT_ALLOWED),
    "no rules, public": Case(make("public"), BY_DEFAULT, BY_DEFAULT),
    "private isn't public": Case(
        make("public"),
        (DENY, Reason.PRIVATE_ADDRESS),
        (DENY, Reason.PRIVATE_ADDRESS),
        PRIVATE,
    ),
    "metadata isn't public": Case(
        make("public"), (DENY, Reason.METADATA), (DENY, Reason.METADATA), METADATA
    ),
    "address denied": Case(make("allow", NAMED, ("8.0.0.0/8",)), DENIED, DENIED),
    "denied, else allowed": Case(make("allow", ("8.8.8.8",), ("8.0.0.0/8",)), DENIED, DENIED),
    "everything denied": Case(make("allow", NAMED, ("*:443",)), DENIED, DENIED),
    "embedded address denied": Case(
        make("allow", (), ("10.0.0.0/8",)), DENIED, DENIED, "64:ff9b::10.0.0.1"
    ),
    "embedded address is not allowed": Case(
        make("deny", ("10.0.0.0/8",)), NOT_ALLOWED, NOT_ALLOWED, "64:ff9b::a00:1"
    ),
    "link-local metadata denied": Case(
        make("allow", (), ("link-local",)), DENIED, DENIED, METADATA
    ),
    "link-local metadata is not allowed": Case(
        make("deny", ("link-local",)), NOT_ALLOWED, NOT_ALLOWED, METADATA
    ),
    "address allowed": Case(make("deny", ("8.0.0.0/8",)), BY_RULE, BY_RULE),
    "address allowed, name too": Case(make("deny", (*NAMED, "8.8.8.8")), BY_RULE, BY_RULE),
    "address allowed, name denied": Case(make("deny", ("8.8.8.8",), NAMED), NEED, DENIED),
    "address allowed, other name denied": Case(
        make("deny", ("8.8.8.8",), ("b.example",)), NEED, BY_RULE
    ),
    "address allowed, names denied elsewhere": Case(
        make("deny", ("8.8.8.8",), ("a.example:80",)), BY_RULE, BY_RULE
    ),
    "address allowed, no name": Case(
        make("deny", ("8.8.8.8",), ("b.example",)), NEED, BY_RULE, host=None
    ),
    "address allowed, name hidden": Case(
        make("deny", ("8.8.8.8",), ("b.example",), ech=Choice.DENY), NEED, BY_RULE, facts=SECRETIVE
    ),
    "default, name denied": Case(make("allow", (), NAMED), NEED, DENIED),
    "default, other name denied": Case(make("allow", (), ("b.example",)), NEED, BY_DEFAULT),
    "default, no name": Case(
        make("allow", (), ("b.example",)), NEED, (DENY, Reason.NO_NAME), host=None
    ),
    "default, no name, no_name=allow": Case(
        make("allow", (), ("b.example",), no_name=Choice.ALLOW), NEED, BY_DEFAULT, host=None
    ),
    "default, no name possible": Case(
        make("allow", (), ("b.example",)), NEED, BY_DEFAULT, host=None, facts=RAW
    ),
    "default, name hidden": Case(
        make("allow", (), ("b.example",)), NEED, BY_DEFAULT, facts=SECRETIVE
    ),
    "default, name hidden, ech=deny": Case(
        make("allow", (), ("b.example",), ech=Choice.DENY),
        NEED,
        (DENY, Reason.ECH),
        facts=SECRETIVE,
    ),
    "no name matters, ech=deny": Case(
        make("allow", ech=Choice.DENY), BY_DEFAULT, BY_DEFAULT, facts=SECRETIVE
    ),
    "name allowed": Case(make("deny", NAMED), NEED, BY_RULE),
    "name allowed and denied": Case(make("deny", NAMED, NAMED), NEED, DENIED),
    "other name allowed": Case(make("deny", ("b.example",)), NEED, NOT_ALLOWED),
    "name allowed elsewhere": Case(make("deny", ("a.example:80",)), NOT_ALLOWED, NOT_ALLOWED),
    "name allowed, none given": Case(
        make("deny", NAMED), NEED, (DENY, Reason.NO_NAME), host=None, facts=RAW
    ),
    "name allowed, none given, no_name=allow": Case(
        make("deny", NAMED, no_name=Choice.ALLOW), NEED, (ALLOW, Reason.NO_NAME), host=None
    ),
    "name allowed, hidden": Case(make("deny", NAMED), NEED, BY_RULE, facts=SECRETIVE),
    "name allowed, hidden, ech=deny": Case(
        make("deny", NAMED, ech=Choice.DENY), NEED, (DENY, Reason.ECH), facts=SECRETIVE
    ),
    # H11, H12
    "name allowed, private": Case(
        make("deny", NAMED),
        (DENY, Reason.PRIVATE_ADDRESS),
        (DENY, Reason.PRIVATE_ADDRESS),
        PRIVATE,
    ),
    "name allowed, metadata": Case(
        make("public", NAMED), (DENY, Reason.METADATA), (DENY, Reason.METADATA), METADATA
    ),
    "private name": Case(make("deny", NAMED, (), ("*.example",)), NEED, BY_RULE, PRIVATE),
    "other private name": Case(
        make("deny", NAMED, (), ("b.example",)), NEED, (DENY, Reason.PRIVATE_ADDRESS), PRIVATE
    ),
    "private name, none given": Case(
        make("deny", NAMED, (), NAMED, no_name=Choice.ALLOW),
        NEED,
        (DENY, Reason.NO_NAME),
        PRIVATE,
        host=None,
    ),
    "private name that no rule allows": Case(
        make("public", (), (), NAMED),
        (DENY, Reason.PRIVATE_ADDRESS),
        (DENY, Reason.PRIVATE_ADDRESS),
        PRIVATE,
    ),
    "name and private address allowed": Case(
        make("deny", (*NAMED, "private")), BY_RULE, BY_RULE, PRIVATE
    ),
}


def flow(case: Case, names_known: bool) -> Flow:
    return Flow(
        listener=ListenerKind.OUTBOUND,
        source=None,
        destination=SocketAddress(case.address, case.port),
        destination_from=None,
        host=case.host if names_known else None,
        names_known=names_known,
        **{"protocol": Protocol.TLS, **case.facts},
    )


@pytest.mark.parametrize("name", TABLE)
def test_truth_table(name: str) -> None:
    """The answer before and after the name is known, each with its reason."""
    case = TABLE[name]
    early = case.policy.decide(flow(case, names_known=False))
    late = case.policy.decide(flow(case, names_known=True))
    assert case.early == (early.outcome, early.reason)
    assert case.late == (late.outcome, late.reason)


class TestDecision:
    def test_names_the_rule_and_its_place(self) -> None:
        """A decision by a rule has the rule's text and place."""
        policy = make("deny", ("*.example:443",), ("b.example",))
        for host, text in (("a.example", "*.example:443 (--allow)"), ("b.example", None)):
            decision = policy.judge(PUBLIC, 443, host=host)
            assert (text or "b.example (--deny)") == decision.rule_with_place
        assert make().judge(PUBLIC, 443).rule_with_place is None

    def test_by_name(self) -> None:
        """An allow says whether it rests on the name alone."""
        assert make("deny", NAMED).judge(PUBLIC, 443, host="a.example").by_name
        for policy in (make("public", NAMED), make("deny", (*NAMED, "public"))):
            assert not policy.judge(PUBLIC, 443, host="a.example").by_name

    @pytest.mark.parametrize(
        ("expected", "policy", "address", "host"),
        [
            ("a.example:443", make(), PUBLIC, "a.example"),
            ("8.8.8.8:443", make(), PUBLIC, None),
            ("[2606::1]:443", make(), "2606::1", None),
            ("10.0.0.1:443", make("public"), PRIVATE, "a.example"),
            ("a.example:443", make("public", (), (), NAMED), PRIVATE, "a.example"),
            ("", make("allow", (), ("*",)), PUBLIC, "a.example"),
        ],
    )
    def test_hint(self, expected: str, policy: Policy, address: str, host: str | None) -> None:
        """A denial says which rule would allow, unless none would."""
        assert expected == policy.judge(address, 443, host=host).hint

    @pytest.mark.parametrize(
        ("expected", "policy", "address"),
        [
            ("8.8.8.8:443", make("deny", NAMED), PUBLIC),
            ("[2606::1]:443", make("deny", NAMED), "2606::1"),
            ("10.0.0.1:443", make("public", (), ("bad.example:80",)), PRIVATE),
            ("", make("deny", (), NAMED), PUBLIC),
            ("", make("deny", NAMED, ("8.0.0.0/8",)), PUBLIC),
        ],
    )
    def test_rule_to_pass_unread(self, expected: str, policy: Policy, address: str) -> None:
        """The rule for an address lets it go whatever its clients say, or there is none."""
        assert expected == policy.rule_to_pass_unread(address, 443)
        if expected:
            allowed = Policy(
                default=policy.default,
                allow=[*policy.allow, parse_rule(expected)],
                deny=policy.deny,
            )
            decision = allowed.judge(address, 443, host="a.b.c", names_known=False)
            assert ALLOW is decision.outcome

    def test_verdict(self) -> None:
        """An outcome that is final is a verdict; another is none."""
        assert Verdict.ALLOW is Decision(ALLOW, Reason.DEFAULT).verdict
        assert Verdict.DENY is Decision(DENY, Reason.DEFAULT).verdict
        with pytest.raises(ValueError, match="not decided"):
            _ = Decision(NEED_MORE, Reason.NO_NAME).verdict

    def test_unknown_destination(self) -> None:
        """A flow that goes nowhere is denied, whatever the rules."""
        lost = Flow(ListenerKind.OUTBOUND, None, None, None)
        decision = make("allow", ("*",)).decide(lost)
        assert (DENY, Reason.UNKNOWN_DESTINATION) == (decision.outcome, decision.reason)

    def test_other_addresses(self) -> None:
        """Another address for a flow is acceptable if the flow might have gone there."""
        policy = make("deny", NAMED, ("9.9.9.9",))
        case = Case(policy, NEED, BY_RULE)
        accepted = [
            policy.accepts_address(flow(case, names_known=True), SocketAddress(each, 443))
            for each in ("8.8.4.4", "9.9.9.9", PRIVATE)
        ]
        assert [True, False, False] == accepted


policies = st.builds(
    lambda default, allow, deny, private, ech, no_name: Policy(
        default=default,
        allow=allow,
        deny=deny,
        private_names=[parse_name_rule(text) for text in private],
        ech=ech,
        no_name=no_name,
    ),
    st.sampled_from(Default),
    RULES,
    RULES.map(lambda rules: rules[:3]),
    st.lists(st.sampled_from([*HOSTS, "*.a", ".b"]), max_size=2),
    st.sampled_from(Choice),
    st.sampled_from(Choice),
)
addresses = st.sampled_from(ADDRESSES)
ports = st.sampled_from(PORTS)


def names() -> list[dict[str, Any]]:
    """Everything that may become known of a name."""
    return [
        {"host": host, "ech": ech, "protocol": protocol}
        for host, ech, protocol in product([None, *HOSTS], [False, True], Protocol)
    ]


@settings(max_examples=300)
@given(policy=policies, address=addresses, port=ports)
@example(policy=make("allow", (), ("*.a:80",)), address="8.8.8.8", port=443)
def test_an_early_answer_is_final(policy: Policy, address: str, port: int) -> None:
    """What is decided without the name is decided so with any; with it, all is decided."""
    early = policy.judge(address, port, names_known=False)
    assert (early.outcome is NEED_MORE) == (early.missing is Fact.NAME)
    late = [policy.judge(address, port, **facts) for facts in names()]
    assert all(each.outcome is not NEED_MORE for each in late)
    if early.outcome is not NEED_MORE:
        assert {early.outcome} == {each.outcome for each in late}
        assert not early.by_name


@settings(max_examples=300)
@given(policy=policies, host=st.sampled_from(HOSTS), port=ports, ech=st.booleans())
@example(policy=make("deny", ("a",)), host="a", port=443, ech=False)
def test_an_answer_without_the_address_is_final(
    policy: Policy, host: str, port: int, ech: bool
) -> None:
    """What is decided before a name is resolved is decided so at every address."""
    decision = policy.judge_name(host, port, ech=ech)
    assert (decision.outcome is NEED_MORE) == (decision.missing is Fact.ADDRESS)
    if decision.outcome is not NEED_MORE:
        found = [policy.judge(each, port, host=host, ech=ech).outcome for each in ADDRESSES]
        assert {decision.outcome} == set(found)


@settings(max_examples=300)
@given(policy=policies, address=addresses, port=ports, facts=st.sampled_from(names()))
def test_as_by_the_book(policy: Policy, address: str, port: int, facts: dict[str, Any]) -> None:
    """Deny beats allow beats default; the hint, given as a rule, allows."""
    decision = policy.judge(address, port, **facts)
    denied = matching(policy.deny, port, facts["host"], address, deny=True)
    allowed = matching(policy.allow, port, facts["host"], address, deny=False)
    if denied:
        assert (DENY, Reason.DENIED_BY_RULE) == (decision.outcome, decision.reason)
        assert decision.rule in denied
        return
    by_address = [rule for rule in allowed if not rule.is_for_names]
    if by_address:
        assert (ALLOW, Reason.RULE, False) == (decision.outcome, decision.reason, decision.by_name)
        assert decision.rule in by_address
    elif not allowed and decision.outcome is ALLOW:
        assert policy.default is not Default.DENY or decision.reason is Reason.NO_NAME
    if decision.by_name:
        assert decision.rule in allowed
    if decision.outcome is DENY:
        assert ALLOW is hinted(policy, decision.hint).judge(address, port, **facts).outcome


def hinted(policy: Policy, hint: str) -> Policy:
    """The policy with one more rule."""
    rule: Rule = parse_rule(hint)
    return Policy(
        default=policy.default,
        allow=(*policy.allow, rule),
        deny=policy.deny,
        private_names=policy.private_names,
        ech=policy.ech,
        no_name=policy.no_name,
    )


OWN = frozenset({socket.inet_aton("8.8.8.8"), socket.inet_pton(socket.AF_INET6, "2a00::1")})
# As they are, translated, tunnelled.
OWN_ADDRESSES = ("8.8.8.8", "2a00::1", "64:ff9b::808:808", "2002:808:808::1")


class TestOwnAddresses:
    @pytest.mark.parametrize("address", OWN_ADDRESSES)
    @pytest.mark.parametrize(
        "policy",
        [
            make("public", own=OWN),
            make("deny", ("public",), own=OWN),
            make("deny", ("*.example",), own=OWN),
        ],
        ids=["default", "class", "name"],
    )
    def test_not_public(self, policy: Policy, address: str) -> None:
        """What would allow a public address doesn't allow the host's own."""
        decision = policy.judge(address, 443, host="a.example")
        assert DENY is decision.outcome
        assert Reason.PRIVATE_ADDRESS is decision.reason or policy.default is Default.DENY
        other = policy.with_own(frozenset())
        assert ALLOW is other.judge(address, 443, host="a.example").outcome
        assert DENY is other.with_own(OWN).judge(address, 443, host="a.example").outcome

    @pytest.mark.parametrize("address", OWN_ADDRESSES)
    @pytest.mark.parametrize("default", ["public", "deny"])
    def test_rule(self, address: str, default: str) -> None:
        """A rule for the address allows it, and so do "*" and a name that may be private."""
        rule = f"[{address}]:443" if ":" in address else f"{address}:443"
        for policy in (
            make(default, (rule,), own=OWN),
            make(default, ("public", "*"), own=OWN),
            make(default, ("*.example",), private_names=("*.example",), own=OWN),
            make("allow", own=OWN),
        ):
            assert ALLOW is policy.judge(address, 443, host="a.example").outcome

    def test_others(self) -> None:
        """Other addresses are what they were."""
        for address in ("8.8.4.4", "2a00::2", "64:ff9b::808:404"):
            assert ALLOW is make("public", own=OWN).judge(address, 443).outcome


@pytest.mark.parametrize("address", ["169.254.169.254", "fd00:ec2::254", "127.0.0.1", "::1"])
@pytest.mark.parametrize("closed", [NOT_BY_NAME, NOT_BY_NAME | {AddressClass.LOOPBACK}])
def test_where_no_name_leads(address: str, closed: frozenset[AddressClass]) -> None:
    """To the machine's credentials, and what else is closed, a rule for the address does."""
    private = [parse_name_rule("a.example")]
    allow = [parse_rule("a.example")]
    policy = Policy(default=Default.DENY, allow=allow, private_names=private, not_by_name=closed)
    assert ALLOW is policy.judge("10.0.0.1", 443, host="a.example").outcome
    decision = policy.judge(address, 443, host="a.example")
    is_closed = classify(pack(address)) in closed
    assert (DENY if is_closed else ALLOW) is decision.outcome
    if is_closed:
        allowed = hinted(policy, decision.hint).judge(address, 443, host="a.example")
        assert ALLOW is allowed.outcome
