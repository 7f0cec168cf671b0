"""The queue beside its tasks: who held what, where lanes stand, what is paused, and how many there are."""

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, UUID

from app.domain.agents import AgentType
from app.store.tables.base import OWN_TRANSACTION, metadata, moment, one_of

# Which worker was given what: its n-th lease. Rows are only added, and the key lets one of two rivals have the n-th,
# which the claim gives only when the one before is over: so a worker holds one lease at most, whatever the code does.
# A unique index on the worker of live tasks would say it more plainly, and would have to walk all the former leases
# of a worker for as long as somebody keeps an old snapshot open.
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

pauses = Table(
    "pauses",
    metadata,
    Column("agent_type", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("paused_by", Text, nullable=False),
    moment("paused_at", nullable=False, server_default=func.now()),
    one_of("agent_type", AgentType),
)

# What was submitted lately, to notice duplicates by agent type and payload.
fingerprints = Table(
    "fingerprints",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("task_id", UUID, nullable=False),
    moment("seen_at", nullable=False, server_default=func.now()),
    Index("fingerprints_seen", "seen_at"),
)

# Live tasks by lane and phase: the sum of what was folded and of the changes since. A trigger on `tasks` writes the
# changes, so no statement can forget to; nobody waits for anybody, as nobody updates a shared row.
queue_counts = Table(
    "queue_counts",
    metadata,
    Column("agent_type", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("phase", Text, nullable=False),
    Column("tasks", BigInteger, nullable=False),
    PrimaryKeyConstraint("agent_type", "priority", "phase", name="queue_counts_pkey"),
)
queue_changes = Table(
    "queue_changes",
    metadata,
    Column("transaction", BigInteger, nullable=False, server_default=OWN_TRANSACTION),
    Column("agent_type", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("phase", Text, nullable=False),
    Column("tasks", Integer, nullable=False),
    Index("queue_changes_transaction", "transaction"),
    postgresql_with={"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "2000"},
)

# What has become of tasks, by minute: how many, how long they waited or ran, folded from the events.
queue_minutes = Table(
    "queue_minutes",
    metadata,
    moment("minute", nullable=False),
    Column("agent_type", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("tasks", BigInteger, nullable=False),
    Column("seconds", Float, nullable=False, comment="sum of the seconds that the events tell"),
    Column("longest", Float, nullable=False, comment="the largest of them"),
    Column("histogram", ARRAY(BigInteger), nullable=False, comment="how many fell into each bucket of seconds"),
    PrimaryKeyConstraint("minute", "agent_type", "priority", "kind", name="queue_minutes_pkey"),
)

# The same since ever, for whoever wants what has become of tasks between two looks.
queue_totals = Table(
    "queue_totals",
    metadata,
    Column("agent_type", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("tasks", BigInteger, nullable=False),
    Column("seconds", Float, nullable=False, comment="sum of the seconds that the events tell"),
    PrimaryKeyConstraint("agent_type", "priority", "kind", name="queue_totals_pkey"),
)

# How far a duty has folded a table that is only added to: everything below is done.
folds = Table(
    "folds",
    metadata,
    Column("name", Text, primary_key=True),
    Column("transaction", BigInteger, nullable=False),
)
