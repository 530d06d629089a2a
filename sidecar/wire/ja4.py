"""Which client software a ClientHello looks like: its JA4 fingerprint.

The specification is FoxIO's technical_details/JA4.md (github.com/FoxIO-LLC/ja4), whose
sections are named below. JA4 is a fingerprint of what a client says, not of what it
is: anybody can send another's.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

from sidecar.wire.hello_message import shorts, without_grease

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.wire.hello_message import ClientHello

__all__ = ["ja4"]

_SERVER_NAME = 0x0000
_ALPN = 0x0010
_ALPN_ABSENT = "00"
_NOTHING = "000000000000"
_DIGITS = 12
_MAX_COUNT = 99

# Few kinds of clients make most of the hellos. What is kept for them is bounded by their
# lists' length too, to 4 MiB, whatever strangers send.
_CACHE_SIZE = 256
_MAX_CACHED = 512  # bytes on the wire

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
    suites, kinds, algorithms = hello.suite_list, hello.extensions, hello.algorithm_list
    few = len(suites) + len(algorithms) + 2 * len(kinds) <= _MAX_CACHED
    return (_cached_whole if few else _whole)(
        max(hello.versions, default=0),
        hello.sni is not None,
        suites,
        kinds,
        algorithms,
        hello.protocols[0] if hello.protocols else b"",
    )


def _whole(
    newest: int, named: bool, suites: bytes, kinds: tuple[int, ...], algorithms: bytes, alpn: bytes
) -> str:
    """Put it together, by "JA4 Algorithm"."""
    version = _VERSIONS.get(newest, _UNKNOWN_VERSION)
    extensions = without_grease(kinds)
    # Sorted first: some clients send theirs in another order each time.
    counted = sorted(extensions)
    if _SERVER_NAME in counted:
        counted.remove(_SERVER_NAME)
    if _ALPN in counted:
        counted.remove(_ALPN)
    sorted_kinds = tuple(counted)
    if len(suites) + len(algorithms) + 2 * len(kinds) <= _MAX_CACHED:
        count, suites_hash = _cached_suites(suites)
        extensions_hash = _cached_extensions(sorted_kinds, algorithms)
    else:
        count, suites_hash = _suites(suites)
        extensions_hash = _extensions(sorted_kinds, algorithms)
    return (
        f"t{version}{'d' if named else 'i'}{count}{_count(extensions)}{_alpn(alpn)}"
        f"_{suites_hash}_{extensions_hash}"
    )


def _count(values: Sequence[int]) -> str:
    return f"{min(len(values), _MAX_COUNT):02}"


def _alpn(protocol: bytes) -> str:
    """The first protocol's ends, by "ALPN Extension Value"."""
    if not protocol:
        return _ALPN_ABSENT
    first, last = protocol[:1], protocol[-1:]
    if first.isalnum() and last.isalnum():  # of bytes: ASCII only
        return (first + last).decode("ascii")
    return first.hex()[0] + last.hex()[1]


def _suites(suite_list: bytes) -> tuple[str, str]:
    """The count, and the hash by "Cipher hash"."""
    suites = sorted(without_grease(shorts(suite_list)))
    return _count(suites), _hash(_hex(suites))


def _extensions(kinds: tuple[int, ...], algorithm_list: bytes) -> str:
    """The hash by "Extension hash"."""
    text = _hex(kinds)
    algorithms = without_grease(shorts(algorithm_list))
    if text and algorithms:
        text += "_" + _hex(algorithms)
    return _hash(text)


# Most clients, those who keep the order of their extensions, need no more than this one.
_cached_whole = lru_cache(_CACHE_SIZE)(_whole)
_cached_suites = lru_cache(_CACHE_SIZE)(_suites)
_cached_extensions = lru_cache(_CACHE_SIZE)(_extensions)


def _hex(values: Sequence[int]) -> str:
    return ",".join([f"{value:04x}" for value in values])


def _hash(text: str) -> str:
    return sha256(text.encode("ascii")).hexdigest()[:_DIGITS] if text else _NOTHING
