"""What docs/ and README.md say is what the code does."""

from __future__ import annotations

import ast
import dataclasses
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

import udptunnel
from tests.protocol_client import ProtocolClient
from tests.wire.packets import ECHO4, UDP4
from udptunnel.config import ROLES, ServerConfig, optionName
from udptunnel.console import checkFile
from udptunnel.core.acl import DENIED_NETWORKS, AccessRules
from udptunnel.core.counters import Counters
from udptunnel.core.l3keys import Asked, Attempt, Keys, Stamp
from udptunnel.core.l3session import L3Session
from udptunnel.core.login import NO_BINDING, Challenge, Login
from udptunnel.net.datagrams import Traffic
from udptunnel.net.offload import probe
from udptunnel.net.socks5client import addressOf
from udptunnel.services.authority import readSecrets
from udptunnel.services.demo import HEAD, EchoTarget
from udptunnel.services.server import ServerService
from udptunnel.wire import burst, frame
from udptunnel.wire.address import Address, packAddress, unpackAddress
from udptunnel.wire.greeting import (
    Greeting,
    packChallenge,
    packHello,
    packProof,
    packWelcome,
    unpackChallenge,
    unpackGreeting,
    unpackProof,
)
from udptunnel.wire.l3 import ASK, DATA, OPEN, unpackInitiation, unpackResponse

PACKAGE = Path(udptunnel.__file__).parent
ROOT = PACKAGE.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands below a heading of the second level."""
    return read(page).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class LinkTests(SynchronousTestCase):
    """Links between pages."""

    def test_relativeLinks(self) -> None:
        """A relative link leads to a file that is there, and to a heading that is in it."""
        broken = []
        for page in PAGES:
            text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
            for link in re.findall(r"\]\(([^)\s]+)\)", text):
                if re.match("[a-z]+:", link):
                    continue
                name, _, heading = link.partition("#")
                to = (page.parent / name).resolve() if name else page
                if not to.exists() or (heading and heading not in headings(to)):
                    broken.append(f"{page.relative_to(ROOT)}: {link}")
        self.assertEqual(broken, [])

    def test_everyPageIsListed(self) -> None:
        """The index links to every page."""
        index = read("docs/index.md")
        missing = [
            str(page)
            for page in (ROOT / "docs").rglob("*.md")
            if page.name != "index.md" and f"({page.relative_to(ROOT / 'docs').as_posix()})" not in index
        ]
        self.assertEqual(missing, [])

    def test_noMachinePaths(self) -> None:
        """A page names no folder of the machine that it was written on."""
        for page in PAGES:
            self.assertNotRegex(page.read_text(encoding="utf-8"), r"/(work|root|home)/", str(page))


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


# -- the protocol

SESSION = bytes(range(16))
HELLO = Greeting(SESSION, 16384, 16384)
TICKET, NONCE, ASKED, SECRET = (bytes(range(begin, begin + 32)) for begin in (32, 64, 96, 128))
WELCOME = Greeting(SESSION, 1024, 4096, lowest=0, ticket=TICKET)
AGAIN = HELLO._replace(ticket=TICKET, alone=True, idle=True)
ALICE = HELLO._replace(user="alice", nonce=NONCE)
CHALLENGE = Challenge(SECRET, NO_BINDING, ASKED, packHello(ALICE)[frame.HEADER_BYTES :], True)
PROOF = Login("alice", SECRET, NONCE, lambda: NO_BINDING).answer(CHALLENGE.hello, ASKED, CHALLENGE.proof)


@dataclasses.dataclass
class Golden:
    """What a golden frame of the page means, and how the code makes it."""

    made: bytes
    word: int
    target: int
    size: int
    meaning: Any


def _target(number: int, text: str) -> Golden:
    address = Address.parse(text)
    return Golden(frame.encode(frame.TARGET, number, 0, packAddress(address)), frame.TARGET, number, 0, address)


def _data(target: int, size: int, *datagrams: bytes) -> Golden:
    made = frame.encode(frame.DATA | 5, target, size, b"".join(datagrams))
    return Golden(made, frame.DATA | 5, target, size, list(datagrams))


GOLDEN = {
    "hello": Golden(packHello(HELLO), frame.HELLO, 1, 1, HELLO),
    "hello-again": Golden(packHello(AGAIN), frame.HELLO, 1, 1, AGAIN),
    "hello-alice": Golden(packHello(ALICE), frame.HELLO, 1, 1, ALICE),
    "welcome": Golden(packWelcome(WELCOME), frame.WELCOME, 1, 0, WELCOME),
    "welcome-back": Golden(
        packWelcome(WELCOME._replace(resumed=True)), frame.WELCOME, 1, 0, WELCOME._replace(resumed=True)
    ),
    "challenge": Golden(packChallenge(ASKED, CHALLENGE.proof), frame.CHALLENGE, 0, 0, (ASKED, CHALLENGE.proof)),
    "proof": Golden(packProof(PROOF), frame.PROOF, 0, 0, PROOF),
    "target-ipv4": _target(0, "192.0.2.1:53"),
    "target-ipv6": _target(1, "[2001:db8::1]:443"),
    "target-name": _target(2, "example.org:53"),
    "data-one": _data(0, 5, b"hello"),
    "data-burst": _data(1, 4, b"aaaa", b"bbbb", b"cc"),
    "data-empty": _data(0, 0, b""),
    "close": Golden(frame.encode(frame.CLOSE | 5), frame.CLOSE | 5, 0, 0, b""),
    "ping": Golden(frame.ping(1_000_000), frame.PING, 0, 0, 1_000_000),
    "pong": Golden(frame.pong(1_000_000, 123), frame.PONG, 0, 0, (1_000_000, 123)),
    "goaway": Golden(frame.encode(frame.GOAWAY, body=b"udp-server stops"), frame.GOAWAY, 0, 0, b"udp-server stops"),
    "skipped": Golden(frame.encode(0x80 << 24, body=b"\xab\xcd"), 0x80 << 24, 0, 0, b"\xab\xcd"),
    "refused": Golden(frame.encode(0x7F << 24, body=b"\xab\xcd"), 0x7F << 24, 0, 0, b"\xab\xcd"),
}

MEANINGS = {
    "hello": lambda target, size, body: unpackGreeting(target, size, body),
    "welcome": lambda target, size, body: unpackGreeting(target, size, body),
    "challenge": lambda target, size, body: unpackChallenge(body),
    "proof": lambda target, size, body: unpackProof(body),
    "target": lambda target, size, body: unpackAddress(body)[0],
    "data": lambda target, size, body: [bytes(each) for each in burst.split(size, body)],
    "ping": lambda target, size, body: frame.unpackPing(body),
    "pong": lambda target, size, body: frame.unpackPong(body),
}
"""How the code reads the body of a frame, by the first word of its golden name."""


def goldenBytes(language: str = "golden") -> dict[str, bytes]:
    """The frames in the C{golden} blocks of the page."""
    lines = "".join(blocks(read("docs/topics/protocol.md"), language)).splitlines()
    pairs = (re.fullmatch(r"([a-z0-9-]+): ([0-9a-f ]+?) +# .+", line) for line in lines)
    return {pair[1]: bytes.fromhex(pair[2]) for pair in pairs if pair is not None}


def kinds() -> set[str]:
    """The names of all kinds of frames in the code."""
    others = {"HEADER_BYTES", "LARGEST_BODY", "ASSOCIATIONS", "KIND", "OPTIONAL"}
    return {name for name, value in vars(frame).items() if name.isupper() and type(value) is int} - others


class ProtocolTests(SynchronousTestCase):
    """docs/topics/protocol.md against the code."""

    def test_everyKindHasGoldenBytes(self) -> None:
        """Each kind of frame stands on the page, with golden bytes."""
        named = {name.partition("-")[0].upper() for name in goldenBytes()}
        self.assertEqual(kinds() - named, set())
        self.assertEqual(set(goldenBytes()), set(GOLDEN))

    def test_made(self) -> None:
        """The code makes the golden bytes."""
        for name, raw in goldenBytes().items():
            self.assertEqual(GOLDEN[name].made.hex(), raw.hex(), name)

    def test_read(self) -> None:
        """The code reads from the golden bytes what the page says, and leaves nothing over."""
        for name, raw in goldenBytes().items():
            golden = GOLDEN[name]
            frames, used = frame.decode(memoryview(raw))
            ((word, target, size, body),) = frames
            self.assertEqual((used, word, target, size), (len(raw), golden.word, golden.target, golden.size), name)
            meaning = MEANINGS.get(name.partition("-")[0], lambda target, size, body: bytes(body))
            self.assertEqual(meaning(target, size, body), golden.meaning, name)

    def test_kindsTable(self) -> None:
        """The table of kinds gives each kind its number."""
        rows = dict(re.findall(r"^\| 0x([0-9a-f]{2}) \| ([A-Z]+) \|", read("docs/topics/protocol.md"), re.MULTILINE))
        letters = {"HELLO", "WELCOME"}
        self.assertEqual(
            {name: int(number, 16) << 24 for number, name in rows.items()},
            {name: getattr(frame, name) for name in kinds() - letters},
        )


class L3ProtocolTests(SynchronousTestCase):
    """The messages of l3-tunnel on docs/topics/protocol.md against the code."""

    def test_made(self) -> None:
        """The code makes the golden messages of the secrets that the page names, and reads them."""
        golden = goldenBytes("golden-l3")
        key, first, second = (bytes(range(start, start + 32)) for start in (0x80, 0x20, 0x40))
        attempt = Attempt(key, 5, Stamp(1_700_000_000 * 10**9, b"abcd"), lambda length: first)
        asked = Asked(key, unpackInitiation(golden["initiation"]))
        response, keys = asked.answer(9, lambda length: second)
        attempt.finish(unpackResponse(golden["response"]))
        sessions = [L3Session(5, 9, Keys(keys.receive, keys.send), True, 0.0) for _ in range(2)]
        made = {
            "initiation": attempt.message,
            "response": response,
            "data": sessions[0].seal(DATA, [ECHO4]),
            "open": sessions[0].seal(OPEN, [UDP4]),
            "here": sessions[1].seal(DATA, [b""]),
            "ask": sessions[1].seal(DATA, [ASK]),
        }
        self.assertEqual({name: raw.hex() for name, raw in made.items()}, {n: raw.hex() for n, raw in golden.items()})


class NoResolver:
    """For servers that are asked for no name."""

    def lookupAddress(self, name: str, timeout: Any = None) -> Deferred[Any]:
        raise NotImplementedError

    lookupIPV6Address = lookupAddress


class ProtocolClientTests(TestCase):
    """A client that was made from the page alone, and a real udp-server."""

    def setUp(self) -> None:
        self.traffic = Traffic(reactor, probe(), Counters())  # type: ignore[arg-type]
        self.echo = EchoTarget(self.traffic, "127.0.0.1")
        self.echo.port.startListening()
        self.addCleanup(self.echo.port.stopListening)
        self.server = ServerService(
            ServerConfig(listen=("tcp:0:interface=127.0.0.1",), allow=("127.0.0.1",), maxSessions=1),
            reactor,
            resolver=NoResolver(),
        )
        self.server.startService()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.server.stopService()))
        self.port = addressOf(self.server.listeners[0].address).port

    def test_independent(self) -> None:
        """The client uses nothing of the package, so it shows what the page alone is good for."""
        self.assertNotRegex(
            (ROOT / "tests" / "protocol_client.py").read_text(encoding="utf-8"), r"import udpt|from udpt"
        )

    def test_echo(self) -> Deferred[None]:
        """Datagrams go out one by one and as bursts, empty ones too, and come back as they were."""

        def talk() -> None:
            client = ProtocolClient("127.0.0.1", self.port)
            self.addCleanup(client.link.close)
            client.announce(3, *self.echo.port.address)
            for number, datagrams in enumerate(([b"hello"], [b"aaaa", b"bbbb", b"cc"], [b""])):
                client.ask(number, 3, datagrams)
                expected = [(number, tuple(self.echo.port.address), each) for each in datagrams]
                self.assertEqual(sorted(client.answers(len(datagrams))), sorted(expected))
            client.send(0x80 << 24, body=b"skipped")
            self.assertEqual(client.ping(), client.bytesSent)

        return deferToThread(talk)

    def test_resumed(self) -> Deferred[None]:
        """Who comes back with a ticket finds the external port; with a wrong one there is a new session."""

        def talk() -> None:
            first = ProtocolClient("127.0.0.1", self.port)
            self.assertFalse(first.resumed)
            first.ask_once(self.echo.port.address)
            first.link.close()
            again = ProtocolClient("127.0.0.1", self.port, session=first.session, ticket=first.ticket)
            self.addCleanup(again.link.close)
            self.assertEqual((again.resumed, again.session), (True, first.session))
            self.assertNotEqual(again.ticket, first.ticket)
            again.ask_once(self.echo.port.address)
            with self.assertRaisesRegex(ConnectionError, "too many sessions"):
                ProtocolClient("127.0.0.1", self.port, session=first.session, ticket=bytes(32))

        return deferToThread(talk)

    def test_secret(self) -> Deferred[None]:
        """A user proves a secret, and so does the server; neither says it."""
        name = self.mktemp()
        Path(name).write_text(f"alice:{SECRET.hex()}\n", encoding="utf-8")
        self.server.authority.secrets = readSecrets("secrets", name, bytes(32))

        def talk() -> None:
            client = ProtocolClient("127.0.0.1", self.port, "alice", SECRET)
            self.addCleanup(client.link.close)
            client.ask_once(self.echo.port.address)
            for user, secret in (("alice", bytes(32)), ("bob", SECRET)):
                with self.assertRaisesRegex(ConnectionError, "not our server"):
                    ProtocolClient("127.0.0.1", self.port, user, secret)
            with self.assertRaisesRegex(ConnectionError, "--secret"):
                ProtocolClient("127.0.0.1", self.port)

        return deferToThread(talk)

    def test_refused(self) -> Deferred[None]:
        """Who is not welcome is told why; a kind that may not be skipped ends the link."""

        def talk() -> None:
            client = ProtocolClient("127.0.0.1", self.port)
            self.addCleanup(client.link.close)
            with self.assertRaisesRegex(ConnectionError, "too many sessions"):
                ProtocolClient("127.0.0.1", self.port)
            client.send(0x7F << 24)
            with self.assertRaises(ConnectionError):
                client.ping()

        return deferToThread(talk)


# -- a datagram's way


class WayTests(SynchronousTestCase):
    """docs/topics/datagrams-way.md against the code."""

    def test_names(self) -> None:
        """Each module, class and function that a step names is there."""
        names = re.findall(r"^\|[^|]*\|([^|]*)\|", read("docs/topics/datagrams-way.md"), re.MULTILINE)
        dotted = [name for cell in names for name in re.findall(r"`([\w.]+)`", cell)]
        self.assertGreater(len(dotted), 40)
        self.assertEqual([name for name in dotted if not isThere(name)], [])


def isThere(dotted: str) -> bool:
    """Whether C{net.link.LinkProtocol.dataReceived}, for example, is a name in the package."""
    layer, module, *rest = dotted.split(".")
    if not (PACKAGE / layer / f"{module}.py").exists():
        return False
    found: Any = import_module(f"udptunnel.{layer}.{module}")
    for name in rest:
        found = getattr(found, name, None)
    return found is not None


# -- the reference


class ReferenceTests(SynchronousTestCase):
    """docs/reference against udptunnel.config, and against what the code counts."""

    def test_options(self) -> None:
        """Each option of a role stands in its table, with value, default and range, and no other does."""
        for role, kind in ROLES.items():
            page = section(f"docs/reference/{role}.md", "Options")
            rows = re.findall(r"^\| `--([\w-]+) ?(\S*)` \| ([^|]+) \| ([^|]+) \|", page, re.MULTILINE)
            written = {name: (value, default, allowed) for name, value, default, allowed in rows}
            self.assertEqual(len(rows), len(written), role)
            self.assertEqual(written.pop("config")[0], "FILE")
            self.assertEqual(written, {optionName(each.name): described(each) for each in dataclasses.fields(kind)})

    def test_dropReasons(self) -> None:
        """Each reason for which a role that counts drops something stands in its table, and no other does."""
        written: set[str] = set()
        for role in [role for role in ROLES if section(f"docs/reference/{role}.md", "Counters")]:
            rows = re.findall(r"^\| `([^`|]+)` \|", section(f"docs/reference/{role}.md", "Counters"), re.MULTILINE)
            reasons = {re.sub(" [A-Z]+$", " ", row) for row in rows}
            ports = dropReasons("net/datagrams.py") | dropReasons(QUEUES.get(role, "core/queue.py"))
            self.assertEqual(ports - reasons, set(), role)
            written |= reasons
        self.assertEqual(written - REPORTED, dropReasons("**/*.py"))

    def test_builtInDenies(self) -> None:
        """The page lists the built-in denied networks, and what it says of explicit rules holds."""
        page = read("docs/reference/udp-server.md")
        (listed,) = blocks(page, "networks")
        self.assertEqual([line.split()[0] for line in listed.splitlines()], [*DENIED_NETWORKS])
        rows = re.findall(r"^\| `(--[^|]*)` \| `([\d.]+)` \| (allowed|refused) \|", page, re.MULTILINE)
        self.assertGreater(len(rows), 4)
        for options, host, verdict in rows:
            words = options.split()
            given = {name: words[place + 1] for place, name in enumerate(words) if name.startswith("--")}
            rules = AccessRules(
                [given[k] for k in ("--allow",) if k in given], [given[k] for k in ("--deny",) if k in given]
            )
            self.assertEqual(rules.allows(Address(host, 443)), verdict == "allowed", options)

    def test_toml(self) -> None:
        """C{udptunnel check} accepts each example of a configuration file."""
        examples = [example for page in PAGES for example in blocks(page.read_text(encoding="utf-8"), "toml")]
        self.assertGreater(len(examples), 1)
        for example in examples:
            name = self.mktemp()
            example = example.replace('"passwords"', f'"{name}.passwords"')
            Path(f"{name}.passwords").write_text("user:password\n", encoding="utf-8")
            Path(name).write_text(example, encoding="utf-8")
            self.assertTrue(checkFile(name))

    def test_demo(self) -> None:
        """The demonstration's table is shown with the columns that it has."""
        self.assertIn(HEAD, read("README.md"))
        self.assertIn(HEAD, read("docs/reference/udptunnel.md"))


QUEUES = {"tun2socks": "core/waiting.py", "l3-tunnel": "core/l3way.py"}
"""What datagrams wait in, if not in that of a link."""

REFUSALS = {"_refusal", "outwardRefusal", "inwardRefusal", "_loopRefusal", "_fragmentRefusal"}
"""What says why something is dropped, by returning it."""

REPORTED = {"sent", "sentBytes", "received", "receivedBytes", "dropped"}


def described(field: dataclasses.Field[Any]) -> tuple[str, str, str]:
    """How a field's option stands in a table: value's name, default, range."""
    if isinstance(field.default, bool):
        return "", "off", "-"
    given = field.default if isinstance(field.default, tuple) else (field.default,)
    shown = [f"{each:g}" if isinstance(each, float) else str(each) for each in given if each is not None]
    default = ", ".join(f"`{each}`" for each in shown) or "-"
    try:
        field.metadata["read"]("not possible")
    except ValueError as error:
        allowed = re.search(r"from (\S+) to (\S+)", str(error))
        return field.metadata["value"], default, f"{allowed[1]} to {allowed[2]}" if allowed else "-"
    return field.metadata["value"], default, "-"


def dropReasons(files: str) -> set[str]:
    """What the code in some files gives as a reason wherever it drops something."""
    reasons: set[str] = set()
    for file in PACKAGE.glob(files):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            reasons |= _reasonsIn(node, file)
    return {re.sub(" [A-Z]+$", " ", reason) for reason in reasons if reason}


def _reasonsIn(node: ast.AST, file: Path) -> set[str]:
    if isinstance(node, ast.Call) and _nameOf(node.func) in {"drop", "_drop", "_dropFrom", "Route", "Verdict"}:
        texts = {_textOf(each, file) for each in node.args}
        return {text for text in texts if not text.isdigit()}
    if isinstance(node, ast.Assign) and _nameOf(node.targets[0]) == "missing":
        return {_textOf(node.value, file)}
    if isinstance(node, ast.FunctionDef) and node.name in REFUSALS:
        return {text for each in ast.walk(node) if isinstance(each, ast.Return) and (text := _textOf(each.value, file))}
    return set()


def _nameOf(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _textOf(node: ast.expr | None, file: Path) -> str:
    if isinstance(node, ast.JoinedStr):
        node = node.values[0]
    if isinstance(node, ast.Name) and node.id.isupper():
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        return str(getattr(import_module(module), node.id))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
