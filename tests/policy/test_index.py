from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy.naive import ADDRESSES, HOSTS, PORTS, RULES, matching

from sidecar.addresses import pack
from sidecar.policy import Rule, parse_rule
from sidecar.policy.explain import matching as explained
from sidecar.policy.index import NameIndex, NetworkIndex, PortIndex, RuleIndex, _Node


def rules(*texts: str) -> list[Rule]:
    return [parse_rule(text, str(number)) for number, text in enumerate(texts)]


@settings(max_examples=200)
@given(
    given_rules=RULES,
    host=st.sampled_from([None, *HOSTS]),
    address=st.sampled_from(ADDRESSES),
    port=st.sampled_from(PORTS),
)
def test_as_one_by_one(given_rules: list[Rule], host: str | None, address: str, port: int) -> None:
    """What is found is one of those that match when each is asked, if any does."""
    index = RuleIndex(given_rules)
    packed = pack(address)
    for deny, find in ((False, index.match_address), (True, index.match_hidden_address)):
        expected = matching(given_rules, port, None, address, deny=deny)
        found = find(packed, port)
        assert bool(expected) == (found is not None)
        assert found is None or found in expected
        listed = explained(given_rules, port, host=host, address=address, hidden=deny)
        assert matching(given_rules, port, host, address, deny=deny) == listed
    if host is not None:
        names = [rule for rule in given_rules if rule.is_for_names]
        expected = matching(names, port, host, None, deny=False)
        found = index.names.match(host, port)
        assert bool(expected) == (found is not None)
        assert found is None or found in expected
        assert found is None or index.names.covers(port)
    assert index.names.covers(port) == any(
        rule.match(port) for rule in given_rules if rule.is_for_names
    )


@pytest.mark.parametrize(
    ("expected", "host"),
    [
        ("a.example", "a.example"),
        ("*.a.example", "x.a.example"),
        ("*.a.example", "y.x.a.example"),
        ("*.example", "b.example"),
        (".other", "other"),
        (".other", "x.other"),
        # H8
        (None, "example"),
        (None, "notother"),
        (None, "other.evil"),
        (None, "othe"),
        (None, "xother"),
    ],
)
def test_most_specific_name(expected: str | None, host: str) -> None:
    """Labels match whole, the longest suffix first, the apex as the rule says."""
    index = NameIndex(rules("*.example", "*.a.example", "a.example", ".other"))
    found = index.match(host, 443)
    assert expected == (found and found.text)


def test_most_specific_network() -> None:
    """The narrowest network that has the port is found, else a wider one."""
    index = NetworkIndex(rules("10.0.0.0/8", "10.1.0.0/16:80", "10.1.1.0/24:443", "[::/0]:1"), 4)
    found = [index.match(pack("10.1.1.1"), port) for port in (443, 80, 22)]
    assert ["10.1.1.0/24:443", "10.1.0.0/16:80", "10.0.0.0/8"] == [str(rule) for rule in found]
    assert index.match(pack("11.0.0.0"), 80) is None
    assert index.match(pack("9.255.255.255"), 80) is None


def test_first_given_of_equals() -> None:
    """Of rules for one host and port, the first counts."""
    index = PortIndex(rules("x:80-90", "x:85", "x", "x:1-100"))
    assert ["0", "0", "2", "2"] == [
        rule.place for port in (80, 85, 91, 1) if (rule := index.match(port))
    ]


def test_thousands_of_ports_of_one_host() -> None:
    """Each of many rules for one host is found."""
    index = NameIndex(rules(*(f"x:{port}" for port in range(1, 5000, 2))))
    assert "x:3333" == str(index.match("x", 3333))
    assert index.match("x", 3334) is None


class _Counted(dict[str, object]):
    """Counts what is asked of it."""

    asked = 0

    def get(self, key: str, default: object = None) -> object:
        self.asked += 1
        return super().get(key, default)


@pytest.mark.parametrize("size", [10, 20_000])
def test_as_many_steps_for_few_as_for_many(size: int) -> None:
    """A name costs one look-up and one more per dot, however many rules there are."""
    index = NameIndex(rules(*(f"*.n{number}.example" for number in range(size))))
    index._exact = exact = _Counted(index._exact)  # type: ignore[assignment]
    index._below = below = _Counted(index._below)  # type: ignore[assignment]
    index.match("www.other.example", 443)
    assert (1, 2) == (exact.asked, below.asked)


def _depth(node: _Node | None) -> int:
    return 0 if node is None else 1 + _depth(node.parent)


def test_nested_networks_are_reached_by_their_parents() -> None:
    """However many networks, no more are asked for a port than prefix lengths there are."""
    nested = [f"10.0.0.0/{length}:{length}" for length in range(8, 33)]
    others = [f"11.{a}.{b}.0/24" for a in range(40) for b in range(40)]
    index = NetworkIndex(rules(*nested, *others), 4)
    assert "10.0.0.0/8:8" == str(index.match(pack("10.0.0.0"), 8))
    assert 25 == max(map(_depth, index._nodes))
    assert len(index._starts) <= 2 * (len(nested) + len(others)) + 1
