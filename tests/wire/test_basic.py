from __future__ import annotations

import pytest

from sidecar.wire.basic import basic_authorization


@pytest.mark.parametrize(
    ("user", "password", "expected"),
    [
        # RFC 7617 §2 and §2.1.
        ("Aladdin", "open sesame", b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ("test", "123\N{POUND SIGN}", b"Basic dGVzdDoxMjPCow=="),
        ("", "", b"Basic Og=="),
        ("u", "a:b", b"Basic dTphOmI="),
    ],
)
def test_written(user: str, password: str, expected: bytes) -> None:
    """User and password are joined and encoded; the RFC's own examples."""
    assert expected == basic_authorization(user, password)


@pytest.mark.parametrize(
    ("user", "password", "names"),
    [
        ("a:b", "secret", "colon"),
        ("a\n", "secret", "control"),
        ("a", "secret\r", "control"),
        ("a", "secret\x85", "control"),
        ("a", "secret\ud800", "Unicode"),
    ],
)
def test_rejected(user: str, password: str, names: str) -> None:
    """What Basic can't say is refused, and the password not repeated."""
    with pytest.raises(ValueError, match=names) as caught:
        basic_authorization(user, password)
    assert "secret" not in str(caught.value)
