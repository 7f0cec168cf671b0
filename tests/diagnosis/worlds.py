"""Random states of the whole database, of which it is known how they were made."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import asyncpg

from app.kernel.agents import AgentType
from app.queue.rules.degradation import DegradationStep
from app.queue.rules.tasks import BASE_COMPUTE_SECONDS
from app.queue.service.expiry import PROMOTE

AGENTS = (AgentType.GENERATION, AgentType.RANKING, AgentType.EVOLUTION)
GOALS = ("open", "paused", "unswept", "budget", "metered", "returning", "stopped")
MODELS = {"fine": None, "expired": "key_expired", "empty": "quota_exhausted", "down": "maintenance"}
AVOID_SECONDS = 3.0
# Of tasks that name none of their own.
TIMEOUT_SECONDS = 300.0


@dataclass(slots=True, kw_only=True)
class MadeWorker:
    """A worker; `way` is heard, silent, starting, unready, draining, or ended, and it ends in `seconds`, None: never.

    To attempts of the agent it is assigned to it gives twice their timeout.
    """

    id: UUID
    agents: frozenset[AgentType]
    way: str
    seconds: float | None = None
    assigned: AgentType | None = None
    task: "MadeTask | None" = None

    def has_time(self, task: "MadeTask") -> bool:
        """Whether it lives for as long as an attempt may take."""
        timeout = TIMEOUT_SECONDS if task.timeout is None else task.timeout
        return self.seconds is None or self.seconds >= timeout * (2 if self.assigned is task.agent else 1)


@dataclass(slots=True, kw_only=True)
class MadeTask:
    """A task; `wait` is none, past, future, retry, hung, released, rest or a model, and due in `due` seconds."""

    id: UUID
    seq: int
    state: str
    agent: AgentType
    priority: int
    tag: float
    goal: str | None = None
    wait: str = "none"
    due: float = 0.0
    waited: float = 60.0
    timeout: float | None = None
    avoid: UUID | None = None
    blocker: "MadeTask | None" = None

    @property
    def is_ready(self) -> bool:
        """Whether it may run, but for its goal and its queue."""
        return self.state == "pending" and self.wait == "none" and self.goal not in SET_ASIDE


SET_ASIDE = ("paused", "budget", "metered", "returning", "stopped")
# Goals of which no task is leased.
CLOSED = ("paused", "unswept", "budget", "stopped")


@dataclass(slots=True, kw_only=True)
class World:
    """All that was made."""

    random: Random
    workers: list[MadeWorker] = field(default_factory=list)
    tasks: list[MadeTask] = field(default_factory=list)
    pauses: frozenset[AgentType] = frozenset()
    step: DegradationStep = DegradationStep.NONE
    loops_run: bool = True

    def heard(self, agent: AgentType) -> list[MadeWorker]:
        """The workers that take tasks of this type, idle and busy ones."""
        return [worker for worker in self.workers if worker.way == "heard" and agent in worker.agents]

    def ahead(self, task: MadeTask) -> int:
        """Tasks of the same type that are leased before this one."""
        return sum(
            (-other.priority, other.tag, other.seq) < (-task.priority, task.tag, task.seq)
            for other in self.tasks
            if other.is_ready and other.agent is task.agent and other.goal not in CLOSED
        )


def make(seed: int) -> World:
    """The world of this number."""
    random = Random(seed)
    world = World(random=random)
    world.pauses = frozenset(agent for agent in AGENTS if random.random() < 0.12)
    world.step = DegradationStep(random.choice((0, 0, 0, 1, 2, 4)))
    world.loops_run = random.random() < 0.9
    for _ in range(random.choice((0, 1, 1, 2, 3, 4))):
        agents = frozenset(random.sample(AGENTS, random.choice((1, 2, 3))))
        way = random.choice(("heard",) * 6 + ("silent", "starting", "unready", "draining", "ended"))
        worker = MadeWorker(id=UUID(int=random.getrandbits(128)), agents=agents, way=way)
        worker.seconds = random.choice((None,) * 6 + (30.0, 100.0, 400.0, 1000.0))
        worker.assigned = random.choice((None, *sorted(agents)))
        world.workers.append(worker)
    for seq in range(random.randint(1, 12)):
        world.tasks.append(_task(world, seq))
    for worker in world.workers:
        if worker.way in ("heard", "draining") and random.random() < 0.5:
            agent = random.choice(sorted(worker.agents))
            task = MadeTask(id=_id(random), seq=100, state="executing", agent=agent, priority=2, tag=0.0)
            worker.task = task
            world.tasks.append(task)
    return world


def _id(random: Random) -> UUID:
    return UUID(int=random.getrandbits(128), version=4)


def _task(world: World, seq: int) -> MadeTask:
    random = world.random
    task = MadeTask(
        id=_id(random),
        seq=seq,
        state="pending",
        agent=random.choice(AGENTS),
        priority=random.choice((1, 1, 2, 2, 3, 4)),
        tag=float(random.randint(1, 5)),
        timeout=random.choice((None, None, 60.0, 150.0, 500.0)),
        goal=random.choice((None,) * 11 + ("open",) * 3 + GOALS),
    )
    draw = random.random()
    if draw < 0.1 and world.tasks:
        task.state, task.blocker = "blocked", random.choice(world.tasks)
    elif draw < 0.45:
        task.wait = random.choice(("past", "future", "retry", "hung", "released", "rest", *MODELS))
        task.due = -1.0 if task.wait == "past" else 600.0
    elif draw < 0.6 and world.workers:
        task.avoid, task.waited = random.choice(world.workers).id, random.choice((1.0, 10.0))
    return task


_TASK = """
INSERT INTO tasks (id, state, agent_type, goal_id, priority, payload, labels, max_attempts, retry_delays, request_hash,
                   created_at, token, failures, tag, waiting_since, run_at, due_at, avoid_worker_id, blockers,
                   worker_id, timeout_seconds, leased_at, lease_expires_at)
VALUES ($1, $2, $3, $4, $5, '{}', '{}', 3, '{}', '', now(), $6, 0, $7, now() - make_interval(secs => $8), $9, $10, $11,
        $12, $13, $14, CASE WHEN $13::uuid IS NOT NULL THEN now() END,
        CASE WHEN $13::uuid IS NOT NULL THEN now() + interval '1 minute' END)
"""
_WORKER = """
INSERT INTO workers (id, name, incarnation, state, capabilities, labels, registered_at, last_seen_at, not_ready_reason,
                     ends_at, assigned_agent, assigned_compute_seconds, ended_at, ended_reason, host)
VALUES ($1, $2, 1, $3, $4, '{}', now(), now() - make_interval(secs => $5), $6, now() + make_interval(secs => $7), $8,
        $9, CASE WHEN $3 = 'lost' THEN now() END, CASE WHEN $3 = 'lost' THEN 'silent for 15 s' END, 'far')
"""
_STATES = {"heard": "ready", "silent": "ready", "unready": "starting", "ended": "lost"}
_HOLDS = {
    "paused": ("paused", True, True, False),
    "unswept": ("paused", True, False, False),
    "budget": ("budget", True, True, False),
    "metered": ("budget", False, True, True),
    "returning": ("paused", False, True, False),
    "stopped": ("stopped", True, True, False),
}


async def store(connection: "asyncpg.Connection[asyncpg.Record]", world: World) -> None:
    """Write the world into an empty database."""
    now: datetime = await connection.fetchval("SELECT now()")
    workers: Sequence[Any] = [
        (
            worker.id,
            f"worker-{place}",
            _STATES.get(worker.way, worker.way),
            sorted(worker.agents),
            60.0 if worker.way == "silent" else 1.0,
            "no memory" if worker.way == "unready" else None,
            worker.seconds,
            worker.assigned,
            2 * BASE_COMPUTE_SECONDS if worker.assigned else None,
        )
        for place, worker in enumerate(world.workers)
    ]
    await connection.executemany(_WORKER, workers)
    holders = {worker.task.id: worker.id for worker in world.workers if worker.task}
    # In the order of their places, so that `seq` agrees.
    await connection.executemany(_TASK, [_row(task, holders.get(task.id), now) for task in world.tasks])
    leases = [(worker_id, task_id) for task_id, worker_id in holders.items()]
    await connection.executemany(
        "INSERT INTO leases (worker_id, n, task_id, token, request_id) VALUES ($1, 1, $2, 1, $2)", leases
    )
    edges = [(task.id, task.blocker.id) for task in world.tasks if task.blocker]
    await connection.executemany("INSERT INTO task_dependencies (task_id, depends_on) VALUES ($1, $2)", edges)
    await connection.executemany(
        "INSERT INTO pauses (agent_type, reason, paused_by) VALUES ($1, 'new prompts', 'me')",
        [(agent,) for agent in sorted(world.pauses)],
    )
    await connection.executemany(
        "INSERT INTO holds (goal_id, reason, is_closed, is_swept, is_metered) VALUES ($1, $2, $3, $4, $5)",
        [(goal, *hold) for goal, hold in _HOLDS.items()],
    )
    await connection.execute(
        "INSERT INTO degradation (step, since, expires_at, reason, strain) VALUES ($1, now(), $2, '', '{}')",
        world.step.value,
        now + timedelta(minutes=5),
    )
    turn = "INSERT INTO loop_ticks (duty, last_run_at) VALUES ($1, $2)"
    await connection.execute(turn, PROMOTE, now - timedelta(seconds=0.0 if world.loops_run else 60.0))
    await connection.executemany(
        "INSERT INTO llm_models (model, concurrency, open_until, cause) VALUES ($1, 1, $2, $3)",
        [(name, now + timedelta(minutes=1) if cause else None, cause) for name, cause in MODELS.items()],
    )
    await _store_attempts(connection, world)


def _row(task: MadeTask, worker_id: UUID | None, now: datetime) -> tuple[Any, ...]:
    due = now + timedelta(seconds=task.due) if task.wait != "none" else None
    is_aside = task.goal in SET_ASIDE and task.state != "executing"
    run_at = datetime.max.replace(tzinfo=UTC) if is_aside else due
    token = 0 if task.wait in ("none", "past", "future") and not worker_id and not task.avoid else 1
    return (
        task.id,
        task.state,
        task.agent,
        task.goal,
        task.priority,
        token,
        task.tag,
        task.waited,
        run_at,
        due if is_aside else None,
        task.avoid,
        1 if task.blocker else 0,
        worker_id,
        task.timeout,
    )


_OUTCOMES = {"retry": "failed", "hung": "expired", "rest": "expired"}
_CODES = {"hung": "timeout", "rest": "unacknowledged"}


async def _store_attempts(connection: "asyncpg.Connection[asyncpg.Record]", world: World) -> None:
    attempts = [
        (
            task.id,
            _OUTCOMES.get(task.wait, "released"),
            json.dumps({"code": _CODES.get(task.wait, "x"), "message": "y"}),
        )
        for task in world.tasks
        if task.wait in ("retry", "hung", "released", "rest", *MODELS)
    ]
    await connection.executemany(
        "INSERT INTO task_attempts (task_id, attempt, token, worker_id, leased_at, outcome, error) "
        "VALUES ($1, 1, 1, gen_random_uuid(), now(), $2, $3)",
        attempts,
    )
    parked = [(task.id, task.wait) for task in world.tasks if task.wait in MODELS]
    await connection.executemany("INSERT INTO parked_tasks (task_id, model, token) VALUES ($1, $2, 1)", parked)
