"""What the command may have written is not imported."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
from importlib.util import cache_from_source
from pathlib import Path

import pytest

# Keeps what is named, seals, has what is in the second directory take the place of what
# was there, and imports.
PROGRAM = """
import os, sys
sys.path[:0] = ["site"]
import parent
from sidecar.cli.exec.sealing import Kept, seal
kept = Kept()
for name in sys.argv[1].split():
    kept.keep(name)
seal(kept)
os.rename("site", "before")
os.rename("later", "site")
sys.path_importer_cache.clear()
for name in sys.argv[2].split():
    try:
        __import__(name)
        print(name, sys.modules[name].VALUE)
    except ModuleNotFoundError as error:
        print(error.name, error)
"""
REFUSED = "{0} {0} was not imported before the command ran, and can't be any more"
FILES = ("alone.py", "parent/__init__.py", "parent/child.py", "parent/inner/__init__.py")


def write(directory: Path, value: str) -> None:
    for name in FILES:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"VALUE = {value!r}\n")


@pytest.fixture(params=["source", "compiled", "out of date", "by hash"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """With modules as they are, and as the command would have them."""
    write(tmp_path / "site", "before")
    write(tmp_path / "later", "after")
    paths = [str(tmp_path / "site" / name) for name in FILES]
    if request.param == "compiled":
        for path in paths:
            py_compile.compile(path)
    elif request.param == "by hash":
        for path in paths:
            py_compile.compile(path, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    elif request.param == "out of date":
        write(tmp_path / "site", "older!")
        for path in paths:
            py_compile.compile(path)
            os.utime(cache_from_source(path))
        write(tmp_path / "site", "before")
        for path in paths:
            os.utime(path, (1, 1))
    return tmp_path


def imported(directory: Path, keep: str, names: str) -> list[str]:
    paths = [str(Path(each).resolve()) for each in sys.path if each]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.path[:] = {paths!r}\n{PROGRAM}", keep, names],
        cwd=directory,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert "" == done.stderr
    return done.stdout.splitlines()


def test_kept(directory: Path) -> None:
    """It is what it was, however it is stored."""
    names = ("alone", "parent", "parent.child", "parent.inner")
    assert [f"{name} before" for name in names] == imported(
        directory, "alone parent", " ".join(names)
    )


def test_not_kept(directory: Path) -> None:
    """It is not to be had, and the error says why."""
    names = "alone parent.child colorsys"
    expected = [REFUSED.format("alone"), "parent.child before", REFUSED.format("colorsys")]
    assert expected == imported(directory, "parent.child", names)


def test_extension_module(directory: Path) -> None:
    """What has no source is imported at once."""
    assert [REFUSED.format("alone")] == imported(directory, "httptools.parser.parser", "alone")


def test_unknown(directory: Path) -> None:
    """What isn't there can't be kept."""
    with pytest.raises(subprocess.CalledProcessError) as raised:
        imported(directory, "nowhere", "alone")
    assert "No module named 'nowhere'" in raised.value.stderr


def test_library_for_the_end() -> None:
    """What the C library loads for a thread that is left over at Python's end is there before."""
    program = (
        "from sidecar.cli.exec.sealing import Kept, seal; seal(Kept());"
        " print('libgcc_s.so.1' in open('/proc/self/maps').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "True\n" == done.stdout
