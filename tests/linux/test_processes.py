from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from identities import needs_root

from sidecar.addresses import SocketAddress
from sidecar.flow import Process
from sidecar.linux import processes
from sidecar.linux.processes import BUDGET, BURST, ProcessFinder, belongs_to, open_diag

if TYPE_CHECKING:
    from collections.abc import Iterator

NOWHERE = SocketAddress("127.0.0.1", 1)


def ends(client: socket.socket) -> tuple[SocketAddress, SocketAddress]:
    """A connection's own address, and its peer's."""
    return (
        SocketAddress.from_kernel(client.getsockname()),
        SocketAddress.from_kernel(client.getpeername()),
    )


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def listener(stack: ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))


@pytest.fixture
def finder(stack: ExitStack) -> ProcessFinder:
    made = ProcessFinder(open_diag(), os.getpid())
    stack.callback(made.close)
    return made


class TestBelongsTo:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_own(self, host: str) -> None:
        """A socket is found with its holder, by both its ends, in both families."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family) as listener:
            with socket.create_connection(listener.getsockname()[:2]) as client:
                local, remote = ends(client)
                assert belongs_to(os.getpid(), local, remote)
                assert not belongs_to(os.getppid(), local, remote)
            elsewhere = SocketAddress(host, 1)
            assert not belongs_to(os.getpid(), local, elsewhere)


# Connects and says by what ends; its grandchild does so from a thread that isn't the first.
CLIENT = """
import os, socket, subprocess, sys, threading
if sys.argv[1] != "0":
    program, deeper = sys.argv[2], str(int(sys.argv[1]) - 1)
    subprocess_of = [sys.executable, "-c", program, deeper, program, *sys.argv[3:]]
    thread = threading.Thread(target=lambda: subprocess.run(subprocess_of, check=True))
    thread.start()
    thread.join()
    raise SystemExit
open("/proc/self/comm", "w").write(sys.argv[5])
client = socket.create_connection((sys.argv[3], sys.argv[4]))
print(os.getpid(), *client.getsockname()[:2], flush=True)
sys.stdin.read()
"""


def client_process(stack: ExitStack, address: SocketAddress, depth: int, name: str) -> list[str]:
    """Start a client so many processes below this one; return its pid and its own address."""
    command = [sys.executable, "-c", CLIENT, str(depth), CLIENT]
    command += [address.host, str(address.port), name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.enter_context(process)
    assert process.stdin is not None
    stack.callback(process.stdin.close)
    assert process.stdout is not None
    return process.stdout.readline().split()


class TestFinder:
    @pytest.mark.parametrize("depth", [0, 2])
    def test_child(
        self, stack: ExitStack, listener: socket.socket, finder: ProcessFinder, depth: int
    ) -> None:
        """A child is found, and a child's child that a second thread started; with its name."""
        address = SocketAddress.from_kernel(listener.getsockname())
        pid, host, port = client_process(stack, address, depth, "npm ci\\x1b[2J")
        found = finder.find(SocketAddress(host, int(port)), address)
        assert Process(int(pid), "npm ci\\x1b[2J") == found

    def test_mapped(self, stack: ExitStack, listener: socket.socket, finder: ProcessFinder) -> None:
        """An IPv4 connection of an IPv6 socket is found by its IPv4 addresses."""
        client = stack.enter_context(socket.socket(socket.AF_INET6))
        client.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
        found = finder.find(*ends(client))
        assert found is not None
        assert os.getpid() == found.pid

    def test_strangers(self, stack: ExitStack, listener: socket.socket) -> None:
        """Who is not of the tree is not looked into."""
        address = SocketAddress.from_kernel(listener.getsockname())
        stranger = int(client_process(stack, address, 0, "stranger")[0])
        finder = ProcessFinder(open_diag(), stranger)
        stack.callback(finder.close)
        with socket.create_connection(listener.getsockname()) as client:
            assert finder.find(*ends(client)) is None

    def test_gone(self, listener: socket.socket, finder: ProcessFinder) -> None:
        """A connection that its process has closed is nobody's, nor is it a listener's."""
        with socket.create_connection(listener.getsockname()) as client:
            local, remote = ends(client)
            accepted, _ = listener.accept()
        with accepted:
            assert finder.find(local, remote) is None
            assert finder.find(remote, SocketAddress("127.0.0.1", 2)) is None
            assert finder.find(NOWHERE, NOWHERE) is None

    def test_tree_gone(self, stack: ExitStack, listener: socket.socket) -> None:
        """With the tree gone, nothing is found; so after the end."""
        ended = subprocess.Popen(["true"])
        ended.wait()
        finder = ProcessFinder(open_diag(), ended.pid)
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        assert finder.find(*ends(client)) is None
        finder.close()
        assert finder.find(*ends(client)) is None

    def test_many(
        self,
        stack: ExitStack,
        listener: socket.socket,
        finder: ProcessFinder,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Of hundreds of connections opened at once, each descriptor is looked at about once."""
        number = 300
        clients = [
            stack.enter_context(socket.create_connection(listener.getsockname()))
            for _ in range(number)
        ]
        looked = []
        readlink = os.readlink

        def counted(name: str, *, dir_fd: int) -> str:
            looked.append(name)
            return readlink(name, dir_fd=dir_fd)

        monkeypatch.setattr(os, "readlink", counted)
        monkeypatch.setattr(processes, "BUDGET", 60.0)
        found = {finder.find(*ends(client)) for client in clients}
        assert {os.getpid()} == {process and process.pid for process in found}
        assert len(looked) < 3 * number


class Clock:
    """Goes on by a step whenever it is looked at."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class TestBounds:
    def test_budget(self, stack: ExitStack, listener: socket.socket) -> None:
        """A lookup that takes too long finds nothing."""
        pairs = [socket.create_connection(listener.getsockname()) for _ in range(20)]
        for each in pairs:
            stack.enter_context(each)
        clock = Clock(BUDGET / 10)
        finder = ProcessFinder(open_diag(), os.getpid(), clock, clock)
        stack.callback(finder.close)
        # The oldest is looked at last.
        assert finder.find(*ends(pairs[0])) is None
        assert clock.now < 5 * BUDGET
        clock.step = 0.0
        assert finder.find(*ends(pairs[0])) is not None

    def test_goes_on(self, stack: ExitStack, listener: socket.socket) -> None:
        """The next lookup goes on where time ran out: a process with many is got through."""
        clients = [
            stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(50)
        ]
        clock = Clock(BUDGET / 20)
        finder = ProcessFinder(open_diag(), os.getpid(), clock, clock)
        stack.callback(finder.close)
        found = []
        for client in clients:
            found.append(finder.find(*ends(client)) is not None)
            clock.now += 100.0
        assert not found[0]
        assert found[-1]
        assert found.count(False) < len(clients) / 4

    def test_share(self, stack: ExitStack, listener: socket.socket) -> None:
        """Lookups that take too much of the time stop, and come back later."""
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        clock = Clock(0.0)
        finder = ProcessFinder(open_diag(), os.getpid(), clock, clock)
        stack.callback(finder.close)
        assert finder.find(*ends(client)) is not None
        clock.step = BURST
        finder.find(*ends(client))
        clock.step = 0.0
        assert finder.find(*ends(client)) is None
        clock.now += 1000.0
        assert finder.find(*ends(client)) is not None


@needs_root
def test_namespace(stack: ExitStack) -> None:
    """A netlink socket asks in the namespace it was made in, wherever it is used."""
    program = """
import socket, sys
from sidecar.linux.namespaces import set_up_loopback
from sidecar.sandbox.users import enter_network_namespace
from sidecar.linux.processes import open_diag
enter_network_namespace()
set_up_loopback((), ())
open("/proc/self/comm", "w").write("inside")
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
door = socket.socket(fileno=int(sys.argv[1]))
text = "%d %d" % (client.getsockname()[1], listener.getsockname()[1])
diag = open_diag()
socket.send_fds(door, [text.encode()], [diag.fileno()])
sys.stdin.read()
"""
    here, there = socket.socketpair()
    stack.enter_context(here)
    with there:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(there.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[there.fileno()],
            env={**os.environ, "PYTHONPATH": str(Path(processes.__file__).parents[2])},
        )
    stack.enter_context(process)
    assert process.stdin is not None
    stack.callback(process.stdin.close)
    text, descriptors, *_ = socket.recv_fds(here, 100, 1)
    port, server = map(int, text.split())
    addresses = SocketAddress("127.0.0.1", port), SocketAddress("127.0.0.1", server)
    finder = ProcessFinder(socket.socket(fileno=descriptors[0]), process.pid)
    stack.callback(finder.close)
    assert Process(process.pid, "inside") == finder.find(*addresses)
    with closing(open_diag()) as outside:
        assert ProcessFinder(outside, process.pid).find(*addresses) is None
