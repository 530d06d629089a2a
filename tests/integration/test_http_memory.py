"""What the HTTP proxy keeps of what goes through it, and of who is slow, or wants too much."""

from __future__ import annotations

import hashlib
import http.client
import random
import resource
import select
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from integration import clients
from integration.netns import DEADLINE, Namespace
from integration.origins import Origin, some
from integration.proxy import eventually, running
from integration.smuggling_stage import Answer, answers, talk

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from integration.proxy import Sidecar

pytestmark = pytest.mark.thorough

_PROXY = SocketAddress("127.0.0.1", 3128)
_HURRIED = SocketAddress("127.0.0.1", 3129)
_KIB, _MIB = 1024, 1024 * 1024
_BLOCKS = 1024  # of 1 MiB
# KiB by which the peak may grow while a gigabyte goes through.
_SLACK = 16 * 1024
# Connections that are stuck at once, and KiB that each may cost: 256 on either side.
_STUCK, _STUCK_EACH = 24, 512
# Clients that are connected and silent, and KiB that each may cost.
_IDLE, _IDLE_EACH = 1000, 16
# Seconds of each of the limits that are turned down, and bytes that have to move in them.
_SHORT, _PROGRESS = 1.0, 4096


@pytest.fixture(scope="module", name="namespace")
def _namespace(_namespaces: None) -> Iterator[Namespace]:
    made = Namespace("mem")
    try:
        yield made
    finally:
        made.remove()


@contextmanager
def _proxied(
    namespace: Namespace, directory: Path, address: SocketAddress, *settings: str
) -> Iterator[Sidecar]:
    file = directory / f"{address.port}.toml"
    listener = f'http_proxy = "tcp:{address.port}:interface={address.host}:backlog=1024"'
    file.write_text("\n".join([listener, *settings, ""]), encoding="ascii")
    with running(
        namespace,
        ("--config", str(file)),
        cwd=directory,
        ports=(address.port,),
        wrapper=["prlimit", "--nofile=8192:8192", "--"],
    ) as sidecar:
        yield sidecar


@pytest.fixture(scope="module", name="sidecar")
def _sidecar(namespace: Namespace, outside: Path) -> Iterator[Sidecar]:
    # What origins of one test keep doesn't last to the next one's measurement.
    with _proxied(namespace, outside, _PROXY, "[http.limits]", "pool_timeout = 0.5") as made:
        yield made


@pytest.fixture(scope="module", name="hurried")
def _hurried(namespace: Namespace, outside: Path) -> Iterator[Sidecar]:
    """One that waits for nobody."""
    limits = ("head", "keepalive", "response", "progress")
    settings = [f"{name}_timeout = {_SHORT}" for name in limits]
    settings.append(f"progress_bytes = {_PROGRESS}")
    with _proxied(namespace, outside, _HURRIED, "[http.limits]", *settings) as made:
        yield made


class Peak:
    """How much memory a sidecar has had at most since this was made (proc(5): clear_refs)."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        Path(f"/proc/{sidecar.pid}/clear_refs").write_text("5", encoding="ascii")
        self._before = sidecar.memory()

    @property
    def growth(self) -> int:
        """KiB."""
        status = Path(f"/proc/{self._sidecar.pid}/status").read_text(encoding="ascii")
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return int(fields["VmHWM"].split()[0]) - self._before


def _blocks() -> Iterator[memoryview]:
    """Make a gigabyte, no two blocks of which are alike."""
    block = bytearray(random.Random(1).randbytes(_MIB))  # noqa: S311 - only has to differ
    for serial in range(_BLOCKS):
        block[:8] = serial.to_bytes(8, "big")
        yield memoryview(block)


@pytest.fixture(scope="module", name="digest")
def _digest() -> str:
    digest = hashlib.sha256()
    for block in _blocks():
        digest.update(block)
    return digest.hexdigest()


def _head(connection: socket.socket) -> bytes:
    """Read a head, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        peeked = connection.recv(65536, socket.MSG_PEEK)
        if not peeked:
            return b""
        end = (head + peeked).find(b"\r\n\r\n")
        head += connection.recv(len(peeked) if end < 0 else end + 4 - len(head))
    return head


def _source(*, chunked: bool) -> Callable[[socket.socket], None]:
    """An origin that sends a gigabyte."""

    def handle(connection: socket.socket) -> None:
        _head(connection)
        framing = "Transfer-Encoding: chunked"
        if not chunked:
            framing = f"Content-Length: {_BLOCKS * _MIB}"
        connection.sendall(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())
        for block in _blocks():
            _send(connection, block, chunked=chunked)
        if chunked:
            connection.sendall(b"0\r\n\r\n")

    return handle


def _send(connection: socket.socket, block: memoryview, *, chunked: bool) -> None:
    """Send a block, perhaps in chunks, whose sizes are odd."""
    if not chunked:
        connection.sendall(block)
        return
    for start in range(0, _MIB, 65521):
        piece = block[start : start + 65521]
        connection.sendall(b"".join([b"%x\r\n" % len(piece), piece, b"\r\n"]))


def _sink(connection: socket.socket) -> None:
    """An origin that answers with the hash of what it got."""
    head = _head(connection)
    digest = hashlib.sha256()
    with connection.makefile("rb", _MIB) as file:
        if b"chunked" in head:
            while size := int(file.readline(), 16):
                digest.update(file.read(size))
                file.readline()
            file.readline()
        else:
            left = int(head.lower().partition(b"content-length:")[2].split()[0])
            while left and (part := file.read(min(left, _MIB))):
                digest.update(part)
                left -= len(part)
    body = digest.hexdigest().encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def _url(origin: SocketAddress) -> str:
    return f"http://{origin}/"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_gigabyte_down(
    namespace: Namespace, sidecar: Sidecar, port: int, digest: str, chunked: bool
) -> None:
    """A gigabyte from an origin arrives as it was, and nothing of it stays."""
    origin = SocketAddress("127.0.0.1", port)
    with (
        Origin(namespace, origin, _source(chunked=chunked)),
        namespace.connect(_PROXY) as client,
    ):
        peak = Peak(sidecar)
        client.sendall(f"GET {_url(origin)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        response = http.client.HTTPResponse(client)
        response.begin()
        got = hashlib.sha256()
        buffer = bytearray(_MIB)
        while size := response.readinto(buffer):
            got.update(memoryview(buffer)[:size])
        assert digest == got.hexdigest()
        assert peak.growth < _SLACK
        line = sidecar.line(destination=origin)
        assert (200, _BLOCKS * _MIB) == (line["status"], line["received"])


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_gigabyte_up(
    namespace: Namespace, sidecar: Sidecar, port: int, digest: str, chunked: bool
) -> None:
    """Nor of one to an origin."""
    origin = SocketAddress("127.0.0.1", port)
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {_BLOCKS * _MIB}"
    with Origin(namespace, origin, _sink), namespace.connect(_PROXY) as client:
        peak = Peak(sidecar)
        client.sendall(f"PUT {_url(origin)} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())
        for block in _blocks():
            _send(client, block, chunked=chunked)
        if chunked:
            client.sendall(b"0\r\n\r\n")
        response = http.client.HTTPResponse(client)
        response.begin()
        assert (200, digest) == (response.status, response.read().decode())
        assert peak.growth < _SLACK
        line = sidecar.line(destination=origin)
        assert (200, _BLOCKS * _MIB) == (line["status"], line["sent"])


def _push(connection: socket.socket) -> int:
    """Send until nothing more is taken for a while; return how much was."""
    connection.settimeout(0.5)
    sent = 0
    data = some(_MIB)
    with suppress(TimeoutError, ConnectionError):
        while True:
            sent += connection.send(data)
    return sent


def _small_buffers(connection: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, 65536)


@pytest.mark.parametrize("up", [False, True], ids=["slow reader", "slow origin"])
def test_stuck(namespace: Namespace, sidecar: Sidecar, port: int, up: bool) -> None:
    """Where one side doesn't read, the other can't write, and little is kept between them."""
    origin = SocketAddress("127.0.0.1", port)
    over = threading.Event()
    pushed: list[int] = []

    def handle(connection: socket.socket) -> None:
        _small_buffers(connection)
        _head(connection)
        if not up:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            pushed.append(_push(connection))
        over.wait(DEADLINE)

    method, framing = ("PUT", "Content-Length: 1000000000\r\n") if up else ("GET", "")
    request = f"{method} {_url(origin)} HTTP/1.1\r\nHost: x\r\n{framing}\r\n".encode()
    descriptors = sidecar.descriptors()
    with Origin(namespace, origin, handle), ExitStack() as stack:
        stack.callback(over.set)
        peak = Peak(sidecar)
        connected = [stack.enter_context(namespace.connect(_PROXY)) for _ in range(_STUCK)]
        for client in connected:
            _small_buffers(client)
            client.sendall(request)
        if up:
            threads = [
                threading.Thread(target=lambda each=client: pushed.append(_push(each)))
                for client in connected
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(DEADLINE)
        eventually(_STUCK, lambda: len(pushed))
        assert peak.growth < _STUCK * _STUCK_EACH
        # Far from the gigabyte; what the kernel keeps on the way is its own affair.
        assert max(pushed) < 32 * _MIB
        # Others are served meanwhile.
        with namespace.connect(_PROXY) as other:
            (told,) = answers(talk(other, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", finish=True))
        assert 400 == told.status
        for client in connected:
            client.close()
        over.set()
    eventually(True, lambda: sidecar.descriptors() <= descriptors)
    sidecar.wait_for_lines(_STUCK, destination=origin)


def _endless(client: socket.socket, first: bytes, piece: bytes) -> tuple[bytes, int]:
    """Send a beginning and then one thing again and again, until an answer or a reset comes."""
    sent = 0
    client.sendall(first)
    with suppress(ConnectionError):
        while not select.select([client], [], [], 0)[0]:
            client.sendall(piece)
            sent += len(piece)
            assert sent < 1 << 28, "nobody minds"
    got = b""
    with suppress(ConnectionResetError):
        while part := client.recv(65536):
            got += part
    return got, sent


_GET = b"GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\n"
_POST = b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
_ENDLESS: dict[str, tuple[bytes, bytes, int]] = {
    "method": (b"", b"G" * 4000, 501),
    "target": (b"GET http://127.0.0.1:1/", b"x" * 4000, 414),
    "field": (_GET + b"X: ", b"x" * 4000, 431),
    "field-name": (_GET, b"x" * 4000, 431),
    "fields": (_GET, b"X: 1\r\n" * 500, 431),
    "blank-lines": (b"", b"\r\n" * 2000, 400),
    "connect-target": (b"CONNECT ", b"x" * 4000, 414),
    "chunk-extension": (_POST + b"5;", b"x" * 4000, 400),
    "chunk-size": (_POST, b"0" * 4000, 400),
    "trailers": (_POST + b"0\r\n", b"X: 1\r\n" * 500, 431),
    "trailer": (_POST + b"0\r\nX: ", b"x" * 4000, 431),
}


@pytest.mark.parametrize(("first", "piece", "status"), _ENDLESS.values(), ids=_ENDLESS)
def test_endless(
    namespace: Namespace, sidecar: Sidecar, port: int, first: bytes, piece: bytes, status: int
) -> None:
    """M11: what has no end is cut off early, with its status; none of it is kept."""

    def handle(connection: socket.socket) -> None:
        with suppress(ConnectionError):
            while connection.recv(65536):
                pass

    origin = SocketAddress("127.0.0.1", port)
    first = first.replace(b"%d", b"%d" % port)
    with Origin(namespace, origin, handle):
        peak = Peak(sidecar)
        for _ in range(10):
            with namespace.connect(_PROXY) as client:
                got, sent = _endless(client, first, piece)
            assert status == answers(got)[0].status, got
            assert sent < 8 * _MIB
        assert peak.growth < 2 * 1024


def test_endless_extensions(namespace: Namespace, sidecar: Sidecar, port: int) -> None:
    """Small chunks with long extensions are passed on without these, and none of it is kept."""
    got: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        assert b"chunked" in _head(connection)
        with suppress(ConnectionError):
            while part := connection.recv(65536):
                got.append(part)

    chunks = (b"1;" + b"y" * 2000 + b"\r\nx\r\n") * 500
    with (
        Origin(namespace, SocketAddress("127.0.0.1", port), handle),
        namespace.connect(_PROXY) as client,
    ):
        client.sendall(_POST % port)
        peak = Peak(sidecar)
        with suppress(ConnectionError):
            for _ in range(64):
                client.sendall(chunks)
        assert peak.growth < 2 * 1024
        client.close()
        sidecar.wait_for_lines(1, destination=f"127.0.0.1:{port}")
    assert b"y" not in b"".join(got)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET http://127.0.0.1:1/" + b"x" * _MIB + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (_GET + b"X: 1\r\n" * 500 + b"\r\n", 431),
        (_GET + b"X: " + b"x" * 65_536 + b"\r\n\r\n", 431),
    ],
    ids=["url", "fields", "line"],
)
def test_large_heads(namespace: Namespace, sidecar: Sidecar, head: bytes, status: int) -> None:
    """M11: a URL of a megabyte, 501 fields, a line of 64 KiB, from many at once."""
    peak = Peak(sidecar)
    with ExitStack() as stack:
        connected = [stack.enter_context(namespace.connect(_PROXY)) for _ in range(20)]
        threads = [threading.Thread(target=_send_all, args=(each, head)) for each in connected]
        for thread in threads:
            thread.start()
        for client in connected:
            (told,) = answers(talk(client))
            assert status == told.status
        for thread in threads:
            thread.join(DEADLINE)
    # Each may have one piece as large as the proxy reads at once.
    assert peak.growth < 20 * 256


def _send_all(connection: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        connection.sendall(data)


class TestSlow:
    """D1: with limits of a second."""

    def drip(
        self, client: socket.socket, first: bytes, *, every: float = 0.05
    ) -> tuple[bytes, float]:
        """Send a byte now and then until the answer is there."""
        # Before: the proxy may hear of it before we go on.
        started = time.monotonic()
        client.sendall(first)
        while not select.select([client], [], [], every)[0]:
            with suppress(ConnectionError):
                client.send(b"x")
            assert time.monotonic() - started < DEADLINE
        took = time.monotonic() - started
        return talk(client), took

    @pytest.mark.parametrize(
        "first", [b"G", b"GET http://127.0.0.1:1/", _GET, _GET + b"X", _GET + b"X: 1\r\nY: "]
    )
    def test_heads(self, namespace: Namespace, hurried: Sidecar, first: bytes) -> None:
        """A head that comes byte by byte has a second, from its first byte to its end; 408."""
        with namespace.connect(_HURRIED) as client:
            got, took = self.drip(client, first)
        (told,) = answers(got)
        assert (408, b"close") == (told.status, told.field(b"Connection"))
        # If each byte were given a second, there would be no end.
        assert _SHORT <= took < DEADLINE / 2

    def test_many_heads(self, namespace: Namespace, hurried: Sidecar) -> None:
        """Three hundred at once cost little, and go together."""
        descriptors = hurried.idle_descriptors()
        peak = Peak(hurried)
        with ExitStack() as stack:
            connected = [stack.enter_context(namespace.connect(_HURRIED)) for _ in range(300)]
            for client in connected:
                client.sendall(_GET)
            for _ in range(5):
                time.sleep(_SHORT / 10)
                for client in connected:
                    # On a busy machine, the second of the first is over before.
                    with suppress(ConnectionError):
                        client.send(b"x")
            for client in connected:
                (told,) = answers(talk(client))
                assert 408 == told.status
            assert peak.growth < 300 * _IDLE_EACH
        eventually(descriptors, hurried.descriptors)

    @pytest.mark.parametrize("framing", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
    def test_bodies(
        self, namespace: Namespace, hurried: Sidecar, port: int, framing: bytes
    ) -> None:
        """A body that comes byte by byte is 408, too; its origin is told by a reset."""
        ends: list[str] = []

        def handle(connection: socket.socket) -> None:
            try:
                while connection.recv(65536):
                    pass
                ends.append("end")
            except ConnectionResetError:
                ends.append("reset")

        head = b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % (port, framing)
        if b"chunked" in framing:
            head += b"fffff\r\n"
        with (
            Origin(namespace, SocketAddress("127.0.0.1", port), handle),
            namespace.connect(_HURRIED) as client,
        ):
            got, took = self.drip(client, head)
            (told,) = answers(got)
            assert 408 == told.status
            assert took < DEADLINE / 2
            eventually(["reset"], lambda: ends)

    def test_silent(self, namespace: Namespace, hurried: Sidecar) -> None:
        """A client that is silent between requests is let go, and told nothing."""
        started = time.monotonic()
        with namespace.connect(_HURRIED) as client:
            assert b"" == talk(client)
            assert _SHORT <= time.monotonic() - started < DEADLINE / 2

    def test_silent_origin(self, namespace: Namespace, hurried: Sidecar, port: int) -> None:
        """An origin that doesn't answer is 504."""

        def handle(connection: socket.socket) -> None:
            with suppress(ConnectionError):
                while connection.recv(65536):
                    pass

        with (
            Origin(namespace, SocketAddress("127.0.0.1", port), handle),
            namespace.connect(_HURRIED) as client,
        ):
            request = b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port
            (told,) = answers(talk(client, request, finish=True))
        assert 504 == told.status

    def test_slow_reader(self, namespace: Namespace, hurried: Sidecar, port: int) -> None:
        """A client that doesn't take its answer is reset, and its origin let go."""
        sent: list[int] = []

        def handle(connection: socket.socket) -> None:
            _small_buffers(connection)
            _head(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            connection.settimeout(DEADLINE)
            count = 0
            with suppress(ConnectionError):
                while True:
                    count += connection.send(some(_MIB))
            sent.append(count)

        with (
            Origin(namespace, SocketAddress("127.0.0.1", port), handle),
            namespace.connect(_HURRIED) as client,
        ):
            _small_buffers(client)
            client.sendall(b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port)
            eventually(1, lambda: len(sent))
            assert clients.outcome_of_reading(client).reset

    def test_lingering(self, namespace: Namespace, hurried: Sidecar) -> None:
        """A client that is told off, and sends on for ever, is reset after a while."""
        with namespace.connect(_HURRIED) as client:
            client.sendall(b"GARBAGE\r\n\r\n")
            started = time.monotonic()
            was_reset = False
            while not was_reset and time.monotonic() < started + DEADLINE / 2:
                time.sleep(0.05)
                try:
                    client.sendall(b"x")
                except ConnectionError:
                    was_reset = True
            assert was_reset


def test_idle_clients(namespace: Namespace, outside: Path, port: int) -> None:
    """A thousand silent keep-alive clients cost a few KiB each, and nothing when they are gone."""

    def handle(connection: socket.socket) -> None:
        with suppress(ConnectionError):
            while _head(connection):
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    request = b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port
    address = SocketAddress("127.0.0.1", 3132)
    with (
        _descriptors_for(_IDLE),
        Origin(namespace, SocketAddress("127.0.0.1", port), handle),
        # One that has no memory of others to give them.
        _proxied(namespace, outside, address, "[http.limits]", "pool_timeout = 0.5") as sidecar,
        ExitStack() as stack,
    ):
        with namespace.connect(address) as first:
            (told,) = answers(talk(first, request, finish=True))
            assert 204 == told.status
        descriptors = sidecar.descriptors()
        before = sidecar.memory()
        connected = [stack.enter_context(namespace.connect(address)) for _ in range(_IDLE)]
        for client in connected:
            client.sendall(request)
            assert client.recv(65536).startswith(b"HTTP/1.1 204 ")
        # One connection to the origin serves them all.
        assert -2 <= sidecar.descriptors() - descriptors - _IDLE <= 1
        each = (sidecar.memory() - before) / _IDLE
        print(f"{each:.1f} KiB for each idle keep-alive client")
        assert each < _IDLE_EACH
        for client in connected:
            client.close()
        eventually(True, lambda: sidecar.descriptors() <= descriptors)


@contextmanager
def _descriptors_for(count: int) -> Iterator[None]:
    """Let this process have so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 512
    if hard < wanted:
        pytest.skip(f"needs a hard limit of {wanted} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _pauses(sidecar: Sidecar) -> list[str]:
    return [message for message in sidecar.messages() if "accepting pauses" in message]


def _answering(connection: socket.socket) -> None:
    """An origin that answers, and closes."""
    with suppress(ConnectionError):
        if _head(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello")


def test_out_of_descriptors(namespace: Namespace, outside: Path, port: int) -> None:
    """D2: without descriptors who is served stays so; the others wait, or are told; all recover."""
    origin = SocketAddress("127.0.0.1", port)
    address = SocketAddress("127.0.0.1", 3130)
    request = f"GET {_url(origin)} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    asked, over = threading.Event(), threading.Event()

    def handle(connection: socket.socket) -> None:
        if b"/slow" in _head(connection):
            asked.set()
            over.wait(DEADLINE)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello")

    with (
        Origin(namespace, origin, handle),
        _proxied(namespace, outside, address) as sidecar,
        namespace.connect(address) as early,
        namespace.connect(address) as slow,
    ):
        slow.sendall(request.replace(b"/ HTTP", b"/slow HTTP"))
        # Its way to the origin is made, before there are no descriptors for that.
        assert asked.wait(DEADLINE)
        early.sendall(request)
        _until_body(early)
        soft, hard = resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE)
        started = time.monotonic()
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (3, hard))
        # No socket can be had for the origin: that is said, and the client may ask again.
        early.sendall(request)
        told = _until_body(early)
        assert told.status in {502, 503}, told
        with namespace.connect(address) as late:
            late.sendall(request)
            sidecar.wait_until(lambda: bool(_pauses(sidecar)))
            # What is under way goes on.
            over.set()
            assert b"hello" == _until_body(slow).body
            resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (soft, hard))
            assert b"hello" == _until_body(late).body
        early.sendall(request)
        assert b"hello" == _until_body(early).body
        assert 1 <= len(_pauses(sidecar)) <= 2 + time.monotonic() - started


def _until_body(client: socket.socket) -> Answer:
    """Read one response; it is chunked, or ours."""
    got = b""
    while not answers(got) or not answers(got)[0].whole:
        part = client.recv(65536)
        assert part, got
        got += part
    return answers(got)[0]


def test_many_clients_at_the_limit(namespace: Namespace, outside: Path, port: int) -> None:
    """D2: with room for a few clients at once, the others wait for it, and are served."""
    origin = SocketAddress("127.0.0.1", port)
    address = SocketAddress("127.0.0.1", 3131)
    request = f"GET {_url(origin)} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with (
        Origin(namespace, origin, _answering),
        _proxied(namespace, outside, address, "[limits]", "max_connections = 8") as sidecar,
        ExitStack() as stack,
    ):
        connected = [stack.enter_context(namespace.connect(address)) for _ in range(40)]
        for client in connected:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
        for client in connected:
            (told,) = answers(talk(client))
            assert b"hello" == told.body
        sidecar.wait_for_lines(40, status=200)
