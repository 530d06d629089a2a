"""CONNECT and Upgrade: what is inside is looked at once, then relayed as it is."""

from __future__ import annotations

from contextlib import suppress

import pytest
from protocols.http.proxying import Proxying, policy, proxying
from support import arrived
from wire.hello_maker import hello, server_name

from sidecar.config import HttpLimits, Limits
from sidecar.flow import DestinationSource, FlowEnd, HostSource, Protocol, Verdict
from sidecar.names.verifying import Off
from sidecar.policy import Choice, Policy, parse_name_rule

ALERT = bytes((21, 3, 3, 0, 2, 2, 49))
HELLO = hello(server_name(b"origin.test"))
OTHER = hello(server_name(b"evil.test"))


class Objects:
    """A decision step that says the same of every flow."""

    name = "objects"

    def __init__(self, says: str | None) -> None:
        self.says = says
        self.asked: list[str | None] = []

    def judge(self, flow: object) -> str | None:
        self.asked.append(getattr(flow, "host", None))
        return self.says


class TestConnect:
    def test_tls(self) -> None:
        """A tunnel for a name, and TLS for it inside: both ways, to both ends."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            client.send(HELLO)
            server.expect(HELLO)
            server.send(b"hello yourself")
            client.expect(b"hello yourself")
            client.finish()
            assert b"" == server.expect_end()
            server.send(b"bye")
            server.finish()
            client.expect(b"bye")
            assert b"" == client.expect_end()
            flow = proxy.flow
            assert (Protocol.TLS, "origin.test", HostSource.CONNECT, DestinationSource.CONNECT) == (
                flow.protocol,
                flow.host,
                flow.host_from,
                flow.destination_from,
            )
            assert (b"CONNECT", None, 200) == (flow.method, flow.target, flow.status)
            assert (len(HELLO), 17, FlowEnd.CLOSED) == (flow.sent, flow.received, flow.end)

    def test_early(self) -> None:
        """What a client sends before it has its answer isn't lost, nor read as a request."""
        with proxying() as proxy:
            client = proxy.client()
            authority = proxy.authority
            client.send(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (authority, authority) + HELLO)
            server = proxy.origin.accept()
            client.expect(b"HTTP/1.1 200 Connection established\r\n\r\n")
            server.expect(HELLO)

    def test_cut(self) -> None:
        """A hello in pieces is passed on when it is whole."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            client.say(HELLO[:20])
            server.expect_nothing()
            client.say(HELLO[20:])
            server.expect(HELLO)

    def test_server_first(self) -> None:
        """A server that speaks first is heard at once; its client's name still counts."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            server.send(b"220 hello\r\n")
            client.expect(b"220 hello\r\n")
            client.send(b"EHLO me\r\n")
            server.expect(b"EHLO me\r\n")
            client.reset()
            server.expect_reset()
            flow = proxy.flow
            assert (9, 11, FlowEnd.CLIENT_RESET) == (flow.sent, flow.received, flow.end)

    def test_server_first_no_excuse(self) -> None:
        """A greeting doesn't distract from a name that isn't the tunnel's."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            server.send(b"220 hello\r\n")
            client.expect(b"220 hello\r\n")
            client.send(OTHER)
            client.expect(ALERT)
            assert b"" == server.expect_reset()

    @pytest.mark.parametrize(
        ("said", "answer", "protocol"),
        [
            (OTHER, ALERT, Protocol.TLS),
            (b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n", b"HTTP/1.1 403 ", Protocol.HTTP),
            (
                b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n",
                b"HTTP/1.1 403 ",
                Protocol.HTTP,
            ),
        ],
        ids=["sni", "host", "target"],
    )
    def test_mismatch(self, said: bytes, answer: bytes, protocol: Protocol) -> None:
        """S5: another name inside is denied, in the client's language, for that reason."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            client.send(said)
            client.expect(answer)
            assert b"" == server.expect_reset()
            flow = proxy.flow
            assert ("name_mismatch", Verdict.DENY, FlowEnd.DENIED) == (
                flow.reason,
                flow.verdict,
                flow.end,
            )
            assert ("origin.test", protocol) == (flow.host, flow.protocol)

    def test_mismatch_believed(self) -> None:
        """With verify = "off" a client may say what it likes."""
        with proxying(verifier=Off()) as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            client.send(OTHER)
            proxy.origin.accept().expect(OTHER)

    @pytest.mark.parametrize(
        "said",
        [
            hello(),
            b"SSH-2.0-x\r\n",
            b"\x00\x01\x02",
            b"GET / HTTP/1.1\r\nHost: Origin.Test:1\r\n\r\n",
        ],
        ids=["no-sni", "ssh", "other", "http"],
    )
    def test_agreeing(self, said: bytes) -> None:
        """No name inside, or the same, is fine."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            client.send(said)
            server.expect(said)
            server.reset()
            client.expect_reset()
            assert FlowEnd.SERVER_RESET == proxy.flow.end

    def test_unreadable(self) -> None:
        """What two readers could take for two names is taken for none."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            client.send(hello(server_name(b"0x7f.1")))
            client.expect(ALERT)
            assert "invalid_host" == proxy.flow.reason

    def test_dripping(self) -> None:
        """A client that begins to say its name gets to it in time."""
        with proxying(patience=0.2) as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            client.send(HELLO[:9])
            client.expect(ALERT)
            assert "peek_timeout" == proxy.flow.reason

    def test_client_ends(self) -> None:
        """A client that says nothing and ends is heard to its end."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            client.finish()
            assert b"" == server.expect_end()
            server.send(b"late")
            server.close()
            client.expect(b"late")
            assert b"" == client.expect_end()
            assert FlowEnd.CLOSED == proxy.flow.end

    def test_client_ends_and_is_gone(self) -> None:
        """One that then resets is gone, and its server with it."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            client.finish()
            assert b"" == server.expect_end()
            client.reset()
            assert FlowEnd.CLIENT_RESET == proxy.flow.end
            arrived(server.sock)
            with pytest.raises(OSError, match=r"reset|pipe"):
                server.say(b"x", b"x")

    def test_silent(self) -> None:
        """An open tunnel in which nobody has spoken ends if a new policy denies it."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            server.send(b"greeting")
            client.expect(b"greeting")
            proxy.judge.policy = policy(deny=["origin.test"])
            proxy.judge.close_denied()
            client.expect_reset()
            server.expect_reset()
            assert ("denied_by_rule", 8) == (proxy.flow.reason, proxy.flow.received)
            assert {} == proxy.judge.open

    @pytest.mark.parametrize("ended", [False, True])
    def test_idle(self, ended: bool) -> None:
        """The relay's limits hold before the two are joined, too."""
        limits = Limits(idle_timeout=None if ended else 0.1, half_close_timeout=0.1)
        with proxying(relay_limits=limits, limits=HttpLimits(head_timeout=0.2)) as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            if ended:
                client.finish()
            client.expect_reset()
            assert FlowEnd.IDLE_TIMEOUT == proxy.flow.end
            arrived(server.sock)
            with pytest.raises(OSError, match=r"reset|pipe"):
                server.say(b"x", b"x")

    def test_server_ends(self) -> None:
        """Likewise a server."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            proxy.origin.accept().close()
            assert b"" == client.expect_end()
            client.close()
            assert FlowEnd.CLOSED == proxy.flow.end

    def test_server_resets(self) -> None:
        """Its reset is the client's."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            proxy.origin.accept().reset()
            client.expect_reset()
            assert FlowEnd.SERVER_RESET == proxy.flow.end

    def test_client_resets(self) -> None:
        """And the client's is the server's."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            client.reset()
            server.expect_reset()
            assert FlowEnd.CLIENT_RESET == proxy.flow.end

    def test_bulk(self) -> None:
        """Megabytes go through, both ways at once, unchanged."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            data = bytes(range(256)) * 4096
            client.send(b"\x00" + data[:1000])
            server.expect(b"\x00" + data[:1000])
            sent = got = 0
            while got < len(data):
                with suppress(BlockingIOError):
                    sent += server.sock.send(data[sent : sent + 65536])
                proxy.turning.turn()
                client.read()
                assert data[got : got + len(client.got)] == client.got
                got += len(client.got)
                client.got = b""

    def test_refused(self) -> None:
        """A tunnel that leads nowhere is 502, before it is one."""
        with proxying() as proxy:
            authority = proxy.authority
            proxy.origin.close()
            client = proxy.client()
            inside = b"GET http://nowhere.test/ HTTP/1.1\r\nHost: x\r\n\r\n"
            client.send(b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n%b" % (authority, inside))
            assert 502 == client.status()
            # What was meant for the tunnel is no request.
            client.send(inside)
            assert b"" == client.expect_end()
            assert 1 == len(proxy.flows)

    def test_loop(self) -> None:
        """Nor to ourselves (CASES L1)."""
        with proxying() as proxy:
            for host in (b"127.0.0.1", b"0.0.0.0", b"origin.test", b"[::ffff:127.0.0.1]"):
                client = proxy.client()
                client.send(b"CONNECT %b:%d HTTP/1.1\r\nHost: x\r\n\r\n" % (host, proxy.port))
                assert 508 == client.status()

    def test_old_client(self) -> None:
        """HTTP/1.0 will do."""
        with proxying() as proxy:
            client = proxy.client()
            client.send(b"CONNECT %b HTTP/1.0\r\n\r\n" % proxy.authority)
            client.expect(b"HTTP/1.1 200 Connection established\r\n\r\n")


class TestPolicy:
    def test_denied(self) -> None:
        """What the policy denies is neither resolved nor dialled; the client learns the rule."""
        with proxying(default="deny", allow=["*.other.test"]) as proxy:
            client = proxy.client()
            client.send(b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % proxy.authority)
            head = client.expect_head()
            assert head.startswith(b"HTTP/1.1 403 ")
            client.expect(b"sidecar: denied: default; to allow it: %b\n" % proxy.authority)
            assert [] == proxy.names.asked
            proxy.origin.expect_nobody()
            assert ("default", Verdict.DENY) == (proxy.flow.reason, proxy.flow.verdict)
            assert proxy.authority.decode() == proxy.flow.hint

    def test_private(self) -> None:
        """H11: a name that is allowed may not lead to an address that isn't public."""
        with proxying(default="deny", allow=["origin.test"]) as proxy:
            client = proxy.client()
            client.send(b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % proxy.authority)
            head = client.expect_head()
            assert head.startswith(b"HTTP/1.1 403 ")
            assert b"address_refused" in head
            client.expect(
                b"sidecar: denied: address_refused; to allow it: 127.0.0.1:%d\n" % proxy.origin.port
            )
            proxy.origin.expect_nobody()

    def test_good_answers(self) -> None:
        """H12: of several addresses only those that may be dialled are."""
        with proxying(default="allow", deny=["127.0.0.9"]) as proxy:
            proxy.names.table["origin.test"] = ("127.0.0.9", "127.0.0.1")
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            client.finish()
            server.close()
            flow = proxy.flow
            assert "127.0.0.1" == getattr(flow.upstream, "host", None)

    def literal(self, proxy: Proxying) -> bytes:
        return b"127.0.0.1:%d" % proxy.origin.port

    def test_literal(self) -> None:
        """An address that is allowed as it is: nobody looks inside."""
        with proxying(default="deny", allow=["127.0.0.1"]) as proxy:
            client = proxy.client()
            proxy.tunnel(client, self.literal(proxy))
            client.send(OTHER)
            proxy.origin.accept().expect(OTHER)

    def test_literal_denied(self) -> None:
        """One that is denied."""
        with proxying(default="allow", deny=["127.0.0.0/8"]) as proxy:
            client = proxy.client()
            client.send(b"CONNECT [::ffff:127.0.0.1]:80 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert 403 == client.status()

    def test_literal_named_inside(self) -> None:
        """One that a name inside forbids, where a rule for names could."""
        with proxying(default="allow", deny=["evil.test"]) as proxy:
            client = proxy.client()
            proxy.tunnel(client, self.literal(proxy))
            server = proxy.origin.accept()
            client.send(OTHER)
            client.expect(ALERT)
            assert b"" == server.expect_reset()
            assert ("denied_by_rule", "evil.test") == (proxy.flow.reason, proxy.flow.host)

    def test_literal_allowed_by_name(self) -> None:
        """One that only a name inside allows is dialled when that is known, and verified."""
        with proxying(default="public", allow=["origin.test"]) as proxy:
            # A rule for the name isn't enough for an address that isn't public.
            client = proxy.client()
            client.send(b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % self.literal(proxy))
            assert 403 == client.status()

    def test_literal_private_name(self) -> None:
        """With private_names it is."""
        with proxying(default="deny") as proxy:
            proxy.judge.policy = private()
            client = proxy.client()
            proxy.tunnel(client, self.literal(proxy))
            proxy.origin.expect_nobody()
            client.send(HELLO)
            server = proxy.origin.accept()
            server.expect(HELLO)
            server.close()
            client.close()
            flow = proxy.flow
            assert ("rule", "origin.test", HostSource.SNI) == (
                flow.reason,
                flow.host,
                flow.host_from,
            )

    def test_literal_silent(self) -> None:
        """A client that doesn't say its name where one is needed isn't waited for."""
        with proxying(default="deny", silence=0.05) as proxy:
            proxy.judge.policy = private()
            client = proxy.client()
            proxy.tunnel(client, self.literal(proxy))
            client.expect_reset()
            proxy.origin.expect_nobody()
            assert "no_name" == proxy.flow.reason

    def test_literal_hint(self) -> None:
        """What would allow the name inside is known of the flow."""
        with proxying(default="deny") as proxy:
            proxy.judge.policy = private()
            client = proxy.client()
            proxy.tunnel(client, self.literal(proxy))
            client.send(OTHER)
            client.expect(ALERT)
            assert ("default", f"127.0.0.1:{proxy.origin.port}") == (
                proxy.flow.reason,
                proxy.flow.hint,
            )

    def test_literal_not_verified(self) -> None:
        """S4: nor is one dialled that isn't the name's."""
        with proxying(default="deny") as proxy:
            proxy.judge.policy = private()
            proxy.names.table["origin.test"] = ("127.0.0.2",)
            client = proxy.client()
            proxy.tunnel(client, self.literal(proxy))
            client.send(HELLO)
            client.expect_reset()
            proxy.origin.expect_nobody()
            assert "127.0.0.2" == getattr(proxy.flow.upstream, "host", None)

    def test_literal_server_first(self) -> None:
        """Where a nameless client would be allowed, a server that speaks first ends the wait."""
        with proxying(default="allow", deny=["evil.test"]) as proxy:
            client = proxy.client()
            proxy.tunnel(client, self.literal(proxy))
            server = proxy.origin.accept()
            server.send(b"220 hello\r\n")
            client.expect(b"220 hello\r\n")
            client.send(b"EHLO\r\n")
            server.expect(b"EHLO\r\n")
            client.close()
            server.close()
            assert (None, 6, 11) == (proxy.flow.host, proxy.flow.sent, proxy.flow.received)

    @pytest.mark.parametrize("said", [OTHER, HELLO])
    def test_literal_server_first_no_excuse(self, said: bytes) -> None:
        """What its client says then, whenever that is, still counts."""
        with proxying(default="allow", deny=["evil.test"]) as proxy:
            client = proxy.client()
            proxy.tunnel(client, self.literal(proxy))
            server = proxy.origin.accept()
            for greeting in (b"220 hello\r\n", b"221 hello?\r\n"):
                server.send(greeting)
                client.expect(greeting)
            client.say(*[said[at : at + 1] for at in range(len(said))])
            if said == HELLO:
                server.expect(HELLO)
                client.close()
                server.close()
            else:
                client.expect(ALERT)
                assert b"" == server.expect_reset()
            expected = ("default", len(HELLO)) if said == HELLO else ("denied_by_rule", 0)
            assert (*expected, 23) == (proxy.flow.reason, proxy.flow.sent, proxy.flow.received)

    @pytest.mark.parametrize("says", [None, "office_hours"])
    def test_literal_server_first_steps(self, says: str | None) -> None:
        """Decision steps are asked before its client hears it, and once more with a name."""
        step = Objects(says)
        with proxying(deny=["evil.test"], steps=[step]) as proxy:
            client = proxy.client()
            proxy.tunnel(client, self.literal(proxy))
            server = proxy.origin.accept()
            server.send(b"220 hello\r\n")
            if says is not None:
                assert b"" == client.expect_reset()
                assert ([None], says) == (step.asked, proxy.flow.reason)
                return
            client.expect(b"220 hello\r\n")
            client.send(HELLO)
            server.expect(HELLO)
            assert [None, "origin.test"] == step.asked

    def test_literal_server_first_reload(self) -> None:
        """A new policy that denies it ends it, though its client has not spoken."""
        with proxying(default="allow", deny=["evil.test"]) as proxy:
            client = proxy.client()
            proxy.tunnel(client, self.literal(proxy))
            server = proxy.origin.accept()
            server.send(b"220 hello\r\n")
            client.expect(b"220 hello\r\n")
            proxy.judge.policy = policy(default="deny")
            proxy.judge.close_denied()
            client.expect_reset()
            assert (FlowEnd.DENIED, 11) == (proxy.flow.end, proxy.flow.received)
            assert {} == proxy.judge.open

    def test_literal_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name that is elsewhere is denied where the client has heard this server."""
        monkeypatch.setattr(Policy, "_is_public", lambda *_: True)
        with proxying(default="deny") as proxy:
            proxy.judge.policy = policy(default="deny", allow=["origin.test"], no_name=Choice.ALLOW)
            proxy.names.table["origin.test"] = ("127.0.0.2",)
            client = proxy.client()
            proxy.tunnel(client, self.literal(proxy))
            server = proxy.origin.accept()
            server.send(b"220 hello\r\n")
            client.expect(b"220 hello\r\n")
            client.send(HELLO)
            client.expect(ALERT)
            assert b"" == server.expect_reset()
            assert ("server_spoke_first", 0, 11) == (
                *(proxy.flow.reason, proxy.flow.sent, proxy.flow.received),
            )

    @pytest.mark.parametrize("inside", [False, True])
    def test_steps(self, inside: bool) -> None:
        """Decision steps are asked once, when all is known."""
        step = Objects("office_hours")
        deny = ["evil.test"] if inside else []
        with proxying(deny=deny, steps=[step]) as proxy:
            client = proxy.client()
            if inside:
                proxy.tunnel(client, self.literal(proxy))
                client.send(HELLO)
                client.expect(ALERT)
            else:
                client.send(b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % proxy.authority)
                assert 403 == client.status()
            assert ["origin.test"] == step.asked
            assert "office_hours" == proxy.flow.reason

    def test_reload(self) -> None:
        """A policy that is replaced counts from the next request on, kept connection or not."""
        with proxying() as proxy:
            client = proxy.client()
            for _ in range(2):
                proxy.request(client)
                server = proxy.origin.peers[0] if proxy.origin.peers else proxy.origin.accept()
                server.expect_head()
                server.send(b"HTTP/1.1 204 No\r\n\r\n")
                client.expect_head()
            proxy.judge.policy = policy(deny=["origin.test"])
            proxy.request(client)
            assert 403 == client.status()
            server.expect_nothing()

    def test_close_denied(self) -> None:
        """An open tunnel ends if the new policy denies it and the service says so."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.tunnel(client)
            server = proxy.origin.accept()
            client.send(HELLO)
            server.expect(HELLO)
            proxy.judge.policy = policy(deny=["origin.test"])
            proxy.judge.close_denied()
            client.expect_reset()
            server.expect_reset()
            assert ("denied_by_rule", FlowEnd.DENIED) == (proxy.flow.reason, proxy.flow.end)
            assert {} == proxy.judge.open


def private() -> Policy:
    """Allow origin.test alone, which may lead to private addresses."""
    return policy(
        default="deny", allow=["origin.test"], private_names=[parse_name_rule("origin.test")]
    )


class TestUpgrade:
    FIELDS = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    SWITCHING = (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )

    def test_websocket(self) -> None:
        """After 101 the two speak as they like; what either said early isn't lost."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, fields=self.FIELDS, body=b"early")
            server = proxy.origin.accept()
            server.expect(
                b"GET / HTTP/1.1\r\nHost: %b\r\nVia: 1.1 sidecar\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\n\r\n" % proxy.authority
            )
            server.expect_nothing()
            server.send(self.SWITCHING + b"greeting")
            client.expect(
                b"HTTP/1.1 101 Switching Protocols\r\nVia: 1.1 sidecar\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\n\r\ngreeting"
            )
            server.expect(b"early")
            client.send(b"ping")
            server.expect(b"ping")
            server.send(b"pong")
            client.expect(b"pong")
            client.close()
            server.close()
            assert (101, 9, 12) == (proxy.flow.status, proxy.flow.sent, proxy.flow.received)

    def test_refused(self) -> None:
        """Without 101 it is a request as any other, and what was sent early another one."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, fields=self.FIELDS)
            proxy.request(client, path=b"/2")
            server = proxy.origin.accept()
            server.expect_head()
            server.send(b"HTTP/1.1 204 No\r\n\r\n")
            assert b"204" in client.expect_head()
            server.expect(proxy.served(path=b"/2"))

    @pytest.mark.parametrize("offer", [b"h2c", b"H2C", b"websocket, h2c", b"TLS/1.2", b"HTTP/2.0"])
    def test_opaque(self, offer: bytes) -> None:
        """What would carry requests that nobody judges isn't offered."""
        with proxying() as proxy:
            client = proxy.client()
            proxy.request(client, fields=b"Connection: Upgrade\r\nUpgrade: %b\r\n" % offer)
            server = proxy.origin.accept()
            server.expect(proxy.served())
            server.send(self.SWITCHING)
            assert 502 == client.status()
