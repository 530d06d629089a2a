"""Running Python without the capabilities that the tests themselves may have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import PATIENCE

import sidecar

__all__ = ["without_capabilities"]

_CHECKOUT = str(Path(sidecar.__file__).parent.parent)


def without_capabilities(program: str) -> subprocess.CompletedProcess[str]:
    """Run Python text in a process that may nothing but read files.

    Reading files is no capability to the network; the interpreter may be in
    somebody's private directory.
    """
    command = [sys.executable, "-c", program]
    if os.geteuid() == 0:
        kept = "-all,+dac_read_search"
        command = [
            *("setpriv", "--inh-caps", kept, "--bounding-set", kept, "--no-new-privs", "--"),
            *command,
        ]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": _CHECKOUT},
    )
