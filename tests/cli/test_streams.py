"""Every command has its exit status, and no traceback, whatever becomes of its output."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from integration.exec_stage import sidecar

from sidecar.cli.streams import ending

# Print to standard output; the last of them in other processes.
PRINTING = (
    ("--help",),
    ("exec", "--help"),
    ("policy", "why", "192.0.2.1:80", "--default", "allow"),
    ("rules", "show", "--outbound-port", "15001"),
    ("doctor",),
    ("doctor", "--json"),
    ("demo",),
    ("doctor", "--leak-test"),
)
# With Python's own buffers, and without, as in many a container.
UNBUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"])
FULL = "standard output: No space left on device\n"


def run(
    arguments: tuple[str, ...], redirection: str, unbuffered: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command, with something done to its output."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *sidecar(*arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )


class TestOutput:
    @UNBUFFERED
    @pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
    def test_nobody_reads(self, arguments: tuple[str, ...], unbuffered: str) -> None:
        """A reader that has gone ends a command as SIGPIPE would, without a word."""
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            sidecar(*arguments),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
        os.close(writing)
        assert (141, "") == (done.returncode, done.stderr)

    @UNBUFFERED
    @pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
    def test_full(self, arguments: tuple[str, ...], unbuffered: str) -> None:
        """What can't be written is said in a line, and is no success."""
        done = run(arguments, "> /dev/full", unbuffered)
        assert 1 == done.returncode
        assert done.stderr.startswith("sidecar")
        assert done.stderr.endswith(FULL)
        assert 1 == done.stderr.count("\n")

    @pytest.mark.parametrize("arguments", PRINTING[:5], ids=" ".join)
    def test_closed(self, arguments: tuple[str, ...]) -> None:
        """Who closes it wants the status alone."""
        done = run(arguments, ">&-")
        assert "" == done.stderr
        assert run(arguments, "").returncode == done.returncode


class TestErrors:
    @pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&-"])
    @pytest.mark.parametrize(
        ("arguments", "status"),
        [
            (("policy", "why", "nonsense"), 2),
            (("policy", "check", "/no/such/file"), 1),
            (("--no-such-option", "policy", "check"), 2),
            (("exec", "--no-such-option"), 125),
            (("exec",), 125),
            (("exec", "--log", "fd:99", "--", "true"), 125),
        ],
    )
    @UNBUFFERED
    def test_status(
        self, arguments: tuple[str, ...], status: int, redirection: str, unbuffered: str
    ) -> None:
        """A complaint that nobody can be told of changes nothing, and goes nowhere else."""
        done = run(arguments, redirection, unbuffered)
        assert (status, "") == (done.returncode, done.stdout)


def test_another_error() -> None:
    """An error that is not the output's is nobody's business here."""
    with pytest.raises(FileNotFoundError):
        ending("sidecar", lambda: Path("/no/such/file").stat().st_size)
