"""Submits by one statement: of new tasks about which nothing has to be looked up before, as most are."""

from collections.abc import Sequence

from app.db import hot_path
from app.db.database import Database
from app.db.turns import Turns
from app.queue.service import tasks
from app.queue.service.admission import Ticket
from app.queue.service.tags import by_flow, give_tags, plain_flows
from app.queue.service.tasks import Intake, Submission, Submitted
from app.queue.store.lanes import TagIssuer
from app.queue.store.new_tasks import NewTask, insert_at_gate


async def submit(database: Database, submissions: Sequence[Submission], intake: Intake) -> list[Submitted] | None:
    """Create all of the tasks; None, and none is created, where `tasks.submit` has to look at something first.

    This is so where they are not certainly new, depend on others, ask for resources or have a deadline, where what this
    process knows of the queue or of their flows is old or the queue is not far from full, and where a goal is held; and
    behind a connection pooler, where a statement without a transaction has the short limits of the hot path.
    """
    if intake.admission is None or intake.duplicate_window_seconds > 0 or not all(map(_is_plain, submissions)):
        return None
    turns, tag_issuer = database.shared(Turns), database.shared(TagIssuer)
    await tasks.take_turn(turns, submissions)
    if database.is_pooled or not submissions or tag_issuer.stale_flows(plain_flows(submissions)):
        return None
    priorities = [submission.priority for submission in submissions]
    with intake.admission.entering_unread(priorities, namespace=submissions[0].namespace) as ticket:
        if ticket is None:
            return None
        new_tasks = [tasks.new_task(submission) for submission in submissions]
        flows = by_flow(new_tasks)
        tags = {flow: tag_issuer.issue(flow, len(tasks_of_flow)) for flow, tasks_of_flow in flows.items()}
        give_tags(flows, tags)
        news = None
        try:
            await tasks.take_turn(turns, submissions)
            news = await _insert(database, new_tasks, ticket)
        finally:
            if news is None:
                tag_issuer.take_back(tags)
    if news is None:
        return None
    if intake.on_submitted is not None:
        news |= dict.fromkeys(intake.on_submitted(tasks.runnable_agents(new_tasks)), 0.0)
    database.announcer.announce(news)
    return [Submitted(task.id, task.state, True) for task in new_tasks]


async def _insert(database: Database, new_tasks: Sequence[NewTask], ticket: Ticket) -> dict[str, float] | None:
    """Insert the tasks and return the news of it; None, and the ticket is void, where none was inserted."""
    epoch, news = ticket.epoch, None
    # Of connections for transactions there are more.
    if epoch is not None and not database.submits.is_exhausted:
        news = await hot_path.run(database, lambda c: insert_at_gate(c, new_tasks, epoch), connections=database.submits)
    ticket.is_void = news is None
    return news


def _is_plain(submission: Submission) -> bool:
    return (
        submission.id is None
        and submission.idempotency_key is None
        and not submission.depends_on
        and submission.resources is None
        and submission.deadline is None
    )
