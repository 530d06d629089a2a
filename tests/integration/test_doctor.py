"""The doctor finds what works and what doesn't, and leaves nothing behind."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from identities import NOBODY, as_nobody, in_user_namespace, without_capabilities
from integration.doctors import ROOT, doctor, read, run
from integration.netns import Namespace

from sidecar.cli.doctor import host
from sidecar.cli.doctor.checking import checks, examine
from sidecar.cli.doctor.findings import Check, Finding, Form, Result, State, works
from sidecar.cli.doctor.showing import line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.thorough

SCHEMA = "doctor.schema.json"
HERE = Path(__file__).parent
# What the namespace of these tests has not: a name server.
WITHOUT_INTERNET = {"name server"}


@pytest.fixture(scope="module")
def alone() -> Iterator[Namespace]:
    """A namespace with nothing but loopback, where the doctor runs."""
    namespace = Namespace("doc")
    yield namespace
    namespace.remove()


def states(document: dict[str, Any]) -> dict[str, str]:
    """What came of each check."""
    return {each["name"]: each["state"] for each in document["checks"]}


def failed(document: dict[str, Any]) -> set[str]:
    """The checks that are not ok."""
    return {name for name, state in states(document).items() if state != "ok"}


def found(document: dict[str, Any], name: str) -> dict[str, Any]:
    """One check."""
    (check,) = [each for each in document["checks"] if each["name"] == name]
    return dict(check)


class TestWhereAllWorks:
    def test_root(self, alone: Namespace) -> None:
        """As root everything is there, for other users as well."""
        done = run(alone, doctor("--json"))
        document = read(done, SCHEMA)
        assert WITHOUT_INTERNET == failed(document), document
        assert {"exec": True, "transparent": True} == document["works"]
        assert 0 == done.returncode
        assert [check.name for check in checks()] == list(states(document))

    def test_ordinary_user(self, alone: Namespace, tmp_path: Path) -> None:
        """As an ordinary user too, but for what is root's."""
        done = run(alone, as_nobody(doctor("--json"), tmp_path))
        document = read(done, SCHEMA)
        assert NOBODY == document["uid"]
        assert {*WITHOUT_INTERNET, "privileges"} == failed(document), document
        assert {"exec": True, "transparent": True} == document["works"]
        assert 0 == done.returncode

    def test_lines(self, alone: Namespace) -> None:
        """Without --json: a line each, then what works."""
        done = run(alone, doctor())
        lines = done.stdout.splitlines()
        for text, check in zip(lines, checks(), strict=False):
            assert re.fullmatch(rf"(ok|not) +{check.name} +.+ \(for .+\)(; mend: .+)?", text)
            assert ("; mend: " in text) == text.startswith("not ")
        assert [
            "",
            "sidecar exec works here, for user 0.",
            "twistd sidecar's transparent listeners work on this kernel.",
        ] == lines[len(checks()) :]

    def test_nothing_is_changed(self, alone: Namespace) -> None:
        """No rule, route, address or mark is left in the namespace where it ran."""
        looks = (
            ("nft", "list", "ruleset"),
            ("ip", "rule"),
            ("ip", "route", "show", "table", "all"),
        )
        before = [alone.run(look).stdout for look in looks]
        run(alone, doctor())
        assert before == [alone.run(look).stdout for look in looks]


class TestWhereSomethingIsMissing:
    def test_no_user_namespaces(self, alone: Namespace) -> None:
        """max_user_namespaces=0: named, with the command that mends it; the rest is not tried."""
        command = without_capabilities(doctor("--json"))
        done = run(alone, in_user_namespace({"max_user_namespaces": "0"}, command))
        document = read(done, SCHEMA)
        check = found(document, "user namespaces")
        assert "user.max_user_namespaces is 0" in check["found"]
        assert "sysctl -w user.max_user_namespaces=15000" == check["mend"]
        assert "untried" == states(document)["TPROXY"]
        assert {"exec": False, "transparent": False} == document["works"]
        assert 1 == done.returncode

    def test_no_network_namespaces(self, alone: Namespace) -> None:
        """max_net_namespaces=0, likewise."""
        done = run(alone, in_user_namespace({"max_net_namespaces": "0"}, doctor("--json")))
        check = found(read(done, SCHEMA), "network namespaces")
        assert ("not", "sysctl -w user.max_net_namespaces=15000") == (check["state"], check["mend"])
        assert 1 == done.returncode

    def test_no_pid_namespaces(self, alone: Namespace) -> None:
        """Without pid namespaces exec works, and the doctor says what it lacks."""
        done = run(alone, in_user_namespace({"max_pid_namespaces": "0"}, doctor("--json")))
        document = read(done, SCHEMA)
        assert "not" == states(document)["pid namespaces"]
        assert "no pid namespace" in found(document, "sandbox")["found"]
        assert 0 == done.returncode

    def test_seccomp_of_a_container(self, alone: Namespace, tmp_path: Path) -> None:
        """A container's filter is named, and how to start the container instead."""
        wrapper = str(HERE / "without_namespaces.py")
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; sys.argv = sys.argv[1:]; import runpy; "
            f"runpy.run_path({wrapper!r}, run_name='__main__')"
        )
        command = [sys.executable, "-c", program, wrapper, *doctor("--json")]
        done = run(alone, as_nobody(command, tmp_path))
        check = found(read(done, SCHEMA), "user namespaces")
        assert "a seccomp filter, as containers have one" in check["found"]
        assert "--security-opt seccomp=unconfined" in check["mend"]
        assert 1 == done.returncode

    def test_no_ipv6(self, alone: Namespace) -> None:
        """Without IPv6 sockets IPv4 works, and that is said."""
        wrapper = [sys.executable, str(HERE / "without_ipv6.py")]
        document = read(run(alone, [*wrapper, *doctor("--json")]), SCHEMA)
        assert {*WITHOUT_INTERNET, "IPv6 TPROXY", "IPv6 REDIRECT"} == failed(document), document
        assert document["works"]["exec"]

    def test_few_descriptors(self, alone: Namespace) -> None:
        """A low hard limit is named."""
        command = ["prlimit", "--nofile=256:256", "--", *doctor("--json")]
        check = found(read(run(alone, command), SCHEMA), "descriptors")
        assert ("not", "256, at most 256: few") == (check["state"], check["found"])


def test_documented() -> None:
    """The table has all checks, and no others."""
    text = (ROOT / "docs/reference/doctor.md").read_text(encoding="utf-8")
    table = text[text.index("## What is checked") : text.index("## The leak test")]
    rows = re.findall(r"^\| ([^|]+?) \| [^|]+ \| [^|]*\|$", table, re.MULTILINE)
    named = [name for row in rows for name in row.split(", ")]
    assert [check.name for check in checks()] == named[1:]


class TestHost:
    def test_conntrack(self, tmp_path: Path) -> None:
        """A table that is nearly full is told."""
        (tmp_path / "nf_conntrack_max").write_text("1000\n")
        (tmp_path / "nf_conntrack_count").write_text("10\n")
        assert Finding(State.OK, "10 of 1000 connections") == host.conntrack_room(tmp_path)
        (tmp_path / "nf_conntrack_count").write_text("950\n")
        full = host.conntrack_room(tmp_path)
        assert (State.NOT, "950 of 1000 connections: nearly full") == (full.state, full.found)
        assert "sysctl -w net.netfilter.nf_conntrack_max=2000" == full.mend

    def test_name_server(self, alone: Namespace, tmp_path: Path) -> None:
        """The first that answers will do; the question tells nobody anything."""
        path = tmp_path / "resolv.conf"
        path.write_text("nameserver 127.0.0.77\nnameserver 127.0.0.53\n")
        with answering(alone, "127.0.0.53") as questions, alone.entered():
            finding = host.name_server(path)
        assert State.OK is finding.state
        assert finding.found.startswith("127.0.0.53 answered in ")
        assert [b"\0\0\2\0\1"] == [each[12:] for each in questions]

    def test_silent_name_server(self, alone: Namespace, tmp_path: Path) -> None:
        """One that doesn't answer is waited for no longer than the proxy would."""
        path = tmp_path / "resolv.conf"
        path.write_text("nameserver 127.0.0.54\n")
        began = time.monotonic()
        with answering(alone, "127.0.0.54", silent=True), alone.entered():
            finding = host.name_server(path, 0.2)
        # Not for as long as usually.
        assert time.monotonic() - began < host._DNS_PATIENCE
        assert (State.NOT, "127.0.0.54: no answer") == (finding.state, finding.found)

    def test_no_name_server(self, alone: Namespace, tmp_path: Path) -> None:
        """A server that refuses, or can't be reached, is named with the reason."""
        path = tmp_path / "resolv.conf"
        path.write_text("nameserver 127.0.0.55\nnameserver 192.0.2.53\n")
        with alone.entered():
            finding = host.name_server(path, 1)
        expected = "127.0.0.55: Connection refused; 192.0.2.53: Network is unreachable"
        assert (State.NOT, expected) == (finding.state, finding.found)


@contextmanager
def answering(namespace: Namespace, address: str, *, silent: bool = False) -> Iterator[list[bytes]]:
    """A name server with nothing to say."""
    questions: list[bytes] = []
    with namespace.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 53))
    sock.settimeout(5)

    def answer() -> None:
        question, peer = sock.recvfrom(512)
        questions.append(question)
        if not silent:
            sock.sendto(question, peer)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield questions
    finally:
        thread.join()
        sock.close()


class TestTrial:
    """In a process of its own: a trial wants one with one thread."""

    @staticmethod
    def attempted(function: str, patience: float = 5) -> str:
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; import os, time\n"
            "from sidecar.cli.doctor.trial import attempt\n"
            "from sidecar.errors import NamespaceError\n"
            f"def function():\n    {function}\n"
            f"found = attempt(function, {patience})\n"
            "print(found.value, found.problem, found.mend, sep='|')"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
        )
        assert "" == done.stderr
        return done.stdout.strip()

    def test_value(self) -> None:
        """What it returns comes back."""
        assert "fine|None|None" == self.attempted("return 'fine'")

    @pytest.mark.parametrize(
        ("function", "problem"),
        [
            ("raise OSError(1, 'no')", "None|no|None"),
            ("raise NamespaceError('cause', 'cure')", "None|cause|cure"),
            ("1 / 0", "None|a bug in the trial: ZeroDivisionError('division by zero')|None"),
            ("os._exit(0)", "None|the process that tried it was killed|None"),
            ("os.kill(os.getpid(), 9)", "None|the process that tried it was killed|None"),
        ],
    )
    def test_problems(self, function: str, problem: str) -> None:
        """So does why it failed."""
        assert problem == self.attempted(function)

    def test_hanging(self) -> None:
        """One that hangs is ended."""
        assert "None|no end within 0.2 s|None" == self.attempted("time.sleep(60)", 0.2)


class TestShowing:
    CHECK = Check("name", "purpose", (Form.EXEC,), lambda: Finding(State.OK, "found"))

    @pytest.mark.parametrize(
        ("finding", "expected"),
        [
            (Finding(State.OK, "found"), "ok   name                found (for purpose)"),
            (
                Finding(State.NOT, "found", "command"),
                "not  name                found (for purpose); mend: command",
            ),
            (Finding(State.UNTRIED, "found"), "-    name                found (for purpose)"),
        ],
    )
    def test_line(self, finding: Finding, expected: str) -> None:
        """A line has it all."""
        assert expected == line(Result(self.CHECK, finding))

    @pytest.mark.parametrize("state", State)
    def test_works(self, state: State) -> None:
        """What decides must have been tried and be there; what doesn't plays no role."""
        results = [Result(self.CHECK, Finding(state, ""))]
        assert (state is State.OK) == works(results, Form.EXEC)
        assert works(results, Form.TRANSPARENT)

    def test_examine(self) -> None:
        """Where there is no namespace, what needs one is not tried."""

        def refused() -> Finding:
            return Finding(State.NOT, "no")

        def never() -> Finding:
            raise AssertionError

        all_checks: Sequence[Check] = (
            Check("user namespaces", "", (), refused, in_namespace=False),
            Check("TPROXY", "", (), never),
            self.CHECK,
        )
        found = [each.finding.state for each in examine(tuple(all_checks))]
        assert [State.NOT, State.UNTRIED, State.UNTRIED] == found
