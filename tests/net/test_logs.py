"""Tests for L{udptunnel.net.logs}."""

from __future__ import annotations

import errno
import io
import json
import os
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import (
    FileLogObserver,
    LegacyLogObserverWrapper,
    LogBeginner,
    LogEvent,
    Logger,
    LogPublisher,
    eventAsText,
    textFileLogObserver,
)
from twisted.python.failure import Failure
from twisted.python.log import LogPublisher as OldLogPublisher
from twisted.python.log import textFromEventDict
from twisted.python.logfile import LogFile
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.config import ServerConfig
from udptunnel.net import logs
from udptunnel.net.logs import MOST_ALIKE, MOST_KINDS, SPAN_SECONDS, Journal, Lines, Style, useLogLines
from udptunnel.wire.address import Address


class StartingReactor(Clock):
    """A clock that begins to run at once."""

    def callWhenRunning(self, call: Any, *arguments: Any, **named: Any) -> None:
        call(*arguments, **named)


class LogsTestCase(SynchronousTestCase):
    """With a log of its own."""

    def setUp(self) -> None:
        self.lines = Lines()
        self.patch(logs, "lines", self.lines)
        self.clock = StartingReactor()

    def begin(self, observer: Any, **options: Any) -> Logger:
        """Begin logging to an observer, as twistd does."""
        publisher = LogPublisher()
        standard = type("Standard", (), {"stdout": io.StringIO(), "stderr": io.StringIO()})
        warnings = type("Warnings", (), {"showwarning": staticmethod(lambda *_: None)})
        beginner = LogBeginner(publisher, io.StringIO(), standard, warnings)
        useLogLines(ServerConfig(**options), self.clock, beginner)
        early = Logger("udptunnel.early", observer=publisher)
        early.info("before the log")
        beginner.beginLoggingTo([observer])
        return Logger("udptunnel.test", observer=publisher)

    def beginText(self, **options: Any) -> Logger:
        """Begin logging to memory."""
        self.file = io.StringIO()
        return self.begin(textFileLogObserver(self.file, timeFormat=None), **options)

    @property
    def written(self) -> list[str]:
        """The lines, without their time, and without the one before the log."""
        return [line.partition(" ")[2] for line in self.file.getvalue().split("\n")[1:-1]]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The lines, as JSON, without the one before the log."""
        return [json.loads(line) for line in self.file.getvalue().splitlines()[1:]]


class TextTests(LogsTestCase):
    """C{--log-format text}."""

    def test_same(self) -> None:
        """A line is what twistd writes, to the letter, and what was said early is written, too."""
        ours, twisteds = io.StringIO(), io.StringIO()
        log = self.begin(textFileLogObserver(ours))
        plain = LogPublisher(textFileLogObserver(twisteds))
        Logger("udptunnel.early", observer=plain).info("before the log")
        for each in (log, Logger("udptunnel.test", observer=plain)):
            each.warn("{count} of {peer}", count=3, peer="192.0.2.7")
        self.assertEqual(
            [line[24:] for line in ours.getvalue().splitlines()],
            [line[24:] for line in twisteds.getvalue().splitlines()],
        )

    def test_forged(self) -> None:
        """What users name can not begin a line, speak to a terminal, or be taken for a format."""
        log = self.beginText()
        log.info("user {user}", user="eve\n2026 [x] all is well\r\x1b[2J\u202e\u2028\x9b{user.__class__}")
        (line,) = self.written
        self.assertIn(r"eve\n2026 [x] all is well\r\x1b[2J\u202e\u2028\x9b{user.__class__}", line)
        self.assertTrue(line.isprintable())

    def test_letters(self) -> None:
        """Letters of all scripts stay."""
        self.beginText().info("Grüße, 世界")
        self.assertIn("Grüße, 世界", self.written[0])

    def test_traceback(self) -> None:
        """A traceback stands in lines of its own, indented, and what the error says can not leave them."""
        log = self.beginText()
        log.failure("it {what}", Failure(ValueError("a\n2026 b\x1b[2J")), what="broke")
        self.assertIn("it broke", self.written[0])
        self.assertTrue(all(line.startswith("\t") for line in self.file.getvalue().split("\n")[2:-1]))
        self.assertNotIn("\x1b", self.file.getvalue())

    def test_oldLog(self) -> None:
        """So it is with what the old log is told, prefix and all."""
        old = OldLogPublisher(publishPublisher=self.beginText().observer)
        old.msg("a\nb", system="X,\x1b1")
        old.msg(failure=Failure(ValueError("c")), why="broken", isError=1)
        self.assertEqual(self.written[0], r"[X,\x1b1] a\nb")
        self.assertEqual(self.written[1], "[-] broken")
        self.assertIn("ValueError: c", self.file.getvalue())

    def test_secrets(self) -> None:
        """The password of an endpoint string is never written."""
        self.beginText().info("server {way}", way="socks5:a:1:user=b:password=geheim")
        self.assertIn("password=-", self.written[0])

    def test_unshowable(self) -> None:
        """A value that can not be shown harms neither the log nor whoever logs."""

        class Bad:
            def __str__(self) -> str:
                raise RuntimeError("no")

            __repr__ = __str__

        log = self.beginText()
        log.info("bad {bad}", bad=Bad())
        log.info("good")
        self.assertIn("good", self.written[-1])


class JsonTests(LogsTestCase):
    """C{--log-format json}."""

    def test_object(self) -> None:
        """A line is an object: time in UTC, level, system, text, and the plain fields."""
        log = self.beginText(logFormat="json")
        self.clock.advance(1)
        log.warn(
            "session {session} of {target}",
            session="ab",
            target=Address("::1", 5),
            count=3,
            link=object(),
            rate=float("inf"),
        )
        (line,) = self.objects
        self.assertRegex(line.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$")
        self.assertEqual(
            line,
            {
                "level": "warn",
                "system": "udptunnel.test",
                "text": "session ab of [::1]:5",
                "session": "ab",
                "target": "[::1]:5",
                "count": 3,
                "rate": "inf",
            },
        )

    def test_oneLine(self) -> None:
        """A traceback, and anything that somebody prints, is one line, too."""
        log = self.beginText(logFormat="json")
        log.failure("broken", Failure(ValueError("x\ny")))
        log.info("{log_io}", log_io="a\u2028b\x85c")
        self.assertEqual(len(self.objects), 2)
        self.assertIn("ValueError: x", self.objects[0]["text"])

    def test_ownNames(self) -> None:
        """A field can not pass for the time, the level, the system or the text."""
        self.beginText(logFormat="json").info("true", text="false", system="false", time="false")
        self.assertNotIn("false", self.objects[0].values())

    def test_otherObservers(self) -> None:
        """An observer that is no file, such as syslog's, gets the line as the text of its event."""
        got: list[LogEvent] = []
        self.begin(got.append, logFormat="json").info("hello {user}", user="eve")
        self.assertEqual(json.loads(eventAsText(got[1], includeTimestamp=False, includeSystem=False))["user"], "eve")

    def test_syslog(self) -> None:
        """An observer of the old kind does, too, and knows an error when it sees one."""
        got: list[Any] = []
        log = self.begin(
            LegacyLogObserverWrapper(lambda event: got.append((textFromEventDict(event), event["isError"])))
        )
        log.info("fine\x1b")
        log.error("not fine")
        self.assertEqual(got[1:], [(r"fine\x1b", 0), ("not fine", 1)])


class RedactTests(LogsTestCase):
    """C{--redact}."""

    def test_redacted(self) -> None:
        """Neither fields nor texts nor tracebacks have addresses and names, in either format."""
        for style in ("text", "json"):
            log = self.beginText(redact=True, logFormat=style)
            log.info(
                "{user} from {peer} to {where}: {error}",
                user="mallory",
                peer="h.example:1",
                where=Address("t.example", 2),
                error=OSError("192.0.2.7"),
            )
            log.failure("broken", Failure(ValueError("no way to 2001:db8::7")))
            said = self.file.getvalue()
            for secret in ("mallory", "h.example", "t.example", "192.0.2.7", "2001:db8::7"):
                self.assertNotIn(secret, said)
            self.assertIn("- from - to -: -", said)

    def test_off(self) -> None:
        """Without the option they are shown."""
        self.beginText().info("{user} from {peer}", user="mallory", peer="192.0.2.7")
        self.assertIn("mallory from 192.0.2.7", self.written[0])


class RepeatsTests(LogsTestCase):
    """Too many lines of one kind."""

    def test_suppressed(self) -> None:
        """Of one kind a few are written; when its time is over, one line tells of the last, and how many there were."""
        log = self.beginText()
        for number in range(MOST_ALIKE + 123):
            log.info("link {number} lost", number=number)
        self.assertEqual(len(self.written), MOST_ALIKE)
        self.assertEqual(self.lines.suppressed, 123)
        self.clock.advance(SPAN_SECONDS)
        self.assertEqual(self.written[MOST_ALIKE:], ["[udptunnel.test#info] link 127 lost ... 123 more like this"])

    def test_count(self) -> None:
        """In JSON the number is a field, too."""
        log = self.beginText(logFormat="json")
        for _ in range(MOST_ALIKE + 2):
            log.info("again")
        self.clock.advance(SPAN_SECONDS)
        self.assertEqual(self.objects[-1]["more"], 2)

    def test_again(self) -> None:
        """Then the kind is written again, and a kind that was not suppressed is not told of."""
        log = self.beginText()
        for _ in range(3):
            log.info("now and then")
            self.clock.advance(SPAN_SECONDS)
        self.assertEqual(len(self.written), 3)

    def test_kinds(self) -> None:
        """Another format, another namespace, and another printed line are other kinds."""
        log = self.beginText()
        for number in range(MOST_ALIKE):
            log.info("a")
            log.info("b")
            Logger("other", observer=log.observer).info("a")
            log.info("{log_io}", log_io=f"line {number} of a traceback")
            log.info("{log_io}", log_io=f"line {number + MOST_ALIKE} of a traceback")
        self.assertEqual(len(self.written), 5 * MOST_ALIKE)

    def test_bounded(self) -> None:
        """Only so many kinds are remembered."""
        log = self.beginText()
        for number in range(MOST_KINDS + 10):
            log.info("{log_io}", log_io=str(number))
        for _ in range(MOST_ALIKE + 5):
            log.info("one too many")
        self.assertEqual(self.lines.suppressed, 0)


class FullFile(io.StringIO):
    """A file on a disk that gets full in the middle of a line."""

    full = False

    def write(self, text: str) -> int:
        if self.full:
            super().write(text[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


class FileTests(LogsTestCase):
    """Whatever becomes of the log."""

    def test_full(self) -> None:
        """A full disk costs lines, which are counted, and nothing else; when there is room again, a new line begins."""
        self.file = file = FullFile()
        log = self.begin(textFileLogObserver(file), logFormat="json")
        file.full = True
        log.info("lost")
        file.full = False
        log.info("there again")
        self.assertEqual((self.lines.lost, self.lines.written), (1, 2))
        self.assertEqual(json.loads(file.getvalue().splitlines()[-1])["text"], "there again")

    def test_deleted(self) -> None:
        """A file that was deleted or moved away is opened anew; if that can not be, it costs nothing either."""
        name = os.path.abspath(self.mktemp())
        os.makedirs(name)
        path = os.path.join(name, "log")
        log = self.begin(textFileLogObserver(LogFile.fromFullPath(path)))
        os.unlink(path)
        log.info("in a new file")
        with open(path, encoding="utf-8") as file:
            self.assertIn("in a new file", file.read())
        os.unlink(path)
        os.rmdir(name)
        log.info("nowhere")
        self.assertEqual(self.lines.lost, 0)

    def pipe(self) -> tuple[int, Logger]:
        """Log to a pipe."""
        reader, writer = os.pipe()
        file = os.fdopen(writer, "w", encoding="utf-8")
        self.addCleanup(
            lambda: self.assertRaises(OSError, file.close) if self.lines.lost and self.gone else file.close()
        )
        return reader, self.begin(textFileLogObserver(file))

    gone = False

    def test_gone(self) -> None:
        """A reader that is gone costs lines, which are counted."""
        reader, log = self.pipe()
        os.close(reader)
        self.gone = True
        for number in range(100):
            log.info("{log_io}", log_io=str(number))
        self.assertEqual(self.lines.lost, 100)

    def test_stopped(self) -> None:
        """A reader that does not read costs lines, and does not hold us up."""
        reader, log = self.pipe()
        self.addCleanup(os.close, reader)
        for number in range(1000):
            log.info("{log_io}", log_io=f"{number} {'x' * 1000}")
        self.assertGreater(self.lines.lost, 900)
        self.assertEqual(self.lines.lost + self.lines.written, 1001)


class JournalTests(LogsTestCase):
    """L{Journal}."""

    def test_broken(self) -> None:
        """An observer that fails does not fail whoever logs."""

        def fail(event: LogEvent) -> None:
            raise RuntimeError("no")

        Journal(fail, Style(ServerConfig()), self.clock.seconds)({"log_format": "x"})
        self.assertEqual(self.lines.report(), {"lost": 1, "suppressed": 0, "written": 0})

    def test_order(self) -> None:
        """What was suppressed is told before anything that comes later, even if nobody asks for it."""
        said: list[str] = []
        journal = Journal(lambda event: said.append(event["log_text"]), Style(ServerConfig()), self.clock.seconds)
        for _ in range(MOST_ALIKE + 1):
            journal({"log_format": "x"})
        self.clock.advance(SPAN_SECONDS)
        journal({"log_format": "x"})
        self.assertEqual(said[MOST_ALIKE:], ["x ... 1 more like this", "x"])

    def test_bare(self) -> None:
        """An event may have no more than a format."""
        file = io.StringIO()
        Journal(FileLogObserver(file, str), Style(ServerConfig(logFormat="json")), self.clock.seconds)(
            {"log_format": "x"}
        )
        self.assertEqual(json.loads(file.getvalue()), {"time": None, "level": "info", "system": "-", "text": "x"})
