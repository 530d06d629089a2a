from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.addresses import pack
from sidecar.policy.ranges import AddressClass, classify, common_class, deny_classes, embedded

PUBLIC = AddressClass.PUBLIC
PRIVATE = AddressClass.PRIVATE
LOOPBACK = AddressClass.LOOPBACK
LINK_LOCAL = AddressClass.LINK_LOCAL
METADATA = AddressClass.METADATA
MULTICAST = AddressClass.MULTICAST
RESERVED = AddressClass.RESERVED

# First and last address of each range, and the neighbours outside (CASES §2).
CASES = [
    # R1
    *((LOOPBACK, text) for text in ("0.0.0.0", "127.0.0.0", "127.255.255.255")),
    *((RESERVED, text) for text in ("0.0.0.1", "0.255.255.255")),
    *((PUBLIC, text) for text in ("1.0.0.0", "9.255.255.255", "11.0.0.0", "126.255.255.255")),
    *((PRIVATE, text) for text in ("10.0.0.0", "10.255.255.255")),
    *((PRIVATE, text) for text in ("100.64.0.0", "100.64.0.1", "100.127.255.255")),
    *((PUBLIC, text) for text in ("100.63.255.255", "100.128.0.0", "128.0.0.0")),
    *((LINK_LOCAL, text) for text in ("169.254.0.0", "169.254.169.253", "169.254.255.255")),
    *((PUBLIC, text) for text in ("169.253.255.255", "169.255.0.0")),
    *((PRIVATE, text) for text in ("172.16.0.0", "172.31.255.255")),
    *((PUBLIC, text) for text in ("172.15.255.255", "172.32.0.0")),
    *((RESERVED, text) for text in ("192.0.0.0", "192.0.0.8", "192.0.0.255")),
    *((RESERVED, text) for text in ("192.0.2.1", "198.51.100.7", "203.0.113.9", "192.88.99.1")),
    *((PUBLIC, text) for text in ("192.0.1.0", "192.0.3.0", "192.31.196.1", "192.175.48.1")),
    *((PRIVATE, text) for text in ("192.168.0.0", "192.168.255.255")),
    *((PUBLIC, text) for text in ("192.167.255.255", "192.169.0.0")),
    *((RESERVED, text) for text in ("198.18.0.0", "198.19.255.255")),
    *((PUBLIC, text) for text in ("198.17.255.255", "198.20.0.0", "223.255.255.255")),
    *((MULTICAST, text) for text in ("224.0.0.0", "224.0.0.1", "239.255.255.255")),
    *((RESERVED, text) for text in ("240.0.0.0", "255.255.255.255")),
    # R2
    *((LOOPBACK, text) for text in ("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1")),
    *((PRIVATE, text) for text in ("::10.0.0.1", "::ffff:10.0.0.1", "::ffff:0:10.0.0.1")),
    *((RESERVED, text) for text in ("::8.8.8.8", "::ffff:0:8.8.8.8", "::2", "100::1", "1::")),
    *((PUBLIC, text) for text in ("::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1")),
    *((METADATA, text) for text in ("64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::")),
    *((LOOPBACK, text) for text in ("64:ff9b::127.0.0.1", "2002:7f00:1::", "64:ff9b::")),
    *((PRIVATE, text) for text in ("64:ff9b::10.0.0.1", "2002:a00:1::1", "64:ff9b:1::8.8.8.8")),
    (RESERVED, "64:ff9b:2::1"),
    # Local-use NAT64 of 169.254.169.254 under a /96, /64, /56 and /48.
    *((METADATA, text) for text in ("64:ff9b:1::a9fe:a9fe", "64:ff9b:1:0:a9:fea9:fe00:0")),
    *((METADATA, text) for text in ("64:ff9b:1:a9:fe:a9fe::", "64:ff9b:1:a9fe:a9:fe00::")),
    # Teredo: server 65.54.227.120, client 192.0.2.45; server 8.8.8.8, client 8.8.4.4, then
    # a private client, then a metadata server.
    (RESERVED, "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    (PUBLIC, "2001:0:808:808:8000:0:f7f7:fbfb"),
    (PRIVATE, "2001:0:808:808:8000:0:f5ff:fffe"),
    (METADATA, "2001:0:a9fe:a9fe:8000:0:f7f7:fbfb"),
    *((RESERVED, text) for text in ("2001:1::1", "2001:20::1", "2001:db8::1", "3fff::1")),
    *((PUBLIC, text) for text in ("2001:200::", "2606:4700::1111", "3ffe::", "2620:4f:8000::1")),
    *((RESERVED, text) for text in ("1fff::1", "4000::1", "5f00::1", "fbff::1", "fe00::1")),
    *((PRIVATE, text) for text in ("fc00::", "fdff:ffff::1", "fec0::1", "feff::1")),
    *((LINK_LOCAL, text) for text in ("fe80::1", "febf::1")),
    *((MULTICAST, text) for text in ("ff00::", "ff02::1", "ffff::")),
    # R3
    *((METADATA, text) for text in ("169.254.169.254", "168.63.129.16", "100.100.100.200")),
    *((METADATA, text) for text in ("fd00:ec2::254", "fd20:ce::254", "192.0.0.192")),
    *((METADATA, text) for text in ("169.254.170.2", "::ffff:169.254.169.254")),
]


@pytest.mark.parametrize(("expected", "text"), CASES)
def test_class(expected: AddressClass, text: str) -> None:
    """Every range has its class, up to its edges and to what is embedded."""
    assert expected is classify(ip_address(text).packed)


@given(address=st.ip_addresses(v=4))
def test_ipv4_is_no_better_than_python_says(address: IPv4Address) -> None:
    """An IPv4 address that Python calls not global isn't public here."""
    if not address.is_global:
        assert PUBLIC is not classify(address.packed)


_FORMS = {
    "::ffff:0:0": 0,
    "64:ff9b::": 0,
    "2002::": 80,
}


@given(address=st.ip_addresses(v=4), form=st.sampled_from(sorted(_FORMS)))
def test_embedded_is_what_is_inside(address: IPv4Address, form: str) -> None:
    """A mapped, translated or 6to4 address has the class of its IPv4 address."""
    outer = IPv6Address(int(IPv6Address(form)) | int(address) << _FORMS[form])
    assert (address.packed,) == embedded(outer.packed)
    assert classify(address.packed) is classify(outer.packed)


@given(address=st.ip_addresses(v=6))
def test_public_is_global_unicast(address: IPv6Address) -> None:
    """Only 2000::/3, NAT64 and mapped addresses can be public."""
    if classify(address.packed) is PUBLIC:
        assert any(
            address in ip_network(each) for each in ("2000::/3", "64:ff9b::/96", "::ffff:0:0/96")
        )


@given(address=st.ip_addresses())
def test_deny_has_more(address: IPv4Address | IPv6Address) -> None:
    """What an allow rule's class has, a deny rule's class has."""
    assert classify(address.packed) in deny_classes(address.packed)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ({METADATA, LINK_LOCAL}, "169.254.169.254"),
        ({METADATA, PUBLIC}, "168.63.129.16"),
        ({METADATA, PRIVATE}, "fd00:ec2::254"),
        ({PRIVATE, RESERVED}, "64:ff9b::10.0.0.1"),
        ({PUBLIC, RESERVED}, "64:ff9b::8.8.8.8"),
        ({PUBLIC}, "8.8.8.8"),
    ],
)
def test_deny_classes(expected: set[AddressClass], text: str) -> None:
    """A deny rule catches a metadata address by its range, and all that is embedded."""
    assert expected == set(deny_classes(pack(text)))


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (PRIVATE, "10.1.0.0/16"),
        (PRIVATE, "10.0.0.0/8"),
        (None, "10.0.0.0/7"),
        (None, "169.254.0.0/16"),
        (PUBLIC, "8.8.8.0/24"),
        (PUBLIC, "2606::/16"),
        (None, "2000::/3"),
        (None, "2002:a00::/24"),
        (None, "64:ff9b::/96"),
        (PRIVATE, "fc00::/8"),
        (None, "0.0.0.0/0"),
    ],
)
def test_common_class(expected: AddressClass | None, text: str) -> None:
    """A network has a class if all of its addresses do."""
    assert expected is common_class(ip_network(text))
