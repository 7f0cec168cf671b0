"""An empty database can be filled from a checkpoint."""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from app.admin.rules.config import IterationConfig as Configured
from app.admin.rules.config import preset
from app.admin.service import config
from app.admin.service.access import create_key
from app.admin.service.keyring import Keyring
from app.admin.store.keys import NewKey
from app.db import schema
from app.db.database import Database
from app.goals.rules.stopping import Quality
from app.goals.service import budget_enforcement as keeping
from app.goals.service import goals, iterations
from app.goals.service.iterations import IterationReport
from app.kernel.access import Role
from app.kernel.agents import AgentType
from app.kernel.errors import Refused
from app.kernel.lanes import SPAN, class_of
from app.kernel.modes import Mode
from app.llm.rules.circuit_breaker import Breaker
from app.llm.rules.models import ModelLimits
from app.llm.rules.rate_limit import Dimension
from app.llm.store import models
from app.memory.service import checkpoints
from app.memory.store import context
from app.memory.store.context import EntryKey, Write
from app.queue.store import cancel, events
from app.queue.store.listing import Selection
from tests.conftest import empty_database, run_on
from tests.goals.service.budgeted_goals import enforce_budgets
from tests.memory.service.test_backups import check_invariants
from tests.memory.service.test_checkpoints import complete, is_accepted, take
from tests.support.agent_results import add_example_2_results, configure_example_2, in_force, tick
from tests.support.factories import completion, everything, goal_request, holding, leased, ready_worker, submitted
from tests.support.sql import execute, fetch, value

GPU = '{"gpus": 1}'


@asynccontextmanager
async def _empty(server_url: str, *, migrated: bool = False) -> AsyncIterator[Database]:
    async with empty_database(server_url) as database:
        if migrated:
            await schema.migrate(database.engine)
            # As another process would do it: connections that it leaves behind are not ours.
            await database.engine.dispose()
        yield database


async def _restore(database: Database, source: Database) -> checkpoints.RestoredCheckpoint:
    taken = await checkpoints.take(source, "test")
    return await checkpoints.restore(
        database, b"".join(await checkpoints.read_pieces(source, taken.id)), taken.sha256, "test"
    )


@pytest.mark.parametrize("migrated", [True, False])
async def test_a_restore_brings_everything_back(own_database: Database, server_url: str, migrated: bool) -> None:
    worker_id, lease = await holding(own_database, agent_type=AgentType.GENERATION, labels='{"a": "b"}')
    achieved = """progress = '{"percent": 40}', checkpoint = '{"n": 4}', failures = 1, rescues = 2"""
    await execute(own_database, f"UPDATE tasks SET {achieved}, token = 7")
    await execute(own_database, "UPDATE leases SET token = 7")
    (waiting,) = await submitted(own_database, agent_type=AgentType.RANKING, payload='{"x": 1.5, "y": [null, "ü"]}')
    (blocked,) = await submitted(own_database, depends_on=[lease.task_id, waiting])
    async with own_database.transaction() as connection:
        for n, text in enumerate(('{"a": 1}', "null")):
            await context.write(connection, EntryKey(namespace="n", key="k"), n, Write(value=text, written_by="me"))
        await context.write(connection, EntryKey(namespace="n", key="gone"), 0, Write(value="1", written_by="me"))
        await context.write(connection, EntryKey(namespace="n", key="gone"), 1, Write(value=None, written_by="me"))
        cursor = await events.latest(connection)
    await configure_example_2(own_database)
    await tick(own_database)
    await add_example_2_results(own_database)
    await tick(own_database)
    async with _empty(server_url, migrated=migrated) as database:
        if migrated:
            beside = await database.connect()
            await beside.execute("INSERT INTO loop_ticks (duty, last_run_at) VALUES ('find the oldest', now())")
            await beside.close()
        done = await _restore(database, own_database)
        # A turn that took place without these tasks knows nothing of them.
        assert await fetch(database, "SELECT duty FROM loop_ticks") == []
        assert (done.tasks, done.released, done.dependencies, done.context) == (3, 1, 2, 2)
        task = await everything(database, lease.task_id)
        assert (task["state"], task["worker_id"], task["token"]) == ("pending", None, 7)
        assert (task["failures"], task["rescues"]) == (1, 2)
        assert (task["checkpoint"], task["progress"]) == ({"n": 4}, {"percent": 40})
        assert await everything(database, waiting) == await everything(own_database, waiting)
        assert (await everything(database, blocked))["state"] == "blocked"
        async with database.transaction() as connection:
            entry = await context.read(connection, EntryKey(namespace="n", key="k"))
            gone = await context.read(connection, EntryKey(namespace="n", key="gone"))
            told = (await events.read_batch(connection, cursor, None, 10)).items
        assert entry is not None
        assert (entry.version, entry.value, entry.deleted) == (2, None, False)
        assert gone is not None
        assert (gone.version, gone.deleted) == (2, True)
        kinds = {event.task_id: event.kind for event in told}
        assert kinds == {lease.task_id: "task.released", waiting: "task.submitted", blocked: "task.submitted"}
        assert all(event.detail and "checkpoint" in event.detail["reason"] for event in told)
        await check_invariants(database)
        assert await in_force(database) == await in_force(own_database)
        assert (await tick(database))["kept"] == "0 new results; a step takes 10"
        # Work goes on: with a higher token, from the checkpoint, and what was blocked comes free in the end.
        again = await leased(database, await ready_worker(database))
        assert (again.task_id, again.attempt, again.checkpoint) == (lease.task_id, 2, '{"n": 4}')
        assert again.token > 7
        assert not await is_accepted(database, completion(worker_id, lease))
        (new,) = await submitted(database)
        assert (await everything(database, new))["seq"] > (await everything(database, blocked))["seq"]


async def test_tasks_that_ask_for_resources_find_workers_that_offer_them(
    own_database: Database, server_url: str
) -> None:
    tasks = await submitted(own_database, 3, resources=GPU)
    for n in range(2):
        assert (await leased(own_database, await ready_worker(own_database), resources=GPU)).task_id == tasks[n]
    # What its lane has come to is stored now and then.
    await execute(
        own_database,
        "INSERT INTO resource_lanes SELECT 1, agent_type, priority, tag FROM tasks WHERE id = $1",
        tasks[1],
    )
    async with _empty(server_url) as database:
        await _restore(database, own_database)
        assert await fetch(database, "SELECT id, request FROM resource_classes") == await fetch(
            own_database, "SELECT id, request FROM resource_classes"
        )
        # None is before what waited at the head of its lane.
        assert await value(database, "SELECT min(tag) FROM tasks") == await value(
            own_database, "SELECT virtual_time FROM resource_lanes"
        )
        again = [(await leased(database, await ready_worker(database), resources=GPU)).task_id for _ in tasks]
        assert again == tasks
        await submitted(database, resources='{"gpus": 2}')
        assert await value(database, "SELECT max(id) FROM resource_classes") == 2


async def test_classes_of_which_a_former_restore_has_given_a_number_twice(
    own_database: Database, server_url: str
) -> None:
    two_gpus = '{"gpus": 2}'
    tasks = [*await submitted(own_database, resources=GPU), *await submitted(own_database, resources=two_gpus)]
    await execute(own_database, "DELETE FROM resource_classes WHERE id = 2")
    query = "UPDATE tasks SET resource_class = 1, tag = tag + $1 WHERE resource_class = 2"
    await execute(own_database, query, SPAN)
    async with _empty(server_url) as database:
        await _restore(database, own_database)
        rows = await fetch(
            database,
            "SELECT t.id, c.id AS class, t.tag, c.request = t.resources AS agrees"
            " FROM tasks t JOIN resource_classes c ON c.id = t.resource_class ORDER BY t.seq",
        )
        assert [row["id"] for row in rows] == tasks
        assert {row["class"] for row in rows} == {1, 2}
        assert all(row["agrees"] for row in rows)
        assert [class_of(row["tag"]) for row in rows] == [row["class"] for row in rows]


async def test_the_restored_configuration_is_in_force_where_a_service_has_written_its_first(
    own_database: Database, server_url: str
) -> None:
    async with own_database.transaction() as connection:
        await config.current(connection, Mode.DEVELOPMENT)
    async with _empty(server_url, migrated=True) as database:
        async with database.transaction() as connection:
            await config.current(connection, Mode.PRODUCTION)
        await database.engine.dispose()
        await _restore(database, own_database)
        async with database.transaction() as connection:
            restored = await config.current(connection, Mode.PRODUCTION)
        assert (restored.mode, restored.document) == (Mode.DEVELOPMENT, preset(Mode.DEVELOPMENT))


async def test_listed_models_come_back_with_their_limits_and_nothing_that_was_reported(
    own_database: Database, server_url: str
) -> None:
    limits = ModelLimits(requests_per_window=60, input_price=2.5, fallback_models=("small",))
    async with own_database.transaction() as connection:
        await models.add(connection, ["large", "small"])
        await models.set_limits(connection, "large", limits)
    await execute(own_database, "UPDATE llm_models SET failures = 3, open_until = now(), requests_tat = now()")
    async with _empty(server_url, migrated=True) as database:
        async with database.transaction() as connection:
            # As a process of the API does at its start.
            await models.add(connection, ["large", "of another list"])
        await database.engine.dispose()
        await _restore(database, own_database)
        async with database.transaction() as connection:
            restored = await models.read(connection, ["large", "small", "of another list"])
    assert restored.keys() == {"large", "small"}
    large = restored["large"]
    assert (large.version, replace(large.limits, fallback_models=("small",))) == (1, limits)
    assert (large.breaker, large.tats[Dimension.REQUESTS]) == (Breaker(), None)


@pytest.mark.parametrize(("goal", "is_divided"), [("@lab-a/kepler", True), ("kepler", False)])
async def test_namespaces_stay_apart_before_their_keys_are_made_again(
    own_database: Database, server_url: str, goal: str, is_divided: bool
) -> None:
    await submitted(own_database, goal_id=goal)
    async with _empty(server_url) as database:
        await _restore(database, own_database)
        async with database.transaction() as connection:
            key = NewKey(role=Role.SUPERVISOR, label="the first of default")
            created = await create_key(connection, key)
        assert (await Keyring(database).recognise(created.text)).is_confined is is_divided


async def test_a_restore_needs_an_empty_database(own_database: Database, server_url: str) -> None:
    await submitted(own_database)
    taken = await checkpoints.take(own_database, "test")
    content = b"".join(await checkpoints.read_pieces(own_database, taken.id))
    async with _empty(server_url, migrated=True) as database:
        await submitted(database)
        with pytest.raises(Refused, match="not empty"):
            await checkpoints.restore(database, content, taken.sha256, "test")
        assert await value(database, "SELECT count(*) FROM tasks") == 1
    async with _empty(server_url) as stranger:
        await run_on(stranger.url, "CREATE TABLE theirs (id int)")
        with pytest.raises(Refused, match="not ours"):
            await checkpoints.restore(stranger, content, taken.sha256, "test")
    async with _empty(server_url, migrated=True) as database:
        service = await Database(database.url).connect()
        with pytest.raises(Refused, match="at work"):
            await checkpoints.restore(database, content, taken.sha256, "test")
        await service.close()


async def test_a_restore_of_what_is_damaged_or_newer_changes_nothing(own_database: Database, server_url: str) -> None:
    await submitted(own_database)
    taken, content = await take(own_database)
    newer = json.dumps({**content, "tasks": [{**task, "colour": "red"} for task in content["tasks"]]}).encode()
    async with _empty(server_url) as database:
        with pytest.raises(Refused, match="SHA-256"):
            await checkpoints.restore(database, newer, taken.sha256, "test")
        assert await fetch(database, "SELECT FROM pg_class WHERE relname = 'tasks'") == []
        with pytest.raises(Refused, match="colour"):
            await checkpoints.restore(database, newer, hashlib.sha256(newer).digest(), "test")
        assert await value(database, "SELECT count(*) FROM tasks") == 0
        assert await value(database, "SELECT convener_transaction_offset()") == 0


@pytest.mark.parametrize(
    ("part", "column"),
    [
        *(("config_versions", "document"), ("weights", "weights"), ("agent_results", "recent")),
        *(("tasks", "resources"), ("tasks", "labels"), ("goal_iterations", "report"), ("goal_iterations", "decision")),
    ],
)
async def test_a_restore_of_what_no_service_could_work_by_changes_nothing(
    own_database: Database, server_url: str, part: str, column: str
) -> None:
    await configure_example_2(own_database)
    await tick(own_database)
    await add_example_2_results(own_database)
    await tick(own_database)
    await submitted(own_database, resources=GPU)
    async with own_database.transaction() as connection:
        await goals.create(connection, goal_request())
        await iterations.record(connection, "goal", IterationReport(number=1, quality=Quality(best=1.0)), Configured())
    _, content = await take(own_database)
    damaged = json.dumps({**content, part: [{**row, column: ["nothing"]} for row in content[part]]}).encode()
    async with _empty(server_url) as database:
        with pytest.raises(Refused, match="cannot be read"):
            await checkpoints.restore(database, damaged, hashlib.sha256(damaged).digest(), "test")
        assert await value(database, f"SELECT count(*) FROM {part}") == 0
        assert await value(database, "SELECT convener_transaction_offset()") == 0


async def test_iterations_of_a_goal_that_a_cut_has_left_out_are_no_damage(
    own_database: Database, server_url: str
) -> None:
    async with own_database.transaction() as connection:
        await goals.create(connection, goal_request())
        await iterations.record(connection, "goal", IterationReport(number=1, quality=Quality(best=1.0)), Configured())
    _, content = await take(own_database)
    cut = json.dumps({**content, "goals": []}).encode()
    async with _empty(server_url) as database:
        await checkpoints.restore(database, cut, hashlib.sha256(cut).digest(), "test")
        assert await value(database, "SELECT count(*) FROM goal_iterations") == 1


async def test_goals_go_on_where_they_were(own_database: Database, server_url: str) -> None:
    """A paused one stays paused and its tasks stay held; what it has cost and reached is known; decisions replay."""
    async with own_database.transaction() as connection:
        request = goal_request(weight=2.0, token_budget=100, max_iterations=7)
        await goals.create(connection, request)
    await complete(own_database)
    (waiting,) = await submitted(own_database)
    async with own_database.transaction() as connection:
        account = IterationReport(number=1, quality=Quality(best=1234.5), money=1e-05)
        await iterations.record(connection, "goal", account, Configured())
        await goals.pause(connection, "goal", "moving house", "me")
    await keeping.process_holds(own_database)
    async with own_database.transaction() as connection:
        before = await goals.view(connection, "goal", Configured())
    async with _empty(server_url) as database:
        await _restore(database, own_database)
        async with database.transaction() as connection:
            found = await goals.view(connection, "goal", Configured())
            assert found.goal == before.goal
            # A restore submits the tasks again, so their numbers begin anew.
            assert found.compute == replace(before.compute, tasks=found.compute.tasks)
            assert found.compute.tasks["submitted"] == 1
            assert found.compute.total.attempts == 1
            replay = iterations.replay("goal", await iterations.read_history(connection, "goal", 1))
            assert replay.recorded_json == replay.replayed_json
            await goals.resume(connection, "goal", "we are there", "me")
        async with database.transaction() as connection:
            await keeping.enforce_budgets(connection)
        await keeping.process_holds(database)
        assert (await leased(database, await ready_worker(database))).task_id == waiting


async def test_a_goal_whose_room_was_given_anew_comes_back(own_database: Database, server_url: str) -> None:
    """The attempts that its meter counts from are fewer than none, as a task that was let through never began."""
    await ready_worker(own_database)
    async with own_database.transaction() as connection:
        await goals.create(connection, goal_request(compute_budget_seconds=1e6))
    first, _ = await submitted(own_database, 2)
    for _ in range(2):
        await enforce_budgets(own_database)
    async with own_database.transaction() as connection:
        await cancel.cancel(connection, [first], Selection(goal_id="goal"), "not needed")
    await enforce_budgets(own_database)
    assert await value(own_database, "SELECT base FROM holds") == -1
    async with _empty(server_url) as database:
        await _restore(database, own_database)
        assert await fetch(database, "SELECT * FROM holds") == await fetch(own_database, "SELECT * FROM holds")


async def test_the_ends_of_the_calendar_that_a_submit_takes_in_any_zone_come_back(
    own_database: Database, server_url: str
) -> None:
    west, east = timezone(-timedelta(hours=14)), timezone(timedelta(hours=14))
    for deadline in (datetime(2, 1, 1, tzinfo=east), datetime(9998, 12, 31, 23, 59, tzinfo=west)):
        await submitted(own_database, deadline=deadline)
    async with _empty(server_url) as database:
        await _restore(database, own_database)
        query = "SELECT deadline FROM tasks ORDER BY seq"
        assert await fetch(database, query) == await fetch(own_database, query)
