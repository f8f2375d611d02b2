"""Tests for L{udptunnel.services.authority}, and for how users log in at a real udp-server."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet import reactor
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, capturedLogs, formatEvent

from tests.services.tunnel import HOSTS, Conversation, FilesTestCase, NoNames, TunnelTestCase, cut, newSecret
from tests.waiting import until
from udptunnel.config import ServerConfig
from udptunnel.core.login import NO_BINDING, Login
from udptunnel.errors import ConfigError, ListenError, RefusedError
from udptunnel.net.tls import fingerprintOf, readIdentity
from udptunnel.pki import Authority as Pki
from udptunnel.services import reconnecting as reconnecting_module
from udptunnel.services.authority import Authority, Visitor, readSecrets
from udptunnel.services.local import LocalService
from udptunnel.services.reconnecting import GROWTH, REFUSED_GROWTH, ReconnectingService
from udptunnel.services.server import ServerService
from udptunnel.wire.address import Address


class AuthorityTestCase(FilesTestCase):
    """Who decides, by what stands in files."""

    def authority(self, **fields: Any) -> Authority:
        """Who decides, with some options."""
        return Authority(ServerConfig(**fields))


class SecretFileTests(AuthorityTestCase):
    """L{readSecrets}."""

    def test_wrong(self) -> None:
        """A file that can not be used is named with its option; what stands in it is not."""
        for name, why in (
            ("/no/such/file", "No such file"),
            (self.file("alice:secret\n"), "line 1"),
            (self.file(newSecret("alice") + newSecret("alice")), "line 2"),
        ):
            error = str(self.assertRaises(ConfigError, readSecrets, "secrets", name))
            self.assertTrue(error.startswith(f"--secrets {name}: "), error)
            self.assertIn(why, error)
            self.assertNotIn("secret\n", error)
            self.assertNotIn("\n", error)

    def test_othersMayRead(self) -> None:
        """Of a file that everybody may read it is said so, in one line, and it is used."""
        name = self.file(newSecret("alice"))
        for mode, warned in ((0o600, False), (0o640, False), (0o644, True), (0o604, True)):
            Path(name).chmod(mode)
            for option in ("secrets", "secret"):
                with capturedLogs() as events:
                    self.assertEqual(len(readSecrets(option, name)), 1)
                said = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
                self.assertEqual(len(said), warned, (oct(mode), said))
                self.assertTrue(all(f"--{option} {name}: others may read it" in each for each in said), said)

    def test_bytes(self) -> None:
        """Nor is a file that is no text."""
        name = self.file("")
        Path(name).write_bytes(b"\xff\xfe")
        self.assertRaises(ConfigError, readSecrets, "secrets", name)


class DoorTests(AuthorityTestCase):
    """Whether the door may be open to other machines."""

    def assertDoor(self, open_: bool, advice: str, **fields: Any) -> None:
        """Whether it may with some options, and what is said if it may not."""
        authority = self.authority(**fields)
        self.assertEqual(authority.mayListenAnywhere, open_, fields)
        self.assertIn(advice, authority.advice)

    def test_door(self) -> None:
        """It may if users are known by certificates, or by secrets inside something that encrypts, or if waived."""
        pki, secrets = self.pki(), self.file(newSecret("alice"))
        whole = str(pki.bundle("server"))
        bare = self.file(withoutAuthority(whole))
        self.assertDoor(False, "--insecure-no-auth")
        self.assertDoor(True, "", insecureNoAuth=True)
        self.assertDoor(False, "--insecure-plain", secrets=secrets)
        self.assertDoor(False, "--tls", secrets=secrets)
        self.assertDoor(True, "", secrets=secrets, insecurePlain=True)
        self.assertDoor(True, "", secrets=secrets, tls=whole)
        self.assertDoor(True, "", secrets=secrets, tls=bare)
        self.assertDoor(True, "", tls=whole)
        # Nobody is asked for anything here, however well it is encrypted.
        self.assertDoor(False, "--insecure-no-auth", tls=bare)
        self.assertDoor(False, "--insecure-no-auth", insecurePlain=True)


def withoutAuthority(bundle: str) -> str:
    """A bundle without the CA certificates in it."""
    identity = readIdentity(bundle)
    key = identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return str((key + identity.certificate.public_bytes(Encoding.PEM)).decode())


class ChallengeTests(AuthorityTestCase):
    """What users have to prove."""

    def setUp(self) -> None:
        self.line = newSecret("alice")
        self.secret = bytes.fromhex(self.line.strip().partition(":")[2])
        self.transport = StringTransport()

    def test_nobodyIsAsked(self) -> None:
        """Without secrets nobody has to prove anything, whoever he says he is."""
        self.assertIs(self.authority().challenge(self.transport, "alice", b"hello"), None)
        self.assertEqual(self.authority().greet(self.transport), Visitor())

    def test_known(self) -> None:
        """A user proves to know his secret, and that proof is good for one challenge only."""
        authority = self.authority(secrets=self.file(self.line))
        login = Login("alice", self.secret, b"l" * 32, lambda: NO_BINDING)
        first, second = (authority.challenge(self.transport, "alice", b"hello") for _ in range(2))
        assert first is not None and second is not None
        proof = login.answer(b"hello", first.nonce, first.proof)
        self.assertTrue(first.check(proof))
        self.assertFalse(second.check(proof))
        self.assertFalse(first.check(bytes(32)))

    def test_unknown(self) -> None:
        """A user who does not exist is asked as others are, for the same nothing each time, and fails."""
        authority = self.authority(secrets=self.file(self.line))
        asked = [authority.challenge(self.transport, "mallory", b"hello") for _ in range(2)]
        self.assertEqual(len({each.secret for each in asked}), 1)  # type: ignore[union-attr]
        for challenge in asked:
            assert challenge is not None
            login = Login("mallory", challenge.secret, b"l" * 32, lambda: NO_BINDING)
            self.assertFalse(challenge.check(login.answer(b"hello", challenge.nonce, challenge.proof)))

    def test_nameless(self) -> None:
        """Who does not say who he is is told what is missing."""
        authority = self.authority(secrets=self.file(self.line))
        error = self.assertRaises(RefusedError, authority.challenge, self.transport, "", b"hello")
        self.assertIn("--secret", str(error))

    def test_welcome(self) -> None:
        """Who has logged in may stay while his secret is the one that he has proven."""
        authority = self.authority(secrets=self.file(self.line))
        self.assertTrue(authority.welcomes(Visitor("alice"), self.secret))
        self.assertFalse(authority.welcomes(Visitor("alice"), b"s" * 32))
        self.assertFalse(authority.welcomes(Visitor("bob"), self.secret))
        self.assertFalse(authority.welcomes(Visitor("bob"), authority._dummy))

    def test_revoked(self) -> None:
        """Who has logged in by certificate may stay while it is not revoked."""
        authority = self.authority(revoked=self.file(f"{'ab' * 32} alice\n"))
        self.assertTrue(authority.welcomes(Visitor("alice", "cd" * 32)))
        self.assertFalse(authority.welcomes(Visitor("alice", "ab" * 32)))


class ReadingAgainTests(AuthorityTestCase):
    """L{Authority.reload}."""

    def test_otherWay(self) -> None:
        """Another way to log in needs a new start."""
        secrets, bundle = self.file(newSecret("alice")), str(self.pki().bundle("server"))
        for before, after in itertools.permutations(({}, {"secrets": secrets}, {"tls": bundle}), 2):
            before_, after_ = (ServerConfig(**each) for each in (before, after))  # type: ignore[arg-type]
            error = self.assertRaises(ConfigError, Authority(before_).reload, after_)
            self.assertIn("--tls and --secrets", str(error))

    def test_allOrNothing(self) -> None:
        """If one file is bad, nothing of the others counts."""
        pki = self.pki("alice")
        secrets, revoked = self.file(newSecret("alice")), self.file("")
        config = ServerConfig(tls=str(pki.bundle("server")), secrets=secrets, revoked=revoked)
        authority = Authority(config)
        before = authority.secrets, authority._revoked, authority.tls._options  # type: ignore[union-attr]
        pki.makeServer(("localhost",), 1)
        Path(revoked).write_text(f"{'ab' * 32}\n")
        for field in ("secrets", "revoked", "tls"):
            Path(secrets).write_text(newSecret("bob"))
            bad = dataclasses.replace(config, **{field: self.file("nonsense\n")})
            self.assertRaises(ConfigError, authority.reload, bad)
            after = authority.secrets, authority._revoked, authority.tls._options  # type: ignore[union-attr]
            self.assertEqual(after, before, field)
        authority.reload(config)
        assert authority.secrets is not None
        self.assertTrue("bob" in authority.secrets and "alice" not in authority.secrets)


class UsersTestCase(TunnelTestCase):
    """Users, by the ways in which they log in."""

    def setUp(self) -> None:
        self.lines: dict[str, str] = {}
        self.talks: dict[str, Conversation] = {}

    def secret(self, user: str) -> str:
        """The file of a user with his secret, which is a new one each time."""
        self.lines[user] = newSecret(user)
        return self.file(self.lines[user])

    def secrets(self) -> str:
        """The file of the server with all secrets."""
        return self.file("".join(self.lines.values()))

    async def come(self, server: ServerService, user: str = "alice", **fields: Any) -> LocalService:
        """A user comes in and talks to his target."""
        self.talks[user] = Conversation(self)
        local = self.startLocal(server, self.talks[user].target, **fields)
        await self.linksUp(local)
        await self.talks[user].turn(local)
        return local

    async def assertShutOut(
        self, server: ServerService, why: str, growth: float = REFUSED_GROWTH, **fields: Any
    ) -> None:
        """Whoever comes so does not come in; the reason is in his log, and no try is ever taken for a link."""
        self.patch(reconnecting_module, "FIRST_SECONDS", 0.01)
        waits: list[float] = []
        pause = ReconnectingService._pause

        def spy(service: ReconnectingService, seconds: float) -> Any:
            waits.append(seconds)
            return pause(service, seconds)

        self.patch(ReconnectingService, "_pause", spy)
        with capturedLogs() as events:
            local = self.startLocal(server, **fields)
            await until(lambda: len(waits) >= 4, "four tries")
            await local.stopService()
        said = [formatEvent(event) for event in events]
        reasons = [each for each in said if each.startswith("no link: ")]
        self.assertGreaterEqual(len(reasons), 4)
        for reason in reasons[:4]:
            self.assertIn(why, reason)
        self.assertFalse([each for each in said if "is up" in each])
        self.assertFalse([event for event in events if event["log_level"] > LogLevel.warn])
        for attempt, wait in enumerate(waits[:4]):
            self.assertTrue(0.75 <= wait / (0.01 * growth**attempt) <= 1, waits)
        self.assertEqual((local.session.links, local.session.resumed, local.session.lost), ([], 0, 0))
        await until(lambda: not server.connections)
        self.assertEqual(server.sessions, {})


class LoginTests(UsersTestCase):
    """Logging in, on real sockets."""

    async def test_secrets(self) -> None:
        """Over loopback, a secret alone lets a user in; the session is his."""
        alice = self.secret("alice")
        server = self.startServer(secrets=self.secrets())
        await self.come(server, secret=alice)
        (session,) = server.sessions.values()
        self.assertEqual((session.user, server.logins), ("alice", {"accepted": 1}))
        self.assertEqual(server.report()["sessions"][0]["user"], "alice")

    async def test_secretsInTls(self) -> None:
        """With TLS a user proves the secret inside it, to a server that the CA or a fingerprint names."""
        alice, pki = self.secret("alice"), self.pki()
        bundle = str(pki.bundle("server"))
        server = self.startServer(secrets=self.secrets(), tls=bundle)
        fingerprint = readIdentity(bundle).certificate.fingerprint(SHA256()).hex()
        for trust in (str(pki.path / "ca.pem"), f"sha256:{fingerprint}"):
            local = await self.come(server, secret=alice, tlsTrust=trust)
            await local.stopService()
        self.assertEqual(server.logins, {"accepted": 2})

    async def test_certificates(self) -> None:
        """With mutual TLS the certificate says who a user is."""
        pki = self.pki("alice")
        server = self.startServer(tls=str(pki.bundle("server")))
        await self.come(server, tls=str(pki.bundle("alice")))
        (session,) = server.sessions.values()
        self.assertEqual((session.user, server.logins), ("alice", {"accepted": 1}))

    async def test_resumedInTls(self) -> None:
        """Links of mutual TLS may be several, and their session outlives them as others do."""
        pki = self.pki("alice")
        server = self.startServer(tls=str(pki.bundle("server")))
        local = await self.come(server, tls=str(pki.bundle("alice")), links=2)
        await self.linksUp(local, 2)
        cut(server)
        await until(lambda: server.logins["accepted"] == 4 and len(local.session.links) == 2)
        await self.talks["alice"].turn(local)
        self.assertEqual((len(self.talks["alice"].external), local.session.resumed, server.resumed), (1, 1, 1))

    async def test_wrongSecret(self) -> None:
        """A wrong secret is refused by whoever notices first: here the server does not know it."""
        self.secret("alice")
        server = self.startServer(secrets=self.secrets())
        wrong = self.file(newSecret("alice"))
        await self.assertShutOut(server, "does not know the secret of 'alice'", secret=wrong)
        self.assertEqual(server.logins, {})

    async def test_wrongProof(self) -> None:
        """Who goes on all the same, and proves something else, is refused by the server, which counts it."""
        self.secret("alice")
        server = self.startServer(secrets=self.secrets())
        self.patch(Login, "answer", lambda login, hello, nonce, proof: bytes(32))
        for user in ("alice", "nobody"):
            wrong = self.file(newSecret(user))
            await self.assertShutOut(server, "udp-server says: 'user or secret is wrong'", secret=wrong)
        self.assertGreaterEqual(server.logins["refused"], 8)
        self.assertEqual(server.logins["accepted"], 0)

    async def test_noSecret(self) -> None:
        """Who has no secret is told that one is needed."""
        self.secret("alice")
        await self.assertShutOut(self.startServer(secrets=self.secrets()), "udp-local needs --secret")

    async def test_notAsked(self) -> None:
        """A server that asks for no proof is not the one that we have a secret for: we do not use it."""
        await self.assertShutOut(self.startServer(), "does not ask for our secret", secret=self.secret("alice"))

    async def test_otherAuthority(self) -> None:
        """A certificate of another CA lets nobody in, and no such server is trusted."""
        pki, other = self.pki("alice"), self.pki("alice")
        server = self.startServer(tls=str(pki.bundle("server")))
        await self.assertShutOut(server, "we refuse the other end", tls=str(other.bundle("alice")))
        trust = str(pki.path / "ca.pem")
        await self.assertShutOut(server, "the other end refuses us", tls=str(other.bundle("alice")), tlsTrust=trust)
        await self.assertShutOut(server, "it asks for a certificate", tlsTrust=trust)

    async def test_serverOfOtherUser(self) -> None:
        """A user can not play the server for others, though the same CA knows both."""
        pki = self.pki("alice", "mallory")
        config = ServerConfig(tls=str(pki.bundle("mallory")))
        self.assertIn("not one for this end", str(self.assertRaises(ConfigError, Authority, config)))

    async def test_revoked(self) -> None:
        """A certificate that is revoked lets nobody in; those of others do."""
        pki = self.pki("alice", "bob")
        pki.revoke("bob")
        server = self.startServer(tls=str(pki.bundle("server")), revoked=str(pki.revoked))
        await self.assertShutOut(server, "this certificate is not valid here", tls=str(pki.bundle("bob")))
        await self.come(server, tls=str(pki.bundle("alice")))

    async def test_onlyOneSpeaksTls(self) -> None:
        """Where only one end speaks TLS, there is no link, and nobody waits for long."""
        pki = self.pki("alice")
        sealed, plain = self.startServer(tls=str(pki.bundle("server"))), self.startServer()
        await self.assertShutOut(plain, "", GROWTH, tls=str(pki.bundle("alice")))
        local = self.startLocal(sealed)
        await until(lambda: local.reconnects >= 2)
        self.assertEqual((sealed.logins["accepted"], local.session.links), (0, []))


class OpenDoorTests(TunnelTestCase):
    """Listening where others can come in."""

    def assertNotOpened(self, *texts: str, **fields: Any) -> None:
        """udp-server does not start, and says what to do."""
        error = str(self.assertRaises(ListenError, self.startServer, "tcp:0", **fields))
        for text in ("--listen tcp:0", *texts):
            self.assertIn(text, error)
        self.assertNotIn("\n", error)

    async def test_secrets(self) -> None:
        """Secrets alone do not suffice, for nothing encrypts the links; that can be waived in so many words."""
        secrets = self.file(newSecret("alice"))
        self.assertNotOpened("--tls", "--insecure-plain", "127.0.0.1", secrets=secrets)
        self.startServer("tcp:0", secrets=secrets, insecurePlain=True)

    async def test_tls(self) -> None:
        """With a bundle that holds the CA of the users it is enough; without the CA nobody is asked who he is."""
        bundle = str(self.pki().bundle("server"))
        self.startServer("tcp:0", tls=bundle)
        self.assertNotOpened("--insecure-no-auth", tls=self.file(withoutAuthority(bundle)))

    async def test_secretsInTls(self) -> None:
        """Secrets inside TLS are."""
        bundle = str(self.pki().bundle("server"))
        self.startServer("tcp:0", tls=self.file(withoutAuthority(bundle)), secrets=self.file(newSecret("alice")))

    def test_badFiles(self) -> None:
        """A file that can not be used keeps udp-server from starting at all."""
        for field in ("tls", "secrets", "revoked"):
            config: Any = {field: "/no/such/file"}
            error = self.assertRaises(ConfigError, ServerService, ServerConfig(**config), reactor, NoNames())
            self.assertIn("/no/such/file", str(error))


class ReloadTests(UsersTestCase):
    """L{ServerService.reload} while users are there."""

    async def startTwo(self, **fields: Any) -> tuple[ServerService, LocalService, LocalService]:
        """Alice and Bob are there, both with a secret."""
        alice, bob = self.secret("alice"), self.secret("bob")
        self.path = Path(self.secrets())
        server = self.startServer(secrets=str(self.path), **fields)
        return server, await self.come(server, "alice", secret=alice), await self.come(server, "bob", secret=bob)

    async def startTwoCertified(self) -> tuple[ServerService, LocalService, LocalService, Pki]:
        """Alice and Bob are there, both with a certificate."""
        pki = self.pki("alice", "bob")
        server = self.startServer(tls=str(pki.bundle("server")), revoked=str(pki.revoked))
        alice, bob = [await self.come(server, user, tls=str(pki.bundle(user))) for user in ("alice", "bob")]
        return server, alice, bob, pki

    async def assertOut(self, server: ServerService, alice: LocalService, bob: LocalService) -> None:
        """After files are read again, Bob is out within a second, port and all, and Alice notices nothing."""
        (link,) = alice.session.links
        clock: Any = reactor
        begin = clock.seconds()
        with capturedLogs() as events:
            server.reload(server.config)
            self.assertEqual([each.user for each in server.sessions.values()], ["alice"])
            self.assertEqual(server.egress.ports, 1)
            await until(lambda: not bob.session.links)
            await until(lambda: all(each.visitor.user != "bob" for each in server.connections))
            self.assertLess(clock.seconds() - begin, 1.0)
            await until(lambda: any("no link" in formatEvent(event) for event in events))
        self.assertEqual(alice.session.links, [link])
        await self.talks["alice"].turn(alice)
        self.assertEqual((len(self.talks["alice"].external), server.logins["accepted"]), (1, 2))

    async def test_removed(self) -> None:
        """A user whose secret is gone is cut off at once; others stay."""
        server, alice, bob = await self.startTwo()
        self.path.write_text(self.lines["alice"])
        await self.assertOut(server, alice, bob)

    async def test_changed(self) -> None:
        """So is one who has another secret now; with that he comes in again."""
        server, alice, bob = await self.startTwo()
        fresh = self.secret("bob")
        self.path.write_text("".join(self.lines.values()))
        await self.assertOut(server, alice, bob)
        await bob.stopService()
        await self.come(server, "bob", secret=fresh)

    async def test_revoked(self) -> None:
        """So is one whose certificate is revoked."""
        server, alice, bob, pki = await self.startTwoCertified()
        pki.revoke("bob")
        await self.assertOut(server, alice, bob)

    async def test_same(self) -> None:
        """If nothing has changed, nobody notices."""
        server, alice, bob = await self.startTwo()
        links = [*alice.session.links, *bob.session.links]
        server.reload(server.config)
        for user, local in (("alice", alice), ("bob", bob)):
            await self.talks[user].turn(local)
            self.assertEqual(len(self.talks[user].external), 1)
        self.assertEqual([*alice.session.links, *bob.session.links], links)

    async def test_parked(self) -> None:
        """The session of such a user is closed at once if it is parked; those of others stay so."""
        self.patch(reconnecting_module, "FIRST_SECONDS", 60.0)
        server, _, _ = await self.startTwo()
        await until(lambda: all(each.link._confirmed for each in server.connections))  # type: ignore[union-attr]
        cut(server)
        await until(lambda: server.report()["parkedCount"] == 2)
        self.path.write_text(self.lines["alice"])
        server.reload(server.config)
        self.assertEqual([each.user for each in server.sessions.values()], ["alice"])
        self.assertEqual((server.egress.ports, server.report()["parkedCount"]), (1, 1))

    async def test_parkedRevoked(self) -> None:
        """The same if it was a certificate that let him in."""
        self.patch(reconnecting_module, "FIRST_SECONDS", 60.0)
        server, _, _, pki = await self.startTwoCertified()
        await until(lambda: all(each.link._confirmed for each in server.connections))  # type: ignore[union-attr]
        cut(server)
        await until(lambda: server.report()["parkedCount"] == 2)
        pki.revoke("bob")
        server.reload(server.config)
        self.assertEqual([each.user for each in server.sessions.values()], ["alice"])

    async def test_bad(self) -> None:
        """If a file or a rule is bad, that is said, and everything stays as it was."""
        server, alice, bob = await self.startTwo()
        good = self.path.read_text()
        for text, fields in (
            ("nonsense\n", {}),
            ("", {"allow": ("10.0.0.0/33",)}),
            ("", {"revoked": "/no/such/file"}),
            ("", {"secrets": None}),
        ):
            self.path.write_text(text)
            self.assertRaises(ConfigError, server.reload, dataclasses.replace(server.config, **fields))  # type: ignore[arg-type]
        self.path.write_text(good)
        for user, local in (("alice", alice), ("bob", bob)):
            # Still there, and as welcome as before.
            await self.talks[user].turn(local)
            local.session.links[0].carrier.abort()
            await until(lambda: local.session.resumed)  # noqa: B023
            await self.talks[user].turn(local)
            self.assertEqual(len(self.talks[user].external), 1)

    async def test_rules(self) -> None:
        """An association that has sent where nobody may go any more is closed; others of the same session stay."""
        server = self.startServer()
        near, far = Conversation(self), self.application("127.0.0.2")
        local = self.startLocal(server, near.target, far[0].address)
        await near.turn(local)
        sender, _ = self.application()
        sender.send(local.entries[1].port.address, 1, b"x")
        await until(lambda: far[1].bursts)
        self.assertEqual((server.egress.ports, len(local.session.associations)), (2, 2))
        server.reload(dataclasses.replace(server.config, deny=("127.0.0.2",)))
        self.assertEqual(server.egress.ports, 1)
        await until(lambda: len(local.session.associations) == 1)
        await near.turn(local)
        self.assertEqual(len(near.external), 1)
        sender.send(local.entries[1].port.address, 1, b"y")
        await until(lambda: server.counters.dropped["target refused"])
        self.assertEqual(far[1].datagrams, [b"x"])
        self.assertFalse(server.egress.allows(Address("127.0.0.2", 9)))

    async def test_certificate(self) -> None:
        """A new certificate is shown from the next connection on; the others stay."""
        server, alice, bob, pki = await self.startTwoCertified()
        before = fingerprintOf(alice.session.links[0].carrier._transport)  # type: ignore[attr-defined]
        made = pki.makeServer(HOSTS, 1)
        server.reload(server.config)
        alice.session.links[0].carrier.abort()
        await until(lambda: alice.session.resumed)
        after = [fingerprintOf(each.session.links[0].carrier._transport) for each in (alice, bob)]  # type: ignore[attr-defined]
        self.assertEqual(after, [made.fingerprint, before])
        self.assertNotEqual(before, made.fingerprint)
        await self.talks["bob"].turn(bob)


class OtherAuthorityTests(UsersTestCase):
    """A new bundle with the certificate of another CA in it, while users of the old one are there."""

    async def start(self) -> tuple[ServerService, LocalService]:
        """Alice is there, with a certificate of the old CA, and knows the new one as well."""
        self.old, self.new = self.pki("alice"), self.pki("carol")
        self.path = Path(self.file(self.old.bundle("server").read_text()))
        self.trust = self.file("".join((each.path / "ca.pem").read_text() for each in (self.old, self.new)))
        server = self.startServer(tls=str(self.path))
        return server, await self.come(server, tls=str(self.old.bundle("alice")), tlsTrust=self.trust)

    def replace(self, server: ServerService, *others: Pki) -> None:
        """The server is one of the new CA from now on; users of some others are let in as well."""
        parts = [self.new.bundle("server"), *(each.path / "ca.pem" for each in others)]
        self.path.write_text("".join(each.read_text() for each in parts))
        server.reload(server.config)

    async def assertOut(self, server: ServerService, alice: LocalService) -> None:
        """Alice is out at once, port and all, and can not come back; users of the new CA come in."""
        self.assertEqual((server.sessions, server.egress.ports), ({}, 0))
        await until(lambda: not alice.session.links)
        await alice.stopService()
        accepted = server.logins["accepted"]
        fields: Any = {"tls": str(self.old.bundle("alice")), "tlsTrust": self.trust}
        await self.assertShutOut(server, "the other end refuses us", **fields)
        self.assertEqual(server.logins["accepted"], accepted)
        await self.come(server, "carol", tls=str(self.new.bundle("carol")))
        self.assertEqual([each.user for each in server.sessions.values()], ["carol"])

    async def test_other(self) -> None:
        """Whoever has a certificate of a CA that is not in it any more is cut off, and can not come back."""
        server, alice = await self.start()
        self.replace(server)
        await self.assertOut(server, alice)

    async def test_both(self) -> None:
        """Whoever has one of a CA that is in it still stays, and may come back."""
        server, alice = await self.start()
        links = list(alice.session.links)
        self.replace(server, self.old)
        await self.talks["alice"].turn(alice)
        self.assertEqual((alice.session.links, server.logins["accepted"]), (links, 1))
        links[0].carrier.abort()
        await until(lambda: alice.session.resumed)
        await self.talks["alice"].turn(alice)
        self.assertEqual(len(self.talks["alice"].external), 1)
        await self.come(server, "carol", tls=str(self.new.bundle("carol")))

    async def test_parked(self) -> None:
        """The session of such a user is over if it is parked."""
        self.patch(reconnecting_module, "FIRST_SECONDS", 60.0)
        server, _ = await self.start()
        await until(lambda: all(each.link._confirmed for each in server.connections))  # type: ignore[union-attr]
        cut(server)
        await until(lambda: server.report()["parkedCount"] == 1)
        self.replace(server)
        self.assertEqual((server.sessions, server.egress.ports), ({}, 0))

    async def test_inTwoSteps(self) -> None:
        """So is who came when both CAs were in it, once only the new one is: it is his own that counts."""
        server, alice = await self.start()
        self.replace(server, self.old)
        alice.session.links[0].carrier.abort()
        await until(lambda: alice.session.resumed)
        self.replace(server)
        await self.assertOut(server, alice)

    async def test_helloLater(self) -> None:
        """Who has shown an old certificate before, and says HELLO only afterwards, is not let in."""
        server, alice = await self.start()
        await alice.stopService()
        await until(lambda: not server.connections)
        greet = Authority.greet

        def replaceFirst(authority: Authority, transport: Any) -> Visitor:
            self.patch(Authority, "greet", greet)
            self.replace(server)
            return authority.greet(transport)

        self.patch(Authority, "greet", replaceFirst)
        late = self.startLocal(server, tls=str(self.old.bundle("alice")), tlsTrust=self.trust)
        await until(lambda: late.reconnects or late.session.links)
        self.assertEqual((server.logins["accepted"], server.sessions), (1, {}))


class LocalReloadTests(UsersTestCase):
    """L{LocalService.reload}."""

    async def test_secret(self) -> None:
        """Another secret is used from the next link on; a bad file changes nothing."""
        first = Path(self.secret("alice"))
        path = Path(self.secrets())
        server = self.startServer(secrets=str(path))
        local = await self.come(server, secret=str(first))
        good = first.read_text()
        for text in ("", "nonsense", good + newSecret("bob")):
            first.write_text(text)
            error = str(self.assertRaises(ConfigError, local.reload, local.config))
            self.assertIn(f"--secret {first}", error)
        link = local.session.links[0]
        first.write_text(newSecret("alice"))
        path.write_text(first.read_text())
        local.reload(local.config)
        self.assertEqual(local.session.links, [link])
        server.reload(server.config)
        await until(lambda: local.session.links and local.session.links != [link])
        await self.talks["alice"].turn(local)

    async def test_certificate(self) -> None:
        """So is another certificate: who renews it in time never loses his ports."""
        pki = self.pki("alice")
        server = self.startServer(tls=str(pki.bundle("server")), revoked=str(pki.revoked))
        local = await self.come(server, tls=str(pki.bundle("alice")))
        made = pki.renew("alice", 1)
        local.reload(local.config)
        local.session.links[0].carrier.abort()
        await until(lambda: local.session.resumed)
        (connection,) = server.connections
        self.assertEqual(connection.visitor[:2], Visitor("alice", made.fingerprint)[:2])
        await self.talks["alice"].turn(local)
        self.assertEqual(len(self.talks["alice"].external), 1)

    async def test_bad(self) -> None:
        """A bundle that can not be used is named, and the links that are up stay; later ones have the old one."""
        pki = self.pki("alice")
        server = self.startServer(tls=str(pki.bundle("server")))
        local = await self.come(server, tls=str(pki.bundle("alice")))
        for bad in (str(pki.bundle("server")), "/no/such/file", str(pki.path / "ca.pem")):
            error = str(self.assertRaises(ConfigError, local.reload, dataclasses.replace(local.config, tls=bad)))
            self.assertIn(bad, error)
            self.assertEqual(local.config.tls, str(pki.bundle("alice")))
        local.session.links[0].carrier.abort()
        await until(lambda: local.session.resumed)
        await self.talks["alice"].turn(local)
