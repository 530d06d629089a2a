from __future__ import annotations

import subprocess
from shutil import which

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.protocols.http import passwords
from sidecar.protocols.http.passwords import equal, fault, is_slow, matches

htpasswd = which("htpasswd")
openssl = which("openssl")


def made(*command: str) -> bytes:
    """What a program prints, its user name taken off."""
    done = subprocess.run(command, capture_output=True, check=True)
    return done.stdout.strip().rpartition(b":")[2]


PASSWORDS = ["x", "sesame", "0123456789abcdef", "0123456789abcdefg", "caf\u00e9", "a" * 200]


class TestHtpasswd:
    @pytest.mark.skipif(htpasswd is None, reason="htpasswd is not installed (apache2-utils)")
    @pytest.mark.parametrize("kind", ["-m", "-s", "-B", "-p"])
    @pytest.mark.parametrize("word", PASSWORDS)
    def test_made_by_it(self, kind: str, word: str) -> None:
        """What htpasswd makes of a password is that password's, and no other's."""
        stored = made("htpasswd", "-nb", *(["-BC", "5"] if kind == "-B" else [kind]), "u", word)
        assert fault(stored) is None
        assert matches(stored, word.encode())
        assert not matches(stored, b"y" + word.encode())
        assert not matches(stored, b"")
        assert (kind == "-p") == matches(stored, stored)

    @pytest.mark.skipif(openssl is None, reason="openssl is not installed")
    @pytest.mark.parametrize("kind", ["-1", "-apr1"])
    @pytest.mark.parametrize("word", PASSWORDS)
    @pytest.mark.parametrize("salt", ["a", "abcdefgh"])
    def test_made_by_openssl(self, kind: str, word: str, salt: str) -> None:
        """So is what openssl makes."""
        stored = made("openssl", "passwd", kind, "-salt", salt, word)
        assert fault(stored) is None
        assert matches(stored, word.encode())
        assert not matches(stored, word.encode() + b"x")


class TestFault:
    @pytest.mark.parametrize(
        ("stored", "said"),
        [
            (b"", "no password"),
            (b"$6$salt$hash", "$6$ is a hash"),
            (b"$5$salt$hash", "$5$ is a hash"),
            (b"$y$j9T$salt$hash", "$y$ is a hash"),
            (b"$argon2id$v=19$x", "$argon2id$ is a hash"),
            (b"$2x$05$" + b"a" * 53, "$ is a hash"),
            (b"$2y$05$short", "$2y$ is a hash"),
            (b"$2y$18$" + b"a" * 53, "takes too long"),
            (b"$apr1$salt$short", "$apr1$ is a hash"),
            (b"{SSHA}abc", "{SSHA} is a hash"),
            (b"{SHA}abc", "a broken {SHA} hash"),
            (b"{SHA}!", "a broken {SHA} hash"),
        ],
    )
    def test_unusable(self, stored: bytes, said: str) -> None:
        """A hash that can't be checked is a fault, and no password, least of all its own text."""
        problem = fault(stored)
        assert problem is not None
        assert said in problem
        if stored and not stored.startswith(b"$2y$18"):
            assert not matches(stored, stored)

    def test_without_bcrypt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the library, lines that need it are a fault that says what to install."""
        stored = b"$2y$05$" + b"a" * 53
        assert fault(stored) is None

        def missing(name: str) -> None:
            raise ImportError(name)

        passwords._bcrypt_check.cache_clear()
        monkeypatch.setattr(passwords, "import_module", missing)
        try:
            problem = fault(stored)
        finally:
            passwords._bcrypt_check.cache_clear()
        assert "bcrypt needs a library: pip install 'sidecar[htpasswd]'" == problem


class TestPlain:
    @given(stored=st.binary(min_size=1), password=st.binary(min_size=1))
    def test_itself(self, stored: bytes, password: bytes) -> None:
        """What has no hash's form is the password; what has one never is."""
        if fault(stored) is None and not is_slow(stored) and not stored.startswith(b"{SHA}"):
            assert matches(stored, stored)
            assert (stored == password) == matches(stored, password)

    @given(one=st.binary(), other=st.binary())
    def test_equal(self, one: bytes, other: bytes) -> None:
        """Secrets are equal if they are."""
        assert equal(one, one)
        assert (one == other) == equal(one, other)

    def test_slow(self) -> None:
        """Only what takes long is slow."""
        assert is_slow(b"$2y$05$x")
        assert not is_slow(b"{SHA}x")
        assert not is_slow(b"x")
