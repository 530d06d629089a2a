"""`sidecar exec` runs nothing outside that its command has written."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from identities import NOBODY, as_nobody
from integration.exec_stage import Stage
from integration.netns import DEADLINE, Pair
from integration.origins import PAGE, Origin, http_page
from integration.proxy import eventually
from nameservers import Scripted, a
from twisted.names import dns

import sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

# Puts a program of its own in the place of each module of sidecar's, and before each of
# others'; then does what has sidecar import what it has put off: HTTP, a denial, a summary.
COMMAND = r"""
evil="open('$0/ran', 'a').write(__file__ + '\n')"
find "$0/site" -name '*.py' | while read -r path; do echo "$evil" > "$path"; done
find "$0/site" -name '*.pyc' -delete
for name in colorsys fractions httptools linecache rich tomlkit traceback twisted zope idna; do
    echo "$evil" > "$0/site/$name.py"
    mkdir "$0/site/$name"
    echo "$evil" > "$0/site/$name/__init__.py"
done
curl -sS --max-time 10 "$1"
! curl -sS --max-time 10 -o /dev/null "$2"
exit 7
"""


# Writes into the program that is running, as what is mapped of a file is what it says now;
# then has it run.
IN_PLACE = r"""
import os, signal, socket, sys
path, how = sys.argv[1:]
if how == "stopped":
    leader, (ready, tell) = os.getpid(), os.pipe()
    if os.fork():
        # Everybody whom the command can stop.
        os.read(ready, 1)
        os.kill(0, signal.SIGSTOP)
    os.setsid()
    os.write(tell, b"!")
    while open(f"/proc/{leader}/stat").read().rpartition(")")[2].split()[0] != "T":
        pass
flags = {"truncate": os.O_WRONLY | os.O_TRUNC, "at once": os.O_WRONLY | os.O_NONBLOCK}
while True:
    try:
        descriptor = os.open(path, flags.get(how, os.O_RDWR))
        break
    except BlockingIOError:
        pass
os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)
print("written", flush=True)
try:
    socket.create_connection(("198.51.100.9", 9), 5).recv(1)
except OSError:
    pass
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Has sidecar in it, and belongs to nobody."""
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        source = Path(sidecar.__file__).parent
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, made / "site" / "sidecar", ignore=without)
        (made / "stash").mkdir()
        for path in [made, *made.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
        yield made


@pytest.mark.parametrize("options", [(), ("--learn", "learned.toml"), ("--summary", "markdown")])
def test_installation_is_overwritten(
    directory: Path, pair: Pair, port: int, options: tuple[str, ...]
) -> None:
    """Not even in this run, of which all is shown nevertheless."""
    program = (
        f"import sys; sys.path[:] = [{str(directory / 'site')!r}, *{sys.path!r}];"
        " from sidecar.cli import main; sys.exit(main())"
    )
    server = pair.far.at("ipv4", port)
    options = tuple(each.replace("learned", f"{directory}/learned") for each in options)
    command = [sys.executable, "-c", program, "exec", "--default", "deny"]
    command += [*options, "--allow", str(server), "--log", f"{directory}/log", "--"]
    command += [
        "sh",
        "-c",
        COMMAND,
        str(directory),
        f"http://{server}/",
        f"telnet://{server.host}:1",
    ]
    with Origin(pair.far.namespace, server, http_page):
        done: subprocess.CompletedProcess[str] = pair.near.namespace.run(
            as_nobody(command, directory / "stash"), check=False, timeout=DEADLINE
        )
    ran = directory / "ran"
    assert "" == (ran.read_text() if ran.exists() else "")
    assert (7, PAGE) == (done.returncode, done.stdout)
    assert "can't be any more" not in done.stderr
    # The table, or what was learned.
    assert str(server) in done.stderr
    assert f"--allow {server.host}:1" in done.stderr
    assert 2 == len((directory / "log").read_text().splitlines())


NAME, OTHER = "www.example.com", "no.example.com"
# A connection to another address under a name; one under a name that isn't there; a denial.
ELSEWHERE = """
echo ready; read line
curl -sS --max-time 10 --resolve "$1:$3:93.184.216.35" "http://$1:$3/"
curl -sS --max-time 10 --resolve "$2:$3:93.184.216.35" "http://$2:$3/" -o /dev/null
curl -sS --max-time 10 "telnet://10.9.9.9:1" -o /dev/null
echo ready; read line
"""


def libraries_of(process: subprocess.Popen[str]) -> set[str]:
    """The files that a process has mapped."""
    lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    return {words[5] for words in (line.split() for line in lines) if len(words) > 5}


def test_names_without_the_c_library(directory: Path, pair: Pair, port: int) -> None:
    """Whatever nsswitch.conf says, its modules are not run, nor anything else loaded late."""
    files = {
        "resolv.conf": "nameserver 127.0.0.1\n",
        # No DNS, but modules whose files aren't part of the C library.
        "nsswitch.conf": "hosts: mymachines resolve mdns4_minimal compat\n",
        "hosts": "127.0.0.1 localhost\n",
    }
    for name, text in files.items():
        (directory / name).write_text(text, encoding="ascii")
    server = pair.far.at("ipv4", port)
    # Where the loader looks first.
    stage = Stage(
        pair.near.namespace,
        directory / "stash",
        "nobody",
        options=["--default", "deny", "--allow", f"*.example.com:{port}", "--allow", str(server)],
        environment={"LD_LIBRARY_PATH": str(directory)},
        files=directory,
    )
    with Origin(pair.far.namespace, server, http_page), pair.near.namespace.entered():
        names = Scripted(a(NAME, server.host), port=53)
        with (
            names,
            stage.start(
                *("sh", "-c", ELSEWHERE, "sh", NAME, OTHER, str(port)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            ) as process,
        ):
            assert process.stdout is not None
            assert process.stdin is not None
            assert "ready\n" == process.stdout.readline()
            before = libraries_of(process)
            process.stdin.write("go\n")
            process.stdin.flush()
            assert PAGE == process.stdout.readline()
            assert "ready\n" == process.stdout.readline()
            after = libraries_of(process)
            process.communicate("go\n", timeout=DEADLINE)
    assert any(each.rpartition("/")[2].startswith("libc.") for each in before)
    assert set() == after - before
    asked = {(name, kind) for name, kind, _ in names.asked}
    assert {(NAME, dns.A), (NAME, dns.AAAA), (OTHER, dns.A), (OTHER, dns.AAAA)} == asked


class InPlace:
    """A module of nobody's that sidecar has imported, and a command that writes into it."""

    def __init__(self, directory: Path, pair: Pair, how: str) -> None:
        found = importlib.util.find_spec("msgspec")
        assert found is not None
        assert found.origin is not None
        shutil.copytree(Path(found.origin).parent, directory / "site" / "msgspec")
        (self.path,) = (directory / "site" / "msgspec").glob("_core*.so")
        other = directory / "other"
        os.link(self.path, other)
        for path in [directory / "site" / "msgspec", self.path]:
            os.chown(path, NOBODY, NOBODY)
        self.before = self.path.read_bytes()
        program = (
            f"import sys; sys.path[:] = [{str(directory / 'site')!r}, *{sys.path!r}];"
            " from sidecar.cli import main; sys.exit(main())"
        )
        command = [sys.executable, "-c", program, "exec", "-q", "--summary", "none", "--"]
        command += ["python3", "-c", IN_PLACE, str(other if how == "linked" else self.path), how]
        with pair.near.namespace.entered():
            self.process = subprocess.Popen(
                as_nobody(command, directory / "stash"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    def assert_ended(self) -> None:
        """See that all was ended, and nothing written."""
        output, errors = self.process.communicate(timeout=DEADLINE)
        expected = f"{self.path} was opened for writing, and sidecar runs from it: all was ended"
        assert (125, "", f"sidecar exec: {expected}\n") == (
            *(self.process.returncode, output, errors),
        )
        assert self.before == self.path.read_bytes()


@pytest.mark.parametrize("how", ["open", "truncate", "at once", "linked"])
def test_overwritten_in_place(directory: Path, pair: Pair, how: str) -> None:
    """Nor is what has been imported changed any more: before that, all is ended."""
    InPlace(directory, pair, how).assert_ended()


def test_overwritten_while_stopped(directory: Path, pair: Pair) -> None:
    """Not even while sidecar is stopped, and can't be told."""
    made = InPlace(directory, pair, "stopped")
    try:
        pid = made.process.pid
        eventually("T", lambda: state(pid))
        # Its child is stopped as well; pid 1, which is that one's, is not.
        eventually("Z", lambda: state(only_child(only_child(pid))))
        os.kill(pid, signal.SIGCONT)
        os.kill(only_child(pid), signal.SIGCONT)
        made.assert_ended()
    finally:
        made.process.kill()
        made.process.communicate(timeout=DEADLINE)


def only_child(pid: int) -> int:
    """The one child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def state(pid: int) -> str:
    """A process's state (proc_pid_stat(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
