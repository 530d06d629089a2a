"""`sidecar exec`: what a command connects to is caught, judged, relayed; nothing else gets out."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from integration.exec_stage import USERS, Stage, User, sidecar
from integration.netns import DEADLINE, Family, Pair
from integration.origins import PAGE, Origin, answer_after_eof, echo, http_page, received

if TYPE_CHECKING:
    from collections.abc import Iterator

# Everything that a program could try besides TCP and DNS, told as JSON: what came of it.
OTHER_WAYS = """
import errno, json, socket, sys
host4, host6, port = sys.argv[1], sys.argv[2], int(sys.argv[3])

def datagram(family, protocol, host):
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(5)
        sock.connect((host, port))
        sock.send(b"x")
        sock.recv(1)

def stream(protocol):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as sock:
        sock.settimeout(5)
        sock.connect((host4, port))

ways = {
    "udp4": lambda: datagram(socket.AF_INET, 0, host4),
    "udp6": lambda: datagram(socket.AF_INET6, 0, host6),
    "udplite": lambda: datagram(socket.AF_INET, 136, host4),
    "sctp": lambda: stream(132),
    "dccp": lambda: socket.socket(socket.AF_INET, 6, 33).close(),
    "ping": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1).close(),
    "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255).close(),
    "packet": lambda: socket.socket(17, socket.SOCK_RAW).close(),
    "vsock": lambda: socket.socket(40, socket.SOCK_STREAM).close(),
    "alg": lambda: socket.socket(38, socket.SOCK_SEQPACKET).close(),
}
found = {}
for name, way in ways.items():
    try:
        way()
        outcome = "came through"
    except OSError as error:
        outcome = errno.errorcode[error.errno] if error.errno else type(error).__name__
    found[name] = outcome
print(json.dumps(found))
"""


# In a directory: has a grandchild that nobody waits for fetch a page, and waits for that.
DOUBLE_FORK = """
cd $0
(setsid sh -c "curl -sS $1 > page; : > done" > /dev/null &)
while [ ! -e done ]; do sleep 0.02; done
"""


@pytest.fixture(params=USERS)
def stage(request: pytest.FixtureRequest, pair: Pair) -> Iterator[Stage]:
    """Each user in turn, on the near host."""
    user: User = request.param
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o777)
        yield Stage(pair.near.namespace, directory, user)


@pytest.fixture
def page(pair: Pair, family: Family, port: int) -> Iterator[Origin]:
    """A page to fetch, on the far host."""
    with Origin(pair.far.namespace, pair.far.at(family, port), http_page) as origin:
        yield origin


class TestRelayed:
    @pytest.mark.parametrize(
        "client",
        [
            ("curl", "-sS", "--globoff", "--max-time", "10"),
            ("wget", "-q", "-O", "-", "-T", "10"),
            (
                *("python3", "-c"),
                (
                    "import sys, urllib.request;"
                    " print(end=urllib.request.urlopen(sys.argv[1]).read().decode())"
                ),
            ),
        ],
        ids=lambda command: command[0],
    )
    @pytest.mark.usefixtures("page")
    def test_http(
        self, stage: Stage, pair: Pair, family: Family, port: int, client: tuple[str, ...]
    ) -> None:
        """Clients get their page, at either kind of address; the log has what they did."""
        server = pair.far.at(family, port)
        done = stage.run(*client, f"http://{server}/page")
        assert ("", 0, PAGE) == (done.errors, done.status, done.output)
        (line,) = done.log
        assert {
            "listener": "exec",
            "destination": str(server),
            "destination_from": "tproxy",
            "upstream": str(server),
            "verdict": "allow",
            "end": "closed",
        }.items() <= line.items()

    def test_from_outside(
        self, stage: Stage, pair: Pair, page: Origin, port: int, family: Family
    ) -> None:
        """The server sees our own host: the sandbox has no address that goes anywhere."""
        stage.run("curl", "-sS", "--globoff", f"http://{pair.far.at(family, port)}/")
        near = pair.near.at(family, 0).host
        assert [near] == [peer.host for peer in page.peers]

    def test_half_close(self, stage: Stage, pair: Pair, port: int) -> None:
        """A client that ends its side still gets its answer."""
        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, answer_after_eof):
            done = stage.run("nc", "-N", server.host, str(port), stdin="question")
        assert 0 == done.status
        assert "you said: question" == done.output

    def test_server_speaks_first(self, stage: Stage, pair: Pair, port: int) -> None:
        """A client that waits to be spoken to is."""
        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, lambda it: it.sendall(b"220 welcome\r\n")):
            done = stage.run("nc", "-d", server.host, str(port))
        assert "220 welcome\n" == done.output.replace("\r", "")

    def test_double_fork(self, stage: Stage, pair: Pair, port: int) -> None:
        """A grandchild whose parents are gone is caught like everybody else."""
        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, http_page):
            done = stage.run("sh", "-c", DOUBLE_FORK, str(stage.directory), f"http://{server}/")
        assert 0 == done.status, done.errors
        assert PAGE == (stage.directory / "page").read_text()
        assert [str(server)] == [line["destination"] for line in done.log]

    def test_static_binary(self, stage: Stage, pair: Pair, port: int) -> None:
        """A program without a C library to preload into is caught by the kernel all the same."""
        compiler = shutil.which("gcc")
        if compiler is None:
            pytest.skip("not installed: gcc")
        source, binary = stage.directory / "client.c", stage.directory / "client"
        source.write_text(STATIC_CLIENT)
        subprocess.run([compiler, "-static", "-o", binary, source], check=True, timeout=DEADLINE)
        binary.chmod(0o755)
        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, http_page):
            done = stage.run(str(binary), server.host, str(port))
        assert done.output.endswith(PAGE)

    def test_bytes(self, stage: Stage, pair: Pair, port: int) -> None:
        """What is relayed is what was sent, both ways, and is counted."""
        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, echo):
            done = stage.python(
                "import hashlib, os, socket, sys, threading\n"
                "data = os.urandom(3_000_000)\n"
                "sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
                "def send():\n"
                "    sock.sendall(data)\n"
                "    sock.shutdown(socket.SHUT_WR)\n"
                "threading.Thread(target=send).start()\n"
                "back = b''.join(iter(lambda: sock.recv(65536), b''))\n"
                "print(back == data)\n",
                server.host,
                str(port),
            )
        assert "True\n" == done.output
        assert [(3_000_000, 3_000_000)] == [(each["sent"], each["received"]) for each in done.log]

    def test_last_words(self, stage: Stage, pair: Pair, port: int) -> None:
        """What a command sent last arrives, though the command has ended."""
        server = pair.far.at("ipv4", port)
        got: list[bytes] = []
        with Origin(pair.far.namespace, server, lambda it: got.append(received(it))):
            done = stage.python(
                "import os, socket, sys\n"
                "sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
                "sock.sendall(bytes(1_000_000))\n"
                "os._exit(3)\n",
                server.host,
                str(port),
            )
        assert 3 == done.status
        assert 1_000_000 == len(b"".join(got))
        assert ["closed"] == [line["end"] for line in done.log]


class TestRefused:
    def test_http(self, stage: Stage, pair: Pair, port: int) -> None:
        """By default only what is public may be reached; an HTTP client is told so."""
        stage.patiently = True
        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, http_page) as origin:
            done = stage.run(
                *("curl", "-sS", "-w", " %{http_code} %{time_total}", f"http://{server}/"),
                options=[],
            )
        assert "denied: private_address" in done.output
        assert "403" == done.output.split()[-2]
        assert [] == origin.peers
        (line,) = done.log
        assert ("deny", "private_address", "denied") == (
            line["verdict"],
            line["reason"],
            line["end"],
        )

    def test_reset(self, stage: Stage, pair: Pair, port: int) -> None:
        """A client that speaks something else is reset, and counts for --fail-on-deny."""
        server = pair.far.at("ipv4", port)
        program = (
            "import socket, sys\n"
            "sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
            "try:\n"
            # Who is slow to speak is reset before.
            "    sock.sendall(b'\\0\\0')\n"
            "    sock.recv(1)\n"
            "except ConnectionResetError:\n"
            "    print('reset')\n"
        )
        options = ["--default", "deny", "--fail-on-deny"]
        done = stage.python(program, server.host, str(port), options=options)
        assert 77 == done.status
        assert "reset\n" == done.output

    def test_nothing_denied(self, stage: Stage) -> None:
        """--fail-on-deny leaves the status alone where nothing was."""
        assert 3 == stage.run("sh", "-c", "exit 3", options=["--fail-on-deny"]).status

    def test_allowed_by_rule(self, stage: Stage, pair: Pair, port: int) -> None:
        """The rule that a denial names allows it."""
        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, http_page):
            done = stage.run(
                *("curl", "-sS", f"http://{server}/"),
                options=["--default", "deny", "--allow", str(server)],
            )
        assert PAGE == done.output
        assert [f"{server} (--allow)"] == [line["rule"] for line in done.log]

    def test_certificates(self, stage: Stage, pair: Pair, port: int) -> None:
        """A policy may want names shown by certificates; for others, all is as ever."""
        server = pair.far.at("ipv4", port)
        policy = stage.directory / "policy.toml"
        policy.write_text(f'[policy]\nverify = "certificate"\nallow = ["{server}"]\n')
        with Origin(pair.far.namespace, server, http_page):
            done = stage.run("curl", "-sS", f"http://{server}/", options=["--policy", str(policy)])
        assert ("", PAGE) == (done.errors, done.output)

    def test_nobody_listens(self, stage: Stage, pair: Pair, family: Family, port: int) -> None:
        """A server that refuses looks like one that hangs up."""
        done = stage.run("curl", "-sS", "--globoff", f"http://{pair.far.at(family, port)}/")
        # Whether curl sees the connection or its reset first, and that before it has sent its
        # request or after, is a matter of luck.
        assert done.status in {7, 52, 55, 56}
        assert ["connection_refused"] == [line["end"] for line in done.log]


class TestOtherWays:
    def test_none(self, stage: Stage, pair: Pair, port: int) -> None:
        """Whatever isn't TCP is refused at once, and reaches nobody."""
        with pair.far.namespace.entered():
            listeners = [
                socket.create_server(("", port)),
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
                socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
            ]
        listeners[2].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for each in listeners[1:]:
            each.bind(("", port))
        done = stage.python(OTHER_WAYS, pair.far.ipv4, pair.far.ipv6, str(port))
        found = json.loads(done.output)
        assert [] == [name for name, outcome in found.items() if outcome == "came through"]
        assert {"ECONNREFUSED"} == {found[name] for name in ("udp4", "udp6", "udplite")}
        # Nothing is left hanging.
        assert "TimeoutError" not in found.values()
        reached, _, _ = select.select(listeners, [], [], 0)
        for each in listeners:
            each.close()
        assert [] == reached

    def test_multipath(self, stage: Stage, pair: Pair, port: int) -> None:
        """MPTCP is TCP to us, and relayed."""
        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, lambda it: it.sendall(b"welcome")):
            done = stage.python(
                "import socket, sys\n"
                "sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)\n"
                "sock.connect((sys.argv[1], int(sys.argv[2])))\n"
                "print(sock.recv(99))\n",
                server.host,
                str(port),
            )
        assert "b'welcome'\n" == done.output

    def test_nested_namespaces(self, stage: Stage, pair: Pair, port: int) -> None:
        """In namespaces of its own making a program gets nowhere; in ours it stays caught."""
        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, http_page):
            away = stage.run(
                *("unshare", "--user", "--map-root-user", "--net"),
                *("curl", "-sS", "--max-time", "5", f"http://{server}/"),
            )
            here = stage.run(
                *("unshare", "--user", "--map-root-user", "sh", "-c"),
                "ip route add default via 192.0.2.9; nft flush ruleset; ip link set lo down;"
                f" exec curl -sS http://{server}/",
            )
        if stage.user == "root":
            # Since Linux 5.12: who has no CAP_SETFCAP may not map uid 0, not even to itself.
            assert ([], []) == (away.log, here.log)
            assert "Operation not permitted" in away.errors
        else:
            assert (7, []) == (away.status, away.log)
            assert PAGE == here.output
            assert 1 == len(here.log)

    def test_exec_in_exec(self, stage: Stage, pair: Pair, port: int) -> None:
        """A sandbox in a sandbox: the inner one's proxy is what the outer one sees."""
        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, http_page):
            options = ["--quiet", "--summary", "none", "--default", "allow"]
            done = stage.run(*sidecar("exec", *options, "--", "curl", "-sS", f"http://{server}/"))
        if stage.user == "root":
            assert 125 == done.status
            assert "CAP_SETFCAP" in done.errors
            return
        assert ("", 0, PAGE) == (done.errors, done.status, done.output)
        assert [str(server)] == [line["destination"] for line in done.log]


class TestOwnLoopback:
    def test_servers_inside(self, stage: Stage) -> None:
        """Programs inside reach each other over loopback, unseen."""
        done = stage.python(
            "import socket\n"
            "for host in ('127.0.0.1', '127.9.9.9', '::1', '192.0.2.1'):\n"
            "    family = socket.AF_INET6 if ':' in host else socket.AF_INET\n"
            "    server = socket.create_server((host, 0), family=family)\n"
            "    client = socket.create_connection(server.getsockname()[:2])\n"
            "    server.accept()[0].sendall(host.encode())\n"
            "    print(client.recv(99).decode())\n"
        )
        assert ["127.0.0.1", "127.9.9.9", "::1", "192.0.2.1"] == done.output.split()
        assert [] == done.log

    def test_not_the_hosts(self, stage: Stage, port: int) -> None:
        """Loopback servers outside are not to be reached."""
        with stage.namespace.entered():
            server = socket.create_server(("127.0.0.1", port))
        with server:
            done = stage.run("curl", "-sS", f"http://127.0.0.1:{port}/")
        assert 7 == done.status
        assert [] == done.log

    def test_own_listener(self, stage: Stage) -> None:
        """Who dials the proxy's listener itself is reset."""
        done = stage.run("curl", "-sS", "http://127.0.0.1:61453/")
        # Whether curl sees the connection or the reset first, and that before it has sent its
        # request or after, is a matter of luck.
        assert done.status in {7, 55, 56}
        assert ["not_intercepted"] == [line["reason"] for line in done.log]

    def test_address_that_is_not_there(self, stage: Stage, pair: Pair, port: int) -> None:
        """A program that is bound to an address of the host's is caught, too."""
        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, http_page):
            done = stage.run(
                *("curl", "-sS", "--interface", pair.near.ipv4, f"http://{server}/"),
            )
        assert PAGE == done.output

    def test_root_binds_low_ports(self, stage: Stage) -> None:
        """Root may listen below 1024 without being able to anything else."""
        done = stage.python("import socket; socket.create_server(('127.0.0.1', 80))")
        assert (0 if stage.user == "root" else 1) == done.status


class TestLog:
    def test_descriptor(self, stage: Stage, pair: Pair, port: int) -> None:
        """The log may go to a descriptor of the caller's, which the command doesn't get."""
        read, write = os.pipe()
        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, http_page):
            process = stage.start(
                *("sh", "-c", f"ls /proc/self/fd; curl -sS http://{server}/"),
                options=["--default", "allow", "--log", f"fd:{write}"],
                pass_fds=(write,),
                stdout=subprocess.PIPE,
            )
            os.close(write)
            output, _ = process.communicate(timeout=DEADLINE)
        with os.fdopen(read) as log:
            assert f'"destination":"{server}"' in log.read()
        # 3 is ls's own.
        assert ["0", "1", "2", "3"] == output.split("\n")[:4]

    def test_appended(self, stage: Stage, pair: Pair, port: int) -> None:
        """Several runs may share one file."""
        server = pair.far.at("ipv4", port)
        log = stage.directory / "shared"
        for _ in range(2):
            stage.run(
                *("curl", "-sS", f"http://{server}/"),
                options=["--default", "allow", "--log", str(log)],
            )
        assert 2 == len(log.read_text().splitlines())

    def test_full(self, stage: Stage, port: int) -> None:
        """That it can't be written is said however little is to be shown."""
        process = stage.start(
            *("curl", "-s", f"http://192.0.2.9:{port}/"),
            options=["--default", "deny", "--log", "/dev/full"],
            stderr=subprocess.PIPE,
        )
        _, errors = process.communicate(timeout=DEADLINE)
        assert errors.endswith(
            "sidecar exec: access log: stopped, 1 line was not written"
            " (can't be written: No space left on device)\n"
        )


class TestTogether:
    def test_a_thousand_at_once(self, stage: Stage, pair: Pair, port: int) -> None:
        """A thousand connections are open at the same time, whatever the soft limit is."""
        server = pair.far.at("ipv4", port)

        with pair.far.namespace.entered():
            listener = socket.create_server((server.host, port), backlog=1024)
        held: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):
                while True:
                    held.append(listener.accept()[0])
                    held[-1].sendall(b"!")

        threading.Thread(target=serve, daemon=True).start()
        with listener:
            done = stage.python(
                "import resource, socket, sys\n"
                "resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))\n"
                "to = sys.argv[1], int(sys.argv[2])\n"
                "open_ = [socket.create_connection(to, 20) for _ in range(1000)]\n"
                "print(sum(len(each.recv(1)) for each in open_))\n",
                server.host,
                str(port),
                timeout=60,
            )
            listener.shutdown(socket.SHUT_RDWR)
        for each in held:
            each.close()
        assert "1000\n" == done.output
        assert 1000 == len(done.log)


STATIC_CLIENT = r"""
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    char buffer[4096];
    ssize_t length;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) return 1;
    if (write(fd, "GET / HTTP/1.0\r\n\r\n", 18) != 18) return 2;
    while ((length = read(fd, buffer, sizeof buffer)) > 0)
        if (write(1, buffer, length) != length) return 3;
    return 0;
}
"""
