"""`sidecar demo`: interception at work, in a namespace of its own.

The command starts one process, which moves itself into a new network namespace, plays
the scenes there and takes everything with it when it ends:

    inside    the stage: namespace, origins, rules, proxy; and the order of events
    scenes    what is shown: clients, and what each should meet
    checks    whether it did
    origins   the servers that clients are on their way to
    proxy     the real proxy, as a program, and its access log
    sockets   whose a connection's socket is
    children  processes that don't outlive this one
"""

from __future__ import annotations

import argparse
import os
import subprocess
from typing import TYPE_CHECKING

from sidecar.cli.demo import children

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["add_arguments", "run"]

MODES = ("tproxy", "redirect")

_DESCRIPTION = """\
Make a network namespace, apply the real rules in it, start the real proxy, let real
clients (curl and wget if installed, and Python) dial servers at addresses that no
listener names, and show what each got and what the access log says of it. Everything
that is claimed is checked.

Works as root, and as any user who may make user namespaces. Needs no internet, and no
program but this one. Changes nothing outside its namespace and leaves nothing behind.
Takes a few seconds.
"""
_EPILOG = "exit status: 0 if all was as claimed, 1 if not or if no namespace can be made (and why)"
# A shell's way of saying that a signal ended a program.
_BY_SIGNAL = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "--mode",
        choices=MODES,
        default=MODES[0],
        help="how the kernel hands connections to the proxy (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Play the demo and wait for its end.

    Returns:
        0 if everything was as claimed, else 1; 128 and the signal if one ended it.
    """
    return _wait(children.python("sidecar.cli.demo.inside", "main", arguments.mode, os.getpid()))


def _wait(command: Sequence[str]) -> int:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:  # noqa: S603 - our own
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # A terminal interrupts both, kill(1) only this one. The other tidies up.
            process.terminate()
            process.wait()
            raise
    return status if status >= 0 else _BY_SIGNAL - status
