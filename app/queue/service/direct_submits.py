"""Submits by one statement: of tasks about which nothing has to be looked up before, as most are."""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from uuid import UUID

from app.db import hot_path, notify
from app.db.database import Database
from app.db.turns import Turns
from app.kernel.lanes import Lane
from app.queue.service import tasks
from app.queue.service.admission import Ticket
from app.queue.service.tags import by_flow, give_tags
from app.queue.service.tasks import Intake, Submission, Submitted
from app.queue.store import lanes
from app.queue.store.lanes import Flow, TagIssuer
from app.queue.store.new_tasks import NewTask, insert_at_gate


def is_direct(submission: Submission, database: Database, intake: Intake) -> bool:
    """Whether nothing has to be looked up: it has no dependency, request or deadline.

    Behind a connection pooler no submit is direct: a statement without a transaction has the short limits of the hot
    path there.
    """
    return (
        not submission.depends_on
        and submission.resources is None
        and submission.deadline is None
        and intake.admission is not None
        and intake.duplicate_window_seconds <= 0
        and not database.is_pooled
    )


def is_new(submission: Submission) -> bool:
    """Whether no task can have its id yet, as neither that nor an idempotency key was chosen."""
    return submission.id is None and submission.idempotency_key is None


async def submit(database: Database, submissions: Sequence[Submission], intake: Intake) -> list[Submitted] | None:
    """Create all of the tasks; None, and none is created, where `tasks.submit` has to look at something first.

    This is so where one of them is not direct, may exist already, or has a goal that is held or has stopped; where the
    queue is not far from full; and where all connections for this are in use.
    """
    if not all(is_direct(submission, database, intake) and is_new(submission) for submission in submissions):
        return None
    results = await _submit(database, submissions, intake, all_or_none=True)
    return [result for result in results if result is not None] or None


async def submit_each(database: Database, submissions: Sequence[Submission], intake: Intake) -> list[Submitted | None]:
    """Create direct tasks of one namespace, all of which are new or none; None for each that is for `tasks.submit`."""
    return await _submit(database, submissions, intake, all_or_none=False)


async def _submit(
    database: Database, submissions: Sequence[Submission], intake: Intake, *, all_or_none: bool
) -> list[Submitted | None]:
    refused: list[Submitted | None] = [None] * len(submissions)
    # Of connections for transactions there are more.
    if intake.admission is None or database.submits.is_exhausted:
        return refused
    if intake.admission.is_stale:
        async with database.transaction() as connection:
            await intake.admission.refresh(connection)
    turns, tag_issuer = database.shared(Turns), database.shared(TagIssuer)
    await tasks.take_turn(turns, submissions)
    priorities = [submission.priority for submission in submissions]
    with intake.admission.entering_unread(priorities, namespace=submissions[0].namespace) as ticket:
        if ticket is None:
            return refused
        new_tasks = [tasks.new_task(submission) for submission in submissions]
        flows = by_flow(new_tasks)
        await _read_flows(database, tag_issuer, flows)
        tags = {flow: tag_issuer.issue(flow, len(tasks_of_flow)) for flow, tasks_of_flow in flows.items()}
        give_tags(flows, tags)
        created_ids = frozenset[UUID]()
        try:
            await tasks.take_turn(turns, submissions)
            created_ids = await _insert(database, new_tasks, ticket, all_or_none=all_or_none)
        finally:
            created = flows
            if len(created_ids) < len(new_tasks):
                created = {flow: [task for task in own if task.id in created_ids] for flow, own in flows.items()}
            tag_issuer.take_back({flow: tags[flow] for flow, own in created.items() if not own})
    if not created_ids:
        return refused
    news = _news(created)
    if intake.on_submitted is not None:
        runnable = tasks.runnable_agents([task for task in new_tasks if task.id in created_ids])
        news |= dict.fromkeys(intake.on_submitted(runnable), 0.0)
    database.announcer.announce(news)
    return [Submitted(task.id, task.state, True) if task.id in created_ids else None for task in new_tasks]


def _news(created: Mapping[Flow, Sequence[NewTask]]) -> dict[str, float]:
    """The announcement of new tasks: the lowest tag of each lane, which is that of the first task of a flow."""
    lowest: dict[Lane, float] = {}
    for (lane, _), own in created.items():
        if own:
            lowest[lane] = min(own[0].tag, lowest.get(lane, inf))
    return {notify.EVENTS: 0.0, **{notify.work(lane): tag for lane, tag in lowest.items()}}


async def _read_flows(database: Database, tag_issuer: TagIssuer, flows: Iterable[Flow]) -> None:
    """Read the states of flows to which other processes may have submitted."""
    stale_flows = tag_issuer.stale_flows(flows)
    if stale_flows:
        states = await hot_path.run(
            database, lambda c: lanes.read_plain_flows(c, stale_flows), connections=database.submits
        )
        tag_issuer.merge_states(states)


async def _insert(
    database: Database, new_tasks: Sequence[NewTask], ticket: Ticket, *, all_or_none: bool
) -> frozenset[UUID]:
    """Insert the tasks and return the ids of those that were; the ticket is void where none was."""
    epoch, created_ids = ticket.epoch, frozenset[UUID]()
    if epoch is not None:
        created_ids = await hot_path.run(
            database,
            lambda c: insert_at_gate(c, new_tasks, epoch, all_or_none=all_or_none),
            connections=database.submits,
        )
    ticket.is_void = not created_ids
    return created_ids
