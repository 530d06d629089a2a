"""How a user name and a password are sent to a proxy: the Basic scheme of RFC 7617."""

from __future__ import annotations

import re
from base64 import b64encode

__all__ = ["basic_authorization"]

# RFC 7617 §2: neither may have control characters, and the user no colon.
_control = re.compile(r"[\x00-\x1f\x7f-\x9f]").search


def basic_authorization(user: str, password: str) -> bytes:
    """Make the value of Proxy-Authorization (RFC 7617 §2, in UTF-8 as §2.1 has it).

    Args:
        user: Without a colon.
        password: Anything; neither may have control characters.

    Raises:
        ValueError: Something that can't be said in Basic; doesn't name the password.
    """
    if ":" in user:
        raise ValueError("a user name can't have a colon in it (RFC 7617)")
    if _control(user) or _control(password):
        raise ValueError("user name and password can't have control characters in them (RFC 7617)")
    try:
        return b"Basic " + b64encode(f"{user}:{password}".encode())
    except UnicodeEncodeError:
        raise ValueError("user name and password must be Unicode text") from None
