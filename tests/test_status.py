"""Tests for L{udptunnel.status}."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.needs import needs
from tests.services.test_status import LINK, LOCAL, SERVER, SESSION
from tests.test_console import Outcome, Terminal
from udptunnel import status as status_module
from udptunnel.errors import ConfigError
from udptunnel.services.status import StatusService
from udptunnel.status import StatusError, asJson, asTable, escape, exitStatus, reader, watch

LOCAL_STATE = {"version": 1, "uptime": 3723.5, **LOCAL, "links": [{**LINK, "sentBytes": 12345, "receivedBytes": 67}]}

LOCAL_TABLE = """\
udp-local to tcp:192.0.2.1:3456: up, session 0011aabb, running for 1:02:03
links 1, associations 3, reconnects 4, resumed 2, mappings lost 5, evicted 1, offload none

link  peer                age  round trip ms  queue ms  queued   sent  received
1     192.0.2.1:3456  0:00:09           30.0       4.0    1000  12.3k        67

since the start
datagrams sent                            10
datagrams received                         8
bytes sent                              1000
bytes received                           800
dropped, queue too old                     2"""

PARKED = {"name": "ffee0000", "user": "bob", "links": [], "associations": 12, "parked": True, "age": 90000}

SERVER_STATE = {"version": 1, "uptime": 100.0, **SERVER, "sessions": [{**SESSION, "age": 61.5}, PARKED]}

SERVER_TABLE = """\
udp-server: up, running for 0:01:40
sessions 7, parked 6, links 9, not logged in 1, associations 3, external ports 2, resumed 2, evicted 1

session   user           age   links  associations  round trip ms  queue ms  queued
0011aabb  alice      0:01:01       2             3           30.0       4.0    2000
ffee0000  bob    1 d 1:00:00  parked            12              -         -       0
and 5 more

since the start                               per second
datagrams sent                         10.0k        5000
datagrams received                         8           0
bytes sent                              1000           0
bytes received                           800           0
dropped, queue too old                     2         0.5
logins accepted                            7           0
logins refused                             1           0"""


class TableTests(SynchronousTestCase):
    """L{asTable}."""

    maxDiff = None

    def test_local(self) -> None:
        """udp-local's table shows the way, its links, and what was counted."""
        self.assertEqual(asTable(LOCAL_STATE, None), LOCAL_TABLE)

    def test_portable(self) -> None:
        """Where datagrams take the portable path, that is said behind the offload; where not, nothing is."""
        self.assertIn("offload none, portable path\n", asTable({**LOCAL_STATE, "portable": True}, None))
        for other in (False, "yes", None):
            self.assertEqual(asTable({**LOCAL_STATE, "portable": other}, None), LOCAL_TABLE)

    def test_server(self) -> None:
        """udp-server's table shows its sessions, and with a state from before, what happened per second."""
        before = {**SERVER_STATE, "uptime": 98.0, "dropped": {"queue too old": 1}}
        self.assertEqual(asTable({**SERVER_STATE, "sent": 10_010}, {**before, "sent": 10}), SERVER_TABLE)

    def test_restarted(self) -> None:
        """A state from before the start says nothing of what happens per second."""
        self.assertNotIn("per second", asTable(LOCAL_STATE, {**LOCAL_STATE, "uptime": 9999.0}))

    def test_down(self) -> None:
        """A role that is down, or about to stop, is said to be so."""
        self.assertIn("DOWN", asTable({**LOCAL_STATE, "up": False}, None).splitlines()[0])
        self.assertIn("draining", asTable({**SERVER_STATE, "draining": True}, None).splitlines()[0])

    def test_strange(self) -> None:
        """Whatever the other side says, there is a table, and nothing in it moves the cursor."""
        evil = "\x1b[2J\r\n\u202e\x9b" + "x" * 1000
        shapes: list[Any] = [evil, None, 1, [], {}, [{}], [evil], [[evil]], {evil: evil}, True, float("inf"), -1]
        for key in SERVER_STATE | LOCAL_STATE:
            for shape in shapes:
                text = asTable({**SERVER_STATE, key: shape}, {**LOCAL_STATE, key: shape})
                text += asTable({**LOCAL_STATE, key: shape}, None)
                self.assertTrue(text.replace("\n", "").isprintable(), (key, shape))
        for key in LINK:
            asTable({**LOCAL_STATE, "links": [{key: each} for each in shapes]}, None)
        for key in PARKED:
            text = asTable({**SERVER_STATE, "sessions": [{key: each} for each in shapes]}, None)
            self.assertTrue(text.replace("\n", "").isprintable(), key)

    def test_escape(self) -> None:
        """What is not printable is shown as an escape, and what is long is cut."""
        self.assertEqual(escape("al\x1bice\n\u202e\xe9"), "al\\x1bice\\n\\u202e\xe9")
        self.assertEqual(escape("x" * 61), "x" * 60 + "...")


class WatchTests(SynchronousTestCase):
    """L{watch}."""

    def watch(self, out: io.StringIO, states: list[Any], show: Any = asTable) -> int:
        """Look at some states, then press Ctrl-C."""
        left = list(states)

        def look() -> Any:
            state = left.pop(0)
            if isinstance(state, Exception):
                raise state
            return state

        def pause() -> None:
            if not left:
                raise KeyboardInterrupt

        return watch(look, show, out, pause)

    def test_terminal(self) -> None:
        """On a terminal each look is drawn over the one before, and as far as there is room."""
        out = Terminal()
        self.patch(shutil, "get_terminal_size", lambda: os.terminal_size((80, 5)))
        code = self.watch(out, [LOCAL_STATE, {**LOCAL_STATE, "uptime": 3725.5, "sent": 30}])
        head = "\n".join(LOCAL_TABLE.splitlines()[:4])
        self.assertEqual(code, 0)
        self.assertEqual(out.getvalue(), f"\x1b[H\x1b[J{head}\n" + f"\x1b[H\x1b[J{head}\n".replace("02:03", "02:05"))

    def test_file(self) -> None:
        """Elsewhere one follows the other, the second with what happened per second."""
        out = io.StringIO()
        self.watch(out, [LOCAL_STATE, {**LOCAL_STATE, "uptime": 3725.5, "sent": 30}])
        self.assertTrue(out.getvalue().startswith(LOCAL_TABLE + "\n"))
        self.assertIn("datagrams sent                            30          10\n", out.getvalue())
        self.assertNotIn("\x1b", out.getvalue())

    def test_json(self) -> None:
        """JSON is one line for each look, on a terminal too."""
        out = Terminal()
        self.watch(out, [LOCAL_STATE, SERVER_STATE], asJson)
        self.assertEqual([json.loads(line) for line in out.getvalue().splitlines()], [LOCAL_STATE, SERVER_STATE])

    def test_gone(self) -> None:
        """A role that is gone for a while is looked for again; the last look makes the exit status."""
        out = io.StringIO()
        self.assertEqual(self.watch(out, [LOCAL_STATE, StatusError("gone"), LOCAL_STATE]), 0)
        self.assertEqual(out.getvalue(), f"{LOCAL_TABLE}\ngone\n{LOCAL_TABLE}\n")
        self.assertEqual(self.watch(out, [LOCAL_STATE, StatusError("gone")]), 1)

    def test_exitStatus(self) -> None:
        """It is 0 if the role says that it is up, and only then."""
        for state, code in (({"up": True}, 0), ({"up": False}, 1), ({}, 1)):
            self.assertEqual(exitStatus(state), code)


def serveOnce(test: TestCase, answer: bytes) -> str:
    """Where somebody answers one request so."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        stream, _ = listener.accept()
        with listener, stream:
            stream.recv(65536)
            stream.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    test.addCleanup(thread.join)
    return f"127.0.0.1:{listener.getsockname()[1]}"


class ReaderTests(TestCase):
    """L{reader}, and the command, with real sockets."""

    def start(self, endpoint: str, state: dict[str, Any]) -> StatusService:
        """A role's status service."""
        service = StatusService("udp-server", endpoint, lambda: state, str, reactor)
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def command(self, *words: str) -> Any:
        """Run the command beside the reactor."""
        return deferToThread(Outcome, "status", *words)

    async def test_tcp(self) -> None:
        """The state is read over TCP, and shown; the exit status is 0."""
        at: Any = self.start("tcp:0:interface=127.0.0.1", SERVER).listening.address
        for endpoint in (f"127.0.0.1:{at.port}", f"http://127.0.0.1:{at.port}", f"http://localhost:{at.port}/"):
            outcome = await self.command(endpoint)
            self.assertEqual((outcome.status, outcome.err), (0, ""), endpoint)
            self.assertTrue(outcome.out.startswith("udp-server: up"))

    @needs("Unix sockets")
    async def test_unix(self) -> None:
        """And over a Unix socket, however it is named; C{--json} shows it as it came."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        path = os.path.join(folder, "status")
        self.start(f"unix:{path}", {**SERVER, "evicted": 1 << 40})
        for endpoint in (f"unix:{path}", path, os.path.relpath(path)):
            outcome = await self.command("--json", endpoint)
            state = json.loads(outcome.out)
            self.assertEqual((outcome.status, outcome.err), (0, ""))
            self.assertEqual(state, {"version": 1, "uptime": state["uptime"], **SERVER, "evicted": 1 << 40})
            self.assertEqual(len(outcome.out.splitlines()), 1)

    async def test_down(self) -> None:
        """A role that is down is shown, with status 1."""
        at: Any = self.start("tcp:0:interface=127.0.0.1", {**LOCAL, "up": False}).listening.address
        for words in ((), ("--json",)):
            outcome = await self.command(*words, f"127.0.0.1:{at.port}")
            self.assertEqual((outcome.status, outcome.err), (1, ""))

    async def test_nobody(self) -> None:
        """Where nobody answers, one line says so and what to do, with status 1."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        for endpoint in (f"127.0.0.1:{port}", "unix:/no/such/socket"):
            outcome = await self.command(endpoint)
            self.assertEqual((outcome.status, outcome.out), (1, ""))
            self.assertEqual(len(outcome.err.splitlines()), 1)
            self.assertIn(endpoint, outcome.err)
            self.assertIn("--status", outcome.err)

    async def test_strangers(self) -> None:
        """What is no state of a role is said in one line, whatever it is."""
        begin = b"HTTP/1.0 200 OK\r\n\r\n"
        for answer in (
            b"",
            b"SSH-2.0-x\r\n",
            b"HTTP/1.0 403 No\r\n\r\nask \x1b[2J elsewhere\n",
            begin,
            begin + b"[]",
            begin + b'{"version": 2}',
            begin + b"[" * 100_000,
            begin + b"\xff\xfe",
            b"HTTP/1.0 200 \x1b[2J\r\n" + b"x: y\r\n" * 1000,
        ):
            outcome = await self.command(serveOnce(self, answer))
            self.assertEqual((outcome.status, outcome.out), (1, ""), answer[:80])
            self.assertTrue(outcome.err.removesuffix("\n").isprintable(), outcome.err)

    async def test_silence(self) -> None:
        """A listener that never answers is given up."""
        self.patch(status_module, "PATIENCE_SECONDS", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            outcome = await self.command(f"127.0.0.1:{silent.getsockname()[1]}")
        self.assertEqual((outcome.status, outcome.out), (1, ""))
        self.assertIn("timed out", outcome.err)


class EndpointTests(SynchronousTestCase):
    """The text of an endpoint."""

    def test_wrong(self) -> None:
        """What is none is refused in one line."""
        for text in ("127.0.0.1:x", "http://127.0.0.1", "::1:9876", "127.0.0.1:99999"):
            error = self.assertRaises((ConfigError, StatusError), _read, text)
            self.assertIn(text, str(error))
            outcome = Outcome("status", text)
            self.assertEqual((outcome.status, len(outcome.err.splitlines())), (1, 1))

    def test_options(self) -> None:
        """A wrong option is one line."""
        for words in (("--interval", "0"), ("--interval", "x"), ("a", "b")):
            outcome = Outcome("status", *words)
            self.assertEqual((outcome.status, len(outcome.err.splitlines())), (1, 1), words)


def _read(text: str) -> Callable[[], Any]:
    return reader(text)()  # type: ignore[return-value]
