"""Which targets are reached: the table of the access rules, with real processes and a kernel that counts."""

from __future__ import annotations

import ipaddress
import json
import re
import signal
from collections.abc import Iterable

from tests.core.acl_matrix import CASES, DENIED_IPV4, DENIED_IPV6, NAMES, NO_LITERALS, PORTS, Case
from tests.system.clients import Echo, SocksClient, exchange, open_
from tests.system.namespaces import Network, run
from tests.system.programs import Program, SystemTestCase, until

LOOPBACK = "127.0.0.1"
PUBLIC, ANYTHING = "8.8.4.4", "8.8.4.5"
NAME_SERVER = "9.9.9.9"

LITERAL, TEXT, NAME, FORWARD, FORWARD_NAME = 4001, 4002, 4003, 4004, 4005
"""Target ports, one for each way in, so that each must show what it does."""

WAYS = LITERAL, TEXT, NAME, FORWARD, FORWARD_NAME
FIRST_FORWARD = 10_000

ON_THE_SERVER = "10.0.0.1", "100.64.0.1", "169.254.169.254", "192.168.7.1", "fd00::1", "fd00:ec2::254"
"""Forbidden addresses that are the server's own, so that whatever gets past the rules arrives."""

OWN = "45.0.0.1", "45.0.0.255", "2620:45::1", "64:ff9b::2d00:1", "2002:2d00:1::"
"""Addresses that look public but are the server's, a broadcast address of its, and others that carry one."""

WATCH = """
table inet watch {
    set seen4 { type ipv4_addr . inet_service; flags dynamic; size 65535; }
    set seen6 { type ipv6_addr . inet_service; flags dynamic; size 65535; }
    chain out {
        type filter hook output priority 0;
        meta nfproto ipv4 meta l4proto udp update @seen4 { ip daddr . udp dport }
        meta nfproto ipv6 meta l4proto udp update @seen6 { ip6 daddr . udp dport }
    }
}
"""


def isPlain(case: Case) -> bool:
    """Whether a case needs no rules but the built-in ones."""
    return case == Case(case.host, case.expected, port=case.port) and 0 <= case.port <= 65535


def isLiteral(host: str) -> bool:
    """Whether a host is a numeric address without a zone."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host


def onTheWire(host: str) -> str:
    """The address that the kernel sends to."""
    address = ipaddress.ip_address(host)
    return str(getattr(address, "ipv4_mapped", None) or address)


PLAIN = list({case.host: case for case in CASES if isPlain(case) and case not in PORTS}.values())
HOSTS = [case for case in PLAIN if isLiteral(case.host)]
REACHED = {onTheWire(case.host) for case in HOSTS if case.expected} | {PUBLIC}
PLAIN_PORTS = [case for case in PORTS if case.deniedPorts == PLAIN[0].deniedPorts and 0 <= case.port <= 65535]

NAMED = {
    f"n{number}.matrix.test": (host,)
    for number, host in enumerate([*DENIED_IPV4, *(host for host in DENIED_IPV6 if isLiteral(host)), *OWN])
}
MIXED = {
    "mixed4.matrix.test": (PUBLIC, "10.0.0.1"),
    "mixed6.matrix.test": (PUBLIC, "fd00::1"),
    "mixed.matrix.test": ("169.254.169.254", "2001:4860:4860::8844"),
}
"""Names that also lead where everybody may go."""

ALLOWED = {"allowed.matrix.test": (PUBLIC,)}


class AccessTestCase(SystemTestCase):
    """A server from which everything is routed to the target, and a list of where its datagrams go."""

    programs = "nft", "dnsmasq"

    def setUp(self) -> None:
        super().setUp()
        server, target = self.network.server, self.network.target
        self.route()
        server.useNameServer(NAME_SERVER)
        run(*server.command("nft", "-f", "-"), text=WATCH)
        self.echo = Echo(target, *((PUBLIC, port) for port in WAYS))
        self.addCleanup(self.echo.close)
        self.listener = Echo(server, *(("::", port) for port in WAYS))
        self.addCleanup(self.listener.close)

    def route(self) -> None:
        server, target = self.network.server, self.network.target
        for host in (PUBLIC, NAME_SERVER):
            target.addAddress(f"{host}/32")
        for host in ON_THE_SERVER:
            server.addAddress(f"{host}/{128 if ':' in host else 32}")
        for address in ("45.0.0.1/24", "2620:45::1/64", "fe80::1/64"):
            server.addAddress(address, "up0")
        for gateway in Network.atTarget:
            server.ip("route", "add", "default", "via", gateway)

    def seen(self) -> set[tuple[str, int]]:
        """Addresses and ports that datagrams have left the server's programs for, through any interface."""
        elements = []
        for name in ("seen4", "seen6"):
            text = run(*self.network.server.command("nft", "-j", "list", "set", "inet", "watch", name))
            elements += json.loads(text)["nftables"][1]["set"].get("elem", [])
        return {(str(ipaddress.ip_address(host)), port) for host, port in (each["concat"] for each in elements)}

    def reached(self, port: int) -> set[str]:
        """The addresses among them that a port was sent to."""
        return {host for host, each in self.seen() if each == port}

    def assertReached(self, port: int, hosts: set[str]) -> None:
        """Exactly these hosts have been sent to."""
        until(lambda: self.reached(port) >= hosts, f"not reached: {sorted(hosts - self.reached(port))}")
        self.assertEqual(self.reached(port), hosts)

    def startNameServer(self, *options: str) -> Program:
        words = f"--listen-address={NAME_SERVER}", "--bind-interfaces", "--no-resolv", "--no-hosts", "--user=root"
        records = [
            f"--host-record={name},{host}" for name, hosts in (NAMED | MIXED | ALLOWED).items() for host in hosts
        ]
        logged = "--conf-file=/dev/null", "--log-queries", "--log-facility=-"
        words = *words, *logged, *records, *options
        return self.start(self.network.target, "dnsmasq", "--no-daemon", *words).listens(53, "udp")

    def associate(self) -> SocksClient:
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        return client

    def settle(self, client: SocksClient, port: int) -> None:
        """Wait until all that was sent before has been dealt with; what is allowed gets through."""
        for _ in range(2):
            self.assertEqual(client.exchange((PUBLIC, port), b"!"), ((PUBLIC, port), b"!"))

    def assertNothingArrived(self) -> None:
        """The forbidden listeners have received nothing, although they would have."""
        self.assertEqual(self.listener.received, [])
        for host in (LOOPBACK, "::1", *ON_THE_SERVER):
            with open_(self.network.server, host) as udp:
                self.assertEqual(exchange(udp, (host, LITERAL), b"canary"), b"canary")


class MatrixTests(AccessTestCase):
    """With no rules but those that are built in."""

    def test_literals(self) -> None:
        """Literals in SOCKS5 headers are reached exactly if the table says so, whatever their type says they are."""
        self.startServer(rules=False)
        self.startLocal().says("is up")
        client = self.associate()
        for case in (*HOSTS, *(Case(host, False) for host in OWN)):
            client.send((case.host, LITERAL), b"")
        for case in PLAIN_PORTS:
            client.send((case.host, case.port), b"")
        self.settle(client, LITERAL)
        self.assertReached(LITERAL, REACHED)
        ports = {port for host, port in self.seen() if host == "8.8.8.8"} - {LITERAL}
        self.assertEqual(ports, {case.port for case in PLAIN_PORTS if case.expected})
        self.assertNothingArrived()

    def test_texts(self) -> None:
        """
        A literal that comes as a name is judged as a literal, and what a C
        library would read as a number is not even asked for, although the name
        server knows an address for everything.
        """
        names = self.startNameServer(f"--address=/#/{ANYTHING}")
        self.startServer("--lookups", "1024", rules=False)
        self.startLocal().says("is up")
        self.settle(self.sendTexts([*(case.host for case in PLAIN), *OWN]), TEXT)
        # A single association has few names looked up at a time.
        for name in {*NO_LITERALS, *NAMES}:
            self.sendTexts([name])
        known = set(filter(None, NAMES.values())) - {"localhost"}
        until(lambda: known <= self.asked(names), "not all names are asked for")
        self.assertReached(TEXT, REACHED | {ANYTHING})
        refused = {name.lower().rstrip(".") for name, normal in NAMES.items() if normal is None}
        self.assertEqual(self.asked(names) & refused, set())
        self.assertNothingArrived()

    def sendTexts(self, hosts: Iterable[str]) -> SocksClient:
        """Send a datagram to each host, each as a name."""
        client = self.associate()
        for raw in map(str.encode, hosts):
            if 0 < len(raw) < 256:
                client.udp.sendto(b"\0\0\0\3" + bytes([len(raw)]) + raw + TEXT.to_bytes(2, "big"), client.relay)
        return client

    def asked(self, names: Program) -> set[str]:
        """The names that the name server was asked for."""
        return set(re.findall(r"query\[A+\] (.*) from", names.said))

    def test_names(self) -> None:
        """Names in SOCKS5 headers and in forwards lead nowhere if one of their addresses is forbidden."""
        names = self.startNameServer()
        self.startServer("--lookups", "1024", rules=False)
        every = {**NAMED, **MIXED, **ALLOWED}
        forwards = {name: FIRST_FORWARD + place for place, name in enumerate(every)}
        rules = [f"{LOOPBACK}:{port}={name}:{FORWARD_NAME}" for name, port in forwards.items()]
        self.startLocal(*(word for rule in rules for word in ("--forward", rule))).says("is up")

        for name in every:
            client = self.associate()
            client.send((name, NAME), b"")
        for name in every:
            for kind in ("A", "AAAA"):
                names.says(f"query[{kind}] {name} ")
        self.assertEqual(client.receive(), ((PUBLIC, NAME), b""))
        self.settle(client, NAME)
        self.assertReached(NAME, {PUBLIC})

        with open_(self.network.client, LOOPBACK) as udp:
            for port in forwards.values():
                udp.sendto(b"", (LOOPBACK, port))
            self.assertEqual(udp.recvfrom(100), (b"", (LOOPBACK, forwards["allowed.matrix.test"])))
        self.settle(client, FORWARD_NAME)
        self.assertReached(FORWARD_NAME, {PUBLIC})
        self.assertEqual(set(re.findall(r"reply error|NXDOMAIN", names.said)), set())
        self.assertNothingArrived()

    def test_forwards(self) -> None:
        """Targets of forwards are reached exactly if the table says so."""
        self.startServer(rules=False)
        cases = [*HOSTS, *(Case(host, False) for host in OWN), Case(PUBLIC, True)]
        self.startLocal("--config", self.forwardsFor(case.host for case in cases)).says("is up")
        with open_(self.network.client, LOOPBACK) as udp:
            for place in range(len(cases)):
                udp.sendto(b"", (LOOPBACK, FIRST_FORWARD + place))
            self.assertEqual(udp.recvfrom(100), (b"", (LOOPBACK, FIRST_FORWARD + len(cases) - 1)))
        self.settle(self.associate(), FORWARD)
        self.assertReached(FORWARD, REACHED)
        self.assertNothingArrived()

    def forwardsFor(self, hosts: Iterable[str]) -> str:
        """A configuration file with a forward to each host."""
        rules = [
            f"{LOOPBACK}:{FIRST_FORWARD + place}={f'[{host}]' if ':' in host else host}:{FORWARD}"
            for place, host in enumerate(hosts)
        ]
        file = self.folder / "forwards.toml"
        file.write_text(f"[udp-local]\nforward = {json.dumps(rules)}\n")
        return str(file)


class ReloadTests(AccessTestCase):
    """The rules of a configuration file that is read again on SIGHUP."""

    def configure(self, *allow: str) -> str:
        file = self.folder / "server.toml"
        file.write_text(f"[udp-server]\nallow = {json.dumps(allow)}\n")
        return str(file)

    def reload(self, server: Program, said: str) -> None:
        """Have the file read again, and wait until the server says something about it."""
        server.process.send_signal(signal.SIGHUP)
        server.says(said)

    def test_tightened(self) -> None:
        """
        What was allowed is refused after a reload, known targets and open
        associations included, and the whole table holds again; a bad file
        changes nothing.
        """
        server = self.startServer("--config", self.configure("0.0.0.0/0", "::/0"), rules=False)
        self.startLocal().says("is up")
        client, other = self.associate(), self.associate()
        client.send(("10.0.0.1", LITERAL), b"?")
        self.assertEqual(client.receive(), (("10.0.0.1", LITERAL), b"?"))
        self.settle(other, LITERAL)
        (self.folder / "server.toml").write_text('[udp-server]\nallow = ["10.0.0.0/33"]\n')
        self.reload(server, "10.0.0.0/33")
        client.send(("10.0.0.1", LITERAL), b"still")
        self.assertEqual(client.receive(), (("10.0.0.1", LITERAL), b"still"))
        self.configure()
        self.reload(server, "is reloaded")
        run(*self.network.server.command("nft", "-f", "-"), text="delete table inet watch\n" + WATCH)
        self.listener.received.clear()
        for case in (*HOSTS, *(Case(host, False) for host in OWN)):
            other.send((case.host, LITERAL), b"")
        client.send(("10.0.0.1", LITERAL), b"")
        self.settle(other, LITERAL)
        self.settle(client, LITERAL)
        self.assertReached(LITERAL, REACHED)
        self.assertNothingArrived()


class ExplicitTests(AccessTestCase):
    """With rules from the command line."""

    def test_rules(self) -> None:
        """The longest prefix decides, deny wins a tie, and what is allowed gets through although it is private."""
        allow = "10.0.0.0/8", "10.1.2.0/24", "169.254.169.254", "fd00::/8", "45.0.0.1"
        deny = "10.1.0.0/16", "169.254.169.254", "fd00:ec2::/32", "8.8.8.0/24"
        options = [word for rule in allow for word in ("--allow", rule)]
        options += [word for rule in deny for word in ("--deny", rule)]
        self.startServer(*options, rules=False)
        self.startLocal().says("is up")
        client = self.associate()
        allowed = "10.0.0.1", "10.1.2.3", "10.2.0.1", "fd00::1", "45.0.0.1", "8.8.9.8"
        refused = "10.1.3.1", "169.254.169.254", "fd00:ec2::254", "8.8.8.8", "100.64.0.1", LOOPBACK, "64:ff9b::a01:301"
        for host in (*refused, *allowed, *(f"::ffff:{host}" for host in refused if ":" not in host)):
            client.send((host, LITERAL), b"")
        self.assertEqual({client.receive()[0][0] for _ in range(3)}, {"10.0.0.1", "fd00::1", "45.0.0.1"})
        self.settle(client, LITERAL)
        self.assertReached(LITERAL, {*allowed, PUBLIC})
