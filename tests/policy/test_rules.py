from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import AddressError
from sidecar.policy.ranges import AddressClass
from sidecar.policy.rules import ALL_PORTS, HostKind, PortRange, parse_name_rule, parse_rule


@pytest.mark.parametrize(
    ("text", "kind", "host"),
    [
        ("pypi.org", HostKind.NAME, "pypi.org"),
        ("PyPI.Org.", HostKind.NAME, "pypi.org"),
        ("*.debian.org", HostKind.BELOW, "debian.org"),
        (".debian.org", HostKind.DOMAIN, "debian.org"),
        ("*.com", HostKind.BELOW, "com"),
        ("_sip.example", HostKind.NAME, "_sip.example"),
        ("10.0.0.0/8", HostKind.NETWORK, ip_network("10.0.0.0/8")),
        ("0.0.0.0/0", HostKind.NETWORK, ip_network("0.0.0.0/0")),
        ("192.0.2.1", HostKind.NETWORK, ip_network("192.0.2.1/32")),
        ("2001:db8::/32", HostKind.NETWORK, ip_network("2001:db8::/32")),
        ("[2001:db8::/32]", HostKind.NETWORK, ip_network("2001:db8::/32")),
        ("::1", HostKind.NETWORK, ip_network("::1/128")),
        ("::ffff:10.0.0.0/104", HostKind.NETWORK, ip_network("10.0.0.0/8")),
        ("::ffff:10.0.0.1", HostKind.NETWORK, ip_network("10.0.0.1/32")),
        ("*", HostKind.ANY, None),
        *((each.value, HostKind.CLASS, each) for each in AddressClass),
    ],
)
def test_host(text: str, kind: HostKind, host: object) -> None:
    """Each form of the host, alone and with ports; the text is kept as it was."""
    rule = parse_rule(text, "f:1")
    assert (text, kind, host, (ALL_PORTS,), "f:1") == (
        rule.text,
        rule.kind,
        rule.host,
        rule.ports,
        rule.place,
    )
    bracketed = f"[{text}]" if ":" in text and "[" not in text else text
    with_port = parse_rule(f"{bracketed}:443")
    assert (kind, host, (PortRange(443, 443),)) == (with_port.kind, with_port.host, with_port.ports)


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("443", [(443, 443)]),
        ("80,443,8000-8999", [(80, 80), (443, 443), (8000, 8999)]),
        ("1-65535", [(1, 65535)]),
        ("22-22", [(22, 22)]),
    ],
)
def test_ports(text: str, ports: list[tuple[int, int]]) -> None:
    """Ports are numbers and ranges, between commas."""
    rule = parse_rule(f"*:{text}")
    assert tuple(ports) == rule.ports
    for first, last in ports:
        assert rule is rule.match(first)
        assert rule is rule.match(last)
    assert rule.match(7) is (rule if text == "1-65535" else None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no host"),
        (":443", "no host"),
        ("*.", "no host"),
        (".", "no host"),
        ("..x", "empty label"),
        ("*..x", "empty label"),
        ("*.*.x", "a *"),
        ("*x.com", "a *"),
        ("a*.com", "a *"),
        ("x.*", "a *"),
        ("**", "a *"),
        ("*.10.0.0.1", "names below"),
        (".[::1]", "names below"),
        ("10.1.2.3/8", "did you mean 10.0.0.0/8?"),
        ("2001:db8::1/32", "did you mean 2001:db8::/32?"),
        ("10.0.0.0/33", "not a network"),
        ("10.0.0.0/08", "not a network"),
        ("10.0.0.0/255.0.0.0", "not a network"),
        ("10.0.0.0/", "not a network"),
        ("10.0.0.0/\u0668", "not a network"),
        ("10.0/8", "not an IP address"),
        ("example.org/8", "not an IP address"),
        ("127.1", "ends in a number"),
        ("[10.0.0.0/8]:1", "brackets"),
        ("[example.org]:1", "brackets"),
        ("[::1", "[IPV6]:PORTS"),
        ("[::1]443", "[IPV6]:PORTS"),
        ("2001:db8::1:443,80", "needs brackets"),
        ("2001:db8:::1", "needs brackets"),
        ("x:", "not ports"),
        ("x:0", "not ports"),
        ("x:65536", "not ports"),
        ("x:+80", "not ports"),
        ("x:80,", "not ports"),
        ("x:80, 443", "not ports"),
        ("x:90-80", "not ports"),
        ("x:80-", "not ports"),
        ("x:https", "not ports"),
        ("x :80", "character"),
        ("user@x:80", "character"),
        ("b\u00fccher.example", "A-label"),
        ("https://example.org/path", "a URL; write example.org:443"),
        ("http://example.org", "a URL; write example.org:80"),
        ("HTTP://me:secret@example.org?query", "a URL; write example.org:80"),
        ("https://example.org:8443/path#part", "a URL; write example.org:8443"),
        ("https://*.example.org/", "a URL; write *.example.org:443"),
        ("https://[2001:db8::1]/", "a URL; write [2001:db8::1]:443"),
        ("http://[2001:db8::1]:8080/", "a URL; write [2001:db8::1]:8080"),
        ("amqp://broker.example/", "a URL; write broker.example:PORT"),
        ("https://exam ple.org/", "a URL; write HOST:PORT"),
        ("https://x:y/", "a URL; write HOST:PORT"),
        ("://", "a URL; write HOST:PORT"),
        ("x\x00", "character"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    """What is no rule is an error that quotes it and says what to write."""
    with pytest.raises(AddressError) as caught:
        parse_rule(text)
    assert text == caught.value.text
    assert reason in caught.value.problem


@pytest.mark.parametrize("text", ["10.0.0.0/8", "x:443", "*", "private", "", "::1"])
def test_name_rules_are_names(text: str) -> None:
    """Where only names make sense, addresses and ports are refused."""
    with pytest.raises(AddressError):
        parse_name_rule(text)
    assert "x" == parse_name_rule("*.x").host


@given(text=st.one_of(st.text(max_size=20), st.text("*.x10/:[]-,a\x00", max_size=20)))
def test_any_text(text: str) -> None:
    """Any text is a rule or an AddressError; a rule's text is the same rule again."""
    try:
        rule = parse_rule(text)
    except AddressError:
        return
    again = parse_rule(str(rule))
    assert (rule, rule.kind, rule.host, rule.ports) == (again, again.kind, again.host, again.ports)
    assert hash(rule) == hash(again)
    assert rule.text in repr(rule)
    assert rule != parse_rule(text, "elsewhere")
    assert rule != text
