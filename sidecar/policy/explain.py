"""Which rules match, looking at each: for people who ask why, not for connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sidecar.addresses import pack
from sidecar.policy.index import RuleIndex
from sidecar.policy.rules import HostKind, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["matches_name", "matching"]


def matching(
    rules: Iterable[Rule], port: int, *, host: str | None, address: str | None, hidden: bool
) -> list[Rule]:
    """List the rules that match, in the order given.

    Args:
        rules: All of them.
        port: The port asked for.
        host: The canonical name, if there is one.
        address: The canonical address, if it is known.
        hidden: Whether rules match what is inside of an address, as deny rules do.
    """
    return [rule for rule in rules if _matches(rule, port, host, address, hidden)]


def matches_name(rule: Rule, host: str) -> bool:
    """Whether a rule for names has this name."""
    name = cast("str", rule.host)
    if rule.kind is not HostKind.BELOW and host == name:
        return True
    return rule.kind is not HostKind.NAME and host.endswith(f".{name}")


def _matches(rule: Rule, port: int, host: str | None, address: str | None, hidden: bool) -> bool:
    if rule.match(port) is None:
        return False
    if rule.kind is HostKind.ANY:
        return True
    if rule.is_for_names:
        return host is not None and matches_name(rule, host)
    if address is None:
        return False
    alone = RuleIndex((rule,))
    find = alone.match_hidden_address if hidden else alone.match_address
    return find(pack(address), port) is not None
