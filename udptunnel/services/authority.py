"""
Who may use udp-server, and how they show who they are.

There are three ways: a certificate of our own CA (mutual TLS); a secret,
proven inside TLS; a secret alone, for links that run inside something that is
encrypted already. Everything comes from files, which are read again on demand.
"""

from __future__ import annotations

import hmac
import os
import time
from typing import Any, NamedTuple

from twisted.logger import Logger

from udptunnel.config import ServerConfig
from udptunnel.core.login import NO_BINDING, SECRET_BYTES, Challenge, Secrets
from udptunnel.errors import ConfigError, RefusedError
from udptunnel.net import tls
from udptunnel.services.listening import ADVICE
from udptunnel.wire.greeting import NONCE_BYTES

PLAIN_ADVICE = (
    "nothing encrypts the links: listen at 127.0.0.1 or [::1], give a certificate with --tls, or say --insecure-plain"
)

OTHERS_MAY_READ = 0o004

_log = Logger()

WARNING_DAYS = 14
"""So long before a certificate's end we begin to warn."""


class Visitor(NamedTuple):
    """
    Who is at the other end of a connection, as far as the connection tells.

    @ivar user: the name in the certificate.
    @ivar fingerprint: the certificate's, as 64 hexadecimal digits.
    @ivar authorities: those of the CAs that it comes from.
    """

    user: str = ""
    fingerprint: str = ""
    authorities: frozenset[str] = frozenset()


class Authority:
    """
    The users of one udp-server.

    @ivar tls: makes the TLS of links; C{None} if they are plain.
    @ivar secrets: the users and their secrets; C{None} if nobody is asked for one.
    """

    _log = Logger()

    def __init__(self, config: ServerConfig) -> None:
        """
        @raise ConfigError: a file can not be used; the text names it.
        """
        self._config = config
        self._dummy = os.urandom(SECRET_BYTES)
        self.secrets = self._readSecrets(config)
        self._revoked = _readRevoked(config)
        identity = tls.readIdentity(config.tls) if config.tls is not None else None
        warnOfEnd(identity, self._log)
        self._asksForCertificates = identity is not None and bool(identity.authorities) and self.secrets is None
        self.tls = tls.ServerTls(identity, self._asksForCertificates) if identity is not None else None
        self._authorities = _authoritiesOf(identity)

    def reload(self, config: ServerConfig) -> None:
        """
        Read all files again.

        @raise ConfigError: one can not be used, or another way to log in is wanted, which needs a new start; all stays
            as it was.
        """
        secrets, revoked = self._readSecrets(config), _readRevoked(config)
        if (config.tls is None) != (self.tls is None) or (secrets is None) != (self.secrets is None):
            raise ConfigError("--tls and --secrets can not be added or left out while udp-server runs")
        if self.tls is not None and config.tls is not None:
            identity = tls.readIdentity(config.tls)
            self.tls.replace(identity)
            self._authorities = _authoritiesOf(identity)
            warnOfEnd(identity, self._log)
        self._config, self.secrets, self._revoked = config, secrets, revoked

    def _readSecrets(self, config: ServerConfig) -> Secrets | None:
        return None if config.secrets is None else readSecrets("secrets", config.secrets, self._dummy)

    # -- whether to listen at all

    @property
    def mayListenAnywhere(self) -> bool:
        """Whether the door may be open to other machines."""
        sealed = self.tls is not None or self._config.insecurePlain
        return self._config.insecureNoAuth or self._asksForCertificates or (self.secrets is not None and sealed)

    @property
    def advice(self) -> str:
        """What to do if it may not."""
        return ADVICE if self.secrets is None else PLAIN_ADVICE

    # -- logging in

    def greet(self, transport: Any) -> Visitor:
        """
        Who is at the other end of a connection whose HELLO has come.

        @raise LoginError: it speaks something else inside TLS.
        @raise RefusedError: its certificate is not valid any more, or names nobody.
        """
        if self.tls is None:
            return Visitor()
        tls.checkProtocol(transport)
        if not self._asksForCertificates:
            return Visitor()
        visitor = Visitor(tls.userOf(transport) or "", tls.fingerprintOf(transport) or "", tls.authoritiesOf(transport))
        if not visitor.user or not self.welcomes(visitor):
            raise RefusedError("this certificate is not valid here, or not any more")
        return visitor

    def challenge(self, transport: Any, user: str, hello: bytes) -> Challenge | None:
        """
        What a user has to prove; C{None} if there is no need.

        @raise RefusedError: nobody says who he is.
        """
        if self.secrets is None:
            return None
        if not user:
            raise RefusedError("users prove a secret here: udp-local needs --secret")
        binding = NO_BINDING if self.tls is None else tls.exporterOf(transport)
        return Challenge(self.secrets.of(user), binding, os.urandom(NONCE_BYTES), hello, user in self.secrets)

    def welcomes(self, visitor: Visitor, secret: bytes = b"") -> bool:
        """
        Whether somebody who has logged in may stay.

        @param secret: the one that was proven then.
        """
        if visitor.fingerprint in self._revoked:
            return False
        if self._asksForCertificates and not visitor.authorities & self._authorities:
            return False
        return self.secrets is None or (
            visitor.user in self.secrets and hmac.compare_digest(self.secrets.of(visitor.user), secret)
        )


def _authoritiesOf(identity: tls.Identity | None) -> frozenset[str]:
    return frozenset(map(tls.fingerprint, identity.authorities)) if identity is not None else frozenset()


def warnOfEnd(identity: tls.Identity | None, log: Logger) -> None:
    """Say so if our own certificate has expired or soon will."""
    if identity is None:
        return
    days = tls.daysLeft(identity, time.time())
    if days < WARNING_DAYS:
        log.warn("{file}: the certificate is valid for {days} more days: renew it", file=identity.path, days=days)


def readSecrets(option: str, name: str, dummy: bytes = b"") -> Secrets:
    """
    The lines user:secret of a file.

    @param option: which option names the file.
    @raise ConfigError: it can not be read, or a line is something else.
    """
    try:
        with open(name, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & OTHERS_MAY_READ:
                _log.warn("--{option} {file}: others may read it; chmod 600 keeps them out", option=option, file=name)
            return Secrets.parse(file.read(), dummy)
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"--{option} {name}: {getattr(error, 'strerror', None) or error}") from error


def _readRevoked(config: ServerConfig) -> frozenset[str]:
    return frozenset() if config.revoked is None else tls.readRevoked(config.revoked)
