"""People's programs through the HTTP proxy: wget, pip, git, npm, to servers of their kind."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
from integration.http_origins import git_backend, scripted
from integration.http_stage import (
    HTTP,
    HTTPS,
    PAGE,
    PROXY_URL,
    HttpStage,
    facts,
    http_stage,
    needs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.proxy import Sidecar

pytestmark = pytest.mark.thorough

_PROXIES = {"http_proxy": PROXY_URL, "https_proxy": PROXY_URL}
_VERSION = "1.0"

_programs = needs("nginx", "wget", "git", "npm")


@pytest.fixture(scope="module", name="stage")
def _stage(
    _namespaces: None, _programs: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HttpStage]:
    with http_stage(tmp_path_factory.mktemp("stage")) as made:
        yield made


@pytest.fixture(scope="module", name="sidecar")
def _sidecar(stage: HttpStage) -> Iterator[Sidecar]:
    with stage.proxied() as made:
        yield made


def origin_of(stage: HttpStage, scheme: str) -> tuple[str, str]:
    """Name nginx: a host of the test's own, and the URL's beginning."""
    host = stage.host()
    return host, f"{scheme}://{host}:{HTTP if scheme == 'http' else HTTPS}"


def test_textbook(stage: HttpStage, sidecar: Sidecar, tmp_path: Path) -> None:
    """`http_proxy=localhost:8001 wget localhost:8002`, word for word."""
    stage.run("sh", "-c", "http_proxy=localhost:8001 wget localhost:8002", cwd=tmp_path)
    assert PAGE == (tmp_path / "index.html").read_text()
    [[line, host, via, _, _]] = stage.seen_of("localhost")
    assert ["GET / HTTP/1.1", "localhost:8002"] == [line, host]
    assert via.startswith("1.1 sidecar-")
    logged = sidecar.line(host="localhost")
    assert ["GET", 200, len(PAGE)] == facts(logged, "method", "status", "received")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_wget(stage: HttpStage, sidecar: Sidecar, scheme: str) -> None:
    """It follows its environment, in the clear and in a tunnel."""
    host, origin = origin_of(stage, scheme)
    done = stage.run(
        *("wget", "--quiet", "--tries=1", "--timeout=15", "--output-document=-"),
        *(f"--ca-certificate={stage.authority.cafile}", f"{origin}/page"),
        env=_PROXIES,
    )
    assert PAGE == done.stdout
    method = "GET" if scheme == "http" else "CONNECT"
    assert [method, 200] == facts(sidecar.line(host=host), "method", "status")


def make_wheel(directory: Path) -> None:
    """Make a simple index (PEP 503) with a wheel (PEP 427) of one module."""
    info = f"parcel-{_VERSION}.dist-info"
    files = {
        "parcel.py": "CONTENT = 'from the index'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: parcel\nVersion: {_VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    wheel = f"parcel-{_VERSION}-py3-none-any.whl"
    page = directory / "simple" / "parcel"
    page.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(page / wheel, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    digest = hashlib.sha256((page / wheel).read_bytes()).hexdigest()
    link = f'<!DOCTYPE html><html><body><a href="{wheel}#sha256={digest}">{wheel}</a></body></html>'
    (page / "index.html").write_text(link)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_pip(stage: HttpStage, sidecar: Sidecar, tmp_path: Path, scheme: str) -> None:
    """It installs from an index of ours."""
    make_wheel(stage.directory / "www")
    host, origin = origin_of(stage, scheme)
    stage.run(
        *(sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install"),
        *("--no-cache-dir", "--no-deps", "--retries", "0", "--target", str(tmp_path)),
        *("--index-url", f"{origin}/simple/", "--proxy", PROXY_URL),
        *("--cert", stage.authority.cafile, "--trusted-host", host, "parcel"),
        timeout=60,
    )
    assert (tmp_path / "parcel.py").read_text().startswith("CONTENT")
    lines = sidecar.wait_for_lines(2 if scheme == "http" else 1, host=host)
    assert {("GET" if scheme == "http" else "CONNECT", 200)} == {
        (line["method"], line["status"]) for line in lines
    }


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_git(stage: HttpStage, sidecar: Sidecar, tmp_path: Path, scheme: str) -> None:
    """It clones from a server of its own protocol, and pushes more than it would buffer."""
    bare, work, clone = tmp_path / "bare.git", tmp_path / "work", tmp_path / "clone"
    env = {
        **_PROXIES,
        "GIT_SSL_CAINFO": stage.authority.cafile,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }

    def git(*arguments: str, cwd: Path = tmp_path) -> str:
        identity = ("-c", "user.name=Me", "-c", "user.email=me@origin.test")
        return stage.run("git", *identity, *arguments, cwd=cwd, env=env).stdout

    def commit(size: int) -> None:
        (work / "file").write_bytes(random.Random(size).randbytes(size))  # noqa: S311 - not secret
        git("add", "file", cwd=work)
        git("commit", "--quiet", "--message", f"{size} bytes", cwd=work)

    git("init", "--quiet", "--initial-branch=main", str(work))
    commit(1000)
    git("clone", "--quiet", "--bare", str(work), str(bare))
    git("config", "http.receivepack", "true", cwd=bare)

    host, address = stage.host(), stage.address()
    url = f"{scheme}://{host}:{address.port}/bare.git"
    certificate = stage.certificate if scheme == "https" else None
    with scripted(
        stage.namespace, address, git_backend(tmp_path), certificate=certificate
    ) as requests:
        git("clone", "--quiet", url, str(clone))
        assert (work / "file").read_bytes() == (clone / "file").read_bytes()
        commit(3_000_000)
        git("push", "--quiet", url, "main", cwd=work)
        git("pull", "--quiet", cwd=clone)
        assert (work / "file").read_bytes() == (clone / "file").read_bytes()
    assert {f"{host}:{address.port}"} == {request.one("host") for request in requests}
    pushes = [request for request in requests if "POST /bare.git/git-receive-pack" in request.line]
    assert "chunked" == pushes[-1].one("transfer-encoding")
    lines = sidecar.wait_for_lines(2, host=host)
    assert {200} == {line["status"] for line in lines}
    if scheme == "http":
        # The push's line comes after those of the first clone.
        sidecar.wait_until(
            lambda: any(
                line["host"] == host and line["sent"] > 3_000_000 for line in sidecar.lines()
            )
        )


def make_package(directory: Path, origin: str) -> None:
    """Make a registry of npm's with one package, for who asks it by this URL."""
    files = {
        "package/package.json": json.dumps({"name": "parcel", "version": "1.0.0"}),
        "package/index.js": "module.exports = 'from the registry'\n",
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    tarball = packed.getvalue()
    integrity = base64.b64encode(hashlib.sha512(tarball).digest()).decode()
    about = {"tarball": f"{origin}/tarball.tgz", "integrity": f"sha512-{integrity}"}
    document = {
        "name": "parcel",
        "dist-tags": {"latest": "1.0.0"},
        "versions": {"1.0.0": {"name": "parcel", "version": "1.0.0", "dist": about}},
    }
    (directory / "npm").mkdir(exist_ok=True)
    (directory / "npm" / "parcel").write_text(json.dumps(document))
    (directory / "tarball.tgz").write_bytes(tarball)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_npm(stage: HttpStage, sidecar: Sidecar, tmp_path: Path, scheme: str) -> None:
    """It installs from a registry of ours."""
    host, origin = origin_of(stage, scheme)
    make_package(stage.directory / "www", origin)
    (tmp_path / "package.json").write_text('{"name": "consumer", "version": "1.0.0"}')
    stage.run(
        *("npm", "install", "parcel", "--registry", f"{origin}/npm/", "--no-audit", "--no-fund"),
        *("--proxy", PROXY_URL, "--https-proxy", PROXY_URL, "--cafile", stage.authority.cafile),
        *("--no-update-notifier", "--fetch-retries", "0", "--cache", str(tmp_path / "cache")),
        cwd=tmp_path,
        timeout=60,
    )
    installed = tmp_path / "node_modules" / "parcel" / "index.js"
    assert "from the registry" in installed.read_text()
    lines = sidecar.wait_for_lines(1, host=host)
    assert {("GET" if scheme == "http" else "CONNECT", 200)} == {
        (line["method"], line["status"]) for line in lines
    }
