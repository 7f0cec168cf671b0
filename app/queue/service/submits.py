"""Single submits, coalesced: those that arrive together share a statement or a transaction, as if they were a batch.

Calls that know nothing of each other do not fail together: when one is refused, each is tried by itself.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from app.db.batching import Coalescer
from app.db.database import Database
from app.queue.service import direct_submits, tasks
from app.queue.service.task_traces import TaskTraces
from app.queue.service.tasks import Intake, Submission, Submitted

# More goals or namespaces than these at once are rare; those whose submits are over are forgotten then.
_MAX_COALESCERS = 256
_MAX_TOGETHER = 64
# A larger task has a statement of its own, for which those of others need not wait.
_MAX_SHARED_CHARACTERS = 64 << 10
T = TypeVar("T")


class _Coalescers(Generic[T]):
    """Coalescers of submits by their goal or kind, of which none keeps another waiting."""

    def __init__(
        self,
        submit: Callable[[Sequence[Submission]], Awaitable[Sequence[T]]],
        key: Callable[[Submission], Hashable],
    ) -> None:
        self._submit = submit
        self._key = key
        self._coalescers: dict[Hashable, Coalescer[Submission, T]] = {}

    def of(self, name: Hashable) -> Coalescer[Submission, T]:
        """The coalescer of this name."""
        if name not in self._coalescers:
            if len(self._coalescers) >= _MAX_COALESCERS:
                self._coalescers = {n: coalescer for n, coalescer in self._coalescers.items() if coalescer.is_busy}
            self._coalescers[name] = Coalescer(self._submit, self._key, limit=_MAX_TOGETHER)
        return self._coalescers[name]

    async def close(self) -> None:
        """Finish the calls that have arrived."""
        for coalescer in list(self._coalescers.values()):
            await coalescer.close()


class SubmitService:
    """Submits of one process. A goal whose hold is being changed keeps only its own submits waiting."""

    def __init__(self, database: Database, intake: Intake, traces: TaskTraces | None = None) -> None:
        self._database = database
        self._intake = intake
        self._traces = traces
        self._direct = _Coalescers(self._submit_directly, _key)
        self._by_goal = _Coalescers(self._submit_in_transaction, _key)

    async def stop(self) -> None:
        """Finish the calls that have arrived."""
        await self._direct.close()
        await self._by_goal.close()

    async def submit(self, submission: Submission) -> Submitted:
        """Create a task, durably. Raises as `tasks.submit` does."""
        spans = None if self._traces is None else self._traces.begin_submits([submission])
        submitted = await self._submit_one(submission)
        if self._traces is not None and spans is not None:
            self._traces.end_submits(spans, [submission], [submitted])
        return submitted

    async def submit_batch(self, submissions: Sequence[Submission]) -> Sequence[Submitted]:
        """Create all of the tasks or none, durably. Raises as `tasks.submit` does."""
        spans = None if self._traces is None else self._traces.begin_submits(submissions)
        results = await self._submit_all(submissions)
        if self._traces is not None and spans is not None:
            self._traces.end_submits(spans, submissions, results)
        return results

    async def _submit_one(self, submission: Submission) -> Submitted:
        if direct_submits.is_direct(submission, self._database, self._intake):
            if len(submission.payload) > _MAX_SHARED_CHARACTERS:
                (submitted,) = await self._submit_directly([submission])
            else:
                # Those that may exist already have another statement.
                kind = submission.namespace, direct_submits.is_new(submission)
                submitted = await self._direct.of(kind)(submission)
            if submitted is not None:
                return submitted
        if submission.depends_on:
            # It locks what it depends on, for which others should not have to wait.
            (submitted,) = await self._submit_in_transaction([submission])
            return submitted
        return await self._by_goal.of(submission.goal_id)(submission)

    async def _submit_all(self, submissions: Sequence[Submission]) -> Sequence[Submitted]:
        submitted = await direct_submits.submit(self._database, submissions, self._intake)
        if submitted is not None:
            return submitted
        return await self._submit_in_transaction(submissions)

    async def _submit_directly(self, submissions: Sequence[Submission]) -> Sequence[Submitted | None]:
        return await direct_submits.submit_each(self._database, submissions, self._intake)

    async def _submit_in_transaction(self, submissions: Sequence[Submission]) -> Sequence[Submitted]:
        async with self._database.transaction() as connection:
            return await tasks.submit(connection, submissions, self._intake)


def _key(submission: Submission) -> Hashable:
    """Calls that may be about one task do not share a batch: the second one finds what the first has made."""
    return tasks.identity(submission) or object()
