"""How something is really tried: in a child process that takes everything with it.

The child may move itself into other namespaces, lose its privileges or hang; what it
found comes back through a pipe, and then it is killed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from sidecar.errors import NamespaceError, SidecarError
from sidecar.linux.syscalls import PR_SET_PDEATHSIG, prctl
from sidecar.sandbox.users import enter_network_namespace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PATIENCE", "Outcome", "attempt", "enter_namespaces", "in_namespace"]

PATIENCE = 10.0
"""Seconds that a trial may take; most take a hundredth of one."""

_CHUNK_OCTETS = 65536


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial.

    Attributes:
        value: What the function returned, as JSON has it; None if it failed.
        problem: Why it failed; None if it did not.
        mend: What to do about it, as far as the error says.
    """

    value: Any = None
    problem: str | None = None
    mend: str | None = None


def attempt(function: Callable[[], object], patience: float = PATIENCE) -> Outcome:
    """Call a function in a child process, and end that.

    This process must have one thread.

    Args:
        function: What it returns must be possible in JSON.
        patience: Seconds until it counts as hanging.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _be_child(function, writing, parent)
    os.close(writing)
    try:
        return _result(reading, patience)
    finally:
        os.close(reading)
        # By its own id, and it is ours: it has not been waited for.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def in_namespace(function: Callable[[], object]) -> Callable[[], object]:
    """The function, as it is tried in a new network namespace with all capabilities over it."""

    def wrapped() -> object:
        enter_namespaces()
        return function()

    return wrapped


def enter_namespaces() -> None:
    """Move this process into new namespaces, a network namespace among them, as exec does.

    Raises:
        NamespaceError: Refused; says by what, and what to do.
    """
    parent = os.getppid()
    enter_network_namespace()
    # A new user namespace forgets such wishes.
    _die_with(parent)


def _die_with(parent: int) -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _be_child(function: Callable[[], object], writing: int, parent: int) -> NoReturn:
    try:
        _die_with(parent)
        answer = _call(function)
        os.write(writing, json.dumps(answer).encode() + b"\n")
    finally:
        # Not exit(): two copies of a program must not go on.
        os._exit(0)


def _call(function: Callable[[], object]) -> dict[str, object]:
    try:
        return {"value": function()}
    except NamespaceError as error:
        return {"problem": error.cause, "mend": error.cure}
    except OSError as error:
        return {"problem": error.strerror or str(error)}
    except SidecarError as error:
        return {"problem": str(error)}
    except Exception as error:  # noqa: BLE001 - a trial's bug is a finding as well
        return {"problem": f"a bug in the trial: {error!r}"}


def _result(reading: int, patience: float) -> Outcome:
    deadline = time.monotonic() + patience
    received = b""
    # To the end of the line: others may hold the pipe's other end.
    while not received.endswith(b"\n"):
        left = deadline - time.monotonic()
        ready, _, _ = select.select([reading], [], [], max(left, 0))
        if not ready:
            return Outcome(problem=f"no end within {patience:g} s")
        chunk = os.read(reading, _CHUNK_OCTETS)
        if not chunk:
            return Outcome(problem="the process that tried it was killed")
        received += chunk
    with suppress(ValueError):
        return Outcome(**json.loads(received))
    return Outcome(problem="the process that tried it said nothing readable")
