"""Does a raw tree fit the typed one, and if not, which of its values doesn't?"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from sidecar.addresses import parse_ip
from sidecar.config.tree import Config
from sidecar.errors import ConfigError
from sidecar.policy import NameRule, Rule, parse_name_rule, parse_rule

__all__ = ["convert"]

# What stands there may be a password: it comes back in no error.
_SECRET_KEYS = ("http.auth", "http.upstream_proxy")


def convert(raw: dict[str, Any], source: str, key: str | None = None) -> Config:
    """Check a raw tree. `key`, if given, stands in errors instead of the key found."""
    try:
        return msgspec.convert(raw, Config, dec_hook=_decode)
    except msgspec.ValidationError as error:
        found, value, problem = _find_fault(raw, Config, "") or ("", None, str(error))
        shown = None if found.startswith(_SECRET_KEYS) else value
        raise ConfigError(source, key or found or None, shown, problem) from None


def _decode(kind: type, value: object) -> object:
    """Decode what msgspec doesn't know: addresses, canonical spellings only, and rules."""
    if issubclass(kind, Rule):
        # A file's rules have been read by now, with their places.
        if isinstance(value, str):
            return parse_name_rule(value) if kind is NameRule else parse_rule(value)
        if isinstance(value, kind):
            return value
        raise TypeError("not a rule")
    address = parse_ip(value) if isinstance(value, str) else None
    if not isinstance(address, kind):
        raise TypeError(f"not an {kind.__name__}")
    return address


def _find_fault(value: object, hint: Any, key: str) -> tuple[str, object, str] | None:
    """Find the innermost value that does not fit its type.

    Args:
        value: A raw value.
        hint: Its type, with the `Meta` that describes it.
        key: Its dotted key.

    Returns:
        The dotted key, the value (None if none was given) and what is wrong with
        it; None if the value fits.
    """
    try:
        msgspec.convert(value, hint, dec_hook=_decode)
    except msgspec.ValidationError:
        pass
    else:
        return None
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if isinstance(value, list) and get_origin(kind) is tuple:
        item_hint = get_args(kind)[0]
        faults = (_find_fault(item, item_hint, f"{key}[{i}]") for i, item in enumerate(value))
        return next(filter(None, faults))
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, Struct):
        return _find_fault_in_table(value, kind, f"{key}." if key else "")
    return key, value, f"expected {_description(hint)}"


def _find_fault_in_table(
    table: dict[str, Any], kind: type[Struct], prefix: str
) -> tuple[str, object, str]:
    """Find the first fault in a table that is known to have one."""
    hints = get_type_hints(kind, include_extras=True)
    for name, value in table.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints)
            known = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(hints)}"
            return prefix + name, value, f"no such key; {known}"
        if fault := _find_fault(value, hints[name], prefix + name):
            return fault
    missing = next(name for name in kind.__struct_fields__ if name not in table)
    return prefix + missing, None, f"missing; expected {_description(hints[missing])}"


def _description(hint: Any) -> str:
    """Return what a type's `Meta` says it is, also where None is allowed besides."""
    own = getattr(hint, "__metadata__", ())
    described = [meta.description for meta in own if isinstance(meta, Meta) and meta.description]
    return described[0] if described else _description(get_args(hint)[0])
