"""What the HTTP proxy answers itself: denials, and failures of servers and clients."""

from __future__ import annotations

import re
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from integration.http_origins import Conversation, Request, head, scripted
from integration.http_stage import (
    HTTP,
    HTTPS,
    PAGE,
    PUBLIC,
    PUBLIC_NAME,
    HttpStage,
    facts,
    http_stage,
    needs,
)
from integration.origins import Origin

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from integration.http_stage import Curled
    from integration.proxy import Sidecar

pytestmark = pytest.mark.thorough

_DENYING, _HASTY, _OTHER = 8011, 8012, 8013
_HASTE = """\
[limits]
connect_timeout = 1.0
[http.limits]
response_timeout = 1.0
head_timeout = 1.0
"""
_LIMITS = """\
[http.limits]
body_bytes = 1000
"""

_programs = needs("nginx", "curl")


@pytest.fixture(scope="module", name="stage")
def _stage(
    _namespaces: None, _programs: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HttpStage]:
    with http_stage(tmp_path_factory.mktemp("stage")) as made:
        yield made


def on(port: int) -> str:
    """Describe a listener."""
    return f"tcp:{port}:interface=127.0.0.1"


def okay(conversation: Conversation, request: Request) -> None:
    """Answer anything."""
    for _ in conversation.content(request):
        pass
    conversation.send(head("200 OK", "Content-Length: 3"), "ok\n")


@pytest.fixture(scope="module", name="denying")
def _denying(stage: HttpStage) -> Iterator[Sidecar]:
    with stage.proxied("--default", "deny", listener=on(_DENYING), ports=[_DENYING]) as made:
        yield made


def denied(stage: HttpStage, url: str) -> Curled:
    """Ask the one that allows nothing, and be refused."""
    curled = stage.curl(url, proxy=f"http://127.0.0.1:{_DENYING}", facts="%{http_code}")
    assert ["403"] == curled.facts, curled
    return curled


class TestDenial:
    @pytest.mark.parametrize("host", [PUBLIC_NAME, PUBLIC, "127.0.0.1"])
    def test_allowed_then(self, stage: HttpStage, denying: Sidecar, host: str) -> None:
        """The 403 says why, and which rule would allow it; with that as --allow it is."""
        address = stage.address(PUBLIC if host == PUBLIC_NAME else host)
        url = f"http://{host}:{address.port}/secret?path"
        with scripted(stage.namespace, address, okay) as requests:
            curled = denied(stage, url)
            assert "Proxy-Status: sidecar; error=http_request_denied; " in curled.head
            told = re.fullmatch(r"sidecar: denied: default; to allow it: (\S+)\n", curled.body)
            assert told is not None, curled
            assert [] == requests
            rule = told[1]
            with stage.proxied("--default", "deny", "--allow", rule) as sidecar:
                assert "ok\n" == stage.curl(url).body
                line = sidecar.line(method="GET", status=200)
        assert ["allow", "rule", f"{rule} (--allow)"] == facts(line, "verdict", "reason", "rule")
        lines = denying.wait_for_lines(1, verdict="deny", status=403, reason="default")
        assert {"denied"} == {line["end"] for line in lines}
        assert "secret" not in "\n".join(denying.printed)

    def test_private_name(self, stage: HttpStage, denying: Sidecar) -> None:
        """For a name with a private address, the rules that are told of lead there in two steps."""
        host = stage.host()
        url = f"http://{host}:{HTTP}/page"
        assert f"to allow it: {host}:{HTTP}\n" in denied(stage, url).body
        denying.line(host=host, reason="default")
        name = ("--allow", f"{host}:{HTTP}")
        with stage.proxied("--default", "deny", *name) as sidecar:
            refused = f"sidecar: denied: address_refused; to allow it: 127.0.0.1:{HTTP}\n"
            assert refused == stage.curl(url).body
            assert 403 == sidecar.line(host=host, reason="address_refused")["status"]
        with stage.proxied("--default", "deny", *name, "--allow", f"127.0.0.1:{HTTP}"):
            assert PAGE == stage.curl(url).body

    def test_tunnel(self, stage: HttpStage, denying: Sidecar) -> None:
        """CONNECT is answered alike, and curl shows its status."""
        host = stage.host()
        curled = stage.curl(
            f"https://{host}:{HTTPS}/page",
            proxy=f"http://127.0.0.1:{_DENYING}",
            facts="%{http_connect}",
        )
        assert (56, ["403"]) == (curled.exit, curled.facts)
        assert 'details="default"' in curled.head
        line = denying.line(host=host)
        assert ["CONNECT", 403, "deny", "default", None] == facts(
            line, "method", "status", "verdict", "reason", "upstream"
        )

    def test_kept(self, stage: HttpStage, denying: Sidecar) -> None:
        """A denial costs the client nothing but its request: the connection stays."""
        host = stage.host()
        url = f"http://{host}:{HTTP}/page"
        curled = stage.curl(
            url, url, proxy=f"http://127.0.0.1:{_DENYING}", facts="%{http_code} %{num_connects}"
        )
        assert ["403", "1", "403", "0"] == curled.facts
        denying.wait_for_lines(2, host=host, status=403)


def test_log_paths(stage: HttpStage) -> None:
    """With --log-paths the log has path and query of requests, and still none of tunnels."""
    host, tunnelled = stage.host(), stage.host()
    with stage.proxied("--log-paths") as sidecar:
        assert PAGE == stage.curl(f"http://{host}:{HTTP}/page?q=%22").body
        assert PAGE == stage.curl(f"https://{tunnelled}:{HTTPS}/page?q").body
        assert "/page?q=%22" == sidecar.line(host=host)["path"]
        assert "path" not in sidecar.line(host=tunnelled)


class TestFailures:
    """Servers that can't be reached or don't answer, and requests that can't be passed on."""

    @pytest.fixture(scope="class", name="hasty")
    @classmethod
    def _hasty(cls, stage: HttpStage) -> Iterator[Sidecar]:
        """One that doesn't wait, for tests that are about that."""
        file = stage.directory / "hasty.toml"
        file.write_text(_HASTE, encoding="ascii")
        with stage.proxied("--config", str(file), listener=on(_HASTY), ports=[_HASTY]) as made:
            yield made

    @pytest.fixture(scope="class", name="strict")
    @classmethod
    def _strict(cls, stage: HttpStage) -> Iterator[Sidecar]:
        """One that takes little."""
        file = stage.directory / "strict.toml"
        file.write_text(_LIMITS, encoding="ascii")
        with stage.proxied("--config", str(file), listener=on(_OTHER), ports=[_OTHER]) as made:
            yield made

    def fetch(self, stage: HttpStage, url: str, *flags: str, port: int = _OTHER) -> Curled:
        """Ask one of them."""
        return stage.curl(*flags, url, proxy=f"http://127.0.0.1:{port}", facts="%{http_code}")

    def check(self, curled: Curled, status: int, error: str, details: str) -> None:
        """See whether it is the answer that is expected."""
        assert [str(status)] == curled.facts, curled
        assert f'Proxy-Status: sidecar; error={error}; details="{details}"\r\n' in curled.head
        assert curled.body.startswith("sidecar: ")
        assert curled.body.isascii()

    def test_refused(self, stage: HttpStage, strict: Sidecar) -> None:
        """Nobody listens: 502."""
        host, address = stage.host(), stage.address()
        curled = self.fetch(stage, f"http://{host}:{address.port}/")
        self.check(curled, 502, "connection_refused", "connection_refused")
        line = strict.line(host=host)
        assert [502, "allow", "connection_refused", str(address)] == facts(
            line, "status", "verdict", "end", "upstream"
        )

    def test_no_such_name(self, stage: HttpStage, strict: Sidecar) -> None:
        """The name has no address, or nobody can be asked: 502, of a tunnel as well."""
        self.check(self.fetch(stage, "http://no-such.invalid/"), 502, "dns_error", "dns_error")
        tunnelled = stage.curl(
            *("https://no-such.invalid/", "--proxy", f"http://127.0.0.1:{_OTHER}"),
            facts="%{http_connect}",
        )
        assert (56, ["502"]) == (tunnelled.exit, tunnelled.facts)
        lines = strict.wait_for_lines(2, host="no-such.invalid", status=502, end="dns_error")
        assert ["GET", "CONNECT"] == [line["method"] for line in lines]

    def test_unreachable(self, stage: HttpStage, hasty: Sidecar) -> None:
        """No answer to a SYN: 504."""
        host, address = stage.host(), stage.address()
        with ExitStack() as stack:
            stack.enter_context(stage.namespace.listen(address, backlog=0))
            # There is room for one: from then on SYNs are dropped.
            stack.enter_context(stage.namespace.connect(address))
            filler = stack.enter_context(stage.namespace.tcp_socket(address.family))
            filler.setblocking(False)
            filler.connect_ex((address.host, address.port))
            curled = self.fetch(stage, f"http://{host}:{address.port}/", port=_HASTY)
        self.check(curled, 504, "connection_timeout", "connection_timeout")
        assert ["connection_timeout", 504] == facts(hasty.line(host=host), "end", "status")

    @pytest.mark.parametrize(
        ("says", "status", "error", "details"),
        [
            (None, 504, "http_response_timeout", "response_timeout"),
            (b"", 502, "http_response_incomplete", "response_incomplete"),
            (b"HTTP/1.1 200", 502, "http_response_incomplete", "response_incomplete"),
            (b"220 mail.example ESMTP\r\n", 502, "http_protocol_error", "response_malformed"),
            (
                b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000,
                502,
                "http_response_header_section_size",
                "response_malformed",
            ),
        ],
    )
    def test_no_answer(
        self,
        stage: HttpStage,
        hasty: Sidecar,
        strict: Sidecar,
        says: bytes | None,
        status: int,
        error: str,
        details: str,
    ) -> None:
        """The server says nothing, too little, or something else."""
        host, address = stage.host(), stage.address()

        def handle(connection: socket.socket) -> None:
            connection.recv(65536)
            if says is None:
                # Until the proxy gives up.
                with suppress(ConnectionResetError):
                    assert b"" == connection.recv(1)
            else:
                connection.sendall(says)

        port, sidecar = (_HASTY, hasty) if says is None else (_OTHER, strict)
        with Origin(stage.namespace, address, handle):
            curled = self.fetch(stage, f"http://{host}:{address.port}/", port=port)
        self.check(curled, status, error, details)
        assert status == sidecar.line(host=host)["status"]

    def test_too_large(self, stage: HttpStage, strict: Sidecar) -> None:
        """A content beyond the limit: 413, and the server doesn't hear of it."""
        host, address = stage.host(), stage.address()
        url = f"http://{host}:{address.port}/"
        with scripted(stage.namespace, address, okay) as requests:
            curled = self.fetch(stage, url, "--data", "x" * 1001)
        self.check(curled, 413, "http_request_error", "content_too_large")
        assert [] == requests
        assert [413, "content_too_large"] == facts(strict.line(host=host), "status", "reason")

    @pytest.mark.parametrize(
        ("target", "status"),
        [("/page", 400), ("https://localhost/", 501), ("ftp://localhost/", 501)],
    )
    def test_not_for_us(self, stage: HttpStage, strict: Sidecar, target: str, status: int) -> None:
        """A request that isn't a proxy's, or of another scheme, says so."""
        curled = self.fetch(stage, f"http://127.0.0.1:{HTTP}/", "--request-target", target)
        assert [str(status)] == curled.facts, curled
        assert "CONNECT" in curled.body
        strict.wait_for_lines(1, status=status, end="http_request_error")

    def test_slow_head(self, stage: HttpStage, hasty: Sidecar) -> None:
        """A head that doesn't come to its end: 408, and the end."""
        with stage.namespace.connect(SocketAddress("127.0.0.1", _HASTY)) as client:
            client.sendall(b"GET http://localhost/ HTTP/1.1\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            assert b"" == client.recv(1)
        assert "request_timeout" == hasty.line(status=408)["reason"]
