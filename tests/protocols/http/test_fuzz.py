"""Whatever clients and origins do, the proxy answers as documented, and nothing of them stays.

Real sockets and the running factory. After each example `proxying` sees that no descriptor,
timer, flow or counted connection is left, and that nothing was logged as an error.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import example, given
from hypothesis import strategies as st
from protocols.http.proxying import Peer, Proxying, policy, proxying
from support import PATIENCE

from sidecar.config import HttpLimits
from sidecar.policy import parse_name_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

POOL = 2
LIMITS = HttpLimits(
    head_bytes=4096, head_fields=20, pool_connections=POOL, body_bytes=10_000, client_connections=4
)
# Ours: docs/reference/reasons.md has what each is for. No 500: that would be a bug.
OWN = {400, 403, 408, 413, 414, 417, 431, 501, 502, 503, 504, 505, 508}
# Stands for the origin's port, which isn't known when examples are made.
PORT = b"{port}"
ORIGIN = b"origin.test:" + PORT

_length = re.compile(rb"\r\ncontent-length: ([0-9]+)", re.IGNORECASE).search
_is_request = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) (/[^\x00-\x20\x7f#]*|\*) HTTP/1\.1"
).fullmatch


def chunked(head: bytes) -> bool:
    return b"\r\ntransfer-encoding: chunked" in head.lower()


def unchunk(data: bytes, at: int) -> int | None:
    """Where a chunked body ends; None if it doesn't. As strict as can be."""
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(data[at:end], 16)
        at = end + 2
        if not size:
            break
        if len(data) < at + size + 2:
            return None
        assert data[at + size : at + size + 2] == b"\r\n", data
        at += size + 2
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        if end == at:
            return at + 2
        at = end + 2


def responses(data: bytes, methods: list[bytes | None]) -> list[int]:
    """The final statuses of what a client got, each for a request; the last may be cut."""
    statuses: list[int] = []
    at = 0
    while at < len(data):
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            assert data.startswith(b"HTTP/1.1 "[: len(data) - at], at), data
            break
        head = data[at : end + 2]
        assert re.match(rb"HTTP/1\.1 [1-9][0-9][0-9] ", head), data
        status = int(head[9:12])
        at = end + 4
        if status < 200 and status != 101:
            continue
        assert len(statuses) < len(methods), data
        method = methods[len(statuses)]
        statuses.append(status)
        if status == 101 or (method == b"CONNECT" and status == 200):
            break
        if method == b"HEAD" or status in {204, 304}:
            continue
        if chunked(head):
            next_at = unchunk(data, at)
            if next_at is None:
                break
            at = next_at
        elif length := _length(head):
            at += int(length[1])
        else:
            break
    return statuses


@dataclass(frozen=True)
class Script:
    """What an origin does with a connection.

    Attributes:
        answers: To its requests, in turn; after the last it closes.
        early: Whether it answers when it has a head.
        cut: Bytes that it sends at once.
        resets: How it closes.
    """

    answers: list[bytes]
    early: bool = False
    cut: int = 1 << 20
    resets: bool = False


@dataclass(frozen=True)
class Visit:
    """What a client does.

    Attributes:
        data: All that it sends.
        cuts: Sizes of pieces.
        end: "keep", "finish" or "reset".
        reads: Whether it reads before the end.
    """

    data: bytes
    cuts: list[int]
    end: str = "keep"
    reads: bool = True

    def pieces(self, port: int) -> list[bytes]:
        """All that it sends, in pieces."""
        data = self.data.replace(PORT, b"%d" % port)
        found = []
        for size in self.cuts:
            found.append(data[:size])
            data = data[size:]
        return [each for each in [*found, data] if each]


class Server:
    """One connection at the origin."""

    def __init__(self, peer: Peer, script: Script) -> None:
        self._peer = peer
        self._script = script
        self._out = b""
        self._answered = 0
        self.got = b""
        self.closed = False

    def requests(self) -> tuple[int, int]:
        """How many heads, and how many whole requests came; all must be beyond reproach."""
        heads = whole = at = 0
        data = self.got
        while at < len(data):
            end = data.find(b"\r\n\r\n", at)
            if end < 0:
                break
            line, *fields = data[at:end].split(b"\r\n")
            if not _is_request(line):
                # Inside a tunnel anything may be said, and what precedes it is over.
                assert not heads or b"\r\nupgrade: " in data[:at].lower(), data
                break
            names = [field.partition(b":")[0].lower() for field in fields]
            assert names.count(b"host") == 1, data
            assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1, data
            assert not {b"proxy-authorization", b"keep-alive", b"proxy-connection"} & set(names), (
                data
            )
            assert b"evil" not in data[at:end].partition(b"\r\nHost: ")[2][:20], data
            heads += 1
            head = data[at : end + 2]
            at = end + 4
            next_at: int | None = at
            if chunked(head):
                next_at = unchunk(data, at)
            elif length := _length(head):
                next_at = at + int(length[1])
            if next_at is None or next_at > len(data):
                break
            at = next_at
            whole += 1
        return heads, whole

    def pump(self) -> None:
        """Read, and go on with the script."""
        if self.closed:
            return
        peer, script = self._peer, self._script
        peer.read()
        self.got += peer.got
        peer.got = b""
        if not self._out:
            heads, whole = self.requests()
            asked = heads if script.early else whole
            if asked > self._answered:
                if self._answered >= len(script.answers):
                    self.close()
                    return
                self._out = script.answers[self._answered]
                self._answered += 1
        if self._out:
            with suppress(OSError):
                self._out = self._out[peer.sock.send(self._out[: script.cut]) :]
        if peer.ended:
            self.close()

    def close(self) -> None:
        """As the script says."""
        self.closed = True
        if self._script.resets:
            self._peer.reset()
        else:
            self._peer.close()


class Scene:
    """A proxy with clients and an origin that do as they are told."""

    def __init__(self, proxy: Proxying, scripts: list[Script]) -> None:
        self.proxy = proxy
        self._scripts = scripts
        self.servers: list[Server] = []
        port = proxy.origin.port
        names = ["origin.test", "other.test"]
        proxy.judge.policy = policy(
            default="deny",
            allow=[f"{name}:{port}" for name in names],
            deny=["evil.test"],
            private_names=[parse_name_rule(name) for name in names],
        )

    def turn(self) -> None:
        """Let something happen."""
        self.proxy.turning.turn()
        with suppress(BlockingIOError):
            sock = self.proxy.origin.sock.accept()[0]
            script = self._scripts[len(self.servers) % len(self._scripts)]
            self.servers.append(Server(Peer(self.proxy.turning, sock), script))
        for server in self.servers:
            server.pump()
        assert len(self.proxy.factory.shared.pool) <= POOL

    def play(self, visits: list[Visit]) -> None:
        """Have clients at once, taking turns; see what they got."""
        clients = [self.proxy.client() for _ in visits]
        sources = [client.sock.getsockname()[1] for client in clients]
        plans = [visit.pieces(self.proxy.origin.port) for visit in visits]
        playing = list(range(len(visits)))
        while playing:
            for number in playing.copy():
                if not self._step(clients[number], visits[number], plans[number]):
                    playing.remove(number)
                for _ in range(3):
                    self.turn()
        self._end(
            [client for client, visit in zip(clients, visits, strict=True) if visit.end != "reset"]
        )
        for client, source, visit in zip(clients, sources, visits, strict=True):
            if visit.end != "reset":
                self._check(client, source)

    def _step(self, client: Peer, visit: Visit, plan: list[bytes]) -> bool:
        """Have a client do the next thing; say whether there is more to come."""
        if plan:
            try:
                plan[0] = plan[0][client.sock.send(plan[0]) :]
            except BlockingIOError:
                pass
            except OSError:
                plan.clear()
                return True
            if not plan[0]:
                plan.pop(0)
            if visit.reads:
                client.read()
            return True
        if visit.end == "finish":
            client.finish()
        elif visit.end == "reset":
            client.reset()
        return False

    def _end(self, clients: list[Peer]) -> None:
        """Have all go, and see that they are gone."""
        admission = self.proxy.runtime.admission
        deadline = time.monotonic() + PATIENCE

        def until(condition: Callable[[], bool]) -> None:
            while not condition():
                assert time.monotonic() < deadline, (admission.open, self.proxy.flows)
                for client in clients:
                    client.read()
                self.turn()
                self.proxy.turning.turn(0.001)

        for _ in range(20):
            self.turn()
        for client in clients:
            client.finish()
        for _ in range(20):
            self.turn()
        # Whoever is still being waited for won't come.
        self._scripts = [Script([], early=True)]
        for server in self.servers:
            if not server.closed:
                server.pump()
                server.close()
        until(lambda: all(client.ended for client in clients))
        until(lambda: not admission.open and not len(self.proxy.factory.shared.pool))

    def _check(self, client: Peer, source: int) -> None:
        """See that a client got what the log says, in order, and nothing that it shouldn't."""
        flows = [flow for flow in self.proxy.flows if flow.source and flow.source.port == source]
        flows.sort(key=lambda flow: flow.started_monotonic)
        told = [flow for flow in flows if flow.status is not None]
        statuses = responses(client.got, [flow.method for flow in told])
        logged = [flow.status for flow in told]
        assert logged[: len(statuses)] == statuses, (logged, client.got)
        if not client.was_reset:
            assert len(logged) - len(statuses) <= 1, (logged, client.got)
        origins = {
            int(found[1])
            for script in SEEN
            for answer in script.answers
            for found in re.finditer(rb"HTTP/1.[01] ([0-9]{3})", answer)
        }
        assert set(statuses) <= OWN | origins | {200}, client.got
        assert 500 not in statuses


SEEN: list[Script] = []


def run(visits: list[Visit], scripts: list[Script]) -> None:
    """Play an example from the beginning to the end."""
    SEEN[:] = scripts
    with proxying(limits=LIMITS, silence=0.01, patience=0.2) as proxy:
        scene = Scene(proxy, scripts)
        scene.play(visits)
        # It still works.
        SEEN[:] = scene._scripts = [Script([OK] * 9)]
        scene.play([Visit(GET, [], "finish")])
        assert 200 == proxy.flows[-1].status, proxy.flows[-1]


GET = b"GET http://%b/ HTTP/1.1\r\nHost: x\r\n\r\n" % ORIGIN
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CONNECT = b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % ORIGIN
UPGRADE = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
POST = b"POST" + GET[3:-2] + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = b"POST" + GET[3:-2] + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
REQUESTS = [
    *(GET, b"HEAD" + GET[3:], POST, CHUNKED, UPGRADE, GET.replace(b"1.1", b"1.0")),
    *(CONNECT + b"hello", CONNECT + b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"),
    *(CONNECT + b"\x16\x03\x01\x00\x05hello", b"CONNECT evil.test:1 HTTP/1.1\r\nHost: x\r\n\r\n"),
    POST.replace(b"Content", b"Expect: 100-continue\r\nContent"),
    CHUNKED.replace(b"0\r\n\r\n", b"0\r\nX: 1\r\n\r\n"),
    GET[:-2] + b"Connection: X-Nominated, Host\r\nX-Nominated: 1\r\n\r\n",
]
SWITCHING = b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello"
ANSWERS = [
    *(OK, SWITCHING, b"HTTP/1.1 204 x\r\n\r\n", b"HTTP/1.1 304 x\r\nContent-Length: 9\r\n\r\n"),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: 1\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
    *(b"HTTP/1.1 200 OK\r\n\r\nhi", b"HTTP/1.1 100 x\r\n\r\n" + OK),
    b"HTTP/1.1 413 x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
]
FIELDS = [
    *(b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: 05", b"Content-Length: 5, 5"),
    *(b"Content-Length: 99999", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"),
    *(b"Connection: close", b"Connection: keep-alive", b"Connection: X-Nominated, Host"),
    *(b"X-Nominated: 1", b"X-Nominated : 1", b"Keep-Alive: 1", b"Proxy-Authorization: Basic eDp5"),
    *(b"Expect: 100-continue", b"Expect: x", b"TE: trailers", b"Trailer: X", b"Max-Forwards: 0"),
    *(b"Connection: Upgrade\r\nUpgrade: websocket", b"Connection: Upgrade\r\nUpgrade: h2c"),
    *(b"Host: evil.test", b"Cookie: a", b"X: " + b"x" * 5000, b"X: \x00", b" folded", b": empty"),
    *(b"Via: 1.1 sidecar-00000000", b"Proxy-Connection: keep-alive", b"\nX: 1"),
]
BODIES = [
    *(
        b"",
        b"hello",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n",
        b"0\r\n\r\n",
    ),
    *(b"5\r\nhello", b"5\nhello\n0\n\n", b"-1\r\n", b"ffffffffffffffff\r\nx", b"5\r\nhelloworld"),
    *(b"3ff\r\n" + b"x" * 1023 + b"\r\n0\r\n\r\n", b"x" * 12_000, b"0\r\nHost: evil.test\r\n\r\n"),
]
TARGETS = [
    *(b"http://%b/" % ORIGIN, b"http://%b" % ORIGIN, b"http://%b/?q#f" % ORIGIN, b"/", b"*"),
    *(b"http://other.test:{port}/%0d%0a", b"http://evil.test:{port}/", b"http://evil.test/"),
    *(b"https://origin.test/", b"ftp://x/", ORIGIN, b"http://127.0.0.1:{port}/", b"origin.test"),
    *(b"http://u@origin.test:{port}/", b"http://nowhere.test/", b"http:///", b"evil.test:443"),
    b"http://origin.test:{port}/" + b"x" * 3000,
]
METHODS = [
    *(b"GET", b"HEAD", b"POST", b"PUT", b"OPTIONS", b"TRACE", b"CONNECT", b"DELETE", b"M-SEARCH"),
    *(b"get", b"G" * 40, b"G(T"),
]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.2", b"", b"http/1.1"]
STATUSES = [
    *(b"200 OK", b"204 No Content", b"304 Not Modified", b"404 ", b"599 Bug", b"407 Password"),
    *(b"100 Continue", b"103 Early Hints", b"101 Switching Protocols", b"99 x", b"2000 x"),
]


def often(first: bytes, others: Iterable[bytes]) -> st.SearchStrategy[bytes]:
    """The usual one as often as all the others."""
    return st.one_of(st.just(first), st.sampled_from(list(others)))


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """A few bytes elsewhere, twice, missing or replaced."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 8))
        piece = draw(
            st.one_of(
                st.sampled_from([b"", b"\r\n", b"\n", b"\r", b" ", b"\0", b":", b"\r\n\r\n", b"0"]),
                st.binary(max_size=4),
                st.just(data[at : at + 4 * size] * 2),
            )
        )
        data = data[:at] + piece + data[at + size :]
    return data


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request, more or less."""
    if draw(st.booleans()):
        return draw(mutated(draw(st.sampled_from(REQUESTS))))
    method = draw(often(b"GET", METHODS))
    target = draw(often(TARGETS[0], TARGETS))
    if method == b"CONNECT":
        target = draw(often(ORIGIN, TARGETS))
    version = draw(often(b"HTTP/1.1", VERSIONS))
    fields = draw(st.lists(st.sampled_from(FIELDS), max_size=3))
    host = draw(often(b"Host: x", [b"Host: evil.test", b"", b"Host: ", b"Host: a, b"]))
    lines = [b" ".join([method, target, version]), host, *fields]
    head = b"\r\n".join([line for line in lines if line] + [b"", b""])
    return draw(mutated(head + draw(often(b"", BODIES))))


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """One response, more or less, and perhaps some before it, or behind."""
    if draw(st.booleans()):
        return draw(mutated(draw(st.sampled_from(ANSWERS))))
    version = draw(often(b"HTTP/1.1", VERSIONS))
    fields = draw(st.lists(st.sampled_from(FIELDS), max_size=3))
    status = draw(often(b"200 OK", STATUSES))
    head = b"\r\n".join([b"%b %b" % (version, status), *fields, b"", b""])
    whole = draw(mutated(head + draw(often(b"", BODIES))))
    before = draw(often(b"", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 x\r\n\r\n" * 50]))
    return before + whole + draw(often(b"", [OK, b"\r\n", b"x"]))


cuts = st.lists(st.integers(1, 80), max_size=8)
ends = st.sampled_from(["keep", "finish", "reset"])
visits = st.lists(
    st.builds(
        Visit, st.lists(requests(), min_size=1, max_size=4).map(b"".join), cuts, ends, st.booleans()
    ),
    min_size=1,
    max_size=3,
)
scripts = st.lists(
    st.builds(
        Script,
        st.lists(st.one_of(st.just(OK), answers()), min_size=1, max_size=3),
        st.booleans(),
        st.sampled_from([1, 7, 100, 1 << 20]),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


@given(visits, scripts)
@example([Visit(GET * 3, [], "finish")], [Script([OK] * 3)])
@example([Visit(GET * 3, [1] * 40, "reset")], [Script([OK] * 3, early=True, cut=1)])
@example(
    [Visit(b"CONNECT evil.test:443 HTTP/1.1\r\nHost: x\r\n\r\n" + GET, [], "finish")],
    [Script([OK])],
)
@example(
    [Visit(CONNECT + b"GET / HTTP/1.1\r\n", [])],
    [Script([OK])],
)
def test_structure(visits: list[Visit], scripts: list[Script]) -> None:
    """Requests and responses with faults, in pieces, from several clients at once."""
    run(visits, scripts)


@given(st.binary(max_size=200), cuts, ends, st.binary(max_size=200), st.booleans())
def test_bytes(data: bytes, cuts: list[int], end: str, said: bytes, resets: bool) -> None:
    """Bytes for requests, and bytes for responses."""
    run([Visit(data, cuts, end), Visit(GET, cuts, end)], [Script([said], resets=resets)])


@given(st.lists(requests(), min_size=5, max_size=12), cuts, st.booleans())
def test_pipelines(pipeline: list[bytes], cuts: list[int], reads: bool) -> None:
    """Many requests ahead, of which some end the connection."""
    good = [each if number % 3 else GET for number, each in enumerate(pipeline)]
    run([Visit(b"".join(good), cuts, "finish", reads)], [Script([OK] * 12)])


@given(st.lists(answers(), min_size=1, max_size=4), st.sampled_from([1, 3, 1 << 20]))
@example([SWITCHING], 1)
def test_responses(said: list[bytes], cut: int) -> None:
    """Good requests, of all kinds, and what is said to them."""
    old = GET.replace(b"1.1", b"1.0")
    run(
        [
            Visit(GET * 2 + POST + b"HEAD" + GET[3:], [], "finish"),
            Visit(old, [], "finish"),
            Visit(UPGRADE, [], "finish"),
        ],
        [Script(said, cut=cut)],
    )
