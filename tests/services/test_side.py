"""Tests for L{udptunnel.services.side}, in memory; tests.test_up has it with real processes."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.services.children import ChildReactor
from udptunnel.config import LocalConfig
from udptunnel.errors import ConfigError, ListenError
from udptunnel.net.socksudp import SocksUdp
from udptunnel.net.tunentry import TunEntry
from udptunnel.services.carrier import Program
from udptunnel.services.side import LINK_SECONDS, SETTLE_SECONDS, Side, SideConfig, readSide

WHOLE = """
[tun2socks]
tundev = "tun7"
socks-server-addr = "127.0.0.1:1080"

[[carrier]]
command = ["ss-local", "-c", "ss.json"]

[udp-local]
via = "127.0.0.1:1080"

[[carrier]]
name = "second"
command = ["/usr/bin/ss-tunnel"]

[udp-server]
"""


class ReadTests(SynchronousTestCase):
    """The file."""

    def file(self, text: str) -> str:
        name = self.mktemp()
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
        return name

    def test_whole(self) -> None:
        """Roles and carriers stand in it in any order; a carrier is called as its program unless it has a name."""
        config = readSide(self.file(WHOLE))
        self.assertEqual(
            config.carriers,
            (
                Program("ss-local", ("ss-local", "-c", "ss.json"), "[[carrier]] ss-local"),
                Program("second", ("/usr/bin/ss-tunnel",), "[[carrier]] second"),
            ),
        )
        self.assertEqual(list(config.roles), ["tun2socks", "udp-local", "udp-server"])
        self.assertEqual(str(config.roles["udp-local"].via), "127.0.0.1:1080")
        self.assertEqual(config.tables, ["carrier", "tun2socks", "udp-local", "udp-server"])

    def test_wrong(self) -> None:
        """What is wrong is said in one line, with the file and the table."""
        for text, expected in (
            ("", "there is no table; known are udp-local, udp-server, tun2socks, proxy-controller, l3-tunnel, carrier"),
            ("[carrier]\ncommand = ['x']\n", "[carrier]: write [[carrier]]"),
            ("carrier = ['x']\n", "[[carrier]] number 1: expected a table"),
            ("[[carrier]]\n", "[[carrier]] number 1: command: expected a list of texts"),
            ("[[carrier]]\ncommand = 'ss-local'\n", "command: expected a list of texts"),
            ("[[carrier]]\ncommand = []\n", "command: expected a list of texts"),
            ("[[carrier]]\ncommand = ['x', 1]\n", "command: expected a list of texts"),
            ("[[carrier]]\ncommand = ['']\n", "command: expected the name of a program"),
            ("[[carrier]]\ncommand = ['x', '\\u0000']\n".replace("'", '"'), "command: expected the name of a program"),
            ("[[carrier]]\ncommand = ['x']\nname = 'a b'\n", "name a b: expected 1 to 32 letters"),
            ("[[carrier]]\ncommand = ['x']\nname = 7\n", "name 7: expected 1 to 32 letters"),
            ("[[carrier]]\ncommand = ['x']\nshell = true\n", "unknown key shell; known are command, name"),
            ("[[carrier]]\ncommand = ['x']\n" * 2, "[[carrier]] number 2: name x: another one has it"),
            ("[udp-local]\nlinks = 0\n", "[udp-local] line 2: --links 0"),
            ("[udp-lokal]\n", "unknown table [udp-lokal]"),
            ("udp-local = 1\n", "there is no table [udp-local]"),
            ("[", "Invalid"),
        ):
            name = self.file(text)
            said = str(self.assertRaises(ConfigError, readSide, name))
            self.assertTrue(said.startswith(f"{name}: "), said)
            self.assertIn(expected, said)
            self.assertNotIn("\n", said)

    def test_noFile(self) -> None:
        """A file that can not be read is named."""
        self.assertEqual(
            str(self.assertRaises(ConfigError, readSide, "/no/file")), "/no/file: No such file or directory"
        )


class FakeRole:
    """A role that remembers what is done to it."""

    plugins = ()

    def __init__(self, name: str, done: list[str], ill: str = "", refusal: str = "") -> None:
        self.name = name
        self.done = done
        self.ill = ill
        self.refusal = refusal
        self.stopping: Deferred[None] = Deferred()
        self.stopping.callback(None)

    def startService(self) -> None:
        if self.refusal:
            raise ListenError(self.refusal)
        self.done.append(f"{self.name} starts")

    async def stopService(self) -> None:
        self.done.append(f"{self.name} stops")
        await self.stopping
        self.done.append(f"{self.name} has stopped")

    def reload(self, config: Any) -> None:
        if config == "wrong":
            raise ConfigError("--allow x")
        self.done.append(f"{self.name} reads {config}")

    def drain(self, drained: Any) -> None:
        self.done.append(f"{self.name} drains")

    def illness(self) -> str:
        return self.ill

    def report(self) -> dict[str, Any]:
        return {"role": self.name, "links": 2}


TRUE = Program("true", ("true",), "[[carrier]] true")


class SideTests(SynchronousTestCase):
    """Carriers and roles together."""

    def setUp(self) -> None:
        self.reactor = ChildReactor()
        self.done: list[str] = []

    def side(self, *carriers: Program, **roles: FakeRole) -> Side:
        """Some carriers, and roles that do nothing."""
        made = Side(SideConfig(carriers), self.reactor, self.reactor.guard)
        made.roles = {name.replace("_", "-"): role for name, role in roles.items()}
        return made

    def role(self, name: str, **how: str) -> FakeRole:
        return FakeRole(name, self.done, **how)

    def settled(self, side: Side) -> Deferred[None]:
        return Deferred.fromCoroutine(side.settled())

    def wait(self, seconds: float) -> None:
        """Let time pass in small steps."""
        for _ in range(round(seconds / 0.05)):
            self.reactor.advance(0.05)

    # -- the composition

    def made(self, text: str) -> Side:
        name = self.mktemp()
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
        return Side(readSide(name), self.reactor, self.reactor.guard)

    def test_composed(self) -> None:
        """All roles are there, tun2socks last; nothing runs yet. Its datagrams go straight into udp-local's session."""
        side = self.made(WHOLE)
        self.assertEqual(list(side.roles), ["udp-server", "udp-local", "tun2socks"])
        self.assertEqual([each.program.name for each in side.carriers], ["ss-local", "second"])
        self.assertEqual((self.reactor.children, self.reactor.guard.isStarted), ([], False))
        self.assertIsInstance(side.roles["tun2socks"].udp, TunEntry)

    def test_anotherUdpServer(self) -> None:
        """If tun2socks is told of a SOCKS5 server for UDP, or there is no udp-local, datagrams go to one."""
        other = WHOLE.replace("[tun2socks]", '[tun2socks]\nudp-socks-server-addr = "127.0.0.1:1234"')
        self.assertIsInstance(self.made(other).roles["tun2socks"].udp, SocksUdp)
        alone = WHOLE.partition("[[carrier]]")[0]
        self.assertIsInstance(self.made(alone).roles["tun2socks"].udp, SocksUdp)

    def test_wrongRole(self) -> None:
        """What only turns out when a role is made is said with its table."""
        error = self.assertRaises(ConfigError, self.made, WHOLE.replace('tundev = "tun7"', ""))
        self.assertTrue(str(error).startswith("[tun2socks] no TUN"), error)

    def test_oneGuard(self) -> None:
        """One guard sees to the plugins of all roles, too; who owns it closes it."""
        side = self.made('[udp-local]\nplugin = "true"\nsocks = "none"\n[udp-server]\nplugin = "true"\n')
        for role in side.roles.values():
            self.assertIs(role._guard, self.reactor.guard)
            self.assertFalse(role._ownsGuard)

    def test_failing(self) -> None:
        """A role that can not go on ends the whole side."""
        side, why = self.made(WHOLE), list[str]()
        side.whenFailed = why.append
        side.roles["tun2socks"].whenFailed("the TUN is gone")
        self.assertEqual(why, ["the TUN is gone"])

    # -- beginning

    def test_order(self) -> None:
        """Carriers start first, then the roles; in the end the roles stop one after the other, then the carriers."""
        a, b = self.role("a"), self.role("b")
        a.stopping = Deferred()
        side = self.side(TRUE, a=a, b=b)
        side.startService()
        self.assertEqual((len(self.reactor.children), self.done), (1, ["a starts", "b starts"]))
        over = Deferred.fromCoroutine(side.stopService())
        self.assertEqual(self.done[2:], ["b stops", "b has stopped", "a stops"])
        self.assertEqual(self.reactor.child.signals, [], "a carrier has ended before the farewell")
        a.stopping.callback(None)
        self.successResultOf(over)
        self.assertFalse(self.reactor.child.isAlive)
        self.assertTrue(self.reactor.guard.isClosed)

    def test_failedStart(self) -> None:
        """If a role can not start, what was started before is stopped, and nothing else."""
        side = self.side(TRUE, a=self.role("a"), b=self.role("b", refusal="--listen x"), c=self.role("c"))
        self.assertRaises(ListenError, side.startService)
        self.successResultOf(Deferred.fromCoroutine(side.stopService()))
        self.assertEqual(self.done, ["a starts", "a stops", "a has stopped"])
        self.assertFalse(self.reactor.child.isAlive)

    def test_failedStop(self) -> None:
        """A role that fails when it stops does not keep the others from it."""
        a, b = self.role("a"), self.role("b")
        b.stopping = Deferred()
        b.stopping.errback(RuntimeError("on purpose"))
        side = self.side(a=a, b=b)
        side.startService()
        self.successResultOf(Deferred.fromCoroutine(side.stopService()))
        self.assertIn("a has stopped", self.done)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_settled(self) -> None:
        """It is up once its carriers have run for a moment, and all roles are well."""
        side = self.side(TRUE, a=self.role("a"))
        side.startService()
        settled = self.settled(side)
        self.wait(SETTLE_SECONDS - 0.1)
        self.assertNoResult(settled)
        self.wait(0.2)
        self.successResultOf(settled)
        self.assertEqual(side.hops(), [("true", "runs, process 1001"), ("a", "is up")])

    def test_settledAtOnce(self) -> None:
        """Without carriers there is nothing to wait for."""
        side = self.side(a=self.role("a"))
        side.startService()
        self.successResultOf(self.settled(side))

    def test_carrierFails(self) -> None:
        """A carrier that ends at once is why it is not up; its last words are told."""
        side = self.side(TRUE, a=self.role("a"))
        side.startService()
        settled = self.settled(side)
        self.reactor.child.says(b"bind: Address already in use\n", 2)
        self.reactor.child.exits(255)
        self.wait(0.1)
        error = self.failureResultOf(settled, ListenError).value
        expected = "[[carrier]] true has ended with exit status 255; it said: bind: Address already in use"
        self.assertEqual(str(error), expected)

    def test_otherEndIsDown(self) -> None:
        """If there is no link after a while, the side is up nevertheless: the other end may come later."""
        side = self.side(a=self.role("a", ill="no link is up"))
        side.startService()
        settled = self.settled(side)
        self.wait(LINK_SECONDS - 0.1)
        self.assertNoResult(settled)
        self.wait(0.2)
        self.successResultOf(settled)
        self.assertEqual(side.hops(), [("a", "waits: no link is up yet")])

    # -- for whoever runs it

    def test_reload(self) -> None:
        """Each role gets what its table says now; what is wrong is said with the table."""
        side = self.side(udp_server=self.role("server"), udp_local=self.role("local"))
        side.reload(SideConfig(roles={"udp-server": "new", "tun2socks": "new"}))
        self.assertEqual(self.done, ["server reads new"])
        error = self.assertRaises(ConfigError, side.reload, SideConfig(roles={"udp-local": "wrong"}))
        self.assertEqual(str(error), "[udp-local] --allow x")

    def test_drain(self) -> None:
        """Draining is udp-server's; without one there is nothing to wait for."""
        self.side(udp_server=self.role("server")).drain(self.fail)
        self.assertEqual(self.done, ["server drains"])
        over: list[bool] = []
        self.side(udp_local=self.role("local")).drain(lambda: over.append(True))
        self.assertEqual(over, [True])

    def test_report(self) -> None:
        """A report has those of the roles and the carriers, and the figures that a supervisor is told."""
        side = self.side(TRUE, udp_local=self.role("local"), tun2socks=self.role("tun"))
        side.roles["udp-local"].plugins = {}
        side.startService()
        report = side.report()
        self.assertEqual((report["links"], report["tun2socks"]["role"]), (2, "tun"))
        self.assertEqual(report["carriers"], [{"name": "true", "process": 1001, "ends": 0, "lastEnd": ""}])

    def test_settledWithPlugins(self) -> None:
        """Plugins count as carriers: one that ends at once is why it is not up."""
        config = LocalConfig(plugin="true", socks="none", server=("tcp:127.0.0.1:1",))
        side = Side(SideConfig(roles={"udp-local": config}), self.reactor, self.reactor.guard)
        side.roles["udp-local"].plugins["tcp:127.0.0.1:1"].carrier.startService()
        settled = self.settled(side)
        self.reactor.child.exits(1)
        self.wait(0.1)
        self.assertIn("--plugin true", str(self.failureResultOf(settled, ListenError).value))
