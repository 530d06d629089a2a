"""`sidecar exec --host-port`, `--publish`: ports that lead from one loopback to the other."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from integration.clients import Outcome, exchange, outcome_of_reading, outcome_of_talking, reset
from integration.exec_stage import USERS, Stage, User
from integration.netns import DEADLINE, FAMILIES, Family, Pair
from integration.origins import Origin, answer_after_eof, echo, received, some

from sidecar.addresses import SocketAddress
from sidecar.sandbox.bridges import BRIDGES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.thorough

LOOPBACK: dict[Family, str] = {"ipv4": "127.0.0.1", "ipv6": "::1"}

# Connects to HOST PORT, says HELLO and that this is all, and tells what comes of it.
CLIENT = """
import errno, socket, sys
for host in sys.argv[2:]:
    try:
        with socket.create_connection((host, int(sys.argv[1])), 10) as connection:
            connection.sendall(b"hello")
            connection.shutdown(socket.SHUT_WR)
            print(b"".join(iter(lambda: connection.recv(65536), b"")).decode())
    except OSError as error:
        # If the reset comes before its words, or their end.
        reset = error.errno in (errno.ENOTCONN, errno.EPIPE)
        print("ConnectionResetError" if reset else type(error).__name__)
"""
# Listens at HOST PORT when a line has been read, and does HOW with each connection.
SERVER = """
import socket, struct, sys, threading
host, port, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def serve(connection):
    with connection:
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        said = 0
        try:
            while part := connection.recv(65536):
                said += len(part)
                if how == "echo":
                    connection.sendall(part)
        except ConnectionResetError:
            print("reset", flush=True)
            return
        connection.sendall(b"you said %d" % said)
print("started", flush=True)
sys.stdin.readline()
family = socket.AF_INET6 if ":" in host else socket.AF_INET
listener = socket.create_server((host, port), family=family, backlog=1000)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


@pytest.fixture(params=USERS)
def stage(request: pytest.FixtureRequest, pair: Pair) -> Iterator[Stage]:
    """Each user in turn, under a policy that allows nothing, and no denial is expected."""
    user: User = request.param
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o777)
        options = ["--default", "deny", "--fail-on-deny"]
        yield Stage(pair.near.namespace, directory, user, options)


class Served:
    """A server inside whose port is published.

    Args:
        process: `sidecar exec` with it.
        stage: Where that runs.
        log: Its access log.
    """

    def __init__(self, process: subprocess.Popen[str], stage: Stage, log: Path) -> None:
        self.process = process
        self._stage = stage
        self._log = log

    def connect(self, host: str, port: int) -> socket.socket:
        """Connect from the host."""
        return self._stage.namespace.connect(SocketAddress(host, port))

    def expect(self, line: str) -> None:
        """Wait until it says so."""
        assert self.process.stdout is not None
        assert f"{line}\n" == self.process.stdout.readline()

    def listen(self) -> None:
        """Have it listen."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.expect("ready")

    def end(self) -> list[dict[str, Any]]:
        """End it; what the log has."""
        self.process.terminate()
        self.process.communicate(timeout=DEADLINE)
        assert 143 == self.process.returncode
        return [json.loads(line) for line in self._log.read_text().splitlines()]


@contextmanager
def served(stage: Stage, *options: str, host: str, port: int, how: str) -> Iterator[Served]:
    """A server that is about to listen inside, its port published."""
    log = stage.directory / "log"
    process = stage.start(
        *("python3", "-c", SERVER, host, str(port), how),
        options=[*stage.options, "--log", str(log), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        made = Served(process, stage, log)
        try:
            made.expect("started")
            yield made
        finally:
            process.kill()


class TestHostPort:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_both_families(self, stage: Stage, family: Family, port: int) -> None:
        """A server on either loopback of the host is reached by both inside, half-closes too."""
        server = SocketAddress(LOOPBACK[family], port)
        with Origin(stage.namespace, server, answer_after_eof):
            done = stage.python(
                *(CLIENT, "5432", "127.0.0.1", "::1"),
                options=[*stage.options, "--host-port", f"5432:{port}"],
            )
        assert (0, "you said: hello\n" * 2) == (done.status, done.output), done.errors
        for line, destination in zip(done.log, ("127.0.0.1:5432", "[::1]:5432"), strict=True):
            assert {
                "listener": "host-port",
                "destination": destination,
                "destination_from": "static",
                "verdict": "allow",
                "reason": "rule",
                "rule": f"5432:{port} (--host-port)",
                "upstream": str(server),
                "sent": 5,
                "received": 15,
                "end": "closed",
            }.items() <= line.items()

    def test_same_port(self, stage: Stage, port: int) -> None:
        """Without a second number both are the same; several may be given."""
        with ExitStack() as stack:
            options = list(stage.options)
            for each in (port, port + 10000):
                address = SocketAddress("127.0.0.1", each)
                stack.enter_context(Origin(stage.namespace, address, answer_after_eof))
                options += ["--host-port", str(each)]
            for each in (port, port + 10000):
                done = stage.python(CLIENT, str(each), "127.0.0.1", options=options)
                assert "you said: hello\n" == done.output
                assert f"{each} (--host-port)" == done.log[0]["rule"]

    def test_low_port(self, stage: Stage, port: int) -> None:
        """Inside, ports that are root's may be used by everybody."""
        with Origin(stage.namespace, SocketAddress("127.0.0.1", port), answer_after_eof):
            done = stage.python(
                *(CLIENT, "80", "localhost"),
                options=[*stage.options, "--host-port", f"80:{port}"],
            )
        assert "you said: hello\n" == done.output, done.errors

    def test_reset_by_the_server(self, stage: Stage, port: int) -> None:
        """A reset stays one."""

        def reset_at_the_end(connection: socket.socket) -> None:
            # Before it the client may find its connection gone while it still sends.
            assert b"hello" == received(connection)
            reset(connection)

        with Origin(stage.namespace, SocketAddress("127.0.0.1", port), reset_at_the_end):
            done = stage.python(
                *(CLIENT, str(port), "127.0.0.1"),
                options=[*stage.options, "--host-port", str(port)],
            )
        assert ("ConnectionResetError\n", "server_reset") == (done.output, done.log[0]["end"])

    def test_reset_by_the_client(self, stage: Stage, port: int) -> None:
        """In the other direction as well."""
        outcomes: list[Outcome] = []
        program = (
            "import socket, struct, sys\n"
            "connection = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10)\n"
            "connection.sendall(b'hello')\n"
            "assert connection.recv(1) == b'x'\n"
            "option = struct.pack('ii', 1, 0)\n"
            "connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)\n"
            "connection.close()\n"
        )

        def talk(connection: socket.socket) -> None:
            connection.sendall(b"x")
            outcomes.append(outcome_of_reading(connection))

        with Origin(stage.namespace, SocketAddress("127.0.0.1", port), talk):
            done = stage.python(
                program, str(port), options=[*stage.options, "--host-port", str(port)]
            )
        assert (0, "client_reset") == (done.status, done.log[0]["end"]), done.errors
        assert [Outcome(b"hello", reset=True)] == outcomes

    def test_nobody_listens(self, stage: Stage, port: int) -> None:
        """Then the client is reset; that is no denial."""
        done = stage.python(
            *(CLIENT, str(port), "127.0.0.1"), options=[*stage.options, "--host-port", str(port)]
        )
        assert (0, "ConnectionResetError\n") == (done.status, done.output)
        assert ("allow", "connection_refused") == (done.log[0]["verdict"], done.log[0]["end"])

    def test_much(self, stage: Stage, port: int) -> None:
        """What is under way when the command ends arrives."""
        arrived: list[bytes] = []
        data = stage.directory / "data"
        data.write_bytes(some(1 << 20))

        def keep(connection: socket.socket) -> None:
            arrived.append(received(connection))

        with Origin(stage.namespace, SocketAddress("127.0.0.1", port), keep):
            done = stage.run(
                *("sh", "-c", f"cat {data} {data} {data} | nc -N 127.0.0.1 {port}"),
                options=[*stage.options, "--host-port", str(port)],
            )
        assert 0 == done.status
        assert [some(1 << 20) * 3] == arrived

    def test_no_other_port(self, stage: Stage, port: int) -> None:
        """Without the option, or at other ports, the host's loopback is out of reach."""
        with Origin(stage.namespace, SocketAddress("127.0.0.1", port), echo) as origin:
            for options in ([], ["--host-port", f"{port + 10000}:{port + 10001}"]):
                done = stage.python(
                    CLIENT, str(port), "127.0.0.1", options=[*stage.options, *options]
                )
                assert ("ConnectionRefusedError\n", []) == (done.output, done.log)
        assert [] == origin.peers

    def test_nothing_is_learned(self, stage: Stage, port: int) -> None:
        """No rule is written for what no rule is asked about."""
        policy = stage.directory / "policy.toml"
        with Origin(stage.namespace, SocketAddress("127.0.0.1", port), answer_after_eof):
            done = stage.python(
                *(CLIENT, str(port), "127.0.0.1"),
                options=["--learn", str(policy), "--host-port", str(port)],
            )
        assert "you said: hello\n" == done.output
        assert str(port) not in policy.read_text()
        assert "127.0.0.1" not in policy.read_text()


class TestPublish:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_both_families(self, stage: Stage, family: Family, port: int) -> None:
        """A server on either loopback inside is reached by both of the host, half-closes too."""
        inside = SocketAddress(LOOPBACK[family], 8000)
        option = ("--publish", f"{port}:8000")
        with served(stage, *option, host=inside.host, port=8000, how="count") as server:
            server.listen()
            for host in LOOPBACK.values():
                with server.connect(host, port) as connection:
                    connection.sendall(b"hello")
                    connection.shutdown(socket.SHUT_WR)
                    assert Outcome(b"you said 5", reset=False) == outcome_of_reading(connection)
            log = server.end()
        for line, host in zip(log, ("127.0.0.1", "[::1]"), strict=True):
            assert {
                "listener": "publish",
                "destination": f"{host}:{port}",
                "destination_from": "static",
                "verdict": "allow",
                "reason": "rule",
                "rule": f"{port}:8000 (--publish)",
                "upstream": str(inside),
                "sent": 5,
                "received": 10,
                "end": "closed",
            }.items() <= line.items()

    def test_resets(self, stage: Stage, port: int) -> None:
        """Resets stay what they are, in both directions."""
        option = ("--publish", str(port))
        with served(stage, *option, host="127.0.0.1", port=port, how="reset") as server:
            server.listen()
            found = outcome_of_talking(stage.namespace, SocketAddress("127.0.0.1", port))
            assert Outcome(b"", reset=True) == found
            server.end()
        with served(stage, *option, host="127.0.0.1", port=port, how="echo") as server:
            server.listen()
            connection = server.connect("127.0.0.1", port)
            assert b"hello" == exchange(connection, b"hello")
            reset(connection)
            server.expect("reset")

    def test_late_server(self, stage: Stage, port: int) -> None:
        """Until somebody listens inside clients are reset; from then on they are served."""
        option = ("--publish", str(port))
        with served(stage, *option, host="127.0.0.1", port=port, how="count") as server:
            found = outcome_of_talking(stage.namespace, SocketAddress("127.0.0.1", port))
            assert Outcome(b"", reset=True) == found
            server.listen()
            with server.connect("127.0.0.1", port) as connection:
                connection.shutdown(socket.SHUT_WR)
                assert b"you said 0" == received(connection)
            ends = [(line["verdict"], line["end"]) for line in server.end()]
        assert [("allow", "connection_refused"), ("allow", "closed")] == ends

    def test_many(self, stage: Stage, port: int) -> None:
        """More at once than sockets are asked for at a time."""
        option = ("--publish", str(port))
        with served(stage, *option, host="127.0.0.1", port=port, how="echo") as server:
            server.listen()
            with ExitStack() as stack:
                connections = [
                    stack.enter_context(server.connect("127.0.0.1", port)) for _ in range(200)
                ]
                for number, connection in enumerate(connections):
                    connection.sendall(b"%03d" % number)
                for number, connection in enumerate(connections):
                    assert b"%03d" % number == connection.recv(3, socket.MSG_WAITALL)
                # Some are on the way while the command ends.
                for _ in range(100):
                    stack.enter_context(server.connect("127.0.0.1", port))
                assert 300 >= len(server.end()) >= 200

    def test_over(self, stage: Stage, port: int) -> None:
        """With the command ends the listening; nothing is left."""
        option = ("--publish", str(port))
        with served(stage, *option, host="127.0.0.1", port=port, how="echo") as server:
            server.end()
        with pytest.raises(ConnectionRefusedError):
            stage.namespace.connect(SocketAddress("127.0.0.1", port))

    def test_loopback_alone(self, stage: Stage, pair: Pair, port: int) -> None:
        """Other addresses of the host are not listened on."""
        option = ("--publish", str(port))
        with served(stage, *option, host="127.0.0.1", port=port, how="echo"):
            for each in FAMILIES:
                with pytest.raises(ConnectionRefusedError):
                    pair.far.namespace.connect(pair.near.at(each, port))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_taken(self, stage: Stage, family: Family, port: int) -> None:
        """A port that another program has is an error, before anything is run."""
        with stage.namespace.listen(SocketAddress(LOOPBACK[family], port)):
            done = stage.run(
                *("touch", str(stage.directory / "ran")), options=["--publish", f"{port}:80"]
            )
        where = SocketAddress(LOOPBACK[family], port)
        problem = (
            f"sidecar exec: can't listen on {where} (--publish {port}:80): another program has this"
            " port; take another: --publish PORT:80\n"
        )
        assert (125, problem) == (done.status, done.errors)
        assert not (stage.directory / "ran").exists()

    def test_low_port(self, stage: Stage) -> None:
        """The host's low ports are root's."""
        done = stage.run("echo", "ran", options=["--publish", "81:8000"])
        if stage.user == "root":
            assert (0, "ran\n") == (done.status, done.output)
        else:
            assert (125, "") == (done.status, done.output)
            assert "127.0.0.1:81 (--publish 81:8000): ports that low need" in done.errors
            assert 1 == done.errors.count("\n")


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (["--host-port", "0"], "--host-port = '0': '0': not a port (write a number"),
            (
                ["--publish", "80", "--publish", "80:81"],
                "--publish = '80:81': port 80 is given twice",
            ),
        ],
    )
    def test_bad(self, pair: Pair, tmp_path: Path, options: list[str], problem: str) -> None:
        """What can't be is said in one line, and nothing is run."""
        stage = Stage(pair.near.namespace, tmp_path, "root")
        done = stage.run("touch", str(tmp_path / "ran"), options=options)
        assert 125 == done.status
        assert done.errors.startswith(f"sidecar exec: command line: {problem}")
        assert 1 == done.errors.count("\n")
        assert not (tmp_path / "ran").exists()

    def test_as_many_as_possible(self, pair: Pair, tmp_path: Path) -> None:
        """The most that can be given fit."""
        options = [
            word for port in range(BRIDGES_MAX) for word in ("--host-port", f"{40000 + port}")
        ]
        done = Stage(pair.near.namespace, tmp_path, "root").python(
            CLIENT, str(40000 + BRIDGES_MAX - 1), "::1", options=options
        )
        assert (0, "ConnectionResetError\n") == (done.status, done.output), done.errors
