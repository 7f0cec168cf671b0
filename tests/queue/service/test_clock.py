"""The clock of the database was set back or forward while tasks waited and ran."""

import asyncio
from dataclasses import replace

from sqlalchemy import text

from app.db import hot_path
from app.db.database import Database
from app.kernel.ids import WorkerId
from app.kernel.states import TaskState
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import cancel, expiry
from app.queue.service.leases import Failure, LeaseService, fail
from app.queue.store import releases
from app.queue.store.claims import Lease
from app.queue.store.listing import Selection
from tests.support.factories import completion, fence, holding, leased, ready_worker, submitted, turn
from tests.support.sql import execute, fetch, until_blocked
from tests.support.turns import done

_POLICY = LeasePolicy()
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


async def test_a_lease_of_before_ends_when_nobody_renews_it(database: Database) -> None:
    """It has its time by the new clock, in which whoever is there renews it."""
    _, lease = await holding(database)
    times = ("leased_at", "lease_expires_at", "deadline_at")
    await execute(database, "UPDATE tasks SET " + ", ".join(f"{time} = {time} + interval '1 h'" for time in times))

    async def seconds() -> dict[str, float]:
        columns = ", ".join(f"extract(epoch FROM {time} - now())::float8 AS {time}" for time in times)
        return dict((await fetch(database, f"SELECT {columns} FROM tasks"))[0])

    async with database.transaction() as connection:
        assert done(await expiry.sweep(connection, _POLICY, turn())) == {"live": 1, "taken_back": 0, "cut": 1}
    left = await seconds()
    assert left["leased_at"] <= 0
    assert 0 < left["lease_expires_at"] <= _POLICY.lease_seconds
    assert 0 < left["deadline_at"] <= lease.timeout_seconds
    async with database.transaction() as connection:
        assert done(await expiry.sweep(connection, _POLICY, turn())) == {"live": 1, "taken_back": 0}
    assert [row["state"] for row in await fetch(database, "SELECT state FROM tasks")] == ["executing"]


async def test_a_clock_that_is_set_forward_takes_no_time_from_a_task(database: Database) -> None:
    """Its worker is at it, and measures by its own clock: nobody may call it hung for time that has not passed."""
    _, lease = await holding(database)
    times = ("leased_at", "lease_expires_at", "deadline_at")
    # As it is seen by the new clock: an hour and two seconds ago, and a heartbeat came in between.
    await execute(database, "UPDATE tasks SET " + ", ".join(f"{time} = {time} - interval '1 h'" for time in times))
    await execute(database, "UPDATE tasks SET lease_expires_at = now() + interval '14 s'")
    after = replace(turn(seconds_since_last=3602), set_forward_seconds=3600.0)
    async with database.transaction() as connection:
        assert done(await expiry.sweep(connection, _POLICY, after)) == {"live": 1, "taken_back": 0, "moved": 1}
    columns = ", ".join(f"extract(epoch FROM {time} - now())::float8 AS {time}" for time in times)
    left = dict((await fetch(database, f"SELECT {columns} FROM tasks"))[0])
    assert -60 < left["leased_at"] <= 0
    assert 0 < left["lease_expires_at"] <= _POLICY.lease_seconds
    assert lease.timeout_seconds - 60 < left["deadline_at"] <= lease.timeout_seconds
    async with database.transaction() as connection:
        assert done(await expiry.sweep(connection, _POLICY, turn())) == {"live": 1, "taken_back": 0}


async def test_a_lease_that_another_holds_is_moved_too(database: Database, replica: Database) -> None:
    """No later turn knows of it, and would end it."""
    await holding(database)
    await execute(
        database, "UPDATE tasks SET leased_at = leased_at - interval '1 h', deadline_at = deadline_at - interval '1 h'"
    )
    after = replace(turn(seconds_since_last=3602), set_forward_seconds=3600.0)

    async def sweep() -> dict[str, object]:
        async with replica.transaction() as connection:
            return done(await expiry.sweep(connection, _POLICY, after))

    async with database.transaction() as connection:
        await connection.execute(text("SELECT FROM tasks FOR UPDATE"))
        moving = asyncio.create_task(sweep())
        await until_blocked(database)
    assert await moving == {"live": 1, "taken_back": 0, "moved": 1}


async def test_what_was_leased_after_the_clock_was_set_forward_is_left_alone(database: Database) -> None:
    await holding(database)
    before = await fetch(database, "SELECT leased_at, deadline_at FROM tasks")
    after = replace(turn(seconds_since_last=3602), set_forward_seconds=3600.0)
    async with database.transaction() as connection:
        assert (await expiry.sweep(connection, _POLICY, after))["moved"] == 0
    assert await fetch(database, "SELECT leased_at, deadline_at FROM tasks") == before
