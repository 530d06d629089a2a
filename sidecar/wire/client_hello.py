"""Where in a stream the ClientHello is, however it is cut into segments and TLS records.

What it says is `sidecar.wire.hello_message`'s, what is wrong with it
`sidecar.wire.hello_errors`'s; the names that a user of the reader needs are here too.
"""

from __future__ import annotations

import struct

from sidecar.wire.hello_errors import HelloError, HelloReason
from sidecar.wire.hello_message import ClientHello, parse_client_hello

__all__ = ["MAX_HELLO_BYTES", "ClientHello", "ClientHelloReader", "HelloError", "HelloReason"]

MAX_HELLO_BYTES = 65_536
"""How much of a stream may be a ClientHello, record headers included.

Post-quantum key shares make hellos of 2 KiB, and no client is known to send one of
more than 16 KiB; TLS itself would allow 16 MiB, for each of as many clients as there are.
"""

# RFC 8446 §5.1: ContentType, and the greatest TLSPlaintext.length.
_HANDSHAKE = 22
_OTHER_TYPES = frozenset((20, 21, 23, 24))
_MAJOR_VERSION = 3
_RECORD_HEADER = 5
_MAX_RECORD = 1 << 14

# RFC 8446 §4.
_CLIENT_HELLO = 1
_HANDSHAKE_HEADER = 4

# Both headers: the record's type, version and length, the message's type and length.
_headers = struct.Struct("!BBBHBBH")

# RFC 5246 §E.2: a two-byte record header with the top bit set, msg_type, version.
_SSL2_HEADER = 0x80
_SSL2_TYPE = 2
_SSL2_VERSION = 3


class ClientHelloReader:
    """Reads a ClientHello from the beginning of a stream, which the caller keeps.

    An outcome is reached with the first byte that allows no other one, and does not
    change. Each byte is looked at once.

    Attributes:
        size: How many bytes of the stream are read; with the outcome ClientHello where
            its last record ends. What follows belongs to whoever comes next.
    """

    __slots__ = ("_header", "_hello", "_left", "_message", "_need", "_reason", "size")

    def __init__(self) -> None:
        self.size = 0
        self._header = b""  # of the record that begins; empty within one
        self._left = 0  # bytes that the current record still has
        self._message = bytearray()  # handshake header and all
        self._need = 0  # the message's length, once its header is there
        self._hello: ClientHello | None = None
        self._reason: HelloReason | None = None

    def feed(self, data: bytes) -> ClientHello | None:
        """Read on.

        Args:
            data: What follows in the stream; not kept.

        Returns:
            The hello, now and ever after; None if more is needed.

        Raises:
            HelloError: The stream doesn't begin with a ClientHello; now and ever after.
        """
        if self._reason is not None:
            raise HelloError(self._reason)
        if self._hello is None:
            try:
                if self.size or not self._read_whole(data):
                    self._read(data)
            except HelloError as error:
                self._reason = error.reason
                self._header, self._message = b"", bytearray()
                raise
        return self._hello

    def _read_whole(self, data: bytes) -> bool:
        """Read a stream that begins as nearly all do: one record with one message is there.

        Nothing but the speed is different; of all that is otherwise `_read` sees to.
        """
        if len(data) < _headers.size:
            return False
        kind, major, _, length, message, zero, rest = _headers.unpack_from(data)
        end = _RECORD_HEADER + length
        if (
            kind != _HANDSHAKE
            or major != _MAJOR_VERSION
            or length > _MAX_RECORD
            or message != _CLIENT_HELLO
            or zero
            or rest + _HANDSHAKE_HEADER != length
            or end > len(data)
        ):
            return False
        self._hello = parse_client_hello(data[_headers.size : end])
        self.size = end
        return True

    def _read(self, data: bytes) -> None:
        start = self.size
        end = min(len(data), MAX_HELLO_BYTES - start)
        at = 0
        while at < end:
            if self._left:
                taken = min(self._left, end - at)
                self._message += data[at : at + taken]
                self._left -= taken
                at += taken
                self.size = start + at
                if self._complete():
                    return
            else:
                taken = min(_RECORD_HEADER - len(self._header), end - at)
                self._header += data[at : at + taken]
                at += taken
                self.size = start + at
                self._begin_record()
        if self.size == MAX_HELLO_BYTES:
            raise HelloError(HelloReason.TOO_LARGE)

    def _begin_record(self) -> None:
        """Judge what is there of a record's header; enter the record if that is all."""
        header = self._header
        if self._message:
            if header[0] != _HANDSHAKE or (len(header) > 1 and header[1] != _MAJOR_VERSION):
                raise HelloError(HelloReason.RECORD_INTERLEAVED)
        else:
            _check_start(header)
        if len(header) < _RECORD_HEADER:
            return
        length = header[3] << 8 | header[4]
        if not length:
            raise HelloError(HelloReason.RECORD_EMPTY)
        if length > _MAX_RECORD:
            raise HelloError(HelloReason.RECORD_TOO_LONG)
        self._left = length
        self._header = b""

    def _complete(self) -> bool:
        """Judge what is there of the message; read it if that is all."""
        message = self._message
        if not self._need:
            if message[0] != _CLIENT_HELLO:
                raise HelloError(HelloReason.NOT_CLIENT_HELLO)
            if len(message) < _HANDSHAKE_HEADER:
                return False
            self._need = _HANDSHAKE_HEADER + (message[1] << 16 | message[2] << 8 | message[3])
            if self._need + _RECORD_HEADER > MAX_HELLO_BYTES:
                raise HelloError(HelloReason.TOO_LARGE)
        if len(message) < self._need:
            return False
        if self._left or len(message) > self._need:
            raise HelloError(HelloReason.RECORD_TRAILING)
        self._hello = parse_client_hello(bytes(memoryview(message)[_HANDSHAKE_HEADER:]))
        self._message = bytearray()
        return True


def _check_start(header: bytes) -> None:
    """Judge the first one to five bytes of a stream, in their order.

    Raises:
        HelloError: They are not those of a handshake record.
    """
    first = header[0]
    if first & _SSL2_HEADER:
        _check_ssl2(header)
    elif first == _HANDSHAKE or first in _OTHER_TYPES:
        if len(header) > 1:
            if header[1] != _MAJOR_VERSION:
                raise HelloError(HelloReason.NOT_TLS)
            if first != _HANDSHAKE:
                raise HelloError(HelloReason.NOT_HANDSHAKE)
    else:
        raise HelloError(HelloReason.NOT_TLS)


def _check_ssl2(header: bytes) -> None:
    """Judge the first bytes of a stream whose first bit is set: not TLS, SSLv2 perhaps."""
    expected: tuple[tuple[int, ...], ...] = ((_CLIENT_HELLO,), (0, _SSL2_VERSION))
    for byte, allowed in zip(header[2:], expected, strict=False):
        if byte not in allowed:
            raise HelloError(HelloReason.NOT_TLS)
    if len(header) == _RECORD_HEADER:
        version = header[3] << 8 | header[4]
        known = version == _SSL2_TYPE or header[3] == _SSL2_VERSION
        raise HelloError(HelloReason.SSL2 if known else HelloReason.NOT_TLS)
