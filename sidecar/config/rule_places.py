"""On which line of its file does each rule stand?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sidecar.errors import AddressError, ConfigError
from sidecar.policy import Rule, parse_name_rule, parse_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ListPlace", "find_lists", "with_rules"]

_RULE_KEYS: dict[str, Callable[[str, str], Rule]] = {
    "allow": parse_rule,
    "deny": parse_rule,
    "private_names": parse_name_rule,
}
# A comment, a string in any of TOML's four forms, a key that holds rules, the end of
# an array. (The long forms first: they start like an empty short one.)
_TOKEN = re.compile(
    r"""
    \#[^\n]*
    | (?P<string> \"{3} (?s:\\.|.)*? \"{3,5} | \'{3} (?s:.)*? \'{3,5}
                | "(?:[^"\\\n]|\\.)*" | '[^'\n]*' )
    | (?<![\w-]) (?P<key> allow | deny | private_names ) (?=[ \t]*=)
    | (?P<end> \] )
    """,
    re.VERBOSE,
)
_EQUALS = re.compile(r"[ \t]*[.=]")


def with_rules(
    raw: dict[str, Any], path: str, text: str, faults: list[ConfigError]
) -> dict[str, Any]:
    """Read the rules of a file, each with the line where it stands.

    Args:
        raw: The file's tree; stays as it is.
        path: Its name.
        text: Its text.
        faults: Gets an error for each text that is no rule; the source is ``path:line``.

    Returns:
        The tree with rules in the place of their texts.
    """
    table = raw.get("policy")
    if not isinstance(table, dict):
        return raw
    lines = _lines_of_rules(text)
    read = dict(table)
    for key, parse in _RULE_KEYS.items():
        texts = table.get(key)
        if not isinstance(texts, list):
            continue
        at = lines[key]
        read[key] = rules = []
        for index, item in enumerate(texts):
            if not isinstance(item, str):
                rules.append(item)
                continue
            place = f"{path}:{at[index]}" if index < len(at) else path
            try:
                rules.append(parse(item, place))
            except AddressError as error:
                fault = ConfigError(place, f"policy.{key}[{index}]", item, error.problem)
                faults.append(fault)
    return {**raw, "policy": read}


@dataclass(frozen=True, slots=True)
class ListPlace:
    """Where a list of rules is in a text.

    Attributes:
        after: The position behind the last rule's quotes; None if there is no rule.
        end: The position of the closing bracket.
    """

    after: int | None
    end: int


def find_lists(text: str) -> dict[str, ListPlace]:
    """Find the lists of rules, by their keys; not those that aren't there.

    Args:
        text: Valid TOML. No other table than [policy] has these keys.
    """
    lists: dict[str, ListPlace] = {}
    after: int | None = None
    for key, token in _tokens_of_lists(text):
        if token.lastgroup == "end":
            lists[key] = ListPlace(after, token.start())
            after = None
        else:
            after = token.end()
    return lists


def _lines_of_rules(text: str) -> dict[str, list[int]]:
    """Find the lines on which the strings in each list of rules start.

    Args:
        text: As `find_lists` takes it.
    """
    lines: dict[str, list[int]] = {key: [] for key in _RULE_KEYS}
    line, counted = 1, 0
    for key, token in _tokens_of_lists(text):
        if token.lastgroup == "string":
            start = token.start()
            line += text.count("\n", counted, start)
            counted = start
            lines[key].append(line)
    return lines


def _tokens_of_lists(text: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Each string and each end of the lists of rules, with the list's key."""
    current: str | None = None
    for token in _TOKEN.finditer(text):
        found = token.lastgroup
        if found == "key":
            current = token[0]
        elif current is None:
            if found == "string" and _EQUALS.match(text, token.end()):
                # A key in quotes.
                key = token[0][1:-1]
                current = key if key in _RULE_KEYS else None
        elif found == "string":
            yield current, token
        elif found == "end":
            yield current, token
            current = None
