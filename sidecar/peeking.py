"""What a client's first bytes say: which protocol it speaks, and for which host."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from sidecar.addresses import parse_authority, parse_host
from sidecar.errors import AddressError
from sidecar.flow import HostSource, Protocol
from sidecar.wire.client_hello import ClientHello, ClientHelloReader, HelloError, HelloReason
from sidecar.wire.http_head import HttpHead, HttpHeadError, HttpHeadReader, HttpHeadReason
from sidecar.wire.ja4 import ja4

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.addresses import HostName, IPAddress
    from sidecar.flow import Flow

__all__ = ["Peek"]

# RFC 9110 §4.2.1. The port is not judged: the one that was dialled is.
_HTTP_PORT = 80
# The client speaks no TLS at all, which is no fault.
_OTHER_THAN_TLS = frozenset({HelloReason.NOT_TLS})

# Bytes of a record's header, which tell whether it is TLS; none later than these are
# ever given to the other reader, so no more need to be kept.
_TELLING = 5

# Clients ask for the same names again: these many, each with its canonical form, no
# longer than names are, in half a MiB.
_MAX_KEPT = 254
_kept_host = lru_cache(1024)(parse_host)


class Peek:
    """Reads a client's first bytes into its flow's facts.

    Args:
        flow: Gains protocol, host, host_from, alpn, ja4, ech, problem and to_proxy.
    """

    __slots__ = ("_flow", "_head", "_hello", "_seen")

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._hello: ClientHelloReader | None = ClientHelloReader()
        self._head: HttpHeadReader | None = None
        # What the hello's reader has seen while it might still have been TLS.
        self._seen = b""

    def feed(self, data: bytes) -> bool:
        """Read on.

        Args:
            data: What follows in the stream; empty for its end.

        Returns:
            Whether the facts are final: everything is said, or nothing will be.
        """
        if not data:
            return True
        if self._hello is not None:
            try:
                hello = self._hello.feed(data)
            except HelloError as error:
                return self._no_hello(error, self._seen + data)
            if hello is None:
                if len(self._seen) < _TELLING:
                    self._seen += data
                self._flow.protocol = Protocol.TLS
                return False
            self._take_hello(hello)
            return True
        return self._read_head(data)

    def _no_hello(self, error: HelloError, data: bytes) -> bool:
        self._hello = None
        self._seen = b""
        if error.reason not in _OTHER_THAN_TLS:
            self._flow.protocol = Protocol.TLS
            self._flow.problem = f"hello_{error.reason.value}"
            return True
        self._flow.protocol = Protocol.TCP
        self._head = HttpHeadReader()
        return self._read_head(data)

    def _take_hello(self, hello: ClientHello) -> None:
        flow = self._flow
        flow.protocol = Protocol.TLS
        flow.alpn = hello.alpn
        flow.ja4 = ja4(hello)
        flow.ech = hello.ech
        if hello.sni is not None:
            short = len(hello.sni) <= _MAX_KEPT
            self._name(hello.sni, HostSource.SNI, _kept_host if short else parse_host)

    def _read_head(self, data: bytes) -> bool:
        head = self._head
        if head is None:
            return True
        try:
            request = head.feed(data)
        except HttpHeadError as error:
            if error.reason is not HttpHeadReason.NOT_HTTP:
                self._flow.protocol = Protocol.HTTP
                self._flow.problem = f"http_{error.reason.value}"
            return True
        if request is None:
            return False
        self._flow.protocol = Protocol.HTTP
        self._take_head(request)
        return True

    def _take_head(self, request: HttpHead) -> None:
        if request.host is not None:
            host = self._name(request.host, HostSource.HOST, _host_of_authority)
            if request.to_proxy and host is not None:
                self._flow.to_proxy = str(host)

    def _name(
        self, text: bytes, source: HostSource, parse: Callable[[bytes], HostName | IPAddress]
    ) -> HostName | IPAddress | None:
        try:
            host = parse(text)
        except AddressError:
            self._flow.problem = "invalid_host"
            return None
        # An address is no name: the flow is judged by the address that it dialled.
        if isinstance(host, str):
            self._flow.host = host
            self._flow.host_from = source
        return host


def _host_of_authority(text: bytes) -> HostName | IPAddress:
    return parse_authority(text, default_port=_HTTP_PORT).host
