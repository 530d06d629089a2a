"""What flows through the HTTP proxy: large, endless, framed in every way."""

from __future__ import annotations

import hashlib
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from integration.http_origins import Conversation, Request, head, scripted
from integration.http_stage import PROXY, PROXY_URL, HttpStage, facts, http_stage, needs
from integration.netns import DEADLINE
from integration.origins import BULK_SIZE, bulk, bulk_digest
from integration.proxy import Program, eventually

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from integration.proxy import Sidecar

pytestmark = pytest.mark.thorough

_MEMORY = 16 * 1024  # KiB that sidecar may need for any of this

_programs = needs("nginx", "curl", "sha256sum")


@pytest.fixture(scope="module", name="stage")
def _stage(
    _namespaces: None, _programs: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HttpStage]:
    with http_stage(tmp_path_factory.mktemp("stage")) as made:
        yield made


@pytest.fixture(scope="module", name="sidecar")
def _sidecar(stage: HttpStage) -> Iterator[Sidecar]:
    with stage.proxied() as made:
        yield made


@pytest.fixture(scope="module", name="file")
def _file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All that is sent, for clients that send files."""
    path = tmp_path_factory.mktemp("bulk") / "file"
    with path.open("wb") as opened:
        opened.writelines(bulk())
    yield path
    path.unlink()


def peak(sidecar: Sidecar) -> int:
    """How many KiB of its memory were ever resident at once (VmHWM, proc(5))."""
    status = Path(f"/proc/{sidecar.pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found is not None
    return int(found[1])


class TestBulk:
    @pytest.mark.parametrize("tunnel", [False, True])
    @pytest.mark.parametrize("framing", ["length", "chunked", "close"])
    def test_down(self, stage: HttpStage, sidecar: Sidecar, framing: str, *, tunnel: bool) -> None:
        """200 MiB arrive as they were sent, however they are framed; none of it piles up."""
        fields = {
            "length": [f"Content-Length: {BULK_SIZE}"],
            "chunked": ["Transfer-Encoding: chunked"],
            "close": ["Connection: close"],
        }[framing]

        def answer(conversation: Conversation, _: Request) -> None:
            conversation.send(head("200 OK", *fields))
            for block in map(bytes, bulk()):
                if framing == "chunked":
                    conversation.send(f"{len(block):x}\r\n", block, "\r\n")
                else:
                    conversation.send(block)
            if framing == "chunked":
                conversation.send("0\r\n\r\n")

        host, address, before = stage.host(), stage.address(), peak(sidecar)
        flags = ["--proxytunnel"] if tunnel else []
        command = ["curl", "-q", "-sS", "--fail", "--proxy", PROXY_URL, *flags]
        with scripted(stage.namespace, address, answer, once=framing == "close"):
            script = f'"$@" http://{host}:{address.port}/ | sha256sum'
            done = stage.run("sh", "-c", script, "sh", *command, timeout=60)
        assert bulk_digest() == done.stdout.split()[0], done
        line = sidecar.line(host=host)
        assert "closed" == line["end"]
        if not tunnel:
            assert BULK_SIZE == line["received"]
        assert peak(sidecar) - before < _MEMORY

    @pytest.mark.parametrize("chunked", [False, True])
    def test_up(self, stage: HttpStage, sidecar: Sidecar, file: Path, *, chunked: bool) -> None:
        """Likewise what a client uploads."""

        def answer(conversation: Conversation, request: Request) -> None:
            digest = hashlib.sha256()
            if request.one("expect"):
                conversation.send(head("100 Continue"))
            for piece in conversation.content(request):
                digest.update(piece)
            conversation.send(head("200 OK", "Content-Length: 64"), digest.hexdigest())

        host, address, before = stage.host(), stage.address(), peak(sidecar)
        flags = ["--header", "Transfer-Encoding: chunked"] if chunked else []
        with scripted(stage.namespace, address, answer) as requests:
            curled = stage.curl(
                *("--upload-file", str(file), "--max-time", "60", *flags),
                f"http://{host}:{address.port}/",
            )
        assert bulk_digest() == curled.body, curled
        [request] = requests
        assert chunked == (request.one("transfer-encoding") == "chunked")
        assert BULK_SIZE == sidecar.line(host=host)["sent"]
        assert peak(sidecar) - before < _MEMORY

    def test_both(self, stage: HttpStage, sidecar: Sidecar, file: Path) -> None:
        """Chunks flow both ways at once: each piece is answered before all are there."""

        def answer(conversation: Conversation, request: Request) -> None:
            conversation.send(head("200 OK", "Transfer-Encoding: chunked"))
            for piece in conversation.content(request):
                conversation.send(f"{len(piece):x}\r\n", piece, "\r\n")
            conversation.send("0\r\n\r\n")

        host, address = stage.host(), stage.address()
        script = 'head -c 20000000 "$0" | "$@" | sha256sum'
        command = ["curl", "-q", "-sS", "--proxy", PROXY_URL, "--header", "Expect:"]
        command += ["--upload-file", "-", f"http://{host}:{address.port}/"]
        with scripted(stage.namespace, address, answer):
            done = stage.run("sh", "-c", script, str(file), *command)
        expected = hashlib.sha256()
        with file.open("rb") as opened:
            expected.update(opened.read(20_000_000))
        assert expected.hexdigest() == done.stdout.split()[0], done
        assert [20_000_000] * 2 == facts(sidecar.line(host=host), "sent", "received")


@pytest.mark.parametrize("chunked", [False, True])
def test_events(stage: HttpStage, sidecar: Sidecar, tmp_path: Path, *, chunked: bool) -> None:
    """Server-sent events are shown one by one: the next is sent when the last was seen."""
    shown = [threading.Event() for _ in range(4)]

    def answer(conversation: Conversation, _: Request) -> None:
        framing = ["Transfer-Encoding: chunked"] if chunked else ["Connection: close"]
        conversation.send(head("200 OK", "Content-Type: text/event-stream", *framing))
        for number, event in enumerate(shown):
            text = f"data: event {number}\n\n"
            conversation.send(f"{len(text):x}\r\n{text}\r\n" if chunked else text)
            assert event.wait(DEADLINE)
        if chunked:
            conversation.send("0\r\n\r\n")

    host, address = stage.host(), stage.address()
    command = ["curl", "-q", "-sS", "--no-buffer", "--proxy", PROXY_URL]
    with scripted(stage.namespace, address, answer, once=not chunked):
        client = Program(
            stage.namespace, [*command, f"http://{host}:{address.port}/"], cwd=tmp_path
        )
        try:
            for number, event in enumerate(shown):
                # Not bound late: wait_until returns before the next.
                wanted = f"data: event {number}"
                client.wait_until(lambda wanted=wanted: wanted in client.printed)  # type: ignore[misc]
                event.set()
            assert 0 == client.wait()
        finally:
            if client.alive:
                client.kill()
    assert ["closed", 200] == facts(sidecar.line(host=host), "end", "status")


class TestWithoutContent:
    """Responses that end with their heads, and a connection that goes on after each."""

    @pytest.mark.parametrize(
        ("flags", "status", "fields"),
        [
            (["--head"], "200 OK", ["Content-Length: 1000"]),
            (["--head"], "200 OK", ["Transfer-Encoding: chunked"]),
            ([], "204 No Content", []),
            (["--header", "If-None-Match: *"], "304 Not Modified", ["Content-Length: 1000"]),
            ([], "200 OK", ["Content-Length: 0"]),
        ],
    )
    def test_kept(
        self,
        stage: HttpStage,
        sidecar: Sidecar,
        flags: Sequence[str],
        status: str,
        fields: Sequence[str],
    ) -> None:
        """What the fields say of a content that isn't sent is passed on, and believed by nobody."""
        host, address = stage.host(), stage.address()
        url = f"http://{host}:{address.port}/"

        def answer(conversation: Conversation, _: Request) -> None:
            conversation.send(head(status, *fields))

        with scripted(stage.namespace, address, answer) as requests:
            curled = stage.curl(*flags, url, url, facts="%{http_code} %{num_connects}")
        code = status.partition(" ")[0]
        assert (0, [code, "1", code, "0"]) == (curled.exit, curled.facts), curled
        assert 2 * ("Content-Length: 1000" in fields) == curled.head.count(
            "Content-Length: 1000\r\n"
        )
        lines = sidecar.wait_for_lines(2, host=host, status=int(code), received=0, end="closed")
        assert 2 == len(requests) == len(lines)


def test_early_hints(stage: HttpStage, sidecar: Sidecar) -> None:
    """Interim responses come through, and before the final one."""
    host, address = stage.host(), stage.address()

    def answer(conversation: Conversation, _: Request) -> None:
        hint = "Link: </style.css>; rel=preload"
        conversation.send(head("102 Processing"), head("103 Early Hints", hint))
        conversation.send(head("200 OK", "Content-Length: 2"), "ok")

    with scripted(stage.namespace, address, answer):
        curled = stage.curl(f"http://{host}:{address.port}/")
    assert "ok" == curled.body, curled
    assert ["102", "103", "200"] == re.findall(r"^HTTP/1.1 (\d+)", curled.head, re.MULTILINE)
    assert "Link: </style.css>; rel=preload" in curled.head
    assert 200 == sidecar.line(host=host)["status"]


@pytest.mark.parametrize("wanted", [False, True])
def test_trailers(stage: HttpStage, sidecar: Sidecar, *, wanted: bool) -> None:
    """Fields after the content arrive after it; a client gets those that it wants."""
    host, address = stage.host(), stage.address()

    def answer(conversation: Conversation, request: Request) -> None:
        assert b"hello" == b"".join(conversation.content(request))
        conversation.send(head("200 OK", "Transfer-Encoding: chunked", "Trailer: Digest"))
        conversation.send("2\r\nok\r\n0\r\nDigest: of-ok\r\n\r\n")

    url = f"http://{host}:{address.port}/"
    flags = ["--header", "TE: trailers", "--header", "Connection: TE"] if wanted else []
    with scripted(stage.namespace, address, answer) as requests:
        curled = stage.curl(*flags, "--data", "hello", url)
        assert "ok" == curled.body, curled
        assert wanted == ("Digest: of-ok\r\n" in curled.head)
        # What curl doesn't send.
        with (
            stage.namespace.connect(SocketAddress("127.0.0.1", PROXY)) as client,
            client.makefile("rb") as heard,
        ):
            client.sendall(
                f"POST {url} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n"
                "Trailer: Digest\r\n\r\n5\r\nhello\r\n0\r\nDigest: of-hello\r\n\r\n".encode()
            )
            assert b"HTTP/1.1 200 OK\r\n" == heard.readline()
    assert ["trailers" if wanted else None, None] == [each.one("te") for each in requests]
    assert [("digest", "of-hello")] == requests[1].trailers
    sidecar.wait_for_lines(1, host=host, status=200)


def test_nothing_left(sidecar: Sidecar) -> None:
    """After all of the above, sidecar has no connection of a client's left."""
    eventually(
        set(),
        lambda: {
            link for link in _sockets(sidecar) if link in _established(sidecar, f":{PROXY:04X}")
        },
    )


def _sockets(sidecar: Sidecar) -> set[str]:
    found = set()
    for each in Path(f"/proc/{sidecar.pid}/fd").iterdir():
        # It may close it just now.
        with suppress(FileNotFoundError):
            found.add(str(each.readlink()))
    return found


def _established(sidecar: Sidecar, local: str) -> set[str]:
    rows = Path(f"/proc/{sidecar.pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    fields = [row.split() for row in rows]
    return {f"socket:[{each[9]}]" for each in fields if each[1].endswith(local) and each[3] != "0A"}
