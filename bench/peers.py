"""
The peers: how each one is started, and where datagrams go in.

What belongs to the machine, such as where a program is, comes from environment
variables; ports are free ones; everything that a peer writes is in a folder
that is removed afterwards.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from bench.iperf import iperf
from bench.load import Echo, Load, Outcome, Way
from bench.places import LOOPBACK, Address, Place, Site
from bench.programs import Program
from bench.stream import StreamEcho

TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=")


def addressText(address: Address, separator: str = ":") -> str:
    """HOST:PORT."""
    return f"{address[0]}{separator}{address[1]}"


@dataclass
class Tunnel:
    """
    A peer that runs.

    @ivar ways: how datagrams get to each of the targets.
    @ivar programs: its processes.
    """

    ways: list[Way]
    programs: list[Program]

    @property
    def pids(self) -> list[int]:
        """Their numbers."""
        return [program.pid for program in self.programs]

    def checkAlive(self) -> None:
        """
        See that all of it still runs.

        @raise BenchError: something does not.
        """
        for program in self.programs:
            program.checkAlive()


class Launch:
    """
    What a peer is started with.

    @ivar place: where its ends are.
    @ivar targets: where its datagrams shall go.
    """

    def __init__(self, place: Place, targets: Sequence[Address], folder: Path, undo: ExitStack) -> None:
        self.place, self.targets, self.folder = place, targets, folder
        self.programs: list[Program] = []
        self._undo = undo

    def start(self, site: Site, *words: str) -> Program:
        """Start a program at one end; it ends with the peer."""
        log = self.folder / f"{len(self.programs)}.log"
        program = Program(site.command(*words), str(log))
        self._undo.callback(program.stop)
        self.programs.append(program)
        return program

    def way(self, to: Address, socksTarget: Address | None = None) -> Way:
        """A way in at the near end."""
        return Way(self.place.near, to, socksTarget)


class Peer:
    """
    One thing to measure.

    @cvar name: what C{--only} calls it.
    @cvar title: what the table calls it.
    @cvar text: what it is.
    @cvar needs: what must be there: programs in PATH, or environment variables with the path of one.
    @cvar cannot: measures that make no sense with it, and why; C{gso} stands for those with GSO senders.
    """

    name = ""
    title = ""
    text = ""
    needs: tuple[str, ...] = ()
    cannot: ClassVar[dict[str, str]] = {}

    def absence(self) -> str:
        """Why it is not here, or nothing."""
        for need in self.needs:
            if need.isupper() and not os.environ.get(need):
                return f"{need} is not set"
            if shutil.which(_path(need)) is None:
                return f"{_path(need)} is not there"
        return ""

    @contextmanager
    def run(self, place: Place, targets: Sequence[Address]) -> Iterator[Tunnel]:
        """Run it between a place's ends."""
        with TemporaryDirectory(prefix="bench-") as folder, ExitStack() as undo:
            launch = Launch(place, targets, Path(folder), undo)
            yield Tunnel(self.launch(launch), launch.programs)

    def launch(self, launch: Launch) -> list[Way]:
        """Start its programs, and return the ways in."""
        raise NotImplementedError

    def openEcho(self, site: Site) -> Echo | StreamEcho:
        """A target that sends back what comes this way."""
        return Echo(site)


def _path(need: str) -> str:
    return os.environ[need] if need.isupper() else need


# -- ours


class Ours(Peer):
    """Both ends of ours, with forwards."""

    name = "ours"
    title = "udptunnel"
    text = "ours: `udp-local --forward`, one link over plain TCP"
    options: tuple[str, ...] = ()

    def launch(self, launch: Launch) -> list[Way]:
        far, port = launch.place.far, launch.place.far.freePort()
        server = launch.start(far, *TWISTD, "udp-server", *self._serverWords(launch, port), *self.options)
        server.listens(port)
        entry, ways = self._entry(launch)
        local = launch.start(
            launch.place.near, *TWISTD, "udp-local", *self._toServer(launch, port), *entry, *self.options
        )
        local.says("is up")
        return ways

    def _serverWords(self, launch: Launch, port: int) -> list[str]:
        host = launch.place.far.host
        return ["--listen", self._listen(launch, port), "--insecure-no-auth", "--allow", f"{host}/32"]

    def _listen(self, launch: Launch, port: int) -> str:
        return f"tcp:{port}:interface={launch.place.far.host}"

    def _toServer(self, launch: Launch, port: int) -> list[str]:
        return ["--server", f"tcp:{launch.place.far.host}:{port}"]

    def _entry(self, launch: Launch) -> tuple[list[str], list[Way]]:
        """Options that open the way in, and that way for each target."""
        words, ways = ["--socks", "none"], []
        for target in launch.targets:
            listen = nearUdp(launch)
            words += ["--forward", f"{addressText(listen)}={addressText(target)}"]
            ways.append(launch.way(listen))
        return words, ways


class OursSocks(Ours):
    """Both ends of ours, through its SOCKS5 server."""

    name = "ours-socks5"
    title = "udptunnel, SOCKS5"
    text = "ours: UDP ASSOCIATE at `udp-local --socks`"

    def _entry(self, launch: Launch) -> tuple[list[str], list[Way]]:
        at = "127.0.0.1", launch.place.near.freePort()
        words = ["--socks", f"tcp:{at[1]}:interface={at[0]}"]
        return words, [launch.way(at, target) for target in launch.targets]


class OursTls(Ours):
    """Both ends of ours, with a link over TLS."""

    name = "ours-tls"
    title = "udptunnel, TLS"
    text = "ours: as the first, with TLS and a certificate that `udp-local` checks"

    def _listen(self, launch: Launch, port: int) -> str:
        makeCertificate(launch.folder, launch.place.far.host)
        files = f"privateKey={launch.folder}/key.pem:certKey={launch.folder}/trusted/cert.pem"
        return f"ssl:{port}:{files}:interface={launch.place.far.host}"

    def _toServer(self, launch: Launch, port: int) -> list[str]:
        return ["--server", f"tls:{launch.place.far.host}:{port}:trustRoots={launch.folder}/trusted"]


class OursPlain(Ours):
    """Both ends of ours, with one system call per datagram."""

    name = "ours-plain"
    title = "udptunnel, no offload"
    text = "ours: as the first, both ends with `--offload none`"
    options = ("--offload", "none")


def makeCertificate(folder: Path, host: str) -> None:
    """Make a key and a certificate for a numeric host: key.pem, and trusted/cert.pem."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    (folder / "trusted").mkdir()
    (folder / "trusted/cert.pem").write_bytes(certificate.public_bytes(pem))


def nearUdp(launch: Launch) -> Address:
    """A free UDP address at the near end. It is a loopback address, also where there is a namespace."""
    return "127.0.0.1", Site("127.0.0.1", launch.place.near.namespace).freePort(socket.SOCK_DGRAM)


# -- others


class OneToOne(Peer):
    """A pair of programs that serves one source and one target: for two targets there are two pairs."""

    cannot: ClassVar[dict[str, str]] = {"memory": "serves one source at a time"}

    def launch(self, launch: Launch) -> list[Way]:
        return [launch.way(self._pair(launch, target)) for target in launch.targets]

    def _pair(self, launch: Launch, target: Address) -> Address:
        link = launch.place.far.host, launch.place.far.freePort()
        launch.start(launch.place.far, *self._farWords(link, target)).listens(link[1])
        listen = nearUdp(launch)
        launch.start(launch.place.near, *self._nearWords(link, listen)).listens(listen[1], "udp")
        return listen

    def _farWords(self, link: Address, target: Address) -> list[str]:
        raise NotImplementedError

    def _nearWords(self, link: Address, listen: Address) -> list[str]:
        raise NotImplementedError


class Rfc1036(OneToOne):
    """github.com/rfc1036/udptunnel."""

    name = "rfc1036"
    title = "rfc1036/udptunnel"
    text = "Marco d'Itri's `udptunnel`, in C"
    needs = ("UDPTUNNEL_RFC1036",)

    def _farWords(self, link: Address, target: Address) -> list[str]:
        return [_path(self.needs[0]), "-s", addressText(link), addressText(target)]

    def _nearWords(self, link: Address, listen: Address) -> list[str]:
        return [_path(self.needs[0]), addressText(listen), addressText(link)]


class Mullvad(OneToOne):
    """github.com/mullvad/udp-over-tcp, with C{--nodelay} as in the service file that comes with it."""

    name = "mullvad"
    title = "Mullvad udp2tcp"
    text = "Mullvad's `udp2tcp` and `tcp2udp`, in Rust"
    needs = ("MULLVAD_UDP2TCP", "MULLVAD_TCP2UDP")

    def _farWords(self, link: Address, target: Address) -> list[str]:
        return [
            _path(self.needs[1]),
            "--nodelay",
            "--tcp-listen",
            addressText(link),
            "--udp-forward",
            addressText(target),
        ]

    def _nearWords(self, link: Address, listen: Address) -> list[str]:
        return [
            _path(self.needs[0]),
            "--nodelay",
            "--udp-listen",
            addressText(listen),
            "--tcp-forward",
            addressText(link),
        ]


class Lennox(OneToOne):
    """
    Jonathan Lennox' udptunnel, the one that Debian has.

    It binds the port that it sends to as well, on all addresses. Our sinks are
    bound to one address, which goes first.
    """

    name = "lennox"
    title = "Lennox udptunnel"
    text = "Jonathan Lennox' `udptunnel` of 1999, which Debian has, in C"
    needs = ("udptunnel",)
    cannot: ClassVar[dict[str, str]] = OneToOne.cannot | {
        "trips": "does not send answers back to where a datagram came from",
        "overload": "does not send answers back to where a datagram came from",
    }

    def absence(self) -> str:
        """Ours has a console script of the same name, so a look into it is needed."""
        return super().absence() or ("" if self._program() else "the udptunnel in PATH is another one")

    def _program(self) -> str:
        for folder in os.get_exec_path():
            found = shutil.which("udptunnel", path=folder)
            if found and b"RTP mode" in Path(found).read_bytes():
                return found
        return ""

    def _farWords(self, link: Address, target: Address) -> list[str]:
        return [self._program(), "-s", str(link[1]), addressText(target, "/")]

    def _nearWords(self, link: Address, listen: Address) -> list[str]:
        return [self._program(), "-c", addressText(link, "/"), addressText(listen, "/")]


class Hev(Peer):
    """github.com/heiher/hev-socks5-server."""

    name = "hev"
    title = "hev-socks5-server"
    text = "a SOCKS5 server with UDP ASSOCIATE, in C: one process, and no TCP on the way of a datagram"
    needs = ("HEV_SOCKS5_SERVER",)

    def launch(self, launch: Launch) -> list[Way]:
        at = launch.place.far.host, launch.place.far.freePort()
        configuration = launch.folder / "hev.yml"
        # What YAML needs is a part of what JSON has.
        main = {"workers": os.cpu_count(), "port": at[1], "listen-address": at[0], "bind-address": at[0]}
        configuration.write_text(json.dumps({"main": main | {"udp-listen-address": at[0]}}))
        launch.start(launch.place.far, _path(self.needs[0]), str(configuration)).listens(at[1])
        return [launch.way(at, target) for target in launch.targets]


class Direct(Peer):
    """No tunnel."""

    name = "direct"
    title = "no tunnel"
    text = "UDP from the source to the target: what the load generator and the kernel can do"
    cannot: ClassVar[dict[str, str]] = {
        "cpu": "there is no process between the ends",
        "memory": "there is no process between the ends",
    }

    def launch(self, launch: Launch) -> list[Way]:
        return [launch.way(target) for target in launch.targets]


# -- iperf3


class Iperf(Peer):
    """What has its own load generator, and so can only say how much goes through."""

    needs: tuple[str, ...] = ("iperf3",)
    cannot: ClassVar[dict[str, str]] = dict.fromkeys(
        ("trips", "cpu", "memory", "overload"), "has its own load generator"
    )

    def launch(self, launch: Launch) -> list[Way]:
        self._port = launch.place.far.freePort()
        launch.start(launch.place.far, "iperf3", "-s", "-p", str(self._port)).listens(self._port)
        return []

    def offer(self, load: Load) -> Outcome:
        """Send a load, and see what arrives."""
        host = LOOPBACK.far.host
        seconds = max(1, round(load.seconds))
        words = ["iperf3", "-J", "-c", host, "-p", str(self._port), "-t", str(seconds), *self._words(load)]
        return self._outcome(iperf(words, seconds)["end"], load)

    def _words(self, load: Load) -> list[str]:
        raise NotImplementedError

    def _outcome(self, end: dict[str, dict[str, float]], load: Load) -> Outcome:
        raise NotImplementedError


class IperfTcp(Iperf):
    """A TCP connection."""

    name = "iperf3-tcp"
    title = "iperf3, TCP"
    text = (
        "one TCP connection, as many bytes with each write as the load generator sends with each system call with GSO, \
or one datagram's without"
    )

    def _words(self, load: Load) -> list[str]:
        return ["-l", str(load.size * (load.batch if load.gso else 1))]

    def _outcome(self, end: dict[str, dict[str, float]], load: Load) -> Outcome:
        received, sent = end["sum_received"], end["sum_sent"]
        seconds = received["seconds"]
        # What is under way when the time is over is not lost.
        count = round(received["bytes"] / load.size)
        return Outcome(count, sent["seconds"], count, seconds)


class IperfUdp(Iperf):
    """UDP."""

    name = "iperf3-udp"
    title = "iperf3, UDP"
    text = "UDP, one system call per datagram"
    cannot: ClassVar[dict[str, str]] = Iperf.cannot | {"gso": "does not send with GSO"}

    def _words(self, load: Load) -> list[str]:
        return ["-u", "-l", str(load.size), "-b", str(round(load.rate * load.size * 8))]

    def _outcome(self, end: dict[str, dict[str, float]], load: Load) -> Outcome:
        total = end["sum"]
        sent, lost = int(total["packets"]), int(total["lost_packets"])
        return Outcome(sent, total["seconds"], sent - lost, total["seconds"])


PEERS: tuple[Peer, ...] = (
    Ours(),
    OursSocks(),
    OursTls(),
    OursPlain(),
    Rfc1036(),
    Mullvad(),
    Lennox(),
    Hev(),
    Direct(),
    IperfTcp(),
    IperfUdp(),
)
"""All peers, in the order of the table."""
