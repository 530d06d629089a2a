"""curl through the HTTP proxy, to nginx: in the clear, in tunnels, with passwords, in TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from integration.http_stage import HTTP, HTTPS, PAGE, PROXY, HttpStage, facts, http_stage, needs
from integration.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.proxy import Sidecar

_TLS_PROXY, _ASKING_PROXY = 8011, 8012

_programs = needs("nginx", "curl")


@pytest.fixture(scope="module", name="stage")
def _stage(
    _namespaces: None, _programs: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HttpStage]:
    with http_stage(tmp_path_factory.mktemp("stage")) as made:
        yield made


@pytest.fixture(scope="module", name="sidecar")
def _sidecar(stage: HttpStage) -> Iterator[Sidecar]:
    with stage.proxied() as made:
        yield made


def test_http(stage: HttpStage, sidecar: Sidecar) -> None:
    """The server gets the request as if asked directly, but for Via; the client its answer."""
    host = stage.host()
    curled = stage.curl(f"http://{host}:{HTTP}/page?q=1")
    assert (0, PAGE) == (curled.exit, curled.body), curled
    assert "Server: nginx" in curled.head
    [[line, named, via, proxy_connection, _]] = stage.seen_of(host)
    assert ["GET /page?q=1 HTTP/1.1", f"{host}:{HTTP}", ""] == [line, named, proxy_connection]
    assert via.startswith("1.1 sidecar-")
    logged = sidecar.line(host=host)
    assert ["GET", 200, len(PAGE), "host", "closed"] == facts(
        logged, "method", "status", "received", "host_from", "end"
    )
    assert "path" not in logged


def test_keep_alive(stage: HttpStage, sidecar: Sidecar) -> None:
    """Several URLs take one connection to the proxy, and one on to the server."""
    host = stage.host()
    urls = [f"http://{host}:{HTTP}/page", f"http://{host}:{HTTP}/none"] * 3
    curled = stage.curl(*urls, facts="%{num_connects} %{http_code}")
    assert ["1", "200", *["0", "404", "0", "200"] * 2, "0", "404"] == curled.facts
    seen = stage.seen_of(host, count=6)
    assert 1 == len({connection for *_, connection in seen})
    lines = sidecar.wait_for_lines(6, host=host)
    assert [200, 404] * 3 == [line["status"] for line in lines]
    assert 1 == len({line["source"] for line in lines})


@pytest.mark.parametrize(
    ("flags", "connections"), [([], 1), (["--header", "Proxy-Connection:"], 2)]
)
def test_http10(stage: HttpStage, sidecar: Sidecar, flags: list[str], connections: int) -> None:
    """A client of HTTP/1.0 is answered, and kept only if it asks for it, as curl does."""
    host = stage.host()
    url = f"http://{host}:{HTTP}/page"
    curled = stage.curl("--http1.0", *flags, url, url, facts="%{http_code}")
    assert ["200", "200"] == curled.facts, curled
    lines = sidecar.wait_for_lines(2, host=host)
    assert connections == len({line["source"] for line in lines})
    assert all(via.startswith("1.0 sidecar-") for _, _, via, _, _ in stage.seen_of(host, 2))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("tunnel", [False, True])
def test_https(stage: HttpStage, sidecar: Sidecar, *, old: bool, tunnel: bool) -> None:
    """CONNECT leads to the server, whose certificate the client checks; so it does for http://."""
    host = stage.host()
    url = f"http://{host}:{HTTP}/page" if tunnel else f"https://{host}:{HTTPS}/page"
    flags = ["--proxytunnel"] if tunnel else []
    # http_connect is what the proxy answered to CONNECT.
    proxy = f"http://127.0.0.1:{PROXY}"
    if old:
        flags += ["--proxy1.0", f"127.0.0.1:{PROXY}"]
    curled = stage.curl(
        *flags, url, facts="%{http_connect} %{http_code}", proxy=None if old else proxy
    )
    assert (0, PAGE, ["200", "200"]) == (curled.exit, curled.body, curled.facts), curled
    [[line, *_, via, _, _]] = stage.seen_of(host)
    assert ["GET /page HTTP/1.1", ""] == [line, via]
    logged = sidecar.line(host=host)
    assert ["CONNECT", 200, "closed"] == facts(logged, "method", "status", "end")
    assert logged["received"] > len(PAGE)
    assert logged["sent"] > 0


def test_proxy_http10(stage: HttpStage, sidecar: Sidecar) -> None:
    """The kind of proxy that curl calls old is asked without a tunnel, too."""
    host = stage.host()
    curled = stage.curl(
        "--proxy1.0", f"127.0.0.1:{PROXY}", f"http://{host}:{HTTP}/page", proxy=None
    )
    assert (0, PAGE) == (curled.exit, curled.body), curled
    assert 200 == sidecar.line(host=host)["status"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_ipv6(stage: HttpStage, sidecar: Sidecar, scheme: str) -> None:
    """A literal address in brackets is reached, and Host has it in brackets."""
    port = HTTP if scheme == "http" else HTTPS
    # The certificate has no addresses.
    curled = stage.curl("--insecure", f"{scheme}://[::1]:{port}/page?{scheme}")
    assert (0, PAGE) == (curled.exit, curled.body), curled
    # nginx logs a request when it has been answered.
    eventually(
        [f"[::1]:{port}"], lambda: [line[1] for line in stage.seen() if f"?{scheme} " in line[0]]
    )
    logged = sidecar.line(destination=f"[::1]:{port}")
    assert [None, f"[::1]:{port}", 200] == facts(logged, "host", "upstream", "status")


@pytest.mark.parametrize("chunked", [False, True])
def test_upload(stage: HttpStage, sidecar: Sidecar, *, chunked: bool) -> None:
    """A client that expects 100 (Continue) gets the server's, and the file arrives whole."""
    host = stage.host()
    data = bytes(range(256)) * 8192
    file = stage.directory / "upload"
    file.write_bytes(data)
    flags = ["--header", "Transfer-Encoding: chunked"] if chunked else []
    # The wait would end without 100 as well, but beyond curl's --max-time.
    flags += ["--header", "Expect: 100-continue", "--expect100-timeout", "60"]
    curled = stage.curl(*flags, "--upload-file", str(file), f"http://{host}:{HTTP}/kept/{host}")
    assert curled.exit == 0, curled
    assert ["HTTP/1.1 100 Continue", "HTTP/1.1 201 Created"] == [
        line for line in curled.head.split("\r\n") if line.startswith("HTTP/")
    ]
    assert data == (stage.directory / "www" / "kept" / host).read_bytes()
    assert ["PUT", 201, len(data)] == facts(sidecar.line(host=host), "method", "status", "sent")


def test_redirect(stage: HttpStage, sidecar: Sidecar) -> None:
    """A redirect is the client's to follow, by another request."""
    host = stage.host()
    curled = stage.curl("--location", f"http://{host}:{HTTP}/moved", facts="%{num_redirects}")
    assert (PAGE, ["1"]) == (curled.body, curled.facts)
    assert [301, 200] == [line["status"] for line in sidecar.wait_for_lines(2, host=host)]


@pytest.fixture(scope="module", name="asking")
def _asking(stage: HttpStage) -> Iterator[Sidecar]:
    users = stage.directory / "htpasswd"
    done = stage.run("openssl", "passwd", "-apr1", "open sesame")
    users.write_text(f"ali:{done.stdout.strip()}\n", encoding="ascii")
    listener = f"tcp:{_ASKING_PROXY}:interface=127.0.0.1"
    with stage.proxied(
        "--proxy-auth", f"file:{users}", listener=listener, ports=[_ASKING_PROXY]
    ) as made:
        yield made


@pytest.fixture(scope="module", name="secure")
def _secure(stage: HttpStage) -> Iterator[Sidecar]:
    file = stage.certificate
    listener = f"ssl:{_TLS_PROXY}:interface=127.0.0.1:privateKey={file}:certKey={file}"
    with stage.proxied(listener=listener, ports=[_TLS_PROXY]) as made:
        yield made


class TestPasswords:
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_right(self, stage: HttpStage, asking: Sidecar, scheme: str) -> None:
        """With the right password requests and tunnels pass, and servers don't hear of it."""
        host = stage.host()
        url = f"{scheme}://{host}:{HTTP if scheme == 'http' else HTTPS}/page"
        curled = stage.curl(
            *("--proxy-user", "ali:open sesame"), url, proxy=f"http://127.0.0.1:{_ASKING_PROXY}"
        )
        assert (0, PAGE) == (curled.exit, curled.body), curled
        assert 200 == asking.line(host=host)["status"]
        assert "sesame" not in "\n".join(asking.printed)

    @pytest.mark.parametrize("user", [None, "ali:wrong", "baba:open sesame"])
    def test_wrong(self, stage: HttpStage, asking: Sidecar, user: str | None) -> None:
        """Without it they don't: 407, and what is wanted."""
        host = stage.host()
        proxy = f"http://127.0.0.1:{_ASKING_PROXY}"
        flags = ["--proxy-user", user] if user else []
        curled = stage.curl(*flags, f"http://{host}:{HTTP}/page", proxy=proxy, facts="%{http_code}")
        assert ["407"] == curled.facts, curled
        assert 'Proxy-Authenticate: Basic realm="sidecar"' in curled.head
        assert "user name and password" in curled.body
        tunnelled = stage.curl(
            *flags, f"https://{host}:{HTTPS}/page", proxy=proxy, facts="%{http_connect}"
        )
        assert (56, ["407"]) == (tunnelled.exit, tunnelled.facts), tunnelled
        lines = asking.wait_for_lines(2, status=407, reason="authentication_required", host=host)
        assert [("GET", "deny"), ("CONNECT", "deny")] == [
            (line["method"], line["verdict"]) for line in lines
        ]
        assert [] == [line for line in stage.seen() if line[1].startswith(host)]

    def test_negotiated(self, stage: HttpStage, asking: Sidecar) -> None:
        """A client that waits to be asked is, and goes on on the same connection."""
        host = stage.host()
        curled = stage.curl(
            *("--proxy-anyauth", "--proxy-user", "ali:open sesame"),
            f"http://{host}:{HTTP}/page",
            proxy=f"http://127.0.0.1:{_ASKING_PROXY}",
            facts="%{num_connects}",
        )
        assert (PAGE, ["1"]) == (curled.body, curled.facts), curled
        lines = asking.wait_for_lines(2, host=host)
        assert [407, 200] == [line["status"] for line in lines]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_in_tls(stage: HttpStage, secure: Sidecar, scheme: str) -> None:
    """A proxy that listens with TLS serves requests, and tunnels with TLS inside."""
    host = stage.host()
    url = f"{scheme}://{host}:{HTTP if scheme == 'http' else HTTPS}/page"
    curled = stage.curl(
        *("--proxy-cacert", stage.authority.cafile),
        *(url, url),
        proxy=f"https://localhost:{_TLS_PROXY}",
        facts="%{http_code}",
    )
    assert (0, ["200", "200"]) == (curled.exit, curled.facts), curled
    expected = ["GET", "GET"] if scheme == "http" else ["CONNECT"]
    lines = secure.wait_for_lines(len(expected), host=host, status=200, end="closed")
    assert expected == [line["method"] for line in lines]
