"""CASES M10: what a request is for."""

from __future__ import annotations

import pytest

from sidecar.wire.http1.errors import HttpMessageError
from sidecar.wire.http1.targets import Target, TargetForm, parse_target


class TestForms:
    @pytest.mark.parametrize(
        ("target", "scheme", "authority", "origin"),
        [
            (b"http://a.example/x?y", b"http", b"a.example", b"/x?y"),
            (b"http://a.example", b"http", b"a.example", b"/"),
            (b"http://a.example?x=/", b"http", b"a.example", b"/?x=/"),
            (b"http://a.example//b.example/", b"http", b"a.example", b"//b.example/"),
            (b"http://a.example/@b?c@d", b"http", b"a.example", b"/@b?c@d"),
            (b"http://a.example/http://b/", b"http", b"a.example", b"/http://b/"),
            (b"HTTP://A.Example:80/", b"http", b"A.Example:80", b"/"),
            (b"http://[::1]:8080/", b"http", b"[::1]:8080", b"/"),
            (b"http://a_b:/", b"http", b"a_b:", b"/"),
            (b"https://a.example/", b"https", b"a.example", b"/"),
            (b"ftp://a.example/x", b"ftp", b"a.example", b"/x"),
            (b"ws+x-1.0://a", b"ws+x-1.0", b"a", b"/"),
        ],
    )
    def test_absolute(self, target: bytes, scheme: bytes, authority: bytes, origin: bytes) -> None:
        """A URI's parts; the path is never empty (RFC 9112 §3.2.1)."""
        expected = Target(TargetForm.ABSOLUTE, scheme, authority, origin)
        assert expected == parse_target(b"GET", target)

    @pytest.mark.parametrize("target", [b"/", b"/x?y", b"//a.example/", b"/@", b"/\\", b"/\xe9"])
    def test_origin(self, target: bytes) -> None:
        """A path stands for itself."""
        expected = Target(TargetForm.ORIGIN, b"", b"", target)
        assert expected == parse_target(b"GET", target)

    @pytest.mark.parametrize("target", [b"a.example:443", b"[::1]:443", b"192.0.2.1:1", b"::1:443"])
    def test_authority(self, target: bytes) -> None:
        """CONNECT's, with its port; addresses.py is stricter."""
        expected = Target(TargetForm.AUTHORITY, b"", target, b"")
        assert expected == parse_target(b"CONNECT", target)

    def test_asterisk(self) -> None:
        """OPTIONS's, and what a proxy makes of a URI without a path (RFC 9112 §3.2.4)."""
        assert Target(TargetForm.ASTERISK, b"", b"", b"*") == parse_target(b"OPTIONS", b"*")
        for target, origin in ((b"http://a", b"*"), (b"http://a/", b"/"), (b"http://a?b", b"/?b")):
            expected = Target(TargetForm.ABSOLUTE, b"http", b"a", origin)
            assert expected == parse_target(b"OPTIONS", target)

    @pytest.mark.parametrize(
        ("method", "target"),
        [
            (b"GET", b"*"),
            (b"GET", b"a.example"),
            (b"GET", b"a.example:80"),
            (b"GET", b"mailto:a@b"),
            (b"GET", b"http:a"),
            (b"GET", b"http:/a"),
            (b"GET", b"http:///x"),
            (b"GET", b"http://"),
            (b"GET", b"://a/"),
            (b"GET", b"1http://a/"),
            (b"GET", b"x" * 33 + b"://a/"),
            (b"GET", b"http://u@a/"),
            (b"GET", b"http://a@b/"),
            (b"GET", b"http://a\\@b/"),
            (b"GET", b"http://a\\b/"),
            (b"GET", b"http://a#@b/"),
            (b"GET", b"http://a/#b"),
            (b"GET", b"/#b"),
            (b"GET", b"http://<a>/"),
            (b"GET", b"http://\xe9/"),
            (b"GET", b"\\\\a\\b"),
            (b"OPTIONS", b"**"),
            (b"CONNECT", b"/"),
            (b"CONNECT", b"*"),
            (b"CONNECT", b"a.example"),
            (b"CONNECT", b"a.example:"),
            (b"CONNECT", b"a.example:x"),
            (b"CONNECT", b":443"),
            (b"CONNECT", b"a.example:+443"),
            (b"CONNECT", b"u@a.example:443"),
            (b"CONNECT", b"a.example:443/"),
            (b"CONNECT", b"a.example:443#x"),
            (b"CONNECT", b"http://a.example:443"),
            (b"CONNECT", b"[::1]"),
            (b"CONNECT", b"a:443\n"),
            (b"GET", b"http://a\n"),
        ],
    )
    def test_refused(self, method: bytes, target: bytes) -> None:
        """What has none of the forms, or another method's, is an error of the client's."""
        with pytest.raises(HttpMessageError, match="target") as caught:
            parse_target(method, target)
        assert 400 == caught.value.status
