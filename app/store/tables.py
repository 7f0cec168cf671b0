"""The tables, as SQLAlchemy knows them; migrations build them, and a test holds the two together."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

from app.domain.access import Role
from app.domain.agents import AgentType
from app.domain.tasks import FINISHED, TaskState
from app.domain.workers import WorkerState

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_ix",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "pk": "%(table_name)s_pkey",
    }
)


def _one_of(column: str, values: Any) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in sorted(values))
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def _moment(name: str, **options: Any) -> Column[Any]:
    return Column(name, DateTime(timezone=True), **options)


def _submitted() -> list[Any]:
    """What a task was submitted with; the same columns while it lives and in its history."""
    return [
        Column("agent_type", Text, nullable=False),
        Column("goal_id", Text),
        Column("priority", SmallInteger, nullable=False),
        Column("payload", JSONB, nullable=False),
        Column("labels", JSONB, nullable=False),
        Column("timeout_seconds", Float, nullable=False),
        _moment("deadline"),
        Column("max_attempts", Integer, nullable=False),
        Column("retry_delays", ARRAY(Float), nullable=False),
        Column("trace_context", Text),
        Column("depends_on", ARRAY(UUID), nullable=False, server_default="{}"),
        Column("idempotency_key", Text),
        Column("request_hash", LargeBinary, nullable=False),
        _moment("created_at", nullable=False),
    ]


def _progressed() -> list[Any]:
    """What attempts have left behind, while the task lives and in its history."""
    return [
        Column("failures", Integer, nullable=False, server_default="0"),
        Column("rescues", Integer, nullable=False, server_default="0"),
        Column("token", BigInteger, nullable=False, server_default="0"),
        Column("worker_id", UUID),
        _moment("leased_at"),
        Column("progress", JSONB),
        Column("checkpoint", JSONB),
    ]


LIVE_STATES = [state for state in TaskState if state not in FINISHED]

# Hot: holds live tasks only. A claim reads the head of `tasks_claim`; the leases are the rows with a worker.
tasks = Table(
    "tasks",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("seq", BigInteger, Identity(always=True), nullable=False),
    Column("state", Text, nullable=False),
    *_submitted(),
    *_progressed(),
    _moment("run_at", comment="null once the task may run"),
    Column("blockers", Integer, nullable=False, server_default="0", comment="dependencies that are not met"),
    Column("has_dependents", Boolean, nullable=False, server_default=text("false")),
    Column("lease_request_id", UUID),
    _moment("lease_expires_at"),
    _moment("deadline_at"),
    Column("error", JSONB),
    _one_of("state", LIVE_STATES),
    _one_of("agent_type", AgentType),
    CheckConstraint("(blockers > 0) = (state = 'blocked')", name="blocked"),
    CheckConstraint("(worker_id IS NOT NULL) = (state IN ('assigned', 'executing'))", name="leased"),
    postgresql_with={
        "fillfactor": "70",
        "autovacuum_vacuum_scale_factor": "0",
        "autovacuum_vacuum_threshold": "2000",
        "autovacuum_vacuum_cost_delay": "0",
        "autovacuum_analyze_scale_factor": "0.05",
    },
)
Index(
    "tasks_claim",
    tasks.c.agent_type,
    tasks.c.priority.desc(),
    tasks.c.seq,
    postgresql_where=text("state = 'pending' AND run_at IS NULL"),
)
Index("tasks_delayed", tasks.c.run_at, postgresql_where=text("run_at IS NOT NULL"))
# At most one live lease per worker, whatever the code does; also how sweeps find all leases.
Index("tasks_one_lease_per_worker", tasks.c.worker_id, unique=True, postgresql_where=text("worker_id IS NOT NULL"))
Index("tasks_seq", tasks.c.seq)
Index("tasks_goal", tasks.c.goal_id, tasks.c.seq)

# Finished tasks. Partitioned by day so that old ones are dropped, not deleted.
task_history = Table(
    "task_history",
    metadata,
    Column("id", UUID, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    *_submitted(),
    *_progressed(),
    _moment("finished_at", nullable=False),
    Column("result", JSONB),
    Column("result_hash", LargeBinary),
    Column("error", JSONB),
    Column("usage", JSONB),
    _one_of("state", FINISHED),
    PrimaryKeyConstraint("id", "finished_at", name="task_history_pkey"),
    postgresql_partition_by="RANGE (finished_at)",
)
Index("task_history_seq", task_history.c.seq)
Index("task_history_goal", task_history.c.goal_id, task_history.c.seq)

# What a task takes with it into history; each end adds its own state, time and outcome.
KEPT_COLUMNS = tuple(c.name for c in tasks.c if c.name in task_history.c and c.name not in ("state", "error"))

# An edge for each dependency that is not met yet: gone with the completion that meets it.
task_dependencies = Table(
    "task_dependencies",
    metadata,
    Column("depends_on", UUID, nullable=False),
    Column("task_id", UUID, nullable=False),
    PrimaryKeyConstraint("depends_on", "task_id", name="task_dependencies_pkey"),
    Index("task_dependencies_task", "task_id"),
)

# Attempts that did not complete their task; the one that did is the history row itself.
task_attempts = Table(
    "task_attempts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("task_id", UUID, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("worker_id", UUID, nullable=False),
    _moment("leased_at", nullable=False),
    _moment("ended_at", nullable=False, server_default=func.now()),
    Column("outcome", Text, nullable=False),
    Column("error", JSONB),
    Column("usage", JSONB),
    Index("task_attempts_task", "task_id"),
    Index("task_attempts_ended", "ended_at"),
)

# Every change of state. Read in (transaction, seq) order and only below the oldest running transaction:
# sequence numbers alone become visible out of order.
events = Table(
    "events",
    metadata,
    Column(
        "transaction",
        BigInteger,
        nullable=False,
        server_default=text("(pg_current_xact_id()::text)::bigint"),
    ),
    Column("seq", BigInteger, Identity(always=True), nullable=False),
    _moment("at", nullable=False, server_default=func.now()),
    Column("kind", Text, nullable=False),
    Column("task_id", UUID, nullable=False),
    Column("agent_type", Text, nullable=False),
    Column("goal_id", Text),
    Column("worker_id", UUID),
    Column("token", BigInteger),
    Column("detail", JSONB),
    PrimaryKeyConstraint("transaction", "seq", "at", name="events_pkey"),
    postgresql_partition_by="RANGE (at)",
)

workers = Table(
    "workers",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("name", Text, nullable=False),
    Column("incarnation", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("provisioner", Text, comment="null for a worker that somebody else started"),
    Column("slot", Integer),
    Column("host", Text),
    Column("pid", Integer),
    Column("handle", JSONB, comment="what the provisioner needs to find the process again"),
    Column("capabilities", ARRAY(Text), nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("version", Text),
    Column("memory_gb", Float),
    Column("cpu_cores", Float),
    Column("directive", Text),
    Column("directive_reason", Text),
    Column("cpu_percent", Float),
    Column("memory_mb", Float),
    Column("recent_errors", JSONB),
    Column("ended_reason", Text),
    _moment("requested_at", nullable=False, server_default=func.now()),
    _moment("launched_at"),
    _moment("started_at"),
    _moment("registered_at"),
    _moment("first_beat_at"),
    _moment("last_seen_at"),
    _moment("ended_at"),
    _one_of("state", WorkerState),
    # Heartbeats touch no indexed column, so with room on the page they are cheap heap-only updates.
    postgresql_with={
        "fillfactor": "50",
        "autovacuum_vacuum_scale_factor": "0",
        "autovacuum_vacuum_threshold": "500",
    },
)
Index("workers_incarnation", workers.c.name, workers.c.incarnation, unique=True)
Index(
    "workers_live_name",
    workers.c.name,
    unique=True,
    postgresql_where=text("state IN ('starting', 'ready', 'draining')"),
)

replacements = Table(
    "replacements",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("lost_worker_id", UUID, nullable=False, unique=True),
    Column("worker_id", UUID, unique=True),
    Column("slot", Integer, nullable=False),
    Column("worker_name", Text, nullable=False),
    Column("cause", Text, nullable=False),
    _moment("detected_at", nullable=False, server_default=func.now()),
    _moment("requested_at"),
    _moment("started_at"),
    _moment("registered_at"),
    _moment("first_lease_at"),
)
Index("replacements_open", replacements.c.slot, postgresql_where=text("worker_id IS NULL"))

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("worker_id", UUID),
    _moment("created_at", nullable=False, server_default=func.now()),
    _moment("revoked_at"),
    _one_of("role", Role),
    Index("keys_worker", "worker_id"),
)

# A background duty is leased like a task: whoever locks its row does the turn.
loop_ticks = Table(
    "loop_ticks",
    metadata,
    Column("duty", Text, primary_key=True),
    _moment("last_run_at"),
    Column("held_back", Boolean, nullable=False, server_default=text("false")),
    Column("runs", BigInteger, nullable=False, server_default="0"),
    Column("result", JSONB),
)
