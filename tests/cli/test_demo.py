"""The demo does what it says, as whoever runs it, and leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from askers import query
from identities import as_nobody, in_user_namespace, needs_root, without_capabilities
from integration.exec_stage import Marked, sidecar
from support import wait_for
from twisted.names import dns

from sidecar.cli.demo.checks import Happened, faults, faults_without
from sidecar.cli.demo.names import answer_to, name_in
from sidecar.cli.demo.origins import Event
from sidecar.cli.demo.playing import Played
from sidecar.cli.demo.scenes import hosts, scenes

if TYPE_CHECKING:
    from sidecar.cli.demo.scenes import Scene

# Seconds. "A few" on a machine that has something else to do as well.
PATIENCE = 60
ROOT = Path(__file__).parents[2]
BOTH = frozenset({4, 6})
BUILD, ATTACK = scenes(BOTH)
WITHOUT_SIDECAR = (
    "from sidecar.cli.demo.playing import Player as P; "
    "P.play = lambda self, scene, _: P.play_without(self, scene)"
)
_CHUNK_OCTETS = 65536


def python(program: str, *arguments: str) -> list[str]:
    """Python text, with the modules that this process has."""
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}", *arguments]


def demo(*arguments: str) -> list[str]:
    """The command."""
    return sidecar("demo", *arguments)


class Watch:
    """Finds all that a demo starts and makes.

    Args:
        directory: Where temporary files are made.

    Attributes:
        environment: The demo's.
    """

    def __init__(self, directory: Path) -> None:
        self._marked = Marked()
        self._files = directory / "tmp"
        self._files.mkdir()
        self._files.chmod(0o777)
        self.environment = {
            **os.environ,
            **self._marked.environment,
            "TMPDIR": str(self._files),
            "TERM": "xterm",
        }
        self.environment.pop("COLUMNS", None)

    def left(self) -> list[object]:
        """Processes and files that are there."""
        return [*self._files.iterdir(), *self._marked.alive()]


def play(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a demo to its end, and see that nothing of it is left."""
    watch = Watch(cwd)
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**watch.environment, **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert [] == watch.left()
    return done


def assert_all_as_claimed(done: subprocess.CompletedProcess[str], user: int = 0) -> None:
    """It succeeded, and says so."""
    assert "" == done.stderr
    assert 0 == done.returncode, done.stdout
    assert done.stdout.startswith(f"As user {user}, ")
    assert "\nAll as claimed, in " in done.stdout
    assert 2 == done.stdout.count("\n   checked: ")
    assert "WRONG" not in done.stdout
    # A screen.
    assert len(done.stdout.splitlines()) < 40
    for line in (
        r"sidecar allow index\.example:80 +tcp +↑\d+B +↓\d+B  \d\.\d\ds  \S+\[\d+\]",
        r"sidecar deny  169\.254\.169\.254:80 .* --allow 169\.254\.169\.254:80.*",
        r"sidecar 3 connections to 3 destinations, 1 denied, .*",
        r"sidecar allow registry\.example:443 .*",
        r"sidecar deny  thief\.example:443 .* --allow thief\.example:443.*",
        r"sidecar deny  mzxw6ytboi\.thief\.example dns .*",
    ):
        assert 1 == len(re.findall(f"^   {line}$", done.stdout, re.MULTILINE)), line


def comparable(text: str) -> str:
    """Without what differs: users, times, processes, and how clients speak and complain."""
    for pattern, same in (
        (r"^ {4}", ""),
        (r"\A\n|(?<=\n)\n\Z", ""),
        (r"As user \d+", "As user 0"),
        (r"\d+\.\d+( ?)s\b", r"0.0\1s"),
        (r"\w+(\.\d+)?\[\d+\]", "client[1]"),
        (r"\d+(\.\d+)?k?B\b", "0B"),
        (r"curl: \(35\).*", "curl: (35)"),
        (r"(?<=\S) +", " "),
    ):
        text = re.sub(pattern, same, text, flags=re.MULTILINE)
    return text


class TestDemo:
    @needs_root
    def test_root(self, tmp_path: Path) -> None:
        """As root: everything is as claimed; nothing is left behind."""
        assert_all_as_claimed(play(demo(), tmp_path))

    @needs_root
    def test_readme(self, tmp_path: Path) -> None:
        """The README shows what is seen, but for what it says that it leaves out."""
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        found = re.search(r"<!-- capture: demo -->\n(.*?)<!-- end -->", readme, re.DOTALL)
        assert found is not None
        left_out = "[…]"
        shown = [line.strip() for line in comparable(found[1]).splitlines()]
        assert 2 == shown.count(left_out)
        seen = [line.strip() for line in comparable(play(demo(), tmp_path).stdout).splitlines()]
        assert [] == [line for line in shown if line not in [*seen, left_out]]
        # What a client says and what sidecar says of it may come in either order.
        ours = [line for line in seen if re.match(r"\$ |\d\.", line) and line in shown]
        assert ours == [line for line in shown if re.match(r"\$ |\d\.", line)]
        # All of it, but for one client and the summary's two tables.
        assert len(seen) - 3 - 7 == len(shown) - 2

    @needs_root
    def test_ordinary_user(self, tmp_path: Path) -> None:
        """As any user who may make user namespaces."""
        stash = tmp_path / "stash"
        stash.mkdir()
        assert_all_as_claimed(play(as_nobody(demo(), stash), tmp_path), 65534)

    @needs_root
    @pytest.mark.thorough
    def test_root_in_a_container(self, tmp_path: Path) -> None:
        """As root without the capabilities to do it directly."""
        assert_all_as_claimed(play(without_capabilities(demo()), tmp_path))

    @needs_root
    @pytest.mark.thorough
    def test_without_a_pid_namespace(self, tmp_path: Path) -> None:
        """Where some namespaces are not to be had, as in some containers."""
        command = in_user_namespace({"max_pid_namespaces": "0"}, demo())
        assert_all_as_claimed(play(command, tmp_path))

    @needs_root
    @pytest.mark.thorough
    def test_without_ipv6(self, tmp_path: Path) -> None:
        """Where there is no IPv6, it shows IPv4."""
        without = str(ROOT / "tests/integration/without_ipv6.py")
        assert_all_as_claimed(play([sys.executable, without, *demo()], tmp_path))

    @needs_root
    @pytest.mark.thorough
    def test_nothing_installed(self, tmp_path: Path) -> None:
        """Without curl, Python's client stands in; there is nothing else but a shell."""
        programs = tmp_path / "bin"
        programs.mkdir()
        shell = shutil.which("sh")
        assert shell is not None
        (programs / "sh").symlink_to(shell)
        done = play(demo(), tmp_path, PATH=str(programs))
        assert_all_as_claimed(done)
        assert "$ curl" not in done.stdout

    @needs_root
    @pytest.mark.thorough
    def test_misleading_environment(self, tmp_path: Path) -> None:
        """Proxies and settings of the user's own don't lead clients elsewhere."""
        (tmp_path / ".curlrc").write_text("proxy = http://192.0.2.99:3128\n")
        elsewhere = {
            "http_proxy": "http://192.0.2.99:3128",
            "HTTPS_PROXY": "http://192.0.2.99:3128",
        }
        assert_all_as_claimed(play(demo(), tmp_path, HOME=str(tmp_path), **elsewhere))

    @needs_root
    @pytest.mark.thorough
    @pytest.mark.parametrize(
        ("environment", "colored"),
        [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
    )
    def test_terminal(self, environment: dict[str, str], colored: bool, tmp_path: Path) -> None:
        """In a terminal it looks as in a terminal, and as its user wants it."""
        watch = Watch(tmp_path)
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            demo(),
            cwd=tmp_path,
            env={**watch.environment, **environment},
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            shown = b""
            # EIO: nobody has the terminal open any more.
            with suppress(OSError):
                while chunk := os.read(ours, _CHUNK_OCTETS):
                    shown += chunk
            assert 0 == process.wait(PATIENCE), shown.decode()
        os.close(ours)
        assert b"All as claimed" in shown
        assert colored == (b"\x1b[" in shown)
        assert [] == watch.left()

    @needs_root
    @pytest.mark.thorough
    @pytest.mark.parametrize(
        ("sabotage", "fault"),
        [
            (WITHOUT_SIDECAR, "https on 6.6.6.6:443 was reached"),
            (
                "import sidecar.linux.processes as it; it.belongs_to = lambda *_: False",
                "reached by another than sidecar",
            ),
            (
                "import sidecar.cli.demo.origins as it; it.Servers._name = lambda *_: None",
                "without sidecar, the name server did not hear",
            ),
        ],
    )
    def test_not_as_claimed(self, sabotage: str, fault: str, tmp_path: Path) -> None:
        """Where something doesn't work, it says what, and status 1."""
        (tmp_path / "files").mkdir()
        inside = "from sidecar.cli.demo.inside import main; import os"
        arguments = f"sys.argv[1:] = [{str(tmp_path / 'files')!r}, str(os.getppid())]"
        done = play(python(f"{sabotage}; {inside}; {arguments}; sys.exit(main())"), tmp_path)
        assert 1 == done.returncode
        wrong = " ".join(done.stdout.split())
        assert re.search(rf" WRONG: .*{re.escape(fault)}", wrong), done.stdout
        assert re.search(r"^\d of 2 not as claimed", done.stdout, re.MULTILINE)
        assert "All as claimed" not in done.stdout

    @needs_root
    def test_refused(self, tmp_path: Path) -> None:
        """Where no namespace can be made: one line that says what to do, and status 1."""
        settings = {"max_user_namespaces": "0"}
        done = play(in_user_namespace(settings, without_capabilities(demo())), tmp_path)
        assert 1 == done.returncode
        assert "" == done.stdout
        (line,) = done.stderr.splitlines()
        assert line.startswith("sidecar demo: user.max_user_namespaces is 0")
        assert line.endswith("sysctl -w user.max_user_namespaces=15000")

    def test_no_place(self, tmp_path: Path) -> None:
        """Where no file can be made: one line as well."""
        no_place = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/nonexistent']"
        done = play(
            python(f"{no_place}; from sidecar.cli import main; sys.exit(main())", "demo"), tmp_path
        )
        assert 1 == done.returncode
        (line,) = done.stderr.splitlines()
        assert line.startswith("sidecar demo: a temporary directory can't be made")

    @needs_root
    def test_reader_leaves(self, tmp_path: Path) -> None:
        """When nobody reads on, it ends, and says nothing more."""
        watch = Watch(tmp_path)
        with subprocess.Popen(
            demo(),
            cwd=tmp_path,
            env=watch.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert "" == process.stderr.read()
            assert 141 == process.wait(PATIENCE)
        assert [] == watch.left()

    @needs_root
    @pytest.mark.thorough
    @pytest.mark.parametrize(
        ("number", "to_all"),
        [
            (signal.SIGINT, False),
            (signal.SIGINT, True),
            (signal.SIGTERM, False),
            (signal.SIGHUP, True),
            (signal.SIGKILL, False),
        ],
    )
    def test_ended_from_outside(self, number: signal.Signals, to_all: bool, tmp_path: Path) -> None:
        """Whatever ends it, or it and all that it started, nothing is left."""
        watch = Watch(tmp_path)
        with subprocess.Popen(
            demo(),
            cwd=tmp_path,
            env=watch.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            # A command is running in sidecar exec.
            while "index: wheel" not in process.stdout.readline():
                assert process.poll() is None
            assert len(watch.left()) > 4
            if to_all:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            assert 0 != process.wait(PATIENCE)
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
        wait_for(lambda: not watch.left())

    def test_help(self, tmp_path: Path) -> None:
        """--help says what is done to the machine, and what the exit status means."""
        done = play(demo("--help"), tmp_path)
        assert 0 == done.returncode
        for words in ("usage: sidecar demo", "leaves nothing behind", "exit status: 0"):
            assert words in done.stdout


class TestScenes:
    def test_every_family(self) -> None:
        """IPv6 is used where it is; without it, what is left is IPv4 alone."""
        assert {"2600:9::25"} == {each.address.host for each in hosts(BOTH)["mail.example"]}
        for name, servers in hosts(frozenset({4})).items():
            assert [4] == [ip_address(each.address.host).version for each in servers], name
        for versions in (BOTH, frozenset({4})):
            (mail,) = hosts(versions)["mail.example"]
            assert mail in [step.allowed for step in scenes(versions)[0].steps]


def done_well(scene: Scene) -> Happened:
    """What becomes of a scene if all is well."""
    return Happened(
        Played(
            scene.status,
            "\n".join(
                text
                for step in scene.steps
                for text in (step.shown, step.allowed.text if step.allowed else "")
            ),
            tuple(int(step.fails) for step in scene.steps),
        ),
        [Event(step.allowed, by_sidecar=True) for step in scene.steps if step.allowed],
        [dict(step.line) for step in scene.steps if step.line],
    )


def without(scene: Scene) -> Happened:
    """What becomes of it without sidecar."""
    events = [Event(step.reaches) for step in scene.steps if step.reaches]
    events += [Event(None, step.asks) for step in scene.steps if step.asks]
    return Happened(Played(0, "", ()), events, ())


class TestFaults:
    @pytest.mark.parametrize("scene", [BUILD, ATTACK])
    def test_none(self, scene: Scene) -> None:
        """What is as claimed has no fault."""
        assert [] == faults(scene, done_well(scene))
        assert [] == faults_without(scene, without(scene))

    @pytest.mark.parametrize("scene", [BUILD, ATTACK])
    def test_log(self, scene: Scene) -> None:
        """Every key that is claimed to be right is looked at, of every line."""
        well = done_well(scene)
        for index, line in enumerate(well.lines):
            for key in line:
                lines = [dict(each) for each in well.lines]
                lines[index][key] = "another"
                assert [] != faults(scene, replace(well, lines=lines)), (line, key)
            fewer = [*well.lines[:index], *well.lines[index + 1 :]]
            assert [] != faults(scene, replace(well, lines=fewer))
        more = [*well.lines, {"destination": "6.6.6.6:1", "host": None}]
        assert [f"the log has {len(more)} lines, not {len(well.lines)}"] == faults(
            scene, replace(well, lines=more)
        )

    @pytest.mark.parametrize("scene", [BUILD, ATTACK])
    def test_arrivals(self, scene: Scene) -> None:
        """So is what reached servers: neither more nor less, and only through sidecar."""
        well = done_well(scene)
        thief = ATTACK.steps[1].reaches
        for events, fault in (
            ([*well.events, Event(thief, by_sidecar=True)], "https on 6.6.6.6:443 was reached 1"),
            (well.events[1:], "was reached 0 times, not 1"),
            ([replace(each, by_sidecar=False) for each in well.events], "another than sidecar"),
            ([*well.events, Event(None, "thief.example")], "heard of 'thief.example'"),
        ):
            found = faults(scene, replace(well, events=events))
            assert any(fault in each for each in found), found

    @pytest.mark.parametrize("scene", [BUILD, ATTACK])
    def test_clients(self, scene: Scene) -> None:
        """So are what clients and sidecar say, and exit statuses."""
        well = done_well(scene)
        others = [replace(well.played, status=1), replace(well.played, text="")]
        for index in range(len(scene.steps)):
            statuses = list(well.played.statuses)
            statuses[index] = 1 - statuses[index]
            others.append(replace(well.played, statuses=tuple(statuses)))
            others.append(replace(well.played, statuses=tuple(statuses[:index])))
        for played in others:
            assert [] != faults(scene, replace(well, played=played))

    @pytest.mark.parametrize("scene", [BUILD, ATTACK])
    def test_without(self, scene: Scene) -> None:
        """What doesn't arrive without sidecar either shows nothing."""
        all_of_it = without(scene)
        for index in range(len(all_of_it.events)):
            fewer = [*all_of_it.events[:index], *all_of_it.events[index + 1 :]]
            (fault,) = faults_without(scene, replace(all_of_it, events=fewer))
            assert fault.startswith("without sidecar, ")


HOSTS = {"a.example": [ip_address("9.9.9.1"), ip_address("2600::1"), ip_address("9.9.9.2")]}


class TestNames:
    @pytest.mark.parametrize(
        ("name", "kind", "code", "addresses"),
        [
            ("a.example", dns.A, dns.OK, ["9.9.9.1", "9.9.9.2"]),
            ("A.eXample", dns.AAAA, dns.OK, ["2600::1"]),
            ("a.example", dns.MX, dns.OK, []),
            ("b.example", dns.A, dns.ENAME, []),
        ],
    )
    def test_answer(self, name: str, kind: int, code: int, addresses: list[str]) -> None:
        """A name's addresses of the type that is asked for; names are there or not."""
        question = query(name, kind, edns=1232)
        answer = answer_to(question, HOSTS)
        assert answer is not None
        message = dns.Message()
        message.fromStr(answer)
        assert (0x1234, code, 1) == (message.id, message.rCode, message.answer)
        assert [(name.encode(), kind)] == [(each.name.name, each.type) for each in message.queries]
        payloads: list[Any] = [each.payload for each in message.answers]
        assert addresses == [str(ip_address(payload.address)) for payload in payloads]
        assert name.lower() == name_in(question)

    def test_garbage(self) -> None:
        """What is no question has no answer."""
        question = query("a.example")
        for end in range(len(question)):
            assert answer_to(question[:end], HOSTS) is None
            assert name_in(question[:end]) in "a.example"
        assert answer_to(b"\xff" * 40, HOSTS) is None
