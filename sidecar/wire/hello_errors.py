"""Why bytes are no ClientHello.

HelloError          its `reason` is one of HelloReason
"""

from __future__ import annotations

from enum import Enum

__all__ = ["HelloError", "HelloReason"]

# RFC 8446 §6.2.
_UNEXPECTED_MESSAGE = 10
_RECORD_OVERFLOW = 22
_ILLEGAL_PARAMETER = 47
_DECODE_ERROR = 50
_PROTOCOL_VERSION = 70
_UNRECOGNIZED_NAME = 112  # RFC 6066 §9


class HelloReason(Enum):
    """Why bytes are no ClientHello. The values are stable: logs and documentation use them."""

    NOT_TLS = "not_tls"
    """No TLS record of any kind: the client speaks something else."""
    SSL2 = "ssl2"
    """A CLIENT-HELLO in SSLv2's framing (RFC 5246 §E.2), forbidden by RFC 6176."""
    NOT_HANDSHAKE = "not_handshake"
    """A TLS record, but of another type: an alert, application data."""
    NOT_CLIENT_HELLO = "not_client_hello"
    """A handshake message of another type."""
    TOO_LARGE = "too_large"
    """Longer than MAX_HELLO_BYTES, or says that it is going to be."""
    RECORD_EMPTY = "record_empty"
    """A handshake record without content (RFC 8446 §5.1)."""
    RECORD_TOO_LONG = "record_too_long"
    """A record of more than 2^14 bytes (RFC 8446 §5.1)."""
    RECORD_INTERLEAVED = "record_interleaved"
    """Something else than a handshake record before the message's end (RFC 8446 §5.1)."""
    RECORD_TRAILING = "record_trailing"
    """Bytes behind the message in its last record; a client has nothing to say there yet."""
    TRUNCATED = "truncated"
    """The message ends within a field."""
    VERSION = "version"
    """A legacy_version that is not 3.x."""
    SESSION_ID = "session_id"
    """More than 32 bytes."""
    CIPHER_SUITES = "cipher_suites"
    """None, or half of one."""
    COMPRESSION_METHODS = "compression_methods"
    """None, or not the null method (RFC 5246 §7.4.1.2)."""
    EXTENSIONS_LENGTH = "extensions_length"
    """Lengths of the extensions that do not add up to the message's."""
    EXTENSION_DUPLICATE = "extension_duplicate"
    """The same extension twice (RFC 8446 §4.2); above all two server_name ones."""
    SNI_MALFORMED = "sni_malformed"
    """Lengths in server_name that do not add up."""
    SNI_EMPTY = "sni_empty"
    """No name in the list, or one of no bytes."""
    SNI_TWO_NAMES = "sni_two_names"
    """More than one name in the list (RFC 6066 §3 allows one of each type, and has one type)."""
    SNI_TYPE = "sni_type"
    """A name that is not a host_name."""
    SNI_NUL = "sni_nul"
    """A NUL byte in the name."""
    SNI_NOT_ASCII = "sni_not_ascii"
    """A byte above 0x7f in the name: U-labels are sent as A-labels (RFC 6066 §3)."""
    ALPN = "alpn"
    """Lengths that do not add up, no protocol, or one of no bytes (RFC 7301 §3.1)."""
    SUPPORTED_VERSIONS = "supported_versions"
    """Lengths that do not add up, or no version (RFC 8446 §4.2.1)."""
    SIGNATURE_ALGORITHMS = "signature_algorithms"
    """Lengths that do not add up, or no algorithm (RFC 8446 §4.2.3)."""
    ECH = "ech"
    """Neither an outer nor an inner ECHClientHello (RFC 9849 §5)."""


_ALERTS = {
    HelloReason.NOT_TLS: None,
    HelloReason.SSL2: _PROTOCOL_VERSION,
    HelloReason.NOT_HANDSHAKE: _UNEXPECTED_MESSAGE,
    HelloReason.NOT_CLIENT_HELLO: _UNEXPECTED_MESSAGE,
    HelloReason.RECORD_EMPTY: _UNEXPECTED_MESSAGE,
    HelloReason.RECORD_TOO_LONG: _RECORD_OVERFLOW,
    HelloReason.RECORD_INTERLEAVED: _UNEXPECTED_MESSAGE,
    HelloReason.RECORD_TRAILING: _UNEXPECTED_MESSAGE,
    HelloReason.VERSION: _PROTOCOL_VERSION,
    HelloReason.COMPRESSION_METHODS: _ILLEGAL_PARAMETER,
    HelloReason.EXTENSION_DUPLICATE: _ILLEGAL_PARAMETER,
    HelloReason.SNI_TWO_NAMES: _ILLEGAL_PARAMETER,
    HelloReason.SNI_TYPE: _UNRECOGNIZED_NAME,
    HelloReason.SNI_NUL: _UNRECOGNIZED_NAME,
    HelloReason.SNI_NOT_ASCII: _UNRECOGNIZED_NAME,
}


class HelloError(Exception):
    """Bytes that are no ClientHello, whatever follows them.

    Args:
        reason: Why.
    """

    def __init__(self, reason: HelloReason) -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def alert(self) -> int | None:
        """The AlertDescription that it deserves (RFC 8446 §6.2); None if the client isn't TLS."""
        return _ALERTS.get(self.reason, _DECODE_ERROR)

    def __str__(self) -> str:
        return f"no ClientHello: {self.reason.value}"
