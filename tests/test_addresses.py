from __future__ import annotations

import socket
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.addresses import (
    SocketAddress,
    pack,
    parse_authority,
    parse_host,
    parse_ip,
    parse_port,
    unwrap_mapped,
)
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


# What is no host, and a word of the reason (CASES §1).
NO_HOSTS = [
    # H1
    ("127.0.0.1\x00.allowed.com", "character"),
    ("allowed.com\x00", "character"),
    ("allowed.com\n", "character"),
    (" allowed.com", "character"),
    ("allowed com", "character"),
    ("\x7f.com", "character"),
    # H2, H3
    *(
        (text, "ends in a number")
        for text in (
            *("127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1"),
            *("017700000001", "127.0.0.01", "0", "999", "1.1", "2852039166", "0xA9FEA9FE"),
            *("0251.0376.0251.0376", "127.0.0.1.", "127.0.0.256", "1.2.3.4.5", "a.0x", "a.0X1f"),
            *("example.1", "example.1.", "0x", "127.0.0.0x1"),
        )
    ),
    # H4
    ("\uff11\uff12\uff17.0.0.1", "A-label"),
    ("127\u30020\u30020\u30021", "A-label"),
    ("\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3", "A-label"),
    ("b\u00fccher.example", "A-label"),
    ("\u212a.example", "A-label"),
    ("\udcff", "A-label"),
    # H5
    ("", "no host"),
    (".", "empty label"),
    ("..", "empty label"),
    ("allowed.com..", "empty label"),
    (".allowed.com", "empty label"),
    ("allowed..com", "empty label"),
    # H6
    ("[evil.com]", "brackets"),
    ("[127.0.0.1]", "brackets"),
    ("[]", "brackets"),
    ("[::1", "brackets"),
    ("::1]", "brackets"),
    ("[[::1]]", "brackets"),
    ("[::1].", "brackets"),
    ("[:::1]", "not an IP address"),
    ("12345::", "not an IP address"),
    ("::1%lo", "zone"),
    ("[::1%25eth0]", "zone"),
    ("fe80::1%1", "zone"),
    # H7
    ("user@allowed.com", "character"),
    ("allowed.com@evil", "character"),
    ("allowed.com#@evil", "character"),
    ("allowed.com\\@evil", "character"),
    ("evil?.allowed.com", "character"),
    ("a/b", "character"),
    ("a:1", "character"),
    ("*.allowed.com", "character"),
    ("a%2eb", "character"),
    # H9
    ("a" * 64, "longer than 63"),
    (f"x.{'a' * 64}.com", "longer than 63"),
    (".".join(["a" * 49] * 5) + ".abcde", "longer than 253"),
    ("a." * 127 + "a", "longer than 253"),
    ("-a.com", "hyphen"),
    ("a-.com", "hyphen"),
    ("a.-", "hyphen"),
]

_label = st.from_regex(r"[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,10}[a-zA-Z0-9_])?", fullmatch=True)
names = st.builds(
    lambda labels, last: ".".join([*labels, last]),
    st.lists(_label, max_size=5),
    st.from_regex(r"[a-zA-Z_]([a-zA-Z0-9_-]{0,10}[a-zA-Z0-9_])?", fullmatch=True),
)


class TestParseHost:
    @pytest.mark.parametrize(("text", "reason"), NO_HOSTS)
    def test_refused(self, text: str, reason: str) -> None:
        """What two programs could read differently is refused, with its reason."""
        with pytest.raises(AddressError) as caught:
            parse_host(text)
        assert text == caught.value.text
        assert reason in caught.value.problem

    @pytest.mark.parametrize(
        ("expected", "text"),
        [
            ("allowed.com", "Allowed.COM"),
            ("allowed.com", "allowed.com."),
            ("localhost", "localhost"),
            ("_dmarc.x", "_dmarc.x"),
            ("a_b.example", "a_b.example"),
            ("xn--bcher-kva.example", "XN--bcher-kva.example"),
            # Not valid Punycode, but well-formed: a name that nobody has.
            ("xn--a", "xn--a"),
            ("r3---sn-x.example", "r3---sn-x.example"),
            ("example.3com", "example.3com"),
            ("127.0.0.1.nip.io", "127.0.0.1.nip.io"),
            ("0x7f.example", "0x7f.example"),
            ("example.0xg", "example.0xg"),
            ("a" * 63, "a" * 63),
            (".".join(["a" * 49] * 5) + ".abc", ".".join(["A" * 49] * 5) + ".abc."),
        ],
    )
    def test_names(self, expected: str, text: str) -> None:
        """A name becomes lower-case, without the root's dot."""
        assert expected == parse_host(text)
        assert expected == parse_host(text.encode())

    @pytest.mark.parametrize(
        ("expected", "text"),
        [
            ("192.0.2.1", "192.0.2.1"),
            ("::1", "::1"),
            ("::1", "[::1]"),
            ("2001:db8::1", "[2001:DB8:0::1]"),
            ("127.0.0.1", "[::ffff:127.0.0.1]"),
            ("127.0.0.1", "::ffff:7f00:1"),
        ],
    )
    def test_addresses(self, expected: str, text: str) -> None:
        """An address becomes a value, with or without the brackets of IPv6."""
        assert ip_address(expected) == parse_host(text)
        assert ip_address(expected) == parse_host(text.encode())

    @given(name=names)
    def test_any_name(self, name: str) -> None:
        """Every well-formed name is accepted, and its canonical form is its own."""
        host = parse_host(name)
        assert name.lower() == host
        assert host == parse_host(str(host))
        assert host == parse_host(f"{host}.")

    @given(text=st.one_of(st.text(max_size=30), st.text("aA1-._x0[]:%@\x00", max_size=30)))
    @example(text="1.")
    @example(text="a.1\n")
    def test_any_text(self, text: str) -> None:
        """Any text is a canonical name, an address or an AddressError."""
        try:
            host = parse_host(text)
        except AddressError as error:
            assert error.problem  # noqa: PT017 - the other outcomes are as good
            return
        assert host == parse_host(str(host))
        if isinstance(host, str):
            assert set(host) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")

    @given(data=st.binary(max_size=30))
    def test_any_bytes(self, data: bytes) -> None:
        """Bytes mean what they mean as ASCII; others are refused."""
        try:
            host = parse_host(data)
        except AddressError:
            return
        assert host == parse_host(data.decode("ascii"))

    @given(text=st.text("0123456789abcdefxX.-_", min_size=1, max_size=20))
    @example(text="0x7f.1")
    def test_names_are_no_addresses_to_libc(self, text: str) -> None:
        """What is accepted as a name is no address to the C library."""
        try:
            host = parse_host(text)
        except AddressError:
            return
        if isinstance(host, str):
            with pytest.raises(OSError):  # noqa: PT011 - inet_aton says no more
                socket.inet_aton(host)


class TestParseAuthority:
    @pytest.mark.parametrize(
        ("host", "port", "text"),
        [
            ("example.org", 443, "Example.ORG.:443"),
            ("192.0.2.1", 80, "192.0.2.1:80"),
            ("::1", 1, "[::1]:1"),
            ("127.0.0.1", 65535, "[::ffff:127.0.0.1]:65535"),
        ],
    )
    def test_accepted(self, host: str, port: int, text: str) -> None:
        """A host and a port, text or bytes; writing it gives the canonical form."""
        for given_text in (text, text.encode()):
            authority = parse_authority(given_text)
            assert (host, port) == (str(authority.host), authority.port)
        assert authority == parse_authority(str(authority))

    @pytest.mark.parametrize("host", ["example.org", "192.0.2.1", "[::1]"])
    def test_default_port(self, host: str) -> None:
        """The port may be left out where there is a default."""
        assert 80 == parse_authority(host, 80).port
        assert 81 == parse_authority(f"{host}:81", 80).port
        with pytest.raises(AddressError, match="no port"):
            parse_authority(host)

    @pytest.mark.parametrize(
        "text",
        [
            *(f"{host}:80" for host, _ in NO_HOSTS),
            *(f"example.org:{port}" for port in BAD_PORTS),
            *("::1:80", "::1", "http://example.org:80", "example.org:80/", "a:b@c:80", ":80"),
            *("[::1]80", "[::1]]:80", "[::1]:80:80"),
        ],
    )
    @pytest.mark.parametrize("default", [None, 80])
    def test_refused(self, text: str, default: int | None) -> None:
        """Bad hosts, bad ports, and whatever else a URL may have."""
        with pytest.raises(AddressError):
            parse_authority(text, default)


class TestPack:
    @given(address=st.ip_addresses())
    def test_octets(self, address: IPv4Address | IPv6Address) -> None:
        """An address in octets, a mapped one as IPv4."""
        assert unwrap_mapped(address).packed == pack(str(address))

    @pytest.mark.parametrize("text", ["", "a", "1.1", "::1%lo", "1.1.1.1\x00", "localhost"])
    def test_refused(self, text: str) -> None:
        """Anything else is an AddressError."""
        with pytest.raises(AddressError):
            pack(text)
