from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from turning import Turning, turning
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from zope.interface.verify import verifyObject

from sidecar.errors import CheckerError
from sidecar.protocols.http import checkers
from sidecar.protocols.http.checkers import PasswordFile, make_checker
from sidecar.protocols.http.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# "sesame", by htpasswd.
BCRYPT = b"$2y$05$UAHJ/guYkbYcoF8Wf0ICM.FasDOBth1uvI6.1LDJ18K5ACuhZyBwC"
APR1 = b"$apr1$abcdefgh$GQVaHFsauSKl0cgw4bVFJ/"
SHA = b"{SHA}CEo1Ae3vaEXy8eQZjsOiuBz1xrw="


@pytest.fixture(name="turned")
def _turned() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture(name="workers")
def _workers(turned: Turning) -> Iterator[Workers]:
    made = Workers(turned.reactor)
    yield made
    made.close()


def avatar(turned: Turning, checker: ICredentialsChecker, user: bytes, password: bytes) -> object:
    """Whom the checker takes somebody for; None for nobody."""
    asked: Any = checker.requestAvatarId(UsernamePassword(user, password))
    return turned.result(asked.addErrback(lambda failure: failure.trap(UnauthorizedLogin) and None))


class TestFile:
    @pytest.fixture(name="path")
    def _path(self, tmp_path: Path) -> Path:
        path = tmp_path / "htpasswd"
        lines = [
            *(b"# comment:comment", b"", b"plain:sesame", b"windows:sesame\r"),
            *(b"bcrypt:" + BCRYPT, b"apr1:" + APR1 + b":a comment", b"sha:" + SHA),
        ]
        path.write_bytes(b"\n".join(lines))
        return path

    @pytest.fixture(name="checker")
    def _checker(self, path: Path, workers: Workers) -> ICredentialsChecker:
        return make_checker(f"file:{path}", workers)

    def test_interface(self, checker: ICredentialsChecker) -> None:
        """It is a checker of twisted.cred's."""
        assert verifyObject(ICredentialsChecker, checker)

    @pytest.mark.parametrize("user", ["plain", "windows", "bcrypt", "apr1", "sha"])
    def test_users(self, turned: Turning, checker: ICredentialsChecker, user: str) -> None:
        """Users of every kind of line get in with their password, and nobody else does."""
        name = user.encode()
        assert name == avatar(turned, checker, name, b"sesame")
        for wrong in (b"", b"Sesame", b"sesame ", BCRYPT, APR1, SHA):
            assert avatar(turned, checker, name, wrong) is None
        assert avatar(turned, checker, name.upper(), b"sesame") is None

    def test_nobody(self, turned: Turning, checker: ICredentialsChecker) -> None:
        """Who isn't in it gets in with no password, not even with that of the stand-in's."""
        assert avatar(turned, checker, b"nobody", b"sesame") is None
        assert avatar(turned, checker, b"", b"sesame") is None
        assert avatar(turned, checker, b"# comment", b"comment") is None

    def test_changes(self, turned: Turning, path: Path, checker: ICredentialsChecker) -> None:
        """A changed file counts at once; without it, or with bad lines, nobody gets in by them."""
        path.write_bytes(b"other:word\nbad:$6$x$y\n")
        assert avatar(turned, checker, b"plain", b"sesame") is None
        assert b"other" == avatar(turned, checker, b"other", b"word")
        assert avatar(turned, checker, b"bad", b"$6$x$y") is None
        path.unlink()
        assert avatar(turned, checker, b"other", b"word") is None
        path.write_bytes(b"plain:sesame\n")
        assert b"plain" == avatar(turned, checker, b"plain", b"sesame")
        bad, missing = turned.failures
        assert "line 2: $6$ is a hash" in bad
        assert "nobody can log in: No such file" in missing
        turned.failures.clear()

    def test_directory_changes(
        self, turned: Turning, path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A relative path is where it was at the start: twistd changes its directory."""
        monkeypatch.chdir(path.parent)
        checker = make_checker(f"file:{path.name}", workers)
        monkeypatch.chdir("/")
        path.write_bytes(b"other:word")
        assert b"other" == avatar(turned, checker, b"other", b"word")

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "has no users"),
            (b"a:b\nword\n", "line 2: no user"),
            (b":word", "line 1: no user"),
            (b"a:", "line 1: no password"),
            (b"a:b:c", "line 1: a colon in a plain password"),
            (b"a:b\na:c", "line 2: the user is there already"),
            (b"a:$6$salt$hash", "line 1: $6$ is a hash"),
            (b"a\nb\nc\nd\ne\n", "line 1: no user, line 2: no user, line 3: no user, and 2 more"),
        ],
    )
    def test_unusable(self, tmp_path: Path, workers: Workers, content: bytes, said: str) -> None:
        """At the start every line must be of use; the error says which isn't, not what is in it."""
        path = tmp_path / "htpasswd"
        path.write_bytes(content)
        with pytest.raises(CheckerError) as caught:
            PasswordFile(str(path), workers)
        assert str(caught.value).startswith(str(path))
        assert said in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "said"),
        [("missing", "No such file"), (".", "Is a directory"), ("a\0b", "null")],
    )
    def test_unreadable(self, tmp_path: Path, workers: Workers, name: str, said: str) -> None:
        """A file that can't be read is an error."""
        with pytest.raises(CheckerError, match=said):
            PasswordFile(f"{tmp_path}/{name}", workers)

    def test_endless(self, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
        """What has no end is no file of passwords."""
        monkeypatch.setattr(checkers, "_FILE_SIZE_MAX", 1000)
        with pytest.raises(CheckerError, match="longer than 1000 bytes"):
            PasswordFile("/dev/zero", workers)


class TestMemory:
    def test_users(self, turned: Turning, workers: Workers) -> None:
        """Names and passwords are those of the string, in bytes as the wire has them."""
        checker = make_checker("memory:alice:f\u00fc:bob:g", workers)
        assert b"alice" == avatar(turned, checker, b"alice", "f\u00fc".encode())
        assert b"bob" == avatar(turned, checker, b"bob", b"g")
        assert avatar(turned, checker, b"alice", b"g") is None
        assert avatar(turned, checker, b"carol", b"g") is None


class TestUnix:
    def test_nobody(self, turned: Turning, workers: Workers) -> None:
        """The system's users are asked for in a thread; from Python 3.13 on nobody can."""
        if find_spec("crypt") is None:
            with pytest.raises(CheckerError, match="unix can't be used: Python 3"):
                make_checker("unix", workers)
            return
        checker = make_checker("unix", workers)
        assert verifyObject(ICredentialsChecker, checker)
        assert avatar(turned, checker, b"no-such-user", b"x") is None

    def test_without_crypt(self, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
        """A Python that can't read the system's passwords says so."""
        monkeypatch.setitem(sys.modules, "crypt", None)
        with pytest.raises(CheckerError, match="unix can't be used: Python 3"):
            make_checker("unix", workers)


class TestUnusable:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "no checker is called ''"),
            ("nonsense:secret", "no checker is called 'nonsense' (there are: "),
            ("file", "expected file:PATH"),
            ("file:", "expected file:PATH"),
            ("memory", "expected memory:USER:PASSWORD"),
            ("memory:secret", "expected memory:USER:PASSWORD"),
            ("memory:secret:", "neither of them empty"),
            ("memory::secret", "neither of them empty"),
            ("anonymous", "anonymous doesn't check user names and passwords"),
        ],
    )
    def test_said(self, workers: Workers, text: str, said: str) -> None:
        """What can't be used is an error that says what can, and no secret."""
        with pytest.raises(CheckerError) as caught:
            make_checker(text, workers)
        assert said in str(caught.value)
        assert "secret" not in str(caught.value)
