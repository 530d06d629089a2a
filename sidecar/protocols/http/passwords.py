"""Is a password the one that a line of a password file stands for?

What ``htpasswd`` (Apache) writes, and plain text:

    $2y$…, $2a$, $2b$   bcrypt (``htpasswd -B``); needs the library of that name
    $apr1$…, $1$…       a thousand rounds of MD5 (htpasswd's default; ``openssl passwd -1``)
    {SHA}…              SHA-1 without salt (``htpasswd -s``)
    anything else       the password itself

A hash of a kind that isn't known is never taken for a password: whoever had read the
file could then log in with its text.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from binascii import Error as Base64Error
from functools import lru_cache
from hashlib import md5, sha1
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["equal", "fault", "is_slow", "matches"]

# Each process compares by a key of its own, so that equal lengths and prefixes of a
# guess take no other time than different ones.
_KEY = secrets.token_bytes(32)
# Bytes of a password; bcrypt leaves the rest out, as htpasswd did when it hashed.
_BCRYPT_MAX = 72
# Rounds are 2 to this. htpasswd makes none above 17, which takes some 10 s a password.
_COST_MAX = 17

_bcrypt = re.compile(rb"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}").fullmatch
_md5 = re.compile(rb"(\$apr1\$|\$1\$)([^$]{1,8})\$([./0-9A-Za-z]{22})").fullmatch
_hash = re.compile(rb"\$[0-9a-z_-]+\$|\{[A-Z0-9.-]+\}").match
_SHA = b"{SHA}"
_SHA_SIZE = 20


def equal(one: bytes, other: bytes) -> bool:
    """Compare two secrets in a time that says nothing of either."""
    return hmac.compare_digest(hmac.digest(_KEY, one, "sha256"), hmac.digest(_KEY, other, "sha256"))


def fault(stored: bytes) -> str | None:
    """Say why a line's second field can't be used; None if it can.

    Args:
        stored: The field.

    Returns:
        The fault and the cure, without the field.
    """
    if not stored:
        return "no password"
    if stored.startswith(_SHA):
        return None if len(_sha(stored)) == _SHA_SIZE else "a broken {SHA} hash"
    found = _bcrypt(stored)
    if found:
        if int(found[1]) > _COST_MAX:
            return f"bcrypt with a cost above {_COST_MAX} takes too long"
        try:
            _bcrypt_check()
        except ImportError:
            return "bcrypt needs a library: pip install 'sidecar[htpasswd]'"
        return None
    if _md5(stored):
        return None
    kind = _hash(stored)
    if kind:
        return (
            f"{kind[0].decode('ascii')} is a hash that can't be checked here, or a broken one; "
            "make it anew with htpasswd -B"
        )
    return None


def is_slow(stored: bytes) -> bool:
    """Whether checking takes long enough to belong in a thread."""
    return stored.startswith(b"$")


def matches(stored: bytes, password: bytes) -> bool:
    """Whether a password is the one that is stored.

    Args:
        stored: A field of which `fault` finds none.
        password: What the client sent, without NUL.
    """
    if stored.startswith(_SHA):
        # The file's format, whatever one thinks of it.
        return equal(_sha(stored), sha1(password, usedforsecurity=False).digest())
    if _bcrypt(stored):
        return _bcrypt_check()(password[:_BCRYPT_MAX], stored)
    found = _md5(stored)
    if found:
        return equal(stored, _md5_crypt(password, found[2], found[1]))
    # Whoever has read the file must not get in with the hash's own text.
    return not _hash(stored) and equal(stored, password)


@lru_cache(maxsize=1)
def _bcrypt_check() -> Callable[[bytes, bytes], bool]:
    """The optional library's function; Raises ImportError without it."""
    check: Callable[[bytes, bytes], bool] = import_module("bcrypt").checkpw
    return check


def _sha(stored: bytes) -> bytes:
    try:
        return base64.b64decode(stored[len(_SHA) :], validate=True)
    except Base64Error:
        return b""


_ALPHABET = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# In which order the digest's bytes are written, three to four characters.
_ORDER = ((0, 6, 12), (1, 7, 13), (2, 8, 14), (3, 9, 15), (4, 10, 5))
_ROUNDS = 1000


def _md5_crypt(password: bytes, salt: bytes, magic: bytes) -> bytes:
    """Hash as crypt(3) with $1$ does (Poul-Henning Kamp, 1994), and APR with $apr1$."""
    mixed = _md5_digest(password + salt + password)
    start = password + magic + salt + (mixed * (len(password) // 16 + 1))[: len(password)]
    bits = len(password)
    while bits:
        start += b"\0" if bits & 1 else password[:1]
        bits >>= 1
    digest = _md5_digest(start)
    for number in range(_ROUNDS):
        text = password if number & 1 else digest
        if number % 3:
            text += salt
        if number % 7:
            text += password
        digest = _md5_digest(text + (digest if number & 1 else password))
    written = bytearray(magic + salt + b"$")
    for first, second, third in _ORDER:
        written += _base64(digest[first] << 16 | digest[second] << 8 | digest[third], 4)
    return bytes(written + _base64(digest[11], 2))


def _md5_digest(data: bytes) -> bytes:
    hasher: Any = md5(data, usedforsecurity=False)
    digest: bytes = hasher.digest()
    return digest


def _base64(number: int, length: int) -> bytes:
    """Write six bits a character, the lowest first."""
    return bytes(_ALPHABET[number >> 6 * place & 63] for place in range(length))
