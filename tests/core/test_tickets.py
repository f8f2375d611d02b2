"""Tests for L{udptunnel.core.tickets}."""

from __future__ import annotations

import pickle
from copy import deepcopy
from random import Random as Dice

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import TICKET, countingRandom
from tests.examples import EXAMPLES
from udptunnel.core.tickets import MOST_GIVEN, Tickets, Verdict
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

    def test_anyOfThem(self) -> None:
        """
        Of several tickets that were given for one, whichever has arrived is good.

        Only the last one tells that the last link has had its answer.
        """
        for arrived, verdict in ((0, Verdict.AGAIN), (1, Verdict.AGAIN), (2, Verdict.FRESH)):
            tickets = makeTickets()
            first = tickets.issue()
            given_ = []
            for _ in range(3):
                tickets.accept(first)
                given_.append(tickets.issue())
            self.assertIs(tickets.accept(given_[arrived]), verdict)

    def test_othersVoid(self) -> None:
        """When one of several has been shown, those beside it and the one before are void; it is still good itself."""
        tickets = makeTickets()
        first = tickets.issue()
        tickets.accept(first)
        given_ = [tickets.issue() for _ in range(3)]
        tickets.accept(given_[1])
        for void in (first, given_[0], given_[2]):
            self.assertIs(tickets.accept(void), Verdict.VOID)
        self.assertIs(tickets.accept(given_[1]), Verdict.AGAIN)

    def test_confirmedAlone(self) -> None:
        """When the last one is known to have arrived, all that were given before it are void."""
        tickets = makeTickets()
        given_ = [tickets.issue() for _ in range(5)]
        tickets.confirm()
        for void in given_[:-1]:
            self.assertIs(tickets.accept(void), Verdict.VOID)
        self.assertIs(tickets.accept(given_[-1]), Verdict.FRESH)

    def test_bounded(self) -> None:
        """However many are given, only the newest 16 are kept."""
        tickets = makeTickets()
        given_ = [tickets.issue() for _ in range(100)]
        good = [self.accepts(tickets, each) for each in given_]
        self.assertEqual(good, [False] * 84 + [True] * 16)

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
        tickets.issue()
        for kept in (tickets._shown, *tickets._given):
            self.assertEqual(len(kept), 32)
            self.assertFalse(self.accepts(tickets, kept))

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
    @given(st.lists(st.tuples(st.sampled_from(["issue", "accept", "confirm"]), st.integers(0, 9)), max_size=60))
    def test_whichAreGood(self, steps: list[tuple[str, int]]) -> None:
        """
        Whatever happens, good are the ticket that was shown last and those given since, and no other.

        Once the last one is confirmed, it alone is.
        """
        tickets = makeTickets()
        given_ = [tickets.issue()]
        shown, since = b"", given_[:]
        for step, which in steps:
            if step == "issue":
                given_.append(tickets.issue())
                since = [*since, given_[-1]][-MOST_GIVEN:]
            elif step == "confirm":
                tickets.confirm()
                shown, since = b"" if since else shown, since[-1:]
            else:
                ticket = given_[-1 - which % len(given_)]
                verdict = tickets.accept(ticket)
                if ticket in since:
                    self.assertIs(verdict, Verdict.FRESH if ticket == since[-1] else Verdict.AGAIN)
                    shown, since = ticket, []
        good = [self.accepts(tickets, each) for each in given_]
        self.assertEqual(good, [each in (shown, *since) for each in given_])
        self.assertTrue(any(good))

    def accepts(self, tickets: Tickets, ticket: bytes) -> bool:
        """Whether a ticket would be good, without showing it."""
        return deepcopy(tickets).accept(ticket) is not Verdict.VOID
