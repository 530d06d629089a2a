"""Requests to the HTTP proxy for itself (CASES §3), and for hosts that fool others (§1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from integration.netns import DEADLINE, Namespace
from integration.origins import Origin
from integration.proxy import eventually, running
from integration.smuggling_stage import answers, talk

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from integration.netns import Pair
    from integration.proxy import Line, Sidecar

pytestmark = pytest.mark.thorough

PORT, PORT6, OTHER = 3128, 3129, 3130
_NAME = "here.test"
_MIXED = "mixed.test"
_WITH_HOSTS = 'mount --bind "$0/hosts" /etc/hosts && exec "$@"'
_PROXY = SocketAddress("127.0.0.1", PORT)
# All that leads to the near host, by family; the pair's addresses are its interface's.
_SELVES = {
    PORT: [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.71.0.1"),
        *("[::ffff:127.0.0.1]", "[::ffff:10.71.0.1]", "[::ffff:0.0.0.0]"),
        *("localhost", "LOCALHOST.", _NAME, "v4.here.test", "[::ffff:7f00:1]"),
    ],
    PORT6: ["[::1]", "[::]", "[fd71::1]", "[0:0:0:0:0:0:0:1]", "localhost", _NAME, "v6.here.test"],
}


@pytest.fixture(scope="module", name="directory")
def _directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("loops")
    directory.chmod(0o755)
    hosts = ["127.0.0.1 localhost", "::1 localhost", f"10.71.0.1 {_NAME}", f"fd71::1 {_NAME}"]
    hosts += ["127.0.0.1 v4.here.test", "fd71::1 v6.here.test", f"10.71.0.2 {_MIXED}"]
    (directory / "hosts").write_text("\n".join([*hosts, ""]), encoding="ascii")
    return directory


@pytest.fixture(scope="module", name="sidecar")
def _sidecar(pair: Pair, directory: Path) -> Iterator[Sidecar]:
    """One that listens for IPv4, on every address."""
    with running(
        pair.near.namespace,
        ("--http-proxy", f"tcp:{PORT}"),
        cwd=directory,
        ports=(PORT,),
        wrapper=["unshare", "--mount", "sh", "-c", _WITH_HOSTS, str(directory)],
    ) as made:
        yield made


@pytest.fixture(scope="module", name="sidecar6")
def _sidecar6(pair: Pair, directory: Path) -> Iterator[Sidecar]:
    """Another, that listens for IPv6, and for IPv4 by the way."""
    with running(
        pair.near.namespace,
        ("--http-proxy", f"tcp:{PORT6}:interface=\\:\\:"),
        cwd=directory,
        ports=(PORT6,),
        wrapper=["unshare", "--mount", "sh", "-c", _WITH_HOSTS, str(directory)],
    ) as made:
        yield made


def _ask(namespace: Namespace, proxy: SocketAddress, request: str) -> bytes:
    with namespace.connect(proxy) as client:
        client.settimeout(DEADLINE)
        return talk(client, request.encode("latin-1"), finish=True)


def _refused(namespace: Namespace, sidecar: Sidecar, proxy: SocketAddress, host: str) -> None:
    """See both forms of a request for the proxy itself refused, and logged once each."""
    descriptors = sidecar.descriptors()
    before = len(sidecar.lines())
    for request in (
        f"GET http://{host}:{proxy.port}/ HTTP/1.1\r\nHost: x\r\n\r\n",
        f"CONNECT {host}:{proxy.port} HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        (told,) = answers(_ask(namespace, proxy, request))
        assert 508 == told.status, told
        assert b"proxy_loop_detected" in (told.field(b"Proxy-Status") or b"")
    lines = _lines_since(sidecar, before, 2)
    assert [("deny", "proxy_loop_detected", 508)] * 2 == [
        (line["verdict"], line["end"], line["status"]) for line in lines
    ]
    eventually(descriptors, sidecar.descriptors)


def _lines_since(sidecar: Sidecar, before: int, count: int) -> list[Line]:
    sidecar.wait_until(lambda: len(sidecar.lines()) >= before + count)
    lines = sidecar.lines()[before:]
    assert len(lines) == count, lines
    return lines


@pytest.mark.parametrize("host", _SELVES[PORT])
def test_to_itself(pair: Pair, sidecar: Sidecar, host: str) -> None:
    """L1: in all spellings and by all ways, a request for the proxy itself is 508."""
    _refused(pair.near.namespace, sidecar, _PROXY, host)


@pytest.mark.parametrize("host", [*_SELVES[PORT6], *_SELVES[PORT][:-3]])
def test_to_itself_on_ipv6(pair: Pair, sidecar6: Sidecar, host: str) -> None:
    """L1: likewise where it listens for both families."""
    _refused(pair.near.namespace, sidecar6, SocketAddress("::1", PORT6), host)


def test_from_outside(pair: Pair, sidecar: Sidecar) -> None:
    """L1: and whoever asks."""
    _refused(pair.far.namespace, sidecar, SocketAddress("10.71.0.1", PORT), "10.71.0.1")


def test_again_by_via(pair: Pair, sidecar: Sidecar) -> None:
    """L3: two proxies that send requests to each other notice at the first return."""
    via = _via(pair, sidecar)
    sidecar.wait_for_lines(1, status=204)
    before = len(sidecar.lines())
    request = "GET http://10.71.0.2:1/ HTTP/1.1\r\nHost: x\r\nVia: 1.1 other, {}\r\n\r\n"
    (told,) = answers(_ask(pair.near.namespace, _PROXY, request.format(via)))
    assert 508 == told.status
    (line,) = _lines_since(sidecar, before, 1)
    assert "proxy_loop_detected" == line["end"]
    # Another one's name isn't ours, and words in comments aren't names.
    for harmless in ("1.1 sidecar-00000000", f"1.1 other ({via})", f"1.1 x{via.split()[1]}"):
        (told,) = answers(_ask(pair.near.namespace, _PROXY, request.format(harmless)))
        assert 502 == told.status
    # Or the next test would take them for its own.
    _lines_since(sidecar, before, 4)


def _via(pair: Pair, sidecar: Sidecar) -> str:
    """Find out what the proxy calls itself."""
    heard: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        heard.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    with Origin(pair.far.namespace, pair.far.at("ipv4", 8099), handle):
        got = _ask(
            pair.near.namespace, _PROXY, "GET http://10.71.0.2:8099/ HTTP/1.1\r\nHost: x\r\n\r\n"
        )
    assert b" 204 " in got
    (line,) = (line for line in heard[0].split(b"\r\n") if line.startswith(b"Via: "))
    return line.removeprefix(b"Via: ").decode()


def test_chain_of_two(pair: Pair, sidecar: Sidecar, directory: Path) -> None:
    """L3: A's upstream proxy is B, whose upstream proxy is A: 508 once, not a thousand times."""
    near = pair.near.namespace

    def flags(port: int, other: int) -> tuple[str, ...]:
        return (
            *("--http-proxy", f"tcp:{port}:interface=127.0.0.1"),
            *("--upstream-proxy", f"http://127.0.0.1:{other}"),
        )

    with (
        running(near, flags(OTHER, OTHER + 1), cwd=directory, ports=(OTHER,)) as one,
        running(near, flags(OTHER + 1, OTHER), cwd=directory, ports=(OTHER + 1,)) as two,
    ):
        request = "GET http://10.71.0.2:80/ HTTP/1.1\r\nHost: x\r\n\r\n"
        (told,) = answers(_ask(near, SocketAddress("127.0.0.1", OTHER), request))
        assert 508 == told.status
        eventually((2, 1), lambda: (len(one.lines()), len(two.lines())))


def test_itself_as_upstream(pair: Pair, directory: Path) -> None:
    """L3: a proxy whose upstream proxy is itself."""
    near = pair.near.namespace
    flags = (
        *("--http-proxy", f"tcp:{OTHER}:interface=127.0.0.1"),
        *("--upstream-proxy", f"http://localhost:{OTHER}"),
    )
    with running(near, flags, cwd=directory, ports=(OTHER,)):
        for request in (
            "GET http://10.71.0.2:80/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "CONNECT 10.71.0.2:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            (told,) = answers(_ask(near, SocketAddress("127.0.0.1", OTHER), request))
            assert 508 == told.status


# CASES §1: H1 to H10. {} is the port; what has one of its own ends with a space.
_SPELLINGS = [
    # H1
    "127.0.0.1\0.mixed.test:{}",
    "mixed.test\0:{}",
    "mixed.test%00:{}",
    # H2, H3
    *("127.1:{}", "127.0.1:{}", "2130706433:{}", "0x7f000001:{}", "0x7f.1:{}", "0177.0.0.1:{}"),
    *("017700000001:{}", "127.0.0.01:{}", "0:{}", "999:{}", "1.1:{}", "2852039166:{}"),
    *("0xA9FEA9FE:{}", "0251.0376.0251.0376:{}", "127.0.0.1.:{}", "256.0.0.1:{}", "1.2.3.4.5:{}"),
    # H4, as UTF-8
    *(
        "\uff11\uff12\uff17.0.0.1:{}",
        "127。0。0。1:{}",
        "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{}",
        "mixed.tes\uff54:{}",
        "\uff41.test:{}",
    ),
    # H5
    *("mixed.test..:{}", ".mixed.test:{}", "mixed..test:{}", ".:{}", "..:{}"),
    # H6
    *(
        "[evil.test]:{}",
        "[127.0.0.1]:{}",
        "::1:{}",
        "[::1%lo]:{}",
        "[::1%25lo]:{}",
        "[fe80::1%1]:{}",
    ),
    *("[::1:{}", "::1]:{}", "[[::1]]:{}", "[]:{}", "[::1]x:{}", "[v1.x]:{}", "[::127.1]:{}"),
    # H7
    *("user@mixed.test:{}", "mixed.test@here.test:{}", "mixed.test#@here.test:{}"),
    *("mixed.test\\@here.test:{}", "mixed.test\\:{}", ":@mixed.test:{}", "user:pw@mixed.test:{}"),
    *("mixed.test;here.test:{}", "mixed.test,here.test:{}", "mixed test:{}", "<script>:{}"),
    # H9
    *("xn--:{}", "xn--\x80.test:{}", "a" * 64 + ".test:{}", ("a" * 63 + ".") * 4 + "test:{}"),
    *("-a.test:{}", "a-.test:{}", "*.test:{}", "a_b!.test:{}"),
    # H10
    *("mixed.test:0", "mixed.test:65536", "mixed.test:4294967376", "mixed.test:-1"),
    *("mixed.test:+80", "mixed.test:0x50", "mixed.test: 80", "mixed.test:80,443"),
    *("mixed.test:8_0", "mixed.test:٨٠", "mixed.test:80:80", "mixed.test:000080", "mixed.test:8e1"),
    *(":80", "", ":"),
]


@pytest.fixture(scope="module", name="listeners")
def _listeners(pair: Pair) -> Iterator[list[SocketAddress]]:
    """Whatever is dialled in the two namespaces is heard of."""
    heard: list[SocketAddress] = []

    def handle(connection: socket.socket) -> None:
        heard.append(SocketAddress.from_kernel(connection.getsockname()))

    near, far = pair.near.namespace, pair.far.namespace
    anywhere = SocketAddress("::", 8097)
    with Origin(near, anywhere, handle), Origin(far, anywhere, handle):
        yield heard


@pytest.mark.parametrize("form", ["absolute", "connect"])
@pytest.mark.parametrize("spelling", _SPELLINGS, ids=range(len(_SPELLINGS)))
def test_spellings(
    pair: Pair, sidecar: Sidecar, listeners: list[SocketAddress], spelling: str, form: str
) -> None:
    """H1 to H10: what is no host, or only to some, is refused; nothing is dialled or looked up."""
    host = spelling.format(8097)
    line = f"GET http://{host}/" if form == "absolute" else f"CONNECT {host}"
    before = len(sidecar.lines())
    with pair.near.namespace.connect(_PROXY) as client:
        request = f"{line} HTTP/1.1\r\nHost: mixed.test\r\n\r\n"
        got = talk(client, request.encode(), finish=True)
    (told,) = answers(got)
    assert 400 == told.status, got
    (logged,) = _lines_since(sidecar, before, 1)
    assert ("http_request_error", 0, 0) == (logged["end"], logged["sent"], logged["received"])
    assert [None, None] == [logged.get("host"), logged.get("upstream")]
    assert [] == listeners


@pytest.mark.parametrize(
    "named",
    [
        *("a b", "a\0b", "a/b", "a@b", "a#b", "a?b", "a\\b", "a,b", "[::1", "::1", "127.1", "a:b"),
        *("a:0", "a:65536", "", "\uff11.1", "x..y", "a\tb", "[::1%25lo]"),
    ],
)
def test_host_field(
    pair: Pair, sidecar: Sidecar, listeners: list[SocketAddress], named: str
) -> None:
    """A Host that is none is 400 as well, or isn't passed on: the target's is."""
    before = len(sidecar.lines())
    request = f"GET http://mixed.test:1/ HTTP/1.1\r\nHost: {named}\r\n\r\n"
    with pair.near.namespace.connect(_PROXY) as client:
        (told,) = answers(talk(client, request.encode(), finish=True))
    assert told.status in {400, 502}
    _lines_since(sidecar, before, 1)
    assert [] == listeners


@pytest.mark.parametrize("host", ["MIXED.Test", "mixed.test.", "10.71.0.2", "[fd71::2]"])
def test_canonical(pair: Pair, sidecar: Sidecar, listeners: list[SocketAddress], host: str) -> None:
    """H5: what is one host in several spellings is that host, and is told so."""
    heard: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        heard.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    address = SocketAddress("fd71::2" if ":" in host else "10.71.0.2", 8096)
    with Origin(pair.far.namespace, address, handle):
        got = _ask(
            pair.near.namespace, _PROXY, f"GET http://{host}:8096/ HTTP/1.1\r\nHost: x\r\n\r\n"
        )
    assert b" 204 " in got
    expected = f"Host: {host.lower().rstrip('.')}:8096".encode()
    assert expected in heard[0].split(b"\r\n")
