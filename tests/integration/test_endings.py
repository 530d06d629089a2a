"""What sidecar leaves behind when it ends, and what it says when its log can't be written."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from integration import clients, origins
from integration.clients import Outcome, exchange
from integration.netns import BLACK_HOLE
from integration.origins import Origin
from integration.proxy import CLEAN_EXIT, ISTIO, ROOT, Sidecar, applied, eventually, running

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.netns import Family, Pair

pytestmark = pytest.mark.thorough

_FORWARD = 8001
# Access log lines; more than a pipe holds (64 KiB, pipe(7)), at some 400 bytes each.
_MORE_THAN_A_PIPE_HOLDS = 400


@pytest.fixture(scope="module", autouse=True)
def _rules(pair: Pair) -> Iterator[None]:
    """Redirect, for every test here."""
    with applied(pair.near.namespace, "--mode", "redirect", "--exclude-uid", "1337"):
        yield


def test_sigterm_ends_everything(pair: Pair, outside: Path, family: Family, port: int) -> None:
    """SIGTERM logs every open flow as ended by shutdown, whatever it was at, and ends the process.

    Flows: one that is being relayed, one half-closed, one whose upstream doesn't answer
    and one that ended before.
    """
    near = pair.near.namespace
    server = pair.far.at(family, port)
    nowhere = SocketAddress(BLACK_HOLE[family], port)
    with ExitStack() as stack:
        sidecar = stack.enter_context(running(near, cwd=outside, identity=ISTIO))
        stack.enter_context(Origin(pair.far.namespace, server, origins.echo))
        with near.connect(server) as early:
            assert exchange(early, b"early") == b"early"
        sidecar.wait_for_lines(1, destination=server, end="closed")
        relayed = stack.enter_context(near.connect(server))
        assert exchange(relayed, b"relayed") == b"relayed"
        listener = stack.enter_context(pair.far.namespace.listen(pair.far.at(family, port + 1000)))
        half_closed = stack.enter_context(near.connect(pair.far.at(family, port + 1000)))
        half_closed.sendall(b"bye")
        half_closed.shutdown(socket.SHUT_WR)
        accepted = stack.enter_context(listener.accept()[0])
        assert origins.received(accepted) == b"bye"
        descriptors = sidecar.descriptors()
        dialling = stack.enter_context(near.connect(nowhere))
        dialling.sendall(b"anybody?")
        eventually(descriptors + 2, sidecar.descriptors)

        assert sidecar.stop() == CLEAN_EXIT
        for connection in (relayed, half_closed, dialling):
            assert Outcome(b"", reset=True) == clients.outcome_of_reading(connection)
        assert clients.outcome_after_eof(accepted).reset
        found = [
            (line["destination"], line["end"], line["sent"], line["received"])
            for line in sidecar.lines()
        ]
        assert [(str(server), "closed", 5, 5)] == found[:1]
        assert {
            (str(server), "shutdown", 7, 7),
            (str(pair.far.at(family, port + 1000)), "shutdown", 3, 0),
            (str(nowhere), "shutdown", 0, 0),
        } == set(found[1:])
        assert len(found) == 4
        assert not any("Traceback" in message for message in sidecar.messages())


def test_sigint_is_no_different(pair: Pair, outside: Path, port: int) -> None:
    """Ctrl-C ends it in the same way."""
    near = pair.near.namespace
    server = pair.far.at("ipv4", port)
    with (
        running(near, cwd=outside, identity=ISTIO) as sidecar,
        Origin(pair.far.namespace, server, origins.echo),
        near.connect(server) as relayed,
    ):
        assert exchange(relayed, b"relayed") == b"relayed"
        os.kill(sidecar.pid, signal.SIGINT)
        assert sidecar.wait() == -signal.SIGINT
        assert ["shutdown"] == [line["end"] for line in sidecar.lines()]


def test_no_answer_is_a_timeout(pair: Pair, outside: Path, family: Family, port: int) -> None:
    """An upstream that never answers is given up after the configured time, with a reset."""
    near = pair.near.namespace
    nowhere = SocketAddress(BLACK_HOLE[family], port)
    config = outside / f"timeout{port}.toml"
    config.write_text("[limits]\nconnect_timeout = 0.2\n", encoding="utf-8")
    arguments = ["--config", str(config), "--outbound", "transparent:15001"]
    with running(near, arguments, ports=[15001], cwd=outside, identity=ISTIO) as sidecar:
        outcome = clients.outcome_of_talking(near, nowhere)
        assert Outcome(b"", reset=True) == outcome
        line = sidecar.line(destination=nowhere)
        expected = ("connection_timeout", str(nowhere), 0)
        assert expected == (line["end"], line["upstream"], line["received"])


def _fetches(pair: Pair, server: SocketAddress, count: int) -> None:
    for _ in range(count):
        with pair.near.namespace.connect(server) as connection:
            assert exchange(connection, b"hello") == b"hello"


def test_log_file_is_appended_to(pair: Pair, outside: Path, port: int) -> None:
    """Lines are added to what a file holds; the last flow's is there once the process has ended."""
    path = outside / f"access{port}.log"
    path.write_text("what was there\n", encoding="utf-8")
    server = pair.far.at("ipv4", port)
    with Origin(pair.far.namespace, server, origins.echo):
        for _ in range(2):
            with running(pair.near.namespace, cwd=outside, access_log=str(path)):
                _fetches(pair, server, 3)
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    assert first == "what was there"
    assert [str(server)] * 6 == [json.loads(line)["destination"] for line in lines]


def test_full_disk_does_not_stop_traffic(pair: Pair, outside: Path, port: int) -> None:
    """With no room for the log connections are relayed as ever, and one message says so."""
    server = pair.far.at("ipv4", port)
    with (
        Origin(pair.far.namespace, server, origins.echo),
        running(pair.near.namespace, cwd=outside, access_log="/dev/full") as sidecar,
    ):
        _fetches(pair, server, 100)
        sidecar.wait_until(lambda: any("No space left" in text for text in sidecar.messages()))
        _fetches(pair, server, 100)
    assert 1 == sum("traffic goes on" in text for text in sidecar.messages())


def test_closed_pipe_does_not_stop_traffic(pair: Pair, outside: Path, port: int) -> None:
    """When the log's reader has gone (`twistd … | head -1`) connections are relayed as ever."""
    server = pair.far.at("ipv4", port)
    read_end, write_end = os.pipe()
    with Origin(pair.far.namespace, server, origins.echo), ExitStack() as stack:
        try:
            sidecar = Sidecar(
                pair.near.namespace,
                ["--outbound", "transparent:15001"],
                ports=[15001],
                cwd=outside,
                identity=ROOT,
                stdout=write_end,
            )
        finally:
            os.close(write_end)
            os.close(read_end)
        stack.callback(sidecar.stop)
        _fetches(pair, server, 100)
        sidecar.wait_until(lambda: any("closed by its reader" in m for m in sidecar.messages()))
        _fetches(pair, server, 100)
        assert sidecar.stop() == CLEAN_EXIT
        stack.pop_all()


def test_stuck_reader_does_not_stop_traffic(pair: Pair, outside: Path, port: int) -> None:
    """While nobody reads the log's pipe connections are relayed; what is kept comes whole later."""
    server = pair.far.at("ipv4", port)
    path = outside / f"fifo{port}"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with (
        os.fdopen(reader, "rb") as pipe,
        Origin(pair.far.namespace, server, origins.echo),
        running(pair.near.namespace, cwd=outside, access_log=str(path)),
    ):
        _fetches(pair, server, _MORE_THAN_A_PIPE_HOLDS)
        os.set_blocking(reader, True)
        lines = [json.loads(pipe.readline()) for _ in range(_MORE_THAN_A_PIPE_HOLDS)]
        assert {str(server)} == {line["destination"] for line in lines}
        assert len({line["id"] for line in lines}) == _MORE_THAN_A_PIPE_HOLDS


def test_stuck_reader_does_not_stop_the_end(pair: Pair, outside: Path, port: int) -> None:
    """A process whose log nobody reads ends all the same when it is told to."""
    server = pair.far.at("ipv4", port)
    path = outside / f"fifo{port}"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with (
            Origin(pair.far.namespace, server, origins.echo),
            running(pair.near.namespace, cwd=outside, access_log=str(path)) as sidecar,
        ):
            _fetches(pair, server, _MORE_THAN_A_PIPE_HOLDS)
            assert sidecar.stop() == CLEAN_EXIT
    finally:
        os.close(reader)
