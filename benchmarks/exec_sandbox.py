"""How long making a sandbox takes: the part of `sidecar exec` that is namespaces and rules.

    python -m benchmarks.exec_sandbox

prints the milliseconds from the fork of the set-up process to where the command could be
run, as a JSON list of one: namespaces, addresses, routes, rules, listeners and their
hand-over, mounts, and pid 1. What else there is to import is imported before.
"""

from __future__ import annotations

import json
import sys
import time

import sidecar.sandbox.inside  # noqa: F401 - the set-up process imports it otherwise
from sidecar.sandbox.starting import start

__all__ = ["main"]


def main() -> int:
    """Make one, and take it away."""
    began = time.perf_counter()
    started = start(["true"])
    started.wait()
    taken = (time.perf_counter() - began) * 1000
    started.abandon()
    sys.stdout.write(json.dumps([taken]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
