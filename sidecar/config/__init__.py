"""The whole configuration as one typed tree, from TOML and from flags.

    tree          what can be configured, with which bounds
    http          likewise of the HTTP proxy
    checking      whether a raw tree fits it, and which value doesn't
    rule_places   on which line of its file each rule stands
    file          what a TOML file configures
    flags         what the command line makes of it
    learning      a file that rules are added to

A file and the command line's flags build the same `Config`. Every value is checked
here, once, and every error is a `ConfigError` that names the source, the dotted key
and the value. Nothing is kept between calls, so that a file can be loaded again while
an earlier value is in force.

docs/reference/configuration.md is the description for users.
"""

from sidecar.config.file import load_file
from sidecar.config.flags import COMMAND_LINE, load, merge_flags
from sidecar.config.http import HttpConfig, HttpLimits
from sidecar.config.tree import (
    DEFAULT_HTTP_PROXY,
    Config,
    Forward,
    InboundSource,
    Limits,
    OpenFlows,
    PolicyConfig,
    Verify,
)

__all__ = [
    "COMMAND_LINE",
    "DEFAULT_HTTP_PROXY",
    "Config",
    "Forward",
    "HttpConfig",
    "HttpLimits",
    "InboundSource",
    "Limits",
    "OpenFlows",
    "PolicyConfig",
    "Verify",
    "load",
    "load_file",
    "merge_flags",
]
