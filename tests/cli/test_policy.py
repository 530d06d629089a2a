"""`sidecar policy`: what it finds in a file, and why it judges as it does."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sidecar.cli import main

if TYPE_CHECKING:
    from pathlib import Path

POLICY = """\
[policy]
default = "deny"
allow = ["*.example.org:443", "pypi.org", "10.0.0.0/8:5432"]
deny = ["bad.example.org",
  "metadata"]
private_names = ["db.example.org"]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as users do."""
    return subprocess.run(
        [sys.executable, "-m", "sidecar.cli", "policy", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"},
        timeout=60,
    )


def lines(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    """Run it here."""
    status = main(["policy", *map(str, arguments)])
    said = capsys.readouterr()
    assert said.err == ""
    return status, said.out.splitlines()


class TestCheck:
    def test_sound(self, path: Path) -> None:
        """A sound file has nothing to be said about it, and status 0."""
        done = run("check", path)
        assert (0, f"{path}: 5 rules, 0 warnings\n", "") == (
            done.returncode,
            done.stdout,
            done.stderr,
        )

    def test_errors(self, path: Path) -> None:
        """Every rule that can't be read is named with file, line and what is wrong."""
        path.write_text('[policy]\nallow = ["a..b", "x",\n"127.1"]\ndeny = ["x:0"]')
        done = run("check", path)
        assert (1, "") == (done.returncode, done.stdout)
        found = done.stderr.splitlines()
        assert [2, 3, 4] == [int(line.split(":")[2]) for line in found]
        assert found[1].startswith(f"error: {path}:3: policy.allow[2] = '127.1': ends in a number")

    def test_errors_of_other_kinds(self, path: Path) -> None:
        """So is what makes the whole file unusable."""
        path.write_text('[policy]\nallow = ["a..b"]\nech = "perhaps"')
        done = run("check", path)
        assert 1 == done.returncode
        assert ["policy.allow[0]", "policy.ech"] == [
            line.split(": ")[2].split(" = ")[0] for line in done.stderr.splitlines()
        ]
        path.write_text("[policy\n")
        done = run("check", path)
        assert (1, True) == (done.returncode, "line 1" in done.stderr)
        assert 1 == run("check", path.parent / "missing.toml").returncode

    def test_warnings(self, path: Path) -> None:
        """What is probably not meant is a warning with its place; the status stays 0."""
        path.write_text('[policy]\ndefault = "deny"\nallow = ["*.com",\n"x.com"]')
        broad = "allows a whole top-level domain, all names that end in .com"
        done = run("check", path)
        assert (0, "") == (done.returncode, done.stderr)
        assert [
            f"warning: {path}:3: *.com: {broad}",
            f"warning: {path}:4: x.com: without effect: *.com ({path}:3) covers it",
            f"{path}: 2 rules, 2 warnings",
        ] == done.stdout.splitlines()

    def test_terminal(self, tmp_path: Path) -> None:
        """Nothing in a file or its name reaches the terminal unescaped."""
        path = tmp_path / "\x1b[31m.toml"
        path.write_text('[policy]\nallow = ["\\u001b[31m", "*"]')
        done = run("check", path)
        assert 1 == done.returncode
        assert "\x1b" not in done.stdout + done.stderr
        assert "\\x1b[31m.toml:2" in done.stderr


REDIAL = (
    "redial: sidecar resolves the name, and dials its own answer if the client's "
    "address is not among them"
)


class TestWhy:
    def test_allowed_by_name(self, path: Path) -> None:
        """The whole answer: verdict, reason, winner, verification, conditions, all matches."""
        done = run("why", "API.example.org.:443", "--policy", path)
        assert (0, "") == (done.returncode, done.stderr)
        assert [
            "allow  api.example.org:443",
            "reason: rule (an allow rule matches)",
            f"rule: *.example.org:443 ({path}:3)",
            f"verify: {REDIAL}",
            "condition: its address must be public",
            "condition: its address must not match metadata",
            "deny: 2 rules tried, 0 matching",
            "allow: 3 rules tried, 1 matching",
            f"  -> *.example.org:443 ({path}:3)",
            "default: deny",
        ] == done.stdout.splitlines()

    def test_denied_by_rule(self, path: Path) -> None:
        """A denial names the deny rule, and the allow rules that it beats; status 1."""
        done = run("why", "bad.example.org:443", "--policy", path)
        assert 1 == done.returncode
        assert [
            "deny  bad.example.org:443",
            "reason: denied_by_rule (a deny rule matches, and deny beats allow)",
            f"rule: bad.example.org ({path}:4)",
            "deny: 2 rules tried, 1 matching",
            f"  -> bad.example.org ({path}:4)",
            "allow: 3 rules tried, 1 matching",
            f"     *.example.org:443 ({path}:3)",
            "default: deny",
        ] == done.stdout.splitlines()

    @pytest.mark.parametrize(
        ("status", "reason", "question"),
        [
            (0, "rule", ["10.1.2.3:5432"]),
            (1, "private_address", ["www.example.org:443", "--address", "10.0.0.1"]),
            (0, "rule", ["db.example.org:443", "--address", "10.0.0.1"]),
            (0, "rule", ["www.example.org:443", "--address", "8.8.8.8"]),
            (1, "denied_by_rule", ["www.example.org:443", "--address", "169.254.169.254"]),
            (1, "denied_by_rule", ["[64:ff9b::a9fe:a9fe]:443"]),
            (1, "default", ["www.example.org:80"]),
            (1, "default", ["www.example.org:5432"]),
            (1, "no_name", ["8.8.8.8:443"]),
            (0, "default", ["x.test:80", "--address", "8.8.8.8", "--default", "public"]),
            (1, "private_address", ["x.test:80", "--address", "10.0.0.1", "--default", "public"]),
            (0, "default", ["x.test:80", "--default", "public"]),
            # Any name might be the one that is denied.
            (1, "no_name", ["8.8.8.8:80", "--default", "public"]),
            (0, "rule", ["8.8.8.8:80", "--allow", "8.0.0.0/8"]),
            (1, "denied_by_rule", ["8.8.8.8:80", "--allow", "*", "--deny", "*:80"]),
            (0, "rule", ["x.test:80", "--allow", "*", "--deny", "y.test"]),
            (0, "default", ["x.test:80", "--default", "allow"]),
        ],
    )
    def test_verdicts(
        self,
        path: Path,
        capsys: pytest.CaptureFixture[str],
        status: int,
        reason: str,
        question: list[str],
    ) -> None:
        """The status is the verdict, the first lines say it and its reason."""
        got, said = lines(capsys, "why", *question, "--policy", path)
        assert status == got
        assert said[0].startswith("deny  " if status else "allow  ")
        assert said[1].startswith(f"reason: {reason} (")
        assert "need more" not in "".join(said)

    def test_hint_allows(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """What is said to allow it does."""
        question = ["why", "www.example.org:443", "--address", "10.0.0.1", "--policy", path]
        _, said = lines(capsys, *question)
        (hint,) = [each.split(": ")[1] for each in said if each.startswith("would be allowed by")]
        assert "10.0.0.1:443" == hint
        assert 0 == lines(capsys, *question, "--allow", hint)[0]

    def test_conditions(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Where the address decides, it is said how."""
        _, said = lines(capsys, "why", "x.test:1", "--default", "deny", "--allow", "10.0.0.0/8")
        assert "condition: allowed only at an address that matches 10.0.0.0/8" in said
        rules = [word for number in range(9) for word in ("--deny", f"10.{number}.0.0/16")]
        _, said = lines(capsys, "why", "x.test:1", "--default", "allow", *rules)
        assert said[2].endswith("10.4.0.0/16 or 4 more")
        rules = ["--allow", "x.test", "--allow", "10.0.0.0/8"]
        status, said = lines(capsys, "why", "x.test:1", "--default", "deny", *rules)
        assert (0, "rule: x.test (--allow)") == (status, said[2])
        assert "condition: its address must be public, or match 10.0.0.0/8" in said
        _, said = lines(capsys, "why", "8.8.8.8:1", "--default", "allow", "--deny", "x.test")
        assert said[2].startswith("condition: judged as a TLS or HTTP client that gives no name")

    def test_private_names(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A name that may be private is said to be one; under "public" it is then verified."""
        question = ["why", "db.example.org:443", "--policy", path]
        _, said = lines(capsys, *question)
        assert "condition: its address may be private (private_names)" in said
        _, said = lines(capsys, *question, "--default", "public")
        condition = "its address must be public, or verified to be the name's (*.example.org:443)"
        assert f"condition: {condition}" in said

    def test_ech(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Where names that may be fronts are denied, that is a condition."""
        path.write_text(POLICY + 'ech = "deny"')
        for address in ([], ["--address", "8.8.8.8"]):
            _, said = lines(capsys, "why", "www.example.org:443", *address, "--policy", path)
            assert 'condition: the client must not use ECH (ech = "deny")' in said

    def test_without_a_policy(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Without rules, all is allowed, as the proxy does."""
        status, said = lines(capsys, "why", "10.0.0.1:80", "--for", "exec")
        assert (1, "deny  10.0.0.1:80") == (status, said[0])
        assert "default: public (sidecar exec's own)" == said[-1]
        status, said = lines(capsys, "why", "10.0.0.1:80")
        whose = "twistd sidecar's own; sidecar exec's is public: --for exec"
        assert (0, f"default: allow ({whose})") == (status, said[-1])

    @pytest.mark.parametrize(
        ("question", "problem"),
        [
            (["x.test"], "HOST:PORT = 'x.test': no port"),
            (["0x7f.1:80"], "ends in a number"),
            (["x\x1b:80"], "a character that no host has"),
            (["x.test:80", "--address", "127.1"], "--address = '127.1': not an IP address"),
            (["8.8.8.8:80", "--address", "8.8.4.4"], "8.8.8.8 is another address"),
            (["x.test:80", "--allow", "x:0"], "--allow = 'x:0': not ports"),
            (["x.test:80", "--default", "no"], "--default = 'no': expected"),
            (["x.test:80", "--policy", "/missing"], "/missing: can't be read"),
        ],
    )
    def test_refused(self, question: list[str], problem: str) -> None:
        """What can't be used is one line, and status 2."""
        done = run("why", *question)
        assert (2, "") == (done.returncode, done.stdout)
        assert problem in done.stderr
        assert 1 == done.stderr.count("\n")
        assert "\x1b" not in done.stderr


def test_usage() -> None:
    """Each part of the command explains itself."""
    for arguments in ([], ["check"], ["why"]):
        assert 0 == run(*arguments, "--help").returncode
    assert 2 == run("why").returncode
