"""Who has nothing but the program finds out from it how it is used."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import sidecar
from sidecar.cli import exec as exec_command
from sidecar.config import load_file


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    exec_command.add_arguments(made)
    return made


def test_examples() -> None:
    """The commands that --help shows are commands."""
    found = re.findall(r"^  sidecar exec (.+)$", parser().format_help(), re.MULTILINE)
    assert 4 == len(found)
    for text in found:
        words = shlex.split(text)
        assert words[words.index("--") :] == parser().parse_args(words).cmd


def test_policy(tmp_path: Path) -> None:
    """The file that it shows is one."""
    text = parser().format_help()
    start = text.index("  [policy]\n")
    path = tmp_path / "policy.toml"
    path.write_text(dedent(text[start : text.index("\n\n", start)]), encoding="ascii")
    policy = load_file(str(path)).policy
    assert ["*.example.org:443", "10.0.0.0/8:5432"] == [each.text for each in policy.allow]


def test_module() -> None:
    """`python -m sidecar` is the command."""
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(sidecar.__file__).parents[1],
    )
    assert f"sidecar {sidecar.__version__}\n" == done.stdout
