"""Tests for L{udptunnel.net.redaction}."""

from __future__ import annotations

from typing import Any

from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.config import Forward, LocalConfig, ServerConfig
from udptunnel.net.redaction import LEFT_OUT, Redaction, hostNames, withoutSecrets
from udptunnel.wire.address import Address

CONFIG = LocalConfig(
    server=("tcp:relay.example:3456", "tls:host=gate:443", "socks5:far.example:1:endpoint=tcp\\:near.example\\:1080"),
    via=Address("proxy.example", 1080),
    forward=(Forward(Address("127.0.0.1", 53), Address("dns.example", 53)),),
)


class TextTests(SynchronousTestCase):
    """L{Redaction.text}."""

    def assertText(self, text: str, expected: str, config: Any = ServerConfig()) -> None:  # noqa: B008
        self.assertEqual(Redaction(config).text(text), expected)

    def test_ipv4(self) -> None:
        """IPv4 addresses are left out."""
        self.assertText("no route to 192.0.2.7.", "no route to -.")
        self.assertText("192.0.2.7:53=198.51.100.1:53", "-:53=-:53")

    def test_ipv6(self) -> None:
        """So are IPv6 addresses, in brackets, with a zone, at the end of a clause, and in endpoint strings."""
        self.assertText("[2001:db8::1]:443, ::1: no", "[-]:443, -: no")
        self.assertText("fe80::1%eth0 and ::ffff:192.0.2.7", "- and -")
        self.assertText(r"tcp6:1234:interface=\:\:1 is taken", "tcp6:1234:interface=- is taken")

    def test_others(self) -> None:
        """Times, versions, hardware addresses and names of the code stay."""
        for text in (
            "at 12:34:56",
            "twistd 26.10.0",
            "v1.2.3.4.5",
            "02:00:5e:10:00:01",
            "Twisted::",
            "a::b::c",
            "::::",
        ):
            self.assertText(text, text)

    def test_names(self) -> None:
        """So are the host names of the configuration, as whole words."""
        self.assertText("relay.example, gate: far.example near.example", "-, -: - -", CONFIG)
        self.assertText("proxy.example:1080 dns.example", "-:1080 -", CONFIG)
        self.assertText("gateway my-relay.example", "gateway my-relay.example", CONFIG)

    def test_hostNames(self) -> None:
        """Numbers are no names."""
        self.assertEqual([*hostNames(ServerConfig())], [])
        self.assertEqual([*hostNames(LocalConfig(via=Address("::1", 1)))], [])


class FieldsTests(SynchronousTestCase):
    """L{Redaction.fields}."""

    def test_fields(self) -> None:
        """What a field's name or its type gives away is left out, and the rest stays."""
        fields = Redaction(CONFIG).fields(
            {"peer": "x", "user": "alice", "why": Address("a", 1), "rule": CONFIG.forward[0], "count": 3, "error": "no"}
        )
        self.assertEqual(
            {name: str(value) for name, value in fields.items() if value is not LEFT_OUT}, {"count": "3", "error": "no"}
        )

    def test_formats(self) -> None:
        """A format may ask anything of what is left out."""
        event = {"log_format": "{peer} {peer!r} {peer.host:>9} {peer[0]} {peer()}", "peer": LEFT_OUT}
        self.assertEqual(formatEvent(event), "- - - - -")


class SecretsTests(SynchronousTestCase):
    """L{withoutSecrets}."""

    def test_password(self) -> None:
        """The password of an endpoint string is left out, whatever it is made of."""
        for text in (r"user=a:password=geheim:x", r"user=a:password=ge\:he\\im:x", "user=a:password=geheim,x"):
            self.assertNotIn("im", withoutSecrets(text))
            self.assertIn("password=-", withoutSecrets(text))
        self.assertEqual(withoutSecrets("no password here"), "no password here")
