"""
C{udptunnel pki}: a private CA in a folder, for links over TLS::

    ca.key        the CA's private key; whoever has it can let in anybody
    ca.pem        the CA's certificate
    server.pem    the bundle of udp-server
    NAME.pem      the bundle of a user
    index         one line for each certificate that was ever made
    revoked       fingerprints of those that are not valid any more
"""

from __future__ import annotations

import getopt
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from twisted.python import usage

from udptunnel.config import integer
from udptunnel.errors import ConfigError
from udptunnel.net.tls import (
    USER_NAME,
    USER_SCHEME,
    fingerprint,
    parseFingerprint,
    parseServerName,
    readRevoked,
    readText,
)

CA_DAYS = 3650

LEAF_DAYS = 365

EARLY = timedelta(hours=1)
"""Certificates are valid from a little before they are made: clocks differ."""

SECRET_BYTES = 32

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""What the first server's certificate is for if nobody says: enough to try it out."""

SERVER = "server"

RESERVED = ("ca", SERVER)
"""Users may not be called so, for these files are there already."""

_LONGEST_COMMON_NAME = 64
"""RFC 5280, appendix A: ub-common-name."""


# -- the command line


class _Help(usage.Options):
    """
    A help that teaches.

    @cvar examples: shown below the rest, line by line as they are.
    """

    synopsis: str
    examples = ""

    def getSynopsis(self) -> str:
        """The line of this command alone, without those of the commands that it belongs to."""
        return self.synopsis

    def getUsage(self, width: int | None = None) -> str:
        """What the options are, and what the command is used for."""
        return f"{super().getUsage(width)}\n{self.examples}"


class _Words(_Help):
    """
    A command with positional arguments, before, between and behind its options.

    @cvar words: what they are, all of which must be there.
    @cvar rest: what comes behind them, once or several times.
    """

    words: tuple[str, ...] = ()
    rest = ""

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Twisted takes options first; people write them last as well."""
        try:
            found, words = getopt.gnu_getopt(list(options or ()), self.shortOpt, self.longOpt)
        except getopt.error as error:
            raise usage.UsageError(f"pki: {error}") from error
        given = [f"{name}={value}" if f"{name[2:]}=" in self.longOpt else name for name, value in found]
        super().parseOptions([*given, "--", *words])

    def parseArgs(self, *given: str) -> None:
        """DIR, NAME and the like."""
        wanted = (*self.words, *([self.rest] if self.rest else []))
        if len(given) < len(wanted) or (len(given) > len(wanted) and not self.rest):
            raise usage.UsageError(f"pki: expected {' and '.join(wanted)}, found {' '.join(given) or 'nothing'}")
        self.update(zip(self.words, given, strict=False))
        self["rest"] = given[len(self.words) :]


class _Making(_Words):
    """A command that makes certificates."""

    def __init__(self) -> None:
        super().__init__()
        self["days"] = LEAF_DAYS

    def opt_days(self, text: str) -> None:
        """Days that the new certificate is valid [default: 365]."""
        try:
            self["days"] = integer(1, CA_DAYS)(text)
        except ValueError as error:
            raise usage.UsageError(f"pki: --days {text}: expected {error}") from error


class InitOptions(_Making):
    """udptunnel pki init."""

    synopsis = "Usage: udptunnel pki init DIR [--name HOST]... [--days N]"
    longdesc = """Makes the folder DIR with a new CA and with udp-server's bundle in it. HOST is what
udp-local finds udp-server by: a host name or an IP address, as many as there are. Without any the bundle is good
for tries on one machine."""
    examples = """\
    udptunnel pki init DIR --name relay.example --name 192.0.2.7
"""
    words = ("DIR",)

    def __init__(self) -> None:
        super().__init__()
        self["names"] = []

    def opt_name(self, host: str) -> None:
        """A host name or an IP address of udp-server. Several times."""
        self["names"].append(host)


class AddOptions(_Making):
    """udptunnel pki add."""

    synopsis = "Usage: udptunnel pki add DIR NAME [--days N]"
    longdesc = """Makes the bundle of a new user, DIR/NAME.pem, to be copied to the user's machine. NAME has letters,
digits, dots, dashes and underscores."""
    examples = """\
    udptunnel pki add DIR alice
    scp DIR/alice.pem NEAR-MACHINE:
    twistd -n udp-local --tls alice.pem --server tcp:relay.example:3460
"""
    words = ("DIR", "NAME")


class ServerOptions(_Making):
    """udptunnel pki server."""

    synopsis = "Usage: udptunnel pki server DIR HOST... [--days N]"
    longdesc = """Makes a new bundle for udp-server, in place of the old one: before that expires, or when
udp-server gets another name or address. udp-server takes it up with SIGHUP."""
    examples = """\
    udptunnel pki server DIR relay.example 192.0.2.7
    kill -HUP PROCESS
"""
    words, rest = ("DIR",), "HOST..."


class RenewOptions(_Making):
    """udptunnel pki renew."""

    synopsis = "Usage: udptunnel pki renew DIR NAME [--days N]"
    longdesc = "Makes a new bundle for a user, in place of the old one, before that expires."
    examples = """\
    udptunnel pki renew DIR alice
    scp DIR/alice.pem NEAR-MACHINE:
"""
    words = ("DIR", "NAME")


class RevokeOptions(_Words):
    """udptunnel pki revoke."""

    synopsis = "Usage: udptunnel pki revoke DIR NAME"
    longdesc = """Shuts a user out: writes all certificates of NAME to DIR/revoked. udp-server, started with --revoked
DIR/revoked, reads it again with SIGHUP."""
    examples = """\
    udptunnel pki revoke DIR alice
    kill -HUP PROCESS
"""
    words = ("DIR", "NAME")


class ListOptions(_Words):
    """udptunnel pki list."""

    synopsis = "Usage: udptunnel pki list DIR"
    longdesc = "Shows all certificates that were made in DIR, and which of them are valid."
    examples = """\
    udptunnel pki list DIR
"""
    words = ("DIR",)


class SecretOptions(_Words):
    """udptunnel pki secret."""

    synopsis = "Usage: udptunnel pki secret NAME"
    longdesc = """Prints a line with a new secret, for a user without a certificate. The same line goes into the file of
udp-local --secret and into that of udp-server --secrets, which has one for each user."""
    examples = """\
    (umask 077; udptunnel pki secret alice > alice.secret)
    cat alice.secret >> secrets
"""
    words = ("NAME",)


class PkiOptions(_Help):
    """udptunnel pki."""

    synopsis = "Usage: udptunnel pki COMMAND"
    longdesc = "Certificates and secrets for links over TLS. Each command has a --help."
    examples = """\
A server and a user:

    udptunnel pki init DIR --name relay.example
    udptunnel pki add DIR alice
    twistd -n udp-server --listen tcp:3460 --tls DIR/server.pem --revoked DIR/revoked
    twistd -n udp-local --server tcp:relay.example:3460 --tls alice.pem
"""
    subCommands: ClassVar[list[list[Any]]] = [
        ["init", None, InitOptions, "Make a CA, and the bundle of udp-server."],
        ["add", None, AddOptions, "Make the bundle of a new user."],
        ["server", None, ServerOptions, "Make a new bundle for udp-server."],
        ["renew", None, RenewOptions, "Make a new bundle for a user."],
        ["revoke", None, RevokeOptions, "Shut a user out."],
        ["list", None, ListOptions, "Show all certificates."],
        ["secret", None, SecretOptions, "Make a secret for a user without a certificate."],
    ]

    def postOptions(self) -> None:
        """There must be a command."""
        if self.subCommand is None:
            *others, last = (row[0] for row in self.subCommands)
            raise usage.UsageError(f"pki: which command? {', '.join(others)} or {last}")


def run(options: PkiOptions) -> int:
    """Run a command; what is returned is the exit status."""
    commands: dict[str, Callable[[Any], None]] = {
        "init": _init,
        "add": _add,
        "server": _server,
        "renew": _renew,
        "revoke": _revoke,
        "list": _list,
        "secret": _secret,
    }
    try:
        commands[str(options.subCommand)](options.subOptions)
    except ConfigError as error:
        print(f"udptunnel pki {options.subCommand}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"udptunnel pki {options.subCommand}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


# -- commands


def _open(options: Any) -> Authority:
    return Authority(Path(options["DIR"]), datetime.now(UTC))


def _init(options: InitOptions) -> None:
    authority = _open(options)
    hosts = options["names"] or LOOPBACK
    made = authority.create(hosts, options["days"])
    print(f"{authority.path / 'ca.key'}: the key of the CA. Who has it can let in anybody: it stays here")
    print(f"{authority.path / 'ca.pem'}: the certificate of the CA")
    _sayServer(authority, made, hosts)
    print(f"next: udptunnel pki add {authority.path} NAME")


def _server(options: ServerOptions) -> None:
    authority = _open(options)
    made = authority.makeServer(options["rest"], options["days"])
    _sayServer(authority, made, options["rest"])
    print("udp-server takes it up with SIGHUP; who trusts the old certificate by its fingerprint needs the new one")


def _sayServer(authority: Authority, made: Issued, hosts: Sequence[str]) -> None:
    print(f"{authority.bundle(SERVER)}: for udp-server --tls, as {', '.join(hosts)}, until {made.last:%Y-%m-%d}")
    print(f"its fingerprint is sha256:{made.fingerprint}")


def _add(options: AddOptions) -> None:
    authority = _open(options)
    _sayUser(authority, authority.add(options["NAME"], options["days"]))


def _renew(options: RenewOptions) -> None:
    authority = _open(options)
    _sayUser(authority, authority.renew(options["NAME"], options["days"]))


def _sayUser(authority: Authority, made: Issued) -> None:
    print(f"{authority.bundle(made.name)}: for udp-local --tls of {made.name}, until {made.last:%Y-%m-%d}")


def _revoke(options: RevokeOptions) -> None:
    authority = _open(options)
    count = len(authority.revoke(options["NAME"]))
    print(f"{authority.revoked}: {count} certificate{'s' * (count != 1)} of {options['NAME']} added")
    print("udp-server --revoked reads this file when it starts, and with SIGHUP: kill -HUP PROCESS")


def _list(options: ListOptions) -> None:
    authority = _open(options)
    issued, revoked = authority.issued(), authority.readRevoked()
    width = max([4, *(len(each.name) for each in issued)])
    print(f"{'name':<{width}}  what    valid until  state    fingerprint")
    for each in issued:
        state = each.state(revoked, authority.now)
        print(f"{each.name:<{width}}  {each.what:<6}  {each.last:%Y-%m-%d}   {state:<7}  {each.fingerprint[:16]}")


def _secret(options: SecretOptions) -> None:
    print(f"{_userName(options['NAME'])}:{secrets.token_hex(SECRET_BYTES)}")


def _userName(text: str) -> str:
    if not USER_NAME.fullmatch(text):
        expected = "1 to 64 letters, digits, dots, dashes and underscores, and a letter, digit or underscore first"
        raise ConfigError(f"{text!r}: expected {expected}")
    if text in RESERVED:
        raise ConfigError(f"{text}: no user can be called so, for {text}.pem is something else; take another name")
    return text


# -- the folder


@dataclass(frozen=True)
class Issued:
    """
    A line of the index: one certificate.

    @ivar what: server or user.
    """

    name: str
    what: str
    fingerprint: str
    first: datetime
    last: datetime

    def __str__(self) -> str:
        return f"{self.name} {self.what} {self.fingerprint} {self.first:{_TIME}} {self.last:{_TIME}}"

    @classmethod
    def parse(cls, line: str) -> Issued:
        """
        What C{str} has made a line of.

        @raise ValueError: it is no such line.
        """
        name, what, digits, *times = line.split()
        if what not in (SERVER, "user"):
            raise ValueError(f"{what} is neither server nor user")
        first, last = (datetime.strptime(each, _TIME).replace(tzinfo=UTC) for each in times)
        return cls(name, what, parseFingerprint(digits), first, last)

    def state(self, revoked: frozenset[str], now: datetime) -> str:
        """Whether the certificate is revoked, expired or valid."""
        return "revoked" if self.fingerprint in revoked else "expired" if self.last <= now else "valid"


_TIME = "%Y-%m-%dT%H:%M:%SZ"

_INDEX_HEAD = "# name, server or user, SHA-256 of the certificate, valid from, valid until\n"
_REVOKED_HEAD = "# SHA-256 of each certificate that is not valid any more; the rest of a line is a remark\n"


class Authority:
    """
    A CA in a folder.

    @ivar path: the folder.
    @ivar revoked: the file with what is not valid any more.
    @ivar now: the time at which all this is done.
    """

    def __init__(self, path: Path, now: datetime) -> None:
        self.path = path
        self.revoked = path / "revoked"
        self.now = now.replace(microsecond=0)
        self._index = path / "index"

    def bundle(self, name: str) -> Path:
        """The bundle of a user, or of the server."""
        return self.path / f"{name}.pem"

    # -- making

    def create(self, hosts: Sequence[str], days: int) -> Issued:
        """
        Make the folder, its CA and the server's bundle.

        @raise ConfigError: there is something in the folder already, or a host is neither a name nor an address.
        """
        names = [_hostName(host) for host in hosts]
        self.path.mkdir(0o700, exist_ok=True)
        if any(self.path.iterdir()):
            raise ConfigError(f"{self.path}: there is something in it already, and nothing is overwritten")
        self.path.chmod(0o700)
        key = _newKey()
        certificate = _certifyAuthority(key, self.now)
        _write(self.path / "ca.key", _pem(key), 0o600)
        _write(self.path / "ca.pem", _pem(certificate), 0o644)
        _write(self._index, _INDEX_HEAD, 0o600)
        _write(self.revoked, _REVOKED_HEAD, 0o644)
        return self._issue(SERVER, SERVER, hosts[0], names, days)

    def makeServer(self, hosts: Sequence[str], days: int) -> Issued:
        """
        Make the server's bundle, in place of the one that may be there.

        @raise ConfigError: a host is neither a name nor an address, or there is no CA.
        """
        names = [_hostName(host) for host in hosts]
        return self._issue(SERVER, SERVER, hosts[0], names, days)

    def add(self, name: str, days: int) -> Issued:
        """
        Make the bundle of a new user.

        @raise ConfigError: there is such a user already, or nobody can be called so, or there is no CA.
        """
        if self._issuedTo(_userName(name)) or self.bundle(name).exists():
            raise ConfigError(f"{name}: there is such a user already; udptunnel pki renew makes a new certificate")
        return self._issueToUser(name, days)

    def renew(self, name: str, days: int) -> Issued:
        """
        Make a new bundle for a user.

        @raise ConfigError: there is no such user, or no more.
        """
        found, revoked = self._known(name), self.readRevoked()
        if any(each.fingerprint in revoked for each in found):
            raise ConfigError(f"{name}: this user is revoked; udptunnel pki add makes a user of another name")
        return self._issueToUser(name, days)

    def _issueToUser(self, name: str, days: int) -> Issued:
        return self._issue(name, "user", name, [x509.UniformResourceIdentifier(USER_SCHEME + name)], days)

    def _issue(self, name: str, what: str, common: str, names: Sequence[x509.GeneralName], days: int) -> Issued:
        authority, signing = self._authority()
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if what == SERVER else ExtendedKeyUsageOID.CLIENT_AUTH
        last = min(self.now + timedelta(days=days), authority.not_valid_after_utc)
        key = _newKey()
        building = _begin(common, authority.subject, key, self.now - EARLY, last)
        certificate = _certify(building, names, purpose, authority).sign(signing, hashes.SHA256())
        made = Issued(name, what, fingerprint(certificate), self.now - EARLY, last)
        # First into the index: a certificate that it does not know could never be revoked.
        _write(self._index, f"{self._read('index')}{made}\n", 0o600)
        _write(self.bundle(name), _pem(key) + _pem(certificate) + _pem(authority), 0o600)
        return made

    def _authority(self) -> tuple[x509.Certificate, Any]:
        texts = self._read("ca.key").encode(), self._read("ca.pem").encode()
        try:
            key, certificate = load_pem_private_key(texts[0], None), x509.load_pem_x509_certificate(texts[1])
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self.path}: ca.key or ca.pem can not be read: {error}") from error
        if certificate.not_valid_after_utc <= self.now:
            raise ConfigError(f"{self.path / 'ca.pem'}: the CA has expired; udptunnel pki init makes another one")
        return certificate, key

    def _read(self, name: str) -> str:
        if not (self.path / name).exists():
            raise ConfigError(f"{self.path / name} is not there; udptunnel pki init makes it in a new folder")
        return readText(str(self.path / name))

    # -- looking

    def issued(self) -> list[Issued]:
        """
        All certificates that were ever made here, oldest first.

        @raise ConfigError: there is no index, or a line of it can not be read.
        """
        lines = enumerate(self._read("index").splitlines(), 1)
        return [self._readLine(place, line) for place, line in lines if line and not line.startswith("#")]

    def _readLine(self, place: int, line: str) -> Issued:
        try:
            return Issued.parse(line)
        except ValueError as error:
            raise ConfigError(f"{self._index}: line {place} can not be read: {error}") from error

    def _issuedTo(self, name: str) -> list[Issued]:
        return [each for each in self.issued() if each.name == name and each.what != SERVER]

    def _known(self, name: str) -> list[Issued]:
        found = self._issuedTo(name)
        if not found:
            raise ConfigError(f"{name}: there is no such user; udptunnel pki list {self.path} shows all")
        return found

    # -- revoking

    def readRevoked(self) -> frozenset[str]:
        """The fingerprints of what is not valid any more."""
        return readRevoked(str(self.revoked))

    def revoke(self, name: str) -> list[Issued]:
        """
        Declare all certificates of a user to be not valid any more.

        @return: those that were until now.
        @raise ConfigError: there is no such user.
        """
        known, revoked = self._known(name), self.readRevoked()
        found = [each for each in known if each.fingerprint not in revoked]
        lines = (f"{each.fingerprint} {name} {self.now:{_TIME}}\n" for each in found)
        before = self._read("revoked")
        _write(self.revoked, before + "\n" * (not before.endswith("\n")) + "".join(lines), 0o644)
        return found


# -- certificates


def _newKey() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _hostName(host: str) -> x509.GeneralName:
    name: Any = parseServerName(host)
    return x509.IPAddress(name.ip) if hasattr(name, "ip") else x509.DNSName(name.hostname.decode())


def _commonName(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:_LONGEST_COMMON_NAME])])


def _certifyAuthority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    # Two CAs of one name would be hard to tell apart in messages.
    name = f"udptunnel CA {secrets.token_hex(4)}"
    return (
        _begin(name, _commonName(name), key, now - EARLY, now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_keyUsage("key_cert_sign", "crl_sign"), critical=True)
        .sign(key, hashes.SHA256())
    )


def _begin(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, first: datetime, last: datetime
) -> x509.CertificateBuilder:
    """What is the same in a CA's certificate and in others."""
    return x509.CertificateBuilder(
        issuer, _commonName(name), key.public_key(), x509.random_serial_number(), first, last
    ).add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _certify(
    building: x509.CertificateBuilder,
    names: Sequence[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
    authority: x509.Certificate,
) -> x509.CertificateBuilder:
    above = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above)
    return (
        building.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_keyUsage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer, critical=False)
    )


_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _keyUsage(*wanted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{each: each in wanted for each in _USAGES})


def _pem(each: Any) -> str:
    if isinstance(each, x509.Certificate):
        return each.public_bytes(Encoding.PEM).decode()
    return str(each.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


# -- files


def _write(path: Path, text: str, mode: int) -> None:
    """Write a file, in place of the old one if there is one: whoever reads it sees the one or the other, whole."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
