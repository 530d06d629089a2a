from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy.naive import ADDRESSES, HOSTS, PORTS, RULES

from sidecar.flow import Protocol
from sidecar.policy import Default, Outcome, Policy, Reason, parse_name_rule, parse_rule
from sidecar.policy.gathering import Seen
from sidecar.policy.learning import Lesson, learn
from sidecar.policy.reach import Reach

NOTHING = Policy(default=Default.DENY)
PUBLIC, PRIVATE, METADATA = "9.9.9.1", "10.1.2.3", "169.254.169.254"
# 2026-10-01 14:03 UTC
THEN = 1_790_863_380.0


def seen(host: str | None, port: int | None, *addresses: str, **facts: Any) -> Seen:
    """What a run did; a name's own addresses, unless it says otherwise."""
    return Seen(
        **{
            "host": host,
            "owned": host is not None,
            "port": port,
            "addresses": dict.fromkeys(addresses),
            "raw": False,
            "found": port is None,
            "times": 1,
            "first": THEN,
            **facts,
        }
    )


def policy(allow: str = "", deny: str = "", private: str = "", **keys: Any) -> Policy:
    """A policy with rules in words."""
    return Policy(
        allow=[parse_rule(text, "p.toml:1") for text in allow.split()],
        deny=[parse_rule(text, "p.toml:2") for text in deny.split()],
        private_names=[parse_name_rule(text) for text in private.split()],
        **{"default": Default.DENY, **keys},
    )


def taught(before: Policy, lesson: Lesson) -> Policy:
    """A policy with what was missing."""
    return Policy(
        default=before.default,
        allow=[*before.allow, *(parse_rule(each.text) for each in lesson.allow)],
        deny=before.deny,
        private_names=[
            *before.private_names,
            *(parse_name_rule(each.text) for each in lesson.private_names),
        ],
        ech=before.ech,
        no_name=before.no_name,
    )


def texts(lesson: Lesson) -> tuple[list[str], list[str]]:
    return [each.text for each in lesson.allow], [each.text for each in lesson.private_names]


class TestRules:
    @pytest.mark.parametrize(
        ("facts", "allow", "private"),
        [
            ([seen("a.org", 443, PUBLIC)], ["a.org:443"], []),
            # Ports by name, ascending.
            ([seen("a.org", 443, PUBLIC), seen("a.org", 22, PUBLIC)], ["a.org:22,443"], []),
            ([seen(None, 443, PUBLIC)], ["9.9.9.1:443"], []),
            ([seen(None, 443, "2606::1")], ["[2606::1]:443"], []),
            # A name that isn't known to be the address's.
            ([seen("a.org", 443, PUBLIC, owned=False)], ["9.9.9.1:443"], []),
            ([seen("a.org", 443, PUBLIC, owned=False, muddled=True)], ["9.9.9.1:443"], []),
            ([seen("db.corp", 5432, PRIVATE)], ["db.corp:5432"], ["db.corp"]),
            ([seen("both.corp", 443, PUBLIC, PRIVATE)], ["both.corp:443"], ["both.corp"]),
            ([seen(None, 5432, PRIVATE)], ["10.1.2.3:5432"], []),
            # Who gives out what a machine may do is named by its address.
            ([seen("metadata", 80, METADATA)], ["169.254.169.254:80"], []),
            # Lookups.
            ([seen("a.org", None, PUBLIC)], ["a.org:53"], []),
            ([seen("db.corp", None, PRIVATE)], ["db.corp:53"], ["db.corp"]),
            ([seen("a.org", None)], ["a.org:53"], []),
            ([seen("metadata", None, METADATA)], ["metadata:53", "169.254.169.254:53"], []),
            ([seen("a.org", 443, PUBLIC), seen("a.org", None, PUBLIC)], ["a.org:443"], []),
            # The other family is private.
            (
                [seen("a.org", 443, PUBLIC), seen("a.org", None, PUBLIC, "fd00::1")],
                ["a.org:443"],
                ["a.org"],
            ),
            ([seen("3.2.1.10.in-addr.arpa", None)], ["3.2.1.10.in-addr.arpa:53"], []),
            (
                [seen(None, 22, PRIVATE), seen("3.2.1.10.in-addr.arpa", None)],
                ["3.2.1.10.in-addr.arpa:53", "10.1.2.3:22"],
                [],
            ),
        ],
    )
    def test_each(self, facts: list[Seen], allow: list[str], private: list[str]) -> None:
        """Everything gets the narrowest rule that does."""
        assert (allow, private) == texts(learn(facts, NOTHING))

    def test_order(self) -> None:
        """Names by their domains, then addresses by number; however it happened."""
        facts = [
            seen(None, 1, "2606::1"),
            seen(None, 1, "9.9.9.10"),
            seen(None, 1, "9.9.9.9"),
            seen("b.org", 1, PUBLIC),
            seen("a.b.org", 1, PUBLIC),
            seen("z.com", 1, PUBLIC),
        ]
        expected = ["z.com:1", "b.org:1", "a.b.org:1", "9.9.9.9:1", "9.9.9.10:1", "[2606::1]:1"]
        assert (expected, []) == texts(learn(facts, NOTHING))
        assert learn(facts, NOTHING) == learn(facts[::-1], NOTHING)

    def test_nothing(self) -> None:
        """Who did nothing needs nothing."""
        assert not learn([], NOTHING)


class TestMissing:
    @pytest.mark.parametrize(
        ("before", "fact"),
        [
            (policy("*.org:443"), seen("a.org", 443, PUBLIC)),
            (policy("public"), seen("a.org", 443, PUBLIC)),
            (policy(default=Default.PUBLIC), seen("a.org", 443, PUBLIC)),
            (policy(default=Default.ALLOW), seen(None, 443, PRIVATE)),
            (policy("10.0.0.0/8:5432"), seen(None, 5432, PRIVATE)),
            (policy("db.corp", private="*.corp db.corp"), seen("db.corp", 5432, PRIVATE)),
            (policy("a.org:80"), seen("a.org", None, PUBLIC)),
        ],
    )
    def test_there_already(self, before: Policy, fact: Seen) -> None:
        """What is allowed gets no rule."""
        assert Lesson() == learn([fact], before)

    @pytest.mark.parametrize(
        ("before", "fact", "allow", "private"),
        [
            (policy("a.org:80"), seen("a.org", 443, PUBLIC), ["a.org:443"], []),
            (policy("db.corp"), seen("db.corp", 5432, PRIVATE), [], ["db.corp"]),
            (policy(private=".corp"), seen("db.corp", 1, PRIVATE), ["db.corp:1"], []),
            # The rule for the name needs it to be verified.
            (policy("a.org:443"), seen("a.org", 443, PUBLIC, owned=False), ["9.9.9.1:443"], []),
        ],
    )
    def test_part(self, before: Policy, fact: Seen, allow: list[str], private: list[str]) -> None:
        """Only the missing part is learned."""
        assert (allow, private) == texts(learn([fact], before))


class TestDenied:
    @pytest.mark.parametrize(
        ("before", "fact", "expected"),
        [
            (
                policy(deny="*:25"),
                seen("mx.org", 25, PUBLIC),
                "mx.org:25 stays denied by *:25 (p.toml:2)",
            ),
            (
                policy(deny="*.org"),
                seen("a.org", 443, PUBLIC),
                "a.org:443 stays denied by *.org (p.toml:2)",
            ),
            (
                policy(deny="a.org"),
                seen("a.org", 443, PUBLIC, owned=False),
                "9.9.9.1:443 stays denied by a.org (p.toml:2)",
            ),
            (
                policy(deny="a.org"),
                seen("a.org", None, PUBLIC),
                "the lookup of a.org stays denied by a.org (p.toml:2)",
            ),
            (
                policy(deny="a.org:53"),
                seen("a.org", None, PUBLIC),
                "the lookup of a.org stays denied by a.org:53 (p.toml:2)",
            ),
            (
                policy(deny="db.corp:1-8080", default=Default.PUBLIC),
                seen("db.corp", None, PRIVATE),
                "the lookup of db.corp stays denied by db.corp:1-8080 (p.toml:2)",
            ),
            (
                policy(deny="private"),
                seen("db.corp", None, PRIVATE),
                "the lookup of db.corp stays denied by private (p.toml:2)",
            ),
            (
                policy(deny="b.org"),
                seen(None, 443, PUBLIC, muddled=True),
                "9.9.9.1:443 stays denied (denied_by_rule)",
            ),
        ],
    )
    def test_stays(self, before: Policy, fact: Seen, expected: str) -> None:
        """What a deny rule denies gets no rule; and it is said."""
        lesson = learn([fact], before)
        assert [expected] == list(map(str, lesson.refused))

    def test_ech(self) -> None:
        """A policy that won't have hidden names is not got round by an address."""
        from sidecar.policy import Choice

        before = policy("a.org:443", ech=Choice.DENY)
        lesson = learn([seen("a.org", 443, PUBLIC, ech=True)], before)
        assert [Reason.ECH.value] == [each.reason for each in lesson.refused]
        assert not lesson


class TestWildcards:
    def test_siblings(self) -> None:
        """Enough names with one parent and port make a rule; others stay."""
        facts = [seen(f"{each}.cdn.org", 443, PUBLIC) for each in "abc"]
        facts += [seen("a.cdn.org", 80, PUBLIC), seen("cdn.org", 443, PUBLIC)]
        lesson = learn(facts, NOTHING, siblings=3)
        assert (["cdn.org:443", "*.cdn.org:443", "a.cdn.org:80"], []) == texts(lesson)
        assert lesson.allow[1].comment.startswith("a.cdn.org, b.cdn.org, c.cdn.org; 3 connections")

    def test_only_if_asked(self) -> None:
        """By default there are none."""
        facts = [seen(f"n{each}.cdn.org", 443, PUBLIC) for each in range(50)]
        assert not [each for each in texts(learn(facts, NOTHING))[0] if "*" in each]

    @pytest.mark.parametrize("parent", ["org", "co.uk", "com.au"])
    def test_many_owners(self, parent: str) -> None:
        """What belongs to everybody gets no wildcard."""
        facts = [seen(f"n{each}.{parent}", 443, PUBLIC) for each in range(9)]
        assert not [each for each in texts(learn(facts, NOTHING, siblings=3))[0] if "*" in each]

    def test_private_names_stay(self) -> None:
        """Which names may lead to private addresses is said of each."""
        facts = [seen(f"{each}.db.corp", 1, PRIVATE) for each in "abc"]
        expected = (["*.db.corp:1"], ["a.db.corp", "b.db.corp", "c.db.corp"])
        assert expected == texts(learn(facts, NOTHING, siblings=3))


ONE = "1 connection, 2026-10-01 14:03 UTC"


class TestComments:
    @pytest.mark.parametrize(
        ("facts", "expected"),
        [
            ({}, "1 connection, 2026-10-01 14:03 UTC"),
            (
                {"times": 3, "failed": 1, "processes": {"git": None, "curl": None}},
                "3 connections by curl, git, 2026-10-01 14:03 UTC",
            ),
            (
                {"times": 2, "failed": 2},
                "2 connections, 2026-10-01 14:03 UTC, none came about",
            ),
            (
                {"owned": False},
                "1 connection, 2026-10-01 14:03 UTC; said a.org, which is not known to be there",
            ),
            (
                {"processes": {"a\n[b]\x1b\ud800" + "x" * 99: None}},
                f"1 connection by a?[b]??{'x' * 25}, 2026-10-01 14:03 UTC",
            ),
            (
                {"owned": False, "muddled": True, "problems": {"proxy_request"}},
                f"{ONE}; a proxy, so this allows whatever the proxy allows; looked up as a.org",
            ),
            (
                {"owned": False, "muddled": True, "problems": {"http_version"}},
                f"{ONE}; HTTP/2 without TLS, whose names can't be read; looked up as a.org",
            ),
            ({"port": None}, "only looked up, not connected to"),
            ({"port": None, "found": False}, "only looked up, found nothing"),
        ],
    )
    def test_allow(self, facts: dict[str, Any], expected: str) -> None:
        """How often, by whom, since when; whatever a process calls itself."""
        (rule,) = learn([seen("a.org", facts.pop("port", 1), PUBLIC, **facts)], NOTHING).allow
        assert expected == rule.comment

    def test_private_names(self) -> None:
        """Where it led; of many addresses, a few."""
        addresses = [f"10.0.0.{number}" for number in range(9)]
        (rule,) = learn([seen("db.corp", 1, *addresses)], NOTHING).private_names
        assert "led to 10.0.0.0, 10.0.0.1, 10.0.0.2, 10.0.0.3 and 5 more" == rule.comment


def _facts() -> st.SearchStrategy[Seen]:
    return st.builds(
        seen,
        st.sampled_from([*HOSTS, None]),
        st.sampled_from(PORTS),
        st.sampled_from(ADDRESSES),
        owned=st.booleans(),
        raw=st.booleans(),
        muddled=st.booleans(),
    ).map(_possible)


def _possible(fact: Seen) -> Seen:
    """A gatherer owns no names where there is none, or none can be read."""
    fact.owned &= fact.host is not None and not fact.muddled
    return fact


def _gathered(fact: Seen) -> Seen:
    """Nothing that was found is no address, and no name is made of itself."""
    if not fact.found:
        fact.addresses.clear()
    fact.made_of = tuple(each for each in fact.made_of if each != fact.host)
    return fact


_lookups = st.builds(
    seen,
    st.sampled_from(HOSTS),
    st.none(),
    st.sampled_from(ADDRESSES),
    owned=st.just(True),
    found=st.booleans(),
    made_of=st.lists(st.sampled_from(HOSTS), max_size=2).map(tuple),
).map(_gathered)


def allows(judge: Policy, fact: Seen, address: str) -> bool:
    """Whether a connection comes through, and isn't refused for a name that is no one's."""
    decision = judge.judge(
        address,
        fact.port or 0,
        host=fact.host,
        names_known=not fact.muddled,
        protocol=Protocol.TCP if fact.raw else Protocol.TLS,
    )
    return decision.outcome is Outcome.ALLOW and (fact.owned or not decision.by_name)


class TestAnything:
    @given(facts=st.lists(_facts()), siblings=st.none() | st.integers(2, 3))
    def test_passes(self, facts: list[Seen], siblings: int | None) -> None:
        """Everything that a run did is allowed by what was learned from it."""
        after = taught(NOTHING, learn(facts, NOTHING, siblings=siblings))
        assert all(allows(after, fact, address) for fact in facts for address in fact.addresses)

    @given(facts=st.lists(_facts()), lookups=st.lists(_lookups))
    def test_lookups_pass(self, facts: list[Seen], lookups: list[Seen]) -> None:
        """So is what it looked up."""
        after = taught(NOTHING, learn([*facts, *lookups], NOTHING))
        reach = Reach(after)
        for fact in lookups:
            short = (name for name in fact.made_of if "." not in name or not fact.found)
            names = [fact.host or "", *short]
            names = [name for name in names if reach.name(name).outcome is not Outcome.DENY]
            assert names
            for address in fact.addresses:
                found = [reach.address(address, name).outcome for name in names]
                assert Outcome.ALLOW in found

    @given(
        facts=st.lists(_facts()),
        lookups=st.lists(_lookups),
        port=st.sampled_from([*PORTS, 53, 81]),
        host=st.sampled_from([None, "another.example", "x.another.example", *HOSTS]),
    )
    def test_nothing_else(
        self, facts: list[Seen], lookups: list[Seen], port: int, host: str | None
    ) -> None:
        """No other host is, nor another port of the same, nor an address by a foreign name."""
        after = taught(NOTHING, learn([*facts, *lookups], NOTHING))
        known = {
            (each.host, wanted)
            for each in [*facts, *lookups]
            for wanted in [each.port, 53 if each.port is None else each.port]
            if each.owned
        }
        # Nobody went to this address.
        allowed = after.judge("8.8.4.4", port, host=host).outcome is Outcome.ALLOW
        assert not allowed or (host, port) in known

    @given(
        facts=st.lists(_facts()),
        lookups=st.lists(_lookups),
        allow=RULES,
        deny=RULES,
        default=st.sampled_from(Default),
    )
    def test_added(
        self,
        facts: list[Seen],
        lookups: list[Seen],
        allow: list[Any],
        deny: list[Any],
        default: Default,
    ) -> None:
        """Added to any policy: all passes but what its deny rules deny; again adds nothing."""
        before = Policy(default=default, allow=allow, deny=deny)
        lesson = learn([*facts, *lookups], before)
        after = taught(before, lesson)
        refused = {each.target for each in lesson.refused}
        for fact in facts:
            for address in fact.addresses:
                shown = f"[{address}]" if ":" in address else address
                if fact.owned and fact.host:
                    shown = fact.host
                assert allows(after, fact, address) or f"{shown}:{fact.port}" in refused
        assert not learn([*facts, *lookups], after)
