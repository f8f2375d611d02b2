"""The life of the processes: signals, clocks, their log, their supervisor."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import unittest
from datetime import datetime
from pathlib import Path
from shutil import which

from twisted.trial.unittest import SynchronousTestCase

from tests.protocol_client import GOAWAY, ProtocolClient
from tests.system.clients import Echo, open_
from tests.system.namespaces import Network, run
from tests.system.programs import ECHO, FORWARD, LINK, REPOSITORY, TWISTD, Program, SystemTestCase, until
from tests.system.test_restart import LOOPBACK, Pulse

SOON_SECONDS = 3.0
"""An end in good order comes by then."""

AT_ONCE_SECONDS = 0.4
"""An end at once comes by then; a farewell takes longer."""


class Supervisor:
    """
    The end of sd_notify(3) that systemd has.

    @ivar name: the socket's, for C{NOTIFY_SOCKET}.
    """

    def __init__(self) -> None:
        # Names without a file belong to one network namespace.
        self.name = f"/tmp/udpt-{os.getpid()}-{secrets.token_hex(4)}"
        self._told: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.name)
        self._socket.setblocking(False)

    def close(self) -> None:
        """Remove the socket."""
        self._socket.close()
        os.unlink(self.name)

    def hears(self, text: str, seconds: float = 15.0) -> str:
        """Wait until something is told, after what was heard before; all of it that was told at once."""

        def heard() -> bool:
            self._listen()
            while self._told and text not in self._told[0]:
                del self._told[0]
            return bool(self._told)

        until(heard, f"{text} is not told", seconds)
        return self._told.pop(0)

    def forget(self) -> None:
        """Hear nothing that was told before."""
        self._listen()
        self._told.clear()

    def _listen(self) -> None:
        try:
            while True:
                self._told.append(self._socket.recv(1000).decode())
        except BlockingIOError:
            return


class ProcessTestCase(SystemTestCase):
    """With datagrams that travel all the time."""

    def setUp(self) -> None:
        super().setUp()
        echo = Echo(self.network.target, (Network.atTarget[0], ECHO))
        self.addCleanup(echo.close)
        self.pulse = self.startPulse()
        self.options = "--forward", f"{LOOPBACK}:{FORWARD}={Network.atTarget[0]}:{ECHO}"

    def startPulse(self) -> Pulse:
        """Datagrams to the forward, until the end of the test."""
        udp = open_(self.network.client, LOOPBACK)
        self.addCleanup(udp.close)
        pulse = Pulse(udp, (LOOPBACK, FORWARD))
        self.addCleanup(pulse.stop)
        return pulse

    def assertBeats(self, what: str, seconds: float = 2.0) -> None:
        """Something that is sent from now on comes back soon."""
        now = time.monotonic()
        until(lambda: self.pulse.last > now, f"no echo, {what}", seconds)

    def assertEnds(self, program: Program, status: int, seconds: float) -> None:
        """A program ends with a status within a time."""
        try:
            self.assertEqual(program.process.wait(seconds), status)
        except subprocess.TimeoutExpired:
            self.fail(f"{program.log.name} has not ended after {seconds:g} s")

    def supervise(self, watchdogSeconds: float) -> Supervisor:
        """A supervisor for the programs that are started from now on."""
        supervisor = Supervisor()
        self.addCleanup(supervisor.close)
        told = {"NOTIFY_SOCKET": supervisor.name, "WATCHDOG_USEC": str(int(watchdogSeconds * 1_000_000))}
        self.patch(os, "environ", os.environ | told)
        return supervisor

    def config(self, role: str, *lines: str) -> Path:
        """A configuration file."""
        path = self.folder / f"{role}.toml"
        path.write_text("\n".join((f"[{role}]", *lines, "")))
        return path


class StopTests(ProcessTestCase):
    """SIGTERM and SIGINT."""

    def test_server(self) -> None:
        """udp-server ends with status 0, and tells its clients before."""
        for number in (signal.SIGTERM, signal.SIGINT):
            server = self.startServer()
            with self.network.client.entered():
                client = ProtocolClient(Network.atServer[0], LINK)
            self.addCleanup(client.link.close)
            server.process.send_signal(number)
            while client.receive()[0] != GOAWAY:
                pass
            self.assertEnds(server, 0, SOON_SECONDS)
            self.assertIn(f"{number.name}: stopping", server.said)

    def test_local(self) -> None:
        """So does udp-local, with or without udp-server."""
        server, local = self.startBoth(*self.options)
        local.process.terminate()
        self.assertEnds(local, 0, SOON_SECONDS)
        server.stop()
        local = self.startLocal(*self.options).says("no link")
        local.process.terminate()
        self.assertEnds(local, 0, SOON_SECONDS)

    def test_second(self) -> None:
        """A second signal ends a process at once, even one that hangs, and nothing in it goes wrong by that."""
        server, _ = self.startBoth(*self.options)
        # It handles what it was sent in the order of the numbers: first SIGINT, whose farewell takes longer.
        server.process.send_signal(signal.SIGSTOP)
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGCONT)
        self.assertEnds(server, 128 + signal.SIGTERM, AT_ONCE_SECONDS)
        self.assertIn("again: ending at once", server.said)

    def test_pidFile(self) -> None:
        """A daemon writes its number to a file of its role's name, and takes it away in the end, even at once."""
        words = *TWISTD[:-2], "--logfile", "log", "udp-server", "--listen", f"tcp:{LINK}:interface={LOOPBACK}"
        for signals in ((signal.SIGTERM,), (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT)):
            supervisor = self.supervise(0)
            self.start(self.network.server, *words).process.wait(SOON_SECONDS)
            supervisor.hears("READY=1")
            path = self.folder / "udp-server.pid"
            number = int(path.read_text())
            self.addCleanup(_killIfThere, number)
            for each in signals:
                os.kill(number, each)
            until(lambda n=number: not Path(f"/proc/{n}").exists(), "the daemon does not end", SOON_SECONDS)
            self.assertFalse(path.exists())


def _killIfThere(number: int) -> None:
    # Only what is ours: the number may be somebody else's by now.
    try:
        command = Path(f"/proc/{number}/cmdline").read_text()
    except OSError:
        return
    if "udp-server" in command:
        os.kill(number, signal.SIGKILL)


class ReloadTests(ProcessTestCase):
    """SIGHUP."""

    def test_reload(self) -> None:
        """A good file and a bad one, and none at all: each is told of in one line, and no datagram is lost by it."""
        allowed = f'allow = ["{Network.atTarget[0]}"]'
        path = self.config("udp-server", allowed)
        server = self.startServer("--config", str(path), rules=False)
        local = self.startLocal(*self.options).says("is up")
        self.assertBeats("at first")
        for text, expected in (
            (f"[udp-server]\n{allowed}\nmax-sessions = 7\n", "[udptunnel.tap.common.RoleService#info]"),
            ("[udp-server]\n\nmax-sessions = 0\n", f"{path}: line 3: --max-sessions 0: expected a whole number"),
            ("[udp-server\n", "line 1"),
            (None, f"{path}: No such file"),
        ):
            path.unlink(missing_ok=True) if text is None else path.write_text(text)
            before = server.said.count("RoleService#")
            server.process.send_signal(signal.SIGHUP)
            until(lambda n=before: server.said.count("RoleService#") == n + 1, f"nothing is said of {text!r}")
            self.assertIn(expected, server.said)
            self.assertBeats(f"after {text!r}")
        self.assertEqual(server.said.count("not reloaded, all stays as it was"), 3)
        self.assertEqual(local.said.count("is up"), 1)

    def test_local(self) -> None:
        """udp-local lives through it, too."""
        _, local = self.startBoth(*self.options)
        for times in (1, 2):
            local.process.send_signal(signal.SIGHUP)
            local.says("RoleService#info", times)
        self.assertBeats("after SIGHUP")


class ClockTests(ProcessTestCase):
    """The wall clock of both ends is set (libfaketime)."""

    def setUp(self) -> None:
        found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        if not found:
            raise unittest.SkipTest("libfaketime (Debian: faketime) is not installed")
        super().setUp()
        self.times = self.folder / "times"
        self.times.write_text("+0\n")
        environment = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self.times),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
        }
        self.patch(os, "environ", os.environ | environment)

    def test_set(self) -> None:
        """An hour back, an hour on, ten years on: no link is lost, datagrams go on, and so do timers."""
        heart = "--heartbeat", "0.3"
        supervisors = [self.supervise(0.4)]
        self.startServer(*heart)
        supervisors.append(self.supervise(0.4))
        local = self.startLocal(*self.options, *heart).says("is up")
        for offset, seconds in (("-1h", -3600), ("+1h", 3600), ("+10y", 10 * 365 * 86400)):
            self.times.write_text(f"{offset}\n")
            self.assertBeats(f"with the clock at {offset}")
            for each in supervisors:
                each.forget()
                each.hears("WATCHDOG=1", 2)
                each.hears("WATCHDOG=1", 2)
            # Heartbeats are sent while nothing else is. A link that has no answer to three of them is lost.
            self.pulse.stop()
            time.sleep(5 * 0.3)
            self.pulse = self.startPulse()
            self.assertBeats(f"after some heartbeats at {offset}")
            local.process.send_signal(signal.SIGHUP)
            until(lambda s=seconds: abs(_lastTime(local) - time.time() - s) < 60, f"the clock is not at {offset}")
        self.assertEqual((local.said.count("is up"), local.said.count("link lost")), (1, 0))


def _lastTime(program: Program) -> float:
    """The time of a program's last line."""
    stamp = program.said.splitlines()[-1].partition(" ")[0]
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S%z").timestamp()


class SuspendTests(ProcessTestCase):
    """Both ends are stopped for a while, as in a machine that sleeps."""

    alone = True

    def test_suspend(self) -> None:
        """Afterwards there is one new link at most, and datagrams go at once."""
        heart = "--heartbeat", "0.3"
        server = self.startServer(*heart)
        local = self.startLocal(*self.options, *heart).says("is up")
        self.assertBeats("at first")
        both = server.process, local.process
        for each in both:
            each.send_signal(signal.SIGSTOP)
        time.sleep(3)
        for each in both:
            each.send_signal(signal.SIGCONT)
        self.assertBeats("after it")
        until(lambda: self.pulse.last > time.monotonic() - 0.1, "echoes stop again")
        self.assertLessEqual(local.said.count("is up"), 2)
        self.assertLessEqual(server.said.count(" begins"), 2)
        self.assertEqual(local.said.count("no link"), 0)


class LogTests(ProcessTestCase):
    """What becomes of the log does not become of the relay."""

    def chatter(self, program: Program, times: int = 30) -> None:
        """Have a role write lines, one each time."""
        for _ in range(times):
            program.process.send_signal(signal.SIGHUP)
            self.assertBeats("while its log is gone")

    def test_full(self) -> None:
        """A log on a full disk costs lines; datagrams go on, and so do lines when there is room again."""
        place = self.folder / "small"
        place.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place))
        self.addCleanup(run, "umount", "--lazy", str(place))
        log = place / "log"
        words = *TWISTD, "--logfile", str(log), "udp-local", "--server", f"tcp:{Network.atServer[0]}:{LINK}"
        self.startServer()
        local = self.start(self.network.client, *words, *self.options)
        until(lambda: log.exists() and "is up" in log.read_text(), "no link")
        _fill(place / "filler")
        self.chatter(local)
        (place / "filler").unlink()
        length = log.stat().st_size
        local.process.terminate()
        self.assertEnds(local, 0, SOON_SECONDS)
        self.assertIn("SIGTERM: stopping", log.read_text()[length - 1 :])

    def test_deleted(self) -> None:
        """A log that was deleted begins anew."""
        log = self.folder / "log"
        words = *TWISTD, "--logfile", str(log), "udp-local", "--server", f"tcp:{Network.atServer[0]}:{LINK}"
        self.startServer()
        local = self.start(self.network.client, *words, *self.options)
        until(lambda: log.exists() and "is up" in log.read_text(), "no link")
        log.unlink()
        self.chatter(local, 2)
        until(lambda: log.exists() and "RoleService" in log.read_text(), "no new log")

    def test_reader(self) -> None:
        """A reader of the log that is gone, or does not read, holds up nothing; the end is still in good order."""
        self.startServer()
        for gone in (True, False):
            pipe = self.folder / f"pipe{gone}"
            os.mkfifo(pipe)
            reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
            words = *TWISTD, "udp-local", "--server", f"tcp:{Network.atServer[0]}:{LINK}", *self.options
            local = self.start(self.network.client, "sh", "-c", 'exec "$@" >"$0"', str(pipe), *words)
            self.assertBeats("at first", 10)
            if gone:
                os.close(reader)
            else:
                self.addCleanup(os.close, reader)
                _fillPipe(pipe)
            self.chatter(local)
            local.process.terminate()
            self.assertEnds(local, 0, SOON_SECONDS)
            self.assertEqual(local.said, "")

    def test_json(self) -> None:
        """With --log-format json and --redact each line is an object, from the first to the last, and names nobody."""
        server = self.startServer("--log-format", "json", "--redact")
        local = self.startLocal("--log-format", "json", "--redact", *self.options)
        local.says('"link with - is up')
        self.assertBeats("at first")
        for program in (local, server):
            program.process.terminate()
            self.assertEnds(program, 0, SOON_SECONDS)
            objects = [json.loads(line) for line in program.said.splitlines()]
            self.assertTrue(all({"time", "level", "system", "text"} <= set(each) for each in objects))
            self.assertIn("starting up", objects[0]["text"])
            self.assertNotRegex(program.said, r"10\.77\.|127\.0\.0\.1")


def _fill(path: Path) -> None:
    """Fill a disk."""
    with open(path, "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


def _fillPipe(pipe: Path) -> None:
    """Fill a pipe."""
    writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    for size in (4096, 1):
        try:
            while True:
                os.write(writer, b"x" * size)
        except BlockingIOError:
            continue
    os.close(writer)


class SupervisorTests(ProcessTestCase):
    """What systemd is told, and what it hands over."""

    def test_told(self) -> None:
        """Ready, alive, reloading, ready again, stopping: all that is told, and in this order."""
        supervisor = self.supervise(1)
        server = self.startServer()
        self.assertIn(f"MAINPID={server.process.pid}", supervisor.hears("READY=1"))
        supervisor.hears("STATUS=sessions 0, links 0, associations 0")
        supervisor.hears("WATCHDOG=1")
        server.process.send_signal(signal.SIGHUP)
        supervisor.hears("RELOADING=1\nMONOTONIC_USEC=")
        supervisor.hears("READY=1")
        server.process.terminate()
        supervisor.hears("STOPPING=1")
        self.assertEnds(server, 0, SOON_SECONDS)

    def test_activated(self) -> None:
        """udp-server takes a listening socket that systemd has opened, by number or by name."""
        systemd = sys.executable, "-c", HANDOVER, Network.atServer[0], str(LINK)
        for way in ("index=0", "name=links"):
            words = "udp-server", "--listen", f"systemd:domain=INET:{way}", "--insecure-no-auth"
            server = self.start(self.network.server, *systemd, *TWISTD, *words, "--allow", "10.77.2.0/24")
            server.listens(LINK)
            local = self.startLocal(*self.options).says("is up")
            self.assertBeats("although the socket was handed over")
            for program in (local, server):
                program.stop()


HANDOVER = """
import os, socket, sys
listening = socket.create_server((sys.argv[1], int(sys.argv[2])))
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="links")
os.execv(sys.argv[3], sys.argv[3:])
"""
"""What systemd does: it opens a socket, and starts a program that is to use it (sd_listen_fds(3))."""


class CanaryTests(ProcessTestCase):
    """Secrets in files."""

    def test_canaries(self) -> None:
        """No secret stands in the log or in the command line."""
        canaries = [secrets.token_hex(32) for _ in range(3)]
        for name, canary in zip(("secret", "secrets", "passwords"), canaries, strict=True):
            (self.folder / name).write_text(f"user:{canary}\n")
        server = self.startServer("--secrets", str(self.folder / "secrets"), "--insecure-plain")
        local = self.startLocal(
            *("--secret", str(self.folder / "secret"), "--password-file", str(self.folder / "passwords")),
            *self.options,
        )
        local.says("no link")
        for program in (server, local):
            program.process.send_signal(signal.SIGHUP)
            program.says("RoleService#")
            shown = program.said + Path(f"/proc/{program.process.pid}/cmdline").read_text()
            for canary in canaries:
                self.assertNotIn(canary, shown)

    def test_endpoint(self) -> None:
        """The password in an endpoint string is not logged."""
        canary = secrets.token_hex(16)
        way = f"socks5:{Network.atServer[0]}:{LINK}:endpoint=tcp\\:127.0.0.1\\:1:user=a:password={canary}"
        local = self.startLocal(*self.options, server=way).says("no link")
        self.assertNotIn(canary, local.said)


UNITS = sorted((REPOSITORY / "contrib" / "systemd").glob("udp-*.service"))
"""Of the two ends of the tunnel; L{tests.system.test_l3} has that of l3-tunnel."""

MOST_EXPOSURE = 2.0


class UnitTests(SynchronousTestCase):
    """contrib/systemd."""

    def analyse(self, unit: Path) -> str:
        """What systemd makes of a unit."""
        if which("systemd-analyze") is None:
            raise unittest.SkipTest("systemd-analyze (Debian: systemd) is not installed")
        words = "systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout

    def test_exposure(self) -> None:
        """systemd finds each unit well enough shut in."""
        self.assertEqual(len(UNITS), 3)
        for unit in UNITS:
            found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", self.analyse(unit))
            assert found is not None
            self.assertLessEqual(float(found[1]), MOST_EXPOSURE, unit.name)

    def test_alike(self) -> None:
        """The units differ in role, name, file and comments only."""
        first, *others = ({*_settings(unit)} for unit in UNITS)
        for other in others:
            different = {line.partition("=")[0] for line in first ^ other}
            self.assertEqual(different, {"Description", "ExecStart"})

    def test_expected(self) -> None:
        """Each tells when it is ready, is watched, reloads by SIGHUP, and may have enough descriptors."""
        for unit in UNITS:
            for line in (
                *("Type=notify", "WatchdogSec=30", "DynamicUser=yes", "LimitNOFILE=65536"),
                "ExecReload=/bin/kill -HUP $MAINPID",
            ):
                self.assertIn(line, _settings(unit), unit.name)


def _settings(unit: Path) -> list[str]:
    return [line for line in unit.read_text(encoding="utf-8").splitlines() if line and line[0] not in "#["]
