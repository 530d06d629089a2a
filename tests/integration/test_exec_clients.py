"""People's programs under `sidecar exec`: caught, named and relayed, or refused, each its own way.

As root and as nobody, on a machine with names and servers that only the tests have.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from integration import netns
from integration.exec_stage import USERS, Stage
from integration.http_stage import needs
from integration.origins import Origin, some
from integration.proxy import Program
from names.authority import Authority
from nameservers import Scripted, a, aaaa, record
from twisted.names import dns

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

pytestmark = pytest.mark.thorough

_programs = needs("gcc", "git", "nginx", "ssh")

NAME, HERE, HERE6 = "www.example.com", "9.9.9.1", "2620:fe::1"
PAGE = "a page of nginx's\n"
_GIGABYTE = 1 << 30
BANNER = "SSH-2.0-banner_of_ours"
SSH = 22
RECORDS = [
    *a(NAME, HERE),
    *aaaa(NAME, HERE6),
    record("1.9.9.9.in-addr.arpa", dns.Record_PTR(NAME.encode())),
    record(NAME, dns.Record_TXT(b"words")),
]
_FILES = {
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:5 attempts:1\n",
    "nsswitch.conf": "hosts: files dns\n",
    "hosts": "127.0.0.1 localhost\n",
}
_NGINX = """\
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {directory}/temp; proxy_temp_path {directory}/temp;
  fastcgi_temp_path {directory}/temp; uwsgi_temp_path {directory}/temp;
  scgi_temp_path {directory}/temp;
  server {{
    listen {ipv4}:80; listen [{ipv6}]:80;
    listen {ipv4}:443 ssl http2; listen [{ipv6}]:443 ssl http2;
    ssl_certificate {certificate}; ssl_certificate_key {certificate};
    root {directory}/www;
  }}
}}
"""
_CURL = ("curl", "-q", "-sS", "--globoff", "--max-time", "15")
_WGET = ("wget", "--no-verbose", "--tries=1", "--timeout=15", "--output-document=-")
_URLLIB = """\
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[2])
with urllib.request.urlopen(sys.argv[1], timeout=15, context=context) as answer:
    print(end=answer.read().decode())
"""
_GREETED = """\
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 15) as client:
    print(client.recv(99).decode().strip())
"""
# A grandchild that nobody waits for fetches a page; told by a file.
_DOUBLE_FORK = """\
cd "$0"
(setsid sh -c "curl -q -sS --max-time 15 $1 > page 2>&1; : > done" > /dev/null &)
while [ ! -e done ]; do sleep 0.02; done
cat page
rm -f page done
"""
# Without a C library that could be preloaded into.
_RUST = r"""
use std::io::{copy, stdout, Write};
use std::net::{IpAddr, TcpStream};

fn main() {
    let host: IpAddr = std::env::args().nth(1).unwrap().parse().unwrap();
    let mut stream = TcpStream::connect((host, 80)).unwrap();
    stream.write_all(b"GET /page HTTP/1.0\r\nHost: NAME\r\n\r\n").unwrap();
    copy(&mut stream, &mut stdout()).unwrap();
}
"""
_C = r"""
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(80)};
    const char *request = "GET /page HTTP/1.0\r\nHost: NAME\r\n\r\n";
    char buffer[4096];
    ssize_t length;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) return 1;
    if (write(fd, request, strlen(request)) < 0) return 2;
    while ((length = read(fd, buffer, sizeof buffer)) > 0)
        if (write(1, buffer, length) != length) return 3;
    return 0;
}
"""


@dataclass(frozen=True)
class Client:
    """A program, and what it shows.

    Attributes:
        command: With DIRECTORY for the test's own, where the authority's certificate is.
        port: Where it connects to.
        protocol, host_from: What the log says of it.
        process: What the process calls itself that connects.
        shows: A part of what it prints when it is served; None if that is an error of its own.
        speaks: Whether it says something before it has heard its server.
        refused: A pattern that what it prints has when its connection is denied.
    """

    command: tuple[str, ...]
    port: int
    process: str
    protocol: str
    host_from: str
    refused: str
    shows: str = PAGE
    speaks: bool = True

    def words(self, directory: Path) -> list[str]:
        """The command."""
        return [word.replace("DIRECTORY", str(directory)) for word in self.command]


_FORBIDDEN = rf"sidecar: denied: default; to allow it: {NAME}:80\n"
_ALERT = r"(?i)alert access denied"
_CA = "DIRECTORY/authority.pem"
_CLIENTS = {
    "curl": Client((*_CURL, f"http://{NAME}/page"), 80, "curl", "http", "host", _FORBIDDEN),
    "curl-https": Client(
        (*_CURL, "--cacert", _CA, "--http1.1", f"https://{NAME}/page"),
        443,
        "curl",
        "tls",
        "sni",
        _ALERT,
    ),
    "curl-h2": Client(
        (*_CURL, "--cacert", _CA, "--http2", "-w", "%{http_version}", f"https://{NAME}/page"),
        *(443, "curl", "tls", "sni", _ALERT),
        shows=f"{PAGE}2",
    ),
    "wget": Client((*_WGET, f"http://{NAME}/page"), 80, "wget", "http", "host", "403: Forbidden"),
    "wget-https": Client(
        (*_WGET, f"--ca-certificate={_CA}", f"https://{NAME}/page"),
        *(443, "wget", "tls", "sni", "Unable to establish SSL connection"),
    ),
    "python": Client(
        ("python3", "-c", _URLLIB, f"http://{NAME}/page", _CA),
        *(80, "python3", "http", "host", "HTTP Error 403: Forbidden"),
    ),
    "python-https": Client(
        ("python3", "-c", _URLLIB, f"https://{NAME}/page", _CA),
        443,
        "python3",
        "tls",
        "sni",
        _ALERT,
    ),
    "git": Client(
        ("git", "ls-remote", f"http://{NAME}/repository.git"),
        *(80, "git-remote-http", "http", "host", "The requested URL returned error: 403"),
        shows="refs/heads/main",
    ),
    "git-https": Client(
        ("env", f"GIT_SSL_CAINFO={_CA}", "git", "ls-remote", f"https://{NAME}/repository.git"),
        # GnuTLS names no alert.
        *(443, "git-remote-http", "tls", "sni", "unable to access"),
        shows="refs/heads/main",
    ),
    "ssh": Client(
        ("ssh", "-v", "-F", "none", "-o", "BatchMode=yes", "-p", str(SSH), NAME),
        *(SSH, "ssh", "tcp", "dns", "(?i)connection (reset|closed)"),
        shows="remote software version banner_of_ours",
    ),
    "silent": Client(
        ("python3", "-c", _GREETED, NAME, str(SSH)),
        *(SSH, "python3", "tcp", "dns", "ConnectionResetError"),
        shows=BANNER,
        speaks=False,
    ),
    # It has been refused before it has said a name.
    "static": Client(
        ("DIRECTORY/static", HERE),
        80,
        "static",
        "http",
        "host",
        rf"denied: default; to allow it: {HERE}:80",
    ),
    "double-fork": Client(
        ("sh", "-c", _DOUBLE_FORK, "DIRECTORY", f"http://{NAME}/page"),
        *(80, "curl", "http", "host", _FORBIDDEN),
    ),
}


@dataclass
class Machine:
    """Where the programs run, and what they reach.

    Attributes:
        stage: Of whichever user is the test's.
        names: The host's name server.
        directory: Has the authority's certificate; everybody may write there.
    """

    stage: Stage
    names: Scripted
    directory: Path


def _greet(connection: socket.socket) -> None:
    """Speak first, and end when the client has had enough."""
    connection.sendall(f"{BANNER}\r\n".encode())
    connection.recv(99)


def _make_repository(www: Path) -> None:
    """A repository to be had by plain files."""
    script = """
        git init -q -b main work && cd work &&
        git -c user.name=t -c user.email=t@example commit -q --allow-empty -m first && cd .. &&
        git clone -q --bare work repository.git && git -C repository.git update-server-info
    """
    environment = {"PATH": os.environ["PATH"], "HOME": str(www)}
    subprocess.run(["sh", "-ec", script], cwd=www, env=environment, check=True)


def _make_static(directory: Path) -> None:
    """A static binary: Rust's where that is installed, else C's."""
    binary = directory / "static"
    if shutil.which("rustc"):
        source, text = directory / "static.rs", _RUST
        command = ["rustc", "-C", "target-feature=+crt-static", "-o", str(binary), str(source)]
    else:
        source, text = directory / "static.c", _C
        command = ["gcc", "-static", "-o", str(binary), str(source)]
    source.write_text(text.replace("NAME", NAME))
    subprocess.run(command, check=True, timeout=netns.DEADLINE)


@pytest.fixture(scope="module")
def _machine(_namespaces: None, _programs: None) -> Iterator[Machine]:
    # Not below pytest's own, which is root's alone.
    with tempfile.TemporaryDirectory() as directory, _machine_in(Path(directory)) as machine:
        yield machine


@contextmanager
def _machine_in(directory: Path) -> Iterator[Machine]:
    directory.chmod(0o777)
    for name in ("www", "temp"):
        (directory / name).mkdir()
    (directory / "www" / "page").write_text(PAGE)
    for name, text in _FILES.items():
        (directory / name).write_text(text)
    _make_repository(directory / "www")
    _make_static(directory)
    certificate = Authority(directory).issue(x509.DNSName(NAME))
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _NGINX.format(directory=directory, certificate=certificate, ipv4=HERE, ipv6=HERE6)
    )
    with ExitStack() as stack:
        namespace = netns.Namespace("cli")
        stack.callback(namespace.remove)
        for address in (f"{HERE}/32", f"{HERE6}/128"):
            namespace.reach(address)
        names = Scripted(RECORDS, port=53)
        with namespace.entered():
            stack.enter_context(names)
        for host in (HERE, HERE6):
            stack.enter_context(Origin(namespace, SocketAddress(host, SSH), _greet))
        command = ["nginx", "-c", str(configuration), "-p", str(directory), "-g", "daemon off;"]
        nginx = Program(namespace.elsewhere, command, cwd=directory)
        stack.callback(nginx.stop)
        nginx.wait_until(lambda: nginx.listens(80) and nginx.listens(443))
        stage = Stage(namespace, directory, "root", files=directory)
        stage.environment = {"HOME": str(directory), "GIT_TERMINAL_PROMPT": "0"}
        yield Machine(stage, names, directory)


@pytest.fixture(params=USERS)
def machine(_machine: Machine, request: pytest.FixtureRequest) -> Machine:
    """Each user in turn."""
    _machine.stage.user = request.param
    _machine.stage.patiently = True
    _machine.names.asked.clear()
    return _machine


def facts(line: dict[str, Any], *keys: str) -> list[Any]:
    return [line[key] for key in keys]


@pytest.fixture(params=_CLIENTS)
def client(request: pytest.FixtureRequest) -> Client:
    """Each program in turn."""
    return _CLIENTS[request.param]


class TestConnections:
    def test_allowed(self, machine: Machine, client: Client) -> None:
        """It gets what it came for, and the log says by which name it was allowed."""
        machine.stage.patiently = client.speaks
        done = machine.stage.run(
            *client.words(machine.directory),
            options=["--default", "deny", "--allow", f"{NAME}:{client.port}", "--fail-on-deny"],
        )
        assert client.shows in done.output + done.errors
        assert done.status != 77, done.errors
        assert done.log
        for line in done.log:
            assert ["exec", NAME, "allow", "rule"] == facts(
                line, "listener", "host", "verdict", "reason"
            )
            assert [client.host_from, client.protocol] == facts(line, "host_from", "protocol")
            assert f"{NAME}:{client.port} (--allow)" == line["rule"]
            assert client.process == line["process"]["command"]
            assert line["upstream"] in {f"{HERE}:{client.port}", f"[{HERE6}]:{client.port}"}

    def test_denied(self, machine: Machine, client: Client) -> None:
        """It is told in its own language, or reset; and what it meant is in the log."""
        machine.stage.patiently = client.speaks
        done = machine.stage.run(
            *client.words(machine.directory),
            # It may look the name up.
            options=["--default", "deny", "--allow", f"{NAME}:1", "--fail-on-deny"],
        )
        assert 77 == done.status
        assert re.search(client.refused, done.output + done.errors), done
        assert PAGE not in done.output
        assert done.log
        for line in done.log:
            assert ["exec", "deny", "default", "denied", None] == facts(
                line, "listener", "verdict", "reason", "end", "upstream"
            )
        line = done.log[-1]
        assert NAME == line["host"]
        assert [client.host_from, client.protocol] == facts(line, "host_from", "protocol")
        assert client.process == line["process"]["command"]


class TestAddresses:
    @pytest.mark.parametrize("host", [HERE, f"[{HERE6}]"])
    def test_allowed(self, machine: Machine, host: str) -> None:
        """A literal address, of either family, needs a rule for it, and no name."""
        done = machine.stage.run(
            *(*_CURL, f"http://{host}/page"),
            options=["--default", "deny", "--allow", f"{host}:80", "--fail-on-deny"],
        )
        assert (0, PAGE) == (done.status, done.output)
        (line,) = done.log
        assert [f"{host}:80", f"{host}:80", None, None, "allow"] == facts(
            line, "destination", "upstream", "host", "host_from", "verdict"
        )
        assert [] == machine.names.asked

    @pytest.mark.parametrize("host", [HERE, f"[{HERE6}]"])
    def test_denied(self, machine: Machine, host: str) -> None:
        """Without one it is refused, and told which."""
        done = machine.stage.run(
            *(*_CURL, f"http://{host}/page"),
            options=["--default", "deny", "--allow", f"{NAME}:443", "--fail-on-deny"],
        )
        assert 77 == done.status
        assert f"sidecar: denied: default; to allow it: {host}:80\n" == done.output


class TestNames:
    """What programs ask of DNS; test_dns.py has more."""

    ASKING = (
        ("getent", "hosts", NAME),
        ("getent", "ahosts", NAME),
        ("dig", "+notcp", NAME),
        ("dig", "+tcp", "@8.8.8.8", NAME),
        ("dig", "+notcp", "@2001:4860:4860::8888", NAME, "AAAA"),
    )
    SCRIPT = "\n".join(f"{' '.join(command)}; echo status $?" for command in ASKING)

    def test_allowed(self, machine: Machine) -> None:
        """The name's addresses, whoever is asked."""
        done = machine.stage.run(
            *("sh", "-c", self.SCRIPT),
            options=["--default", "deny", "--allow", NAME, "--fail-on-deny"],
        )
        assert (0, 5) == (done.status, done.output.count("status 0\n")), done
        hosts, both, *digs = re.split(r"status \d+\n", done.output)[:-1]
        assert HERE6 in hosts
        assert HERE in both
        assert HERE6 in both
        assert 3 == sum("status: NOERROR" in each for each in digs)
        assert [HERE, HERE, HERE6] == [
            found[1] for each in digs for found in re.finditer(r"IN\tA(?:AAA)?\t(\S+)", each)
        ]

    def test_denied(self, machine: Machine) -> None:
        """There is no such name; dig shows why, and who would have to be allowed."""
        done = machine.stage.run(
            "sh", "-c", self.SCRIPT, options=["--default", "deny", "--fail-on-deny"]
        )
        assert 77 == done.status
        assert 2 == done.output.count("status 2\n")
        assert 3 == done.output.count("status: NXDOMAIN")
        why = f"EDE: 17 (Filtered): (sidecar: denied: default; to allow it: {NAME})"
        assert 3 == done.output.count(why)
        assert [] == machine.names.asked

    def test_no_client_gets_anywhere(self, machine: Machine) -> None:
        """Programs that can't have the name say so, and nothing leaves."""
        script = "\n".join(
            f"{shlex.join(client.words(machine.directory))} > /dev/null 2>&1 && echo {name}"
            for name, client in _CLIENTS.items()
            # One knows the address, the other tells nobody.
            if name not in {"static", "double-fork"}
        )
        done = machine.stage.run(
            "sh", "-c", script, options=["--default", "deny", "--fail-on-deny"]
        )
        # That of the last client, as a shell has it.
        said = "sidecar exec: something was denied: exit status 77; the command's own was 1\n"
        assert (77, "", said) == (done.status, done.output, done.errors)
        assert [] == done.log
        assert [] == machine.names.asked


def _gigabyte() -> Iterator[bytes]:
    """1 GiB in blocks of 1 MiB, no two of them alike."""
    block = bytearray(some(1 << 20))
    for serial in range(_GIGABYTE // len(block)):
        block[:8] = serial.to_bytes(8, "big")
        yield bytes(block)


class TestBulk:
    @pytest.mark.parametrize("machine", ["nobody"], indirect=True)
    @pytest.mark.parametrize("rule", [HERE, NAME])
    def test_a_gigabyte(self, machine: Machine, rule: str) -> None:
        """It arrives as it was sent, whether its connection is judged by address or by name."""
        sent = hashlib.sha256()
        head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {_GIGABYTE}\r\n\r\n"

        def serve(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(head.encode())
            for block in _gigabyte():
                sent.update(block)
                connection.sendall(block)

        with Origin(machine.stage.namespace, SocketAddress(HERE, 8080), serve):
            done = machine.stage.run(
                *("sh", "-c", '"$@" | sha256sum', "sh", *_CURL[:-2], "-4", f"http://{NAME}:8080/"),
                options=["--default", "deny", "--allow", NAME + ":1", "--allow", f"{rule}:8080"],
                timeout=100,
            )
        assert f"{sent.hexdigest()}  -\n" == done.output
        (line,) = done.log
        assert "closed" == line["end"]
