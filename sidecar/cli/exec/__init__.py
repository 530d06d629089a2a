"""`sidecar exec -- CMD`: run a command with every connection of its seen, judged and relayed.

    (here)     the options; what happens in which order
    logs       where the access log goes
    plan       what the options come to
    importing  imports that count
    sealing    and that there are none while the command runs
    serving    what runs in the reactor while the command runs
    reporting  what is said of it, and where
    probing    names shown by certificates
    learning   what --learn adds to its file

Nothing here imports Twisted: the sandbox is forked first, and made while we import. The
command starts when all is served.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from sidecar.cli import viewing
from sidecar.cli.streams import complain
from sidecar.errors import SidecarError

if TYPE_CHECKING:
    from sidecar.cli.exec.plan import Plan
    from sidecar.sandbox.bridges import Bridges
    from sidecar.sandbox.starting import Started

__all__ = ["add_arguments", "run"]

OWN_FAILURE = 125
_BY_SIGNAL = 128

_DESCRIPTION = """\
Run a command in a network namespace of its own, without root, so that every connection
that it or its children make is intercepted, judged by the policy and relayed. There is
no way round it: what is denied, or is neither TCP nor DNS, goes nowhere.
"""
_EPILOG = """\
examples:
  sidecar exec -- npm ci
  sidecar exec --default deny --allow registry.npmjs.org:443 --fail-on-deny -- npm ci
  sidecar exec --learn policy.toml -- ./build.sh
  sidecar exec --policy policy.toml --fail-on-deny -- ./build.sh

HOST is a name; "*.NAME", all names below it; an address or a network; "private",
"loopback", "link-local", "metadata" or "public", a class of addresses; or "*". PORTS are
like 443 or 80,8000-8999. A policy's file has the same rules:
  [policy]
  default = "deny"
  allow = ["*.example.org:443", "10.0.0.0/8:5432"]

exit status: the command's; 128+N if signal N ended it; 125 if sidecar itself failed,
126 if the command can't be executed, 127 if it isn't found; 77 with --fail-on-deny if
anything was denied
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.usage = "sidecar exec [OPTION]... -- CMD [ARGUMENT]..."
    # As env(1) and timeout(1) have it: 2 may be the command's own.
    parser.error = _usage_error  # type: ignore[method-assign]
    policy = parser.add_argument_group("policy")
    policy.add_argument(
        "--allow",
        metavar="RULE",
        action="append",
        default=[],
        help='allow what matches HOST[:PORTS], like "*.example.org:80,443" or 10.0.0.0/8;'
        " may be repeated",
    )
    policy.add_argument(
        "--deny",
        metavar="RULE",
        action="append",
        default=[],
        help="deny what matches, whatever --allow says; may be repeated",
    )
    policy.add_argument(
        "--default",
        metavar="WHAT",
        help="for what no rule matches: allow, deny or public, which allows what is"
        " globally reachable (default: public)",
    )
    policy.add_argument("--policy", metavar="FILE", help="TOML, as for twistd sidecar --config")
    policy.add_argument(
        "--fail-on-deny", action="store_true", help="exit with 77 if anything was denied"
    )
    learn = parser.add_argument_group("learning")
    learn.add_argument(
        "--learn",
        metavar="FILE",
        help="add the rules to FILE, as for --policy, that would have allowed what this run was"
        ' allowed; a new one gets default = "deny"',
    )
    learn.add_argument(
        "--learn-wildcards",
        action="store_true",
        help="learn *.PARENT in the place of three names or more with one parent and port",
    )
    bridges = parser.add_argument_group("bridges")
    bridges.add_argument(
        "--host-port",
        metavar="N[:M]",
        action="append",
        default=[],
        help="let port N of loopback inside lead to port M (default: N) of the host's loopback",
    )
    bridges.add_argument(
        "--publish",
        metavar="N[:M]",
        action="append",
        default=[],
        help="let port N of the host's loopback lead to port M (default: N) of loopback inside",
    )
    report = parser.add_argument_group("report")
    report.add_argument(
        "--log", metavar="FILE|fd:N", help="write a JSON line for each connection's end"
    )
    viewing.add_arguments(parser)
    parser.add_argument("cmd", metavar="CMD", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit status.
    """
    command = arguments.cmd[1:] if arguments.cmd[:1] == ["--"] else arguments.cmd
    if not command:
        _usage_error("no command is given")
    try:
        return _run(arguments, command)
    except SidecarError as error:
        complain(f"sidecar exec: {error}")
    except Exception as error:  # noqa: BLE001 - 1, as Python has it, may be the command's own
        more = "" if arguments.verbose else " (-v says where)"
        complain(f"sidecar exec: unexpected {type(error).__name__}: {error}{more}")
        if arguments.verbose:
            sys.excepthook(type(error), error, error.__traceback__)
    return OWN_FAILURE


def _run(arguments: argparse.Namespace, command: list[str]) -> int:
    from sidecar.cli.exec.logs import open_log
    from sidecar.sandbox.starting import Interrupted, start

    log = None if arguments.log is None else open_log(arguments.log)
    viewing.check(arguments)
    bridges = _bridges(arguments)
    started = start(command, [] if bridges is None else bridges.inside)
    try:
        from sidecar.cli.exec import plan as planning

        plan = planning.Plan.of(arguments, log, bridges)
    except BaseException:
        started.abandon()
        raise
    try:
        started.wait()
    except Interrupted as interrupted:
        return _BY_SIGNAL + interrupted.number
    _let_go_of_input()
    return _serve(started, plan)


def _bridges(arguments: argparse.Namespace) -> Bridges | None:
    if not arguments.host_port and not arguments.publish:
        return None
    from sidecar.sandbox.bridges import Bridges

    return Bridges.of(arguments.host_port, arguments.publish)


def _serve(started: Started, plan: Plan) -> int:
    from sidecar.cli.exec.importing import import_reactor, without_collecting

    with without_collecting():
        import_reactor(tls=plan.needs_tls)
        from sidecar.cli.exec.serving import serve

    status = serve(started, plan)
    if plan.learning is not None:
        for line in plan.learning.finish(status):
            complain(f"sidecar exec: {line}")
    return status


def _let_go_of_input() -> None:
    """Leave standard input and output to the command: others should notice when it closes them."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (0, 1):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _usage_error(message: str) -> NoReturn:
    complain(f"sidecar exec: {message} (usage: sidecar exec [OPTION]... -- CMD...; see --help)")
    raise SystemExit(OWN_FAILURE)
