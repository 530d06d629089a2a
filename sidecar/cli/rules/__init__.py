"""`sidecar rules`: show, apply, check and remove interception rules."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from sidecar.cli.rules.options import (
    RULE_OPTIONS,
    add_rule_options,
    endpoint,
    rule_set_from,
    seconds,
)
from sidecar.cli.streams import complain
from sidecar.errors import RulesError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from sidecar.linux.netfilter.model import RuleSet

__all__ = ["add_arguments", "describe", "rule_set_from", "run"]

_WAIT_INTERVAL_SECONDS = 0.2
_DESCRIPTION = """\
The rules live in one nf_tables table, "inet sidecar", and nothing else is touched
(in tproxy mode, beside it, one policy-routing rule and one local route per family).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands and their options."""
    parser.description = f"{parser.description}. {_DESCRIPTION}"
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print the rules, change nothing")
    show.add_argument(
        "--format",
        choices=("nft", "iptables", "ip6tables"),
        default="nft",
        help="nft (the default): for nft -f; iptables, ip6tables: for iptables-restore "
        "and ip6tables-restore, which need both",
    )
    apply = actions.add_parser("apply", help="put the rules into force, over any earlier ones")
    check = actions.add_parser(
        "check", help="prove by a real connection that interception works; exit 1 if it doesn't"
    )
    check.add_argument(
        "--probe",
        metavar="ADDRESS:PORT",
        action="append",
        type=endpoint,
        help="destination of the trial connection, for rules that include only some "
        "(default: 198.51.100.1:443 and [2001:db8::1]:443; it never gets past the first router)",
    )
    for subparser in (show, apply, check):
        add_rule_options(subparser)
    remove = actions.add_parser(
        "remove", help="stop intercepting; what is being relayed lives on until it ends"
    )
    how = remove.add_mutually_exclusive_group()
    how.add_argument(
        "--wait",
        metavar="SECONDS",
        nargs="?",
        type=seconds,
        const=float("inf"),
        help="wait until what is being relayed has ended, then remove everything; "
        "exit 1 if it has not within SECONDS",
    )
    how.add_argument(
        "--now", action="store_true", help="remove everything at once, cutting what is relayed"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the chosen action.

    Returns:
        0; 1 where a check failed or a wait ran out.

    Raises:
        RulesError: The kernel refused, or lacks something.
    """
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "show": _show,
        "apply": _apply,
        "check": _check,
        "remove": _remove,
    }
    return actions[arguments.action](arguments)


def _wanted(arguments: argparse.Namespace) -> RuleSet:
    try:
        return rule_set_from(arguments)
    except RulesError as error:
        # Options that contradict each other are bad usage like any other: exit 2.
        arguments.refuse(str(error))
        raise


def _show(arguments: argparse.Namespace) -> int:
    from sidecar.linux.netfilter import iptables, nft

    rules = _wanted(arguments)
    if arguments.format == "nft":
        text = nft.render(rules)
    else:
        text = iptables.render(rules, 4 if arguments.format == "iptables" else 6)
    sys.stdout.write(text)
    return 0


def _apply(arguments: argparse.Namespace) -> int:
    from sidecar.linux.netfilter import lifecycle, others

    rules = _wanted(arguments)
    for warning in others.hiding():
        complain(f"sidecar rules: warning: {warning}")
    cut = lifecycle.apply(rules)
    if cut:
        complain(
            f"sidecar rules: warning: {_connections(cut)} intercepted in the other mode will "
            "break (remove first to let them end)"
        )
    print(f"applied: {describe(rules)}")
    return 0


def describe(rules: RuleSet) -> str:
    """A rule set in a line."""
    parts = [f"{rules.mode.value} mode"]
    for name, port in (("outbound", rules.outbound_port), ("inbound", rules.inbound_port)):
        parts.append(f"{name} left alone" if port is None else f"{name} to port {port}")
    if rules.forwarded:
        parts.append("what is routed for others too")
    if rules.syn_only:
        parts.append("new connections only")
    return ", ".join(parts)


def _check(arguments: argparse.Namespace) -> int:
    from sidecar.linux.netfilter import probe

    expected = None
    if any(getattr(arguments, name) is not None for name in RULE_OPTIONS):
        expected = _wanted(arguments)
    report = probe.check(expected, tuple(arguments.probe or ()))
    for finding in report.findings:
        print(finding)
    return 0 if report.effective else 1


def _remove(arguments: argparse.Namespace) -> int:
    from sidecar.linux.netfilter import lifecycle

    removal = lifecycle.remove(now=arguments.now)
    draining = lifecycle.RemovalState.DRAINING
    deadline = None if arguments.wait is None else time.monotonic() + arguments.wait
    if removal.state is draining and deadline is not None:
        print(f"draining: waiting for {_connections(removal.alive)} to end", flush=True)
        while removal.state is draining and time.monotonic() < deadline:
            time.sleep(_WAIT_INTERVAL_SECONDS)
            removal = lifecycle.remove()
    if removal.state is lifecycle.RemovalState.ABSENT:
        print("nothing to remove: there are no rules of sidecar's here")
    elif removal.state is draining:
        print(
            f"draining: new connections go direct; {_connections(removal.alive)} still relayed. "
            "Run this again when they have ended, or with --wait or --now"
        )
        return 0 if deadline is None else 1
    else:
        cut = f", cutting {_connections(removal.alive)}" if removal.alive else ""
        print(f"removed: nothing of sidecar's rules is left{cut}")
    return 0


def _connections(number: int) -> str:
    return "1 connection" if number == 1 else f"{number} connections"
