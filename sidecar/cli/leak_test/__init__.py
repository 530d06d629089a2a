"""`sidecar doctor --leak-test`: tries to get out of `sidecar exec` in every known way.

stage       the outside: namespace, listeners, order of events
listening   what is placed outside, and what reaches it
inside      what runs in the sandbox
attempts    what an attempt is
transports  attempts by TCP and its kin
datagrams   by UDP, ICMP, DNS, packets
kinds       by other kinds of sockets and calls
namespaces  by namespaces, rules, mounts
processes   by other processes and what they have
outcomes    what came of it, and whether that is a leak
showing     lines and JSON
"""

from __future__ import annotations

import os
import subprocess

from sidecar.cli.demo import children

__all__ = ["run"]

_BY_SIGNAL = 128


def run(*, json: bool) -> int:
    """Make the test and wait for its end.

    Args:
        json: Print one JSON document.

    Returns:
        0 if nothing got out, 1 if something did or could not be tried; 128 and the signal if
        one ended it.
    """
    form = "json" if json else "text"
    command = children.python("sidecar.cli.leak_test.stage", "main", form, os.getpid())
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:  # noqa: S603 - our own
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # A terminal interrupts both, kill(1) only this one. The other tidies up.
            process.terminate()
            process.wait()
            raise
    return status if status >= 0 else _BY_SIGNAL - status
