from __future__ import annotations

import pytest

from sidecar.addresses import parse_authority
from sidecar.errors import AddressError
from sidecar.no_proxy import NoProxy


@pytest.mark.parametrize(
    ("text", "covered", "not_covered"),
    [
        ("", [], ["example.org:80", "127.0.0.1:80", "localhost:80"]),
        (" , ,\t", [], ["example.org:80"]),
        ("*", ["example.org:80", "192.0.2.1:443", "[::1]:1"], []),
        ("a.example,*", ["example.org:80", "192.0.2.1:443"], []),
        ("*:8080", ["example.org:8080", "192.0.2.1:8080"], ["example.org:80", "[::1]:80"]),
        # A name is a suffix, at a label's boundary.
        (
            "example.org",
            ["example.org:80", "www.example.org:443", "a.b.example.org:1", "EXAMPLE.ORG.:80"],
            ["badexample.org:80", "example.org.evil.test:80", "org:80", "192.0.2.1:80"],
        ),
        (".example.org", ["example.org:80", "www.example.org:80"], ["xexample.org:80"]),
        ("*.example.org", ["www.example.org:80", "a.b.example.org:80"], ["example.org:80"]),
        ("Example.ORG.", ["www.example.org:80"], []),
        ("localhost", ["localhost:80", "a.localhost:80"], ["127.0.0.1:80", "[::1]:80"]),
        ("example.org:8080", ["example.org:8080", "www.example.org:8080"], ["example.org:80"]),
        ("example.org:8000-8999", ["example.org:8080"], ["example.org:80"]),
        # An address is whole, whatever its spelling.
        ("192.0.2.1", ["192.0.2.1:80", "[::ffff:192.0.2.1]:80"], ["192.0.2.10:80"]),
        ("::ffff:192.0.2.1", ["192.0.2.1:80"], ["192.0.2.2:80"]),
        ("2001:DB8:0::1", ["[2001:db8::1]:80"], ["[2001:db8::2]:80"]),
        ("[2001:db8::1]", ["[2001:db8::1]:80"], ["[2001:db8::2]:80"]),
        ("[2001:db8::1]:443", ["[2001:db8::1]:443"], ["[2001:db8::1]:80"]),
        ("192.0.2.1:443", ["192.0.2.1:443"], ["192.0.2.1:80"]),
        ("10.0.0.0/8", ["10.255.0.1:80"], ["11.0.0.1:80", "ten.example:80"]),
        ("10.0.0.0/8:5432", ["10.0.0.1:5432"], ["10.0.0.1:80"]),
        ("2001:db8::/32", ["[2001:db8:1::1]:80"], ["[2001:db9::1]:80"]),
        ("private", ["10.0.0.1:80", "[fd00::1]:80"], ["192.0.1.1:80", "a.example:80"]),
        # Commas, blanks, both.
        ("a.example, b.example c.example", ["a.example:1", "b.example:1", "c.example:1"], []),
    ],
)
def test_covers(text: str, covered: list[str], not_covered: list[str]) -> None:
    """An entry covers what curl and requests say it does, and nothing else."""
    made = NoProxy(text)
    found = [each for each in covered + not_covered if made.covers(parse_authority(each))]
    assert covered == found


@pytest.mark.parametrize(
    "text",
    [
        "ex*mple.org",
        "http://example.org",
        "127.1",
        "0x7f.1",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "example.org:0",
        "example.org:http",
        "::1%lo",
        "b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example",
        "a..example",
        "[example.org]:80",
    ],
)
def test_rejected(text: str) -> None:
    """An entry that two programs could read differently is an error, with its text."""
    with pytest.raises(AddressError):
        NoProxy(f"good.example,{text}")


def test_value() -> None:
    """Lists are compared by their text."""
    assert NoProxy("a.example") == NoProxy("a.example")
    assert hash(NoProxy("a.example")) == hash(NoProxy("a.example"))
    assert NoProxy("a.example") != NoProxy("b.example")
    assert NoProxy("a.example") != "a.example"
    assert "NoProxy('a.example')" == repr(NoProxy("a.example"))
