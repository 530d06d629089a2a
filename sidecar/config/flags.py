"""What does the command line make of what the file says?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sidecar.config.checking import convert
from sidecar.config.file import load_file
from sidecar.config.tree import Config, Forward
from sidecar.errors import AddressError, ConfigError
from sidecar.policy import parse_rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.config.http import HttpConfig
    from sidecar.config.tree import PolicyConfig
    from sidecar.policy import Rule

__all__ = ["COMMAND_LINE", "load", "merge_flags"]

COMMAND_LINE = "command line"

_FORWARD_PARTS = 2


def load(
    path: str | None = None,
    *,
    outbound: str | None = None,
    inbound: str | None = None,
    sni_proxy: str | None = None,
    http_proxy: str | None = None,
    forward: Sequence[str] = (),
    access_log: str | None = None,
    log_paths: bool = False,
    default: str | None = None,
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
    proxy_auth: Sequence[str] = (),
    upstream_proxy: str | None = None,
    no_proxy: Sequence[str] = (),
) -> Config:
    """Build the configuration from a file, if there is one, and flags.

    Args:
        path: The TOML file; None for none.
        outbound, inbound, sni_proxy, http_proxy, forward, access_log, log_paths, default, allow,
            deny, proxy_auth, upstream_proxy, no_proxy: As `merge_flags` takes them.

    Raises:
        ConfigError: A file that can't be read, or a value that can't be used.
    """
    return merge_flags(
        Config() if path is None else load_file(path),
        outbound=outbound,
        inbound=inbound,
        sni_proxy=sni_proxy,
        http_proxy=http_proxy,
        forward=forward,
        access_log=access_log,
        log_paths=log_paths,
        default=default,
        allow=allow,
        deny=deny,
        proxy_auth=proxy_auth,
        upstream_proxy=upstream_proxy,
        no_proxy=no_proxy,
    )


def merge_flags(
    config: Config,
    *,
    outbound: str | None = None,
    inbound: str | None = None,
    sni_proxy: str | None = None,
    http_proxy: str | None = None,
    forward: Sequence[str] = (),
    access_log: str | None = None,
    log_paths: bool = False,
    default: str | None = None,
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
    proxy_auth: Sequence[str] = (),
    upstream_proxy: str | None = None,
    no_proxy: Sequence[str] = (),
) -> Config:
    """Lay flags over a configuration: a flag beats the file, lists add up.

    Args:
        config: What the file said, or `Config()`.
        outbound, inbound, sni_proxy, http_proxy, access_log, default, upstream_proxy: The flags'
            values; None where not given.
        forward: Each ``LISTEN CONNECT``, two endpoint strings with white space
            between them.
        log_paths: Whether the flag was given.
        allow, deny: Each a rule.
        proxy_auth: Each a password checker.
        no_proxy: Each a host, or several with commas between them.

    Raises:
        ConfigError: A flag's value can't be used; the key is the flag.
    """
    given: dict[str, object] = {
        name: value
        for name, value in (
            ("outbound", outbound),
            ("inbound", inbound),
            ("sni_proxy", sni_proxy),
            ("http_proxy", http_proxy),
            ("access_log", access_log),
        )
        if value is not None
    }
    for name, value in given.items():
        convert({name: value}, COMMAND_LINE, key="--" + name.replace("_", "-"))
    forwards = tuple(_forward_from_flag(text) for text in forward)
    policy = _merge_policy(config.policy, default, allow, deny)
    return msgspec.structs.replace(
        config,
        **given,
        forward=config.forward + forwards,
        log_paths=log_paths or config.log_paths,
        policy=policy,
        http=_merge_http(config.http, proxy_auth, upstream_proxy, no_proxy),
    )


def _merge_http(
    http: HttpConfig, auth: Sequence[str], upstream_proxy: str | None, no_proxy: Sequence[str]
) -> HttpConfig:
    for text in auth:
        convert({"http": {"auth": [text]}}, COMMAND_LINE, key="--proxy-auth")
    if upstream_proxy is not None:
        table = {"http": {"upstream_proxy": upstream_proxy}}
        convert(table, COMMAND_LINE, key="--upstream-proxy")
    return msgspec.structs.replace(
        http,
        auth=http.auth + tuple(auth),
        upstream_proxy=http.upstream_proxy if upstream_proxy is None else upstream_proxy,
        no_proxy=http.no_proxy + tuple(no_proxy),
    )


def _merge_policy(
    policy: PolicyConfig, default: str | None, allow: Sequence[str], deny: Sequence[str]
) -> PolicyConfig:
    chosen = policy.default
    if default is not None:
        table = {"policy": {"default": default}}
        chosen = convert(table, COMMAND_LINE, key="--default").policy.default
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
