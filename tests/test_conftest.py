"""What tests/conftest.py promises of every run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS = {
    "in_a_test": "import pytest\ndef test_it():\n    pytest.skip('no kernel')\n",
    "by_a_mark": "import pytest\n@pytest.mark.skipif(True, reason='no kernel')\n"
    "def test_it():\n    pass\n",
    "in_a_fixture": "import pytest\n@pytest.fixture\ndef f():\n    pytest.skip('no kernel')\n"
    "def test_it(f):\n    pass\n",
    "of_a_module": "import pytest\npytest.skip('no kernel', allow_module_level=True)\n",
}


@pytest.mark.parametrize(
    ("ci", "expected"),
    [("true", {"FAILED", "ERROR"}), ("1", {"FAILED", "ERROR"}), ("", {"SKIPPED"})],
)
def test_skip_under_ci(tmp_path: Path, ci: str, expected: set[str]) -> None:
    """A skip, however it is made, is a failure that says why under CI, and none elsewhere."""
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    for how, text in SKIPS.items():
        (tmp_path / f"test_{how}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rsfE", "--continue-on-collection-errors"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        check=False,
        capture_output=True,
        text=True,
    )
    outcomes = re.findall(r"^([A-Z]+) .*?test_(\w+)\.py", done.stdout, re.MULTILINE)
    assert expected == {outcome for outcome, _ in outcomes}
    assert set(SKIPS) == {how for _, how in outcomes}
    assert (ci != "") == (done.returncode != 0)
    assert (ci != "") == ("no kernel\nUnder CI" in done.stdout)
