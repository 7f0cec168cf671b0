"""Permits for calls of language models: models, permits, claims, cached answers and usage by minute."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_24_permits"
down_revision = "2026_11_24_agents"
branch_labels = None
depends_on = None

_BUSY = {"fillfactor": "50", "autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "500"}


def upgrade() -> None:
    """Six tables that nothing else refers to."""
    _create_gate()
    _create_models()
    _create_permits()
    _create_claims()
    _create_cache()
    _create_minutes()


def downgrade() -> None:
    """Forget them."""
    for table in ("llm_minutes", "llm_cache", "llm_claims", "llm_permits", "llm_models", "llm_gate"):
        op.drop_table(table)


def _create_gate() -> None:
    op.create_table(
        "llm_gate",
        sa.Column("is_only", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("turns", postgresql.JSONB(), nullable=False, comment="virtual times of the agent types"),
        sa.CheckConstraint("is_only", name=op.f("llm_gate_is_only_check")),
        sa.PrimaryKeyConstraint("is_only", name=op.f("llm_gate_pkey")),
        postgresql_with=_BUSY,
    )


def _create_models() -> None:
    op.create_table(
        "llm_models",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default="0", nullable=False, comment="of what people have set"),
        sa.Column("requests_per_window", sa.BigInteger(), nullable=True, comment="null: unlimited"),
        sa.Column("tokens_per_window", sa.BigInteger(), nullable=True, comment="null: unlimited"),
        sa.Column("window_seconds", sa.Float(), server_default="60", nullable=False),
        sa.Column("burst", sa.BigInteger(), nullable=True, comment="requests at once"),
        sa.Column("token_burst", sa.BigInteger(), nullable=True, comment="tokens at once"),
        sa.Column("max_concurrency", sa.Integer(), nullable=True),
        sa.Column("fallback_models", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("input_price", sa.Float(), nullable=True, comment="US dollars for a million tokens"),
        sa.Column("output_price", sa.Float(), nullable=True, comment="US dollars for a million tokens"),
        sa.Column(
            "concurrency", sa.Float(), nullable=False, comment="calls at once that the service has been seen to bear"
        ),
        sa.Column("ramping", sa.Boolean(), server_default="true", nullable=False, comment="no loss so far"),
        sa.Column("shrunk_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("latency_seconds", sa.Float(), nullable=True, comment="decayed mean"),
        sa.Column("cooldown_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False, comment="one after the other"),
        sa.Column(
            "open_until", sa.DateTime(timezone=True), nullable=True, comment="of the circuit breaker; null: closed"
        ),
        sa.Column(
            "requests_tat",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when all admitted requests will have been paid for",
        ),
        sa.Column(
            "tokens_tat",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when all admitted tokens will have been paid for",
        ),
        sa.Column("used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("model", name=op.f("llm_models_pkey")),
        postgresql_with=_BUSY,
    )


def _create_permits() -> None:
    op.create_table(
        "llm_permits",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.UUID(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("goal_id", sa.Text(), nullable=True),
        sa.Column("task_id", sa.UUID(), nullable=True),
        sa.Column("worker_id", sa.UUID(), nullable=True),
        sa.Column("estimated_tokens", sa.BigInteger(), nullable=False),
        sa.Column("is_probe", sa.Boolean(), nullable=False, comment="tries a model whose breaker was open"),
        sa.Column("granted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ending", sa.Text(), nullable=True),
        sa.Column("digest", sa.LargeBinary(), nullable=True, comment="SHA-256 of the settlement"),
        sa.CheckConstraint(
            "agent_type IN ('evolution', 'generation', 'meta_review', 'proximity', 'ranking', 'reflection')",
            name=op.f("llm_permits_agent_type_check"),
        ),
        sa.CheckConstraint(
            "ending IN ('expired', 'lost', 'released', 'settled')", name=op.f("llm_permits_ending_check")
        ),
        sa.CheckConstraint("(ended_at IS NULL) = (ending IS NULL)", name=op.f("llm_permits_ending_with_end_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("llm_permits_pkey")),
        postgresql_with=_BUSY,
    )
    op.create_index(
        "llm_permits_ended", "llm_permits", ["ended_at"], unique=False, postgresql_where=sa.text("ended_at IS NOT NULL")
    )
    op.create_index(
        "llm_permits_live", "llm_permits", ["expires_at"], unique=False, postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_index(
        "llm_permits_live_worker",
        "llm_permits",
        ["worker_id"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index("llm_permits_request", "llm_permits", ["key_id", "request_id"], unique=True)


def _create_claims() -> None:
    op.create_table(
        "llm_claims",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.UUID(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=True),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "agent_type IN ('evolution', 'generation', 'meta_review', 'proximity', 'ranking', 'reflection')",
            name=op.f("llm_claims_agent_type_check"),
        ),
        sa.PrimaryKeyConstraint("key_id", "request_id", name="llm_claims_pkey"),
        postgresql_with=_BUSY,
    )
    op.create_index("llm_claims_due", "llm_claims", ["due"], unique=False)


def _create_cache() -> None:
    op.create_table(
        "llm_cache",
        sa.Column("key", sa.LargeBinary(), nullable=False, comment="SHA-256 of model and canonical request"),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("answer", postgresql.JSONB(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("stored_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("llm_cache_pkey")),
    )
    op.create_index("llm_cache_expires", "llm_cache", ["expires_at"], unique=False)
    op.create_index("llm_cache_stored", "llm_cache", ["stored_at"], unique=False)


def _create_minutes() -> None:
    op.create_table(
        "llm_minutes",
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("goal_id", sa.Text(), nullable=False, comment="empty: of no goal"),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_usd", sa.Float(), nullable=False),
        sa.Column("held_seconds", sa.Float(), nullable=False, comment="for which the permits were held"),
        sa.Column("task_seconds", sa.Float(), nullable=False, comment="the part of it that tasks held them for"),
        sa.Column("timed", sa.BigInteger(), nullable=False, comment="calls whose latency is known"),
        sa.Column("seconds", sa.Float(), nullable=False, comment="sum of these latencies"),
        sa.Column("longest", sa.Float(), nullable=False, comment="the largest of them"),
        sa.Column(
            "histogram",
            postgresql.ARRAY(sa.BigInteger()),
            nullable=False,
            comment="how many fell into each bucket of seconds",
        ),
        sa.CheckConstraint(
            "agent_type IN ('evolution', 'generation', 'meta_review', 'proximity', 'ranking', 'reflection')",
            name=op.f("llm_minutes_agent_type_check"),
        ),
        sa.PrimaryKeyConstraint("minute", "model", "agent_type", "goal_id", "outcome", name="llm_minutes_pkey"),
    )
