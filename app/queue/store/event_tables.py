"""Tables of events, and of what is folded from them and from the changes of tasks."""

from sqlalchemy import (
    REAL,
    BigInteger,
    Column,
    Float,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

from app.db.columns import EVENT_TRANSACTION, metadata, moment

EVENTS_IN_A_ROW = 1024

# Every change of state. Read in (transaction, seq) order and only up to the oldest transaction that writes events:
# sequence numbers alone become visible out of order. What one statement does to many tasks is a row or a few with an
# event or two for each of them; the view `every_event` has a row for each event, the n-th of a row with the n-th number
# from its `seq` on. What is alike for all tasks of such a row is there once, and an array says what is not.
events = Table(
    "events",
    metadata,
    Column("transaction", BigInteger, nullable=False, server_default=EVENT_TRANSACTION),
    Column("seq", BigInteger, Identity(always=True, increment=EVENTS_IN_A_ROW), nullable=False),
    moment("at", nullable=False, server_default=func.now()),
    Column("kind", Text, nullable=False),
    Column("task_id", UUID, comment="null where a goal itself has changed, and in a row of many tasks"),
    Column("agent_type", Text),
    Column("goal_id", Text),
    Column("worker_id", UUID),
    Column("token", BigInteger),
    Column("detail", JSONB),
    Column("priority", SmallInteger),
    Column("seconds", REAL, comment="how long the task had waited (assigned) or run (completed, failed)"),
    Column("quality", Float, comment="of the result (completed); 0 for a failure that is the agent's own"),
    Column("size", SmallInteger, nullable=False, server_default="1", comment="number of events in the row"),
    Column("next_kind", Text, comment="of an event that follows that of each task in a row of many"),
    Column("task_ids", ARRAY(UUID), comment="in a row of many tasks; the other arrays go with it, or are null"),
    Column("worker_ids", ARRAY(UUID)),
    Column("tokens", ARRAY(BigInteger)),
    Column("all_seconds", ARRAY(REAL)),
    Column("qualities", ARRAY(Float)),
    Column("lanes", ARRAY(SmallInteger), comment="8 times the place of the agent type, from 1 on, plus the priority"),
    Column("goal_ids", ARRAY(Text)),
    PrimaryKeyConstraint("transaction", "seq", "at", name="events_pkey"),
    postgresql_partition_by="RANGE (at)",
)

# Live tasks by lane and phase: folded counts and the changes since. A trigger on `tasks` writes the changes, so that no
# statement can forget to; and as nobody updates a shared row, nobody waits for anybody.
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
    Column("transaction", BigInteger, nullable=False, server_default=EVENT_TRANSACTION),
    Column("agent_type", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("phase", Text, nullable=False),
    Column("tasks", Integer, nullable=False),
    Index("queue_changes_transaction", "transaction"),
    postgresql_with={"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "2000"},
)

# Events by minute, lane and kind, with the seconds of waits and runs: folded from the events.
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

# The same since ever, so that two readings give what happened between them.
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

# Mark of each fold: everything below this transaction has been folded. That of dropped events is the last one of them.
folds = Table(
    "folds",
    metadata,
    Column("name", Text, primary_key=True),
    Column("transaction", BigInteger, nullable=False),
    Column("seq", BigInteger, comment="of the last event that was dropped"),
)
