"""Tests for L{udptunnel.core.tickets}."""

from __future__ import annotations

import pickle
from random import Random as Dice

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import TICKET, countingRandom
from tests.examples import EXAMPLES
from udptunnel.core.tickets import Tickets, Verdict
from udptunnel.wire.greeting import TICKET_BYTES

GUESSES = 10_000


def makeTickets(seed: int = 1) -> Tickets:
    """The tickets of a session, random in a way that can be repeated."""
    return Tickets(Dice(seed).randbytes)


class TicketsTests(SynchronousTestCase):
    """L{Tickets}."""

    def test_issue(self) -> None:
        """A ticket is 32 bytes, as random as the source it comes from, and never the same."""
        asked: list[int] = []
        tickets = Tickets(lambda length: asked.append(length) or TICKET)  # type: ignore[func-returns-value]
        self.assertEqual((tickets.issue(), asked, TICKET_BYTES), (TICKET, [32], 32))
        tickets = Tickets(countingRandom())
        self.assertEqual(len({tickets.issue() for _ in range(100)}), 100)

    def test_good(self) -> None:
        """The ticket that was given is good."""
        tickets = makeTickets()
        self.assertIs(tickets.accept(tickets.issue()), Verdict.FRESH)

    def test_none(self) -> None:
        """Before any was given, none is good; an empty one never is."""
        tickets = makeTickets()
        for ticket in (b"", bytes(32), TICKET):
            self.assertIs(tickets.accept(ticket), Verdict.VOID)
        tickets.issue()
        tickets.confirm()
        self.assertIs(tickets.accept(b""), Verdict.VOID)

    def test_once(self) -> None:
        """A ticket is good once: when the one that was given for it has arrived, it is void."""
        tickets = makeTickets()
        first = tickets.issue()
        tickets.accept(first)
        second = tickets.issue()
        tickets.confirm()
        self.assertIs(tickets.accept(first), Verdict.VOID)
        self.assertIs(tickets.accept(second), Verdict.FRESH)

    def test_untilConfirmed(self) -> None:
        """Until the new ticket is known to have arrived, the former one is good, as often as it takes."""
        tickets = makeTickets()
        first = tickets.issue()
        self.assertIs(tickets.accept(first), Verdict.FRESH)
        for _ in range(5):
            tickets.issue()
            self.assertIs(tickets.accept(first), Verdict.AGAIN)

    def test_shownConfirms(self) -> None:
        """Whoever shows the new ticket has it: the former one is void."""
        tickets = makeTickets()
        first = tickets.issue()
        tickets.accept(first)
        self.assertIs(tickets.accept(tickets.issue()), Verdict.FRESH)
        self.assertIs(tickets.accept(first), Verdict.VOID)

    def test_neverShown(self) -> None:
        """A ticket that was not shown before the next one was given is void: its link never came up."""
        tickets = makeTickets()
        first = tickets.issue()
        tickets.accept(first)
        lost = tickets.issue()
        tickets.accept(first)
        tickets.issue()
        self.assertIs(tickets.accept(lost), Verdict.VOID)

    def test_refusalChangesNothing(self) -> None:
        """After any number of wrong tickets the right one is still good."""
        tickets = makeTickets()
        ticket = tickets.issue()
        for wrong in (b"", bytes(32), ticket[:-1]):
            self.assertIs(tickets.accept(wrong), Verdict.VOID)
        self.assertIs(tickets.accept(ticket), Verdict.FRESH)

    def test_hashed(self) -> None:
        """What is kept is no ticket, nor any part of one: memory that leaks opens no door."""
        tickets = Tickets(countingRandom())
        first = tickets.issue()
        tickets.accept(first)
        second = tickets.issue()
        vars(tickets).pop("_random")
        kept = pickle.dumps(vars(tickets))
        for ticket in (first, second):
            for place in range(0, TICKET_BYTES, 8):
                self.assertNotIn(ticket[place : place + 8], kept)

    def test_hashIsNoTicket(self) -> None:
        """What is kept can not be shown in the place of a ticket."""
        tickets = makeTickets()
        tickets.accept(tickets.issue())
        tickets.issue()
        for kept in vars(tickets).values():
            if isinstance(kept, bytes):
                self.assertIs(tickets.accept(kept), Verdict.VOID)

    def test_truncated(self) -> None:
        """A ticket that is cut short, or longer, is refused."""
        tickets = makeTickets()
        ticket = tickets.issue()
        for length in range(TICKET_BYTES):
            self.assertIs(tickets.accept(ticket[:length]), Verdict.VOID)
            self.assertIs(tickets.accept(ticket[length + 1 :]), Verdict.VOID)
        self.assertIs(tickets.accept(ticket + b"\0"), Verdict.VOID)

    def test_flipped(self) -> None:
        """A ticket with one wrong bit is refused, whichever bit it is."""
        tickets = makeTickets()
        ticket = tickets.issue()
        for bit in range(8 * TICKET_BYTES):
            flipped = int.from_bytes(ticket, "big") ^ 1 << bit
            self.assertIs(tickets.accept(flipped.to_bytes(TICKET_BYTES, "big")), Verdict.VOID)

    def test_guessed(self) -> None:
        """Of ten thousand guesses none is good."""
        tickets, dice = makeTickets(), Dice(2)
        tickets.accept(tickets.issue())
        tickets.issue()
        verdicts = {tickets.accept(dice.randbytes(TICKET_BYTES)) for _ in range(GUESSES)}
        self.assertEqual(verdicts, {Verdict.VOID})

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(["issue", "accept", "confirm"]), st.integers(0, 9)), max_size=40))
    def test_atMostTwo(self, steps: list[tuple[str, int]]) -> None:
        """Whatever happens, the newest ticket is good, and at most one other is."""
        tickets = makeTickets()
        given_ = [tickets.issue()]
        for step, which in steps:
            if step == "issue":
                given_.append(tickets.issue())
            elif step == "confirm":
                tickets.confirm()
            else:
                tickets.accept(given_[-1 - which % len(given_)])
        accepted = [self.accepts(tickets, each) for each in given_]
        self.assertTrue(accepted[-1])
        self.assertLessEqual(sum(accepted), 2)

    def accepts(self, tickets: Tickets, ticket: bytes) -> bool:
        """Whether a ticket would be good, without showing it."""
        copy = makeTickets()
        vars(copy).update(vars(tickets))
        return copy.accept(ticket) is not Verdict.VOID
