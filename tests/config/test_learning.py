from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sidecar.config import load_file
from sidecar.config.learning import PolicyFile
from sidecar.errors import ConfigError
from sidecar.policy import Default, Policy
from sidecar.policy.learning import LearnedRule, Lesson

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Sequence

LESSON = Lesson(
    (LearnedRule("a.org:443", "3 connections"), LearnedRule("db.corp:5432", "1 connection")),
    (LearnedRule("db.corp", "led to 10.1.2.3"),),
)
ALLOW = ('    "a.org:443", # 3 connections', '    "db.corp:5432", # 1 connection')
ALIGNED = ('    "a.org:443",    # 3 connections', ALLOW[1])
PRIVATE = ('    "db.corp", # led to 10.1.2.3',)
POLICY = """\
[policy]
default = "deny"
allow = [
    "a.org:443",    # 3 connections
    "db.corp:5432", # 1 connection
]
# These may lead to addresses that are not public.
private_names = [
    "db.corp", # led to 10.1.2.3
]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


def added(path: Path, text: str, lesson: Lesson = LESSON) -> str:
    """A file's text with what was learned."""
    path.write_bytes(text.encode())
    PolicyFile.open(str(path)).add(lesson)
    return path.read_bytes().decode()


class TestNew:
    def test_text(self, path: Path) -> None:
        """A new file denies by default; each rule has its reason."""
        file = PolicyFile.open(str(path))
        assert Default.DENY is file.default
        assert file.add(LESSON)
        head, _, rest = path.read_text().partition("[policy]")
        assert POLICY == f"[policy]{rest}"
        assert all(line.startswith("# ") for line in head.splitlines())
        assert 2 == len(load_file(str(path)).policy.allow)

    def test_nothing_learned(self, path: Path) -> None:
        """Where nothing was connected to, nothing is allowed."""
        PolicyFile.open(str(path)).add(Lesson())
        policy = load_file(str(path)).policy
        assert (Default.DENY, ()) == (policy.default, policy.allow)

    def test_mode(self, path: Path) -> None:
        """It gets the rights that any new file would."""
        old = os.umask(0o027)
        try:
            PolicyFile.open(str(path)).add(LESSON)
        finally:
            os.umask(old)
        assert 0o640 == stat.S_IMODE(path.stat().st_mode)

    @pytest.mark.parametrize("text", ["", "# mine\n", "mark = 1\n", "mark = 1", "[limits]\n"])
    def test_no_policy(self, path: Path, text: str) -> None:
        """So with a file that says nothing of a policy yet; what it says is kept."""
        expected = f"{text}\n{POLICY}" if text.endswith("\n") else f"{text}\n\n{POLICY}"
        assert (expected if text else POLICY) == added(path, text)

    def test_nothing_learned_into_empty(self, path: Path) -> None:
        """An empty file gets its default, too: it would otherwise allow what is public."""
        assert '[policy]\ndefault = "deny"\nallow = []\n' == added(path, "", Lesson())


class TestMerged:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (
                'allow = ["x.org"]\nprivate_names = ["y"]\n',
                ('allow = ["x.org",', *ALLOW, "]", 'private_names = ["y",', *PRIVATE, "]\n"),
            ),
            (
                "allow = [\n 'x.org', # why\n # last\n] # list\nprivate_names = [ ]\n",
                (
                    *("allow = [", " 'x.org', # why", " # last", ' "a.org:443", # 3 connections'),
                    *(' "db.corp:5432", # 1 connection', "] # list", "private_names = [ "),
                    *(*PRIVATE, "]\n"),
                ),
            ),
            (
                'default = "deny" # no\n\n# about limits\n[limits]\n',
                (
                    *('default = "deny" # no', "allow = [", *ALIGNED, "]", "private_names = ["),
                    *(*PRIVATE, "]", "", "# about limits", "[limits]\n"),
                ),
            ),
            (
                'private_names = ["y" # mine\n]\n',
                ('private_names = ["y", # mine', *PRIVATE, "]", "allow = [", *ALIGNED, "]\n"),
            ),
        ],
    )
    def test_text(self, path: Path, before: str, after: Sequence[str]) -> None:
        """Rules come to the end of their lists; everything else is as it was."""
        head = "# first\n[policy] # mine\n"
        assert head + "\n".join(after) == added(path, head + before)

    def test_dotted(self, path: Path) -> None:
        """Keys with dots are added to, as well."""
        expected = ('policy.allow = ["x.org",', *ALLOW, "]", "policy.private_names = [", *PRIVATE)
        text = added(path, 'policy.allow = ["x.org"]\nmark = 1\n')
        assert "\n".join((*expected, "]", "mark = 1\n")) == text

    def test_dotted_apart(self, path: Path) -> None:
        """Unless there are several of them to put what is missing behind: then it is told."""
        path.write_text('policy.default = "deny"\nmark = 1\npolicy.ech = "deny"\n')
        with pytest.raises(ConfigError, match="write allow and private_names as lists"):
            PolicyFile.open(str(path))

    def test_inline_table(self, path: Path) -> None:
        """A table in one line is added to, as well."""
        text = added(path, 'policy = {default = "deny", allow = ["x.org"]} # all\n')
        assert ["x.org", "a.org:443", "db.corp:5432"] == tomllib.loads(text)["policy"]["allow"]
        assert text.endswith("} # all\n")

    def test_line_ends(self, path: Path) -> None:
        """A file from another system keeps its line ends."""
        text = added(path, '[policy]\r\nallow = ["x.org"]\r\n')
        assert "\n" not in text.replace("\r\n", "")
        assert 3 == len(load_file(str(path)).policy.allow)

    def test_again(self, path: Path) -> None:
        """A file that lacks nothing is not even touched."""
        text = "[policy]\nallow=[ ]\n"
        path.write_text(text)
        before = path.stat()
        assert not PolicyFile.open(str(path)).add(Lesson())
        assert (before.st_ino, before.st_mtime_ns) == (path.stat().st_ino, path.stat().st_mtime_ns)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('[policy]\ndefault = "allow"\n', Default.ALLOW),
            ("[policy]\n", Default.PUBLIC),
            ("policy = {}\n", Default.PUBLIC),
            ("mark = 1\n", Default.DENY),
        ],
    )
    def test_default(self, path: Path, text: str, expected: Default) -> None:
        """What is there keeps its meaning: `exec` takes a policy without default for public."""
        path.write_text(text)
        file = PolicyFile.open(str(path))
        assert (expected, expected) == (file.default, file.policy.default)

    gaps = st.text("\n\t ", max_size=3)
    comments = st.sampled_from(["", "# c\n", '# it\'s, "so" ]\n', "#\n"])
    quoted = st.sampled_from(['"x.org"', "'*.y.org:80'", '"""z"""', '"\\u0061"'])
    pieces = st.tuples(gaps, comments, quoted, gaps, comments)

    @given(
        head=st.sampled_from(["", "# top\n\n", 'mark = 1 # "x\n', "[limits]\n\n"]),
        items=st.lists(pieces, max_size=4),
        comma=st.booleans(),
        tail=st.tuples(gaps, comments, gaps),
        foot=st.sampled_from(["", "# end", "\n# end\n", "\n[inbound_source]\n", 'ech = "deny"']),
    )
    def test_anything(
        self,
        head: str,
        items: list[tuple[str, ...]],
        comma: bool,
        tail: tuple[str, ...],
        foot: str,
    ) -> None:
        """However a list is written: nothing goes, nothing changes, everything is there."""
        inside = ",".join("".join(each) for each in items)
        inside += "," if comma and items else ""
        before = f"{head}[policy]\nallow = [{inside}{''.join(tail)}]\n{foot}"
        try:
            raw = tomllib.loads(before)
        except tomllib.TOMLDecodeError:
            assume(condition=False)
        file = PolicyFile("p", before, Policy(), Default.DENY)
        after = file.having(LESSON)
        found = tomllib.loads(after)
        assert [*raw["policy"]["allow"], "a.org:443", "db.corp:5432"] == found["policy"]["allow"]
        assert ["db.corp"] == found["policy"]["private_names"]
        rest = iter(after)
        assert all(each in rest for each in before)


class TestUnfit:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("[policy\n", "not valid TOML"),
            ("[policy]\nallow = [1]\n", "expected a rule"),
            ("[policy]\nalow = []\n", "no such key; did you mean allow?"),
            ("policy = 1\n", "expected a table"),
            ('[policy]\nallow = ["a:b"]\n', "not ports"),
        ],
    )
    def test_no_policy(self, path: Path, text: str, expected: str) -> None:
        """What is no configuration is refused before anything is learned, and stays."""
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"{path}.*{expected}"):
            PolicyFile.open(str(path))
        assert text == path.read_text()

    @pytest.mark.parametrize(
        ("place", "expected"),
        [
            ("none/policy.toml", "there is no directory"),
            (".", "not a regular file"),
            ("/dev/null", "not a regular file"),
            ("a\0b", "can't be used"),
            ("x" * 300, "can't be used"),
        ],
    )
    def test_no_place(self, tmp_path: Path, place: str, expected: str) -> None:
        """So is what can't be written to."""
        with pytest.raises(ConfigError, match=expected):
            PolicyFile.open(str(tmp_path / place))

    @pytest.mark.parametrize(
        ("right", "expected"), [("policy.toml", "not writable"), ("", "is not writable, and")]
    )
    def test_rights(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, right: str, expected: str
    ) -> None:
        """So is what this user may not write to."""
        path.touch()
        refused = path.parent / right
        monkeypatch.setattr(os, "access", lambda asked, _: Path(asked) != refused)
        with pytest.raises(ConfigError, match=expected):
            PolicyFile.open(str(path))


class TestWritten:
    def test_keeps(self, path: Path) -> None:
        """A file keeps its mode; a link stays one."""
        path.write_text("[policy]\n")
        path.chmod(0o604)
        link = path.with_name("link")
        link.symlink_to(path)
        PolicyFile.open(str(link)).add(LESSON)
        assert link.is_symlink()
        assert 0o604 == stat.S_IMODE(path.stat().st_mode)
        assert ["link", "policy.toml"] == sorted(each.name for each in path.parent.iterdir())

    def test_all_or_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where writing fails, the file is as it was, and nothing lies about."""
        path.write_text("[policy]\n")
        file = PolicyFile.open(str(path))

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match="can't be written: No space left on device"):
            file.add(LESSON)
        assert [path] == list(path.parent.iterdir())
        assert "[policy]\n" == path.read_text()
