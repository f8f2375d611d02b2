"""Tests for L{udptunnel.core.recent}; its use for associations is tested in L{tests.core.test_associations}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.recent import Recent


class Thing:
    """What stands in a table."""

    def __init__(self, used: float, idle: float = 10.0) -> None:
        self.used = used
        self.idle = idle


def table(most: int, **used: float) -> Recent[str, Thing]:
    """A table of things, each with its time of last use."""
    made: Recent[str, Thing] = Recent(most)
    for key, when in used.items():
        made.put(key, Thing(when))
    return made


class RecentTests(SynchronousTestCase):
    """L{Recent}."""

    def test_table(self) -> None:
        """What was put in is there until it is taken out."""
        recent = table(9, a=1.0, b=2.0)
        thing = recent.get("a")
        self.assertEqual(("a" in recent, "c" in recent, len(recent)), (True, False, 2))
        self.assertIs(recent.pop("a"), thing)
        self.assertIsNone(recent.pop("a"))
        self.assertIsNone(recent.get("a"))
        self.assertEqual([each.used for each in recent], [2.0])

    def test_iteration(self) -> None:
        """Things may be taken out while all are looked at."""
        recent = table(9, a=1.0, b=2.0)
        for _ in recent:
            recent.pop("a")
            recent.pop("b")
        self.assertEqual(len(recent), 0)

    def test_surplus(self) -> None:
        """There is room, or those go that were not used for longest."""
        self.assertEqual(table(4, a=1.0, b=3.0, c=2.0).surplus(), [])
        self.assertEqual([each.used for each in table(3, a=1.0, b=3.0, c=2.0).surplus()], [1.0])
        self.assertEqual([each.used for each in table(2, a=1.0, b=3.0, c=2.0).surplus()], [1.0, 2.0])

    def test_someAtOnce(self) -> None:
        """From a large table some go at once."""
        recent = table(128, **{str(number): float(number) for number in range(128)})
        self.assertEqual([each.used for each in recent.surplus()], [0.0, 1.0, 2.0])

    def test_idle(self) -> None:
        """Each has its own time."""
        recent: Recent[int, Thing] = Recent(9)
        for number, idle in enumerate((1.0, 2.0, 3.0)):
            recent.put(number, Thing(100.0, idle))
        self.assertEqual([each.idle for each in recent.idle(102.0)], [1.0, 2.0])
