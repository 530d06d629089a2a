from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from askers import policy
from hypothesis import given
from hypothesis import strategies as st

from sidecar.flow import Protocol
from sidecar.policy import Outcome
from sidecar.policy.policy import Through
from sidecar.policy.reach import Reach

if TYPE_CHECKING:
    from collections.abc import Callable

PUBLIC, PRIVATE = "93.184.216.34", "10.0.0.1"


def _noting(call: Callable[..., Any], calls: list[object]) -> Callable[..., Any]:
    """The same, with a list of its calls."""

    def noted(*arguments: object, **more: object) -> object:
        calls.append((arguments, more))
        return call(*arguments, **more)

    return noted


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
            # Any name might lead there: but for one address not all names are opened.
            ("deny", ["10.0.0.1:5432"], [], False),
            ("deny", ["10.0.0.1/32", "[2001:db8::1]:443", "[2001:db8::1/128]"], [], False),
            ("deny", ["10.0.0.0/31:5432"], [], True),
            ("deny", ["10.0.0.0/8:5432"], ["a.example:1-5431,5433-65535"], True),
            ("deny", ["10.0.0.0/8:5432"], ["a.example:5432"], False),
            ("deny", ["private:5432"], [], True),
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

    @pytest.mark.parametrize(
        ("default", "allow", "expected"),
        [
            ("deny", ["10.0.0.0/8"], False),
            ("deny", ["public", "[2000::/3]"], False),
            ("deny", ["*:443"], True),
            ("deny", ["10.0.0.0/8", "a.example:443"], True),
            ("public", [], True),
            ("allow", [], True),
        ],
    )
    def test_leading_nowhere(self, default: str, allow: list[str], expected: bool) -> None:
        """What can't lead to an address needs more than a rule for addresses."""
        decision = Reach(policy(default, allow)).name("a.example", False)
        assert expected == (decision.outcome is not Outcome.DENY)

    def test_many_ports(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a name and an address, only what their own rules say of ports is looked at."""
        rules = [f"h{port}.example:{port}" for port in range(1, 9999, 2)]
        rules += [f"10.{port >> 8}.{port & 255}.1:{port}" for port in range(1, 9999, 2)]
        made = policy("deny", rules, rules[::3])
        judged: list[object] = []
        for name in ("judge_name", "judge"):
            monkeypatch.setattr(made, name, _noting(getattr(made, name), judged))
        reach = Reach(made)
        assert reach.name("h5.example").outcome is not Outcome.DENY
        assert reach.name("other.example").outcome is Outcome.DENY
        assert reach.address("10.0.7.1", None).outcome is Outcome.ALLOW
        assert reach.address("10.9.9.9", "other.example").outcome is Outcome.DENY
        assert len(judged) < 16

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

    @pytest.mark.parametrize(
        ("default", "allow", "address", "reason", "hint"),
        [
            ("deny", ["a.example:80,8080"], PRIVATE, "private_address", f"{PRIVATE}:80,8080"),
            (
                "deny",
                ["a.example:80", "a.example:22"],
                PRIVATE,
                "private_address",
                f"{PRIVATE}:22,80",
            ),
            ("deny", ["a.example:80", "*.example"], PRIVATE, "private_address", PRIVATE),
            ("deny", ["a.example"], PRIVATE, "private_address", PRIVATE),
            ("deny", ["*.example:80"], "fd00::1", "private_address", "[fd00::1]:80"),
            ("deny", [".example:443"], "169.254.169.254", "metadata", "169.254.169.254:443"),
            ("deny", ["b.example:80", "10.0.0.0/30:80"], "10.9.9.9", "default", "10.9.9.9"),
            ("public", [], PRIVATE, "private_address", PRIVATE),
            ("public", [], "fd00::1", "private_address", "fd00::1"),
        ],
    )
    def test_hint(
        self, default: str, allow: list[str], address: str, reason: str, hint: str
    ) -> None:
        """What would allow it, for the ports that the name has; the reason is that rule's."""
        decision = Reach(policy(default, allow)).address(address, "a.example")
        assert (reason, hint) == (decision.reason, decision.hint)
        assert (
            Reach(policy(default, [*allow, decision.hint])).address(address, "a.example").outcome
            is Outcome.ALLOW
        )

    def test_denied_by_rule(self) -> None:
        """Where a rule denies, nothing would; unless it does so on one port alone."""
        decision = Reach(policy("public", [], ["private"])).address(PRIVATE, "a.example")
        assert ("denied_by_rule", "") == (decision.reason, decision.hint)
        decision = Reach(policy("public", [], ["private:443"])).address(PRIVATE, "a.example")
        assert ("private_address", PRIVATE) == (decision.reason, decision.hint)


_PORTS = st.builds(
    lambda pair: f"{min(pair)}-{max(pair)}", st.tuples(st.integers(1, 65535), st.integers(1, 65535))
)
_HOSTS = st.sampled_from(
    ["a.example", "*.example", "b.example", "*", PUBLIC, PRIVATE, "10.0.0.0/8", "public"]
)
_RULES = st.lists(st.builds("{}:{}".format, _HOSTS, _PORTS), max_size=4)


@given(st.sampled_from(["allow", "deny", "public"]), _RULES, _RULES, st.integers(1, 65535))
def test_nothing_missed(default: str, allow: list[str], deny: list[str], port: int) -> None:
    """What some port allows is in reach, whichever port it is."""
    rules = policy(default, allow, deny)
    reach = Reach(rules)
    for leads, through in ((True, Through.NETWORKS), (False, Through.NOTHING)):
        judged = rules.judge_name("a.example", port, through=through)
        if judged.outcome is not Outcome.DENY:
            assert reach.name("a.example", leads).outcome is not Outcome.DENY
    for address in (PUBLIC, PRIVATE):
        judged = rules.judge(address, port, host="a.example", protocol=Protocol.TCP)
        if judged.outcome is Outcome.ALLOW:
            assert reach.address(address, "a.example").outcome is Outcome.ALLOW
