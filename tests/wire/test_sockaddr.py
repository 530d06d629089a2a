from __future__ import annotations

import ctypes
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.wire.sockaddr import (
    SOCKADDR_IN6_SIZE,
    SOCKADDR_IN_SIZE,
    decode_sockaddr_in,
    decode_sockaddr_in6,
)

ports = st.integers(min_value=0, max_value=65535)


def kernel_sockaddr(bound: socket.socket) -> bytes:
    """The bytes that getsockname(2) itself writes."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(128)
    size = ctypes.c_uint(len(buffer))
    if libc.getsockname(bound.fileno(), buffer, ctypes.byref(size)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer.raw[: size.value]


def sockaddr_in(port: int, host: IPv4Address) -> bytes:
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, host.packed)


def sockaddr_in6(port: int, host: IPv6Address, flow_label: int = 0, scope: int = 0) -> bytes:
    return (
        struct.pack("=H", socket.AF_INET6)
        + struct.pack("!HI16s", port, flow_label, host.packed)
        + struct.pack("=I", scope)
    )


class TestKernel:
    def test_ipv4(self) -> None:
        """What the kernel writes for an IPv4 socket is read as Python reads it."""
        with socket.socket(socket.AF_INET) as bound:
            bound.bind(("127.1.2.3", 0))
            data = kernel_sockaddr(bound)
            host, port = bound.getsockname()
        assert SOCKADDR_IN_SIZE == len(data)
        assert (IPv4Address(host), port) == decode_sockaddr_in(data)

    def test_ipv6(self) -> None:
        """What the kernel writes for an IPv6 socket is read as Python reads it."""
        with socket.socket(socket.AF_INET6) as bound:
            bound.bind(("::1", 0))
            data = kernel_sockaddr(bound)
            host, port, *_ = bound.getsockname()
        assert SOCKADDR_IN6_SIZE == len(data)
        assert (IPv6Address(host), port) == decode_sockaddr_in6(data)


class TestDecode:
    @given(port=ports, host=st.ip_addresses(v=4))
    def test_ipv4(self, port: int, host: IPv4Address) -> None:
        """Every address and port survives."""
        assert (host, port) == decode_sockaddr_in(sockaddr_in(port, host))

    @given(
        port=ports,
        host=st.ip_addresses(v=6),
        flow_label=st.integers(min_value=0, max_value=0xFFFFF),
        scope=st.integers(min_value=0, max_value=2**32 - 1),
    )
    def test_ipv6(self, port: int, host: IPv6Address, flow_label: int, scope: int) -> None:
        """Every address and port survives, whatever flow label and scope are."""
        data = sockaddr_in6(port, host, flow_label, scope)
        decoded_host, decoded_port = decode_sockaddr_in6(data)
        assert (host, port) == (decoded_host, decoded_port)
        assert decoded_host.scope_id is None

    @given(data=st.binary(max_size=40))
    def test_any_bytes(self, data: bytes) -> None:
        """Any bytes are an address or a ValueError."""
        for decode in (decode_sockaddr_in, decode_sockaddr_in6):
            try:
                decode(data)
            except ValueError:
                continue
            assert len(data) in {SOCKADDR_IN_SIZE, SOCKADDR_IN6_SIZE}

    def test_every_other_length(self) -> None:
        """Every prefix, and every byte too many, is refused."""
        four, six = sockaddr_in(80, IPv4Address(1)), sockaddr_in6(80, IPv6Address(1))
        for size in {*range(60)} - {SOCKADDR_IN_SIZE}:
            with pytest.raises(ValueError, match="sockaddr_in"):
                decode_sockaddr_in((four + bytes(60))[:size])
        for size in {*range(60)} - {SOCKADDR_IN6_SIZE}:
            with pytest.raises(ValueError, match="sockaddr_in6"):
                decode_sockaddr_in6((six + bytes(60))[:size])

    def test_other_family(self) -> None:
        """A right length with a wrong family is refused."""
        with pytest.raises(ValueError, match="sockaddr_in"):
            decode_sockaddr_in(bytes(SOCKADDR_IN_SIZE))
        with pytest.raises(ValueError, match="sockaddr_in6"):
            decode_sockaddr_in6(struct.pack("=H", socket.AF_INET) + bytes(SOCKADDR_IN6_SIZE - 2))
