"""What a ClientHello message says.

RFC 8446 §4.1.2, and RFC 5246 §7.4.1.2 for the older versions, which have the same
layout. How the message is got out of a stream is `sidecar.wire.client_hello`'s.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import lru_cache

from sidecar.wire.hello_errors import HelloError, HelloReason

__all__ = [
    "GREASE",
    "ClientHello",
    "parse_client_hello",
    "shorts",
    "without_grease",
]

GREASE = frozenset(0x0A0A + 0x1010 * number for number in range(16))
"""The values that mean nothing, reserved so that servers learn to ignore some (RFC 8701 §2)."""


def shorts(data: bytes) -> tuple[int, ...]:
    """Return the 16-bit values that some bytes, an even number, are."""
    return struct.unpack(f"!{len(data) >> 1}H", data)


def without_grease(values: tuple[int, ...]) -> tuple[int, ...]:
    """Return values without those that mean nothing."""
    if GREASE.isdisjoint(values):  # as with most clients
        return values
    return tuple([value for value in values if value not in GREASE])


_SERVER_NAME = 0  # RFC 6066 §3
_SIGNATURE_ALGORITHMS = 13  # RFC 8446 §4.2.3
_ALPN = 16  # RFC 7301 §3.1
_SUPPORTED_VERSIONS = 43  # RFC 8446 §4.2.1
_ENCRYPTED_CLIENT_HELLO = 0xFE0D  # RFC 9849 §5

_MAJOR_VERSION = 3
_MAX_SESSION_ID = 32
_SESSION_ID = 34  # where its length stands: legacy_version and random come before it
_HOST_NAME = 0  # RFC 6066 §3, NameType
_HOST_NAME_HEADER = 5  # ServerNameList's length, NameType, HostName's length
_ECH_OUTER = 0
_ECH_INNER = b"\x01"
# type, HpkeSymmetricCipherSuite, config_id, the length of enc
_ech_outer = struct.Struct("!BHHBH")
_unsafe = re.compile(rb"[^ -~]|\\").sub
_two_shorts = struct.Struct("!HH")


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a client offers.

    Attributes:
        legacy_version: As on the wire, 0x0300 to 0x03ff; 0x0303 in TLS 1.3.
        versions: What supported_versions lists, in its order, without GREASE; without
            the extension legacy_version alone, which then stands for all below it too.
        suite_list: The cipher suites as on the wire, two bytes each.
        extensions: Their types, in the client's order, GREASE included.
        algorithm_list: The signature algorithms as on the wire, two bytes each; empty
            without the extension.
        sni: The host_name: one byte at least, ASCII, no NUL; None without the
            extension. Whether it is a host name is for sidecar.addresses to say.
        protocols: The ALPN list as on the wire, each of 1 to 255 bytes; empty without
            the extension.
        ech_config_id: The config_id of an outer ECHClientHello (RFC 9849 §5); None
            without one. Random in a GREASE extension, and otherwise one that the DNS
            publishes for the public name (RFC 9848), by which somebody who sees those
            answers can tell more. A hello that is itself an inner one, decrypted by a
            client-facing server, has none: its `sni` is the host.
    """

    legacy_version: int
    versions: tuple[int, ...]
    suite_list: bytes
    extensions: tuple[int, ...]
    algorithm_list: bytes
    sni: bytes | None
    protocols: tuple[bytes, ...]
    ech_config_id: int | None

    @property
    def cipher_suites(self) -> tuple[int, ...]:
        """In the client's order, GREASE included."""
        return shorts(self.suite_list)

    @property
    def signature_algorithms(self) -> tuple[int, ...]:
        """In the client's order, GREASE included; empty without the extension."""
        return shorts(self.algorithm_list)

    @property
    def ech(self) -> bool:
        """Whether there is an outer ECHClientHello.

        `sni` is then what the client shows, and the host that it wants may be another
        one. A GREASE extension (RFC 9849 §6.2) is made to look the same, so it counts
        too: nobody who has only the hello can tell them apart.
        """
        return self.ech_config_id is not None

    @property
    def alpn(self) -> tuple[str, ...]:
        r"""`protocols` as text that is safe to print and gives each list a text of its own.

        Printable ASCII stands for itself, a backslash and any other byte as \xNN.
        """
        protocols = self.protocols
        few = len(protocols) <= _MAX_CACHED_PROTOCOLS
        return _cached_texts(protocols) if few else _texts(protocols)


def _texts(protocols: tuple[bytes, ...]) -> tuple[str, ...]:
    return tuple([_text(protocol) for protocol in protocols])


# Clients of one kind offer the same: at most 8 KiB each, with all bytes escaped.
_MAX_CACHED_PROTOCOLS = 8
_cached_texts = lru_cache(256)(_texts)


def _text(protocol: bytes) -> str:
    return _unsafe(_escape, protocol).decode("ascii")


def _escape(match: re.Match[bytes]) -> bytes:
    return b"\\x%02x" % match[0][0]


def parse_client_hello(body: bytes) -> ClientHello:
    """Read a ClientHello message.

    Args:
        body: The whole of it, without the handshake header.

    Returns:
        What it says.

    Raises:
        HelloError: It is malformed, in a field that is read or in any length.
            The content of an extension that is not in ClientHello is not looked at.
    """
    suites, end = _cipher_suites(body)
    extensions = _extensions(body, end)
    find = extensions.get
    legacy_version = body[0] << 8 | body[1]
    at = find(_SUPPORTED_VERSIONS)
    versions: tuple[int, ...] = (legacy_version,)
    if at is not None:
        versions = without_grease(shorts(_vector(body, at, 1, HelloReason.SUPPORTED_VERSIONS)))
    at = find(_SIGNATURE_ALGORITHMS)
    algorithms = b"" if at is None else _vector(body, at, 2, HelloReason.SIGNATURE_ALGORITHMS)
    at = find(_SERVER_NAME)
    sni = None if at is None else _host_name(body, at)
    at = find(_ALPN)
    protocols = () if at is None else _protocols(body, at)
    at = find(_ENCRYPTED_CLIENT_HELLO)
    ech_config_id = None if at is None else _ech_config_id(body, at)
    return ClientHello(
        legacy_version,
        versions,
        suites,
        tuple(extensions),
        algorithms,
        sni,
        protocols,
        ech_config_id,
    )


def _cipher_suites(body: bytes) -> tuple[bytes, int]:
    """Read all that comes before the extensions: the cipher suites, and where that ends."""
    size = len(body)
    if size <= _SESSION_ID:
        raise HelloError(HelloReason.TRUNCATED)
    if body[0] != _MAJOR_VERSION:
        raise HelloError(HelloReason.VERSION)
    length = body[_SESSION_ID]
    if length > _MAX_SESSION_ID:
        raise HelloError(HelloReason.SESSION_ID)
    at = _SESSION_ID + 1 + length
    if at + 2 > size:
        raise HelloError(HelloReason.TRUNCATED)
    length = body[at] << 8 | body[at + 1]
    if not length or length & 1:
        raise HelloError(HelloReason.CIPHER_SUITES)
    at += 2
    methods = at + length
    if methods >= size:
        raise HelloError(HelloReason.TRUNCATED)
    end = methods + 1 + body[methods]
    if end > size:
        raise HelloError(HelloReason.TRUNCATED)
    if 0 not in body[methods + 1 : end]:
        raise HelloError(HelloReason.COMPRESSION_METHODS)
    return body[at:methods], end


def _extensions(body: bytes, at: int) -> dict[int, int]:
    """Read what begins at `at`: where each extension's content begins, behind its length."""
    size = len(body)
    starts: dict[int, int] = {}
    if at == size:  # RFC 5246 §7.4.1.2: no extensions, and no length of them
        return starts
    at += 2
    if at > size or at + (body[at - 2] << 8 | body[at - 1]) != size:
        raise HelloError(HelloReason.EXTENSIONS_LENGTH)
    header = _two_shorts.unpack_from  # a third of the time of a hello goes into this loop
    last = size - 4
    while at <= last:
        kind, length = header(body, at)
        if kind in starts:
            raise HelloError(HelloReason.EXTENSION_DUPLICATE)
        at += 4
        starts[kind] = at
        at += length
    if at != size:
        raise HelloError(HelloReason.EXTENSIONS_LENGTH)
    return starts


def _vector(body: bytes, at: int, width: int, reason: HelloReason) -> bytes:
    """Read a vector of 16-bit values, one at least, whose length field has `width` bytes."""
    length = (body[at - 2] << 8 | body[at - 1]) - width
    if (
        length < 2  # noqa: PLR2004
        or length & 1
        or length != (body[at] if width == 1 else body[at] << 8 | body[at + 1])
    ):
        raise HelloError(reason)
    return body[at + width : at + width + length]


def _host_name(body: bytes, at: int) -> bytes:
    """Read a ServerNameList (RFC 6066 §3)."""
    size = body[at - 2] << 8 | body[at - 1]
    end = at + size
    if size < 2 or (body[at] << 8 | body[at + 1]) != size - 2:  # noqa: PLR2004
        raise HelloError(HelloReason.SNI_MALFORMED)
    if size == 2:  # noqa: PLR2004
        raise HelloError(HelloReason.SNI_EMPTY)
    if body[at + 2] != _HOST_NAME:
        raise HelloError(HelloReason.SNI_TYPE)
    if size < _HOST_NAME_HEADER:
        raise HelloError(HelloReason.SNI_MALFORMED)
    name_end = at + _HOST_NAME_HEADER + (body[at + 3] << 8 | body[at + 4])
    if name_end > end:
        raise HelloError(HelloReason.SNI_MALFORMED)
    if name_end < end:
        raise HelloError(HelloReason.SNI_TWO_NAMES)
    name = body[at + _HOST_NAME_HEADER : end]
    if not name:
        raise HelloError(HelloReason.SNI_EMPTY)
    if 0 in name:
        raise HelloError(HelloReason.SNI_NUL)
    if not name.isascii():
        raise HelloError(HelloReason.SNI_NOT_ASCII)
    return name


def _protocols(body: bytes, at: int) -> tuple[bytes, ...]:
    """Read a ProtocolNameList (RFC 7301 §3.1)."""
    size = body[at - 2] << 8 | body[at - 1]
    end = at + size
    if size < 4 or (body[at] << 8 | body[at + 1]) != size - 2:  # noqa: PLR2004
        raise HelloError(HelloReason.ALPN)
    names = []
    at += 2
    while at < end:
        start = at + 1
        at = start + body[at]
        if at == start or at > end:
            raise HelloError(HelloReason.ALPN)
        names.append(body[start:at])
    return tuple(names)


def _ech_config_id(body: bytes, at: int) -> int | None:
    """Read an ECHClientHello (RFC 9849 §5): an outer one's config_id, None of an inner one."""
    content = body[at : at + (body[at - 2] << 8 | body[at - 1])]
    if content == _ECH_INNER:
        return None
    header = _ech_outer.size
    if len(content) < header or content[0] != _ECH_OUTER:
        raise HelloError(HelloReason.ECH)
    _, _, _, config_id, length = _ech_outer.unpack_from(content)
    payload = header + length + 2
    # opaque payload<1..2^16-1>
    if len(content) <= payload or payload + (
        content[payload - 2] << 8 | content[payload - 1]
    ) != len(content):
        raise HelloError(HelloReason.ECH)
    return int(config_id)
