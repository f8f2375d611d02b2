"""Tests for L{udptunnel.net.dnsmessages}."""

from __future__ import annotations

from struct import pack

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.names import dns
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.net.dnsmessages import (
    FORMAT_ERROR,
    LARGEST_QUERY,
    NO_SUCH_NAME,
    NOT_IMPLEMENTED,
    REFUSED,
    NotAQueryError,
    QueryError,
    readQuery,
    writeReply,
)

NAME = b"\x04Host\x07eXample\x00"
OPT = b"\0" + pack("!HHIH", 41, 4096, 0, 0)


def question(
    name: bytes = NAME,
    kind: int = dns.A,
    cls: int = dns.IN,
    flags: int = 0x0100,
    counts: tuple[int, int, int, int] = (1, 0, 0, 0),
    rest: bytes = b"",
) -> bytes:
    """A question as a stub resolver writes it."""
    return pack("!HH4H", 0x1234, flags, *counts) + name + pack("!HH", kind, cls) + rest


def withOptions(*options: bytes) -> bytes:
    """A question with records behind it."""
    return question(counts=(1, 0, 0, len(options)), rest=b"".join(options))


def read(data: bytes) -> dns.Message:
    """What a resolver reads."""
    message = dns.Message()
    message.fromStr(data)
    return message


class ReadTests(SynchronousTestCase):
    """L{readQuery}."""

    def assertRefused(self, data: bytes, rCode: int) -> dns.Message:
        """A question is refused with this code, and the answer has its number."""
        reply = read(self.assertRaises(QueryError, readQuery, data).reply)
        self.assertEqual((reply.id, reply.answer, reply.rCode), (0x1234, 1, rCode))
        self.assertEqual(reply.answers, [])
        return reply

    def test_question(self) -> None:
        """A question says name, as written, and kind."""
        query = readQuery(question(kind=dns.AAAA))
        self.assertEqual((query.name, query.kind, query.edns), ("Host.eXample", dns.AAAA, None))

    def test_root(self) -> None:
        """The root is a name, too."""
        self.assertEqual(readQuery(question(b"\0", dns.NS)).name, "")

    def test_strangeBytes(self) -> None:
        """A name may hold any bytes; they are shown so that it is no host's name."""
        self.assertEqual(readQuery(question(b"\x02h\xf6\x00")).name, "h\\xf6")

    def test_notAQuestion(self) -> None:
        """What is too short for a header, and an answer, is no question: no answer is due."""
        whole = question()
        for data in (b"", whole[:11], question(flags=0x8180)):
            self.assertRaises(NotAQueryError, readQuery, data)

    def test_cut(self) -> None:
        """A question that ends early breaks the format, wherever it ends."""
        whole = withOptions(OPT)
        for end in range(12, len(whole)):
            self.assertRefused(whole[:end], FORMAT_ERROR)

    def test_count(self) -> None:
        """None or several questions in one message break the format (RFC 9619)."""
        self.assertRefused(question(counts=(0, 0, 0, 0)), FORMAT_ERROR)
        self.assertRefused(question(counts=(2, 0, 0, 0), rest=NAME + pack("!HH", 28, 1)), FORMAT_ERROR)

    def test_recordsMissing(self) -> None:
        """A message has all the records that it says it has."""
        for counts in ((1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 2), (1, 0, 0, 65535)):
            self.assertRefused(question(counts=counts, rest=OPT if counts[3] else b""), FORMAT_ERROR)

    def test_records(self) -> None:
        """Records that come along are not looked into: their content may be nonsense."""
        nonsense = NAME + pack("!HHIH", 35, 1, 0, 3) + b"\xff\xff\xff"  # NAPTR
        self.assertEqual(readQuery(withOptions(nonsense, OPT)).name, "Host.eXample")

    def test_opcodes(self) -> None:
        """Other requests than questions, updates say, are not implemented."""
        for opcode in (1, 2, 4, 5, 15):
            reply = self.assertRefused(question(flags=opcode << 11), NOT_IMPLEMENTED)
            self.assertEqual(reply.opCode, opcode)

    def test_classes(self) -> None:
        """Who asks about another network than the Internet, for our version say, is refused."""
        for cls in (3, 255, 0):
            reply = self.assertRefused(question(cls=cls), REFUSED)
            self.assertEqual(len(reply.queries), 1)

    def test_pointers(self) -> None:
        """A name that points elsewhere, or to itself, breaks the format."""
        for name in (b"\xc0\x0c", b"\xc0\x00", b"\x01a\xc0\x0c", b"\x01a\xc0\x05", b"\xc0\x12"):
            self.assertRefused(question(name), FORMAT_ERROR)

    def test_longNames(self) -> None:
        """A name has 255 bytes at most."""
        label = b"\x3f" + b"x" * 63
        self.assertEqual(len(readQuery(question(label * 3 + b"\x3d" + b"x" * 61 + b"\0")).name), 253)
        self.assertRefused(question(label * 3 + b"\x3e" + b"x" * 62 + b"\0"), FORMAT_ERROR)

    def test_longQuestions(self) -> None:
        """What is too long for a question is not read."""
        rest = b"\0" + pack("!HHIH", 41, 4096, 0, LARGEST_QUERY)
        self.assertRefused(question(counts=(1, 0, 0, 1), rest=rest + bytes(LARGEST_QUERY)), FORMAT_ERROR)

    def test_options(self) -> None:
        """One OPT record at most, of the root (RFC 6891 section 6.1.1)."""
        self.assertIsNotNone(readQuery(withOptions(OPT)).edns)
        self.assertRefused(withOptions(OPT, OPT), FORMAT_ERROR)
        self.assertRefused(withOptions(b"\x01a" + OPT), FORMAT_ERROR)

    def test_version(self) -> None:
        """Another version of EDNS is answered with BADVERS, in our version (RFC 6891 section 6.1.3)."""
        later = b"\0" + pack("!HHIH", 41, 4096, 0x00018000, 0)
        reply = self.assertRefused(withOptions(later), 0)
        (options,) = reply.additional
        self.assertEqual(options.ttl, 0x01008000)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.one_of(st.binary(max_size=100), st.builds(lambda rest: question()[:12] + rest, st.binary(max_size=60))))
    def test_garbage(self, data: bytes) -> None:
        """Whatever arrives is a question that can be answered, or refused, or none."""
        try:
            reply = writeReply(readQuery(data))
        except NotAQueryError:
            return
        except QueryError as error:
            reply = error.reply
        self.assertEqual(reply[:2], data[:2])
        self.assertTrue(reply[2] & 0x80)


class WriteTests(SynchronousTestCase):
    """L{writeReply}."""

    def test_answer(self) -> None:
        """An answer has the number and the question, byte by byte, and the records with their time to live."""
        data = question()
        written = writeReply(readQuery(data), (dns.Record_A("198.18.0.2"),), 1)
        self.assertEqual(written[12 : len(data)], data[12:])
        reply = read(written)
        self.assertEqual((reply.id, reply.answer, reply.recDes, reply.recAv, reply.rCode), (0x1234, 1, 1, 1, dns.OK))
        self.assertEqual((reply.auth, reply.trunc), (0, 0))
        (record,) = reply.answers
        self.assertEqual((record.name.name, record.type, record.cls, record.ttl), (b"Host.eXample", dns.A, dns.IN, 1))
        self.assertEqual(record.payload, dns.Record_A("198.18.0.2", 1))
        self.assertEqual(reply.additional, [])

    def test_empty(self) -> None:
        """An answer may have no record, and may say that there is no such name."""
        for rCode in (dns.OK, NO_SUCH_NAME):
            reply = read(writeReply(readQuery(question()), rCode=rCode))
            self.assertEqual((reply.rCode, reply.answers, reply.authority), (rCode, [], []))

    def test_flags(self) -> None:
        """That recursion is not wanted, and that checks are off, is said back."""
        reply = read(writeReply(readQuery(question(flags=0x0010))))
        self.assertEqual((reply.recDes, reply.checkingDisabled), (0, 1))

    def test_edns(self) -> None:
        """A question with EDNS is answered with EDNS; the bit for DNSSEC is as it was, its options are not repeated."""
        cookie = pack("!HH", 10, 8) + b"12345678"
        options = b"\0" + pack("!HHIH", 41, 4096, 0x8000, len(cookie)) + cookie
        reply = read(writeReply(readQuery(withOptions(options)), (dns.Record_A("198.18.0.2"),), 1))
        (options_,) = reply.additional
        self.assertEqual((options_.name.name, options_.type, options_.cls, options_.ttl), (b"", 41, 1232, 0x8000))
        self.assertEqual(len(reply.answers), 1)

    def test_longest(self) -> None:
        """An answer to the longest name fits, whole, in the 512 bytes that everybody takes."""
        label = b"\x3f" + b"x" * 63
        query = readQuery(question(label * 3 + b"\x3d" + b"x" * 61 + b"\0", counts=(1, 0, 0, 1), rest=OPT))
        written = writeReply(query, (dns.Record_AAAA("2001:db8::1"),), 1)
        self.assertEqual(read(written).trunc, 0)
        self.assertLessEqual(len(written), 512)
