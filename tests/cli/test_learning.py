from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest
from observe.flows import denied_flow, ended_flow

from sidecar.cli import exec as exec_command
from sidecar.cli.exec.learning import Learning
from sidecar.config import load_file
from sidecar.errors import ConfigError
from sidecar.flow import HostSource

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.policy.gathering import Gatherer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    exec_command.add_arguments(parser)
    return parser.parse_args([*words, "--", "true"])


def watched(learning: Learning | None, *names: str) -> Gatherer:
    """Somebody has connected to each of these names."""
    assert learning is not None
    gatherer = learning.gatherer(lambda _, __: False, lambda: None)
    for name in names:
        flow = ended_flow("9.9.9.1:443", name)
        flow.host_from = HostSource.DNS
        gatherer.flow_ended(flow)
    return gatherer


class TestOptions:
    def test_none(self) -> None:
        """Without --learn nothing is learned."""
        assert Learning.of(options()) is None

    @pytest.mark.parametrize(
        ("more", "expected"),
        [
            ((), ["a.cdn.org:443", "b.cdn.org:443", "c.cdn.org:443"]),
            (("--learn-wildcards",), ["*.cdn.org:443"]),
        ],
    )
    def test_wildcards(self, path: Path, more: tuple[str, ...], expected: list[str]) -> None:
        """Wildcards are for who asks for them."""
        learning = Learning.of(options("--learn", str(path), *more))
        watched(learning, "a.cdn.org", "b.cdn.org", "c.cdn.org")
        assert learning is not None
        learning.finish(0)
        assert expected == [each.text for each in load_file(str(path)).policy.allow]

    def test_unfit(self, path: Path) -> None:
        """A file that can't be learned into is found at once."""
        path.write_text("[policy")
        with pytest.raises(ConfigError, match="not valid TOML"):
            Learning.of(options("--learn", str(path)))


class TestFinish:
    def test_said(self, path: Path) -> None:
        """What was learned is said; the second time there is nothing."""
        learning = Learning(str(path))
        watched(learning, "a.org", "b.org")
        assert [f"learned 2 rules into {path}"] == learning.finish(0)
        text = path.read_text()
        assert [f"{path} has every rule that this run needs"] == learning.finish(0)
        assert text == path.read_text()

    def test_denied(self, path: Path) -> None:
        """So is what was not: denied in this run, or by the file's own rules."""
        path.write_text('[policy]\ndefault = "allow"\ndeny = ["a.org"]\n')
        learning = Learning(str(path))
        gatherer = watched(learning, "a.org", "b.org")
        gatherer.flow_ended(denied_flow())
        assert [
            f"{path} has every rule that this run needs",
            f'{path} has default = "allow": what that allows got no rules',
            f"{path}: a.org:443 stays denied by a.org ({path}:3)",
            "something was denied once; what is denied is not learned",
        ] == learning.finish(0)

    def test_many_denied(self, path: Path) -> None:
        """A few of many are named."""
        path.write_text('[policy]\ndefault = "deny"\ndeny = ["*:443"]\n')
        learning = Learning(str(path))
        watched(learning, *(f"n{number}.org" for number in range(9)))
        assert "4 more stay denied" in learning.finish(0)[-1]

    def test_never_ran(self, path: Path) -> None:
        """From a command that failed before it did anything, nothing is learned."""
        learning = Learning(str(path))
        watched(learning)
        assert [f"nothing was learned into {path}"] == learning.finish(127)
        assert not path.exists()

    def test_in_vain(self, path: Path) -> None:
        """If the file can't be written any more, what was learned is told at least."""
        learning = Learning(str(path))
        watched(learning, "a.org")
        path.write_text("[policy")
        with pytest.raises(ConfigError, match=r'(?s)not valid TOML.*"a\.org:443", # 1 connection'):
            learning.finish(0)
