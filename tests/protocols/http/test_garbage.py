"""What is over is gone at once: nothing waits for the garbage collector."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from protocols.http.proxying import proxying
from wire.hello_maker import hello, server_name

if TYPE_CHECKING:
    from protocols.http.proxying import Proxying

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
HELLO = hello(server_name(b"origin.test"))


def kept(proxy: Proxying) -> None:
    """Several requests on one connection."""
    client = proxy.client()
    for _ in range(3):
        proxy.request(client)
        server = proxy.origin.peers[0] if proxy.origin.peers else proxy.origin.accept()
        server.expect_head()
        server.send(OK)
        client.expect_head()
        client.expect(b"hi")
    client.close()


def refused(proxy: Proxying) -> None:
    """A request that is none."""
    client = proxy.client()
    client.send(b"GET / HTTP/9\r\n\r\n")
    assert 400 == client.status()
    client.close()


def broken_off(proxy: Proxying) -> None:
    """A client that goes before it is answered."""
    client = proxy.client()
    proxy.request(client, b"POST", fields=b"Content-Length: 9\r\n", body=b"x")
    server = proxy.origin.accept()
    server.expect_head()
    client.reset()
    server.expect_bytes(1)
    server.expect_reset()


def silent(proxy: Proxying) -> None:
    """A tunnel in which nobody speaks."""
    client = proxy.client()
    proxy.tunnel(client)
    server = proxy.origin.accept()
    client.close()
    server.expect_end()
    server.close()


def spoken(proxy: Proxying) -> None:
    """A tunnel that is relayed."""
    client = proxy.client()
    proxy.tunnel(client)
    server = proxy.origin.accept()
    client.send(HELLO)
    server.expect(HELLO)
    client.close()
    server.expect_end()
    server.close()


@pytest.mark.parametrize("scene", [kept, refused, broken_off, silent, spoken])
def test_no_cycles(scene: object) -> None:
    """Descriptors, and memory, are given back as connections end."""
    with proxying() as proxy:
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            scene(proxy)  # type: ignore[operator]
            proxy.turning.until(lambda: not proxy.runtime.admission.open)
            proxy.turning.settle()
            gc.collect()
            left = [type(each) for each in gc.garbage]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert [] == [kind for kind in left if kind.__module__.startswith("sidecar")]
