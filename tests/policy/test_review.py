from __future__ import annotations

import pytest

from sidecar.policy import Default, Policy, parse_name_rule, parse_rule
from sidecar.policy.review import review


def remarks(
    allow: tuple[str, ...] = (),
    deny: tuple[str, ...] = (),
    default: str = "deny",
    private_names: tuple[str, ...] = (),
) -> list[str]:
    policy = Policy(
        default=Default(default),
        allow=[parse_rule(text, f"f:{line}") for line, text in enumerate(allow)],
        deny=[parse_rule(text, f"g:{line}") for line, text in enumerate(deny)],
        private_names=[parse_name_rule(text, "h:0") for text in private_names],
    )
    return [str(remark) for remark in review(policy)]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("*", "every destination"),
        ("*:443", "every destination"),
        ("*.com", "top-level"),
        (".com:443", "top-level"),
        ("0.0.0.0/0", "4294967296 addresses"),
        ("8.0.0.0/7", "addresses"),
        ("[2000::/3]:1", "addresses"),
    ],
)
def test_broad(rule: str, said: str) -> None:
    """An allow rule for half the world is remarked on; the same denial isn't."""
    (remark,) = remarks((rule,))
    assert remark.startswith(f"f:0: {rule}: allows ")
    assert said in remark
    assert [] == remarks((), (rule,))


@pytest.mark.parametrize("rule", ["com", "*.example.com", "10.0.0.0/8", "2001:db8::/32", "public"])
def test_not_broad(rule: str) -> None:
    """What names one thing is not."""
    assert [] == remarks((rule,))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x.example", "X.example."),
        ("x.example:80,443", "x.example:443,80"),
        ("x.example:1-2,3", "x.example:1-3"),
        ("10.0.0.1", "10.0.0.1/32"),
        ("10.0.0.0/8", "::ffff:10.0.0.0/104"),
    ],
)
def test_duplicate(first: str, second: str) -> None:
    """Two rules that mean the same: the later is the duplicate, in either list."""
    assert [f"f:1: {second}: a duplicate of {first} (f:0)"] == remarks((first, second))
    assert [f"g:1: {second}: a duplicate of {first} (g:0)"] == remarks((), (first, second))


COVERED = [
    ("x.example:443", "x.example"),
    ("x.example:443", "x.example:1-1000"),
    ("x.example", "*.example.org", False),
    ("x.a.example", "*.a.example"),
    ("x.a.example", ".a.example"),
    ("a.example", ".a.example"),
    ("a.example", "*.a.example", False),
    ("*.a.example", ".a.example"),
    (".a.example", "*.a.example", False),
    (".b.a.example:1", "*.a.example"),
    ("x.example", "x.example:443", False),
    ("10.1.0.0/16", "10.0.0.0/8"),
    ("10.0.0.0/8", "10.1.0.0/16", False),
    ("10.1.0.0/16", "private"),
    ("fd00::/48", "private"),
    ("10.1.0.0/16", "loopback", False),
    ("private", "*"),
    ("x.example:25", "*:25"),
    ("x.example", "*:25", False),
]


@pytest.mark.parametrize("case", COVERED, ids=str)
def test_covered(case: tuple[str, str] | tuple[str, str, bool]) -> None:
    """A rule that another one covers is said to be without effect, or never to allow."""
    rule, other, *no = case
    covered = [] if no else [f"f:0: {rule}: never allows anything: {other} (g:0) denies it all"]
    assert covered == remarks((rule,), (other,))
    for order in ((rule, other), (other, rule)):
        said = [each for each in remarks((), order) if f": {rule}: " in each]
        assert bool(no) == (not said)
        assert all(f"without effect: {other} (" in each for each in said)


def test_default_does_the_same() -> None:
    """Names that the default allows anyway need no rule."""
    assert 'default = "allow"' in remarks(("x.example",), default="allow")[0]
    assert "no private_names" in remarks(("x.example",), default="public")[0]
    assert [] == remarks(("x.example",), default="public", private_names=("x.example",))
    assert [] == remarks(("10.0.0.0/8",), default="allow")


def test_private_names() -> None:
    """Names that may be private are looked at, too."""
    said = remarks(private_names=("*.x", "a.b.x", "*.com"))
    assert ["*.x", "a.b.x", "*.com"] == [each.split(": ")[1] for each in said]


def test_widest_of_many() -> None:
    """Among many rules for a host, the one that covers is found."""
    allow = (*(f"x.example:{port}" for port in range(1, 50)), "x.example")
    said = remarks(allow)
    assert len(allow) - 1 == len(said)
    assert all("x.example (f:49) covers it" in each for each in said)
