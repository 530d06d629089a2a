"""What if standard output or error is closed, full, or read by nobody any more?

Python would end with a traceback, or with an exit status of its own (120) in the place of
the command's. Light to import: every command has this.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["complain", "ending"]

_UNWRITTEN = 1
# As a shell has it of a program that SIGPIPE ended (13): which is what ends most of them.
_NOBODY_READS = 128 + 13


def complain(text: str) -> None:
    """Print a line to standard error, if that can be: if not, nobody can be told."""
    with suppress(OSError):
        print(text, file=sys.stderr)


def ending(name: str, run: Callable[[], int]) -> int:
    """Run a command, and see that it has its exit status, whatever its output meets.

    Args:
        name: What complains.
        run: Prints, and returns the exit status.

    Returns:
        What `run` returns; if what it printed can't be written, 1 after a line that says
        why, or 141 and not a word where nobody reads on.
    """
    _open_missing()
    output = _Watched(sys.stdout)
    try:
        with redirect_stdout(cast("TextIO", output)):
            status = run()
    except (SystemExit, OSError):
        # argparse's way to end, and what we look for: whose error that is, it doesn't say.
        problem = output.finish()
        if problem is None:
            raise
    else:
        problem = output.finish()
        if problem is None:
            return status
    finally:
        _finish(sys.stderr)
    if isinstance(problem, BrokenPipeError):
        return _NOBODY_READS
    complain(f"{name}: standard output: {problem.strerror}")
    _finish(sys.stderr)
    return _UNWRITTEN


class _Watched:
    """A stream that remembers whether it could be written.

    Attributes:
        problem: Why it could not; None if it could.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.problem: OSError | None = None

    def write(self, text: str) -> int:
        """Write."""
        with self._remembering():
            return self._stream.write(text)

    def flush(self) -> None:
        """Write what is left."""
        with self._remembering():
            self._stream.flush()

    def finish(self) -> OSError | None:
        """Write what is left.

        Returns:
            Why something could not be written, now or before.
        """
        found = _finish(self._stream)
        return self.problem or found

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.problem = error
            raise

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _open_missing() -> None:
    """See that descriptors 0 to 2 are open, so that nothing of ours gets one of these numbers."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # noqa: PERF203 - three
            # The lowest that is free, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # None where it was closed when Python started; what is printed to no file goes to the other.
    if sys.stdout is None:
        sys.stdout = _writing(1)
    if sys.stderr is None:
        sys.stderr = _writing(2)


def _writing(descriptor: int) -> TextIO:
    return open(descriptor, "w", encoding="utf-8", closefd=False)


def _finish(stream: TextIO) -> OSError | None:
    """Write what is left; if that can't be, have Python not try again when it exits."""
    try:
        stream.flush()
    except OSError as error:
        # What can't be written stays in its buffer.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return error
    return None
