"""Whether a connection may be made: rule text, address classes, decide().

    ranges      which class an address is of (public, private, metadata, …)
    rules       rule text: HOST[:PORTS]
    index       which of many rules matches, at the same cost however many there are
    decisions   what decide() answers
    policy      decide() itself
    review      rules that are probably not what was meant
    explain     all rules that match, one by one
    gathering   what a run did
    learning    which rules would have allowed it

docs/reference/policy.md is the description for users.
"""

from sidecar.policy.decisions import Decision, Fact, Outcome, Reason
from sidecar.policy.policy import NOT_BY_NAME, Choice, Default, Policy
from sidecar.policy.ranges import AddressClass
from sidecar.policy.rules import NameRule, Rule, parse_name_rule, parse_rule

__all__ = [
    "NOT_BY_NAME",
    "AddressClass",
    "Choice",
    "Decision",
    "Default",
    "Fact",
    "NameRule",
    "Outcome",
    "Policy",
    "Reason",
    "Rule",
    "parse_name_rule",
    "parse_rule",
]
