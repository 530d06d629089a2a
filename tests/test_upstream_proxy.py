from __future__ import annotations

from base64 import b64encode

import pytest

from sidecar.addresses import parse_authority
from sidecar.errors import AddressError
from sidecar.upstream_proxy import UpstreamProxy


@pytest.mark.parametrize(
    ("url", "authority", "credentials"),
    [
        ("http://proxy.example:3128", "proxy.example:3128", None),
        ("http://proxy.example:3128/", "proxy.example:3128", None),
        ("HTTP://Proxy.Example.:3128", "proxy.example:3128", None),
        ("http://192.0.2.1:80", "192.0.2.1:80", None),
        ("http://[2001:DB8::1]:8080", "[2001:db8::1]:8080", None),
        ("http://[::ffff:192.0.2.1]:8080", "192.0.2.1:8080", None),
        ("http://user:pass@proxy.example:3128", "proxy.example:3128", "user:pass"),
        ("http://user@proxy.example:3128", "proxy.example:3128", "user:"),
        ("http://user:@proxy.example:3128", "proxy.example:3128", "user:"),
        ("http://u:a:b@proxy.example:3128", "proxy.example:3128", "u:a:b"),
        ("http://d%5Cu:p%40%2f%25@proxy.example:3128", "proxy.example:3128", "d\\u:p@/%"),
        ("http://u:%C3%A9@proxy.example:3128", "proxy.example:3128", "u:\xe9"),
    ],
)
def test_parsed(url: str, authority: str, credentials: str | None) -> None:
    """A URL says where the proxy is, and who we are to it."""
    proxy = UpstreamProxy.parse(url)
    assert authority == str(proxy.authority)
    expected = None if credentials is None else b"Basic " + b64encode(credentials.encode())
    assert expected == proxy.authorization


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("", "URL"),
        ("proxy.example:3128", "URL"),
        ("proxy.example", "URL"),
        ("u:sEcReT@proxy.example:3128", "URL"),
        ("http:proxy.example:3128", "URL"),
        ("http://", "URL"),
        ("://proxy.example:3128", "URL"),
        ("https://proxy.example:3128", "only http://"),
        ("https://u:sEcReT@proxy.example:3128", "only http://"),
        ("socks5://u:sEcReT@proxy.example:1080", "only http://"),
        ("http://proxy.example", "no port"),
        ("http://u:sEcReT@proxy.example", "no port"),
        ("http://proxy.example:", "not a port"),
        ("http://proxy.example:0", "not a port"),
        ("http://proxy.example:65536", "not a port"),
        ("http://:3128", "no host"),
        ("http://2001:db8::1:3128", "brackets"),
        ("http://127.1:3128", "ends in a number"),
        ("http://proxy.example:3128//", "no path"),
        ("http://proxy.example:3128/x", "no path"),
        ("http://proxy.example:3128?x", "no path"),
        ("http://proxy.example:3128#x", "no path"),
        ("http://proxy example:3128", "character"),
        ("http://proxy.example:3128\r\nX: y", "brackets"),
        ("http://u:sEcReT@evil@proxy.example:3128", "percent-encoded"),
        ("http://u:sEcReT/@proxy.example:3128", "percent-encoded"),
        ("http://u:sEcReT%@proxy.example:3128", "percent-encoded"),
        ("http://u:sEcReT\\@proxy.example:3128", "percent-encoded"),
        ("http://u:sEcReT%0a@proxy.example:3128", "control"),
        ("http://u%3A:sEcReT@proxy.example:3128", "colon"),
        ("http://u:sEcReT%ff@proxy.example:3128", "UTF-8"),
    ],
)
def test_rejected(url: str, names: str) -> None:
    """What could be read in two ways is an error, which says what to write, without secrets."""
    with pytest.raises(AddressError, match=names) as caught:
        UpstreamProxy.parse(url)
    assert "sEcReT" not in f"{caught.value!r} {caught.value} {caught.value.__cause__}"


def test_shows_no_secret() -> None:
    """Neither text form has the credentials."""
    proxy = UpstreamProxy.parse("http://user:sEcReT@proxy.example:3128")
    assert proxy.authorization is not None
    secret = proxy.authorization.decode().partition(" ")[2]
    for text in (str(proxy), repr(proxy)):
        assert "proxy.example" in text
        assert not any(word in text for word in ("sEcReT", "user", secret))
    assert "http://proxy.example:3128" == str(proxy)


def test_no_proxy() -> None:
    """What is on the list goes without it."""
    proxy = UpstreamProxy.parse("http://proxy.example:3128", "corp.example,10.0.0.0/8")
    assert proxy.is_for(parse_authority("example.org:443"))
    assert not proxy.is_for(parse_authority("git.corp.example:443"))
    assert not proxy.is_for(parse_authority("10.1.2.3:443"))
    with pytest.raises(AddressError, match=r"127\.1"):
        UpstreamProxy.parse("http://proxy.example:3128", "127.1")
