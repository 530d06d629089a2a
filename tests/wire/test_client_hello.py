from __future__ import annotations

import shutil
import struct
from itertools import repeat
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wire import capture_hellos
from wire.capture_hellos import CLIENTS, Client, load
from wire.feeding import Counting, feed_all, feed_every_way, lines_run
from wire.hello_maker import (
    alpn,
    body,
    ech,
    extension,
    hello,
    host_name,
    in_records,
    message,
    name_list,
    server_name,
    shorts,
)

from sidecar.wire.client_hello import (
    MAX_HELLO_BYTES,
    ClientHello,
    ClientHelloReader,
    HelloError,
    HelloReason,
)
from sidecar.wire.hello_message import GREASE, parse_client_hello

if TYPE_CHECKING:
    from pathlib import Path

captured = st.sampled_from(CLIENTS).map(lambda client: load(client.name))
REASONS = {reason.value for reason in HelloReason}
MLKEM_BYTES = 1400
KEY_SHARE = 51


def read(data: bytes) -> ClientHello:
    """The hello that data is, which takes all of it."""
    reader = ClientHelloReader()
    value = reader.feed(data)
    assert value is not None
    assert len(data) == reader.size
    return value


def outcome(data: bytes) -> ClientHello | str | None:
    return feed_all(ClientHelloReader(), [data])


def handshake_of(data: bytes) -> bytes:
    """The message in a hello of one record."""
    assert len(data) == 5 + int.from_bytes(data[3:5], "big")
    return data[5:]


class TestClients:
    @pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
    def test_facts(self, client: Client) -> None:
        """What each client was told to ask for is what is read."""
        value = read(load(client.name))
        assert client.sni == (None if value.sni is None else value.sni.decode("ascii"))
        assert client.alpn == value.alpn
        assert client.highest == max(value.versions)
        if client.only:
            assert (client.highest,) == value.versions
        assert not value.ech

    @pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
    def test_every_way(self, client: Client) -> None:
        """However a hello is cut and whatever follows, it says the same."""
        data = load(client.name)
        assert read(data) == feed_every_way(ClientHelloReader, data)

    @pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
    def test_prefixes(self, client: Client) -> None:
        """Every prefix of a hello needs more."""
        data = load(client.name)
        reader = ClientHelloReader()
        for at in range(len(data) - 1):
            assert reader.feed(data[at : at + 1]) is None
            assert at + 1 == reader.size
        assert read(data) == reader.feed(data[-1:])

    def test_post_quantum(self) -> None:
        """There is a hello with an ML-KEM key share among them, of more than a segment."""
        data = load("pyopenssl-mlkem")
        assert len(data) > MLKEM_BYTES
        assert KEY_SHARE in read(data).extensions

    @pytest.mark.parametrize("name", ["curl", "openssl-tls12", "python", "gnutls-tls11"])
    def test_recapture(self, name: str, tmp_path: Path) -> None:
        """The client that is installed now still says what it is told to."""
        client = next(client for client in CLIENTS if client.name == name)
        if shutil.which(client.command[0]) is None:
            pytest.skip(f"{client.command[0]} is not installed")
        value = read(capture_hellos.capture(client, tmp_path))
        assert client.alpn == value.alpn
        assert client.sni == (value.sni or b"").decode("ascii")
        assert client.highest == max(value.versions)


class TestRecords:
    """CASES S1: how a message is spread over records."""

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100, 511])
    def test_size(self, size: int) -> None:
        """Records of any size, down to one byte, make the same hello."""
        data = load("curl")
        resegmented = in_records(handshake_of(data), repeat(size))
        assert read(data) == read(resegmented)
        assert read(data) == feed_all(ClientHelloReader(), [bytes([b]) for b in resegmented])

    def test_two_records(self) -> None:
        """A message cut into two records anywhere, and the stream cut anywhere, is the same."""
        handshake = handshake_of(hello(server_name(b"a.example"), alpn(b"h2")))
        expected = read(in_records(handshake))
        for at in range(1, len(handshake)):
            assert expected == read(in_records(handshake, [at]))
        assert expected == feed_every_way(ClientHelloReader, in_records(handshake, [7, 90]))

    @given(data=captured, sizes=st.lists(st.integers(1, 700)), cuts=st.lists(st.integers(1, 300)))
    def test_random(self, data: bytes, sizes: list[int], cuts: list[int]) -> None:
        """Any records in any segments make the same hello."""
        stream = in_records(handshake_of(data), sizes)
        chunks, at = [], 0
        for cut in cuts:
            chunks.append(stream[at : at + cut])
            at += cut
        assert read(data) == feed_all(ClientHelloReader(), [*chunks, stream[at:], b"more"])

    @pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0303, 0x0304, 0x03FF])
    def test_record_version(self, version: int) -> None:
        """A record's version says nothing (RFC 8446 §5.1)."""
        assert read(hello()) == read(in_records(message(body()), version=version))

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"\x16\x03\x01\x00\x00", "record_empty"),
            (b"\x16\x03\x01\x40\x01", "record_too_long"),
            (b"\x16\x03\x01\x00\x01\x01\x16\x03\x01\x00\x00", "record_empty"),
            (b"\x16\x03\x01\x00\x01\x01\x17", "record_interleaved"),
            (b"\x16\x03\x01\x00\x01\x01\x16\x02", "record_interleaved"),
            (b"\x16\x03\x01\x00\x01\x01G", "record_interleaved"),
            (b"\x16\x03\x01\x00\x01\x02", "not_client_hello"),
            (b"\x16\x03\x01\x00\x01\x00", "not_client_hello"),
            (in_records(message(body()) + b"\x01"), "record_trailing"),
            (in_records(message(body()) * 2), "record_trailing"),
        ],
    )
    def test_refused(self, data: bytes, reason: str) -> None:
        """What no client's record layer does is an error with its reason."""
        assert reason == feed_every_way(ClientHelloReader, data)


class TestSize:
    """CASES S2: the cap."""

    @pytest.mark.parametrize("size", [1_800, 16_000, 40_000])
    def test_large(self, size: int) -> None:
        """A large hello is read whole."""
        data = hello(extension(KEY_SHARE, b"k" * size), server_name(b"a.example"))
        assert b"a.example" == read(data).sni
        chunks = [data[at : at + 1448] for at in range(0, len(data), 1448)]
        assert read(data) == feed_all(ClientHelloReader(), chunks)

    def largest(self, more: int = 0) -> bytes:
        """A hello of exactly 64 KiB and `more`, record headers included."""
        overhead = len(hello(extension(KEY_SHARE))) - 5
        # Four full records and what is left.
        share = MAX_HELLO_BYTES + more - overhead - 4 * 5
        data = hello(extension(KEY_SHARE, b"k" * share))
        assert MAX_HELLO_BYTES + more == len(data)
        return data

    def test_limit(self) -> None:
        """64 KiB are a hello."""
        data = self.largest()
        assert (KEY_SHARE,) == read(data).extensions
        assert read(data) == feed_all(ClientHelloReader(), [data[:-1], data[-1:]])

    def test_over(self) -> None:
        """One byte more is none, and that is said with the 64 KiB'th byte."""
        data = self.largest(1)
        reader = ClientHelloReader()
        assert reader.feed(data[: MAX_HELLO_BYTES - 1]) is None
        with pytest.raises(HelloError) as caught:
            reader.feed(data[MAX_HELLO_BYTES - 1 : MAX_HELLO_BYTES])
        assert HelloReason.TOO_LARGE is caught.value.reason
        assert "too_large" == outcome(data)

    def test_headers_count(self) -> None:
        """The limit is on the stream: records of one byte reach it with a sixth of the message."""
        stream = in_records(message(b"\x03" * 20_000), repeat(1))
        assert "too_large" == outcome(stream)
        assert "too_large" == feed_all(ClientHelloReader(), [stream[:40_000], stream[40_000:]])

    @pytest.mark.parametrize("length", [MAX_HELLO_BYTES - 8, 0x010000, 0xFFFFFF])
    def test_length_lies(self, length: int) -> None:
        """A length that can't be kept to is refused with its last byte, before any content."""
        start = b"\x16\x03\x01\x02\x00\x01" + length.to_bytes(3, "big")
        reader = ClientHelloReader()
        assert reader.feed(start[:-1]) is None
        assert "too_large" == feed_all(reader, [start[-1:]])
        assert "too_large" == feed_every_way(ClientHelloReader, start + b"\x03\x03")

    def test_nothing_kept(self) -> None:
        """Neither an error nor a hello keeps the bytes."""
        for data in (load("curl"), b"\x16\x03\x01\x02\x00\x01\xff\xff\xff"):
            reader = ClientHelloReader()
            feed_all(reader, [data])
            assert not reader._message

    def test_linear(self) -> None:
        """Work grows as the bytes do, in the worst cutting, and the message is parsed once."""

        def work(size: int) -> tuple[int, int]:
            stream = in_records(handshake_of(hello(extension(KEY_SHARE, b"k" * size))), repeat(1))
            reader = ClientHelloReader()
            counted = reader._message = Counting()
            lines = lines_run(
                lambda: feed_all(reader, (stream[at : at + 1] for at in range(len(stream))))
            )
            return lines, counted.looked_at

        (few_lines, few_looks), (many_lines, many_looks) = work(2_000), work(8_000)
        assert many_lines < 4 * few_lines
        assert many_looks <= few_looks == 7  # the type until the length is there, and the length

    def test_parsed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The message is parsed when it is complete, and then only."""
        parsed = []

        def count(content: bytes) -> ClientHello:
            parsed.append(content)
            return parse_client_hello(content)

        monkeypatch.setattr("sidecar.wire.client_hello.parse_client_hello", count)
        data = load("pyopenssl-mlkem")
        feed_all(ClientHelloReader(), [data[at : at + 1] for at in range(len(data))])
        assert [handshake_of(data)[4:]] == parsed


class TestNotTls:
    """CASES S8: what else comes first, known by as few bytes as can tell."""

    @pytest.mark.parametrize(
        ("data", "reason", "bytes_needed"),
        [
            (b"GET / HTTP/1.1\r\n", "not_tls", 1),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "not_tls", 1),
            (b"\r\n\r\n\0\r\nQUIT\n", "not_tls", 1),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "not_tls", 1),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", "not_tls", 1),  # PostgreSQL's SSLRequest
            (b"\x19\x03\x01", "not_tls", 1),
            (b"\x16\xfe\xfd\0\0", "not_tls", 2),  # DTLS
            (b"\x16\x02\x00\x00\x05", "not_tls", 2),
            (b"\x15\x02", "not_tls", 2),
            (b"\x15\x03\x01\x00\x02\x02\x28", "not_handshake", 2),
            (b"\x14\x03\x03\x00\x01\x01", "not_handshake", 2),
            (b"\x17\x03\x03\x00\x05hello", "not_handshake", 2),
            (b"\x18\x03\x02\x00\x03\x01\x40\x00", "not_handshake", 2),
            (b"\xc3\0\0\0\x01\x08", "not_tls", 3),  # a QUIC Initial
            (b"\x80\x2e\x02\x00\x02", "not_tls", 3),
            (b"\x80\x2e\x01\x01", "not_tls", 4),
            (b"\x80\x2e\x01\x00\x03", "not_tls", 5),
            (b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", "ssl2", 5),
            (b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10", "ssl2", 5),
        ],
    )
    def test_first_bytes(self, data: bytes, reason: str, bytes_needed: int) -> None:
        """Told apart with the first byte that can tell, and not before."""
        assert reason == feed_every_way(ClientHelloReader, data)
        assert outcome(data[: bytes_needed - 1]) is None
        assert reason == outcome(data[:bytes_needed])

    def test_nothing(self) -> None:
        """No bytes need more."""
        assert outcome(b"") is None


class TestServerName:
    """CASES S3: the name, and all that is none."""

    @pytest.mark.parametrize(
        "name",
        [
            b"a.example",
            b"a.example.",
            b"A.Example",
            b"192.0.2.1",
            b"::1",
            b"x" * 256,
            b"a b",
            b"\x7f",
            b"a_b.example",
        ],
    )
    def test_verbatim(self, name: bytes) -> None:
        """Whether a name is a host's is for others to say: they get it as it is."""
        assert name == read(hello(server_name(name))).sni

    def test_absent(self) -> None:
        """No extension, no name; and no extensions at all, without even their length, neither."""
        assert read(hello()).sni is None
        assert read(in_records(message(body(tail=b"")))).sni is None

    @pytest.mark.parametrize(
        ("entry", "reason"),
        [
            (server_name(b""), "sni_empty"),
            (name_list(), "sni_empty"),
            (name_list(host_name(b"a.example"), host_name(b"b.example")), "sni_two_names"),
            (name_list(host_name(b"a.example"), host_name(b"b", 1)), "sni_two_names"),
            (name_list(host_name(b"a.example") + b"\0"), "sni_two_names"),
            (name_list(host_name(b"a.example", 1)), "sni_type"),
            (server_name(b"a.example\0.b.example"), "sni_nul"),
            (server_name("bücher.example".encode()), "sni_not_ascii"),
            (server_name("bücher.example".encode("latin-1")), "sni_not_ascii"),
            (extension(0), "sni_malformed"),
            (extension(0, b"\0"), "sni_malformed"),
            (extension(0, b"\0\x05\0\0\x01a"), "sni_malformed"),
            (extension(0, b"\0\x03\0\0\x01a"), "sni_malformed"),
            (extension(0, b"\0\x04\0\0\x02a"), "sni_malformed"),
            (extension(0, b"\0\x02\0\0"), "sni_malformed"),
            (server_name(b"a.example") + server_name(b"a.example"), "extension_duplicate"),
            (server_name(b"a.example") + server_name(b"b.example"), "extension_duplicate"),
        ],
    )
    def test_refused(self, entry: bytes, reason: str) -> None:
        """Whatever two readers could see differently is an error with its own reason."""
        assert reason == feed_every_way(ClientHelloReader, hello(entry))


class TestExtensions:
    def test_order(self) -> None:
        """Types are given in the client's order, unknown ones and GREASE included."""
        value = read(hello(extension(0x2A2A), extension(0xABCD, b"what"), extension(0x1A1A, b"\0")))
        assert (0x2A2A, 0xABCD, 0x1A1A) == value.extensions

    def test_versions(self) -> None:
        """supported_versions without GREASE; else legacy_version."""
        offered = extension(43, shorts(0x7A7A, 0x0304, 0x0303, width=1))
        assert (0x0304, 0x0303) == read(hello(offered)).versions
        assert (0x0302,) == read(in_records(message(body(version=0x0302)))).versions
        assert () == read(hello(extension(43, shorts(*GREASE, width=1)))).versions

    def test_offers(self) -> None:
        """Cipher suites and signature algorithms are given in the client's order, all of them."""
        content = body(extension(13, shorts(0x0804, 0x0403)), suites=[0x4A4A, 0x1303, 0x1301])
        value = read(in_records(message(content)))
        assert (0x4A4A, 0x1303, 0x1301) == value.cipher_suites
        assert (0x0804, 0x0403) == value.signature_algorithms
        assert 0x0303 == value.legacy_version
        assert () == read(hello()).signature_algorithms

    def test_alpn(self) -> None:
        """Protocols are given as on the wire, and as text that nothing can hide in."""
        value = read(hello(alpn(b"h2", b"\x0a\x0a", b"a\\x0a", b"\xff\x1b[2J")))
        assert (b"h2", b"\x0a\x0a", b"a\\x0a", b"\xff\x1b[2J") == value.protocols
        assert ("h2", "\\x0a\\x0a", "a\\x5cx0a", "\\xff\\x1b[2J") == value.alpn

    @given(protocols=st.lists(st.binary(min_size=1, max_size=255), min_size=1, max_size=9))
    def test_alpn_text(self, protocols: list[bytes]) -> None:
        """The text is printable ASCII, and says which bytes."""
        value = read(hello(alpn(*protocols)))
        assert all(text.isascii() and text.isprintable() for text in value.alpn)
        decoded = [text.encode("ascii").decode("unicode_escape") for text in value.alpn]
        assert protocols == [text.encode("latin-1") for text in decoded]

    @pytest.mark.parametrize("enc", [b"", b"e" * 32])
    def test_ech(self, enc: bytes) -> None:
        """An outer ECHClientHello is told, be it a GREASE one, which looks the same."""
        value = read(hello(ech(0x5C, enc), server_name(b"front.example")))
        assert (True, 0x5C) == (value.ech, value.ech_config_id)
        assert b"front.example" == value.sni

    def test_ech_inner(self) -> None:
        """A hello that was the encrypted one hides nothing."""
        value = read(hello(extension(0xFE0D, b"\x01")))
        assert (False, None) == (value.ech, value.ech_config_id)

    @pytest.mark.parametrize(
        ("entry", "reason"),
        [
            (extension(16), "alpn"),
            (extension(16, b"\0\0"), "alpn"),
            (extension(16, b"\0\x01\0"), "alpn"),
            (alpn(b""), "alpn"),
            (alpn(b"h2", b""), "alpn"),
            (alpn(b"", b"h2"), "alpn"),
            (extension(16, b"\0\x03\x03h2"), "alpn"),
            (extension(16, b"\0\x04\x02h2"), "alpn"),
            (extension(16, b"\0\x02\x02h2"), "alpn"),
            (extension(43), "supported_versions"),
            (extension(43, b"\0"), "supported_versions"),
            (extension(43, b"\x03\x03\x04\x03"), "supported_versions"),
            (extension(43, b"\x02\x03\x04\x03\x03"), "supported_versions"),
            (extension(13), "signature_algorithms"),
            (extension(13, b"\0\0"), "signature_algorithms"),
            (extension(13, b"\0\x03\x04\x03\x08"), "signature_algorithms"),
            (extension(13, b"\0\x04\x04\x03"), "signature_algorithms"),
            (extension(0xFE0D), "ech"),
            (extension(0xFE0D, b"\x02"), "ech"),
            (extension(0xFE0D, b"\x01\0"), "ech"),
            (extension(0xFE0D, b"\0\0\x01\0\x01\x07\0\0"), "ech"),
            (extension(0xFE0D, b"\0\0\x01\0\x01\x07\0\0\0"), "ech"),
            (extension(0xFE0D, b"\0\0\x01\0\x01\x07\0\x09\0\x01p"), "ech"),
            (ech(7, payload=b""), "ech"),
            (extension(0xFE0D, ech(7)[4:] + b"\0"), "ech"),
            (extension(0xFE0D, ech(7)[4:-1]), "ech"),
            (extension(99) + extension(99), "extension_duplicate"),
            (extension(0x0A0A) + extension(0x0A0A), "extension_duplicate"),
        ],
    )
    def test_refused(self, entry: bytes, reason: str) -> None:
        """An extension that is read has to be right to its last byte, and there once."""
        assert reason == outcome(hello(entry))

    @pytest.mark.parametrize("kind", sorted(GREASE))
    def test_grease(self, kind: int) -> None:
        """All sixteen values (RFC 8701 §2) are versions that nobody offers."""
        assert kind & 0x0F0F == 0x0A0A
        assert (0x0304,) == read(hello(extension(43, shorts(kind, 0x0304, width=1)))).versions


class TestMessage:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "truncated"),
            (body()[:34], "truncated"),
            (body()[:35], "truncated"),
            (body()[:68], "truncated"),
            (body()[:74], "truncated"),
            (body(tail=b"", compression=b""), "truncated"),
            (body(tail=b"", compression=b"\x02\0"), "truncated"),
            (body(version=0x0202), "version"),
            (body(version=0xFEFD), "version"),
            (body(session=b"s" * 33), "session_id"),
            (body(suites=()), "cipher_suites"),
            (body()[:67] + b"\0\x03\x13\x01\x13\x01\0", "cipher_suites"),
            (body(compression=b"\0"), "compression_methods"),
            (body(compression=b"\x01\x01"), "compression_methods"),
            (body(tail=b"\0"), "extensions_length"),
            (body(tail=b"\0\x01"), "extensions_length"),
            (body(tail=b"\0\0\0"), "extensions_length"),
            (body(tail=b"\0\x03\0\x0a\0"), "extensions_length"),
            (body(tail=b"\0\x04\0\x0a\0\x01"), "extensions_length"),
            (body(tail=b"\0\x05\0\x0a\0\0\0"), "extensions_length"),
        ],
    )
    def test_refused(self, content: bytes, reason: str) -> None:
        """Each field that is wrong is named."""
        assert reason == feed_every_way(ClientHelloReader, in_records(message(content)))

    def test_cut_short(self) -> None:
        """A message that ends early, with lengths to match, is never taken for a whole one."""
        content = body(server_name(b"a.example"), alpn(b"h2"), ech(1))
        whole = read(in_records(message(content)))
        bare = len(body(tail=b""))
        for at in range(len(content)):
            got = outcome(in_records(message(content[:at])))
            if at == bare:  # no extensions: a right hello of old
                assert isinstance(got, ClientHello)
                assert () == got.extensions
            else:
                assert isinstance(got, str), at
        assert whole == outcome(in_records(message(content)))

    @pytest.mark.parametrize("compression", [b"\x01\0", b"\x02\x01\0", b"\x02\0\x01"])
    def test_compression(self, compression: bytes) -> None:
        """Old clients offer compression, beside the null method."""
        assert read(hello()) == read(in_records(message(body(compression=compression))))


class TestErrors:
    def test_lasting(self) -> None:
        """An error is the answer for ever."""
        reader = ClientHelloReader()
        for data in (b"G", b"", load("curl")):
            with pytest.raises(HelloError, match="not_tls"):
                reader.feed(data)

    @pytest.mark.parametrize("reason", list(HelloReason))
    def test_alert(self, reason: HelloReason) -> None:
        """Each error knows the alert it deserves, unless nobody there would understand it."""
        alert = HelloError(reason).alert
        assert (reason is HelloReason.NOT_TLS) == (alert is None)
        assert reason.value in str(HelloError(reason))


def mutate(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Replace some bytes at some places by others."""
    for where, removed, put in changes:
        at = where % (len(data) + 1)
        data = data[:at] + put + data[at + removed :]
    return data


changes = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 4), st.binary(max_size=4)),
    min_size=1,
    max_size=4,
)


class TestFuzz:
    @staticmethod
    def check(data: bytes, cuts: list[int]) -> None:
        """Only documented outcomes, and the same one in pieces."""
        whole = outcome(data)
        assert whole is None or isinstance(whole, ClientHello) or whole in REASONS
        chunks, at = [], 0
        for cut in cuts:
            chunks.append(data[at : at + cut])
            at += cut
        reader = ClientHelloReader()
        assert whole == feed_all(reader, [*chunks, data[at:]])
        assert reader.size <= len(data)

    @given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 40)))
    @example(data=b"\x80\x2e\x01\x03", cuts=[])
    def test_bytes(self, data: bytes, cuts: list[int]) -> None:
        """Of arbitrary bytes."""
        self.check(data, cuts)

    @given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 40)))
    def test_body(self, data: bytes, cuts: list[int]) -> None:
        """Of arbitrary messages in right records."""
        self.check(in_records(message(data)), cuts)

    @given(data=st.binary(max_size=300), kind=st.sampled_from([0, 13, 16, 43, 0xFE0D, 0x1234]))
    def test_extension(self, data: bytes, kind: int) -> None:
        """Of arbitrary content in an extension of a right message."""
        self.check(hello(extension(kind, data)), [])

    @given(data=captured, changed=changes, cuts=st.lists(st.integers(0, 400)))
    def test_mutated(
        self, data: bytes, changed: list[tuple[int, int, bytes]], cuts: list[int]
    ) -> None:
        """Of a real hello with some bytes changed."""
        self.check(mutate(data, changed), cuts)

    @given(data=captured, changed=changes)
    def test_mutated_message(self, data: bytes, changed: list[tuple[int, int, bytes]]) -> None:
        """Of the same in records and a handshake header that fit it."""
        content = mutate(handshake_of(data)[4:], changed)
        self.check(in_records(message(content)), [3, 5])

    @given(data=captured, at=st.integers(5, 600), value=st.integers(0, 0xFFFF))
    def test_lying_length(self, data: bytes, at: int, value: int) -> None:
        """Of a real hello with two bytes, a length perhaps, set to anything."""
        at = min(at, len(data) - 2)
        self.check(data[:at] + struct.pack("!H", value) + data[at + 2 :], [])
