"""`sidecar exec`: its command's processes are the caller's, and nobody is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from identities import (
    NO_UNSHARE,
    NOBODY,
    in_user_namespace,
    needs_root,
    without_capabilities,
)
from integration.exec_stage import USERS, Marked, Stage, User, sidecar
from integration.netns import DEADLINE, Pair
from integration.origins import Origin, received
from support import wait_for

from sidecar.sandbox.draining import STANDSTILL
from sidecar.sandbox.init import GRACE

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

pytestmark = pytest.mark.thorough

# Says that it is there, and waits for longer than any test.
WAIT = "echo ready; exec sleep 1000"


@pytest.fixture(params=USERS)
def stage(request: pytest.FixtureRequest, pair: Pair) -> Iterator[Stage]:
    """Each user in turn; at the end nothing of what was run is left."""
    user: User = request.param
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o777)
        made = Stage(pair.near.namespace, directory, user)
        yield made
    wait_for(lambda: made.marked.alive() == [])


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert "ready\n" == process.stdout.readline()


def proxy(process: subprocess.Popen[str]) -> int:
    """The pid of `sidecar` itself: what as_nobody starts becomes it."""
    return process.pid


def inside(pid: int) -> list[int]:
    """All that a process has started, and they."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *inside(int(child))]
    return found


class TestStatus:
    @pytest.mark.parametrize("status", [0, 3, 255])
    def test_passed_on(self, stage: Stage, status: int) -> None:
        """The command's exit status is ours."""
        assert status == stage.run("sh", "-c", f"exit {status}").status

    @pytest.mark.parametrize("name", ["TERM", "KILL", "INT", "SEGV"])
    def test_signal(self, stage: Stage, name: str) -> None:
        """A command that a signal ends makes 128 and the signal."""
        done = stage.run("sh", "-c", f"ulimit -c 0; kill -{name} $$")
        assert 128 + signal.Signals[f"SIG{name}"] == done.status

    def test_not_found(self, stage: Stage) -> None:
        """What isn't on PATH is said so, with 127."""
        done = stage.run("no-such-program")
        assert (127, "sidecar exec: no-such-program: command not found\n") == (
            done.status,
            done.errors,
        )

    def test_empty(self, stage: Stage) -> None:
        """So is a name that is empty, as an unset variable makes it."""
        done = stage.run("")
        assert (127, "sidecar exec: '': command not found\n") == (done.status, done.errors)

    def test_no_such_file(self, stage: Stage) -> None:
        """Likewise a path."""
        done = stage.run("/no/such/program")
        assert (127, "sidecar exec: /no/such/program: No such file or directory\n") == (
            done.status,
            done.errors,
        )

    def test_not_executable(self, stage: Stage) -> None:
        """What is there but can't be executed makes 126."""
        done = stage.run("/etc/passwd")
        assert (126, "sidecar exec: /etc/passwd: Permission denied\n") == (done.status, done.errors)

    def test_script_without_interpreter(self, stage: Stage) -> None:
        """As from a shell, a script needs no first line."""
        script = stage.directory / "script"
        script.write_text('echo "$0 $1"\n')
        script.chmod(0o755)
        assert f"{script} one\n" == stage.run(str(script), "one").output

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (["--allow", "a..b"], "--allow = 'a..b': an empty label"),
            (["--default", "some"], "--default"),
            (["--policy", "/no/such/file"], "/no/such/file"),
            (["--log", "fd:99"], "--log = 'fd:99': can't be opened: Bad file descriptor"),
            (["--log", "/no/such/file"], "--log = '/no/such/file': can't be opened"),
            (["--log", "fd:x"], "--log = 'fd:x': fd: wants a descriptor's number"),
            (["--log", "fd:"], "a file of that name is ./fd:"),
            (["--log", "-"], "--log = '-': standard output is the command's"),
            (["--log", "fd:0"], "--log = 'fd:0': can't be written: it was opened for reading"),
            (["--learn", "-"], "--learn = '-': rules are added to a file"),
            (["--learn-wildcards"], "--learn-wildcards: says how to learn, and --learn FILE"),
            (["--summary=text", "--summary-file=-"], "-: standard output is the command's; a file"),
            (["--summary-file", "x"], "--summary-file x: with --summary none there is nothing"),
            (["--allow", "https://example.org/path"], "a URL; write example.org:443"),
            (["--no-such-option"], "unrecognized arguments: --no-such-option"),
        ],
    )
    def test_own_failure(self, stage: Stage, options: list[str], problem: str) -> None:
        """What can't be used is said in one line, with 125, and nothing is run."""
        done = stage.run("touch", str(stage.directory / "ran"), options=options, stdin="")
        assert 125 == done.status
        assert done.errors.startswith("sidecar exec: ")
        assert problem in done.errors
        assert 1 == done.errors.count("\n")
        assert not (stage.directory / "ran").exists()

    def test_no_command(self, pair: Pair) -> None:
        """So is having nothing to run."""
        done = pair.near.namespace.run(sidecar("exec", "--"), check=False)
        assert (125, True) == (done.returncode, "no command is given" in done.stderr)

    @pytest.mark.parametrize(
        ("status", "options", "command"),
        [
            (3, [], ["sh", "-c", "exit 3"]),
            (77, ["--default", "deny", "--fail-on-deny"], ["curl", "-s", "http://192.0.2.9/"]),
            (126, [], ["/etc/passwd"]),
            (127, [], ["no-such-program"]),
        ],
    )
    @pytest.mark.parametrize("what", ["full", "closed", "nobody reads"])
    def test_nobody_is_told(
        self, stage: Stage, what: str, status: int, options: list[str], command: list[str]
    ) -> None:
        """A full disk, or a reader that has gone, is no reason for another status."""
        learned = str(stage.directory / "learned.toml")
        words = stage.command(*options, "--learn", learned, "--", *command)
        if what == "closed":
            words = ["sh", "-c", '"$@" 2>&-', "sh", *words]
        with ExitStack() as stack:
            if what == "nobody reads":
                reading, errors = os.pipe()
                os.close(reading)
            else:
                errors = os.open("/dev/full", os.O_WRONLY)
            stack.callback(os.close, errors)
            stack.enter_context(stage.namespace.entered())
            done = subprocess.run(words, check=False, stderr=errors, env=stage._environment())
        assert status == done.returncode

    def test_command_with_dashes(self, stage: Stage) -> None:
        """Words after the command's name are the command's, whatever they look like."""
        done = stage.run("sh", "-c", 'echo "$@"', "sh", "--allow", "--", "-q")
        assert "--allow -- -q\n" == done.output


class TestIdentity:
    def test_same_user(self, stage: Stage) -> None:
        """The command is who the caller is."""
        expected = "0 0" if stage.user == "root" else "65534 65534"
        assert f"{expected}\n" == stage.run("sh", "-c", "echo $(id -u) $(id -g)").output

    def test_other_peoples_files(self, stage: Stage) -> None:
        """To root, files belong to whom they belong; others see their own and nobody's."""
        theirs = stage.directory / "theirs"
        theirs.touch()
        os.chown(theirs, 4321, 4321)
        done = stage.run("stat", "-c", "%u", str(theirs))
        assert ("4321\n" if stage.user == "root" else "65534\n") == done.output

    def test_privileges(self, stage: Stage) -> None:
        """The command has no capability, can get none, and is filtered."""
        wanted = "CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp"
        done = stage.run("cat", "/proc/self/status")
        found = dict(line.split(":\t") for line in done.output.splitlines() if ":\t" in line)
        assert [0, 0, 0, 0, 0, 1, 2] == [int(found[name], 16) for name in wanted.split()]

    def test_own_processes_only(self, stage: Stage) -> None:
        """Nothing outside is to be seen."""
        done = stage.run("ps", "-eo", "pid=,comm=")
        assert ["1", "2"] == [line.split()[0] for line in done.output.splitlines()][:2]
        assert len(done.output.splitlines()) <= 3

    def test_pid_1_is_out_of_reach(self, stage: Stage) -> None:
        """The one process of ours inside can be neither killed nor looked into."""
        done = stage.run(
            "sh", "-c", "kill -9 1; kill -TERM 1; cat /proc/1/environ /proc/1/fd/3; echo alive"
        )
        assert "alive\n" == done.output
        assert 2 == done.errors.count("ermission denied")

    def test_kernel_settings(self, stage: Stage) -> None:
        """Not even root, whose files they are, can have the kernel run programs outside."""
        settings = "/proc/sys/kernel/core_pattern /proc/sysrq-trigger /sys/kernel/uevent_helper"
        script = f"for each in {settings}; do [ -w $each ] && echo $each; done; echo done"
        assert "done\n" == stage.run("sh", "-c", script).output

    def test_terminal_input(self, stage: Stage) -> None:
        """No words can be put into the mouth of who sits at the terminal."""
        done = stage.python(
            "import errno, fcntl, termios\n"
            "for request in (termios.TIOCSTI, termios.TIOCLINUX, termios.TIOCSTI | 1 << 32):\n"
            "    try:\n"
            "        fcntl.ioctl(0, request & 0xffffffff, b'x')\n"
            "    except OSError as error:\n"
            "        print(errno.errorcode[error.errno])\n"
        )
        assert ["EPERM"] * 3 == done.output.split()


def without_libc_signals(status: str) -> str:
    """Signals 32 and 33 are the C library's own; how it starts programs decides about them."""
    return re.sub(r"[0-9a-f]{16}", lambda found: f"{int(found[0], 16) & ~0x180000000:016x}", status)


class TestSurroundings:
    def test_as_given(self, stage: Stage) -> None:
        """Directory, environment, limits, priority, file mask and signal mask are the caller's."""
        script = (
            "pwd; echo $MARK; ulimit -Sn; umask; nice; grep -E 'Sig(Blk|Ign)' /proc/self/status"
        )
        stage.environment["MARK"] = "here"
        before = stage.namespace.run(
            ["sh", "-c", f"cd /; {script}"], env={**os.environ, "MARK": "here"}
        )
        done = stage.run("sh", "-c", f"cd /; {script}")
        assert without_libc_signals(before.stdout) == without_libc_signals(done.output)

    def test_descriptors(self, stage: Stage) -> None:
        """Whatever else the caller has open, the command gets 0, 1 and 2."""
        with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as two:
            process = stage.start(
                *(
                    "sh",
                    "-c",
                    "for n in $(seq 0 99); do readlink /proc/$$/fd/$n > $0 && echo $n; done",
                ),
                str(stage.directory / "nowhere"),
                pass_fds=(one.fileno(), two.fileno()),
                stdout=subprocess.PIPE,
            )
            output, _ = process.communicate(timeout=DEADLINE)
        # 10 is where dash keeps a script of its own, 255 where bash does.
        assert ["0", "1", "2"] == [each for each in output.split() if each not in {"10", "255"}]

    def test_closed_descriptors(self, stage: Stage) -> None:
        """Where the caller has closed its own, nothing of ours takes their place."""
        inner = stage.command(
            "--quiet", "--summary", "none", "--", "sh", "-c", "readlink /proc/self/fd/0 >&2; exit 7"
        )
        done = stage.namespace.run(
            ["sh", "-c", 'exec "$@" <&- >&-', "sh", *inner], check=False, env=None
        )
        assert (7, "/dev/null\n") == (done.returncode, done.stderr)

    def test_input_and_output(self, stage: Stage) -> None:
        """Standard input and output are the command's."""
        assert "ACROSS" == stage.run("tr", "a-z", "A-Z", stdin="across").output

    def test_output_that_ends_early(self, stage: Stage) -> None:
        """When the command closes its output, its reader notices; we hold nothing open."""
        process = stage.start(
            *("sh", "-c", "echo last; exec >&-; sleep 1000"), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert "last\n" == process.stdout.read()
        assert process.poll() is None
        process.terminate()
        assert 143 == process.wait(DEADLINE)
        process.stdout.close()

    def test_reader_that_has_gone(self, stage: Stage) -> None:
        """A command whose reader is gone ends as ever, by SIGPIPE."""
        process = stage.start("yes", stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert 128 + signal.SIGPIPE == process.wait(DEADLINE)

    def test_ignored_signals(self, stage: Stage) -> None:
        """What the caller ignores, the command ignores (nohup)."""
        inner = stage.command(
            "--quiet", "--summary", "none", "--", "sh", "-c", "kill -INT $$; echo on"
        )
        done = stage.namespace.run(["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *inner])
        assert "on\n" == done.stdout


class TestSignals:
    @pytest.mark.parametrize("name", ["TERM", "HUP", "INT", "QUIT", "USR1", "USR2"])
    def test_passed_on(self, stage: Stage, name: str) -> None:
        """A signal that is sent to us is the command's."""
        process = stage.start(
            *(
                "sh",
                "-c",
                f"trap 'echo got; exit 9' {name}; echo ready; while :; do sleep 0.01; done",
            ),
            stdout=subprocess.PIPE,
        )
        ready(process)
        process.send_signal(signal.Signals[f"SIG{name}"])
        output, _ = process.communicate(timeout=DEADLINE)
        assert ("got\n", 9) == (output, process.returncode)

    def test_before_all_is_ready(self, stage: Stage) -> None:
        """One that comes while the sandbox is made ends us, or the command, at once."""
        for delay in range(0, 400, 40):
            process = stage.start("sleep", "1000")
            time.sleep(delay / 1000)
            process.terminate()
            # Before Python is up it ends us as it ends everybody.
            assert process.wait(DEADLINE) in {143, -signal.SIGTERM}


class TestNobodyLeft:
    def test_background_process(self, stage: Stage) -> None:
        """Who outlives the command is told to end, and may tidy up."""
        done = stage.run(
            *("sh", "-c"),
            "cd $0; mkfifo ready;"
            " (trap 'touch tidied; exit' TERM; echo > ready; while :; do sleep 0.01; done) &"
            " read line < ready; exit 4",
            str(stage.directory),
        )
        assert 4 == done.status
        assert (stage.directory / "tidied").exists()

    def test_stubborn_process(self, stage: Stage) -> None:
        """Who doesn't listen is killed, after a while."""
        began = time.monotonic()
        done = stage.run("sh", "-c", "trap '' TERM; setsid sleep 1000 > /dev/null 2>&1 & exit 4")
        assert 4 == done.status
        assert GRACE <= time.monotonic() - began

    def test_stopped_process(self, stage: Stage) -> None:
        """So is who is stopped."""
        done = stage.run("sh", "-c", "sleep 1000 & kill -STOP $!; exit 4")
        assert 4 == done.status

    def test_output_of_those_that_are_left(self, stage: Stage) -> None:
        """Nobody keeps our caller's pipes open."""
        assert 0 == stage.run("sh", "-c", "sleep 1000 & exit 0").status

    def test_killed(self, stage: Stage) -> None:
        """When `sidecar` is killed, so is everybody inside."""
        process = stage.start("sh", "-c", f"setsid sleep 1000 & {WAIT}", stdout=subprocess.PIPE)
        ready(process)
        there = inside(proxy(process))
        assert len(there) >= 4
        process.kill()
        process.wait(DEADLINE)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in there))
        assert process.stdout is not None
        process.stdout.close()

    @pytest.mark.parametrize("which", [0, 1])
    def test_helper_killed(self, stage: Stage, which: int) -> None:
        """When one of our processes is killed from outside, all end, and it is an error."""
        process = stage.start("sh", "-c", WAIT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        ready(process)
        os.kill(inside(proxy(process))[which], signal.SIGKILL)
        _, errors = process.communicate(timeout=DEADLINE)
        assert (125, "sidecar exec: the sandbox was killed\n") == (process.returncode, errors)

    def test_command_killed_from_outside(self, stage: Stage) -> None:
        """The command may be killed from outside like any other process."""
        process = stage.start("sh", "-c", WAIT, stdout=subprocess.PIPE)
        ready(process)
        os.kill(inside(proxy(process))[2], signal.SIGKILL)
        process.communicate(timeout=DEADLINE)
        assert 137 == process.returncode

    def test_network_namespace_goes(self, stage: Stage) -> None:
        """No network namespace is left, and nothing is new in ours."""
        before = stage.namespace.run(["sh", "-c", "nft list ruleset; ip address; ip route"]).stdout
        process = stage.start(
            "sh", "-c", "echo ready; read line", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        ready(process)
        # As long as it is open, no other test's namespace gets its number.
        with Path(f"/proc/{inside(proxy(process))[2]}/ns/net").open() as opened:
            namespace = f"net:[{os.fstat(opened.fileno()).st_ino}]"
            process.communicate("\n", timeout=DEADLINE)
            assert namespace != str(Path("/proc/self/ns/net").readlink())
            held = self.held()
        assert namespace not in held
        after = stage.namespace.run(["sh", "-c", "nft list ruleset; ip address; ip route"]).stdout
        assert before == after

    @staticmethod
    def held() -> set[str]:
        """The network namespaces that processes are in."""
        held = set()
        for each in Path("/proc").glob("[0-9]*/ns/net"):
            with suppress(OSError):
                held.add(str(each.readlink()))
        return held


class TestUnderWay:
    """Data that the command leaves behind in the kernel's buffers."""

    # Sends as much as it is told to, and ends.
    PUSH = (
        "import socket, sys\n"
        "with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as connection:\n"
        "    connection.sendall(bytes(int(sys.argv[3])))\n"
    )

    def test_server_that_pauses(self, stage: Stage, pair: Pair, port: int) -> None:
        """A server that takes nothing for longer than we wait still gets all of it."""
        got: list[int] = []

        def pause(connection: socket.socket) -> None:
            time.sleep(1.5 * STANDSTILL)
            got.append(len(received(connection)))

        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, pause):
            done = stage.python(self.PUSH, server.host, str(port), "2000000")
            assert 0 == done.status, done.errors
        assert [2000000] == got

    def test_signal(self, stage: Stage, pair: Pair, port: int) -> None:
        """Who doesn't want to wait for a slow server may say so."""
        over = threading.Event()

        def dawdle(connection: socket.socket) -> None:
            # The last, which the kernel's buffers hold by then, takes many seconds.
            left = 26_000_000
            with suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    left -= len(part)
                    if left < 0:
                        over.wait(0.1)

        server = pair.far.at("ipv4", port)
        with Origin(pair.far.namespace, server, dawdle):
            process = stage.start(
                *("python3", "-c", self.PUSH, server.host, str(port), "30000000"),
                stdout=subprocess.PIPE,
            )
            assert process.stdout is not None
            # The command holds it until it ends.
            assert "" == process.stdout.read()
            process.stdout.close()
            # Until it knows: a signal before would be the command's.
            wait_for(lambda: inside(proxy(process)) == [])
            process.terminate()
            assert 128 + signal.SIGTERM == process.wait(DEADLINE)
            over.set()


@needs_root
class TestLess:
    """Where not all namespaces can be had."""

    def run(
        self,
        pair: Pair,
        settings: dict[str, str],
        command: list[str],
        options: tuple[str, ...] = (),
        *,
        capable: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        inner = sidecar("exec", "--summary", "none", *options, "--", *command)
        if not capable:
            inner = without_capabilities(inner)
        return pair.near.namespace.run(in_user_namespace(settings, inner), check=False)

    def test_no_pid_namespace(self, pair: Pair) -> None:
        """Without a pid namespace it is said so to who asks, and all else holds."""
        script = "sleep 1000 & (setsid sleep 1000 &) ; exit 4"
        settings = {"max_pid_namespaces": "0"}
        quiet = self.run(pair, settings, ["sh", "-c", script])
        verbose = self.run(pair, settings, ["sh", "-c", script], ("-v",))
        assert (4, "") == (quiet.returncode, quiet.stderr)
        assert 4 == verbose.returncode
        assert "no pid namespace" in verbose.stderr

    def test_no_mount_namespace(self, pair: Pair) -> None:
        """Without a mount namespace likewise, for who can't change the kernel's settings."""
        inner = sidecar("exec", "-v", "--summary", "none", "--", "sh", "-c", "id -u; exit 4")
        ordinary = ["setpriv", "--ambient-caps", "-all", "--inh-caps", "-all", "--", *inner]
        command = in_user_namespace({"max_mnt_namespaces": "0"}, ordinary, user=NOBODY)
        done = pair.near.namespace.run(command, check=False)
        assert (4, f"{NOBODY}\n") == (done.returncode, done.stdout), done.stderr
        assert "no mount namespace" in done.stderr

    def test_root_without_mount_namespace(self, pair: Pair) -> None:
        """Root could then have the kernel run programs outside: nothing is run."""
        done = self.run(pair, {"max_mnt_namespaces": "0"}, ["echo", "ran"])
        assert (125, "") == (done.returncode, done.stdout)
        assert done.stderr.startswith(
            "sidecar exec: root could change the kernel's settings from inside: /proc/sys can't be"
            " made read-only: there is no mount namespace"
        )
        assert "run it as another user than root" in done.stderr
        assert 1 == done.stderr.count("\n")

    def test_killed(self, pair: Pair) -> None:
        """There, too, nobody outlives `sidecar`."""
        with self.without_pids(pair, f"setsid sleep 1000 & {WAIT}") as (process, marked):
            ready(process)
            process.kill()
            process.wait(DEADLINE)
            wait_for(lambda: marked.alive() == [])

    @pytest.mark.parametrize("name", ["KILL", "TERM", "HUP", "INT"])
    def test_killed_by_group(self, pair: Pair, name: str) -> None:
        """Nor whoever left the process group, when the command kills all that is in it."""
        script = f"setsid sleep 1000 & echo ready; read line; kill -{name} 0; exit 4"
        with self.without_pids(pair, script) as (process, marked):
            ready(process)
            process.communicate("go on\n", timeout=DEADLINE)
            number = signal.Signals[f"SIG{name}"]
            # SIGKILL is for us as well.
            assert process.returncode == (-number if name == "KILL" else 128 + number)
            wait_for(lambda: marked.alive() == [])

    def test_keeper_killed(self, pair: Pair) -> None:
        """Nor anybody, when the command kills who watches over it, its parent."""
        script = "setsid sleep 1000 & echo ready; read line; kill -KILL $PPID; sleep 1000"
        with self.without_pids(pair, script) as (process, marked):
            ready(process)
            process.communicate("go on\n", timeout=DEADLINE)
            assert 125 == process.returncode
            assert [] == marked.alive()

    def test_stopped_by_group(self, pair: Pair) -> None:
        """A group that stops itself goes on when it is told to."""
        script = "echo ready; read line; kill -STOP 0; exit 4"
        with self.without_pids(pair, script) as (process, _):
            ready(process)
            assert process.stdin is not None
            process.stdin.write("go on\n")
            process.stdin.flush()
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            os.killpg(process.pid, signal.SIGCONT)
            assert 4 == process.wait(DEADLINE)

    @contextmanager
    def without_pids(
        self, pair: Pair, script: str
    ) -> Iterator[tuple[subprocess.Popen[str], Marked]]:
        """A shell script under `sidecar exec` in a process group of its own."""
        marked = Marked()
        inner = sidecar("exec", "--summary", "none", "--", "sh", "-c", script)
        with pair.near.namespace.entered():
            process = subprocess.Popen(
                in_user_namespace({"max_pid_namespaces": "0"}, inner),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env={**os.environ, **marked.environment},
            )
        with process:
            yield process, marked

    def test_no_user_namespace(self, pair: Pair) -> None:
        """Without user namespaces there is one line, with cause and cure, and nothing is run."""
        done = self.run(pair, {"max_user_namespaces": "0"}, ["echo", "ran"])
        assert (125, "") == (done.returncode, done.stdout)
        assert done.stderr.startswith("sidecar exec: user.max_user_namespaces is 0")
        assert done.stderr.endswith("sysctl -w user.max_user_namespaces=15000\n")
        assert 1 == done.stderr.count("\n")

    def test_no_user_namespace_needed(self, pair: Pair) -> None:
        """Who may make the others without is not stopped by that."""
        script = "id -u; grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status; ps -eo pid="
        done = self.run(
            pair, {"max_user_namespaces": "0"}, ["sh", "-c", script], ("-v",), capable=True
        )
        zero = "0000000000000000"
        assert ["0", "CapEff:", zero, "CapBnd:", zero, "NoNewPrivs:", "1", "1", "2"] == (
            done.stdout.split()[:9]
        )
        assert (0, "") == (done.returncode, done.stderr)

    def test_no_network_namespace(self, pair: Pair) -> None:
        """Without network namespaces likewise."""
        done = self.run(pair, {"max_net_namespaces": "0"}, ["echo", "ran"])
        assert (125, "") == (done.returncode, done.stdout)
        assert "max_net_namespaces" in done.stderr
        assert 1 == done.stderr.count("\n")

    def test_seccomp(self, pair: Pair) -> None:
        """A container's filter is named, with what the container needs."""
        command = sidecar("exec", "--", "echo", "ran")
        command[2] = f"{NO_UNSHARE}\n{command[2]}"
        done = pair.near.namespace.run(without_capabilities(command), check=False)
        assert (125, "") == (done.returncode, done.stdout)
        assert done.stderr.startswith("sidecar exec: a seccomp filter, as containers have one")
        assert 1 == done.stderr.count("\n")
