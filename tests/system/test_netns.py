"""The stack C{netns} and C{udptunnel run} for real: private namespaces, made as root and as nobody."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import pty
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import SkipTest

from tests.system.namespaces import Network, run
from tests.system.programs import LINK, REPOSITORY, SECONDS, SystemTestCase, until
from tests.system.test_tun import ABILITIES, DEVICE, MTU, OWN, PORT, TARGETS, TunTestCase, blocks, receive, send
from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError
from udptunnel.net.namespace import REDIRECT, TRANSPARENT, Inside, Wanted
from udptunnel.net.netns import WAYS, NetnsStack
from udptunnel.net.stack import Connection
from udptunnel.net.tun import NAMES, TunOffload, TunPort
from udptunnel.net.tundevice import Interface
from udptunnel.wire.transport import Unreachable


class Gateway:
    """
    A TUN and the stack behind it; every target can be reached, and is this process.

    @ivar refusal: why no target can be reached, if none can.
    @ivar requested: connections that were asked for.
    @ivar opened: those that were accepted, with their sockets.
    @ivar largest: the length of the longest packet that came.
    """

    def __init__(self, reactor: Any, names: tuple[str, ...], ways: tuple[str, ...]) -> None:
        self.reactor = reactor
        self.counters = Counters()
        self.offload = TunOffload(names)
        addresses = (f"{OWN[0]}/24", f"{OWN[1]}/64")
        self.port = TunPort(reactor, Interface(DEVICE, addresses, MTU), self, self.offload, self.counters)
        self.port.open()
        self.stack = NetnsStack(reactor, self.port, self.offload, self, self.counters, MTU, ways=ways)
        self.requested: list[Connection] = []
        self.opened: list[tuple[Connection, socket.socket]] = []
        self.others = 0
        self.refusal: Unreachable | bool = False
        self.largest = 0

    def close(self) -> None:
        """Close everything."""
        self.port.close()
        self.stack.stop()
        for _, opened in self.opened:
            opened.close()

    def packetsReceived(self, packets: list[memoryview]) -> None:
        """They are the stack's."""
        self.largest = max(self.largest, *map(len, packets))
        self.others += len(self.stack.packetsReceived(packets, self.reactor.seconds()))

    def lost(self, why: str) -> None:
        """That does not happen here."""
        raise AssertionError(why)

    def connectionRequested(self, connection: Connection) -> None:
        """It can be reached or not."""
        self.requested.append(connection)
        if self.refusal:
            connection.refuse(self.refusal if isinstance(self.refusal, Unreachable) else None)
        else:
            connection.accept()

    def connectionMade(self, connection: Connection, opened: socket.socket) -> None:
        """It is open."""
        opened.setblocking(True)
        self.opened.append((connection, opened))

    def connectionLost(self, connection: Connection) -> None:
        """That does not happen here."""
        raise AssertionError(connection.target)


class NetnsTestCase(TunTestCase):
    """A TUN in a namespace of its own, and the stack in another one."""

    def openGateway(self, names: tuple[str, ...] = NAMES, ways: tuple[str, ...] = WAYS) -> Gateway:
        """A gateway to the targets."""
        with self.namespace.entered():
            gateway = Gateway(self.reactor, names, ways)
        # Not from inside: it must not matter where we are.
        gateway.stack.start()
        self.addCleanup(gateway.close)
        for host in TARGETS:
            self.namespace.ip("route", "add", host, "dev", DEVICE)
        return gateway

    def transfer(self, gateway: Gateway, host: str) -> None:
        """Send some megabytes there and back, and compare what comes with what was sent."""
        got = {}
        number = len(gateway.opened)

        def answer() -> None:
            while len(gateway.opened) == number:
                ready.wait(0.001)
            connection = gateway.opened[number][1]
            got["there"] = receive(connection)
            send(connection)
            connection.close()

        def ask() -> None:
            with client:
                client.connect((host, PORT))
                got["own"] = client.getsockname()[:2]
                send(client)
                got["here"] = receive(client)

        ready = threading.Event()
        client = self.connect(host)
        self.serve(threading.Thread(target=answer), threading.Thread(target=ask))
        digest = hashlib.sha256(b"".join(blocks())).digest()
        self.assertEqual((got["there"], got["here"]), (digest, digest))
        connection = gateway.opened[number][0]
        self.assertEqual((connection.source, connection.target), (got["own"], (host, PORT)))


class TransferTests(NetnsTestCase):
    """TCP through a TUN and the kernel of a private namespace."""

    def test_offload(self) -> None:
        """With all offloads, over IPv4 and IPv6: packets are far larger than the MTU."""
        gateway = self.openGateway()
        self.assertEqual(gateway.stack.way, TRANSPARENT)
        for host in TARGETS:
            gateway.largest = 0
            self.transfer(gateway, host)
            self.assertGreater(gateway.largest, 10 * MTU)
        self.assertEqual(gateway.counters.dropped, {})
        self.assertIn(str(gateway.offload), ABILITIES)

    def test_headersOnly(self) -> None:
        """With checksum offload alone packets are no larger than the MTU."""
        gateway = self.openGateway(("vnet",))
        self.transfer(gateway, TARGETS[0])
        self.assertLessEqual(gateway.largest, MTU + 10)

    def test_withoutOffload(self) -> None:
        """With none, over IPv4 and IPv6."""
        gateway = self.openGateway(())
        for host in TARGETS:
            self.transfer(gateway, host)
            self.assertLessEqual(gateway.largest, MTU + 10)

    def test_redirect(self) -> None:
        """Where the kernel has no tproxy, packets are translated by its own NAT; all else is the same."""
        gateway = self.openGateway(ways=(REDIRECT,))
        self.assertEqual(gateway.stack.way, REDIRECT)
        for host in TARGETS:
            self.transfer(gateway, host)

    def test_refused(self) -> None:
        """A refusal is one for the client, too, which is never connected."""
        gateway = self.openGateway()
        for refusal, number in ((True, errno.ECONNREFUSED), (Unreachable.HOST, errno.EHOSTUNREACH)):
            gateway.refusal = refusal
            for host in TARGETS:
                client, errors = self.connect(host), []

                def ask(client: socket.socket = client, host: str = host, errors: list[int] = errors) -> None:
                    errors.append(client.connect_ex((host, PORT)))

                self.serve(threading.Thread(target=ask))
                self.assertEqual(errors, [number])
        self.assertEqual((len(gateway.stack), gateway.opened), (0, []))

    def test_firewall(self) -> None:
        """A firewall of this machine that lets nothing new in does not concern it."""
        if shutil.which("nft") is None:
            raise SkipTest("nft is not installed")
        rules = "chain input { type filter hook input priority 0; policy drop; ct state established accept; }\n"
        run(*self.namespace.command("nft", "-f", "-"), text=f"table inet strict {{\n{rules}}}\n")
        gateway = self.openGateway()
        for host in TARGETS:
            self.transfer(gateway, host)


def children() -> set[str]:
    """The processes that this one has started, and that are still there."""
    return set(Path("/proc/thread-self/children").read_text(encoding="ascii").split())


class LifeTests(NetnsTestCase):
    """What is there, and what is left."""

    def test_nothingLeft(self) -> None:
        """When a stack stops, nothing of it is left here: no process, no descriptor."""
        others = children()
        gateway = self.openGateway()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            gateway.stack.stop()
            self.assertEqual(len(os.listdir("/proc/self/fd")), before - 3)
            self.assertLessEqual(children(), others)
            gateway.stack.start()

    def test_notInherited(self) -> None:
        """No other program gets the descriptors."""
        inside = Inside(Wanted("tun5", ("192.0.0.8/32", "100::8/128"), ways=WAYS))
        made = inside.made()
        self.addCleanup(made.close)
        inside.end()
        self.assertEqual(inside.process.returncode, 0)
        descriptors = made.tun, *(listener.fileno() for listener in made.listeners)
        self.assertEqual([os.get_inheritable(each) for each in descriptors], [False] * 3)

    def test_quiet(self) -> None:
        """Nothing comes out that is no answer: the kernel's own questions and reports stay in there."""
        inside = Inside(Wanted("tun5", ("192.0.0.8/32", "100::8/128"), headed=False, ways=WAYS))
        made = inside.made()
        self.addCleanup(made.close)
        inside.end()
        os.set_blocking(made.tun, False)
        # What asks for echo: the kernel would reply.
        os.write(made.tun, bytes.fromhex("4500001c000040004001b8cfc0000209c0000008 0800f7ff00000000"))
        self.assertRaises(BlockingIOError, os.read, made.tun, 2000)

    def test_impossible(self) -> None:
        """What the kernel does not do is an error that says what."""
        inside = Inside(Wanted("lo", ("192.0.0.8/32",)))
        try:
            self.assertIn("no network namespace of our own", str(self.assertRaises(ListenError, inside.made)))
        finally:
            inside.end()


# -- run

RUN = [sys.executable, "-c", "from udptunnel.console import main; main()", "run"]

NOBODY = 65534

COUNTING = """
import os, signal, sys, time
end = time.monotonic() + 20
def got(*_):
    global end
    end = time.monotonic() + 1
    os.write(1, b"got\\n")
signal.signal(signal.Signals[sys.argv[1]], got)
print("ready", flush=True)
while time.monotonic() < end:
    time.sleep(0.01)
sys.exit(9)
"""
"""Says when it gets a signal, and goes on for another second."""


def asNobody(words: Sequence[str]) -> list[str]:
    """
    The command line that runs another one as a user without any rights, who may open TUNs as on most machines.

    To be run in a mount namespace, as C{ip netns exec} makes one.
    """
    lines = [
        "mount -t tmpfs -o mode=755 none /mnt",
        "mknod /mnt/tun c 10 200 && chmod 666 /mnt/tun && mount --bind /mnt/tun /dev/net/tun",
    ]
    # Python may be in a folder that others can not look into.
    hidden = {path: top for path in {sys.base_prefix, sys.prefix, str(REPOSITORY)} if (top := _hiddenBy(Path(path)))}
    for number, path in enumerate(hidden):
        lines.append(f"mkdir /mnt/{number} && mount --bind {shlex.quote(path)} /mnt/{number}")
    lines += [f"mount -t tmpfs -o mode=755 none {shlex.quote(top)}" for top in set(hidden.values())]
    for number, path in enumerate(hidden):
        lines.append(f"mkdir -p {shlex.quote(path)} && mount --bind /mnt/{number} {shlex.quote(path)}")
    lines.append(f'cd / && exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "$@"')
    return ["sh", "-ec", "\n".join(lines), "sh", *words]


def _hiddenBy(path: Path) -> str:
    """The first folder above a path that others can not look into."""
    for folder in reversed(path.resolve().parents):
        if not folder.stat().st_mode & 0o001:
            return str(folder)
    return ""


class RunTestCase(SystemTestCase):
    """
    A command in the client's namespace.

    @cvar nobody: whether an unprivileged user runs it.
    """

    programs = ("setpriv", "curl", "dig", "dnsmasq", "microsocks")
    nobody = True
    socks = f"{Network.atServer[0]}:1080"

    def words(self, *words: str) -> list[str]:
        """The command line of C{udptunnel run}."""
        return self.network.client.command(*(asNobody([*RUN, *words]) if self.nobody else [*RUN, *words]))

    def runs(self, *words: str, status: int = 0, text: str = "") -> tuple[str, str]:
        """Run something, and return what was printed, and what was said of errors."""
        done = subprocess.run(
            self.words(*words), input=text, capture_output=True, text=True, timeout=30, env=self.environment()
        )
        self.assertEqual(done.returncode, status, f"{done.stdout}\n{done.stderr}")
        return done.stdout, done.stderr

    def environment(self) -> dict[str, str]:
        """Where Python finds us."""
        return os.environ | {"PYTHONPATH": str(REPOSITORY)}

    def begins(self, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        """Begin to run something."""
        process = subprocess.Popen(self.words(*words), env=self.environment(), **more)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def startSocks(self) -> None:
        """A SOCKS5 server at the server, and HTTP servers at the target."""
        host, _, port = self.socks.partition(":")
        self.start(self.network.server, "microsocks", "-i", host, "-p", port).listens(int(port))
        for place, host in enumerate(Network.atTarget):
            serve = "-m", "http.server", "-b", host, "-d", str(self.folder), str(8080 + place)
            self.start(self.network.target, sys.executable, *serve).listens(8080 + place)

    def startNames(self) -> None:
        """A name server at the target."""
        words = "-k", "--no-resolv", "--no-hosts", "--pid-file=", "-a", Network.atTarget[0], "--bind-interfaces"
        names = "--address=/example.org/192.0.2.33", "-u", "root"
        self.start(self.network.target, "dnsmasq", *words, *names).listens(53, "udp")


class NobodyTests(RunTestCase):
    """C{udptunnel run} by a user who has no rights."""

    def test_tcp(self) -> None:
        """TCP goes by way of the SOCKS5 server, over IPv4 and IPv6; a refusal is one for the command."""
        self.startSocks()
        (self.folder / "page").write_bytes(content := os.urandom(1 << 15).hex().encode())
        (self.folder / "page").chmod(0o644)
        curl = "--socks-server", self.socks, "--", "curl", "-sS", "-m", "20"
        urls = f"http://{Network.atTarget[0]}:8080/page", f"http://[{Network.atTarget[1]}]:8081/page"
        out, err = self.runs(*curl, *urls)
        self.assertEqual((out.encode() == content * 2, err), (True, ""))
        self.runs(*curl, f"http://{Network.atTarget[0]}:9/", status=7)

    def test_udp(self) -> None:
        """With --server UDP goes over a link, and names are asked for so; of TCP the log says what is missing."""
        self.startServer()
        self.startNames()
        options = "--server", f"tcp:{Network.atServer[0]}:{LINK}", "--dns", Network.atTarget[0], "--"
        self.assertEqual(self.runs(*options, "dig", "+short", "example.org"), ("192.0.2.33\n", ""))
        self.assertIn("192.0.2.33", self.runs(*options, "getent", "ahosts", "example.org")[0])
        _, err = self.runs(*options, "curl", "-sS", "http://example.org/", status=7)
        self.assertIn("no TCP to 192.0.2.33:80: --server carries datagrams only; add --socks-server", err)

    def test_fakeNames(self) -> None:
        """With --fake-dns the SOCKS5 server gets names, and finds out itself what they stand for."""
        self.startSocks()
        self.startNames()
        self.network.server.useNameServer(Network.atTarget[0])
        words = "--fake-dns", "198.18.0.0/15", "--socks-server", self.socks, "--", "getent", "ahosts", "example.org"
        self.assertIn("198.18.", self.runs(*words)[0])

    def test_onlyWayOut(self) -> None:
        """The command has no other device; it is still the same user, and has no rights in there."""
        shown = "ls /proc/sys/net/ipv4/conf; id -u; id -g; grep CapEff /proc/self/status"
        out, _ = self.runs("--", "sh", "-c", shown)
        *words, capabilities = out.split()
        self.assertEqual(words, ["all", "default", "lo", "tun0", str(NOBODY), str(NOBODY), "CapEff:"])
        self.assertEqual(int(capabilities, 16), 0)

    def test_streams(self) -> None:
        """What goes in and out of the command is untouched, descriptors of a shell included."""
        self.assertEqual(self.runs("--", "cat", text="a\0b")[0], "a\0b")
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        # Descriptors of two digits are too much for Debian's sh.
        process = self.begins("--", "bash", "-c", f"echo more >&{write}", pass_fds=(write,))
        os.close(write)
        self.assertEqual(os.read(read, 99), b"more\n")
        self.assertEqual(process.wait(SECONDS), 0)

    def test_status(self) -> None:
        """The exit status is the command's, or tells why there is none."""
        self.runs("--", "sh", "-c", "exit 7", status=7)
        self.runs("--", "sh", "-c", "kill -9 $$", status=128 + 9)
        self.assertIn("/nonexistent: No such file", self.runs("--", "/nonexistent", status=127)[1])
        self.assertIn("Permission denied", self.runs("--", "/etc/passwd", status=126)[1])

    def test_noServer(self) -> None:
        """If the link does not come up the command is not started."""
        out, err = self.runs("--server", f"tcp:{Network.atServer[0]}:{LINK}", "--", "echo", "started", status=125)
        self.assertEqual((out, err.count("\n")), ("", 1))
        self.assertIn(f"no link to tcp:{Network.atServer[0]}:{LINK}", err)

    def test_signals(self) -> None:
        """A signal to us is one to the command, which may do with it what it wants."""
        process = self.begins("--", sys.executable, "-c", COUNTING, "SIGTERM", stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            self.assertEqual(process.stdout.readline(), b"ready\n")
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.stdout.read(), b"got\n")
        self.assertEqual(process.wait(SECONDS), 9)

    def test_terminal(self) -> None:
        """What a terminal sends, the command gets once."""
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)

        def own() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        streams = {"stdin": slave, "stdout": slave, "start_new_session": True, "preexec_fn": own}
        process = self.begins("--", sys.executable, "-c", COUNTING, "SIGINT", **streams)
        os.close(slave)
        said = b""
        while b"ready" not in said:
            said += os.read(master, 99)
        os.write(master, b"\x03")
        self.assertEqual(process.wait(SECONDS), 9)
        said += os.read(master, 99)
        self.assertEqual(said.count(b"got"), 1, said)

    def test_killed(self) -> None:
        """If we are killed the command ends, too: it has no network any more."""
        process = self.begins(
            "--", "sh", "-c", "echo $$; exec sleep 60", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        with process.stdout:
            command = int(process.stdout.readline())
        process.kill()
        process.wait()
        until(lambda: not Path(f"/proc/{command}").exists(), "the command is still there")


class RootTests(RunTestCase):
    """C{udptunnel run} by root, who needs no user namespace."""

    nobody = False

    def test_udp(self) -> None:
        """UDP and names go through the tunnel."""
        self.startServer()
        self.startNames()
        options = "--server", f"tcp:{Network.atServer[0]}:{LINK}", "--dns", Network.atTarget[0], "--"
        self.assertIn("192.0.2.33", self.runs(*options, "getent", "ahosts", "example.org")[0])

    def test_onlyWayOut(self) -> None:
        """The command has no other device, and is still root."""
        out, _ = self.runs("--", "sh", "-c", "ls /proc/sys/net/ipv4/conf; id -u; readlink /proc/self/ns/user")
        self.assertEqual(out.split(), ["all", "default", "lo", "tun0", "0", os.readlink("/proc/self/ns/user")])


class ForbiddenTests(RunTestCase):
    """Where it can not work."""

    def test_device(self) -> None:
        """A user who may not open TUNs is told so."""
        words = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", *RUN, "--", "true"]
        hide = asNobody([])[2].replace("chmod 666", "chmod 600").partition("cd /")[0]
        self.words = lambda *_: self.network.client.command("sh", "-ec", f'{hide}\ncd / && exec "$@"', "sh", *words)  # type: ignore[method-assign]
        self.assertIn("this user may not open /dev/net/tun", self.runs(status=125)[1])
