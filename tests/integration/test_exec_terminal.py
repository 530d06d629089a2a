"""At a terminal, a command under `sidecar exec` is the shell's job like any other."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from identities import in_user_namespace
from integration.exec_stage import SILENTLY, USERS, Marked, Stage, User
from integration.terminal import Terminal
from support import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.netns import Pair

pytestmark = pytest.mark.thorough

WAIT = "echo ready; exec sleep 1000"
# A program that tidies up when it is stopped, as full-screen ones do, and takes its time.
TIDY = """
import os, signal, time
def stop(number, frame):
    time.sleep(0.3)
    os.write(1, b"tidied up\\n")
    signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, stop)
    os.write(1, b"back\\n")
signal.signal(signal.SIGTSTP, stop)
os.write(1, b"ready\\n")
while True:
    time.sleep(0.01)
"""


class Desk:
    """A terminal, and the command to be typed there.

    Attributes:
        terminal: With a shell.
        stage: Where the command runs.
    """

    def __init__(self, terminal: Terminal, stage: Stage) -> None:
        self.terminal = terminal
        self.stage = stage
        self._jobs = 0

    def exec(
        self, *command: str, limits: dict[str, str] | None = None, afterwards: str = ""
    ) -> None:
        """Type `sidecar exec -- COMMAND`, and see it begin.

        Args:
            command: What to run.
            limits: Of a user namespace around it.
            afterwards: What else a script does that runs it.
        """
        # In a file: a terminal takes no line of more than 4095 characters.
        script = self.stage.directory / f"job{self._jobs}"
        self._jobs += 1
        words = self.stage.command(*SILENTLY, "--", *command)
        line = shlex.join(words if limits is None else in_user_namespace(limits, words))
        how = "" if afterwards else "exec "
        script.write_text(f"echo started\n{how}{line}\n{afterwards}\n")
        self.terminal.type(f"sh {script}\n")
        self.terminal.expect("started\n")

    def state(self, *, of: str) -> list[str]:
        """The states of the processes with a name (proc(5): S, T, …)."""
        found = []
        for pid in self.marked.alive():
            with suppress(FileNotFoundError):
                name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
                if name.endswith(f"({of}"):
                    found.append(rest.split()[0])
        return found

    def jobs(self) -> str:
        """What the shell believes of its jobs."""
        self.terminal.type("jobs\n")
        return self.terminal.prompt()

    def holds_stops(self) -> bool:
        """Whether a Ctrl-Z would not stop us at once (proc(5): SigBlk)."""
        status = Path(f"/proc/{self.terminal.job}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines())
        blocked = int(fields["SigBlk"], 16) >> (signal.SIGTSTP - 1) & 1
        return bool(blocked) and not fields["State"].startswith("T")

    @property
    def marked(self) -> Marked:
        """All that the shell started."""
        marked: Marked = self.stage.marked
        return marked


@pytest.fixture(params=USERS)
def desk(request: pytest.FixtureRequest, pair: Pair) -> Iterator[Desk]:
    """Each user in turn."""
    user: User = request.param
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o777)
        stage = Stage(pair.near.namespace, directory, user)
        environment = {**os.environ, **stage.marked.environment}
        with Terminal(pair.near.namespace, environment) as terminal:
            yield Desk(terminal, stage)
    wait_for(lambda: stage.marked.alive() == [])


class TestInterrupt:
    def test_ends(self, desk: Desk) -> None:
        """Ctrl-C ends the command."""
        desk.exec("sh", "-c", WAIT)
        desk.terminal.expect("ready\n")
        desk.terminal.type("\x03")
        desk.terminal.prompt()
        desk.terminal.type("echo status $?\n")
        assert "status 130\n" == desk.terminal.prompt()

    def test_quit(self, desk: Desk) -> None:
        """So does Ctrl and a backslash."""
        desk.exec("sh", "-c", f"ulimit -c 0; {WAIT}")
        desk.terminal.expect("ready\n")
        desk.terminal.type("\x1c")
        desk.terminal.prompt()
        desk.terminal.type("echo status $?\n")
        assert "status 131\n" == desk.terminal.prompt()

    def test_handled(self, desk: Desk) -> None:
        """A command that handles Ctrl-C gets it once, and lives on, and so do we."""
        # Not while it reads, which that would end.
        script = (
            "trap 'echo got; got=yes' INT; echo ready;"
            " while [ ! $got ]; do sleep 0.01; done; read line; exit 5"
        )
        desk.exec("sh", "-c", script)
        desk.terminal.expect("ready\n")
        desk.terminal.type("\x03")
        desk.terminal.expect("got\n")
        time.sleep(0.5)
        desk.terminal.type("\n")
        assert "" == desk.terminal.prompt().strip()
        desk.terminal.type("echo status $?\n")
        assert "status 5\n" == desk.terminal.prompt()

    def test_while_it_starts(self, desk: Desk) -> None:
        """At whatever moment it comes, it ends us."""
        for delay in range(0, 500, 50):
            desk.exec("sleep", "1000")
            time.sleep(delay / 1000)
            desk.terminal.type("\x03")
            desk.terminal.prompt()


class TestStop:
    def test_stops_and_goes_on(self, desk: Desk) -> None:
        """Ctrl-Z stops the command and us; fg goes on with both."""
        desk.exec("sh", "-c", "echo ready; read line; echo $line again")
        desk.terminal.expect("ready\n")
        desk.terminal.type("\x1a")
        assert "Stopped" in desk.terminal.prompt()
        assert ["T"] == desk.state(of="sh")
        desk.terminal.type("fg\n")
        desk.terminal.type("hello\n")
        desk.terminal.expect("hello again\n")
        desk.terminal.prompt()

    def test_tidies_up_first(self, desk: Desk) -> None:
        """The shell has its terminal back when the command has let go of it, not before."""
        desk.exec("python3", "-c", TIDY)
        desk.terminal.expect("ready\n")
        for _ in range(2):
            desk.terminal.type("\x1a")
            assert "tidied up" in desk.terminal.expect("Stopped")
            desk.terminal.prompt()
            desk.terminal.type("fg\n")
            desk.terminal.expect("back\n")
            # The command goes on before we do.
            wait_for(desk.holds_stops)
        desk.terminal.type("\x03")
        desk.terminal.prompt()

    def test_background(self, desk: Desk) -> None:
        """A background job that wants input is stopped, till it is in the foreground."""
        desk.exec("sh", "-c", "read line; echo $line again")
        # In the middle of starting; but not of becoming somebody else.
        wait_for(lambda: desk.state(of=Path(sys.executable).name) != [])
        desk.terminal.type("\x1a")
        desk.terminal.prompt()
        desk.terminal.type("bg\n")
        desk.terminal.prompt()
        wait_for(lambda: desk.state(of="sh") == ["T"])
        # We, too: a shell doesn't continue what it believes to be running.
        wait_for(lambda: "Stopped" in desk.jobs())
        desk.terminal.type("fg\n")
        desk.terminal.type("hello\n")
        desk.terminal.expect("hello again\n")
        desk.terminal.prompt()

    def test_without_pid_namespace(self, desk: Desk) -> None:
        """Where what watches over the command is in another session, all is the same."""
        if desk.stage.user == "nobody":
            # Who is nobody else in the namespace around it either: once is enough.
            return
        desk.exec(
            *("sh", "-c", "echo ready; read line; echo $line again; read line"),
            limits={"max_pid_namespaces": "0"},
        )
        desk.terminal.expect("ready\n")
        desk.terminal.type("\x1a")
        assert "Stopped" in desk.terminal.prompt()
        desk.terminal.type("fg\n")
        desk.terminal.type("hello\n")
        desk.terminal.expect("hello again\n")
        desk.terminal.type("\x03")
        desk.terminal.prompt()
        desk.terminal.type("echo status $?\n")
        assert "status 130\n" == desk.terminal.prompt()

    def test_killed_while_stopped(self, desk: Desk) -> None:
        """A stopped job can be killed."""
        desk.exec("sh", "-c", WAIT)
        desk.terminal.expect("ready\n")
        desk.terminal.type("\x1a")
        desk.terminal.prompt()
        desk.terminal.type("kill %1\n")
        shown = [desk.terminal.prompt()]

        def ended() -> bool:
            shown.append(desk.jobs())
            return "Exit" in "".join(shown)

        wait_for(ended)
        assert "Exit 143" in "".join(shown)


class TestInput:
    def test_from_the_terminal(self, desk: Desk) -> None:
        """What is typed goes to the command, and Ctrl-D ends it."""
        desk.exec("tr", "a-z", "A-Z")
        desk.terminal.type("across\n\x04")
        desk.terminal.expect("ACROSS\n")
        desk.terminal.prompt()

    def test_shell(self, desk: Desk) -> None:
        """A shell inside has job control, and gives the terminal back."""
        desk.exec("bash", "--norc", "--noprofile", "--noediting", "-i")
        desk.terminal.prompt()
        desk.terminal.type("sleep 1000\n")
        wait_for(lambda: "sleep" in "".join(map(_name, desk.marked.alive())))
        desk.terminal.type("\x1a")
        assert "Stopped" in desk.terminal.prompt()
        desk.terminal.type("fg\n")
        # Named first, then given the terminal, then continued.
        wait_for(lambda: desk.state(of="sleep") == ["S"])
        desk.terminal.type("\x03")
        desk.terminal.prompt()
        desk.terminal.type("exit 7\n")
        desk.terminal.prompt()
        desk.terminal.type("echo status $?\n")
        assert "status 7" in desk.terminal.prompt(), desk.terminal.seen
        desk.terminal.type("cat\n")
        desk.terminal.type("still ours\n\x04")
        desk.terminal.expect("still ours\n")
        desk.terminal.prompt()

    @pytest.mark.parametrize("inside", [False, True])
    def test_after_a_shell(self, desk: Desk, inside: bool) -> None:
        """What reads after a shell inside has the terminal, which that one can't give back."""
        shell = "bash --norc --noprofile --noediting -i"
        reads = "echo back; read line; echo got $line"
        if inside:
            desk.exec("sh", "-c", f"{shell}; {reads}")
        else:
            desk.exec(*shell.split(), afterwards=reads)
        desk.terminal.prompt()
        desk.terminal.type("sleep 0\n")
        desk.terminal.prompt()
        desk.terminal.type("exit\n")
        desk.terminal.expect("back\n")
        desk.terminal.type("a line\n")
        desk.terminal.expect("got a line\n")
        desk.terminal.prompt()


class TestHangup:
    def test_ends(self, desk: Desk) -> None:
        """When the terminal goes, the command goes (see the fixture's end)."""
        desk.exec("sh", "-c", WAIT)
        desk.terminal.expect("ready\n")


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""
