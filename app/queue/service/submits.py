"""Single submits, coalesced: those of a goal that arrive together share one transaction, as if they were a batch.

Calls that know nothing of each other do not fail together: when one is refused, each is tried by itself.
"""

from collections.abc import Hashable, Sequence

from app.db.batching import Coalescer
from app.db.database import Database
from app.queue.service import direct_submits, tasks
from app.queue.service.task_traces import TaskTraces
from app.queue.service.tasks import Intake, Submission, Submitted

# More goals than these at once are rare; those whose submits are over are forgotten then.
_MAX_GOALS = 256


class SubmitService:
    """Submits of one process. A goal whose hold is being changed keeps only its own submits waiting."""

    def __init__(self, database: Database, intake: Intake, traces: TaskTraces | None = None) -> None:
        self._database = database
        self._intake = intake
        self._traces = traces
        self._by_goal: dict[str | None, Coalescer[Submission, Submitted]] = {}

    async def stop(self) -> None:
        """Finish the calls that have arrived."""
        for coalescer in list(self._by_goal.values()):
            await coalescer.close()

    async def submit(self, submission: Submission) -> Submitted:
        """Create a task, durably. Raises as `tasks.submit` does."""
        spans = None if self._traces is None else self._traces.begin_submits([submission])
        if submission.depends_on:
            # It locks what it depends on, for which others should not have to wait.
            (submitted,) = await self._submit([submission])
        else:
            if submission.goal_id not in self._by_goal and len(self._by_goal) >= _MAX_GOALS:
                self._by_goal = {goal: coalescer for goal, coalescer in self._by_goal.items() if coalescer.is_busy}
            coalescer = self._by_goal.setdefault(submission.goal_id, Coalescer(self._submit, _key, limit=64))
            submitted = await coalescer(submission)
        if self._traces is not None and spans is not None:
            self._traces.end_submits(spans, [submission], [submitted])
        return submitted

    async def submit_batch(self, submissions: Sequence[Submission]) -> Sequence[Submitted]:
        """Create all of the tasks or none, durably. Raises as `tasks.submit` does."""
        spans = None if self._traces is None else self._traces.begin_submits(submissions)
        results = await self._submit(submissions)
        if self._traces is not None and spans is not None:
            self._traces.end_submits(spans, submissions, results)
        return results

    async def _submit(self, submissions: Sequence[Submission]) -> Sequence[Submitted]:
        submitted = await direct_submits.submit(self._database, submissions, self._intake)
        if submitted is not None:
            return submitted
        async with self._database.transaction() as connection:
            return await tasks.submit(connection, submissions, self._intake)


def _key(submission: Submission) -> Hashable:
    """Calls that may be about one task do not share a batch: the second one finds what the first has made."""
    return tasks.identity(submission) or object()
