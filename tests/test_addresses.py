from __future__ import annotations

import socket
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.addresses import SocketAddress, parse_ip, parse_port, unwrap_mapped
from sidecar.errors import AddressError

# Spellings that getaddrinfo or another library takes for an address (CASES §1).
LEGACY = [
    # H2: all of them 127.0.0.1 to glibc.
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "127.0.0.01",
    # H3: 0.0.0.0, 0.0.3.231, 1.0.0.1, and 169.254.169.254 three times.
    "0",
    "999",
    "1.1",
    "2852039166",
    "0xA9FEA9FE",
    "0251.0376.0251.0376",
    # H4: digits, full stops and letters that IDNA maps to ASCII.
    "\uff11\uff12\uff17.0.0.1",
    "127\u30020\u30020\u30021",
    "\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3",
    "\u0661.1.1.1",
    # H1: a C string ends at NUL.
    "127.0.0.1\x00.allowed.com",
    "127.0.0.1\x00",
    # H6: brackets are no part of an address; zones name an interface, not a host.
    "[evil.com]",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "::1%lo",
    "::1%25eth0",
    "[::1%25eth0]",
    # Others that look right at a glance.
    "",
    " 127.0.0.1",
    "127.0.0.1 ",
    "127.0.0.1\n",
    "127.0.0.1/32",
    "127.0.0.256",
    "127.0.0.1.",
    "127.0.0.1.nip.io",
    "localhost",
    "::1/128",
    ":::1",
    "::1::",
    "12345::",
    "::ffff:127.1",
]

# CASES §1 H10, and more of the kind.
BAD_PORTS = [
    "",
    "0",
    "00000",
    "65536",
    "99999",
    "4294967376",
    "000080",
    "-1",
    "+80",
    "0x50",
    " 80",
    "80 ",
    "80\n",
    "80,443",
    "8_0",
    "8.0",
    "1e3",
    "\uff18\uff10",
    "\u0668\u0660",
    "²",
    "80\x00",
]

ports = st.integers(min_value=1, max_value=65535)


class TestParseIP:
    @pytest.mark.parametrize("text", LEGACY)
    def test_refused(self, text: str) -> None:
        """What is not the canonical spelling of an address is refused, and quoted."""
        with pytest.raises(AddressError) as caught:
            parse_ip(text)
        assert text == caught.value.text

    @pytest.mark.parametrize(
        ("expected", "text"),
        [
            ("192.0.2.1", "192.0.2.1"),
            ("0.0.0.0", "0.0.0.0"),
            ("2001:db8::1", "2001:DB8:0:0:0:0:0:1"),
            ("::", "0:0:0:0:0:0:0:0"),
            ("127.0.0.1", "::ffff:127.0.0.1"),
            ("127.0.0.1", "::FFFF:7f00:1"),
            ("127.0.0.1", "0:0:0:0:0:ffff:7f00:0001"),
            # Not mapped but compatible (deprecated), and translated: other addresses.
            ("::7f00:1", "::127.0.0.1"),
            ("64:ff9b::7f00:1", "64:ff9b::127.0.0.1"),
        ],
    )
    def test_one_form(self, expected: str, text: str) -> None:
        """Every spelling of one address becomes the same value; mapped is IPv4."""
        assert expected == str(parse_ip(text))

    @given(address=st.ip_addresses())
    def test_round_trip(self, address: IPv4Address | IPv6Address) -> None:
        """The text of an address is read as that address, also written out in full."""
        assert unwrap_mapped(address) == parse_ip(str(address))
        if isinstance(address, IPv6Address):
            assert unwrap_mapped(address) == parse_ip(address.exploded)

    @given(text=st.text(st.sampled_from("0123456789abcdefxX.:%[]/ \n\x00\uff11"), max_size=24))
    @example(text="1.1.1.1%")
    def test_never_by_libc(self, text: str) -> None:
        """What is accepted means to the C library what it means to us."""
        try:
            address = parse_ip(text)
        except AddressError:
            return
        info = socket.getaddrinfo(text, 1, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        assert {address} == {unwrap_mapped(ip_address(entry[4][0])) for entry in info}


class TestUnwrapMapped:
    @given(address=st.ip_addresses(v=4))
    def test_mapped(self, address: IPv4Address) -> None:
        """An IPv4-mapped address is unwrapped; an IPv4 address stays."""
        assert address == unwrap_mapped(IPv6Address(f"::ffff:{address}"))
        assert address == unwrap_mapped(address)

    @pytest.mark.parametrize("text", ["::", "::1", "::7f00:1", "::ffff:0:7f00:1", "64:ff9b::1"])
    def test_others(self, text: str) -> None:
        """Other IPv6 addresses stay what they are."""
        assert IPv6Address(text) == unwrap_mapped(IPv6Address(text))


class TestParsePort:
    @pytest.mark.parametrize("text", BAD_PORTS)
    def test_refused(self, text: str) -> None:
        """What is not one to five ASCII digits, or out of range, is refused."""
        with pytest.raises(AddressError, match="from 1 to 65535"):
            parse_port(text)

    @given(port=ports)
    @example(port=1)
    @example(port=65535)
    def test_accepted(self, port: int) -> None:
        """Every port's decimal text is that port."""
        assert port == parse_port(str(port))


class TestSocketAddress:
    @given(ip=st.ip_addresses(), port=ports)
    def test_round_trip(self, ip: IPv4Address | IPv6Address, port: int) -> None:
        """What str writes, parse reads."""
        address = SocketAddress(str(unwrap_mapped(ip)), port)
        assert address == SocketAddress.parse(str(address))
        assert (unwrap_mapped(ip), port) == (address.ip, address.port)

    @pytest.mark.parametrize(
        ("expected", "text"),
        [
            (SocketAddress("192.0.2.1", 80), "192.0.2.1:80"),
            (SocketAddress("2001:db8::1", 80), "[2001:DB8::1]:80"),
            (SocketAddress("127.0.0.1", 80), "[::ffff:127.0.0.1]:80"),
        ],
    )
    def test_parse(self, expected: SocketAddress, text: str) -> None:
        """IPv4 stands bare, IPv6 in brackets, and each becomes canonical."""
        assert expected == SocketAddress.parse(text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            ":",
            "192.0.2.1",
            ":80",
            "192.0.2.1:",
            "192.0.2.1:80:80",
            "2001:db8::1:80",
            "[2001:db8::1]",
            "[2001:db8::1]80",
            "[2001:db8::1",
            "2001:db8::1]:80",
            "[[::1]]:80",
            "[]:80",
            "[192.0.2.1]:80",
            "[localhost]:80",
            "localhost:80",
            "user@192.0.2.1:80",
            "192.0.2.1:80\n",
            *(f"{host}:80" for host in LEGACY if not host.startswith("[::")),
            *(f"192.0.2.1:{port}" for port in BAD_PORTS),
            *(f"[::1]:{port}" for port in BAD_PORTS),
        ],
    )
    def test_refused(self, text: str) -> None:
        """Anything else is an AddressError."""
        with pytest.raises(AddressError):
            SocketAddress.parse(text)

    @given(text=st.text(max_size=40))
    def test_any_text(self, text: str) -> None:
        """Any text is an address or an AddressError."""
        try:
            address = SocketAddress.parse(text)
        except AddressError:
            return
        assert address == SocketAddress.parse(str(address))

    @pytest.mark.parametrize(
        ("expected", "sockaddr"),
        [
            ("192.0.2.1:80", ("192.0.2.1", 80)),
            ("192.0.2.1:80", ("::ffff:192.0.2.1", 80, 0, 0)),
            ("[::ffff:0:c000:201]:80", ("::ffff:0:c000:201", 80, 0, 0)),
            ("[::1]:0", ("::1", 0, 0, 0)),
            ("[fe80::1]:80", ("fe80::1%eth0", 80, 0, 2)),
        ],
    )
    def test_from_kernel(
        self, expected: str, sockaddr: tuple[str, int] | tuple[str, int, int, int]
    ) -> None:
        """What the kernel says becomes canonical: mapped unwrapped, the zone dropped."""
        assert expected == str(SocketAddress.from_kernel(sockaddr))

    def test_from_a_dual_stack_socket(self) -> None:
        """An IPv4 client of a dual-stack listener is an IPv4 address."""
        with (
            closing(
                socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
            ) as s,
            closing(socket.create_connection(("127.0.0.1", s.getsockname()[1]))) as client,
        ):
            connection, peer = s.accept()
            connection.close()
            assert SocketAddress(*client.getsockname()) == SocketAddress.from_kernel(peer)

    @pytest.mark.parametrize(
        ("expected", "host"), [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "::1")]
    )
    def test_family(self, expected: socket.AddressFamily, host: str) -> None:
        """The family is the address's."""
        assert expected == SocketAddress(host, 80).family

    def test_is_a_value(self) -> None:
        """Equal addresses are equal, hash alike and can't be changed."""
        address = SocketAddress("192.0.2.1", 80)
        assert {address} == {SocketAddress("192.0.2.1", 80)}
        assert address != SocketAddress("192.0.2.1", 81)
        with pytest.raises(AttributeError):
            address.port = 81  # type: ignore[misc]
