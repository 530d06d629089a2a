"""One HTTP proxy behind another: --upstream-proxy, its password, where it isn't used, loops."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from integration.http_origins import Conversation, Request, head, scripted
from integration.http_stage import (
    HTTP,
    HTTPS,
    PAGE,
    PROXY,
    HttpStage,
    facts,
    http_stage,
    needs,
)
from integration.proxy import CLEAN_EXIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.proxy import Sidecar

pytestmark = pytest.mark.thorough

_NEAR, _WRONG, _LOOPING, _BACK = 8011, 8012, 8013, 8014
_USER = "ali:sesame"

_programs = needs("nginx", "curl")


@pytest.fixture(scope="module", name="stage")
def _stage(
    _namespaces: None, _programs: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HttpStage]:
    with http_stage(tmp_path_factory.mktemp("stage")) as made:
        yield made


@pytest.fixture(scope="module", name="far")
def _far(stage: HttpStage) -> Iterator[Sidecar]:
    """The proxy that servers see; it wants a password."""
    with stage.proxied("--proxy-auth", f"memory:{_USER}") as made:
        yield made


def on(port: int) -> str:
    """Describe a listener."""
    return f"tcp:{port}:interface=127.0.0.1"


@pytest.fixture(scope="module", name="near")
def _near(stage: HttpStage, far: Sidecar) -> Iterator[Sidecar]:
    """The proxy that clients see."""
    with stage.proxied(
        *("--upstream-proxy", f"http://{_USER}@127.0.0.1:{PROXY}", "--no-proxy", "localhost"),
        listener=on(_NEAR),
        ports=[_NEAR],
    ) as made:
        yield made


_NEAR_URL = f"http://127.0.0.1:{_NEAR}"


def test_http(stage: HttpStage, near: Sidecar, far: Sidecar) -> None:
    """Requests pass both, each of which puts itself into Via; the password ends at the second."""
    host, address = stage.host(), stage.address()

    def answer(conversation: Conversation, request: Request) -> None:
        assert b"data" == b"".join(conversation.content(request))
        conversation.send(head("200 OK", "Content-Length: 3"), "ok\n")

    with scripted(stage.namespace, address, answer) as requests:
        curled = stage.curl("--data", "data", f"http://{host}:{address.port}/p?q", proxy=_NEAR_URL)
    assert "ok\n" == curled.body, curled
    [request] = requests
    assert ["POST /p?q HTTP/1.1", f"{host}:{address.port}"] == [request.line, request.one("host")]
    assert [] == request.all("proxy-authorization")
    proxies = re.findall(r"1\.1 (sidecar-\w+)", ", ".join(request.all("via")))
    assert 2 == len(set(proxies)) == len(proxies)
    # On its way back in the other order (RFC 9110 §7.6.3).
    assert proxies[::-1] == re.findall(r"1\.1 (sidecar-\w+)", curled.head)
    for sidecar, upstream in ((near, f"127.0.0.1:{PROXY}"), (far, str(address))):
        assert ["POST", 200, upstream, 4, 3] == facts(
            sidecar.line(host=host), "method", "status", "upstream", "sent", "received"
        )


def test_https(stage: HttpStage, near: Sidecar, far: Sidecar) -> None:
    """A tunnel leads through a tunnel."""
    host = stage.host()
    curled = stage.curl(f"https://{host}:{HTTPS}/page", proxy=_NEAR_URL)
    assert PAGE == curled.body, curled
    for sidecar in (near, far):
        assert ["CONNECT", 200, "closed"] == facts(
            sidecar.line(host=host), "method", "status", "end"
        )


def test_no_proxy(stage: HttpStage, near: Sidecar, far: Sidecar) -> None:
    """Who is excepted is reached without the second."""
    assert PAGE == stage.curl(f"http://localhost:{HTTP}/page", proxy=_NEAR_URL).body
    assert near.line(host="localhost")["upstream"] in {f"127.0.0.1:{HTTP}", f"[::1]:{HTTP}"}
    assert [] == [line for line in far.lines() if line["host"] == "localhost"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_unauthorized(stage: HttpStage, far: Sidecar, scheme: str) -> None:
    """A password that is wrong for the second is none of the client's business: 502, not 407."""
    host = stage.host()
    url = f"http://ali:wrong@127.0.0.1:{PROXY}"
    with stage.proxied("--upstream-proxy", url, listener=on(_WRONG), ports=[_WRONG]) as sidecar:
        port = HTTP if scheme == "http" else HTTPS
        curled = stage.curl(
            f"{scheme}://{host}:{port}/page",
            proxy=f"http://127.0.0.1:{_WRONG}",
            facts="%{http_code} %{http_connect}",
        )
        assert (["502", "000"] if scheme == "http" else ["000", "502"]) == curled.facts
        assert "error=proxy_configuration_error; received-status=407" in curled.head, curled
        assert "Proxy-Authenticate" not in curled.head
        assert 502 == sidecar.line(host=host)["status"]
        assert "wrong" not in "\n".join(sidecar.printed)
    assert far.alive


def test_denied_beyond(stage: HttpStage) -> None:
    """A denial of the second's is passed on; its reason is in what it says."""
    host = stage.host()
    with (
        stage.proxied("--default", "deny", listener=on(_BACK), ports=[_BACK]),
        stage.proxied(
            *("--upstream-proxy", f"http://127.0.0.1:{_BACK}"),
            listener=on(_WRONG),
            ports=[_WRONG],
        ),
    ):
        curled = stage.curl(
            f"http://{host}:{HTTP}/page",
            proxy=f"http://127.0.0.1:{_WRONG}",
            facts="%{http_code}",
        )
        assert ["403"] == curled.facts
        assert f"to allow it: {host}:{HTTP}" in curled.body
        tunnelled = stage.curl(
            f"https://{host}:{HTTPS}/page",
            proxy=f"http://127.0.0.1:{_WRONG}",
            facts="%{http_connect}",
        )
        assert ["502"] == tunnelled.facts
        assert "received-status=403" in tunnelled.head


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("length", [1, 2])
def test_loop(stage: HttpStage, scheme: str, length: int) -> None:
    """Proxies that send everything to one another, or to themselves, say so: 508."""
    host = stage.host()
    ports = [_LOOPING, _BACK][:length]
    with ExitStack() as stack:
        proxies = [
            stack.enter_context(
                stage.proxied(
                    *("--upstream-proxy", f"http://127.0.0.1:{following}"),
                    listener=on(port),
                    ports=[port],
                )
            )
            for port, following in zip(ports, [*ports[1:], ports[0]], strict=True)
        ]
        port = HTTP if scheme == "http" else HTTPS
        curled = stage.curl(
            f"{scheme}://{host}:{port}/page",
            proxy=f"http://127.0.0.1:{_LOOPING}",
            facts="%{http_code} %{http_connect}",
        )
        status, connect = curled.facts
        assert "508" == (status if scheme == "http" else connect), curled
        assert "error=proxy_loop_detected" in curled.head
        proxies[0].wait_for_lines(1, host=host, end="proxy_loop_detected", status=508)
        for proxy in proxies:
            assert CLEAN_EXIT == proxy.stop()
        # Round once, and not as often as there are descriptors.
        assert sum(len(proxy.lines()) for proxy in proxies) <= length + 1


def test_self(stage: HttpStage) -> None:
    """A request for the proxy itself isn't sent round: 508."""
    proxy = f"http://127.0.0.1:{_BACK}"
    with stage.proxied(listener=on(_BACK), ports=[_BACK]) as sidecar:
        curled = stage.curl(f"http://localhost:{_BACK}/", proxy=proxy, facts="%{http_code}")
        assert ["508"] == curled.facts, curled
        tunnelled = stage.curl(f"https://localhost:{_BACK}/", proxy=proxy, facts="%{http_connect}")
        assert ["508"] == tunnelled.facts, tunnelled
        sidecar.wait_for_lines(2, host="localhost", end="proxy_loop_detected", status=508)
