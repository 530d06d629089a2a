"""Which benchmark runs: `python -m benchmarks COMMAND`."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING

from benchmarks import exec as exec_
from benchmarks import hello, http, peek, policy, tcp

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark.

    Args:
        argv: The arguments; the process's own if None.

    Returns:
        The exit status: 0, or 1 if a measurement failed.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    tcp.add_parser(commands)
    hello.add_parser(commands)
    peek.add_parser(commands)
    http.add_parser(commands)
    policy.add_parser(commands)
    exec_.add_parser(commands)
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _leave)  # so that what was started is ended
    try:
        status: int = arguments.run(arguments)
    except KeyboardInterrupt:
        return 130
    return status


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
