"""How the doctor is run as somebody, somewhere, and what it left behind."""

from __future__ import annotations

import json
import os
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from integration.netns import Namespace

__all__ = ["ROOT", "doctor", "read", "run"]

ROOT = Path(__file__).parent.parent.parent
# Seconds; the leak test takes fifteen.
PATIENCE = 110.0


def doctor(*arguments: str) -> list[str]:
    """The command, with the modules that this process has."""
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from sidecar.cli import main; sys.exit(main())"
    )
    return [sys.executable, "-c", program, "doctor", *arguments]


def run(namespace: Namespace, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a doctor in a namespace from which nothing leads out, and see that it leaves nothing."""
    mark = uuid.uuid4().hex
    environment = {**os.environ, "SIDECAR_TEST": mark}
    done = namespace.run(command, check=False, env=environment, timeout=PATIENCE, cwd=Path("/"))
    left = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (directory / "environ").read_text(errors="replace"):
                left.append(directory.name)
    assert [] == left
    return done


def read(done: subprocess.CompletedProcess[str], schema: str) -> dict[str, Any]:
    """The document that it printed, which is as the schema says."""
    assert "" == done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(document, json.loads((ROOT / "docs/reference" / schema).read_text()))
    return document
