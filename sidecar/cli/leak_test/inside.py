"""What runs in the sandbox: every attempt in a process of its own, in step with the outside.

First comes a line that says what the outside looks like. Then, for each line with an
attempt's name, a line goes back that says what came of it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import suppress
from typing import IO

from sidecar.cli.doctor.trial import attempt
from sidecar.cli.leak_test import datagrams, kinds, namespaces, processes, transports
from sidecar.cli.leak_test.attempts import Attempt, NotHereError, Outside, say

__all__ = ["ATTEMPTS", "linger", "main", "serve"]

ATTEMPTS: tuple[Attempt, ...] = (
    *transports.ATTEMPTS,
    *datagrams.ATTEMPTS,
    *kinds.ATTEMPTS,
    *namespaces.ATTEMPTS,
    *processes.ATTEMPTS,
)
"""In the order in which they are made."""

# Seconds. An attempt takes at most one answer's time, or a few.
_PATIENCE = 5.0
_LINGERING_PAUSE = 0.005
# Longer than the outside waits: whoever is not ended with sidecar ends by himself.
_LINGERING = 10.0


def main() -> int:
    """Make the attempts that are asked for on standard input."""
    processes.remember_inherited()
    serve(sys.stdin, sys.stdout)
    return 0


def serve(questions: IO[str], answers: IO[str]) -> None:
    """Make the attempts that are asked for.

    Args:
        questions: `Outside` as JSON, then names of attempts, a line each.
        answers: Where the outcomes go.
    """
    outside = Outside(**json.loads(questions.readline()))
    by_name = {each.name: each for each in ATTEMPTS}
    for line in questions:
        outcome = _make(by_name[line.strip()], outside)
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()


def _make(chosen: Attempt, outside: Outside) -> dict[str, str]:
    def run() -> list[str]:
        try:
            return ["done", chosen.run(outside)]
        except NotHereError as error:
            return ["not here", str(error)]
        except TimeoutError:
            return ["done", "no answer"]
        except OSError as error:
            return ["refused", error.strerror or str(error)]

    outcome = attempt(run, _PATIENCE)
    if outcome.problem is not None:
        # A crash is no way out either, but it isn't what was to be shown.
        return {"came": "broke", "detail": outcome.problem}
    came, detail = outcome.value
    return {"came": came, "detail": detail}


def linger() -> int:
    """Go on sending until somebody ends it, or for ten seconds.

    sys.argv says how sidecar is to be killed. "group": by this process, which kills its
    process group, sidecar included; "outside": by somebody else, who waits for a line.
    """
    outside = Outside(**json.loads(sys.argv[2]))
    if os.fork() == 0:
        # Not of the group, so it is not killed with it.
        os.setsid()
        _send_until_ended(outside)
    time.sleep(0.1)
    print("sending", flush=True)
    sys.stdin.readline()
    if sys.argv[1] == "group":
        os.kill(0, 9)
    time.sleep(_LINGERING)
    return 0


def _send_until_ended(outside: Outside) -> None:
    deadline = time.monotonic() + _LINGERING
    while time.monotonic() < deadline:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with suppress(OSError), socket.socket(socket.AF_INET, kind) as sock:
                sock.settimeout(0.1)
                sock.connect((outside.ipv4, outside.port))
                sock.sendall(say(outside))
        time.sleep(_LINGERING_PAUSE)
    os._exit(0)
