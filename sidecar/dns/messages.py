"""What a DNS message says, and how one is written: twisted.names' records within our limits.

Everything that goes out is written anew from what was understood, so nobody reads anything
else into it than we did. Records of types that need no understanding are carried as they
are (RFC 3597).
"""

from __future__ import annotations

import struct
from io import BytesIO

import msgspec
from twisted.names import dns

__all__ = [
    "BADVERS",
    "EDE_BLOCKED",
    "EDE_FILTERED",
    "EDE_NETWORK_ERROR",
    "EDE_NO_REACHABLE_AUTHORITY",
    "HTTPS",
    "MAX_QUERY",
    "MESSAGE_MAX",
    "OUR_UDP_SIZE",
    "SVCB",
    "Edns",
    "ExtendedError",
    "Message",
    "Question",
    "QuestionError",
    "Reply",
    "edns_of",
    "errors_in",
    "is_name",
    "presentation",
    "question_of",
    "rcode_of",
    "rcode_text",
    "read_message",
    "read_question",
    "type_text",
    "write_query",
    "write_reply",
]

SVCB, HTTPS = 64, 65  # RFC 9460
_DNSSEC = {43: "DS", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 51: "NSEC3PARAM"}
_TYPES = {
    **dns.QUERY_TYPES,
    **_DNSSEC,
    52: "TLSA",
    SVCB: "SVCB",
    HTTPS: "HTTPS",
    dns.ALL_RECORDS: "ANY",
    256: "URI",
    257: "CAA",
}
BADVERS = 16  # RFC 6891 §6.1.3
_RCODES = {
    dns.OK: "NOERROR",
    dns.EFORMAT: "FORMERR",
    dns.ESERVER: "SERVFAIL",
    dns.ENAME: "NXDOMAIN",
    dns.ENOTIMP: "NOTIMP",
    dns.EREFUSED: "REFUSED",
    BADVERS: "BADVERS",
}

# RFC 8914 §4.
_OPTION_EDE = 15
EDE_BLOCKED, EDE_FILTERED = 15, 17
EDE_NO_REACHABLE_AUTHORITY, EDE_NETWORK_ERROR = 22, 23

MESSAGE_MAX = 65535
# A question with its options has 300 bytes at most; cookies and padding some hundred more.
MAX_QUERY = 4096
# RFC 1035 §4.2.1; RFC 9715 for what passes every network in one piece.
_PLAIN_UDP_SIZE = 512
OUR_UDP_SIZE = 1232
# The most that is sent in one datagram, whatever the client says it takes.
_MAX_UDP_SIZE = 4096

_LABEL_MAX = 63
_NAME_MAX = 253
# RFC 1035 §4.1.4: a pointer has 14 bits.
_POINTER_MAX = 0x3FFF
_HEADER = struct.Struct("!H2B4H")
_OPTION = struct.Struct("!HH")
_DO = 0x8000
# Meta-types that ask for something else than records of a name (RFC 6895 §3.1): OPT, and
# TKEY, TSIG, IXFR, AXFR, MAILB, MAILA.
_NO_QUESTIONS = frozenset({dns.OPT, *range(249, 255)})
_ADDITIONAL_MAX = 4
# Bytes of a server's extended errors that are passed on.
_ERRORS_MAX = 512


class _Uncompressed:
    """Record data whose names are compressed by nobody any more (RFC 3597 §4)."""

    def encode(self, strio: BytesIO, compDict: dict[bytes, int] | None = None) -> None:  # noqa: ARG002
        super().encode(strio, None)  # type: ignore[misc]


class _SRV(_Uncompressed, dns.Record_SRV):
    pass


class _NAPTR(_Uncompressed, dns.Record_NAPTR):
    pass


class _AFSDB(_Uncompressed, dns.Record_AFSDB):
    pass


class _RP(_Uncompressed, dns.Record_RP):
    pass


class _DNAME(_Uncompressed, dns.Record_DNAME):
    pass


# The types whose data may hold compressed names (RFC 3597 §4); all others are carried as
# they are.
_UNDERSTOOD = {
    **{
        record.TYPE: record
        for record in (
            *(dns.Record_NS, dns.Record_MD, dns.Record_MF, dns.Record_CNAME, dns.Record_SOA),
            *(dns.Record_MB, dns.Record_MG, dns.Record_MR, dns.Record_PTR, dns.Record_MINFO),
            dns.Record_MX,
        )
    },
    **{record.TYPE: record for record in (_SRV, _NAPTR, _AFSDB, _RP, _DNAME)},
}


class Message(dns.Message):
    """A message whose records are understood only where they must be."""

    # Of a message of 64 KiB, a thousand records would be too few.
    maxCompressionPointers = 8192

    def lookupRecordType(self, type: int) -> type[dns.IEncodableRecord]:  # noqa: A002 - Twisted's
        """Which class understands a type."""
        return _UNDERSTOOD.get(type, dns.UnknownRecord)


class QuestionError(ValueError):
    """Bytes that are no question that could be answered.

    Args:
        problem: What is wrong.
        reply: What to send back; None if nothing should be.
    """

    def __init__(self, problem: str, reply: bytes | None = None) -> None:
        super().__init__(problem)
        self.reply = reply


class Edns(msgspec.Struct, frozen=True):
    """What a message says by an OPT record (RFC 6891).

    Attributes:
        size: Bytes that its sender takes in a datagram.
        extended: The upper eight bits of the rcode.
        version: 0.
        dnssec: DO: the sender wants signatures.
        options: Undecoded.
    """

    size: int
    extended: int
    version: int
    dnssec: bool
    options: bytes


class Question(msgspec.Struct, frozen=True):
    """What somebody asks.

    Attributes:
        ident: Goes back with the answer.
        name: Labels between dots, as they came; empty for the root.
        type: Which records.
        recursion: RD.
        authentic: AD: the client would understand that bit (RFC 6840 §5.7).
        unchecked: CD.
        edns: None if the client doesn't speak EDNS.
    """

    ident: int
    name: bytes
    type: int
    recursion: bool = True
    authentic: bool = False
    unchecked: bool = False
    edns: Edns | None = None

    @property
    def dnssec(self) -> bool:
        """Whether signatures are wanted."""
        return self.edns is not None and self.edns.dnssec

    @property
    def room(self) -> int:
        """How many bytes a datagram for this client may have."""
        if self.edns is None:
            return _PLAIN_UDP_SIZE
        return min(max(self.edns.size, _PLAIN_UDP_SIZE), _MAX_UDP_SIZE)


class ExtendedError(msgspec.Struct, frozen=True):
    """Why, in a code and words (RFC 8914).

    Attributes:
        code: The info-code.
        text: ASCII, short.
    """

    code: int
    text: str = ""


class Reply(msgspec.Struct, frozen=True):
    """What is answered.

    Attributes:
        rcode: The whole, twelve bits.
        answers, authority: The records.
        authentic: AD.
        error: Said besides, to clients that speak EDNS.
        options: EDNS options, encoded, that are passed on.
    """

    rcode: int
    answers: tuple[dns.RRHeader, ...] = ()
    authority: tuple[dns.RRHeader, ...] = ()
    authentic: bool = False
    error: ExtendedError | None = None
    options: bytes = b""


# Reading


def read_message(data: bytes) -> Message | None:
    """Read any message; None if it is malformed, or ends too soon."""
    message = Message()
    try:
        message.fromStr(data)
        counts = _HEADER.unpack_from(data)[3:]
    except Exception:  # noqa: BLE001 - of what bytes make twisted.names raise there is no list
        return None
    found = (
        len(message.queries),
        len(message.answers),
        len(message.authority),
        len(message.additional),
    )
    return message if found == counts else None


def edns_of(message: Message) -> Edns | None:
    """What the OPT record says; None if there is none.

    Raises:
        ValueError: There are two, or the one has a name.
    """
    found = [record for record in message.additional if record.type == dns.OPT]
    if not found:
        return None
    (record,) = found
    if record.name.name:
        raise ValueError("an OPT record with a name")
    flags = record.ttl
    data: bytes = getattr(record.payload, "data", b"")
    return Edns(record.cls, flags >> 24, flags >> 16 & 0xFF, bool(flags & _DO), data)


def read_question(data: bytes) -> Question:
    """Read what a client sends.

    Args:
        data: A datagram, or a message of a stream.

    Raises:
        QuestionError: It is none that can be answered; has what to send back.
    """
    if len(data) < _HEADER.size:
        raise QuestionError("less than a header")
    ident, high, low, *counts = _HEADER.unpack_from(data)
    if high & 0x80:
        # To answer an answer would make two servers talk for ever.
        raise QuestionError("an answer")
    opcode = high >> 3 & 0xF
    if opcode != dns.OP_QUERY:
        raise QuestionError("no query", _bare(ident, opcode, high, dns.ENOTIMP))
    malformed = QuestionError("malformed", _bare(ident, opcode, high, dns.EFORMAT))
    if len(data) > MAX_QUERY or counts[:3] != [1, 0, 0] or counts[3] > _ADDITIONAL_MAX:
        raise malformed
    message = read_message(data)
    if message is None:
        raise malformed
    (query,) = message.queries
    name: bytes = query.name.name
    written = BytesIO()
    query.encode(written)
    raw = written.getvalue()
    # Neither compressed nor with a dot within a label: read and written it is the same.
    if not is_name(name) or data[_HEADER.size : _HEADER.size + len(raw)] != raw:
        raise malformed
    try:
        edns = edns_of(message)
    except ValueError:
        raise malformed from None
    question = Question(
        ident,
        name,
        query.type,
        recursion=bool(high & 1),
        authentic=bool(low & 0x20),
        unchecked=bool(low & 0x10),
        edns=edns,
    )
    if edns is not None and edns.version:
        raise QuestionError("a newer EDNS", write_reply(question, Reply(BADVERS), question.room))
    if query.cls != dns.IN or query.type in _NO_QUESTIONS:
        refusal = _bare(ident, opcode, high, dns.EREFUSED)
        raise QuestionError("not of the Internet class, or no type of records", refusal)
    return question


def _bare(ident: int, opcode: int, high: int, rcode: int) -> bytes:
    """An answer without a question, for those that can't be repeated."""
    return _HEADER.pack(ident, 0x80 | opcode << 3 | high & 1, 0x80 | rcode, 0, 0, 0, 0)


def question_of(message: Message) -> tuple[bytes, int, int] | None:
    """The one question that a message repeats: name in lower case, type and class."""
    if len(message.queries) != 1:
        return None
    query = message.queries[0]
    return query.name.name.lower(), query.type, query.cls


def rcode_of(message: Message, edns: Edns | None) -> int:
    """The whole rcode."""
    return message.rCode | (edns.extended << 4 if edns is not None else 0)


def errors_in(edns: Edns | None) -> bytes:
    """The extended errors among a message's options, encoded; nothing else of them."""
    found = b""
    data = b"" if edns is None else edns.options
    position = 0
    while position + _OPTION.size <= len(data):
        code, length = _OPTION.unpack_from(data, position)
        end = position + _OPTION.size + length
        if end > len(data):
            break
        if code == _OPTION_EDE and len(found) + end - position <= _ERRORS_MAX:
            found += data[position:end]
        position = end
    return found


def is_name(name: bytes) -> bool:
    """Whether labels between dots are a name: none empty or too long, nor the whole."""
    if not name:
        return True
    return len(name) <= _NAME_MAX and all(
        0 < len(label) <= _LABEL_MAX for label in name.split(b".")
    )


# Writing


class _Offsets(dict[bytes, int]):
    """Where names stand in a message; only those that a pointer reaches."""

    def __setitem__(self, name: bytes, offset: int) -> None:
        if offset <= _POINTER_MAX:
            super().__setitem__(name, offset)


def write_query(ident: int, question: Question, *, edns: bool) -> bytes:
    """Write a question of ours, that asks what a client asked.

    Nothing of the client's EDNS options is passed on: cookies and client subnets are between
    a client and its server.

    Args:
        ident: Random.
        question: The client's.
        edns: Whether to speak EDNS.
    """
    body = BytesIO()
    dns.Query(question.name, question.type, dns.IN).encode(body)
    if edns:
        _opt(OUR_UDP_SIZE, 0, question.dnssec, b"").encode(body)
    low = question.authentic << 5 | question.unchecked << 4
    return _HEADER.pack(ident, 1, low, 1, 0, 0, int(edns)) + body.getvalue()


def write_reply(question: Question, reply: Reply, room: int) -> bytes:
    """Write an answer.

    Args:
        question: What it answers.
        reply: What to say.
        room: Bytes that it may have. If that isn't enough, whole records are left out from the
            end, and the answer says so (TC).

    Raises:
        ValueError: A record that can't be written.
    """
    body = BytesIO()
    offsets = _Offsets()
    dns.Query(question.name, question.type, dns.IN).encode(body, offsets)
    opt = b"" if question.edns is None else _written_opt(question, reply)
    room -= _HEADER.size + len(opt)
    counts = [0, 0]
    is_cut = False
    for section, records in enumerate((reply.answers, reply.authority)):
        for record in records:
            start = body.tell()
            try:
                record.encode(body, offsets)
            except (struct.error, TypeError, ValueError) as error:
                raise ValueError("a record that can't be written") from error
            if body.tell() > room:
                body.seek(start)
                body.truncate()
                is_cut = True
                break
            counts[section] += 1
        if is_cut:
            break
    high = 0x80 | is_cut << 1 | question.recursion
    low = 0x80 | reply.authentic << 5 | question.unchecked << 4 | reply.rcode & 0xF
    header = _HEADER.pack(question.ident, high, low, 1, *counts, int(bool(opt)))
    return header + body.getvalue() + opt


def _written_opt(question: Question, reply: Reply) -> bytes:
    options = reply.options
    if reply.error is not None:
        text = reply.error.text.encode("ascii", "replace")
        code = struct.pack("!H", reply.error.code)
        options += _OPTION.pack(_OPTION_EDE, len(code) + len(text)) + code + text
    written = BytesIO()
    _opt(OUR_UDP_SIZE, reply.rcode >> 4, question.dnssec, options).encode(written)
    return written.getvalue()


def _opt(size: int, extended: int, dnssec: bool, options: bytes) -> dns.RRHeader:
    flags = extended << 24 | (_DO if dnssec else 0)
    payload = dns.UnknownRecord(options)
    return dns.RRHeader(b"", dns.OPT, size, flags, payload)


# For people


def presentation(name: bytes) -> str:
    r"""A name as people read it (RFC 1035 §5.1): printable ASCII, the rest as ``\DDD``."""
    if not name:
        return "."
    return "".join(map(_shown, name))


def _shown(octet: int) -> str:
    char = chr(octet)
    if char in '\\"();@$':
        return f"\\{char}"
    return char if "!" <= char <= "~" else f"\\{octet:03d}"


def type_text(number: int) -> str:
    """A type's name."""
    return _TYPES.get(number) or f"TYPE{number}"


def rcode_text(number: int) -> str:
    """An rcode's name."""
    return _RCODES.get(number) or f"RCODE{number}"
