"""
TLS for links: who each end is, and whom it lets in.

Only TLS 1.3 is spoken, and no session is ever resumed, so that each connection
shows its certificates again. OpenSSL checks signatures, dates and purposes;
the name of the server is checked by service_identity, as Twisted does; and
what a file holds is checked when it is read, so that the mistakes of whoever
wrote it come to light when a role starts and not when a link comes.

On the client the end of the handshake proves nothing about its own certificate:
the server's verdict comes later (RFC 8446 section 4.4.2.4). Only the first
frame from the server does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto
from service_identity import VerificationError
from service_identity.cryptography import extract_patterns
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator
from twisted.internet.ssl import Certificate, CertificateOptions, TLSVersion, trustRootFromCertificates
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.core.acl import LARGEST_NAME
from udptunnel.errors import ConfigError, LoginError
from udptunnel.net.doorstep import Doorstep

ALPN = b"udptunnel/1"
"""What both ends must say that they speak inside (RFC 7301)."""

EXPORTER_LABEL = b"EXPORTER-udptunnel-1"

EXPORTER_BYTES = 32

USER_SCHEME = "udptunnel:"
"""Begins the URI that names the user in a certificate."""

USER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
"""What a user may be called; it serves as the name of a file, too, so it begins with no dot or dash."""

DAY_SECONDS = 86_400

_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_FINGERPRINT = re.compile("[0-9a-f]{64}")

_LABEL = re.compile(rb"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
"""Of a host name. Underscores are against RFC 952, and in use."""

_REQUIRED = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT

Certificates = tuple[x509.Certificate, ...]

Judge = Callable[[x509.Certificate, int, int], str | None]
"""Says why a certificate is refused, given OpenSSL's verdict and how far it is from the peer's own."""


# -- files


@dataclass(frozen=True)
class Identity:
    """
    What one bundle holds: who we are, and whom we let in.

    @ivar key: our private key.
    @ivar certificate: our certificate.
    @ivar chain: the CA certificates between ours and its root.
    @ivar authorities: the CA certificates that the other end's certificate is to come from; there may be none.
    @ivar path: the file, for messages.
    """

    key: Any
    certificate: x509.Certificate
    chain: Certificates
    authorities: Certificates
    path: str = ""


def readIdentity(path: str) -> Identity:
    """
    Read a bundle: a private key, its certificate and CA certificates, in any order in one PEM file.

    @raise ConfigError: it can not be read, or something is missing; the text names the file.
    """
    text = readText(path)
    key, certificates = _onlyKey(path, text), _certificates(path, text)
    # After a renewal the old certificate may stand in the file as well.
    own = max(_certifying(key, certificates), key=lambda each: each.not_valid_after_utc, default=None)
    if own is None:
        raise ConfigError(f"{path}: there is no certificate for the private key in it")
    authorities = [each for each in certificates if each != own and _isAuthority(each)]
    chain = _chain(own, authorities)
    return Identity(key, own, chain, tuple(each for each in authorities if each not in chain), path)


def readText(path: str) -> str:
    """
    The text in a file.

    @raise ConfigError: it can not be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: no text: {error}") from error


def _onlyKey(path: str, text: str) -> Any:
    found = [each[0].encode() for each in _PEM.finditer(text) if each[1].endswith("PRIVATE KEY")]
    if len(found) != 1:
        raise ConfigError(f"{path}: expected one private key in PEM, found {len(found) or 'none'}")
    try:
        return load_pem_private_key(found[0], None)
    except TypeError as error:
        raise ConfigError(f"{path}: the private key has a password, which nobody could type at a start") from error
    except Exception as error:  # Which exceptions there are depends on the kind of key.
        raise ConfigError(f"{path}: the private key can not be read: {error}") from error


def _certificates(path: str, text: str) -> list[x509.Certificate]:
    found = (each[0].encode() for each in _PEM.finditer(text) if each[1] == "CERTIFICATE")
    try:
        return list(dict.fromkeys(x509.load_pem_x509_certificate(each) for each in found))
    except ValueError as error:
        raise ConfigError(f"{path}: a certificate can not be read: {error}") from error


def _certifying(key: Any, certificates: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    """Those certificates that are for a key."""
    public = _publicBytes(key)
    return [each for each in certificates if _publicBytes(each) == public]


def _publicBytes(source: Any) -> bytes | None:
    """The public key of a private key or of a certificate, unless it is of a kind that we know nothing of."""
    try:
        return bytes(source.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    except Exception:
        return None


def _isAuthority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _chain(own: x509.Certificate, authorities: Sequence[x509.Certificate]) -> Certificates:
    """The certificates that lead up from our own one, without the root, which the other end must have anyway."""
    above = [each for each in authorities if each.issuer != each.subject]
    chain: list[x509.Certificate] = []
    last: x509.Certificate | None = own
    while last is not None:
        last = next((each for each in above if each.subject == last.issuer and each not in chain), None)
        chain += [last] if last is not None else []
    return tuple(chain)


def daysLeft(identity: Identity, now: float) -> int:
    """
    How many whole days our own certificate is still valid; less than 0 if it has expired.

    @param now: seconds since 1970.
    """
    return int((identity.certificate.not_valid_after_utc.timestamp() - now) // DAY_SECONDS)


@dataclass(frozen=True)
class Trust:
    """
    Whom udp-local takes for its server.

    @ivar authorities: the CAs that its certificate may come from.
    @ivar fingerprint: or the one certificate that it must have.
    """

    authorities: Certificates = ()
    fingerprint: str | None = None


def readTrust(text: str) -> Trust:
    """
    Read C{sha256:HEX} or the name of a PEM file with CA certificates.

    @raise ConfigError: it is neither.
    """
    if text.lower().startswith("sha256:"):
        return Trust(fingerprint=parseFingerprint(text))
    certificates = _certificates(text, readText(text))
    authorities = tuple(each for each in certificates if _isAuthority(each))
    if not authorities:
        raise ConfigError(f"{text}: there is no CA certificate in it{_advice(certificates)}")
    return Trust(authorities)


def _advice(certificates: Sequence[x509.Certificate]) -> str:
    if len(certificates) != 1:
        return ""
    return f"; to trust just the certificate that is, say sha256:{fingerprint(certificates[0])}"


def parseFingerprint(text: str) -> str:
    """
    A SHA-256 fingerprint as 64 hex digits in lower case; C{sha256:} before it and colons in it are left out.

    @raise ConfigError: the text is none.
    """
    digits = text.lower().removeprefix("sha256:").replace(":", "")
    if not _FINGERPRINT.fullmatch(digits):
        raise ConfigError(f"{text}: expected a SHA-256 fingerprint, sha256: and 64 hex digits")
    return digits


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 of a certificate as 64 hex digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def readRevoked(path: str) -> frozenset[str]:
    """
    Read the fingerprints of certificates that are not valid any more. What follows one in its line is a remark.

    @raise ConfigError: the file can not be read, or a line begins with something else. To leave that line out would
        let in whom it was to keep out.
    """
    lines = enumerate(readText(path).splitlines(), 1)
    words = [(place, line.split()[0]) for place, line in lines if line.strip() and not line.lstrip().startswith("#")]
    return frozenset(_revokedIn(path, place, word) for place, word in words)


def _revokedIn(path: str, place: int, word: str) -> str:
    try:
        return parseFingerprint(word)
    except ConfigError as error:
        raise ConfigError(f"{path}: line {place}: {error}") from error


# -- both ends


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """Makes the TLS of links that somebody else opens."""

    def __init__(self, identity: Identity, requireUsers: bool) -> None:
        """
        @param requireUsers: whether everybody must show a certificate of one of C{identity.authorities}; otherwise
            none is asked for.
        @raise ConfigError: the identity is none for that.
        """
        self._requireUsers = requireUsers
        self.replace(identity)

    def replace(self, identity: Identity) -> None:
        """
        Be somebody else from the next connection on.

        @raise ConfigError: the identity is none for a server; the old one stays.
        """
        if self._requireUsers and not identity.authorities:
            raise ConfigError(f"{identity.path}: there is no CA certificate in it, which users' certificates come from")
        _checkPurpose(identity, ExtendedKeyUsageOID.SERVER_AUTH, "udptunnel pki server makes one")
        self._options = _options(identity, identity.authorities if self._requireUsers else ())

    def serverConnectionForTLS(self, tlsProtocol: Any) -> Any:
        """What will be a connection with the identity of then."""
        return Doorstep(lambda: self._connectionFor(tlsProtocol))

    def _connectionFor(self, tlsProtocol: Any) -> SSL.Connection:
        connection = self._options.serverConnectionForTLS(tlsProtocol)
        if self._requireUsers:
            connection.set_verify(_REQUIRED, _verification(_refusal))
        return connection


@implementer(IOpenSSLClientConnectionCreator)
class ClientTls:
    """Makes the TLS of links to one server."""

    def __init__(self, name: str, identity: Identity | None, trust: Trust | None) -> None:
        """
        @param name: the host name or the IP address that the server's certificate must hold.
        @param identity: what we show if the server asks; also whom we trust, if C{trust} does not say.
        @raise ConfigError: nobody says whom to trust, or the identity or the name is none.
        """
        self._trust = trust or Trust(identity.authorities if identity is not None else ())
        if not self._trust.authorities and self._trust.fingerprint is None:
            where = f"{identity.path}: there is no CA certificate in it" if identity is not None else "no CA is given"
            raise ConfigError(f"{where}, so nothing tells the server from others; --tls-trust names one")
        if identity is not None:
            _checkPurpose(identity, ExtendedKeyUsageOID.CLIENT_AUTH, "udptunnel pki add makes one")
        self._id = parseServerName(name)
        self._options = _options(identity, self._trust.authorities)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """A connection that knows whom to expect."""
        connection = self._options.clientConnectionForTLS(tlsProtocol)
        if isinstance(self._id, DNS_ID):
            connection.set_tlsext_host_name(self._id.hostname)
        connection.set_verify(_REQUIRED, _verification(self._judge))
        return connection

    def _judge(self, certificate: x509.Certificate, error: int, depth: int) -> str | None:
        if self._trust.fingerprint is not None:
            return _pinRefusal(self._trust.fingerprint, certificate) if depth == 0 else None
        return _refusal(certificate, error, depth) or (_nameRefusal(self._id, certificate) if depth == 0 else None)


def _checkPurpose(identity: Identity, purpose: x509.ObjectIdentifier, advice: str) -> None:
    """A certificate says whether it is a server's or a client's; the other end would refuse the wrong one."""
    try:
        purposes = identity.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return
    if purpose not in purposes and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in purposes:
        raise ConfigError(f"{identity.path}: the certificate is not one for this end; {advice}")


def _options(identity: Identity | None, authorities: Certificates) -> CertificateOptions:
    keywords: dict[str, Any] = {"raiseMinimumTo": TLSVersion.TLSv1_3, "acceptableProtocols": [ALPN]}
    if identity is not None:
        keywords |= {"privateKey": identity.key, "certificate": identity.certificate, "extraCertChain": identity.chain}
    if authorities:
        trusted = [Certificate(crypto.X509.from_cryptography(each)) for each in authorities]
        keywords["trustRoot"] = trustRootFromCertificates(trusted)
    options = CertificateOptions(**keywords)
    try:
        # Made once here, for OpenSSL refuses weak keys when they come into a context.
        options.getContext()
    except SSL.Error as error:
        where = identity.path if identity is not None else "the CA certificates"
        raise ConfigError(f"{where}: OpenSSL does not take them: {_reasons(error)}") from error
    return options


def parseServerName(text: str) -> DNS_ID | IPAddress_ID:
    """
    What a server's certificate must hold to be that of a host name or an IP address.

    @raise ConfigError: the text is neither.
    """
    for kind in (IPAddress_ID, DNS_ID):
        try:
            name = kind(text.removesuffix("."))
        except Exception:  # No such address or name; what exactly is raised, only the idna package knows.
            continue
        if isinstance(name, IPAddress_ID) or _isHostName(name.hostname):
            return name
    raise ConfigError(f"{text!r}: expected a host name or an IP address")


def _isHostName(name: bytes) -> bool:
    return len(name) <= LARGEST_NAME and all(_LABEL.fullmatch(label) for label in name.split(b"."))


# -- verdicts

_refusals: WeakKeyDictionary[SSL.Connection, str] = WeakKeyDictionary()
"""Why certificates were refused, for L{whyLost}: OpenSSL's own error says only that one was."""

_CODES = SSL.X509VerificationCodes

_UNTRUSTED = "is not from a CA that is trusted here"

_ERRORS = {
    _CODES.ERR_CERT_HAS_EXPIRED: "has expired",
    _CODES.ERR_CERT_NOT_YET_VALID: "is not valid yet, or a clock is wrong",
    _CODES.ERR_INVALID_PURPOSE: "is not one for that end: a server's for a user, or a user's for a server",
    _CODES.ERR_CERT_SIGNATURE_FAILURE: _UNTRUSTED,
    _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: _UNTRUSTED,
    _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN: _UNTRUSTED,
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT: _UNTRUSTED,
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: _UNTRUSTED,
    _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: _UNTRUSTED,
}


def _verification(judge: Judge) -> Callable[[SSL.Connection, crypto.X509, int, int, int], bool]:
    """What OpenSSL asks about each certificate of a chain, from the root down, and again about each mistake."""

    def verify(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
        try:
            refusal = judge(certificate.to_cryptography(), 0 if ok else error, depth)
        except Exception as problem:  # An exception must not cross OpenSSL; strangers' certificates can be anything.
            refusal = f"its certificate can not be read: {problem!r}"
        if refusal is not None:
            _refusals[connection] = refusal
        return refusal is None

    return verify


def _refusal(certificate: x509.Certificate, error: int, depth: int) -> str | None:
    """OpenSSL's verdict in words."""
    if not error:
        return None
    whose = "a CA certificate above its own" if depth else "its certificate"
    return f"{whose} {_ERRORS.get(error, f'is refused by OpenSSL (X509 error {error})')}"


def _pinRefusal(expected: str, certificate: x509.Certificate) -> str | None:
    """A pin asks for one certificate and no other; neither names nor dates nor CAs can make it a better one."""
    found = fingerprint(certificate)
    return None if found == expected else f"its certificate is sha256:{found}, not the one that is trusted"


def _nameRefusal(expected: DNS_ID | IPAddress_ID, certificate: x509.Certificate) -> str | None:
    try:
        verify_service_identity(extract_patterns(certificate), [expected], [])
    except VerificationError:
        name = expected.hostname.decode() if isinstance(expected, DNS_ID) else expected.ip
        return f"its certificate is not for {name}"
    return None


# -- after the handshake


def fingerprintOf(transport: Any) -> str | None:
    """The SHA-256 of the peer's certificate as 64 hex digits, or C{None} if it has shown none."""
    certificate = _certificateOf(transport)
    return fingerprint(certificate) if certificate is not None else None


def authoritiesOf(transport: Any) -> frozenset[str]:
    """The fingerprints of the CAs above the peer's certificate, as they were found when it was checked."""
    connection = _connectionOf(transport)
    chain = connection.get_verified_chain(as_cryptography=True) if connection is not None else None
    return frozenset(map(fingerprint, (chain or ())[1:]))


def userOf(transport: Any) -> str | None:
    """
    The user whom the peer's certificate names, in a URI C{udptunnel:NAME} among its alternative names.

    @return: C{None} if there is no certificate, or if it does not name exactly one user.
    """
    certificate = _certificateOf(transport)
    names = _usersIn(certificate) if certificate is not None else []
    return names[0] if len(names) == 1 and USER_NAME.fullmatch(names[0]) else None


def _usersIn(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return [uri.removeprefix(USER_SCHEME) for uri in uris if uri.startswith(USER_SCHEME)]


def _certificateOf(transport: Any) -> x509.Certificate | None:
    connection = _connectionOf(transport)
    certificate = connection.get_peer_certificate() if connection is not None else None
    return certificate.to_cryptography() if certificate is not None else None


def _connectionOf(transport: Any) -> SSL.Connection | None:
    """The connection behind a TLS transport; others have a socket there, which is gone when they are closed."""
    try:
        handle = transport.getHandle()
    except AttributeError:
        return None
    if isinstance(handle, Doorstep):
        return handle.connection
    return handle if isinstance(handle, SSL.Connection) else None


def checkProtocol(transport: Any) -> None:
    """
    See to it that the other end speaks L{ALPN}; OpenSSL lets those pass who do not say what they speak.

    @raise LoginError: it does not.
    """
    if getattr(transport, "negotiatedProtocol", None) != ALPN:
        raise LoginError(f"the other end did not say in its TLS handshake that it speaks {ALPN.decode()}")


def exporterOf(transport: Any) -> bytes:
    """
    32 bytes that only the two ends of this connection know (RFC 8446 section 7.5).

    @raise LoginError: it is no TLS transport, or the handshake is not done.
    """
    connection = _connectionOf(transport)
    if connection is None:
        raise LoginError("the link is not a TLS connection")
    try:
        return connection.export_keying_material(EXPORTER_LABEL, EXPORTER_BYTES)
    except SSL.Error as error:
        raise LoginError(f"the TLS connection has no keys yet: {_reasons(error)}") from error


_ALERTS = {
    "certificate required": "it asks for a certificate, and we have none: --tls",
    "unknown ca": "it does not know the CA that our certificate comes from",
    "certificate expired": "our certificate has expired",
    "internal error": "our certificate has not the name that it expects, or we do not speak one protocol: see its log",
    "bad certificate": "it does not accept our certificate; its log says why",
    "unsupported certificate": "our certificate is not one for this end",
    "protocol version": "it does not speak TLS 1.3",
}
"""What we have to do with the other end's complaints, by what OpenSSL calls them."""

_FAILURES = {
    "wrong version number": "the other end does not speak TLS",
    "peer did not return a certificate": "the other end has shown no certificate",
}


def whyLost(transport: Any, reason: Failure) -> str:
    """Why a connection ended, in words for whoever must mend it; to be asked in C{connectionLost}."""
    connection = _connectionOf(transport)
    if connection is not None and connection in _refusals:
        return f"we refuse the other end: {_refusals[connection]}"
    if not isinstance(reason.value, SSL.Error):
        return reason.getErrorMessage()
    text = _reasons(reason.value)
    alert = text.partition(" alert ")[2]
    if alert:
        return f"the other end refuses us: {_ALERTS.get(alert, alert)}"
    return f"TLS failed: {_FAILURES.get(text, text)}"


def _reasons(error: SSL.Error) -> str:
    """What OpenSSL says, without where in its sources it says so."""
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return ", ".join(str(entry[-1]) for entry in entries) or str(error) or "unknown"
