from __future__ import annotations

import random
from dataclasses import replace

import pytest
from wire.capture_hellos import CLIENTS, load
from wire.hello_maker import alpn, body, extension, in_records, message, server_name, shorts

from sidecar.wire.client_hello import ClientHello, ClientHelloReader
from sidecar.wire.hello_message import GREASE
from sidecar.wire.ja4 import ja4


def codes(text: str) -> list[int]:
    return [int(code, 16) for code in text.split(",")]


# The lists of the example in FoxIO's technical_details/JA4.md, and what it makes of them.
SUITES = codes("1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035")
EXTENSIONS = codes(
    "001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,ff01,000b,000a,0015"
)
ALGORITHMS = codes("0403,0804,0401,0503,0805,0501,0806,0601")
FINGERPRINT = "t13d1516h2_8daaf6152771_e5627efa2ab1"


def example(
    suites: list[int] = SUITES,
    extensions: list[int] = EXTENSIONS,
    algorithms: list[int] = ALGORITHMS,
    versions: tuple[int, ...] = (0x0304, 0x0303),
    protocols: tuple[bytes, ...] = (b"h2", b"http/1.1"),
) -> ClientHello:
    """A hello on the wire with these lists, read."""
    contents = {
        0: server_name(b"a.example"),
        13: extension(13, shorts(*algorithms)),
        16: alpn(*protocols),
        43: extension(43, shorts(*versions, width=1)),
    }
    entries = [contents.get(kind) or extension(kind) for kind in extensions]
    value = ClientHelloReader().feed(in_records(message(body(*entries, suites=suites))))
    assert value is not None
    return value


EXAMPLE = example()


class TestSpecification:
    def test_example(self) -> None:
        """The lists of the specification's example give its fingerprint."""
        assert FINGERPRINT == ja4(EXAMPLE)

    def test_without_algorithms(self) -> None:
        """Without signature algorithms the extensions are hashed alone."""
        assert "t13d1516h2_8daaf6152771_6d807ffa2a79" == ja4(replace(EXAMPLE, algorithm_list=b""))

    def test_order(self) -> None:
        """The order of suites and extensions says nothing, that of the algorithms does."""
        chance = random.Random(4)  # noqa: S311 - not for secrets
        shuffled = example(
            chance.sample(SUITES, len(SUITES)), chance.sample(EXTENSIONS, len(EXTENSIONS))
        )
        assert FINGERPRINT == ja4(shuffled)
        assert FINGERPRINT != ja4(example(algorithms=ALGORITHMS[::-1]))

    def test_grease(self) -> None:
        """GREASE is ignored anywhere."""
        chance = random.Random(4)  # noqa: S311 - not for secrets
        grease = sorted(GREASE)
        for _ in range(20):
            one, two = chance.sample(grease, 2)
            greased = example(
                [one, *SUITES, two],
                [two, *EXTENSIONS, one],
                [one, *ALGORITHMS],
                (two, 0x0304, 0x0303),
            )
            assert FINGERPRINT == ja4(greased)

    def test_nothing(self) -> None:
        """What isn't there is zeros, not the hash of nothing."""
        bare = replace(EXAMPLE, sni=None, protocols=(), extensions=(0x0A0A,))
        assert "t13i150000_8daaf6152771_000000000000" == ja4(bare)
        assert "t13i000000_000000000000_000000000000" == ja4(replace(bare, suite_list=b""))

    def test_named_only(self) -> None:
        """SNI and ALPN are counted, and not hashed."""
        assert "t13d0002h2_000000000000_000000000000" == ja4(
            replace(EXAMPLE, suite_list=b"", extensions=(0, 16), algorithm_list=b"")
        )

    def test_counts(self) -> None:
        """More than 99 are 99; SCSV and private suites count."""
        many = tuple(range(0x1000, 0x1000 + 120))
        listed = shorts(*many)[2:]
        assert "t13d9999h2" == ja4(replace(EXAMPLE, suite_list=listed, extensions=many))[:10]
        few = replace(EXAMPLE, suite_list=shorts(0x00FF, 0x5600, 0xFE00)[2:])
        assert "t13d0316h2" == ja4(few)[:10]

    @pytest.mark.parametrize(
        ("versions", "text"),
        [
            ((0x0303, 0x0304), "13"),
            ((0x0303,), "12"),
            ((0x0302, 0x0301), "11"),
            ((0x0301,), "10"),
            ((0x0300,), "s3"),
            ((0x0002,), "s2"),
            ((0xFEFF,), "d1"),
            ((0xFEFD,), "d2"),
            ((0xFEFC,), "d3"),
            ((0x0305, 0x0304), "00"),
            ((), "00"),
        ],
    )
    def test_version(self, versions: tuple[int, ...], text: str) -> None:
        """The highest offered counts."""
        assert f"t{text}d1516h2" == ja4(replace(EXAMPLE, versions=versions))[:10]

    @pytest.mark.parametrize(
        ("protocol", "text"),
        [
            (b"h2", "h2"),
            (b"http/1.1", "h1"),
            (b"c", "cc"),
            (b"\xab", "ab"),
            (b" ", "20"),
            (b"\xab\xcd", "ad"),
            (b"\x20\x61", "21"),
            (b"\x30\xab", "3b"),
            (b"\x61\x20", "60"),
            (b"\x30\x31\xab\xcd", "3d"),
            (b"\x30\xab\xcd\x31", "01"),
            (b"\x0a\x0a", "0a"),
        ],
    )
    def test_alpn(self, protocol: bytes, text: str) -> None:
        """The first protocol's ends, in hexadecimal if one of them is not alphanumeric."""
        assert f"t13d1516{text}" == ja4(example(protocols=(protocol, b"h2")))[:10]


class TestClients:
    # One library with one configuration, whatever it is told to ask for, has one
    # fingerprint but for the parts that say so.
    @pytest.mark.parametrize(
        ("name", "fingerprint"),
        [
            ("curl", "t13d3112h2_e8f1e7e78f70_b26ce05bbdd6"),
            ("curl-http1", "t13d3112h1_e8f1e7e78f70_b26ce05bbdd6"),
            ("curl-no-alpn", "t13d311100_e8f1e7e78f70_b26ce05bbdd6"),
            ("curl-address", "t13i3111h2_e8f1e7e78f70_b26ce05bbdd6"),
        ],
    )
    def test_pinned(self, name: str, fingerprint: str) -> None:
        """A client's fingerprint stays."""
        value = ClientHelloReader().feed(load(name))
        assert value is not None
        assert fingerprint == ja4(value)

    @pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
    def test_first_part(self, client: object) -> None:
        """What a client was told to ask for is in the first part."""
        assert isinstance(client, type(CLIENTS[0]))
        value = ClientHelloReader().feed(load(client.name))
        assert value is not None
        first = ja4(value).split("_")[0]
        version = {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10"}[client.highest]
        assert f"t{version}{'d' if client.sni else 'i'}" == first[:4]
        ends = client.alpn[0][0] + client.alpn[0][-1] if client.alpn else "00"
        assert ends == first[8:]
