"""
The whole chain of the first document, with the programs that Debian has.

All datagrams take this way, and their answers the same one back; TCP takes the
client's ss-local instead of udp-local, and the same ss-server::

    client   TUN -> tun2socks -> udp-local -> ss-tunnel -> obfs-local
    server   obfs-server -> ss-server -> udp-server -> pipe -> tun2socks -> ss-local -> ss-server
    target   whoever is asked

"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.system.clients import LARGEST, Echo, SocksClient
from tests.system.namespaces import Network, run
from tests.system.programs import ECHO, LINK, SOCKS, TWISTD, Program, until
from tests.system.stream import pack, unpack
from tests.system.test_restart import LOOPBACK, Pulse
from tests.system.tunnelled import DEVICE, PROXY, ROUTES, WEB, Filter, TunnelledTestCase, block

TARGET, TARGET6 = Network.atTarget
CARRIER, BEYOND = 8388, 8389
"""Ports of the server's two ss-servers: the one that the client reaches, and the one after the pipe."""

TEXT, FILES = 5678, 8081
"""Ports of the target: of nc, and of a web server that has a large file."""

FAKE, ANYBODY = "198.18.0.0/15", "192.0.2.53"
"""Where fake addresses are from, and a name server that does not exist."""

SETTLED_SECONDS = 40.0
"""All ten programs have found each other by then, also on a machine that has other things to do."""

AGAIN_SECONDS = 15.0
"""
How soon flows come again, counted from when the program that was killed is started.

Five seconds are what the chain is to keep, and on an idle machine it takes one,
most of it to start Python. In the suite others may have the processors at the
same time, so that the start alone can take several.
"""

COUNT, SIZE, WINDOW, LOST_SECONDS = 5000, 1200, 64, 3.0
"""Of datagrams: how many, their bytes, how many may be under way, and after what silence these are lost."""

FILE_BYTES = 24 << 20


class _Application(socket.socket):
    """A UDP socket that goes on while nothing leads to where it sends to: the TUN comes and goes with its program."""

    def sendto(self, payload: bytes, to: tuple[str, int]) -> int:  # type: ignore[override]
        """Send, if there is a way."""
        try:
            return super().sendto(payload, to)
        except OSError:
            return 0


class ChainTestCase(TunnelledTestCase):
    """
    With all of the chain, and a target that sends everything back.

    @ivar running: the programs of the chain, by name; those of the server's second half have "exit" in it.
    """

    programs = "nft", "ss-local", "ss-server", "ss-tunnel", "obfs-local", "obfs-server", "nc", "dig", "dnsmasq", "curl"
    options: tuple[str, ...] = ()

    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo(self.network.target, *((host, ECHO) for host in Network.atTarget))
        self.addCleanup(self.echo.close)
        self.addWeb()
        tcp = f"tcp dport {CARRIER}", f"tcp dport != {CARRIER}"
        self.there = Filter(self.network.server, **_rules("down0", *tcp))
        self.back = Filter(self.network.client, **_rules("up0", *(each.replace("dport", "sport") for each in tcp)))
        # Whatever the test is, once all programs have ended.
        self.addCleanup(self.assertCarrierAlone)
        self.running: dict[str, Program] = {}
        # Who needs another one comes before it: nothing has to be started in a certain order.
        for name in self.commands():
            self.launch(name)
        self.application = self.udp(TARGET)
        until(self.answers, "no datagram comes back", SETTLED_SECONDS)
        until(self.page, "there is no TCP", SETTLED_SECONDS)

    def assertCarrierAlone(self) -> None:
        """Between client and server there was TCP of shadowsocks, and nothing else, and not one datagram."""
        for counted in (self.there, self.back):
            self.assertGreater(counted["carrier"], 0)
            self.assertEqual((counted["datagrams"], counted["others"]), (0, 0))

    # -- the chain

    def commands(self) -> dict[str, tuple[str, ...]]:
        """The command lines of all programs, from the client's application to the target."""
        secret = "-k", "secret", "-m", "aes-256-gcm", "--no-delay"
        disguised = "--plugin", "obfs-local", "--plugin-opts", "obfs=http;obfs-host=www.example.org"
        carrier = "-s", Network.atServer[0], "-p", str(CARRIER), *secret
        near = *carrier, *disguised, "-b", LOOPBACK
        beyond = "-s", LOOPBACK, "-p", str(BEYOND), *secret, "-u"
        pipe = str(self.folder / "exit.pipe")
        proxies = "--socks-server-addr", f"{LOOPBACK}:{PROXY}", "--udp-socks-server-addr", f"{LOOPBACK}:{SOCKS}"
        routes = [word for each in ROUTES for word in ("--route", each)]
        allowed = [word for each in ROUTES for word in ("--allow", each)]
        listen = "--listen", f"tcp:{LINK}:interface={LOOPBACK}", "--insecure-no-auth"
        return {
            "tun2socks": (*TWISTD, "tun2socks", "--tundev", DEVICE, *proxies, *routes, *self.options),
            "ss-local": ("ss-local", *near, "-l", str(PROXY)),
            "udp-local": (*TWISTD, "udp-local", "--server", f"tcp:{LOOPBACK}:{LINK}"),
            "ss-tunnel": ("ss-tunnel", *near, "-l", str(LINK), "-L", f"{LOOPBACK}:{LINK}"),
            "ss-server": ("ss-server", *carrier, "--plugin", "obfs-server", "--plugin-opts", "obfs=http"),
            "udp-server": (*TWISTD, "udp-server", *listen, *allowed, "--egress", f"pipe:{pipe}"),
            "exit tun2socks": (*TWISTD, "tun2socks", "--pipe", pipe, *proxies[:2], "--udp-idle", "300"),
            "exit ss-local": ("ss-local", *beyond, "-b", LOOPBACK, "-l", str(PROXY)),
            "exit ss-server": ("ss-server", *beyond),
        }

    def launch(self, name: str) -> None:
        """Start one program of the chain."""
        near = name in ("tun2socks", "ss-local", "udp-local", "ss-tunnel")
        namespace = self.network.client if near else self.network.server
        self.running[name] = self.start(namespace, *self.commands()[name])

    # -- flows

    def udp(self, host: str) -> _Application:
        """A UDP socket of the client's, for a target of this family."""
        six = ":" in host
        with self.network.client.entered():
            made = _Application(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(made.close)
        made.bind((Network.atClient[six], 0))
        made.settimeout(1)
        return made

    def answers(self) -> bool:
        """Whether a datagram comes back."""
        self.application.sendto(b"is anybody there?", (TARGET, ECHO))
        try:
            return self.application.recv(LARGEST) == b"is anybody there?"
        except TimeoutError:
            return False

    def page(self) -> bool:
        """Whether curl gets a page."""
        words = "curl", "-sS", "-m", "5", f"http://{TARGET}:{WEB}/page"
        done = subprocess.run(self.network.client.command(*words), capture_output=True, timeout=20)
        return done.stdout == b"This is /page.\n"

    def assertTalk(self, host: str, bound: str = TARGET) -> None:
        """
        What is typed into one nc is what the other one prints, both ways.

        @param host: whom the client's talks to, an address or a name.
        """
        far = self.start(self.network.target, "nc", "-u", "-l", "-n", bound, str(TEXT), stdin=subprocess.PIPE)
        far.listens(TEXT, "udp")
        near = self.start(self.network.client, "nc", "-u", host, str(TEXT), stdin=subprocess.PIPE)
        for number in range(3):
            near.write(f"question {number}\n")
            far.says(f"question {number}\n")
            far.write(f"answer {number}\n")
            near.says(f"answer {number}\n")
        far.stop()
        near.stop()


def _rules(device: str, carrier: str, others: str) -> dict[str, str]:
    kinds = {"datagrams": "meta l4proto udp", "carrier": carrier, "others": others}
    return {name: f'iifname "{device}" {rule}' for name, rule in kinds.items()}


class FlowTests(ChainTestCase):
    """What goes through it."""

    def test_text(self) -> None:
        """Two nc talk to each other over IPv4 and over IPv6; to the target the second ss-server is who asks."""
        self.assertTalk(TARGET)
        self.assertTalk(TARGET6, TARGET6)
        self.assertEqual({host for host, _ in self.echo.sources}, {Network.beforeTarget[0]})

    def test_dig(self) -> None:
        """A name server beyond the chain answers dig, over UDP and over TCP."""
        self.startNameServer(f"--host-record=www.tunnel.test,{TARGET},{TARGET6}")
        for more, address in ((("A",), TARGET), (("AAAA",), TARGET6), (("A", "+tcp"), TARGET)):
            words = "dig", f"@{TARGET}", "www.tunnel.test", *more, "+short", "+tries=3", "+time=4"
            self.assertEqual(self.ask(self.network.client, *words).split(), [address])

    def test_load(self) -> None:
        """
        Six megabytes of numbered datagrams get there and back, while curl fetches a file.

        There are as many of them under way as the chain bears, so none is lost
        for want of room. Nothing is damaged or there twice, at either end.
        """
        content = block(FILE_BYTES)
        (self.folder / "file").write_bytes(content)
        words = "-m", "http.server", str(FILES), "--bind", TARGET
        self.start(self.network.target, sys.executable, *words).listens(FILES)
        fetched = self.folder / "fetched"
        url = f"http://{TARGET}:{FILES}/file"
        curl = self.start(self.network.client, "curl", "-sS", "-m", "60", "--limit-rate", "6M", "-o", str(fetched), url)
        until(fetched.exists, "nothing is fetched")
        self.echo.received.clear()
        near = list(self.exchanged())
        far = [unpack(payload) for _, payload in self.echo.received]
        for numbers in ([head and head[0] for head in far], near):
            self.assertNotIn(None, numbers)
            self.assertEqual(len(set(numbers)), len(numbers))
            self.assertGreaterEqual(len(numbers), COUNT * 0.999)
        until(lambda: curl.process.poll() is not None, "curl does not end", 60)
        self.assertEqual(curl.said, "")
        self.assertTrue(fetched.read_bytes() == content)

    def exchanged(self) -> Iterator[int | None]:
        """Send all datagrams, never too many at once; the number of each that comes back, C{None} if damaged."""
        # One of its own: nothing that was asked while the chain came up is still on its way to it.
        udp = self.udp(TARGET)
        udp.settimeout(LOST_SECONDS)
        sent = awaited = 0
        while sent < COUNT or awaited:
            while sent < COUNT and awaited < WINDOW:
                udp.sendto(pack(sent, time.monotonic(), SIZE), (TARGET, ECHO))
                sent, awaited = sent + 1, awaited + 1
            try:
                payload = udp.recv(LARGEST)
            except TimeoutError:
                awaited = 0
                continue
            awaited -= awaited > 0
            head = unpack(payload)
            yield head and head[0]


class NameTests(ChainTestCase):
    """Names as targets."""

    options = "--fake-dns", FAKE, "--route", FAKE, "--route", "192.0.2.0/24"

    def test_names(self) -> None:
        """A name goes through the chain as a name, from programs behind the TUN and from clients of udp-local."""
        names = self.startNameServer(f"--host-record=four.tunnel.test,{TARGET}")
        self.network.client.useNameServer(ANYBODY)
        self.assertTalk("four.tunnel.test")
        self.assertIn(f"four.tunnel.test from {Network.beforeTarget[0]}", names.said)
        words = "curl", "-sS", "-m", "10", f"http://four.tunnel.test:{WEB}/page"
        self.assertEqual(self.ask(self.network.client, *words), "This is /page.\n")
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        self.assertEqual(client.exchange(("four.tunnel.test", ECHO), b"hello")[1], b"hello")


class RestartTests(ChainTestCase):
    """C{kill -9}; nothing is done to the others."""

    def test_killed(self) -> None:
        """Each program of the chain is killed under traffic, in turn; datagrams and TCP come again soon."""
        application = self.udp(TARGET)
        self.pulse = Pulse(application, (TARGET, ECHO))
        self.addCleanup(self.pulse.stop)
        for name in self.commands():
            self.assertComesAgain(name)
        for name, plugin in (("ss-tunnel", "obfs-local"), ("ss-local", "obfs-local"), ("ss-server", "obfs-server")):
            self.assertComesAgain(name, plugin)

    def assertComesAgain(self, name: str, plugin: str = "") -> None:
        """
        Flows come again when a program that was killed has been started again.

        @param plugin: which of its children to kill instead; the program ends by itself then.
        """
        program = self.running[name]
        if plugin:
            os.kill(_child(program, plugin), signal.SIGKILL)
            until(lambda: program.process.poll() is not None, f"{name} goes on without {plugin}")
        else:
            os.killpg(program.process.pid, signal.SIGKILL)
            program.process.wait()
        broken = self.isSilent if name != "ss-local" else lambda: not self.page()
        until(broken, f"nobody misses {plugin or name}")
        begin = time.monotonic()
        self.launch(name)
        what = f"although {plugin or name} is back"
        until(lambda: self.pulse.last > begin, f"no echo, {what}", AGAIN_SECONDS)
        until(self.page, f"no page, {what}", AGAIN_SECONDS)

    def isSilent(self) -> bool:
        """Whether no datagram comes back any more."""
        return time.monotonic() - self.pulse.last > 0.3


def _child(program: Program, name: str) -> int:
    """The process of a name that a program has started."""
    for number in map(int, run("ip", "netns", "pids", program.namespace.name).split()):
        try:
            if os.getpgid(number) == program.process.pid and Path(f"/proc/{number}/comm").read_text().strip() == name:
                return number
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError(f"{program.log.name} has no {name}")
