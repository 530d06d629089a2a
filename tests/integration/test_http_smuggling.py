"""Requests in disguise (CASES §5), through the proxy to origins that are as lenient as can be.

Whatever a client sends, an origin sees at most the one request that was judged. What is
hidden in each attack is a request that the policy denies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from integration.framings import CHUNKS, FRAMINGS, HEADS, HIDDEN, LINES, Framing, bodies
from integration.smuggling_stage import (
    DENIED,
    ORIGINS,
    SmugglingStage,
    answers,
    smuggling_stage,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.thorough

_CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module", name="stage")
def _stage(_namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmugglingStage]:
    with smuggling_stage(tmp_path_factory.mktemp("smuggling")) as made:
        yield made
        # Of what was there in the end, nothing came later.
        for name in ORIGINS:
            made.fence(name)
            assert [] == made.seen(name, "/smuggled/")
            assert [] == [each for each in made.origins[name].seen() if DENIED in each.host]


@pytest.fixture(params=ORIGINS)
def origin(request: pytest.FixtureRequest) -> str:
    origin: str = request.param
    return origin


class Attack:
    """One connection's worth of mischief.

    Attributes:
        serial: In the path of all its requests.
        host: The origin's authority.
        hidden: A request that is denied, in two spellings.
    """

    def __init__(self, stage: SmugglingStage, origin: str) -> None:
        self._stage = stage
        self._origin = origin
        self.serial = stage.serial()
        self.port = ORIGINS[origin]
        self.host = f"{origin}.test:{self.port}".encode()
        self.hidden = [each % self.facts for each in HIDDEN]

    @property
    def facts(self) -> dict[bytes, object]:
        """What stands in place of names in attacks."""
        facts: dict[bytes, object] = {b"serial": self.serial, b"port": self.port}
        if hasattr(self, "host"):
            facts[b"host"] = self.host
            facts[b"url"] = b"http://%b/judged/%d" % (self.host, self.serial)
        return facts

    def head(self, fields: bytes, version: bytes = b"1.1", method: bytes = b"POST") -> bytes:
        """A request's head."""
        line = b"%b http://%b/judged/%d HTTP/%b\r\n" % (
            method,
            self.host,
            self.serial,
            version,
        )
        return line + b"Host: %b\r\n%b\r\n" % (self.host, fields)

    def refused(self, *statuses: int, sent: Sequence[bytes]) -> None:
        """See it refused, and the connection closed by the proxy.

        Args:
            statuses: One of which the client is told, once.
            sent: In pieces.
        """
        got = self._stage.tell(*sent)
        (told,) = answers(got)
        assert told.status in statuses, got
        assert told.whole

    def unseen(self, *, most: int) -> None:
        """See that the origin has at most the judged request, and is in step."""
        seen = self._stage.seen(self._origin, f"/{self.serial} ")
        assert len(seen) <= most, seen
        for each in seen:
            assert f"POST /judged/{self.serial} HTTP/1.1" == each.line
            assert self.host.decode() == each.host


@pytest.mark.parametrize("framing", FRAMINGS, ids=[each.name for each in FRAMINGS])
def test_framing(stage: SmugglingStage, origin: str, framing: Framing) -> None:
    """M1, M2: a request with two possible ends is refused before anything of it goes anywhere."""
    attack = Attack(stage, origin)
    for hidden in attack.hidden:
        for counted, rest in bodies(hidden).values():
            head = attack.head(framing.fields, framing.version) % {b"n": len(counted)}
            attack.refused(framing.status, sent=[head + counted + rest])
    # In pieces, and as a request that has no body usually.
    counted, rest = bodies(attack.hidden[0])["behind-the-last-chunk"]
    head = attack.head(framing.fields, framing.version, b"GET") % {b"n": len(counted)}
    attack.refused(framing.status, sent=[head[:60], head[60:-3], head[-3:] + counted + rest])
    stage.fence(origin)
    attack.unseen(most=0)


@pytest.mark.parametrize("chunks", [each[1] for each in CHUNKS], ids=[each[0] for each in CHUNKS])
def test_chunks(stage: SmugglingStage, origin: str, chunks: bytes) -> None:
    """M3: chunks that aren't quite; the origin gets nothing, or nothing that is whole."""
    attack = Attack(stage, origin)
    for hidden in attack.hidden:
        attack.refused(400, sent=[attack.head(_CHUNKED) + chunks + hidden])
    attack.unseen(most=0)
    # The origin has its head by the time that it shows, and may have answered.
    begun = attack.head(_CHUNKED) + b"1\r\nx\r\n"
    attack.refused(400, 200, 405, sent=[begun, chunks + attack.hidden[0]])
    stage.fence(origin)
    attack.unseen(most=1)
    if origin == "python":
        assert all(
            b"GET" not in each.body
            for each in stage.python.requests
            if f"/{attack.serial} " in each.line
        )


@pytest.mark.parametrize("pieces", [1, 2])
def test_chunks_that_are_right(stage: SmugglingStage, origin: str, pieces: int) -> None:
    """Unusual chunks that everybody reads the same arrive as what they mean, made anew."""
    attack = Attack(stage, origin)
    hidden = attack.hidden[0]
    chunks = b'5;a=b;c="d;e"\r\nhello\r\n%08X\r\n%b\r\n000\r\nX-Trailer: 1\r\n\r\n' % (
        len(hidden),
        hidden,
    )
    sent = attack.head(_CHUNKED) + chunks
    middle = len(sent) // 2 if pieces > 1 else len(sent)
    (told,) = answers(stage.tell(sent[:middle], sent[middle:], finish=True))
    assert told.status in {200, 405}
    stage.fence(origin)
    assert 1 == len(stage.seen(origin, f"/{attack.serial} ", 1))
    if origin == "python":
        (request,) = (each for each in stage.python.requests if f"/{attack.serial} " in each.line)
        assert b"hello" + hidden == request.body


_MEANT = {
    "cl": b"Content-Length: %(n)d\r\n",
    "cl-blanks": b"Content-Length:  \t%(n)d \t\r\n",
    "cl-zeros": b"Content-Length: 000%(n)d\r\n",
    "cl-nominated": b"Connection: Content-Length\r\nContent-Length: %(n)d\r\n",
    "cl-nominated-close": b"Connection: close, Content-Length, Host\r\nContent-Length: %(n)d\r\n",
    "cl-and-others": b"Content_Length: 0\r\nX-Content-Length: 0\r\nContent-Length: %(n)d\r\n",
    "cl-and-te-lookalikes": b"Transfer_Encoding: chunked\r\nTE: chunked\r\n"
    b"X-Transfer-Encoding: chunked\r\nContent-Encoding: chunked\r\nContent-Length: %(n)d\r\n",
    "cl-old": b"Connection: keep-alive\r\nContent-Length: %(n)d\r\n",
}


@pytest.mark.parametrize("fields", _MEANT.values(), ids=_MEANT)
@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE", b"M-SEARCH"])
def test_hidden_in_a_body(stage: SmugglingStage, origin: str, fields: bytes, method: bytes) -> None:
    """What is in a body stays there, whatever else the head says and Connection nominates."""
    attack = Attack(stage, origin)
    body = b"0\r\n\r\n" + attack.hidden[0]
    sent = attack.head(fields, method=method) % {b"n": len(body)} + body
    (told,) = answers(stage.tell(sent, finish=True))
    # What they think of methods and bodies is their affair; that it is one request isn't.
    assert told.status in {200, 400, 405, 501}
    stage.fence(origin)
    (seen,) = stage.seen(origin, f"/{attack.serial} ", 1)
    line = b"%b /judged/%d HTTP/1.1" % (method, attack.serial)
    assert (line.decode(), attack.host.decode()) == (seen.line, seen.host)
    if origin == "python":
        (request,) = (each for each in stage.python.requests if f"/{attack.serial} " in each.line)
        assert body == request.body
        lengths = [value for name, value in request.fields if name.lower() == "content-length"]
        assert [str(len(body))] == lengths


@pytest.mark.parametrize(
    ("fields", "status"), [each[1:] for each in HEADS], ids=[each[0] for each in HEADS]
)
def test_heads(stage: SmugglingStage, origin: str, fields: bytes, status: int) -> None:
    """M4, M8, M11: a head that two could read differently goes nowhere."""
    attack = Attack(stage, origin)
    for hidden in attack.hidden:
        head = attack.head(fields.replace(b"%(serial)d", b"%d" % attack.serial), method=b"GET")
        attack.refused(status, sent=[head + hidden])
    stage.fence(origin)
    attack.unseen(most=0)


@pytest.mark.parametrize(
    ("head", "status"), [each[1:] for each in LINES], ids=[each[0] for each in LINES]
)
def test_lines(stage: SmugglingStage, origin: str, head: bytes, status: int) -> None:
    """M4, M8, M10: nor does one with a request line that is none, or none for a proxy."""
    attack = Attack(stage, origin)
    got = stage.tell(head % attack.facts + attack.hidden[0], finish=True)
    told = [each.status for each in answers(got)]
    # Where it is clear where it ends, the next one is refused as well, by itself.
    assert status == told[0], got
    assert set(told[1:]) <= {400}, got
    stage.fence(origin)
    attack.unseen(most=0)


def test_pipelined(stage: SmugglingStage, origin: str) -> None:
    """M5: requests sent ahead are judged one by one, by their own hosts, and answered in order."""
    attack = Attack(stage, origin)
    one = attack.head(b"", method=b"GET")
    posted = attack.head(b"Content-Length: 3\r\n") + b"abc"
    chunked = attack.head(_CHUNKED) + b"3\r\nabc\r\n0\r\n\r\n"
    got = stage.tell(
        (one + attack.hidden[1] + posted + attack.hidden[0] + chunked + attack.hidden[1]) * 3,
        finish=True,
    )
    told = [each.status for each in answers(got)]
    posts = {200, 405}
    assert 18 == len(told)
    for number in range(0, 18, 6):
        first, denied, second, unclear, third, denied_too = told[number : number + 6]
        assert [200, 403, 400, 403] == [first, denied, unclear, denied_too]
        assert {second, third} <= posts
    stage.fence(origin)
    assert 9 == len(stage.seen(origin, f"/judged/{attack.serial} ", 9))


def test_behind_a_refused_connect(stage: SmugglingStage, origin: str) -> None:
    """M5: what was meant for a tunnel that is refused is no request to us."""
    attack = Attack(stage, origin)
    asked = b"CONNECT %b:%d HTTP/1.1\r\nHost: %b\r\n\r\n" % (
        DENIED.encode(),
        attack.port,
        DENIED.encode(),
    )
    behind = attack.head(b"", method=b"GET")
    attack.refused(403, sent=[asked + behind])
    stage.fence(origin)
    attack.unseen(most=0)


def test_inside_a_tunnel(stage: SmugglingStage, origin: str) -> None:
    """M5: in a tunnel that was granted, all is the client's and the server's affair."""
    attack = Attack(stage, origin)
    asked = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (attack.host, attack.host)
    inside = b"GET /judged/%d HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (
        attack.serial,
        attack.host,
    )
    got = stage.tell(asked + inside)
    # The 200 of CONNECT has no body.
    head, _, rest = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    (told,) = answers(rest)
    assert (200, b"/judged/%d" % attack.serial) == (told.status, told.field(b"X-Path"))
    assert 1 == len(stage.seen(origin, f"/{attack.serial} ", 1))


def test_behind_an_upgrade(stage: SmugglingStage, origin: str) -> None:
    """M5: an upgrade that the origin doesn't grant; what was said ahead never reaches it unread."""
    attack = Attack(stage, origin)
    fields = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    got = stage.tell(attack.head(fields, method=b"GET") + attack.hidden[1], finish=True)
    assert [200, 403] == [each.status for each in answers(got)]
    stage.fence(origin)
    assert 1 == len(stage.seen(origin, f"/{attack.serial} ", 1))


@pytest.mark.parametrize("offer", [b"h2c", b"h2c, websocket", b"HTTP/2.0", b"TLS/1.0"])
def test_upgrade_to_http2(stage: SmugglingStage, origin: str, offer: bytes) -> None:
    """M5: h2c would carry requests that nobody judges; nobody is offered it."""
    attack = Attack(stage, origin)
    fields = (
        b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
        b"Upgrade: %b\r\n" % offer
    )
    (told,) = answers(stage.tell(attack.head(fields, method=b"GET"), finish=True))
    assert 200 == told.status
    stage.fence(origin)
    for each in stage.python.requests:
        if f"/{attack.serial} " in each.line:
            names = {name.lower() for name, _ in each.fields}
            assert {"upgrade", "http2-settings", "connection"}.isdisjoint(names)


_HOP_BY_HOP = {
    "nominated": b"Connection: X-Auth, close\r\nX-Auth: secret\r\n",
    "nominated-twice": b"Connection: X-Auth\r\nX-Auth: secret\r\nConnection: X-Auth\r\n",
    "nominated-case": b"connection: x-aUTH\r\nX-Auth: secret\r\nx-auth: secret\r\n",
    "proxy-authorization": b"Proxy-Authorization: Basic c2VjcmV0OnNlY3JldA==\r\n",
    "proxy-connection": b"Proxy-Connection: keep-alive\r\n",
    "keep-alive": b"Keep-Alive: secret\r\n",
    "te": b"TE: gzip, secret\r\nConnection: TE\r\n",
    "host": b"Connection: close, Host\r\n",
    "nothing": b"Connection: , ,,\r\n",
}


@pytest.mark.parametrize("fields", _HOP_BY_HOP.values(), ids=_HOP_BY_HOP)
def test_hop_by_hop(stage: SmugglingStage, fields: bytes) -> None:
    """M7: what is for this hop stays here; Host doesn't, whoever nominates it."""
    attack = Attack(stage, "python")
    (told,) = answers(stage.tell(attack.head(fields, method=b"GET"), finish=True))
    assert 200 == told.status
    (request,) = (each for each in stage.python.requests if f"/{attack.serial} " in each.line)
    names = [name.lower() for name, _ in request.fields]
    assert {"host", "via"} <= set(names) <= {"host", "via", "connection", "te"}, names
    assert "secret" not in str(request.fields)
    assert [attack.host.decode()] == [
        value for name, value in request.fields if name.lower() == "host"
    ]


@pytest.mark.parametrize("named", [b"denied.test", b"python.test:1", b"[::1]", b"127.0.0.1:80"])
def test_other_host(stage: SmugglingStage, origin: str, named: bytes) -> None:
    """M8: the target says whom a request is for; the origin sees that, not Host."""
    attack = Attack(stage, origin)
    head = b"GET http://%b/judged/%d HTTP/1.1\r\nHost: %b\r\n\r\n" % (
        attack.host,
        attack.serial,
        named,
    )
    (told,) = answers(stage.tell(head, finish=True))
    assert 200 == told.status
    stage.fence(origin)
    (seen,) = stage.seen(origin, f"/{attack.serial} ", 1)
    assert attack.host.decode() == seen.host


def test_several_cookies(stage: SmugglingStage) -> None:
    """M8: fields that come more than once arrive as often, in order."""
    attack = Attack(stage, "python")
    fields = b"Cookie: a=1\r\nX: 1\r\nCookie: b=2\r\nX: 2\r\nAccept: a\r\nAccept: b\r\n"
    (told,) = answers(stage.tell(attack.head(fields, method=b"GET"), finish=True))
    assert 200 == told.status
    (request,) = (each for each in stage.python.requests if f"/{attack.serial} " in each.line)
    kept = [field for field in request.fields if field[0] in {"Cookie", "X", "Accept"}]
    expected = [("Cookie", "a=1"), ("X", "1"), ("Cookie", "b=2"), ("X", "2")]
    assert [*expected, ("Accept", "a"), ("Accept", "b")] == kept


def test_encoded_line_ends(stage: SmugglingStage, origin: str) -> None:
    """M9: CR and LF that are encoded stay so, in the request and in whatever is said of it."""
    attack = Attack(stage, origin)
    path = b"/judged/%0d%0aX-Injected:%201%0d%0a%0d%0aGET%20/smuggled".replace(
        b"judged", b"judged-%d" % attack.serial
    )
    head = b"GET http://%b%b HTTP/1.1\r\nHost: %b\r\n\r\n" % (attack.host, path, attack.host)
    (told,) = answers(stage.tell(head, finish=True))
    # Apache can't put it into the field that it has for us.
    assert told.status in {200, 500}
    assert told.field(b"X-Injected") is None
    stage.fence(origin)
    (seen,) = stage.seen(origin, f"/judged-{attack.serial}/", 1)
    assert f"GET {path.decode()} HTTP/1.1" == seen.line
