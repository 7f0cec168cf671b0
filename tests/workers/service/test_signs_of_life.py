"""Calls of workers as signs of life: stored seldom, in time, and not for those that beat by themselves."""

from dataclasses import dataclass, field
from typing import Any

from app.db.database import Database
from app.kernel.ids import WorkerId
from app.queue.broker.broker import Broker
from app.workers.service.signs_of_life import SignsOfLife
from tests.support.factories import ready_worker
from tests.support.sql import execute, value


@dataclass(slots=True)
class _Waits:
    """The broker's calls that wait."""

    workers: set[WorkerId] = field(default_factory=set)

    def is_waiting(self, worker_id: WorkerId) -> bool:
        return worker_id in self.workers


@dataclass(slots=True)
class _Replica:
    """Signs of life as one process of the API sees them, by a clock that the test moves with the database's rows."""

    database: Database
    waits: _Waits = field(default_factory=_Waits)
    at: float = 0.0
    signs: SignsOfLife = field(init=False)

    def __post_init__(self) -> None:
        broker: Any = self.waits
        assert callable(Broker.is_waiting)
        self.signs = SignsOfLife(self.database, broker, clock=lambda: self.at)


async def _pass(database: Database, seconds: float, *replicas: _Replica) -> None:
    await execute(
        database, "UPDATE workers SET last_seen_at = last_seen_at - make_interval(secs => $1)", float(seconds)
    )
    for replica in replicas:
        replica.at += seconds


async def _silence(database: Database, worker: WorkerId) -> float:
    return round(
        float(
            await value(
                database, "SELECT extract(epoch FROM now() - last_seen_at)::float8 FROM workers WHERE id = $1", worker
            )
        )
    )


async def _writes(database: Database, worker: WorkerId) -> str:
    return str(await value(database, "SELECT xmin::text FROM workers WHERE id = $1", worker))


async def test_a_call_is_stored_with_its_time(database: Database) -> None:
    worker, api = await ready_worker(database), _Replica(database)
    await _pass(database, 8, api)
    api.signs.note(worker)
    await _pass(database, 3, api)
    await api.signs.store_due()
    assert await _silence(database, worker) == 3


async def test_a_worker_that_beats_is_never_written_for(database: Database) -> None:
    worker, api = await ready_worker(database), _Replica(database)
    for _ in range(10):
        api.signs.note(worker)
        await execute(database, "UPDATE workers SET last_seen_at = now() WHERE id = $1", worker)
        api.signs.note_heartbeat(worker)
        await _pass(database, 5, api)
        api.signs.note(worker)
        before = await _writes(database, worker)
        await api.signs.store_due()
        assert await _writes(database, worker) == before


async def test_calls_without_a_pause_are_written_once_in_half_the_time(database: Database) -> None:
    worker, api = await ready_worker(database), _Replica(database)
    changes = 0
    for _ in range(60):
        await _pass(database, 1, api)
        api.signs.note(worker)
        before = await _writes(database, worker)
        await api.signs.store_due()
        changes += await _writes(database, worker) != before
        assert await _silence(database, worker) < 10
    assert changes <= 60 / 7.5 + 1


async def test_a_call_that_waits_is_a_sign_of_life_until_it_ends(database: Database) -> None:
    worker, api = await ready_worker(database), _Replica(database)
    api.signs.note(worker)
    api.waits.workers.add(worker)
    for _ in range(30):
        await _pass(database, 2, api)
        await api.signs.store_due()
        assert await _silence(database, worker) < 12
    api.waits.workers.clear()
    silence = await _silence(database, worker)
    for _ in range(10):
        await _pass(database, 2, api)
        await api.signs.store_due()
    assert await _silence(database, worker) == silence + 20


async def test_who_beats_while_it_waits_is_held_to_that_whichever_process_stores_it(database: Database) -> None:
    worker, api = await ready_worker(database), _Replica(database)
    api.signs.note(worker)
    api.waits.workers.add(worker)
    for second in range(30):
        if second % 5 == 0:
            # By another process.
            await execute(database, "UPDATE workers SET last_seen_at = now() WHERE id = $1", worker)
        await _pass(database, 1, api)
        await api.signs.store_due()
    # It hangs, and its connection is still there.
    for _ in range(20):
        await _pass(database, 1, api)
        await api.signs.store_due()
    assert await _silence(database, worker) > 15


async def test_one_heartbeat_that_crosses_the_end_of_a_wait_is_no_habit(database: Database) -> None:
    worker, api = await ready_worker(database), _Replica(database)
    api.signs.note(worker)
    api.waits.workers.add(worker)
    api.signs.note_heartbeat(worker)
    for _ in range(30):
        await _pass(database, 1, api)
        await api.signs.store_due()
    assert await _silence(database, worker) < 10


async def test_two_processes_never_set_a_time_back(database: Database) -> None:
    worker, early, late = await ready_worker(database), _Replica(database), _Replica(database)
    await _pass(database, 8, early, late)
    early.signs.note(worker)
    await _pass(database, 1, early, late)
    late.signs.note(worker)
    await late.signs.store_due()
    await early.signs.store_due()
    assert await _silence(database, worker) == 0


async def test_who_has_not_begun_or_has_ended_gets_no_sign(database: Database) -> None:
    beginner, ended, api = await ready_worker(database), await ready_worker(database), _Replica(database)
    await execute(database, "UPDATE workers SET state = 'starting', last_seen_at = NULL WHERE id = $1", beginner)
    await execute(database, "UPDATE workers SET state = 'lost', ended_at = now() WHERE id = $1", ended)
    for worker in (beginner, ended):
        api.signs.note(worker)
    await _pass(database, 1, api)
    await api.signs.store_due()
    assert await value(database, "SELECT last_seen_at FROM workers WHERE id = $1", beginner) is None
    assert await _silence(database, ended) == 1
