"""The clock of the database was set back while tasks waited and ran."""

from app.db import hot_path
from app.db.database import Database
from app.kernel.ids import WorkerId
from app.kernel.states import TaskState
from app.queue.service import cancel
from app.queue.service.leases import Failure, LeaseService, fail
from app.queue.store import releases
from app.queue.store.claims import Lease
from app.queue.store.listing import Selection
from tests.support.factories import completion, fence, leased, ready_worker, submitted
from tests.support.sql import execute, fetch

_SET_BACK = "UPDATE tasks SET waiting_since = waiting_since + interval '1 h', leased_at = leased_at + interval '1 h'"


async def test_no_wait_and_no_attempt_is_shorter_than_nothing(database: Database, desk: LeaseService) -> None:
    """Sums of them would fall, and a negative mean has no logarithm, by which the weights compare speeds."""

    async def held() -> tuple[WorkerId, Lease]:
        await submitted(database)
        await execute(database, _SET_BACK)
        worker = await ready_worker(database)
        lease = await leased(database, worker)
        await execute(database, _SET_BACK)
        return worker, lease

    await desk.complete(completion(*await held()))
    worker, lease = await held()
    async with database.transaction() as connection:
        await fail(connection, fence(worker, lease), Failure(code="handler_error", message="no", retryable=False))
    await held()
    await cancel.cancel(database, Selection(states=[TaskState.EXECUTING]), limit=1, reason="wrong data")
    worker, lease = await held()
    await hot_path.run(database, lambda c: releases.release(c, {worker: lease}, "nobody wants it"))
    rows = await fetch(database, "SELECT kind, seconds FROM every_event WHERE seconds IS NOT NULL")
    kinds = {"task.assigned", "task.completed", "task.failed", "task.cancelled", "task.released"}
    assert ({row["kind"] for row in rows}, {row["seconds"] for row in rows}) == (kinds, {0.0})
