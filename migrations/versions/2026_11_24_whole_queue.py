"""The whole queue: lanes and tags, a ledger of leases, counters kept by triggers, pauses, minutes, fingerprints."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_24_whole_queue"
down_revision = "2026_11_23_first_schema"
branch_labels = None
depends_on = None

offline = "writes every row of tasks, and builds indexes of tasks and task_history"

# Replaced by a restore into another server, where transactions are counted anew.
_OFFSET = "CREATE FUNCTION convener_transaction_offset() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 0::bigint'"

# Taken when the event is written, after all locks it waited for: its own number may be lower than that of a change
# which was committed before and which it follows. Readers stop below the oldest running transaction, so they cannot
# be past a higher number before this transaction ends.
_EVENT_TRANSACTION = """
CREATE FUNCTION convener_event_transaction() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN greatest((pg_current_xact_id()::text)::bigint,
                    (pg_snapshot_xmax(pg_current_snapshot())::text)::bigint - 1) + convener_transaction_offset();
END $$
"""

_OWN_TRANSACTION = "(pg_current_xact_id()::text)::bigint + convener_transaction_offset()"

# What a task counts as: its state, or `delayed` while it waits for its time.
_PHASE = """
CREATE FUNCTION convener_phase(state text, run_at timestamptz) RETURNS text LANGUAGE sql IMMUTABLE
AS $$ SELECT CASE WHEN state = 'pending' AND run_at IS NOT NULL THEN 'delayed' ELSE state END $$
"""

_COUNT = """
CREATE FUNCTION convener_count_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO queue_changes (agent_type, priority, phase, tasks)
        SELECT agent_type, priority, convener_phase(state, run_at), count(*) FROM arrived GROUP BY 1, 2, 3;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO queue_changes (agent_type, priority, phase, tasks)
        SELECT agent_type, priority, convener_phase(state, run_at), -count(*) FROM departed GROUP BY 1, 2, 3;
    ELSE
        INSERT INTO queue_changes (agent_type, priority, phase, tasks)
        SELECT agent_type, priority, phase, sum(tasks) FROM (
            SELECT agent_type, priority, convener_phase(state, run_at) AS phase, 1 AS tasks FROM arrived
            UNION ALL SELECT agent_type, priority, convener_phase(state, run_at), -1 FROM departed
        ) change GROUP BY 1, 2, 3 HAVING sum(tasks) <> 0;
    END IF;
    RETURN NULL;
END $$
"""

_TRIGGERS = {
    "INSERT": "REFERENCING NEW TABLE AS arrived",
    "UPDATE": "REFERENCING OLD TABLE AS departed NEW TABLE AS arrived",
    "DELETE": "REFERENCING OLD TABLE AS departed",
}

_READY = sa.text("state = 'pending' AND run_at IS NULL")


def upgrade() -> None:
    """Tasks that wait keep their order: their tag is their place in the old order."""
    op.execute(_OFFSET)
    op.execute(_EVENT_TRANSACTION)
    op.execute(_PHASE)
    _create_tables()
    _change_events()
    _change_tasks()
    op.execute(_COUNT)
    for event, referencing in _TRIGGERS.items():
        op.execute(
            f"CREATE TRIGGER tasks_count_{event.lower()} AFTER {event} ON tasks {referencing} "
            "FOR EACH STATEMENT EXECUTE FUNCTION convener_count_tasks()"
        )
    op.execute(
        "INSERT INTO queue_counts SELECT agent_type, priority, convener_phase(state, run_at), count(*) "
        "FROM tasks GROUP BY 1, 2, 3"
    )
    op.execute(
        "INSERT INTO leases (worker_id, n, task_id, token, request_id, leased_at) "
        "SELECT worker_id, 1, id, token, lease_request_id, leased_at FROM tasks WHERE worker_id IS NOT NULL"
    )
    op.drop_column("tasks", "lease_request_id")


def downgrade() -> None:
    """Back to one lease per worker by an index over live tasks."""
    for event in _TRIGGERS:
        op.execute(f"DROP TRIGGER tasks_count_{event.lower()} ON tasks")
    op.execute("DROP FUNCTION convener_count_tasks()")
    op.add_column("tasks", sa.Column("lease_request_id", sa.UUID(), nullable=True))
    op.execute(
        "UPDATE tasks SET lease_request_id = l.request_id FROM leases l "
        "WHERE l.worker_id = tasks.worker_id AND l.task_id = tasks.id AND l.token = tasks.token"
    )
    for name in ("tasks_claim", "tasks_waiting", "tasks_tags", "tasks_deadline"):
        op.drop_index(name, table_name="tasks")
    for column in ("tag", "waiting_since", "avoid_worker_id"):
        op.drop_column("tasks", column)
    op.create_index("tasks_claim", "tasks", ["agent_type", sa.text("priority DESC"), "seq"], postgresql_where=_READY)
    op.create_index(
        "tasks_one_lease_per_worker",
        "tasks",
        ["worker_id"],
        unique=True,
        postgresql_where=sa.text("worker_id IS NOT NULL"),
    )
    op.drop_index("task_history_failed", table_name="task_history")
    op.alter_column("events", "transaction", server_default=sa.text("(pg_current_xact_id()::text)::bigint"))
    op.drop_column("events", "priority")
    op.drop_column("events", "seconds")
    for table in (
        *("folds", "queue_minutes", "queue_changes", "queue_counts", "fingerprints", "pauses", "goals", "lanes"),
        "leases",
    ):
        op.drop_table(table)
    op.execute("DROP SEQUENCE admission_epoch")
    op.execute("DROP FUNCTION convener_phase(text, timestamptz)")
    op.execute("DROP FUNCTION convener_event_transaction()")
    op.execute("DROP FUNCTION convener_transaction_offset()")


def _change_events() -> None:
    op.alter_column("events", "transaction", server_default=sa.text("convener_event_transaction()"))
    op.add_column("events", sa.Column("priority", sa.SmallInteger(), nullable=True))
    op.add_column(
        "events",
        sa.Column(
            "seconds",
            sa.REAL(),
            nullable=True,
            comment="how long the task had waited (assigned) or run (completed, failed)",
        ),
    )
    op.create_index("task_history_failed", "task_history", ["seq"], postgresql_where=sa.text("state = 'failed'"))


def _change_tasks() -> None:
    tag = sa.Column(
        "tag", sa.Float(), server_default="0", nullable=False, comment="virtual finish time within its lane"
    )
    op.add_column("tasks", tag)
    op.execute("UPDATE tasks SET tag = seq")
    op.add_column(
        "tasks",
        sa.Column(
            "waiting_since",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it last became ready to run",
        ),
    )
    op.execute("UPDATE tasks SET waiting_since = created_at")
    op.add_column(
        "tasks",
        sa.Column(
            "avoid_worker_id",
            sa.UUID(),
            nullable=True,
            comment="whose attempt failed last: preferably not that one again",
        ),
    )
    op.drop_index("tasks_one_lease_per_worker", table_name="tasks")
    op.drop_index("tasks_claim", table_name="tasks")
    op.create_index("tasks_claim", "tasks", ["agent_type", "priority", "tag", "seq"], postgresql_where=_READY)
    op.create_index(
        "tasks_waiting",
        "tasks",
        ["priority", "waiting_since"],
        postgresql_where=sa.text("state = 'pending' AND run_at IS NULL AND priority <= 4"),
    )
    op.create_index(
        "tasks_tags",
        "tasks",
        ["agent_type", "priority", sa.text("coalesce(goal_id, '')"), "tag"],
        postgresql_where=sa.text("state IN ('blocked', 'pending') AND priority <= 4"),
    )
    op.create_index(
        "tasks_deadline",
        "tasks",
        ["deadline"],
        postgresql_where=sa.text("deadline IS NOT NULL AND priority < 4 AND state IN ('blocked', 'pending')"),
    )


def _create_tables() -> None:
    agents = "('evolution', 'generation', 'meta_review', 'proximity', 'ranking', 'reflection')"
    now = sa.text("now()")
    op.create_table(
        "leases",
        sa.Column("worker_id", sa.UUID(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("request_id", sa.UUID(), nullable=False),
        sa.Column("leased_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "n", name="leases_pkey"),
    )
    op.create_table(
        "lanes",
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("virtual_time", sa.Float(), server_default="0", nullable=False),
        sa.CheckConstraint(f"agent_type IN {agents}", name=op.f("lanes_agent_type_check")),
        sa.PrimaryKeyConstraint("agent_type", "priority", name="lanes_pkey"),
    )
    op.create_table(
        "goals",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column(
            "weight",
            sa.Float(),
            server_default="1",
            nullable=False,
            comment="share of its tasks against other goals",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("goals_pkey")),
    )
    op.create_table(
        "pauses",
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("paused_by", sa.Text(), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.CheckConstraint(f"agent_type IN {agents}", name=op.f("pauses_agent_type_check")),
        sa.PrimaryKeyConstraint("agent_type", name=op.f("pauses_pkey")),
    )
    op.create_table(
        "fingerprints",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("fingerprints_pkey")),
    )
    op.create_index("fingerprints_seen", "fingerprints", ["seen_at"])
    _create_counters()


def _lane() -> tuple[sa.Column[str], sa.Column[int]]:
    return (
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
    )


def _create_counters() -> None:
    op.create_table(
        "queue_counts",
        *_lane(),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("tasks", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("agent_type", "priority", "phase", name="queue_counts_pkey"),
    )
    op.create_table(
        "queue_changes",
        sa.Column("transaction", sa.BigInteger(), server_default=sa.text(_OWN_TRANSACTION), nullable=False),
        *_lane(),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("tasks", sa.Integer(), nullable=False),
        postgresql_with={"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "2000"},
    )
    op.create_index("queue_changes_transaction", "queue_changes", ["transaction"])
    # Counts how often the depth of the queue was taken exactly, without a row that would have to be updated.
    op.execute("CREATE SEQUENCE admission_epoch")
    op.create_table(
        "queue_minutes",
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        *_lane(),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("tasks", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False, comment="sum of the seconds that the events tell"),
        sa.Column("longest", sa.Float(), nullable=False, comment="the largest of them"),
        sa.Column(
            "histogram",
            postgresql.ARRAY(sa.BigInteger()),
            nullable=False,
            comment="how many fell into each bucket of seconds",
        ),
        sa.PrimaryKeyConstraint("minute", "agent_type", "priority", "kind", name="queue_minutes_pkey"),
    )
    op.create_table(
        "folds",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("transaction", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("folds_pkey")),
    )
