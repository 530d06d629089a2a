"""What does a TOML file configure?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.config.checking import convert
from sidecar.config.rule_places import with_rules
from sidecar.errors import ConfigError

if TYPE_CHECKING:
    from sidecar.config.tree import Config

__all__ = ["load_file", "load_text"]

# Bytes. A hundred thousand policy rules are some 4 MB; what is longer is no
# configuration but a wrong path (/dev/zero, a log).
_FILE_SIZE_MAX = 16 * 1024 * 1024


def load_file(path: str, bad_rules: list[ConfigError] | None = None) -> Config:
    """Read a TOML file.

    Args:
        path: Its name.
        bad_rules: Gets an error for each text that is no rule, with its line; such
            rules are left out. Without it, the first is raised.

    Raises:
        ConfigError: It can't be read, is not TOML, has a key that does not exist
            or a value that can't be used.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_FILE_SIZE_MAX + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(path, None, None, f"can't be read: {reason}") from None
    if len(content) > _FILE_SIZE_MAX:
        raise ConfigError(path, None, None, f"longer than {_FILE_SIZE_MAX} bytes; not read")
    return load_text(content, path, bad_rules)


def load_text(content: bytes, path: str, bad_rules: list[ConfigError] | None = None) -> Config:
    """Read what is in a TOML file.

    Args:
        content: All of it.
        path: Its name, for what is said of it.
        bad_rules: As for `load_file`.

    Raises:
        ConfigError: As there.
    """
    # Python's own tomllib, compiled: a hundred thousand rules take a quarter of the time.
    # Most runs of `sidecar exec` read no file.
    import tomli

    try:
        text = content.decode()
        raw = tomli.loads(text)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, None, None, f"not UTF-8 (at line {line})") from None
    except (ValueError, RecursionError) as error:
        # ValueError and RecursionError themselves: numbers of thousands of digits,
        # arrays nested as deep as the stack.
        last_line = content.count(b"\n") + 1
        problem = str(error).replace("at end of document", f"at line {last_line}, the last")
        raise ConfigError(path, None, None, f"not valid TOML: {problem}") from None
    faults: list[ConfigError] = []
    rules_read = with_rules(raw, path, text, faults)
    if faults and bad_rules is None:
        raise faults[0]
    if bad_rules is not None:
        bad_rules += faults
    return convert(rules_read, path)
