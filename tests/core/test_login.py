"""Tests for L{udptunnel.core.login}."""

from __future__ import annotations

import hmac
from dataclasses import replace
from hashlib import sha256

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.login import NO_BINDING, SECRET_BYTES, Challenge, Login, Secrets
from udptunnel.errors import ConfigError, RefusedError

SECRET = bytes(range(32))
DIGITS = SECRET.hex()
OTHER = bytes(range(32, 64))
DUMMY = b"d" * 32

HELLO = b"the body of a HELLO, with a nonce in it"
NONCE = b"n" * 32
BINDING = b"b" * 32

bodies = st.binary(max_size=80)


def makeLogin(user: str = "alice", secret: bytes = SECRET, binding: bytes = BINDING) -> Login:
    """Who udp-local is."""
    return Login(user, secret, b"l" * 32, lambda: binding)


def makeChallenge(
    secret: bytes = SECRET, binding: bytes = BINDING, nonce: bytes = NONCE, hello: bytes = HELLO, known: bool = True
) -> Challenge:
    """What udp-server asks."""
    return Challenge(secret, binding, nonce, hello, known)


def answer(login: Login, challenge: Challenge, hello: bytes = HELLO) -> bytes:
    """What a login answers to a challenge, which may be meant for somebody else."""
    return login.answer(hello, challenge.nonce, challenge.proof)


def proofOfLocal(secret: bytes = SECRET, binding: bytes = BINDING, nonce: bytes = NONCE, hello: bytes = HELLO) -> bytes:
    """The proof of udp-local as the document describes it, made without our own code."""
    padded = secret.ljust(64, b"\0")
    inner = sha256(bytes(each ^ 0x36 for each in padded) + b"udptunnel local " + binding + nonce + hello)
    return sha256(bytes(each ^ 0x5C for each in padded) + inner.digest()).digest()


class ProofTests(SynchronousTestCase):
    """How both ends prove that they know a secret."""

    def test_golden(self) -> None:
        """The bytes of both proofs never change."""
        text = b"\x00\x01\x02 hello"
        challenge = makeChallenge(binding=NO_BINDING, nonce=bytes(range(64, 96)), hello=text)
        said = NO_BINDING + bytes(range(64, 96)) + text
        ofServer = hmac.new(SECRET, b"udptunnel server" + said, sha256).digest()
        ofLocal = hmac.new(SECRET, b"udptunnel local " + said, sha256).digest()
        self.assertEqual(ofServer.hex(), "b3e6ad0c3977a8ab6a4048a68fb5d7b77046c560f883b33c3a6696debdd8e8a1")
        self.assertEqual(ofLocal.hex(), "b524cb03550936987a15e7a84cca4fae5a6833034f82fa5706c511a4ce9b1c35")
        self.assertEqual(challenge.proof, ofServer)
        self.assertEqual(answer(makeLogin(binding=NO_BINDING), challenge, text), ofLocal)

    def test_agree(self) -> None:
        """Two ends that know the same secret believe each other."""
        for binding in (NO_BINDING, BINDING):
            challenge = makeChallenge(binding=binding)
            proof = answer(makeLogin(binding=binding), challenge)
            self.assertEqual(proof, proofOfLocal(binding=binding))
            self.assertTrue(challenge.check(proof))

    def test_wrongServer(self) -> None:
        """udp-local answers nobody who does not know the secret, or another connection, nonce or HELLO."""
        for wrong in (
            makeChallenge(secret=OTHER),
            makeChallenge(secret=bytes(32)),
            makeChallenge(binding=NO_BINDING),
            makeChallenge(hello=HELLO + b"!"),
            makeChallenge(hello=b""),
        ):
            self.assertRaises(RefusedError, answer, makeLogin(), wrong)
        right = makeChallenge()
        self.assertRaises(RefusedError, makeLogin().answer, HELLO, b"m" * 32, right.proof)
        for proof in (b"", bytes(32), right.proof[:-1], right.proof + b"\0", SECRET):
            self.assertRaises(RefusedError, makeLogin().answer, HELLO, NONCE, proof)

    def test_wrongSecret(self) -> None:
        """Whoever has another secret is refused, even if he does not care whether the server has his."""
        self.assertFalse(makeChallenge().check(proofOfLocal(secret=OTHER)))
        self.assertFalse(makeChallenge().check(proofOfLocal(secret=bytes(32))))

    def test_wrongUser(self) -> None:
        """The secret of one user does not open the door for another."""
        secrets = Secrets({"alice": SECRET, "bob": OTHER}, DUMMY)
        challenge = makeChallenge(secret=secrets.of("bob"))
        self.assertRaises(RefusedError, answer, makeLogin("bob", SECRET), challenge)
        self.assertFalse(challenge.check(proofOfLocal(secret=secrets.of("alice"))))
        self.assertTrue(challenge.check(proofOfLocal(secret=secrets.of("bob"))))

    def test_wrongBinding(self) -> None:
        """A proof that was made for one TLS connection is worth nothing on another: nobody stands between."""
        self.assertFalse(makeChallenge(binding=b"c" * 32).check(proofOfLocal(binding=BINDING)))
        self.assertFalse(makeChallenge(binding=NO_BINDING).check(proofOfLocal(binding=BINDING)))
        self.assertFalse(makeChallenge(binding=BINDING).check(proofOfLocal(binding=NO_BINDING)))

    def test_changedHello(self) -> None:
        """Who changes the HELLO on its way, be it one bit, spoils the proof."""
        for bit in range(8 * len(HELLO)):
            changed = (int.from_bytes(HELLO, "big") ^ 1 << bit).to_bytes(len(HELLO), "big")
            self.assertFalse(makeChallenge(hello=changed).check(proofOfLocal()))

    def test_reflected(self) -> None:
        """The proof of one role is none of the other: a server's own words, sent back to it, do not open it."""
        challenge = makeChallenge()
        self.assertFalse(challenge.check(challenge.proof))
        self.assertRaises(RefusedError, makeLogin().answer, HELLO, NONCE, proofOfLocal())

    def test_replayed(self) -> None:
        """A proof that was seen on the way is worth nothing for another nonce."""
        self.assertFalse(makeChallenge(nonce=b"m" * 32).check(proofOfLocal(nonce=NONCE)))
        self.assertTrue(makeChallenge(nonce=b"m" * 32).check(proofOfLocal(nonce=b"m" * 32)))

    def test_unknownUser(self) -> None:
        """A user who does not exist is asked as any other, and fails even if he guesses what is asked."""
        secrets = Secrets({"alice": SECRET}, DUMMY)
        challenge = makeChallenge(secret=secrets.of("mallory"), known="mallory" in secrets)
        self.assertEqual(len(challenge.proof), 32)
        self.assertFalse(challenge.check(proofOfLocal(secret=DUMMY)))
        self.assertTrue(replace(challenge, known=True).check(proofOfLocal(secret=DUMMY)))

    def test_wrongLength(self) -> None:
        """A proof that is cut short, or longer, is none."""
        right = proofOfLocal()
        for wrong in (b"", right[:-1], right + b"\0", right * 2):
            self.assertFalse(makeChallenge().check(wrong))

    def test_bindingIsAskedLate(self) -> None:
        """What ties a proof to the connection is asked for when it is needed: before, there is no handshake."""
        asked: list[int] = []

        def binding() -> bytes:
            asked.append(1)
            return BINDING

        login = Login("alice", SECRET, NONCE, binding)
        self.assertEqual(asked, [])
        answer(login, makeChallenge())
        self.assertEqual(asked, [1])

    def test_errorsSayNoSecret(self) -> None:
        """Why a server is not believed is said without the secret, and without the proof."""
        error = self.assertRaises(RefusedError, answer, makeLogin(), makeChallenge(secret=OTHER))
        for word in (DIGITS, OTHER.hex(), proofOfLocal().hex(), repr(SECRET)):
            self.assertNotIn(word, str(error))
        self.assertIn("'alice'", str(error))

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(*[st.binary(min_size=32, max_size=32)] * 3, bodies, bodies)
    def test_onlyTheSame(self, secret: bytes, binding: bytes, nonce: bytes, hello: bytes, other: bytes) -> None:
        """A proof is right for exactly what it was made for."""
        proof = answer(makeLogin(secret=secret, binding=binding), makeChallenge(secret, binding, nonce, hello), hello)
        self.assertEqual(proof, proofOfLocal(secret, binding, nonce, hello))
        self.assertTrue(makeChallenge(secret, binding, nonce, hello).check(proof))
        self.assertEqual(makeChallenge(secret, binding, nonce, other).check(proof), hello == other)
        self.assertFalse(makeChallenge(secret, binding, nonce, hello, known=False).check(proof))


class ReprTests(SynchronousTestCase):
    """What is seen of logins in a log or a traceback."""

    def test_noSecret(self) -> None:
        """Neither a secret nor a nonce, a binding or a HELLO; but whose login it is."""
        login, challenge = makeLogin(secret=b"S" * 32), makeChallenge(secret=b"S" * 32)
        for shown in (repr(login), str(login), repr(challenge), str(challenge)):
            for hidden in ("SSS", "nnn", "lll", "bbb", "HELLO", "lambda"):
                self.assertNotIn(hidden, shown)
        self.assertIn("alice", repr(login))
        self.assertIn("known=True", repr(challenge))


class SecretsTests(SynchronousTestCase):
    """L{Secrets}, and the file they come from."""

    def parse(self, *lines: str) -> Secrets:
        """Read some lines."""
        return Secrets.parse("\n".join(lines), DUMMY)

    def test_good(self) -> None:
        """Each line holds a user and a secret; digits may be large, and the end of a line of any kind."""
        secrets = Secrets.parse(f"alice:{DIGITS}\r\nbob:{OTHER.hex().upper()}\n", DUMMY)
        self.assertEqual((secrets.of("alice"), secrets.of("bob"), len(secrets)), (SECRET, OTHER, 2))
        self.assertIn("alice", secrets)
        self.assertNotIn("carol", secrets)

    def test_nobody(self) -> None:
        """The secret of somebody who does not exist is the one for that."""
        self.assertEqual(self.parse(f"alice:{DIGITS}").of("carol"), DUMMY)

    def test_comments(self) -> None:
        """Empty lines and those that begin with # mean nothing; blanks around a line do not, either."""
        secrets = self.parse("# users", "", "   ", f"  alice:{DIGITS}  ", "#bob:1234", f"#alice:{OTHER.hex()}")
        self.assertEqual((len(secrets), secrets.of("alice")), (1, SECRET))

    def test_empty(self) -> None:
        """A file without a user lets nobody in."""
        for text in ("", "\n", "# nobody"):
            self.assertEqual(len(Secrets.parse(text, DUMMY)), 0)

    def test_names(self) -> None:
        """A name may hold what can be printed, colons and blanks included, up to 64 bytes of UTF-8."""
        for user in ("a", "zoë müller", "a:b", ":", "ü" * 32, "a" * 64, "日本"):
            self.assertEqual(self.parse(f"{user}:{DIGITS}").of(user), SECRET)

    def test_badNames(self) -> None:
        """A name that is empty, too long, or can not be printed is refused."""
        for user in ("", "a" * 65, "ü" * 33, "a\0b", "a\x1b[2J", "\ufeffalice", "a\u202eb"):
            error = self.assertRaises(ConfigError, self.parse, f"{user}:{DIGITS}")
            self.assertIn("line 1: a user's name", str(error))

    def test_badSecrets(self) -> None:
        """A secret is 64 hexadecimal digits, no less, no more and nothing else."""
        for digits in (
            "",
            DIGITS[:-1],
            DIGITS[:-2],
            DIGITS + "0",
            DIGITS + "00",
            "0x" + DIGITS[2:],
            DIGITS[:-1] + "g",
            DIGITS[:-2] + "é" * 2,
            DIGITS[:-2] + "٣٣",
            DIGITS[:32] + " " + DIGITS[32:],
            DIGITS[:-4] + "  " + DIGITS[-2:],
            "password",
        ):
            error = self.assertRaises(ConfigError, self.parse, "# users", f"alice:{digits}")
            self.assertEqual(str(error), "line 2: expected user:secret, the secret as 64 hexadecimal digits")

    def test_noColon(self) -> None:
        """A line without a colon is refused."""
        for line in ("alice", DIGITS):
            self.assertRaises(ConfigError, self.parse, line)

    def test_twice(self) -> None:
        """A user who stands there twice is refused, even with the same secret: one line is not meant."""
        for digits in (DIGITS, OTHER.hex()):
            error = self.assertRaises(ConfigError, self.parse, f"alice:{DIGITS}", "", f"alice:{digits}")
            self.assertEqual(str(error), "line 3: the user 'alice' stands there twice")

    def test_errorsSayNoSecret(self) -> None:
        """What is wrong with a line is said without its secret, also if user and secret have changed places."""
        for line in (
            f"alice:{DIGITS}0",
            f"alice:{DIGITS[:-1]}",
            f"alice {DIGITS}",
            f"{DIGITS}:alice",
            f"{DIGITS}",
            f"alice:{DIGITS}:bob",
            f"alice:{DIGITS}:{DIGITS}",
            f":{DIGITS}",
            f"alice\t{DIGITS}:{DIGITS}",
        ):
            error = self.assertRaises(ConfigError, self.parse, line)
            self.assertNotIn(DIGITS[:8], str(error))
            self.assertIn("line 1", str(error))

    def test_only(self) -> None:
        """A file for one user holds one."""
        self.assertEqual(self.parse("# me", f"alice:{DIGITS}").only(), ("alice", SECRET))
        for lines in ([], [f"alice:{DIGITS}", f"bob:{DIGITS}"]):
            error = self.assertRaises(ConfigError, self.parse(*lines).only)
            self.assertNotIn(DIGITS[:8], str(error))

    def test_length(self) -> None:
        """A secret has 256 bits."""
        self.assertEqual(8 * SECRET_BYTES, 256)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.text(max_size=20), st.text(alphabet="0123456789abcdefABCDEF xg:\n", max_size=70) | st.just(DIGITS))
    def test_garbage(self, user: str, digits: str) -> None:
        """Whatever stands in a file, nothing but L{ConfigError} is raised, and what is read has the right length."""
        text = f"{user}:{digits}".encode("utf-8", "replace").decode()
        try:
            secrets = Secrets.parse(text, DUMMY)
        except ConfigError:
            return
        if len(secrets) == 1:
            name, secret = secrets.only()
            self.assertEqual(len(secret), SECRET_BYTES)
            self.assertTrue(0 < len(name.encode()) <= 64 and name.isprintable())
