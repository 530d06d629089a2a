"""Plain HTTP under `sidecar exec`: each request of a connection is judged by its own Host."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from integration import netns
from integration.exec_stage import USERS, Stage
from integration.http_origins import Conversation, Request, head, scripted
from nameservers import Scripted, a

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.thorough

# One address, as names of one provider have; the third is elsewhere.
ALLOWED, DENIED, HERE = "allowed.example.com", "denied.example.com", "9.9.9.1"
OTHER, THERE = "other.example.com", "9.9.9.2"
PROXY, PROXY_HERE = "proxy.example.com", "9.9.9.3"
PROXY_PORT = 8888
RECORDS = [*a(ALLOWED, HERE), *a(DENIED, HERE), *a(OTHER, THERE), *a(PROXY, PROXY_HERE)]
_FILES = {
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:5 attempts:1\n",
    "nsswitch.conf": "hosts: files dns\n",
    "hosts": "127.0.0.1 localhost\n",
}
ONE = ("--default", "deny", "--allow", ALLOWED)
# Says what it is told to, piece by piece, and prints what it hears to the end.
RAW = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 15) as client:
    for each in sys.argv[3:]:
        client.sendall(each.encode().decode('unicode_escape').encode('latin-1'))
    for data in iter(lambda: client.recv(65536), b''):
        print(data.decode('latin-1'), end='')
"""
# Likewise, after a silence longer than anybody waits.
LATE = RAW.replace("    for each", "    __import__('time').sleep(0.6)\n    for each")
KEPT = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=15)
for number, host in enumerate(sys.argv[2:]):
    connection.request("GET", f"/{number}", headers={"Host": host})
    answer = connection.getresponse()
    print(answer.status, answer.read().decode().strip())
"""
MANY = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=15)
for _ in range(int(sys.argv[2])):
    connection.request("GET", "/")
    connection.getresponse().read()
"""


def told(host: str) -> Callable[[Conversation, Request], None]:
    """Answer every request by saying where it came to; talk like a parrot if asked to."""

    def answer(conversation: Conversation, request: Request) -> None:
        for _ in conversation.content(request):
            pass
        if request.one("upgrade"):
            fields = ("Upgrade: parrot", "Connection: Upgrade")
            conversation.send(head("101 Switching Protocols", *fields))
            while data := conversation.heard(5):
                conversation.send(data)
            return
        body = f"{request.one('host')} at {host}\n"
        conversation.send(head("200 OK", f"Content-Length: {len(body)}"), body)

    return answer


class Servers:
    """What they were asked."""

    here: list[Request]
    there: list[Request]
    proxy: list[Request]

    def clear(self) -> None:
        """Forget it."""
        for each in (self.here, self.there, self.proxy):
            each.clear()


@pytest.fixture(scope="module")
def machine(_namespaces: None) -> Iterator[tuple[netns.Namespace, Servers]]:
    """A machine with names and servers of its own."""
    namespace = netns.Namespace("exechttp")
    servers = Servers()
    with ExitStack() as stack:
        stack.callback(namespace.remove)
        for address in (HERE, THERE, PROXY_HERE):
            namespace.reach(address)

        def serve(host: str, port: int) -> list[Request]:
            return stack.enter_context(scripted(namespace, SocketAddress(host, port), told(host)))

        servers.here, servers.there = serve(HERE, 80), serve(THERE, 80)
        servers.proxy = serve(PROXY_HERE, PROXY_PORT)
        with namespace.entered():
            stack.enter_context(Scripted(RECORDS, port=53))
        yield namespace, servers


@pytest.fixture(name="servers")
def _servers(machine: tuple[netns.Namespace, Servers]) -> Servers:
    machine[1].clear()
    return machine[1]


@pytest.fixture(params=USERS)
def stage(
    request: pytest.FixtureRequest, machine: tuple[netns.Namespace, Servers]
) -> Iterator[Stage]:
    """Each user in turn, on that machine."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o777)
        for file, text in _FILES.items():
            (directory / file).write_text(text, encoding="ascii")
        yield Stage(machine[0], directory, request.param, files=directory, patiently=True)


def curl(*names: str) -> list[str]:
    """Ask for these names, one after the other, over one connection to the first's address."""
    command = ["curl", "-q"]
    for number, name in enumerate(names):
        # What curl is told holds as far as the next --next.
        command += ["--next"] if number else []
        command += ["--silent", "--show-error", "--max-time", "15", "--header", f"Host: {name}"]
        command += ["--write-out", "%{http_code} %{num_connects}\n", f"http://{names[0]}/"]
    return command


def facts(line: dict[str, Any], *keys: str) -> list[Any]:
    """Give some of a line's values."""
    return [line.get(key) for key in keys]


def test_each_request(stage: Stage, servers: Servers) -> None:
    """Another name of the same address is denied on the same connection, which goes on."""
    done = stage.run(*curl(ALLOWED, DENIED, ALLOWED), options=[*ONE, "--fail-on-deny"])
    assert [
        f"{ALLOWED} at {HERE}",
        "200 1",
        f"sidecar: denied: default; to allow it: {DENIED}:80",
        "403 0",
        f"{ALLOWED} at {HERE}",
        "200 0",
    ] == done.output.splitlines()
    assert 77 == done.status
    assert [ALLOWED] * 2 == [each.one("host") for each in servers.here]
    assert [
        ["exec", ALLOWED, "host", "allow", "rule", 200, f"{HERE}:80"],
        ["exec", DENIED, "host", "deny", "default", 403, None],
        ["exec", ALLOWED, "host", "allow", "rule", 200, f"{HERE}:80"],
    ] == [
        facts(line, "listener", "host", "host_from", "verdict", "reason", "status", "upstream")
        for line in done.log
    ]
    (process,) = {json.dumps(line["process"]) for line in done.log}
    assert "curl" == json.loads(process)["command"]


def test_no_lookup(stage: Stage, servers: Servers) -> None:
    """A client that dials an address by itself is judged likewise: Host is verified."""
    done = stage.python(KEPT, HERE, ALLOWED, DENIED, ALLOWED, options=ONE)
    assert ["200", "403", "200"] == [line.split()[0] for line in done.output.splitlines()]
    assert 2 == len(servers.here)


def test_pipelined(stage: Stage, servers: Servers) -> None:
    """Requests that come all at once are answered in turn, each by itself."""
    requests = "".join(
        f"GET /{host} HTTP/1.1\\r\\nHost: {host}\\r\\n{last}\\r\\n"
        for host, last in [(ALLOWED, ""), (DENIED, ""), (ALLOWED, "Connection: close\\r\\n")]
    )
    done = stage.python(RAW, HERE, "80", requests, options=ONE)
    statuses = [line for line in done.output.splitlines() if line.startswith("HTTP/")]
    assert ["200", "403", "200"] == [line.split()[1] for line in statuses]
    assert [f"GET /{ALLOWED} HTTP/1.1"] * 2 == [each.line for each in servers.here]


def test_redialled(stage: Stage, servers: Servers) -> None:
    """A request for a name that is elsewhere, and allowed, goes where that is."""
    options = [*ONE, "--allow", OTHER]
    done = stage.run(*curl(ALLOWED, OTHER), options=options)
    assert [f"{ALLOWED} at {HERE}", f"{OTHER} at {THERE}"] == done.output.splitlines()[::2]
    assert [1, 1] == [len(servers.here), len(servers.there)]


def test_dns_name(stage: Stage, servers: Servers) -> None:
    """A request that says no name has the one that its address was answered for."""
    program = f"import socket; socket.gethostbyname({ALLOWED!r})\n{RAW}"
    request = "GET / HTTP/1.0\\r\\n\\r\\n"
    done = stage.python(program, HERE, "80", request, options=ONE)
    assert f"{HERE} at {HERE}" in done.output
    assert [[ALLOWED, "dns", "allow", 200]] == [
        facts(line, "host", "host_from", "verdict", "status") for line in done.log
    ]
    # An address of somebody else's isn't that name's.
    request = f"GET / HTTP/1.0\\r\\nHost: {THERE}\\r\\n\\r\\n"
    done = stage.python(program, HERE, "80", request, options=ONE)
    assert ["no_name"] == [line["reason"] for line in done.log]
    assert 1 == len(servers.here)


def test_late(stage: Stage, servers: Servers) -> None:
    """Whoever waits until silence was allowed is judged by what it says then."""
    program = f"import socket; socket.gethostbyname({ALLOWED!r})\n{LATE}"
    requests = "".join(
        f"GET / HTTP/1.1\\r\\nHost: {host}\\r\\n{last}\\r\\n"
        for host, last in [(DENIED, ""), (ALLOWED, "Connection: close\\r\\n")]
    )
    done = stage.python(program, HERE, "80", requests, options=ONE)
    statuses = [line for line in done.output.splitlines() if line.startswith("HTTP/")]
    assert ["403", "200"] == [line.split()[1] for line in statuses]
    assert [ALLOWED] == [each.one("host") for each in servers.here]
    assert [[DENIED, "deny", "default", 403], [ALLOWED, "allow", "rule", 200]] == [
        facts(line, "host", "verdict", "reason", "status") for line in done.log
    ]


@pytest.mark.parametrize("start", ["\\r\\nGET", "\\x20GET", "GET\\t", "GET\\xa0"])
def test_hidden(stage: Stage, servers: Servers, start: str) -> None:
    """What only some servers take for HTTP isn't judged by its address's name alone."""
    program = f"import socket; socket.gethostbyname({ALLOWED!r})\n{RAW}"
    rest = f" / HTTP/1.1\\r\\nHost: {DENIED}\\r\\nConnection: close\\r\\n\\r\\n"
    done = stage.python(program, HERE, "80", start, rest, options=ONE)
    assert ["http_request_line"] == [line["reason"] for line in done.log]
    assert [] == servers.here


def test_no_version(stage: Stage, servers: Servers) -> None:
    """Nor is a request line without a version, behind which some read fields."""
    program = f"import socket; socket.gethostbyname({ALLOWED!r})\n{RAW}"
    done = stage.python(program, HERE, "80", f"GET /\\r\\nHost: {DENIED}\\r\\n\\r\\n", options=ONE)
    assert ["http_request_line"] == [line["reason"] for line in done.log]
    assert [] == servers.here


def test_upgrade(stage: Stage) -> None:
    """A request that becomes something else is relayed from then on."""
    request = f"GET / HTTP/1.1\\r\\nHost: {ALLOWED}\\r\\nUpgrade: parrot\\r\\n"
    program = (
        "import socket, sys\n"
        "with socket.create_connection((sys.argv[1], 80), 15) as client:\n"
        "    client.sendall(sys.argv[2].encode())\n"
        "    file = client.makefile('rb')\n"
        "    print(*iter(lambda: file.readline().decode().strip(), ''), sep='; ')\n"
        "    for _ in range(3):\n"
        "        client.sendall(b'hello')\n"
        "        print(file.read(5).decode())\n"
    )
    request = request.replace("\\r\\n", "\r\n") + "Connection: Upgrade\r\n\r\n"
    done = stage.python(program, HERE, request, options=ONE)
    first, *rest = done.output.splitlines()
    assert first.startswith("HTTP/1.1 101 ")
    assert ["hello"] * 3 == rest
    assert [[ALLOWED, 101, 15, 15]] == [
        facts(line, "host", "status", "sent", "received") for line in done.log
    ]


class TestProxies:
    """A proxy that the command was told to use is a server like others."""

    def test_absolute(self, stage: Stage, servers: Servers) -> None:
        """What is judged is what the proxy is asked for, not that it may be asked."""
        stage.environment["http_proxy"] = f"http://{PROXY}:{PROXY_PORT}"
        command = ("curl", "-q", "-sS", "--max-time", "15", f"http://{OTHER}/")
        options = ["--default", "deny", "--allow", PROXY]
        done = stage.run(*command, options=options)
        rule = f"{PROXY_HERE}:{PROXY_PORT}"
        assert f"denied: proxy_request; to allow it: {rule}" in done.output
        assert [[PROXY, "deny", "proxy_request", rule]] == [
            facts(line, "host", "verdict", "reason", "destination") for line in done.log
        ]
        assert [] == servers.proxy + servers.there

    def test_by_address(self, stage: Stage, servers: Servers) -> None:
        """Who allows the proxy's address allows what it is asked for."""
        stage.environment["http_proxy"] = f"http://{PROXY_HERE}:{PROXY_PORT}"
        command = ("curl", "-q", "-sS", "--max-time", "15", f"http://{OTHER}/")
        rule = f"{PROXY_HERE}:{PROXY_PORT}"
        done = stage.run(*command, options=["--default", "deny", "--allow", rule])
        assert f"{OTHER} at {PROXY_HERE}\n" == done.output
        assert [f"GET http://{OTHER}/ HTTP/1.1"] == [each.line for each in servers.proxy]

    def test_connect(self, stage: Stage, servers: Servers) -> None:
        """Nobody is asked for a tunnel whose inside nobody would judge."""
        stage.environment["https_proxy"] = f"http://{PROXY}:{PROXY_PORT}"
        command = ("curl", "-q", "-sS", "--max-time", "15", f"https://{OTHER}/")
        done = stage.run(*command, options=["--default", "deny", "--allow", PROXY])
        assert "403" in done.errors
        assert [[PROXY, "deny", "proxy_request", f"{PROXY_HERE}:{PROXY_PORT}"]] == [
            facts(line, "host", "verdict", "reason", "destination") for line in done.log
        ]
        assert [] == servers.proxy

    def test_shown(self, stage: Stage) -> None:
        """It is said where that was, why, and what would allow it."""
        options = ["--default", "deny", "--allow", PROXY]
        environment = f"https_proxy=http://{PROXY}:{PROXY_PORT}"
        command = ("env", environment, "curl", "-q", "-sS", f"https://{OTHER}/")
        lines, summary = shown(stage, options, *command)
        (line,) = [each for each in lines if each.startswith("sidecar deny ")]
        assert f"{PROXY}:{PROXY_PORT}" in line
        assert "asks for a proxy: " in line
        rule = f"{PROXY_HERE}:{PROXY_PORT}"
        assert f"--allow {rule}" in line
        (denied,) = summary["denied"]
        assert (PROXY, PROXY_PORT, 1, 0, rule) == tuple(
            denied[key] for key in ("host", "port", "connections", "lookups", "allow")
        )

    def test_learned(self, stage: Stage, servers: Servers) -> None:
        """A run behind a proxy goes as without learning; what is learned lets it go again."""
        stage.environment["http_proxy"] = f"http://{PROXY}:{PROXY_PORT}"
        command = ("curl", "-q", "-sS", "--max-time", "15", f"http://{OTHER}/")
        policy = stage.directory / "proxied.toml"
        done = stage.run(*command, options=["--default", "allow", "--learn", str(policy)])
        assert f"{OTHER} at {PROXY_HERE}\n" == done.output
        assert [[PROXY, "dns", "allow"]] == [
            facts(line, "host", "host_from", "verdict") for line in done.log
        ]
        text = policy.read_text(encoding="utf-8")
        rules = [line for line in text.splitlines() if line.strip().startswith('"')]
        assert [f'"{PROXY_HERE}:{PROXY_PORT}",', f'"{PROXY}:53",'] == sorted(
            line.partition("#")[0].strip() for line in rules
        )
        assert f"a proxy, so this allows whatever the proxy allows; looked up as {PROXY}" in text
        again = stage.run(*command, options=["--policy", str(policy), "--fail-on-deny"])
        assert (0, f"{OTHER} at {PROXY_HERE}\n") == (again.status, again.output)
        assert [f"GET http://{OTHER}/ HTTP/1.1"] * 2 == [each.line for each in servers.proxy]


def shown(stage: Stage, options: Sequence[str], *command: str) -> tuple[list[str], dict[str, Any]]:
    """Run a command with the view.

    Returns:
        What was shown, and the summary.
    """
    summary = stage.directory / "summary"
    arguments = ["--summary", "json", "--summary-file", str(summary), *options, "--", *command]
    done = stage.namespace.run(stage.command(*arguments), check=False)
    lines = summary.read_text(encoding="utf-8").splitlines()
    return done.stderr.splitlines(), json.loads(lines[-1])


class TestShown:
    def test_many(self, stage: Stage, servers: Servers) -> None:
        """A client that keeps its connection gets one line, whatever it asks for."""
        number = 2000
        lines, summary = shown(stage, ONE, "python3", "-c", MANY, ALLOWED, str(number))
        allowed = [each for each in lines if each.startswith("sidecar allow ")]
        assert 1 == len(allowed), lines
        line = allowed[0]
        assert [f"{ALLOWED}:80", "http"] == line.split()[2:4]
        assert f"  {number} requests  python3[" in line
        assert number == len(servers.here)
        size = len(f"{ALLOWED} at {HERE}\n")
        assert {"connections": 1, "allowed": 1, "received": number * size}.items() <= (
            summary["total"].items()
        )

    def test_denied(self, stage: Stage) -> None:
        """A denied request is told at once, with what would allow it; its like are counted."""
        lines, summary = shown(stage, ONE, "python3", "-c", KEPT, HERE, ALLOWED, *[DENIED] * 3)
        allow = f"--allow {DENIED}:80"
        told_of = [line for line in lines if line.startswith("sidecar ")]
        assert ["deny", "allow", "deny"] == [line.split()[1] for line in told_of]
        assert "http no rule allows it" in told_of[0]
        assert f"{allow}  python3[" in told_of[0]
        assert "http 2 more requests: no rule allows it" in told_of[2]
        assert (1, 1) == (summary["total"]["allowed"], summary["total"]["denied"])
        assert [(f"{DENIED}:80", 1, ["python3"])] == [
            (each["allow"], each["connections"], each["processes"]) for each in summary["denied"]
        ]

    def test_learned(self, stage: Stage) -> None:
        """A policy is learned of each name once, and it is enough."""
        policy = stage.directory / "learned.toml"
        program = f"import socket; socket.gethostbyname({DENIED!r})\n{KEPT}"
        names = (ALLOWED, DENIED, ALLOWED)
        done = stage.python(program, ALLOWED, *names, options=["--learn", str(policy)])
        assert 0 == done.status, done.errors
        text = policy.read_text(encoding="utf-8")
        rules = [line for line in text.splitlines() if line.strip().startswith('"')]
        assert [f'"{ALLOWED}:80",', f'"{DENIED}:80",'] == sorted(
            line.partition("#")[0].strip() for line in rules
        )
        assert "python3" in text
        again = stage.python(program, ALLOWED, *names, options=["--policy", str(policy)])
        assert ["200"] * 3 == [line.split()[0] for line in again.output.splitlines()], again
