"""ClientHellos made by hand: right ones, and ones with a single thing wrong."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "DEFAULT_SUITES",
    "alpn",
    "body",
    "ech",
    "extension",
    "hello",
    "host_name",
    "in_records",
    "message",
    "name_list",
    "server_name",
    "shorts",
]

DEFAULT_SUITES = (0x1301, 0x1302, 0xC02B)
RANDOM = bytes(range(32))


def shorts(*values: int, width: int = 2) -> bytes:
    """A vector of 16-bit values with its length in `width` bytes."""
    content = struct.pack(f"!{len(values)}H", *values)
    return len(content).to_bytes(width, "big") + content


def extension(kind: int, content: bytes = b"") -> bytes:
    return struct.pack("!HH", kind, len(content)) + content


def name_list(*entries: bytes) -> bytes:
    """The server_name extension with these entries."""
    entered = b"".join(entries)
    return extension(0, struct.pack("!H", len(entered)) + entered)


def host_name(name: bytes, kind: int = 0) -> bytes:
    """An entry of a ServerNameList."""
    return struct.pack("!BH", kind, len(name)) + name


def server_name(name: bytes) -> bytes:
    return name_list(host_name(name))


def alpn(*protocols: bytes) -> bytes:
    names = b"".join(bytes([len(name)]) + name for name in protocols)
    return extension(16, struct.pack("!H", len(names)) + names)


def ech(config_id: int, enc: bytes = b"e" * 32, payload: bytes = b"p" * 160) -> bytes:
    """An outer ECHClientHello (RFC 9849 §5)."""
    content = struct.pack("!BHHBH", 0, 1, 1, config_id, len(enc)) + enc
    return extension(0xFE0D, content + struct.pack("!H", len(payload)) + payload)


def body(
    *extensions: bytes,
    version: int = 0x0303,
    session: bytes = b"s" * 32,
    suites: Sequence[int] = DEFAULT_SUITES,
    compression: bytes = b"\x01\x00",
    tail: bytes | None = None,
) -> bytes:
    """A ClientHello without its header; `tail` in place of the extensions and their length."""
    entered = b"".join(extensions)
    if tail is None:
        tail = struct.pack("!H", len(entered)) + entered
    start = struct.pack("!H", version) + RANDOM + bytes([len(session)]) + session
    return start + shorts(*suites) + compression + tail


def message(content: bytes, kind: int = 1) -> bytes:
    """A handshake message."""
    return bytes([kind]) + len(content).to_bytes(3, "big") + content


def in_records(handshake: bytes, sizes: Iterable[int] = (), version: int = 0x0301) -> bytes:
    """Wrap a message in records: of these sizes, and one with what is left."""
    parts = []
    at = 0
    for size in sizes:
        if at >= len(handshake):
            break
        parts.append(handshake[at : at + size])
        at += size
    if at < len(handshake):
        parts.extend(handshake[start : start + 16384] for start in range(at, len(handshake), 16384))
    return b"".join(struct.pack("!BHH", 22, version, len(part)) + part for part in parts)


def hello(*extensions: bytes) -> bytes:
    """A right hello with these extensions, in one record."""
    return in_records(message(body(*extensions)))
