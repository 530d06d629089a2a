"""What the benchmarks' command lines have in common."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from enum import Enum

__all__ = ["add_comparison", "positive", "say"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_N = TypeVar("_N", bound=_Named)


def positive(text: str) -> int:
    """Read a whole number of at least 1.

    Raises:
        ValueError: It is none.
    """
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def add_comparison(
    parser: argparse.ArgumentParser,
    measures: type[Enum],
    peers: Sequence[_Named],
    direct: str,
    *,
    base: str,
    base_note: str = "",
    rounds: int,
) -> None:
    """Declare the options of a command that compares peers in rounds.

    Args:
        parser: The command's.
        measures: What --only chooses from, by value.
        peers: What --peers chooses from, by name.
        direct: The column that is always there.
        base: What --base is otherwise.
        base_note: What the help says of that.
        rounds: How often, if nothing is said.
    """
    parser.add_argument("--rounds", type=positive, default=rounds, help=f"how often ({rounds})")
    parser.add_argument("--seconds", type=positive, default=1, help="per measurement (1)")
    parser.add_argument(
        "--only",
        type=lambda text: [measures(name) for name in text.split(",")],
        default=list(measures),
        metavar="MEASURE[,MEASURE]",
        help=", ".join(measure.value for measure in measures),
    )
    parser.add_argument(
        "--peers",
        type=_several(peers),
        default=list(peers),
        metavar="PEER[,PEER]",
        help=", ".join(peer.name for peer in peers) + f"; {direct} is always there",
    )
    parser.add_argument(
        "--base",
        default=base,
        choices=[direct, *(peer.name for peer in peers)],
        help=f"the peer that the others are divided by ({base}{base_note})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample here too")


def _several(peers: Sequence[_N]) -> Callable[[str], list[_N]]:
    """Make what reads names with commas between them."""
    by_name = {peer.name: peer for peer in peers}

    def chosen(text: str) -> list[_N]:
        try:
            return [by_name[name] for name in text.split(",")]
        except KeyError as error:
            raise argparse.ArgumentTypeError(f"no peer is called {error}") from error

    return chosen


def say(text: str) -> None:
    """Tell whoever waits for the results how far it is; these are what standard output has."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
