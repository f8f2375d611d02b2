"""Tests for L{udptunnel.config}."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.config import (
    FIFO,
    ROLES,
    STREAM,
    EgressPlace,
    Forward,
    Inherited,
    LocalConfig,
    PipePlace,
    ServerConfig,
    Tun2socksConfig,
    fill,
    optionName,
    readToml,
)
from udptunnel.errors import ConfigError
from udptunnel.wire.address import Address

thorough = settings(max_examples=EXAMPLES, deadline=None)

VALUES: list[tuple[type[Any], str, str, Any]] = [
    (LocalConfig, "socks", "tcp:1080", "tcp:1080"),
    (LocalConfig, "via", "127.0.0.1:1080", Address("127.0.0.1", 1080)),
    (LocalConfig, "via", "[::1]:1080", Address("::1", 1080)),
    (LocalConfig, "connectVia", "proxy.example:1080", Address("proxy.example", 1080)),
    (LocalConfig, "passwordFile", "/etc/passwords", "/etc/passwords"),
    (LocalConfig, "links", "1", 1),
    (LocalConfig, "links", "64", 64),
    (LocalConfig, "delay", "0", 0.0),
    (LocalConfig, "delay", "2.5", 2.5),
    (LocalConfig, "queueAge", "60000", 60000.0),
    (LocalConfig, "queueBytes", "65536", 65536),
    (LocalConfig, "heartbeat", "0.1", 0.1),
    (ServerConfig, "egress", "direct", EgressPlace()),
    (ServerConfig, "egress", "socks5:[::1]:1080", EgressPlace(socks=Address("::1", 1080))),
    (ServerConfig, "egress", "socks5:ss.example:1080", EgressPlace(socks=Address("ss.example", 1080))),
    (ServerConfig, "egress", "pipe:/run/a:b", EgressPlace(pipe=PipePlace("/run/a:b"))),
    (ServerConfig, "egress", "pipe-stream:exit", EgressPlace(pipe=PipePlace("exit", STREAM))),
    (ServerConfig, "egress", "pipe-fifo:/run/exit", EgressPlace(pipe=PipePlace("/run/exit", FIFO))),
    (ServerConfig, "egress", "tun2socks:[::1]:1080", EgressPlace(tun2socks=Address("::1", 1080))),
    (Tun2socksConfig, "pipe", "exit", PipePlace("exit")),
    (Tun2socksConfig, "pipe", "a:b", PipePlace("a:b")),
    (Tun2socksConfig, "pipe", "fifo:exit", PipePlace("exit", FIFO)),
    (Tun2socksConfig, "pipe", "stream:/run/exit", PipePlace("/run/exit", STREAM)),
    (ServerConfig, "maxPorts", "0", 0),
    (ServerConfig, "lookupTimeout", "60", 60.0),
]
"""Fields with a text and what it means."""

WRONG: list[tuple[type[Any], str, str]] = [
    *((LocalConfig, "links", text) for text in ("", "0", "65", "-1", "1.0", "1e1", " 1", "0x1", "9" * 99, "one")),
    *((LocalConfig, "delay", text) for text in ("", "-1", "10001", "1e3", "nan", "inf", ".5", "5.", "1,5", "5ms")),
    *((LocalConfig, "via", text) for text in ("", "1.2.3.4", "::1:1080", "host:", "host:65536", "a b:1")),
    *((LocalConfig, "heartbeat", text) for text in ("0", "0.05", "601")),
    *((LocalConfig, "queueBytes", text) for text in ("65535", "9999999999")),
    (LocalConfig, "socks", ""),
    (LocalConfig, "passwordFile", ""),
    (ServerConfig, "egress", "indirect"),
    *((ServerConfig, "egress", text) for text in ("", "socks5:", "socks5:host", "socks5:host:0", "pipe:", "direct:x")),
    *((ServerConfig, "egress", text) for text in ("pipe-fifo:", "tun2socks:", "tun2socks:host", "tun2socks:host:0")),
    *((Tun2socksConfig, "pipe", text) for text in ("", "stream:", "fifo:")),
    (ServerConfig, "maxSessions", "0"),
]
"""Fields with a text that they refuse."""


def makeToml(*lines: str, role: str = "udp-local") -> str:
    """A configuration file with one table."""
    return "\n".join((f"[{role}]", *lines))


def readLocal(*lines: str) -> LocalConfig:
    """udp-local's configuration from the lines of its table."""
    return readToml(LocalConfig, "udp-local", makeToml(*lines))


class FillTests(SynchronousTestCase):
    """L{fill}."""

    def test_defaults(self) -> None:
        """What is not given has its default; all of them are plain values that need nothing from outside."""
        self.assertEqual(fill(LocalConfig, {}), LocalConfig())
        self.assertEqual(fill(ServerConfig, {}), ServerConfig())

    def test_loopback(self) -> None:
        """Unless told otherwise, nothing listens beyond this machine."""
        self.assertIn("interface=127.0.0.1", LocalConfig().socks)
        self.assertTrue(all("interface=127.0.0.1" in listen for listen in ServerConfig().listen))
        self.assertFalse(LocalConfig().insecureNoAuth or ServerConfig().insecureNoAuth)

    def test_defaultsAreLegal(self) -> None:
        """Each default could have been given as a text: it reads as itself."""
        for kind in (LocalConfig, ServerConfig):
            for field in dataclasses.fields(kind):
                default: Any = field.default
                several = isinstance(default, tuple)
                for value in default if several else (default,):
                    if value is not None and not isinstance(value, bool):
                        text = f"{value:g}" if isinstance(value, float) else str(value)
                        filled = fill(kind, {field.name: [text] if several else text})
                        self.assertEqual(getattr(filled, field.name), (value,) if several else value)

    def test_values(self) -> None:
        """A text becomes a value of its field."""
        for kind, name, text, value in VALUES:
            self.assertEqual(getattr(fill(kind, {name: text}), name), value)

    def test_wrong(self) -> None:
        """A text that is not accepted is refused, with the option, the text and what is expected."""
        for kind, name, text in WRONG:
            error = str(self.assertRaises(ConfigError, fill, kind, {name: text}))
            self.assertTrue(error.startswith(f"--{optionName(name)} {text}: expected "), error)
            self.assertFalse(error.endswith("expected "), error)

    def test_several(self) -> None:
        """A field that may be given several times holds all of its texts, in order, instead of its defaults."""
        config = fill(ServerConfig, {"denyPort": ["1", "2"], "allow": iter(["10.0.0.0/8"])})
        self.assertEqual((config.denyPort, config.allow), ((1, 2), ("10.0.0.0/8",)))

    def test_wrongAmongSeveral(self) -> None:
        """One wrong text among several is found, and named."""
        error = self.assertRaises(ConfigError, fill, ServerConfig, {"denyPort": ["1", "70000"]})
        self.assertIn("--deny-port 70000: expected a whole number from 0 to 65535", str(error))

    def test_flag(self) -> None:
        """A flag is true or false."""
        self.assertTrue(fill(LocalConfig, {"insecureNoAuth": True}).insecureNoAuth)
        self.assertFalse(fill(LocalConfig, {"insecureNoAuth": False}).insecureNoAuth)

    def test_base(self) -> None:
        """A command line changes what a file says, and keeps the rest of it."""
        base = LocalConfig(links=5, delay=7.0)
        self.assertEqual(fill(LocalConfig, {"delay": "9"}, base), LocalConfig(links=5, delay=9.0))
        self.assertEqual(base.delay, 7.0)

    @thorough
    @given(st.data(), st.sampled_from([LocalConfig, ServerConfig]), st.text(max_size=20))
    def test_garbage(self, data: st.DataObject, kind: type[Any], text: str) -> None:
        """Any text is accepted or refused with L{ConfigError}; nothing else is raised."""
        field = data.draw(st.sampled_from([each for each in dataclasses.fields(kind) if "read" in each.metadata]))
        given = [text] if isinstance(field.default, tuple) else text
        try:
            fill(kind, {field.name: given})
        except ConfigError as error:
            self.assertIn(f"--{optionName(field.name)} ", str(error))


class ForwardTests(SynchronousTestCase):
    """The value of C{--forward}."""

    def test_text(self) -> None:
        """A forward rule has one text, and that text is the rule."""
        for text, listen, target in (
            ("127.0.0.1:5353=9.9.9.9:53", Address("127.0.0.1", 5353), Address("9.9.9.9", 53)),
            ("[::1]:0=[2001:db8::1]:53", Address("::1", 0), Address("2001:db8::1", 53)),
            ("0.0.0.0:53=dns.example:53", Address("0.0.0.0", 53), Address("dns.example", 53)),
        ):
            (rule,) = fill(LocalConfig, {"forward": [text]}).forward
            self.assertEqual(rule, Forward(listen, target))
            self.assertEqual(str(rule), text)

    def test_inherited(self) -> None:
        """Instead of an address to listen at, a socket of systemd can be named."""
        (rule,) = fill(LocalConfig, {"forward": ["systemd:dns=192.0.2.1:53"]}).forward
        self.assertEqual(rule, Forward(Inherited("dns"), Address("192.0.2.1", 53)))
        self.assertEqual(str(rule), "systemd:dns=192.0.2.1:53")

    def test_refused(self) -> None:
        """A rule that says not both ends, or a name to listen at, or no port to send to, is refused."""
        for text in (
            "",
            "=",
            "127.0.0.1:53",
            "127.0.0.1:53=",
            "=9.9.9.9:53",
            "localhost:53=9.9.9.9:53",
            "127.0.0.1:53=9.9.9.9:0",
            "127.0.0.1=9.9.9.9:53",
            "127.0.0.1:53=9.9.9.9:53=1.1.1.1:53",
            "::1:53=9.9.9.9:53",
        ):
            error = self.assertRaises(ConfigError, fill, LocalConfig, {"forward": [text]})
            self.assertIn("LISTEN=TARGET", str(error))


class OptionNameTests(SynchronousTestCase):
    """L{optionName}."""

    def test_names(self) -> None:
        """An option is its field in lower case, with hyphens."""
        for field, name in (("links", "links"), ("connectVia", "connect-via"), ("insecureNoAuth", "insecure-no-auth")):
            self.assertEqual(optionName(field), name)

    def test_unique(self) -> None:
        """No two fields of a role share an option, and each says what it is for."""
        for kind in ROLES.values():
            fields = dataclasses.fields(kind)
            self.assertEqual(len({optionName(field.name) for field in fields}), len(fields))
            self.assertTrue(all(field.metadata["text"].endswith(".") for field in fields))

    def test_sameEverywhere(self) -> None:
        """An option that both roles have means the same, and has the same default, in both."""
        server = {field.name: field for field in dataclasses.fields(ServerConfig)}
        for field in dataclasses.fields(LocalConfig):
            if field.name in server and field.name != "maxAssociations":
                self.assertEqual(field.metadata["text"], server[field.name].metadata["text"])
                self.assertEqual(field.default, server[field.name].default)


class TomlTests(SynchronousTestCase):
    """L{readToml}."""

    def test_read(self) -> None:
        """The keys of a table are the names of options; values may be texts or numbers."""
        config = readLocal(
            'socks = "none"',
            'server = ["tcp:a:1", "tcp:b:2"]',
            'forward = ["127.0.0.1:53=9.9.9.9:53"]',
            'via = "127.0.0.1:1080"',
            "max-associations = 100",
            "delay = 12.5",
            'queue-age = "150"',
            "insecure-no-auth = true",
        )
        expected = LocalConfig(
            socks="none",
            server=("tcp:a:1", "tcp:b:2"),
            forward=(Forward(Address("127.0.0.1", 53), Address("9.9.9.9", 53)),),
            via=Address("127.0.0.1", 1080),
            maxAssociations=100,
            delay=12.5,
            queueAge=150.0,
            insecureNoAuth=True,
        )
        self.assertEqual(config, expected)

    def test_empty(self) -> None:
        """An empty table means the defaults."""
        self.assertEqual(readLocal(), LocalConfig())

    def test_oneOfSeveral(self) -> None:
        """A single value will do where a list may stand."""
        self.assertEqual(readLocal('server = "tcp:a:1"').server, ("tcp:a:1",))
        config = readToml(ServerConfig, "udp-server", makeToml("deny-port = 53", "allow = []", role="udp-server"))
        self.assertEqual((config.denyPort, config.allow), ((53,), ()))

    def test_otherTables(self) -> None:
        """Other roles may stand in the same file."""
        text = makeToml("lookups = 1", role="udp-server") + "\n" + makeToml("links = 3")
        self.assertEqual(readToml(LocalConfig, "udp-local", text), LocalConfig(links=3))

    def test_noTable(self) -> None:
        """A file without the role's table is refused, and so is something else of that name."""
        for text in ("", "links = 1", "udp-local = 3", "[[udp-local]]", makeToml("lookups = 1", role="udp-server")):
            error = self.assertRaises(ConfigError, readToml, LocalConfig, "udp-local", text)
            self.assertIn("[udp-local]", str(error))

    def test_noToml(self) -> None:
        """A file that is no TOML is refused, with the line."""
        error = self.assertRaises(ConfigError, readLocal, "links = 1", "links", "delay = 1")
        self.assertIn("line 3", str(error))

    def test_unknownKey(self) -> None:
        """A misspelt key is refused with its line, and the right ones are named."""
        error = str(self.assertRaises(ConfigError, readLocal, "links = 1", "", "# comment", "dealy = 1"))
        self.assertTrue(error.startswith("line 5: unknown key dealy; known are "), error)
        self.assertIn(" delay,", error)

    def test_fieldNames(self) -> None:
        """Keys are the names of options, not of Python's fields."""
        self.assertRaises(ConfigError, readLocal, "queueAge = 100")

    def test_wrongValue(self) -> None:
        """A wrong value is refused with its line, its option and what is expected."""
        error = str(self.assertRaises(ConfigError, readLocal, 'socks = "none"', "links = 65"))
        self.assertEqual(error, "line 3: --links 65: expected a whole number from 1 to 64")

    def test_wrongType(self) -> None:
        """A value of a type that makes no sense is refused with its line."""
        for line, expected in (
            ("links = true", "a text or a number"),
            ("links = [1]", "a text or a number"),
            ("links = {a = 1}", "a text or a number"),
            ("links = 1.0", "a whole number"),
            ("links.a = 1", "a text or a number"),
            ("delay = inf", "a number"),
            ("via = 1979-05-27", "HOST:PORT"),
            ("insecure-no-auth = 1", "true or false"),
            ('insecure-no-auth = "yes"', "true or false"),
            ("insecure-no-auth = [true]", "true or false"),
            ("server = true", "a list"),
            ("server = {a = 1}", "a list"),
        ):
            error = str(self.assertRaises(ConfigError, readLocal, "queue-age = 100", line))
            self.assertTrue(error.startswith("line 3: --"), error)
            self.assertIn(f"expected {expected}", error)

    def test_lineOfItsTable(self) -> None:
        """The line is that of the role's own table, though another has the same key, however it is written."""
        other = makeToml("heartbeat = 1", role="udp-server")
        for head in ("[udp-local]", '["udp-local"]', "['udp-local']", "[ udp-local ]", "[udp-local] # mine"):
            for key in ("heartbeat", '"heartbeat"', "  heartbeat"):
                text = f"{other}\n\n{head}\n{key} = 0\n"
                error = self.assertRaises(ConfigError, readToml, LocalConfig, "udp-local", text)
                self.assertTrue(str(error).startswith("line 5: "), (str(error), text))

    def test_cutShort(self) -> None:
        """Wherever a file ends, it is read or refused with L{ConfigError}."""
        text = makeToml('socks = "none"', 'server = ["tcp:a:1", "tcp:b:2"]', "delay = 12.5", "insecure-no-auth = true")
        for kept in range(len(text)):
            try:
                readToml(LocalConfig, "udp-local", text[:kept])
            except ConfigError:
                continue

    @thorough
    @given(
        st.text(max_size=40)
        | st.lists(
            st.tuples(
                st.sampled_from([optionName(field.name) for field in dataclasses.fields(LocalConfig)] + ["", "x"]),
                st.sampled_from(
                    ['"a"', "1", "-1", "1.5", "nan", "true", "[]", "[[1]]", "[true, 1]", "{}", "00:00:00", ""]
                ),
            ),
            max_size=4,
        ).map(lambda pairs: "\n".join(f"{key} = {value}" for key, value in pairs))
    )
    def test_garbage(self, garbage: str) -> None:
        """Any text is read or refused with L{ConfigError}; nothing else is raised."""
        for text in (garbage, makeToml(garbage)):
            try:
                readToml(LocalConfig, "udp-local", text)
            except ConfigError as error:
                self.assertTrue(str(error))

    def test_extremes(self) -> None:
        """Even a file made to break the reader is refused with L{ConfigError}."""
        for line in ("links = " + "9" * 5000, "links = " + "[" * 5000):
            self.assertRaises(ConfigError, readLocal, line)
