"""Tests for L{udptunnel.wire.socks5}."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.errors import AddressError, FragmentedError, SocksError, TruncatedError
from udptunnel.wire import socks5
from udptunnel.wire.address import Address
from udptunnel.wire.socks5 import (
    LARGEST_HEADER,
    ClientNegotiation,
    Command,
    Credentials,
    Reply,
    ReplyCode,
    Request,
    ServerNegotiation,
    packHeader,
    packReply,
    unpackHeader,
)

thorough = settings(max_examples=EXAMPLES, deadline=None)

V4, V6, NAMED = Address("1.2.3.4", 53), Address("::1", 443), Address("a.b", 1)

GOLDEN_ADDRESSES = {
    V4: "01 01020304 0035",
    V6: "04 00000000000000000000000000000001 01bb",
    NAMED: "03 03 612e62 0001",
    Address("a" * 255, 65535): f"03 ff {'61' * 255} ffff",
}

addresses = st.builds(
    Address,
    st.ip_addresses(v=4).map(str) | st.from_regex(r"[a-z]{1,63}(\.[a-z]{1,9}){0,3}", fullmatch=True),
    st.integers(0, 65535),
)
words = st.binary(max_size=255)
methods = st.tuples(st.binary(max_size=127), st.just(b"\x02"), st.binary(max_size=127)).map(b"".join)


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


def logIn(user: bytes, password: bytes) -> bool:
    return (user, password) == (b"ann", b"secret")


def feed(negotiation: ServerNegotiation | ClientNegotiation, *pieces: bytes) -> bytes:
    """All that a negotiation answers to some bytes that come in pieces."""
    return b"".join([negotiation.receive(piece) for piece in pieces])


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """The same bytes in pieces, some of them maybe empty."""
    ends = sorted(min(each, len(data)) for each in cuts)
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


def state(negotiation: ServerNegotiation | ClientNegotiation) -> tuple[object, ...]:
    """All that a caller sees of a negotiation."""
    if isinstance(negotiation, ServerNegotiation):
        return negotiation.request, negotiation.rest, negotiation.failed
    return negotiation.reply, negotiation.rest, negotiation.failed


def eachWay(
    make: Callable[[], ServerNegotiation | ClientNegotiation], data: bytes
) -> Iterator[tuple[bytes, tuple[object, ...]]]:
    """What becomes of bytes that come whole, one by one, and in two pieces cut at any point."""
    ways = [[data], [data[i : i + 1] for i in range(len(data))], *(cut(data, [i]) for i in range(len(data)))]
    for pieces in ways:
        negotiation = make()
        yield feed(negotiation, *pieces), state(negotiation)


OPEN_HELLO = "050100"
LOGIN_HELLO = "050102"
GOOD_LOGIN = "01 03 616e6e 06 736563726574"


class ServerTests(SynchronousTestCase):
    """L{ServerNegotiation}."""

    def assertOutcome(
        self,
        data: str,
        answer: str,
        *,
        request: Request | None = None,
        rest: bytes = b"",
        failed: str = "",
        authenticate: Callable[[bytes, bytes], bool] | None = None,
    ) -> None:
        """These bytes, cut in any way, lead to this answer and this state."""
        for written, (found, left, why) in eachWay(lambda: ServerNegotiation(authenticate), octets(data)):
            self.assertEqual(written, octets(answer))
            self.assertEqual((found, left), (request, rest))
            self.assertIn(failed, why)
            self.assertEqual(bool(failed), bool(why))
            self.assertNotIn("\n", str(why))

    def test_golden(self) -> None:
        """Each command to each kind of address is read, and only the greeting is answered."""
        for command in Command:
            for address, raw in GOLDEN_ADDRESSES.items():
                self.assertOutcome(f"{OPEN_HELLO} 05 {command:02x} 00 {raw}", "0500", request=Request(command, address))

    def test_answersAtOnce(self) -> None:
        """Each step is answered by the call that completes it, and by none before."""
        server = ServerNegotiation(logIn)
        for data, answer in (
            ("0502", ""),
            ("00", ""),
            ("02", "0502"),
            ("0103616e6e06", ""),
            ("736563726574", "0100"),
            ("0503000100000000", ""),
            ("0000", ""),
        ):
            self.assertIsNone(server.request)
            self.assertEqual(server.receive(octets(data)), octets(answer))
        self.assertEqual(server.request, Request(Command.UDP_ASSOCIATE, Address("0.0.0.0", 0)))

    def test_rest(self) -> None:
        """Bytes that follow the request are kept, those that come later too."""
        self.assertOutcome(
            f"{OPEN_HELLO} 05 01 00 {GOLDEN_ADDRESSES[V4]} 05ff00", "0500", request=Request(1, V4), rest=b"\x05\xff\x00"
        )

    def test_unknownCommand(self) -> None:
        """A command that we do not know is a request all the same: the caller refuses it."""
        self.assertOutcome(f"{OPEN_HELLO} 05 f3 00 {GOLDEN_ADDRESSES[V4]}", "0500", request=Request(0xF3, V4))

    def test_reservedByte(self) -> None:
        """What stands in the reserved byte does not matter."""
        self.assertOutcome(f"{OPEN_HELLO} 05 01 ff {GOLDEN_ADDRESSES[V4]}", "0500", request=Request(1, V4))

    def test_method(self) -> None:
        """Method 0 is chosen without a way to log in, method 2 with one, whatever else is offered; or none."""
        for offered, withoutLogin, withLogin in (
            ("00", "0500", "05ff"),
            ("02", "05ff", "0502"),
            ("0002", "0500", "0502"),
            ("0200", "0500", "0502"),
            ("01800002", "0500", "0502"),
            ("0180", "05ff", "05ff"),
            ("ff", "05ff", "05ff"),
            ("", "05ff", "05ff"),
        ):
            for authenticate, answer in ((None, withoutLogin), (logIn, withLogin)):
                refused = "offer" if answer == "05ff" else ""
                hello = f"05{len(offered) // 2:02x}{offered}"
                self.assertOutcome(hello, answer, failed=refused, authenticate=authenticate)

    def test_login(self) -> None:
        """With the right user and password the request is read; all may be sent in one go."""
        self.assertOutcome(
            f"{LOGIN_HELLO} {GOOD_LOGIN} 05 03 00 {GOLDEN_ADDRESSES[V6]}",
            "0502 0100",
            request=Request(3, V6),
            authenticate=logIn,
        )

    def test_wrongLogin(self) -> None:
        """With a wrong user or password status 1 is the last thing written, and no request is read."""
        for login in ("01 03 616e6e 06 736563726573", "01 03 616e6f 06 736563726574", "01 00 00", "01 03 616e6e 00"):
            self.assertOutcome(
                f"{LOGIN_HELLO} {login} 05 03 00 {GOLDEN_ADDRESSES[V6]}",
                "0502 0101",
                failed="wrong user or password",
                authenticate=logIn,
            )

    def test_loginIsNotSkipped(self) -> None:
        """A client that sends its request instead of a login gets no request through."""
        self.assertOutcome(f"05020002 05 01 00 {GOLDEN_ADDRESSES[V4]}", "0502", failed="version 5", authenticate=logIn)

    def test_largest(self) -> None:
        """The longest greeting, login and request are read."""
        server = ServerNegotiation(lambda *given: given == (b"u" * 255, b"p" * 255))
        hello, login = b"\x05\xff" + bytes(254) + b"\x02", b"\x01\xff" + b"u" * 255 + b"\xff" + b"p" * 255
        request = b"\x05\x01\x00\x03\xff" + b"a" * 255 + b"\x00\x35"
        self.assertEqual((len(hello), len(login), len(request)), (257, 513, 262))
        self.assertEqual(feed(server, hello, login, request), octets("0502 0100"))
        self.assertEqual(server.request, Request(1, Address("a" * 255, 53)))

    def test_otherProtocols(self) -> None:
        """The first byte of another protocol is enough to name it, and nothing is written."""
        for data, named in (
            (b"GET / HTTP/1.1\r\n\r\n", "HTTP"),
            (b"POST", "HTTP"),
            (b"CONNECT a:1 HTTP/1.1\r\n", "HTTP"),
            (b"H", "HTTP"),
            (b"\x04\x01\x00\x50\x01\x02\x03\x04\x00", "version 4"),
            (b"\x16\x03\x01", "TLS"),
            (b"\x00", "version 0"),
            (b"\xff", "version 255"),
        ):
            self.assertOutcome(data.hex(), "", failed=named)
            self.assertOutcome(data.hex(), "", failed=named, authenticate=logIn)

    def test_badVersion(self) -> None:
        """A request of another version ends it without an answer."""
        self.assertOutcome(f"{OPEN_HELLO} 04", "0500", failed="version 4")

    def test_badAddressType(self) -> None:
        """A type of address that we do not know is answered with code 8, without waiting for more."""
        for kind in ("00", "02", "05", "ff"):
            self.assertOutcome(
                f"{OPEN_HELLO} 05 01 00 {kind}", "0500 05080001000000000000", failed=f"not {int(kind, 16)}"
            )

    def test_badName(self) -> None:
        """A name that is none is answered with code 1."""
        for name in ("00", "03 610062 0050", "02 c3bc 0050"):
            self.assertOutcome(f"{OPEN_HELLO} 05 01 00 03 {name}", "0500 05010001000000000000", failed="name")

    def test_afterFailure(self) -> None:
        """Once it has failed, all that arrives is dropped without an answer."""
        server = ServerNegotiation()
        server.receive(b"G")
        self.assertEqual(feed(server, octets(OPEN_HELLO), bytes(1000)), b"")
        self.assertEqual((server.request, server.rest), (None, b""))

    def test_incomplete(self) -> None:
        """While anything is missing there is no request and no failure."""
        data = octets(f"{LOGIN_HELLO} {GOOD_LOGIN} 05 01 00 {GOLDEN_ADDRESSES[NAMED]}")
        for end in range(len(data)):
            server = ServerNegotiation(logIn)
            server.receive(data[:end])
            self.assertEqual(state(server), (None, b"", ""))

    def test_brokenAuthenticate(self) -> None:
        """What a broken check raises reaches the caller, and nobody is let in."""

        def broken(user: bytes, password: bytes) -> bool:
            raise ZeroDivisionError

        server = ServerNegotiation(broken)
        server.receive(octets(LOGIN_HELLO))
        self.assertRaises(ZeroDivisionError, server.receive, octets(GOOD_LOGIN))
        self.assertEqual(server.receive(octets(f"05 01 00 {GOLDEN_ADDRESSES[V4]}")), b"")
        self.assertIsNone(server.request)

    @thorough
    @given(methods, words, words, st.integers(0, 255), addresses, st.binary(), st.data())
    def test_anySplit(
        self,
        hello: bytes,
        user: bytes,
        password: bytes,
        command: int,
        address: Address,
        rest: bytes,
        data: st.DataObject,
    ) -> None:
        """However the bytes are cut, what is written and what is found stays the same."""
        login = bytes((1, len(user))) + user + bytes((len(password),)) + password
        # The request is written here as RFC 1928 section 4 says, but for its address.
        request = bytes((5, command, 0)) + packReply(0, address)[3:]
        whole = bytes((5, len(hello))) + hello + login + request + rest
        server = ServerNegotiation(lambda *given: given == (user, password))
        written = feed(server, *cut(whole, data.draw(st.lists(st.integers(0, len(whole))))))
        self.assertEqual(written, octets("0502 0100"))
        self.assertEqual(state(server), (Request(command, address), rest, ""))

    @thorough
    @given(
        st.sampled_from([b"", octets(OPEN_HELLO), octets(LOGIN_HELLO), octets(LOGIN_HELLO + GOOD_LOGIN)]),
        st.binary(max_size=600),
        st.sampled_from([None, logIn]),
        st.lists(st.integers(0, 600), max_size=9),
    )
    def test_garbage(
        self, begin: bytes, garbage: bytes, authenticate: Callable[[bytes, bytes], bool] | None, cuts: list[int]
    ) -> None:
        """Garbage raises nothing, is judged the same however it is cut, and never both fails and succeeds."""
        whole, pieces = ServerNegotiation(authenticate), ServerNegotiation(authenticate)
        self.assertEqual(feed(whole, begin + garbage), feed(pieces, *cut(begin + garbage, cuts)))
        self.assertEqual(state(whole), state(pieces))
        self.assertFalse(whole.request and whole.failed)

    @thorough
    @given(
        st.sampled_from([b"", octets(LOGIN_HELLO), octets(LOGIN_HELLO + GOOD_LOGIN)]), st.binary(min_size=1, max_size=9)
    )
    def test_bounded(self, begin: bytes, drip: bytes) -> None:
        """Whatever a client sends, it has asked or failed once the three longest messages are full."""
        server = ServerNegotiation(logIn)
        server.receive(begin + drip * (257 + 513 + 262))
        self.assertTrue(server.request or server.failed)


class ClientTests(SynchronousTestCase):
    """L{ClientNegotiation}."""

    def client(self, user: str | bytes = "", password: str | bytes = "", address: Address = V4) -> ClientNegotiation:
        """A client that has begun."""
        client = ClientNegotiation(Command.UDP_ASSOCIATE, address, user, password)
        client.begin()
        return client

    def assertOutcome(
        self, data: str, answer: str, *, reply: Reply | None = None, rest: bytes = b"", failed: str = "", user: str = ""
    ) -> None:
        """These bytes, cut in any way, lead to this answer and this state."""
        for written, (found, left, why) in eachWay(lambda: self.client(user, "secret" if user else ""), octets(data)):
            self.assertEqual(written, octets(answer))
            self.assertEqual((found, left), (reply, rest))
            self.assertIn(failed, why)
            self.assertEqual(bool(failed), bool(why))

    def test_begin(self) -> None:
        """Method 0 is offered, and method 2 with it if there is a user."""
        self.assertEqual(ClientNegotiation(1, V4).begin(), octets("050100"))
        self.assertEqual(ClientNegotiation(1, V4, "ann", "secret").begin(), octets("05020002"))
        self.assertEqual(ClientNegotiation(1, V4, b"ann").begin(), octets("05020002"))

    def test_golden(self) -> None:
        """Each command with each kind of address is written as soon as the server has chosen."""
        for command in Command:
            for address, raw in GOLDEN_ADDRESSES.items():
                client = ClientNegotiation(command, address)
                self.assertEqual(client.receive(b"\x05"), b"")
                self.assertEqual(client.receive(b"\x00"), octets(f"05 {command:02x} 00 {raw}"))

    def test_reply(self) -> None:
        """The address in the reply is read, whatever its kind; what follows it is kept."""
        for address, raw in GOLDEN_ADDRESSES.items():
            for rest in (b"", b"rest"):
                self.assertOutcome(
                    f"0500 050000 {raw} {rest.hex()}", "05030001010203040035", reply=Reply(0, address), rest=rest
                )

    def test_login(self) -> None:
        """User and password are sent if the server wants them, and only then."""
        reply = Reply(0, V6)
        request, answer = "05030001010203040035", f"050000 {GOLDEN_ADDRESSES[V6]}"
        self.assertOutcome(f"0502 0100 {answer}", f"{GOOD_LOGIN} {request}", reply=reply, user="ann")
        self.assertOutcome(f"0500 {answer}", request, reply=reply, user="ann")

    def test_loginAnswersAtOnce(self) -> None:
        """The request waits until the server has accepted the login."""
        client = self.client("ann", "secret")
        self.assertEqual(client.receive(octets("0502")), octets(GOOD_LOGIN))
        self.assertEqual(client.receive(octets("01")), b"")
        self.assertEqual(client.receive(octets("00")), octets("05030001010203040035"))

    def test_loginText(self) -> None:
        """A user and a password given as text go out as UTF-8; bytes go out as they are."""
        for user, password in (("\u00fc", "\u00e9"), (b"\xc3\xbc", b"\xc3\xa9")):
            self.assertEqual(self.client(user, password).receive(octets("0502")), octets("01 02 c3bc 02 c3a9"))

    def test_loginVersion(self) -> None:
        """Some servers answer a login with version 5: the status is what counts."""
        self.assertOutcome("0502 0500", f"{GOOD_LOGIN} 05030001010203040035", user="ann")

    def test_wrongLogin(self) -> None:
        """If the server does not accept the login, nothing more is written."""
        for status in ("01", "ff"):
            self.assertOutcome(f"0502 01{status} 0000", GOOD_LOGIN, failed="does not accept the user", user="ann")

    def test_refusedMethod(self) -> None:
        """A method that was not offered, or none, ends it."""
        self.assertOutcome("05ff", "", failed="none of the login methods")
        self.assertOutcome("0502", "", failed="method 2, which was not offered")
        self.assertOutcome("0501", "", failed="method 1, which was not offered", user="ann")

    def test_refusedRequest(self) -> None:
        """A refusal is a reply and a failure, whatever follows it."""
        for code in ReplyCode:
            if code:
                for more in ("", "00", "00 00", f"00 {GOLDEN_ADDRESSES[V4]}"):
                    self.assertOutcome(
                        f"0500 05{code:02x} {more}",
                        "05030001010203040035",
                        reply=Reply(code, Address("0.0.0.0", 0)),
                        failed=f"{code.text} ({int(code)})",
                    )

    def test_unknownCode(self) -> None:
        """A reply code that we do not know is a refusal."""
        self.assertOutcome(
            "0500 05fe",
            "05030001010203040035",
            reply=Reply(0xFE, Address("0.0.0.0", 0)),
            failed="unknown reply code 254",
        )

    def test_otherProtocols(self) -> None:
        """A server that speaks another protocol is named by its first byte."""
        self.assertOutcome(b"HTTP/1.1 400 Bad Request\r\n".hex(), "", failed="HTTP")
        self.assertOutcome(b"\x00\x5a".hex(), "", failed="version 0")
        self.assertOutcome("0500 04", "05030001010203040035", failed="version 4")

    def test_badReply(self) -> None:
        """A reply that holds no address is a failure, and no reply."""
        for raw, why in (("02", "not 2"), ("0300", "no bytes"), ("03 01 00 0000", "not a host name")):
            self.assertOutcome(f"0500 050000 {raw}", "05030001010203040035", failed=why)

    def test_tooLong(self) -> None:
        """What does not fit a message is refused before anything is sent."""
        self.assertRaises(SocksError, ClientNegotiation, 1, V4, "u" * 256, "p")
        self.assertRaises(SocksError, ClientNegotiation, 1, V4, "u", "p" * 256)
        self.assertRaises(SocksError, ClientNegotiation, 1, V4, "\u00fc" * 128, "p")
        self.assertRaises(AddressError, ClientNegotiation, 1, Address("a" * 256, 53))

    @thorough
    @given(addresses, st.binary(), st.data())
    def test_anySplit(self, address: Address, rest: bytes, data: st.DataObject) -> None:
        """However the bytes are cut, what is written and what is found stays the same."""
        whole = octets("0502 0100") + packReply(0, address) + rest
        client = self.client("ann", "secret")
        written = feed(client, *cut(whole, data.draw(st.lists(st.integers(0, len(whole))))))
        self.assertEqual(written, octets(f"{GOOD_LOGIN} 05030001010203040035"))
        self.assertEqual(state(client), (Reply(0, address), rest, ""))

    @thorough
    @given(
        st.sampled_from([b"", octets("0500"), octets("0502"), octets("05020100"), octets("0500050000")]),
        st.binary(max_size=300),
        st.lists(st.integers(0, 300), max_size=9),
    )
    def test_garbage(self, begin: bytes, garbage: bytes, cuts: list[int]) -> None:
        """Garbage raises nothing, and is judged the same however it is cut."""
        whole, pieces = self.client("ann", "secret"), self.client("ann", "secret")
        self.assertEqual(feed(whole, begin + garbage), feed(pieces, *cut(begin + garbage, cuts)))
        self.assertEqual(state(whole), state(pieces))
        self.assertFalse(whole.failed and whole.rest)


class BothTests(SynchronousTestCase):
    """A client and a server of ours."""

    def test_goneAtOnce(self) -> None:
        """Whichever is over leaves nothing to the garbage collector: thousands come and go in a minute."""
        gc.disable()
        self.addCleanup(gc.enable)
        client, good, bad = ClientNegotiation(Command.CONNECT, V4), ServerNegotiation(), ServerNegotiation()
        good.receive(client.begin())
        good.receive(client.receive(b"\5\0"))
        client.receive(packReply(0, V4))
        bad.receive(b"GET / HTTP/1.0")
        self.assertTrue(good.request and client.reply and bad.failed)
        left = [weakref.ref(each) for each in (client, good, bad)]
        del client, good, bad
        self.assertEqual([each() for each in left], [None] * 3)

    @thorough
    @given(
        st.integers(0, 255), addresses, st.integers(0, 8), addresses, words, words, st.booleans(), st.integers(1, 300)
    )
    def test_understandEachOther(
        self,
        command: int,
        target: Address,
        code: int,
        bound: Address,
        user: bytes,
        password: bytes,
        asks: bool,
        step: int,
    ) -> None:
        """What the client asks is what the server reads, and what that answers is what the client reads."""
        client = ClientNegotiation(command, target, user, password)
        asks = asks and bool(user or password)
        server = ServerNegotiation((lambda *given: given == (user, password)) if asks else None)
        toServer = client.begin()
        while toServer:
            toClient = feed(server, *cut(toServer, list(range(0, len(toServer), step))))
            toServer = feed(client, *cut(toClient, list(range(0, len(toClient), step))))
        self.assertEqual((server.request, server.failed), (Request(command, target), ""))
        client.receive(packReply(code, bound))
        self.assertEqual(client.reply, Reply(code, Address("0.0.0.0", 0) if code else bound))
        self.assertEqual(bool(client.failed), bool(code))


class ReplyTests(SynchronousTestCase):
    """L{packReply} and L{ReplyCode}."""

    def test_golden(self) -> None:
        """A reply has the bytes that RFC 1928 section 6 says."""
        for address, raw in GOLDEN_ADDRESSES.items():
            self.assertEqual(packReply(ReplyCode.SUCCEEDED, address), octets(f"050000 {raw}"))

    def test_refusal(self) -> None:
        """A reply without an address has zeros in its place."""
        self.assertEqual(packReply(ReplyCode.COMMAND_NOT_SUPPORTED), octets("05070001000000000000"))

    def test_texts(self) -> None:
        """Every code has a number of RFC 1928 and a text of its own."""
        self.assertEqual([int(code) for code in ReplyCode], list(range(9)))
        self.assertEqual(len({code.text for code in ReplyCode}), 9)
        self.assertEqual(ReplyCode.CONNECTION_REFUSED.text, "connection refused")
        self.assertEqual(ReplyCode(8).name, "ADDRESS_TYPE_NOT_SUPPORTED")


class HeaderTests(SynchronousTestCase):
    """L{packHeader} and L{unpackHeader}."""

    def test_golden(self) -> None:
        """A header has the bytes that RFC 1928 section 7 says, in both directions; the payload follows."""
        for address, raw in GOLDEN_ADDRESSES.items():
            header = octets(f"000000 {raw}")
            self.assertEqual(packHeader(address), header)
            for payload in (b"", b"payload"):
                for buffer in (header + payload, bytearray(header + payload), memoryview(header + payload)):
                    self.assertEqual(unpackHeader(buffer), (address, len(header)))

    def test_longest(self) -> None:
        """No header is longer than one with the longest name."""
        self.assertEqual(len(packHeader(Address("a" * 255, 53))), LARGEST_HEADER)

    def test_cut(self) -> None:
        """A header that is cut anywhere is a TruncatedError."""
        for address in GOLDEN_ADDRESSES:
            header = packHeader(address)
            for end in range(len(header)):
                self.assertRaises(TruncatedError, unpackHeader, header[:end])

    def test_fragment(self) -> None:
        """Every fragment is refused, even one that holds no more than its number."""
        for fragment in range(1, 256):
            begin = bytes((0, 0, fragment))
            self.assertRaises(FragmentedError, unpackHeader, begin)
            self.assertRaises(FragmentedError, unpackHeader, begin + octets(GOLDEN_ADDRESSES[V4]))

    def test_reserved(self) -> None:
        """What stands in the reserved bytes does not matter."""
        self.assertEqual(unpackHeader(octets(f"ffff00 {GOLDEN_ADDRESSES[V4]}")), (V4, 10))

    def test_badAddress(self) -> None:
        """A type that RFC 1928 does not have, or a name that is none, is an AddressError."""
        for raw in ("00", "02", "05", "ff", "0300", "03 01 00 0035"):
            self.assertRaises(AddressError, unpackHeader, octets(f"000000 {raw}"))

    @thorough
    @given(addresses, st.binary(max_size=20))
    def test_inverse(self, address: Address, payload: bytes) -> None:
        """To unpack is the inverse of packing."""
        header = packHeader(address)
        self.assertEqual(unpackHeader(header + payload), (address, len(header)))

    @thorough
    @given(st.binary(max_size=30) | st.binary(max_size=30).map(lambda rest: bytes(3) + rest))
    def test_garbage(self, raw: bytes) -> None:
        """Any bytes are a header or one of the declared errors."""
        try:
            address, length = unpackHeader(raw)
        except (TruncatedError, FragmentedError, AddressError):
            return
        self.assertLessEqual(length, len(raw))
        self.assertEqual(unpackHeader(packHeader(address))[0], address)


class CredentialsTests(SynchronousTestCase):
    """L{Credentials}."""

    def test_check(self) -> None:
        """A user with its own password is let in, and nobody else is."""
        credentials = Credentials({b"ann": b"secret", b"bob": b"other"})
        self.assertTrue(credentials.check(b"ann", b"secret"))
        self.assertTrue(credentials.check(b"bob", b"other"))
        for user, password in (
            *(
                (b"ann", b"other"),
                (b"ann", b""),
                (b"ann", b"secret "),
                (b"ann", b"Secret"),
                (b"", b"secret"),
                (b"", b""),
            ),
            *((b"Ann", b"secret"), (b"eve", b"secret"), (b"eve", b""), (b"ann\0", b"secret")),
        ):
            self.assertFalse(credentials.check(user, password))

    def test_nobody(self) -> None:
        """Without a user nobody is let in."""
        self.assertFalse(Credentials({}).check(b"", b""))
        self.assertFalse(Credentials.parse("").check(b"", b""))

    def test_unknownUserIsCompared(self) -> None:
        """A password is compared for a user that does not exist too, and only ever as a digest."""
        compared: list[tuple[int, int]] = []

        def compare(one: bytes, other: bytes) -> bool:
            compared.append((len(one), len(other)))
            return True

        self.patch(socks5, "compare_digest", compare)
        self.assertFalse(Credentials({b"ann": b"secret"}).check(b"eve", b"a"))
        self.assertTrue(Credentials({b"ann": b"secret"}).check(b"ann", b"a"))
        self.assertEqual(compared, [(32, 32), (32, 32)])

    def test_parse(self) -> None:
        """Each line is a user and a password; blank lines and comments are skipped."""
        credentials = Credentials.parse("# who may\n\nann:secret\r\n  # more\n \t\nbob:a:b c #d \n\u00fc:\u00e9")
        for user, password in (("ann", "secret"), ("bob", "a:b c #d "), ("\u00fc", "\u00e9")):
            self.assertTrue(credentials.check(user.encode(), password.encode()))
        self.assertFalse(credentials.check(b"# who may", b""))

    def test_malformed(self) -> None:
        """A line that is something else is refused with its number, and without its text."""
        for line in ("planted", ":planted", "planted:", "planted:" + "p" * 256, "u" * 256 + ":planted", "ann:planted"):
            refusal = str(self.assertRaises(SocksError, Credentials.parse, f"# comment\nann:secret\n{line}\nbob:b"))
            self.assertIn("line 3", refusal)
            self.assertNotIn("planted", refusal)

    def test_longest(self) -> None:
        """A user and a password of 255 bytes each are accepted."""
        self.assertTrue(Credentials.parse(f"{'u' * 255}:{'p' * 255}").check(b"u" * 255, b"p" * 255))

    def test_noSecretIsKept(self) -> None:
        """The password is not in what the object holds or shows."""
        credentials = Credentials({b"ann": b"planted"})
        self.assertNotIn("planted", repr(credentials) + repr(vars(credentials)))

    @thorough
    @given(st.dictionaries(words, words, max_size=5), words, words)
    def test_anyone(self, passwords: dict[bytes, bytes], user: bytes, password: bytes) -> None:
        """A pair is let in exactly if it is one of those given."""
        credentials = Credentials(passwords)
        self.assertEqual(credentials.check(user, password), passwords.get(user) == password)
        for each in passwords.items():
            self.assertTrue(credentials.check(*each))

    @thorough
    @given(st.text(alphabet="ab:#\n\r \0") | st.text())
    def test_garbage(self, text: str) -> None:
        """Any text is a list of users or a SocksError."""
        try:
            Credentials.parse(text)
        except SocksError as error:
            self.assertIn("line ", str(error))
