from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config import (
    COMMAND_LINE,
    Config,
    Forward,
    HttpConfig,
    HttpLimits,
    InboundSource,
    Limits,
    OpenFlows,
    PolicyConfig,
    Verify,
    load,
    load_file,
    merge_flags,
)
from sidecar.config.checking import convert
from sidecar.errors import ConfigError
from sidecar.policy import Choice, Default, NameRule, Rule, parse_name_rule, parse_rule

if TYPE_CHECKING:
    from pathlib import Path

COMPLETE = """
outbound = "transparent:15001"
inbound = "transparent:15006:mode=tproxy"
sni_proxy = "tcp:443"
http_proxy = "tls:3128"
observers = ["statsd"]
access_log = "/var/log/sidecar.jsonl"
log_paths = true
mark = 0x20

[inbound_source]
enabled = false
ipv4 = "127.0.0.7"
ipv6 = "::7"

[limits]
connect_timeout = 2.5
silence = 0.5
patience = 7
idle_timeout = 3600
half_close_timeout = 60
max_connections = 5000
keepalive = 30
accepts_per_wakeup = 4
access_log_backlog = 100

[policy]
default = "public"
allow = ["*.example.org:443"]
deny = ["metadata", "*:25"]
private_names = [".corp.example"]
verify = "certificate"
ca_file = "/etc/ssl/corp.pem"
ech = "deny"
no_name = "allow"
open_flows = "close"
steps = ["quota"]

[http]
auth = ["file:/etc/htpasswd", "unix"]
realm = "the proxy"
upstream_proxy = "http://user:password@proxy.example:3128"
no_proxy = [".corp.example"]

[http.limits]
head_bytes = 8192
head_fields = 50
head_timeout = 5
keepalive_timeout = 30
response_timeout = 100
body_bytes = 1000000
progress_timeout = 30
progress_bytes = 100
client_connections = 20
pool_connections = 0
pool_timeout = 4

[[forward]]
listen = "tcp:8001:interface=127.0.0.1"
connect = "tcp:10.0.0.1:5432"

[[forward]]
listen = "tcp:8002"
connect = "tcp:10.0.0.2:6379"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sidecar.toml"


def refusal(path: Path, text: str) -> ConfigError:
    """Load text that must be refused."""
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_file(str(path))
    assert str(path) == caught.value.source
    assert "\n" not in str(caught.value)
    return caught.value


class TestFile:
    def test_every_key(self, path: Path) -> None:
        """A file that uses every key becomes the tree with every value in its type."""
        path.write_text(COMPLETE)
        expected = Config(
            outbound="transparent:15001",
            inbound="transparent:15006:mode=tproxy",
            forward=(
                Forward("tcp:8001:interface=127.0.0.1", "tcp:10.0.0.1:5432"),
                Forward("tcp:8002", "tcp:10.0.0.2:6379"),
            ),
            sni_proxy="tcp:443",
            http_proxy="tls:3128",
            observers=("statsd",),
            access_log="/var/log/sidecar.jsonl",
            log_paths=True,
            mark=0x20,
            inbound_source=InboundSource(
                enabled=False, ipv4=IPv4Address("127.0.0.7"), ipv6=IPv6Address("::7")
            ),
            limits=Limits(
                connect_timeout=2.5,
                silence=0.5,
                patience=7.0,
                idle_timeout=3600.0,
                half_close_timeout=60.0,
                max_connections=5000,
                keepalive=30,
                accepts_per_wakeup=4,
                access_log_backlog=100,
            ),
            policy=PolicyConfig(
                default=Default.PUBLIC,
                allow=(parse_rule("*.example.org:443", f"{path}:29"),),
                deny=tuple(parse_rule(text, f"{path}:30") for text in ("metadata", "*:25")),
                private_names=(parse_name_rule(".corp.example", f"{path}:31"),),
                verify=Verify.CERTIFICATE,
                ca_file="/etc/ssl/corp.pem",
                ech=Choice.DENY,
                no_name=Choice.ALLOW,
                open_flows=OpenFlows.CLOSE,
                steps=("quota",),
            ),
            http=HttpConfig(
                auth=("file:/etc/htpasswd", "unix"),
                realm="the proxy",
                upstream_proxy="http://user:password@proxy.example:3128",
                no_proxy=(".corp.example",),
                limits=HttpLimits(
                    head_bytes=8192,
                    head_fields=50,
                    head_timeout=5.0,
                    keepalive_timeout=30.0,
                    response_timeout=100.0,
                    body_bytes=1_000_000,
                    progress_timeout=30.0,
                    progress_bytes=100,
                    client_connections=20,
                    pool_connections=0,
                    pool_timeout=4.0,
                ),
            ),
        )
        assert expected == load_file(str(path))

    def test_complete_means_complete(self, path: Path) -> None:
        """The file above leaves out no key that there is."""
        path.write_text(COMPLETE)
        config, default = load_file(str(path)), Config()
        unchanged = [
            name
            for tree, other in (
                (config, default),
                (config.limits, default.limits),
                (config.inbound_source, default.inbound_source),
                (config.policy, default.policy),
                (config.http, default.http),
                (config.http.limits, default.http.limits),
            )
            for name in tree.__struct_fields__
            if getattr(tree, name) == getattr(other, name)
        ]
        assert [] == unchanged

    def test_empty(self, path: Path) -> None:
        """An empty file is the defaults: the documented mark, sources and limits."""
        path.write_text("")
        config = load_file(str(path))
        assert Config() == config
        assert config.mark == 0x539
        assert ("127.0.0.6", "::6") == (
            str(config.inbound_source.ipv4),
            str(config.inbound_source.ipv6),
        )
        assert Limits(connect_timeout=10.0, idle_timeout=None, keepalive=60) == config.limits

    def test_again(self, path: Path) -> None:
        """A file can be loaded again; the earlier value stays what it was."""
        path.write_text("mark = 1")
        first = load_file(str(path))
        path.write_text("mark = 2")
        second = load_file(str(path))
        assert (1, 2) == (first.mark, second.mark)

    def test_values_are_immutable(self) -> None:
        """What is in force can't be changed in place."""
        with pytest.raises(AttributeError):
            Config().mark = 3  # type: ignore[misc]


class TestBadFile:
    @pytest.mark.parametrize(
        ("text", "key", "value", "problem"),
        [
            ("limits.connect_timeout = 'ten'", "limits.connect_timeout", "ten", "number of sec"),
            ("limits.connect_timeout = 0", "limits.connect_timeout", 0, "above 0"),
            ("limits.connect_timeout = true", "limits.connect_timeout", True, "number of sec"),
            ("limits.connect_timeout = 1e9", "limits.connect_timeout", 1e9, "at most 3600"),
            ("limits.idle_timeout = inf", "limits.idle_timeout", float("inf"), "leave it out"),
            ("limits.idle_timeout = -1", "limits.idle_timeout", -1, "above 0"),
            ("limits.half_close_timeout = 0", "limits.half_close_timeout", 0, "above 0"),
            ("limits.max_connections = 0", "limits.max_connections", 0, "from 1"),
            ("limits.max_connections = 1.5", "limits.max_connections", 1.5, "from 1"),
            ("limits.keepalive = 32768", "limits.keepalive", 32768, "1 to 32767"),
            ("limits.accepts_per_wakeup = 0", "limits.accepts_per_wakeup", 0, "1 to 1024"),
            ("limits.access_log_backlog = 0", "limits.access_log_backlog", 0, "lines"),
            ("limits = 3", "limits", 3, "table"),
            ("mark = -1", "mark", -1, "0 to 0xffffffff"),
            ("mark = 0x100000000", "mark", 2**32, "0 to 0xffffffff"),
            ("mark = '0x539'", "mark", "0x539", "whole number"),
            (f"mark = {2**80}", "mark", 2**80, "whole number"),
            ("outbound = 15001", "outbound", 15001, "endpoint string"),
            ("outbound = ''", "outbound", "", "endpoint string"),
            ("access_log = ''", "access_log", "", "path"),
            ('access_log = "a\\u0000b"', "access_log", "a\0b", "path"),
            ("access_log = true", "access_log", True, "path"),
            ("inbound_source = false", "inbound_source", False, "table"),
            ("inbound_source.enabled = 1", "inbound_source.enabled", 1, "true or false"),
            ("inbound_source.ipv4 = '127.1'", "inbound_source.ipv4", "127.1", "IPv4"),
            ("inbound_source.ipv4 = '::6'", "inbound_source.ipv4", "::6", "IPv4"),
            ("inbound_source.ipv4 = 6", "inbound_source.ipv4", 6, "IPv4"),
            (
                "inbound_source.ipv6 = '::ffff:127.0.0.6'",
                "inbound_source.ipv6",
                "::ffff:127.0.0.6",
                "IPv6",
            ),
            ("policy = 'deny'", "policy", "deny", "a table"),
            ("policy.default = 'permit'", "policy.default", "permit", '"allow", "deny" or'),
            ("policy.allow = 'x'", "policy.allow", "x", "a list of rules"),
            ("policy.allow = ['x', 3]", "policy.allow[1]", 3, "a rule"),
            ("policy.deny = [['x']]", "policy.deny[0]", ["x"], "a rule"),
            ("policy.private_names = 'x'", "policy.private_names", "x", "a list of names"),
            ("policy.private_names = [1]", "policy.private_names[0]", 1, "a name"),
            ("policy.verify = 'no'", "policy.verify", "no", '"redial", "certificate" or'),
            ("policy.ca_file = ''", "policy.ca_file", "", "a file's path"),
            ('policy.ca_file = "a\\u0000b"', "policy.ca_file", "a\0b", "a file's path"),
            ("policy.ca_file = []", "policy.ca_file", [], "a file's path"),
            ("policy.ech = false", "policy.ech", False, '"allow" or "deny"'),
            ("policy.no_name = 'public'", "policy.no_name", "public", '"allow" or "deny"'),
            ("policy.open_flows = 'kill'", "policy.open_flows", "kill", '"leave" or "close"'),
            ("http_proxy = ''", "http_proxy", "", "an endpoint string"),
            ("log_paths = 1", "log_paths", 1, "true or false"),
            ("http = 'tcp:3128'", "http", "tcp:3128", "a table: [http]"),
            ("http.realm = ''", "http.realm", "", "1 to 200 printable ASCII characters"),
            ('http.realm = "a\\nb"', "http.realm", "a\nb", "printable ASCII"),
            ("http.no_proxy = 'x'", "http.no_proxy", "x", "a list of hosts"),
            ("http.limits = 1", "http.limits", 1, "a table: [http.limits]"),
            ("http.limits.head_bytes = 0", "http.limits.head_bytes", 0, "from 1024 to 1048576"),
            ("http.limits.head_fields = 9", "http.limits.head_fields", 9, "from 10 to 1000"),
            ("http.limits.head_timeout = 0", "http.limits.head_timeout", 0, "above 0"),
            ("http.limits.body_bytes = -1", "http.limits.body_bytes", -1, "a number of bytes"),
            (
                "http.limits.client_connections = 0",
                "http.limits.client_connections",
                0,
                "leave it out for no limit",
            ),
            ("forward = 'x y'", "forward", "x y", "[[forward]]"),
            ("forward = ['x y']", "forward[0]", "x y", "listen"),
        ],
    )
    def test_bad_value(self, path: Path, text: str, key: str, value: object, problem: str) -> None:
        """A value of the wrong type or out of bounds is named with its key and what fits."""
        error = refusal(path, text)
        assert (key, value) == (error.key, error.value)
        assert problem in error.problem

    @pytest.mark.parametrize(
        ("text", "key"),
        [
            ("http.auth = 'memory:a:sesame'", "http.auth"),
            ("http.auth = ['x', ['sesame']]", "http.auth[1]"),
            ("http.upstream_proxy = ['http://a:sesame@b:1']", "http.upstream_proxy"),
        ],
    )
    def test_passwords(self, path: Path, text: str, key: str) -> None:
        """What may be a password is not shown."""
        error = refusal(path, text)
        assert (key, None) == (error.key, error.value)
        assert "sesame" not in str(error)

    def test_in_a_list(self, path: Path) -> None:
        """A fault in a list is found at its index, after sound entries."""
        good = "[[forward]]\nlisten='tcp:1'\nconnect='tcp:h:2'\n"
        error = refusal(path, good + good + "[[forward]]\nlisten='tcp:1'\nconnect=2\n")
        assert ("forward[2].connect", 2) == (error.key, error.value)

    def test_missing_key(self, path: Path) -> None:
        """A key that must be there is named."""
        error = refusal(path, "[[forward]]\nlisten='tcp:1'\n")
        assert ("forward[0].connect", None) == (error.key, error.value)
        assert error.problem.startswith("missing; expected an endpoint string")

    @pytest.mark.parametrize(
        ("text", "key", "hint"),
        [
            ("outbund = 'x'", "outbund", "did you mean outbound"),
            ("limits.conect_timeout = 1", "limits.conect_timeout", "connect_timeout"),
            ("zzz = 1", "zzz", "known: outbound, inbound, sni_proxy"),
            ("[[forward]]\nto = 'x'", "forward[0].to", "known: listen, connect"),
            ('"a` - at `$.mark" = 1', "a` - at `$.mark", "known: "),
            ("http-proxy = 'tcp:3128'", "http-proxy", "no such key"),
        ],
    )
    def test_unknown_key(self, path: Path, text: str, key: str, hint: str) -> None:
        """A key that does not exist is an error that names the nearest ones, or all."""
        error = refusal(path, text)
        assert key == error.key
        assert hint in error.problem

    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ("mark = 1\nmark =\n", "line 2"),
            ("mark = 1\nmark = 2\n", "line 2"),
            ("\n\n[limits", "line 3"),
            ("x", "line 1"),
            ("mark = " + "1" * 5000, "not valid TOML"),
            ("mark = " + "[" * 100_000, "not valid TOML"),
        ],
    )
    def test_not_toml(self, path: Path, text: str, place: str) -> None:
        """A syntax error names the file and the line."""
        error = refusal(path, text)
        assert (None, None) == (error.key, error.value)
        assert place in error.problem

    def test_not_utf8(self, path: Path) -> None:
        """Bytes that are no UTF-8 are named by their line."""
        path.write_bytes(b"mark = 1\n# \xff\n")
        with pytest.raises(ConfigError, match=r"not UTF-8 \(at line 2\)"):
            load_file(str(path))

    def test_byte_order_mark(self, path: Path) -> None:
        """So is what other systems' editors put before the first line."""
        path.write_bytes(b"\xef\xbb\xbfmark = 1\n")
        with pytest.raises(ConfigError, match="byte order mark"):
            load_file(str(path))

    def test_missing_file(self, tmp_path: Path) -> None:
        """A file that isn't there, can't be one or has no possible name is one clear line."""
        missing = str(tmp_path / "missing.toml")
        for path, problem in (
            (missing, "can't be read: No such file or directory"),
            (str(tmp_path), "can't be read: Is a directory"),
            ("a\0b", "can't be read: embedded null byte"),
        ):
            with pytest.raises(ConfigError) as caught:
                load_file(path)
            assert (path, None, problem) == (
                caught.value.source,
                caught.value.key,
                caught.value.problem,
            )
            assert f"{path}: {problem}" == str(caught.value)

    def test_endless_file(self) -> None:
        """A file without end is refused after a bounded number of bytes."""
        with pytest.raises(ConfigError, match="longer than"):
            load_file("/dev/zero")


class TestFlags:
    def test_flag_beats_file(self, path: Path) -> None:
        """A flag replaces the file's value; what no flag names stays."""
        path.write_text(COMPLETE)
        config = load(str(path), outbound="transparent:1", access_log="-")
        assert ("transparent:1", "transparent:15006:mode=tproxy", "-", 0x20) == (
            config.outbound,
            config.inbound,
            config.access_log,
            config.mark,
        )

    def test_lists_add_up(self, path: Path) -> None:
        """The flags' static relays come after the file's."""
        path.write_text("[[forward]]\nlisten='tcp:1'\nconnect='tcp:h:2'\n")
        config = load(str(path), forward=["tcp:3\t tcp:h:4", " tcp:5 tcp:h:6\n"])
        assert (
            Forward("tcp:1", "tcp:h:2"),
            Forward("tcp:3", "tcp:h:4"),
            Forward("tcp:5", "tcp:h:6"),
        ) == config.forward

    def test_http(self, path: Path) -> None:
        """The flags of the HTTP proxy: lists add up, the rest beats the file."""
        path.write_text(COMPLETE)
        config = load(
            str(path),
            http_proxy="tcp:1",
            proxy_auth=["memory:a:b"],
            upstream_proxy="http://c:1",
            no_proxy=["d,e", "f"],
        )
        http = config.http
        assert ("tcp:1", "http://c:1") == (config.http_proxy, http.upstream_proxy)
        assert ("file:/etc/htpasswd", "unix", "memory:a:b") == http.auth
        assert (".corp.example", "d,e", "f") == http.no_proxy
        assert (True, True, False) == (
            config.log_paths,
            load(log_paths=True).log_paths,
            load().log_paths,
        )

    @pytest.mark.parametrize(
        ("flag", "flags"),
        [
            ("--proxy-auth", {"proxy_auth": ["memory:a:b", ""]}),
            ("--upstream-proxy", {"upstream_proxy": ""}),
        ],
    )
    def test_bad_secret(self, flag: str, flags: dict[str, Any]) -> None:
        """A flag whose value may have a password is named without it."""
        with pytest.raises(ConfigError) as caught:
            load(**flags)
        assert (flag, None) == (caught.value.key, caught.value.value)

    def test_nothing_given(self) -> None:
        """With neither file nor flags, the configuration is the defaults."""
        assert Config() == load()

    def test_base_is_left_alone(self) -> None:
        """Merging makes a new value."""
        base = Config(outbound="a")
        merged = merge_flags(base, outbound="b", inbound="c")
        assert ("a", "b", "c") == (base.outbound, merged.outbound, merged.inbound)

    @pytest.mark.parametrize("text", ["", "tcp:1", "tcp:1 tcp:h:2 tcp:h:3"])
    def test_forward_is_two(self, text: str) -> None:
        """A static relay is exactly two endpoint strings."""
        with pytest.raises(ConfigError) as caught:
            load(forward=["a b", text])
        assert (COMMAND_LINE, "--forward", text) == (
            caught.value.source,
            caught.value.key,
            caught.value.value,
        )

    @pytest.mark.parametrize(
        ("flag", "flags"),
        [
            ("--outbound", {"outbound": ""}),
            ("--inbound", {"inbound": ""}),
            ("--access-log", {"access_log": ""}),
            ("--http-proxy", {"http_proxy": ""}),
        ],
    )
    def test_bad_flag(self, flag: str, flags: dict[str, Any]) -> None:
        """A flag's bad value is named with the flag as the user wrote it."""
        with pytest.raises(ConfigError) as caught:
            load(**flags)
        assert (COMMAND_LINE, flag, "") == (
            caught.value.source,
            caught.value.key,
            caught.value.value,
        )


# A rule on each line, in all of TOML's forms of strings, and what only looks like one.
RULES = r"""
# allow = [ "no" ]
[policy] # "deny" = [
deny = [ "a", 'a', # "a" ]
  "\u0061",
  '''a''',  QQQ\
  b\
  QQQ, "[::1]:80", "a" ]
"allow" = []
no_name = "allow"
private_names = ["a",
"a"]
""".replace("QQQ", 3 * '"')


class TestRules:
    def test_places(self, path: Path) -> None:
        """Every rule knows its line, whatever its spelling and however often it is there."""
        path.write_text(RULES)
        policy = load_file(str(path)).policy
        expected = [("a", 4), ("a", 4), ("a", 5), ("a", 6), ("b", 6), ("[::1]:80", 8), ("a", 8)]
        assert [(text, f"{path}:{line}") for text, line in expected] == [
            (rule.text, rule.place) for rule in policy.deny
        ]
        assert [f"{path}:11", f"{path}:12"] == [rule.place for rule in policy.private_names]

    @pytest.mark.parametrize(
        "text",
        [
            'policy.allow = [\n"x"]',
            'policy = { default = "deny", allow = [ "x" ] }',
            '"policy"."allow" = [\n"x"]',
            "policy . 'allow' = [\n'x']",
            '[ policy ]\r\nallow=["x"]',
            '[limits]\nkeepalive = 1\n[policy]\nallow = ["x"]',
        ],
    )
    def test_all_ways_to_write_a_key(self, path: Path, text: str) -> None:
        """The line is found however the key is written."""
        path.write_text(text, newline="")
        (rule,) = load_file(str(path)).policy.allow
        line = 1 + next(i for i, each in enumerate(text.split("\n")) if each.count("x"))
        assert f"{path}:{line}" == rule.place

    @pytest.mark.parametrize(
        ("key", "bad", "problem"),
        [
            ("allow", "x:0", "not ports"),
            ("deny", "127.1", "ends in a number"),
            ("private_names", "10.0.0.0/8", "a name alone"),
        ],
    )
    def test_bad_rule(self, path: Path, key: str, bad: str, problem: str) -> None:
        """A rule that can't be read is named with its line."""
        path.write_text(f'[policy]\n{key} = ["ok.example",\n"{bad}"]\n')
        with pytest.raises(ConfigError) as caught:
            load_file(str(path))
        error = caught.value
        assert (f"{path}:3", f"policy.{key}[1]", bad) == (error.source, error.key, error.value)
        assert problem in error.problem

    def test_all_bad_rules(self, path: Path) -> None:
        """Who wants to know all bad rules gets them all."""
        path.write_text('[policy]\nallow = ["..", "x"]\ndeny = [\n"y:0"]')
        bad: list[ConfigError] = []
        config = load_file(str(path), bad)
        assert [f"{path}:2", f"{path}:4"] == [error.source for error in bad]
        assert ["x"] == [rule.text for rule in config.policy.allow]

    def test_flags_add(self, path: Path) -> None:
        """Flags' rules come after the file's, and know their flag; --default replaces."""
        path.write_text('[policy]\ndefault = "deny"\nallow = ["x"]\nech = "deny"')
        policy = load(str(path), allow=["y"], deny=["z:25"], default="public").policy
        assert [f"{path}:3", "--allow"] == [rule.place for rule in policy.allow]
        assert ["--deny"] == [rule.place for rule in policy.deny]
        assert (Default.PUBLIC, Choice.DENY) == (policy.default, policy.ech)
        assert Default.DENY is load(str(path)).policy.default

    @pytest.mark.parametrize(
        ("flag", "value", "flags"),
        [
            ("--allow", "x:0", {"allow": ["y", "x:0"]}),
            ("--deny", "", {"deny": [""]}),
            ("--default", "perhaps", {"default": "perhaps"}),
        ],
    )
    def test_bad_flag(self, flag: str, value: str, flags: dict[str, Any]) -> None:
        """A flag that can't be used is named as it was written."""
        with pytest.raises(ConfigError) as caught:
            load(**flags)
        error = caught.value
        assert (COMMAND_LINE, flag, value) == (error.source, error.key, error.value)

    @pytest.mark.parametrize("unset", Default)
    def test_build(self, path: Path, unset: Default) -> None:
        """The policy has what the table says; who builds it says what an unset default is."""
        path.write_text('policy.allow = ["x"]')
        config = load_file(str(path)).policy
        policy = config.build(unset)
        assert (unset, config.allow, Choice.DENY) == (policy.default, policy.allow, policy.no_name)
        assert Default.ALLOW is config.build().default


_raw = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *Config.__struct_fields__,
                    *Limits.__struct_fields__,
                    *InboundSource.__struct_fields__,
                    *Forward.__struct_fields__,
                    *PolicyConfig.__struct_fields__,
                    *HttpConfig.__struct_fields__,
                    *HttpLimits.__struct_fields__,
                    "x",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def _decode_again(kind: Any, value: Any) -> object:
    if issubclass(kind, Rule):
        return parse_name_rule(value) if kind is NameRule else parse_rule(value)
    return kind(value)


class TestAnyTree:
    @given(raw=st.dictionaries(st.sampled_from([*Config.__struct_fields__, "x"]), _raw))
    def test_value_or_config_error(self, raw: dict[str, object]) -> None:
        """Whatever the tree, the outcome is a Config or one ConfigError that names a key."""
        try:
            config = convert(raw, "file")
        except ConfigError as error:
            assert error.key  # noqa: PT017 - the other outcome is as good
        else:
            assert config == msgspec.convert(
                msgspec.to_builtins(config, enc_hook=str),
                Config,
                dec_hook=_decode_again,
            )
