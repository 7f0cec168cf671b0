"""The runner of the schedule: each at its own pace, one replica at a time, and no error ends a loop."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.db.database import Database
from app.db.duties import Turn
from app.kernel.errors import DatabaseUnavailable, Locked
from app.loops import runner
from app.loops.schedule import Context, Duty, Job
from app.queue.service import tasks
from tests.support.factories import submission, submitted
from tests.support.runner import running
from tests.support.sql import execute, fetch, until, until_blocked, value

Done = dict[str, Any]


class _Counter:
    """Work that counts its turns, and fails as often as it is told to."""

    def __init__(self, *errors: Exception) -> None:
        self.turns = 0
        self.errors = list(errors)

    async def duty(self, _: Context, __: AsyncConnection, ___: Turn) -> Done:
        return await self.job(None)

    async def job(self, _: object) -> Done:
        self.turns += 1
        if self.errors:
            raise self.errors.pop(0)
        return {}

    async def reaches(self, turns: int) -> None:
        async def there() -> bool:
            return self.turns >= turns

        await until(there)


def _duty(run: Callable[[Context, AsyncConnection, Turn], Awaitable[Done]], **changes: Any) -> Duty:
    return replace(Duty(name="test", seconds=0.05, run=run), **changes)


async def _runs(database: Database, duty: str = "test") -> int:
    return int(await value(database, "SELECT coalesce(max(runs), 0) FROM loop_ticks WHERE duty = $1", duty))


async def _until_runs(database: Database, runs: int, duty: str = "test") -> None:
    async def there() -> bool:
        return await _runs(database, duty) >= runs

    await until(there)


async def test_one_that_fails_stops_neither_itself_nor_the_others(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    failing = _Counter(ValueError("bad luck"), DatabaseUnavailable(), OSError(), KeyError("x"))
    clumsy = _Counter(*(RuntimeError() for _ in range(4)))
    well = _Counter()
    async with running(
        database,
        _duty(failing.duty, name="failing"),
        Job(name="clumsy", seconds=0.05, run=clumsy.job),
        _duty(well.duty, name="well"),
    ):
        for counter in (failing, clumsy, well):
            await counter.reaches(6)
        await _until_runs(database, 2, "failing")
    assert "bad luck" in caplog.text
    assert "failing: The database does not answer" in caplog.text


async def test_a_turn_that_found_something_locked_comes_again_soon(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promotion was followed a minute later, where a transaction wrote events at its first turn."""
    monkeypatch.setattr(runner, "_AGAIN_SECONDS", 0.1)
    counter = _Counter(Locked(), Locked())
    async with running(database, _duty(counter.duty, seconds=600)):
        await counter.reaches(3)


async def test_what_has_woken_a_turn_wakes_it_again_where_the_database_was_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler leads to the promoted server later than LISTEN does: it was followed a minute later."""
    monkeypatch.setattr(runner, "_AGAIN_SECONDS", 0.1)
    counter = _Counter()
    async with running(database, _duty(counter.duty, seconds=600, wakes_on="again")):
        await counter.reaches(1)
        counter.errors += [DatabaseUnavailable(), DatabaseUnavailable()]
        database.announcer.announce(["again"])
        await counter.reaches(4)


async def test_work_and_turn_are_rolled_back_together(database: Database) -> None:
    attempts = 0

    async def submit_and_stumble(_: Context, connection: AsyncConnection, __: Turn) -> Done:
        nonlocal attempts
        attempts += 1
        await tasks.submit(connection, [submission()])
        if attempts != 3:
            raise RuntimeError("crashed in the middle")
        return {"submitted": 1}

    async with running(database, _duty(submit_and_stumble, seconds=600, wakes_on="again")):

        async def third() -> bool:
            database.announcer.announce(["again"])
            return attempts >= 3

        await until(third)
        await _until_runs(database, 1)
    # The other attempts left no trace, neither of the work nor of the turn.
    assert await value(database, "SELECT count(*) FROM tasks") == await _runs(database) == 1
    row = (await fetch(database, "SELECT result, last_run_at FROM loop_ticks"))[0]
    assert row["result"] == '{"submitted": 1}'
    assert row["last_run_at"] is not None


async def test_two_replicas_share_a_duty(database: Database, replica: Database) -> None:
    """Each turn is taken by one of them, and never are two at it at once."""
    one, other = _Counter(), _Counter()
    with_one = _duty(one.duty, seconds=0.4)
    async with running(database, with_one), running(replica, replace(with_one, run=other.duty)):
        await _until_runs(database, 4)
    taken = one.turns + other.turns
    assert taken in (await _runs(database), await _runs(database) + 1)  # the last may have been cancelled


async def test_while_one_replica_is_at_it_the_other_stays_out(database: Database, replica: Database) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()
    other = _Counter()

    async def slow(_: Context, __: AsyncConnection, ___: Turn) -> Done:
        begun.set()
        await finish.wait()
        return {}

    async with running(database, _duty(slow, seconds=600)):
        await begun.wait()
        impatient = _duty(other.duty, seconds=0.01)
        beside = _Counter()
        async with running(replica, impatient, _duty(beside.duty, name="beside", seconds=0.01)):
            await beside.reaches(5)
            assert other.turns == 0
            finish.set()
            await other.reaches(1)


async def test_a_replica_that_dies_in_its_turn_leaves_it_to_the_other(database: Database, replica: Database) -> None:
    begun = asyncio.Event()
    other = _Counter()

    async def hang(_: Context, connection: AsyncConnection, __: Turn) -> Done:
        await tasks.submit(connection, [submission()])
        begun.set()
        await asyncio.Event().wait()
        return {}

    async with running(database, _duty(hang)):
        await begun.wait()
    async with running(replica, _duty(other.duty)):
        await other.reaches(1)
    assert await value(database, "SELECT count(*) FROM tasks") == 0


async def test_an_announcement_wakes_what_waits_for_it(database: Database, replica: Database) -> None:
    duty, job, deaf = _Counter(), _Counter(), _Counter()
    async with running(
        database,
        _duty(duty.duty, seconds=600, wakes_on=notify.FLEET),
        Job(name="job", seconds=600, run=job.job, wakes_on=notify.LAUNCHES),
        _duty(deaf.duty, name="deaf", seconds=600),
    ):
        for counter in (duty, job, deaf):
            await counter.reaches(1)
        database.announcer.announce([notify.FLEET])
        await duty.reaches(2)
        assert job.turns == 1
        # From another process it comes by way of the database, which may still be connecting: so it is sent again.

        async def heard() -> bool:
            replica.announcer.announce([notify.LAUNCHES])
            return job.turns >= 2

        await until(heard)
        assert deaf.turns == 1


async def test_a_ring_during_a_turn_is_not_lost(database: Database) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()
    turns = 0

    async def slow(_: Context, __: AsyncConnection, ___: Turn) -> Done:
        nonlocal turns
        turns += 1
        begun.set()
        await finish.wait()
        return {}

    async with running(database, _duty(slow, seconds=600, wakes_on=notify.FLEET)):
        await begun.wait()
        database.announcer.announce([notify.FLEET])
        finish.set()

        async def again() -> bool:
            return turns == 2

        await until(again)


async def test_a_connection_that_was_made_anew_wakes_what_waits_for_it(database: Database) -> None:
    """Such as the duty that follows promotions: it leads to another server after one."""
    counter = _Counter()
    async with running(database, _duty(counter.duty, seconds=600, wakes_on=notify.CONNECTED)):

        async def is_connected() -> bool:
            return database.announcer.backend is not None

        await until(is_connected)
        await counter.reaches(1)
        turns = counter.turns
        await execute(database, "SELECT pg_terminate_backend($1)", database.announcer.backend)
        await counter.reaches(turns + 1)


async def test_turns_go_on_after_the_clock_was_set_back(database: Database) -> None:
    async with running(database, _duty(_Counter().duty)):
        await _until_runs(database, 1)
    await execute(database, "UPDATE loop_ticks SET last_run_at = last_run_at + interval '1 h'")
    spans: list[float] = []

    async def note(_: Context, __: AsyncConnection, turn: Turn) -> Done:
        spans.append(turn.seconds_since_last)
        return {}

    async with running(database, _duty(note)):
        await _until_runs(database, 3)
    assert spans[0] == 0


async def test_a_duty_learns_by_how_much_the_clock_was_set_forward_and_takes_no_absence_for_it(
    database: Database,
) -> None:
    """As much more as the clock says has passed since the last turn than can have since one of this process."""
    steps: list[float] = []

    async def note(_: Context, __: AsyncConnection, turn: Turn) -> Done:
        steps.append(turn.set_forward_seconds)
        return {}

    async def set_forward() -> None:
        await execute(database, "UPDATE loop_ticks SET last_run_at = last_run_at - interval '1 h'")

    async with running(database, _duty(note)):
        await _until_runs(database, 2)
        await set_forward()
        count = len(steps)
        await _until_runs(database, count + 3)
    assert [round(step / 60) for step in steps if step > 1] == [60]
    await set_forward()
    steps.clear()
    async with running(database, _duty(note)):
        await _until_runs(database, await _runs(database) + 2)
    assert max(steps) < 1


async def test_a_duty_that_takes_long_rests_for_four_times_as_long(database: Database) -> None:
    """What it looks through may have grown, and the others have the database too."""
    ended: list[float] = []

    async def work(*_: object) -> Done:
        await asyncio.sleep(0.3)
        ended.append(asyncio.get_running_loop().time())
        return {}

    async def job(_: object) -> None:
        await work()

    async def has_three() -> bool:
        return len(ended) >= 3

    async with running(database, _duty(work)):
        await until(has_three)
    assert min(later - earlier for earlier, later in pairwise(ended)) >= 1.4
    ended.clear()
    # A job may wait for others, which costs the database nothing.

    async def has_not_rested() -> bool:
        return any(later - earlier < 1.4 for earlier, later in pairwise(ended))

    async with running(database, Job(name="test", seconds=0.05, run=job)):
        await until(has_not_rested)


async def test_a_turn_that_leaves_work_is_followed_by_the_next(database: Database) -> None:
    """100,000 tasks that became due at one moment were promoted by 1000 in half a second."""
    results: list[Done] = [{"behind": True}, {"behind": True}, {}]
    begun: list[float] = []

    async def work(*_: object) -> Done:
        begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.1)
        return results[len(begun) - 1]

    async def has_three() -> bool:
        return await _runs(database) == 3

    async with running(database, _duty(work, seconds=600)):
        await until(has_three)
        await asyncio.sleep(1)
    assert len(begun) == 3
    assert min(later - earlier for earlier, later in pairwise(begun)) >= 0.45, "it rests none the less"


async def test_the_log_has_what_a_turn_has_done_that_the_one_before_has_not(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """An idle service in development wrote 27 KB a minute, most of it what the next turn goes by."""
    caplog.set_level("DEBUG", "app.loops.runner")
    state = {"looked_at": "2026-12-01", "spells": [{"rule": "cpu"}], "seconds": 0.1}
    results: list[Done] = [{"opened": 0}, {"opened": 2}, {"opened": 2}, {"opened": 0}, {"opened": 2, "type": "more"}]
    turns = 0

    async def work(_: Context, __: AsyncConnection, ___: Turn) -> Done:
        nonlocal turns
        turns += 1
        return {**state, "decision": turns, **(results.pop(0) if results else {})}

    async with running(database, _duty(work)):
        await _until_runs(database, 7)
    lines = [(record.getMessage(), record.fields) for record in caplog.records if hasattr(record, "fields")]
    assert lines == [("test", {"opened": 2}), ("test", {"opened": 2, "type": "more"})]


async def test_a_turn_is_not_taken_before_its_time(database: Database, replica: Database) -> None:
    one, other, beside = _Counter(), _Counter(), _Counter()
    async with running(database, _duty(one.duty, seconds=600)):
        await _until_runs(database, 1)
    async with running(replica, _duty(other.duty, seconds=600), _duty(beside.duty, name="beside", seconds=0.01)):
        await beside.reaches(3)
    assert other.turns == 0


async def test_a_duty_learns_how_long_ago_the_last_turn_was_and_whether_it_held_back(database: Database) -> None:
    seen: list[Turn] = []

    async def hold_back_once(_: Context, __: AsyncConnection, turn: Turn) -> Done:
        seen.append(turn)
        return {"held_back": len(seen) == 1}

    async with running(database, _duty(hold_back_once)):

        async def three() -> bool:
            return len(seen) >= 3

        await until(three)
    assert [turn.held_back for turn in seen[:3]] == [False, True, False]
    assert seen[0].seconds_since_last == 0
    assert all(0 < turn.seconds_since_last < 30 for turn in seen[1:3])


async def test_the_loops_outlive_the_loss_of_every_connection(database: Database) -> None:
    counter = _Counter()
    async with running(database, _duty(counter.duty)):
        await counter.reaches(2)
        await execute(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
        )
        before = await _runs(database)
        await _until_runs(database, before + 2)


async def test_a_blocked_duty_keeps_no_other_waiting(database: Database, replica: Database) -> None:
    """A lock that somebody holds delays the duty that needs it, and that one only."""
    await submitted(database)
    beside = _Counter()

    async def lock_all(_: Context, connection: AsyncConnection, __: Turn) -> Done:
        await connection.exec_driver_sql("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        return {}

    async with replica.transaction() as holder:
        await holder.exec_driver_sql("SELECT * FROM tasks FOR UPDATE")
        async with running(database, _duty(lock_all), _duty(beside.duty, name="beside", seconds=0.01)):
            await until_blocked(database)
            await beside.reaches(beside.turns + 5)


async def test_turns_that_do_not_end_are_told_of_until_they_do(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_LOOK_SECONDS", 0.05)
    # More than a busy machine stands still.
    monkeypatch.setattr(runner, "_PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr(runner, "_REPEAT_SECONDS", 0.3)
    finish = asyncio.Event()

    async def stuck(_: object) -> None:
        await finish.wait()

    async def logged(words: str, times: int = 1) -> bool:
        return caplog.text.count(words) >= times

    async with running(
        database, Job(name="stuck", seconds=0.05, run=stuck), Job(name="well", seconds=0.05, run=_Counter().job)
    ):
        await until(lambda: logged("no turn has come to an end for too long: stuck (", 2))
        assert "well (" not in caplog.text
        finish.set()
        await until(lambda: logged("keep their pace again"))


async def test_the_file_of_life_is_touched_unless_a_turn_hangs_that_the_database_does_not_hold_up(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(runner, "_PATIENCE_SECONDS", 0.5)
    file, going_on, turns = tmp_path / "alive", asyncio.Event(), 0

    async def hang(_: object) -> None:
        nonlocal turns
        turns += 1
        if turns > 1:
            await going_on.wait()

    async def is_alive() -> bool:
        return file.exists()

    async def is_alive_while_away() -> bool:
        # Again and again, as answers to what the loops ask meanwhile end it.
        database.outage.note_failure(ConnectionRefusedError())
        return file.exists()

    async def is_late() -> bool:
        file.unlink(missing_ok=True)
        await asyncio.sleep(0.1)
        return not file.exists()

    async with running(database, Job(name="hanging", seconds=0.01, run=hang), liveness_file=file):
        await until(is_alive)
        await until(is_late)
        await until(is_alive_while_away)
        database.outage.note_answer()
        await until(is_late)
        going_on.set()
        await until(is_alive)


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("app.main", {"alembic", "httpx", "rich", "typer"}),
        ("app.background", {"alembic", "fastapi", "httpx", "jinja2", "rich", "starlette", "typer", "uvicorn"}),
    ],
)
def test_a_program_imports_at_its_start_what_it_runs_with(program: str, unwanted: set[str]) -> None:
    """After an outage of a host all start at once, and lost workers are replaced no sooner."""
    script = f"import sys, {program}; print({unwanted!r} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
