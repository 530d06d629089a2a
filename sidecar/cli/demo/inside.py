"""The stage: a namespace, servers, rules and the proxy in it; then scene after scene."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

from sidecar.cli.demo import checks, children
from sidecar.cli.demo.origins import Kind, Origin
from sidecar.cli.demo.proxy import ARGUMENTS, Proxy
from sidecar.cli.demo.scenes import CLIENT_ADDRESSES, ORIGIN_NETWORKS, Meets, origins, scenes
from sidecar.cli.rules import describe
from sidecar.errors import SidecarError
from sidecar.linux.namespaces import enter_network_namespace, set_up_loopback
from sidecar.linux.netfilter import lifecycle
from sidecar.linux.netfilter.model import Mode, RuleSet

if TYPE_CHECKING:
    from sidecar.cli.demo.proxy import LogLine
    from sidecar.cli.demo.scenes import Scene

__all__ = ["main"]

_WIDTH = 96
# Seconds; what is waited for takes milliseconds.
_CLIENT_PATIENCE = 10.0
_LOG_PATIENCE = 2.0
# Seconds in which a log line that should not be there would have been written: lines
# wait 50 ms for company.
_LOG_SILENCE = 0.2
_INTERRUPTED = 130
_TERMINATED = 143


def main() -> int:
    """Play the demo in this process and its children.

    sys.argv has the mode ("tproxy" or "redirect") and the parent's process id.

    Returns:
        The exit status.
    """
    mode, parent = Mode(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGTERM, _terminated)
    try:
        with ExitStack() as stack:
            return _play(mode, parent, stack)
    except SidecarError as error:
        print(f"sidecar demo: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Nobody reads on. Python's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(_TERMINATED)


def _play(mode: Mode, parent: int, stack: ExitStack) -> int:
    began = time.monotonic()
    user = os.geteuid()
    in_user_namespace = enter_network_namespace()
    # Only now: a new user namespace forgets such wishes.
    children.die_with(parent)
    versions = set_up_loopback(CLIENT_ADDRESSES, ORIGIN_NETWORKS)
    rules = RuleSet(mode=mode, inbound_port=None)
    # First what takes longest.
    proxy = Proxy()
    stack.callback(proxy.kill)
    servers = []
    for kind, address in origins(versions):
        servers.append(Origin(kind, address, proxy.holds))
        stack.callback(servers[-1].close)
    lifecycle.apply(rules)
    proxy.wait_until_it_listens()
    _introduce(rules, servers, versions, user if in_user_namespace else None)
    faulty = 0
    played = scenes(versions)
    for number, scene in enumerate(played, 1):
        if scene.meets is Meets.NOBODY:
            proxy.kill()
        happened = _dial(scene, proxy, servers)
        found = checks.faults(scene, happened, mode.value)
        faulty += bool(found)
        _show(number, scene, happened, found)
    return _sum_up(mode, len(played), faulty, time.monotonic() - began)


def _dial(scene: Scene, proxy: Proxy, servers: list[Origin]) -> checks.Happened:
    command = children.tethered(scene.command)
    try:
        done = subprocess.run(  # noqa: S603 - the scene's client
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            cwd="/",
            env=children.environment(),
            timeout=_CLIENT_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        done = subprocess.CompletedProcess(command, 1, "", f"no end within {_CLIENT_PATIENCE:g} s")
    line = proxy.next_line(_LOG_SILENCE if scene.meets is Meets.NOBODY else _LOG_PATIENCE)
    # The server it wanted may need a moment to finish; the others have nothing to do.
    wanted = scene.meets is Meets.ORIGIN
    visits = [
        visit
        for server in servers
        for visit in server.visits(
            _LOG_PATIENCE if wanted and server.address == scene.dialled else 0
        )
    ]
    complaint = done.stderr.strip().rpartition("\n")[2]
    return checks.Happened(done.returncode, done.stdout, complaint, line, tuple(visits))


def _introduce(
    rules: RuleSet, servers: list[Origin], versions: frozenset[int], user: int | None
) -> None:
    if user is None:
        whose = "a network namespace of root's"
    else:
        whose = f"a network namespace, in a user namespace of user {user}'s"
    _say("Stage", f"{whose}; no interface but lo, so nothing gets out")
    if 6 not in versions:  # noqa: PLR2004
        _say("", "this kernel has no IPv6: IPv4 only")
    places = {kind: [str(each.address) for each in servers if each.kind is kind] for kind in Kind}
    _say("Servers", f"http on {', '.join(places[Kind.HTTP])}")
    _say("", f"one that speaks first on {', '.join(places[Kind.GREETING])}")
    _say("", f"one that answers last on {', '.join(places[Kind.COUNT])}")
    _say("Rules", f"sidecar rules apply --mode {rules.mode.value} --inbound-port none")
    _say("", describe(rules))
    _say("Proxy", " ".join(["twistd", *ARGUMENTS]))


def _say(label: str, text: str) -> None:
    print(f"{label:9}{text}", flush=True)


def _show(number: int, scene: Scene, happened: checks.Happened, found: list[str]) -> None:
    print(f"\n{number}. {scene.title}")
    print(f"   $ {scene.shown}")
    for line in [*happened.output.splitlines(), *filter(None, [happened.complaint])]:
        print(f"   {line}")
    print(_wrapped("log", _readable(happened.line)))
    if number == 1 and happened.line is not None:
        print(f"   raw     {happened.line.raw}")
    if found:
        for fault in found:
            print(_wrapped("WRONG", fault))
    else:
        print(_wrapped("checked", checks.claim(scene, happened)))
    sys.stdout.flush()


def _readable(line: LogLine | None) -> str:
    if line is None:
        return "no line"
    fields = line.fields
    found_by = f" (told by {fields['destination_from']})" if fields["destination_from"] else ""
    verdict = fields["verdict"]
    reason = "" if fields["reason"] == "default" else f": {fields['reason']}"
    return (
        f"{fields['source']} -> {fields['destination']}{found_by}, {verdict}{reason},"
        f" sent {fields['sent']}, received {fields['received']},"
        f" {fields['seconds']:.3f}s, {fields['end']}"
    )


def _wrapped(label: str, text: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=f"   {label:8}",
        subsequent_indent=" " * 11,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _sum_up(mode: Mode, played: int, faulty: int, seconds: float) -> int:
    print()
    if faulty:
        print(
            f"{faulty} of {played} not as claimed (WRONG, above). Please report it, with all this."
        )
        return 1
    print(
        f"All {played} as claimed, in {seconds:.1f} s. The namespace goes with this command;"
        " nothing is left behind.\n"
        "Next, in a pod, VM or container of your own, as root:\n"
        f"    sidecar rules apply --mode {mode.value} --exclude-uid 1337\n"
        "    twistd -n sidecar --outbound transparent:15001 --inbound transparent:15006"
        " --access-log -"
    )
    return 0
