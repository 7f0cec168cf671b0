"""Submits by one statement: of new tasks about which nothing has to be looked up before, as most are."""

from collections.abc import Iterable, Mapping, Sequence

from app.db import hot_path, notify
from app.db.database import Database
from app.db.turns import Turns
from app.kernel.lanes import Lane
from app.queue.rules.fair_queueing import TagRun
from app.queue.service import tasks
from app.queue.service.admission import Ticket
from app.queue.service.tags import by_flow, give_tags
from app.queue.service.tasks import Intake, Submission, Submitted
from app.queue.store import lanes
from app.queue.store.lanes import Flow, TagIssuer
from app.queue.store.new_tasks import NewTask, insert_at_gate


def is_direct(submission: Submission, database: Database, intake: Intake) -> bool:
    """Whether nothing has to be looked up: it is certainly new, and has no dependency, request or deadline.

    Behind a connection pooler no submit is direct: a statement without a transaction has the short limits of the hot
    path there.
    """
    return (
        submission.id is None
        and submission.idempotency_key is None
        and not submission.depends_on
        and submission.resources is None
        and submission.deadline is None
        and intake.admission is not None
        and intake.duplicate_window_seconds <= 0
        and not database.is_pooled
    )


async def submit(database: Database, submissions: Sequence[Submission], intake: Intake) -> list[Submitted] | None:
    """Create all of the tasks; None, and none is created, where `tasks.submit` has to look at something first.

    This is so where one of them is not direct or its goal is held or has stopped, where the queue is not far from full,
    and where all connections for this are in use.
    """
    if not all(is_direct(submission, database, intake) for submission in submissions):
        return None
    results = await _submit(database, submissions, intake, all_or_none=True)
    return [result for result in results if result is not None] or None


async def submit_each(database: Database, submissions: Sequence[Submission], intake: Intake) -> list[Submitted | None]:
    """Create direct tasks of one namespace; None for each that is not created, and is for `tasks.submit`."""
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
        gated = None
        try:
            await tasks.take_turn(turns, submissions)
            gated = await _insert(database, new_tasks, ticket, all_or_none=all_or_none)
        finally:
            tag_issuer.take_back({flow: run for flow, run in tags.items() if gated is None or flow[1] in gated})
    if gated is None:
        return refused
    created = [task for task in new_tasks if task.goal_id not in gated]
    news = _news({flow: run for flow, run in tags.items() if flow[1] not in gated})
    if intake.on_submitted is not None:
        news |= dict.fromkeys(intake.on_submitted(tasks.runnable_agents(created)), 0.0)
    database.announcer.announce(news)
    return [None if task.goal_id in gated else Submitted(task.id, task.state, True) for task in new_tasks]


def _news(tags: Mapping[Flow, TagRun]) -> dict[str, float]:
    """The announcement of new tasks: the lowest tag of each lane."""
    lowest: dict[Lane, float] = {}
    for (lane, _), run in tags.items():
        lowest[lane] = min(run.first, lowest.get(lane, run.first))
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
) -> frozenset[str | None] | None:
    """Insert the tasks and return the goals of which none was inserted; None, and the ticket is void, where none is."""
    epoch, gated = ticket.epoch, None
    if epoch is not None:
        gated = await hot_path.run(
            database,
            lambda c: insert_at_gate(c, new_tasks, epoch, all_or_none=all_or_none),
            connections=database.submits,
        )
    ticket.is_void = gated is None
    return gated
