"""Tests for L{udptunnel.pki}."""

from __future__ import annotations

import datetime
import os
import stat
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from twisted.trial.unittest import SynchronousTestCase

from tests.net.test_tls import MeetingTestCase
from tests.test_console import Outcome
from udptunnel.errors import ConfigError
from udptunnel.net.tls import (
    ClientTls,
    Identity,
    ServerTls,
    fingerprint,
    fingerprintOf,
    readIdentity,
    readRevoked,
    readTrust,
    userOf,
)
from udptunnel.pki import CA_DAYS, Authority, Issued

DAY = datetime.timedelta(days=1)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def modeOf(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def extension(certificate: x509.Certificate, kind: type[Any]) -> Any:
    return certificate.extensions.get_extension_for_class(kind).value


class FolderTestCase(SynchronousTestCase):
    """Commands on a folder of their own."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def pki(self, command: str, *words: str) -> Outcome:
        """Run a command on the folder; it must not fail."""
        outcome = Outcome("pki", command, str(self.path), *words)
        self.assertEqual((outcome.status, outcome.err), (0, ""))
        return outcome

    def refused(self, expected: str, command: str, *words: str) -> None:
        """Running a command on the folder fails with one line, and nothing there has changed."""
        before = self.contents()
        outcome = Outcome("pki", command, str(self.path), *words)
        self.assertEqual((outcome.status, outcome.out), (1, ""))
        self.assertEqual(len(outcome.err.splitlines()), 1, outcome.err)
        self.assertIn(expected, outcome.err)
        self.assertEqual(self.contents(), before)

    def contents(self) -> dict[str, bytes]:
        """What is in the folder."""
        return {each.name: each.read_bytes() for each in self.path.iterdir()} if self.path.exists() else {}

    def identity(self, name: str) -> Identity:
        return readIdentity(str(self.path / f"{name}.pem"))

    def states(self) -> list[tuple[str, str]]:
        """Names and states that the list has."""
        rows = self.pki("list").out.splitlines()[1:]
        return [(row.split()[0], row.split()[3]) for row in rows]


class InitTests(FolderTestCase):
    """udptunnel pki init."""

    def test_files(self) -> None:
        """The folder and the keys in it are for its owner's eyes only, whatever the umask is."""
        self.addCleanup(os.umask, os.umask(0))
        self.pki("init", "--name", "relay.example")
        modes = {each.name: modeOf(each) for each in self.path.iterdir()}
        secret = {"ca.key": 0o600, "server.pem": 0o600, "index": 0o600}
        self.assertEqual(modes, {**secret, "ca.pem": 0o644, "revoked": 0o644})
        self.assertEqual(modeOf(self.path), 0o700)

    def test_authority(self) -> None:
        """The CA signs the certificates of ends and nothing else, for ten years."""
        self.pki("init")
        (authority,) = readTrust(str(self.path / "ca.pem")).authorities
        self.assertEqual(extension(authority, x509.BasicConstraints), x509.BasicConstraints(True, 0))
        usage = extension(authority, x509.KeyUsage)
        self.assertTrue(usage.key_cert_sign)
        self.assertFalse(usage.digital_signature)
        valid = authority.not_valid_after_utc - now()
        self.assertTrue((CA_DAYS - 1) * DAY < valid <= CA_DAYS * DAY, valid)
        authority.verify_directly_issued_by(authority)

    def test_server(self) -> None:
        """The server's bundle is good for the names and addresses given, on an EC key, from a little earlier on."""
        self.pki("init", "--name", "relay.example", "--name=192.0.2.7", "--name", "2001:db8::7")
        server = self.identity("server")
        names = extension(server.certificate, x509.SubjectAlternativeName)
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["relay.example"])
        self.assertEqual(list(map(str, names.get_values_for_type(x509.IPAddress))), ["192.0.2.7", "2001:db8::7"])
        purposes = extension(server.certificate, x509.ExtendedKeyUsage)
        self.assertEqual(list(purposes), [ExtendedKeyUsageOID.SERVER_AUTH])
        self.assertFalse(extension(server.certificate, x509.BasicConstraints).ca)
        self.assertTrue(extension(server.certificate, x509.KeyUsage).digital_signature)
        self.assertIsInstance(server.key.curve, ec.SECP256R1)
        self.assertEqual(server.authorities, readTrust(str(self.path / "ca.pem")).authorities)
        self.assertLess(server.certificate.not_valid_before_utc, now() - DAY / 48)
        self.assertTrue(364 * DAY < server.certificate.not_valid_after_utc - now() <= 365 * DAY)

    def test_verifies(self) -> None:
        """By the rules of the web's certificates the server's is good for its name, and for no other."""
        self.pki("init", "--name", "relay.example")
        server = self.identity("server")
        policy = PolicyBuilder().store(Store(server.authorities))
        policy.build_server_verifier(x509.DNSName("relay.example")).verify(server.certificate, [])
        other = policy.build_server_verifier(x509.DNSName("other.example"))
        self.assertRaises(VerificationError, other.verify, server.certificate, [])

    def test_noName(self) -> None:
        """Without a name the server's bundle is for this machine."""
        outcome = self.pki("init")
        self.assertIn("as localhost, 127.0.0.1, ::1", outcome.out)
        names = extension(self.identity("server").certificate, x509.SubjectAlternativeName)
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["localhost"])

    def test_says(self) -> None:
        """It is said what was made, with the fingerprint that udp-local can trust instead of the CA."""
        outcome = self.pki("init")
        self.assertIn(f"sha256:{fingerprint(self.identity('server').certificate)}\n", outcome.out)
        self.assertIn(f"udptunnel pki add {self.path} NAME", outcome.out)

    def test_again(self) -> None:
        """A folder with anything in it is left as it is."""
        self.pki("init")
        self.refused("there is something in it already", "init")

    def test_emptyFolder(self) -> None:
        """An empty folder is taken, and closed to others."""
        self.path.mkdir(0o755)
        self.pki("init")
        self.assertEqual(modeOf(self.path), 0o700)

    def test_wrong(self) -> None:
        """With a wrong name or time nothing is made."""
        for words, expected in (
            (("--name", "a b"), "'a b': expected a host name or an IP address"),
            (("--name", ""), "'': expected a host name"),
            (("--days", "0"), "--days 0: expected a whole number from 1 to 3650"),
            (("--days", "x"), "--days x: expected a whole number"),
        ):
            self.refused(expected, "init", *words)
            self.assertFalse(self.path.exists())


class AddTests(FolderTestCase):
    """udptunnel pki add."""

    def setUp(self) -> None:
        super().setUp()
        self.pki("init")

    def test_user(self) -> None:
        """The bundle holds a key, a certificate that names the user and is for clients only, and the CA."""
        outcome = self.pki("add", "alice", "--days", "7")
        user = self.identity("alice")
        names = extension(user.certificate, x509.SubjectAlternativeName)
        self.assertEqual(names.get_values_for_type(x509.UniformResourceIdentifier), ["udptunnel:alice"])
        self.assertEqual(len(names), 1)
        purposes = extension(user.certificate, x509.ExtendedKeyUsage)
        self.assertEqual(list(purposes), [ExtendedKeyUsageOID.CLIENT_AUTH])
        user.certificate.verify_directly_issued_by(user.authorities[0])
        self.assertEqual(user.authorities, readTrust(str(self.path / "ca.pem")).authorities)
        self.assertTrue(6 * DAY < user.certificate.not_valid_after_utc - now() <= 7 * DAY)
        self.assertEqual(modeOf(self.path / "alice.pem"), 0o600)
        self.assertIn(f"until {user.certificate.not_valid_after_utc:%Y-%m-%d}", outcome.out)

    def test_noCaKey(self) -> None:
        """The CA's key is in no bundle, and no two keys or serial numbers are the same."""
        self.pki("add", "alice")
        users = [self.identity(name) for name in ("alice", "server")]
        keys = {
            (self.path / name).read_text().partition("-----END")[0] for name in ("ca.key", "alice.pem", "server.pem")
        }
        self.assertEqual(len(keys), 3)
        self.assertEqual(len({each.certificate.serial_number for each in users}), 2)

    def test_again(self) -> None:
        """There is one user of a name, also when the bundle was taken away."""
        self.pki("add", "alice")
        self.refused("alice: there is such a user already; udptunnel pki renew", "add", "alice")
        (self.path / "alice.pem").unlink()
        self.refused("alice: there is such a user already; udptunnel pki renew", "add", "alice")

    def test_strangeFile(self) -> None:
        """A file that somebody else has put there is not overwritten."""
        (self.path / "alice.pem").write_text("precious")
        self.refused("alice: there is such a user already", "add", "alice")

    def test_names(self) -> None:
        """A name can be that of a file, and of none that is there for something else."""
        for name in ("Alice_2", "a.b-c", "_", "7", "x" * 64):
            self.pki("add", name)
        for name in ("", "../alice", ".alice", "a/b", "a b", "a:b", "\xfcmit", "x" * 65, "alice\n"):
            self.refused("expected 1 to 64 letters", "add", name)
        for name in ("ca", "server"):
            self.refused("take another name", "add", name)

    def test_notAfterTheCa(self) -> None:
        """No certificate is valid longer than the CA's."""
        Authority(self.path, now() + (CA_DAYS - 10) * DAY).add("late", 30)
        late = self.identity("late")
        self.assertEqual(late.certificate.not_valid_after_utc, late.authorities[0].not_valid_after_utc)
        over = Authority(self.path, now() + CA_DAYS * DAY)
        error = self.assertRaises(ConfigError, over.add, "later", 30)
        self.assertIn("the CA has expired", str(error))

    def test_noFolder(self) -> None:
        """Where there is no CA, the way to one is said."""
        self.path = Path(self.mktemp())
        for words in (("add", "alice"), ("renew", "alice"), ("revoke", "alice"), ("server", "localhost"), ("list",)):
            self.refused("udptunnel pki init", *words)

    def test_broken(self) -> None:
        """A key, a certificate or an index that can not be read is named."""
        for name in ("ca.key", "ca.pem"):
            content = (self.path / name).read_text()
            (self.path / name).write_text("nothing")
            self.refused("ca.key or ca.pem can not be read", "add", "alice")
            (self.path / name).write_text(content)
        with (self.path / "index").open("a") as index:
            index.write("alice\n")
        self.refused("index: line 3 can not be read", "add", "bob")


class RenewTests(FolderTestCase):
    """udptunnel pki server and renew."""

    def setUp(self) -> None:
        super().setUp()
        self.pki("init")
        self.pki("add", "alice")

    def test_server(self) -> None:
        """The server's new bundle takes the old one's place, with another key and other names; the CA is the same."""
        before = self.identity("server")
        outcome = self.pki("server", "relay.example", "192.0.2.7")
        after = self.identity("server")
        names = extension(after.certificate, x509.SubjectAlternativeName)
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["relay.example"])
        self.assertEqual(before.authorities, after.authorities)
        self.assertNotEqual(before.key.public_key(), after.key.public_key())
        self.assertIn("SIGHUP", outcome.out)
        self.assertEqual(modeOf(self.path / "server.pem"), 0o600)

    def test_serverWrong(self) -> None:
        """It has at least one name, and only good ones."""
        self.refused("pki: expected DIR and HOST..., found ", "server")
        self.refused("'a..b': expected a host name", "server", "localhost", "a..b")

    def test_user(self) -> None:
        """A user's new bundle takes the old one's place; both certificates are in the list."""
        before = self.identity("alice")
        self.pki("renew", "alice")
        after = self.identity("alice")
        self.assertNotEqual(before.certificate, after.certificate)
        self.assertEqual(self.states(), [("server", "valid"), ("alice", "valid"), ("alice", "valid")])

    def test_unknown(self) -> None:
        """Who is not there can not be renewed; the server is no user."""
        for name in ("bob", "server"):
            self.refused(f"{name}: there is no such user; udptunnel pki list", "renew", name)

    def test_revoked(self) -> None:
        """Who is revoked can not be renewed."""
        self.pki("revoke", "alice")
        self.refused("alice: this user is revoked", "renew", "alice")

    def test_atomically(self) -> None:
        """A bundle that can not be written leaves the old one as it is, and nothing beside it."""
        (self.path / "alice.pem").unlink()
        (self.path / "alice.pem").mkdir()
        names = {each.name for each in self.path.iterdir()}
        outcome = Outcome("pki", "renew", str(self.path), "alice")
        self.assertEqual((outcome.status, len(outcome.err.splitlines())), (1, 1))
        self.assertEqual({each.name for each in self.path.iterdir()}, names)
        # The certificate was made, so it can be revoked.
        self.assertIn("2 certificates", self.pki("revoke", "alice").out)


class RevokeTests(FolderTestCase):
    """udptunnel pki revoke and list."""

    def setUp(self) -> None:
        super().setUp()
        self.pki("init")
        self.pki("add", "alice")
        self.pki("add", "bob")

    def revoked(self) -> frozenset[str]:
        return readRevoked(str(self.path / "revoked"))

    def test_nobody(self) -> None:
        """At first there is a file with nobody in it, so that udp-server can be told of it."""
        self.assertEqual(self.revoked(), frozenset())

    def test_all(self) -> None:
        """All certificates of a user are revoked, those of others are not; what must be done is said."""
        expected = {fingerprint(self.identity("alice").certificate)}
        self.pki("renew", "alice")
        expected.add(fingerprint(self.identity("alice").certificate))
        outcome = self.pki("revoke", "alice")
        self.assertEqual(self.revoked(), expected)
        self.assertIn("kill -HUP", outcome.out)
        self.assertEqual(
            self.states(), [("server", "valid"), ("alice", "revoked"), ("bob", "valid"), ("alice", "revoked")]
        )

    def test_twice(self) -> None:
        """Revoking twice changes nothing."""
        self.pki("revoke", "alice")
        before = self.contents()
        self.assertIn("0 certificates", self.pki("revoke", "alice").out)
        self.assertEqual(self.contents(), before)

    def test_others(self) -> None:
        """Lines that somebody has written into the file stay, also one without an end."""
        other = "ab" * 32
        (self.path / "revoked").write_text(f"{other} by hand")
        self.pki("revoke", "bob")
        self.assertEqual(self.revoked(), {other, fingerprint(self.identity("bob").certificate)})
        self.assertIn("by hand\n", (self.path / "revoked").read_text())

    def test_unknown(self) -> None:
        """Who is not there can not be revoked; nor can the server, which nobody asks about."""
        for name in ("carol", "server", "ca"):
            self.refused(f"{name}: there is no such user", "revoke", name)

    def test_broken(self) -> None:
        """A file that can not be understood is left alone."""
        (self.path / "revoked").write_text("alice\n")
        for words in (("revoke", "alice"), ("renew", "alice"), ("list",)):
            self.refused("revoked: line 1: alice: expected a SHA-256", *words)

    def test_list(self) -> None:
        """The list has a row for each certificate, in columns, and says which have expired."""
        Authority(self.path, now() - 2 * DAY).add("a-longer-name", 1)
        head, *rows = self.pki("list").out.splitlines()
        self.assertEqual(head.split("  ")[0].strip(), "name")
        self.assertEqual(rows[0].split()[:2], ["server", "server"])
        self.assertEqual(rows[3].split()[0::3], ["a-longer-name", "expired"])
        for row in rows:
            name, _, until, _, digits = row.split()
            certificate = self.identity(name).certificate
            self.assertEqual(until, f"{certificate.not_valid_after_utc:%Y-%m-%d}")
            self.assertEqual(digits, fingerprint(certificate)[:16])
            self.assertEqual(row.index(until), head.index("valid until"))

    def test_index(self) -> None:
        """A line of the index is read as it was written."""
        for each in Authority(self.path, now()).issued():
            self.assertEqual(Issued.parse(str(each)), each)
        good = str(Authority(self.path, now()).issued()[0])
        for wrong in (good[:-1], good.replace(" server ", " bishop "), f"{good} x", good.replace("Z", ""), "x"):
            self.assertRaises(ValueError, Issued.parse, wrong)


class SecretTests(SynchronousTestCase):
    """udptunnel pki secret."""

    def test_secret(self) -> None:
        """One line comes out, a name and 256 bits in hex, each time others."""
        made = {Outcome("pki", "secret", "alice").out for _ in range(3)}
        self.assertEqual(len(made), 3)
        for each in made:
            self.assertRegex(each, r"\Aalice:[0-9a-f]{64}\n\Z")

    def test_wrong(self) -> None:
        """A name that no user can have is refused."""
        outcome = Outcome("pki", "secret", "a:b")
        self.assertEqual((outcome.status, outcome.out), (1, ""))
        self.assertIn("'a:b': expected 1 to 64 letters", outcome.err)


class WordsTests(SynchronousTestCase):
    """The command line."""

    def test_help(self) -> None:
        """The help of each command begins with how it is called, and shows an example as it is typed."""
        self.assertIn("\n    udptunnel pki add DIR alice\n", Outcome("pki", "--help").out)
        for command in ("init", "add", "server", "renew", "revoke", "list", "secret"):
            said = Outcome("pki", command, "--help").out
            self.assertTrue(said.startswith(f"Usage: udptunnel pki {command} "), said)
            self.assertIn(f"    udptunnel pki {command} ", said.replace("(umask 077; ", ""))

    def test_wrong(self) -> None:
        """What can not be understood is answered with one line and status 1."""
        for words, expected in (
            ((), "which command? init, add"),
            (("dance",), "dance"),
            (("add", "DIR"), "expected DIR and NAME, found DIR"),
            (("add", "DIR", "alice", "bob"), "expected DIR and NAME, found DIR alice bob"),
            (("list",), "expected DIR, found nothing"),
            (("list", "DIR", "--days", "7"), "--days"),
            (("add", "DIR", "alice", "--days"), "--days"),
        ):
            outcome = Outcome("pki", *words)
            self.assertEqual((outcome.status, outcome.out), (1, ""), words)
            self.assertEqual(len(outcome.err.splitlines()), 1, outcome.err)
            self.assertIn(expected, outcome.err)
            self.assertIn("udptunnel --help", outcome.err)

    def test_anyOrder(self) -> None:
        """Options stand before or behind the other words."""
        path = self.mktemp()
        self.assertEqual(Outcome("pki", "init", "--days", "7", path, "--name", "localhost").status, 0)
        self.assertEqual(Outcome("pki", "add", "--days=7", path, "alice").status, 0)


class LinkTests(MeetingTestCase):
    """What the commands have made, on a connection."""

    async def test_bundles(self) -> None:
        """The bundles of the server and of a user let both ends in, and each knows the other."""
        path = self.mktemp()
        for words in (("init", path, "--name", "relay.example"), ("add", path, "alice")):
            self.assertEqual(Outcome("pki", *words).status, 0)
        server, user = readIdentity(f"{path}/server.pem"), readIdentity(f"{path}/alice.pem")
        meeting = await self.meet(ServerTls(server, True), ClientTls("relay.example", user, None))
        self.assertTrue(meeting.accepted)
        self.assertEqual(userOf(meeting.far.transport), "alice")
        (alice,) = (each for each in Authority(Path(path), now()).issued() if each.name == "alice")
        self.assertEqual(fingerprintOf(meeting.far.transport), alice.fingerprint)
