"""`sidecar exec` runs nothing outside that its command has written."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from identities import NOBODY, as_nobody
from integration.netns import DEADLINE, Pair
from integration.origins import PAGE, Origin, http_page

import sidecar

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

# Puts a program of its own in the place of each module of sidecar's, and before each of
# others'; then does what has sidecar import what it has put off: HTTP, a denial, a summary.
COMMAND = r"""
evil="open('$0/ran', 'a').write(__file__ + '\n')"
find "$0/site" -name '*.py' | while read -r path; do echo "$evil" > "$path"; done
find "$0/site" -name '*.pyc' -delete
for name in colorsys fractions httptools linecache rich tomlkit traceback twisted zope idna; do
    echo "$evil" > "$0/site/$name.py"
    mkdir "$0/site/$name"
    echo "$evil" > "$0/site/$name/__init__.py"
done
curl -sS --max-time 10 "$1"
! curl -sS --max-time 10 -o /dev/null "$2"
exit 7
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Has sidecar in it, and belongs to nobody."""
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        source = Path(sidecar.__file__).parent
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, made / "site" / "sidecar", ignore=without)
        (made / "stash").mkdir()
        for path in [made, *made.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
        yield made


@pytest.mark.parametrize("options", [(), ("--learn", "learned.toml"), ("--summary", "markdown")])
def test_installation_is_overwritten(
    directory: Path, pair: Pair, port: int, options: tuple[str, ...]
) -> None:
    """Not even in this run, of which all is shown nevertheless."""
    program = (
        f"import sys; sys.path[:] = [{str(directory / 'site')!r}, *{sys.path!r}];"
        " from sidecar.cli import main; sys.exit(main())"
    )
    server = pair.far.at("ipv4", port)
    options = tuple(each.replace("learned", f"{directory}/learned") for each in options)
    command = [sys.executable, "-c", program, "exec", "--default", "deny"]
    command += [*options, "--allow", str(server), "--log", f"{directory}/log", "--"]
    command += [
        "sh",
        "-c",
        COMMAND,
        str(directory),
        f"http://{server}/",
        f"telnet://{server.host}:1",
    ]
    with Origin(pair.far.namespace, server, http_page):
        done: subprocess.CompletedProcess[str] = pair.near.namespace.run(
            as_nobody(command, directory / "stash"), check=False, timeout=DEADLINE
        )
    ran = directory / "ran"
    assert "" == (ran.read_text() if ran.exists() else "")
    assert (7, PAGE) == (done.returncode, done.stdout)
    assert "can't be any more" not in done.stderr
    # The table, or what was learned.
    assert str(server) in done.stderr
    assert f"--allow {server.host}:1" in done.stderr
    assert 2 == len((directory / "log").read_text().splitlines())
