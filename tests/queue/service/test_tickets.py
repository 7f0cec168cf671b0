"""What is known of submits since the depth of the queue was read: sums that a submit does not have to make anew."""

import random
import sys
from collections import Counter

from app.db.database import Database
from app.kernel.lanes import Priority
from app.queue.rules.admission import CapacityPolicy
from app.queue.service.admission import Admission, Ticket, Tickets


def test_the_sums_are_those_of_the_tickets() -> None:
    chance = random.Random(7)
    tickets = Tickets()
    known: list[Ticket] = []
    for _ in range(2000):
        step = chance.choice(("add", "add", "end", "remove", "seen"))
        if step == "add":
            tasks = Counter(chance.choices(list(Priority), k=chance.randint(1, 3)))
            known.append(Ticket(namespace=chance.choice("ab"), tasks=tasks))
            tickets.add(known[-1])
        elif step == "end" and known:
            tickets.end(chance.choice(known))
        elif step == "remove" and known:
            tickets.remove(chance.choice(known))
        elif step == "seen" and chance.random() < 0.1:
            moments = [ticket.ended_at for ticket in tickets if ticket.ended_at is not None]
            tickets.remove_seen(chance.choice(moments) if moments else 0.0)
        there = list(tickets)
        assert +tickets.tasks == sum((ticket.tasks for ticket in there), Counter())
        assert tickets.total == sum(ticket.tasks.total() for ticket in there)
        assert tickets.uncommitted == sum(ticket.tasks.total() for ticket in there if ticket.ended_at is None)
        by_namespace = Counter[str]()
        for ticket in there:
            by_namespace[ticket.namespace] += ticket.tasks.total()
        assert tickets.by_namespace == by_namespace
    assert len(known) > 500


async def test_a_submit_costs_the_same_however_many_there_were_since_the_depth_was_read(database: Database) -> None:
    admission = Admission(CapacityPolicy(max_queue_size=1_000_000))
    async with database.transaction() as connection:
        await admission.refresh(connection)

    def submit() -> None:
        with admission.entering_unread([Priority.MEDIUM]) as ticket:
            assert ticket is not None

    def calls() -> int:
        events = 0

        def note(*_: object) -> None:
            nonlocal events
            events += 1

        sys.setprofile(note)
        try:
            submit()
        finally:
            sys.setprofile(None)
        return events

    submit()
    few = calls()
    for _ in range(1000):
        submit()
    assert calls() == few
