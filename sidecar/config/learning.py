"""How does a file get the rules that it lacks, and keep everything else that it has?

Nothing in it is changed or taken away: rules are added at the ends of their lists, each with
its comment. A file that is not there, is empty or has no ``[policy]`` gets one that denies by
default. Whether all that can be done is found out at once, before anything is learned.
"""

from __future__ import annotations

import copy
import os
import re
import stat
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, cast

from sidecar.config.file import load_file, load_text
from sidecar.config.rule_places import find_lists
from sidecar.config.tree import PolicyConfig
from sidecar.errors import ConfigError
from sidecar.policy import Default
from sidecar.policy.learning import LearnedRule, Lesson

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tomlkit.items import Array, Table

    from sidecar.config.rule_places import ListPlace
    from sidecar.policy import Policy

__all__ = ["PolicyFile", "alone", "policy_text"]

_HEADER = """\
# What a command may connect to, as sidecar exec --learn saw it. Edit it as you like: learning
# again adds what is missing, and takes nothing away.
"""
_INDENT = "    "
# Seconds for others who write the same file, of which each takes some milliseconds.
_PATIENCE = 10.0
_AGAIN = 0.02
_EXAMPLE = Lesson((LearnedRule("example.invalid:1", "x"),), (LearnedRule("example.invalid", "x"),))


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A file that rules are added to.

    Attributes:
        path: As it was given.
        text: What is in it; None if there is no such file.
        policy: What it allows, as `sidecar exec --policy` takes it; everything is denied
            if it says nothing.
        default: Its default, as `policy` has it.
    """

    path: str
    text: str | None
    policy: Policy
    default: Default

    @classmethod
    def open(cls, path: str) -> PolicyFile:
        """Read a file and make sure that rules can be added.

        Args:
            path: Its name; it need not be there yet.

        Raises:
            ConfigError: It is no configuration, its rules can't be added to, or it
                can't be written.
        """
        if not _check_place(path):
            # By the end of a run there may be one, and then nothing can be imported any more.
            text = policy_text(Lesson())
            cls(path, text, load_text(text.encode(), path).policy.build(), Default.DENY).having(
                _EXAMPLE
            )
            return cls(path, None, PolicyConfig(default=Default.DENY).build(), Default.DENY)
        config = load_file(path).policy
        try:
            text = Path(path).read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(path, None, None, f"can't be read: {error}") from None
        there = "policy" in tomllib.loads(text)
        default = config.default or (Default.PUBLIC if there else Default.DENY)
        opened = cls(path, text, config.build(default), default)
        opened.having(_EXAMPLE)
        return opened

    def having(self, lesson: Lesson) -> str:
        """The text with rules added.

        Raises:
            ConfigError: They can't be.
        """
        if self.text is None:
            return _HEADER + policy_text(lesson)
        try:
            written = _added(self.text, lesson)
            found = tomllib.loads(written)
        except Exception as error:  # noqa: BLE001 - the library has errors of many kinds
            raise self._unfit(str(error)) from None
        rest = iter(written)
        kept = all(each in rest for each in self.text)
        if not kept or found != _expected(tomllib.loads(self.text), lesson):
            raise self._unfit("write allow and private_names as lists in [policy], if only empty")
        return written

    def add(self, lesson: Lesson) -> bool:
        """Add rules to the file, all at once or not at all.

        Returns:
            Whether it was written: a file that lacks nothing is not touched.

        Raises:
            ConfigError: It can't be written.
        """
        if self.text is not None and not lesson and "policy" in tomllib.loads(self.text):
            return False
        written = self.having(lesson)
        try:
            _replace(self.path, written.encode())
        except OSError as error:
            raise ConfigError(
                self.path, None, None, f"can't be written: {error.strerror}"
            ) from None
        return True

    def _unfit(self, why: str) -> ConfigError:
        problem = f"rules can't be added to the way that [policy] is written here: {why}"
        return ConfigError(self.path, None, None, problem)


@contextmanager
def alone(path: str) -> Iterator[None]:
    """While it lasts, others who learn into the same file wait.

    Raises:
        ConfigError: Somebody else has taken too long.
    """
    # The directory's lock: the file itself is replaced.
    directory = os.path.dirname(os.path.realpath(path))  # noqa: PTH120 - it need not be there
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(path, None, None, f"{directory}: {error.strerror}") from None
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not _locks(descriptor):
        if time.monotonic() > deadline:
            problem = f"somebody else has held its directory's lock for {_PATIENCE:g} s"
            raise ConfigError(path, None, None, problem)
        # Nothing tells, but a call that can't be given up.
        time.sleep(_AGAIN)


def _locks(descriptor: int) -> bool:
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks.
        return True
    return True


# The text


def policy_text(lesson: Lesson) -> str:
    """Write a whole ``[policy]`` that denies all but what was learned."""
    lines = ["[policy]", 'default = "deny"']
    lines += [f"allow = {_list(lesson.allow)}"]
    if lesson.private_names:
        lines += ["# These may lead to addresses that are not public."]
        lines += [f"private_names = {_list(lesson.private_names)}"]
    return "\n".join(lines) + "\n"


def _list(rules: Sequence[LearnedRule]) -> str:
    if not rules:
        return "[]"
    # No rule needs escapes.
    items = [f'{_INDENT}"{rule.text}",' for rule in rules]
    width = max(map(len, items))
    lines = [f"{item:{width}} # {rule.comment}" for item, rule in zip(items, rules, strict=True)]
    return "\n".join(("[", *lines, "]"))


def _added(text: str, lesson: Lesson) -> str:
    wanted = {"allow": lesson.allow, "private_names": lesson.private_names}
    if "policy" not in tomllib.loads(text):
        gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
        return _with_newlines_of(text, text + gap + policy_text(lesson))
    lists = find_lists(text)
    missing = {key: rules for key, rules in wanted.items() if rules and key not in lists}
    written = text
    # From the last on, so that the places before it stay true.
    for key, place in sorted(lists.items(), key=lambda each: -each[1].end):
        if rules := wanted.get(key):
            written = _extended(written, place, rules)
    return _with_newlines_of(text, _with_keys(written, missing) if missing else written)


def _extended(text: str, place: ListPlace, rules: Sequence[LearnedRule]) -> str:
    """Add to a list, before its end, in lines of their own."""
    end, after = place.end, place.after
    line = text.rfind("\n", 0, end) + 1
    alone = not text[line:end].strip(" \t")
    at = line if alone else end
    # Only white space and comments are left behind the last rule, and perhaps a comma.
    needs_comma = after is not None and "," not in re.sub(r"#[^\n]*", "", text[after:end])
    head = text[:at] if not needs_comma else f"{text[:after]},{text[after:at]}"
    indent = _indent_before(text, after)
    added = "".join(f'{indent}"{rule.text}", # {rule.comment}\n' for rule in rules)
    return f"{head}{'' if alone else chr(10)}{added}{text[at:]}"


def _indent_before(text: str, after: int | None) -> str:
    """How the line of a rule begins, if that is where the rule does."""
    if after is not None:
        line = text[text.rfind("\n", 0, after) + 1 : after]
        if found := re.fullmatch(r"([ \t]+)([\"']).*", line):
            return found[1]
    return _INDENT


def _with_keys(text: str, missing: Mapping[str, Sequence[LearnedRule]]) -> str:
    """Add lists that aren't there yet."""
    import tomlkit

    document = tomlkit.parse(text)
    policy = cast("Table", document["policy"])
    for key, rules in missing.items():
        array = tomlkit.value(_list(rules))
        _add_key(policy, key, cast("Array", array))
    return document.as_string()


def _add_key(policy: Table, key: str, array: Array) -> None:
    """Add a key behind the last one; what stands behind that is about the next table."""
    from tomlkit.items import Table

    tail = []
    if isinstance(policy, Table):
        body = policy.value.body
        while body and body[-1][0] is None:
            tail.append(body.pop())
    policy.add(key, array)
    for _, item in reversed(tail):
        policy.value.append(None, item)


def _with_newlines_of(text: str, written: str) -> str:
    """Have all lines end as they all do."""
    if "\r\n" in text and not re.search(r"(?<!\r)\n", text):
        return re.sub(r"(?<!\r)\n", "\r\n", written)
    return written


def _expected(raw: dict[str, Any], lesson: Lesson) -> dict[str, Any]:
    expected = copy.deepcopy(raw)
    policy = expected.setdefault("policy", {"default": "deny", "allow": []})
    for key, rules in (("allow", lesson.allow), ("private_names", lesson.private_names)):
        if rules:
            policy[key] = [*policy.get(key, []), *(rule.text for rule in rules)]
    return expected


# The file


def _check_place(path: str) -> bool:
    """Find out whether the file could be written; and whether it is there."""
    problem = None
    status = None
    try:
        target = Path(os.path.realpath(path))
        with suppress(FileNotFoundError):
            status = target.stat()
        if status is not None and not stat.S_ISREG(status.st_mode):
            problem = "not a regular file, which is what can be learned into"
        elif status is not None and not os.access(target, os.W_OK):
            problem = "not writable"
        elif not target.parent.is_dir():
            problem = f"there is no directory {target.parent}"
        elif not os.access(target.parent, os.W_OK | os.X_OK):
            problem = f"the directory {target.parent} is not writable, and the file is replaced"
    except (OSError, ValueError) as error:
        problem = f"can't be used: {getattr(error, 'strerror', None) or error}"
    if problem is not None:
        raise ConfigError(path, None, None, problem)
    return status is not None


def _replace(path: str, data: bytes) -> None:
    """Put a file in another's place: whoever reads it finds the one or the other."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{token_hex(4)}")
    old = target.stat() if target.exists() else None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o666 if old is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if old is not None:
                with suppress(PermissionError):
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
