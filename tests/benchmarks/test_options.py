from __future__ import annotations

import argparse
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.options import add_comparison

ONE, OTHER = (SimpleNamespace(name=name) for name in ("one", "other"))


class Measure(Enum):
    RATE = "rate"
    BULK = "bulk"


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_comparison(made, Measure, [ONE, OTHER], "direct", base="one", rounds=3)
    return made


def test_nothing(parser: argparse.ArgumentParser) -> None:
    """Without options everything is compared."""
    expected = {
        "rounds": 3,
        "seconds": 1,
        "only": [Measure.RATE, Measure.BULK],
        "peers": [ONE, OTHER],
        "base": "one",
        "json": None,
    }
    assert expected == vars(parser.parse_args([]))


def test_everything(parser: argparse.ArgumentParser) -> None:
    """Names are read as what they name."""
    text = "--rounds 5 --seconds 2 --only bulk --peers other,one --base direct --json x.json"
    expected = {
        "rounds": 5,
        "seconds": 2,
        "only": [Measure.BULK],
        "peers": [OTHER, ONE],
        "base": "direct",
        "json": Path("x.json"),
    }
    assert expected == vars(parser.parse_args(text.split()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--peers one,nobody", "no peer is called 'nobody'"),
        ("--only speed", "--only"),
        ("--base nobody", "invalid choice: 'nobody'"),
        ("--rounds 0", "invalid positive value: '0'"),
    ],
)
def test_refused(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    """What is not there is named."""
    with pytest.raises(SystemExit):
        parser.parse_args(text.split())
    assert said in capsys.readouterr().err
