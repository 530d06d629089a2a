"""The `sidecar` command: which subcommands there are, and how each is run.

A subcommand is a module with two functions: ``add_arguments(parser)`` and
``run(arguments) -> int``, the exit status. A module is imported only when its
subcommand is asked for, so that one command does not pay for another's imports.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import sidecar
from sidecar.cli.streams import complain, ending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import SupportsWrite

__all__ = ["main"]

_SUBCOMMANDS = {
    "exec": "run a command with every connection of its seen, judged and relayed, without root",
    "rules": "show, apply, check or remove the rules that route connections into sidecar",
    "policy": "check a file's rules, or say what they do with a connection and why",
    "doctor": "see what works on this machine, and what mends the rest; try to get out of exec",
    "demo": "see interception at work in a namespace of its own, with no internet",
}

# Whose Ctrl-C is their command's, once there is one, and until then ends them.
_INTERRUPTED_BY_DEFAULT = frozenset({"exec"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: The arguments without the program's name; None for sys.argv's.

    Returns:
        The exit status: the subcommand's own; 1 for an operational error, which
        is printed as one line, or if what was printed can't be written (141 if nobody
        reads it); 2 for unusable arguments (argparse exits itself).
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    name = "sidecar" if chosen is None else f"sidecar {chosen}"
    return ending(name, partial(_run, arguments, chosen))


def _run(arguments: list[str], chosen: str | None) -> int:
    if chosen in _INTERRUPTED_BY_DEFAULT:
        _be_interrupted_by_default()
    # Not before: while Python imports, it may lose an interrupt.
    from sidecar.errors import SidecarError

    parser = _Parser(
        prog="sidecar",
        description="Intercept and relay TCP connections. The proxy itself: twistd sidecar --help",
    )
    parser.add_argument("--version", action="version", version=f"sidecar {sidecar.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in _SUBCOMMANDS.items():
        # One is enough where it is known, and takes a fifth of the time.
        if name != chosen in _SUBCOMMANDS:
            continue
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:
            module = importlib.import_module(f"sidecar.cli.{name}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        subparsers.choices[parsed.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        status: int = parsed.run(parsed)
    except SidecarError as error:
        complain(f"sidecar {chosen}: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return status


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        # Python 3.10 has a traceback where nobody can be told; the others, this.
        with suppress(OSError):
            super()._print_message(message, file)


def _be_interrupted_by_default() -> None:
    # What was ignored when we were started stays ignored.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
