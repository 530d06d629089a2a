from __future__ import annotations

import pytest
from askers import policy
from hypothesis import given
from hypothesis import strategies as st

from sidecar.flow import Protocol
from sidecar.policy import Outcome
from sidecar.policy.reach import Reach

PUBLIC, PRIVATE = "93.184.216.34", "10.0.0.1"


class TestName:
    @pytest.mark.parametrize(
        ("default", "allow", "deny", "expected"),
        [
            ("deny", [], [], False),
            ("deny", ["a.example:443"], [], True),
            ("deny", ["a.example:8443"], [], True),
            ("deny", ["*.example:22"], [], True),
            ("deny", ["b.example:443"], [], False),
            ("deny", ["a.example:443"], ["*:443"], False),
            ("deny", ["a.example:443"], ["a.example:25"], True),
            ("deny", ["a.example:80,443"], [".example:443"], True),
            ("deny", ["10.0.0.1:5432"], [], True),
            ("deny", ["*:22"], [], True),
            ("public", [], [], True),
            ("public", [], ["a.example"], False),
            ("public", [], ["a.example:1-65534"], True),
            ("public", [], ["a.example:1-65535"], False),
            ("allow", [], ["*"], False),
            ("allow", [], [], True),
        ],
    )
    def test_some_port(
        self, default: str, allow: list[str], deny: list[str], expected: bool
    ) -> None:
        """A name is in reach if some port could be allowed for it."""
        decision = Reach(policy(default, allow, deny)).name("a.example")
        assert expected == (decision.outcome is not Outcome.DENY)

    def test_rule(self) -> None:
        """A rule for the name is told even if the default would do."""
        decision = Reach(policy("public", ["a.example:8443"])).name("a.example")
        assert decision.rule is not None


class TestAddress:
    @pytest.mark.parametrize(
        ("rules", "address", "host", "expected"),
        [
            ({}, PUBLIC, "a.example", True),
            ({}, PRIVATE, "a.example", False),
            ({"allow": ["10.0.0.0/8:5432"]}, PRIVATE, None, True),
            ({"allow": ["a.example:443"]}, PRIVATE, "a.example", False),
            (
                {"allow": ["a.example:443"], "private_names": ["a.example"]},
                PRIVATE,
                "a.example",
                True,
            ),
            (
                {"allow": ["a.example:443"], "private_names": ["a.example"]},
                PRIVATE,
                "b.example",
                False,
            ),
            ({"deny": [f"{PUBLIC}:25"]}, PUBLIC, None, True),
            ({"deny": [PUBLIC]}, PUBLIC, None, False),
        ],
    )
    def test_some_port(
        self, rules: dict[str, list[str]], address: str, host: str | None, expected: bool
    ) -> None:
        """An address is in reach of a name if some port is allowed there."""
        decision = Reach(policy("public", **rules)).address(address, host)  # type: ignore[arg-type]
        assert expected == (decision.outcome is Outcome.ALLOW)


_PORTS = st.builds(
    lambda pair: f"{min(pair)}-{max(pair)}", st.tuples(st.integers(1, 65535), st.integers(1, 65535))
)
_HOSTS = st.sampled_from(
    ["a.example", "*.example", "b.example", "*", PUBLIC, "10.0.0.0/8", "public"]
)
_RULES = st.lists(st.builds("{}:{}".format, _HOSTS, _PORTS), max_size=4)


@given(st.sampled_from(["allow", "deny", "public"]), _RULES, _RULES, st.integers(1, 65535))
def test_nothing_missed(default: str, allow: list[str], deny: list[str], port: int) -> None:
    """What some port allows is in reach, whichever port it is."""
    rules = policy(default, allow, deny)
    reach = Reach(rules)
    if rules.judge_name("a.example", port).outcome is not Outcome.DENY:
        assert reach.name("a.example").outcome is not Outcome.DENY
    for address in (PUBLIC, PRIVATE):
        judged = rules.judge(address, port, host="a.example", protocol=Protocol.TCP)
        if judged.outcome is Outcome.ALLOW:
            assert reach.address(address, "a.example").outcome is Outcome.ALLOW
