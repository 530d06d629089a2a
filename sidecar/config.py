"""What can be configured, with which bounds, and from where: one typed tree.

A TOML file and the command line's flags build the same `Config`. Every value is
checked here, once, and every error is a `ConfigError` that names the source, the
dotted key and the value. Nothing is kept between calls, so that a file can be
loaded again while an earlier value is in force.
"""

from __future__ import annotations

import difflib
import re
import sys
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from sidecar.addresses import parse_ip
from sidecar.errors import AddressError, ConfigError
from sidecar.linux import OWN_MARK
from sidecar.policy import Choice, Default, NameRule, Policy, Rule, parse_name_rule, parse_rule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "COMMAND_LINE",
    "Config",
    "Forward",
    "InboundSource",
    "Limits",
    "OpenFlows",
    "PolicyConfig",
    "Verify",
    "load",
    "load_file",
    "merge_flags",
]

COMMAND_LINE = "command line"

# Bytes. A hundred thousand policy rules are some 4 MB; what is longer is no
# configuration but a wrong path (/dev/zero, a log).
_FILE_SIZE_MAX = 16 * 1024 * 1024
_FORWARD_PARTS = 2

# What a description says is what the error says: "expected " + description.
_Endpoint = Annotated[
    str, Meta(min_length=1, description='an endpoint string, like "transparent:15001"')
]
_ConnectTimeout = Annotated[
    float, Meta(gt=0, le=3600, description="a number of seconds, above 0 and at most 3600")
]
_Timeout = Annotated[
    float,
    Meta(
        gt=0,
        le=31_536_000,
        description="a number of seconds, above 0 and at most 31536000 (leave it out for no limit)",
    ),
]


class Forward(Struct, frozen=True, forbid_unknown_fields=True):
    """One static relay.

    Attributes:
        listen: Server endpoint string.
        connect: Client endpoint string.
    """

    listen: _Endpoint
    connect: _Endpoint


class InboundSource(Struct, frozen=True, forbid_unknown_fields=True):
    """From which address inbound connections reach the application.

    Interception rules let these addresses pass, so what sidecar hands to the
    application is not intercepted again (Istio's pass-through sources).

    Attributes:
        enabled: False to dial the application from whatever address the kernel picks.
        ipv4, ipv6: The source by family.
    """

    enabled: Annotated[bool, Meta(description="true or false")] = True
    ipv4: Annotated[IPv4Address, Meta(description='an IPv4 address, like "127.0.0.6"')] = (
        IPv4Address("127.0.0.6")
    )
    ipv6: Annotated[IPv6Address, Meta(description='an IPv6 address, like "::6"')] = IPv6Address(
        "::6"
    )


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What keeps one process bounded.

    Attributes:
        connect_timeout: Seconds until an upstream that does not answer is given up.
        silence: Seconds that a client may stay silent, where its name matters, before
            it is taken for one whose server speaks first.
        patience: Seconds from a client's first byte to its name, where that matters.
        idle_timeout: Seconds without a byte either way until a flow is ended; None
            for no limit, where keepalive finds the dead ones.
        half_close_timeout: Seconds that one direction may stay open after the
            other has ended; None for no limit.
        max_connections: Flows at once, then accepting pauses; None for 90 % of
            RLIMIT_NOFILE.
        keepalive: Seconds of silence until the kernel's first keepalive probe.
        accepts_per_wakeup: How many connections one listener takes before others
            get their turn.
        access_log_backlog: Access log lines kept while the log can't be written;
            beyond it lines are dropped and counted.
    """

    connect_timeout: _ConnectTimeout = 10.0
    # More than a round trip round the world, less than a person notices.
    silence: _ConnectTimeout = 0.25
    patience: _ConnectTimeout = 5.0
    idle_timeout: _Timeout | None = None
    half_close_timeout: _Timeout | None = None
    max_connections: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=10_000_000,
                description="a number of connections from 1 to 10000000 "
                "(leave it out for 90 % of the descriptor limit)",
            ),
        ]
        | None
    ) = None
    # Below the idle limits of common NAT devices and cloud load balancers (350 s).
    # The bound is the kernel's: MAX_TCP_KEEPIDLE, net/tcp.h.
    keepalive: Annotated[
        int, Meta(ge=1, le=32767, description="a whole number of seconds from 1 to 32767")
    ] = 60
    # One is fair but costs a wake-up each; a hundred starve the connections that are
    # open already.
    accepts_per_wakeup: Annotated[
        int, Meta(ge=1, le=1024, description="a number of connections from 1 to 1024")
    ] = 16
    # About 400 bytes a line: 13 MB, or 4 s of 8000 connections a second.
    access_log_backlog: Annotated[
        int, Meta(ge=1, le=10_000_000, description="a number of lines from 1 to 10000000")
    ] = 32_768


class Verify(Enum):
    """How an address is shown to belong to the name that an allow rests on."""

    REDIAL = "redial"
    CERTIFICATE = "certificate"
    OFF = "off"


class OpenFlows(Enum):
    """What a reload does to open flows that the new policy denies."""

    LEAVE = "leave"
    CLOSE = "close"


_Rules = Annotated[
    tuple[Annotated[Rule, Meta(description='a rule, like "pypi.org:443" or "10.0.0.0/8"')], ...],
    Meta(description='a list of rules, like ["*.example.org:443", "10.0.0.0/8:5432"]'),
]


class PolicyConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Which connections may be made.

    Attributes:
        default: What happens to what no rule matches; None to leave that to who runs:
            the proxy allows, `sidecar exec` allows what is public.
        allow, deny: Rules, with their places. Deny beats allow.
        private_names: Names that allow rules may lead to addresses that are not public.
        verify: How a name is held against the address.
        ech: What happens where the name matters and may be a front for another.
        no_name: What happens where a name matters and the client gives none.
        open_flows: What a reload does to flows that it denies.
        steps: Names of Twisted plugins that are asked of every flow that is allowed.
    """

    default: Annotated[Default, Meta(description='"allow", "deny" or "public"')] | None = None
    allow: _Rules = ()
    deny: _Rules = ()
    private_names: Annotated[
        tuple[Annotated[NameRule, Meta(description='a name, like "*.corp.example"')], ...],
        Meta(description='a list of names, like ["*.corp.example"]'),
    ] = ()
    verify: Annotated[Verify, Meta(description='"redial", "certificate" or "off"')] = Verify.REDIAL
    ech: Annotated[Choice, Meta(description='"allow" or "deny"')] = Choice.ALLOW
    no_name: Annotated[Choice, Meta(description='"allow" or "deny"')] = Choice.DENY
    open_flows: Annotated[OpenFlows, Meta(description='"leave" or "close"')] = OpenFlows.LEAVE
    steps: Annotated[
        tuple[Annotated[str, Meta(description="a plugin's name")], ...],
        Meta(description='a list of names of decision steps, like ["office-hours"]'),
    ] = ()

    def build(self, default: Default = Default.ALLOW) -> Policy:
        """Make the policy that decides.

        Args:
            default: What an unset `default` means here.
        """
        return Policy(
            default=self.default or default,
            allow=self.allow,
            deny=self.deny,
            private_names=self.private_names,
            ech=self.ech,
            no_name=self.no_name,
        )


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be configured.

    Attributes:
        outbound: Server endpoint string for what programs here connect to.
        inbound: Server endpoint string for what connects to programs here.
        sni_proxy: Server endpoint string for clients that are relayed to the host that
            their TLS or HTTP names.
        forward: Static relays.
        observers: Names of Twisted plugins that are told of each flow's end.
        access_log: A path, "-" for standard output, None for no log.
        mark: The fwmark of outgoing sockets (SO_MARK); 0 for none.
        inbound_source: From where the application sees inbound connections come.
        limits: What keeps the process bounded.
        policy: Which connections may be made.
    """

    outbound: _Endpoint | None = None
    inbound: _Endpoint | None = None
    sni_proxy: _Endpoint | None = None
    forward: Annotated[
        tuple[
            Annotated[Forward, Meta(description='a table with listen = "…" and connect = "…"')],
            ...,
        ],
        Meta(description="[[forward]] tables, each with listen and connect"),
    ] = ()
    observers: Annotated[
        tuple[Annotated[str, Meta(description="a plugin's name")], ...],
        Meta(description='a list of names of flow observers, like ["statsd"]'),
    ] = ()
    access_log: (
        Annotated[
            str,
            Meta(
                min_length=1,
                pattern=r"^[^\x00]*$",
                description='a path, or "-" for standard output',
            ),
        ]
        | None
    ) = None
    mark: Annotated[
        int, Meta(ge=0, le=2**32 - 1, description="a whole number from 0 to 0xffffffff")
    ] = OWN_MARK
    inbound_source: Annotated[InboundSource, Meta(description="a table: [inbound_source]")] = (
        InboundSource()
    )
    limits: Annotated[Limits, Meta(description="a table: [limits]")] = Limits()
    policy: Annotated[PolicyConfig, Meta(description="a table: [policy]")] = PolicyConfig()


def load(
    path: str | None = None,
    *,
    outbound: str | None = None,
    inbound: str | None = None,
    sni_proxy: str | None = None,
    forward: Sequence[str] = (),
    access_log: str | None = None,
    default: str | None = None,
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
) -> Config:
    """Build the configuration from a file, if there is one, and flags.

    Args:
        path: The TOML file; None for none.
        outbound, inbound, sni_proxy, forward, access_log, default, allow, deny: As `merge_flags`
            takes them.

    Raises:
        ConfigError: A file that can't be read, or a value that can't be used.
    """
    return merge_flags(
        Config() if path is None else load_file(path),
        outbound=outbound,
        inbound=inbound,
        sni_proxy=sni_proxy,
        forward=forward,
        access_log=access_log,
        default=default,
        allow=allow,
        deny=deny,
    )


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
    try:
        text = content.decode()
        raw = tomllib.loads(text)
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
    rules_read = _with_rules(raw, path, text, faults)
    if faults and bad_rules is None:
        raise faults[0]
    if bad_rules is not None:
        bad_rules += faults
    return _convert(rules_read, path)


def merge_flags(
    config: Config,
    *,
    outbound: str | None = None,
    inbound: str | None = None,
    sni_proxy: str | None = None,
    forward: Sequence[str] = (),
    access_log: str | None = None,
    default: str | None = None,
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
) -> Config:
    """Lay flags over a configuration: a flag beats the file, lists add up.

    Args:
        config: What the file said, or `Config()`.
        outbound, inbound, sni_proxy, access_log, default: The flags' values; None where not given.
        forward: Each ``LISTEN CONNECT``, two endpoint strings with white space
            between them.
        allow, deny: Each a rule.

    Raises:
        ConfigError: A flag's value can't be used; the key is the flag.
    """
    given: dict[str, object] = {
        name: value
        for name, value in (
            ("outbound", outbound),
            ("inbound", inbound),
            ("sni_proxy", sni_proxy),
            ("access_log", access_log),
        )
        if value is not None
    }
    for name, value in given.items():
        _convert({name: value}, COMMAND_LINE, key="--" + name.replace("_", "-"))
    forwards = tuple(_forward_from_flag(text) for text in forward)
    policy = _merge_policy(config.policy, default, allow, deny)
    return msgspec.structs.replace(
        config, **given, forward=config.forward + forwards, policy=policy
    )


def _merge_policy(
    policy: PolicyConfig, default: str | None, allow: Sequence[str], deny: Sequence[str]
) -> PolicyConfig:
    chosen = policy.default
    if default is not None:
        table = {"policy": {"default": default}}
        chosen = _convert(table, COMMAND_LINE, key="--default").policy.default
    return msgspec.structs.replace(
        policy,
        default=chosen,
        allow=policy.allow + tuple(_rule_from_flag("--allow", text) for text in allow),
        deny=policy.deny + tuple(_rule_from_flag("--deny", text) for text in deny),
    )


def _rule_from_flag(flag: str, text: str) -> Rule:
    try:
        return parse_rule(text, flag)
    except AddressError as error:
        raise ConfigError(COMMAND_LINE, flag, text, error.problem) from None


def _forward_from_flag(text: str) -> Forward:
    parts = text.split()
    if len(parts) != _FORWARD_PARTS:
        raise ConfigError(
            COMMAND_LINE,
            "--forward",
            text,
            'expected two endpoint strings, "LISTEN CONNECT", '
            'like "tcp:8001:interface=127.0.0.1 tcp:10.0.0.1:5432"',
        )
    return Forward(*parts)


def _convert(raw: dict[str, Any], source: str, key: str | None = None) -> Config:
    """Check a raw tree. `key`, if given, stands in errors instead of the key found."""
    try:
        return msgspec.convert(raw, Config, dec_hook=_decode)
    except msgspec.ValidationError as error:
        found, value, problem = _find_fault(raw, Config, "") or ("", None, str(error))
        raise ConfigError(source, key or found or None, value, problem) from None


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


def _with_rules(
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


def _lines_of_rules(text: str) -> dict[str, list[int]]:
    """Find the lines on which the strings in each list of rules start.

    Args:
        text: Valid TOML. No other table than [policy] has these keys.
    """
    lines: dict[str, list[int]] = {key: [] for key in _RULE_KEYS}
    current: str | None = None
    line, counted = 1, 0
    for token in _TOKEN.finditer(text):
        found = token.lastgroup
        if found == "string":
            if current is not None:
                start = token.start()
                line += text.count("\n", counted, start)
                counted = start
                lines[current].append(line)
            elif _EQUALS.match(text, token.end()):
                # A key in quotes.
                key = token[0][1:-1]
                current = key if key in lines else None
        elif found == "key":
            current = token[0]
        elif found == "end":
            current = None
    return lines


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
