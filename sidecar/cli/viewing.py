"""What `sidecar exec` shows, and where: the options, and the view that they ask for.

Light to import: what shows anything is imported when it is asked for.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from sidecar.errors import SummaryError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from twisted.internet.interfaces import IReactorTime

    from sidecar.addresses import SocketAddress
    from sidecar.flow import Process
    from sidecar.observe.styles import Look
    from sidecar.observe.view import View

__all__ = ["add_arguments", "check", "make_view"]

_STDERR = 2
# Columns; no terminal is wider, and 0 is what some say that know nothing.
_WIDTH_MAX = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the view: -q, -v, --color, --summary, --summary-file."""
    group = parser.add_argument_group("what is shown, on standard error")
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="no line a connection; warnings and the summary only",
    )
    loudness.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="with each connection also when, exact bytes, why, and how it ended; DNS answers",
    )
    group.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: on a terminal that can, unless NO_COLOR is set",
    )
    group.add_argument(
        "--summary",
        choices=("text", "json", "markdown", "none"),
        default="text",
        help="at the end: hosts, connections, bytes, what was denied and what would allow it",
    )
    group.add_argument(
        "--summary-file",
        metavar="FILE",
        help='append the summary to a file instead, like "$GITHUB_STEP_SUMMARY"',
    )


def check(arguments: argparse.Namespace) -> None:
    """Open the file for the summary, before anything is run: what is there later is others' choice.

    Args:
        arguments: With the options of `add_arguments`; gets the descriptor.

    Raises:
        SummaryError: It can't be, or nothing is to be written.
    """
    path = arguments.summary_file
    if path is None:
        return
    if not path:
        raise SummaryError("''", "no file's name; is a variable not set?")
    if arguments.summary == "none":
        raise SummaryError(path, "with --summary none there is nothing to write")
    if path == "-":
        raise SummaryError(path, "standard output is the command's; a file of that name is ./-")
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
    try:
        arguments.summary_descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise SummaryError(path, error.strerror or str(error)) from None


def make_view(
    arguments: argparse.Namespace,
    reactor: IReactorTime,
    find_process: Callable[[SocketAddress, SocketAddress], Process | None] | None = None,
    *,
    descriptor: int = _STDERR,
    environment: Mapping[str, str] = os.environ,
) -> View:
    """Make what the options ask for.

    Args:
        arguments: With the options of `add_arguments`, and after `check`.
        reactor: Times the lines.
        find_process: Finds who opened a connection, by both its ends
            (`sidecar.linux.processes.ProcessFinder.find`); None if nobody can.
        descriptor: Where the view is shown.
        environment: NO_COLOR and TERM count.
    """
    from sidecar.observe.summary import Format
    from sidecar.observe.view import SummaryFile, View

    path = arguments.summary_file
    file = None if path is None else SummaryFile(arguments.summary_descriptor, path)
    return View(
        descriptor,
        reactor,
        _look(arguments, descriptor, environment),
        Format(arguments.summary),
        quiet=arguments.quiet,
        file=file,
        find_process=find_process,
    )


def _look(arguments: argparse.Namespace, descriptor: int, environment: Mapping[str, str]) -> Look:
    from sidecar.observe.styles import ColorWhen, Look, wants_color

    is_terminal = os.isatty(descriptor)
    encoding = getattr(sys.__stderr__, "encoding", None) or ""
    return Look(
        color=wants_color(ColorWhen(arguments.color), environment, is_terminal=is_terminal),
        arrows=encoding.lower().replace("-", "") == "utf8",
        columns=partial(_columns, descriptor),
        verbose=arguments.verbose,
    )


def _columns(descriptor: int) -> int | None:
    """How wide a terminal is; None if it is none, or doesn't know."""
    with suppress(OSError):
        columns = os.get_terminal_size(descriptor).columns
        return columns if 0 < columns < _WIDTH_MAX else None
    return None
