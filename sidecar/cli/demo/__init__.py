"""`sidecar demo`: `sidecar exec` at work, in a network of the demo's own.

The command starts one process, which moves itself into a new network namespace, plays
the scenes there and takes everything with it when it ends:

    inside        the stage: namespace, servers; and the order of events
    airgap        a network with no way out
    scenes        what is shown: commands, and what each of their clients should meet
    playing       a command run by `sidecar exec`, as a person sees it
    checks        whether what happened is what should have
    origins       the servers that clients are on their way to, and what reaches them
    names         what the name server answers
    certificates  the servers' authority
    client        a client, where there is no other program for it
    children      processes that don't outlive this one
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile

from sidecar.cli.demo import children
from sidecar.errors import NamespaceError

__all__ = ["add_arguments", "run"]

_DESCRIPTION = """\
Run commands by `sidecar exec`, and show what a person sees of it: what is allowed, what
is denied and what would allow it. The commands run real clients (curl if it is installed,
and Python); servers and a name server of the demo's own are the internet. Everything that
is claimed is checked: by what the servers saw, with sidecar and without, by the access
log, by exit statuses.

Works as root, and as any user who may make user namespaces. Needs no internet, and no
program but a shell. Changes nothing on the machine and leaves nothing behind. Takes a
few seconds.
"""
_EPILOG = "exit status: 0 if all was as claimed, 1 if not or if no namespace can be made (and why)"
# A shell's way of saying that a signal ended a program.
_BY_SIGNAL = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command; it has no options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG


def run(_: argparse.Namespace) -> int:
    """Play the demo and wait for its end.

    Returns:
        0 if everything was as claimed, else 1; 128 and the signal if one ended it.

    Raises:
        NamespaceError: There is no place for the demo's files.
    """
    try:
        place = tempfile.TemporaryDirectory(prefix="sidecar-demo-", ignore_cleanup_errors=True)
    except OSError as error:
        raise NamespaceError(
            f"a temporary directory can't be made: {error.strerror}", "set TMPDIR to a writable one"
        ) from None
    with place as directory:
        command = children.python("sidecar.cli.demo.inside", "main", directory, os.getpid())
        return _wait(command)


def _wait(command: list[str]) -> int:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:  # noqa: S603 - our own
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # A terminal interrupts both, kill(1) only this one. The other tidies up.
            process.terminate()
            process.wait()
            raise
    return status if status >= 0 else _BY_SIGNAL - status
