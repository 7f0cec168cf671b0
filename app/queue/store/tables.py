"""Tables of the queue: tasks, their history and attempts, lanes, leases and degradation."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

from app.db.columns import metadata, moment, one_of
from app.kernel.agents import AgentType
from app.kernel.states import FINISHED, TaskState
from app.queue.rules.degradation import LadderMove
from app.queue.rules.logs import Stream

# One row, which the duty or an operator locks in order to move the ladder.
degradation = Table(
    "degradation",
    metadata,
    Column("is_only", Boolean, primary_key=True, server_default="true"),
    Column("step", SmallInteger, nullable=False),
    moment("since", nullable=False),
    moment("expires_at", comment="when the step is over unless it is renewed"),
    Column("reason", Text, nullable=False),
    moment("held_until"),
    Column("held_by", Text, comment="id of the key that was shown"),
    moment("tight_since"),
    moment("easy_since"),
    moment("looked_at"),
    Column("strain", JSONB, nullable=False, comment="what was seen at the last look"),
    CheckConstraint("is_only", name="is_only"),
    CheckConstraint("step BETWEEN 0 AND 4", name="step"),
    CheckConstraint("(held_until IS NULL) = (held_by IS NULL)", name="hold"),
)

degradation_moves = Table(
    "degradation_moves",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    moment("at", nullable=False),
    Column("move", Text, nullable=False),
    Column("before", SmallInteger, nullable=False),
    Column("after", SmallInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("by", Text, comment="id of the key that was shown; null for the rule"),
    moment("until", comment="when the step is over unless it is renewed"),
    one_of("move", LadderMove),
    Index("degradation_moves_at", "at"),
)


# The ledger: the n-th lease of each worker. Rows are only added. The key lets one of two concurrent claims have the
# n-th, and a claim takes it only when the one before is over: so a worker holds at most one lease, whatever the code
# does. A unique index on the worker of live tasks would be plainer, but each look at it would walk over the dead
# entries of all former leases of a worker while somebody keeps an old snapshot.
leases = Table(
    "leases",
    metadata,
    Column("worker_id", UUID, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("task_id", UUID, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("request_id", UUID, nullable=False),
    moment("leased_at", nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("worker_id", "n", name="leases_pkey"),
)

# Tasks that were given back because a language model answers nobody; a row outlives its use by an hour or two.
parked_tasks = Table(
    "parked_tasks",
    metadata,
    Column("task_id", UUID, primary_key=True),
    Column("model", Text, nullable=False),
    Column("token", BigInteger, comment="of its last lease then: one that was leased since waits for something else"),
    moment("parked_at", nullable=False, server_default=func.now()),
    moment("woken_at", comment="as the one that tries the model"),
    Index("parked_tasks_of_model", "model", "parked_at"),
)

# The virtual time of each lane, which is an agent type at a priority: the tag of the last task leased.
lanes = Table(
    "lanes",
    metadata,
    Column("agent_type", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("virtual_time", Float, nullable=False, server_default="0"),
    PrimaryKeyConstraint("agent_type", "priority", name="lanes_pkey"),
    one_of("agent_type", AgentType),
)

# Requests that are equal share a class, whose tasks have lanes of their own.
resource_classes = Table(
    "resource_classes",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("request", JSONB, nullable=False, unique=True),
    moment("created_at", nullable=False, server_default=func.now()),
    CheckConstraint("id > 0", name="id"),
)

# The virtual times of the lanes of these classes.
resource_lanes = Table(
    "resource_lanes",
    metadata,
    Column("resource_class", SmallInteger, nullable=False),
    Column("agent_type", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("virtual_time", Float, nullable=False),
    PrimaryKeyConstraint("resource_class", "agent_type", "priority", name="resource_lanes_pkey"),
)

pauses = Table(
    "pauses",
    metadata,
    Column("agent_type", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("paused_by", Text, nullable=False),
    moment("paused_at", nullable=False, server_default=func.now()),
    one_of("agent_type", AgentType),
)

# Recent submits by agent type and payload, to detect duplicates.
fingerprints = Table(
    "fingerprints",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("task_id", UUID, nullable=False),
    moment("seen_at", nullable=False, server_default=func.now()),
    Index("fingerprints_seen", "seen_at"),
)


def _submit_columns() -> list[Any]:
    """Columns that come with the submit, of live tasks and of history."""
    return [
        Column("agent_type", Text, nullable=False),
        Column("goal_id", Text),
        Column("priority", SmallInteger, nullable=False),
        Column("submitted_priority", SmallInteger, comment="null: the priority, which has never risen"),
        Column("payload", JSONB, nullable=False),
        Column("payload_text", Text, comment="the payload as it was written, where JSONB would change it"),
        Column("labels", JSONB, nullable=False),
        Column("timeout_seconds", Float, comment="null: as the configuration says when it is leased"),
        moment("deadline"),
        Column("max_attempts", Integer, nullable=False),
        Column("retry_delays", ARRAY(Float), nullable=False),
        Column("trace_context", Text),
        Column("depends_on", ARRAY(UUID), comment="null where there are none"),
        Column("idempotency_key", Text),
        Column("resources", JSONB, comment="what it asks for; null: nothing"),
        Column("request_hash", LargeBinary, nullable=False),
        moment("created_at", nullable=False),
    ]


def _attempt_columns() -> list[Any]:
    """Columns that attempts change, of live tasks and of history."""
    return [
        Column("failures", Integer, nullable=False, server_default="0"),
        Column("rescues", Integer, nullable=False, server_default="0"),
        Column("unacknowledged", Integer, nullable=False, server_default="0", comment="leases without a start"),
        Column("token", BigInteger, nullable=False, server_default="0"),
        Column("worker_id", UUID),
        moment("leased_at"),
        Column("progress", JSONB),
        Column("checkpoint", JSONB),
    ]


LIVE_STATES = [state for state in TaskState if state not in FINISHED]

# Hot, so it holds live tasks only. Claims read `tasks_claim` from the floor of a lane on. There is no index of leased
# tasks: `leases` says which worker has which. No index looks at a column that a claim or a renewal changes, and half of
# each page is free for the rows that they write: so they touch no index. A leased task stays in the indexes of ready
# ones until it ends; claims and others that look there go on from a floor above it, and skip those that are left.
# Statistics are made anew every few seconds, so a migration has set the target of each column to 10: they come from
# 3,000 rows, and not from 30,000.
tasks = Table(
    "tasks",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("seq", BigInteger, Identity(always=True), nullable=False),
    *_submit_columns(),
    *(column for column in _attempt_columns() if column.name not in ("token", "worker_id", "leased_at")),
    moment("run_at", comment="null once the task may run; infinity while its goal is held back"),
    moment("due_at", comment="what run_at was before the goal was held back"),
    Column("blockers", Integer, nullable=False, server_default="0", comment="dependencies that are not met"),
    Column("has_dependents", Boolean, nullable=False, server_default=text("false")),
    Column("tag", Float, nullable=False, server_default="0", comment="virtual finish time within its lane"),
    moment("waiting_since", nullable=False, server_default=func.now(), comment="when it last became ready to run"),
    Column("avoid_worker_id", UUID, comment="whose attempt failed last: preferably not that one again"),
    Column("returns", Integer, nullable=False, server_default="0", comment="how often it was handed back"),
    Column("error", JSONB),
    Column("resource_class", SmallInteger, comment="null where it asks for nothing"),
    # Those that a claim changes, side by side and last: the log then tells of them alone.
    Column("state", Text, nullable=False),
    Column("token", BigInteger, nullable=False, server_default="0"),
    Column("worker_id", UUID),
    moment("leased_at"),
    moment("lease_expires_at"),
    moment("deadline_at"),
    one_of("state", LIVE_STATES),
    one_of("agent_type", AgentType),
    CheckConstraint("(blockers > 0) = (state = 'blocked')", name="blocked"),
    CheckConstraint("(worker_id IS NOT NULL) = (state IN ('assigned', 'executing'))", name="leased"),
    # A vacuum reads all indexes: it comes after so many dead rows, and a tenth of the queue.
    postgresql_with={
        "fillfactor": "45",
        "autovacuum_vacuum_scale_factor": "0.1",
        "autovacuum_vacuum_threshold": "2000",
        "autovacuum_analyze_scale_factor": "0.05",
    },
)
_READY = text("blockers = 0 AND run_at IS NULL")
Index("tasks_claim", tasks.c.agent_type, tasks.c.priority, tasks.c.tag, tasks.c.seq, postgresql_where=_READY)
# The bound on the priority, which always holds, keeps the planner from using the next two indexes for a claim.
Index(
    "tasks_waiting",
    tasks.c.priority,
    tasks.c.waiting_since,
    postgresql_where=text("blockers = 0 AND run_at IS NULL AND priority <= 4"),
)
# The last tag of a goal in a lane, of tasks that were submitted to it and of those that rose to it: these go by tags of
# their own, so that neither waits for all of the others.
for _name, _origin in (("tasks_submitted_tags", "IS NULL"), ("tasks_raised_tags", "IS NOT NULL")):
    Index(
        _name,
        tasks.c.agent_type,
        tasks.c.priority,
        func.coalesce(tasks.c.goal_id, text("''")),
        tasks.c.tag,
        postgresql_where=text(f"priority <= 4 AND submitted_priority {_origin}"),
    )
Index(
    "tasks_held",
    tasks.c.goal_id,
    tasks.c.agent_type,
    tasks.c.priority,
    tasks.c.tag,
    tasks.c.seq,
    postgresql_where=text("run_at = 'infinity'"),
)
# The order in which tasks of a metered goal are let through. A claim changes none of these columns, as everywhere here.
Index(
    "tasks_held_free",
    tasks.c.goal_id,
    tasks.c.priority.desc(),
    tasks.c.tag,
    tasks.c.seq,
    postgresql_where=text("run_at = 'infinity' AND blockers = 0"),
)
Index("tasks_delayed", tasks.c.run_at, postgresql_where=text("run_at IS NOT NULL"))
Index(
    "tasks_deadline",
    tasks.c.deadline,
    postgresql_where=text("deadline IS NOT NULL AND priority < 4"),
)
Index("tasks_seq", tasks.c.seq)
Index("tasks_goal", tasks.c.goal_id, tasks.c.seq)


def _namespace_index(table: Table) -> None:
    """Newest first within a namespace; `default` is not in it, so that it costs nothing where there is no other."""
    name = text("substr(split_part(goal_id, '/'::text, 1), 2)")
    Index(f"{table.name}_namespace", name, table.c.seq, postgresql_where=text("goal_id LIKE '@%/%'"))


_namespace_index(tasks)

# Finished tasks. Partitioned by day so that old ones are dropped, not deleted.
task_history = Table(
    "task_history",
    metadata,
    Column("id", UUID, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    *_submit_columns(),
    *_attempt_columns(),
    moment("finished_at", nullable=False),
    moment("waiting_since", comment="when it last became ready to run"),
    Column("result", JSONB),
    Column("result_hash", LargeBinary),
    Column("error", JSONB),
    Column("usage", JSONB),
    Column("quality", Float, comment="of the result, as its worker judged it: 0 to 1"),
    one_of("state", FINISHED),
    postgresql_partition_by="RANGE (finished_at)",
)
# Not unique, which a partitioned table could only be together with the time: a task enters as its row in `tasks` goes.
Index("task_history_id", task_history.c.id)
Index("task_history_seq", task_history.c.seq)
Index("task_history_goal", task_history.c.goal_id, task_history.c.seq)
_namespace_index(task_history)
Index("task_history_failed", task_history.c.seq, postgresql_where=text("state = 'failed'"))

# Columns that go with a task into history; each ending adds its own state, time and outcome.
KEPT_COLUMNS = tuple(c.name for c in tasks.c if c.name in task_history.c and c.name not in ("state", "error"))

# An edge for each dependency that has not completed yet; its completion deletes the edge.
task_dependencies = Table(
    "task_dependencies",
    metadata,
    Column("depends_on", UUID, nullable=False),
    Column("task_id", UUID, nullable=False),
    PrimaryKeyConstraint("depends_on", "task_id", name="task_dependencies_pkey"),
    Index("task_dependencies_task", "task_id"),
)

# Attempts that did not complete their task; the one that did is in the history row itself.
task_attempts = Table(
    "task_attempts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("task_id", UUID, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("worker_id", UUID, nullable=False),
    moment("leased_at", nullable=False),
    moment("ended_at", nullable=False, server_default=func.now()),
    Column("outcome", Text, nullable=False),
    Column("error", JSONB),
    Column("usage", JSONB),
    Index("task_attempts_task", "task_id"),
    Index("task_attempts_ended", "ended_at"),
)

# Segments of what attempts write, with at most 64 KiB of the beginning and of the end of each stream.
task_logs = Table(
    "task_logs",
    metadata,
    Column("task_id", UUID, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("stream", Text, nullable=False),
    Column("start", BigInteger, nullable=False, comment="bytes of the stream before it"),
    Column("ending", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("text", Text, nullable=False),
    moment("at", nullable=False, comment="when its end was written"),
    one_of("stream", Stream),
    PrimaryKeyConstraint("task_id", "token", "stream", "start", name="task_logs_pkey"),
    Index("task_logs_at", "at"),
)
