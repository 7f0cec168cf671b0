"""Every value of the configuration changes what the service does: each is observed at two of its values."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from app.admin.rules.config import NamespaceConfig, preset, weight_name
from app.admin.service.config import CurrentConfig
from app.agents.service.weights import refresh_weights
from app.db.database import Database
from app.db.duties import Turn
from app.kernel.access import Role
from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from app.kernel.states import WorkerState
from app.queue.broker.broker import Broker
from app.queue.rules.aging import aging_policy
from app.queue.service import aging, sharing
from app.scaling.rules.idle import IdleSample
from app.scaling.rules.target import ScalingSnapshot, decide, priced, scaling_policy
from app.workers.rules.workers import HealthPolicy
from app.workers.service import workers
from tests.support.config_calls import changed
from tests.support.factories import leased, submitted
from tests.support.permit_calls import permit_body
from tests.support.pools import crew, decided, keep_up
from tests.support.service import Service, Worker, registration
from tests.support.sql import PATIENCE, execute, fetch, until, value

Observe = Callable[[Service, Database], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """How a value is observed, and what is seen at two values; `others` are what must be set beside it."""

    observe: Observe
    seen: dict[Any, Any]
    others: dict[str, Any]


def _effect(observe: Observe, seen: dict[Any, Any], **others: Any) -> Effect:
    return Effect(observe=observe, seen=seen, others=others)


async def _least_pool(_: Service, database: Database) -> Any:
    await keep_up(database, 1)
    return (await decided(database))["target_workers"]


async def _largest_pool(_: Service, database: Database) -> Any:
    await crew(database, 10, cpu_percent=90.0)
    await decided(database)
    await submitted(database, 500)
    return (await decided(database))["target_workers"]


async def _growth_at_60_percent(_: Service, database: Database) -> Any:
    workers = await crew(database, 10, cpu_percent=60.0)
    await decided(database)
    await submitted(database, 500)
    for worker in workers[:6]:
        await leased(database, worker)
    return (await decided(database))["decision_type"]


async def _growth_for_a_batch(_: Service, database: Database) -> Any:
    """40 tasks of about 20 s: two workers start them in time only where they may wait for long."""
    await crew(database, 2, cpu_percent=90.0)
    await decided(database)
    await submitted(database, 40)
    return (await decided(database))["decision_type"]


async def _shrinking_at_a_third(service: Service, _: Database) -> Any:
    """Two of three workers idle: a pool that counts as busy keeps them for twice as long."""
    document = (await service.app.state.services[CurrentConfig].read()).document
    policy = priced(scaling_policy(document, Mode.PRODUCTION), start_seconds=5.0)
    history = [IdleSample(seconds=15.0, idle=2)]
    snapshot = ScalingSnapshot(idle=2, busy=1, waiting=(), cpu=0.1, idle_history=history)
    return decide(snapshot, policy, datetime.now(UTC)).decision_type


async def _timeout(service: Service, _: Database) -> Any:
    worker = await service.worker()
    await service.submitted()
    return (await worker.lease())["timeout_seconds"]


async def _assignment(service: Service) -> Any:
    worker = await service.worker(memory_gb=64, cpu_cores=16)
    return (await worker.beat())["assignment"]


async def _memory(service: Service, _: Database) -> Any:
    return (await _assignment(service))["memory_gb"]


async def _cores(service: Service, _: Database) -> Any:
    return (await _assignment(service))["cpu_cores"]


async def _permits(service: Service, _: Database) -> Any:
    await service.ask("PUT", "/llm/models/gpt-4.1", {"max_concurrency": 100}, headers={"If-Match": '"0"'})
    await execute(service.app.state.services.database, "UPDATE llm_models SET concurrency = 100")
    answers = [await service.ask("POST", "/llm/permits", permit_body(), key=Role.SUPERVISOR) for _ in range(3)]
    return sum(answer.status_code == 201 for answer in answers)


def _share_of(agent: AgentType) -> Observe:
    """How many of ten leases an agent type gets where all have tasks."""

    async def observe(service: Service, _: Database) -> Any:
        worker = await service.worker()
        tasks = [{"agent_type": each} for each in AgentType for _ in range(10)]
        await service.post("/tasks/batch", {"tasks": tasks})
        agents = Counter([await _done(worker) for _ in range(10)])
        return "most" if agents[agent] >= 5 else "few" if agents[agent] <= 2 else agents

    return observe


async def _done(worker: Worker) -> str:
    lease = await worker.lease()
    assert (await worker.on_lease(lease, "complete", result={})).status_code == 200
    return str(lease["agent_type"])


def _iterations(*qualities: float, **constraints: Any) -> Observe:
    """After which iteration a goal stops whose iterations reach these, the last of them again and again."""

    async def observe(service: Service, _: Database) -> Any:
        await service.post("/goals", {"id": "g", "objective": "to know", "constraints": constraints})
        for number in range(1, 31):
            report = {"iteration": number, "quality": qualities[min(number, len(qualities)) - 1]}
            if (await service.post("/goals/g/iterations", report))["decision"] == "stop":
                return number
        return "goes on"

    return observe


async def _namespaces(service: Service) -> None:
    for name in ("one", "other"):
        await service.post("/keys", {"role": "supervisor", "label": "x", "namespace": name})


async def _namespace_lead(service: Service, database: Database) -> Any:
    await _namespaces(service)
    for name in ("other", "one"):
        await service.post(f"/tasks/batch?namespace={name}", {"tasks": [{"agent_type": "ranking"}] * 20})
    await service.get("/queues")
    async with database.transaction() as connection:
        await sharing.share_lanes(connection)
    rows = await fetch(
        database, "SELECT split_part(goal_id, '/', 1) AS namespace FROM tasks ORDER BY tag, seq LIMIT 10"
    )
    return "many" if sum(row["namespace"] == "@one" for row in rows) > 7 else "half"


async def _namespace_room(service: Service, _: Database) -> Any:
    await _namespaces(service)
    tasks = [{"agent_type": "ranking", "priority": "critical"}] * 1000
    return (await service.ask("POST", "/tasks/batch?namespace=one", {"tasks": tasks})).status_code


def _room(priority: str) -> Observe:
    """How many tasks of a priority are taken."""

    async def observe(service: Service, _: Database) -> Any:
        body = {"agent_type": "ranking", "priority": priority}
        answers = [await service.ask("POST", "/tasks", body) for _ in range(8)]
        return sum(answer.status_code == 201 for answer in answers)

    return observe


async def _displaced(service: Service, _: Database) -> Any:
    tasks = [{"agent_type": "ranking", "priority": priority} for priority in ("low", "medium", "critical")]
    await service.post("/tasks/batch", {"tasks": tasks})
    return (await service.ask("POST", "/tasks", {"agent_type": "ranking", "priority": "critical"})).status_code


def _risen(priority: str) -> Observe:
    """The priority of a task that has waited for a quarter of an hour, after a turn of the loops."""

    async def observe(service: Service, database: Database) -> Any:
        task_id = await service.submitted(priority=priority)
        await execute(
            database,
            "UPDATE tasks SET waiting_since = waiting_since - interval '15 min', "
            "created_at = created_at - interval '15 min'",
        )
        document = (await service.app.state.services[CurrentConfig].read()).document
        async with database.transaction() as connection:
            await aging.age_tasks(connection, aging_policy(document.queue.aging))
        return (await service.get(f"/tasks/{task_id}"))["priority"]

    return observe


async def _failed_before(service: Service, _: Database) -> Any:
    """Whether the only worker gets the task back that has just failed on it."""
    worker = await service.worker()
    await service.submitted()
    lease = await worker.lease()
    await worker.on_lease(lease, "fail", error={"code": "x", "message": "x"})
    return await worker.lease() is not None


async def _lost_once(service: Service, database: Database) -> Any:
    worker = await service.worker()
    task_id = await service.submitted()
    await worker.lease()
    async with database.transaction() as connection:
        await workers.lose(connection, UUID(worker.id), WorkerState.LOST, "for the test")
    return (await service.get(f"/tasks/{task_id}"))["state"]


def _told(name: str) -> Observe:
    """What a worker is told when it registers."""

    async def observe(service: Service, _: Database) -> Any:
        return (await service.post("/workers", registration(), key=Role.POOL))[name]

    return observe


async def _silent_for_a_minute(service: Service, database: Database) -> Any:
    worker = await service.worker()
    await execute(database, "UPDATE workers SET last_seen_at = last_seen_at - interval '1 min'")
    # The service, in contrast, has been there for long.
    await execute(database, "UPDATE api_processes SET present_since = present_since - interval '1 h'")
    turn = Turn(duty="sweep workers", seconds_since_last=1.0, held_back=False)
    async with database.transaction() as connection:
        await workers.sweep(connection, service.app.state.services[HealthPolicy], turn)
    return (await service.get(f"/workers/{worker.id}"))["state"]


async def _lease_length(service: Service, database: Database, *, acknowledge: bool = True) -> Any:
    worker = await service.worker()
    await service.submitted()
    await worker.lease(acknowledge=acknowledge)
    length = "extract(epoch FROM lease_expires_at - leased_at)::float8"
    return await value(database, f"SELECT {length} FROM tasks")


async def _unacknowledged_length(service: Service, database: Database) -> Any:
    return await _lease_length(service, database, acknowledge=False)


_RISING = tuple(1000.0 + 40 * number for number in range(30))
# 17 of 40, in points of Elo: a gain of 0.024.
_SLOW = tuple(1000.0 + 17 * number for number in range(30))
_FLAT = (1000.0,)
_WEIGHTS = {
    f"agent_weights.{agent}_agent": _effect(_share_of(agent), {1.0: "most", 0.02: "few"}) for agent in AgentType
}
EFFECTS: dict[str, Effect] = {
    "worker_pool.min_workers": _effect(_least_pool, {1: 1, 4: 4}, max_workers=10),
    "worker_pool.max_workers": _effect(_largest_pool, {12: 12, 100: 20}, min_workers=2),
    "worker_pool.scale_up_threshold": _effect(
        _growth_at_60_percent, {0.5: "scale_up", 0.95: "maintain"}, min_workers=2
    ),
    "worker_pool.scale_down_threshold": _effect(
        _shrinking_at_a_third, {0.5: "scale_down", 0.3: "maintain"}, min_workers=1
    ),
    "worker_pool.wait_target_seconds": _effect(
        _growth_for_a_batch, {30.0: "scale_up", 3600.0: "maintain"}, min_workers=2
    ),
    "worker_pool.worker_timeout_seconds": _effect(_timeout, {60: 60.0, 3600: 3600.0}),
    "resource_limits.max_memory_per_worker_gb": _effect(_memory, {1.0: 1.0, 64.0: 64.0}),
    "resource_limits.max_cpu_per_worker": _effect(_cores, {0.5: 0.5, 16.0: 16.0}),
    "resource_limits.max_concurrent_llm_calls": _effect(_permits, {1: 1, 2: 2}),
    **_WEIGHTS,
    "test_time_compute.enabled": _effect(_iterations(*_FLAT, max_iterations=20), {True: 11, False: 3}),
    "test_time_compute.min_iterations": _effect(_iterations(*_FLAT, patience=2), {1: 3, 9: 9}),
    "test_time_compute.max_iterations": _effect(_iterations(*_RISING), {10: 10, 14: 14}),
    "test_time_compute.improvement_threshold": _effect(_iterations(*_SLOW, patience=2), {0.001: "goes on", 0.1: 3}),
    "queue.max_size": _effect(_room("critical"), {3: 3, 5: 5}),
    "queue.displaces": _effect(_displaced, {True: 201, False: 429}, max_size=3),
    **{
        f"queue.quotas.{priority}": _effect(_room(priority), {0.1: 1, 5.0: 5}, max_size=10)
        for priority in ("low", "medium", "high", "critical")
    },
    "queue.aging.low_after_seconds": _effect(_risen("low"), {60.0: "medium", 1800.0: "low"}),
    "queue.aging.medium_after_seconds": _effect(_risen("medium"), {60.0: "high", 1800.0: "medium"}),
    "queue.aging.high_after_seconds": _effect(_risen("high"), {60.0: "critical", 1800.0: "high"}),
    "queue.avoid_failed_worker_seconds": _effect(_failed_before, {0.0: True, 600.0: False}),
    "queue.max_rescues": _effect(_lost_once, {0: "failed", 1: "pending"}),
    "recovery.heartbeat_interval_seconds": _effect(_told("heartbeat_interval_seconds"), {0.5: 0.5, 7.0: 7.0}),
    "recovery.lost_after_seconds": _effect(_silent_for_a_minute, {30.0: "lost", 600.0: "ready"}),
    "recovery.lease_seconds": _effect(_lease_length, {5.0: 5, 300.0: 300}),
    "recovery.acknowledge_within_seconds": _effect(_unacknowledged_length, {1.0: 1, 300.0: 300}),
    "namespaces.one.weight": _effect(_namespace_lead, {1.0: "half", 9.0: "many"}),
    "namespaces.one.max_tasks_share": _effect(_namespace_room, {0.8: 201, 0.05: 429}),
}


async def _come_into_force(service: Service, version: int) -> None:
    services = service.app.state.services
    config, broker = services[CurrentConfig], services[Broker]

    async def is_read() -> bool:
        return bool((await config.read()).version == version)

    await until(is_read, within=PATIENCE)
    # As the process does by itself, within a second.
    await refresh_weights(services.database, config, broker.fairness, broker.degradation)


def _leaves(document: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(document, dict):
        return {path: document}
    return {
        name: leaf
        for key, part in document.items()
        for name, leaf in _leaves(part, f"{path}.{key}" if path else key).items()
    }


def test_every_value_has_an_effect() -> None:
    document = asdict(preset(Mode.PRODUCTION)) | {"namespaces": {"one": asdict(NamespaceConfig())}}
    assert EFFECTS.keys() == _leaves(document).keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "chosen"), [(path, chosen) for path, effect in EFFECTS.items() for chosen in effect.seen]
)
async def test_what_it_does(service: Service, database: Database, path: str, chosen: Any) -> None:
    effect = EFFECTS[path]
    section, _, name = path.partition(".")
    values: Any = {**effect.others, name: chosen}
    if "." in name:
        space, _, name = name.partition(".")
        values = {**effect.others, space: {name: chosen}}
    elif section == "agent_weights":
        values = {weight_name(agent): (1 - chosen) / 5 for agent in AgentType} | values
    version = (await changed(service, {section: values}, 1, reason="to see what it does"))["version"]
    await _come_into_force(service, version)
    assert await effect.observe(service, database) == effect.seen[chosen]
