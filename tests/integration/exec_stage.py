"""Running `sidecar exec` in a network namespace of the test's own, as root and as nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from identities import as_nobody
from integration.netns import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from integration.netns import Namespace

__all__ = ["SILENTLY", "USERS", "Done", "Marked", "Stage", "User", "sidecar"]

User = Literal["root", "nobody"]
# Standard error is for what goes wrong.
SILENTLY = ("--quiet", "--summary", "none")
USERS: tuple[User, ...] = ("root", "nobody")
# In a mount namespace of its own, other files that say how names are found.
_WITH_FILES = (
    "for each in resolv.conf nsswitch.conf hosts;"
    ' do mount --bind "$0/$each" "/etc/$each" || exit 99; done; exec "$@"'
)


# Who is denied has 80 ms to say in which language it wants to hear of it; that is no limit
# for a client on a busy machine.
_PATIENTLY = f"""
from sidecar.protocols.hearing import Hearing
listen = Hearing._listen
Hearing._listen = lambda self, _, patience: listen(self, {DEADLINE / 2}, patience)
"""


def sidecar(*arguments: str, patiently: bool = False) -> list[str]:
    """The command, with the modules that this process has.

    Args:
        arguments: Of the command line.
        patiently: Whether clients may be silent for long before they are taken to be so.
    """
    program = (
        f"import sys; sys.path[:] = {sys.path!r}{_PATIENTLY if patiently else chr(10)}"
        "from sidecar.cli import main; sys.exit(main())"
    )
    return [sys.executable, "-c", program, *arguments]


class Marked:
    """An environment by which all that a command starts can be found again."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self.environment = {"SIDECAR_TEST": self._mark}

    def alive(self) -> list[int]:
        """The processes that have it."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self._mark in (directory / "environ").read_text(errors="replace"):
                    found.append(int(directory.name))
        return found


@dataclass(frozen=True)
class Done:
    """What became of a run.

    Attributes:
        status: The exit status.
        output: What was printed.
        errors: What was complained about.
        log: The access log's lines, but for DNS questions.
        lookups: Those of DNS questions.
    """

    status: int
    output: str
    errors: str
    log: list[dict[str, Any]]
    lookups: list[dict[str, Any]]


@dataclass
class Stage:
    """Where `sidecar exec` is run.

    Attributes:
        namespace: The network namespace that it is run in: "outside", to the command.
        directory: Empty, and everybody may write there.
        user: As whom.
        options: Given to each run.
        environment: Beside the usual.
        files: Has a resolv.conf, a nsswitch.conf and a hosts, to stand for those of /etc.
        patiently: As `sidecar` has it.
        marked: Finds whatever was started.
    """

    namespace: Namespace
    directory: Path
    user: User
    options: list[str] = field(default_factory=lambda: ["--default", "allow"])
    environment: dict[str, str] = field(default_factory=dict)
    files: Path | None = None
    patiently: bool = False
    marked: Marked = field(default_factory=Marked)
    _serial: int = 0

    def command(self, *arguments: str) -> list[str]:
        """The whole command line, as this user."""
        command = sidecar("exec", *arguments, patiently=self.patiently)
        if self.user != "root":
            self._serial += 1
            stash = self.directory / f"stash{self._serial}"
            stash.mkdir()
            command = as_nobody(command, stash)
        if self.files is not None:
            command = ["unshare", "--mount", "sh", "-c", _WITH_FILES, str(self.files), *command]
        return command

    def run(
        self,
        *command: str,
        options: Sequence[str] | None = None,
        stdin: str | None = None,
        timeout: float = DEADLINE,
    ) -> Done:
        """Run a command to its end."""
        self._serial += 1
        log = self.directory / f"log{self._serial}"
        chosen = self.options if options is None else options
        done = self.namespace.run(
            self.command("--log", str(log), *SILENTLY, *chosen, "--", *command),
            stdin=stdin,
            check=False,
            timeout=timeout,
            env=self._environment(),
        )
        text = log.read_text().splitlines() if log.exists() else []
        lines = [json.loads(each) for each in text]
        flows = [each for each in lines if each["listener"] != "dns"]
        lookups = [each for each in lines if each["listener"] == "dns"]
        return Done(done.returncode, done.stdout, done.stderr, flows, lookups)

    def start(
        self, *command: str, options: Sequence[str] | None = None, **popen: Any
    ) -> subprocess.Popen[str]:
        """Start a command."""
        chosen = self.options if options is None else options
        with self.namespace.entered():
            return subprocess.Popen(
                self.command(*SILENTLY, *chosen, "--", *command),
                env=self._environment(),
                text=True,
                **popen,
            )

    def python(self, program: str, *arguments: str, **kwargs: Any) -> Done:
        """Run Python text: what is installed for everybody, if there is one."""
        return self.run("python3", "-c", program, *arguments, **kwargs)

    def _environment(self) -> dict[str, str]:
        misleading = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
        kept = {name: value for name, value in os.environ.items() if name.lower() not in misleading}
        return {**kept, "LC_ALL": "C", **self.marked.environment, **self.environment}
