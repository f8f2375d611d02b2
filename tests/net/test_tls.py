"""Tests for L{udptunnel.net.tls}."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, wrapClientTLS, wrapServerTLS
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.waiting import until
from udptunnel.errors import ConfigError, LoginError
from udptunnel.net.tls import (
    ALPN,
    ClientTls,
    Identity,
    ServerTls,
    Trust,
    checkProtocol,
    daysLeft,
    exporterOf,
    fingerprint,
    fingerprintOf,
    readIdentity,
    readRevoked,
    readTrust,
    userOf,
    whyLost,
)

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH

DAY = datetime.timedelta(days=1)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def alternative(name: str) -> x509.GeneralName:
    """A host, an address or a URI as a certificate holds it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.UniformResourceIdentifier(name) if ":" in name else x509.DNSName(name)


def pem(each: Any) -> str:
    if isinstance(each, x509.Certificate):
        return each.public_bytes(Encoding.PEM).decode()
    return str(each.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


class Signer:
    """A key with a certificate, which can sign others; without C{above} it has signed itself."""

    def __init__(
        self,
        name: str,
        above: Signer | None = None,
        alternatives: Sequence[str] = (),
        purpose: x509.ObjectIdentifier | None = None,
        first: datetime.timedelta = -DAY,
        last: datetime.timedelta = DAY,
        key: Any = None,
    ) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        isLeaf = purpose is not None
        building = (
            x509.CertificateBuilder(self.name if above is None else above.name, self.name, self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() + first)
            .not_valid_after(now() + last)
            .add_extension(x509.BasicConstraints(ca=not isLeaf, path_length=None), critical=True)
        )
        if alternatives:
            names = x509.SubjectAlternativeName([alternative(each) for each in alternatives])
            building = building.add_extension(names, critical=False)
        if purpose is not None:
            building = building.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        self.certificate = building.sign(self.key if above is None else above.key, hashes.SHA256())

    def server(self, *alternatives: str, **keywords: Any) -> Signer:
        return Signer("server", self, alternatives or ("localhost",), SERVER, **keywords)

    def user(self, *alternatives: str, **keywords: Any) -> Signer:
        return Signer("user", self, alternatives or ("udptunnel:alice",), CLIENT, **keywords)

    def identity(self, *authorities: Signer, chain: Sequence[Signer] = ()) -> Identity:
        """What a bundle of this key holds."""
        above = tuple(each.certificate for each in chain)
        return Identity(self.key, self.certificate, above, tuple(each.certificate for each in authorities), "bundle")


CA = Signer("CA")
OTHER = Signer("CA")
"""Of the same name, and yet another one."""

GOOD_SERVER = CA.server().identity(CA)
GOOD_USER = CA.user().identity(CA)
TRUST = Trust((CA.certificate,))


WORDS = b"some words"


class End(Protocol):
    """One end of a connection: says something at once, and remembers what it hears and how it ends."""

    why: str | None = None

    def __init__(self) -> None:
        self.heard = b""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(WORDS)

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.why = whyLost(self.transport, reason)


class Meeting:
    """Both ends of one connection, when both have heard or both are gone."""

    def __init__(self, near: End, far: End) -> None:
        self.near, self.far = near, far

    @property
    def accepted(self) -> bool:
        """The server's view counts, and what arrives: a client's handshake ends before the verdict on it."""
        return self.far.heard == WORDS == self.near.heard


def rawClient(signer: Signer | None = None, **keywords: Any) -> Any:
    """A client that checks nothing, for what ours would not do."""
    if signer is not None:
        keywords |= {"privateKey": signer.key, "certificate": signer.certificate}
    return CertificateOptions(**({"acceptableProtocols": [ALPN]} | keywords))


class MeetingTestCase(TestCase):
    """Connections on loopback."""

    async def listen(self, server: Any) -> None:
        self.accepted: list[End] = []

        def accept() -> End:
            self.accepted.append(End())
            return self.accepted[-1]

        endpoint = wrapServerTLS(server, TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"))
        port = await endpoint.listen(Factory.forProtocol(accept))
        self.addCleanup(port.stopListening)
        self.port = port.getHost().port

    async def connect(self, client: Any) -> Meeting:
        count = len(self.accepted)
        endpoint = wrapClientTLS(client, TCP4ClientEndpoint(reactor, "127.0.0.1", self.port))
        near = await endpoint.connect(Factory.forProtocol(End))
        await until(lambda: len(self.accepted) > count)
        far = self.accepted[-1]
        await until(lambda: (near.heard and far.heard) or (near.why and far.why))
        self.addCleanup(self.part, near, far)
        return Meeting(near, far)

    async def part(self, near: End, far: End) -> None:
        assert near.transport is not None and far.transport is not None
        near.transport.loseConnection()
        await until(lambda: near.why and far.why)

    async def meet(self, server: Any, client: Any) -> Meeting:
        await self.listen(server)
        return await self.connect(client)


class UserTests(MeetingTestCase):
    """Whom a server lets in that requires users' certificates."""

    async def meetUser(self, client: Any) -> Meeting:
        return await self.meet(ServerTls(GOOD_SERVER, True), client)

    async def refused(self, client: Any, far: str, near: str = "") -> None:
        """The server hears nothing from this client, and both know why."""
        meeting = await self.meetUser(client)
        self.assertFalse(meeting.accepted)
        self.assertEqual((meeting.far.heard, meeting.near.heard), (b"", b""))
        self.assertIn(far, str(meeting.far.why))
        self.assertIn(near, str(meeting.near.why))

    async def test_good(self) -> None:
        """A user of our CA comes in, and both know whom they talk to."""
        meeting = await self.meetUser(ClientTls("localhost", GOOD_USER, None))
        self.assertTrue(meeting.accepted)
        self.assertEqual(userOf(meeting.far.transport), "alice")
        self.assertEqual(fingerprintOf(meeting.far.transport), fingerprint(GOOD_USER.certificate))
        self.assertEqual(fingerprintOf(meeting.near.transport), fingerprint(GOOD_SERVER.certificate))
        self.assertIsNone(userOf(meeting.near.transport))
        for end in (meeting.near, meeting.far):
            checkProtocol(end.transport)

    async def test_intermediate(self) -> None:
        """So does one whose certificate comes from a CA below ours, which is in the bundle."""
        below = Signer("below", CA)
        identity = below.user().identity(CA, chain=[below])
        meeting = await self.meetUser(ClientTls("localhost", identity, None))
        self.assertTrue(meeting.accepted)

    async def test_none(self) -> None:
        """Who shows no certificate is refused, and is told what to do."""
        await self.refused(ClientTls("localhost", None, TRUST), "has shown no certificate", "--tls")

    async def test_otherAuthority(self) -> None:
        """So is who comes from another CA, though it has the name of ours."""
        client = ClientTls("localhost", OTHER.user().identity(CA), None)
        await self.refused(client, "is not from a CA that is trusted here", "refuses us")

    async def test_selfSigned(self) -> None:
        """So is who has signed the certificate himself."""
        client = ClientTls("localhost", Signer("user", None, ["udptunnel:alice"], CLIENT).identity(CA), None)
        await self.refused(client, "is not from a CA that is trusted here", "it does not know the CA")

    async def test_serverAsUser(self) -> None:
        """So is who shows a server's certificate, though it is from our CA and names a user."""
        await self.refused(rawClient(CA.server("udptunnel:alice")), "is not one for that end", "not one for this end")

    async def test_expired(self) -> None:
        """So is who shows a certificate that has expired."""
        user = CA.user(first=-2 * DAY, last=-DAY)
        await self.refused(ClientTls("localhost", user.identity(CA), None), "has expired", "has expired")

    async def test_notYetValid(self) -> None:
        """So is who shows one that is not valid yet."""
        user = CA.user(first=DAY, last=2 * DAY)
        await self.refused(ClientTls("localhost", user.identity(CA), None), "not valid yet", "does not accept")

    async def test_tls12(self) -> None:
        """So is who speaks only TLS 1.2."""
        client = rawClient(CA.user(), lowerMaximumSecurityTo=TLSVersion.TLSv1_2)
        await self.refused(client, "TLS failed", "does not speak TLS 1.3")

    async def test_otherProtocol(self) -> None:
        """So is who wants to speak something else inside."""
        await self.refused(rawClient(CA.user(), acceptableProtocols=[b"h2"]), "TLS failed", "refuses us")

    async def test_noProtocol(self) -> None:
        """OpenSSL accepts who does not say what to speak; L{checkProtocol} does not."""
        meeting = await self.meetUser(rawClient(CA.user(), acceptableProtocols=None))
        self.assertEqual(meeting.far.heard, WORDS)
        self.assertRaises(LoginError, checkProtocol, meeting.far.transport)

    async def test_namelessUser(self) -> None:
        """A certificate that does not name exactly one user names none, whatever else stands in it."""
        await self.listen(ServerTls(GOOD_SERVER, True))
        for alternatives in (
            ["localhost"],
            ["udptunnel:alice", "udptunnel:bob"],
            ["udptunnel:../alice"],
            ["udptunnel:"],
            ["udptunnel:alice%0a"],
            ["other:alice"],
            [],
        ):
            client = ClientTls("localhost", Signer("alice", CA, alternatives, CLIENT).identity(CA), None)
            meeting = await self.connect(client)
            self.assertTrue(meeting.accepted)
            self.assertIsNone(userOf(meeting.far.transport), alternatives)


class ServerTests(MeetingTestCase):
    """Which servers udp-local takes for its own."""

    async def refused(self, server: Identity, client: ClientTls, near: str) -> Meeting:
        """The client tells such a server nothing, and both know why."""
        meeting = await self.meet(ServerTls(server, False), client)
        self.assertEqual((meeting.far.heard, meeting.near.heard), (b"", b""))
        self.assertIn(near, str(meeting.near.why))
        self.assertIn("the other end refuses us", str(meeting.far.why))
        return meeting

    async def test_good(self) -> None:
        """A server of the CA is the right one; where no users are required, none is asked for a certificate."""
        meeting = await self.meet(ServerTls(GOOD_SERVER, False), ClientTls("localhost", GOOD_USER, TRUST))
        self.assertTrue(meeting.accepted)
        self.assertIsNone(userOf(meeting.far.transport))
        self.assertIsNone(fingerprintOf(meeting.far.transport))

    async def test_serverName(self) -> None:
        """The client says whom it wants to talk to, if that is a name (RFC 6066 section 3)."""
        await self.listen(ServerTls(CA.server("localhost", "127.0.0.1").identity(), False))
        for name, said in (("localhost", b"localhost"), ("127.0.0.1", None)):
            meeting = await self.connect(ClientTls(name, None, TRUST))
            far: Any = meeting.far.transport
            self.assertEqual(far.getHandle().get_servername(), said)

    async def test_addresses(self) -> None:
        """A certificate may hold IP addresses instead of names."""
        await self.listen(ServerTls(CA.server("192.0.2.7", "2001:db8::7").identity(), False))
        for name, accepted in (
            ("192.0.2.7", True),
            ("2001:db8:0::7", True),
            ("192.0.2.8", False),
            ("2001:db8::8", False),
        ):
            meeting = await self.connect(ClientTls(name, None, TRUST))
            self.assertEqual(meeting.accepted, accepted, name)

    async def test_wrongName(self) -> None:
        """A server of another name is another server."""
        client = ClientTls("relay.example", None, TRUST)
        meeting = await self.refused(GOOD_SERVER, client, "is not for relay.example")
        self.assertIn("not the name that it expects", str(meeting.far.why))

    async def test_noName(self) -> None:
        """So is one without a name that counts; the common name does not."""
        server = Signer("localhost", CA, (), SERVER).identity()
        await self.refused(server, ClientTls("localhost", None, TRUST), "its certificate")

    async def test_otherAuthority(self) -> None:
        """So is one of another CA with the name of ours."""
        await self.refused(OTHER.server().identity(), ClientTls("localhost", None, TRUST), "is not from a CA")

    async def test_selfSigned(self) -> None:
        """So is one that has signed its certificate itself."""
        server = Signer("server", None, ["localhost"], SERVER).identity()
        await self.refused(server, ClientTls("localhost", None, TRUST), "is not from a CA")

    async def test_expired(self) -> None:
        """So is one whose certificate has expired, and the message says so."""
        server = CA.server(first=-2 * DAY, last=-DAY).identity()
        await self.refused(server, ClientTls("localhost", None, TRUST), "its certificate has expired")

    async def test_expiredAuthority(self) -> None:
        """So is one whose CA has expired."""
        old = Signer("old", first=-2 * DAY, last=-DAY)
        client = ClientTls("localhost", None, Trust((old.certificate,)))
        await self.refused(old.server().identity(), client, "a CA certificate above its own has expired")

    async def test_userAsServer(self) -> None:
        """So is a user of the CA who plays server, though the certificate has the name."""
        user = CA.user("localhost")
        server = CertificateOptions(user.key, user.certificate, acceptableProtocols=[ALPN])
        meeting = await self.meet(server, ClientTls("localhost", None, TRUST))
        self.assertFalse(meeting.accepted)
        self.assertIn("is not one for that end", str(meeting.near.why))

    async def test_noTls(self) -> None:
        """What is no TLS at all is said to be so."""
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory.forProtocol(End))
        self.addCleanup(port.stopListening)
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        near = await wrapClientTLS(ClientTls("localhost", None, TRUST), endpoint).connect(Factory.forProtocol(End))
        await until(lambda: near.why)
        self.assertEqual(near.why, "TLS failed: the other end does not speak TLS")


class PinTests(MeetingTestCase):
    """A fingerprint in place of a CA."""

    async def test_right(self) -> None:
        """The one certificate is accepted, whoever signed it, whatever its name and its dates."""
        for server in (
            Signer("server", None, ["elsewhere"], SERVER),
            OTHER.server("elsewhere"),
            CA.server("elsewhere", first=-2 * DAY, last=-DAY),
        ):
            client = ClientTls("localhost", None, Trust(fingerprint=fingerprint(server.certificate)))
            meeting = await self.meet(ServerTls(server.identity(), False), client)
            self.assertTrue(meeting.accepted)

    async def test_wrong(self) -> None:
        """No other is, though it has the right name and CA; the message has the fingerprint that was found."""
        for server in (CA.server(), Signer("server", None, ["localhost"], SERVER), OTHER.server()):
            pinned = Trust(fingerprint=fingerprint(CA.server().certificate))
            meeting = await self.meet(ServerTls(server.identity(), False), ClientTls("localhost", GOOD_USER, pinned))
            self.assertFalse(meeting.accepted)
            self.assertEqual(meeting.far.heard, b"")
            self.assertIn(f"sha256:{fingerprint(server.certificate)}", str(meeting.near.why))

    async def test_chain(self) -> None:
        """A pin asks for the server's own certificate, not for one that is sent along with it."""
        below = Signer("below", CA)
        server = below.server()
        for pinned, accepted in ((below, False), (CA, False), (server, True)):
            client = ClientTls("localhost", None, Trust(fingerprint=fingerprint(pinned.certificate)))
            identity = server.identity(chain=[below, CA])
            self.assertEqual((await self.meet(ServerTls(identity, False), client)).accepted, accepted)


class ConnectionTests(MeetingTestCase):
    """What connections have in common."""

    async def test_replace(self) -> None:
        """A new identity counts from the next connection on; those that are there stay."""
        server = ServerTls(GOOD_SERVER, True)
        await self.listen(server)
        client = ClientTls("localhost", GOOD_USER, None)
        before = await self.connect(client)
        renewed = CA.server().identity(CA)
        server.replace(renewed)
        after = await self.connect(client)
        self.assertEqual(fingerprintOf(before.near.transport), fingerprint(GOOD_SERVER.certificate))
        self.assertEqual(fingerprintOf(after.near.transport), fingerprint(renewed.certificate))
        self.assertTrue(after.accepted)
        self.assertIsNone(before.near.why)

    async def test_replaceAuthorities(self) -> None:
        """So does whom it lets in."""
        server = ServerTls(GOOD_SERVER, True)
        await self.listen(server)
        server.replace(CA.server().identity(OTHER))
        self.assertFalse((await self.connect(ClientTls("localhost", GOOD_USER, None))).accepted)
        self.assertTrue((await self.connect(ClientTls("localhost", OTHER.user().identity(CA), None))).accepted)

    async def test_replaceWrong(self) -> None:
        """What is no identity for a server is refused, and the old one stays."""
        server = ServerTls(GOOD_SERVER, True)
        for wrong in (GOOD_USER, CA.server().identity()):
            self.assertRaises(ConfigError, server.replace, wrong)
        self.assertTrue((await self.meet(server, ClientTls("localhost", GOOD_USER, None))).accepted)

    async def test_exporter(self) -> None:
        """Both ends of a connection have the same 32 bytes, which no other connection has."""
        await self.listen(ServerTls(GOOD_SERVER, True))
        client = ClientTls("localhost", GOOD_USER, None)
        found = set()
        for _ in range(2):
            meeting = await self.connect(client)
            self.assertEqual(exporterOf(meeting.near.transport), exporterOf(meeting.far.transport))
            found.add(exporterOf(meeting.near.transport))
        self.assertEqual({len(each) for each in found}, {32})
        self.assertEqual(len(found), 2)

    async def test_noResumption(self) -> None:
        """A session can not be taken up again: each connection shows its certificates anew."""
        await self.listen(ServerTls(GOOD_SERVER, False))
        reused = await deferToThread(self.resume)
        self.assertEqual(reused, [False, False])

    def resume(self) -> list[bool | None]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=pem(CA.certificate))
        context.set_alpn_protocols([ALPN.decode()])
        session, reused = None, []
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", self.port), 5) as opened:
                wrapped = context.wrap_socket(opened, server_hostname="localhost", session=session)
                # What comes after the handshake brings the session.
                wrapped.recv(len(WORDS))
                session = wrapped.session
                reused.append(wrapped.session_reused)
                wrapped.unwrap()
        self.assertTrue(session is not None and session.id)
        return reused


class TransportTests(SynchronousTestCase):
    """What is asked of a transport that is not TLS."""

    def test_noTls(self) -> None:
        """It has no certificate, no user, no protocol and no keys."""
        for transport in (StringTransport(), None, object()):
            self.assertIsNone(fingerprintOf(transport))
            self.assertIsNone(userOf(transport))
            self.assertRaises(LoginError, checkProtocol, transport)
            self.assertRaises(LoginError, exporterOf, transport)

    def test_noHandshake(self) -> None:
        """There are no keys before the handshake."""
        transport = StringTransport()
        transport.getHandle = lambda: SSL.Connection(SSL.Context(SSL.TLS_METHOD))  # type: ignore[attr-defined]
        self.assertRaises(LoginError, exporterOf, transport)

    def test_whyLost(self) -> None:
        """An end that has nothing to do with TLS keeps its own words."""
        self.assertEqual(whyLost(StringTransport(), Failure(OSError("gone"))), "gone")


class FileTestCase(SynchronousTestCase):
    """Files with PEM in them."""

    def write(self, *parts: object) -> str:
        name = self.mktemp()
        Path(name).write_text("\n".join(each if isinstance(each, str) else pem(each) for each in parts))
        return name

    def wrong(self, expected: str, read: Any, name: str) -> None:
        """Reading this file fails; the text names it, and says what is wrong."""
        error = self.assertRaises(ConfigError, read, name)
        self.assertTrue(str(error).startswith(f"{name}: "), error)
        self.assertIn(expected, str(error))


class IdentityTests(FileTestCase):
    """L{readIdentity}."""

    def test_anyOrder(self) -> None:
        """A bundle holds its parts in any order, with any text between them."""
        below = Signer("below", CA)
        own = below.server()
        parts: list[object] = [own.key, own.certificate, below.certificate, CA.certificate, "a remark"]
        for _ in parts:
            parts = [*parts[1:], parts[0]]
            identity = readIdentity(self.write(*parts))
            self.assertEqual(identity.certificate, own.certificate)
            self.assertEqual(identity.chain, (below.certificate,))
            self.assertEqual(identity.authorities, (CA.certificate,))
            self.assertEqual(identity.key.public_key(), own.key.public_key())

    def test_authorities(self) -> None:
        """There may be no CA in it, or several; a CA above us that is no root is one of our chain, not one of them."""
        own = CA.server()
        self.assertEqual(readIdentity(self.write(own.key, own.certificate)).authorities, ())
        both = readIdentity(self.write(own.key, own.certificate, CA.certificate, OTHER.certificate))
        self.assertEqual((both.chain, both.authorities), ((), (CA.certificate, OTHER.certificate)))

    def test_keyKinds(self) -> None:
        """RSA keys are as good, and so are parameters beside a key."""
        own = CA.server(key=rsa.generate_private_key(65537, 2048))
        parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
        identity = readIdentity(self.write(parameters, own.key, own.certificate))
        ServerTls(identity, False)

    def test_renewed(self) -> None:
        """Of two certificates for one key, the one that is valid longer is ours."""
        old = CA.server()
        new = CA.server(key=old.key, last=2 * DAY)
        for parts in ((old, new), (new, old)):
            identity = readIdentity(self.write(old.key, *(each.certificate for each in parts)))
            self.assertEqual(identity.certificate, new.certificate)

    def test_missing(self) -> None:
        """What is missing is said, and where."""
        own, other = CA.server(), CA.server()
        self.wrong("one private key", readIdentity, self.write(own.certificate, CA.certificate))
        self.wrong("found 2", readIdentity, self.write(own.key, own.certificate, other.key))
        self.wrong("no certificate for the private key", readIdentity, self.write(own.key, other.certificate))
        self.wrong("one private key", readIdentity, self.write("nothing"))
        self.wrong("No such file", readIdentity, self.mktemp())

    def test_broken(self) -> None:
        """So is what can not be read."""
        own = CA.server()
        cut = pem(own.certificate).splitlines()
        del cut[3]
        self.wrong("a certificate can not be read", readIdentity, self.write(own.key, "\n".join(cut)))
        broken = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"
        self.wrong("private key can not be read", readIdentity, self.write(broken, own.certificate))
        secret = own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")).decode()
        self.wrong("has a password", readIdentity, self.write(secret, own.certificate))
        name = self.mktemp()
        Path(name).write_bytes(b"\xff\xfe")
        self.wrong("no text", readIdentity, name)

    def test_otherKeys(self) -> None:
        """A CA with a key of a kind that is not known here is no obstacle, and is kept."""
        own = CA.server()
        # The number of another curve, one that is not implemented anywhere near.
        known, unknown = bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030102")
        strange = x509.load_der_x509_certificate(CA.certificate.public_bytes(Encoding.DER).replace(known, unknown))
        self.assertRaises((UnsupportedAlgorithm, ValueError), strange.public_key)
        identity = readIdentity(self.write(strange, own.key, own.certificate))
        self.assertEqual(identity.authorities, (strange,))

    def test_bare(self) -> None:
        """A certificate that says nothing of its purpose is good for any end, but is no CA and names nobody."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([])
        building = x509.CertificateBuilder(name, name, key.public_key(), 1, now() - DAY, now() + DAY)
        bare = building.sign(key, hashes.SHA256())
        identity = readIdentity(self.write(key, bare, CA.certificate))
        self.assertEqual(identity.authorities, (CA.certificate,))
        ServerTls(identity, True)
        ClientTls("localhost", identity, None)
        self.wrong("no CA certificate", readTrust, self.write(bare))

    def test_daysLeft(self) -> None:
        """Whole days are counted until the certificate expires, and less than 0 from then on."""
        moment = now().timestamp()
        for last, left in ((DAY * 1.5, 1), (DAY * 0.5, 0), (-DAY * 0.5, -1)):
            identity = CA.server(first=-2 * DAY, last=last).identity()
            self.assertEqual(daysLeft(identity, moment), left)


class RoleTests(SynchronousTestCase):
    """What makes an identity useless for a role is said when the role starts."""

    def test_wrongEnd(self) -> None:
        """A user's certificate is none for a server, nor a server's for a user."""
        error = self.assertRaises(ConfigError, ServerTls, CA.user().identity(CA), True)
        self.assertIn("bundle: the certificate is not one for this end; udptunnel pki server", str(error))
        error = self.assertRaises(ConfigError, ClientTls, "localhost", GOOD_SERVER, None)
        self.assertIn("bundle: the certificate is not one for this end; udptunnel pki add", str(error))

    def test_noAuthority(self) -> None:
        """Who must tell others apart must have a CA."""
        error = self.assertRaises(ConfigError, ServerTls, CA.server().identity(), True)
        self.assertIn("bundle: there is no CA certificate", str(error))
        error = self.assertRaises(ConfigError, ClientTls, "localhost", CA.user().identity(), None)
        self.assertIn("bundle: there is no CA certificate", str(error))
        error = self.assertRaises(ConfigError, ClientTls, "localhost", None, None)
        self.assertIn("--tls-trust", str(error))

    def test_weakKey(self) -> None:
        """A key that OpenSSL takes for weak is refused at once."""
        weak = CA.server(key=rsa.generate_private_key(65537, 1024))
        error = self.assertRaises(ConfigError, ServerTls, weak.identity(), False)
        self.assertIn("bundle: OpenSSL does not take them: ", str(error))

    def test_name(self) -> None:
        """A server's name is a host name or an address; a dot at its end is none of it."""
        for name in ("", ".", "a b", "a..b", "-a.example", f"{'a' * 64}.example", "a." * 128):
            self.assertRaises(ConfigError, ClientTls, name, None, TRUST)
        for name in ("relay.example.", "b\xfccher.example", "192.0.2.7", "2001:db8::7"):
            ClientTls(name, None, TRUST)


class TrustTests(FileTestCase):
    """L{readTrust}."""

    def test_fingerprint(self) -> None:
        """A fingerprint may have colons and upper case."""
        plain = fingerprint(CA.certificate)
        colons = ":".join(plain[place : place + 2] for place in range(0, 64, 2))
        for text in (f"sha256:{plain}", f"SHA256:{plain.upper()}", f"sha256:{colons.upper()}"):
            self.assertEqual(readTrust(text), Trust(fingerprint=plain))

    def test_noFingerprint(self) -> None:
        """What is not 64 hex digits is none."""
        plain = fingerprint(CA.certificate)
        for wrong in ("", plain[1:], f"{plain}0", f"g{plain[1:]}", f"{plain} "):
            self.assertRaises(ConfigError, readTrust, f"sha256:{wrong}")

    def test_file(self) -> None:
        """All CAs in a file are trusted, and nothing else in it is."""
        name = self.write(CA.server().certificate, CA.certificate, OTHER.certificate)
        self.assertEqual(readTrust(name), Trust((CA.certificate, OTHER.certificate)))

    def test_noAuthority(self) -> None:
        """A file without a CA is refused; if it holds one certificate, the message says how to trust that."""
        own = CA.server().certificate
        self.wrong(
            f"no CA certificate in it; to trust just the certificate that is, say sha256:{fingerprint(own)}",
            readTrust,
            self.write(own),
        )
        self.wrong("no CA certificate in it", readTrust, self.write("nothing"))
        self.wrong("No such file", readTrust, self.mktemp())


class RevokedTests(FileTestCase):
    """L{readRevoked}."""

    def test_lines(self) -> None:
        """A line is a fingerprint and any remark; there may be comments and empty lines."""
        first, second = fingerprint(CA.certificate), fingerprint(OTHER.certificate)
        name = self.write("# gone", "", f"{first} alice 2026-01-01", f"  sha256:{second.upper()}", "  # nobody")
        self.assertEqual(readRevoked(name), {first, second})
        self.assertEqual(readRevoked(self.write("")), frozenset())

    def test_wrong(self) -> None:
        """A line that begins with something else is named, and so is a file that is not there: nobody slips in."""
        first = fingerprint(CA.certificate)
        self.wrong("line 2: alice: expected a SHA-256", readRevoked, self.write(first, "alice"))
        self.wrong("line 1: ", readRevoked, self.write(first[1:]))
        self.wrong("No such file", readRevoked, self.mktemp())
