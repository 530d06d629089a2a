"""The summary of `sidecar exec`, as root and as nobody: who connected, and options that work."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import pytest
from integration import netns
from integration.exec_stage import USERS, Stage, User
from integration.origins import Origin, http_page

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.thorough

SERVER = SocketAddress("9.9.9.9", 80)
CURL = "curl -sS -m 10 -o /dev/null"
# To a server, to where nothing is, to what is denied by address.
SCRIPT = f"{CURL} http://9.9.9.9/; {CURL} http://9.9.9.9:81/; {CURL} http://10.9.9.9/; exit 3"


@pytest.fixture(scope="module")
def namespace(_namespaces: None) -> Iterator[netns.Namespace]:
    made = netns.Namespace("sum")
    made.ip("addr", "add", f"{SERVER.host}/32", "dev", "lo")
    with Origin(made, SERVER, http_page):
        yield made
    made.remove()


@pytest.fixture(params=USERS)
def stage(
    namespace: netns.Namespace, tmp_path_factory: pytest.TempPathFactory, request: Any
) -> Stage:
    directory: Path = tmp_path_factory.mktemp("summary")
    for path in (directory, *directory.parents[:2]):
        path.chmod(0o755)
    directory.chmod(0o777)
    user: User = request.param
    return Stage(namespace, directory, user, [])


def summary(stage: Stage, *options: str) -> dict[str, Any]:
    """Run the script, and read the summary."""
    done = stage.namespace.run(
        stage.command("-q", "--summary", "json", *options, "--", "sh", "-c", SCRIPT),
        check=False,
        env=stage._environment(),
    )
    assert 3 == done.returncode, done.stderr
    found: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    return found


def test_options_work(stage: Stage) -> None:
    """The options that it names allow what was denied, and with all of them nothing is."""
    denied = summary(stage, "--default", "deny")
    assert 3 == denied["total"]["denied"]
    options = [word for each in denied["denied"] for word in ("--allow", each["allow"])]
    assert ["--allow 9.9.9.9:80", "--allow 9.9.9.9:81", "--allow 10.9.9.9:80"] == [
        shlex.join(options[at : at + 2]) for at in range(0, 6, 2)
    ]
    total = summary(stage, "--default", "deny", *options)["total"]
    assert (0, 3, 2) == (total["denied"], total["allowed"], total["failed"])


def test_processes(stage: Stage) -> None:
    """Whoever runs it learns who connected."""
    found = summary(stage)
    assert [["curl"]] * 3 == [each["processes"] for each in found["hosts"]]
    assert (3, ["sh", "-c", SCRIPT]) == (found["status"], found["command"])
