"""Which client software a ClientHello looks like: its JA4 fingerprint.

The specification is FoxIO's technical_details/JA4.md (github.com/FoxIO-LLC/ja4), whose
sections are named below. JA4 is a fingerprint of what a client says, not of what it
is: anybody can send another's.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from sidecar.wire.hello_message import GREASE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.wire.hello_message import ClientHello

__all__ = ["ja4"]

_SERVER_NAME = 0x0000
_ALPN = 0x0010
_ALPN_ABSENT = "00"
_NOTHING = "000000000000"
_DIGITS = 12
_MAX_COUNT = 99
# "TLS and DTLS Version"
_VERSIONS = {
    0x0304: "13",
    0x0303: "12",
    0x0302: "11",
    0x0301: "10",
    0x0300: "s3",
    0x0002: "s2",
    0xFEFF: "d1",
    0xFEFD: "d2",
    0xFEFC: "d3",
}
_UNKNOWN_VERSION = "00"


def ja4(hello: ClientHello) -> str:
    """Return the JA4 fingerprint of a ClientHello that came over TCP.

    Args:
        hello: As read.

    Returns:
        36 characters, as t13d1516h2_8daaf6152771_e5627efa2ab1.
    """
    ciphers = [suite for suite in hello.cipher_suites if suite not in GREASE]
    extensions = [kind for kind in hello.extensions if kind not in GREASE]
    algorithms = [each for each in hello.signature_algorithms if each not in GREASE]
    version = _VERSIONS.get(max(hello.versions, default=0), _UNKNOWN_VERSION)
    named = "i" if hello.sni is None else "d"
    hashed = _hex(sorted([kind for kind in extensions if kind not in (_SERVER_NAME, _ALPN)]))
    if hashed and algorithms:
        hashed += "_" + _hex(algorithms)
    return (
        f"t{version}{named}{_count(ciphers)}{_count(extensions)}{_alpn(hello.protocols)}"
        f"_{_digest(_hex(sorted(ciphers)))}_{_digest(hashed)}"
    )


def _count(values: list[int]) -> str:
    return f"{min(len(values), _MAX_COUNT):02}"


def _alpn(protocols: tuple[bytes, ...]) -> str:
    """The first protocol's ends, by "ALPN Extension Value"."""
    if not protocols:
        return _ALPN_ABSENT
    first, last = protocols[0][:1], protocols[0][-1:]
    if first.isalnum() and last.isalnum():  # of bytes: ASCII only
        return (first + last).decode("ascii")
    return first.hex()[0] + last.hex()[1]


def _hex(values: Iterable[int]) -> str:
    return ",".join([f"{value:04x}" for value in values])


def _digest(text: str) -> str:
    return sha256(text.encode("ascii")).hexdigest()[:_DIGITS] if text else _NOTHING
