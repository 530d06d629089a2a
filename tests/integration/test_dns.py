"""DNS under `sidecar exec`, asked by real programs, of a name server that only the tests have."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from integration import netns
from nameservers import Scripted, a, aaaa, cname, raw, record
from twisted.names import dns

import sidecar
from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    import socket
    import subprocess
    from collections.abc import Iterator

pytestmark = pytest.mark.thorough

_CHECKOUT = str(Path(sidecar.__file__).parent.parent)
HERE, HERE6, ELSEWHERE = "9.9.9.1", "2620:fe::1", "9.9.9.2"
ECH = b"\x00\x01\x00" + b"\x00\x01\x00\x03\x02h2" + b"\x00\x05\x00\x04conf"
RECORDS = [
    *a("www.example.com", HERE),
    *aaaa("www.example.com", HERE6),
    *a("other.example.com", ELSEWHERE),
    *a("twin.example.com", HERE),
    *a("private.example.com", "10.0.0.1"),
    cname("alias.example.com", "www.example.com"),
    raw("www.example.com", 65, ECH),
    record("2.9.9.9.in-addr.arpa", dns.Record_PTR(b"other.example.com")),
    *[record("long.example.com", dns.Record_TXT(b"x" * 200)) for _ in range(30)],
]
# In a mount namespace of its own, other files that say how names are found.
_WITH_FILES = (
    "for each in resolv.conf nsswitch.conf hosts;"
    ' do mount --bind "$0/$each" "/etc/$each" || exit 99; done; exec "$@"'
)
_FILES = {
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:5 attempts:1\n",
    "nsswitch.conf": "hosts: files dns\n",
    "hosts": f"127.0.0.1 localhost\n{HERE} fromfile.example\n",
}


@dataclass
class Machine:
    """A machine on which `sidecar exec` runs, and its name server."""

    namespace: netns.Namespace
    directory: Path
    names: Scripted

    def exec(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `sidecar exec WORDS`."""
        return self.namespace.run(
            [
                *("unshare", "--mount", "sh", "-c", _WITH_FILES, str(self.directory)),
                *(sys.executable, "-m", "sidecar.cli", "exec", "-q", "--summary", "none", *words),
            ],
            check=check,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": _CHECKOUT},
        )

    def log(self, *words: str, check: bool = True) -> list[dict[str, object]]:
        """Run `sidecar exec --log FILE WORDS`; what the log has, but for DNS questions."""
        lines = self.whole_log(*words, check=check)
        return [each for each in lines if each["listener"] != "dns"]

    def whole_log(self, *words: str, check: bool = True) -> list[dict[str, object]]:
        """Likewise; all that the log has."""
        path = self.directory / "log"
        path.unlink(missing_ok=True)
        self.exec("--log", str(path), *words, check=check)
        return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


@pytest.fixture(scope="module")
def _machine(_namespaces: None, outside: Path) -> Iterator[Machine]:
    namespace = netns.Namespace("dns")
    with ExitStack() as stack:
        stack.callback(namespace.remove)
        for address in (f"{HERE}/32", f"{ELSEWHERE}/32", f"{HERE6}/128"):
            namespace.reach(address)
        for name, text in _FILES.items():
            (outside / name).write_text(text, encoding="ascii")
        names = Scripted(RECORDS, port=53)
        with namespace.entered():
            stack.enter_context(names)
        yield Machine(namespace, outside, names)


@pytest.fixture
def machine(_machine: Machine) -> Machine:
    _machine.names.asked.clear()
    return _machine


@contextmanager
def greeting(machine: Machine, *addresses: str, port: int) -> Iterator[None]:
    """Servers that speak first, one connection each."""
    with ExitStack() as stack:
        for address in addresses:
            listener = stack.enter_context(machine.namespace.listen(SocketAddress(address, port)))

            Thread(target=_greet, args=(listener,), daemon=True).start()
        yield


def _greet(listener: socket.socket) -> None:
    try:
        connection, _ = listener.accept()
    except OSError:
        return
    with connection:
        connection.sendall(b"220 hello\r\n")
        connection.recv(1)


GREETED = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as client:
    print(client.recv(99).decode().strip())
"""
UNKNOWN = """
import socket
try:
    print(socket.getaddrinfo("secret.evil.example", 80, type=socket.SOCK_STREAM)[0][4][0])
except OSError as error:
    print(error.errno)
"""


class TestDig:
    @pytest.mark.parametrize("protocol", ["+notcp", "+tcp"])
    @pytest.mark.parametrize(
        "server", ["127.0.0.1", "127.0.0.53", "8.8.8.8", "192.0.2.1", "::1", "2001:4860:4860::8888"]
    )
    def test_any_server(self, machine: Machine, protocol: str, server: str) -> None:
        """Whichever server is asked, over UDP or TCP, that server answers."""
        done = machine.exec(
            "--", "dig", protocol, f"@{server}", "www.example.com", "+noall", "+answer", "+stats"
        )
        assert f"IN\tA\t{HERE}" in done.stdout
        assert f"SERVER: {server}#53({server})" in done.stdout
        assert [("www.example.com", dns.A, False)] == machine.names.asked

    def test_long(self, machine: Machine) -> None:
        """A long answer is cut, and fetched over TCP."""
        done = machine.exec(
            "--", "dig", "long.example.com", "TXT", "+noall", "+answer", "+comments"
        )
        assert ";; Truncated, retrying in TCP mode." in done.stdout
        assert 30 == done.stdout.count("IN\tTXT\t")

    @pytest.mark.parametrize("protocol", ["+notcp", "+tcp"])
    @pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "HTTPS", "ANY", "TYPE65280"])
    def test_refused(self, machine: Machine, protocol: str, kind: str) -> None:
        """What the policy can't allow is told at once, with words, and nobody else hears of it."""
        done = machine.exec(
            *("--default", "deny", "--allow", "www.example.com:443"),
            *("--", "dig", protocol, "c2VjcmV0.evil.example", kind),
        )
        assert "status: NXDOMAIN" in done.stdout
        assert (
            "EDE: 17 (Filtered): (sidecar: denied: default; to allow it: c2vjcmv0.evil.example)"
            in done.stdout
        )
        assert [] == machine.names.asked

    def test_ech(self, machine: Machine) -> None:
        """ECH is left out where the policy says so."""
        (machine.directory / "policy.toml").write_text('[policy]\nech = "deny"\n', encoding="ascii")
        policy = str(machine.directory / "policy.toml")
        shown = machine.exec("--", "dig", "+short", "www.example.com", "HTTPS").stdout
        hidden = machine.exec(
            "--policy", policy, "--", "dig", "+short", "www.example.com", "HTTPS"
        ).stdout
        assert ("ech=" in shown, "ech=" in hidden) == (True, False)
        assert 'alpn="h2"' in hidden

    def test_burst(self, machine: Machine) -> None:
        """Hundreds of questions at once are all answered."""
        names = "\n".join(
            ["www.example.com"] * 100 + ["other.example.com", "alias.example.com"] * 100
        )
        (machine.directory / "names").write_text(names, encoding="ascii")
        done = machine.exec("--", "dig", "+short", "-f", str(machine.directory / "names"))
        assert (200, 100) == (done.stdout.count(HERE), done.stdout.count(ELSEWHERE))


class TestLibc:
    def test_getent(self, machine: Machine) -> None:
        """The C library finds addresses and names."""
        done = machine.exec("--", "getent", "ahosts", "alias.example.com")
        assert {HERE, HERE6} == {line.split()[0] for line in done.stdout.splitlines()}
        assert "other.example.com" in machine.exec("--", "getent", "hosts", ELSEWHERE).stdout
        assert (
            "fromfile.example" in machine.exec("--", "getent", "hosts", "fromfile.example").stdout
        )

    def test_private(self, machine: Machine) -> None:
        """A private address is not there, unless the policy allows it."""
        asked = ("--", "getent", "ahostsv4", "private.example.com")
        assert "" == machine.exec(*asked, check=False).stdout
        assert "10.0.0.1" in machine.exec("--allow", "10.0.0.0/8:5432", *asked).stdout

    def test_search_list(self, machine: Machine) -> None:
        """What the C library makes of an allowed name by its search list is no denial."""
        path = machine.directory / "resolv.conf"
        search = "search default.svc.cluster.test cluster.test\noptions ndots:5\n"
        path.write_text(_FILES["resolv.conf"] + search, encoding="ascii")
        options = ("--default", "deny", "--allow", "www.example.com", "--fail-on-deny")
        try:
            found = machine.exec(*options, "--", "getent", "ahosts", "www.example.com")
            denied = machine.exec(
                *(*options, "--", "getent", "ahosts", "evil.example.com"), check=False
            )
        finally:
            path.write_text(_FILES["resolv.conf"], encoding="ascii")
        assert HERE in found.stdout
        assert {"www.example.com"} == {name for name, _, _ in machine.names.asked}
        assert 77 == denied.returncode

    def test_no_waiting(self, machine: Machine) -> None:
        """A refusal is an answer, and final."""
        done = machine.exec("--default", "deny", "--", sys.executable, "-c", UNKNOWN)
        # EAI_NONAME; EAI_AGAIN would be that nobody answered.
        assert "-2\n" == done.stdout
        assert [] == machine.names.asked


class TestLog:
    def test_questions(self, machine: Machine) -> None:
        """Names that left, and those that were not let, are in the log."""
        words = ("--default", "deny", "--allow", "www.example.com")
        script = (
            "for each in www.example.com evil.example localhost; do getent ahostsv4 $each; done"
        )
        lines = machine.whole_log(*words, "--", "sh", "-c", script, check=False)
        found = {(each["name"], each["type"], each["verdict"], each["rcode"]) for each in lines}
        assert {
            ("www.example.com", "A", "allow", "NOERROR"),
            ("evil.example", "A", "deny", "NXDOMAIN"),
        } == found
        assert [HERE] in [each["addresses"] for each in lines]


class TestNamedByDns:
    def test_raw(self, machine: Machine, port: int) -> None:
        """A connection that says no name has that of the answer; rules for names hold for it."""
        client = ("--", sys.executable, "-c", GREETED, "www.example.com", str(port))
        with greeting(machine, HERE, HERE6, port=port):
            (line,) = machine.log(
                "--default", "deny", "--allow", f"www.example.com:{port}", *client
            )
        assert ("allow", "rule", "www.example.com", "dns", "tcp", "exec") == (
            *(line["verdict"], line["reason"], line["host"], line["host_from"]),
            *(line["protocol"], line["listener"]),
        )

    def test_other_name(self, machine: Machine, port: int) -> None:
        """An address that was not answered for the name is not the name's."""
        client = ("--", sys.executable, "-c", GREETED, ELSEWHERE, str(port))
        with greeting(machine, ELSEWHERE, port=port):
            (line,) = machine.log(
                "--default", "deny", "--allow", f"www.example.com:{port}", *client, check=False
            )
        assert ("deny", "no_name", None) == (line["verdict"], line["reason"], line["host"])

    def test_hosts_file(self, machine: Machine, port: int) -> None:
        """A name that only /etc/hosts has counts as well."""
        client = ("--", sys.executable, "-c", GREETED, "fromfile.example", str(port))
        with greeting(machine, HERE, port=port):
            (line,) = machine.log(
                "--default", "deny", "--allow", f"fromfile.example:{port}", *client
            )
        assert ("allow", "fromfile.example", "dns") == (
            *(line["verdict"], line["host"]),
            line["host_from"],
        )

    def test_denied_by_its_name(self, machine: Machine, port: int) -> None:
        """A denial says which name would have to be allowed."""
        client = ("--", sys.executable, "-c", GREETED, "www.example.com", str(port))
        (first, *_) = machine.log(
            "--default", "deny", "--allow", "www.example.com:1", *client, check=False
        )
        assert ("deny", "default", "www.example.com") == (
            *(first["verdict"], first["reason"]),
            first["host"],
        )
