"""First schema: tasks and their history, leases, workers, keys, events, duties."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_23_first_schema"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "events",
        sa.Column(
            "transaction",
            sa.BigInteger(),
            server_default=sa.text("(pg_current_xact_id()::text)::bigint"),
            nullable=False,
        ),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("goal_id", sa.Text(), nullable=True),
        sa.Column("worker_id", sa.UUID(), nullable=True),
        sa.Column("token", sa.BigInteger(), nullable=True),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("transaction", "seq", "at", name="events_pkey"),
        postgresql_partition_by="RANGE (at)",
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("worker_id", sa.UUID(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "role IN ('admin', 'operator', 'reader', 'supervisor', 'worker')", name=op.f("keys_role_check")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("keys_pkey")),
    )
    op.create_index("keys_worker", "keys", ["worker_id"], unique=False)
    op.create_table(
        "loop_ticks",
        sa.Column("duty", sa.Text(), nullable=False),
        sa.Column("last_run_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("held_back", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("runs", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("duty", name=op.f("loop_ticks_pkey")),
    )
    op.create_table(
        "replacements",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("lost_worker_id", sa.UUID(), nullable=False),
        sa.Column("worker_id", sa.UUID(), nullable=True),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("worker_name", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("detected_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("registered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("first_lease_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("replacements_pkey")),
        sa.UniqueConstraint("lost_worker_id", name=op.f("replacements_lost_worker_id_key")),
        sa.UniqueConstraint("worker_id", name=op.f("replacements_worker_id_key")),
    )
    op.create_index(
        "replacements_open", "replacements", ["slot"], unique=False, postgresql_where=sa.text("worker_id IS NULL")
    )
    op.create_table(
        "task_attempts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.UUID(), nullable=False),
        sa.Column("leased_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("usage", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("task_attempts_pkey")),
    )
    op.create_index("task_attempts_ended", "task_attempts", ["ended_at"], unique=False)
    op.create_index("task_attempts_task", "task_attempts", ["task_id"], unique=False)
    op.create_table(
        "task_dependencies",
        sa.Column("depends_on", sa.UUID(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.PrimaryKeyConstraint("depends_on", "task_id", name="task_dependencies_pkey"),
    )
    op.create_index("task_dependencies_task", "task_dependencies", ["task_id"], unique=False)
    op.create_table(
        "task_history",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("goal_id", sa.Text(), nullable=True),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("labels", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("timeout_seconds", sa.Float(), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("retry_delays", postgresql.ARRAY(sa.Float()), nullable=False),
        sa.Column("trace_context", sa.Text(), nullable=True),
        sa.Column("depends_on", postgresql.ARRAY(sa.UUID()), server_default="{}", nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("rescues", sa.Integer(), server_default="0", nullable=False),
        sa.Column("token", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("worker_id", sa.UUID(), nullable=True),
        sa.Column("leased_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("checkpoint", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("result_hash", sa.LargeBinary(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("usage", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.CheckConstraint("state IN ('cancelled', 'completed', 'failed')", name=op.f("task_history_state_check")),
        sa.PrimaryKeyConstraint("id", "finished_at", name="task_history_pkey"),
        postgresql_partition_by="RANGE (finished_at)",
    )
    op.create_index("task_history_goal", "task_history", ["goal_id", "seq"], unique=False)
    op.create_index("task_history_seq", "task_history", ["seq"], unique=False)
    op.create_table(
        "tasks",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("goal_id", sa.Text(), nullable=True),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("labels", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("timeout_seconds", sa.Float(), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("retry_delays", postgresql.ARRAY(sa.Float()), nullable=False),
        sa.Column("trace_context", sa.Text(), nullable=True),
        sa.Column("depends_on", postgresql.ARRAY(sa.UUID()), server_default="{}", nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("rescues", sa.Integer(), server_default="0", nullable=False),
        sa.Column("token", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("worker_id", sa.UUID(), nullable=True),
        sa.Column("leased_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("checkpoint", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("run_at", sa.DateTime(timezone=True), nullable=True, comment="null once the task may run"),
        sa.Column(
            "blockers", sa.Integer(), server_default="0", nullable=False, comment="dependencies that are not met"
        ),
        sa.Column("has_dependents", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("lease_request_id", sa.UUID(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.CheckConstraint("(blockers > 0) = (state = 'blocked')", name=op.f("tasks_blocked_check")),
        sa.CheckConstraint(
            "(worker_id IS NOT NULL) = (state IN ('assigned', 'executing'))", name=op.f("tasks_leased_check")
        ),
        sa.CheckConstraint(
            "agent_type IN ('evolution', 'generation', 'meta_review', 'proximity', 'ranking', 'reflection')",
            name=op.f("tasks_agent_type_check"),
        ),
        sa.CheckConstraint("state IN ('assigned', 'blocked', 'executing', 'pending')", name=op.f("tasks_state_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("tasks_pkey")),
        postgresql_with={
            "fillfactor": "70",
            "autovacuum_vacuum_scale_factor": "0",
            "autovacuum_vacuum_threshold": "2000",
            "autovacuum_vacuum_cost_delay": "0",
            "autovacuum_analyze_scale_factor": "0.05",
        },
    )
    op.create_index(
        "tasks_claim",
        "tasks",
        ["agent_type", sa.literal_column("priority DESC"), "seq"],
        unique=False,
        postgresql_where=sa.text("state = 'pending' AND run_at IS NULL"),
    )
    op.create_index("tasks_delayed", "tasks", ["run_at"], unique=False, postgresql_where=sa.text("run_at IS NOT NULL"))
    op.create_index("tasks_goal", "tasks", ["goal_id", "seq"], unique=False)
    op.create_index(
        "tasks_one_lease_per_worker",
        "tasks",
        ["worker_id"],
        unique=True,
        postgresql_where=sa.text("worker_id IS NOT NULL"),
    )
    op.create_index("tasks_seq", "tasks", ["seq"], unique=False)
    op.create_table(
        "workers",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("incarnation", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("provisioner", sa.Text(), nullable=True, comment="null for a worker that somebody else started"),
        sa.Column("slot", sa.Integer(), nullable=True),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column(
            "handle",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="what the provisioner needs to find the process again",
        ),
        sa.Column("capabilities", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("labels", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("memory_gb", sa.Float(), nullable=True),
        sa.Column("cpu_cores", sa.Float(), nullable=True),
        sa.Column("directive", sa.Text(), nullable=True),
        sa.Column("directive_reason", sa.Text(), nullable=True),
        sa.Column("cpu_percent", sa.Float(), nullable=True),
        sa.Column("memory_mb", sa.Float(), nullable=True),
        sa.Column("recent_errors", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("ended_reason", sa.Text(), nullable=True),
        sa.Column("requested_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("launched_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("registered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("first_beat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('draining', 'failed', 'lost', 'ready', 'starting', 'stopped')", name=op.f("workers_state_check")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("workers_pkey")),
        postgresql_with={
            "fillfactor": "50",
            "autovacuum_vacuum_scale_factor": "0",
            "autovacuum_vacuum_threshold": "500",
        },
    )
    op.create_index("workers_incarnation", "workers", ["name", "incarnation"], unique=True)
    op.create_index(
        "workers_live_name",
        "workers",
        ["name"],
        unique=True,
        postgresql_where=sa.text("state IN ('starting', 'ready', 'draining')"),
    )
    # What nobody prepared a day for lands here, so a stalled duty loses nothing.
    op.execute("CREATE TABLE task_history_default PARTITION OF task_history DEFAULT")
    op.execute("CREATE TABLE events_default PARTITION OF events DEFAULT")


def downgrade() -> None:
    """Drop everything; the indexes go with their tables."""
    others = ("loop_ticks", "keys", "replacements", "workers", "events")
    for table in (*others, "task_attempts", "task_dependencies", "task_history", "tasks"):
        op.drop_table(table)
