"""`twistd sidecar` and `sidecar rules` as programs: started in a namespace, watched, ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from integration.netns import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from integration.netns import Namespace

__all__ = [
    "CLEAN_EXIT",
    "INBOUND",
    "ISTIO",
    "LINKERD",
    "MESH_PORTS",
    "OUTBOUND",
    "ROOT",
    "Identity",
    "Line",
    "Program",
    "Sidecar",
    "applied",
    "eventually",
    "rules",
    "running",
]

Line = dict[str, Any]

OUTBOUND = 15001
INBOUND = 15006
MESH_PORTS = (OUTBOUND, INBOUND)

# Once it has shut down in order, twistd ends by the signal that asked for it.
CLEAN_EXIT = -signal.SIGTERM

# Seconds between two looks at what the kernel can't tell us about by an event.
_POLL = 0.01
_LISTENING = "0A"  # net/tcp_states.h
_SCRIPTS = Path(sys.executable).parent


@dataclass(frozen=True)
class Identity:
    """As whom a program runs.

    Attributes:
        uid: User and group id; None for root with all capabilities.
        capabilities: Those it keeps, as setpriv(1) names them.
    """

    uid: int | None = None
    capabilities: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """What to put before a program's own command."""
        if self.uid is None:
            return []
        kept = [*self.capabilities]
        if not _can_run_python(self.uid):
            # The interpreter is in somebody's private home directory. Reading files
            # is all this allows; to the network it is no capability.
            kept.append("dac_read_search")
        inherited = ",".join(["-all", *(f"+{name}" for name in kept)])
        return [
            *("setpriv", "--reuid", str(self.uid), "--regid", str(self.uid), "--clear-groups"),
            *("--inh-caps", inherited, "--ambient-caps", inherited, "--bounding-set", inherited),
            *("--no-new-privs", "--"),
        ]


ROOT = Identity()
ISTIO = Identity(1337)
LINKERD = Identity(2102)


@cache
def _can_run_python(uid: int) -> bool:
    """Whether this user may read all that this interpreter and sidecar consist of."""
    probe = "import sys, sidecar.tap; print(sys.base_prefix)"
    done = subprocess.run(
        [
            *("setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"),
            *(sys.executable, "-c", probe),
        ],
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        timeout=DEADLINE,
    )
    # A Python that can't reach its own library may find another one's.
    return done.stdout.strip() == sys.base_prefix


def eventually(expected: object, probe: Callable[[], object]) -> None:
    """Wait until the kernel shows what is expected, where no event tells of it.

    Raises:
        AssertionError: It never did; says what it showed last.
    """
    end = time.monotonic() + DEADLINE
    actual = probe()
    while actual != expected and time.monotonic() < end:
        time.sleep(_POLL)
        actual = probe()
    assert expected == actual


class Program:
    """A program of the tests' own, running in a namespace.

    Everything it prints is read at once, so that it never waits for us.

    Args:
        namespace: Where.
        command: What.
        cwd: Its working directory.
        stdout: A descriptor to give it as standard output instead of our pipe.

    Attributes:
        pid: Its process id: that of the program itself, not of a wrapper.
        printed: All lines so far, both streams, in the order of arrival.
    """

    def __init__(
        self,
        namespace: Namespace,
        command: Sequence[str],
        *,
        cwd: Path,
        stdout: int = subprocess.PIPE,
    ) -> None:
        self.printed: list[str] = []
        self._changed = threading.Condition()
        self._open_streams = 0
        with namespace.entered():
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                errors="backslashreplace",
            )
        self.pid = self._process.pid
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (self._process.stdout, self._process.stderr)
            if stream is not None
        ]
        self._open_streams = len(self._readers)
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any) -> None:
        for text in stream:
            with self._changed:
                self.printed.append(text.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._open_streams -= 1
            self._changed.notify_all()

    def wait_until(
        self, condition: Callable[[], bool], *, ends: bool = False, deadline: float = DEADLINE
    ) -> None:
        """Wait until a condition holds, looking again whenever the program prints.

        Args:
            condition: Asked often; must be cheap.
            ends: True if the program may end meanwhile.
            deadline: Seconds until this counts as never happening.

        Raises:
            AssertionError: The deadline passed or the program ended; says what it printed.
        """
        end = time.monotonic() + deadline
        with self._changed:
            while not condition():
                gone = not self._open_streams and self._process.poll() is not None
                if time.monotonic() > end or (gone and not ends):
                    printed = "\n".join(self.printed[-50:])
                    status = self._process.poll()
                    raise AssertionError(f"never happened (exit status {status}):\n{printed}")
                self._changed.wait(_POLL)

    def end_input(self) -> None:
        """Let it see the end of its standard input, which is silent until then."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def wait(self) -> int:
        """Wait for its end; return the exit status, negative for a signal."""
        status = self._process.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        return status

    def stop(self) -> int:
        """End it: SIGTERM, and SIGKILL if that doesn't; return the exit status."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> int:
        """SIGKILL it; return the exit status."""
        self._process.kill()
        return self.wait()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def descriptors(self) -> int:
        """How many file descriptors it has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def memory(self) -> int:
        """How many KiB of its memory are resident (VmRSS, proc(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return int(fields["VmRSS"].split()[0])

    def listens(self, port: int) -> bool:
        """Whether it listens on a port (proc(5): /proc/net/tcp, /proc/PID/fd)."""
        mine = self._links()
        for local, state, link in self._sockets():
            if state == _LISTENING and local == port:
                return link in mine
        return False

    def connections(self) -> int:
        """How many TCP sockets it has that don't listen."""
        mine = self._links()
        return sum(state != _LISTENING and link in mine for _, state, link in self._sockets())

    def catches(self, number: signal.Signals) -> bool:
        """Whether it has a handler for a signal (SigCgt, proc(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return bool(int(fields["SigCgt"], 16) >> (number - 1) & 1)

    def _links(self) -> set[str]:
        """What its descriptors lead to; nothing once it has ended."""
        links = set()
        with suppress(FileNotFoundError):
            for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    links.add(str(descriptor.readlink()))
        return links

    def _sockets(self) -> Iterator[tuple[int, str, str]]:
        """All TCP sockets of its namespace: port, state, and what a descriptor leads to."""
        for name in ("tcp", "tcp6"):
            try:
                text = Path(f"/proc/{self.pid}/net/{name}").read_text(encoding="ascii")
            except OSError:
                # There is no IPv6, or it has just ended.
                continue
            for row in text.splitlines()[1:]:
                fields = row.split()
                yield int(fields[1].rpartition(":")[2], 16), fields[3], f"socket:[{fields[9]}]"


class Sidecar(Program):
    """A running `twistd sidecar`.

    Args:
        namespace: Where.
        arguments: What follows `twistd -n sidecar`.
        ports: Where it will listen; the constructor returns when it does.
        cwd: A directory outside the checkout, so that what is installed is tested.
        identity: As whom.
        access_log: The access log; the default is read by `lines`.
        wrapper: A command that runs the rest of its arguments.
        stdout: As `Program` takes it.
    """

    def __init__(
        self,
        namespace: Namespace,
        arguments: Sequence[str] = (),
        *,
        ports: Sequence[int],
        cwd: Path,
        identity: Identity = ROOT,
        access_log: str = "-",
        wrapper: Sequence[str] = (),
        stdout: int = subprocess.PIPE,
    ) -> None:
        super().__init__(
            namespace,
            [
                *wrapper,
                *identity.command(),
                *(str(_SCRIPTS / "twistd"), "--nodaemon", "--pidfile=", "sidecar"),
                *arguments,
                *("--access-log", access_log),
            ],
            cwd=cwd,
            stdout=stdout,
        )
        try:
            # It listens before its reactor runs, which is ready once it hears of signals.
            self.wait_until(
                lambda: all(self.listens(port) for port in ports) and self.catches(signal.SIGCHLD)
            )
        except BaseException:
            self.kill()
            raise

    def idle_descriptors(self) -> int:
        """Wait until it has no connection any more; return how many descriptors it has then."""
        eventually(0, self.connections)
        return self.descriptors()

    def lines(self) -> list[Line]:
        """All lines of the access log so far."""
        return [json.loads(text) for text in self._raw_lines()]

    def _raw_lines(self) -> list[str]:
        return [text for text in self.printed.copy() if text.startswith("{")]

    def messages(self) -> list[str]:
        """Everything else that it printed."""
        return [text for text in self.printed.copy() if not text.startswith("{")]

    def wait_for_lines(self, count: int = 1, **fields: object) -> list[Line]:
        """Wait for access log lines with these values.

        Args:
            count: How many at least.
            fields: What they say; addresses may be `SocketAddress`.
        """
        wanted = {key: _plain(value) for key, value in fields.items()}
        found: list[Line] = []
        seen = 0

        def enough() -> bool:
            nonlocal seen
            printed = self.printed
            while seen < len(printed):
                text = printed[seen]
                seen += 1
                if text.startswith("{"):
                    line = json.loads(text)
                    if wanted.items() <= line.items():
                        found.append(line)
            return len(found) >= count

        try:
            self.wait_until(enough)
        except AssertionError as error:
            raise AssertionError(f"{len(found)} of {count} lines with {wanted}; {error}") from None
        return found

    def line(self, **fields: object) -> Line:
        """Wait for the one access log line with these values.

        Raises:
            AssertionError: There is none, or there are several.
        """
        found = self.wait_for_lines(1, **fields)
        assert len(found) == 1, found
        return found[0]


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | None) else str(value)


@contextmanager
def running(
    namespace: Namespace,
    arguments: Sequence[str] | None = None,
    *,
    cwd: Path,
    ports: Sequence[int] = MESH_PORTS,
    identity: Identity = ROOT,
    access_log: str = "-",
    wrapper: Sequence[str] = (),
) -> Iterator[Sidecar]:
    """Run a sidecar, by default with its usual two listeners, and end it whatever happens."""
    if arguments is None:
        arguments = (
            *("--outbound", f"transparent:{OUTBOUND}"),
            *("--inbound", f"transparent:{INBOUND}"),
        )
    sidecar = Sidecar(
        namespace,
        arguments,
        ports=ports,
        cwd=cwd,
        identity=identity,
        access_log=access_log,
        wrapper=wrapper,
    )
    try:
        yield sidecar
    except BaseException:
        sidecar.kill()
        raise
    if sidecar.alive:
        status = sidecar.stop()
        assert status == CLEAN_EXIT, sidecar.messages()
    else:
        sidecar.wait()
    # What goes wrong without anybody noticing, a bug caught and logged, is a bug too.
    assert [] == [text for text in sidecar.messages() if "#critical" in text or "Trace" in text]


def rules(
    namespace: Namespace, *arguments: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `sidecar rules` there."""
    command = [sys.executable, "-m", "sidecar.cli", "rules", *arguments]
    return namespace.run(command, check=check, cwd=Path("/"))


@contextmanager
def applied(namespace: Namespace, *arguments: str) -> Iterator[None]:
    """Have `sidecar rules apply` in force for a while."""
    rules(namespace, "apply", *arguments)
    try:
        yield
    finally:
        rules(namespace, "remove")
