from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.errors import ExtensionError
from sidecar.extensions import find_plugins
from sidecar.interfaces import IDecisionStep

HOWTO = Path(__file__).parents[1] / "docs" / "howto" / "extend.md"

USE = """
from sidecar.addresses import SocketAddress
from sidecar.extensions import find_plugins
from sidecar.flow import Flow, FlowEnd, ListenerKind
from sidecar.interfaces import IDecisionStep, INamedObserver

(step,) = find_plugins(IDecisionStep, ["no-telemetry"])
(observer,) = find_plugins(INamedObserver, ["talkers"])
flow = Flow(ListenerKind.OUTBOUND, None, SocketAddress("192.0.2.1", 443), None, observer)
flow.host = "telemetry.example.org"
flow.sent = 7
print(step.judge(flow))
flow.host = "api.example.org"
print(step.judge(flow))
flow.finish(FlowEnd.CLOSED)
print(observer.bytes_sent)
"""


def test_listing(tmp_path: Path) -> None:
    """The documented plugins are found by their names, judge and observe."""
    (listing,) = re.findall(r"```python\n(.*?)```", HOWTO.read_text(), re.DOTALL)
    plugins = tmp_path / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "listing.py").write_text(listing)
    path = [str(tmp_path), *sys.path]
    script = f"import sys; sys.path[:] = {path!r}\n{USE}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True, cwd=tmp_path
    )
    assert ["telemetry", "None", "{'api.example.org': 7}"] == done.stdout.splitlines()


def test_none_asked_for() -> None:
    """Nothing is found where nothing is asked for."""
    assert () == find_plugins(IDecisionStep, [])


def test_not_installed() -> None:
    """A plugin that isn't installed is an error that names it."""
    with pytest.raises(ExtensionError, match="no plugin is called 'absent'"):
        find_plugins(IDecisionStep, ["absent"])
