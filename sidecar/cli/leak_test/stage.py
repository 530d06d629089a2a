"""The outside: a namespace of the test's own, listeners in it, and `sidecar exec` beside them.

Each attempt is first made without exec, as far as it can be without harm: what doesn't
get out then shows nothing.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.cli.demo import airgap, children
from sidecar.cli.leak_test import showing
from sidecar.cli.leak_test.attempts import Attempt, Outside
from sidecar.cli.leak_test.conversing import PATIENCE, LeakTestError, converse, hear, tell
from sidecar.cli.leak_test.inside import ATTEMPTS, serve
from sidecar.cli.leak_test.listening import ALLOWED_NAME, NETLINK_PORT, PORT, Listeners
from sidecar.cli.leak_test.outcomes import Came, Outcome, judge
from sidecar.cli.streams import complain, ending
from sidecar.errors import SidecarError
from sidecar.linux.namespaces import set_up_loopback
from sidecar.sandbox.addresses import EVERYWHERE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["main"]

_NAME = "sidecar doctor --leak-test"
# For documentation (RFC 5737, RFC 3849): nobody's.
_HOST = ("203.0.113.1", "2001:db8:2::1")
_ANYBODY = ("198.51.100.1", "2001:db8:1::1")
_NAME_SERVER = "203.0.113.53"
# private_names: documentation addresses are nobody's, so not public.
_POLICY = f"""\
[policy]
default = "deny"
allow = ["{ALLOWED_NAME}:{PORT}"]
private_names = ["{ALLOWED_NAME}"]
"""
# Seconds in which whatever came later would be there.
_LATE = 0.5
# Seconds in which everybody inside has ended when sidecar has: much less than they linger.
_ENDING = 5.0


def main() -> int:
    """Make the test in this process and its children.

    sys.argv has "json" or "text", and the parent's process id.

    Returns:
        The exit status.
    """
    as_json, parent = sys.argv[1] == "json", int(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return ending(_NAME, partial(_play, parent, as_json=as_json))
    except SidecarError as error:
        complain(f"{_NAME}: {error}")
        return 1


def _play(parent: int, *, as_json: bool) -> int:
    with ExitStack() as stack:
        return _play_on(parent, stack, as_json=as_json)


def _play_on(parent: int, stack: ExitStack, *, as_json: bool) -> int:
    airgap.enter()
    children.die_with(parent)
    versions = set_up_loopback([ip_address(each) for each in _HOST], EVERYWHERE)
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-leak-")))
    directory.chmod(0o755)
    abstract = f"sidecar-leak-test-{os.getpid()}"
    airgap.use_name_server(directory, _NAME_SERVER)
    policy = directory / "policy.toml"
    policy.write_text(_POLICY, encoding="ascii")
    listeners = Listeners(directory, abstract)
    stack.callback(listeners.close)
    victim = _victim(stack)
    outside = Outside(
        ipv4=_ANYBODY[0],
        ipv6=_ANYBODY[1],
        host=_HOST[0],
        allowed=ALLOWED_NAME,
        port=PORT,
        abstract=abstract,
        path=listeners.path,
        netlink=NETLINK_PORT,
        init=0,
        victim=victim,
        sidecar=0,
    )
    shown = showing.Shown(as_json=as_json, versions=versions, listeners=listeners)
    shown.introduce(_POLICY)
    controls = dict(_without_exec(outside, listeners))
    for attempt, outcome in _in_exec(outside, listeners, policy):
        shown.show(attempt, judge(attempt, outcome, controls.get(attempt.name)))
    for how, title in (
        ("group", "killing sidecar from inside, by its process group"),
        ("outside", "sidecar killed from outside"),
    ):
        attempt = Attempt(f"killed_by_{how}", title, lambda _: "", control=False)
        outcome = _killed(how, outside, listeners, policy)
        shown.show(attempt, judge(attempt, outcome, None))
    return shown.sum_up()


def _victim(stack: ExitStack) -> int:
    """Start a process of the same user that does nothing."""
    command = [sys.executable, "-I", "-S", "-c", "input()"]
    process = subprocess.Popen(  # noqa: S603 - our own
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"LEAK_TEST": "an environment that is nobody's business"},
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    if process.stdin is not None:
        stack.callback(process.stdin.close)
    return process.pid


def _without_exec(outside: Outside, listeners: Listeners) -> Iterator[tuple[str, Outcome]]:
    """Make the attempts here, where nothing holds them."""
    questions, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(questions[1])
            os.close(answers[0])
            # The end of ours is the end of this one.
            with os.fdopen(questions[0]) as reading, os.fdopen(answers[1], "w") as writing:
                serve(reading, writing)
        finally:
            os._exit(0)
    os.close(questions[0])
    os.close(answers[1])
    try:
        with os.fdopen(questions[1], "w") as asking, os.fdopen(answers[0], "rb", 0) as hearing:
            chosen = [each for each in ATTEMPTS if each.control]
            for attempt, outcome in converse(chosen, outside, asking, hearing, listeners):
                yield attempt.name, outcome
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _in_exec(
    outside: Outside, listeners: Listeners, policy: Path
) -> Iterator[tuple[Attempt, Outcome]]:
    """Make the attempts in the sandbox."""
    listeners.arrived()
    command = children.python("sidecar.cli.leak_test.inside", "main")
    with _sidecar(command, listeners, policy) as process:
        try:
            if process.stdin is None or process.stdout is None:
                raise LeakTestError("no pipes")
            seen = replace(outside, init=1, sidecar=process.pid)
            yield from converse(ATTEMPTS, seen, process.stdin, process.stdout, listeners)
            process.stdin.close()
            process.wait(PATIENCE)
        finally:
            process.kill()
    late = Attempt("late", "whatever came later", lambda _: "", control=False)
    time.sleep(_LATE)
    yield late, Outcome(Came.DONE, "all is over", tuple(listeners.arrived()))


def _sidecar(command: list[str], listeners: Listeners, policy: Path) -> subprocess.Popen[bytes]:
    """Start `sidecar exec`, with a connection to the listeners left open."""
    inherited = listeners.inheritable.fileno()
    arguments = ("exec", "-q", "--summary", "none", "--policy", str(policy), "--", *command)
    return subprocess.Popen(  # noqa: S603 - our own
        children.tethered(children.python("sidecar.cli", "main", *arguments)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        pass_fds=(inherited,),
        cwd="/",
        # One attempt kills its process group.
        start_new_session=True,
    )


def _killed(how: str, outside: Outside, listeners: Listeners, policy: Path) -> Outcome:
    """Kill sidecar while processes inside go on sending; see that they end, and nothing arrives."""
    listeners.arrived()
    seen = json.dumps(asdict(replace(outside, init=1)))
    command = children.python("sidecar.cli.leak_test.inside", "linger", how, seen)
    with _sidecar(command, listeners, policy) as process:
        if process.stdin is None or process.stdout is None:
            raise LeakTestError("no pipes")
        arrived: list[str] = []
        hear(process.stdout, listeners, arrived)
        if how == "outside":
            process.kill()
        else:
            tell(process.stdin, "now")
        began = time.monotonic()
        # To the end of the stream: whoever is inside has the other end of it.
        while process.stdout in select.select([process.stdout], [], [], _ENDING)[0]:
            if not os.read(process.stdout.fileno(), 65536):
                break
        else:
            process.kill()
            arrived.append("processes inside go on")
        seconds = time.monotonic() - began
        process.wait(PATIENCE)
    time.sleep(_LATE)
    arrived += listeners.arrived()
    return Outcome(Came.DONE, f"all inside ended with it, in {seconds:.2f} s", tuple(arrived))
