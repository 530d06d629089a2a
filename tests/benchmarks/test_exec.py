"""What exec's benchmark runs, and what its client takes for a denial."""

from __future__ import annotations

import socket
import sys
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from twisted.names import dns

from benchmarks import exec_denials
from benchmarks.exec import Measure, _tables, sidecar_exec, start_to_finish
from benchmarks.measures import MeasureError
from benchmarks.peers import DIRECT

if TYPE_CHECKING:
    from collections.abc import Iterator

ALERT = bytes((21, 3, 3, 0, 2, 2, 49))
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nno!\n"


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """A server that reads, says what the test's parameter is, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(request.param)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()
        thread.join(10)


@pytest.mark.parametrize(
    ("way", "answering"), [("http", FORBIDDEN), ("tls", ALERT)], indirect=["answering"]
)
def test_denial(way: str, answering: tuple[str, int]) -> None:
    """Each is told in its language."""
    exec_denials.WAYS[way](answering)


@pytest.mark.parametrize(
    ("way", "answering"),
    [("http", b"HTTP/1.1 200 OK\r\n\r\n"), ("tls", FORBIDDEN), ("other", b"SSH-2.0-x\r\n")],
    indirect=["answering"],
)
def test_being_served_is_none(way: str, answering: tuple[str, int]) -> None:
    """A proxy that lets everybody in is not a quick one."""
    with pytest.raises(ConnectionError, match=r"^no "):
        exec_denials.WAYS[way](answering)


def test_question() -> None:
    """The name's address is asked for."""
    message = dns.Message()
    message.fromStr(exec_denials._question())
    (query,) = message.queries
    assert (exec_denials.NAME.encode(), dns.A) == (query.name.name, query.type)


def test_start() -> None:
    """A command's time, and its processor time with its children's."""
    busy = "import time\nwhile time.process_time() < 0.1: pass"
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    wall, processor = start_to_finish([sys.executable, "-c", inner])
    assert wall > 100
    assert processor > 100


def test_failing_start() -> None:
    """What fails quickly is not quick."""
    with pytest.raises(MeasureError, match="exit status 3"):
        start_to_finish([sys.executable, "-c", "raise SystemExit(3)"])


def test_command() -> None:
    """Nothing that it prints mingles with a client's figures."""
    command = sidecar_exec("--default", "allow", "--", "true")
    assert ["exec", "--quiet", "--summary", "none", "--default", "allow", "--", "true"] == command[
        command.index("exec") :
    ]


def test_tables() -> None:
    """Only what was chosen is measured; every table has what it is compared with."""
    (relay,) = _tables([Measure.RATE])
    assert [Measure.RATE] == relay.measures
    assert DIRECT in relay.columns
    assert all(each.base in each.columns for each in _tables(list(Measure)))
