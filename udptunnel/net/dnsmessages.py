"""
DNS messages, as far as we speak DNS ourselves: one question in, one answer out.

The format is that of RFC 1035 section 4 with EDNS (RFC 6891), read and written
by C{twisted.names.dns}. Records that come with a question are not looked into,
but for the one that says how EDNS is spoken.
"""

from __future__ import annotations

from io import BytesIO
from struct import Struct
from typing import IO, Any, NamedTuple

from twisted.names import dns

HEADER_BYTES = 12

LARGEST_QUERY = 4096
"""A question with all its options takes a few hundred bytes. What is longer is not read."""

_HEADER = Struct("!HHHHHH")
_RESPONSE, _OPCODE, _RECURSION_DESIRED, _CHECKING_DISABLED = 0x8000, 0x7800, 0x0100, 0x0010

FORMAT_ERROR, NO_SUCH_NAME, NOT_IMPLEMENTED, REFUSED, FAILED = dns.EFORMAT, dns.ENAME, dns.ENOTIMP, dns.EREFUSED, 2
"""Response codes (RFC 1035 section 4.1.1)."""

_OPT = 41
_DNSSEC_OK = 0x8000
_BAD_VERSION = 1 << 24
"""BADVERS, 16, in the extended response code of an OPT record (RFC 6891 section 6.1.3)."""

_OUR_SIZE = 1232
"""The UDP payload that we say we take: DNS Flag Day 2020. We send much less."""


class NotAQueryError(Exception):
    """A datagram is no DNS question, and must not be answered."""


class QueryError(Exception):
    """
    A question is refused as a whole.

    @ivar reply: what says so to who asked.
    """

    def __init__(self, reply: bytes) -> None:
        super().__init__("a DNS question is refused")
        self.reply = reply


class Query(NamedTuple):
    """One question."""

    message: dns.Message
    """All of it."""

    raw: bytes
    """The question as it was written."""

    name: str
    """The name, as it was written, without a dot at the end. Bytes that are not ASCII are escaped."""

    kind: int
    """The type of record that is asked for."""

    edns: dns.RRHeader | None
    """The OPT record, if there is one."""


class _Request(dns.Message):
    """A message whose records stay as they are: what is not read can not be wrong."""

    def lookupRecordType(self, type: int) -> Any:
        """How to read a record."""
        return dns.UnknownRecord


class _Echo(dns.Query):
    """A question, written back byte by byte: whoever asks in mixed case looks for the same in the answer."""

    def __init__(self, raw: bytes, name: bytes) -> None:
        super().__init__(name)
        self._raw = raw

    def encode(self, strio: IO[bytes], compDict: dict[bytes, int] | None = None) -> None:
        """Write it, and let later records point to its name."""
        if compDict is not None:
            compDict[self.name.name] = HEADER_BYTES
        strio.write(self._raw)


def readQuery(data: bytes) -> Query:
    """
    The question in a datagram.

    @raise NotAQueryError: there is none; no answer is due.
    @raise QueryError: there is something that we do not answer, but to say so:
        it breaks the format, asks several questions (RFC 9619), another kind of
        thing, or about another network than the Internet.
    """
    if len(data) < HEADER_BYTES:
        raise NotAQueryError("too short")
    number, flags, *counts = _HEADER.unpack_from(data)
    if flags & _RESPONSE:
        raise NotAQueryError("an answer")
    if flags & _OPCODE:
        raise QueryError(_bare(number, flags, NOT_IMPLEMENTED))
    if counts[0] != 1 or len(data) > LARGEST_QUERY:
        raise QueryError(_bare(number, flags, FORMAT_ERROR))
    query = _parse(data, counts)
    if query is None:
        raise QueryError(_bare(number, flags, FORMAT_ERROR))
    if query.edns is not None and query.edns.ttl >> 16 & 0xFF:
        raise QueryError(_encode(query, [], 0, _BAD_VERSION))
    if query.message.queries[0].cls != dns.IN:
        raise QueryError(writeReply(query, rCode=REFUSED))
    return query


def _parse(data: bytes, counts: list[int]) -> Query | None:
    """A message of one question; C{None} if it breaks the format."""
    message, end = _Request(), 0
    try:
        message.fromStr(data)
        end = _endOfQuestion(data)
    # Too few bytes, a loop of pointers, too many of them.
    except (EOFError, ValueError):
        return None
    # A message that ends too early is no error there, but has less in it than it says.
    if [len(each) for each in (message.queries, message.answers, message.authority, message.additional)] != counts:
        return None
    question, options = message.queries[0], [each for each in message.additional if each.type == _OPT]
    name: bytes = question.name.name
    # A name that points elsewhere could not be written back alone; a name has 255 bytes (RFC 1035 section 2.3.4).
    size = len(name) + 2 if name else 1
    if end - HEADER_BYTES != size + 4 or size > 255 or len(options) > 1 or any(each.name.name for each in options):
        return None
    text = name.decode("ascii", "backslashreplace")
    return Query(message, data[HEADER_BYTES:end], text, question.type, options[0] if options else None)


def _endOfQuestion(data: bytes) -> int:
    file = BytesIO(data)
    file.seek(HEADER_BYTES)
    dns.Query().decode(file)
    return file.tell()


def _bare(number: int, flags: int, rCode: int) -> bytes:
    """An answer of a header only: what was asked is not understood."""
    kept = flags & (_OPCODE | _RECURSION_DESIRED | _CHECKING_DISABLED)
    return _HEADER.pack(number, _RESPONSE | kept | rCode, 0, 0, 0, 0)


def writeReply(query: Query, records: tuple[Any, ...] = (), seconds: int = 0, rCode: int = dns.OK) -> bytes:
    """
    The answer to a question: records about the name that was asked for.

    @param records: such as C{dns.Record_A}.
    @param seconds: how long they may be remembered.
    """
    name = query.message.queries[0].name.name
    headers = [dns.RRHeader(name, record.TYPE, dns.IN, seconds, record) for record in records]
    return _encode(query, headers, rCode)


def _encode(query: Query, answers: list[dns.RRHeader], rCode: int, extended: int = 0) -> bytes:
    asked = query.message
    message = dns.Message(
        asked.id,
        answer=1,
        recDes=asked.recDes,
        recAv=1,
        rCode=rCode,
        checkingDisabled=asked.checkingDisabled,
    )
    message.queries = [_Echo(query.raw, asked.queries[0].name.name)]
    message.answers = answers
    if query.edns is not None:
        # Whoever speaks EDNS is answered in EDNS, and finds the bit for DNSSEC again (RFC 3225 section 3).
        flags = extended | query.edns.ttl & _DNSSEC_OK
        message.additional = [dns.RRHeader(b"", _OPT, _OUR_SIZE, flags, dns.UnknownRecord(b""))]
    encoded: bytes = message.toStr()
    return encoded
