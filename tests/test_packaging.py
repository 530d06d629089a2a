"""What is installed is whole, and twistd finds it there."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parent.parent
# Seconds; downloads included.
INSTALL_TIMEOUT = 300

PARSERS = """
from twisted.internet import interfaces
from twisted.plugin import getPlugins
for kind in ("IStreamServerEndpointStringParser", "IStreamClientEndpointStringParserWithReactor"):
    for plugin in getPlugins(getattr(interfaces, kind)):
        if type(plugin).__module__.startswith("sidecar."):
            print(kind, plugin.prefix)
"""


def run(command: Sequence[str | Path], cwd: Path) -> str:
    """Run a program as somebody who knows nothing of this checkout; returns what it prints."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=INSTALL_TIMEOUT,
    )
    assert 0 == done.returncode, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a distribution is built from, without anything built before."""
    copy = tmp_path_factory.mktemp("source") / "sidecar"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "dropin.cache")
    for name in ("sidecar", "twisted"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution."""
    directory = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--outdir", directory, source], cwd=directory)
    (wheel,) = directory.glob("*.whl")
    return wheel


def make_environment(directory: Path, *what: str | Path) -> Path:
    """A fresh virtual environment with something installed; returns its programs' place."""
    venv.create(directory, with_pip=True)
    programs = directory / "bin"
    run([programs / "python", "-m", "pip", "install", "-q", *what], cwd=directory)
    return programs


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel."""
    return make_environment(tmp_path_factory.mktemp("installed"), wheel)


def assert_found_by_twisted(programs: Path, cwd: Path) -> None:
    """The service and both endpoint parsers are there for every Twisted program."""
    assert re.search(
        r"^ +sidecar +Intercept", run([programs / "twistd", "--help"], cwd), re.MULTILINE
    )
    assert [
        "IStreamServerEndpointStringParser transparent",
        "IStreamClientEndpointStringParserWithReactor transparent",
        "IStreamClientEndpointStringParserWithReactor connect",
    ] == run([programs / "python", "-c", PARSERS], cwd).splitlines()


@pytest.mark.packaging
@pytest.mark.timeout(INSTALL_TIMEOUT * 3)
class TestWheel:
    def test_complete(self, wheel: Path) -> None:
        """The wheel has every module of the package and the plugin file, and no more."""
        expected = {
            str(path.relative_to(ROOT))
            for path in [
                *(ROOT / "sidecar").rglob("*.py"),
                ROOT / "sidecar/py.typed",
                ROOT / "twisted/plugins/sidecar_plugins.py",
            ]
        }
        with ZipFile(wheel) as archive:
            files = {name for name in archive.namelist() if ".dist-info/" not in name}
            licenses = [name for name in archive.namelist() if name.endswith("LICENSE")]
        assert expected == files
        assert 1 == len(licenses)

    def test_twisted_finds_it(self, installed: Path, tmp_path: Path) -> None:
        """In an environment with the wheel, twistd and endpoint strings know sidecar."""
        assert_found_by_twisted(installed, tmp_path)

    def test_twistd_sidecar(self, installed: Path, tmp_path: Path) -> None:
        """`twistd sidecar --help` says what can be given."""
        text = run([installed / "twistd", "sidecar", "--help"], tmp_path)
        assert [] == [
            flag
            for flag in ("--config", "--outbound", "--inbound", "--forward", "--access-log")
            if flag not in text
        ]

    def test_command(self, installed: Path, tmp_path: Path) -> None:
        """The `sidecar` command is there, and so is `python -m sidecar`, as `sidecar.cli`."""
        import sidecar

        expected = f"sidecar {sidecar.__version__}\n"
        assert expected == run([installed / "sidecar", "--version"], tmp_path)
        for module in ("sidecar", "sidecar.cli"):
            assert expected == run([installed / "python", "-m", module, "--version"], tmp_path)

    def test_every_module(self, installed: Path, tmp_path: Path) -> None:
        """Every module can be imported with the declared dependencies alone."""
        script = (
            "import importlib, pkgutil, sidecar\n"
            "for module in pkgutil.walk_packages(sidecar.__path__, 'sidecar.'):\n"
            "    if not module.name.endswith('__main__'):\n"
            "        importlib.import_module(module.name)\n"
        )
        assert "" == run([installed / "python", "-c", script], tmp_path)


@pytest.mark.packaging
@pytest.mark.timeout(INSTALL_TIMEOUT * 3)
def test_editable(source: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An editable install, whose default mode would hide every plugin, shows this one."""
    directory = tmp_path_factory.mktemp("editable")
    programs = make_environment(directory, "--editable", source)
    assert_found_by_twisted(programs, directory)


def test_plugin_only_names() -> None:
    """Importing the plugin, as every twistd does, loads neither reactor nor our machinery."""
    script = (
        "import sys; sys.path.append('.'); import twisted.plugins.sidecar_plugins\n"
        "print(*sorted(sys.modules), sep='\\n')"
    )
    loaded = run([sys.executable, "-c", script], cwd=ROOT).splitlines()
    assert "twisted.plugins.sidecar_plugins" in loaded
    heavy = {
        "sidecar.tap",
        "sidecar.endpoints",
        "sidecar.listening",
        "twisted.internet.reactor",
        "msgspec",
    }
    assert set() == heavy.intersection(loaded)


def test_no_init_beside_the_plugin() -> None:
    """There is no __init__.py in twisted/ or twisted/plugins/: it would hide every plugin."""
    assert [] == list((ROOT / "twisted").rglob("__init__.py"))


def test_every_package_is_listed() -> None:
    """setup.cfg lists each package that there is."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "sidecar").rglob("__init__.py")
    }
    assert there | {"twisted.plugins"} == set(config["options"]["packages"].split())


def test_oldest_proves_the_floors() -> None:
    """The tox environment `oldest` installs exactly the floors that setup.cfg declares.

    Those of what users may leave out as well.
    """
    setup, tox = configparser.ConfigParser(), configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    tox.read(ROOT / "tox.ini")

    def versions(lines: str, operator: str) -> dict[str, str]:
        found = re.findall(rf"^(\S+) {operator} ([\d.]+?)(?:\.0)*(?:[;,]|$)", lines, re.MULTILINE)
        return dict(found)

    wanted = setup["options"]["install_requires"] + setup["options.extras_require"]["htpasswd"]
    floors = versions(wanted, ">=")
    assert len(wanted.split("\n")) - 1 == len(floors)
    assert floors == versions(tox["testenv:oldest"]["deps"], "==")
