from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from askers import query, read
from hypothesis import example, given
from hypothesis import strategies as st
from nameservers import a, cname, raw, record
from twisted.names import dns

from sidecar.dns import messages
from sidecar.dns.messages import (
    Edns,
    ExtendedError,
    Question,
    QuestionError,
    Reply,
    edns_of,
    errors_in,
    is_name,
    presentation,
    rcode_text,
    read_message,
    read_question,
    type_text,
    write_query,
    write_reply,
)

LABELS = st.binary(min_size=1, max_size=63).filter(lambda label: b"." not in label)
NAMES = st.lists(LABELS, max_size=5).map(b".".join).filter(is_name)


class TestRead:
    @given(
        NAMES, st.integers(0, 248), st.booleans(), st.booleans(), st.none() | st.integers(0, 65535)
    )
    def test_question(
        self, name: bytes, kind: int, authentic: bool, unchecked: bool, size: int | None
    ) -> None:
        """What a client says is what is read."""
        if kind == dns.OPT:
            kind = dns.A
        found = read_question(
            query(name, kind, authentic=authentic, unchecked=unchecked, edns=size)
        )
        assert (0x1234, name, kind) == (found.ident, found.name, found.type)
        assert (authentic, unchecked) == (found.authentic, found.unchecked)
        assert size == (None if found.edns is None else found.edns.size)
        assert 512 <= found.room <= 4096

    @given(st.binary(max_size=300))
    @example(b"\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\xc0\x0c\x00\x01\x00\x01")
    def test_any_bytes(self, data: bytes) -> None:
        """Whatever comes is a question, or refused by the one error."""
        with suppress(QuestionError):
            read_question(data)

    @given(st.data())
    def test_changed(self, data: st.DataObject) -> None:
        """Likewise for what is nearly a question."""
        good = bytearray(query("www.example.com", edns=1232, options=bytes(8)))
        for _ in range(data.draw(st.integers(1, 4))):
            good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
        try:
            found = read_question(bytes(good))
        except QuestionError:
            return
        assert is_name(found.name)

    def test_two_opts(self) -> None:
        """Two OPT records, and one with a name, are refused."""
        message = dns.Message(1)
        message.addQuery(b"x.example", dns.A)
        opt = dns.RRHeader(b"", dns.OPT, 1232, 0, dns.UnknownRecord(b""))
        message.additional = [opt, opt]
        with pytest.raises(QuestionError):
            read_question(message.toStr())
        message.additional = [dns.RRHeader(b"x", dns.OPT, 1232, 0, dns.UnknownRecord(b""))]
        with pytest.raises(QuestionError):
            read_question(message.toStr())

    @pytest.mark.parametrize("end", range(12, 62))
    def test_cut(self, end: int) -> None:
        """A message that ends too soon is none."""
        message = dns.Message(1, 1)
        message.addQuery(b"x.example", dns.A)
        message.answers = a("x.example", "9.9.9.9")
        message.authority = [record("example", dns.Record_NS(b"ns.example"))]
        data = message.toStr()
        assert read_message(data) is not None
        assert None is read_message(data[: min(end, len(data) - 1)])

    def test_chained_pointers(self) -> None:
        """A message that is nothing but pointers is refused, or read in no time."""
        pointers = b"".join(struct.pack("!H", 0xC000 | each) for each in range(12, 4000, 2))
        data = struct.pack("!6H", 1, 0x8180, 1, 0, 0, 0) + b"\x00\x00" + pointers
        read_message(data)


class TestWrite:
    @given(NAMES, st.lists(st.binary(max_size=300), max_size=30), st.integers(512, 4096))
    def test_room(self, name: bytes, texts: list[bytes], room: int) -> None:
        """An answer has no more than its room, whole records, and says if some are missing."""
        rows = tuple(raw("x", 65280, text) for text in texts)
        question = Question(1, name, 65280, edns=Edns(room, 0, 0, False, b""))
        data = write_reply(question, Reply(0, rows, error=ExtendedError(17, "why")), room)
        message = read_message(data)
        assert message is not None
        assert len(data) <= room
        got = [each.payload.data for each in message.answers]  # type: ignore[union-attr]
        assert texts[: len(got)] == got
        assert bool(message.trunc) == (len(got) < len(texts))
        assert 1 == len(message.additional)

    def test_not_compressed(self) -> None:
        """Names in data of newer types aren't compressed, those of the first are."""
        srv = record("x.example", dns.Record_SRV(1, 2, 3, b"x.example"))
        mx = record("x.example", dns.Record_MX(1, b"x.example"))
        question = Question(1, b"x.example", dns.SRV)
        sent = dns.Message(1, 1)
        sent.answers = [srv, mx]
        understood = read_message(sent.toStr())
        assert understood is not None
        data = write_reply(question, Reply(0, tuple(understood.answers)), 512)
        assert b"\x00\x03\x01x\x07example\x00" in data
        assert data.endswith(b"\x00\x04\x00\x01\xc0\x0c")

    def test_impossible(self) -> None:
        """A record that no message can hold is an error, not a broken message."""
        row = cname("x.example", "y")
        row.payload.name.name = b"a" * 300  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="can't be written"):
            write_reply(Question(1, b"x.example", dns.A), Reply(0, (row,)), 512)

    def test_query(self) -> None:
        """Our own question, with EDNS and without."""
        question = Question(7, b"X.example", dns.MX, authentic=True, edns=Edns(9, 0, 0, True, b"?"))
        ours = read(write_query(99, question, edns=True))
        assert (99, 0, 1, 1) == (ours.id, ours.answer, ours.recDes, ours.authenticData)
        (opt,) = ours.additional
        assert (1232, 0x8000) == (opt.cls, opt.ttl)
        assert [] == read(write_query(99, question, edns=False)).additional

    def test_rcodes(self) -> None:
        """An rcode of more than four bits needs EDNS."""
        question = Question(1, b"", dns.A, edns=Edns(512, 0, 0, False, b""))
        message = read(write_reply(question, Reply(0x17), 512))
        edns = edns_of(message)
        assert 0x17 == messages.rcode_of(message, edns)


class TestOptions:
    def test_errors(self) -> None:
        """Of a server's options only extended errors are passed on, so many bytes of them."""
        error = struct.pack("!HHH", 15, 4, 6) + b"no"
        cookie = struct.pack("!HH", 10, 8) + bytes(8)
        assert error * 2 == errors_in(Edns(0, 0, 0, False, error + cookie + error))
        assert b"" == errors_in(Edns(0, 0, 0, False, error[:-1]))
        assert b"" == errors_in(Edns(0, 0, 0, False, struct.pack("!HH", 15, 600) + bytes(600)))
        assert b"" == errors_in(None)


class TestText:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            (b"", "."),
            (b"Www.example", "Www.example"),
            (b'a b."\\;\x1b[31m\xff', 'a\\032b.\\"\\\\\\;\\027[31m\\255'),
        ],
    )
    def test_presentation(self, name: bytes, text: str) -> None:
        """Nothing that a terminal would obey is in it."""
        assert text == presentation(name)

    def test_longest(self) -> None:
        """The longest has as many characters as is said."""
        assert 1004 >= len(presentation(b".".join([b"\xff" * 63] * 3 + [b"\xff" * 61])))

    def test_numbers(self) -> None:
        """Types and rcodes without a name have their number."""
        assert ("HTTPS", "ANY", "TYPE999") == (type_text(65), type_text(255), type_text(999))
        assert ("NXDOMAIN", "RCODE99") == (rcode_text(3), rcode_text(99))
