"""Tests for L{udptunnel.core.link}."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import (
    NAME,
    TARGET_ADDRESS,
    TICKET,
    MemoryCarrier,
    OpenReception,
    Pair,
    Path,
    Plain,
    RecordingOutlet,
    countingRandom,
    feed,
    makeAssociation,
    makeParcel,
    plainFrames,
)
from tests.examples import EXAMPLES
from udptunnel.core.associations import Association
from udptunnel.core.counters import Counters
from udptunnel.core.link import MOST_PENDING, Link, LinkLimits, LocalLink, ServerLink
from udptunnel.core.login import NO_BINDING, Challenge, Login
from udptunnel.core.queue import Parcel
from udptunnel.core.session import LocalSession
from udptunnel.errors import FrameError, LoginError, RefusedError
from udptunnel.wire.address import Address, packAddress
from udptunnel.wire.burst import Burst, split
from udptunnel.wire.frame import (
    CHALLENGE,
    CLOSE,
    GOAWAY,
    HEADER_BYTES,
    HELLO,
    KIND,
    OPTIONAL,
    PING,
    PONG,
    PROOF,
    TARGET,
    WELCOME,
    decode,
    encode,
    ping,
    pong,
    unpackPing,
    unpackPong,
)
from udptunnel.wire.greeting import (
    LARGEST_HELLO,
    Greeting,
    packChallenge,
    packHello,
    packProof,
    packWelcome,
    unpackGreeting,
)

SOME = Greeting(NAME, 100, 16384)

ADDRESSES = [Address("192.0.2.1", 1), Address("2001:db8::1", 2), Address("name.example", 3)]


def makeLocal(now: float = 0.0, **limits: Any) -> tuple[LocalLink, MemoryCarrier]:
    """udp-local's end of a link that has connected, and what it writes."""
    carrier, counters = MemoryCarrier(), Counters()
    membership = LocalSession(100, counters, countingRandom()).membership
    return LocalLink(carrier, LinkLimits(**limits), counters, now, membership, lambda: None), carrier


def makeUp(now: float = 0.0, **limits: Any) -> tuple[LocalLink, MemoryCarrier]:
    """udp-local's end of a link that is up, and what it writes from then on."""
    link, carrier = makeLocal(now, **limits)
    feed(link, packWelcome(SOME), now)
    (moment,) = (unpackPing(body) for word, _, _, body in carrier.takeFrames() if word == PING)
    feed(link, pong(moment, 0), now)
    return link, carrier


def kinds(frames: list[Plain]) -> list[int]:
    """The kinds of some frames."""
    return [word & KIND if word not in (HELLO, WELCOME) else word for word, _, _, _ in frames]


def bodies(frames: list[Plain], kind: int = 0) -> list[bytes]:
    """The bodies of those frames that are of one kind; DATA unless told."""
    return [body for word, _, _, body in frames if word & KIND == kind]


class GreetingTests(SynchronousTestCase):
    """How a link comes up."""

    def test_hello(self) -> None:
        """udp-local says HELLO at once, with its session and what it holds."""
        _, carrier = makeLocal(targets=77)
        ((word, target, size, body),) = carrier.takeFrames()
        self.assertEqual(word, HELLO)
        self.assertEqual(unpackGreeting(target, size, body), Greeting(NAME, 100, 77, alone=True))

    def test_nothingBeforeHello(self) -> None:
        """udp-server says nothing to a stranger."""
        carrier = MemoryCarrier()
        link = ServerLink(carrier, LinkLimits(), Counters(), 0.0, OpenReception(None))
        for now in range(10):
            link.tick(now)
        self.assertEqual(carrier.written, b"")
        self.assertFalse(link.up)

    def test_nothingBeforeWelcome(self) -> None:
        """Nothing follows the HELLO before WELCOME has come: no burst, no heartbeat."""
        pair = Pair()
        local, _ = pair.connect()
        self.assertEqual(kinds(pair.carriers[0][0].takeFrames()), [HELLO])
        association, _ = pair.open()
        pair.local.send([makeParcel(association)], 0.0)
        for now in range(10):
            local.tick(now)
            pair.local.tick(now)
        self.assertEqual(pair.carriers[0][0].take(), b"")

    def test_welcome(self) -> None:
        """WELCOME makes the link up, at both ends, and once."""
        pair = Pair()
        local, server = pair.connect()
        self.assertFalse(local.up or server.up)
        pair.pump()
        self.assertTrue(local.up and server.up)
        self.assertEqual((local.session, server.session), (pair.local, pair.server))
        self.assertEqual((pair.local.links, pair.server.links, pair.welcomed), ([local], [server], 1))

    def test_welcomeBytes(self) -> None:
        """udp-server answers with what it grants."""
        pair = Pair(granted=5, targets=9)
        pair.connect()
        local, server = pair.carriers[0]
        feed(pair.links[0][1], local.take())
        (word, target, size, body), *_ = server.takeFrames()
        self.assertEqual(word, WELCOME)
        self.assertEqual(unpackGreeting(target, size, body), Greeting(NAME, 5, 9, lowest=0, ticket=bytes(range(32))))

    def test_waitingGoesAfterTheGreeting(self) -> None:
        """What waited for a link goes over it when it is up."""
        pair = Pair()
        association, _ = pair.open()
        pair.local.send([makeParcel(association, b"early")], 0.0)
        pair.greeted(now=0.5)
        self.assertEqual(pair.outlets[0].datagrams, [(TARGET_ADDRESS, b"early")])

    def test_emptyPathIsMeasured(self) -> None:
        """The first thing on a link that is up is a PING: it finds the path empty, and so learns its round trip."""
        pair = Pair()
        pair.local.send([makeParcel(pair.open()[0], bytes(60000))] * 10, 0.0)
        pair.connect()
        local, server = pair.carriers[0]
        feed(pair.links[0][1], local.take())
        feed(pair.links[0][0], server.take())
        self.assertEqual(kinds(local.takeFrames())[0], PING)

    def test_bytesBehindTheGreeting(self) -> None:
        """Frames may come right behind the greeting, in one piece with it."""
        pair = Pair()
        _, server = pair.connect()
        address = packAddress(TARGET_ADDRESS)
        pair.carriers[0][0].take()
        feed(server, packHello(SOME) + encode(TARGET, body=address) + encode(4, 0, 2, b"aab"))
        self.assertEqual(pair.outlets[4].datagrams, [(TARGET_ADDRESS, b"aa"), (TARGET_ADDRESS, b"b")])

    def test_garbage(self) -> None:
        """A stranger is refused after four bytes, at both ends."""
        for link in Pair().connect():
            for stranger in (b"GET ", b"\x05\x01\x00\x00", b"\x16\x03\x01\x02"):
                self.assertRaises(FrameError, link.beginningReceived, stranger)

    def test_anotherFrame(self) -> None:
        """A link does not begin with any other frame, however right it may be later."""
        for link in Pair().connect():
            for frame in (ping(1), pong(1, 1), encode(CLOSE), encode(TARGET), encode(OPTIONAL), encode(0, 0, 1, b"x")):
                self.assertRaises(FrameError, feed, link, frame)

    def test_oversized(self) -> None:
        """Who announces a first frame beyond 512 bytes is refused before it arrives."""
        local, server = Pair().connect()
        self.assertRaises(FrameError, server.beginningReceived, encode(HELLO, body=bytes(503))[:HEADER_BYTES])
        self.assertRaises(FrameError, local.beginningReceived, encode(WELCOME, body=bytes(503))[:HEADER_BYTES])

    def test_badGreeting(self) -> None:
        """A greeting that says nothing is refused."""
        local, server = Pair().connect()
        self.assertRaises(FrameError, feed, local, encode(WELCOME, 1, 1))
        self.assertRaises(FrameError, feed, server, encode(HELLO, 1, 1))

    def test_twice(self) -> None:
        """A second greeting on a link is refused."""
        local, server = Pair().greeted().links[0]
        self.assertRaises(FrameError, feed, local, packWelcome(SOME))
        self.assertRaises(FrameError, feed, server, packHello(SOME))

    def test_version(self) -> None:
        """Who speaks no version that we speak is told so, and the link is of no use."""
        pair = Pair()
        local, server = pair.connect()
        self.assertRaises(LoginError, feed, server, packHello(SOME._replace(version=9, lowest=7)))
        self.assertFalse(server.up)
        answer = pair.carriers[0][1].take()
        self.assertEqual(kinds(plainFrames(answer)), [GOAWAY])
        error = self.assertRaises(LoginError, feed, local, answer)
        self.assertIn("version", str(error))
        self.assertFalse(local.up)

    def test_anotherVersion(self) -> None:
        """udp-local does not use a link that is welcomed in a version that it does not speak."""
        for version in (0, 2, 0xFFFF):
            link, _ = makeLocal()
            self.assertRaises(RefusedError, feed, link, packWelcome(SOME._replace(version=version)))
            self.assertFalse(link.up)

    def test_anotherSession(self) -> None:
        """udp-local belongs to the session that the server names, whatever it has asked for."""
        link, _ = makeLocal()
        feed(link, packWelcome(SOME._replace(session=b"s" * 16, ticket=TICKET)))
        assert link.session is not None
        self.assertEqual((link.up, link.session.name), (True, b"s" * 16))

    def test_refused(self) -> None:
        """Who is not admitted is told why, and udp-local repeats it, however long it is, and does not hurry back."""
        for reason in ("enough sessions", "x" * 2000):
            carrier, reception = MemoryCarrier(), OpenReception(None)
            reception.refusal = LoginError(reason)
            server = ServerLink(carrier, LinkLimits(), Counters(), 0.0, reception)
            self.assertRaises(LoginError, feed, server, packHello(SOME))
            self.assertFalse(server.up)
            self.assertLessEqual(len(carrier.written), HEADER_BYTES + LARGEST_HELLO)
            local, _ = makeLocal()
            error = self.assertRaises(RefusedError, feed, local, carrier.take())
            self.assertIn(reason[:100], str(error))
            self.assertFalse(local.up)

    def test_deadline(self) -> None:
        """A link that is not greeted within ten seconds is closed, at both ends."""
        pair = Pair()
        for link, carrier in zip(pair.connect(now=5.0), pair.carriers[0], strict=True):
            link.tick(15.0)
            self.assertFalse(carrier.aborted)
            link.tick(15.1)
            self.assertTrue(carrier.aborted)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.binary(max_size=60), st.sampled_from([b"", b"udpt", b"UDPT", packHello(SOME), packWelcome(SOME)]))
    def test_fuzz(self, garbage: bytes, begin: bytes) -> None:
        """Whatever arrives, nothing but L{FrameError} and L{LoginError} is raised."""
        for link in Pair().connect():
            try:
                feed(link, begin + garbage)
            except (FrameError, LoginError):
                continue


SECRET = bytes(range(32))


def makeLogin(secret: bytes = SECRET, user: str = "alice") -> Login:
    """Who udp-local is."""
    return Login(user, secret, b"l" * 32, lambda: NO_BINDING)


def makeGuarded(who: Login | None = None, **limits: Any) -> Pair:
    """Two ends with a link that has not been greeted yet; the server asks for the secret of alice."""
    pair = Pair(**limits)
    pair.reception.secrets = {"alice": SECRET}
    pair.login = who or makeLogin()
    pair.connect()
    return pair


def makeAsked() -> tuple[Pair, ServerLink, bytes]:
    """Two ends of which the server has asked who is there, its end of the link, and the right answer."""
    pair = makeGuarded()
    (local, server), (fromLocal, fromServer) = pair.links[0], pair.carriers[0]
    feed(server, fromLocal.take())
    feed(local, fromServer.take())
    return pair, server, fromLocal.take()


class LoginTests(SynchronousTestCase):
    """How a link comes up where users prove a secret."""

    def test_steps(self) -> None:
        """HELLO, CHALLENGE, PROOF and WELCOME follow each other, and nothing else is said before."""
        pair = makeGuarded()
        (local, server), (fromLocal, fromServer) = pair.links[0], pair.carriers[0]
        hello = fromLocal.take()
        ((word, target, size, body),) = plainFrames(hello)
        self.assertEqual(word, HELLO)
        greeting = Greeting(NAME, 100, LinkLimits().targets, alone=True, user="alice", nonce=b"l" * 32)
        self.assertEqual(unpackGreeting(target, size, body), greeting)
        feed(server, hello)
        challenge = fromServer.take()
        expected = Challenge(SECRET, NO_BINDING, b"n" * 32, body, known=True)
        self.assertEqual(challenge, packChallenge(b"n" * 32, expected.proof))
        feed(local, challenge)
        proof = fromLocal.take()
        self.assertEqual(proof, packProof(makeLogin().answer(body, b"n" * 32, expected.proof)))
        self.assertFalse(server.up or local.up)
        feed(server, proof)
        self.assertEqual(kinds(fromServer.takeFrames()), [WELCOME, PING])
        self.assertTrue(server.up)

    def test_byteByByte(self) -> None:
        """It comes up if each byte comes alone."""
        pair = makeGuarded()
        pair.pump(0.0, lambda data: [data[at : at + 1] for at in range(len(data))])
        self.assertTrue(all(end.up for end in pair.links[0]))

    @settings(max_examples=max(10, EXAMPLES // 4), deadline=None)
    @given(st.lists(st.integers(1, 150), min_size=1, max_size=10))
    def test_cutAnywhere(self, lengths: list[int]) -> None:
        """It comes up however its bytes are cut."""
        pair = makeGuarded()

        def cut(data: bytes) -> list[bytes]:
            pieces = []
            for length in lengths * (1 + len(data)):
                pieces.append(data[:length])
                data = data[length:]
            return [each for each in pieces if each]

        pair.pump(0.0, cut)
        self.assertTrue(all(end.up for end in pair.links[0]))

    def test_inOnePiece(self) -> None:
        """Whoever knows what will be asked may say everything at once."""
        pair, _, proof = makeAsked()
        again = makeGuarded()
        hello = pair.carriers[0][0].written[: -len(proof)]
        feed(again.links[0][1], hello + proof + ping(7))
        self.assertTrue(again.links[0][1].up)
        self.assertEqual(kinds(again.carriers[0][1].takeFrames()), [CHALLENGE, WELCOME, PING, PONG])

    def test_countsAgree(self) -> None:
        """What both ends said before the link was up is counted by both: nothing of it stays in flight."""
        pair = makeGuarded()
        pair.pump()
        for end in (0, 1):
            pair.links[0][end].tick(100.0)
        pair.pump(100.0)
        for link in pair.links[0]:
            self.assertLessEqual(link.report(100.0)["flyingBytes"], len(pong(0, 0)))

    def test_wrongProof(self) -> None:
        """Whoever can not prove the secret is told so and not let in, and the session hears nothing of him."""
        for wrong in (bytes(32), SECRET, b"n" * 32):
            pair, server, _ = makeAsked()
            error = self.assertRaises(RefusedError, feed, server, packProof(wrong))
            self.assertEqual(str(error), "user or secret is wrong")
            self.assertEqual((server.up, pair.server.links, pair.server.resumed), (False, [], False))
            ((word, _, _, body),) = pair.carriers[0][1].takeFrames()
            self.assertEqual((word, body), (GOAWAY, b"user or secret is wrong"))

    def test_shortProof(self) -> None:
        """A PROOF of another length is no frame of ours."""
        for length in (0, 31, 33, 64):
            pair, server, _ = makeAsked()
            self.assertRaises(FrameError, feed, server, encode(PROOF, body=bytes(length)))
            self.assertEqual(pair.server.links, [])

    def test_wrongServer(self) -> None:
        """udp-local says nothing more to a server that does not know its secret."""
        pair = makeGuarded(makeLogin(secret=b"x" * 32))
        (local, server), (fromLocal, fromServer) = pair.links[0], pair.carriers[0]
        feed(server, fromLocal.take())
        self.assertRaises(RefusedError, feed, local, fromServer.take())
        self.assertEqual((fromLocal.take(), local.up, pair.welcomed), (b"", False, 0))

    def test_unknownUser(self) -> None:
        """A user who does not exist is asked like any other: from without, they look alike."""
        said = []
        for user in ("alice", "mallory"):
            pair = makeGuarded(makeLogin(b"x" * 32, user))
            server, fromServer = pair.links[0][1], pair.carriers[0][1]
            feed(server, pair.carriers[0][0].take())
            frames = fromServer.takeFrames()
            error = self.assertRaises(RefusedError, feed, server, packProof(bytes(32)))
            said.append((kinds(frames), len(frames[0][3]), str(error), fromServer.takeFrames()))
        self.assertEqual(said[0], said[1])

    def test_serverDoesNotAsk(self) -> None:
        """udp-local with a secret does not use a link to a server that does not ask for it."""
        pair = makeGuarded()
        pair.reception.secrets = {}
        (local, server), (fromLocal, fromServer) = pair.links[0], pair.carriers[0]
        feed(server, fromLocal.take())
        self.assertRaises(RefusedError, feed, local, fromServer.take())
        self.assertEqual((local.up, pair.local.links, pair.welcomed, pair.local.membership.ticket), (False, [], 0, b""))

    def test_localHasNoSecret(self) -> None:
        """udp-local without a secret has no answer to a CHALLENGE."""
        link, carrier = makeLocal()
        carrier.take()
        challenge = packChallenge(bytes(32), bytes(32))
        self.assertRaises(FrameError, link.beginningReceived, challenge[:4])
        self.assertRaises(FrameError, feed, link, challenge)
        self.assertEqual(carrier.take(), b"")

    def test_wrongOrderAtServer(self) -> None:
        """Before HELLO nothing else may come to the server, and behind it nothing but PROOF."""
        hello, proof = packHello(SOME), packProof(bytes(32))
        others = [ping(1), pong(1, 1), encode(TARGET), encode(0, 0, 1, b"x"), encode(CLOSE), encode(GOAWAY)]
        others += [encode(OPTIONAL), packWelcome(SOME), packChallenge(bytes(32), bytes(32))]
        for frame in [proof, *others]:
            pair = makeGuarded()
            self.refuses(pair.links[0][1], pair.carriers[0][1], frame)
        for frame in [hello, *others]:
            pair, server, _ = makeAsked()
            self.refuses(server, pair.carriers[0][1], frame)
            self.assertEqual((pair.server.links, pair.outlets), ([], {}))

    def test_wrongOrderAtLocal(self) -> None:
        """udp-local takes one CHALLENGE and then a WELCOME; a farewell is taken any time."""
        challenge = packChallenge(bytes(32), bytes(32))
        others = [ping(1), pong(1, 1), encode(TARGET), encode(0, 0, 1, b"x"), encode(CLOSE), encode(OPTIONAL)]
        others += [packHello(SOME), packProof(bytes(32))]
        for frame in others:
            pair = makeGuarded()
            pair.carriers[0][0].take()
            self.refuses(pair.links[0][0], pair.carriers[0][0], frame)
        for frame in [challenge, *others]:
            pair, _, _ = makeAsked()
            self.refuses(pair.links[0][0], pair.carriers[0][0], frame)

    def refuses(self, link: Link, carrier: MemoryCarrier, frame: bytes) -> None:
        """A frame is refused by its first bytes, and as a whole, and is not answered."""
        self.assertRaises(FrameError, link.beginningReceived, frame[:4])
        self.assertRaises(FrameError, feed, link, frame)
        self.assertRaises(FrameError, link.framesReceived, decode(memoryview(frame))[0], 0.0)
        self.assertEqual((link.up, carrier.take()), (False, b""))

    def test_nothingBehindTheHello(self) -> None:
        """What comes right behind a HELLO that was not proven yet is not listened to: no PONG, no external port."""
        for frame in (ping(1), encode(TARGET, body=packAddress(TARGET_ADDRESS)) + encode(0, 0, 1, b"x")):
            pair = makeGuarded()
            (_, server), (fromLocal, fromServer) = pair.links[0], pair.carriers[0]
            self.assertRaises(FrameError, feed, server, fromLocal.take() + frame)
            self.assertEqual(kinds(fromServer.takeFrames()), [CHALLENGE])
            self.assertEqual((pair.outlets, pair.server.links), ({}, []))

    def test_afterTheLogin(self) -> None:
        """On a link that is up there is nothing to prove any more."""
        for frame in (packChallenge(bytes(32), bytes(32)), packProof(bytes(32))):
            pair = makeGuarded()
            pair.pump()
            for link in pair.links[0]:
                self.assertRaises(FrameError, feed, link, frame)

    def test_oversized(self) -> None:
        """No frame before the link is up holds more than 502 bytes, at either end, in pieces or whole."""
        unknown = bytes((99, 255)) + bytes(255)
        long = encode(WELCOME, 1, 0, packWelcome(SOME)[HEADER_BYTES:] + unknown * 2)
        for frame in (long, encode(GOAWAY, body=bytes(503)), encode(CHALLENGE, body=bytes(503))):
            self.assertRaises(FrameError, makeGuarded().links[0][0].beginningReceived, frame[:HEADER_BYTES])
        for frame in (long, encode(GOAWAY, body=bytes(503))):
            pair, _, _ = makeAsked()
            self.assertRaises(FrameError, pair.links[0][0].beginningReceived, frame[:HEADER_BYTES])
        _, server, _ = makeAsked()
        self.assertRaises(FrameError, server.beginningReceived, encode(PROOF, body=bytes(503))[:HEADER_BYTES])

    def test_oversizedBehindAnother(self) -> None:
        """That also holds for a frame that comes in one piece with the one before it."""
        unknown = bytes((99, 255)) + bytes(255)
        long = encode(WELCOME, 1, 0, packWelcome(SOME)[HEADER_BYTES:] + unknown * 2)
        pair = makeGuarded()
        (local, server), (fromLocal, fromServer) = pair.links[0], pair.carriers[0]
        feed(server, fromLocal.take())
        self.assertRaises(FrameError, feed, local, fromServer.take() + long)
        self.assertFalse(local.up)

    def test_refusedInstead(self) -> None:
        """A farewell instead of the WELCOME means that we are not wanted, with or without a secret, at any time."""
        goAway = encode(GOAWAY, body="zu viele \x1b[31m Gäste".encode())
        for link in (makeLocal()[0], makeGuarded().links[0][0], makeAsked()[0].links[0][0]):
            error = self.assertRaises(RefusedError, feed, link, goAway)
            self.assertIn("zu viele", str(error))
            self.assertNotIn("\x1b", str(error))
            self.assertFalse(link.up)

    def test_refusedBeforeAsking(self) -> None:
        """Whoever can not log in at all is told so instead of being asked."""
        pair = makeGuarded()

        def challenge(user: str, hello: bytes) -> Challenge:
            raise RefusedError(f"no {user} here")

        pair.reception.challenge = challenge  # type: ignore[method-assign]
        (local, server), (fromLocal, fromServer) = pair.links[0], pair.carriers[0]
        self.assertRaises(RefusedError, feed, server, fromLocal.take())
        error = self.assertRaises(RefusedError, feed, local, fromServer.take())
        self.assertIn("no alice here", str(error))

    def test_asksAboutTheHello(self) -> None:
        """What a proof is about is the body of the HELLO, byte for byte, fields included that we do not know."""
        asked: list[tuple[str, bytes]] = []
        pair = makeGuarded()

        def challenge(user: str, hello: bytes) -> None:
            asked.append((user, hello))

        pair.reception.challenge = challenge  # type: ignore[method-assign,assignment]
        body = packHello(SOME._replace(user="bob"))[HEADER_BYTES:] + b"\x63\x01?"
        feed(pair.links[0][1], encode(HELLO, 1, 1, body))
        self.assertEqual(asked, [("bob", body)])

    def test_deadline(self) -> None:
        """The time for logging in is what the limits say, from the connection on; being asked does not extend it."""
        for seconds in (3.0, 30.0):
            pair = makeGuarded(login=seconds)
            (local, server), (fromLocal, fromServer) = pair.links[0], pair.carriers[0]
            feed(server, fromLocal.take(), seconds - 0.1)
            feed(local, fromServer.take(), seconds - 0.1)
            for link, carrier in ((local, fromLocal), (server, fromServer)):
                link.tick(seconds)
                self.assertFalse(carrier.aborted)
                link.tick(seconds + 0.1)
                self.assertTrue(carrier.aborted)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.integers(0, 2), st.binary(max_size=60), st.booleans(), st.integers(0, 10**6), st.integers(1, 255))
    def test_fuzz(self, step: int, garbage: bytes, changed: bool, place: int, bits: int) -> None:
        """
        Whatever stands in the place of a step, or whichever byte of it is changed, nobody is let in who should not.

        What no proof is about is left out: the four bytes of a header that name versions, or nothing.
        """
        pair = makeGuarded()
        (local, server), (fromLocal, fromServer) = pair.links[0], pair.carriers[0]
        try:
            for number, (carrier, link) in enumerate(((fromLocal, server), (fromServer, local), (fromLocal, server))):
                data = bytearray(carrier.take())
                if number == step and changed:
                    meant = [each for each in range(len(data)) if not 4 <= each < 8]
                    data[meant[place % len(meant)]] ^= bits
                feed(link, bytes(data) if number != step or changed else garbage)
        except (FrameError, LoginError):
            pass
        self.assertFalse(server.up)


class FramesTests(SynchronousTestCase):
    """What may come over a link that is up."""

    def test_optional(self) -> None:
        """Unknown kinds from 0x80 on are skipped, with what they hold."""
        link, _ = makeUp()
        for kind in (0x80, 0x81, 0xC0, 0xFF):
            feed(link, encode(kind << 24 | 123, 4, 5, b"whatever"))
        self.assertTrue(link.up)

    def test_unknown(self) -> None:
        """Unknown kinds below 0x80 are refused: whoever sends them means something by it."""
        for kind in (0x06, 0x07, 0x20, 0x55, 0x75, 0x7F):
            link, _ = makeUp()
            self.assertRaises(FrameError, feed, link, encode(kind << 24))

    def test_data(self) -> None:
        """A burst goes to the outlet of its association, as one burst, and counts as a sign of life."""
        pair = Pair().greeted()
        association, outlet = pair.open()
        feed(pair.links[0][0], encode(TARGET, 3, 0, packAddress(TARGET_ADDRESS)) + encode(0, 3, 2, b"aab"), 1.5)
        self.assertEqual(outlet.bursts, [(TARGET_ADDRESS, 2, b"aab")])
        self.assertEqual(association.used, 1.5)

    def test_emptyDatagram(self) -> None:
        """An empty datagram is passed on."""
        pair = Pair().greeted()
        _, outlet = pair.open()
        feed(pair.links[0][0], encode(TARGET, 0, 0, packAddress(TARGET_ADDRESS)) + encode(0))
        self.assertEqual(outlet.datagrams, [(TARGET_ADDRESS, b"")])

    def test_nobodysData(self) -> None:
        """A burst for an association that is not there is counted by its datagrams, and answered with CLOSE."""
        pair = Pair().greeted()
        burst = encode(TARGET, body=packAddress(TARGET_ADDRESS)) + encode(9, 0, 2, b"aabbc")
        feed(pair.links[0][0], burst)
        self.assertEqual(pair.localCounters.dropped, {"no association": 3})
        self.assertEqual([frame[0] for frame in pair.carriers[0][0].takeFrames()], [CLOSE | 9])

    def test_noSize(self) -> None:
        """A burst of several bytes has a datagram size."""
        link, _ = makeUp()
        feed(link, encode(TARGET, body=packAddress(TARGET_ADDRESS)))
        self.assertRaises(FrameError, feed, link, encode(0, 0, 0, b"a"))

    def test_unannounced(self) -> None:
        """A target number means nothing before it was announced."""
        link, _ = makeUp()
        self.assertRaises(FrameError, feed, link, encode(0, 1, 1, b"a"))

    def test_targets(self) -> None:
        """The other end may announce as many targets as we said."""
        link, _ = makeUp(targets=2)
        feed(link, encode(TARGET, 1, 0, packAddress(TARGET_ADDRESS)))
        self.assertRaises(FrameError, feed, link, encode(TARGET, 2, 0, packAddress(TARGET_ADDRESS)))

    def test_close(self) -> None:
        """CLOSE ends an association; one for an association that is not there means nothing."""
        pair = Pair().greeted()
        association, outlet = pair.open()
        feed(pair.links[0][0], encode(CLOSE | association.number) + encode(CLOSE | 99))
        self.assertEqual((outlet.closings, len(pair.local.associations)), (1, 0))

    def test_short(self) -> None:
        """PING, PONG and TARGET with too little in them are refused."""
        for kind in (PING, PONG, TARGET):
            link, _ = makeUp()
            self.assertRaises(FrameError, feed, link, encode(kind, body=b"\x01"))

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(0, 3), st.integers(0, 9), st.binary(max_size=20)))
    )
    def test_fuzz(self, frames: list[Plain]) -> None:
        """Whatever frames arrive, nothing but L{FrameError} is raised."""
        for link in Pair().greeted().links[0]:
            try:
                feed(link, b"".join(encode(*frame) for frame in frames))
            except FrameError:
                continue


class HeartbeatTests(SynchronousTestCase):
    """PING and PONG."""

    def test_answered(self) -> None:
        """A PING is answered at once, with its moment and the number of bytes that have arrived."""
        link, carrier = makeUp()
        arrived = len(packWelcome(SOME)) + len(pong(0, 0)) + len(ping(0))
        feed(link, ping(12345))
        self.assertEqual(carrier.take(), pong(12345, arrived))

    def talk(self, **limits: Any) -> tuple[LocalLink, MemoryCarrier, Callable[[float], None]]:
        """A link that has sent a burst at 1.0, what it writes from then on, and what sends another at a time."""
        link, carrier = makeUp(**limits)
        association = makeAssociation()

        def send(now: float) -> None:
            link.offer([makeParcel(association)], now)

        send(1.0)
        carrier.take()
        carrier.patient = True
        return link, carrier, send

    def test_answerGoesWithBurst(self) -> None:
        """While bursts are sent, an answer goes with the next one, and then no more alone."""
        link, carrier, send = self.talk()
        writes = len(carrier.writes)
        feed(link, ping(777), 1.01)
        self.assertEqual(len(carrier.writes), writes)
        send(1.012)
        self.assertEqual(len(carrier.writes), writes + 1)
        frames = carrier.takeFrames()
        self.assertEqual(kinds(frames), [0, PONG])
        self.assertEqual([unpackPong(body)[0] for body in bodies(frames, PONG)], [777])
        ((_, call),) = carrier.calls
        call()
        self.assertEqual(carrier.take(), b"")

    def test_answerWithoutBurst(self) -> None:
        """If none is sent, it goes alone a little later: once, and the newest of those that wait."""
        link, carrier, _ = self.talk()
        for moment in (777, 778):
            feed(link, ping(moment), 1.01)
        ((seconds, call),) = carrier.calls
        self.assertLessEqual(seconds, 0.005)
        self.assertEqual(carrier.take(), b"")
        call()
        call()
        self.assertEqual([unpackPong(body)[0] for body in bodies(carrier.takeFrames(), PONG)], [778])

    def test_answerAtOnce(self) -> None:
        """It does not wait if the last burst was long ago, or if the other end may wait for it with a short delay."""
        for limits, now in (({}, 1.06), ({"delay": 0.02}, 1.01)):
            link, carrier, _ = self.talk(**limits)
            feed(link, ping(777), now)
            self.assertEqual([unpackPong(body)[0] for body in bodies(carrier.takeFrames(), PONG)], [777])
            self.assertEqual(carrier.calls, [])

    def test_answerBesideQueue(self) -> None:
        """It does not wait behind bursts that wait themselves: the other end's answers make room for them."""
        link, carrier, _ = self.talk()
        link.offer([makeParcel(makeAssociation(), bytes(60000))] * 5, 1.005)
        self.assertTrue(link.queue)
        carrier.take()
        feed(link, ping(777), 1.01)
        self.assertEqual([unpackPong(body)[0] for body in bodies(carrier.takeFrames(), PONG)], [777])

    def test_answerAfterEnd(self) -> None:
        """An answer that waits when the connection is lost, or full, is not written alone."""
        link, carrier, _ = self.talk()
        feed(link, ping(777), 1.01)
        ((_, call),) = carrier.calls
        link.connectionLost(1.011)
        call()
        self.assertEqual(carrier.take(), b"")

    def test_countsAgree(self) -> None:
        """What one end has sent is what the other has counted: nothing stays in flight."""
        pair = Pair().greeted()
        association, _ = pair.open()
        for now in range(1, 4):
            pair.local.send([makeParcel(association, bytes(1000))] * 20, now)
            pair.pump(now)
        for end in (0, 1):
            pair.links[0][end].tick(100.0)
        pair.pump(100.0)
        for link in pair.links[0]:
            self.assertLessEqual(link.report(0.0)["flyingBytes"], len(pong(0, 0)))

    def test_bounded(self) -> None:
        """While the path is full, one answer waits, however many PINGs come: the newest."""
        link, carrier = makeUp()
        carrier.full = True
        feed(link, ping(0))
        carrier.take()
        for moment in range(1, 1000):
            feed(link, ping(moment))
        self.assertEqual(carrier.take(), b"")
        carrier.full = False
        link.resumed(0.0)
        self.assertEqual([unpackPong(body)[0] for body in bodies(carrier.takeFrames(), PONG)], [999])

    def test_idle(self) -> None:
        """A silent link is asked every five seconds whether it lives."""
        link, carrier = makeUp()
        pinged = []
        for now in range(1, 31):
            link.tick(now)
            for body in bodies(carrier.takeFrames(), PING):
                pinged.append(now)
                feed(link, pong(unpackPing(body), 0), now + 0.1)
        self.assertEqual(pinged, [5, 10, 15, 20, 25, 30])
        self.assertFalse(carrier.aborted)

    def test_dead(self) -> None:
        """A link is given up when a PING had no answer for two intervals: three after the last sign of life."""
        link, carrier = makeUp(heartbeat=2.0)
        for now in range(1, 7):
            link.tick(now)
        self.assertFalse(carrier.aborted)
        link.tick(6.1)
        self.assertTrue(carrier.aborted)

    def test_busy(self) -> None:
        """While bursts arrive a link is asked three times less often, and as ever when they end."""
        pair = Pair().greeted()
        link, carrier = pair.links[0][0], pair.carriers[0][0]
        pair.open()
        feed(link, encode(TARGET, body=packAddress(TARGET_ADDRESS)))
        pinged = []
        for now in range(1, 51):
            if now <= 32:
                feed(link, encode(0, 0, 1, b"x"), now)
            link.tick(now)
            for body in bodies(carrier.takeFrames(), PING):
                pinged.append(now)
                feed(link, pong(unpackPing(body), 0), now + 0.1)
        self.assertEqual(pinged, [15, 30, 37, 42, 47])

    def test_burstsAreNoAnswer(self) -> None:
        """A link over which bursts arrive, but no answers, is dead in the other direction: it is given up as well."""
        pair = Pair().greeted()
        link, carrier = pair.links[0][0], pair.carriers[0][0]
        pair.open()
        feed(link, encode(TARGET, body=packAddress(TARGET_ADDRESS)))
        for now in range(1, 27):
            feed(link, encode(0, 0, 1, b"x"), now)
            link.tick(now)
        self.assertTrue(carrier.aborted)

    def test_strayBursts(self) -> None:
        """Bursts for associations that are not there do not count as such: nobody needs them."""
        link, carrier = makeUp()
        feed(link, encode(TARGET, body=packAddress(TARGET_ADDRESS)))
        for now in range(1, 6):
            feed(link, encode(9, 0, 1, b"x"), now)
            link.tick(now)
        self.assertEqual(len(bodies(carrier.takeFrames(), PING)), 1)

    def test_silence(self) -> None:
        """A busy link that falls silent at any time is given up within three intervals."""
        for silentAt in range(20):
            pair = Pair().greeted()
            link, carrier = pair.links[0][0], pair.carriers[0][0]
            pair.open()
            feed(link, encode(TARGET, body=packAddress(TARGET_ADDRESS)))
            for now in range(1, silentAt + 17):
                if now <= silentAt:
                    feed(link, encode(0, 0, 1, b"x"), now)
                    for body in bodies(carrier.takeFrames(), PING):
                        feed(link, pong(unpackPing(body), 0), now)
                link.tick(now)
            self.assertTrue(carrier.aborted, silentAt)

    def test_late(self) -> None:
        """A link is late when an answer takes longer than a second, until it comes."""
        link, _ = makeUp()
        link.tick(5.0)
        self.assertFalse(link.late(6.0))
        self.assertTrue(link.late(6.1))
        feed(link, pong(5_000_000, 0), 6.2)
        self.assertFalse(link.late(6.2))

    def test_newestAnswers(self) -> None:
        """Of PINGs that were sent at one moment, the answer to the newest is one to all: others may be left out."""
        link, carrier = makeUp()
        for _ in range(5):
            link.ask(5.0)
        moments = [unpackPing(body) for body in bodies(carrier.takeFrames(), PING)]
        self.assertEqual(len(set(moments)), 5)
        feed(link, pong(moments[-1], 0), 5.1)
        self.assertFalse(link.late(6.05))

    def test_otherTrafficIsNoAnswer(self) -> None:
        """A link whose other end can not hear us is dead, whatever it says."""
        link, carrier = makeUp()
        for now in range(1, 17):
            link.tick(now)
            feed(link, ping(now), now)
        self.assertTrue(carrier.aborted)

    def test_aLateTick(self) -> None:
        """A link whose PINGs were all answered is alive, however late the clock is looked at, and whatever it says."""
        for moment in (5.0, 1234.5678919, 0.1234567):
            link, carrier = makeUp(now=moment, heartbeat=0.1)
            for now in (moment + 1.0, moment + 2.0, moment + 60.0):
                link.tick(now)
                (body,) = bodies(carrier.takeFrames(), PING)
                feed(link, pong(unpackPing(body), 0), now + 0.01)
            self.assertFalse(carrier.aborted)

    def test_fullPath(self) -> None:
        """A path that stays full is dead as well, though no PING could be sent."""
        link, carrier = makeUp()
        carrier.full = True
        link.offer([makeParcel(makeAssociation())], 0.0)
        for now in range(1, 17):
            link.tick(now)
        self.assertTrue(carrier.aborted)
        self.assertEqual(bodies(carrier.takeFrames(), PING), [])

    def test_lost(self) -> None:
        """Nothing happens on a link that is gone."""
        link, carrier = makeUp()
        link.connectionLost(1.0)
        for now in range(100):
            link.tick(now)
        self.assertEqual((carrier.take(), carrier.aborted), (b"", False))

    def farAway(self, roundTrip: float) -> tuple[Pair, Path]:
        """Two ends with an idle link between them, and the long path that it takes."""
        return Pair().greeted(), Path(1000.0, roundTrip)

    def letLive(self, pair: Pair, path: Path, seconds: float, silent: bool = False) -> None:
        """Let time pass at both ends, while what they say takes its time, or goes nowhere."""
        for _ in range(round(4 * seconds)):
            path.run(path.now + 0.25)
            for end, link in enumerate(pair.links[0]):
                link.tick(path.now)
                data, other = pair.carriers[0][end].take(), pair.links[0][1 - end]
                if data and not silent:
                    path.answer(lambda data=data, other=other: feed(other, data, path.now))  # type: ignore[misc]

    def test_longRoundTrip(self) -> None:
        """A path whose round trip lies between one and two heartbeats is not dead, however long it is used."""
        for roundTrip in (5.5, 7.5, 9.5):
            pair, path = self.farAway(roundTrip)
            self.letLive(pair, path, 300.0)
            for link, carrier in zip(pair.links[0], pair.carriers[0], strict=True):
                self.assertFalse(carrier.aborted, roundTrip)
                self.assertEqual(link.window.roundTrip, roundTrip)

    def test_longRoundTripSilent(self) -> None:
        """When such a path falls silent at any time, both ends know it within three intervals."""
        for silentAfter in range(60, 66):
            pair, path = self.farAway(7.5)
            self.letLive(pair, path, silentAfter)
            path._events.clear()
            self.letLive(pair, path, 15.25, silent=True)
            self.assertEqual([carrier.aborted for carrier in pair.carriers[0]], [True, True], silentAfter)

    def test_unasked(self) -> None:
        """A PONG that answers no PING changes nothing and leaves nothing, however many come."""
        link, carrier = makeUp()
        link.tick(5.0)
        association = makeAssociation()
        link.offer([makeParcel(association, bytes(60000))] * 3, 5.0)
        carrier.take()
        before = {**vars(link.window), "_arrivals": list(link.window._arrivals)}
        stream = b"".join(pong(moment, 1 << 20) for moment in (0, 1, 4_999_999, 1000)) * 1000
        for step in range(25):
            feed(link, stream, 5.1 + step / 100)
        after = {**vars(link.window), "_arrivals": list(link.window._arrivals)}
        self.assertEqual(after, before)
        self.assertEqual(carrier.take(), b"")
        link.tick(15.1)
        self.assertTrue(carrier.aborted)

    def test_answeredAgain(self) -> None:
        """Only the first answer to a PING counts: what was measured then is not measured again."""
        link, _ = makeUp()
        link.tick(5.0)
        feed(link, pong(5_000_000, 0), 5.25)
        for _ in range(10):
            feed(link, pong(5_000_000, 1 << 20), 9.0)
        self.assertEqual((link.window.roundTrip, link.window.acknowledged), (0.25, 0))

    def test_liars(self) -> None:
        """Whatever a PONG claims, the link works on."""
        link, carrier = makeUp()
        for moment, received in ((0, 0), (2**64 - 1, 2**64 - 1), (10**12, 0), (0, 2**63)):
            feed(link, pong(moment, received), 1.0)
            link.offer([makeParcel(makeAssociation(), b"a")], 1.0)
        self.assertEqual(bodies(carrier.takeFrames()), [b"a"] * 4)


class StoppedTests(SynchronousTestCase):
    """What was sent while this end was stopped is not delivered when it wakes."""

    def setUp(self) -> None:
        self.pair = Pair().greeted()
        self.association, self.outlet = self.pair.open()
        self.send(b"before", 0.0)
        self.pair.pump()
        for link in self.pair.links[0]:
            link.tick(0.5)

    @property
    def counters(self) -> tuple[Counters, Counters]:
        return self.pair.localCounters, self.pair.serverCounters

    def send(self, payload: bytes, now: float, back: bool = False) -> None:
        """Send from udp-local, or from udp-server."""
        if back:
            theirs = self.pair.server.associations.get(self.association.number) or self.fail("it is not open")
            self.pair.server.send([makeParcel(theirs, payload)], now)
        else:
            self.association.touch(TARGET_ADDRESS, now)
            self.pair.local.send([makeParcel(self.association, payload)], now)

    def delivered(self, back: bool = False) -> list[bytes]:
        """What has arrived at the target, or at the application."""
        outlet = self.outlet if back else self.pair.outlets[self.association.number]
        return [payload for _, payload in outlet.datagrams]

    def feedOther(self, back: bool, now: float) -> None:
        """Carry what one end has sent to the other."""
        sender = int(back)
        feed(self.pair.links[0][1 - sender], self.pair.carriers[0][sender].take(), now)

    def test_bothEnds(self) -> None:
        """Until the PING of its waking is answered either end drops DATA; what was sent behind the PONG arrives."""
        for back in (False, True):
            self.setUp()
            before = self.delivered(back)
            self.send(b"old", 59.5, back)
            self.send(b"old, too", 59.6, back)
            self.feedOther(back, 60.0)
            self.assertEqual(self.delivered(back), before)
            self.send(b"sent before the PING came", 60.0, back)
            self.feedOther(not back, 60.1)
            self.send(b"new", 60.1, back)
            self.feedOther(back, 60.2)
            self.assertEqual(self.delivered(back), [*before, b"new"])
            self.assertEqual(self.counters[1 - back].dropped, {"stale": 3})
            self.assertEqual(self.counters[back].dropped, {})

    def test_bursts(self) -> None:
        """Each datagram of a burst is counted."""
        self.association.touch(TARGET_ADDRESS, 1.0)
        self.pair.local.send([makeParcel(self.association, b"ab", b"cd", b"e")], 1.0)
        self.feedOther(False, 60.0)
        self.assertEqual(self.pair.serverCounters.dropped, {"stale": 3})

    def test_controlIsHeard(self) -> None:
        """Frames that are no DATA count all the same: targets are known afterwards, and PINGs are answered."""
        other = Address("203.0.113.9", 9)
        self.pair.local.send([makeParcel(self.association, b"old", address=other)], 1.0)
        self.feedOther(False, 60.0)
        self.feedOther(True, 60.0)
        self.pair.local.send([makeParcel(self.association, b"new", address=other)], 60.0)
        self.feedOther(False, 60.1)
        self.assertEqual(self.pair.outlets[self.association.number].datagrams[-1], (other, b"new"))

    def test_earlierPong(self) -> None:
        """The answer to an older PING says nothing: what follows it may be old."""
        _, server = self.pair.links[0]
        server.ask(0.6)
        self.feedOther(True, 0.7)
        self.send(b"old", 1.0)
        self.feedOther(False, 60.0)
        self.assertEqual(self.delivered(), [b"before"])

    def test_tickFirst(self) -> None:
        """It does not matter whether the tick or a read is the first to come after waking."""
        self.send(b"old", 1.0)
        self.pair.links[0][1].tick(60.0)
        self.feedOther(False, 60.0)
        self.assertEqual(self.delivered(), [b"before"])

    def test_fullPath(self) -> None:
        """While the path takes nothing the PING waits for it, and nothing is delivered meanwhile."""
        _, server = self.pair.links[0]
        carrier = self.pair.carriers[0][1]
        carrier.full = True
        server.control(encode(CLOSE | 77))
        self.send(b"old", 1.0)
        self.feedOther(False, 60.0)
        carrier.take()
        carrier.full = False
        server.resumed(60.1)
        self.feedOther(True, 60.1)
        self.send(b"new", 60.1)
        self.feedOther(False, 60.2)
        self.assertEqual(self.delivered(), [b"before", b"new"])

    def test_busy(self) -> None:
        """A machine that is busy for a second or two costs nothing."""
        self.send(b"late", 1.0)
        self.feedOther(False, 2.5)
        self.assertEqual((self.delivered(), self.pair.serverCounters.dropped), ([b"before", b"late"], {}))

    def test_again(self) -> None:
        """It is noticed each time."""
        for begin in (60.0, 120.0):
            self.send(b"old", begin - 30)
            self.feedOther(False, begin)
            self.feedOther(True, begin)
            self.feedOther(False, begin)
            self.send(b"new", begin)
            self.feedOther(False, begin)
        self.assertEqual(self.delivered(), [b"before", b"new", b"new"])


class FarewellTests(SynchronousTestCase):
    """How a link ends."""

    def test_goAway(self) -> None:
        """A link says farewell and closes; both ends use it no more."""
        pair = Pair().greeted()
        local, server = pair.links[0]
        server.goAway("restarting", 1.0)
        self.assertEqual((server.up, pair.server.links, pair.carriers[0][1].closed), (False, [], True))
        self.assertEqual(pair.emptied, 1)
        pair.pump(1.0)
        self.assertEqual((local.up, pair.local.links, pair.carriers[0][0].closed), (False, [], True))

    def test_farewellIsKept(self) -> None:
        """What the other end says when it goes is kept for whoever asks why the link has ended."""
        link, _ = makeUp()
        self.assertEqual(link.farewell, "")
        feed(link, encode(GOAWAY, body="tschüß".encode()))
        self.assertEqual(link.farewell, "tschüß")

    def test_farewellOrNot(self) -> None:
        """The session is told whether a link ends with a farewell, from either end, or was lost."""
        for ending, farewell in (
            (lambda link: link.goAway("bye", 1.0), True),
            (lambda link: link.goAwayReceived("bye", 1.0), True),
            (lambda link: link.connectionLost(1.0), False),
            (lambda link: link.retire(1.0), False),
        ):
            for end in (0, 1):
                pair, told = Pair().greeted(), []
                link, session = pair.links[0][end], (pair.local, pair.server)[end]
                session.linkRetired = lambda link, now, farewell, told=told: told.append((link, now, farewell))  # type: ignore[method-assign,misc]
                ending(link)
                link.connectionLost(2.0)
                self.assertEqual(told, [(link, 1.0, farewell)])

    def test_reason(self) -> None:
        """GOAWAY says why, so shortly that it may be a link's first frame; any bytes will do."""
        link, carrier = makeUp()
        link.goAway("ä" * 1000, 0.0)
        (body,) = bodies(carrier.takeFrames(), GOAWAY)
        self.assertEqual(body, "ä".encode() * (LARGEST_HELLO // 2))
        link, carrier = makeUp()
        feed(link, encode(GOAWAY, body=b"\xff\xfe"))
        self.assertTrue(carrier.closed)

    def test_fullPath(self) -> None:
        """Farewell is said even if the path is full: the connection closes when all is sent."""
        link, carrier = makeUp()
        carrier.full = True
        link.offer([makeParcel(makeAssociation())], 0.0)
        link.goAway("restarting", 0.0)
        self.assertEqual(kinds(carrier.takeFrames())[-1], GOAWAY)
        self.assertTrue(carrier.closed)

    def test_connectionLost(self) -> None:
        """When the connection is gone the session is told, once."""
        pair = Pair().greeted()
        _, server = pair.links[0]
        server.goAway("restarting", 1.0)
        server.connectionLost(1.0)
        server.connectionLost(1.0)
        self.assertTrue(server.lost)
        self.assertEqual(pair.emptied, 1)

    def test_lostBeforeTheGreeting(self) -> None:
        """A link that never came up goes without a trace."""
        pair = Pair()
        for link in pair.connect():
            link.connectionLost(0.0)
        self.assertEqual((pair.local.links, pair.server.links, pair.emptied), ([], [], 0))

    def test_whatWaitsIsKept(self) -> None:
        """What waits for a link that ends goes to the next one."""
        pair = Pair().greeted()
        association, _ = pair.open()
        pair.carriers[0][0].full = True
        pair.local.send([makeParcel(association, b"first")], 1.0)
        pair.local.send([makeParcel(association, b"second")], 1.0)
        pair.links[0][0].connectionLost(1.1)
        pair.carriers[0][0].take()
        pair.greeted(now=1.15)
        self.assertEqual(pair.outlets[0].datagrams, [(TARGET_ADDRESS, b"second")])


class FullPathTests(SynchronousTestCase):
    """What happens while the carrier takes no more."""

    def test_waits(self) -> None:
        """Bursts wait while the path is full, and go in order when it is free again."""
        link, carrier = makeUp()
        association = makeAssociation()
        carrier.full = True
        for number in range(5):
            link.offer([makeParcel(association, bytes((number,)))], 0.0)
        self.assertEqual(bodies(carrier.takeFrames()), [b"\0"])
        carrier.full = False
        link.resumed(0.1)
        self.assertEqual(bodies(carrier.takeFrames()), [bytes((number,)) for number in range(1, 5)])

    def ponged(self, link: Link, carrier: MemoryCarrier, now: float) -> None:
        """The link asks, and is answered."""
        link.ask(now)
        (moment,) = (unpackPing(body) for word, _, _, body in carrier.takeFrames() if word == PING)
        feed(link, pong(moment, 0), now + 0.01)

    def test_backlog(self) -> None:
        """
        The kernel keeps little that it can not send: a part of what the path takes, and it is told when that changes.

        What waits there holds up sparse flows while its congestion control lets nothing pass.
        """
        link, carrier = makeUp()
        self.assertEqual(carrier.kept, [65536])
        for size, kept in (
            (1 << 22, 1 << 18),
            (3 << 20, 1 << 18),
            (1 << 26, 1 << 20),
            (1 << 25, 1 << 20),
            (1 << 10, 65536),
        ):
            link.window._whole = size
            self.assertEqual(link.window.backlog, min(max(size // 16, 65536), 1 << 20))
            link._limitBacklog()
            self.assertEqual(carrier.kept[-1], kept)
        self.assertEqual(carrier.kept, [65536, 1 << 18, 1 << 20, 65536])

    def test_noLimit(self) -> None:
        """Where bytes may wait on the path as they like the kernel keeps what it keeps."""
        link, carrier = makeUp(delay=0.0)
        self.ponged(link, carrier, 1.0)
        self.assertEqual(carrier.kept, [])

    def test_fullAgain(self) -> None:
        """No more than one write goes when the path is full again at once."""
        link, carrier = makeUp()
        carrier.full = True
        link.offer([makeParcel(makeAssociation(), bytes(9000))] * 20, 0.0)
        written = len(carrier.writes)
        for more in range(1, 4):
            link.resumed(0.0)
            self.assertEqual(len(carrier.writes), written + more)

    def test_fair(self) -> None:
        """A call that shares a full link with a download does not wait for it."""
        link, carrier = makeUp(delay=0.0)
        download, call = makeAssociation(1), makeAssociation(2)
        carrier.full = True
        link.offer([makeParcel(download, *[bytes(1400)] * 40)] * 20, 0.0)
        link.offer([makeParcel(call, b"call")], 0.0)
        carrier.take()
        carrier.full = False
        link.resumed(0.1)
        order = bodies(carrier.takeFrames())
        before = sum(map(len, order[: order.index(b"call")]))
        self.assertLessEqual(before, 3 * 65536)
        self.assertGreater(sum(map(len, order)), 4 * before)

    def test_stale(self) -> None:
        """What waited longer than the queue's age is not sent any more."""
        link, carrier = makeUp(queueAge=0.2)
        association = makeAssociation()
        carrier.full = True
        for payload, now in ((b"goes", 0.0), (b"old", 0.0), (b"new", 0.15)):
            link.offer([makeParcel(association, payload)], now)
        carrier.full = False
        link.resumed(0.3)
        self.assertEqual(bodies(carrier.takeFrames()), [b"goes", b"new"])

    def test_staleWithoutResumption(self) -> None:
        """What is too old goes even while the path stays full."""
        link, carrier = makeUp(queueAge=0.2)
        carrier.full = True
        link.offer([makeParcel(makeAssociation(), bytes(100))] * 500, 0.0)
        self.assertGreater(link.report(0.0)["queuedBytes"], 0)
        link.tick(1.0)
        self.assertEqual(link.report(0.0)["queuedBytes"], 0)

    def test_bounded(self) -> None:
        """No more waits than the queue holds."""
        link, carrier = makeUp(queueBytes=100_000)
        carrier.full = True
        for _ in range(100):
            link.offer([makeParcel(makeAssociation(), bytes(9000))] * 10, 0.0)
        self.assertLessEqual(link.report(0.0)["queuedBytes"], 100_000)

    def test_smallBursts(self) -> None:
        """However many small bursts wait, all of them go, a thousand buffers at most in one write."""
        link, carrier = makeUp(delay=0.0)
        association = makeAssociation()
        carrier.full = True
        link.offer([makeParcel(association)] * 1000, 0.0)
        carrier.full = False
        link.resumed(0.1)
        self.assertEqual(len(bodies(carrier.takeFrames())), 1000)

    def test_controlOvertakes(self) -> None:
        """Control frames wait while the path is full, but not behind the bursts."""
        link, carrier = makeUp()
        carrier.full = True
        link.offer([makeParcel(makeAssociation(), b"a")], 0.0)
        link.offer([makeParcel(makeAssociation(), b"b")], 0.0)
        link.control(encode(CLOSE | 5))
        carrier.take()
        carrier.full = False
        link.resumed(0.0)
        self.assertEqual(kinds(carrier.takeFrames()), [CLOSE, 0])

    def test_closesAreBounded(self) -> None:
        """A flood of bursts for associations that are gone does not fill the memory with answers."""
        pair = Pair().greeted()
        local, carrier = pair.links[0][0], pair.carriers[0][0]
        feed(local, encode(TARGET, body=packAddress(TARGET_ADDRESS)))
        carrier.full = True
        for number in range(3 * MOST_PENDING):
            feed(local, encode(number, 0, 1, b"x"))
        self.assertEqual(len(carrier.takeFrames()), 1)
        self.assertEqual(pair.localCounters.dropped["no association"], 3 * MOST_PENDING)
        carrier.full = False
        local.resumed(0.0)
        self.assertEqual(len(carrier.takeFrames()), MOST_PENDING)


class SimulatedCarrier(MemoryCarrier):
    """Sends what is written over a L{Path}, or back by the wide way."""

    def __init__(self, path: Path, wide: bool) -> None:
        super().__init__()
        self._path, self._wide = path, wide
        self.other: Link | None = None

    def write(self, buffers: object) -> bool:
        super().write(buffers)  # type: ignore[arg-type]
        data = self.take()
        self.writes.clear()
        self._taken = 0
        if self._wide:
            self._path.answer(lambda: self._arrived(data))
        else:
            self._path.send(len(data), lambda: self._arrived(data))
        return not self.full

    def _arrived(self, data: bytes) -> None:
        assert self.other is not None
        feed(self.other, data, self._path.now)


class StallTests(SynchronousTestCase):
    """A path that lets nothing through for a while, as one does that loses much."""

    def setUp(self) -> None:
        self.association = makeAssociation()

    def send(self, link: Link, payload: bytes, now: float) -> None:
        link.offer([makeParcel(self.association, payload)], now)

    def stalled(self, **limits: Any) -> tuple[Link, MemoryCarrier, int]:
        """A link whose PING of 1.0 is not answered, and the moment of that PING."""
        link, carrier = makeUp(**limits)
        self.send(link, b"first", 1.0)
        link.ask(1.0)
        (*_, moment) = map(unpackPing, bodies(carrier.takeFrames(), PING))
        return link, carrier, moment

    def test_asks(self) -> None:
        """While bursts are sent, however few, a PING follows every quarter of a second, and none after the last one."""
        link, carrier = makeUp()
        asked = []
        for step in range(1, 11):
            self.send(link, b"x", step / 10)
            asked += [step] * len(bodies(carrier.takeFrames(), PING))
        self.assertEqual(asked, [3, 6, 9])
        link.tick(2.0)
        self.assertEqual(carrier.take(), b"")

    def test_waits(self) -> None:
        """When a PING has no answer for a second nothing more is sent; what waits gets too old, or goes afterwards."""
        link, carrier, moment = self.stalled()
        self.send(link, b"still", 1.9)
        self.assertEqual(bodies(carrier.takeFrames()), [b"still"])
        self.send(link, b"too old", 2.1)
        link.offer([makeParcel(makeAssociation(7), b"of a sparse flow")], 2.2)
        self.send(link, b"new", 2.9)
        self.assertEqual(carrier.take(), b"")
        feed(link, pong(moment, 0), 3.0)
        self.assertEqual(bodies(carrier.takeFrames()), [b"new"])

    def test_slow(self) -> None:
        """Answers that come slowly, one after the other, are no stall."""
        link, carrier, moment = self.stalled()
        link.ask(1.5)
        feed(link, pong(moment, 0), 1.9)
        carrier.take()
        self.send(link, b"more", 2.8)
        self.assertEqual(bodies(carrier.takeFrames()), [b"more"])

    def test_noLimit(self) -> None:
        """Where bytes may wait on the path as they like they are sent all the same."""
        link, carrier, _ = self.stalled(delay=0.0)
        self.send(link, b"more", 4.0)
        self.assertEqual(bodies(carrier.takeFrames()), [b"more"])

    def test_owed(self) -> None:
        """A PING that found the path full goes as soon as it takes more, for nothing else would end the wait."""
        link, carrier = makeUp()
        carrier.full = True
        self.send(link, b"first", 4.9)
        link.ask(5.0)
        carrier.take()
        carrier.full = False
        for _ in range(2):
            link.resumed(8.0)
        (moment,) = map(unpackPing, bodies(carrier.takeFrames(), PING))
        self.send(link, b"more", 8.0)
        self.assertEqual(bodies(carrier.takeFrames()), [])
        feed(link, pong(moment, 0), 8.1)
        self.assertEqual(bodies(carrier.takeFrames()), [b"more"])


class WindowTests(SynchronousTestCase):
    """What a link lets on its way."""

    def test_window(self) -> None:
        """No more is sent than the window lets, until answers come."""
        link, carrier = makeUp()
        room = link.window.room
        link.offer([makeParcel(makeAssociation(), bytes(1000))] * 200, 0.0)
        sent = len(carrier.take())
        self.assertTrue(room <= sent < room + 2 * (1000 + HEADER_BYTES + 18))

    def test_noLimit(self) -> None:
        """With a delay of 0 all goes that the carrier takes."""
        link, carrier = makeUp(delay=0.0)
        link.offer([makeParcel(makeAssociation(), bytes(1000))] * 200, 0.0)
        self.assertEqual(len(bodies(carrier.takeFrames())), 200)

    def test_answersMakeRoom(self) -> None:
        """An answer to a PING lets go what waits."""
        link, carrier = makeUp()
        link.offer([makeParcel(makeAssociation(), bytes(1000))] * 200, 0.0)
        pings = [unpackPing(body) for body in bodies(carrier.takeFrames(), PING)]
        self.assertGreaterEqual(len(pings), 7)
        feed(link, pong(pings[0], int(link.report(0.0)["sentBytes"])), 0.05)
        self.assertGreater(len(bodies(carrier.takeFrames())), 20)

    def test_neverStuck(self) -> None:
        """When the window has shrunk below what no PING followed, a PING is sent: else no answer would make room."""
        link, carrier = makeUp()
        link.offer([makeParcel(makeAssociation(), bytes(1000))] * 200, 0.0)
        sent = int(link.report(0.0)["sentBytes"])
        link.control(encode(OPTIONAL, body=bytes(6000)))
        carrier.take()
        feed(link, pong(0, sent), 10.0)
        self.assertLess(link.window.room, 0)
        self.assertEqual(kinds(carrier.takeFrames()), [PING])

    def simulate(self, megabits: float, roundTrip: float, seconds: float) -> tuple[Path, RecordingOutlet, LocalLink]:
        """A session over a path that is always wanted."""
        path, pair = Path(megabits, roundTrip), Pair(queueAge=1e9)
        narrow, wide = SimulatedCarrier(path, wide=False), SimulatedCarrier(path, wide=True)
        local = LocalLink(narrow, pair.limits, pair.localCounters, 0.0, pair.local.membership, lambda: None)
        server = ServerLink(wide, pair.limits, pair.serverCounters, 0.0, pair.reception)
        narrow.other, wide.other = server, local
        self.server = pair.server
        association, _ = pair.open()

        def refill() -> None:
            if local.report(path.now)["queuedBytes"] < 1 << 20:
                association.touch(TARGET_ADDRESS, path.now)
                pair.local.send([makeParcel(association, *[bytes(1400)] * 8)] * 40, path.now)
            pair.local.tick(path.now)
            pair.server.tick(path.now)
            path.at(path.now + 0.02, refill)

        path.at(2 * roundTrip, refill)
        path.run(seconds)
        return path, pair.outlets[0], local

    def test_aCallBesideADownload(self) -> None:
        """While one flow is offered twice what the path takes, another with a datagram each 20 ms loses nothing."""
        path, bulk, link = self.simulate(10, 0.05, 4.0)
        call = Association(4711, RecordingOutlet(), path.now)
        sent: list[float] = []

        def ring() -> None:
            link.offer([makeParcel(call, len(sent).to_bytes(4, "big") + bytes(100))], path.now)
            sent.append(path.now)
            path.at(path.now + 0.02, ring)

        waits: list[float] = []
        assert link.session is not None
        arrived = RecordingOutlet()
        arrived.send = lambda _, size, payload: waits.append(path.now - sent[len(waits)])  # type: ignore[method-assign]
        self.server.associations.add(Association(4711, arrived, path.now))
        ring()
        path.run(29.0)
        self.assertGreater(len(waits), len(sent) - 20)
        self.assertLess(max(waits), 0.05 / 2 + 0.1 + 0.05)
        self.assertTrue(bulk.bursts)

    def test_filledPath(self) -> None:
        """A link uses nine tenths of its path, however long, and what it sends does not wait there for long."""
        for megabits, roundTrip in ((1, 0.02), (10, 0.1), (10, 0.3), (20, 0.005), (50, 0.02)):
            path, outlet, link = self.simulate(megabits, roundTrip, 9.0)
            early = len(outlet.bursts)
            path.run(18.0)
            arrived = sum(len(payload) for _, _, payload in outlet.bursts[early:])
            self.assertGreater(arrived / 9.0 / path.rate, 0.9, (megabits, roundTrip))
            # One write is not divided: an eighth of the window, or one burst.
            write = max(link.window.size / 8, 1400 * 8) / path.rate
            self.assertLess(path.longestWait(4, 18), 0.1 + roundTrip + write, (megabits, roundTrip))


class InvarianceTests(SynchronousTestCase):
    """Two links, and a path that cuts as it likes."""

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 2),
                st.sampled_from(ADDRESSES),
                st.integers(0, 5),
                st.integers(0, 3),
                st.booleans(),
            ),
            max_size=15,
        ),
        st.lists(st.integers(1, 40), min_size=1, max_size=10),
        st.booleans(),
    )
    def test_cutAnywhere(
        self, sent: list[tuple[int, Address, int, int, bool]], lengths: list[int], fewTargets: bool
    ) -> None:
        """However the bytes are cut on the way, the same datagrams come out at the same outlets in the same order."""
        pair = Pair(targets=1 if fewTargets else 100)
        pair.connect()
        pair.pump(0.0, lambda data: self.cut(data, lengths))
        opened = [pair.open() for _ in range(3)]
        expected: dict[tuple[bool, int], list[tuple[Address, bytes]]] = {}
        for which, address, size, datagrams, back in sent:
            association, payload = opened[which][0], bytes(range(size * datagrams))
            burst = Burst(address, size, payload)
            if back and association.number in pair.outlets:
                association = pair.server.associations.get(association.number) or self.fail("it is gone")
                pair.server.send([self.parcel(association, burst)], 0.0)
            else:
                back = False
                pair.local.send([self.parcel(association, burst)], 0.0)
            expected.setdefault((back, which), []).extend((address, bytes(each)) for each in split(size, payload))
            pair.pump(0.0, lambda data: self.cut(data, lengths))
        for (back, which), datagrams_ in expected.items():
            outlet = opened[which][1] if back else pair.outlets[opened[which][0].number]
            self.assertEqual(outlet.datagrams, datagrams_)

    def parcel(self, association: object, burst: Burst) -> Parcel:
        """A burst for an association."""
        return association, burst.source, burst.size, burst.payload  # type: ignore[return-value]

    def cut(self, data: bytes, lengths: list[int]) -> list[bytes]:
        """Some bytes in pieces of these lengths, over and over."""
        pieces, place, turn = [], 0, 0
        while place < len(data):
            length = lengths[turn % len(lengths)]
            pieces.append(data[place : place + length])
            place, turn = place + length, turn + 1
        return pieces

    def test_byteByByte(self) -> None:
        """A link works if each byte comes alone."""
        pair = Pair()
        pair.connect()
        association, _ = pair.open()
        pair.local.send([makeParcel(association, b"aa", b"b"), makeParcel(association, b"")], 0.0)
        pair.pump(0.0, lambda data: [data[at : at + 1] for at in range(len(data))])
        self.assertEqual([datagram for _, datagram in pair.outlets[0].datagrams], [b"aa", b"b", b""])


class ReportTests(SynchronousTestCase):
    """L{Link.report}."""

    def test_report(self) -> None:
        """A link reports its round trips and what it sent, received, holds and has on the way."""
        link, carrier = makeUp()
        feed(link, ping(1), 0.0)
        link.offer([makeParcel(makeAssociation(), b"abc")], 0.0)
        link.ask(1.0)
        report = link.report(1.0)
        self.assertEqual(report["sentBytes"], len(carrier.written))
        self.assertEqual(report["receivedBytes"], len(packWelcome(SOME) + pong(0, 0) + ping(0)))
        self.assertEqual(report["queuedBytes"], 0)
        self.assertEqual(report["flyingBytes"], report["sentBytes"])
        feed(link, pong(1_000_000, len(carrier.written)), 1.25)
        report = link.report(1.0)
        self.assertEqual((report["flyingBytes"], report["roundTrip"]), (0, 0.25))
        self.assertLess(report["smallestRoundTrip"], 0.25)

    def test_state(self) -> None:
        """It also reports whether it is up, whether it is late, and how old it is."""
        link, _ = makeLocal(now=10.0)
        report = link.report(11.0)
        self.assertEqual([report[each] for each in ("up", "late", "age")], [False, False, 1.0])
        feed(link, packWelcome(SOME), 12.0)
        report = link.report(13.5)
        self.assertEqual([report[each] for each in ("up", "late", "age")], [True, True, 3.5])
        link.connectionLost(14.0)
        self.assertFalse(link.report(14.0)["up"])

    def test_queueDelay(self) -> None:
        """How long what waits will wait is known when the path's rate is, and not a matter of dividing by nothing."""
        link, carrier = makeUp()
        carrier.full = True
        link.offer([makeParcel(makeAssociation(), bytes(1000))] * 3, 1.0)
        self.assertEqual(link.report(1.0)["queueDelay"], 0.0)
        carrier.full = False
        link, carrier = makeUp()
        for moment in (1_000_000, 1_100_000, 1_200_000):
            link.offer([makeParcel(makeAssociation(), bytes(60_000))] * 8, moment / 1e6)
            feed(link, pong(moment, link.window.sent), moment / 1e6 + 0.1)
        carrier.full = True
        link.offer([makeParcel(makeAssociation(), bytes(60_000))] * 8, 1.4)
        report = link.report(1.4)
        self.assertAlmostEqual(report["queueDelay"], report["queuedBytes"] / link.window.rate)
        self.assertGreater(report["queueDelay"], 0.0)
